"""What people see while a command works: a live bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from heptad.cli.text import one_line
from heptad.records import (
    EpochReport,
    EvaluationReport,
    Figures,
    PassReport,
    Prepared,
    Run,
    Scores,
    StepReport,
)
from heptad.reports.verdict import judge

# How often the live line reads the loss: on a GPU, reading it waits for the step.
LIVE_INTERVAL_S = 0.1
PLAIN_INTERVAL_S = 30.0

Event = PassReport | Prepared | StepReport | EvaluationReport | EpochReport | Run


class Show(Protocol):
    """Takes what a run reports, one report after another."""

    def __call__(self, event: Event) -> None:
        """Show one report, or pass over it."""


def show_nothing(event: Event) -> None:
    """Pass over every report."""


@dataclass
class Where:
    """How far a run is, by the reports so far; run: the finished one."""

    folder: Path | None = None
    place: str = "before its first step"
    run: Run | None = None

    def note(self, event: Event) -> None:
        """Take a report."""
        if isinstance(event, Prepared):
            self.folder = event.folder
            if event.resumed_from is not None:
                self.place = f"after step {event.resumed_from}"
        elif isinstance(event, StepReport):
            self.place = f"after step {event.step}"
        elif isinstance(event, Run):
            self.run = event

    @property
    def said(self) -> str:
        """What a stop left, and how to go on."""
        if self.folder is None:
            return "what the trunk's pass has computed is kept; the same command goes on with it"
        return f"saved {self.place}; `heptad resume {self.folder}` goes on"


@contextmanager
def showing(console: Console) -> Iterator[Show]:
    """Give what shows a run's reports: live on a terminal, else a line an epoch."""
    if console.is_terminal:
        with _live(console) as show:
            yield show
    else:
        yield _plain(console)


@contextmanager
def _live(console: Console) -> Iterator[Show]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    shown_at = 0.0
    prepared: Prepared

    with Progress(*columns, console=console, transient=True, expand=True) as bar:
        task = bar.add_task("preparing", total=None, figures="")

        def show(event: Event) -> None:
            nonlocal shown_at, prepared
            if isinstance(event, PassReport):
                bar.update(
                    task,
                    total=event.num_images,
                    completed=event.num_done,
                    description="the trunk's pass",
                    figures=_pass_figures(event),
                )
            elif isinstance(event, Prepared):
                prepared = event
                _show_start(console, event)
                bar.reset(task, total=_total_images(event))
                bar.update(task, completed=_images_before(event))
            elif isinstance(event, EpochReport):
                say(console, _epoch_line(prepared, event))
            elif isinstance(event, (StepReport, EvaluationReport)):
                if perf_counter() - shown_at < LIVE_INTERVAL_S:
                    return
                shown_at = perf_counter()
                done = _images_done(prepared, event)
                speed = bar.tasks[0].speed or 0
                bar.update(
                    task,
                    completed=done,
                    description=_place(prepared, event),
                    figures=f"{_loss(event)}{speed:,.0f} images/s",
                )

        yield show


