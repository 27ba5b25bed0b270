"""What a search is, what came of its trials, and the documents that it leaves. No torch."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, Self

from heptad.errors import RecipeError, damage_in
from heptad.files import read_document, write_bytes
from heptad.recipe import Recipe, to_toml
from heptad.records import Figures
from heptad.run_folder import SEARCH
from heptad.text import table_field
from heptad.tuning.ranges import Range, read_range, shown

SCHEMA = 1
# Of the training images, where the recipe sets none apart.
VALIDATION = 0.2
# Beside `SEARCH`, in the folder of a search; see `run_folder.SEARCH_FILES`.
JOURNAL, TABLE, PICTURE = "trials.journal", "trials.csv", "trials.png"
PACKAGES = ("heptad", "optuna", "torch", "numpy")
# How a trial may end.
COMPLETE, PRUNED, NOT_FINITE = "complete", "pruned", "not finite"
MOST_COMBINATIONS = 10_000

Settings = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One training of a search, from 1 on, and how it ended.

    settings: of the fields that are searched. epochs: what the validation images gave after each.
    judged: the epoch that it is judged by, of a complete one. reason: why another was given up.
    repeats: an earlier trial with the same settings, whose figures these are. refused: why settings
    that were drawn before these could not be tried.
    """

    number: int
    settings: Settings
    outcome: str
    epochs: tuple[Figures, ...]
    judged: int | None = None
    reason: str = ""
    repeats: int | None = None
    refused: tuple[str, ...] = ()

    @property
    def figures(self) -> Figures | None:
        """What the trial is judged by; None for one that was given up."""
        return self.epochs[self.judged - 1] if self.judged else None

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better: the accuracy, then the loss; a trial given up is behind all others."""
        figures = self.figures
        return (figures.accuracy, -figures.loss) if figures else (-1.0, 0.0)

    def as_document(self) -> dict[str, Any]:
        """Give it as plain values, for JSON."""
        return asdict(self) | {"refused": list(self.refused), "epochs": [*map(asdict, self.epochs)]}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Make the trial that `as_document` wrote down."""
        values = dict(document)
        epochs = tuple(Figures(**figures) for figures in values.pop("epochs"))
        trial = cls(**{**values, "epochs": epochs, "refused": tuple(values["refused"])})
        if (trial.judged is None) == (trial.outcome == COMPLETE) or (trial.judged or 0) > len(
            epochs
        ):
            raise ValueError(f"trial {trial.number} contradicts itself")
        return trial


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Give the best complete trial, the earlier one of two alike; None if there is none."""
    best = max(trials, key=lambda trial: trial.rank, default=None)
    return best if best and best.judged else None


@dataclass(frozen=True)
class Search:
    """A recipe, and what each of its fields that are searched is searched in."""

    recipe: Recipe
    ranges: dict[str, Range]

    @classmethod
    def of(cls, recipe: Recipe, ranges: Mapping[str, str]) -> Self:
        """Read the ranges and see that there is something to try, before any work.

        Raises RecipeError for a range that cannot be used, or if no combination can.
        """
        if not ranges:
            raise RecipeError(
                "nothing is to be searched: no field has a range.",
                hint="such as --learning-rate 1e-4..1e-1 or --optimizer adam,sgd",
            )
        # In the order of the recipe: a draw depends on it.
        order = [*type(recipe).model_fields]
        names = sorted(ranges, key=lambda name: order.index(name) if name in order else -1)
        search = cls(recipe, {name: read_range(name, ranges[name]) for name in names})
        # Not all need go together: what does not is drawn again.
        ends = product(*(range_.ends for range_ in search.ranges.values()))
        first_error = None
        for values in islice(ends, MOST_COMBINATIONS):
            try:
                search.chosen(dict(zip(search.ranges, values, strict=True)))
            except RecipeError as error:
                first_error = first_error or error
            else:
                return search
        assert first_error is not None
        raise first_error

    @property
    def validation(self) -> float | str:
        """What is set apart to judge trials by: the recipe's own, or a fifth."""
        return self.recipe.validation or VALIDATION

    def chosen(self, settings: Mapping[str, Any]) -> Recipe:
        """Give the recipe with these settings, as it will be trained; raises RecipeError."""
        return self.recipe.changed(**settings, name=f"{self.recipe.name}-tuned")

    def tried(self, settings: Mapping[str, Any]) -> Recipe:
        """Give the recipe with these settings, as it is tried; raises RecipeError."""
        return self.chosen(settings).changed(name=self.recipe.name, validation=self.validation)

    def judged_epoch(self, epochs: Sequence[Figures]) -> int:
        """Choose the epoch, from 1 on, whose network a training would end with.

        With validation images of its own it ends with its best one. Without any it ends with the
        last: a better one before would be lost to it, and would only make the trial look good.
        """
        if not self.recipe.validation:
            return len(epochs)
        ranks = [(figures.num_correct, -figures.loss) for figures in epochs]
        return ranks.index(max(ranks)) + 1

    def as_document(self) -> dict[str, Any]:
        """Give what must be the same when a search goes on, as plain values."""
        return {
            "schema": SCHEMA,
            "recipe": self.recipe.model_dump(),
            "ranges": {name: range_.text for name, range_ in self.ranges.items()},
            "validation": self.validation,
        }


