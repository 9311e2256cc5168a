"""Snapshots of the replicated state: exact at one zxid, written in slices while writes go on.

A snapshot holds references to all nodes, in order of creation, and to what its head needs. A node
that is about to change before it was written is saved first, as a tuple of its fields
(copy-on-write: no fork, no stop); a node that is deleted stays as it was. So the bytes are those
of the moment of `begin`, whatever happens meanwhile; ZooKeeper's snapshots are fuzzy instead
(ZOOKEEPER-3145, -3249, -3125).

    snapshot = head session* node* end
    each item: u32 length of the rest, then
    head     "H" version u16, zxid u64, sessions u32, nodes u64, secret u8+bytes, level u8 (2 only)
    session  "S" session_id i64, timeout_ms i32
    node     "N" czxid mzxid pzxid u64, ctime mtime i64, version creates aversion i32,
                 ephemeral_owner i64, ttl_ms i64, data length i32 (-1: null), path length u16,
                 acl (as in a Txn), path bytes, data bytes
    end      "E" nodes u64

Parents come before children, sessions before what they own. Where a chunk ends means nothing.
`snapshot_loading` reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

from duolog_protocol.txns import encode_acl

from .datatree import Node
from .state import ReplicatedState

FORMAT_VERSIONS: Final = (1, 2)
"""The second one has the feature level, and is written from level 1 on: older servers read the
first one."""
LENGTH: Final = struct.Struct(">I")
HEAD: Final = struct.Struct(">BHQIQB")
SESSION: Final = struct.Struct(">Bqi")
NODE: Final = struct.Struct(">BQQQqqiiiqqiH")
END: Final = struct.Struct(">BQ")
HEAD_TAG, SESSION_TAG, NODE_TAG, END_TAG = b"HSNE"

Row = tuple[Any, ...]


class Snapshot:
    """A view of the state at `zxid`. Close it when done or given up."""

    def __init__(self, state: ReplicatedState) -> None:
        assert state.tree.snapshot is None, "a snapshot is running already"
        assert not state.members_are_joint, "the members are about to change"
        self.zxid = state.last_applied_zxid
        self._tree = state.tree
        self._nodes = list(state.tree.nodes.values())
        self._sessions = [
            (session.session_id, session.opened_timeout_ms) for session in state.sessions.values()
        ]
        self._secret = state.secret
        self._level = state.level
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
            pieces.append(LENGTH.pack(len(item)))
            pieces.append(item)
            size += LENGTH.size + len(item)
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
        self._sessions = []
        self._saved.clear()

    def _items(self) -> Iterator[bytes]:
        nodes = self._nodes
        count = len(nodes)
        secret = self._secret
        version = FORMAT_VERSIONS[min(self._level, 1)]
        yield (
            HEAD.pack(HEAD_TAG, version, self.zxid, len(self._sessions), count, len(secret))
            + secret
            + (bytes([self._level]) if version > 1 else b"")
        )
        for session_id, timeout_ms in self._sessions:
            yield SESSION.pack(SESSION_TAG, session_id, timeout_ms)
        for node in nodes:
            if node.saved_by is self:
                yield _encode_row(self._saved.pop(node))
            else:
                node.saved_by = self
                yield _encode_row(_row(node))
        yield END.pack(END_TAG, count)


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
    head = NODE.pack(NODE_TAG, *numbers, size, len(raw))
    return b"".join((head, encode_acl(acl), raw, data or b""))
