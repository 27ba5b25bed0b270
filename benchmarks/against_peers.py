"""Heptad against what people train with today: the same images, batches and network, side by side.

    pip install -e '.[bench]'
    python benchmarks/against_peers.py [--rounds 3] [--only lenet5 resnet50 vgg16] [--write]

Three works: epochs of LeNet-5 on all of MNIST; a frozen ResNet50 at 64 pixels under a new last
layer, on 1,500 training images with 500 test images after every epoch; VGG16's pass at 224 pixels
over 60 images. What each peer does is in benchmarks/peers, a file each, written as its users write
it. Everyone runs in a process of its own, on the same cores and with as many threads; the turns go
round, so that what slows the machine down for a while slows all. A ratio is taken within a round;
the median of the rounds counts, and its spread is printed.

--quick tries everything out on few images, in seconds that mean nothing. --write puts the tables
into docs/benchmarks.md. A peer that is not installed is left out, which is said; --require-all
stops instead.
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
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from digits import first_digits, write_arrays, write_idx
from machine import machine, versions
from peer_tables import TABLES, Measured
from peers.work import Work
from ratios import put_between
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet50

import heptad

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
INSTALL = "pip install -e '.[bench]'"
OURS = "Heptad"
PACKAGES = ("heptad", "torch", "torchvision")


@dataclass(frozen=True)
class Peer:
    """One way to do the work: `python -m MODULE` with a variant, and the packages it needs."""

    name: str
    module: str
    variant: str = ""
    packages: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        return [package for package in self.packages if not find_spec(package)]


FLAX = ("jax", "flax", "optax")

TRAINERS = (
    Peer("plain loop", "peers.plain_loop", "0"),
    Peer("plain loop, 2 loader workers", "peers.plain_loop", "2"),
    Peer("plain loop, tensors in memory", "peers.plain_loop", "memory"),
    Peer(OURS, "peers.heptad_cycle"),
    Peer("Lightning", "peers.lightning_fit", packages=("lightning",)),
    Peer("fastai", "peers.fastai_fit", packages=("fastai",)),
    Peer("Keras on JAX", "peers.keras_fit", packages=("jax", "keras")),
    Peer("flax, jitted steps", "peers.flax_steps", "steps", FLAX),
)
# A scan over the steps of the frozen network would gain nothing: each takes a fifth of a second.
PEERS: dict[str, tuple[Peer, ...]] = {
    "lenet5": (*TRAINERS, Peer("flax, the epoch in one scan", "peers.flax_steps", "scan", FLAX)),
    "resnet50": TRAINERS,
    "vgg16": (
        Peer("the network as it is", "peers.trunk_pass", "the network as it is"),
        Peer(OURS, "peers.trunk_pass", "rewritten"),
        Peer("OpenVINO, float32", "peers.trunk_pass", "OpenVINO, float32", ("openvino",)),
    ),
}
# Of each run; the last is the one compared. Those of a frozen network are all alike.
NUM_EPOCHS = {"lenet5": 2, "resnet50": 1, "vgg16": 1}
# Training and test images.
SIZES = {"lenet5": (60_000, 10_000), "resnet50": (1500, 500), "vgg16": (60, 5)}
QUICK_SIZES = {"lenet5": (3000, 1000), "resnet50": (96, 64), "vgg16": (8, 5)}
# Images that the made network's BatchNorm sees.
NUM_MEASURED = 512


def prepare(folder: Path, workload: str, sizes: tuple[int, int]) -> None:
    """Write what all peers read: digits, arrays, and made weights for what is frozen."""
    folder.mkdir()
    write_idx(folder / "digits", first_digits(*sizes))
    write_arrays(folder, heptad.load_recipe(workload, data=str(folder / "digits")))
    if workload == "resnet50":
        work = Work(workload, folder, 0, "")
        save_file(made_values(work.part("train").images), work.made_weights)


def made_values(images: np.ndarray) -> dict[str, torch.Tensor]:
    """Make a ResNet50 at random, with the statistics that its BatchNorm sees in some images.

    Without them the features of all images would be nearly alike, and accuracies say nothing.
    """
    torch.manual_seed(0)
    network = resnet50()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    with torch.no_grad():
        for batch in torch.from_numpy(images[:NUM_MEASURED]).split(64):
            network(batch)
    return network.state_dict()


def environment(folder: Path, threads: int) -> dict[str, str]:
    """Give the variables of a peer's process: no GPU, as many threads, nothing kept from before."""
    path = [str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "HEPTAD_HOME": str(folder),
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
    }


def carry_out(peer: Peer, workload: str, folder: Path, threads: int) -> dict[str, Any]:
    """Run a peer in a process of its own; give its answer."""
    words = ["-m", peer.module, workload, str(folder), str(NUM_EPOCHS[workload])]
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        done = subprocess.run(
            [sys.executable, *words, *([peer.variant] if peer.variant else [])],
            env=environment(Path(cache), threads),
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"{peer.name} failed, exit {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(workload: str, peers: list[Peer], folder: Path, options: Any) -> Measured:
    """Let the peers take turns; give all answers, round by round."""
    sizes = (QUICK_SIZES if options.quick else SIZES)[workload]
    prepare(folder, workload, sizes)
    answers: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}
    for number in range(options.rounds):
        for peer in peers:
            started_at = perf_counter()
            found = carry_out(peer, workload, folder, options.threads)
            answers[peer.name].append(found)
            print(
                f"{workload}, round {number + 1}, {peer.name}: {found['seconds'][-1]:.2f} s,"
                f" {perf_counter() - started_at:.0f} s in all",
                file=sys.stderr,
            )
    return Measured(OURS, answers, sizes, folder)


def keep_to(threads: int) -> None:
    """Confine this process, and so its children, to as many cores: JAX counts them, not threads."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < threads:
            raise SystemExit(f"--threads is {threads}, but there are {len(cores)} cores.")
        os.sched_setaffinity(0, cores[:threads])
    else:
        print("Cores cannot be set apart here: JAX takes all of them.", file=sys.stderr)


def chosen(workload: str, *, require_all: bool) -> list[Peer]:
    """Give the peers that are installed; say which are not."""
    for peer in PEERS[workload]:
        if peer.missing:
            said = f"{peer.name}: {', '.join(peer.missing)} not installed: {INSTALL}"
            if require_all:
                raise SystemExit(said)
            print(said, file=sys.stderr)
    return [peer for peer in PEERS[workload] if not peer.missing]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--require-all", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write and (options.quick or len(options.only) < len(PEERS)):
        parser.error("--write is for a run of everything, without --quick and --only.")
    keep_to(options.threads)
    peers = {name: chosen(name, require_all=options.require_all) for name in options.only}
    started_at = perf_counter()
    with tempfile.TemporaryDirectory(prefix="heptad-bench-") as scratch:
        parts = [
            TABLES[name](measure(name, peers[name], Path(scratch) / name, options))
            for name in options.only
        ]
    packages = {
        package: None for few in peers.values() for peer in few for package in peer.packages
    }
    command = shlex.join(["python", "benchmarks/against_peers.py", *sys.argv[1:]])
    text = "\n\n".join(
        [
            f"`{command}`, {(perf_counter() - started_at) / 60:.0f} minutes on"
            f" {machine(options.threads)}; {versions([*PACKAGES, *packages])}.",
            *parts,
        ]
    )
    print(text)
    if options.write:
        put_between(PAGE, "against peers", text)


if __name__ == "__main__":
    main()
