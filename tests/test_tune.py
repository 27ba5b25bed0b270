"""A search: what is drawn, that a trial is a training, that nothing is lost, what is left."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import signal
import sys
from contextlib import closing
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from PIL import Image
from torch import nn

import heptad
from heptad.architectures import ARCHITECTURES, Architecture
from heptad.cli import main
from heptad.cli.streams import PlainConsole
from heptad.cli.tuning import show_tuned
from heptad.errors import (
    DamagedError,
    FrozenError,
    HeptadError,
    MissingError,
    NotFiniteError,
    OutputError,
    RecipeError,
    RunError,
    WeightsError,
)
from heptad.recipe import RunOptions
from heptad.records import EpochReport, EvaluationReport, Figures, StepReport
from heptad.reuse import TRAINING_FIELDS, again
from heptad.tuning.ranges import Choices, Numbers, parted, read_range
from heptad.tuning.reports import SearchPrepared, TrialStart
from heptad.tuning.search import best_of
from heptad.tuning.study import Study
from killing import at_forward, fork, metrics_of, send

RANGES = {"learning_rate": "1e-4..1e-1", "optimizer": "adam,sgd", "batch_size": "8..64"}
FORKING = pytest.mark.skipif(sys.platform != "linux", reason="forks and signals as in Linux")
TABLE, BEST, SEARCH, JOURNAL = "trials.csv", "best.toml", "search.json", "trials.journal"


@pytest.fixture
def recipe(digits):
    return heptad.load_recipe("lenet5", data=str(digits), limit=80, epochs=2)


class Pooling(nn.Module):
    """A network for images of any size; optionally one that counts them where nothing may move."""

    def __init__(self, num_channels, num_classes, *, is_counting=False):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.fc = nn.Linear(16 * num_channels, num_classes)
        self.is_counting = is_counting
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs):
        if self.is_counting:
            self.seen += len(inputs)
        return self.fc(self.pool(inputs).flatten(1))


class Normed(Pooling):
    """The same behind BatchNorm, which needs two images in every batch."""

    def __init__(self, num_channels, num_classes):
        super().__init__(num_channels, num_classes)
        self.norm = nn.BatchNorm2d(num_channels)

    def forward(self, inputs):
        return super().forward(self.norm(inputs))


def register(monkeypatch, name, build) -> None:
    entry = Architecture(name, build, "fc", channels=(1, 3), image_sizes=range(8, 65))
    monkeypatch.setitem(ARCHITECTURES, name, entry)


@pytest.fixture
def pooling(monkeypatch):
    register(monkeypatch, "pooling", Pooling)


def options(folder, **more) -> RunOptions:
    return RunOptions(out=str(folder), threads=1, **more)


def tuned(recipe, folder, ranges=RANGES, num_trials=4, **more) -> heptad.Tuned:
    *_, result = heptad.tune(recipe, ranges, num_trials=num_trials, options=options(folder, **more))
    return result


def trials_of(recipe, folder, ranges=RANGES, num_trials=4, **more) -> list[heptad.Trial]:
    """The trials of a search that is closed before its end, which would take time to draw."""
    with closing(
        heptad.tune(recipe, ranges, num_trials=num_trials, options=options(folder, **more))
    ) as events:
        found = []
        for event in events:
            if isinstance(event, heptad.TrialReport):
                found.append(event.trial)
                if event.trial.number == num_trials:
                    break
        return found


def rows_of(folder) -> list[dict[str, str]]:
    with (folder / TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def words(recipe, folder, *more) -> list[str]:
    flags = [w for name, text in RANGES.items() for w in (f"--{name.replace('_', '-')}", text)]
    own = ["--data", recipe.data, "--limit", str(recipe.limit), "--epochs", str(recipe.epochs)]
    return ["tune", "lenet5", *own, *flags, "--threads", "1", "--out", str(folder), *more]


# What is searched


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("learning_rate", "1e-4..1e-1", Numbers(0.0001, 0.1)),
        ("batch_size", "16..256", Numbers(16, 256)),
        ("patience", "2..5", Numbers(2, 5)),
        ("optimizer", "adam,sgd", Choices(("adam", "sgd"))),
        ("batch_size", "32, 64", Choices((32, 64))),
        ("channels", "1,3", Choices((1, 3))),
        ("patience", "none,3", Choices((None, 3))),
    ],
)
def test_a_range_is_read_as_its_field_reads_values(name, text, expected):
    found = read_range(name, text)
    assert found == expected
    assert [*map(type, found.ends)] == [*map(type, expected.ends)]


def test_tenfold_is_searched_by_the_logarithm_and_less_evenly():
    assert read_range("learning_rate", "1e-3..1e-2").is_logarithmic
    assert read_range("batch_size", "16..160").is_logarithmic
    assert not read_range("batch_size", "16..64").is_logarithmic
    # Nought has no logarithm.
    assert not read_range("weight_decay", "0..0.1").is_logarithmic


def test_numbers_drawn_can_be_typed_as_they_are_printed_and_stay_in_their_range():
    found = Numbers(0.00012344, 0.12344)
    assert found.settled(0.00345678) == 0.003457
    assert found.settled(0.00012344) == 0.00012344
    # To four digits that is 0.1234, which lies inside; this would be 0.1235.
    assert Numbers(0.1, 0.12346).settled(0.12346) == 0.12346


def test_fixed_values_are_told_from_ranges(workplace):
    (workplace / "a,b.pth").touch()
    given = {
        "learning_rate": "1e-4..1e-1",
        "epochs": "3",
        "weights": "a,b.pth",
        "data": "../digits",
        "float_range": "0,1",
        "optimizer": "adam,sgd",
        "drop_leaks": True,
    }
    fixed, ranges = parted(given)
    assert set(ranges) == {"learning_rate", "optimizer"}
    assert fixed == {name: value for name, value in given.items() if name not in ranges}


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({}, "nothing is to be searched"),
        ({"learning_rate": "0..1"}, "learning_rate is 0; allowed: a finite number, above 0."),
        ({"weight_decay": "0..1"}, "weight_decay is 1; allowed: a finite number, at least 0, be"),
        ({"learning_rate": "1e-2..1e-3"}, "whose first number is not the smaller one"),
        ({"learning_rate": "1e-3..1e-3"}, "whose first number is not the smaller one"),
        ({"learning_rate": "1e-3..inf"}, "learning_rate is inf"),
        ({"learning_rate": "1e-3.."}, "learning_rate is empty"),
        ({"learning_rate": "1..2..3"}, "learning_rate is 2..3"),
        ({"learning_rate": "0.1"}, "allowed to search in: LOW..HIGH or choices with commas"),
        ({"batch_size": "16.5..64"}, "batch_size is 16.5; allowed: a whole number"),
        ({"patience": "none..3"}, "allowed as a range: two numbers"),
        ({"channels": "1..3"}, "channels is 1..3; allowed: 1, 3."),
        ({"optimizer": "adam,adamm"}, "optimizer is adamm; allowed: adam, adamw, sgd. Did you"),
        ({"optimizer": "adam,"}, "optimizer is empty"),
        ({"optimizer": "adam,sgd,adam"}, "names adam twice"),
        ({"optimiser": "adam,sgd"}, "there is no setting 'optimiser'. Did you mean 'optimizer'?"),
        ({"seed": "0..9"}, "seed is 0..9, but it decides which images"),
        ({"limit": "100..200"}, "limit is 100..200, but it decides which images"),
        ({"data": "mnist,kmnist"}, "data is mnist,kmnist, but it decides which images"),
        ({"validation": "0.1..0.3"}, "validation is 0.1..0.3, but it decides which images"),
        ({"on_bad_image": "error,skip"}, "on_bad_image is error,skip, but it decides"),
        # What the recipe as a whole refuses, whatever is drawn.
        ({"weight_decay": "1e-4..1e-2"}, "which adam divides by each gradient's"),
        ({"patience": "2..5"}, "patience is 2, but there is no validation"),
        ({"image_size": "8..64"}, "image_size is 8"),
        ({"batchnorm": "frozen,drifting"}, "batchnorm is drifting, but lenet5"),
    ],
)
def test_what_cannot_be_searched_is_said_before_any_work(recipe, workplace, ranges, said):
    with pytest.raises(RecipeError, match=re.escape(said)):
        next(heptad.tune(recipe, ranges))
    assert not [*workplace.iterdir()]


def test_settings_that_do_not_go_together_are_drawn_again(recipe, workplace):
    ranges = {"optimizer": "adam,adamw,sgd", "weight_decay": "0..0.1"}
    trials = trials_of(recipe.changed(epochs=1), workplace / "s", ranges, num_trials=8)
    assert [trial.outcome for trial in trials] == ["complete"] * 8
    assert {trial.settings["optimizer"] for trial in trials} == {"adamw", "sgd"}
    refused = [reason for trial in trials for reason in trial.refused]
    assert refused
    assert all("which adam divides" in reason for reason in refused)


def test_choices_that_differ_in_the_fifth_digit_are_other_choices_in_what_is_kept(
    recipe, workplace
):
    choices = {"learning_rate": "0.00123401,0.00123404"}
    tuned(recipe.changed(epochs=1), workplace / "s", choices, num_trials=2)
    assert json.loads(Path("s", SEARCH).read_bytes())["ranges"] == choices
    rows = [*csv.DictReader(Path("s", TABLE).read_text().splitlines())]
    assert {float(row["learning_rate"]) for row in rows} <= {0.00123401, 0.00123404}


def test_a_narrow_range_is_not_searched_at_its_ends_alone(recipe, workplace):
    ranges = {"averaging": "0.9999..0.99999"}
    trials = trials_of(recipe.changed(epochs=1), workplace / "s", ranges, num_trials=5)
    assert len({trial.settings["averaging"] for trial in trials}) == 5


def test_negative_numbers_are_numbers_in_the_table(recipe, workplace):
    trials = trials_of(recipe.changed(epochs=1), workplace / "s", {"mean": "-0.5..-0.1"}, 2)
    rows = [*csv.DictReader(Path("s", TABLE).read_text().splitlines())]
    assert [float(row["mean"]) for row in rows] == [trial.settings["mean"] for trial in trials]


def test_settings_that_were_tried_before_are_not_trained_again(recipe, workplace):
    ranges = {"optimizer": "adam,sgd"}
    events = [*heptad.tune(recipe, ranges, num_trials=7, options=options("s"))]
    assert sum(isinstance(event, TrialStart) for event in events) == 2
    repeating = [trial for trial in events[-1].trials if trial.repeats]
    assert len(repeating) == 5
    for trial in repeating:
        first = events[-1].trials[trial.repeats - 1]
        assert (first.settings, first.epochs) == (trial.settings, trial.epochs)
        assert first.repeats is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranges",
    [
        {"views": "none,2", "learning_rate": "1e-3..1e-2"},
        {"views": "none,2", "batch_size": "16..64"},
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_prepared_does_not_end_a_search(recipe, workplace, ranges):
    shifted = recipe.changed(shift=0.1, epochs=1, limit=40)
    trials, prepared = [], 0
    with closing(heptad.tune(shifted, ranges, num_trials=8, options=options("s"))) as events:
        while len(trials) < 8:
            event = next(events)
            prepared += isinstance(event, SearchPrepared)
            trials += [event.trial] if isinstance(event, heptad.TrialReport) else []
    assert {trial.settings["views"] for trial in trials} == {None}
    refused = [reason for trial in trials for reason in trial.refused]
    # More often than once, for which it ended before.
    assert len(refused) > 2
    assert all(reason.startswith("views is 2, but there is no trunk") for reason in refused)
    # However often the first choice was refused, and all was prepared anew after it.
    assert prepared == 1


def test_what_no_trial_can_be_prepared_with_ends_a_search_soon(recipe, workplace, monkeypatch):
    """Weights of another network are refused for every trial; a hundred were prepared for it."""
    torch.save({"conv.weight": torch.zeros(3, 3)}, "other.pth")
    draws = []
    monkeypatch.setattr(Study, "refuse", lambda _, drawn: draws.append(drawn.settings))
    with pytest.raises(WeightsError, match=r"other\.pth"):
        tuned(recipe.changed(weights="other.pth"), "s")
    # Both optimizers must have been drawn.
    assert len(draws) < 10
    assert not (workplace / "s").exists()


def test_a_lone_image_ends_a_search_if_all_trials_have_one_and_else_is_drawn_around(
    recipe, workplace, monkeypatch
):
    register(monkeypatch, "normed", Normed)
    # 80 images, 17 of them to validate on.
    normed, ranges = recipe.changed(architecture="normed", batch_size=62), {"optimizer": "adam,sgd"}
    with pytest.raises(RecipeError, match="batch_size is 62, which leaves one of 63 images alone"):
        tuned(normed, "s", ranges | {"learning_rate": "1e-3..1e-2"})
    assert not (workplace / "s").exists()
    trials = trials_of(normed, "t", {"batch_size": "31,32", "learning_rate": "1e-3..1e-2"})
    assert {trial.settings["batch_size"] for trial in trials} == {32}
    assert "leaves one of 63" in next(reason for trial in trials for reason in trial.refused)


# What a trial is


def trial_epochs(events, number) -> list[EpochReport]:
    """The epochs of one trial of a search."""
    epochs, place = [], 0
    for event in events:
        if isinstance(event, TrialStart):
            place = event.number
        elif isinstance(event, EpochReport) and place == number:
            epochs.append(event)
    return epochs


def is_end_of(event, number) -> bool:
    return isinstance(event, heptad.TrialReport) and event.trial.number == number


def check_equals_training(recipe, ranges, *, number) -> None:
    """A trial in the midst of a search equals `heptad train` with its recipe, to the bit."""
    with closing(heptad.tune(recipe, ranges, num_trials=number + 1, options=options("s"))) as all_:
        events = [*takewhile(lambda event: not is_end_of(event, number + 1), all_)]
    [start] = [e for e in events if isinstance(e, TrialStart) and e.number == number]
    assert start.recipe == recipe.changed(**start.settings, validation=0.2)
    run = heptad.train(start.recipe, options("run"))
    in_search = trial_epochs(events, number)
    assert [e.step_losses for e in in_search] == [e.step_losses for e in run.epochs]
    assert [e.scores for e in in_search] == [e.scores for e in run.epochs]
    [trial] = [event.trial for event in events if is_end_of(event, number)]
    assert [e.scores for e in in_search] == [*trial.epochs]
    assert len(in_search) == start.recipe.epochs


def test_a_trial_of_lenet5_is_a_training(recipe, workplace):
    ranges = RANGES | {"schedule": "cosine,one-cycle", "class_weights": "none,balanced"}
    ranges |= {"averaging": "0.5,0.9", "gradient_clip": "none,0.5", "label_smoothing": "0..0.2"}
    check_equals_training(recipe, ranges | {"layer_decay": "0.5..1"}, number=3)


def test_a_trial_with_other_images_is_a_training(recipe, workplace):
    ranges = {"normalize": "recipe,data", "image_size": "28,32", "learning_rate": "1e-3..1e-2"}
    check_equals_training(recipe, ranges, number=3)


@pytest.mark.slow
def test_a_trial_on_features_is_a_training(digits, workplace):
    recipe = heptad.load_recipe(
        "resnet50", data=str(digits), weights="none", image_size=32, limit=60, epochs=2
    )
    check_equals_training(recipe, RANGES, number=3)


@pytest.mark.slow
@pytest.mark.parametrize("batchnorm", ["recalibrated", "drifting"])
def test_a_trial_under_every_policy_of_batchnorm_is_a_training(digits, workplace, batchnorm):
    recipe = heptad.load_recipe(
        "resnet50",
        data=str(digits),
        weights="none",
        image_size=32,
        limit=40,
        epochs=2,
        batchnorm=batchnorm,
    )
    ranges = {"learning_rate": "1e-4..1e-1", "batch_size": "8,16"}
    check_equals_training(recipe, ranges, number=3)


def test_a_cycle_begins_again_for_other_training_fields_alone(recipe):
    cycle = heptad.prepare(recipe)
    start = {name: value.clone() for name, value in cycle.moved().items()}
    first = [report.train_loss for report in heptad.epochs(cycle)]
    second = [report.train_loss for report in heptad.epochs(again(cycle, recipe, start))]
    assert first == second
    assert set(heptad.Recipe.model_fields) > TRAINING_FIELDS
    with pytest.raises(RecipeError, match="image_size is 28, but the cycle was prepared with 32"):
        again(cycle, recipe.changed(image_size=28), start)


def test_the_test_images_are_never_scored(recipe, workplace):
    ranges = {"learning_rate": "1e-4..1e-1", "patience": "1..2"}
    events = [*heptad.tune(recipe.changed(validation=0.3), ranges, num_trials=8)]
    scored = [event for event in events if isinstance(event, EvaluationReport)]
    assert {event.part for event in scored} == {"validation"}
    # 0.3 of 80, rounded within each class.
    assert {event.num_images for event in scored} == {23}


def test_a_trial_is_judged_by_the_epoch_that_a_training_ends_with(recipe, workplace):
    ranges = {"learning_rate": "1e-2..3e-2"}
    for own, epoch_of in ((0, lambda ranks: len(ranks) - 1), (0.2, lambda r: r.index(max(r)))):
        longer = recipe.changed(epochs=5, validation=own, optimizer="sgd")
        for trial in trials_of(longer, workplace / f"s{own}", ranges):
            ranks = [(figures.num_correct, -figures.loss) for figures in trial.epochs]
            assert trial.judged == epoch_of(ranks) + 1


@pytest.mark.slow
def test_trials_that_fall_behind_are_given_up_but_not_out_of_step(recipe, workplace):
    longer, ranges = recipe.changed(epochs=4, batch_size=16), {"learning_rate": "1e-6..1e-2"}
    trials = trials_of(longer, workplace / "s", ranges, num_trials=12)
    pruned = [trial for trial in trials if trial.outcome == "pruned"]
    assert pruned
    for trial in pruned:
        assert trial.number > 5
        assert 2 <= len(trial.epochs) < 4
        assert trial.figures is None
    assert [row["outcome"] for row in rows_of(workplace / "s")].count("pruned") == len(pruned)
    trials = trials_of(longer, workplace / "t", ranges | {"epochs": "2..4"}, num_trials=12)
    assert {trial.outcome for trial in trials} == {"complete"}


def test_a_trial_that_is_not_finite_does_not_end_the_search(recipe, workplace):
    ranges = {"learning_rate": "1e-3..1e30", "optimizer": "sgd,adam"}
    trials = trials_of(recipe, workplace / "s", ranges, num_trials=6)
    lost = [trial for trial in trials if trial.outcome == "not finite"]
    assert 0 < len(lost) < 6
    assert all("step" in trial.reason for trial in lost)
    with pytest.raises(NotFiniteError, match="none of the 2 trials came to its end"):
        tuned(
            recipe.changed(optimizer="sgd"),
            workplace / "t",
            {"learning_rate": "1e30..1e35"},
            num_trials=2,
        )


def test_a_search_in_which_something_frozen_moves_ends_as_a_training_does(
    recipe, workplace, monkeypatch
):
    register(monkeypatch, "counting", partial(Pooling, is_counting=True))
    moving = recipe.changed(architecture="counting", epochs=1)
    with pytest.raises(FrozenError, match="1 frozen parameters or buffers moved, seen among them"):
        tuned(moving, "s", num_trials=2)
    # Before another preparation, too: found after the first trial, not after the last.
    with pytest.raises(FrozenError, match="seen among them"):
        trials_of(moving, "t", {"image_size": "8..64"}, num_trials=9)
    assert len((workplace / "t" / JOURNAL).read_text().splitlines()) == 2


# What is left behind


def test_the_best_trial_is_a_recipe_that_trains_on_all_images(recipe, workplace, capsys):
    result = tuned(recipe, workplace / "s")
    best = heptad.load_recipe(workplace / "s" / BEST)
    assert best == result.recipe
    assert best == recipe.changed(**result.best.settings, name="lenet5-tuned")
    assert best.validation == 0
    ranks = [(t.figures.num_correct, -t.figures.loss) for t in result.trials]
    assert result.best.number == ranks.index(max(ranks)) + 1
    assert main(["train", str(workplace / "s" / BEST), "--no-report"]) == 0
    assert metrics_of(workplace / "runs/lenet5-tuned-1")["execution"]["rank_images"] == [80]


def test_the_folder_holds_a_table_a_picture_and_what_was_searched(recipe, workplace):
    result = tuned(recipe, workplace / "s")
    rows = rows_of(workplace / "s")
    assert [row["trial"] for row in rows] == ["1", "2", "3", "4"]
    for row, trial in zip(rows, result.trials, strict=True):
        assert float(row["learning_rate"]) == trial.settings["learning_rate"]
        assert math.isclose(float(row["validation_accuracy"]), trial.figures.num_correct / 17)
    assert json.loads((workplace / "s" / SEARCH).read_text())["ranges"] == {
        "optimizer": "adam,sgd",
        "learning_rate": "0.0001..0.1",
        "batch_size": "8..64",
    }
    with Image.open(workplace / "s" / "trials.png") as picture:
        assert picture.width > 1000
    assert sorted(path.name for path in (workplace / "s").iterdir()) == sorted(
        [".heptad-lock", BEST, SEARCH, TABLE, JOURNAL, "trials.png"]
    )


def test_optuna_reads_the_journal(recipe, workplace):
    trials = trials_of(recipe, workplace / "s")
    backend = optuna.storages.journal.JournalFileBackend(str(workplace / "s" / JOURNAL))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.load_study(study_name="lenet5", storage=storage)
    assert study.best_value == max(t.figures.num_correct for t in trials) / 17
    assert [t.params["optimizer"] for t in study.trials] == [
        t.settings["optimizer"] for t in trials
    ]


def test_runs_and_searches_keep_out_of_one_anothers_folders(recipe, workplace):
    heptad.train(recipe, options("run"))
    with pytest.raises(OutputError, match="holds a run already"):
        tuned(recipe, "run", resume=True)
    trials_of(recipe, "s", num_trials=1)
    for resume in (False, True):
        with pytest.raises(OutputError, match="holds a search"):
            heptad.train(recipe, options("s", resume=resume))
    with pytest.raises(OutputError, match="holds a search already"):
        tuned(recipe, "s")
    assert main(["export", "run", "--out", "s/best.toml", "--format", "safetensors"]) == 2


@pytest.mark.parametrize("changes", [{"data": "nowhere"}, {"weights": "none.pth"}])
def test_a_search_that_fails_before_its_first_trial_leaves_no_folder(recipe, workplace, changes):
    with pytest.raises(HeptadError, match=r"nowhere|none\.pth"):
        list(heptad.tune(recipe.changed(**changes), RANGES))
    assert not [*workplace.iterdir()]


def test_trials_of_another_search_are_not_taken_for_ones_own(recipe, workplace):
    trials_of(recipe, "s", num_trials=2)
    (workplace / "s" / SEARCH).unlink()
    before = (workplace / "s" / JOURNAL).read_bytes()
    for resume in (False, True):
        with pytest.raises(OutputError, match=r"holds the trials\.journal of a search, but no"):
            tuned(recipe.changed(epochs=1), "s", {"optimizer": "adam,sgd"}, resume=resume)
    assert (workplace / "s" / JOURNAL).read_bytes() == before


@pytest.mark.parametrize(
    "command",
    [
        *("resume s", "train s", "verify s", "report s", "evaluate s", "compare s s", "export s"),
        *(
            "train lenet5 --weights s",
            "predict s s/trials.png",
            "tune s --learning-rate 1e-3..1e-2",
        ),
    ],
)
def test_a_search_where_a_run_is_meant_says_what_can_be_done_with_it(
    recipe, workplace, straight_search, capsys, command
):
    shutil.copytree(straight_search, "s")
    assert main(command.split()) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("error: s is a search of `heptad tune`, not a run.")
    assert "`heptad train s/best.toml` trains the best" in said
    assert "`--resume --out s` goes on with the search" in said


def test_the_validation_loss_is_not_mistaken_for_the_setting_called_loss(
    recipe, workplace, monkeypatch, capsys
):
    ranges = {"loss": "cross-entropy,map"}
    result = tuned(recipe.changed(epochs=1), "s", ranges, num_trials=2)
    monkeypatch.setenv("COLUMNS", "200")
    show_tuned(PlainConsole(), result)
    [heading] = [line for line in capsys.readouterr().out.splitlines() if "accuracy  " in line]
    assert re.split(r"\s{2,}", heading.strip()) == ["trial", "accuracy", "validation loss", "loss"]


# What is kept


@pytest.fixture(scope="module")
def straight_search(digits, tmp_path_factory) -> Path:
    """The folder of a search of twelve trials that nothing disturbed."""
    folder = tmp_path_factory.mktemp("search") / "s"
    tuned(heptad.load_recipe("lenet5", data=str(digits), limit=80, epochs=2), folder, num_trials=12)
    return folder


def check_same(folder, straight) -> None:
    assert (folder / TABLE).read_bytes() == (straight / TABLE).read_bytes()
    assert (folder / BEST).read_bytes() == (straight / BEST).read_bytes()


def test_a_search_that_is_closed_in_a_trial_goes_on_as_if_it_had_not_been(
    recipe, workplace, straight_search
):
    folder = workplace / "s"
    # In trials 1, 5 and, in the second session, 11: evenly drawn ones and others.
    for stop, num_steps in ((1, 2), (5, 3), (11, 1)):
        session = heptad.tune(
            recipe, RANGES, num_trials=12, options=options(folder, resume=folder.exists())
        )
        with closing(session) as events:
            place = 0
            for event in events:
                place = event.number if isinstance(event, TrialStart) else place
                num_steps -= isinstance(event, StepReport) and place == stop
                if not num_steps:
                    break
        assert len(rows_of(folder)) if stop > 1 else not (folder / TABLE).exists()
    tuned(recipe, folder, num_trials=12, resume=True)
    check_same(folder, straight_search)


@FORKING
@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_as_if_it_had_not_been(recipe, tmp_path, straight_search):
    folder, log = tmp_path / "s", tmp_path / "log"
    for number in (30, 45):
        kill = partial(at_forward, number, partial(send, signal.SIGKILL))
        process = fork(words(recipe, folder, "--trials", "12", "--resume"), log, kill)
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()
    assert not (folder / TABLE).exists()
    num_kept = len((folder / JOURNAL).read_text().splitlines()) - 1
    assert 2 <= num_kept < 12
    # As a kill in the midst of a write leaves it.
    with (folder / JOURNAL).open("a") as file:
        file.write('{"op_code": 4, "worker')
    (folder / f"{JOURNAL}.lock").symlink_to(JOURNAL)
    assert main(words(recipe, folder, "--trials", "12", "--resume", "--json")) == 0
    check_same(folder, straight_search)


def test_more_trials_go_on_where_fewer_ended(recipe, workplace, straight_search):
    trials_of(recipe, "s", num_trials=5)
    result = tuned(recipe, "s", num_trials=12, resume=True)
    check_same(workplace / "s", straight_search)
    assert [trial.number for trial in result.trials] == [*range(1, 13)]
    with pytest.raises(RecipeError, match="trials is 5, but the search in s has 12 already"):
        tuned(recipe, "s", num_trials=5, resume=True)


@pytest.mark.parametrize(
    ("changes", "ranges", "said"),
    [
        ({"epochs": 3}, {}, "epochs is 3, but the search in s has 2."),
        ({"validation": 0.5}, {}, "validation is 0.5, but the search in s has 0.2."),
        ({}, {"batch_size": "8..32"}, "batch_size is 8..32, but the search in s has 8..64."),
        ({}, {"warmup": "0..0.5"}, "warmup is 0.0..0.5, but the search in s has 0.0."),
    ],
)
def test_another_search_is_not_gone_on_with(
    recipe, workplace, straight_search, changes, ranges, said
):
    shutil.copytree(straight_search, "s")
    with pytest.raises(RecipeError, match=re.escape(said)):
        tuned(recipe.changed(**changes), "s", RANGES | ranges, num_trials=13, resume=True)


def test_a_search_does_not_go_on_with_other_images(recipe, workplace, digits):
    shutil.copytree(digits, "data")
    moved = recipe.changed(data="data")
    trials_of(moved, "s", num_trials=1)
    [labels] = (workplace / "data").glob("train-labels*")
    content = bytearray(labels.read_bytes())
    content[8:] = bytes((label + 1) % 10 for label in content[8:])
    labels.write_bytes(content)
    with pytest.raises(RunError, match="images or labels are not those that the search in s"):
        tuned(moved, "s", num_trials=2, resume=True)


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({"image_size": "28..32"}, "the images or labels are not"),
        ({"shift": "0..0.2"}, "the images or labels are not"),
        (
            {"channels": "1,3", "learning_rate": "1e-3..1e-2"},
            'the images or labels under {"channels":',
        ),
    ],
    ids=str,
)
def test_a_search_that_prepares_each_trial_anew_does_not_go_on_with_other_images(
    recipe, workplace, digits, pooling, ranges, said
):
    shutil.copytree(digits, "data")
    moved = recipe.changed(architecture="pooling", data="data", epochs=1, limit=40)
    trials_of(moved, "s", ranges, num_trials=4)
    # With the same ones it does.
    trials_of(moved, "s", ranges, num_trials=6, resume=True)
    [images] = (workplace / "data").glob("train-images*")
    content = images.read_bytes()
    images.write_bytes(content[:16] + bytes(255 - value for value in content[16:]))
    with pytest.raises(RunError, match=re.escape(said)):
        tuned(moved, "s", ranges, num_trials=20, resume=True)


def test_a_search_over_the_size_of_pictures_does_not_go_on_with_other_pictures(workplace, pooling):
    for number, name in enumerate(f"{c}/{n}.png" for c in "ab" for n in range(8)):
        write_image(workplace / "photos" / name, number)
    settings = {"architecture": "pooling", "data": "photos", "epochs": 1, "validation": 0.4}
    few = heptad.load_recipe("lenet5", **settings)
    trials_of(few, "s", {"image_size": "28..36"}, num_trials=3)
    trials_of(few, "s", {"image_size": "28..36"}, num_trials=4, resume=True)
    write_image(workplace / "photos/a/0.png", 99)
    with pytest.raises(RunError, match="the images or labels are not those that the search in s"):
        tuned(few, "s", {"image_size": "28..36"}, num_trials=5, resume=True)


def write_image(path, seed) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40), np.uint8)
    Image.fromarray(pixels).save(path)


def test_the_better_share_of_right_answers_is_the_better_trial():
    few = heptad.Trial(1, {}, "complete", (Figures(8, 10, 0.5),), 1)
    many = heptad.Trial(2, {}, "complete", (Figures(60, 100, 0.5),), 1)
    assert best_of([few, many]) is few


def test_a_search_of_before_a_field_was_there_goes_on(recipe, workplace):
    trials_of(recipe, "s", num_trials=1)
    path = workplace / "s" / SEARCH
    document = json.loads(path.read_text())
    del document["recipe"]["averaging"]
    path.write_text(json.dumps(document))
    trials_of(recipe, "s", num_trials=2, resume=True)


def test_going_on_with_another_device_or_number_of_threads_is_warned_of(recipe, workplace, caplog):
    trials_of(recipe, "s", num_trials=1)
    path = workplace / "s" / SEARCH
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": "cuda:0", "threads": 2}))
    trials_of(recipe, "s", num_trials=2, resume=True)
    assert "device is cpu, was cuda:0" in caplog.text
    assert "threads is 1, was 2" in caplog.text


def test_a_damaged_journal_is_said_to_be(recipe, workplace, straight_search):
    shutil.copytree(straight_search, "s")
    path = workplace / "s" / JOURNAL
    path.write_text(path.read_text().replace('"judged":2', '"judged":9'))
    with pytest.raises(DamagedError, match=r"trials\.journal is damaged"):
        tuned(recipe, "s", num_trials=13, resume=True)
    path.write_text("not a journal\n")
    with pytest.raises(DamagedError, match=r"trials\.journal is damaged"):
        tuned(recipe, "s", num_trials=13, resume=True)
    (workplace / "s" / SEARCH).write_text("[]")
    with pytest.raises(DamagedError, match=r"search\.json is damaged"):
        tuned(recipe, "s", num_trials=13, resume=True)


# The command line


def test_in_a_pipe_a_search_is_plain_lines_and_nothing_on_stderr(recipe, workplace, capfd):
    assert main(words(recipe, "s", "--trials", "3")) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert "\x1b" not in said.out
    lines = said.out.splitlines()
    pattern = r"trial \d/3  optimizer \w+, .*validation accuracy \d+\.\d\d % \(.* to .*\)  .*best"
    assert sum(bool(re.match(pattern, line)) for line in lines) == 3
    assert "Trials are judged by validation 0.2" in said.out
    assert "The test images were not looked at." in said.out
    assert lines[-1].startswith("  heptad train s/best.toml")


def test_json_is_one_document(recipe, workplace, capsys):
    assert main(words(recipe, "s", "--trials", "3", "--json")) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert printed.err == ""
    assert (document["search"], len(document["trials"])) == ("s", 3)
    best = document["trials"][document["best"]["trial"] - 1]
    assert best["settings"] == document["best"]["settings"]
    assert best["epochs"][-1]["num_correct"] == document["best"]["validation_correct"]
    assert heptad.Recipe(**document["best"]["recipe"]) == heptad.load_recipe(workplace / "s" / BEST)


@pytest.mark.slow
def test_without_out_searches_are_numbered(recipe, workplace, capsys):
    for number in (1, 2):
        flags = words(recipe, "s", "--trials", "1", "--json")
        del flags[flags.index("--out") : flags.index("--out") + 2]
        assert main(flags) == 0
        assert json.loads(capsys.readouterr().out)["search"] == f"runs/lenet5-tune-{number}"


@FORKING
@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)],
)
def test_a_signal_stops_a_search_soon_and_says_how_to_go_on(
    recipe, tmp_path, straight_search, number, code
):
    folder, log = tmp_path / "s", tmp_path / "log"
    stop = partial(at_forward, 40, partial(send, number))
    process = fork(words(recipe, folder, "--trials", "12"), log, stop)
    process.join()
    assert process.exitcode == code
    said = log.read_text()
    num_kept = len(rows_of(folder))
    assert f"{num_kept} of 12 trials are kept" in said
    assert f"`--resume --out {folder}` goes on" in said
    assert "Traceback" not in said
    assert main(words(recipe, folder, "--trials", "12", "--resume", "--json")) == 0
    check_same(folder, straight_search)


def test_a_search_without_optuna_says_what_to_install(recipe, workplace, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingError, match="a search needs the package optuna"):
        next(heptad.tune(recipe, RANGES))
    assert main(words(recipe, "s")) == 6
    assert "pip install optuna" in capsys.readouterr().err
    assert not [*workplace.iterdir()]
