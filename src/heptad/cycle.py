"""The cycle: the one place where the seven stages are joined, readable from top to bottom.

`prepare` is stages 1 to 4, `steps` stage 5, `progress` and `epochs` stages 5 and 6, `run` all
seven. Each yields as it goes: the caller's `for` is the callback, and `break` is early stopping.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from heptad.architectures import find_architecture
from heptad.checkpoints.keeping import Keeper, Resume, begin, find_resume
from heptad.cycle_state import Best, Cycle, Opened
from heptad.distributed import (
    ALONE,
    Ranks,
    joined,
    launch_name,
    local_rank,
    lost_ranks_said,
)
from heptad.errors import DataError, FrozenError, NotFiniteError, RankError, RecipeError
from heptad.event_log import check_tensorboard
from heptad.features.engine import REWRITTEN, quickened
from heptad.features.statistics import recalibrate
from heptad.features.trunk import computing, describe_store, engine_of, features_digest, find_split
from heptad.files import digest_of, write_bytes
from heptad.randomness import derived_seed
from heptad.recipe import Recipe, RunOptions, not_default
from heptad.records import (
    Batch,
    EpochReport,
    EvaluationReport,
    Figures,
    Objective,
    PassReport,
    Position,
    Prepared,
    Run,
    Scores,
    StepReport,
)
from heptad.run_folder import (
    PICTURES,
    check_output,
    claimed,
    is_restart_of,
    refuse_unnamed_output,
)
from heptad.schedules import rate_at
from heptad.stages import saving
from heptad.stages.data import Sources, fingerprint, opening, ordered_batches, training_batches
from heptad.stages.device import pick_device
from heptad.stages.evaluation import Tally, score_batches
from heptad.stages.model import (
    Model,
    build_model,
    check_model,
    frozen_digests,
    moving_buffers,
    rate_groups,
    refuse_lone_images,
    state_digests,
)
from heptad.stages.objective import LOSSES, configure_objective
from heptad.stages.training import train_steps
from heptad.stores import make_room
from heptad.transform import check_transform

logger = logging.getLogger("heptad")

Report = StepReport | EvaluationReport | EpochReport


def preparing(
    recipe: Recipe,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    sources: Sources | None = None,
    network: nn.Module | None = None,
    ranks: Ranks = ALONE,
) -> Generator[PassReport | Cycle, None, None]:
    """Carry out stages 1 to 4; yield after each batch of the trunk's pass, and last the cycle.

    What the names in the recipe mean is looked up before any data or weights are fetched. Sources
    and network that are given are used instead of being opened or built. ranks: the processes that
    do so together; each has all of the images, and computes its share of the features.
    """
    check_model(recipe)
    check_transform(recipe)
    # Stage 1, device
    device = pick_device(options.device, threads=options.threads, local_rank=local_rank())
    # Stage 2, data
    if sources is None:
        # What the first one decodes the others find.
        with ranks.first_before_others():
            sources = yield from opening(recipe, device=device, memory=0)
    # Stage 3, model
    num_classes, num_images = len(sources.train.classes), len(sources.train.labels)
    whole = build_model(recipe, num_classes=num_classes, device=device, network=network)
    refuse_lone_images(whole, num_images=num_images, batch_size=recipe.batch_size)
    _refuse_ranks(ranks, whole, num_images)
    start = frozen_digests(whole)
    statistics = ""
    if recipe.batchnorm == "recalibrated":
        with ranks.first_before_others():
            statistics = recalibrate(whole, sources.train, recipe, weights=digest_of(start))
    sources, data = _identified(sources, whole, ranks)
    # The trunk, if there is one, runs here, once; the head alone is trained.
    started_at = perf_counter()
    sources, model, trunk, features, num_computed = yield from _passing(
        recipe, options, sources, whole, start=start, statistics=statistics, ranks=ranks
    )
    trunk_seconds = perf_counter() - started_at if features else 0.0
    # Machines may have a cache each.
    if (features or sources.pictures) and not local_rank():
        make_room(options.cache_size)
    # Stage 4, objective
    yield Cycle(
        recipe=recipe,
        device=device,
        sources=sources,
        whole=whole,
        model=model,
        objective=objective_of(recipe, whole, sources),
        start=start,
        frozen=frozen_digests(whole) if statistics else start,
        moving=whole.trained | moving_buffers(whole),
        trunk=trunk,
        data=data,
        features=features,
        trunk_seconds=trunk_seconds,
        num_computed=num_computed,
        ranks=ranks,
    )


class _Passed(NamedTuple):
    """What is left to train once the trunk has run, if there is one; see `Cycle`."""

    sources: Sources
    model: Model
    trunk: str
    features: str = ""
    num_computed: int = 0


def _passing(
    recipe: Recipe,
    options: RunOptions,
    sources: Sources,
    whole: Model,
    *,
    start: dict[str, str],
    statistics: str,
    ranks: Ranks,
) -> Generator[PassReport, None, _Passed]:
    """Run the trunk over all images whose features are not kept; give them, and the head.

    Without a trunk, images that are resized once where that fits, and the whole network.
    """
    architecture = find_architecture(recipe)
    split, trunk = find_split(
        architecture, whole, sources, is_wanted=options.trunk == "cached", views=recipe.views
    )
    if recipe.views and not split:
        raise RecipeError(f"views is {recipe.views}, but there is {trunk}.")
    if not split:
        if idle := not_default(options, "engine") + not_default(recipe, "feature_dtype"):
            logger.warning("%s: no effect, there is %s", ", ".join(idle), trunk)
        return _Passed(sources.resized_if_they_fit(options.memory), whole, trunk)
    frozen_part = whole.part(split.trunk(whole.network))
    weights = {name: start[name] for name in whole.names_in(frozen_part)}
    store = describe_store(recipe, split, sources, weights=weights, statistics=statistics)
    trunk_pass = computing(
        frozen_part, sources, store, num_views=recipe.views, engine=options.engine, ranks=ranks
    )
    num_computed = 0
    # Closed at once when this is: what an interrupted pass has computed is kept.
    with closing(trunk_pass):
        for made in trunk_pass:
            if isinstance(made, PassReport):
                num_computed = made.num_done
                yield made
            else:
                sources = made
    head = split.head(whole.network)
    # As what computed the features, so that a run that goes on computes as it began.
    is_rewritten = REWRITTEN in engine_of(sources)
    model = whole.part(quickened(head) if is_rewritten else head)
    return _Passed(sources, model, trunk, features_digest(sources), num_computed)


def _identified(sources: Sources, whole: Model, ranks: Ranks) -> tuple[Sources, str]:
    """Give the sources with their data's hash, and it; all ranks have the same data and weights."""
    data = sources.data or fingerprint(sources)
    # Hashing all weights takes a while, and one process alone has nobody to compare with.
    if not ranks.is_alone:
        weights = digest_of(state_digests(whole))
        ranks.refuse_differences({"the data's SHA-256": data, "the weights' SHA-256": weights})
    if sources.data is None:
        sources = replace(sources, data=data)
    return sources, data


