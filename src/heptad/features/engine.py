"""The trunk rewritten for the processor: the same function in fewer, larger matrix products.

BatchNorm is folded into the convolutions, and each convolution is computed in the way that suits
its shape. All in plain PyTorch, with no compiler, and decided by sizes alone: ways chosen by
timing would differ from run to run, and so would the features' last bits.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from copy import deepcopy
from itertools import product

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import linear, pad
from torch.nn.utils.fusion import fuse_conv_bn_eval

from heptad.errors import RecipeError
from heptad.features.winograd import winograd, winograd_weight

logger = logging.getLogger("heptad")

# Names of what computes features: the network as it is, and as it is rewritten here.
EAGER = "eager"
REWRITTEN = "rewritten"
# The largest difference of answers that is let pass, as a fraction of the largest answer.
PARITY = 1e-4
# Images that it is looked for in.
NUM_COMPARED = 8
# Up to so many output pixels in a batch a convolution takes longer to lay out its weights than to
# add up, and one matrix product is faster (two cores of an Intel Xeon, torch 2.14.1, 2026-11: three
# times at 128 pixels, as fast at 2,048).
FEW_PIXELS = 1024
# With fewer channels the transforms of Winograd's way cost more than it saves.
LEAST_CHANNELS = 128

# Takes images [N, H, W, C], contiguous, and gives images of that kind.
Way = Callable[[Tensor], Tensor]


class Convolution(nn.Module):
    """A convolution of images [N, C, H, W], computed on [N, H, W, C] in a way of its own."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self._way = way

    def forward(self, images: Tensor) -> Tensor:
        """Convolve; images laid channels last, as these ways give them, cost no copy."""
        return self._way(images.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


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


def start_engine(
    trunk: nn.Module, inputs: Tensor, *, wanted: str, batch_size: int
) -> tuple[str, nn.Module]:
    """Give what is to compute a trunk's features, by name and as a module.

    inputs: the first batch, whose answers the two ways are compared by. wanted: "rewritten", or
    "auto" for it where it serves and else the trunk as it is; a trunk that should be and is not
    rewritten is said. batch_size: of most batches. Raises RecipeError if what is wanted by name
    cannot be had.
    """
    if not (inputs.device.type == "cpu" and inputs.dtype == torch.float32):
        where = f"{str(inputs.dtype).removeprefix('torch.')} on {inputs.device.type}"
        obstacle = f"it is for float32 on the CPU, and this run is {where}"
        if wanted == "auto":
            return EAGER, trunk
    else:
        module, obstacle = _checked(trunk, inputs, batch_size)
        if module is not None:
            return REWRITTEN, module
    if wanted != "auto":
        raise RecipeError(
            f"engine is {wanted}, which cannot serve: {obstacle}.",
            hint=f"--engine {EAGER} runs the network as it is",
        )
    logger.warning("the trunk's pass runs the network as it is; rewritten, %s", obstacle)
    return EAGER, trunk


def _checked(trunk: nn.Module, inputs: Tensor, batch_size: int) -> tuple[nn.Module | None, str]:
    """Rewrite a trunk and compare the answers; None, and why, if it cannot serve."""
    sample = inputs[:NUM_COMPARED]
    with torch.inference_mode():
        try:
            expected = trunk(sample)
            module = rewritten(trunk, sample, batch_size=batch_size)
            found = module(sample)
        # A network of somebody's own may hold what cannot be traced, and raise anything; and memory
        # may not suffice for what the pass would do in smaller batches. The trunk's own errors come
        # again in the pass.
        except Exception as error:
            return None, f"it fails ({type(error).__name__}: {error})"
        difference = float((found - expected).abs().max() / expected.abs().max())
    # Written so that NaN does not pass; whether the trunk itself gives it, its pass will tell.
    if difference <= PARITY or not expected.isfinite().all():
        return module, ""
    return None, f"its answers differ by {difference:.0e} of the largest, more than {PARITY:.0e}"


def rewritten(trunk: nn.Module, inputs: Tensor, *, batch_size: int) -> nn.Module:
    """Give a module that computes the same as `trunk` in evaluation mode; `trunk` stays as it is.

    inputs: some [N, C, H, W] such as it will see. batch_size: how many it will see at a time, by
    which each convolution's way is chosen. For the CPU.
    """
    sizes = _input_sizes(trunk, inputs)
    traced = fx.symbolic_trace(trunk)
    modules = dict(trunk.named_modules())
    for node in list(traced.graph.nodes):
        if node.target is operator.add and _is_read_once(node.args[0]):
            # Tracing loses that it was in place, which spares the cache a layer's output.
            node.target = operator.iadd
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        # A class that is derived from it may compute something else.
        if type(layer) is nn.Linear:
            traced.add_submodule(node.target, Product(layer))
        # One that is called twice has more than one place, or more than one BatchNorm, to suit.
        if not isinstance(layer, nn.Conv2d) or len(sizes[node.target]) != 1:
            continue
        reader = next(iter(node.users))
        norm = modules.get(str(reader.target)) if reader.op == "call_module" else None
        if _is_read_once(node) and isinstance(norm, nn.BatchNorm2d):
            layer = _folded(layer, norm)
            reader.replace_all_uses_with(node)
            traced.graph.erase_node(reader)
        suited = _suited(layer, sizes[node.target][0], batch_size)
        traced.add_submodule(node.target, suited)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()


def _is_read_once(value: object) -> bool:
    """Tell whether a value of a graph is a layer's output that nothing but the next node reads."""
    return isinstance(value, fx.Node) and value.op == "call_module" and len(value.users) == 1


def _input_sizes(trunk: nn.Module, inputs: Tensor) -> dict[str, list[torch.Size]]:
    """Find the sizes [H, W] of what each convolution sees, one a call, by its name."""
    sizes: dict[str, list[torch.Size]] = {}

    def noting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, given: sizes.setdefault(name, []).append(given[0].shape[2:])

    handles = [
        module.register_forward_pre_hook(noting(name))
        for name, module in trunk.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.inference_mode():
            trunk(inputs[:1])
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Give one convolution for a convolution and the BatchNorm behind it; worked out in float64."""
    exact, norm = deepcopy(convolution).double(), deepcopy(norm).double()
    return fuse_conv_bn_eval(exact, norm).to(convolution.weight.dtype)


def _suited(convolution: nn.Conv2d, size: torch.Size, batch_size: int) -> nn.Module:
    """Give a copy of the convolution, computed as suits so many inputs of [H, W] pixels."""
    way = _way(convolution, size, batch_size) if _is_plain(convolution) else None
    return Convolution(way) if way else deepcopy(convolution).to(memory_format=torch.channels_last)


def _is_plain(convolution: nn.Conv2d) -> bool:
    """Tell whether it is the same in both dimensions, and neither grouped nor dilated."""
    return (
        (convolution.groups, convolution.dilation) == (1, (1, 1))
        and (convolution.padding_mode, isinstance(convolution.padding, str)) == ("zeros", False)
        and len({*convolution.kernel_size}) == len({*convolution.stride}) == 1
        and len({*convolution.padding}) == 1
    )


def _way(convolution: nn.Conv2d, size: torch.Size, batch_size: int) -> Way | None:
    """Choose how a plain convolution is computed; None for PyTorch's own way."""
    side, stride, margin = _geometry(convolution)
    if (side, stride, margin) == (3, 1, 1):
        if max(size) <= 2:
            return _dense(convolution, size)
        if min(convolution.in_channels, convolution.out_channels) >= LEAST_CHANNELS:
            return _winograd(convolution)
    down, across = ((pixels + 2 * margin - side) // stride + 1 for pixels in size)
    return _patches(convolution) if batch_size * down * across <= FEW_PIXELS else None


def _geometry(convolution: nn.Conv2d) -> tuple[int, int, int]:
    """Give the kernel's side, the stride and the padding of a plain convolution."""
    padding = convolution.padding
    assert not isinstance(padding, str)
    return convolution.kernel_size[0], convolution.stride[0], padding[0]


def _bias(convolution: nn.Conv2d) -> Tensor:
    if convolution.bias is None:
        return convolution.weight.new_zeros(convolution.out_channels)
    return convolution.bias.detach()


def _dense(convolution: nn.Conv2d, size: torch.Size) -> Way:
    """Compute 2 x 2 pixels or fewer, each of which bears on all, by one matrix for the whole image.

    A direct convolution would multiply as often with the zeros around them.
    """
    height, width = size
    num_inputs, num_outputs = convolution.in_channels, convolution.out_channels
    weight, bias = convolution.weight.detach(), _bias(convolution).repeat(height * width)
    matrix = weight.new_zeros(height, width, num_outputs, height, width, num_inputs)
    for y, x, v, u in product(range(height), range(width), range(height), range(width)):
        matrix[y, x, :, v, u] = weight[:, :, v - y + 1, u - x + 1]
    matrix = matrix.reshape(height * width * num_outputs, height * width * num_inputs)
    return lambda images: linear(images.flatten(1), matrix, bias).view(
        -1, height, width, num_outputs
    )


def _winograd(convolution: nn.Conv2d) -> Way:
    """Compute in a quarter of the multiplications; pays with many channels."""
    weight, bias = winograd_weight(convolution.weight.detach()), _bias(convolution)
    return lambda images: winograd(images, weight, bias)


def _patches(convolution: nn.Conv2d) -> Way:
    """Lay the patches under the kernel out as rows, and multiply them by one matrix."""
    side, stride, margin = _geometry(convolution)
    matrix = convolution.weight.detach().permute(0, 2, 3, 1).flatten(1).contiguous()
    bias = _bias(convolution)

    def convolve(images: Tensor) -> Tensor:
        # Without a margin, padding would still copy.
        padded = pad(images, (0, 0, margin, margin, margin, margin)) if margin else images
        patches = padded.unfold(1, side, stride).unfold(2, side, stride)  # [N, H, W, C, k, k]
        rows = patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, matrix.shape[1])
        return linear(rows, matrix, bias).view(*patches.shape[:3], -1)

    return convolve
