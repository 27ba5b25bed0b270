"""Sets as their publishers serve them: packed IDX files, QMNIST's labels, CIFAR-10's archive.

None of these sets can be had where the tests run: small files of the same formats are made here.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import logging
import os
import shutil
import struct
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import heptad
from archives import (
    BATCHES,
    FOLDER,
    IN_ARCHIVE,
    ROWS,
    claiming,
    in_folder,
    long_name,
    member,
    packed,
    whole,
)
from archives import NAME as ARCHIVE
from conftest import NAMES, SpoilingHandler, serving, write_idx
from heptad.cli import main
from heptad.datasets.catalog import CATALOG, ServedFile
from heptad.datasets.cifar import read_cifar
from heptad.datasets.dataset import find_dataset, read_part
from heptad.datasets.fetch import ensure_dataset
from heptad.errors import DataError, MissingError
from test_disks import give_up_powers
from test_fetch import files_in, flipped


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def md5_of(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def as_served(folder: Path, names) -> tuple[ServedFile, ...]:
    return tuple(ServedFile(name, md5_of((folder / name).read_bytes())) for name in names)


def offered(monkeypatch, name: str, folder: Path, *, mirror: str = "") -> heptad.CatalogEntry:
    """Have the catalog name the files of a folder instead of those of the set `name`."""
    entry = CATALOG[name]
    entry = dataclasses.replace(
        entry,
        train=as_served(folder, [file.name for file in entry.train]),
        test=as_served(folder, [file.name for file in entry.test]),
        mirrors=(mirror,) if mirror else (),
    )
    monkeypatch.setitem(CATALOG, name, entry)
    return entry


@pytest.fixture
def kmnist(mnist, tmp_path) -> Path:
    """A folder with the four files of the set, as they are served; digits stand for characters."""
    for part in NAMES:
        images, labels = mnist[part]
        write_idx(tmp_path / "published", part, images[:60, 0], labels[:60], packed=True)
    return tmp_path / "published"


def weights_of(run: heptad.Run) -> dict[str, bytes]:
    state = torch.load(next(run.folder.glob("*.pth")), weights_only=True)
    return {name: value.numpy().tobytes() for name, value in state.items()}


def trained(data: str, **settings) -> heptad.Run:
    recipe = heptad.load_recipe("lenet5", data=data, epochs=1, batch_size=16, **settings)
    return heptad.train(recipe, heptad.RunOptions(threads=1))


# The catalog


@pytest.mark.parametrize(
    ("name", "known", "resources"),
    [
        ("kmnist", torchvision.datasets.KMNIST, torchvision.datasets.KMNIST.resources),
        (
            "qmnist",
            torchvision.datasets.QMNIST,
            [
                *torchvision.datasets.QMNIST.resources["train"],
                *torchvision.datasets.QMNIST.resources["test"],
            ],
        ),
    ],
)
def test_names_hashes_and_classes_are_those_of_torchvision(name, known, resources):
    entry = CATALOG[name]
    found = [(file.name, file.md5) for file in (*entry.train, *entry.test)]
    assert found == [(url.rpartition("/")[2], md5) for url, md5 in resources]
    assert list(entry.classes) == [title.split(" - ")[0] for title in known.classes]


def test_every_set_comes_over_https_with_a_hash_for_each_file(capsys):
    for name, entry in CATALOG.items():
        assert entry.mirrors
        assert all(mirror.startswith("https://") for mirror in entry.mirrors)
        assert all(len(file.sha256 or file.md5) in (32, 64) for file in entry.files)
        # Where people look for it.
        for command in ("train", "fetch"):
            assert main([command, "--help"]) == 0
            assert name in capsys.readouterr().out


# IDX files as they are served


@pytest.mark.slow
def test_a_set_is_fetched_packed_and_trained_on_as_it_is(kmnist, own_cache, workplace, monkeypatch):
    with serving(kmnist) as address:
        offered(monkeypatch, "kmnist", kmnist, mirror=address)
        run = trained("kmnist")
    assert run.metrics["classes"] == ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"]
    for path in kmnist.iterdir():
        assert (own_cache / "datasets" / "kmnist" / path.name).read_bytes() == path.read_bytes()
    assert weights_of(run) == weights_of(trained(str(kmnist)))


def test_without_known_figures_normalize_data_measures_the_training_images(
    kmnist, mnist, own_cache, monkeypatch
):
    with serving(kmnist) as address:
        offered(monkeypatch, "kmnist", kmnist, mirror=address)
        cycle = heptad.prepare(heptad.load_recipe("lenet5", data="kmnist", normalize="data"))
    pixels = mnist["train"][0][:60] / 255
    assert cycle.sources.transform.mean == pytest.approx((pixels.mean(),), rel=1e-12)
    assert cycle.sources.transform.deviation == pytest.approx((pixels.std(),), rel=1e-12)


def test_files_put_into_the_cache_by_hand_are_used(kmnist, own_cache, monkeypatch):
    entry = offered(monkeypatch, "kmnist", kmnist)
    with pytest.raises(MissingError) as raised:
        ensure_dataset(entry)
    folder = own_cache / "datasets" / "kmnist"
    assert f"put these files into {folder}, as they are served" in raised.value.hint
    for file in entry.files:
        assert f"  {file.name}  size not known  MD5 {file.md5}\n" in raised.value.hint
    shutil.copytree(kmnist, folder, dirs_exist_ok=True)
    assert ensure_dataset(entry) == folder
    assert read_part(find_dataset("kmnist"), "train")[0].shape == (60, 1, 28, 28)


OTHER = "it came with other content than it should have"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (flipped, OTHER),
        (lambda content: content[:-40], "the connection broke: 40 bytes did not come"),
        (lambda content: content + bytes(10), OTHER),
    ],
    ids=["another MD5", "cut short", "too long"],
)
def test_a_file_with_another_md5_is_never_kept(kmnist, own_cache, monkeypatch, spoil, said):
    monkeypatch.setattr(SpoilingHandler, "spoil", staticmethod(spoil))
    with serving(kmnist, SpoilingHandler) as address:
        entry = offered(monkeypatch, "kmnist", kmnist, mirror=address)
        with pytest.raises(MissingError) as raised:
            ensure_dataset(entry)
    assert files_in(own_cache) == [".lock"]
    assert f"train-images-idx3-ubyte.gz: {said}, then {said}" in raised.value.hint


def test_a_known_sha256_binds_beside_the_md5(kmnist, own_cache, monkeypatch):
    with serving(kmnist) as address:
        entry = offered(monkeypatch, "kmnist", kmnist, mirror=address)
        known = dataclasses.replace(entry.test[0], sha256="0" * 64)
        with pytest.raises(MissingError, match="could not be fetched"):
            ensure_dataset(dataclasses.replace(entry, test=(known, entry.test[1])))
        # A control: it is the hash.
        ensure_dataset(entry)


# Two contents of one MD5: X. Wang, D. Feng, X. Lai and H. Yu, eprint 2004/199.
COLLISION = (
    "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f89"
    "55ad340609f4b30283e488832571415a085125e8f7cdc99fd91dbdf280373c5b"
    "d8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0"
    "e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70"
)
ONE = bytes.fromhex(COLLISION)
OTHER = bytearray(ONE)
for place in (19, 45, 59, 83, 109, 123):
    OTHER[place] ^= 0x80


@pytest.fixture
def colliding(tmp_path):
    """A set of one file, that two contents of the same MD5 could be; and where it is served."""
    published = tmp_path / "published"
    published.mkdir()
    (published / "it.gz").write_bytes(ONE)
    file = ServedFile("it.gz", md5_of(ONE))
    entry = dataclasses.replace(CATALOG["qmnist"], name="one", train=(file,), test=(file,))
    return published, entry


def test_what_came_first_is_pinned_and_nothing_else_is_used_from_then_on(
    colliding, own_cache, caplog
):
    published, entry = colliding
    assert md5_of(bytes(OTHER)) == md5_of(ONE)
    with serving(published) as address:
        path = ensure_dataset(dataclasses.replace(entry, mirrors=(address,))) / "it.gz"
    pins = json.loads((path.parent / "pinned.json").read_text())
    assert pins == {"sha256": {"it.gz": hashlib.sha256(ONE).hexdigest()}}
    path.write_bytes(OTHER)
    (published / "it.gz").write_bytes(OTHER)
    with (
        caplog.at_level(logging.WARNING, "heptad"),
        serving(published) as address,
        pytest.raises(MissingError, match="'one' is not here and could not be fetched"),
    ):
        ensure_dataset(dataclasses.replace(entry, mirrors=(address,)))
    assert f"{path} was damaged; it is now it.gz.damaged" in caplog.text
    assert not path.exists()
    # A control: without the pin the MD5 would let it pass.
    (path.parent / "pinned.json").unlink()
    path.write_bytes(OTHER)
    ensure_dataset(dataclasses.replace(entry, mirrors=()))


def test_a_file_that_changed_is_set_aside_and_fetched_again(colliding, own_cache, caplog):
    published, entry = colliding
    with serving(published) as address:
        entry = dataclasses.replace(entry, mirrors=(address,))
        path = ensure_dataset(entry) / "it.gz"
        path.write_bytes(flipped(ONE))
        ensure_dataset(entry)
    assert path.read_bytes() == ONE
    assert path.with_name("it.gz.damaged").read_bytes() == flipped(ONE)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"sha256": 3}', b"\xff", b"[" * 10**5])
def test_pins_that_cannot_be_read_are_made_again_by_the_md5(colliding, own_cache, content):
    published, entry = colliding
    with serving(published) as address:
        folder = ensure_dataset(dataclasses.replace(entry, mirrors=(address,)))
    (folder / "pinned.json").write_bytes(content)
    ensure_dataset(dataclasses.replace(entry, mirrors=()))
    assert json.loads((folder / "pinned.json").read_text())["sha256"].keys() == {"it.gz"}


def test_a_cache_that_cannot_be_written_is_used_without_pins(colliding, own_cache):
    _, entry = colliding
    folder = own_cache / "datasets" / "one"
    folder.mkdir(parents=True)
    (folder / "it.gz").write_bytes(ONE)
    folder.chmod(0o555)
    entry = dataclasses.replace(entry, mirrors=())
    # Linux takes powers from a thread alone.
    with ThreadPoolExecutor(1, initializer=give_up_powers) as pool:
        assert pool.submit(ensure_dataset, entry).result() == folder
    folder.chmod(0o755)
    assert files_in(folder) == ["it.gz"]


# QMNIST's labels


def extended(labels, *, columns: int = 8) -> bytes:
    """Labels as QMNIST's publisher writes them: rows of big-endian 32-bit integers."""
    rows = np.full((len(labels), columns), -7, ">i4")
    rows[:, :1] = np.array(labels)[:, None]
    return struct.pack(">HBBII", 0, 12, 2, *rows.shape) + rows.tobytes()


