"""How far one persistent watch was told, so that it hears every event exactly once.

Pure. After a reconnect the server tells everything that followed the last zxid of which the client
is sure. That zxid can lie before some events that were told already (the connection may end
between two events of one transaction), and what is told again for one watch matches other watches
of the connection, too. A `Position` sorts this out for its watch:

- In the normal run events come in the order of their zxids and pass.
- While the past is being told (`hold` ... `release`) events are kept; at its end they are put in
  order, and those that were told before are left out.

Many watches are registered again in several requests, *chunks*, and the past is told chunk by
chunk: all that concerns a watch with its own chunk, and parts of it, for the sake of other watches,
with others. So a transaction is taken from one chunk only: the watch's own; or the first that tells
of it, where it happened after that.

Two runs of the same events of one transaction are taken for one event run told twice.
"""

from __future__ import annotations

from typing import Final, Generic, NamedTuple, TypeVar

Key = tuple[int, str]
"""(type, path) of an event."""
Event = TypeVar("Event")

MAX_HELD_EVENTS: Final = 100_000
"""Bound of what is kept while the past is being told; `overflowed` says that it was passed."""


class _Held(NamedTuple, Generic[Event]):
    zxid: int
    key: Key
    event: Event
    chunk: int


class Position(Generic[Event]):
    """What one watch was told."""

    __slots__ = ("_at_zxid", "_done_zxid", "_held", "_told", "overflowed")

    def __init__(self, after_zxid: int) -> None:
        self._done_zxid = after_zxid
        """Everything up to here was told."""
        self._at_zxid = after_zxid
        """The transaction told of last; `_done_zxid <= _at_zxid`."""
        self._told: list[Key] = []
        """What was told of `_at_zxid`; only of meaning when it is after `_done_zxid`."""
        self._held: list[_Held[Event]] | None = None
        self.overflowed = False
        """Events were dropped because too many had to be held."""

    @property
    def zxid(self) -> int:
        """The last transaction of which something was told."""
        return self._at_zxid

    def take(self, event: Event, zxid: int, key: Key, *, again: bool, chunk: int = 0) -> bool:
        """An event came; true when it is to be told now.

        `again`: the server tells somebody's past at the moment, so it may be one we know. `chunk`:
        the request that is being answered.
        """
        if self._held is not None:
            if len(self._held) < MAX_HELD_EVENTS:
                self._held.append(_Held(zxid, key, event, chunk))
            else:
                self.overflowed = True
            return False
        if zxid <= self._done_zxid:
            return False
        if zxid == self._at_zxid:
            if again and key in self._told:
                return False
            self._told.append(key)
            return True
        if zxid < self._at_zxid:
            return False
        self._done_zxid = self._at_zxid
        self._at_zxid = zxid
        self._told = [key]
        return True

    def hold(self) -> None:
        """The past is going to be told from the beginning: keep what comes until `release`."""
        self._held = []
        self.overflowed = False

    def release(self, zxid: int, own_chunk: int = 0) -> list[Event]:
        """The past was told up to `zxid` (inclusive): what is news of it, in order.

        `own_chunk`: the request that asked for this watch.
        """
        held, self._held = self._held or [], None
        held.sort(key=lambda each: each.zxid)  # stable: within a transaction as they came
        news: list[Event] = []
        first = 0
        while first < len(held):
            at_zxid = held[first].zxid
            end = first
            while end < len(held) and held[end].zxid == at_zxid:
                end += 1
            news += self._news_of(at_zxid, _of_one_chunk(held[first:end], own_chunk))
            first = end
        self._done_zxid = max(self._done_zxid, zxid)
        if self._at_zxid <= self._done_zxid:
            self._at_zxid = self._done_zxid
            self._told = []
        return news

    def _news_of(self, zxid: int, group: list[_Held[Event]]) -> list[Event]:
        if zxid <= self._done_zxid or zxid < self._at_zxid:
            return []
        once = group[: _period([each.key for each in group])]
        if zxid > self._at_zxid:
            self._done_zxid, self._at_zxid, self._told = self._at_zxid, zxid, []
        keys = [each.key for each in once]
        told = self._told
        if keys[: len(told)] == told:
            once = once[len(told) :]
        else:
            once = [each for each in once if each.key not in told]
        self._told = told + [each.key for each in once]
        return [each.event for each in once]


def _of_one_chunk(group: list[_Held[Event]], own_chunk: int) -> list[_Held[Event]]:
    """What one chunk tells of a transaction: the own one if it does, else the first."""
    chunks = {each.chunk for each in group}
    chosen = own_chunk if own_chunk in chunks else min(chunks)
    return [each for each in group if each.chunk == chosen]


def _period(keys: list[Key]) -> int:
    """Length of the shortest run whose repetition gives all of it."""
    count = len(keys)
    for length in range(1, count):
        if count % length == 0 and keys == keys[:length] * (count // length):
            return length
    return count
