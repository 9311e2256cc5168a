"""A persistent watch as an async iterator.

Owns the bounded buffer between the server's events and their reader: an overflow is told, never
hidden.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Self

from duolog_protocol import zk_messages as zk
from duolog_protocol.errors import Error, SessionExpiredError, WatchOverflowError
from duolog_protocol.types import AddWatchMode, EventType, KeeperState

from .core.zk_watches import WatchedEvent
from .zk_keeper import SessionKeeper

MAX_BUFFERED_EVENTS: Final = 10_000


class WatchStream:
    """The events of a persistent watch: an async iterator, and a context manager that arms it.

    After a reconnect an event of type NONE and state SYNC_CONNECTED tells that changes may have
    been missed meanwhile: read again. Iteration ends when the client is closed and raises
    SessionExpiredError when the session is gone, WatchOverflowError when events came faster than
    they were taken.
    """

    def __init__(self, keeper: SessionKeeper, path: str, *, recursive: bool) -> None:
        self._keeper = keeper
        self._path = path
        self._recursive = recursive
        self._events: deque[WatchedEvent] = deque()
        self._news = asyncio.Event()
        self._armed = False
        self._end: Error | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        """Arm the watch: every later change is seen."""
        await self._arm()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop listening."""
        self.close()

    def close(self) -> None:
        """Stop listening; iteration ends. Idempotent."""
        self._keeper.watches.remove_persistent(
            self._path, self._on_event, recursive=self._recursive
        )
        self._closed = True
        self._news.set()

    async def _arm(self) -> None:
        if self._armed:
            return
        self._armed = True
        mode = AddWatchMode.PERSISTENT_RECURSIVE if self._recursive else AddWatchMode.PERSISTENT
        request = zk.AddWatchRequest(self._keeper.real(self._path), mode, -1)

        def arm(_code: int) -> None:
            self._keeper.watches.add_persistent(
                self._path, self._on_event, recursive=self._recursive
            )

        await self._keeper.call(zk.ADD_WATCH, request, None, reads=True, arm=arm)

    def _on_event(self, event: WatchedEvent) -> None:
        if event.type is EventType.NONE and event.state is KeeperState.EXPIRED:
            self._end = SessionExpiredError(f"the session ended, and the watch on {self._path}")
        elif event.type is EventType.NONE and event.state is KeeperState.CLOSED:
            self._closed = True
        elif len(self._events) >= MAX_BUFFERED_EVENTS:
            self._end = WatchOverflowError(
                f"over {MAX_BUFFERED_EVENTS} events of {self._path} were not taken: read again"
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
        return self._events.popleft()
