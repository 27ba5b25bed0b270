"""Charts as inline SVG: small, sharp, and coloured by the style sheet of the page. No torch.

Every text in them passes through `Markup.format`, which escapes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10

from markupsafe import Markup

# In units of the drawing, which are pixels where the page gives it that room: on a phone it does.
WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26
# A curve of more points than this would only be larger.
MOST_POINTS = 300
MOST_TICKS = 6
# Dots of more epochs than this would run into one another.
MOST_DOTS = 60
Pair = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """From values in low..high to places in start..end, linear or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Give the place of a value."""
        low, high, at = (self._on_axis(v) for v in (self.low, self.high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def _on_axis(self, value: float) -> float:
        return log10(value) if self.is_log else value

    def ticks(self) -> list[float]:
        """Give a few round values within the scale."""
        if not self.is_log:
            return round_values(self.low, self.high)
        powers = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
        for steps in ((1, 2, 5), (1,)):
            found = [k * 10.0**power for power in powers for k in steps]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) <= MOST_TICKS:
                break
        return found


def round_values(low: float, high: float) -> list[float]:
    """Give at most MOST_TICKS values in low..high, multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** (floor(log10(span)) - 1)
    while True:
        for step in (power, 2 * power, 5 * power):
            numbers = range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)
            if len(numbers) <= MOST_TICKS:
                return [number * step for number in numbers]
        power *= 10


def drawing(
    title: str, parts: Iterable[Markup], *, width: int = WIDTH, height: int = HEIGHT
) -> Markup:
    """Put parts together to an SVG that says its `title` to those who cannot see it."""
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>'
    ).format(width, height, title, title, Markup("").join(parts))


def axes(
    x: Scale,
    y: Scale,
    *,
    x_label: str,
    x_ticks: Sequence[float],
    percent: bool,
    x_percent: bool = False,
) -> Markup:
    """Draw a quiet grid with its numbers; the caption of the figure says what y is."""
    parts = []
    for value in y.ticks():
        at = round(y(value), 1)
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>'
            ).format(
                LEFT, WIDTH - RIGHT, at, at, LEFT - 6, at + 4, tick_text(value, percent=percent)
            )
        )
    bottom = HEIGHT - BOTTOM
    for value in x_ticks:
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                round(x(value), 1), bottom + 16, tick_text(value, percent=x_percent)
            )
        )
    if x_label:
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
                LEFT - 6, bottom + 16, x_label
            )
        )
    return Markup("").join(parts)


def tick_text(value: float, *, percent: bool) -> str:
    """Write the number at a tick."""
    return f"{100 * value:.6g} %" if percent else f"{value:.6g}"


def curve(points: Sequence[Pair], css: str) -> Markup:
    """Draw a line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<polyline class="{}" points="{}"/>').format(css, path)


def dots(points: Sequence[Pair], css: str, *, radius: float = 2.6) -> Markup:
    """Draw a dot at each point."""
    return Markup("").join(
        Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(css, x, y, radius)
        for x, y in points
    )


def marked(points: Sequence[Pair], css: str) -> Markup:
    """Draw a line through points, with a dot at each where they are few."""
    line = curve(points, css)
    return line + dots(points, f"{css}-dot") if len(points) <= MOST_DOTS else line


def band(lows: Sequence[Pair], highs: Sequence[Pair], css: str) -> Markup:
    """Fill what lies between two lines."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*lows, *reversed(highs)))
    return Markup('<polygon class="{}" points="{}"/>').format(css, path)


@dataclass(frozen=True)
class Curves:
    """What a training's charts show of one run: its losses and accuracies.

    step_losses: of each epoch's steps. train, scored: the losses of each epoch. accuracies: of each
    epoch, with their intervals, as fractions.
    """

    step_losses: tuple[tuple[float, ...], ...]
    train: tuple[float, ...]
    scored: tuple[float, ...]
    accuracies: tuple[float, ...]
    intervals: tuple[Pair, ...]


