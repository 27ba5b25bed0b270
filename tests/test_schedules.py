"""Learning rates against PyTorch's own schedulers, optimizers against its own, and both resumed."""

from __future__ import annotations

import functools
from itertools import islice

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

import heptad
from heptad.errors import RecipeError
from heptad.records import Position
from heptad.schedules import rate_at
from heptad.stages.objective import configure_objective
from killing import metrics_of, result_of

NUM_STEPS = 37
ORACLES = {
    "one-cycle": functools.partial(OneCycleLR, max_lr=0.2, total_steps=NUM_STEPS),
    "cosine": functools.partial(CosineAnnealingLR, T_max=NUM_STEPS),
}


def rates(schedule: str, warmup: float = 0.0, num_steps: int = NUM_STEPS) -> list[float]:
    chosen = {"schedule": schedule, "peak": 0.2, "warmup": warmup, "num_steps": num_steps}
    return [rate_at(step, **chosen) for step in range(num_steps)]


@pytest.mark.parametrize("schedule", ORACLES)
def test_a_schedule_is_that_of_pytorch(schedule):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = ORACLES[schedule](optimizer)
    expected = []
    for _ in range(NUM_STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(schedule) == pytest.approx(expected, rel=1e-9)


def test_the_other_schedules_by_hand():
    assert rates("constant") == [0.2] * NUM_STEPS
    tenths = [0.2] * 4 + [0.02] * 2 + [0.002] * 2
    assert rates("step", num_steps=8) == pytest.approx(tenths)
    assert rates("constant", warmup=0.5, num_steps=8)[:5] == pytest.approx(
        [0.05, 0.1, 0.15, 0.2, 0.2]
    )
    # After a warm-up the cosine begins at its height.
    assert rates("cosine", warmup=0.25, num_steps=16)[4:] == rates("cosine", num_steps=12)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle", "step"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_a_short_run_has_rates_too(schedule, num_steps):
    found = rates(schedule, num_steps=num_steps)
    assert len(found) == num_steps
    assert all(0 <= rate <= 0.2 for rate in found)


def test_a_training_of_one_step_takes_it_at_its_peak():
    assert rates("one-cycle", num_steps=1) == [0.2]


@pytest.fixture
def recipe(digits):
    return heptad.load_recipe(
        "lenet5",
        data=str(digits),
        limit=128,
        batch_size=32,
        epochs=2,
        schedule="one-cycle",
        learning_rate=0.01,
    )


def test_the_steps_go_by_the_schedule(recipe):
    steps = list(heptad.steps(heptad.prepare(recipe), Position(2)))
    expected = [
        rate_at(step, schedule="one-cycle", peak=0.01, warmup=0, num_steps=8) for step in range(8)
    ]
    assert [step.learning_rate for step in steps] == expected
    assert len(set(expected)) > 4


@pytest.mark.parametrize(
    ("settings", "oracle"),
    [
        ({"optimizer": "adamw", "weight_decay": 0.05}, functools.partial(AdamW, weight_decay=0.05)),
        (
            {"optimizer": "sgd", "weight_decay": 0.05},
            functools.partial(SGD, momentum=0.9, nesterov=True, weight_decay=0.05),
        ),
    ],
    ids=["adamw", "sgd"],
)
def test_an_optimizer_is_that_of_pytorch(recipe, settings, oracle):
    weights = []
    for other in (None, oracle):
        torch.manual_seed(0)
        layer = nn.Linear(5, 3).double()
        chosen = configure_objective(recipe.changed(**settings), list(layer.parameters()))
        optimizer = other(layer.parameters(), lr=0.01) if other else chosen.optimizer
        for _ in range(20):
            optimizer.zero_grad()
            inputs = torch.randn(8, 5, dtype=torch.float64)
            cross_entropy(layer(inputs), torch.arange(8) % 3).backward()
            optimizer.step()
        weights.append(layer.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_with_a_schedule_goes_on_to_the_bit(recipe, optimizer, tmp_path):
    recipe = recipe.changed(optimizer=optimizer, weight_decay=0.01)
    options = heptad.RunOptions(out=str(tmp_path / "run"), resume=True, threads=1)
    for _ in range(2):
        events = heptad.run(recipe, options)
        # What was prepared, and three reports: three steps, then one and its evaluation.
        assert len(list(islice(events, 4))) == 4
        events.close()
    heptad.train(recipe, options)
    heptad.train(recipe, options.changed(out=str(tmp_path / "once")))
    assert result_of(tmp_path / "run") == result_of(tmp_path / "once")
    assert metrics_of(tmp_path / "run")["execution"]["resumed_from"] == [3, 4]


def test_more_epochs_are_refused_where_the_rate_goes_by_their_number(recipe, tmp_path):
    options = heptad.RunOptions(out=str(tmp_path / "run"), resume=True)
    heptad.train(recipe, options)
    with pytest.raises(RecipeError, match=r"epochs is 3, but .* has 2, and its schedule"):
        heptad.train(recipe.changed(epochs=3), options)
