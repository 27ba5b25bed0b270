"""A run's log and checkpoints while it trains: when one is due, and where a resume begins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from heptad.checkpoints.snapshot import facts_of, put_back, refuse_other_recipe, tensors_of
from heptad.checkpoints.store import (
    Checkpoint,
    checkpoint_name,
    find_checkpoint,
    list_checkpoints,
    save_checkpoint,
)
from heptad.cycle_state import Cycle
from heptad.errors import DamagedError, RunError, SaveError, damage_in, is_of_memory
from heptad.event_log import EventLog
from heptad.files import write_json
from heptad.finished import read_run
from heptad.recipe import Recipe, RunOptions
from heptad.recipes import load_recipe
from heptad.records import EpochReport, EvaluationReport, Run, StepReport
from heptad.run_folder import CHECKPOINTS, ENVIRONMENT, PICTURES, note_launch
from heptad.run_log import MetricsLog, log_up_to, read_log, step_images
from heptad.stages.saving import environment, read_metrics

logger = logging.getLogger("heptad")

# Saving may take one part in so many of the time.
LEAST_WORK_PER_SAVE = 50
SECONDS = ("cycle", "trunk", "train", "test", "checkpoints")


@dataclass(frozen=True)
class Resume:
    """Where an interrupted run goes on: its checkpoint, its log up to there, what had passed.

    step, threads: steps done before, and the CPU threads that did them. resumed_from: the steps at
    which it was resumed before. seconds: of the cycle, the trunk's pass, the checkpoints, and the
    training and evaluation of the epoch under way. epoch_seconds: of each epoch, its training and
    all of it.
    """

    checkpoint: Checkpoint
    log: bytes
    step: int
    threads: int
    resumed_from: list[int]
    seconds: dict[str, float]
    epoch_seconds: list[tuple[float, float]]


def find_resume(folder: Path, recipe: Recipe) -> Resume | Run | None:
    """Find where the run in `folder` goes on; the run itself if it is finished, None if it is new.

    Raises RecipeError if the run was begun with another recipe, DamagedError if what is left of it
    cannot be used.
    """
    if (folder / "metrics.json").exists():
        finished = _finished(folder, recipe)
        if finished:
            return finished
    log = folder / "metrics.jsonl"
    found = find_checkpoint(
        folder / CHECKPOINTS, is_usable=lambda facts: log_up_to(log, facts.get("log")) is not None
    )
    if found is None:
        if (folder / "metrics.json").exists():
            raise RunError(
                f"the run in {folder} is finished, and has no checkpoint to go on from.",
                hint="choose another --out to train with more epochs or other data",
            )
        # Begun, and stopped before anything was saved.
        if (folder / "recipe.json").is_file() and (folder / "recipe.json").stat().st_size:
            refuse_other_recipe(recipe, load_recipe(folder), folder)
            logger.warning("no checkpoint was found in %s: the run begins again", folder)
        return None
    with damage_in(found.path):
        seconds = found.facts["seconds"]
        resume = Resume(
            checkpoint=found,
            log=log_up_to(log, found.facts["log"]) or b"",
            step=int(found.facts["position"]["step"]),
            threads=int(found.facts["circumstances"]["threads"]),
            resumed_from=list(map(int, found.facts["resumed_from"])),
            seconds={key: float(seconds[key]) for key in SECONDS},
            epoch_seconds=[(float(train), float(whole)) for train, whole in seconds["epochs"]],
        )
        begun = Recipe(**found.facts["recipe"])
    refuse_other_recipe(recipe, begun, folder)
    return resume


def _finished(folder: Path, recipe: Recipe) -> Run | None:
    """Load the run in `folder` if it is whole and has as many epochs as the recipe."""
    try:
        metrics = read_metrics(folder)
        with damage_in(folder / "metrics.json"):
            begun = Recipe(**metrics["recipe"])
        refuse_other_recipe(recipe, begun, folder)
        # Whether what has another name is the same, only the checkpoint's hash of it can say.
        is_renamed = (begun.data, begun.weights) != (recipe.data, recipe.weights)
        if begun.epochs < recipe.epochs or is_renamed:
            return None
        return read_run(folder, metrics)
    except DamagedError as error:
        if not list_checkpoints(folder / CHECKPOINTS):
            raise
        logger.warning("%s The run is written again from its last checkpoint.", error.message)
        return None


@dataclass
class Keeper:
    """What is kept of a run while it trains: its log, the epochs done, its checkpoints.

    events: for TensorBoard, where that is asked for. every: steps, or seconds, between two
    checkpoints. earlier_seconds: of the cycle and of the trunk's pass before a resume;
    checkpoint_seconds: of saving, before and now. resumed_from: the steps at which the run was
    resumed.
    """

    cycle: Cycle
    folder: Path
    log: MetricsLog
    events: EventLog | None
    every: str
    started_at: float
    epochs: list[EpochReport] = field(default_factory=list)
    earlier_seconds: tuple[float, float] = (0.0, 0.0)
    checkpoint_seconds: float = 0.0
    resumed_from: list[int] = field(default_factory=list)
    saved_at: float = field(default_factory=perf_counter)
    last_cost: float = 0.0

    def seconds(self) -> float:
        """Seconds of the whole cycle up to now, those before a resume too."""
        return self.earlier_seconds[0] + perf_counter() - self.started_at

    @property
    def trunk_seconds(self) -> float:
        """Seconds of the trunk's pass, those before a resume too."""
        return self.earlier_seconds[1] + self.cycle.trunk_seconds

    def note(self, report: StepReport | EvaluationReport | EpochReport) -> None:
        """Take a report: write it into the log, and save a checkpoint if one is due.

        A checkpoint that cannot be written costs a warning; the training goes on. Raises
        NotFiniteError for a loss that is NaN or infinite.
        """
        if not isinstance(report, EvaluationReport):
            self.log.add(report)
        if isinstance(report, EpochReport):
            self.epochs.append(report)
            self._follow()
        if self._is_due(report):
            self._try_to_save()

    def _follow(self) -> None:
        if self.events:
            self.events.follow()

    def _is_due(self, report: StepReport | EvaluationReport | EpochReport) -> bool:
        if not self.every.endswith("s"):
            return isinstance(report, StepReport) and report.step % int(self.every) == 0
        since = perf_counter() - self.saved_at
        if since < LEAST_WORK_PER_SAVE * self.last_cost:
            return False
        return isinstance(report, EpochReport) or since >= int(self.every[:-1])

    def save(self) -> None:
        """Save a checkpoint; raises SaveError, and NotFiniteError if there is no good state."""
        started_at = perf_counter()
        try:
            self._save()
        finally:
            self.saved_at = perf_counter()
            self.last_cost = self.saved_at - started_at
            self.checkpoint_seconds += self.last_cost

    def _save(self) -> None:
        cycle = self.cycle
        tensors = tensors_of(cycle)
        facts = {
            **facts_of(cycle),
            "log": self.log.sync().as_document(),
            "resumed_from": self.resumed_from,
            "seconds": {
                "cycle": self.seconds(),
                "trunk": self.trunk_seconds,
                "train": cycle.train_seconds,
                "test": cycle.test_seconds,
                "checkpoints": self.checkpoint_seconds,
                "epochs": [[epoch.train_seconds, epoch.seconds] for epoch in self.epochs],
            },
        }
        name = checkpoint_name(cycle.num_steps, *cycle.evaluated)
        save_checkpoint(self.folder / CHECKPOINTS, name, tensors, facts)
        self._follow()

    def save_at_the_end(self) -> None:
        """Save the last checkpoint, from which stage 7 can be repeated and epochs be added."""
        self._try_to_save("The results are written all the same.")

    def _try_to_save(self, consequence: str = "The training goes on.") -> None:
        try:
            self.save()
        except SaveError as error:
            logger.warning("WARNING: %s %s %s.", error.message, consequence, error.hint)
        except Exception as error:
            if not is_of_memory(error):
                raise
            logger.warning("WARNING: no memory to save a checkpoint with. %s", consequence)


