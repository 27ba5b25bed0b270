"""Settings of how pictures are read: how large they may be, which numbers are black and white."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import heptad
from heptad.cli import main
from heptad.datasets.pictures import Decoding
from heptad.errors import ImageError, RecipeError
from heptad.recipe import to_toml
from picture_files import saved, tiff
from test_catalog import weights_of
from test_folders import decodings, noise, opened, places_of, recipe_of, small_set, words
from test_pictures import COLOUR, SHAPE, STORED, decoded

DRAWS = np.random.default_rng(0)
COUNTS = DRAWS.integers(0, 2**32, SHAPE, np.uint32)
NUMBERS = DRAWS.uniform(-0.5, 1.5, SHAPE).astype(np.float32)


def scaled(values, low: float, high: float) -> np.ndarray:
    """By hand: low is 0, high is 255, what lies beyond is one of them."""
    with np.errstate(over="ignore"):
        share = (values.astype(np.float64) - low) / (high - low)
    return np.rint(255 * np.clip(share, 0, 1))


KINDS = {
    "float, little-endian": (tiff(NUMBERS[..., None], 1, kind=3), NUMBERS),
    "float, big-endian": (tiff(NUMBERS[..., None], 1, kind=3, order=">"), NUMBERS),
    "float, packed": (tiff(NUMBERS[..., None], 1, kind=3, packed=True), NUMBERS),
    "float, by Pillow": (saved(NUMBERS, "TIFF"), NUMBERS),
    "32-bit": (saved((NUMBERS * 100).astype(np.int32), "TIFF"), (NUMBERS * 100).astype(np.int32)),
    "32-bit without a sign": (tiff(COUNTS[..., None], 1), COUNTS),
    "signed": (
        tiff((NUMBERS[..., None] * 100).astype(np.int16), 1, kind=2),
        (NUMBERS * 100).astype(np.int16),
    ),
}


@pytest.mark.parametrize(
    "between", [(0, 1), (-0.5, 1.5), (-40, 70.5), (0, 2**32 - 1), (0, 1e-308)], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_scaled_between_black_and_white(kind, between):
    content, values = KINDS[kind]
    picture = decoded(content, channels=1, float_range=between)
    assert np.array_equal(picture.pixels[0], scaled(values, *between))
    low, high = between
    note = f"numbers from {low:g} to {high:g} scaled to 8 bits"
    is_clipped = values.min() < low or values.max() > high
    clipped = ("numbers beyond black or white clipped",) if is_clipped else ()
    assert picture.notes == (note, *clipped)
    assert np.array_equal(
        decoded(content, float_range=between).pixels, np.repeat(picture.pixels, 3, 0)
    )


def test_without_a_range_such_numbers_are_refused_and_the_setting_is_named():
    for content, _ in KINDS.values():
        with pytest.raises(ImageError, match=r"not known \(float_range\)") as refused:
            decoded(content)
        assert "--float-range 0,1" in refused.value.hint


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(number):
    values = NUMBERS.copy()
    values[3, 4] = number
    with pytest.raises(ImageError, match="it holds numbers that are not finite"):
        decoded(tiff(values[..., None], 1, kind=3), float_range=(0, 1))


@pytest.mark.parametrize("orientation", STORED)
def test_numbers_are_turned_upright_too(orientation):
    stored = STORED[orientation](NUMBERS)
    content = tiff(stored[..., None], 1, kind=3, turn=orientation)
    pixels = decoded(content, channels=1, float_range=(0, 1)).pixels[0]
    assert np.array_equal(pixels, scaled(NUMBERS, 0, 1))


def test_a_range_leaves_all_other_pictures_as_they_are():
    content = saved(COLOUR, "PNG")
    plain, ranged = decoded(content), decoded(content, float_range=(0, 1))
    assert np.array_equal(plain.pixels, ranged.pixels)
    assert plain.notes == ranged.notes == ()


def float_set(folder: Path, count: int = 6) -> tuple[Path, Path]:
    """A folder of pictures of numbers, and one of the same as 8 bits: 0 is black, 2 is white."""
    for number in range(2 * count):
        values = np.random.default_rng(number).uniform(-0.1, 2.1, (30, 40)).astype(np.float32)
        for kind, picture in (("floats", values), ("bytes", scaled(values, 0, 2).astype(np.uint8))):
            path = folder / kind / "set" / "ab"[number % 2] / f"{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    return folder / "floats" / "set", folder / "bytes" / "set"


def test_scan_train_evaluate_and_predict_read_numbers_alike(tmp_path, capsys):
    floats, plain = float_set(tmp_path)
    assert main(["scan", str(floats)]) == 2
    assert main(words(floats, tmp_path / "refused")) == 2
    capsys.readouterr()
    assert main(["scan", str(floats), "--float-range", "0,2", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes["numbers from 0 to 2 scaled to 8 bits"] == 12
    assert main(words(floats, tmp_path / "run", "--float-range", "0,2", "--validation", "0.2")) == 0
    assert (
        "12 pictures hold numbers beyond float_range, which are clipped" in capsys.readouterr().err
    )
    run = heptad.load_run(tmp_path / "run")
    assert run.recipe.float_range == (0, 2)
    # The split is by the files' content, which differs: so train, score and ask by name.
    answers = [
        [prediction.classes for prediction in run.predict(sorted(folder.rglob("*.tif")))]
        for folder in (floats, plain)
    ]
    assert answers[0] == answers[1]
    figures = [run.evaluate(str(folder)) for folder in (floats, plain)]
    assert torch.equal(figures[0].logits, figures[1].logits)


def test_numbers_train_as_the_same_picture_of_8_bits_does(tmp_path, workplace):
    """In parts made by hand, since what is held out follows from the files' content."""
    folders = float_set(tmp_path)
    runs = []
    for number, folder in enumerate(folders):
        for path in sorted(folder.rglob("*.tif")):
            part = "test" if int(path.stem) < 4 else "train"
            target = workplace / str(number) / "set" / part / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        recipe = recipe_of(workplace / str(number) / "set", float_range=(0, 2), batch_size=4)
        runs.append(heptad.train(recipe, heptad.RunOptions(threads=1)))
    assert weights_of(runs[0]) == weights_of(runs[1])
    assert torch.equal(runs[0].scores.logits, runs[1].scores.logits)