@pytest.fixture
def qmnist(mnist, tmp_path) -> Path:
    folder = tmp_path / "qmnist"
    folder.mkdir()
    for part, count in (("train", 60), ("test", 70)):
        images, labels = (values[:count] for values in mnist[part])
        content = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28) + images.tobytes()
        (folder / f"qmnist-{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
        (folder / f"qmnist-{part}-labels-idx2-int.gz").write_bytes(gzip.compress(extended(labels)))
    return folder


@pytest.mark.parametrize("by_name", [True, False], ids=["fetched", "a folder"])
def test_the_first_of_eight_columns_is_the_class(qmnist, mnist, own_cache, monkeypatch, by_name):
    with serving(qmnist) as address:
        offered(monkeypatch, "qmnist", qmnist, mirror=address)
        dataset = find_dataset("qmnist" if by_name else str(qmnist))
    for part, count in (("train", 60), ("test", 70)):
        images, labels = read_part(dataset, part)
        assert (images == mnist[part][0][:count]).all()
        assert (labels == mnist[part][1][:count]).all()
        assert labels.dtype == np.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (extended([1, 2, 3])[:-1], "is cut short: it holds 23 values where its header says 24"),
        (extended([1, 2, 3]) + b"\0", "is too long: more follows the 24 values of its header"),
        (extended([1] * 59 + [10]), "is 10; allowed: 0 to 9"),
        (extended([1] * 59 + [-1]), "label 59 of .* is -1; allowed: 0 to 9"),
        (extended([1] * 60, columns=0), "claims 60 x 0 values"),
        (extended([1] * 59), "59 labels; each image needs one"),
    ],
    ids=["cut short", "too long", "too large", "negative", "no columns", "too few"],
)
def test_labels_of_integers_are_checked_as_those_of_bytes_are(qmnist, content, message):
    (qmnist / "qmnist-train-labels-idx2-int.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=message):
        read_part(find_dataset(str(qmnist)), "train")


# CIFAR-10's archive


@pytest.fixture
def cifar10(tmp_path) -> Path:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    (folder / ARCHIVE).write_bytes(packed(*whole()))
    return folder


def pictures_of(part: str):
    """By hand: rows of label, red, green and blue, those of the files in their order."""
    rows = np.concatenate(
        [ROWS[name] for name in (BATCHES[:5] if part == "train" else BATCHES[5:])]
    )
    planes = [rows[:, 1 + 1024 * k : 1 + 1024 * (k + 1)].reshape(-1, 32, 32) for k in range(3)]
    return np.stack(planes, axis=-1), rows[:, 0]


def test_the_archive_gives_its_pictures_in_the_order_of_its_files(cifar10):
    for part in ("train", "test"):
        images, labels = read_cifar(cifar10 / ARCHIVE, part)
        expected, expected_labels = pictures_of(part)
        assert (images.transpose(0, 2, 3, 1) == expected).all()
        assert (labels == expected_labels).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_cifar10_trains_as_the_same_pictures_in_class_folders_do(
    channels, cifar10, own_cache, workplace, monkeypatch
):
    # Class folders come one after another.
    rows = {"train": BATCHES[:5], "test": BATCHES[5:]}
    for part, names in rows.items():
        values = np.concatenate([ROWS[name] for name in names])
        values = values[np.argsort(values[:, 0], kind="stable")]
        for number, (label, *_) in enumerate(values.tolist()):
            path = (
                workplace / "pictures" / part / CATALOG["cifar10"].classes[label] / f"{number}.png"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values[number, 1:].reshape(3, 32, 32).transpose(1, 2, 0)).save(path)
        for name, some in zip(names, np.split(values, len(names)), strict=True):
            monkeypatch.setitem(ROWS, name, some)
    (cifar10 / ARCHIVE).write_bytes(packed(*map(in_folder, IN_ARCHIVE)))
    with serving(cifar10) as address:
        offered(monkeypatch, "cifar10", cifar10, mirror=address)
        run = trained("cifar10", channels=channels, normalize="data")
    folders = trained("pictures", channels=channels, normalize="data")
    assert run.metrics["transform"] == folders.metrics["transform"]
    assert weights_of(run) == weights_of(folders)
    assert weights_of(run) == weights_of(trained(str(cifar10), channels=channels, normalize="data"))


def test_gray_of_a_set_in_colour_is_said(cifar10, caplog):
    recipe = heptad.load_recipe("lenet5", data=str(cifar10))
    with caplog.at_level(logging.INFO, "heptad"):
        heptad.prepare(recipe.changed(channels=3))
        assert "turned gray" not in caplog.text
        heptad.prepare(recipe)
    assert "cifar10 is in colour and is turned gray: --channels 3 keeps the colours" in caplog.text


LINKED = in_folder("data_batch_1.bin")[0].name
WRONG = {
    "a name above": [*whole(), member("../escaped", b"out")],
    "a name above, in the folder": [*whole(), member(f"{FOLDER}/../../escaped", b"out")],
    "an absolute name": [member("/tmp/escaped", b"out"), *whole()],
    "a symbolic link": [member(LINKED, kind=tarfile.SYMTYPE, link="/etc/passwd"), *whole()],
    "a hard link": [member(LINKED, kind=tarfile.LNKTYPE, link="/etc/passwd"), *whole()],
    "a pipe": [member(LINKED, kind=tarfile.FIFOTYPE), *whole()],
    "a device": [member(LINKED, kind=tarfile.CHRTYPE), *whole()],
    "a folder in place of a file": [member(LINKED, kind=tarfile.DIRTYPE), *whole()],
}


@pytest.mark.parametrize("what", WRONG)
def test_an_archive_with_anything_but_plain_files_in_its_folder_is_refused(what, cifar10):
    path = cifar10 / ARCHIVE
    path.write_bytes(packed(*WRONG[what]))
    before = sorted(cifar10.parent.rglob("*"))
    with pytest.raises(DataError, match=f"which is no plain file in {FOLDER}") as raised:
        read_cifar(path, "train")
    assert str(path) in raised.value.message
    assert sorted(cifar10.parent.rglob("*")) == before
    assert not Path("/tmp/escaped").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"no archive", "cannot be read: Not a gzipped file"),
        (gzip.compress(b"no tar" * 1000), "cannot be read"),
        (packed(*whole())[:-2000], "cannot be read: Compressed file ended"),
        (
            gzip.compress(gzip.decompress(packed(*whole()))[:40_000]),
            "cannot be read: unexpected end",
        ),
        (packed(*whole()[:-1]), f"lacks {FOLDER}/data_batch_2.bin"),
        (packed(*whole(), whole()[1]), "holds .*data_batch_1.bin more than once"),
        (
            packed(in_folder("x"), member(LINKED, bytes(3072))),
            "3,072 bytes; allowed: rows of 3,073",
        ),
        (packed(member(LINKED)), "with 0 bytes; allowed: rows of 3,073 bytes, at least one"),
        (claiming(30_733_073), "with 30,733,073 bytes; allowed: at most 30,730,000"),
        (claiming(1 << 40), "with 1,099,511,627,776 bytes; allowed: at most 30,730,000"),
        (long_name(), "unpacks to more than 185,428,576 bytes"),
    ],
    ids=[
        *("empty", "no gzip", "no tar", "cut short", "cut short before it was packed"),
        *("a file missing", "a file twice", "a part of a row", "no row"),
        *("a row too many", "a huge file", "a huge name"),
    ],
)
def test_an_archive_that_is_damaged_or_a_bomb_is_refused(content, message, tmp_path):
    path = tmp_path / ARCHIVE
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_cifar(path, "test")
    assert str(path) in raised.value.message


