"""From a batch to its records: what a consumer does, once per record.

Owns the two ways through a batch. The general one walks the varints. Runs of records that have
the same shape (the same lengths, as many producers send) are cut by `struct` in one call, after
their fixed bytes were compared column by column; that is three times as fast. Both give the same
records, and both refuse anything that does not add up.

Source: Kafka `DefaultRecord.readFrom`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from .checksums import Buffer
from .compression import MAX_DECOMPRESSED_BYTES, Codec, DecompressionError, decompress
from .records import (
    HEADER_BYTES,
    LOG_APPEND_TIME,
    BatchHeader,
    CorruptBatchError,
    check_batch,
    read_header,
)
from .varints import decode_varint

MIN_RUN: Final = 16
"""Shortest run of equally shaped records worth cutting in one call."""


class Record(NamedTuple):
    """One record as it is stored."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    """ms since the Unix epoch, by the clock that `timestamp_type` names."""
    timestamp_type: int
    """0 the producer's clock (CreateTime), 1 the broker's (LogAppendTime)."""
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


R = TypeVar("R", bound=Record)
_NO_HEADERS: Final[tuple[tuple[str, bytes | None], ...]] = ()


def decode_records(
    batch: Buffer,
    position: int = 0,
    *,
    topic: str = "",
    partition: int = -1,
    start_offset: int = 0,
    cls: type[R] | type[Record] = Record,
    check_crc: bool = True,
    max_bytes: int = MAX_DECOMPRESSED_BYTES,
) -> list[Any]:
    """The records of the batch at `position` from `start_offset` on, as values of `cls`.

    `cls` is `Record` or a subclass that adds no field. Control batches have no records. Raises
    CorruptBatchError.
    """
    header = check_batch(batch, position) if check_crc else read_header(batch, position)
    if header.is_control:
        return []
    found = _decode(_payload(batch, position, header, max_bytes), header, topic, partition, cls)
    if start_offset > header.base_offset:
        return [record for record in found if record.offset >= start_offset]
    return found


def control_type(batch: Buffer, position: int = 0) -> int:
    """What a control batch marks: 0 abort, 1 commit. Raises CorruptBatchError."""
    header = check_batch(batch, position)
    if not header.is_control:
        raise CorruptBatchError(f"batch at {position} is no control batch")
    payload = _payload(batch, position, header, MAX_DECOMPRESSED_BYTES)
    (record,) = _decode(payload, header, "", -1, Record)
    key = record.key
    if key is None or len(key) < 4:
        raise CorruptBatchError(f"control batch at {position} has the key {key!r}")
    return int.from_bytes(key[2:4], "big")


def validate_records(batch: Buffer, position: int = 0) -> list[Record]:
    """All records of a batch, each checked: offset deltas 0, 1, 2 ... Raises CorruptBatchError."""
    header = check_batch(batch, position)
    payload = _payload(batch, position, header, MAX_DECOMPRESSED_BYTES)
    found: list[Record] = _decode(payload, header, "", -1, Record)
    for index, record in enumerate(found):
        if record.offset != header.base_offset + index:
            raise CorruptBatchError(f"record {index} has the offset {record.offset}")
    return found


def _payload(batch: Buffer, position: int, header: BatchHeader, max_bytes: int) -> bytes:
    start, end = position + HEADER_BYTES, position + header.size_bytes
    view = memoryview(batch)[start:end]
    if header.codec == Codec.NONE:
        return bytes(view)
    try:
        return decompress(Codec(header.codec), view, max_bytes)
    except (DecompressionError, ValueError) as error:
        raise CorruptBatchError(f"batch at {position}: {error}") from error


def _decode(
    data: bytes, header: BatchHeader, topic: str, partition: int, cls: type[Any]
) -> list[Any]:
    try:
        return _walk(data, header, topic, partition, cls)
    except (IndexError, ValueError, struct.error) as error:
        if isinstance(error, CorruptBatchError):
            raise
        raise CorruptBatchError(
            f"records of the batch at offset {header.base_offset} are damaged: {error}"
        ) from error


def _walk(
    data: bytes, header: BatchHeader, topic: str, partition: int, cls: type[Any]
) -> list[Any]:
    base_offset, base_timestamp = header.base_offset, header.base_timestamp
    timestamp_type, timestamp = header.timestamp_type, header.max_timestamp
    from_broker = timestamp_type == LOG_APPEND_TIME
    count, last_delta, size = header.records_count, header.last_offset_delta, len(data)
    if not 0 <= count <= size:
        raise CorruptBatchError(f"{count} records in {size} bytes")
    new = tuple.__new__
    out: list[Any] = []
    append = out.append
    position = 0
    run_length = -1
    index = 0
    while index < count:
        start = position
        # The length.
        byte = data[position]
        if byte < 128:
            position += 1
            length = byte >> 1
            if byte & 1:
                raise CorruptBatchError(f"record {index} has a negative length")
        elif data[position + 1] < 128:
            length = ((byte & 127) | data[position + 1] << 7) >> 1
            if byte & 1:
                raise CorruptBatchError(f"record {index} has a negative length")
            position += 2
        else:
            length, position = decode_varint(data, position)
        end = position + length
        if length < 6 or end > size:
            raise CorruptBatchError(f"record {index} of {length} bytes does not fit")
        body = position
        position += 1  # attributes: none are in use
        # The timestamp.
        byte = data[position]
        if byte < 128:
            delta = byte >> 1 ^ -(byte & 1)
            position += 1
        else:
            delta, position = decode_varint(data, position)
        if not from_broker:
            timestamp = base_timestamp + delta
        # The offset.
        byte = data[position]
        if byte < 128:
            delta = byte >> 1 ^ -(byte & 1)
            position += 1
        elif data[position + 1] < 128:
            delta = ((byte & 127) | data[position + 1] << 7) >> 1 ^ -(byte & 1)
            position += 2
        else:
            delta, position = decode_varint(data, position)
        if not 0 <= delta <= last_delta:
            raise CorruptBatchError(f"record {index} has the offset delta {delta}")
        # The key.
        byte = data[position]
        if byte == 1:
            key = None
            position += 1
        else:
            if byte < 128:
                length = byte >> 1 ^ -(byte & 1)
                position += 1
            else:
                length, position = decode_varint(data, position)
            if length < 0:
                raise CorruptBatchError(f"record {index} has a key of {length} bytes")
            key = data[position : position + length]
            position += length
        # The value.
        byte = data[position]
        if byte == 1:
            value = None
            position += 1
        else:
            if byte < 128:
                length = byte >> 1 ^ -(byte & 1)
                position += 1
            elif data[position + 1] < 128:
                length = ((byte & 127) | data[position + 1] << 7) >> 1 ^ -(byte & 1)
                position += 2
            else:
                length, position = decode_varint(data, position)
            if length < 0:
                raise CorruptBatchError(f"record {index} has a value of {length} bytes")
            value = data[position : position + length]
            position += length
        # The headers.
        if data[position] == 0:
            headers = _NO_HEADERS
            position += 1
        else:
            headers, position = _headers(data, position, end)
        if position != end:
            raise CorruptBatchError(f"record {index} ends at {position}, not at {end}")
        append(
            new(
                cls,
                (
                    topic,
                    partition,
                    base_offset + delta,
                    timestamp,
                    timestamp_type,
                    key,
                    value,
                    headers,
                ),
            )
        )
        index += 1
        # Three in a row of one length: look whether a run begins here.
        stride = end - start
        if stride != run_length:
            run_length = stride
        elif headers is _NO_HEADERS and count - index >= MIN_RUN and not index & 3:
            run = _run(data, body - start, position - stride, stride, count - index)
            if run is not None:
                deltas, keys_and_values, timestamps = run
                got = len(deltas)
                if deltas[-1] > last_delta:
                    raise CorruptBatchError(f"a record has the offset delta {deltas[-1]}")
                if from_broker:
                    stamps: Iterator[int] | list[int] = [timestamp] * got
                else:
                    stamps = [base_timestamp + each for each in timestamps]
                out += [
                    new(
                        cls,
                        (
                            topic,
                            partition,
                            base_offset + delta,
                            stamp,
                            timestamp_type,
                            key,
                            value,
                            _NO_HEADERS,
                        ),
                    )
                    for delta, stamp, (key, value) in zip(
                        deltas, stamps, keys_and_values, strict=True
                    )
                ]
                index += got
                position += got * stride
    if position != size:
        raise CorruptBatchError(f"{size - position} bytes after the last record")
    return out


def _run(
    data: bytes, prefix: int, model: int, stride: int, left: int
) -> tuple[range, Sequence[tuple[bytes | None, bytes | None]], list[int]] | None:
    """The records after `model` that have its shape, without headers, as three columns.

    `prefix` is the size of the length field; `model` the position of the record that shows the
    shape; at most `left` records follow. None where the run is too short.
    """
    at = model + prefix + 1
    stamp_at = at
    _, at = decode_varint(data, at)
    stamp_bytes = at - stamp_at
    delta_at = at
    first, at = decode_varint(data, at)
    delta_bytes = at - delta_at
    key_at = at
    key_length, at = decode_varint(data, at)
    key_bytes = at - key_at
    key_start = at
    at += max(key_length, 0)
    value_at = at
    value_length, at = decode_varint(data, at)
    value_bytes = at - value_at
    value_start = at
    # How many deltas of this width follow.
    width_end = (1 << 6) if delta_bytes == 1 else (1 << 13) if delta_bytes == 2 else 1 << 20
    count = min(left, width_end - first - 1)
    begin = model + stride
    count = min(count, (len(data) - begin) // stride)
    if count < MIN_RUN or stamp_bytes > 2 or delta_bytes > 3:
        return None

    def column(offset: int, limit: int) -> bytes:
        return data[begin + offset - model : begin + limit * stride : stride]

    def agree(start: int, size: int, limit: int) -> int:
        """How many records from the first one have the model's bytes there."""
        for each in range(start, start + size):
            found = column(each, limit)
            same = len(found) - len(found.lstrip(data[each : each + 1]))
            limit = min(limit, same)
        return limit

    count = agree(model, prefix, count)
    count = agree(key_at, key_bytes, count)
    count = agree(value_at, value_bytes, count)
    count = agree(value_start + max(value_length, 0), 1, count)
    if count < MIN_RUN:
        return None
    deltas = range(first + 1, first + 1 + count)
    expected = _delta_columns(deltas, delta_bytes)
    for each in range(delta_bytes):
        if column(delta_at + each, count) != expected[each]:
            return None
    stamps = column(stamp_at, count)
    if stamp_bytes == 1:
        if max(stamps) > 127:
            return None
        timestamps = [byte >> 1 ^ -(byte & 1) for byte in stamps]
    else:
        seconds = column(stamp_at + 1, count)
        if min(stamps) < 128 or max(seconds) > 127:
            return None
        timestamps = [
            ((low & 127) | high << 7) >> 1 ^ -(low & 1)
            for low, high in zip(stamps, seconds, strict=True)
        ]
    pattern = f"{key_start - model}x"
    if key_length > 0:
        pattern += f"{key_length}s"
    pattern += f"{value_bytes}x"
    if value_length > 0:
        pattern += f"{value_length}s"
    pattern += "1x"
    cut = struct.iter_unpack(pattern, memoryview(data)[begin : begin + count * stride])
    no_key = None if key_length < 0 else b""
    no_value = None if value_length < 0 else b""
    if key_length > 0 and value_length > 0:
        return deltas, list(cut), timestamps
    if value_length > 0:
        return deltas, [(no_key, value) for (value,) in cut], timestamps
    if key_length > 0:
        return deltas, [(key, no_value) for (key,) in cut], timestamps
    return deltas, [(no_key, no_value)] * count, timestamps


