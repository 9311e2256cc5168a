"""The client connections: accepting, limits, dispatch to the apis, answering.

Owns every link and every task that a request needs; decides nothing about what a request means.
Limits: connections in all and per address, frames before ApiVersions (16 KiB), requests in flight
on one connection (reading stops there), bytes a slow reader leaves unread, time to say hello, time
without a request.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

from duolog_protocol.apis import API_VERSIONS, AnyApi, encode_error, read_message, read_request
from duolog_protocol.broker_messages import BROKER_APIS
from duolog_protocol.connection import request_problem
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import (
    BrokerError,
    DecodeError,
    LocalProtocolError,
    RemoteProtocolError,
    StorageError,
)
from duolog_protocol.frames import Frame
from duolog_runtime.connection import ServerLink, new_scratch
from duolog_runtime.logs import Logger

from ..core.znodes import CorruptZnodeError
from .apis import Handler

HELLO_SECONDS: Final = 10.0


class Limits:
    """Bounds of the connections; the fields are settings of the broker."""

    __slots__ = (
        "max_connections",
        "max_connections_per_ip",
        "max_frame_bytes",
        "max_idle_ms",
        "max_in_flight",
        "max_unsent_bytes",
    )

    def __init__(
        self,
        *,
        max_connections: int,
        max_connections_per_ip: int,
        max_frame_bytes: int,
        max_in_flight: int,
        max_unsent_bytes: int,
        max_idle_ms: int = 600_000,
    ) -> None:
        self.max_connections = max_connections
        self.max_connections_per_ip = max_connections_per_ip
        self.max_frame_bytes = max_frame_bytes
        self.max_in_flight = max_in_flight
        self.max_unsent_bytes = max_unsent_bytes
        self.max_idle_ms = max_idle_ms


class Client:
    """One connection's own data."""

    __slots__ = ("address", "backlog", "heard_s", "in_flight", "said_hello", "timer", "waiting")

    def __init__(self, address: str) -> None:
        self.address = address
        self.in_flight = 0
        self.backlog: list[Frame] = []
        """Frames of one read that came when too much was in flight; nothing is read meanwhile."""
        self.said_hello = False
        self.heard_s = 0.0
        """Time of the loop when frames last came."""
        self.timer: asyncio.TimerHandle | None = None
        """Runs out when hello is late, after that when the client may have been idle too long."""
        self.waiting: dict[Request, Callable[[], None]] = {}
        """Requests that wait for something, with what forgets them when the connection ends."""


class Request:
    """A request that is being answered; it is the handler's RequestContext."""

    __slots__ = ("_api", "_connections", "_correlation_id", "_link", "_open", "_version")

    def __init__(
        self,
        connections: Connections,
        link: ServerLink,
        api: AnyApi,
        version: int,
        correlation_id: int,
    ) -> None:
        self._connections = connections
        self._link = link
        self._api = api
        self._version = version
        self._correlation_id = correlation_id
        self._open = True

    @property
    def peer(self) -> str:
        """Who asks, for logs."""
        return self._link.peer

    def answer(self, message: Any) -> None:
        """Send the response. Never raises: it is called where others wait for theirs."""
        try:
            pieces = self._api.encode_response(self._correlation_id, 0, message, self._version)
        except LocalProtocolError as error:
            self._connections.failed(self._api, error)
            self.refuse(KafkaErrorCode.UNKNOWN_SERVER_ERROR, str(error))
            return
        self._link.write(pieces)
        self.finish()

    def on_gone(self, forget: Callable[[], None]) -> None:
        """Call `forget` if the connection ends before the answer."""
        if self._open:
            self._connections.waits(self._link, self, forget)

    def refuse(self, code: int, message: str) -> None:
        """Send an error for the whole request, unless it has been answered."""
        if not self._open:
            return
        self._link.write(encode_error(self._correlation_id, code, 0, message))
        self.finish()

    def finish(self) -> None:
        """The request is done: make room for another one. Idempotent."""
        if self._open:
            self._open = False
            self._connections.finished(self._link, self)

    def close(self, reason: str) -> None:
        """Close the connection."""
        self.finish()
        self._link.close(RemoteProtocolError(reason))


