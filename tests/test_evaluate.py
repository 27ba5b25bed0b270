"""`heptad evaluate`: figures of all images and each class, at any width; what does not fit."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from conftest import NAMES, write_pictures
from heptad.cli import main

TRAIN = ["train", "lenet5", "--epochs", "1", "--threads", "1"]


def train(data, out) -> Path:
    assert main([*TRAIN, "--data", str(data), "--out", str(out), "--json"]) == 0
    return out


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    return train(digits, tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture
def said(capsys):
    """Evaluate, to a good end; gives what was said, and what was warned of."""

    def carry_out(*words: object) -> tuple[str, str]:
        capsys.readouterr()
        assert main(["evaluate", *map(str, words)]) == 0
        out, err = capsys.readouterr()
        return out, err

    return carry_out


@pytest.fixture
def document(said):
    return lambda *words: json.loads(said(*words, "--json")[0])


def answers_of(run: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(run / "predictions.npz") as answers:
        return answers["logits"], answers["labels"]


def test_each_class_has_the_figures_of_scikit_learn(run, document):
    logits, labels = answers_of(run)
    found = document(run)
    expected = precision_recall_fscore_support(
        labels, logits.argmax(1), labels=range(10), zero_division=np.nan
    )
    for name, values in zip(("precision", "recall", "f1", "images"), expected, strict=True):
        own = [np.nan if each[name] is None else each[name] for each in found["classes"]]
        np.testing.assert_allclose(own, values, rtol=1e-12, err_msg=name)
    for each in found["classes"]:
        interval = binomtest(each["correct"], each["images"]).proportion_ci(method="wilson")
        assert each["recall_interval"] == pytest.approx(tuple(interval))
    matrix = confusion_matrix(labels, logits.argmax(1), labels=range(10))
    assert found["confusion"] == matrix.tolist()


def test_whoever_has_a_lenet_does_not_wait_for_torchvision(run):
    # It takes almost as long to import as PyTorch.
    code = (
        f"import sys; from heptad.cli import main; assert main(['evaluate', {str(run)!r}]) == 0\n"
        "assert 'torch' in sys.modules and 'torchvision' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_bins_hold_every_image_once_and_give_the_calibration_error(run, document):
    found = document(run)
    bins = found["calibration"]
    assert sum(each["images"] for each in bins) == found["test_images"] == 200
    assert sum(each["correct"] for each in bins) == found["test_correct"]
    gaps = [
        each["images"] * abs(each["confidence"] - each["accuracy"])
        for each in bins
        if each["images"]
    ]
    assert found["test_calibration_error"] == pytest.approx(sum(gaps) / 200)


@pytest.mark.parametrize("width", [40, 80])
def test_every_table_fits_the_width(run, said, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    out, _ = said(run)
    assert "\x1b" not in out
    # Sentences are left to the terminal; tables are not.
    lines = [line for line in out.splitlines() if "  " in line.strip() or "─" in line]
    assert len(lines) > 20
    assert max(map(len, lines)) <= width
    logits, labels = answers_of(run)
    matrix = confusion_matrix(labels, logits.argmax(1), labels=range(10))
    rows = out[out.index("is \\ said") :].splitlines()[1:11]
    for k, row in enumerate(rows):
        cells = re.sub(r" \.(?= |$)", " 0", row).split()
        is_cut = [str(k), *("=" if j == k else str(n) for j, n in enumerate(matrix[k]))]
        assert cells in ([str(n) for n in (k, *matrix[k])], is_cut)


@pytest.fixture(scope="module")
def many(mnist, tmp_path_factory):
    """A run on 36 classes with long names, of which it has learned little."""
    folder = tmp_path_factory.mktemp("many")
    images, _ = mnist["train"]
    labels = [f"kind {'of ' * 9}{number % 36}" for number in range(144)]
    write_pictures(folder / "set", images[:144, 0], labels)
    return train(folder / "set", folder / "run")


def test_of_many_classes_the_worst_and_the_most_frequent_confusions_are_said(
    many, said, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "60")
    out, _ = said(many)
    assert "The 15 of 36 classes with the lowest recall" in out
    assert "is \\ said" not in out
    logits, labels = answers_of(many)
    matrix = confusion_matrix(labels, logits.argmax(1), labels=range(36))
    np.fill_diagonal(matrix, 0)
    said_of = [line for line in out.splitlines() if line.endswith(" of its images")]
    assert len(said_of) == min(10, np.count_nonzero(matrix))
    assert f": {matrix.max()}, " in said_of[0]
    assert max(len(line) for line in out.splitlines() if "─" in line) <= 60


def test_every_answer_can_be_had_as_a_file(run, said, workplace):
    said(run, "--predictions", "a.npz", "--csv", "a.csv")
    logits, labels = answers_of(run)
    with np.load("a.npz") as answers:
        np.testing.assert_array_equal(answers["logits"], logits)
    with Path("a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [*map(str, labels)]
    assert [row["answer"] for row in rows] == [*map(str, logits.argmax(1))]
    assert [row["right"] == "yes" for row in rows] == (logits.argmax(1) == labels).tolist()
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    expected = shifted.max(1) / shifted.sum(1)
    np.testing.assert_allclose([float(row["probability"]) for row in rows], expected, rtol=1e-6)
    assert [int(row["id"]) for row in rows] == list(range(200))


def test_class_names_in_a_file_of_answers_are_no_formulas(mnist, workplace, said):
    images, _ = mnist["train"]
    write_pictures(workplace / "set", images[:20, 0], ["=1+1", "plain"] * 10)
    said(train(Path("set"), Path("run")), "--csv", "a.csv")
    with Path("a.csv").open(newline="") as file:
        assert {row["class"] for row in csv.DictReader(file)} == {"'=1+1", "plain"}


def test_a_set_with_fewer_classes_is_scored_and_the_others_are_named(run, mnist, workplace, said):
    images, labels = mnist["test"]
    few = np.flatnonzero(labels < 4)[:30]
    write_pictures(workplace / "few", images[few, 0], labels[few])
    out, _ = said(run, "--data", "few")
    assert "No image of 6 classes: 4, 5, 6, 7, 8, 9." in out


def test_a_set_with_an_unknown_class_says_which_fit(run, mnist, workplace, capsys):
    images, labels = mnist["test"]
    names = [{0: "zero", 1: "1", 2: "2"}.get(label, "3") for label in labels[:40].tolist()]
    write_pictures(workplace / "renamed", images[:40, 0], names)
    assert main(["evaluate", str(run), "--data", "renamed"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "renamed has the classes zero, but the run was trained on 0, 1, 2" in said
    assert "3 of the 4 classes there are the run's: 1, 2, 3" in said


@pytest.mark.parametrize("file", ["images", "labels"])
def test_test_images_that_are_not_those_of_the_run_are_said(digits, tmp_path, said, file):
    data = shutil.copytree(digits, tmp_path / "data")
    run = train(data, tmp_path / "run")
    # A control: as long as they are the same, nothing is said.
    assert said(run)[1] == ""
    path = data / NAMES["test"][file == "labels"]
    content = bytearray(path.read_bytes())
    content[-1] = (content[-1] + 1) % 10
    path.write_bytes(bytes(content))
    assert "are not those that the run was tested on" in said(run)[1]
    assert said(run, "--data", data)[1] == ""
