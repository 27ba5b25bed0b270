"""What the pages that Heptad writes and serves have in common: colours, how templates are filled.

No torch.
"""

from __future__ import annotations

from pathlib import Path

import jinja2

from heptad.text import one_line

# Variables of a style sheet; `--run-0` to `--run-5` are colours of Okabe & Ito, which people who
# see few colours can tell apart.
PALETTE = """\
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1b1f23; --soft: #5b646d; --line: #e2e4e0; --panel: #f4f5f2;
  --accent: #0b63a5; --accent-rgb: 11 99 165; --warm: #b0480a; --below: #8a8f94;
  --run-0: #0072b2; --run-1: #d55e00; --run-2: #009e73; --run-3: #cc79a7; --run-4: #8c6d00; --run-5: #3a9fd0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --ink: #e7e8e5; --soft: #9ba3ab; --line: #2c3237; --panel: #1c2024;
    --accent: #6cb4f0; --accent-rgb: 108 180 240; --warm: #f0985a; --below: #80878e;
    --run-0: #56b4e9; --run-1: #e69f00; --run-2: #2fc79a; --run-3: #e39ac4; --run-4: #f0e442; --run-5: #9fb8ff;
  }
}
"""


def templates_in(folder: Path) -> jinja2.Environment:
    """Give the templates of a folder, in which whatever is filled in is text on one line."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        # For all templates alike, whatever they are called.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Names of files and classes hold anything. A filter that joins texts would pass this by:
        # the templates use none.
        finalize=lambda value: one_line(value) if type(value) is str else value,
    )
