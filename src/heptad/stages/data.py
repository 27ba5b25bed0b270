"""Stage 2: images and labels, opened as the recipe says, in batches whose order follows the seed.

What becomes of the pixels is in `transform`; where they lie until then, in `image_source`.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heptad.augmentation import Augmentation, contact_sheet
from heptad.datasets.dataset import PARTS, Dataset, Part, find_dataset, read_part
from heptad.datasets.folder import some_names
from heptad.datasets.picture_set import (
    PictureFolder,
    PictureSet,
    opening_pictures,
)
from heptad.datasets.pictures import Decoding
from heptad.datasets.splits import held_out
from heptad.distributed import ALONE, Ranks
from heptad.errors import DataError, RecipeError, counted
from heptad.files import digest_of
from heptad.image_source import ImageSource, KeptImages
from heptad.randomness import derived_seed
from heptad.recipe import Recipe, RunOptions, not_default
from heptad.records import START, Batch, PassReport, Position, Source
from heptad.run_folder import start_run
from heptad.transform import Transform, make_transform

logger = logging.getLogger("heptad")

# Settings that decide how files of pictures are read.
OF_PICTURES = ("on_bad_image", "max_pixels", "float_range")
# Of the sheet of augmented images.
ROWS_SHOWN, VERSIONS_SHOWN = 6, 8


@dataclass(frozen=True)
class Sources:
    """The images to train on and those to score, with what is needed to name and repeat them.

    validation: training images set apart to choose the best epoch by. pictures: the files that the
    images come from, where each is one. sheet: a PNG of some training images beside augmented
    versions of them, where they are augmented. test_set: see `identify`; None where nobody did.
    data: see `fingerprint`, of the images as they were opened; None before it was taken.
    """

    name: str
    transform: Transform
    train: Source
    test: Source
    validation: Source | None = None
    pictures: PictureSet | None = None
    sheet: bytes | None = None
    test_set: str | None = None
    data: str | None = None

    @property
    def parts(self) -> tuple[Source, ...]:
        """The sources, the one to train on first."""
        return (self.train, self.test, *([self.validation] if self.validation else []))

    def with_parts(self, parts: Sequence[Source]) -> Sources:
        """Give the same with other sources, in the order of `parts`."""
        train, test, *validation = parts
        return replace(
            self, train=train, test=test, validation=validation[0] if validation else None
        )

    def resized_if_they_fit(self, memory: int) -> Sources:
        """Give the same with images resized once where that takes at most `memory` bytes a part."""
        return self.with_parts(
            [
                source.resized_if_it_fits(memory) if isinstance(source, ImageSource) else source
                for source in self.parts
            ]
        )


def fingerprint(sources: Sources) -> str:
    """Hash the images, labels and places of all parts: SHA-256.

    Of sources that are no images, labels and places alone.
    """
    digest = hashlib.sha256()
    for source in sources.parts:
        for values in (*_image_bytes(source), source.labels.numpy(), source.ids.numpy()):
            digest.update(repr(values.shape).encode())
            digest.update(np.ascontiguousarray(values).view(np.uint8).data)
    return digest.hexdigest()


def draws_images(recipe: Recipe, sources: Sources) -> bool:
    """Tell whether the seed decides which images the parts hold.

    It does with a limit, a share of validation images, a folder split here.
    """
    is_split_here = sources.pictures is not None and sources.pictures.is_split_here
    return recipe.limit is not None or recipe.validation not in (0, "folder") or is_split_here


def for_seed(sources: Sources, recipe: Recipe) -> Sources | None:
    """Give what opening `recipe` would, of `sources` opened for it with another seed.

    None where the seed decides which images they hold, or what their features are: those of a trunk
    that is drawn, of images that are augmented, and of statistics for which the images themselves
    are needed again.
    """
    if draws_images(recipe, sources):
        return None
    if isinstance(sources.train, ImageSource):
        return _augmented(recipe, sources)
    is_drawn = recipe.weights == "none" or recipe.augments or recipe.batchnorm == "recalibrated"
    return None if is_drawn else sources


def identify(source: ImageSource, pictures: PictureSet | None) -> str:
    """Name a set of images and their labels by its content: SHA-256, the same for every network.

    Of pictures: their files, whatever their names and order. Of other images: their pixels as they
    are stored, in order.
    """
    if pictures is None:
        keys = [key.tobytes().hex() for key in source.image_keys()]
    else:
        keys = [pictures.seen[place].sha256 for place in source.ids.tolist()]
    named = list(zip(keys, source.labels.tolist(), strict=True))
    return digest_of({"images": sorted(named) if pictures else named})


def _image_bytes(source: Source) -> Iterator[NDArray[Any]]:
    """Give what tells the images of a source from others: pixels in memory, else their names."""
    if not isinstance(source, ImageSource):
        return
    if isinstance(source.images, KeptImages):
        yield source.images.keys
    else:
        yield from (part.numpy() for part in source.parts())


def opening(
    recipe: Recipe, *, device: torch.device, memory: int = RunOptions().memory
) -> Generator[PassReport, None, Sources]:
    """Open the recipe's data: found or fetched, verified, read, limited, resized if that fits.

    Reports come while pictures are decoded; the sources are what is returned. memory: bytes of
    resized images to keep for each part. Raises DataError, MissingError or RecipeError if the data
    cannot be used, cannot be had, or does not fit the recipe.
    """
    dataset = find_dataset(recipe.data)
    if isinstance(dataset, PictureFolder):
        pictures = yield from _opening_pictures(recipe, dataset, is_to_train=True)
        transform = make_transform(recipe, pictures)
        train, test = (
            picture_source(recipe, pictures, part, transform=transform, device=device)
            for part in PARTS
        )
        sources = Sources(pictures.name, transform, train, test, pictures=pictures)
    else:
        if idle := not_default(recipe, *OF_PICTURES):
            said = "%s: no effect, %s holds no files of pictures"
            logger.warning(said, ", ".join(idle), recipe.data)
        transform = make_transform(recipe, dataset)
        train, test = (
            open_source(recipe, dataset, part, transform=transform, device=device) for part in PARTS
        )
        if recipe.channels < dataset.channels:
            logger.info(
                "%s is in colour and is turned gray: --channels 3 keeps the colours", dataset.name
            )
        sources = Sources(dataset.name, transform, train, test)
    sources = replace(sources, test_set=identify(test, sources.pictures))
    sources = _without_leaks(recipe, _with_val_folder(recipe, sources))
    sources = _noting_parts(_with_validation(recipe, sources))
    _warn_of_images_seen(recipe, sources)
    return _augmented(recipe, sources).resized_if_they_fit(memory)


def _opening_pictures(
    recipe: Recipe, folder: PictureFolder, *, is_to_train: bool
) -> Generator[PassReport, None, PictureSet]:
    if recipe.fit != "resize":
        raise RecipeError(
            f"fit is {recipe.fit}, but {recipe.data} holds pictures, which may have any size and"
            " are resized; allowed: resize."
        )
    return opening_pictures(
        folder,
        Decoding.of(recipe, channels=recipe.channels),
        size=recipe.image_size,
        seed=recipe.seed,
        on_bad_image=recipe.on_bad_image,
        is_to_train=is_to_train,
    )


def _with_val_folder(recipe: Recipe, sources: Sources) -> Sources:
    """Take the set's own val folder to validate with, if the recipe says so."""
    pictures = sources.pictures
    has_folder = pictures is not None and len(pictures.parts.get("validation", ())) > 0
    if recipe.validation != "folder":
        if has_folder:
            logger.warning("the val folder is not used: --validation folder would use it")
        return sources
    if pictures is None or not has_folder:
        raise RecipeError(
            f"validation is folder, but {recipe.data} has no val folder with pictures.",
            hint="a fraction such as 0.1 sets some of the training images apart",
        )
    transform, device = sources.transform, _images(sources.train).device
    source = picture_source(recipe, pictures, "validation", transform=transform, device=device)
    return replace(sources, validation=source)


