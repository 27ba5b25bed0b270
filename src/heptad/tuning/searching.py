"""A search carried out: trial after trial on one preparation, as far as their recipes allow it.

A trial is stages 4 to 6 of the cycle, and equals, to the bit, what `heptad train` does with its
recipe; the test images are never scored. The caller's `for` is the callback, as in `cycle`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from heptad.cycle import (
    Report,
    preparing,
    progress,
    refuse_moved,
)
from heptad.cycle_state import Cycle
from heptad.errors import (
    NotFiniteError,
    OutputError,
    RecipeError,
    RunError,
    SaveError,
    WeightsError,
)
from heptad.files import as_word, digest_of, remove_leftovers, write_bytes, write_json
from heptad.recipe import Recipe, RunOptions
from heptad.records import EpochReport, Figures, PassReport
from heptad.reuse import again, prepared_fields
from heptad.run_folder import (
    BEST,
    SEARCH,
    check_place,
    is_search,
    owned,
    refuse_group_as_output,
    refuse_run,
)
from heptad.stages.model import check_model
from heptad.transform import check_transform
from heptad.tuning import check_optuna
from heptad.tuning.picture import plot_trials
from heptad.tuning.ranges import Numbers
from heptad.tuning.reports import SearchPrepared, SearchStart, TrialReport, TrialStart, Tuned
from heptad.tuning.search import (
    COMPLETE,
    JOURNAL,
    NOT_FINITE,
    PICTURE,
    PRUNED,
    TABLE,
    Search,
    Settings,
    Trial,
    best_of,
    read_search,
    save_best,
    save_table,
    versions,
)

if TYPE_CHECKING:
    # It imports Optuna, which is looked for only when a search begins.
    from heptad.tuning.study import Drawn, Study

logger = logging.getLogger("heptad")

NUM_TRIALS = 30
# Settings that do not go together are drawn again, so many times for one trial.
MOST_DRAWS = 100


SearchReport = SearchStart | PassReport | SearchPrepared | TrialStart | Report | TrialReport | Tuned


def tune(
    recipe: Recipe,
    ranges: Mapping[str, str],
    *,
    num_trials: int = NUM_TRIALS,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> Generator[SearchReport, None, None]:
    """Search fields of a recipe; yield every report, a `TrialReport` a trial, and last `Tuned`.

    ranges: by field, `LOW..HIGH` or choices such as `adam,sgd`. num_trials: in all, those of
    before too. The folder, `options.out` or the next runs/NAME-tune-NUMBER, is claimed before
    anything else. Each trial that has ended is kept at once; closing this, or killing it, loses the
    one under way, which `options.resume` begins anew, with the same settings. Raises RecipeError
    for ranges that cannot be used, MissingError without Optuna, NotFiniteError if no trial came to
    its end, FrozenError if anything moved that is frozen.
    """
    started_at = perf_counter()
    search = Search.of(recipe, ranges)
    _check(search, num_trials, options)
    with owned(options.out, f"{recipe.name}-tune", is_begun=is_search) as folder:
        bench = _claim(search, folder, options)
        trials = bench.study.trials
        if len(trials) > num_trials:
            raise RecipeError(
                f"trials is {num_trials}, but the search in {folder} has {len(trials)} already."
            )
        try:
            yield SearchStart(search, folder, num_trials, len(trials))
            while len(trials) < num_trials:
                yield from _next_trial(bench)
                yield TrialReport(trials[-1], best_of(trials), num_trials)
            if bench.cycle:
                refuse_moved(bench.cycle)
        except GeneratorExit:
            # All that is needed to go on is kept; these are for whoever looks meanwhile.
            with suppress(SaveError):
                _save_tables(bench)
            raise
        yield _finish(bench, started_at)


def _check(search: Search, num_trials: int, options: RunOptions) -> None:
    """Raise what can be known to be wrong before a folder is made; see `tune`."""
    _check_architectures(search)
    if num_trials < 1:
        raise RecipeError(f"trials is {num_trials}; allowed: a whole number, at least 1.")
    if options.resume and not options.out:
        raise RecipeError(
            "resume is asked for, but no folder of a search is named.", hint="name it with --out"
        )
    check_place(options.out)
    check_optuna()


def _prepared_anew(search: Search) -> list[str]:
    """Name the fields that are searched and that trials with other values cannot share."""
    return [name for name in search.ranges if name in prepared_fields(search.recipe)]


def _check_architectures(search: Search) -> None:
    """Look up what the names and sizes that are searched mean, where one field alone decides.

    Raises RecipeError or WeightsError.
    """
    searched = _prepared_anew(search)
    # Of none of them, preparing says the same. Of several, some of the ends may go together.
    if len(searched) == 1:
        for end in search.ranges[searched[0]].ends:
            recipe = search.recipe.changed(**{searched[0]: end})
            check_model(recipe)
            check_transform(recipe)


@dataclass
class _Bench:
    """All that a search works with: its study, and what was prepared for the trial before.

    begun: its document, once there is one. start: what training moves, as it was before the first
    step. is_prepared: whether any preparation came to its end yet. refusals: by what a preparation
    said of recipes that it could not use, their settings.
    """

    search: Search
    folder: Path
    options: RunOptions
    study: Study
    begun: dict[str, Any] | None
    cycle: Cycle | None = None
    start: dict[str, Tensor] = field(default_factory=dict)
    is_prepared: bool = False
    refusals: dict[str, list[Settings]] = field(default_factory=dict)
    trial_seconds: float = 0.0


def _claim(search: Search, folder: Path, options: RunOptions) -> _Bench:
    """See what the folder holds, and make the study of the search that begins or goes on there."""
    from heptad.tuning.study import Study

    begun = None
    if is_search(folder):
        if not options.resume:
            raise OutputError(
                f"the folder {folder} holds a search already.",
                hint="--resume goes on with it; else choose another --out",
            )
        remove_leftovers(folder)
        begun = read_search(folder, search)
        if options.threads is None:
            options = options.changed(threads=begun["threads"])
        _warn_of_others(
            {"threads": begun["threads"], **begun["versions"]},
            {"threads": options.threads, **versions()},
        )
    else:
        refuse_group_as_output(folder)
        refuse_run(folder)
        if (folder / JOURNAL).exists():
            raise OutputError(
                f"the folder {folder} holds the {JOURNAL} of a search, but no {SEARCH}, which says"
                " of what.",
                hint=f"put its {SEARCH} back to go on with it; else choose another --out",
            )
    return _Bench(search, folder, options, Study(search, folder / JOURNAL), begun)


def _warn_of_others(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn of circumstances that were others, by name, when a search began."""
    for name, was in before.items():
        if now.get(name) != was:
            logger.warning(
                "going on with trials that may be others: %s is %s, was %s",
                name,
                now.get(name),
                was,
            )


