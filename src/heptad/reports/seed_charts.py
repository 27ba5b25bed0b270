"""Charts of runs that differ in their seeds alone: a strip of dots, and curves over one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from markupsafe import Markup

from heptad.reports.charts import (
    BOTTOM,
    RIGHT,
    TOP,
    WIDTH,
    Pair,
    Scale,
    accuracy_scale,
    axes,
    curve,
    dots,
    drawing,
    epoch_scale,
    epoch_ticks,
    loss_scale,
    marked,
    tick_text,
)

# Of a strip of dots: where the names of its rows end, and its measures.
NAMES_END = 84
STRIP_HEIGHT, ROW_HEIGHT, LANE_HEIGHT, DOT, MOST_LANES = 84, 30, 8, 3.6, 5
# Thin lines of more runs would only make the page larger.
MOST_CURVES = 100


def seed_chart(
    named: Sequence[tuple[int, float]], mean: float, intervals: Mapping[str, Pair]
) -> Markup:
    """Draw a figure of several runs as a strip of dots, and below it their mean with intervals.

    named: each run's seed and accuracy. intervals: of the mean, by what they are over.
    """
    values = [value for _, value in named]
    ends = [bound for pair in intervals.values() for bound in pair]
    low, high = min([*values, *ends]), max([*values, *ends])
    margin = 0.04 * (high - low) or 0.001
    x = Scale(max(0.0, low - margin), min(1.0, high + margin), NAMES_END, WIDTH - RIGHT - 6)
    rows = {name: STRIP_HEIGHT + ROW_HEIGHT * (k + 0.5) for k, name in enumerate(intervals)}
    bottom = STRIP_HEIGHT + ROW_HEIGHT * len(intervals)
    parts = [_upright_grid(x, bottom), _row_name("each run", STRIP_HEIGHT / 2)]
    for (seed, value), lane in zip(named, lanes([x(value) for value in values]), strict=True):
        parts.append(
            Markup('<circle class="seed-dot" cx="{:.1f}" cy="{:.1f}" r="{}">{}</circle>').format(
                x(value),
                STRIP_HEIGHT / 2 + lane * LANE_HEIGHT,
                DOT,
                Markup("<title>{}</title>").format(f"seed {seed}: {100 * value:.2f} %"),
            )
        )
    at = x(mean)
    parts.append(
        Markup('<line class="ideal" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
            at, TOP, bottom
        )
    )
    for number, (name, (start, end)) in enumerate(intervals.items()):
        css = "over-seeds" if number == 0 else "over-images"
        parts += [_row_name(name, rows[name]), _mark(x, (start, mean, end), rows[name], css)]
    drawn = ", ".join(
        f"{name} {100 * start:.2f} to {100 * end:.2f} %" for name, (start, end) in intervals.items()
    )
    title = (
        f"Test accuracy of {len(named)} runs: {100 * min(values):.2f} to {100 * max(values):.2f} %,"
        f" mean {100 * mean:.2f} %; 95 % intervals of the mean: {drawn}"
    )
    return drawing(title, parts, height=bottom + BOTTOM)


def lanes(places: Sequence[float]) -> list[int]:
    """Give each dot a lane, 0 in the middle, so that none covers another while lanes last."""
    order = [0, *(sign * k for k in range(1, MOST_LANES) for sign in (1, -1))]
    ends = dict.fromkeys(order, -2.0 * DOT)
    found = [0] * len(places)
    for place in sorted(range(len(places)), key=places.__getitem__):
        free = [lane for lane in order if places[place] - ends[lane] >= 2 * DOT]
        found[place] = free[0] if free else min(order, key=ends.__getitem__)
        ends[found[place]] = places[place]
    return found


def _upright_grid(x: Scale, bottom: float) -> Markup:
    return Markup("").join(
        Markup(
            '<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'
            '<text class="tick" x="{0}" y="{3}" text-anchor="middle">{4}</text>'
        ).format(round(x(value), 1), TOP, bottom, bottom + 16, tick_text(value, percent=True))
        for value in x.ticks()
    )


def _row_name(name: str, y: float) -> Markup:
    return Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
        NAMES_END - 10, y + 4, name
    )


def _mark(x: Scale, values: tuple[float, float, float], y: float, css: str) -> Markup:
    """Draw the ends of an interval and what lies in it."""
    low, middle, high = (round(x(value), 1) for value in values)
    line = Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    ends = [line.format(css, at, at, y - 5, y + 5) for at in (low, high)]
    return Markup("").join(
        [line.format(css, low, high, y, y), *ends, dots([(middle, y)], f"{css}-dot", radius=4)]
    )


def seed_curves(series: Sequence[Sequence[float]], *, what: str, percent: bool) -> Markup:
    """Draw one value an epoch of each of several runs, and where all have one, their mean."""
    shown = series[:: ceil(len(series) / MOST_CURVES)]
    values = [value for one in series for value in one]
    num_epochs = max(map(len, series))
    y = accuracy_scale([(v, v) for v in values]) if percent else loss_scale(values)
    x = epoch_scale(num_epochs, 0 if num_epochs == 1 else 0.5)
    parts = [axes(x, y, x_label="epoch", x_ticks=epoch_ticks(num_epochs), percent=percent)]
    # A single epoch is no line.
    draw = curve if num_epochs > 1 else lambda points, css: dots(points, f"{css}-dot")
    parts += [draw([(x(k + 1), y(value)) for k, value in enumerate(one)], "seed") for one in shown]
    means = [sum(each) / len(each) for each in zip(*series, strict=False)]
    parts.append(marked([(x(k + 1), y(mean)) for k, mean in enumerate(means)], "scored"))
    return drawing(f"{what} of {len(series)} runs after each epoch, and its mean", parts)
