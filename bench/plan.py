"""Plans for `zkload_native`: encoded requests, and what their replies must say.

A plan is all that the generator knows about a server: it never sees a path or a message class.

    plan    = "DZL1" dialect:u8 nodes hello setup verify farewell connections
    dialect = 0 native frames | 1 ZooKeeper's jute
    nodes   = count:u32 *(path:text before:text after:text)
    hello, setup, verify, farewell = ops
    connections = count:u32 *ops                   ; the ring that each of them repeats
    ops     = count:u32 *(kind:u8 node:u32 correlation_at:u32 request:text)
    text    = size:u32 bytes

All integers big-endian. `correlation_at` is where in the request the generator writes a u32;
0xffffffff means nowhere. `hello` is sent on every connection, `setup` and `verify` on the first.
A znode holds `before` when it is created and `after` once it was set.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import API_VERSIONS, AnyApi, ApiVersionsRequest
from duolog_protocol.preamble import PREAMBLE
from duolog_protocol.types import Acl

_U32: Final = struct.Struct(">I")
_OP: Final = struct.Struct(">BII")
_NOWHERE: Final = 0xFFFFFFFF
_PROBES: Final = (0x01010101, 0x02020202)
SESSION_TIMEOUT_MS: Final = 30_000
OPEN_ACL: Final = (Acl(31, "world", "anyone"),)
RING: Final = 1024
"""Requests that a connection repeats."""


class Kind(IntEnum):
    """What is asked, and so what the reply must look like."""

    VERSIONS = 0
    CONNECT = 1
    CREATE = 2
    GET = 3
    SET = 4
    FINAL_GET = 5
    CLOSE = 6


class Node(NamedTuple):
    """A znode of the run."""

    path: str
    before: bytes
    after: bytes


class Op(NamedTuple):
    """An encoded request."""

    kind: Kind
    node: int
    correlation_at: int
    request: bytes


class Dialect(Protocol):
    """How requests are encoded for one kind of server."""

    number: int

    def hello(self) -> list[Op]:
        """What opens a session."""

    def create(self, node: int, path: str, data: bytes) -> Op:
        """A persistent znode, open to all."""

    def get(self, node: int, path: str, kind: Kind) -> Op:
        """Data and Stat, without a watch."""

    def set(self, node: int, path: str, data: bytes) -> Op:
        """New data at any version."""

    def close(self) -> Op:
        """The end of the session."""


def find_correlation_id(encode: Callable[[int], bytes]) -> tuple[bytes, int]:
    """A request and where its correlation id is, found by encoding it with two different ones."""
    one, two = (encode(probe) for probe in _PROBES)
    at = next(place for place, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)
    assert one[at : at + 4] == _U32.pack(_PROBES[0]), one[:100]
    assert one[:at] + _U32.pack(_PROBES[1]) + one[at + 4 :] == two, one[:100]
    return one, at


class Native:
    """duolog's frames, encoded by the project's own codec."""

    number = 0

    def _op(self, kind: Kind, node: int, api: AnyApi, message: object, before: bytes = b"") -> Op:
        def encode(correlation_id: int) -> bytes:
            return before + b"".join(api.encode_request(correlation_id, message, 0))

        request, correlation_at = find_correlation_id(encode)
        return Op(kind, node, correlation_at, request)

    def hello(self) -> list[Op]:
        versions = ApiVersionsRequest("zkload-native", "1")
        connect = zk.ConnectRequest(0, SESSION_TIMEOUT_MS, 0, b"", False)
        return [
            self._op(Kind.VERSIONS, 0, API_VERSIONS, versions, PREAMBLE),
            self._op(Kind.CONNECT, 0, zk.CONNECT, connect),
        ]

    def create(self, node: int, path: str, data: bytes) -> Op:
        message = zk.CreateRequest(path, data, OPEN_ACL, 0, -1)
        return self._op(Kind.CREATE, node, zk.CREATE, message)

    def get(self, node: int, path: str, kind: Kind) -> Op:
        return self._op(kind, node, zk.GET_DATA, zk.GetDataRequest(path, False))

    def set(self, node: int, path: str, data: bytes) -> Op:
        return self._op(Kind.SET, node, zk.SET_DATA, zk.SetDataRequest(path, data, -1))

    def close(self) -> Op:
        return self._op(Kind.CLOSE, 0, zk.CLOSE_SESSION, zk.Empty())


class Jute:
    """ZooKeeper's client protocol (`zookeeper.jute`)."""

    number = 1

    def _op(self, kind: Kind, node: int, code: int, *fields: bytes) -> Op:
        def encode(xid: int) -> bytes:
            return text(struct.pack(">Ii", xid, code) + b"".join(fields))

        request, correlation_at = find_correlation_id(encode)
        return Op(kind, node, correlation_at, request)

    def hello(self) -> list[Op]:
        fields = struct.pack(">iqiq", 0, 0, SESSION_TIMEOUT_MS, 0) + text(bytes(16)) + b"\0"
        return [Op(Kind.CONNECT, 0, _NOWHERE, text(fields))]

    def create(self, node: int, path: str, data: bytes) -> Op:
        acl = struct.pack(">ii", 1, 31) + text(b"world") + text(b"anyone")
        return self._op(
            Kind.CREATE, node, 1, text(path.encode()), text(data), acl, struct.pack(">i", 0)
        )

    def get(self, node: int, path: str, kind: Kind) -> Op:
        return self._op(kind, node, 4, text(path.encode()), b"\0")

    def set(self, node: int, path: str, data: bytes) -> Op:
        return self._op(Kind.SET, node, 5, text(path.encode()), text(data), struct.pack(">i", -1))

    def close(self) -> Op:
        return self._op(Kind.CLOSE, 0, -11)


