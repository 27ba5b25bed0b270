"""Settings of modern training: smoothed labels, clipped gradients, averaged weights, blocks."""

from __future__ import annotations

import json
from itertools import islice, pairwise

import pytest
import torch
from torch import nn
from torchvision.models import resnet50, vgg16

import heptad
from heptad.cycle import refuse_moved
from heptad.errors import DamagedError, RecipeError, WeightsError
from heptad.recipe import RunOptions
from heptad.records import Position
from heptad.stages.objective import configure_objective
from killing import metrics_of, result_of


@pytest.fixture
def recipe(digits):
    return heptad.load_recipe("lenet5", data=str(digits), limit=96, batch_size=32, epochs=2)


@pytest.fixture
def small(digits):
    """Larger networks at 32 pixels with random weights: the same code at a part of the cost."""
    return {
        "data": str(digits),
        "weights": "none",
        "image_size": 32,
        "limit": 32,
        "batch_size": 16,
        "trainable": "last-block",
    }


def weights_of(cycle):
    return {name: value.clone() for name, value in cycle.whole.network.state_dict().items()}


def trajectory(recipe, num_steps):
    """The weights before the first step and after each of the first few."""
    cycle = heptad.prepare(recipe)
    steps = heptad.steps(cycle, Position(2))
    return [weights_of(cycle), *(weights_of(cycle) for _ in islice(steps, num_steps))]


