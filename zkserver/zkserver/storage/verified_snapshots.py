"""Which of a server's snapshots may be handed on without being read from end to end before.

Owns the memory of what was read: at the start, when one was taken, when one was received. Its
pieces are checked again as they are sent, and the whole by who gets it; what turns out to be
damaged is not offered again. All of it belongs to the disk executor.
"""

from __future__ import annotations

from collections.abc import Iterable


class VerifiedSnapshots:
    """What is known of the snapshots of a directory."""

    def __init__(self, zxid: int) -> None:
        """`zxid`: of the one that the start has read; 0: there is none."""
        self._newest_zxid = zxid
        """Of what was read; newer ones are being written, or were found to be damaged."""
        self._damaged: set[int] = set()

    def add(self, zxid: int) -> None:
        """That one was read, and is right."""
        self._newest_zxid = max(self._newest_zxid, zxid)
        self._damaged.discard(zxid)

    def damaged(self, zxid: int) -> None:
        """Some of it could not be read."""
        self._damaged.add(zxid)

    def truncate_to(self, zxid: int) -> None:
        """Those after `zxid` have gone."""
        self._newest_zxid = min(self._newest_zxid, zxid)

    def newest_of(self, zxids: Iterable[int]) -> int:
        """The newest one of these that may be sent; 0: none."""
        newest, damaged = self._newest_zxid, self._damaged
        return max((each for each in zxids if each <= newest and each not in damaged), default=0)
