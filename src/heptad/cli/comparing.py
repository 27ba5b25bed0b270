"""A comparison of runs for people: on a terminal, as CSV, as LaTeX, as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from heptad.cli.display import say
from heptad.cli.tables import Cells, show_table
from heptad.plots import plot_accuracies
from heptad.reports.comparison import ComparedRun, Comparison, Pair, p_text
from heptad.text import latex_field, one_line, table_field

NOT_KNOWN = "-"


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print the runs' figures, what differs in their recipes, and what the tests say."""
    runs = comparison.runs
    key = Cells("run", [run.name for run in runs])
    rows = [_figures(run) for run in runs]
    show_table(console, key, [Cells(title, [row[title] for row in rows]) for title in rows[0]])
    if comparison.differing:
        say(console, "What differs in their recipes:", style="bold")
        differing = comparison.differing.items()
        show_table(console, key, [Cells(name, [*map(_value, own)]) for name, own in differing])
    else:
        say(console, "Their recipes are the same.")
        console.print()
    for pair in comparison.pairs:
        say(console, pair.sentence, style="green" if pair.is_difference else None)
    console.print()
    for note in comparison.notes:
        say(console, note, style="yellow")
    say(
        console,
        "Intervals and tests are over the test images; with another seed each network would be"
        " another one.",
        style="dim",
    )


def _figures(run: ComparedRun) -> dict[str, str]:
    """Write the figures of a run, by their titles."""
    scores, figures = run.scores, run.figures
    low, high = scores.interval

    def count(number: float | None, unit: str = "") -> str:
        return NOT_KNOWN if number is None else f"{number:,.0f}{unit}"

    def seconds(number: float | None) -> str:
        return NOT_KNOWN if number is None else f"{number:,.1f} s"

    weights = NOT_KNOWN if run.weights_bytes is None else f"{run.weights_bytes / 1e6:,.2f} MB"
    return {
        "accuracy": f"{100 * scores.accuracy:.2f} %",
        "95 % interval": f"{100 * low:.2f} to {100 * high:.2f}",
        "loss": f"{scores.loss:.4f}",
        "macro F1": f"{100 * run.macro_f1:.2f} %",
        "time": seconds(figures["seconds"]),
        "trunk": seconds(figures["trunk_seconds"]),
        "training": seconds(figures["train_seconds"]),
        "weights": weights,
        "parameters": count(figures["parameters"]),
        "trained": count(figures["trained_parameters"]),
    }


def _value(value: Any) -> str:
    return "none" if value is None else str(value)


def as_csv(comparison: Comparison) -> bytes:
    """Give a table with a row for each run: its figures, its recipe, its tests with the others."""
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    rows = [dict(_csv_cells(comparison, place)) for place in range(len(comparison.runs))]
    writer.writerow([table_field(title) for title in rows[0]])
    for row in rows:
        writer.writerow([table_field(v) if isinstance(v, str) else v for v in row.values()])
    return file.getvalue().encode()


def _csv_cells(comparison: Comparison, place: int) -> Iterator[tuple[str, Any]]:
    run = comparison.runs[place]
    document = run.as_document()
    low, high = document.pop("test_accuracy_interval")
    for title, value in document.items():
        yield title, "" if value is None else value
        if title == "test_accuracy":
            yield from (("test_accuracy_low", low), ("test_accuracy_high", high))
    for title, values in comparison.differing.items():
        is_number = isinstance(values[place], (int, float)) and not isinstance(values[place], bool)
        yield title, values[place] if is_number else _value(values[place])
    pairs = {(pair.first, pair.second): pair for pair in comparison.pairs}
    for other in comparison.runs:
        pair = pairs.get((run.name, other.name)) or pairs.get((other.name, run.name))
        is_first = pair is not None and pair.first == run.name
        only = pair and (pair.counts.only_first if is_first else pair.counts.only_second)
        yield f"right where {other.name} is not", "" if only is None else only
        yield f"p (Holm) against {other.name}", "" if pair is None else pair.p_holm


def as_latex(comparison: Comparison) -> bytes:
    """Give two tables in LaTeX, of the runs and of their pairs, in booktabs' manner."""
    runs = comparison.runs
    figures = [_figures(run) for run in runs]
    titles = ["run", *figures[0], *comparison.differing]
    rows = [
        [run.name, *own.values(), *(_value(v[k]) for v in comparison.differing.values())]
        for k, (run, own) in enumerate(zip(runs, figures, strict=True))
    ]
    pairs = [[latex_field(cell) for cell in _pair_cells(pair)] for pair in comparison.pairs]
    pair_titles = ["pair", "only first", "only second", "difference", "95 % interval", "p", "Holm"]
    lines = [
        r"% Made by `heptad compare`; needs \usepackage{booktabs}. Intervals: Wilson's of each",
        r"% accuracy, Newcombe's (1998, method 10) of each difference, in points. p: McNemar's",
        r"% exact test; Holm: p corrected for the number of pairs.",
        *_tabular(titles, [[latex_field(cell) for cell in row] for row in rows]),
        "",
        *_tabular(pair_titles, [[*row[:3], *map(_signed, row[3:])] for row in pairs]),
    ]
    return ("\n".join(lines) + "\n").encode()


def _pair_cells(pair: Pair) -> list[str]:
    low, high = pair.interval
    return [
        f"{pair.first}, {pair.second}",
        f"{pair.counts.only_first:,}",
        f"{pair.counts.only_second:,}",
        f"{100 * pair.counts.difference:+.2f}",
        f"{100 * low:+.2f} to {100 * high:+.2f}",
        p_text(pair.p).removeprefix("p ").removeprefix("= "),
        p_text(pair.p_holm).removeprefix("p ").removeprefix("= "),
    ]


def _signed(number: str) -> str:
    """Have LaTeX set the signs of numbers as such, not as hyphens."""
    return number.replace("-", "$-$").replace("+", "$+$")


def _tabular(titles: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Give the lines of a table whose cells are LaTeX already."""
    yield rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}"
    yield r"\toprule"
    yield " & ".join(map(latex_field, titles)) + r" \\"
    yield r"\midrule"
    for row in rows:
        yield " & ".join(row) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}"


def draw(comparison: Comparison) -> bytes:
    """Draw the accuracies with their intervals as a PNG."""
    scores = [run.scores for run in comparison.runs]
    return plot_accuracies(
        f"Accuracy on {scores[0].num_images:,} test images, with 95 % intervals",
        names=[one_line(run.name) for run in comparison.runs],
        accuracies=[each.accuracy for each in scores],
        intervals=[each.interval for each in scores],
    )