def test_smoothing_spreads_a_share_of_each_label_over_all_classes(recipe):
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    loss = configure_objective(recipe.changed(label_smoothing=0.3), [nn.Parameter(logits)]).loss
    penalties = -logits.log_softmax(1)
    # 0.3 of each label is spread over three classes, 0.7 stay where they were.
    expected = (0.7 * (penalties[0, 0] + penalties[1, 1]) + 0.1 * penalties.sum()) / 2
    assert loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "kind", "own"),
    [
        ({"optimizer": "adam"}, torch.optim.Adam, {}),
        ({"optimizer": "adamw", "weight_decay": 0.1}, torch.optim.AdamW, {"weight_decay": 0.1}),
        ({"optimizer": "sgd"}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_an_optimizer_steps_as_pytorchs_own_does(recipe, settings, kind, own):
    start, *gradients = torch.randn(5, 7, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = configure_objective(recipe.changed(**settings), [ours]).optimizer
    expected = kind([theirs], lr=recipe.learning_rate, fused=True, **own)
    for gradient in gradients:
        for each, parameter in ((optimizer, ours), (expected, theirs)):
            parameter.grad = gradient.clone()
            each.step()
            each.load_state_dict(each.state_dict())
            each.zero_grad()
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, start)
    kept, known = optimizer.state_dict()["state"], expected.state_dict()["state"]
    torch.testing.assert_close(kept, known, rtol=0, atol=0)


def test_the_losses_of_an_evaluation_are_not_smoothed(recipe):
    first, second = (
        heptad.prepare(recipe.changed(label_smoothing=share, learning_rate=1e-12))
        for share in (0.0, 0.5)
    )
    plain, smoothed = (next(iter(heptad.epochs(cycle))) for cycle in (first, second))
    assert smoothed.scores.loss == pytest.approx(plain.scores.loss, rel=1e-6)
    assert smoothed.train_loss != plain.train_loss


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_a_gradient_is_scaled_down_to_the_largest_norm_and_never_up(recipe, clip):
    settings = {"optimizer": "sgd", "learning_rate": 0.001, "precision": "float64"}
    recipe = recipe.changed(**settings)
    plain, clipped = (
        torch.cat([(after[name] - before[name]).flatten() for name in before])
        for before, after in (
            trajectory(recipe, 1),
            trajectory(recipe.changed(gradient_clip=clip), 1),
        )
    )
    # Nesterov's first step with a momentum of 0.9 is 1.9 gradients long.
    norm = plain.norm().item() / (1.9 * 0.001)
    assert norm > 0.01
    expected = plain * min(1.0, clip / norm)
    torch.testing.assert_close(clipped, expected, rtol=1e-5, atol=1e-12)


def test_the_average_of_the_weights_is_saved_and_scored(recipe, tmp_path):
    recipe = recipe.changed(averaging=0.6, precision="float64")
    run = heptad.train(recipe, heptad.RunOptions(out=str(tmp_path / "run")))
    plain, *walked = trajectory(recipe.changed(averaging=0.0), 6)
    expected = dict(plain)
    for number, weights in enumerate(walked, start=1):
        share = min(0.6, (1 + number) / (10 + number))
        expected = {
            name: share * mean + (1 - share) * weights[name] for name, mean in expected.items()
        }
    saved = torch.load(next(run.folder.glob("*.pth")), weights_only=True)
    for name, value in saved.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)
    # What was scored is what was saved, and is not what was trained on.
    assert heptad.load_run(run.folder).evaluate().loss == pytest.approx(run.scores.loss, rel=1e-6)
    assert not torch.equal(saved["fc3.bias"], walked[-1]["fc3.bias"])


def test_averaging_does_not_change_the_steps(recipe):
    plain, averaged = (
        [loss for report in heptad.epochs(heptad.prepare(each)) for loss in report.step_losses]
        for each in (recipe, recipe.changed(averaging=0.9))
    )
    assert averaged == plain


MODERN = {"averaging": 0.9, "gradient_clip": 1.0, "label_smoothing": 0.1, "layer_decay": 0.7}


@pytest.mark.parametrize("settings", [{}, {"validation": 0.3}], ids=["test", "validation"])
def test_a_run_left_in_steps_and_evaluations_goes_on_to_the_bit(recipe, settings, tmp_path):
    recipe = recipe.changed(**MODERN, **settings)
    options = heptad.RunOptions(out=str(tmp_path / "run"), resume=True, threads=1)
    last = None
    while not isinstance(last, heptad.Run):
        events = heptad.run(recipe, options)
        # What was prepared, and two reports: of steps, scored batches, epochs.
        *_, last = islice(events, 3)
        events.close()
    heptad.train(recipe, options.changed(out=str(tmp_path / "once")))
    assert result_of(tmp_path / "run") == result_of(tmp_path / "once")
    # A control: it was left in the midst of evaluations too, so that steps are named twice.
    resumed_from = metrics_of(tmp_path / "run")["execution"]["resumed_from"]
    assert len(resumed_from) > len(set(resumed_from)) > 2


@pytest.mark.slow
def test_an_averaged_run_goes_on_for_more_epochs_from_the_last_step(recipe, tmp_path):
    recipe = recipe.changed(averaging=0.9)
    options = heptad.RunOptions(out=str(tmp_path / "run"), resume=True, threads=1)
    heptad.train(recipe.changed(epochs=1), options)
    heptad.train(recipe, options)
    heptad.train(recipe, options.changed(out=str(tmp_path / "once")))
    assert result_of(tmp_path / "run") == result_of(tmp_path / "once")


@pytest.mark.slow
def test_an_averaged_run_whose_results_were_lost_is_written_again_from_its_checkpoint(
    recipe, tmp_path
):
    options = heptad.RunOptions(out=str(tmp_path / "run"), resume=True, threads=1)
    heptad.train(recipe.changed(averaging=0.9), options)
    expected = result_of(tmp_path / "run")
    for name in ("metrics.json", "lenet5_digits.pth"):
        (tmp_path / "run" / name).unlink()
    heptad.train(recipe.changed(averaging=0.9), options)
    assert result_of(tmp_path / "run") == expected


def test_each_block_before_the_last_has_the_decayed_rate(recipe):
    cycle = heptad.prepare(recipe.changed(layer_decay=0.5, learning_rate=0.01))
    step = next(heptad.steps(cycle, Position(1)))
    rates = {
        parameter.data_ptr(): group["lr"]
        for group in cycle.objective.optimizer.param_groups
        for parameter in group["params"]
    }
    named = {name: rates[p.data_ptr()] for name, p in cycle.whole.network.named_parameters()}
    assert {name.split(".")[0]: rate for name, rate in named.items()} == {
        "conv1": 0.0025,
        "conv2": 0.005,
        "fc1": 0.01,
        "fc2": 0.01,
        "fc3": 0.01,
    }
    assert step.learning_rate == 0.01


def test_a_decay_that_would_have_no_effect_is_refused(small):
    recipe = heptad.load_recipe("resnet50", **small | {"trainable": "last-layer"})
    with pytest.raises(RecipeError, match="one block that is trained; leave it at 1"):
        heptad.prepare(recipe.changed(layer_decay=0.5))


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("batchnorm", ["frozen", "held"])
def test_the_last_block_of_resnet50_is_layer4_and_what_follows(small, batchnorm):
    cycle = heptad.prepare(heptad.load_recipe("resnet50", **small, batchnorm=batchnorm))
    plain = resnet50(num_classes=10)
    assert count(cycle.model) == count(plain.layer4, plain.fc)
    assert sum(p.numel() for p in cycle.objective.trained) == count(plain.layer4, plain.fc)
    before = weights_of(cycle)
    list(heptad.steps(cycle, Position(1)))
    after = weights_of(cycle)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in moved} == {"layer4", "fc"}
    is_statistic = ("running" in name or "num_batches" in name for name in moved)
    # The statistics of trained BatchNorm go by the batches, unless they are held.
    assert any(is_statistic) == (batchnorm == "frozen")
    refuse_moved(cycle)
    assert cycle.trunk == "trunk that ends before layer4"


