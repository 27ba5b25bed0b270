"""Runs with several seeds as one result: each as if it were alone, all together counted rightly."""

from __future__ import annotations

import json
import re
import shutil
import signal
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torchvision.models import resnet50

import heptad
from conftest import write_first_digits, write_idx
from heptad.cli import main
from heptad.cycle import preparing
from heptad.cycle_state import Opened
from heptad.errors import MissingError, OutputError, RecipeError, RunError
from heptad.seed_group import document_of, read_group, sealed
from heptad.stages import saving
from heptad.stages.data import for_seed
from killing import at_file_call, at_forward, fork, leftovers, metrics_of, result_of, send
from test_browser import WIDTHS, look
from test_report import Page

KILL = partial(send, signal.SIGKILL)
TERMINATE = partial(send, signal.SIGTERM)
SLOW = pytest.mark.slow
SETTINGS = ["--epochs", "2", "--batch-size", "64", "--threads", "1"]


def words(digits: Path, out: Path, *more: str) -> list[str]:
    return ["train", "lenet5", "--data", str(digits), *SETTINGS, "--out", str(out), *more]


def killed_words(digits: Path, out: Path, *more: str) -> list[str]:
    """Runs of two epochs of one step, a checkpoint after each step."""
    limited = ["--limit", "64", "--checkpoint-every", "1", "--no-report"]
    return words(digits, out, *limited, "--seeds", "3", *more)


def document(folder: Path) -> dict:
    return json.loads((folder / "seeds.json").read_text())


def without_seconds(folder: Path) -> dict:
    found = document(folder)
    runs = [{k: v for k, v in run.items() if k != "seconds"} for run in found["runs"]]
    return {k: v for k, v in found.items() if k not in ("seconds", "sha256")} | {"runs": runs}


