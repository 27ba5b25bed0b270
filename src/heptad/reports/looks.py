"""What there is to look at in a run: its test images, what its answers rest on, its first filters.

All of it needs more than the run's figures, its network or its data, which may not be at hand. What
cannot be had is a sentence that says why.
"""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear
from torch.overrides import TorchFunctionMode

from heptad.datasets.catalog import CATALOG
from heptad.datasets.fetch import dataset_folder, is_intact
from heptad.errors import DamagedError, DataError, HeptadError, MissingError
from heptad.image_source import ImageSource
from heptad.loaded_run import LoadedRun, load_run
from heptad.records import PassReport, Run
from heptad.reports.charts import filter_drawing
from heptad.reports.figures import Answer, RunFigures
from heptad.run_folder import PICTURES
from heptad.stages.data import Noted, opening_test

logger = logging.getLogger("heptad")

# Larger pictures are shown reduced to this.
MOST_SIDE = 128
# A patch is a quarter of the side, as the smallest details of a digit are smaller, and its strokes
# not much longer.
PATCH_SHARE = 4
# Images, and places of the patch along each side: the first that costs few enough operations is
# taken, a few seconds of two processor cores; the last may cost ten (torch 2.14.1, 2026-11).
COVERINGS = ((6, 13), (6, 9), (4, 7), (2, 7), (1, 7), (1, 5), (1, 4))
MOST_FLOPS, MOST_FLOPS_AT_LAST = 1e11, 5e11
IMAGES_AT_A_TIME = 64
MOST_FILTERS = 16
# By how much an answer may differ from the one that was saved: other processors round otherwise.
NEAR = 0.02
# Where nothing is left of an answer, its image can still be seen.
HEAT, MOST_HEAT = (213, 94, 0), 0.85


@dataclass(frozen=True)
class Occluded:
    """An image, and a picture of how its answer's probability falls where it is covered."""

    answer: Answer
    map: str


@dataclass(frozen=True)
class Looks:
    """Pictures as data addresses, by the images' places. missing: why some are not there."""

    pictures: dict[int, str] = field(default_factory=dict)
    paths: dict[int, str] = field(default_factory=dict)
    is_small: bool = True
    occluded: tuple[Occluded, ...] = ()
    filters: tuple[Markup, ...] = ()
    missing: tuple[str, ...] = ()


def look(figures: RunFigures, *, device: str = "auto", threads: int | None = None) -> Looks:
    """Look at a run's worst test images, at what its answers rest on, and at its first filters.

    Raises DamagedError if the run's weights are not the ones that were saved.
    """
    run = figures.run
    missing: list[str] = []
    classifier = source = None
    with _noting(missing, "The network could not be loaded"):
        classifier = load_run(run.folder, device=device, threads=threads)
    if classifier is None:
        return Looks(missing=tuple(missing))
    filters = first_filters(classifier.model.network) if run.recipe.trainable == "all" else ()
    with _noting(missing, "The test images are not shown"), _silence():
        source = _test_images(run, classifier)
        _refuse_others(figures, classifier, source)
    if source is None or missing:
        return Looks(filters=filters, missing=tuple(missing))
    chosen = _to_cover(figures)
    shown = {answer.place for answer in (*figures.worst, *chosen)}
    stored = {place: _stored(source, place) for place in sorted(shown)}
    occluded: tuple[Occluded, ...] = ()
    with _noting(missing, "No image was covered"):
        occluded = tuple(_occlude(classifier, source, chosen))
    return Looks(
        pictures={place: picture_address(pixels) for place, pixels in stored.items()},
        paths=_paths(run),
        is_small=max(pixels.shape[-1] for pixels in stored.values()) <= MOST_SIDE // 2,
        occluded=occluded,
        filters=filters,
        missing=tuple(missing),
    )


@contextmanager
def _noting(sentences: list[str], what: str) -> Iterator[None]:
    """Turn an error within the block into a sentence; damage of the run itself stays an error."""
    try:
        yield
    except DamagedError:
        raise
    except Exception as error:
        logger.debug("a figure of the report failed", exc_info=True)
        said = f"{error} ({type(error).__name__})."
        if isinstance(error, HeptadError):
            said = error.message
        sentences.append(f"{what}: {said}")


@contextmanager
def _silence() -> Iterator[None]:
    """Say nothing about the data: what there is to say was said when the run was trained on it."""
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _test_images(run: Run, classifier: LoadedRun) -> ImageSource:
    """Open the images that the run was tested on, in the order of its answers; fetches nothing."""
    entry = CATALOG.get(run.recipe.data)
    if entry and not all(is_intact(dataset_folder(entry) / f.name, f) for f in entry.files):
        raise MissingError(
            f"{entry.name} is not on this machine; `heptad fetch {entry.name}` gets it."
        )
    opened = opening_test(
        run.recipe,
        classes=classifier.classes,
        transform=classifier.transform,
        device=classifier.device,
        memory=0,
        noted=Noted(held_out=classifier.noted().held_out),
    )
    while True:
        try:
            report: PassReport = next(opened)
            logger.debug("%s: %d", report.what, report.num_done)
        except StopIteration as end:
            source: ImageSource = end.value
            return source


def _refuse_others(figures: RunFigures, classifier: LoadedRun, source: ImageSource) -> None:
    """Raise DataError unless the network says of these images what it said when it was tested."""
    scores = figures.run.scores
    other = DataError(f"{figures.run.recipe.data} does not hold the images of then any more.")
    if not torch.equal(source.labels, scores.labels):
        raise other
    places = torch.tensor([answer.place for answer in figures.worst])
    with torch.inference_mode():
        logits = classifier.model(source.take(places, None)).cpu()
    now, then = (values.double().softmax(1) for values in (logits, scores.logits[places]))
    if (now - then).abs().max() > NEAR:
        raise other


