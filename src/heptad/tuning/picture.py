"""A search as a picture: what each trial gave, the best so far, and a panel for each field."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from heptad.plots import (
    BLUE,
    GRAY,
    ORANGE,
    as_png,
    in_percent,
    new_figure,
    with_grid,
    with_whole_numbers,
)
from heptad.tuning.ranges import Numbers, Range, shown
from heptad.tuning.search import Search, Trial

PANELS_A_ROW = 3
WIDTH, TOP_HEIGHT, ROW_HEIGHT = 11.0, 3.6, 2.6
# Trials of one choice beside one another instead of on top.
SPREAD = 0.25
MOST_NAMED = 12
# Of a range of numbers, beyond each end, so that no point lies on the edge.
MARGIN = 0.03
# Axes shorter than this have ticks at 2 and 5 too.
FEW_TENFOLDS = 200


def plot_trials(title: str, search: Search, trials: Sequence[Trial]) -> bytes:
    """Draw the trials of a search as a PNG: by number above, by each field that is searched below.

    At least one of them is complete. Trials that were given up are drawn where they ended.
    """
    num_rows = -(-len(search.ranges) // PANELS_A_ROW)
    figure = new_figure(
        WIDTH,
        TOP_HEIGHT + ROW_HEIGHT * num_rows,
        title=f"{title}: {len(trials)} trials",
        dpi=110,
    )
    grid = figure.add_gridspec(
        1 + num_rows, 1, height_ratios=[TOP_HEIGHT, *[ROW_HEIGHT] * num_rows]
    )
    top = figure.add_subplot(grid[0])
    _draw_course(top, trials)
    num_columns = min(PANELS_A_ROW, len(search.ranges))
    for place, (name, range_) in enumerate(search.ranges.items()):
        row, column = divmod(place, num_columns)
        if column == 0:
            cells = grid[1 + row].subgridspec(1, num_columns)
        panel = figure.add_subplot(cells[column], sharey=top)
        _draw_field(panel, name, range_, trials)
        if column == 0:
            panel.set_ylabel("validation (%)")
    for axes in figure.axes:
        with_grid(axes)
    return as_png(figure)


def _percent(trial: Trial) -> float:
    """Where a trial ended, or what it is judged by."""
    figures = trial.figures or trial.epochs[-1]
    return 100 * figures.accuracy


def _draw_course(axes: Any, trials: Sequence[Trial]) -> None:
    complete = [trial for trial in trials if trial.figures]
    given_up = [trial for trial in trials if trial.epochs and not trial.figures]
    numbers = [trial.number for trial in complete]
    figures = [trial.figures for trial in complete if trial.figures]
    percent, around = in_percent(
        [each.accuracy for each in figures], [each.interval for each in figures]
    )
    axes.errorbar(
        numbers,
        percent,
        yerr=around,
        color=BLUE,
        marker="o",
        markersize=5,
        linestyle="none",
        elinewidth=0.8,
        label="a trial, 95 % interval",
    )
    if given_up:
        axes.plot(
            [trial.number for trial in given_up],
            [_percent(trial) for trial in given_up],
            color=GRAY,
            marker="x",
            linestyle="none",
            label="given up on the way",
        )
    best = list(accumulate(percent, max))
    # Up to the last trial, complete or not.
    axes.step(
        [*numbers, trials[-1].number],
        [*best, best[-1]],
        where="post",
        color=ORANGE,
        label=f"the best so far; at the end {best[-1]:.2f} %",
    )
    axes.set_xlabel("trial")
    axes.set_ylabel("validation images\nclassified rightly (%)")
    axes.set_xlim(0.5, len(trials) + 0.5)
    with_whole_numbers(axes)
    # Above the axes: points may lie anywhere in them.
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)


def _draw_field(axes: Any, name: str, range_: Range, trials: Sequence[Trial]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    seen = [trial for trial in trials if trial.epochs]
    if isinstance(range_, Numbers):
        places = [trial.settings[name] for trial in seen]
        if range_.is_logarithmic:
            axes.set_xscale("log")
            is_short = range_.high < FEW_TENFOLDS * range_.low
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_short else (1,)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            margin = (range_.high / range_.low) ** MARGIN
            axes.set_xlim(range_.low / margin, range_.high * margin)
        else:
            margin = MARGIN * (range_.high - range_.low)
            axes.set_xlim(range_.low - margin, range_.high + margin)
    else:
        order = {shown(value): place for place, value in enumerate(range_.values)}
        places = [
            order[shown(trial.settings[name])] + SPREAD * (2 * trial.number / len(trials) - 1)
            for trial in seen
        ]
        if len(order) <= MOST_NAMED:
            axes.set_xticks([*order.values()], [*order], parse_math=False)
        axes.set_xlim(-0.5, len(order) - 0.5)
    for is_complete, colour, marker in ((False, GRAY, "x"), (True, BLUE, "o")):
        some = [k for k, trial in enumerate(seen) if bool(trial.figures) == is_complete]
        axes.plot(
            [places[k] for k in some],
            [_percent(seen[k]) for k in some],
            color=colour,
            marker=marker,
            markersize=5,
            alpha=0.8,
            linestyle="none",
        )
    best = max(seen, key=lambda trial: trial.rank)
    axes.plot(places[seen.index(best)], _percent(best), marker="o", color=ORANGE, markersize=8)
    axes.set_xlabel(name)
