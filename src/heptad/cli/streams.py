"""Standard output and error, which may be closed from the start or go away while a command works.

A reader in a pipe goes home, a terminal is closed, a disk that takes the output is full: the work
itself is saved as at any stop, and the command ends without a traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from rich.console import Console


class PlainConsole(Console):
    """Prints what it is given, without markup; a reader that has gone is an OSError like others."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False) -> None:
        super().__init__(
            stderr=stderr, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False
        )

    def on_broken_pipe(self) -> None:
        """Pass the error on; Rich itself would end the process with 1."""
        raise


def open_closed_streams() -> None:
    """Let a stream that was closed from the start (`>&-`) lead nowhere; Python has none there."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as we live


def leave_dead_streams() -> bool:
    """Let a stream that cannot be written any more lead nowhere; tell whether there is one.

    Python would otherwise complain of it, and change the exit code, when it closes the stream.
    """
    is_dead = False
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            # A terminal that was closed refuses even nothing.
            os.write(descriptor, b"")
            stream.flush()
        except OSError:
            is_dead = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return is_dead


def is_unheard(error: Exception) -> bool:
    """Tell whether an error says that the reader of our output, or its terminal, has gone."""
    if not isinstance(error, OSError) or error.filename is not None:
        return False
    is_dead = leave_dead_streams()
    return error.errno == errno.EPIPE or (is_dead and error.errno == errno.EIO)
