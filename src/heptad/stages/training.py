"""Stage 5: the training loop, a generator of steps.

Between two steps model and optimizer are consistent: the caller's `for` is where logging, early
stopping and everything else happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from heptad.errors import NotFiniteError
from heptad.records import Batch, Objective


def train_steps(
    model: nn.Module, batches: Iterable[Batch], objective: Objective
) -> Iterator[tuple[Batch, Tensor]]:
    """Train on one batch after another; yield each batch and its mean loss after the step.

    On the CPU, a loss that is NaN or infinite raises NotFiniteError before the optimizer's step.
    """
    model.train()
    for batch in batches:
        objective.optimizer.zero_grad()
        loss = objective.loss(model(batch.inputs), batch.labels)
        # On a GPU this would wait for every step; there the caller checks what it reads.
        if loss.device.type == "cpu" and not loss.isfinite():
            raise NotFiniteError(f"the loss is {loss.item()}.")
        loss.backward()  # type: ignore[no-untyped-call]
        objective.optimizer.step()
        yield batch, loss.detach()
