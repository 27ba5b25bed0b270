"""A folder of JPEG pictures, LeNet-5, three epochs, end to end: torchvision's way, and ours.

    python benchmarks/picture_folder.py [--pictures 10000]

Made pictures of about 300 x 200 pixels in ten class folders. The plain way is `ImageFolder` with
`DataLoader(num_workers=2)`, which decodes every picture in every epoch. Ours looks at every picture
first (the scan is part of the time), keeps the decoded pixels, and trains on those; the cache is
empty at the start. Both train on the same pictures, batch size and network, and score the test part
after each epoch. Prints the seconds of each, and their ratio.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import heptad
from heptad.architectures.lenet import LeNet5
from heptad.recipe import RunOptions

EPOCHS = 3
TEST_SHARE = 6


def make_pictures(folder: Path, num_pictures: int) -> None:
    """Write pictures of stripes and noise, of a direction and colour for each of ten classes."""
    draws = np.random.default_rng(0)
    for number in range(num_pictures):
        label = number % 10
        height, width = draws.integers(180, 220), draws.integers(270, 330)
        y, x = np.mgrid[:height, :width]
        angle = np.pi * label / 10
        waves = np.sin((x * np.cos(angle) + y * np.sin(angle)) / 9 + draws.uniform(0, 6))
        color = 128 + 60 * waves[..., None] * draws.uniform(0.4, 1, 3)
        pixels = (color + draws.normal(0, 12, color.shape)).clip(0, 255).astype(np.uint8)
        # Every class in both parts: ImageFolder numbers the classes that a part has.
        part = "test" if number // 10 % TEST_SHARE == 0 else "train"
        place = folder / part / f"class {label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:05}.jpg", quality=88)


def plain(folder: Path) -> float:
    """Train as torchvision's own examples do; give the seconds."""
    started_at = perf_counter()
    transform = transforms.Compose(
        [
            transforms.Grayscale(),
            transforms.Resize((32, 32)),
            transforms.ToTensor(),
            transforms.Normalize((0.1307,), (0.3081,)),
        ]
    )
    train, test = (
        DataLoader(
            ImageFolder(folder / part, transform),
            batch_size=64,
            shuffle=part == "train",
            num_workers=2,
        )
        for part in ("train", "test")
    )
    network = LeNet5(10)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    for _ in range(EPOCHS):
        network.train()
        for images, labels in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            right = sum(int((network(x).argmax(1) == y).sum()) for x, y in test)
    seconds = perf_counter() - started_at
    print(f"plain: {seconds:.1f} s, accuracy {right / len(test.dataset):.3f}")
    return seconds


def ours(folder: Path, out: Path) -> float:
    """Scan, decode and train; give the seconds."""
    started_at = perf_counter()
    recipe = heptad.load_recipe("lenet5", data=str(folder), epochs=EPOCHS)
    run = heptad.train(recipe, RunOptions(out=str(out)))
    seconds = perf_counter() - started_at
    print(f"ours: {seconds:.1f} s, accuracy {run.scores.accuracy:.3f}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=10_000)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["HEPTAD_HOME"] = f"{place}/cache"
        folder = Path(place) / "pictures"
        make_pictures(folder, wanted.pictures)
        ours_s = ours(folder, Path(place) / "run")
        plain_s = plain(folder)
        again_s = ours(folder, Path(place) / "again")
    print(f"{wanted.pictures:,} pictures, {EPOCHS} epochs, torch {torch.__version__}:")
    print(f"ours is {plain_s / ours_s:.1f} times faster, a second time {plain_s / again_s:.1f}")


if __name__ == "__main__":
    main()
