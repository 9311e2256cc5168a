"""The two clocks of the client: monotonic for deadlines, wall time for timestamps of records.

They are never compared with each other. A caller may inject others (a simulated world does).
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the client needs to know about time."""

    def now_ms(self) -> int:
        """Monotonic milliseconds: the only time that deadlines see."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch: the timestamp of a record."""
        ...


class SystemClock:
    """The clocks of this machine."""

    __slots__ = ()

    def now_ms(self) -> int:
        """Monotonic milliseconds."""
        return time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000
