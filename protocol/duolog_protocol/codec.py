"""Schema-driven encoding of messages into frame headers and attachments.

A message is a NamedTuple whose fields are, in order, the fields on the wire; its `Schema` says
what each field may be, with a bound on every length. Decoding is: msgpack with small limits,
then every field through its check, so that nothing reaches a handler that the schema does not
allow. Fields are only ever appended: a field `since` version v is absent below it.

Memory: a header is at most 64 KiB, an array in it at most `MAX_ARRAY_COUNT` long, so nested array
headers (each level is allocated before its elements are read) cost at most 8 MiB, and 512 KiB
with the limits for peers that are not known yet. What may be longer than that travels as an
attachment that is decoded element by element (`long_list`). msgpack's own default limits follow
the input's length and are unsafe.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgpack

from .errors import DecodeError, LocalProtocolError
from .frames import MAX_HEADER_BYTES, PREFIX, Frame
from .stream_decoder import LENGTH_BYTES

MAX_ARRAY_COUNT: Final = 1024
MAX_ARRAY_COUNT_UNKNOWN_PEER: Final = 64
MAX_STRING_BYTES: Final = 4096

Piece = bytes | bytearray | memoryview
"""A part of a frame; the parts of a frame are written one after another."""

M = TypeVar("M", bound=NamedTuple)
_INT32: Final = (-(1 << 31), (1 << 31) - 1)
_INT64: Final = (-(1 << 63), (1 << 63) - 1)
_CORRELATION: Final = struct.Struct(">BI")
_CORRELATION_TAG: Final = 0xCE
_ARRAY16: Final = 0xDC

_packer = msgpack.Packer(autoreset=True)
pack: Callable[[object], bytes] = _packer.pack
"""Encode one msgpack value."""


class Cursor:
    """Where decoding stands in the attachments of a frame."""

    __slots__ = ("buffer", "end", "position")

    def __init__(self, buffer: bytes | bytearray, position: int, end: int) -> None:
        self.buffer = buffer
        self.position = position
        self.end = end

    def take(self, size_bytes: int) -> int:
        """Advance over an attachment and return where it started."""
        start = self.position
        if size_bytes > self.end - start:
            raise DecodeError(
                f"attachment of {size_bytes} bytes where {self.end - start} are left in the frame"
            )
        self.position = start + size_bytes
        return start


Check = Callable[[Any, Cursor], Any]
"""Turns a msgpack value into a field's value, or raises DecodeError."""


class FieldType(NamedTuple):
    """What one field of a message may be."""

    check: Check
    attach: Callable[[Any, list[Piece]], object] | None = None
    """Encodes a value: appends attachments and returns what stands in the header.

    None where the value itself stands there.
    """
    since: int = 0
    """First version that has the field."""
    default: object = None
    """Value where the version is older than the field."""


def _wrong(kind: str, value: object) -> DecodeError:
    shown = repr(value)
    return DecodeError(f"expected {kind}, got {shown if len(shown) <= 60 else shown[:57] + '...'}")


def integer(low: int, high: int) -> FieldType:
    """An int in [low, high]."""
    kind = f"an integer in [{low}, {high}]"

    def check(value: Any, _cursor: Cursor) -> Any:
        if type(value) is not int or not low <= value <= high:
            raise _wrong(kind, value)
        return value

    return FieldType(check)


INT8: Final = integer(-(1 << 7), (1 << 7) - 1)
INT16: Final = integer(-(1 << 15), (1 << 15) - 1)
INT32: Final = integer(*_INT32)
INT64: Final = integer(*_INT64)


def _check_bool(value: Any, _cursor: Cursor) -> Any:
    if value is not True and value is not False:
        raise _wrong("a boolean", value)
    return value


BOOL: Final = FieldType(_check_bool)


def string(max_bytes: int = MAX_STRING_BYTES, *, nullable: bool = False) -> FieldType:
    """A UTF-8 string of at most `max_bytes` bytes."""
    kind = f"a string of at most {max_bytes} bytes" + (" or null" if nullable else "")
    surely_short = max_bytes // 4

    def check(value: Any, _cursor: Cursor) -> Any:
        if type(value) is str:
            if len(value) <= surely_short or len(value.encode()) <= max_bytes:
                return value
        elif nullable and value is None:
            return None
        raise _wrong(kind, value)

    return FieldType(check)


def binary(max_bytes: int, *, nullable: bool = False) -> FieldType:
    """Bytes inside the header or a long list's element, for short values only."""
    kind = f"at most {max_bytes} bytes" + (" or null" if nullable else "")

    def check(value: Any, _cursor: Cursor) -> Any:
        if type(value) is not bytes or len(value) > max_bytes:
            if nullable and value is None:
                return None
            raise _wrong(kind, value)
        return value

    return FieldType(check)


def _attachment_size(value: Any, max_bytes: int) -> int:
    if type(value) is not int or not 0 <= value <= max_bytes:
        raise _wrong(f"an attachment length in [0, {max_bytes}]", value)
    return value


