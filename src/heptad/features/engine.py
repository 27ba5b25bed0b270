"""The trunk rewritten for the processor: the same function with less to move and to multiply.

BatchNorm is folded into the convolutions. Their weights are laid out once, and what is added right
behind them and the ReLU are computed in the same go; where Winograd's way multiplies less, it is
taken. No compiler is needed, and sizes alone decide: ways chosen by timing would differ from run to
run, and so would the features' last bits.
"""

from __future__ import annotations

import logging
import operator
from collections import Counter
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from heptad.errors import RecipeError
from heptad.features.layers import (
    LaidConvolution,
    OneDnnLinear,
    ProductConvolution,
    WinogradConvolution,
    can_be_laid,
    has_operators,
    way_for,
)

logger = logging.getLogger("heptad")

# Names of what computes features: the network as it is, and as it is rewritten here.
EAGER = "eager"
REWRITTEN = "rewritten"
# The largest difference of answers that is let pass, as a fraction of the largest answer.
PARITY = 1e-4
# Images that it is looked for in.
NUM_COMPARED = 8
# Layers whose outputs are theirs alone; an in-place ReLU, or Dropout, gives what it was given.
GIVING_NEW_MEMORY = (
    LaidConvolution,
    ProductConvolution,
    WinogradConvolution,
    nn.Conv2d,
    nn.BatchNorm2d,
)


class Engine(NamedTuple):
    """What computes a trunk's features: its name, and the module.

    answers: its features of the first batch, where it has been tried on it.
    """

    name: str
    module: nn.Module
    answers: Tensor | None = None


def start_engine(trunk: nn.Module, inputs: Tensor, *, wanted: str, batch_size: int) -> Engine:
    """Give what is to compute a trunk's features.

    inputs: the first batch, whose answers the two ways are compared by. wanted: "rewritten", or
    "auto" for it where it serves and else the trunk as it is; a trunk that should be and is not
    rewritten is said. batch_size: of most batches. Raises RecipeError if what is wanted by name
    cannot be had.
    """
    if not (inputs.device.type == "cpu" and inputs.dtype == torch.float32):
        where = f"{str(inputs.dtype).removeprefix('torch.')} on {inputs.device.type}"
        obstacle = f"it is for float32 on the CPU, and this run is {where}"
        if wanted == "auto":
            return Engine(EAGER, trunk)
    else:
        engine, obstacle = _checked(trunk, inputs, batch_size)
        if engine is not None:
            return engine
    if wanted != "auto":
        raise RecipeError(
            f"engine is {wanted}, which cannot serve: {obstacle}.",
            hint=f"--engine {EAGER} runs the network as it is",
        )
    logger.warning("the trunk's pass runs the network as it is; rewritten, %s", obstacle)
    return Engine(EAGER, trunk)


def _checked(trunk: nn.Module, inputs: Tensor, batch_size: int) -> tuple[Engine | None, str]:
    """Rewrite a trunk and compare the answers; None, and why, if it cannot serve."""
    sample = inputs[:NUM_COMPARED]
    with torch.inference_mode():
        try:
            expected = trunk(sample)
            module = rewritten(trunk, sample, batch_size=batch_size)
            answers = module(filled(inputs, batch_size))[: len(inputs)]
            found = answers[: len(sample)]
        # A network of somebody's own may hold what cannot be traced, and raise anything; and memory
        # may not suffice for what the pass would do in smaller batches. The trunk's own errors come
        # again in the pass.
        except Exception as error:
            return None, f"it fails ({type(error).__name__}: {error})"
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            return None, "its answers are of another shape or type"
        difference = _difference(found, expected)
    # Written so that NaN does not pass; whether the trunk itself gives it, its pass will tell.
    if difference <= PARITY or not expected.isfinite().all():
        return Engine(REWRITTEN, module, answers), ""
    return None, f"its answers differ by {difference:.0e} of the largest, more than {PARITY:.0e}"


def _difference(found: Tensor, expected: Tensor) -> float:
    """Give the largest difference, in terms of the largest value expected."""
    return float((found - expected).abs().max() / expected.abs().max())


def filled(inputs: Tensor, batch_size: int) -> Tensor:
    """Repeat the last of the inputs [N, ...] until they are a whole batch.

    A rewritten trunk has weights laid out for so many; for fewer, they are laid out anew each time.
    """
    num_lacking = batch_size - len(inputs)
    if num_lacking <= 0:
        return inputs
    return torch.cat([inputs, inputs[-1:].expand(num_lacking, *inputs.shape[1:])])


def rewritten(trunk: nn.Module, inputs: Tensor, *, batch_size: int) -> nn.Module:
    """Give a module that computes the same as `trunk` in evaluation mode; `trunk` stays as it is.

    inputs: some [N, C, H, W] such as it will see. batch_size: how many it will see at a time, by
    which each convolution's way is chosen. For the CPU.
    """
    traced = fx.symbolic_trace(trunk)
    with torch.inference_mode():
        # Of two images, so that what has one row for all of them looks different.
        _Noting(traced).run(torch.cat([inputs[:1], inputs[:1]]))
    times_called = Counter(str(node.target) for node in traced.graph.nodes)
    for node in list(traced.graph.nodes):
        layer = _layer(traced, node)
        # A class that is derived from these may compute something else.
        if type(layer) is nn.Linear and has_operators(layer.weight):
            traced.add_submodule(node.target, OneDnnLinear(layer))
        # One that is called twice has more than one place, or more than one BatchNorm, to suit.
        if type(layer) is nn.Conv2d and times_called[node.target] == 1:
            _rewrite(traced, node, layer, batch_size)
    for node in traced.graph.nodes:
        if node.target is operator.add and _can_take_a_sum(traced, node.args[0], node):
            # Tracing loses that it was in place, which spares the cache a layer's output.
            node.target = operator.iadd
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()