class Connections:
    """All connections of the broker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        tasks: asyncio.TaskGroup,
        limits: Limits,
        log: Logger,
    ) -> None:
        self._loop = loop
        self._tasks = tasks
        self.handlers: dict[int, Handler] = {}
        """By api key; filled before the first connection is accepted."""
        self._limits = limits
        self._log = log
        self._links: dict[ServerLink, Client] = {}
        self._per_address: Counter[str] = Counter()
        self._scratch = new_scratch()
        self._stopping = False
        self._pending: set[asyncio.Task[None]] = set()
        """Handlers that wait for zkserver."""
        self.requests_count = 0
        self.refused_count = 0

    def new_link(self) -> ServerLink:
        """The protocol of a new connection, for `create_server`."""
        return ServerLink(
            self._loop,
            on_made=self._on_made,
            on_frames=self._on_frames,
            on_foreign=self._on_foreign,
            on_closed=self._on_closed,
            max_unsent_bytes=self._limits.max_unsent_bytes,
            scratch=self._scratch,
        )

    @property
    def count(self) -> int:
        """Open connections."""
        return len(self._links)

    @property
    def in_flight_count(self) -> int:
        """Requests that are not answered yet."""
        return sum(client.in_flight for client in self._links.values())

    def stop(self) -> None:
        """Take no further request; those in flight may still be answered."""
        self._stopping = True
        for link in self._links:
            link.pause_reading()

    async def end_pending(self) -> None:
        """Give up the handlers that still wait: nothing of theirs runs after this."""
        await asyncio.sleep(0)  # one that has not begun could not be cancelled cleanly
        pending = list(self._pending)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)

    def close(self) -> None:
        """Send what was answered and close every connection."""
        for link in list(self._links):
            link.close()

    def abort(self) -> None:
        """Close every connection at once."""
        for link in list(self._links):
            link.abort()

    def failed(self, api: AnyApi, error: Exception) -> None:
        """A request failed in a way that only we are to blame for."""
        self._log.error("request_failed", api=api.name, error=f"{type(error).__name__}: {error}")

    def waits(self, link: ServerLink, request: Request, forget: Callable[[], None]) -> None:
        """A request waits; `forget` is called if its connection ends first."""
        client = self._links.get(link)
        if client is None:
            forget()
        else:
            client.waiting[request] = forget

    def finished(self, link: ServerLink, request: Request) -> None:
        """A request of this connection is done."""
        client = self._links.get(link)
        if client is None:
            return
        if client.waiting:
            client.waiting.pop(request, None)
        client.in_flight -= 1
        assert client.in_flight >= 0, client.in_flight
        if client.in_flight < self._limits.max_in_flight and not self._stopping:
            if client.backlog:
                self._loop.call_soon(self._take_backlog, link)
            else:
                link.resume_reading()

    def _take_backlog(self, link: ServerLink) -> None:
        client = self._links.get(link)
        if client is not None and client.backlog:
            frames, client.backlog = client.backlog, []
            try:
                self._on_frames(link, frames)
            except BaseException:
                link.abort()  # the rest of the frames is lost: the client must not wait for it
                raise

    # ---- callbacks of the links ----------------------------------------------------------------

    def _on_made(self, link: ServerLink) -> None:
        address = link.peer.rpartition(":")[0]
        client = Client(address)
        self._links[link] = client
        self._per_address[address] += 1
        limits = self._limits
        if (
            self._stopping
            or len(self._links) > limits.max_connections
            or self._per_address[address] > limits.max_connections_per_ip
        ):
            self.refused_count += 1
            self._log.warning("connection_refused", peer=link.peer, connections=len(self._links))
            link.abort(RemoteProtocolError("too many connections"))
            return
        client.timer = self._loop.call_later(HELLO_SECONDS, self._on_silent, link)

    def _on_silent(self, link: ServerLink) -> None:
        link.abort(RemoteProtocolError(f"no ApiVersions request in {HELLO_SECONDS} s"))

    def _on_maybe_idle(self, link: ServerLink, client: Client) -> None:
        """One timer for each connection, not moved by its requests: look when it was last heard."""
        limit_s = self._limits.max_idle_ms / 1000
        now_s = self._loop.time()
        if client.in_flight:
            client.heard_s = now_s  # it waits for us, not we for it
        left_s = client.heard_s + limit_s - now_s
        if left_s > 0:
            client.timer = self._loop.call_later(left_s, self._on_maybe_idle, link, client)
        else:
            link.abort(RemoteProtocolError(f"no request in {limit_s} s"))

    def _on_foreign(self, link: ServerLink) -> None:
        caller = link.endpoint.caller
        link.abort(RemoteProtocolError(f"{caller.value} cannot be served on this port"))

    def _on_closed(self, link: ServerLink, reason: BaseException | None) -> None:
        client = self._links.pop(link)
        self._per_address[client.address] -= 1
        if not self._per_address[client.address]:
            del self._per_address[client.address]
        if client.timer is not None:
            client.timer.cancel()
        for forget in client.waiting.values():
            forget()
        if isinstance(reason, RemoteProtocolError):
            self._log.info("connection_dropped", peer=link.peer, reason=str(reason))

    def _on_frames(self, link: ServerLink, frames: list[Frame]) -> None:
        client = self._links.get(link)
        if client is None or self._stopping:
            return
        client.heard_s = self._loop.time()
        if client.backlog:
            client.backlog += frames
            return
        limit = self._limits.max_in_flight
        for index, frame in enumerate(frames):
            if link.closed:
                return
            if client.in_flight >= limit:
                client.backlog = frames[index:]
                link.pause_reading()
                return
            try:
                self._on_request(link, client, frame)
            except DecodeError as error:
                link.close(error)
                return
        if client.in_flight >= limit:
            link.pause_reading()
        else:
            link.resume_reading()

    def _on_request(self, link: ServerLink, client: Client, frame: Frame) -> None:
        header = read_request(frame, known_peer=client.said_hello)
        self.requests_count += 1
        problem = request_problem(header, BROKER_APIS)
        if problem is None and not client.said_hello:
            if header.api_key != API_VERSIONS.key:
                raise DecodeError("the first request must be ApiVersions")
            client.said_hello = True
            link.endpoint.raise_limit(self._limits.max_frame_bytes)
            if client.timer is not None:
                client.timer.cancel()
            self._on_maybe_idle(link, client)
        if problem is not None:
            code = KafkaErrorCode.UNSUPPORTED_VERSION
            link.write(encode_error(header.correlation_id, code, 0, problem))
            return
        api = BROKER_APIS[header.api_key]
        try:
            message = read_message(api, header, frame)
        except DecodeError as error:
            code = KafkaErrorCode.INVALID_REQUEST
            link.write(encode_error(header.correlation_id, code, 0, str(error)))
            return
        client.in_flight += 1
        request = Request(self, link, api, header.api_version, header.correlation_id)
        try:
            waiting = self.handlers[api.key](request, message)
        except Exception as error:
            self._fail(api, request, message, error)
            return
        if waiting is not None:
            task = self._tasks.create_task(
                self._finish(api, request, waiting), name=f"{api.name} {link.peer}"
            )
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)
        elif getattr(message, "acks", None) == 0:
            request.finish()

    async def _finish(self, api: AnyApi, request: Request, waiting: Awaitable[None]) -> None:
        """Wait for a handler.

        A failed log, or one of our own assertions, still ends the broker; anything else that a
        request runs into is that request's misfortune.
        """
        try:
            await waiting
        except Exception as error:
            self._fail(api, request, None, error)

    def _fail(self, api: AnyApi, request: Request, message: Any, error: Exception) -> None:
        """Tell the client of what a handler has raised, or raise it again: see `_finish`."""
        if isinstance(error, BrokerError):
            code: int = error.code
            text = str(error)
        elif isinstance(error, AssertionError | StorageError) and not isinstance(
            error, CorruptZnodeError
        ):
            raise error
        else:
            self.failed(api, error)
            code = KafkaErrorCode.UNKNOWN_SERVER_ERROR
            text = f"{type(error).__name__}: {error}"
            if getattr(message, "acks", None) == 0:
                request.close(text)  # nobody waits for an answer
                return
        request.refuse(code, text)
