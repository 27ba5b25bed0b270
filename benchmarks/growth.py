"""How time and memory of Heptad grow: three sizes of data, three numbers of epochs.

    python benchmarks/growth.py [--write]

LeNet-5, which learns from scratch, and a frozen ResNet50 with made weights, whose trunk runs once
over each image, from an empty cache. Each training is a process of its own, scored on as many test
images throughout. Prints a table: seconds from before the data are read to the last evaluation,
those of the trunk's pass in them, and the most anonymous memory that the process held (Linux).

--write puts the table into docs/benchmarks.md and the curves into docs/growth.png.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from time import perf_counter

import numpy as np
from digits import first_digits, write_idx
from machine import machine, versions
from memory import PeakMemory
from PIL import Image
from ratios import put_between, table

import heptad
from heptad.recipe import RunOptions

DOCS = Path(__file__).parents[1] / "docs"
TITLES = {"lenet5": "LeNet-5", "resnet50": "frozen ResNet50"}
EPOCHS = {"lenet5": (1, 2, 4), "resnet50": (5, 10, 20)}
NUM_IMAGES = {"lenet5": (10_000, 20_000, 40_000), "resnet50": (500, 1000, 2000)}
QUICK_NUM_IMAGES = {"lenet5": (500, 1000, 2000), "resnet50": (50, 100, 200)}
NUM_TEST = {"lenet5": 1000, "resnet50": 100}


@dataclass(frozen=True)
class Training:
    """One training, and what it took. pass_s: 0 where there is no trunk."""

    num_images: int
    num_epochs: int
    seconds: float
    pass_s: float
    memory_mb: float


def train(name: str, digits: Path, num_epochs: int, threads: int) -> None:
    """Train in this process; print what it took, but for imports, as JSON."""
    if name != "lenet5":
        # Heptad imports it when a network of it is first built.
        import torchvision.models  # noqa: F401
    memory = PeakMemory()
    weights = {} if name == "lenet5" else {"weights": "none"}
    recipe = heptad.load_recipe(name, data=str(digits), epochs=num_epochs, **weights)
    started_at = perf_counter()
    cycle = heptad.prepare(recipe, RunOptions(threads=threads))
    for _ in heptad.epochs(cycle):
        pass
    seconds = perf_counter() - started_at
    memory_mb = 1000 * memory.peak_gb
    print(json.dumps({"seconds": seconds, "pass_s": cycle.trunk_seconds, "memory_mb": memory_mb}))


def measure(name: str, sizes: tuple[int, ...], threads: int) -> list[Training]:
    """Train once for each size and number of epochs, each in a process of its own."""
    found = []
    with tempfile.TemporaryDirectory(prefix="heptad-growth-") as scratch:
        for num_images in sizes:
            digits = Path(scratch) / str(num_images)
            write_idx(digits, first_digits(num_images, NUM_TEST[name]))
            for num_epochs in EPOCHS[name]:
                cache = Path(scratch) / f"cache-{num_images}-{num_epochs}"
                words = ["--one", name, str(digits), str(num_epochs), "--threads", str(threads)]
                done = subprocess.run(
                    [sys.executable, __file__, *words],
                    env=os.environ | {"HEPTAD_HOME": str(cache), "CUDA_VISIBLE_DEVICES": ""},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                found.append(Training(num_images, num_epochs, **json.loads(done.stdout)))
                print(name, found[-1], file=sys.stderr)
    return found


def table_of(name: str, trainings: list[Training]) -> str:
    """Lay out the trainings of one network, and say how straight and how flat they are."""
    has_trunk = trainings[0].pass_s > 0
    rows = []
    for one in trainings:
        row = [f"{one.num_images:,}", str(one.num_epochs), f"{one.seconds:.2f} s"]
        if has_trunk:
            row += [f"{one.pass_s:.2f} s", f"{one.seconds - one.pass_s:.2f} s"]
        rows.append([*row, f"{one.memory_mb:.0f} MB"])
    of_the_trunk = ["the pass", "the rest"] if has_trunk else []
    header = ["images", "epochs", "in all", *of_the_trunk, "memory"]
    parts = [
        f"**{TITLES[name]}**, {NUM_TEST[name]:,} test images",
        table(header, rows),
        straight_line(trainings, EPOCHS[name][-1]),
    ]
    return "\n\n".join([*parts, flatness(trainings)] if has_trunk else parts)


def straight_line(trainings: list[Training], num_epochs: int) -> str:
    """Fit a line through the seconds against the images; say how far the points are from it."""
    few = [one for one in trainings if one.num_epochs == num_epochs]
    images, seconds = [one.num_images for one in few], [one.seconds for one in few]
    slope, start = np.polyfit(images, seconds, 1)
    fitted = start + slope * np.array(images)
    farthest = np.abs(seconds / fitted - 1).max()
    return (
        f"With {num_epochs} epochs: {start:.2f} s and {1000 * slope:.2f} ms an image; no point lies"
        f" farther than {100 * farthest:.1f} % from that line."
    )


def flatness(trainings: list[Training]) -> str:
    """Compare the passes of as many images between numbers of epochs."""
    sizes = sorted({one.num_images for one in trainings})
    passes = {size: [one.pass_s for one in trainings if one.num_images == size] for size in sizes}
    said = [
        f"{min(few):.2f} to {max(few):.2f} s for {size:,} images" for size, few in passes.items()
    ]
    return f"The pass, whatever the epochs: {', '.join(said)}."


def plot(trainings: dict[str, list[Training]], path: Path) -> None:
    """Draw time against images and against epochs, and memory against images, a row a network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(
        len(trainings), 3, figsize=(9, 2.7 * len(trainings)), layout="constrained", squeeze=False
    )
    for axes, (name, found) in zip(rows, trainings.items(), strict=True):
        for num_epochs in EPOCHS[name]:
            few = [one for one in found if one.num_epochs == num_epochs]
            images = [one.num_images for one in few]
            label = f"{num_epochs} epoch{'s' * (num_epochs > 1)}"
            axes[0].plot(images, [one.seconds for one in few], "o-", markersize=4, label=label)
            axes[2].plot(images, [one.memory_mb for one in few], "o-", markersize=4, label=label)
        for num_images in sorted({one.num_images for one in found}):
            few = [one for one in found if one.num_images == num_images]
            epochs, label = [one.num_epochs for one in few], f"{num_images:,} images"
            [line] = axes[1].plot(
                epochs, [one.seconds for one in few], "o-", markersize=4, label=label
            )
            if few[0].pass_s:
                passes = [one.pass_s for one in few]
                axes[1].plot(epochs, passes, ":", color=line.get_color())
        note = "  (dotted: the pass alone)" if found[0].pass_s else ""
        axes[0].set(title=f"{TITLES[name]}: time", xlabel="training images", ylabel="s")
        axes[1].set(title=f"time{note}", xlabel="epochs", ylabel="s")
        axes[2].set(title="anonymous memory", xlabel="training images", ylabel="MB")
        for axis in axes:
            axis.set_ylim(0, 1.4 * axis.get_ylim()[1])
            axis.title.set_fontsize(10)
            axis.legend(fontsize=8, frameon=False)
        for axis in (axes[0], axes[2]):
            axis.set_xlim(left=0)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=80)
    # A palette makes the file three times smaller.
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few images, to try it out")
    parser.add_argument("--plot", type=Path, help="where the curves go without --write")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, digits, num_epochs = options.one
        train(name, Path(digits), int(num_epochs), options.threads)
        return
    if options.write and options.quick:
        parser.error("--write is for a run without --quick.")
    all_sizes = QUICK_NUM_IMAGES if options.quick else NUM_IMAGES
    trainings = {name: measure(name, sizes, options.threads) for name, sizes in all_sizes.items()}
    command = shlex.join(["python", "benchmarks/growth.py", *sys.argv[1:]])
    text = "\n\n".join(
        [
            f"`{command}`, {machine(options.threads)}; {versions(['heptad', 'torch'])}.",
            *(table_of(name, found) for name, found in trainings.items()),
        ]
    )
    print(text)
    if options.plot:
        plot(trainings, options.plot)
    if options.write:
        plot(trainings, DOCS / "growth.png")
        picture = "![Time and memory against images and epochs](growth.png)"
        put_between(DOCS / "benchmarks.md", "growth", f"{text}\n\n{picture}")


if __name__ == "__main__":
    main()
