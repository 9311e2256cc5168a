"""What is logged, or on its way to the log, and not applied yet.

Owns these records, in the order of the log: they come at its end, go from their front when they are
applied, and from their end when the log loses them.
"""

from __future__ import annotations

from collections import deque

from .peer_events import AppendRecords


class Unapplied:
    """The records of one server; the zxids of one append follow one another without a gap."""

    def __init__(self) -> None:
        self._appends: deque[AppendRecords] = deque()

    def append(self, effect: AppendRecords) -> None:
        """The log grows by these."""
        self._appends.append(effect)

    def take_up_to(self, zxid: int) -> list[bytes]:
        """Those up to `zxid`: they are applied, or a state that holds them has come."""
        appends = self._appends
        taken: list[bytes] = []
        while appends and appends[0].first_zxid <= zxid:
            append = appends.popleft()
            if append.last_zxid > zxid:
                append, rest = _split(append, zxid)
                appends.appendleft(rest)
            taken += append.records
        return taken

    def cut_after(self, zxid: int) -> None:
        """The log ends at `zxid`, or will not grow beyond it."""
        appends = self._appends
        while appends and appends[-1].last_zxid > zxid:
            append = appends.pop()
            if append.first_zxid <= zxid:
                appends.append(_split(append, zxid)[0])


def _split(append: AppendRecords, zxid: int) -> tuple[AppendRecords, AppendRecords]:
    """Its records up to `zxid`, and those after it."""
    count = zxid - append.first_zxid + 1
    records = append.records
    return (
        AppendRecords(records[:count], append.first_zxid, zxid),
        AppendRecords(records[count:], zxid + 1, append.last_zxid),
    )
