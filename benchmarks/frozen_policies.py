"""What the policies of the frozen part do: BatchNorm's three to accuracy, Dropout's two to time.

    python benchmarks/frozen_policies.py WEIGHTS.pth [--limit 2000] [--seeds 3] [--epochs 5]

WEIGHTS.pth: a state dict of a ResNet50 that was trained on something else, so that there is
something to transfer; its last layer is replaced or kept as `heptad train` does. Prints the test
accuracy after the first and the last epoch for each policy, mean and range over the seeds, and the
seconds of the pass and of the epochs. VGG16's two Dropout policies are timed with random weights on
few images: what is compared is a step of the head, with and without the frozen Linear in it.
"""

from __future__ import annotations

import argparse
import statistics

import heptad
from heptad.records import Position

POLICIES = ("frozen", "recalibrated", "drifting")


def batchnorm_row(weights: str, policy: str, limit: int, seeds: int, epochs: int) -> str:
    firsts, lasts, passes, trainings = [], [], [], []
    for seed in range(seeds):
        recipe = heptad.load_recipe(
            "resnet50", weights=weights, batchnorm=policy, limit=limit, seed=seed, epochs=epochs
        )
        cycle = heptad.prepare(recipe)
        reports = list(heptad.epochs(cycle))
        firsts.append(100 * reports[0].scores.accuracy)
        lasts.append(100 * reports[-1].scores.accuracy)
        passes.append(cycle.trunk_seconds)
        trainings.append(sum(report.seconds for report in reports))

    def said(values: list[float]) -> str:
        return f"{statistics.mean(values):5.1f} ({min(values):.1f} to {max(values):.1f})"

    return (
        f"{policy:14} {said(firsts):24} {said(lasts):24}"
        f" {statistics.median(passes):8.1f} s {statistics.median(trainings):8.1f} s"
    )


def dropout_row(policy: str) -> str:
    recipe = heptad.load_recipe("vgg16", weights="none", limit=64, frozen_dropout=policy, epochs=4)
    cycle = heptad.prepare(recipe)
    list(heptad.steps(cycle, Position(1)))
    seconds = [report.train_seconds for report in heptad.epochs(cycle)]
    return f"{policy:14} {cycle.trunk:36} {1000 * statistics.median(seconds[1:]):6.1f} ms a step"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    print(f"ResNet50 at 64 px, at most {options.limit} training and test images of MNIST each")
    print(f"{'batchnorm':14} {'accuracy after 1 epoch':24} {'after the last':24} pass, training")
    for policy in POLICIES:
        row = batchnorm_row(options.weights, policy, options.limit, options.seeds, options.epochs)
        print(row, flush=True)
    print("VGG16 at 224 px, random weights, one batch of 64")
    print(f"{'frozen_dropout':14} {'trunk':36} training")
    for policy in ("on", "off"):
        print(dropout_row(policy), flush=True)


if __name__ == "__main__":
    main()
