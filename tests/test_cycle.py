"""The cycle: the plain loop's numbers, from the same start in the same order, whoever asks."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

import heptad
from heptad.errors import NotFiniteError
from heptad.records import Position
from heptad.stages.data import epoch_order


class PlainLeNet5(nn.Module):
    """As everybody writes it: ReLU before the pool."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, x):
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)


def plain_losses(images, labels, start, order, *, num_steps, dtype, eps=1e-8):
    """The training loop of the plain script: PIL transforms, contiguous tensors, unfused Adam."""
    transform = transforms.Compose(
        [
            transforms.Resize((32, 32)),
            transforms.ToTensor(),
            transforms.Normalize((0.1307,), (0.3081,)),
        ]
    )
    model = PlainLeNet5()
    model.load_state_dict(start)
    model = model.to(dtype)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, eps=eps, foreach=False, fused=False)
    model.train()
    losses = []
    for indices in order.split(64)[:num_steps]:
        inputs = torch.stack([transform(Image.fromarray(images[i, 0])) for i in indices]).to(dtype)
        optimizer.zero_grad()
        loss = criterion(model(inputs), torch.from_numpy(labels)[indices])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def both(mnist, *, seed, num_steps, precision, eps=1e-8):
    recipe = heptad.load_recipe("lenet5", seed=seed, precision=precision)
    cycle = heptad.prepare(recipe)
    start = {
        name: value.contiguous()
        for name, value in copy.deepcopy(cycle.model.network.state_dict()).items()
    }
    order = epoch_order(60_000, seed=seed, epoch=0)
    ours = [step.loss for step in heptad.steps(cycle, Position(0, 64 * num_steps))]
    plain = plain_losses(
        *mnist["train"],
        start,
        order,
        num_steps=num_steps,
        dtype=getattr(torch, precision),
        eps=eps,
    )
    return ours, plain


