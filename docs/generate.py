"""Write the parts of the docs that the program knows best, or check that they are up to date.

python docs/generate.py            writes docs/cli.md, recipes.md, errors.md and README.md's table
python docs/generate.py --check    changes nothing; exits 1, with the names, if one is outdated
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))
# Help is laid out to the width of the terminal; here it has one width, and no colour.
os.environ |= {"COLUMNS": "88", "TERM": "dumb", "NO_COLOR": "1"}

from error_rows import ROWS  # noqa: E402
from heptad.architectures import ARCHITECTURES  # noqa: E402
from heptad.cli import main as heptad_main  # noqa: E402
from heptad.recipe import Recipe, RunOptions, Settings  # noqa: E402
from heptad.recipes import RECIPES  # noqa: E402

COMMANDS = (
    "",
    "train",
    "tune",
    "evaluate",
    "compare",
    "report",
    "predict",
    "serve",
    "export",
    "resume",
    "verify",
    "scan",
    "recipes",
    "fetch",
    "doctor",
    "cache list",
    "cache clear",
)
MADE_BY = "<!-- written by docs/generate.py; do not edit -->\n"
EXIT_CODES = """\
| code | meaning |
|---|---|
| 0 | done |
| 1 | a bug of Heptad, the only case with a traceback |
| 2 | what you named cannot be used: missing, of the wrong kind, out of range, unreadable |
| 3 | a result could not be saved |
| 4 | a loss or an answer is not finite |
| 5 | something that Heptad wrote is damaged |
| 6 | something needed is not here and could not be had |
| 129, 130, 143 | stopped by SIGHUP, by Ctrl-C (SIGINT), by SIGTERM |
"""


def cli_page() -> str:
    """Give docs/cli.md: the help of every command, as it is printed."""
    parts = [MADE_BY, "# The command line\n"]
    for command in COMMANDS:
        words = command.split()
        printed = io.StringIO()
        with redirect_stdout(printed):
            heptad_main([*words, "--help"])
        text = "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())
        parts.append(f"## `{' '.join(['heptad', *words])}`\n\n```text\n{text}\n```\n")
    parts.append(f"## Exit codes\n\n{EXIT_CODES}")
    return "\n".join(parts)


def errors_page() -> str:
    """Give docs/errors.md: every row of tests/error_rows.py."""
    lines = [
        MADE_BY,
        "# What goes wrong, and what is said\n",
        "Every row is a test (`tests/test_errors.py`): the command, its exit code, the first line"
        ' of its message. With `--json` the same comes as `{"error": {"code", "message",'
        ' "hint"}}`.\n',
        EXIT_CODES,
        "| what is wrong | command | code | message |",
        "|---|---|---|---|",
    ]
    for row in ROWS:
        message = row.message.replace("|", "\\|")
        lines.append(f"| {row.wrong} | `heptad {row.command}` | {row.code} | {message} |")
    return "\n".join(lines) + "\n"


def recipe_table() -> str:
    """Give the README's table of recipes."""
    lines = [
        "| recipe | image | weights at the start | trained | epochs | test accuracy to expect |",
        "|---|---|---|---|---|---|",
    ]
    for name, shipped in RECIPES.items():
        recipe = shipped.recipe
        image = f"{recipe.image_size}×{recipe.image_size}, {recipe.channels} ch."
        start = "random" if recipe.weights == "none" else "ImageNet"
        lines.append(
            f"| `{name}` | {image} | {start} | {recipe.trainable} | {recipe.epochs} |"
            f" {shipped.expected} |"
        )
    return "\n".join(lines) + "\n"


def recipes_page() -> str:
    """Give docs/recipes.md: every setting of a recipe and of a run, and what recipes set."""
    lines = [
        MADE_BY,
        "# Recipes\n",
        "A recipe is data: equal recipes give equal weights on the same machine. `heptad recipes"
        " NAME` prints one in full as TOML; every setting is a flag of `heptad train` (`batch_size`"
        " is `--batch-size`), a line of a `.toml` or `.json` file, and a keyword of"
        " `heptad.load_recipe`.\n",
        *_shipped(),
        "## What changes the result\n",
        *_settings(Recipe, {name: RECIPES[name].recipe for name in ARCHITECTURES}),
        "\n## How a run is carried out\n",
        "Flags of `heptad train`, and keywords of `heptad.RunOptions`; none of them changes the"
        " result, but for the last bits.\n",
        *_settings(RunOptions, {"default": RunOptions()}),
    ]
    return "\n".join(lines) + "\n"


def _shipped() -> list[str]:
    """Tell of each recipe where it comes from, and where it differs from its network's own."""
    lines = ["## The shipped recipes\n"]
    for name, shipped in RECIPES.items():
        base = RECIPES[shipped.recipe.architecture].recipe.model_dump()
        values = shipped.recipe.model_dump(exclude={"name"})
        other = [
            f"`{key} = {_shown(value)}`" for key, value in values.items() if base[key] != value
        ]
        text = f"**`{name}`** {shipped.source}. Expected: {shipped.expected}."
        if other:
            text += f" Other than `{shipped.recipe.architecture}`: {', '.join(other)}."
        lines += [f"{text} `{shipped.command}`\n"]
    return lines


def _settings(settings: type[Settings], examples: dict[str, Settings]) -> list[str]:
    lines = [
        " | ".join(["| setting", "what it is", "allowed", *examples]) + " |",
        "|---" * (3 + len(examples)) + "|",
    ]
    for name, field in settings.model_fields.items():
        allowed = "a switch" if settings.is_switch(name) else settings.allowed(name)
        values = (_shown(getattr(example, name)) for example in examples.values())
        cells = (f"`{name}`", str(field.description), allowed, *values)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value}"


def readme() -> str:
    """Give README.md with its table of recipes made anew."""
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    between = r"(<!-- recipes -->\n).*?(<!-- end of recipes -->)"
    return re.sub(between, lambda m: m[1] + recipe_table() + m[2], text, flags=re.DOTALL)


PAGES = {
    DOCS / "cli.md": cli_page,
    DOCS / "recipes.md": recipes_page,
    DOCS / "errors.md": errors_page,
    DOCS.parent / "README.md": readme,
}


def main() -> int:
    """Write the pages, or check them; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    only_check = parser.parse_args().check
    outdated = []
    for path, make in PAGES.items():
        text = make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        outdated.append(path.name)
        if not only_check:
            path.write_text(text, encoding="utf-8")
    if only_check and outdated:
        print(f"outdated: {', '.join(outdated)}; run `python docs/generate.py`", file=sys.stderr)
        return 1
    print(f"{'checked' if only_check else 'written'}: {', '.join(p.name for p in PAGES)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
