"""A server listens or says why not; when it stops it leaves no connection behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from duolog_protocol.errors import ConfigError
from duolog_runtime.listening import close_servers, listen, port_of, stop_accepting
from tests.support import until


async def test_whoever_was_just_accepted_is_told_the_end() -> None:
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        pytest.skip("uvloop closes at once, and may leave whoever was just accepted: a known gap")
    there: set[asyncio.Protocol] = set()

    class Ended(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            there.add(self)
            transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            there.discard(self)

    for turns in range(5):
        server = await loop.create_server(Ended, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.setblocking(False)
            for _ in range(turns):
                await asyncio.sleep(0)
            stop_accepting(loop, [server])
            await close_servers([server])
            async with asyncio.timeout(20):
                with contextlib.suppress(ConnectionResetError):
                    assert await loop.sock_recv(client, 1) == b""
        await until(lambda: not there)


async def test_a_port_that_is_taken_is_an_error_of_its_setting() -> None:
    loop = asyncio.get_running_loop()
    server = await listen(loop, asyncio.Protocol, "127.0.0.1", 0, "port")
    port = port_of(server)
    with pytest.raises(ConfigError, match=r"at 127\.0\.0\.1: .*in use") as caught:
        await listen(loop, asyncio.Protocol, "127.0.0.1", port, "http_port")
    assert (caught.value.field, caught.value.value) == ("http_port", port)
    await close_servers([server])
