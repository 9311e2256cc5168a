"""The connections between this server and the others of its ensemble.

    ELECTION   each server keeps one of its own to each other server, and says there what it has to
               say; what it hears comes by those that the others have dialled
    LEARNER    a learner dials its leader; both speak

Owns who may connect, the newest notification that waits for each server, and the bounds: on callers
that have not said who they are, on how long a dial and a hello may take, on what a slow reader may
leave unread. What the messages mean is the peer's. Callbacks to the owner come from the loop, never
from inside a call of the owner's. Source: ZooKeeper `QuorumCnxManager`, `LearnerHandler`, which use
a port for each purpose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import Final, Protocol

from duolog_protocol.codec import Piece
from duolog_protocol.errors import ConfigError, Error, RemoteProtocolError
from duolog_protocol.peer_decoder import PeerDecoder, Received
from duolog_protocol.peer_handshake import answer_hello, refuse_stranger
from duolog_protocol.quorum_codec import encode_message
from duolog_protocol.quorum_messages import (
    PEER_VERSION,
    Notification,
    PeerHello,
    PeerMessage,
    PeerPurpose,
    PeerRefusal,
)
from duolog_runtime.clocks import Clock
from duolog_runtime.connection import Link, ServerLink, new_scratch
from duolog_runtime.logs import Logger

from .peer_link import DialledLink

MAX_STRANGERS: Final = 64
"""Connections that have not said who they are; beyond it the oldest of them is dropped."""
HELLO_S: Final = 3.0
FIRST_PAUSE_S: Final = 0.02
LAST_PAUSE_S: Final = 1.0
"""Between two attempts to reach a server for which a notification waits; doubled in between."""
LOG_EVERY_MS: Final = 5_000
"""The same complaint about the same server is logged no more often."""
MAX_COMPLAINTS: Final = 256


class PeerLinksOwner(Protocol):
    """Who hears what the other servers say."""

    def link_opened(self, link: Link, server_id: int) -> None:
        """A link between learner and leader: `server_id` is whom our dial has reached, 0 where a
        learner has dialled us."""

    def dial_failed(self, server_id: int) -> None:
        """A dial has come to nothing."""

    def link_lost(self, link: Link) -> None:
        """A link has ended; once, and not after `close_link`."""

    def messages_received(self, link: Link, received: list[Received]) -> None:
        """What one read has brought."""

    def notification_received(self, sender_id: int, notification: Notification) -> None:
        """A server speaks of an election."""


class _Speaker:
    """What this server has to say to one other server about elections."""

    __slots__ = ("link", "pause_s", "server_id", "timer", "waiting")

    def __init__(self, server_id: int) -> None:
        self.server_id = server_id
        self.link: DialledLink | None = None
        """Open, or being dialled."""
        self.waiting: Notification | None = None
        """The newest one that could not be sent."""
        self.pause_s = FIRST_PAUSE_S
        self.timer: asyncio.TimerHandle | None = None


class PeerLinks:
    """All connections to the other servers."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server_id: int,
        ensemble_id: int,
        addresses: Mapping[int, tuple[str, int]],
        owner: PeerLinksOwner,
        clock: Clock,
        rng: Random,
        log: Logger,
        *,
        dial_timeout_ms: int,
        max_unsent_bytes: int,
    ) -> None:
        """`addresses`: server id -> (host, port), our own among them."""
        self._loop = loop
        self._server_id = server_id
        self._ensemble_id = ensemble_id
        self._addresses = dict(addresses)
        self._owner = owner
        self._clock = clock
        self._rng = rng
        self._log = log
        self._dial_timeout_s = dial_timeout_ms / 1000
        self._max_unsent_bytes = max_unsent_bytes
        self._scratch = new_scratch()
        self._server: asyncio.Server | None = None
        self.port = 0
        """The one it listens on, after `start`."""
        self._strangers: dict[ServerLink, asyncio.TimerHandle] = {}
        self._hearing: dict[int, ServerLink] = {}
        """Server id -> the connection by which it tells us of elections."""
        self._speakers: dict[int, _Speaker] = {}
        self._open: dict[Link, int] = {}
        """Links between learner and leader that the owner knows -> whom they reach."""
        self._dialling: dict[DialledLink, None] = {}
        self._complaints: dict[tuple[int, str], int] = {}
        self._encoded: tuple[PeerMessage | None, int, list[Piece]] = (None, 0, [])
        """The last message, its context and its bytes: it often goes to several servers."""
        self._closed = False

    async def start(self) -> None:
        """Listen on our own address. Raises ConfigError."""
        host, port = self._addresses[self._server_id]
        try:
            self._server = await self._loop.create_server(self._new_link, host, port)
        except OSError as error:
            rule = f"cannot be listened on at {host}: {error.strerror or error}"
            raise ConfigError("servers", port, rule) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End all of it; no callback comes any more. Idempotent."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        for timer in self._strangers.values():
            timer.cancel()
        for speaker in self._speakers.values():
            if speaker.timer is not None:
                speaker.timer.cancel()
            if speaker.link is not None:
                speaker.link.give_up()
        for dialled in list(self._dialling):
            dialled.give_up()
        for link in [*self._strangers, *self._hearing.values(), *self._open]:
            link.abort()

    def set_addresses(self, addresses: Mapping[int, tuple[str, int]]) -> None:
        """The members have changed; links to those that have gone end by themselves."""
        self._addresses = dict(addresses)

    # ---- elections ------------------------------------------------------------------------------

    def notify(self, server_id: int, notification: Notification) -> None:
        """Tell a server; what waits for it already is replaced."""
        if self._closed:
            return
        speaker = self._speakers.get(server_id)
        if speaker is None:
            speaker = self._speakers[server_id] = _Speaker(server_id)
        link = speaker.link
        if link is not None and link in self._dialling:
            speaker.waiting = notification
        elif link is not None:
            link.write(encode_message(notification, 0))
        else:
            speaker.waiting = notification
            if speaker.timer is None:
                self._reach(speaker)

    def _reach(self, speaker: _Speaker) -> None:
        speaker.timer = None
        if self._closed or speaker.waiting is None or speaker.link is not None:
            return
        speaker.link = self._dial(
            speaker.server_id,
            PeerPurpose.ELECTION,
            on_open=partial(self._on_reached, speaker),
            on_failed=partial(self._on_not_reached, speaker),
            on_closed=partial(self._on_speaker_closed, speaker),
        )
        if speaker.link is None:
            speaker.waiting = None

    def _on_reached(self, speaker: _Speaker, link: DialledLink) -> None:
        del self._dialling[link]
        speaker.pause_s = FIRST_PAUSE_S
        waiting, speaker.waiting = speaker.waiting, None
        if waiting is not None:
            link.write(encode_message(waiting, 0))

    def _on_not_reached(self, speaker: _Speaker, link: DialledLink, error: BaseException) -> None:
        self._dialling.pop(link, None)
        speaker.link = None
        self._complain(speaker.server_id, "server_not_reached", error)
        pause_s = speaker.pause_s * self._rng.uniform(0.5, 1.0)
        speaker.pause_s = min(2 * speaker.pause_s, LAST_PAUSE_S)
        if not self._closed:
            speaker.timer = self._loop.call_later(pause_s, self._reach, speaker)

    def _on_speaker_closed(self, speaker: _Speaker, _link: Link) -> None:
        speaker.link = None

    # ---- links between learner and leader -------------------------------------------------------

    def dial(self, server_id: int) -> None:
        """Open a learner's link to a leader; ends with `link_opened` or `dial_failed`."""
        link = self._dial(
            server_id,
            PeerPurpose.LEARNER,
            on_open=self._on_dialled,
            on_failed=self._on_dial_failed,
            on_closed=self._on_lost,
        )
        if link is None:
            self._loop.call_soon(self._tell_failed, server_id)

    def _dial(
        self,
        server_id: int,
        purpose: PeerPurpose,
        *,
        on_open: Callable[[DialledLink], None],
        on_failed: Callable[[DialledLink, BaseException], None],
        on_closed: Callable[[Link], None],
    ) -> DialledLink | None:
        address = self._addresses.get(server_id)
        if address is None or self._closed:
            return None
        link = DialledLink(
            self._loop,
            server_id,
            PeerHello(self._server_id, self._ensemble_id, purpose, PEER_VERSION),
            on_open=on_open,
            on_failed=on_failed,
            on_messages=self._on_messages,
            on_closed=on_closed,
            max_unsent_bytes=self._max_unsent_bytes,
            scratch=self._scratch,
        )
        self._dialling[link] = None
        link.dial(*address, self._dial_timeout_s)
        return link

    def _on_dialled(self, link: DialledLink) -> None:
        del self._dialling[link]
        self._open[link] = link.server_id
        self._owner.link_opened(link, link.server_id)

    def _on_dial_failed(self, link: DialledLink, error: BaseException) -> None:
        self._dialling.pop(link, None)
        self._complain(link.server_id, "leader_not_reached", error)
        self._tell_failed(link.server_id)

    def _tell_failed(self, server_id: int) -> None:
        if not self._closed:
            self._owner.dial_failed(server_id)

    def tell(self, link: Link, message: PeerMessage, context: int = 0) -> None:
        """Send a message, behind all that was told before; nothing if the link has ended."""
        if link not in self._open:
            return
        last, last_context, pieces = self._encoded
        if last is not message or last_context != context:
            pieces = encode_message(message, context)
            self._encoded = (message, context, pieces)
        link.write(pieces)

    def when_drained(self, link: Link, callback: Callable[[], None]) -> None:
        """Call back once the link has taken most of what was told; never, if it ends."""
        if link in self._open:
            link.when_drained(callback)

    def close_link(self, link: Link, reason: str) -> None:
        """Send what was told, and end the link. Idempotent."""
        if self._open.pop(link, None) is not None:
            link.close(RemoteProtocolError(reason))

    def _on_messages(self, link: Link, received: list[Received]) -> None:
        if link in self._open and not self._closed:
            self._owner.messages_received(link, received)

    def _on_lost(self, link: Link) -> None:
        if self._open.pop(link, None) is not None and not self._closed:
            if link.close_reason is not None:
                self._log.info("peer_link_ended", peer=link.peer, reason=str(link.close_reason))
            self._owner.link_lost(link)

    # ---- who dials us ---------------------------------------------------------------------------

    def _new_link(self) -> ServerLink:
        return ServerLink(
            self._loop,
            on_made=self._on_made,
            on_frames=self._on_frames,
            on_foreign=self._on_foreign,
            on_closed=self._on_accepted_closed,
            max_unsent_bytes=self._max_unsent_bytes,
            scratch=self._scratch,
            take_native=partial(PeerDecoder, None),
        )

    def _on_made(self, link: ServerLink) -> None:
        if self._closed:
            link.abort()
            return
        if len(self._strangers) >= MAX_STRANGERS:
            self._drop_stranger(next(iter(self._strangers)), "too many have not said who they are")
        timer = self._loop.call_later(HELLO_S, self._drop_stranger, link, "it did not say hello")
        self._strangers[link] = timer

    def _on_foreign(self, link: ServerLink) -> None:
        self._drop_stranger(link, f"the caller is {link.endpoint.caller.value}")

    def _drop_stranger(self, link: ServerLink, reason: str) -> None:
        self._strangers.pop(link).cancel()
        error = RemoteProtocolError(reason)
        self._complain(0, "peer_refused", error, peer=link.peer)
        link.abort(error)

    def _on_frames(self, link: ServerLink, received: list[Received]) -> None:
        if link in self._strangers:
            self._welcome(link, received)
        elif link in self._open:
            self._on_messages(link, received)
        elif link.context is not None and not self._closed:
            for message, _ in received:
                assert isinstance(message, Notification), message
                self._owner.notification_received(link.context, message)

    def _welcome(self, link: ServerLink, received: list[Received]) -> None:
        """Who says hello is welcome, or hears why not."""
        hello = received[0][0]
        assert isinstance(hello, PeerHello), hello
        self._strangers.pop(link).cancel()
        others = self._addresses.keys()
        answer = answer_hello(hello, self._server_id, self._ensemble_id, others)
        link.write(encode_message(answer, 0))
        if isinstance(answer, PeerRefusal):
            error = RemoteProtocolError(answer.message)
            self._complain(hello.server_id, "peer_refused", error, peer=link.peer)
            link.close(error)
            return
        decoder = link.endpoint.decoder
        assert isinstance(decoder, PeerDecoder), decoder
        purpose = PeerPurpose(hello.purpose)
        decoder.open(purpose)
        if purpose is PeerPurpose.LEARNER:
            self._open[link] = hello.server_id
            self._owner.link_opened(link, 0)
            return
        old = self._hearing.pop(hello.server_id, None)
        if old is not None:
            old.context = None
            old.abort()
        self._hearing[hello.server_id] = link
        link.context = hello.server_id

    def _on_accepted_closed(self, link: ServerLink, reason: BaseException | None) -> None:
        timer = self._strangers.pop(link, None)
        if timer is not None:
            timer.cancel()
            if isinstance(reason, Error) and not self._closed:
                self._complain(0, "peer_refused", reason, peer=link.peer)
        if link.context is not None and self._hearing.get(link.context) is link:
            del self._hearing[link.context]
        link.context = None
        self._on_lost(link)

    def _complain(self, server_id: int, what: str, error: BaseException, **more: str) -> None:
        """Say what is wrong, but not the same again and again."""
        now_ms = self._clock.now_ms()
        key = (server_id, f"{what} {error}")
        if now_ms < self._complaints.get(key, now_ms):
            return
        if len(self._complaints) >= MAX_COMPLAINTS:
            self._complaints.clear()
        self._complaints[key] = now_ms + LOG_EVERY_MS
        self._log.warning(what, server=server_id, reason=str(error), **more)


__all__ = ["PeerLinks", "PeerLinksOwner", "refuse_stranger"]
