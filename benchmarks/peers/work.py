"""What each peer of benchmarks/against_peers.py is given, and what it answers.

NumPy alone: this is shared by processes in which PyTorch, JAX or neither is loaded. A peer is run
as `python -m peers.NAME WORKLOAD FOLDER EPOCHS [VARIANT]` from benchmarks/, WORKLOAD being the
recipe's name, and prints a line of JSON as its last.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BATCH_SIZE = 64
LEARNING_RATE = 0.001
NUM_CLASSES = 10
# Epochs that trainings of the frozen network are compared over.
LENGTHS = (5, 20)


@dataclass(frozen=True)
class Part:
    """Images of one part.

    pixels: as they are stored, `uint8` [N, 28, 28]. images: as the network sees them, resized and
    normalised, float32 [N, C, S, S]. labels: int64 [N].
    """

    pixels: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_to_compile(self) -> int:
        """Images that make one batch of each size that an epoch has."""
        return min(len(self), BATCH_SIZE + len(self) % BATCH_SIZE)

    @property
    def images_channels_last(self) -> np.ndarray:
        """The images as [N, S, S, C]."""
        return np.ascontiguousarray(self.images.transpose(0, 2, 3, 1))


@dataclass(frozen=True)
class Work:
    """What is to be done. workload: also whether a test follows each epoch: if it is "resnet50"."""

    workload: str
    folder: Path
    num_epochs: int
    variant: str

    @property
    def is_frozen(self) -> bool:
        return self.workload == "resnet50"

    @property
    def made_weights(self) -> Path:
        """The weights of all but the last layer under torchvision's names, where they are given."""
        return self.folder / "made.safetensors"

    def part(self, name: str) -> Part:
        """Read "train" or "test"."""
        kinds = ("pixels", "images", "labels")
        return Part(*(np.load(self.folder / f"{name}-{kind}.npy") for kind in kinds))


def given() -> Work:
    """Read the command line."""
    workload, folder, num_epochs, *variant = sys.argv[1:]
    return Work(workload, Path(folder), int(num_epochs), "".join(variant))


def answer(*, seconds: list[float], **more: float) -> None:
    """Print what was measured: the seconds of each epoch, and what else is known.

    accuracy: share of the test images that are right in the end. num_trained: parameters trained.
    made_s, prepared_s, compile_s: seconds before the first epoch. pass_s: the trunk's pass of them.
    """
    values = {name: float(value) for name, value in more.items()}
    print(json.dumps({"seconds": seconds, **values}), flush=True)
