"""The LeNet-5 of 1998: counts, connections, units and loss as the paper has them, and a run."""

from __future__ import annotations

import json
from itertools import islice
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import heptad
from conftest import write_idx, write_pictures
from heptad.architectures.lenet1998 import digit_codes, squash
from heptad.cli import main
from heptad.errors import ImageError, RecipeError
from heptad.stages.data import open_sources
from heptad.stages.model import build_model
from heptad.stages.objective import RUBBISH, configure_objective
from heptad.transform import Transform
from killing import result_of

CPU = torch.device("cpu")
BACKGROUND, FOREGROUND = -0.1, 1.175
# Which maps of S2 each map of C3 sees, by the paper's words: every three in a row, every four in a
# row, around the corner too; then some fours that are not in a row, as in table I; then all.
SEEN = [
    *({k % 6 for k in range(first, first + 3)} for first in range(6)),
    *({k % 6 for k in range(first, first + 4)} for first in range(6)),
    *({0, 1, 3, 4}, {1, 2, 4, 5}, {0, 2, 3, 5}),
    {0, 1, 2, 3, 4, 5},
]


@pytest.fixture(scope="module")
def recipe(digits):
    """Two epochs of four steps."""
    return heptad.load_recipe("lenet5-1998", data=str(digits), limit=128, batch_size=32, epochs=2)


@pytest.fixture
def network():
    return build_model(heptad.load_recipe("lenet5-1998"), num_classes=10, device=CPU).network


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Path:
    """The folder of a short run from the command line."""
    out = tmp_path_factory.mktemp("lenet1998") / "run"
    words = ["--limit", "64", "--epochs", "1", "--threads", "1", "--no-report"]
    assert main(["train", "lenet5-1998", "--data", str(digits), "--out", str(out), *words]) == 0
    return out


# The network


def test_every_layer_has_as_many_parameters_as_the_paper_says(network):
    counts = {
        name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()
    }
    assert counts == {
        "c1": 156,
        "s2": 12,
        "c3": 1_516,
        "s4": 32,
        "c5": 48_120,
        "f6": 10_164,
        "output": 0,
    }
    assert sum(counts.values()) == 60_000


def test_each_map_of_c3_sees_the_maps_of_s2_that_the_paper_says(network):
    maps = torch.randn(1, 6, 14, 14, requires_grad=True)
    outputs = network.c3(maps)
    assert outputs.shape == (1, 16, 10, 10)
    for seen, output in zip(SEEN, outputs[0], strict=True):
        (gradient,) = torch.autograd.grad(output.sum(), maps, retain_graph=True)
        assert set(gradient[0].abs().sum((1, 2)).nonzero()[:, 0].tolist()) == seen


def test_c3_is_sixteen_convolutions_of_the_maps_that_each_sees(network):
    maps = torch.randn(2, 6, 14, 14)
    kernels = iter(network.c3.weight)
    for k, seen in enumerate(SEEN):
        own = torch.stack([next(kernels) for _ in seen])[None]
        expected = torch.nn.functional.conv2d(
            maps[:, sorted(seen)], own, network.c3.bias[k : k + 1]
        )
        torch.testing.assert_close(network.c3(maps)[:, k : k + 1], expected)


def test_subsampling_adds_up_four_then_weighs_and_shifts_by_hand(network):
    layer = network.s2
    maps = torch.arange(6 * 16.0).view(1, 6, 4, 4)
    sums = layer(maps)
    assert sums.shape == (1, 6, 2, 2)
    # The corner of the second map: 16 + 17 + 20 + 21.
    assert sums[0, 1, 0, 0].item() == pytest.approx(
        74 * layer.weight[1].item() + layer.bias[1].item(), rel=1e-5
    )


def test_squashing_keeps_one_and_minus_one_and_ends_at_the_amplitude():
    values = squash(torch.tensor([-1e9, -1.0, 0.0, 1.0, 1e9]))
    assert values.tolist() == pytest.approx([-1.7159, -1.0, 0.0, 1.0, 1.7159], abs=5e-5)


def test_the_codes_are_pictures_of_the_digits_that_do_not_train(network):
    seven = """
        #######
        .....##
        .....##
        ....##.
        ...##..
        ...##..
        ..##...
        ..##...
        ..##...
        ..##...
        .......
        ......."""
    codes = digit_codes()
    assert codes[7].tolist() == [1.0 if cell == "#" else -1.0 for cell in "".join(seven.split())]
    assert codes.shape == (10, 84)
    assert len(codes.unique(dim=0)) == 10
    assert torch.equal(network.output.codes, codes)
    assert "output.codes" in network.state_dict()


