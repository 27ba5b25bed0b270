"""The proof that a killed run loses nothing, for everyone to repeat: Heptad kills itself.

A short run is made once undisturbed, and once more by processes that are killed at random moments,
each going on where the one before was cut off. Both must leave the same bits.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heptad.checkpoints.store import list_checkpoints
from heptad.errors import HeptadError
from heptad.files import write_json
from heptad.randomness import derived_seed
from heptad.recipe import Recipe
from heptad.run_folder import CHECKPOINTS
from heptad.stages.saving import read_metrics

# After a new checkpoint appears, a kill comes within this time.
MOST_WAIT_S = 0.1
POLL_S = 0.001


@dataclass(frozen=True)
class Kill:
    """One process that was killed, counted from 1, after its checkpoint of that name appeared."""

    number: int
    checkpoint: str


@dataclass(frozen=True)
class Proof:
    """What came of it. resumed_from: the steps. differing: files that differ, by their names."""

    num_kills: int
    resumed_from: list[int]
    differing: list[str]

    @property
    def holds(self) -> bool:
        """Whether some process was killed, all resumes began in the middle, and nothing differs."""
        in_the_middle = bool(self.resumed_from) and min(self.resumed_from) > 0
        return self.num_kills > 0 and in_the_middle and not self.differing

    def as_document(self) -> dict[str, Any]:
        """Give the proof as plain values, for JSON."""
        return {**asdict(self), "holds": self.holds}


def prove_resume(recipe: Recipe, *, num_kills: int) -> Generator[Kill | Proof, None, None]:
    """Make the run of `recipe` twice, once killed up to `num_kills` times; last, the proof.

    The moments are drawn from the recipe's seed. Raises HeptadError if training it fails.
    """
    draws = random.Random(derived_seed(recipe.seed, "kill"))  # noqa: S311 - no secret
    with tempfile.TemporaryDirectory(prefix="heptad-proof-") as place:
        folder = Path(place)
        write_json(folder / "recipe.json", recipe.model_dump())
        _carry_out(folder, "straight")
        done = 0
        for number in range(1, num_kills + 1):
            checkpoint = _kill_one(folder, draws)
            if not checkpoint:
                break
            done = number
            yield Kill(number, checkpoint)
        _carry_out(folder, "killed")
        yield _compare(folder, done)


def _start(folder: Path, name: str, *, out: int) -> subprocess.Popen[str]:
    words = [
        "train",
        str(folder / "recipe.json"),
        "--out",
        str(folder / name),
        "--resume",
        "--json",
        "--no-report",
    ]
    return subprocess.Popen(  # noqa: S603 - our own words
        [sys.executable, "-m", "heptad", *words, "--checkpoint-every", "1"],
        stdout=out,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _carry_out(folder: Path, name: str) -> None:
    process = _start(folder, name, out=subprocess.PIPE)
    try:
        out, _ = process.communicate()
    finally:
        process.kill()
    if process.returncode:
        error = json.loads(out or "{}").get("error", {})
        message = error.get("message", f"a training ended with code {process.returncode}.")
        failed = HeptadError(message, hint=error.get("hint", ""))
        failed.exit_code = process.returncode
        raise failed


def _kill_one(folder: Path, draws: random.Random) -> str:
    """Kill a process within a moment of its first new checkpoint; name that, "" if it ended."""
    place = folder / "killed" / CHECKPOINTS
    before = set(list_checkpoints(place))
    process = _start(folder, "killed", out=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            new = [path for path in list_checkpoints(place) if path not in before]
            if new:
                time.sleep(draws.uniform(0, MOST_WAIT_S))
                process.kill()
                return new[0].name if process.wait() == -signal.SIGKILL else ""
            time.sleep(POLL_S)
        return ""
    finally:
        process.kill()
        process.wait()


def _compare(folder: Path, num_kills: int) -> Proof:
    straight, killed = (read_metrics(folder / name) for name in ("straight", "killed"))
    files = sorted({*straight["files"], *killed["files"]})
    differing = [name for name in files if straight["files"].get(name) != killed["files"].get(name)]
    if straight["digest"] != killed["digest"]:
        differing.append("metrics.json")
    return Proof(num_kills, killed["execution"]["resumed_from"], differing)