def loss_scale(losses: Sequence[float]) -> Scale:
    """Give the scale of losses: by logarithm where a linear one would hide most of them."""
    low, high = min(losses), max(losses)
    is_log = low > 0 and high > 10 * low
    if not is_log:
        low, high = min(low, 0.0), 1.05 * high or 1.0
    return Scale(low, high, HEIGHT - BOTTOM, TOP, is_log)


def epoch_scale(num_epochs: int, first: float) -> Scale:
    """Give the scale of epochs, from `first` on."""
    return Scale(first, num_epochs, LEFT + 8, WIDTH - RIGHT - 8)


def epoch_ticks(num_epochs: int) -> list[float]:
    """Give the epochs that are named below a chart: whole ones."""
    return [value for value in round_values(0, num_epochs) if value == int(value) and value >= 1]


def loss_chart(curves: Curves, part: str) -> Markup:
    """Draw the losses of one training: of every step, and of every epoch."""
    thinned = [_thinned(losses, len(curves.step_losses)) for losses in curves.step_losses]
    y = loss_scale(
        [v for epoch in thinned for low, _, high in epoch for v in (low, high)]
        + [*curves.train, *curves.scored]
    )
    num_epochs = len(curves.train)
    x = epoch_scale(num_epochs, 0)
    lows, means, highs = [], [], []
    for epoch, groups in enumerate(thinned):
        for k, (low, mean, high) in enumerate(groups):
            at = x(epoch + (k + 0.5) / len(groups))
            lows.append((at, y(low)))
            means.append((at, y(mean)))
            highs.append((at, y(high)))
    train = [(x(k + 1), y(loss)) for k, loss in enumerate(curves.train)]
    scored = [(x(k + 1), y(loss)) for k, loss in enumerate(curves.scored)]
    title = (
        f"Loss over {num_epochs} epochs: of each training step, the mean of the training images of"
        f" each epoch, and of the {part} images after it"
    )
    return drawing(
        title,
        [
            axes(x, y, x_label="epoch", x_ticks=epoch_ticks(num_epochs), percent=False),
            band(lows, highs, "steps"),
            curve(means, "step-mean"),
            marked(train, "train"),
            marked(scored, "scored"),
        ],
    )


