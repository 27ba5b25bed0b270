"""Pictures that people name: finding them, and decoding one as the network should see it.

The file's content decides its format, never its name, and only formats of this list are tried.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from heptad.errors import ImageError
from heptad.files import user_path

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# 50 megapixels: twice what a phone takes, and far below what fills a memory.
MOST_PIXELS = 50_000_000


def find_pictures(names: list[str]) -> list[Path]:
    """List the files that `names` mean; a folder stands for the pictures in it, sorted by name.

    Raises ImageError if nothing is named, a file is not there, or a folder holds no picture.
    """
    if not names:
        raise ImageError("no image is named.", hint="name pictures, or folders of pictures")
    paths = []
    for name in names:
        path = user_path(name)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if _may_be_picture(p))
            if not inside:
                raise ImageError(f"{name} holds no picture; looked for {', '.join(SUFFIXES)}.")
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise ImageError(f"there is no image {name!r}.")
    return paths


def _may_be_picture(path: Path) -> bool:
    is_hidden = path.name.startswith(".")
    return path.suffix.lower() in SUFFIXES and not is_hidden and path.is_file()


def read_picture(path: Path, *, channels: int) -> NDArray[np.uint8]:
    """Decode a picture, upright, to gray [1, H, W] or RGB [3, H, W], `uint8`.

    Transparent places become white. Raises ImageError, naming the file, for anything that is no
    picture of an allowed format, is damaged, too large, or of more than 8 bits a channel.
    """
    try:
        # A file that Pillow finds suspicious is refused rather than decoded with a warning.
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("error")
            picture = Image.open(file, formats=FORMATS)
            if picture.width * picture.height > MOST_PIXELS:
                raise ImageError(
                    f"{path} has {picture.width} x {picture.height} pixels;"
                    f" allowed: {MOST_PIXELS:,} in all."
                )
            # Pillow reads 16-bit colours as their upper 8 bits, and says so only here.
            is_deep = any("16" in str(tile[3]) for tile in picture.tile)
            if is_deep or picture.mode.startswith(("I", "F")):
                raise ImageError(
                    f"{path} has more than 8 bits a channel.",
                    hint="save it with 8 bits a channel first",
                )
            upright = ImageOps.exif_transpose(picture)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright)
            pixels = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path} is no picture that can be read: its content is of no known format.",
            hint=f"formats read: {', '.join(FORMATS)}",
        ) from error
    # Damaged files make Pillow raise almost anything; each of them means that this is no picture.
    except Exception as error:
        raise ImageError(
            f"{path} is no picture that can be read: {getattr(error, 'strerror', '') or error}.",
            hint=f"formats read: {', '.join(FORMATS)}",
        ) from error
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
