"""A run that was stopped or killed goes on to the bit: the same weights, log, metrics, pictures."""

from __future__ import annotations

import os
import random
import shutil
import signal
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

import heptad
from heptad.cli import main
from heptad.recipe import RunOptions
from heptad.records import EpochReport
from killing import (
    at_file_call,
    at_forward,
    checkpoints,
    fork,
    killed_again_and_again,
    leftovers,
    metrics_of,
    result_of,
    send,
    small_words,
    train_words,
)

KILL = partial(send, signal.SIGKILL)
TERMINATE = partial(send, signal.SIGTERM)


@pytest.mark.parametrize("seed", range(2))
def test_a_run_that_is_killed_at_random_moments_ends_as_if_it_never_was(
    digits, straight, tmp_path, seed
):
    run = tmp_path / "run"
    words = train_words(digits, run, "--resume")
    draws = random.Random(seed)
    codes = list(killed_again_and_again(words, run, tmp_path / "log", draws, most_kills=5))
    print("seed", seed, "codes", codes, "from steps", metrics_of(run)["execution"]["resumed_from"])
    assert result_of(run) == result_of(straight)
    assert leftovers(run) == []
    # A control: the kills were real, and the resumes began in the middle.
    assert codes.count(-9) >= 1
    assert all(step > 0 for step in metrics_of(run)["execution"]["resumed_from"])
    assert len(metrics_of(run)["execution"]["resumed_from"]) >= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_many_kills_none_changes_a_bit(digits, straight, tmp_path):
    """HEPTAD_KILLS sets how many, HEPTAD_SEED the moments: a failure can be tried again."""
    most_kills = int(os.environ.get("HEPTAD_KILLS", "40"))
    seed = int(os.environ.get("HEPTAD_SEED", random.randrange(1 << 32)))
    print("HEPTAD_SEED", seed)
    draws, num_kills, resumed_from = random.Random(seed), 0, []
    while num_kills < most_kills:
        run = tmp_path / f"after-{num_kills}"
        words = train_words(digits, run, "--resume")
        left = most_kills - num_kills
        codes = list(killed_again_and_again(words, run, tmp_path / "log", draws, most_kills=left))
        assert result_of(run) == result_of(straight)
        assert leftovers(run) == []
        num_kills += codes.count(-9)
        resumed_from += metrics_of(run)["execution"]["resumed_from"]
    print("kills", num_kills, "from steps", resumed_from)
    # A control: every kill came in time, and each was followed by a resume in the middle.
    assert len(resumed_from) == num_kills == most_kills
    assert min(resumed_from) > 0


def test_a_run_that_is_left_again_and_again_ends_as_if_it_never_was(digits, small, tmp_path):
    recipe = heptad.load_recipe("lenet5", data=str(digits), epochs=2, batch_size=32, limit=64)
    options = heptad.RunOptions(out=str(tmp_path / "run"), resume=True, threads=1)
    seen, last = set(), None
    for _ in range(4):
        events = heptad.run(recipe, options)
        # What was prepared, and three reports: of steps, scored batches, epochs.
        *_, last = islice(events, 4)
        events.close()
        seen |= checkpoints(tmp_path / "run")
    assert isinstance(last, heptad.Run)
    assert result_of(tmp_path / "run") == result_of(small)
    # A control: it was left in the midst of an evaluation, and of an epoch.
    assert {"step-00000002-test-00000032", "step-00000003"} <= seen


def with_epochs(words: list[str], num_epochs: int) -> list[str]:
    place = words.index("--epochs") + 1
    return [*words[:place], str(num_epochs), *words[place + 1 :]]


def test_a_run_goes_on_for_more_epochs_as_if_they_had_been_asked_for_at_once(
    digits, small, tmp_path
):
    once, twice = tmp_path / "once" / "run", tmp_path / "twice" / "run"
    assert main(with_epochs(small_words(digits, once), 4)) == 0
    assert main(small_words(digits, twice)) == 0
    # A control: it was another run until then.
    assert result_of(twice) == result_of(small) != result_of(once)
    assert main(with_epochs(small_words(digits, twice, "--resume"), 4)) == 0
    assert result_of(twice) == result_of(once)
    assert metrics_of(twice)["execution"]["resumed_from"] == [4]


# The larger networks


