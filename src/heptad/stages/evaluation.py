"""Stage 6: the evaluation loop, a generator of scored batches, and the scores it adds up to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from heptad.errors import DataError, NotFiniteError
from heptad.records import Batch, Loss, Scores


def score_batches(model: nn.Module, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
    """Answer one batch after another; yield each batch and its logits [N, K].

    The model is in evaluation mode meanwhile; its own mode is put back afterwards.
    """
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            # Around the call alone: held over a yield, it would reach into the caller's code.
            with torch.inference_mode():
                logits = model(batch.inputs)
            yield batch, logits
    finally:
        model.train(was_training)


def add_up(scored: Iterable[tuple[Batch, Tensor]], loss: Loss) -> Scores:
    """Turn scored batches into scores; every image counts once, whatever its batch's size.

    Raises DataError if there are none, NotFiniteError if a logit is NaN or infinite: NaN would
    pass for class 0.
    """
    batches, logits = [], []
    for batch, answers in scored:
        batches.append((batch.labels, batch.ids))
        logits.append(answers)
    if not batches:
        raise DataError("there is no image to score.")
    # One move from the device, at the end: each earlier one would wait for it.
    whole = torch.cat(logits).cpu()
    if not whole.isfinite().all():
        place = int((~whole.isfinite()).any(1).nonzero()[0])
        raise NotFiniteError(f"the network's answer to image {place} is not finite.")
    labels = torch.cat([labels for labels, _ in batches]).cpu()
    return Scores(
        logits=whole,
        labels=labels,
        ids=torch.cat([ids for _, ids in batches]),
        # In float64, in which a sum over the images is exact enough to compare runs by.
        loss=loss(whole.double(), labels).item(),
    )


def evaluate(model: nn.Module, batches: Iterable[Batch], loss: Loss) -> Scores:
    """Score `model` on every image of `batches` once; its train/eval mode is put back afterwards.

    Errors as in `add_up`.
    """
    return add_up(score_batches(model, batches), loss)
