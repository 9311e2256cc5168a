"""Byte streams of simulated processes, for asyncio's protocols.

Owns what a socket does between a protocol and a `Link` of the simulated network: ports, refused
connections, reads that stop, a reader that is too slow. A connection is a link whose first message
names the port and whose first answer says whether anybody listens there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from .network import Link

if TYPE_CHECKING:
    from .process import SimProcess

SOCKET_BYTES: Final = 256 * 1024
"""Both ends' sockets take so much that nobody has read; the rest waits in the transport."""


class Open(NamedTuple):
    """The first message of a link: whom it is for."""

    port: int
    source_port: int


class Accepted(NamedTuple):
    """Somebody listens there."""


class SimListener:
    """A listening port; stands for `asyncio.Server`."""

    def __init__(
        self, process: SimProcess, factory: Callable[[], asyncio.BaseProtocol], port: int
    ) -> None:
        self._process = process
        self.factory = factory
        self.port = port
        self._serving = False

    @property
    def sockets(self) -> tuple[_Socket, ...]:
        """One, while it is open."""
        return (_Socket(self._process.machine.ip, self.port),) if self.is_open else ()

    @property
    def is_open(self) -> bool:
        """The port is taken."""
        return self._process.listeners.get(self.port) is self

    def is_serving(self) -> bool:
        """Connections are accepted."""
        return self._serving and self.is_open

    async def start_serving(self) -> None:
        """Accept from now on."""
        self._serving = True

    def close(self) -> None:
        """Free the port; connections stay."""
        if self.is_open:
            del self._process.listeners[self.port]

    async def serve_forever(self) -> None:
        """As asyncio's: until it is cancelled, which closes it."""
        await self.start_serving()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.close()

    async def wait_closed(self) -> None:
        """It is closed at once."""

    async def __aenter__(self) -> SimListener:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class _Socket(NamedTuple):
    ip: str
    port: int

    def getsockname(self) -> tuple[str, int]:
        return (self.ip, self.port)


class SimTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(
        self,
        process: SimProcess,
        link: Link,
        protocol: asyncio.BaseProtocol,
        own: tuple[str, int],
        peer: tuple[str, int],
    ) -> None:
        super().__init__({"peername": peer, "sockname": own})
        self._process = process
        self._link = link
        self._protocol = protocol
        self._other: SimTransport | None = None
        """The other end, to tell what was read; None while it is not there, or has gone."""
        self._incoming: deque[bytes] = deque()
        """What has come and is not read; empty: the other end has closed."""
        self._reading = True
        self._is_lost = False
        self._unread_bytes = 0
        """Sent here and not read by the other end."""
        self._high, self._low = 64 * 1024, 16 * 1024
        self._writing_paused = False

    def start(self) -> None:
        """Tell the protocol."""
        other = self._link.other
        peer_process = cast("SimProcess", other.endpoint)
        found = peer_process.transports.get(other)
        if found is not None:
            self._other, found._other = found, self
        self._protocol.connection_made(self)

    # ---- reading --------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Bytes came."""
        self._incoming.append(data)
        self._read_on()

    def end(self) -> None:
        """The other end has closed, or the connection is broken; what came before is read first."""
        self._incoming.append(b"")
        self._read_on()

    def _read_on(self) -> None:
        while self._incoming and self._reading and not self._is_lost:
            data = self._incoming.popleft()
            if not data and self._link.is_broken:
                self._lose(ConnectionResetError("the connection was lost"))
                return
            try:
                if not data:
                    protocol = cast(asyncio.Protocol, self._protocol)
                    if not protocol.eof_received():  # else it closes this end itself
                        self._close()
                    return
                unread = self._feed(data)
            except Exception as error:
                self._process.loop.call_exception_handler(
                    {"message": "a protocol failed", "exception": error, "protocol": self._protocol}
                )
                self.abort()
                return
            if unread:
                self._incoming.appendleft(unread)
            if self._other is not None:
                self._other.was_read(len(data) - len(unread))

    def _feed(self, data: bytes) -> bytes:
        """Let the protocol take it; what it does not want yet comes back."""
        protocol = self._protocol
        if not isinstance(protocol, asyncio.BufferedProtocol):
            cast(asyncio.Protocol, protocol).data_received(data)
            return b""
        view = memoryview(data)
        while view and self._reading and not self._is_lost:
            buffer = memoryview(protocol.get_buffer(len(view)))
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            protocol.buffer_updated(count)
            protocol, view = cast(asyncio.BufferedProtocol, self._protocol), view[count:]
        return bytes(view)

    def is_reading(self) -> bool:
        """As asyncio's."""
        return self._reading and not self._is_lost

    def pause_reading(self) -> None:
        """As asyncio's."""
        self._reading = False

    def resume_reading(self) -> None:
        """As asyncio's."""
        if not self._reading:
            self._reading = True
            self._process.loop.call_soon(self._read_on)

    # ---- writing --------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        """As asyncio's."""
        if self._is_lost or not data:
            return
        if not self._link.is_open:  # the other end has closed, and refuses what comes
            error = ConnectionResetError("the other end has closed the connection")
            self._process.loop.call_soon(self._lose, error)
            return
        piece = bytes(data)
        self._unread_bytes += len(piece)
        self._link.send(piece)
        if not self._writing_paused and self.get_write_buffer_size() > self._high:
            self._writing_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        """As asyncio's."""
        self.write(b"".join(list_of_data))

    def was_read(self, count: int) -> None:
        """The other end has read so many bytes."""
        self._unread_bytes -= count
        if self._writing_paused and self.get_write_buffer_size() <= self._low:
            self._writing_paused = False
            self._process.post(self._resume_writing)

    def _resume_writing(self) -> None:
        if not self._writing_paused and not self._is_lost:
            self._protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        """As asyncio's: what the sockets have not taken."""
        return max(0, self._unread_bytes - SOCKET_BYTES)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As asyncio's."""
        self._high = 64 * 1024 if high is None else high
        self._low = self._high // 4 if low is None else low

    def can_write_eof(self) -> bool:
        """There is no half-closed connection."""
        return False

    # ---- the end --------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """As asyncio's."""
        return self._is_lost

    def close(self) -> None:
        """As asyncio's: what was written still arrives."""
        self._close()

    def abort(self) -> None:
        """As asyncio's."""
        self._close()

    def forget(self) -> None:
        """The process is over: nothing is told any more."""
        self._is_lost = True

    def _close(self) -> None:
        if not self._is_lost:
            self._link.close()
            self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        self._incoming.clear()
        if self._other is not None:
            self._other._other, self._other = None, None
        self._process.transports.pop(self._link, None)
        self._process.loop.call_soon(self._protocol.connection_lost, error)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """As asyncio's."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """As asyncio's."""
        self._protocol = protocol
