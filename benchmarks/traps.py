"""What the plain loop gets wrong without saying so, in figures: the numbers of docs/science.md.

    python benchmarks/traps.py WEIGHTS.pth [--write]
        [--only batchnorm dropout means selection resizing]

Real MNIST and torchvision's own networks throughout. WEIGHTS.pth: a state dict of a ResNet50 that
was trained on something else, whose BatchNorm has statistics to lose. VGG16's weights are random,
which Dropout does not mind. `selection` trains LeNet-5 with five seeds, four minutes on two cores;
the others take one together. --write puts what is printed into docs/science.md, and the two charts
beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from digits import first_digits
from machine import machine
from PIL import Image
from ratios import put_between
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torchvision.models import resnet50, vgg16

import heptad
from heptad.architectures.states import read_state
from heptad.recipe import RunOptions
from heptad.records import wilson_interval

DOCS = Path(__file__).parents[1] / "docs"
NUM_SEEDS, NUM_EPOCHS = 5, 10


def images_for(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Give the first training digits as a frozen network takes them: [N, 3, S, S], labels [N]."""
    images, labels = first_digits(count, 0)["train"]
    pixels = torch.from_numpy(images)[:, None]
    resized = interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    inputs = (resized.float() / 255 - 0.5) / 0.5
    return inputs.expand(-1, 3, -1, -1), torch.from_numpy(labels).long()