def versions() -> dict[str, str]:
    """Name the versions of what draws and trains."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages}


def read_search(folder: Path, search: Search) -> dict[str, Any]:
    """Read what a search in `folder` began with.

    Raises DamagedError if that cannot be read, RecipeError if it was another search.
    """
    path = folder / SEARCH
    begun = read_document(path, schema=SCHEMA)
    with damage_in(path):
        # Fields that there were none of then have their defaults.
        recipe = Recipe(**begun["recipe"]).model_dump()
        had = recipe | begun["ranges"] | {"validation": begun["validation"]}
        int(begun["threads"])
        str(begun["device"])
        dict(begun["versions"])
        # Earlier ones hashed no preparation by itself; the first one now is what is compared with.
        dict(begun.setdefault("prepared", {}))
    document = search.as_document()
    wanted = document["recipe"] | document["ranges"] | {"validation": search.validation}
    lines = [
        f"{name} is {wanted.get(name)}, but the search in {folder} has {had.get(name)}."
        for name in sorted(wanted.keys() | had.keys())
        if wanted.get(name) != had.get(name)
    ]
    if lines:
        raise RecipeError(
            "\n".join(lines),
            hint="a search goes on with its own recipe and ranges; another --out begins a new one",
        )
    return begun


def save_table(path: Path, search: Search, trials: Sequence[Trial]) -> None:
    """Save a line for each trial as CSV; raises SaveError.

    Without times, so that equal searches write equal tables.
    """
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    figures = ("validation_correct", "validation_accuracy", "validation_loss")
    writer.writerow(["trial", "outcome", *search.ranges, "epochs", *figures, "note"])
    for trial in trials:
        found = trial.figures
        note = trial.reason or (f"as trial {trial.repeats}" if trial.repeats else "")
        writer.writerow(
            [
                trial.number,
                trial.outcome,
                *(_cell(trial.settings[name]) for name in search.ranges),
                len(trial.epochs),
                *((found.num_correct, found.accuracy, found.loss) if found else ("", "", "")),
                table_field(note),
            ]
        )
    write_bytes(path, content.getvalue().encode())


def _cell(value: object) -> str:
    """Write a value for a table; a text that begins like a formula is marked as none."""
    return table_field(value) if isinstance(value, str) else shown(value)


def save_best(path: Path, search: Search, best: Trial, num_trials: int) -> None:
    """Save the recipe of the best trial in full as TOML; raises SaveError."""
    figures = best.figures
    assert figures is not None
    head = (
        f"# Trial {best.number} of {num_trials} of a search: {figures.num_correct} of"
        f" {figures.num_images} validation images right.\n"
        "# The best of many is chosen for its luck too; the test images were not looked at.\n"
    )
    write_bytes(path, (head + to_toml(search.chosen(best.settings))).encode())
