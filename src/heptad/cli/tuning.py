"""A search for people: a line for each trial, on a terminal a bar too, at the end what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from heptad.cli.display import accuracy_text, say
from heptad.cli.tables import Cells, show_table
from heptad.errors import counted
from heptad.files import as_word
from heptad.records import EpochReport, PassReport
from heptad.reports.words import duration
from heptad.run_folder import BEST
from heptad.tuning.ranges import shown
from heptad.tuning.reports import SearchPrepared, SearchStart, TrialReport, TrialStart, Tuned
from heptad.tuning.search import NOT_FINITE, PICTURE, TABLE, Search, Trial
from heptad.tuning.searching import SearchReport

# Of the table at the end; trials.csv has them all.
MOST_SHOWN = 10


class Show(Protocol):
    """Takes what a search reports, one report after another."""

    def __call__(self, event: SearchReport) -> None:
        """Show one report, or pass over it."""


def show_nothing(event: SearchReport) -> None:
    """Pass over every report."""


@dataclass
class Kept:
    """How many trials are kept, and where, by the reports so far."""

    folder: Path | None = None
    num_done: int = 0
    num_trials: int = 0
    is_prepared: bool = False

    def note(self, event: SearchReport) -> None:
        """Take a report."""
        if isinstance(event, SearchStart):
            self.folder, self.num_done = event.folder, event.num_done
            self.num_trials = event.num_trials
        elif isinstance(event, SearchPrepared):
            self.is_prepared = True
        elif isinstance(event, TrialReport):
            self.num_done = event.trial.number

    @property
    def said(self) -> str:
        """What a stop left, and how to go on."""
        if not (self.num_done or self.is_prepared):
            return "before the first trial; the same command begins again"
        assert self.folder is not None
        return (
            f"{self.num_done} of {counted(self.num_trials, 'trial', 'is', 'are')} kept; the same"
            f" command with `--resume --out {as_word(self.folder)}` goes on"
        )


@contextmanager
def showing(console: Console) -> Iterator[Show]:
    """Give what shows a search's reports: a line for each trial, on a terminal below them a bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:.0f} of {task.total:.0f} trials"),
        TimeRemainingColumn(compact=True),
    )
    is_hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, expand=True, disable=is_hidden) as bar:
        yield _Shown(console, bar, bar.add_task("preparing", total=1))


@dataclass
class _Shown:
    """What is shown of a search, and where."""

    console: Console
    bar: Progress
    task: TaskID
    num_epochs: int = 1
    num_done: int = 0

    def __call__(self, event: SearchReport) -> None:
        """Show one report, or pass over it."""
        if isinstance(event, SearchStart):
            self.num_done = event.num_done
            self.bar.update(self.task, total=event.num_trials, completed=event.num_done)
            _show_start(self.console, event)
        elif isinstance(event, PassReport):
            self.bar.update(self.task, description=f"{event.what}, {event.num_done:,} images")
        elif isinstance(event, SearchPrepared):
            _show_prepared(self.console, event)
        elif isinstance(event, TrialStart):
            self.num_epochs = event.recipe.epochs
            self.bar.update(self.task, description=f"trial {event.number}")
        elif isinstance(event, EpochReport):
            self.bar.update(self.task, completed=self.num_done + event.epoch / self.num_epochs)
        elif isinstance(event, TrialReport):
            self.num_done = event.trial.number
            self.bar.update(self.task, completed=self.num_done)
            _show_trial(self.console, event)


def _show_start(console: Console, start: SearchStart) -> None:
    search = start.search
    ranges = ", ".join(f"{name} in {range_.text}" for name, range_ in search.ranges.items())
    trials = counted(start.num_trials, "trial")
    say(console, f"{search.recipe.name} on {search.recipe.data}: {trials} of {ranges}.")
    if not search.recipe.validation:
        say(
            console,
            f"Trials are judged by validation {search.validation:g}, set apart from the training"
            " images, since the recipe has none of its own; it is trained on all of them later.",
        )
    if start.num_done:
        say(console, f"Going on after {counted(start.num_done, 'trial')} that are kept.")


