"""The usual encodings of a native client's GetData, Exists, GetChildren and SetData.

The length of a header and its first six bytes say what the tag of the path must be, so that a
table of these *forms* leaves only comparisons to who cuts: arithmetic is what Python is slow at.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from .codec import array_header, pack
from .stream_decoder import LENGTH_BYTES
from .zk_messages import EXISTS, GET_CHILDREN, GET_DATA, SET_DATA

_BEGIN: Final = struct.Struct(">I10sIH")
"""Length; length of the header and its first six bytes; correlation id; mark of the path."""
BEGIN_BYTES: Final = _BEGIN.size
unpack_begin = _BEGIN.unpack_from
_HEADER_AT: Final = 8
PATH_AT: Final = 18
"""Positions in a frame."""

_FIXSTR: Final = 0xA0
_FIXSTR_BYTES: Final = 32
_FIXSTR_MASK: Final = 0xE0
_STR8: Final = 0xD9
_STR8_BYTES: Final = 256
BYTE_INTS: Final = 128
"""The integers from 0 on that are one byte, itself."""
_MINUS_ONE: Final = 0xFF
_UINT8: Final = 0xCC
_UINT16: Final = 0xCD
_unpack_u16 = struct.Struct(">H").unpack_from
_INT32_LAST: Final = (1 << 31) - 1
VERSION: Final = (*range(BYTE_INTS), *[None] * (_MINUS_ONE - BYTE_INTS), -1)
"""What one byte says, by the byte; None where it says something else."""

SET_DATA_KEY: Final = SET_DATA.key
_VERSIONS: Final = {
    tag: struct.Struct(layout)
    for tag, layout in ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xD2, ">i"))
}

Form = tuple[int, int, int, int, int]
"""(api key, mark of the path, length of the frame, start and end of the path in it).

The mark is the two bytes at `PATH_AT`: tag and slash of a short path, tag and size of a longer
one. Behind the path is the watch; in a SetData the length of the data and the version, a byte each.

A SetData has minus its length without data: no frame has that length, so that a read is told from
a set by the comparison it needs anyway, and the sum of both lengths is that of the data."""


def _forms() -> dict[bytes, Form]:
    """Length of the header and its first six bytes -> the form."""
    found = {}
    for api in (GET_DATA, EXISTS, GET_CHILDREN, SET_DATA):
        fields = api.request.count(0)
        head = array_header(3 + fields) + pack(api.key) + b"\x00\xce"
        for size in range(1, _STR8_BYTES):
            is_short = size < _FIXSTR_BYTES
            mark = (_FIXSTR | size) << 8 | ord("/") if is_short else _STR8 << 8 | size
            start = PATH_AT + (1 if is_short else 2)
            header_bytes = start + size + fields - 1 - _HEADER_AT
            length = LENGTH_BYTES + header_bytes
            begin = header_bytes.to_bytes(LENGTH_BYTES, "big") + head
            expected_length = length if api is not SET_DATA else -length
            found[begin] = (api.key, mark, expected_length, start, start + size)
    return found


FORMS: Final = _forms()
LEAST_LIMIT: Final = 1024
"""No frame in one of the forms is longer."""


def cut_set_data(chunk: bytes, at: int, header_end: int, end: int) -> tuple[Any, ...] | None:
    """`<path> <data length> <version>` and the data, with any version and data of up to 64 KiB.

    It begins at `at`; the frame is all there, its header may end anywhere. None where it is not in
    a usual encoding: then the schema decides.
    """
    data_bytes = end - header_end
    if data_bytes < 0:
        return None
    tag = chunk[at]
    path_start = at + 1
    if tag & _FIXSTR_MASK == _FIXSTR:
        path_end = path_start + (tag & ~_FIXSTR_MASK)
    elif tag == _STR8:
        path_start += 1
        path_end = path_start + chunk[at + 1]
    else:
        return None
    at = path_end
    if at + 2 > header_end:
        return None
    tag = chunk[at]
    if tag == _UINT16 and at + 4 <= header_end:
        (tag,) = _unpack_u16(chunk, at + 1)
        at += 3
    elif tag == _UINT8:
        tag = chunk[at + 1]
        at += 2
    elif tag < BYTE_INTS:
        at += 1
    else:
        return None
    if tag != data_bytes or at >= header_end:
        return None
    version = VERSION[chunk[at]]
    at += 1
    if version is None:
        layout = _VERSIONS.get(chunk[at - 1])
        if layout is None or at + layout.size != header_end:
            return None
        (version,) = layout.unpack_from(chunk, at)
        if version > _INT32_LAST:
            return None
    elif at != header_end:
        return None
    try:
        path = chunk[path_start:path_end].decode()
    except UnicodeDecodeError:
        return None
    return path, chunk[header_end:end], version
