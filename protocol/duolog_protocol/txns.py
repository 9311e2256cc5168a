"""Transactions, and the records that the log keeps of them.

    record = zxid session_id correlation_id wall_ms kind body
    zxid           u64     epoch << 32 | counter
    session_id     i64     who asked; 0 for the server itself
    correlation_id u32
    wall_ms        i64     stamped once, by the leader
    kind           i16     a `TxnKind`

A Txn holds results, not wishes: the version after the change, the path with its suffix, the
ephemerals that a closing session takes along. Applying it cannot fail and asks no clock, so that
every server and every recovery comes to the same tree (ZooKeeper `*Txn`, ZOOKEEPER-3145).

In memory a body is a plain tuple, its kind first (a class would cost more than the rest of a
write):

    (NEW_EPOCH, secret)                     secret u8+bytes, empty when it stays
    (CREATE_SESSION, timeout_ms)            i32; the session's id is the record's zxid
    (CLOSE_SESSION, reason, paths)          u8, u32+(u16+bytes)*: its ephemerals
    (CREATE, path, data, acl, ephemeral, creates)
        creates i32, ephemeral u8, acl, path u16, data i32, path bytes, data bytes;
        `creates` is the parent's create counter afterwards
    (CREATE_CONTAINER, path, data, acl, 0, creates)         as CREATE
    (CREATE_TTL, path, data, acl, ttl_ms, creates)          as CREATE, and ttl_ms i64 in front
    (DELETE, path)                          u16+bytes
    (SET_DATA, path, data, version)         path u16, data i32 (-1: null), version i32, bytes
    (SET_ACL, path, acl, aversion)          aversion i32, path u16, acl, path bytes
    (CHECK, path, version)                  i32, u16+bytes; inside a multi only
    (MULTI, bodies)                         u16+(kind i16, u32+body)*
    (ERROR, code)                           i32: a request that failed takes a zxid, too
    (MEMBERS, is_joint, text)               u8, and the text to the end: see `/zookeeper/config`
    (LEVEL, level)                          u8

The decoder is strict: nothing may be missing or left over, and it allocates no more than the
record's own length.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from .errors import DecodeError
from .types import OPEN_ACL_UNSAFE, Acl

Body = tuple[Any, ...]


class TxnKind:
    """Kinds of Txns: ZooKeeper's operation codes where it has one."""

    CREATE_SESSION: Final = -10
    CLOSE_SESSION: Final = -11
    ERROR: Final = -1
    CREATE: Final = 1
    DELETE: Final = 2
    SET_DATA: Final = 5
    SET_ACL: Final = 7
    CHECK: Final = 13
    MULTI: Final = 14
    MEMBERS: Final = 16
    """Who belongs to the ensemble: (kind, whether old and new voters must agree, text)."""
    CREATE_CONTAINER: Final = 19
    CREATE_TTL: Final = 21
    NEW_EPOCH: Final = 32
    LEVEL: Final = 33
    """All members know the Txns and files of this feature level: (kind, level)."""


LEVEL_LAST: Final = 1
"""The highest feature level that this code knows.

0  the first one
1  MEMBERS: the members of an ensemble are in its log; snapshots that tell the level
"""


MAX_TTL_MS: Final = (1 << 40) - 1
"""Longest time to live of a TTL node (ZooKeeper `EphemeralType.TTL`)."""


MAX_TXN_BYTES: Final = 64 * 1024 * 1024
"""Longest record that any setting allows (`max_txn_bytes`); messages and files have room for it."""


class CloseReason:
    """Why a session ended."""

    CLOSED: Final = 0
    """The client asked for it."""
    EXPIRED: Final = 1


class Txn(NamedTuple):
    """A decoded record."""

    zxid: int
    session_id: int
    correlation_id: int
    wall_ms: int
    body: Body


_HEADER: Final = struct.Struct(">QqIqh")
HEADER_BYTES: Final = _HEADER.size
_SET: Final = struct.Struct(">Hii")
_HEADER_AND_SET: Final = struct.Struct(">QqIqhHii")
_CREATE: Final = struct.Struct(">iBHi")
_TTL: Final = struct.Struct(">q")
_CHECK: Final = struct.Struct(">iH")
_CLOSE: Final = struct.Struct(">BI")
_OP: Final = struct.Struct(">hI")
_U8: Final = struct.Struct(">B")
_U16: Final = struct.Struct(">H")
_I32: Final = struct.Struct(">i")
_ACL_ENTRY: Final = struct.Struct(">BBH")
_pack_header: Callable[..., bytes] = _HEADER.pack
_pack_set: Callable[..., bytes] = _HEADER_AND_SET.pack


