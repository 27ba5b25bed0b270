"""A trained network with all that it needs to answer, whatever it was loaded from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heptad.datasets import digit_pictures
from heptad.datasets.pictures import FITS, Decoding
from heptad.errors import ImageError, NoDigitError, NotFiniteError, RecipeError
from heptad.recipe import Recipe
from heptad.transform import Transform

# Few enough for VGG16, whose widest layer takes 13 MB an image.
PICTURES_AT_A_TIME = 16

AsDigit = Literal["auto", "yes", "no"]
Ranked = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Prediction:
    """What the network says of one picture: every class with its probability, likeliest first."""

    path: Path
    classes: Ranked


@dataclass(frozen=True, eq=False)
class Fed:
    """What the network is given of a picture.

    pixels: `uint8` [1 or C, S, S], not yet normalised.
    digit: the picture that MNIST would hold of it, `uint8` [1, 28, 28], and
    box: where it was found, as in `DigitPicture`; None if the picture was taken as it is.
    """

    pixels: NDArray[np.uint8]
    digit: NDArray[np.uint8] | None = None
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Classifier:
    """A trained network with all that it needs to answer.

    recipe: how it was trained, and how pictures are read.
    model: gives logits [N, K] for what `transform` gives, float [N, C, S, S].
    is_for_digits: it was trained on MNIST-like digits, and photos are to be shown as MNIST would.
    """

    recipe: Recipe
    model: Callable[[Tensor], Tensor]
    transform: Transform
    classes: tuple[str, ...]
    device: torch.device
    is_for_digits: bool

    def predict(
        self,
        paths: Iterable[Path],
        *,
        as_digit: AsDigit = "auto",
        on_bad_image: Callable[[Path, ImageError], object] | None = None,
    ) -> Iterator[Prediction]:
        """Classify pictures in their order, decoded and sized as in training, a few at a time.

        as_digit: see `feed`. on_bad_image: is told of a picture that cannot be used, which is then
        passed over; without it the error is raised. Raises ImageError for a file that is no
        picture or shows no digit, NotFiniteError for an answer that is none.
        """
        remaining = iter(paths)
        while some := list(islice(remaining, PICTURES_AT_A_TIME)):
            fed: dict[int, Fed] = {}
            for place, path in enumerate(some):
                try:
                    fed[place] = self.feed(path, as_digit=as_digit)
                except ImageError as error:
                    if on_bad_image is None:
                        raise
                    on_bad_image(path, error)
            if fed:
                named = [some[place] for place in fed]
                answers = self.answer([*fed.values()], names=[*map(str, named)])
                yield from map(Prediction, named, answers)

    def feed(self, path: Path, *, as_digit: AsDigit = "auto") -> Fed:
        """Decode a picture and make of it what the network is given.

        as_digit: whether the picture is a photo of a digit, to be shown as MNIST would show it;
        auto says yes for a network of MNIST-like digits, unless the picture has MNIST's size and a
        black ground already. Raises ImageError for a file that is no picture, or where a digit
        should be and none is.
        """
        pixels = self.read(path, channels=self._channels(as_digit))
        return self._fitted(pixels, as_digit, name=str(path))

    def feed_stream(self, file: BinaryIO, *, name: str, as_digit: AsDigit = "auto") -> Fed:
        """Do as `feed` with an open file, or bytes in memory; messages call it `name`."""
        channels = self._channels(as_digit)
        picture = Decoding.of(self.recipe, channels=channels).decode_stream(file, name=name)
        return self._fitted(picture.pixels, as_digit, name=name)

    def read(self, path: Path, *, channels: int) -> NDArray[np.uint8]:
        """Decode a picture as those of the training were, to gray (1) or RGB (3): [C, H, W].

        Raises ImageError.
        """
        return Decoding.of(self.recipe, channels=channels).decode(path).pixels

    def answer(self, fed: Sequence[Fed], *, names: Sequence[str]) -> list[Ranked]:
        """Give each picture's classes with their probabilities, likeliest first.

        names: what messages call the pictures. Raises NotFiniteError for an answer that is none.
        """
        pixels = torch.from_numpy(np.stack([each.pixels for each in fed])).to(self.device)
        inputs = self.transform.normalize(pixels).to(getattr(torch, self.recipe.number_type))
        with torch.inference_mode():
            answers = self.model(inputs)
        return [self._ranked(logits, name) for logits, name in zip(answers, names, strict=True)]

    def _ranked(self, logits: Tensor, name: str) -> Ranked:
        if not logits.isfinite().all():
            raise NotFiniteError(f"the network's answer to {name} is not finite.")
        values, order = logits.softmax(0).sort(descending=True)
        ranked = zip(order.tolist(), values.tolist(), strict=True)
        return tuple((self.classes[k], value) for k, value in ranked)

    def _shows_as_digit(self, as_digit: AsDigit) -> bool:
        choices = {"auto": self.is_for_digits, "yes": True, "no": False}
        if as_digit not in choices:
            raise RecipeError(f"as_digit is {as_digit}; allowed: {', '.join(choices)}.")
        return choices[as_digit]

    def _channels(self, as_digit: AsDigit) -> int:
        return 1 if self._shows_as_digit(as_digit) else self.transform.channels

    def _fitted(self, pixels: NDArray[np.uint8], as_digit: AsDigit, *, name: str) -> Fed:
        """Make of decoded pixels, [C, H, W], what the network is given."""
        size, fit = self.transform.image_size, FITS[self.transform.fit]
        is_as_it_is = not self._shows_as_digit(as_digit) or (
            as_digit == "auto" and digit_pictures.is_like_mnist(pixels)
        )
        if is_as_it_is:
            return Fed(fit(pixels, size, name=name))
        digit = digit_pictures.as_digit(pixels)
        if digit is None:
            raise NoDigitError(
                f"{name} shows no digit: nothing in it stands out clearly from its ground.",
                hint="with as_digit = no a picture is classified as it is",
            )
        return Fed(fit(digit.pixels, size, name=name), digit.pixels, digit.box)
