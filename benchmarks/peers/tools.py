"""The tools that benchmarks/faults.py compares: how each is started, where its checkpoints lie."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

PEERS = Path(__file__).parent


@dataclass(frozen=True)
class Work:
    """What is trained. digits: for the scripts; idx: the same for Heptad. every: steps a save."""

    digits: Path
    idx: Path
    every: int


@dataclass(frozen=True)
class Tool:
    """One tool, with what has to be known about it from outside.

    words: of the command for a run folder; the same command begins a run and goes on with it.
    saved: its checkpoints, steps and path, the newest first. network: the file within one that has
    the weights. unfinished: what shows that a save was cut off; "" if nothing does. num_written:
    bytes that one save writes. final: the trained weights.
    """

    name: str
    package: str
    words: Callable[[Work, Path], list[str]]
    saved: Callable[[Work, Path], list[tuple[int, Path]]]
    network: Callable[[Path], Path]
    unfinished: Callable[[Path, Path], str]
    num_written: Callable[[Path], int]
    final: str

    @property
    def title(self) -> str:
        return f"{self.name} {importlib.metadata.version(self.package)}"


def _numbered(folder: Path, pattern: str) -> list[tuple[int, Path]]:
    names = [(re.fullmatch(pattern, path.name), path) for path in folder.glob("*")]
    return sorted(((int(match[1]), path) for match, path in names if match), reverse=True)


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# Heptad: a folder for each checkpoint, made under a hidden name; two are kept.


def _heptad_words(work: Work, run: Path) -> list[str]:
    options = {"data": work.idx, "epochs": 2, "batch-size": 32, "out": run}
    options |= {"checkpoint-every": work.every, "threads": 1}
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["heptad", "train", "lenet5", *flags, "--resume"]


def _heptad_unfinished(run: Path, _: Path) -> str:
    hidden = [path.name for path in (run / "checkpoints").glob(".*")]
    num_saved = len(_numbered(run / "checkpoints", HEPTAD_NAME))
    return ", ".join(hidden) or (f"{num_saved} checkpoints, one too many" * (num_saved > 2))


HEPTAD_NAME = r"step-(\d+)(?:-test-\d+)?"
HEPTAD = Tool(
    name="Heptad",
    package="heptad",
    words=_heptad_words,
    saved=lambda _, run: _numbered(run / "checkpoints", HEPTAD_NAME),
    network=lambda checkpoint: checkpoint / "state.safetensors",
    unfinished=_heptad_unfinished,
    num_written=lambda run: _num_bytes(_numbered(run / "checkpoints", HEPTAD_NAME)[0][1]),
    final="lenet5_digits.pth",
)


# Lightning: a file that is named by its step, then last.ckpt with the same; each is written in the
# folder for temporary files and then moved.


def _lightning_words(work: Work, run: Path) -> list[str]:
    return [str(PEERS / "lightning_lenet5.py"), str(work.digits), str(run), str(work.every)]


def _lightning_unfinished(run: Path, temporary: Path) -> str:
    named = _numbered(run / "checkpoints", LIGHTNING_NAME)
    left = [f"temporary file of {path.stat().st_size} bytes" for path in temporary.glob("*")]
    left += [f"{len(named)} named checkpoints"] * (len(named) != 1)
    last = run / "checkpoints" / "last.ckpt"
    if not last.exists():
        return ", ".join([*left, "no last.ckpt"])
    step = torch.load(last, weights_only=False)["global_step"]
    left += [f"last.ckpt of step {step}"] * (bool(named) and step != named[0][0])
    return ", ".join(left)


LIGHTNING_NAME = r"epoch=\d+-step=(\d+)\.ckpt"
LIGHTNING = Tool(
    name="Lightning",
    package="lightning",
    words=_lightning_words,
    saved=lambda _, run: [
        (step, run / "checkpoints" / "last.ckpt")
        for step, _ in _numbered(run / "checkpoints", LIGHTNING_NAME)
    ],
    network=lambda checkpoint: checkpoint,
    unfinished=_lightning_unfinished,
    num_written=lambda run: _num_bytes(run / "checkpoints"),
    final="final.pth",
)


# accelerate: a folder for each checkpoint, written in its place; the oldest is removed before.


def _accelerate_words(work: Work, run: Path) -> list[str]:
    return [str(PEERS / "accelerate_lenet5.py"), str(work.digits), str(run), str(work.every)]


def _accelerate_unfinished(run: Path, _: Path) -> str:
    saved = _numbered(run / "checkpoints", ACCELERATE_NAME)
    if not saved:
        return "no checkpoint"
    number, newest = saved[0]
    left = [f"{len(saved)} checkpoints"] * (len(saved) != min(number + 1, 2))
    for name in ("model.safetensors", "optimizer.bin", "random_states_0.pkl"):
        sizes = [(path / name).stat().st_size for _, path in saved if (path / name).exists()]
        if not (newest / name).exists():
            left.append(f"{newest.name} lacks {name}")
        # In whole checkpoints they differ by a few bytes of the numbers in them.
        elif sizes[0] < 0.99 * max(sizes):
            left.append(f"{newest.name} has {sizes[0]} of {max(sizes)} bytes of {name}")
    return ", ".join(left)


ACCELERATE_NAME = r"checkpoint_(\d+)"
ACCELERATE = Tool(
    name="accelerate",
    package="accelerate",
    words=_accelerate_words,
    saved=lambda work, run: [
        ((number + 1) * work.every, path)
        for number, path in _numbered(run / "checkpoints", ACCELERATE_NAME)
    ],
    network=lambda checkpoint: checkpoint / "model.safetensors",
    unfinished=_accelerate_unfinished,
    num_written=lambda run: _num_bytes(_numbered(run / "checkpoints", ACCELERATE_NAME)[0][1]),
    final="final.pth",
)

TOOLS = (HEPTAD, LIGHTNING, ACCELERATE)


def weights_in(file: Path) -> bytes:
    """Give the values of the largest layer as they lie in a file of any of the tools."""
    if file.suffix == ".safetensors":
        state = safetensors.torch.load_file(file)
    else:
        state = torch.load(file, weights_only=False)["state_dict"]
    [name] = [name for name in state if re.fullmatch(r"(network[./])?fc1\.weight", name)]
    return state[name].contiguous().numpy().tobytes()