def encode_txn(zxid: int, session_id: int, correlation_id: int, wall_ms: int, body: Body) -> bytes:
    """The log record of a Txn."""
    kind = body[0]
    if kind == TxnKind.SET_DATA:
        return encode_set(zxid, session_id, correlation_id, wall_ms, body)
    return _pack_header(zxid, session_id, correlation_id, wall_ms, kind) + encode_body(body)


def encode_set(zxid: int, session_id: int, correlation_id: int, wall_ms: int, body: Body) -> bytes:
    """As `encode_txn`, for a SetData."""
    _, path, data, version = body
    raw = path.encode()
    size = -1 if data is None else len(data)
    head = _pack_set(zxid, session_id, correlation_id, wall_ms, 5, len(raw), size, version)
    record: bytes = head + raw + data if data else head + raw
    return record


def encode_body(body: Body) -> bytes:
    """The bytes of a body, its kind not included."""
    kind = body[0]
    if kind in (TxnKind.CREATE, TxnKind.CREATE_CONTAINER, TxnKind.CREATE_TTL):
        _, path, data, acl, special, creates = body
        raw = path.encode()
        size = -1 if data is None else len(data)
        if kind == TxnKind.CREATE_TTL:
            head = _TTL.pack(special) + _CREATE.pack(creates, 0, len(raw), size)
        else:
            head = _CREATE.pack(creates, special, len(raw), size)
        return b"".join((head, encode_acl(acl), raw, data or b""))
    if kind == TxnKind.DELETE:
        return _string(body[1])
    if kind == TxnKind.SET_DATA:
        _, path, data, version = body
        raw = path.encode()
        size = -1 if data is None else len(data)
        return b"".join((_SET.pack(len(raw), size, version), raw, data or b""))
    if kind == TxnKind.ERROR:
        return _I32.pack(body[1])
    if kind == TxnKind.LEVEL:
        return _U8.pack(body[1])
    if kind == TxnKind.MEMBERS:
        return _U8.pack(body[1]) + bytes(body[2])
    if kind == TxnKind.SET_ACL:
        raw = body[1].encode()
        return b"".join((_CHECK.pack(body[3], len(raw)), encode_acl(body[2]), raw))
    if kind == TxnKind.CHECK:
        raw = body[1].encode()
        return bytes(_CHECK.pack(body[2], len(raw)) + raw)
    if kind == TxnKind.MULTI:
        parts = [_U16.pack(len(body[1]))]
        for each in body[1]:
            encoded = encode_body(each)
            parts.append(_OP.pack(each[0], len(encoded)))
            parts.append(encoded)
        return b"".join(parts)
    if kind == TxnKind.CREATE_SESSION:
        return _I32.pack(body[1])
    if kind == TxnKind.CLOSE_SESSION:
        _, reason, paths = body
        return b"".join((_CLOSE.pack(reason, len(paths)), *map(_string, paths)))
    assert kind == TxnKind.NEW_EPOCH, body
    return _U8.pack(len(body[1])) + bytes(body[1])


CLOSE_SESSION_BYTES: Final = HEADER_BYTES + _CLOSE.size
"""Size of the record of a CloseSession without ephemerals."""


def close_session_path_bytes(path: str) -> int:
    """What one ephemeral adds to the record of a CloseSession."""
    return _U16.size + len(path.encode())


_KIND_AT: Final = HEADER_BYTES - 2
_OF_THE_ENSEMBLE: Final = frozenset(
    kind.to_bytes(2, "big") for kind in (TxnKind.MEMBERS, TxnKind.LEVEL)
)


def zxid_of(record: bytes) -> int:
    """The zxid of a record, which it starts with."""
    return int.from_bytes(record[:8], "big")


def is_of_the_ensemble(record: bytes) -> bool:
    """Whether a log record says who belongs to the ensemble, or what all of them know."""
    return record[_KIND_AT:HEADER_BYTES] in _OF_THE_ENSEMBLE


