"""Folders of class folders: what is listed and decoded, how it is split, what is refused and said.

The pictures are real digits, or made here; the user's own files are only ever read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import heptad
from conftest import write_idx, write_pictures
from heptad.cli import main
from heptad.datasets.folder import list_folder
from heptad.errors import DataError, RunError
from heptad.records import PassReport, Prepared, StepReport
from heptad.scanning import scanning
from heptad.stages.data import open_sources
from heptad.stores import list_stores
from killing import metrics_of, result_of
from test_disks import give_up_powers
from test_odd_names import NAMES, document, said


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def copied(pictures, tmp_path) -> Path:
    """The digits in a folder of one's own."""
    return shutil.copytree(pictures, tmp_path / "digits")


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> Path:
    """The folder of a run on the digits."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(words(pictures, folder)) == 0
    return folder


def words(data, out, *more: str) -> list[str]:
    """The words that train LeNet-5 on a folder for an epoch."""
    settings = ["--epochs", "1", "--threads", "1", "--batch-size", "32"]
    return ["train", "lenet5", "--data", str(data), *settings, "--out", str(out), *more]


def recipe_of(data, **settings) -> heptad.Recipe:
    return heptad.load_recipe("lenet5", data=str(data), **{"epochs": 1, **settings})


def opened(data, **settings):
    """The sources of a training on a folder that is ready to begin."""
    return heptad.prepare(recipe_of(data, **settings)).sources


def places_of(sources) -> list[dict]:
    """Which picture went where, as a run writes it into its pictures.json."""
    return sources.pictures.as_document()["pictures"]


def contents(sources, part: str) -> set[str]:
    return {entry["sha256"] for entry in places_of(sources) if entry["part"] == part}


def noise(path: Path, seed: int, *, side: int = 28) -> Path:
    """Write a picture like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def small_set(folder: Path, *, classes=("a", "b"), count: int = 4, start: int = 0) -> Path:
    """Write so many pictures of each class, no two alike, under numbers from `start`."""
    for number in range(len(classes) * count):
        name = f"{classes[number // count]}/{start + number % count}.png"
        noise(folder / name, start + number)
    return folder


