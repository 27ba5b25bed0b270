"""What a network says of named pictures: as lines, CSV or JSON, and as a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from heptad.classifier import AsDigit, Classifier, Prediction
from heptad.cli.display import say
from heptad.cli.streams import PlainConsole
from heptad.errors import ImageError
from heptad.files import write_bytes
from heptad.reports.answer_sheet import Shown, draw_sheet
from heptad.text import one_line, table_field

# A sheet of more would be too long to look at; it says so.
MOST_ON_A_SHEET = 100
# Wider names stand out of their column; with these, digits fit a terminal of 80.
WIDEST_NAME, WIDEST_CLASS = 32, 24
UNSURE = " (unsure)"


@dataclass(frozen=True)
class Wanted:
    """How answers are asked for. least_probability: below it, an answer is called unsure."""

    as_digit: AsDigit
    skips_bad_images: bool
    num_shown: int
    least_probability: float
    sheet: Path | None
    csv: Path | None
    as_json: bool


@dataclass(frozen=True)
class Answer:
    """One picture's answer. classes: as many as were asked for, likeliest first."""

    path: Path
    classes: tuple[tuple[str, float], ...]
    is_unsure: bool

    def as_document(self) -> dict[str, Any]:
        """Give it as plain values, for JSON."""
        named = [{"name": name, "probability": value} for name, value in self.classes]
        return {"image": str(self.path), "unsure": self.is_unsure, "classes": named}


def give_answers(classifier: Classifier, paths: Sequence[Path], wanted: Wanted) -> None:
    """Answer to pictures as is wanted; raises ImageError for a bad one, or if all are skipped.

    Unless bad ones are skipped, nothing is printed or written before all are answered; what is kept
    until then are the answers, never the pictures.
    """
    console = PlainConsole()
    lines = Lines.fitting(paths, classifier.classes, wanted)
    prints = not wanted.as_json and wanted.csv is None
    answers: list[Answer] = []
    bad: list[tuple[Path, ImageError]] = []
    with _counted(console, paths, is_silent=wanted.as_json) as counted:
        for prediction in classifier.predict(
            counted,
            as_digit=wanted.as_digit,
            on_bad_image=(lambda *found: bad.append(found)) if wanted.skips_bad_images else None,
        ):
            answers.append(_answer(prediction, wanted))
            if prints and wanted.skips_bad_images:
                lines.show(console, answers[-1:], is_first=len(answers) == 1)
    if not answers:
        raise ImageError("none of the pictures can be used.", hint=bad[0][1].message)
    if wanted.csv is not None:
        write_bytes(wanted.csv, as_csv(answers, bad))
    if wanted.sheet is not None:
        write_bytes(wanted.sheet, _sheet(classifier, answers[:MOST_ON_A_SHEET], wanted))
    if wanted.as_json:
        print(json.dumps(_documents(answers, bad), indent=2))
        return
    if prints and not wanted.skips_bad_images:
        lines.show(console, answers, is_first=True)
    _show_end(console, answers, bad, wanted)


@contextmanager
def _counted(
    console: Console, paths: Sequence[Path], *, is_silent: bool
) -> Iterator[Iterator[Path]]:
    """Give the paths, and show on a terminal how many were taken."""
    columns = (TextColumn("classifying"), BarColumn(), MofNCompleteColumn())
    is_hidden = is_silent or not console.is_terminal
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=is_hidden
    ) as bar:
        yield iter(bar.track(paths))


def _answer(prediction: Prediction, wanted: Wanted) -> Answer:
    is_unsure = prediction.classes[0][1] < wanted.least_probability
    return Answer(prediction.path, prediction.classes[: wanted.num_shown], is_unsure)


