"""The IDX format of MNIST and its family: reading and writing, plain or packed by gzip.

Format: http://yann.lecun.com/exdb/mnist/ - two zero bytes, the type (8 for unsigned bytes), the
number of dimensions, each dimension as a big-endian 32-bit count, the values.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heptad.errors import DataError

# What a set of the family could honestly hold; a header that claims more is damaged or hostile.
MOST_BYTES = 1 << 33
# MNIST's images pack to a fifth of their size; a gzip bomb packs to a thousandth.
MOST_TIMES_PACKED = 200
ALWAYS_BYTES = 1 << 24
DIMENSIONS = {"images": 3, "labels": 1}


def idx_header(*shape: int) -> bytes:
    """Give the header of an IDX file of unsigned bytes with this shape."""
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def read_idx(path: Path, kind: Literal["images", "labels"]) -> NDArray[np.uint8]:
    """Read a whole IDX file: images [N, H, W] or labels [N], `uint8`.

    Raises DataError, naming the file, if it is not of that kind, cut short, or too long, or if it
    is packed and would unpack to far more than images do.
    """
    try:
        if path.suffix != ".gz":
            with path.open("rb") as file:
                return _read(file, path, kind, most_bytes=MOST_BYTES)
        most_bytes = max(ALWAYS_BYTES, MOST_TIMES_PACKED * path.stat().st_size)
        with gzip.open(path) as unpacked:
            return _read(unpacked, path, kind, most_bytes=min(most_bytes, MOST_BYTES))
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {reason}.") from error


def _read(
    file: io.BufferedIOBase, path: Path, kind: Literal["images", "labels"], *, most_bytes: int
) -> NDArray[np.uint8]:
    num_dimensions = DIMENSIONS[kind]
    start = file.read(4)
    expected = idx_header(*(0,) * num_dimensions)[:4]
    if start != expected:
        raise DataError(
            f"{path} is no IDX file of {kind}: it begins with 0x{start.hex() or '(nothing)'},"
            f" not with 0x{expected.hex()}."
        )
    sizes = file.read(4 * num_dimensions)
    if len(sizes) < 4 * num_dimensions:
        raise DataError(f"{path} is cut short: it ends within its header.")
    shape = struct.unpack(f">{num_dimensions}I", sizes)
    num_bytes = math.prod(shape)
    if not 0 < num_bytes <= most_bytes:
        packed = " in a packed file of its size" if most_bytes < MOST_BYTES else ""
        raise DataError(
            f"{path} claims {' x '.join(map(str, shape))} values;"
            f" allowed: at least one, at most {most_bytes:,}{packed}."
        )
    # Memory that is not written to is not taken, so a damaged count costs none.
    values = np.empty(num_bytes, np.uint8)
    num_read = 0
    while num_now := file.readinto(values[num_read:].data):
        num_read += num_now
    if num_read < num_bytes:
        raise DataError(
            f"{path} is cut short: it holds {num_read:,} values where its header says"
            f" {num_bytes:,}."
        )
    if file.read(1):
        raise DataError(f"{path} is too long: more follows the {num_bytes:,} values of its header.")
    return values.reshape(shape)
