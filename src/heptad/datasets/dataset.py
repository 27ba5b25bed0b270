"""A data set opened by name or folder, and its images and labels as arrays. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heptad.datasets.catalog import CATALOG, DIGITS
from heptad.datasets.cifar import ARCHIVE_NAME, read_cifar
from heptad.datasets.fetch import ensure_dataset
from heptad.datasets.folder import has_class_folders
from heptad.datasets.idx import read_idx
from heptad.datasets.picture_set import PictureFolder
from heptad.datasets.pictures import to_gray
from heptad.errors import DataError, counted, did_you_mean
from heptad.files import user_path

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")

# The name becomes a part of file names, which may have 255 bytes.
LONGEST_NAME = 100
# As MNIST's publisher, its unpackers and its followers spell these names.
IDX_NAME = re.compile(
    r"(?:^|-)(train|t10k|test)-(images|labels)[-.](?:idx[13]-ubyte|idx2-int)(?:\.gz)?$"
)
PART_OF = {"train": "train", "t10k": "test", "test": "test"}
NAMES_LOOKED_FOR = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and"
    " t10k-labels-idx1-ubyte, plain or .gz"
)


# Images `uint8` [N, C, H, W] and labels [N] of one part, from its files.
Read = Callable[[tuple[Path, ...], Part], tuple[NDArray[np.uint8], NDArray[Any]]]


def _read_idx_files(paths: tuple[Path, ...], _: Part) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    images, labels = paths
    return read_idx(images, "images")[:, None], read_idx(labels, "labels")


FORMATS: dict[str, Read] = {
    "idx": _read_idx_files,
    "cifar": lambda paths, part: read_cifar(paths[0], part),
}


@dataclass(frozen=True)
class Dataset:
    """Where the images and labels of each part are, and what the labels mean.

    name: short, fit for file names. classes: the label k is named classes[k].
    files: of each part, its images first. format: one of `FORMATS`. channels: of the images.
    mean, deviation: of the training pixels in 0..1, where they are known beforehand.
    """

    name: str
    classes: tuple[str, ...]
    files: Mapping[Part, tuple[Path, ...]]
    format: str = "idx"
    channels: int = 1
    mean: float | None = None
    deviation: float | None = None


def find_dataset(source: str) -> Dataset | PictureFolder:
    """Open the data set that `source` names: one of the catalog, or a folder of IDX files.

    A folder may hold CIFAR-10's archive, too. One of class folders is only named:
    `picture_set.opening_pictures` looks into it. Named sets are verified, and fetched if they are
    not here. Raises DataError if there is no such set or the folder holds none, MissingError if a
    named set cannot be had.
    """
    if source in CATALOG:
        entry = CATALOG[source]
        folder = ensure_dataset(entry)
        return Dataset(
            name=entry.name,
            classes=entry.classes,
            files={
                "train": tuple(folder / file.name for file in entry.train),
                "test": tuple(folder / file.name for file in entry.test),
            },
            format=entry.format,
            channels=entry.channels,
            mean=entry.mean,
            deviation=entry.deviation,
        )
    return _find_in_folder(source, user_path(source))


def _find_in_folder(source: str, folder: Path) -> Dataset | PictureFolder:
    if not source or not folder.is_dir():
        raise DataError(
            f"there is no data set {source!r}.{did_you_mean(source, CATALOG)}"
            f" Allowed: {', '.join(CATALOG)}, or a folder of IDX files or of class folders.",
            hint="a relative folder is looked for from the working directory; --data names another",
        )
    found: dict[str, dict[Part, Path]] = {"images": {}, "labels": {}}
    # Plain files after packed ones, so that of the two the plain one is read.
    for path in sorted(folder.iterdir(), key=lambda path: (path.suffix != ".gz", path.name)):
        # Reading a pipe would wait for ever.
        if (match := IDX_NAME.search(path.name)) and path.is_file():
            part, kind = PART_OF[match[1]], match[2]
            earlier = found[kind].get(part)  # type: ignore[call-overload]
            if earlier and earlier.name.removesuffix(".gz") != path.name.removesuffix(".gz"):
                raise DataError(f"{source} holds two sets: {earlier.name} and {path.name}.")
            found[kind][part] = path  # type: ignore[index]
    if not any(found.values()) and (archive := folder / ARCHIVE_NAME).is_file():
        return Dataset(
            name=_plain_name(folder),
            classes=CATALOG["cifar10"].classes,
            files=dict.fromkeys(PARTS, (archive,)),
            format="cifar",
            channels=3,
        )
    if not any(found.values()) and has_class_folders(folder):
        return PictureFolder(_plain_name(folder), folder)
    missing = [f"{part} {kind}" for kind in found for part in PARTS if part not in found[kind]]
    if missing:
        raise DataError(
            f"{source} holds no IDX files of {', '.join(missing)}.",
            hint=f"looked for {NAMES_LOOKED_FOR}; or for class folders with pictures in them",
        )
    files = {part: (found["images"][part], found["labels"][part]) for part in PARTS}
    return Dataset(name=_plain_name(folder), classes=DIGITS, files=files)


def _plain_name(folder: Path) -> str:
    """Turn a folder's name into one that is fit for file names."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name)[:LONGEST_NAME]
    return name.strip("-.") or "data"


def read_part(
    dataset: Dataset, part: Part, *, channels: int = 3
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one part of a set: images [N, C, H, W] `uint8` and labels [N] in 0..K-1.

    channels: with 1, images in colour are turned gray; gray ones stay so in any case. Raises
    DataError if a file is damaged, the counts differ, or a label names no class.
    """
    paths = dataset.files[part]
    images, labels = FORMATS[dataset.format](paths, part)
    if len(images) != len(labels):
        raise DataError(
            f"{paths[0]} holds {counted(len(images), 'image')}, but"
            f" {paths[-1]} {counted(len(labels), 'label')}; each image needs one."
        )
    is_unknown = (labels < 0) | (labels >= len(dataset.classes))
    if is_unknown.any():
        place = int(is_unknown.argmax())
        raise DataError(
            f"label {place} of {paths[-1]} is {labels[place]};"
            f" allowed: 0 to {len(dataset.classes) - 1}."
        )
    seen = to_gray(images) if channels < dataset.channels else images
    return seen, labels.astype(np.int64)
