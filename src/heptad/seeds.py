"""Several runs of one recipe that differ in their seeds alone, and the one result they come to.

Each is an ordinary run in a folder of its own, equal to the bit to what its seed alone would give;
what the seed does not decide is opened once for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heptad import cycle
from heptad.checkpoints.snapshot import refuse_other_recipe
from heptad.cycle_state import Opened
from heptad.errors import DamagedError, HeptadError, NotFiniteError, RecipeError, damage_in
from heptad.files import write_json
from heptad.recipe import Recipe, RunOptions
from heptad.records import PassReport, Prepared, Run
from heptad.run_folder import SEEDS, check_output, claimed_group, is_group, seed_folder
from heptad.seed_group import SeedGroup, document_of, read_group, seeds_of
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
    `out` was begun with another recipe, or with more seeds.
    """
    seeds = seeds_of(recipe, num_seeds)
    check_output(recipe, options)
    threads = torch.get_num_threads()
    with claimed_group(recipe, options) as folder:
        metrics = _metrics_so_far(folder, recipe, seeds) if options.resume else {}
        _write(folder, document_of(recipe, seeds, metrics))
        opened = Opened()
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
            document = document_of(recipe, seeds, metrics)
            _write(folder, document)
        yield SeedGroup(recipe, folder, document)


def _metrics_so_far(
    folder: Path, recipe: Recipe, seeds: tuple[int, ...]
) -> dict[int, dict[str, Any]]:
    """Give the metrics of runs that `seeds.json` has as finished; they are looked at again later.

    Raises RecipeError if it is of another recipe, or of more seeds.
    """
    if not is_group(folder):
        return {}
    try:
        group = read_group(folder)
    except DamagedError as error:
        logger.warning("%s It is made anew from the runs.", error.message)
        return {}
    refuse_other_recipe(recipe, group.recipe, folder)
    if len(seeds) < len(group.seeds):
        raise RecipeError(
            f"seeds is {len(seeds)}, but the group in {folder} has {len(group.seeds)}; allowed:"
            " as many or more.",
            hint="to leave out runs that are there would be to choose among results",
        )
    found = {}
    for run in group.runs:
        try:
            metrics = read_metrics(seed_folder(folder, run["seed"]))
        # When it is its turn, the run itself says so.
        except HeptadError:
            continue
        with damage_in(seed_folder(folder, run["seed"])):
            begun = Recipe(**metrics["recipe"])
        if begun == recipe.changed(seed=run["seed"]):
            found[run["seed"]] = metrics
    return found


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
