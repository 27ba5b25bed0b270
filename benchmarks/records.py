"""The records of the shipped recipes, measured again, for docs/records.md.

    python benchmarks/records.py [RECIPE ...] [--seeds 5] [--write]

Each recipe is trained as shipped with the seeds 0 to 4; what counts is the accuracy after the last
epoch, on all 10,000 test images. Seconds are from the first batch to the last evaluation. For
`lenet5-fast` the plain loop's way to 99 % is measured beside it: the epochs that `lenet5` - the
same network, batches, pixels and Adam - needs to its first 99 % for each seed, times the seconds of
an epoch of the plain loop with its evaluation, timed in turns with the runs of `lenet5-fast`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from digits import first_digits
from machine import machine, versions
from peers.plain_loop import Digits, epoch_of
from peers.torch_networks import LeNet5, accuracy
from ratios import put_between, with_spread
from torch.utils.data import DataLoader

import heptad
from heptad.stages.saving import read_metrics

PAGE = Path(__file__).parents[1] / "docs" / "records.md"
RECORDS = ("lenet5", "lenet5-fast", "lenet5-best", "lenet5-1998")
RACER, WANTED = "lenet5-fast", 0.99
MOST_EPOCHS = 60


def seconds_of(folder: Path) -> float:
    """From the first batch to the last evaluation."""
    return sum(epoch["seconds"] for epoch in read_metrics(folder)["epochs"])


def record(name: str, num_seeds: int) -> str:
    """Train one recipe with several seeds and say what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        options = heptad.RunOptions(out=folder)
        group = heptad.train_seeds(heptad.load_recipe(name), options, num_seeds=num_seeds)
        seconds = [seconds_of(run) for run in group.folders]
    rows = [
        f"seed {run['seed']}   {100 * run['test_accuracy']:.2f} %   {spent:6.1f} s"
        for run, spent in zip(group.runs, seconds, strict=True)
    ]
    found = group.accuracy
    low, high = (f"{100 * bound:.2f}" for bound in found.interval)
    wilson = group.wilson_interval
    assert wilson is not None
    return "\n".join(
        [
            *rows,
            f"mean     {100 * found.mean:.2f} %, from {100 * found.least:.2f} to"
            f" {100 * found.most:.2f}",
            f"95 % interval over seeds (Student)        {low} to {high}",
            f"95 % interval over test images (Wilson)   {100 * wilson[0]:.2f} to"
            f" {100 * wilson[1]:.2f}",
            f"median   {statistics.median(seconds):.1f} s",
        ]
    )


def epochs_to(share: float, seed: int) -> int:
    """Count the epochs of `lenet5` to its first test accuracy of at least `share`."""
    recipe = heptad.load_recipe("lenet5", seed=seed, epochs=MOST_EPOCHS)
    for report in heptad.epochs(heptad.prepare(recipe)):
        if report.scores.accuracy >= share:
            return report.epoch
    raise SystemExit(f"seed {seed} did not come to {share:.0%} in {MOST_EPOCHS} epochs.")


def race(num_seeds: int) -> str:
    """Time `lenet5-fast`, and an epoch of the plain loop with its evaluation, in turns."""
    parts = first_digits(60_000, 10_000)
    loaders = {
        part: DataLoader(Digits(*parts[part], "lenet5"), batch_size=64, shuffle=part == "train")
        for part in ("train", "test")
    }
    torch.manual_seed(0)
    network = LeNet5()
    epoch = epoch_of(network, loaders["train"])
    ours, accuracies, plain = [], [], []
    for seed in range(num_seeds):
        cycle = heptad.prepare(heptad.load_recipe(RACER, seed=seed))
        *_, last = reports = list(heptad.epochs(cycle))
        ours.append(sum(report.seconds for report in reports))
        accuracies.append(last.scores.accuracy)
        started_at = perf_counter()
        network.train()
        epoch()
        accuracy(network, loaders["test"])
        plain.append(perf_counter() - started_at)
    needed = [epochs_to(WANTED, seed) for seed in range(num_seeds)]
    theirs = [num_epochs * statistics.median(plain) for num_epochs in needed]
    ratio = statistics.median(theirs) / statistics.median(ours)
    reached = sum(share >= WANTED for share in accuracies)
    return "\n".join(
        [
            f"{RACER}, to its end         {with_spread(ours, 1, ' s')};"
            f" {reached} of {num_seeds} seeds at {WANTED:.0%} or above",
            f"plain loop, an epoch         {with_spread(plain, 1, ' s')}",
            f"plain loop, epochs to {WANTED:.0%}    {with_spread(needed, 0)}",
            f"plain loop, to {WANTED:.0%}           {with_spread(theirs, 1, ' s')}",
            f"ratio of the medians         {ratio:.1f}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", default=list(RECORDS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="into docs/records.md")
    options = parser.parse_args()
    where = f"{machine(torch.get_num_threads())}; {versions(['heptad', 'torch'])}"
    for name in options.recipes:
        sections = {name: record(name, options.seeds)}
        if name == RACER:
            sections["race"] = race(options.seeds)
        for marker, text in sections.items():
            print(f"{marker}\n{text}\n", flush=True)
            if options.write:
                put_between(PAGE, marker, f"```text\n{text}\n```\n\n{where}")


if __name__ == "__main__":
    main()
