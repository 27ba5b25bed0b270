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
from collections.abc import Callable, Iterable, Iterator
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
NUM_STEPS = 40
# Of Okabe & Ito.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00")


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


def drift_of(network: nn.Module, inputs: Tensor, steps: Iterable[object]) -> list[float]:
    """Take steps, and give how far the features of some images are off before and after each."""
    trunk = nn.Sequential(*list(network.children())[:-1], nn.Flatten())

    def features() -> Tensor:
        modes = {module: module.training for module in network.modules()}
        with torch.inference_mode():
            found = trunk.eval()(inputs)
        for module, mode in modes.items():
            module.training = mode
        return found

    first = features()
    return [0.0, *(moved(first, features()) for _ in steps)]


def num_moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> str:
    return f"{sum(not torch.equal(before[n], after[n]) for n in after)} of {len(after)}"


def batchnorm(weights: str) -> dict[str, list[float]]:
    """Train a frozen ResNet50 by the plain loop and by Heptad; look at what must not move."""
    torch.manual_seed(0)
    network = resnet50()
    state = read_state(Path(weights))
    network.load_state_dict({name: value.float() for name, value in state.items()})
    frozen(network, "fc", 2048)
    inputs, labels = images_for(64, 64 * NUM_STEPS)
    others = {n: p for n, p in network.named_parameters() if not n.startswith("fc.")}
    before = copy.deepcopy((others, dict(network.named_buffers())))
    optimizer = torch.optim.Adam(network.fc.parameters(), lr=0.001)

    def plain_loop() -> Iterator[int]:
        for step in range(NUM_STEPS):
            network.train()
            some = slice(64 * step, 64 * (step + 1))
            optimizer.zero_grad()
            cross_entropy(network(inputs[some]), labels[some]).backward()
            optimizer.step()
            yield step

    drift = drift_of(network, inputs[:64], plain_loop())
    # The plain loop's own arithmetic, the trunk in every step.
    recipe = heptad.load_recipe("resnet50", weights=weights, limit=64 * NUM_STEPS, epochs=1)
    cycle = heptad.prepare(recipe, RunOptions(trunk="off"))
    ours = cycle.whole.network
    start = copy.deepcopy(dict(ours.named_buffers()))
    held = drift_of(ours, inputs[:64], heptad.steps(cycle, heptad.Position(1)))
    print(f"BatchNorm: a frozen ResNet50 after a plain loop of {NUM_STEPS} steps, batches of 64")
    print(f"  parameters outside of fc that moved     {num_moved(before[0], others)}")
    buffers = dict(network.named_buffers())
    print(f"  buffers that moved                      {num_moved(before[1], buffers)}")
    for step in (1, 10, NUM_STEPS):
        print(f"  features of the same images, {step:2} steps   {drift[step]:.1%} off")
    print(
        f"  buffers that moved in Heptad            {num_moved(start, dict(ours.named_buffers()))}"
    )
    print(f"  features in Heptad, {NUM_STEPS} steps            {max(held):.1%} off")
    return {"plain loop: model.train()": drift, "Heptad": held}


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


def resizing(_: str) -> dict[str, np.ndarray]:
    """Make a picture of many digits small, with and without antialiasing."""
    images, _labels = first_digits(64, 0)["train"]
    sheet = images.reshape(8, 8, 28, 28).transpose(0, 2, 1, 3).reshape(224, 224)
    pillow = Image.fromarray(sheet).resize((64, 64), Image.Resampling.BILINEAR)
    pictures = {"64 digits, 224 pixels": sheet, "Pillow, 64 pixels": np.asarray(pillow)}
    pixels = torch.from_numpy(sheet)[None, None]
    print("Resizing: 224 to 64 pixels, against Pillow, which torchvision's recipes use")
    for name, antialias in (("tensors, antialias=False", False), ("tensors, antialias=True", True)):
        small = interpolate(pixels, size=(64, 64), mode="bilinear", antialias=antialias)[0, 0]
        off = np.abs(small.numpy().astype(float) - np.asarray(pillow))
        print(f"  {name:38}  {(off > 0).mean():.0%} of pixels differ, by up to {off.max():.0f}")
        pictures.setdefault("a tensor's default, 64 pixels", small.numpy())
    return pictures


def chart_of_drift(drifts: dict[str, list[float]]) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for (name, drift), colour in zip(drifts.items(), ("#d55e00", "#0072b2"), strict=True):
        axes.plot([100 * value for value in drift], color=colour, label=name)
    axes.set(xlabel="training step", ylabel="change of the features,\n% of their length")
    axes.set_title("A frozen ResNet50 whose features move, and one whose do not", loc="left")
    axes.legend(frameon=False)
    _save(figure, "science_batchnorm.png")


def chart_of_seeds(curves: list[list[float]]) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    epochs = range(1, NUM_EPOCHS + 1)
    for seed, (curve, colour) in enumerate(zip(curves, COLOURS, strict=True)):
        axes.plot(epochs, curve, color=colour, linewidth=1.2, label=f"seed {seed}")
        best = max(curve)
        axes.plot(curve.index(best) + 1, best, "o", color=colour, markerfacecolor="white")
        axes.plot(NUM_EPOCHS, curve[-1], "o", color=colour)
    axes.plot([], [], "o", color="#555", markerfacecolor="white", label="best by the test")
    axes.plot([], [], "o", color="#555", label="last epoch")
    axes.set(xlabel="epoch", ylabel="test accuracy, %")
    axes.set_title("One recipe, five seeds", loc="left")
    axes.legend(frameon=False, loc="lower right", ncols=2)
    _save(figure, "science_selection.png")


def chart_of_sizes(pictures: dict[str, np.ndarray]) -> None:
    figure, all_axes = plt.subplots(1, len(pictures), figsize=(6.4, 2.4), layout="constrained")
    for axes, (name, pixels) in zip(all_axes, pictures.items(), strict=True):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    _save(figure, "science_resizing.png")


def _save(figure: plt.Figure, name: str) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / name, dpi=150)
    plt.close(figure)


CHARTS: dict[str, Callable] = {
    "batchnorm": chart_of_drift,
    "resizing": chart_of_sizes,
    "selection": chart_of_seeds,
}
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
