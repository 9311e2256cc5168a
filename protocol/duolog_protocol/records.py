"""RecordBatch v2: Kafka's batch of records, byte for byte.

    batch  = base_offset i64 | batch_length i32 | leader_epoch i32 | magic i8 = 2 | crc u32
             | attributes i16 | last_offset_delta i32 | base_timestamp i64 | max_timestamp i64
             | producer_id i64 | producer_epoch i16 | base_sequence i32 | records_count i32
             | records (one compressed stream where the attributes name a codec)
    record = length varint | attributes i8 | timestamp_delta varlong | offset_delta varint
             | key length varint | key | value length varint | value
             | headers count varint | (key length varint | key | value length varint | value)*

`crc` is CRC-32C over everything from `attributes` on, so a broker may stamp base offset and leader
epoch without touching it. Owns these bytes only; what a broker accepts is `validate_client_batch`,
what a consumer sees is `record_decoding`.

Source: Kafka `DefaultRecordBatch`, `DefaultRecord`, KIP-98.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from .checksums import Buffer, crc32c
from .compression import Codec, compress
from .errors import InvalidRecordError, UnsupportedCompressionTypeError
from .varints import TABLE_END, VARINT, encode_varint

BATCH_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES: Final = BATCH_HEADER.size
LOG_OVERHEAD_BYTES: Final = 12
"""Bytes before those that `batch_length` counts."""
CRC_START: Final = 21
MIN_BATCH_LENGTH: Final = HEADER_BYTES - LOG_OVERHEAD_BYTES
MAGIC: Final = 2
NO_PRODUCER_ID: Final = -1
NO_SEQUENCE: Final = -1
NO_TIMESTAMP: Final = -1
SEQUENCE_MODULUS: Final = 1 << 31
RECORD_OVERHEAD_BYTES: Final = 21
"""Most that a record adds to key, value and headers."""

CODEC_MASK: Final = 0x07
TIMESTAMP_TYPE_BIT: Final = 0x08
TRANSACTIONAL_BIT: Final = 0x10
CONTROL_BIT: Final = 0x20
CREATE_TIME: Final = 0
LOG_APPEND_TIME: Final = 1

_STAMP: Final = struct.Struct(">q")
_EPOCH: Final = struct.Struct(">i")
_CRC: Final = struct.Struct(">I")
_FROM_ATTRIBUTES: Final = struct.Struct(">hiqqqhii")
_EPOCH_AT: Final = 12
_CRC_AT: Final = 17
_ATTRIBUTES_AT: Final = 21
_MAX_TIMESTAMP_AT: Final = 35

RecordHeaders = Sequence[tuple[str, bytes | None]]


class CorruptBatchError(ValueError):
    """The bytes are no whole, undamaged batch. The message names what and where."""


class BatchHeader(NamedTuple):
    """The fixed part of a batch, in wire order."""

    base_offset: int
    batch_length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records_count: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole batch."""
        return LOG_OVERHEAD_BYTES + self.batch_length

    @property
    def last_offset(self) -> int:
        """Offset of the last record, inclusive."""
        return self.base_offset + self.last_offset_delta

    @property
    def next_offset(self) -> int:
        """Offset after the last record."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def last_sequence(self) -> int:
        """Sequence of the last record; 2147483647 is followed by 0."""
        return (self.base_sequence + self.last_offset_delta) % SEQUENCE_MODULUS

    @property
    def codec(self) -> int:
        """Number of the codec; see `Codec`."""
        return self.attributes & CODEC_MASK

    @property
    def timestamp_type(self) -> int:
        """`CREATE_TIME` or `LOG_APPEND_TIME`."""
        return (self.attributes & TIMESTAMP_TYPE_BIT) >> 3

    @property
    def is_transactional(self) -> bool:
        """Part of a transaction."""
        return bool(self.attributes & TRANSACTIONAL_BIT)

    @property
    def is_control(self) -> bool:
        """Holds a marker, not records for applications."""
        return bool(self.attributes & CONTROL_BIT)


def read_header(buffer: Buffer, position: int = 0) -> BatchHeader:
    """The header at `position`, checked for shape but not for damage. Raises CorruptBatchError."""
    if position < 0 or len(buffer) - position < HEADER_BYTES:
        raise CorruptBatchError(
            f"{len(buffer) - position} bytes at {position}, a batch has at least {HEADER_BYTES}"
        )
    header = BatchHeader._make(BATCH_HEADER.unpack_from(buffer, position))
    if header.magic != MAGIC:
        raise CorruptBatchError(f"batch at {position} has magic {header.magic}, not {MAGIC}")
    if header.batch_length < MIN_BATCH_LENGTH:
        raise CorruptBatchError(
            f"batch at {position} has length {header.batch_length}, below {MIN_BATCH_LENGTH}"
        )
    if header.last_offset_delta < 0 or header.base_offset < 0:
        raise CorruptBatchError(
            f"batch at {position} has offset {header.base_offset} and last delta "
            f"{header.last_offset_delta}"
        )
    return header


def check_batch(buffer: Buffer, position: int = 0, end: int | None = None) -> BatchHeader:
    """The header of a whole batch within [position, end) whose CRC fits.

    Raises CorruptBatchError.
    """
    if end is None:
        end = len(buffer)
    header = read_header(buffer, position)
    batch_end = position + header.size_bytes
    if batch_end > end:
        raise CorruptBatchError(
            f"batch at {position} has {header.size_bytes} bytes, {end - position} are there"
        )
    crc = crc32c(memoryview(buffer)[position + CRC_START : batch_end])
    if crc != header.crc:
        raise CorruptBatchError(
            f"batch at {position}: CRC is {crc:#010x}, its header says {header.crc:#010x}"
        )
    return header


def iter_headers(
    buffer: Buffer, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, BatchHeader]]:
    """(position, header) of the whole batches in [start, end); stops before one that is cut.

    Raises CorruptBatchError.
    """
    if end is None:
        end = len(buffer)
    position = start
    while end - position >= HEADER_BYTES:
        header = read_header(buffer, position)
        if position + header.size_bytes > end:
            return
        yield position, header
        position += header.size_bytes


def validate_client_batch(header: BatchHeader, size_bytes: int) -> None:
    """What a leader demands of a client's batch beyond its CRC.

    Raises CorruptBatchError, InvalidRecordError, UnsupportedCompressionTypeError.
    """
    if header.size_bytes != size_bytes:
        raise CorruptBatchError(
            f"{size_bytes - header.size_bytes} bytes after the batch: send one batch a partition"
        )
    if header.is_control:
        raise InvalidRecordError("clients must not send control batches")
    if header.is_transactional:
        raise InvalidRecordError("transactions are not offered yet")
    if header.records_count <= 0 or header.records_count != header.last_offset_delta + 1:
        raise InvalidRecordError(
            f"batch has {header.records_count} records and a last offset delta of "
            f"{header.last_offset_delta}"
        )
    if header.codec > Codec.ZSTD:
        raise UnsupportedCompressionTypeError(f"codec {header.codec} is not known")
    if header.producer_id >= 0 and (header.base_sequence < 0 or header.producer_epoch < 0):
        raise InvalidRecordError(
            f"producer {header.producer_id} sent sequence {header.base_sequence}, "
            f"epoch {header.producer_epoch}: both must be at least 0"
        )


def stamp(batch: bytearray | memoryview, base_offset: int, leader_epoch: int) -> None:
    """Write where the batch stands and under which leader; the CRC stays right."""
    _STAMP.pack_into(batch, 0, base_offset)
    _EPOCH.pack_into(batch, _EPOCH_AT, leader_epoch)


def stamp_log_append_time(batch: bytearray | memoryview, timestamp_ms: int) -> None:
    """Replace all timestamps of the batch by the broker's, and its CRC."""
    attributes = int.from_bytes(batch[_ATTRIBUTES_AT : _ATTRIBUTES_AT + 2], "big")
    batch[_ATTRIBUTES_AT : _ATTRIBUTES_AT + 2] = (attributes | TIMESTAMP_TYPE_BIT).to_bytes(
        2, "big"
    )
    _STAMP.pack_into(batch, _MAX_TIMESTAMP_AT, timestamp_ms)
    _CRC.pack_into(batch, _CRC_AT, crc32c(memoryview(batch)[CRC_START:]))