@pytest.mark.slow
def test_the_last_block_of_vgg16_is_the_fifth_of_convolutions_and_what_follows(small):
    cycle = heptad.prepare(heptad.load_recipe("vgg16", **small))
    plain = vgg16(num_classes=10, init_weights=False)
    assert count(cycle.model) == count(plain.features[24:], plain.classifier)
    list(heptad.steps(cycle, Position(1)))
    refuse_moved(cycle)
    assert cycle.trunk == "trunk that ends before features.24"


@pytest.mark.slow
@pytest.mark.parametrize("batchnorm", ["frozen", "held"])
def test_a_last_block_on_kept_features_trains_as_in_the_plain_loop(small, batchnorm):
    # Not with Adam, whose first steps are as long for a rounding error as for a slope.
    small |= {"optimizer": "sgd", "learning_rate": 1e-4, "layer_decay": 0.5}
    recipe = heptad.load_recipe("resnet50", **small, batchnorm=batchnorm, precision="float64")
    losses = []
    for options in (RunOptions(), RunOptions(trunk="off")):
        cycle = heptad.prepare(recipe, options)
        losses.append([step.loss for step in heptad.steps(cycle, Position(2))])
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    # A control: the steps changed something.
    assert all(one != other for one, other in pairwise(losses[0]))


def test_mixed_precision_multiplies_in_16_bits_and_keeps_float32_weights(recipe, tmp_path):
    plain = heptad.prepare(recipe)
    cycle = heptad.prepare(recipe.changed(precision="bfloat16"))
    inputs = cycle.sources.train.take(torch.arange(32), None)
    exact, rounded = (each.model.eval()(inputs) for each in (plain, cycle))
    assert inputs.dtype == exact.dtype == rounded.dtype == torch.float32
    # bfloat16 has 8 bits: an eighth of a percent of the largest value, in every layer.
    assert 1e-5 < ((rounded - exact).abs().max() / exact.abs().max()).item() < 0.03
    run = heptad.train(cycle.recipe, RunOptions(out=str(tmp_path / "run")))
    saved = torch.load(next(run.folder.glob("*.pth")), weights_only=True)
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert heptad.load_run(run.folder).evaluate().loss == pytest.approx(run.scores.loss, rel=1e-6)


