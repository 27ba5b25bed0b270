"""Stage 7: what a run leaves behind, and that it can be used without Heptad."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import precision_recall_fscore_support, top_k_accuracy_score
from torch import nn
from torchvision.models import resnet50, vgg16

import heptad
from conftest import write_pictures
from heptad.errors import DamagedError, OutputError, RunError
from heptad.recipe import RunOptions
from heptad.stages.saving import sealed

SMALL = {"weights": "none", "image_size": 32, "limit": 40, "batch_size": 16, "epochs": 2}
ALWAYS = {
    ".heptad-lock",
    "checkpoints",
    "recipe.json",
    "environment.json",
    "metrics.jsonl",
    "epochs.csv",
    "metrics.json",
    "predictions.npz",
}


def train(name, digits, **settings):
    options = RunOptions(out=settings.pop("out", None))
    return heptad.train(heptad.load_recipe(name, data=str(digits), **settings), options)


@pytest.fixture(scope="module")
def lenet_run(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("lenet") / "run"
    return train("lenet5", digits, epochs=2, batch_size=100, out=str(out))


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def read(path):
    return json.loads(path.read_text())


def test_a_lenet_run_has_its_files_and_no_others(lenet_run):
    assert names_in(lenet_run.folder) == ALWAYS | {"lenet5_digits.pth", "lenet5_digits.png"}
    with Image.open(lenet_run.folder / "lenet5_digits.png") as picture:
        width, height = picture.size
    assert width > height > 400


def test_the_weights_load_strictly_into_a_plain_network_without_heptad(lenet_run):
    """In a process of its own that must not import Heptad."""
    code = """
