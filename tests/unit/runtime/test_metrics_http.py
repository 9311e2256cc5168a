"""Metrics over HTTP: the text that Prometheus reads, made when it is asked for."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable

import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from duolog_runtime.logs import RecordingLogger
from duolog_runtime.metrics_http import MetricRow, MetricsServer, SummaryValue, exposition


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
        answer = await self.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        return head.decode(), body


@pytest_asyncio.fixture
async def daemon() -> AsyncIterator[Daemon]:
    each = Daemon()
    each.port = await each.server.start("127.0.0.1", 0, "port")
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


async def test_a_metric_that_fails_stops_no_daemon(daemon: Daemon) -> None:
    daemon.broken = True
    head, _ = await daemon.get("/metrics")
    assert head.startswith("HTTP/1.1 500")
    assert daemon.log.events == ["http_request_failed"]
    daemon.broken = False
    assert (await daemon.get("/metrics"))[0].startswith("HTTP/1.1 200")


def test_summaries_and_counters_with_a_given_name_survive_the_text() -> None:
    value = SummaryValue(3, 12.0, {0.5: 4, 0.99: 6})
    rows: list[MetricRow] = [
        ("fsynctime", "Syncs.", "summary", [({}, value)]),
        ("snap_count", "Snapshots.", "unknown", [({}, 2)]),
    ]
    summary, unknown = text_string_to_metric_families(exposition(rows).decode())
    assert (summary.name, summary.type) == ("fsynctime", "summary")
    assert [(each.name, each.labels, each.value) for each in summary.samples] == [
        ("fsynctime", {"quantile": "0.5"}, 4.0),
        ("fsynctime", {"quantile": "0.99"}, 6.0),
        ("fsynctime_count", {}, 3.0),
        ("fsynctime_sum", {}, 12.0),
    ]
    assert [(each.name, each.value) for each in unknown.samples] == [("snap_count", 2.0)]


def test_the_text_library_is_loaded_by_the_first_scrape() -> None:
    program = (
        "import sys\n"
        "from duolog_runtime.metrics_http import MetricsServer, exposition\n"
        "server = MetricsServer(list, None)\n"
        "assert 'prometheus_client' not in sys.modules\n"
        "exposition([])\n"
        "assert 'prometheus_client' in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
