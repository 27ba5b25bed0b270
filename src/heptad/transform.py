"""From stored pixels to what a network sees: brought to size, scaled, normalised.

Resized to the sizes of the recipes the images of MNIST are Pillow's, and so those of
`torchvision.transforms`, to the bit; elsewhere some pixels differ by one or two of 255.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from heptad.architectures import find_architecture
from heptad.architectures.pretrained import WeightsFile
from heptad.datasets.dataset import Dataset, read_part
from heptad.datasets.picture_set import PictureSet
from heptad.datasets.pictures import margins
from heptad.errors import RecipeError
from heptad.recipe import Recipe

# Images whose pixels are counted at a time, eight bytes for each value.
COUNTED_AT_A_TIME = 1000

Numbers = tuple[float, ...]


def resize(images: Tensor, size: int) -> Tensor:
    """Resize `uint8` [N, C, H, W] to [N, C, S, S], bilinear with antialiasing.

    `interpolate` on `uint8` gives Pillow's pixels on every processor; torchvision's own resize of
    tensors does so with AVX2 only (torch 2.14.1, torchvision 0.29.1, 2026-11).
    """
    return interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def pad_to_size(images: Tensor, size: int) -> Tensor:
    """Put `uint8` [N, C, H, W] amid black, [N, C, S, S]; raises RecipeError if they are larger."""
    around = margins(images.shape, size)
    if min(around) < 0:
        height, width = images.shape[-2:]
        raise RecipeError(
            f"fit is pad and image_size {size} px, but the images have {width} x {height}; allowed:"
            f" an image_size of at least {max(width, height)}, or fit = resize."
        )
    return pad(images, around)


FITS: dict[str, Callable[[Tensor, int], Tensor]] = {"resize": resize, "pad": pad_to_size}


@dataclass(frozen=True)
class Transform:
    """From stored pixels to what the network sees.

    mean, deviation: one number, or one for each channel, of pixels scaled to 0..1. fit: one of
    `FITS`, how images come to their size.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    fit: str = "resize"

    def as_document(self) -> dict[str, Any]:
        """Give the transform as plain numbers and lists, for JSON.

        Without `fit` where images are resized, as all were before there was a choice: documents of
        then, and the names of features that were kept, stay as they are.
        """
        fit = {} if self.fit == "resize" else {"fit": self.fit}
        return {
            "image_size": self.image_size,
            "channels": self.channels,
            "mean": list(self.mean),
            "deviation": list(self.deviation),
            **fit,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Make the transform that `as_document` wrote down."""
        return cls(
            image_size=int(document["image_size"]),
            channels=int(document["channels"]),
            mean=tuple(map(float, document["mean"])),
            deviation=tuple(map(float, document["deviation"])),
            fit=document.get("fit", "resize"),
        )

    def to_size(self, images: Tensor) -> Tensor:
        """Bring `uint8` [N, C, H, W] to [N, C, S, S], as `fit` says; raises RecipeError."""
        if images.shape[-2:] == (self.image_size, self.image_size):
            return images
        return FITS[self.fit](images, self.image_size)

    def black(self) -> Tensor:
        """Give what black is after `normalize`: one value, or one a channel."""
        return -torch.tensor(self.mean) / torch.tensor(self.deviation)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn `uint8` [N, 1 or C, S, S] into float32 [N, C, S, S]: ToTensor and Normalize."""
        pixels = images.to(torch.float32).div_(255)
        mean, deviation = (
            torch.tensor(values, dtype=torch.float32, device=images.device).view(-1, 1, 1)
            for values in (self.mean, self.deviation)
        )
        # One number for all channels is applied before gray is repeated, with a third of the work.
        pixels = (
            pixels.sub_(mean).div_(deviation)
            if len(self.mean) == 1
            else pixels.sub(mean).div_(deviation)
        )
        return pixels.expand(-1, self.channels, -1, -1)


def check_transform(recipe: Recipe) -> None:
    """Raise RecipeError if the recipe normalises by weights that have no preset."""
    if recipe.normalize == "weights":
        _of_weights(recipe)


def make_transform(recipe: Recipe, dataset: Dataset | PictureSet) -> Transform:
    """Give the recipe's transform, with mean and deviation from where the recipe says.

    Raises RecipeError for `normalize = "weights"` without weights that have a preset.
    """
    choices: dict[str, Callable[[], tuple[Numbers, Numbers]]] = {
        "recipe": lambda: ((recipe.mean,), (recipe.deviation,)),
        "data": lambda: _of_data(recipe, dataset),
        "weights": lambda: _of_weights(recipe),
    }
    mean, deviation = choices[recipe.normalize]()
    return Transform(recipe.image_size, recipe.channels, mean, deviation, recipe.fit)


def _of_data(recipe: Recipe, dataset: Dataset | PictureSet) -> tuple[Numbers, Numbers]:
    """Measure the training pixels, all channels together, of pictures as they are resized."""
    counts = np.zeros(256, np.int64)
    # Counts of the 256 values, so that the sums are exact.
    if isinstance(dataset, PictureSet):
        places = torch.from_numpy(dataset.parts["train"])
        for few in torch.split(places, COUNTED_AT_A_TIME):
            counts += np.bincount(dataset.rows.take(few).reshape(-1), minlength=256)
    elif dataset.mean is not None and dataset.deviation is not None:
        return (dataset.mean,), (dataset.deviation,)
    else:
        images, _ = read_part(dataset, "train", channels=recipe.channels)
        # A part at a time: eight bytes are taken for each value.
        for start in range(0, len(images), COUNTED_AT_A_TIME):
            some = images[start : start + COUNTED_AT_A_TIME]
            counts += np.bincount(some.reshape(-1), minlength=256)
    values = np.arange(256) / 255
    mean = float((counts * values).sum() / counts.sum())
    deviation = float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
    if deviation == 0:
        raise RecipeError("normalize is data, but all training pixels are equal.")
    return (mean,), (deviation,)


def _of_weights(recipe: Recipe) -> tuple[Numbers, Numbers]:
    architecture = find_architecture(recipe)
    names = list(architecture.weights)
    name = names[0] if recipe.weights == "default" and names else recipe.weights
    preset: WeightsFile | None = architecture.weights.get(name)
    if preset is None:
        raise RecipeError(
            f"normalize is weights, but weights = {recipe.weights} has no preset;"
            f" {recipe.architecture} has {', '.join(names) if names else 'no weights with one'}."
        )
    return preset.mean, preset.deviation
