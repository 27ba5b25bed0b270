"""Checkpoints on disk: written so that a kill at any moment leaves the ones before, and verified.

A checkpoint is a folder, made under a hidden name beside its place, each file brought onto the
disk, the manifest with their hashes last, and then renamed. The latest is found by looking; there
is no pointer that must be right. Tensors are safetensors, all else is JSON; nothing there can run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from torch import Tensor

from heptad.errors import DamagedError, RunError, SaveError
from heptad.files import UNFINISHED, digest_of, remove_leftovers, sync_folder

logger = logging.getLogger("heptad")

SCHEMA = 1
TENSORS = "state.safetensors"
MANIFEST = "manifest.json"
DAMAGED = ".corrupt"
# What may follow the last step, in this order, and how each is named.
EVALUATIONS = ("", "validation", "validated", "test", "tested")
NAME = re.compile(r"step-(\d{8,})(?:-(validated|tested)|-(validation|test)-(\d{8,}))?")
NUM_KEPT = 2
# Left free on the disk beside a new checkpoint.
SPARE_BYTES = 65_536


def checkpoint_name(num_steps: int, evaluation: str = "", num_answered: int = 0) -> str:
    """Name a checkpoint by the steps done, the evaluation after them, and its images answered.

    evaluation: one of `EVALUATIONS`. Names of one run are in the order in which they are reached.
    """
    words = [f"step-{num_steps:08}", evaluation, f"{num_answered:08}" if num_answered else ""]
    return "-".join(filter(None, words))


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, whole or not, the newest first."""
    found = [(match, path) for path in folder.glob("step-*") if (match := _place(path))]
    return [path for _, path in sorted(found, reverse=True)]


def _place(path: Path) -> tuple[int, int, int] | None:
    match = NAME.fullmatch(path.name)
    if not match:
        return None
    evaluation = EVALUATIONS.index(match[2] or match[3] or "")
    return int(match[1]), evaluation, int(match[4] or 0)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and is whole.

    facts: what its manifest says beside the files: recipe, position, place in the log, versions.
    """

    path: Path
    facts: dict[str, Any]
    tensors: dict[str, Tensor]


class _IncompleteError(Exception):
    """Why a checkpoint is not whole."""


def save_checkpoint(
    folder: Path, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> Path:
    """Write a checkpoint, read it back, and only then remove the oldest ones but two.

    tensors: contiguous, on the CPU. facts: plain values. Raises SaveError, with what was written
    removed and the ones before untouched, if it cannot be written.
    """
    path = folder / name
    temporary = folder / f".{name}{UNFINISHED}"
    content = safetensors.torch.save(dict(tensors))
    try:
        if path.is_dir() and not what_is_wrong(path):
            # The same place in a training has the same content.
            sync_folder(folder)
            return path
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)
        remove_leftovers(folder, folders=True)
        _refuse_full_disk(folder, len(content))
        temporary.mkdir()
        _write(temporary / TENSORS, content)
        _write(temporary / MANIFEST, _manifest(content, facts))
        sync_folder(temporary)
        if path.exists():
            _set_aside(path)
        temporary.rename(path)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise SaveError(
            f"the checkpoint {name} could not be written: {error.strerror or error}"
            f" ({len(content) + SPARE_BYTES:,} bytes needed, {_free(folder)} free).",
            hint=f"free some space, or see what became of {folder}",
        ) from error
    if reason := what_is_wrong(path):
        raise SaveError(f"the checkpoint {name} was written, but read back it {reason}.")
    _remove_old(folder, newest=path)
    return path


def _manifest(content: bytes, facts: Mapping[str, Any]) -> bytes:
    files = {TENSORS: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    document = {"schema": SCHEMA, **facts, "files": files}
    # The hash of all the rest, so that no changed digit passes for a fact.
    document |= {"digest": digest_of(document)}
    # No line end after it: a file that was cut by its last byte would be as good as before.
    return json.dumps(document, indent=1, allow_nan=False).encode()


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _refuse_full_disk(folder: Path, num_bytes: int) -> None:
    if shutil.disk_usage(folder).free < num_bytes + SPARE_BYTES:
        raise OSError(None, "there is not enough space")


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "an unknown number"


def _remove_old(folder: Path, *, newest: Path) -> None:
    """Keep the newest checkpoint and the whole one before it; what cannot be removed stays."""
    num_kept = 1
    for path in list_checkpoints(folder):
        if num_kept < NUM_KEPT or path == newest:
            num_kept += path != newest and _is_whole(path)
            continue
        # Under a hidden name first, so that no half-removed one is ever found.
        hidden = path.with_name(f".{path.name}{UNFINISHED}")
        try:
            path.rename(hidden)
            shutil.rmtree(hidden)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", path, error.strerror)


def _is_whole(path: Path) -> bool:
    try:
        return not what_is_wrong(path)
    except RunError:
        return False


def what_is_wrong(path: Path) -> str:
    """Say what keeps a checkpoint from being whole; "" if nothing does.

    Raises RunError if a newer version of Heptad made it.
    """
    return facts_of_checkpoint(path)[1]


def facts_of_checkpoint(path: Path) -> tuple[dict[str, Any], str]:
    """Read what a checkpoint's manifest says, and say what keeps it from being whole, if anything.

    Raises RunError if a newer version of Heptad made it.
    """
    try:
        return _read(path)[0], ""
    except _IncompleteError as error:
        return {}, str(error)


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Read the manifest and the bytes that it vouches for; raises _IncompleteError."""
    try:
        for name in (MANIFEST, TENSORS):
            # Reading a pipe would wait for ever.
            if not (path / name).is_file():
                raise _IncompleteError(f"lacks {name}")
        manifest = json.loads((path / MANIFEST).read_bytes())
        schema, digest = manifest["schema"], manifest.pop("digest")
        if digest_of(manifest) != digest:
            raise _IncompleteError(f"has a damaged {MANIFEST}")
        if schema != SCHEMA:
            raise RunError(
                f"{path} was made by a newer version of Heptad (schema {schema}; this one reads"
                f" {SCHEMA}).",
                hint="install that version to go on with the run",
            )
        file = manifest["files"][TENSORS]
        num_bytes, sha256 = file["bytes"], file["sha256"]
        found = (path / TENSORS).stat().st_size
        if found != num_bytes:
            raise _IncompleteError(f"has {found:,} of {num_bytes:,} bytes of {TENSORS}")
        content = (path / TENSORS).read_bytes()
    except FileNotFoundError as error:
        raise _IncompleteError(f"lacks {Path(error.filename).name}") from error
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise _IncompleteError(f"cannot be read ({reason})") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _IncompleteError(f"has a {TENSORS} of another hash than was saved")
    return manifest, content


