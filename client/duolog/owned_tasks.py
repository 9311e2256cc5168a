"""Tasks of a client object: named, owned, and gone when the owner has stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class OwnedTasks:
    """A set of running tasks with one owner.

    A task that ends with an exception reports it to `on_failure`, once; the owner then fails what
    waits for it. `start`/`stop` objects cannot hold an `asyncio.TaskGroup` open across calls.
    """

    __slots__ = ("_on_failure", "_owner", "_tasks")

    def __init__(self, owner: str, on_failure: Callable[[BaseException], None]) -> None:
        self._owner = owner
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine until it ends or the owner stops."""
        task = asyncio.get_running_loop().create_task(work, name=f"{self._owner}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                self._on_failure(error)

    async def stop(self) -> None:
        """Cancel all tasks and wait for their end. Cancelling this leaves them cancelled.

        A task that calls this itself is not waited for.
        """
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
