"""A page on this machine alone, on which a network answers to what one draws or drops there.

`answers` is what it says of one picture, `app` what may be asked and by whom, `server` the port,
`page` what the browser is given: no library, and nothing from elsewhere.
"""

from __future__ import annotations

import os

from heptad.errors import MissingError


def threads_beside_browser() -> int:
    """Give how many threads are best for a page: one processor is the browser's.

    Threads that wait for one another, one of which has to wait for the browser, take twice as long
    for an answer of LeNet-5 as a single one (two cores, torch 2.14.1, 2026-11).
    """
    return max(1, (os.cpu_count() or 1) - 1)


def check_web() -> None:
    """Raise MissingError unless the packages that the page is served with are installed."""
    try:
        import starlette  # noqa: F401 - what they are named for in the message
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingError(
            "the page needs the packages starlette and uvicorn, which are not installed.",
            hint=f"pip install 'heptad[web]' ({error})",
        ) from error
