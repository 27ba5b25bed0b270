"""Two classifiers on the same images: whether one is better, and by how much.

Of the images four counts are made: both right, only the first, only the second, neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, fsum, lgamma, log, sqrt

from heptad.records import wilson_interval

# A term so much smaller than the largest adds nothing to a sum of floats.
NEGLIGIBLE = 1e-20


@dataclass(frozen=True)
class PairedCounts:
    """How many images both got right, the first alone, the second alone, and neither."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def num_images(self) -> int:
        """Images compared."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of the first less that of the second, -1..1."""
        return (self.only_first - self.only_second) / self.num_images


def mcnemar_p(counts: PairedCounts) -> float:
    """Give the p of McNemar's exact two-sided test that both have the same accuracy.

    Of n images that only one got right, each falls to either with probability 1/2: twice the
    smaller tail of that binomial distribution, at most 1. McNemar 1947, doi:10.1007/BF02295996.
    """
    total = counts.only_first + counts.only_second
    fewer = min(counts.only_first, counts.only_second)
    # The largest term of the tail, C(n, k) / 2^n; those before it are each k / (n - k + 1) of the
    # next. Logarithms, since neither the binomial nor the power fits a float.
    log_largest = lgamma(total + 1) - lgamma(fewer + 1) - lgamma(total - fewer + 1) - total * log(2)
    terms = [1.0]
    for k in range(fewer, 0, -1):
        if terms[-1] < NEGLIGIBLE:
            break
        terms.append(terms[-1] * k / (total - k + 1))
    return min(1.0, 2 * exp(log_largest) * fsum(terms))


def paired_interval(counts: PairedCounts) -> tuple[float, float]:
    """Give the 95 % interval of the difference of the two accuracies, within -1..1.

    Method 10 of Newcombe 1998, Statistics in Medicine 17:2635-2650: the Wilson intervals of both,
    put together by how their answers go with one another.
    """
    num_images = counts.num_images
    first, second = counts.both + counts.only_first, counts.both + counts.only_second
    low_1, high_1 = _distances(first, num_images)
    low_2, high_2 = _distances(second, num_images)
    phi = _correlation(counts)
    below = sqrt(low_1**2 - 2 * phi * low_1 * high_2 + high_2**2)
    above = sqrt(high_1**2 - 2 * phi * high_1 * low_2 + low_2**2)
    return max(-1.0, counts.difference - below), min(1.0, counts.difference + above)


def _distances(num_correct: int, num_images: int) -> tuple[float, float]:
    """Say how far the ends of an accuracy's interval lie from it."""
    low, high = wilson_interval(num_correct, num_images)
    return num_correct / num_images - low, high - num_correct / num_images


def _correlation(counts: PairedCounts) -> float:
    """Give the correlation of being right, a positive one with Newcombe's continuity correction."""
    first, second = counts.both + counts.only_first, counts.both + counts.only_second
    wrong_1, wrong_2 = counts.num_images - first, counts.num_images - second
    if not (first and second and wrong_1 and wrong_2):
        return 0.0
    excess = counts.both * counts.neither - counts.only_first * counts.only_second
    corrected = max(excess - counts.num_images / 2, 0) if excess > 0 else excess
    return corrected / (sqrt(first * wrong_1) * sqrt(second * wrong_2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct several p for being several, in their order: any of them below 0.05 is still rare.

    Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
