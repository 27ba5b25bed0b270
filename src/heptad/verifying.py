"""What in a run folder is whole: files against their hashes, checkpoints, the log beside them.

Of the folder of a group of runs: each of these, and whether `seeds.json` agrees with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from heptad.checkpoints.store import DAMAGED, facts_of_checkpoint, list_checkpoints
from heptad.errors import (
    DamagedError,
    HeptadError,
    MissingError,
    ModelError,
    RecipeError,
    RunError,
    damage_in,
)
from heptad.event_log import EVENTS
from heptad.exporting.loading import BY_SUFFIX, digest_in
from heptad.files import UNFINISHED, user_path
from heptad.recipes import load_recipe
from heptad.run_folder import (
    CARD,
    CHECKPOINTS,
    LOCK,
    REPORT,
    RUN_FILES,
    SEEDS,
    is_group,
    refuse_search_as_run,
)
from heptad.run_log import log_up_to
from heptad.seed_group import SeedGroup, difference_in, follows, read_group, way_to_mend
from heptad.stages.saving import check_file, read_metrics, read_predictions

HALF_WRITTEN = "being written, or left by a process that was killed; a resume removes it"


@dataclass(frozen=True)
class Finding:
    """One thing in a run folder, by its relative name: whether it is whole, and what it is."""

    name: str
    is_whole: bool
    said: str


@dataclass(frozen=True)
class Examination:
    """All that was found in a run folder. is_finished: whether it has the results of its run.

    num_runs: that there are, or are to be, in the folder of a group; None in that of a run.
    remedy: what to do about a group of which it cannot be said what it is.
    """

    folder: Path
    is_finished: bool
    findings: tuple[Finding, ...]
    num_runs: int | None = None
    remedy: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is damaged or missing."""
        return all(finding.is_whole for finding in self.findings)

    def as_document(self) -> dict[str, Any]:
        """Give the findings as plain values, for JSON."""
        return {
            "run": str(self.folder),
            "finished": self.is_finished,
            "whole": self.is_whole,
            "files": [asdict(finding) for finding in self.findings],
        }


def examine_run(folder: str | Path) -> Examination:
    """Hash everything in a run folder and compare it with what was saved; changes nothing.

    Of a group's folder, of all its runs. Raises RunError if the folder holds no run, finished or
    not.
    """
    folder = user_path(folder)
    if is_group(folder):
        return _examine_group(folder)
    refuse_search_as_run(folder)
    if not any((folder / name).exists() for name in (*RUN_FILES, CHECKPOINTS)):
        raise RunError(f"{folder} holds no run.", hint="name the folder of a run")
    is_finished = (folder / "metrics.json").is_file()
    findings = list(_results(folder)) if is_finished else []
    findings += _checkpoints(folder)
    known = {finding.name for finding in findings} | {LOCK, CHECKPOINTS}
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            findings.append(_unlisted(folder, path, is_finished=is_finished))
    return Examination(folder, is_finished, tuple(findings))


def _examine_group(folder: Path) -> Examination:
    """Look at all runs of a group, and at what its `seeds.json` says of them."""
    group: SeedGroup | None = None
    remedy = ""
    try:
        group = read_group(folder)
        findings, places = [_agreement(group)], group.folders
    except DamagedError as error:
        findings, remedy = [Finding(SEEDS, False, error.message)], error.hint or way_to_mend(folder)
        places = sorted(path for path in folder.glob("seed-*") if path.is_dir())
    finished = []
    for place in places:
        try:
            found = examine_run(place)
        # One of a group that is not finished need not have begun.
        except RunError as error:
            finished.append(False)
            is_missed = group is None or place.name in {run["folder"] for run in group.runs}
            if is_missed:
                findings.append(Finding(place.name, False, error.message))
            continue
        finished.append(found.is_finished)
        findings += [replace(each, name=f"{place.name}/{each.name}") for each in found.findings]
    for path in sorted(folder.iterdir()):
        if path not in places and path.name not in (SEEDS, LOCK):
            findings.append(_unlisted(folder, path, is_finished=True))
    is_finished = all(finished) and group is not None and group.is_finished
    return Examination(folder, is_finished, tuple(findings), num_runs=len(places), remedy=remedy)


