"""A search of thirty trials on kept features against one epoch of the plain loop, side by side.

Both train a new last layer of a frozen ResNet50 under the same made weights, on the same images of
MNIST at 64 pixels. The plain loop sends every image through the whole network once, in batches of
64, and scores the test images after it. Heptad's side is `heptad tune` with five epochs a trial,
over learning rate, batch size, optimizer and schedule, its features kept from a run before: within
one process, from its first check to its last file, and as a whole command.

    python benchmarks/tune_against_epoch.py [--train 1500] [--test 500] [--trials 30] [--rounds 3]

The two take turns; a ratio is of one round. --profile prints what a search spends its time on.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import tempfile
from pathlib import Path

import torch
from commands import timed_command
from digits import first_digits, write_idx
from frozen_backbone import plain_epochs
from ratios import ratios, with_spread
from safetensors.torch import save_file
from torchvision.models import resnet50

import heptad

RANGES = {
    "learning_rate": "1e-5..1e-1",
    "batch_size": "16..256",
    "optimizer": "adam,adamw,sgd",
    "schedule": "constant,cosine,one-cycle,step",
}


def our_search(recipe: heptad.Recipe, folder: Path, num_trials: int) -> heptad.Tuned:
    """Search within this process."""
    options = heptad.RunOptions(out=str(folder))
    *_, tuned = heptad.tune(recipe, RANGES, num_trials=num_trials, options=options)
    assert isinstance(tuned, heptad.Tuned)
    return tuned


def whole_command(recipe: heptad.Recipe, folder: Path, num_trials: int) -> float:
    """Time `heptad tune` in a process of its own, features kept."""
    folder.mkdir()
    path = folder / "base.json"
    path.write_text(recipe.model_dump_json())
    flags = [
        word for name, text in RANGES.items() for word in (f"--{name.replace('_', '-')}", text)
    ]
    words = ["tune", str(path), "--trials", str(num_trials), *flags, "--out", str(folder / "out")]
    seconds, document = timed_command(words)
    assert len(document["trials"]) == num_trials
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    parts = first_digits(options.train, options.test)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["HEPTAD_HOME"] = str(folder / "cache")
        write_idx(folder / "digits", parts)
        torch.manual_seed(0)
        weights = folder / "made.safetensors"
        save_file(resnet50().state_dict(), weights)
        recipe = heptad.load_recipe("resnet50", data=str(folder / "digits"), weights=str(weights))
        # The features, and all that Python imports when it first searches.
        heptad.prepare(recipe)
        our_search(recipe, folder / "first", 1)
        if options.profile:
            profile = cProfile.Profile()
            profile.runcall(our_search, recipe, folder / "profiled", options.trials)
            pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
            return
        plain, searches, trials, commands = [], [], [], []
        for number in range(options.rounds):
            plain += plain_epochs(weights, parts, 1)
            tuned = our_search(recipe, folder / f"search-{number}", options.trials)
            searches.append(tuned.seconds)
            trials.append(tuned.trial_seconds)
            commands.append(whole_command(recipe, folder / f"command-{number}", options.trials))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads;", end=" ")
    print(f"{options.train} training images, {options.test} test images of the plain loop's epoch")
    print(f"an epoch of the plain loop: {with_spread(plain, 1, ' s')}")
    print(f"validation accuracy of the best trial: {100 * tuned.best.figures.accuracy:.1f} %")
    for name, seconds in (
        (f"{options.trials} trials, from first check to last file", searches),
        ("their training and validation alone", trials),
        ("the whole command", commands),
    ):
        ratio = statistics.median(ratios(plain, seconds))
        print(f"{name:46} {with_spread(seconds, 2, ' s'):28} the epoch takes {ratio:5.2f} x that")


if __name__ == "__main__":
    main()