def test_another_range_is_other_pixels_whatever_is_kept(tmp_path):
    floats, _ = float_set(tmp_path)
    inputs = [
        opened(floats, float_range=between).train.take(torch.arange(8), None)
        for between in ((0, 2), (0, 1), (0, 2))
    ]
    assert torch.equal(inputs[0], inputs[2])
    assert not torch.equal(inputs[0], inputs[1])


@pytest.mark.parametrize("given", ["0,1", " 0, 1.0", [0, 1], (0.0, 1.0)])
def test_a_range_is_two_numbers_however_they_are_given(given, tmp_path):
    recipe = heptad.load_recipe("lenet5", float_range=given)
    assert recipe.float_range == (0, 1)
    (tmp_path / "it.toml").write_text(to_toml(recipe))
    (tmp_path / "it.json").write_text(json.dumps(recipe.model_dump()))
    assert heptad.load_recipe(tmp_path / "it.toml") == recipe
    assert heptad.load_recipe(tmp_path / "it.json") == recipe
    assert heptad.load_recipe("lenet5", float_range="none").float_range is None


@pytest.mark.parametrize(
    "given", ["1,0", "1,1", "0", "0,1,2", "", "a,b", "nan,1", "0,inf", "-1e308,1e308", [0, 1, 2], 3]
)
def test_what_is_no_range_is_refused_with_what_is_allowed(given):
    with pytest.raises(RecipeError, match=r"float_range is .*allowed: two numbers such as 0,1"):
        heptad.load_recipe("lenet5", float_range=given)


# How large


@pytest.fixture
def with_a_large_one(tmp_path) -> Path:
    """Pictures of 784 pixels, and one of 1,600."""
    folder = small_set(tmp_path / "set")
    noise(folder / "a" / "large.png", 50, side=40)
    return folder


REASON = "has 40 x 40 pixels; allowed: 1,599 in all (max_pixels)"


def test_scan_train_and_predict_refuse_the_same_pictures_as_too_large(
    with_a_large_one, tmp_path, capsys
):
    data, large = with_a_large_one, with_a_large_one / "a" / "large.png"
    few = ("--max-pixels", "1599")
    assert main(["scan", str(data), *few]) == 2
    assert f"  a/large.png: {REASON}\n" in capsys.readouterr().out
    assert main(words(data, tmp_path / "refused", *few)) == 2
    assert f"a/large.png: {REASON}\n" in capsys.readouterr().err
    assert main(words(data, tmp_path / "run", *few, "--on-bad-image", "skip")) == 0
    capsys.readouterr()
    # What was trained with it holds in what is done with the run, unless one says otherwise.
    assert main(["predict", str(tmp_path / "run"), str(large)]) == 2
    assert f"{large} {REASON}." in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "run"), str(large), "--max-pixels", "1600"]) == 0
    assert (
        main(["evaluate", str(tmp_path / "run"), "--data", str(data), "--max-pixels", "1600"]) == 0
    )
    for command in (["scan", str(data)], words(data, tmp_path / "all", "--max-pixels", "1600")):
        assert main([*command]) == 0


def test_what_was_read_before_is_refused_without_being_read_again(
    with_a_large_one, tmp_path, monkeypatch, workplace
):
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "home"))
    assert decodings(with_a_large_one) == 9
    skipping = {"max_pixels": 1599, "on_bad_image": "skip"}
    # The one alone is looked at again, and refused by its header.
    assert decodings(with_a_large_one, **skipping) == 1
    assert len(places_of(opened(with_a_large_one, **skipping))) == 8
    assert decodings(with_a_large_one) == 0
    assert len(places_of(opened(with_a_large_one))) == 9


def test_fifty_megapixels_are_allowed_unless_one_says_otherwise(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (7072, 7072)).save(path)
    with pytest.raises(ImageError, match="allowed: 50,000,000 in all"):
        Decoding.of(heptad.load_recipe("lenet5"), channels=1).decode(path)
    enough = heptad.load_recipe("lenet5", max_pixels=7072**2)
    assert Decoding.of(enough, channels=1).decode(path).size == (7072, 7072)
