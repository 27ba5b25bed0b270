"""The command line: parse, call, print. Thin; what it does, the library does.

Nothing here imports torch before a command needs it, so that help comes at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import CycloptsError
from rich.console import Console

from heptad.cli.commands import app
from heptad.errors import HeptadError, UnusableError

INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command and give its exit code: 0, or as `heptad.errors` says."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    _log_to_stderr(logging.WARNING if as_json else logging.INFO)
    try:
        app(words)
        sys.stdout.flush()
    except HeptadError as error:
        return _fail(error, as_json=as_json)
    except CycloptsError as error:
        hint = "`heptad --help` lists the commands, `heptad COMMAND --help` its flags"
        return _fail(UnusableError(str(error).strip(), hint=hint), as_json=as_json)
    except KeyboardInterrupt:
        print("stopped; what was not finished is not saved", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        traceback.print_exc()
        hint = "this is a bug of Heptad: please report it, with the traceback"
        return _fail(HeptadError(f"{type(error).__name__}: {error}", hint=hint), as_json=as_json)
    return 0


def _fail(error: HeptadError, *, as_json: bool) -> int:
    if as_json:
        document = {"code": error.exit_code, "message": error.message, "hint": error.hint}
        print(json.dumps({"error": document}))
    else:
        console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
        console.print("error: ", style="bold red", end="")
        console.print(error.message)
        if error.hint:
            console.print(error.hint, style="dim")
    return error.exit_code


def _log_to_stderr(level: int) -> None:
    logger = logging.getLogger("heptad")
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
