"""One thread for work that takes a while, which does not keep the process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any


@dataclass
class Task:
    """Work that waits for its turn; None once nobody waits for it any more, to hold nothing."""

    work: Callable[[], Any] | None
    future: asyncio.Future[Any]


class Worker:
    """Does one piece of work after another.

    An executor's thread would be waited for at the end of the process, whatever it is at; a picture
    can be made to take minutes to decode.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Task] = SimpleQueue()
        threading.Thread(target=self._work, name="answers", daemon=True).start()

    async def do(self, work: Callable[[], Any]) -> Any:
        """Give what `work` gives, or raise what it raises, once it is its turn."""
        task = Task(work, asyncio.get_running_loop().create_future())
        self._tasks.put(task)
        try:
            return await task.future
        finally:
            task.work = None

    def _work(self) -> None:
        while True:
            _carry_out(self._tasks.get())


def _carry_out(task: Task) -> None:
    work, future = task.work, task.future
    if work is None:
        return
    try:
        settle, result = future.set_result, work()
    except BaseException as error:
        settle, result = future.set_exception, error
    # The loop may have ended meanwhile.
    with suppress(RuntimeError):
        future.get_loop().call_soon_threadsafe(_settle, future, settle, result)


def _settle(future: asyncio.Future[Any], settle: Callable[[Any], None], result: Any) -> None:
    if not future.done():
        settle(result)
