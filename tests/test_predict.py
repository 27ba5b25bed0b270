"""Pictures that people name: photos of digits made into MNIST's, and answers as they are given."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import heptad
from heptad.cli import main
from heptad.datasets.digit_pictures import as_digit, is_like_mnist, otsu
from heptad.datasets.pictures import read_picture, resize_picture
from heptad.errors import ImageError, NotFiniteError, RecipeError

# A photo of paper: rows and columns.
PHOTO = (300, 400)


def paper(draws: np.random.Generator, *, gradient: float = 40, noise: float = 6) -> np.ndarray:
    """An empty sheet, lit from one side, seen by a noisy camera."""
    y, x = np.mgrid[-0.5 : 0.5 : PHOTO[0] * 1j, -0.5 : 0.5 : PHOTO[1] * 1j]
    slope = draws.uniform(-gradient, gradient, 2)
    return draws.uniform(180, 230) + slope[0] * x + slope[1] * y + draws.normal(0, noise, PHOTO)


def photo_of(digit: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """A digit of MNIST, [28, 28], as dark ink of some size at some place on paper."""
    side = int(draws.integers(70, 260))
    ink = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)) / 255
    top, left = (int(draws.integers(0, length - side)) for length in PHOTO)
    covered = np.zeros(PHOTO)
    covered[top : top + side, left : left + side] = ink
    seen = paper(draws) * (1 - covered) + draws.uniform(20, 90) * covered
    return seen.clip(0, 255).astype(np.uint8)


def drawn(*lines, size=(400, 300), width=24, ground=220, ink=40) -> np.ndarray:
    """Strokes drawn along lines on a plain ground, [1, H, W]."""
    picture = Image.new("L", size, ground)
    for line in lines:
        ImageDraw.Draw(picture).line(line, fill=ink, width=width)
    return np.asarray(picture)[None]


# A seven, from left to right 100 to 180, from top to bottom 60 to 220.
SEVEN = [(100, 72, 180, 72), (168, 72, 168, 219)]


def gray(path: Path) -> np.ndarray:
    """The pixels of a picture, [H, W]."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))


def save(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels[0] if pixels.ndim == 3 else pixels).save(path)
    return str(path)


