"""The figures of a report on one run: from its answers and its `metrics.json`, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from heptad.datasets.label_errors import LABEL_ERRORS, LabelError
from heptad.measures import (
    Calibration,
    ClassMeasures,
    MacroMeasures,
    calibration,
    macro_measures,
    measure_classes,
    num_in_top,
)
from heptad.records import Run, wilson_interval
from heptad.reports.charts import Curves

# Classes that a table of all confusions can be read with, at most.
MOST_CONFUSED = 20
MOST_CLASSES = 200
MOST_SHOWN_CONFUSIONS = {True: 5, False: 20}
MOST_EPOCHS = 24
WORST_SHOWN = 15
TOP = 3


@dataclass(frozen=True)
class ClassRow:
    """A class with its measures and the interval of its recall."""

    name: str
    measures: ClassMeasures
    interval: tuple[float, float]


@dataclass(frozen=True)
class Confusion:
    """So many images of one class were taken for another. of: all images of the class."""

    name: str
    answered: str
    num_images: int
    of: int


@dataclass(frozen=True)
class Answer:
    """What the network said of one test image.

    place: in the order of the test images. id: in the data set. classes: the likeliest, each with
    its probability. loss: in nats. error: what is known to be wrong with its label.
    """

    place: int
    id: int
    label: str
    classes: tuple[tuple[str, float], ...]
    loss: float
    error: LabelError | None

    @property
    def is_right(self) -> bool:
        """Whether the likeliest class is the label."""
        return self.classes[0][0] == self.label


@dataclass(frozen=True)
class KnownErrors:
    """The images with a label known to be wrong: how many were scored, and what was said of them.

    num_as_labelled: were answered as they are labelled, num_as_people: as most people did.
    """

    num_images: int
    num_as_labelled: int
    num_as_people: int


@dataclass(frozen=True)
class RunFigures:
    """All figures that a report gives of one run."""

    run: Run

    @property
    def names(self) -> list[str]:
        """The names of the classes."""
        return list(map(str, self.run.metrics["classes"]))

    @cached_property
    def classes(self) -> tuple[ClassRow, ...]:
        """The classes in their order, each with its measures."""
        measured = measure_classes(self.run.scores.confusion)
        return tuple(
            ClassRow(
                name,
                each,
                wilson_interval(each.num_correct, each.num_images) if each.num_images else (0, 1),
            )
            for name, each in zip(self.names, measured, strict=True)
        )

    @cached_property
    def macro(self) -> MacroMeasures:
        """Means over the classes that occur."""
        return macro_measures([row.measures for row in self.classes])

    @cached_property
    def calibration(self) -> Calibration:
        """How often answers are right, by the probability that they are given with."""
        return calibration(self.run.scores.logits, self.run.scores.labels)

    @cached_property
    def mean_confidence(self) -> float:
        """The mean probability of the answers."""
        return float(self.run.scores.logits.double().softmax(1).amax(1).mean())

    @cached_property
    def num_in_top_3(self) -> int | None:
        """Images whose label is among the three likeliest classes; None of fewer than four."""
        scores = self.run.scores
        return num_in_top(scores.logits, scores.labels, TOP) if len(self.names) > TOP else None

    @property
    def has_readable_confusion(self) -> bool:
        """Whether there are few enough classes for a table of all confusions."""
        return len(self.names) <= MOST_CONFUSED

    @cached_property
    def confusions(self) -> tuple[Confusion, ...]:
        """The most frequent confusions, the first the most frequent."""
        counts = self.run.scores.confusion.clone()
        totals = counts.sum(1).tolist()
        counts.fill_diagonal_(0)
        flat = counts.flatten()
        most = MOST_SHOWN_CONFUSIONS[self.has_readable_confusion]
        found = []
        for cell in flat.argsort(descending=True, stable=True)[:most].tolist():
            true, answered = divmod(cell, len(self.names))
            if flat[cell]:
                found.append(
                    Confusion(self.names[true], self.names[answered], int(flat[cell]), totals[true])
                )
        return tuple(found)

    @cached_property
    def _losses(self) -> torch.Tensor:
        scores = self.run.scores
        logs = scores.logits.double().log_softmax(1)
        return -logs.gather(1, scores.labels[:, None])[:, 0]

    def answer(self, place: int) -> Answer:
        """Give what was said of the test image at `place`."""
        scores = self.run.scores
        values, order = scores.logits[place].double().softmax(0).sort(descending=True, stable=True)
        ranked = zip(order.tolist(), values.tolist(), strict=True)
        number = int(scores.ids[place])
        label = self.names[int(scores.labels[place])]
        return Answer(
            place=place,
            id=number,
            label=label,
            classes=tuple((self.names[k], value) for k, value in ranked)[:TOP],
            loss=float(self._losses[place]),
            error=self._known_error(number, label),
        )

    def _known_error(self, number: int, label: str) -> LabelError | None:
        known = LABEL_ERRORS.get(self.run.recipe.data, {}).get(number)
        return known if known and known.label == label else None

    @cached_property
    def worst(self) -> tuple[Answer, ...]:
        """The test images with the highest losses, the highest first."""
        order = self._losses.argsort(descending=True, stable=True)
        return tuple(self.answer(place) for place in order[:WORST_SHOWN].tolist())

    @cached_property
    def first_right(self) -> tuple[Answer, ...]:
        """The first rightly answered test image of each class."""
        scores = self.run.scores
        is_right = scores.predicted == scores.labels
        found = []
        for label in range(len(self.names)):
            places = (is_right & (scores.labels == label)).nonzero()[:1, 0].tolist()
            found += [self.answer(place) for place in places]
        return tuple(found)

    @cached_property
    def known_errors(self) -> KnownErrors | None:
        """What was said of the images whose labels are known to be wrong; None without such."""
        known = LABEL_ERRORS.get(self.run.recipe.data, {})
        places = [k for k, number in enumerate(self.run.scores.ids.tolist()) if number in known]
        found = [(answer, answer.error) for answer in map(self.answer, places) if answer.error]
        if not found:
            return None
        return KnownErrors(
            num_images=len(found),
            num_as_labelled=sum(answer.is_right for answer, _ in found),
            num_as_people=sum(answer.classes[0][0] == error.said for answer, error in found),
        )

    @cached_property
    def curves(self) -> Curves:
        """The losses and accuracies of each epoch."""
        epochs = self.run.epochs
        return Curves(
            step_losses=tuple(epoch.step_losses for epoch in epochs),
            train=tuple(epoch.train_loss for epoch in epochs),
            scored=tuple(epoch.scores.loss for epoch in epochs),
            accuracies=tuple(epoch.scores.accuracy for epoch in epochs),
            intervals=tuple(epoch.scores.interval for epoch in epochs),
        )
