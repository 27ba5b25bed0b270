"""Every row of docs/errors.md: the exit code, the first line, no traceback, nothing left behind."""

from __future__ import annotations

import json
import re
import shlex
import sys

import pytest

from error_rows import ROWS, make_bad_things
from heptad.cli import main


@pytest.fixture(scope="module")
def bad_things(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_bad_things(folder, digits)
    return folder


@pytest.fixture(autouse=True)
def no_network_and_no_extra(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    # As if they were not installed.
    for package in ("tensorboard", "uvicorn", "onnxscript", "optuna"):
        monkeypatch.setitem(sys.modules, package, None)


def as_in_the_docs(message):
    """What differs from machine to machine, as the row writes it."""
    message = re.sub(r"is [0-9a-f]{64}, not [0-9a-f]{64}", "is FOUND, not SAVED", message)
    return re.sub(r"sees \d+ CUDA", "sees 0 CUDA", message)


def files_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if _counts(path)}


def _counts(path):
    # Owning a folder for a moment leaves no more than a time on its lock.
    return path.is_file() and path.name != ".heptad-lock"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.wrong)
def test_the_mistake_is_answered_as_documented(row, bad_things, monkeypatch, capsys):
    monkeypatch.chdir(bad_things)
    before = files_in(bad_things)
    words = shlex.split(row.command)

    code = main(words)
    said = capsys.readouterr()

    first_line = said.err.removeprefix("error: ").splitlines()[0]
    if row.code == 6:
        first_line = next(line for line in said.err.splitlines() if line.startswith("error: "))[7:]
    assert (code, as_in_the_docs(first_line)) == (row.code, row.message)
    assert "Traceback" not in said.err

    assert main([*words, "--json"]) == row.code
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"error"}
    assert document["error"]["code"] == row.code
    assert as_in_the_docs(document["error"]["message"].splitlines()[0]) == row.message
    new = {
        path.relative_to(bad_things).parts[0]
        for path in files_in(bad_things).keys() - before.keys()
    }
    # A run that failed on the way keeps its log, in a folder of its own; nothing else is left.
    assert new <= ({"runs"} if row.code == 4 else set())
    assert {path: now for path, now in files_in(bad_things).items() if path in before} == before


def test_no_two_mistakes_are_answered_alike():
    assert len({row.message for row in ROWS}) == len(ROWS)
    assert len({row.wrong for row in ROWS}) == len(ROWS)
