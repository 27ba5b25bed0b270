"""The trunk's one pass: which trunk a training has, what names its features, computing what lacks.

The trunk is the longest prefix of the network that is frozen and deterministic. Its output for an
image never changes, so it is computed once, whatever the epochs, learning rates and trials after.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from heptad.architectures import Architecture, Split
from heptad.distributed import ALONE, Ranks
from heptad.errors import NotFiniteError, RecipeError, is_of_memory
from heptad.features.engine import EAGER, REWRITTEN, Engine, filled, start_engine
from heptad.features.memory import freed_memory_kept
from heptad.files import Held, digest_of, hold
from heptad.image_source import ImageSource
from heptad.recipe import Recipe
from heptad.records import PassReport
from heptad.stages.data import Sources
from heptad.stages.model import Model
from heptad.stores import (
    KEY,
    Computation,
    Lacking,
    Rows,
    Shard,
    filling,
    find_rows,
    store_folder,
)

logger = logging.getLogger("heptad")


@dataclass(frozen=True)
class View:
    """The images of a source as they are in one epoch; None: as in evaluation, not augmented."""

    source: ImageSource
    epoch: int | None = None

    def take(self, indices: Tensor) -> Tensor:
        """Give inputs [n, C, S, S] at `indices`."""
        return self.source.take(indices, self.epoch)

    def keys(self) -> NDArray[np.void]:
        """Name each image [N] by its pixels as they are stored, and by how they are augmented."""
        plain = self.source.image_keys()
        if self.epoch is None:
            return plain
        how = repr((self.source.augmentation, self.source.seed, self.epoch)).encode()
        digests = [
            hashlib.sha256(how + b"%d " % image + key.tobytes()).digest()
            for image, key in zip(self.source.drawn_by.tolist(), plain, strict=True)
        ]
        return np.frombuffer(b"".join(digests), KEY)


@dataclass(frozen=True)
class Views:
    """The images of several views end to end; places among them are in ascending order."""

    views: tuple[View, ...]

    def take(self, places: NDArray[np.int64]) -> Tensor:
        """Give inputs [n, C, S, S] at `places`."""
        return torch.cat([view.take(indices) for view, indices in self._by_view(places)])

    def ids(self, places: NDArray[np.int64]) -> Tensor:
        """Give the ids [n] of the images at `places`."""
        return torch.cat([view.source.ids[indices] for view, indices in self._by_view(places)])

    def _by_view(self, places: NDArray[np.int64]) -> Iterator[tuple[View, Tensor]]:
        """Tell which views the places lie in, and which images of each's source they are."""
        start = 0
        for view in self.views:
            stop = start + len(view.source.labels)
            own = places[(places >= start) & (places < stop)]
            if len(own):
                yield view, torch.from_numpy(own - start)
            start = stop


FORMAT = 2
IMAGE_DIMENSIONS = 4
# A batch of the pass has about this many pixels, but this many images at least: 128 images of 64
# px, 10 of 224 px. Of fewer, the products have too few rows to be fast; more only take memory.
PIXELS_AT_A_TIME = 1 << 19
# A pass over fewer pixels is over before a trunk is rewritten for it: 512 images of 64 px.
WORTH_REWRITING = 1 << 21
LEAST_IMAGES_AT_A_TIME = 4


@dataclass(frozen=True)
class FeatureSource:
    """Features of images instead of images; see `records.Source`.

    views: the features of each augmented version of the images, one for each epoch in turn; none
    where images are not augmented. split: name of the place where the trunk ends. store: hash of
    all that decided them. held: keeps the store from being removed.
    """

    rows: Rows
    labels: Tensor
    ids: Tensor
    classes: tuple[str, ...]
    split: str
    store: str
    device: torch.device
    dtype: torch.dtype
    views: tuple[Rows, ...] = ()
    held: Held | None = field(default=None, repr=False, compare=False)

    def take(self, indices: Tensor, epoch: int | None) -> Tensor:
        """Give features [n, ...] at `indices`, in the source's type on its device.

        Maps [n, C, H, W] come channels last, as images do.
        """
        rows = self.rows
        if self.views and epoch is not None:
            rows = self.views[epoch % len(self.views)]
        features = rows.take(indices).to(self.device, self.dtype)
        is_of_maps = features.dim() == IMAGE_DIMENSIONS
        return features.contiguous(memory_format=torch.channels_last) if is_of_maps else features


