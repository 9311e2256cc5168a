"""A small HTTP server for what operators ask a daemon: one request, one response, closed.

Owns the listener, the parsing of requests and every bound: bytes of a head and of a body, seconds
of a connection, connections at a time. It knows no path; the daemon gives a handler for each. It
never looks at forwarded headers (CVE-2024-51504), keeps no connection and streams nothing. On
loopback it answers only who calls it by an address or as localhost: a web page whose name was
turned to this machine (DNS rebinding) has that name in its requests.

Handlers run on the loop, so they read what is in memory. One that has to wait for the disk keeps
`respond` and calls it later; the connection's deadline bounds the wait.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple, cast
from urllib.parse import parse_qsl

from .config import is_loopback
from .listening import listen, port_of
from .logs import Logger

MAX_HEAD_BYTES: Final = 8 * 1024
MAX_BODY_BYTES: Final = 64 * 1024
MAX_QUERY_FIELDS: Final = 32
MAX_CONNECTIONS: Final = 16
CONNECTION_SECONDS: Final = 5.0
TEXT: Final = "text/plain; charset=utf-8"
_END_OF_HEAD: Final = b"\r\n\r\n"


class HttpRequest(NamedTuple):
    """One request, complete."""

    method: str
    path: str
    """Without the query."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """By lower-case name; of one given twice the last."""
    body: bytes


class HttpResponse(NamedTuple):
    """What is answered."""

    body: bytes = b""
    status: HTTPStatus = HTTPStatus.OK
    kind: str = TEXT
    headers: tuple[str, ...] = ()
    """Further lines, without their ends."""


Respond = Callable[[HttpResponse], None]
"""Send the response; what comes after the first, or after the connection's end, is ignored."""
Handler = Callable[[HttpRequest, Respond], None]


class Route(NamedTuple):
    """Who answers a path, and to which methods. HEAD goes wherever GET goes."""

    handler: Handler
    methods: tuple[str, ...] = ("GET",)


