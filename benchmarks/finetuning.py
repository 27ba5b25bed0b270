"""What training more than the last layer of ResNet50 gives, and what it costs.

    python benchmarks/finetuning.py WEIGHTS.pth [--limit 1000] [--validation 400] [--seeds 1]

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
from heptad.stages.saving import save_weights

WAYS: dict[str, dict[str, Any]] = {
    "last-block, BatchNorm moving": {"trainable": "last-block", "batchnorm": "frozen"},
    "last-block, BatchNorm held": {"trainable": "last-block", "batchnorm": "held"},
    "all, BatchNorm moving": {"trainable": "all", "batchnorm": "frozen"},
    "all, BatchNorm held": {"trainable": "all", "batchnorm": "held"},
}


def said(name: str, recipe: heptad.Recipe) -> heptad.Cycle:
    """Train to the last epoch, without the test, and print what came of it."""
    cycle = heptad.prepare(recipe)
    seconds = []
    for report in heptad.epochs(cycle):
        seconds.append(report.seconds)
        if report.epoch == recipe.epochs:
            break
    print(
        f"{name:30} seed {recipe.seed}  {100 * report.scores.accuracy:5.1f} %"
        f"  the pass {cycle.trunk_seconds:5.1f} s, an epoch {statistics.median(seconds):5.1f} s",
        flush=True,
    )
    return cycle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    given = {"limit": options.limit, "validation": options.validation}
    print(f"ResNet50 at 64 px, {options.limit - options.validation} training images of MNIST,")
    print(f"{options.validation} validation images, after the last epoch")
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            head = heptad.load_recipe("resnet50", weights=options.weights, seed=seed, **given)
            start = Path(folder) / "head.pth"
            save_weights(start, said("last-layer", head).whole.network)
            for name, settings in WAYS.items():
                said(
                    name,
                    heptad.load_recipe(
                        "resnet50-finetune", weights=str(start), seed=seed, **given, **settings
                    ),
                )


if __name__ == "__main__":
    main()
