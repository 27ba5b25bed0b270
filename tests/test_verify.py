"""`heptad verify`: what in a run folder is whole, and the proof that a killed run resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import heptad
from heptad.cli import main
from heptad.verifying import examine_run
from killing import checkpoints


@pytest.fixture
def run(straight, tmp_path):
    return shutil.copytree(straight, tmp_path / "run")


def verify(run, capsys):
    code = main(["verify", str(run), "--json"])
    return code, json.loads(capsys.readouterr().out)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_finished_run_is_whole(run, capsys):
    code, found = verify(run, capsys)
    assert (code, found["whole"], found["finished"]) == (0, True, True)
    files = {path.name for path in run.iterdir()} - {".heptad-lock", "checkpoints"}
    names = {f"checkpoints/{name}" for name in checkpoints(run)}
    assert {file["name"] for file in found["files"]} == files | names


NAMES = [
    *("metrics.json", "recipe.json", "environment.json", "metrics.jsonl"),
    *("predictions.npz", "lenet5_digits.pth", "lenet5_digits.png", "epochs.csv"),
    *("checkpoints/step-00000032/state.safetensors", "checkpoints/step-00000032/manifest.json"),
]
# A run without its metrics.json is one that is not finished.
CHANGES = [(name, flip_a_bit) for name in NAMES] + [(name, Path.unlink) for name in NAMES[1:]]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_every_single_change_is_found_and_named(run, capsys, name, change):
    change(run / name)
    code, found = verify(run, capsys)
    damaged = {file["name"] for file in found["files"] if not file["is_whole"]}
    assert (code, found["whole"]) == (5, False)
    assert name.removesuffix("/state.safetensors").removesuffix("/manifest.json") in damaged
    # The checkpoints know the log as it was; without metrics.json nothing can be checked.
    assert len(damaged) == {"metrics.jsonl": 3, "metrics.json": 8}.get(name, 1)


def test_an_unfinished_run_is_examined_too(run, capsys):
    (run / "metrics.json").unlink()
    (run / "note.txt").write_text("mine")
    code, found = verify(run, capsys)
    assert (code, found["whole"], found["finished"]) == (0, True, False)
    said = {file["name"]: file["said"] for file in found["files"]}
    assert said["recipe.json"] == "can be read; it has no hash before the run is finished"
    assert said["note.txt"] == "not a file of the run"


def test_verifying_changes_nothing(run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    flip_a_bit(run / "checkpoints" / "step-00000032" / "manifest.json")
    verify(run, capsys)
    del before[run / "checkpoints" / "step-00000032" / "manifest.json"]
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
def test_the_proof_that_a_killed_run_resumes_is_given_to_everyone(digits, workplace, capsys):
    words = ["verify", "--resume-proof", "lenet5", "--data", str(digits), "--kills", "3", "--json"]
    assert main(words) == 0
    proof = json.loads(capsys.readouterr().out)
    assert (proof["holds"], proof["num_kills"], proof["differing"]) == (True, 3, [])
    assert len(proof["resumed_from"]) == 3
    assert min(proof["resumed_from"]) > 0


@pytest.mark.slow
def test_a_run_too_short_to_be_killed_proves_nothing(digits, workplace, capsys):
    words = ["verify", "--resume-proof", "lenet5", "--data", str(digits), "--limit", "20"]
    assert main([*words, "--epochs", "1", "--kills", "9"]) in (0, 5)
    out = capsys.readouterr().out
    # However many kills came in time, a claim is made only for those.
    kills = sum(line.startswith("kill ") for line in out.splitlines())
    assert f"{kills} kills" in out


@pytest.mark.parametrize("name", ["onnx", "safetensors"])
def test_a_file_that_was_exported_before_the_run_went_on_is_not_said_to_be_of_it(
    digits, tmp_path, name
):
    words = ["train", "lenet5", "--data", str(digits), "--limit", "40", "--no-report"]
    words += ["--threads", "1", "--out", str(tmp_path / "run"), "--epochs"]
    assert main([*words, "1"]) == 0
    heptad.export(tmp_path / "run", name)
    assert said_of_export(tmp_path / "run") == "exported from the run"
    assert main([*words, "2", "--resume"]) == 0
    assert said_of_export(tmp_path / "run") == "exported from another result of a run"


def said_of_export(run):
    (said,) = (f.said for f in examine_run(run).findings if "export" in f.said)
    return said.split(";")[0]