def showing_evaluation(console: Console, scoring: Iterable[EvaluationReport | Scores]) -> Scores:
    """Show how far an evaluation is, on a terminal, and give its scores."""
    columns = (TextColumn("scoring"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("scoring", total=None)
        for event in scoring:
            if isinstance(event, Scores):
                return event
            bar.update(task, completed=event.num_scored, total=event.num_images)
    raise AssertionError("an evaluation ends with its scores")


def _plain(console: Console) -> Show:
    shown_at = started_at = perf_counter()
    prepared: Prepared

    def show(event: Event) -> None:
        nonlocal shown_at, started_at, prepared
        now = perf_counter()
        if isinstance(event, PassReport):
            if now - shown_at < PLAIN_INTERVAL_S:
                return
            shown_at = now
            left_s = event.seconds * (event.num_images / event.num_done - 1)
            say(
                console,
                f"the trunk's pass  {_pass_figures(event)}, {left_s / 60:,.0f} minutes left",
            )
        elif isinstance(event, Prepared):
            prepared, started_at, shown_at = event, now, now
            _show_start(console, event)
        elif isinstance(event, EpochReport):
            shown_at = now
            say(console, _epoch_line(prepared, event))
        elif isinstance(event, (StepReport, EvaluationReport)):
            if now - shown_at < PLAIN_INTERVAL_S:
                return
            shown_at = now
            done = _images_done(prepared, event)
            speed = (done - _images_before(prepared)) / (now - started_at)
            left_s = (_total_images(prepared) - done) / speed
            say(
                console,
                f"{_place(prepared, event)}  {_loss(event)}{speed:,.0f} images/s,"
                f" {left_s / 60:,.0f} minutes left",
            )

    return show


def _pass_figures(event: PassReport) -> str:
    speed = event.num_done / event.seconds
    return f"{event.num_done:,} of {event.num_images:,} images  {speed:,.1f} images/s"


def _total_images(prepared: Prepared) -> int:
    return prepared.recipe.epochs * (prepared.num_train_images + prepared.num_test_images)


def _images_done(prepared: Prepared, event: StepReport | EvaluationReport) -> int:
    done = (event.epoch - 1) * (prepared.num_train_images + prepared.num_test_images)
    if isinstance(event, EvaluationReport):
        return done + prepared.num_train_images + event.num_scored
    steps_before = (event.epoch - 1) * _steps_per_epoch(prepared)
    seen = (event.step - steps_before) * prepared.recipe.batch_size
    return done + min(seen, prepared.num_train_images)


def _images_before(prepared: Prepared) -> int:
    """Count what was done before a run was resumed."""
    epochs, steps = divmod(prepared.resumed_from or 0, _steps_per_epoch(prepared))
    return (
        epochs * (prepared.num_train_images + prepared.num_test_images)
        + steps * prepared.recipe.batch_size
    )


def _steps_per_epoch(prepared: Prepared) -> int:
    return -(-prepared.num_train_images // prepared.recipe.batch_size)


def _place(prepared: Prepared, event: StepReport | EvaluationReport) -> str:
    epoch = f"epoch {event.epoch}/{prepared.recipe.epochs}"
    if isinstance(event, EvaluationReport):
        return f"{epoch} test {event.num_scored}/{event.num_images}"
    per_epoch = _steps_per_epoch(prepared)
    return f"{epoch} step {event.step - (event.epoch - 1) * per_epoch}/{per_epoch}"


def _loss(event: StepReport | EvaluationReport) -> str:
    return f"loss {event.loss:.4f}  " if isinstance(event, StepReport) else ""


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """Print a line as it is: no markup is read in it, and a pipe gets it unwrapped."""
    console.print(Text(one_line(text)), style=style, soft_wrap=not console.is_terminal)


def _show_start(console: Console, prepared: Prepared) -> None:
    recipe, start = prepared.recipe, prepared.weights
    if start["name"] != "none":
        say(
            console,
            f"The network starts from {start['name']}, its last layer {start['last_layer']}.",
        )
    elif recipe.trainable == "all":
        say(console, "The network starts from random weights.")
    else:
        text = "The weights are random: what is frozen knows nothing of images."
        say(console, text, style="bold yellow")
    limit = f" (a sample, --limit {recipe.limit})" if recipe.limit else ""
    say(
        console,
        f"{recipe.name} on {recipe.data}: {prepared.num_train_images:,} training and"
        f" {prepared.num_test_images:,} test images{limit}; {prepared.num_trained:,} of"
        f" {prepared.num_parameters:,} parameters are trained, on {prepared.device}.",
    )
    num_images = prepared.num_train_images + prepared.num_test_images
    found = f"; {prepared.num_computed:,} of {num_images:,} images had to pass it"
    is_cut = prepared.trunk.startswith("trunk")
    say(console, f"{prepared.trunk.capitalize()}{found if is_cut else ''}.")
    if prepared.resumed_from is not None:
        say(console, f"Going on after step {prepared.resumed_from:,}.")


def _epoch_line(prepared: Prepared, report: EpochReport) -> str:
    return (
        f"epoch {report.epoch}/{prepared.recipe.epochs}  loss {report.train_loss:.4f}"
        f"  test accuracy {accuracy_text(report.scores)}  {report.seconds:.1f} s"
    )


def accuracy_text(scores: Scores | Figures) -> str:
    """Write an accuracy with its interval, in percent."""
    low, high = scores.interval
    return f"{100 * scores.accuracy:.2f} % ({100 * low:.2f} to {100 * high:.2f})"


def show_summary(console: Console, run: Run) -> None:
    """Print what came of a run: how well, whether it learned, where it is, what to do next."""
    verdict, scores = judge(run), run.scores
    console.print()
    say(
        console,
        f"Test accuracy {accuracy_text(scores)}: {scores.num_correct:,} of"
        f" {scores.num_images:,} images, in {run.metrics['seconds']:.0f} s.",
        style="bold",
    )
    if run.recipe.limit:
        say(
            console, f"A figure for the sample of --limit {run.recipe.limit}, not for all the data."
        )
    good = verdict.has_learned and not verdict.advice
    text = f"{verdict.sentence} {verdict.advice}".rstrip()
    say(console, text, style="green" if good else "yellow")
    say(console, f"Saved in {run.folder}: {', '.join(sorted(run.metrics['files']))}.")
    say(console, f"Next: heptad evaluate {run.folder}, or heptad predict {run.folder} IMAGE")


def show_scores(console: Console, scores: Scores, classes: tuple[str, ...]) -> None:
    """Print accuracy, a line for each class, and the confusion matrix."""
    say(
        console,
        f"Test accuracy {accuracy_text(scores)}: {scores.num_correct:,} of"
        f" {scores.num_images:,} images; loss {scores.loss:.4f}.",
        style="bold",
    )
    table = Table("class", *map(_right, ("images", "right", "answered")))
    confusion = Table(_right("is \\ said"), *(_right(one_line(name)) for name in classes))
    rows = scores.confusion.tolist()
    for k, name in enumerate(classes):
        total = sum(rows[k])
        right = f"{100 * rows[k][k] / total:.1f} %" if total else "none there"
        table.add_row(one_line(name), f"{total:,}", right, f"{sum(row[k] for row in rows):,}")
        confusion.add_row(one_line(name), *map(str, rows[k]))
    console.print(table, confusion)


def _right(name: str) -> Column:
    return Column(name, justify="right")
