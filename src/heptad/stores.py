"""Rows on disk, found by what they were computed from, in verified shards.

The rows are features of images, or the pixels of decoded pictures. A store is a folder of the
cache, named by everything that decides a row but the image; a row is named by its image. A shard is
one file under the hash of its own content, whole or absent, so there is no index that must be
right: opening a store is reading and checking its shards. Splits, limits, folds and added images
are nothing but lists of rows.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heptad.distributed import ALONE, Ranks, appears
from heptad.errors import MissingError, SaveError, UnusableError
from heptad.files import (
    UNFINISHED,
    Held,
    cache_folder,
    digest_of,
    exclusive,
    folder_bytes,
    hold,
    hold_made,
    locked,
    remove_leftovers,
    sha256_of,
    used_at,
    write_bytes,
    write_json,
)
from heptad.records import PassReport

logger = logging.getLogger("heptad")

# The name of a row: a SHA-256, as one value that can be sorted and searched for.
KEY = np.dtype("V32")
SHARD_BYTES = 64_000_000
# Work that is cut off loses at most this much.
SHARD_SECONDS = 60.0
# Left free on the disk beside the rows.
SPARE_BYTES = 100_000_000


def stores_folder() -> Path:
    """Give the folder of the cache that holds all stores."""
    return cache_folder() / "features"


def store_folder(description: Mapping[str, Any]) -> Path:
    """Give the folder of the store of this description, made or not."""
    return stores_folder() / digest_of(description)


def row_keys(images: NDArray[np.uint8]) -> NDArray[np.void]:
    """Name each image of [N, C, H, W] by the SHA-256 of its shape and pixels: [N]."""
    start = hashlib.sha256(repr(images.shape[1:]).encode())
    digests = []
    for row in np.ascontiguousarray(images).reshape(len(images), -1):
        digest = start.copy()
        digest.update(row.data)
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), KEY)


@dataclass(frozen=True)
class Shard:
    """Some rows of a store, mapped from their file: `key` [n] and `values` [n, …].

    name: SHA-256 of the file. engine: what computed the rows.
    """

    table: NDArray[Any]
    name: str
    engine: str

    @property
    def file_name(self) -> str:
        """The name of the file in the store's folder."""
        return f"{self.name}.{self.engine}.npy"

    @property
    def keys(self) -> NDArray[np.void]:
        """The names of the rows, [n]."""
        return self.table["key"]

    @property
    def values(self) -> NDArray[Any]:
        """The rows, [n, …]."""
        return self.table["values"]


def read_shards(folder: Path, known: Sequence[Shard] = ()) -> tuple[Shard, ...]:
    """Open all shards of a store but those known; each is verified, which takes a while.

    A damaged one is set aside, with a warning: its rows are then missing, and are computed again
    like any others.
    """
    names, shards = {shard.file_name for shard in known}, []
    for path in sorted(folder.glob("*.npy")):
        if path.name in names:
            continue
        try:
            if sha256_of(path) == path.name.split(".")[0]:
                shards.append(_opened(path))
                continue
        # Another process has set it aside meanwhile.
        except FileNotFoundError:
            continue
        # The header of a file whose hash is right, but which another version wrote.
        except ValueError as error:
            logger.warning("%s cannot be read: %s", path, error)
        logger.warning("%s is damaged; its rows are computed again", path)
        try:
            path.replace(path.with_name(path.name + ".damaged"))
        except FileNotFoundError:
            continue
        except OSError as error:
            logger.warning("%s cannot be set aside: %s", path, error.strerror)
    return tuple(shards)


def write_shard(
    folder: Path, values: NDArray[Any], keys: NDArray[np.void], *, engine: str
) -> Shard:
    """Add rows [n, …] under their names [n] to a store; `engine` is noted in the file's name.

    Raises SaveError if the shard cannot be written; none is left then.
    """
    table = _table(len(keys), values)
    table["key"], table["values"] = keys, values
    return _write_table(folder, table, engine)


def _table(num_rows: int, values: NDArray[Any]) -> NDArray[Any]:
    """Make a table of named rows, each like those of `values`, for so many."""
    return np.empty(num_rows, [("key", KEY), ("values", values.dtype, values.shape[1:])])


