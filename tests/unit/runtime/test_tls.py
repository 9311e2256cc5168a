"""A link over TLS: the same frames, the same back-pressure, and what goes wrong in between.

The server echoes frames; the client is OpenSSL over a real loopback socket, driven by hand where
the bytes have to come in an order that no real client sends them in.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from duolog_protocol.frames import Frame, encode_frame
from duolog_protocol.preamble import PREAMBLE, Caller
from duolog_runtime.clocks import ManualClock
from duolog_runtime.connection import ServerLink, new_scratch
from duolog_runtime.logs import RecordingLogger
from duolog_runtime.tls import MAX_HANDSHAKE_BYTES, TlsLayer, TlsState
from duolog_runtime.tls_context import LOOK_INTERVAL_MS, ClientAuth, ServerTls, TlsFiles
from tests.support import until
from tests.tls_files import client_context, copy_tls_files

UNSENT_BYTES = 4 * 1024 * 1024


class EchoServer:
    """Answers every frame with itself, and foreign bytes with themselves; plain and over TLS."""

    def __init__(self, folder: Path, client_auth: ClientAuth = "none") -> None:
        self.folder = folder
        self.clock = ManualClock()
        path = str(folder)
        files = TlsFiles(
            f"{path}/server.pem", f"{path}/server.key", "", f"{path}/ca.pem", client_auth
        )
        self.tls = ServerTls(files, self.clock, RecordingLogger())
        self.links: list[ServerLink] = []
        self.closed: list[BaseException | None] = []
        self.certificates: list[bytes | None] = []
        self.received_bytes = 0
        self.max_unsent_bytes = UNSENT_BYTES
        self.scratch = new_scratch()

    def new_link(self) -> ServerLink:
        return ServerLink(
            asyncio.get_running_loop(),
            on_made=self.links.append,
            on_frames=self.on_frames,
            on_foreign=self.on_foreign,
            on_closed=lambda _link, reason: self.closed.append(reason),
            max_unsent_bytes=self.max_unsent_bytes,
            scratch=self.scratch,
        )

    def layer(self, link: ServerLink) -> TlsLayer:
        return TlsLayer(link, self.tls.current(), self.on_secured, self.tls.scratch)

    def on_secured(self, link: ServerLink) -> None:
        assert isinstance(link.transport, TlsLayer)
        self.certificates.append(link.transport.peer_certificate())

    def on_frames(self, link: ServerLink, frames: list[Frame]) -> None:
        link.endpoint.raise_limit(1 << 22)
        for buffer, start, _, end in frames:
            self.received_bytes += end - start
            link.write([memoryview(buffer)[start - 8 : end]])

    def on_foreign(self, link: ServerLink) -> None:
        endpoint = link.endpoint
        if endpoint.caller is Caller.TLS and not isinstance(link.transport, TlsLayer):
            self.layer(link).take_over(endpoint.start_over())
            return
        link.write([endpoint.first_bytes])
        link.close()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(self.new_link, "127.0.0.1", 0)
        self.port: int = self.server.sockets[0].getsockname()[1]
        self.tls_server = await loop.create_server(
            lambda: self.layer(self.new_link()), "127.0.0.1", 0
        )
        self.tls_port: int = self.tls_server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.server.close()
        self.tls_server.close()
        for link in self.links:
            link.abort()
        await until(lambda: len(self.closed) == len(self.links))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EchoServer]:
    echo = EchoServer(copy_tls_files(tmp_path / "tls"))
    await echo.start()
    yield echo
    await echo.stop()


@pytest.fixture
async def strict_server(tmp_path: Path) -> AsyncIterator[EchoServer]:
    echo = EchoServer(copy_tls_files(tmp_path / "tls"), "need")
    await echo.start()
    yield echo
    await echo.stop()


class Client:
    """OpenSSL over a plain socket, one step at a time."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = context or client_context()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.socket = socket.socket()
        self.socket.setblocking(False)

    async def connect(self, port: int) -> Client:
        async with asyncio.timeout(20):
            await asyncio.get_running_loop().sock_connect(self.socket, ("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    async def send_raw(self, data: bytes) -> None:
        async with asyncio.timeout(20):
            await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive_raw(self) -> bytes:
        async with asyncio.timeout(20):
            return await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16)

    async def send_pending(self, step: int = 0) -> None:
        """Send what OpenSSL has to say, `step` bytes at a time."""
        data = self.outgoing.read()
        for start in range(0, len(data), step or len(data) or 1):
            await self.send_raw(data[start : start + (step or len(data))])
            if step:
                await asyncio.sleep(0)

    async def shake_hands(self, step: int = 0) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send_pending(step)
                self.incoming.write(await self.received())
            else:
                await self.send_pending(step)
                return

    async def received(self) -> bytes:
        data = await self.receive_raw()
        if not data:
            raise ConnectionResetError("the server closed")
        return data

    async def write(self, data: bytes, step: int = 0) -> None:
        self.tls.write(data)
        await self.send_pending(step)

    async def read(self, count: int) -> bytes:
        """Read so many bytes; fewer when the server says goodbye."""
        found = b""
        while len(found) < count:
            try:
                data = self.tls.read(count - len(found))
            except ssl.SSLWantReadError:
                self.incoming.write(await self.received())
                continue
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                break
            found += data
        return found

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def frame(size: int, seed: int = 0) -> bytes:
    """A frame with a one-byte header and `size` bytes behind it."""
    return b"".join(encode_frame(b"\x90", (random.Random(seed).randbytes(size),)))


async def secured(server: EchoServer, context: ssl.SSLContext | None = None) -> Client:
    client = await Client(context).connect(server.port)
    await client.shake_hands()
    return client


async def goodbye(client: Client) -> bool:
    """Whether the server ended the connection, whatever it sent before."""
    with contextlib.suppress(OSError):
        while await client.receive_raw():
            pass
    return True


# ---- one port, two kinds of client ---------------------------------------------------------------


async def test_plain_and_tls_are_answered_side_by_side(server: EchoServer) -> None:
    plain = Client()
    await plain.connect(server.port)
    secure = await secured(server)
    for round_number in range(3):
        sent = (PREAMBLE if round_number == 0 else b"") + frame(1000, round_number)
        echo = sent[-len(frame(1000)) :]
        await plain.send_raw(sent)
        await secure.write(sent)
        assert await secure.read(len(echo)) == echo
        got = b""
        while len(got) < len(echo):
            got += await plain.receive_raw()
        assert got == echo
    assert server.certificates == [None]
    assert secure.tls.version() == "TLSv1.3"
    plain.close()
    secure.close()


async def test_a_port_for_tls_only_takes_no_plain_client(server: EchoServer) -> None:
    secure = await Client().connect(server.tls_port)
    await secure.shake_hands()
    await secure.write(PREAMBLE + frame(10))
    assert await secure.read(len(frame(10))) == frame(10)
    for first in (
        PREAMBLE + frame(10),
        b"ruok",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\x2d" + bytes(45),
    ):
        plain = await Client().connect(server.tls_port)
        await plain.send_raw(first)
        assert await goodbye(plain)
        plain.close()
    await until(lambda: len(server.closed) == 4)
    assert all("TLS: " in str(reason) for reason in server.closed), server.closed
    secure.close()


async def test_foreign_words_are_answered_inside_tls(server: EchoServer) -> None:
    client = await secured(server)
    await client.write(b"ruok")
    assert await client.read(100) == b"ruok", "the answer, then the server's close_notify"
    client.close()


async def test_tls_inside_tls_is_foreign(server: EchoServer) -> None:
    client = await secured(server)
    await client.write(b"\x16\x03\x01\x00\x05hello")
    assert await client.read(100) == b"\x16\x03\x01\x00\x05hello"
    client.close()


async def test_tls_1_2_is_taken_and_older_is_not(server: EchoServer) -> None:
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = await secured(server, context)
    await client.write(PREAMBLE + frame(7_000))
    assert await client.read(len(frame(7_000))) == frame(7_000)
    assert client.tls.version() == "TLSv1.2"
    client.close()
    client_hello_of_tls_1_0 = bytes.fromhex(
        "160301002d010000290301" + "00" * 32 + "00" + "0002002f" + "0100"
    )
    old = await Client().connect(server.port)
    await old.send_raw(client_hello_of_tls_1_0)
    assert (await old.receive_raw())[:1] == b"\x15", "an alert"
    assert await goodbye(old)
    old.close()


# ---- bytes as they come --------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_everything_may_come_byte_by_byte(
    server: EchoServer, version: ssl.TLSVersion
) -> None:
    context = client_context()
    context.maximum_version = version
    client = await Client(context).connect(server.port)
    await client.shake_hands(step=1)
    await client.write(PREAMBLE + frame(100), step=1)
    assert await client.read(len(frame(100))) == frame(100)
    client.close()


