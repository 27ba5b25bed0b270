"""Test images whose labels are known to be wrong, as published, by place in the set. No torch."""

from __future__ import annotations

from dataclasses import dataclass

# What people said that is no other class.
NEITHER, DIVIDED = "neither", "divided"
IN_WORDS = {NEITHER: "most people saw something else", DIVIDED: "people were divided"}


@dataclass(frozen=True)
class LabelError:
    """A test image that fewer than three of five people gave the label it has.

    said: the class that most of them gave it, NEITHER of the two they were offered, or DIVIDED.
    """

    label: str
    said: str

    @property
    def in_words(self) -> str:
        """What people said, in a few words."""
        return IN_WORDS.get(self.said, f"most people saw {self.said}")


# Northcutt, Athalye & Mueller 2021, arXiv:2103.14749, table 1: 15 of MNIST's 10,000. From
# mturk/mnist_mturk.json of github.com/cleanlab/label-errors, commit 5457895: the images whose
# "given" label has fewer than three of the five votes.
LABEL_ERRORS: dict[str, dict[int, LabelError]] = {
    "mnist": {
        947: LabelError("8", "9"),
        1621: LabelError("0", "6"),
        1901: LabelError("9", "4"),
        2130: LabelError("4", DIVIDED),
        2462: LabelError("2", "0"),
        2597: LabelError("5", "3"),
        2654: LabelError("6", NEITHER),
        3520: LabelError("6", NEITHER),
        3558: LabelError("5", "0"),
        5937: LabelError("5", "3"),
        6651: LabelError("0", "6"),
        6783: LabelError("1", "6"),
        8527: LabelError("4", DIVIDED),
        9679: LabelError("6", NEITHER),
        9729: LabelError("5", "6"),
    }
}