def _refuse_ranks(ranks: Ranks, model: Model, num_images: int) -> None:
    """Raise an error for what several ranks cannot train together as one would alone."""
    if num_images < ranks.world_size:
        raise DataError(
            f"there are {num_images} training images for {ranks.world_size} ranks.",
            hint="start at most as many ranks as there are images",
        )
    moving = sorted(moving_buffers(model))
    if moving and not ranks.is_alone:
        raise RecipeError(
            f"{len(moving)} statistics of BatchNorm would move, {moving[0]} among them, and each of"
            f" {ranks.world_size} ranks sees its own images alone.",
            hint="batchnorm frozen or held keeps them as they are; or train in one process",
        )


def prepare(
    recipe: Recipe,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    sources: Sources | None = None,
    network: nn.Module | None = None,
) -> Cycle:
    """Carry out stages 1 to 4 and give the cycle, ready to train; see `preparing`."""
    *_, cycle = preparing(recipe, options, sources=sources, network=network)
    assert isinstance(cycle, Cycle)
    return cycle


def objective_of(recipe: Recipe, whole: Model, sources: Sources) -> Objective:
    """Give the recipe's loss, and its optimizer of all that is trained. Stage 4."""
    train = sources.train
    architecture = find_architecture(recipe)
    return configure_objective(
        recipe,
        rate_groups(recipe, architecture, whole.network),
        train.labels,
        num_classes=len(train.classes),
    )


