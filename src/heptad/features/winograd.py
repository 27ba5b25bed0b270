"""3 x 3 convolutions by Winograd's F(4 x 4, 3 x 3): a quarter of the multiplications, as products.

Tiles of 6 x 6 input pixels, which overlap by 2, each give 4 x 4 output pixels. Lavin and Gray 2015,
arXiv:1509.09308. Exact in real numbers; in float32 its rounding is about 1e-6 of a typical output.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import product
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

TILE = 4
KERNEL = 3
SIDE = TILE + KERNEL - 1
# Where the polynomials are evaluated, beside infinity. With the customary 0, 1, -1, 2, -2 the
# rounding is twice as large; see Barabasz et al. 2018, arXiv:1803.10986. The usual reason for small
# integers, sums in place of products, is none here: the transforms are matrix products themselves.
POINTS = tuple(Fraction(n, d) for n, d in ((0, 1), (2, 3), (-2, 3), (3, 2), (-3, 2)))
# Tiles that are worked on together, at most: what they become stays in the cache.
TILES_AT_A_TIME = 256

# Channels that oneDNN adds up one after the other; its rounding grows with their number. Sums over
# more are added up in parts of half as many or fewer, if they can be halved so often.
MOST_SUMMED = 256

Polynomial = list[Fraction]


def _times(left: Polynomial, right: Polynomial) -> Polynomial:
    both = [Fraction(0)] * (len(left) + len(right) - 1)
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            both[i + j] += x * y
    return both


def _vanishing_at(points: list[Fraction]) -> Polynomial:
    """Give the coefficients of the product of (x - point), the constant one first."""
    vanishing = [Fraction(1)]
    for point in points:
        vanishing = _times(vanishing, [-point, Fraction(1)])
    return vanishing


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


def as_products(convolution: nn.Conv2d) -> nn.Conv2d:
    """Give the products of a 3 x 3 convolution, transformed once, as what `winograd` is to call.

    One for each place of a tile and part of the channels, as the groups of a convolution of 1 x 1:
    on some processors oneDNN is about twice as fast as PyTorch's matrix products (192 to 196 tiles,
    128 to 512 channels, two cores of an AMD EPYC with AVX-512, torch 2.14.1, 2026-11).
    """
    output, kernel, _ = _transforms()
    weight, bias = convolution.weight.detach(), convolution.bias
    num_outputs, num_inputs = weight.shape[:2]
    parts = _num_parts(num_inputs)
    both = torch.einsum("ai,bj,ocij->aboc", kernel, kernel, weight.double())
    each = both.reshape(SIDE**2, num_outputs, parts, -1).transpose(1, 2)
    matrix = each.reshape(SIDE**2 * parts * num_outputs, -1).to(weight.dtype)
    # What the output's transform makes ones of, all over the tile; of each sum's first part.
    side = torch.linalg.pinv(output).sum(1)
    everywhere = torch.zeros(num_outputs) if bias is None else bias.detach()
    added = torch.zeros(SIDE**2, parts, num_outputs, dtype=torch.float64)
    added[:, 0] = torch.outer(torch.outer(side, side).flatten(), everywhere.double())
    return pointwise(matrix, added.flatten().to(weight.dtype), groups=SIDE**2 * parts)


def pointwise(weight: Tensor, bias: Tensor | None, *, groups: int = 1) -> nn.Conv2d:
    """Give the convolution of 1 x 1 that multiplies by weights [Cout, Cin / groups]."""
    num_outputs, num_inputs = weight.shape
    # Without memory of its own, which would be filled with random numbers.
    convolution = nn.Conv2d(num_inputs * groups, num_outputs, 1, groups=groups, device="meta")
    convolution.weight = nn.Parameter(weight[..., None, None])
    convolution.bias = None if bias is None else nn.Parameter(bias.detach())
    return convolution


def _num_parts(num_inputs: int) -> int:
    """Tell in how many parts, of equally many channels, sums over channels are added up."""
    parts = 1
    if num_inputs > MOST_SUMMED:
        while num_inputs // parts > MOST_SUMMED // 2 and num_inputs % (2 * parts) == 0:
            parts *= 2
    return parts


def num_tiles_at_a_time(num_images: int, height: int, width: int) -> int:
    """Tell of how many tiles `winograd` calls for the products of a batch of images."""
    step, rows = _steps(num_images, height, width)
    return step * rows * -(-width // TILE)


def winograd(
    images: Tensor,
    products: Callable[[Tensor], Tensor],
    *,
    num_outputs: int,
    batch_size: int,
    rectifies: bool,
) -> Tensor:
    """Convolve with padding 1 and stride 1.

    images: [N, H, W, Cin], contiguous. products: as from `as_products`, called with [1, 36 * Cin,
    T, 1], channels last, for as many tiles T as `num_tiles_at_a_time` tells of a batch of
    `batch_size`, whatever N is: weights may be laid out for just so many. num_outputs: Cout.
    rectifies: whether a ReLU comes last. Gives [N, H, W, Cout].
    """
    num_images, height, width, num_inputs = images.shape
    to_tiles, from_tiles = _of_both_dimensions(images.dtype)
    tiles, to_tiles = _tiles(images, to_tiles)
    down, across = tiles.shape[1:3]
    # It adds the parts up, too.
    from_tiles = from_tiles.repeat_interleave(_num_parts(num_inputs), 1)
    step, rows = _steps(batch_size, height, width)
    num_tiles = step * rows * across
    pixels = images.new_empty(num_tiles, *tiles.shape[3:])
    transformed = images.new_empty(num_tiles, SIDE**2, num_inputs)
    answers = images.new_empty(num_images, down, TILE, across, TILE, num_outputs)
    for image, row in product(range(0, num_images, step), range(0, down, rows)):
        part = slice(image, image + step), slice(row, row + rows)
        shape = tiles[part].shape
        num_filled = prod(shape[:3])
        pixels[:num_filled].view(shape).copy_(tiles[part])
        pixels[num_filled:] = 0
        torch.matmul(to_tiles, pixels.flatten(1, 2), out=transformed)
        channels_last = transformed.view(1, num_tiles, 1, -1).permute(0, 3, 1, 2)
        multiplied = products(channels_last).permute(0, 2, 3, 1)
        sums = multiplied.reshape(num_tiles, -1, num_outputs)
        found = torch.matmul(from_tiles, sums[:num_filled])
        laid = found.view(*shape[:3], TILE, TILE, -1).transpose(2, 3)
        if rectifies:
            torch.clamp_min(laid, 0, out=answers[part])
        else:
            answers[part] = laid
    whole = answers.view(num_images, TILE * down, TILE * across, -1)
    return whole[:, :height, :width].contiguous()


def _tiles(images: Tensor, to_tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Cut images [N, H, W, C] into tiles [N, down, across, 6, 6, C], with what transforms them.

    An image of a single tile is that tile: the zeros around it need not be multiplied.
    """
    height, width = images.shape[1:3]
    down, across = -(-height // TILE), -(-width // TILE)
    if down == across == 1:
        within = to_tiles.view(-1, SIDE, SIDE)[:, 1 : height + 1, 1 : width + 1]
        return images[:, None, None], within.flatten(1)
    # One row and column before, and as many behind as whole tiles need.
    beyond = (1, TILE * across - width + 1, 1, TILE * down - height + 1)
    padded = pad(images, (0, 0, *beyond))
    tiles = padded.unfold(1, SIDE, TILE).unfold(2, SIDE, TILE).permute(0, 1, 2, 4, 5, 3)
    return tiles, to_tiles


def _steps(num_images: int, height: int, width: int) -> tuple[int, int]:
    """Tell of how many images, and how many rows of tiles of each, to work on the tiles at a time.

    `TILES_AT_A_TIME` at most, unless a row has more; and as near to equally many as can be.
    """
    down, across = -(-height // TILE), -(-width // TILE)
    rows = _evenly(down, TILES_AT_A_TIME // across)
    return (1 if rows < down else _evenly(num_images, TILES_AT_A_TIME // (down * across))), rows


def _evenly(number: int, most: int) -> int:
    """Give the size of the equal parts, but perhaps the last one, of at most `most` each."""
    return -(-number // -(-number // max(1, most)))


@cache
def _of_both_dimensions(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Give the transforms of a whole tile: input [36, 36], output [16, 36]."""
    output, _, inputs = _transforms()
    return torch.kron(inputs, inputs).to(dtype), torch.kron(output, output).to(dtype)
