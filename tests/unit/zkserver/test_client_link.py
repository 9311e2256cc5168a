"""Who may connect, for how long without a session, and how a word is taken from a connection.

Every limit is tested at the limit and one past it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from duolog_protocol.recent_reads import RecentReads
from duolog_runtime.clocks import ManualClock
from duolog_runtime.connection import ServerLink
from duolog_runtime.logs import RecordingLogger
from duolog_runtime.tls import TlsLayer
from duolog_runtime.tls_context import ServerTls, TlsFiles
from tests.tls_files import client_context, copy_tls_files
from zkserver.core.connection import Connection
from zkserver.core.events import ConnectionLost, Event, Received
from zkserver.server.client_link import ClientLinks, LinkLimits, Reply, take_native

UNBOUNDED = LinkLimits(
    max_connections=0,
    max_connections_per_address=0,
    max_unknown_connections=1000,
    handshake_timeout_ms=10_000,
    max_frame_bytes=1024,
    max_jute_frame_bytes=1024,
)


def element(tag: int, content: bytes) -> bytes:
    """A DER element, with its length in two bytes."""
    return bytes([tag, 0x82]) + len(content).to_bytes(2, "big") + content


class Loop:
    """Runs what is called soon at once."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        callback()


class Transport:
    """Keeps what is written; closing it ends the link."""

    def __init__(self, address: str, port: int) -> None:
        self.peer = (address, port)
        self.written = b""
        self.ended = False
        self.reading = True
        self.link: ServerLink | None = None
        self.layer: TlsLayer | None = None

    def get_extra_info(self, name: str, default: object = None) -> tuple[str, int]:
        return self.peer

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        assert not self.ended
        self.written += data

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def close(self) -> None:
        if not self.ended:
            self.ended = True
            assert self.link is not None
            (self.layer or self.link).connection_lost(None)

    abort = close


class World:
    """All connections of a server, with the words and the core played by hand."""

    def __init__(self, limits: LinkLimits) -> None:
        self.clock = ManualClock()
        self.log = RecordingLogger()
        self.events: list[Event] = []
        self.asked: list[tuple[str, bytes, Reply]] = []
        self.links = ClientLinks(self, self.clock, limits, self.log)
        self.links.words = self
        self.made = 0

    def step(self, event: Event) -> None:
        self.events.append(event)

    def argument_bytes(self, word: str) -> int:
        return 8 if word == "stmk" else 0

    def answer_word(self, word: str, argument: bytes, reply: Reply) -> None:
        self.asked.append((word, argument, reply))

    def connect(self, address: str = "1.1.1.1") -> Transport:
        self.made += 1
        transport = Transport(address, self.made)
        transport.link = self.new_link()
        transport.link.connection_made(cast(Any, transport))
        return transport

    def new_link(self) -> ServerLink:
        return ServerLink(
            cast(asyncio.AbstractEventLoop, Loop()),
            on_made=self.links.on_made,
            on_frames=self.links.on_frames,
            on_foreign=self.links.on_foreign,
            on_closed=self.links.on_closed,
            max_unsent_bytes=0,
            take_native=partial(take_native, RecentReads()),
        )

    def connect_secure(
        self, tls: ServerTls, context: ssl.SSLContext, session: ssl.SSLSession | None
    ) -> tuple[Transport, ssl.SSLObject]:
        """A client that has made its handshake, and its end of it."""
        self.made += 1
        transport = Transport("1.1.1.1", self.made)
        transport.link = self.new_link()
        transport.layer = layer = self.links.secure(transport.link, tls)
        layer.connection_made(cast(Any, transport))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, server_hostname="localhost", session=session)
        for _ in range(4):
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            data = outgoing.read()
            layer.get_buffer(0)[: len(data)] = data
            layer.buffer_updated(len(data))
            incoming.write(transport.written)
            transport.written = b""
        return transport, client

    def attach(self, transport: Transport) -> None:
        """The core has given it a session."""
        assert transport.link is not None
        self.links.session_attached(transport.link.context)

    def say(self, transport: Transport, data: bytes) -> None:
        link = transport.link
        assert link is not None
        buffer = link.get_buffer(0)
        buffer[: len(data)] = data
        link.buffer_updated(len(data))


