"""The model card of a run: facts of it alone, as Markdown that any class name leaves in shape.

The front matter is what model hubs read; whatever the run does not know is left out.
"""

from __future__ import annotations

import json
import re
from typing import Any

from heptad.reports import words
from heptad.reports.figures import RunFigures
from heptad.reports.verdict import judge
from heptad.text import one_line

# What Markdown, or HTML within it, would act on, and what it would make a link of.
ACTIVE = re.compile(r"([\\`*_{}\[\]<>#|~&$@!:]|(?<=www)\.)", re.IGNORECASE)
MOST_CLASSES = 200
FITTED = {"resize": "resized to", "pad": "padded with black to"}


def as_markdown(text: str) -> str:
    """Escape text so that Markdown shows it as it is, on one line."""
    return ACTIVE.sub(lambda match: f"&#{ord(match[1])};", one_line(text))


def as_code(text: str) -> str:
    """Write text as code, in more backticks than any within it."""
    text = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def model_card(figures: RunFigures) -> str:
    """Give the card of a run."""
    run = figures.run
    recipe = run.recipe
    parts = [
        _front_matter(figures),
        f"# {as_markdown(f'{recipe.architecture} on {recipe.data}')}",
        as_markdown(f"{words.training_words(run)} {words.result_words(run)} {judge(run).sentence}"),
        "## Use\n\n" + _use(figures),
        "## Data\n\n" + _data(figures),
        "## Results\n\n" + _results(figures),
        "## What was not done\n\n"
        + "\n".join(f"- {as_markdown(line)}" for line in words.not_done(run)),
        f"## To repeat it\n\n{as_code(' '.join(words.command_words(run)))}",
        "## Recipe\n\n"
        + _table(
            ("setting", "value"),
            [
                (as_code(name), as_markdown("none" if value is None else str(value)))
                for name, value in recipe.model_dump().items()
            ],
        ),
        "## Files\n\n"
        + _table(
            ("file", "SHA-256"),
            [(as_code(name), as_code(value)) for name, value in run.metrics["files"].items()],
        ),
        f"Digest of the results: {as_code(run.metrics['digest'])}",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(figures: RunFigures) -> str:
    run = figures.run
    scores, data = run.scores, one_line(run.recipe.data)
    measured = [
        ("accuracy", "Test accuracy", scores.accuracy),
        ("f1", "Macro F1", figures.macro.f1),
    ]
    document: dict[str, Any] = {
        "library_name": "heptad",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "heptad", run.recipe.architecture],
        "metrics": [kind for kind, _, _ in measured],
        "model-index": [
            {
                "name": run.recipe.name,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": data, "type": data, "split": "test"},
                        "metrics": [
                            {"type": kind, "name": name, "value": value}
                            for kind, name, value in measured
                        ],
                    }
                ],
            }
        ],
    }
    # JSON is YAML, and no name can leave its quotes.
    lines = [f"{key}: {json.dumps(value)}" for key, value in document.items()]
    return "\n".join(["---", *lines, "---"])


def _use(figures: RunFigures) -> str:
    recipe, names = figures.run.recipe, figures.names
    shown = ", ".join(as_markdown(name) for name in names[:MOST_CLASSES])
    more = f" and {len(names) - MOST_CLASSES:,} more" if len(names) > MOST_CLASSES else ""
    return (
        f"It tells {len(names)} classes apart, {shown}{more}, in images of"
        f" {recipe.image_size} by {recipe.image_size} pixels and {recipe.channels}"
        f" channel{'s' if recipe.channels > 1 else ''}, like those it was trained on. It was tested"
        " on nothing else. Whatever an image shows, it answers one of these classes."
    )


def _data(figures: RunFigures) -> str:
    run = figures.run
    transform = run.metrics["transform"]
    counts = f"{sum(run.metrics['execution']['rank_images']):,} training"
    if run.metrics["validation_images"]:
        counts += f", {run.metrics['validation_images']:,} validation"
    return (
        f"{as_code(run.recipe.data)}: {counts} and {run.scores.num_images:,} test images,"
        f" {FITTED[run.recipe.fit]} {transform['image_size']} pixels and normalised by mean"
        f" {_numbers(transform['mean'])} and deviation {_numbers(transform['deviation'])}."
    )


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _results(figures: RunFigures) -> str:
    scores, macro = figures.run.scores, figures.macro
    low, high = scores.interval
    rows = [
        ("accuracy", f"{scores.accuracy:.4f}, 95 % Wilson interval {low:.4f} to {high:.4f}"),
        ("right", f"{scores.num_correct:,} of {scores.num_images:,} test images"),
        ("loss", f"{scores.loss:.4f} nats an image"),
        ("macro precision", f"{macro.precision:.4f}"),
        ("macro recall", f"{macro.recall:.4f}"),
        ("macro F1", f"{macro.f1:.4f}"),
        ("calibration error (ECE, 15 bins)", f"{figures.calibration.error:.4f}"),
    ]
    return _table(("measure", "value"), rows)


def _table(titles: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [titles, ("---", "---"), *rows]
    return "\n".join(f"| {left} | {right} |" for left, right in lines)
