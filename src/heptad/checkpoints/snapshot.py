"""What a checkpoint holds: all that training can change, and the names of everything else by hash.

For a frozen VGG16 that is half a megabyte: the trained part, the optimizer's state, the answers of
an evaluation under way. The rest is loaded as at the start and compared by its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heptad.architectures.states import refuse_differences, refuse_not_finite
from heptad.checkpoints.store import Checkpoint
from heptad.cycle_state import Best, Cycle
from heptad.errors import (
    NotFiniteError,
    RecipeError,
    RunError,
    damage_in,
)
from heptad.files import digest_of
from heptad.recipe import Recipe
from heptad.records import START, Figures, Position
from heptad.stages.evaluation import Answers, Tally
from heptad.stages.objective import LOSSES, OPTIMIZERS
from heptad.stages.saving import package_versions

# A resume with another of these is right, but its sums may differ in the last bits.
CIRCUMSTANCES = (
    "torch",
    "device",
    "threads",
    "world_size",
    "vector_instructions",
    "trunk",
    "features",
)


def circumstances(cycle: Cycle) -> dict[str, Any]:
    """Name what the last bits of a result depend on, beside the recipe and the data."""
    return {
        "torch": torch.__version__,
        "device": _device_name(cycle.device),
        "threads": torch.get_num_threads(),
        "world_size": cycle.ranks.world_size,
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "trunk": cycle.trunk,
        "features": cycle.features,
    }


def _device_name(device: torch.device) -> str:
    is_gpu = device.type == "cuda"
    return f"{device} {torch.cuda.get_device_name(device)}" if is_gpu else str(device)


def facts_of(cycle: Cycle) -> dict[str, Any]:
    """Write down, as plain values, where a training is and what it is a training of."""
    return {
        "recipe": cycle.recipe.model_dump(),
        "versions": package_versions(),
        "recipe_digest": digest_of(cycle.recipe.model_dump()),
        "classes": list(cycle.sources.train.classes),
        "data": cycle.data,
        "weights": cycle.whole.start,
        "frozen": digest_of(cycle.frozen),
        "position": {
            "step": cycle.num_steps,
            "epoch": cycle.at.epoch,
            "num_seen": cycle.at.num_seen,
            "num_scored": cycle.num_scored,
            "scoring": cycle.scored[0],
        },
        "best": {"epoch": cycle.best.epoch, **asdict(cycle.best.figures)} if cycle.best else None,
        "circumstances": circumstances(cycle),
    }


def tensors_of(cycle: Cycle) -> dict[str, Tensor]:
    """Name all that training can change: contiguous, on the CPU, as it is until the next step.

    Raises NotFiniteError if a value is NaN or infinite: no checkpoint holds such a one.
    """
    # While values to be scored are in the network, those of the last step are beside it.
    moved = cycle.last or cycle.moved()
    tensors = {f"network/{name}": value for name, value in moved.items()}
    if cycle.best:
        tensors |= {f"best/{name}": value for name, value in cycle.best.tensors.items()}
    if cycle.average:
        tensors |= {f"average/{name}": value for name, value in cycle.average.items()}
    for name, state in _optimizer_states(cycle).items():
        tensors |= {f"optimizer/{name}/{key}": value for key, value in state.items()}
    answers = cycle.tally.answers()
    if answers is not None:
        tensors["answers/logits"] = answers.logits
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise NotFiniteError(f"{name} is not finite after step {cycle.num_steps}.")
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _optimizer_states(cycle: Cycle) -> dict[str, dict[str, Tensor]]:
    states = cycle.objective.optimizer.state
    return {
        name: dict(states[parameter])
        for name, parameter in cycle.whole.network.named_parameters()
        if parameter in states
    }


def refuse_other_recipe(recipe: Recipe, begun: Recipe, folder: Path) -> None:
    """Raise RecipeError unless the recipe is the one that the run was `begun` with.

    More epochs are allowed where the learning rate is the same in all of them. So are other names
    of the data and the start weights, which may have been moved: their hashes decide.
    """
    wanted, had = recipe.model_dump(), begun.model_dump()
    lines = [
        f"{name} is {wanted[name]}, but the run in {folder} has {had[name]}."
        for name in sorted(wanted.keys() - {"epochs", "data", "weights"})
        if wanted[name] != had[name]
    ]
    if recipe.epochs < begun.epochs:
        lines.append(f"epochs is {recipe.epochs}, but the run in {folder} has {begun.epochs}.")
    if recipe.epochs > begun.epochs and (recipe.schedule, recipe.warmup) != ("constant", 0):
        lines.append(
            f"epochs is {recipe.epochs}, but the run in {folder} has {begun.epochs}, and its"
            f" schedule, {recipe.schedule} after a warmup of {recipe.warmup:g}, goes by that."
        )
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
        scoring = str(facts["position"]["scoring"])
        best = _best_of(facts, checkpoint.tensors)
    tensors = checkpoint.tensors
    logits = tensors.get("answers/logits")
    refuse_not_finite(checkpoint.path, tensors)
    expected = _expected(cycle, at, logits, has_best=best is not None)
    refuse_differences(checkpoint.path, tensors, expected, what="the one of this run")
    cycle.at, cycle.num_scored, cycle.best = at, num_scored, best
    cycle.put(_under("network/", tensors))
    for name, value in _under("average/", tensors).items():
        assert cycle.average is not None
        cycle.average[name].copy_(value)
    _put_back_optimizer(cycle, _under("optimizer/", tensors))
    # With more epochs to train than then, the answers to the test images are worth nothing.
    if logits is not None and cycle.scored[0] == scoring:
        source = cycle.scored[1]
        labels = source.labels[: len(logits)].to(cycle.device)
        ids = source.ids[: len(logits)]
        cycle.tally = Tally()
        cycle.tally.add(Answers(logits.to(cycle.device), labels, ids))
        if len(logits) == len(source.labels) and scoring == "test":
            cycle.scores = cycle.tally.scores(LOSSES[cycle.recipe.loss])
    now = circumstances(cycle)
    return [
        f"{name} is {now[name]}, was {before.get(name)}"
        for name in CIRCUMSTANCES
        if now[name] != before.get(name)
    ]


def _best_of(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Best | None:
    if not facts["best"]:
        return None
    figures = dict(facts["best"])
    return Best(int(figures.pop("epoch")), Figures(**figures), _under("best/", tensors))


def _refuse_changes(cycle: Cycle, checkpoint: Checkpoint) -> None:
    now = facts_of(cycle)
    for key, what in (
        ("classes", "the classes are"),
        ("weights", "the start weights are"),
        ("data", "the images or labels are"),
        ("frozen", "the start weights, or other values that training leaves alone, are"),
    ):
        if _by_content(checkpoint.facts.get(key)) != _by_content(now[key]):
            raise RunError(
                f"{what} not those that the run was making {checkpoint.path} with.",
                hint="put back what was changed, or train anew with another --out",
            )


def _by_content(fact: Any) -> Any:
    """Leave the name out of a fact about a file whose hash is known."""
    if isinstance(fact, dict) and fact.get("sha256"):
        return {key: value for key, value in fact.items() if key != "name"}
    return fact


def _expected(
    cycle: Cycle, at: Position, logits: Tensor | None, *, has_best: bool
) -> dict[str, Tensor]:
    """Give the names and shapes of what a checkpoint made at some place holds.

    logits: the answers found in it; there may be any number of them, but not more than images.
    """
    expected = {f"network/{name}": value for name, value in cycle.moved().items()}
    if has_best:
        expected |= {f"best/{name}": value for name, value in cycle.moved().items()}
    if cycle.average:
        expected |= {f"average/{name}": value for name, value in cycle.average.items()}
    if at > START:
        kind = OPTIMIZERS[cycle.recipe.optimizer]
        for name, parameter in cycle.whole.network.named_parameters():
            if parameter.requires_grad:
                state = dict.fromkeys(kind.averages, parameter.detach())
                state |= dict.fromkeys(kind.counts, torch.tensor(0.0))
                expected |= {f"optimizer/{name}/{key}": value for key, value in state.items()}
    if logits is not None:
        most = max(len(source.labels) for source in cycle.sources.parts[1:])
        num_answers = min(most, *logits.shape[:1])
        num_classes = len(cycle.sources.test.classes)
        expected["answers/logits"] = torch.empty(num_answers, num_classes, device="meta")
    return expected


def _put_back_optimizer(cycle: Cycle, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimizer its state, laid out in memory as each parameter is.

    Fused Adam goes through memory in its own order: state of other strides than its parameter's
    would silently be another state.
    """
    names = {parameter: name for name, parameter in cycle.whole.network.named_parameters()}
    states: dict[int, dict[str, Tensor]] = {}
    for number, trained in enumerate(cycle.objective.trained):
        own = _under(f"{names[trained]}/", tensors)
        if own:
            states[number] = {
                key: torch.empty_like(trained if value.dim() else value).copy_(value)
                for key, value in own.items()
            }
    optimizer = cycle.objective.optimizer
    optimizer.load_state_dict(
        {"state": states, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    for parameter, state in optimizer.state.items():
        for value in state.values():
            assert not value.dim() or value.stride() == parameter.stride()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
