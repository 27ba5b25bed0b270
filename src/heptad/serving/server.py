"""The port of the page's server, at 127.0.0.1 alone, from its binding to its clean end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from heptad.classifier import Classifier
from heptad.errors import UnusableError
from heptad.loaded_run import LoadedRun
from heptad.serving.app import make_app

HOST = "127.0.0.1"
# Connections at a time; a browser has six.
MOST_CONNECTIONS = 100
# In which a request's head has to arrive, and in which answers may still be given at the end.
HEAD_S, END_S = 10.0, 2
# A terminal that is closed; Windows knows no such signal.
HANGUP = getattr(signal, "SIGHUP", None)


class Impatient(H11Protocol):
    """Speaks HTTP, and gives up connections on which nothing is asked for."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._patience = self.loop.call_later(HEAD_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._patience.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if self.cycle is None:
            self.transport.close()


class Announcing(uvicorn.Server):
    """Says when it serves: only then does a signal end it cleanly, a closed terminal too."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and say so."""
        await super().startup(sockets)
        self._announce()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end it until the block does, and raise them again then."""
        with super().capture_signals(), self._hangup():
            yield

    @contextmanager
    def _hangup(self) -> Iterator[None]:
        is_main = threading.current_thread() is threading.main_thread()
        if HANGUP is None or not is_main or signal.getsignal(HANGUP) is signal.SIG_IGN:
            yield
            return
        before = signal.signal(HANGUP, self.handle_exit)
        try:
            yield
        finally:
            signal.signal(HANGUP, before)


@contextmanager
def bound(port: int) -> Iterator[socket.socket]:
    """Take a port of this machine alone, 0 for any that is free, until the block ends.

    Raises UnusableError if it is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with listener:
        # A port whose last connections are only just closed is no longer in use. (On Windows the
        # same option would share one that is.)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(MOST_CONNECTIONS)
        except OSError as error:
            reason = "in use by another program" if error.errno == errno.EADDRINUSE else None
            raise UnusableError(
                f"port {port} is {reason or f'not to be had: {error.strerror}'}.",
                hint="--port 0 takes any that is free",
            ) from error
        yield listener


def address_of(listener: socket.socket) -> str:
    """Give the address of the page that is served there."""
    return f"http://{HOST}:{listener.getsockname()[1]}/"


def title_of(classifier: Classifier) -> str:
    """Name a network by its recipe and its data."""
    return f"{classifier.recipe.name} on {classifier.recipe.data}"


def serve_page(
    classifier: Classifier, listener: socket.socket, announce: Callable[[], None]
) -> None:
    """Serve until a signal comes, answer what was asked by then, and raise the signal again.

    announce: is called once the page can be asked for.
    """
    # What goes wrong in an answer is said by us; what strangers send is not worth a line.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
    config = uvicorn.Config(
        make_app(classifier, title=title_of(classifier), said=_said(classifier)),
        http=Impatient,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=END_S,
    )
    Announcing(config, announce).run([listener])


def _said(classifier: Classifier) -> str:
    """Say what the page is about, in a sentence."""
    if not isinstance(classifier, LoadedRun):
        return "From an exported file."
    metrics: dict[str, Any] = classifier.metrics
    low, high = (f"{100 * value:.2f}" for value in metrics["test_accuracy_interval"])
    return (
        f"It classified {100 * metrics['test_accuracy']:.2f} % of {metrics['test_images']:,} test"
        f" images rightly (95 % interval {low} to {high})."
    )
