"""A frozen ResNet50: the plain loop against Heptad's one pass, side by side in one run.

Both sides train a new last layer under the same made weights, on the same training images of MNIST
at 64 pixels in batches of 64, and score the same test images after every epoch. The plain loop
sends every image through the whole network in every epoch, with PIL transforms in a DataLoader;
BatchNorm is held in evaluation mode on both sides. Heptad's side is timed from its first pass, with
an empty cache, to its last evaluation; then a second run on the features that it kept: from its
first batch to its last evaluation, and as a whole command in a process of its own, the import
of PyTorch and torchvision included.

    python benchmarks/frozen_backbone.py [--train 1500] [--test 500] [--check-epochs 2]

The plain loop's time for many epochs is taken as epochs x the median of the epochs timed here
(--check-epochs), which are as alike as the machine allows; their spread is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from commands import timed_command
from digits import first_digits, write_idx
from peers.plain_loop import Digits, epoch_of
from peers.torch_networks import accuracy, frozen_resnet50
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from torchvision.models import resnet50

import heptad

EPOCHS = (5, 20)


def plain_epochs(weights: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]], count: int):
    """Train the plain way; give the seconds of each epoch, its evaluation included."""
    network = frozen_resnet50(weights)
    train, test = (
        DataLoader(Digits(*parts[part], "resnet50"), batch_size=64, shuffle=part == "train")
        for part in ("train", "test")
    )
    epoch = epoch_of(network, train)
    seconds = []
    for _ in range(count):
        started_at = time.perf_counter()
        network.eval()
        epoch()
        accuracy(network, test)
        seconds.append(time.perf_counter() - started_at)
    return seconds


def our_run(recipe: heptad.Recipe) -> tuple[float, float, int]:
    """Train Heptad's way; give the seconds with the pass, those after it, and images computed."""
    prepared_at = time.perf_counter()
    cycle = heptad.prepare(recipe)
    started_at = time.perf_counter()
    for _ in heptad.epochs(cycle):
        pass
    ended_at = time.perf_counter()
    return ended_at - prepared_at, ended_at - started_at, cycle.num_computed


def whole_command(recipe: heptad.Recipe, folder: Path) -> float:
    """Time `heptad train` in a process of its own, features kept."""
    path = folder / "recipe.json"
    path.write_text(recipe.model_dump_json())
    out = folder / f"{recipe.epochs}-epochs"
    seconds, document = timed_command(["train", str(path), "--out", str(out)])
    assert document["execution"]["computed_features"] == 0
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--check-epochs", type=int, default=2)
    options = parser.parse_args()
    parts = first_digits(options.train, options.test)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["HEPTAD_HOME"] = str(folder / "cache")
        write_idx(folder / "digits", parts)
        torch.manual_seed(0)
        save_file(resnet50().state_dict(), folder / "made.safetensors")
        recipe = heptad.load_recipe(
            "resnet50", data=str(folder / "digits"), weights=str(folder / "made.safetensors")
        )
        plain = plain_epochs(folder / "made.safetensors", parts, options.check_epochs)
        epoch_s = statistics.median(plain)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads;", end=" ")
        print(f"{options.train} training and {options.test} test images")
        print(f"an epoch of the plain loop: {epoch_s:.1f} s ({min(plain):.1f} to {max(plain):.1f})")
        first_s, _, num_computed = our_run(recipe.changed(epochs=EPOCHS[0]))
        assert num_computed > 0
        _, kept_s, num_computed = our_run(recipe.changed(epochs=EPOCHS[0]))
        assert num_computed == 0
        commands_s = [whole_command(recipe.changed(epochs=epochs), folder) for epochs in EPOCHS]
        os.environ["HEPTAD_HOME"] = str(folder / "empty")
        long_s, _, num_computed = our_run(recipe.changed(epochs=EPOCHS[1]))
        assert num_computed > 0
        rows = [
            ("5 epochs, from first pass to last evaluation", EPOCHS[0], first_s),
            ("20 epochs, the same, from an empty cache", EPOCHS[1], long_s),
            ("a second run, first batch to last evaluation", EPOCHS[0], kept_s),
            *(
                (f"a second run, the whole command, {epochs} epochs", epochs, seconds)
                for epochs, seconds in zip(EPOCHS, commands_s, strict=True)
            ),
        ]
        for name, epochs, seconds in rows:
            plain_s = epochs * epoch_s
            print(f"{name:46} {plain_s:7.1f} s {seconds:8.2f} s {plain_s / seconds:7.1f} x")


if __name__ == "__main__":
    main()