def larger_words(name: str, digits: Path, out: Path, *more: str) -> list[str]:
    """Give the words of a run of two epochs of three steps, a checkpoint after each step."""
    words = ["train", name, "--data", str(digits), "--weights", "none", "--limit", "40"]
    words += ["--batch-size", "16", "--epochs", "2", "--checkpoint-every", "1", "--threads", "1"]
    return [*words, "--save", "trained-part", "--out", str(out), *more]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags", "trunk"),
    [
        ("resnet50", [], "trunk that ends before fc"),
        ("resnet50", ["--batchnorm", "drifting"], "no trunk: BatchNorm moves in it"),
        # Dropout draws in what follows.
        ("vgg16", [], "trunk that ends after classifier.1"),
    ],
    ids=["on features", "drifting", "Dropout"],
)
def test_a_larger_network_that_is_killed_goes_on_to_the_bit(digits, tmp_path, name, flags, trunk):
    straight, run = tmp_path / "straight" / "run", tmp_path / "run"
    words = larger_words(name, digits, straight, "--image-size", "32", *flags)
    assert main(words) == 0
    words = larger_words(name, digits, run, "--image-size", "32", *flags)
    call = "rename checkpoints/.step-00000005.part"
    process = fork(
        words, tmp_path / "log", partial(at_file_call, call, KILL, run, tmp_path / "noted")
    )
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert main([*words, "--resume"]) == 0
    assert result_of(run) == result_of(straight)
    assert metrics_of(run)["execution"]["resumed_from"] == [4]
    assert metrics_of(run)["trunk"] == trunk


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# 40 training and 40 test images of 128 px pass the trunk in batches of 32, 32 and 16; what a pass
# has computed is kept once a minute, and when it is stopped.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "code", "num_computed"),
    [
        (partial(at_forward, 2, KILL, training=False), -9, 80),
        (partial(at_forward, 2, TERMINATE, training=False), 143, 16),
    ],
    ids=["killed", "stopped"],
)
def test_a_pass_of_the_trunk_that_was_cut_off_is_made_good(
    digits, tmp_path, monkeypatch, own_cache, place, code, num_computed
):
    straight, run, log = tmp_path / "straight" / "run", tmp_path / "run", tmp_path / "log"
    size = ("--image-size", "128")
    assert main(larger_words("resnet50", digits, straight, *size)) == 0
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "another"))
    process = fork(larger_words("resnet50", digits, run, *size), log, place)
    process.join()
    assert process.exitcode == code, log.read_text()
    assert not (run / "recipe.json").exists()
    assert main(larger_words("resnet50", digits, run, *size, "--resume")) == 0
    assert result_of(run) == result_of(straight)
    assert metrics_of(run)["execution"]["computed_features"] == num_computed


@pytest.mark.parametrize("how", ["another folder", "another name"])
def test_a_run_goes_on_when_its_start_weights_were_moved(small, digits, workplace, capsys, how):
    shutil.copytree(small, "start")
    words = ["--data", str(digits), "--limit", "64", "--epochs", "3", "--threads", "1"]
    recipe = heptad.load_recipe(
        "lenet5", data=digits, weights="start/lenet5_digits.pth", limit=64, epochs=3
    )
    with closing(heptad.run(recipe, RunOptions(out="run", threads=1))) as events:
        for event in events:
            if isinstance(event, EpochReport):
                break
    place = Path("elsewhere/lenet5_digits.pth" if how == "another folder" else "start/own.pth")
    place.parent.mkdir(exist_ok=True)
    Path("start/lenet5_digits.pth").rename(place)
    assert main(["resume", "run"]) == 2
    assert "a relative path is looked for from the working directory" in capsys.readouterr().err
    other = torch.load(place, weights_only=True)
    torch.save(other | {"fc3.bias": other["fc3.bias"] + 1}, "other.pth")
    assert main(["resume", "run", "--weights", "other.pth"]) == 2
    assert "the start weights are not those" in capsys.readouterr().err
    assert main(["resume", "run", "--weights", str(place)]) == 0
    assert main(["train", "lenet5", *words, "--weights", str(place), "--out", "straight"]) == 0
    for name in ("lenet5_digits.pth", "metrics.jsonl"):
        assert Path("run", name).read_bytes() == Path("straight", name).read_bytes()
