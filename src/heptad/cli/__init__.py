"""The command line: parse, call, print. Thin; what it does, the library does.

Nothing here imports torch before a command needs it, so that help comes at once.
"""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from cyclopts import CycloptsError

from heptad.cli.commands import app
from heptad.cli.stopping import SIGNALS, Stopped
from heptad.cli.streams import PlainConsole, is_unheard, leave_dead_streams, open_closed_streams
from heptad.distributed import Ranks, launched, refuse_launched
from heptad.errors import (
    HeptadError,
    MissingError,
    RankError,
    RecipeError,
    SaveError,
    UnusableError,
    is_of_memory,
)
from heptad.text import escape_what_cannot_be_encoded, one_line, printable

BROKEN_PIPE = 141
# Python looks through everything for garbage, all that was imported too, after so many collections
# of what is younger, instead of 10.
COLLECTIONS_TO_A_FULL_ONE = 100
# What several processes of a launcher may carry out together.
AMONG_RANKS = ("train", "resume")


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command and give its exit code: 0, or as `heptad.errors` says."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    # In a process of its own: PyTorch's and torchvision's modules are 300,000 objects, which were
    # looked through five times (Python 3.11, torch 2.14.1, 2026-11).
    if argv is None:
        gc.set_threshold(*gc.get_threshold()[:2], COLLECTIONS_TO_A_FULL_ONE)
    open_closed_streams()
    escape_what_cannot_be_encoded()
    try:
        ranks = launched()
        _log_to_stderr(_log_level(ranks, as_json=as_json))
        if words[:1] and words[0] not in AMONG_RANKS:
            refuse_launched(f"`heptad {words[0]}`")
        with SIGNALS.handled(to_the_end=argv is None):
            # A command that looks into something gives a code where it finds it wrong.
            code = app(words)
            sys.stdout.flush()
    except HeptadError as error:
        return _fail(error, as_json)
    except CycloptsError as error:
        hint = "`heptad --help` lists the commands, `heptad COMMAND --help` its flags"
        return _fail(UnusableError(str(error).strip(), hint=hint), as_json)
    except Stopped as stop:
        return _fail(StoppedError(stop), as_json)
    except Exception as error:
        if is_unheard(error):
            return 128 + SIGNALS.pending if SIGNALS.pending else BROKEN_PIPE
        known = _of_the_machine(error)
        if known:
            return _fail(known, as_json)
        traceback.print_exc()
        hint = "this is a bug of Heptad: please report it, with the traceback"
        return _fail(HeptadError(f"{type(error).__name__}: {error}", hint=hint), as_json)
    return code or 0


class StoppedError(HeptadError):
    """A command that a signal ended."""

    def __init__(self, stop: Stopped) -> None:
        super().__init__(f"stopped by {signal.Signals(stop.number).name}: {stop.said}.")
        self.exit_code = stop.exit_code


def _of_the_machine(error: Exception) -> HeptadError | None:
    """Turn what the machine refuses - a path, memory - into an error with a code of its own."""
    if is_of_memory(error):
        hint = "a smaller --batch-size or --memory needs less"
        return MissingError("there is not enough memory for this.", hint=hint)
    if isinstance(error, OSError) and error.filename is not None:
        return UnusableError(f"{os.fsdecode(error.filename)}: {error.strerror}.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return SaveError("the output cannot be written: there is no space left for it.")
    return None


def _fail(error: HeptadError, as_json: bool) -> int:
    try:
        _say(error, as_json)
    except OSError:
        leave_dead_streams()
    return error.exit_code


def _say(error: HeptadError, as_json: bool) -> None:
    rank = _rank()
    if rank and isinstance(error, RankError) and error.is_said:
        return
    # Standard output is rank 0's, which prints the one document there is.
    if as_json and not rank:
        document = {"code": error.exit_code, "message": error.message, "hint": error.hint}
        print(json.dumps({"error": document}), flush=True)
        return
    console = PlainConsole(stderr=True, soft_wrap=True)
    console.print(f"rank {rank}: error: " if rank else "error: ", style="bold red", end="")
    console.print(printable(error.message))
    if error.hint:
        console.print(printable(error.hint), style="dim")


def _rank() -> int:
    try:
        return launched().rank
    # That is the error to be said.
    except RecipeError:
        return 0


def _log_level(ranks: Ranks, *, as_json: bool) -> int:
    """Rank 0 speaks for all; the others say what ends them."""
    if not ranks.is_first:
        return logging.ERROR
    return logging.WARNING if as_json else logging.INFO


def _log_to_stderr(level: int) -> None:
    logger = logging.getLogger("heptad")
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainText("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)


class _PlainText(logging.Formatter):
    """Log lines name files of strangers."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))
