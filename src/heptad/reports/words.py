"""A run in words: what was trained on what, what was not done, and the command that repeats it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from heptad.architectures import ARCHITECTURES
from heptad.errors import counted
from heptad.recipe import Recipe
from heptad.recipes import RECIPES
from heptad.records import Run

PRECISE = 4


def percent(fraction: float, digits: int = 2) -> str:
    """Write a fraction in percent."""
    return f"{100 * fraction:.{digits}f} %"


def interval_words(interval: tuple[float, float]) -> str:
    """Write an interval of fractions in percent."""
    low, high = interval
    return f"{100 * low:.2f} to {100 * high:.2f}"


def points(difference: float) -> str:
    """Write a difference of two fractions in percentage points."""
    return f"{100 * difference:.2f} points"


def duration(seconds: float) -> str:
    """Write a time in a unit that fits it."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


# By whether the start weights were random, and which part was trained.
STARTS = {
    (True, "all"): "{network} was trained from random weights",
    (True, "last-block"): "The last block of {network} and what follows it was trained, the others"
    " left random,",
    (True, "last-layer"): "The last layer of {network} was trained, the others left random,",
    (False, "all"): "{network} was trained from the weights {start}",
    (False, "last-block"): "The last block of {network} and what follows it was trained, from the"
    " weights {start}",
    (False, "last-layer"): "The last layer of {network} was trained, over the weights {start}",
}


OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "Nesterov's gradient descent"}

LOSSES = {
    "cross-entropy": "cross entropy",
    "map": "cross entropy with one class more, rubbish, that is never right",
}


def _objective_words(recipe: Recipe) -> str:
    """Say by what the loss was made small."""
    is_constant = (recipe.schedule, recipe.warmup) == ("constant", 0)
    course = "" if is_constant else f" ({recipe.schedule})"
    rate = f"{'' if is_constant else 'at most '}{recipe.learning_rate:g}{course}"
    more = {
        f"{recipe.layer_decay:g} times that for each block before the last": recipe.layer_decay < 1,
        f"gradients no longer than {recipe.gradient_clip or 0:g}": recipe.gradient_clip is not None,
        f"{recipe.label_smoothing:g} of each label spread over all classes": recipe.label_smoothing,
        f"the weights averaged, {recipe.averaging:g} kept in each step": recipe.averaging,
    }
    said = [f"{OPTIMIZERS[recipe.optimizer]} at a learning rate of {rate}"]
    return ", ".join([*said, *(text for text, is_so in more.items() if is_so)])


def loss_words(recipe: Recipe) -> str:
    """Say what the losses of a run are."""
    loss = f"{LOSSES[recipe.loss]}, in nats an image"
    if not recipe.label_smoothing:
        return loss
    return f"{loss}; in training, {recipe.label_smoothing:g} of each label spread over all classes"


def training_words(run: Run) -> str:
    """Say what was trained on what, and on which machine, in two sentences."""
    began = _began_words(run, f"for {counted(len(run.epochs), 'epoch')}")
    return f"{began} It took {duration(run.metrics['seconds'])} {_place(run)}."


def group_words(run: Run, seeds: Sequence[int], seconds: float) -> str:
    """Say what was trained with several seeds, of whose runs this is one, in two sentences."""
    epochs = counted(run.recipe.epochs, "epoch")
    most = "at most " if run.recipe.patience else ""
    times = f"{len(seeds)} times, with seeds {seeds[0]} to {seeds[-1]}, for {most}{epochs}"
    took = f"All together took {duration(seconds)}"
    return f"{_began_words(run, times)} {took}, {_place(run)}."


def _began_words(run: Run, times: str) -> str:
    recipe, start = run.recipe, run.metrics["weights"]["name"]
    began = STARTS[start == "none", recipe.trainable].format(
        network=recipe.architecture, start=start
    )
    return (
        f"{began} {times} on {sum(run.metrics['execution']['rank_images']):,} images of"
        f" {recipe.data}, in batches of {recipe.batch_size:,}, with {_objective_words(recipe)}."
    )


def _place(run: Run) -> str:
    execution = run.metrics["execution"]
    on_cpu = execution["device"] == "cpu"
    threads = f" with {counted(execution['threads'], 'thread')}" if on_cpu else ""
    return f"on {execution['device']}{threads}"


def result_words(run: Run) -> str:
    """Say how it ended: the accuracy by counts, with its interval."""
    scores = run.scores
    return (
        f"It classifies {scores.num_correct:,} of {scores.num_images:,} test images rightly:"
        f" {percent(scores.accuracy)}, 95 % interval {interval_words(scores.interval)}."
    )


def not_done(run: Run) -> list[str]:
    """Say what a reader might take for granted and what was not done."""
    return [*_of_the_start(run), *_of_the_data(run), *_of_the_seed(run), *_of_the_choice(run)]


def not_done_in_group(run: Run) -> list[str]:
    """Say what was not done in runs with several seeds, of which this is one."""
    return [*_of_the_start(run), *_of_the_data(run)]


