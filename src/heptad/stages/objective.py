"""Stage 4: what is minimised, and by what: a loss, by an optimizer of the trained part."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.optim import SGD, Adam, AdamW, Optimizer

from heptad.errors import RecipeError
from heptad.recipe import Recipe
from heptad.records import Loss, Objective

# Methods of `Optimizer` that are wrapped so that PyTorch's compiler leaves them alone.
LEFT_ALONE = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def _uncompiled(kind: type[Optimizer]) -> Callable[..., Optimizer]:
    """Give an optimizer like `kind` that knows nothing of PyTorch's compiler.

    The first call of a wrapped method imports it, 1.5 s of the start of every training on two cores
    (torch 2.14.1, 2026-11). Nothing is compiled here, so that what is wrapped does by itself.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in LEFT_ALONE}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**methods, "step": step})


@dataclass(frozen=True)
class OptimizerKind:
    """How an optimizer is built, and what it keeps of each parameter from its first step on.

    counts, averages: names of what it keeps, as single numbers and in the parameter's shape.
    """

    build: Callable[..., Optimizer]
    counts: tuple[str, ...]
    averages: tuple[str, ...]


OPTIMIZERS = {
    "adam": OptimizerKind(_uncompiled(Adam), ("step",), ("exp_avg", "exp_avg_sq")),
    "adamw": OptimizerKind(_uncompiled(AdamW), ("step",), ("exp_avg", "exp_avg_sq")),
    "sgd": OptimizerKind(
        partial(_uncompiled(SGD), momentum=0.9, nesterov=True), (), ("momentum_buffer",)
    ),
}

# The logit of the class "rubbish", -j. The paper says only that j is positive; of 0.1, 1, 10 and 30
# this answered most of 10,000 training images set apart rightly (`lenet5-1998`, six epochs).
RUBBISH = -10.0


def map_loss(
    logits: Tensor, labels: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Give the mean of -z_label + log(e^-j + sum over k of e^z_k): cross entropy beside "rubbish".

    logits: z, [N, K]. weight: of the classes [K]. reduction: "mean", or "sum". A class of its own,
    with the logit -j and never right, keeps penalties that are large already from growing on:
    LeCun et al. 1998, doi:10.1109/5.726791, equation 9, where z is minus the paper's y.
    """
    padded = None if weight is None else pad(weight, (0, 1))
    padded_logits = pad(logits, (0, 1), value=RUBBISH)
    return cross_entropy(padded_logits, labels, weight=padded, reduction=reduction)


# Each takes weights of the classes, too, as `weight`, and a `reduction`.
LOSSES: dict[str, Callable[..., Tensor]] = {"cross-entropy": cross_entropy, "map": map_loss}


def configure_objective(
    recipe: Recipe,
    trained: Sequence[nn.Parameter | dict[str, Any]],
    labels: Tensor | None = None,
    *,
    num_classes: int = 0,
) -> Objective:
    """Give the recipe's loss, and its optimizer of the parameters `trained` and no other.

    trained: parameters, or groups of them as `torch.optim` takes them. labels: of the training
    images, int64 [N], which balanced class weights are counted from.
    num_classes: of the network, where the largest label may not be its last. Raises RecipeError if
    those weights are wanted without labels.
    """
    first = trained[0]
    parameter = first["params"][0] if isinstance(first, dict) else first
    weights = None
    if recipe.class_weights == "balanced":
        if labels is None:
            raise RecipeError("class_weights is balanced, which needs the training labels.")
        weights = balanced_weights(labels, num_classes).to(parameter)
    # Szegedy et al., arXiv:1512.00567, section 7; not every loss can be smoothed.
    smoothing = {"label_smoothing": recipe.label_smoothing} if recipe.label_smoothing else {}
    loss: Loss = partial(LOSSES[recipe.loss], weight=weights, **smoothing)
    optimizer = OPTIMIZERS[recipe.optimizer].build(
        trained,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        # One kernel for the whole step instead of a dozen a parameter; other devices may lack it.
        fused=parameter.device.type in ("cpu", "cuda"),
    )
    return Objective(loss, optimizer, recipe.gradient_clip, class_weights=weights)


def balanced_weights(labels: Tensor, num_classes: int = 0) -> Tensor:
    """Give each class a weight [K] so that all count alike: N / (K x its images).

    As in King & Zeng 2001, and scikit-learn's "balanced". A class without images weighs nothing.
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    weights = len(labels) / (counts.count_nonzero() * counts)
    return torch.where(counts > 0, weights, 0.0)