def find_checkpoint(
    folder: Path, *, is_usable: Callable[[Mapping[str, Any]], bool] = lambda _: True
) -> Checkpoint | None:
    """Read the newest checkpoint that is whole; None if there never was one.

    A damaged one is renamed to NAME.corrupt, with a warning, once an older one was found whole.
    is_usable: looks at a whole one's facts; those that are not usable are passed over. Raises
    DamagedError if there are checkpoints, but none can be used: nothing is changed then.
    """
    damaged: list[tuple[Path, str]] = []
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            facts, content = _read(path)
            tensors = safetensors.torch.load(content)
        except _IncompleteError as error:
            damaged.append((path, str(error)))
            continue
        # A file that was made by others, its hash and all, may make the reader raise anything.
        except (ValueError, LookupError, TypeError, safetensors.SafetensorError) as error:
            damaged.append((path, f"holds no tensors ({error})"))
            continue
        if not is_usable(facts):
            damaged.append((path, "knows another metrics.jsonl than the one beside it"))
            continue
        if others := sorted({other.name for other in path.iterdir()} - {TENSORS, MANIFEST}):
            logger.warning("%s holds %s besides, which is ignored", path, ", ".join(others))
        for bad, reason in damaged:
            aside = _set_aside(bad)
            logger.warning(
                "%s %s; it is now %s, and %s is used instead", bad, reason, aside.name, path.name
            )
        return Checkpoint(path, facts, tensors)
    corrupt = sorted(folder.glob(f"step-*{DAMAGED}*"))
    if not paths and not corrupt:
        return None
    found = [f"  {path.name} {reason}" for path, reason in damaged]
    found += [f"  {path.name} was found damaged before" for path in corrupt]
    raise DamagedError(
        f"no checkpoint in {folder} can be used; nothing was changed.",
        hint="\n".join(
            [*found, "put a saved copy of the run back, or train anew with another --out"]
        ),
    )


def _set_aside(path: Path) -> Path:
    number = 0
    while True:
        aside = path.with_name(f"{path.name}{DAMAGED}{number or ''}")
        number += 1
        if not aside.exists():
            break
    try:
        return path.rename(aside)
    except OSError as error:
        logger.warning("%s is damaged and cannot be renamed: %s", path, error.strerror)
        return path
