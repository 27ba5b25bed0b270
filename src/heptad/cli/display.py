"""What people see while a command works: a live bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from heptad.datasets.folder import some_names
from heptad.errors import counted
from heptad.files import as_word
from heptad.recipe import Recipe
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
from heptad.reports.words import duration
from heptad.run_folder import REPORT, is_group
from heptad.scanning import ScanReport
from heptad.seed_group import SeedGroup
from heptad.seeds import Event, SeedReport
from heptad.text import one_line

# How often the live line reads the loss: on a GPU, reading it waits for the step.
LIVE_INTERVAL_S = 0.1
PLAIN_INTERVAL_S = 30.0
# Classes are called uneven if one has so many times the images of another.
UNEVEN = 2
# More classes are said by the smallest and the largest.
MOST_COUNTED = 20
# A wider matrix can be read on no terminal.
MOST_IN_MATRIX = 30
# Of each kind of finding of a scan; all are in its JSON.
MOST_SHOWN = 5

Result = TypeVar("Result")


class Show(Protocol):
    """Takes what a run reports, one report after another."""

    def __call__(self, event: Event) -> None:
        """Show one report, or pass over it."""


def show_nothing(event: Event) -> None:
    """Pass over every report."""


@dataclass
class Where:
    """How far a run, or a group of runs, is, by the reports so far.

    work: what is done once for each image, and was under way last. run: the one finished last.
    seed: whose turn it is, in a group. has_worked: whether anything was left to do.
    """

    folder: Path | None = None
    place: str = "before its first step"
    work: str = "the start"
    run: Run | None = None
    seed: SeedReport | None = None
    group: SeedGroup | None = None
    has_worked: bool = False

    @property
    def is_at_its_end(self) -> bool:
        """Whether all is done: the run, or the group if it is one of several."""
        return self.group is not None or (self.run is not None and self.seed is None)

    def note(self, event: Event) -> None:
        """Take a report."""
        if isinstance(event, SeedReport):
            self.seed, self.folder, self.place = event, None, "before its first step"
        elif isinstance(event, SeedGroup):
            self.group = event
        elif isinstance(event, Prepared):
            self.folder, self.has_worked = event.folder, True
            if event.resumed_from is not None:
                self.place = f"after step {event.resumed_from}"
        elif isinstance(event, PassReport):
            self.work = event.what
        elif isinstance(event, StepReport):
            self.place = f"after step {event.step}"
        elif isinstance(event, Run):
            self.run = event

    @property
    def said(self) -> str:
        """What a stop left, and how to go on."""
        if self.seed and is_group(self.seed.folder):
            where = f"{self.place} of" if self.folder else "before"
            on = f"`heptad resume {as_word(self.seed.folder)}` goes on"
            return f"saved {where} seed {self.seed.seed}; {on}"
        if self.folder is None:
            return f"what {self.work} gave so far is kept; the same command goes on with it"
        return f"saved {self.place}; `heptad resume {as_word(self.folder)}` goes on"


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
                    description=event.what,
                    figures=_pass_figures(event),
                )
            elif isinstance(event, SeedReport):
                bar.reset(task, description="preparing", figures="")
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


def showing_work(
    console: Console, events: Iterable[object], result: type[Result], *, is_silent: bool = False
) -> Result:
    """Show how far some work is, on a terminal, and give its `result`, the last of its events."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    is_hidden = is_silent or not console.is_terminal
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=is_hidden
    ) as bar:
        task = bar.add_task("starting", total=None)
        for event in events:
            if isinstance(event, result):
                return event
            if isinstance(event, PassReport):
                done, what = event.num_done, event.what
            else:
                assert isinstance(event, EvaluationReport)
                done, what = event.num_scored, "scoring"
            bar.update(task, completed=done, total=event.num_images, description=what)
    raise AssertionError("such work ends with its result")