def _agreement(group: SeedGroup) -> Finding:
    """Make `seeds.json` anew from the runs, and compare."""
    try:
        metrics = {
            seed: read_metrics(place)
            for seed, place in zip(group.seeds, group.folders, strict=True)
            if (place / "metrics.json").is_file()
        }
        is_listed = {run["seed"] for run in group.runs} <= metrics.keys()
        with damage_in(group.folder / SEEDS):
            agrees = is_listed and follows(group.document, metrics)
            difference = difference_in(metrics)
    except HeptadError as error:
        return Finding(SEEDS, False, f"agrees with its digest, but not with a run: {error.message}")
    if not agrees:
        return Finding(SEEDS, False, "agrees with its digest, but not with its runs")
    if difference:
        said = f"its runs differ in more than their seeds: {difference}"
        return Finding(SEEDS, False, said)
    return Finding(SEEDS, True, "agrees with its digest and with its runs")


def _unlisted(folder: Path, path: Path, *, is_finished: bool) -> Finding:
    """Look at what no hash is known of."""
    if path.name.endswith(UNFINISHED):
        return Finding(path.name, True, HALF_WRITTEN)
    if path.name == "recipe.json" and not is_finished:
        try:
            load_recipe(folder)
        except RecipeError as error:
            return Finding(path.name, False, error.message)
        return Finding(path.name, True, "can be read; it has no hash before the run is finished")
    if path.name in RUN_FILES and not is_finished:
        return Finding(path.name, True, "of a run that is not finished, without a hash yet")
    if path.match(EVENTS):
        return Finding(path.name, True, "for TensorBoard, without a hash")
    if path.name in (REPORT, CARD):
        return Finding(path.name, True, "made from the others; `heptad report` makes it anew")
    # Of a run that is not finished it may be the trained part.
    if is_finished and path.suffix in BY_SUFFIX:
        return _exported(folder, path)
    return Finding(path.name, True, "not a file of the run")


def _exported(folder: Path, path: Path) -> Finding:
    """Look at what `heptad export` may have left beside the weights."""
    anew = "`heptad export` makes it anew"
    try:
        digest = digest_in(path)
        is_of_run = digest == read_metrics(folder)["digest"]
    except ModelError as error:
        return Finding(path.name, True, f"not a file of the run: {error.message}")
    except MissingError as error:
        return Finding(path.name, True, f"not looked into: {error.message}")
    except HeptadError as error:
        return Finding(path.name, False, f"{error.message} {anew}")
    if not is_of_run:
        return Finding(path.name, True, f"exported from another result of a run; {anew}")
    return Finding(path.name, True, f"exported from the run; {anew}")


def _results(folder: Path) -> Iterator[Finding]:
    """Look at the results of a finished run."""
    try:
        metrics = read_metrics(folder)
        files = dict(metrics["files"])
    except DamagedError as error:
        yield Finding("metrics.json", False, error.message)
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name not in ("metrics.json", LOCK):
                yield Finding(path.name, False, "cannot be checked without metrics.json")
        return
    yield Finding("metrics.json", True, "agrees with its digest")
    damaged = set()
    for name, sha256 in sorted(files.items()):
        try:
            check_file(folder / name, sha256)
        except DamagedError as error:
            damaged.add(name)
            yield Finding(name, False, error.message)
            continue
        yield Finding(name, True, "as saved")
    try:
        num_correct = read_predictions(folder, metrics).num_correct
    except DamagedError as error:
        if "predictions.npz" not in damaged:
            yield Finding("predictions.npz", False, error.message)
        return
    if num_correct != metrics["test_correct"]:
        said = f"gives {num_correct} right answers, metrics.json {metrics['test_correct']}"
        yield Finding("predictions.npz", False, said)


def _checkpoints(folder: Path) -> Iterator[Finding]:
    """Look at the checkpoints, the newest first, and at the log that each of them knows."""
    for path in list_checkpoints(folder / CHECKPOINTS):
        name = f"{CHECKPOINTS}/{path.name}"
        facts, reason = facts_of_checkpoint(path)
        # A live run removes old ones meanwhile.
        if reason and not path.exists():
            continue
        if reason:
            yield Finding(name, False, reason)
            continue
        is_logged = log_up_to(folder / "metrics.jsonl", facts.get("log")) is not None
        said = "whole" if is_logged else "whole, but metrics.jsonl is not the log it knew"
        yield Finding(name, is_logged, said)
    for path in sorted((folder / CHECKPOINTS).glob(f"step-*{DAMAGED}*")):
        yield Finding(f"{CHECKPOINTS}/{path.name}", True, "was found damaged before, and set aside")
    for path in sorted((folder / CHECKPOINTS).glob(f".*{UNFINISHED}")):
        yield Finding(f"{CHECKPOINTS}/{path.name}", True, HALF_WRITTEN)