def _delta_columns(deltas: range, width: int) -> list[bytes]:
    """The bytes of consecutive offset deltas of one width, column by column."""
    zigzag = range(deltas.start << 1, deltas.stop << 1, 2)
    if width == 1:
        return [bytes(zigzag)]
    if width == 2:
        return [bytes([n & 127 | 128 for n in zigzag]), bytes([n >> 7 for n in zigzag])]
    return [
        bytes([n & 127 | 128 for n in zigzag]),
        bytes([n >> 7 & 127 | 128 for n in zigzag]),
        bytes([n >> 14 for n in zigzag]),
    ]


def _headers(
    data: bytes, position: int, end: int
) -> tuple[tuple[tuple[str, bytes | None], ...], int]:
    count, position = decode_varint(data, position)
    if not 0 <= count <= end - position:
        raise CorruptBatchError(f"{count} headers in {end - position} bytes")
    found: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        size, position = decode_varint(data, position)
        if not 0 <= size <= end - position:
            raise CorruptBatchError(f"a header's key has {size} bytes")
        name = data[position : position + size].decode()
        position += size
        size, position = decode_varint(data, position)
        if size == -1:
            found.append((name, None))
            continue
        if not 0 <= size <= end - position:
            raise CorruptBatchError(f"the value of header {name!r} has {size} bytes")
        found.append((name, data[position : position + size]))
        position += size
    return tuple(found), position
