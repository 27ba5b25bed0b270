"""State dicts from files: read without running anything in them, compared before they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from heptad.errors import WeightsError

MOST_DIFFERENCES_SHOWN = 8


def _read_pth(path: Path) -> object:
    # weights_only is said outright: an environment variable can flip calls that leave it out.
    return torch.load(path, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], object]] = {
    ".pth": _read_pth,
    ".pt": _read_pth,
    ".safetensors": safetensors.torch.load_file,
}


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict: parameters and buffers by name, on the CPU.

    Raises WeightsError if the file is no plain state dict or a value in it is not finite.
    """
    if path.suffix not in READERS:
        raise WeightsError(f"{path} is of no known kind; allowed: {', '.join(READERS)}.")
    try:
        state = READERS[path.suffix](path)
    # Damaged or hostile files make the readers raise almost anything; none of it may get through.
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0][:200]
        raise WeightsError(
            f"{path} cannot be read as weights: {type(error).__name__}: {first_line}",
            hint="allowed: a plain state dict, saved by torch.save or safetensors",
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        found = ", ".join(map(str, list(state)[:5])) if isinstance(state, Mapping) else type(state)
        raise WeightsError(
            f"{path} is no plain state dict: it holds {found}.",
            hint="save model.state_dict() alone",
        )
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsError(f"{path}: {name} holds values that are not finite.")
    return dict(state)


def refuse_differences(
    path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, what: str
) -> None:
    """Raise WeightsError with a table if names or shapes differ from those of `what`."""
    rows = []
    for name in sorted(set(found) | set(expected)):
        here = tuple(found[name].shape) if name in found else "missing"
        there = tuple(expected[name].shape) if name in expected else "none such"
        if here != there:
            rows.append(f"  {name}: in the file {here}, in the network {there}")
    if rows:
        more = len(rows) - MOST_DIFFERENCES_SHOWN
        shown = rows[:MOST_DIFFERENCES_SHOWN] + ([f"  and {more} more"] if more > 0 else [])
        raise WeightsError(
            f"{path} holds the weights of another network than {what}:"
            f" {len(rows)} names or shapes differ.",
            hint="\n".join(["the differences:", *shown]),
        )
