"""Recalibrated BatchNorm statistics, kept under what they were computed from.

They cost a pass over the training images; a second run on the same ones pays none.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import safetensors.torch
from torch import nn

from heptad.errors import MissingError, RecipeError, SaveError
from heptad.files import cache_folder, digest_of, locked, sha256_of, write_bytes
from heptad.image_source import ImageSource
from heptad.recipe import Recipe
from heptad.records import Source
from heptad.stages.data import ordered_batches
from heptad.stages.model import Model, recalibrate_batchnorm

logger = logging.getLogger("heptad")


def recalibrate(model: Model, source: Source, recipe: Recipe, *, weights: str) -> str:
    """Give frozen BatchNorm the statistics of the source's images, kept or computed now.

    weights: hash of the frozen part before. Returns the name of what they were computed from:
    weights, transform, images in their order, batch size. Raises RecipeError for a source that is
    no ImageSource; else errors as in `recalibrate_batchnorm`.
    """
    if not isinstance(source, ImageSource):
        raise RecipeError("batchnorm is recalibrated, which needs images, not features of them.")
    name = digest_of(
        {
            "weights": weights,
            "transform": source.transform.as_document(),
            "images": hashlib.sha256(source.image_keys().tobytes()).hexdigest(),
            "batch_size": recipe.batch_size,
            "precision": recipe.precision,
        }
    )
    folder = cache_folder() / "batchnorm"
    if not _load(model.network, folder, name):
        logger.info("recalibrating BatchNorm on %d images", len(source.labels))
        recalibrate_batchnorm(model, ordered_batches(source, recipe))
        _keep(model, folder, name)
    return name


def _load(network: nn.Module, folder: Path, name: str) -> bool:
    for path in folder.glob(f"{name}.*.safetensors"):
        if sha256_of(path) != path.name.split(".")[1]:
            logger.warning("%s is damaged; the statistics are computed again", path)
            continue
        buffers = safetensors.torch.load_file(path)
        state = network.state_dict()
        for key, value in buffers.items():
            state[key].copy_(value)
        return True
    return False


def _keep(model: Model, folder: Path, name: str) -> None:
    buffers = {
        f"{prefix}.{key}": value.detach().cpu().contiguous()
        for prefix, module in model.held_norms().items()
        for key, value in module.named_buffers(recurse=False)
    }
    content = safetensors.torch.save(buffers)
    path = folder / f"{name}.{hashlib.sha256(content).hexdigest()}.safetensors"
    try:
        with locked(folder):
            write_bytes(path, content)
    # They are in the network; a later run computes them again.
    except (SaveError, MissingError) as error:
        logger.warning("the recalibrated statistics are not kept: %s", error.message)