def largest_difference(ours, plain):
    assert len(ours) == len(plain)
    return max(abs(a - b) / b for a, b in zip(ours, plain, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_200_steps_in_float64_are_those_of_the_plain_loop(mnist, seed):
    ours, plain = both(mnist, seed=seed, num_steps=200, precision="float64")
    assert len(ours) == 200
    assert largest_difference(ours, plain) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
def test_the_first_steps_in_float32_are_those_of_the_plain_loop(mnist, seed):
    ours, plain = both(mnist, seed=seed, num_steps=10, precision="float32")
    assert largest_difference(ours, plain) <= 1e-6


@pytest.mark.slow
def test_the_comparison_with_the_plain_loop_can_fail(mnist):
    """A control: Adam with another eps is another training, and is seen to be."""
    ours, plain = both(mnist, seed=0, num_steps=200, precision="float64", eps=2e-8)
    assert largest_difference(ours, plain) > 1e-12
    ours, plain = both(mnist, seed=0, num_steps=10, precision="float32", eps=1e-6)
    assert largest_difference(ours, plain) > 1e-6


def final_state(cycle):
    return {name: value.clone() for name, value in cycle.model.network.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def recipe(digits):
    return heptad.load_recipe("lenet5", data=str(digits), epochs=2, batch_size=100)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(recipe):
    states = []
    for seed in (0, 0, 1):
        cycle = heptad.prepare(recipe.changed(seed=seed))
        for _ in heptad.epochs(cycle):
            pass
        states.append(final_state(cycle))
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


def test_stopping_between_steps_and_going_on_changes_nothing(recipe):
    straight = heptad.prepare(recipe)
    losses = [step.loss for step in heptad.steps(straight, Position(2))]

    stopped = heptad.prepare(recipe)
    again = []
    while stopped.at < Position(2):
        # The caller's `break` is the stop; the global generator is disturbed meanwhile.
        for step in heptad.steps(stopped, Position(2)):
            again.append(step.loss)
            if len(again) % 4 == 0:
                break
        torch.rand(7)
    assert again == losses
    assert equal(final_state(stopped), final_state(straight))


@pytest.mark.slow
def test_dropout_draws_depend_on_the_place_in_the_run_alone(digits):
    """VGG16's Dropout is on while training: a stop must not change what it draws."""
    recipe = heptad.load_recipe(
        "vgg16", data=str(digits), weights="none", image_size=32, limit=32, batch_size=8
    )
    straight, stopped = heptad.prepare(recipe), heptad.prepare(recipe)
    losses = [step.loss for step in heptad.steps(straight, Position(1))]
    first = [step.loss for step in heptad.steps(stopped, Position(0, 16))]
    torch.rand(100)
    rest = [step.loss for step in heptad.steps(stopped, Position(1))]
    assert first + rest == losses


def plain_values(report):
    return report.epoch, report.step_losses, report.step_images, report.scores.loss


@pytest.mark.parametrize("num_reports", [1, 4, 6, 7, 8, 9, 10, 13])
def test_a_break_anywhere_loses_no_step_and_no_evaluation(recipe, num_reports):
    """An epoch is 6 steps, 2 scored batches and its own report."""
    expected = [plain_values(report) for report in heptad.epochs(heptad.prepare(recipe))]
    cycle = heptad.prepare(recipe)
    seen = [report for _, report in zip(range(num_reports), heptad.progress(cycle), strict=False)]
    rest = heptad.epochs(cycle)
    first = [report for report in seen if isinstance(report, heptad.EpochReport)]
    assert [plain_values(report) for report in [*first, *rest]] == expected


def test_epochs_goes_on_after_steps_taken_by_hand(recipe):
    cycle = heptad.prepare(recipe)
    for _ in heptad.steps(cycle, Position(1)):
        pass
    assert [report.epoch for report in heptad.epochs(cycle)] == [1, 2]


def test_the_generator_of_the_caller_is_left_alone_without_dropout(recipe):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    next(heptad.epochs(heptad.prepare(recipe)))
    assert torch.equal(torch.rand(3), expected)


def test_every_step_and_epoch_is_reported_in_order(recipe):
    kinds = [type(report).__name__ for report in heptad.progress(heptad.prepare(recipe))]
    epoch = ["StepReport"] * 6 + ["EvaluationReport"] * 2 + ["EpochReport"]
    assert kinds == epoch * 2


def test_steps_and_epochs_count_from_one(recipe):
    steps = list(heptad.steps(heptad.prepare(recipe), Position(2)))
    assert [step.step for step in steps] == list(range(1, 13))
    assert [step.epoch for step in steps] == [1] * 6 + [2] * 6
    assert [step.num_images for step in steps] == ([100] * 5 + [12]) * 2
    assert {step.learning_rate for step in steps} == {0.001}


def test_the_epoch_loss_weighs_a_short_last_batch_by_its_images(recipe):
    report = next(heptad.epochs(heptad.prepare(recipe)))
    losses = report.step_losses
    assert len(losses) == 6
    assert report.train_loss == pytest.approx((100 * sum(losses[:5]) + 12 * losses[5]) / 512)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_it(recipe):
    cycle = heptad.prepare(recipe)
    steps = heptad.steps(cycle, Position(2))
    next(steps)
    with torch.no_grad():
        cycle.model.network.fc3.bias[3] = float("nan")
    before = final_state(cycle)
    with pytest.raises(NotFiniteError, match=r"step 2, epoch 1: the loss is nan"):
        next(steps)
    now = final_state(cycle)
    assert all(torch.equal(before[k], now[k]) for k in now if k != "fc3.bias")


def test_a_network_and_sources_that_are_given_are_used(recipe):
    first = heptad.prepare(recipe)
    network = copy.deepcopy(first.model.network)
    second = heptad.prepare(recipe, sources=first.sources, network=network)
    assert second.sources.train is first.sources.train
    assert second.model.network is network


@pytest.mark.slow
def test_lenet5_reaches_98_4_percent_in_three_epochs_over_five_seeds(mnist):
    accuracies = []
    for seed in range(5):
        cycle = heptad.prepare(heptad.load_recipe("lenet5", epochs=3, seed=seed))
        *_, last = heptad.epochs(cycle)
        accuracies.append(last.scores.accuracy)
    print("accuracies after three epochs:", accuracies)
    assert sum(accuracies) / 5 >= 0.984
    assert min(accuracies) >= 0.979