def _of_the_start(run: Run) -> Iterator[str]:
    recipe, start = run.recipe, run.metrics["weights"]["name"]
    if start == "none" and recipe.has_frozen_part:
        yield "No pretrained weights: all that is frozen is random, and knows nothing of images."
    elif start == "none":
        yield "No pretrained weights: every layer began at random."
    elif recipe.trainable == "last-layer":
        yield f"No fine-tuning: only the last layer was trained, the rest is as {start} has it."
    elif recipe.trainable == "last-block":
        yield f"Not all was trained: what comes before the last block is as {start} has it."
    # How other weights were trained is not known here.
    if start in ARCHITECTURES[recipe.architecture].weights and recipe.normalize != "weights":
        transform = run.metrics["transform"]
        numbers = " and ".join(
            ", ".join(f"{value:.{PRECISE}g}" for value in transform[key])
            for key in ("mean", "deviation")
        )
        yield (
            "Not the normalisation of the pretrained weights: pixels were normalised by mean and"
            f" deviation {numbers}, {_normalised_by(recipe)}."
        )
    if recipe.batchnorm in ("recalibrated", "drifting"):
        yield f"BatchNorm statistics were not kept as they came: they are {recipe.batchnorm}."
    if recipe.precision == "bfloat16":
        yield "Not the full precision: layers multiplied in 16 bits, bfloat16."


def _normalised_by(recipe: Recipe) -> str:
    return "the recipe's" if recipe.normalize == "recipe" else "measured on the training images"


def _of_the_data(run: Run) -> Iterator[str]:
    recipe = run.recipe
    if recipe.limit:
        yield (
            f"Not all of the data: a sample of at most {recipe.limit:,} training and as many test"
            " images, so the figures are for that sample."
        )
    if recipe.on_bad_image == "skip":
        yield "Pictures that could not be used were passed over, if there were any."
    if not recipe.augments:
        yield "No augmentation: each epoch saw the same images."


def _of_the_seed(run: Run) -> Iterator[str]:
    recipe = run.recipe
    yield (
        f"No second seed: this is one training, with seed {recipe.seed}. The intervals say what"
        " other test images might change, not what another seed would."
    )


def _of_the_choice(run: Run) -> Iterator[str]:
    recipe, chosen = run.recipe, run.metrics["selected_epoch"]
    if chosen:
        yield (
            f"Nothing was chosen by the test images: epoch {chosen} was, by"
            f" {run.metrics['validation_images']:,} validation images, and its network was scored"
            " on the test images once."
        )
    else:
        averaged = "the average of the weights over the last steps"
        whose = averaged if recipe.averaging else "the network of the last one"
        yield (
            f"No epoch was chosen: this is {whose}. The test images were scored after every epoch,"
            " to be looked at; nothing was decided by them here."
        )
    if len(run.epochs) < recipe.epochs:
        yield (
            f"Not all {recipe.epochs} epochs: it stopped after {len(run.epochs)}, since"
            f" {recipe.patience} brought no better validation accuracy."
        )
    yield "No calibration was fitted: probabilities are the softmax of the network's own outputs."


def command_words(run: Run) -> list[str]:
    """Give the command that repeats a run, from the shipped recipe nearest to it, word by word.

    Each word is quoted: with blanks between them they are a line for bash or zsh.
    """
    recipe, execution = run.recipe, run.metrics["execution"]
    nearest = RECIPES.get(recipe.name) or RECIPES.get(recipe.architecture)
    if nearest is None:
        words = ["heptad", "train", str(run.folder)]
    else:
        given = {
            name: value
            for name, value in recipe.model_dump().items()
            if value != getattr(nearest.recipe, name)
        }
        words = ["heptad", "train", nearest.recipe.name, *_flags(given)]
    words += ["--device", str(execution["device"])]
    if execution["device"] == "cpu":
        words += ["--threads", str(execution["threads"])]
    return [shell_word(word) for word in words]


def _flags(values: dict[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        text = "none" if value is None else str(value)
        flag = f"--{name.replace('_', '-')}"
        # A value that begins like a flag would be taken for one.
        if text.startswith("-"):
            yield f"{flag}={text}"
        else:
            yield from (flag, text)


def shell_word(word: str) -> str:
    r"""Quote one word; what is not printable is written as its bytes, $'\x0a'."""
    if word.isprintable():
        return shlex.quote(word)
    written = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in os.fsencode(word)
    )
    return f"$'{written}'"


def field_differences(recipes: list[Recipe]) -> list[tuple[str, list[str]]]:
    """Name the fields in which recipes differ, each with its value in every one of them."""
    documents = [recipe.model_dump() for recipe in recipes]
    return [
        (name, [_as_text(document[name]) for document in documents])
        for name in Recipe.model_fields
        if any(document[name] != documents[0][name] for document in documents)
    ]


def _as_text(value: Any) -> str:
    return "none" if value is None else str(value)
