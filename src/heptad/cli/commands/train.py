"""Commands that train: what there is to train, a training, one that goes on."""

# Each command imports what it needs when it runs: PyTorch takes seconds, and help must not wait.

from __future__ import annotations

import logging
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any

from heptad.cli.commands.app import TRAIN, Json, NoReport, app, print_json
from heptad.cli.flags import flags_of, given
from heptad.cli.stopping import SIGNALS, Stopped
from heptad.cli.streams import PlainConsole
from heptad.files import as_word, user_path
from heptad.recipe import Recipe, RunOptions, to_toml
from heptad.recipes import RECIPES, load_recipe

if TYPE_CHECKING:
    from heptad.records import Run

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
def train(recipe: str, /, *, no_report: NoReport = False, json: Json = False, **flags: Any) -> None:
    """Train a network: the whole cycle, from data to saved weights, metrics and report.

    Parameters
    ----------
    recipe
        A recipe's name, as `heptad recipes` lists them, a .toml or .json file, or an earlier run's
        folder.
    """
    loaded = load_recipe(recipe, **given(flags, Recipe))
    options = RunOptions(**given(flags, RunOptions))
    _carry_out(loaded, options, with_report=not no_report, as_json=json)


@app.command(group=TRAIN, sort_key=3)
@flags_of(RunOptions, leave_out=("out", "resume"))
def resume(
    run: str,
    /,
    *,
    data: str | None = None,
    no_report: NoReport = False,
    json: Json = False,
    **flags: Any,
) -> None:
    """Go on with a run that was stopped, killed or cut off, to the bit where it left off.

    Parameters
    ----------
    run
        The run's folder.
    data
        Where its data is now, if it was moved; it must be the same data.
    """
    from heptad.errors import RunError

    if not (user_path(run) / "recipe.json").is_file():
        raise RunError(
            f"{run} is no run that could go on: it has no recipe.json.",
            hint="nothing was saved there yet; `heptad train RECIPE --out FOLDER` begins a run",
        )
    options = RunOptions(**given(flags, RunOptions), out=run, resume=True)
    moved = {"data": data} if data is not None else {}
    recipe = load_recipe(user_path(run), **moved)
    _carry_out(recipe, options, with_report=not no_report, as_json=json)


def _carry_out(recipe: Recipe, options: RunOptions, *, with_report: bool, as_json: bool) -> None:
    """Train, show how it goes, and stop between two reports when a signal asks for it."""
    from heptad import cycle
    from heptad.cli.display import Where, show_nothing, show_summary, showing

    console = PlainConsole()
    where = Where()
    showing_it = nullcontext(show_nothing) if as_json else showing(console)
    with closing(cycle.run(recipe, options)) as events, showing_it as show:
        try:
            for event in events:
                SIGNALS.will_be_asked()
                show(event)
                where.note(event)
                if SIGNALS.pending is not None and where.run is None:
                    # Closed here, a run saves all that it needs to go on.
                    events.close()
                    raise Stopped(SIGNALS.pending, where.said)
        except Stopped as stop:
            # A second signal: thrown into the run, it ends it without a save.
            events.throw(stop)
    run = where.run
    assert run is not None
    # A run that was finished before is given as it is.
    if with_report and not where.was_finished:
        _try_to_report(run, options)
    if as_json:
        print_json({"run": str(run.folder), **run.metrics})
        return
    show_summary(console, run)


def _try_to_report(run: Run, options: RunOptions) -> None:
    """Write the report of a run; whatever goes wrong costs a warning, never the training."""
    from heptad.reports.report import write_report

    try:
        write_report(run, device=options.device, threads=options.threads)
    except Exception as error:
        again = f"`heptad report {as_word(run.folder)}` tries again"
        logger.warning("WARNING: the report could not be written: %s %s", error, again)
        logger.debug("the report failed", exc_info=True)
