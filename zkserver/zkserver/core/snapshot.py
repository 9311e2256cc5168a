"""Snapshots of the replicated state: exact at one zxid, written in slices while writes go on.

A snapshot holds references to all nodes, in order of creation, and to what its head needs. A node
that is about to change before it was written is saved first, as a tuple of its fields
(copy-on-write: no fork, no stop); a node that is deleted stays as it was. So the bytes are those
of the moment of `begin`, whatever happens meanwhile; ZooKeeper's snapshots are fuzzy instead
(ZOOKEEPER-3145, -3249, -3125).

    snapshot = head session* node* end
    each item: u32 length of the rest, then
    head     "H" version u16, zxid u64, sessions u32, nodes u64, secret u8+bytes
    session  "S" session_id i64, timeout_ms i32
    node     "N" czxid mzxid pzxid u64, ctime mtime i64, version creates aversion i32,
                 ephemeral_owner i64, ttl_ms i64, data length i32 (-1: null), path length u16,
                 acl (as in a Txn), path bytes, data bytes
    end      "E" nodes u64

Parents come before children, sessions before what they own. Loading is strict: everything is
there, in this order, and fits together, or nothing is loaded. Where a chunk ends means nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final

from duolog_protocol.errors import DecodeError, StorageError
from duolog_protocol.paths import parent_of, path_problem
from duolog_protocol.txns import MAX_TTL_MS, RecordReader, close_session_path_bytes, encode_acl

from .datatree import CONTAINER_TTL, SYSTEM_PATHS, DataTree, Node
from .quota import Quotas
from .session_tracker import Session
from .state import ReplicatedState

FORMAT_VERSION: Final = 1
MAX_ITEM_BYTES: Final = 16 * 1024 * 1024
_LENGTH: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(">BHQIQB")
_SESSION: Final = struct.Struct(">Bqi")
_NODE: Final = struct.Struct(">BQQQqqiiiqqiH")
_END: Final = struct.Struct(">BQ")
_H, _S, _N, _E = b"HSNE"

Row = tuple[Any, ...]


class Snapshot:
    """A view of the state at `zxid`. Close it when done or given up."""

    def __init__(self, state: ReplicatedState) -> None:
        assert state.tree.snapshot is None, "a snapshot is running already"
        self.zxid = state.last_applied_zxid
        self._tree = state.tree
        self._nodes = list(state.tree.nodes.values())
        self._sessions = [
            (session.session_id, session.opened_timeout_ms) for session in state.sessions.values()
        ]
        self._secret = state.secret
        self._saved: dict[Node, Row] = {}
        state.tree.snapshot = self

    def save(self, node: Node) -> None:
        """The tree is about to change a node."""
        if node.saved_by is not self and node.czxid <= self.zxid:
            node.saved_by = self
            self._saved[node] = _row(node)

    def chunks(self, max_bytes: int) -> Iterator[bytes]:
        """The bytes, in chunks of about `max_bytes`; may be advanced between steps."""
        pieces: list[bytes] = []
        size = 0
        for item in self._items():
            pieces.append(_LENGTH.pack(len(item)))
            pieces.append(item)
            size += _LENGTH.size + len(item)
            if size >= max_bytes:
                yield b"".join(pieces)
                pieces.clear()
                size = 0
        if pieces:
            yield b"".join(pieces)

    def close(self) -> None:
        """Nothing needs to be saved for this snapshot any more. Idempotent."""
        if self._tree.snapshot is self:
            self._tree.snapshot = None
        self._nodes = []
        self._saved.clear()

    def _items(self) -> Iterator[bytes]:
        nodes = self._nodes
        count = len(nodes)
        secret = self._secret
        yield (
            _HEAD.pack(_H, FORMAT_VERSION, self.zxid, len(self._sessions), count, len(secret))
            + secret
        )
        for session_id, timeout_ms in self._sessions:
            yield _SESSION.pack(_S, session_id, timeout_ms)
        for node in nodes:
            if node.saved_by is self:
                yield _encode_row(self._saved.pop(node))
            else:
                node.saved_by = self
                yield _encode_row(_row(node))
        yield _END.pack(_E, count)


def _row(node: Node) -> Row:
    return (
        node.czxid,
        node.mzxid,
        node.pzxid,
        node.ctime,
        node.mtime,
        node.version,
        node.creates,
        node.aversion,
        node.ephemeral_owner,
        node.ttl_ms,
        node.path,
        node.acl,
        node.data,
    )


def _encode_row(row: Row) -> bytes:
    *numbers, path, acl, data = row
    raw = path.encode()
    size = -1 if data is None else len(data)
    head = _NODE.pack(_N, *numbers, size, len(raw))
    return b"".join((head, encode_acl(acl), raw, data or b""))


def load_snapshot(chunks: Iterable[bytes]) -> ReplicatedState:
    """The state of a snapshot. Raises StorageError for anything but a whole, consistent one."""
    try:
        return _load(_items_of(chunks))
    except (DecodeError, AssertionError, KeyError) as error:
        raise StorageError(f"snapshot is damaged: {error}") from error


def _items_of(chunks: Iterable[bytes]) -> Iterator[RecordReader]:
    rest = b""
    for chunk in chunks:
        buffer = rest + chunk if rest else chunk
        position = 0
        while len(buffer) - position >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, position)
            if size > MAX_ITEM_BYTES:
                raise DecodeError(f"an item of {size} bytes is over the limit {MAX_ITEM_BYTES}")
            start = position + _LENGTH.size
            if start + size > len(buffer):
                break
            yield RecordReader(buffer, start, start + size)
            position = start + size
        rest = buffer[position:]
    if rest:
        raise DecodeError(f"{len(rest)} bytes of an incomplete item at the end")


def _open(
    items: Iterator[RecordReader], layout: struct.Struct, tag: int
) -> tuple[RecordReader, tuple[Any, ...]]:
    """The next item, which must be of a kind, and its fields of fixed size."""
    reader = next(items, None)
    if reader is None:
        raise DecodeError("it ends before its last item")
    found, *fields = reader.fields(layout)
    if found != tag:
        raise DecodeError(f"an item of kind {found:#x} where {tag:#x} is expected")
    return reader, tuple(fields)


def _load(items: Iterator[RecordReader]) -> ReplicatedState:
    reader, fields = _open(items, _HEAD, _H)
    version, zxid, session_count, node_count, secret_size = fields
    if version != FORMAT_VERSION:
        raise DecodeError(f"format version {version} is not {FORMAT_VERSION}")
    if zxid >> 63:
        raise DecodeError(f"zxid {zxid:#x} has the highest bit set")
    state = ReplicatedState()
    state.tree = DataTree()
    state.last_applied_zxid = zxid
    state.secret = reader.take(secret_size)
    reader.done()
    last_id = 0
    for _ in range(session_count):
        reader, (session_id, timeout_ms) = _open(items, _SESSION, _S)
        reader.done()
        if not last_id < session_id <= zxid or timeout_ms <= 0:
            raise DecodeError(f"session {session_id:#x} with timeout {timeout_ms} is impossible")
        state.sessions[session_id] = Session(session_id, timeout_ms)
        last_id = session_id
    for _ in range(node_count):
        reader, fields = _open(items, _NODE, _N)
        _load_node(state, reader, fields)
        reader.done()
    reader, (count,) = _open(items, _END, _E)
    reader.done()
    if count != node_count:
        raise DecodeError(f"the end counts {count} nodes, the head {node_count}")
    if next(items, None) is not None:
        raise DecodeError("there are items after the last one")
    for path in SYSTEM_PATHS:
        if path not in state.tree.nodes:
            raise DecodeError(f"{path} is missing")
    state.quotas = Quotas(state.tree)
    return state


def _load_node(state: ReplicatedState, reader: RecordReader, fields: tuple[Any, ...]) -> None:
    czxid, mzxid, pzxid, ctime, mtime, version, creates, aversion, *rest = fields
    owner, ttl_ms, size, path_size = rest
    acl = reader.acl()
    path = reader.text(path_size)
    data = reader.data(size)
    nodes = state.tree.nodes
    problem = path_problem(path)
    if problem is not None or path in nodes:
        raise DecodeError(f"{path!r}: {problem or 'it is there twice'}")
    if max(czxid, mzxid, pzxid) > state.last_applied_zxid or version == -1:
        raise DecodeError(f"{path!r}: a Stat that cannot be")
    if ttl_ms and (owner or not CONTAINER_TTL <= ttl_ms <= MAX_TTL_MS):
        raise DecodeError(f"{path!r}: a time to live of {ttl_ms} ms cannot be")
    if path != "/":
        parent = nodes.get(parent_of(path))
        if parent is None or parent.ephemeral_owner:
            raise DecodeError(f"{path!r}: its parent is missing, or an ephemeral")
    node = Node(path, data, acl, owner, czxid, ctime, ttl_ms)
    # Numbers that are equal are one object, as they were when the node was made.
    if mzxid != czxid:
        node.mzxid = mzxid
    if pzxid != czxid:
        node.pzxid = pzxid
    if mtime != ctime:
        node.mtime = mtime
    node.version = version
    node.creates = creates
    node.aversion = aversion
    if owner:
        session = state.sessions.get(owner)
        if session is None:
            raise DecodeError(f"{path!r}: its owner, session {owner:#x}, is missing")
        session.ephemerals[path] = None
        session.ephemeral_bytes += close_session_path_bytes(path)
        state.ephemeral_count += 1
    state.tree.insert(node)
