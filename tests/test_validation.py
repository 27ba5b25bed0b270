"""Validation, best epoch, patience, class weights, augmentation and views, in whole trainings."""

from __future__ import annotations

import json
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy

import heptad
from conftest import write_idx, write_pictures
from heptad.cli import main
from heptad.records import EpochReport, EvaluationReport, PassReport, Position, StepReport
from heptad.stages.data import epoch_order, ordered_batches
from heptad.stages.evaluation import evaluate
from killing import at_forward, fork, leftovers, metrics_of, result_of, send

ONE_THREAD = heptad.RunOptions(threads=1)
KILL = partial(send, signal.SIGKILL)
MOVES = {"shift": 0.1, "rotation": 10, "scale": 0.1, "flip": 0.5, "erase": 0.3}


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def lenet(digits):
    """100 training and 100 test digits, of the former 20 to validate with."""
    return heptad.load_recipe(
        "lenet5",
        data=str(digits),
        limit=100,
        batch_size=16,
        epochs=3,
        validation=20,
        learning_rate=0.003,
    )


@pytest.fixture
def resnet(digits):
    return heptad.load_recipe(
        "resnet50",
        data=str(digits),
        weights="none",
        image_size=32,
        limit=20,
        batch_size=8,
        epochs=3,
        **{**MOVES, "scale": 0},
    )


def trained(recipe, folder: Path, **options) -> heptad.Run:
    return heptad.train(recipe, ONE_THREAD.changed(out=str(folder), **options))


def inputs_of(source, epoch: int | None = None) -> list[bytes]:
    """What the network sees of each image of a source."""
    inputs = source.take(torch.arange(len(source.labels)), epoch)
    return [image.numpy().tobytes() for image in inputs]


# Which images


@pytest.fixture(scope="module")
def with_copies(mnist, tmp_path_factory) -> Path:
    """300 training digits, 100 of them twice."""
    folder = tmp_path_factory.mktemp("data") / "copies"
    images, labels = (np.concatenate([v[:300], v[:100]]) for v in mnist["train"])
    write_idx(folder, "train", images[:, 0], labels)
    images, labels = mnist["test"]
    write_idx(folder, "test", images[:50, 0], labels[:50])
    return folder


@pytest.mark.parametrize("validation", [0.2, 60, 0.9])
def test_no_image_is_validated_with_that_is_trained_on(lenet, with_copies, validation):
    recipe = lenet.changed(data=str(with_copies), validation=validation, limit=None)
    sources = heptad.prepare(recipe).sources
    whole = heptad.prepare(recipe.changed(validation=0)).sources.train
    train, apart = inputs_of(sources.train), inputs_of(sources.validation)
    assert not set(train) & set(apart)
    # Nothing is lost, and what was there twice still is.
    assert sorted(train + apart) == sorted(inputs_of(whole))
    ids = torch.cat([sources.train.ids, sources.validation.ids])
    assert ids.sort().values.tolist() == list(range(400))
    assert torch.bincount(sources.train.labels, minlength=10).min() >= 1


def test_a_number_of_validation_images_that_cannot_be_had_is_said(lenet, caplog):
    sources = heptad.prepare(lenet.changed(validation=95)).sources
    assert len(sources.validation.labels) == 90
    assert "validation is 95, but 90 images are set apart" in caplog.text


def test_validation_images_are_a_share_of_each_class(lenet):
    sources = heptad.prepare(lenet.changed(validation=0.1, limit=None)).sources
    parts = (sources.train, sources.validation)
    of_train, of_validation = (torch.bincount(part.labels, minlength=10) for part in parts)
    shares = (of_train + of_validation) / 10
    assert (of_validation - shares).abs().max() <= 0.5


@pytest.mark.parametrize("number", [2, 7, 50, 333, 502])
def test_a_number_of_validation_images_is_had_exactly(lenet, number):
    sources = heptad.prepare(lenet.changed(validation=number, limit=None)).sources
    assert (len(sources.validation.labels), len(sources.train.labels)) == (number, 512 - number)
    assert torch.bincount(sources.train.labels, minlength=10).min() >= 1


