"""Folders of class folders: which pictures there are, in which class and part. Opens none of them.

A class is a folder; the pictures are the files of known suffixes in it, at any depth. Names are
sorted as people count, `2` before `10`, so that class numbers do not surprise. No torch.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from heptad.datasets.pictures import SUFFIXES
from heptad.errors import DataError

# What people call the parts of a set; the first of each is ours.
PART_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
MOST_NAMED = 8


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Give what to sort names by so that `2` comes before `10`, and equal numbers by their text."""
    return tuple(
        (0, int(piece), piece) if piece.isdecimal() and piece.isascii() else (1, 0, piece)
        for piece in re.split(r"([0-9]+)", name)
        if piece
    )


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder by part, as paths relative to it, with the number of their class.

    parts: "train" with all pictures, or those of "train", "validation" and "test" that are there.
    passed_over: how many files of each other suffix there are, how many hidden files and folders,
    and how many pictures in no class folder.
    """

    folder: Path
    classes: tuple[str, ...]
    parts: dict[str, tuple[tuple[str, int], ...]]
    passed_over: dict[str, int] = field(default_factory=dict)

    @property
    def paths(self) -> list[str]:
        """All pictures, part by part."""
        return [name for pictures in self.parts.values() for name, _ in pictures]


def has_class_folders(folder: Path) -> bool:
    """Tell whether a folder may be a set of pictures: whether it has folders, hidden ones apart."""
    return any(_folders(folder))


def list_folder(folder: Path, *, is_to_train: bool = True) -> Listing:
    """List the pictures of class folders, with or without train/, val/ and test/ above them.

    Raises DataError, naming what is wrong: two folders for one part, no class or one alone, a class
    without a picture, a class that the training part lacks. A set that is only scored may be of one
    class.
    """
    passed_over: Counter[str] = Counter()
    tops = list(_folders(folder))
    roots = _part_folders(folder, tops)
    if "train" not in roots:
        if roots:
            found = ", ".join(path.name for path in roots.values())
            raise DataError(f"{folder} has {found}, but no train folder beside it.")
        roots = {"train": folder}
    strangers = [path.name for path in tops if path not in roots.values()]
    if roots["train"] != folder and strangers:
        passed_over.update({f"folder {name}": 1 for name in strangers})
    names = sorted((path.name for path in _folders(roots["train"])), key=natural_key)
    _refuse_parts_as_classes(roots["train"], names)
    _refuse_few_classes(roots["train"], names, least=2 if is_to_train else 1)
    for place in {folder, *roots.values()}:
        _count_loose(place, passed_over)
    parts = {}
    for part, root in roots.items():
        others = [path.name for path in _folders(root) if path.name not in names]
        if others:
            raise DataError(
                f"{root} has the classes {some_names(others)}, which {roots['train']} has not;"
                f" allowed: {some_names(names)}."
            )
        parts[part] = tuple(_pictures(folder, root, names, passed_over))
    if is_to_train:
        _refuse_empty_classes(roots["train"], names, parts["train"])
    return Listing(folder, tuple(names), parts, dict(sorted(passed_over.items())))


def _part_folders(folder: Path, tops: Sequence[Path]) -> dict[str, Path]:
    """Find the parts of a set among its folders `tops`."""
    roots = {}
    for part, names in PART_FOLDERS.items():
        # A class may be called `test`; a part has class folders in it.
        found = [path for path in tops if path.name.lower() in names and has_class_folders(path)]
        if len(found) > 1:
            both = " and ".join(path.name for path in found)
            raise DataError(
                f"{folder} has {both}; each would be the {part} part.",
                hint="put their pictures into one of them, or move the other elsewhere",
            )
        if found:
            roots[part] = found[0]
    return roots


def _refuse_parts_as_classes(folder: Path, names: Sequence[str]) -> None:
    """Raise DataError if the classes are called what parts are, all of them: none has classes."""
    parts = {name for names_of_part in PART_FOLDERS.values() for name in names_of_part}
    if names and {name.lower() for name in names} <= parts:
        raise DataError(
            f"{folder} has {some_names(names)}, but no class folders in them.",
            hint=f"the pictures of each class belong into a folder, such as {names[0]}/CLASS",
        )


def _folders(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if entry.is_dir() and not entry.name.startswith("."):
            yield entry


def _pictures(
    folder: Path, root: Path, classes: list[str], passed_over: Counter[str]
) -> Iterator[tuple[str, int]]:
    for number, name in enumerate(classes):
        found = list(_files(root / name, passed_over)) if (root / name).is_dir() else []
        for path in sorted(found, key=lambda path: natural_key(str(path.relative_to(root)))):
            yield str(path.relative_to(folder)), number


def _count_loose(root: Path, passed_over: Counter[str]) -> None:
    """Count what lies beside the class folders."""
    for entry in root.iterdir():
        if entry.is_dir():
            passed_over.update(["hidden folder"] if entry.name.startswith(".") else [])
        else:
            passed_over[_why_passed_over(entry.name) or "picture in no class folder"] += 1


def _files(top: Path, passed_over: Counter[str]) -> Iterator[Path]:
    """Walk a class folder through links too, each real folder once; count what is no picture."""
    # A link upwards would lead to the other classes.
    seen = {_identity(place) for path in (top.absolute(), top.resolve()) for place in path.parents}
    for place, folders, files in os.walk(top, followlinks=True, onerror=_refuse):
        identity = _identity(Path(place))
        if identity in seen:
            folders.clear()
            passed_over["folder seen before, by a link"] += 1
            continue
        seen.add(identity)
        hidden = [name for name in folders if name.startswith(".")]
        passed_over.update({"hidden folder": len(hidden)} if hidden else {})
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if why := _why_passed_over(name):
                passed_over[why] += 1
            else:
                yield Path(place) / name


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _refuse(error: OSError) -> NoReturn:
    """Pass an error on: a folder that cannot be listed would otherwise seem to be empty."""
    raise error


def _why_passed_over(name: str) -> str:
    """Say what a file is that is not looked at, by its name; "" for a picture."""
    suffix = Path(name).suffix.lower()
    if name.startswith("."):
        return "hidden file"
    return "" if suffix in SUFFIXES else suffix or "without suffix"


def _refuse_few_classes(root: Path, names: list[str], *, least: int) -> None:
    if not names:
        raise DataError(
            f"{root} holds no class folders.",
            hint="a folder of pictures has one folder for each class, with the pictures in it",
        )
    if len(names) < least:
        raise DataError(
            f"{root} holds one class, {names[0]!r}; there is nothing to tell apart.",
            hint="a folder of pictures has one folder for each class, at least two",
        )


def _refuse_empty_classes(
    root: Path, names: list[str], pictures: tuple[tuple[str, int], ...]
) -> None:
    counts = Counter(number for _, number in pictures)
    empty = [name for number, name in enumerate(names) if not counts[number]]
    if empty:
        raise DataError(
            f"{root} has no picture in {some_names(empty)}.",
            hint=f"remove such folders, or put pictures in: {', '.join(SUFFIXES)}",
        )


def some_names(names: Sequence[str]) -> str:
    """List names in a line, the first of many."""
    more = len(names) - MOST_NAMED
    listed = ", ".join(map(on_one_line, names[:MOST_NAMED]))
    return listed + (f" and {more} more" if more > 0 else "")


def on_one_line(name: str) -> str:
    """Escape line breaks, so that no name can pass for a line of ours."""
    return name.replace("\n", "\\n")
