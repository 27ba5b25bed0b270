"""What a field is searched in: `1e-4..1e-1`, from one number to another, or `adam,sgd`, choices.

Every value is read and checked by the field itself, so that ranges say the same of a wrong one as
recipes do. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log10
from typing import Any

from heptad.errors import RecipeError
from heptad.files import user_path
from heptad.recipe import Recipe

# Between the two ends of a range of numbers.
TO = ".."
# Numbers that go so many times as high as they begin are searched by their logarithm.
WORTH_LOGARITHM = 10
# Digits of a number that is drawn, at least; typed as it is printed, it is the same.
NUM_DIGITS = 4
# Fields that decide which images are trained or judged on, or nothing that a trial shows. Trials
# with different ones could not be compared.
NOT_SEARCHED = {
    "name": "names the recipe and changes nothing in it",
    "data": "decides which images are trained and judged on",
    "on_bad_image": "decides which images are trained and judged on",
    "drop_leaks": "decides which images are trained on",
    "max_pixels": "decides which images are trained and judged on",
    "float_range": "decides how pictures are read",
    "validation": "decides which images the trials are judged by",
    "seed": "decides which images the trials are judged by",
    "limit": "decides which images are trained and judged on",
    "training_stats": "names a file and changes nothing in the training",
}


@dataclass(frozen=True)
class Numbers:
    """All numbers from `low` to `high`, both among them, whole ones alone where the field says so.

    Searched by their logarithm where that is worth it, else evenly.
    """

    low: float
    high: float

    @property
    def text(self) -> str:
        """The range as it is written."""
        return f"{self.low}{TO}{self.high}"

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to be checked before any work."""
        return self.low, self.high

    @property
    def is_whole(self) -> bool:
        """Whether the field takes whole numbers alone."""
        return isinstance(self.low, int)

    @property
    def is_logarithmic(self) -> bool:
        """Whether tenfold is the same step everywhere."""
        return self.low > 0 and self.high / self.low >= WORTH_LOGARITHM

    def settled(self, drawn: float) -> float:
        """Give the number that is tried for one that was drawn: it has so many digits, no more."""
        if self.is_whole:
            return drawn
        # As many as tell a thousand numbers of a narrow range apart.
        times_as_large = max(abs(self.low), abs(self.high)) / (self.high - self.low)
        num_digits = max(NUM_DIGITS, NUM_DIGITS - 1 + ceil(log10(times_as_large)))
        return min(max(float(f"{drawn:.{num_digits}g}"), self.low), self.high)


@dataclass(frozen=True)
class Choices:
    """A few values, in no order."""

    values: tuple[Any, ...]

    @property
    def text(self) -> str:
        """The choices as they are written."""
        return ",".join(map(shown, self.values))

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to be checked before any work: all of them."""
        return self.values

    def settled(self, drawn: Any) -> Any:
        """Give the value that is tried for one that was drawn: itself."""
        return drawn


Range = Numbers | Choices


def shown(value: object) -> str:
    """Write a value as it is typed; read again it is the same."""
    if value is None:
        return "none"
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.{NUM_DIGITS}g}"
    return short if float(short) == value else repr(value)


def parted(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Part settings of a recipe into values that are fixed and ranges to be searched."""
    ranges = {
        name: value
        for name, value in settings.items()
        if isinstance(value, str) and is_range(name, value)
    }
    return {name: value for name, value in settings.items() if name not in ranges}, ranges


def is_range(name: str, text: str) -> bool:
    """Tell whether a text is a range for the field `name`, or means to be one."""
    if name not in Recipe.model_fields:
        return False
    if Recipe.number_kind(name) and TO in text:
        return True
    # A pair of numbers is one value of that field, and a path may have a comma in it.
    return "," in text and name != "float_range" and not user_path(text).exists()


def read_range(name: str, text: str) -> Range:
    """Read what the field `name` is searched in.

    Raises RecipeError if there is no such field, it is not searched, or the range has values that
    it does not take, or only one.
    """
    if name in NOT_SEARCHED:
        raise RecipeError(
            f"{name} is {text}, but it {NOT_SEARCHED[name]}, and cannot be searched.",
            hint="give it one value",
        )
    kind = Recipe.number_kind(name) if name in Recipe.model_fields else None
    if not (kind and TO in text):
        return _read_choices(name, text)
    low, high = (Recipe.checked(name, end.strip()) for end in text.split(TO, 1))
    if low is None or high is None:
        raise RecipeError(f"{name} is {text}; allowed as a range: two numbers, such as 1{TO}10.")
    if low >= high:
        raise RecipeError(
            f"{name} is {text}, whose first number is not the smaller one; allowed as a range: LOW"
            f"{TO}HIGH.",
            hint="a value by itself is not searched",
        )
    return Numbers(kind(low), kind(high))


def _read_choices(name: str, text: str) -> Choices:
    values = tuple(Recipe.checked(name, choice.strip()) for choice in text.split(","))
    twice = next((value for value in values if values.count(value) > 1), None)
    if len(set(values)) < len(values):
        raise RecipeError(f"{name} is {text}, which names {shown(twice)} twice.")
    if len(values) == 1:
        numbers = f"LOW{TO}HIGH or " if Recipe.number_kind(name) else ""
        raise RecipeError(
            f"{name} is {text}, one value; allowed to search in: {numbers}choices with commas."
        )
    return Choices(values)