def said(capsys, *words) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([*map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(capsys, *words) -> list[dict]:
    code, out, _ = said(capsys, *words, "--json")
    assert code == 0, out
    return json.loads(out)


@pytest.fixture(scope="module")
def classifier(small):
    return heptad.load_run(small)


@pytest.fixture
def photos(mnist, tmp_path) -> list[str]:
    """Six photos of MNIST's first test digits."""
    draws = np.random.default_rng(3)
    digits = mnist["test"][0][:6, 0]
    return [save(tmp_path / f"{k}.png", photo_of(digit, draws)) for k, digit in enumerate(digits)]


# What MNIST would hold of a photo


def test_a_digit_is_fitted_and_centred_as_the_authors_of_mnist_say():
    """20 pixels, keeping its aspect, and its centre of mass in the middle of 28 x 28."""
    pixels = as_digit(drawn(*SEVEN)).pixels[0]
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    assert (len(rows), len(columns)) == (20, 10)
    mass = pixels / pixels.sum(dtype=float)
    assert (mass.sum(1) @ np.arange(28), mass.sum(0) @ np.arange(28)) == pytest.approx(
        (14, 14), abs=0.5
    )
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_centres_of_mass_lie_where_those_of_mnist_do(mnist):
    """The middle that the test above names is the one of the published images."""
    images = mnist["test"][0][:, 0].astype(float)
    down, across = ((images.sum(3 - axis) @ np.arange(28)) for axis in (1, 2))
    for centre in (down / images.sum((1, 2)), across / images.sum((1, 2))):
        assert np.abs(centre - 14).max() <= 0.55


def test_the_box_of_the_digit_is_where_it_was_drawn():
    found = as_digit(drawn(*SEVEN))
    assert found.box == pytest.approx((100, 60, 180, 220), abs=3)
    assert found.was_dark


@pytest.mark.parametrize("ground", [220, 30])
def test_light_on_dark_gives_the_same_digit_as_dark_on_light(ground):
    one = as_digit(drawn(*SEVEN, ground=ground, ink=125))
    other = as_digit(255 - drawn(*SEVEN, ground=ground, ink=125))
    # But for what rounds up on one side and down on the other.
    assert np.abs(one.pixels.astype(int) - other.pixels).max() <= 3
    assert (one.was_dark, other.was_dark) == (ground == 220, ground != 220)


def test_mnist_inverted_comes_back_nearly_as_it_was(mnist):
    """As near as a digit whose faintest edges are lost comes: a pixel's width."""
    images = mnist["test"][0][:100]
    found = np.stack([as_digit(255 - image).pixels for image in images])
    unlike = np.abs(found.astype(int) - images).mean((1, 2, 3))
    others = np.abs(np.roll(found, 1, 0).astype(int) - images).mean((1, 2, 3))
    assert (np.mean(unlike), np.max(unlike)) < (4, 25)
    # A control: another digit is far off.
    assert np.mean(others) > 30


def test_specks_are_no_part_of_the_digit():
    specks = [(30, 30, 34, 30), (350, 250, 354, 250), (20, 280, 24, 280)]
    clean, found = drawn(*SEVEN), drawn(*SEVEN)
    found = np.minimum(found, drawn(*specks, width=4))
    assert (found != clean).sum() > 40
    assert as_digit(found).box == as_digit(clean).box


def test_a_stroke_apart_is_a_part_of_the_digit():
    """As the bar of many a five."""
    bar = (200, 60, 260, 60)
    left, top, right, _ = as_digit(drawn(*SEVEN, bar)).box
    assert (left, top, right) == pytest.approx((100, 48, 260), abs=3)


def test_what_reaches_in_from_the_edge_is_left_out_where_a_stroke_lies_within():
    table = (0, 0, 0, 300)
    assert as_digit(drawn(*SEVEN, table, width=24)).box == as_digit(drawn(*SEVEN)).box
    # A control: alone, it is what there is.
    assert as_digit(drawn((0, 0, 0, 300))).box[0] == 0


def test_the_thread_of_a_pen_gets_the_width_of_a_stroke():
    thick, thin = (as_digit(drawn(*SEVEN, width=width)).pixels for width in (24, 3))
    assert thin.max() == thick.max() == 255
    # Three pixels of 148 would be less than half a pixel of 20.
    bare = resize_picture(255 - drawn(*SEVEN, width=3), 28)
    assert (thin > 127).sum() > 25
    assert (bare > 127).sum() == 0 or bare.max() < 127


@pytest.mark.parametrize("seed", range(5))
def test_a_sheet_without_a_stroke_is_blank_however_it_is_lit(seed):
    draws = np.random.default_rng(seed)
    empty = paper(draws, gradient=100, noise=draws.uniform(0, 12)).clip(0, 255).astype(np.uint8)
    assert as_digit(empty[None]) is None
    # A control: with a stroke it is not.
    assert as_digit(np.minimum(empty, drawn(*SEVEN, ground=255))) is not None


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (28, 28), (1, 5000), (5000, 3)])
@pytest.mark.parametrize("gray", [0, 128, 255])
def test_one_colour_is_blank_at_any_size(shape, gray):
    assert as_digit(np.full((1, *shape), gray, np.uint8)) is None


