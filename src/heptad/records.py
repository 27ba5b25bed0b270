"""The values that pass between the stages. They hold; they do not act.

Shapes are written as in `heptad.stages`: N images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import fsum, sqrt
from operator import mul
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from heptad.recipe import Recipe
from heptad.text import table_with_picture

# The 97.5 % point of the normal distribution.
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Batch:
    """What one step sees: of N images those n that are this rank's; a process alone has all.

    inputs: [n, C, H, W], normalised. labels: int64 [n] in 0..K-1. ids: int64 [n], the images'
    places in their data set. all_labels, all_ids: the same of all ranks, [N].
    """

    inputs: Tensor
    labels: Tensor
    ids: Tensor
    all_labels: Tensor
    all_ids: Tensor

    @property
    def num_global(self) -> int:
        """Images of the batch over all ranks, N."""
        return len(self.all_ids)


@dataclass(frozen=True, order=True)
class Position:
    """How far a training is: whole epochs done, and images of the next one seen over all ranks."""

    epoch: int = 0
    num_seen: int = 0


START = Position()


# Takes logits [N, K] and labels [N]; gives the mean over the images, in nats, or with
# reduction="sum" their sum.
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Objective:
    """The loss to minimise and the optimizer that does it.

    gradient_clip: largest norm of the gradient of all that the optimizer moves; none if None.
    class_weights: of the classes [K], by which the loss weighs images; all alike if None.
    """

    loss: Loss
    optimizer: Optimizer
    gradient_clip: float | None = None
    class_weights: Tensor | None = None

    @property
    def trained(self) -> list[Parameter]:
        """All that the optimizer moves."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]


class Source(Protocol):
    """Images, or anything that stands for them, in a fixed order."""

    @property
    def labels(self) -> Tensor:
        """The label of each image, int64 [N] in 0..K-1."""

    @property
    def ids(self) -> Tensor:
        """The place of each image in its data set, int64 [N]."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The K names that the labels stand for."""

    def take(self, indices: Tensor, epoch: int | None) -> Tensor:
        """Give the inputs [N, ...] at `indices` as in `epoch`; None: as in evaluation."""
        ...


def wilson_interval(num_correct: float, num_images: int) -> tuple[float, float]:
    """Give the 95 % interval of a fraction of counts, within 0..1.

    num_correct: a count, or the mean of several.
    Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    fraction = num_correct / num_images
    z2 = Z_95**2 / num_images
    centre = fraction + z2 / 2
    spread = sqrt(z2 * (fraction * (1 - fraction) + z2 / 4))
    return max(0.0, (centre - spread) / (1 + z2)), min(1.0, (centre + spread) / (1 + z2))


@dataclass(frozen=True)
class Figures:
    """What an evaluation comes down to: counts, and the mean loss in nats an image."""

    num_correct: int
    num_images: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Fraction of the images classified rightly, 0..1."""
        return self.num_correct / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy, over images."""
        return wilson_interval(self.num_correct, self.num_images)


@dataclass(frozen=True)
class Scores:
    """What evaluating gave; all figures come from the logits and labels, by counts divided once.

    logits: float [N, K]. labels: int64 [N]. ids: int64 [N], the images' places in the data set.
    loss: nats an image.
    """

    logits: Tensor
    labels: Tensor
    ids: Tensor
    loss: float

    @cached_property
    def predicted(self) -> Tensor:
        """The likeliest class of each image, int64 [N]."""
        return self.logits.argmax(1)

    @cached_property
    def confusion(self) -> Tensor:
        """How many images of each true class (row) were taken for each class: int64 [K, K]."""
        num_classes = self.logits.shape[1]
        cells = self.labels * num_classes + self.predicted
        return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)

    @property
    def num_images(self) -> int:
        """Images scored."""
        return len(self.labels)

    @cached_property
    def num_correct(self) -> int:
        """Images whose likeliest class is their label."""
        return int(self.confusion.diagonal().sum())

    @cached_property
    def negative_log_likelihood(self) -> float:
        """Cross entropy of the softmax of the logits, in nats an image, whatever the loss is."""
        return float(cross_entropy(self.logits.double(), self.labels))

    @property
    def figures(self) -> Figures:
        """The counts and the loss, without the answers."""
        return Figures(self.num_correct, self.num_images, self.loss)

    @property
    def accuracy(self) -> float:
        """Fraction of the images classified rightly, 0..1."""
        return self.figures.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy, over images."""
        return self.figures.interval


