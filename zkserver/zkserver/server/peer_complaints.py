"""What is wrong between servers, said often enough to be seen, and not in a storm.

Owns which complaints are logged. Whoever connects may choose the words of some of them, so that
words alone never decide: each kind of complaint about each server has a few lines per interval.
"""

from __future__ import annotations

from typing import Final

from duolog_runtime.clocks import Clock
from duolog_runtime.logs import Logger

INTERVAL_MS: Final = 5_000
"""The same complaint about the same server is logged no more often."""
MAX_REASONS: Final = 4
"""Different reasons that are logged in one interval, of one kind about one server."""


class _Interval:
    """What was said since it began."""

    __slots__ = ("end_ms", "left_out", "reasons")

    def __init__(self, end_ms: int, left_out: int) -> None:
        self.end_ms = end_ms
        self.reasons: set[str] = set()
        self.left_out = left_out


class PeerComplaints:
    """The complaints of one server about the others."""

    def __init__(self, clock: Clock, log: Logger) -> None:
        self._clock = clock
        self._log = log
        self._intervals: dict[tuple[str, int], _Interval] = {}
        """As many as there are kinds and servers."""

    def say(self, event: str, server_id: int, reason: BaseException, **more: str) -> None:
        """Log it, unless that was done just now. `server_id`: whose it is; 0: unknown.

        A line tells how many were left out before it.
        """
        now_ms = self._clock.now_ms()
        interval = self._intervals.get((event, server_id))
        if interval is None or now_ms >= interval.end_ms:
            left_out = 0 if interval is None else interval.left_out
            interval = self._intervals[event, server_id] = _Interval(now_ms + INTERVAL_MS, left_out)
        text = str(reason) or type(reason).__name__
        if text in interval.reasons or len(interval.reasons) >= MAX_REASONS:
            interval.left_out += 1
            return
        interval.reasons.add(text)
        values: dict[str, object] = {**more}
        if server_id:
            values["server"] = server_id
        if interval.left_out:
            values["left_out"] = interval.left_out
            interval.left_out = 0
        self._log.warning(event, reason=text, **values)
