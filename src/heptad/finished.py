"""A finished run, read back from its folder with all that it holds, every file checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heptad.errors import damage_in
from heptad.recipe import Recipe
from heptad.records import Run
from heptad.run_log import read_log
from heptad.stages.saving import check_file, read_metrics, read_predictions


def read_run(folder: Path, metrics: Mapping[str, Any] | None = None) -> Run:
    """Give the finished run in `folder`, with every loss and answer.

    metrics: its `metrics.json`, where that was read before. The seconds of training alone are kept
    of the whole run and not of each epoch: they read 0. Raises RunError if the folder holds no
    finished run, DamagedError if a file of it is missing or not as it was saved.
    """
    metrics = dict(metrics or read_metrics(folder))
    with damage_in(folder / "metrics.json"):
        recipe = Recipe(**metrics["recipe"])
        for name, sha256 in metrics["files"].items():
            check_file(folder / name, sha256)
    scores = read_predictions(folder, metrics)
    with damage_in(folder / "metrics.jsonl"):
        epochs, _ = read_log(
            (folder / "metrics.jsonl").read_bytes(),
            num_images=sum(metrics["execution"]["rank_images"]),
            batch_size=recipe.batch_size,
            num_scored_images=metrics["validation_images"] or metrics["test_images"],
            seconds=[(0.0, epoch["seconds"]) for epoch in metrics["epochs"]],
        )
        if len(epochs) != len(metrics["epochs"]):
            raise ValueError("it has another number of epochs than metrics.json")
    return Run(recipe, folder, tuple(epochs), scores, metrics)
