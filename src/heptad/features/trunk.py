"""The trunk's one pass: which trunk a training has, what names its features, computing what lacks.

The trunk is the longest prefix of the network that is frozen and deterministic. Its output for an
image never changes, so it is computed once, whatever the epochs, learning rates and trials after.
"""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from heptad.architectures import Architecture, Split
from heptad.errors import NotFiniteError, RecipeError, SaveError, is_of_memory
from heptad.features.store import (
    KEY,
    Rows,
    Shard,
    find_rows,
    make_room,
    read_shards,
    row_keys,
    stores_folder,
    write_shard,
)
from heptad.files import Held, digest_of, hold, locked, write_json
from heptad.recipe import Recipe
from heptad.records import PassReport
from heptad.stages.data import ImageSource, Sources
from heptad.stages.model import Model

logger = logging.getLogger("heptad")

# Some images of one source: it, their places among those of all sources, their indices in it.
Places = tuple[ImageSource, NDArray[np.int64], Tensor]

FORMAT = 1
ENGINE = "eager"
# A batch of the pass has about this many pixels, but this many images at least: 32 images of 64 px,
# 4 of 224 px. Larger ones leave the cache: ResNet50 gives 227 images/s at 32 and 190 at 256, VGG16
# as many at 4 as at 32 (two cores of an Intel Xeon, torch 2.14.1, 2026-11-23).
PIXELS_AT_A_TIME = 1 << 17
LEAST_IMAGES_AT_A_TIME = 4
# In a pass of fewer batches, trying which layout is faster would cost more than it gains.
LEAST_BATCHES_TO_TRY = 40
SHARD_BYTES = 64_000_000
# A pass that is cut off loses at most this much work.
SHARD_SECONDS = 60.0
# Left free on the disk beside the features.
SPARE_BYTES = 100_000_000


@dataclass(frozen=True)
class FeatureSource:
    """Features of images instead of images; see `records.Source`.

    split: name of the place where the trunk ends. store: hash of all that decided them. held:
    keeps the store from being removed.
    """

    rows: Rows
    labels: Tensor
    ids: Tensor
    classes: tuple[str, ...]
    split: str
    store: str
    device: torch.device
    dtype: torch.dtype
    held: Held | None = field(default=None, repr=False, compare=False)

    def take(self, indices: Tensor, epoch: int | None) -> Tensor:  # noqa: ARG002
        """Give features [n, F] at `indices`, in the source's type on its device."""
        return self.rows.take(indices).to(self.device, self.dtype)


