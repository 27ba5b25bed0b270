"""Stage 5: the training loop, a generator of steps.

Between two steps model and optimizer are consistent: the caller's `for` is where logging, early
stopping and everything else happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from heptad.errors import NotFiniteError
from heptad.records import Batch, Objective

MOST_NAMED = 8


def train_steps(
    model: nn.Module, batches: Iterable[Batch], objective: Objective
) -> Iterator[tuple[Batch, Tensor]]:
    """Train on one batch after another; yield each batch and its mean loss after the step.

    On the CPU, a loss that is NaN or infinite raises NotFiniteError before the optimizer's step.
    """
    model.train()
    for batch in batches:
        objective.optimizer.zero_grad()
        logits = model(batch.inputs)
        loss = objective.loss(logits, batch.labels)
        # On a GPU this would wait for every step; there the caller checks what it reads.
        if loss.device.type == "cpu" and not loss.isfinite():
            raise NotFiniteError(f"the loss is {loss.item()}.", hint=_blamed(batch, logits))
        loss.backward()  # type: ignore[no-untyped-call]
        if objective.gradient_clip is not None:
            clip_grad_norm_(objective.trained, objective.gradient_clip)
        objective.optimizer.step()
        yield batch, loss.detach()


def _blamed(batch: Batch, logits: Tensor) -> str:
    """Name the images whose answers are not finite, or all of the batch if every answer is."""
    is_bad = ~logits.isfinite().all(1).cpu()
    ids = batch.ids[is_bad] if is_bad.any() else batch.ids
    named = ", ".join(map(str, ids[:MOST_NAMED].tolist()))
    more = ", …" if len(ids) > MOST_NAMED else ""
    return f"images to blame, {len(ids)} of the batch's {len(batch.ids)}: {named}{more}"
