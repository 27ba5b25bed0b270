"""The report of a run, or of several side by side: one HTML file that needs nothing but itself.

No script is in it, and its content-security policy allows none; every chart is drawn within it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from heptad.errors import RunError, damage_in
from heptad.files import write_bytes
from heptad.pages import PALETTE, templates_in
from heptad.records import Run
from heptad.reports import words
from heptad.reports.card import model_card
from heptad.reports.charts import (
    accuracy_chart,
    interval_mark,
    loss_chart,
    overlaid,
    reliability_chart,
)
from heptad.reports.figures import MOST_CLASSES, MOST_EPOCHS, TOP, RunFigures
from heptad.reports.looks import Looks, look
from heptad.reports.verdict import judge
from heptad.run_folder import CARD, ENVIRONMENT, REPORT

TEMPLATES = Path(__file__).parent / "templates"
# Colours of Okabe & Ito tell so many runs apart; more are one colour too few.
MOST_RUNS = 6


@dataclass(frozen=True)
class Written:
    """What was written, and why some pictures are missing in it."""

    report: Path
    card: Path | None
    missing: tuple[str, ...] = ()

    def as_document(self) -> dict[str, Any]:
        """Give it as plain values, for JSON."""
        return {
            "report": str(self.report),
            "model_card": str(self.card) if self.card else None,
            "missing": list(self.missing),
        }


def write_report(
    run: Run, path: Path | None = None, *, device: str = "auto", threads: int | None = None
) -> Written:
    """Write a run's report and model card into its folder, or the report alone to `path`.

    Raises DamagedError if the run's weights are not the ones that were saved, SaveError if a file
    cannot be written. Pictures that cannot be had cost a sentence in the report.
    """
    figures = RunFigures(run)
    looks = look(figures, device=device, threads=threads)
    target = path or run.folder / REPORT
    write_bytes(target, report_page(figures, looks).encode())
    card = None
    if path is None:
        card = run.folder / CARD
        write_bytes(card, model_card(figures).encode())
    return Written(target, card, looks.missing)


def write_side_by_side(runs: Sequence[Run], path: Path) -> Written:
    """Write one report of two to six runs; raises RunError for more, SaveError."""
    if len(runs) > MOST_RUNS:
        raise RunError(f"a report shows at most {MOST_RUNS} runs side by side, not {len(runs)}.")
    write_bytes(path, side_by_side_page([RunFigures(run) for run in runs]).encode())
    return Written(path, None)


def report_page(figures: RunFigures, looks: Looks) -> str:
    """Give the page of one run."""
    run = figures.run
    verdict = judge(run)
    part = run.epochs[0].part
    chosen = run.metrics["selected_epoch"]
    bins = [
        (each.num_images, each.confidence, each.accuracy)
        for each in figures.calibration.bins
        if each.confidence is not None and each.accuracy is not None
    ]
    return render(
        "run.html",
        title=f"{run.recipe.name} on {run.recipe.data}",
        figures=figures,
        run=run,
        looks=looks,
        verdict=verdict,
        part=part,
        lead=words.training_words(run),
        result=words.result_words(run),
        loss=words.loss_words(run.recipe),
        not_done=words.not_done(run),
        loss_chart=loss_chart(figures.curves, part),
        accuracy_chart=accuracy_chart(figures.curves, part, chosen=chosen),
        reliability_chart=reliability_chart(bins),
        epochs=shown_epochs(run),
        class_rows=class_rows(figures),
        marks_from=marks_from(figures),
        confusion_cells=confusion_cells(figures) if figures.has_readable_confusion else None,
        command=words.command_words(run),
        environment=environment_of(run),
        top=TOP,
    )


def shown_epochs(run: Run) -> list[Any]:
    """Choose the epochs of the table: all, or some that are evenly spread, and the chosen one."""
    epochs = run.epochs
    if len(epochs) <= MOST_EPOCHS:
        return list(epochs)
    last = len(epochs) - 1
    places = {round(k * last / (MOST_EPOCHS - 1)) for k in range(MOST_EPOCHS)}
    chosen = run.metrics["selected_epoch"]
    places |= {chosen - 1} if chosen else set()
    return [epochs[place] for place in sorted(places)]


def marks_from(figures: RunFigures) -> float:
    """Give the round fraction at which the scale of the classes' intervals begins."""
    lowest = min(row.interval[0] for row in figures.classes if row.measures.num_images)
    return max(k / 20 for k in range(20) if k / 20 <= lowest)


