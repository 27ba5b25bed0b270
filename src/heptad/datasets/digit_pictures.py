"""A photo of a digit, turned into the picture that MNIST would hold of it. No torch.

A digit on paper is dark on a light ground, anywhere in the picture, in uneven light; MNIST's digits
are light on black, of one size, in the middle. What is asked for is one digit on a plain ground
that fills the picture: other writing and printed lines are taken for parts of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

# Of MNIST's images, http://yann.lecun.com/exdb/mnist/: their side, the side of the box that a digit
# is fitted into, and the row and column, from 0, that its centre of mass is moved to.
SIDE, BOX, MIDDLE = 28, 20, 14
# A ground up to this gray is black, such as that of every image of MNIST.
MOST_BLACK = 32
# Pictures are averaged down to this side: noise goes, and 20 pixels of a digit need no more.
MOST_SIDE = 512

# The rest are shares: of the longer side, unless they say otherwise. Chosen on MNIST's test digits
# laid into made photos of 12 kinds, by light, paper, pen and crop (2026-11).
# What is finer is grain, not a stroke.
GRAIN = 1 / 400
# How wide the strip along the edges is that shows the ground.
EDGE = 1 / 16
# From a place to the edge of the square around it that it is compared with.
AROUND = 1 / 10
# Strokes less than this apart belong together.
GAP = 1 / 64
# Of the ink of the largest stroke, what another must have to belong to the digit; and what a stroke
# within the picture must have so that those at its edge are left out.
LEAST_SHARE, LEAST_INNER = 1 / 10, 1 / 20
# Of the ink's own contrast: fainter is ground.
FAINT = 1 / 8
# Grays that ink differs from its ground at least, and how often the ground's own deviation.
LEAST_CONTRAST, LEAST_CLEARNESS = 20, 5
# Pixels of the box; a quarter of MNIST's strokes are thinner than this, a pen's nearly always are.
LEAST_WIDTH = 1.6

Values = NDArray[np.float64]
Truths = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class DigitPicture:
    """A digit as MNIST shows it, and where it was found.

    pixels: `uint8` [1, 28, 28], light on black.
    box: left, top, right and bottom of the digit in the picture; the last two lie outside of it.
    was_dark: it was darker than its ground.
    """

    pixels: NDArray[np.uint8]
    box: tuple[int, int, int, int]
    was_dark: bool


def is_like_mnist(pixels: NDArray[np.uint8]) -> bool:
    """Tell whether a picture, `uint8` [1, H, W], has MNIST's size and a black ground already."""
    edges = (pixels[0, 0], pixels[0, -1], pixels[0, :, 0], pixels[0, :, -1])
    is_black = np.median(np.concatenate(edges)) <= MOST_BLACK
    return pixels.shape == (1, SIDE, SIDE) and bool(is_black)


