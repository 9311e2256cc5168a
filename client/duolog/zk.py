"""`ZkClient`: a session with zkserver. Names and meanings are kazoo's, in asyncio.

Owns the operations and their names. The connection, and the order in which things are heard, are
`zk_keeper`'s.

Calls made while the connection is lost wait for the next one, up to their timeout. A call that was
in flight fails with ConnectionLostError unless it only reads: reads are sent again, writes never,
because they may have happened.

Source: ZooKeeper `ClientCnxn`, kazoo `KazooClient`; zookeeper.md A.9-A.11, B.7, B.8.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Final, Self

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.errors import (
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RequestTimeoutError,
)
from duolog_protocol.paths import parent_of
from duolog_protocol.types import Acl, Stat

from .clock import Clock, SystemClock
from .core.zk_session import Session, SessionState, parse_hosts
from .core.zk_watches import WatchedEvent, Watcher, WatchKind
from .zk_events import WatchStream
from .zk_keeper import ArmOn, Listener, SessionKeeper
from .zk_transaction import Transaction, create_request

DEFAULT_HOSTS: Final = "127.0.0.1:2181"

__all__ = [
    "SessionState",
    "Transaction",
    "WatchStream",
    "WatchedEvent",
    "ZkClient",
]


class ZkClient:
    """A session with zkserver.

    ```
    async with ZkClient("127.0.0.1:2181") as zk:
        await zk.create("/a", b"data")
    ```

    Every call takes `timeout=` in seconds (default: twice the session timeout) and raises
    RequestTimeoutError when it runs out, ConnectionLostError when the connection ended while a
    write was in flight, SessionExpiredError when the session is gone, and the ZkError that the
    server answered. Cancelling a call does not withdraw a request that was sent.
    """

    def __init__(
        self,
        hosts: str = DEFAULT_HOSTS,
        *,
        session_timeout: float = 10.0,
        client_id: tuple[int, bytes] | None = None,
        client_name: str = "duolog",
        rng: random.Random | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`hosts`: HOST[:PORT][,HOST[:PORT]...][/chroot]. `session_timeout`: seconds, as wished;
        the server has the last word. `client_id`: (session id, password) of a session to attach
        to. Raises ConfigError.
        """
        parsed = parse_hosts(hosts)
        self.chroot = parsed.chroot
        self._session = Session(
            parsed, int(session_timeout * 1000), rng or random.Random(), client_id
        )
        self._keeper = SessionKeeper(
            self._session,
            chroot=parsed.chroot,
            client_name=client_name,
            clock=clock or SystemClock(),
            attach_only=client_id is not None,
        )

    # ---- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect."""
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the session."""
        await self.close()

    async def start(self, timeout: float | None = None) -> None:
        """Connect and open (or attach to) the session.

        Raises RequestTimeoutError when no server accepted in time (default: the session timeout),
        SessionExpiredError when the session of `client_id` is gone.
        """
        await self._keeper.start(timeout)

    async def close(self) -> None:
        """Close the session (its ephemeral znodes go at once) and the connection. Idempotent.

        Where the server cannot be reached the session is left to expire.
        """
        await self._keeper.close()

    @property
    def state(self) -> SessionState:
        """What is known of the session."""
        return self._session.state

    @property
    def connected(self) -> bool:
        """Whether the session is CONNECTED."""
        return self._session.state is SessionState.CONNECTED

    @property
    def client_id(self) -> tuple[int, bytes] | None:
        """(session id, password), None without a session."""
        session = self._session
        return (session.session_id, session.password) if session.session_id else None

    @property
    def negotiated_timeout(self) -> float:
        """The session timeout, in seconds, as the server granted it."""
        return self._session.timeout_ms / 1000

    @property
    def last_zxid_seen(self) -> int:
        """The last zxid of zkserver's state that this client has seen."""
        return self._session.last_zxid_seen

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` with every new SessionState, at once, in the loop's thread."""
        self._keeper.listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Undo `add_listener`. Idempotent."""
        if listener in self._keeper.listeners:
            self._keeper.listeners.remove(listener)

    async def states(self) -> AsyncIterator[SessionState]:
        """The current state, then every new one, until the client is closed."""
        seen: deque[SessionState] = deque([self.state])
        news = asyncio.Event()
        news.set()

        def listener(state: SessionState) -> None:
            seen.append(state)
            news.set()

        self.add_listener(listener)
        try:
            while not (self._keeper.closing and not seen):
                await news.wait()
                news.clear()
                while seen:
                    yield seen.popleft()
        finally:
            self.remove_listener(listener)

    async def wait_for(self, state: SessionState, timeout: float | None = None) -> None:
        """Wait until the session is in `state`. Raises RequestTimeoutError."""
        reached = asyncio.Event()

        def listener(now: SessionState) -> None:
            if now is state:
                reached.set()

        self.add_listener(listener)
        try:
            async with asyncio.timeout(timeout):
                while self.state is not state:
                    self._keeper.check_alive()
                    await reached.wait()
                    reached.clear()
        except TimeoutError:
            raise RequestTimeoutError(f"session not {state.value} in {timeout} s") from None
        finally:
            self.remove_listener(listener)

    # ---- znodes --------------------------------------------------------------------------------

    async def create(
        self,
        path: str,
        data: bytes | None = b"",
        *,
        acl: Sequence[Acl] | None = None,
        ephemeral: bool = False,
        sequence: bool = False,
        makepath: bool = False,
        include_data: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Create a znode and return its path; with `include_data` (path, Stat).

        `sequence` appends a ten-digit number; `makepath` creates missing parents. Raises
        NodeExistsError, NoNodeError (the parent), NoChildrenForEphemeralsError.
        """
        request = create_request(self._keeper.real(path), data, acl, ephemeral, sequence)
        try:
            response = await self._keeper.call(zk.CREATE, request, timeout)
        except NoNodeError:
            if not makepath:
                raise
            await self.ensure_path(parent_of(path), timeout=timeout)
            response = await self._keeper.call(zk.CREATE, request, timeout)
        found = self._keeper.shown(response.path)
        return (found, response.stat) if include_data else found

    async def ensure_path(self, path: str, *, timeout: float | None = None) -> None:
        """Create a znode and its parents where they are missing."""
        if path == "/" or await self.exists(path, timeout=timeout) is not None:
            return
        await self.ensure_path(parent_of(path), timeout=timeout)
        try:
            await self.create(path, b"", timeout=timeout)
        except NodeExistsError:
            return

    async def delete(
        self,
        path: str,
        version: int = -1,
        *,
        recursive: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Delete a znode; `recursive` with everything below it, not in one transaction.

        Raises NoNodeError, BadVersionError, NotEmptyError.
        """
        while True:
            if recursive:
                for name in await self.get_children(path, timeout=timeout):
                    try:
                        child = f"{path.rstrip('/')}/{name}"
                        await self.delete(child, recursive=True, timeout=timeout)
                    except NoNodeError:
                        continue
            try:
                await self._keeper.call(
                    zk.DELETE, zk.DeleteRequest(self._keeper.real(path), version), timeout
                )
                return
            except NotEmptyError:
                if not recursive:
                    raise

    async def exists(
        self, path: str, watch: Watcher | None = None, *, timeout: float | None = None
    ) -> Stat | None:
        """The Stat of a znode, None where there is none.

        `watch` is called once: when the znode is created, changed or deleted.
        """

        def arm(code: int) -> None:
            if watch is not None:
                kind = WatchKind.DATA if code == 0 else WatchKind.EXIST
                self._keeper.watches.add(kind, path, watch)

        request = zk.ExistsRequest(self._keeper.real(path), watch is not None)
        try:
            response = await self._keeper.call(
                zk.EXISTS, request, timeout, reads=True, arm=arm, arm_on=(0, ZkErrorCode.NO_NODE)
            )
        except NoNodeError:
            return None
        stat: Stat = response.stat
        return stat

    async def get(
        self, path: str, watch: Watcher | None = None, *, timeout: float | None = None
    ) -> tuple[bytes | None, Stat]:
        """Data and Stat. `watch` is called once: on the next change or the deletion.

        Raises NoNodeError; then no watch is left.
        """
        request = zk.GetDataRequest(self._keeper.real(path), watch is not None)
        arm = self._armer(WatchKind.DATA, path, watch)
        response = await self._keeper.call(zk.GET_DATA, request, timeout, reads=True, arm=arm)
        return response.data, response.stat

    async def set(
        self, path: str, data: bytes | None, version: int = -1, *, timeout: float | None = None
    ) -> Stat:
        """Replace the data; `version` -1 matches any. Raises NoNodeError, BadVersionError."""
        request = zk.SetDataRequest(self._keeper.real(path), data, version)
        stat: Stat = (await self._keeper.call(zk.SET_DATA, request, timeout)).stat
        return stat

    async def get_children(
        self,
        path: str,
        watch: Watcher | None = None,
        *,
        include_data: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Names of the children, in no order; with `include_data` (names, Stat of the parent).

        `watch` is called once: when a child comes or goes, or the znode is deleted.
        """
        request = zk.GetChildrenRequest(self._keeper.real(path), watch is not None)
        arm = self._armer(WatchKind.CHILD, path, watch)
        response = await self._keeper.call(zk.GET_CHILDREN, request, timeout, reads=True, arm=arm)
        return (response.children, response.stat) if include_data else response.children

    async def sync(self, path: str = "/", *, timeout: float | None = None) -> str:
        """Wait until the server has applied all that was committed when the call was made."""
        response = await self._keeper.call(
            zk.SYNC, zk.SyncRequest(self._keeper.real(path)), timeout, reads=True
        )
        return self._keeper.shown(response.path)

    async def check(self, path: str, version: int = -1, *, timeout: float | None = None) -> None:
        """Raise NoNodeError or BadVersionError unless the znode is there at that version."""
        await self._keeper.call(
            zk.CHECK, zk.CheckRequest(self._keeper.real(path), version), timeout
        )

    def transaction(self) -> Transaction:
        """Collect operations that are applied all together or not at all."""
        return Transaction(self._keeper)

    def events(self, path: str, *, recursive: bool = False) -> WatchStream:
        """Every change of a znode (and its children; `recursive`: of the subtree), as it happens.

        `async for event in zk.events(path)`; use it as an async context manager to be sure that
        the watch is armed before something else is done.
        """
        return WatchStream(self._keeper, path, recursive=recursive)

    def _armer(self, kind: WatchKind, path: str, watch: Watcher | None) -> ArmOn | None:
        if watch is None:
            return None
        return lambda _code: self._keeper.watches.add(kind, path, watch)
