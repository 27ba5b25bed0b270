"""What is in a folder of pictures: `heptad scan`. Decodes everything, changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from heptad.datasets.duplicates import across, copies, near_duplicates
from heptad.datasets.folder import Listing, list_folder
from heptad.datasets.picture_set import WHAT
from heptad.datasets.pictures import Decoding
from heptad.datasets.scan import Seen, SeenBefore, looking
from heptad.errors import DataError
from heptad.files import user_path
from heptad.records import PassReport

CHANNELS = 3


@dataclass(frozen=True)
class ScanReport:
    """What a folder of class folders holds.

    counts: pictures that can be used, by part and class. sizes: smallest, median and largest width
    and height in pixels. modes, notes: how many pictures have each. bad: why a picture cannot be
    used. copies: groups of pictures with equal pixels. near: pairs that look nearly alike. leaks:
    groups of copies that are in more than one part. torn: in more than one class. empty: classes
    without a picture to train on. untested: those without one to test on, or two to hold one out
    of. passed_over: what else lies there.
    """

    folder: str
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    sizes: dict[str, tuple[int, float, int]]
    modes: dict[str, int]
    notes: dict[str, int]
    bad: dict[str, str]
    copies: list[list[str]]
    near: list[tuple[str, str]]
    leaks: list[list[str]]
    torn: list[list[str]]
    empty: list[str]
    untested: list[str]
    passed_over: dict[str, int]

    def as_document(self) -> dict[str, Any]:
        """Give the report as plain values, for JSON."""
        return asdict(self)


def scanning(
    folder: str | Path,
    decoding: Decoding = Decoding(CHANNELS),  # noqa: B008 - frozen
) -> Generator[PassReport | ScanReport, None, None]:
    """Decode every picture of a folder of class folders; reports on the way, last what is there.

    What was seen before and has not changed is not decoded again. Raises DataError if the folder
    holds no class folders.
    """
    root = user_path(folder)
    if not root.is_dir():
        raise DataError(f"there is no folder {str(folder)!r}.")
    listing = list_folder(root, is_to_train=False)
    before = SeenBefore(root, decoding)
    seen = {name: now for name in listing.paths if (now := before.get(name))}
    unseen = [name for name in listing.paths if name not in seen]
    started_at, num_done = perf_counter(), 0
    try:
        for looks in looking([root / name for name in unseen], decoding):
            for look in looks:
                seen[unseen[num_done]] = look.seen
                before.add(unseen[num_done], look.seen)
                num_done += 1
            yield PassReport(num_done, len(unseen), perf_counter() - started_at, WHAT)
    finally:
        # Stopped in between, by whatever: what was seen is kept.
        before.save(listing.paths)
    pictures = [
        (name, part, listing.classes[label])
        for part, some in listing.parts.items()
        for name, label in some
    ]
    yield _report(str(folder), listing, pictures, seen)


def _report(
    folder: str,
    listing: Listing,
    pictures: Sequence[tuple[str, str, str]],
    seen: dict[str, Seen],
) -> ScanReport:
    good = [picture for picture in pictures if not seen[picture[0]].error]
    counts = {part: dict.fromkeys(listing.classes, 0) for part in listing.parts}
    for _, part, name in good:
        counts[part][name] += 1
    names, parts, labels = ([picture[k] for picture in good] for k in range(3))
    looks = [seen[name] for name in names]
    groups = copies(looks)

    def named(groups: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[names[place] for place in group] for group in groups]

    return ScanReport(
        folder=folder,
        classes=listing.classes,
        counts=counts,
        sizes={
            "width": _spread([look.width for look in looks]),
            "height": _spread([look.height for look in looks]),
        },
        modes=dict(Counter(f"{look.format} {look.mode}" for look in looks).most_common()),
        notes=dict(Counter(note for look in looks for note in look.notes).most_common()),
        bad={name: seen[name].error for name, _, _ in pictures if seen[name].error},
        copies=named(groups),
        near=[(names[a], names[b]) for a, b in near_duplicates(looks)],
        leaks=named(across(groups, parts)),
        torn=named(across(groups, labels)),
        empty=[name for name in listing.classes if not counts["train"][name]],
        untested=_untested(
            listing, counts, {(now.pixels, k) for now, k in zip(looks, labels, strict=True)}
        ),
        passed_over=listing.passed_over,
    )


def _untested(
    listing: Listing, counts: dict[str, dict[str, int]], contents: set[tuple[str, str]]
) -> list[str]:
    """Name the classes that a training could not test; contents: what is there, with its class."""
    if "test" in counts:
        return [name for name in listing.classes if not counts["test"][name]]
    differing = Counter(name for _, name in contents)
    return [name for name in listing.classes if differing[name] < 2]


def _spread(values: list[int]) -> tuple[int, float, int]:
    return (min(values), median(values), max(values)) if values else (0, 0, 0)
