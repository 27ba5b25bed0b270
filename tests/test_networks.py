"""Stages 3 and 4: the networks, what is trained in them, and that the rest stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torchvision.models import resnet50, vgg16

import heptad
from heptad.cycle import refuse_moved
from heptad.errors import DataError, FrozenError, RecipeError
from heptad.recipe import RunOptions
from heptad.records import Position
from heptad.stages.data import ordered_batches, training_batches
from heptad.stages.model import build_model, frozen_digests

CPU = torch.device("cpu")
PLAIN = RunOptions(trunk="off")


@pytest.fixture(scope="module")
def small(digits):
    """VGG16 and ResNet50 at 32 pixels with random weights: the same code at a part of the cost."""
    return {"data": str(digits), "weights": "none", "image_size": 32, "limit": 48, "batch_size": 16}


def prepared(name, small, **settings):
    """Made ready with the whole network in every step, so that all of it is looked at."""
    return heptad.prepare(heptad.load_recipe(name, **(small | settings)), PLAIN)


def take_steps(cycle, count):
    steps = heptad.steps(cycle, Position(1))
    return [next(steps).loss for _ in range(count)]


def test_lenet5_has_the_parameters_counted_by_hand():
    network = build_model(heptad.load_recipe("lenet5"), num_classes=10, device=CPU).network
    counts = {
        name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()
    }
    assert counts == {
        "conv1": 6 * (5 * 5 * 1 + 1),
        "conv2": 16 * (5 * 5 * 6 + 1),
        "fc1": 120 * (400 + 1),
        "fc2": 84 * (120 + 1),
        "fc3": 10 * (84 + 1),
    }
    assert sum(counts.values()) == 61_706


def test_resnet50_trains_its_last_layer_alone(small):
    cycle = prepared("resnet50", small)
    assert sum(p.numel() for p in cycle.whole.parameters()) == 23_528_522
    trained = [p for group in cycle.objective.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in trained) == 20_490
    assert {p.data_ptr() for p in trained} == {
        p.data_ptr() for p in cycle.whole.network.fc.parameters()
    }


@pytest.mark.slow
def test_vgg16_trains_its_last_layer_alone_with_frozen_dropout_on(small):
    """Dropout before the last layer draws anew in every step, though its layers are frozen."""
    cycle = prepared("vgg16", small)
    assert sum(p.numel() for p in cycle.whole.parameters()) == 134_301_514
    trained = [p for group in cycle.objective.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in trained) == 40_970
    assert {p.data_ptr() for p in trained} == {
        p.data_ptr() for p in cycle.whole.network.classifier[6].parameters()
    }
    inputs = cycle.sources.train.take(torch.arange(4), 0)
    cycle.model.train()
    assert cycle.whole.network.classifier[2].training
    assert not torch.equal(cycle.model(inputs), cycle.model(inputs))
    take_steps(cycle, 2)
    refuse_moved(cycle)


@pytest.mark.slow
def test_vgg16_with_frozen_dropout_off_answers_the_same_in_training(small):
    cycle = prepared("vgg16", small, frozen_dropout="off")
    inputs = cycle.sources.train.take(torch.arange(4), 0)
    cycle.model.eval()
    answers = cycle.model(inputs)
    cycle.model.train()
    assert torch.equal(cycle.model(inputs), answers)
    assert cycle.model.training


def test_frozen_batchnorm_moves_neither_parameter_nor_buffer(small):
    cycle = prepared("resnet50", small)
    before = copy.deepcopy(cycle.whole.network.state_dict())
    take_steps(cycle, 3)
    moved = {
        name
        for name, value in cycle.whole.network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {"fc.weight", "fc.bias"}
    refuse_moved(cycle)


def test_drifting_batchnorm_moves_its_statistics_as_the_plain_loop_does(small):
    cycle = prepared("resnet50", small, batchnorm="drifting")
    plain = copy.deepcopy(cycle.whole.network)
    batches = list(take_inputs(cycle))
    take_steps(cycle, 3)
    plain.train()
    with torch.no_grad():
        for inputs in batches[:3]:
            plain(inputs)
    for name, value in plain.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert torch.allclose(cycle.whole.network.state_dict()[name], value, rtol=1e-4), name
    assert cycle.whole.network.bn1.num_batches_tracked == 3
    # What may not move under this policy either, did not: every parameter but the last layer's.
    refuse_moved(cycle)


def take_inputs(cycle):
    for batch in training_batches(cycle.sources.train, cycle.recipe):
        yield batch.inputs.clone()


@pytest.mark.slow
def test_recalibrated_batchnorm_has_the_statistics_that_pytorch_computes(small):
    """torch.optim.swa_utils.update_bn averages over batches; with equal ones, over images."""
    cycle = prepared("resnet50", small, batchnorm="recalibrated")
    recipe = heptad.load_recipe("resnet50", **small)
    plain = build_model(recipe, num_classes=10, device=CPU).network
    update_bn([batch.inputs for batch in ordered_batches(cycle.sources.train, recipe)], plain)
    ours = cycle.whole.network.state_dict()
    for name, value in plain.state_dict().items():
        if "running" in name:
            assert torch.allclose(ours[name], value, rtol=1e-4, atol=1e-6), name
    take_steps(cycle, 2)
    refuse_moved(cycle)


def test_recalibration_weighs_a_short_batch_by_its_images(small):
    """48 images in batches of 40 and 8: the first layer's mean is that of all 48 maps."""
    cycle = prepared("resnet50", small, batchnorm="recalibrated", batch_size=40)
    inputs = cycle.sources.train.take(torch.arange(48), None)
    with torch.no_grad():
        maps = cycle.whole.network.conv1(inputs)
    mean = maps.mean((0, 2, 3))
    assert torch.allclose(cycle.whole.network.bn1.running_mean, mean, rtol=1e-4, atol=1e-6)


