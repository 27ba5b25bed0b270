"""Layers as a rewritten trunk has them, and where each suits: the same function, computed faster.

For float32 on the CPU, without gradients; weights are laid out once, when a layer is made.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from heptad.features.winograd import (
    KERNEL,
    TILE,
    as_products,
    num_tiles_at_a_time,
    pointwise,
    winograd,
)

# With fewer channels the transforms of Winograd's way cost more than it saves.
LEAST_CHANNELS = 128
# Values of a batch, on its side of fewer channels, below which its products are too small to pay:
# at 4 x 7 x 7 pixels of 256 channels it took 1.1 times as long as oneDNN, at 32 x 4 x 4 three
# quarters (two cores of an AMD EPYC with AVX-512, torch 2.14.1, 2026-11).
LEAST_VALUES = 130_000
# Pixels of its tiles of 4 x 4 for each pixel of an image; at 5 x 5 most would be thrown away.
MOST_OVERHANG = 2
# Pixels that a convolution makes of an image, up to which all images are one product; with 8 x 8 it
# is not faster any more (two cores of an Intel Xeon with AVX-512, torch 2.14.1, 2026-11).
FEW_PIXELS = 16
# Operators of PyTorch that lay out a convolution's weights, and that compute with oneDNN.
OPERATORS = ("_reorder_convolution_weight", "_convolution_pointwise", "_linear_pointwise")


class LaidConvolution(nn.Module):
    """A convolution by oneDNN with its weights laid out once, and with what comes right after it.

    PyTorch's own lays them out in every call, which for few pixels takes longer than all the rest.
    The operators are those of `torch.compile` with freezing, and not public. inputs: the shape
    [N, C, H, W] of most. rectifies: whether a ReLU comes last.
    """

    def __init__(self, convolution: nn.Conv2d, inputs: list[int], *, rectifies: bool) -> None:
        super().__init__()
        each = (convolution.padding, convolution.stride, convolution.dilation)
        geometry = (*map(list, each), convolution.groups)
        weight, bias = convolution.weight.detach(), convolution.bias
        laid = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, inputs)
        self._layer = (laid, None if bias is None else bias.detach(), *geometry)
        self._rectifies = rectifies

    def forward(self, images: Tensor, added: Tensor | None = None) -> Tensor:
        """Convolve, and add what is given."""
        convolve = torch.ops.mkldnn._convolution_pointwise
        if added is None:
            last = "relu" if self._rectifies else "none"
            answers: Tensor = convolve(images, *self._layer, last, [], "")
        else:
            then = "relu" if self._rectifies else None
            answers = convolve.binary(images, added, *self._layer, "add", 1.0, then, [], "")
        return answers


class ProductConvolution(nn.Module):
    """A convolution that gives few pixels, as one product of matrices for all images.

    oneDNN's own takes each image by itself: for 2 x 2 pixels it needs up to three times as long
    (two cores of an Intel Xeon with AVX-512, torch 2.14.1, 2026-11). The rows are what the kernel
    sees in each place, or whole images where they are no larger. inputs: the shape [N, C, H, W] of
    most. rectifies: whether a ReLU comes last.
    """

    def __init__(self, convolution: nn.Conv2d, inputs: list[int], *, rectifies: bool) -> None:
        super().__init__()
        self._size = _size_after(convolution, inputs)
        self._window = _pairs(convolution)
        weight, bias = convolution.weight.detach(), convolution.bias
        self._takes_all = prod(inputs[2:]) <= prod(convolution.kernel_size)
        if self._takes_all:
            weight = _of_whole_images(convolution, inputs)
            bias = None if bias is None else bias.repeat(prod(self._size))
        matrix = pointwise(weight.permute(0, 2, 3, 1).flatten(1), bias)
        num_rows = inputs[0] * (1 if self._takes_all else prod(self._size))
        laid = [1, matrix.in_channels, num_rows, 1]
        self._multiply = LaidConvolution(matrix, laid, rectifies=rectifies)

    def forward(self, images: Tensor, added: Tensor | None = None) -> Tensor:
        """Convolve, and add what is given."""
        pixels = images.permute(0, 2, 3, 1)
        rows = pixels.flatten(1) if self._takes_all else self._seen(pixels)
        if added is not None:
            added = _as_one_image(added.permute(0, 2, 3, 1).reshape(len(rows), -1))
        found: Tensor = self._multiply(_as_one_image(rows), added).permute(0, 2, 3, 1)
        return found.reshape(len(images), *self._size, -1).permute(0, 3, 1, 2)

    def _seen(self, pixels: Tensor) -> Tensor:
        """Give what the kernel sees of images [N, H, W, C] in each place, as rows."""
        (high, down, above), (wide, across, beside) = self._window
        if above or beside:
            pixels = pad(pixels, (0, 0, beside, beside, above, above))
        windows = pixels.unfold(1, high, down).unfold(2, wide, across)
        return windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)


def _as_one_image(rows: Tensor) -> Tensor:
    """Look at rows [N, C] as an image [1, C, N, 1], channels last."""
    return rows[None, :, None].permute(0, 3, 1, 2)


def _pairs(convolution: nn.Conv2d) -> list[tuple[int, int, int]]:
    """Give kernel size, stride and padding, along the height and along the width."""
    assert not isinstance(convolution.padding, str)
    return list(zip(convolution.kernel_size, convolution.stride, convolution.padding, strict=True))


def _size_after(convolution: nn.Conv2d, shape: list[int]) -> tuple[int, int]:
    """Tell the height and width that inputs of a shape [N, C, H, W] are given, undilated."""
    down, across = (
        (side + 2 * padding - kernel) // stride + 1
        for side, (kernel, stride, padding) in zip(shape[2:], _pairs(convolution), strict=True)
    )
    return down, across


def _of_whole_images(convolution: nn.Conv2d, shape: list[int]) -> Tensor:
    """Give the weights by which a convolution's outputs come from all of an image.

    shape: of its inputs, [N, Cin, H, W]. Gives [Ho * Wo * Cout, Cin, H, W].
    """
    height, width = shape[2:]
    (high, down, above), (wide, across, beside) = _pairs(convolution)
    places = []
    for y, x in product(*map(range, _size_after(convolution, shape))):
        top, left = y * down - above, x * across - beside
        # Padding of less than nothing cuts off what lies outside the image.
        around = (left, width - left - wide, top, height - top - high)
        places.append(pad(convolution.weight.detach(), around))
    return torch.cat(places)


class WinogradConvolution(nn.Module):
    """A convolution with kernels of 3 x 3 and padding 1, in down to a quarter of the products.

    inputs: the shape [N, C, H, W] of most. rectifies: whether a ReLU comes last.
    """

    def __init__(self, convolution: nn.Conv2d, inputs: list[int], *, rectifies: bool) -> None:
        super().__init__()
        products = as_products(convolution)
        batch_size, _, height, width = inputs
        shape = [1, products.in_channels, num_tiles_at_a_time(batch_size, height, width), 1]
        self._convolve = partial(
            winograd,
            products=LaidConvolution(products, shape, rectifies=False),
            num_outputs=convolution.out_channels,
            batch_size=batch_size,
            rectifies=rectifies,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Convolve; images laid channels last, as it gives them, cost no copy."""
        laid = images.permute(0, 2, 3, 1).contiguous()
        return self._convolve(laid).permute(0, 3, 1, 2)


