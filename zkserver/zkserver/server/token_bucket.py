"""How fast new connections may come (ZooKeeper's `BlueThrottle` without its dice)."""

from __future__ import annotations


class TokenBucket:
    """So many at once, and so many a second in the long run."""

    def __init__(self, capacity: int, per_second: int, now_ms: int) -> None:
        """`capacity` 0: everything passes."""
        self._capacity = capacity * 1000
        self._per_ms = per_second
        self._level = self._capacity
        """Thousandths of a token, so that a slow rate loses nothing."""
        self._filled_ms = now_ms

    def take(self, now_ms: int) -> bool:
        """Take a token; False where there is none."""
        if self._capacity == 0:
            return True
        gained = (now_ms - self._filled_ms) * self._per_ms
        self._filled_ms = now_ms
        self._level = min(self._capacity, self._level + gained)
        if self._level < 1000:
            return False
        self._level -= 1000
        return True