@pytest.mark.parametrize("seed", range(20))
def test_any_picture_is_a_digit_or_none(seed):
    draws = np.random.default_rng(seed)
    height, width = draws.integers(1, 60, 2)
    noise = draws.integers(0, 256, (1, height, width)).astype(np.uint8)
    for picture in (noise, noise // 255 * 255, np.sort(noise), np.sort(noise, axis=1)):
        found = as_digit(picture)
        if found is not None:
            left, top, right, bottom = found.box
            assert found.pixels.shape == (1, 28, 28)
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height


def test_otsus_threshold_is_the_one_that_trying_all_of_them_finds():
    draws = np.random.default_rng(0)
    values = np.concatenate([draws.normal(60, 15, 900), draws.normal(170, 20, 100)]).round()

    def within(threshold):
        classes = values[values < threshold], values[values > threshold]
        return sum(len(part) * part.var() for part in classes if len(part))

    assert otsu(values) == min(np.arange(0.5, 255), key=within)


# What the network is fed


def test_every_image_of_mnist_is_known_as_one_and_no_inverted_one_is(mnist):
    images = mnist["test"][0]
    assert all(map(is_like_mnist, images))
    assert not any(map(is_like_mnist, 255 - images[:1000]))


def test_an_image_of_mnist_is_fed_as_it_is(classifier, mnist, tmp_path):
    image = mnist["test"][0][0]
    path = Path(save(tmp_path / "7.png", image))
    assert np.array_equal(classifier.feed(path).pixels, resize_picture(image, 32))
    assert classifier.feed(path).box is None
    # A control: on request it is looked for, and found.
    assert classifier.feed(path, as_digit="yes").box is not None


def test_a_photo_is_made_a_digit_unless_one_says_no(classifier, photos):
    path = Path(photos[0])
    photo = read_picture(path, channels=1)
    made = resize_picture(as_digit(photo).pixels, 32)
    for choice, expected in (("auto", made), ("yes", made), ("no", resize_picture(photo, 32))):
        assert np.array_equal(classifier.feed(path, as_digit=choice).pixels, expected)
    with pytest.raises(RecipeError, match="as_digit is maybe; allowed: auto, yes, no"):
        classifier.feed(path, as_digit="maybe")


def test_networks_of_other_things_are_fed_photos_as_they_are(mnist, tmp_path, photos):
    """Class folders too: their digits may be dark on light, and the network knows them so."""
    for k, image in enumerate(mnist["train"][0][:60, 0]):
        folder = tmp_path / "set" / str(mnist["train"][1][k])
        folder.mkdir(parents=True, exist_ok=True)
        save(folder / f"{k}.png", 255 - image)
    recipe = heptad.load_recipe("lenet5", data=str(tmp_path / "set"), epochs=1)
    run = heptad.train(recipe, heptad.RunOptions(out=str(tmp_path / "run")))
    of_folders = heptad.load_run(run.folder)
    assert of_folders.classes == tuple("0123456789")
    assert of_folders.feed(Path(photos[0])).box is None
    assert of_folders.feed(Path(photos[0]), as_digit="yes").box is not None


@pytest.mark.slow
def test_a_network_of_three_channels_takes_photos_of_digits_too(digits, tmp_path, photos):
    recipe = heptad.load_recipe("resnet50", data=str(digits), weights="none", limit=10, epochs=1)
    run = heptad.train(recipe, heptad.RunOptions(out=str(tmp_path / "run")))
    classifier = heptad.load_run(run.folder)
    fed = classifier.feed(Path(photos[0]))
    assert (fed.pixels.shape, fed.box is None) == ((1, 64, 64), False)
    assert classifier.feed(Path(photos[0]), as_digit="no").pixels.shape == (3, 64, 64)
    sheet = tmp_path / "sheet.png"
    assert main(["predict", str(run.folder), *photos[:2], "--show", str(sheet)]) == 0
    assert shows(sheet, fed.pixels[0].repeat(3, 0).repeat(3, 1))


def test_ink_on_a_transparent_ground_is_ink_on_white(classifier, tmp_path):
    ink = 255 - drawn(*SEVEN, ground=255, ink=0)[0]
    rgba = np.stack([np.zeros_like(ink)] * 3 + [ink], -1)
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    save(tmp_path / "white.png", 255 - ink)
    clear, white = (classifier.feed(tmp_path / f"{name}.png") for name in ("clear", "white"))
    assert np.array_equal(clear.pixels, white.pixels)


@pytest.mark.slow
def test_a_digit_in_a_huge_photo_is_found_where_it_is(classifier, tmp_path):
    huge = Image.new("1", (7000, 7000), 1)
    ImageDraw.Draw(huge).line((3000, 2000, 3000, 4000), fill=0, width=200)
    huge.save(tmp_path / "huge.png")
    found = classifier.feed(tmp_path / "huge.png")
    assert found.box == pytest.approx((2900, 2000, 3100, 4000), abs=30)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """LeNet-5 after five epochs of 5,000 digits."""
    out = tmp_path_factory.mktemp("trained") / "run"
    words = ["train", "lenet5", "--limit", "5000", "--epochs", "5", "--out", str(out)]
    assert main(words) == 0
    return heptad.load_run(out)


@pytest.mark.slow
def test_photos_of_digits_are_answered_nearly_as_well_as_the_digits(trained, mnist, tmp_path):
    draws = np.random.default_rng(20261123)
    digits, labels = (part[:200] for part in mnist["test"])
    originals = [Path(save(tmp_path / f"{k}.png", digit)) for k, digit in enumerate(digits)]
    photos = [
        Path(save(tmp_path / f"photo-{k}.png", photo_of(digit[0], draws)))
        for k, digit in enumerate(digits)
    ]

    def num_right(paths, as_digit):
        answers = trained.predict(paths, as_digit=as_digit)
        return sum(a.classes[0][0] == str(k) for a, k in zip(answers, labels, strict=True))

    right = {way: num_right(photos, way) for way in ("auto", "no")}
    of_originals = num_right(originals, "auto")
    print(f"right of 200: originals {of_originals}, photos {right}")
    assert num_right(originals, "no") == of_originals
    assert of_originals >= 186
    assert right["auto"] >= 180
    # A control: it is not the network that copes with photos.
    assert right["no"] <= 60


# Answers


def test_answers_come_in_order_and_do_not_depend_on_their_company(classifier, photos):
    paths = [Path(path) for path in photos * 3]
    together = list(classifier.predict(paths))
    assert [prediction.path for prediction in together] == paths
    for path, prediction in zip(paths[:6], together, strict=False):
        (alone,) = classifier.predict([path])
        assert dict(alone.classes) == pytest.approx(dict(prediction.classes), abs=1e-5)


def test_pictures_are_read_as_answers_are_asked_for(classifier, photos):
    endless = map(Path, itertools.cycle(photos))
    assert len(list(itertools.islice(classifier.predict(endless), 20))) == 20


def test_an_answer_that_is_not_finite_is_refused_by_name(small, photos):
    overflowing = heptad.load_run(small)
    with torch.no_grad():
        overflowing.model.network.get_parameter("fc3.bias")[3] = 3e38
        overflowing.model.network.get_parameter("fc3.weight")[3] = 3e38
    with pytest.raises(NotFiniteError, match=r"0\.png is not finite"):
        list(overflowing.predict(map(Path, photos)))


def test_the_printed_line_has_name_answer_probability_and_runners_up(small, photos, capsys):
    (answer,) = document(capsys, "predict", small, photos[0])
    code, out, _ = said(capsys, "predict", small, photos[0])
    titles, line = out.splitlines()
    (name, value), *others = ((c["name"], c["probability"]) for c in answer["classes"])
    assert (code, titles.split()) == (0, ["picture", "answer", "probability", "runners-up"])
    ends = ", ".join(f"{name} {100 * value:.2f} %" for name, value in others)
    assert line.split() == f"{photos[0]} {name} {100 * value:.2f} % {ends}".split()
    assert len(said(capsys, "predict", small, photos[0], "--top", "1")[1].splitlines()) == 2


def test_answers_below_the_threshold_are_unsure_and_no_others(small, photos, capsys):
    answers = document(capsys, "predict", small, *photos)
    tops = sorted(answer["classes"][0]["probability"] for answer in answers)
    assert not any(answer["unsure"] for answer in answers)
    threshold = repr((tops[2] + tops[3]) / 2)
    words = ["predict", small, *photos, "--unsure", threshold]
    unsure = [answer for answer in document(capsys, *words) if answer["unsure"]]
    assert [a["classes"][0]["probability"] < float(threshold) for a in unsure] == [True] * 3
    lines = said(capsys, *words)[1].splitlines()[1:]
    assert [Path(line.split()[0]).name for line in lines if "(unsure)" in line] == [
        Path(answer["image"]).name for answer in unsure
    ]


@pytest.mark.parametrize("choice", ["2", "-0.1", "nan", "few"])
def test_a_threshold_that_is_no_probability_is_refused(choice, small, photos, capsys):
    code, _, err = said(capsys, "predict", small, *photos, f"--unsure={choice}")
    assert (code, f"unsure is {choice}; allowed: a number from 0 to 1." in err) == (2, True)


# Pictures that cannot be used


@pytest.fixture
def mixed(photos, tmp_path) -> list[str]:
    """Good photos, between them a blank one and one that is none."""
    blank = save(tmp_path / "blank.png", np.full(PHOTO, 200, np.uint8))
    (tmp_path / "note.png").write_text("no picture")
    return [*photos[:2], blank, str(tmp_path / "note.png"), *photos[2:]]


@pytest.mark.parametrize("bad", [2, 3])
def test_a_bad_picture_among_many_is_named_and_nothing_is_given(
    bad, small, mixed, tmp_path, capsys
):
    files = {flag: tmp_path / f"out.{flag}" for flag in ("csv", "png")}
    words = ["predict", small, *mixed[:2], mixed[bad], *mixed[4:]]
    code, out, err = said(capsys, *words, "--csv", files["csv"], "--show", files["png"])
    assert (code, out, mixed[bad] in err) == (2, "", True)
    assert not any(path.exists() for path in files.values())
    # A control: without it all is well.
    del words[4]
    assert said(capsys, *words, "--csv", files["csv"], "--show", files["png"])[0] == 0
    assert all(path.exists() for path in files.values())


def test_bad_pictures_are_passed_over_on_request_and_named_at_the_end(small, mixed, capsys):
    words = ["predict", small, *mixed, "--on-bad-image", "skip"]
    code, out, _ = said(capsys, *words)
    lines = out.splitlines()
    good = [*mixed[:2], *mixed[4:]]
    assert (code, [line.split()[0] for line in lines[1:7]]) == (0, good)
    assert lines[7] == "Passed over, 2 of 8:"
    assert [line.split()[0] for line in lines[8:]] == mixed[2:4]
    answers = document(capsys, *words)
    assert [answer["image"] for answer in answers] == good + mixed[2:4]
    assert ["error" in answer for answer in answers] == [False] * 6 + [True] * 2


def test_a_blank_photo_is_answered_only_if_it_is_no_photo_of_a_digit(small, mixed, capsys):
    code, _, err = said(capsys, "predict", small, mixed[2])
    assert (code, "blank.png shows no digit" in err, "as_digit = no" in err) == (2, True, True)
    assert said(capsys, "predict", small, mixed[2], "--as-digit", "no")[0] == 0


def test_in_python_bad_pictures_are_raised_or_told(classifier, mixed):
    paths = [Path(path) for path in mixed]
    with pytest.raises(ImageError, match="shows no digit"):
        list(classifier.predict(paths))
    told = []
    answers = list(classifier.predict(paths, on_bad_image=lambda path, _: told.append(path)))
    assert (len(answers), told) == (6, paths[2:4])


# Tables


HOSTILE = ["=cmd|'calc'!A1", "+1", "-1", "@SUM(1)", 'a",=1;"', "line\nbreak", "\t=1", "é"]


@pytest.fixture
def hostile(photos, workplace) -> list[str]:
    names = [f"{name}.png" for name in HOSTILE]
    for name in names:
        os.link(photos[0], name)
    return names


def test_no_field_of_the_table_begins_as_a_formula_does(small, hostile, capsys):
    words = ["predict", small, *(f"./{name}" for name in hostile), "--csv", "answers.csv"]
    assert said(capsys, *words)[:2] == (0, "8 answers in answers.csv.\n")
    titles, *rows = csv.reader(io.StringIO(Path("answers.csv").read_text()))
    assert titles == [
        *("picture", "answer", "probability", "unsure", "answer_2", "probability_2"),
        *("answer_3", "probability_3", "error"),
    ]
    assert {len(row) for row in rows} == {9}
    assert not any(field[:1] in tuple("=+-@\t\r") for row in rows for field in row if field)
    assert [row[0] for row in rows[:4]] == [f"'{name}" for name in hostile[:4]]
    assert [row[0] for row in rows[4:]] == [
        *('a",=1;".png', "line\\nbreak.png", "\\t=1.png", "é.png")
    ]
    # A control: the names themselves are formulas.
    assert [name[0] for name in hostile[:4]] == ["=", "+", "-", "@"]


def test_the_table_says_what_the_document_says(small, mixed, workplace, capsys):
    words = ["predict", small, *mixed, "--on-bad-image", "skip", "--unsure", "0.5", "--top", "2"]
    answers = document(capsys, *words, "--csv", "answers.csv")
    rows = list(csv.DictReader(io.StringIO(Path("answers.csv").read_text())))
    assert [row["picture"] for row in rows] == [answer["image"] for answer in answers]
    for row, answer in zip(rows[:6], answers, strict=False):
        first, second = answer["classes"]
        assert (row["answer"], float(row["probability"])) == (first["name"], first["probability"])
        assert float(row["probability_2"]) == second["probability"]
        assert row["unsure"] == ("yes" if answer["unsure"] else "no")
    assert [row["error"] for row in rows[6:]] == [answer["error"] for answer in answers[6:]]


# The sheet


def shows(sheet: Path, tile: np.ndarray) -> bool:
    """Whether a gray tile is somewhere in the sheet, pixel by pixel."""
    pixels = gray(sheet)
    height, width = tile.shape
    # Where nine of its pixels are, it may be.
    found = np.ones(
        [length - side + 1 for length, side in zip(pixels.shape, tile.shape, strict=True)], bool
    )
    for y, x in itertools.product((0, height // 2, height - 1), (0, width // 2, width - 1)):
        found &= pixels[y : y + len(found), x : x + found.shape[1]] == tile[y, x]
    places = np.argwhere(found)
    return any(np.array_equal(pixels[y : y + height, x : x + width], tile) for y, x in places)


def test_the_sheet_shows_what_the_network_was_fed_pixel_by_pixel(
    classifier, small, photos, tmp_path, capsys
):
    sheet = tmp_path / "sheet.png"
    assert said(capsys, "predict", small, *photos[:5], "--show", sheet)[0] == 0
    fed = [classifier.feed(Path(path)).pixels[0] for path in photos]
    # Squares of 6 x 6 for each of 32 x 32 pixels, none of them in between.
    tiles = [pixels.repeat(6, 0).repeat(6, 1) for pixels in fed]
    assert [shows(sheet, tile) for tile in tiles] == [True] * 5 + [False]


@pytest.mark.slow
def test_the_sheet_grows_by_rows_of_four(small, photos, tmp_path, capsys):
    sizes = []
    for count in (1, 2, 4, 5, 6):
        path = tmp_path / f"sheet-{count}.png"
        assert said(capsys, "predict", small, *photos[:count], "--show", path)[0] == 0
        sizes.append(gray(path).T.shape)
    (width, height), (twice, _) = sizes[:2]
    across, down = twice - width, sizes[3][1] - height
    assert sizes[2:] == [(width + 3 * across, height), *[(width + 3 * across, height + down)] * 2]
    # Two tiles of 192 and text beneath them, a margin around each card and one more at the end.
    assert across > 2 * 192
    assert down > 192
    assert (width - across, height - down) == (16, 16)


def test_a_sheet_of_many_shows_the_first_hundred_and_says_so(small, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    names = [save(tmp_path / "black.png", np.zeros((28, 28), np.uint8))] * 101
    code, out, _ = said(capsys, "predict", small, *names, "--show", sheet)
    assert (code, out.splitlines()[-1]) == (0, f"The first 100 are shown in {sheet}.")
    before = gray(sheet)
    assert said(capsys, "predict", small, *names[:100], "--show", sheet)[0] == 0
    assert np.array_equal(gray(sheet), before)


@pytest.mark.slow
def test_a_sheet_of_vgg16_shows_its_large_inputs_too(digits, tmp_path, photos, capsys):
    words = ["train", "vgg16", "--data", digits, "--weights", "none", "--limit", "10"]
    run = tmp_path / "run"
    assert said(capsys, *words, "--epochs", "1", "--out", run)[0] == 0
    sheet = tmp_path / "sheet.png"
    assert said(capsys, "predict", run, *photos[:2], "--show", sheet)[0] == 0
    fed = heptad.load_run(run).feed(Path(photos[0])).pixels[0]
    tile = np.asarray(Image.fromarray(fed).resize((192, 192), Image.Resampling.BILINEAR))
    assert shows(sheet, tile)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--show", "sheet.jpg"], "show is sheet.jpg; allowed: a file name ending in .png."),
        (["--show", ""], "show is empty; allowed: a file name ending in .png."),
        (["--csv", "metrics.json"], "csv is metrics.json; allowed: a file name ending in .csv."),
        (["--show", "folder.png"], "show is folder.png, which is a folder."),
        (["--csv", "no/a.csv"], "csv is no/a.csv, which lies in no, which is no folder."),
        (["--show", "link.png"], "show is link.png, which is one of the pictures."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_else_is_overwritten(words, message, small, photos, workplace, capsys):
    Path("folder.png").mkdir()
    Path("link.png").symlink_to(photos[0])
    before = Path(photos[0]).read_bytes()
    code, out, err = said(capsys, "predict", small, *photos, *words)
    assert (code, out, message in err) == (2, "", True)
    assert Path(photos[0]).read_bytes() == before


# Memory


GROWTH = """
import re, sys
from pathlib import Path
import heptad
from heptad.cli import main
from heptad.datasets.pictures import read_picture
run, folder, keep = sys.argv[1:]
paths = sorted(Path(folder).iterdir())
peak = lambda: int(re.search("VmHWM:\\s*(.*) kB", Path("/proc/self/status").read_text())[1]) / 1e3
def answer(some):
    if keep == "keep":
        return [read_picture(path, channels=1) for path in some]
    assert main(["predict", run, *map(str, some), "--csv", "answers.csv"]) == 0
answer(paths[:300])
before = peak()
kept = answer(paths)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="read from Linux's /proc")
def test_three_thousand_pictures_take_no_more_memory_than_three_hundred(
    small, workplace, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("many")
    save(folder / "0000.png", drawn((40, 20, 100, 120), size=(130, 150), width=8))
    for k in range(1, 3000):
        os.link(folder / "0000.png", folder / f"{k:04}.png")

    def growth_mb(way):
        command = [sys.executable, "-c", GROWTH, str(small), str(folder), way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1])

    grown = growth_mb("predict")
    assert len(Path("answers.csv").read_text().splitlines()) == 3001
    print(f"grown by {grown:.1f} MB")
    assert grown < 15
    # A control: their pixels would.
    assert growth_mb("keep") > 40


def test_what_predict_passes_over_in_a_folder_is_counted(small, digit_files, tmp_path, capsys):
    shutil.copy(digit_files[0], tmp_path / "digit.png")
    shutil.copy(digit_files[0], tmp_path / "digit.heic")
    (tmp_path / "more").mkdir()
    assert main(["predict", str(small), str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out.count("digit.png") == 1
    assert f"{tmp_path}: 2 of 3 passed over: folders, or files of another suffix" in said.err
