"""Signals: a training stops between two steps and saves; at the second signal it stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

# SIGHUP comes when the terminal goes; Windows has none.
STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


HANGUP = getattr(signal, "SIGHUP", None)
# A signal that follows the first one so soon is the same one again.
ECHO_S = 0.1


class Stopped(BaseException):
    """A signal ends the command. said: what was saved, and how to go on."""

    def __init__(self, number: int, said: str = "what was not finished is not saved") -> None:
        super().__init__(number)
        self.number = number
        self.said = said

    @property
    def exit_code(self) -> int:
        """What shells give a command that the signal ended: 130, 143, 129."""
        return 128 + self.number


class Signals:
    """What came, and whether the work can be stopped anywhere or asks for itself."""

    def __init__(self) -> None:
        self.pending: int | None = None
        self._is_asked = False
        self._came_at = 0.0

    @contextmanager
    def handled(self, *, to_the_end: bool = False) -> Iterator[None]:
        """Take over the signals that stop a command, but those that the caller ignores (nohup).

        to_the_end: after this the process ends, and no further signal may disturb that.
        """
        self.pending, self._is_asked = None, False
        # A handler can be set in the main thread alone; elsewhere the caller has its own.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in STOPPING}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._take)
        try:
            yield
        finally:
            # Ctrl-C that is held down comes again and again, in the middle of the last words too.
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if to_the_end else handler)

    def will_be_asked(self) -> None:
        """From here on the first signal only notes itself: the work looks at `pending`."""
        self._is_asked = True

    def _take(self, number: int, _: FrameType | None) -> None:
        if self._is_asked and self.pending is None:
            self.pending, self._came_at = number, monotonic()
            return
        # A terminal that is closed says so more than once, and who passes signals on repeats them.
        is_echo = monotonic() - self._came_at < ECHO_S or number == HANGUP
        if self.pending is not None and is_echo:
            return
        raise Stopped(number)


SIGNALS = Signals()
