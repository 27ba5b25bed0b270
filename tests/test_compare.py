"""`heptad compare`: runs on the same images side by side, and those that are refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

import heptad
from conftest import NAMES, write_pictures
from heptad.cli import main
from heptad.errors import DamagedError, RunError
from heptad.recipe import RunOptions
from heptad.stages.saving import sealed
from killing import metrics_of

# What three runs differ in.
SETTINGS = {
    "slow": {"epochs": 1, "learning_rate": 0.0003},
    "fast": {"epochs": 2, "learning_rate": 0.003},
    "other": {"epochs": 2, "learning_rate": 0.003, "seed": 7},
}


def train(data, out, **settings) -> Path:
    recipe = heptad.load_recipe("lenet5", data=str(data), **{"epochs": 1, **settings})
    return heptad.train(recipe, RunOptions(out=str(out), threads=1)).folder


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    return [train(digits, folder / name, **own) for name, own in SETTINGS.items()]


@pytest.fixture
def said(capsys):
    def carry_out(*words: object) -> str:
        capsys.readouterr()
        assert main(["compare", *map(str, words)]) == 0
        return capsys.readouterr().out

    return carry_out


def forge(run: Path, **entries: object) -> Path:
    """Change entries of a run's metrics.json, hashes and all; None removes one."""
    metrics = {key: v for key, v in (metrics_of(run) | entries).items() if v is not None}
    (run / "metrics.json").write_text(json.dumps(sealed(metrics)))
    return run


def right_answers(run: Path) -> np.ndarray:
    with np.load(run / "predictions.npz") as answers:
        return answers["logits"].argmax(1) == answers["labels"]


def test_the_figures_are_those_of_the_runs(runs, said):
    document = json.loads(said(*runs, "--json"))
    for run, found in zip(runs, document["runs"], strict=True):
        metrics = metrics_of(run)
        shared = found.keys() & metrics.keys()
        assert len(shared) == 11
        assert {key: found[key] for key in shared} == {key: metrics[key] for key in shared}
        assert found["weights_bytes"] == (run / "lenet5_digits.pth").stat().st_size
        assert (found["name"], found["run"]) == (run.name, str(run))
    assert document["differing"] == {
        key: [settings.get(key, 0) for settings in SETTINGS.values()]
        for key in ("learning_rate", "epochs", "seed")
    }


def test_each_pair_is_counted_and_tested(runs, said):
    pairs = json.loads(said(*runs, "--json"))["pairs"]
    p_values = []
    for pair, (first, second) in zip(pairs, combinations(runs, 2), strict=True):
        a, b = right_answers(first), right_answers(second)
        assert (pair["first"], pair["second"]) == (first.name, second.name)
        counts = [int(one.sum()) for one in (a & b, a & ~b, ~a & b, ~a & ~b)]
        assert [pair[key] for key in ("both", "only_first", "only_second", "neither")] == counts
        assert pair["difference"] == pytest.approx(a.mean() - b.mean())
        p_values.append(binomtest(counts[1], counts[1] + counts[2]).pvalue)
        assert pair["p"] == pytest.approx(p_values[-1])
    assert min(p_values) < 0.001
    assert max(p_values) > 0.05
    smallest = min(pairs, key=lambda pair: pair["p"])
    assert smallest["p_holm"] == pytest.approx(3 * smallest["p"])


def test_the_sentence_names_the_better_run_first_and_says_if_it_could_be_chance(runs, said):
    out = " ".join(said(*runs).split())
    slow, fast, _ = (100 * right_answers(run).mean() for run in runs)
    assert f"fast is better than slow: {fast - slow:.2f} points (95 % interval " in out
    assert f", {fast:.2f} % against {slow:.2f} %; " in out
    assert "could be chance" in out
    assert "with Holm's correction for 3 pairs" in out
    # A control: of two runs no p has to be corrected.
    assert "Holm" not in said(*runs[:2])


