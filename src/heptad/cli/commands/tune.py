"""The command that searches over the fields of a recipe."""

# It imports what it needs when it runs: PyTorch takes seconds, and help must not wait.

from __future__ import annotations

from contextlib import closing, nullcontext
from typing import Any

from heptad.cli.commands.app import TRAIN, Json, app, print_json
from heptad.cli.flags import at_least_1, flags_of, given
from heptad.cli.stopping import SIGNALS, Stopped
from heptad.cli.streams import PlainConsole
from heptad.recipe import Recipe, RunOptions
from heptad.recipes import load_recipe

# Of a run that is saved, which no trial is.
OF_RUNS = ("save", "checkpoint_every", "tensorboard")


@app.command(group=TRAIN, sort_key=4)
@flags_of(Recipe, RunOptions, leave_out=OF_RUNS)
def tune(recipe: str, /, *, trials: str = "30", json: Json = False, **flags: Any) -> None:
    """Search for the best settings of a recipe, by validation images alone.

    A flag is given one value, or what to search in: numbers LOW..HIGH, such as --learning-rate
    1e-4..1e-1 (by the logarithm where HIGH is ten times LOW or more), or choices with commas, such
    as --optimizer adam,sgd. One at least must be searched. A frozen trunk runs once for all
    trials. The folder is runs/NAME-tune-NUMBER unless --out names another.

    Parameters
    ----------
    recipe
        A recipe's name, as `heptad recipes` lists them, a .toml or .json file, or an earlier run's
        folder.
    trials
        How many trials in all; with --resume, those before count.
    """
    from heptad.tuning.ranges import parted

    num_trials = at_least_1("trials", trials)
    fixed, ranges = parted(given(flags, Recipe))
    loaded = load_recipe(recipe, **fixed)
    options = RunOptions(**given(flags, RunOptions))
    _carry_out(loaded, ranges, num_trials=num_trials, options=options, as_json=json)


def _carry_out(
    recipe: Recipe,
    ranges: dict[str, str],
    *,
    num_trials: int,
    options: RunOptions,
    as_json: bool,
) -> None:
    """Search, show how it goes, and stop between two reports when a signal asks for it."""
    from heptad.cli.tuning import Kept, show_nothing, show_tuned, showing
    from heptad.tuning.reports import SearchStart, Tuned
    from heptad.tuning.searching import tune as searching

    console = PlainConsole()
    kept, tuned = Kept(), None
    showing_it = nullcontext(show_nothing) if as_json else showing(console)
    search = searching(recipe, ranges, num_trials=num_trials, options=options)
    with closing(search) as events, showing_it as show:
        try:
            for event in events:
                # What is fetched and read after the first report can be stopped anywhere.
                if not isinstance(event, SearchStart):
                    SIGNALS.will_be_asked()
                show(event)
                kept.note(event)
                if isinstance(event, Tuned):
                    tuned = event
                elif SIGNALS.pending is not None:
                    events.close()
                    raise Stopped(SIGNALS.pending, kept.said)
        except Stopped as stop:
            # A second signal: thrown into the search, it ends it at once.
            events.throw(stop)
    assert tuned is not None
    if as_json:
        print_json(tuned.as_document())
        return
    show_tuned(console, tuned)
