"""Stage 2: images and labels, resized and normalised, in batches whose order follows the seed.

Images stay `uint8` in memory. They are resized once where the result fits, else batch by batch, to
the same pixels: those of Pillow, and so of `torchvision.transforms`, to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from heptad.architectures import find_architecture
from heptad.architectures.pretrained import WeightsFile
from heptad.datasets.dataset import PARTS, Dataset, Part, find_dataset, read_part
from heptad.distributed import ALONE, Ranks
from heptad.errors import RecipeError
from heptad.randomness import derived_seed
from heptad.recipe import Recipe, RunOptions
from heptad.records import START, Batch, Position, Source

IMAGES_AT_A_TIME = 1000

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Transform:
    """From stored pixels to what the network sees.

    mean, deviation: one number, or one for each channel, of pixels scaled to 0..1.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def as_document(self) -> dict[str, Any]:
        """Give the transform as plain numbers and lists, for JSON."""
        return asdict(self) | {"mean": list(self.mean), "deviation": list(self.deviation)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Make the transform that `as_document` wrote down."""
        return cls(
            image_size=int(document["image_size"]),
            channels=int(document["channels"]),
            mean=tuple(map(float, document["mean"])),
            deviation=tuple(map(float, document["deviation"])),
        )

    def resize(self, images: Tensor) -> Tensor:
        """Resize `uint8` [N, C, H, W] to [N, C, S, S], bilinear with antialiasing.

        `interpolate` on `uint8` gives Pillow's pixels on every processor; torchvision's own resize
        of tensors does so with AVX2 only (torch 2.14.1, torchvision 0.29.1, 2026-11).
        """
        size = (self.image_size, self.image_size)
        if images.shape[-2:] == size:
            return images
        return interpolate(images, size=size, mode="bilinear", antialias=True)

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


@dataclass(frozen=True)
class ImageSource:
    """Images in memory, `uint8` [N, C, H, W], with labels and ids [N]; see `records.Source`.

    images: as they are stored, or resized already.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    classes: tuple[str, ...]
    transform: Transform
    device: torch.device
    dtype: torch.dtype = torch.float32

    def take(self, indices: Tensor, epoch: int | None) -> Tensor:  # noqa: ARG002
        """Give inputs [N, C, S, S] in the source's type, on its device, channels last."""
        pixels = self.transform.resize(self.images[indices]).to(self.device)
        inputs = self.transform.normalize(pixels)
        return inputs.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def resized_if_it_fits(self, memory: int) -> ImageSource:
        """Give the same source with its images resized once, if that takes at most `memory` bytes.

        What `take` gives stays the same, to the bit.
        """
        size = self.transform.image_size
        is_resized = self.images.shape[-2:] == (size, size)
        if is_resized or self.images.shape[0] * self.images.shape[1] * size**2 > memory:
            return self
        resized = self.images.new_empty(*self.images.shape[:2], size, size)
        # In parts, so that no second copy of the whole is ever held.
        for target, few in zip(
            torch.split(resized, IMAGES_AT_A_TIME),
            torch.split(self.images, IMAGES_AT_A_TIME),
            strict=True,
        ):
            target.copy_(self.transform.resize(few))
        return replace(self, images=resized)


@dataclass(frozen=True)
class Sources:
    """The images to train on and those to score, with what is needed to name and repeat them."""

    name: str
    transform: Transform
    train: Source
    test: Source

    def resized_if_they_fit(self, memory: int) -> Sources:
        """Give the same with images resized once where that takes at most `memory` bytes a part."""
        train, test = (
            source.resized_if_it_fits(memory) if isinstance(source, ImageSource) else source
            for source in (self.train, self.test)
        )
        return replace(self, train=train, test=test)


def fingerprint(sources: Sources) -> str:
    """Hash the images, as they are stored, labels and places of both parts: SHA-256.

    Of sources that are no images in memory, labels and places alone.
    """
    digest = hashlib.sha256()
    for source in (sources.train, sources.test):
        images = [source.images] if isinstance(source, ImageSource) else []
        for values in (*images, source.labels, source.ids):
            digest.update(repr(tuple(values.shape)).encode())
            digest.update(values.contiguous().numpy().data)
    return digest.hexdigest()


def open_sources(
    recipe: Recipe, *, device: torch.device, memory: int = RunOptions().memory
) -> Sources:
    """Open the recipe's data: found or fetched, verified, read, limited, resized if that fits.

    memory: bytes of resized images to keep for each part. Raises DataError, MissingError or
    RecipeError if the data cannot be used, cannot be had, or does not fit the recipe.
    """
    dataset = find_dataset(recipe.data)
    transform = make_transform(recipe, dataset)
    train, test = (
        open_source(recipe, dataset, part, transform=transform, device=device, memory=memory)
        for part in PARTS
    )
    return Sources(dataset.name, transform, train, test)


def check_transform(recipe: Recipe) -> None:
    """Raise RecipeError if the recipe normalises by weights that have no preset."""
    if recipe.normalize == "weights":
        _of_weights(recipe)


def make_transform(recipe: Recipe, dataset: Dataset) -> Transform:
    """Give the recipe's transform, with mean and deviation from where the recipe says.

    Raises RecipeError for `normalize = "weights"` without weights that have a preset.
    """
    choices: dict[str, Callable[[], tuple[Numbers, Numbers]]] = {
        "recipe": lambda: ((recipe.mean,), (recipe.deviation,)),
        "data": lambda: _of_data(dataset),
        "weights": lambda: _of_weights(recipe),
    }
    mean, deviation = choices[recipe.normalize]()
    return Transform(recipe.image_size, recipe.channels, mean, deviation)


def _of_data(dataset: Dataset) -> tuple[Numbers, Numbers]:
    if dataset.mean is not None and dataset.deviation is not None:
        return (dataset.mean,), (dataset.deviation,)
    images, _ = read_part(dataset, "train")
    # Counts of the 256 values, so that the sums are exact.
    counts = np.bincount(images.reshape(-1), minlength=256)
    values = np.arange(256) / 255
    mean = float((counts * values).sum() / counts.sum())
    deviation = float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
    if deviation == 0:
        raise RecipeError("normalize is data, but all training pixels are equal.")
    return (mean,), (deviation,)


def _of_weights(recipe: Recipe) -> tuple[Numbers, Numbers]:
    architecture = find_architecture(
        recipe.architecture, channels=recipe.channels, image_size=recipe.image_size
    )
    names = list(architecture.weights)
    name = names[0] if recipe.weights == "default" and names else recipe.weights
    preset: WeightsFile | None = architecture.weights.get(name)
    if preset is None:
        raise RecipeError(
            f"normalize is weights, but weights = {recipe.weights} has no preset;"
            f" {recipe.architecture} has {', '.join(names) if names else 'no weights with one'}."
        )
    return preset.mean, preset.deviation


def open_source(
    recipe: Recipe,
    dataset: Dataset,
    part: Part,
    *,
    transform: Transform,
    device: torch.device,
    memory: int,
) -> ImageSource:
    """Read one part of a data set, with the recipe's limit, resized if that fits in `memory` bytes.

    Raises DataError if a file is damaged.
    """
    images, labels = read_part(dataset, part)
    ids = np.arange(len(labels))
    if recipe.limit is not None and recipe.limit < len(labels):
        ids = stratified_sample(labels, recipe.limit, seed=recipe.seed)
        images, labels = images[ids], labels[ids]
    source = ImageSource(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels),
        ids=torch.from_numpy(ids),
        classes=dataset.classes,
        transform=transform,
        device=device,
        dtype=getattr(torch, recipe.precision),
    )
    return source.resized_if_it_fits(memory)


