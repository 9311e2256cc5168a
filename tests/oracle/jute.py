"""ZooKeeper's jute encoding, written a second time for the tests.

Owns the bytes of every client request and reply (reference: `zookeeper.jute`, `BinaryInputArchive`
of Apache ZooKeeper). It knows nothing of `duolog_protocol`: two implementations that share code
would share mistakes. A layout is a string, a letter for each field:

    s  ustring (str, raw bytes or None)   b  buffer (bytes or None)    ?  bool
    i  int32                              l  int64                     S  vector of ustring
    a  ACL list (or None)                 T  Stat                      W  vector of (scheme, user)
    M  operations of a multi              m  results of a multi

Decoding is strict: what is left over is returned to the caller, and compared.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

_INT: Final = struct.Struct(">i")
_LONG: Final = struct.Struct(">q")
_STAT: Final = struct.Struct(">qqqqiiiqiiq")
_REPLY_HEADER: Final = struct.Struct(">iqi")
_CONNECT: Final = struct.Struct(">iqiq")
_MULTI_HEADER: Final = struct.Struct(">i?i")

EVENT_XID: Final = -1
PING_XID: Final = -2
AUTH_XID: Final = -4
SET_WATCHES_XID: Final = -8


class Layout(NamedTuple):
    """One operation: its code, the fields of its request and of its reply."""

    code: int
    request: str
    reply: str


LAYOUTS: Final = {
    "create": Layout(1, "sbai", "s"),
    "create2": Layout(15, "sbai", "sT"),
    "create_container": Layout(19, "sbai", "sT"),
    "create_ttl": Layout(21, "sbail", "sT"),
    "delete": Layout(2, "si", ""),
    "exists": Layout(3, "s?", "T"),
    "get_data": Layout(4, "s?", "bT"),
    "set_data": Layout(5, "sbi", "T"),
    "get_acl": Layout(6, "s", "aT"),
    "set_acl": Layout(7, "sai", "T"),
    "get_children": Layout(8, "s?", "S"),
    "get_children2": Layout(12, "s?", "ST"),
    "sync": Layout(9, "s", "s"),
    "ping": Layout(11, "", ""),
    "check": Layout(13, "si", ""),
    "multi": Layout(14, "M", "m"),
    "multi_read": Layout(22, "M", "m"),
    "reconfig": Layout(16, "sssl", "bT"),
    "check_watches": Layout(17, "si", ""),
    "remove_watches": Layout(18, "si", ""),
    "auth": Layout(100, "isb", ""),
    "set_watches": Layout(101, "lSSS", ""),
    "set_watches2": Layout(105, "lSSSSS", ""),
    "get_ephemerals": Layout(103, "s", "S"),
    "get_all_children_number": Layout(104, "s", "i"),
    "add_watch": Layout(106, "si", "i"),
    "who_am_i": Layout(107, "", "W"),
    "close": Layout(-11, "", ""),
}
_MULTI_REPLIES: Final = {1: "s", 2: "", 4: "bT", 5: "T", 8: "S", 13: "", 15: "sT", -1: "i"}
XIDS: Final = {
    "ping": PING_XID,
    "auth": AUTH_XID,
    "set_watches": SET_WATCHES_XID,
    "set_watches2": SET_WATCHES_XID,
}
"""Operations whose xid every client takes from a constant; the others count from 1."""

WRITES: Final = frozenset(
    {
        *("create", "create2", "create_container", "create_ttl", "delete", "set_data"),
        *("set_acl", "multi", "close"),
    }
)
"""Operations whose reply carries a zxid of their own."""


class Stat(NamedTuple):
    """The metadata of a znode."""

    czxid: int
    mzxid: int
    ctime: int
    mtime: int
    version: int
    cversion: int
    aversion: int
    ephemeral_owner: int
    data_length: int
    num_children: int
    pzxid: int


class Acl(NamedTuple):
    """One entry of an ACL list."""

    perms: int
    scheme: str | bytes | None
    id: str | bytes | None


OPEN_ACL: Final = (Acl(31, "world", "anyone"),)


class OpResult(NamedTuple):
    """One result of a multi."""

    kind: int
    error: int
    values: tuple[Any, ...]


class JuteError(Exception):
    """Bytes that are not what the layout says."""


# ---- encoding ----------------------------------------------------------------------------------


def encode_request(name: str, xid: int, arguments: tuple[Any, ...]) -> bytes:
    """A whole frame."""
    layout = LAYOUTS[name]
    head = _INT.pack(xid) + _INT.pack(layout.code)
    return frame(head + encode_fields(layout.request, arguments))


def frame(body: bytes) -> bytes:
    """A body behind its length."""
    return _INT.pack(len(body)) + body


def encode_fields(letters: str, values: tuple[Any, ...]) -> bytes:
    """Fields in order."""
    assert len(letters) == len(values), (letters, values)
    return b"".join(_ENCODE[letter](value) for letter, value in zip(letters, values, strict=True))


def encode_connect(
    last_zxid_seen: int,
    timeout_ms: int,
    session_id: int,
    password: bytes | None,
    *,
    read_only: bool | None,
) -> bytes:
    """The frame that opens a connection; `read_only` None leaves the last byte out."""
    body = _CONNECT.pack(0, last_zxid_seen, timeout_ms, session_id) + _encode_buffer(password)
    return frame(body + (b"" if read_only is None else bytes([read_only])))


def _encode_buffer(value: bytes | None) -> bytes:
    return _INT.pack(-1) if value is None else _INT.pack(len(value)) + value


def _encode_string(value: str | bytes | None) -> bytes:
    return _encode_buffer(
        value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    )


def _encode_strings(values: tuple[Any, ...] | None) -> bytes:
    if values is None:
        return _INT.pack(-1)
    return _INT.pack(len(values)) + b"".join(map(_encode_string, values))


def _encode_acl(entries: tuple[Acl, ...] | None) -> bytes:
    if entries is None:
        return _INT.pack(-1)
    return _INT.pack(len(entries)) + b"".join(
        _INT.pack(perms) + _encode_string(scheme) + _encode_string(who)
        for perms, scheme, who in entries
    )


def _encode_multi(operations: tuple[tuple[Any, ...], ...]) -> bytes:
    """Operations are (name, *arguments), as for a request of their own."""
    parts = []
    for name, *arguments in operations:
        layout = LAYOUTS[name]
        parts.append(_MULTI_HEADER.pack(layout.code, False, -1))
        parts.append(encode_fields(layout.request, tuple(arguments)))
    return b"".join(parts) + _MULTI_HEADER.pack(-1, True, -1)


_ENCODE: Final[dict[str, Callable[[Any], bytes]]] = {
    "s": _encode_string,
    "b": _encode_buffer,
    "?": lambda value: bytes([value]),
    "i": _INT.pack,
    "l": _LONG.pack,
    "S": _encode_strings,
    "a": _encode_acl,
    "M": _encode_multi,
}


# ---- decoding ----------------------------------------------------------------------------------


class Reader:
    """A position in some bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The next fixed fields. Raises JuteError."""
        if self.at + layout.size > len(self.data):
            raise JuteError(f"{layout.size} bytes wanted at {self.at} of {len(self.data)}")
        found = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return found

    def integer(self) -> int:
        """The next int32."""
        value: int = self.unpack(_INT)[0]
        return value

    def long(self) -> int:
        """The next int64."""
        value: int = self.unpack(_LONG)[0]
        return value

    def boolean(self) -> bool:
        """The next byte, which is 0 or 1."""
        value = self.take(1)
        if value not in (b"\0", b"\1"):
            raise JuteError(f"{value!r} is no boolean")
        return value == b"\1"

    def take(self, size: int) -> bytes:
        """The next bytes. Raises JuteError."""
        if size < 0 or self.at + size > len(self.data):
            raise JuteError(f"{size} bytes wanted at {self.at} of {len(self.data)}")
        found = self.data[self.at : self.at + size]
        self.at += size
        return found

    def buffer(self) -> bytes | None:
        """The next buffer."""
        size = self.integer()
        return None if size == -1 else self.take(size)

    def string(self) -> str | None:
        """The next string; as Java writes it, a surrogate may stand alone."""
        raw = self.buffer()
        return None if raw is None else raw.decode("utf-8", "surrogatepass")

    def vector(self, item: Callable[[], Any]) -> tuple[Any, ...] | None:
        """The next vector."""
        count = self.integer()
        return None if count == -1 else tuple(item() for _ in range(count))

    def stat(self) -> Stat:
        """The next Stat."""
        return Stat(*self.unpack(_STAT))

    def acl(self) -> Acl:
        """The next ACL entry."""
        return Acl(self.integer(), self.string(), self.string())

    def multi(self) -> tuple[OpResult, ...]:
        """The results of a multi, up to and including the end mark."""
        results = []
        while True:
            kind, done, error = self.unpack(_MULTI_HEADER)
            if done:
                if (kind, error) != (-1, -1):
                    raise JuteError(f"a multi ends with type {kind}, error {error}")
                return tuple(results)
            if kind not in _MULTI_REPLIES:
                raise JuteError(f"a multi has a result of type {kind}")
            results.append(OpResult(kind, error, self.fields(_MULTI_REPLIES[kind])))

    def fields(self, letters: str) -> tuple[Any, ...]:
        """The next fields, by their layout."""
        return tuple(_DECODE[letter](self) for letter in letters)

    def rest(self) -> bytes:
        """What nobody has taken."""
        return self.data[self.at :]


_DECODE: Final[dict[str, Callable[[Reader], Any]]] = {
    "s": Reader.string,
    "b": Reader.buffer,
    "?": Reader.boolean,
    "i": Reader.integer,
    "l": Reader.long,
    "S": lambda reader: reader.vector(reader.string),
    "a": lambda reader: reader.vector(reader.acl),
    "T": Reader.stat,
    "W": lambda reader: reader.vector(lambda: (reader.string(), reader.string())),
    "m": Reader.multi,
}


class Reply(NamedTuple):
    """A reply as it came."""

    xid: int
    zxid: int
    error: int
    values: tuple[Any, ...]
    """The fields of its body; empty after an error."""
    rest: bytes
    """Bytes behind the last field: there should be none."""


class Event(NamedTuple):
    """A notification as it came."""

    zxid: int
    error: int
    type: int
    state: int
    path: str | None
    rest: bytes


class Connected(NamedTuple):
    """The answer to the frame that opens a connection."""

    protocol: int
    timeout_ms: int
    session_id: int
    password: bytes | None
    read_only: bool | None
    """None where the byte is not there."""


def decode_connected(body: bytes) -> Connected:
    """The answer to a connect request. Raises JuteError."""
    reader = Reader(body)
    protocol, timeout_ms, session_id = reader.integer(), reader.integer(), reader.long()
    password = reader.buffer()
    read_only = reader.boolean() if reader.rest() else None
    if reader.rest():
        raise JuteError(f"{reader.rest()!r} behind the answer to a connect request")
    return Connected(protocol, timeout_ms, session_id, password, read_only)


def is_event(body: bytes) -> bool:
    """The frame is no reply to anything."""
    return body[:4] == b"\xff\xff\xff\xff"


def decode_event(body: bytes) -> Event:
    """A notification. Raises JuteError."""
    reader = Reader(body)
    _, zxid, error = reader.unpack(_REPLY_HEADER)
    return Event(zxid, error, reader.integer(), reader.integer(), reader.string(), reader.rest())


def decode_reply(name: str | None, body: bytes) -> Reply:
    """A reply to the operation `name`; None: to something that is none. Raises JuteError."""
    reader = Reader(body)
    xid, zxid, error = reader.unpack(_REPLY_HEADER)
    # Apache puts the results so far behind the error of a multi that it could not read.
    has_body = not error or (name in {"multi", "multi_read"} and bool(reader.rest()))
    letters = LAYOUTS[name].reply if name is not None and has_body else ""
    return Reply(xid, zxid, error, reader.fields(letters), reader.rest())
