"""Signals: a training stops between two steps and saves; at the second signal it stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGHUP comes when the terminal goes; Windows has none.
STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


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

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take over the signals that stop a command, but those that the caller ignores (nohup)."""
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
            for number, handler in before.items():
                signal.signal(number, handler)

    def will_be_asked(self) -> None:
        """From here on the first signal only notes itself: the work looks at `pending`."""
        self._is_asked = True

    def _take(self, number: int, _: FrameType | None) -> None:
        if self._is_asked and self.pending is None:
            self.pending = number
            return
        raise Stopped(number)


SIGNALS = Signals()
