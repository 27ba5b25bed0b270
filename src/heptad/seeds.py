"""Several runs of one recipe that differ in their seeds alone, and the one result they come to.

Each is an ordinary run in a folder of its own, equal to the bit to what its seed alone would give;
what the seed does not decide is opened once for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from heptad import cycle
from heptad.checkpoints.snapshot import refuse_other_recipe
from heptad.cycle_state import Cycle, Opened
from heptad.distributed import refuse_launched
from heptad.errors import (
    DamagedError,
    HeptadError,
    NotFiniteError,
    RecipeError,
    RunError,
    damage_in,
)
from heptad.files import write_json
from heptad.recipe import Recipe, RunOptions
from heptad.recipes import load_recipe
from heptad.records import PassReport, Prepared, Run
from heptad.run_folder import SEEDS, begun_seeds, check_output, claimed_group, is_group, seed_folder
from heptad.seed_group import SeedGroup, difference_in, document_of, read_group, seeds_of
from heptad.stages.saving import read_metrics

logger = logging.getLogger("heptad")


@dataclass(frozen=True)
class SeedReport:
    """One run of a group begins, or goes on, or is found finished. folder: that of the group."""

    seed: int
    seeds: tuple[int, ...]
    folder: Path

    @property
    def said(self) -> str:
        """Which one it is, in words."""
        return f"seed {self.seed} of {self.seeds[0]} to {self.seeds[-1]}"


Event = SeedReport | PassReport | Prepared | cycle.Report | Run | SeedGroup


def run_seeds(
    recipe: Recipe,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    num_seeds: int,
) -> Generator[Event, None, None]:
    """Carry out `num_seeds` runs of a recipe, with its seed and those that follow it.

    Yields a SeedReport before each run, all that `heptad.run` yields of it, and last the group. The
    runs lie in `out`/seed-N. Closing this saves as closing a run does. With `options.resume`
    finished runs are taken as they are, and one under way goes on from its checkpoint; there may be
    more seeds than before, not fewer. Errors as of `heptad.run`; RecipeError too if the group in
    `out` was begun with another recipe, or with more seeds; RunError if a run would begin, before
    it does, from other weights or images than those that are there.
    """
    refuse_launched("training with several seeds")
    seeds = seeds_of(recipe, num_seeds)
    check_output(recipe, options)
    threads = torch.get_num_threads()
    with claimed_group(recipe, options) as folder:
        metrics = _metrics_so_far(folder, recipe, seeds) if options.resume else {}
        _write(folder, document_of(recipe, seeds, metrics))
        opened = Opened(refuse=partial(_refuse_cycle, metrics))
        for seed in seeds:
            yield SeedReport(seed, seeds, folder)
            # An earlier run may have gone on with those that it was begun with.
            torch.set_num_threads(threads)
            own = options.changed(out=str(seed_folder(folder, seed)))
            try:
                yield from cycle.run(recipe.changed(seed=seed), own, opened=opened)
            except NotFiniteError as error:
                raise NotFiniteError(f"seed {seed}: {error.message}", hint=error.hint) from error
            metrics[seed] = read_metrics(seed_folder(folder, seed))
            _refuse_mixture(metrics)
            document = document_of(recipe, seeds, metrics)
            _write(folder, document)
        yield SeedGroup(recipe, folder, document)


def _metrics_so_far(
    folder: Path, recipe: Recipe, seeds: tuple[int, ...]
) -> dict[int, dict[str, Any]]:
    """Give the metrics of the runs that are finished; they are looked at again later.

    Raises RecipeError if the group, or a run of it that was begun, is of another recipe, and if
    there are more seeds; RunError if runs differ in more than their seeds.
    """
    begun = begun_seeds(folder)
    group = _group_so_far(folder)
    if group:
        refuse_other_recipe(recipe, group.recipe, folder)
    _refuse_others(folder, group.seeds if group else begun, seeds)
    finished, found = {}, {}
    for seed in begun:
        place, own = seed_folder(folder, seed), recipe.changed(seed=seed)
        metrics = _metrics_of(place)
        begun_with = _recipe_of(place, metrics)
        # When it is its turn, the run itself says why it cannot be read.
        if begun_with is None or seed not in seeds:
            continue
        refuse_other_recipe(own, begun_with, place)
        if metrics:
            finished[seed] = metrics
        # Others have fewer epochs, and will be written anew.
        if metrics and begun_with == own:
            found[seed] = metrics
    _refuse_mixture(finished)
    return found


def _refuse_mixture(runs: Mapping[int, Mapping[str, Any]]) -> None:
    """Raise RunError if runs began from other weights, or other images that no seed chose."""
    with damage_in("metrics.json of a run"):
        difference = difference_in(runs)
    if difference:
        raise RunError(
            f"runs of a group differ in their seeds alone, but {difference}.",
            hint="put back what was changed, or train anew with another --out",
        )


def _refuse_cycle(metrics: Mapping[int, Mapping[str, Any]], cycle: Cycle) -> None:
    _refuse_mixture({**metrics, cycle.recipe.seed: cycle.origins})


def _group_so_far(folder: Path) -> SeedGroup | None:
    """Read `seeds.json`; None if there is none that can be read."""
    if not is_group(folder):
        return None
    try:
        return read_group(folder)
    except DamagedError as error:
        logger.warning("%s It is made anew from the runs.", error.message)
        return None


def _refuse_others(folder: Path, there: Sequence[int], seeds: tuple[int, ...]) -> None:
    """Raise RecipeError if some of the seeds that are there are not to be."""
    if there and min(there) < seeds[0]:
        raise RecipeError(
            f"seed is {seeds[0]}, but the group in {folder} has a run with seed {min(there)}.",
            hint="a group is resumed with its first seed",
        )
    if there and max(there) > seeds[-1]:
        raise RecipeError(
            f"seeds is {len(seeds)}, but the group in {folder} has {max(there) - seeds[0] + 1};"
            " allowed: as many or more.",
            hint="to leave out runs that are there would be to choose among results",
        )


def _metrics_of(place: Path) -> dict[str, Any] | None:
    try:
        return read_metrics(place)
    except HeptadError:
        return None


def _recipe_of(place: Path, metrics: Mapping[str, Any] | None) -> Recipe | None:
    """Give the recipe that a run was begun with; None if nothing says so that can be read."""
    try:
        if metrics is None:
            return load_recipe(place)
        with damage_in(place):
            return Recipe(**metrics["recipe"])
    except HeptadError:
        return None


def _write(folder: Path, document: dict[str, Any]) -> None:
    """Write `seeds.json`, unless it says so already."""
    path = folder / SEEDS
    if is_group(folder):
        try:
            if read_group(folder).document == document:
                return
        except DamagedError:
            pass
    write_json(path, document)
