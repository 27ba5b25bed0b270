"""Exported files, by format, loaded to be used: as a run is, but for its own test images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from heptad.classifier import Classifier
from heptad.errors import ModelError, damage_in
from heptad.exporting import onnx_file, safetensors_file
from heptad.exporting.document import read_described
from heptad.files import user_path
from heptad.loaded_run import LoadedRun


@dataclass(frozen=True)
class Format:
    """A kind of exported file.

    content_of: gives its bytes from a run and the texts that travel with it.
    load: gives the classifier in a file, for `device` and `threads`. texts_of: gives the texts that
    travel with the network in a file.
    """

    suffix: str
    content_of: Callable[[LoadedRun, Mapping[str, str]], bytes]
    load: Callable[..., Classifier]
    texts_of: Callable[[Path], Mapping[str, str]]


FORMATS = {
    "onnx": Format(onnx_file.SUFFIX, onnx_file.content_of, onnx_file.load, onnx_file.texts_of),
    "safetensors": Format(
        safetensors_file.SUFFIX,
        safetensors_file.content_of,
        safetensors_file.load,
        safetensors_file.texts_of,
    ),
}
BY_SUFFIX = {each.suffix: each for each in FORMATS.values()}


def is_exported(path: str | Path) -> bool:
    """Tell by its name whether a path means an exported file, and not a run's folder."""
    path = user_path(path)
    return path.suffix.lower() in BY_SUFFIX and not path.is_dir()


def digest_in(path: Path) -> str:
    """Give the digest of the run that an exported file was written from.

    Raises ModelError if it was not exported by Heptad, DamagedError or WeightsError if it is not as
    it was written, MissingError without the extra `onnx`.
    """
    texts = BY_SUFFIX[path.suffix.lower()].texts_of(path)
    read_described(path, texts)
    with damage_in(path):
        return str(json.loads(texts["digest"]))


def load_model(path: str | Path, *, device: str = "auto", threads: int | None = None) -> Classifier:
    """Load an exported file, ONNX or safetensors, ready to answer.

    An ONNX file is computed on the CPU. Raises ModelError for a file that is missing or was not
    exported by Heptad, WeightsError or DamagedError for one that is not as it was written,
    DeviceError for a device that cannot compute it, MissingError without the extra `onnx`.
    """
    path = user_path(path)
    if path.suffix.lower() not in BY_SUFFIX:
        raise ModelError(f"{path} is of no known kind; allowed: {', '.join(BY_SUFFIX)}.")
    if not path.is_file():
        raise ModelError(f"there is no exported file {str(path)!r}.")
    return BY_SUFFIX[path.suffix.lower()].load(path, device=device, threads=threads)
