"""Text to be shown: names of files and classes come from strangers, and hold anything. No torch."""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Mapping


def printable(text: str) -> str:
    """Escape what a terminal would act on: control and bidirectional characters, broken Unicode."""
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def one_line(text: str) -> str:
    """Escape line breaks too, so that no name can pass for a line of ours."""
    return printable(text).replace("\n", "\\n")


def table_field(text: str) -> str:
    """Make text one field of a table that a spreadsheet will not take for a formula.

    https://owasp.org/www-community/attacks/CSV_Injection; tabs and line breaks are escaped anyway.
    """
    text = one_line(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


# Brackets and stars too: after the end of a row they would be its options.
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {character: f"{{{character}}}" for character in "[]*"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\symbol{34}"}
)


def latex_field(text: str) -> str:
    """Make text one field of a LaTeX table, in which no character does anything."""
    return one_line(text).translate(LATEX)


def table_with_picture(rows: Mapping[str, str], picture: bytes | None) -> str:
    """Write names and what they stand for as an HTML table, a PNG below it; all of it escaped."""
    cells = "".join(
        f'<tr><th style="text-align: left">{html.escape(one_line(name))}</th>'
        f'<td style="text-align: left">{html.escape(one_line(value))}</td></tr>'
        for name, value in rows.items()
    )
    table = f'<table style="font-variant-numeric: tabular-nums">{cells}</table>'
    if picture is None:
        return table
    address = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return f'{table}<img src="{address}" style="max-width: 44rem; width: 100%" alt="">'


def escape_what_cannot_be_encoded() -> None:
    """Have standard output escape characters that its encoding lacks, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
