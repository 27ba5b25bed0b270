"""`metrics.jsonl`: a line for every step and every epoch, appended, and read back by a resume.

The lines hold no times, so that equal runs write equal files. A log that cannot be written keeps
its lines in memory and tries again: the training never stops for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

from heptad.errors import NotFiniteError, SaveError
from heptad.files import sync_folder
from heptad.records import EpochReport, Figures, StepReport

logger = logging.getLogger("heptad")

WRITE_INTERVAL_S = 1.0


@dataclass(frozen=True)
class LogPlace:
    """How far a log was written at some moment, and what it held so far."""

    num_bytes: int
    sha256: str

    def as_document(self) -> dict[str, Any]:
        """Give the place as plain values, for JSON."""
        return asdict(self)


def log_up_to(path: Path, document: Any) -> bytes | None:
    """Read a log up to the place that a `LogPlace.as_document` names.

    None if it does not hold what it held then, or the document names no place.
    """
    try:
        place = LogPlace(**document)
        # Reading a pipe would wait for ever.
        if not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(place.num_bytes)
    except (OSError, TypeError, ValueError, OverflowError):
        return None
    return content if hashlib.sha256(content).hexdigest() == place.sha256 else None


class MetricsLog:
    """A log that is being written. What lies beyond `content`, the part to keep, is cut off.

    Losses are read from the device once a second and at each epoch's end, not at every step.
    """

    def __init__(self, path: Path, content: bytes = b"") -> None:
        self.path = path
        self._num_bytes = len(content)
        self._digest = hashlib.sha256(content)
        self._waiting: list[StepReport | EpochReport] = []
        self._unwritten = b""
        self._written_at = perf_counter()
        self._is_failing = False
        path.touch()
        os.truncate(path, self._num_bytes)
        sync_folder(path.parent)

    def add(self, report: StepReport | EpochReport) -> None:
        """Take a report, and write what waits, if it is time.

        Raises NotFiniteError for a loss that is NaN or infinite.
        """
        self._waiting.append(report)
        is_step = isinstance(report, StepReport)
        if not is_step or perf_counter() - self._written_at > WRITE_INTERVAL_S:
            self._try_to_write()

    def note(self, error: NotFiniteError) -> None:
        """Write down why the training stopped, after all that was added."""
        self._encode()
        self._unwritten += _as_bytes({"error": error.message})
        self._try_to_write()

    def sync(self) -> LogPlace:
        """Bring all that was added onto the disk, and tell how far the log is; raises SaveError."""
        self._encode()
        try:
            self._write(sync=True)
        except OSError as error:
            reason = error.strerror or error
            raise SaveError(
                f"{self.path} could not be written: {reason}.",
                hint="free some space, or see what became of the folder",
            ) from error
        return LogPlace(self._num_bytes, self._digest.hexdigest())

    def _try_to_write(self) -> None:
        self._encode()
        try:
            self._write(sync=False)
        except OSError as error:
            if not self._is_failing:
                reason = error.strerror or error
                logger.warning(
                    "%s cannot be written: %s; its lines are kept for later", self.path, reason
                )
            self._is_failing = True
        else:
            self._is_failing = False

    def _encode(self) -> None:
        """Turn what waits into lines, up to the first loss that is not finite."""
        waiting, self._waiting = self._waiting, []
        self._written_at = perf_counter()
        for report in waiting:
            if isinstance(report, EpochReport):
                self._unwritten += _as_bytes(report.as_document())
                continue
            line = _step_line(report)
            if not isfinite(line["loss"]):
                raise NotFiniteError(
                    f"step {report.step}, epoch {report.epoch}: the loss is {line['loss']}."
                )
            self._unwritten += _as_bytes(line)

    def _write(self, *, sync: bool) -> None:
        # Not opened for appending: what an earlier attempt left half-written is written over.
        with self.path.open("r+b") as file:
            file.seek(self._num_bytes)
            file.write(self._unwritten)
            file.truncate()
            if sync:
                file.flush()
                os.fsync(file.fileno())
        self._num_bytes += len(self._unwritten)
        self._digest.update(self._unwritten)
        self._unwritten = b""


def _as_bytes(line: dict[str, Any]) -> bytes:
    return (json.dumps(line, allow_nan=False) + "\n").encode()


def _step_line(step: StepReport) -> dict[str, Any]:
    return {
        "step": step.step,
        "epoch": step.epoch,
        "loss": step.loss,
        "learning_rate": step.learning_rate,
    }


def read_log(
    content: bytes,
    *,
    num_images: int,
    batch_size: int,
    num_scored_images: int,
    seconds: Sequence[Sequence[float]],
) -> tuple[list[EpochReport], list[float]]:
    """Read back the epochs of a log, and the step losses of the one that it ends within.

    num_images, num_scored_images: of an epoch and of its evaluation. seconds: of each epoch, those
    of its training and all of them, which no log holds.
    """
    epochs: list[EpochReport] = []
    losses: list[float] = []
    for line in map(json.loads, content.splitlines()):
        if "step" in line:
            losses.append(line["loss"])
        elif "epoch" in line:
            part = "validation" if "validation_loss" in line else "test"
            num_correct = round(line[f"{part}_accuracy"] * num_scored_images)
            train_seconds, all_seconds = seconds[len(epochs)]
            report = EpochReport(
                epoch=line["epoch"],
                step_losses=tuple(losses),
                step_images=step_images(num_images, batch_size)[: len(losses)],
                scores=Figures(num_correct, num_scored_images, line[f"{part}_loss"]),
                train_seconds=train_seconds,
                seconds=all_seconds,
                part=part,
            )
            epochs.append(report)
            losses = []
    return epochs, losses


def step_images(num_images: int, batch_size: int) -> tuple[int, ...]:
    """Give the images of each step of an epoch."""
    whole, rest = divmod(num_images, batch_size)
    return (batch_size,) * whole + ((rest,) if rest else ())
