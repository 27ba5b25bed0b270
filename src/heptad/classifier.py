"""A finished run, loaded to be used: its network, its transform and its classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from heptad.architectures import find_architecture
from heptad.architectures.states import read_state, refuse_differences
from heptad.datasets.pictures import read_picture, resize_picture
from heptad.errors import DamagedError, NotFiniteError, damage_in
from heptad.files import digest_of, user_path
from heptad.recipe import Recipe, RunOptions
from heptad.records import EvaluationReport, PassReport, Scores
from heptad.stages.data import Transform, opening_test, ordered_batches
from heptad.stages.device import pick_device
from heptad.stages.evaluation import Tally, score_batches
from heptad.stages.model import Model, build_model, state_digests
from heptad.stages.saving import TRAINED_PART, check_file, held_out_pictures, read_metrics


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
            pixels = read_picture(path, channels=self.transform.channels)
            resized = torch.from_numpy(resize_picture(pixels, self.transform.image_size).copy())
            inputs = self.transform.normalize(resized[None].to(self.device))
            with torch.inference_mode():
                logits = self.model(inputs.to(getattr(torch, self.recipe.precision)))[0]
            if not logits.isfinite().all():
                raise NotFiniteError(f"the network's answer to {path} is not finite.")
            values, order = logits.softmax(0).sort(descending=True)
            ranked = zip(order.tolist(), values.tolist(), strict=True)
            yield Prediction(path, tuple((self.classes[k], value) for k, value in ranked))

    def scoring(
        self, data: str | None = None, *, memory: int = RunOptions().memory
    ) -> Iterator[PassReport | EvaluationReport | Scores]:
        """Score the network on the test images of its own data, or of `data`; yield as it goes.

        A report after each batch, last the scores. On its own data the run's limit holds, and the
        pictures that were held out, so that its own figure comes out again; `data` is scored whole.
        Raises DataError if there are classes that the network was not trained on.
        """
        recipe = self.recipe if data is None else self.recipe.changed(data=data, limit=None)
        source = yield from opening_test(
            recipe,
            classes=self.classes,
            transform=self.transform,
            device=self.device,
            memory=memory,
            held_out=held_out_pictures(self.folder, self.metrics) if data is None else None,
        )
        tally = Tally()
        for answers in score_batches(self.model, ordered_batches(source, recipe)):
            tally.add(answers)
            yield EvaluationReport(
                len(self.metrics["epochs"]), tally.num_images, len(source.labels)
            )
        yield tally.scores(cross_entropy)

    def evaluate(self, data: str | None = None, *, memory: int = RunOptions().memory) -> Scores:
        """Score the network and give the scores; see `scoring`."""
        *_, scores = self.scoring(data, memory=memory)
        assert isinstance(scores, Scores)
        return scores


def load_run(folder: str | Path, *, device: str = "auto", threads: int | None = None) -> Classifier:
    """Load a finished run from its folder, ready to answer.

    Raises RunError if the folder is no finished run, DamagedError if its weights are not the ones
    that were saved, DeviceError for a device that is not here.
    """
    folder = user_path(folder)
    metrics = read_metrics(folder)
    with damage_in(folder / "metrics.json"):
        recipe = Recipe(**metrics["recipe"])
        classes = tuple(map(str, metrics["classes"]))
        start = dict(metrics["weights"])
        path, expected = _weights_in(folder, metrics)
        architecture = find_architecture(
            recipe.architecture, channels=recipe.channels, image_size=recipe.image_size
        )
        transform = _transform_in(metrics, recipe)
    check_file(path, expected)
    at = pick_device(device, threads=threads)
    state = read_state(path)
    if path.name.endswith(TRAINED_PART):
        state = _with_start(path, state, recipe, num_classes=len(classes))
    with torch.device("meta"):
        network = architecture.build(recipe.channels, len(classes))
    with damage_in(folder / "metrics.json"):
        refuse_differences(path, state, network.state_dict(), what=recipe.architecture)
    network.load_state_dict(state, strict=True, assign=True)
    network = network.to(at).to(memory_format=torch.channels_last)
    model = Model(network, trained=frozenset(), held=[], start=start)
    return Classifier(folder, recipe, model.eval(), transform, classes, at, metrics)


def _transform_in(metrics: dict[str, Any], recipe: Recipe) -> Transform:
    transform = Transform.from_document(metrics["transform"])
    numbers = (*transform.mean, *transform.deviation)
    fits = (
        (transform.image_size, transform.channels) == (recipe.image_size, recipe.channels)
        and len(transform.mean) == len(transform.deviation) in (1, recipe.channels)
        and all(map(isfinite, numbers))
        and min(transform.deviation) > 0
    )
    if not fits:
        raise ValueError("its transform does not fit its recipe")
    return transform


def _weights_in(folder: Path, metrics: dict[str, Any]) -> tuple[Path, str]:
    files = dict(metrics["files"])
    names = [name for name in files if name.endswith(".pth")]
    # Without the whole network its trained part stands for it.
    names = names or [name for name in files if name.endswith(TRAINED_PART)]
    if len(names) != 1 or Path(names[0]).name != names[0]:
        raise ValueError(f"it names {len(names)} files of weights")
    return folder / names[0], str(files[names[0]])


def _with_start(
    path: Path, part: dict[str, Tensor], recipe: Recipe, *, num_classes: int
) -> dict[str, Tensor]:
    """Put a trained part back onto the weights that it was trained from.

    Raises WeightsError or MissingError if those cannot be had, DamagedError if they are not the
    same as then.
    """
    model = build_model(recipe, num_classes=num_classes, device=torch.device("cpu"))
    with safetensors.safe_open(path, framework="pt") as file:
        expected = (file.metadata() or {}).get("rest")
    rest = {name: digest for name, digest in state_digests(model).items() if name not in part}
    if digest_of(rest) != expected:
        raise DamagedError(
            f"{path} was trained on other start weights than {recipe.weights} gives now.",
            hint="put the weights back that the run began with: its metrics.json has their SHA-256",
        )
    return {**model.network.state_dict(), **part}
