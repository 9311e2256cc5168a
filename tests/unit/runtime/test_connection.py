"""Two links joined by a real loopback socket."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import weakref
from collections.abc import Iterator
from typing import Any, cast

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import encode_error, read_message, read_request
from duolog_protocol.connection import ServerState
from duolog_protocol.errors import (
    ConnectionLostError,
    NoNodeError,
    RemoteProtocolError,
    zk_error,
)
from duolog_protocol.frames import Frame
from duolog_runtime import connection
from duolog_runtime.connection import ClientLink, ServerLink, connect, in_words
from tests.support import until


class EchoServer:
    """Answers GetData with the path as data, and an error for /missing."""

    def __init__(self) -> None:
        self.links: list[ServerLink] = []
        self.closed: list[BaseException | None] = []
        self.foreign: list[bytes] = []

    async def start(self) -> int:
        loop = asyncio.get_running_loop()

        def factory() -> ServerLink:
            return ServerLink(
                loop,
                on_made=self.links.append,
                on_frames=self.on_frames,
                on_foreign=self.on_foreign,
                on_closed=lambda _link, reason: self.closed.append(reason),
                max_unsent_bytes=1 << 20,
            )

        self.server = await loop.create_server(factory, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    def on_foreign(self, link: ServerLink) -> None:
        assert link.endpoint.state is ServerState.FOREIGN
        self.foreign.append(link.endpoint.first_bytes)
        link.write([b"imok"])
        link.close()

    def on_frames(self, link: ServerLink, frames: list[Frame]) -> None:
        link.endpoint.raise_limit(1 << 21)
        for frame in frames:
            header = read_request(frame)
            request = read_message(zk.ZK_APIS[header.api_key], header, frame)
            if request.path == "/missing":
                link.write(encode_error(header.correlation_id, -101, 7, "no /missing"))
                continue
            stat = zk.Stat(*range(11))
            reply = zk.GetDataResponse(stat, request.path.encode())
            link.write(zk.GET_DATA.encode_response(header.correlation_id, 7, reply, 0))

    async def stop(self) -> None:
        self.server.close()
        for link in self.links:
            link.close()
        await self.server.wait_closed()


async def open_client(port: int, closed: list[Any]) -> ClientLink:
    return await connect(
        "127.0.0.1", port, max_frame_bytes=1 << 21, on_push=print, on_closed=closed.append
    )


async def test_pipelined_calls_are_answered_each_with_its_own_reply() -> None:
    server = EchoServer()
    port = await server.start()
    closed: list[Any] = []
    async with asyncio.timeout(10):
        client = await open_client(port, closed)
        paths = [f"/node{i}" for i in range(500)]
        calls = [
            client.call(zk.GET_DATA, zk.GetDataRequest(path, False), zk_error) for path in paths
        ]
        replies = await asyncio.gather(*calls)
        assert [reply.message.data.decode() for reply in replies] == paths
        with pytest.raises(NoNodeError, match="no /missing"):
            await client.call(zk.GET_DATA, zk.GetDataRequest("/missing", False), zk_error)
        client.close()
        await until(lambda: bool(closed))
        await server.stop()


async def test_requests_outstanding_when_the_server_dies_fail_with_connection_lost() -> None:
    server = EchoServer()
    port = await server.start()
    server.on_frames = lambda link, _frames: link.abort()  # type: ignore[method-assign]
    await server.stop()
    port = await server.start()
    async with asyncio.timeout(10):
        client = await open_client(port, [])
        with pytest.raises(ConnectionLostError):
            await client.call(zk.GET_DATA, zk.GetDataRequest("/a", False), zk_error)
        with pytest.raises(ConnectionLostError):
            await client.call(zk.GET_DATA, zk.GetDataRequest("/a", False), zk_error)
        await server.stop()


async def test_a_four_letter_word_reaches_the_owner_as_foreign_bytes() -> None:
    server = EchoServer()
    port = await server.start()
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"ruok")
        assert await reader.read() == b"imok"
        writer.close()
        await writer.wait_closed()
        assert server.foreign == [b"ruok"]
        await server.stop()


async def test_an_oversize_frame_before_the_handshake_closes_the_connection() -> None:
    server = EchoServer()
    port = await server.start()
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"DUO1\x01\0\0\0" + (1 << 20).to_bytes(4, "big") + bytes(4))
        with pytest.raises(ConnectionResetError):
            assert await reader.read() == b""
            raise ConnectionResetError
        writer.close()
        await until(lambda: bool(server.closed))
        assert "over the limit" in str(server.closed[0])
        await server.stop()


async def test_a_peer_that_does_not_read_the_rest_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "CLOSE_SECONDS", 0.01)
    server = EchoServer()
    port = await server.start()
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    await until(lambda: bool(server.links))
    (link,) = server.links
    link.write([bytes(64 << 20)])
    link.close()
    assert not server.closed
    await until(lambda: bool(server.closed))
    assert "left the rest unread" in str(server.closed[0])
    writer.close()
    await server.stop()


async def test_a_link_that_has_sent_everything_is_waited_for_no_more() -> None:
    server = EchoServer()
    port = await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await until(lambda: bool(server.links))
    (link,) = server.links
    link.write([bytes(8 << 20)])
    link.close()
    assert len(await reader.read(-1)) == 8 << 20
    await until(lambda: bool(server.closed))
    assert server.closed == [None] and link._closing is None
    writer.close()
    await server.stop()


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.aborted = False

    def get_extra_info(self, name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


class Marker:
    """Lives as long as the link that it is the context of."""


@pytest.fixture
def no_collections() -> Iterator[None]:
    """What is freed is freed by its reference count alone."""
    gc.disable()
    yield
    gc.enable()


def refuse(link: ServerLink, frames: list[Any]) -> None:
    """An owner that closes with what it has just caught."""
    try:
        try:
            raise KeyError(len(frames))
        except KeyError as error:
            raise RemoteProtocolError("no such thing") from error
    except RemoteProtocolError as error:
        link.close(error)


@pytest.mark.parametrize(
    ("size", "reason"), [(1 << 20, "over the limit"), (8, "no such thing")], ids=["link", "owner"]
)
@pytest.mark.usefixtures("no_collections")
async def test_a_link_that_was_refused_leaves_no_cycle_behind(size: int, reason: str) -> None:
    reasons: list[str] = []
    link = ServerLink(
        asyncio.get_running_loop(),
        on_made=lambda link: None,
        on_frames=refuse,
        on_foreign=lambda link: None,
        on_closed=lambda link, reason: reasons.append(str(reason)),
        max_unsent_bytes=0,
    )
    link.connection_made(cast(Any, Transport()))
    link.context = marker = Marker()
    alive = weakref.ref(marker)
    del marker
    data = b"DUO1\x01\0\0\0" + size.to_bytes(4, "big") + b"\0\0\0\x01" + bytes(4)
    link.get_buffer(0)[: len(data)] = data
    link.buffer_updated(len(data))
    assert link.closed
    link.connection_lost(None)
    del link
    assert reason in reasons[0]
    assert alive() is None


def linked(transport: Transport) -> ServerLink:
    """A link over a transport that is played by hand."""
    link = ServerLink(
        asyncio.get_running_loop(),
        on_made=lambda link: None,
        on_frames=lambda link, frames: None,
        on_foreign=lambda link: None,
        on_closed=lambda link, reason: None,
        max_unsent_bytes=0,
    )
    link.connection_made(cast(Any, transport))
    return link


async def test_who_waits_for_room_hears_of_it_although_more_was_written_meanwhile() -> None:
    link = linked(Transport())
    drained: list[str] = []
    link.when_drained(lambda: drained.append("asked, then written"))
    link.write([b"a"])
    await until(lambda: bool(drained))
    link.pause_writing()
    link.when_drained(lambda: drained.append("written when there was room again"))
    await asyncio.sleep(0)
    link.write([b"b"])
    link.resume_writing()
    assert len(drained) == 1
    await until(lambda: len(drained) == 2)


async def test_what_is_held_leaves_with_what_is_written_next_or_when_its_owner_says() -> None:
    transport = Transport()
    link = linked(transport)
    link.hold([b"a"])
    link.hold([b"b"])
    await asyncio.sleep(0)
    assert transport.written == []
    link.write_now([b"c"])
    assert transport.written == [b"abc"]
    link.hold([b"d"])
    link.flush()
    link.write([b"e"])
    link.hold([b"f"])  # something leaves at the end of the turn anyway
    await until(lambda: transport.written == [b"abc", b"d", b"ef"])
    link.hold([b"g"])
    link.close()
    assert transport.written[-1] == b"g"
    link.hold([b"late"])
    link.flush()
    assert transport.written[-1] == b"g"


async def test_a_refusal_is_told_in_the_same_words_by_every_loop() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionLostError) as raised:
            await connect("127.0.0.1", port, max_frame_bytes=1, on_push=print, on_closed=print)
    assert str(raised.value) == f"cannot connect to 127.0.0.1:{port}: connection refused"


def test_numbers_that_are_none_of_the_systems_are_not_taken_for_them() -> None:
    assert in_words(socket.gaierror(socket.EAI_NONAME, "no such name")) == "no such name"
    assert in_words(ssl.SSLCertVerificationError(1, "wrong name")) == "wrong name"
    assert in_words(OSError("Multiple exceptions: ...")) == "Multiple exceptions: ..."
    assert in_words(ConnectionResetError()) == "ConnectionResetError"


async def test_a_read_whose_answer_is_held_does_not_push_it_out() -> None:
    transport = Transport()
    link = linked(transport)
    link._on_frames = lambda link, frames: link.hold([b"held"])
    link.endpoint.state = ServerState.OPEN
    request = b"".join(zk.GET_DATA.encode_request(1, zk.GetDataRequest("/a", False), 0))
    for _ in range(2):
        link.get_buffer(-1)[: len(request)] = request
        link.buffer_updated(len(request))
    assert transport.written == []
    link._on_frames = lambda link, frames: link.write([b"now"])
    link.get_buffer(-1)[: len(request)] = request
    link.buffer_updated(len(request))
    assert transport.written == [b"heldheldnow"]
