"""`zkserver log dump`, `zkserver snapshot dump` and `zkserver export`: what is in the files.

Owns the readable form of transactions and of a tree. Nothing is changed. A damaged log is shown up
to the damage, which is then told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from duolog_protocol.errors import CorruptRecordError, DataDirectoryError
from duolog_protocol.txns import Body, CloseReason, Txn, TxnKind
from duolog_protocol.types import Acl
from duolog_runtime.files import Files
from zkserver.core.datatree import CONTAINER_TTL, Node
from zkserver.core.state import ReplicatedState
from zkserver.storage.file_header import Identity, read_header
from zkserver.storage.inspection import LogScan
from zkserver.storage.snapshot import SNAPSHOT_MAGIC, newest_valid, snapshot_name
from zkserver.storage.txnlog import log_files, log_name

from .json_lines import encode_data, hex64
from .read_only import decode, load_named, require_identity

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PERMS: Final = ((4, "c"), (8, "d"), (1, "r"), (2, "w"), (16, "a"))
_KINDS: Final[dict[int, str]] = {
    value: name.lower() for name, value in vars(TxnKind).items() if isinstance(value, int)
}


def log_paths(files: Files, path: str) -> list[str]:
    """The log files that a path means: itself, or those of a directory, oldest first."""
    try:
        names = files.list(path)
    except NotADirectoryError:
        return [path]
    found = [f"{path.rstrip('/')}/{log_name(base)}" for base in log_files(files, path)]
    if not found:
        raise DataDirectoryError(f"{path} holds no log file, only {names[:3]}")
    return found


def read_txns(
    files: Files, paths: Iterable[str], first: int, last: int, note: Callable[[str], None]
) -> Iterator[Txn]:
    """The transactions with zxids in [first, last] of log files.

    `note` hears of a torn tail. Raises CorruptRecordError, StorageError.
    """
    for path in paths:
        scan = LogScan(files, path, None, live=True)
        try:
            if scan.base >= last:
                return
            for group in scan.groups():
                if group.last_zxid < first:
                    continue
                for record in group.records(path):
                    txn = decode(record)
                    if txn.zxid > last:
                        return
                    if txn.zxid >= first:
                        yield txn
        finally:
            scan.close()
        if scan.is_torn:
            note(f"{path}: a half-written group at byte {scan.end} was never acknowledged")


def txn_fields(txn: Txn, *, with_data: bool) -> dict[str, Any]:
    """A transaction as a line of JSON."""
    return {
        "zxid": hex64(txn.zxid),
        "time_ms": txn.wall_ms,
        "session": hex64(txn.session_id),
        "correlation_id": txn.correlation_id,
        **_body_fields(txn.body, with_data),
    }


def txn_text(txn: Txn, *, with_data: bool) -> str:
    """A transaction as a line to read."""
    return (
        f"{hex64(txn.zxid):<13} {_time_text(txn.wall_ms)}  session {hex64(txn.session_id):<13} "
        f"{_body_text(txn.body, with_data)}"
    )


def _body_fields(body: Body, with_data: bool) -> dict[str, Any]:
    kind = body[0]
    fields: dict[str, Any] = {"kind": _KINDS[kind]}
    if kind == TxnKind.MULTI:
        fields["operations"] = [_body_fields(each, with_data) for each in body[1]]
    elif kind == TxnKind.CREATE_SESSION:
        fields["timeout_ms"] = body[1]
    elif kind == TxnKind.CLOSE_SESSION:
        fields["reason"] = "expired" if body[1] == CloseReason.EXPIRED else "closed"
        fields["paths"] = list(body[2])
    elif kind == TxnKind.ERROR:
        fields["code"] = body[1]
    elif kind == TxnKind.LEVEL:
        fields["level"] = body[1]
    elif kind == TxnKind.MEMBERS:
        fields["joint"] = bool(body[1])
        fields["members"] = body[2].decode(errors="replace").split("\n")
    elif kind == TxnKind.NEW_EPOCH:
        fields["draws_secret"] = bool(body[1])  # never the secret itself
    else:
        fields["path"] = body[1]
        fields.update(_node_fields(body, with_data))
    return fields


def _node_fields(body: Body, with_data: bool) -> dict[str, Any]:
    """What a change of one node says beside its path."""
    kind = body[0]
    if kind == TxnKind.DELETE:
        return {}
    if kind == TxnKind.CHECK:
        return {"version": body[2]}
    if kind == TxnKind.SET_DATA:
        return {"version": body[3], **_data_fields(body[2], with_data)}
    if kind == TxnKind.SET_ACL:
        return {"acl": [list(entry) for entry in body[2]], "aversion": body[3]}
    _, _, data, acl, special, creates = body
    return {
        "acl": [list(entry) for entry in acl],
        **({"ttl_ms": special} if kind == TxnKind.CREATE_TTL else {"ephemeral": bool(special)}),
        "creates": creates,
        **_data_fields(data, with_data),
    }


def _data_fields(data: bytes | None, with_data: bool) -> dict[str, Any]:
    size = {"data_length": None if data is None else len(data)}
    return {**size, **encode_data(data)} if with_data else size


def _body_text(body: Body, with_data: bool) -> str:
    fields = _body_fields(body, with_data)
    words = [str(fields.pop("kind"))]
    if "path" in fields:
        words.append(_quoted(str(fields.pop("path"))))
    if "operations" in fields:
        inner = "; ".join(_body_text(each, with_data) for each in body[1])
        return f"{words[0]} [{inner}]"
    if "acl" in fields:
        fields["acl"] = acl_text(tuple(Acl(*entry) for entry in fields["acl"]))
    for name, value in fields.items():
        if value is False:
            continue
        words.append(name if value is True else f"{name}={_value_text(value)}")
    return " ".join(words)


def _value_text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + " ".join(_quoted(str(each)) for each in value) + "]"
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """As it is where that is one word, else with quotes and escapes."""
    plain = text.isprintable() and " " not in text and text != ""
    return text if plain else ascii(text)


def acl_text(acl: tuple[Acl, ...]) -> str:
    """An ACL list as `zkCli` takes it: scheme:id:perms, with commas."""
    return ",".join(
        f"{scheme}:{who}:" + "".join(letter for bit, letter in _PERMS if perms & bit)
        for perms, scheme, who in acl
    )


def _time_text(wall_ms: int) -> str:
    try:
        return (_EPOCH + timedelta(milliseconds=wall_ms)).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    except OverflowError:
        return f"{wall_ms} ms"


def read_snapshot_state(files: Files, path: str, note: Callable[[str], None]) -> ReplicatedState:
    """The state of one snapshot: a file, or the newest good one of a directory.

    Raises CorruptRecordError, DataDirectoryError, OSError.
    """
    try:
        files.list(path)
    except NotADirectoryError:
        directory, _, name = path.rpartition("/")
        file = files.open(path)
        try:
            identity, zxid, _ = read_header(file, SNAPSHOT_MAGIC, None)
        finally:
            file.close()
        if name != snapshot_name(zxid):
            raise CorruptRecordError(path, 0, f"its header says {snapshot_name(zxid)}") from None
        return load_named(files, directory or ".", identity, zxid)
    identity = require_identity(files, path)
    return _newest(files, path, identity, note)


def _newest(
    files: Files, directory: str, identity: Identity, note: Callable[[str], None]
) -> ReplicatedState:
    found = newest_valid(files, directory, identity)
    for error in found.damaged:
        note(str(error))
    if not found.zxid:
        raise DataDirectoryError(f"{directory} holds no snapshot yet")
    return load_named(files, directory, identity, found.zxid)


def tree_text(state: ReplicatedState) -> Iterator[str]:
    """A tree to read: one node a line, children under their parents, in order of their names."""
    yield (
        f"zxid {hex64(state.last_applied_zxid)}: {len(state.tree.nodes)} nodes, "
        f"{len(state.sessions)} sessions"
    )
    for session in state.sessions.values():
        yield (
            f"session {hex64(session.session_id)}: timeout {session.opened_timeout_ms} ms, "
            f"{len(session.ephemerals)} ephemerals"
        )
    for path in sorted(state.tree.nodes, key=lambda each: each.split("/") if each != "/" else []):
        yield node_text(state.tree.nodes[path])


def node_text(node: Node) -> str:
    """One node in one line: everything of its Stat."""
    stat = node.stat()
    size = "null" if node.data is None else f"{stat.data_length} B"
    words = [
        f"{_quoted(node.path):<40} {size:>8}  v{stat.version} c{stat.cversion} a{stat.aversion}",
        f"czxid={stat.czxid:#x} mzxid={stat.mzxid:#x} pzxid={stat.pzxid:#x}",
        f"ctime={_time_text(stat.ctime)} mtime={_time_text(stat.mtime)}",
        f"children={stat.num_children}",
    ]
    if node.ephemeral_owner:
        words.append(f"ephemeral_owner={hex64(node.ephemeral_owner)}")
    if node.ttl_ms:
        words.append("container" if node.ttl_ms == CONTAINER_TTL else f"ttl_ms={node.ttl_ms}")
    words.append(f"acl={acl_text(node.acl)}")
    return " ".join(words)
