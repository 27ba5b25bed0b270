"""Which images of a set are held out: chosen by their content and the seed alone. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def held_out(
    labels: NDArray[np.int64], pixels: Sequence[str], *, seed: int, purpose: str, share: float
) -> NDArray[np.bool_]:
    """Choose the images [N] to hold out, of each class its share, but never all of a class.

    pixels: names each image by its content. purpose: "test" or "validation"; they draw apart.
    share: a fraction below 1, of which each class of two or more gives one at least; or a number.
    Copies count once.

    The choice depends on the seed and on the pictures' own content alone, not on names or order,
    and all copies of a picture are on the same side.
    """
    ranks = {
        content: hashlib.sha256(f"{purpose}:{seed}:{content}".encode()).digest()
        for content in set(pixels)
    }
    classes = [
        {pixels[int(place)] for place in np.flatnonzero(labels == label)}
        for label in np.unique(labels)
    ]
    quotas = _quotas([len(own) for own in classes], share)
    chosen: dict[str, bool] = {}
    for own, quota in zip(classes, quotas, strict=True):
        for number, content in enumerate(sorted(own, key=lambda content: ranks[content])):
            # A picture that is in two classes was placed with the first of them.
            chosen.setdefault(content, number < quota)
    return np.array([chosen[content] for content in pixels], bool)


def _quotas(sizes: Sequence[int], share: float) -> list[int]:
    """Say how many to hold out of classes of these sizes; one at least stays in each.

    A number is divided by largest remainder, ties to the lower class, so that it comes out exactly
    unless classes are too small.
    """
    if share < 1:
        wanted = [max(1, round(share * size)) for size in sizes]
    else:
        divided = [divmod(int(share) * size, sum(sizes)) for size in sizes]
        leftover = int(share) - sum(quota for quota, _ in divided)
        order = sorted(range(len(sizes)), key=lambda k: -divided[k][1])[:leftover]
        wanted = [quota + (k in order) for k, (quota, _) in enumerate(divided)]
    return [min(quota, size - 1) for quota, size in zip(wanted, sizes, strict=True)]
