"""From `heptad train` to its first step, as a whole command with warm caches.

LeNet-5 on all of MNIST, which is in the cache, and a last layer of ResNet50 (made weights) on
features that are kept; beside them Python with nothing but PyTorch and torchvision imported, which
no training can do without. A step counts as done when its checkpoint lies on the disk
(`--checkpoint-every 1`), which is looked for every 2 ms; the command is then ended.

    python benchmarks/start_up.py [--rounds 5] [--limit 1500]

The works take turns; what is printed is the median of the rounds. The first round, which brings the
files into the system's own cache, is not counted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, sleep

import torch
from machine import machine, versions
from ratios import with_spread
from safetensors.torch import save_file
from torchvision.models import resnet50

LOOK_INTERVAL_S = 0.002
IMPORTS = "PyTorch and torchvision imported"


def imported() -> float:
    started_at = perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, torchvision"], check=True)
    return perf_counter() - started_at


def first_step(words: list[str], out: Path) -> float:
    """Start a training and end it after its first step; give the seconds until that."""
    words = ["train", *words, "--out", str(out), "--checkpoint-every", "1"]
    started_at = perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "heptad", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not any((out / "checkpoints").glob("step-*")):
            if process.poll() is not None:
                raise SystemExit(f"heptad {' '.join(words)} ended before its first step.")
            sleep(LOOK_INTERVAL_S)
        return perf_counter() - started_at
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=1500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.manual_seed(0)
        weights = folder / "made.safetensors"
        save_file(resnet50().state_dict(), weights)
        head = ["resnet50", "--weights", str(weights), "--limit", str(options.limit)]
        works = {"LeNet-5 on MNIST": ["lenet5"], "ResNet50 on kept features": head}
        seconds: dict[str, list[float]] = {name: [] for name in (IMPORTS, *works)}
        for number in range(options.rounds + 1):
            seconds[IMPORTS].append(imported())
            for name, words in works.items():
                out = folder / f"{number}-{name.replace(' ', '-')}"
                seconds[name].append(first_step(words, out))
    print(f"{machine(os.cpu_count() or 1)}; {versions(['heptad', 'torch', 'torchvision'])}")
    for name, found in seconds.items():
        print(f"{name:34s} {with_spread(found[1:], 2, ' s')}")


if __name__ == "__main__":
    main()
