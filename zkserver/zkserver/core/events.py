"""What goes into the core and what comes out of it.

Events: everything one connection brought in one loop turn, a connection that ended, the log's
answers, a timer. Effects: what the shell has to do, in order. Slotted plain classes, never changed
after they are built; one of them carries a batch, so their cost is per read and not per request.
"""

from __future__ import annotations

from typing import Any

from .connection import Connection

Request = tuple[int, int, Any]
"""(api_key, correlation_id, message): see `duolog_protocol.zk_decoder` and `jute_decoder`."""


class Received:
    """All requests that one read of a connection brought, in order."""

    __slots__ = ("connection", "requests", "wall_ms")

    def __init__(self, connection: Connection, requests: list[Request], wall_ms: int) -> None:
        self.connection = connection
        self.requests = requests
        self.wall_ms = wall_ms


class ConnectionLost:
    """The connection ended; nothing more comes from it and nothing can be sent."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection = connection


class Durable:
    """The log is on disk up to and including `zxid`, or will be before an effect of this step is
    performed."""

    __slots__ = ("zxid",)

    def __init__(self, zxid: int) -> None:
        self.zxid = zxid


class AppendRefused:
    """The disk is full: nothing from `first_zxid` on was written, nor will be.

    The log was truncated back to the record before it, and every `Append` that waited behind was
    dropped: the core takes all of them back.
    """

    __slots__ = ("first_zxid",)

    def __init__(self, first_zxid: int) -> None:
        self.first_zxid = first_zxid


class Drained:
    """What was sent to a connection after an `AwaitDrain` has left."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection = connection


class TimerFired:
    """`ZkCore.deadline_ms` has come."""

    __slots__ = ("wall_ms",)

    def __init__(self, wall_ms: int) -> None:
        self.wall_ms = wall_ms


Event = Received | ConnectionLost | Durable | AppendRefused | Drained | TimerFired


class Append:
    """Append these records to the log, sync, and answer `Durable(last_zxid)`."""

    __slots__ = ("first_zxid", "last_zxid", "records")

    def __init__(self, records: list[bytes], first_zxid: int, last_zxid: int) -> None:
        self.records = records
        self.first_zxid = first_zxid
        self.last_zxid = last_zxid


class Send:
    """Write these pieces to a connection, one after another.

    `more`: others follow once the disk has answered, so these may wait a moment for them.
    """

    __slots__ = ("connection", "more", "pieces")

    def __init__(self, connection: Connection, pieces: list[Any], more: bool) -> None:
        self.connection = connection
        self.pieces = pieces
        self.more = more


class SessionAttached:
    """The connection has a session now: frames up to the full limit may come."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection = connection


class Close:
    """Close a connection after what was sent to it; `ConnectionLost` may follow."""

    __slots__ = ("connection", "reason")

    def __init__(self, connection: Connection, reason: str) -> None:
        self.connection = connection
        self.reason = reason


class PauseReading:
    """Read no more from a connection: it has too much outstanding."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection = connection


class ResumeReading:
    """Read from a connection again."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection = connection


class AwaitDrain:
    """Answer `Drained` once the socket has taken most of what was sent to a connection."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection = connection


class Halt:
    """Stop the server: going on would not be safe."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


Effect = Append | Send | SessionAttached | Close | PauseReading | ResumeReading | AwaitDrain | Halt
