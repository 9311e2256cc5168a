"""What operators may look at in the core: right, in order, and no longer than asked for."""

from __future__ import annotations

from typing import Any, cast

import pytest

from duolog_protocol.types import EventType
from zkserver.core.connection import Codec, Connection
from zkserver.core.session_tracker import Session
from zkserver.core.state import ReplicatedState
from zkserver.core.views import Views, bounded
from zkserver.core.watches import CHILD, DATA, PERSISTENT, RECURSIVE, Watches


class EventCodec:
    """Encodes events as their path."""

    def event(self, zxid: int, event_type: int, path: str) -> bytes:
        return path.encode()


class World:
    """A state with sessions, and watches."""

    def __init__(self) -> None:
        self.state = ReplicatedState()
        self.watches = Watches()
        self.views = Views(self.state, self.watches)

    def session(self, session_id: int, *, deadline_ms: int = 1000) -> Connection:
        session = Session(session_id, 4000)
        session.bucket_ms = deadline_ms
        connection = Connection(cast(Codec, EventCodec()), f"peer:{session_id}")
        connection.session, session.connection = session, connection
        self.state.sessions[session_id] = session
        return connection


def test_sessions_are_listed_by_their_deadline() -> None:
    world = World()
    for session_id, deadline_ms in ((1, 3000), (2, 2000), (3, 3000)):
        world.session(session_id, deadline_ms=deadline_ms)
    assert world.views.session_deadlines(3) == ([(2000, [2]), (3000, [1, 3])], True)
    assert world.views.session_deadlines(2) == ([(2000, [2]), (3000, [1])], False)


def test_ephemerals_are_listed_by_session() -> None:
    world = World()
    for session_id, paths in ((1, ["/a", "/b"]), (2, []), (3, ["/c"])):
        connection = world.session(session_id)
        assert connection.session is not None
        connection.session.ephemerals = dict.fromkeys(paths)
    assert world.views.ephemerals(3) == ([(1, ["/a", "/b"]), (3, ["/c"])], True)
    assert world.views.ephemerals(2) == ([(1, ["/a", "/b"])], False)
    assert world.views.ephemerals(1) == ([(1, ["/a"])], False)


def test_watches_are_listed_both_ways_each_pair_once() -> None:
    world = World()
    first, second = world.session(1), world.session(2)
    for kind, path, connection in (
        (DATA, "/a", first),
        (CHILD, "/a", first),
        (CHILD, "/a", second),
        (PERSISTENT, "/b", second),
        (RECURSIVE, "/a", second),
        (RECURSIVE, "/c", first),
    ):
        world.watches.add(kind, path, connection)
    views = world.views
    assert views.watches_by_session(9) == ([(1, ["/a", "/c"]), (2, ["/a", "/b"])], True)
    assert views.watches_by_path(9) == ([("/a", [1, 2]), ("/b", [2]), ("/c", [1])], True)
    assert views.watches_by_path(1) == ([("/a", [1])], False)
    assert views.watch_summary() == (2, 5, 6)
    world.watches.remove_connection(second)
    assert views.watch_summary() == (1, 3, 3)


def test_events_are_counted_by_kind_and_by_connection() -> None:
    world = World()
    first, second = world.session(1), world.session(2)
    for connection in (first, second):
        world.watches.add(DATA, "/a", connection)
    world.watches.add(CHILD, "/", first)
    changes = [
        (7, EventType.CHANGED, "/a", None, None),
        (8, EventType.CREATED, "/b", None, None),
    ]
    dirty: dict[Connection, None] = {}
    world.watches.announce(changes, dirty)
    fired: Any = {kind: (each.count, each.total) for kind, each in world.views.fired.items()}
    assert fired == {
        EventType.CREATED: (0, 0),
        EventType.DELETED: (0, 0),
        EventType.CHANGED: (1, 2),
        EventType.CHILD: (1, 1),
    }
    assert (first.event_count, second.event_count) == (2, 1)


@pytest.mark.parametrize("limit", range(1, 8))
def test_a_listing_is_as_long_as_it_may_be(limit: int) -> None:
    groups: list[tuple[str, list[int]]] = [("a", [1, 2]), ("b", []), ("c", [3]), ("d", [4, 5, 6])]
    whole = [value for _, values in groups for value in values]
    taken, complete = bounded(groups, limit)
    assert [value for _, values in taken for value in values] == whole[:limit]
    assert complete == (limit >= len(whole))


def test_a_listing_walks_no_further_than_it_lists() -> None:
    read: list[int] = []

    def values() -> Any:
        for value in range(1000):
            read.append(value)
            yield value

    assert not bounded([("a", values())], 3).complete
    assert len(read) <= 4
