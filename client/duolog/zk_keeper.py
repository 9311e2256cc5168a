"""Keeps a session with zkserver alive, and carries calls over it.

Owns the one connection, the task that renews it, and the order in which things are heard: a reply
and the events before it are handled in the turn they arrive, in their order, before any coroutine
that waits for them runs; a watch is registered in the same turn as the reply that armed it. What
the calls mean is `ZkClient`'s.

Source: ZooKeeper `ClientCnxn`; zookeeper.md A.9-A.11, B.7, B.8.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

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
    AuthFailedError,
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
from duolog_runtime.connection import ClientLink, connect, in_words
from duolog_runtime.version import VERSION

from .clock import Clock
from .core.zk_session import Session, SessionState
from .core.zk_watches import WatchedEvent, Watcher, WatchRegistry
from .owned_tasks import OwnedTasks

if TYPE_CHECKING:
    pass

CLOSE_SECONDS: Final = 2.0
_EVENT_TYPES: Final = frozenset(EventType)
MAX_FRAME_BYTES: Final = zk.MAX_LIST_BYTES + MAX_HEADER_BYTES

Told = TypeVar("Told")
Listener = Callable[[SessionState], None]
ArmOn = Callable[[int, int], None]
"""Called with error code and zxid of a reply, in the turn it arrives: registers a watch."""


class Connect(Protocol):
    """How a link is opened: `duolog_runtime.connection.connect`, or a test's."""

    def __call__(
        self,
        host: str,
        port: int,
        *,
        max_frame_bytes: int,
        on_push: Callable[[Push], None],
        on_closed: Callable[[BaseException | None], None],
    ) -> Coroutine[Any, Any, ClientLink]:
        """Open a link. Raises ConnectionLostError."""


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
        credentials: list[tuple[str, bytes]],
        connect: Connect = connect,
    ) -> None:
        self.session = session
        self.watches = WatchRegistry()
        """By the paths that the client's user sees, without the chroot."""
        self.listeners: list[Listener] = []
        self.chroot = chroot
        self.closing = False
        self.credentials = credentials
        """(scheme, credential), sent on every connection before the watches are registered."""
        self.tasks = OwnedTasks("zk", self._on_task_failed)
        """What recipes run; ends with the client."""
        self._connect_link = connect
        self._refused: AuthFailedError | None = None
        self._is_past = False
        """The server tells what was missed: its events do not come in the order of zxids."""
        self._client_name = client_name
        self._clock = clock
        self._attach_only = attach_only
        self._link: ClientLink | None = None
        self._usable = asyncio.Event()
        """Set while a connection with a session and re-registered watches is there."""
        self._link_ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._not_reached: dict[tuple[str, int], str] = {}
        """Why not, of the servers tried since there was a connection; the last reason of each."""

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

    async def close(self) -> bool:
        """Close the session (its ephemeral znodes go at once) and the connection. Idempotent.

        Where the server cannot be reached the session is left to expire; true where it has
        confirmed that the session has ended. Cancelling it leaves the same, with the connection
        closed.
        """
        confirmed = False
        self.closing = True
        try:
            # Recipes are cancelled; one that takes long to end does not hold the session.
            await _within(CLOSE_SECONDS, self.tasks.stop())
            link = self._link
            if link is not None and self._usable.is_set() and not link.closed:
                closing = link.call(zk.CLOSE_SESSION, zk.Empty(), zk_error)
                confirmed = await _within(CLOSE_SECONDS, closing)  # else it expires by itself
        finally:
            task, self._task = self._task, None
            if task is not None:
                task.cancel()
            if self._link is not None:
                self._link.abort()
                self._link = None
            self._usable.clear()
            if self.session.on_expired():
                self._tell(SessionState.LOST)
            self._forget_watches(KeeperState.CLOSED)
        if task is not None:
            await asyncio.wait({task})
        return confirmed

    async def call(
        self,
        api: AnyApi,
        message: Any,
        timeout: float | None,
        *,
        reads: bool = False,
        arm: ArmOn | None = None,
        arm_on: tuple[int, ...] = (0,),
        under_way: Callable[[bool], None] | None = None,
        session_id: int | None = None,
    ) -> Any:
        """Send a request and return its response's message, or raise its error.

        `reads`: it may be sent again when its answer was lost. `arm` is called for a reply whose
        error code is in `arm_on`. `under_way` is called with True when it was sent and with False
        when it was answered, also where the caller does not wait any more; not when the connection
        ends. `session_id`: it is sent in this session or not at all (SessionExpiredError).
        """
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
                    if session_id is not None and session_id != self.session.session_id:
                        raise SessionExpiredError(f"session {session_id:#x} has ended")
                    try:
                        return await self._send(link, api, message, arm, arm_on, under_way)
                    except ConnectionLostError:
                        if not reads:
                            raise
        except TimeoutError:
            raise RequestTimeoutError(
                f"{api.name} was not answered in {timeout} s{self._why()}"
            ) from None

    async def _send(
        self,
        link: ClientLink,
        api: AnyApi,
        message: Any,
        arm: ArmOn | None,
        arm_on: tuple[int, ...],
        under_way: Callable[[bool], None] | None,
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
            if under_way is not None:
                under_way(False)
            if arm is not None and header.error_code in arm_on:
                arm(header.error_code, header.context)
            if answer.done():
                return
            if header.error_code:
                answer.set_exception(zk_error(header.error_code, error_message(header)))
            else:
                answer.set_result(response.message)

        link.send(api, message, on_response)
        if under_way is not None:
            under_way(True)
        self.session.on_sent(self._clock.now_ms())
        return await answer

    def post(self, api: AnyApi, message: Any) -> None:
        """Send a request whose answer does not matter; without a connection it is dropped."""
        link = self._link
        if link is not None and not link.closed and self._usable.is_set():
            link.send(api, message, lambda _response: None)
            self.session.on_sent(self._clock.now_ms())

    def abandon(self) -> None:
        """Stop at once, as a process that dies: the session is left to expire. Idempotent."""
        self.closing = True
        if self._task is not None:
            self._task.cancel()
        if self._link is not None:
            self._link.abort()

    def refuse_credential(self, error: AuthFailedError) -> None:
        """The server refused a credential: the client ends, as ZooKeeper's do."""
        self._refused = error
        if self._link is not None:
            self._link.abort(error)

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
            raise RequestTimeoutError(
                f"no zkserver accepted the session in {timeout} s{self._why()}"
            )

    def _why(self) -> str:
        """Which servers were tried and why there is no connection, to follow what it has led to."""
        tried = [f"{host}:{port}: {why}" for (host, port), why in self._not_reached.items()]
        return f" ({'; '.join(tried)})" if tried else ""

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
                    if self._refused is not None:
                        raise self._refused
                    delay_ms = self.session.reconnect_delay_ms()
                    if delay_ms:
                        await asyncio.sleep(delay_ms / 1000)
                else:
                    await asyncio.sleep(self.session.retry_delay_ms() / 1000)
                if self.session.is_overdue(self._clock.now_ms()):
                    self._on_expired()
        except Error as error:
            self._failure = error
            self._usable.clear()
            if isinstance(error, AuthFailedError):
                if self.session.on_auth_failed():
                    self._tell(SessionState.AUTH_FAILED)
                self._forget_watches(KeeperState.AUTH_FAILED)
        except Exception as error:
            self._failure = error  # a bug: every call raises it
            self._on_task_failed(error)
        finally:
            self._usable.clear()

    async def _connect(self) -> bool:
        """Try one server. Raises SessionExpiredError when only one given session would do."""
        session = self.session
        host, port = session.next_address()
        self._not_reached.setdefault((host, port), "no answer yet")
        ended = self._link_ended = asyncio.Event()  # the last link may yet report its own end
        try:
            async with asyncio.timeout(session.connect_timeout_ms() / 1000):
                link = await self._connect_link(
                    host,
                    port,
                    max_frame_bytes=MAX_FRAME_BYTES,
                    on_push=self._on_push,
                    on_closed=lambda _reason: ended.set(),
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
        except AuthFailedError:
            raise
        except (TransportError, TimeoutError, RemoteProtocolError, ZkError) as error:
            self._not_reached[host, port] = _reason(error)
            return False  # among them a server that is behind what we have seen: the next one
        self._not_reached.clear()
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
        for scheme, credential in self.credentials:
            await link.call(zk.AUTH, zk.AuthRequest(scheme, credential), zk_error)
        self.watches.hold_all()
        zxid = connect_response.header.context
        if not is_new:
            zxid = await self._register_watches_again(link, zxid)
        session.saw(zxid)

    async def _register_watches_again(self, link: ClientLink, zxid: int) -> int:
        """Returns the zxid as of which all of them are registered."""
        self._is_past = True
        try:
            # all at once: watches come and go while this waits for answers
            requests = list(self.watches.to_register(self.session.told_zxid))
            for chunk, request in enumerate(requests):
                self.watches.begin_chunk(chunk)
                again = request._replace(
                    data_watches=self._all_real(request.data_watches),
                    exist_watches=self._all_real(request.exist_watches),
                    child_watches=self._all_real(request.child_watches),
                    persistent_watches=self._all_real(request.persistent_watches),
                    persistent_recursive_watches=self._all_real(
                        request.persistent_recursive_watches
                    ),
                )
                zxid = (await link.call(zk.SET_WATCHES, again, zk_error)).header.context
        finally:
            self._is_past = False
        for watcher, event in self.watches.release_all(zxid):
            self._call(watcher, event)
        return zxid

    async def _watch_over(self) -> None:
        """Ping in time, and give up a server that is silent; returns when the link has ended."""
        session, link, ended = self.session, self._link, self._link_ended
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
                    await ended.wait()
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
            self._call(watcher, WatchedEvent(EventType.NONE, state, path))

    def tell_removed(self, path: str, removed: list[tuple[EventType, Watcher]]) -> None:
        """Watches were removed on purpose: their watchers hear it from us."""
        for event_type, watcher in removed:
            self._call(watcher, WatchedEvent(event_type, self._keeper_state(), path))

    def _keeper_state(self) -> KeeperState:
        usable = self._usable.is_set()
        return KeeperState.SYNC_CONNECTED if usable else KeeperState.DISCONNECTED

    def _on_task_failed(self, error: BaseException) -> None:
        """Nobody waits for such a task: the loop's handler tells."""
        asyncio.get_running_loop().call_exception_handler(
            {"message": "a task of a ZkClient failed", "exception": error}
        )

    def _tell(self, state: SessionState) -> None:
        for listener in list(self.listeners):
            self._call(listener, state)

    def _call(self, told: Callable[[Told], None], what: Told) -> None:
        """Call a watcher or listener: one that raises keeps nothing from the others, or from us."""
        try:
            told(what)
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"{told!r}, called with {what}, failed", "exception": error}
            )

    def _on_push(self, push: Push) -> None:
        header = push.header
        self.session.on_heard(self._clock.now_ms())
        if header.error_code != zk.WATCH_EVENT_KEY:
            return  # an event of a later version
        event = zk.WATCH_EVENT.decode(header.values[3:], 0, cursor_of(push.frame))
        if event.type not in _EVENT_TYPES:
            return
        if self._is_past:
            self.session.saw_past_event(header.context)
        else:
            self.session.saw_event(header.context)
        shown = WatchedEvent(
            EventType(event.type),
            KeeperState(event.state),
            self.shown(event.path),
            header.context,
        )
        for watcher in self.watches.on_event(shown):
            self._call(watcher, shown)

    # ---- chroot --------------------------------------------------------------------------------

    def real(self, path: str) -> str:
        """The path on the server."""
        if not self.chroot:
            return path
        return self.chroot if path == "/" else self.chroot + path

    def _all_real(self, paths: list[str]) -> list[str]:
        return [self.real(path) for path in paths]

    def shown(self, path: str) -> str:
        """The path as the client's user knows it."""
        return path[len(self.chroot) :] or "/" if self.chroot else path


async def _within(seconds: float, work: Coroutine[Any, Any, Any]) -> bool:
    """Await what may fail or take too long, then it is given up; whether it was done."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except (Error, TimeoutError):
        return False
    return True


def _reason(error: BaseException) -> str:
    """Why a server was not reached, without its address."""
    cause = error.__cause__
    return in_words(cause) if isinstance(cause, OSError) else str(error) or "no answer in time"


async def _plain(work: Any) -> Response | Error:
    """The result or the error of a call, as a value: both halves of a handshake are looked at."""
    try:
        response: Response = await work
    except Error as error:
        return error
    return response