def state_of(folder: Path) -> dict[str, tuple]:
    """All that lies in a folder, each file with its content and the time of its change."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns,
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [folder, *folder.rglob("*")]
    }


# Pixels and order


def test_digits_as_pictures_train_to_the_weights_of_the_same_digits_as_idx_files(mnist, tmp_path):
    found = {}
    for part, count in (("train", 200), ("test", 60)):
        images, labels = (values[:count] for values in mnist[part])
        write_pictures(tmp_path / "pictures" / part, images[:, 0], labels)
        # Class folders come one after another.
        order = np.argsort(labels, kind="stable")
        write_idx(tmp_path / "idx", part, images[order, 0], labels[order])
        write_idx(tmp_path / "other", part, images[:, 0], labels)
    for data in ("pictures", "idx", "other"):
        assert main(words(tmp_path / data, tmp_path / "runs" / data)) == 0
        path = tmp_path / "runs" / data / f"lenet5_{data}.pth"
        state = torch.load(path, weights_only=True)
        found[data] = {name: values.numpy().tobytes() for name, values in state.items()}
    assert found["pictures"] == found["idx"]
    # A control: in another order they train to other weights.
    assert found["other"] != found["idx"]


def test_a_set_larger_than_memory_trains_to_the_same_weights(pictures, trained, tmp_path):
    assert main(words(pictures, tmp_path / "run", "--memory", "0")) == 0
    assert result_of(tmp_path / "run") == result_of(trained)


def test_classes_and_pictures_are_in_the_order_in_which_people_count(tmp_path):
    names = [f"{c}/{p}.png" for c in ("10", "2", "1", "b", "a10", "a9") for p in (10, 9, "x")]
    for seed, name in enumerate(names):
        noise(tmp_path / name, seed)
    listing = list_folder(tmp_path)
    assert listing.classes == ("1", "2", "10", "a9", "a10", "b")
    assert listing.paths[:4] == ["1/9.png", "1/10.png", "1/x.png", "2/9.png"]
    # A control: as text they would be in another order.
    assert sorted(listing.classes) != list(listing.classes)


@pytest.mark.parametrize(
    "folders",
    [("train", "val", "test"), ("training", "valid", "testing"), ("Train", "Validation", "TEST")],
    ids="/".join,
)
def test_the_parts_of_a_set_are_known_by_the_names_of_their_folders(folders, tmp_path):
    for number, name in enumerate(folders):
        small_set(tmp_path / name, count=2 + number, start=100 * number)
    sources = opened(tmp_path, validation="folder")
    assert [len(part.labels) for part in sources.parts] == [4, 8, 6]
    assert Counter(entry["part"] for entry in places_of(sources)) == {
        "train": 4,
        "validation": 6,
        "test": 8,
    }


def test_parts_without_class_folders_are_not_taken_for_classes(tmp_path):
    small_set(tmp_path, classes=("train", "test"))
    with pytest.raises(DataError, match="has test, train, but no class folders in them"):
        opened(tmp_path)


def test_pictures_that_a_run_was_trained_on_are_not_scored_without_a_warning(
    pictures, trained, copied, caplog
):
    run = heptad.load_run(trained)
    run.evaluate()
    assert "trained on" not in caplog.text
    scores = run.evaluate(str(copied))
    num_trained = sum(entry["part"] == "train" for entry in pictures_in(trained))
    said = f"{num_trained} of {scores.num_images} test images were trained on by the run"
    assert 0 < num_trained < scores.num_images
    assert said in caplog.text


def pictures_in(run: Path) -> list[dict]:
    return json.loads((run / "pictures.json").read_bytes())["pictures"]


@pytest.mark.parametrize("second", ["training", "Train"])
def test_two_folders_for_one_part_are_refused_and_none_is_passed_over_silently(second, tmp_path):
    for number, name in enumerate(("train", second, "test")):
        small_set(tmp_path / name, start=100 * number)
    with pytest.raises(
        DataError, match=r"has [Tt]rain and [Tt]rain(ing)?; each would be the train"
    ):
        opened(tmp_path)


def test_a_class_may_be_called_test(tmp_path):
    small_set(tmp_path, classes=("cat", "test", "train"))
    sources = opened(tmp_path)
    assert sources.train.classes == ("cat", "test", "train")
    assert len(sources.train.labels) + len(sources.test.labels) == 12


@pytest.mark.parametrize("number", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_set_may_have_very_many_classes(number, tmp_path):
    sources = opened(small_set(tmp_path, classes=[f"class {k}" for k in range(number)], count=2))
    assert sources.train.classes == tuple(f"class {k}" for k in range(number))
    assert sources.train.labels.tolist() == sources.test.labels.tolist() == list(range(number))


def test_what_is_too_much_to_print_of_many_classes_is_not_printed(tmp_path, capsys):
    data = small_set(tmp_path / "set", classes=[f"class {k}" for k in range(31)], count=2)
    noise(data / "class 0" / "more.png", 900)
    assert main(words(data, tmp_path / "run")) == 0
    assert "Training images by class: 1 to 2." in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "Taken for another most often" in out
    # Of the classes the 15 worst alone, under their titles, and no matrix.
    assert sum(line.startswith("class ") for line in out.splitlines()) == 16
    assert "said" not in out


def test_the_training_images_of_each_class_are_counted_at_the_start(tmp_path, capsys):
    data = small_set(tmp_path / "set", classes="abc", count=5)
    noise(data / "b" / "more.png", 900)
    assert main(words(data, tmp_path / "run")) == 0
    assert "Training images by class: 4, 5, 4.\n" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_that_is_not_trained_on_is_named(part, tmp_path):
    for number, name in enumerate(("train", "val", "test")):
        small_set(tmp_path / name, start=100 * number)
    noise(tmp_path / part / "c" / "0.png", 900)
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    unknown = f"{tmp_path}/{part} has the classes c, which {tmp_path}/train has not"
    assert caught.value.message == f"{unknown}; allowed: a, b."


def test_a_class_that_is_never_tested_is_named(tmp_path, caplog):
    small_set(tmp_path, count=5)
    lone = noise(tmp_path / "c" / "0.png", 900)
    assert torch.bincount(opened(tmp_path).test.labels).tolist() == [1, 1]
    assert "there is no picture to test on of c" in caplog.text
    caplog.clear()
    # A copy of it is no second one.
    shutil.copy(lone, tmp_path / "c" / "1.png")
    opened(tmp_path)
    assert "there is no picture to test on of c" in caplog.text
    caplog.clear()
    noise(tmp_path / "c" / "2.png", 901)
    opened(tmp_path)
    assert "to test on of" not in caplog.text


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"a": 4}, ["one class alone: nothing to tell apart"]),
        (
            {"a": 4, "b": 0},
            ["classes without a picture: b", "classes without a picture to test on: b"],
        ),
        ({"a": 4, "b": 1}, ["classes without a picture to test on: b"]),
        (
            {"train/a": 2, "train/b": 1, "test/a": 1, "test/b": 0},
            ["classes without a picture to test on: b"],
        ),
        ({"a": 2, "b": 2}, []),
    ],
    ids=["one class", "an empty class", "a lone picture", "an untested class", "nothing"],
)
def test_scan_says_what_a_training_would_lack(counts, said, tmp_path, capsys):
    for start, (name, count) in enumerate(counts.items()):
        (tmp_path / name).mkdir(parents=True)
        for number in range(count):
            noise(tmp_path / name / f"{number}.png", 10 * start + number)
    assert main(["scan", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "class" in line and "\u2503" not in line] == said


def test_of_many_empty_classes_some_are_named(tmp_path):
    small_set(tmp_path, classes=["c1", "c2"])
    for number in range(3, 301):
        (tmp_path / f"c{number}").mkdir()
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    named = ", ".join(f"c{number}" for number in range(3, 11))
    assert caught.value.message == f"{tmp_path} has no picture in {named} and 290 more."


# What is passed over


def test_what_is_no_picture_of_a_class_is_passed_over_and_counted(tmp_path, capsys):
    small_set(tmp_path / "set", count=2)
    for name in (
        *("a/notes.txt", "b/Thumbs.db", "b/more.TXT", "a/LICENSE", "README.md"),
        *("a/.hidden.png", "a/._0.png", "loose.png"),
        *(".ipynb_checkpoints/0.png", "a/.git/1.png", "a/.git/2.png"),
    ):
        noise(tmp_path / "set" / "x.png", 9).rename(tmp_path / "x")
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "x").rename(tmp_path / "set" / name)
    noise(tmp_path / "set" / "a" / "deeper" / "still" / "5.JPEG", 5)
    assert main(["scan", str(tmp_path / "set"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["classes"] == ["a", "b"]
    assert report["counts"] == {"train": {"a": 3, "b": 2}}
    assert report["passed_over"] == {
        ".db": 1,
        ".md": 1,
        ".txt": 2,
        "hidden file": 2,
        "hidden folder": 2,
        "picture in no class folder": 1,
        "without suffix": 1,
    }


def test_links_are_followed_but_not_in_circles_nor_upwards(tmp_path):
    small_set(tmp_path / "set")
    noise(tmp_path / "elsewhere" / "more.png", 99)
    (tmp_path / "set" / "a" / "again").symlink_to(".")
    (tmp_path / "set" / "a" / "upwards").symlink_to("..")
    (tmp_path / "set" / "b" / "root").symlink_to("/")
    (tmp_path / "set" / "b" / "elsewhere").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "b" / "file.png").symlink_to(tmp_path / "elsewhere" / "more.png")
    listing = list_folder(tmp_path / "set")
    expected = [f"{name}/{number}.png" for name in "ab" for number in range(4)]
    assert sorted(listing.paths) == sorted([*expected, "b/elsewhere/more.png", "b/file.png"])
    assert listing.passed_over == {"folder seen before, by a link": 3}


# What cannot be used


def garbage(path: Path) -> None:
    path.write_text("no picture at all")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def instead(make, path: Path) -> None:
    """Put something else in the place of a picture."""
    path.unlink()
    make(path)


BAD = {
    "empty": (partial(os.truncate, length=0), "is no picture that can be read: it is empty"),
    "text": (garbage, "is no picture that can be read: its content is of no known format"),
    "cut": (cut, "is no picture that can be read: image file is truncated"),
    "a pipe": (partial(instead, os.mkfifo), "is a named pipe, not a picture"),
    "a device": (
        partial(instead, lambda path: path.symlink_to("/dev/zero")),
        "is a device, not a picture",
    ),
    "a link to itself": (
        partial(instead, lambda path: path.symlink_to(path.name)),
        "cannot be read: Too many levels of symbolic links",
    ),
    "a link to nothing": (
        partial(instead, lambda path: path.symlink_to("nothing.png")),
        "is not there",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_picture_that_cannot_be_used_is_named_before_anything_is_trained(what, tmp_path, capsys):
    spoil, reason = BAD[what]
    data = small_set(tmp_path / "set")
    spoil(data / "a" / "2.png")
    assert main(words(data, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert f"error: {data} holds 1 picture that cannot be used.\na/2.png: {reason}\n" in error
    assert not (tmp_path / "run").exists()
    # The rest is trained on if that is asked for.
    entries = places_of(opened(data, on_bad_image="skip"))
    assert [entry["path"] for entry in entries] == [
        *("a/0.png", "a/1.png", "a/3.png"),
        *("b/0.png", "b/1.png", "b/2.png", "b/3.png"),
    ]


def test_what_is_passed_over_is_said_a_line_each(tmp_path, capsys):
    data = small_set(tmp_path / "set")
    cut(data / "a" / "1.png")
    garbage(data / "b" / "0.png")
    assert main(words(data, tmp_path / "run", "--on-bad-image", "skip")) == 0
    assert (
        "2 pictures are passed over:\n"
        "  a/1.png: is no picture that can be read: image file is truncated\n"
        "  b/0.png: is no picture that can be read: its content is of no known format\n"
    ) in capsys.readouterr().err
    assert metrics_of(tmp_path / "run")["recipe"]["on_bad_image"] == "skip"


def test_of_many_that_cannot_be_used_twenty_are_named(copied):
    for path in copied.rglob("*.png"):
        garbage(path)
    with pytest.raises(DataError) as caught:
        opened(copied)
    lines = caught.value.hint.splitlines()
    assert caught.value.message == f"{copied} holds 200 pictures that cannot be used."
    assert (len(lines), lines[20]) == (22, "and 180 more")


@pytest.mark.parametrize(
    ("locked", "reason"),
    [
        ("7/15.png", "7/15.png: cannot be read: Permission denied"),
        ("7", "Permission denied: 'DIGITS/7'"),
        ("7/deeper", "Permission denied: 'DIGITS/7/deeper'"),
    ],
    ids=["file", "class", "folder in a class"],
)
def test_what_may_not_be_read_is_named(locked, reason, own_cache, copied):
    (copied / "7" / "deeper").mkdir()
    (copied / locked).chmod(0)
    # Linux takes powers from a thread alone.
    with ThreadPoolExecutor(1, initializer=give_up_powers) as pool:
        error = pool.submit(opened, copied).exception()
    (copied / locked).chmod(0o755)
    assert reason.replace("DIGITS", str(copied)) in f"{error} {getattr(error, 'hint', '')}"
    # A control: the same set can be read where it may.
    assert len(places_of(opened(copied))) == 200


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Path.unlink, "is not there"),
        (partial(noise, seed=1), "was changed while the pictures were read"),
        (partial(instead, os.mkfifo), "is a named pipe, not a picture"),
        (partial(instead, Path.mkdir), "is a folder, not a picture"),
    ],
    ids=["vanishes", "changes", "becomes a pipe", "becomes a folder"],
)
def test_a_picture_that_goes_while_the_set_is_read_is_named_before_anything_is_trained(
    change, reason, own_cache, copied, tmp_path
):
    events = heptad.run(recipe_of(copied), heptad.RunOptions(out=str(tmp_path / "run")))
    assert next(events).num_done == 64
    last = list_folder(copied).paths[-1]
    change(copied / last)
    reports = []
    with pytest.raises(DataError) as caught:
        reports.extend(events)
    assert {type(report) for report in reports} == {PassReport}
    assert caught.value.hint.splitlines()[0] == f"{last}: {reason}"
    assert not (tmp_path / "run").exists()


def test_a_class_of_which_nothing_can_be_used_is_named(tmp_path):
    for path in small_set(tmp_path, classes=("a", "b", "c")).glob("b/*.png"):
        garbage(path)
    with pytest.raises(DataError, match="has too few pictures of b; each class needs two that"):
        opened(tmp_path, on_bad_image="skip")


def test_pictures_that_go_while_they_are_trained_on_are_not_missed(pictures, trained, copied):
    """Their pixels are kept in the cache, and are read from there."""
    options = heptad.RunOptions(out=str(copied.parent / "run"), threads=1, memory=0)
    events = heptad.run(recipe_of(copied, batch_size=32), options)
    next(event for event in events if isinstance(event, StepReport))
    shutil.rmtree(copied)
    *_, run = events
    # The same digits, by another run that nothing disturbed.
    with np.load(trained / "predictions.npz") as predictions:
        assert np.array_equal(predictions["logits"], run.scores.logits.numpy())


# Kept by content


def test_what_changed_while_it_was_read_is_not_kept_as_what_it_was(
    own_cache, pictures, copied, monkeypatch
):
    name = list_folder(copied).paths[-1]
    events = heptad.run(recipe_of(copied), heptad.RunOptions(out=str(copied.parent / "run")))
    next(events)
    noise(copied / name, 1)
    with pytest.raises(DataError):
        list(events)
    # As it was when it was hashed: what is kept under that hash must be its own pixels.
    shutil.copy(pictures / name, copied / name)
    kept = heptad.prepare(recipe_of(copied)).data
    monkeypatch.setenv("HEPTAD_HOME", str(own_cache.parent / "another"))
    assert heptad.prepare(recipe_of(pictures)).data == kept


def test_what_changes_after_it_was_read_is_read_again_by_the_next_run(own_cache, copied, tmp_path):
    name = list_folder(copied).paths[0]
    before = hashlib.sha256((copied / name).read_bytes()).hexdigest()
    events = heptad.run(recipe_of(copied), heptad.RunOptions(out=str(tmp_path / "run")))
    next(events)
    noise(copied / name, 1)
    assert isinstance(
        next(event for event in events if not isinstance(event, PassReport)), Prepared
    )
    events.close()
    entries = {entry["path"]: entry["sha256"] for entry in places_of(opened(copied))}
    assert entries[name] == hashlib.sha256((copied / name).read_bytes()).hexdigest() != before


def decodings(data, **settings) -> int:
    """How many pictures are decoded to prepare a training; it is left then."""
    events = heptad.run(recipe_of(data, **settings))
    reports = list(takewhile(lambda event: isinstance(event, PassReport), events))
    events.close()
    assert {report.what for report in reports} <= {"reading the pictures"}
    return sum(report.num_images for report in reports if report.num_done == report.num_images)


def test_twenty_new_photos_cost_twenty_decodings(own_cache, copied, workplace):
    assert decodings(copied) == 200
    assert decodings(copied) == 0
    small_set(copied, classes=("3", "new"), count=10, start=500)
    assert decodings(copied) == 20
    assert decodings(copied, seed=1, validation=0.1) == 0


def test_a_reading_that_was_stopped_goes_on_where_it_was(own_cache, copied, workplace):
    events = heptad.run(recipe_of(copied))
    assert (next(events).num_done, next(events).num_done) == (64, 128)
    events.close()
    assert decodings(copied) == 72
    assert decodings(copied) == 0


def test_a_copy_is_decoded_once(own_cache, workplace):
    for path in list(small_set(Path("set"), count=10).rglob("*.png")):
        shutil.copy(path, path.with_suffix(".PNG"))
    assert len(list_folder(Path("set")).paths) == 40
    assert decodings("set") == 20


# The split


def turned_round(folder: Path) -> None:
    """Rename all pictures, and move some, so that their order is another one."""
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        deeper = path.parent / "deeper" if number % 2 else path.parent
        deeper.mkdir(exist_ok=True)
        path.rename(deeper / f"{999 - int(path.stem)}.PNG")


def test_the_split_depends_on_content_and_seed_alone(copied):
    before = opened(copied, validation=0.2)
    turned_round(copied)
    after = opened(copied, validation=0.2)
    for part in ("train", "validation", "test"):
        assert contents(after, part) == contents(before, part)
    # Controls: the order did change, and another seed is another split.
    order = [[entry["sha256"] for entry in places_of(found)] for found in (before, after)]
    assert order[0] != order[1]
    other = opened(copied, validation=0.2, seed=1)
    assert contents(other, "test") != contents(before, "test")
    assert contents(other, "validation") != contents(before, "validation")


def test_every_network_is_tested_on_the_same_pictures(pictures):
    """In gray and in colour, of whatever size."""
    gray, colour = (
        open_sources(
            recipe_of(pictures, architecture=name, channels=channels, image_size=size),
            device=torch.device("cpu"),
        )
        for name, channels, size in (("lenet5", 1, 32), ("resnet50", 3, 64))
    )
    assert contents(gray, "test") == contents(colour, "test")
    assert gray.test.ids.tolist() == colour.test.ids.tolist()


def test_every_network_is_validated_on_the_same_pictures(pictures):
    gray, color = (opened(pictures, channels=count, validation=0.2) for count in (1, 3))
    assert contents(gray, "validation") == contents(color, "validation")
    assert len(contents(gray, "validation")) > 20


def test_a_val_folder_that_nothing_uses_is_said(tmp_path, caplog):
    for number, part in enumerate(("train", "val", "test")):
        small_set(tmp_path / "set" / part, start=100 * number)
    opened(tmp_path / "set")
    assert "the val folder is not used" in caplog.text
    caplog.clear()
    opened(tmp_path / "set", validation="folder")
    assert "val folder" not in caplog.text


def test_decoded_pictures_are_kept_within_the_size_of_the_cache(own_cache, copied):
    heptad.prepare(recipe_of(copied))
    before = {store.key for store in list_stores()}
    options = heptad.RunOptions(cache_size=1)
    in_use = heptad.prepare(recipe_of(copied, channels=3), options)
    left = {store.key for store in list_stores()}
    assert (len(before), len(left), before & left) == (1, 1, set())
    assert in_use.sources.train.take(torch.arange(3), None).shape == (3, 3, 32, 32)


def test_a_fifth_of_each_class_is_held_out(pictures):
    sources = opened(pictures)
    totals = Counter(entry["class"] for entry in places_of(sources))
    held_out = Counter(entry["class"] for entry in places_of(sources) if entry["part"] == "test")
    assert held_out.keys() == totals.keys()
    for name, total in totals.items():
        assert abs(held_out[name] - total / 5) <= 0.5


def test_a_class_of_two_has_one_on_each_side(tmp_path):
    sources = opened(small_set(tmp_path, count=2))
    assert torch.bincount(sources.train.labels).tolist() == [1, 1]
    assert torch.bincount(sources.test.labels).tolist() == [1, 1]


def test_copies_of_a_picture_are_on_one_side(copied):
    for path in list(copied.rglob("*.png")):
        # The same pixels, in a file of other content; some in a class of another name.
        target = copied / ("9" if path.parent.name == "8" else path.parent.name)
        Image.open(path).save(target / f"copy-{path.stem}.bmp")
    sources = opened(copied, validation=0.2)
    parts_of: dict[str, list[str]] = {}
    for entry in places_of(sources):
        number = Path(entry["path"]).stem.removeprefix("copy-")
        parts_of.setdefault(number, []).append(entry["part"])
    assert len(parts_of) == 200
    assert all(
        parts in (["train"] * 2, ["validation"] * 2, ["test"] * 2) for parts in parts_of.values()
    )
    assert {parts[0] for parts in parts_of.values()} == {"train", "validation", "test"}


def test_a_run_writes_down_which_picture_went_where(trained, pictures):
    entries = json.loads((trained / "pictures.json").read_text())["pictures"]
    assert [entry["path"] for entry in entries] == list_folder(pictures).paths
    for entry in entries:
        content = (pictures / entry["path"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["class"] == Path(entry["path"]).parts[0]
    tested = [entry["id"] for entry in entries if entry["part"] == "test"]
    with np.load(trained / "predictions.npz") as predictions:
        assert predictions["ids"].tolist() == tested
    # It is one of the files that `heptad verify` looks at.
    assert "pictures.json" in metrics_of(trained)["files"]


def test_evaluate_scores_the_pictures_that_were_held_out(copied, tmp_path):
    run = heptad.train(recipe_of(copied), heptad.RunOptions(out=str(tmp_path / "run")))
    classifier = heptad.load_run(run.folder)
    assert torch.equal(classifier.evaluate().logits, run.scores.logits)
    turned_round(copied)
    small_set(copied, classes=("0", "9"), count=15, start=500)
    found = classifier.evaluate()
    assert (found.num_images, found.num_correct) == (run.scores.num_images, run.scores.num_correct)
    assert found.loss == pytest.approx(run.scores.loss, rel=1e-12)
    # A control: there are more.
    assert classifier.evaluate(str(copied)).num_images == 230


def test_evaluate_refuses_when_a_held_out_picture_is_gone(tmp_path):
    data = small_set(tmp_path / "set")
    run = heptad.train(recipe_of(data), heptad.RunOptions(out=str(tmp_path / "run")))
    entries = json.loads((run.folder / "pictures.json").read_text())["pictures"]
    first = {part: next(e for e in entries if e["part"] == part) for part in ("train", "test")}
    # One that was trained on may go.
    (data / first["train"]["path"]).unlink()
    assert heptad.load_run(run.folder).evaluate().num_correct == run.scores.num_correct
    (data / first["test"]["path"]).unlink()
    with pytest.raises(DataError, match="lacks 1 of the 2 pictures that the run was tested on"):
        heptad.load_run(run.folder).evaluate()


def test_a_run_on_a_folder_that_changed_is_not_resumed(copied, tmp_path):
    recipe = recipe_of(copied, batch_size=32)
    options = heptad.RunOptions(out=str(tmp_path / "run"), resume=True)
    events = heptad.run(recipe, options)
    next(event for event in events if isinstance(event, StepReport) and event.step == 2)
    events.close()
    added = noise(copied / "4" / "added.png", 1)
    with pytest.raises(RunError, match="the images or labels are not those that the run"):
        heptad.train(recipe, options)
    # A control: it was the picture.
    added.unlink()
    assert heptad.train(recipe, options).metrics["execution"]["resumed_from"] == [2]


# Classes by name


def test_other_pictures_are_scored_by_the_names_of_their_classes(trained, mnist, tmp_path):
    images, labels = (values[:300] for values in mnist["test"])
    few = np.isin(labels, (7, 3, 9))
    other = write_pictures(tmp_path / "other", images[few, 0], labels[few])
    classifier = heptad.load_run(trained)
    # By hand: picture after picture, the likeliest name against the folder's.
    paths = [other / name for name in list_folder(other).paths]
    answers = [prediction.classes[0][0] for prediction in classifier.predict(paths)]
    expected = sum(path.parent.name == said for path, said in zip(paths, answers, strict=True))
    scores = classifier.evaluate(str(other))
    assert (scores.num_images, scores.num_correct) == (int(few.sum()), expected)
    assert scores.confusion.sum(1).nonzero().flatten().tolist() == [3, 7, 9]
    # A control: by place, as 0, 1 and 2, hardly any would be right.
    by_place = [list_folder(other).classes.index(path.parent.name) for path in paths]
    assert sum(str(k) == said for k, said in zip(by_place, answers, strict=True)) != expected


def test_a_class_that_the_network_does_not_know_is_refused(trained, tmp_path, capsys):
    small_set(tmp_path / "other", classes=("3", "cat", "dog"))
    assert main(["evaluate", str(trained), "--data", str(tmp_path / "other")]) == 2
    assert f"{tmp_path}/other has the classes cat, dog, but the run was" in capsys.readouterr().err


def test_nothing_to_score_is_said(trained, own_cache, tmp_path):
    (tmp_path / "other" / "3").mkdir(parents=True)
    with pytest.raises(DataError, match="has no picture of the test part that can be used"):
        heptad.load_run(trained).evaluate(str(tmp_path / "other"))


# The user's files


def test_the_pictures_are_only_ever_read(copied, trained, tmp_path, capsys):
    garbage(copied / "7" / "15.png")
    (copied / "8" / "link").symlink_to(".")
    before = state_of(copied)
    assert main(["scan", str(copied)]) == 2
    assert main(words(copied, tmp_path / "stopped")) == 2
    assert main(words(copied, tmp_path / "run", "--on-bad-image", "skip", "--shift", "0.1")) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(copied)]) == 0
    assert main(["predict", str(tmp_path / "run"), str(copied / "0")]) == 0
    assert state_of(copied) == before


# Scan


def blurred(seed: int) -> Image.Image:
    """A picture of soft edges, like a photo: in colour, 40 x 30."""
    few = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(few).resize((40, 30), Image.Resampling.BICUBIC)


@pytest.fixture
def faulty(tmp_path) -> Path:
    """A folder with something of everything that a scan should find."""
    folder = tmp_path / "faulty"
    for seed, name in enumerate(("train/a/0", "train/a/1", "train/b/0", "train/b/1", "test/a/0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        blurred(seed).save(folder / f"{name}.png")
    (folder / "test" / "b").mkdir()
    # One pixel of it changed; the same pixels in another file; in another class; in another part.
    near = blurred(0)
    near.putpixel((20, 15), (255, 0, 255))
    near.save(folder / "train" / "a" / "near.png")
    blurred(1).save(folder / "train" / "a" / "again.tif")
    blurred(2).save(folder / "train" / "a" / "torn.bmp")
    blurred(3).save(folder / "test" / "b" / "leak.png")
    blurred(5).convert("L").resize((64, 20)).save(folder / "train" / "b" / "gray.png")
    garbage(folder / "train" / "b" / "text.jpg")
    return folder


def test_scan_counts_and_measures(faulty, capsys):
    assert main(["scan", str(faulty), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["counts"] == {"train": {"a": 5, "b": 3}, "test": {"a": 1, "b": 1}}
    assert report["sizes"] == {"width": [40, 40, 64], "height": [20, 30, 30]}
    assert report["modes"] == {"PNG RGB": 7, "TIFF RGB": 1, "BMP RGB": 1, "PNG L": 1}
    reason = "is no picture that can be read: its content is of no known format"
    assert report["bad"] == {"train/b/text.jpg": reason}


def test_scan_finds_copies_leaks_and_what_is_nearly_alike(faulty, capsys):
    assert main(["scan", str(faulty), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    torn, leak = ["train/a/torn.bmp", "train/b/0.png"], ["train/b/1.png", "test/b/leak.png"]
    again = ["train/a/1.png", "train/a/again.tif"]
    assert sorted(report["copies"]) == sorted([again, torn, leak])
    assert (report["torn"], report["leaks"]) == ([torn], [leak])
    assert report["near"] == [["train/a/0.png", "train/a/near.png"]]


def test_scan_says_it_in_words(faulty, capsys):
    assert main(["scan", str(faulty)]) == 2
    out = capsys.readouterr().out
    for line in (
        "width: 40 to 64 pixels, half of them up to 40",
        "copies of one picture: 3",
        "copies in more than one part: the test would be too easy, see --drop-leaks: 1",
        "  train/b/1.png, test/b/leak.png",
        "copies in more than one class: 1",
        "pictures that look nearly alike: 1",
        "  train/a/0.png, train/a/near.png",
        "cannot be used: 1",
        "  train/b/text.jpg: is no picture that can be read: its content is of no known format",
    ):
        assert line in out.splitlines()


def test_a_second_scan_decodes_what_is_new_alone(own_cache, copied):
    def decoded() -> int:
        reports = [event for event in scanning(copied) if isinstance(event, PassReport)]
        return reports[-1].num_images if reports else 0

    assert (decoded(), decoded()) == (200, 0)
    small_set(copied, classes=("3", "7"), count=2, start=500)
    assert decoded() == 4


def test_a_good_folder_is_found_good(pictures, capsys):
    assert main(["scan", str(pictures)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Every picture can be used."


# Names


# One unmarked: each of the others is slow, all of them together are not needed every day.
MANY = [pytest.param(what, marks=pytest.mark.slow) for what in NAMES if what != "several at once"]


@pytest.mark.parametrize("what", ["several at once", *MANY])
def test_classes_and_pictures_may_have_any_name(what, workplace):
    name = NAMES[what]
    small_set(Path("set"), classes=(name, "plain"), count=3)
    picture = noise(Path("set", name, f"{name[:100]}.png"), 50)
    assert said("scan", "set")[0] == 0
    assert document("scan", "set")["counts"]["train"] == {name: 4, "plain": 3}
    assert said(*words("set", "run"))[0] == 0
    assert set(metrics_of(Path("run"))["classes"]) == {name, "plain"}
    assert said("evaluate", "run")[0] == said("evaluate", "run", "--data", "set")[0] == 0
    code, out, err = said("evaluate", "run", "--data", "set", "--json")
    assert (code, json.loads(out)["test_images"]) == (0, 7)
    assert err.startswith("5 of 7 test images were trained on by the run")
    assert said("predict", "run", picture)[0] == said("resume", "run")[0] == 0
    assert not Path("owned").exists()


@pytest.mark.parametrize("what", ["several at once", *MANY])
def test_what_is_wrong_is_said_of_any_name(what, trained, workplace):
    name = NAMES[what]
    small_set(Path("set"), classes=(name, "plain"))
    shutil.copytree(Path("set"), "empty")
    shutil.rmtree(Path("empty", name))
    Path("empty", name).mkdir()
    garbage(Path("set", name, f"{name[:100]}.png"))
    skipping = ("--on-bad-image", "skip")
    for code, *command in (
        (2, *words("set", "run")),
        (0, *words("set", "run", *skipping)),
        (2, *words("empty", "other")),
        (2, "evaluate", trained, "--data", "empty"),
        (2, "scan", "set"),
    ):
        found, out, err = said(*command)
        assert found == code, err
        # Not a line of ours, but a part of a name.
        assert not [line for line in (out + err).splitlines() if line.startswith("error: all is")]
