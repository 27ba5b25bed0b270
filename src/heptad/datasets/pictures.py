"""Pictures that people name: finding them, and decoding one as the network should see it. No torch.

The file's content decides its format, never its name, and only formats of this list are tried. A
file is decoded whole or refused; what was done to it that a user should know is noted.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from heptad.datasets.pillow_warnings import noting_warnings
from heptad.datasets.sixteen_bits import (
    is_deep,
    layout_of,
    read_16_bits,
    scale_range,
    scale_to_8_bits,
)
from heptad.errors import ImageError, is_of_memory
from heptad.files import user_path
from heptad.recipe import MOST_PIXELS, Recipe

logger = logging.getLogger("heptad")

# Each format with the bytes that its files begin with.
FORMATS: dict[str, tuple[bytes, ...]] = {
    "PNG": (b"\x89PNG",),
    "JPEG": (b"\xff\xd8\xff",),
    "WEBP": (b"RIFF",),
    "BMP": (b"BM",),
    "GIF": (b"GIF8",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Numbers of which it cannot be known which is black and which white, by Pillow's modes.
UNKNOWN_WHITE = {"I": "signed or 32-bit whole", "F": "floating-point"}
IMAGES_AT_A_TIME = 1000
MOST_FRAMES = 100
# What can be found under a name that is no regular file.
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
# What puts a picture of each EXIF orientation upright; 1 is upright already.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = ExifTags.Base.Orientation


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, upright, and what its file was.

    pixels: `uint8` [C, H, W], gray or RGB.
    mode, format: in Pillow's words, such as "CMYK" and "JPEG", or "RGB;16" for 16 bits a channel.
    size: width and height as stored, before any turn.
    notes: what was done that a user should know, such as "first of 12 frames".
    """

    pixels: NDArray[np.uint8]
    mode: str
    format: str
    size: tuple[int, int]
    notes: tuple[str, ...]


def find_pictures(names: list[str]) -> list[Path]:
    """List the files that `names` mean; a folder stands for the pictures in it, sorted by name.

    Raises ImageError if nothing is named, a file is not there, or a folder holds no picture.
    """
    if not names:
        raise ImageError("no image is named.", hint="name pictures, or folders of pictures")
    paths = []
    for name in names:
        path = user_path(name)
        if not name:
            raise ImageError("there is no image ''.")
        if path.is_dir():
            within = sorted(p for p in path.iterdir() if not p.name.startswith("."))
            inside = [p for p in within if _may_be_picture(p)]
            if not inside:
                raise ImageError(
                    f"{name} holds no picture; looked for {', '.join(SUFFIXES)}.",
                    hint="folders in it are not looked into; a file of another suffix can be named",
                )
            if len(inside) < len(within):
                logger.info(
                    "%s: %d of %d passed over: folders, or files of another suffix",
                    name,
                    len(within) - len(inside),
                    len(within),
                )
            paths += inside
        # Whatever else is there, decoding says what it is.
        elif os.path.lexists(path):
            paths.append(path)
        else:
            raise ImageError(f"there is no image {name!r}.")
    return paths


def _may_be_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


FloatRange = tuple[float, float]


