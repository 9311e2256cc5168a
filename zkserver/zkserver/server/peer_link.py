"""One connection to another server: the end that dials, and the end that is dialled.

    who dials         CONNECTING ─► (SECURING ─►) SHAKING ─► OPEN ─► closed
                           └─────────────┴───────────┴─► failed: refused, not reached, not in time
    who is dialled    a stranger ─► a caller, who has said hello and was welcome ─► closed
                           └─► refused

SECURING is the handshake of TLS, which an accepted link begins when its first byte asks for that.
Owns that way, for both. That the other server has gone is heard with the last thing that its socket
says, whatever is still to be sent to it: the next election begins there. Source: ZooKeeper
`QuorumCnxManager`, `Learner.connectToLeader`, `LearnerHandler`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from duolog_protocol.connection import ServerState
from duolog_protocol.errors import ConnectionLostError, Error, RemoteProtocolError
from duolog_protocol.peer_decoder import PeerDecoder, PeerStage, Received
from duolog_protocol.peer_handshake import check_answer, refuse_stranger
from duolog_protocol.preamble import PREAMBLE
from duolog_protocol.quorum_codec import encode_message
from duolog_protocol.quorum_messages import (
    HANDSHAKE_VERSION,
    PeerHello,
    PeerPurpose,
    PeerRefusal,
    PeerWelcome,
)
from duolog_runtime.connection import Link, ServerLink
from duolog_runtime.tls import TlsLayer
from duolog_runtime.tls_context import PeerTls


class PeerCaller(NamedTuple):
    """Who has dialled us, and what for."""

    server_id: int
    purpose: PeerPurpose


class DialledLink(Link):
    """A link that we have dialled. `on_open` or `on_failed` is called once; then, of an open one,
    `on_messages` and at last `on_closed`, once. None of them is called from inside `dial`."""

    __slots__ = (
        "_decoder",
        "_has_said_hello",
        "_hello",
        "_on_closed",
        "_on_failed",
        "_on_messages",
        "_on_open",
        "_task",
        "_timer",
        "_tls",
        "is_open",
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
        on_messages: Callable[[DialledLink, list[Received]], None],
        on_closed: Callable[[DialledLink], None],
        max_unsent_bytes: int,
        scratch: memoryview,
        tls: PeerTls | None,
    ) -> None:
        super().__init__(loop, max_unsent_bytes)
        self.server_id = server_id
        """Whom it reaches."""
        self.is_open = False
        """It was welcome; it may have ended since."""
        self._hello = hello
        self._decoder = PeerDecoder(PeerPurpose(hello.purpose), scratch)
        self._on_open = on_open
        self._on_failed = on_failed
        self._on_messages = on_messages
        self._on_closed = on_closed
        self._tls = tls
        self._has_said_hello = False
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def version(self) -> int:
        """Of the messages, as both ends have agreed."""
        return self._decoder.version

    def dial(self, host: str, port: int, timeout_ms: int) -> None:
        """Begin; connecting and the other's answer together may take so long."""
        self._timer = self._loop.call_later(timeout_ms / 1000, self._on_late, timeout_ms)
        name = f"dial server {self.server_id}"
        self._task = self._loop.create_task(self._connect(host, port), name=name)

    @property
    def connecting(self) -> asyncio.Task[Any] | None:
        """What opens the connection, until it has ended; also after `give_up`."""
        return self._task

    def give_up(self) -> None:
        """Whatever it is doing, it is over, and nobody is told. Idempotent."""
        self._stop_timer()
        self._stop_connecting()
        self._forget_owner()
        self.abort()

    async def _connect(self, host: str, port: int) -> None:
        try:
            await self._loop.create_connection(self._protocol, host, port)
        except (OSError, ValueError) as error:  # ValueError: no host has such a name
            self._fail(error)
        finally:
            self._task = None

    def _protocol(self) -> asyncio.BaseProtocol:
        tls = self._tls
        if tls is None:
            return self
        context = tls.current().dialling
        return TlsLayer(self, context, DialledLink._say_hello, tls.scratch, is_server=False)

    def _on_late(self, timeout_ms: int) -> None:
        self._timer = None
        self._fail(TimeoutError(f"no answer within {timeout_ms} ms"))

    def _fail(self, error: BaseException) -> None:
        self._stop_timer()
        self._stop_connecting()
        failed = self._on_failed
        self._forget_owner()
        self.abort()
        failed(self, error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_connecting(self) -> None:
        """Not of a link that goes on: the answer may be here before its task has noticed."""
        task = self._task
        if task is not None and task is not asyncio.current_task(self._loop):
            task.cancel()

    def _forget_owner(self) -> None:
        """Nobody is called any more, and no cycle is left behind (`duolog_runtime.heap`)."""
        self._on_failed = self._on_closed = _nothing
        self._on_open = self._on_messages = _nothing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        super().connection_made(transport)
        if self.closed:  # given up while it was being connected
            self.abort()
            return
        if self._tls is None:
            self._say_hello()

    def _say_hello(self) -> None:
        self._has_said_hello = True
        self.write_now([PREAMBLE, *encode_message(self._hello, 0, HANDSHAKE_VERSION)])

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        """Called by the loop."""
        return self._decoder.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the loop."""
        if self.closed:
            return
        try:
            received = self._decoder.buffer_updated(nbytes)
            if received and not self.is_open:
                check_answer(_answer(received), self.server_id, self._hello.version)
        except Error as error:
            if self.is_open:
                self.abort(error)
            else:
                self._fail(error)
            return
        if received and not self.is_open:
            assert self._decoder.stage is PeerStage.OPEN, self._decoder.stage
            self.is_open = True
            self._stop_timer()
            self._on_open(self)
            del received[0]
        if received:
            self._on_messages(self, received)

    def eof_received(self) -> None:
        """Called by the loop: the other server has gone."""
        self.abort(ConnectionLostError("the other server has closed the connection"))
        self.on_closed(self.close_reason)

    def on_closed(self, reason: BaseException | None) -> None:
        """The connection has ended."""
        if self.is_open:
            closed = self._on_closed
            self._forget_owner()
            closed(self)
        else:
            self._fail(self._why(reason))

    def _why(self, reason: BaseException | None) -> BaseException:
        """Why there was no answer. A server without TLS just closes, one way or the other."""
        if self._tls is None or self._has_said_hello or isinstance(reason, RemoteProtocolError):
            return reason or ConnectionLostError("closed without an answer")
        return ConnectionLostError(
            "closed in the handshake of TLS: is peer_tls_certificate_file set there, too?"
        )


class AcceptedLink(ServerLink):
    """A link that somebody has dialled. `context` is its `PeerCaller`, None for a stranger."""

    __slots__ = ("_is_over", "version")

    context: PeerCaller | None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_made: Callable[[Any], None],
        on_frames: Callable[[Any, list[Received]], None],
        on_foreign: Callable[[Any], None],
        on_closed: Callable[[Any, BaseException | None], None],
        max_unsent_bytes: int,
        scratch: memoryview,
    ) -> None:
        """The callbacks are those of a `ServerLink`; `on_closed` is called once."""
        super().__init__(
            loop,
            on_made=on_made,
            on_frames=on_frames,
            on_foreign=on_foreign,
            on_closed=on_closed,
            max_unsent_bytes=max_unsent_bytes,
            scratch=scratch,
            take_native=partial(PeerDecoder, None),
        )
        self._is_over = False
        self.version = HANDSHAKE_VERSION
        """Of the messages, as both ends have agreed."""

    @property
    def is_secure(self) -> bool:
        """It is inside TLS: the other server has shown a certificate of the ensemble."""
        return isinstance(self.transport, TlsLayer)

    def secure(self, tls: PeerTls) -> None:
        """The stranger has begun TLS: go on inside it, where it is a stranger still."""
        layer = TlsLayer(self, tls.current().accepting, _nothing, tls.scratch)
        layer.take_over(self.endpoint.start_over())

    def welcome(self, caller: PeerCaller, answer: PeerWelcome) -> None:
        """The stranger has said hello: it is a caller from now on."""
        decoder = self.endpoint.decoder
        assert isinstance(decoder, PeerDecoder), decoder
        self.write(encode_message(answer, 0, HANDSHAKE_VERSION))
        self.version = answer.version
        decoder.open(caller.purpose, answer.version)
        self.context = caller

    def turn_away(self, refusal: PeerRefusal) -> None:
        """The stranger is not welcome, and hears why."""
        self.write(encode_message(refusal, 0, HANDSHAKE_VERSION))
        self.close(RemoteProtocolError(refusal.message))

    def refuse(self, error: RemoteProtocolError) -> None:
        """What came makes no sense. A stranger that speaks as our servers do hears that."""
        if self.context is None and self.endpoint.state is ServerState.OPEN:
            self.write(encode_message(refuse_stranger(error), 0, HANDSHAKE_VERSION))
            self.close(error)
        else:
            self.abort(error)

    def eof_received(self) -> None:
        """Called by the loop: the other server has gone."""
        self.abort(ConnectionLostError("the other server has closed the connection"))
        self.on_closed(self.close_reason)

    def on_closed(self, reason: BaseException | None) -> None:
        """The connection has ended."""
        if not self._is_over:
            self._is_over = True
            super().on_closed(reason)


def _answer(received: list[Received]) -> PeerWelcome | PeerRefusal:
    answer = received[0][0]
    assert isinstance(answer, PeerWelcome | PeerRefusal), answer
    return answer


def _nothing(*_: Any) -> None:
    """Nobody is told."""
