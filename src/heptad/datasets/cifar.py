"""CIFAR-10's binary archive: read in one pass, without unpacking anything to the disk. No torch.

Format: https://www.cs.toronto.edu/~kriz/cifar.html - five files of training images and one of test
images; in each, rows of one byte for the class and 3 x 32 x 32 for red, green and blue.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heptad.errors import DataError

ARCHIVE_NAME = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"
MEMBERS = {
    "train": [f"{FOLDER}/data_batch_{number}.bin" for number in range(1, 6)],
    "test": [f"{FOLDER}/test_batch.bin"],
}
CHANNELS, SIDE_PX = 3, 32
ROW_BYTES = 1 + CHANNELS * SIDE_PX**2
MOST_BYTES = 10_000 * ROW_BYTES
# Beside the six files of images there are names, a page of the web and the headers of all.
OTHER_BYTES = 1 << 20


def read_cifar(
    path: Path, part: Literal["train", "test"]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read one part: images [N, 3, 32, 32] `uint8` in the order of the files, and labels [N].

    Raises DataError, naming the archive, if it is damaged, lacks a file of images, or holds what
    the publisher's does not: a link or device, a name out of its folder, a file that is too large.
    """
    try:
        with gzip.open(path) as unpacked:
            rows = _rows(path, _Bounded(unpacked, path), kept=MEMBERS[part])
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {reason}.") from error
    missing = [name for names in MEMBERS.values() for name in names if name not in rows]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}.")
    own = [rows[name] for name in MEMBERS[part]]
    images = np.concatenate([some[:, 1:] for some in own])
    labels = np.concatenate([some[:, 0] for some in own])
    return images.reshape(-1, CHANNELS, SIDE_PX, SIDE_PX), labels


def _rows(path: Path, unpacked: _Bounded, *, kept: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """Read the files of images in whatever order they come, the rows of those `kept`."""
    expected = {name for names in MEMBERS.values() for name in names}
    rows: dict[str, NDArray[np.uint8]] = {}
    # As a stream: nothing is sought in it, no name in it becomes a path.
    with tarfile.open(fileobj=unpacked, mode="r|") as archive:
        for member in archive:
            _refuse_stranger(path, member)
            file = archive.extractfile(member) if member.name in expected else None
            if file is None:
                continue
            content = file.read()
            if member.name in rows:
                raise DataError(f"{path} holds {member.name} more than once.")
            if not content or len(content) % ROW_BYTES:
                raise DataError(
                    f"{path} holds {member.name} with {len(content):,} bytes;"
                    f" allowed: rows of {ROW_BYTES:,} bytes, at least one."
                )
            content = content if member.name in kept else b""
            rows[member.name] = np.frombuffer(content, np.uint8).reshape(-1, ROW_BYTES)
    return rows


def _refuse_stranger(path: Path, member: tarfile.TarInfo) -> None:
    """Refuse a member such as the publisher's archive has none of."""
    is_plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    is_inside = member.name.startswith(f"{FOLDER}/") and member.name.count("/") == 1
    if not (is_plain and is_inside) and not (member.isdir() and member.name == FOLDER):
        raise DataError(
            f"{path} holds {member.name!r}, which is no plain file in {FOLDER}.",
            hint="nothing of it was used; the publisher's own archive has no such thing",
        )
    if member.size > MOST_BYTES:
        raise DataError(
            f"{path} holds {member.name!r} with {member.size:,} bytes;"
            f" allowed: at most {MOST_BYTES:,}."
        )


class _Bounded(io.RawIOBase):
    """What is unpacked, up to as much as the whole set can honestly be."""

    def __init__(self, unpacked: gzip.GzipFile, path: Path) -> None:
        self._unpacked, self._path = unpacked, path
        self._left = 6 * MOST_BYTES + OTHER_BYTES

    def read(self, size: int = -1, /) -> bytes:
        """Give at most `size` bytes; raises DataError once there are too many."""
        most = self._left + 1
        content = self._unpacked.read(min(size, most) if size >= 0 else most)
        self._left -= len(content)
        if self._left < 0:
            raise DataError(
                f"{self._path} unpacks to more than {6 * MOST_BYTES + OTHER_BYTES:,} bytes."
            )
        return content
