"""A training made ready, and all of it that moves: what the loop needs and a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from heptad.distributed import ALONE, Ranks
from heptad.recipe import Recipe
from heptad.records import START, Objective, Position, Scores
from heptad.stages.data import Sources
from heptad.stages.evaluation import Tally
from heptad.stages.model import Model


@dataclass
class Cycle:
    """A training made ready: everything that its loop needs.

    whole: the whole network. model: what the loop trains: the head where the sources are features,
    else the whole. start, frozen: hashes of all that may not move, as it was loaded, and before the
    first step (another only where BatchNorm was recalibrated). moving: names of all that may: the
    trained part, and the statistics of BatchNorm that is not held. trunk: where it ends, or why
    there is none, in words; num_computed: images of its pass that were not kept yet. data: hash of
    the images and labels.

    What moves besides the model: at, how far the training is; num_scored, the epochs that were
    evaluated; tally, the answers of an evaluation under way; scores, of the epoch evaluated last;
    and of the epoch trained on last, step_losses, step_images, and the seconds that its training
    and its evaluation have taken so far.
    """

    recipe: Recipe
    device: torch.device
    sources: Sources
    whole: Model
    model: Model
    objective: Objective
    start: dict[str, str]
    frozen: dict[str, str]
    moving: frozenset[str]
    trunk: str
    data: str
    trunk_seconds: float = 0.0
    num_computed: int = 0
    ranks: Ranks = ALONE
    at: Position = START
    num_scored: int = 0
    tally: Tally = field(default_factory=Tally)
    scores: Scores | None = None
    step_losses: list[float | Tensor] = field(default_factory=list)
    step_images: list[int] = field(default_factory=list)
    train_seconds: float = 0.0
    test_seconds: float = 0.0

    @property
    def num_images(self) -> int:
        """Images of an epoch."""
        return len(self.sources.train.labels)

    @property
    def num_steps(self) -> int:
        """Steps done."""
        size = self.recipe.batch_size
        return self.at.epoch * -(-self.num_images // size) + -(-self.at.num_seen // size)