def _thinned(losses: Sequence[float], num_epochs: int) -> list[tuple[float, float, float]]:
    """Give bounds and mean of groups of steps, few enough to be drawn; four fifths lie within."""
    num_groups = max(1, min(len(losses), MOST_POINTS // num_epochs))
    edges = [round(k * len(losses) / num_groups) for k in range(num_groups + 1)]
    groups = [sorted(losses[start:end]) for start, end in pairwise(edges)]
    return [
        (group[len(group) // 10], sum(group) / len(group), group[-1 - len(group) // 10])
        for group in groups
    ]


def accuracy_chart(curves: Curves, part: str, *, chosen: int | None) -> Markup:
    """Draw the accuracy after every epoch with its interval; a ring around the `chosen` epoch."""
    num_epochs = len(curves.accuracies)
    y = accuracy_scale(curves.intervals)
    x = epoch_scale(num_epochs, 0 if num_epochs == 1 else 0.5)
    points = [(x(k + 1), y(accuracy)) for k, accuracy in enumerate(curves.accuracies)]
    lows = [(place, y(low)) for (place, _), (low, _) in zip(points, curves.intervals, strict=True)]
    highs = [
        (place, y(high)) for (place, _), (_, high) in zip(points, curves.intervals, strict=True)
    ]
    whiskers = Markup("").join(
        Markup(
            '<line class="whisker" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>'
        ).format(place, low, high)
        for (place, low), (_, high) in zip(lows, highs, strict=True)
    )
    intervals = whiskers if num_epochs <= MOST_DOTS else band(lows, highs, "steps")
    ring = [dots([points[chosen - 1]], "ring", radius=6)] if chosen else []
    return drawing(
        f"Accuracy on the {part} images after each of {num_epochs} epochs, with 95 % intervals",
        [
            axes(x, y, x_label="epoch", x_ticks=epoch_ticks(num_epochs), percent=True),
            intervals,
            marked(points, "scored"),
            *ring,
        ],
    )


def accuracy_scale(intervals: Sequence[Pair]) -> Scale:
    """Give a scale that all intervals fit into."""
    low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
    margin = 0.06 * (high - low)
    return Scale(max(0.0, low - margin), min(1.0, high + margin), HEIGHT - BOTTOM, TOP)


def overlaid(series: Sequence[Sequence[float]], *, what: str, percent: bool) -> Markup:
    """Draw one value an epoch of several runs over one another; run k has the class `run-k`."""
    values = [value for one in series for value in one]
    num_epochs = max(map(len, series))
    y = accuracy_scale([(v, v) for v in values]) if percent else loss_scale(values)
    x = epoch_scale(num_epochs, 0 if num_epochs == 1 else 0.5)
    parts = [axes(x, y, x_label="epoch", x_ticks=epoch_ticks(num_epochs), percent=percent)]
    for number, one in enumerate(series):
        points = [(x(k + 1), y(value)) for k, value in enumerate(one)]
        parts += [curve(points, f"run run-{number}"), dots(points, f"run-dot run-{number}")]
    return drawing(f"{what} of {len(series)} runs after each epoch", parts)


def reliability_chart(bins: Sequence[tuple[int, float, float]]) -> Markup:
    """Draw accuracy against confidence. bins: images, mean confidence and accuracy of each bin."""
    side = HEIGHT - BOTTOM - TOP
    x, y = Scale(0, 1, LEFT + 4, LEFT + 4 + side + 90), Scale(0, 1, HEIGHT - BOTTOM, TOP)
    most = max(count for count, _, _ in bins)
    gaps = Markup("").join(
        Markup('<line class="gap" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>').format(
            x(confidence), y(confidence), y(accuracy)
        )
        for _, confidence, accuracy in bins
    )
    # The area of a dot says how many images it stands for; the smallest can still be seen.
    circles = Markup("").join(
        dots(
            [(x(confidence), y(accuracy))],
            "scored-dot",
            radius=round(2 + 7 * (count / most) ** 0.5, 1),
        )
        for count, confidence, accuracy in bins
    )
    ideal = curve([(x(0), y(0)), (x(1), y(1))], "ideal")
    ticks = [0, 0.25, 0.5, 0.75, 1]
    return drawing(
        "Reliability: how often answers are right, against the probability they are given with",
        [
            axes(x, y, x_label="", x_ticks=ticks, percent=True, x_percent=True),
            ideal,
            gaps,
            circles,
        ],
    )


def interval_mark(value: float | None, interval: Pair, *, low: float) -> Markup:
    """Draw a fraction with its interval on a scale from `low` to 1, for a cell of a table."""
    x = Scale(low, 1, 4, 116)
    parts = [Markup('<line class="grid" x1="4" x2="116" y1="8" y2="8"/>')]
    if value is not None:
        parts.append(
            Markup('<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="8" y2="8"/>').format(
                x(interval[0]), x(interval[1])
            )
        )
        parts.append(dots([(x(value), 8)], "scored-dot", radius=3.2))
    return Markup('<svg class="mark" viewBox="0 0 120 16" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def filter_drawing(rows: Sequence[Sequence[float]], *, largest: float, title: str) -> Markup:
    """Draw the weights of one filter as squares: one colour above 0, another below."""
    cells = []
    for y, row in enumerate(rows):
        for x, weight in enumerate(row):
            css = "above" if weight > 0 else "below"
            cells.append(
                Markup(
                    '<rect class="{}" x="{}" y="{}" width="1" height="1" opacity="{:.2f}"/>'
                ).format(css, x, y, abs(weight) / largest if largest else 0)
            )
    return drawing(title, cells, width=len(rows[0]), height=len(rows))
