"""From a batch to its records: what a consumer does, once per record.

Decoding gives columns, since a consumer turns them into its own values with one `zip`, and
deserializes a column with one `map`. The walk below reads the one- and two-byte varints in place;
runs of equally shaped records go through `record_runs`. Both give the same records, and both refuse
anything that does not add up. Time and memory are in proportion to the decompressed bytes, which
are bounded; so are the records and headers of one batch.

Source: Kafka `DefaultRecord.readFrom`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from functools import partial
from itertools import repeat
from typing import Any, Final, NamedTuple, TypeVar

from .checksums import Buffer
from .compression import MAX_DECOMPRESSED_BYTES, Codec, decompress
from .record_runs import MIN_RUN, read_run
from .records import (
    HEADER_BYTES,
    LOG_APPEND_TIME,
    MAX_RECORDS_PER_BATCH,
    BatchHeader,
    CorruptBatchError,
    check_batch,
    read_header,
)
from .varints import decode_varint

MAX_HEADERS_PER_BATCH: Final = 1 << 20
"""A header takes two bytes of a batch and sixty of memory."""
MIN_RECORD_BYTES: Final = 7

_FIRST_REACH: Final = 64
_MAX_PAUSE: Final = 64

Headers = tuple[tuple[str, bytes | None], ...]


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
    headers: Headers


class Columns(NamedTuple):
    """The records of one batch, field by field; all columns have the same length."""

    offsets: list[int]
    """Strictly increasing."""
    timestamps: list[int]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Headers]


R = TypeVar("R", bound=Record)
T = TypeVar("T", bound=tuple[Any, ...])


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
    columns = decode_columns(
        batch, position, header, start_offset=start_offset, max_bytes=max_bytes
    )
    offsets, timestamps, keys, values, headers = columns
    return tuples_of(
        cls,
        repeat(topic),
        repeat(partition),
        offsets,
        timestamps,
        repeat(header.timestamp_type),
        keys,
        values,
        headers,
    )


def tuples_of(cls: type[T], *columns: Iterable[object]) -> list[T]:
    """Rows of the named tuple `cls`, a column for each of its fields, without a call for each."""
    return list(map(partial(tuple.__new__, cls), zip(*columns)))  # noqa: B905 some are endless


def decode_columns(
    batch: Buffer,
    position: int = 0,
    header: BatchHeader | None = None,
    *,
    start_offset: int = 0,
    max_bytes: int = MAX_DECOMPRESSED_BYTES,
) -> Columns:
    """All records of the batch at `position` from `start_offset` on, markers too.

    `header` is what `check_batch` or `read_header` gave for it; without one, the batch is checked
    here. Raises CorruptBatchError.
    """
    if header is None:
        header = check_batch(batch, position)
    start, end = position + HEADER_BYTES, position + header.size_bytes
    try:
        if end > len(batch):
            raise ValueError(f"{header.size_bytes} bytes are announced, {len(batch)} are there")
        if header.codec == Codec.NONE and isinstance(batch, bytes):
            columns = _walk(batch, start, end, header)
        elif header.codec == Codec.NONE or header.records_count == 0:
            columns = _walk(bytes(memoryview(batch)[start:end]), 0, end - start, header)
        else:
            view = memoryview(batch)[start:end]
            payload = decompress(Codec(header.codec), view, max_bytes)
            columns = _walk(payload, 0, len(payload), header)
    except IndexError as error:
        raise _corrupt(header, position, "it ends inside a record") from error
    except ValueError as error:
        raise _corrupt(header, position, str(error)) from error
    if start_offset > header.base_offset:
        skipped = bisect_left(columns.offsets, start_offset)
        offsets, timestamps, keys, values, headers = columns
        return Columns(
            offsets[skipped:],
            timestamps[skipped:],
            keys[skipped:],
            values[skipped:],
            headers[skipped:],
        )
    return columns


def control_type(batch: Buffer, position: int = 0) -> int:
    """What a control batch marks: 0 abort, 1 commit. Raises CorruptBatchError."""
    header = check_batch(batch, position)
    if not header.is_control:
        raise CorruptBatchError(f"batch at {position} is no control batch")
    keys = decode_columns(batch, position, header).keys
    if len(keys) != 1 or keys[0] is None or len(keys[0]) < 4:
        raise _corrupt(header, position, "a control batch has one record with a key of 4 bytes")
    return int.from_bytes(keys[0][2:4], "big")


def validate_records(batch: Buffer, position: int = 0) -> Columns:
    """All records of a batch, each checked: offset deltas 0, 1, 2 ... Raises CorruptBatchError."""
    header = check_batch(batch, position)
    columns = decode_columns(batch, position, header)
    if columns.offsets != list(range(header.base_offset, header.next_offset)):
        raise _corrupt(header, position, "its records do not have consecutive offsets")
    return columns


def _corrupt(header: BatchHeader, position: int, problem: str) -> CorruptBatchError:
    return CorruptBatchError(
        f"batch at {position} with base offset {header.base_offset}: {problem}"
    )


def _walk(data: bytes, position: int, size: int, header: BatchHeader) -> Columns:
    """The records in [position, size). Raises IndexError and ValueError."""
    count, base_timestamp = header.records_count, header.base_timestamp
    if not 0 <= count <= min(MAX_RECORDS_PER_BATCH, (size - position) // MIN_RECORD_BYTES):
        raise ValueError(f"{count} records in {size - position} bytes")
    timestamps: list[int] = []
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    add_timestamp, add_key, add_value = timestamps.append, keys.append, values.append
    headers_at: dict[int, Headers] = {}
    headers_left = MAX_HEADERS_PER_BATCH
    # Offsets are consecutive but for the holes that compaction leaves: where the offset delta
    # exceeds the index by more than before.
    excess = 0
    holes: list[tuple[int, int]] = []
    # A run is looked for at `attempt`; attempts that fail make the next one later.
    attempt = pause = 1
    reach = _FIRST_REACH
    index = 0
    while index < count:
        model = position
        byte = data[position]
        if byte < 0x80:
            position += 1
        elif (high := data[position + 1]) < 0x80:
            byte = byte & 0x7F | high << 7
            position += 2
        else:
            byte, position = _zigzag(data, position, 32)
        body = position
        twice_end = position + position + byte  # odd, so never met, where the length is negative

        byte = data[position + 1]  # behind the record's attributes, none of which are in use
        if byte < 0x80:
            position += 2
        elif (high := data[position + 2]) < 0x80:
            byte = byte & 0x7F | high << 7
            position += 3
        else:
            byte, position = _zigzag(data, position + 1, 64)
        add_timestamp(base_timestamp + (byte >> 1 ^ -(byte & 1)))

        byte = data[position]
        if byte < 0x80:
            position += 1
        elif (high := data[position + 1]) < 0x80:
            byte = byte & 0x7F | high << 7
            position += 2
        else:
            byte, position = _zigzag(data, position, 32)
        if byte != index + excess << 1:
            if byte & 1 or byte >> 1 < index + excess:
                raise ValueError(f"record {index} is not behind the offset of the one before")
            excess = (byte >> 1) - index
            holes.append((index, excess))

        byte = data[position]
        if byte == 1:
            position += 1
            add_key(None)
        else:
            if byte < 0x80:
                position += 1
            elif (high := data[position + 1]) < 0x80:
                byte = byte & 0x7F | high << 7
                position += 2
            else:
                byte, position = _zigzag(data, position, 32)
            if byte & 1:
                raise ValueError(f"record {index} has a key of negative length")
            end = position + (byte >> 1)
            add_key(data[position:end])
            position = end

        byte = data[position]
        if byte == 1:
            position += 1
            add_value(None)
        else:
            if byte < 0x80:
                position += 1
            elif (high := data[position + 1]) < 0x80:
                byte = byte & 0x7F | high << 7
                position += 2
            else:
                byte, position = _zigzag(data, position, 32)
            if byte & 1:
                raise ValueError(f"record {index} has a value of negative length")
            end = position + (byte >> 1)
            add_value(data[position:end])
            position = end

        if data[position] == 0:
            position += 1
        else:
            headers, position = _headers(data, position, min(twice_end >> 1, size), headers_left)
            headers_at[index] = headers
            headers_left -= len(headers)
        if position + position != twice_end:
            raise ValueError(f"record {index} does not end where its length says")
        index += 1

        if index == attempt:
            run = None
            if (
                count - index >= MIN_RUN
                and index - 1 not in headers_at
                and data[model:body] == data[position : position + body - model]
            ):
                limit = min(reach, count - index)
                run = read_run(data, model, body, position, limit=limit, end=size)
            if run is None:
                pause = min(2 * pause, _MAX_PAUSE)
                reach = _FIRST_REACH
                attempt = index + pause
            else:
                got = run.records_count
                timestamps += [base_timestamp + delta for delta in run.timestamp_deltas]
                keys += run.keys
                values += run.values
                position += got * (position - model)
                index += got
                # Work done for a run is at most eight times what the last one brought.
                reach = max(_FIRST_REACH, 8 * got)
                pause = 1
                attempt = index + 1
    if position != size:
        raise ValueError(f"its records end {position - size:+} bytes from its end")
    if count and count - 1 + excess > header.last_offset_delta:
        raise ValueError(f"a record is behind its last offset {header.last_offset}")
    if header.timestamp_type == LOG_APPEND_TIME:
        timestamps = [header.max_timestamp] * count
    headers_column: list[Headers] = [()] * count
    for at, headers in headers_at.items():
        headers_column[at] = headers
    return Columns(
        _offsets(header.base_offset, count, holes), timestamps, keys, values, headers_column
    )


def _offsets(base_offset: int, count: int, holes: list[tuple[int, int]]) -> list[int]:
    """Consecutive offsets, but for `holes`: pairs of an index and what it exceeds the index by."""
    if not holes:
        return list(range(base_offset, base_offset + count))
    offsets: list[int] = []
    first = base_offset
    for index, excess in holes:
        offsets += range(first, first + index - len(offsets))
        first = base_offset + excess + index
    offsets += range(first, first + count - len(offsets))
    return offsets


def _zigzag(data: bytes, position: int, bits: int) -> tuple[int, int]:
    """A varint of three bytes or more, still zigzag, and the position after it."""
    start = data[position] & 0x7F | (data[position + 1] & 0x7F) << 7
    if (third := data[position + 2]) < 0x80:
        return start | third << 14, position + 3
    if (fourth := data[position + 3]) < 0x80:
        return start | (third & 0x7F) << 14 | fourth << 21, position + 4
    number, position = decode_varint(data, position, bits)
    return (number << 1 if number >= 0 else (-number << 1) - 1), position


def _headers(data: bytes, position: int, end: int, most: int) -> tuple[Headers, int]:
    """The headers of a record that ends at `end`.

    As in Kafka, a key that is not UTF-8 is read with replacement characters: nobody checked it when
    it was produced, and a consumer must be able to get past it.
    """
    count, position = decode_varint(data, position)
    if not 0 <= count <= min(most, end - position >> 1):
        raise ValueError(f"{count} headers in {end - position} bytes")
    found: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        byte = data[position]
        if byte < 0x80 and not byte & 1:
            size = byte >> 1
            position += 1
        else:
            size, position = decode_varint(data, position)
        behind = position + size
        if not position <= behind <= end:
            raise ValueError(f"a header's key of {size} bytes does not fit")
        name = data[position:behind].decode("utf-8", "replace")
        byte = data[behind]
        if byte == 1:
            position = behind + 1
            found.append((name, None))
            continue
        if byte < 0x80 and not byte & 1:
            size = byte >> 1
            position = behind + 1
        else:
            size, position = decode_varint(data, behind)
        behind = position + size
        if not position <= behind <= end:
            raise ValueError(f"the value of header {name!r}, {size} bytes, does not fit")
        found.append((name, data[position:behind]))
        position = behind
    return tuple(found), position
