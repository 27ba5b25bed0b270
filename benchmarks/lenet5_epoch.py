"""An epoch of LeNet-5 on all of MNIST: the plain loop against Heptad, side by side in one run.

The plain loop is the one that the field writes: torchvision's MNIST data set, PIL transforms in a
DataLoader, batches of 64, ReLU before the pool, Adam; without loader workers and with two.
Heptad's side is `heptad.steps` on the recipe `lenet5` as shipped. Both sides take the same number
of steps of the same batch size over the same 60,000 images. The plain loop resizes every image in
every epoch; Heptad resizes once, before the first, and that time is printed beside its epochs.
Reading the files is counted on neither side.

    python benchmarks/lenet5_epoch.py [--rounds 3]

Rounds alternate between the sides; what is printed is the median of each and the ratios.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from digits import first_digits
from peers.plain_loop import Digits, epoch_of
from peers.torch_networks import LeNet5
from torch.utils.data import DataLoader

import heptad
from heptad.records import Position
from heptad.stages.data import open_sources


def plain_epoch(num_workers: int) -> Callable[[], None]:
    """Make a plain training; the function given carries out an epoch."""
    images, labels = first_digits(60_000, 0)["train"]
    digits = Digits(images, labels, "lenet5")
    loader = DataLoader(digits, batch_size=64, shuffle=True, num_workers=num_workers)
    return epoch_of(LeNet5(), loader)


def our_epoch() -> Callable[[], None]:
    """Make a training of Heptad; the function given carries out its next epoch."""
    cycle = heptad.prepare(heptad.load_recipe("lenet5"))

    def epoch() -> None:
        for step in heptad.steps(cycle, Position(cycle.at.epoch + 1)):
            step.loss  # noqa: B018 - read, as the plain loop reads it

    return epoch


def resizing_seconds() -> float:
    """Time what Heptad does to the images before its first epoch."""
    recipe = heptad.load_recipe("lenet5")
    source = open_sources(recipe, device=torch.device("cpu"), memory=0).train
    started_at = time.perf_counter()
    for few in source.images.split(1000):
        source.transform.to_size(few)
    return time.perf_counter() - started_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    sides = {
        "plain loop": plain_epoch(num_workers=0),
        "plain loop, 2 loader workers": plain_epoch(num_workers=2),
        "heptad": our_epoch(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, epoch in sides.items():
            started_at = time.perf_counter()
            epoch()
            seconds[name].append(time.perf_counter() - started_at)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads,"
        f" {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}; {rounds} rounds"
    )
    ours = statistics.median(seconds["heptad"])
    print(f"{'heptad, resizing once':30} {resizing_seconds():6.2f} s")
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{min(values):.1f} to {max(values):.1f}"
        print(f"{name:30} {median:6.2f} s ({spread})  {median / ours:5.2f} x heptad")


if __name__ == "__main__":
    main()