def _without_leaks(recipe: Recipe, sources: Sources) -> Sources:
    """Leave exact copies of images to score out of the training, or say how many there are.

    Of sets that are no pictures that is not said unasked: all their pixels would be hashed for it.
    """
    train, pictures = _images(sources.train), sources.pictures
    if pictures is None and not recipe.drop_leaks:
        return sources
    scored = {key for source in sources.parts[1:] for key in _images(source).image_keys().tolist()}
    is_leak = torch.tensor([key in scored for key in train.image_keys().tolist()])
    num_leaks = int(is_leak.sum())
    if not num_leaks:
        if recipe.drop_leaks:
            logger.info("drop_leaks: no training image is a copy of one to score")
        return sources
    leaks = train.ids[is_leak]
    if not recipe.drop_leaks:
        assert pictures is not None
        logger.warning(
            "%s of images to score, such as %s; --drop-leaks leaves them out",
            counted(num_leaks, "training image", "is a copy", "are copies"),
            pictures.names[int(leaks[0])],
        )
        return sources
    rest = train.at((~is_leak).nonzero()[:, 0])
    emptied = set(train.labels.tolist()) - set(rest.labels.tolist())
    if emptied:
        named = some_names([train.classes[label] for label in sorted(emptied)])
        raise DataError(
            f"drop_leaks leaves no training image of {named}; all are copies of images to score."
        )
    number = counted(num_leaks, "training image", "is", "are")
    logger.info("%s left out, since they are to be scored as well", number)
    if pictures:
        pictures = replace(pictures, parts=pictures.parts | {"leak": leaks.numpy()})
    return replace(sources, train=rest, pictures=pictures)


