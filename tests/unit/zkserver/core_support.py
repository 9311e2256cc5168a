"""A core with clients, driven without loop, socket or disk.

The log is a list; `sync` makes all of it durable, `refuse` takes it back as a full disk does. Each
client sees what its connection was sent, decoded, in order: replies as (zxid, code, message),
events as (zxid, type, path).
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import AnyApi, read_response
from duolog_protocol.codec import cursor_of
from duolog_protocol.frames import FrameDecoder
from duolog_protocol.types import OPEN_ACL_UNSAFE, EventType
from duolog_protocol.zk_codec import NativeCodec
from duolog_protocol.zk_decoder import NativeDecoder
from zkserver.core.config import CoreConfig
from zkserver.core.connection import Connection
from zkserver.core.core import ZkCore
from zkserver.core.events import (
    Append,
    AppendRefused,
    AwaitDrain,
    Close,
    ConnectionLost,
    Drained,
    Durable,
    Effect,
    Event,
    Halt,
    PauseReading,
    Received,
    ResumeReading,
    Send,
    TimerFired,
)

WALL_MS = 1_700_000_000_000


class Reply(NamedTuple):
    """An answer; `message` is the response, or the text of an error."""

    zxid: int
    code: int
    message: Any


class Seen(NamedTuple):
    """A watch event."""

    zxid: int
    type: int
    path: str


class Client:
    """One connection, and everything that came back on it."""

    def __init__(self, server: Server, identities: tuple[tuple[str, str], ...] = ()) -> None:
        self.server = server
        codec = NativeCodec(NativeDecoder(1 << 24))
        self.connection = Connection(codec, "test", self, identities)
        self.decoder = FrameDecoder(1 << 24)
        self.asked: dict[int, AnyApi] = {}
        self.heard: list[Reply | Seen] = []
        self.order: list[int] = []
        """Correlation ids of the answers, as they came."""
        self.closed = ""
        self.session_id = 0
        self.password = bytes(16)
        self.timeout_ms = 0

    def send(self, *requests: tuple[AnyApi, Any]) -> None:
        """Send requests in one read; the answers come when they come."""
        values = []
        for api, message in requests:
            self.server.last_id += 1
            self.asked[self.server.last_id] = api
            values.append((api.key, self.server.last_id, message))
        self.server.step(Received(self.connection, values, self.server.wall_ms))

    def ask(self, api: AnyApi, message: Any) -> Reply:
        """Send one request, make everything durable and return its answer."""
        self.send((api, message))
        self.server.sync()
        return self.replies()[-1]

    def replies(self) -> list[Reply]:
        """All answers so far."""
        return [each for each in self.heard if isinstance(each, Reply)]

    def events(self) -> list[Seen]:
        """All events so far."""
        return [each for each in self.heard if isinstance(each, Seen)]

    def take(self) -> list[Reply | Seen]:
        """What came since the last call."""
        heard, self.heard = self.heard, []
        return heard

    def hear(self, data: bytes) -> None:
        for frame in self.decoder.feed(data):
            header = read_response(frame)
            if header.correlation_id == 0:
                event_type, _state, path = header.values[3:]
                self.heard.append(Seen(header.context, event_type, path))
                continue
            api = self.asked.pop(header.correlation_id)
            self.order.append(header.correlation_id)
            if header.error_code:
                message = header.values[3]
            else:
                message = api.decode_response(header.values, 0, cursor_of(frame))
            self.heard.append(Reply(header.context, header.error_code, message))

    def connect(self, timeout_ms: int = 10_000, **fields: Any) -> Reply:
        """Open a session, or attach to one."""
        request = zk.ConnectRequest(0, timeout_ms, 0, bytes(16), False)._replace(**fields)
        reply = self.ask(zk.CONNECT, request)
        if reply.code == 0:
            self.session_id = reply.message.session_id
            self.password = reply.message.password
            self.timeout_ms = reply.message.timeout_ms
        return reply

    def lose(self) -> None:
        """The connection ends."""
        self.server.step(ConnectionLost(self.connection))

    def create(self, path: str, data: bytes | None = b"", flags: int = 0, **fields: Any) -> Reply:
        request = zk.CreateRequest(path, data, OPEN_ACL_UNSAFE, flags, -1)._replace(**fields)
        return self.ask(zk.CREATE, request)

    def set(self, path: str, data: bytes | None, version: int = -1) -> Reply:
        return self.ask(zk.SET_DATA, zk.SetDataRequest(path, data, version))

    def delete(self, path: str, version: int = -1) -> Reply:
        return self.ask(zk.DELETE, zk.DeleteRequest(path, version))

    def get(self, path: str, *, watch: bool = False) -> Reply:
        return self.ask(zk.GET_DATA, zk.GetDataRequest(path, watch))

    def exists(self, path: str, *, watch: bool = False) -> Reply:
        return self.ask(zk.EXISTS, zk.ExistsRequest(path, watch))

    def children(self, path: str, *, watch: bool = False) -> Reply:
        return self.ask(zk.GET_CHILDREN, zk.GetChildrenRequest(path, watch))

    def multi(self, *ops: zk.MultiOp) -> Reply:
        return self.ask(zk.MULTI, zk.MultiRequest(ops))


def op(kind: int, path: str, data: bytes | None = None, **fields: Any) -> zk.MultiOp:
    """An operation of a multi."""
    acl = OPEN_ACL_UNSAFE if kind == zk.MultiKind.CREATE else None
    return zk.MultiOp(kind, path, data, acl, 0, -1, -1)._replace(**fields)


class Server:
    """One core and its log."""

    def __init__(self, config: CoreConfig | None = None, log: list[bytes] | None = None) -> None:
        self.config = config or CoreConfig()
        self.core = ZkCore(self.config, random.Random(5))
        self.log: list[bytes] = []
        self.unsynced: list[Append] = []
        self.now_ms = 1_000
        self.wall_ms = WALL_MS
        self.last_id = 0
        self.halted = ""
        self.paused: set[Connection] = set()
        self.undrained: list[Connection] = []
        for record in log or ():
            self.core.replay(record)
            self.log.append(record)
        epoch = (self.core.last_applied_zxid >> 32) + 1
        self.perform(self.core.start(epoch, self.now_ms, self.wall_ms))
        self.sync()

    def client(self, identities: tuple[tuple[str, str], ...] = (), **connect: Any) -> Client:
        """A client with a session."""
        client = Client(self, identities)
        client.connect(**connect)
        client.take()
        return client

    def step(self, event: Event) -> None:
        """Feed the core and check it."""
        self.perform(self.core.step(event, self.now_ms))
        self.core.check_invariants()

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Append():
                    self.unsynced.append(effect)
                case Send(connection=connection):
                    connection.link.hear(b"".join(effect.pieces))
                case Close(connection=connection, reason=reason):
                    connection.link.closed = reason
                case PauseReading(connection=connection):
                    self.paused.add(connection)
                case ResumeReading(connection=connection):
                    self.paused.discard(connection)
                case AwaitDrain(connection=connection):
                    self.undrained.append(connection)
                case Halt(reason=reason):
                    self.halted = reason

    def sync(self, count: int | None = None) -> None:
        """Make the first `count` appends durable, or all, also those that follow from it."""
        while self.unsynced and count != 0:
            append = self.unsynced.pop(0)
            self.log += append.records
            self.step(Durable(append.last_zxid))
            count = None if count is None else count - 1

    def refuse(self) -> None:
        """The disk is full: everything that is not durable is taken back."""
        first, self.unsynced = self.unsynced[0].first_zxid, []
        self.step(AppendRefused(first))

    def drain(self) -> None:
        """All sockets have taken what they were sent."""
        undrained, self.undrained = self.undrained, []
        for connection in undrained:
            self.step(Drained(connection))

    def pass_time(self, ms: int, *, step_ms: int = 500) -> None:
        """Let time pass, firing the timer as the shell would."""
        end_ms = self.now_ms + ms
        while self.now_ms < end_ms:
            self.now_ms += min(step_ms, end_ms - self.now_ms)
            self.wall_ms += step_ms
            deadline = self.core.deadline_ms()
            if deadline is not None and deadline <= self.now_ms:
                self.step(TimerFired(self.wall_ms))
                self.sync()

    def restart(self) -> Server:
        """Another server from the log of this one."""
        return Server(self.config, self.log)


CREATED, DELETED, CHANGED, CHILD = (
    int(EventType.CREATED),
    int(EventType.DELETED),
    int(EventType.CHANGED),
    int(EventType.CHILD),
)
