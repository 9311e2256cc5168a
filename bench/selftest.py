"""Checks the checker: `zkload_native` must pass a server that is right and fail every wrong one.

    python -m bench.selftest

A small server in this process keeps znodes in memory and speaks both dialects. It is right once,
then wrong in one way at a time, in a small part of its replies; a load generator that does not
notice would turn that bug into a benchmark result.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from typing import Final, NamedTuple, Protocol

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import (
    API_VERSIONS,
    ApiVersionsResponse,
    Feature,
    api_ranges,
    encode_error,
    encode_event,
    read_message,
    read_request,
)
from duolog_protocol.connection import ServerConnection
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.types import Stat

from . import generator
from .generator import GeneratorError
from .plan import Dialect, Jute, Kind, Native, text

EVERY: Final = 97
"""A fault shows in one reply of so many."""


class Fault(NamedTuple):
    """One way to be wrong."""

    name: str
    noticed: str
    """Part of what the generator must say about it."""
    mix: dict[Kind, int] = {Kind.GET: 3, Kind.SET: 1}  # noqa: RUF012 - never changed
    dialects: tuple[int, ...] = (Native.number, Jute.number)


_GETS: Final = {Kind.GET: 1}
_SETS: Final = {Kind.SET: 1}
_NATIVE: Final = (Native.number,)
FAULTS: Final = (
    Fault("wrong correlation id", "is due"),
    Fault("two replies swapped", "is due"),
    Fault("error code", "error code"),
    Fault("data one byte short", "wrong data", _GETS),
    Fault("one byte of data changed", "wrong data", _GETS),
    Fault("data of another znode", "wrong data", _GETS),
    Fault("data of before the set", "wrong data", _SETS),
    Fault("wrong data length in the Stat", "bytes of data"),
    Fault("czxid changed", "czxid changed"),
    Fault("mzxid from the future", "not between"),
    Fault("mzxid of the set before", "", _SETS),
    Fault("version does not rise", "", _SETS),
    Fault("version goes back", "version", {Kind.GET: 1, Kind.SET: 1}),
    Fault("zxid goes back", "on one connection"),
    Fault("set forgotten", "version"),
    Fault("frame one byte too long", "malformed"),
    Fault("frame one byte too short", "malformed"),
    Fault("one field too many", "number of fields", dialects=_NATIVE),
    Fault("correlation id in fewer bytes", "five bytes", dialects=_NATIVE),
    Fault("header longer than the frame", "longer than the frame", dialects=_NATIVE),
    Fault("an event that nobody asked for", "is due", dialects=_NATIVE),
    Fault("one reply missing", "is due"),
    Fault("no replies any more", "no reply"),
    Fault("connection closed", "lost"),
    Fault("no session", "no id"),
)


class Znode:
    """Data and Stat of one znode."""

    def __init__(self, data: bytes, zxid: int) -> None:
        now_ms = int(time.time() * 1000)
        self.data, self.before = data, data
        self.stat = Stat(zxid, zxid, now_ms, now_ms, 0, 0, 0, 0, len(data), 0, zxid)


class Replier(Protocol):
    """Encodes replies in one dialect; each returns one whole frame."""

    def created(self, correlation_id: int, zxid: int, path: str, stat: Stat) -> bytes:
        """To a create."""

    def read(self, correlation_id: int, zxid: int, stat: Stat, data: bytes) -> bytes:
        """To a get."""

    def changed(self, correlation_id: int, zxid: int, stat: Stat) -> bytes:
        """To a set."""

    def failed(self, correlation_id: int, zxid: int) -> bytes:
        """To anything."""

    def closed(self, correlation_id: int, zxid: int) -> bytes:
        """To the end of the session."""


class NativeReplier:
    """Replies in native frames, by the project's own codec."""

    def created(self, correlation_id: int, zxid: int, path: str, stat: Stat) -> bytes:
        message = zk.CreateResponse(path, stat)
        return b"".join(zk.CREATE.encode_response(correlation_id, zxid, message, 0))

    def read(self, correlation_id: int, zxid: int, stat: Stat, data: bytes) -> bytes:
        message = zk.GetDataResponse(stat, data)
        return b"".join(zk.GET_DATA.encode_response(correlation_id, zxid, message, 0))

    def changed(self, correlation_id: int, zxid: int, stat: Stat) -> bytes:
        message = zk.StatResponse(stat)
        return b"".join(zk.SET_DATA.encode_response(correlation_id, zxid, message, 0))

    def failed(self, correlation_id: int, zxid: int) -> bytes:
        return b"".join(encode_error(correlation_id, ZkErrorCode.SYSTEM_ERROR, zxid, "broken"))

    def closed(self, correlation_id: int, zxid: int) -> bytes:
        return b"".join(zk.CLOSE_SESSION.encode_response(correlation_id, zxid, zk.Empty(), 0))


