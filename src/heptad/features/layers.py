"""Layers as a rewritten trunk has them, and where each suits: the same function, computed faster.

For float32 on the CPU, without gradients; weights are laid out once, when a layer is made.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heptad.features.winograd import KERNEL, TILE, winograd, winograd_weight

# With fewer channels the transforms of Winograd's way cost more than it saves.
LEAST_CHANNELS = 128
# Values of a batch, on its side of fewer channels, below which its products are too small to pay:
# it took 1.5 times as long as oneDNN at 32 x 8 x 8 pixels of 128 channels, two thirds as long at
# 4 x 14 x 14 of 512 (two cores of an AMD EPYC, torch 2.14.1, 2026-11).
LEAST_VALUES = 300_000
# Pixels of its tiles of 4 x 4 for each pixel of an image; at 5 x 5 most would be thrown away.
MOST_OVERHANG = 2
# Operators of PyTorch that lay out a convolution's weights and compute with them.
LAYING = ("_reorder_convolution_weight", "_convolution_pointwise")


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


class WinogradConvolution(nn.Module):
    """A convolution with kernels of 3 x 3 and padding 1, in down to a quarter of the products."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight, bias = convolution.weight.detach(), convolution.bias
        self._weight = winograd_weight(weight)
        self._bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()

    def forward(self, images: Tensor) -> Tensor:
        """Convolve; images laid channels last, as it gives them, cost no copy."""
        laid = images.permute(0, 2, 3, 1).contiguous()
        return winograd(laid, self._weight, self._bias).permute(0, 3, 1, 2)


class Product(nn.Module):
    """A linear layer of rows [..., Cin], computed as weights times rows.

    Of few rows rows times weights is slower: two and a half times for four of VGG16's first linear
    layer, which takes a tenth of its pass (two cores of an AMD EPYC, torch 2.14.1, 2026-11).
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._weight = layer.weight.detach()
        self._bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, rows: Tensor) -> Tensor:
        """Multiply, and add the bias."""
        answers = torch.mm(self._weight, rows.flatten(0, -2).t()).t().contiguous()
        if self._bias is not None:
            answers += self._bias
        return answers.view(*rows.shape[:-1], -1)


def suits_winograd(convolution: nn.Conv2d, shape: list[int]) -> bool:
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


def can_be_laid(convolution: nn.Conv2d) -> bool:
    """Tell whether oneDNN is there, with all that is needed, and knows the padding."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and convolution.weight.dtype == torch.float32
        and all(hasattr(torch.ops.mkldnn, name) for name in LAYING)
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )
