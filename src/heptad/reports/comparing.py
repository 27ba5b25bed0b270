"""Finished runs read to be compared, and refused if they were not tested on the same images.

What a run says of itself is read from its `metrics.json`, `predictions.npz` and `pictures.json`,
each against its hash; nothing is computed anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from heptad.datasets.folder import on_one_line, some_names
from heptad.errors import RunError, damage_in
from heptad.files import user_path
from heptad.loaded_run import find_weights
from heptad.recipe import Recipe
from heptad.reports.comparison import ComparedRun, Comparison, put_side_by_side
from heptad.stages.saving import pictures_of, read_metrics, read_predictions


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Compare finished runs by their answers to the same test images.

    Raises RunError if there are not two, one is no finished run, one is named twice, or their
    classes or test images differ; DamagedError if a file is not as it was saved.
    """
    paths = [user_path(folder) for folder in folders]
    if len(paths) < 2:
        found = f"{paths[0]} alone is" if paths else "no run is"
        raise RunError(f"{on_one_line(found)} named; allowed: two runs or more.")
    runs = [_read(path, name) for path, name in zip(paths, _short_names(paths), strict=True)]
    for first, second in combinations(runs, 2):
        if first.folder.samefile(second.folder):
            names = on_one_line(f"{first.folder} and {second.folder}")
            raise RunError(f"{names} are the same run.")
        _refuse_other_test(first, second)
    return put_side_by_side(runs)


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Name runs by their folders alone, if that tells them apart."""
    short = [path.name for path in paths]
    return short if all(short) and len(set(short)) == len(short) else list(map(str, paths))


def _read(folder: Path, name: str) -> ComparedRun:
    metrics = read_metrics(folder)
    with damage_in(folder / "metrics.json"):
        classes = list(map(str, metrics["classes"]))
    scores = read_predictions(folder, metrics)
    parts = pictures_of(folder, metrics)
    tested = parts["test"] if parts else None
    with damage_in(folder / "metrics.json"):
        weights, _ = find_weights(folder, metrics)
        ids = scores.ids.tolist()
        rows = list(
            zip(
                map(str, ids) if tested is None else [str(tested[place]) for place in ids],
                [classes[label] for label in scores.labels.tolist()],
                (scores.predicted == scores.labels).tolist(),
                strict=True,
            )
        )
        # A picture's place changes when others are added or renamed; what it holds does not.
        images, labels, is_right = zip(*(rows if tested is None else sorted(rows)), strict=True)
        run = ComparedRun(
            name=name,
            folder=folder,
            recipe=Recipe(**metrics["recipe"]),
            metrics=metrics,
            scores=scores,
            weights_bytes=weights.stat().st_size if weights.is_file() else None,
            is_of_pictures=tested is not None,
            images=images,
            labels=labels,
            is_right=is_right,
        )
        # A document that was made by others, its hashes and all, may hold anything.
        if not all(isinstance(value, int | float | None) for value in run.figures.values()):
            raise ValueError("its figures are no numbers")
        json.dumps([run.as_document(), run.place, run.has_random_trunk], allow_nan=False)
    return run


def _refuse_other_test(first: ComparedRun, second: ComparedRun) -> None:
    """Raise RunError unless two runs know the same classes and were tested on the same images."""
    names = on_one_line(f"{first.name} and {second.name}")
    known = [list(run.metrics["classes"]) for run in (first, second)]
    if set(known[0]) != set(known[1]):
        alone = [[name for name in known[k] if name not in known[1 - k]] for k in (0, 1)]
        said = [
            f"{on_one_line(run.name)} alone has {some_names(own)}"
            for run, own in zip((first, second), alone, strict=True)
            if own
        ]
        raise RunError(f"{names} do not know the same classes.", hint="; ".join(said))
    if not _have_same_test(first, second):
        on = [
            on_one_line(f"{run.name} on {len(run.images):,} images of {run.recipe.data}")
            for run in (first, second)
        ]
        raise RunError(
            f"{names} were not tested on the same images.",
            hint=f"{', '.join(on)}; with --limit, and where there is no test folder, the seed"
            " decides which images those are",
        )


def _have_same_test(first: ComparedRun, second: ComparedRun) -> bool:
    if first.labels != second.labels or first.is_of_pictures != second.is_of_pictures:
        return False
    sets = [run.metrics.get("test_set") for run in (first, second)]
    if not first.is_of_pictures and None not in sets:
        return sets[0] == sets[1]
    is_named_alike = first.is_of_pictures or first.recipe.data == second.recipe.data
    return is_named_alike and first.images == second.images
