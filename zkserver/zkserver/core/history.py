"""The latest changes of the tree, for watches that are resumed.

ZooKeeper loses what happened to a persistent watch while its client was away; here a native client
names the last zxid it has seen and gets what came after it, in order, or is told that it is no
longer known (`compacted`). Owns a bounded list of changes, which the replay of the log fills, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from duolog_protocol.paths import parent_of
from duolog_protocol.types import EventType

from .state import AclList, Change

_CREATED: Final = int(EventType.CREATED)
_DELETED: Final = int(EventType.DELETED)
_CHANGED: Final = int(EventType.CHANGED)
_CHILDREN: Final = int(EventType.CHILD)

Missed = tuple[int, int, str, AclList | None]
"""(zxid, event type, path, ACL list of the node when not everybody may read it)."""


class History:
    """The latest changes, oldest first."""

    def __init__(self, max_count: int, complete_after_zxid: int, new: list[Change]) -> None:
        """`new` is where changes come in, in order of their zxids."""
        self._max_count = max_count
        self.complete_after_zxid = complete_after_zxid
        """Every change with a higher zxid is here."""
        self._new = new
        self._changes: deque[Change] = deque()

    def take_new(self) -> None:
        """Remember what has come in, and empty the list. To be called before anything is asked."""
        kept = self._changes
        kept.extend(self._new)
        self._new.clear()
        while len(kept) > self._max_count:
            self.complete_after_zxid = kept.popleft()[0]

    def __len__(self) -> int:
        """Changes that are remembered."""
        return len(self._changes)

    def since(self, zxid: int) -> Iterator[Change]:
        """The changes after `zxid` that are known, in order."""
        for each in self._changes:
            if each[0] > zxid:
                yield each

    def knows_all_since(self, zxid: int) -> bool:
        """Nothing that came after `zxid` was forgotten."""
        return zxid >= self.complete_after_zxid


class MissedEvents:
    """What the watches of one request missed."""

    def __init__(self, data: list[str], exist: list[str], child: list[str]) -> None:
        self.events: list[Missed] = []
        self.data = data
        self.exist = exist
        self.child = child
        """One-shot watches that did not fire."""


class Gap:
    """The time that a client was away: from the last zxid it has seen until now."""

    def __init__(self, history: History, after_zxid: int) -> None:
        history.take_new()
        self._history = history
        self._after_zxid = after_zxid
        self.is_compacted = not history.knows_all_since(after_zxid)
        """Some of what happened is no longer known."""

    def events(self, lists: list[list[str]]) -> MissedEvents:
        """What watches on these paths would have told, in order.

        `lists`: data, exist, child, persistent, persistent-recursive. A one-shot watch tells one
        event at most, and one event on one path is told once.
        """
        assert not self.is_compacted, self._after_zxid
        data, exist, child = (dict.fromkeys(paths) for paths in lists[:3])
        persistent, recursive = set(lists[3]), set(lists[4])
        missed: list[Missed] = []
        for zxid, event_type, path, guard, parent_guard in self._history.since(self._after_zxid):
            told = path in persistent or (bool(recursive) and _is_below(path, recursive))
            if path in data and event_type != _CREATED:
                del data[path]
                told = True
            if path in exist and event_type == _CREATED:
                del exist[path]
                told = True
            if path in child and event_type == _DELETED:
                del child[path]
                told = True
            if told:
                missed.append((zxid, event_type, path, guard))
            if event_type != _CHANGED:
                parent = parent_of(path)
                told = parent in persistent
                if parent in child:
                    del child[parent]
                    told = True
                if told:
                    missed.append((zxid, _CHILDREN, parent, parent_guard))
        found = MissedEvents(list(data), list(exist), list(child))
        found.events = missed
        return found


def _is_below(path: str, tops: set[str]) -> bool:
    while path not in tops:
        if path == "/":
            return False
        path = parent_of(path)
    return True