@pytest.mark.parametrize("width", [40, 80, 200])
def test_tables_fit_the_width_and_leave_nothing_out(runs, said, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    out = said(*runs)
    tables = [line for line in out.splitlines() if len(line.split("  ")) > 2 or "─" in line]
    assert len(tables) >= 10
    assert max(map(len, tables)) <= width
    assert "\x1b" not in out
    titles = ("accuracy", "95 % interval", "loss", "macro F1", "time", "trunk", "training")
    for title in (*titles, "weights", "parameters", "trained", "learning_rate", "seed"):
        assert out.count(title) >= 1
    for run in runs:
        assert f"{100 * right_answers(run).mean():.2f} %" in out


def test_the_csv_has_a_row_for_each_run(runs, said, tmp_path):
    said(*runs, "--csv", tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    document = json.loads(said(*runs, "--json"))
    for row, run in zip(rows, document["runs"], strict=True):
        assert float(row["test_accuracy"]) == run["test_accuracy"]
        interval = [float(row["test_accuracy_low"]), float(row["test_accuracy_high"])]
        assert interval == run["test_accuracy_interval"]
    pair = document["pairs"][0]
    assert float(rows[0]["p (Holm) against fast"]) == pair["p_holm"]
    assert int(rows[0]["right where fast is not"]) == pair["only_first"]
    assert int(rows[1]["right where slow is not"]) == pair["only_second"]
    assert rows[0]["p (Holm) against slow"] == ""
    assert [row["learning_rate"] for row in rows] == ["0.0003", "0.003", "0.003"]


HOSTILE = ["=1+1", "$\\frac{", "50%_&#~^<b>|[*]"]


def test_hostile_names_are_text_in_every_file(runs, said, workplace):
    copies = [shutil.copytree(run, name) for run, name in zip(runs, HOSTILE, strict=True)]
    out = said(*copies, "--csv", "a.csv", "--latex", "a.tex", "--png", "a.png")
    assert "$\\frac{ is better than =1+1" in out
    with Path("a.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert "'=1+1" in cells
    with Image.open("a.png") as picture:
        assert picture.width > picture.height > 200
    rows = [line for line in Path("a.tex").read_text().splitlines() if line.endswith(r" \\")]
    # As LaTeX reads it: what is escaped is one sign, and the rest may hold nothing but separators.
    left = [re.sub(r"\\[&%$#_{}]|\\[a-z]+\{(34)?\}|\{[\[\]*]\}", "", row[:-3]) for row in rows]
    assert not any(re.search(r"[%#_{}~^<>|\[\]*]", row.replace("$-$", "")) for row in left)
    assert [row.count("&") for row in left] == [13] * 4 + [6] * 4
    assert r"\$\textbackslash{}frac\{" in rows[2]


def test_a_picture_drawn_twice_has_the_same_bytes(runs, said, tmp_path):
    for name in ("a.png", "b.png"):
        said(*runs, "--png", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    said(*runs[:2], "--png", tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_the_same_in_python(runs, said):
    comparison = heptad.compare(runs)
    assert comparison.as_document() == json.loads(said(*runs, "--json"))
    assert comparison.pairs[0].counts.num_images == 200


def test_runs_of_one_name_are_called_by_their_paths(runs, said, tmp_path):
    copy = shutil.copytree(runs[0], tmp_path / "slow")
    found = json.loads(said(runs[0], copy, "--json"))
    assert [run["name"] for run in found["runs"]] == [str(runs[0]), str(copy)]
    assert found["pairs"][0]["said"].endswith("are right on the same images.")
    assert any("are equal runs, to the bit" in note for note in found["notes"])
    assert found["differing"] == {}


# Which images two runs were tested on


@pytest.fixture(scope="module")
def inverted(digits, tmp_path_factory):
    """The same digits with the same labels, the test images black on white."""
    folder = tmp_path_factory.mktemp("inverted") / "digits"
    shutil.copytree(digits, folder)
    path = folder / NAMES["test"][0]
    content = path.read_bytes()
    path.write_bytes(content[:16] + bytes(255 - value for value in content[16:]))
    return folder


def test_other_images_with_the_same_labels_are_refused(runs, inverted, tmp_path):
    run = train(inverted, tmp_path / "run")
    with pytest.raises(RunError, match="were not tested on the same images") as raised:
        heptad.compare([runs[0], run])
    assert "the seed decides" in raised.value.hint


def test_the_same_images_under_another_name_are_the_same(runs, digits, tmp_path):
    renamed = shutil.copytree(digits, tmp_path / "renamed")
    comparison = heptad.compare([runs[0], train(renamed, tmp_path / "run")])
    assert comparison.differing["data"] == (str(digits), str(renamed))


NEW = ["test_set", "parameters", "trained_parameters", "test_macro_precision", "test_macro_recall"]
NEW += ["test_macro_f1", "test_top_k_accuracy", "test_calibration_error"]


@pytest.fixture
def earlier(runs, tmp_path):
    """A run as an earlier version saved it."""
    run = shutil.copytree(runs[0], tmp_path / "earlier")
    (run / "epochs.csv").unlink()
    files = {k: v for k, v in metrics_of(run)["files"].items() if k != "epochs.csv"}
    return forge(run, **dict.fromkeys(NEW), files=files)


def test_a_run_of_an_earlier_version_is_compared_by_names_places_and_labels(earlier, runs, said):
    comparison = heptad.compare([earlier, runs[1]])
    assert [note for note in comparison.notes if note.endswith("made earlier.")]
    assert comparison.runs[0].figures["parameters"] is None
    assert re.search(r"\nearlier .* - +-\n", said(earlier, runs[1]))
    # A control: data of another name may be other images.
    recipe = metrics_of(earlier)["recipe"] | {"data": "elsewhere"}
    with pytest.raises(RunError, match="not tested on the same images"):
        heptad.compare([forge(earlier, recipe=recipe), runs[1]])


def test_a_run_of_an_earlier_version_is_verified_and_evaluated(earlier, capsys):
    assert main(["verify", str(earlier)]) == 0
    assert main(["evaluate", str(earlier), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert '"test_macro_f1"' in said.out


@pytest.fixture(scope="module")
def photos(mnist, tmp_path_factory):
    """Class folders that held out what they do by content, and two runs on them."""
    images, labels = mnist["train"]
    folder = tmp_path_factory.mktemp("photos")
    write_pictures(folder / "set", images[:150, 0], labels[:150])
    first = train(folder / "set", folder / "first", epochs=2)
    # A new picture of a class, and names in another order: the places of all others move.
    pictures = sorted((folder / "set").glob("*/*.png"))
    for number, path in enumerate(pictures):
        path.rename(path.with_name(f"{900 - number}.png"))
    return folder, first, train(folder / "set", folder / "second", epochs=4)


@pytest.mark.slow
def test_pictures_are_known_by_their_content_whatever_their_names(photos):
    _, first, second = photos
    hashes = []
    for run in (first, second):
        listed = json.loads((run / "pictures.json").read_text())["pictures"]
        names = {entry["id"]: entry["sha256"] for entry in listed}
        with np.load(run / "predictions.npz") as answers:
            named = [names[place] for place in answers["ids"].tolist()]
        hashes.append(dict(zip(named, right_answers(run).tolist(), strict=True)))
    assert list(hashes[0]) != list(hashes[1])
    (pair,) = heptad.compare([first, second]).pairs
    expected = sum(hashes[0][name] and not hashes[1][name] for name in hashes[0])
    assert pair.counts.only_first == expected
    assert pair.counts.num_images == len(hashes[0])


def test_pictures_held_out_by_another_seed_are_refused(photos, runs, tmp_path):
    folder, first, _ = photos
    with pytest.raises(RunError, match="were not tested on the same images"):
        heptad.compare([first, train(folder / "set", tmp_path / "run", seed=5)])
    with pytest.raises(RunError, match="were not tested on the same images"):
        heptad.compare([first, runs[0]])


# What one must know to read the figures


def test_a_sample_and_frozen_random_weights_are_said(digits, tmp_path, said):
    settings = {"limit": 60, "trainable": "last-layer"}
    runs = [train(digits, tmp_path / name, **settings) for name in ("a",)]
    runs.append(train(digits, tmp_path / "b", limit=60))
    out = " ".join(said(*runs).split())
    assert "a sample of the data: a (--limit 60), b (--limit 60)." in out
    assert "Random weights are frozen, which know nothing of images, in: a." in out


@pytest.mark.parametrize(
    "change",
    [{"seconds": "ten"}, {"classes": None}, {"weights": None}, {"parameters": [1]}],
    ids=["words", "no classes", "no weights", "a list"],
)
def test_metrics_that_hold_no_figures_are_called_damaged(runs, tmp_path, change):
    run = forge(shutil.copytree(runs[0], tmp_path / "run"), **change)
    with pytest.raises(DamagedError, match=r"metrics\.json is damaged"):
        heptad.compare([run, runs[1]])


def test_answers_that_were_changed_are_refused(runs, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "run")
    content = bytearray((run / "predictions.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "predictions.npz").write_bytes(content)
    with pytest.raises(DamagedError, match="is not what was saved"):
        heptad.compare([run, runs[1]])


def test_a_run_whose_weights_were_removed_is_compared_all_the_same(runs, tmp_path, mnist):
    run = shutil.copytree(runs[0], tmp_path / "run")
    (run / "lenet5_digits.pth").unlink()
    assert heptad.compare([run, runs[1]]).runs[0].weights_bytes is None
