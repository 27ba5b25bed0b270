"""What a set of answers is worth: figures from the confusion matrix and from the logits.

Pure functions of tensors; `records.Scores` holds what they take. Counts are divided once, and what
is 0 of 0 is None, never 0. Below them, what several runs are worth together.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin, sqrt, tan

import torch
from torch import Tensor

# As in the paper that `calibration` follows.
NUM_BINS = 15


@dataclass(frozen=True)
class ClassMeasures:
    """How one class fares. num_images: that are of it; num_answered: that were taken for it."""

    num_images: int
    num_answered: int
    num_correct: int

    @property
    def precision(self) -> float | None:
        """Of the images taken for this class, the fraction that is; None if none was."""
        return self.num_correct / self.num_answered if self.num_answered else None

    @property
    def recall(self) -> float | None:
        """Of this class's images, the fraction taken for it; None if there is none."""
        return self.num_correct / self.num_images if self.num_images else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None if the class neither occurs nor is answered.

        From the counts, so that it is 0 where nothing is right, whatever the precision.
        """
        total = self.num_images + self.num_answered
        return 2 * self.num_correct / total if total else None


def measure_classes(confusion: Tensor) -> tuple[ClassMeasures, ...]:
    """Give the measures of each class of a confusion matrix [K, K], rows the true classes."""
    counts = zip(
        confusion.sum(1).tolist(),
        confusion.sum(0).tolist(),
        confusion.diagonal().tolist(),
        strict=True,
    )
    return tuple(ClassMeasures(*count) for count in counts)


@dataclass(frozen=True)
class MacroMeasures:
    """Means over the classes that occur among the images; every class weighs alike."""

    precision: float
    recall: float
    f1: float


def macro_measures(classes: Sequence[ClassMeasures]) -> MacroMeasures:
    """Average over the classes that have images; the precision of one never answered counts as 0.

    Raises ValueError if no class has an image.
    """
    occurring = [each for each in classes if each.num_images]
    if not occurring:
        raise ValueError("no class has an image")

    def mean(values: Sequence[float | None]) -> float:
        return sum(value or 0.0 for value in values) / len(values)

    return MacroMeasures(
        precision=mean([each.precision for each in occurring]),
        recall=mean([each.recall for each in occurring]),
        f1=mean([each.f1 for each in occurring]),
    )


def num_in_top(logits: Tensor, labels: Tensor, k: int) -> int:
    """Count the images whose label is among the `k` largest of its logits [N, K].

    A logit that equals the label's is counted before it where its class comes first, as in
    `argmax`.
    """
    own = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1]) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & before)).sum(1)
    return int((rank < k).sum())


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies in (low, high].

    confidence: mean probability of their answers; None without images.
    """

    low: float
    high: float
    num_images: int
    num_correct: int
    confidence: float | None

    @property
    def accuracy(self) -> float | None:
        """Fraction of its images answered rightly; None without images."""
        return self.num_correct / self.num_images if self.num_images else None


@dataclass(frozen=True)
class Calibration:
    """Whether answers given with probability p are right as often as p. error: the ECE, 0..1."""

    bins: tuple[Bin, ...]
    error: float


def calibration(logits: Tensor, labels: Tensor, *, num_bins: int = NUM_BINS) -> Calibration:
    """Compare confidence and accuracy of the answers, in bins of equal width.

    The error is the mean distance between the two over images: Guo et al. 2017, arXiv:1706.04599.
    logits: [N, K], N at least 1.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    is_correct = predicted == labels
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    place = torch.bucketize(confidence, edges[1:-1])
    bins, distance = [], 0.0
    for number in range(num_bins):
        inside = place == number
        num_images, num_correct = int(inside.sum()), int(is_correct[inside].sum())
        total = float(confidence[inside].sum())
        distance += abs(total - num_correct)
        mean = total / num_images if num_images else None
        low, high = edges[number].item(), edges[number + 1].item()
        bins.append(Bin(low, high, num_images, num_correct, mean))
    return Calibration(tuple(bins), distance / len(labels))


@dataclass(frozen=True)
class Spread:
    """What one figure came to in several runs. deviation: that of the sample, with N - 1.

    interval: 95 %, of the mean that more and more runs would approach, by Student's t.
    """

    mean: float
    least: float
    most: float
    deviation: float
    interval: tuple[float, float]


def spread_of(values: Sequence[float]) -> Spread:
    """Give mean, range and interval of two values or more.

    Student 1908, doi:10.1093/biomet/6.1.1.
    """
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    reach = student_t(len(values) - 1) * deviation / sqrt(len(values))
    return Spread(mean, min(values), max(values), deviation, (mean - reach, mean + reach))


def student_t(degrees: int, coverage: float = 0.95) -> float:
    """Give the t within whose distance from 0 lies the fraction `coverage` of Student's t.

    degrees: of freedom, a whole number, at least 1. coverage: above 0 and below 1.
    """
    low, high = 0.0, pi / 2
    # Halved until nothing lies between the two.
    while low < (angle := (low + high) / 2) < high:
        if _student_share(angle, degrees) < coverage:
            low = angle
        else:
            high = angle
    return sqrt(degrees) * tan(high)


def _student_share(angle: float, degrees: int) -> float:
    """Give the fraction of Student's t within sqrt(degrees) * tan(angle) of 0, a closed form.

    Abramowitz & Stegun 1964, 26.7.3 for odd and 26.7.4 for even degrees of freedom.
    """
    is_odd = degrees % 2
    term, total = (cos(angle) if is_odd else 1.0), 0.0
    for k in range(1 + is_odd, degrees, 2):
        total += term
        term *= cos(angle) ** 2 * k / (k + 1)
    return (angle + sin(angle) * total) * 2 / pi if is_odd else sin(angle) * total
