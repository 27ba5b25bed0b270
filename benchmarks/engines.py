"""Ways to compute the features of a frozen trunk, in images a second, side by side.

    python benchmarks/engines.py [resnet50] [vgg16] [--rounds 3] [--compile] [--openvino]
        [--size PIXELS] [--beside FOLDER]

ResNet50 at 64 pixels and VGG16 at 224 pixels, made weights, in the batches of Heptad's pass: the
network as it is, laid channels last, rewritten as Heptad runs it, and mixed as with `precision =
bfloat16`; with --compile torch.compile with freezing (which needs a C++ compiler), with --openvino
OpenVINO in float32 (`pip install openvino`), with --beside as another version rewrites it whose
checkout's src folder is given. The ways take turns; the median of the rounds counts, a ratio is
against the network as it is. All of them keep the memory they free, as Heptad's pass does: without
that the network as it is is up to a quarter slower.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import sys
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor, nn

from heptad.architectures import ARCHITECTURES
from heptad.features.engine import rewritten
from heptad.features.memory import freed_memory_kept
from heptad.features.trunk import images_at_a_time

# Of each network the images' side in pixels, and the batches of a round.
SIZES = {"resnet50": (64, 20), "vgg16": (224, 3)}
Compute = Callable[[Tensor], Tensor]


def made_trunk(name: str) -> nn.Module:
    """The trunk that serves the recipe as shipped, with made weights, in evaluation mode."""
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    return architecture.splits[-2].trunk(architecture.build(3, 10)).eval()


def compiled(trunk: nn.Module, images: Tensor) -> Compute:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    laid = copy.deepcopy(trunk).to(memory_format=torch.channels_last)
    module = torch.compile(laid)
    module(images)
    return module


def in_openvino(trunk: nn.Module, images: Tensor) -> Compute:
    import openvino

    model = openvino.convert_model(trunk, example_input=images, input=[list(images.shape)])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled_model = openvino.compile_model(model, "CPU", settings)
    return lambda batch: torch.from_numpy(compiled_model(batch.numpy())[0])


def in_bfloat16(trunk: nn.Module, _: Tensor) -> Compute:
    laid = copy.deepcopy(trunk).to(memory_format=torch.channels_last)

    def compute(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return laid(images)

    return compute


# What makes each way out of a trunk and a batch of images.
WAYS: dict[str, Callable[[nn.Module, Tensor], Compute]] = {
    "the network as it is": lambda trunk, _: trunk,
    "channels last": lambda trunk, _: copy.deepcopy(trunk).to(memory_format=torch.channels_last),
    "rewritten": lambda trunk, images: rewritten(trunk, images[:1], batch_size=len(images)),
    "mixed, bfloat16": in_bfloat16,
    "compiled, frozen": compiled,
    "OpenVINO, float32": in_openvino,
}


def by_another(source: str) -> Callable[[nn.Module, Tensor], Compute]:
    own = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("heptad")}
    sys.path.insert(0, source)
    other = importlib.import_module("heptad.features.engine").rewritten
    sys.path.remove(source)
    for name in [name for name in sys.modules if name.startswith("heptad")]:
        del sys.modules[name]
    sys.modules.update(own)
    return lambda trunk, images: other(trunk, images[:1], batch_size=len(images))


def measure(name: str, wanted: argparse.Namespace) -> None:
    size, repeats = SIZES[name]
    size = wanted.size or size
    batch_size = images_at_a_time(size)
    trunk = made_trunk(name)
    images = 2 * torch.rand(batch_size, 3, size, size) - 1
    asked_for = {"compiled, frozen": wanted.compile, "OpenVINO, float32": wanted.openvino}
    print(f"{name} at {size} px, batches of {batch_size}, {torch.get_num_threads()} threads")
    ways: dict[str, Compute] = {}
    rates: dict[str, list[float]] = {}
    expected = copy.deepcopy(trunk).double()(images.double())
    beside = {"rewritten by --beside": by_another(wanted.beside)} if wanted.beside else {}
    for way, make in {**WAYS, **beside}.items():
        if not asked_for.get(way, True):
            continue
        started_at = perf_counter()
        ways[way] = make(trunk, images)
        made_s = perf_counter() - started_at
        error = float((ways[way](images) - expected).abs().max() / expected.abs().max())
        rates[way] = []
        print(f"  {way:24s} made in {made_s:5.1f} s, error {error:.0e} of the largest feature")
    for _ in range(wanted.rounds):
        for way, compute in ways.items():
            compute(images)
            started_at = perf_counter()
            for _ in range(repeats):
                compute(images)
            rates[way].append(batch_size * repeats / (perf_counter() - started_at))
    base = statistics.median(rates["the network as it is"])
    for way, found in rates.items():
        median = statistics.median(found)
        spread = f"({min(found):.1f} to {max(found):.1f})"
        print(f"  {way:24s} {median:6.1f} images/s {spread:18s} {median / base:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NETWORK", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--openvino", action="store_true")
    parser.add_argument("--size", type=int, metavar="PIXELS")
    parser.add_argument("--beside", metavar="FOLDER")
    wanted = parser.parse_args()
    with torch.inference_mode(), freed_memory_kept():
        for name in wanted.names:
            measure(name, wanted)


if __name__ == "__main__":
    main()
