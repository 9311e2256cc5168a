"""What happens in a history beside the passing of time, as a list that can be told and cut.

A world asks before each thing that a seed has drawn: a fault, a write of a client. All of it
happens, or only what is kept: so a failing seed is shrunk (`shrinking`), and so it is told again.
"""

from __future__ import annotations

from typing import NamedTuple


class Told(NamedTuple):
    """One thing that has happened."""

    number: int
    """Of all that the world has asked for, in order."""
    now_us: int
    what: str

    def __str__(self) -> str:
        return f"{self.number:6} {self.now_us / 1e6:10.6f} s  {self.what}"


class Script:
    """The things of one history."""

    def __init__(self, kept: frozenset[int] | None = None) -> None:
        """`kept`: only these happen, by number; None: all."""
        self._kept = kept
        self._count = 0
        self.told: list[Told] = []

    def happens(self, now_us: int, what: str) -> bool:
        """Whether the next thing happens; then it is written down."""
        number, self._count = self._count, self._count + 1
        if self._kept is not None and number not in self._kept:
            return False
        self.told.append(Told(number, now_us, what))
        return True
