"""The readable form of a state: lines of JSON. Pure.

    {"format": "zkserver-export", "version": 1, "zxid": ..., "sessions": n, "nodes": n}
    {"session": ..., "timeout_ms": ...}                              n times
    {"path": ..., "data": ..., "acl": [...], "stat": {...}, ...}     n times, parents first
    {"end": true, "sessions": n, "nodes": n}

Owns the fields of every line and their checks; `docs/zkserver-tools.md` describes them for people.
Zxids and session ids are hexadecimal strings, since many readers of JSON take numbers for doubles.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from duolog_protocol.errors import StorageError
from duolog_protocol.paths import parent_of
from duolog_protocol.txns import MAX_TTL_MS
from duolog_protocol.types import Acl
from zkserver.core.datatree import CONTAINER_TTL, SYSTEM_PATHS, DataTree, Node
from zkserver.core.quota import Quotas
from zkserver.core.session_tracker import Session
from zkserver.core.state import ReplicatedState

from .limits import acl_problem, node_problem

FORMAT: Final = "zkserver-export"
VERSION: Final = 1
_UNREADABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HEX: Final = re.compile("0x[0-9a-f]{1,16}")
_INT32: Final = (-(1 << 31), (1 << 31) - 1)
_INT64: Final = (-(1 << 63), (1 << 63) - 1)
_ZXIDS: Final = ("czxid", "mzxid", "pzxid")
_TIMES: Final = ("ctime", "mtime")
_COUNTERS: Final = ("version", "aversion", "creates")


def hex64(value: int) -> str:
    """A zxid or a session id, as ZooKeeper prints it."""
    return f"{value & ((1 << 64) - 1):#x}"


def encode_data(data: bytes | None) -> dict[str, Any]:
    """The field for data: "data" where it is readable text or null, else "data64"."""
    if data is None:
        return {"data": None}
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if _UNREADABLE.search(text):
        return {"data64": base64.b64encode(data).decode()}
    return {"data": text}


def node_line(node: Node) -> dict[str, Any]:
    """A node. What its Stat derives from others is there for the reader only."""
    stat = node.stat()
    return {
        "path": node.path,
        **encode_data(node.data),
        "acl": [list(entry) for entry in node.acl],
        "ttl_ms": node.ttl_ms,
        "ephemeral_owner": hex64(node.ephemeral_owner) if node.ephemeral_owner else None,
        "stat": {
            "czxid": hex64(stat.czxid),
            "mzxid": hex64(stat.mzxid),
            "pzxid": hex64(stat.pzxid),
            "ctime": stat.ctime,
            "mtime": stat.mtime,
            "version": stat.version,
            "aversion": stat.aversion,
            "creates": node.creates,
            "cversion": stat.cversion,
            "data_length": stat.data_length,
            "num_children": stat.num_children,
        },
    }


def state_lines(state: ReplicatedState) -> Iterator[dict[str, Any]]:
    """A whole state, in order."""
    counts = {"sessions": len(state.sessions), "nodes": len(state.tree.nodes)}
    yield {"format": FORMAT, "version": VERSION, "zxid": hex64(state.last_applied_zxid), **counts}
    for session in state.sessions.values():
        yield {"session": hex64(session.session_id), "timeout_ms": session.opened_timeout_ms}
    for node in state.tree.nodes.values():
        yield node_line(node)
    yield {"end": True, **counts}


def dump_line(line: dict[str, Any]) -> str:
    """One line of text, its end included."""
    return json.dumps(line, ensure_ascii=False) + "\n"


class LineError(StorageError):
    """A line is not what it must be."""


def parse_state(lines: Iterable[str]) -> ReplicatedState:
    """The state of a whole dump. Raises StorageError that names the line."""
    number = 0

    def numbered() -> Iterator[dict[str, Any]]:
        nonlocal number
        for text in lines:
            number += 1
            if text.strip():
                yield _object(text)

    try:
        return _Parser(numbered()).state()
    except LineError as error:
        raise StorageError(f"line {number}: {error}") from None


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LineError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise LineError("not a JSON object")
    return found


class _Parser:
    """Lines, front to back, to a state."""

    def __init__(self, lines: Iterator[dict[str, Any]]) -> None:
        self._lines = lines

    def state(self) -> ReplicatedState:
        head = self._next()
        if head.get("format") != FORMAT:
            raise LineError(f'the first line must say "format": "{FORMAT}"')
        if head.get("version") != VERSION:
            raise LineError(f"version {head.get('version')!r}; only {VERSION} is known")
        state = ReplicatedState()
        state.tree = DataTree()
        state.last_applied_zxid = _hex(head, "zxid")
        session_count = _integer(head, "sessions", 0, _INT64[1])
        node_count = _integer(head, "nodes", 0, _INT64[1])
        for _ in range(session_count):
            self._session(state, self._next())
        for _ in range(node_count):
            self._node(state, self._next())
        end = self._next()
        if end.get("end") is not True:
            raise LineError('the last line must say "end": true')
        if next(self._lines, None) is not None:
            raise LineError("there are lines after the last one")
        state.quotas = Quotas(state.tree)
        for path in SYSTEM_PATHS:
            if path not in state.tree.nodes:
                raise LineError(f"{path} is missing")
        return state

    def _next(self) -> dict[str, Any]:
        line = next(self._lines, None)
        if line is None:
            raise LineError("the dump ends before its last line")
        return line

    @staticmethod
    def _session(state: ReplicatedState, line: dict[str, Any]) -> None:
        session_id = _session_id(line, "session")
        if session_id in state.sessions:
            raise LineError(f"session {hex64(session_id)} is there twice")
        timeout_ms = _integer(line, "timeout_ms", 1, _INT32[1])
        state.sessions[session_id] = Session(session_id, timeout_ms)

    @staticmethod
    def _node(state: ReplicatedState, line: dict[str, Any]) -> None:
        path = line.get("path")
        if not isinstance(path, str):
            raise LineError('"path" is missing')
        data = _data(line)
        problem = node_problem(path, data)
        if problem is not None:
            raise LineError(problem)
        nodes = state.tree.nodes
        if path in nodes:
            raise LineError(f"{path} is there twice")
        if path != "/":
            parent = nodes.get(parent_of(path))
            if parent is None or parent.ephemeral_owner:
                raise LineError(f"the parent of {path} is not in a line before, or an ephemeral")
        stat = line.get("stat")
        if not isinstance(stat, dict):
            raise LineError('"stat" is missing')
        zxids = {name: _hex(stat, name) for name in _ZXIDS}
        latest = max(zxids.values())
        if latest > state.last_applied_zxid:
            raise LineError(f"{path} has zxid {latest:#x}, above that of the whole")
        ttl_ms = _integer(line, "ttl_ms", CONTAINER_TTL, MAX_TTL_MS) if "ttl_ms" in line else 0
        owner = _session_id(line, "ephemeral_owner") if line.get("ephemeral_owner") else 0
        if owner and ttl_ms:
            raise LineError(f"{path} cannot be both ephemeral and have a ttl_ms")
        node = Node(path, data, _acl(line), owner, zxids["czxid"], 0, ttl_ms)
        for name, value in zxids.items():
            setattr(node, name, value)
        for name in _TIMES:
            setattr(node, name, _integer(stat, name, *_INT64))
        for name in _COUNTERS:
            setattr(node, name, _integer(stat, name, *_INT32))
        if owner:
            session = state.sessions.get(owner)
            if session is None:
                raise LineError(f"{path} belongs to session {hex64(owner)}, which has no line")
            state.give(session, path)
        state.tree.put(node)


def _data(line: dict[str, Any]) -> bytes | None:
    if ("data" in line) == ("data64" in line):
        raise LineError('there must be "data" or "data64"')
    value = line.get("data64", line.get("data"))
    if value is None and "data" in line:
        return None
    if not isinstance(value, str):
        raise LineError("data must be a string or null")
    try:
        data = base64.b64decode(value, validate=True) if "data64" in line else value.encode()
    except (binascii.Error, ValueError) as error:
        raise LineError(f"data cannot be decoded: {error}") from None
    return data


def _acl(line: dict[str, Any]) -> tuple[Acl, ...]:
    entries = line.get("acl")
    if not isinstance(entries, list) or not entries:
        raise LineError('"acl" must be a list that is not empty')
    found = []
    for entry in entries:
        match entry:
            case [int(perms), str(scheme), str(who)] if not isinstance(perms, bool):
                found.append(Acl(perms, scheme, who))
            case _:
                raise LineError(f"the ACL entry {entry!r} is not [perms, scheme, id]")
    acl = tuple(found)
    problem = acl_problem(acl)
    if problem is not None:
        raise LineError(problem)
    return acl


def _hex(line: dict[str, Any], name: str) -> int:
    value = line.get(name)
    if not isinstance(value, str) or not _HEX.fullmatch(value) or int(value, 16) > _INT64[1]:
        raise LineError(f'"{name}" must be a zxid such as "0x10000000a", not {value!r}')
    return int(value, 16)


def _session_id(line: dict[str, Any], name: str) -> int:
    value = line.get(name)
    if not isinstance(value, str) or not _HEX.fullmatch(value) or not int(value, 16):
        raise LineError(f'"{name}" must be a session id such as "0x10000000a", not {value!r}')
    number = int(value, 16)
    return number - (1 << 64) if number >> 63 else number


def _integer(line: dict[str, Any], name: str, low: int, high: int) -> int:
    value = line.get(name)
    if type(value) is not int or not low <= value <= high:
        raise LineError(f'"{name}" must be a whole number in [{low}, {high}], not {value!r}')
    return value