def find_split(
    architecture: Architecture, model: Model, sources: Sources, *, is_wanted: bool
) -> tuple[Split | None, str]:
    """Find the split with the longest trunk that nothing moves and nothing draws in, if any.

    Also says in words where the trunk ends, or why there is none. Raises RecipeError if the sources
    hold features already, but cut at another place.
    """
    split, said = None, "no trunk: it runs in every step, as asked"
    if is_wanted:
        split, said = _longest(architecture, model)
    if isinstance(sources.train, FeatureSource):
        if split is None or split.name != sources.train.split:
            raise RecipeError(f"the features given end {sources.train.split}, but there is {said}.")
    elif split and not isinstance(sources.train, ImageSource):
        return None, "no trunk: the images given are of a kind of their own"
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
    return None, f"no trunk: {obstacles[0] if obstacles else 'every layer is trained'}"


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

    weights: SHA-256 of every frozen tensor by name, as it was loaded. statistics: name of what
    BatchNorm was recalibrated on, or "".
    """
    return {
        "format": FORMAT,
        "architecture": recipe.architecture,
        "split": split.name,
        "weights": digest_of(weights),
        "transform": sources.transform.as_document(),
        "batchnorm": recipe.batchnorm,
        "statistics": statistics,
        "precision": recipe.precision,
        "dtype": recipe.feature_dtype,
        "num_features": split.num_features,
    }


def computing(
    trunk: nn.Module, sources: Sources, store: dict[str, Any], most_bytes: int
) -> Generator[PassReport | Sources, None, None]:
    """Give the sources' features, computing only what is not kept; last, sources of features.

    A report comes after each batch of the pass. Sources of features are given back as they are.
    store: its description. most_bytes: size of all stores together, kept by removing those used
    longest ago. Raises SaveError if the disk is too small, NotFiniteError for a feature that is NaN
    or infinite, MissingError if features lack and the cache cannot be written, RecipeError if
    features that are given come from another network or transform.
    """
    if not (isinstance(sources.train, ImageSource) and isinstance(sources.test, ImageSource)):
        if isinstance(sources.train, FeatureSource) and sources.train.store != digest_of(store):
            raise RecipeError("the features given come from another network or transform.")
        yield sources
        return
    images = (sources.train, sources.test)
    folder = stores_folder() / digest_of(store)
    keys = [row_keys(source.images.numpy()) for source in images]
    shards = list(read_shards(folder))
    if len(find_rows(shards, np.concatenate(keys))[1]):
        yield from _complete(trunk, images, store, folder, np.concatenate(keys), shards)
    held = hold(folder)
    make_room(most_bytes)
    train, test = (
        _feature_source(source, shards, own_keys, store, held)
        for source, own_keys in zip(images, keys, strict=True)
    )
    yield replace(sources, train=train, test=test)


def _feature_source(
    source: ImageSource,
    shards: list[Shard],
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


def _complete(
    trunk: nn.Module,
    images: tuple[ImageSource, ...],
    store: dict[str, Any],
    folder: Path,
    keys: NDArray[np.void],
    shards: list[Shard],
) -> Iterator[PassReport]:
    """Compute what the store lacks of the images named `keys`, all sources laid end to end.

    `shards` is made to hold all of them. Another process that wants rows of the same store waits
    until this one is done, and then finds them.
    """
    with locked(folder, waiting_for="another run to finish its pass"):
        held = hold(folder)
        write_json(folder / "store.json", store)
        # Whoever held the lock before may have computed these very rows.
        shards[:] = read_shards(folder)
        _, lacking = find_rows(shards, keys)
        # The same picture twice is one row.
        _, firsts = np.unique(keys[lacking].view("S32"), return_index=True)
        lacking = lacking[np.sort(firsts)]
        row_bytes = store["num_features"] * np.dtype(store["dtype"]).itemsize + KEY.itemsize
        _refuse_full_disk(folder, len(lacking) * row_bytes)
        with closing(_pass(trunk, images, keys, lacking, folder, store["dtype"])) as made_now:
            for made in made_now:
                if isinstance(made, Shard):
                    shards.append(made)
                else:
                    yield made
        if held:
            held.release()


def _refuse_full_disk(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes + SPARE_BYTES:
        raise SaveError(
            f"the features need {num_bytes:,} bytes in {folder}, but {free:,} are free.",
            hint="free some space, set HEPTAD_HOME to a larger disk, or try --feature-dtype float16"
            " or --trunk off",
        )


def _pass(
    trunk: nn.Module,
    sources: tuple[ImageSource, ...],
    keys: NDArray[np.void],
    lacking: NDArray[np.int64],
    folder: Path,
    dtype: str,
) -> Generator[PassReport | Shard, None, None]:
    """Compute the rows `lacking` of all sources laid end to end; give reports and shards."""
    waiting: list[NDArray[Any]] = []
    names: list[NDArray[np.void]] = []
    num_done = 0
    trunk.eval()
    batches = list(_batches(sources, lacking))
    layout = torch.channels_last
    if len(batches) >= LEAST_BATCHES_TO_TRY:
        source, _, indices = batches[0]
        layout = _faster_layout(trunk, source.take(indices, None))
    trunk.to(memory_format=layout)
    started_at = written_at = perf_counter()

    def write() -> Shard:
        features, own = np.concatenate(waiting), np.concatenate(names)
        waiting.clear()
        names.clear()
        return write_shard(folder, features, own, engine=ENGINE)

    try:
        for places, features in _answers(trunk, batches, layout, dtype):
            waiting.append(features)
            names.append(keys[places])
            num_done += len(places)
            yield PassReport(num_done, len(lacking), perf_counter() - started_at)
            num_bytes = sum(part.nbytes for part in waiting)
            if num_bytes > SHARD_BYTES or perf_counter() - written_at > SHARD_SECONDS:
                yield write()
                written_at = perf_counter()
        if waiting:
            yield write()
    finally:
        # Stopped in between, by whatever: what was computed is kept.
        if waiting:
            write()
        trunk.to(memory_format=torch.channels_last)


def _faster_layout(trunk: nn.Module, inputs: Tensor) -> torch.memory_format:
    """Try both layouts of images in memory on one batch; which is faster is the processor's matter.

    Frozen ResNet50 at 64 px, images/s: channels last 193 and plain 146 with AVX2 (AMD EPYC), 227
    and 267 with AVX-512 (Intel Xeon; both two cores, torch 2.14.1, 2026-11). Where memory does not
    suffice to try, it is channels last.
    """
    seconds = {}
    for layout in (torch.channels_last, torch.contiguous_format):
        trunk.to(memory_format=layout)
        laid_out = inputs.contiguous(memory_format=layout)
        try:
            with torch.inference_mode():
                trunk(laid_out)
                started_at = perf_counter()
                trunk(laid_out)
                seconds[layout] = perf_counter() - started_at
        except Exception as error:
            if not is_of_memory(error):
                raise
            return torch.channels_last
    return min(seconds, key=lambda layout: seconds[layout])


def _batches(sources: tuple[ImageSource, ...], lacking: NDArray[np.int64]) -> Iterator[Places]:
    """Cut the rows `lacking` into batches of one source."""
    fitting = PIXELS_AT_A_TIME // sources[0].transform.image_size ** 2
    batch_size = max(LEAST_IMAGES_AT_A_TIME, fitting)
    start = 0
    for source in sources:
        stop = start + len(source.labels)
        own = lacking[(lacking >= start) & (lacking < stop)]
        yield from _parts((source, own, torch.from_numpy(own - start)), batch_size)
        start = stop


def _parts(batch: Places, most: int) -> Iterator[Places]:
    """Cut a batch into parts of at most so many images, in order."""
    source, places, indices = batch
    for first in range(0, len(places), most):
        part = slice(first, first + most)
        yield source, places[part], indices[part]


def _answers(
    trunk: nn.Module, batches: Iterable[Places], layout: torch.memory_format, dtype: str
) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """Give the places of each batch and its features [n, F], in order.

    Where memory runs out, this batch and all after it are halved, down to single images.
    """
    waiting = deque(batches)
    is_said = False
    while waiting:
        source, places, indices = batch = waiting.popleft()
        try:
            inputs = source.take(indices, None).contiguous(memory_format=layout)
            features = _answer(trunk, inputs, source.ids[indices], dtype)
        except Exception as error:
            if len(places) == 1 or not is_of_memory(error):
                raise
            if not is_said:
                logger.warning(
                    "memory does not suffice for %d images at a time; the trunk's pass takes fewer",
                    len(places),
                )
            is_said = True
            most = len(places) // 2
            waiting = deque(part for rest in (batch, *waiting) for part in _parts(rest, most))
            continue
        yield places, features


def _answer(trunk: nn.Module, inputs: Tensor, ids: Tensor, dtype: str) -> NDArray[Any]:
    with torch.inference_mode():
        features: Tensor = trunk(inputs).to("cpu", getattr(torch, dtype))
    is_bad = ~features.isfinite().all(1)
    if is_bad.any():
        raise NotFiniteError(
            f"a feature of image {int(ids[is_bad][0])} is not finite.",
            hint="the weights may be damaged; float16 holds numbers up to 65,504 only",
        )
    return features.numpy()
