"""Metrics and health over HTTP: `/metrics` in Prometheus' text format, `/health` answers 200.

Owns a listener that reads one small request per connection and closes it; it knows no metric.
The daemon counts in plain ints and hands over a callable that lists them when they are asked for.
Off unless configured. Bounded: bytes of a request, seconds of a connection, connections at a time.

prometheus-client writes the text; it is imported in `start()`, which therefore belongs after the
moment the daemon's own port is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, cast

from .logs import Logger

Sample = tuple[Mapping[str, str], float]
"""Labels and value."""
MetricRow = tuple[str, str, str, Iterable[Sample]]
"""Name, help, type ("counter" or "gauge") and samples. A counter's name ends in `_total`."""
Collect = Callable[[], Iterable[MetricRow]]

MAX_REQUEST_BYTES: Final = 8 * 1024
MAX_CONNECTIONS: Final = 16
CONNECTION_SECONDS: Final = 5.0


class MetricsServer:
    """Serves what `collect` returns at the moment of the request."""

    def __init__(self, collect: Collect, log: Logger) -> None:
        self._collect = collect
        self._log = log
        self._server: asyncio.Server | None = None
        self._connections: set[_HttpConnection] = set()
        self._generate: Callable[[Any], bytes] | None = None
        self._metric: Any = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which is a free one when `port` is 0. Raises OSError."""
        import prometheus_client
        from prometheus_client.metrics_core import Metric

        self._generate = prometheus_client.generate_latest
        self._metric = Metric
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _HttpConnection(self, loop), host, port)
        self._server = server
        chosen: int = server.sockets[0].getsockname()[1]
        return chosen

    async def close(self) -> None:
        """Stop listening and drop the connections. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            for connection in list(self._connections):
                connection.abort()
            await server.wait_closed()

    def exposition(self) -> bytes:
        """The metrics as text."""
        assert self._generate is not None, "start() first"
        return self._generate(self)

    def collect(self) -> Iterator[Any]:
        """Called by prometheus-client: rows as its metric families."""
        for name, documentation, kind, samples in self._collect():
            family = self._metric(name.removesuffix("_total"), documentation, kind)
            for labels, value in samples:
                family.add_sample(name, dict(labels), value)
            yield family

    def accept(self, connection: _HttpConnection) -> bool:
        """Take a new connection, unless there are too many."""
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def forget(self, connection: _HttpConnection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)

    def answer(self, request_line: bytes) -> bytes:
        """The whole response to a request line."""
        parts = request_line.split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            return _response("400 Bad Request", b"not an HTTP/1 request\n")
        method, path = parts[0], parts[1].partition(b"?")[0]
        if method not in {b"GET", b"HEAD"}:
            return _response("405 Method Not Allowed", b"GET and HEAD only\n", "Allow: GET, HEAD")
        if path == b"/health":
            response = _response("200 OK", b"ok\n")
        elif path == b"/metrics":
            try:
                response = _response("200 OK", self.exposition(), kind=_PROMETHEUS)
            except Exception as error:  # the end of a request: a bad metric stops no daemon
                self._log.error("metrics_failed", exc_info=error)
                response = _response("500 Internal Server Error", b"see the log\n")
        else:
            response = _response("404 Not Found", b"there are /metrics and /health\n")
        if method == b"HEAD":
            return response[: response.index(b"\r\n\r\n") + 4]
        return response


_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


def _response(
    status: str, body: bytes, header: str = "", kind: str = "text/plain; charset=utf-8"
) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    lines += [header] if header else []
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


class _HttpConnection(asyncio.Protocol):
    """One request, one response, closed."""

    def __init__(self, server: MetricsServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._server.accept(self):
            self._deadline = self._loop.call_later(CONNECTION_SECONDS, self.abort)
        else:
            self._finish(_response("503 Service Unavailable", b"too many connections\n"))

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._received += data
        if len(self._received) > MAX_REQUEST_BYTES:
            self._finish(_response("431 Request Header Fields Too Large", b"too long\n"))
        elif b"\r\n\r\n" in self._received:
            self._finish(self._server.answer(self._received.partition(b"\r\n")[0]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._server.forget(self)

    def abort(self) -> None:
        """Close at once: the peer was too slow, or the server ends."""
        assert self._transport is not None
        self._transport.abort()

    def _finish(self, response: bytes) -> None:
        assert self._transport is not None
        self._answered = True
        self._received = b""
        self._transport.write(response)
        self._transport.close()
