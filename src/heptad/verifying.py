"""What in a run folder is whole: files against their hashes, checkpoints, the log beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heptad.checkpoints.store import DAMAGED, facts_of_checkpoint, list_checkpoints
from heptad.errors import DamagedError, RecipeError, RunError
from heptad.event_log import EVENTS
from heptad.files import UNFINISHED, user_path
from heptad.recipes import load_recipe
from heptad.run_folder import CARD, CHECKPOINTS, LOCK, REPORT, RUN_FILES
from heptad.run_log import log_up_to
from heptad.stages.saving import check_file, read_metrics, read_predictions

# What `heptad export` leaves beside the weights.
EXPORTED = (".onnx", ".safetensors")
HALF_WRITTEN = "being written, or left by a process that was killed; a resume removes it"


@dataclass(frozen=True)
class Finding:
    """One thing in a run folder, by its relative name: whether it is whole, and what it is."""

    name: str
    is_whole: bool
    said: str


@dataclass(frozen=True)
class Examination:
    """All that was found in a run folder. is_finished: whether it has the results of its run."""

    folder: Path
    is_finished: bool
    findings: tuple[Finding, ...]

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

    Raises RunError if the folder holds no run, finished or not.
    """
    folder = user_path(folder)
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
    if is_finished and path.suffix in EXPORTED:
        return Finding(path.name, True, "exported from the run; `heptad export` makes it anew")
    return Finding(path.name, True, "not a file of the run")


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
