"""Arithmetic and layout of the tables: medians with their spread, ratios round by round, Markdown.

Pure functions of numbers; nothing here measures anything.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path


def with_spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    """Give the median of values and, where there are several, from where to where they went."""
    median = f"{statistics.median(values):.{digits}f}{unit}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Divide what was measured in the same round.

    What slows a whole round down falls out of its ratio.
    """
    return [one / other for one, other in zip(theirs, ours, strict=True)]


def fastest(seconds: dict[str, Sequence[float]]) -> str:
    """Name the one with the smallest median."""
    return min(seconds, key=lambda name: statistics.median(seconds[name]))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table that also reads as text: columns padded, numbers to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    first, *others = widths
    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)])
    return "\n".join([line(header), f"|{rule}|", *map(line, rows)])


def put_between(page: Path, marker: str, text: str) -> None:
    """Put text between `<!-- marker -->` and `<!-- end of marker -->` of a page."""
    start, end = f"<!-- {marker} -->\n", f"<!-- end of {marker} -->"
    pattern = re.compile(f"(?<={re.escape(start)}).*?(?={re.escape(end)})", re.DOTALL)
    content, count = pattern.subn(lambda _: f"\n{text}\n\n", page.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit(f"{page.name} has no section {marker!r} to write into.")
    page.write_text(content, encoding="utf-8")