def class_rows(figures: RunFigures) -> list[tuple[Any, Any]]:
    """Give the rows of the table of classes, each with its drawing; of very many, the worst."""
    rows = list(figures.classes)
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: 2.0 if row.measures.f1 is None else row.measures.f1)
        rows = rows[:MOST_CLASSES]
    low = marks_from(figures)
    return [(row, interval_mark(row.measures.recall, row.interval, low=low)) for row in rows]


def confusion_cells(figures: RunFigures) -> list[list[tuple[int, float]]]:
    """Give the confusion matrix: counts, each with how strongly its cell is shaded, 0..1.

    Mistakes alone are shaded, by the root of their share of the largest: those on the diagonal are
    a hundred times as many, and would leave nothing else to be seen.
    """
    rows = figures.run.scores.confusion.tolist()
    wrong = [n for k, row in enumerate(rows) for j, n in enumerate(row) if j != k]
    most = max([1, *wrong])
    return [
        [(n, 0.0 if j == k else (n / most) ** 0.5) for j, n in enumerate(row)]
        for k, row in enumerate(rows)
    ]


def environment_of(run: Run) -> dict[str, Any]:
    """Give what a run was carried out with, by name."""
    path = run.folder / ENVIRONMENT
    with damage_in(path):
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        packages = dict(document["packages"])
    rest = {key.replace("_", " "): value for key, value in document.items() if key != "packages"}
    return rest | packages


def side_by_side_page(figures: Sequence[RunFigures]) -> str:
    """Give the page of several runs."""
    runs = [each.run for each in figures]
    parts = {run.epochs[0].part for run in runs}
    part = parts.pop() if len(parts) == 1 else "test or validation"
    return render(
        "runs.html",
        title=f"{len(runs)} runs side by side",
        figures=figures,
        runs=runs,
        part=part,
        verdicts=[judge(run) for run in runs],
        loss_chart=overlaid(
            [each.curves.scored for each in figures],
            what=f"Loss on the {part} images",
            percent=False,
        ),
        accuracy_chart=overlaid(
            [each.curves.accuracies for each in figures],
            what=f"Accuracy on the {part} images",
            percent=True,
        ),
        differences=words.field_differences([run.recipe for run in runs]),
        same_test=_have_same_test(runs),
        commands=[words.command_words(run) for run in runs],
    )


def _have_same_test(runs: Sequence[Run]) -> bool:
    """Tell whether the runs were tested on images of the same places and labels of one set."""
    first = runs[0]
    return all(
        run.recipe.data == first.recipe.data
        and run.metrics["classes"] == first.metrics["classes"]
        and run.scores.ids.equal(first.scores.ids)
        and run.scores.labels.equal(first.scores.labels)
        for run in runs
    )


@cache
def _templates() -> jinja2.Environment:
    environment = templates_in(TEMPLATES)
    environment.filters |= {
        "percent": _unbroken_percent,
        "interval": words.interval_words,
        "points": lambda difference: _unbroken(words.points(difference)),
        "duration": lambda seconds: _unbroken(words.duration(seconds)),
        "count": lambda number: f"{number:,}",
        "setting": lambda value: "none" if value is None else str(value),
    }
    return environment


def _unbroken(figure: str) -> Markup:
    """Keep a figure and its unit on one line."""
    return Markup("&nbsp;").join(figure.split(" "))


def _unbroken_percent(fraction: float, digits: int = 2) -> Markup:
    return _unbroken(words.percent(fraction, digits))


def render(template: str, **values: Any) -> str:
    """Fill a template of ours, by its name."""
    # The style sheet is ours, as the templates are.
    style = Markup(PALETTE + (TEMPLATES / "report.css").read_text(encoding="utf-8"))  # noqa: S704
    return _templates().get_template(template).render(**values, style=style)
