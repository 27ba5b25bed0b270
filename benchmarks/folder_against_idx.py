"""MNIST as PNG files in class folders against the same images in the same order as IDX files.

    python benchmarks/folder_against_idx.py [--epochs 3]

Trains LeNet-5 on both, as shipped but for the epochs. Prints the median seconds of their epochs and
the ratio, and whether the weights are equal to the bit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import heptad
from heptad.datasets.dataset import find_dataset, read_part
from heptad.datasets.idx import idx_header
from heptad.recipe import RunOptions

NAMES = {"train": "train", "test": "t10k"}


def write_both(place: Path) -> None:
    """Write all of MNIST, class by class, as pictures and as IDX files."""
    (place / "idx").mkdir()
    for part, name in NAMES.items():
        images, labels = read_part(find_dataset("mnist"), part)
        order = np.argsort(labels, kind="stable")
        images, labels = images[order, 0], labels[order]
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = place / "mnist" / part / str(label) / f"{number:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_header(*values.shape) + values.astype(np.uint8).tobytes()
            (place / "idx" / f"{name}-{kind}-ubyte").write_bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_both(place)
        medians, weights = [], []
        for data in ("idx", "mnist"):
            recipe = heptad.load_recipe("lenet5", data=str(place / data), epochs=wanted.epochs)
            run = heptad.train(recipe, RunOptions(out=str(place / f"run-{data}")))
            medians.append(statistics.median(epoch.seconds for epoch in run.epochs))
            weights.append((run.folder / f"lenet5_{data}.pth").read_bytes())
            print(f"{data}: {medians[-1]:.2f} s an epoch, accuracy {run.scores.accuracy:.4f}")
    print(f"the folder's epochs take {medians[1] / medians[0]:.2f} times those of the IDX files")
    print(f"weights equal to the bit: {weights[0] == weights[1]}")


if __name__ == "__main__":
    main()
