"""Jute: the encoding of ZooKeeper's client protocol.

    boolean = u8                      ; 0 is false, anything else true
    int     = i32                     ; big-endian, as all integers
    long    = i64
    ustring = i32 bytes               ; its length, then UTF-8; -1 is null
    buffer  = i32 bytes               ; -1 is null
    vector  = i32 items               ; its count; -1 is null
    record  = its fields, in order, without tags

Owns the primitives and the two records that many messages share, Stat and ACL. Reading is strict:
a length or a count that the rest of the record cannot hold is refused before anything is made of
it, so that what is allocated is bounded by what has arrived. Source: ZooKeeper
`BinaryInputArchive`, `BinaryOutputArchive`, `zookeeper.jute`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from .errors import DecodeError
from .types import Acl, Stat

T = TypeVar("T")

INT_BYTES: Final = 4
STAT: Final = struct.Struct(">qqqqiiiqiiq")
"""A Stat: 68 bytes."""
NULL: Final = b"\xff\xff\xff\xff"
"""A null ustring, buffer or vector."""

MAX_ACL_COUNT: Final = 64
MAX_SCHEME_BYTES: Final = 64
MAX_ID_BYTES: Final = 1024
_SCHEMES_THAT_READ_IDS: Final = frozenset({"world", "digest", "ip", "sasl"})
"""Those in whose entries ZooKeeper 3.8.0 cannot bear a null id; the others get to be judged."""
_MIN_ACL_BYTES: Final = 3 * INT_BYTES
_PERMS_ALL: Final = 31

_INT: Final = struct.Struct(">i")
_LONG: Final = struct.Struct(">q")
_unpack_int = _INT.unpack_from
_unpack_long = _LONG.unpack_from
pack_int: Final[Callable[[int], bytes]] = _INT.pack
pack_long: Final[Callable[[int], bytes]] = _LONG.pack


class JuteReader:
    """Reads the fields of a record, `buffer[position:end]`. Every method raises DecodeError."""

    __slots__ = ("buffer", "end", "position")

    def __init__(self, buffer: bytes, position: int, end: int) -> None:
        self.buffer = buffer
        self.position = position
        self.end = end

    def take(self, size: int) -> int:
        """Go on by `size` bytes and return where they start."""
        start = self.position
        if size < 0 or size > self.end - start:
            raise DecodeError(f"a field of {size} bytes where {self.end - start} are left")
        self.position = start + size
        return start

    def boolean(self) -> bool:
        """The next byte: whatever is not 0 is true, as in Java."""
        return self.buffer[self.take(1)] != 0

    def int32(self) -> int:
        """The next i32."""
        value: int = _unpack_int(self.buffer, self.take(INT_BYTES))[0]
        return value

    def int64(self) -> int:
        """The next i64."""
        value: int = _unpack_long(self.buffer, self.take(8))[0]
        return value

    def data(self) -> bytes | None:
        """The next buffer."""
        size = self.int32()
        if size == -1:
            return None
        start = self.take(size)
        return self.buffer[start : start + size]

    def text(self) -> str | None:
        """The next ustring.

        What is no UTF-8 becomes U+FFFD, as in Java: no legal path has it, so such a path is only
        ever one that does not exist.
        """
        raw = self.data()
        return None if raw is None else raw.decode("utf-8", "replace")

    def path(self) -> str:
        """The next ustring, which must not be null."""
        found = self.text()
        if found is None:
            raise DecodeError("the path is null")
        return found

    def count(self, min_item_bytes: int) -> int:
        """The count of the next vector, or -1 for null."""
        count = self.int32()
        left = self.end - self.position
        if count > left // min_item_bytes:
            raise DecodeError(f"a vector of {count} where {left} bytes are left")
        return max(count, -1)  # Java reads every negative count as null

    def vector(self, item: Callable[[], T], min_item_bytes: int) -> list[T]:
        """The next vector; null is an empty one."""
        return [item() for _ in range(self.count(min_item_bytes))]

    def acl(self) -> tuple[Acl, ...] | None:
        """The next ACL list. Bits of `perms` that mean nothing are dropped."""
        count = self.count(_MIN_ACL_BYTES)
        if count < 0:
            return None
        if count > MAX_ACL_COUNT:
            raise DecodeError(f"an ACL list of {count} entries is over the limit {MAX_ACL_COUNT}")
        return tuple([self._acl_entry() for _ in range(count)])

    def _acl_entry(self) -> Acl:
        perms = self.int32()
        scheme = self.text() or ""
        identity = self.text()
        if identity is None:
            if scheme in _SCHEMES_THAT_READ_IDS:
                raise DecodeError(f"the id of an ACL entry of scheme {scheme} is null")
            identity = ""  # as kazoo writes the empty id of the scheme auth
        if len(scheme.encode()) > MAX_SCHEME_BYTES or len(identity.encode()) > MAX_ID_BYTES:
            raise DecodeError(
                f"an ACL entry may have {MAX_SCHEME_BYTES} bytes of scheme and {MAX_ID_BYTES} of id"
            )
        return Acl(perms & _PERMS_ALL, scheme, identity)


def encode_bytes(value: bytes | None) -> bytes:
    """A buffer."""
    return NULL if value is None else pack_int(len(value)) + value


def encode_text(value: str | None) -> bytes:
    """A ustring."""
    return NULL if value is None else encode_bytes(value.encode())


def encode_texts(values: Sequence[str]) -> bytes:
    """A vector of ustrings."""
    pieces = [pack_int(len(values))]
    for value in values:
        raw = value.encode()
        pieces.append(pack_int(len(raw)))
        pieces.append(raw)
    return b"".join(pieces)


def encode_stat(stat: Stat) -> bytes:
    """A Stat."""
    return STAT.pack(*stat)


def encode_acl(acl: Iterable[Acl]) -> bytes:
    """A vector of ACL entries."""
    entries = [
        pack_int(perms) + encode_text(scheme) + encode_text(identity)
        for perms, scheme, identity in acl
    ]
    return pack_int(len(entries)) + b"".join(entries)
