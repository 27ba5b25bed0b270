"""Commands that train: what there is to train, a training, one that goes on."""

# Each command imports what it needs when it runs: PyTorch takes seconds, and help must not wait.

from __future__ import annotations

import logging
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from heptad.cli.commands.app import TRAIN, Json, NoReport, app, print_json
from heptad.cli.flags import MOST_DIGITS, RECIPE_FLAGS, flags_of, given
from heptad.cli.stopping import SIGNALS, Stopped
from heptad.cli.streams import PlainConsole
from heptad.distributed import launched
from heptad.files import as_word, user_path
from heptad.recipe import Recipe, RunOptions, to_toml
from heptad.recipes import RECIPES, load_recipe
from heptad.run_folder import is_group, refuse_search_as_run

if TYPE_CHECKING:
    from collections.abc import Generator

    from heptad.cli.display import Show, Where
    from heptad.records import Run
    from heptad.seed_group import SeedGroup
    from heptad.seeds import Event

logger = logging.getLogger("heptad")


@app.command(group=TRAIN, sort_key=1)
def recipes(name: str | None = None, /, *, json: Json = False) -> None:
    """List the shipped recipes, or print one in full as TOML, to be changed and trained.

    Parameters
    ----------
    name
        The recipe to print.
    """
    if name is not None:
        recipe = load_recipe(name)
        if json:
            print_json(recipe.model_dump())
        else:
            print(to_toml(recipe), end="")
        return
    if json:
        print_json(
            {
                key: {
                    "source": shipped.source,
                    "command": shipped.command,
                    "expected": shipped.expected,
                    "recipe": shipped.recipe.model_dump(),
                }
                for key, shipped in RECIPES.items()
            }
        )
        return
    for key, shipped in RECIPES.items():
        print(f"{key}\n  {shipped.source}\n  {shipped.command}: {shipped.expected}")


@app.command(group=TRAIN, sort_key=2)
@flags_of(Recipe, RunOptions)
def train(
    recipe: str,
    /,
    *,
    seeds: Annotated[str | None, Parameter(group=RECIPE_FLAGS)] = None,
    no_report: NoReport = False,
    json: Json = False,
    **flags: Any,
) -> None:
    """Train a network: the whole cycle, from data to saved weights, metrics and report.

    Parameters
    ----------
    recipe
        A recipe's name, as `heptad recipes` lists them, a .toml or .json file, or an earlier run's
        folder.
    seeds
        Train so many times, with the seed and those that follow it, and report on all runs
        together: OUT/seed-0 and so on, OUT/seeds.json, OUT/report.html. Allowed: a whole number, 2
        to 1000 (one run alone has no spread).
    """
    loaded = load_recipe(recipe, **given(flags, Recipe))
    options = RunOptions(**given(flags, RunOptions))
    num_seeds = None if seeds is None else _number_of_seeds(seeds)
    _carry_out(loaded, options, num_seeds=num_seeds, with_report=not no_report, as_json=json)


def _number_of_seeds(text: str) -> int:
    from heptad.errors import RecipeError
    from heptad.seed_group import ALLOWED_SEEDS

    if not text.isdecimal() or len(text) > MOST_DIGITS:
        raise RecipeError(f"seeds is {text or 'empty'}; allowed: {ALLOWED_SEEDS}.")
    return int(text)


@app.command(group=TRAIN, sort_key=3)
@flags_of(RunOptions, leave_out=("out", "resume"))
def resume(
    run: str,
    /,
    *,
    data: str | None = None,
    weights: str | None = None,
    no_report: NoReport = False,
    json: Json = False,
    **flags: Any,
) -> None:
    """Go on with a run that was stopped, killed or cut off, to the bit where it left off.

    Parameters
    ----------
    run
        The run's folder, or that of a group of runs.
    data
        Where its data is now, if it was moved; it must be the same data.
    weights
        Where its start weights are now, if they were moved; they must be the same.
    """
    from heptad.errors import RunError

    folder, num_seeds = user_path(run), None
    if is_group(folder):
        from heptad.seed_group import read_group

        num_seeds = len(read_group(folder).seeds)
    elif not (folder / "recipe.json").is_file():
        refuse_search_as_run(folder)
        raise RunError(
            f"{run} is no run that could go on: it has no recipe.json.",
            hint="nothing was saved there yet; `heptad train RECIPE --out FOLDER` begins a run",
        )
    options = RunOptions(**given(flags, RunOptions), out=run, resume=True)
    places = {"data": data, "weights": weights}
    moved = {name: place for name, place in places.items() if place is not None}
    recipe = load_recipe(folder, **moved)
    _carry_out(recipe, options, num_seeds=num_seeds, with_report=not no_report, as_json=json)


def _carry_out(
    recipe: Recipe,
    options: RunOptions,
    *,
    num_seeds: int | None,
    with_report: bool,
    as_json: bool,
) -> None:
    """Train once, or with several seeds; show how it goes, report, and print the result."""
    from heptad import cycle
    from heptad.cli.display import show_nothing, show_summary, showing
    from heptad.cli.seeding import announcing, show_group
    from heptad.seed_group import SeedGroup
    from heptad.seeds import run_seeds

    console = PlainConsole()
    # Rank 0 speaks for all.
    is_heard = launched().is_first
    with nullcontext(show_nothing) if as_json or not is_heard else showing(console) as show:
        if num_seeds is None:
            where = _follow(cycle.run(recipe, options), show)
        else:
            shown = show if as_json else announcing(console, show)
            where = _follow(run_seeds(recipe, options, num_seeds=num_seeds), shown)
    result = where.run if num_seeds is None else where.group
    assert result is not None
    if not is_heard:
        return
    # What was finished before is given as it is.
    if with_report and where.has_worked:
        _try_to_report(result, options)
    if as_json:
        document = result.document if isinstance(result, SeedGroup) else result.metrics
        print_json({"run": str(result.folder), **document})
    elif isinstance(result, SeedGroup):
        show_group(console, result)
    else:
        show_summary(console, result)


def _follow(work: Generator[Event, None, None], show: Show) -> Where:
    """Carry out a training, and stop it between two reports when a signal asks for it."""
    from heptad.cli.display import Where
    from heptad.polling import Poll

    where, poll = Where(), Poll()
    with closing(work) as events:
        try:
            for event in events:
                SIGNALS.will_be_asked()
                show(event)
                where.note(event)
                pending = poll.agreed(event, SIGNALS.pending)
                if pending is not None and not where.is_at_its_end:
                    # Closed here, a run saves all that it needs to go on.
                    events.close()
                    raise Stopped(pending, where.said)
        except Stopped as stop:
            # A second signal: thrown into the run, it ends it without a save.
            events.throw(stop)
    return where


def _try_to_report(result: Run | SeedGroup, options: RunOptions) -> None:
    """Write the report of a training; whatever goes wrong costs a warning, never the training."""
    from heptad.records import Run
    from heptad.reports.report import write_report
    from heptad.reports.seeds import write_group_report

    try:
        if isinstance(result, Run):
            write_report(result, device=options.device, threads=options.threads)
        else:
            write_group_report(result)
    except Exception as error:
        again = f"`heptad report {as_word(result.folder)}` tries again"
        logger.warning("WARNING: the report could not be written: %s %s", error, again)
        logger.debug("the report failed", exc_info=True)
