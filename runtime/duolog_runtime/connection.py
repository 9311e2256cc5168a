"""The socket shell over the sans-I/O connection: one link per TCP connection.

Owns the transport, the batching of writes (everything written in one loop turn leaves in one
call) and the two kinds of back-pressure: `pause_reading` by the owner, and a bound on what a slow
reader may leave unread. It decides nothing about what the frames mean.

A link belongs to one owner, which hears of it through plain synchronous callbacks; callbacks that
raise close the link. uvloop's traps that shaped this: its low-water mark is 16 bytes unless set,
`get_buffer` must never return an empty buffer, written buffers are held, not copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

from duolog_protocol.apis import AnyApi, error_message
from duolog_protocol.codec import Piece
from duolog_protocol.connection import (
    ClientConnection,
    Decoder,
    Push,
    Response,
    ServerConnection,
    ServerState,
    take_frames,
)
from duolog_protocol.errors import ConnectionLostError, Error, RemoteProtocolError
from duolog_protocol.stream_decoder import READ_BYTES

WRITE_HIGH_BYTES: Final = 1024 * 1024
WRITE_LOW_BYTES: Final = 256 * 1024
CLOSE_SECONDS: Final = 30.0
"""A peer that has not read what was left for it so long after the close is dropped."""
_JOIN_BYTES: Final = 64 * 1024
USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)
"""The option of a socket behind `Link.drop_unreceived`; None where the system has none."""


def new_scratch() -> memoryview:
    """A read buffer that all links of one loop may share."""
    return memoryview(bytearray(READ_BYTES))


class Link(asyncio.BufferedProtocol):
    """What both ends of a TCP connection share: writing, pausing, closing."""

    __slots__ = (
        "_closing",
        "_drained",
        "_flush_scheduled",
        "_holding",
        "_loop",
        "_on_drained",
        "_out",
        "_out_bytes",
        "_writing_paused",
        "close_reason",
        "closed",
        "max_unsent_bytes",
        "peer",
        "sent_bytes",
        "transport",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, max_unsent_bytes: int) -> None:
        self._loop = loop
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        """Address of the other end, for logs."""
        self.closed = False
        self.close_reason: BaseException | None = None
        self.max_unsent_bytes = max_unsent_bytes
        """A reader that has left more than this unread when there is more to send is dropped; 0: no
        bound. One long message may pass it: its owner waits with the next (`when_drained`)."""
        self.sent_bytes = 0
        """Handed to the transport so far."""
        self._out: list[Piece] = []
        self._out_bytes = 0
        self._flush_scheduled = False
        self._holding = False
        """What is in `_out` may wait for more."""
        self._writing_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._on_drained: Callable[[], None] | None = None
        self._closing: asyncio.TimerHandle | None = None
        """Bounds how long the peer may take to read the rest, from `close` on."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        transport = self.transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        name = transport.get_extra_info("peername")
        self.peer = f"{name[0]}:{name[1]}" if name else ""

    def write(self, pieces: list[Piece]) -> None:
        """Send pieces; what is written in one loop turn leaves together. After close: ignored."""
        if self.closed:
            return
        self._out += pieces
        self._holding = False
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self.flush)

    def write_now(self, pieces: list[Piece]) -> None:
        """As `write`, without waiting for the end of the loop turn."""
        if self._flush_scheduled or self.closed:
            self.write(pieces)
        else:
            self._out += pieces
            self.flush()

    def hold(self, pieces: list[Piece]) -> None:
        """As `write`, but leaves only with what is written next, or when the owner flushes.

        For the start of an answer whose end is near: one send costs as much as many replies.
        """
        if not self.closed:
            self._holding = self._holding or not self._out
            self._out += pieces

    def flush(self) -> None:
        """Hand everything written so far to the transport now."""
        self._flush_scheduled = self._holding = False
        out = self._out
        if not out or self.closed:
            out.clear()
            return
        transport = self.transport
        assert transport is not None
        limit = self.max_unsent_bytes
        if limit and transport.get_write_buffer_size() > limit:
            self.abort(RemoteProtocolError(f"peer left over {limit} bytes unread: it is too slow"))
            return
        self._out = []
        if len(out) == 1:
            size = len(out[0])
            transport.write(out[0])
        elif (size := sum(map(len, out))) <= _JOIN_BYTES:
            transport.write(b"".join(out))
        else:
            transport.writelines(out)
        self.sent_bytes += size
        if self._on_drained is not None and not self._writing_paused:
            self._loop.call_soon(self._maybe_drained)  # it was asked for while this waited

    @property
    def unsent_bytes(self) -> int:
        """Bytes handed to the transport that the socket has not taken."""
        transport = self.transport
        return 0 if transport is None or self.closed else transport.get_write_buffer_size()

    @property
    def writing_paused(self) -> bool:
        """The transport holds more than its high-water mark."""
        return self._writing_paused

    def drop_unreceived(self, after_ms: int) -> None:
        """End it when the other machine has not received what was sent so long ago, as far as the
        system can tell.

        For a link on which nobody answers: once a partition is over it would wait as long again,
        since TCP tries ever more rarely.
        """
        assert self.transport is not None, self
        found = self.transport.get_extra_info("socket")
        if USER_TIMEOUT is not None and found is not None:
            with contextlib.suppress(OSError):  # the connection may have ended by now
                found.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, after_ms)

    async def drain(self) -> None:
        """Wait until the transport wants more. Cancelling is safe. Raises ConnectionLostError."""
        if self.closed:
            raise ConnectionLostError("the connection is closed")
        if not self._writing_paused:
            return
        if self._drained is None:
            self._drained = self._loop.create_future()
        await asyncio.shield(self._drained)

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call back once the transport holds less than its low-water mark, if it ever does.

        Not before the end of this loop turn; one callback at a time.
        """
        self._on_drained = callback
        self._loop.call_soon(self._maybe_drained)

    def _maybe_drained(self) -> None:
        if not self._writing_paused and not self._out and not self.closed:
            callback, self._on_drained = self._on_drained, None
            if callback is not None:
                callback()

    def pause_writing(self) -> None:
        """Called by the transport."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """Called by the transport."""
        self._writing_paused = False
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None
        self._maybe_drained()

    def close(self, reason: BaseException | None = None) -> None:
        """Send what was written, for at most `CLOSE_SECONDS`, then close. Idempotent."""
        if self.closed:
            return
        self.flush()
        if self.closed:
            return
        self.closed = True
        self._keep_reason(reason)
        transport = self.transport
        if transport is not None:
            transport.close()
            if transport.get_write_buffer_size():
                self._closing = self._loop.call_later(CLOSE_SECONDS, self._give_up)

    def _give_up(self) -> None:
        text = f"peer left the rest unread for {CLOSE_SECONDS} s after the close"
        self.abort(RemoteProtocolError(text))

    def abort(self, reason: BaseException | None = None) -> None:
        """Close at once; what is not sent is lost. Idempotent."""
        self._out.clear()
        self.closed = True
        self._keep_reason(reason)
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the transport, once."""
        self.closed = True
        self._out.clear()
        self._on_drained = None
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        self._keep_reason(exc)
        if self._drained is not None:
            self._drained.set_exception(ConnectionLostError("the connection ended"))
            self._drained.exception()
            self._drained = None
        self.on_closed(self.close_reason)

    def _keep_reason(self, reason: BaseException | None) -> None:
        """The first reason counts. It is kept without its frames: they hold this link and what it
        had read, and no cycle is left behind (`duolog_runtime.heap`)."""
        if reason is not None and self.close_reason is None:
            reason.__cause__ = reason.__context__ = None
            self.close_reason = reason.with_traceback(None)

    def on_closed(self, reason: BaseException | None) -> None:
        """The connection has ended; `reason` is None for an orderly end."""
        raise AssertionError("a subclass answers this")