async def test_the_end_of_the_handshake_and_requests_may_come_together(server: EchoServer) -> None:
    client = await Client().connect(server.port)
    while True:
        try:
            client.tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            await client.send_pending()
            client.incoming.write(await client.received())
    sent = b"".join(frame(200, seed) for seed in range(500))
    client.tls.write(PREAMBLE + sent)
    await client.send_pending()  # Finished and 100 KB of requests
    assert await client.read(len(sent)) == sent
    client.close()


async def test_frames_of_all_sizes_come_back_whole(server: EchoServer) -> None:
    client = await secured(server)
    rng = random.Random(8)
    sizes = [0, 1, 16_383, 16_384, 65_535, 65_536, 300_000, 1_500_000, 3_000_000]
    sizes += [rng.randrange(40_000) for _ in range(40)]
    await client.write(PREAMBLE + frame(1))
    assert await client.read(len(frame(1))) == frame(1)
    for seed, size in enumerate(sizes):
        sent = frame(size, seed)
        receiving = asyncio.ensure_future(client.read(len(sent)))
        await client.write(sent)
        assert await receiving == sent, size
    client.close()


async def test_what_is_written_in_one_turn_leaves_in_one_record(server: EchoServer) -> None:
    client = await secured(server)
    small = b"".join(frame(20, seed) for seed in range(50))
    await client.write(PREAMBLE + small)
    records = await client.receive_raw()
    length = int.from_bytes(records[3:5], "big")
    assert records[0] == 0x17 and len(records) == 5 + length, "one record of application data"
    client.incoming.write(records)
    assert await client.read(len(small)) == small
    client.close()


