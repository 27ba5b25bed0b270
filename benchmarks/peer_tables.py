"""The tables of benchmarks/against_peers.py, from the answers of its peers."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers.work import LENGTHS
from ratios import fastest, ratios, table, with_spread


@dataclass(frozen=True)
class Measured:
    """Answers by peer, one a round. ours: the name that the others are divided by.

    sizes: training and test images. folder: where features were left.
    """

    ours: str
    answers: dict[str, list[dict[str, Any]]]
    sizes: tuple[int, int]
    folder: Path

    def seconds(self, name: str, epoch: int = -1) -> list[float]:
        """Give the seconds of an epoch in each round; the last is the one compared."""
        return [answer["seconds"][epoch] for answer in self.answers[name]]

    def each(self, name: str, value: str) -> list[float]:
        """Give another value of each round."""
        return [answer[value] for answer in self.answers[name]]

    @property
    def others(self) -> list[str]:
        return [name for name in self.answers if name != self.ours]

    def check_trained(self, num_parameters: int) -> None:
        """Make sure that all trained as many parameters."""
        for name in self.answers:
            found = set(self.each(name, "num_trained"))
            assert found == {num_parameters}, f"{name} trained {found} parameters"

    def accuracy(self, name: str) -> str:
        return f"{100 * statistics.median(self.each(name, 'accuracy')):.1f} %"


def lenet5_table(measured: Measured) -> str:
    """Compare the epochs after the first, in which some compile and all warm up."""
    measured.check_trained(61_706)
    ours = measured.seconds(measured.ours)
    rows = [
        (
            name,
            with_spread(measured.seconds(name, 0), 2, " s"),
            with_spread(measured.seconds(name), 2, " s"),
            with_spread(ratios(measured.seconds(name), ours), 2),
            measured.accuracy(name),
        )
        for name in measured.answers
    ]
    header = ("", "first epoch", "an epoch after it", f"× {measured.ours}", "accuracy after 2")
    num_train, num_test = measured.sizes
    return (
        "### An epoch of LeNet-5\n\n"
        f"{num_train:,} training images of MNIST in batches of 64, Adam; no test in an epoch. The"
        " plain loops resize by PIL in every epoch, unless their tensors are in memory; for all"
        f" others images were resized before, untimed. Accuracy: of {num_test:,} test images."
        f"\n\n{table(header, rows)}"
    )


def resnet50_table(measured: Measured) -> str:
    """Compare epochs times one with what Heptad took from its preparation to its last score."""
    measured.check_trained(20_490)
    ours = {
        length: [
            prepared_s + sum(answer["seconds"][:length])
            for prepared_s, answer in zip(
                measured.each(measured.ours, "prepared_s"),
                measured.answers[measured.ours],
                strict=True,
            )
        ]
        for length in LENGTHS
    }
    rows = []
    for name in measured.others:
        epochs = measured.seconds(name)
        compared = [
            with_spread(ratios([length * epoch_s for epoch_s in epochs], ours[length]), 1)
            for length in LENGTHS
        ]
        compiles = "compile_s" in measured.answers[name][0]
        rows.append(
            (
                name,
                with_spread(measured.each(name, "compile_s"), 1, " s") if compiles else "",
                with_spread(epochs, 1, " s"),
                *compared,
                measured.accuracy(name),
            )
        )
    header = (
        "",
        "to compile",
        "an epoch",
        *(f"{length} epochs, × {measured.ours}" for length in LENGTHS),
        "accuracy",
    )
    num_train, num_test = measured.sizes
    return (
        "### A frozen ResNet50\n\n"
        f"{num_train:,} training images at 64 pixels in batches of 64, the same made weights, a new"
        f" last layer; {num_test:,} test images after each epoch, which are part of it. A peer's"
        " epochs are all alike, so one a round was timed, and a ratio takes it times their number,"
        " without what it took to compile."
        f" {measured.ours} was timed over all of them, from an empty cache, the reading of data and"
        f" weights and the pass included: {LENGTHS[0]} epochs {with_spread(ours[5], 2, ' s')},"
        f" {LENGTHS[1]} epochs {with_spread(ours[20], 2, ' s')}; its accuracy is that of the last,"
        f" {measured.accuracy(measured.ours)}, the others' that of the only ones they ran."
        f"\n\n{table(header, rows)}\n\n{_fastest_line(measured, ours[5])}\n\n"
        f"{_pass_line(measured)}"
    )


def _fastest_line(measured: Measured, ours: list[float]) -> str:
    found = {
        name: ratios([5 * epoch_s for epoch_s in measured.seconds(name)], ours)
        for name in measured.others
    }
    name = fastest(found)
    return (
        f"The fastest of them is {name}: 5 epochs take {with_spread(found[name], 1)} times as long."
    )


def _pass_line(measured: Measured) -> str:
    num_images = sum(measured.sizes)
    rates = [num_images / pass_s for pass_s in measured.each(measured.ours, "pass_s")]
    plain = [num_images / epoch_s for epoch_s in measured.seconds("plain loop")]
    return (
        f"The pass alone: {with_spread(rates, 0)} images/s; an epoch of the plain loop, training"
        f" and test: {with_spread(plain, 0)}. {with_spread(ratios(rates, plain), 2)} times as many."
    )


def vgg16_table(measured: Measured) -> str:
    """Compare one pass over the images, and the features with those of the network as it is."""
    num_images, _ = measured.sizes
    ours = measured.seconds(measured.ours)
    variants = {measured.ours: "rewritten"}
    expected = np.load(measured.folder / "the network as it is.npy")
    rows = []
    for name in measured.answers:
        features = np.load(measured.folder / f"{variants.get(name, name)}.npy")
        difference = np.abs(features - expected).max() / np.abs(expected).max()
        assert difference < 1e-4, f"the features of {name} are others, by {difference:.0e}"
        seconds = measured.seconds(name)
        rows.append(
            (
                name,
                with_spread([num_images / elapsed_s for elapsed_s in seconds], 2),
                with_spread(ratios(seconds, ours), 2),
                f"{statistics.median(measured.each(name, 'made_s')):.1f} s",
                f"{difference:.0e}",
            )
        )
    header = ("", "images/s", f"time × {measured.ours}", "before the first batch", "difference")
    return (
        "### VGG16's pass\n\n"
        f"The trunk, made weights, over {num_images} images at 224 pixels. Before"
        " the first batch: rewriting or converting, and one batch to warm up. Difference: from the"
        f" network as it is, of the largest feature.\n\n{table(header, rows)}"
    )


TABLES: dict[str, Callable[[Measured], str]] = {
    "lenet5": lenet5_table,
    "resnet50": resnet50_table,
    "vgg16": vgg16_table,
}
