"""Which watches a client has, and what must be registered again after a reconnect.

Pure. Owns the one-shot watches by kind and path and the persistent ones by path; an event removes
the one-shot watches it fires, exactly as on the server. Source: ZooKeeper `ZKWatchManager`,
zookeeper.md A.11, B.7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Final, NamedTuple

from duolog_protocol.types import EventType, KeeperState
from duolog_protocol.zk_messages import SetWatchesRequest

MAX_SET_WATCHES_BYTES: Final = 128 * 1024


class WatchedEvent(NamedTuple):
    """What a watch tells. Type `NONE` is about the session: see `state`."""

    type: EventType
    state: KeeperState
    path: str


Watcher = Callable[[WatchedEvent], None]


class WatchKind(Enum):
    """What a one-shot watch waits for."""

    DATA = "data"
    EXIST = "exist"
    CHILD = "child"


_FIRED_BY: Final[dict[EventType, tuple[WatchKind, ...]]] = {
    EventType.CREATED: (WatchKind.DATA, WatchKind.EXIST),
    EventType.CHANGED: (WatchKind.DATA, WatchKind.EXIST),
    EventType.DELETED: (WatchKind.DATA, WatchKind.EXIST, WatchKind.CHILD),
    EventType.CHILD: (WatchKind.CHILD,),
}


class WatchRegistry:
    """All watches of one client."""

    def __init__(self) -> None:
        self._one_shot: dict[WatchKind, dict[str, list[Watcher]]] = {kind: {} for kind in WatchKind}
        self._persistent: dict[str, list[Watcher]] = {}
        self._recursive: dict[str, list[Watcher]] = {}

    def add(self, kind: WatchKind, path: str, watcher: Watcher) -> None:
        """A one-shot watch was registered. The same watcher twice fires once."""
        watchers = self._one_shot[kind].setdefault(path, [])
        if watcher not in watchers:
            watchers.append(watcher)

    def add_persistent(self, path: str, watcher: Watcher, *, recursive: bool) -> None:
        """A persistent watch was registered."""
        (self._recursive if recursive else self._persistent).setdefault(path, []).append(watcher)

    def remove_persistent(self, path: str, watcher: Watcher, *, recursive: bool) -> None:
        """Forget a persistent watch; events for it that still come are dropped. Idempotent."""
        table = self._recursive if recursive else self._persistent
        watchers = table.get(path, [])
        if watcher in watchers:
            watchers.remove(watcher)
        if not watchers:
            table.pop(path, None)

    def on_event(self, event: WatchedEvent) -> list[Watcher]:
        """Whom an event of the server concerns; one-shot watches are gone after it."""
        found: list[Watcher] = []
        for kind in _FIRED_BY.get(event.type, ()):
            found += self._one_shot[kind].pop(event.path, ())
        found += self._persistent.get(event.path, ())
        if event.type is not EventType.CHILD:
            for path in _self_and_ancestors(event.path):
                found += self._recursive.get(path, ())
        return list(dict.fromkeys(found))

    def take_all(self) -> list[tuple[str, Watcher]]:
        """(path, watcher) of all watches, which are forgotten: the session is gone."""
        found: list[tuple[str, Watcher]] = []
        for table in (*self._one_shot.values(), self._persistent, self._recursive):
            for path, watchers in table.items():
                found += [(path, watcher) for watcher in watchers]
            table.clear()
        return found

    def persistent(self) -> list[tuple[str, Watcher]]:
        """(path, watcher) of the persistent watches."""
        return [
            (path, watcher)
            for table in (self._persistent, self._recursive)
            for path, watchers in table.items()
            for watcher in watchers
        ]

    def to_register(self, last_zxid_seen: int) -> Iterator[SetWatchesRequest]:
        """Requests that register all watches again, each of a bounded size."""
        tables = (
            self._one_shot[WatchKind.DATA],
            self._one_shot[WatchKind.EXIST],
            self._one_shot[WatchKind.CHILD],
            self._persistent,
            self._recursive,
        )
        batch = _no_paths()
        size = 0
        for at, path in _all_paths(tables):
            if size and size + len(path) > MAX_SET_WATCHES_BYTES:
                yield SetWatchesRequest(last_zxid_seen, *batch, False)
                batch, size = _no_paths(), 0
            batch[at].append(path)
            size += 4 * len(path)
        if size:
            yield SetWatchesRequest(last_zxid_seen, *batch, False)

    @property
    def count(self) -> int:
        """Watches in all."""
        tables = (*self._one_shot.values(), self._persistent, self._recursive)
        return sum(len(watchers) for table in tables for watchers in table.values())


def _no_paths() -> tuple[list[str], list[str], list[str], list[str], list[str]]:
    return [], [], [], [], []


def _all_paths(tables: Iterable[dict[str, list[Watcher]]]) -> Iterator[tuple[int, str]]:
    for at, table in enumerate(tables):
        for path in table:
            yield at, path


def _self_and_ancestors(path: str) -> Iterator[str]:
    yield path
    while path != "/":
        path = path[: path.rfind("/")] or "/"
        yield path
