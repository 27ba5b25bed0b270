"""Runs that are killed: processes of their own, started quickly, and what came of them compared."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from heptad.cli import main

# Two epochs of 16 steps with a checkpoint after each step: many places to be killed at.
SETTINGS = ["--epochs", "2", "--batch-size", "32", "--checkpoint-every", "1", "--threads", "1"]

# A process that has imported PyTorch already forks for each run: it starts in a tenth of a second,
# is killed like any other, and shares nothing with the next one.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["heptad.cycle", "heptad.cli.display", "torchvision.models"])


def train_words(digits: Path, out: Path | str, *more: str) -> list[str]:
    """Give the words of `heptad` that train LeNet-5 on the digits, or go on with that."""
    return ["train", "lenet5", "--data", str(digits), *SETTINGS, "--out", str(out), *more]


def command(*words: str) -> list[str]:
    """Give the command that carries out these words in a fresh Python."""
    return [sys.executable, "-m", "heptad", *words]


def carry_out(*words: str, **options) -> subprocess.CompletedProcess[str]:
    """Carry out a command in a fresh Python, to its end, whatever its code."""
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, **options)


def _forked(words: list[str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os._exit(main(words))


def fork(words: list[str], log: Path) -> multiprocessing.Process:
    """Carry out a command in a process that starts quickly; what it prints goes into `log`."""
    process = FORKS.Process(target=_forked, args=(words, str(log)))
    process.start()
    return process


def checkpoints(run: Path) -> set[str]:
    """Name the checkpoints of a run."""
    return {path.name for path in (run / "checkpoints").glob("step-*")}


def wait_for_new_checkpoint(run: Path, process: multiprocessing.Process) -> bool:
    """Wait until a run has a checkpoint that it did not have; False if the process ends first."""
    before = checkpoints(run)
    while process.is_alive():
        if checkpoints(run) - before:
            return True
        time.sleep(0.001)
    return False


def killed_again_and_again(
    words: list[str], run: Path, log: Path, draws: random.Random, *, most_kills: int
) -> Iterator[int]:
    """Kill a run at random times after new checkpoints, going on each time, until it finishes.

    Yields the exit code of each process: -9 for a kill that came in time, last 0.
    """
    for number in range(most_kills + 1):
        process = fork(words, log)
        if number < most_kills and wait_for_new_checkpoint(run, process):
            time.sleep(draws.uniform(0, 0.1))
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        yield process.exitcode
        if process.exitcode == 0:
            return
        assert process.exitcode == -signal.SIGKILL, log.read_text()


def metrics_of(run: Path) -> dict:
    """Read a finished run's metrics.json."""
    return json.loads((run / "metrics.json").read_text())


def result_of(run: Path) -> dict[str, object]:
    """Give all of a finished run that equal runs share, to the bit."""
    return {
        "digest": metrics_of(run)["digest"],
        "weights": (run / "lenet5_digits.pth").read_bytes(),
        "log": (run / "metrics.jsonl").read_bytes(),
        "predictions": (run / "predictions.npz").read_bytes(),
        "plot": (run / "lenet5_digits.png").read_bytes(),
    }


def leftovers(run: Path) -> list[Path]:
    """List what is half-written in a run folder."""
    return [path for path in run.rglob(".*") if path.name != ".lock"]