def frozen(network: nn.Module, last_layer: str, width: int) -> nn.Module:
    """Freeze a network as the textbook does, and give it a new last layer of ten classes."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    owner, _, name = last_layer.rpartition(".")
    setattr(network.get_submodule(owner), name, nn.Linear(width, 10))
    return network


def moved(before: Tensor, after: Tensor) -> float:
    """Give how far values moved, as a part of their own length."""
    return float((after - before).norm() / before.norm())


def batchnorm(weights: str, num_steps: int = 40) -> list[float]:
    """Train a frozen ResNet50 by the plain loop, and look at what must not move."""
    torch.manual_seed(0)
    network = resnet50()
    network.load_state_dict(
        {name: value.float() for name, value in read_state(Path(weights)).items()}
    )
    frozen(network, "fc", 2048)
    inputs, labels = images_for(64, 64 * num_steps)
    parameters = copy.deepcopy(dict(network.named_parameters()))
    buffers = copy.deepcopy(dict(network.named_buffers()))
    trunk = nn.Sequential(*list(network.children())[:-1], nn.Flatten())

    def features() -> Tensor:
        with torch.inference_mode():
            return trunk.eval()(inputs[:64])

    first = features()
    drift = [0.0]
    optimizer = torch.optim.Adam(network.fc.parameters(), lr=0.001)
    for step in range(num_steps):
        network.train()
        some = slice(64 * step, 64 * (step + 1))
        optimizer.zero_grad()
        cross_entropy(network(inputs[some]), labels[some]).backward()
        optimizer.step()
        drift.append(moved(first, features()))
    others = {n: p for n, p in network.named_parameters() if not n.startswith("fc.")}
    num_changed = sum(not torch.equal(parameters[name], value) for name, value in others.items())
    num_moved = sum(
        not torch.equal(buffers[name], value) for name, value in network.named_buffers()
    )
    print("BatchNorm: a frozen ResNet50 after a plain loop of", num_steps, "steps, batches of 64")
    print(f"  parameters outside of fc that moved     {num_changed} of {len(others)}")
    print(f"  buffers that moved                      {num_moved} of {len(buffers)}")
    for step in (1, 10, num_steps):
        print(f"  features of the same images, {step:2} steps   {drift[step]:.1%} off")
    # The plain loop's own arithmetic, the trunk in every step.
    recipe = heptad.load_recipe("resnet50", weights=weights, limit=64 * num_steps, epochs=1)
    cycle = heptad.prepare(recipe, RunOptions(trunk="off"))
    start = copy.deepcopy(dict(cycle.whole.network.named_buffers()))
    for _ in heptad.steps(cycle, heptad.Position(1)):
        pass
    ours = sum(not torch.equal(start[n], b) for n, b in cycle.whole.network.named_buffers())
    print(f"  buffers that moved in Heptad            {ours} of {len(start)}")
    return drift


def dropout(_: str, num_passes: int = 200) -> None:
    """Ask a frozen VGG16 in training mode about one image again and again."""
    torch.manual_seed(0)
    network = frozen(vgg16(), "classifier.6", 4096)
    inputs, _ = images_for(224, 1)
    with torch.inference_mode():
        network.eval()
        last = network.classifier[:6]
        pooled = network.avgpool(network.features(inputs)).flatten(1)
        at_test = last(pooled)
        last.train()
        passes = torch.cat([last(pooled) for _ in range(num_passes)])
    off = statistics.median(moved(at_test[0], each) for each in passes)
    zero = float((passes == 0).float().mean() - (at_test == 0).float().mean())
    print("Dropout: one image through a frozen VGG16 in training mode,", num_passes, "times")
    print(f"  what the last layer is given            {off:.0%} off what it is given in the test")
    print(f"  values that Dropout alone makes 0       {zero:.0%}")


def means(_: str) -> None:
    """Average losses by batches and by images, where the last batch is short."""
    losses = torch.tensor([*[0.1] * 64, 5.0])
    by_batches = torch.stack([batch.mean() for batch in losses.split(64)]).mean()
    print("Means: 64 images with a loss of 0.1, and one of 5.0 alone in the last batch")
    print(f"  mean of batch means                     {by_batches:.3f}")
    print(f"  mean over images                        {losses.mean():.3f}")


def selection(_: str) -> list[list[float]]:
    """Train LeNet-5 with several seeds, and take the last epoch, or the best one by the test."""
    curves = []
    for seed in range(NUM_SEEDS):
        cycle = heptad.prepare(heptad.load_recipe("lenet5", seed=seed, epochs=NUM_EPOCHS))
        curves.append([100 * report.scores.accuracy for report in heptad.epochs(cycle)])
    last, best = [curve[-1] for curve in curves], [max(curve) for curve in curves]
    low, high = wilson_interval(round(100 * statistics.mean(last)), 10_000)
    print(
        f"Selection: LeNet-5, {NUM_EPOCHS} epochs, seeds 0 to {NUM_SEEDS - 1}, % of the test images"
    )
    for name, values in (("the last epoch", last), ("the best epoch by the test images", best)):
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"  {name:38}  {statistics.mean(values):.2f} ({spread})")
    print(f"  95 % interval of the first over images  {100 * low:.2f} to {100 * high:.2f}")
    return curves


def resizing(_: str) -> None:
    """Make a picture of many digits small, with and without antialiasing."""
    images, _ = first_digits(64, 0)["train"]
    sheet = images.reshape(8, 8, 28, 28).transpose(0, 2, 1, 3).reshape(224, 224)
    pillow = Image.fromarray(sheet).resize((64, 64), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.asarray(pillow).copy()).double()
    pixels = torch.from_numpy(sheet)[None, None]
    print("Resizing: 224 to 64 pixels, against Pillow, which torchvision's recipes use")
    for name, antialias in (("tensors, antialias=False", False), ("tensors, antialias=True", True)):
        small = interpolate(pixels, size=(64, 64), mode="bilinear", antialias=antialias)[0, 0]
        off = (small.double() - expected).abs()
        share = (off > 0).double().mean()
        print(f"  {name:38}  {share:.0%} of pixels differ, by up to {off.max():.0f}")


def chart_of_drift(drift: list[float]) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    axes.plot([100 * value for value in drift], color="#d55e00", label="plain loop: model.train()")
    axes.axhline(0, color="#0072b2", label="statistics held (Heptad)")
    axes.set(xlabel="training step", ylabel="change of the features, %")
    axes.set_title("A frozen ResNet50 whose features move", loc="left")
    axes.legend(frameon=False)
    _save(figure, "science_batchnorm.png")


def chart_of_seeds(curves: list[list[float]]) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    epochs = range(1, NUM_EPOCHS + 1)
    for curve in curves:
        axes.plot(epochs, curve, color="#56b4e9", linewidth=1)
        best = max(curve)
        axes.plot(curve.index(best) + 1, best, "o", color="#d55e00")
        axes.plot(NUM_EPOCHS, curve[-1], "o", color="#0072b2")
    axes.plot([], [], "o", color="#d55e00", label="best epoch, chosen by the test images")
    axes.plot([], [], "o", color="#0072b2", label="last epoch")
    axes.set(xlabel="epoch", ylabel="test accuracy, %")
    axes.set_title("One recipe, five seeds", loc="left")
    axes.legend(frameon=False, loc="lower right")
    _save(figure, "science_selection.png")


def _save(figure: plt.Figure, name: str) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / name, dpi=150)
    plt.close(figure)


CHARTS: dict[str, Callable] = {"batchnorm": chart_of_drift, "selection": chart_of_seeds}
TRAPS: dict[str, Callable] = {
    "batchnorm": batchnorm,
    "dropout": dropout,
    "means": means,
    "resizing": resizing,
    "selection": selection,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("--only", nargs="+", choices=TRAPS, default=[*TRAPS])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    for name in options.only:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            found = TRAPS[name](options.weights)
        print(printed.getvalue(), flush=True)
        if options.write:
            put_between(DOCS / "science.md", name, f"```text\n{printed.getvalue().rstrip()}\n```")
            if name in CHARTS:
                CHARTS[name](found)
    if options.write:
        where = machine(torch.get_num_threads())
        said = f"`python benchmarks/traps.py WEIGHTS.pth --write` on {where}."
        put_between(DOCS / "science.md", "machine", said)


if __name__ == "__main__":
    main()
