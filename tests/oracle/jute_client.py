"""A raw, synchronous client: it sends what it is told and hands out every frame in order.

No session logic, no watch manager, no retries: the order of replies and events on the connection
is what the tests compare. Independent of `duolog_protocol` on purpose.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Self

from . import jute

TIMEOUT_S: Final = 8.0
NUDGE_S: Final = 1.0
"""Silence after which the connection's `nudge` is called."""
_LENGTH: Final = struct.Struct(">i")
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024


class Silence(Exception):
    """The server said nothing within the deadline."""


class Closed:
    """The server has closed the connection: the last frame there is."""

    def __repr__(self) -> str:
        return "CLOSED"


CLOSED: Final = Closed()
Frame = jute.Reply | jute.Event | Closed


class JuteConnection:
    """One TCP connection to a server."""

    def __init__(self, port: int, timeout_s: float = TIMEOUT_S) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), min(timeout_s, NUDGE_S))
        self.timeout_s = timeout_s
        """Longest silence that is waited for."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()
        self._at = 0
        self._unsent: list[bytes] = []
        self._last_xid = 0
        self.due: deque[tuple[int, str | None]] = deque()
        """(xid, operation) of what was asked and not answered."""
        self.closed = False
        self.session_id = 0
        self.password = bytes(16)
        self.timeout_ms = 0
        self.last_zxid = 0
        """The highest zxid that a reply had."""
        self.nudge: Callable[[], None] = lambda: None
        """Apache 3.8.0 can lose the wake-up for a lone client: another one's request helps."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()

    def drop(self) -> None:
        """Close the socket without a word."""
        self.closed = True
        self._socket.close()

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    # ---- opening -------------------------------------------------------------------------------

    def connect(
        self,
        timeout_ms: int = 30_000,
        *,
        session_id: int = 0,
        password: bytes | None = bytes(16),
        last_zxid_seen: int = 0,
        read_only: bool | None = False,
    ) -> jute.Connected | Closed:
        """Open or take over a session; CLOSED where the server refuses without a word."""
        self.send_connect(
            timeout_ms,
            session_id=session_id,
            password=password,
            last_zxid_seen=last_zxid_seen,
            read_only=read_only,
        )
        return self.receive_connected()

    def send_connect(
        self,
        timeout_ms: int,
        *,
        session_id: int = 0,
        password: bytes | None = bytes(16),
        last_zxid_seen: int = 0,
        read_only: bool | None = False,
    ) -> None:
        """The first half of `connect`."""
        self.send(
            jute.encode_connect(
                last_zxid_seen, timeout_ms, session_id, password, read_only=read_only
            )
        )

    def receive_connected(self) -> jute.Connected | Closed:
        """The second half of `connect`."""
        body = self._next_body()
        if body is None:
            return CLOSED
        answer = jute.decode_connected(body)
        if answer.timeout_ms > 0 and answer.password is not None:
            self.session_id, self.password = answer.session_id, answer.password
            self.timeout_ms = answer.timeout_ms
        return answer

    # ---- requests ------------------------------------------------------------------------------

    def request(self, name: str, *arguments: Any, xid: int | None = None) -> int:
        """Queue a request; `flush` sends it. Returns its xid."""
        if xid is None:
            xid = self.next_xid(name)
        self._unsent.append(jute.encode_request(name, xid, arguments))
        self.due.append((xid, name))
        return xid

    def request_raw(self, code: int, body: bytes, *, name: str | None = None) -> int:
        """Queue a request that may be malformed; a reply is read as one to `name`."""
        xid = self.next_xid("")
        self._unsent.append(jute.frame(struct.pack(">ii", xid, code) + body))
        self.due.append((xid, name))
        return xid

    def next_xid(self, name: str) -> int:
        """The xid that a client would use."""
        if name in jute.XIDS:
            return jute.XIDS[name]
        self._last_xid += 1
        return self._last_xid

    def start_xids(self, after: int) -> None:
        """Number requests from there on, so that a session's connections do not share xids."""
        self._last_xid = after

    def flush(self) -> None:
        """Send what is queued."""
        if self._unsent:
            data = b"".join(self._unsent)
            self._unsent.clear()
            self.send(data)

    def send(self, data: bytes) -> None:
        """Send bytes as they are; a server that has closed is noticed when reading."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise Silence("the server reads nothing") from error

    def call(self, name: str, *arguments: Any) -> jute.Reply:
        """One request and its reply; events before it are dropped. Raises ConnectionError."""
        self.request(name, *arguments)
        self.flush()
        for frame in self.receive_due():
            if isinstance(frame, jute.Reply):
                reply = frame
            elif isinstance(frame, Closed):
                raise ConnectionError(f"closed before the reply to {name}")
        return reply

    # ---- replies and events --------------------------------------------------------------------

    def receive_due(self) -> list[Frame]:
        """Every frame up to the last reply that is due, or up to CLOSED."""
        self.flush()
        frames: list[Frame] = []
        while self.due:
            frame = self.receive()
            frames.append(frame)
            if frame is CLOSED:
                break
        return frames

    def receive(self) -> Frame:
        """The next frame. Raises Silence, JuteError."""
        body = self._next_body()
        if body is None:
            self.due.clear()
            return CLOSED
        if jute.is_event(body):
            return jute.decode_event(body)
        if not self.due:
            raise jute.JuteError(f"a reply that nobody asked for: {body.hex()}")
        _, name = self.due.popleft()
        reply = jute.decode_reply(name, body)
        self.last_zxid = max(self.last_zxid, reply.zxid)
        return reply

    def _next_body(self) -> bytes | None:
        while True:
            received, at = self._received, self._at
            if len(received) - at >= 4:
                (size,) = _LENGTH.unpack_from(received, at)
                if not 0 <= size <= MAX_FRAME_BYTES:
                    raise jute.JuteError(f"a frame of {size} bytes")
                if len(received) - at - 4 >= size:
                    self._at = at + 4 + size
                    return bytes(received[at + 4 : self._at])
            if at:
                del received[:at]
                self._at = 0
            if not self._read():
                if received:
                    raise jute.JuteError(f"closed inside a frame: {bytes(received)!r}")
                return None

    def _read(self) -> bool:
        """Wait for more bytes; False at the end of the stream. Raises Silence."""
        waited_s = 0.0
        while not self.closed:
            try:
                data = self._socket.recv(1 << 18)
            except TimeoutError as error:
                waited_s += NUDGE_S
                if waited_s >= self.timeout_s:
                    text = f"no frame within {self.timeout_s} s; due: {self.due}"
                    raise Silence(text) from error
                self.nudge()
                continue
            except ConnectionError:
                data = b""
            if data:
                self._received += data
                return True
            self.drop()
        return False
