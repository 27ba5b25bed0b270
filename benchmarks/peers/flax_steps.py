"""Flax NNX and Optax: jitted steps on arrays in memory, or the whole epoch in one `lax.scan`.

Module and state are split once and joined inside the jitted function, which Flax's guide to
performance advises for small networks. A frozen trunk is an argument of the step that nothing is
differentiated by. The variant is "steps" or "scan"; the last, shorter batch is a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from peers.flax_resnet import made_trunk
from peers.work import BATCH_SIZE, LEARNING_RATE, NUM_CLASSES, Work, answer, given

Tree = Any
OPTIMIZER = optax.adam(LEARNING_RATE)


class LeNet5(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 6, (5, 5), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(6, 16, (5, 5), padding="VALID", rngs=rngs)
        self.linear1 = nnx.Linear(400, 120, rngs=rngs)
        self.linear2 = nnx.Linear(120, 84, rngs=rngs)
        self.linear3 = nnx.Linear(84, NUM_CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        maps = nnx.max_pool(nnx.relu(self.conv1(images)), (2, 2), strides=(2, 2))
        maps = nnx.max_pool(nnx.relu(self.conv2(maps)), (2, 2), strides=(2, 2))
        values = nnx.relu(self.linear1(maps.reshape(len(maps), -1)))
        return self.linear3(nnx.relu(self.linear2(values)))


# (trained values, frozen values, images) to logits.
Apply = Callable[[Tree, Tree, jax.Array], jax.Array]


def lenet5() -> tuple[Apply, Tree, Tree]:
    graph, trained = nnx.split(LeNet5(rngs=nnx.Rngs(0)))
    return lambda trained, _, images: nnx.merge(graph, trained)(images), trained, ()


def frozen_resnet50(work: Work) -> tuple[Apply, Tree, Tree]:
    trunk_graph, frozen = nnx.split(made_trunk(work))
    head_graph, trained = nnx.split(nnx.Linear(2048, NUM_CLASSES, rngs=nnx.Rngs(0)))

    def apply(trained: Tree, frozen: Tree, images: jax.Array) -> jax.Array:
        features = jax.lax.stop_gradient(nnx.merge(trunk_graph, frozen)(images))
        return nnx.merge(head_graph, trained)(features)

    return apply, trained, frozen


def make_step(apply: Apply) -> Callable[..., tuple[Tree, Tree, jax.Array]]:
    """Give a step: trained values and optimizer state to new ones, the sum of losses grown."""

    def step(state: Tree, frozen: Tree, images: jax.Array, labels: jax.Array) -> Tree:
        trained, moments, total = state

        def loss_of(trained: Tree) -> jax.Array:
            logits = apply(trained, frozen, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, gradients = jax.value_and_grad(loss_of)(trained)
        updates, moments = OPTIMIZER.update(gradients, moments, trained)
        return optax.apply_updates(trained, updates), moments, total + loss

    return step


def epoch_in_steps(apply: Apply) -> Callable[..., Tree]:
    step = make_step(apply)

    @partial(jax.jit, donate_argnums=0)
    def jitted(state: Tree, frozen: Tree, images: Tree, labels: Tree, places: Tree) -> Tree:
        return step(state, frozen, images[places], labels[places])

    def epoch(state: Tree, frozen: Tree, images: Tree, labels: Tree, order: np.ndarray) -> Tree:
        for first in range(0, len(order), BATCH_SIZE):
            state = jitted(state, frozen, images, labels, order[first : first + BATCH_SIZE])
        return state

    return epoch


def epoch_in_a_scan(apply: Apply) -> Callable[..., Tree]:
    step = make_step(apply)

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: Tree, frozen: Tree, images: Tree, labels: Tree, order: Tree) -> Tree:
        def one(state: Tree, places: Tree) -> tuple[Tree, None]:
            return step(state, frozen, images[places], labels[places]), None

        num_whole = len(order) // BATCH_SIZE * BATCH_SIZE
        state, _ = jax.lax.scan(one, state, order[:num_whole].reshape(-1, BATCH_SIZE))
        return one(state, order[num_whole:])[0] if num_whole < len(order) else state

    return epoch


def make_accuracy(apply: Apply) -> Callable[..., float]:
    @jax.jit
    def num_correct(trained: Tree, frozen: Tree, images: Tree, labels: Tree) -> Tree:
        return (apply(trained, frozen, images).argmax(1) == labels).sum()

    def accuracy(trained: Tree, frozen: Tree, images: Tree, labels: Tree) -> float:
        parts = range(0, len(labels), BATCH_SIZE)
        batches = [(images[at : at + BATCH_SIZE], labels[at : at + BATCH_SIZE]) for at in parts]
        return sum(int(num_correct(trained, frozen, *batch)) for batch in batches) / len(labels)

    return accuracy


def main() -> None:
    work = given()
    draws = np.random.default_rng(0)
    apply, trained, frozen = frozen_resnet50(work) if work.is_frozen else lenet5()
    num_trained = sum(value.size for value in jax.tree.leaves(trained))
    epoch = {"steps": epoch_in_steps, "scan": epoch_in_a_scan}[work.variant](apply)
    accuracy = make_accuracy(apply)
    parts = [work.part(name) for name in ("train", "test")]
    train, test = (
        (jnp.asarray(part.images_channels_last), jnp.asarray(part.labels, jnp.int32))
        for part in parts
    )
    state = (trained, OPTIMIZER.init(trained), jnp.zeros(()))
    more = {}
    if work.is_frozen:
        # It compiles on few images: a whole epoch only for that would take long.
        started_at = perf_counter()
        few, few_tested = (part.num_to_compile for part in parts)
        state = epoch(state, frozen, *train, np.arange(few, dtype=np.int32))
        accuracy(state[0], frozen, *(values[:few_tested] for values in test))
        more["compile_s"] = perf_counter() - started_at
    seconds = []
    for _ in range(work.num_epochs):
        started_at = perf_counter()
        order = draws.permutation(len(train[1])).astype(np.int32)
        state = epoch(state, frozen, *train, order)
        # Reading the losses waits for the steps.
        float(state[2])
        if work.is_frozen:
            share = accuracy(state[0], frozen, *test)
        seconds.append(perf_counter() - started_at)
    if not work.is_frozen:
        share = accuracy(state[0], frozen, *test)
    answer(seconds=seconds, accuracy=share, num_trained=num_trained, **more)


if __name__ == "__main__":
    main()
