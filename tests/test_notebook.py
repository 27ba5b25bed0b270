"""Heptad in a notebook and a Python shell: what a run looks like, the bar, and how one stops it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest
from torch.optim.optimizer import register_optimizer_step_pre_hook

import heptad
from heptad.interactive import train
from heptad.recipe import RunOptions
from killing import checkpoints, metrics_of, result_of

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
ONE_THREAD = RunOptions(threads=1)


@pytest.fixture
def recipe(digits):
    return heptad.load_recipe("lenet5", data=str(digits), epochs=2, batch_size=32)


class Cells(HTMLParser):
    """The texts of a page's cells, and the addresses of its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.pictures: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])

    def handle_data(self, data):
        self.cells.append(data)


def test_a_run_shows_itself_as_a_table_with_its_picture(recipe, workplace):
    run = train(recipe, ONE_THREAD.changed(out="<b>run"))
    shown = Cells(run._repr_html_())
    metrics = metrics_of(run.folder)
    low, high = (100 * bound for bound in metrics["test_accuracy_interval"])
    accuracy = f"{100 * metrics['test_accuracy']:.2f} %, 95 % interval {low:.2f} to {high:.2f}"
    assert accuracy in shown.cells
    assert "<b>run" in shown.cells
    assert [address[:22] for address in shown.pictures] == ["data:image/png;base64,"]
    assert shown.tags == {"table", "tr", "th", "td", "img"}


def test_a_run_without_its_picture_shows_the_table_alone(recipe, workplace):
    run = train(recipe.changed(limit=64), ONE_THREAD)
    (run.folder / "lenet5_digits.png").unlink()
    assert Cells(run._repr_html_()).pictures == []


def test_progress_is_a_line_an_epoch_outside_notebooks(recipe, workplace, capsys):
    run = train(recipe, ONE_THREAD, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert f"{100 * run.scores.accuracy:.2f} %" in lines[-1]
    train(recipe.changed(seed=1), ONE_THREAD)
    assert capsys.readouterr().out == ""


@contextmanager
def interrupted_at(number: int, *, times: int = 1) -> Iterator[None]:
    """Send this process SIGINT right before the n-th step of an optimizer."""
    count = iter(range(1, 1000))

    def interrupt(*_) -> None:
        if next(count) == number:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    handle = register_optimizer_step_pre_hook(interrupt)
    try:
        yield
    finally:
        handle.remove()


def test_an_interrupt_saves_and_the_run_goes_on_to_the_bit(recipe, workplace):
    straight = train(recipe, ONE_THREAD.changed(out="straight"))
    said = r"after step 5; `heptad resume run` goes on"
    with interrupted_at(5), pytest.raises(KeyboardInterrupt, match=said):
        train(recipe, ONE_THREAD.changed(out="run"))
    assert checkpoints(Path("run")) == {"step-00000005"}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run = train(recipe, ONE_THREAD.changed(out="run", resume=True))
    assert run.metrics["execution"]["resumed_from"] == [5]
    assert result_of(run.folder) == result_of(straight.folder)


def test_a_second_interrupt_stops_at_once(recipe, workplace):
    with interrupted_at(5, times=2), pytest.raises(KeyboardInterrupt) as raised:
        train(recipe, ONE_THREAD.changed(out="run"))
    assert "resume" not in str(raised.value)
    assert checkpoints(Path("run")) == set()


def test_a_handler_that_is_not_pythons_own_is_left_alone(recipe, workplace):
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        with interrupted_at(3):
            assert train(recipe, ONE_THREAD).metrics
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [True]


def test_a_training_in_another_thread_takes_over_no_signal(recipe, workplace):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(train(recipe, ONE_THREAD)))
    thread.start()
    thread.join()
    assert runs[0].metrics["test_images"] == 200


@pytest.fixture
def kernel(mnist, workplace, monkeypatch):
    """Executes a notebook in a kernel of its own, in an empty folder, with these tests' cache."""
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    monkeypatch.setenv("PYTHONWARNINGS", "ignore")

    def execute(notebook):
        client = nbclient.NotebookClient(
            notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": "."}}
        )
        client.execute()
        return notebook

    execute.read = lambda path: nbformat.read(path, as_version=4)
    execute.cells = lambda *sources: nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources]
    )
    return execute


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_quickstart_runs_from_top_to_bottom(kernel):
    notebook = kernel.read(QUICKSTART)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    train_cell, predict_cell, _, report_cell = [
        cell for cell in kernel(notebook).cells if cell.cell_type == "code"
    ]
    shown = "".join(
        output["data"].get("text/html", "") for output in train_cell.outputs if "data" in output
    )
    assert "epoch 3: loss" in shown
    assert "95 % interval" in shown
    assert predict_cell.outputs[0]["text"].startswith("It is 6.\n")
    assert "report.html" in report_cell.outputs[0]["data"]["text/plain"]
    assert (Path("runs/lenet5-1") / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_stop_button_of_a_notebook_saves(kernel):
    """The kernel is sent what the button sends, in the midst of a training of many epochs."""
    source = (
        "import os, pathlib, signal, threading, time, heptad\n"
        "log = pathlib.Path('run/metrics.jsonl')\n"
        "def stop():\n"
        "    while not (log.exists() and log.stat().st_size):\n"
        "        time.sleep(0.05)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "recipe = heptad.load_recipe('lenet5', epochs=1000, limit=2000)\n"
        "threading.Thread(target=stop).start()\n"
        "try:\n"
        "    heptad.train(recipe, heptad.RunOptions(out='run'), progress=True)\n"
        "except KeyboardInterrupt as stop:\n"
        "    print(stop)\n"
    )
    (cell,) = kernel(kernel.cells(source)).cells
    said = "".join(output.get("text", "") for output in cell.outputs)
    assert "`heptad resume run` goes on" in said
    assert "<progress" in str(cell.outputs)
    assert len(checkpoints(Path("run"))) >= 1
