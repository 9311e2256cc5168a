"""A second, naive implementation of ZooKeeper's client protocol: the client's side of it.

Written from the table of the protocol, not from the server's code, so that the two check each
other. `encode` makes a request as Java's client would; `Reply` and the `Body` reader take replies
apart; `JuteClient` is a client over asyncio streams, for tests that want the bytes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

from duolog_protocol import zk_messages as zk
from duolog_protocol.types import Acl, Stat

OPEN_ACL = (Acl(31, "world", "anyone"),)


def i32(value: int) -> bytes:
    return value.to_bytes(4, "big", signed=True)


def i64(value: int) -> bytes:
    return value.to_bytes(8, "big", signed=True)


def boolean(value: bool) -> bytes:
    return b"\x01" if value else b"\x00"


def buffer(value: bytes | None) -> bytes:
    return i32(-1) if value is None else i32(len(value)) + value


def ustring(value: str | None) -> bytes:
    return buffer(None if value is None else value.encode())


def vector(items: list[bytes] | None) -> bytes:
    return i32(-1) if items is None else i32(len(items)) + b"".join(items)


def acl_list(acl: tuple[Acl, ...] | None) -> bytes:
    if acl is None:
        return vector(None)
    return vector([i32(perms) + ustring(scheme) + ustring(id_) for perms, scheme, id_ in acl])


def frame(body: bytes) -> bytes:
    return i32(len(body)) + body


def request(xid: int, op: int, body: bytes = b"") -> bytes:
    return frame(i32(xid) + i32(op) + body)


def connect_request(
    last_zxid: int = 0,
    timeout_ms: int = 10_000,
    session_id: int = 0,
    password: bytes | None = bytes(16),
    read_only: bool | None = False,
) -> bytes:
    """The first frame; `read_only` None leaves the byte out, as old clients do."""
    body = i32(0) + i64(last_zxid) + i32(timeout_ms) + i64(session_id) + buffer(password)
    return frame(body + (b"" if read_only is None else boolean(read_only)))


def paths(values: list[str]) -> bytes:
    return vector([ustring(value) for value in values])


def create(m: Any) -> bytes:
    return ustring(m.path) + buffer(m.data) + acl_list(m.acl) + i32(m.flags)


def multi(parts: list[tuple[int, bytes]]) -> bytes:
    headers = [i32(kind) + b"\x00" + i32(-1) + body for kind, body in parts]
    return b"".join(headers) + i32(-1) + b"\x01" + i32(-1)


MULTI_BODIES: dict[int, Callable[[Any], bytes]] = {
    1: create,
    2: lambda m: ustring(m.path) + i32(m.version),
    5: lambda m: ustring(m.path) + buffer(m.data) + i32(m.version),
    13: lambda m: ustring(m.path) + i32(m.version),
    19: create,
    21: lambda m: create(m) + i64(m.ttl_ms),
}

BODIES: dict[int, Callable[[Any], bytes]] = {
    1: create,
    2: lambda m: ustring(m.path) + i32(m.version),
    3: lambda m: ustring(m.path) + boolean(m.watch),
    4: lambda m: ustring(m.path) + boolean(m.watch),
    5: lambda m: ustring(m.path) + buffer(m.data) + i32(m.version),
    6: lambda m: ustring(m.path),
    7: lambda m: ustring(m.path) + acl_list(m.acl) + i32(m.version),
    8: lambda m: ustring(m.path) + boolean(m.watch),
    9: lambda m: ustring(m.path),
    11: lambda m: b"",
    12: lambda m: ustring(m.path) + boolean(m.watch),
    14: lambda m: multi([(_wire_kind(op), MULTI_BODIES[_wire_kind(op)](op)) for op in m.ops]),
    15: create,
    16: lambda m: ustring(m[0]) + ustring(m[1]) + ustring(m[2]) + i64(m[3]),
    17: lambda m: ustring(m.path) + i32(m.watcher_type),
    18: lambda m: ustring(m.path) + i32(m.watcher_type),
    19: create,
    21: lambda m: create(m) + i64(m.ttl_ms),
    22: lambda m: multi([(op.kind, ustring(op.path) + b"\x00") for op in m.ops]),
    100: lambda m: i32(0) + ustring(m.scheme) + buffer(m.credential),
    101: lambda m: i64(m.relative_zxid) + paths(m[1]) + paths(m[2]) + paths(m[3]),
    102: lambda m: buffer(m.token),
    103: lambda m: ustring(m.path),
    104: lambda m: ustring(m.path),
    105: lambda m: i64(m.relative_zxid) + b"".join(paths(each) for each in m[1:6]),
    106: lambda m: ustring(m.path) + i32(m.mode),
    107: lambda m: b"",
    -11: lambda m: b"",
}
"""Operation code -> the body of its request, from the message that the server should make of it."""


def _wire_kind(op: zk.MultiOp) -> int:
    if op.kind == zk.MultiKind.CREATE2:
        return 21 if op.ttl_ms >= 0 else 19
    return op.kind


def encode(xid: int, op: int, message: Any) -> bytes:
    """The frame of a request."""
    return request(xid, op, BODIES[op](message))


class Body:
    """Reads the fields of a reply; asserts that they are there."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        start, self.position = self.position, self.position + size
        assert self.position <= len(self.data), (start, size, self.data)
        return self.data[start : self.position]

    def i32(self) -> int:
        return int.from_bytes(self.take(4), "big", signed=True)

    def i64(self) -> int:
        return int.from_bytes(self.take(8), "big", signed=True)

    def buffer(self) -> bytes | None:
        size = self.i32()
        return None if size == -1 else self.take(size)

    def ustring(self) -> str:
        raw = self.buffer()
        assert raw is not None
        return raw.decode()

    def ustrings(self) -> list[str]:
        return [self.ustring() for _ in range(self.i32())]

    def stat(self) -> Stat:
        longs = [self.i64() for _ in range(4)]
        ints = [self.i32() for _ in range(3)]
        return Stat(*longs, *ints, self.i64(), self.i32(), self.i32(), self.i64())

    def acl(self) -> tuple[Acl, ...]:
        return tuple([Acl(self.i32(), self.ustring(), self.ustring()) for _ in range(self.i32())])

    def multi(self) -> list[tuple[int, Any]]:
        """(kind, what it has) for each result; the kind of an error is -1."""
        found: list[tuple[int, Any]] = []
        while True:
            kind, done, code = self.i32(), self.take(1), self.i32()
            if done == b"\x01":
                assert (kind, code) == (-1, -1)
                return found
            found.append((kind, self._result(kind, code)))

    def _result(self, kind: int, code: int) -> Any:
        if kind == -1:
            assert self.i32() == code
            return code
        assert code == 0
        match kind:
            case 1:
                return self.ustring()
            case 15:
                return self.ustring(), self.stat()
            case 5:
                return self.stat()
            case 4:
                return self.buffer(), self.stat()
            case 8:
                return self.ustrings()
            case _:
                assert kind in (2, 13), kind
                return None

    def end(self) -> None:
        assert self.position == len(self.data), self.data[self.position :]