# ---- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16",
        b"\x16" * 5,
        b"\x16\x03\x01\xff\xff" + b"x" * 100,
        b"\x16\x03\x01\x00\x05hello",
        b"\x16\x03\x03\x00\x04\x01\x00\x00\x00",
        b"\x16" + b"GET / HTTP/1.1\r\n",
    ],
)
async def test_garbage_behind_the_first_byte_ends_only_this_connection(
    server: EchoServer, garbage: bytes
) -> None:
    healthy = await secured(server)
    bad = await Client().connect(server.port)
    await bad.send_raw(garbage)
    if len(garbage) > 5:
        assert await goodbye(bad)
    bad.close()
    await until(lambda: len(server.closed) == 1)
    await healthy.write(PREAMBLE + frame(10))
    assert await healthy.read(len(frame(10))) == frame(10)
    healthy.close()


async def test_random_garbage_ends_only_this_connection(server: EchoServer) -> None:
    rng = random.Random(9)
    hello = Client()
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.tls.do_handshake()
    valid = hello.outgoing.read()
    hello.close()
    for number in range(100):
        data = bytearray(valid)
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(1, len(data))] = rng.randrange(256)
        client = await Client().connect(server.port)
        await client.send_raw(bytes(data))
        client.close()
        await until(lambda count=number + 1: len(server.closed) == count)  # type: ignore[misc]
    healthy = await secured(server)
    healthy.close()


