"""A folder of class folders made ready: every picture looked at, split, its pixels at one size.

The user's files are only ever read.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heptad.datasets.duplicates import across, copies
from heptad.datasets.folder import Listing, list_folder, on_one_line, some_names
from heptad.datasets.pictures import Decoding
from heptad.datasets.scan import Look, Seen, SeenBefore, looking
from heptad.datasets.sixteen_bits import CLIPPED
from heptad.datasets.splits import held_out
from heptad.errors import DataError, counted
from heptad.files import Held, hold, sha256_of
from heptad.records import PassReport
from heptad.stores import KEY, Computation, Computed, Rows, filling, find_rows, store_folder

logger = logging.getLogger("heptad")

FORMAT = 1
# Of each class, where there is no test folder.
TEST_SHARE = 0.2
MOST_NAMED = 20
# What is done to the pictures, in reports.
WHAT = "reading the pictures"


@dataclass(frozen=True)
class PictureFolder:
    """A folder of class folders that was named, not looked at yet. name: fit for file names."""

    name: str
    folder: Path


@dataclass(frozen=True)
class PictureSet:
    """The pictures that can be used, in the order of their listing; a picture's place is its id.

    names: paths relative to the folder. labels: int64 [N]. parts: the places of each part's
    pictures; in none are those that nothing uses. contents: names [N] by content, copies alike.
    rows: their pixels, `uint8` [C, S, S] each. is_split_here: whether the folder had no test part,
    and some of its pictures were held out. decoded_by: what decided their pixels beside the files.
    """

    name: str
    folder: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    seen: tuple[Seen, ...]
    parts: dict[str, NDArray[np.int64]]
    contents: tuple[str, ...]
    rows: Rows
    is_split_here: bool
    decoded_by: str
    held: Held | None = None

    def keys(self, places: NDArray[np.int64]) -> NDArray[np.void]:
        """Name pictures by their content and by what decoded it, whose pixels may change."""
        named = (f"{self.decoded_by}:{self.contents[place]}".encode() for place in places)
        return np.frombuffer(b"".join(hashlib.sha256(name).digest() for name in named), KEY)

    def draw_ids(self) -> NDArray[np.int64]:
        """Give a number for each picture [N] by its content, what random draws come from.

        Unlike its place it stays the same when others are added or renamed, but for copies of it in
        another format. Copies differ in it.
        """
        num_before: Counter[str] = Counter()
        drawn = []
        for content in self.contents:
            named = f"{content}:{num_before[content]}".encode()
            drawn.append(int.from_bytes(hashlib.sha256(named).digest()[:8], "big") >> 1)
            num_before[content] += 1
        return np.array(drawn, np.int64)

    def as_document(self) -> dict[str, Any]:
        """Say which picture went where, for the run: by path, content and class."""
        part_of = {int(place): part for part, places in self.parts.items() for place in places}
        return {
            "pictures": [
                {
                    "id": place,
                    "path": name,
                    "class": self.classes[self.labels[place]],
                    "part": part_of.get(place, "unused"),
                    "sha256": self.seen[place].sha256,
                }
                for place, name in enumerate(self.names)
            ]
        }


def opening_pictures(
    source: PictureFolder,
    decoding: Decoding,
    *,
    size: int,
    seed: int,
    on_bad_image: Literal["error", "skip"],
    is_to_train: bool = True,
) -> Generator[PassReport, None, PictureSet]:
    """Look at every picture of a folder and have its pixels at `size`; reports while it decodes.

    Pictures that were decoded before are not decoded again. Without a test folder a fifth of each
    class is held out for it, by content and seed. Raises DataError, naming them, if pictures cannot
    be used and `on_bad_image` is "error", or if what is left is not enough to train on; a set that
    is only scored, not `is_to_train`, may be of one class.
    """
    listing = list_folder(source.folder, is_to_train=is_to_train)
    paths = [source.folder / name for name in listing.paths]
    before = SeenBefore(source.folder, decoding)
    known = [before.get(name) for name in listing.paths]
    keys = _content_keys(paths, known)
    looked: dict[bytes, Seen] = {}

    description = {
        "format": FORMAT,
        "pictures": decoding.channels,
        "image_size": size,
        "pillow": decoding.version,
    }
    try:
        shards = yield from filling(
            description,
            keys,
            compute=lambda lacking: Computation(
                "pillow", _decoded(paths, keys, lacking.places, looked, decoding, size=size)
            ),
            what=WHAT,
        )
        seen = yield from _all_seen(paths, known, keys, looked, decoding)
    finally:
        # Stopped in between, by whatever: what was seen is kept, as what was decoded is.
        for name, key in zip(listing.paths, keys, strict=True):
            if now := looked.get(key.tobytes()):
                before.add(name, now)
        before.save(listing.paths)
    places = _usable(listing, seen, on_bad_image, is_to_train=is_to_train)
    _warn_of_doubts(listing, seen, places)
    rows, lacking = find_rows(shards, keys[places])
    assert not len(lacking)
    held = hold(store_folder(description))
    found = _assemble(source, listing, seen, places, rows, held, decoded_by=decoding.version)
    return _split(found, seed=seed) if is_to_train else found


def _decoded(
    paths: Sequence[Path],
    keys: NDArray[np.void],
    lacking: NDArray[np.int64],
    looked: dict[bytes, Seen],
    decoding: Decoding,
    *,
    size: int,
) -> Computed:
    """Decode the pictures at the places `lacking`; note in `looked`, by key, what each one is."""
    start = 0
    for looks in looking([paths[place] for place in lacking], decoding, size=size):
        now = lacking[start : start + len(looks)]
        start += len(looks)
        looks = [_unchanged(*pair) for pair in zip(looks, keys[now], strict=True)]
        for place, look in zip(now, looks, strict=True):
            looked[keys[place].tobytes()] = look.seen
        good = [number for number, look in enumerate(looks) if look.pixels is not None]
        rows = [look.pixels for look in looks if look.pixels is not None]
        shape = (0, decoding.channels, size, size)
        yield now[good], np.stack(rows) if rows else np.empty(shape, np.uint8)


def _content_keys(paths: Sequence[Path], known: Sequence[Seen | None]) -> NDArray[np.void]:
    """Name each file by the SHA-256 of its content; what cannot be read, by its path."""

    def digest(path: Path, seen: Seen | None) -> str:
        if seen and seen.sha256:
            return seen.sha256
        try:
            # What is no plain file is never opened: reading a pipe would wait for ever.
            return sha256_of(path) if path.is_file() else ""
        except OSError:
            return ""

    with ThreadPoolExecutor() as pool:
        digests = pool.map(digest, paths, known)
    raw = [
        bytes.fromhex(found) if found else hashlib.sha256(repr(path).encode()).digest()
        for found, path in zip(digests, paths, strict=True)
    ]
    return np.frombuffer(b"".join(raw), KEY)


def _unchanged(look: Look, key: np.void) -> Look:
    """Refuse a picture that is not what was hashed: it would be kept under another one's name."""
    if look.seen.error or look.seen.sha256 == key.tobytes().hex():
        return look
    return Look(Seen(error="was changed while the pictures were read"))