def find_split(
    architecture: Architecture,
    model: Model,
    sources: Sources,
    *,
    is_wanted: bool,
    views: int | None = None,
) -> tuple[Split | None, str]:
    """Find the split with the longest trunk that nothing moves and nothing draws in, if any.

    Also says in words where the trunk ends, or why there is none. Images that are augmented anew in
    every epoch have none; a number of `views` has. Raises RecipeError if the sources hold features
    already, but cut at another place.
    """
    split, said = None, "no trunk: it runs in every step, as asked"
    if is_wanted:
        split, said = _longest(architecture, model)
    if isinstance(sources.train, FeatureSource):
        if split is None or split.name != sources.train.split:
            raise RecipeError(f"the features given end {sources.train.split}, but there is {said}.")
    elif split and not isinstance(sources.train, ImageSource):
        return None, "no trunk: the images given are of a kind of their own"
    elif isinstance(sources.train, ImageSource) and sources.train.augmentation and not views:
        return None, "no trunk: every epoch changes the images anew; --views 5 would keep 5 of them"
    return split, said


def _longest(architecture: Architecture, model: Model) -> tuple[Split | None, str]:
    obstacles = []
    was_training = model.training
    model.train()
    try:
        for split in architecture.splits:
            obstacle = _obstacle(split.trunk(model.network))
            if not obstacle:
                return split, f"trunk that ends {split.name}"
            obstacles.append(obstacle)
    finally:
        model.train(was_training)
    is_whole = all(parameter.requires_grad for parameter in model.parameters())
    uncut = "every layer is trained" if is_whole else "the network has no place to be cut at"
    return None, f"no trunk: {obstacles[0] if obstacles else uncut}"


def _obstacle(trunk: nn.Module) -> str:
    """Say what keeps a part, in training mode, from giving one answer for ever; "" if nothing."""
    if any(parameter.requires_grad for parameter in trunk.parameters()):
        return "it would hold trained parameters"
    for module in trunk.modules():
        if isinstance(module, _BatchNorm) and module.training:
            return "BatchNorm moves in it"
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            return "Dropout draws in it"
    return ""


def describe_store(
    recipe: Recipe, split: Split, sources: Sources, *, weights: dict[str, str], statistics: str
) -> dict[str, Any]:
    """Write down everything that decides a feature, but the image.

    weights: SHA-256 of every tensor of the trunk by name, as it was loaded. statistics: name of
    what BatchNorm was recalibrated on, or "".
    """
    return {
        "format": FORMAT,
        "architecture": recipe.architecture,
        "split": split.name,
        "weights": digest_of(weights),
        "transform": sources.transform.as_document(),
        # What is held beyond the trunk changes nothing in it.
        "batchnorm": "frozen" if recipe.batchnorm == "held" else recipe.batchnorm,
        "statistics": statistics,
        "precision": recipe.precision,
        "dtype": recipe.feature_dtype,
    }


def computing(
    trunk: nn.Module,
    sources: Sources,
    store: dict[str, Any],
    *,
    num_views: int | None = None,
    engine: str = "auto",
    ranks: Ranks = ALONE,
) -> Generator[PassReport | Sources, None, None]:
    """Give the sources' features, computing only what is not kept; last, sources of features.

    A report comes after each batch of the pass. Sources of features are given back as they are.
    store: its description. num_views: augmented versions of the training images. engine: as in
    `RunOptions`; rows that are there are used whatever computed them. Raises SaveError
    if the disk is too small, NotFiniteError for a feature that is NaN or infinite, MissingError if
    features lack and the cache cannot be written, RecipeError if features that are given come from
    another network or transform.
    """
    if not (isinstance(sources.train, ImageSource) and isinstance(sources.test, ImageSource)):
        if isinstance(sources.train, FeatureSource) and sources.train.store != digest_of(store):
            raise RecipeError("the features given come from another network or transform.")
        yield sources
        return
    plain = [View(source) for source in sources.parts if isinstance(source, ImageSource)]
    augmented = [View(sources.train, epoch) for epoch in range(num_views or 0)]
    views = [*plain, *augmented]
    keys = [view.keys() for view in views]
    shards = yield from filling(
        store,
        np.concatenate(keys),
        compute=lambda lacking: _pass(
            trunk,
            Views(tuple(views)),
            lacking,
            store["dtype"],
            precision=store["precision"],
            engine=engine,
            ranks=ranks,
        ),
        what="the trunk's pass",
        hint="try --feature-dtype float16 or --trunk off",
        ranks=ranks,
    )
    held = hold(store_folder(store))
    parts = [
        _feature_source(view.source, shards, own_keys, store, held)
        for view, own_keys in zip(plain, keys, strict=False)
    ]
    versions = tuple(find_rows(shards, own_keys)[0] for own_keys in keys[len(plain) :])
    parts[0] = replace(parts[0], views=versions)
    yield sources.with_parts(parts)


