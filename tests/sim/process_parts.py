"""What a simulated process has in place of the machine's clocks and of the thread for its disk.

Each piece of disk work is in two halves: it is done on the simulated disk at one moment, its end is
told at a later one, so that a crash, a pause or a message may come between.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from duolog_cluster.sim.scheduler import Scheduler

T = TypeVar("T")

WALL_OFFSET_MS: Final = 1_700_000_000_000


class SimClock:
    """The scheduler's time."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def now_ms(self) -> int:
        """Monotonic."""
        return self._scheduler.now_ms

    def wall_ms(self) -> int:
        """Since 1970."""
        return WALL_OFFSET_MS + self._scheduler.now_ms


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

    @property
    def pending(self) -> int:
        """See DiskExecutor."""
        return len(self._queue) + self._is_working

    def submit(
        self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        """See DiskExecutor."""
        self._queue.append((work, done))
        if not self._is_working:
            self._next()

    def close(self) -> None:
        """See DiskExecutor."""

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