def stratified_sample(
    labels: NDArray[np.int64], num_images: int, *, seed: int
) -> NDArray[np.int64]:
    """Choose `num_images` places of `labels` [N], each class by its share; in rising order.

    Shares are rounded by largest remainder, ties to the lower class. Depends on `seed` alone.
    """
    counts = np.bincount(labels)
    # Whole numbers throughout: num_images * count / N, its floor and its remainder.
    quotas, remainders = np.divmod(counts * num_images, len(labels))
    leftover = num_images - int(quotas.sum())
    quotas[np.argsort(-remainders, kind="stable")[:leftover]] += 1
    draws = np.random.Generator(np.random.PCG64(derived_seed(seed, "limit")))
    chosen = [
        draws.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in enumerate(quotas)
    ]
    return np.sort(np.concatenate(chosen))


def epoch_order(num_images: int, *, seed: int, epoch: int) -> Tensor:
    """Give the order of an epoch (from 0): a permutation of 0..N-1, from seed and epoch alone."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    return torch.randperm(num_images, generator=generator)


def training_batches(
    source: Source, recipe: Recipe, at: Position = START, ranks: Ranks = ALONE
) -> Iterator[Batch]:
    """Give the batches of epoch `at.epoch`, from the first image not yet seen, for this rank."""
    order = epoch_order(len(source.labels), seed=recipe.seed, epoch=at.epoch)[at.num_seen :]
    return _batches(source, order, recipe.batch_size, at.epoch, ranks)


def ordered_batches(
    source: Source, recipe: Recipe, ranks: Ranks = ALONE, *, start: int = 0
) -> Iterator[Batch]:
    """Give every image from `start` on once, in the source's order, never augmented, for this rank.

    start: where a batch begins.
    """
    order = torch.arange(start, len(source.labels))
    return _batches(source, order, recipe.batch_size, None, ranks)


def _batches(
    source: Source, order: Tensor, batch_size: int, epoch: int | None, ranks: Ranks
) -> Iterator[Batch]:
    for whole in torch.split(order, batch_size):
        indices = ranks.share(whole)
        inputs = source.take(indices, epoch)
        labels = source.labels[indices].to(inputs.device)
        yield Batch(inputs, labels, source.ids[indices], num_global=len(whole))
