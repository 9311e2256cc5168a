"""Runs of records that have the same shape, cut by `struct` in one call.

Many producers send records whose lengths are all equal. Such records follow each other at a fixed
stride, so a byte that must be the same in all of them (a length, the count of headers) is a
*column*: a slice with a step, compared in C. What is verified that way is the whole structure, so
the keys and values can be cut with one `struct.iter_unpack`. Costs a third of walking the varints.

A run is only ever a short-cut: where anything differs, `read_run` stops before it or declines, and
`record_decoding` walks on, record by record. Source: Kafka's `DefaultRecord` layout.
"""

from __future__ import annotations

import struct
from itertools import chain
from typing import Any, Final, NamedTuple

from .varints import decode_varint

MIN_RUN: Final = 8
"""Shortest run worth cutting in one call."""

_MAX_DELTA_BYTES: Final = 3
_MAX_TIMESTAMP_BYTES: Final = 9
"""A tenth byte could exceed 64 bits; only the careful decoder checks that."""
_CONTINUED: Final = bytes(range(0x80, 0x100))
_LOW_GROUPS: Final = bytes(range(0x80, 0x100, 2))
"""First bytes of 64 consecutive natural numbers, each two or more bytes long."""


class Run(NamedTuple):
    """Columns of consecutive records; their offset deltas are consecutive too."""

    records_count: int
    timestamp_deltas: list[int]
    keys: list[bytes | None]
    values: list[bytes | None]


def read_run(data: bytes, model: int, body: int, start: int, *, limit: int, end: int) -> Run | None:
    """The records from `start` on that have the shape of the one before them.

    The model is that record: valid, without headers, [`model`, `start`), its length field ends at
    `body`. Looks at no more than `limit` records before `end` and does work in proportion to that.
    None where fewer than `MIN_RUN` have its shape.
    """
    stride = start - model
    timestamp_at = body + 1
    first_timestamp, delta_at = decode_varint(data, timestamp_at, 64)
    delta, key_length_at = decode_varint(data, delta_at)
    key_length, key_at = decode_varint(data, key_length_at)
    value_length_at = key_at + max(key_length, 0)
    value_length, value_at = decode_varint(data, value_length_at)
    headers_at = value_at + max(value_length, 0)
    delta_bytes = key_length_at - delta_at
    if delta_bytes > _MAX_DELTA_BYTES or delta_at - timestamp_at > _MAX_TIMESTAMP_BYTES:
        return None
    count = min(limit, (end - start) // stride, (1 << 7 * delta_bytes - 1) - delta - 1)
    for at in (
        *range(model, body),
        *range(key_length_at, key_at),
        *range(value_length_at, value_at),
        headers_at,
    ):
        if count < MIN_RUN:
            return None
        column = data[at + stride : at + stride * count + 1 : stride]
        count -= len(column.lstrip(data[at : at + 1]))
    if count < MIN_RUN:
        return None
    columns = [
        data[at + stride : at + stride * count + 1 : stride]
        for at in range(timestamp_at, key_length_at)
    ]
    timestamps_end = delta_at - timestamp_at
    if columns[timestamps_end:] != _delta_columns(delta + 1, count, delta_bytes):
        return None
    timestamps = _timestamps(columns[:timestamps_end], first_timestamp, data, timestamp_at)
    if timestamps is None:
        return None

    cut = f"{key_at - model}x" + (f"{key_length}s" if key_length > 0 else "")
    cut += f"{value_at - value_length_at}x" + (f"{value_length}s" if value_length > 0 else "")
    fields = struct.iter_unpack(cut + "x", memoryview(data)[start : start + count * stride])
    keys = [None if key_length < 0 else b""] * count
    values = [None if value_length < 0 else b""] * count
    if key_length > 0 and value_length > 0:
        both: list[Any] = list(chain.from_iterable(fields))
        return Run(count, timestamps, both[0::2], both[1::2])
    if key_length > 0:
        return Run(count, timestamps, list(chain.from_iterable(fields)), values)
    if value_length > 0:
        return Run(count, timestamps, keys, list(chain.from_iterable(fields)))
    return Run(count, timestamps, keys, values)


def _delta_columns(first: int, count: int, width: int) -> list[bytes]:
    """The varints of `count` consecutive natural numbers, all `width` bytes long, by column."""
    if width == 1:
        return [bytes(range(first << 1, first + count << 1, 2))]
    block, skip = divmod(first, 64)
    blocks = range(block, (first + count - 1 >> 6) + 1)
    columns = [_LOW_GROUPS * len(blocks)]
    if width == 2:
        columns.append(b"".join([bytes((each,)) * 64 for each in blocks]))
    else:
        columns.append(b"".join([bytes((each & 0x7F | 0x80,)) * 64 for each in blocks]))
        columns.append(b"".join([bytes((each >> 7,)) * 64 for each in blocks]))
    return [column[skip : skip + count] for column in columns]


def _timestamps(columns: list[bytes], first: int, data: bytes, at: int) -> list[int] | None:
    """The timestamp deltas of a run; None where their varints are not all as long as the first."""
    count = len(columns[0])
    if all(column.count(data[at + each]) == count for each, column in enumerate(columns)):
        return [first] * count
    if not columns[-1].isascii():
        return None
    if any(column.translate(None, _CONTINUED) for column in columns[:-1]):
        return None
    zigzags = list(columns[-1])
    for column in reversed(columns[:-1]):
        zigzags = [zigzag << 7 | low & 0x7F for zigzag, low in zip(zigzags, column, strict=True)]
    return [zigzag >> 1 ^ -(zigzag & 1) for zigzag in zigzags]
