"""What this machine has and lacks, and what to do about it. Looks only: nothing is fetched."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from heptad.architectures import ARCHITECTURES
from heptad.architectures.pretrained import cached_places, verified_hash
from heptad.datasets.catalog import CATALOG
from heptad.datasets.fetch import dataset_folder, is_intact
from heptad.files import cache_folder


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: how it is, and what to do if that is not well."""

    subject: str
    state: str
    is_well: bool = True
    advice: str = ""

    def as_document(self) -> dict[str, Any]:
        """Give the finding as plain values, for JSON."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at the software, the devices, the cache, the data sets and the weights."""
    return [*_software(), *_devices(), *_cache(), *_data(), *_weights()]


def _software() -> Iterator[Finding]:
    yield Finding("python", platform.python_version())
    for name in ("heptad", "torch", "torchvision", "numpy", "pillow"):
        yield Finding(name, importlib.metadata.version(name))
    has_pip = importlib.util.find_spec("pip") is not None
    yield Finding(
        "pip",
        importlib.metadata.version("pip") if has_pip else "not in this environment",
        has_pip,
        "" if has_pip else "without it, MNIST cannot come through the package index",
    )


def _devices() -> Iterator[Finding]:
    yield Finding("cpu", f"{os.cpu_count()} processors, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        yield Finding(f"cuda:{index}", torch.cuda.get_device_name(index))
    if not torch.cuda.is_available():
        yield Finding("cuda", "none; --device auto takes the CPU")
    if torch.backends.mps.is_available():
        yield Finding("mps", "there; used with --device mps")


def _cache() -> Iterator[Finding]:
    folder = cache_folder()
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free_gb = shutil.disk_usage(nearest).free / 1e9
    can_write = nearest.is_dir() and os.access(nearest, os.W_OK)
    obstacle = ", read-only" if nearest.is_dir() else f", but {nearest} is no folder"
    yield Finding(
        "cache",
        f"{folder}, {free_gb:.1f} GB free{'' if can_write else obstacle}",
        can_write,
        "" if can_write else "what is missing cannot be fetched: set HEPTAD_HOME to another folder",
    )


def _data() -> Iterator[Finding]:
    for name, entry in CATALOG.items():
        folder = dataset_folder(entry)
        wrong = [file.name for file in entry.files if not is_intact(folder / file.name, file)]
        damaged = [file for file in wrong if (folder / file).exists()]
        state = "here and verified"
        if wrong:
            state = f"damaged: {', '.join(damaged)}" if damaged else "not here"
        advice = f"`heptad fetch {name}`; it is fetched by itself when needed" if wrong else ""
        yield Finding(f"data {name}", state, not wrong, advice)


def _weights() -> Iterator[Finding]:
    for architecture in ARCHITECTURES.values():
        for position, (name, weights) in enumerate(architecture.weights.items()):
            found = [path for path in cached_places(weights) if verified_hash(path, weights)]
            damaged = [path for path in cached_places(weights) if path.exists() and not found]
            default = ", the default" if position == 0 else ""
            subject = f"weights {architecture.name} {name}{default}"
            if found:
                yield Finding(subject, f"here and verified: {found[0]}")
                continue
            size_mb = weights.num_bytes // 1_000_000
            yield Finding(
                subject,
                f"damaged: {damaged[0]}" if damaged else f"not here ({size_mb} MB)",
                False,
                f"`heptad fetch {weights.name}`; or put {weights.url} into"
                f" {Path(next(iter(cached_places(weights)))).parent}",
            )