def _all_seen(
    paths: Sequence[Path],
    known: Sequence[Seen | None],
    keys: NDArray[np.void],
    looked: dict[bytes, Seen],
    decoding: Decoding,
) -> Generator[PassReport, None, list[Seen]]:
    """Put together what was seen before and now; look at what was decoded in another folder."""
    unseen = {
        keys[place].tobytes(): place
        for place, seen in enumerate(known)
        if seen is None and keys[place].tobytes() not in looked
    }
    places, started_at, num_done = list(unseen.values()), perf_counter(), 0
    for looks in looking([paths[place] for place in places], decoding):
        now = places[num_done : num_done + len(looks)]
        for place, look in zip(now, looks, strict=True):
            looked[keys[place].tobytes()] = _unchanged(look, keys[place]).seen
        num_done += len(looks)
        yield PassReport(num_done, len(places), perf_counter() - started_at, WHAT)
    return [seen or looked[keys[place].tobytes()] for place, seen in enumerate(known)]


def _usable(
    listing: Listing,
    seen: Sequence[Seen],
    on_bad_image: Literal["error", "skip"],
    *,
    is_to_train: bool,
) -> NDArray[np.int64]:
    """Give the places of the pictures that can be used; refuse or pass over the others."""
    bad = [
        on_one_line(f"{name}: {now.error}")
        for name, now in zip(listing.paths, seen, strict=True)
        if now.error
    ]
    if bad:
        more = [f"and {len(bad) - MOST_NAMED} more"] if len(bad) > MOST_NAMED else []
        named = [*bad[:MOST_NAMED], *more]
        if on_bad_image == "error":
            skip = ", or pass over them: --on-bad-image skip" if is_to_train else ""
            raise DataError(
                f"{listing.folder} holds {counted(len(bad), 'picture')} that cannot be used.",
                hint="\n".join([*named, f"mend or remove them{skip}"]),
            )
        logger.warning("%s passed over:", counted(len(bad), "picture", "is", "are"))
        for line in named:
            logger.warning("  %s", line)
    return np.flatnonzero([not now.error for now in seen])


