"""`ZkClient`: a session with zkserver. Names and meanings are kazoo's, in asyncio.

Owns the one connection and the task that keeps it alive. Order is everything here: a reply and the
events before it are handled in the turn they arrive, in their order, before any coroutine that
waits for them runs; a watch is registered in the same turn as the reply that armed it.

Calls made while the connection is lost wait for the next one, up to their timeout. A call that was
in flight fails with ConnectionLostError unless it only reads: reads are sent again, writes never,
because they may have happened.

Source: ZooKeeper `ClientCnxn`, kazoo `KazooClient`; zookeeper.md A.9-A.11, B.7, B.8.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import (
    API_VERSIONS,
    AnyApi,
    ApiVersionsRequest,
    error_message,
)
from duolog_protocol.codec import cursor_of
from duolog_protocol.connection import Push, Response
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.errors import (
    ConnectionClosedError,
    ConnectionLostError,
    Error,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RemoteProtocolError,
    RequestTimeoutError,
    ServerBehindClientError,
    SessionExpiredError,
    TransportError,
    WatchOverflowError,
    ZkError,
    zk_error,
)
from duolog_protocol.frames import MAX_HEADER_BYTES
from duolog_protocol.paths import parent_of, path_problem
from duolog_protocol.types import (
    OPEN_ACL_UNSAFE,
    Acl,
    AddWatchMode,
    CreateMode,
    EventType,
    KeeperState,
    Stat,
)
from duolog_runtime.connection import ClientLink, connect
from duolog_runtime.version import VERSION

from .clock import Clock, SystemClock
from .core.zk_session import Session, SessionState, parse_hosts
from .core.zk_watches import WatchedEvent, Watcher, WatchKind, WatchRegistry

T = TypeVar("T")
DEFAULT_HOSTS: Final = "127.0.0.1:2181"
MAX_BUFFERED_EVENTS: Final = 10_000
CLOSE_SECONDS: Final = 2.0
MAX_FRAME_BYTES: Final = zk.MAX_LIST_BYTES + MAX_HEADER_BYTES

Listener = Callable[[SessionState], None]
_ArmOn = Callable[[int], None]
"""Called with the error code of a reply, in the turn it arrives: registers a watch."""

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
        problem = path_problem(parsed.chroot) if parsed.chroot else None
        if problem is not None:
            raise ValueError(f"chroot: {problem}")
        self.chroot = parsed.chroot
        self._rng = rng or random.Random()
        self._clock = clock or SystemClock()
        self._client_name = client_name
        self._session = Session(parsed, int(session_timeout * 1000), self._rng, client_id)
        self._attach_only = client_id is not None
        self._watches = WatchRegistry()
        self._listeners: list[Listener] = []
        self._link: ClientLink | None = None
        self._usable = asyncio.Event()
        """Set while a connection with a session and re-registered watches is there."""
        self._link_ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._failure: BaseException | None = None

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
        assert self._task is None, "the client was started already"
        self._task = asyncio.create_task(self._run(), name="zk-session")
        if timeout is None:
            timeout = self._session.wanted_timeout_ms / 1000
        try:
            await self._until_usable(timeout)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the session (its ephemeral znodes go at once) and the connection. Idempotent.

        Where the server cannot be reached the session is left to expire.
        """
        self._closing = True
        link = self._link
        if link is not None and self._usable.is_set() and not link.closed:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await link.call(zk.CLOSE_SESSION, zk.Empty(), zk_error)
            except (Error, TimeoutError):
                pass  # it expires by itself
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        if self._link is not None:
            self._link.abort()
            self._link = None
        self._usable.clear()
        if self._session.on_expired():
            self._tell(SessionState.LOST)
        self._forget_watches(KeeperState.CLOSED)

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
        self._listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Undo `add_listener`. Idempotent."""
        if listener in self._listeners:
            self._listeners.remove(listener)

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
            while not (self._closing and not seen):
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
                    self._check_alive()
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
        request = _create_request(self._real(path), data, acl, ephemeral, sequence)
        try:
            response = await self._call(zk.CREATE, request, timeout)
        except NoNodeError:
            if not makepath:
                raise
            await self.ensure_path(parent_of(path), timeout=timeout)
            response = await self._call(zk.CREATE, request, timeout)
        found = self._shown(response.path)
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
                await self._call(zk.DELETE, zk.DeleteRequest(self._real(path), version), timeout)
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
                self._watches.add(kind, path, watch)

        request = zk.ExistsRequest(self._real(path), watch is not None)
        try:
            response = await self._call(
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
        request = zk.GetDataRequest(self._real(path), watch is not None)
        arm = self._armer(WatchKind.DATA, path, watch)
        response = await self._call(zk.GET_DATA, request, timeout, reads=True, arm=arm)
        return response.data, response.stat

    async def set(
        self, path: str, data: bytes | None, version: int = -1, *, timeout: float | None = None
    ) -> Stat:
        """Replace the data; `version` -1 matches any. Raises NoNodeError, BadVersionError."""
        request = zk.SetDataRequest(self._real(path), data, version)
        stat: Stat = (await self._call(zk.SET_DATA, request, timeout)).stat
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
        request = zk.GetChildrenRequest(self._real(path), watch is not None)
        arm = self._armer(WatchKind.CHILD, path, watch)
        response = await self._call(zk.GET_CHILDREN, request, timeout, reads=True, arm=arm)
        return (response.children, response.stat) if include_data else response.children

    async def sync(self, path: str = "/", *, timeout: float | None = None) -> str:
        """Wait until the server has applied all that was committed when the call was made."""
        response = await self._call(zk.SYNC, zk.SyncRequest(self._real(path)), timeout, reads=True)
        return self._shown(response.path)

    async def check(self, path: str, version: int = -1, *, timeout: float | None = None) -> None:
        """Raise NoNodeError or BadVersionError unless the znode is there at that version."""
        await self._call(zk.CHECK, zk.CheckRequest(self._real(path), version), timeout)

    def transaction(self) -> Transaction:
        """Collect operations that are applied all together or not at all."""
        return Transaction(self)

    def events(self, path: str, *, recursive: bool = False) -> WatchStream:
        """Every change of a znode (and its children; `recursive`: of the subtree), as it happens.

        `async for event in zk.events(path)`; use it as an async context manager to be sure that
        the watch is armed before something else is done.
        """
        return WatchStream(self, path, recursive=recursive)

    # ---- calls ---------------------------------------------------------------------------------

    def _armer(self, kind: WatchKind, path: str, watch: Watcher | None) -> _ArmOn | None:
        if watch is None:
            return None
        return lambda _code: self._watches.add(kind, path, watch)

    async def _call(
        self,
        api: AnyApi,
        message: Any,
        timeout: float | None,
        *,
        reads: bool = False,
        arm: _ArmOn | None = None,
        arm_on: tuple[int, ...] = (0,),
    ) -> Any:
        if timeout is None:
            timeout = 2 * self._session.timeout_ms / 1000
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self._until_usable(None)
                    try:
                        return await self._send(api, message, arm, arm_on)
                    except ConnectionLostError:
                        if not reads:
                            raise
        except TimeoutError:
            raise RequestTimeoutError(f"{api.name} was not answered in {timeout} s") from None

    async def _send(
        self, api: AnyApi, message: Any, arm: _ArmOn | None, arm_on: tuple[int, ...]
    ) -> Any:
        link = self._link
        if link is None or link.closed:
            raise ConnectionLostError("the connection to zkserver has just ended")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def on_response(response: Response | None) -> None:
            if response is None:
                if not answer.done():
                    answer.set_exception(ConnectionLostError("no answer before the end"))
                return
            header = response.header
            self._session.saw(header.context)
            self._session.on_heard(self._clock.now_ms())
            if arm is not None and header.error_code in arm_on:
                arm(header.error_code)
            if answer.done():
                return
            if header.error_code:
                answer.set_exception(zk_error(header.error_code, error_message(header)))
            else:
                answer.set_result(response.message)

        link.send(api, message, on_response)
        self._session.on_sent(self._clock.now_ms())
        return await answer

    async def _until_usable(self, timeout: float | None) -> None:
        """Wait for a connection. Raises what ended the client, RequestTimeoutError."""
        self._check_alive()
        if self._usable.is_set():
            return
        assert self._task is not None
        waiting = asyncio.ensure_future(self._usable.wait())
        try:
            done, _ = await asyncio.wait(
                {waiting, self._task}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiting.cancel()
        self._check_alive()
        if not done:
            raise RequestTimeoutError(f"no zkserver accepted the session in {timeout} s")

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._task is None or (self._closing and not self._usable.is_set()):
            raise ConnectionClosedError("the client is not started or was closed")

    # ---- the task ------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Keep the session alive until cancelled."""
        try:
            while True:
                if await self._connect():
                    await self._watch_over()
                    self._on_link_ended()
                else:
                    await asyncio.sleep(self._session.retry_delay_ms() / 1000)
                if self._session.is_overdue(self._clock.now_ms()):
                    self._on_expired()
        except Error as error:
            self._failure = error
        finally:
            self._usable.clear()

    async def _connect(self) -> bool:
        """Try one server. Raises SessionExpiredError when only one given session would do."""
        session = self._session
        host, port = session.next_address()
        self._link_ended.clear()
        try:
            async with asyncio.timeout(session.connect_timeout_ms() / 1000):
                link = await connect(
                    host,
                    port,
                    max_frame_bytes=MAX_FRAME_BYTES,
                    on_push=self._on_push,
                    on_closed=lambda _reason: self._link_ended.set(),
                )
                self._link = link
                try:
                    await self._handshake(link)
                except BaseException:
                    link.abort()
                    raise
        except SessionExpiredError:
            if self._attach_only:
                raise
            self._on_expired()
            return False
        except (TransportError, TimeoutError, ServerBehindClientError, RemoteProtocolError):
            return False
        except ZkError:
            return False
        self._usable.set()
        if session.on_usable():
            self._tell(SessionState.CONNECTED)
        return True

    async def _handshake(self, link: ClientLink) -> None:
        session = self._session
        hello = ApiVersionsRequest(self._client_name, VERSION)
        async with asyncio.TaskGroup() as group:
            versions = group.create_task(
                _plain(link.call(API_VERSIONS, hello, zk_error, 0)), name="api-versions"
            )
            accepted = group.create_task(
                _plain(link.call(zk.CONNECT, session.connect_request(), zk_error, 0)),
                name="connect",
            )
        for outcome in (versions.result(), accepted.result()):
            if isinstance(outcome, Error):
                raise outcome
        hello_response, connect_response = versions.result(), accepted.result()
        assert isinstance(hello_response, Response), hello_response
        assert isinstance(connect_response, Response), connect_response
        link.endpoint.learn_versions(hello_response.message, zk.ZK_APIS)
        is_new = session.on_connected(connect_response.message, self._clock.now_ms())
        self._attach_only = False
        if not is_new:
            await self._register_watches_again(link)
        session.saw(connect_response.header.context)

    async def _register_watches_again(self, link: ClientLink) -> None:
        for request in self._watches.to_register(self._session.last_zxid_seen):
            zxid, *lists = request
            real = [[self._real(path) for path in paths] for paths in lists]
            await link.call(zk.SET_WATCHES, zk.SetWatchesRequest(zxid, *real), zk_error)
        for path, watcher in self._watches.persistent():
            watcher(WatchedEvent(EventType.NONE, KeeperState.SYNC_CONNECTED, path))

    async def _watch_over(self) -> None:
        """Ping in time, and give up a server that is silent; returns when the link has ended."""
        session, link = self._session, self._link
        assert link is not None
        while not link.closed:
            now_ms = self._clock.now_ms()
            if session.is_silent(now_ms):
                link.abort(ConnectionLostError("zkserver is silent"))
            elif session.must_ping(now_ms):
                link.send(zk.PING, zk.Empty(), self._on_pong)
                session.on_sent(now_ms)
            delay = max(session.next_look_ms() - now_ms, 1) / 1000
            try:
                async with asyncio.timeout(delay):
                    await self._link_ended.wait()
            except TimeoutError:
                continue

    def _on_pong(self, response: Response | None) -> None:
        if response is not None:
            self._session.on_heard(self._clock.now_ms())
            self._session.saw(response.header.context)

    def _on_link_ended(self) -> None:
        link, self._link = self._link, None
        self._usable.clear()
        if link is not None:
            link.abort()
        if self._session.on_disconnected(self._clock.now_ms()):
            self._tell(SessionState.SUSPENDED)

    def _on_expired(self) -> None:
        if self._session.on_expired():
            self._tell(SessionState.LOST)
        self._forget_watches(KeeperState.EXPIRED)

    def _forget_watches(self, state: KeeperState) -> None:
        for path, watcher in self._watches.take_all():
            watcher(WatchedEvent(EventType.NONE, state, path))

    def _tell(self, state: SessionState) -> None:
        for listener in list(self._listeners):
            listener(state)

    def _on_push(self, push: Push) -> None:
        header = push.header
        self._session.on_heard(self._clock.now_ms())
        if header.error_code != zk.WATCH_EVENT_KEY:
            return  # an event of a later version
        event = zk.WATCH_EVENT.decode(header.values[3:], 0, cursor_of(push.frame))
        self._session.saw(header.context)
        shown = WatchedEvent(
            EventType(event.type), KeeperState(event.state), self._shown(event.path)
        )
        for watcher in self._watches.on_event(shown):
            watcher(shown)

    # ---- chroot --------------------------------------------------------------------------------

    def _real(self, path: str) -> str:
        if not self.chroot:
            return path
        return self.chroot if path == "/" else self.chroot + path

    def _shown(self, path: str) -> str:
        return path[len(self.chroot) :] or "/" if self.chroot else path


