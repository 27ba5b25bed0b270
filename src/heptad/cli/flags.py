"""Flags made from the fields of `Recipe` and `RunOptions`: no option is written twice."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from heptad.errors import OutputError, RecipeError
from heptad.files import user_path
from heptad.recipe import Recipe, RunOptions, Settings
from heptad.run_folder import is_of_run

RECIPE_FLAGS = Group("What changes the result", sort_key=2)
OPTION_FLAGS = Group("How it is carried out", sort_key=3)
MOST_DIGITS = 18
MOST_PORT = 65_535
GROUPS = {Recipe: RECIPE_FLAGS, RunOptions: OPTION_FLAGS}


def flags_of(
    *settings: type[Settings], only: tuple[str, ...] = (), leave_out: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command a flag for each field of `settings`, or for those named in `only`.

    The command takes them as keyword arguments, text or None: what was not given is None. The
    settings themselves check the values, so that Python, files and flags say the same of them. A
    field that is true or false is a switch without a value. `leave_out` names fields without flag.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        flags = [
            _flag(kind, name)
            for kind in settings
            for name in kind.model_fields
            if (not only or name in only) and name not in leave_out
        ]
        command.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in [*own, *flags]}
        return command

    return decorate


def _flag(settings: type[Settings], name: str) -> inspect.Parameter:
    field = settings.model_fields[name]
    is_switch = settings.is_switch(name)
    text = f"{field.description} Allowed: {settings.allowed(name)}."
    parameter = Parameter(
        help=field.description if is_switch else text,
        group=GROUPS[settings],
        show_default=False,
        negative="",
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[bool | None if is_switch else str | None, parameter],
    )


def at_least_1(name: str, text: str) -> int:
    """Read the whole number that a flag of its own shows; raises RecipeError."""
    # Python reads no more than some thousand digits.
    if not text.isdecimal() or len(text) > MOST_DIGITS or int(text) < 1:
        raise RecipeError(f"{name} is {text}; allowed: a whole number, at least 1.")
    return int(text)


def probability(name: str, text: str) -> float:
    """Read the number from 0 to 1 that a flag of its own shows; raises RecipeError."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise RecipeError(f"{name} is {text}; allowed: a number from 0 to 1.")
    return number


def port_number(name: str, text: str) -> int:
    """Read the number of a port, 0 for any; raises RecipeError."""
    if not text.isdecimal() or len(text) > MOST_DIGITS or int(text) > MOST_PORT:
        raise RecipeError(f"{name} is {text}; allowed: a whole number from 0 to {MOST_PORT}.")
    return int(text)


def output_path(
    flag: str, text: str | None, suffix: str, pictures: Sequence[Path] = ()
) -> Path | None:
    """Give the file that a flag names, before any work; raises OutputError if it cannot be made.

    The suffix is asked for, and neither a file of a run nor one of `pictures` allowed, lest
    something else is overwritten.
    """
    if text is None:
        return None
    path = user_path(text)
    if path.suffix.lower() != suffix:
        raise OutputError(f"{flag} is {text or 'empty'}; allowed: a file name ending in {suffix}.")
    if not path.parent.is_dir() or path.is_dir():
        what = "is a folder" if path.is_dir() else f"lies in {path.parent}, which is no folder"
        raise OutputError(f"{flag} is {text}, which {what}.")
    if path.exists() and any(p.exists() and path.samefile(p) for p in pictures):
        raise OutputError(f"{flag} is {text}, which is one of the pictures.")
    if path.exists() and is_of_run(path):
        raise OutputError(f"{flag} is {text}, which is a file of the run in {path.parent}.")
    return path


def given(flags: dict[str, Any], settings: type[Settings]) -> dict[str, Any]:
    """Pick the flags that were given and belong to `settings`."""
    return {
        name: value
        for name, value in flags.items()
        if value is not None and name in settings.model_fields
    }