def test_which_images_validate_depends_on_their_content_and_the_seed(lenet, mnist, tmp_path):
    images, labels = (values[:200] for values in mnist["train"])
    for name, order in (("one", np.arange(200)), ("other", np.arange(200)[::-1])):
        write_idx(tmp_path / name, "train", images[order, 0], labels[order])
        write_idx(tmp_path / name, "test", images[:20, 0], labels[:20])

    def apart(name: str, seed: int = 0) -> set[bytes]:
        recipe = lenet.changed(data=str(tmp_path / name), limit=None, seed=seed)
        return set(inputs_of(heptad.prepare(recipe).sources.validation))

    assert apart("one") == apart("other") != apart("one", seed=1)


# The best epoch


def scores_of(cycle, source) -> heptad.Scores:
    return evaluate(cycle.model, ordered_batches(source, cycle.recipe), cross_entropy)


def state_of(cycle) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in cycle.whole.network.state_dict().items()}


def by_hand(recipe) -> tuple[list[tuple[int, float]], list[dict], heptad.Cycle]:
    """Train with a loop of one's own: right answers, loss and weights after each epoch."""
    cycle = heptad.prepare(recipe, ONE_THREAD)
    figures, states = [], []
    for epoch in range(1, recipe.epochs + 1):
        for _ in heptad.steps(cycle, Position(epoch)):
            pass
        scores = scores_of(cycle, cycle.sources.validation)
        figures.append((scores.num_correct, -scores.loss))
        states.append(state_of(cycle))
    return figures, states, cycle


def best_so_far(figures: list) -> list[int]:
    """After each epoch, which has been the best until then; the first of equal ones."""
    return [figures.index(max(figures[: k + 1])) for k in range(len(figures))]


@pytest.fixture(scope="module")
def uphill_and_down(lenet) -> tuple:
    """A recipe that gets worse, then better than ever, and then worse; and its loop by hand."""
    for seed in range(50):
        recipe = lenet.changed(epochs=6, seed=seed)
        figures, *rest = by_hand(recipe)
        best = best_so_far(figures)
        if best[-1] < 5 and any(best[k] < k for k in range(best[-1])):
            print("seed", seed, "epochs", figures)
            return recipe, best, *rest
    raise AssertionError("no seed is fit")


@pytest.fixture(scope="module")
def at_once(uphill_and_down, tmp_path_factory) -> heptad.Run:
    """The run of that recipe."""
    return trained(uphill_and_down[0], tmp_path_factory.mktemp("at once") / "run")


def test_a_run_ends_with_the_best_epoch_and_scores_the_test_images_by_it(uphill_and_down, at_once):
    (_, best, states, cycle), run = uphill_and_down, at_once
    assert run.metrics["selected_epoch"] == best[-1] + 1 < 6
    saved = torch.load(run.folder / "lenet5_digits.pth", weights_only=True)
    assert all(torch.equal(saved[name], value) for name, value in states[best[-1]].items())
    cycle.whole.network.load_state_dict(states[best[-1]])
    assert torch.equal(run.scores.logits, scores_of(cycle, cycle.sources.test).logits)
    # A control: the last epoch's answers are others.
    cycle.whole.network.load_state_dict(states[-1])
    assert not torch.equal(run.scores.logits, scores_of(cycle, cycle.sources.test).logits)


def test_the_test_images_are_scored_once_and_last(lenet, tmp_path):
    events = heptad.run(lenet, ONE_THREAD.changed(out=str(tmp_path / "run")))
    _, *reports, run = events
    parts = [report.part for report in reports if isinstance(report, EvaluationReport)]
    # 20 validation images are two batches, 100 test images seven.
    assert parts == ["validation"] * 6 + ["test"] * 7
    assert [type(report) for report in reports[-8:]] == [EpochReport] + [EvaluationReport] * 7
    assert [report.num_scored for report in reports[-7:]] == [16, 32, 48, 64, 80, 96, 100]
    assert {report.part for report in run.epochs} == {"validation"}


