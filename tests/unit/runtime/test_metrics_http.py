"""Metrics over HTTP: the text Prometheus reads, and nothing a hostile peer could hold on to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
import pytest_asyncio

from duolog_runtime import metrics_http
from duolog_runtime.logs import RecordingLogger
from duolog_runtime.metrics_http import MAX_REQUEST_BYTES, MetricRow, MetricsServer


class Daemon:
    """A served counter and gauge."""

    def __init__(self) -> None:
        self.requests = 0
        self.broken = False
        self.log = RecordingLogger()
        self.server = MetricsServer(self.rows, self.log)
        self.port = 0

    def rows(self) -> Iterable[MetricRow]:
        if self.broken:
            raise ValueError("a bug")
        yield "requests_total", "Requests.", "counter", [({}, self.requests)]
        yield (
            "isr_size",
            "Replicas in sync.",
            "gauge",
            [({"topic": 'a"b', "partition": "0"}, 3), ({"topic": "c", "partition": "1"}, 1.5)],
        )

    async def send(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        try:
            return await reader.read()
        finally:
            writer.close()

    async def get(self, path: str, method: str = "GET") -> tuple[str, bytes]:
        answer = await self.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        return head.decode(), body


@pytest_asyncio.fixture
async def daemon() -> AsyncIterator[Daemon]:
    each = Daemon()
    each.port = await each.server.start("127.0.0.1", 0)
    yield each
    await each.server.close()
    await each.server.close()


async def test_metrics_are_read_at_the_moment_of_the_request(daemon: Daemon) -> None:
    daemon.requests = 7
    head, body = await daemon.get("/metrics?now")
    assert head.startswith("HTTP/1.1 200 OK")
    assert "Content-Type: text/plain; version=0.0.4" in head
    assert f"Content-Length: {len(body)}" in head
    assert body.decode().splitlines() == [
        "# HELP requests_total Requests.",
        "# TYPE requests_total counter",
        "requests_total 7.0",
        "# HELP isr_size Replicas in sync.",
        "# TYPE isr_size gauge",
        'isr_size{partition="0",topic="a\\"b"} 3.0',
        'isr_size{partition="1",topic="c"} 1.5',
    ]
    daemon.requests = 8
    assert b"requests_total 8.0" in (await daemon.get("/metrics"))[1]


async def test_health(daemon: Daemon) -> None:
    head, body = await daemon.get("/health")
    assert head.startswith("HTTP/1.1 200") and body == b"ok\n"
    head, body = await daemon.get("/health", "HEAD")
    assert "Content-Length: 3" in head and body == b""


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"hello\r\n\r\n", b"400"),
        (b"GET /metrics SPDY/3\r\n\r\n", b"400"),
        (b"\x00\xff\r\n\r\n", b"400"),
        (b"GET /" + b"a" * MAX_REQUEST_BYTES, b"431"),
    ],
)
async def test_a_bad_request_is_answered(
    daemon: Daemon, request_bytes: bytes, status: bytes
) -> None:
    assert (await daemon.send(request_bytes)).startswith(b"HTTP/1.1 " + status)


async def test_a_request_may_come_in_pieces(daemon: Daemon) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
    for piece in (b"GET /hea", b"lth HTTP/1.1\r\n", b"Host: x\r\n\r", b"\n"):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    assert (await reader.read()).endswith(b"ok\n")
    writer.close()


async def test_a_peer_that_says_nothing_is_dropped(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_http, "CONNECTION_SECONDS", 0.01)
    with contextlib.suppress(ConnectionResetError):  # as which an abort may show
        assert await daemon.send(b"GET /health") == b""


async def test_connections_are_bounded(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_http, "MAX_CONNECTIONS", 1)
    _, first = await asyncio.open_connection("127.0.0.1", daemon.port)
    assert (await daemon.send(b"")).startswith(b"HTTP/1.1 503")
    first.close()


async def test_a_metric_that_fails_stops_no_daemon(daemon: Daemon) -> None:
    daemon.broken = True
    head, _ = await daemon.get("/metrics")
    assert head.startswith("HTTP/1.1 500")
    assert daemon.log.events == ["metrics_failed"]
    daemon.broken = False
    assert (await daemon.get("/metrics"))[0].startswith("HTTP/1.1 200")


async def test_closing_drops_who_still_waits(daemon: Daemon) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
    await daemon.get("/health")  # so that the first one has been accepted as well
    await daemon.server.close()
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()


def test_the_text_library_is_not_loaded_before_it_is_needed() -> None:
    server: Any = MetricsServer(list, RecordingLogger())
    with pytest.raises(AssertionError, match="start"):
        server.exposition()