def _with_validation(recipe: Recipe, sources: Sources) -> Sources:
    """Set apart the images to validate with, all copies of an image on one side."""
    if not recipe.validation or recipe.validation == "folder":
        return sources
    train, pictures = _images(sources.train), sources.pictures
    share = recipe.validation
    if share >= len(train.labels):
        raise RecipeError(
            f"validation is {recipe.validation:g}, of"
            f" {counted(len(train.labels), 'training image')}; some must be left to train on."
        )
    contents = (
        [pictures.contents[place] for place in train.ids.tolist()]
        if pictures
        else [key.tobytes().hex() for key in train.image_keys()]
    )
    labels, seed = train.labels.numpy(), recipe.seed
    apart = torch.from_numpy(
        held_out(labels, contents, seed=seed, purpose="validation", share=share)
    )
    validation, rest = (train.at(mask.nonzero()[:, 0]) for mask in (apart, ~apart))
    if not (len(validation.labels) and len(rest.labels)):
        raise RecipeError(
            f"validation is {recipe.validation:g}, which leaves"
            f" {counted(len(rest.labels), 'image')} to train on and {len(validation.labels)} to"
            " validate with."
        )
    if share >= 1 and len(validation.labels) != share:
        logger.warning(
            "validation is %d, but %s set apart: copies stay together, and one image of each class"
            " is left to train on",
            share,
            counted(len(validation.labels), "image", "is", "are"),
        )
    return replace(sources, train=rest, validation=validation)


def _warn_of_images_seen(recipe: Recipe, sources: Sources) -> None:
    """Say if images to score are among those that the start weights were trained on.

    Of start weights that a run has saved, and of pictures, each known by its file. Of other sets
    validation images alone can be among them.
    """
    begun = start_run(recipe.weights)
    if begun is None:
        return
    if sources.pictures:
        scored = dict(zip(("test", "validation"), sources.parts[1:], strict=False))
        advice = "its own --seed, or a test folder, keeps them apart"
        for part, source in scored.items():
            _warn_of_pictures_seen(
                part,
                source,
                sources.pictures,
                begun.pictures,
                "the run that the weights come from",
                advice,
            )
    elif sources.validation and begun.recipe.data == recipe.data:
        own, its = (
            (each.validation, each.seed, each.limit, each.drop_leaks)
            for each in (recipe, begun.recipe)
        )
        if own != its:
            logger.warning(
                "validation images may be among those that the run was trained on that the weights"
                " come from, so that their figures are too good: it set others apart, or none"
            )


