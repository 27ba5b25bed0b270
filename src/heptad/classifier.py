"""A finished run, loaded to be used: its network, its transform and its classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from torch import Tensor

from heptad.architectures import find_architecture
from heptad.architectures.states import read_state, refuse_differences
from heptad.datasets import digit_pictures
from heptad.datasets.catalog import DIGITS
from heptad.datasets.pictures import Decoding, resize_picture
from heptad.errors import DamagedError, ImageError, NotFiniteError, RecipeError, damage_in
from heptad.files import digest_of, user_path
from heptad.recipe import Recipe, RunOptions
from heptad.records import EvaluationReport, PassReport, Scores
from heptad.stages.data import Transform, opening_test, ordered_batches
from heptad.stages.device import pick_device
from heptad.stages.evaluation import Tally, score_batches
from heptad.stages.model import Model, build_model, state_digests
from heptad.stages.saving import (
    PICTURES,
    TRAINED_PART,
    check_file,
    read_metrics,
    tested_pictures,
)

# Few enough for VGG16, whose widest layer takes 13 MB an image.
PICTURES_AT_A_TIME = 16

AsDigit = Literal["auto", "yes", "no"]


@dataclass(frozen=True)
class Prediction:
    """What the network says of one picture: every class with its probability, likeliest first."""

    path: Path
    classes: tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class Fed:
    """What the network is given of a picture.

    pixels: `uint8` [1 or C, S, S], not yet normalised.
    box: where the digit was found, as in `DigitPicture`; None if the picture was taken as it is.
    """

    pixels: NDArray[np.uint8]
    box: tuple[int, int, int, int] | None


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

    def predict(
        self,
        paths: Iterable[Path],
        *,
        as_digit: AsDigit = "auto",
        on_bad_image: Callable[[Path, ImageError], object] | None = None,
    ) -> Iterator[Prediction]:
        """Classify pictures in their order, decoded and resized as in training, a few at a time.

        as_digit: see `feed`. on_bad_image: is told of a picture that cannot be used, which is then
        passed over; without it the error is raised. Raises ImageError for a file that is no
        picture or shows no digit, NotFiniteError for an answer that is none.
        """
        remaining = iter(paths)
        while some := list(islice(remaining, PICTURES_AT_A_TIME)):
            fed: dict[int, NDArray[np.uint8]] = {}
            for place, path in enumerate(some):
                try:
                    fed[place] = self.feed(path, as_digit=as_digit).pixels
                except ImageError as error:
                    if on_bad_image is None:
                        raise
                    on_bad_image(path, error)
            if fed:
                yield from self._answer([some[place] for place in fed], np.stack([*fed.values()]))

    def feed(self, path: Path, *, as_digit: AsDigit = "auto") -> Fed:
        """Decode a picture and make of it what the network is given.

        as_digit: whether the picture is a photo of a digit, to be shown as MNIST would show it;
        auto says yes for a network of MNIST-like digits, unless the picture has MNIST's size and a
        black ground already. Raises ImageError for a file that is no picture, or where a digit
        should be and none is.
        """
        size = self.transform.image_size
        if not self._is_for_digits(as_digit):
            pixels = self.read(path, channels=self.transform.channels)
            return Fed(resize_picture(pixels, size), None)
        pixels = self.read(path, channels=1)
        if as_digit == "auto" and digit_pictures.is_like_mnist(pixels):
            return Fed(resize_picture(pixels, size), None)
        digit = digit_pictures.as_digit(pixels)
        if digit is None:
            raise ImageError(
                f"{path} shows no digit: nothing in it stands out clearly from its ground.",
                hint="with as_digit = no a picture is classified as it is",
            )
        return Fed(resize_picture(digit.pixels, size), digit.box)

    def read(self, path: Path, *, channels: int) -> NDArray[np.uint8]:
        """Decode a picture as those of the training were, to gray (1) or RGB (3): [C, H, W].

        Raises ImageError.
        """
        return Decoding.of(self.recipe, channels=channels).decode(path).pixels

    def _is_for_digits(self, as_digit: AsDigit) -> bool:
        # Class folders may hold digits of any look; the network knows them as they are.
        is_of_digits = self.classes == DIGITS and PICTURES not in self.metrics["files"]
        choices = {"auto": is_of_digits, "yes": True, "no": False}
        if as_digit not in choices:
            raise RecipeError(f"as_digit is {as_digit}; allowed: {', '.join(choices)}.")
        return choices[as_digit]

    def _answer(self, paths: Sequence[Path], pixels: NDArray[np.uint8]) -> Iterator[Prediction]:
        inputs = self.transform.normalize(torch.from_numpy(pixels).to(self.device))
        with torch.inference_mode():
            answers = self.model(inputs.to(getattr(torch, self.recipe.precision)))
        for path, logits in zip(paths, answers, strict=True):
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
            held_out=self.held_out() if data is None else None,
            # Runs of earlier versions have none.
            test_set=self.metrics.get("test_set") if data is None else None,
        )
        tally = Tally()
        for answers in score_batches(self.model, ordered_batches(source, recipe)):
            tally.add(answers)
            yield EvaluationReport(
                len(self.metrics["epochs"]), tally.num_images, len(source.labels)
            )
        yield tally.scores()

    def held_out(self) -> Counter[str] | None:
        """Count the SHA-256s of the pictures that the run was tested on; None if of no pictures."""
        tested = tested_pictures(self.folder, self.metrics)
        return None if tested is None else Counter(tested.values())

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
        path, expected = find_weights(folder, metrics)
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