def as_digit(pixels: NDArray[np.uint8]) -> DigitPicture | None:
    """Find the digit in a picture, `uint8` [1, H, W], and show it as MNIST does; None if blank."""
    picture = Image.fromarray(pixels[0])
    factor = -(-max(picture.size) // MOST_SIDE)
    over, was_dark = _over_ground(picture.reduce(factor))
    is_ink = over > otsu(over)
    noise = over[~is_ink].std()
    is_digit = _main_parts(is_ink)
    level = np.median(over[is_ink & is_digit]) if is_ink.any() else 0
    if level < max(LEAST_CONTRAST, LEAST_CLEARNESS * noise):
        return None
    stroke = np.where(is_digit & (over > max(FAINT * level, 3 * noise)), over / level, 0).clip(0, 1)
    rows, columns = (np.flatnonzero(stroke.any(axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    box = (
        int(left * factor),
        int(top * factor),
        min(int(right * factor), picture.width),
        min(int(bottom * factor), picture.height),
    )
    return DigitPicture(_placed(_thick_enough(stroke[top:bottom, left:right])), box, was_dark)


def otsu(values: Values) -> float:
    """Give the threshold, halfway between whole numbers, that parts values in 0..255 best in two.

    The one with the largest variance between the two classes: N. Otsu, A threshold selection method
    from gray-level histograms, IEEE Trans. SMC 9 (1979). What lies outside counts as 0 or 255.
    """
    counts = np.bincount(values.round().clip(0, 255).astype(int).ravel(), minlength=256)
    shares = counts / values.size
    below, mass = shares.cumsum(), (shares * np.arange(256)).cumsum()
    between = (mass[-1] * below - mass) ** 2 / np.maximum(below * (1 - below), 1e-12)
    return float(between.argmax()) + 0.5


def _over_ground(picture: Image.Image) -> tuple[Values, bool]:
    """Give how far each place stands out from the ground, and whether dark is what stands out."""
    smooth = picture.filter(ImageFilter.GaussianBlur(max(picture.size) * GRAIN))
    over = np.asarray(smooth, np.float64)
    over = over - _ground_of_edges(over)
    # Lamps and shadows may stand out more than the strokes, but none so sharply.
    sharpness = (over - _mean_around(over, np.ones(over.shape, bool))) ** 2
    was_dark = bool((over * sharpness).sum() < 0)
    over = -over if was_dark else over
    # What the fit has missed of the light is found between the strokes.
    return over - _mean_around(over, over <= otsu(over)), was_dark


def _ground_of_edges(values: Values) -> Values:
    """Give the ground at each place: a parabola in x and y, fitted to a strip along the edges."""
    height, width = values.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1)
    depth = max(1, round(max(height, width) * EDGE))
    is_edge = np.ones(values.shape, bool)
    is_edge[depth:-depth, depth:-depth] = False
    at, seen = terms[is_edge], values[is_edge]
    is_ground = np.ones(len(seen), bool)
    for _ in range(3):
        weights = np.linalg.lstsq(at[is_ground], seen[is_ground], rcond=None)[0]
        off = np.abs(seen - at @ weights)
        # Strokes that reach the edge are far off, and left out of the next fit.
        is_ground = off <= 3 * np.median(off) + 1
    fitted: Values = terms @ weights
    return fitted


def _mean_around(values: Values, counts: Truths) -> Values:
    """Give the mean of what counts in the square around each place, 0 where nothing does."""
    reach = max(1, round(max(values.shape) * AROUND))
    numbers = _sum_around(counts.astype(np.float64), reach)
    return _sum_around(values * counts, reach) / np.maximum(numbers, 1)


def _sum_around(values: Values, reach: int) -> Values:
    """Add up the square around each place, as differences of running sums, axis after axis."""
    for _ in range(2):
        sums = np.pad(values.cumsum(0), [(reach + 1, reach), (0, 0)], mode="edge")
        sums[: reach + 1] = 0
        values = (sums[2 * reach + 1 :] - sums[: len(values)]).T
    return values


def _main_parts(is_ink: Truths) -> Truths:
    """Tell which places lie in, or next to, the strokes with most of the ink.

    Specks have little of it. What touches the picture's edge is taken for a shadow or the table, if
    there is a stroke that does not.
    """
    # Counted in cells, so that small gaps close and the search for what is connected is short.
    side = max(1, round(max(is_ink.shape) * GAP))
    height, width = is_ink.shape
    padded = np.pad(is_ink, [(0, -height % side), (0, -width % side)])
    ink = padded.reshape(len(padded) // side, side, -1, side).sum((1, 3))
    parts = _connected(ink > 0)
    ink_of = np.bincount(parts.ravel(), ink.ravel())
    inner = ink_of.copy()
    inner[np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])] = 0
    if inner.max() > LEAST_INNER * ink_of.max():
        ink_of = inner
    is_main = ink_of[parts] > LEAST_SHARE * ink_of.max()
    near = np.max(_neighbours(is_main), axis=0).repeat(side, 0).repeat(side, 1)
    found: Truths = near[:height, :width]
    return found


def _connected(cells: Truths) -> NDArray[np.int64]:
    """Give each connected part of a grid a number, corners connect too; 0 is elsewhere."""
    numbers = np.arange(1, cells.size + 1).reshape(cells.shape) * cells
    while True:
        largest = np.max(_neighbours(numbers), axis=0) * cells
        if np.array_equal(largest, numbers):
            return numbers
        numbers = largest


def _neighbours(grid: NDArray[Any]) -> list[NDArray[Any]]:
    """Give a grid as it is, then shifted by one in each of eight directions; outside is 0."""
    height, width = grid.shape
    around = np.pad(grid, 1)
    return [around[i : i + height, j : j + width] for i in range(3) for j in range(3)]


def _thick_enough(stroke: Values) -> Values:
    """Thicken a stroke, 0..1 [H, W], that would be a thread once it is fitted into the box."""
    is_ink = np.pad(stroke > 0.5, 1)
    outline = (is_ink[1:] != is_ink[:-1]).sum() + (is_ink[:, 1:] != is_ink[:, :-1]).sum()
    # A straight stroke has an outline of twice its length.
    width = 2 * is_ink.sum() / max(1, outline)
    more = round((LEAST_WIDTH * max(stroke.shape) / BOX - width) / 2)
    if more < 1:
        return stroke
    image = Image.fromarray(np.pad((stroke * 255).round().astype(np.uint8), more))
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * more + 1))) / 255


def _placed(stroke: Values) -> NDArray[np.uint8]:
    """Fit a stroke, 0..1 [H, W], into MNIST's box, and move its centre of mass to the middle."""
    height, width = (max(1, round(side * BOX / max(stroke.shape))) for side in stroke.shape)
    image = Image.fromarray(stroke.astype(np.float32))
    fitted = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    placed = np.zeros((1, SIDE, SIDE), np.uint8)
    rows, columns = (_around_middle(fitted.sum(axis)) for axis in (1, 0))
    placed[0, rows, columns] = (fitted * (255 / fitted.max())).round()
    return placed


def _around_middle(mass: NDArray[np.float32]) -> slice:
    """Give the places where the centre of `mass` is as near to the middle as there is room."""
    centre = float((mass * np.arange(len(mass))).sum() / mass.sum())
    start = min(max(0, round(MIDDLE - centre)), SIDE - len(mass))
    return slice(start, start + len(mass))
