"""State dicts from files: read without running anything in them, compared before they are used."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from heptad.errors import WeightsError

MOST_DIFFERENCES_SHOWN = 8
PLAIN_STATE = "allowed: model.state_dict() alone, saved by torch.save or safetensors"


def _read_pth(path: Path) -> object:
    # What PyTorch warns of here, such as sparse tensors, is refused below.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # weights_only is said outright: an environment variable can flip calls that leave it out.
        return torch.load(path, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], object]] = {
    ".pth": _read_pth,
    ".pt": _read_pth,
    ".safetensors": safetensors.torch.load_file,
}


def read_state(path: Path, *, kind: str | None = None) -> dict[str, Tensor]:
    """Read a state dict: parameters and buffers by name, on the CPU.

    kind: the suffix that stands for the kind of file, where its own name does not say. Raises
    WeightsError if the file is no plain state dict of dense, real tensors.
    """
    suffix = kind or path.suffix.lower()
    if suffix not in READERS:
        raise WeightsError(f"{path} is of no known kind; allowed: {', '.join(READERS)}.")
    try:
        state = READERS[suffix](path)
    except pickle.UnpicklingError as error:
        # PyTorch's own words go on to say how to load such a file unsafely.
        raise WeightsError(
            f"{path} cannot be read as weights: it holds more than tensors, or is damaged.",
            hint=PLAIN_STATE,
        ) from error
    # Damaged or hostile files make the readers raise almost anything; none of it may get through.
    except Exception as error:
        first_line = "".join(filter(str.isprintable, (str(error).splitlines() or [""])[0]))[:200]
        raise WeightsError(
            f"{path} cannot be read as weights: {type(error).__name__}: {first_line}",
            hint=PLAIN_STATE,
        ) from error
    if not isinstance(state, Mapping) or not all(map(_is_plain, state, state.values())):
        odd = (
            [key for key, value in state.items() if not _is_plain(key, value)]
            if isinstance(state, Mapping)
            else [type(state).__name__]
        )
        raise WeightsError(
            f"{path} is no plain state dict: it holds {', '.join(map(str, odd[:5]))}.",
            hint=PLAIN_STATE,
        )
    return dict(state)


def _is_plain(key: object, value: object) -> bool:
    """Tell whether an entry is a dense tensor of real numbers under a name."""
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def refuse_not_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise WeightsError if a value is NaN or infinite."""
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsError(f"{path}: {name} holds values that are not finite.")


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