async def _plain(work: Any) -> Response | Error:
    """The result or the error of a call, as a value: both halves of a handshake are looked at."""
    try:
        response: Response = await work
    except Error as error:
        return error
    return response


def _create_request(
    path: str,
    data: bytes | None,
    acl: Sequence[Acl] | None,
    ephemeral: bool,
    sequence: bool,
) -> zk.CreateRequest:
    mode = CreateMode((1 if ephemeral else 0) | (2 if sequence else 0))
    return zk.CreateRequest(path, data, tuple(acl or OPEN_ACL_UNSAFE), mode, -1)


class Transaction:
    """Operations for one multi. Names are kazoo's; `commit` sends them."""

    def __init__(self, client: ZkClient) -> None:
        self._client = client
        self._ops: list[zk.MultiOp] = []

    def create(
        self,
        path: str,
        data: bytes | None = b"",
        *,
        acl: Sequence[Acl] | None = None,
        ephemeral: bool = False,
        sequence: bool = False,
    ) -> Transaction:
        """Create a znode; its result is the path."""
        made = _create_request(self._client._real(path), data, acl, ephemeral, sequence)
        op = zk.MultiOp(zk.MultiKind.CREATE, made.path, made.data, made.acl, made.flags, -1, -1)
        return self._add(op)

    def delete(self, path: str, version: int = -1) -> Transaction:
        """Delete a znode; its result is True."""
        real = self._client._real(path)
        return self._add(zk.MultiOp(zk.MultiKind.DELETE, real, None, None, 0, -1, version))

    def set_data(self, path: str, data: bytes | None, version: int = -1) -> Transaction:
        """Replace a znode's data; its result is the Stat."""
        real = self._client._real(path)
        return self._add(zk.MultiOp(zk.MultiKind.SET_DATA, real, data, None, 0, -1, version))

    def check(self, path: str, version: int) -> Transaction:
        """Demand a version; its result is True."""
        real = self._client._real(path)
        return self._add(zk.MultiOp(zk.MultiKind.CHECK, real, None, None, 0, -1, version))

    def _add(self, op: zk.MultiOp) -> Transaction:
        self._ops.append(op)
        return self

    async def commit(self, *, timeout: float | None = None) -> list[Any]:
        """Apply all or nothing.

        Returns a result for each operation; where one failed, an exception for each: its own for
        the one that failed, RolledBackError for the others.
        """
        request = zk.MultiRequest(tuple(self._ops))
        response = await self._client._call(zk.MULTI, request, timeout)
        return [self._result(result) for result in response.results]

    def _result(self, result: zk.MultiResult) -> Any:
        if result.kind == -1:
            return zk_error(result.error_code or ZkErrorCode.RUNTIME_INCONSISTENCY)
        if result.kind == zk.MultiKind.CREATE:
            return self._client._shown(result.path or "")
        if result.kind == zk.MultiKind.SET_DATA:
            return result.stat
        return True


class WatchStream:
    """The events of a persistent watch: an async iterator, and a context manager that arms it.

    After a reconnect an event of type NONE and state SYNC_CONNECTED tells that changes may have
    been missed meanwhile: read again. Iteration ends when the client is closed and raises
    SessionExpiredError when the session is gone, WatchOverflowError when events came faster than
    they were taken.
    """

    def __init__(self, client: ZkClient, path: str, *, recursive: bool) -> None:
        self._client = client
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
        self._client._watches.remove_persistent(
            self._path, self._on_event, recursive=self._recursive
        )
        self._closed = True
        self._news.set()

    async def _arm(self) -> None:
        if self._armed:
            return
        self._armed = True
        mode = AddWatchMode.PERSISTENT_RECURSIVE if self._recursive else AddWatchMode.PERSISTENT
        request = zk.AddWatchRequest(self._client._real(self._path), mode)

        def arm(_code: int) -> None:
            self._client._watches.add_persistent(
                self._path, self._on_event, recursive=self._recursive
            )

        await self._client._call(zk.ADD_WATCH, request, None, reads=True, arm=arm)

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
