"""What an evaluation is worth: as tables for people, as plain values, and as a row an image."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from math import isclose
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from heptad.cli.display import accuracy_text, say
from heptad.cli.tables import GAP, Cells, right, show_table
from heptad.measures import Bin, ClassMeasures, calibration, measure_classes
from heptad.records import Scores, wilson_interval
from heptad.stages.saving import score_metrics
from heptad.text import one_line, table_field

# A table of more classes shows those that fare worst; a matrix of more cannot be read.
MOST_CLASSES, NUM_WORST, LARGEST_MATRIX = 30, 15, 30
NUM_CONFUSIONS = 10


def scores_document(scores: Scores, classes: Sequence[str]) -> dict[str, Any]:
    """Give all figures of an evaluation as plain values, for JSON; what is 0 of 0 is None."""
    return {
        **score_metrics(scores),
        "classes": [
            {
                "name": name,
                "images": found.num_images,
                "correct": found.num_correct,
                "answered": found.num_answered,
                "precision": found.precision,
                "recall": found.recall,
                "recall_interval": _recall_interval(found),
                "f1": found.f1,
            }
            for name, found in zip(classes, measure_classes(scores.confusion), strict=True)
        ],
        "confusion": scores.confusion.tolist(),
        "calibration": [
            {
                "low": each.low,
                "high": each.high,
                "images": each.num_images,
                "correct": each.num_correct,
                "confidence": each.confidence,
                "accuracy": each.accuracy,
            }
            for each in calibration(scores.logits, scores.labels).bins
        ],
    }


def answers_csv(scores: Scores, classes: Sequence[str]) -> bytes:
    """Give a row for each image: its place in the data set, its class, the answer to it."""
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(["id", "class", "answer", "probability", "right"])
    names = [table_field(name) for name in classes]
    probabilities = scores.logits.double().softmax(1).amax(1).tolist()
    columns = (scores.ids.tolist(), scores.labels.tolist(), scores.predicted.tolist())
    for place, label, answer, probability in zip(*columns, probabilities, strict=True):
        right = "yes" if label == answer else "no"
        writer.writerow([place, names[label], names[answer], probability, right])
    return file.getvalue().encode()


def show_scores(console: Console, scores: Scores, classes: Sequence[str]) -> None:
    """Print the figures of an evaluation: of all images, by class, what is taken for what."""
    figures = score_metrics(scores)
    say(
        console,
        f"Test accuracy {accuracy_text(scores)}: {scores.num_correct:,} of"
        f" {scores.num_images:,} images.",
        style="bold",
    )
    likelihood = f"Negative log-likelihood {scores.negative_log_likelihood:.4f} nats an image"
    is_loss = isclose(scores.negative_log_likelihood, scores.loss, rel_tol=1e-3)
    other = "the loss" if is_loss else f"the loss is another one, {scores.loss:.4f}"
    say(console, f"{likelihood} ({other}).")
    if top := figures["test_top_k_accuracy"]:
        said = ", ".join(f"{k}: {_percent(value, 2)}" for k, value in top.items())
        say(console, f"The right class is among the likeliest {said}.")
    names = ("precision", "recall", "f1")
    macro = [f"{name} {_percent(figures[f'test_macro_{name}'], 2)}" for name in names]
    say(console, f"Means over classes: {', '.join(macro).replace('f1', 'F1')}.")
    console.print()
    _show_classes(console, measure_classes(scores.confusion), classes)
    _show_confusion(console, scores.confusion.tolist(), classes)
    _show_calibration(console, scores)


def _show_classes(
    console: Console, measures: Sequence[ClassMeasures], classes: Sequence[str]
) -> None:
    rows = list(zip(classes, measures, strict=True))
    absent = [name for name, found in rows if not found.num_images]
    if len(rows) > MOST_CLASSES:
        rows = [(name, found) for name, found in rows if found.num_images]
        rows = sorted(rows, key=lambda row: row[1].recall or 0)[:NUM_WORST]
        text = f"The {len(rows)} of {len(classes)} classes with the lowest recall (--json has all):"
        say(console, text)
    found = [measured for _, measured in rows]
    show_table(
        console,
        Cells("class", [name for name, _ in rows]),
        [
            Cells("images", [f"{each.num_images:,}" for each in found]),
            Cells("recall", [_percent(each.recall) for each in found]),
            Cells("95 % interval", [_range(_recall_interval(each)) for each in found]),
            Cells("precision", [_percent(each.precision) for each in found]),
            Cells("F1", [_percent(each.f1) for each in found]),
            Cells("answered", [f"{each.num_answered:,}" for each in found]),
        ],
    )
    if absent:
        named = ", ".join(absent[:NUM_WORST]) + (", …" if len(absent) > NUM_WORST else "")
        say(console, f"No image of {len(absent)} classes: {named}.", style="yellow")
        console.print()


def _show_confusion(
    console: Console, confusion: Sequence[Sequence[int]], classes: Sequence[str]
) -> None:
    """Print the matrix where it fits, and the most frequent confusions in words."""
    if len(classes) <= LARGEST_MATRIX:
        _show_matrix(console, confusion, classes)
    wrong = sorted(
        (
            (-count, k, j)
            for k, row in enumerate(confusion)
            for j, count in enumerate(row)
            if count and j != k
        ),
    )
    if not wrong:
        say(console, "No image was answered wrongly.", style="green")
    else:
        more = f", of {len(wrong):,} pairs" if len(wrong) > NUM_CONFUSIONS else ""
        say(console, f"Taken for another most often{more}:")
        for count, k, j in wrong[:NUM_CONFUSIONS]:
            part = -count / sum(confusion[k])
            say(
                console,
                f"  {classes[k]} for {classes[j]}: {-count:,}, {_percent(part)} of its images",
            )
    console.print()


def _show_matrix(
    console: Console, confusion: Sequence[Sequence[int]], classes: Sequence[str]
) -> None:
    """Print the confusion matrix if it fits, without its diagonal if it fits only so."""
    names = [one_line(name) for name in classes]
    corner = "is \\ said"
    for has_diagonal in (True, False):
        rows = [
            [_cell(count, is_right=j == k, is_shown=has_diagonal) for j, count in enumerate(row)]
            for k, row in enumerate(confusion)
        ]
        gap = GAP if has_diagonal else 1
        widths = [max(map(cell_len, column)) + gap for column in zip(names, *rows, strict=True)]
        if max(map(cell_len, (*names, corner))) + sum(widths) > console.width:
            continue
        note = "" if has_diagonal else "; right answers (=) are in the table above"
        say(console, f"Rows: the class; columns: the answer{note}.")
        table = Table(corner, *map(right, names), box=None, pad_edge=False, padding=(0, gap, 0, 0))
        for name, row in zip(names, rows, strict=True):
            table.add_row(name, *row)
        console.print(table)
        console.print()
        return


def _cell(count: int, *, is_right: bool, is_shown: bool) -> str:
    if is_right and not is_shown:
        return "="
    return str(count) if count else "."


def _show_calibration(console: Console, scores: Scores) -> None:
    found = calibration(scores.logits, scores.labels)
    say(
        console,
        f"Calibration error {_percent(found.error, 2)}: how far the probability of an answer is,"
        " on average, from how often such answers are right.",
    )
    filled = [each for each in found.bins if each.num_images]
    show_table(
        console,
        Cells("probability", [_bin_name(each) for each in filled]),
        [
            Cells("images", [f"{each.num_images:,}" for each in filled]),
            Cells("mean", [_percent(each.confidence) for each in filled]),
            Cells("right", [_percent(each.accuracy) for each in filled]),
        ],
    )


def _bin_name(each: Bin) -> str:
    return f"{100 * each.low:.0f} to {100 * each.high:.0f} %"


def _recall_interval(found: ClassMeasures) -> tuple[float, float] | None:
    if not found.num_images:
        return None
    return wilson_interval(found.num_correct, found.num_images)


def _percent(fraction: float | None, num_decimals: int = 1) -> str:
    return "-" if fraction is None else f"{100 * fraction:.{num_decimals}f} %"


def _range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
