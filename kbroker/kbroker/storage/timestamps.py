"""Find the record of a batch that a timestamp asks for: the only place that looks inside one."""

from __future__ import annotations

from typing import NamedTuple

from duolog_protocol.checksums import Buffer
from duolog_protocol.record_decoding import decode_records


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
