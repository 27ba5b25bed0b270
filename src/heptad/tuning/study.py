"""What Optuna does for a search: it draws settings, and says which trials to give up.

It works in memory on the trials that have ended; each of these is also a line of the journal, which
is all that a resume needs, and which Optuna's own tools read. A draw depends on the seed, the
trial's number and the trials before it, and on nothing else, so that a search that was killed goes
on as if it had not been. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from heptad.errors import SaveError, damage_in
from heptad.files import as_word
from heptad.randomness import derived_seed
from heptad.records import Figures
from heptad.tuning.ranges import Numbers, Range
from heptad.tuning.search import COMPLETE, Search, Settings, Trial

# So many trials are drawn evenly before the sampler goes by what they gave.
NUM_EVEN = 10
# No trial is given up before so many complete ones, nor after its first epoch, which says little.
NUM_UNPRUNED, FIRST_PRUNED_EPOCH = 5, 2
# With these in the search, an epoch of one trial is no measure for the same epoch of another.
OUT_OF_STEP = ("epochs", "schedule", "warmup")
# What Optuna's sampler takes as a seed.
SEED_BITS = 32
# What its journal puts beside itself while it writes.
LOCKS = "{}.lock*"
# Under this name the journal holds what we know of a trial.
TRIAL = "heptad"


class Drawn:
    """Settings that were drawn for a trial, and what to ask and tell of it."""

    def __init__(self, trial: optuna.Trial, settings: Settings) -> None:
        self.trial = trial
        self.settings = settings

    def is_behind(self, epoch: int, figures: Figures) -> bool:
        """Take the figures of an epoch, from 1 on; tell whether to give the trial up."""
        self.trial.report(figures.accuracy, epoch)
        return self.trial.should_prune()


class Study:
    """The trials that have ended, in memory and in the journal; raises DamagedError, SaveError."""

    def __init__(self, search: Search, journal: Path) -> None:
        self._search = search
        self._distributions = {name: _distribution(found) for name, found in search.ranges.items()}
        self._journal = journal
        with _quietly():
            self._study = optuna.create_study(direction="maximize", pruner=_pruner(search))
            with _saving(journal):
                _clear(journal)
            with damage_in(journal):
                # Where there is none it is made when the first trial is kept.
                self._kept = self._opened() if journal.exists() else None
                frozen = self._kept.get_trials(deepcopy=False) if self._kept else []
                self.trials = [Trial.from_document(each.user_attrs[TRIAL]) for each in frozen]
                if [trial.number for trial in self.trials] != [*range(1, len(frozen) + 1)]:
                    raise ValueError("its trials are not in order")
                self._study.add_trials(frozen)

    def _opened(self) -> optuna.Study:
        """Open the journal, made where there is none."""
        return optuna.create_study(
            study_name=self._search.recipe.name,
            storage=JournalStorage(JournalFileBackend(str(self._journal))),
            direction="maximize",
            load_if_exists=True,
        )

    def draw(self, attempt: int) -> Drawn:
        """Draw settings for the next trial; attempt: from 0 on, where others were refused."""
        place = (len(self.trials) + 1, attempt)
        seed = derived_seed(self._search.recipe.seed, "trial", *place) % (1 << SEED_BITS)
        # A new one each time: what it draws depends on nothing that it drew before. All fields are
        # drawn together, since the best batch size depends on the learning rate.
        self._study.sampler = TPESampler(
            seed=seed, n_startup_trials=NUM_EVEN, multivariate=True, constant_liar=False
        )
        trial = self._study.ask(self._distributions)
        ranges = self._search.ranges
        settings = {name: ranges[name].settled(trial.params[name]) for name in ranges}
        return Drawn(trial, settings)

    def refuse(self, drawn: Drawn) -> None:
        """Forget settings that cannot be tried: neither a trial nor a lesson for the sampler."""
        self._study.tell(drawn.trial, state=TrialState.FAIL)

    def keep(self, drawn: Drawn, trial: Trial) -> None:
        """Note how a trial ended, for the draws after it and for good; raises SaveError."""
        figures = trial.figures
        drawn.trial.set_user_attr(TRIAL, trial.as_document())
        if trial.outcome == COMPLETE and figures:
            frozen = self._study.tell(drawn.trial, figures.accuracy)
        else:
            frozen = self._study.tell(drawn.trial, state=TrialState.PRUNED)
        with _saving(self._journal), _quietly():
            self._kept = self._kept or self._opened()
            self._kept.add_trial(frozen)
        self.trials.append(trial)

    def same_as(self, settings: Settings) -> Trial | None:
        """Give the complete trial that had these settings before, if there is one."""
        return next(
            (t for t in self.trials if t.outcome == COMPLETE and t.settings == settings), None
        )


def _distribution(found: Range) -> BaseDistribution:
    if not isinstance(found, Numbers):
        return CategoricalDistribution(found.values)
    if found.is_whole:
        return IntDistribution(int(found.low), int(found.high), log=found.is_logarithmic)
    return FloatDistribution(found.low, found.high, log=found.is_logarithmic)


def _pruner(search: Search) -> BasePruner:
    if any(name in search.ranges for name in OUT_OF_STEP):
        return NopPruner()
    return MedianPruner(n_startup_trials=NUM_UNPRUNED, n_warmup_steps=FIRST_PRUNED_EPOCH)


def _clear(journal: Path) -> None:
    """Remove what a process that was killed left: its lock, and a last line that is not whole."""
    # The folder is ours alone.
    for lock in journal.parent.glob(LOCKS.format(journal.name)):
        lock.unlink()
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with journal.open("r+b") as file:
            file.truncate(len(whole))


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{path} could not be written: {error.strerror or error}.",
            hint=f"free some space; the same command with `--resume --out"
            f" {as_word(path.parent)}` goes on",
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep Optuna from saying on standard error what it does, for as long as this lasts."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
