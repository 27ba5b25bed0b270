"""Stage 1: the device that everything runs on, exactly the one asked for."""

from __future__ import annotations

import re

import torch

from heptad.errors import DeviceError, unknown

NAMES = ("auto", "cpu", "cuda", "mps")


def pick_device(
    name: str = "auto", *, threads: int | None = None, local_rank: int | None = None
) -> torch.device:
    """Give the device called `name`, and set the number of CPU threads where one is given.

    name: "cpu", "cuda", "cuda:N", "mps", or "auto" for CUDA if there is one and else the CPU.
    local_rank: number of this process among those of its machine that train together; each takes
    the GPU of its number. Raises DeviceError if the device is unknown or not in this machine, or
    one is named for several processes; another is never taken instead.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in NAMES and not re.fullmatch(r"cuda:[0-9]{1,2}", name):
        raise DeviceError(unknown("device", name, (*NAMES, "cuda:N")))
    if local_rank is not None and name not in ("cpu", "cuda"):
        raise DeviceError(
            f"device is {name!r}, but several processes train together, each on its own device.",
            hint="--device cuda gives each process the GPU of its number, --device cpu the CPU",
        )
    if local_rank is not None and name == "cuda":
        name = f"cuda:{local_rank}"
    device = torch.device(name)
    if device.type == "cuda":
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= num_gpus:
            raise DeviceError(
                f"device is {name!r}, but PyTorch sees {num_gpus} CUDA devices here.",
                hint="`heptad doctor` shows what is here; --device cpu works everywhere",
            )
        if local_rank is not None:
            torch.cuda.set_device(device)
        # The same seed gives the same weights: no algorithm is chosen by timing it.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "device is 'mps', but PyTorch finds no Apple GPU here.",
            hint="--device cpu works everywhere",
        )
    if threads is not None:
        torch.set_num_threads(threads)
    return device
