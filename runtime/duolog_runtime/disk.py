"""The disk executor: blocking file work leaves the loop and comes back as a completion.

Owns one thread per log directory. Work runs one at a time, in the order it was submitted, and
`done` is called in that order on the owner's loop, so a completion is an event like any other.
It knows nothing about files: work is a callable. Group commit is the owner's: while one append
and sync runs, the owner collects; the next submission takes all of it.

A hand-over costs a wake-up of the thread and one of the loop when both are idle (figures in
DESIGN.md); completions that are ready together wake the loop once.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeVar

from duolog_protocol.errors import StorageError

T = TypeVar("T")

MAX_PENDING: Final = 10_000
"""Submissions that may wait. Owners group their work, so that a few are normal."""

_Done = Callable[[Any, BaseException | None], None]
_Job = tuple[Callable[[], Any], _Done]
_Completion = tuple[_Done, Any, BaseException | None]


class DiskQueueFullError(StorageError):
    """Too much work waits for this log directory. The work was not taken."""

    retriable = True


class DiskClosedError(StorageError):
    """The executor was closed before the work began: it did not happen."""


class DiskExecutor(Protocol):
    """Runs file work in order; belongs to one loop or thread, which calls all its methods."""

    def submit(
        self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        """Run `work` after everything submitted before, then call `done` on the owner's loop.

        `done` gets the result and None, or None and what `work` raised. It is called exactly
        once, and not before `submit` returns unless the executor says so.

        Raises DiskQueueFullError, DiskClosedError: then `done` is never called.
        """
        ...

    @property
    def pending(self) -> int:
        """Submissions whose `done` has not been called."""
        ...

    def close(self) -> None:
        """Wait for the work that has started, refuse the rest with DiskClosedError. Idempotent.

        Every outstanding `done` has been called when it returns. Blocks the caller for as long as
        the started work takes (a sync cannot be stopped); so flush first, then close.
        """
        ...


async def run_on_disk(disk: DiskExecutor, work: Callable[[], T]) -> T:
    """Run `work` on the disk executor and wait for it.

    Cancelling stops the waiting only: the work happens, its result is lost.
    """
    outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def done(result: T | None, error: BaseException | None) -> None:
        if outcome.cancelled():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]  # T itself may be Optional

    disk.submit(work, done)
    return await outcome


class DiskThread:
    """The real executor: one thread, started with the first work."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, name: str, max_pending: int = MAX_PENDING
    ) -> None:
        self._loop = loop
        self._name = name
        self._max_pending = max_pending
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._completions: deque[_Completion] = deque()
        self._wake_scheduled = False
        self._closed = False
        """Written by the owner, read by the thread: jobs taken after it are refused."""
        self._pending = 0
        self._thread: threading.Thread | None = None

    def submit(
        self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        if self._closed:
            raise DiskClosedError(f"{self._name} is closed")
        if self._pending >= self._max_pending:
            raise DiskQueueFullError(f"{self._pending} jobs wait for {self._name}")
        if self._thread is None:
            # A daemon thread: after close() there is none, or it hangs; without close() the process
            # is dying anyway and shall not wait for a disk.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._pending += 1
        self._jobs.put((work, done))

    @property
    def pending(self) -> int:
        return self._pending

    def close(self, timeout_s: float | None = None) -> None:
        """As the protocol says; or, after `timeout_s`, leave the thread to the work it hangs in.

        Then what is outstanding is delivered only where the work ends while the loop still runs.
        """
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return
        self._deliver()
        assert self._pending == 0, self._pending

    def _run(self) -> None:
        get, completions = self._jobs.get, self._completions
        while (job := get()) is not None:
            work, done = job
            try:
                if self._closed:
                    raise DiskClosedError(f"{self._name} is closed")
                completions.append((done, work(), None))
            except BaseException as error:  # handed to the owner, whatever it is
                completions.append((done, None, error))
            del job, work, done  # an idle thread keeps no buffers alive
            # The flag goes up after the append and down before the deque is emptied, so a
            # completion that sees it up is emptied by the wake-up already on its way.
            if not self._wake_scheduled:
                self._wake_scheduled = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:  # the loop has ended: close() delivers
                    return self._refuse_rest()
        return None

    def _refuse_rest(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._completions.append((job[1], None, DiskClosedError("the loop has ended")))

    def _deliver(self) -> None:
        self._wake_scheduled = False
        completions = self._completions
        try:
            while completions:
                done, result, error = completions.popleft()
                self._pending -= 1
                done(result, error)
        finally:
            if completions and not self._loop.is_closed():  # a `done` raised: the loop reports it
                self._loop.call_soon(self._deliver)


class InlineDisk:
    """An executor without a thread, for simulation and unit tests; stepped by its owner.

    With `immediate`, work runs and `done` is called inside `submit` (inside the outermost one
    when `done` submits more, so order holds). Without, both wait: `run_work()` performs the next
    work, `deliver()` hands over the next completion, `run_pending()` does both until none is left.
    The distance between the two is where a crash is most interesting.

    Only `Exception` reaches `done`: a simulated power loss is none and ends whoever runs it.
    """

    def __init__(self, *, immediate: bool = True, max_pending: int = MAX_PENDING) -> None:
        self._immediate = immediate
        self._max_pending = max_pending
        self._jobs: deque[_Job] = deque()
        self._completions: deque[_Completion] = deque()
        self._running = False
        self._closed = False

    def submit(
        self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        if self._closed:
            raise DiskClosedError("the disk executor is closed")
        if self.pending >= self._max_pending:
            raise DiskQueueFullError(f"{self.pending} jobs wait")
        self._jobs.append((work, done))
        if self._immediate and not self._running:
            self.run_pending()

    @property
    def pending(self) -> int:
        return len(self._jobs) + len(self._completions)

    def run_work(self) -> bool:
        """Perform the next work, keep its completion. False: there is none."""
        if not self._jobs:
            return False
        work, done = self._jobs.popleft()
        try:
            self._completions.append((done, work(), None))
        except Exception as error:  # handed to the owner, as the thread does
            self._completions.append((done, None, error))
        return True

    def deliver(self) -> bool:
        """Hand over the next completion. False: there is none."""
        if not self._completions:
            return False
        done, result, error = self._completions.popleft()
        done(result, error)
        return True

    def run_pending(self) -> None:
        """Perform and deliver until nothing is left, including what `done` submits."""
        assert not self._running, "run_pending inside a completion"
        self._running = True
        try:
            while self.deliver() or self.run_work():
                pass
        finally:
            self._running = False

    def abandon(self) -> None:
        """The process died: forget everything, call nobody."""
        self._closed = True
        self._jobs.clear()
        self._completions.clear()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        while self._jobs:
            self._completions.append(
                (self._jobs.popleft()[1], None, DiskClosedError("the disk executor is closed"))
            )
        while self.deliver():
            pass
