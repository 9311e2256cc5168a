"""TLS between a socket and a link: sans-I/O OpenSSL, the same on every event loop.

    socket -> TlsLayer (protocol of the socket's transport) -> link.get_buffer / buffer_updated
    link.write -> flush -> TlsLayer (transport of the link) -> the socket's transport

    HANDSHAKE --finished--> OPEN --close, close_notify, failure, end of the socket--> CLOSED

Owns the handshake, its bounds, and the two directions; a link without TLS never comes here and
costs nothing. Decryption fills the link's own read buffer, so one read of the socket is one call of
the link, as without TLS; what is flushed together becomes records together and leaves in one write.
Back-pressure is the socket's transport's, in encrypted bytes. How long a handshake may take is the
owner's to say: it aborts the link.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from typing import Any, Final, TypeVar, cast

from duolog_protocol.codec import Piece
from duolog_protocol.errors import RemoteProtocolError
from duolog_protocol.preamble import Caller, classify

from .connection import Link

MAX_HANDSHAKE_BYTES: Final = 64 * 1024
"""What a peer may send until the handshake is over; a chain of certificates takes a few KiB."""
_SLICE_BYTES: Final = 4096
"""So much is handed to OpenSSL at a time until the handshake is over."""
_JOIN_BYTES: Final = 16 * 1024
"""Pieces shorter than this are joined: a record takes that much."""


L = TypeVar("L", bound=Link)


class TlsState(Enum):
    """Where a layer stands; each state only follows the one before it."""

    HANDSHAKE = 1
    OPEN = 2
    CLOSED = 3


class TlsLayer(asyncio.Transport, asyncio.BufferedProtocol):
    """One end of a connection. It is the protocol of a socket's transport and the transport of a
    link."""

    __slots__ = (
        "_handshake_bytes",
        "_incoming",
        "_is_server",
        "_link",
        "_on_secured",
        "_outgoing",
        "_peer_ended",
        "_scratch",
        "_ssl",
        "_state",
        "_transport",
    )

    def __init__(
        self,
        link: L,
        context: ssl.SSLContext,
        on_secured: Callable[[L], None],
        scratch: memoryview,
        *,
        is_server: bool = True,
    ) -> None:
        """`on_secured` is called when the handshake is over, before the link gets any data; until
        then the link must not write. Who is no server begins the handshake; in TLS 1.3 it is over
        for it before the server has judged its certificate.

        As the protocol of a new connection it makes the link known when the loop makes it known;
        on one that is open already, `take_over` puts it in between. All layers of a loop may share
        `scratch`, where encrypted bytes arrive.
        """
        super().__init__()
        self._link: Link = link
        self._on_secured = partial(on_secured, link)
        self._is_server = is_server
        self._scratch = scratch
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)
        self._state = TlsState.HANDSHAKE
        self._handshake_bytes = 0
        self._peer_ended = False
        self._transport: asyncio.Transport | None = None

    @property
    def state(self) -> TlsState:
        """Where it stands."""
        return self._state

    def peer_certificate(self) -> bytes | None:
        """The peer's certificate in DER, which OpenSSL has verified; None where it has shown none.

        Of meaning once the handshake is over.
        """
        return self._ssl.getpeercert(binary_form=True)

    def resumed_past_expiry(self, wall_ms: int) -> bool:
        """Whether the certificate has expired, which a resumed session does not tell by itself.

        TLS 1.2 lets a client go on with a session of up to two hours ago, in which its certificate
        was verified, on the same context. Of meaning once the handshake is over.
        """
        if not self._ssl.session_reused:
            return False
        end = (self._ssl.getpeercert() or {}).get("notAfter")
        return isinstance(end, str) and wall_ms >= ssl.cert_time_to_seconds(end) * 1000

    def take_over(self, first: bytes) -> None:
        """Step between the link and its transport; `first` is what the link has received so far."""
        link = self._link
        assert link.transport is not None, link
        self._transport = link.transport
        link.transport = self
        self._transport.set_protocol(self)
        self._receive(memoryview(first))

    # ---- what the loop calls -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._link.connection_made(self)
        if not self._is_server and self._state is TlsState.HANDSHAKE:
            try:
                self._ssl.do_handshake()
            except ssl.SSLWantReadError:
                self._send()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Called by the loop."""
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the loop."""
        self._receive(self._scratch[:nbytes])

    def eof_received(self) -> bool | None:
        """Called by the loop: the peer sends no more; what the link makes of that counts."""
        return self._link.eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the loop, once."""
        self._state = TlsState.CLOSED
        self._link.connection_lost(exc)
        self._link.transport = None  # no cycle is left behind (`duolog_runtime.heap`)

    def pause_writing(self) -> None:
        """Called by the socket's transport."""
        self._link.pause_writing()

    def resume_writing(self) -> None:
        """Called by the socket's transport."""
        self._link.resume_writing()

    # ---- what the link calls -------------------------------------------------------------------

    def write(self, data: Piece) -> None:
        """Encrypt and send."""
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[Piece]) -> None:
        """Encrypt and send, in one write."""
        if self._state is TlsState.CLOSED:
            return
        assert self._state is TlsState.OPEN, "written before the handshake was over"
        try:
            short: list[Piece] = []
            for piece in list_of_data:
                if len(piece) < _JOIN_BYTES:
                    short.append(piece)
                    continue
                self._encrypt(b"".join(short))
                short.clear()
                self._encrypt(piece)
            self._encrypt(b"".join(short))
        except ssl.SSLError as error:
            self._fail(error)
            return
        self._send()

    def close(self) -> None:
        """Tell the peer, and close once all is sent."""
        if self._state is TlsState.OPEN:
            with contextlib.suppress(ssl.SSLError):  # the peer's close_notify is not waited for
                self._ssl.unwrap()
            self._send()
        self._state = TlsState.CLOSED
        self._socket.close()

    def abort(self) -> None:
        """Close at once."""
        self._state = TlsState.CLOSED
        self._socket.abort()

    def is_closing(self) -> bool:
        """It is closed or about to be."""
        return self._socket.is_closing()

    def is_reading(self) -> bool:
        """The socket is read."""
        return self._socket.is_reading()

    def pause_reading(self) -> None:
        """Read the socket no more; what has arrived is still handed on."""
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        """Read the socket again."""
        self._socket.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Of the socket's transport, in encrypted bytes."""
        self._socket.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Encrypted bytes that the socket has not taken."""
        return self._socket.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Of the socket's transport."""
        return self._socket.get_extra_info(name, default)

    # ---- inside --------------------------------------------------------------------------------

    @property
    def _socket(self) -> asyncio.Transport:
        assert self._transport is not None, "not connected"
        return self._transport

    def _receive(self, data: memoryview) -> None:
        """Encrypted bytes came; they are taken out of `data` before the link is called."""
        try:
            if self._state is TlsState.HANDSHAKE:
                data = self._shake_hands(data)
            if self._state is TlsState.OPEN:
                self._incoming.write(data)
                self._deliver()
        except ssl.SSLError as error:
            self._fail(error)

    def _shake_hands(self, data: memoryview) -> memoryview:
        """Go on with the handshake; the result is what came behind it."""
        if (
            self._is_server
            and self._handshake_bytes == 0
            and classify(bytes(data[:1])) is not Caller.TLS
        ):
            self._link.close(RemoteProtocolError("TLS: the client does not speak it"))
            return data
        while data:
            self._incoming.write(data[:_SLICE_BYTES])
            self._handshake_bytes += len(data[:_SLICE_BYTES])
            data = data[_SLICE_BYTES:]
            try:
                self._ssl.do_handshake()
            except ssl.SSLWantReadError:
                self._send()
                if self._handshake_bytes > MAX_HANDSHAKE_BYTES:
                    text = f"no handshake within {MAX_HANDSHAKE_BYTES} bytes"
                    self._link.abort(RemoteProtocolError(text))
                    break
            else:
                self._send()
                self._state = TlsState.OPEN
                rest = bytes(data)  # the callback may use the buffer
                self._on_secured()
                return memoryview(rest)
        return data

    def _deliver(self) -> None:
        """Hand the link what can be decrypted, as much at a time as it has room for."""
        link = self._link
        while self._state is TlsState.OPEN:
            count = self._decrypt_into(cast(bytearray, link.get_buffer(0)))
            if not count:
                break
            link.buffer_updated(count)
        if self._peer_ended and self._state is TlsState.OPEN and not link.eof_received():
            link.close()

    def _decrypt_into(self, buffer: memoryview | bytearray) -> int:
        """Fill a buffer; fewer bytes than it has, when there are no more. Lets go of the buffer."""
        incoming, tls = self._incoming, self._ssl
        filled = 0
        with memoryview(buffer) as view:
            size = len(view)
            while filled < size and not self._peer_ended and (incoming.pending or tls.pending()):
                try:
                    with view[filled:] as room:  # typeshed takes the result for bytes
                        count = cast(int, tls.read(size - filled, cast(bytearray, room)))
                except ssl.SSLWantReadError:
                    break
                except ssl.SSLZeroReturnError:
                    count = 0
                if count == 0:
                    self._peer_ended = True
                filled += count
        return filled

    def _encrypt(self, data: Piece) -> None:
        view = memoryview(data)
        while view:
            view = view[self._ssl.write(view) :]

    def _send(self) -> None:
        """Hand what OpenSSL has to say to the socket."""
        data = self._outgoing.read()
        if data:
            self._socket.write(data)

    def _fail(self, error: ssl.SSLError) -> None:
        """The peer is told why, if OpenSSL has put it into words, and dropped."""
        self._send()
        self._state = TlsState.CLOSED
        text = (error.reason or str(error)).replace("_", " ").lower()
        if isinstance(error, ssl.SSLCertVerificationError):
            text += f": {error.verify_message}"
        self._link.close(RemoteProtocolError(f"TLS: {text}"))
