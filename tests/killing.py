"""Runs that are killed: processes of their own, started quickly, and what came of them compared."""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from heptad.cli import main
from heptad.cli.stopping import SIGNALS

# Two epochs of 16 steps with a checkpoint after each step: many places to be killed at.
# The report comes after all else, and has tests of its own.
SETTINGS = ["--epochs", "2", "--batch-size", "32", "--checkpoint-every", "1", "--threads", "1"]
SETTINGS += ["--no-report"]

# A process that has imported PyTorch already forks for each run: it starts in a tenth of a second,
# is killed like any other, and shares nothing with the next one.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["heptad.cycle", "heptad.cli.display", "torchvision.models"])


def train_words(digits: Path, out: Path | str, *more: str) -> list[str]:
    """Give the words of `heptad` that train LeNet-5 on the digits, or go on with that."""
    return ["train", "lenet5", "--data", str(digits), *SETTINGS, "--out", str(out), *more]


def small_words(digits: Path, out: Path | str, *more: str) -> list[str]:
    """Give the words of a run of two epochs of two steps only, a checkpoint after each step."""
    return train_words(digits, out, "--limit", "64", *more)


def command(*words: str) -> list[str]:
    """Give the command that carries out these words in a fresh Python."""
    return [sys.executable, "-m", "heptad", *words]


def carry_out(*words: str, **options) -> subprocess.CompletedProcess[str]:
    """Carry out a command in a fresh Python, to its end, whatever its code."""
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, **options)


def write_to(descriptor: int, *streams: int) -> None:
    """Lead this process's standard output, 1, and error, 2, to an open file."""
    for stream in streams:
        os.dup2(descriptor, stream)
    # As Python opens them when it starts: how depends on what they lead to.
    for stream, name in ((1, "stdout"), (2, "stderr")):
        is_by_lines = stream == 2 or os.isatty(stream)
        buffering = 1 if is_by_lines else -1
        setattr(sys, name, open(stream, "w", buffering, closefd=False))  # noqa: SIM115


def _forked(
    words: list[str],
    log: str,
    environment: dict[str, str],
    preparations: tuple[Callable[[], None], ...],
) -> None:
    # The server that forks has kept the environment of its own start.
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    write_to(descriptor, 1, 2)
    for prepare in preparations:
        prepare()
    os._exit(main(words))


def fork(
    words: list[str],
    log: Path,
    *preparations: Callable[[], None],
    environment: dict[str, str] | None = None,
) -> multiprocessing.Process:
    """Carry out a command in a process that starts quickly; what it prints goes into `log`.

    preparations: what the process does first, such as a `functools.partial` of `at_file_call`.
    environment: what is added to this process's own.
    """
    variables = {**os.environ, **(environment or {})}
    process = FORKS.Process(target=_forked, args=(words, str(log), variables, preparations))
    process.start()
    return process


