"""What training more than the last layer of ResNet50 gives, and what it costs.

    python benchmarks/finetuning.py WEIGHTS.pth [--limit 2000] [--validation 500] [--seeds 1]

WEIGHTS.pth: a state dict of a ResNet50 that was trained on something else. First its last layer is
trained on kept features, as `resnet50` does; then, from there, the last block on kept features, and
the whole network, as `resnet50-finetune` does, each with BatchNorm of the trained part moving and
held. Prints the accuracy on validation images - the test images are not looked at - and seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import heptad
from heptad.records import EpochReport
from heptad.stages.saving import save_weights

WAYS: dict[str, dict[str, Any]] = {
    "last-block, BatchNorm moving": {"trainable": "last-block", "batchnorm": "frozen"},
    "last-block, BatchNorm held": {"trainable": "last-block", "batchnorm": "held"},
    "all, BatchNorm moving": {"trainable": "all", "batchnorm": "frozen"},
    "all, BatchNorm held": {"trainable": "all", "batchnorm": "held"},
}


def trained(recipe: heptad.Recipe) -> tuple[heptad.Cycle, EpochReport, float]:
    """Train to the last epoch, without the test; give the cycle, that epoch, and the seconds."""
    cycle = heptad.prepare(recipe)
    seconds = cycle.trunk_seconds
    for report in heptad.epochs(cycle):
        seconds += report.seconds
        if report.epoch == recipe.epochs:
            break
    return cycle, report, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    given = {"limit": options.limit, "validation": options.validation}
    rows: dict[str, list[tuple[float, float]]] = {"last-layer": []}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            head = heptad.load_recipe("resnet50", weights=options.weights, seed=seed, **given)
            cycle, report, seconds = trained(head)
            rows["last-layer"].append((report.scores.accuracy, seconds))
            start = Path(folder) / "head.pth"
            save_weights(start, cycle.whole.network)
            for name, settings in WAYS.items():
                recipe = heptad.load_recipe(
                    "resnet50-finetune", weights=str(start), seed=seed, **given, **settings
                )
                _, report, seconds = trained(recipe)
                rows.setdefault(name, []).append((report.scores.accuracy, seconds))
    print(f"ResNet50 at 64 px, {options.limit - options.validation} training images of MNIST,")
    print(f"{options.validation} validation images, {options.seeds} seeds; the mean of each")
    for name, found in rows.items():
        accuracy, seconds = map(statistics.mean, zip(*found, strict=True))
        print(f"{name:30} {100 * accuracy:5.1f} %  {seconds:6.1f} s")


if __name__ == "__main__":
    main()