async def test_a_handshake_is_bounded_in_bytes(server: EchoServer) -> None:
    client = await Client().connect(server.port)
    # Handshake messages that never become a ClientHello: records of one byte each would do, too.
    record = b"\x16\x03\x01\x40\x00" + b"\x01\x00\xff\xff" + bytes(16_380)
    sent = 0
    with contextlib.suppress(OSError):
        while sent < 4 * MAX_HANDSHAKE_BYTES:
            await client.send_raw(record if sent == 0 else b"\x16\x03\x01\x40\x00" + bytes(16_384))
            sent += len(record)
            await asyncio.sleep(0)
        assert await goodbye(client)
    await until(lambda: len(server.closed) == 1)
    assert server.closed[0] is not None
    client.close()


@pytest.mark.parametrize("after", ["nothing", "hello", "handshake", "half a record"])
async def test_a_client_may_vanish_at_any_time(server: EchoServer, after: str) -> None:
    client = Client()
    await client.connect(server.port)
    if after == "nothing":
        await client.send_raw(b"\x16")
    elif after == "hello":
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
        await client.send_pending()
        await client.received()
    else:
        await client.shake_hands()
        await client.write(PREAMBLE + frame(10))
        if after == "half a record":
            client.tls.write(frame(1000))
            await client.send_raw(client.outgoing.read()[:500])
    await until(lambda: len(server.links) == 1)
    client.reset()
    await until(lambda: len(server.closed) == 1)


async def test_a_damaged_record_ends_the_connection(server: EchoServer) -> None:
    client = await secured(server)
    await client.write(PREAMBLE + frame(10))
    assert await client.read(len(frame(10))) == frame(10)
    client.tls.write(frame(100))
    data = bytearray(client.outgoing.read())
    data[-1] ^= 1
    await client.send_raw(bytes(data))
    assert await goodbye(client)
    await until(lambda: len(server.closed) == 1)
    assert "TLS: " in str(server.closed[0])
    client.close()


async def test_a_goodbye_is_answered_after_what_was_asked_before(server: EchoServer) -> None:
    client = await secured(server)
    client.tls.write(PREAMBLE + frame(100))
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.unwrap()
    await client.send_pending()
    data = b""
    while more := await client.receive_raw():
        data += more
    client.incoming.write(data)
    echo = client.tls.read(1 << 16)
    assert echo == frame(100)
    await until(lambda: server.closed == [None])
    client.close()


async def test_a_reader_that_does_not_read_is_dropped(server: EchoServer) -> None:
    server.max_unsent_bytes = 256 * 1024
    client = await secured(server)
    await client.write(PREAMBLE + frame(1))
    assert await client.read(len(frame(1))) == frame(1)
    with contextlib.suppress(OSError):
        for _ in range(2_000):
            await client.write(frame(60_000))
            if server.closed:
                break
    await until(lambda: len(server.closed) == 1)
    assert "too slow" in str(server.closed[0])
    client.close()


async def test_a_link_that_is_paused_is_not_read(server: EchoServer) -> None:
    client = await secured(server)
    await client.write(PREAMBLE + frame(1))
    assert await client.read(len(frame(1))) == frame(1)
    link = server.links[0]
    link.pause_reading()
    before = server.received_bytes
    await client.write(frame(50_000))
    for _ in range(20):
        await asyncio.sleep(0)
    assert server.received_bytes == before
    link.resume_reading()
    assert await client.read(len(frame(50_000))) == frame(50_000)
    client.close()


# ---- certificates of clients ---------------------------------------------------------------------


