"""Watches: who wants to hear of which path.

One-shot data and child watches, persistent and persistent-recursive ones, each per connection and
path. Owns the tables and who is told; the core encodes and sends. Source: ZooKeeper
`WatchManager`; the table of triggers is reference B.7.

    created p    data(p), persistent(p), recursive(p and above): CREATED p; then the parent's
    deleted p    data(p), child(p), persistent(p), recursive(p and above): DELETED p; then the
                 parent's
    changed p    data(p), persistent(p), recursive(p and above): CHANGED p
    the parent's child(parent), persistent(parent): CHILD parent; never recursive (ZOOKEEPER-4475)

A connection is told once of one event on one path, however many watches it has there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from duolog_protocol.paths import parent_of
from duolog_protocol.types import EventType

from .auth import acl_allows
from .connection import Connection
from .datatree import READ
from .state import AclList, Change
from .tally import Tally

DATA: Final = 0
CHILD: Final = 1
PERSISTENT: Final = 2
RECURSIVE: Final = 3
_CREATED: Final = int(EventType.CREATED)
_DELETED: Final = int(EventType.DELETED)
_CHANGED: Final = int(EventType.CHANGED)
_CHILDREN: Final = int(EventType.CHILD)

Watchers = dict[Connection, None]
"""In order of registration: never a set, whose order would depend on addresses."""


class Watches:
    """All watches of one server."""

    def __init__(self) -> None:
        self._tables: tuple[dict[str, Watchers], ...] = ({}, {}, {}, {})
        self.count = 0
        self.fired: Final = {kind: Tally() for kind in (_CREATED, _DELETED, _CHANGED, _CHILDREN)}
        """Connections told, by kind of event."""

    def add(self, kind: int, path: str, connection: Connection) -> None:
        """Register a watch; the same one twice is one."""
        if (kind, path) in connection.watched:
            return
        connection.watched[kind, path] = None
        self._tables[kind].setdefault(path, {})[connection] = None
        self.count += 1

    def has(self, kind: int, path: str, connection: Connection) -> bool:
        """Whether a connection has a watch."""
        return (kind, path) in connection.watched

    def remove(self, kind: int, path: str, connection: Connection) -> bool:
        """Remove a watch; whether there was one."""
        if (kind, path) not in connection.watched:
            return False
        del connection.watched[kind, path]
        self._drop(kind, path, connection)
        self.count -= 1
        return True

    def remove_connection(self, connection: Connection) -> None:
        """Its watches end with a connection (ZOOKEEPER-1382)."""
        for kind, path in connection.watched:
            self._drop(kind, path, connection)
        self.count -= len(connection.watched)
        connection.watched.clear()

    def _drop(self, kind: int, path: str, connection: Connection) -> None:
        table = self._tables[kind]
        watchers = table[path]
        del watchers[connection]
        if not watchers:
            del table[path]

    def take_node(self, path: str, *, deleted: bool) -> Watchers:
        """Who hears that a node was created, changed or `deleted`; one-shot watches are used up."""
        data, child, persistent, recursive = self._tables
        found: Watchers = {}
        if path in data:
            found.update(self._take(DATA, path))
        if deleted and path in child:
            found.update(self._take(CHILD, path))
        if path in persistent:
            found.update(persistent[path])
        if recursive:
            above = path
            while True:
                if above in recursive:
                    found.update(recursive[above])
                if above == "/":
                    break
                above = parent_of(above)
        return found

    def take_children(self, parent: str) -> Watchers:
        """Who hears that a node's children changed; one-shot watches are used up."""
        found: Watchers = {}
        if parent in self._tables[CHILD]:
            found.update(self._take(CHILD, parent))
        if parent in self._tables[PERSISTENT]:
            found.update(self._tables[PERSISTENT][parent])
        return found

    def _take(self, kind: int, path: str) -> Watchers:
        watchers = self._tables[kind].pop(path)
        for connection in watchers:
            del connection.watched[kind, path]
        self.count -= len(watchers)
        return watchers

    def announce(self, changes: Iterable[Change], dirty: dict[Connection, None]) -> None:
        """Tell everybody of changes that were just applied, before any reply that shows them.

        The events are added to the connections' `out`, and the connections to `dirty`.
        """
        for zxid, event_type, path, guard, parent_guard in changes:
            told = self.take_node(path, deleted=event_type == _DELETED)
            if told:
                told_count = _tell(told, zxid, event_type, path, guard, dirty)
                self.fired[event_type].add(told_count)
            if event_type != _CHANGED:
                parent = parent_of(path)
                told = self.take_children(parent)
                if told:
                    told_count = _tell(told, zxid, _CHILDREN, parent, parent_guard, dirty)
                    self.fired[_CHILDREN].add(told_count)

    @property
    def path_count(self) -> int:
        """Watched paths; one counts for each kind of watch on it."""
        return sum(map(len, self._tables))

    def by_path(self) -> Iterator[tuple[str, Watchers]]:
        """Every watched path once, with all who watch it. Walked no further than it is read."""
        for kind, table in enumerate(self._tables):
            earlier = self._tables[:kind]
            for path in table:
                if not any(path in each for each in earlier):
                    watchers: Watchers = {}
                    for each in self._tables[kind:]:
                        watchers.update(each.get(path, {}))
                    yield path, watchers

    def check_invariants(self) -> None:
        """Both directions agree. For tests and the simulator."""
        count = 0
        for kind, table in enumerate(self._tables):
            for path, watchers in table.items():
                assert watchers, (kind, path)
                for connection in watchers:
                    assert (kind, path) in connection.watched, (kind, path, connection)
                    assert not connection.closed, (path, connection)
                    count += 1
        assert count == self.count, (count, self.count)


def _tell(
    watchers: Watchers,
    zxid: int,
    event_type: int,
    path: str,
    guard: AclList | None,
    dirty: dict[Connection, None],
) -> int:
    """One event to many connections, encoded once for each kind of client; how many were told.

    `guard` is the ACL list of the node when not everybody may read it (CVE-2024-23944).
    """
    encoded: dict[type, bytes] = {}
    told_count = 0
    for connection in watchers:
        if guard is not None and not acl_allows(guard, READ, connection.identities):
            continue
        kind = type(connection.codec)
        event = encoded.get(kind)
        if event is None:
            event = encoded[kind] = connection.codec.event(zxid, event_type, path)
        connection.out.append(event)
        connection.event_count += 1
        told_count += 1
        dirty[connection] = None
    return told_count
