"""Pretrained weights: which file, where it may lie, and whether it is really that file.

A file is hashed whenever it is used. torchvision checks eight digits of the hash, once, when it
downloads; we hold the full SHA-256.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from heptad.errors import MissingError
from heptad.files import (
    DownloadError,
    cache_folder,
    download,
    locked,
    set_aside,
    sha256_of,
    writing,
)

logger = logging.getLogger("heptad")


@dataclass(frozen=True)
class WeightsFile:
    """One file of pretrained weights.

    is_confirmed: whether the whole SHA-256 decides; else its first eight digits and the size do,
        and a difference in the rest is said.
    mean, deviation: what the weights' own preset normalises with, a number a channel.
    """

    name: str
    url: str
    num_bytes: int
    sha256: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    is_confirmed: bool = True


def cached_places(weights: WeightsFile) -> Iterator[Path]:
    """Give the paths where the file may lie: our cache, then torchvision's."""
    yield cache_folder() / "weights" / weights.name
    yield Path(torch.hub.get_dir()) / "checkpoints" / weights.name


def verified_hash(path: Path, weights: WeightsFile) -> str | None:
    """Give the SHA-256 of `path` if it is the file meant, else None."""
    if not path.is_file() or path.stat().st_size != weights.num_bytes:
        return None
    found = sha256_of(path)
    if found == weights.sha256:
        return found
    if weights.is_confirmed or found[:8] != weights.sha256[:8]:
        return None
    logger.warning(
        "%s has the size and the first eight digits that torchvision gives, but SHA-256 %s;"
        " we had noted %s from one source. It is used.",
        path,
        found,
        weights.sha256,
    )
    return found


def ensure_weights(weights: WeightsFile) -> tuple[Path, str]:
    """Give the verified file and its SHA-256, downloaded now if it is nowhere whole.

    A damaged file in our cache is renamed to `NAME.damaged`; torchvision's is left alone, with a
    warning. Raises MissingError, with what to put where, if the file cannot be had.
    """
    for path in cached_places(weights):
        if found := verified_hash(path, weights):
            return path, found
    path, theirs = cached_places(weights)
    if theirs.exists():
        logger.warning("%s is damaged or incomplete; it is not used", theirs)
    with locked(path.parent):
        # Another process may have fetched the file while this one waited for the lock.
        if found := verified_hash(path, weights):
            return path, found
        if path.exists():
            aside = set_aside(path)
            logger.warning("%s was damaged; it is now %s and fetched again", path, aside.name)
        return path, _fetch(weights, path)


def _fetch(weights: WeightsFile, path: Path) -> str:
    logger.info("fetching %s, %d MB", weights.url, weights.num_bytes // 1_000_000)
    reason = ""
    # Once more if what came is not what it should be.
    for _ in range(2):
        try:
            with writing(path) as file:
                download(weights.url, file, most_bytes=weights.num_bytes)
                file.flush()
                found = verified_hash(Path(file.name), weights)
                if not found:
                    raise DownloadError("what came is cut short or has another SHA-256")
        except DownloadError as error:
            reason = str(error)
        else:
            return found
    ours, theirs = cached_places(weights)
    raise MissingError(
        f"the weights {weights.name} are not here and could not be fetched.",
        hint=f"tried: {weights.url}: {reason}\n"
        f"put the file ({weights.num_bytes:,} bytes, SHA-256 {weights.sha256})"
        f" into {ours.parent} or {theirs.parent},\n"
        "or name a file of your own: --weights FILE; or start from random weights: --weights none",
    )
