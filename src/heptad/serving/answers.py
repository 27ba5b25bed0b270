"""What the page shows of one picture: the answer, what the network was fed, its feature maps."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from heptad.architectures import ARCHITECTURES
from heptad.classifier import AsDigit, Classifier
from heptad.stages.model import Model
from heptad.text import one_line

# Of more classes, only so many of the likeliest are shown.
MOST_CLASSES, NUM_LIKELIEST = 12, 10
# What the network sees is shown reduced to this side.
MOST_SIDE = 256
UPLOAD = "the picture"


def answer_to(
    classifier: Classifier, content: bytes | bytearray, as_digit: AsDigit
) -> dict[str, Any]:
    """Give what the page shows of a picture's bytes, as plain values for JSON.

    Raises ImageError for bytes that are no picture or show no digit, NotFiniteError.
    """
    fed = classifier.feed_stream(io.BytesIO(content), name=UPLOAD, as_digit=as_digit)
    with watching(classifier) as outputs:
        [ranked] = classifier.answer([fed], names=[UPLOAD])
    places = {name: place for place, name in enumerate(classifier.classes)}
    shown = ranked if len(ranked) <= MOST_CLASSES else ranked[:NUM_LIKELIEST]
    side = f"{fed.pixels.shape[-1]} × {fed.pixels.shape[-1]}"
    return {
        "classes": [
            {"place": places[name], "name": one_line(name), "probability": value}
            for name, value in shown
        ],
        "seen": raster(_reduced(fed.pixels if fed.digit is None else fed.digit)),
        "seen_as": f"{side} pixels"
        if fed.digit is None
        else f"28 × 28 pixels, as in MNIST; the network is given them at {side}",
        "maps": [
            {"name": name, "rasters": [raster(each[None]) for each in as_pixels(output)]}
            for name, output in outputs.items()
        ],
    }


@contextmanager
def watching(classifier: Classifier) -> Iterator[Mapping[str, Tensor]]:
    """Keep the outputs [C, H, W] of the layers that the architecture names, rectified, by name."""
    outputs: dict[str, Tensor] = {}
    model = classifier.model
    if not isinstance(model, Model):
        yield outputs
        return

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            outputs[name] = output[0].relu()

        return hook

    maps = ARCHITECTURES[classifier.recipe.architecture].maps
    handles = [
        model.network.get_submodule(layer).register_forward_hook(keep(name))
        for layer, name in maps.items()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def as_pixels(output: Tensor) -> NDArray[np.uint8]:
    """Scale a layer's maps [C, H, W], none below 0, to `uint8`: their largest value is white."""
    scale = 255 / output.max() if output.any() else 0
    pixels: NDArray[np.uint8] = (output * scale).round().to(torch.uint8).cpu().numpy()
    return pixels


def raster(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """Give a picture `uint8` [C, H, W] as plain values: its rows of pixels in base 64."""
    channels, height, width = pixels.shape
    content = base64.b64encode(np.ascontiguousarray(pixels.transpose(1, 2, 0)).tobytes()).decode()
    return {"width": width, "height": height, "channels": channels, "pixels": content}


def _reduced(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if max(pixels.shape) <= MOST_SIDE:
        return pixels
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    image.thumbnail((MOST_SIDE, MOST_SIDE))
    return np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