async def test_a_client_shows_its_certificate(strict_server: EchoServer) -> None:
    client = await secured(strict_server, client_context("client"))
    await client.write(PREAMBLE + frame(10))
    assert await client.read(len(frame(10))) == frame(10)
    pem = (strict_server.folder / "client.pem").read_text()
    assert strict_server.certificates == [ssl.PEM_cert_to_DER_cert(pem)]
    client.close()


@pytest.mark.parametrize("who", [None, "stranger"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_without_a_good_certificate_is_told_and_dropped(
    strict_server: EchoServer, who: str | None, version: ssl.TLSVersion
) -> None:
    context = client_context(who)
    context.maximum_version = version
    client = await Client(context).connect(strict_server.port)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert|certificate"):
        await client.shake_hands()
        await client.write(PREAMBLE + frame(10))
        await client.read(1)
    await until(lambda: len(strict_server.closed) == 1)
    assert strict_server.certificates == [] and strict_server.received_bytes == 0
    assert "certificate" in str(strict_server.closed[0])
    client.close()


async def test_a_wanted_certificate_may_be_missing_but_not_wrong(tmp_path: Path) -> None:
    server = EchoServer(copy_tls_files(tmp_path / "tls"), "want")
    await server.start()
    for who in (None, "client"):
        client = await secured(server, client_context(who))
        await client.write(PREAMBLE + frame(10))
        assert await client.read(len(frame(10))) == frame(10)
        client.close()
    assert [certificate is not None for certificate in server.certificates] == [False, True]
    client = await Client(client_context("stranger")).connect(server.port)
    with pytest.raises(ssl.SSLError):
        await client.shake_hands()
        await client.read(1)
    client.close()
    await server.stop()


async def test_a_client_does_not_take_another_authority(server: EchoServer) -> None:
    client = await Client(client_context(ca="other-ca.pem")).connect(server.port)
    with pytest.raises(ssl.SSLCertVerificationError):
        await client.shake_hands()
    client.close()
    await until(lambda: len(server.closed) == 1)


async def test_a_renewed_certificate_is_shown_to_new_clients(server: EchoServer) -> None:
    before = await secured(server)
    for kind in ("pem", "key"):
        (server.folder / f"server-renewed.{kind}").replace(server.folder / f"server.{kind}")
    server.clock.advance(LOOK_INTERVAL_MS)
    after = await secured(server)

    def unit_of(client: Client) -> bool:
        certificate = client.tls.getpeercert()
        assert certificate is not None
        return "renewed" in str(certificate["subject"])

    assert not unit_of(before) and unit_of(after)
    for client in (before, after):
        await client.write(PREAMBLE + frame(10))
        assert await client.read(len(frame(10))) == frame(10)
        client.close()


async def test_a_link_that_has_ended_is_freed_without_a_collection(server: EchoServer) -> None:
    gc.collect()
    gc.disable()
    try:
        for number in range(3):
            client = await secured(server)
            await client.write(PREAMBLE + frame(10))
            assert await client.read(len(frame(10))) == frame(10)
            client.close()
            await until(lambda count=number + 1: len(server.closed) == count)  # type: ignore[misc]
            server.links.clear()
        await asyncio.sleep(0)
        server.closed.clear()
        alive = [each for each in gc.get_objects() if isinstance(each, TlsLayer | ServerLink)]
        assert alive == []
    finally:
        gc.enable()


async def test_states_follow_one_another(server: EchoServer) -> None:
    client = await Client().connect(server.tls_port)
    await until(lambda: len(server.links) == 1)
    layer = server.links[0].transport
    assert isinstance(layer, TlsLayer)
    assert layer.state is TlsState.HANDSHAKE
    await client.shake_hands()
    await until(lambda: layer.state is TlsState.OPEN)
    client.close()
    await until(lambda: layer.state is TlsState.CLOSED)
    layer.write(b"into the void")
