"""What a search reports as it goes, and what came of it. They hold; they do not act."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptad.recipe import Recipe
from heptad.run_folder import BEST
from heptad.tuning.search import Search, Trial


@dataclass(frozen=True)
class SearchStart:
    """What a search is about to do; its first report.

    num_done: trials that are kept from before.
    """

    search: Search
    folder: Path
    num_trials: int
    num_done: int


@dataclass(frozen=True)
class SearchPrepared:
    """The images and the network of the first trial are ready; the others share them.

    weights: what the network starts from, as in `metrics.json`. is_frozen: whether a part of it is
    not trained. trunk: where it ends, or why there
    is none, in words. num_computed: images that its pass computed now.
    """

    device: str
    weights: dict[str, Any]
    is_frozen: bool
    num_train_images: int
    num_validation_images: int
    trunk: str
    num_computed: int


@dataclass(frozen=True)
class TrialStart:
    """The next trial, about to train."""

    number: int
    settings: dict[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class TrialReport:
    """A trial that has ended, and the best one so far, which it may be."""

    trial: Trial
    best: Trial | None
    num_trials: int


@dataclass(frozen=True)
class Tuned:
    """A finished search: all its trials, the best one, and the recipe to train with its settings.

    seconds: of this session, all of it; trial_seconds: of its trials alone.
    """

    search: Search
    folder: Path
    trials: tuple[Trial, ...]
    best: Trial
    recipe: Recipe
    seconds: float
    trial_seconds: float

    @property
    def ranked(self) -> list[Trial]:
        """The complete trials, the best one first."""
        complete = [trial for trial in self.trials if trial.judged]
        return sorted(complete, key=lambda trial: trial.rank, reverse=True)

    def as_document(self) -> dict[str, Any]:
        """Give the search and its trials as plain values, for JSON."""
        figures = self.best.figures
        assert figures is not None
        return {
            "search": str(self.folder),
            **self.search.as_document(),
            "trials": [trial.as_document() for trial in self.trials],
            "best": {
                "trial": self.best.number,
                "settings": self.best.settings,
                "validation_accuracy": figures.accuracy,
                "validation_correct": figures.num_correct,
                "validation_images": figures.num_images,
                "validation_accuracy_interval": list(figures.interval),
                "validation_loss": figures.loss,
                "recipe": self.recipe.model_dump(),
                "file": str(self.folder / BEST),
            },
            "seconds": self.seconds,
            "trial_seconds": self.trial_seconds,
        }
