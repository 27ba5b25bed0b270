"""Stage 7: what a run leaves behind, each file whole or absent, with relative names only.

A run folder can be moved and loaded without Heptad: the weights are a plain state dict with
torchvision's own names.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import logging
import os
import pickle
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from heptad.errors import DamagedError, RunError, damage_in
from heptad.files import (
    as_word,
    digest_of,
    read_document,
    sha256_of,
    write_bytes,
    write_json,
    writing,
)
from heptad.measures import calibration, macro_measures, measure_classes, num_in_top
from heptad.plots import plot_training
from heptad.recipe import Recipe
from heptad.records import EpochReport, Run, Scores
from heptad.run_folder import ENVIRONMENT, PICTURES, RUN_FILES, refuse_group, refuse_search_as_run

logger = logging.getLogger("heptad")

# Ends the name of the small file of what was trained, with a hash of the rest.
TRAINED_PART = ".trained.safetensors"
# Of `metrics.json`; a run of another one is not read.
SCHEMA = 1
# Training images beside augmented versions of them.
SHEET = "augmentation.png"
# Of the top-k accuracies.
TOP_KS = (2, 3, 5)
MEND = "put the saved file back, or train again"
PACKAGES = ("heptad", "torch", "torchvision", "numpy", "pillow")


@cache
def package_versions() -> dict[str, str]:
    """Name the versions of what a result depends on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def environment() -> dict[str, Any]:
    """Say what a run was carried out with: versions, system, processor."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "packages": package_versions(),
    }


def save_weights(path: Path, network: nn.Module) -> None:
    """Save the whole network as a plain state dict, contiguous, on the CPU; raises SaveError."""
    state = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    with writing(path) as file:
        try:
            torch.save(state, file)
        # What PyTorch's writer makes of a full disk; the system's own error lies beneath it.
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
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
        f"{epochs[0].part}_losses": [epoch.scores.loss for epoch in epochs],
        f"{epochs[0].part}_accuracies": [100 * epoch.scores.accuracy for epoch in epochs],
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
        part=epochs[0].part,
        scored_losses=[epoch.scores.loss for epoch in epochs],
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


def save_epochs(path: Path, epochs: Sequence[EpochReport]) -> None:
    """Save the figures of all epochs as CSV; raises SaveError.

    Without their seconds, so that equal runs write equal files.
    """
    rows = [epoch.as_document() for epoch in epochs]
    content = io.StringIO()
    writer = csv.DictWriter(content, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, content.getvalue().encode())


def save_network(
    folder: Path, stem: str, network: nn.Module, *, unmoved: Mapping[str, str], save: str
) -> list[str]:
    """Save a run's weights, whole or their trained part; give the names of the files.

    unmoved: hashes of the tensors that are as they were loaded; the others are the trained part.
    save: "whole" or "trained-part". Raises SaveError if a file cannot be written.
    """
    written = []
    if unmoved:
        save_trained_part(folder / f"{stem}{TRAINED_PART}", network, unmoved)
        written.append(f"{stem}{TRAINED_PART}")
    if save == "whole" or not unmoved:
        save_weights(folder / f"{stem}.pth", network)
        written.append(f"{stem}.pth")
    return written


def save_run(
    folder: Path,
    recipe: Recipe,
    epochs: tuple[EpochReport, ...],
    scores: Scores,
    *,
    saved: Sequence[str],
    drawings: Mapping[str, Callable[[Path], None]],
    facts: Mapping[str, Any],
) -> Run:
    """Write what a finished run leaves beside its recipe, log and weights; `metrics.json` last.

    saved: names of files that are there already. drawings: what writes each picture, by name; one
    that fails costs a warning, nothing else. facts: further entries of `metrics.json`. Raises
    SaveError if another file cannot be written.
    """
    written = [*saved, *(name for name in RUN_FILES if name != "metrics.json")]
    save_predictions(folder / "predictions.npz", scores)
    save_epochs(folder / "epochs.csv", epochs)
    if recipe.training_stats:
        save_training_stats(folder / recipe.training_stats, recipe, epochs)
        written.append(recipe.training_stats)
    for name, save in drawings.items():
        try:
            save(folder / name)
            written.append(name)
        # Whatever goes wrong in drawing, hours of training must not be lost to it.
        except Exception as error:
            logger.warning("the plot %s could not be made: %s", name, error)
            logger.debug("drawing failed", exc_info=True)
    metrics = {
        "schema": SCHEMA,
        "recipe": recipe.model_dump(),
        "epochs": [{**epoch.as_document(), "seconds": epoch.seconds} for epoch in epochs],
        **score_metrics(scores),
        "train_seconds": sum(epoch.train_seconds for epoch in epochs),
        **facts,
        "files": {name: sha256_of(folder / name) for name in sorted(written)},
    }
    metrics = sealed(metrics)
    write_json(folder / "metrics.json", metrics)
    return Run(recipe, folder, epochs, scores, metrics)


def result_digest(metrics: Mapping[str, Any]) -> str:
    """Hash the entries of `metrics.json` in which equal runs are equal: all but times and places.

    Those are the seconds, `execution`, which says how the run was carried out, and the file that
    tells of the machine.
    """
    kept = {
        key: value
        for key, value in metrics.items()
        if not key.endswith("seconds") and key not in ("execution", "digest")
    }
    epochs = [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in kept["epochs"]]
    files = {name: sha256 for name, sha256 in kept["files"].items() if name != ENVIRONMENT}
    return digest_of(kept | {"epochs": epochs, "files": files})


def sealed(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Give the document of `metrics.json` with its hashes, by which a changed one is known.

    `digest` is the one that equal runs share; `execution.sha256` covers everything.
    """
    return _with_sha256({**metrics, "digest": result_digest(metrics)})


