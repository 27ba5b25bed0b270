"""Processes of the tools: started, killed at chosen moments, and how they ended."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peers.tools import Tool, Work

from heptad.cli import main as heptad_main

# Of a run's 6 checkpoints, kills come after one of these: with any tool the one before is whole.
NUMBERS = (2, 5)
MOST_WAIT_S = 0.05
MOST_CHANGES = 10
# A process that has imported everything already forks for each run.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("heptad.cycle", "heptad.cli.display", "heptad.plots", "torchvision.models"),
        *("lightning.pytorch", "accelerate", "torchdata.stateful_dataloader"),
    ]
)


@dataclass(frozen=True)
class Ending:
    """How a process ended. epochs: those it finished. resumed_from: the step, 0 for a new run."""

    code: int
    epochs: int
    resumed_from: int
    last_line: str

    @property
    def has_gone_on(self) -> bool:
        return self.code == 0 and self.resumed_from > 0


@dataclass(frozen=True)
class Place:
    """Where one tool runs. straight: its final weights when nothing is done to it."""

    tool: Tool
    work: Work
    run: Path
    temporary: Path
    log: Path
    straight: dict[str, torch.Tensor] = field(default_factory=dict)

    def clear(self) -> None:
        for folder in (self.run, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def start(self) -> multiprocessing.Process:
        words = self.tool.words(self.work, self.run)
        process = FORKS.Process(target=_forked, args=(words, self.log, self.temporary))
        process.start()
        return process

    def carry_out(self) -> Ending:
        process = self.start()
        process.join()
        return ending_of(process.exitcode, self.log.read_text(errors="replace"))

    def newest(self) -> tuple[int, Path]:
        return next(iter(self.tool.saved(self.work, self.run)), (0, self.run))

    def is_exact(self, run: Path | None = None) -> bool:
        path = (run or self.run) / self.tool.final
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        return state.keys() == self.straight.keys() and all(
            torch.equal(state[name], value) for name, value in self.straight.items()
        )


def _forked(words: list[str], log: Path, temporary: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    tempfile.tempdir = str(temporary)
    if words[0] == "heptad":
        sys.exit(heptad_main(words[1:]))
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def ending_of(code: int, output: str) -> Ending:
    resumed = re.search(r"Going on after step (\d+)\.", output)
    lines = [line for line in output.splitlines() if line.strip()]
    return Ending(
        code=code,
        epochs=len(re.findall(r"^epoch \d/2", output, flags=re.MULTILINE)),
        resumed_from=int(resumed[1]) if resumed else 0,
        last_line=lines[-1].strip()[:160] if lines else "",
    )


def kill_at_random(place: Place, draws: random.Random) -> tuple[str, bool]:
    """Begin a run, kill it a drawn time after a drawn checkpoint; say when, and whether it was."""
    number, wait_s = draws.randint(*NUMBERS), draws.uniform(0, MOST_WAIT_S)
    process = place.start()
    while process.is_alive() and place.newest()[0] < number * place.work.every:
        time.sleep(0.0005)
    time.sleep(wait_s)
    return f"killed {1000 * wait_s:.0f} ms after checkpoint {number}", _kill(process)


def kill_in_a_save(place: Place, draws: random.Random) -> tuple[str, bool]:
    """Begin a run, kill it at a drawn change of its files after a drawn checkpoint's name."""
    number, num_changes = draws.randint(*NUMBERS), draws.randint(1, MOST_CHANGES)
    process = place.start()
    while process.is_alive() and place.newest()[0] < number * place.work.every:
        pass
    before, left = _files(place), num_changes
    while left and process.is_alive():
        now = _files(place)
        left -= now != before
        before = now
    was_killed = _kill(process)
    draw = f"killed at change {num_changes} after checkpoint {number}'s name"
    return draw, was_killed and bool(place.tool.unfinished(place.run, place.temporary))


def _kill(process: multiprocessing.Process) -> bool:
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def _files(place: Place) -> dict[str, int]:
    found: dict[str, int] = {}
    folders = [place.run / "checkpoints", place.temporary]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    found[entry.path] = 0 if is_folder else entry.stat().st_size
                    folders += [entry.path] if is_folder else []
        except FileNotFoundError:
            continue
    return found