def steps(cycle: Cycle, stop: Position) -> Iterator[StepReport]:
    """Train from where the cycle is up to `stop`; yield after each step. Stage 5.

    On the CPU a loss that is NaN or infinite raises NotFiniteError, with the step. On a GPU, where
    looking at it would wait, whoever reads `StepReport.loss` looks: the run's log, `progress`.
    """
    cycle.go_on()
    average = _averaging(cycle)
    while cycle.at < stop:
        batches = training_batches(cycle.sources.train, cycle.recipe, cycle.at, cycle.ranks)
        try:
            for batch, loss in train_steps(
                cycle.shared_model,
                _with_derived_draws(cycle, _at_their_rates(cycle, batches)),
                cycle.objective,
                cycle.ranks,
            ):
                epoch = cycle.at.epoch
                if cycle.at.num_seen == 0:
                    cycle.step_losses, cycle.step_images = [], []
                    cycle.tally = Tally()
                    cycle.train_seconds = cycle.test_seconds = 0.0
                # On the CPU reading is free, and a number takes no room from the next inputs.
                cycle.step_losses.append(loss.item() if loss.device.type == "cpu" else loss)
                cycle.step_images.append(batch.num_global)
                num_seen = cycle.at.num_seen + batch.num_global
                is_whole = num_seen == cycle.num_images
                cycle.at = Position(epoch + 1) if is_whole else Position(epoch, num_seen)
                average(cycle.num_steps)
                yield StepReport(
                    step=cycle.num_steps,
                    epoch=epoch + 1,
                    num_images=batch.num_global,
                    # Of the last block, whose factor is 1.
                    learning_rate=cycle.objective.optimizer.param_groups[-1]["lr"],
                    loss_tensor=loss,
                )
                if cycle.at >= stop:
                    return
        except NotFiniteError as error:
            advice = (
                "a lower --learning-rate may help"
                if cycle.num_steps
                else "before any step: look at the pixels, mean, deviation and start weights"
            )
            raise NotFiniteError(
                f"step {cycle.num_steps + 1}, epoch {cycle.at.epoch + 1}: {error.message}",
                hint=f"{error.hint}\n{advice}",
            ) from error