def _with_sha256(metrics: Mapping[str, Any]) -> dict[str, Any]:
    execution = {key: value for key, value in metrics["execution"].items() if key != "sha256"}
    document = {**metrics, "execution": execution}
    return {**document, "execution": {**execution, "sha256": digest_of(document)}}


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a finished run's `metrics.json`, checked against its own digest.

    Raises RunError if the folder is no finished run, such as that of a group of them or of a
    search, DamagedError if the file is not as saved.
    """
    if not folder.is_dir():
        raise RunError(f"there is no run folder {str(folder)!r}.")
    path = folder / "metrics.json"
    if not path.is_file():
        refuse_group(folder)
        refuse_search_as_run(folder)
        unfinished = (folder / "recipe.json").is_file()
        raise RunError(
            f"{folder} is {'a run that was not finished' if unfinished else 'no run'}:"
            " it has no metrics.json.",
            hint=f"`heptad resume {as_word(folder)}` finishes it"
            if unfinished
            else "name the folder that `heptad train` printed",
        )
    metrics = read_document(path, schema=SCHEMA)
    with damage_in(path):
        # Not by `digest`, in which an earlier version may have put something else.
        if _with_sha256(metrics) != metrics:
            raise DamagedError(
                f"{path} is damaged: it was changed since it was saved.",
                hint="put the saved file back, or `heptad resume` the run to write it again",
            )
    return metrics


def read_predictions(folder: Path, metrics: Mapping[str, Any]) -> Scores:
    """Read the scores of a finished run, with every answer; raises DamagedError."""
    path = folder / "predictions.npz"
    with damage_in(path):
        check_file(path, metrics["files"][path.name])
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                logits, labels, ids = (
                    torch.from_numpy(stored[key]) for key in ("logits", "labels", "ids")
                )
        # A file that was made by others, its hash and all, may make the reader raise anything.
        except Exception as error:
            raise ValueError(f"it holds no answers ({type(error).__name__}: {error})") from error
        num_images, num_classes = len(labels), len(metrics["classes"])
        fits = (
            (logits.shape, ids.shape) == ((num_images, num_classes), labels.shape)
            and logits.is_floating_point()
            and bool(logits.isfinite().all())
            and labels.dtype == torch.int64
            and num_images > 0
            and set(labels.tolist()) <= set(range(num_classes))
        )
        if not fits:
            raise ValueError("its tables do not fit one another")
        return Scores(logits, labels, ids, loss=float(metrics["test_loss"]))


def pictures_of(folder: Path, metrics: Mapping[str, Any]) -> dict[str, dict[int, str]] | None:
    """Give the SHA-256s of each part's pictures, by id; None if the run was of no pictures.

    Raises DamagedError if the list is not as it was saved.
    """
    path = folder / PICTURES
    if path.name not in metrics["files"]:
        return None
    check_file(path, metrics["files"][path.name])
    with damage_in(path):
        pictures = json.loads(path.read_text(encoding="utf-8"))["pictures"]
        parts: dict[str, dict[int, str]] = {"train": {}, "test": {}}
        for entry in pictures:
            parts.setdefault(entry["part"], {})[entry["id"]] = entry["sha256"]
        return parts


def check_file(path: Path, sha256: str) -> None:
    """Raise DamagedError unless a file of a run is there with the content that was saved."""
    if not path.is_file():
        raise DamagedError(f"{path} is missing.", hint=MEND)
    with damage_in(path):
        found = sha256_of(path)
    if found != sha256:
        raise DamagedError(
            f"{path} is not what was saved: its SHA-256 is {found}, not {sha256}.", hint=MEND
        )


def score_metrics(scores: Scores) -> dict[str, Any]:
    """Give the final scores as `metrics.json` names them; all but the loss are fractions or counts.

    Top-k accuracies by k, for each k that is smaller than the number of classes.
    """
    macro = macro_measures(measure_classes(scores.confusion))
    ks = [k for k in TOP_KS if k < scores.logits.shape[1]]
    return {
        "test_accuracy": scores.accuracy,
        "test_correct": scores.num_correct,
        "test_images": scores.num_images,
        "test_accuracy_interval": list(scores.interval),
        "test_loss": scores.loss,
        "test_macro_precision": macro.precision,
        "test_macro_recall": macro.recall,
        "test_macro_f1": macro.f1,
        "test_top_k_accuracy": {
            str(k): num_in_top(scores.logits, scores.labels, k) / scores.num_images for k in ks
        },
        "test_calibration_error": calibration(scores.logits, scores.labels).error,
    }
