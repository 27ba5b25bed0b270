"""Two ranks with a thread each against one process with one thread, side by side.

The pass of a frozen ResNet50 at 64 pixels under made weights, and epochs of LeNet-5 on all of MNIST
at batches of 512 and of 64, with the evaluation after each. Whole commands of `heptad train`, alone
and under torchrun, take turns; the seconds are those that they note themselves: of the pass, and of
the epochs after the first. Two processes exchange gradients over this machine's loopback; what that
costs is measured beside it, by the size of what is exchanged.

    python benchmarks/ranks.py [--limit 1500] [--rounds 3] [--write]

--write puts what was measured into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from digits import first_digits, write_idx
from machine import machine, versions
from ratios import put_between, ratios, table, with_spread
from safetensors.torch import save_file
from torchvision.models import resnet50

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
# In bytes: float32 numbers.
EXCHANGED = {
    "a step's loss": 8,
    "ResNet50's last layer": 4 * 20_490,
    "LeNet-5": 4 * 61_706,
    "ResNet50": 4 * 23_528_522,
}
EPOCHS = 3
PASS = "ResNet50's pass"
FIRST_STEPS = 10


def trained(num_ranks: int, words: list[str], out: Path) -> dict[str, Any]:
    """Train by a whole command, in so many ranks of one thread; give its metrics."""
    start = [sys.executable] if num_ranks == 1 else [*TORCHRUN, str(num_ranks)]
    command = [*start, "-m", "heptad", "train", *words, "--threads", "1", "--no-report"]
    # A cache of its own, in which no features are.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HEPTAD_HOME": f"{out}-cache"}
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True, env=environment)
    document: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    assert document["execution"]["world_size"] == num_ranks
    return document


def step_losses(out: Path) -> list[float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "step" in line]


def epoch_seconds(metrics: dict[str, Any]) -> float:
    """Give the seconds of an epoch with its evaluation, those of the first left out."""
    return statistics.median(epoch["seconds"] for epoch in metrics["epochs"][1:])


def exchange() -> None:
    """Time, as a rank, the sum of so many bytes over all ranks; rank 0 prints it."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for name, num_bytes in EXCHANGED.items():
        values = torch.ones(num_bytes // 4)
        repeats = 300 if num_bytes < 1_000_000 else 10
        for count in (3, repeats):
            started_at = perf_counter()
            for _ in range(count):
                torch.distributed.all_reduce(values)
            seconds = (perf_counter() - started_at) / count
        if torch.distributed.get_rank() == 0:
            print(json.dumps([name, num_bytes, seconds]), flush=True)
    torch.distributed.destroy_process_group()


def exchanged() -> list[tuple[str, int, float]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*TORCHRUN, "2", __file__, "--exchange"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--exchange", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.exchange:
        exchange()
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.manual_seed(0)
        weights = folder / "made.safetensors"
        save_file(resnet50().state_dict(), weights)
        write_idx(folder / "digits", first_digits(60_000, 10_000))
        data = ["--data", str(folder / "digits")]
        lenet = ["lenet5", *data, "--epochs", str(EPOCHS)]
        works = {
            PASS: ["resnet50", *data, "--weights", str(weights), "--limit", str(options.limit)],
            "LeNet-5, an epoch at 512": [*lenet, "--batch-size", "512"],
            "LeNet-5, an epoch at 64": [*lenet, "--batch-size", "64"],
        }
        seconds: dict[str, dict[int, list[float]]] = {name: {1: [], 2: []} for name in works}
        furthest = 0.0
        for number in range(options.rounds):
            for name, words in works.items():
                losses = {}
                for num_ranks in (1, 2):
                    out = folder / f"{number}-{num_ranks}-{name.replace(' ', '-')}"
                    metrics = trained(num_ranks, words, out)
                    took = metrics["trunk_seconds"] if name == PASS else epoch_seconds(metrics)
                    seconds[name][num_ranks].append(took)
                    losses[num_ranks] = step_losses(out)
                if name == PASS:
                    # Adam makes more of the last bits with each step.
                    pairs = zip(losses[1][:FIRST_STEPS], losses[2][:FIRST_STEPS], strict=True)
                    furthest = max(furthest, *(abs(a - b) / abs(a) for a, b in pairs))
    rows = []
    for name, by_ranks in seconds.items():
        ratio = ratios(by_ranks[1], by_ranks[2])
        rows.append(
            [
                name,
                with_spread(by_ranks[1], 2, " s"),
                with_spread(by_ranks[2], 2, " s"),
                with_spread(ratio, 2, " x"),
            ]
        )
    moved = [
        [name, f"{num_bytes:,}", f"{1e6 * took:,.0f} µs", f"{num_bytes / took / 1e6:,.0f} MB/s"]
        for name, num_bytes, took in exchanged()
    ]
    text = "\n\n".join(
        [
            table(["one thread a rank", "1 rank", "2 ranks", "ratio"], rows),
            f"Losses of the head's first {FIRST_STEPS} steps on the two ranks' features differ from"
            f" those of one process by {furthest:.0e} of their size at most.",
            table(["sum over 2 ranks of", "bytes", "time", "rate"], moved),
            f"{machine(2)}; {versions(['heptad', 'torch'])}; {options.limit} training and as many"
            " test images for the pass.",
        ]
    )
    print(text)
    if options.write:
        put_between(PAGE, "two ranks", text)


if __name__ == "__main__":
    main()
