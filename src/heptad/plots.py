"""Pictures of a training, its losses and accuracies, and of the accuracies of several."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

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
    # Here, since a training that draws nothing needs none of it, and it takes a while to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    figure = Figure(figsize=(11, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    left, right = figure.subplots(1, 2)
    epochs = range(1, len(train_losses) + 1)

    left.set_title("Loss", fontsize=11, loc="left")
    for epoch, losses in enumerate(step_losses):
        places = [epoch + (k + 1) / len(losses) for k in range(len(losses))]
        label = "each training step" if epoch == 0 else None
        marker = "." if len(losses) == 1 else None
        left.plot(places, losses, color=GRAY, alpha=0.45, linewidth=0.6, marker=marker, label=label)
    left.plot(epochs, train_losses, color=BLUE, marker="o", label="training images, epoch mean")
    label = f"{part} images, after the epoch"
    left.plot(epochs, scored_losses, color=ORANGE, marker="s", label=label)
    shown = [loss for losses in step_losses for loss in losses] + [*train_losses, *scored_losses]
    # The first steps of a training are far above the rest; on a linear scale they would hide it.
    if min(shown) > 0 and max(shown) > 10 * min(shown):
        left.set_yscale("log")
        left.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
        left.yaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("epoch")
    left.set_ylabel("loss (nats per image)")
    left.legend(frameon=False, fontsize=9)

    right.set_title(f"Accuracy on the {part} images", fontsize=11, loc="left")
    percent = [100 * accuracy for accuracy in accuracies]
    low = [100 * bounds[0] for bounds in intervals]
    high = [100 * bounds[1] for bounds in intervals]
    right.errorbar(
        epochs,
        percent,
        yerr=[
            [p - b for p, b in zip(percent, low, strict=True)],
            [b - p for p, b in zip(percent, high, strict=True)],
        ],
        color=ORANGE,
        marker="s",
        capsize=3,
        elinewidth=1,
        label=f"accuracy, 95 % interval; at the end {percent[-1]:.2f} %",
    )
    left.set_xlim(0, len(epochs) + 0.2)
    right.set_xlim(0.5, len(epochs) + 0.5)
    right.set_xlabel("epoch")
    right.set_ylabel("images classified rightly (%)")
    right.legend(frameon=False, fontsize=9, loc="lower right")

    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = BASE_INCHES + INCHES_A_RUN * len(names)
    figure = Figure(figsize=(9, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, fontsize=11, loc="left")
    places = range(len(names))
    percent = [100 * accuracy for accuracy in accuracies]
    below = [100 * (a - low) for a, (low, _) in zip(accuracies, intervals, strict=True)]
    above = [100 * (high - a) for a, (_, high) in zip(accuracies, intervals, strict=True)]
    axes.errorbar(
        percent, places, xerr=[below, above], color=BLUE, marker="s", linestyle="none", capsize=4
    )
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
    # A dollar sign in the name of a folder is no formula.
    axes.set_yticks(places, map(_shortened, names), parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("test images classified rightly (%)")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Of letters that the font lacks, which are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(content, format="png")
    return content.getvalue()


def _shortened(name: str) -> str:
    """Leave out the middle of a name that would take the room of the picture."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}"