@dataclass(frozen=True)
class Decoding:
    """How the files of a set become pixels, as `decode_picture` says; the same wherever it is read.

    channels: 1 gray, 3 RGB.
    """

    channels: int
    max_pixels: int = MOST_PIXELS
    float_range: FloatRange | None = None

    @classmethod
    def of(cls, recipe: Recipe, *, channels: int) -> Self:
        """Give the recipe's way, to so many channels."""
        return cls(channels, recipe.max_pixels, recipe.float_range)

    def decode(self, path: Path) -> Picture:
        """Decode a file; raises ImageError."""
        return decode_picture(path, **self._settings)

    def decode_stream(self, file: BinaryIO, *, name: str) -> Picture:
        """Decode an open file, or bytes, which messages call `name`; raises ImageError."""
        return decode_stream(file, name=name, **self._settings)

    @property
    def _settings(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def version(self) -> str:
        """Name what decides the pixels of a file, its channels apart."""
        numbers = f" {self.float_range}" if self.float_range else ""
        return f"{PIL.__version__}{numbers}"


def read_picture(path: Path, *, channels: int) -> NDArray[np.uint8]:
    """Give the pixels alone of `decode_picture`."""
    return decode_picture(path, channels=channels).pixels


def decode_picture(
    path: Path,
    *,
    channels: int,
    max_pixels: int = MOST_PIXELS,
    float_range: FloatRange | None = None,
) -> Picture:
    """Decode a file to gray (1 channel) or RGB (3): its first frame, upright, on white.

    float_range: which numbers are black and white where the file's type does not say. Raises
    ImageError, naming the file, for anything that is no picture of an allowed format, is damaged,
    has more than `max_pixels`, or holds such numbers while `float_range` is None.
    """
    try:
        # Looked at before it is opened: opening a pipe could wait for ever.
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind != stat.S_IFREG:
            raise ImageError(f"{path} is {KINDS.get(kind, 'no regular file')}, not a picture.")
        with path.open("rb") as file:
            return decode_stream(
                file,
                name=str(path),
                channels=channels,
                max_pixels=max_pixels,
                float_range=float_range,
            )
    except FileNotFoundError as error:
        raise ImageError(f"{path} is not there.", hint="was it moved or removed?") from error
    except OSError as error:
        if is_of_memory(error):
            raise
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.") from error


def decode_stream(
    file: BinaryIO,
    *,
    name: str,
    channels: int,
    max_pixels: int = MOST_PIXELS,
    float_range: FloatRange | None = None,
) -> Picture:
    """Decode an open file, or bytes in memory, from its beginning, as `decode_picture` does.

    name: what messages call it.
    """
    notes: list[str] = []
    with _refusals(file, name, notes, max_pixels=max_pixels):
        picture = Image.open(file, formats=tuple(FORMATS))
        _refuse_by_header(picture, name, max_pixels=max_pixels, float_range=float_range)
        num_frames = _num_frames(picture)
        if num_frames > 1:
            more = " or more" if num_frames == MOST_FRAMES else ""
            notes.append(f"first of {num_frames} frames{more}")
        mode = layout_of(picture).rstrip("BLN") if is_deep(picture) else picture.mode
        size = picture.size
        # Pillow gives the size of these as it is once they are turned.
        if isinstance(picture, TiffImageFile):
            size = picture.tag_v2[IMAGEWIDTH], picture.tag_v2[IMAGELENGTH]
        image = _upright(picture, file, name, notes, float_range=float_range)
        image = _on_white(image, notes)
        pixels = _planes(image.convert({1: "L", 3: "RGB"}[channels]))
    return Picture(pixels, mode, picture.format or "", size, tuple(notes))


def _num_frames(picture: ImageFile.ImageFile) -> int:
    """Count a file's frames, those of a TIFF up to MOST_FRAMES.

    Pillow counts in the square of their number there, which can be made to take minutes.
    """
    if not isinstance(picture, TiffImageFile):
        return int(getattr(picture, "n_frames", 1))
    number = 1
    try:
        while number < MOST_FRAMES:
            picture.seek(number)
            number += 1
    except EOFError:
        pass
    finally:
        picture.seek(0)
    return number


@contextmanager
def _refusals(file: BinaryIO, name: str, notes: list[str], *, max_pixels: int) -> Iterator[None]:
    """Turn whatever Pillow raises into an ImageError, and what it warns of into notes."""
    start = file.read(8)
    file.seek(0)
    try:
        with noting_warnings(notes):
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} has too many pixels; allowed: {max_pixels:,} in all (max_pixels).",
            hint=f"Pillow says: {error}",
        ) from error
    # Damaged files make Pillow raise almost anything; each of them means: this is no picture.
    except Exception as error:
        if is_of_memory(error):
            raise
        reason = getattr(error, "strerror", "") or error
        if isinstance(error, UnidentifiedImageError):
            reason = _why_unidentified(start)
        raise ImageError(
            f"{name} is no picture that can be read: {reason}.",
            hint=f"formats read: {', '.join(FORMATS)}",
        ) from error


def _why_unidentified(start: bytes) -> str:
    if not start:
        return "it is empty"
    for format_name, starts in FORMATS.items():
        if start.startswith(starts):
            return f"it begins as {format_name} does, but is damaged or of a kind that is not read"
    return "its content is of no known format"


