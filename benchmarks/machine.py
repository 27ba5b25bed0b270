"""What a figure was taken on: processor, cores, system, versions. Never the name of a host."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

import torch


def processor() -> str:
    """Name the processor, as Linux knows it."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return models[0] if models else platform.machine()


def machine(threads: int) -> str:
    """Name the machine, the threads used of it, and the day."""
    system = platform.system()
    if system == "Linux":
        system = platform.freedesktop_os_release().get("PRETTY_NAME", system)
    return (
        f"{threads} of {os.cpu_count()} cores of {processor()}"
        f" ({torch.backends.cpu.get_cpu_capability()}), {system},"
        f" Python {platform.python_version()}, {datetime.datetime.now().date().isoformat()}"
    )


def versions(packages: Iterable[str]) -> str:
    """List packages with their versions."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
