"""What went wrong once around stopping and resuming, each under its symptom."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import heptad
from conftest import NAMES
from heptad.cli import main
from heptad.errors import RunError
from heptad.recipe import RunOptions
from heptad.stages.evaluation import Answers, Tally
from killing import checkpoints, command, result_of, train_words


@pytest.fixture
def run(straight, tmp_path):
    return shutil.copytree(straight, tmp_path / "run")


def test_hidden_files_of_others_in_the_run_folder_were_removed(digits, tmp_path):
    out = tmp_path / "mine"
    (out / ".movie.part").mkdir(parents=True)
    (out / ".movie.part" / "data").write_text("precious")
    (out / ".lock").write_text("my own lock")
    assert main(["train", "lenet5", "--data", "nowhere", "--out", str(out)]) == 2
    assert main([*train_words(digits, out), "--limit", "40"]) == 0
    assert (out / ".movie.part" / "data").read_text() == "precious"
    assert (out / ".lock").read_text() == "my own lock"


def test_a_finished_run_without_checkpoints_was_wiped_by_more_epochs(run, digits):
    shutil.rmtree(run / "checkpoints")
    before = (run / "metrics.json").read_bytes()
    recipe = heptad.load_recipe(run, epochs=4)
    with pytest.raises(RunError, match="has no checkpoint to go on from"):
        heptad.train(recipe, RunOptions(out=str(run), resume=True))
    assert (run / "metrics.json").read_bytes() == before


def test_one_changed_digit_of_the_schema_kept_the_checkpoint_before_from_being_used(
    run, straight, digits
):
    (run / "metrics.json").unlink()
    path = max((run / "checkpoints").glob("step-*")) / "manifest.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 3'))
    assert main(["resume", str(run)]) == 0
    assert result_of(run) == result_of(straight)
    assert any(name.endswith(".corrupt") for name in checkpoints(run))


def test_a_run_could_not_go_on_after_its_data_was_moved(run, straight, digits, tmp_path):
    (run / "metrics.json").unlink()
    moved = shutil.copytree(digits, tmp_path / "elsewhere" / "digits")
    assert main(["resume", str(run), "--data", str(moved)]) == 0
    weights = [(folder / "lenet5_digits.pth").read_bytes() for folder in (run, straight)]
    assert weights[0] == weights[1]


def test_a_finished_run_was_given_for_other_data_than_was_asked_for(run, digits, tmp_path):
    other = shutil.copytree(digits, tmp_path / "other")
    path = other / NAMES["train"][0]
    content = path.read_bytes()
    path.write_bytes(content[:16] + bytes(255 - value for value in content[16:]))
    recipe = heptad.load_recipe(run, data=str(other))
    with pytest.raises(RunError, match="the images or labels are not those"):
        heptad.train(recipe, RunOptions(out=str(run), resume=True))
    # A control: under its own name it is given as it is.
    assert heptad.train(heptad.load_recipe(run), RunOptions(out=str(run), resume=True)).metrics


def test_a_sheet_of_augmented_images_that_could_not_be_written_cost_the_run(digits, tmp_path):
    out = tmp_path / "run"
    (out / "augmentation.png").mkdir(parents=True)
    recipe = heptad.load_recipe("lenet5", data=str(digits), limit=40, epochs=1, rotation=10)
    metrics = heptad.train(recipe, RunOptions(out=str(out))).metrics
    assert "lenet5_digits.png" in metrics["files"]
    assert "augmentation.png" not in metrics["files"]


def test_every_step_warned_while_the_log_could_not_be_written(digits, tmp_path, caplog):
    out = tmp_path / "run"
    recipe = heptad.load_recipe("lenet5", data=str(digits), epochs=6, batch_size=8, limit=400)
    events = heptad.run(recipe, RunOptions(out=str(out), checkpoint_every="1s"))
    for event in events:
        if isinstance(event, heptad.StepReport) and event.step == 1:
            (out / "metrics.jsonl").rename(out / "aside")
            (out / "metrics.jsonl").mkdir()
        if isinstance(event, heptad.StepReport) and event.step == 290:
            (out / "metrics.jsonl").rmdir()
            (out / "aside").rename(out / "metrics.jsonl")
    assert len([record for record in caplog.records if "WARNING" in record.message]) < 20
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if '"step"' in line] == list(range(1, 301))


def test_answers_restored_on_one_device_did_not_fit_those_of_the_next_batch():
    """The places of images stay on the CPU; "meta" stands for a GPU."""
    tally = Tally()
    for count in (5, 1, 3, 9):
        logits = torch.empty(count, 10, device="meta")
        labels = torch.empty(count, dtype=torch.int64, device="meta")
        tally.add(Answers(logits, labels, torch.arange(count)))
    assert tally.num_images == 18


@pytest.mark.slow
def test_a_terminal_that_is_closed_says_so_twice_and_the_save_was_cut_off(digits, tmp_path):
    words = ["train", "lenet5", "--data", str(digits), "--epochs", "3000"]
    words += ["--out", str(tmp_path / "run")]
    process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log = tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None
        time.sleep(0.02)
    for _ in range(3):
        os.kill(process.pid, signal.SIGHUP)
    said = process.communicate(timeout=120)[1].decode()
    assert (process.returncode, "saved after step" in said) == (129, True), said
    assert checkpoints(tmp_path / "run")


@pytest.mark.slow
def test_a_pipe_in_the_place_of_a_file_held_verify_up_for_ever(run):
    path = max((run / "checkpoints").glob("step-*")) / "manifest.json"
    path.unlink()
    os.mkfifo(path)
    done = subprocess.run(
        [sys.executable, "-m", "heptad", "verify", str(run)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 5
    assert "lacks manifest.json" in done.stdout
