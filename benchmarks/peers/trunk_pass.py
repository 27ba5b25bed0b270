"""VGG16's trunk over images, one of the ways of benchmarks/engines.py, which the variant names.

An epoch is one pass over all images in the batches of Heptad's own, features kept in memory; before
the first the way is made and computes one batch. Heptad's way keeps the memory that it frees, as
its pass does. The features are left in the folder, to be compared.
"""

from __future__ import annotations

from contextlib import nullcontext
from time import perf_counter

import numpy as np
import torch
from engines import SIZES, WAYS, made_trunk
from peers.work import answer, given

from heptad.features.memory import freed_memory_kept
from heptad.features.trunk import images_at_a_time


def main() -> None:
    work = given()
    size, _ = SIZES["vgg16"]
    batches = torch.from_numpy(work.part("train").images).split(images_at_a_time(size))
    memory = freed_memory_kept() if work.variant == "rewritten" else nullcontext()
    with torch.inference_mode(), memory:
        trunk = made_trunk("vgg16")
        started_at = perf_counter()
        compute = WAYS[work.variant](trunk, batches[0])
        compute(batches[0])
        made_s = perf_counter() - started_at
        seconds = []
        for _ in range(work.num_epochs):
            started_at = perf_counter()
            # OpenVINO gives out the memory that its next answer is written to.
            features = [compute(images).clone() for images in batches]
            seconds.append(perf_counter() - started_at)
    np.save(work.folder / f"{work.variant}.npy", torch.cat(features).numpy())
    answer(seconds=seconds, made_s=made_s)


if __name__ == "__main__":
    main()
