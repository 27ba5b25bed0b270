"""Heptad itself, through its Python interface, from an empty cache."""

from __future__ import annotations

from time import perf_counter

from peers.work import LENGTHS, Work, answer, given

import heptad


def lenet5(work: Work) -> None:
    """Time epochs of steps alone, each loss read; the test images are scored after the last."""
    recipe = heptad.load_recipe("lenet5", data=str(work.folder / "digits"), epochs=work.num_epochs)
    cycle = heptad.prepare(recipe)
    seconds = []
    for number in range(work.num_epochs):
        started_at = perf_counter()
        for step in heptad.steps(cycle, heptad.Position(number + 1)):
            step.loss  # noqa: B018 - read, as the plain loop reads it
        seconds.append(perf_counter() - started_at)
    # All steps are done: what is left of the last epoch is its evaluation.
    for _ in heptad.epochs(cycle):
        pass
    report(cycle, seconds)


def resnet50(work: Work) -> None:
    """Time the preparation with its pass, and each epoch of the longest training compared."""
    recipe = heptad.load_recipe(
        "resnet50",
        data=str(work.folder / "digits"),
        weights=str(work.made_weights),
        epochs=max(LENGTHS),
    )
    # Modules are imported when they are first used; no other's import is timed either.
    import torchvision.models  # noqa: F401

    prepare = heptad.prepare
    started_at = perf_counter()
    cycle = prepare(recipe)
    prepared_s = perf_counter() - started_at
    assert cycle.num_computed == sum(len(part.labels) for part in cycle.sources.parts)
    seconds, at = [], perf_counter()
    for _ in heptad.epochs(cycle):
        seconds.append(perf_counter() - at)
        at = perf_counter()
    report(cycle, seconds, prepared_s=prepared_s, pass_s=cycle.trunk_seconds)


def report(cycle: heptad.Cycle, seconds: list[float], **more: float) -> None:
    trained = cycle.whole.trained_parameters()
    answer(
        seconds=seconds,
        accuracy=cycle.scores.accuracy,
        num_trained=sum(value.numel() for value in trained),
        **more,
    )


if __name__ == "__main__":
    work = given()
    {"lenet5": lenet5, "resnet50": resnet50}[work.workload](work)
