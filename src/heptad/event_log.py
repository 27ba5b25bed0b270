"""Scalars for TensorBoard: what `metrics.jsonl` holds, written again as events beside it. No torch.

A view of the log and nothing more: whatever becomes of it, neither the training nor the results
depend on it, and equal runs need not have equal ones (events hold times).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heptad.errors import MissingError

logger = logging.getLogger("heptad")

# TensorBoard looks for files with `tfevents` in their names.
EVENTS = "events.out.tfevents.*.heptad"


def check_tensorboard() -> None:
    """Raise MissingError unless the package that writes events is installed."""
    try:
        import tensorboard  # noqa: F401 - what it is named for in the message
        from tensorboard.compat.proto import event_pb2  # noqa: F401
        from tensorboard.summary.writer import record_writer  # noqa: F401
    except ImportError as error:
        raise MissingError(
            "tensorboard is asked for, but the package of that name is not installed.",
            hint=f"pip install tensorboard ({error})",
        ) from error


class EventLog:
    """A file of events that follows a run's log; earlier ones in the folder are removed.

    A resume cuts the log to what the checkpoint knew, and this begins again with what is left: no
    point is ever there twice.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "metrics.jsonl"
        self._num_read = 0
        self._is_failing = False
        # Another name than before: a TensorBoard that is looking on keeps the old file open.
        self._path = folder / EVENTS.replace("*", str(time.time_ns()))
        try:
            for path in folder.glob(EVENTS):
                path.unlink()
            self._append([{"file_version": "brain.Event:2"}])
        except OSError as error:
            self._give_up(error)

    def follow(self) -> None:
        """Add what the log holds by now; what cannot be written costs a warning."""
        if self._is_failing:
            return
        try:
            with self._log.open("rb") as file:
                file.seek(self._num_read)
                lines = [line for line in file if line.endswith(b"\n")]
            self._append([event for line in lines for event in _events(json.loads(line))])
            self._num_read += sum(map(len, lines))
        except OSError as error:
            self._give_up(error)

    def _append(self, events: list[dict[str, Any]]) -> None:
        # Here, since a training without them needs none of it.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self._path.open("ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(Event(wall_time=time.time(), **event).SerializeToString())

    def _give_up(self, error: OSError) -> None:
        self._is_failing = True
        logger.warning("%s cannot be written: %s; the training goes on", self._path, error.strerror)


def _events(line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Turn a line of the log into an event: of a step by its number, of an epoch by its own."""
    kind = "step" if "step" in line else "epoch"
    if kind not in line:
        # Why a training stopped, which is no figure.
        return
    figures = {name: value for name, value in line.items() if name not in ("step", "epoch")}
    values = [{"tag": f"{kind}/{name}", "simple_value": value} for name, value in figures.items()]
    yield {"step": line[kind], "summary": {"value": values}}
