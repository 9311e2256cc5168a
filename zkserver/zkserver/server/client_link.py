"""The connections of clients: who may stay, for how long without a session, and what they say.

Owns the limits on connections and the time until a session is there. It decides nothing about
requests: the decoder makes them, and they go to the engine, all of one read together. A
client that opens TLS gets a layer of it under its link, and is told apart again inside.
Limits: reliability.md §11.2. A connection is *unknown* until the core has attached a session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

from duolog_protocol.codec import Piece
from duolog_protocol.connection import MAX_FRAME_BYTES_UNKNOWN_PEER
from duolog_protocol.errors import DecodeError, RemoteProtocolError
from duolog_protocol.jute_codec import JuteCodec
from duolog_protocol.jute_decoder import MAX_FRAME_BYTES_WITHOUT_SESSION, JuteDecoder
from duolog_protocol.preamble import Caller
from duolog_protocol.recent_reads import RecentReads
from duolog_protocol.zk_codec import NativeCodec
from duolog_protocol.zk_decoder import NativeDecoder
from duolog_runtime.clocks import Clock
from duolog_runtime.connection import ServerLink
from duolog_runtime.logs import Logger
from duolog_runtime.tls import TlsLayer, TlsState
from duolog_runtime.tls_context import ServerTls
from zkserver.core.auth import AuthProviders
from zkserver.core.connection import Connection
from zkserver.core.distinguished_name import subject_name
from zkserver.core.events import ConnectionLost, Event, Received, Request

from .stats import ConnectionStats, ServerStats
from .token_bucket import TokenBucket


class LinkLimits(NamedTuple):
    """What clients may take."""

    max_connections: int
    max_connections_per_address: int
    max_unknown_connections: int
    handshake_timeout_ms: int
    max_frame_bytes: int
    """Of a native client that has a session."""
    max_jute_frame_bytes: int
    """Of a ZooKeeper client that has a session."""
    connection_tokens: int = 0
    connection_tokens_per_second: int = 1


Reply = Callable[[str | None], None]
"""Takes the text for a four-letter word, None where there is none to send."""


class Words(Protocol):
    """Who answers four-letter words."""

    def argument_bytes(self, word: str) -> int:
        """Bytes that belong to the word and follow it."""

    def answer_word(self, word: str, argument: bytes, reply: Reply) -> None:
        """Call `reply` once, now or when the disk has answered."""


class Inbox(Protocol):
    """Where events go."""

    def step(self, event: Event) -> None:
        """Take an event."""


class ClientLinks:
    """All connections of clients; its methods are the callbacks of their `ServerLink`s.

    `words` is set before the first connection comes.
    """

    words: Words

    def __init__(
        self,
        inbox: Inbox,
        clock: Clock,
        limits: LinkLimits,
        log: Logger,
        *,
        auth: AuthProviders | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        self._inbox = inbox
        self._clock = clock
        self._limits = limits
        self._log = log
        self._auth = auth or AuthProviders()
        self._tls = tls
        self.stats: Final = ServerStats()
        self._bucket = TokenBucket(
            limits.connection_tokens, limits.connection_tokens_per_second, clock.now_ms()
        )
        self._links: dict[ServerLink, Connection] = {}
        self._unknown: dict[Connection, int] = {}
        """Until when a connection has to have a session, oldest first (ms, monotonic)."""
        self._per_address: dict[str, int] = {}
        self._accepting = True
        self._held: list[ServerLink] = []
        """Links with something written that may wait; most of it has left before they are asked."""

    def __len__(self) -> int:
        return len(self._links)

    def items(self) -> Iterable[tuple[ServerLink, Connection]]:
        """All connections, oldest first; not to be kept."""
        return self._links.items()

    @property
    def outstanding_handshakes(self) -> int:
        """Connections whose TLS handshake is not over."""
        layers = (link.transport for link in self._links)
        return sum(
            isinstance(each, TlsLayer) and each.state is TlsState.HANDSHAKE for each in layers
        )

    def deadline_of(self, connection: Connection) -> int:
        """Until when a connection has to have a session (ms, monotonic); 0: it has one."""
        return self._unknown.get(connection, 0)

    @property
    def bytes_received(self) -> int:
        """From all clients, also those that have gone."""
        return self.stats.bytes_received + sum(link.received_bytes for link in self._links)

    @property
    def bytes_sent(self) -> int:
        """To all clients, also those that have gone."""
        return self.stats.bytes_sent + sum(link.sent_bytes for link in self._links)

    def reset_server_stats(self) -> None:
        """The server's numbers begin anew."""
        self.stats.clear()
        self.stats.bytes_received = -self.bytes_received
        self.stats.bytes_sent = -self.bytes_sent

    def reset_connection_stats(self) -> None:
        """The numbers of every connection begin anew."""
        for connection in self._links.values():
            connection.stats.clear()

    def on_made(self, link: ServerLink) -> None:
        """A client connected: it stays where the limits allow it."""
        limits = self._limits
        address = _address(link)
        own = self._per_address.get(address, 0)
        if not self._accepting:
            link.abort()
            return
        if limits.max_connections and len(self._links) >= limits.max_connections:
            self.stats.connections_rejected += 1
            self._refuse(link, f"all {limits.max_connections} connections are taken")
            return
        if limits.max_connections_per_address and own >= limits.max_connections_per_address:
            self.stats.connections_rejected += 1
            self._refuse(link, f"{address} has {own} connections already")
            return
        now_ms = self._clock.now_ms()
        if not self._bucket.take(now_ms):
            self.stats.connections_throttled += 1
            self._refuse(link, "connections come too fast")
            return
        if len(self._unknown) >= limits.max_unknown_connections:
            self._drop(next(iter(self._unknown)), "too many connections without a session")
        decoder = link.endpoint.decoder
        assert isinstance(decoder, NativeDecoder), decoder
        connection = Connection(
            NativeCodec(decoder), link.peer, link, self._auth.at_connect(address, None)
        )
        connection.stats = ConnectionStats(self.stats, self._clock.wall_ms())
        link.context = connection
        self._links[link] = connection
        self._per_address[address] = own + 1
        self._unknown[connection] = now_ms + limits.handshake_timeout_ms

    def on_frames(self, link: ServerLink, requests: list[Request]) -> None:
        """A read of a client brought these requests."""
        connection: Connection = link.context
        if not connection.codec.known_peer:
            _choose_codec(link, connection)
        connection.stats.took(connection, requests, self._clock.now_ms())
        self._inbox.step(Received(connection, requests, self._clock.wall_ms()))

    def on_foreign(self, link: ServerLink) -> None:
        """Not a client of ours: begin TLS, or answer a four-letter word, else close."""
        endpoint = link.endpoint
        inside = isinstance(link.transport, TlsLayer)
        if endpoint.caller is Caller.TLS and self._tls is not None and not inside:
            self.secure(link, self._tls).take_over(endpoint.start_over())
            return
        if endpoint.caller is not Caller.FOUR_LETTER_WORD:
            link.close(RemoteProtocolError(f"the caller is {endpoint.caller.value}"))
            return
        word, rest = endpoint.first_bytes[:4].decode("ascii"), endpoint.first_bytes[4:]
        wanted = self.words.argument_bytes(word)
        if len(rest) < wanted:
            return  # it comes with the next read, or `drop_late` ends the wait
        link.pause_reading()
        link.context.stats.asked_a_word()
        self.words.answer_word(word, rest[:wanted], lambda text: _reply_word(link, text))

    def secure(self, link: ServerLink, tls: ServerTls) -> TlsLayer:
        """A layer of TLS for a link."""
        return TlsLayer(link, tls.current(), self._on_secured, tls.scratch)

    def _on_secured(self, link: ServerLink) -> None:
        """A client's handshake is over: its certificate says who it is."""
        assert isinstance(link.transport, TlsLayer), link.transport
        certificate = link.transport.peer_certificate()
        if certificate is None:
            return
        if link.transport.resumed_past_expiry(self._clock.wall_ms()):
            link.close(RemoteProtocolError("TLS: the certificate has expired"))
            return
        try:
            subject = subject_name(certificate)
        except (DecodeError, ValueError) as error:  # or a number too long for Python to print
            link.close(RemoteProtocolError(f"the certificate names nobody: {error}"))
            return
        connection: Connection = link.context
        connection.identities = self._auth.at_connect(_address(link), subject)

    def on_closed(self, link: ServerLink, reason: BaseException | None) -> None:
        """A connection ended, from either side."""
        connection = self._links.pop(link, None)
        if connection is None:
            return
        self.stats.bytes_received += link.received_bytes
        self.stats.bytes_sent += link.sent_bytes
        address = _address(link)
        left = self._per_address[address] - 1
        if left:
            self._per_address[address] = left
        else:
            del self._per_address[address]
        self._unknown.pop(connection, None)
        if reason is not None:
            self._log.info("connection_dropped", peer=link.peer, reason=str(reason))
        self._inbox.step(ConnectionLost(connection))
        link.context = None  # no cycle is left behind (`duolog_runtime.heap`)

    def send(
        self, connection: Connection, pieces: list[Piece], more: bool, zxid: int, now_ms: int
    ) -> None:
        """Write to a client; `release_held` in a moment, where `more` is to come."""
        link: ServerLink = connection.link
        if more:
            link.hold(pieces)
            self._held.append(link)
        else:
            link.write_now(pieces)
        connection.stats.sent(connection, zxid, now_ms)

    @property
    def holds_any(self) -> bool:
        """Something was written that may still wait."""
        return bool(self._held)

    def release_held(self) -> None:
        """What has waited for more, and has not left with it, leaves now."""
        held, self._held = self._held, []
        for link in held:
            link.flush()

    def session_attached(self, connection: Connection) -> None:
        """The client has a session: it may stay, and send long frames."""
        if self._unknown.pop(connection, None) is not None:
            self.stats.connections_attached += 1
            endpoint = connection.link.endpoint
            limits = self._limits
            is_jute = isinstance(connection.codec, JuteCodec)
            endpoint.raise_limit(limits.max_jute_frame_bytes if is_jute else limits.max_frame_bytes)

    def next_deadline_ms(self) -> int | None:
        """When `drop_late` has something to do."""
        return next(iter(self._unknown.values())) if self._unknown else None

    def drop_late(self) -> None:
        """Close connections whose session did not come in time."""
        now_ms = self._clock.now_ms()
        while self._unknown:
            connection, deadline_ms = next(iter(self._unknown.items()))
            if deadline_ms > now_ms:
                return
            self.stats.sessionless_expired += 1
            self._drop(connection, f"no session after {self._limits.handshake_timeout_ms} ms")

    def pause_all(self) -> None:
        """Accept nothing and read nothing more."""
        self._accepting = False
        for link in self._links:
            link.pause_reading()

    def close_all(self) -> None:
        """Close every connection once what was written is out."""
        for link in list(self._links):
            link.close()

    def abort_all(self) -> None:
        """End every connection at once."""
        for link in list(self._links):
            link.abort()

    def _refuse(self, link: ServerLink, reason: str) -> None:
        self._log.warning("connection_refused", peer=link.peer, reason=reason)
        link.abort(RemoteProtocolError(reason))

    def _drop(self, connection: Connection, reason: str) -> None:
        del self._unknown[connection]
        link: ServerLink = connection.link
        link.abort(RemoteProtocolError(reason))


def take_native(recent: RecentReads, scratch: memoryview) -> NativeDecoder:
    """The decoder of a connection that has just been made; `recent` is shared by all."""
    return NativeDecoder(MAX_FRAME_BYTES_UNKNOWN_PEER, scratch, recent)


def take_jute(scratch: memoryview) -> JuteDecoder:
    """The decoder of a ZooKeeper client that has just opened its connection."""
    return JuteDecoder(MAX_FRAME_BYTES_WITHOUT_SESSION, scratch)


def _choose_codec(link: ServerLink, connection: Connection) -> None:
    """Give a connection the codec of its kind of client, which its first bytes have told."""
    decoder = link.endpoint.decoder
    if isinstance(decoder, JuteDecoder) and not isinstance(connection.codec, JuteCodec):
        connection.codec = JuteCodec(decoder)


def _reply_word(link: ServerLink, text: str | None) -> None:
    if text is not None:
        link.write([text.encode("utf-8", "backslashreplace")])
    link.close()


def _address(link: ServerLink) -> str:
    return link.peer.rpartition(":")[0]