class JuteReplier:
    """Replies as Apache ZooKeeper's."""

    def _frame(self, xid: int, zxid: int, error: int, body: bytes = b"") -> bytes:
        return text(struct.pack(">Iqi", xid, zxid, error) + body)

    def created(self, correlation_id: int, zxid: int, path: str, stat: Stat) -> bytes:
        return self._frame(correlation_id, zxid, 0, text(path.encode()))

    def read(self, correlation_id: int, zxid: int, stat: Stat, data: bytes) -> bytes:
        return self._frame(correlation_id, zxid, 0, text(data) + _jute_stat(stat))

    def changed(self, correlation_id: int, zxid: int, stat: Stat) -> bytes:
        return self._frame(correlation_id, zxid, 0, _jute_stat(stat))

    def failed(self, correlation_id: int, zxid: int) -> bytes:
        return self._frame(correlation_id, zxid, ZkErrorCode.SYSTEM_ERROR)

    def closed(self, correlation_id: int, zxid: int) -> bytes:
        return self._frame(correlation_id, zxid, 0)


def _jute_stat(stat: Stat) -> bytes:
    return struct.pack(">qqqqiiiqiiq", *stat)


class FaultyServer:
    """Znodes in memory, and one fault (none where its name is empty)."""

    def __init__(self, fault: str, replier: Replier) -> None:
        self.fault = fault
        self.replier = replier
        self.zxid = 1
        self.nodes: dict[str, Znode] = {}
        self._held: bytes | None = None
        self._calls = 0
        self._silent = False

    def hit(self, name: str) -> bool:
        """Whether to be wrong in this way now: rarely, and only where it is the fault at work."""
        if self.fault != name:
            return False
        self._calls += 1
        return self._calls % EVERY == 0

    def create(self, correlation_id: int, path: str, data: bytes) -> bytes:
        """A new znode. Never wrong: the faults concern the load."""
        self.zxid += 1
        node = self.nodes[path] = Znode(data, self.zxid)
        return self.replier.created(correlation_id, self.zxid, path, node.stat)

    def close(self, correlation_id: int) -> bytes:
        """The end of a session."""
        return self.replier.closed(correlation_id, self.zxid)

    def get(self, correlation_id: int, path: str) -> bytes:
        """Data and Stat."""
        node = self.nodes[path]
        data, stat = node.data, node.stat
        if self.hit("data one byte short"):
            data = data[:-1]
        if self.hit("one byte of data changed"):
            data = data[:40] + bytes([data[40] ^ 1]) + data[41:]
        if self.hit("data of another znode"):
            others = (each.data for each in self.nodes.values() if each.data != data)
            data = next(other for other in others if len(other) == len(data))
        if self.fault == "data of before the set" and stat.version > 0:
            data = node.before
        if self.fault == "version goes back" and stat.version > 2 and self.hit(self.fault):
            stat = stat._replace(version=1)
        return self._spoiled(correlation_id, stat, data)

    def set(self, correlation_id: int, path: str, data: bytes) -> bytes:
        """New data."""
        node = self.nodes[path]
        self.zxid += 1
        old = node.stat
        stat = old._replace(mzxid=self.zxid, version=old.version + 1, data_length=len(data))
        if not self.hit("set forgotten"):
            node.data, node.stat = data, stat
        if old.version > 0 and self.hit("mzxid of the set before"):
            stat = stat._replace(mzxid=old.mzxid)
        if old.version > 0 and self.hit("version does not rise"):
            stat = stat._replace(version=old.version)
        return self._spoiled(correlation_id, stat, None)

    def _spoiled(self, correlation_id: int, stat: Stat, data: bytes | None) -> bytes:
        """The reply, wrong in those ways that any reply can be."""
        zxid = self.zxid
        if self.hit("wrong correlation id"):
            correlation_id += 1
        if self.hit("wrong data length in the Stat"):
            stat = stat._replace(data_length=7)
        if self.hit("czxid changed"):
            stat = stat._replace(czxid=stat.czxid + 1)
        if stat.version > 0 and self.hit("mzxid from the future"):
            stat = stat._replace(mzxid=zxid + 10)
        if self.hit("zxid goes back"):
            zxid -= 2000
        if self.hit("error code"):
            return self.replier.failed(correlation_id, zxid)
        if data is None:
            frame = self.replier.changed(correlation_id, zxid, stat)
        else:
            frame = self.replier.read(correlation_id, zxid, stat, data)
        return self._misframed(frame)

    def _misframed(self, frame: bytes) -> bytes:
        if self.hit("frame one byte too long"):
            frame = text(frame[4:] + b"x")
        if self.hit("frame one byte too short"):
            frame = text(frame[4:-1])
        if self.hit("header longer than the frame"):
            frame = frame[:4] + struct.pack(">I", len(frame)) + frame[8:]
        if self.hit("one field too many"):
            size = int.from_bytes(frame[4:8], "big") + 1
            header = bytes([frame[8] + 1]) + frame[9 : 7 + size] + b"\0"
            frame = text(struct.pack(">I", size) + header + frame[7 + size :])
        if self.hit("correlation id in fewer bytes"):
            size = int.from_bytes(frame[4:8], "big") - 2
            frame = text(struct.pack(">I", size) + frame[8:9] + b"\xcd" + frame[12:14] + frame[14:])
        if self.hit("an event that nobody asked for"):
            event = zk.WatchEvent(3, 3, "/")
            frame = b"".join(encode_event(1, self.zxid, zk.WATCH_EVENT, event)) + frame
        if self.hit("one reply missing"):
            return b""
        if self.hit("no replies any more"):
            self._silent = True
        if self._silent:
            return b""
        if self._held is not None:
            frame, self._held = frame + self._held, None
        elif self.hit("two replies swapped"):
            self._held, frame = frame, b""
        return frame