def test_without_validation_the_test_images_are_scored_in_every_epoch(lenet, tmp_path):
    events = heptad.run(lenet.changed(validation=0), ONE_THREAD.changed(out=str(tmp_path / "run")))
    _, *reports, run = events
    parts = [report.part for report in reports if isinstance(report, EvaluationReport)]
    assert parts == ["test"] * 7 * 3
    assert (run.metrics["selected_epoch"], run.metrics["validation_images"]) == (None, 0)
    assert set(run.metrics["epochs"][0]) == {
        *("epoch", "train_loss", "test_loss", "test_accuracy", "seconds")
    }


def test_a_run_says_what_it_was_selected_by(lenet, tmp_path):
    run = trained(lenet.changed(training_stats="stats.json"), tmp_path / "run")
    names = {"epoch", "train_loss", "validation_loss", "validation_accuracy"}
    assert [set(epoch) for epoch in run.metrics["epochs"]] == [names | {"seconds"}] * 3
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines if "step" not in line] == [names] * 3
    accuracies = [epoch["validation_accuracy"] for epoch in run.metrics["epochs"]]
    assert accuracies[run.metrics["selected_epoch"] - 1] == max(accuracies)
    assert (run.metrics["validation_images"], run.metrics["test_images"]) == (20, 100)
    assert run.metrics["test_accuracy"] == run.scores.accuracy
    stats = json.loads((run.folder / "stats.json").read_text())
    assert stats["validation_accuracies"] == [100 * accuracy for accuracy in accuracies]
    assert not [name for name in stats if name.startswith("test_")]
    # The figure of the run comes out again.
    assert heptad.load_run(run.folder).evaluate().num_correct == run.scores.num_correct


@pytest.mark.parametrize(
    "patience", [1, *(pytest.param(p, marks=pytest.mark.slow) for p in (2, 6))]
)
def test_training_stops_when_patience_is_at_its_end(patience, uphill_and_down, tmp_path):
    recipe, best, states, _ = uphill_and_down
    last = next((k for k in range(6) if k - best[k] >= patience), 5)
    # A control: the shortest ends before the best of all, the longest is never at its end.
    assert (last < best[-1], last == 5) == {1: (True, False), 6: (False, True)}.get(
        patience, (last < best[-1], last == 5)
    )
    run = trained(recipe.changed(patience=patience), tmp_path / "run")
    assert (len(run.epochs), run.metrics["selected_epoch"]) == (last + 1, best[last] + 1)
    saved = torch.load(run.folder / "lenet5_digits.pth", weights_only=True)
    assert all(torch.equal(saved[name], value) for name, value in states[best[last]].items())


# Going on


def moment(kind: type, **facts):
    """Tell whether a report is of this kind, and what it says of itself."""

    def is_it(report) -> bool:
        found = isinstance(report, kind)
        return found and all(getattr(report, name) == fact for name, fact in facts.items())

    return is_it


MOMENTS = {
    "in training": moment(StepReport, epoch=2, step=8),
    "before a validation": moment(StepReport, epoch=2, step=10),
    "in a validation": moment(EvaluationReport, epoch=2, part="validation", num_scored=16),
    "after a validation": moment(EvaluationReport, epoch=2, part="validation", num_scored=20),
    "after an epoch": moment(EpochReport, epoch=2),
    "in the last validation": moment(EvaluationReport, epoch=3, part="validation", num_scored=16),
    "before the test": moment(EpochReport, epoch=3),
    "in the test": moment(EvaluationReport, part="test", num_scored=16),
    "after the test": moment(EvaluationReport, part="test", num_scored=100),
}
FEW_MOMENTS = ("in a validation", "in the test")