def _refuse_by_header(
    picture: ImageFile.ImageFile, name: str, *, max_pixels: int, float_range: FloatRange | None
) -> None:
    """Refuse what need not be decoded to be refused."""
    if picture.width * picture.height > max_pixels:
        raise ImageError(
            f"{name} has {picture.width} x {picture.height} pixels;"
            f" allowed: {max_pixels:,} in all (max_pixels).",
            hint="make it smaller first, or allow more: --max-pixels",
        )
    if picture.mode in UNKNOWN_WHITE and float_range is None:
        raise ImageError(
            f"{name} holds {UNKNOWN_WHITE[picture.mode]} numbers; which of them is black and which"
            " white is not known (float_range).",
            hint="--float-range 0,1 would say it; or save it with 8 or 16 bits a channel",
        )


def _upright(
    picture: ImageFile.ImageFile,
    file: BinaryIO,
    name: str,
    notes: list[str],
    *,
    float_range: FloatRange | None,
) -> Image.Image:
    """Decode the whole of a picture, to at most 8 bits a channel, and turn it as EXIF says."""
    # Asked for first: Pillow turns TIFF files by itself while it decodes, and forgets why.
    done = picture.tag_v2.get(ORIENTATION) in TURNS if isinstance(picture, TiffImageFile) else False
    if picture.mode in UNKNOWN_WHITE and float_range:
        image = scale_range(picture, float_range, notes, name=name)
    elif is_deep(picture):
        image = scale_to_8_bits(picture, read_16_bits(picture, file, name=name), notes)
    else:
        scale = {"L;2": 85, "L;4": 17}.get(layout_of(picture), 1)
        picture.load()
        # Pillow scales 2 and 4 bits to 8, but not the value that stands for transparent.
        if scale > 1 and "transparency" in picture.info:
            picture.info["transparency"] *= scale
        image = picture
    try:
        turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
    # EXIF is written by all kinds of programs, and the pixels are no worse for it.
    except (ArithmeticError, LookupError, SyntaxError, TypeError, ValueError, struct.error):
        notes.append("not turned, since its EXIF data cannot be read")
        return image
    if done or turn is not None:
        notes.append("turned by its EXIF orientation")
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode == "CMYK":
        notes.append("CMYK turned into RGB without a colour profile")
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() != (255, 255):
        notes.append("transparent places are white")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _planes(image: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    return np.array(pixels.transpose(2, 0, 1), order="C")


def to_gray(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn `uint8` [N, 3, H, W] into [N, 1, H, W], as pictures of files are turned gray."""
    num_images, _, height, width = images.shape
    gray = np.empty((num_images, 1, height, width), np.uint8)
    for start in range(0, num_images, IMAGES_AT_A_TIME):
        some = images[start : start + IMAGES_AT_A_TIME]
        # One below the other, since Pillow takes longer to begin than to do it.
        tall = Image.fromarray(some.transpose(0, 2, 3, 1).reshape(-1, width, 3)).convert("L")
        gray[start : start + IMAGES_AT_A_TIME] = np.asarray(tall).reshape(-1, 1, height, width)
    return gray


def margins(shape: Sequence[int], size: int) -> tuple[int, int, int, int]:
    """Give what an image [..., H, W] lacks left, right, above and below to lie amid size x size.

    What is odd is one more on the right and below; below 0 where the image is larger.
    """
    height, width = shape[-2:]
    left, above = (size - width) // 2, (size - height) // 2
    return left, size - width - left, above, size - height - above


def pad_picture(pixels: NDArray[np.uint8], size: int, *, name: str) -> NDArray[np.uint8]:
    """Put `uint8` [C, H, W] amid black, [C, S, S]; raises ImageError, with its name, if larger."""
    left, right, above, below = margins(pixels.shape, size)
    if min(left, above) < 0:
        height, width = pixels.shape[-2:]
        raise ImageError(
            f"{name} has {width} x {height} pixels; allowed: {size} x {size}, since pictures are"
            " not resized (fit = pad)."
        )
    return np.pad(pixels, ((0, 0), (above, below), (left, right)))


def resize_picture(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize `uint8` [C, H, W] to [C, S, S] by Pillow's bilinear filter, antialiased."""
    if pixels.shape[1:] == (size, size):
        return pixels
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    return _planes(image.resize((size, size), Image.Resampling.BILINEAR))


# By the recipe's `fit`.
FITS: dict[str, Callable[..., NDArray[np.uint8]]] = {
    "resize": lambda pixels, size, **_: resize_picture(pixels, size),
    "pad": pad_picture,
}
