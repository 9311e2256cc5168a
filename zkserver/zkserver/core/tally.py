"""Count, sum, smallest and largest of some numbers: what ZooKeeper calls an AvgMinMaxCounter."""

from __future__ import annotations


class Tally:
    """Numbers seen so far; integers only, formatted when somebody asks."""

    __slots__ = ("count", "max", "min", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.min = 0
        """Smallest; 0 while nothing was counted, as is `max`."""
        self.max = 0

    def add(self, value: int, times: int = 1) -> None:
        """`value` was seen, so many times."""
        self.max = max(self.max, value)
        if value < self.min or self.count == 0:
            self.min = value
        self.count += times
        self.total += value * times

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        both = Tally()
        for each in (self, other):
            if each.count:
                both.max = max(both.max, each.max)
                both.min = min(both.min, each.min) if both.count else each.min
                both.count += each.count
                both.total += each.total
        return both

    @property
    def average(self) -> float:
        """The mean, to four places; 0.0 while nothing was counted."""
        return round(self.total / self.count, 4) if self.count else 0.0

    def clear(self) -> None:
        """Begin anew."""
        self.count = self.total = self.min = self.max = 0