@pytest.fixture(scope="module")
def everything(lenet) -> heptad.Recipe:
    """A recipe with validation, patience, class weights and augmentation."""
    return lenet.changed(patience=3, class_weights="balanced", **MOVES)


@pytest.fixture(scope="module")
def undisturbed(everything, tmp_path_factory) -> Path:
    return trained(everything, tmp_path_factory.mktemp("undisturbed") / "run").folder


def left_at(is_moment, recipe, folder: Path, *, every: str = "60s") -> None:
    """Begin a run, or go on with it, and leave it at some moment."""
    options = ONE_THREAD.changed(out=str(folder), resume=True, checkpoint_every=every)
    events = heptad.run(recipe, options)
    next(report for report in events if is_moment(report))
    events.close()


@pytest.mark.parametrize(
    "when",
    [pytest.param(name, marks=() if name in FEW_MOMENTS else pytest.mark.slow) for name in MOMENTS],
)
def test_a_run_with_validation_that_was_left_goes_on_to_the_bit(
    when, everything, undisturbed, tmp_path
):
    left_at(MOMENTS[when], everything, tmp_path / "run")
    options = ONE_THREAD.changed(out=str(tmp_path / "run"), resume=True)
    _, *reports, _ = heptad.run(everything, options)
    assert result_of(tmp_path / "run") == result_of(undisturbed)
    assert leftovers(tmp_path / "run") == []
    steps = [report.step for report in reports if isinstance(report, StepReport)]
    # Controls: it was not finished, and no step was done twice.
    first = {"in training": 9, "in the test": None}.get(when, 11)
    if when in ("in the last validation", "before the test", "after the test"):
        first = None
    assert (steps[0] if steps else None) == first
    assert metrics_of(tmp_path / "run")["execution"]["resumed_from"] == [first - 1 if first else 15]


@pytest.mark.slow
def test_a_run_that_is_left_after_every_report_goes_on_to_the_bit(
    everything, undisturbed, tmp_path
):
    """Each time it gets one report further: 15 steps, 6 + 7 scored batches, 3 epochs, the run."""
    options = ONE_THREAD.changed(out=str(tmp_path / "run"), resume=True)
    kinds = []
    while "Run" not in kinds:
        events = heptad.run(everything, options)
        next(events)
        kinds.append(type(next(events)).__name__)
        events.close()
        assert len(kinds) <= 32
    assert Counter(kinds) == {"StepReport": 15, "EvaluationReport": 13, "EpochReport": 3, "Run": 1}
    assert result_of(tmp_path / "run") == result_of(undisturbed)


def everything_words(digits, out, *more: str) -> list[str]:
    """The words of the recipe `everything`, with a checkpoint after each step."""
    flags = {"limit": 100, "batch-size": 16, "epochs": 3, "learning-rate": 0.003, **MOVES}
    flags |= {"validation": 20, "patience": 3, "class-weights": "balanced", "threads": 1}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    words += ["--data", str(digits), "--out", str(out), "--checkpoint-every", "1"]
    return ["train", "lenet5", *words, *more]


# Passes without gradients: two batches of each validation, then seven of the test.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "training", "resumed_from"),
    [(8, True, 7), (4, False, 10), (6, False, 15), (9, False, 15)],
    ids=["in training", "in a validation", "in the last validation", "in the test"],
)
def test_a_run_with_validation_that_is_killed_goes_on_to_the_bit(
    number, training, resumed_from, digits, undisturbed, tmp_path
):
    run, log = tmp_path / "run", tmp_path / "log"
    process = fork(
        everything_words(digits, run), log, partial(at_forward, number, KILL, training=training)
    )
    process.join()
    # A control: the kill did come.
    assert process.exitcode == -signal.SIGKILL, log.read_text()
    assert main(everything_words(digits, run, "--resume")) == 0
    assert result_of(run) == result_of(undisturbed)
    assert metrics_of(run)["execution"]["resumed_from"] == [resumed_from]