def begin(
    cycle: Cycle,
    folder: Path,
    options: RunOptions,
    found: Resume | None,
    *,
    started_at: float,
    launchers: Sequence[str | None] = (),
) -> Keeper | None:
    """Bring the cycle to where a resume goes on; write down what the run is and open its log.

    Gives what keeps the run from here on; None on another rank than the first, which writes
    nothing. started_at: of the whole cycle. launchers: of each rank. Errors as in `put_back`:
    nothing in the folder was changed then.
    """
    epochs: list[EpochReport] = []
    if found:
        differences = put_back(cycle, found.checkpoint)
        for difference in differences if cycle.ranks.is_first else ():
            logger.warning("going on with other sums in the last bits: %s", difference)
        epochs = _restore_log(cycle, found)
        cycle.train_seconds, cycle.test_seconds = found.seconds["train"], found.seconds["test"]
    if not cycle.ranks.is_first:
        return None
    note_launch(folder, launchers)
    write_json(folder / "recipe.json", cycle.recipe.model_dump())
    write_json(folder / ENVIRONMENT, environment())
    if cycle.sources.pictures:
        write_json(folder / PICTURES, cycle.sources.pictures.as_document())
    # With more epochs than before the run is unfinished again.
    (folder / "metrics.json").unlink(missing_ok=True)
    return Keeper(
        cycle,
        folder,
        log=MetricsLog(folder / "metrics.jsonl", found.log if found else b""),
        # After the log, which is cut to what is kept of it.
        events=EventLog(folder) if options.tensorboard else None,
        every=options.checkpoint_every,
        started_at=started_at,
        epochs=epochs,
        earlier_seconds=(found.seconds["cycle"], found.seconds["trunk"]) if found else (0.0, 0.0),
        checkpoint_seconds=found.seconds["checkpoints"] if found else 0.0,
        resumed_from=[*found.resumed_from, found.step] if found else [],
    )


def _restore_log(cycle: Cycle, found: Resume) -> list[EpochReport]:
    """Read back the epochs done, and give the cycle the step losses of the one under way."""
    with damage_in(found.checkpoint.path):
        epochs, losses = read_log(
            found.log,
            num_images=cycle.num_images,
            batch_size=cycle.recipe.batch_size,
            num_scored_images=len((cycle.sources.validation or cycle.sources.test).labels),
            seconds=found.epoch_seconds,
        )
        num_logged = sum(len(epoch.step_losses) for epoch in epochs) + len(losses)
        if (num_logged, len(epochs)) != (cycle.num_steps, cycle.num_scored):
            raise ValueError("its log does not fit its position")
    sizes = step_images(cycle.num_images, cycle.recipe.batch_size)
    cycle.step_losses, cycle.step_images = list(losses), list(sizes[: len(losses)])
    return epochs