def quickened(head: nn.Module) -> nn.Module:
    """Give a head in which oneDNN computes the frozen Linear layers before the first trained one.

    Its operators pass no gradient on, which nothing there asks for. All else are the head's own
    modules, and the weights are not copied. Where there is no such layer, in a sequence and of
    float32 on the CPU, or oneDNN answers something else, that is the head itself.
    """
    # A class that is derived from it may compute something else; so may one derived from Linear.
    if type(head) is not nn.Sequential:
        return head
    layers = list(head)
    for place, layer in enumerate(layers):
        if any(parameter.requires_grad for parameter in layer.parameters()):
            break
        if type(layer) is nn.Linear and layer.weight.is_cpu and has_operators(layer.weight):
            layers[place] = _by_onednn(layer)
    return head if layers == list(head) else nn.Sequential(*layers)


def _by_onednn(layer: nn.Linear) -> nn.Module:
    """Give a frozen layer as oneDNN's, or as it is if that does not give the same."""
    sample = layer.weight[:NUM_COMPARED]
    try:
        quick = OneDnnLinear(layer)
        expected, found = layer(sample), quick(sample)
    # The operator is not public, and may be another one in another PyTorch.
    except Exception as error:
        logger.warning("the head runs as it is; oneDNN fails (%s)", error)
        return layer
    # Written so that NaN does not pass.
    if _difference(found, expected) <= PARITY:
        return quick
    logger.warning("the head runs as it is; oneDNN's answers differ")
    return layer


class Kind(NamedTuple):
    """What a tensor of the graph is, for two images."""

    shape: torch.Size
    dtype: torch.dtype


class _Noting(fx.Interpreter):
    """Carries out a graph, and notes at each node what tensor it gives."""

    extra_traceback = False

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        node.meta["kind"] = Kind(value.shape, value.dtype) if isinstance(value, Tensor) else None
        return value


def _rewrite(
    traced: fx.GraphModule, node: fx.Node, convolution: nn.Conv2d, batch_size: int
) -> None:
    """Put what suits its shape in a convolution's place, and take in what comes right after it."""
    name, images = str(node.target), node.args[0]
    assert isinstance(images, fx.Node)
    norm = _only_reader(node)
    layer = _layer(traced, norm)
    if norm and type(layer) is nn.BatchNorm2d:
        convolution = _folded(convolution, layer)
        _replace(norm, node)
    shape = [batch_size, *images.meta["kind"].shape[1:]]
    if not can_be_laid(convolution):
        traced.add_submodule(name, deepcopy(convolution).to(memory_format=torch.channels_last))
        return
    kind = way_for(convolution, shape)
    total = _only_reader(node)
    if kind is not WinogradConvolution and total and (added := _added_to(node, total)):
        _replace(total, node)
        node.args = (images, added)
    rectifier = _only_reader(node)
    rectifies = type(_layer(traced, rectifier)) is nn.ReLU
    if rectifier and rectifies:
        _replace(rectifier, node)
    traced.add_submodule(name, kind(convolution, shape, rectifies=rectifies))


def _layer(traced: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    """Give the layer that a node of the graph calls, if it calls one."""
    return traced.get_submodule(str(node.target)) if node and node.op == "call_module" else None


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _replace(node: fx.Node, other: fx.Node) -> None:
    """Let all that read a node read another one, and take it out of the graph."""
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _added_to(node: fx.Node, total: fx.Node) -> fx.Node | None:
    """Give what is added to a value of the graph right after it, if it is of the same kind.

    With anything in between, what is added might not be there yet, or be overwritten meanwhile.
    """
    if total.target not in (operator.add, operator.iadd) or node.next is not total:
        return None
    for value in total.args:
        if isinstance(value, fx.Node) and value is not node:
            return value if value.meta["kind"] == node.meta["kind"] else None
    return None


def _can_take_a_sum(traced: fx.GraphModule, value: object, total: fx.Node) -> bool:
    """Tell whether a sum may overwrite its first part: memory that nothing else reads or shares."""
    return (
        isinstance(value, fx.Node)
        and type(_layer(traced, value)) in GIVING_NEW_MEMORY
        and _only_reader(value) is total
        and value.meta["kind"] == total.meta["kind"]
    )


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Give one convolution for a convolution and the BatchNorm behind it; worked out in float64."""
    exact = deepcopy(norm).double()
    weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        exact.running_mean,  # type: ignore[arg-type]
        exact.running_var,  # type: ignore[arg-type]
        exact.eps,
        exact.weight,
        exact.bias,
    )
    # Told that the weight was copied already, into the new one, it does not copy it.
    folded = deepcopy(convolution, {id(convolution.weight): weight})
    folded.bias = bias
    return folded
