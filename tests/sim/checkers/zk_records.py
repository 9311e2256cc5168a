"""What a recorded run of a coordination server consists of, and its file format.

A history is what clients sent and heard, with times of one clock, and, where there is one, the
order of transactions in the server's own log. Operations have the names and fields of ZooKeeper's
protocol whatever protocol they were sent by. One JSON value a line, so that a run can be looked at
and checked again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

WRITES: Final = frozenset({"create", "create2", "delete", "set_data", "set_acl", "multi", "close"})
"""Operations that take a zxid."""


class Stat(NamedTuple):
    """The metadata of a znode, in ZooKeeper's order."""

    czxid: int
    mzxid: int
    ctime: int
    mtime: int
    version: int
    cversion: int
    aversion: int
    ephemeral_owner: int
    data_length: int
    num_children: int
    pzxid: int


class Call(NamedTuple):
    """A request, and its reply where one came."""

    session: int
    connection: int
    """Number of the connection: unique in the history, rising in a session."""
    xid: int
    name: str
    arguments: tuple[Any, ...]
    sent_ns: int
    received_ns: int | None = None
    """None: no reply came, it may have happened or not."""
    position: int = -1
    """Place of the reply among all frames of the connection."""
    error: int = 0
    zxid: int = 0
    values: tuple[Any, ...] = ()

    def __str__(self) -> str:
        outcome = "no reply"
        if self.received_ns is not None:
            shown = self.error or _short(self.values)
            outcome = f"zxid {self.zxid:#x} -> {shown}"
        arguments = _short(self.arguments)
        return f"[connection {self.connection} xid {self.xid}] {self.name}{arguments} {outcome}"


class Heard(NamedTuple):
    """A watch event."""

    connection: int
    position: int
    zxid: int
    """Of the change, where the server tells it; else -1."""
    type: int
    path: str

    def __str__(self) -> str:
        kind = {1: "created", 2: "deleted", 3: "changed", 4: "children changed"}[self.type]
        return f"[connection {self.connection} frame {self.position}] event {self.path} {kind}"


class Opened(NamedTuple):
    """A connection, and what became of its session."""

    connection: int
    session: int
    """The session that was asked for, or granted; 0: refused a new one."""
    outcome: str
    """opened, attached, expired, or refused (closed without a word)."""
    sent_ns: int
    received_ns: int
    last_zxid_seen: int


class Logged(NamedTuple):
    """A transaction of the server's log."""

    zxid: int
    session: int
    xid: int
    kind: str
    """write, error, open (a session), close (a session), or other."""


class History(NamedTuple):
    """One run."""

    calls: list[Call]
    events: list[Heard]
    connections: list[Opened]
    log: list[Logged] | None
    """The whole log in order; None where it is not known."""


def _short(values: tuple[Any, ...]) -> str:
    text = repr(values)
    return text if len(text) <= 160 else f"{text[:160]}..."


# ---- files -------------------------------------------------------------------------------------

_KINDS: Final[dict[str, Any]] = {
    "call": Call,
    "event": Heard,
    "connection": Opened,
    "log": Logged,
}


def to_lines(history: History) -> Iterator[str]:
    """The history as lines of JSON."""
    yield json.dumps({"format": 1, "log": history.log is not None})
    parts = (history.calls, history.events, history.connections, history.log or [])
    for kind, records in zip(_KINDS, parts, strict=True):
        for record in records:
            yield json.dumps([kind, *map(_plain, record)])


def from_lines(lines: Iterable[str]) -> History:
    """The opposite of `to_lines`."""
    each = iter(lines)
    head = json.loads(next(each))
    assert head["format"] == 1, head
    found: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
    for line in each:
        kind, *fields = json.loads(line)
        found[kind].append(_KINDS[kind](*map(_rich, fields)))
    log = found["log"] if head["log"] else None
    return History(found["call"], found["event"], found["connection"], log)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, Stat):
        return {"stat": list(value)}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _rich(value: Any) -> Any:
    if isinstance(value, dict):
        return Stat(*value["stat"]) if "stat" in value else base64.b64decode(value["bytes"])
    return tuple(map(_rich, value)) if isinstance(value, list) else value
