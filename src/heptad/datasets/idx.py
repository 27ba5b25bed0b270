"""The IDX format of MNIST and its family: reading and writing, plain or packed by gzip.

Format: http://yann.lecun.com/exdb/mnist/ - two zero bytes, the type (8 for unsigned bytes, 12 for
32-bit integers), the number of dimensions, each dimension as a big-endian 32-bit count, the values,
big-endian too. QMNIST's labels are rows of eight integers, of which the first is the class:
https://github.com/facebookresearch/qmnist.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heptad.errors import DataError

# What a set of the family could honestly hold; a header that claims more is damaged or hostile.
MOST_BYTES = 1 << 33
# MNIST's images pack to a fifth of their size; a gzip bomb packs to a thousandth.
MOST_TIMES_PACKED = 200
ALWAYS_BYTES = 1 << 24
# What a file of each kind may begin with: its type, as numpy names it, and its dimensions.
LAYOUTS = {
    "images": {b"\0\0\x08\x03": ("u1", 3)},
    "labels": {b"\0\0\x08\x01": ("u1", 1), b"\0\0\x0c\x02": (">i4", 2)},
}


def idx_header(*shape: int) -> bytes:
    """Give the header of an IDX file of unsigned bytes with this shape."""
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def read_idx(path: Path, kind: Literal["images", "labels"]) -> NDArray[Any]:
    """Read a whole IDX file: images [N, H, W], `uint8`; or labels [N], whole numbers.

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
) -> NDArray[Any]:
    start = file.read(4)
    if start not in LAYOUTS[kind]:
        expected = " or ".join(f"0x{allowed.hex()}" for allowed in LAYOUTS[kind])
        raise DataError(
            f"{path} is no IDX file of {kind}: it begins with 0x{start.hex() or '(nothing)'},"
            f" not with {expected}."
        )
    dtype, num_dimensions = LAYOUTS[kind][start]
    sizes = file.read(4 * num_dimensions)
    if len(sizes) < 4 * num_dimensions:
        raise DataError(f"{path} is cut short: it ends within its header.")
    shape = struct.unpack(f">{num_dimensions}I", sizes)
    value_bytes = np.dtype(dtype).itemsize
    num_bytes = math.prod(shape) * value_bytes
    if not 0 < num_bytes <= most_bytes:
        packed = " in a packed file of its size" if most_bytes < MOST_BYTES else ""
        raise DataError(
            f"{path} claims {' x '.join(map(str, shape))} values;"
            f" allowed: at least one, at most {most_bytes // value_bytes:,}{packed}."
        )
    # Memory that is not written to is not taken, so a damaged count costs none.
    values = np.empty(num_bytes, np.uint8)
    num_read = 0
    while num_now := file.readinto(values[num_read:].data):
        num_read += num_now
    if num_read < num_bytes:
        raise DataError(
            f"{path} is cut short: it holds {num_read // value_bytes:,} values where its header"
            f" says {num_bytes // value_bytes:,}."
        )
    if file.read(1):
        count = num_bytes // value_bytes
        raise DataError(f"{path} is too long: more follows the {count:,} values of its header.")
    found = values.view(dtype).reshape(shape)
    return found[:, 0] if kind == "labels" and num_dimensions > 1 else found