def _plain(console: Console) -> Show:
    shown_at = started_at = perf_counter()
    prepared: Prepared
    before: int | None = None

    def show(event: Event) -> None:
        nonlocal shown_at, started_at, prepared, before
        now = perf_counter()
        if isinstance(event, PassReport):
            if now - shown_at < PLAIN_INTERVAL_S:
                return
            shown_at = now
            # None of those looked at so far may have been a picture.
            left_s = event.seconds * (event.num_images / max(1, event.num_done) - 1)
            say(
                console,
                f"{event.what}  {_pass_figures(event)}, {left_s / 60:,.0f} minutes left",
            )
        elif isinstance(event, Prepared):
            prepared, started_at, shown_at, before = event, now, now, None
            _show_start(console, event)
        elif isinstance(event, EpochReport):
            shown_at = now
            say(console, _epoch_line(prepared, event))
        elif isinstance(event, (StepReport, EvaluationReport)):
            done = _images_done(prepared, event)
            before = done if before is None else before
            if now - shown_at < PLAIN_INTERVAL_S or done <= before:
                return
            shown_at = now
            speed = (done - before) / (now - started_at)
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
    at_the_end = prepared.num_test_images if prepared.num_validation_images else 0
    return prepared.recipe.epochs * prepared.num_images_an_epoch + at_the_end


def _images_done(prepared: Prepared, event: StepReport | EvaluationReport) -> int:
    done = (event.epoch - 1) * prepared.num_images_an_epoch
    if isinstance(event, EvaluationReport):
        # With validation the test images come once, after all else.
        is_last = event.part == "test" and prepared.num_validation_images
        before = prepared.num_images_an_epoch if is_last else prepared.num_train_images
        return done + before + event.num_scored
    steps_before = (event.epoch - 1) * _steps_per_epoch(prepared)
    seen = (event.step - steps_before) * prepared.recipe.batch_size
    return done + min(seen, prepared.num_train_images)


def _images_before(prepared: Prepared) -> int:
    """Count what was done before a run was resumed, of an epoch's end its steps alone.

    An evaluation may be left to do there, and what is done always grows from here on.
    """
    num_steps, per_epoch = prepared.resumed_from or 0, _steps_per_epoch(prepared)
    epochs = max(0, num_steps - 1) // per_epoch
    seen = (num_steps - epochs * per_epoch) * prepared.recipe.batch_size
    return epochs * prepared.num_images_an_epoch + min(seen, prepared.num_train_images)


