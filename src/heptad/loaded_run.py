"""A finished run, loaded to be used: its network, to answer and to be scored again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from heptad.architectures import find_architecture
from heptad.architectures.states import read_state, refuse_differences
from heptad.classifier import Classifier
from heptad.datasets.catalog import DIGITS
from heptad.errors import DamagedError, damage_in
from heptad.files import digest_of, user_path
from heptad.image_source import ImageSource
from heptad.recipe import Recipe, RunOptions
from heptad.records import EvaluationReport, PassReport, Scores
from heptad.run_folder import PICTURES
from heptad.stages.data import Noted, opening_test, ordered_batches
from heptad.stages.device import pick_device
from heptad.stages.evaluation import Tally, score_batches
from heptad.stages.model import Model, build_model, state_digests
from heptad.stages.objective import LOSSES
from heptad.stages.saving import TRAINED_PART, check_file, pictures_of, read_metrics
from heptad.transform import Transform


@dataclass(frozen=True)
class LoadedRun(Classifier):
    """A finished run's network, which knows what it was tested on.

    metrics: the document of the run's `metrics.json`.
    """

    model: Model
    folder: Path
    metrics: dict[str, Any]

    def scoring(
        self, data: str | None = None, *, memory: int = RunOptions().memory
    ) -> Iterator[PassReport | EvaluationReport | Scores]:
        """Score the network on the test images of its own data, or of `data`; yield as it goes.

        A report after each batch, last the scores. On its own data the run's limit holds, and the
        pictures that were held out, so that its own figure comes out again; `data` is scored whole,
        with a warning if pictures of it were trained on. Raises DataError if there are classes that
        the network was not trained on.
        """
        source = yield from self.opening(data, memory=memory)
        tally = Tally()
        for answers in score_batches(self.model, ordered_batches(source, self.recipe)):
            tally.add(answers)
            yield EvaluationReport(
                len(self.metrics["epochs"]), tally.num_images, len(source.labels)
            )
        yield tally.scores(LOSSES[self.recipe.loss])

    def opening(
        self, data: str | None = None, *, memory: int = RunOptions().memory
    ) -> Generator[PassReport, None, ImageSource]:
        """Open the test images of the run's own data, or of `data`, as `scoring` says."""
        noted = self.noted()
        source = yield from opening_test(
            self.recipe if data is None else self.recipe.changed(data=data, limit=None),
            classes=self.classes,
            transform=self.transform,
            device=self.device,
            memory=memory,
            # Training images among its own test images were said when it was trained.
            noted=replace(noted, trained=frozenset())
            if data is None
            else Noted(trained=noted.trained),
        )
        return source

    def noted(self) -> Noted:
        """Give what the run noted of its images; raises DamagedError."""
        # Runs of earlier versions have no such entry.
        test_set = self.metrics.get("test_set")
        parts = pictures_of(self.folder, self.metrics)
        if parts is None:
            return Noted(test_set=test_set)
        trained = frozenset(parts["train"].values())
        return Noted(Counter(parts["test"].values()), trained, test_set)

    def evaluate(self, data: str | None = None, *, memory: int = RunOptions().memory) -> Scores:
        """Score the network and give the scores; see `scoring`."""
        *_, scores = self.scoring(data, memory=memory)
        assert isinstance(scores, Scores)
        return scores


def load_run(folder: str | Path, *, device: str = "auto", threads: int | None = None) -> LoadedRun:
    """Load a finished run from its folder, ready to answer.

    Raises RunError if the folder is no finished run, DamagedError if its weights are not the ones
    that were saved, DeviceError for a device that is not here.
    """
    folder = user_path(folder)
    metrics = read_metrics(folder)
    with damage_in(folder / "metrics.json"):
        recipe, transform, classes = read_description(metrics)
        start = dict(metrics["weights"])
        path, expected = find_weights(folder, metrics)
    check_file(path, expected)
    at = pick_device(device, threads=threads)
    state = read_state(path)
    if path.name.endswith(TRAINED_PART):
        state = _with_start(path, state, recipe, num_classes=len(classes))
    with damage_in(folder / "metrics.json"):
        network = network_with(state, recipe, num_classes=len(classes), path=path)
    network = network.to(at).to(memory_format=torch.channels_last)
    model = Model(
        network,
        trained=frozenset(),
        held=[],
        start=start,
        is_mixed=recipe.precision == "bfloat16",
    )
    return LoadedRun(
        recipe=recipe,
        model=model.eval(),
        transform=transform,
        classes=classes,
        device=at,
        # Class folders may hold digits of any look; the network knows them as they are.
        is_for_digits=classes == DIGITS and PICTURES not in metrics["files"],
        folder=folder,
        metrics=metrics,
    )


def read_description(document: Mapping[str, Any]) -> tuple[Recipe, Transform, tuple[str, ...]]:
    """Read the recipe, the transform and the names of the classes of a run's document.

    A document that is damaged makes it raise what `damage_in` knows.
    """
    recipe = Recipe(**document["recipe"])
    transform = Transform.from_document(document["transform"])
    numbers = (*transform.mean, *transform.deviation)
    fits = (
        (transform.image_size, transform.channels, transform.fit)
        == (recipe.image_size, recipe.channels, recipe.fit)
        and len(transform.mean) == len(transform.deviation) in (1, recipe.channels)
        and all(map(isfinite, numbers))
        and min(transform.deviation) > 0
    )
    if not fits:
        raise ValueError("its transform does not fit its recipe")
    classes = document["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no list of names")
    if len(set(classes)) < max(1, len(classes)):
        raise ValueError("its classes are none, or a name is there twice")
    find_architecture(recipe, num_classes=len(classes))
    return recipe, transform, tuple(classes)


def network_with(
    state: dict[str, Tensor], recipe: Recipe, *, num_classes: int, path: Path
) -> nn.Module:
    """Build the recipe's network around the tensors that were read from `path`.

    Raises WeightsError if names or shapes differ from the network's, ValueError if types do.
    """
    architecture = find_architecture(recipe)
    with torch.device("meta"):
        network = architecture.build(recipe.channels, num_classes)
    refuse_differences(path, state, network.state_dict(), what=recipe.architecture)
    for name, value in network.state_dict().items():
        expected = getattr(torch, recipe.number_type) if value.is_floating_point() else value.dtype
        if state[name].dtype != expected:
            raise ValueError(f"{name} holds {state[name].dtype}, not {expected}")
    network.load_state_dict(state, strict=True, assign=True)
    return network


def find_weights(folder: Path, metrics: dict[str, Any]) -> tuple[Path, str]:
    """Give the file that holds a run's weights, whole or their trained part, and its SHA-256."""
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
