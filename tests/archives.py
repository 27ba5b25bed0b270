"""Small archives in the format of CIFAR-10's, whole or spoilt, for the tests."""

from __future__ import annotations

import gzip
import io
import tarfile

import numpy as np

NAME = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"
BATCHES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
# The publisher's own order, with what else is in its archive.
IN_ARCHIVE = ("data_batch_1.bin", "batches.meta.txt", "data_batch_3.bin", "data_batch_4.bin")
IN_ARCHIVE += ("test_batch.bin", "readme.html", "data_batch_5.bin", "data_batch_2.bin")

# Of each file: 6 rows of a label and 3,072 pixels.
ROWS = {
    name: np.random.default_rng(number).integers(0, 256, (6, 3073), np.uint8)
    for number, name in enumerate(BATCHES)
}
for rows in ROWS.values():
    rows[:, 0] %= 10

Member = tuple[tarfile.TarInfo, bytes]


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> Member:
    """What a tar says of a member, and its content."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), link
    return info, content


def in_folder(name: str, content: bytes = b"few words") -> Member:
    """A file of the archive, with its rows if it has some."""
    content = ROWS[name].tobytes() if name in ROWS else content
    return member(f"{FOLDER}/{name}", content)


def whole() -> list[Member]:
    """All members, in the publisher's order."""
    return [member(f"{FOLDER}/", kind=tarfile.DIRTYPE), *map(in_folder, IN_ARCHIVE)]


def packed(*members: Member) -> bytes:
    """A .tar.gz of members, in their order."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz", compresslevel=1) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def claiming(size: int) -> bytes:
    """An archive whose first file of images says that it has so many bytes."""
    info, _ = in_folder("data_batch_1.bin")
    info.size = size
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))


def long_name() -> bytes:
    """An archive that begins with a name of 400 MB, packed to 400 kB."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 400_000_000
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1) as target:
        target.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(400):
            target.write(bytes(1_000_000))
    return stream.getvalue()
