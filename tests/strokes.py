"""Digits of MNIST as a hand would draw them: lines along the middle of their strokes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

Point = tuple[float, float]


def strokes_of(digit: np.ndarray) -> list[list[Point]]:
    """Give lines of points (x, y), shares of the side, that draw a digit `uint8` [28, 28]."""
    middle = thinned(digit > 100)
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(middle), strict=True)}
    lines = []
    while left:
        # A line begins at an end where there is one, and follows what is next to it.
        place = min(left, key=lambda at: (len(_near(at, left)), at))
        line = [place]
        left.remove(place)
        while near := _near(place, left):
            place = min(
                near, key=lambda at: (abs(at[0] - line[-1][0]) + abs(at[1] - line[-1][1]), at)
            )
            line.append(place)
            left.remove(place)
        # A line that was begun in the middle of a stroke goes on from what was drawn before.
        earlier = [at for other in lines for at in other]
        touching = [
            at for at in earlier if max(abs(at[0] - line[0][0]), abs(at[1] - line[0][1])) == 1
        ]
        lines.append([*touching[:1], *line])
    side = len(digit)
    return [[((x + 0.5) / side, (y + 0.5) / side) for y, x in line] for line in lines]


def _near(place: tuple[int, int], left: set[tuple[int, int]]) -> list[tuple[int, int]]:
    row, column = place
    around = [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return [at for at in around if at in left and at != place]


def thinned(ink: np.ndarray) -> np.ndarray:
    """Thin strokes to a width of one pixel: Zhang & Suen 1984, doi:10.1145/357994.358023."""
    ink = np.pad(ink, 1).astype(np.uint8)
    while True:
        before = ink.copy()
        for first in (True, False):
            around = _around(ink)
            p2, p4, p6, p8 = around[::2]
            count = sum(around)
            ring = [*around, p2]
            changes = sum((a == 0) & (b == 1) for a, b in pairwise(ring))
            one, two = (p2 * p4 * p6, p4 * p6 * p8) if first else (p2 * p4 * p8, p2 * p6 * p8)
            is_edge = (count >= 2) & (count <= 6) & (changes == 1) & (one == 0) & (two == 0)
            ink[is_edge & (ink == 1)] = 0
        if np.array_equal(before, ink):
            return ink[1:-1, 1:-1].astype(bool)


def _around(ink: np.ndarray) -> list[np.ndarray]:
    """Give the eight neighbours of each pixel, from above, clockwise."""
    places = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
    return [np.roll(ink, (-row, -column), (0, 1)) for row, column in places]