@pytest.mark.slow
def test_features_in_mixed_precision_are_others_than_in_float32(small):
    small |= {"trainable": "last-layer"}
    exact, mixed = (
        heptad.prepare(heptad.load_recipe("resnet50", **small, precision=precision))
        for precision in ("float32", "bfloat16")
    )
    first, second = (each.sources.train.take(torch.arange(8), None) for each in (exact, mixed))
    assert 1e-5 < ((first - second).abs().max() / first.abs().max()).item() < 0.05
    other = heptad.load_recipe("resnet50", **small, precision="bfloat16", mean=0.4)
    with pytest.raises(RecipeError, match="engine is rewritten, which computes in float32"):
        heptad.prepare(other, RunOptions(engine="rewritten"))


@pytest.mark.slow
def test_a_run_goes_on_from_where_another_ended(small, tmp_path):
    small = small | {"trainable": "last-layer", "weights": "none"}
    head = heptad.train(
        heptad.load_recipe("resnet50", **small), RunOptions(out=str(tmp_path / "head"))
    )
    recipe = heptad.load_recipe(
        "resnet50-finetune", **small | {"weights": str(head.folder), "trainable": "all"}
    )
    cycle = heptad.prepare(recipe)
    saved = torch.load(head.folder / "resnet50_digits.pth", weights_only=True)
    state = cycle.whole.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in saved.items())
    assert cycle.whole.start == {
        "name": "resnet50_digits.pth",
        "sha256": head.metrics["files"]["resnet50_digits.pth"],
        "last_layer": "kept",
    }
    # What it rests on is noted, so that other bytes under that name are seen.
    content = bytearray((head.folder / "resnet50_digits.pth").read_bytes())
    content[-100_000] ^= 1
    (head.folder / "resnet50_digits.pth").write_bytes(content)
    with pytest.raises(DamagedError, match="is not what was saved"):
        heptad.prepare(recipe)


@pytest.mark.slow
def test_a_run_without_its_whole_network_is_no_start_and_the_way_out_is_said(small, tmp_path):
    small = small | {"trainable": "last-layer"}
    options = RunOptions(out=str(tmp_path / "head"), save="trained-part")
    heptad.train(heptad.load_recipe("resnet50", **small), options)
    other = heptad.load_recipe("resnet50", **small | {"weights": str(tmp_path / "head")})
    with pytest.raises(WeightsError, match="no file of its whole network") as caught:
        heptad.prepare(other)
    assert "heptad export" in caught.value.hint


@pytest.mark.slow
def test_statistics_beside_other_trained_layers_are_not_taken_from_a_cache(small, tmp_path):
    """Once those of the trained block too were kept, under a name without the block's weights."""
    small |= {"batchnorm": "recalibrated"}
    torch.manual_seed(0)
    plain, other = (tmp_path / f"{name}.pth" for name in ("plain", "other"))
    network = resnet50(num_classes=10)
    torch.save(network.state_dict(), plain)
    with torch.no_grad():
        network.layer4[0].conv1.weight.mul_(5)
    torch.save(network.state_dict(), other)
    states = [
        heptad.prepare(
            heptad.load_recipe("resnet50", **small | {"weights": str(path)})
        ).whole.network.state_dict()
        for path in (plain, other)
    ]
    name = "layer4.0.bn1.running_var"
    loaded = [torch.load(path, weights_only=True)[name] for path in (plain, other)]
    # What is trained goes on from what the weights have.
    assert all(torch.equal(state[name], own) for state, own in zip(states, loaded, strict=True))
    assert not torch.equal(states[0]["layer1.0.bn1.running_var"], torch.ones(64))


