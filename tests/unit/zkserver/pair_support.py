"""A leader's core and a learner's, with jute clients of both: no loop, no socket, no disk.

What one tells the other goes over the wire of servers, encoded and decoded. `sync` makes all that
is logged durable on both.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from duolog_protocol.jute_codec import JuteCodec
from duolog_protocol.jute_decoder import JuteDecoder
from duolog_protocol.peer_decoder import PeerDecoder
from duolog_protocol.quorum_codec import encode_message
from duolog_protocol.quorum_messages import (
    PEER_VERSION,
    Answers,
    PeerHello,
    PeerMessage,
    PeerPurpose,
)
from tests.jute_support import Reply, Session, connect_request, encode, frames_of
from zkserver.core.config import CoreConfig
from zkserver.core.connection import Connection
from zkserver.core.ensemble_core import EnsembleCore
from zkserver.core.ensemble_events import (
    Committed,
    Confirm,
    Confirmed,
    LeaderAnswered,
    RequestsForwarded,
    SessionMoved,
    TellLeader,
    TellLearner,
)
from zkserver.core.events import (
    Append,
    Close,
    ConnectionLost,
    Durable,
    PauseReading,
    Received,
    ResumeReading,
    Send,
    SessionAttached,
)

WALL_MS = 1_700_000_000_000
LINK = "link of the learner"
MAX_FRAME_BYTES = 64 << 20


class Pair:
    """The leader `cores[0]` and its learner `cores[1]`; messages arrive at once."""

    def __init__(self, config: CoreConfig | None = None) -> None:
        self.now_ms = 1_000
        config = config or CoreConfig()
        self.cores = [EnsembleCore(config, random.Random(seed)) for seed in range(2)]
        self.unsynced: list[Append] = []
        self.unapplied_zxid = 0
        """Up to where the leader has not applied yet what is committed; 0: nothing."""
        self.held: list[PeerMessage] | None = None
        """Where it is a list: what the learner tells waits in it."""
        self.late_events: list[Any] | None = None
        """Where it is a list: what the leader tells waits in it."""
        self.told: list[PeerMessage] = []
        """What the learner has told."""
        self.answers: list[Answers] = []
        """What the leader has told."""
        self._due: deque[tuple[EnsembleCore, Any]] = deque()
        self._decoder = PeerDecoder()
        hello = PeerHello(2, 1, PeerPurpose.LEARNER, PEER_VERSION)
        self._decoder.feed(b"".join(encode_message(hello, 0, PEER_VERSION)))
        self._decoder.open(PeerPurpose.LEARNER, PEER_VERSION)
        self.leader, self.learner = self.cores
        self._perform(self.leader.lead(1, self.now_ms, WALL_MS))
        self.learner.follow(self.now_ms)
        self.sync()

    def client(self, core: EnsembleCore, **connect: Any) -> JuteClient:
        """A client with a session."""
        client = JuteClient(self, core)
        client.connect(**connect)
        return client

    def sync(self) -> None:
        """What is logged is committed and durable on both, and what that brings, too."""
        while self.unsynced or self.unapplied_zxid:
            self.sync_learner()
            zxid, self.unapplied_zxid = self.unapplied_zxid, 0
            self.step(self.leader, Durable(zxid))

    def sync_learner(self) -> None:
        """What is logged is committed, and durable on the learner: the leader's disk is slower."""
        new, self.unsynced = self.unsynced, []
        if new:
            self.unapplied_zxid = new[-1].last_zxid
            records = [record for each in new for record in each.records]
            self.step(self.learner, Committed(records))

    def step(self, core: EnsembleCore, event: Any) -> None:
        """Feed a core, and both with what that brings."""
        self._due.append((core, event))
        while self._due:
            core, event = self._due.popleft()
            self._perform(core.step(event, self.now_ms))

    @contextmanager
    def late(self) -> Iterator[None]:
        """What the leader tells meanwhile is heard by the learner at the end."""
        self.late_events = []
        yield
        late, self.late_events = self.late_events, None
        for event in late:
            self.step(self.learner, event)

    def _hear(self, event: Any) -> None:
        """The learner hears the leader."""
        if self.late_events is None:
            self._due.append((self.learner, event))
        else:
            self.late_events.append(event)

    def deliver(self) -> None:
        """The leader hears what was held back."""
        held, self.held = self.held, None
        for message in held or ():
            self.step(self.leader, self._heard(message))

    def _heard(self, message: PeerMessage) -> RequestsForwarded:
        ((heard, _),) = self._decoder.feed(b"".join(encode_message(message, 0, PEER_VERSION)))
        assert heard == message
        return RequestsForwarded(LINK, heard, WALL_MS)  # type: ignore[arg-type]

    def _perform(self, effects: list[Any]) -> None:
        for each in effects:
            match each:
                case Append():
                    self.unsynced.append(each)
                case Send(connection=connection, pieces=pieces):
                    connection.link.received += b"".join(pieces)
                case Close(connection=connection, reason=reason):
                    connection.link.closed = reason
                case TellLeader(message=message):
                    self.told.append(message)
                    if self.held is None:
                        self._due.append((self.leader, self._heard(message)))
                    else:
                        self.held.append(message)
                case TellLearner(link=link, message=message):
                    assert link is LINK
                    if isinstance(message, Answers):
                        self.answers.append(message)
                        self._hear(LeaderAnswered(message))
                    else:
                        self._hear(SessionMoved(message.session_id))
                case Confirm(go_on=go_on):
                    self._due.append((self.leader, Confirmed(go_on)))
                case SessionAttached() | PauseReading() | ResumeReading():
                    pass
                case _:
                    raise AssertionError(f"unexpected {each!r}")


class JuteClient:
    """A client of ZooKeeper's protocol, and what it was told."""

    def __init__(self, pair: Pair, core: EnsembleCore) -> None:
        self.pair = pair
        self.core = core
        self.decoder = JuteDecoder(MAX_FRAME_BYTES)
        self.connection = Connection(JuteCodec(self.decoder), "test", self)
        self.received = b""
        self.closed = ""
        self.session: Session | None = None
        self.xid = 0

    def connect(self, **connect: Any) -> Session | None:
        """Open a session or take one over; None where the server closes without a word."""
        self.send_connect(**connect)
        self.pair.sync()
        answers = self.take_sessions()
        assert len(answers) <= 1
        self.session = answers[0] if answers else None
        return self.session

    def send_connect(self, **connect: Any) -> None:
        """The first half of `connect`."""
        self.send_bytes(connect_request(**connect))

    def take_sessions(self) -> list[Session]:
        """The answers to `send_connect`."""
        return [Session.of(each) for each in self._take_frames()]

    def send(self, op: int, message: Any) -> None:
        """Ask something; nothing is made durable for it."""
        self.xid += 1
        self.send_bytes(encode(self.xid, op, message))

    def send_bytes(self, data: bytes) -> None:
        """Whatever a client may send."""
        requests = self.decoder.feed(data)
        self.pair.step(self.core, Received(self.connection, requests, WALL_MS))

    def ask(self, op: int, message: Any) -> Reply:
        """Ask something and have it made durable."""
        self.send(op, message)
        self.pair.sync()
        (reply,) = self.replies()
        assert reply.xid == self.xid
        return reply

    def replies(self) -> list[Reply]:
        """What came since the last call."""
        return [Reply.of(each) for each in self._take_frames()]

    def lose(self) -> None:
        """The connection ends."""
        self.pair.step(self.core, ConnectionLost(self.connection))

    def _take_frames(self) -> list[bytes]:
        received, self.received = self.received, b""
        return frames_of(received)
