"""The disk executor of a simulated server: each piece of work in two halves.

The work is done on the simulated disk at one moment, its end is told at a later one, so that a
crash, a pause or a message may come between.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from duolog_cluster.sim.scheduler import Scheduler

T = TypeVar("T")


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


class DiskOwner(Protocol):
    """The life of a server whose disk this is."""

    def arrive(self, callback: Callable[[], None]) -> None:
        """Call it, once the process is not paused; it may end the life."""

    def guarded(self, callback: Callable[[], None]) -> Callable[[], None]:
        """The callback, of a life that may be over, and that it may end."""

    def crash_point(self, place: str) -> None:
        """May raise PowerLoss."""

    def disk_changed(self) -> None:
        """Some work was done; its end was not told yet."""


class SimExecutor:
    """A `DiskExecutor` of one life: one piece of work after the other."""

    def __init__(
        self, owner: DiskOwner, scheduler: Scheduler, rng: random.Random, pace: DiskPace
    ) -> None:
        self._owner = owner
        self._scheduler = scheduler
        self._rng = rng
        self._pace = pace
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

    def _next(self) -> None:
        work, done = self._queue.popleft()
        self._is_working = True
        rng, pace = self._rng, self._pace
        delay = int(rng.expovariate(1) * pace.mean_work_us)
        if rng.random() < pace.stall_rate:
            delay += rng.randrange(500_000)
        self._later(delay, lambda: self._work(work, done))

    def close(self) -> None:
        """See DiskExecutor."""

    def _work(self, work: Callable[[], Any], done: Callable[..., None]) -> None:
        result, failure = None, None
        try:
            result = work()
        except AssertionError:
            raise
        except Exception as error:
            failure = error
        self._owner.disk_changed()
        self._owner.crash_point("between work and notice")

        def notice() -> None:
            self._is_working = False
            if self._queue:
                self._next()
            done(result, failure)

        self._later(int(self._rng.expovariate(1) * self._pace.mean_notice_us), notice)

    def _later(self, delay_us: int, callback: Callable[[], None]) -> None:
        owner = self._owner
        self._scheduler.after(delay_us, owner.guarded(lambda: owner.arrive(callback)))
