"""The normal form of what a server says: equal for two servers that behave equally.

Owns what may differ and how it is compared all the same:

    zxids        by their distance from the first one; 0 and negative ones as they are
    session ids  by the slot and the number of the session there
    times        checked to lie within the run, and to be a function of the zxid; then dropped
    passwords    dropped; all zeros is told apart
    names        children and ephemerals have no order
"""

from __future__ import annotations

import time
from bisect import bisect_right, insort
from typing import Any, Final, NamedTuple

from .jute import Acl, Connected, Event, JuteError, OpResult, Reply, Stat
from .jute_client import CLOSED, Closed, Frame

DISTANCE: Final = 1_000_000
"""Where distances begin, so that they are not taken for small numbers."""
MAX_SKEW_MS: Final = 1_000
"""Clocks of two processes of one machine; a stamp is older than the reply that shows it."""


class Implausible(Exception):
    """A server contradicts itself, or the clock."""


class NormalStat(NamedTuple):
    """A Stat with zxids as distances, without times."""

    czxid: int
    mzxid: int
    version: int
    cversion: int
    aversion: int
    owner: Any
    data_length: int
    num_children: int
    pzxid: int


class Normaliser:
    """What one server's ids and times mean."""

    def __init__(self, base_zxid: int) -> None:
        self.base_zxid = base_zxid
        self._skipped: list[int] = []
        """Zxids that only this server has taken, in order."""
        self._sessions: dict[int, str] = {0: "none"}
        self._times: dict[int, int] = {0: 0}
        """Time at which each zxid was made; the nodes that were always there have 0."""
        self._started_ms = int(time.time() * 1000) - MAX_SKEW_MS

    def name_session(self, session_id: int, name: str) -> None:
        """From now on that session is called so."""
        self._sessions[session_id] = name

    def zxid(self, zxid: int) -> int:
        """The distance of a zxid from the first one; 0 and below mean no zxid and stay."""
        if zxid <= 0:
            return zxid
        return zxid - self.base_zxid + DISTANCE - bisect_right(self._skipped, zxid)

    def raw(self, distance: int) -> int:
        """The zxid at a distance."""
        zxid = distance - DISTANCE + self.base_zxid
        for skipped in self._skipped:
            zxid += skipped <= zxid
        return max(0, zxid)

    def skip(self, distance: int) -> None:
        """The zxid at that distance was taken by this server only: it does not count."""
        insort(self._skipped, self.raw(distance))

    def begin_at(self, zxid: int) -> None:
        """Count from there on."""
        self.base_zxid = zxid
        self._skipped.clear()

    def frame(self, name: str | None, frame: Frame | Connected) -> Any:
        """The normal form of a frame that answers `name`."""
        if isinstance(frame, Closed):
            return CLOSED
        if isinstance(frame, Event):
            return frame._replace(zxid=self.zxid(frame.zxid))
        if isinstance(frame, Connected):
            return self._connected(frame)
        values = tuple(self._value(name, each) for each in frame.values)
        return frame._replace(zxid=self.zxid(frame.zxid), values=values)

    def _connected(self, frame: Connected) -> Connected:
        if frame.password is None or len(frame.password) != 16:
            raise JuteError(f"a password of {frame.password!r}")
        is_set = any(frame.password)
        return frame._replace(
            session_id=self._sessions.get(frame.session_id, "new"),
            password="set" if is_set else "zeros",
        )

    def _value(self, name: str | None, value: Any) -> Any:
        if isinstance(value, Stat):
            return self.stat(value)
        if isinstance(value, tuple) and value and isinstance(value[0], OpResult):
            return tuple(
                each._replace(values=tuple(self._value("multi", part) for part in each.values))
                for each in value
            )
        if isinstance(value, tuple) and value and isinstance(value[0], Acl):
            return tuple(sorted(value, key=str))
        if isinstance(value, tuple):
            return tuple(sorted(value))
        return value

    def stat(self, stat: Stat) -> NormalStat:
        """Raises Implausible."""
        self._check_time(stat.czxid, stat.ctime)
        self._check_time(stat.mzxid, stat.mtime)
        owner = stat.ephemeral_owner
        return NormalStat(
            self.zxid(stat.czxid),
            self.zxid(stat.mzxid),
            stat.version,
            stat.cversion,
            stat.aversion,
            self._sessions.get(owner, owner),
            stat.data_length,
            stat.num_children,
            self.zxid(stat.pzxid),
        )

    def _check_time(self, zxid: int, time_ms: int) -> None:
        known = self._times.get(zxid)
        if known is None:
            if not self._started_ms <= time_ms <= int(time.time() * 1000) + MAX_SKEW_MS:
                raise Implausible(f"zxid {zxid:#x} is stamped {time_ms}, outside of this run")
            self._times[zxid] = time_ms
        elif known != time_ms:
            raise Implausible(f"zxid {zxid:#x} is stamped {known} and {time_ms}")


def reply_code(frame: Any) -> int | None:
    """The error code of a reply; None for anything else."""
    return frame.error if isinstance(frame, Reply) else None