def encode_acl(acl: tuple[Acl, ...]) -> bytes:
    """An ACL list: u8 count, 0 for everybody-may-everything, then (u8, u8+bytes, u16+bytes)*."""
    if acl == OPEN_ACL_UNSAFE:
        return b"\0"
    parts = [_U8.pack(len(acl))]
    for perms, scheme, identity in acl:
        scheme_raw, identity_raw = scheme.encode(), identity.encode()
        parts.append(_ACL_ENTRY.pack(perms, len(scheme_raw), len(identity_raw)))
        parts.append(scheme_raw)
        parts.append(identity_raw)
    return b"".join(parts)


def _string(text: str) -> bytes:
    raw = text.encode()
    return _U16.pack(len(raw)) + raw


class RecordReader:
    """Reads the fields of a record or of an item of a snapshot. Every method raises DecodeError."""

    __slots__ = ("buffer", "end", "position")

    def __init__(self, buffer: bytes, position: int = 0, end: int | None = None) -> None:
        self.buffer = buffer
        self.position = position
        self.end = len(buffer) if end is None else end

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        start = self.position
        if size < 0 or size > self.end - start:
            raise DecodeError(f"a field of {size} bytes where {self.end - start} are left")
        self.position = start + size
        return self.buffer[start : start + size]

    def fields(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The next fields, as a struct lays them out."""
        start = self.position
        if layout.size > self.end - start:
            raise DecodeError(f"{self.end - start} bytes are left where {layout.size} are needed")
        self.position = start + layout.size
        return layout.unpack_from(self.buffer, start)

    def text(self, size: int) -> str:
        """The next `size` bytes as UTF-8."""
        raw = self.take(size)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"a string is not UTF-8: {error}") from error

    def string(self) -> str:
        """A string with its length in front."""
        (size,) = self.fields(_U16)
        return self.text(size)

    def data(self, size: int) -> bytes | None:
        """Data of a znode: -1 means null."""
        return None if size == -1 else self.take(size)

    def acl(self) -> tuple[Acl, ...]:
        """An ACL list."""
        (count,) = self.fields(_U8)
        if count == 0:
            return OPEN_ACL_UNSAFE
        entries = []
        for _ in range(count):
            perms, scheme_size, identity_size = self.fields(_ACL_ENTRY)
            if perms > 31:
                raise DecodeError(f"permissions {perms} are not in [0, 31]")
            scheme = self.text(scheme_size)
            entries.append(Acl(perms, scheme, self.text(identity_size)))
        return tuple(entries)

    def done(self) -> None:
        """Nothing may be left."""
        if self.position != self.end:
            raise DecodeError(f"{self.end - self.position} bytes after the last field")


def decode_txn(record: bytes) -> Txn:
    """The Txn of a log record. Raises DecodeError."""
    found = _decode_plain_create(record)
    if found is not None:
        return found
    reader = RecordReader(record)
    zxid, session_id, correlation_id, wall_ms, kind = reader.fields(_HEADER)
    if zxid >> 63:
        raise DecodeError(f"zxid {zxid:#x} has the highest bit set")
    body = _decode_body(kind, reader, inside_multi=False)
    reader.done()
    return Txn(zxid, session_id, correlation_id, wall_ms, body)


_HEADER_AND_CREATE: Final = struct.Struct(">QqIqhiBHiB")


def _decode_plain_create(record: bytes) -> Txn | None:
    """A create as it mostly is, with the open ACL list; None: the long way decides."""
    if len(record) < _HEADER_AND_CREATE.size:
        return None
    fields = _HEADER_AND_CREATE.unpack_from(record)
    zxid, session_id, correlation_id, wall_ms, kind, creates, ephemeral, *rest = fields
    path_size, data_size, acl_count = rest
    start = _HEADER_AND_CREATE.size
    data_start = start + path_size
    if (
        kind != TxnKind.CREATE
        or acl_count
        or ephemeral > 1
        or zxid >> 63
        or data_size < 0
        or data_start + data_size != len(record)
    ):
        return None
    try:
        path = record[start:data_start].decode()
    except UnicodeDecodeError:
        return None
    body = (TxnKind.CREATE, path, record[data_start:], OPEN_ACL_UNSAFE, ephemeral, creates)
    return Txn(zxid, session_id, correlation_id, wall_ms, body)


def _decode_body(kind: int, reader: RecordReader, *, inside_multi: bool) -> Body:
    if kind == TxnKind.SET_DATA:
        path_size, data_size, version = reader.fields(_SET)
        path = reader.text(path_size)
        return (TxnKind.SET_DATA, path, reader.data(data_size), version)
    if kind in (TxnKind.CREATE, TxnKind.CREATE_CONTAINER, TxnKind.CREATE_TTL):
        return _decode_create(kind, reader)
    if kind == TxnKind.DELETE:
        return (TxnKind.DELETE, reader.string())
    if inside_multi:
        if kind == TxnKind.CHECK:
            version, path_size = reader.fields(_CHECK)
            return (TxnKind.CHECK, reader.text(path_size), version)
        raise DecodeError(f"a Txn of kind {kind} inside a multi")
    return _decode_other_body(kind, reader)


def _decode_create(kind: int, reader: RecordReader) -> Body:
    special = 0
    if kind == TxnKind.CREATE_TTL:
        (special,) = reader.fields(_TTL)
        if not 0 < special <= MAX_TTL_MS:
            raise DecodeError(f"a time to live of {special} ms is not in [1, {MAX_TTL_MS}]")
    creates, ephemeral, path_size, data_size = reader.fields(_CREATE)
    if ephemeral > (kind == TxnKind.CREATE):
        raise DecodeError(f"ephemeral is {ephemeral} in a create of kind {kind}")
    acl = reader.acl()
    path = reader.text(path_size)
    return (kind, path, reader.data(data_size), acl, special or ephemeral, creates)


def _decode_other_body(kind: int, reader: RecordReader) -> Body:
    if kind == TxnKind.ERROR:
        (code,) = reader.fields(_I32)
        if code >= 0:
            raise DecodeError(f"error code {code} is not below 0")
        return (TxnKind.ERROR, code)
    if kind == TxnKind.SET_ACL:
        aversion, path_size = reader.fields(_CHECK)
        acl = reader.acl()
        return (TxnKind.SET_ACL, reader.text(path_size), acl, aversion)
    if kind == TxnKind.MULTI:
        return (TxnKind.MULTI, _decode_multi(reader))
    if kind == TxnKind.CREATE_SESSION:
        (timeout_ms,) = reader.fields(_I32)
        if timeout_ms <= 0:
            raise DecodeError(f"session timeout {timeout_ms} is not above 0")
        return (TxnKind.CREATE_SESSION, timeout_ms)
    if kind == TxnKind.CLOSE_SESSION:
        reason, count = reader.fields(_CLOSE)
        if reason > CloseReason.EXPIRED:
            raise DecodeError(f"reason {reason} for the end of a session is not known")
        if count * _U16.size > reader.end - reader.position:
            raise DecodeError(f"{count} paths do not fit in the record")
        return (TxnKind.CLOSE_SESSION, reason, tuple([reader.string() for _ in range(count)]))
    if kind == TxnKind.LEVEL:
        return (TxnKind.LEVEL, *reader.fields(_U8))
    if kind == TxnKind.MEMBERS:
        (is_joint,) = reader.fields(_U8)
        if is_joint > 1:
            raise DecodeError(f"members are joint, or not: {is_joint} is neither")
        return (TxnKind.MEMBERS, is_joint, reader.take(reader.end - reader.position))
    if kind == TxnKind.NEW_EPOCH:
        (size,) = reader.fields(_U8)
        return (TxnKind.NEW_EPOCH, reader.take(size))
    raise DecodeError(f"a Txn of kind {kind} is not known")


def _decode_multi(reader: RecordReader) -> tuple[Body, ...]:
    (count,) = reader.fields(_U16)
    if count * _OP.size > reader.end - reader.position:
        raise DecodeError(f"{count} operations do not fit in the record")
    bodies = []
    for _ in range(count):
        kind, size = reader.fields(_OP)
        start = reader.position
        reader.take(size)
        inner = RecordReader(reader.buffer, start, start + size)
        bodies.append(_decode_body(kind, inner, inside_multi=True))
        inner.done()
    return tuple(bodies)
