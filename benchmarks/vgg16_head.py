"""VGG16's head on as many rows as MNIST has, and its pass on a few images.

The pass over all of MNIST takes hours on two cores and is not run here: it is timed on some images.
The head (both Dropouts, the frozen Linear and the last layer) is trained for an epoch on 60,000
rows that are made up, in shards as a pass writes them. Weights are random in both.

    python benchmarks/vgg16_head.py [--images 300] [--rows 60000]

Prints images/s of the pass, seconds of the head's epoch, and the most anonymous memory of each.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from memory import PeakMemory

import heptad
from heptad.cycle import preparing
from heptad.features.trunk import FeatureSource
from heptad.records import PassReport, Position
from heptad.stores import KEY, find_rows, write_shard

ROWS_IN_A_SHARD = 4000


def made_rows(folder: Path, num_rows: int, source: FeatureSource) -> FeatureSource:
    """Give a source of made-up features in many shards, like `source` otherwise."""
    draws = np.random.default_rng(0)
    shards, keys = [], []
    for first in range(0, num_rows, ROWS_IN_A_SHARD):
        count = min(ROWS_IN_A_SHARD, num_rows - first)
        features = draws.standard_normal((count, 4096), np.float32)
        names = np.frombuffer(draws.bytes(32 * count), KEY)
        shards.append(write_shard(folder, np.maximum(features, 0), names, engine="made"))
        keys.append(names)
    rows, lacking = find_rows(shards, np.concatenate(keys))
    assert not len(lacking)
    labels = torch.from_numpy(draws.integers(0, 10, num_rows))
    return dataclasses.replace(source, rows=rows, labels=labels, ids=torch.arange(num_rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rows", type=int, default=60_000)
    options = parser.parse_args()
    memory = PeakMemory()
    with tempfile.TemporaryDirectory() as scratch:
        recipe = heptad.load_recipe("vgg16", weights="none", limit=options.images // 2)
        reports = []
        for made in preparing(recipe):
            if isinstance(made, PassReport):
                reports.append(made)
            else:
                cycle = made
        if not reports:
            raise SystemExit("the features are kept already: `heptad cache clear`, then again")
        last = reports[-1]
        speed = last.num_done / last.seconds
        print(f"the pass: {last.num_done} images, {speed:.2f} images/s, {memory.peak_gb:.2f} GB")
        memory.peak_gb = 0.0
        train = made_rows(Path(scratch), options.rows, cycle.sources.train)
        cycle.sources = dataclasses.replace(cycle.sources, train=train)
        memory.peak_gb = 0.0
        started_at = time.perf_counter()
        for step in heptad.steps(cycle, Position(1)):
            step.loss  # noqa: B018 - read, as every training reads it
        elapsed_s = time.perf_counter() - started_at
        print(
            f"an epoch of the head on {options.rows:,} rows: {elapsed_s:.1f} s,"
            f" {memory.peak_gb:.2f} GB"
        )


if __name__ == "__main__":
    main()