@pytest.mark.slow
def test_the_proof_that_a_killed_run_resumes_holds_with_validation(digits, capsys):
    words = everything_words(digits, "nowhere")[2:]
    place = words.index("--threads")
    words = [*words[:place], "--data", str(digits), "--kills", "1", "--json"]
    assert main(["verify", "--resume-proof", "lenet5", *words]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert (proof["differing"], proof["num_kills"] > 0) == ([], True)


@pytest.mark.parametrize(
    ("part", "number"),
    [
        ("test", 100),
        pytest.param("test", 64, marks=pytest.mark.slow),
        pytest.param("validation", 16, marks=pytest.mark.slow),
    ],
    ids=["finished", "in the test", "in the last validation"],
)
def test_a_run_goes_on_for_more_epochs_as_if_they_had_been_asked_for_at_once(
    part, number, uphill_and_down, at_once, tmp_path
):
    recipe, best, *_ = uphill_and_down
    # It ends with weights that are not those to go on with.
    fewer = next(k for k in range(6) if best[k] < k) + 1
    is_it = moment(EvaluationReport, epoch=fewer, part=part, num_scored=number)
    left_at(is_it, recipe.changed(epochs=fewer), tmp_path / "run")
    if number == 100:
        run = trained(recipe.changed(epochs=fewer), tmp_path / "run", resume=True)
        assert run.metrics["selected_epoch"] < fewer
    trained(recipe, tmp_path / "run", resume=True)
    assert result_of(tmp_path / "run") == result_of(at_once.folder)
    # A control: no step was done again.
    assert set(metrics_of(tmp_path / "run")["execution"]["resumed_from"]) == {5 * fewer}


def test_a_run_that_patience_stopped_stays_stopped(uphill_and_down, tmp_path):
    recipe = uphill_and_down[0].changed(patience=1)
    before = trained(recipe, tmp_path / "run")
    after = trained(recipe.changed(epochs=9), tmp_path / "run", resume=True)
    assert len(after.epochs) == len(before.epochs) < 6
    assert after.metrics["selected_epoch"] == before.metrics["selected_epoch"]
    assert torch.equal(after.scores.logits, before.scores.logits)


@pytest.mark.parametrize(
    "when",
    [
        "before a validation",
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("before the test", "in the test")),
    ],
)
def test_how_far_a_resumed_run_is_can_always_be_said(
    when, everything, tmp_path, monkeypatch, capsys
):
    """With a line after every report instead of every half minute."""
    left_at(MOMENTS[when], everything, tmp_path / "run")
    monkeypatch.setattr("heptad.cli.display.PLAIN_INTERVAL_S", 0.0)
    assert main(["resume", str(tmp_path / "run"), "--threads", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "minutes left" in line]
    assert len(lines) >= 5
    assert not [line for line in lines if "-" in line]


# Class weights


@pytest.fixture(scope="module")
def uneven(mnist, tmp_path_factory) -> Path:
    """A folder of class folders: 60 zeros, 30 ones, 6 twos to train on, 10 of each to test on."""
    folder = tmp_path_factory.mktemp("data") / "uneven"
    for part, numbers in (("train", (60, 30, 6)), ("test", (10, 10, 10))):
        images, labels = mnist[part]
        places = [np.flatnonzero(labels == k)[:number] for k, number in enumerate(numbers)]
        places = np.concatenate(places)
        write_pictures(folder / part, images[places, 0], labels[places])
    return folder


def losses_of(recipe, loss) -> list[float]:
    """The losses of an epoch in a loop of one's own, of an own loss and PyTorch's plain Adam."""
    cycle = heptad.prepare(recipe, ONE_THREAD)
    network, source = cycle.whole.network.train(), cycle.sources.train
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate, fused=False)
    losses = []
    order = epoch_order(len(source.labels), seed=recipe.seed, epoch=0)
    for indices in order.split(recipe.batch_size):
        optimizer.zero_grad()
        value = loss(network(source.take(indices, 0)), source.labels[indices])
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def test_balanced_class_weights_are_those_of_scikit_learn(uneven):
    recipe = heptad.load_recipe(
        "lenet5", data=str(uneven), batch_size=16, precision="float64", class_weights="balanced"
    )
    cycle = heptad.prepare(recipe, ONE_THREAD)
    losses = [step.loss for step in heptad.steps(cycle, Position(1))]
    labels = [0] * 60 + [1] * 30 + [2] * 6
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    expected = losses_of(recipe, torch.nn.CrossEntropyLoss(torch.from_numpy(weights)))
    assert losses == pytest.approx(expected, rel=1e-12)
    # A control: without weights they are others.
    assert losses != pytest.approx(losses_of(recipe, cross_entropy), rel=1e-3)
    # What is scored is weighed as it is.
    scores = scores_of(cycle, cycle.sources.test)
    assert scores.loss == pytest.approx(cross_entropy(scores.logits, scores.labels).item())


