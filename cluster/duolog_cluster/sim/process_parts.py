"""What a simulated process has in place of the machine's clocks and of the thread for its disk.

Each piece of disk work is in two halves: it is done on the simulated disk at one moment, its end is
told at a later one, so that a crash, a pause or a message may come between.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from duolog_runtime.disk import MAX_PENDING, DiskClosedError, DiskQueueFullError

from .scheduler import Scheduler

T = TypeVar("T")

WALL_OFFSET_MS: Final = 1_700_000_000_000


class SimClock:
    """A machine's clocks, made of the scheduler's time; see `duolog_runtime.clocks.Clock`."""

    def __init__(self, scheduler: Scheduler, wall_offset_ms: int = 0, rate: float = 1.0) -> None:
        self._scheduler = scheduler
        self.wall_offset_ms = wall_offset_ms
        """The time of day is wrong by so much; may be changed at any time."""
        self.rate = rate
        """How fast the monotonic clock runs; to be set before anything does."""

    def now_ms(self) -> int:
        """Monotonic."""
        return int(self._scheduler.now_us * self.rate) // 1_000

    def wall_ms(self) -> int:
        """Since 1970."""
        return WALL_OFFSET_MS + self._scheduler.now_ms + self.wall_offset_ms

    def moment_us(self, now_ms: int) -> int:
        """When the monotonic clock will show this, in the scheduler's time."""
        return math.ceil(now_ms * 1_000 / self.rate)


@dataclass(slots=True)
class DiskPace:
    """How long the disk takes; may be changed at any time."""

    mean_work_us: int = 2_000
    mean_notice_us: int = 300
    """From the end of the work to the event that tells it."""
    stall_rate: float = 0.0
    """Share of jobs that take up to half a second more."""

    def heal(self) -> None:
        """Be as fast as a disk usually is."""
        self.mean_work_us, self.mean_notice_us = 2_000, 300
        self.stall_rate = 0.0


class SimExecutor:
    """A `DiskExecutor` of one process: one piece of work after the other."""

    def __init__(
        self,
        later: Callable[[int, Callable[[], None]], None],
        rng: random.Random,
        pace: DiskPace,
        worked: Callable[[], None] = lambda: None,
    ) -> None:
        """`later` calls back after so many µs, unless the process has ended. `worked` is called
        after every piece of work, whose end is not told yet, and may end the process."""
        self._later = later
        self._rng = rng
        self._pace = pace
        self._worked = worked
        self._queue: deque[tuple[Callable[[], Any], Callable[..., None]]] = deque()
        self._is_working = False
        self._closed = False

    @property
    def pending(self) -> int:
        """See DiskExecutor."""
        return len(self._queue) + self._is_working

    def submit(
        self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        """See DiskExecutor."""
        if self._closed:
            raise DiskClosedError("the disk executor is closed")
        if self.pending >= MAX_PENDING:
            raise DiskQueueFullError(f"{self.pending} jobs wait")
        self._queue.append((work, done))
        if not self._is_working:
            self._next()

    def close(self) -> None:
        """See DiskExecutor; but the end of what is being done comes later."""
        self._closed = True
        while self._queue:
            self._queue.popleft()[1](None, DiskClosedError("the disk executor is closed"))

    def _next(self) -> None:
        work, done = self._queue.popleft()
        self._is_working = True
        rng, pace = self._rng, self._pace
        delay = int(rng.expovariate(1) * pace.mean_work_us)
        if rng.random() < pace.stall_rate:
            delay += rng.randrange(500_000)
        self._later(delay, lambda: self._work(work, done))

    def _work(self, work: Callable[[], Any], done: Callable[..., None]) -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # as the disk thread does
            failure = error
        self._worked()

        def notice() -> None:
            self._is_working = False
            if self._queue:
                self._next()
            done(result, failure)

        self._later(int(self._rng.expovariate(1) * self._pace.mean_notice_us), notice)