class Reply(NamedTuple):
    """A frame of the server that has a header."""

    xid: int
    zxid: int
    err: int
    body: bytes

    @staticmethod
    def of(content: bytes) -> Reply:
        head = Body(content)
        return Reply(head.i32(), head.i64(), head.i32(), content[16:])


class Session(NamedTuple):
    """The answer to a connect."""

    timeout_ms: int
    session_id: int
    password: bytes
    read_only: bool | None
    """None: the byte is not there."""

    @staticmethod
    def of(content: bytes) -> Session:
        body = Body(content)
        assert body.i32() == 0
        timeout_ms, session_id, password = body.i32(), body.i64(), body.buffer()
        assert password is not None
        rest = content[body.position :]
        assert len(rest) <= 1
        return Session(timeout_ms, session_id, password, rest == b"\x01" if rest else None)


def frames_of(stream: bytes) -> list[bytes]:
    """The contents of the whole frames of a stream; nothing may be left."""
    found, body = [], Body(stream)
    while body.position < len(stream):
        found.append(body.take(body.i32()))
    return found


class JuteClient:
    """A client that shows everything it gets. Put `asyncio.timeout` around its use."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.xid = 0
        self.session: Session | None = None

    @classmethod
    async def dial(cls, port: int, tls: ssl.SSLContext | None = None) -> JuteClient:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))

    @classmethod
    async def open(cls, port: int, tls: ssl.SSLContext | None = None, **connect: Any) -> JuteClient:
        client = await cls.dial(port, tls)
        client.send(connect_request(**connect))
        client.session = Session.of(await client.next_frame())
        return client

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def next_frame(self) -> bytes:
        size = int.from_bytes(await self.reader.readexactly(4), "big")
        return await self.reader.readexactly(size)

    async def next_reply(self) -> Reply:
        return Reply.of(await self.next_frame())

    async def call(self, op: int, message: Any) -> Reply:
        """Send a request and return the next frame."""
        self.xid += 1
        self.send(encode(self.xid, op, message))
        return await self.next_reply()

    async def rest(self) -> bytes:
        """Everything until the server closes, which it must."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            return
