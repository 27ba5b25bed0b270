"""SHA-256s of files for which the catalog has an MD5 alone: noted once, binding from then on.

They lie beside the files, in the cache. Whoever can change them can change the files as well: they
are against accidents, and against a publisher's file that is another one from one day to the next.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from heptad.datasets.catalog import CatalogEntry, ServedFile
from heptad.errors import MissingError, SaveError
from heptad.files import CHUNK, locked, write_json

logger = logging.getLogger("heptad")

NAME = "pinned.json"


def is_as_served(path: Path, file: ServedFile) -> bool:
    """Tell whether `path` has the file's MD5, and the SHA-256 that is known or pinned beside it."""
    md5, sha256 = _hashes(path)
    return md5 == file.md5 and _expected(path.parent, file) in ("", sha256)


def pin_files(entry: CatalogEntry, folder: Path) -> None:
    """Note the SHA-256 of each file of a set that has none yet, and whose MD5 is right.

    Where it cannot be noted, in a cache that is read-only, the MD5 goes on deciding.
    """
    new = {}
    for file in entry.files:
        if isinstance(file, ServedFile) and not _expected(folder, file):
            md5, sha256 = _hashes(folder / file.name)
            if md5 == file.md5:
                new[file.name] = sha256
    if not new:
        return
    try:
        with locked(folder):
            write_json(folder / NAME, {"sha256": new | _pinned(folder)})
    except (MissingError, SaveError) as error:
        logger.debug("the hashes of %s are not kept: %s", entry.name, error)


def _hashes(path: Path) -> tuple[str, str]:
    """Give MD5 and SHA-256 of a file's content, in one reading."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
    return md5.hexdigest(), sha256.hexdigest()


def _expected(folder: Path, file: ServedFile) -> str:
    return file.sha256 or _pinned(folder).get(file.name, "")


def _pinned(folder: Path) -> dict[str, str]:
    try:
        pinned = json.loads((folder / NAME).read_bytes())["sha256"]
        return {str(name): str(sha256) for name, sha256 in pinned.items()}
    # Without a list that can be read, the MD5s decide once more.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