def test_class_weights_do_without_images_of_a_class(uneven):
    """Of the last one too, which no label then tells of."""
    recipe = heptad.load_recipe("lenet5", data=str(uneven), limit=2, batch_size=1)
    cycle = heptad.prepare(recipe.changed(class_weights="balanced"))
    assert (cycle.sources.train.labels.tolist(), len(cycle.sources.train.classes)) == ([0, 1], 3)
    losses = [step.loss for step in heptad.steps(cycle, Position(1))]
    # The two classes that are there have one image each, and so equal weights.
    plain = heptad.steps(heptad.prepare(recipe), Position(1))
    assert losses == pytest.approx([step.loss for step in plain], rel=1e-6)


def test_uneven_classes_are_pointed_out(uneven, digits, tmp_path, capsys):
    words = ["--epochs", "1", "--limit", "90", "--out"]
    for data, said in ((uneven, True), (digits, False)):
        out = str(tmp_path / data.name)
        assert main(["train", "lenet5", "--data", str(data), *words, out]) == 0
        assert ("--class-weights balanced" in capsys.readouterr().out) == said


# Augmentation


def seen_by(cycle) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """Train, and give the images that the network sees: in each epoch, in each evaluation."""
    batches: dict[bool, list[bytes]] = {True: [], False: []}

    def note(_, inputs) -> None:
        batches[torch.is_grad_enabled()] += [image.numpy().tobytes() for image in inputs[0]]

    cycle.whole.network.register_forward_pre_hook(note)
    trained_on, scored = [], []
    for report in heptad.progress(cycle):
        if isinstance(report, EpochReport):
            trained_on.append(batches[True])
            scored.append(batches[False])
            batches |= {True: [], False: []}
    return trained_on, [*scored, batches[False]]


def test_training_images_change_in_every_epoch_and_scored_ones_never(lenet):
    recipe = lenet.changed(**MOVES)
    cycle, plain = heptad.prepare(recipe), heptad.prepare(lenet)
    trained_on, scored = seen_by(cycle)
    versions = [set(epoch) for epoch in [*trained_on, inputs_of(plain.sources.train)]]
    assert all(not a & b for k, a in enumerate(versions) for b in versions[:k])
    validated, tested = (inputs_of(part) for part in (plain.sources.validation, plain.sources.test))
    assert scored == [validated, validated, validated, tested]
    # A control: without augmentation an epoch sees what the one before saw.
    first, second, _ = seen_by(plain)[0]
    assert sorted(first) == sorted(second)


def test_augmentation_is_the_same_whatever_fits_in_memory(lenet, pictures, tmp_path):
    recipe = lenet.changed(**MOVES, data=str(pictures), validation=0.2, limit=None)
    recipe = recipe.changed(epochs=2)
    small, large = (trained(recipe, tmp_path / f"{size}", memory=size) for size in (0, 10**9))
    assert result_of(small.folder) == result_of(large.folder)


