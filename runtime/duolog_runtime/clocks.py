"""The two clocks, which everything that needs the time is given.

`now_ms` is monotonic and the only time that deadlines see. `wall_ms` is the time of day, stamped
once into a Txn or record; it may jump and is never compared with `now_ms`.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now_ms(self) -> int:
        """Milliseconds since some fixed moment; never goes back, not even when the date is set."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC; may jump either way."""
        ...


class RealClock:
    """The machine's clocks."""

    __slots__ = ()

    def now_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class ManualClock:
    """Clocks that stand still until they are moved: for tests and simulation."""

    __slots__ = ("_now_ms", "_wall_ms")

    def __init__(self, now_ms: int = 1_000, wall_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._wall_ms = wall_ms

    def now_ms(self) -> int:
        return self._now_ms

    def wall_ms(self) -> int:
        return self._wall_ms

    def advance(self, elapsed_ms: int) -> None:
        """Let time pass, on both clocks."""
        assert elapsed_ms >= 0, elapsed_ms
        self._now_ms += elapsed_ms
        self._wall_ms += elapsed_ms

    def jump_wall(self, by_ms: int) -> None:
        """Set the time of day forward or back; deadlines do not notice."""
        self._wall_ms += by_ms