def test_connections_in_all_are_bounded() -> None:
    world = World(UNBOUNDED._replace(max_connections=2))
    first, second = world.connect("1.1.1.1"), world.connect("2.2.2.2")
    third = world.connect("3.3.3.3")
    assert [each.ended for each in (first, second, third)] == [False, False, True]
    assert world.links.stats.connections_rejected == 1
    assert world.log.events == ["connection_refused"]
    first.close()
    assert not world.connect("3.3.3.3").ended
    assert world.connect("3.3.3.3").ended


def test_connections_of_one_address_are_bounded() -> None:
    world = World(UNBOUNDED._replace(max_connections_per_address=2))
    first = world.connect()
    assert not world.connect().ended
    assert world.connect().ended
    assert not world.connect("2.2.2.2").ended
    assert not world.connect("::1").ended
    first.close()
    assert not world.connect().ended
    assert world.links.stats.connections_rejected == 1


def test_no_bound_is_none() -> None:
    world = World(UNBOUNDED)
    assert not any(world.connect().ended for _ in range(100))
    assert len(world.links) == 100


def test_beyond_the_bound_the_oldest_unknown_connection_goes() -> None:
    world = World(UNBOUNDED._replace(max_unknown_connections=2))
    known = world.connect()
    world.attach(known)
    first, second = world.connect(), world.connect()
    assert not first.ended
    third = world.connect()
    assert [each.ended for each in (known, first, second, third)] == [False, True, False, False]


def test_new_connections_come_at_a_bounded_rate() -> None:
    limits = UNBOUNDED._replace(connection_tokens=2, connection_tokens_per_second=1)
    world = World(limits)
    assert [world.connect().ended for _ in range(3)] == [False, False, True]
    assert world.links.stats.connections_throttled == 1
    world.clock.advance(999)
    assert world.connect().ended
    world.clock.advance(1)
    assert [world.connect().ended for _ in range(2)] == [False, True]


def test_a_session_must_come_in_time() -> None:
    world = World(UNBOUNDED._replace(handshake_timeout_ms=100))
    slow, known = world.connect(), world.connect()
    world.attach(known)
    assert world.links.next_deadline_ms() == world.clock.now_ms() + 100
    world.clock.advance(99)
    world.links.drop_late()
    assert not slow.ended
    world.clock.advance(1)
    world.links.drop_late()
    assert slow.ended and not known.ended
    assert world.links.stats.sessionless_expired == 1
    assert world.links.next_deadline_ms() is None
    assert [type(event) for event in world.events] == [ConnectionLost]


@pytest.mark.parametrize("cut", range(1, 4))
def test_a_word_is_answered_and_the_connection_ends(cut: int) -> None:
    world = World(UNBOUNDED)
    transport = world.connect()
    world.say(transport, b"srvr"[:cut])
    world.say(transport, b"srvr"[cut:] + b"\n")
    ((word, argument, reply),) = world.asked
    assert (word, argument, transport.reading) == ("srvr", b"", False)
    reply("text")
    assert (transport.written, transport.ended) == (b"text", True)
    assert world.log.events == []


@pytest.mark.parametrize("length", range(12))
def test_a_word_waits_for_all_of_its_argument(length: int) -> None:
    world = World(UNBOUNDED)
    transport = world.connect()
    sent = b"stmk" + bytes(range(8))
    world.say(transport, sent[:length] or b"s")
    assert not world.asked
    world.say(transport, sent[length or 1 :] + b"more")
    ((word, argument, reply),) = world.asked
    assert (word, argument) == ("stmk", bytes(range(8)))
    reply(None)
    assert (transport.written, transport.ended) == (b"", True)