import sys, torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)
state = torch.load(sys.argv[1], weights_only=True)
Net().load_state_dict(state, strict=True)
assert all(value.is_contiguous() for value in state.values())
assert "heptad" not in sys.modules
"""
    path = lenet_run.folder / "lenet5_digits.pth"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


@pytest.mark.slow
def test_a_resnet_run_loads_into_torchvision_and_leaves_its_pickle(digits, workplace):
    run = train("resnet50", digits, **SMALL)
    assert names_in(run.folder) == ALWAYS | {
        "resnet50_digits.pth",
        "resnet50_digits.trained.safetensors",
        "resnet50_digits.png",
        "metrics.pkl",
    }
    plain = resnet50()
    plain.fc = nn.Linear(2048, 10)
    state = torch.load(run.folder / "resnet50_digits.pth", weights_only=True)
    plain.load_state_dict(state, strict=True)
    assert all(value.is_contiguous() for value in state.values())
    check_stats(pickle.loads((run.folder / "metrics.pkl").read_bytes()), run)


@pytest.mark.slow
def test_a_vgg_run_loads_into_torchvision_and_leaves_its_json(digits, workplace):
    run = train("vgg16", digits, **SMALL)
    assert names_in(run.folder) == ALWAYS | {
        "vgg16_digits.pth",
        "vgg16_digits.trained.safetensors",
        "vgg16_digits.png",
        "vgg16_training_stats.json",
    }
    plain = vgg16(init_weights=False)
    plain.classifier[6] = nn.Linear(4096, 10)
    state = torch.load(run.folder / "vgg16_digits.pth", weights_only=True)
    plain.load_state_dict(state, strict=True)
    check_stats(read(run.folder / "vgg16_training_stats.json"), run)
    # Loaded again, the whole network gives the answers of the head on features.
    again = heptad.load_run(run.folder).evaluate()
    assert torch.allclose(again.logits, run.scores.logits, rtol=1e-4, atol=1e-4)
    assert again.predicted.tolist() == run.scores.predicted.tolist()


def check_stats(stats, run):
    assert stats["step_losses"] == [loss for e in run.epochs for loss in e.step_losses]
    assert stats["train_losses"] == [e.train_loss for e in run.epochs]
    assert stats["test_losses"] == [e.scores.loss for e in run.epochs]
    assert stats["test_accuracies"] == [100 * e.scores.num_correct / 40 for e in run.epochs]
    assert stats["recipe"] == run.recipe.model_dump()
    assert len(stats["step_losses"]) == 2 * 3


def test_metrics_json_says_what_was_done_and_agrees_with_the_predictions(lenet_run):
    metrics = read(lenet_run.folder / "metrics.json")
    assert metrics == lenet_run.metrics
    assert metrics["schema"] == 1
    assert metrics["classes"] == list("0123456789")
    assert metrics["weights"] == {"name": "none", "sha256": None, "last_layer": "new"}
    assert [sorted(epoch) for epoch in metrics["epochs"]] == [
        ["epoch", "seconds", "test_accuracy", "test_loss", "train_loss"]
    ] * 2
    with np.load(lenet_run.folder / "predictions.npz") as predictions:
        correct = int((predictions["logits"].argmax(1) == predictions["labels"]).sum())
        assert predictions["ids"].tolist() == list(range(200))
    assert metrics["test_correct"] == correct
    assert metrics["test_accuracy"] == correct / 200 == metrics["epochs"][-1]["test_accuracy"]
    low, high = metrics["test_accuracy_interval"]
    assert low < metrics["test_accuracy"] < high
    execution = metrics["execution"]
    assert len(execution["sha256"]) == 64
    hidden = ("checkpoint_seconds", "sha256")
    assert {k: v for k, v in execution.items() if k not in hidden} == {
        "world_size": 1,
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "engine": "eager",
        "computed_features": 0,
        "resumed_from": [],
        "rank_images": [512],
    }
    assert 0 < execution["checkpoint_seconds"] < metrics["seconds"]
    assert 0 < metrics["train_seconds"] < metrics["seconds"]


def test_metrics_json_has_what_scikit_learn_makes_of_the_answers(lenet_run):
    metrics = lenet_run.metrics
    with np.load(lenet_run.folder / "predictions.npz") as predictions:
        logits, labels = predictions["logits"], predictions["labels"]
    macro = precision_recall_fscore_support(
        labels, logits.argmax(1), average="macro", labels=np.unique(labels), zero_division=0
    )
    for name, expected in zip(("precision", "recall", "f1"), macro, strict=False):
        assert metrics[f"test_macro_{name}"] == pytest.approx(expected, rel=1e-12)
    assert metrics["test_top_k_accuracy"] == {
        str(k): top_k_accuracy_score(labels, logits, k=k) for k in (2, 3, 5)
    }
    probabilities = softmax(logits.astype(np.float64), axis=1)
    bins = np.ceil(15 * probabilities.max(1))
    gaps = probabilities.max(1) - (logits.argmax(1) == labels)
    expected = sum(abs(gaps[bins == number].sum()) for number in range(16)) / 200
    assert metrics["test_calibration_error"] == pytest.approx(expected, rel=1e-9)
    assert (metrics["parameters"], metrics["trained_parameters"]) == (61_706, 61_706)


def test_two_classes_have_no_second_likeliest(digits, workplace, mnist):
    images, labels = mnist["train"]
    few = np.flatnonzero(labels < 2)[:40]
    write_pictures(workplace / "two", images[few, 0], labels[few])
    run = heptad.train(heptad.load_recipe("lenet5", data="two", epochs=1))
    assert run.metrics["test_top_k_accuracy"] == {}


def test_epochs_csv_has_the_epochs_of_metrics_json(lenet_run):
    with (lenet_run.folder / "epochs.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    expected = [{k: v for k, v in e.items() if k != "seconds"} for e in lenet_run.metrics["epochs"]]
    assert rows == expected
    assert list(rows[0]) == ["epoch", "train_loss", "test_loss", "test_accuracy"]


def test_the_hashes_in_metrics_json_are_those_of_the_files(lenet_run):
    files = lenet_run.metrics["files"]
    others = {"metrics.json", ".heptad-lock", "checkpoints"}
    assert set(files) == names_in(lenet_run.folder) - others
    for name, digest in files.items():
        assert hashlib.sha256((lenet_run.folder / name).read_bytes()).hexdigest() == digest


def test_the_log_has_a_line_for_every_step_and_every_epoch(lenet_run):
    lines = [
        json.loads(line) for line in (lenet_run.folder / "metrics.jsonl").read_text().splitlines()
    ]
    steps = [line for line in lines if "step" in line]
    epochs = [line for line in lines if "step" not in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert [line["loss"] for line in steps] == [
        loss for epoch in lenet_run.epochs for loss in epoch.step_losses
    ]
    assert [line["test_accuracy"] for line in epochs] == [
        epoch.scores.accuracy for epoch in lenet_run.epochs
    ]
    # Each epoch's line follows its steps.
    assert ["step" in line for line in lines] == ([True] * 6 + [False]) * 2


def test_a_run_repeated_from_its_folder_is_equal_but_for_times(lenet_run, workplace):
    again = heptad.train(heptad.load_recipe(lenet_run.folder), RunOptions(out="again"))

    def without_times(metrics):
        kept = {k: v for k, v in metrics.items() if not k.endswith("seconds") and k != "execution"}
        return kept | {
            "epochs": [{k: v for k, v in e.items() if k != "seconds"} for e in kept["epochs"]]
        }

    assert without_times(again.metrics) == without_times(lenet_run.metrics)


def test_runs_are_numbered_and_never_overwritten(digits, workplace):
    settings = {"epochs": 1, "limit": 20}
    folders = [train("lenet5", digits, **settings).folder for _ in range(3)]
    assert [str(folder) for folder in folders] == [f"runs/lenet5-{n}" for n in (1, 2, 3)]
    before = {p: p.read_bytes() for p in folders[0].rglob("*") if p.is_file()}
    with pytest.raises(OutputError, match="holds a run already"):
        train("lenet5", digits, **settings, out="runs/lenet5-1")
    assert {p: p.read_bytes() for p in folders[0].rglob("*") if p.is_file()} == before


def test_a_folder_with_other_things_in_it_can_take_a_run(digits, workplace):
    (workplace / "job").mkdir()
    (workplace / "job" / "slurm-1.out").write_text("queued")
    run = train("lenet5", digits, epochs=1, limit=20, out="job")
    assert "slurm-1.out" not in run.metrics["files"]


def test_a_moved_run_answers_as_before(lenet_run, workplace, digits):
    moved = workplace / "elsewhere"
    shutil.copytree(lenet_run.folder, moved)
    classifier = heptad.load_run(moved)
    assert torch.equal(classifier.evaluate().logits, lenet_run.scores.logits)
    for path in moved.glob("*.json"):
        assert str(lenet_run.folder) not in path.read_text()


def test_predict_gives_the_answer_of_the_evaluation(lenet_run, mnist, tmp_path):
    images, _ = mnist["test"]
    paths = []
    for k in range(20):
        paths.append(tmp_path / f"{k:02}.png")
        Image.fromarray(images[k, 0]).save(paths[-1])
    predictions = list(heptad.load_run(lenet_run.folder).predict(paths))
    expected = lenet_run.scores.logits[:20].softmax(1)
    for prediction, row in zip(predictions, expected, strict=True):
        assert prediction.classes[0][0] == str(int(row.argmax()))
        assert dict(prediction.classes) == pytest.approx(
            {str(k): value for k, value in enumerate(row.tolist())}, abs=1e-5
        )
        assert sum(p for _, p in prediction.classes) == pytest.approx(1, abs=1e-5)


@pytest.fixture
def copied_run(lenet_run, tmp_path):
    return shutil.copytree(lenet_run.folder, tmp_path / "copy")


def test_one_flipped_bit_in_the_weights_is_refused(copied_run):
    path = copied_run / "lenet5_digits.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    # A control: PyTorch itself loads the damaged file without a word.
    torch.load(path, weights_only=True)
    with pytest.raises(DamagedError, match="is not what was saved"):
        heptad.load_run(copied_run)


def test_missing_weights_are_named(copied_run):
    (copied_run / "lenet5_digits.pth").unlink()
    with pytest.raises(DamagedError, match="missing"):
        heptad.load_run(copied_run)


def forged(metrics):
    """As someone would change the document who knows how its digest is made."""
    return json.dumps(sealed(metrics))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: "not json", "is damaged"),
        (lambda _: "[" * 100_000, "is damaged"),
        (lambda m: json.dumps(m | {"schema": 2}), "has schema 2; this version of Heptad reads 1"),
        (lambda m: json.dumps(m | {"test_correct": m["test_correct"] + 1}), "was changed since"),
        (lambda m: forged({k: v for k, v in m.items() if k != "classes"}), "lacks 'classes'"),
        (lambda m: forged(m | {"files": {"../../lenet5_x.pth": "0"}}), "is damaged"),
        (lambda m: forged(m | {"transform": None}), "is damaged"),
    ],
    ids=["text", "deep", "schema", "a digit", "classes", "path", "transform"],
)
def test_damaged_metrics_are_refused(copied_run, change, message):
    path = copied_run / "metrics.json"
    path.write_text(change(read(path)))
    with pytest.raises(DamagedError, match=message):
        heptad.load_run(copied_run)


def test_a_folder_that_is_no_finished_run_is_refused(copied_run, tmp_path):
    (copied_run / "metrics.json").unlink()
    with pytest.raises(RunError, match="a run that was not finished"):
        heptad.load_run(copied_run)
    with pytest.raises(RunError, match="no run folder"):
        heptad.load_run(tmp_path / "nowhere")


WITHOUT_MATPLOTLIB = """
import sys
sys.modules["matplotlib"] = None
from heptad.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_plot_that_cannot_be_made_costs_nothing_else(digits, workplace):
    words = ["train", "lenet5", "--data", str(digits), "--epochs", "1", "--limit", "20"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MATPLOTLIB, *words, "--out", "run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "lenet5_digits.png could not be made" in done.stderr
    run = heptad.load_run("run")
    assert "lenet5_digits.png" not in run.metrics["files"]
    assert run.evaluate().num_images == 20


@pytest.mark.slow
def test_of_two_runs_that_start_at_once_in_one_folder_one_is_refused(digits, workplace):
    words = [sys.executable, "-m", "heptad", "train", "lenet5", "--data", str(digits)]
    words += ["--epochs", "1", "--limit", "20", "--out", "shared"]
    both = [
        subprocess.Popen(
            [*words, "--seed", str(k)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for k in range(2)
    ]
    said = [process.communicate()[1].decode() for process in both]
    codes = sorted(process.returncode for process in both)
    # 6 while the first one runs, 2 if it is done already.
    assert codes in ([0, 2], [0, 6]), said
    assert "shared" in "".join(said)
    assert heptad.load_run("shared").evaluate().num_images == 20


def test_a_run_that_was_cut_off_is_called_unfinished(copied_run, digits):
    (copied_run / "metrics.json").unlink()
    with pytest.raises(OutputError, match="a run that was not finished") as raised:
        train("lenet5", digits, out=str(copied_run))
    assert "heptad resume" in raised.value.hint


def test_the_plot_of_a_single_step_can_be_drawn(digits, workplace):
    run = train("lenet5", digits, epochs=1, limit=20)
    with Image.open(run.folder / "lenet5_digits.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50


@pytest.mark.slow
def test_a_file_that_cannot_be_written_whole_is_not_there_and_ends_with_3(digits, tmp_path):
    """A limit on the size of files stands for a full disk: weights of 250 kB do not fit."""

    def limit_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "heptad", "train", "lenet5", "--data", str(digits)]
    command += ["--epochs", "1", "--limit", "64", "--out", "run"]
    done = subprocess.run(
        command, cwd=tmp_path, preexec_fn=limit_files, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "lenet5_digits.pth could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not list((tmp_path / "run").glob("*.pth"))
    assert [path.name for path in (tmp_path / "run").glob(".*")] == [".heptad-lock"]


def test_a_command_does_not_look_for_garbage_in_all_that_it_imported_again_and_again(
    digits, tmp_path
):
    words = ["--data", str(digits), "--epochs", "1", "--out", str(tmp_path / "run")]
    code = (
        "import gc; from heptad.cli import main; before = gc.get_threshold(); assert main() == 0\n"
        "young, _, full = (each['collections'] for each in gc.get_stats())\n"
        "is_as_ever = gc.isenabled() and gc.get_threshold()[:2] == before[:2]\n"
        "print(young, full, is_as_ever, file=open('found', 'w'))"
    )
    command = [sys.executable, "-c", code, "train", "lenet5", *words]
    subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    num_young, num_full, is_as_ever = (tmp_path / "found").read_text().split()
    assert int(num_full) <= 1
    # A training's own garbage is young.
    assert (int(num_young) > 100, is_as_ever) == (True, "True")


def test_training_a_lenet_imports_neither_torchvision_nor_the_compiler(digits, tmp_path):
    """Each takes about as long to import as PyTorch without them."""
    out = tmp_path / "run"
    words = ["train", "lenet5", "--data", str(digits), "--epochs", "1", "--out", str(out)]
    code = (
        f"import sys; from heptad.cli import main; assert main({words!r}) == 0\n"
        "assert 'torch' in sys.modules and not {'torchvision', 'torch._dynamo'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"report.html", "lenet5_digits.pth"} <= names_in(out)


def test_the_checkpoints_of_another_run_are_not_taken_for_ones_own(lenet_run, digits, tmp_path):
    shutil.copytree(lenet_run.folder / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(OutputError, match="a run that was not finished: checkpoints is there"):
        train("lenet5", digits, epochs=2, batch_size=100, seed=1, out=str(tmp_path / "run"))


def test_equal_runs_on_two_machines_have_one_digest(lenet_run, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("platform.release", lambda: "another kernel")
    out = str(tmp_path / "run")
    elsewhere = train("lenet5", digits, epochs=2, batch_size=100, out=out)
    assert elsewhere.metrics["digest"] == lenet_run.metrics["digest"]
    both = [run.metrics["files"] for run in (lenet_run, elsewhere)]
    assert [name for name in both[0] if both[0][name] != both[1][name]] == ["environment.json"]