def _attach(value: Any, pieces: list[Piece]) -> object:
    if value is None:
        return None
    pieces.append(value)
    return len(value)


def data(max_bytes: int, *, nullable: bool = False) -> FieldType:
    """An attachment handed out as `bytes`."""

    def check(value: Any, cursor: Cursor) -> Any:
        if value is None and nullable:
            return None
        size = _attachment_size(value, max_bytes)
        start = cursor.take(size)
        found = cursor.buffer[start : start + size]
        return found if type(found) is bytes else bytes(found)

    return FieldType(check, _attach)


def records(max_bytes: int) -> FieldType:
    """An attachment handed out as a `memoryview` of the frame: nothing is copied."""

    def check(value: Any, cursor: Cursor) -> Any:
        size = _attachment_size(value, max_bytes)
        start = cursor.take(size)
        return memoryview(cursor.buffer)[start : start + size]

    return FieldType(check, _attach)


def array(of: FieldType, max_count: int = MAX_ARRAY_COUNT, *, nullable: bool = False) -> FieldType:
    """A tuple of at most `max_count` values."""
    assert max_count <= MAX_ARRAY_COUNT, max_count
    kind = f"an array of at most {max_count} elements" + (" or null" if nullable else "")
    check_one, attach_one = of.check, of.attach

    def check(value: Any, cursor: Cursor) -> Any:
        if type(value) is not tuple or len(value) > max_count:
            if nullable and value is None:
                return None
            raise _wrong(kind, value)
        return tuple([check_one(each, cursor) for each in value])

    def attach(value: Any, pieces: list[Piece]) -> object:
        assert attach_one is not None
        return None if value is None else [attach_one(each, pieces) for each in value]

    return FieldType(check, attach if attach_one is not None else None)


def structure(cls: type[M], *fields: FieldType, nullable: bool = False) -> FieldType:
    """A nested NamedTuple."""
    checks = [field.check for field in fields]
    attachers = [field.attach for field in fields]
    kind = f"{cls.__name__} with {len(fields)} fields"
    make = cls._make

    def check(value: Any, cursor: Cursor) -> Any:
        if type(value) is not tuple or len(value) != len(checks):
            if nullable and value is None:
                return None
            raise _wrong(kind, value)
        return make([one(each, cursor) for one, each in zip(checks, value, strict=True)])

    def attach(value: Any, pieces: list[Piece]) -> object:
        if value is None:
            return None
        return [
            each if one is None else one(each, pieces)
            for one, each in zip(attachers, value, strict=True)
        ]

    return FieldType(check, attach if any(attachers) else None)


def long_list(
    of: FieldType, max_count: int, max_bytes: int, *, inline_count: int = 0, nullable: bool = False
) -> FieldType:
    """A list of any length as an attachment: a msgpack array, decoded element by element.

    Attachments of its elements follow it in the frame. With `inline_count`, a list of at most so
    many elements stands in the header instead, as an array: short ones cost no attachment. A
    list with `inline_count` is a tuple, as an array is; without, a list.
    """
    check_one, attach_one = of.check, of.attach
    short = array(of, inline_count) if inline_count else None
    kind = f"a list: {f'an array of at most {inline_count} elements or ' if short else ''}"
    kind += f"an attachment length in [0, {max_bytes}]" + (" or null" if nullable else "")

    def check(value: Any, cursor: Cursor) -> Any:
        if short is not None and type(value) is tuple:
            return short.check(value, cursor)
        if nullable and value is None:
            return None
        if type(value) is not int or not 0 <= value <= max_bytes:
            raise _wrong(kind, value)
        size = value
        start = cursor.take(size)
        unpacker = _limited_unpacker(memoryview(cursor.buffer)[start : start + size])
        try:
            count = unpacker.read_array_header()
            if count > min(max_count, size):
                raise _wrong(f"a list of at most {min(max_count, size)} elements", count)
            found = [check_one(unpacker.unpack(), cursor) for _ in range(count)]
        except _MSGPACK_ERRORS as error:
            raise DecodeError(f"list is not valid msgpack: {error!r}") from error
        if unpacker.tell() != size:
            raise DecodeError(f"{size - unpacker.tell()} bytes after the end of a list")
        return found if short is None else tuple(found)

    def attach(value: Any, pieces: list[Piece]) -> object:
        if value is None:
            return None
        if short is not None and len(value) <= inline_count:
            return value if short.attach is None else short.attach(value, pieces)
        inner: list[Piece] = []
        if attach_one is not None:
            value = [attach_one(each, inner) for each in value]
        encoded = pack(value)
        pieces.append(encoded)
        pieces += inner
        return len(encoded)

    return FieldType(check, attach)


def since(version: int, field: FieldType, default: object) -> FieldType:
    """A field that older versions of its message do not have."""
    return field._replace(since=version, default=default)


