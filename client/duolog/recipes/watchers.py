"""Following a znode: its data, or its children, every state that is seen.

Both read the state and arm a one-shot watch in the same request, and read again when it fires:
nothing is missed for good, though states that were quickly replaced may be skipped. They go on
over lost connections and lost sessions.

Source: kazoo `DataWatch`, `ChildrenWatch`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Generic, Self, TypeVar

from duolog.zk import ZkClient
from duolog_protocol.errors import ConnectionClosedError, Error, NoNodeError
from duolog_protocol.types import Stat

from .claims import Change, Pauses

State = TypeVar("State")
DataState = tuple[bytes | None, Stat | None]
"""(data, Stat); both None while the znode does not exist."""


class _States(Generic[State]):
    """One iteration. No generator: that ends for good when one `anext` is cancelled."""

    def __init__(
        self,
        zk: ZkClient,
        read: Callable[[Change], Awaitable[State]],
        marks: Callable[[State], object],
    ) -> None:
        self._zk = zk
        self._read = read
        self._marks = marks
        self._change = Change(zk)
        self._is_current = False
        """The state was read, and its watch armed, since the last change."""
        self._last: object = self  # equal to no mark

    def __aiter__(self) -> Self:
        """The iteration itself."""
        return self

    async def __anext__(self) -> State:
        """The next state that differs. Cancelling is safe."""
        pauses = Pauses(self._zk)
        while True:
            try:
                if self._is_current:
                    await self._change.wait()
                    self._is_current = False
                    pauses = Pauses(self._zk)
                state = await self._read(self._change)
            except ConnectionClosedError:
                raise StopAsyncIteration from None
            except Error as error:
                await pauses.after(error)
                continue
            self._is_current = True
            marks = self._marks(state)
            if marks != self._last:
                self._last = marks
                return state

    async def aclose(self) -> None:
        """Forget the watch."""
        self._change.forget()

    def __del__(self) -> None:
        """An iteration that is left forgets its watch, too."""
        self._change.forget()


class Following(Generic[State]):
    """The states of a znode: an async iterator, and a decorator.

    Iterating yields the state at once and each later one that differs from it, until the client
    is closed; an `anext` that waits is cancelled safely: the next one goes on.
    While SUSPENDED nothing is heard; after the reconnect, or in a new session after LOST, the state
    is read again and yielded if it has changed.

    As a decorator it calls a function, plain or async, with the fields of each state, in a task of
    the client, until the function returns False or the client is closed. An exception of the
    function ends it and goes to the loop's exception handler.
    """

    def __init__(
        self,
        zk: ZkClient,
        path: str,
        read: Callable[[Change], Awaitable[State]],
        fields: Callable[[State], tuple[Any, ...]],
        marks: Callable[[State], object],
    ) -> None:
        """`read` gives the state and arms the watch; `marks`: two states with equal marks are
        the same."""
        self._zk = zk
        self._path = path
        self._read = read
        self._fields = fields
        self._marks = marks

    def __aiter__(self) -> AsyncIterator[State]:
        """Iterate from the present state."""
        return self._states()

    def _states(self) -> _States[State]:
        return _States(self._zk, self._read, self._marks)

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Call `func` with every state, beginning soon. Returns `func`."""
        self._zk.spawn(f"follow {self._path}", self._call(func))
        return func

    async def _call(self, func: Callable[..., Any]) -> None:
        async with aclosing(self._states()) as states:
            async for state in states:
                result = func(*self._fields(state))
                if inspect.isawaitable(result):
                    result = await result
                if result is False:
                    return


def watch_data(zk: ZkClient, path: str) -> Following[DataState]:
    """Follow a znode's data: (data, Stat), both None while it does not exist.

    ```
    async for data, stat in watch_data(zk, "/config"):
        ...

    @watch_data(zk, "/config")
    async def changed(data, stat): ...
    ```
    """

    async def read(change: Change) -> DataState:
        while True:
            try:
                return await zk.get(path, change.watch(path))
            except NoNodeError:
                if await zk.exists(path, change.watch(path)) is None:
                    return None, None

    def marks(state: DataState) -> object:
        stat = state[1]
        return None if stat is None else (stat.czxid, stat.mzxid)

    return Following(zk, path, read, lambda state: state, marks)


def watch_children(zk: ZkClient, path: str) -> Following[list[str] | None]:
    """Follow the names of a znode's children, sorted; None while the znode does not exist.

    ```
    async for names in watch_children(zk, "/workers"):
        ...

    @watch_children(zk, "/workers")
    def changed(names): ...
    ```
    """

    async def read(change: Change) -> list[str] | None:
        while True:
            try:
                return sorted(await zk.get_children(path, change.watch(path)))
            except NoNodeError:
                if await zk.exists(path, change.watch(path)) is None:
                    return None

    return Following(zk, path, read, lambda state: (state,), lambda state: state)
