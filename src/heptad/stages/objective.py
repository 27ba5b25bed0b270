"""Stage 4: what is minimised, and by what: cross entropy, and Adam on the trained part alone."""

from __future__ import annotations

from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam

from heptad.recipe import Recipe
from heptad.records import Objective


def configure_objective(recipe: Recipe, trained: list[nn.Parameter]) -> Objective:
    """Give cross entropy, and Adam on the parameters `trained` and on no other."""
    # One kernel for the whole step instead of a dozen a parameter; other devices may lack it.
    fused = trained[0].device.type in ("cpu", "cuda")
    return Objective(
        loss=cross_entropy,
        optimizer=Adam(trained, lr=recipe.learning_rate, fused=fused),
    )
