"""A persistent watch as an async iterator.

Owns the bounded buffer between the server's events and their reader: an overflow is told, never
hidden.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Final, Self

from duolog_protocol import zk_messages as zk
from duolog_protocol.errors import (
    AuthFailedError,
    Error,
    SessionExpiredError,
    WatchOverflowError,
)
from duolog_protocol.types import AddWatchMode, EventType, KeeperState, WatcherType

from .core.zk_watches import PersistentWatch, WatchedEvent
from .zk_keeper import SessionKeeper

MAX_BUFFERED_EVENTS: Final = 10_000
_ENDS: Final[dict[KeeperState, type[Error]]] = {
    KeeperState.EXPIRED: SessionExpiredError,
    KeeperState.AUTH_FAILED: AuthFailedError,
}


class WatchStream:
    """The events of a persistent watch: an async iterator, and a context manager that arms it.

    Every event comes once and in the order of the transactions, also over a reconnect: the server
    tells what was missed meanwhile (ours; ZooKeeper loses it). Where it no longer knows all of it,
    an event of type COMPACTED tells so: everything below the path may have changed up to that
    event's zxid, so read it again; what follows is complete again. A reader must handle COMPACTED.

    Iteration ends when the client is closed or the watch is removed. It raises
    SessionExpiredError when the session is gone (another stream with `after_zxid=stream.zxid`
    goes on where this one ended), WatchOverflowError when events came faster than they were
    taken.
    """

    def __init__(
        self, keeper: SessionKeeper, path: str, *, recursive: bool, after_zxid: int | None
    ) -> None:
        self._keeper = keeper
        self._after_zxid = -1 if after_zxid is None else after_zxid
        self._watch = PersistentWatch(
            path, self._on_event, recursive=recursive, after_zxid=self._after_zxid
        )
        self._events: deque[WatchedEvent] = deque()
        self._news = asyncio.Event()
        self._arming: asyncio.Lock = asyncio.Lock()
        self._end: Error | None = None
        self._closed = False
        self.zxid = self._watch.after_zxid
        """zxid of the last event that was taken from this stream, or as of which it was armed:
        `after_zxid` for the next."""

    async def __aenter__(self) -> Self:
        """Arm the watch: every later change is seen. Cancelling takes it away again."""
        try:
            await self._arm()
        except BaseException:
            if self._watch.armed:
                self.close()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop listening."""
        self.close()

    def close(self) -> None:
        """Stop listening; iteration ends. Idempotent."""
        was_armed = self._watch.armed
        last = self._keeper.watches.remove_persistent(self._watch)
        if last and was_armed:
            self._remove_at_server()
        self._closed = True
        self._news.set()

    def _remove_at_server(self) -> None:
        recursive = self._watch.recursive
        kind = WatcherType.PERSISTENT_RECURSIVE if recursive else WatcherType.PERSISTENT
        path = self._keeper.real(self._watch.path)
        self._keeper.post(zk.REMOVE_WATCHES, zk.WatchesRequest(path, kind))

    async def _arm(self) -> None:
        """Arm the watch, unless it is. A cancelled try may be answered yet: each has its own watch.

        Cancelled when the answer has come, it stays armed.
        """
        async with self._arming:
            if self._watch.armed or self._closed or self._end is not None:
                return
            registry = self._keeper.watches
            watch = self._watch = PersistentWatch(
                self._watch.path,
                self._on_event,
                recursive=self._watch.recursive,
                after_zxid=self._after_zxid,
            )
            mode = AddWatchMode.PERSISTENT_RECURSIVE if watch.recursive else AddWatchMode.PERSISTENT
            path = self._keeper.real(watch.path)
            request = zk.AddWatchRequest(path, mode, watch.after_zxid)

            def arm(_code: int, zxid: int) -> None:
                if not registry.is_wanted(watch):
                    if registry.is_last(watch):
                        self._remove_at_server()
                    return
                if watch.after_zxid < 0:
                    self.zxid = max(self.zxid, zxid)
                for watcher, event in registry.on_armed(watch, zxid):
                    watcher(event)

            registry.add_persistent(watch)
            try:
                await self._keeper.call(
                    zk.ADD_WATCH,
                    request,
                    None,
                    reads=True,
                    arm=arm,
                    under_way=partial(registry.on_asked, watch) if watch.after_zxid >= 0 else None,
                )
            except BaseException:
                if not watch.armed:
                    registry.remove_persistent(watch)
                raise

    def _on_event(self, event: WatchedEvent) -> None:
        if event.type is EventType.PERSISTENT_WATCH_REMOVED:
            self._closed = True
        elif event.type is EventType.NONE:
            error = _ENDS.get(event.state)
            if error is not None:
                self._end = error(f"the session ended, and with it the watch on {self._watch.path}")
            self._closed = True
        elif len(self._events) >= MAX_BUFFERED_EVENTS or self._watch.position.overflowed:
            self._end = WatchOverflowError(
                f"over {MAX_BUFFERED_EVENTS} events of {self._watch.path} were not taken: "
                "read again"
            )
            self.close()
        else:
            self._events.append(event)
        self._news.set()

    def __aiter__(self) -> Self:
        """The stream itself."""
        return self

    async def __anext__(self) -> WatchedEvent:
        """The next event. Cancelling is safe: the next call returns it."""
        await self._arm()
        while not self._events:
            if self._end is not None:
                raise self._end
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        event = self._events.popleft()
        self.zxid = max(self.zxid, event.zxid)
        return event
