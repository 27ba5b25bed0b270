"""Pictures of more than 8 bits a channel: all bits read with Pillow, then scaled. No torch.

Of 16 bits the file's type says what is white; of numbers with a sign or a point, the user does.
"""

from __future__ import annotations

import math
import sys
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    TiffImageFile,
)

from heptad.errors import ImageError

Values = NDArray[np.uint16]

# What is noted of pictures whose numbers lie beyond those that are black and white.
CLIPPED = "numbers beyond black or white clipped"
WHITE_IS_ZERO = 0
IN_PLANES = 2
# How Pillow names the order of two bytes, and the other order.
OTHER_ORDER = {";16B": ";16L", ";16L": ";16B"}
OTHER_ORDER[";16N"] = ";16B" if sys.byteorder == "little" else ";16L"


def layout_of(picture: ImageFile.ImageFile) -> str:
    """Give Pillow's word for how pixels lie in a file not yet decoded, such as "RGB;16B"."""
    if not picture.tile:
        return ""
    args = picture.tile[0].args
    return str(args[0] if isinstance(args, tuple) else args)


def is_deep(picture: ImageFile.ImageFile) -> bool:
    """Tell whether a file that is not yet decoded has more than 8 bits a channel."""
    if isinstance(picture, TiffImageFile):
        bits: tuple[int, ...] = picture.tag_v2.get(BITSPERSAMPLE, (1,))
        return max(bits) > 8
    return picture.format == "PNG" and layout_of(picture).endswith(";16B")


def read_16_bits(picture: ImageFile.ImageFile, file: BinaryIO, *, name: str) -> Values:
    """Decode gray, gray and alpha, RGB or RGBA: `uint16` [H, W, C], C from 1 to 4.

    Pillow gives the upper byte of each colour alone. Told that the two bytes lie the other way
    round, it gives the lower one; so such a file is decoded twice. Raises ImageError, naming the
    file, for a layout with which that does not work.
    """
    layout = layout_of(picture)
    if picture.mode.startswith("I;16"):
        picture.load()
        return np.asarray(picture).astype(np.uint16)[..., None]
    colours, order = layout[:-4], layout[-4:]
    in_planes = (
        isinstance(picture, TiffImageFile) and picture.tag_v2.get(PLANAR_CONFIGURATION) == IN_PLANES
    )
    if in_planes or order not in OTHER_ORDER or colours not in ("LA", "RGB", "RGBA", "RGBX"):
        raise ImageError(
            f"{name} has more than 8 bits a channel in a layout that is not read:"
            f" {'one plane a channel' if in_planes else layout}.",
            hint="save it with 8 bits a channel first",
        )
    picture.load()
    high = np.asarray(picture).astype(np.uint16)
    file.seek(0)
    again = Image.open(file, formats=(str(picture.format),))
    if colours == "LA":
        # Four bytes a pixel, like RGBA of 8 bits: upper and lower of gray, of alpha.
        _decode_as("RGBA", again)
        high, low = high[..., (0, 3)], np.asarray(again)[..., 1::2]
    else:
        _decode_as(colours + OTHER_ORDER[order], again)
        low = np.asarray(again)
    values: Values = high * 256 + low
    return values


def _decode_as(layout: str, picture: ImageFile.ImageFile) -> None:
    """Decode a file as if its pixels lay so."""
    picture.tile = [
        tile._replace(args=(layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout)
        for tile in picture.tile
    ]
    picture.load()


def scale_range(
    picture: ImageFile.ImageFile, between: tuple[float, float], notes: list[str], *, name: str
) -> Image.Image:
    """Scale gray of any numbers so that the first of `between` is black, the second white; clipped.

    Raises ImageError, naming the file, for numbers that are not finite.
    """
    low, high = between
    # Asked for first: once it is decoded, a picture has none.
    layout = layout_of(picture)
    picture.load()
    values = np.asarray(picture)
    if layout == "I;32N":
        # Pillow has no mode for 32 bits without a sign, and gives the upper half as negative.
        values = values.view(np.uint32)
    least, most = float(values.min()), float(values.max())
    # One of them is not, if any number is not.
    if not math.isfinite(least) or not math.isfinite(most):
        raise ImageError(
            f"{name} holds numbers that are not finite.",
            hint="put another number in their place first",
        )
    notes.append(f"numbers from {low:g} to {high:g} scaled to 8 bits")
    if least < low or most > high:
        notes.append(CLIPPED)
    scaled: NDArray[np.uint8] = np.empty(values.shape, np.uint8)
    # Row by row, since 64 bits for all values at once could fill the memory.
    for row, scaled_row in zip(values, scaled, strict=True):
        with np.errstate(over="ignore"):
            share = (row.astype(np.float64) - low) / (high - low)
        scaled_row[...] = np.rint(255 * share.clip(0, 1))
    return Image.fromarray(scaled)


def scale_to_8_bits(picture: ImageFile.ImageFile, values: Values, notes: list[str]) -> Image.Image:
    """Scale the values of a picture, v / 257 rounded; what is transparent in it becomes alpha.

    Values below 4096 are 12 bits or fewer in a file of 16, and would all be almost black: they are
    scaled by the largest.
    """
    num_channels = values.shape[2]
    num_colours = 3 if num_channels > 2 else 1
    most = int(values[..., :num_colours].max())
    tops = np.full(num_channels, 65535, np.uint32)
    note = "16 bits scaled to 8"
    if 0 < most < 4096:
        tops[:num_colours] = most
        note += f" by the largest value, {most}"
    notes.append(note)
    scaled: NDArray[np.uint8] = np.empty(values.shape, np.uint8)
    # Row by row, since 32 bits for all values at once could fill the memory.
    for row, scaled_row in zip(values, scaled, strict=True):
        scaled_row[...] = (row.astype(np.uint32) * 255 + tops // 2) // tops
    # Pillow turns such gray around for 8 bits, but not for 16.
    if isinstance(picture, TiffImageFile):
        is_inverted = picture.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO
        scaled = 255 - scaled if is_inverted else scaled
    if "transparency" in picture.info:
        is_clear = (values == picture.info["transparency"]).all(axis=-1)
        scaled = np.dstack([scaled, np.where(is_clear, 0, 255).astype(np.uint8)])
    height, width, num_bands = scaled.shape
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[num_bands]
    return Image.frombytes(mode, (width, height), scaled.tobytes())
