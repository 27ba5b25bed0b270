"""Training tools under faults, side by side: killed, damaged, on a full disk.

Each tool trains LeNet-5 on the first 512 training digits of MNIST, in memory, in batches of 32 for
2 epochs, and saves a checkpoint every 5 steps. The same command begins a run and goes on with it;
the peers' are the scripts in benchmarks/peers. To every tool the same is done:

- killed (SIGKILL) at a random moment after a checkpoint appeared, then resumed;
- killed while it saves: at a drawn one of the changes that follow each other quickly in its folders
  after a checkpoint's name appeared; counted only if what it left shows that a save was under way;
- one bit flipped, or the file cut in half, where the newest checkpoint has the network's weights,
  then resumed; the same run was resumed before without damage, as a control;
- room for one save and a half on its disk, then for many, and resumed.

A resume counts if it ends without error and began after step 0, with nothing done by hand between;
it is exact if the final weights equal those of the tool's own run that nothing was done to. What
could not be applied is tried again with another draw, and said, and never counted.

    pip install -e '.[bench]'
    python benchmarks/faults.py [--kills 10] [--every 5] [--seed 0] [--verbose] [--write]

--write puts the table into docs/reliability.md. Linux; the full disk needs root. Except for that
fault the processes are forked from one that has imported everything, so that many fit into minutes.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from machine import processor
from peers.disk import small_disk
from peers.running import Ending, Place, kill_at_random, kill_in_a_save
from peers.tools import TOOLS, Tool, Work, weights_in

import heptad
from heptad.datasets.dataset import find_dataset, read_part
from heptad.datasets.idx import idx_header
from heptad.stages.data import open_sources

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
# Never the last step of an epoch, of which docs/reliability.md tells.
EVERY = 5
# A draw that cannot be applied is followed by another, up to so many for each that is wanted.
MOST_DRAWS = 4
# What becomes of a run whose newest checkpoint was damaged; the last two are shown if they happen.
FATES = (
    "an older one used, final weights exact",
    "refused with an error, help needed",
    "**accepted silently**",
    "an older one used, other weights",
    "begun anew",
)


@dataclass(frozen=True)
class Trial:
    """One fault that was applied, and what became of the run. newest: steps of its checkpoint."""

    draw: str
    newest: int
    found: str
    ending: Ending
    is_exact: bool

    @property
    def fate(self) -> str:
        """Which of `FATES` it was, with a damaged checkpoint."""
        if self.ending.code:
            return FATES[1]
        if not self.ending.resumed_from:
            return FATES[4]
        if self.ending.resumed_from == self.newest:
            return FATES[2]
        return FATES[0] if self.is_exact else FATES[3]

    def __str__(self) -> str:
        end = self.ending
        start = f"resumed from step {end.resumed_from}" if end.resumed_from else "not resumed"
        exact = ", exact" if self.is_exact else ""
        return (
            f"{self.draw}; newest checkpoint: step {self.newest}; {self.found or 'all whole'};"
            f" {start}, exit {end.code}{exact}; last line: {end.last_line}"
        )


@dataclass
class Record:
    """All that was seen of one tool: trials by fault, draws that were not applied, rows of text."""

    trials: dict[str, list[Trial]] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    disk: tuple[str, str] = ("not applied", "not applied")


Killing = Callable[[Place, random.Random], tuple[str, bool]]


def killed(
    place: Place, record: Record, kill: Killing, draws: random.Random, count: int
) -> Iterator[Trial]:
    """Kill runs and resume each."""
    applied = 0
    for _ in range(MOST_DRAWS * count):
        if applied == count:
            return
        place.clear()
        draw, is_applied = kill(place, draws)
        if not is_applied:
            record.missed.append(draw)
            continue
        applied += 1
        newest, found = place.newest()[0], place.tool.unfinished(place.run, place.temporary)
        yield Trial(draw, newest, found, place.carry_out(), place.is_exact())


def flip(file: Path, draws: random.Random) -> str:
    """Flip one bit among the weights in a file."""
    content, weights = bytearray(file.read_bytes()), weights_in(file)
    first = bytes(content).find(weights)
    assert first >= 0
    at, bit = first + int(draws.random() * len(weights)), draws.randrange(8)
    content[at] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {at} of {file.name} flipped"


def cut(file: Path, draws: random.Random) -> str:  # noqa: ARG001 - as `flip`
    """Cut a file in half."""
    num_bytes = file.stat().st_size
    os.truncate(file, num_bytes // 2)
    return f"{file.name} cut from {num_bytes} to {num_bytes // 2} bytes"


def damaged(
    place: Place, record: Record, draws: random.Random, count: int
) -> Iterator[tuple[str, Trial]]:
    """Damage the newest checkpoint of killed runs that can be resumed, and resume them."""
    saved = place.run.with_name("saved")
    applied = 0
    for _ in range(MOST_DRAWS * count):
        if applied == count:
            return
        place.clear()
        draw, was_killed = kill_at_random(place, draws)
        newest = place.newest()[0]
        if not was_killed:
            record.missed.append(f"{draw}, to damage its checkpoint: it had ended")
            continue
        shutil.rmtree(saved, ignore_errors=True)
        shutil.copytree(place.run, saved)
        control = place.carry_out()
        if not control.has_gone_on or control.resumed_from != newest:
            record.missed.append(f"{draw}, to damage its checkpoint: not resumed undamaged either")
            continue
        applied += 1
        for name, damage in (("flip", flip), ("cut", cut)):
            place.clear()
            shutil.rmtree(place.run)
            shutil.copytree(saved, place.run)
            what = damage(place.tool.network(place.newest()[1]), draws)
            yield name, Trial(f"{draw}, {what}", newest, "", place.carry_out(), place.is_exact())


def full_disk(place: Place, num_written: int) -> tuple[tuple[str, str], str]:
    """Train with room for one save and a half, make room and go on; the two cells, the evidence."""
    room = int(1.5 * num_written)
    try:
        with small_disk(place.run.with_name("disk"), room=room) as disk:
            first = disk.carry_out(place)
            newest = next(iter(place.tool.saved(place.work, disk.seen / "run")), (0, None))[0]
            disk.make_room()
            second = disk.carry_out(place)
            is_exact = place.is_exact(disk.seen / "run")
    except OSError as error:
        return ("not applied", "not applied"), f"not applied: {error}"
    evidence = f"a save is {num_written} bytes, room for {room}; {first}, newest {newest}; {second}"
    on = "trained to the end" if first.epochs == 2 else "stopped at a save"
    return (f"{on}, exit {first.code}", _after_room(first, second, is_exact)), evidence


def _after_room(first: Ending, second: Ending, is_exact: bool) -> str:
    if second.code:
        return f"not without help: exit {second.code}"
    weights = "the same weights" if is_exact else "other weights"
    if second.resumed_from:
        return f"went on from step {second.resumed_from}, {weights}"
    return f"{'nothing left to do' if first.code == 0 else 'begun anew'}, {weights}"


def straight_runs(place: Place) -> tuple[dict[str, torch.Tensor], int]:
    """Train twice with nothing done; the final weights, and the bytes that a save writes."""
    states = []
    for _ in range(2):
        place.clear()
        ending = place.carry_out()
        assert (ending.code, ending.epochs) == (0, 2), place.log.read_text()
        states.append(torch.load(place.run / place.tool.final, weights_only=True))
    # Without that no resume could be exact.
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    return states[0], place.tool.num_written(place.run)


def put_to_the_test(
    tool: Tool, work: Work, folder: Path, *, kills: int, seed: int, verbose: bool
) -> Record:
    """Do everything to one tool. All tools get the same draws."""

    def tell(fault: str, what: object) -> None:
        if verbose:
            print(f"{tool.name} | {fault} | {what}", flush=True)

    folder.mkdir()
    place = Place(tool, work, folder / "run", folder / "tmp", folder / "log")
    straight, num_written = straight_runs(place)
    place = replace(place, straight=straight)
    record = Record()
    for fault, kill in (("random", kill_at_random), ("save", kill_in_a_save)):
        trials = record.trials.setdefault(fault, [])
        for trial in killed(place, record, kill, random.Random(f"{seed} {fault}"), kills):
            trials.append(trial)
            tell(fault, trial)
    for fault, trial in damaged(place, record, random.Random(f"{seed} damage"), kills):
        record.trials.setdefault(fault, []).append(trial)
        tell(fault, trial)
    record.disk, evidence = full_disk(place, num_written)
    tell("disk", evidence)
    for line in record.missed:
        tell("not applied, not counted", line)
    return record


def table(records: dict[Tool, Record]) -> str:
    """Give the scoreboard as Markdown."""

    def share(fault: str, holds: Callable[[Trial], bool]) -> list[str]:
        found = [record.trials.get(fault, []) for record in records.values()]
        return [f"{sum(map(holds, trials))} of {len(trials)}" for trials in found]

    rows = []
    for fault, name in (("random", "killed at a random moment"), ("save", "killed while it saved")):
        gone_on = share(fault, lambda trial: trial.ending.has_gone_on)
        exact = share(fault, lambda trial: trial.ending.has_gone_on and trial.is_exact)
        rows += [(f"{name}: resumed without help", gone_on), ("… to exact final weights", exact)]
    for fault, name in (("flip", "one bit flipped"), ("cut", "cut in half")):
        for fate in FATES:
            cells = share(fault, lambda trial, fate=fate: trial.fate == fate)
            if fate in FATES[:3] or any(not cell.startswith("0 ") for cell in cells):
                start = f"newest checkpoint, {name}:" if fate == FATES[0] else "…"
                rows.append((f"{start} {fate}", cells))
    rows += [
        ("the disk is full", [record.disk[0] for record in records.values()]),
        ("… and once there is room again", [record.disk[1] for record in records.values()]),
    ]
    lines = [
        f"| | {' | '.join(tool.title for tool in records)} |",
        "|---" * (len(records) + 1) + "|",
    ]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows)])


def machine() -> str:
    """Name the machine, the day and what the table depends on beside the tools."""
    return (
        f"{os.cpu_count()} cores of {processor()},"
        f" {platform.system()}, Python {platform.python_version()},"
        f" torch {torch.__version__}, one thread, {datetime.datetime.now().date().isoformat()}"
    )


def write_digits(folder: Path, every: int) -> Work:
    """Write the digits for every tool: as IDX files, and as the pixels that the network sees."""
    dataset = find_dataset("mnist")
    (folder / "digits").mkdir()
    for part, name, count in (("train", "train", 512), ("test", "t10k", 100)):
        images, labels = read_part(dataset, part)
        for kind, values in (
            ("images-idx3", images[:count, 0]),
            ("labels-idx1", labels[:count]),
        ):
            content = idx_header(*values.shape) + values.astype(np.uint8).tobytes()
            (folder / "digits" / f"{name}-{kind}-ubyte").write_bytes(content)
    recipe = heptad.load_recipe("lenet5", data=str(folder / "digits"))
    source = open_sources(recipe, device=torch.device("cpu")).train
    images = source.take(torch.arange(512), None).contiguous()
    torch.save({"images": images, "labels": source.labels}, folder / "digits.pt")
    return Work(folder / "digits.pt", folder / "digits", every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--every", type=int, default=EVERY)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    missing = [tool.name for tool in TOOLS if not find_spec(tool.package)]
    if missing:
        parser.error(f"{', '.join(missing)} not there: pip install -e '.[bench]'")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="heptad-faults-") as scratch:
        folder = Path(scratch)
        work = write_digits(folder, options.every)
        records = {
            tool: put_to_the_test(
                tool,
                work,
                folder / tool.package,
                kills=options.kills,
                seed=options.seed,
                verbose=options.verbose,
            )
            for tool in TOOLS
        }
    missed = ", ".join(f"{tool.name} {len(record.missed)}" for tool, record in records.items())
    command = " ".join(["python", "benchmarks/faults.py", *sys.argv[1:]])
    text = (
        f"`{command}`, {(time.monotonic() - started_at) / 60:.0f} minutes on {machine()}.\n\n"
        f"{table(records)}\n\n"
        f"Draws that could not be applied, tried again and not counted: {missed}.\n"
    )
    print(text)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        between = r"(<!-- scoreboard -->\n).*?(<!-- end of scoreboard -->)"
        page = re.sub(between, lambda m: m[1] + text + m[2], page, flags=re.DOTALL)
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
