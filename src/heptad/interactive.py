"""A training for someone who watches it, in a notebook or a Python shell: a bar, and a way to stop.

The cycle itself knows neither: this takes its reports, as anyone's `for` could.
"""

from __future__ import annotations

import html
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from time import perf_counter
from types import FrameType
from typing import Any, TypeVar

from heptad import cycle, seeds
from heptad.files import as_word
from heptad.polling import Poll
from heptad.recipe import Recipe, RunOptions
from heptad.records import EpochReport, EvaluationReport, PassReport, Prepared, Run, StepReport
from heptad.seed_group import SeedGroup
from heptad.seeds import Event, SeedReport
from heptad.text import one_line

# Drawing more often would only cost time.
DRAW_INTERVAL_S = 0.2

Result = TypeVar("Result")


def train(
    recipe: Recipe,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    progress: bool = False,
) -> Run:
    """Carry out all seven stages and give the finished run; see `heptad.run` for its reports.

    progress: show how far it is, by a bar in a notebook, elsewhere by a line for each epoch.
    Ctrl-C, or a notebook's Stop button, stops between two steps and saves all that a resume needs,
    then raises KeyboardInterrupt, which says where; a second one stops at once.
    """
    return _watch(cycle.run(recipe, options), Run, progress=progress)


def train_seeds(
    recipe: Recipe,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    num_seeds: int,
    progress: bool = False,
) -> SeedGroup:
    """Carry out runs with several seeds and give the group; see `heptad.run_seeds` and `train`."""
    work = seeds.run_seeds(recipe, options, num_seeds=num_seeds)
    return _watch(work, SeedGroup, progress=progress)


def _watch(work: Generator[Any, None, None], result: type[Result], *, progress: bool) -> Result:
    """Carry out a training up to its `result`, as `train` says."""
    show = _display() if progress else _show_nothing
    group = folder = place = None
    poll = Poll()
    with _interrupts() as asked, closing(work) as events:
        for event in events:
            asked.can_wait = True
            show(event)
            if isinstance(event, result):
                return event
            if isinstance(event, SeedReport):
                group, place = event.folder, None
            elif isinstance(event, Prepared):
                folder = group or event.folder
            elif isinstance(event, StepReport):
                place = event.step
            if poll.agreed(event, int(asked.came)):
                # Closed here, a run saves all that it needs to go on.
                events.close()
                done = f"after step {place}" if place else "before a step of this session"
                where = f"{done}; `heptad resume {as_word(folder)}` goes on" if folder else "early"
                raise KeyboardInterrupt(f"stopped {where}")
    raise AssertionError("a run ends with itself")


class _Interrupts:
    """Whether Ctrl-C came, and whether it can wait for the next report."""

    came = False
    can_wait = False

    def take(self, _number: int, _frame: FrameType | None) -> None:
        if self.came or not self.can_wait:
            raise KeyboardInterrupt
        self.came = True


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    """Take over Ctrl-C where it would raise KeyboardInterrupt anywhere, even within a step.

    Whoever handles it otherwise, as the command line does, keeps doing so.
    """
    asked = _Interrupts()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield asked
        return
    signal.signal(signal.SIGINT, asked.take)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _show_nothing(event: Event) -> None:
    """Pass over a report."""


def _display() -> Callable[[Event], None]:
    """Give what shows reports: a bar where IPython can draw one, else lines."""
    # Whoever is in a notebook has imported it already.
    ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return _Bar() if getattr(ipython, "kernel", None) else _print_line


def _print_line(event: Event) -> None:
    if isinstance(event, SeedReport | EpochReport):
        print(_line_of(event), flush=True)


def _line_of(event: SeedReport | EpochReport) -> str:
    return event.said if isinstance(event, SeedReport) else _epoch_line(event)


def _epoch_line(epoch: EpochReport) -> str:
    return (
        f"epoch {epoch.epoch}: loss {epoch.train_loss:.4f}, {epoch.part} accuracy"
        f" {100 * epoch.scores.accuracy:.2f} %, {epoch.seconds:.1f} s"
    )


class _Bar:
    """A bar drawn as HTML, in one place of a notebook's output; it needs no widgets."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._prepared: Prepared | None = None
        self._drawn_at = 0.0
        self._lines: list[str] = []

    def __call__(self, event: Event) -> None:
        """Show a report."""
        if isinstance(event, Prepared):
            self._prepared = event
        elif isinstance(event, SeedReport | EpochReport):
            self._lines.append(_line_of(event))
        is_last = isinstance(event, Run | SeedGroup)
        if not is_last and perf_counter() - self._drawn_at < DRAW_INTERVAL_S:
            return
        self._drawn_at = perf_counter()
        self._draw("" if is_last else self._bar(event))

    def _bar(self, event: Event) -> str:
        done, total, said = 0, 1, "preparing"
        if isinstance(event, PassReport):
            done, total, said = event.num_done, event.num_images, event.what
        elif isinstance(event, EvaluationReport):
            done, total, said = event.num_scored, event.num_images, f"scoring, {event.part}"
        elif isinstance(event, StepReport) and self._prepared:
            size = self._prepared.recipe.batch_size
            per_epoch = -(-self._prepared.num_train_images // size)
            done, total = event.step - (event.epoch - 1) * per_epoch, per_epoch
            said = f"epoch {event.epoch} of {self._prepared.recipe.epochs}, loss {event.loss:.4f}"
        bar = f'<progress value="{done}" max="{total}"></progress>'
        return f"<div>{bar} {html.escape(one_line(said))}</div>"

    def _draw(self, bar: str) -> None:
        # Found here, since notebooks alone have it.
        show = importlib.import_module("IPython.display")
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in self._lines)
        content = show.HTML(f'<div style="font-variant-numeric: tabular-nums">{lines}{bar}</div>')
        if self._handle is None:
            self._handle = show.display(content, display_id=True)
        else:
            self._handle.update(content)
