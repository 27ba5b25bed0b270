"""Files of pictures, made byte by byte where Pillow does not write such ones."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def saved(picture, format_name: str, **options) -> bytes:
    """The bytes of a file that Pillow writes of an array or a picture."""
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(picture)
    target = io.BytesIO()
    picture.save(target, format_name, **options)
    return target.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
ADAM7 = (*ADAM7, (0, 1, 1, 2))


def png(values, *, depth=None, kind=None, interlaced=False, extra=b"", size=None) -> bytes:
    """A PNG of [H, W, C], 8 or 16 bits, as its specification says; C decides what it holds.

    size: what the header says instead of the truth.
    """
    height, width, num_channels = values.shape
    depth = depth or values.dtype.itemsize * 8
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[num_channels] if kind is None else kind
    parts = [values[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [values]
    big_endian = [part.astype(part.dtype.newbyteorder(">")) for part in parts if part.size]
    rows = b"".join(b"\0" + row.tobytes() for part in big_endian for row in part)
    header = struct.pack(">IIBBBBB", *(size or (width, height)), depth, kind, 0, 0, interlaced)
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")


def tiff(values, photometric, *, order="<", packed=False, planes=False, turn=1, kind=1, extra=()):
    """A TIFF of [H, W, C] in one strip (or one a plane), as its specification says.

    kind: 1 whole numbers, 2 signed ones, 3 floating-point.
    """
    height, width, num_channels = values.shape
    stored = values.astype(values.dtype.newbyteorder(order))
    strips = [stored[..., c] for c in range(num_channels)] if planes else [stored]
    strips = [zlib.compress(s.tobytes()) if packed else s.tobytes() for s in strips]
    bits = [values.dtype.itemsize * 8] * num_channels
    lengths = [len(strip) for strip in strips]
    tags = {256: [width], 257: [height], 258: bits, 259: [8 if packed else 1], 262: [photometric]}
    tags |= {273: [0] * len(strips), 274: [turn], 277: [num_channels], 278: [height], 279: lengths}
    tags |= {284: [2 if planes else 1], 338: list(extra), 339: [kind] * num_channels}
    tags = {tag: numbers for tag, numbers in tags.items() if numbers}
    start = 8 + 2 + 12 * len(tags) + 4
    # Whatever has two numbers or more lies behind the directory, and the strips behind that.
    first = start + sum(4 * len(numbers) for numbers in tags.values() if len(numbers) > 1)
    tags[273] = [first + sum(lengths[:place]) for place in range(len(strips))]
    directory, beyond = struct.pack(order + "H", len(tags)), b""
    for tag, numbers in tags.items():
        content = struct.pack(f"{order}{len(numbers)}I", *numbers)
        place = content if len(numbers) == 1 else struct.pack(order + "I", start + len(beyond))
        beyond += content if len(numbers) > 1 else b""
        directory += struct.pack(order + "HHI", tag, 4, len(numbers)) + place
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return magic + directory + bytes(4) + beyond + b"".join(strips)