@pytest.fixture(scope="module")
def group(digits, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("seeds") / "group"
    assert main(words(digits, out, "--seeds", "3", "--json")) == 0
    return out


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory) -> Path:
    """The group of `killed_words` that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "group"
    assert main(killed_words(digits, out)) == 0
    return out


# Each run alone


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--shift", "0.1", "--flip", "0.5"], id="augmented"),
        pytest.param(["--limit", "100"], id="limit", marks=SLOW),
        pytest.param(["--validation", "0.2"], id="validation", marks=SLOW),
    ],
)
def test_each_run_is_to_the_bit_what_its_seed_alone_gives(digits, tmp_path, flags):
    flags = [*flags, "--no-report"]
    assert main(words(digits, tmp_path / "group", "--seed", "7", "--seeds", "2", *flags)) == 0
    assert main(words(digits, tmp_path / "8", "--seed", "8", *flags)) == 0
    assert result_of(tmp_path / "group" / "seed-8") == result_of(tmp_path / "8")
    # A control: the seed does decide something.
    assert result_of(tmp_path / "group" / "seed-7") != result_of(tmp_path / "8")


def test_the_first_run_and_the_last_are_those_of_their_seeds_alone(digits, group, tmp_path):
    for seed in ("0", "2"):
        assert main(words(digits, tmp_path / seed, "--seed", seed, "--no-report")) == 0
        assert result_of(group / f"seed-{seed}") == result_of(tmp_path / seed)


@SLOW
def test_of_a_folder_that_is_split_by_the_seed_each_run_has_its_own_part(pictures, tmp_path):
    assert main(words(pictures, tmp_path / "group", "--seeds", "2", "--no-report")) == 0
    assert main(words(pictures, tmp_path / "1", "--seed", "1", "--no-report")) == 0
    assert result_of(tmp_path / "group" / "seed-1") == result_of(tmp_path / "1")
    assert document(tmp_path / "group")["same_test"] is False


def test_images_are_opened_once_where_the_seed_does_not_decide_them(digits):
    recipe = heptad.load_recipe("lenet5", data=str(digits), shift=0.1)
    sources = heptad.prepare(recipe).sources
    other = for_seed(sources, recipe.changed(seed=1))
    assert other.train.images is sources.train.images
    assert (sources.train.seed, other.train.seed) == (0, 1)
    own = heptad.prepare(recipe.changed(seed=1)).sources
    assert (other.sheet, other.data) == (own.sheet, own.data)
    assert own.sheet != sources.sheet
    epoch = torch.arange(5)
    assert other.train.take(epoch, 3).equal(own.train.take(epoch, 3))


@pytest.mark.parametrize("decided", [{"limit": 50}, {"validation": 0.1}, {"validation": 20}])
def test_what_the_seed_decides_is_opened_anew(digits, decided):
    recipe = heptad.load_recipe("lenet5", data=str(digits), **decided)
    sources = heptad.prepare(recipe).sources
    assert for_seed(sources, recipe.changed(seed=1)) is None


@pytest.fixture(scope="module")
def few(mnist, tmp_path_factory) -> Path:
    """A folder of 64 training and 32 test digits."""
    folder = tmp_path_factory.mktemp("data") / "few"
    return write_first_digits(folder, mnist, num_train=64, num_test=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "made.pth"
    torch.save(resnet50().state_dict(), path)
    return path


@SLOW
@pytest.mark.parametrize("batchnorm", ["frozen", "recalibrated"])
def test_features_are_those_of_the_lone_run(few, made, tmp_path, batchnorm):
    flags = ["--data", str(few), "--image-size", "32", "--epochs", "2", "--threads", "1"]
    flags += ["--weights", str(made), "--batchnorm", batchnorm, "--no-report"]
    flags += ["--save", "trained-part"]
    common = ["train", "resnet50", *flags]
    assert main([*common, "--seeds", "2", "--out", str(tmp_path / "group")]) == 0
    assert main([*common, "--seed", "1", "--out", str(tmp_path / "1")]) == 0
    assert result_of(tmp_path / "group" / "seed-1") == result_of(tmp_path / "1")
    assert metrics_of(tmp_path / "group" / "seed-1")["execution"]["computed_features"] == 0


@SLOW
def test_features_are_shared_unless_the_trunk_is_drawn_by_the_seed(few, made):
    recipe = heptad.load_recipe("resnet50", data=str(few), image_size=32, weights=str(made))
    opened = Opened(heptad.prepare(recipe).sources)
    assert opened.take(recipe.changed(seed=1)) is opened.sources
    *_, cycle = preparing(recipe.changed(seed=1), sources=opened.sources)
    assert cycle.data == heptad.prepare(recipe.changed(seed=1)).data
    assert opened.take(recipe.changed(weights="none", seed=1)) is None


# What they come to together


def test_the_figures_are_those_of_numpy_and_scipy(group):
    found = document(group)
    metrics = [metrics_of(group / f"seed-{seed}") for seed in range(3)]
    for name in ("test_accuracy", "test_loss"):
        values = [own[name] for own in metrics]
        together = found[name]
        assert together["mean"] == pytest.approx(np.mean(values), rel=1e-14)
        assert (together["least"], together["most"]) == (min(values), max(values))
        assert together["standard_deviation"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
        interval = scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))
        assert together["student_interval"] == pytest.approx(np.clip(interval, 0, None))
    assert [run["digest"] for run in found["runs"]] == [own["digest"] for own in metrics]
    assert [run["folder"] for run in found["runs"]] == ["seed-0", "seed-1", "seed-2"]
    assert found["seconds"] == sum(own["seconds"] for own in metrics)
    assert found["same_test"] is True


def test_the_interval_over_images_is_wilsons_of_a_run_as_good_as_the_mean(group):
    found = document(group)["test_accuracy"]
    p, n, z = found["mean"], 200, scipy.stats.norm.ppf(0.975)
    middle, reach = p + z**2 / (2 * n), z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = [(middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)]
    assert found["wilson_interval"] == pytest.approx(expected, rel=1e-12)


def figures(accuracy: float, *, images: int = 10, digest: str = "d") -> dict:
    counts = {"test_correct": round(accuracy * images), "test_images": images}
    return {**counts, "test_loss": 1.0, "test_set": "t", "seconds": 1.0, "digest": digest}


def test_an_interval_of_accuracies_stays_within_0_and_1():
    recipe = heptad.load_recipe("lenet5")
    found = document_of(recipe, (0, 1), {0: figures(0.4), 1: figures(0.9)})["test_accuracy"]
    # With one degree of freedom t is 12.706: 0.65 and 3.18 on either side.
    assert found["student_interval"] == [0.0, 1.0]
    assert (found["mean"], found["standard_deviation"]) == (0.65, pytest.approx(0.5 / sqrt(2)))


def test_runs_on_other_numbers_of_images_have_no_common_interval_over_images():
    recipe = heptad.load_recipe("lenet5")
    metrics = {0: figures(0.4), 1: figures(0.9, images=20)}
    assert document_of(recipe, (0, 1), metrics)["test_accuracy"]["wilson_interval"] is None


# As it is told


def test_in_a_pipe_each_run_is_announced_and_both_intervals_are_told_apart(
    digits, workplace, capsys
):
    short = ["--data", str(digits), "--limit", "64", *SETTINGS]
    assert main(["train", "lenet5", *short, "--seeds", "2"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^Seed (\d) of 0 to 1:$", said, re.MULTILINE) == ["0", "1"]
    assert len(re.findall(r"^epoch \d/2 ", said, re.MULTILINE)) == 4
    found = document(workplace / "runs" / "lenet5-1")["test_accuracy"]
    assert f"Mean test accuracy {100 * found['mean']:.2f} % over 2 seeds, 0 to 1: from" in said
    (low, high), (below, above) = (
        [f"{100 * bound:.2f}" for bound in found[f"{name}_interval"]]
        for name in ("student", "wilson")
    )
    intervals = (
        f"over seeds {low} to {high} (Student); over test images {below} to {above} (Wilson)"
    )
    assert f"95 % interval {intervals}." in said
    assert (
        "Wilson's interval is about which test images were drawn, Student's over the seeds" in said
    )
    assert "To be opened in a browser: runs/lenet5-1/report.html" in said


def test_json_is_seeds_json_with_the_folder_and_nothing_else(group, digits, capsys):
    before = (group / "seeds.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(words(digits, group, "--seeds", "3", "--resume", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("run") == str(group)
    assert found == document(group)
    # What was finished is taken as it is.
    assert (group / "seeds.json").stat().st_mtime_ns == before


def test_the_report_is_what_seeds_json_holds(group):
    found = document(group)
    page = Page((group / "report.html").read_text(encoding="utf-8"))
    together = found["test_accuracy"]
    low, high = together["student_interval"]
    assert page.figure("mean-accuracy") == f"{100 * together['mean']:.2f} %"
    assert page.figure("student-interval") == f"{100 * low:.2f} to {100 * high:.2f}"
    assert page.figure("deviation") == f"{100 * together['standard_deviation']:.2f} points"
    _, *rows, mean = page.cells("seed-table")
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert [row[1] for row in rows] == [f"{100 * r['test_accuracy']:.2f} %" for r in found["runs"]]
    below, above = together["wilson_interval"]
    assert mean[:3] == [
        "mean",
        f"{100 * together['mean']:.2f} %",
        f"{100 * below:.2f} to {100 * above:.2f}",
    ]
    circles = [attributes for tag, attributes in page.tags if tag == "circle"]
    assert sum(each["class"] == "seed-dot" for each in circles) == 3
    assert {"over-seeds-dot", "over-images-dot"} <= {each["class"] for each in circles}
    assert page.says("Student's over the seeds about the draws of training: start, order, Dropout")
    assert page.says("--seeds 3")
    assert "script" not in {tag for tag, _ in page.tags}


def test_a_report_of_a_group_can_be_made_again_and_elsewhere(group, tmp_path, capsys):
    before = (group / "report.html").read_bytes()
    assert main(["report", str(group)]) == 0
    assert (group / "report.html").read_bytes() == before
    assert main(["report", str(group), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_bytes() == before
    # Single runs have theirs when they are asked for.
    assert not (group / "seed-1" / "report.html").exists()
    assert main(["report", str(group / "seed-1"), "--out", str(tmp_path / "one.html")]) == 0


def group_in_words(**settings) -> str:
    """Say what the intervals of two runs on the same test images are about."""
    recipe = heptad.load_recipe("lenet5", **settings)
    made = document_of(recipe, (0, 1), {0: figures(0.4), 1: figures(0.9)})
    return heptad.SeedGroup(recipe, Path("group"), made).words


def test_a_limit_that_spares_the_test_images_still_says_what_the_seed_chose():
    chosen = "the seed also decided which images were trained on"
    assert chosen in group_in_words(limit=300)
    assert "the seed also decided" not in group_in_words()


def test_augmentation_is_named_among_the_draws_of_training():
    assert "start, order, Dropout, augmentation." in group_in_words(shift=0.1)
    assert "start, order, Dropout." in group_in_words()


@SLOW
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_runs_nothing_asks_nobody_and_fits(browser, group, width, scheme):
    page, events = look(browser, group / "report.html", width=width, scheme=scheme)
    assert events == [f"request: {(group / 'report.html').as_uri()}"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # No name of a row is cut off.
    places = "[...document.querySelectorAll('.strip text')].map(e => e.getBBox().x)"
    assert min(page.evaluate(places)) >= 0
    page.close()


# As one of its runs is meant


@pytest.mark.parametrize(
    "command", ["evaluate {}", "predict {} x.png", "compare {0} {0}/seed-0", "export {}"]
)
def test_where_one_run_is_meant_a_group_names_its_own(group, digit_files, capsys, command):
    place = shutil.copy(digit_files[0], group.parent / "x.png")
    said = command.format(group).replace("x.png", str(place))
    assert main(said.split()) == 2
    expected = f"{group} is a group of 3 runs, not one; name one of them, such as {group}/seed-0."
    assert expected in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(RunError, match="is a group of 3 runs"):
        heptad.load_run(group)


def test_its_runs_can_be_evaluated_and_compared(group, capsys):
    assert heptad.load_run(group / "seed-2").evaluate().num_images == 200
    assert main(["compare", str(group / "seed-0"), str(group / "seed-1")]) == 0


def test_a_group_is_a_recipe_as_a_run_is(group):
    assert heptad.load_recipe(group) == heptad.load_recipe(group / "seed-0")
    assert heptad.load_recipe(group, epochs=5).epochs == 5


def test_verify_looks_at_all_runs_and_at_what_is_said_of_them(group, tmp_path, capsys):
    copy = shutil.copytree(group, tmp_path / "copy")
    assert main(["verify", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "[ok] seeds.json: agrees with its digest and with its runs" in said
    assert "[ok] seed-2/lenet5_digits.pth: as saved" in said
    assert f"The group of 3 runs in {copy} is whole, and finished." in said
    weights = copy / "seed-1" / "lenet5_digits.pth"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["verify", str(copy)]) == 5
    assert "[--] seed-1/lenet5_digits.pth" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda copy: (copy / "seeds.json").write_text("{"), "is damaged"),
        (
            lambda copy: (copy / "seeds.json").write_text(
                (copy / "seeds.json").read_text().replace('"seed": 1', '"seed": 2')
            ),
            "changed since it was saved",
        ),
        (lambda copy: shutil.rmtree(copy / "seed-1"), "seed-1"),
        (
            lambda copy: (
                shutil.rmtree(copy / "seed-1"),
                shutil.copytree(copy / "seed-2", copy / "seed-1"),
            ),
            "not with its runs",
        ),
    ],
    ids=["no JSON", "changed", "a run is gone", "another run"],
)
def test_a_damaged_group_is_found_and_made_good(group, digits, tmp_path, capsys, change, said):
    copy = shutil.copytree(group, tmp_path / "copy")
    change(copy)
    assert main(["verify", str(copy)]) == 5
    assert said in capsys.readouterr().out
    assert main(["report", str(copy)]) in (2, 5)
    again = words(digits, copy, "--seeds", "3", "--resume", "--json", "--no-report")
    if said == "not with its runs":
        # It is of another seed, which no resume may change.
        assert main(again) == 2
        return
    assert main(again) == 0
    assert main(["verify", str(copy)]) == 0
    assert without_seconds(copy) == without_seconds(group)


@pytest.mark.parametrize(
    "change",
    [
        {"test_accuracy": "high"},
        {"test_loss": {"mean": 0}},
        {"runs": [{"seed": 0}]},
        {"runs": "none"},
        {"seeds": [0, 2, 4]},
        {"seeds": [0, 1, 1e400]},
        {"recipe": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_document_made_by_others_is_damaged_whatever_its_hashes(group, tmp_path, change, capsys):
    copy = shutil.copytree(group, tmp_path / "copy")
    try:
        forged = sealed(document(group) | change)
    except (TypeError, AttributeError):
        forged = document(group) | change
    (copy / "seeds.json").write_text(json.dumps(forged))
    for command in (["report"], ["resume"]):
        assert main([*command, str(copy)]) == 5
        assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(RunError, match="name one of them"):
        heptad.load_run(copy)


def advised(said: str, folder: Path) -> str:
    """Find the one command that is advised for a group of three runs of LeNet-5."""
    (command,) = re.findall(r"`heptad ([^`]*)`", said.replace("\n", " "))
    return command.replace("RECIPE --seeds N", f"{folder}/seed-0 --seeds 3")


def test_what_verify_advises_for_a_damaged_group_is_not_refused(undisturbed, tmp_path, capsys):
    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    (copy / "seeds.json").write_text("{")
    assert main(["verify", str(copy)]) == 5
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"The group of 3 runs in {copy} is damaged; `heptad train RECIPE")
    assert main(advised(last, copy).split()) == 0
    assert main(["verify", str(copy)]) == 0


def test_what_a_report_advises_where_a_run_is_another_is_not_refused(undisturbed, tmp_path, capsys):
    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    shutil.rmtree(copy / "seed-1")
    shutil.copytree(copy / "seed-2", copy / "seed-1")
    assert main(["report", str(copy)]) == 5
    command = advised(capsys.readouterr().err, copy)
    shutil.rmtree(copy / "seed-1")
    assert main([*command.split(), "--threads", "1", "--no-report"]) == 0
    assert without_seconds(copy) == without_seconds(undisturbed)


def test_a_group_of_a_version_with_fewer_settings_is_whole_and_goes_on(
    undisturbed, digits, tmp_path
):
    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    found = document(copy)
    del found["recipe"]["views"], found["recipe"]["averaging"]
    (copy / "seeds.json").write_text(json.dumps(sealed(found)))
    assert read_group(copy).recipe == read_group(undisturbed).recipe
    assert main(["verify", str(copy)]) == 0
    assert main(killed_words(digits, copy, "--resume")) == 0
    assert without_seconds(copy) == without_seconds(undisturbed)


# Going on


@pytest.mark.parametrize(
    ("moment", "how"),
    [
        pytest.param(r"write seed-0/\.recipe.*", "train", id="at its beginning", marks=SLOW),
        pytest.param(
            r"rename seed-0/checkpoints/\.step-00000002.*", "resume", id="first run", marks=SLOW
        ),
        pytest.param("mkdir seed-1", "resume", id="between two runs", marks=SLOW),
        pytest.param(r"replace \.seeds\.json\..*", "train", id="seeds.json", marks=SLOW),
        pytest.param(r"rename seed-2/checkpoints/\.step-00000001.*", "train", id="last run"),
    ],
)
def test_a_group_that_is_killed_goes_on_to_the_bit(digits, undisturbed, tmp_path, moment, how):
    out = tmp_path / "group"
    place = partial(at_file_call, moment, KILL, out, tmp_path / "noted")
    process = fork(killed_words(digits, out), tmp_path / "log", place)
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    again = killed_words(digits, out, "--resume")
    if how == "resume":
        again = ["resume", str(out), "--threads", "1", "--no-report"]
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.json")}
    assert main(again) == 0
    assert without_seconds(out) == without_seconds(undisturbed)
    for seed in range(3):
        name = f"seed-{seed}"
        assert result_of(out / name) == result_of(undisturbed / name)
    assert leftovers(out) == []
    # What was finished is not written again.
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_signal_stops_saves_and_says_how_to_go_on(digits, undisturbed, tmp_path):
    out, log = tmp_path / "group", tmp_path / "log"
    # Three runs of two steps: in the first step of the second.
    process = fork(killed_words(digits, out), log, partial(at_forward, 3, TERMINATE))
    process.join()
    assert process.exitcode == 143, log.read_text()
    said = f"saved after step 1 of seed 1; `heptad resume {out}` goes on."
    assert said in log.read_text()
    assert [run["seed"] for run in document(out)["runs"]] == [0]
    assert document(out)["test_accuracy"] is None
    assert main(["resume", str(out), "--threads", "1", "--json", "--no-report"]) == 0
    assert without_seconds(out) == without_seconds(undisturbed)
    assert metrics_of(out / "seed-1")["execution"]["resumed_from"] == [1]


def test_an_unfinished_group_has_no_report_yet(digits, tmp_path, capsys):
    recipe = heptad.load_recipe("lenet5", data=str(digits), epochs=1, limit=64)
    options = heptad.RunOptions(out=str(tmp_path / "group"), threads=1)
    for event in heptad.run_seeds(recipe, options, num_seeds=3):
        if isinstance(event, heptad.Run):
            break
    assert main(["report", str(tmp_path / "group")]) == 2
    assert "a group of runs that was not finished: 0 of 3 are" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "group")]) == 0
    assert "heptad resume" in capsys.readouterr().out


def test_more_seeds_are_added_to_those_that_are_there(digits, undisturbed, tmp_path):
    copy = shutil.copytree(undisturbed, tmp_path / "group")
    before = (copy / "seed-1" / "metrics.json").stat().st_mtime_ns
    more = killed_words(digits, copy, "--resume")
    more[more.index("--seeds") + 1] = "4"
    assert main(more) == 0
    assert document(copy)["seeds"] == [0, 1, 2, 3]
    assert (copy / "seed-1" / "metrics.json").stat().st_mtime_ns == before
    values = [metrics_of(copy / f"seed-{seed}")["test_accuracy"] for seed in range(4)]
    assert document(copy)["test_accuracy"]["mean"] == pytest.approx(np.mean(values))


@SLOW
def test_more_epochs_make_every_run_longer(digits, undisturbed, tmp_path):
    copy = shutil.copytree(undisturbed, tmp_path / "group")
    once = killed_words(digits, tmp_path / "once", "--resume")
    longer = killed_words(digits, copy, "--resume")
    for command in (once, longer):
        command[command.index("--epochs") + 1] = "3"
        assert main(command) == 0
    assert without_seconds(copy) == without_seconds(tmp_path / "once")


# What is refused


def options(out: Path, **more) -> heptad.RunOptions:
    return heptad.RunOptions(out=str(out), threads=1, **more)


def refused(recipe: heptad.Recipe, given: heptad.RunOptions, num_seeds: int) -> None:
    next(heptad.run_seeds(recipe, given, num_seeds=num_seeds))


def test_fewer_seeds_than_there_are_are_refused(digits, undisturbed):
    recipe = heptad.load_recipe(undisturbed)
    with pytest.raises(RecipeError, match=r"seeds is 2, but the group in .* has 3; allowed: as"):
        refused(recipe, options(undisturbed, resume=True), 2)


LOSSES = [
    pytest.param(lambda path: path.unlink(), id="gone"),
    pytest.param(lambda path: path.write_text("{"), id="damaged"),
]


@pytest.mark.parametrize("lose", LOSSES)
def test_without_seeds_json_fewer_seeds_are_refused_too(undisturbed, tmp_path, lose):
    copy = shutil.copytree(undisturbed, tmp_path / "group")
    recipe = heptad.load_recipe(copy)
    lose(copy / "seeds.json")
    with pytest.raises(RecipeError, match=r"seeds is 2, but the group in .* has 3; allowed: as"):
        refused(recipe, options(copy, resume=True), 2)
    with pytest.raises(RecipeError, match=r"seed is 1, but the group in .* with seed 0\."):
        refused(recipe.changed(seed=1), options(copy, resume=True), 2)


@pytest.mark.parametrize("lose", LOSSES)
def test_without_seeds_json_a_wrong_resume_does_not_ruin_the_group(
    digits, undisturbed, tmp_path, lose
):
    copy = shutil.copytree(undisturbed, tmp_path / "group")
    lose(copy / "seeds.json")
    right = killed_words(digits, copy, "--resume")
    assert main([*right, "--learning-rate", "0.5"]) == 2
    assert main(right) == 0
    assert without_seconds(copy) == without_seconds(undisturbed)


def test_a_run_that_was_only_begun_is_compared_with_the_recipe_too(digits, tmp_path):
    recipe = heptad.load_recipe("lenet5", data=str(digits), limit=64, epochs=1)
    events = heptad.run_seeds(recipe, options(tmp_path), num_seeds=2)
    # It begins, and was made ready.
    next(events), next(events)
    events.close()
    (tmp_path / "seeds.json").unlink()
    with pytest.raises(RecipeError, match=r"batch_size is 7, but the run in .*seed-0 has"):
        refused(recipe.changed(batch_size=7), options(tmp_path, resume=True), 2)
    assert not (tmp_path / "seeds.json").exists()


@pytest.fixture
def from_hw(digits, workplace) -> list[str]:
    """The words for a group that starts from the weights of the run hw; both are there."""
    short = ["--data", str(digits), "--limit", "64", "--epochs", "1", "--threads", "1"]
    trained = ["train", "lenet5", *short, "--no-report", "--out"]
    assert main([*trained, "hw"]) == 0
    begun = [*trained, "group", "--weights", "hw", "--seeds"]
    assert main([*begun, "2"]) == 0
    shutil.rmtree("hw")
    assert main([*trained, "hw", "--seed", "9"]) == 0
    return begun


def test_runs_are_not_added_from_start_weights_that_were_trained_anew(from_hw, capsys):
    assert main([*from_hw, "4", "--resume"]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert "but the start weights of seed 2 are not those of seed 0" in said
    # Before it began.
    assert not Path("group/seed-2").exists()
    (Path("group") / "seeds.json").unlink()
    assert main([*from_hw, "2", "--resume"]) == 0
    assert main(["verify", "group"]) == 0


@pytest.mark.slow
def test_a_group_mixed_of_different_start_weights_is_not_called_whole(from_hw, capsys):
    shutil.rmtree("group/seed-1")
    alone = [*from_hw[:-1], "--seed", "1"]
    alone[alone.index("group")] = "group/seed-1"
    assert main(alone) == 0
    recipe = heptad.load_recipe("group/seed-0")
    metrics = {seed: metrics_of(Path(f"group/seed-{seed}")) for seed in (0, 1)}
    Path("group/seeds.json").write_text(json.dumps(document_of(recipe, (0, 1), metrics)))
    assert main(["verify", "group"]) == 5
    assert "the start weights of seed 1 are not those of seed 0" in capsys.readouterr().out
    assert main([*from_hw, "2", "--resume"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("part", "said"), [("train", "images or labels"), ("test", "test images")])
def test_runs_are_not_added_on_other_images(mnist, digits, workplace, capsys, part, said):
    shutil.copytree(digits, "digits")
    begun = ["train", "lenet5", "--data", "digits", "--epochs", "1", "--threads", "1"]
    begun += ["--batch-size", "256", "--out", "group", "--no-report", "--seeds"]
    assert main([*begun, "2"]) == 0
    images, labels = mnist[part]
    write_idx(Path("digits"), part, images[1000:1200, 0], labels[1000:1200])
    assert main([*begun, "3", "--resume"]) == 2
    expected = f"but the {said} of seed 2 are not those of seed 0"
    assert expected in capsys.readouterr().err.replace("\n", " ")
    assert main(["verify", "group"]) == 0


def test_runs_of_a_version_that_did_not_say_what_they_began_from_are_whole_and_go_on(
    digits, undisturbed, tmp_path
):
    copy = shutil.copytree(undisturbed, tmp_path / "group")
    found = document(copy)
    for run in found["runs"]:
        place = copy / run["folder"] / "metrics.json"
        metrics = {**metrics_of(place.parent)}
        for name in ("data", "seed_draws_images"):
            del metrics[name], run[name]
        del run["weights"]
        place.write_text(json.dumps(saving.sealed(metrics)))
        run["digest"] = metrics_of(place.parent)["digest"]
    (copy / "seeds.json").write_text(json.dumps(sealed(found)))
    assert main(["verify", str(copy)]) == 0
    more = killed_words(digits, copy, "--resume")
    more[more.index("--seeds") + 1] = "4"
    assert main(more) == 0
    assert main(["verify", str(copy)]) == 0


def test_another_recipe_is_refused_with_what_differs(digits, undisturbed):
    recipe = heptad.load_recipe(undisturbed).changed(learning_rate=0.01, seed=1)
    with pytest.raises(RecipeError, match=r"learning_rate is 0\.01, but the run in") as caught:
        refused(recipe, options(undisturbed, resume=True), 3)
    assert "seed is 1" in caught.value.message


def test_a_group_that_is_there_is_refused_without_resume(digits, undisturbed, capsys):
    assert main(killed_words(digits, undisturbed)) == 2
    assert "holds a group of runs already: seed-0 is there" in capsys.readouterr().err


def test_a_group_and_a_run_do_not_share_a_folder(undisturbed, small):
    recipe = heptad.load_recipe(undisturbed)
    for resume in (False, True):
        with pytest.raises(OutputError, match="holds a group of runs"):
            next(heptad.run(recipe, options(undisturbed, resume=resume)))
        with pytest.raises(OutputError, match="holds a run"):
            refused(recipe, options(small, resume=resume), 2)
    assert not (small / "seeds.json").exists()


def test_a_search_is_not_told_of_flags_that_it_does_not_have(undisturbed, digits, capsys):
    search = ["tune", "lenet5", "--data", str(digits), "--validation", "0.2"]
    search += ["--learning-rate", "1e-4..1e-2", "--trials", "1", "--out", str(undisturbed)]
    assert main(search) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"holds a group of runs. `heptad resume {undisturbed}` goes on with it" in said


def test_a_group_has_one_owner_at_a_time(digits, tmp_path):
    recipe = heptad.load_recipe("lenet5", data=str(digits), limit=64, epochs=1)
    events = heptad.run_seeds(recipe, options(tmp_path / "group"), num_seeds=2)
    next(events)
    with pytest.raises(MissingError, match="in use by this very process"):
        refused(recipe, options(tmp_path / "group", resume=True), 2)
    events.close()
    # Nothing had begun, and so nothing is left.
    assert not (tmp_path / "group").exists()


def test_what_is_refused_at_once_leaves_nothing_behind(tmp_path, workplace, capsys):
    (workplace / "none").mkdir()
    for out in (["--out", "a/b"], []):
        assert main(["train", "lenet5", "--data", "none", "--seeds", "2", *out]) == 2
    assert [path.name for path in workplace.iterdir()] == ["none"]


@pytest.mark.parametrize("num_seeds", [1, 0, -1, 1001])
def test_a_number_of_seeds_that_is_not_allowed_is_refused(num_seeds, workplace):
    with pytest.raises(RecipeError, match=f"seeds is {num_seeds}; allowed: a whole number, 2 to"):
        refused(heptad.load_recipe("lenet5"), heptad.RunOptions(), num_seeds)
    assert list(workplace.iterdir()) == []


def test_seeds_beyond_the_largest_are_refused_before_any_work(workplace):
    largest = heptad.load_recipe("lenet5", seed=2**63 - 1)
    with pytest.raises(RecipeError, match="beyond the largest, 9223372036854775807"):
        refused(largest, heptad.RunOptions(), 2)
    assert list(workplace.iterdir()) == []


def test_a_run_that_is_not_finite_says_which_seed(digits, tmp_path, capsys):
    flags = ["--seeds", "2", "--learning-rate", "1e30", "--json"]
    assert main(words(digits, tmp_path / "group", *flags)) == 4
    assert json.loads(capsys.readouterr().out)["error"]["message"].startswith("seed 0: step ")


# In Python


def test_a_group_can_be_trained_in_python_and_is_read_back(digits, tmp_path, capsys):
    recipe = heptad.load_recipe("lenet5", data=str(digits), limit=64, epochs=1, seed=3)
    group = heptad.train_seeds(recipe, options(tmp_path / "g"), num_seeds=2, progress=True)
    assert isinstance(group, heptad.SeedGroup)
    assert group.seeds == (3, 4)
    assert read_group(tmp_path / "g").document == group.document
    assert group.accuracy.mean == np.mean([run["test_accuracy"] for run in group.runs])
    assert capsys.readouterr().out.splitlines()[0] == "seed 3 of 3 to 4"
    assert "95 % interval over seeds" in group._repr_html_()
    # Whoever trains in Python is given no report unasked.
    assert not (tmp_path / "g" / "report.html").exists()


def test_a_group_with_a_damaged_run_gets_no_page(group, tmp_path, capsys):
    copy = shutil.copytree(group, tmp_path / "group")
    (copy / "report.html").unlink(missing_ok=True)
    path = copy / "seed-1" / "predictions.npz"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["report", str(copy)]) == 5
    assert str(path) in capsys.readouterr().err
    assert not (copy / "report.html").exists()
