"""Runs side by side: their figures, what differs in their recipes, a test of each pair.

The core of `heptad compare`, which reads nothing: `heptad.reports.comparing` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from heptad.errors import counted
from heptad.measures import macro_measures, measure_classes
from heptad.recipe import Recipe
from heptad.records import Scores
from heptad.reports.paired import PairedCounts, holm, mcnemar_p, paired_interval

# A difference is called one if its p, corrected for the number of pairs, is below this.
ALPHA = 0.05
LEAST_P_SHOWN = 1e-4
# What stands in the table of each run, from its `metrics.json`; earlier versions wrote fewer.
TAKEN_OVER = ("seconds", "trunk_seconds", "train_seconds", "parameters", "trained_parameters")


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """One run, as far as it is compared.

    metrics: the document of `metrics.json`. weights_bytes: size of the file of weights; None if it
    was removed. Of each test image, in an order that is the same in runs on the same images:
    images, what names it (the SHA-256 of a picture, else its place in the data set); labels, the
    name of its class; is_right, whether the answer is.
    """

    name: str
    folder: Path
    recipe: Recipe
    metrics: dict[str, Any]
    scores: Scores
    weights_bytes: int | None
    is_of_pictures: bool
    images: tuple[str, ...]
    labels: tuple[str, ...]
    is_right: tuple[bool, ...]

    @property
    def macro_f1(self) -> float:
        """Mean of the F1 of the classes that occur."""
        return macro_measures(measure_classes(self.scores.confusion)).f1

    @property
    def figures(self) -> dict[str, float | None]:
        """What `TAKEN_OVER` names, each None where the run does not have it."""
        return {name: self.metrics.get(name) for name in TAKEN_OVER}

    @property
    def has_random_trunk(self) -> bool:
        """Whether a network was frozen that had learned nothing."""
        return self.metrics["weights"]["name"] == "none" and self.recipe.has_frozen_part

    @property
    def place(self) -> str:
        """What the run was carried out on, as far as its times depend on it."""
        execution = self.metrics["execution"]
        threads = execution["threads"]
        return f"{execution['device']} with {threads} thread{'s' * (threads != 1)}"

    def as_document(self) -> dict[str, Any]:
        """Give the figures as plain values, for JSON."""
        return {
            "name": self.name,
            "run": str(self.folder),
            "test_accuracy": self.scores.accuracy,
            "test_accuracy_interval": list(self.scores.interval),
            "test_correct": self.scores.num_correct,
            "test_images": self.scores.num_images,
            "test_loss": self.scores.loss,
            "test_macro_f1": self.macro_f1,
            **self.figures,
            "weights_bytes": self.weights_bytes,
        }


@dataclass(frozen=True)
class Pair:
    """Two runs on the same images. p: McNemar's, exact; p_holm: corrected for all pairs."""

    first: str
    second: str
    counts: PairedCounts
    p: float
    p_holm: float
    num_pairs: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference of the accuracies, first less second."""
        return paired_interval(self.counts)

    @property
    def is_difference(self) -> bool:
        """Whether one is better by more than chance explains."""
        return self.p_holm < ALPHA

    @property
    def sentence(self) -> str:
        """What was found, in words; the better one is named first."""
        counts = self.counts
        names = (self.first, self.second)
        alone = (counts.only_first, counts.only_second)
        low, high = self.interval
        if counts.difference < 0:
            names, alone, (low, high) = names[::-1], alone[::-1], (-high, -low)
        if not any(alone):
            return f"{names[0]} and {names[1]} are right on the same images."
        said = [100 * (counts.both + own) / counts.num_images for own in alone]
        found = (
            f"{names[0]} is better than {names[1]}"
            if self.is_difference
            else f"The difference between {names[0]} and {names[1]} could be chance"
        )
        corrected = (
            f" ({p_text(self.p_holm)} with Holm's correction for {self.num_pairs} pairs)"
            if self.num_pairs > 1
            else ""
        )
        return (
            f"{found}: {abs(100 * counts.difference):.2f} points"
            f" (95 % interval {100 * low:.2f} to {100 * high:.2f}), {said[0]:.2f} % against"
            f" {said[1]:.2f} %;"
            f" {counted(alone[0], 'image')} only {names[0]} gets right,"
            f" {alone[1]:,} only {names[1]};"
            f" {p_text(self.p)}{corrected}."
        )

    def as_document(self) -> dict[str, Any]:
        """Give the figures as plain values, for JSON."""
        return {
            "first": self.first,
            "second": self.second,
            "both": self.counts.both,
            "only_first": self.counts.only_first,
            "only_second": self.counts.only_second,
            "neither": self.counts.neither,
            "difference": self.counts.difference,
            "difference_interval": list(self.interval),
            "p": self.p,
            "p_holm": self.p_holm,
            "said": self.sentence,
        }


@dataclass(frozen=True)
class Comparison:
    """Runs that were tested on the same images, and each pair of them.

    differing: recipe fields that are not the same in all, with each run's value. notes: what one
    must know to read the figures rightly.
    """

    runs: tuple[ComparedRun, ...]
    pairs: tuple[Pair, ...]
    differing: dict[str, tuple[Any, ...]]
    notes: tuple[str, ...]

    def as_document(self) -> dict[str, Any]:
        """Give everything as plain values, for JSON."""
        return {
            "runs": [run.as_document() for run in self.runs],
            "differing": {name: list(values) for name, values in self.differing.items()},
            "pairs": [pair.as_document() for pair in self.pairs],
            "notes": list(self.notes),
        }


def p_text(p: float) -> str:
    """Write a p for people, with digits enough to see on which side of 0.05 it is."""
    if p < LEAST_P_SHOWN:
        return f"p < {LEAST_P_SHOWN:.4f}"
    texts = (f"{p:.{num_digits}g}" for num_digits in range(2, 18))
    return f"p = {next(text for text in texts if (float(text) < ALPHA) == (p < ALPHA))}"


def put_side_by_side(runs: Sequence[ComparedRun]) -> Comparison:
    """Compare runs on the same images, each with each."""
    return Comparison(
        runs=tuple(runs),
        pairs=_pairs(runs),
        differing=_differing([run.recipe for run in runs]),
        notes=tuple(_notes(runs)),
    )


def _pairs(runs: Sequence[ComparedRun]) -> tuple[Pair, ...]:
    pairs = list(combinations(runs, 2))
    counts = [_count(first.is_right, second.is_right) for first, second in pairs]
    p_values = [mcnemar_p(found) for found in counts]
    return tuple(
        Pair(first.name, second.name, found, p, p_holm, len(pairs))
        for (first, second), found, p, p_holm in zip(
            pairs, counts, p_values, holm(p_values), strict=True
        )
    )


def _count(first: Sequence[bool], second: Sequence[bool]) -> PairedCounts:
    found = Counter(zip(first, second, strict=True))
    return PairedCounts(
        both=found[True, True],
        only_first=found[True, False],
        only_second=found[False, True],
        neither=found[False, False],
    )


def _differing(recipes: Sequence[Recipe]) -> dict[str, tuple[Any, ...]]:
    documents = [recipe.model_dump() for recipe in recipes]
    values = {name: tuple(each[name] for each in documents) for name in documents[0]}
    return {name: own for name, own in values.items() if any(each != own[0] for each in own)}


def _notes(runs: Sequence[ComparedRun]) -> Iterator[str]:
    """Say what one must know to read the figures rightly."""
    samples = [f"{run.name} (--limit {run.recipe.limit})" for run in runs if run.recipe.limit]
    if samples:
        yield f"Trained and tested on a sample of the data: {', '.join(samples)}."
    random = [run.name for run in runs if run.has_random_trunk]
    if random:
        yield f"Random weights are frozen, which know nothing of images, in: {', '.join(random)}."
    if len({run.recipe.loss for run in runs}) > 1:
        named = ", ".join(f"{run.recipe.loss} in {run.name}" for run in runs)
        yield f"Their losses are not the same measure: {named}."
    for first, second in combinations(runs, 2):
        if first.metrics["digest"] == second.metrics["digest"]:
            yield f"{first.name} and {second.name} are equal runs, to the bit."
    if len({run.place for run in runs}) > 1:
        places = ", ".join(f"{run.name} on {run.place}" for run in runs)
        yield f"Their times are of different circumstances: {places}."
    earlier = [
        run.name for run in runs if not run.is_of_pictures and run.metrics.get("test_set") is None
    ]
    if earlier:
        yield (
            "That the test images are the same is judged by the name of the data, places and labels"
            f" alone: an earlier version, which saved no hash of them, made {', '.join(earlier)}."
        )
