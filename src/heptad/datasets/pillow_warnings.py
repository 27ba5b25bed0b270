"""What Pillow warns of while it reads a file, noted with that file, in any number of threads.

Python's filters of warnings belong to the whole process: two threads that use
`warnings.catch_warnings` side by side restore each other's. Here they share one. No torch.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

_lock = threading.Lock()
_of_thread = threading.local()
# The block that the first thread entered, and the last one out leaves; with how many are inside.
_shared = warnings.catch_warnings()
_num_inside = 0


@contextmanager
def noting_warnings(notes: list[str]) -> Iterator[None]:
    """Add Pillow's warnings in this thread to `notes`; all others are shown as ever."""
    _enter()
    _of_thread.notes = notes
    try:
        yield
    finally:
        _of_thread.notes = None
        _leave()


def _enter() -> None:
    global _shared, _num_inside
    with _lock:
        if not _num_inside:
            _shared = warnings.catch_warnings()
            _shared.__enter__()
            warnings.filterwarnings("always", module=r"PIL\.")
            # The one who asks for a picture says how large it may be.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.showwarning = _noting(warnings.showwarning)
        _num_inside += 1


def _leave() -> None:
    global _num_inside
    with _lock:
        _num_inside -= 1
        if not _num_inside:
            _shared.__exit__(None, None, None)


def _noting(show: Any) -> Any:
    def note(message: Warning, category: type, filename: str, *rest: Any, **named: Any) -> None:
        notes = getattr(_of_thread, "notes", None)
        if notes is None:
            show(message, category, filename, *rest, **named)
        elif (text := f"Pillow warns: {str(message).strip()}") not in notes:
            notes.append(text)

    return note