def test_statistics_that_no_trained_layer_moves_cannot_be_held(small):
    recipe = heptad.load_recipe("resnet50", **small | {"trainable": "last-layer"})
    with pytest.raises(RecipeError, match="trains no BatchNorm; leave it at frozen"):
        heptad.prepare(recipe.changed(batchnorm="held"))


@pytest.mark.slow
def test_features_before_held_layers_are_those_of_frozen_ones(small):
    recipe = heptad.load_recipe("resnet50", **small | {"mean": 0.42})
    assert heptad.prepare(recipe).num_computed == 64
    assert heptad.prepare(recipe.changed(batchnorm="held")).num_computed == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trainable": "last-block"}, "The last block of lenet5 and what follows it was trained"),
        ({"averaging": 0.9}, "this is the average of the weights over the last steps"),
        ({"label_smoothing": 0.1}, "in training, 0.1 of each label spread over all classes"),
        ({"layer_decay": 0.5}, "0.5 times that for each block before the last"),
        ({"gradient_clip": 1.5}, "gradients no longer than 1.5"),
        ({"precision": "bfloat16"}, "layers multiplied in 16 bits"),
    ],
    ids=str,
)
def test_a_report_says_how_the_training_was(recipe, tmp_path, settings, said):
    run = heptad.train(recipe.changed(**settings), RunOptions(out=str(tmp_path / "run")))
    heptad.write_report(run)
    assert said in (run.folder / "report.html").read_text(encoding="utf-8")


def test_validation_images_that_the_start_may_have_seen_are_warned_of(recipe, tmp_path, caplog):
    run = heptad.train(recipe, RunOptions(out=str(tmp_path / "run")))
    heptad.prepare(recipe.changed(weights=str(run.folder)))
    assert "so that their figures are too good" not in caplog.text
    heptad.prepare(recipe.changed(weights=str(run.folder), validation=0.2))
    assert "so that their figures are too good" in caplog.text


def test_test_pictures_that_the_start_was_trained_on_are_counted(pictures, tmp_path, caplog):
    recipe = heptad.load_recipe("lenet5", data=str(pictures), epochs=1)
    run = heptad.train(recipe, RunOptions(out=str(tmp_path / "run")))
    # Its own seed holds out its own pictures.
    heptad.prepare(recipe.changed(weights=str(run.folder)))
    assert "trained on by the run" not in caplog.text
    cycle = heptad.prepare(recipe.changed(weights=str(run.folder), seed=1))
    trained = {
        each["sha256"]
        for each in json.loads((run.folder / "pictures.json").read_text())["pictures"]
        if each["part"] == "train"
    }
    tested = [cycle.sources.pictures.seen[i].sha256 for i in cycle.sources.test.ids.tolist()]
    expected = sum(sha256 in trained for sha256 in tested)
    assert expected > 0
    assert f"{expected} of {len(tested)} test images were trained on by the run" in caplog.text


def test_a_setting_of_a_trunk_that_there_is_not_is_said_to_have_no_effect(digits, caplog):
    recipe = heptad.load_recipe("lenet5", data=digits, limit=20)
    heptad.prepare(recipe)
    assert "no effect" not in caplog.text
    options = RunOptions(engine="rewritten")
    heptad.prepare(recipe.changed(feature_dtype="float16"), options)
    said = "engine, feature_dtype: no effect, there is no trunk: every layer is trained"
    assert said in caplog.text


def test_a_setting_of_pictures_is_said_to_have_no_effect_on_other_sets(digits, pictures, caplog):
    settings = {"on_bad_image": "skip", "max_pixels": 10_000}
    heptad.prepare(heptad.load_recipe("lenet5", data=pictures, limit=20, **settings))
    assert "no effect" not in caplog.text
    heptad.prepare(heptad.load_recipe("lenet5", data=digits, limit=20, **settings))
    assert (
        f"on_bad_image, max_pixels: no effect, {digits} holds no files of pictures" in caplog.text
    )