def _warn_of_pictures_seen(
    part: str,
    source: Source,
    pictures: PictureSet,
    trained: frozenset[str],
    by: str,
    advice: str,
) -> None:
    """Say if pictures to score are among those with these SHA-256s, which `by` was trained on."""
    hashes = [pictures.seen[place].sha256 for place in source.ids.tolist()]
    num_seen = sum(sha256 in trained for sha256 in hashes)
    if num_seen:
        logger.warning(
            "%d of %s were trained on by %s, so that their figures are too good: %s",
            num_seen,
            counted(len(hashes), f"{part} image"),
            by,
            advice,
        )


def _noting_parts(sources: Sources) -> Sources:
    """Note of each picture in which part it is in the end; none is one that nothing uses."""
    if sources.pictures is None:
        return sources
    used = dict(zip(("train", "test", "validation"), sources.parts, strict=False))
    parts = {part: source.ids.numpy() for part, source in used.items()}
    leaks = {part: places for part, places in sources.pictures.parts.items() if part == "leak"}
    return replace(sources, pictures=replace(sources.pictures, parts=parts | leaks))


def _images(source: Source) -> ImageSource:
    """Give a source that was opened here as what it is."""
    assert isinstance(source, ImageSource)
    return source


def _augmented(recipe: Recipe, sources: Sources) -> Sources:
    """Have the training images augmented as the recipe says."""
    if not recipe.augments:
        return sources
    augmentation = Augmentation(
        **{field.name: getattr(recipe, field.name) for field in fields(Augmentation)}
    )
    train = replace(_images(sources.train), augmentation=augmentation, seed=recipe.seed)
    shown = torch.arange(min(ROWS_SHOWN, len(train.labels)))
    versions = [train.take(shown, epoch).cpu() for epoch in range(VERSIONS_SHOWN)]
    sheet = contact_sheet(train.take(shown, None).cpu(), torch.stack(versions, 1))
    return replace(sources, train=train, sheet=sheet)


def open_sources(
    recipe: Recipe, *, device: torch.device, memory: int = RunOptions().memory
) -> Sources:
    """Open the recipe's data and give the sources; see `opening`."""
    opened = opening(recipe, device=device, memory=memory)
    while True:
        try:
            next(opened)
        except StopIteration as end:
            sources: Sources = end.value
            return sources


@dataclass(frozen=True)
class Noted:
    """What a run noted of its images, of which other ones may be scored.

    held_out: SHA-256s of the pictures set apart for its test, where no folder was; None of all that
    are scored whole. trained: those of the pictures that it was trained on. test_set: see
    `identify`, of the images that it was tested on; None where they need not be the same.
    """

    held_out: Counter[str] | None = None
    trained: frozenset[str] = frozenset()
    test_set: str | None = None


