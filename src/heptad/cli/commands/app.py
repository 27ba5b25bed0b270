"""The app that all commands belong to, their groups on its page, and what they share."""

# Each command imports what it needs when it runs: PyTorch takes seconds, and help must not wait.

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import App, Group, Parameter

import heptad
from heptad.cli.flags import given
from heptad.recipe import Recipe, RunOptions

if TYPE_CHECKING:
    from heptad.classifier import Classifier

# Settings of a recipe that say how pictures are read, wherever they are.
READING = ("max_pixels", "float_range")

OUTPUT = Group("Output", sort_key=4)
# The commands in the order of use.
TRAIN = Group("Train", sort_key=1)
LOOK = Group("Look at what came of it", sort_key=2)
USE = Group("Use it", sort_key=3)
DATA = Group("Data and weights", sort_key=4)
CHECK = Group("When in doubt", sort_key=5)
FLAGS = Group("Flags", sort_key=6)
EXAMPLES = """\
Examples:

  heptad train lenet5
      MNIST, ten epochs, a minute
  heptad train lenet5 --epochs 3
      every field of a recipe is a flag
  heptad predict runs/lenet5-1 7.jpg
      what a photo shows
  heptad serve runs/lenet5-1
      draw a digit, see the answer
  heptad report runs/lenet5-1
      a page on the run, for any browser
  heptad train resnet50 --data photos
      a folder of your own, by classes

A run is a folder: runs/NAME-NUMBER,
unless --out names another. More on each
command: heptad COMMAND --help
"""
Json = Annotated[
    bool,
    Parameter(
        name="--json",
        negative="",
        group=OUTPUT,
        show_default=False,
        help="Print one JSON document on stdout and nothing else.",
    ),
]
NoReport = Annotated[
    bool,
    Parameter(
        name="--no-report",
        negative="",
        group=OUTPUT,
        show_default=False,
        help="Leave out report.html and MODEL_CARD.md; `heptad report` writes them later.",
    ),
]

app = App(
    name="heptad",
    help="Train LeNet-5, VGG16 and ResNet50 by one seven-stage cycle: device, data, model,"
    " objective, training, evaluation, saving.",
    help_epilogue=EXAMPLES,
    help_format="plaintext",
    version=heptad.__version__,
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    help_on_error=False,
    suppress_keyboard_interrupt=False,
)
for flag in ("--help", "--version"):
    app[flag].group = (FLAGS,)


def print_json(document: Any) -> None:
    """Print what `--json` asks for."""
    # In ASCII: what a terminal would act on, and what is no Unicode, is escaped.
    print(json.dumps(document, indent=2))


Loaded = TypeVar("Loaded", bound="Classifier")


def load_with(load: Callable[..., Loaded], run: str, flags: dict[str, str | None]) -> Loaded:
    """Load a classifier, to read pictures as in its training unless flags say otherwise."""
    options = RunOptions(**given(flags, RunOptions))
    classifier = load(run, device=options.device, threads=options.threads)
    return replace(classifier, recipe=classifier.recipe.changed(**given(flags, Recipe)))
