"""Copies of what is scored, left out of the training if asked for; and who is in which part."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import heptad
from conftest import write_idx
from heptad.cli import main
from heptad.errors import DataError
from heptad.records import Prepared
from killing import metrics_of
from test_catalog import weights_of
from test_folders import blurred, noise, opened, places_of, recipe_of, small_set, words


def parted_set(folder: Path, *, parts=("train", "val", "test"), count: int = 6) -> Path:
    """Class folders in parts, no two pictures alike."""
    for number, part in enumerate(parts):
        small_set(folder / part, count=count, start=100 * number)
    return folder


def copied_to(source: Path, target: Path) -> Path:
    """Write the same pixels in a file of other content."""
    Image.open(source).save(target)
    return target


@pytest.fixture
def leaking(tmp_path) -> Path:
    """A set with two training pictures in its test part, and one in its val part."""
    folder = parted_set(tmp_path / "leaking")
    copied_to(folder / "test" / "a" / "201.png", folder / "train" / "a" / "leak.bmp")
    copied_to(folder / "test" / "b" / "203.png", folder / "train" / "b" / "leak.bmp")
    copied_to(folder / "val" / "b" / "103.png", folder / "train" / "b" / "other.bmp")
    return folder


def without(folder: Path, *names: str) -> Path:
    """A copy of a folder without these files."""
    target = shutil.copytree(folder, folder.parent / "without" / folder.name)
    for name in names:
        (target / name).unlink()
    return target


def trained(data: Path, out: Path, **settings) -> heptad.Run:
    options = heptad.RunOptions(out=str(out), threads=1)
    return heptad.train(recipe_of(data, batch_size=4, **settings), options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("validation", "leaks"),
    [
        (0, ["a/leak.bmp", "b/leak.bmp"]),
        (0.2, ["a/leak.bmp", "b/leak.bmp"]),
        ("folder", ["a/leak.bmp", "b/leak.bmp", "b/other.bmp"]),
    ],
)
def test_without_its_leaks_a_set_trains_as_if_they_were_not_there(
    validation, leaks, leaking, tmp_path, caplog
):
    with caplog.at_level(logging.INFO, "heptad"):
        run = trained(leaking, tmp_path / "run", drop_leaks=True, validation=validation)
    said = f"{len(leaks)} training images are left out, since they are to be scored as well"
    assert said in caplog.text
    names = [f"train/{name}" for name in leaks]
    clean = trained(without(leaking, *names), tmp_path / "clean", validation=validation)
    assert weights_of(run) == weights_of(clean)
    assert run.metrics["test_images"] == clean.metrics["test_images"] == 12
    entries = json.loads((run.folder / "pictures.json").read_text())["pictures"]
    assert [entry["path"] for entry in entries if entry["part"] == "leak"] == names
    # A control: with them it trains to other weights.
    assert weights_of(trained(leaking, tmp_path / "all", validation=validation)) != weights_of(run)


@pytest.mark.parametrize(("validation", "number"), [(0, 2), ("folder", 3)])
def test_leaks_that_are_trained_on_are_counted_and_the_flag_is_named(
    validation, number, leaking, caplog
):
    sources = opened(leaking, validation=validation)
    assert len(sources.train.labels) == 15
    said = f"{number} training images are copies of images to score, such as train/a/leak.bmp; "
    assert f"{said}--drop-leaks leaves them out" in caplog.text


def test_one_leak_is_said_as_one(leaking, caplog):
    (leaking / "train" / "a" / "leak.bmp").unlink()
    opened(leaking)
    assert "1 training image is a copy of images to score, such as train/b/leak" in caplog.text


def test_scan_names_the_flag_where_there_are_leaks(leaking, pictures, capsys):
    assert main(["scan", str(leaking)]) == 0
    said = "copies in more than one part: the test would be too easy, see --drop-leaks"
    assert f"{said}: 3\n" in capsys.readouterr().out
    assert main(["scan", str(pictures)]) == 0
    assert "--drop-leaks" not in capsys.readouterr().out


def test_the_flag_is_part_of_the_recipe_of_a_run(leaking, tmp_path):
    assert main(words(leaking, tmp_path / "run", "--drop-leaks")) == 0
    assert metrics_of(tmp_path / "run")["recipe"]["drop_leaks"] is True
    assert heptad.load_recipe(tmp_path / "run").drop_leaks
    assert heptad.load_run(tmp_path / "run").evaluate().num_images == 12


def test_what_looks_nearly_alike_is_no_leak(tmp_path):
    folder = parted_set(tmp_path, parts=("train", "test"))
    for seed, part in enumerate(("train", "test")):
        picture = blurred(0)
        picture.putpixel((20, 15), (255, 0, 255 * seed))
        picture.save(folder / part / "a" / "near.png")
    sources = opened(folder, drop_leaks=True)
    assert len(sources.train.labels) == 13


def test_where_nothing_leaks_that_is_said(pictures, caplog):
    with caplog.at_level(logging.INFO, "heptad"):
        sources = opened(pictures, drop_leaks=True)
    assert "drop_leaks: no training image is a copy of one to score" in caplog.text
    assert len(sources.train.labels) == len(opened(pictures).train.labels)


def test_a_class_that_would_lose_all_its_pictures_is_named(tmp_path):
    folder = parted_set(tmp_path, parts=("train", "test"), count=1)
    copied_to(folder / "test" / "b" / "100.png", folder / "train" / "b" / "0.png")
    with pytest.raises(DataError, match="drop_leaks leaves no training image of b; all are copies"):
        opened(folder, drop_leaks=True)


def test_leaks_of_idx_files_are_left_out_too(mnist, tmp_path, caplog):
    images, labels = (values[:100] for values in mnist["train"])
    more, more_labels = (
        np.concatenate([mnist["test"][k][:3], (images, labels)[k]]) for k in (0, 1)
    )
    for name, some, some_labels in (("leaking", more, more_labels), ("clean", images, labels)):
        write_idx(tmp_path / name, "train", some[:, 0], some_labels)
        write_idx(tmp_path / name, "test", mnist["test"][0][:30, 0], mnist["test"][1][:30])
    with caplog.at_level(logging.INFO, "heptad"):
        leaking = opened(tmp_path / "leaking", drop_leaks=True).train
    assert "3 training images are left out" in caplog.text
    clean = opened(tmp_path / "clean").train
    every = torch.arange(100)
    assert torch.equal(leaking.take(every, None), clean.take(every, None))
    assert len(opened(tmp_path / "leaking").train.labels) == 103


# Who is in which part


def test_pictures_that_a_limit_leaves_out_are_unused(pictures, tmp_path):
    run = trained(pictures, tmp_path / "run", limit=20, validation=4)
    entries = json.loads((run.folder / "pictures.json").read_text())["pictures"]
    parts = Counter(entry["part"] for entry in entries)
    assert parts == {"train": 16, "validation": 4, "test": 20, "unused": 160}
    with np.load(run.folder / "predictions.npz") as predictions:
        assert predictions["ids"].tolist() == [e["id"] for e in entries if e["part"] == "test"]
    scores = heptad.load_run(run.folder).evaluate()
    assert torch.equal(scores.logits, run.scores.logits)


def test_a_val_folder_that_is_not_used_is_named_as_that(tmp_path):
    folder = parted_set(tmp_path)
    parts = {entry["path"].split("/")[0]: entry["part"] for entry in places_of(opened(folder))}
    assert parts == {"train": "train", "val": "unused", "test": "test"}


def test_evaluate_scores_each_held_out_picture_as_often_as_the_run_did(tmp_path):
    folder = small_set(tmp_path / "set", count=10)
    run = trained(folder, tmp_path / "run")
    entries = json.loads((run.folder / "pictures.json").read_text())["pictures"]
    first = next(entry["path"] for entry in entries if entry["part"] == "test")
    shutil.copy(folder / first, (folder / first).with_name("again.png"))
    assert heptad.load_run(run.folder).evaluate().num_images == run.scores.num_images == 4


# Augmentation by content

MOVES = {"shift": 0.2, "rotation": 20, "flip": 0.5}


def versions(folder: Path, epoch: int = 0, **settings) -> dict[str, bytes]:
    """What the network sees of each training picture in an epoch, by its name."""
    sources = opened(folder, **MOVES, **settings)
    train, names = sources.train, sources.pictures.names
    inputs = train.take(torch.arange(len(train.labels)), epoch)
    pairs = zip(train.ids.tolist(), inputs, strict=True)
    return {names[place]: image.numpy().tobytes() for place, image in pairs}


def test_added_pictures_leave_the_versions_of_the_others_as_they_were(tmp_path):
    folder = parted_set(tmp_path, parts=("train", "test"))
    before = versions(folder)
    # First of all classes, and first of its class.
    small_set(folder / "train", classes=("0",), start=800)
    noise(folder / "train" / "a" / "!.png", 900)
    after = versions(folder)
    assert len(after) == len(before) + 5
    assert {name: after[name] for name in before} == before
    # Controls: another epoch and another seed are other versions.
    assert not set(versions(folder, 1).values()) & set(after.values())
    assert not set(versions(folder, seed=1).values()) & set(after.values())


def test_copies_of_a_picture_have_versions_of_their_own(tmp_path):
    folder = parted_set(tmp_path, parts=("train", "test"))
    for number in range(3):
        shutil.copy(folder / "train" / "a" / "0.png", folder / "train" / "a" / f"copy{number}.png")
    found = versions(folder)
    assert len({found[f"train/a/{name}.png"] for name in ("0", "copy0", "copy1", "copy2")}) == 4


def computed(folder: Path, out: Path) -> int:
    """How many rows the trunk's pass computes to prepare a training."""
    recipe = heptad.load_recipe(
        "resnet50", data=str(folder), weights="none", image_size=32, epochs=1, views=2, **MOVES
    )
    events = heptad.run(recipe, heptad.RunOptions(out=str(out), threads=1))
    prepared = next(event for event in events if isinstance(event, Prepared))
    events.close()
    return prepared.num_computed


@pytest.mark.slow
def test_added_pictures_cost_the_features_of_their_own_versions_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "home"))
    folder = parted_set(tmp_path / "set", parts=("train", "test"))
    # 12 training pictures, plain and in two versions each, and 12 test pictures.
    assert computed(folder, tmp_path / "one") == 12 * 3 + 12
    noise(folder / "train" / "a" / "!.png", 900)
    assert computed(folder, tmp_path / "other") == 3