class ServerLink(Link):
    """A server's end. Subclass it, or give it callbacks."""

    __slots__ = (
        "_on_closed",
        "_on_foreign",
        "_on_frames",
        "_on_made",
        "context",
        "endpoint",
        "received_bytes",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_made: Callable[[ServerLink], None],
        on_frames: Callable[[ServerLink, list[Any]], None],
        on_foreign: Callable[[ServerLink], None],
        on_closed: Callable[[ServerLink, BaseException | None], None],
        max_unsent_bytes: int,
        scratch: memoryview | None = None,
        take_length_prefixed: Callable[[memoryview], Decoder] | None = None,
        take_native: Callable[[memoryview], Decoder] = take_frames,
    ) -> None:
        """`on_frames` gets what `ServerConnection.buffer_updated` returned, whose decoders `take_*`
        make."""
        super().__init__(loop, max_unsent_bytes)
        self.endpoint = ServerConnection(scratch, take_length_prefixed, take_native)
        self.context: Any = None
        """The owner's own data about this connection."""
        self.received_bytes = 0
        """Read from the transport so far."""
        self._on_made = on_made
        self._on_frames = on_frames
        self._on_foreign = on_foreign
        self._on_closed = on_closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        super().connection_made(transport)
        self._on_made(self)

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        """Called by the loop."""
        return self.endpoint.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the loop."""
        if self.closed:
            return
        self.received_bytes += nbytes
        try:
            frames = self.endpoint.buffer_updated(nbytes)
        except RemoteProtocolError as error:
            self.refuse(error)
            return
        if frames:
            # What is answered on the spot leaves on the spot: no extra turn of the loop.
            scheduled, self._flush_scheduled = self._flush_scheduled, True
            try:
                self._on_frames(self, frames)
                if self._out and not self._holding:
                    self.flush()
            finally:
                self._flush_scheduled = scheduled
        elif self.endpoint.state is ServerState.FOREIGN:
            self._on_foreign(self)

    def refuse(self, error: RemoteProtocolError) -> None:
        """What came makes no sense: end it. A subclass may say why before."""
        self.abort(error)

    def pause_reading(self) -> None:
        """Stop reading: the peer's sends back up in its socket. Idempotent."""
        if self.transport is not None and not self.closed and self.transport.is_reading():
            self.transport.pause_reading()

    @property
    def is_reading(self) -> bool:
        """Whether what the peer sends is read."""
        return self.transport is not None and not self.closed and self.transport.is_reading()

    def resume_reading(self) -> None:
        """Read on. Idempotent."""
        if self.transport is not None and not self.closed and not self.transport.is_reading():
            self.transport.resume_reading()

    def on_closed(self, reason: BaseException | None) -> None:
        """The connection has ended."""
        self._on_closed(self, reason)


