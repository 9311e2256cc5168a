"""Which watches a client has, and what must be registered again after a reconnect.

Pure. Owns the one-shot watches by kind and path and the persistent ones by path. An event removes
the one-shot watches it fires, exactly as on the server. A persistent watch hears every event once
and in order, also when the server tells some of them again: see `core/zk_resume.py`.

Source: ZooKeeper `ZKWatchManager`, zookeeper.md A.11, B.7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Final, NamedTuple

from duolog_protocol.types import EventType, KeeperState, WatcherType
from duolog_protocol.zk_messages import SetWatchesRequest

from .zk_resume import Position

MAX_SET_WATCHES_BYTES: Final = 128 * 1024


class WatchedEvent(NamedTuple):
    """What a watch tells. Type `NONE` is about the session: see `state`."""

    type: EventType
    state: KeeperState
    path: str
    zxid: int = -1
    """The transaction that did it; -1 where the client itself tells."""


Watcher = Callable[[WatchedEvent], None]
Told = tuple[Watcher, WatchedEvent]


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
_REMOVED_WITH: Final[dict[WatcherType, tuple[WatchKind, ...]]] = {
    WatcherType.CHILDREN: (WatchKind.CHILD,),
    WatcherType.DATA: (WatchKind.DATA, WatchKind.EXIST),
    WatcherType.ANY: tuple(WatchKind),
}


class PersistentWatch:
    """One watcher of one path, and how far it was told."""

    __slots__ = ("after_zxid", "armed", "chunk", "path", "position", "recursive", "watcher")

    def __init__(self, path: str, watcher: Watcher, *, recursive: bool, after_zxid: int) -> None:
        self.path = path
        self.recursive = recursive
        self.watcher = watcher
        self.after_zxid = after_zxid
        """Where it begins; -1: when it is armed."""
        self.position: Position[WatchedEvent] = Position(after_zxid)
        self.armed = False
        """The server knows it: it is registered again after a reconnect."""
        self.chunk = 0
        """Which of the requests registered it again last."""


class WatchRegistry:
    """All watches of one client."""

    def __init__(self) -> None:
        self._one_shot: dict[WatchKind, dict[str, list[Watcher]]] = {kind: {} for kind in WatchKind}
        self._persistent: dict[str, list[PersistentWatch]] = {}
        self._recursive: dict[str, list[PersistentWatch]] = {}
        self._asked: set[PersistentWatch] = set()
        """Watches with a past that were asked for on this connection and not answered, also those
        that nobody wants any more: what the server tells of it other watches may hear again."""
        self._chunk = 0
        """Which of the requests that register again is being answered."""

    # ---- one-shot ------------------------------------------------------------------------------

    def add(self, kind: WatchKind, path: str, watcher: Watcher) -> None:
        """A one-shot watch was registered. The same watcher twice fires once."""
        watchers = self._one_shot[kind].setdefault(path, [])
        if watcher not in watchers:
            watchers.append(watcher)

    def forget(self, path: str, watcher: Watcher) -> None:
        """Call a one-shot watcher of a path no more. Idempotent."""
        for table in self._one_shot.values():
            watchers = table.get(path)
            if watchers is not None and watcher in watchers:
                watchers.remove(watcher)
                if not watchers:
                    del table[path]

    # ---- persistent ----------------------------------------------------------------------------

    def add_persistent(self, watch: PersistentWatch) -> None:
        """A persistent watch will be asked for: from now on its events are held for it."""
        table = self._recursive if watch.recursive else self._persistent
        table.setdefault(watch.path, []).append(watch)
        watch.position.hold()

    def on_armed(self, watch: PersistentWatch, zxid: int) -> list[Told]:
        """The server has answered at `zxid`: what it was told meanwhile, in order."""
        watch.armed = True
        events = watch.position.release(zxid)
        return [] if watch.after_zxid < 0 else [(watch.watcher, event) for event in events]

    def on_asked(self, watch: PersistentWatch, under_way: bool) -> None:
        """The request for a watch with a past was sent, or (not `under_way`) was answered."""
        if under_way:
            self._asked.add(watch)
        else:
            self._asked.discard(watch)

    def remove_persistent(self, watch: PersistentWatch) -> bool:
        """Forget a persistent watch; true when it was the last of its kind and path. Idempotent.

        What it has asked for comes all the same.
        """
        table = self._recursive if watch.recursive else self._persistent
        watches = table.get(watch.path, [])
        if watch not in watches:
            return False
        watches.remove(watch)
        if watches:
            return False
        del table[watch.path]
        return True

    def is_wanted(self, watch: PersistentWatch) -> bool:
        """Whether it was added and not removed: an answer to its request may come later."""
        table = self._recursive if watch.recursive else self._persistent
        return watch in table.get(watch.path, ())

    def is_last(self, watch: PersistentWatch) -> bool:
        """Whether there is no other watch of its kind and path."""
        table = self._recursive if watch.recursive else self._persistent
        return all(other is watch for other in table.get(watch.path, ()))

    # ---- what the server tells -----------------------------------------------------------------

    def on_event(self, event: WatchedEvent) -> list[Watcher]:
        """Whom an event of the server concerns now; one-shot watches are gone after it."""
        found: list[Watcher] = []
        for kind in _FIRED_BY.get(event.type, ()):
            found += self._one_shot[kind].pop(event.path, ())
        again = bool(self._asked)
        for watch in self._persistent_for(event):
            key = (event.type, event.path)
            if watch.position.take(event, event.zxid, key, again=again, chunk=self._chunk):
                found.append(watch.watcher)
        return list(dict.fromkeys(found))

    def _persistent_for(self, event: WatchedEvent) -> Iterator[PersistentWatch]:
        yield from self._persistent.get(event.path, ())
        if event.type is EventType.COMPACTED:
            yield from self._recursive.get(event.path, ())
        elif event.type is not EventType.CHILD and self._recursive:
            for path in _self_and_ancestors(event.path):
                yield from self._recursive.get(path, ())

    # ---- reconnects ----------------------------------------------------------------------------

    def hold_all(self) -> None:
        """The connection is new: the server will tell what every persistent watch missed.

        What the last connection had begun to tell, also for a watch that is not armed yet, will
        be told again from the beginning.
        """
        self._asked.clear()
        for watch in self._all_persistent():
            watch.position.hold()

    def release_all(self, zxid: int) -> list[Told]:
        """All watches are registered again, as of `zxid`: what they missed, each in order."""
        self._chunk = 0
        return [
            (watch.watcher, event)
            for watch in self._all_persistent()
            if watch.armed
            for event in watch.position.release(zxid, watch.chunk)
        ]

    def begin_chunk(self, chunk: int) -> None:
        """The request of `to_register` with this number, from 0, is sent now."""
        self._chunk = chunk

    def to_register(self, relative_zxid: int) -> Iterator[SetWatchesRequest]:
        """Requests that register all watches again, each of a bounded size."""
        tables: tuple[Iterable[str], ...] = (
            self._one_shot[WatchKind.DATA],
            self._one_shot[WatchKind.EXIST],
            self._one_shot[WatchKind.CHILD],
            _armed_paths(self._persistent),
            _armed_paths(self._recursive),
        )
        none: dict[str, list[PersistentWatch]] = {}
        persistent = (none, none, none, self._persistent, self._recursive)
        request = _empty_request(relative_zxid)
        size = chunk = 0
        for at, paths in enumerate(tables):
            for path in paths:
                if size and size + len(path) > MAX_SET_WATCHES_BYTES:
                    yield request
                    request, size = _empty_request(relative_zxid), 0
                    chunk += 1
                request[1 + at].append(path)  # type: ignore[union-attr]
                size += 4 * len(path)
                for watch in persistent[at].get(path, ()):
                    watch.chunk = chunk
        if size:
            yield request

    # ---- the end -------------------------------------------------------------------------------

    def take_all(self) -> list[tuple[str, Watcher]]:
        """(path, watcher) of all armed watches, which are forgotten: the session is gone."""
        found: list[tuple[str, Watcher]] = []
        for one_shot in self._one_shot.values():
            for path, watchers in one_shot.items():
                found += [(path, watcher) for watcher in watchers]
            one_shot.clear()
        for watch in self._all_persistent():
            if watch.armed:
                found.append((watch.path, watch.watcher))
                self.remove_persistent(watch)
        return found

    def take_removed(self, path: str, kind: WatcherType) -> list[tuple[EventType, Watcher]]:
        """What the server was told to remove, and as what its watcher hears of it."""
        found: list[tuple[EventType, Watcher]] = []
        for each in _REMOVED_WITH.get(kind, ()):
            child = each is WatchKind.CHILD
            told = EventType.CHILD_WATCH_REMOVED if child else EventType.DATA_WATCH_REMOVED
            found += [(told, watcher) for watcher in self._one_shot[each].pop(path, ())]
        for of_kind, table in (
            (WatcherType.PERSISTENT, self._persistent),
            (WatcherType.PERSISTENT_RECURSIVE, self._recursive),
        ):
            if kind in (of_kind, WatcherType.ANY):
                for watch in list(table.get(path, ())):
                    found.append((EventType.PERSISTENT_WATCH_REMOVED, watch.watcher))
                    self.remove_persistent(watch)
        return found

    @property
    def count(self) -> int:
        """Watches in all."""
        one_shot = sum(len(each) for table in self._one_shot.values() for each in table.values())
        return one_shot + len(self._all_persistent())

    def _all_persistent(self) -> list[PersistentWatch]:
        return [
            watch
            for table in (self._persistent, self._recursive)
            for watches in table.values()
            for watch in watches
        ]


def _empty_request(relative_zxid: int) -> SetWatchesRequest:
    return SetWatchesRequest(relative_zxid, [], [], [], [], [], True)


def _armed_paths(table: dict[str, list[PersistentWatch]]) -> Iterator[str]:
    for path, watches in table.items():
        if any(watch.armed for watch in watches):
            yield path


def _self_and_ancestors(path: str) -> Iterator[str]:
    yield path
    while path != "/":
        path = path[: path.rfind("/")] or "/"
        yield path
