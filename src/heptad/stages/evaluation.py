"""Stage 6: the evaluation loop, a generator of scored batches, and the scores it adds up to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from heptad.errors import DataError, NotFiniteError
from heptad.records import Batch, Loss, Scores


class Answers(NamedTuple):
    """What the network said of a batch: logits [N, K], beside labels and ids [N].

    The batch's inputs are not in it: kept to the end, they would be the whole test set.
    """

    logits: Tensor
    labels: Tensor
    ids: Tensor


def score_batches(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Answers]:
    """Answer one batch after another; yield after each.

    The model is in evaluation mode meanwhile; its own mode is put back afterwards.
    """
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            # Around the call alone: held over a yield, it would reach into the caller's code.
            with torch.inference_mode():
                logits = model(batch.inputs)
            yield Answers(logits, batch.labels, batch.ids)
    finally:
        model.train(was_training)


def add_up(answers: Iterable[Answers], loss: Loss) -> Scores:
    """Turn scored batches into scores; every image counts once, whatever its batch's size.

    Raises DataError if there are none, NotFiniteError if a logit is NaN or infinite: NaN would
    pass for class 0.
    """
    parts = list(answers)
    if not parts:
        raise DataError("there is no image to score.")
    # One move from the device, at the end: each earlier one would wait for it.
    logits, labels, ids = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    if not logits.isfinite().all():
        place = int((~logits.isfinite()).any(1).nonzero()[0])
        raise NotFiniteError(f"the network's answer to image {int(ids[place])} is not finite.")
    # In float64, in which a sum over the images is exact enough to compare runs by.
    return Scores(logits, labels, ids, loss=loss(logits.double(), labels).item())


def evaluate(model: nn.Module, batches: Iterable[Batch], loss: Loss) -> Scores:
    """Score `model` on every image of `batches` once; its train/eval mode is put back afterwards.

    Errors as in `add_up`.
    """
    return add_up(score_batches(model, batches), loss)
