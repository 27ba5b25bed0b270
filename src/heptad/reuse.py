"""A cycle that was made ready once, trained again by other settings of the training alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from heptad.cycle import objective_of
from heptad.cycle_state import Cycle
from heptad.errors import RecipeError
from heptad.recipe import Recipe
from heptad.stages.model import refuse_lone_images

# All that stages 4 to 6 alone read of a recipe. Any other field, a new one too until somebody has
# looked, may change the images, the network or its trunk, which are then made ready anew.
TRAINING_FIELDS = frozenset(
    {
        "loss",
        "label_smoothing",
        "class_weights",
        "optimizer",
        "learning_rate",
        "schedule",
        "warmup",
        "weight_decay",
        "layer_decay",
        "gradient_clip",
        "averaging",
        "batch_size",
        "epochs",
        "patience",
    }
)


def prepared_fields(recipe: Recipe) -> frozenset[str]:
    """Name the fields that decide what `prepare` makes ready, beside the objective."""
    # Statistics are re-estimated batch by batch.
    also = {"batch_size"} if recipe.batchnorm == "recalibrated" else set()
    return (frozenset(type(recipe).model_fields) - TRAINING_FIELDS) | also


def again(cycle: Cycle, recipe: Recipe, start: Mapping[str, Tensor]) -> Cycle:
    """Give the cycle that `prepare` would give for a recipe with other `TRAINING_FIELDS`.

    start: a copy of what `cycle.moved` gave before the first step. Sources and network are shared,
    so that the earlier cycle is of no use any more. Raises RecipeError if another field differs.
    """
    before = cycle.recipe
    for name in sorted(prepared_fields(before) | prepared_fields(recipe)):
        if getattr(recipe, name) != getattr(before, name):
            raise RecipeError(
                f"{name} is {getattr(recipe, name)}, but the cycle was prepared with"
                f" {getattr(before, name)}; prepare another one."
            )
    refuse_lone_images(cycle.whole, num_images=cycle.num_images, batch_size=recipe.batch_size)
    cycle.put(start)
    # Named one by one: whatever moves in a training begins as in a new cycle.
    return Cycle(
        recipe=recipe,
        device=cycle.device,
        sources=cycle.sources,
        whole=cycle.whole,
        model=cycle.model,
        objective=objective_of(recipe, cycle.whole, cycle.sources),
        start=cycle.start,
        frozen=cycle.frozen,
        moving=cycle.moving,
        trunk=cycle.trunk,
        data=cycle.data,
        features=cycle.features,
        trunk_seconds=cycle.trunk_seconds,
        num_computed=cycle.num_computed,
        ranks=cycle.ranks,
    )