def text(value: bytes) -> bytes:
    """Bytes behind their length, as in a plan and in jute."""
    return _U32.pack(len(value)) + value


def _ops(ops: list[Op]) -> bytes:
    rows = [_OP.pack(op.kind, op.node, op.correlation_at) + text(op.request) for op in ops]
    return _U32.pack(len(rows)) + b"".join(rows)


def make_nodes(rng: random.Random, keys: int, size_bytes: int) -> list[Node]:
    """A parent with a name of its own and `keys` children, whose data differ in every byte."""
    root = f"/bench-{rng.randrange(1 << 48):012x}"
    nodes = [Node(root, b"", b"")]
    for key in range(keys):
        before = rng.randbytes(size_bytes)
        nodes.append(Node(f"{root}/k{key:05}", before, bytes(255 - each for each in before)))
    return nodes


def encode_plan(
    dialect: Dialect,
    *,
    mix: dict[Kind, int],
    connections: int = 8,
    keys: int = 1000,
    size_bytes: int = 100,
    seed: int | None = None,
) -> bytes:
    """A plan in which each connection picks keys at random and kinds by the weights of `mix`."""
    rng = random.Random(seed)
    nodes = make_nodes(rng, keys, size_bytes)
    places = range(1, len(nodes))
    gets = [dialect.get(place, nodes[place].path, Kind.GET) for place in places]
    sets = [dialect.set(place, nodes[place].path, nodes[place].after) for place in places]
    sources = {Kind.GET: gets, Kind.SET: sets}

    def ring() -> list[Op]:
        kinds = rng.choices(list(mix), weights=list(mix.values()), k=RING)
        return [rng.choice(sources[kind]) for kind in kinds]

    rows = [text(each.path.encode()) + text(each.before) + text(each.after) for each in nodes]
    parts = [
        b"DZL1",
        bytes([dialect.number]),
        _U32.pack(len(nodes)) + b"".join(rows),
        _ops(dialect.hello()),
        _ops([dialect.create(place, each.path, each.before) for place, each in enumerate(nodes)]),
        _ops([dialect.get(place, nodes[place].path, Kind.FINAL_GET) for place in places]),
        _ops([dialect.close()]),
        _U32.pack(connections),
        *(_ops(ring()) for _ in range(connections)),
    ]
    return b"".join(parts)