def test_a_logit_is_minus_the_squared_distance_to_a_code(network):
    codes = digit_codes()
    values = torch.stack([codes[3], torch.zeros(84), codes[3]])
    values[2, 5] += 0.5
    logits = network.output(values)
    # Each of the bits in which two codes differ is 2 apart.
    expected = [-4.0 * sum(a != b for a, b in zip(codes[3], code, strict=True)) for code in codes]
    assert logits[0].tolist() == expected
    assert logits[1].tolist() == [-84.0] * 10
    assert logits[2, 3] == -0.25
    assert logits.argmax(1)[[0, 2]].tolist() == [3, 3]


def test_start_values_lie_within_the_paper_s_bounds_and_fill_them(network):
    def reach(values):
        return values.abs().max().item()

    assert 2.2 / 25 < reach(network.c1.weight) <= 2.4 / 25
    assert 2.3 / 400 < reach(network.c5.weight) <= 2.4 / 400
    assert 2.3 / 120 < reach(network.f6.weight) <= 2.4 / 120
    assert 1.5 / 4 < reach(network.s4.weight) <= 2.4 / 4
    # Units of C3 have 75, 100 or 150 inputs, in this order.
    for kernels, num_inputs in zip(
        network.c3.weight.split([18, 36, 6]), (75, 100, 150), strict=True
    ):
        assert 2.3 / num_inputs < reach(kernels) <= 2.4 / num_inputs


# The loss


def test_the_loss_is_the_paper_s_by_hand(network):
    recipe = heptad.load_recipe("lenet5-1998")
    penalties = [[0.5, 3.0, 2.0], [4.0, 1.5, 6.0]]
    labels = [0, 2]
    expected = [
        y[label] + log(exp(RUBBISH) + sum(exp(-each) for each in y))
        for y, label in zip(penalties, labels, strict=True)
    ]
    assert RUBBISH < 0
    logits = -torch.tensor(penalties, dtype=torch.float64)
    loss = configure_objective(recipe, list(network.parameters())).loss
    assert loss(logits, torch.tensor(labels)).item() == pytest.approx(sum(expected) / 2, rel=1e-12)
    # Of three images two are of class 0: weights of 3/4 and 3/2.
    weighted = configure_objective(
        recipe.changed(class_weights="balanced"),
        list(network.double().parameters()),
        torch.tensor([0, 0, 2]),
        num_classes=3,
    ).loss
    mean = (0.75 * expected[0] + 1.5 * expected[1]) / 2.25
    assert weighted(logits, torch.tensor(labels)).item() == pytest.approx(mean, rel=1e-12)


def test_the_test_loss_is_the_recipe_s_in_training_and_when_evaluated_again(run):
    metrics = json.loads((run / "metrics.json").read_text())
    scores = heptad.load_run(run).evaluate()
    penalties = -scores.logits.double()
    rubbish = torch.full((len(penalties), 1), RUBBISH, dtype=torch.float64)
    total = torch.cat([-penalties, rubbish], 1).logsumexp(1)
    own = penalties.gather(1, scores.labels[:, None])[:, 0]
    assert scores.loss == pytest.approx((own + total).mean().item(), rel=1e-9)
    assert metrics["test_loss"] == pytest.approx(scores.loss, rel=1e-6)


# Images amid black


def test_images_lie_in_the_middle_of_what_the_paper_calls_background(digits, mnist, recipe):
    source = open_sources(recipe, device=CPU).test
    inputs = source.take(torch.arange(128), None)
    digit = mnist["test"][0][source.ids[0].item(), 0] / 255
    expected = np.pad(digit, 2) * (FOREGROUND - BACKGROUND) + BACKGROUND
    assert inputs.shape == (128, 1, 32, 32)
    np.testing.assert_allclose(inputs[0, 0], expected, atol=1e-6)
    assert inputs.min().item() == pytest.approx(BACKGROUND)
    assert inputs.max().item() == pytest.approx(FOREGROUND)
    assert source.transform.black().item() == pytest.approx(BACKGROUND)


@pytest.mark.parametrize("memory", [0, 10**9], ids=["batch by batch", "padded once"])
def test_an_odd_margin_has_its_odd_pixel_right_and_below(digits, mnist, memory):
    recipe = heptad.load_recipe("resnet50", data=str(digits), image_size=33, fit="pad", limit=20)
    source = open_sources(recipe, device=CPU, memory=memory).test
    digit = torch.from_numpy(mnist["test"][0][source.ids[3].item(), 0]) / 255
    inputs = source.take(torch.tensor([3]), None)[0]
    torch.testing.assert_close(inputs[2, 2:30, 2:30], (digit - 0.5) / 0.5)
    assert (inputs == -1).sum() >= 3 * (33**2 - 28**2)