def opening_test(
    recipe: Recipe,
    *,
    classes: tuple[str, ...],
    transform: Transform,
    device: torch.device,
    memory: int,
    noted: Noted,
) -> Generator[PassReport, None, ImageSource]:
    """Open the test images of the recipe's data, to be scored by a network with these `classes`.

    Labels are matched by the classes' names. A folder without a test part is scored whole, or the
    pictures of it that are `noted` as held out, each as often as there. Warnings say if the images
    are others than the network was tested on, and if it was trained on some of them. Raises
    DataError if the data has a class that the network does not know, held-out pictures are
    missing, or there is none to score.
    """
    dataset, pictures = find_dataset(recipe.data), None
    if isinstance(dataset, PictureFolder):
        pictures = yield from _opening_pictures(recipe, dataset, is_to_train=False)
        if pictures.is_split_here:
            pictures = replace(pictures, parts={"test": _wanted(pictures, noted.held_out)})
        source = picture_source(recipe, pictures, "test", transform=transform, device=device)
        advice = "without --data, where its data was then, those held out alone are scored"
        _warn_of_pictures_seen("test", source, pictures, noted.trained, "the run", advice)
    else:
        source = open_source(recipe, dataset, "test", transform=transform, device=device)
    unknown = [name for name in source.classes if name not in classes]
    if unknown:
        known = [name for name in source.classes if name in classes]
        raise DataError(
            f"{recipe.data} has the classes {some_names(unknown)}, but the run was trained on"
            f" {some_names(classes)}.",
            hint=f"{len(known)} of the {len(source.classes)} classes there are the run's"
            + (f": {some_names(known)}" if known else "")
            + "; a folder without the others can be scored",
        )
    numbers = torch.tensor([classes.index(name) for name in source.classes])
    matched = replace(source, labels=numbers[source.labels], classes=classes)
    if noted.test_set is not None and identify(matched, pictures) != noted.test_set:
        logger.warning(
            "the test images of %s are not those that the run was tested on: its own figures need"
            " not come out again",
            recipe.data,
        )
    return matched.resized_if_it_fits(memory)


def _wanted(pictures: PictureSet, held_out: Counter[str] | None) -> NDArray[np.int64]:
    """Give the places of all pictures, or of those with these hashes, as often as each is there."""
    if held_out is None:
        return np.arange(len(pictures.names))
    places, missing = [], Counter(held_out)
    for place, seen in enumerate(pictures.seen):
        if missing[seen.sha256]:
            missing[seen.sha256] -= 1
            places.append(place)
    if missing.total():
        raise DataError(
            f"{pictures.folder} lacks {missing.total()} of the"
            f" {counted(held_out.total(), 'picture')} that the run was tested on.",
            hint="put them back, or name the folder with --data to score all that is there",
        )
    return np.array(places)


def picture_source(
    recipe: Recipe,
    pictures: PictureSet,
    part: str,
    *,
    transform: Transform,
    device: torch.device,
) -> ImageSource:
    """Give one part of a set of pictures, with the recipe's limit; an image's id is its place.

    Raises DataError if there is none in it.
    """
    places = pictures.parts[part]
    if not len(places):
        raise DataError(f"{pictures.folder} has no picture of the {part} part that can be used.")
    if recipe.limit is not None and recipe.limit < len(places):
        places = places[stratified_sample(pictures.labels[places], recipe.limit, seed=recipe.seed)]
    return ImageSource(
        images=KeptImages(pictures.rows.at(places), pictures.keys(places)),
        labels=torch.from_numpy(pictures.labels[places]),
        ids=torch.from_numpy(places),
        draw_ids=torch.from_numpy(pictures.draw_ids()[places]),
        classes=pictures.classes,
        transform=transform,
        device=device,
        dtype=getattr(torch, recipe.number_type),
    )


def open_source(
    recipe: Recipe,
    dataset: Dataset,
    part: Part,
    *,
    transform: Transform,
    device: torch.device,
) -> ImageSource:
    """Read one part of a data set, as it is stored, with the recipe's limit.

    Raises DataError if a file is damaged.
    """
    images, labels = read_part(dataset, part, channels=recipe.channels)
    # One shows whether all can be brought to size: said here, and not in the first step.
    transform.to_size(torch.from_numpy(images[:1]))
    ids = np.arange(len(labels))
    if recipe.limit is not None and recipe.limit < len(labels):
        ids = stratified_sample(labels, recipe.limit, seed=recipe.seed)
        images, labels = images[ids], labels[ids]
    return ImageSource(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels),
        ids=torch.from_numpy(ids),
        classes=dataset.classes,
        transform=transform,
        device=device,
        dtype=getattr(torch, recipe.number_type),
    )


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
    # Nothing, split, would be one batch of no images.
    for whole in torch.split(order, batch_size) if len(order) else ():
        inputs = source.take(ranks.share(whole), epoch)
        labels, ids = source.labels[whole].to(inputs.device), source.ids[whole]
        yield Batch(inputs, ranks.share(labels), ranks.share(ids), labels, ids)