def _next_trial(bench: _Bench) -> Generator[SearchReport, None, None]:
    """Draw settings that can be tried, try them, and keep what came of them."""
    study, number = bench.study, len(bench.study.trials) + 1
    refused: list[str] = []
    while True:
        drawn = study.draw(len(refused))
        earlier = study.same_as(drawn.settings)
        if earlier:
            for epoch, figures in enumerate(earlier.epochs, 1):
                drawn.is_behind(epoch, figures)
            repeated = {"repeats": earlier.repeats or earlier.number, "refused": ()}
            trial = Trial(**{**vars(earlier), "number": number, **repeated})
            break
        try:
            recipe = bench.search.tried(drawn.settings)
            cycle = yield from _ready(bench, recipe)
        except (RecipeError, WeightsError) as error:
            study.refuse(drawn)
            if len(refused) == MOST_DRAWS or _is_of_all(bench, error.message):
                raise
            refused.append(error.message)
            continue
        yield TrialStart(number, drawn.settings, recipe)
        started_at = perf_counter()
        outcome, reason, epochs = yield from _train(cycle, drawn)
        bench.trial_seconds += perf_counter() - started_at
        judged = bench.search.judged_epoch(epochs) if outcome == COMPLETE else None
        trial = Trial(number, drawn.settings, outcome, tuple(epochs), judged, reason)
        break
    study.keep(drawn, Trial(**{**vars(trial), "refused": tuple(refused)}))


def _is_of_all(bench: _Bench, message: str) -> bool:
    """Tell whether no trial can ever be prepared, by what a preparation said of some.

    It has said so whatever was drawn: each choice was among that, and more than one number.
    """
    drawn = bench.refusals.get(message, [])
    return not bench.is_prepared and all(
        len({settings[name] for settings in drawn}) > 1
        if isinstance(range_, Numbers)
        else {settings[name] for settings in drawn} == {*range_.values}
        for name, range_ in bench.search.ranges.items()
    )


def _train(
    cycle: Cycle, drawn: Drawn
) -> Generator[SearchReport, None, tuple[str, str, list[Figures]]]:
    """Carry out the epochs of a trial; gives how it ended, why if early, and their figures."""
    epochs: list[Figures] = []
    try:
        with closing(progress(cycle)) as reports:
            for report in reports:
                yield report
                if not isinstance(report, EpochReport):
                    continue
                epochs.append(report.scores)
                is_behind = drawn.is_behind(report.epoch, report.scores)
                # What comes after the last epoch is the test, and none of a search's business.
                if cycle.is_trained:
                    break
                if is_behind:
                    return PRUNED, f"below the median after epoch {report.epoch}", epochs
    except NotFiniteError as error:
        return NOT_FINITE, error.message, epochs
    return COMPLETE, "", epochs


