"""A copy of a subtree in memory, kept current by one persistent watch.

Every event names a path that has changed; the cache reads that path again. While it reads, further
events are taken from the watch and their paths collected, each once: a busy tree is read less often
and does not overflow the watch. When events may be missing (COMPACTED, an overflow, a new session)
it reads the whole subtree again and tells the differences.

Source: kazoo and Curator `TreeCache`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from enum import Enum
from typing import Any, Final, NamedTuple, Self, TypeVar

from duolog.zk import SessionState, WatchedEvent, ZkClient
from duolog_protocol.errors import (
    ConnectionClosedError,
    Error,
    NoNodeError,
    SessionExpiredError,
    WatchOverflowError,
)
from duolog_protocol.paths import name_of, parent_of
from duolog_protocol.types import EventType, Stat

from .claims import Pauses

T = TypeVar("T")
MAX_ZNODES: Final = 1_000_000
"""Bound of one cache; a larger subtree is an error."""


class TreeEventType(Enum):
    """What a cache tells its listeners."""

    NODE_ADDED = "node_added"
    NODE_UPDATED = "node_updated"
    NODE_REMOVED = "node_removed"
    CONNECTION_SUSPENDED = "connection_suspended"
    """From now on the cache may be out of date."""
    CONNECTION_RECONNECTED = "connection_reconnected"
    CONNECTION_LOST = "connection_lost"
    """The session has ended; the cache is kept, and read again in the next one."""
    INITIALIZED = "initialized"
    """The whole subtree has been read."""


class NodeData(NamedTuple):
    """A znode as the cache knows it."""

    path: str
    data: bytes | None
    stat: Stat


class TreeEvent(NamedTuple):
    """One thing that a cache tells."""

    type: TreeEventType
    event_data: NodeData | None
    """The znode, for the NODE_ events."""


class _Changes:
    """The paths that have changed and were not read again yet."""

    def __init__(self) -> None:
        self.error: Error | None = None
        """What ended the events, if an error did."""
        self._paths: dict[str, None] = {}
        self._all = False
        self._ended = False
        self._news = asyncio.Event()

    async def collect(self, events: AsyncIterator[WatchedEvent]) -> None:
        """Take all events, until they end."""
        try:
            async for event in events:
                if event.type is EventType.COMPACTED or len(self._paths) >= MAX_ZNODES:
                    self._all = True
                    self._paths.clear()
                else:
                    self._paths[event.path] = None
                self._news.set()
        except Error as error:
            self.error = error
        finally:
            self._ended = True
            self._news.set()

    async def wait(self) -> bool:
        """Until there is something to read; false when there will be nothing more."""
        while not (self._all or self._paths or self._ended):
            self._news.clear()
            await self._news.wait()
        return self.error is None and (self._all or bool(self._paths))

    def take(self) -> str | None:
        """What to read next, the first that changed first; None: everything."""
        if self._all:
            self._all = False
            return None
        path = next(iter(self._paths))
        del self._paths[path]
        return path


class TreeCache:
    """The znodes at and below a path.

    ```
    async with TreeCache(zk, "/config") as cache:
        print(cache.get_data("/config/a").data, cache.get_children("/config"))
    ```

    What it shows is a state that the tree has had, path by path, and lags a little behind it;
    while the session is SUSPENDED it stands still. It never shows a change back.
    """

    def __init__(self, zk: ZkClient, path: str) -> None:
        """`path`: the root of the subtree; it need not exist."""
        self._zk = zk
        self._root = path
        self._nodes: dict[str, NodeData] = {}
        self._children: dict[str, set[str]] = {}
        self._listeners: list[Callable[[TreeEvent], Any]] = []
        self._fault_listeners: list[Callable[[BaseException], Any]] = []
        self._task: asyncio.Task[None] | None = None
        self._initialized = asyncio.Event()

    # ---- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the subtree; returns when all of it is here. Cancelling stops the cache."""
        assert self._task is None, "the cache was started already"
        self._zk.add_listener(self._on_state)
        self._task = self._zk.spawn(f"cache {self._root}", self._run())
        waiting = asyncio.ensure_future(self._initialized.wait())
        try:
            await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await self.close()
            raise
        finally:
            waiting.cancel()
        if self._task.done():
            task, self._task = self._task, None
            self._zk.remove_listener(self._on_state)
            task.result()

    async def close(self) -> None:
        """Stop. What is in memory stays readable. Idempotent."""
        self._zk.remove_listener(self._on_state)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Close."""
        await self.close()

    # ---- what it knows -------------------------------------------------------------------------

    def get_data(self, path: str, default: NodeData | None = None) -> NodeData | None:
        """A znode, `default` where there is none. Raises ValueError outside of the subtree."""
        return self._nodes.get(self._inside(path), default)

    def get_children(
        self, path: str, default: frozenset[str] | None = None
    ) -> frozenset[str] | None:
        """Names of the children of a znode, `default` where there is none.

        Raises ValueError outside of the subtree.
        """
        if self._inside(path) not in self._nodes:
            return default
        return frozenset(self._children.get(path, ()))

    def _inside(self, path: str) -> str:
        root = self._root.rstrip("/")
        if path != self._root and not path.startswith(f"{root}/"):
            raise ValueError(f"{path} is outside of {self._root}")
        return path

    def listen(self, listener: Callable[[TreeEvent], Any]) -> Callable[[TreeEvent], Any]:
        """Call `listener`, plain or async, with every TreeEvent. A decorator."""
        self._listeners.append(listener)
        return listener

    def listen_fault(
        self, listener: Callable[[BaseException], Any]
    ) -> Callable[[BaseException], Any]:
        """Call `listener` with what goes wrong: exceptions of listeners, reads that failed."""
        self._fault_listeners.append(listener)
        return listener

    # ---- the task ------------------------------------------------------------------------------

    async def _run(self) -> None:
        pauses = Pauses(self._zk)
        while True:
            try:
                async with self._zk.events(self._root, recursive=True) as events:
                    changes = _Changes()
                    collecting = asyncio.ensure_future(changes.collect(events))
                    try:
                        await self._follow(changes)
                    finally:
                        collecting.cancel()
                        await asyncio.wait({collecting})
                    pauses = Pauses(self._zk)
                    if changes.error is not None:
                        raise changes.error
                    return
            except ConnectionClosedError:
                return
            except WatchOverflowError:
                continue
            except Error as error:
                if not isinstance(error, SessionExpiredError):
                    self._fault(error)
                await pauses.after(error)

    async def _follow(self, changes: _Changes) -> None:
        """Read everything, then what changes, until there are no more events."""
        await self._read_all()
        if not self._initialized.is_set():
            self._initialized.set()
            await self._tell(TreeEventType.INITIALIZED)
        while await changes.wait():
            path = changes.take()
            if path is None:
                await self._read_all()
            else:
                await self._read_one(path)

    async def _read_all(self) -> None:
        """Bring the copy to the present state, from the root down."""
        found: set[str] = set()
        waiting = [self._root]
        while waiting:
            path = waiting.pop()
            names = await self._read_node(path)
            if names is None:
                continue
            found.add(path)
            if len(found) > MAX_ZNODES:
                raise Error(f"{self._root} has over {MAX_ZNODES} znodes: too many for a cache")
            waiting += [f"{path.rstrip('/')}/{name}" for name in names]
        for path in sorted(self._nodes.keys() - found, reverse=True):
            await self._remove(path)

    async def _read_node(self, path: str) -> list[str] | None:
        """Read one znode; the names of its children, None when it does not exist."""
        try:
            data, stat = await self._zk.get(path)
            names: list[str] = await self._zk.get_children(path) if stat.num_children else []
        except NoNodeError:
            return None
        await self._put(NodeData(path, data, stat))
        return names

    async def _read_one(self, path: str) -> None:
        """Bring one znode of the copy to the present state."""
        try:
            data, stat = await self._zk.get(path)
        except NoNodeError:
            for gone in sorted(self._below(path), reverse=True):
                await self._remove(gone)
            return
        await self._put(NodeData(path, data, stat))

    def _below(self, path: str) -> list[str]:
        found = [path] if path in self._nodes else []
        for name in self._children.get(path, ()):
            found += self._below(f"{path.rstrip('/')}/{name}")
        return found

    async def _put(self, node: NodeData) -> None:
        known = self._nodes.get(node.path)
        if known is not None and known.stat.mzxid >= node.stat.mzxid:
            self._nodes[node.path] = node
            return
        self._nodes[node.path] = node
        if node.path not in {self._root, "/"}:
            self._children.setdefault(parent_of(node.path), set()).add(name_of(node.path))
        added = known is None
        kind = TreeEventType.NODE_ADDED if added else TreeEventType.NODE_UPDATED
        await self._tell(kind, node)

    async def _remove(self, path: str) -> None:
        node = self._nodes.pop(path, None)
        self._children.pop(path, None)
        if path not in {self._root, "/"}:
            siblings = self._children.get(parent_of(path))
            if siblings is not None:
                siblings.discard(name_of(path))
        if node is not None:
            await self._tell(TreeEventType.NODE_REMOVED, node)

    def _on_state(self, state: SessionState) -> None:
        kind = _STATES.get(state)
        if kind is not None and self._task is not None and not self._task.done():
            self._zk.spawn(f"cache {self._root} {state.value}", self._tell(kind))

    async def _tell(self, kind: TreeEventType, node: NodeData | None = None) -> None:
        event = TreeEvent(kind, node)
        for listener in list(self._listeners):
            try:
                result = listener(event)
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                self._fault(error)

    def _fault(self, error: BaseException) -> None:
        """Somebody may listen to what goes wrong; nobody does: the loop's handler tells."""
        for listener in self._fault_listeners:
            listener(error)
        if not self._fault_listeners:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the cache of {self._root} met an error", "exception": error}
            )


_STATES: Final = {
    SessionState.SUSPENDED: TreeEventType.CONNECTION_SUSPENDED,
    SessionState.CONNECTED: TreeEventType.CONNECTION_RECONNECTED,
    SessionState.LOST: TreeEventType.CONNECTION_LOST,
}
