"""Stage 5: the training loop, a generator of steps.

Between two steps model and optimizer are consistent: the caller's `for` is where logging, early
stopping and everything else happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from heptad.distributed import ALONE, Ranks
from heptad.errors import NotFiniteError
from heptad.records import Batch, Objective

MOST_NAMED = 8


def train_steps(
    model: nn.Module, batches: Iterable[Batch], objective: Objective, ranks: Ranks = ALONE
) -> Iterator[tuple[Batch, Tensor]]:
    """Train on one batch after another; yield each batch and its mean loss after the step.

    With several ranks the batches are this rank's parts, the model takes the mean of the ranks'
    gradients (`Ranks.parallel`), and the loss is that of the images of all ranks. On the CPU, a
    loss that is NaN or infinite raises NotFiniteError before the optimizer's step.
    """
    model.train()
    for batch in batches:
        objective.optimizer.zero_grad()
        logits = model(batch.inputs)
        part, waited_for = _losses(objective, logits, batch, ranks)
        part.backward()  # type: ignore[no-untyped-call]
        loss = waited_for()
        # On a GPU this would wait for every step; there the caller checks what it reads.
        if loss.device.type == "cpu" and not loss.isfinite():
            raise NotFiniteError(f"the loss is {loss.item()}.", hint=_blamed(batch, logits, ranks))
        if objective.gradient_clip is not None:
            clip_grad_norm_(objective.trained, objective.gradient_clip)
        objective.optimizer.step()
        yield batch, loss


def _losses(
    objective: Objective, logits: Tensor, batch: Batch, ranks: Ranks
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Give this rank's part of the batch's loss, and what waits for the loss, the parts' mean.

    A rank may have no image of a batch: each divides its sum by what all images weigh.
    """
    if ranks.is_alone:
        loss = objective.loss(logits, batch.labels)
        return loss, loss.detach
    weights = objective.class_weights
    weight = batch.num_global if weights is None else weights[batch.all_labels].sum()
    own = objective.loss(logits, batch.labels, reduction="sum") / weight
    # The ranks' gradients become their mean.
    return own * ranks.world_size, ranks.sum_beside(own)


def _blamed(batch: Batch, logits: Tensor, ranks: Ranks) -> str:
    """Name the images whose answers are not finite, or all of the batch if every answer is."""
    is_bad = ~logits.isfinite().all(1).cpu()
    if not ranks.is_alone and not is_bad.any():
        return f"no image of rank {ranks.rank} is to blame; another rank names those that are"
    ids = batch.ids[is_bad] if is_bad.any() else batch.ids
    named = ", ".join(map(str, ids[:MOST_NAMED].tolist()))
    more = ", …" if len(ids) > MOST_NAMED else ""
    return f"images to blame, {len(ids)} of the batch's {len(batch.ids)}: {named}{more}"
