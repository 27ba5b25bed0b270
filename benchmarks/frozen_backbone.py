"""A frozen ResNet50: the plain loop against Heptad's one pass, side by side in one run.

Both sides train a new last layer under the same made weights, on the same training images of MNIST
at 64 pixels in batches of 64, and score the same test images after every epoch. The plain loop
sends every image through the whole network in every epoch, with PIL transforms in a DataLoader;
BatchNorm is held in evaluation mode on both sides. Heptad's side is timed from its first pass, with
an empty cache, to its last evaluation; then a second run on the features that it kept: from its
first batch to its last evaluation, and as a whole command in a process of its own.

    python benchmarks/frozen_backbone.py [--train 1500] [--test 500] [--check-epochs 2]

The plain loop's time for many epochs is taken as epochs x the median of the epochs timed here
(--check-epochs), which are as alike as the machine allows; their spread is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import resnet50

import heptad
from heptad.datasets.dataset import find_dataset, read_part
from heptad.datasets.idx import idx_header

EPOCHS = (5, 20)


class Plain(Dataset):
    """Images one by one through PIL, as torchvision's data sets give them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.Resize((64, 64)),
                transforms.Grayscale(3),
                transforms.ToTensor(),
                transforms.Normalize((0.5,), (0.5,)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def plain_epochs(weights: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]], count: int):
    """Train the plain way; give the seconds of each epoch, its evaluation included."""
    model = resnet50()
    model.load_state_dict(torch.load(weights, weights_only=True))
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.fc = nn.Linear(2048, 10)
    optimizer = torch.optim.Adam(model.fc.parameters(), lr=0.001)
    criterion = nn.CrossEntropyLoss()
    train, test = (
        DataLoader(Plain(*parts[part]), batch_size=64, shuffle=part == "train")
        for part in ("train", "test")
    )
    seconds = []
    for _ in range(count):
        started_at = time.perf_counter()
        model.eval()
        for images, labels in train:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        correct = 0
        with torch.no_grad():
            for images, labels in test:
                correct += (model(images).argmax(1) == labels).sum().item()
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
    started_at = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "heptad",
            "train",
            str(path),
            "--json",
            "--out",
            str(folder / "run"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - started_at
    assert json.loads(done.stdout)["execution"]["computed_features"] == 0
    return seconds


def write_idx(folder: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    folder.mkdir()
    for part, (images, labels) in parts.items():
        name = {"train": "train", "test": "t10k"}[part]
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_header(*values.shape) + values.astype(np.uint8).tobytes()
            (folder / f"{name}-{kind}-ubyte").write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--check-epochs", type=int, default=2)
    options = parser.parse_args()
    dataset = find_dataset("mnist")
    parts = {}
    for part, count in (("train", options.train), ("test", options.test)):
        images, labels = read_part(dataset, part)
        parts[part] = (images[:count, 0], labels[:count])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["HEPTAD_HOME"] = str(folder / "cache")
        write_idx(folder / "digits", parts)
        torch.manual_seed(0)
        torch.save(resnet50().state_dict(), folder / "made.pth")
        recipe = heptad.load_recipe(
            "resnet50", data=str(folder / "digits"), weights=str(folder / "made.pth")
        )
        plain = plain_epochs(folder / "made.pth", parts, options.check_epochs)
        epoch_s = statistics.median(plain)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads;", end=" ")
        print(f"{options.train} training and {options.test} test images")
        print(f"an epoch of the plain loop: {epoch_s:.1f} s ({min(plain):.1f} to {max(plain):.1f})")
        first_s, _, num_computed = our_run(recipe.changed(epochs=EPOCHS[0]))
        assert num_computed > 0
        _, kept_s, num_computed = our_run(recipe.changed(epochs=EPOCHS[0]))
        assert num_computed == 0
        command_s = whole_command(recipe.changed(epochs=EPOCHS[0]), folder)
        os.environ["HEPTAD_HOME"] = str(folder / "empty")
        long_s, _, num_computed = our_run(recipe.changed(epochs=EPOCHS[1]))
        assert num_computed > 0
        rows = [
            ("5 epochs, from first pass to last evaluation", EPOCHS[0], first_s),
            ("20 epochs, the same, from an empty cache", EPOCHS[1], long_s),
            ("a second run, first batch to last evaluation", EPOCHS[0], kept_s),
            ("a second run, the whole command", EPOCHS[0], command_s),
        ]
        for name, epochs, seconds in rows:
            plain_s = epochs * epoch_s
            print(f"{name:46} {plain_s:7.1f} s {seconds:8.2f} s {plain_s / seconds:7.1f} x")


if __name__ == "__main__":
    main()
