"""Keeps a session with zkserver alive, and carries calls over it.

Owns the one connection, the task that renews it, and the order in which things are heard: a reply
and the events before it are handled in the turn they arrive, in their order, before any coroutine
that waits for them runs; a watch is registered in the same turn as the reply that armed it. What
the calls mean is `ZkClient`'s.

Source: ZooKeeper `ClientCnxn`; zookeeper.md A.9-A.11, B.7, B.8.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import (
    API_VERSIONS,
    AnyApi,
    ApiVersionsRequest,
    error_message,
)
from duolog_protocol.codec import cursor_of
from duolog_protocol.connection import Push, Response
from duolog_protocol.errors import (
    ConnectionClosedError,
    ConnectionLostError,
    Error,
    RemoteProtocolError,
    RequestTimeoutError,
    SessionExpiredError,
    TransportError,
    ZkError,
    zk_error,
)
from duolog_protocol.frames import MAX_HEADER_BYTES
from duolog_protocol.types import EventType, KeeperState
from duolog_runtime.connection import ClientLink, connect
from duolog_runtime.version import VERSION

from .clock import Clock
from .core.zk_session import Session, SessionState
from .core.zk_watches import WatchedEvent, WatchRegistry

if TYPE_CHECKING:
    import ssl

CLOSE_SECONDS: Final = 2.0
MAX_FRAME_BYTES: Final = zk.MAX_LIST_BYTES + MAX_HEADER_BYTES

Listener = Callable[[SessionState], None]
ArmOn = Callable[[int], None]
"""Called with the error code of a reply, in the turn it arrives: registers a watch."""


class SessionKeeper:
    """The connection of one client; `session` and `watches` are its pure halves."""

    def __init__(
        self,
        session: Session,
        *,
        chroot: str,
        client_name: str,
        clock: Clock,
        attach_only: bool,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.session = session
        self.watches = WatchRegistry()
        """By the paths that the client's user sees, without the chroot."""
        self.listeners: list[Listener] = []
        self.chroot = chroot
        self.closing = False
        self._client_name = client_name
        self._clock = clock
        self._attach_only = attach_only
        self._ssl_context = ssl_context
        self._link: ClientLink | None = None
        self._usable = asyncio.Event()
        """Set while a connection with a session and re-registered watches is there."""
        self._link_ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    async def start(self, timeout: float | None = None) -> None:
        """Connect and open (or attach to) the session.

        Raises RequestTimeoutError when no server accepted in time (default: the session timeout),
        SessionExpiredError when the session of `client_id` is gone.
        """
        assert self._task is None, "the client was started already"
        self._task = asyncio.create_task(self._run(), name="zk-session")
        if timeout is None:
            timeout = self.session.wanted_timeout_ms / 1000
        try:
            await self._until_usable(timeout)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the session (its ephemeral znodes go at once) and the connection. Idempotent.

        Where the server cannot be reached the session is left to expire.
        """
        self.closing = True
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
        if self.session.on_expired():
            self._tell(SessionState.LOST)
        self._forget_watches(KeeperState.CLOSED)

    async def call(
        self,
        api: AnyApi,
        message: Any,
        timeout: float | None,
        *,
        reads: bool = False,
        arm: ArmOn | None = None,
        arm_on: tuple[int, ...] = (0,),
    ) -> Any:
        if timeout is None:
            timeout = 2 * self.session.timeout_ms / 1000
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self._until_usable(None)
                    link = self._link
                    if link is None or link.closed:
                        self._usable.clear()  # it has just ended; nothing was sent: wait on
                        continue
                    try:
                        return await self._send(link, api, message, arm, arm_on)
                    except ConnectionLostError:
                        if not reads:
                            raise
        except TimeoutError:
            raise RequestTimeoutError(f"{api.name} was not answered in {timeout} s") from None

    async def _send(
        self,
        link: ClientLink,
        api: AnyApi,
        message: Any,
        arm: ArmOn | None,
        arm_on: tuple[int, ...],
    ) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def on_response(response: Response | None) -> None:
            if response is None:
                if not answer.done():
                    answer.set_exception(ConnectionLostError("no answer before the end"))
                return
            header = response.header
            self.session.saw(header.context)
            self.session.on_heard(self._clock.now_ms())
            if arm is not None and header.error_code in arm_on:
                arm(header.error_code)
            if answer.done():
                return
            if header.error_code:
                answer.set_exception(zk_error(header.error_code, error_message(header)))
            else:
                answer.set_result(response.message)

        link.send(api, message, on_response)
        self.session.on_sent(self._clock.now_ms())
        return await answer

    async def _until_usable(self, timeout: float | None) -> None:
        """Wait for a connection. Raises what ended the client, RequestTimeoutError."""
        self.check_alive()
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
        self.check_alive()
        if not done:
            raise RequestTimeoutError(f"no zkserver accepted the session in {timeout} s")

    def check_alive(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._task is None or (self.closing and not self._usable.is_set()):
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
                    await asyncio.sleep(self.session.retry_delay_ms() / 1000)
                if self.session.is_overdue(self._clock.now_ms()):
                    self._on_expired()
        except Error as error:
            self._failure = error
        finally:
            self._usable.clear()

    async def _connect(self) -> bool:
        """Try one server. Raises SessionExpiredError when only one given session would do."""
        session = self.session
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
                    ssl_context=self._ssl_context,
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
        except (TransportError, TimeoutError, RemoteProtocolError, ZkError):
            return False  # among them a server that is behind what we have seen: the next one
        self._usable.set()
        if session.on_usable():
            self._tell(SessionState.CONNECTED)
        return True

    async def _handshake(self, link: ClientLink) -> None:
        session = self.session
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
        for request in self.watches.to_register(self.session.last_zxid_seen):
            zxid, *lists, resume = request
            data, exist, child, persistent, recursive = (
                [self.real(path) for path in paths] for paths in lists
            )
            real = zk.SetWatchesRequest(zxid, data, exist, child, persistent, recursive, resume)
            await link.call(zk.SET_WATCHES, real, zk_error)
        for path, watcher in self.watches.persistent():
            watcher(WatchedEvent(EventType.NONE, KeeperState.SYNC_CONNECTED, path))

    async def _watch_over(self) -> None:
        """Ping in time, and give up a server that is silent; returns when the link has ended."""
        session, link = self.session, self._link
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
            self.session.on_heard(self._clock.now_ms())
            self.session.saw(response.header.context)

    def _on_link_ended(self) -> None:
        link, self._link = self._link, None
        self._usable.clear()
        if link is not None:
            link.abort()
        if self.session.on_disconnected(self._clock.now_ms()):
            self._tell(SessionState.SUSPENDED)

    def _on_expired(self) -> None:
        if self.session.on_expired():
            self._tell(SessionState.LOST)
        self._forget_watches(KeeperState.EXPIRED)

    def _forget_watches(self, state: KeeperState) -> None:
        for path, watcher in self.watches.take_all():
            watcher(WatchedEvent(EventType.NONE, state, path))

    def _tell(self, state: SessionState) -> None:
        for listener in list(self.listeners):
            listener(state)

    def _on_push(self, push: Push) -> None:
        header = push.header
        self.session.on_heard(self._clock.now_ms())
        if header.error_code != zk.WATCH_EVENT_KEY:
            return  # an event of a later version
        event = zk.WATCH_EVENT.decode(header.values[3:], 0, cursor_of(push.frame))
        self.session.saw(header.context)
        shown = WatchedEvent(
            EventType(event.type), KeeperState(event.state), self.shown(event.path)
        )
        for watcher in self.watches.on_event(shown):
            watcher(shown)

    # ---- chroot --------------------------------------------------------------------------------

    def real(self, path: str) -> str:
        """The path on the server."""
        if not self.chroot:
            return path
        return self.chroot if path == "/" else self.chroot + path

    def shown(self, path: str) -> str:
        """The path as the client's user knows it."""
        return path[len(self.chroot) :] or "/" if self.chroot else path


async def _plain(work: Any) -> Response | Error:
    """The result or the error of a call, as a value: both halves of a handshake are looked at."""
    try:
        response: Response = await work
    except Error as error:
        return error
    return response
