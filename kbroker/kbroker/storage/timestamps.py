"""Find the record of a batch that a timestamp asks for: the only place that looks inside one."""

from __future__ import annotations

from typing import Final, NamedTuple

from duolog_protocol.checksums import Buffer
from duolog_protocol.record_decoding import decode_records
from duolog_protocol.records import BatchHeader

MAX_BATCHES_DECODED: Final = 8
"""Batches that one look-up decodes."""


class TimestampAndOffset(NamedTuple):
    """Answer of ListOffsets: a record, and the leader epoch it was written in (-1 unknown)."""

    timestamp_ms: int
    offset: int
    leader_epoch: int = -1


def find_in_batch(batch: Buffer, timestamp_ms: int, start_offset: int) -> TimestampAndOffset | None:
    """The first record at or after `start_offset` with a timestamp of `timestamp_ms` or later."""
    for record in decode_records(batch):
        if record.timestamp >= timestamp_ms and record.offset >= start_offset:
            return TimestampAndOffset(record.timestamp, record.offset)
    return None


def at_header(header: BatchHeader, start_offset: int) -> TimestampAndOffset:
    """The answer as a batch's header has it, without a look at its records."""
    return TimestampAndOffset(header.max_timestamp, max(header.base_offset, start_offset))
