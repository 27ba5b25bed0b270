"""Kills at every call of a save, failing disks, moved folders, wrong clocks: nothing is lost.

The calls are those of Python's `os` and of the system, met in processes of their own: at each of
them, in turn, a process ends without a chance to clean up.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import heptad
from heptad.checkpoints.store import list_checkpoints, what_is_wrong
from heptad.cli import main
from heptad.errors import RunError
from killing import (
    at_file_call,
    at_forward,
    checkpoints,
    command,
    fail,
    fork,
    hang,
    leftovers,
    metrics_of,
    result_of,
    send,
    small_words,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and strace are Linux's")

KILL = partial(send, signal.SIGKILL)
TERMINATE = partial(send, signal.SIGTERM)
DAY_S = 86_400
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def begun(digits, tmp_path_factory) -> Path:
    """A run killed in its last evaluation: one save, which removes another, and all files lack."""
    folder = tmp_path_factory.mktemp("begun")
    in_the_second = partial(at_forward, 3, KILL, training=False)
    assert carry_out(small_words(digits, folder / "run"), folder, in_the_second) == -signal.SIGKILL
    assert checkpoints(folder / "run") == {"step-00000003", "step-00000004"}
    return folder / "run"


@pytest.fixture
def run(begun, tmp_path) -> Path:
    """A copy of `begun`."""
    return shutil.copytree(begun, tmp_path / "run")


def carry_out(words, folder, *preparations) -> int:
    """Carry out a command in a process that prints into FOLDER/log; gives its exit code."""
    process = fork(words, folder / "log", *preparations)
    process.join()
    return process.exitcode


def resume(digits, run, moment, act) -> int:
    """Go on with a run in a process that acts at a call; gives its exit code."""
    prepare = partial(at_file_call, moment, act, run, run.parent / "noted")
    return carry_out(small_words(digits, run, "--resume"), run.parent, prepare)


def check_whole(run) -> None:
    """What is named a checkpoint is one, and a run is called finished only if it is."""
    kept = list_checkpoints(run / "checkpoints")
    assert len(kept) >= 2
    assert [what_is_wrong(path) for path in kept] == [""] * len(kept)
    if (run / "metrics.json").exists():
        assert heptad.load_run(run).evaluate().num_images == 64
    else:
        with pytest.raises(RunError, match="not finished"):
            heptad.load_run(run)


def check_finish(digits, run, small) -> None:
    """The run can be finished, and ends as the one that nothing disturbed."""
    assert main(small_words(digits, run, "--resume")) == 0
    assert result_of(run) == result_of(small)
    assert leftovers(run) == []


@pytest.mark.parametrize(
    "call",
    [
        "rename checkpoints/.step-00000004-tested.part",
        "unlink checkpoints/.step-00000003.part/manifest.json",
    ],
)
def test_a_kill_in_the_midst_of_a_save_loses_nothing(digits, run, small, call):
    assert resume(digits, run, call, KILL) == -signal.SIGKILL
    # A control: something is half-written or half-removed.
    assert leftovers(run)
    check_whole(run)
    check_finish(digits, run, small)


@SLOW
def test_a_kill_at_any_call_from_a_resume_to_its_end_loses_nothing(digits, begun, small, tmp_path):
    assert resume(digits, shutil.copytree(begun, tmp_path / "whole/run"), 0, KILL) == 0
    calls = (tmp_path / "whole/noted").read_text().splitlines()
    # Weights are written in a hundred small pieces: the first of them stands for all.
    numbers = [k for k in range(len(calls)) if k == 0 or calls[k] != calls[k - 1]]
    num_halves = 0
    for k in numbers:
        print("killed before:", calls[k])
        run = shutil.copytree(begun, tmp_path / str(k) / "run")
        assert resume(digits, run, k + 1, KILL) == -signal.SIGKILL
        num_halves += bool(leftovers(run))
        check_whole(run)
        check_finish(digits, run, small)
    # A control: many of the kills left something half-written.
    assert len(numbers) > num_halves > 30


# Saves that fail


@pytest.mark.parametrize(
    "call",
    [
        pytest.param("mkdir checkpoints/.step-.*", marks=SLOW),
        pytest.param("write checkpoints/.step-.*/state.safetensors", marks=SLOW),
        "fsync checkpoints/.step-.*/manifest.json",
        pytest.param("rename checkpoints/.step-.*", marks=SLOW),
        pytest.param("fsync checkpoints", marks=SLOW),
    ],
)
def test_saves_that_fail_cost_a_warning_each_and_not_the_run(digits, run, small, call):
    assert resume(digits, run, call, partial(fail, errno.EIO)) == 0
    said = (run.parent / "log").read_text()
    assert "WARNING: the checkpoint step-00000004-tested could not be written: " in said
    assert "Input/output error" in said
    assert {"step-00000003", "step-00000004"} <= checkpoints(run)
    assert result_of(run) == result_of(small)
    assert leftovers(run) == []


def test_a_stop_whose_save_fails_ends_with_3_and_says_nothing_of_saved(digits, small, tmp_path):
    run = tmp_path / "run"
    prepare = (
        partial(at_forward, 3, TERMINATE),
        partial(
            at_file_call,
            "fsync checkpoints/.step-00000003.part",
            partial(fail, errno.EIO),
            run,
            tmp_path / "noted",
        ),
    )
    assert carry_out(small_words(digits, run), tmp_path, *prepare) == 3
    said = (tmp_path / "log").read_text()
    assert "error: the checkpoint step-00000003 could not be written: Input/output error" in said
    assert "saved after" not in said
    assert "Traceback" not in said
    assert checkpoints(run) == {"step-00000001", "step-00000002"}
    check_finish(digits, run, small)


@pytest.mark.parametrize(
    "name",
    [
        "lenet5_digits.pth",
        pytest.param("predictions.npz", marks=SLOW),
        pytest.param("metrics.json", marks=SLOW),
    ],
)
def test_a_last_file_that_cannot_be_written_ends_with_3(digits, run, small, name):
    assert resume(digits, run, rf"fsync \.{name}\..*", partial(fail, errno.EIO)) == 3
    said = (run.parent / "log").read_text()
    assert f"{run / name} could not be written: Input/output error" in said
    assert "Saved in" not in said
    assert "Traceback" not in said
    check_whole(run)
    check_finish(digits, run, small)


# The same by the system itself, which knows nothing of Python


def traced(words, folder, *flags):
    """Carry out a command under strace, with flags of it; give what came of it, and the calls."""
    strace = ["strace", "-f", "-y", "-qq", "-o", str(folder / "calls")]
    try:
        done = subprocess.run([*strace, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no strace here")
    if done.returncode:
        pytest.skip(f"strace may not trace: {done.stderr}")
    done = subprocess.run(
        [*strace, *flags, *command(*words)], capture_output=True, text=True, check=False
    )
    return done, (folder / "calls").read_text().splitlines()


@pytest.fixture(scope="module")
def calls(digits, tmp_path_factory) -> list[str]:
    """The calls of a run that bring something onto the disk, move it or remove it, in order."""
    folder = tmp_path_factory.mktemp("traced")
    flags = "-e", "trace=write,fsync,/^(rename|unlink|rmdir)"
    done, calls = traced(small_words(digits, folder / "run"), folder, *flags)
    assert done.returncode == 0, done.stderr
    return calls


def number_of(calls, kind, call) -> int:
    """The number, from 1, of the first such call among those of its kind."""
    same = [line for line in calls if f" {kind}" in line]
    return 1 + next(k for k, line in enumerate(same) if re.search(call, line))


@SLOW
def test_a_save_brings_all_onto_the_disk_before_anything_gets_a_name_or_loses_it(calls):
    new = r"\.step-00000003\.part"
    place = 0
    for call in [
        r"fsync\(.*/metrics.jsonl>",
        rf"write\(.*/{new}/state.safetensors>",
        rf"fsync\(.*/{new}/state.safetensors>",
        rf"write\(.*/{new}/manifest.json>",
        rf"fsync\(.*/{new}/manifest.json>",
        rf"fsync\(.*/{new}>",
        rf'rename.*/{new}".*/step-00000003"',
        r"fsync\(.*/checkpoints>",
        r'rename.*/step-00000001"',
        r"unlink.*step-00000001\.part",
    ]:
        found = [k for k, line in enumerate(calls) if re.search(call, line) and k >= place]
        assert found, f"{call} does not come after what it should come after"
        place = found[0]
    # A control: the first checkpoint had been saved, and was not touched before this one was.
    assert sum(bool(re.search(r"rename.*step-00000001", line)) for line in calls) == 2


@SLOW
@pytest.mark.parametrize(
    "renamed",
    ['".*/.step-00000003.part", ".*/step-00000003"', '".*/step-00000001", ".*"'],
    ids=["a checkpoint gets its name", "an old one loses it"],
)
def test_a_run_that_the_system_kills_at_a_rename_goes_on(digits, small, tmp_path, calls, renamed):
    run = tmp_path / "run"
    kill = f"inject=/^rename:signal=KILL:when={number_of(calls, 'rename', renamed)}"
    flags = "-e", "trace=/^rename", "-e", kill
    done, killed = traced(small_words(digits, run), tmp_path, *flags)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert re.search(renamed, [line for line in killed if " rename" in line][-1])
    check_whole(run)
    check_finish(digits, run, small)


@SLOW
def test_on_a_disk_that_fails_from_some_moment_nothing_is_called_saved(
    digits, small, tmp_path, calls
):
    run = tmp_path / "run"
    # The first checkpoint is whole, and nothing after it.
    last = number_of(calls, "fsync", "/checkpoints>")
    flags = "-e", "trace=fsync", "-e", f"inject=fsync:error=EIO:when={last + 1}+"
    done, _ = traced(small_words(digits, run), tmp_path, *flags)
    assert done.returncode == 3, done.stderr
    # A save in each step but the first, one at the end.
    assert done.stderr.count("WARNING: ") == 4
    assert re.search("error: .*lenet5_digits.pth could not be written: Input/output", done.stderr)
    assert "Saved in" not in done.stdout
    assert "Traceback" not in done.stderr
    assert checkpoints(run) == {"step-00000001"}
    check_finish(digits, run, small)


# One owner


@pytest.mark.parametrize(
    "flags", [["--resume"], pytest.param([], marks=SLOW)], ids=["resumed", "anew"]
)
def test_a_folder_in_use_is_refused_until_its_owner_dies(digits, small, tmp_path, capfd, flags):
    run = tmp_path / "run"
    owner = fork(small_words(digits, run), tmp_path / "log", partial(at_forward, 3, hang))
    while "step-00000002" not in checkpoints(run):
        assert owner.is_alive(), (tmp_path / "log").read_text()
        time.sleep(0.001)
    assert main(small_words(digits, run, *flags)) == 6
    said = capfd.readouterr().err
    assert f"{run} is in use by process {owner.pid} on {socket.gethostname()}" in said
    owner.kill()
    owner.join()
    # A control: what was refused is allowed now, though the owner left its name behind.
    assert str(owner.pid) in (run / ".heptad-lock").read_text()
    check_finish(digits, run, small)


# Folders and clocks


@pytest.mark.parametrize("bring", [shutil.move, shutil.copytree])
def test_a_run_goes_on_in_another_place(digits, run, small, tmp_path, bring):
    moved = tmp_path / "another disk" / "renamed"
    moved.parent.mkdir()
    bring(run, moved)
    assert main(["resume", str(moved)]) == 0
    assert result_of(moved) == result_of(small)
    if run.exists():
        check_finish(digits, run, small)


def test_no_file_of_a_run_names_a_place_outside_it(digits, workplace):
    shutil.copytree(digits, "digits")
    assert main(small_words("digits", "run")) == 0
    places = [workplace, Path.home(), Path(sys.prefix), Path(heptad.__file__).parent]
    files = [path for path in Path("run").rglob("*") if path.is_file()]
    for path in files:
        assert [p for p in places if os.fsencode(p) in path.read_bytes()] == [], path
    # A control: what the user named is there, as named.
    assert sum(b'"data": "digits"' in path.read_bytes() for path in files) == 4


def set_clock(days: int) -> None:
    """Have this process believe that it is so many days later."""
    right = time.time
    time.time = lambda: right() + days * DAY_S
    time.time_ns = lambda: int(time.time() * 1e9)
    print("it is", time.time(), flush=True)


@pytest.mark.slow
def test_a_clock_that_is_set_changes_neither_durations_nor_what_is_the_latest(
    digits, small, tmp_path
):
    run = tmp_path / "run"
    words = small_words(digits, run, "--resume")
    started_at, times = time.monotonic(), []
    for days, act in ((400, KILL), (-400, KILL), (30, print)):
        prepare = partial(set_clock, days), partial(at_forward, 2, act)
        assert carry_out(words, tmp_path, *prepare) == (-9 if act is KILL else 0)
        times.append(float((tmp_path / "log").read_text().split()[2]))
        # The newer a checkpoint is, the older it looks.
        for age, name in enumerate(sorted(checkpoints(run))):
            os.utime(run / "checkpoints" / name, (times[-1] - age * DAY_S,) * 2)
    # A control: the clock was wrong in each session, and differently.
    assert times[0] > times[2] + 300 * DAY_S > times[1] + 600 * DAY_S
    assert metrics_of(run)["execution"]["resumed_from"] == [1, 2]
    assert result_of(run) == result_of(small)
    assert 0 < metrics_of(run)["train_seconds"] < metrics_of(run)["seconds"]
    assert metrics_of(run)["seconds"] < time.monotonic() - started_at
