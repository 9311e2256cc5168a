"""Sessions, and when they expire.

A session that exists is part of the replicated state; when it was last heard of is not. Deadlines
are rounded up to the next tick, so that touching a session is one comparison and expiry looks at a
bucket, not at a heap (ZooKeeper `SessionTrackerImpl`, `ExpiryQueue`).

A session is never expired for time that the server itself lost. The tracker promises to look at
the clock every half tick; when it comes later than that by more than a quarter of a tick, the
process was stopped or overloaded and could not hear its clients: everybody gets the time back.
A healthy client is heard of every third of its timeout, so what stays unnoticed cannot harm it.
A server that follows expires nobody, has no time to give back, and only notes whom it hears.
"""

from __future__ import annotations

import hmac
from typing import Final

from duolog_protocol.zk_messages import PASSWORD_BYTES

from .connection import Connection

CLOCK_CHECKS_PER_TICK: Final = 2


class Session:
    """One session."""

    __slots__ = (
        "bucket_ms",
        "closing",
        "connection",
        "ephemeral_bytes",
        "ephemerals",
        "opened_timeout_ms",
        "session_id",
        "timeout_ms",
    )

    def __init__(self, session_id: int, timeout_ms: int) -> None:
        self.session_id = session_id
        """The zxid of its CreateSession: unique in the ensemble without a clock."""
        self.opened_timeout_ms = timeout_ms
        """Negotiated when it was created; replicated."""
        self.timeout_ms = timeout_ms
        """Negotiated by its latest connection; this server's own."""
        self.ephemerals: dict[str, None] = {}
        """Paths of its ephemeral nodes in order of creation."""
        self.ephemeral_bytes = 0
        """What they add to the record of its CloseSession."""
        self.connection: Connection | None = None
        self.closing = False
        """Its CloseSession is outstanding: it may do nothing more."""
        self.bucket_ms = 0
        """Deadline, a multiple of the tick; 0: not tracked."""


def session_password(secret: bytes, session_id: int) -> bytes:
    """Proof that a client owns a session; only who knows the replicated secret can make it."""
    raw = session_id.to_bytes(8, "big", signed=True)
    return hmac.digest(secret, raw, "sha256")[:PASSWORD_BYTES]


class SessionTracker:
    """Deadlines of all sessions of this server."""

    def __init__(self, tick_ms: int) -> None:
        self.tick_ms = tick_ms
        self._buckets: dict[int, dict[int, Session]] = {}
        self.check_ms = 0
        """When it will look at the clock next; 0: nothing is tracked."""
        self._slack_ms = max(1, tick_ms // 4)
        self._interval_ms = max(1, tick_ms // CLOCK_CHECKS_PER_TICK)
        self._heard: dict[int, None] | None = None
        """Sessions whose deadline has moved, where a leader wants to know."""

    def touch(self, session: Session, now_ms: int) -> None:
        """The session was heard of."""
        tick = self.tick_ms
        bucket_ms = ((now_ms + session.timeout_ms) // tick + 1) * tick
        if session.bucket_ms < bucket_ms:
            self._move(session, bucket_ms)
            if self.check_ms == 0 and self._heard is None:
                self.check_ms = now_ms + self._interval_ms

    def renegotiate(self, session: Session, timeout_ms: int, now_ms: int) -> None:
        """A new connection of the session asked for another timeout."""
        session.timeout_ms = timeout_ms
        self.forget(session)
        self.touch(session, now_ms)

    def begin_term(self, *, follows: bool) -> None:
        """Nobody was heard yet; a server that follows tells its leader whom it hears."""
        for bucket in self._buckets.values():
            for session in bucket.values():
                session.bucket_ms = 0
        self._buckets.clear()
        self.check_ms = 0
        self._heard = {} if follows else None

    def take_heard(self) -> tuple[int, ...]:
        """The sessions whose deadline has moved since the last call: each once a tick at most."""
        heard = tuple(self._heard or ())
        if heard:
            self._heard = {}
        return heard

    def forget(self, session: Session) -> None:
        """The session is closed, or about to be."""
        if session.bucket_ms:
            bucket = self._buckets[session.bucket_ms]
            del bucket[session.session_id]
            if not bucket:
                del self._buckets[session.bucket_ms]
            session.bucket_ms = 0

    def deadline_ms(self) -> int | None:
        """When the clock must be looked at, or None while there are no sessions."""
        return self.check_ms if self._buckets else None

    def look_at_clock(self, now_ms: int) -> int:
        """Called in every step from `check_ms` on.

        Returns the ms that the server lost and gave back, or 0.
        """
        check_ms = self.check_ms
        if now_ms < check_ms or check_ms == 0:
            return 0
        self.check_ms = now_ms + self._interval_ms if self._buckets else 0
        lost_ms = now_ms - check_ms
        if lost_ms <= self._slack_ms:
            return 0
        self._extend_all(lost_ms)
        return lost_ms

    def take_expired(self, now_ms: int, max_count: int) -> list[Session]:
        """Remove and return sessions whose deadline has passed, at most `max_count`."""
        expired: list[Session] = []
        for bucket_ms in sorted(bucket for bucket in self._buckets if bucket <= now_ms):
            bucket = self._buckets[bucket_ms]
            for session in list(bucket.values())[: max_count - len(expired)]:
                self.forget(session)
                expired.append(session)
            if len(expired) == max_count:
                self.check_ms = now_ms  # the rest at once, after what came meanwhile
                break
        return expired

    def tracked_count(self) -> int:
        """Sessions with a deadline."""
        return sum(map(len, self._buckets.values()))

    def _move(self, session: Session, bucket_ms: int) -> None:
        self.forget(session)
        session.bucket_ms = bucket_ms
        bucket = self._buckets.get(bucket_ms)
        if bucket is None:
            bucket = self._buckets[bucket_ms] = {}
        bucket[session.session_id] = session
        if self._heard is not None:
            self._heard[session.session_id] = None

    def _extend_all(self, lost_ms: int) -> None:
        shift_ms = -(-lost_ms // self.tick_ms) * self.tick_ms
        buckets, self._buckets = self._buckets, {}
        for bucket_ms, bucket in buckets.items():
            for session in bucket.values():
                session.bucket_ms = bucket_ms + shift_ms
            self._buckets[bucket_ms + shift_ms] = bucket
