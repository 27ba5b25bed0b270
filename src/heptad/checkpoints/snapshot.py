"""What a checkpoint holds: all that training can change, and the names of everything else by hash.

For a frozen VGG16 that is half a megabyte: the trained part, the optimizer's state, the answers of
an evaluation under way. The rest is loaded as at the start and compared by its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heptad.architectures.states import refuse_differences, refuse_not_finite
from heptad.checkpoints.store import Checkpoint
from heptad.cycle_state import Cycle
from heptad.errors import (
    DamagedError,
    NotFiniteError,
    RecipeError,
    RunError,
    WeightsError,
    damage_in,
)
from heptad.files import digest_of
from heptad.recipe import Recipe
from heptad.records import Position
from heptad.stages.evaluation import Answers, Tally
from heptad.stages.saving import package_versions

# A resume with another of these is right, but its sums may differ in the last bits.
CIRCUMSTANCES = ("torch", "device", "threads", "world_size", "vector_instructions", "trunk")


def circumstances(cycle: Cycle) -> dict[str, Any]:
    """Name what the last bits of a result depend on, beside the recipe and the data."""
    return {
        "torch": torch.__version__,
        "device": str(cycle.device),
        "threads": torch.get_num_threads(),
        "world_size": cycle.ranks.world_size,
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "trunk": cycle.trunk,
    }


def facts_of(cycle: Cycle) -> dict[str, Any]:
    """Write down, as plain values, where a training is and what it is a training of."""
    return {
        "recipe": cycle.recipe.model_dump(),
        "versions": package_versions(),
        "recipe_digest": digest_of(cycle.recipe.model_dump()),
        "classes": list(cycle.sources.train.classes),
        "data": cycle.data,
        "frozen": digest_of(cycle.frozen),
        "position": {
            "step": cycle.num_steps,
            "epoch": cycle.at.epoch,
            "num_seen": cycle.at.num_seen,
            "num_scored": cycle.num_scored,
        },
        "circumstances": circumstances(cycle),
    }


def tensors_of(cycle: Cycle) -> dict[str, Tensor]:
    """Copy all that training can change: contiguous, on the CPU, by name.

    Raises NotFiniteError if a value is NaN or infinite: no checkpoint holds such a one.
    """
    tensors = {f"network/{name}": value for name, value in _moving(cycle).items()}
    for name, state in _optimizer_states(cycle).items():
        tensors |= {f"optimizer/{name}/{key}": value for key, value in state.items()}
    answers = cycle.tally.answers()
    if answers is not None:
        tensors["answers/logits"] = answers.logits
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise NotFiniteError(f"{name} is not finite after step {cycle.num_steps}.")
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _moving(cycle: Cycle) -> dict[str, Tensor]:
    state = cycle.whole.network.state_dict()
    return {name: state[name] for name in sorted(cycle.moving)}


def _optimizer_states(cycle: Cycle) -> dict[str, dict[str, Tensor]]:
    states = cycle.objective.optimizer.state
    return {
        name: dict(states[parameter])
        for name, parameter in cycle.whole.network.named_parameters()
        if parameter in states
    }


def refuse_other_recipe(recipe: Recipe, begun: Mapping[str, Any], folder: Path) -> None:
    """Raise RecipeError unless the recipe is the one that the run was `begun` with.

    More epochs are allowed: the learning rate is the same in all of them.
    """
    wanted = recipe.model_dump()
    lines = [
        f"{name} is {wanted.get(name)}, but the run in {folder} has {begun.get(name)}."
        for name in sorted({*wanted, *begun} - {"epochs"})
        if wanted.get(name) != begun.get(name)
    ]
    if recipe.epochs < begun["epochs"]:
        lines.append(f"epochs is {recipe.epochs}, but the run in {folder} has {begun['epochs']}.")
    if lines:
        raise RecipeError(
            "\n".join(lines),
            hint="a run is resumed with its own recipe; only epochs may grow. Another --out begins"
            " a new run",
        )


def put_back(cycle: Cycle, checkpoint: Checkpoint) -> list[str]:
    """Bring a training that was just made ready to where the checkpoint was made.

    Gives a line for each circumstance that differs: the result is then equal up to the last bits
    only. Raises RunError if data, classes or start weights are others than then, WeightsError with
    a table if the tensors do not fit or are not finite.
    """
    facts = checkpoint.facts
    _refuse_changes(cycle, checkpoint)
    with damage_in(checkpoint.path):
        at = Position(int(facts["position"]["epoch"]), int(facts["position"]["num_seen"]))
        num_scored = int(facts["position"]["num_scored"])
        before = dict(facts["circumstances"])
    tensors = checkpoint.tensors
    refuse_not_finite(checkpoint.path, tensors)
    network = _under("network/", tensors)
    refuse_differences(checkpoint.path, network, _moving(cycle), what="the one of this run")
    cycle.at, cycle.num_scored = at, num_scored
    with torch.no_grad():
        for name, value in _moving(cycle).items():
            value.copy_(network[name])
    _put_back_optimizer(cycle, checkpoint.path, _under("optimizer/", tensors))
    logits = tensors.get("answers/logits")
    if logits is not None:
        test = cycle.sources.test
        labels, ids = (column[: len(logits)].to(cycle.device) for column in (test.labels, test.ids))
        cycle.tally = Tally()
        cycle.tally.add(Answers(logits.to(cycle.device), labels, ids))
        if len(logits) == len(test.labels):
            cycle.scores = cycle.tally.scores(cycle.objective.loss)
    now = circumstances(cycle)
    return [
        f"{name} is {now[name]}, was {before.get(name)}"
        for name in CIRCUMSTANCES
        if now[name] != before.get(name)
    ]


def _refuse_changes(cycle: Cycle, checkpoint: Checkpoint) -> None:
    now = facts_of(cycle)
    for key, what in (
        ("classes", "the classes are"),
        ("data", "the images or labels are"),
        ("frozen", "the start weights, or other values that training leaves alone, are"),
    ):
        if checkpoint.facts.get(key) != now[key]:
            raise RunError(
                f"{what} not those that the run was making {checkpoint.path} with.",
                hint="put back what was changed, or train anew with another --out",
            )


def _put_back_optimizer(cycle: Cycle, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimizer its state, laid out in memory as each parameter is.

    Fused Adam goes through memory in its own order: state of other strides than its parameter's
    would silently be another state.
    """
    names = [name for name, p in cycle.whole.network.named_parameters() if p.requires_grad]
    states: dict[int, dict[str, Tensor]] = {}
    for number, parameter in enumerate(cycle.objective.optimizer.param_groups[0]["params"]):
        own = _under(f"{names[number]}/", tensors)
        state = {}
        for key, value in own.items():
            if value.dim() and value.shape != parameter.shape:
                raise WeightsError(f"{path}: the optimizer's {names[number]}/{key} does not fit.")
            laid_out = torch.empty_like(parameter) if value.dim() else torch.empty_like(value)
            state[key] = laid_out.copy_(value)
        if state:
            states[number] = state
    if len(tensors) != sum(map(len, states.values())):
        raise DamagedError(f"{path} holds optimizer state of parameters that are not trained.")
    optimizer = cycle.objective.optimizer
    optimizer.load_state_dict(
        {"state": states, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    for parameter, state in optimizer.state.items():
        for value in state.values():
            assert not value.dim() or value.stride() == parameter.stride()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
