"""A naive model of watches, and the comparison of a connection's events with it.

`WatchModel` is one connection's watches. `expect` collects what the connection must hear, change by
change in order of the zxids; `compare` holds that against what it did hear. Rules (ZooKeeper
programmer's guide, "What ZooKeeper Guarantees about Watches"; reference B.7):

- a registered watch hears of the next change after the zxid of the reply that registered it;
- an event comes before any reply that shows its change, each once, in order of the changes;
- of the events of one transaction the order is free.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from typing import Any, Final, NamedTuple

from .zk_model import CHANGED, CREATED, DELETED, Change, ModelTree, parent_of
from .zk_records import Call, Heard

CHILDREN: Final = 4
PERSISTENT_MODE: Final = 0


class Expected(NamedTuple):
    """What one transaction, or one setWatches, makes a connection hear."""

    zxid: int
    events: Counter[tuple[int, str]]
    before_position: int | None
    """The reply that these events must precede; None: the first one with `zxid` or more."""


class WatchModel:
    """The watches of one connection."""

    def __init__(self) -> None:
        self.data: set[str] = set()
        self.child: set[str] = set()
        self.persistent: set[str] = set()
        self.recursive: set[str] = set()
        self.expected: list[Expected] = []

    def register(self, call: Call, tree: ModelTree) -> int | None:
        """A reply that may have set watches; the error code it must have, where that depends."""
        name, arguments, path = call.name, call.arguments, call.arguments[0]
        if name in {"exists", "get_data", "get_children", "get_children2"} and arguments[1]:
            if name == "exists" or (name == "get_data" and not call.error):
                self.data.add(path)
            elif not call.error:
                self.child.add(path)
        elif name == "add_watch":
            (self.persistent if arguments[1] == PERSISTENT_MODE else self.recursive).add(path)
        elif name in {"remove_watches", "check_watches"}:
            kinds = (self.data, self.child, self.persistent, self.recursive)
            found = any(path in kind for kind in kinds)
            if name == "remove_watches":
                for kind in kinds:
                    kind.discard(path)
            return 0 if found else -121
        elif name in {"set_watches", "set_watches2"}:
            self._set_watches(call, tree)
        return None

    def _set_watches(self, call: Call, tree: ModelTree) -> None:
        seen, data, exist, child, *more = call.arguments
        events: Counter[tuple[int, str]] = Counter()
        for path in data:
            node = tree.nodes.get(path)
            if node is None:
                events[DELETED, path] += 1
            elif node.mzxid > seen:
                events[CHANGED, path] += 1
            else:
                self.data.add(path)
        for path in exist:
            if path in tree.nodes:
                events[CREATED, path] += 1
            else:
                self.data.add(path)
        for path in child:
            node = tree.nodes.get(path)
            if node is None:
                events[DELETED, path] += 1
            elif node.pzxid > seen:
                events[CHILDREN, path] += 1
            else:
                self.child.add(path)
        for kind, paths in zip((self.persistent, self.recursive), more, strict=False):
            kind |= set(paths)
        if events:
            self.expected.append(Expected(call.zxid, events, call.position))

    def expect(self, changes: list[Change], zxid: int) -> None:
        """A transaction was applied."""
        events: Counter[tuple[int, str]] = Counter()
        for kind, path in changes:
            if self._take(kind, path):
                events[kind, path] += 1
            parent = parent_of(path)
            if kind != CHANGED and (parent in self.child or parent in self.persistent):
                self.child.discard(parent)
                events[CHILDREN, parent] += 1
        if events:
            self.expected.append(Expected(zxid, events, None))

    def _take(self, kind: int, path: str) -> bool:
        found = path in self.data or path in self.persistent
        self.data.discard(path)
        if kind == DELETED:
            found |= path in self.child
            self.child.discard(path)
        above = path
        while self.recursive and not found:
            found = above in self.recursive
            if above == "/":
                break
            above = parent_of(above)
        return found


LOOK_AHEAD: Final = 50
"""Transactions among which a late event is looked for."""


def compare(expected: list[Expected], heard: list[Heard], replies: list[Call]) -> list[str]:
    """What is wrong with the events of one connection; all three in order.

    The connection may have ended before the last events arrived, but not before those that its
    last replies show.
    """
    problems: list[str] = []
    zxids = [call.zxid for call in replies]
    groups = deque(expected)
    missing: Counter[Any] = Counter(groups[0].events) if groups else Counter()

    def give_up_first() -> None:
        nonlocal missing
        group = groups.popleft()
        witness = _first_showing(group, zxids, replies)
        if witness is not None and missing:
            for (kind, path), count in missing.items():
                event = Heard(witness.connection, -1, group.zxid, kind, path)
                problems.append(f"missing event: {count} x {event} of {group.zxid:#x}; {witness}")
        missing = Counter(groups[0].events) if groups else Counter()

    for event in heard:
        key = (event.type, event.path)
        if not missing[key]:
            ahead = list(groups)[1 : 1 + LOOK_AHEAD]
            if not any(group.events[key] for group in ahead):
                problems.append(f"event without a cause, or once too often: {event}")
                continue
            while not missing[key]:
                give_up_first()
        group = groups[0]
        missing[key] -= 1
        missing += Counter()
        witness = _first_showing(group, zxids, replies)
        if witness is not None and witness.position < event.position:
            problems.append(f"event after the reply that shows the change: {event}; {witness}")
        if event.zxid >= 0 and group.before_position is None and event.zxid != group.zxid:
            problems.append(f"event with the wrong zxid: {event} of {group.zxid:#x}")
        if not missing:
            give_up_first()
    while groups:
        give_up_first()
    return problems


def _first_showing(group: Expected, zxids: list[int], replies: list[Call]) -> Call | None:
    """The first reply that must come after a group's events."""
    if group.before_position is not None:
        positions = [call.position for call in replies]
        return replies[bisect_left(positions, group.before_position)]
    at = bisect_left(zxids, group.zxid)
    return replies[at] if at < len(replies) else None