def _at_their_rates(cycle: Cycle, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Set the learning rate before each step, by the step's number alone."""
    recipe = cycle.recipe
    num_steps = recipe.epochs * -(-cycle.num_images // recipe.batch_size)
    for batch in batches:
        rate = rate_at(
            cycle.num_steps,
            schedule=recipe.schedule,
            peak=recipe.learning_rate,
            warmup=recipe.warmup,
            num_steps=num_steps,
        )
        for group in cycle.objective.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        yield batch


def _averaging(cycle: Cycle) -> Callable[[int], None]:
    """Give what moves the average of the weights on after a step, by the number of steps done."""
    if cycle.average is None:
        return lambda _: None
    moved = cycle.moved()
    pairs = [(mean, moved[name]) for name, mean in cycle.average.items()]
    means, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    def average(num_steps: int) -> None:
        # Short at first, when the oldest weights are the worst, as TensorFlow's and timm's are.
        share = min(cycle.recipe.averaging, (1 + num_steps) / (10 + num_steps))
        get_ema_multi_avg_fn(share)(means, values, None)  # type: ignore[no-untyped-call]
        for count, now in counts:
            count.copy_(now)

    return average


def _with_derived_draws(cycle: Cycle, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Seed what Dropout draws from before each step, so that the place alone decides the draw.

    Without Dropout the caller's generator is left alone.
    """
    draws = cycle.model.has_dropout
    for batch in batches:
        if not draws:
            yield batch
            continue
        at = cycle.at
        seed = derived_seed(cycle.recipe.seed, "dropout", at.epoch, at.num_seen, cycle.ranks.rank)
        # The CPU's generator alone takes 1.5 µs, all devices' several times that.
        if cycle.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        yield batch


def progress(cycle: Cycle) -> Generator[Report, None, None]:
    """Carry out stages 5 and 6, epoch by epoch; yield every step, scored batch and epoch.

    Goes on from wherever the cycle is: in an epoch, or before its evaluation. Raises
    NotFiniteError for a loss or an answer that is NaN or infinite.
    """
    while not cycle.is_trained:
        epoch = max(cycle.num_scored + 1, cycle.at.epoch)
        # Stage 5, training
        yield from _timed(cycle, "train_seconds", steps(cycle, Position(epoch)))
        # What is still on a device is read here, after the epoch and not in it.
        losses = [float(loss) for loss in cycle.step_losses]
        if not all(map(isfinite, losses)):
            raise NotFiniteError(f"epoch {epoch}: the loss of a step is not finite.")
        # Stage 6, evaluation
        if cycle.average:
            cycle.show(cycle.average)
        part, _ = cycle.scored
        yield from _timed(cycle, "test_seconds", _evaluation(cycle, epoch))
        scores = _scores(cycle, epoch)
        cycle.num_scored = epoch
        if part == "validation":
            _note_best(cycle, scores.figures)
            cycle.tally = Tally()
        else:
            cycle.scores = scores
        yield EpochReport(
            epoch=epoch,
            step_losses=tuple(losses),
            step_images=tuple(cycle.step_images),
            scores=scores.figures,
            train_seconds=cycle.train_seconds,
            seconds=cycle.train_seconds + cycle.test_seconds,
            part=part,
        )
    if cycle.best:
        # The test images were not looked at yet; they are scored once, by the best epoch's network.
        cycle.show(cycle.best.tensors)
        if cycle.scores is None:
            yield from _evaluation(cycle, cycle.num_scored)
            cycle.scores = _scores(cycle, cycle.best.epoch)
    elif cycle.average:
        cycle.show(cycle.average)


def _evaluation(cycle: Cycle, epoch: int) -> Iterator[EvaluationReport]:
    """Score the images that were not scored yet since the last step."""
    part, source = cycle.scored
    batches = ordered_batches(source, cycle.recipe, cycle.ranks, start=cycle.tally.num_images)
    for answers in score_batches(cycle.model, batches, cycle.ranks):
        cycle.tally.add(answers)
        yield EvaluationReport(epoch, cycle.tally.num_images, len(source.labels), part)


def _scores(cycle: Cycle, epoch: int) -> Scores:
    try:
        return cycle.tally.scores(LOSSES[cycle.recipe.loss])
    except NotFiniteError as error:
        raise NotFiniteError(
            f"step {cycle.num_steps}, epoch {epoch}: {error.message}",
            hint="a lower --learning-rate may help",
        ) from error


def _note_best(cycle: Cycle, figures: Figures) -> None:
    """Keep the epoch just scored if it is the best: by right answers, then by the loss."""
    best = cycle.best
    if best is None or (figures.num_correct, -figures.loss) > (
        best.figures.num_correct,
        -best.figures.loss,
    ):
        tensors = {name: value.clone() for name, value in cycle.moved().items()}
        cycle.best = Best(cycle.num_scored, figures, tensors)


def _timed(cycle: Cycle, seconds: str, reports: Iterator[Report]) -> Iterator[Report]:
    """Pass reports on; what passes between two of them is added to the cycle's `seconds`."""
    at = perf_counter()
    for report in reports:
        setattr(cycle, seconds, getattr(cycle, seconds) + perf_counter() - at)
        at = perf_counter()
        yield report


def epochs(cycle: Cycle) -> Iterator[EpochReport]:
    """Carry out stages 5 and 6; yield after each epoch."""
    return (report for report in progress(cycle) if isinstance(report, EpochReport))


def run(
    recipe: Recipe,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    opened: Opened | None = None,
) -> Generator[PassReport | Prepared | Report | Run, None, None]:
    """Carry out all seven stages; yield the pass, what was prepared, every report, last the run.

    The output folder is checked and claimed before anything else. Between two reports everything is
    consistent: closing this there (`contextlib.closing`, or a `break` out of the only `for` on it)
    saves all that a resume needs. What is left open at the end of the program saves nothing more.
    With `options.resume` the run goes on from its newest whole checkpoint, to the bit; one that is
    finished is given as it is. Sources that are `opened` are used, if those of another seed serve,
    and left there for the next run. Under a launcher (`torchrun`) rank 0 alone writes, and all get
    the run. Raises FrozenError if anything moved that is not in the trained part, SaveError if a
    result could not be written, RankError if another rank is lost.
    """
    started_at = perf_counter()
    refuse_unnamed_output(options)
    with joined(options.rank_timeout) as ranks, ExitStack() as claim:
        ranks.refuse_differences(_what_all_must_have(recipe, options))
        launchers = ranks.gathered(launch_name())

        folder, found = ranks.by_first(lambda: _begin_or_find(recipe, options, launchers, claim))
        if isinstance(found, Run):
            yield found
            return
        if found and options.threads is None:
            options = options.changed(threads=found.threads)
        # Stages 1 to 4
        given = opened.take(recipe) if opened else None
        with closing(preparing(recipe, options, sources=given, ranks=ranks)) as stages:
            for made in stages:
                if isinstance(made, PassReport):
                    yield made
        assert isinstance(made, Cycle)
        cycle = made
        if opened:
            opened.keep(cycle)
        # Stages 5 and 6
        keeper = begin(cycle, folder, options, found, started_at=started_at, launchers=launchers)
        yield from _keeping(cycle, keeper, folder, found.step if found else None)
        refuse_moved(cycle)
        # Stage 7, saving
        yield ranks.by_first(lambda: _save(cycle, folder, keeper, save=options.save))


def _begin_or_find(
    recipe: Recipe, options: RunOptions, launchers: Sequence[str | None], claim: ExitStack
) -> tuple[Path, Resume | Run | None]:
    """Claim the folder of a run; give also what there is to go on from, or the finished run."""
    goes_on = options.resume or is_restart_of(options.out, launchers)
    own = options.changed(resume=goes_on)
    check_output(recipe, own)
    if options.tensorboard:
        check_tensorboard()
    folder = claim.enter_context(claimed(recipe, own))
    return folder, find_resume(folder, recipe) if goes_on else None


def _keeping(
    cycle: Cycle, keeper: Keeper | None, folder: Path, resumed_from: int | None
) -> Generator[Prepared | Report, None, None]:
    """Train and evaluate; whatever ends it, the keeper has saved all that a resume needs."""
    try:
        with lost_ranks_said():
            yield _prepared(cycle, folder, resumed_from)
            for report in progress(cycle):
                if keeper:
                    keeper.note(report)
                yield report
    except GeneratorExit:
        if keeper:
            keeper.save()
        # Whoever ends earlier may have the launcher end the one that saves.
        cycle.ranks.wait()
        raise
    except RankError:
        # The others stopped in a step that this one has not taken. On a GPU it may be under way,
        # and never end.
        if keeper and cycle.device.type == "cpu":
            keeper.save()
        raise
    except NotFiniteError as error:
        if keeper:
            keeper.log.note(error)
        raise


def _what_all_must_have(recipe: Recipe, options: RunOptions) -> dict[str, Any]:
    """Name what ranks that train together have in common; each may have its own device."""
    settings = {**recipe.model_dump(), **options.model_dump(exclude={"device", "threads"})}
    return {**settings, **saving.package_versions()}


def refuse_moved(cycle: Cycle) -> None:
    """Compare all that may not move with its hashes from before the first step.

    Raises FrozenError, with the names, if a parameter or buffer changed.
    """
    now = frozen_digests(cycle.whole)
    moved = [name for name, digest in cycle.frozen.items() if now.get(name) != digest]
    if moved:
        raise FrozenError(
            f"{len(moved)} frozen parameters or buffers moved, {moved[0]} among them;"
            " the run is not saved."
        )


def _prepared(cycle: Cycle, folder: Path, resumed_from: int | None) -> Prepared:
    train, validation = cycle.sources.train, cycle.sources.validation
    return Prepared(
        recipe=cycle.recipe,
        folder=folder,
        device=str(cycle.device),
        num_train_images=cycle.num_images,
        num_test_images=len(cycle.sources.test.labels),
        num_parameters=sum(p.numel() for p in cycle.whole.parameters()),
        num_trained=sum(p.numel() for p in cycle.whole.trained_parameters()),
        weights=cycle.whole.start,
        trunk=cycle.trunk,
        num_computed=cycle.num_computed,
        resumed_from=resumed_from,
        num_validation_images=len(validation.labels) if validation else 0,
        class_counts=tuple(
            torch.bincount(train.labels, minlength=len(train.classes)).tolist(),
        ),
    )


def _save(cycle: Cycle, folder: Path, keeper: Keeper | None, *, save: str) -> Run:
    assert keeper is not None
    keeper.save_at_the_end()
    assert cycle.scores is not None
    stem = f"{cycle.recipe.architecture}_{cycle.sources.name}"
    # The weights first: whatever else cannot be written, they are there.
    saved = saving.save_network(
        folder,
        stem,
        cycle.whole.network,
        unmoved={k: v for k, v in cycle.start.items() if cycle.frozen[k] == v},
        save=save,
    )
    if cycle.sources.pictures:
        saved.append(PICTURES)
    keeper.log.sync()
    epochs = tuple(keeper.epochs)
    title = f"{cycle.recipe.name} on {cycle.sources.name}"
    drawings = {f"{stem}.png": partial(saving.save_plot, title=title, epochs=epochs)}
    if cycle.sources.sheet:
        drawings[saving.SHEET] = partial(write_bytes, content=cycle.sources.sheet)
    return saving.save_run(
        folder,
        cycle.recipe,
        epochs,
        cycle.scores,
        saved=saved,
        drawings=drawings,
        facts=_facts(cycle, keeper),
    )


def _facts(cycle: Cycle, keeper: Keeper) -> dict[str, Any]:
    """Give what `metrics.json` tells of a training beside its figures, by the names there."""
    validation = cycle.sources.validation
    return {
        "transform": cycle.sources.transform.as_document(),
        **cycle.origins,
        "trunk": cycle.trunk,
        "parameters": sum(p.numel() for p in cycle.whole.parameters()),
        "trained_parameters": sum(p.numel() for p in cycle.whole.trained_parameters()),
        "classes": list(cycle.sources.train.classes),
        "selected_epoch": cycle.best.epoch if cycle.best else None,
        "validation_images": len(validation.labels) if validation else 0,
        "seconds": keeper.seconds(),
        "trunk_seconds": keeper.trunk_seconds,
        "execution": {
            "world_size": cycle.ranks.world_size,
            "threads": torch.get_num_threads(),
            "device": str(cycle.device),
            "engine": engine_of(cycle.sources),
            "computed_features": cycle.num_computed,
            "resumed_from": keeper.resumed_from,
            "checkpoint_seconds": keeper.checkpoint_seconds,
            "rank_images": cycle.ranks.share_sizes(cycle.num_images, cycle.recipe.batch_size),
        },
    }
