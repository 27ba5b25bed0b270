"""Pictures of a training, its losses and accuracies, and of the accuracies of several.

Matplotlib is imported where something is drawn: a training that draws nothing needs none of it, and
it takes a while.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

# Blue and orange of Okabe & Ito, which people with any colour vision tell apart.
BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#8FA6B5"
# Of a picture of several runs.
BASE_INCHES, INCHES_A_RUN = 1.1, 0.42
LONGEST_NAME = 40


def plot_training(
    title: str,
    *,
    step_losses: Sequence[Sequence[float]],
    train_losses: Sequence[float],
    part: str,
    scored_losses: Sequence[float],
    accuracies: Sequence[float],
    intervals: Sequence[tuple[float, float]],
) -> bytes:
    """Draw losses and accuracies of a training as a PNG.

    step_losses: the losses of each epoch's steps. part: the images that were scored after each
    epoch, "test" or "validation". The others hold one value an epoch; accuracies and intervals are
    fractions.
    """
    figure = new_figure(11, 4.4, title=title)
    left, right = figure.subplots(1, 2)
    left.set_title("Loss", fontsize=11, loc="left")
    _draw_losses(left, step_losses, train_losses, scored_losses, part)
    right.set_title(f"Accuracy on the {part} images", fontsize=11, loc="left")
    percent, around = in_percent(accuracies, intervals)
    right.errorbar(
        range(1, len(percent) + 1),
        percent,
        yerr=around,
        color=ORANGE,
        marker="s",
        capsize=3,
        elinewidth=1,
        label=f"accuracy, 95 % interval; at the end {percent[-1]:.2f} %",
    )
    right.set_xlim(0.5, len(percent) + 0.5)
    right.set_ylabel("images classified rightly (%)")
    right.legend(frameon=False, fontsize=9, loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        with_whole_numbers(axes)
        with_grid(axes)
    return as_png(figure)


def _draw_losses(
    axes: Any,
    step_losses: Sequence[Sequence[float]],
    train_losses: Sequence[float],
    scored_losses: Sequence[float],
    part: str,
) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for epoch, losses in enumerate(step_losses):
        places = [epoch + (k + 1) / len(losses) for k in range(len(losses))]
        label = "each training step" if epoch == 0 else None
        marker = "." if len(losses) == 1 else None
        axes.plot(places, losses, color=GRAY, alpha=0.45, linewidth=0.6, marker=marker, label=label)
    epochs = range(1, len(train_losses) + 1)
    axes.plot(epochs, train_losses, color=BLUE, marker="o", label="training images, epoch mean")
    label = f"{part} images, after the epoch"
    axes.plot(epochs, scored_losses, color=ORANGE, marker="s", label=label)
    shown = [loss for losses in step_losses for loss in losses] + [*train_losses, *scored_losses]
    # The first steps of a training are far above the rest; on a linear scale they would hide it.
    if min(shown) > 0 and max(shown) > 10 * min(shown):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(0, len(epochs) + 0.2)
    axes.set_ylabel("loss (nats per image)")
    axes.legend(frameon=False, fontsize=9)


def plot_accuracies(
    title: str,
    *,
    names: Sequence[str],
    accuracies: Sequence[float],
    intervals: Sequence[tuple[float, float]],
) -> bytes:
    """Draw the accuracies of runs with their intervals, a line each from the top, as a PNG.

    Accuracies and intervals are fractions.
    """
    axes = new_figure(9, BASE_INCHES + INCHES_A_RUN * len(names)).subplots()
    axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    places = range(len(names))
    percent, around = in_percent(accuracies, intervals)
    axes.errorbar(percent, places, xerr=around, color=BLUE, marker="s", linestyle="none", capsize=4)
    for place, value, (low, high) in zip(places, percent, intervals, strict=True):
        axes.annotate(
            f"{value:.2f} % ({100 * low:.2f} to {100 * high:.2f})",
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(places, map(_shortened, names), parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("test images classified rightly (%)")
    with_grid(axes, axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return as_png(axes.figure)


def _shortened(name: str) -> str:
    """Leave out the middle of a name that would take the room of the picture."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def new_figure(width: float, height: float, *, title: str = "", dpi: int = 150) -> Any:
    """Give an empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        # A dollar sign in the name of a folder is no formula.
        figure.suptitle(title, fontsize=13, parse_math=False)
    return figure


def in_percent(
    accuracies: Sequence[float], intervals: Sequence[tuple[float, float]]
) -> tuple[list[float], list[list[float]]]:
    """Give accuracies in percent, and how far their intervals reach below and above, [2][N]."""
    percent = [100 * accuracy for accuracy in accuracies]
    below = [p - 100 * low for p, (low, _) in zip(percent, intervals, strict=True)]
    above = [100 * high - p for p, (_, high) in zip(percent, intervals, strict=True)]
    return percent, [below, above]


def with_whole_numbers(axes: Any) -> None:
    """Put ticks at whole numbers alone, of epochs or trials."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def with_grid(axes: Any, *, axis: str = "both") -> None:
    """Draw a light grid in the place of a frame."""
    axes.grid(axis=axis, color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def as_png(figure: Any) -> bytes:
    """Draw a figure."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Of letters that the font lacks, which are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(content, format="png")
    return content.getvalue()
