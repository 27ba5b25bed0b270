"""A training made ready, and all of it that moves: what the loop needs and a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from heptad.distributed import ALONE, Ranks
from heptad.recipe import Recipe
from heptad.records import START, Figures, Objective, Position, Scores, Source
from heptad.stages.data import Sources, draws_images, for_seed
from heptad.stages.evaluation import Tally
from heptad.stages.model import Model


@dataclass(frozen=True)
class Best:
    """The best epoch so far by its validation images, and all that training had moved by then."""

    epoch: int
    figures: Figures
    tensors: dict[str, Tensor]


@dataclass
class Opened:
    """What runs of one recipe share, whatever their seeds: the sources that one of them opened.

    refuse: raises what it has against a cycle that was made ready, before anything is written.
    """

    sources: Sources | None = None
    refuse: Callable[[Cycle], None] | None = None

    def take(self, recipe: Recipe) -> Sources | None:
        """Give the sources of `recipe`, with its own seed; None if it must open them itself.

        Those of no use are let go.
        """
        if self.sources:
            self.sources = for_seed(self.sources, recipe)
        return self.sources

    def keep(self, cycle: Cycle) -> None:
        """Keep the sources of a cycle for the next run, unless it is refused."""
        if self.refuse:
            self.refuse(cycle)
        self.sources = cycle.sources


@dataclass
class Cycle:
    """A training made ready: everything that its loop needs.

    whole: the whole network. model: what the loop trains: the head where the sources are features,
    else the whole. start, frozen: hashes of all that may not move, as it was loaded, and before the
    first step (another only where BatchNorm was recalibrated). moving: names of all that may: the
    trained part, and the statistics of BatchNorm that is not held. trunk: where it ends, or why
    there is none, in words; num_computed: images of its pass that were not kept yet. data: hash of
    the images and labels; features: of where their features came from, "" without a trunk.

    What moves besides the model: at, how far the training is; num_scored, the epochs that were
    evaluated; tally, the answers of an evaluation under way; scores, of the epoch evaluated last;
    and of the epoch trained on last, step_losses, step_images, and the seconds that its training
    and its evaluation have taken so far. With validation images: best, the epoch to end with. With
    averaging: average, of all that training moves. last: what the last step left, while the best
    epoch's values or the average are in its place, to be scored and saved.
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
    features: str = ""
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
    best: Best | None = None
    average: dict[str, Tensor] | None = None
    last: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.recipe.averaging and self.average is None:
            self.average = {name: value.clone() for name, value in self.moved().items()}

    @cached_property
    def shared_model(self) -> nn.Module:
        """The model as the loop calls it: with several ranks, they share its gradients."""
        none = torch.empty(0, dtype=torch.int64)
        return self.ranks.parallel(self.model, lambda: self.sources.train.take(none, None))

    @property
    def is_trained(self) -> bool:
        """Whether nothing is left to train: all epochs are done, or patience is at its end."""
        patience = self.recipe.patience
        is_out = patience and self.best and self.num_scored - self.best.epoch >= patience
        return self.num_scored >= self.recipe.epochs or bool(is_out)

    @property
    def scored(self) -> tuple[str, Source]:
        """What is scored next: validation images after an epoch, if there are; else the test."""
        validation = self.sources.validation
        if validation and not self.is_trained:
            return "validation", validation
        return "test", self.sources.test

    @property
    def evaluated(self) -> tuple[str, int]:
        """How far the evaluation after the last step is: which it is, and the images answered.

        "validated" is between a validation and the next step, or the test; "tested" after a test.
        """
        is_scored = self.at == Position(self.num_scored) > START
        if is_scored and self.scores and self.scored[0] == "test":
            return "tested", 0
        if self.tally.num_images:
            return self.scored[0], self.tally.num_images
        return ("validated" if is_scored else ""), 0

    @property
    def origins(self) -> dict[str, Any]:
        """What it is a training of beside its recipe, by content, as `metrics.json` names it."""
        return {
            "weights": self.whole.start,
            "data": self.data,
            "seed_draws_images": draws_images(self.recipe, self.sources),
            "test_set": self.sources.test_set,
        }

    def moved(self) -> dict[str, Tensor]:
        """Name all that training moves: the trained part and moving statistics."""
        state = self.whole.network.state_dict()
        return {name: state[name] for name in sorted(self.moving)}

    def put(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give all that training moves other values, in place; gives a copy of those before."""
        before = {name: value.clone() for name, value in self.moved().items()}
        with torch.no_grad():
            for name, value in self.moved().items():
                value.copy_(tensors[name])
        return before

    def show(self, tensors: Mapping[str, Tensor]) -> None:
        """Put values to be scored and saved in the place of what the last step left."""
        before = self.put(tensors)
        self.last = self.last or before

    def go_on(self) -> None:
        """Put what the last step left back in its place, to be trained further."""
        if self.last:
            self.put(self.last)
        self.last = None

    @property
    def num_images(self) -> int:
        """Images of an epoch."""
        return len(self.sources.train.labels)

    @property
    def num_steps(self) -> int:
        """Steps done."""
        size = self.recipe.batch_size
        return self.at.epoch * -(-self.num_images // size) + -(-self.at.num_seen // size)
