"""Looking at every picture of a set before training: each decoded exactly as training will see it.

What was seen is kept in the cache, by path, size and time of change: a second look opens only what
is new. The decoded pixels are kept too where a size is asked for, by the content of the file, so
that twenty new photos cost twenty decodings. No torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heptad.datasets.pictures import Decoding, resize_picture
from heptad.errors import ImageError, SaveError
from heptad.files import cache_folder, sha256_of, write_bytes

logger = logging.getLogger("heptad")

FORMAT = 1
# Decoded in parallel, a few at a time, so that a stop comes soon and memory is bounded.
PICTURES_AT_A_TIME = 64


@dataclass(frozen=True)
class Seen:
    """What one picture is. error: why it cannot be used, "" if it can.

    sha256: of the file. pixels: SHA-256 of the decoded pixels. shape: 64 bits of a difference hash,
    as hex. width, height: as the file has them.
    """

    sha256: str = ""
    error: str = ""
    mode: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    notes: tuple[str, ...] = ()
    pixels: str = ""
    shape: str = ""


@dataclass(frozen=True)
class Look:
    """A picture that was looked at just now: what it is, and its pixels [C, S, S], if asked for."""

    seen: Seen
    pixels: NDArray[np.uint8] | None = None


def look_at(path: Path, *, decoding: Decoding, size: int | None) -> Look:
    """Decode one picture; `size` asks for its pixels, resized to that side."""
    try:
        picture = decoding.decode(path)
        sha256 = sha256_of(path)
    except ImageError as error:
        return Look(Seen(error=error.message.removeprefix(f"{path} ").removesuffix(".")))
    except OSError as error:
        return Look(Seen(error=f"cannot be read: {error.strerror}"))
    pixels = picture.pixels
    seen = Seen(
        sha256=sha256,
        mode=picture.mode,
        format=picture.format,
        width=picture.size[0],
        height=picture.size[1],
        notes=picture.notes,
        pixels=hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest(),
        shape=difference_hash(pixels),
    )
    return Look(seen, None if size is None else resize_picture(pixels, size))


def looking(
    paths: Sequence[Path], decoding: Decoding, *, size: int | None = None
) -> Iterator[list[Look]]:
    """Look at pictures, several at once, and give them in their order, some at a time."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        look = partial(look_at, decoding=decoding, size=size)
        for start in range(0, len(paths), PICTURES_AT_A_TIME):
            yield list(pool.map(look, paths[start : start + PICTURES_AT_A_TIME]))


def difference_hash(pixels: NDArray[np.uint8]) -> str:
    """Give 64 bits that say where a picture gets brighter to the right, as 16 hex digits.

    pixels: [C, H, W]. The dHash of https://www.hackerfactor.com/blog/index.php?/archives/529.
    """
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    gray = picture.convert("L")
    small = np.asarray(gray.resize((9, 8), Image.Resampling.BOX), np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


class SeenBefore:
    """What earlier looks at a folder saw, by relative path, while the files are as they were."""

    def __init__(self, folder: Path, decoding: Decoding) -> None:
        self.folder, self._max_pixels = folder, decoding.max_pixels
        place = f"{FORMAT} {decoding.version} {decoding.channels} {folder.resolve()}".encode(
            errors="surrogateescape"
        )
        self._path = cache_folder() / "scans" / f"{hashlib.sha256(place).hexdigest()}.json"
        self._seen: dict[str, tuple[list[int], Seen]] = {}
        self._stamps: dict[str, list[int]] = {}
        try:
            for key, (stamp, seen) in json.loads(self._path.read_bytes()).items():
                self._seen[key] = (stamp, Seen(**{**seen, "notes": tuple(seen["notes"])}))
        # A cache that cannot be read is an empty one.
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self._seen = {}

    def get(self, name: str) -> Seen | None:
        """Give what a picture was, None if it was not seen, has changed since or is too large."""
        # From before it is looked at: a file that is changed meanwhile is looked at again.
        self._stamps[name] = _stamp(self.folder / name)
        stamp, seen = self._seen.get(name, ([], None))
        if not seen or stamp != self._stamps[name] or seen.width * seen.height > self._max_pixels:
            return None
        return seen

    def add(self, name: str, seen: Seen) -> None:
        """Note what a picture is that was asked for before.

        One that cannot be used is looked at again, it may be mended.
        """
        if not seen.error:
            self._seen[name] = (self._stamps[name], seen)

    def save(self, names: Sequence[str]) -> None:
        """Keep what is known of these pictures; what cannot be kept is looked at again."""
        kept = {name: self._seen[name] for name in names if name in self._seen}
        document = {name: (stamp, asdict(seen)) for name, (stamp, seen) in kept.items()}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path, json.dumps(document).encode())
        except (OSError, SaveError) as error:
            logger.debug("the scan is not kept: %s", error)


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ino]