class HttpServer:
    """Serves routes; a path that ends in `/*` takes everything below it."""

    def __init__(self, routes: Mapping[str, Route], log: Logger) -> None:
        self._routes = dict(routes)
        self._log = log
        self._server: asyncio.Server | None = None
        self._loopback_only = False
        self._connections: set[_HttpConnection] = set()

    async def start(self, host: str, port: int, field: str) -> int:
        """Listen; returns the port, which is a free one when `port` is 0. Raises ConfigError, which
        names the setting `field`."""
        loop = asyncio.get_running_loop()
        factory = functools.partial(_HttpConnection, self, loop)
        self._server = await listen(loop, factory, host, port, field)
        self._loopback_only = is_loopback(host)
        return port_of(self._server)

    async def close(self) -> None:
        """Stop listening and drop the connections. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            for connection in list(self._connections):
                connection.abort()
            await server.wait_closed()

    def accept(self, connection: _HttpConnection) -> bool:
        """Take a new connection, unless there are too many."""
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def forget(self, connection: _HttpConnection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)

    def answer(self, request: HttpRequest, respond: Respond) -> None:
        """Find the handler of a request and let it answer."""
        if self._loopback_only and not _is_for_this_machine(request.headers.get("host", "")):
            status = HTTPStatus.MISDIRECTED_REQUEST
            respond(text_response("ask by address, or as localhost", status))
            return
        route = self._route(request.path)
        if route is None:
            known = ", ".join(self._routes)
            respond(text_response(f"not found; there are {known}", HTTPStatus.NOT_FOUND))
            return
        method = "GET" if request.method == "HEAD" else request.method
        if method not in route.methods:
            respond(method_refused(route.methods))
            return
        try:
            route.handler(request, respond)
        except Exception as error:  # the end of a request: a bad handler stops no daemon
            self._log.error("http_request_failed", path=request.path, exc_info=error)
            respond(text_response("see the log", HTTPStatus.INTERNAL_SERVER_ERROR))

    def _route(self, path: str) -> Route | None:
        found = self._routes.get(path)
        while found is None and path:
            path = path.rpartition("/")[0]
            found = self._routes.get(f"{path}/*")
        return found


def text_response(text: str, status: HTTPStatus = HTTPStatus.OK) -> HttpResponse:
    """A line of text."""
    return HttpResponse(text.encode() + b"\n", status)


def method_refused(methods: tuple[str, ...]) -> HttpResponse:
    """The answer to a method that the path does not have."""
    allowed = ", ".join(("GET", "HEAD", *methods[1:]) if methods[0] == "GET" else methods)
    refusal = text_response(f"{allowed} only", HTTPStatus.METHOD_NOT_ALLOWED)
    return refusal._replace(headers=(f"Allow: {allowed}",))


def _is_for_this_machine(host: str) -> bool:
    """Whether a `Host` header has an address or localhost, with or without a port, or nothing.

    A browser always sends one.
    """
    name = host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
    if name.lower() in ("", "localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _BadRequest(Exception):
    """The request cannot be served."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _HttpConnection(asyncio.Protocol):
    """Reads one request, writes one response."""

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._asked = False
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._deadline = self._loop.call_later(CONNECTION_SECONDS, self.abort)
        if not self._server.accept(self):
            self._asked = True
            status = HTTPStatus.SERVICE_UNAVAILABLE
            self._finish(False, text_response("too many connections", status))

    def data_received(self, data: bytes) -> None:
        if self._asked:
            return
        self._received += data
        try:
            request = _parse(self._received)
        except _BadRequest as error:
            self._asked = True
            self._finish(False, text_response(str(error), error.status), linger=True)
            return
        if request is not None:
            self._asked = True
            self._received.clear()
            respond = functools.partial(self._finish, request.method == "HEAD")
            self._server.answer(request, respond)

    def connection_lost(self, exc: Exception | None) -> None:
        self._answered = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._server.forget(self)

    def abort(self) -> None:
        """Close at once: the peer was too slow, or the server ends."""
        assert self._transport is not None
        self._transport.abort()

    def _finish(self, head_only: bool, response: HttpResponse, linger: bool = False) -> None:
        """Answer and close; with `linger`, once the peer has: closing on what it still sends would
        reset the connection, and the answer could be lost."""
        if self._answered:
            return
        self._answered = True
        assert self._transport is not None
        self._transport.write(_encode(response, head_only))
        if linger:
            self._transport.write_eof()
        else:
            self._transport.close()


def _parse(received: bytearray) -> HttpRequest | None:
    """The request, None while it is not complete. Raises _BadRequest."""
    end = received.find(_END_OF_HEAD)
    if end > MAX_HEAD_BYTES or (end < 0 and len(received) > MAX_HEAD_BYTES):
        raise _BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too long")
    if end < 0:
        return None
    request_line, *lines = received[:end].decode("latin-1").split("\r\n")
    parts = request_line.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise _BadRequest(HTTPStatus.BAD_REQUEST, "not an HTTP/1 request")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name != name.strip() or not name:
            raise _BadRequest(HTTPStatus.BAD_REQUEST, "a header line is broken")
        headers[name.lower()] = value.strip()
    start = end + len(_END_OF_HEAD)
    length = _body_bytes(headers)
    if len(received) - start < length:
        return None
    path, _, query = parts[1].partition("?")
    return HttpRequest(
        parts[0], path, _query(query), headers, bytes(received[start : start + length])
    )


def _body_bytes(headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise _BadRequest(HTTPStatus.LENGTH_REQUIRED, "send a body with Content-Length")
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()) or len(text) > 12:
        raise _BadRequest(HTTPStatus.BAD_REQUEST, "Content-Length is not a length")
    length = int(text)
    if length > MAX_BODY_BYTES:
        raise _BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too long")
    return length


def _query(text: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS))
    except ValueError as error:
        raise _BadRequest(HTTPStatus.BAD_REQUEST, "the query has too many fields") from error


def _encode(response: HttpResponse, head_only: bool) -> bytes:
    status = response.status
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {response.kind}",
        f"Content-Length: {len(response.body)}",
        *response.headers,
        "Connection: close",
    ]
    head = "\r\n".join([*lines, "", ""]).encode()
    return head if head_only else head + response.body