def _warn_of_doubts(listing: Listing, seen: Sequence[Seen], places: NDArray[np.int64]) -> None:
    """Say if the same picture is in two classes, or if some have numbers beyond the range given."""
    pictures = [(name, label) for some in listing.parts.values() for name, label in some]
    names, labels = ([pictures[place][k] for place in places] for k in range(2))
    own = [seen[place] for place in places]
    if found := across(copies(own), labels):
        named = ", ".join(names[place] for place in found[0][:2])
        number = counted(len(found), "picture", "is", "are")
        logger.warning("%s in two classes, such as %s: see `heptad scan`", number, named)
    if num_clipped := sum(CLIPPED in now.notes for now in own):
        number = counted(num_clipped, "picture", "holds", "hold")
        logger.warning("%s numbers beyond float_range, which are clipped", number)


def _assemble(
    source: PictureFolder,
    listing: Listing,
    seen: Sequence[Seen],
    places: NDArray[np.int64],
    rows: Rows,
    held: Held | None,
    *,
    decoded_by: str,
) -> PictureSet:
    pictures = [(part, name, label) for part, some in listing.parts.items() for name, label in some]
    usable = [pictures[place] for place in places]
    parts = {
        part: np.flatnonzero([found == part for found, _, _ in usable]) for part in listing.parts
    }
    own = tuple(seen[place] for place in places)
    return PictureSet(
        name=source.name,
        folder=source.folder,
        classes=listing.classes,
        names=tuple(name for _, name, _ in usable),
        labels=np.array([label for _, _, label in usable], np.int64),
        seen=own,
        parts=parts,
        contents=tuple(_contents(own)),
        rows=rows,
        is_split_here="test" not in parts,
        decoded_by=decoded_by,
        held=held,
    )


def _split(found: PictureSet, *, seed: int) -> PictureSet:
    """Hold out a test part where there is none; refuse a set that does not suffice."""
    parts = dict(found.parts)
    if found.is_split_here:
        train = parts["train"]
        contents = [found.contents[place] for place in train]
        labels = found.labels[train]
        is_test = held_out(labels, contents, seed=seed, purpose="test", share=TEST_SHARE)
        parts |= {"test": train[is_test], "train": train[~is_test]}
    counts = np.bincount(found.labels[parts["train"]], minlength=len(found.classes))
    lacking = [name for name, count in zip(found.classes, counts, strict=True) if not count]
    if lacking:
        raise DataError(
            f"{found.folder} has too few pictures of {some_names(lacking)}; each class needs two"
            " that differ, one to train and one to test on."
        )
    if not len(parts["test"]):
        raise DataError(
            f"{found.folder} has no picture to test on.",
            hint="a fifth of each class is held out, if it has two; or make a test folder",
        )
    untested = set(found.labels[parts["train"]]) - set(found.labels[parts["test"]])
    if untested:
        named = some_names([found.classes[label] for label in sorted(untested)])
        logger.warning("there is no picture to test on of %s", named)
    if found.is_split_here:
        logger.info(
            "%s has no test folder: %s held out to test on, of %s",
            found.folder,
            counted(len(parts["test"]), "picture", "is", "are"),
            f"{len(parts['test']) + len(parts['train']):,}",
        )
    return replace(found, parts=parts)


def _contents(seen: Sequence[Seen]) -> list[str]:
    """Name pictures by their content, copies alike: by the first of the hashes of their files.

    The pixels themselves are gray for one network and in colour for another. So a copy in another
    format, whose hash may come first, may give a picture another name.
    """
    first: dict[str, str] = {}
    for now in seen:
        first[now.pixels] = min(now.sha256, first.get(now.pixels, now.sha256))
    return [first[now.pixels] for now in seen]