def _ready(bench: _Bench, recipe: Recipe) -> Generator[SearchReport, None, Cycle]:
    """Make the cycle of a trial ready: the one before again where that does, else another."""
    before = bench.cycle
    if before and all(
        getattr(before.recipe, name) == getattr(recipe, name)
        for name in prepared_fields(before.recipe) | prepared_fields(recipe)
    ):
        bench.cycle = again(before, recipe, bench.start)
        return bench.cycle
    if _prepared_anew(bench.search):
        check_model(recipe)
        check_transform(recipe)
    if before:
        # Hashed once for all trials that shared it.
        refuse_moved(before)
        bench.cycle = None
    cycle = yield from _prepared(bench, recipe)
    _compare(bench, cycle)
    if not bench.is_prepared:
        bench.is_prepared = True
        yield _as_report(cycle)
    return cycle


def _prepared(bench: _Bench, recipe: Recipe) -> Generator[SearchReport, None, Cycle]:
    """Prepare a cycle for a trial and those after it; notes whose recipe cannot be used."""
    try:
        with closing(preparing(recipe, bench.options)) as stages:
            for made in stages:
                if isinstance(made, PassReport):
                    yield made
    except (RecipeError, WeightsError) as error:
        settings = {name: getattr(recipe, name) for name in bench.search.ranges}
        bench.refusals.setdefault(error.message, []).append(settings)
        raise
    assert isinstance(made, Cycle)
    bench.cycle = made
    bench.start = {name: value.clone() for name, value in made.moved().items()}
    return made


def _as_report(cycle: Cycle) -> SearchPrepared:
    recipe, validation = cycle.recipe, cycle.sources.validation
    assert validation is not None
    return SearchPrepared(
        str(cycle.device),
        cycle.whole.start,
        recipe.has_frozen_part,
        cycle.num_images,
        len(validation.labels),
        cycle.trunk,
        cycle.num_computed,
    )


def _compare(bench: _Bench, cycle: Cycle) -> None:
    """See that data and start weights are those that the search began with, and note new ones.

    Raises RunError if they are not, SaveError if they cannot be noted.
    """
    device = {"device": str(cycle.device)}
    if bench.begun is None:
        bench.begun = {
            **bench.search.as_document(),
            "threads": torch.get_num_threads(),
            **device,
            "versions": versions(),
            "prepared": {},
        }
    elif not bench.is_prepared:
        _warn_of_others({"device": bench.begun["device"]}, device)
    noted = bench.begun["prepared"]
    num_noted = len(noted)
    for what, digest in _digests(bench.search, cycle).items():
        if noted.setdefault(what, digest) != digest:
            raise RunError(
                f"{what} are not those that the search in {bench.folder} began with.",
                hint="put back what was changed, or search anew with another --out",
            )
    if len(noted) > num_noted:
        write_json(bench.folder / SEARCH, bench.begun)


def _digests(search: Search, cycle: Cycle) -> dict[str, str]:
    """Hash what was prepared, by what it is, with the settings searched that decide it."""
    recipe, sources = cycle.recipe, cycle.sources

    def under(fields: Collection[str]) -> str:
        settings = {name: getattr(recipe, name) for name in search.ranges if name in fields}
        return f" under {json.dumps(settings)}" if settings else ""

    labels = {"all": [[part.labels.tolist(), part.ids.tolist()] for part in sources.parts]}
    # What of an image is kept depends on the channels; of pictures, whose files do not, on more.
    images, decided_by = cycle.data, ["channels"]
    if sources.pictures:
        seen = sources.pictures.seen
        files = [[seen[place].sha256 for place in part.ids.tolist()] for part in sources.parts]
        images, decided_by = digest_of({"all": files}), []
    return {
        f"the images or labels{under(decided_by)}": images,
        "the labels": digest_of(labels),
        f"the start weights{under(prepared_fields(recipe))}": digest_of(cycle.frozen),
    }


def _save_tables(bench: _Bench) -> None:
    """Write what people read of the trials so far: the table, and the best one's recipe."""
    trials = bench.study.trials
    best = best_of(trials)
    if trials:
        save_table(bench.folder / TABLE, bench.search, trials)
    if best:
        save_best(bench.folder / BEST, bench.search, best, len(trials))


def _finish(bench: _Bench, started_at: float) -> Tuned:
    """Write table, recipe and picture; raises NotFiniteError if no trial is complete."""
    _save_tables(bench)
    search, trials = bench.search, tuple(bench.study.trials)
    best = best_of(trials)
    if best is None:
        raise NotFiniteError(
            f"none of the {len(trials)} trials came to its end; the first: {trials[0].reason}",
            hint=f"search lower learning rates; `--resume --out {as_word(bench.folder)}` with more"
            " --trials goes on",
        )
    draw = partial(plot_trials, f"{search.recipe.name} on {search.recipe.data}", search, trials)
    try:
        write_bytes(bench.folder / PICTURE, draw())
    # Whatever goes wrong in drawing, the trials must not be lost to it.
    except Exception as error:
        logger.warning("the plot %s could not be made: %s", PICTURE, error)
    return Tuned(
        search,
        bench.folder,
        trials,
        best,
        search.chosen(best.settings),
        perf_counter() - started_at,
        bench.trial_seconds,
    )
