"""Servers with nothing but their links, on loopback sockets, and callers driven by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

from duolog_protocol.codec import Piece
from duolog_protocol.peer_decoder import PeerDecoder, Received
from duolog_protocol.preamble import PREAMBLE
from duolog_protocol.quorum_codec import encode_message
from duolog_protocol.quorum_messages import (
    PEER_VERSION,
    Notification,
    PeerHello,
    PeerMessage,
    PeerPurpose,
    PeerState,
    Vote,
)
from duolog_runtime.clocks import ManualClock
from duolog_runtime.logs import RecordingLogger
from tests.support import until
from zkserver.server.peer_links import PeerLink, PeerLinks

ENSEMBLE_ID = 0xE5
HOST = "127.0.0.1"
ELECTION, LEARNER = PeerPurpose.ELECTION, PeerPurpose.LEARNER


def vote(round_number: int) -> Notification:
    """One notification, told from others by its round."""
    return Notification(PeerState.LOOKING, Vote(1, 5, 2), round_number)


def hello(
    server_id: int, purpose: PeerPurpose, ensemble_id: int = ENSEMBLE_ID, port: int = 0
) -> bytes:
    """How a server opens a connection; `port`: where it says that it listens."""
    message = PeerHello(server_id, ensemble_id, purpose, PEER_VERSION, HOST, port)
    return PREAMBLE + encoded(message)


def encoded(message: PeerMessage) -> bytes:
    """A message's bytes."""
    pieces: list[Piece] = encode_message(message, 0, PEER_VERSION)
    return b"".join(pieces)


class Server:
    """The links of one server, and what their owner has heard."""

    def __init__(
        self,
        server_id: int,
        addresses: Mapping[int, tuple[str, int]] | None = None,
        *,
        ensemble_id: int = ENSEMBLE_ID,
        **options: Any,
    ) -> None:
        self.server_id = server_id
        self.clock = ManualClock()
        self.log = RecordingLogger()
        self.opened: list[tuple[PeerLink, int]] = []
        self.failed: list[int] = []
        self.lost: list[PeerLink] = []
        self.received: list[tuple[PeerLink, PeerMessage, int]] = []
        self.heard: list[tuple[int, Notification]] = []
        self.reads = 0
        self.calling = False
        """The owner calls the links: nothing may call back meanwhile."""
        self.over = False
        """They are closed: nothing may call back any more."""
        self.close_at_notification = False
        self.links = PeerLinks(
            asyncio.get_running_loop(),
            server_id,
            ensemble_id,
            addresses or {server_id: (HOST, 0)},
            self,
            self.clock,
            Random(server_id),
            self.log,
            **{"dial_timeout_ms": 20_000, "max_unsent_bytes": 8 << 20, **options},
        )

    @property
    def link(self) -> PeerLink:
        """The newest link between learner and leader."""
        return self.opened[-1][0]

    @property
    def messages(self) -> list[PeerMessage]:
        """What came over all links."""
        return [message for _, message, _ in self.received]

    @property
    def reasons(self) -> list[str]:
        """Of all complaints."""
        return [values["reason"] for level, _, values in self.log.records if level == "warning"]

    def call(self, name: str, *arguments: Any) -> None:
        """Call the links as their owner does."""
        self.calling = True
        getattr(self.links, name)(*arguments)
        self.calling = False

    async def close(self) -> None:
        self.over = True
        await self.links.close()

    # What the links call

    def link_opened(self, link: PeerLink, server_id: int) -> None:
        self._check()
        self.opened.append((link, server_id))

    def dial_failed(self, server_id: int) -> None:
        self._check()
        self.failed.append(server_id)

    def link_lost(self, link: PeerLink) -> None:
        self._check()
        assert link not in self.lost
        self.lost.append(link)

    def messages_received(self, link: PeerLink, received: list[Received]) -> None:
        self._check()
        self.reads += 1
        self.received += [(link, message, context) for message, context in received]

    def notification_received(self, sender_id: int, notification: Notification) -> None:
        self._check()
        self.heard.append((sender_id, notification))
        if self.close_at_notification:
            self.over = True
            coroutine = self.links.close()
            coroutine.send(None)  # all that it does before it waits for the next turn
            coroutine.close()

    def _check(self) -> None:
        assert not self.calling, "called from inside a call"
        assert not self.over, "called after the close"


@asynccontextmanager
async def ensemble(count: int = 2, **options: Any) -> AsyncIterator[list[Server]]:
    """Servers 1 to `count` that know each other; no callback of theirs may raise."""
    problems: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: problems.append(context))
    servers = [Server(each, **options) for each in range(1, count + 1)]
    try:
        for each in servers:
            await each.links.start()
        introduce(servers)
        yield servers
    finally:
        for each in servers:
            await each.close()
        await asyncio.sleep(0)
        assert not problems, problems


@asynccontextmanager
async def server(server_id: int, **options: Any) -> AsyncIterator[Server]:
    """One more, that is not introduced yet."""
    one = Server(server_id, **options)
    await one.links.start()
    try:
        yield one
    finally:
        await one.close()


def introduce(servers: list[Server]) -> None:
    """Tell all of them where all of them are."""
    addresses = {each.server_id: (HOST, each.links.port) for each in servers}
    for each in servers:
        each.call("set_members", addresses)


async def connect(learner: Server, leader: Server) -> None:
    """The learner's link to its leader, open at both ends."""
    before = len(learner.opened), len(leader.opened)
    learner.call("dial", leader.server_id)
    await until(lambda: (len(learner.opened), len(leader.opened)) == (before[0] + 1, before[1] + 1))


class Hand:
    """A caller that is driven by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def dial(cls, server: Server, first: bytes = b"", *, source: str = "") -> Hand:
        """Connect to a server, from a certain address if need be, and say something at once."""
        local = (source, 0) if source else None
        reader, writer = await asyncio.open_connection(HOST, server.links.port, local_addr=local)
        hand = cls(reader, writer)
        hand.say(first)
        return hand

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def rest(self) -> bytes:
        """All that still comes, to the end of the connection."""
        try:
            async with asyncio.timeout(20):
                return await self.reader.read()
        except OSError:
            return b""
        finally:
            await self.hang_up()

    async def answers(self, purpose: PeerPurpose = LEARNER) -> list[PeerMessage]:
        """As `rest`, decoded."""
        return [message for message, _ in PeerDecoder(purpose).feed(await self.rest())]

    async def welcomed(self) -> None:
        """Wait for the answer to the hello."""
        async with asyncio.timeout(20):
            length = int.from_bytes(await self.reader.readexactly(4), "big")
            await self.reader.readexactly(length)

    async def hang_up(self) -> None:
        self.writer.transport.abort()
        with suppress(OSError):
            await self.writer.wait_closed()
