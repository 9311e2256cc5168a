"""A server that stops to listen leaves no connection behind, whatever moment it is."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from duolog_runtime.listening import close_servers, stop_accepting
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
