"""One connection to another server, from the side that dials: connected, introduced, open.

    CONNECTING ─► SHAKING ─► OPEN ─► closed
         └───────────┴─► failed: refused, not reached, or not in time

Owns that way. The side that is dialled is a `ServerLink` with the decoder of a peer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from duolog_protocol.errors import Error, RemoteProtocolError
from duolog_protocol.peer_decoder import PeerDecoder, PeerStage, Received
from duolog_protocol.peer_handshake import check_answer
from duolog_protocol.preamble import PREAMBLE
from duolog_protocol.quorum_codec import encode_message
from duolog_protocol.quorum_messages import PeerHello, PeerPurpose, PeerRefusal, PeerWelcome
from duolog_runtime.connection import Link


class DialledLink(Link):
    """A link that we have dialled. `on_open` or `on_failed` is called once; then, of an open one,
    `on_messages` and at last `on_closed`. None of them is called from inside `dial`."""

    __slots__ = (
        "_decoder",
        "_hello",
        "_is_open",
        "_on_closed",
        "_on_failed",
        "_on_messages",
        "_on_open",
        "_task",
        "_timer",
        "server_id",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server_id: int,
        hello: PeerHello,
        *,
        on_open: Callable[[DialledLink], None],
        on_failed: Callable[[DialledLink, BaseException], None],
        on_messages: Callable[[Link, list[Received]], None],
        on_closed: Callable[[Link], None],
        max_unsent_bytes: int,
        scratch: memoryview,
    ) -> None:
        super().__init__(loop, max_unsent_bytes)
        self.server_id = server_id
        """Whom it reaches."""
        self._hello = hello
        self._decoder = PeerDecoder(PeerPurpose(hello.purpose), scratch)
        self._on_open = on_open
        self._on_failed = on_failed
        self._on_messages = on_messages
        self._on_closed = on_closed
        self._is_open = False
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def dial(self, host: str, port: int, timeout_s: float) -> None:
        """Begin; connecting and the other's answer together may take so long."""
        self._timer = self._loop.call_later(timeout_s, self._on_late, timeout_s)
        self._task = self._loop.create_task(self._connect(host, port))

    def give_up(self) -> None:
        """Whatever it is doing, it is over, and nobody is told. Idempotent."""
        self._end_dialling()
        if self._task is not None:
            self._task.cancel()
        self._on_failed = self._on_closed = _nothing
        self._on_open = self._on_messages = _nothing
        self.abort()

    async def _connect(self, host: str, port: int) -> None:
        try:
            await self._loop.create_connection(lambda: self, host, port)
        except OSError as error:
            self._fail(error)
        finally:
            self._task = None

    def _on_late(self, timeout_s: float) -> None:
        self._timer = None
        if self._task is not None:
            self._task.cancel()
        self._fail(TimeoutError(f"no answer within {timeout_s * 1000:.0f} ms"))

    def _fail(self, error: BaseException) -> None:
        self._end_dialling()
        failed, self._on_failed = self._on_failed, _nothing
        failed(self, error)
        self.abort()

    def _end_dialling(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        super().connection_made(transport)
        if self.closed:  # given up while it was being connected
            transport.abort()  # type: ignore[attr-defined]
            return
        self.write_now([PREAMBLE, *encode_message(self._hello, 0)])

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        """Called by the loop."""
        return self._decoder.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the loop."""
        if self.closed:
            return
        try:
            received = self._decoder.buffer_updated(nbytes)
            if not self._is_open and received:
                received = self._take_answer(received)
        except Error as error:
            self._refuse(error)
            return
        if received:
            self._on_messages(self, received)

    def _take_answer(self, received: list[Received]) -> list[Received]:
        answer = received[0][0]
        assert isinstance(answer, PeerWelcome | PeerRefusal), answer
        check_answer(answer, self.server_id)
        assert self._decoder.stage is PeerStage.OPEN, self._decoder.stage
        self._is_open = True
        self._end_dialling()
        self._on_open(self)
        return received[1:]

    def _refuse(self, error: Error) -> None:
        if self._is_open:
            self.abort(error)
        else:
            self._fail(error)

    def on_closed(self, reason: BaseException | None) -> None:
        """The connection has ended."""
        if self._is_open:
            closed, self._on_closed = self._on_closed, _nothing
            closed(self)
        else:
            self._fail(reason or RemoteProtocolError("closed without an answer"))


def _nothing(*_: Any) -> None:
    """Nobody is told."""