def encode_batch_header(
    records: bytes,
    *,
    attributes: int,
    last_offset_delta: int,
    base_timestamp: int,
    max_timestamp: int,
    producer_id: int,
    producer_epoch: int,
    base_sequence: int,
    records_count: int,
    base_offset: int = 0,
    leader_epoch: int = -1,
) -> bytes:
    """A whole batch around encoded (and compressed) records."""
    rest = (
        _FROM_ATTRIBUTES.pack(
            attributes,
            last_offset_delta,
            base_timestamp,
            max_timestamp,
            producer_id,
            producer_epoch,
            base_sequence,
            records_count,
        )
        + records
    )
    length = HEADER_BYTES - LOG_OVERHEAD_BYTES + len(records)
    start = struct.pack(">qiibI", base_offset, length, leader_epoch, MAGIC, crc32c(rest))
    return start + rest


class BatchBuilder:
    """Collects records and encodes them as one batch.

    `append` is on the path of every record that a producer sends: it encodes at once and keeps
    bytes, never objects.
    """

    __slots__ = ("_pieces", "base_timestamp", "max_timestamp", "records_count", "size_bytes")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.records_count = 0
        self.size_bytes = HEADER_BYTES
        """Bytes of the batch if it were built now, uncompressed."""
        self.base_timestamp = NO_TIMESTAMP
        self.max_timestamp = NO_TIMESTAMP

    def append(
        self,
        timestamp_ms: int,
        key: bytes | None,
        value: bytes | None,
        headers: RecordHeaders = (),
    ) -> int:
        """Add a record and return its offset delta."""
        delta = self.records_count
        if delta == 0:
            self.base_timestamp = self.max_timestamp = timestamp_ms
            later = 0
        else:
            later = timestamp_ms - self.base_timestamp
            self.max_timestamp = max(self.max_timestamp, timestamp_ms)
        table = VARINT
        if key is None:
            key_length, key = _NULL, b""
        else:
            size = len(key)
            key_length = table[size] if size < TABLE_END else encode_varint(size)
        if value is None:
            value_length, value = _NULL, b""
        else:
            size = len(value)
            value_length = table[size] if size < TABLE_END else encode_varint(size)
        body = b"".join(
            (
                b"\0",
                table[later] if 0 <= later < TABLE_END else encode_varint(later),
                table[delta] if delta < TABLE_END else encode_varint(delta),
                key_length,
                key,
                value_length,
                value,
                _encode_headers(headers) if headers else b"\0",
            )
        )
        size = len(body)
        length = table[size] if size < TABLE_END else encode_varint(size)
        self._pieces += (length, body)
        self.records_count = delta + 1
        self.size_bytes += size + len(length)
        return delta

    def build(
        self,
        codec: Codec = Codec.NONE,
        *,
        producer_id: int = NO_PRODUCER_ID,
        producer_epoch: int = -1,
        base_sequence: int = NO_SEQUENCE,
        base_offset: int = 0,
        leader_epoch: int = -1,
        attributes: int = 0,
    ) -> bytes:
        """The batch; the builder may be built again with other values."""
        assert self.records_count > 0, "a batch has at least one record"
        records = b"".join(self._pieces)
        if codec is not Codec.NONE:
            records = compress(codec, records)
        return encode_batch_header(
            records,
            attributes=attributes | codec,
            last_offset_delta=self.records_count - 1,
            base_timestamp=self.base_timestamp,
            max_timestamp=self.max_timestamp,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            base_sequence=base_sequence,
            records_count=self.records_count,
            base_offset=base_offset,
            leader_epoch=leader_epoch,
        )


_NULL: Final = encode_varint(-1)


def _encode_headers(headers: RecordHeaders) -> bytes:
    pieces = [encode_varint(len(headers))]
    for name, value in headers:
        encoded = name.encode()
        pieces += (encode_varint(len(encoded)), encoded)
        if value is None:
            pieces.append(_NULL)
        else:
            pieces += (encode_varint(len(value)), value)
    return b"".join(pieces)


def record_size_bytes(key: bytes | None, value: bytes | None, headers: RecordHeaders = ()) -> int:
    """Upper bound of what a record takes in a batch."""
    size = RECORD_OVERHEAD_BYTES + len(key or b"") + len(value or b"")
    for name, each in headers:
        size += 10 + len(name.encode()) + len(each or b"")
    return size
