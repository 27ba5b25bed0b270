"""Events for TensorBoard: what the run's log holds, read back with TensorBoard's own reader."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import heptad
from heptad.cli import main
from heptad.recipe import RunOptions
from heptad.records import StepReport
from killing import metrics_of, small_words


def scalars_in(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Give every point of every scalar, in the order in which they were written."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def logged(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Give the same as the run's log has it; events hold single precision."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        kind = "step" if "step" in line else "epoch"
        for name, value in line.items():
            if name not in ("step", "epoch"):
                points.setdefault(f"{kind}/{name}", []).append(
                    (line[kind], pytest.approx(value, rel=1e-6))
                )
    return points


@pytest.fixture
def words(digits, tmp_path):
    return small_words(digits, tmp_path / "run", "--tensorboard")


def test_the_events_are_the_lines_of_the_log(words, tmp_path):
    assert main(words) == 0
    found = scalars_in(tmp_path / "run")
    assert found == logged(tmp_path / "run")
    assert [step for step, _ in found["step/loss"]] == [1, 2, 3, 4]
    assert set(found) == {
        *("step/loss", "step/learning_rate"),
        *("epoch/train_loss", "epoch/test_loss", "epoch/test_accuracy"),
    }


def test_a_run_is_equal_with_events_or_without(words, small, tmp_path, capsys):
    assert main(words) == 0
    assert metrics_of(tmp_path / "run")["digest"] == metrics_of(small)["digest"]
    assert not list(small.glob("events*"))
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert "for TensorBoard" in capsys.readouterr().out


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_resume_doubles_no_point(digits, tmp_path, stop_at):
    recipe = heptad.load_recipe("lenet5", data=str(digits), epochs=2, limit=64, batch_size=32)
    options = RunOptions(out=str(tmp_path / "run"), checkpoint_every="1", tensorboard=True)
    with closing(heptad.run(recipe, options)) as events:
        for event in events:
            if isinstance(event, StepReport) and event.step == stop_at:
                break
    before = scalars_in(tmp_path / "run")["step/loss"]
    assert [step for step, _ in before] == list(range(1, stop_at + 1))
    heptad.train(recipe, options.changed(resume=True))
    assert scalars_in(tmp_path / "run") == logged(tmp_path / "run")
    assert len(list((tmp_path / "run").glob("events*"))) == 1


def test_events_that_cannot_be_written_cost_a_warning_alone(words, tmp_path, capsys):
    (tmp_path / "run" / "events.out.tfevents.1.heptad").mkdir(parents=True)
    assert main(words) == 0
    assert "cannot be written: Is a directory; the training goes on" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "run")]) == 0