@dataclass(frozen=True)
class Prepared:
    """What stages 1 to 4 made ready; the first report of a run.

    weights: what the network started from, as in `metrics.json`. trunk: where the trunk ends, or
    why there is none, in words. num_computed: images that its pass computed now. resumed_from: the
    step that a resumed run goes on from; None for one that begins. class_counts: training images of
    each class.
    """

    recipe: Recipe
    folder: Path
    device: str
    num_train_images: int
    num_test_images: int
    num_parameters: int
    num_trained: int
    weights: dict[str, Any]
    trunk: str
    num_computed: int
    resumed_from: int | None = None
    num_validation_images: int = 0
    class_counts: tuple[int, ...] = ()

    @property
    def num_images_an_epoch(self) -> int:
        """Images trained on and scored in an epoch."""
        return self.num_train_images + (self.num_validation_images or self.num_test_images)

    @property
    def num_passing_images(self) -> int:
        """Images that a trunk sees: of each part, and each augmented version of the first."""
        versions = self.num_train_images * (self.recipe.views or 0)
        return self.num_train_images + self.num_validation_images + self.num_test_images + versions


@dataclass(frozen=True)
class PassReport:
    """Work done once for each image, a batch of it just now: images done, of how many, in how long.

    what: which work, in words: the trunk's pass, the reading of pictures.
    """

    num_done: int
    num_images: int
    seconds: float
    what: str


@dataclass(frozen=True)
class StepReport:
    """One training step, just done. step and epoch count from 1."""

    step: int
    epoch: int
    num_images: int
    learning_rate: float
    loss_tensor: Tensor

    @property
    def loss(self) -> float:
        """Mean loss of the batch, in nats an image. On a GPU, reading it waits for the step."""
        return self.loss_tensor.item()


@dataclass(frozen=True)
class EvaluationReport:
    """One batch of an evaluation, just scored. part: "validation" or "test"."""

    epoch: int
    num_scored: int
    num_images: int
    part: str = "test"


@dataclass(frozen=True)
class EpochReport:
    """One epoch with its evaluation. epoch counts from 1.

    step_losses, step_images: of each step, the mean loss in nats an image and the images. scores:
    of the images of `part`: the validation images, or else the test images; the answers themselves
    are kept of the last evaluation alone, `Cycle.scores`. train_seconds: of the steps alone;
    seconds: with the evaluation.
    """

    epoch: int
    step_losses: tuple[float, ...]
    step_images: tuple[int, ...]
    scores: Figures
    train_seconds: float = 0.0
    seconds: float = 0.0
    part: str = "test"

    @property
    def train_loss(self) -> float:
        """Mean loss of the epoch's steps over images: a short last batch weighs by its images.

        With class weights each step's loss is its own weighted mean.
        """
        total = fsum(map(mul, self.step_losses, self.step_images))
        return total / sum(self.step_images)

    def as_document(self) -> dict[str, int | float]:
        """Give what the epoch came to, by name, without its seconds; the accuracy is a fraction."""
        return {
            "epoch": self.epoch,
            "train_loss": self.train_loss,
            f"{self.part}_loss": self.scores.loss,
            f"{self.part}_accuracy": self.scores.accuracy,
        }


@dataclass(frozen=True)
class Run:
    """A finished training: what it was, what came of it, and where it lies.

    scores: of the test images at the end, with every answer. metrics: the document of
    `metrics.json`.
    """

    recipe: Recipe
    folder: Path
    epochs: tuple[EpochReport, ...]
    scores: Scores
    metrics: dict[str, Any]

    def _repr_html_(self) -> str:
        """Show the run in a notebook: how well, in what time, where, and the picture of it."""
        figures, low_high = self.scores.figures, self.scores.interval
        low, high = (f"{100 * bound:.2f}" for bound in low_high)
        rows = {
            "run": f"{self.recipe.name} on {self.recipe.data}",
            "test accuracy": f"{100 * figures.accuracy:.2f} %, 95 % interval {low} to {high}",
            "right": f"{figures.num_correct:,} of {figures.num_images:,} test images",
            "epochs": str(len(self.epochs)),
            "time": f"{self.metrics['seconds']:.0f} s",
            "folder": str(self.folder),
        }
        stem = f"{self.recipe.architecture}_"
        names = (name for name in self.metrics["files"] if name.startswith(stem))
        picture = next((name for name in names if name.endswith(".png")), None)
        path = self.folder / picture if picture else None
        return table_with_picture(rows, path.read_bytes() if path and path.is_file() else None)
