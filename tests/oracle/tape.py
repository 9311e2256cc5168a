"""Turns what one client sends and hears into records of a history; no I/O."""

from __future__ import annotations

from collections import deque
from typing import Any

from tests.sim.checkers.zk_records import Call, Heard, Opened, Stat

from . import jute
from .jute_client import CLOSED, Frame


class Tape:
    """The records of one client; its connections come one after another."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.events: list[Heard] = []
        self.connections: list[Opened] = []
        self.due: deque[Call] = deque()
        """Requests of the present connection that were not answered, in order."""
        self.last_zxid = 0
        """The highest zxid that the session has seen."""
        self.session = 0
        self.connection = 0
        self._position = 0

    def opened(
        self, connection: int, outcome: str, session: int, sent_ns: int, received_ns: int, seen: int
    ) -> None:
        """A connect was answered, or refused."""
        self.connections.append(Opened(connection, session, outcome, sent_ns, received_ns, seen))
        self.connection, self._position = connection, 0
        if outcome == "opened":
            self.last_zxid = 0
        if outcome in {"opened", "attached"}:
            self.session = session

    def sent(self, name: str, arguments: tuple[Any, ...], xid: int, now_ns: int) -> None:
        """A request is about to be sent."""
        self.due.append(Call(self.session, self.connection, xid, name, arguments, now_ns))

    def heard(self, frame: Frame, now_ns: int) -> Call | None:
        """A frame came. Returns the call that it answers."""
        if frame is CLOSED:
            self.cut()
            return None
        position, self._position = self._position, self._position + 1
        if isinstance(frame, jute.Event):
            assert frame.path is not None and not frame.rest, frame
            self.events.append(Heard(self.connection, position, frame.zxid, frame.type, frame.path))
            return None
        assert isinstance(frame, jute.Reply)
        assert not frame.rest, frame
        call = self.due.popleft()
        assert call.xid == frame.xid, (call, frame)
        call = call._replace(
            received_ns=now_ns,
            position=position,
            error=frame.error,
            zxid=frame.zxid,
            values=plain(call.name, frame.values),
        )
        self.calls.append(call)
        self.last_zxid = max(self.last_zxid, frame.zxid)
        return call

    def cut(self) -> None:
        """The connection has ended: what is due is not known."""
        self.calls += self.due
        self.due.clear()


def plain(name: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Reply fields as a history has them: tuples and `Stat`; ACL lists in order."""
    found = tuple(map(_plain, values))
    if name == "get_acl" and found:
        return (tuple(sorted(found[0])), *found[1:])
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, jute.Stat):
        return Stat(*value)
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value
