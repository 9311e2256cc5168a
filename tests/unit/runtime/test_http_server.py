"""The operators' HTTP server: what it answers, and that nobody can hold on to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest
import pytest_asyncio

from duolog_runtime import http_server
from duolog_runtime.http_server import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    MAX_QUERY_FIELDS,
    HttpRequest,
    HttpResponse,
    HttpServer,
    Respond,
    Route,
    text_response,
)
from duolog_runtime.logs import RecordingLogger
from tests.support import until

FIRST = "GET /ok?a=1 HTTP/1.1\r\n"


class Served:
    """A server with a few routes; what was asked is kept."""

    def __init__(self) -> None:
        self.asked: list[HttpRequest] = []
        self.waiting: list[Respond] = []
        self.log = RecordingLogger()
        routes = {
            "/ok": Route(self._ok),
            "/below/*": Route(self._ok),
            "/change": Route(self._ok, ("POST",)),
            "/late": Route(lambda _request, respond: self.waiting.append(respond)),
            "/broken": Route(self._broken),
        }
        self.server = HttpServer(routes, self.log)
        self.port = 0

    def _ok(self, request: HttpRequest, respond: Respond) -> None:
        self.asked.append(request)
        respond(text_response("ok"))

    def _broken(self, request: HttpRequest, respond: Respond) -> None:
        raise ValueError("a bug")

    async def send(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        try:
            return await reader.read()
        finally:
            writer.close()

    async def ask(
        self, line: str, *, headers: str = "Host: localhost\r\n", body: bytes = b""
    ) -> str:
        return (await self.send(f"{line} HTTP/1.1\r\n{headers}\r\n".encode() + body)).decode()


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    each = Served()
    each.port = await each.server.start("127.0.0.1", 0, "port")
    yield each
    await each.server.close()
    await each.server.close()


async def test_a_route_answers_and_the_connection_ends(served: Served) -> None:
    answer = await served.ask("GET /ok?name=a%20b&flag=&name=c")
    head, _, body = answer.partition("\r\n\r\n")
    assert head.splitlines() == [
        "HTTP/1.1 200 OK",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Length: 3",
        "Connection: close",
    ]
    assert body == "ok\n"
    (request,) = served.asked
    assert request.path == "/ok"
    assert request.query == {"name": "c", "flag": ""}


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:80", True),
        ("[::1]:80", True),
        ("10.0.0.1", True),
        ("LOCALHOST:80", True),
        ("", True),
        ("rebound.example.org", False),
        ("127.0.0.1.example.org:80", False),
        ("[rebound.example.org]:80", False),
        ("localhost.example.org", False),
    ],
)
async def test_a_name_that_was_turned_to_loopback_is_not_answered(
    served: Served, host: str, answered: bool
) -> None:
    answer = await served.ask("GET /ok", headers=f"Host: {host}\r\n")
    assert ("200 OK" in answer) is answered
    assert ("421 Misdirected Request" in answer) is not answered
    assert len(served.asked) == answered


async def test_where_others_may_connect_names_are_as_good_as_addresses() -> None:
    served = Served()
    served.port = await served.server.start("0.0.0.0", 0, "port")
    assert "200 OK" in await served.ask("GET /ok", headers="Host: monitored.example.org\r\n")
    await served.server.close()


async def test_a_route_takes_what_is_below_it(served: Served) -> None:
    assert "200 OK" in await served.ask("GET /below/a/b")
    assert [request.path for request in served.asked] == ["/below/a/b"]
    assert "404 Not Found" in await served.ask("GET /other")
    assert "404 Not Found" in await served.ask("GET ok")


async def test_methods_are_those_of_the_route(served: Served) -> None:
    head, _, body = (await served.ask("HEAD /ok")).partition("\r\n\r\n")
    assert "Content-Length: 3" in head and body == ""
    answer = await served.ask("POST /ok")
    assert "405 Method Not Allowed" in answer and "Allow: GET, HEAD\r\n" in answer
    answer = await served.ask("GET /change")
    assert "405" in answer and "Allow: POST\r\n" in answer
    assert "405" in await served.ask("BREW /change")


async def test_a_body_comes_with_its_length(served: Served) -> None:
    headers = "Content-Length: 5\r\nX-Forwarded-For: 127.0.0.1\r\n"
    assert "200 OK" in await served.ask("POST /change", headers=headers, body=b"hello")
    (request,) = served.asked
    assert request.body == b"hello"
    assert request.headers["content-length"] == "5"


async def test_a_handler_may_answer_later_and_only_once(served: Served) -> None:
    answer = asyncio.create_task(served.ask("GET /late"))
    await until(lambda: bool(served.waiting))
    (respond,) = served.waiting
    respond(text_response("first"))
    respond(text_response("second"))
    assert (await answer).endswith("first\n")
    respond(text_response("after the end"))


async def test_a_handler_that_fails_stops_no_daemon(served: Served) -> None:
    assert "500 Internal Server Error" in await served.ask("GET /broken")
    assert served.log.events == ["http_request_failed"]
    assert "200 OK" in await served.ask("GET /ok")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"hello\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET /ok SPDY/3\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"\x00\xff\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET  /ok HTTP/1.1\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET /ok HTTP/1.1\r\nno colon\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET /ok HTTP/1.1\r\n folded: x\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET /ok HTTP/1.1\r\nContent-Length: -1\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET /ok HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET /ok HTTP/1.1\r\nContent-Length: " + b"9" * 99, None),
        (b"GET /ok HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", HTTPStatus.LENGTH_REQUIRED),
        (b"\r\n\r\n", HTTPStatus.BAD_REQUEST),
    ],
)
async def test_a_broken_request_is_answered(
    served: Served, request_bytes: bytes, status: HTTPStatus | None
) -> None:
    if status is None:
        request_bytes, status = request_bytes + b"\r\n\r\n", HTTPStatus.BAD_REQUEST
    answer = await served.send(request_bytes)
    assert answer.startswith(f"HTTP/1.1 {status.value} ".encode())
    assert not served.asked


@pytest.mark.parametrize("over", [0, 1])
async def test_the_head_is_bounded(served: Served, over: int) -> None:
    head = f"{FIRST}X: "
    head += "a" * (MAX_HEAD_BYTES - len(head) + over)
    answer = await served.send(f"{head}\r\n\r\n".encode())
    assert (b"200 OK" in answer) == (over == 0)
    assert (b"431" in answer) == (over == 1)
    answer = await served.send(b"GET /" + b"a" * (2 * MAX_HEAD_BYTES))
    assert answer.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("over", [0, 1])
async def test_the_body_is_bounded(served: Served, over: int) -> None:
    length = MAX_BODY_BYTES + over
    headers = f"Content-Length: {length}\r\n"
    # One past the limit is refused by its length, before any of it has come.
    body = b"" if over else b"x" * length
    answer = await served.ask("POST /change", headers=headers, body=body)
    assert ("200 OK" in answer) == (over == 0)
    assert ("413" in answer) == (over == 1)


@pytest.mark.parametrize("over", [0, 1])
async def test_the_fields_of_a_query_are_bounded(served: Served, over: int) -> None:
    query = "&".join(f"f{number}=1" for number in range(MAX_QUERY_FIELDS + over))
    answer = await served.ask(f"GET /ok?{query}")
    assert ("200 OK" in answer) == (over == 0)
    assert ("400" in answer) == (over == 1)


async def test_connections_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    _, first = await asyncio.open_connection("127.0.0.1", served.port)
    assert "200 OK" in await served.ask("GET /ok")
    _, second = await asyncio.open_connection("127.0.0.1", served.port)
    assert (await served.send(b"")).startswith(b"HTTP/1.1 503")
    first.close()
    second.close()


async def test_a_request_may_come_in_pieces(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    for piece in (b"POST /cha", b"nge HTTP/1.1\r\nContent-", b"Length: 2\r\n\r", b"\n1", b"2"):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    assert (await reader.read()).endswith(b"ok\n")
    assert served.asked[0].body == b"12"
    writer.close()


@pytest.mark.parametrize("said", [b"", b"GET /ok", b"POST /change HTTP/1.1\r\nContent-Length: 9"])
async def test_a_peer_that_does_not_finish_is_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(http_server, "CONNECTION_SECONDS", 0.01)
    with contextlib.suppress(ConnectionResetError):  # as which an abort may show
        assert await served.send(said) == b""


async def test_a_peer_that_does_not_read_is_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "CONNECTION_SECONDS", 0.05)
    _reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
    writer.write(b"GET /late HTTP/1.1\r\n\r\n")
    await until(lambda: bool(served.waiting))
    long = HttpResponse(bytes(64 * 1024 * 1024))
    served.waiting[0](long)
    await until(lambda: not served.server._connections)
    writer.transport.abort()


async def test_closing_drops_who_still_waits(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    await served.ask("GET /ok")  # so that the first one has been accepted as well
    await served.server.close()
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