def _write_table(folder: Path, table: NDArray[Any], engine: str) -> Shard:
    content = io.BytesIO()
    np.save(content, table)
    packed = content.getvalue()
    path = folder / f"{hashlib.sha256(packed).hexdigest()}.{engine}.npy"
    write_bytes(path, packed)
    return _opened(path)


def _opened(path: Path) -> Shard:
    # As a plain array on the same memory: numpy's own kind of it takes longer over each look.
    table = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    name, engine, *_ = path.name.split(".")
    return Shard(table, name=name, engine=engine)


@dataclass(frozen=True)
class Rows:
    """Where the rows of N images lie: the number of the shard and the row in it, [N] each."""

    shards: tuple[Shard, ...]
    shard_of: NDArray[np.int64]
    row_of: NDArray[np.int64]

    @property
    def engines(self) -> tuple[str, ...]:
        """What computed the rows, each once."""
        used = np.unique(self.shard_of[self.shard_of >= 0])
        return tuple(dict.fromkeys(self.shards[number].engine for number in used))

    def at(self, places: NDArray[np.int64]) -> Rows:
        """Give where the rows of the images at `places` lie."""
        return Rows(self.shards, self.shard_of[places], self.row_of[places])

    def take(self, indices: Tensor) -> Tensor:
        """Gather the rows [n, …] of the images at `indices`."""
        wanted = indices.numpy()
        shard_of, row_of = self.shard_of[wanted], self.row_of[wanted]
        numbers = np.unique(shard_of)
        if len(numbers) == 1:
            return torch.from_numpy(self.shards[numbers[0]].values[row_of])
        first = self.shards[0].values
        gathered = np.empty((len(wanted), *first.shape[1:]), first.dtype)
        for number in numbers:
            places = np.flatnonzero(shard_of == number)
            gathered[places] = self.shards[number].values[row_of[places]]
        return torch.from_numpy(gathered)


def find_rows(shards: Sequence[Shard], keys: NDArray[np.void]) -> tuple[Rows, NDArray[np.int64]]:
    """Find images by their names [N]; also give the places of those that no shard holds."""
    held = np.concatenate([shard.keys for shard in shards]) if shards else np.empty(0, KEY)
    shard_of = np.repeat(np.arange(len(shards)), [len(shard.keys) for shard in shards])
    row_of = np.concatenate([np.arange(len(shard.keys)) for shard in shards] or [np.empty(0, int)])
    # numpy sorts no plain bytes of this kind; as text of fixed length it does, zeros at the end cut
    # off on both sides alike.
    names, wanted = held.view("S32"), keys.view("S32")
    order = np.argsort(names, kind="stable")
    places = np.searchsorted(names, wanted, sorter=order)
    places = order[np.minimum(places, max(0, len(order) - 1))] if len(order) else places
    is_held = names[places] == wanted if len(order) else np.zeros(len(keys), bool)
    rows = Rows(tuple(shards), np.where(is_held, _at(shard_of, places), -1), _at(row_of, places))
    return rows, np.flatnonzero(~is_held)


