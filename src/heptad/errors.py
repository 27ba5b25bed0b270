"""Every error that Heptad raises on purpose, each with the exit code of the command line.

Anything else that escapes is a bug of ours and keeps its traceback. A message says what was
wrong, the value found and what is allowed; the hint says what to do. This module imports nothing
of Heptad, and every other module may import it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class HeptadError(Exception):
    """The base of all; `exit_code` is what `heptad` exits with when one of these ends a command."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UnusableError(HeptadError):
    """What was named cannot be used: missing, of the wrong kind, out of range or unreadable."""

    exit_code = 2


class RecipeError(UnusableError):
    """A recipe, an option, or a setting that does not fit the others."""


class DeviceError(UnusableError):
    """The device asked for is unknown or is not in this machine."""


class DataError(UnusableError):
    """A data set or a file of one cannot be used."""


class WeightsError(UnusableError):
    """Weights that cannot be used: unknown, unreadable, or of another network."""


class ImageError(UnusableError):
    """A file named as an image is none that we read."""


class NoDigitError(ImageError):
    """A picture that should show a digit shows none."""


class RunError(UnusableError):
    """A folder named as a run is none."""


class ModelError(UnusableError):
    """A file named as an exported model cannot be used."""


class OutputError(UnusableError):
    """The output folder cannot be used; found before the first batch."""


class SaveError(HeptadError):
    """A result could not be written: disk full, permission lost."""

    exit_code = 3


class NotFiniteError(HeptadError):
    """A loss or an answer of the network is NaN or infinite."""

    exit_code = 4


class FrozenError(HeptadError):
    """Something moved that is frozen: a bug of ours, or of a network that was given."""


class DamagedError(HeptadError):
    """Something that we wrote no longer has the content that we wrote."""

    exit_code = 5


class MissingError(HeptadError):
    """Something needed is not here and could not be had: data or weights."""

    exit_code = 6


class RankError(MissingError):
    """Another rank ended, or did not answer.

    exit_code: of rank 0, which says itself what was wrong, where that `is_said`.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.is_said = exit_code is not None
        self.exit_code = exit_code or type(self).exit_code


@contextmanager
def damage_in(path: object) -> Iterator[None]:
    """Turn whatever reading a document of ours raises into the news that `path` is damaged."""
    try:
        yield
    except KeyError as error:
        raise DamagedError(f"{path} is damaged: it lacks {error.args[0]!r}.") from error
    except UnusableError as error:
        raise DamagedError(f"{path} is damaged: {error.message}") from error
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise DamagedError(f"{path} is damaged: {error}.") from error


# In PyTorch's words: its allocators of the CPU, of CUDA and MPS, and what oneDNN says when it finds
# no room for the code of a layer (a limit on the address space, torch 2.14.1, 2026-11).
NO_MEMORY = (
    "allocate memory",
    "out of memory",
    "not enough memory",
    "could not create a primitive",
)


def is_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, be it the machine's or a device's.

    PyTorch raises its own kinds, by device; they are known by their words, since naming them would
    import it.
    """
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY))
    )


def counted(number: int, noun: str, one: str = "", many: str = "") -> str:
    """Say how many there are, and what of `one` or of `many`: `1 picture is`, `2 pictures are`."""
    said = f"{number:,} {noun} {one}" if number == 1 else f"{number:,} {noun}s {many}"
    return said.rstrip()


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Say " Did you mean …?" when one of `choices` is close to `word`; else nothing."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def unknown(kind: str, word: str, choices: Iterable[str]) -> str:
    """Say that `word` is no known `kind`, what is closest to it, and what is allowed."""
    choices = list(choices)
    return (
        f"there is no {kind} {word!r}.{did_you_mean(word, choices)} Allowed: {', '.join(choices)}."
    )