def test_recalibration_on_a_single_image_is_refused(small):
    with pytest.raises(DataError, match="at least two images"):
        prepared("resnet50", small, batchnorm="recalibrated", limit=1)


@pytest.mark.parametrize(
    "settings", [{"batchnorm": "drifting"}, {"frozen_dropout": "off"}], ids=lambda s: next(iter(s))
)
def test_a_policy_without_effect_is_refused(small, settings):
    with pytest.raises(RecipeError, match="has no such frozen layer"):
        heptad.prepare(heptad.load_recipe("lenet5", data=small["data"], **settings))


def test_a_run_in_which_something_frozen_moves_is_not_saved(small, workplace):
    """A negative control: a layer that adds up what it sees in a buffer, under all policies."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3 * 32 * 32, 10)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, inputs):
            self.seen += len(inputs)
            return self.fc(inputs.flatten(1))

    recipe = heptad.load_recipe("resnet50", **small)
    cycle = heptad.prepare(recipe, PLAIN, network=Counting())
    take_steps(cycle, 1)
    with pytest.raises(FrozenError, match="seen among them"):
        refuse_moved(cycle)


def test_one_nudged_weight_changes_its_digest_alone(small):
    cycle = prepared("resnet50", small)
    before = frozen_digests(cycle.whole)
    with torch.no_grad():
        cycle.whole.network.layer3[0].conv2.weight[0, 0, 0, 0] += 1e-6
    after = frozen_digests(cycle.whole)
    assert [name for name in before if before[name] != after[name]] == ["layer3.0.conv2.weight"]


@pytest.mark.slow
def test_the_state_dict_has_the_names_and_shapes_of_torchvision(small):
    for name, plain, last in (
        ("resnet50", resnet50(), "fc"),
        ("vgg16", vgg16(init_weights=False), "classifier.6"),
    ):
        network = prepared(name, small).whole.network
        ours = {key: value.shape for key, value in network.state_dict().items()}
        theirs = {key: value.shape for key, value in plain.state_dict().items()}
        different = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
        assert different == {f"{last}.weight", f"{last}.bias"}
