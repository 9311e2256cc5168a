"""From the bytes of a snapshot back to the state.

Strict: everything is there, in the order that `snapshot` gives, and fits together, or nothing is
loaded. The nodes are cut by hand, since a start with a million of them does little else.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from duolog_protocol.errors import DecodeError, StorageError
from duolog_protocol.paths import path_problem
from duolog_protocol.txns import MAX_TTL_MS, RecordReader
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl

from .datatree import CONTAINER_TTL, SYSTEM_PATHS, DataTree, Node
from .quota import Quotas
from .session_tracker import Session
from .snapshot import (
    END,
    END_TAG,
    FORMAT_VERSIONS,
    HEAD,
    HEAD_TAG,
    LENGTH,
    NODE,
    NODE_TAG,
    SESSION,
    SESSION_TAG,
)
from .state import ReplicatedState

MAX_ITEM_BYTES: Final = 16 * 1024 * 1024

Item = tuple[bytes, int, int]
"""(buffer, start, end) without its length."""


def load_snapshot(chunks: Iterable[bytes]) -> ReplicatedState:
    """The state of a snapshot. Raises StorageError for anything but a whole, consistent one."""
    try:
        return _load(_items_of(chunks))
    except (DecodeError, AssertionError, KeyError) as error:
        raise StorageError(f"snapshot is damaged: {error}") from error


def _items_of(chunks: Iterable[bytes]) -> Iterator[Item]:
    rest = b""
    unpack, prefix = LENGTH.unpack_from, LENGTH.size
    for chunk in chunks:
        buffer = rest + chunk if rest else chunk
        position, end = 0, len(buffer)
        while end - position >= prefix:
            (size,) = unpack(buffer, position)
            if size > MAX_ITEM_BYTES:
                raise DecodeError(f"an item of {size} bytes is over the limit {MAX_ITEM_BYTES}")
            start = position + prefix
            if start + size > end:
                break
            position = start + size
            yield buffer, start, position
        rest = buffer[position:]
    if rest:
        raise DecodeError(f"{len(rest)} bytes of an incomplete item at the end")


def _open(
    items: Iterator[Item], layout: struct.Struct, tag: int
) -> tuple[RecordReader, tuple[Any, ...]]:
    """The next item, which must be of a kind, and its fields of fixed size."""
    item = next(items, None)
    if item is None:
        raise DecodeError("it ends before its last item")
    reader = RecordReader(*item)
    found, *fields = reader.fields(layout)
    if found != tag:
        raise DecodeError(f"an item of kind {found:#x} where {tag:#x} is expected")
    return reader, tuple(fields)


def _load(items: Iterator[Item]) -> ReplicatedState:
    reader, fields = _open(items, HEAD, HEAD_TAG)
    version, zxid, session_count, node_count, secret_size = fields
    if version not in FORMAT_VERSIONS:
        raise DecodeError(f"format version {version} is not one of {FORMAT_VERSIONS}")
    if zxid >> 63:
        raise DecodeError(f"zxid {zxid:#x} has the highest bit set")
    state = ReplicatedState()
    state.tree = DataTree()
    state.last_applied_zxid = zxid
    state.secret = reader.take(secret_size)
    if version > 1:
        state.level = reader.take(1)[0]
    reader.done()
    for _ in range(session_count):
        reader, (session_id, timeout_ms) = _open(items, SESSION, SESSION_TAG)
        reader.done()
        if session_id == 0 or session_id in state.sessions or timeout_ms <= 0:
            raise DecodeError(f"session {session_id:#x} with timeout {timeout_ms} is impossible")
        state.sessions[session_id] = Session(session_id, timeout_ms)
    _load_nodes(state, items, node_count)
    reader, (count,) = _open(items, END, END_TAG)
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


_NODE_BYTES: Final = NODE.size


def _load_nodes(state: ReplicatedState, items: Iterator[Item], count: int) -> None:
    """Put the next `count` nodes into their places; each one's parent comes before it."""
    tree, last = state.tree, state.last_applied_zxid
    find = tree.nodes.get
    insert, unpack = tree.insert, NODE.unpack_from
    loaded = 0
    for buffer, start, end in islice(items, min(count, sys.maxsize)):
        loaded += 1
        position = start + _NODE_BYTES
        if position >= end:
            raise DecodeError(f"a node of {end - start} bytes")
        # fmt: off
        (tag, czxid, mzxid, pzxid, ctime, mtime,
         version, creates, aversion, owner, ttl_ms, size, path_size) = unpack(buffer, start)
        # fmt: on
        if tag != NODE_TAG:
            raise DecodeError(f"an item of kind {tag:#x} where {NODE_TAG:#x} is expected")
        acl: tuple[Acl, ...]
        if buffer[position] == 0:
            acl = OPEN_ACL_UNSAFE
            position += 1
        else:
            reader = RecordReader(buffer, position, end)
            acl = reader.acl()
            position = reader.position
        data_start = position + path_size
        if data_start + (size if size > 0 else 0) != end or size < -1:
            text = f"a path of {path_size} and data of {size} bytes do not fill the item"
            raise DecodeError(text)
        try:
            path = buffer[position:data_start].decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"a path is not UTF-8: {error}") from error
        parent = None
        if path != "/":
            at = path.rfind("/")
            parent = find(path[:at] if at else "/") if at >= 0 else None
            # What is below a legal path is legal if its own name is; most names surely are. The
            # root is the one path that ends with a slash: what is in "//x" is no child of it.
            if parent is None or at == 1 or path[at + 1 :] in _NO_NAMES or not _is_plain(path):
                _require_legal(path)
            if parent is None or parent.ephemeral_owner:
                raise DecodeError(f"{path!r}: its parent is missing, or an ephemeral")
        if path in tree.nodes:
            raise DecodeError(f"{path!r}: it is there twice")
        if czxid > last or mzxid > last or pzxid > last or version == -1:
            raise DecodeError(f"{path!r}: a Stat that cannot be")
        if ttl_ms and (owner or not CONTAINER_TTL <= ttl_ms <= MAX_TTL_MS):
            raise DecodeError(f"{path!r}: a time to live of {ttl_ms} ms cannot be")
        data = None if size < 0 else buffer[data_start:end]
        node = Node(path, data, acl, owner, czxid, ctime, ttl_ms)
        # Numbers that are equal are one object, as they were when the node was made.
        if mzxid != czxid:
            node.mzxid = mzxid
        if pzxid != czxid:
            node.pzxid = pzxid
        if mtime != ctime:
            node.mtime = mtime
        if version:
            node.version = version
        if creates:
            node.creates = creates
        if aversion:
            node.aversion = aversion
        if owner:
            _give_to_session(state, node)
        insert(node, parent)
    if loaded < count:
        raise DecodeError("it ends before its last node")


_NO_NAMES: Final = frozenset({"", ".", ".."})


def _is_plain(path: str) -> bool:
    """Without any character that might be illegal."""
    return path.isascii() and path.isprintable()


def _require_legal(path: str) -> None:
    problem = path_problem(path)
    if problem is not None:
        raise DecodeError(f"{path!r}: {problem}")


def _give_to_session(state: ReplicatedState, node: Node) -> None:
    """The session whose ephemeral it is has it among its own."""
    path, owner = node.path, node.ephemeral_owner
    session = state.sessions.get(owner)
    if session is None:
        raise DecodeError(f"{path!r}: its owner, session {owner:#x}, is missing")
    state.give(session, path)
