"""Stage 6: the evaluation loop, a generator of scored batches, and the scores it adds up to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from heptad.distributed import ALONE, Ranks
from heptad.errors import DataError, NotFiniteError
from heptad.records import Batch, Loss, Scores


class Answers(NamedTuple):
    """What the network said of a batch: logits [N, K], beside labels and ids [N].

    The batch's inputs are not in it: kept to the end, they would be the whole test set.
    """

    logits: Tensor
    labels: Tensor
    ids: Tensor


def score_batches(
    model: nn.Module, batches: Iterable[Batch], ranks: Ranks = ALONE
) -> Iterator[Answers]:
    """Answer one batch after another; yield the answers to all of it after each.

    ranks: each answers its own part of a batch, and all get the whole. The model is in evaluation
    mode meanwhile; its own mode is put back afterwards.
    """
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            # Around the call alone: held over a yield, it would reach into the caller's code.
            with torch.inference_mode():
                logits = model(batch.inputs)
            merged = ranks.merged(logits, batch.num_global)
            yield Answers(merged, batch.all_labels, batch.all_ids)
    finally:
        model.train(was_training)


class Tally:
    """Answers put end to end in memory that is taken a few times, not once a batch.

    A list of small tensors would do the same, but each would be cut out of the room that a batch's
    inputs have just left; the next inputs then find no room large enough, and with 224 pixels the
    process grows by 13 MB a batch (glibc's allocator, 2026-11).
    """

    def __init__(self) -> None:
        self.num_images = 0
        self._columns: list[Tensor] = []

    def add(self, answers: Answers) -> None:
        """Put the answers to one batch behind those before."""
        start, self.num_images = self.num_images, self.num_images + len(answers.labels)
        if not self._columns:
            self._columns = [part.new_empty(0, *part.shape[1:]) for part in answers]
        if self.num_images > len(self._columns[0]):
            # Twice as much as is needed now, so that this happens seldom.
            self._columns = [
                torch.cat([column[:start], part, part.new_empty(self.num_images, *part.shape[1:])])
                for column, part in zip(self._columns, answers, strict=True)
            ]
        for column, part in zip(self._columns, answers, strict=True):
            column[start : self.num_images] = part

    def answers(self) -> Answers | None:
        """Give all answers so far, None if there are none."""
        if not self.num_images:
            return None
        return Answers(*(column[: self.num_images] for column in self._columns))

    def scores(self, loss: Loss) -> Scores:
        """Turn the answers into scores; every image counts once, whatever its batch's size.

        Raises DataError if there are none, NotFiniteError if a logit is NaN or infinite: NaN would
        pass for class 0.
        """
        if not self.num_images:
            raise DataError("there is no image to score.")
        # One move from the device, at the end: each earlier one would wait for it.
        logits, labels, ids = (column[: self.num_images].cpu() for column in self._columns)
        if not logits.isfinite().all():
            place = int((~logits.isfinite()).any(1).nonzero()[0])
            raise NotFiniteError(f"the network's answer to image {int(ids[place])} is not finite.")
        # In float64, in which a sum over the images is exact enough to compare runs by.
        return Scores(logits, labels, ids, loss=loss(logits.double(), labels).item())


def evaluate(model: nn.Module, batches: Iterable[Batch], loss: Loss) -> Scores:
    """Score `model` on every image of `batches` once; its train/eval mode is put back afterwards.

    Errors as in `Tally.scores`.
    """
    tally = Tally()
    for answers in score_batches(model, batches):
        tally.add(answers)
    return tally.scores(loss)