def engine_of(sources: Sources) -> str:
    """Name what computed the features; the network as it is where there are none."""
    used: dict[str, None] = {}
    for source in sources.parts:
        if isinstance(source, FeatureSource):
            for rows in (source.rows, *source.views):
                used |= dict.fromkeys(rows.engines)
    return ", ".join(sorted(used)) or EAGER


def features_digest(sources: Sources) -> str:
    """Hash which shard each feature came from: rows that were computed anew may differ by a bit."""
    digest = hashlib.sha256()
    for source in sources.parts:
        if isinstance(source, FeatureSource):
            for rows in (source.rows, *source.views):
                names = np.array([shard.name for shard in rows.shards])
                digest.update(names[rows.shard_of].tobytes())
    return digest.hexdigest()


def _feature_source(
    source: ImageSource,
    shards: tuple[Shard, ...],
    keys: NDArray[np.void],
    store: dict[str, Any],
    held: Held | None,
) -> FeatureSource:
    rows, lacking = find_rows(shards, keys)
    assert not len(lacking)
    return FeatureSource(
        rows=rows,
        labels=source.labels,
        ids=source.ids,
        classes=source.classes,
        split=store["split"],
        store=digest_of(store),
        device=source.device,
        dtype=source.dtype,
        held=held,
    )


def images_at_a_time(image_size: int) -> int:
    """Give how many images of so many pixels a side a batch of the pass has."""
    return max(LEAST_IMAGES_AT_A_TIME, PIXELS_AT_A_TIME // image_size**2)


def _pass(
    trunk: nn.Module,
    images: Views,
    lacking: Lacking,
    dtype: str,
    *,
    precision: str,
    engine: str,
    ranks: Ranks,
) -> Computation:
    """Compute the rows `lacking` of all views laid end to end.

    engine: as in `RunOptions`; all ranks take the one that rank 0 finds. A pass that began with the
    trunk rewritten ends so, however little is left; one over few images runs it as it is.
    """
    trunk.eval()
    image_size = images.views[0].source.transform.image_size
    batch_size = images_at_a_time(image_size)
    batches = _parts(lacking.places, batch_size)
    is_small = lacking.num_in_all * image_size**2 < WORTH_REWRITING
    is_mixed = precision == "bfloat16"
    if engine == "auto" and (is_mixed or (is_small and REWRITTEN not in lacking.engines)):
        engine = EAGER
    if is_mixed and engine != EAGER:
        raise RecipeError(f"engine is {engine}, which computes in float32, not in {precision}.")
    started = Engine(EAGER, trunk)

    def start(wanted: str) -> str:
        nonlocal started
        if wanted != EAGER and batches:
            first = images.take(batches[0])
            started = start_engine(trunk, first, wanted=wanted, batch_size=batch_size)
        return started.name

    name = ranks.by_first(lambda: start(engine))
    if not ranks.is_first:
        start(name)
    fill_to = batch_size if name == REWRITTEN else 0
    return Computation(name, _answers(started, images, batches, dtype, fill_to=fill_to))


def _parts(places: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
    """Cut places into parts of at most so many, in order."""
    return [places[first : first + most] for first in range(0, len(places), most)]


def _answers(
    engine: Engine, images: Views, batches: Sequence[NDArray[np.int64]], dtype: str, *, fill_to: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """Give the places of each batch and its features [n, ...], in order.

    fill_to: images that a batch is filled up to. Where memory runs out, this batch and all after it
    are halved, down to single images, and not filled.
    """
    waiting = deque(batches)
    is_said = False
    if engine.answers is not None:
        places = waiting.popleft()
        yield places, _rows(engine.answers, images.ids(places), dtype)
    with freed_memory_kept():
        while waiting:
            places = waiting.popleft()
            try:
                with torch.inference_mode():
                    answers = engine.module(filled(images.take(places), fill_to))[: len(places)]
                features = _rows(answers, images.ids(places), dtype)
            except Exception as error:
                if len(places) == 1 or not is_of_memory(error):
                    raise
                if not is_said:
                    logger.warning(
                        "memory does not suffice for %d images at a time; the trunk's pass takes"
                        " fewer",
                        len(places),
                    )
                is_said = True
                most, fill_to = len(places) // 2, 0
                waiting = deque(part for rest in (places, *waiting) for part in _parts(rest, most))
                continue
            yield places, features


def _rows(features: Tensor, ids: Tensor, dtype: str) -> NDArray[Any]:
    """Give features [n, ...] as they are kept; raises NotFiniteError, which names the image."""
    kept = features.to("cpu", getattr(torch, dtype))
    is_bad = ~kept.flatten(1).isfinite().all(1)
    if is_bad.any():
        raise NotFiniteError(
            f"a feature of image {int(ids[is_bad][0])} is not finite.",
            hint="the weights may be damaged; float16 holds numbers up to 65,504 only",
        )
    return kept.numpy()
