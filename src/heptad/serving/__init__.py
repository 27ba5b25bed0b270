"""A page on this machine alone, on which a network answers to what one draws or drops there.

`answers` is what it says of one picture, `app` what may be asked and by whom, `server` the port,
`page` what the browser is given: no library, and nothing from elsewhere.
"""

from __future__ import annotations

from heptad.errors import MissingError


def leave_to_browser() -> None:
    """Have PyTorch compute with a thread less, on the processor that the browser needs.

    Of threads that wait for one another, one would have to wait for the browser: with two of them
    an answer of LeNet-5 took 77 ms, with one 51 (two cores, torch 2.14.1, 2026-11).
    """
    import torch  # heptad.serving is asked for the rest before PyTorch is there

    torch.set_num_threads(max(1, torch.get_num_threads() - 1))


def check_web() -> None:
    """Raise MissingError unless the packages that the page is served with are installed."""
    try:
        import starlette  # noqa: F401 - what they are named for in the message
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingError(
            "the page needs the packages starlette and uvicorn, which are not installed.",
            hint=f"pip install starlette uvicorn ({error})",
        ) from error