def test_what_is_shifted_in_is_background(recipe):
    inputs = open_sources(recipe.changed(shift=0.3), device=CPU).train.take(torch.arange(64), 1)
    assert inputs.min().item() == pytest.approx(BACKGROUND)
    corners = inputs[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.median().item() == pytest.approx(BACKGROUND)


def test_images_that_are_too_large_are_refused_before_any_step(tmp_path, workplace):
    for part in ("train", "test"):
        write_idx(tmp_path / "large", part, np.zeros((20, 30, 40)), np.arange(20) % 10)
    recipe = heptad.load_recipe("lenet5-1998", data=str(tmp_path / "large"))
    with pytest.raises(RecipeError, match=r"image_size 32 px, but the images have 40 x 30"):
        heptad.prepare(recipe, heptad.RunOptions(memory=0))


def test_pictures_of_a_folder_are_not_padded(pictures):
    with pytest.raises(RecipeError, match=r"fit is pad, but .* holds pictures"):
        heptad.prepare(heptad.load_recipe("lenet5-1998", data=str(pictures)))
    run = heptad.load_recipe("lenet5-1998", data=str(pictures), fit="resize", limit=20, epochs=1)
    assert heptad.prepare(run).sources.train.take(torch.arange(1), None).shape == (1, 1, 32, 32)


def test_a_transform_is_written_as_before_unless_images_are_padded():
    resized = Transform(32, 1, (0.5,), (0.25,))
    padded = Transform(32, 1, (0.5,), (0.25,), "pad")
    document = {"image_size": 32, "channels": 1, "mean": [0.5], "deviation": [0.25]}
    assert resized.as_document() == document
    assert padded.as_document() == document | {"fit": "pad"}
    for transform in (resized, padded):
        assert Transform.from_document(transform.as_document()) == transform


# Runs


def test_a_run_says_how_many_parameters_train_and_keeps_its_codes(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["parameters"] == metrics["trained_parameters"] == 60_000
    assert metrics["transform"]["fit"] == "pad"
    state = torch.load(run / "lenet5-1998_digits.pth", weights_only=True)
    assert torch.equal(state["output.codes"], digit_codes())
    assert state["c3.weight"].numel() + state["c3.bias"].numel() == 1_516


def test_a_run_goes_on_to_the_bit(recipe, tmp_path):
    options = heptad.RunOptions(out=str(tmp_path / "run"), resume=True, threads=1)
    events = heptad.run(recipe, options)
    # What was prepared, and two steps.
    assert len(list(islice(events, 3))) == 3
    events.close()
    heptad.train(recipe, options)
    heptad.train(recipe, options.changed(out=str(tmp_path / "once")))
    assert result_of(tmp_path / "run") == result_of(tmp_path / "once")


def test_a_run_starts_from_the_weights_of_an_earlier_one(run, recipe, tmp_path):
    path = run / "lenet5-1998_digits.pth"
    cycle = heptad.prepare(recipe.changed(weights=str(path)))
    assert cycle.whole.start["last_layer"] == "kept"
    for name, value in torch.load(path, weights_only=True).items():
        assert torch.equal(cycle.whole.network.state_dict()[name], value)
    # Without them the codes are put in anew.
    state = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "output.codes"}, tmp_path / "bare.pth")
    cycle = heptad.prepare(recipe.changed(weights=str(tmp_path / "bare.pth")))
    assert torch.equal(cycle.whole.network.output.codes, digit_codes())


@pytest.mark.parametrize("name", ["safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_exported_run_answers_as_the_run_does(run, digit_files, tmp_path, name):
    exported = heptad.export(run, name, tmp_path / f"model.{name}")
    ours, theirs = heptad.load_run(run), heptad.load_model(exported.file)
    assert theirs.transform == ours.transform
    for here, there in zip(ours.predict(digit_files), theirs.predict(digit_files), strict=True):
        assert [k for k, _ in here.classes] == [k for k, _ in there.classes]


def test_a_picture_is_padded_too_and_one_that_is_too_large_is_refused(run, mnist, tmp_path):
    classifier = heptad.load_run(run)
    digit = mnist["test"][0][0, 0]
    Image.fromarray(digit).save(tmp_path / "digit.png")
    Image.fromarray(np.zeros((30, 50), np.uint8)).save(tmp_path / "large.png")
    assert np.array_equal(classifier.feed(tmp_path / "digit.png").pixels[0], np.pad(digit, 2))
    with pytest.raises(ImageError, match=r"large.png has 50 x 30 pixels; allowed: 32 x 32"):
        classifier.feed(tmp_path / "large.png", as_digit="no")


def test_other_numbers_of_classes_are_refused(mnist, tmp_path):
    images, labels = (values[:60] for values in mnist["train"])
    folder = write_pictures(tmp_path / "few", images[labels < 3, 0], labels[labels < 3])
    recipe = heptad.load_recipe("lenet5-1998", data=str(folder), fit="resize")
    with pytest.raises(RecipeError, match="the data has 3 classes, but lenet5-1998 tells 10"):
        heptad.prepare(recipe)


def test_to_train_its_last_layer_alone_is_refused_before_data_is_looked_for():
    recipe = heptad.load_recipe("lenet5-1998", trainable="last-layer", data="nowhere")
    with pytest.raises(RecipeError, match="last layer of lenet5-1998 has no parameters"):
        heptad.prepare(recipe)
