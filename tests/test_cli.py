"""The command line as a user meets it: in a pipe, on a terminal, as JSON."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

import heptad
from heptad.cli import main
from heptad.datasets.pictures import read_picture

TRAIN = ["train", "lenet5", "--epochs", "2", "--limit", "200"]


@pytest.fixture
def train(digits):
    return [*TRAIN, "--data", str(digits)]


def heptad_process(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "heptad", *words],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_help_names_every_command_and_imports_no_torch():
    code = (
        "import sys; from heptad.cli import main; main(['--help'])\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'slow imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("train", "evaluate", "predict", "recipes", "fetch", "doctor"):
        assert command in done.stdout


def test_help_lists_the_commands_in_the_order_of_use_and_ends_with_examples(capsys):
    assert main(["--help"]) == 0
    listed, examples = capsys.readouterr().out.split("Examples:")
    named = re.findall(r"^│ ([a-z]+) ", listed, re.MULTILINE)
    used = ["recipes", "train", "resume", "evaluate", "report", "predict", "scan", "fetch"]
    assert [name for name in named if name in used] == used
    tried = re.findall(r"^  heptad (\S+)", examples, re.MULTILINE)
    assert len(tried) == 6
    assert set(tried) <= set(named)
    # The examples are for all commands together, not for each of them.
    assert main(["recipes", "--help"]) == 0
    assert "Examples" not in capsys.readouterr().out


def test_every_field_is_a_flag(capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for settings in (heptad.Recipe, heptad.RunOptions):
        for name in settings.model_fields:
            assert f"--{name.replace('_', '-')}" in shown


@pytest.mark.slow
def test_in_a_pipe_a_run_is_plain_lines(train, workplace):
    done = heptad_process(*train, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "The network starts from random weights."
    epochs = [line for line in lines if line.startswith("epoch ")]
    pattern = r"epoch \d/2  loss \d\.\d{4}  test accuracy \d+\.\d\d % \(\d+\.\d\d to \d+\.\d\d\)  "
    assert len(epochs) == 2
    assert all(re.match(pattern, line) for line in epochs)
    assert "Saved in runs/lenet5-1: " in done.stdout


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar_and_the_end_is_the_same(train, workplace):
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "heptad", *train],
        stdout=terminal,
        stderr=terminal,
        cwd=workplace,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(terminal)
    shown = b""
    # Linux ends a terminal's stream with an error instead of an end of file.
    try:
        while part := os.read(controller, 65536):
            shown += part
    except OSError:
        pass
    os.close(controller)
    assert process.wait() == 0
    text = shown.decode()
    assert "\x1b[" in text
    assert re.search(r"epoch \d/2", text)
    assert "images/s" in text
    assert "Saved in runs/lenet5-1" in text


def test_json_is_the_metrics_of_the_run_and_nothing_else(train, workplace):
    done = heptad_process(*train, "--json", cwd=workplace)
    document = json.loads(done.stdout)
    assert document.pop("run") == "runs/lenet5-1"
    assert document == json.loads((workplace / "runs/lenet5-1/metrics.json").read_text())
    assert done.stderr == ""


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    assert main([*TRAIN, "--data", str(digits), "--out", str(folder / "run"), "--json"]) == 0
    return folder / "run"


def as_json(capsys, *words):
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_gives_the_figures_of_the_run(run, capsys):
    scores = as_json(capsys, "evaluate", str(run))
    metrics = json.loads((run / "metrics.json").read_text())
    for key in ("test_accuracy", "test_correct", "test_images", "test_accuracy_interval"):
        assert scores[key] == metrics[key]
    assert sum(map(sum, scores["confusion"])) == scores["test_images"]
    assert sum(c["correct"] for c in scores["classes"]) == scores["test_correct"]
    assert main(["evaluate", str(run)]) == 0
    assert "is \\ said" in capsys.readouterr().out


def test_evaluate_scores_another_set_of_the_same_classes(run, capsys, mnist):
    scores = as_json(capsys, "evaluate", str(run), "--data", "mnist")
    # The run's limit is for the run's own data.
    assert (scores["test_images"], scores["limit"]) == (10_000, None)
    assert as_json(capsys, "evaluate", str(run))["limit"] == 200


def test_evaluate_refuses_other_classes(run, digits, monkeypatch, capsys):
    entry = heptad.CATALOG["mnist"]
    letters = type(entry)(**(vars(entry) | {"name": "letters", "classes": tuple("abcdefghij")}))
    monkeypatch.setitem(heptad.CATALOG, "letters", letters)
    monkeypatch.setattr("heptad.datasets.dataset.ensure_dataset", lambda _: digits)
    assert main(["evaluate", str(run), "--data", "letters"]) == 2
    assert "letters has the classes a, b," in capsys.readouterr().err


def test_predict_names_the_likeliest_classes_of_files_and_folders(run, mnist, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(mnist["test"][0][k, 0]).save(folder / f"{k}.png")
    single = folder / "0.png"
    answers = as_json(capsys, "predict", str(run), str(single), str(folder), "--top", "2")
    assert [a["image"] for a in answers] == [str(single)] + [
        str(folder / f"{k}.png") for k in range(3)
    ]
    assert {len(a["classes"]) for a in answers} == {2}
    assert main(["predict", str(run), str(single)]) == 0
    name = answers[0]["classes"][0]["name"]
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == [str(single), name]


def test_one_bad_picture_stops_before_anything_is_printed(run, mnist, tmp_path, capsys):
    Image.fromarray(mnist["test"][0][0, 0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path / "good.png"), str(tmp_path / "bad.png")]) == 2
    assert capsys.readouterr().out == ""


def test_a_picture_is_turned_upright_and_laid_on_white(tmp_path):
    picture = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    picture.putpixel((0, 0), (255, 0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright: to be turned by 90 degrees clockwise
    picture.save(tmp_path / "phone.png", exif=exif)
    pixels = read_picture(tmp_path / "phone.png", channels=3)
    assert pixels.shape == (3, 4, 2)
    assert pixels[:, 0, 1].tolist() == [255, 0, 0]
    assert pixels[:, 3, 0].tolist() == [255, 255, 255]


def test_recipes_lists_all_and_prints_one_that_can_be_trained(workplace, capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in heptad.RECIPES)
    assert main(["recipes", "vgg16"]) == 0
    (workplace / "mine.toml").write_text(capsys.readouterr().out)
    assert heptad.load_recipe("mine.toml") == heptad.RECIPES["vgg16"].recipe
    shown = as_json(capsys, "recipes")
    assert shown["resnet50"]["recipe"] == heptad.RECIPES["resnet50"].recipe.model_dump()


def test_doctor_says_of_a_cache_that_cannot_be_one_that_it_is_no_folder(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "file" / "cache"))
    (cache,) = (f for f in as_json(capsys, "doctor") if f["subject"] == "cache")
    assert (cache["is_well"], cache["state"].split(", ")[-1]) == (
        False,
        f"but {tmp_path / 'file'} is no folder",
    )


def test_doctor_says_what_is_here_and_what_is_missing(mnist, capsys):
    findings = {f["subject"]: f for f in as_json(capsys, "doctor")}
    assert findings["data mnist"]["is_well"]
    missing = findings["weights vgg16 IMAGENET1K_V1, the default"]
    assert not missing["is_well"]
    assert "heptad fetch vgg16-397923af.pth" in missing["advice"]
    assert main(["doctor"]) == 0
    assert "[--] weights vgg16" in capsys.readouterr().out


def test_fetched_data_can_be_carried_and_trained_on(mnist, workplace, capsys):
    files = as_json(capsys, "fetch", "mnist", "--to", "stick")[0]["files"]
    assert len(files) == 4
    document = as_json(
        capsys, "train", "lenet5", "--data", "stick/mnist", "--epochs", "1", "--limit", "50"
    )
    assert document["test_images"] == 50


@pytest.mark.slow
def test_random_weights_are_said_first(digits, workplace, capsys):
    words = ["train", "resnet50", "--data", str(digits), "--weights", "none", "--limit", "20"]
    assert main([*words, "--image-size", "32", "--epochs", "1"]) == 0
    assert capsys.readouterr().out.startswith("The weights are random")


@pytest.mark.parametrize(
    ("rate", "advice"), [("1e-9", "--learning-rate 1e-08"), ("1", "--learning-rate 0.1")]
)
def test_a_network_that_learned_nothing_is_told_which_way_to_go(
    train, workplace, capsys, rate, advice
):
    assert main([*train, "--learning-rate", rate]) == 0
    shown = capsys.readouterr().out
    assert "It did not learn" in shown
    assert advice in shown


def test_a_short_run_that_learned_is_not_told_otherwise(digits, workplace, capsys):
    """After eight steps the mean loss of the epoch is still near guessing; the answers are not."""
    assert main(["train", "lenet5", "--data", str(digits), "--epochs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "It learned" in shown
    assert "did not learn" not in shown


@pytest.mark.slow
def test_a_read_only_place_is_found_before_the_first_batch(train, workplace):
    place = workplace / "closed"
    place.mkdir(mode=0o555)
    # Root may write anywhere unless it gives that power up.
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps"]
    drop += ["-dac_override,-dac_read_search"]
    done = subprocess.run(
        [
            *(drop if os.geteuid() == 0 else []),
            sys.executable,
            "-m",
            "heptad",
            *train,
            "--out",
            "closed/run",
        ],
        cwd=workplace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "no run folder can be made at closed/run: closed cannot be written" in done.stderr
    assert "epoch" not in done.stdout


def test_a_bug_keeps_its_traceback_and_exits_with_1(monkeypatch, capsys):
    monkeypatch.setattr("heptad.cli.commands.train.load_recipe", lambda *_, **__: 1 / 0)
    assert main(["train", "lenet5", "--json"]) == 1
    said = capsys.readouterr()
    assert "ZeroDivisionError" in said.err
    assert json.loads(said.out)["error"]["code"] == 1


def test_a_reader_that_goes_away_ends_the_command_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "heptad", "recipes"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="Ctrl-C", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
    ],
)
@pytest.mark.parametrize(
    "flags",
    [pytest.param([], id="words"), pytest.param(["--json"], id="json", marks=pytest.mark.slow)],
)
def test_a_signal_ends_a_training_with_its_code(mnist, workplace, number, code, flags):
    process = subprocess.Popen(
        [sys.executable, "-m", "heptad", "train", "lenet5", "--out", "run", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = workplace / "run" / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    message = rf"stopped by {number.name}: saved after step \d+; `heptad resume run` goes on"
    if flags:
        error = json.loads(out)["error"]
        assert (error["code"], error["hint"]) == (code, "")
        assert re.match(message, error["message"])
    else:
        assert re.search(message, err)


@pytest.mark.slow
def test_too_little_memory_is_said_to_be_that(digits, workplace):
    """A limit on the address space stands for a small machine."""
    command = f"ulimit -v 6000000; exec {sys.executable} -m heptad train lenet5 --epochs 1"
    done = subprocess.run(
        ["bash", "-c", f"{command} --data mnist --batch-size 60000"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 6, done.stderr
    assert "not enough memory" in done.stderr
    assert "--batch-size" in done.stderr


def test_a_folder_of_pictures_may_hold_other_things(run, mnist, tmp_path, capsys):
    Image.fromarray(mnist["test"][0][0, 0]).save(tmp_path / "7.png")
    (tmp_path / "inner.png").mkdir()
    (tmp_path / "._7.png").write_bytes(b"what a Mac leaves beside a file")
    (tmp_path / "notes.txt").write_text("a seven")
    (answer,) = as_json(capsys, "predict", str(run), str(tmp_path))
    assert answer["image"] == str(tmp_path / "7.png")