def test_a_label_beyond_the_classes_is_found_before_training(cifar10, monkeypatch):
    rows = ROWS["data_batch_2.bin"].copy()
    rows[3, 0] = 10
    monkeypatch.setitem(ROWS, "data_batch_2.bin", rows)
    path = cifar10 / ARCHIVE
    path.write_bytes(packed(*map(in_folder, IN_ARCHIVE)))
    with pytest.raises(DataError, match=f"label 9 of {path} is 10; allowed: 0 to 9"):
        trained(str(cifar10))


def test_doctor_and_fetch_know_the_sets(cifar10, own_cache, monkeypatch, capsys):
    def state() -> str:
        assert main(["doctor", "--json"]) == 0
        findings = {entry["subject"]: entry for entry in json.loads(capsys.readouterr().out)}
        return findings["data cifar10"]["state"]

    with serving(cifar10) as address:
        offered(monkeypatch, "cifar10", cifar10, mirror=address)
        assert state() == "not here"
        assert main(["fetch", "cifar10", "--to", str(own_cache.parent / "stick")]) == 0
    path = own_cache.parent / "stick" / "cifar10" / ARCHIVE
    assert capsys.readouterr().out == f"cifar10:\n  {path}\n"
    assert state() == "here and verified"
    assert read_part(find_dataset(str(path.parent)), "train")[0].shape == (30, 3, 32, 32)
    kept = own_cache / "datasets" / "cifar10" / ARCHIVE
    os.truncate(kept, 100)
    assert state() == "damaged: cifar-10-binary.tar.gz"
