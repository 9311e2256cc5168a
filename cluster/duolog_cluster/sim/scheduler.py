"""Virtual time: callbacks run one after the other, each at its moment, and nothing ever waits.

Owns the clock of a simulation and the order of what happens in it. Time counts in whole
microseconds, so that what takes less than the millisecond of the cores has an order, too; callbacks
of one microsecond run in the order in which they were asked for. No chance is in here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Scheduler:
    """A heap of (moment, number, callback); `run_until` is what makes time pass."""

    def __init__(self, now_us: int = 1_000_000) -> None:
        self.now_us = now_us
        """The virtual time; set by this class only."""
        self.event_count = 0
        """Callbacks run so far."""
        self._next_number = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []

    @property
    def now_ms(self) -> int:
        """The time as the cores are told it: monotonic, in whole milliseconds."""
        return self.now_us // 1_000

    @property
    def next_moment_us(self) -> int | None:
        """When the next callback is due; None: there is none."""
        return self._heap[0][0] if self._heap else None

    def at(self, moment_us: int, callback: Callable[[], None]) -> None:
        """Run a callback at a moment; one that has passed means now, behind what is due now.

        It cannot be taken back: a callback that may have become void checks that itself.
        """
        self._next_number += 1
        entry = (max(moment_us, self.now_us), self._next_number, callback)
        heapq.heappush(self._heap, entry)

    def after(self, delay_us: int, callback: Callable[[], None]) -> None:
        """Run a callback after a delay >= 0."""
        assert delay_us >= 0, delay_us
        self.at(self.now_us + delay_us, callback)

    def run_next(self) -> bool:
        """Let time pass to the next callback and run it; False when none is left."""
        if not self._heap:
            return False
        self.now_us, _, callback = heapq.heappop(self._heap)
        self.event_count += 1
        callback()
        return True

    def run_until(self, moment_us: int) -> None:
        """Run everything that is due up to and including a moment, which is then the time."""
        heap = self._heap
        while heap and heap[0][0] <= moment_us:
            self.run_next()
        self.now_us = max(self.now_us, moment_us)

    def run_for(self, duration_ms: int) -> None:
        """Let so much time pass."""
        self.run_until(self.now_us + duration_ms * 1_000)
