"""A search over fields of a recipe, by validation images alone; a frozen trunk runs once for it.

`ranges` reads what is to be searched, `search` is what a search is and what it leaves behind,
`study` draws the settings of each trial, `searching` carries trials out. The package that draws,
Optuna, is an extra: it is imported when a search begins.
"""

from __future__ import annotations

from heptad.errors import MissingError


def check_optuna() -> None:
    """Raise MissingError unless the package that draws the settings is installed."""
    try:
        import optuna  # noqa: F401 - what it is named for in the message
    except ImportError as error:
        raise MissingError(
            "a search needs the package optuna, which is not installed.",
            hint=f"pip install optuna ({error})",
        ) from error