def test_a_run_with_augmentation_shows_what_it_does(everything, undisturbed, lenet, tmp_path):
    with Image.open(undisturbed / "augmentation.png") as sheet:
        assert min(sheet.size) > 6 * 64
    assert "augmentation.png" in metrics_of(undisturbed)["files"]
    plain = trained(lenet.changed(epochs=1), tmp_path / "plain").folder
    assert not (plain / "augmentation.png").exists()


# Views


def losses_by(recipe, **options) -> tuple[heptad.Cycle, list[float]]:
    cycle = heptad.prepare(recipe, ONE_THREAD.changed(**options))
    reports = list(heptad.epochs(cycle))
    return cycle, [loss for report in reports for loss in report.step_losses]


@pytest.mark.slow
def test_views_train_as_the_plain_loop_does_while_they_last(resnet, own_cache):
    recipe = resnet.changed(epochs=3, validation=4)
    plain, expected = losses_by(recipe, trunk="off")
    cached, losses = losses_by(recipe.changed(views=3))
    assert (plain.num_computed, cached.num_computed) == (0, 16 * 3 + 16 + 4 + 20)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert cached.scores.predicted.tolist() == plain.scores.predicted.tolist()
    # A control: with fewer views the third epoch sees the first one's images again.
    _, again = losses_by(recipe.changed(views=2))
    assert again[:4] == losses[:4]
    assert again[4:] != pytest.approx(losses[4:], rel=1e-5)


@pytest.mark.slow
def test_views_are_kept_and_come_round_in_turn(resnet, own_cache):
    first = heptad.prepare(resnet.changed(views=2))
    second = heptad.prepare(resnet.changed(views=2))
    assert (first.num_computed, second.num_computed) == (20 * 2 + 40, 0)
    # Another view is one more of each training image; fewer are none.
    assert heptad.prepare(resnet.changed(views=3)).num_computed == 20
    assert heptad.prepare(resnet.changed(views=1)).num_computed == 0
    views = [inputs_of(second.sources.train, epoch) for epoch in (0, 1, 2, 3, None)]
    assert views[0] == views[2] != views[1] == views[3]
    assert views[4] not in views[:4]
    # Otherwise augmented, they are others.
    assert heptad.prepare(resnet.changed(views=2, rotation=20)).num_computed == 40


@pytest.mark.slow
def test_a_pass_of_views_that_was_stopped_goes_on(resnet, own_cache, tmp_path):
    recipe = resnet.changed(views=4, limit=100)
    events = heptad.run(recipe, ONE_THREAD.changed(out=str(tmp_path / "run")))
    for report in events:
        assert isinstance(report, PassReport)
        if report.num_done > 300:
            break
    events.close()
    assert 300 < report.num_done < report.num_images == 600
    assert heptad.prepare(recipe).num_computed == 600 - report.num_done


@pytest.mark.slow
def test_a_run_on_views_that_was_left_goes_on_to_the_bit(resnet, tmp_path):
    recipe = resnet.changed(views=2, validation=4)
    straight = trained(recipe, tmp_path / "straight")
    left_at(moment(StepReport, epoch=2, step=3), recipe, tmp_path / "run")
    left_at(moment(EvaluationReport, part="test", num_scored=8), recipe, tmp_path / "run")
    trained(recipe, tmp_path / "run", resume=True)
    assert result_of(tmp_path / "run") == result_of(straight.folder)
    assert metrics_of(tmp_path / "run")["execution"]["resumed_from"] == [3, 6]


@pytest.mark.slow
def test_without_views_augmented_images_have_no_trunk(resnet):
    cycle = heptad.prepare(resnet)
    assert cycle.trunk == (
        "no trunk: every epoch changes the images anew; --views 5 would keep 5 of them"
    )
    assert cycle.num_computed == 0
