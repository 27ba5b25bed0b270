"""What a group of runs with several seeds saves: one command with --seeds against a command a seed.

LeNet-5's short recipe on all of MNIST, and ResNet50 under made weights on the first images of it,
whose features are kept already. Beside the whole commands, without their reports: how long a seed
takes to be made ready to train, with its sources opened anew and with those of the seed before. In
rounds; seconds of the clock and of the processor, which other work on the machine disturbs less.

    python benchmarks/seeds.py [--seeds 5] [--train 3000] [--test 1000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from digits import first_digits, write_idx
from machine import machine, versions
from safetensors.torch import save_file
from torchvision.models import resnet50

import heptad
from heptad.cycle_state import Opened

Seconds = tuple[float, float]


def timed(work: Callable[[], object]) -> Seconds:
    """Give the seconds of the clock and of the processor that some work takes, all processes'."""

    def used() -> float:
        both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(sum(resource.getrusage(who)[:2]) for who in both)

    started_at, before = time.perf_counter(), used()
    work()
    return time.perf_counter() - started_at, used() - before


def command(recipe: heptad.Recipe, out: Path, *more: str) -> None:
    path = out.with_suffix(".json")
    path.write_text(recipe.model_dump_json())
    words = ["train", str(path), "--out", str(out), "--no-report", "--json", *more]
    threads = ["--threads", str(torch.get_num_threads())]
    subprocess.run(
        [sys.executable, "-m", "heptad", *words, *threads], check=True, capture_output=True
    )


def one_command_a_seed(recipe: heptad.Recipe, folder: Path, num_seeds: int) -> None:
    for seed in range(num_seeds):
        command(recipe.changed(seed=seed), folder / f"{seed}")


def measure(recipe: heptad.Recipe, *, num_seeds: int, rounds: int) -> None:
    sources = heptad.prepare(recipe).sources
    second = recipe.changed(seed=1)
    found: dict[str, list[Seconds]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            works: dict[str, Callable[[], object]] = {
                f"{num_seeds} commands": lambda folder=folder: one_command_a_seed(
                    recipe, folder, num_seeds
                ),
                f"one with --seeds {num_seeds}": lambda folder=folder: command(
                    recipe, folder / "group", "--seeds", str(num_seeds)
                ),
                "a seed made ready, sources opened anew": lambda: heptad.prepare(second),
                "a seed made ready, sources shared": lambda: heptad.prepare(
                    second, sources=Opened(sources).take(second)
                ),
            }
            for name, work in works.items():
                found.setdefault(name, []).append(timed(work))
    for name, seconds in found.items():
        clock, processor = (statistics.median(each) for each in zip(*seconds, strict=True))
        print(f"{recipe.name:12} {name:40} {clock:7.2f} s {processor:7.2f} s of the processor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine(torch.get_num_threads()), versions(["torch"]), sep="; ")
    measure(heptad.load_recipe("lenet5-fast"), num_seeds=options.seeds, rounds=options.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_idx(folder / "digits", first_digits(options.train, options.test))
        os.environ["HEPTAD_HOME"] = str(folder / "cache")
        torch.manual_seed(0)
        save_file(resnet50().state_dict(), folder / "made.safetensors")
        recipe = heptad.load_recipe(
            "resnet50", data=str(folder / "digits"), weights=str(folder / "made.safetensors")
        )
        measure(recipe, num_seeds=options.seeds, rounds=options.rounds)


if __name__ == "__main__":
    main()
