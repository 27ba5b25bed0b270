"""What an exported file carries beside the network: transform, classes, recipe, scores.

As text by name, which both formats have room for; each text is JSON. No folder of the machine it
was trained on is named in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptad.datasets.catalog import CATALOG
from heptad.errors import DamagedError, ModelError, damage_in
from heptad.loaded_run import LoadedRun, read_description
from heptad.recipe import Recipe
from heptad.stages.saving import package_versions
from heptad.text import one_line
from heptad.transform import Transform

# Of the document; a file of another one is not read.
SCHEMA = 1
# Names the SHA-256 of what each format holds beside the texts.
DIGEST = "sha256"
# Of a text that is not as it should be, in a message.
MOST_SHOWN = 60
SCORES = ("test_accuracy", "test_accuracy_interval", "test_images", "test_loss")
NOT_OURS = "a file that `heptad export` wrote carries its classes and its transform"


@dataclass(frozen=True)
class Description:
    """What has to be known of a network to use it; see `Classifier`."""

    recipe: Recipe
    transform: Transform
    classes: tuple[str, ...]
    is_for_digits: bool


def describe(run: LoadedRun) -> dict[str, str]:
    """Give what travels with a run's network: JSON by name."""
    document = {
        "schema": SCHEMA,
        "heptad": package_versions()["heptad"],
        "recipe": _without_folders(run.recipe).model_dump(),
        "classes": list(run.classes),
        "transform": run.transform.as_document(),
        "is_for_digits": run.is_for_digits,
        "weights": run.metrics["weights"],
        "digest": run.metrics["digest"],
        **{name: run.metrics[name] for name in SCORES},
    }
    return {name: json.dumps(value) for name, value in document.items()}


def _without_folders(recipe: Recipe) -> Recipe:
    """Keep of paths the last name alone: the others are nobody's business."""
    data = recipe.data if recipe.data in CATALOG else Path(recipe.data).name or "data"
    return recipe.changed(data=data, weights=Path(recipe.weights).name or "weights")


def check_digest(path: Path, texts: Mapping[str, str], found: str) -> None:
    """Raise DamagedError unless a file holds what it held when it was written."""
    if texts.get(DIGEST) != json.dumps(found):
        raise DamagedError(
            f"{path} is damaged: what it holds is not what was written.",
            hint="`heptad export` writes it anew",
        )


def read_described(path: Path, texts: Mapping[str, str]) -> Description:
    """Read what `describe` wrote into the file at `path`.

    Raises ModelError if nothing is there, DamagedError if it is not as it was written.
    """
    if "schema" not in texts:
        raise ModelError(f"{path} was not exported by Heptad.", hint=NOT_OURS)
    if texts["schema"] != json.dumps(SCHEMA):
        raise DamagedError(
            f"{path} has schema {one_line(texts['schema'])[:MOST_SHOWN]}; this version of Heptad"
            f" reads {SCHEMA}.",
            hint="a newer version may have written it",
        )
    with damage_in(path):
        document: dict[str, Any] = {
            name: json.loads(texts[name])
            for name in ("recipe", "classes", "transform", "is_for_digits")
        }
        return Description(*read_description(document), document["is_for_digits"] is True)