async def serve_native(
    server: FaultyServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One native connection."""
    connection = ServerConnection()
    while received := await reader.read(65536):
        connection.get_buffer()[: len(received)] = received
        replies = []
        for frame in connection.buffer_updated(len(received)):
            header = read_request(frame)
            number = header.correlation_id
            api = zk.ZK_APIS[header.api_key]
            message = read_message(api, header, frame)
            match message:
                case zk.GetDataRequest():
                    reply = server.get(number, message.path)
                case zk.SetDataRequest():
                    reply = server.set(number, message.path, message.data or b"")
                case zk.CreateRequest():
                    reply = server.create(number, message.path, message.data or b"")
                case zk.ConnectRequest():
                    session_id = 0 if server.fault == "no session" else 7
                    granted = zk.ConnectResponse(30_000, session_id, bytes(16), False, 1)
                    reply = b"".join(zk.CONNECT.encode_response(number, server.zxid, granted, 0))
                case zk.Empty():
                    reply = server.close(number)
                case _:
                    answer = ApiVersionsResponse(
                        "zkserver", "1", api_ranges(zk.ZK_APIS), (Feature("f", 1),), 1 << 21
                    )
                    reply = b"".join(API_VERSIONS.encode_response(number, 0, answer, 0))
            replies.append(reply)
        writer.write(b"".join(replies))
        if server.hit("connection closed"):
            return
        await writer.drain()


async def serve_jute(
    server: FaultyServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One ZooKeeper connection."""

    async def frame() -> bytes:
        return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))

    await frame()
    session_id = 0 if server.fault == "no session" else 7
    writer.write(text(struct.pack(">iiq", 0, 30_000, session_id) + text(bytes(16)) + b"\0"))
    while True:
        request = await frame()
        number, code = struct.unpack_from(">Ii", request)
        if code == -11:
            writer.write(server.close(number))
            await writer.drain()
            return
        (size,) = struct.unpack_from(">I", request, 8)
        path, rest = request[12 : 12 + size].decode(), request[12 + size :]
        data = rest[4 : 4 + int.from_bytes(rest[:4], "big")]
        match code:
            case 1:
                writer.write(server.create(number, path, data))
            case 4:
                writer.write(server.get(number, path))
            case _:
                writer.write(server.set(number, path, data))
        if server.hit("connection closed"):
            return
        await writer.drain()


async def verdict(fault: str, mix: dict[Kind, int], dialect: Dialect) -> str | None:
    """What the generator says about a server with this fault; None when it passes it."""
    native = dialect.number == Native.number
    server = FaultyServer(fault, NativeReplier() if native else JuteReplier())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await (serve_native if native else serve_jute)(server, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the generator ended: that is how most of these runs go
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        await asyncio.to_thread(
            generator.run,
            port,
            dialect,
            mix,
            connections=3,
            outstanding=16,
            keys=20,
            seconds=0.2,
            warmup_s=0,
            patience_s=0.5,
        )
    except GeneratorError as error:
        return str(error)
    finally:
        listener.close()
    return None


async def check_all() -> int:
    """Run every fault in every dialect that can have it; how many went unnoticed."""
    failures = 0
    for dialect in (Native(), Jute()):
        name = type(dialect).__name__.lower()
        for mix in ({Kind.GET: 1}, {Kind.SET: 1}, {Kind.GET: 3, Kind.SET: 1}):
            said = await verdict("", mix, dialect)
            failures += said is not None
            kinds = "+".join(kind.name.lower() for kind in mix)
            print(
                f"{'ok  ' if said is None else 'FAIL'} {name:6} right, {kinds}: {said or 'passed'}"
            )
        for fault in FAULTS:
            if dialect.number not in fault.dialects:
                continue
            said = await verdict(fault.name, fault.mix, dialect)
            noticed = said is not None and fault.noticed in said and "exit 1" in said
            failures += not noticed
            print(f"{'ok  ' if noticed else 'FAIL'} {name:6} {fault.name}: {said or 'PASSED'}")
    return failures


def main() -> int:
    """Run the self-test; the exit status."""
    if generator.compiler() is None:
        print("FAIL: a C compiler is needed: install one as cc, or name it in $CC")
        return 1
    failures = asyncio.run(check_all())
    print(f"{failures} of the checks failed" if failures else "the generator notices every fault")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