@dataclass(frozen=True)
class Lines:
    """Lays answers out in columns, a line each: picture, answer, probability, runners-up."""

    name_width: int
    class_width: int
    has_more: bool

    @classmethod
    def fitting(cls, paths: Sequence[Path], classes: Sequence[str], wanted: Wanted) -> Self:
        """Make the columns wide enough for all but very long names."""
        mark = UNSURE if wanted.least_probability else ""
        return cls(
            name_width=_width(map(str, paths), "picture", WIDEST_NAME),
            class_width=_width((name + mark for name in classes), "answer", WIDEST_CLASS),
            has_more=wanted.num_shown > 1 and len(classes) > 1,
        )

    def show(self, console: Console, answers: Sequence[Answer], *, is_first: bool) -> None:
        """Print a line for each answer, before the first a line of titles."""
        if is_first:
            titles = self._line("picture", "answer", "probability", "runners-up")
            say(console, titles, style="bold")
        for answer in answers:
            (name, value), *others = answer.classes
            said = name + (UNSURE if answer.is_unsure else "")
            others_said = ", ".join(f"{name} {100 * value:.2f} %" for name, value in others)
            line = self._line(str(answer.path), said, f"{100 * value:8.2f} %", others_said)
            say(console, line, style="yellow" if answer.is_unsure else None)

    def _line(self, path: str, said: str, probability: str, others: str) -> str:
        columns = ((path, self.name_width), (said, self.class_width), (probability, 11))
        parts = [_padded(one_line(text), width) for text, width in columns]
        return "  ".join([*parts, one_line(others)] if self.has_more else parts).rstrip()


def _width(texts: Iterable[str], title: str, most: int) -> int:
    return min(max(cell_len(one_line(text)) for text in (title, *texts)), most)


def _padded(text: str, width: int) -> str:
    # In cells of a terminal, of which some characters take two and some none.
    return text + " " * (width - cell_len(text))


def _show_end(
    console: Console,
    answers: Sequence[Answer],
    bad: Sequence[tuple[Path, ImageError]],
    wanted: Wanted,
) -> None:
    """Print what a list of lines does not say: where files are, what was passed over."""
    if wanted.csv is not None:
        say(console, f"{len(answers):,} answers in {wanted.csv}.")
    if wanted.sheet is not None:
        most = f"The first {MOST_ON_A_SHEET} are" if len(answers) > MOST_ON_A_SHEET else "All are"
        say(console, f"{most} shown in {wanted.sheet}.")
    if bad:
        say(console, f"Passed over, {len(bad):,} of {len(bad) + len(answers):,}:", style="yellow")
        for _, error in bad:
            say(console, f"  {error.message}")


def _documents(
    answers: Sequence[Answer], bad: Sequence[tuple[Path, ImageError]]
) -> list[dict[str, Any]]:
    errors = [{"image": str(path), "error": error.message} for path, error in bad]
    return [*(answer.as_document() for answer in answers), *errors]


def as_csv(answers: Sequence[Answer], bad: Sequence[tuple[Path, ImageError]]) -> bytes:
    """Give a table of the answers, those that could not be given at its end.

    Text is quoted throughout and begins with no sign of a formula: spreadsheets would act on it.
    """
    num_shown = max(len(answer.classes) for answer in answers)
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    ranks = ["", *(f"_{k}" for k in range(2, num_shown + 1))]
    pairs = [f"{title}{rank}" for rank in ranks for title in ("answer", "probability")]
    writer.writerow(["picture", *pairs[:2], "unsure", *pairs[2:], "error"])
    for answer in answers:
        cells = [cell for name, value in answer.classes for cell in (table_field(name), value)]
        unsure = "yes" if answer.is_unsure else "no"
        writer.writerow([table_field(str(answer.path)), *cells[:2], unsure, *cells[2:], ""])
    for path, error in bad:
        blanks = [""] * (len(pairs) + 1)
        writer.writerow([table_field(str(path)), *blanks, table_field(error.message)])
    return file.getvalue().encode()


def _sheet(classifier: Classifier, answers: Sequence[Answer], wanted: Wanted) -> bytes:
    def shown(answer: Answer) -> Shown:
        fed = classifier.feed(answer.path, as_digit=wanted.as_digit)
        return Shown(
            name=one_line(answer.path.name),
            picture=classifier.read(answer.path, channels=3),
            fed=fed.pixels,
            box=fed.box,
            classes=tuple((one_line(name), value) for name, value in answer.classes),
            is_unsure=answer.is_unsure,
        )

    return draw_sheet(map(shown, answers), num_answers=len(answers))