def _show_prepared(console: Console, prepared: SearchPrepared) -> None:
    if prepared.weights["name"] == "none" and prepared.is_frozen:
        text = "The weights are random: what is frozen knows nothing of images."
        say(console, text, style="bold yellow")
    is_cut = prepared.trunk.startswith("trunk")
    found = f"; {prepared.num_computed:,} images had to pass it" if is_cut else ""
    say(
        console,
        f"{prepared.num_train_images:,} training and {prepared.num_validation_images:,} validation"
        f" images, on {prepared.device}. {prepared.trunk.capitalize()}{found}.",
    )


def settings_text(settings: Mapping[str, Any]) -> str:
    """Write settings in one line."""
    return ", ".join(f"{name} {shown(value)}" for name, value in settings.items())


def _show_trial(console: Console, report: TrialReport) -> None:
    trial, best = report.trial, report.best
    head = f"trial {trial.number}/{report.num_trials}  {settings_text(trial.settings)}  "
    if trial.figures:
        again = f" as in trial {trial.repeats}" if trial.repeats else ""
        said = f"validation accuracy {accuracy_text(trial.figures)}{again}"
    else:
        said = f"given up, {trial.reason}"
    is_best = best is trial
    note = "  the best so far" if is_best else ""
    if best and best.figures and not is_best:
        note = f"  best {100 * best.figures.accuracy:.2f} % in trial {best.number}"
    style = "green" if is_best else None if trial.figures else "dim"
    say(console, f"{head}{said}{note}", style=style)


def show_tuned(console: Console, tuned: Tuned) -> None:
    """Print what came of a search: the best trials, what their figures mean, what to do next."""
    search, best = tuned.search, tuned.best
    assert best.figures is not None
    console.print()
    _show_table(console, search, tuned.ranked[:MOST_SHOWN])
    say(
        console,
        f"Best, trial {best.number}: {settings_text(best.settings)}; validation accuracy"
        f" {accuracy_text(best.figures)}, in {duration(tuned.seconds)}.",
        style="bold",
    )
    num_given_up = sum(not trial.figures for trial in tuned.trials)
    num_bad = sum(trial.outcome == NOT_FINITE for trial in tuned.trials)
    if num_given_up:
        bad = f", {num_bad} of them not finite" if num_bad else ""
        say(console, f"{counted(num_given_up, 'trial', 'was', 'were')} given up on the way{bad}.")
    refused = [reason for trial in tuned.trials for reason in trial.refused]
    if refused:
        say(
            console,
            f"{counted(len(refused), 'draw')} of settings that do not go together, drawn again; the"
            f" first: {refused[0]}",
        )
    say(
        console,
        f"It is the best of {len(tuned.trials)} on the same {best.figures.num_images:,} validation"
        " images, and so in part the luckiest: expect less of new images. The test images were not"
        " looked at.",
        style="yellow",
    )
    files = ", ".join((BEST, TABLE, PICTURE))
    say(console, f"Saved in {tuned.folder}: {files}.")
    say(console, "Next:")
    say(console, f"  heptad train {as_word(tuned.folder / BEST)}  {_trains(search)}")


def _trains(search: Search) -> str:
    if search.recipe.validation:
        return "trains as the best trial did, and tests once"
    return "trains on all training images, and tests"


def _show_table(console: Console, search: Search, trials: list[Trial]) -> None:
    figures = [trial.figures for trial in trials if trial.figures]
    show_table(
        console,
        Cells("trial", [str(trial.number) for trial in trials]),
        [
            Cells("accuracy", [accuracy_text(each) for each in figures]),
            # A field that is searched may be called loss.
            Cells("validation loss", [f"{each.loss:.4f}" for each in figures]),
            *(
                Cells(name, [shown(trial.settings[name]) for trial in trials])
                for name in search.ranges
            ),
        ],
    )
