"""3 x 3 convolutions by Winograd's F(4 x 4, 3 x 3): a quarter of the multiplications, as products.

Tiles of 6 x 6 input pixels, which overlap by 2, each give 4 x 4 output pixels. Lavin and Gray 2015,
arXiv:1509.09308. Exact in real numbers; in float32 its rounding is about 1e-6 of a typical output.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

TILE = 4
KERNEL = 3
SIDE = TILE + KERNEL - 1
# Where the polynomials are evaluated, beside infinity. With the customary 0, 1, -1, 2, -2 the
# rounding is twice as large; see Barabasz et al. 2018, arXiv:1803.10986. The usual reason for small
# integers, sums in place of products, is none here: the transforms are matrix products themselves.
POINTS = tuple(Fraction(n, d) for n, d in ((0, 1), (2, 3), (-2, 3), (3, 2), (-3, 2)))
# Tiles that are worked on together: what they become stays in the cache.
TILES_AT_A_TIME = 192

Polynomial = list[Fraction]


def _times(left: Polynomial, right: Polynomial) -> Polynomial:
    product = [Fraction(0)] * (len(left) + len(right) - 1)
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            product[i + j] += x * y
    return product


def _vanishing_at(points: list[Fraction]) -> Polynomial:
    """Give the coefficients of the product of (x - point), the constant one first."""
    product = [Fraction(1)]
    for point in points:
        product = _times(product, [-point, Fraction(1)])
    return product


@cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Give the transforms of one dimension: output [4, 6], kernel [6, 3], input [6, 6], float64.

    Toom and Cook's construction, transposed: Blahut, Fast Algorithms for Signal Processing, 2010,
    chapter 5.
    """
    one, none = Fraction(1), Fraction(0)
    output = [[point**i for point in POINTS] for i in range(TILE)]
    output = [[*row, one if i == TILE - 1 else none] for i, row in enumerate(output)]
    kernel, inputs = [], []
    for place, point in enumerate(POINTS):
        others = [*POINTS[:place], *POINTS[place + 1 :]]
        scale = one
        for other in others:
            scale *= point - other
        kernel.append([point**i / scale for i in range(KERNEL)])
        inputs.append([*_vanishing_at(others), none])
    kernel.append([none] * (KERNEL - 1) + [one])
    inputs.append(_vanishing_at(list(POINTS)))
    return tuple(  # type: ignore[return-value]
        torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)
        for rows in (output, kernel, inputs)
    )


def winograd_weight(weight: Tensor) -> Tensor:
    """Transform kernels [Cout, Cin, 3, 3] once, to what `winograd` takes: [36, Cin, Cout]."""
    _, kernel, _ = _transforms()
    both = torch.einsum("ai,bj,ocij->abco", kernel, kernel, weight.double())
    return both.reshape(SIDE**2, weight.shape[1], weight.shape[0]).to(weight.dtype).contiguous()


def winograd(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve with padding 1 and stride 1.

    images: [N, H, W, Cin], contiguous. weight: as from `winograd_weight`. bias: [Cout]. Gives
    [N, H, W, Cout].
    """
    num_images, height, width, _ = images.shape
    down, across = -(-height // TILE), -(-width // TILE)
    # One row and column before, and as many behind as whole tiles need.
    beyond = (1, TILE * across - width + 1, 1, TILE * down - height + 1)
    padded = pad(images, (0, 0, *beyond))
    tiles = padded.unfold(1, SIDE, TILE).unfold(2, SIDE, TILE)  # [N, down, across, Cin, 6, 6]
    num_channels = weight.shape[2]
    answers = images.new_empty(num_images, down, TILE, across, TILE, num_channels)
    for part in _parts(num_images, down, across):
        torch.add(_convolved(tiles[part], weight), bias, out=answers[part])
    whole = answers.view(num_images, TILE * down, TILE * across, num_channels)
    return whole[:, :height, :width].contiguous()


def _parts(num_images: int, down: int, across: int) -> list[tuple[slice, slice]]:
    """Cut the tiles into parts of about `TILES_AT_A_TIME`: whole images, or rows of one."""
    rows = max(1, TILES_AT_A_TIME // across)
    if rows < down:
        row_edges = [*range(0, down, rows), down]
        return [
            (slice(image, image + 1), slice(*edges))
            for image in range(num_images)
            for edges in pairwise(row_edges)
        ]
    step = max(1, TILES_AT_A_TIME // (down * across))
    return [(slice(first, first + step), slice(None)) for first in range(0, num_images, step)]


def _convolved(tiles: Tensor, weight: Tensor) -> Tensor:
    """Give the outputs [n, d, 4, a, 4, Cout] of tiles [n, d, a, Cin, 6, 6], without the bias."""
    num_images, down, across, num_inputs = tiles.shape[:4]
    to_tiles, from_tiles = _of_both_dimensions(tiles.dtype)
    laid = tiles.permute(4, 5, 0, 1, 2, 3).reshape(SIDE**2, -1)
    transformed = torch.mm(to_tiles, laid).view(SIDE**2, -1, num_inputs)
    products = torch.bmm(transformed, weight).view(SIDE**2, -1)
    pixels = torch.mm(from_tiles, products)
    return pixels.view(TILE, TILE, num_images, down, across, -1).permute(2, 3, 0, 4, 1, 5)


@cache
def _of_both_dimensions(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Give the transforms of a whole tile: input [36, 36], output [16, 36]."""
    output, _, inputs = _transforms()
    return torch.kron(inputs, inputs).to(dtype), torch.kron(output, output).to(dtype)
