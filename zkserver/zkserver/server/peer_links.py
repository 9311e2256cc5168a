"""The connections between this server and the others of its ensemble.

    ELECTION   each server keeps one of its own to each other server, and says there what it has to
               say; what it hears comes by those that the others have dialled
    LEARNER    a learner dials its leader; both speak

One port takes both. Owns who may connect, the newest notification that waits for each server, and
the bounds: on callers that have not said who they are, on those that have, on how long a dial and
a hello may take, on what a slow reader may leave unread. What the messages mean is the peer's, and
so is whether a silent learner is still there. Callbacks to the owner come from the loop, never from
inside a call of the owner's, and none after `close`. Source: ZooKeeper `QuorumCnxManager`,
`LearnerHandler`, which use a port for each purpose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import Final, Protocol

from duolog_protocol.codec import Piece
from duolog_protocol.errors import RemoteProtocolError
from duolog_protocol.peer_decoder import Received
from duolog_protocol.peer_handshake import answer_hello
from duolog_protocol.preamble import Caller
from duolog_protocol.quorum_codec import encode_message
from duolog_protocol.quorum_messages import (
    PEER_VERSION,
    SERVER_ID_LAST,
    Notification,
    PeerHello,
    PeerMessage,
    PeerPurpose,
    PeerRefusal,
    PeerWelcome,
    RefusalReason,
)
from duolog_runtime.clocks import Clock
from duolog_runtime.connection import new_scratch
from duolog_runtime.listening import close_servers, listen, port_of, stop_accepting
from duolog_runtime.logs import Logger
from duolog_runtime.tls_context import PeerTls

from .peer_addresses import PeerAddresses
from .peer_complaints import PeerComplaints
from .peer_link import AcceptedLink, DialledLink, PeerCaller

MAX_STRANGERS: Final = 64
"""Connections that have not said who they are; beyond it the oldest of them is dropped."""
MAX_CALLS: Final = {PeerPurpose.ELECTION: 1, PeerPurpose.LEARNER: 4}
"""Connections that one server has dialled; beyond it the oldest of them is dropped. A learner that
dials again has its old connection ended by the leader, once the new one stands in its place: by
then no quorum is lost, if the epoch is not established yet."""
HELLO_S: Final = 3.0
"""Time from the connection to the hello."""
FIRST_PAUSE_S: Final = 0.02
LAST_PAUSE_S: Final = 1.0
"""Between two attempts to reach a server for which a notification waits; doubled in between."""

PeerLink = DialledLink | AcceptedLink
"""A link between learner and leader, as the owner is given it."""


class PeerLinksOwner(Protocol):
    """Who hears what the other servers say."""

    def link_opened(self, link: PeerLink, server_id: int) -> None:
        """A link between learner and leader: `server_id` is whom our dial has reached, 0 where a
        learner has dialled us."""

    def dial_failed(self, server_id: int) -> None:
        """A dial has come to nothing."""

    def link_lost(self, link: PeerLink) -> None:
        """A link has ended; once, and not after `close_link`."""

    def messages_received(self, link: PeerLink, received: list[Received]) -> None:
        """What one read has brought, in order."""

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
        """Until the next attempt; there is no link then."""


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
        tls: PeerTls | None = None,
        version: int = PEER_VERSION,
    ) -> None:
        """`addresses`: server id -> (host, port), our own among them. With `tls` nothing else is
        spoken, and only to servers with a certificate of its authority. `version` is the highest
        that is spoken; lower only where an older server is played."""
        self._loop = loop
        self._server_id = server_id
        self._ensemble_id = ensemble_id
        self._addresses = PeerAddresses(addresses)
        self._own = addresses[server_id]
        """Where we listen, whatever the members say of us since."""
        self._owner = owner
        self._rng = rng
        self._log = log
        self._dial_timeout_ms = dial_timeout_ms
        self._max_unsent_bytes = max_unsent_bytes
        self._tls = tls
        self._version = version
        self._complaints = PeerComplaints(clock, log)
        self._scratch = new_scratch()
        self._server: asyncio.Server | None = None
        self.port = 0
        """The one it listens on, after `start`."""
        self._accepted: set[AcceptedLink] = set()
        """All that have not ended, also those that only have something left to send."""
        self._strangers: dict[AcceptedLink, asyncio.TimerHandle] = {}
        """Those that have not said hello, oldest first."""
        self._calls: dict[PeerCaller, list[AcceptedLink]] = {}
        """Those that have, oldest first."""
        self._dialled: set[DialledLink] = set()
        """All that we have dialled and that have not ended."""
        self._speakers: dict[int, _Speaker] = {}
        self._open: dict[PeerLink, None] = {}
        """Links between learner and leader that the owner knows."""
        self._encoded: tuple[PeerMessage | None, int, int, list[Piece]] = (None, 0, 0, [])
        """The last message, its context, its version and its bytes: it often goes to several
        servers."""
        self._closed = False

    async def start(self) -> None:
        """Listen on our own address. Raises ConfigError."""
        host, port = self._own
        self._server = await listen(self._loop, self._new_link, host, port, "servers")
        self.port = port_of(self._server)

    async def close(self) -> None:
        """End all of it; no callback comes any more. Idempotent."""
        self._closed = True
        servers = [] if self._server is None else [self._server]
        stop_accepting(self._loop, servers)
        for timer in self._strangers.values():
            timer.cancel()
        for speaker in self._speakers.values():
            _stop_waiting(speaker)
        self._open.clear()
        connecting = [each.connecting for each in self._dialled if each.connecting is not None]
        for dialled in self._dialled:
            dialled.give_up()
        self._dialled.clear()
        for link in list(self._accepted):
            link.abort()
        if connecting:
            await asyncio.wait(connecting)
        await close_servers(servers)  # in the next turn of the loop, with which their ends come

    def set_members(self, addresses: Mapping[int, tuple[str, int]]) -> None:
        """Where the members are now: what we have to say goes there. Of others, that were members
        or are about to be, the addresses stay; so does the port that we listen on."""
        for server_id in self._addresses.set_members(addresses):
            speaker = self._speakers.get(server_id)
            if speaker is not None:
                self._move(speaker)

    # ---- elections ------------------------------------------------------------------------------

    def notify(self, server_id: int, notification: Notification) -> None:
        """Tell a server; what waits for it already is replaced."""
        if self._closed:
            return
        if server_id not in self._addresses:  # it is about to join: by its own connection
            calls = self._calls.get(PeerCaller(server_id, PeerPurpose.ELECTION))
            if calls:
                _say(calls[-1], notification)
            return
        speaker = self._speakers.get(server_id)
        if speaker is None:
            speaker = self._speakers[server_id] = _Speaker(server_id)
        link = speaker.link
        if link is not None and link.is_open:
            _say(link, notification)
            return
        speaker.waiting = notification
        if link is None and speaker.timer is None:
            self._reach(speaker)

    def _reach(self, speaker: _Speaker) -> None:
        speaker.timer = None
        if speaker.waiting is None:
            return
        assert speaker.link is None, speaker.link
        speaker.link = self._dial(
            speaker.server_id,
            PeerPurpose.ELECTION,
            on_open=partial(self._on_reached, speaker),
            on_failed=partial(self._on_not_reached, speaker),
            on_messages=self._on_answers,
            on_closed=partial(self._on_speaker_closed, speaker),
        )

    def _on_answers(self, link: DialledLink, received: list[Received]) -> None:
        """Of a server that does not know where we are."""
        for message, _ in received:
            assert isinstance(message, Notification), message
            if not link.closed:
                self._owner.notification_received(link.server_id, message)

    def _on_reached(self, speaker: _Speaker, link: DialledLink) -> None:
        speaker.pause_s = FIRST_PAUSE_S
        link.drop_unreceived(self._dial_timeout_ms)
        waiting, speaker.waiting = speaker.waiting, None
        if waiting is not None:
            _say(link, waiting)

    def _on_not_reached(self, speaker: _Speaker, link: DialledLink, error: BaseException) -> None:
        self._dialled.discard(link)
        speaker.link = None
        self._complaints.say("server_not_reached", speaker.server_id, error)
        pause_s = speaker.pause_s * self._rng.uniform(0.5, 1.0)
        speaker.pause_s = min(2 * speaker.pause_s, LAST_PAUSE_S)
        speaker.timer = self._loop.call_later(pause_s, self._reach, speaker)

    def _on_speaker_closed(self, speaker: _Speaker, link: DialledLink) -> None:
        self._dialled.discard(link)
        speaker.link = None

    def _move(self, speaker: _Speaker) -> None:
        """The server has another address, or is no member any more."""
        _stop_waiting(speaker)
        if speaker.link is not None:
            self._dialled.discard(speaker.link)
            speaker.link.give_up()
        waiting = speaker.waiting
        del self._speakers[speaker.server_id]
        if waiting is not None:
            self.notify(speaker.server_id, waiting)

    # ---- links between learner and leader -------------------------------------------------------

    def dial(self, server_id: int) -> None:
        """Open a learner's link to a leader; ends with `link_opened` or `dial_failed`, once."""
        if self._closed:
            return
        if self._addresses.of(server_id) is None:
            unknown = LookupError("its address is not known here: add it to `servers` and restart")
            self._complaints.say("leader_not_reached", server_id, unknown)
            self._loop.call_soon(self._tell_failed, server_id)
            return
        self._dial(
            server_id,
            PeerPurpose.LEARNER,
            on_open=self._on_dialled,
            on_failed=self._on_dial_failed,
            on_messages=self._on_messages,
            on_closed=self._on_dialled_closed,
        )

    def _dial(
        self,
        server_id: int,
        purpose: PeerPurpose,
        *,
        on_open: Callable[[DialledLink], None],
        on_failed: Callable[[DialledLink, BaseException], None],
        on_messages: Callable[[DialledLink, list[Received]], None],
        on_closed: Callable[[DialledLink], None],
    ) -> DialledLink:
        address = self._addresses.of(server_id)
        assert address is not None, server_id

        def failed(link: DialledLink, error: BaseException) -> None:
            self._addresses.failed(server_id, address)
            on_failed(link, error)

        link = DialledLink(
            self._loop,
            server_id,
            PeerHello(self._server_id, self._ensemble_id, purpose, self._version, *self._own),
            on_open=on_open,
            on_failed=failed,
            on_messages=on_messages,
            on_closed=on_closed,
            max_unsent_bytes=self._max_unsent_bytes,
            scratch=self._scratch,
            tls=self._tls,
        )
        self._dialled.add(link)
        link.dial(*address, self._dial_timeout_ms)
        return link

    def _on_dialled(self, link: DialledLink) -> None:
        self._open[link] = None
        self._owner.link_opened(link, link.server_id)

    def _on_dial_failed(self, link: DialledLink, error: BaseException) -> None:
        self._dialled.discard(link)
        self._complaints.say("leader_not_reached", link.server_id, error)
        self._tell_failed(link.server_id)

    def _tell_failed(self, server_id: int) -> None:
        if not self._closed:
            self._owner.dial_failed(server_id)

    def tell(self, link: PeerLink, message: PeerMessage, context: int = 0) -> None:
        """Send a message, behind all that was told before; nothing if the link has ended.

        What is told in one loop turn leaves together. A link that has left `max_unsent_bytes`
        unread by then is lost. Raises LocalProtocolError for a record that cannot be sent.
        """
        if link not in self._open:
            return
        version = link.version
        last, last_context, last_version, pieces = self._encoded
        if last is not message or last_context != context or last_version != version:
            pieces = encode_message(message, context, version)
            self._encoded = (message, context, version, pieces)
        link.write(pieces)

    def close_link(self, link: PeerLink, reason: str) -> None:
        """Send what was told, and end the link. Idempotent."""
        if link in self._open:
            del self._open[link]
            link.close(RemoteProtocolError(reason))

    def _on_messages(self, link: PeerLink, received: list[Received]) -> None:
        if link in self._open:
            self._owner.messages_received(link, received)

    def _on_dialled_closed(self, link: DialledLink) -> None:
        self._dialled.discard(link)
        self._on_lost(link)

    def _on_lost(self, link: PeerLink) -> None:
        if link in self._open:
            del self._open[link]
            self._log.info("peer_link_ended", peer=link.peer, reason=str(link.close_reason or ""))
            self._owner.link_lost(link)

    # ---- who dials us ---------------------------------------------------------------------------

    def _new_link(self) -> AcceptedLink:
        return AcceptedLink(
            self._loop,
            on_made=self._on_made,
            on_frames=self._on_frames,
            on_foreign=self._on_foreign,
            on_closed=self._on_accepted_closed,
            max_unsent_bytes=self._max_unsent_bytes,
            scratch=self._scratch,
        )

    def _on_made(self, link: AcceptedLink) -> None:
        if self._closed:
            link.abort()
            return
        if len(self._strangers) >= MAX_STRANGERS:
            self._drop_stranger(next(iter(self._strangers)), "too many have not said who they are")
        self._accepted.add(link)
        self._strangers[link] = self._loop.call_later(
            HELLO_S, self._drop_stranger, link, f"no hello within {HELLO_S} s"
        )

    def _on_foreign(self, link: AcceptedLink) -> None:
        if link not in self._strangers:
            return
        caller = link.endpoint.caller
        if caller is not Caller.TLS or link.is_secure:
            self._drop_stranger(link, f"the caller is {caller.value}")
        elif self._tls is None:
            self._drop_stranger(
                link, "it speaks TLS, and here peer_tls_certificate_file is not set"
            )
        else:
            link.secure(self._tls)

    def _drop_stranger(self, link: AcceptedLink, reason: str) -> None:
        self._refused(link, 0, RemoteProtocolError(reason))
        link.abort(RemoteProtocolError(reason))

    def _refused(self, link: AcceptedLink, server_id: int, reason: BaseException) -> None:
        """A stranger remains one."""
        self._strangers.pop(link).cancel()
        self._complaints.say("peer_refused", server_id, reason, peer=link.peer)

    def _on_frames(self, link: AcceptedLink, received: list[Received]) -> None:
        caller = link.context
        if caller is None:
            self._meet(link, received)
        elif caller.purpose is PeerPurpose.LEARNER:
            self._on_messages(link, received)
        else:
            for message, _ in received:
                assert isinstance(message, Notification), message
                if not link.closed:  # the owner may have ended all of it
                    self._owner.notification_received(caller.server_id, message)

    def _meet(self, link: AcceptedLink, received: list[Received]) -> None:
        """Who says hello is welcome, or hears why not."""
        hello = received[0][0]
        assert isinstance(hello, PeerHello), hello
        answer: PeerWelcome | PeerRefusal
        if self._tls is not None and not link.is_secure:
            text = f"server {self._server_id} takes only TLS: peer_tls_certificate_file is not set"
            answer = PeerRefusal(RefusalReason.NO_TLS, f"{text} at the caller")
        else:
            answer = answer_hello(
                hello, self._server_id, self._ensemble_id, _EVERYBODY, self._version
            )
        if isinstance(answer, PeerRefusal):
            known_id = hello.server_id if hello.server_id in self._addresses else 0
            self._refused(link, known_id, RemoteProtocolError(answer.message))
            link.turn_away(answer)
            return
        self._strangers.pop(link).cancel()
        if hello.port:
            self._addresses.told(hello.server_id, (hello.host, hello.port))
        caller = PeerCaller(hello.server_id, PeerPurpose(hello.purpose))
        link.welcome(caller, answer)
        calls = self._calls.setdefault(caller, [])
        self._look_for_twin(link, hello.server_id, calls)
        calls.append(link)
        if len(calls) > MAX_CALLS[caller.purpose]:
            self._replace(calls.pop(0))
        if caller.purpose is PeerPurpose.LEARNER and not link.closed:
            self._open[link] = None
            self._owner.link_opened(link, 0)

    def _look_for_twin(self, link: AcceptedLink, server_id: int, calls: list[AcceptedLink]) -> None:
        """Two servers with one id, as a copied configuration makes them, would end each other's
        calls for ever. What they say of themselves is the same; where they call from is not."""
        host = _host(link)
        others = [_host(each) for each in calls if not each.closed and _host(each) != host]
        if others:
            text = f"calls from {host} while one from {others[-1]} is open: one of the two has the"
            twice = RemoteProtocolError(f"{text} wrong server_id, or the server has just moved")
            self._complaints.say("id_taken_twice", server_id, twice, peer=link.peer)

    def _replace(self, link: AcceptedLink) -> None:
        """Its server has dialled again."""
        link.abort(RemoteProtocolError("it has dialled again"))
        link.on_closed(link.close_reason)

    def _on_accepted_closed(self, link: AcceptedLink, reason: BaseException | None) -> None:
        self._accepted.discard(link)
        if link in self._strangers:
            if isinstance(reason, RemoteProtocolError):
                self._refused(link, 0, reason)
            else:
                self._strangers.pop(link).cancel()
        caller, link.context = link.context, None
        if caller is not None:
            calls = self._calls[caller]
            if link in calls:
                calls.remove(link)
            if not calls:
                del self._calls[caller]
            self._on_lost(link)


def _say(link: PeerLink, notification: Notification) -> None:
    link.write(encode_message(notification, 0, link.version))


def _host(link: AcceptedLink) -> str:
    """Where it was dialled from, without the port."""
    return link.peer.rpartition(":")[0]


def _stop_waiting(speaker: _Speaker) -> None:
    if speaker.timer is not None:
        speaker.timer.cancel()
        speaker.timer = None


_EVERYBODY: Final = range(1, SERVER_ID_LAST + 1)
"""Who is no member may ask, and learn: it is about to join. It may even have to lead: our members
may be those of long ago."""