class ClientLink(Link):
    """A client's end: requests out, responses matched, events to a callback."""

    __slots__ = ("_closed_callback", "_on_push", "endpoint")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        max_frame_bytes: int,
        on_push: Callable[[Push], None],
        on_closed: Callable[[BaseException | None], None],
        scratch: memoryview | None = None,
    ) -> None:
        super().__init__(loop, 0)
        self.endpoint = ClientConnection(max_frame_bytes, scratch)
        self._on_push = on_push
        self._closed_callback = on_closed

    def send(
        self,
        api: AnyApi,
        message: Any,
        on_response: Callable[[Response | None], None] | None,
        version: int | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        """Send a request; `on_response` is called once, with None when the connection ends first.

        `on_response` None is for requests that have no response. `at_once` does not wait for the
        end of the loop turn. Raises LocalProtocolError, ConnectionLostError.
        """
        if self.closed:
            raise ConnectionLostError(f"the connection to {self.peer} is closed")
        pieces = self.endpoint.request(api, message, on_response, version)
        if at_once and not self._flush_scheduled:
            self._out += pieces
            self.flush()
        else:
            self.write(pieces)

    async def call(
        self,
        api: AnyApi,
        message: Any,
        make_error: Callable[[int, str], Error],
        version: int | None = None,
    ) -> Response:
        """Send a request and wait for its response. Put `asyncio.timeout` around it.

        Cancelling does not withdraw the request. Raises what `make_error` gives for an error
        response, ConnectionLostError.
        """
        future: asyncio.Future[Response] = self._loop.create_future()

        def on_response(response: Response | None) -> None:
            if future.done():
                return
            if response is None:
                future.set_exception(
                    ConnectionLostError(f"the connection to {self.peer} ended before the answer")
                )
            elif response.header.error_code != 0:
                header = response.header
                future.set_exception(make_error(header.error_code, error_message(header)))
            else:
                future.set_result(response)

        self.send(api, message, on_response, version)
        return await future

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        """Called by the loop."""
        return self.endpoint.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the loop."""
        if self.closed:
            return
        try:
            events = self.endpoint.buffer_updated(nbytes)
        except RemoteProtocolError as error:
            self.abort(error)
            return
        for event in events:
            if type(event) is Response:
                event.tag(event)
            else:
                assert isinstance(event, Push)
                self._on_push(event)

    def on_closed(self, reason: BaseException | None) -> None:
        """The connection has ended: no outstanding request will be answered."""
        for tag in self.endpoint.forget_all():
            tag(None)
        self._closed_callback(reason)


async def connect(
    host: str,
    port: int,
    *,
    max_frame_bytes: int,
    on_push: Callable[[Push], None],
    on_closed: Callable[[BaseException | None], None],
    scratch: memoryview | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> ClientLink:
    """Open a client link, over TLS where a context is given.

    Put `asyncio.timeout` around it. Raises ConnectionLostError.
    """
    loop = asyncio.get_running_loop()

    def factory() -> ClientLink:
        return ClientLink(
            loop,
            max_frame_bytes=max_frame_bytes,
            on_push=on_push,
            on_closed=on_closed,
            scratch=scratch,
        )

    try:
        _, link = await loop.create_connection(factory, host, port, ssl=ssl_context)
    except OSError as error:
        raise ConnectionLostError(f"cannot connect to {host}:{port}: {in_words(error)}") from error
    return link


def in_words(error: OSError) -> str:
    """Why there is no connection, in the system's words: asyncio's do not say that it was refused.

    A resolver's number, or that of OpenSSL, is none of the system's.
    """
    if not error.errno or isinstance(error, socket.gaierror | ssl.SSLError):
        return error.strerror or str(error) or type(error).__name__
    return os.strerror(error.errno).lower()