def test_an_answer_may_come_after_the_connection_has_gone() -> None:
    world = World(UNBOUNDED)
    transport = world.connect()
    world.say(transport, b"dirs")
    transport.close()
    world.asked[0][2]("text")
    assert transport.written == b""


def test_a_word_that_is_never_answered_ends_with_the_handshake() -> None:
    world = World(UNBOUNDED._replace(handshake_timeout_ms=100))
    transport = world.connect()
    world.say(transport, b"dirs")
    world.clock.advance(100)
    world.links.drop_late()
    assert transport.ended


def test_a_stranger_is_closed() -> None:
    world = World(UNBOUNDED)
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff"):
        transport = world.connect()
        world.say(transport, sent)
        assert transport.ended and transport.written == b""
    assert not world.asked
    assert not any(isinstance(event, Received) for event in world.events)


def test_bytes_are_counted_also_of_those_that_have_gone() -> None:
    world = World(UNBOUNDED)
    gone, here = world.connect(), world.connect()
    world.say(gone, b"ruok")
    world.asked[0][2]("imok!")
    world.say(here, b"st")
    assert (world.links.bytes_received, world.links.bytes_sent) == (6, 5)
    world.links.reset_server_stats()
    assert (world.links.bytes_received, world.links.bytes_sent) == (0, 0)
    world.say(here, b"mk")
    assert world.links.bytes_received == 2
    here.close()
    assert world.links.bytes_received == 2


def test_the_links_are_listed_with_their_connections() -> None:
    world = World(UNBOUNDED)
    first, second = world.connect(), world.connect()
    world.attach(first)
    pairs = list(world.links.items())
    assert [link for link, _ in pairs] == [first.link, second.link]
    assert all(isinstance(connection, Connection) for _, connection in pairs)
    assert [world.links.deadline_of(each) > 0 for _, each in pairs] == [False, True]


def test_a_resumed_session_does_not_outlive_its_certificate(tmp_path: Path) -> None:
    folder = copy_tls_files(tmp_path / "tls")
    names = ("server.pem", "server.key", "client.pem", "client.key", "ca.pem")
    certificate, key, client_certificate, client_key, authority = (str(folder / n) for n in names)
    world = World(UNBOUNDED)
    tls = ServerTls(TlsFiles(certificate, key, "", authority, "need"), world.clock, world.log)
    context = client_context()
    context.load_cert_chain(client_certificate, client_key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    first, client = world.connect_secure(tls, context, None)
    assert not first.ended and not client.session_reused
    second, client = world.connect_secure(tls, context, client.session)
    assert not second.ended and client.session_reused
    world.clock.jump_wall(1000 * 365 * 86_400_000)
    third, client = world.connect_secure(tls, context, client.session)
    assert third.ended and client.session_reused
    assert "expired" in world.log.records[-1][2]["reason"]


def test_a_certificate_whose_subject_cannot_be_printed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_tls_files(tmp_path / "tls")
    world = World(UNBOUNDED)
    files = TlsFiles(str(folder / "server.pem"), str(folder / "server.key"))
    tls = ServerTls(files, world.clock, world.log)
    number = b"\xff" * 2100 + b"\x7f"  # 4,300 digits are the most that Python prints
    pair = element(0x30, element(0x06, b"\x55" + number) + element(0x0C, b"a"))
    fields = bytes(4 * [0x30, 0]) + element(0x30, element(0x31, pair))
    certificate = element(0x30, element(0x30, fields))
    monkeypatch.setattr(TlsLayer, "peer_certificate", lambda _layer: certificate)
    client, _ = world.connect_secure(tls, client_context(), None)
    assert client.ended
    assert "names nobody" in world.log.records[-1][2]["reason"]


def test_a_word_is_answered_whatever_its_text_holds() -> None:
    world = World(UNBOUNDED)
    client = world.connect()
    world.say(client, b"dump")
    ((_, _, reply),) = world.asked
    reply("/a\udc80")
    assert client.written == b"/a\\udc80" and client.ended
