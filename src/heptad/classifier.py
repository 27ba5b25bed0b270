"""A finished run, loaded to be used: its network, its transform and its classes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from heptad.architectures import find_architecture
from heptad.architectures.states import read_state, refuse_differences
from heptad.datasets.dataset import find_dataset
from heptad.datasets.pictures import read_picture
from heptad.errors import DamagedError, DataError, HeptadError, NotFiniteError, RunError
from heptad.files import sha256_of
from heptad.recipe import Recipe, RunOptions
from heptad.records import Scores
from heptad.stages.data import Transform, open_source, ordered_batches
from heptad.stages.device import pick_device
from heptad.stages.evaluation import evaluate
from heptad.stages.model import Model

SCHEMA = 1


@dataclass(frozen=True)
class Prediction:
    """What the network says of one picture: every class with its probability, likeliest first."""

    path: Path
    classes: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Classifier:
    """A trained network with all that it needs to answer.

    metrics: the document of the run's `metrics.json`.
    """

    folder: Path
    recipe: Recipe
    model: Model
    transform: Transform
    classes: tuple[str, ...]
    device: torch.device
    metrics: dict[str, Any]

    def predict(self, paths: Iterable[Path]) -> Iterator[Prediction]:
        """Classify pictures one after another, decoded and resized as in training.

        Raises ImageError for a file that is no picture, NotFiniteError for an answer that is none.
        """
        for path in paths:
            pixels = torch.from_numpy(read_picture(path, channels=self.transform.channels).copy())
            inputs = self.transform.normalize(self.transform.resize(pixels[None]).to(self.device))
            with torch.inference_mode():
                logits = self.model(inputs.to(getattr(torch, self.recipe.precision)))[0]
            if not logits.isfinite().all():
                raise NotFiniteError(f"the network's answer to {path} is not finite.")
            values, order = logits.softmax(0).sort(descending=True)
            ranked = zip(order.tolist(), values.tolist(), strict=True)
            yield Prediction(path, tuple((self.classes[k], value) for k, value in ranked))

    def evaluate(self, data: str | None = None, *, memory: int = RunOptions().memory) -> Scores:
        """Score the network on the test images of its own data, or of `data`.

        The run's limit holds here too, so that its own figure comes out again. Raises DataError if
        the classes are not those that the network was trained on.
        """
        recipe = self.recipe.changed(data=data) if data else self.recipe
        dataset = find_dataset(recipe.data)
        if dataset.classes != self.classes:
            raise DataError(
                f"{recipe.data} has the classes {', '.join(dataset.classes)}, but the run was"
                f" trained on {', '.join(self.classes)}."
            )
        source = open_source(
            recipe, dataset, "test", transform=self.transform, device=self.device, memory=memory
        )
        return evaluate(self.model, ordered_batches(source, recipe), cross_entropy)


def load_run(folder: str | Path, *, device: str = "auto", threads: int | None = None) -> Classifier:
    """Load a finished run from its folder, ready to answer.

    Raises RunError if the folder is no finished run, DamagedError if its weights are not the ones
    that were saved, DeviceError for a device that is not here.
    """
    folder = Path(folder).expanduser()
    metrics = _read_metrics(folder)
    try:
        recipe = Recipe.made_from(metrics["recipe"])
        transform = Transform.from_document(metrics["transform"])
        classes = tuple(metrics["classes"])
        path, expected = _weights_of(folder, recipe, metrics)
    except (KeyError, TypeError, ValueError, AttributeError, HeptadError) as error:
        raise DamagedError(f"{folder / 'metrics.json'} is damaged: {error!r}.") from error
    found = sha256_of(path) if path.is_file() else "none, it is missing"
    if found != expected:
        raise DamagedError(
            f"{path} is not what was saved: its SHA-256 is {found}, not {expected}.",
            hint="train again, or put the saved file back",
        )
    at = pick_device(device, threads=threads)
    architecture = find_architecture(
        recipe.architecture, channels=recipe.channels, image_size=recipe.image_size
    )
    with torch.device("meta"):
        network = architecture.build(recipe.channels, len(classes))
    state = read_state(path)
    refuse_differences(path, state, network.state_dict(), what=recipe.architecture)
    network.load_state_dict(state, strict=True, assign=True)
    network = network.to(at).to(memory_format=torch.channels_last)
    model = Model(network, trained=frozenset(), held=[], start=metrics["weights"])
    return Classifier(folder, recipe, model.eval(), transform, classes, at, metrics)


def _weights_of(folder: Path, recipe: Recipe, metrics: dict[str, Any]) -> tuple[Path, str]:
    (name,) = (name for name in metrics["files"] if name.endswith(".pth"))
    if Path(name).name != name or not name.startswith(f"{recipe.architecture}_"):
        raise ValueError(f"{name!r} is no name of a weights file")
    return folder / name, str(metrics["files"][name])


def _read_metrics(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise RunError(f"there is no run folder {str(folder)!r}.")
    path = folder / "metrics.json"
    if not path.is_file():
        unfinished = (folder / "recipe.json").is_file()
        raise RunError(
            f"{folder} is {'a run that was not finished' if unfinished else 'no run'}:"
            " it has no metrics.json.",
            hint="name the folder that `heptad train` printed",
        )
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {error}.") from error
    if not isinstance(metrics, dict) or metrics.get("schema") != SCHEMA:
        found = metrics.get("schema") if isinstance(metrics, dict) else None
        raise DamagedError(
            f"{path} has schema {found!r}; this version of Heptad reads {SCHEMA}.",
            hint="a newer version may have written it",
        )
    return metrics