def _stored(source: ImageSource, place: int) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = source.images[torch.tensor([place])][0].numpy()
    return pixels


def picture_address(pixels: NDArray[np.uint8]) -> str:
    """Give a picture [1 or 3, H, W] as a `data:` address, reduced if it is large."""
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    is_small = max(picture.size) <= MOST_SIDE // 2
    picture.thumbnail((MOST_SIDE, MOST_SIDE))
    return _address(picture, "PNG" if is_small else "JPEG")


def _address(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    picture.save(file, format=kind, optimize=True)
    content = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{content}"


def _paths(run: Run) -> dict[int, str]:
    """Name the files that the images came from, by id, where each is a file."""
    if PICTURES not in run.metrics["files"]:
        return {}
    document: dict[str, Any] = json.loads((run.folder / PICTURES).read_text(encoding="utf-8"))
    return {int(entry["id"]): str(entry["path"]) for entry in document["pictures"]}


def _to_cover(figures: RunFigures) -> tuple[Answer, ...]:
    """Choose images to cover, wrong and right ones in turn: the worst, the first of each class."""
    wrong = [answer for answer in figures.worst if not answer.is_right]
    right = list(figures.first_right)
    pairs = [
        pair
        for k in range(max(len(wrong), len(right)))
        for pair in (right[k : k + 1], wrong[k : k + 1])
    ]
    return tuple(answer for pair in pairs for answer in pair)[: COVERINGS[0][0]]


def _occlude(
    classifier: LoadedRun, source: ImageSource, answers: Sequence[Answer]
) -> Iterator[Occluded]:
    """Cover each image here and there, and see what becomes of its answer's probability.

    Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2; the cover is the image's own mean colour.
    """
    inputs = source.take(torch.tensor([answer.place for answer in answers]), None)
    flops = 2 * count_products(classifier.model, inputs[:1])
    for num_images, num_places in COVERINGS:
        cost = min(num_images, len(answers)) * num_places**2 * flops
        if cost <= MOST_FLOPS:
            break
    if cost > MOST_FLOPS_AT_LAST:
        raise DataError("it would take this network too long.")
    for answer, image in zip(answers[:num_images], inputs, strict=False):
        now = occlusion(classifier.model, image, num_places=num_places)
        yield Occluded(answer, heat_address(now.numpy(), before=answer.classes[0][1]))


class _Products(TorchFunctionMode):
    """Counts the multiplications of convolutions and linear layers.

    PyTorch's own `FlopCounterMode` imports its compiler, 1.5 s on two cores.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, function: Any, _: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        answers = function(*args, **given)
        if function in (conv2d, linear):
            weight = args[1] if len(args) > 1 else given["weight"]
            self.count += weight.numel() * (answers.numel() // len(weight))
        return answers


def count_products(model: nn.Module, inputs: Tensor) -> int:
    """Count the multiplications of two-dimensional convolutions and linear layers in an answer."""
    products = _Products()
    with torch.inference_mode(), products:
        model(inputs)
    return products.count


def occlusion(model: nn.Module, image: Tensor, *, num_places: int) -> Tensor:
    """Give the probability of the image's answer where a patch covers it: [P, P], P = num_places.

    image: [C, S, S], normalised. The patch, a quarter of the side, is centred at P places from edge
    to edge along each side.
    """
    side = image.shape[-1]
    half = side / PATCH_SHARE / 2
    centres = [side * (k + 0.5) / num_places for k in range(num_places)]
    spans = [(max(0, round(c - half)), min(side, round(c + half))) for c in centres]
    colour = image.mean((1, 2), keepdim=True)
    covered = []
    for top, bottom in spans:
        for left, right in spans:
            one = image.clone()
            one[:, top:bottom, left:right] = colour
            covered.append(one)
    with torch.inference_mode():
        answer = int(model(image[None]).argmax(1))
        parts = [
            model(torch.stack(few).contiguous(memory_format=torch.channels_last)).cpu()
            for few in _some(covered)
        ]
        probabilities = torch.cat(parts).double().softmax(1)[:, answer]
    return probabilities.reshape(num_places, num_places)


def _some(images: list[Tensor]) -> Iterator[list[Tensor]]:
    for start in range(0, len(images), IMAGES_AT_A_TIME):
        yield images[start : start + IMAGES_AT_A_TIME]


def heat_address(probabilities: NDArray[np.floating[Any]], *, before: float) -> str:
    """Draw a map to be laid over an image: the stronger, the more of the probability is lost.

    probabilities: [P, P], with the image covered. before: not covered.
    """
    lost = np.clip(1 - probabilities / before, 0, 1)
    strength = np.round(255 * MOST_HEAT * lost).astype(np.uint8)
    alpha = Image.fromarray(strength).resize((MOST_SIDE, MOST_SIDE), Image.Resampling.BILINEAR)
    heat = Image.new("RGB", alpha.size, HEAT)
    heat.putalpha(alpha)
    return _address(heat, "PNG")


def first_filters(network: nn.Module) -> tuple[Markup, ...]:
    """Draw the filters of the first convolution, if they are few and see one channel."""
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != 1 or first.out_channels > MOST_FILTERS:
        return ()
    weights = first.weight.detach().double().cpu()[:, 0]
    largest = float(weights.abs().max())
    return tuple(
        filter_drawing(rows.tolist(), largest=largest, title=f"Filter {number} of {len(weights)}")
        for number, rows in enumerate(weights, 1)
    )