class Schema(Generic[M]):
    """How one message is laid out on the wire, in every version of it."""

    __slots__ = ("_attachers", "_checks", "_defaults", "_names", "cls", "fields")

    def __init__(self, cls: type[M], *fields: FieldType) -> None:
        names = cls._fields
        assert len(names) == len(fields), (cls.__name__, len(names), len(fields))
        order = [field.since for field in fields]
        assert order == sorted(order), f"{cls.__name__}: fields are only ever appended"
        self.cls = cls
        self.fields = fields
        self._names = names
        self._checks = [field.check for field in fields]
        self._attachers = (
            [field.attach for field in fields] if any(field.attach for field in fields) else None
        )
        self._defaults = tuple(field.default for field in fields)

    def count(self, version: int) -> int:
        """Number of fields in a version."""
        fields = self.fields
        if not fields or fields[-1].since <= version:
            return len(fields)
        return sum(field.since <= version for field in fields)

    def encode(self, message: M, version: int, pieces: list[Piece]) -> list[object]:
        """Header values of a message; its attachments are appended to `pieces`."""
        count = self.count(version)
        values: Sequence[Any] = message if count == len(message) else message[:count]
        if self._attachers is None:
            return list(values)
        return [
            value if attach is None else attach(value, pieces)
            for attach, value in zip(self._attachers, values, strict=False)
        ]

    def decode(self, values: Sequence[Any], version: int, cursor: Cursor) -> M:
        """The message from its header values and attachments; all of both must be used."""
        count = self.count(version)
        if len(values) != count:
            raise DecodeError(
                f"{self.cls.__name__} version {version} has {count} fields, got {len(values)}"
            )
        found: list[Any] = []
        try:
            for check, value in zip(self._checks, values, strict=False):
                found.append(check(value, cursor))
        except DecodeError as error:
            name = self._names[len(found)]
            raise DecodeError(f"{self.cls.__name__}.{name}: {error}") from None
        if cursor.position != cursor.end:
            raise DecodeError(
                f"{self.cls.__name__}: {cursor.end - cursor.position} bytes after the last field"
            )
        if count != len(self._checks):
            found.extend(self._defaults[count:])
        return self.cls._make(found)


_MSGPACK_ERRORS: Final = (
    ValueError,
    TypeError,
    OverflowError,
    UnicodeDecodeError,
    msgpack.exceptions.UnpackException,
    msgpack.exceptions.ExtraData,
)


def _limited_unpacker(view: memoryview) -> msgpack.Unpacker:
    unpacker = msgpack.Unpacker(
        use_list=False,
        max_buffer_size=max(len(view), 1),
        max_array_len=MAX_ARRAY_COUNT,
        max_map_len=0,
        max_ext_len=0,
        max_str_len=MAX_HEADER_BYTES,
        max_bin_len=max(len(view), 1),
    )
    unpacker.feed(view)
    return unpacker


def unpack_header(
    header: bytes | bytearray | memoryview, max_array_count: int = MAX_ARRAY_COUNT
) -> tuple[Any, ...]:
    """The values of a header. Raises DecodeError for anything but one msgpack array."""
    return _unpack(header, "header", max_array_count, MAX_HEADER_BYTES)


def unpack_array(packed: bytes) -> tuple[Any, ...]:
    """As `unpack_header`, with strings and bytes as long as all of it."""
    return _unpack(packed, "array", MAX_ARRAY_COUNT, len(packed))


def _unpack(
    packed: bytes | bytearray | memoryview, what: str, max_array_count: int, max_item_bytes: int
) -> tuple[Any, ...]:
    try:
        values = msgpack.unpackb(
            packed,
            use_list=False,
            max_array_len=max_array_count,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=max_item_bytes,
            max_bin_len=max_item_bytes,
        )
    except _MSGPACK_ERRORS as error:
        raise DecodeError(f"{what} is not valid msgpack: {error!r}") from error
    if type(values) is not tuple:
        raise _wrong(f"an array as {what}", values)
    return values


def array_header(count: int) -> bytes:
    """The msgpack header of an array."""
    assert 0 <= count <= MAX_ARRAY_COUNT, count
    return bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")


def assemble(
    before: bytes, correlation_id: int, values: list[object], pieces: list[Piece]
) -> list[Piece]:
    """A whole frame: `before` (packed values), the correlation id, `values`, attachments.

    The correlation id always takes five bytes (`ce` and a u32), so that an encoded frame can be
    kept and sent again with another id.
    """
    packed = pack(values)
    header = before + _CORRELATION.pack(_CORRELATION_TAG, correlation_id) + _elements(packed)
    if len(header) > MAX_HEADER_BYTES:
        raise LocalProtocolError(
            f"header of {len(header)} bytes is over the limit of {MAX_HEADER_BYTES}"
        )
    total = LENGTH_BYTES + len(header) + sum(map(len, pieces))
    return [PREFIX.pack(total, len(header)) + header, *pieces]


def _elements(packed: bytes) -> bytes:
    """The elements of a packed array, without its header."""
    return packed[1:] if packed[0] != _ARRAY16 else packed[3:]


def cursor_of(frame: Frame) -> Cursor:
    """A cursor at the first attachment of a frame."""
    return Cursor(frame[0], frame[2], frame[3])
