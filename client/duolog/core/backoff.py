"""Exponential backoff with jitter (KIP-580): doubling from a base to a bound, 20 % either way."""

from __future__ import annotations

import random
from typing import Final

JITTER: Final = 0.2
_DOUBLINGS_LAST: Final = 30


class Backoff:
    """How long to wait before attempt n; the random source is injected."""

    __slots__ = ("_base_ms", "_bound_ms", "_rng")

    def __init__(self, base_ms: int, bound_ms: int, rng: random.Random) -> None:
        assert 0 <= base_ms <= bound_ms, (base_ms, bound_ms)
        self._base_ms = base_ms
        self._bound_ms = bound_ms
        self._rng = rng

    def delay_ms(self, failed_attempts: int) -> int:
        """Milliseconds to wait after this many failures in a row (1 is the first)."""
        assert failed_attempts >= 1, failed_attempts
        doublings = min(failed_attempts - 1, _DOUBLINGS_LAST)
        delay = min(self._base_ms << doublings, self._bound_ms)
        return max(0, round(delay * self._rng.uniform(1 - JITTER, 1 + JITTER)))