def _steps_per_epoch(prepared: Prepared) -> int:
    return -(-prepared.num_train_images // prepared.recipe.batch_size)


def _place(prepared: Prepared, event: StepReport | EvaluationReport) -> str:
    epoch = f"epoch {event.epoch}/{prepared.recipe.epochs}"
    if isinstance(event, EvaluationReport):
        return f"{epoch} {event.part} {event.num_scored}/{event.num_images}"
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
    elif not recipe.has_frozen_part:
        say(console, "The network starts from random weights.")
    else:
        text = "The weights are random: what is frozen knows nothing of images."
        say(console, text, style="bold yellow")
    limit = f" (a sample, --limit {recipe.limit})" if recipe.limit else ""
    count = prepared.num_validation_images
    apart = f", {count:,} validation and" if count else " and"
    say(
        console,
        f"{recipe.name} on {recipe.data}: {prepared.num_train_images:,} training{apart}"
        f" {counted(prepared.num_test_images, 'test image')}{limit}; {prepared.num_trained:,} of"
        f" {prepared.num_parameters:,} parameters are trained, on {prepared.device}.",
    )
    found = f"; {prepared.num_computed:,} of {prepared.num_passing_images:,} images had to pass it"
    counts = prepared.class_counts
    if counts:
        some = f"{min(counts):,} to {max(counts):,}"
        each = ", ".join(f"{n:,}" for n in counts) if len(counts) <= MOST_COUNTED else some
        uneven = _balance(recipe) if max(counts) > UNEVEN * min(counts) else ""
        say(console, f"Training images by class: {each}.{uneven}")
    is_cut = prepared.trunk.startswith("trunk")
    say(console, f"{prepared.trunk.capitalize()}{found if is_cut else ''}.")
    if prepared.resumed_from is not None:
        say(console, f"Going on after step {prepared.resumed_from:,}.")


def _balance(recipe: Recipe) -> str:
    if recipe.class_weights == "balanced":
        return " Each class weighs alike."
    return " --class-weights balanced would weigh each class alike."


def _epoch_line(prepared: Prepared, report: EpochReport) -> str:
    return (
        f"epoch {report.epoch}/{prepared.recipe.epochs}  loss {report.train_loss:.4f}"
        f"  {report.part} accuracy {accuracy_text(report.scores)}  {report.seconds:.1f} s"
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
        f" {counted(scores.num_images, 'image')}, in {duration(run.metrics['seconds'])}.",
        style="bold",
    )
    if run.metrics["selected_epoch"]:
        say(
            console,
            f"The best of {counted(len(run.epochs), 'epoch')} by its validation images was"
            f" {run.metrics['selected_epoch']}; its network was scored once on the test images.",
        )
    if run.recipe.limit:
        say(
            console, f"A figure for the sample of --limit {run.recipe.limit}, not for all the data."
        )
    good = verdict.has_learned and not verdict.advice
    text = f"{verdict.sentence} {verdict.advice}".rstrip()
    say(console, text, style="green" if good else "yellow")
    files = sorted({*run.metrics["files"], "metrics.json"})
    say(console, f"Saved in {run.folder}: {', '.join(files)}.")
    report = run.folder / REPORT
    if report.exists():
        say(console, f"To be opened in a browser: {report}")
    word = as_word(run.folder)
    purposes = {} if report.exists() else {f"heptad report {word}": "a page on the run"}
    purposes |= {
        f"heptad serve {word}": "a page to try it on",
        f"heptad predict {word} IMAGE": "what it says of a picture",
        f"heptad evaluate {word}": "by class, and what is taken for what",
        f"heptad compare {word} RUN": "beside another run",
    }
    show_next(console, purposes)


def show_next(console: Console, commands: dict[str, str]) -> None:
    """Print what to type next; what it is for only where that fits on the line."""
    say(console, "Next:")
    widest = max(map(cell_len, map(one_line, commands)))
    for command, purpose in commands.items():
        line = f"  {command}{' ' * (widest - cell_len(one_line(command)))}  {purpose}"
        fits = not console.is_terminal or cell_len(one_line(line)) <= console.width
        say(console, line if fits else f"  {command}")


def show_scan(console: Console, report: ScanReport) -> None:
    """Print what a folder of pictures holds, and what in it wants a look."""
    table = Table("class", *map(_right, report.counts))
    for name in report.classes:
        table.add_row(one_line(name), *(f"{counts[name]:,}" for counts in report.counts.values()))
    totals = [f"{sum(counts.values()):,}" for counts in report.counts.values()]
    table.add_row("all", *totals, style="bold")
    console.print(table)
    for side, (least, middle, most) in report.sizes.items():
        say(console, f"{side}: {least} to {most} pixels, half of them up to {middle:g}")
    for what, counts in (
        ("files", report.modes),
        ("read with a change", report.notes),
        ("passed over", report.passed_over),
    ):
        if counts:
            say(console, f"{what}: {', '.join(f'{name} ({n:,})' for name, n in counts.items())}")
    if len(report.classes) == 1:
        say(console, "one class alone: nothing to tell apart", style="yellow")
    for what, names in (
        ("classes without a picture", report.empty),
        ("classes without a picture to test on", report.untested),
    ):
        if names:
            say(console, f"{what}: {some_names(names)}", style="yellow")
    for what, groups in (
        ("copies of one picture", report.copies),
        (
            "copies in more than one part: the test would be too easy, see --drop-leaks",
            report.leaks,
        ),
        ("copies in more than one class", report.torn),
        ("pictures that look nearly alike", report.near),
    ):
        if groups:
            say(console, f"{what}: {len(groups):,}", style="yellow")
            for group in groups[:MOST_SHOWN]:
                say(console, f"  {', '.join(group)}")
    if report.bad:
        say(console, f"cannot be used: {len(report.bad):,}", style="bold red")
        for name, reason in report.bad.items():
            say(console, f"  {name}: {reason}")
    else:
        say(console, "Every picture can be used.", style="green")


def _right(name: str) -> Column:
    return Column(name, justify="right")
