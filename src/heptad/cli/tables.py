"""Tables that can be read at any width: what does not fit stands in a further table below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

from heptad.text import one_line

# Between two columns.
GAP = 2
# The column that is repeated may take one part in so many of the width; longer names are folded.
LARGEST_PART = 3
LEAST_WIDTH = 6


@dataclass(frozen=True)
class Cells:
    """A column: its title, and a text for each row."""

    title: str
    texts: Sequence[str]

    @property
    def width(self) -> int:
        """Cells of a terminal that the widest text takes."""
        return max(cell_len(one_line(text)) for text in (self.title, *self.texts))


def show_table(console: Console, key: Cells, columns: Sequence[Cells]) -> None:
    """Print columns of numbers, each row named by `key`, in as many tables as they need."""
    key_width = min(key.width, max(LEAST_WIDTH, console.width // LARGEST_PART))
    for some in fitting(columns, console.width - key_width):
        table = Table(
            Column(key.title, max_width=key_width, overflow="fold"),
            *(right(column.title) for column in some),
            box=box.SIMPLE_HEAD,
            padding=(0, GAP - 1, 0, 0),
            show_edge=False,
            pad_edge=False,
        )
        for row in zip(key.texts, *(column.texts for column in some), strict=True):
            table.add_row(*map(one_line, row))
        console.print(table)
        console.print()


def right(title: str) -> Column:
    """Give a column of numbers."""
    return Column(title, justify="right", overflow="fold")


def fitting(columns: Sequence[Cells], width: int) -> list[list[Cells]]:
    """Part columns into groups, in their order, each as wide as fits; one at least in each."""
    groups: list[list[Cells]] = []
    left = 0
    for column in columns:
        needed = column.width + GAP
        if not groups or needed > left:
            groups.append([])
            left = width
        groups[-1].append(column)
        left -= needed
    return groups
