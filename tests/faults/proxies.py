"""Connections between servers that can be cut: a TCP proxy for each pair that dials.

What one server sends to another goes one `way`. A way that is cut lets nothing through, neither
bytes nor the end of a connection; nobody is told, as behind a cable that was pulled. What was sent
meanwhile arrives when the way is open again, as TCP would send it anew. The proxies run on a loop
in a thread of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Sequence
from typing import Final, Self

from bench.ensembles import Place
from bench.processes import free_ports

Way = tuple[int, int]
"""From one server to another, by their ids."""
_PIECE_BYTES: Final = 65_536
_START_S: Final = 10.0


class Network:
    """All ways between the servers; open at the beginning."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = {each.server_id: each for each in places}
        pairs = [(a, b) for a in self._places for b in self._places if a != b]
        ports = free_ports(2 * len(pairs))
        self._peer_ports = dict(zip(pairs, ports[: len(pairs)], strict=True))
        self._election_ports = dict(zip(pairs, ports[len(pairs) :], strict=True))
        self._loop: asyncio.AbstractEventLoop
        self._open: dict[Way, asyncio.Event] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._listening = threading.Event()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxies", daemon=True)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        assert self._listening.wait(_START_S), "the proxies do not listen"
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def seen_by(self, server_id: int) -> list[Place]:
        """The members, the others where a server reaches them through the proxies."""
        return [
            place
            if place.server_id == server_id
            else place._replace(
                peer_port=self._peer_ports[server_id, place.server_id],
                election_port=self._election_ports[server_id, place.server_id],
            )
            for place in self._places.values()
        ]

    def ways(self) -> list[Way]:
        """All of them."""
        return list(self._peer_ports)

    def cut(self, ways: Iterable[Way]) -> None:
        """Let nothing through from now on."""
        for way in ways:
            self._loop.call_soon_threadsafe(self._open[way].clear)

    def heal(self, ways: Iterable[Way]) -> None:
        """Let everything through again."""
        for way in ways:
            self._loop.call_soon_threadsafe(self._open[way].set)

    # ---- in the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for way in self.ways():
                self._open[way] = asyncio.Event()
                self._open[way].set()
            for (source, target), port in self._peer_ports.items():
                real = self._places[target].peer_port
                await stack.enter_async_context(await self._listen(source, target, port, real))
            for (source, target), port in self._election_ports.items():
                real = self._places[target].election_port
                await stack.enter_async_context(await self._listen(source, target, port, real))
            self._listening.set()
            await self._ended.wait()
            for each in list(self._connections):
                each.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _listen(self, source: int, target: int, port: int, real_port: int) -> asyncio.Server:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._connections.add(task)
            try:
                await self._carry((source, target), reader, writer, real_port)
            except (OSError, asyncio.CancelledError):
                writer.transport.abort()
            finally:
                self._connections.discard(task)

        return await asyncio.start_server(connected, "127.0.0.1", port, limit=_PIECE_BYTES)

    async def _carry(
        self,
        way: Way,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        real_port: int,
    ) -> None:
        there, back = self._open[way], self._open[way[::-1]]
        await there.wait()  # nobody is reached, or nobody's answer comes
        await back.wait()
        far_reader, far_writer = await asyncio.open_connection(
            "127.0.0.1", real_port, limit=_PIECE_BYTES
        )
        try:
            await asyncio.gather(_pump(reader, far_writer, there), _pump(far_reader, writer, back))
        finally:
            far_writer.transport.abort()
            writer.transport.abort()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_open: asyncio.Event
) -> None:
    """Carry bytes one way until an end has gone; the receiver then hears of it."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_PIECE_BYTES):
            await is_open.wait()
            writer.write(data)
            await writer.drain()
    await is_open.wait()
    writer.close()
