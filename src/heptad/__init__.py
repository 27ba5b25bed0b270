"""Heptad: one seven-stage training cycle for classic image classifiers.

    import heptad

    run = heptad.train(heptad.load_recipe("lenet5", epochs=3))
    print(run.scores.accuracy, run.folder)

Names are imported when they are first used, so that what needs no PyTorch does not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heptad.architectures import ARCHITECTURES, Architecture
    from heptad.classifier import Classifier, Prediction
    from heptad.cycle import epochs, prepare, progress, run, steps
    from heptad.cycle_state import Cycle
    from heptad.datasets.catalog import CATALOG, CatalogEntry
    from heptad.errors import HeptadError
    from heptad.exporting.export import Exported, export
    from heptad.exporting.loading import load_model
    from heptad.interactive import train, train_seeds
    from heptad.loaded_run import LoadedRun, load_run
    from heptad.recipe import Recipe, RunOptions
    from heptad.recipes import RECIPES, ShippedRecipe, load_recipe
    from heptad.records import EpochReport, Position, Run, Scores, StepReport
    from heptad.reports.comparing import compare
    from heptad.reports.comparison import Comparison
    from heptad.reports.report import write_report
    from heptad.seed_group import SeedGroup
    from heptad.seeds import SeedReport, run_seeds
    from heptad.tuning.reports import TrialReport, Tuned
    from heptad.tuning.search import Trial
    from heptad.tuning.searching import tune

_HOMES = {
    "ARCHITECTURES": "architectures",
    "Architecture": "architectures",
    "CATALOG": "datasets.catalog",
    "CatalogEntry": "datasets.catalog",
    "Classifier": "classifier",
    "Comparison": "reports.comparison",
    "Cycle": "cycle_state",
    "EpochReport": "records",
    "Exported": "exporting.export",
    "HeptadError": "errors",
    "LoadedRun": "loaded_run",
    "Position": "records",
    "Prediction": "classifier",
    "RECIPES": "recipes",
    "Recipe": "recipe",
    "Run": "records",
    "RunOptions": "recipe",
    "Scores": "records",
    "SeedGroup": "seed_group",
    "SeedReport": "seeds",
    "ShippedRecipe": "recipes",
    "StepReport": "records",
    "Trial": "tuning.search",
    "TrialReport": "tuning.reports",
    "Tuned": "tuning.reports",
    "compare": "reports.comparing",
    "epochs": "cycle",
    "export": "exporting.export",
    "load_recipe": "recipes",
    "load_model": "exporting.loading",
    "load_run": "loaded_run",
    "prepare": "cycle",
    "progress": "cycle",
    "run": "cycle",
    "run_seeds": "seeds",
    "steps": "cycle",
    "train": "interactive",
    "train_seeds": "interactive",
    "tune": "tuning.searching",
    "write_report": "reports.report",
}

__all__ = [*_HOMES]
__version__ = version("heptad")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'heptad' has no attribute {name!r}")
    return getattr(import_module(f"heptad.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