class OneDnnLinear(nn.Module):
    """A linear layer by oneDNN, its weights as they lie: large ones are not kept twice.

    Of few rows PyTorch's own is much slower: twice for four of VGG16's first linear layer, which
    took an eighth of its pass, and 1.4 times for 64 of its second, which took half of a step of
    its head (two cores of an AMD EPYC with AVX-512, torch 2.14.1, 2026-11).
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._weight = layer.weight.detach()
        self._bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, rows: Tensor) -> Tensor:
        """Multiply rows [..., Cin], and add the bias."""
        multiply = torch.ops.mkldnn._linear_pointwise
        answers: Tensor = multiply(rows, self._weight, self._bias, "none", [], "")
        return answers


def way_for(
    convolution: nn.Conv2d, shape: list[int]
) -> type[LaidConvolution | ProductConvolution | WinogradConvolution]:
    """Tell what is to compute a convolution that can be laid, of inputs of a shape [N, C, H, W]."""
    if _suits_winograd(convolution, shape):
        return WinogradConvolution
    is_plain = (convolution.groups, convolution.dilation) == (1, (1, 1))
    if is_plain and prod(_size_after(convolution, shape)) <= FEW_PIXELS:
        return ProductConvolution
    return LaidConvolution


def _suits_winograd(convolution: nn.Conv2d, shape: list[int]) -> bool:
    """Tell whether Winograd's way is to be taken for inputs of a shape [N, C, H, W]."""
    few = min(convolution.in_channels, convolution.out_channels)
    height, width = shape[2:]
    pixels, tiles = height * width, -(-height // TILE) * -(-width // TILE)
    return (
        (convolution.kernel_size, convolution.stride) == ((KERNEL, KERNEL), (1, 1))
        and (convolution.padding, convolution.padding_mode) == ((1, 1), "zeros")
        and (convolution.groups, convolution.dilation) == (1, (1, 1))
        and few >= LEAST_CHANNELS
        and shape[0] * few * pixels >= LEAST_VALUES
        and tiles * TILE**2 <= MOST_OVERHANG * pixels
    )


def has_operators(weight: Tensor) -> bool:
    """Tell whether oneDNN is there, with all that is needed, for weights of a type."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and weight.dtype == torch.float32
        and all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS)
    )


def can_be_laid(convolution: nn.Conv2d) -> bool:
    """Tell whether a convolution can be one of oneDNN's here, which knows no odd padding."""
    return (
        has_operators(convolution.weight)
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )
