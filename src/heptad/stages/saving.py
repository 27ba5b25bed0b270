"""Stage 7: what a run leaves behind, each file whole or absent, with relative names only.

A run folder can be moved and loaded without Heptad: the weights are a plain state dict with
torchvision's own names.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import os
import pickle
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from heptad.errors import NotFiniteError, OutputError, RecipeError, SaveError
from heptad.files import digest_of, sha256_of, user_path, write_bytes, write_json, writing
from heptad.plots import plot_training
from heptad.recipe import Recipe
from heptad.records import EpochReport, Run, Scores, StepReport

logger = logging.getLogger("heptad")

RUN_FILES = ("recipe.json", "environment.json", "metrics.jsonl", "metrics.json", "predictions.npz")
RUNS_FOLDER = Path("runs")
# Ends the name of the small file of what was trained, with a hash of the rest.
TRAINED_PART = ".trained.safetensors"
# Of `metrics.json`; a run of another one is not read.
SCHEMA = 1
PACKAGES = ("heptad", "torch", "torchvision", "numpy", "pillow")
LOG_INTERVAL_S = 1.0


def check_output(out: str | None, recipe: Recipe) -> None:
    """See that a run folder could be made at `out`, before any work is done; makes nothing.

    Raises OutputError if it holds a run already, lies under a file, or cannot be written, and
    RecipeError if the recipe gives a file of its own the name of another.
    """
    if recipe.training_stats in RUN_FILES:
        raise RecipeError(
            f"training_stats is {recipe.training_stats}, which every run has for another purpose;"
            f" taken: {', '.join(RUN_FILES)}."
        )
    folder = user_path(out) if out else RUNS_FOLDER
    if out and folder.is_dir():
        _refuse_run(folder)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise OutputError(f"no run folder can be made at {out or folder}: {nearest} is a file.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(
            f"no run folder can be made at {out or folder}: {nearest} cannot be written."
        )


def _refuse_run(folder: Path) -> None:
    """Raise OutputError if a folder holds a run, finished or not."""
    taken = [name for name in RUN_FILES if (folder / name).exists()]
    taken += sorted(path.name for path in folder.glob("*.pth"))
    if "metrics.json" in taken:
        raise OutputError(
            f"the folder {folder} holds a run already.",
            hint="choose another --out, or leave it out for the next runs/NAME-NUMBER",
        )
    if taken:
        raise OutputError(
            f"the folder {folder} holds a run that was not finished: {taken[0]} is there.",
            hint="remove the folder if nothing in it is needed, or choose another --out",
        )


def make_run_folder(out: str | None, *, name: str) -> Path:
    """Make the folder `out`, or runs/NAME-NUMBER with the first number that is free, and claim it.

    Of two runs that start at once in one folder, one gets it. Raises OutputError if it cannot be
    made or is taken.
    """
    try:
        if out:
            folder = user_path(out)
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_run(folder)
            # Made by this call or not at all, so that of two runs only one goes on.
            (folder / "recipe.json").touch(exist_ok=False)
            return folder
        RUNS_FOLDER.mkdir(exist_ok=True)
        number = 1
        while True:
            folder = RUNS_FOLDER / f"{name}-{number}"
            try:
                # Two runs that start at once cannot both make it.
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder
    except FileExistsError as error:
        raise OutputError(f"another run has just begun in {out}.") from error
    except OSError as error:
        raise OutputError(
            f"no run folder can be made at {out or RUNS_FOLDER}: {error.strerror}."
        ) from error


def environment() -> dict[str, Any]:
    """Say what a run was carried out with: versions, system, processor."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


@contextmanager
def metrics_log(path: Path) -> Iterator[Callable[[StepReport | EpochReport], None]]:
    """Open `metrics.jsonl`; the function given writes a line for every step and epoch reported.

    Losses are read from the device once a second and at each epoch's end, not at every step. The
    lines hold no times, so that equal runs write equal files. Raises NotFiniteError for a loss that
    is NaN or infinite, SaveError if the file cannot be written.
    """
    waiting: list[StepReport] = []
    written_at = perf_counter()

    def write(report: StepReport | EpochReport) -> None:
        nonlocal written_at
        is_step = isinstance(report, StepReport)
        if isinstance(report, StepReport):
            waiting.append(report)
        if is_step and perf_counter() - written_at < LOG_INTERVAL_S:
            return
        lines = [_step_line(step) for step in waiting]
        if isinstance(report, EpochReport):
            lines.append(_epoch_line(report))
        waiting.clear()
        _append(path, lines)
        written_at = perf_counter()

    _append(path, [])
    try:
        yield write
    finally:
        _append(path, [_step_line(step) for step in waiting])


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    except OSError as error:
        raise SaveError(f"{path} could not be written: {error.strerror or error}.") from error


def _step_line(step: StepReport) -> dict[str, Any]:
    loss = step.loss
    if not isfinite(loss):
        raise NotFiniteError(f"the loss of step {step.step}, epoch {step.epoch}, is {loss}.")
    return {
        "step": step.step,
        "epoch": step.epoch,
        "loss": loss,
        "learning_rate": step.learning_rate,
    }


def _epoch_line(report: EpochReport) -> dict[str, Any]:
    return {
        "epoch": report.epoch,
        "train_loss": report.train_loss,
        "test_loss": report.scores.loss,
        "test_accuracy": report.scores.accuracy,
    }


def save_weights(path: Path, network: nn.Module) -> None:
    """Save the whole network as a plain state dict, contiguous, on the CPU; raises SaveError."""
    state = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    with writing(path) as file:
        try:
            torch.save(state, file)
        # What PyTorch's writer makes of a full disk.
        except RuntimeError as error:
            raise OSError(None, str(error).splitlines()[0]) from error


def save_trained_part(path: Path, network: nn.Module, unmoved: Mapping[str, str]) -> None:
    """Save what differs from the start weights as safetensors; raises SaveError.

    unmoved: SHA-256 by name of all the rest, whose common hash is noted in the file as `rest`.
    """
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in network.state_dict().items()
        if name not in unmoved
    }
    write_bytes(path, safetensors.torch.save(state, metadata={"rest": digest_of(unmoved)}))


def training_stats(recipe: Recipe, epochs: Sequence[EpochReport]) -> dict[str, Any]:
    """Give losses and accuracies as plain lists; accuracies in percent, as such files hold them.

    `train_losses` are means over images: a mean of batch means would count a short last batch too
    much.
    """
    return {
        "train_losses": [epoch.train_loss for epoch in epochs],
        "step_losses": [loss for epoch in epochs for loss in epoch.step_losses],
        "test_losses": [epoch.scores.loss for epoch in epochs],
        "test_accuracies": [100 * epoch.scores.accuracy for epoch in epochs],
        "train_losses_are": "means over images, not over batches",
        "recipe": recipe.model_dump(),
    }


# The pickle is for notebooks that read one; Heptad itself never reads any. Plain types alone.
STATS_WRITERS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    ".json": lambda stats: (json.dumps(stats, indent=2) + "\n").encode(),
    ".pkl": lambda stats: pickle.dumps(stats, protocol=4),
}


def save_training_stats(path: Path, recipe: Recipe, epochs: Sequence[EpochReport]) -> None:
    """Save `training_stats` as JSON or as a pickle, by the suffix of `path`; raises SaveError."""
    write_bytes(path, STATS_WRITERS[path.suffix](training_stats(recipe, epochs)))


def save_plot(path: Path, title: str, epochs: Sequence[EpochReport]) -> None:
    """Save the picture of losses and accuracies as a PNG; raises SaveError."""
    picture = plot_training(
        title,
        step_losses=[epoch.step_losses for epoch in epochs],
        train_losses=[epoch.train_loss for epoch in epochs],
        test_losses=[epoch.scores.loss for epoch in epochs],
        accuracies=[epoch.scores.accuracy for epoch in epochs],
        intervals=[epoch.scores.interval for epoch in epochs],
    )
    write_bytes(path, picture)


def save_predictions(path: Path, scores: Scores) -> None:
    """Save test `logits` [N, K], `labels` [N] and `ids` [N] as an `.npz`; raises SaveError."""
    content = io.BytesIO()
    np.savez(
        content,
        logits=scores.logits.numpy(),
        labels=scores.labels.numpy(),
        ids=scores.ids.numpy(),
    )
    write_bytes(path, content.getvalue())


def save_run(
    folder: Path,
    recipe: Recipe,
    epochs: tuple[EpochReport, ...],
    *,
    network: nn.Module,
    unmoved: Mapping[str, str],
    save: str,
    data_name: str,
    facts: Mapping[str, Any],
) -> Run:
    """Write what a finished run leaves beside its recipe and log; `metrics.json` last.

    unmoved: hashes of the tensors that are as they were loaded; the others are the trained part.
    save: "whole" or "trained-part". data_name: short name of the data, for file names. facts:
    further entries of `metrics.json`. A plot that fails costs a warning, nothing else. Raises
    SaveError if a file cannot be written.
    """
    scores = epochs[-1].scores
    stem = f"{recipe.architecture}_{data_name}"
    written = [name for name in RUN_FILES if name != "metrics.json"]
    if unmoved:
        save_trained_part(folder / f"{stem}{TRAINED_PART}", network, unmoved)
        written.append(f"{stem}{TRAINED_PART}")
    if save == "whole" or not unmoved:
        save_weights(folder / f"{stem}.pth", network)
        written.append(f"{stem}.pth")
    save_predictions(folder / "predictions.npz", scores)
    if recipe.training_stats:
        save_training_stats(folder / recipe.training_stats, recipe, epochs)
        written.append(recipe.training_stats)
    try:
        save_plot(folder / f"{stem}.png", f"{recipe.name} on {data_name}", epochs)
        written.append(f"{stem}.png")
    # Whatever goes wrong in drawing, hours of training must not be lost to it.
    except Exception:
        logger.warning("the plot %s.png could not be made", stem, exc_info=True)
    metrics = {
        "schema": SCHEMA,
        "recipe": recipe.model_dump(),
        "epochs": [{**_epoch_line(epoch), "seconds": epoch.seconds} for epoch in epochs],
        **score_metrics(scores),
        "train_seconds": sum(epoch.train_seconds for epoch in epochs),
        **facts,
        "files": {name: sha256_of(folder / name) for name in sorted(written)},
    }
    write_json(folder / "metrics.json", metrics)
    return Run(recipe, folder, epochs, metrics)


def score_metrics(scores: Scores) -> dict[str, Any]:
    """Give the final scores as `metrics.json` names them; accuracies are fractions."""
    return {
        "test_accuracy": scores.accuracy,
        "test_correct": scores.num_correct,
        "test_images": scores.num_images,
        "test_accuracy_interval": list(scores.interval),
        "test_loss": scores.loss,
    }