def _at(values: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    return values[places] if len(values) else np.zeros(len(places), np.int64)


Computed = Iterator[tuple[NDArray[np.int64], NDArray[Any]]]


@dataclass(frozen=True)
class Computation:
    """What computes rows, by name, and the rows as it gives them: their places, and values."""

    engine: str
    rows: Computed


@dataclass(frozen=True)
class Lacking:
    """The rows to compute: their places, this rank's share of how many, what computed the others.

    engines: of the rows of the store that are wanted and there already.
    """

    places: NDArray[np.int64]
    num_in_all: int
    engines: tuple[str, ...]


def filling(
    description: Mapping[str, Any],
    keys: NDArray[np.void],
    *,
    compute: Callable[[Lacking], Computation],
    what: str,
    hint: str = "",
    ranks: Ranks = ALONE,
) -> Generator[PassReport, None, tuple[Shard, ...]]:
    """Compute the rows that a store lacks of the images named `keys`; return shards with them all.

    compute: takes what to compute. A report comes after each of the parts it computes. what, hint:
    for people. Another process that wants rows of the same store waits until this one is done, and
    then finds them. ranks: the processes that do this together, each computing a share; they must
    have the folder in common. Whenever this is closed, what was computed is kept. Raises SaveError
    if the disk is too small, before anything is written to it, MissingError if rows lack and the
    cache cannot be written, or is not the same folder on all ranks.
    """
    folder = store_folder(description)
    shards = list(read_shards(folder))
    if not ranks.largest_beside(len(find_rows(shards, keys)[1]))():
        return tuple(shards)
    with ExitStack() as lock:

        def begin() -> tuple[NDArray[np.int64], tuple[str, ...]]:
            # First, so that what is locked and written then cannot be removed.
            lock.callback(_release, hold_made(folder))
            lock.enter_context(locked(folder, waiting_for="another run that fills it"))
            write_json(folder / "store.json", description)
            # Whoever held the lock before may have computed these very rows.
            shards.extend(read_shards(folder, known=shards))
            rows, lacking = find_rows(shards, keys)
            # The same picture twice is one row.
            _, firsts = np.unique(keys[lacking].view("S32"), return_index=True)
            return lacking[np.sort(firsts)], rows.engines

        lacking, engines = ranks.by_first(begin)
        ranks.refuse_other_folders(folder, what)
        if not ranks.is_first:
            lock.callback(_release, hold(folder))
        started_at, num_done = perf_counter(), 0
        own = ranks.share(lacking)
        computation = compute(Lacking(own, num_in_all=len(lacking), engines=engines))
        buffer = _Buffer(folder, computation.engine)
        written: list[Shard] = []
        try:
            for places, values in computation.rows:
                if not num_done:
                    # The first part shows how much room a row takes.
                    num_bytes = len(lacking) * _table(1, values).itemsize
                    _refuse_full_disk(folder, num_bytes, what, hint)
                written += buffer.add(keys[places], values)
                num_done += len(places)
                # The others are taken to be as far as this one.
                num_in_all = num_done * len(lacking) // len(own)
                yield PassReport(num_in_all, len(lacking), perf_counter() - started_at, what)
        finally:
            # Stopped in between, by whatever: what was computed is kept.
            written += buffer.write()
        if ranks.is_alone:
            shards += written
        else:
            shards[:] = _written_by_all(ranks, folder, written, what)
    return tuple(shards)


def _release(held: Held | None) -> None:
    if held:
        held.release()


def _written_by_all(
    ranks: Ranks, folder: Path, written: Sequence[Shard], what: str
) -> tuple[Shard, ...]:
    """Give all shards of a store once every rank has written its own; raises MissingError."""
    named = [shard.file_name for shard in written]
    for rank, names in enumerate(ranks.gathered(named)):
        for name in names:
            if not appears(folder / name):
                raise MissingError(
                    f"{what}: {folder / name}, which rank {rank} has written, is not seen by rank"
                    f" {ranks.rank}.",
                    hint="see whether the folder's file system is shared; the same command goes on",
                )
    return read_shards(folder)


class _Buffer:
    """Rows that wait until they are worth a file, or a minute has passed.

    They wait in one table that is taken at once. As many small arrays, each would be cut out of the
    room that a batch's inputs have just left, the next batch would then find no room large enough,
    and VGG16's pass grow by 60 MB every other batch (glibc's allocator, 2026-11).
    """

    def __init__(self, folder: Path, engine: str) -> None:
        self._folder, self._engine = folder, engine
        self._num_rows = 0
        self._table: NDArray[Any] | None = None
        self._written_at = perf_counter()

    def add(self, keys: NDArray[np.void], values: NDArray[Any]) -> list[Shard]:
        """Take rows; give the shards that were written, if it was time."""
        written = []
        if self._table is not None and self._num_rows + len(keys) > len(self._table):
            written += self.write()
        if self._table is None:
            row_bytes = _table(1, values).itemsize
            self._table = _table(max(len(keys), SHARD_BYTES // row_bytes), values)
        new = slice(self._num_rows, self._num_rows + len(keys))
        self._table["key"][new], self._table["values"][new] = keys, values
        self._num_rows += len(keys)
        if perf_counter() - self._written_at > SHARD_SECONDS:
            written += self.write()
        return written

    def write(self) -> list[Shard]:
        """Write what waits; give its shard, none if nothing waits."""
        if self._table is None:
            return []
        table = self._table[: self._num_rows]
        self._table, self._num_rows = None, 0
        self._written_at = perf_counter()
        return [_write_table(self._folder, table, self._engine)]


def _refuse_full_disk(folder: Path, num_bytes: int, what: str, hint: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes + SPARE_BYTES:
        advice = "free some space, or set HEPTAD_HOME to a larger disk"
        raise SaveError(
            f"{what} needs {num_bytes:,} bytes in {folder}, but {free:,} are free.",
            hint=f"{advice}; or {hint}" if hint else advice,
        )


@dataclass(frozen=True)
class StoreSummary:
    """A store as `heptad cache list` shows it. used_at: seconds since 1970."""

    key: str
    description: dict[str, Any]
    num_bytes: int
    used_at: float

    @property
    def said(self) -> str:
        """What the rows are of, in words."""
        about = self.description
        if "pictures" in about:
            return f"pictures in {about['pictures']} channels, {about.get('image_size', '?')} px"
        size = about.get("transform", {}).get("image_size", "?")
        return f"{about.get('architecture', '?')} {about.get('split', '?')}, {size} px"

    @property
    def age(self) -> str:
        """When the store was last used, in local time."""
        return datetime.fromtimestamp(self.used_at).strftime("last used %Y-%m-%d %H:%M")

    def as_document(self) -> dict[str, Any]:
        """Give the summary as plain values, for JSON."""
        return asdict(self)


def list_stores() -> list[StoreSummary]:
    """List the stores of the cache, the one used last first."""
    found = []
    for path in stores_folder().glob("[!.]*/store.json"):
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            description = {}
        folder = path.parent
        found.append(StoreSummary(folder.name, description, folder_bytes(folder), used_at(folder)))
    return sorted(found, key=lambda store: -store.used_at)


def clear_stores(beginnings: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Remove all stores, or those whose names begin so; give the names removed, and those in use.

    Raises UnusableError for a beginning that no store has, SaveError if one cannot be removed.
    """
    keys = [store.key for store in _tidied()]
    for beginning in beginnings:
        if not any(key.startswith(beginning) for key in keys):
            raise UnusableError(
                f"there are no kept features {beginning!r}.", hint="see `heptad cache list`"
            )
    wanted = [key for key in keys if not beginnings or key.startswith(tuple(beginnings))]
    removed = [key for key in wanted if _remove(key)]
    return removed, [key for key in wanted if key not in removed]


def _tidied() -> list[StoreSummary]:
    """List the stores, once what a removal that was cut off has left is gone."""
    remove_leftovers(stores_folder(), folders=True)
    return list_stores()


def _remove(key: str) -> bool:
    """Remove a store unless a live run uses it; tell whether it is gone."""
    folder = stores_folder() / key
    aside = folder.with_name(f".{key}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with exclusive(folder) as is_mine:
            if is_mine:
                # At once: who wants it from now on makes another one.
                folder.rename(aside)
                shutil.rmtree(aside)
            return is_mine
    # Another process was faster.
    except FileNotFoundError:
        return True
    except OSError as error:
        raise SaveError(f"{folder} cannot be removed: {error.strerror}.") from error


def make_room(most_bytes: int) -> None:
    """Remove the stores used longest ago until all together take at most `most_bytes`.

    What a live run uses is never taken; what cannot be removed is left, with a warning.
    """
    stores = _tidied()
    total = sum(store.num_bytes for store in stores)
    for store in reversed(stores):
        if total <= most_bytes:
            return
        try:
            is_gone = _remove(store.key)
        except SaveError as error:
            logger.warning("%s", error.message)
            continue
        if is_gone:
            logger.info("removed the features %s, used longest ago", store.key[:12])
            total -= store.num_bytes