def rank_variables(world_size: int) -> list[dict[str, str]]:
    """Give what torchrun tells each of so many processes of this machine, with a port of theirs."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "these tests",
        }
        for rank in range(world_size)
    ]


def fork_ranks(
    words: list[str],
    logs: Path,
    *,
    world_size: int = 2,
    on: dict[int, tuple[Callable[[], None], ...]] | None = None,
    more: dict[int, list[str]] | None = None,
    **environment: str,
) -> list[multiprocessing.Process]:
    """Carry out a command in several ranks, as torchrun starts them; rank 1 prints into logs/1.

    on: preparations of single ranks. more: words that single ranks get alone.
    """
    logs.mkdir(exist_ok=True)
    return [
        fork(
            [*words, *(more or {}).get(rank, [])],
            logs / str(rank),
            *(on or {}).get(rank, ()),
            environment=variables | environment,
        )
        for rank, variables in enumerate(rank_variables(world_size))
    ]


def codes_of(processes: list[multiprocessing.Process]) -> list[int]:
    """Wait for processes to end, and give their exit codes."""
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def send(number: int) -> None:
    """Have this process send itself a signal."""
    os.kill(os.getpid(), number)


def set_variable(name: str, value: str) -> None:
    """Give this process another variable of the environment."""
    os.environ[name] = value


def hang() -> None:
    """Do nothing for ever; signals that are only noted change nothing in that."""
    while True:
        time.sleep(60)


def meet(here: Path) -> None:
    """Make a file, and wait until another process removes it."""
    here.touch()
    while here.exists():
        time.sleep(0.001)


def wait_noted(here: Path) -> None:
    """Make a file, and wait until a signal has come that is only noted."""
    here.touch()
    while SIGNALS.pending is None:
        time.sleep(0.001)


def fail(number: int) -> None:
    """Fail as a call of the system does, with this error."""
    raise OSError(number, os.strerror(number))


def at_forward(number: int, act: Callable[[], None], *, training: bool = True) -> None:
    """Have this process `act` in the midst of its n-th pass (from 1) through a whole network.

    training: whether passes of the training are counted, or those without gradients: of an
    evaluation, or of a frozen trunk.
    """
    import torch

    count = itertools.count(1)

    def before(module, inputs) -> None:
        # The images themselves go into the first layer alone.
        is_first = isinstance(module, torch.nn.Conv2d) and module.in_channels in (1, 3)
        if (
            is_first
            and len(inputs[0])
            and torch.is_grad_enabled() == training
            and next(count) == number
        ):
            act()

    torch.nn.modules.module.register_module_forward_pre_hook(before)


# The calls of `os` that change what is on the disk.
FILE_CALLS = ("open", "fsync", "truncate", "chmod", "mkdir", "rename", "replace", "unlink", "rmdir")


def at_file_call(moment: int | str, act: Callable[[], None], folder: Path, noted: Path) -> None:
    """Have this process `act` before a call that changes what is in `folder`; a write is half done.

    moment: the call's number, from 1, or a pattern: each call whose line matches. Each call is
    noted in the file `noted`, a line each: what is done, and to which path in the folder.
    """
    count, notes = itertools.count(1), os.open(noted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    real_open = io.open

    def note(name: str, path: Path) -> None:
        if path.is_relative_to(folder):
            line = f"{name} {path.relative_to(folder)}"
            os.write(notes, f"{line}\n".encode())
            number = next(count)
            if number == moment if isinstance(moment, int) else re.fullmatch(moment, line):
                act()

    def path_of(place: int | str | Path, dir_fd: int | None = None) -> Path:
        if isinstance(place, int):
            return Path(f"/proc/self/fd/{place}").readlink()
        return (Path.cwd() if dir_fd is None else path_of(dir_fd)) / place

    def watched(name: str) -> Callable:
        call = getattr(os, name)

        def watching(place, *args, **options):
            if name != "open" or args[0] & os.O_CREAT:
                note(name, path_of(place, options.get("dir_fd")))
            return call(place, *args, **options)

        return watching

    def opening(place, mode="r", *args, **options):
        if "r" in mode and "+" not in mode:
            return real_open(place, mode, *args, **options)
        if not options.get("opener"):
            note("open", path_of(place))
        file = real_open(place, mode, *args, **options)
        write = file.write

        def halving(content) -> int:
            half = len(content) // 2
            write(content[:half])
            file.flush()
            note("write", path_of(file.fileno()))
            write(content[half:])
            return len(content)

        file.write = halving
        return file

    for name in FILE_CALLS:
        setattr(os, name, watched(name))
    io.open = opening


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
    metrics = metrics_of(run)
    files = {name: (run / name).read_bytes() for name in metrics["files"]}
    return {"digest": metrics["digest"], **files}


def leftovers(run: Path) -> list[Path]:
    """List what is half-written in a run folder."""
    return [path for path in run.rglob(".*") if path.name != ".heptad-lock"]
