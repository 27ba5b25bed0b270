"""The digits that the benchmarks train on, as IDX files and as the arrays that a network sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import heptad
from heptad.datasets.dataset import find_dataset, read_part
from heptad.datasets.idx import idx_header
from heptad.image_source import ImageSource
from heptad.stages.data import open_sources

# What MNIST's own files call the parts.
FILE_NAMES = {"train": "train", "test": "t10k"}


def first_digits(num_train: int, num_test: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Give the first images [N, H, W], `uint8`, and labels [N] of each part of MNIST."""
    dataset = find_dataset("mnist")
    parts = {}
    for part, count in (("train", num_train), ("test", num_test)):
        images, labels = read_part(dataset, part)
        parts[part] = (images[:count, 0], labels[:count])
    return parts


def write_idx(folder: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write the parts as IDX files into a new folder."""
    folder.mkdir()
    for part, (images, labels) in parts.items():
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_header(*values.shape) + values.astype(np.uint8).tobytes()
            (folder / f"{FILE_NAMES[part]}-{kind}-ubyte").write_bytes(content)


def write_arrays(folder: Path, recipe: heptad.Recipe) -> None:
    """Write what `peers/work.py` reads: images as they are stored and as the recipe's network sees.

    recipe: its `data` is a folder of IDX files.
    """
    sources = open_sources(recipe, device=torch.device("cpu"), memory=0)
    for part in ("train", "test"):
        source = getattr(sources, part)
        assert isinstance(source, ImageSource)
        seen = source.take(torch.arange(len(source.labels)), None).contiguous()
        np.save(folder / f"{part}-pixels.npy", source.images[:, 0].numpy())
        np.save(folder / f"{part}-images.npy", seen.numpy())
        np.save(folder / f"{part}-labels.npy", source.labels.numpy())
