"""The values that a log takes and gives: settings, slices, results; and its one own error."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from duolog_protocol.errors import StorageError
from duolog_protocol.records import BatchHeader
from duolog_runtime.files import Buffer, File
from kbroker.storage.producer_snapshot import ProducerEntry
from kbroker.storage.retention import UNLIMITED, StartOffsetReason
from kbroker.storage.segment import Segment, SegmentLimits

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
"""No space, or no file descriptor: nothing is damaged, and it may go away by itself."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Settings of a topic that its logs follow; Kafka's names and defaults."""

    segment_bytes: int = 1024 * 1024 * 1024
    """`segment.bytes`"""
    segment_ms: int = 7 * 24 * 3600 * 1000
    """`segment.ms`, minus the jitter that the caller drew"""
    segment_index_bytes: int = 10 * 1024 * 1024
    """`segment.index.bytes`: a segment with a larger index is rolled"""
    index_interval_bytes: int = 4096
    """`index.interval.bytes`: at least so many bytes lie between two index entries"""
    retention_ms: int = 7 * 24 * 3600 * 1000
    """`retention.ms`, -1 for no limit"""
    retention_bytes: int = UNLIMITED
    """`retention.bytes`, -1 for no limit"""
    file_delete_delay_ms: int = 60_000
    """`file.delete.delay.ms`: time between dropping a segment and unlinking its files"""
    memory_tail_bytes: int = 2 * 1024 * 1024
    """Recently appended batches kept in memory, per log"""

    def __post_init__(self) -> None:
        assert 0 < self.segment_bytes < 2**31, self.segment_bytes
        assert self.segment_ms > 0, self.segment_ms
        assert self.segment_index_bytes >= 36, self.segment_index_bytes
        assert self.index_interval_bytes >= 0, self.index_interval_bytes

    @property
    def segment_limits(self) -> SegmentLimits:
        return SegmentLimits(
            self.segment_bytes,
            self.segment_ms,
            self.index_interval_bytes,
            self.segment_index_bytes,
        )


class OutOfOrderAppendError(StorageError):
    """An append below the log end, or of an older leader epoch, was refused; nothing happened."""


class ProducerStates(Protocol):
    """What the log needs of the producer state; `core.producer_state` has it."""

    def replay(self, header: BatchHeader) -> None: ...
    def snapshot(self) -> list[ProducerEntry]: ...
    def load(self, entries: Sequence[ProducerEntry]) -> None: ...


class AppendInfo(NamedTuple):
    """Where a batch set was written."""

    base_offset: int
    end_offset: int
    size_bytes: int
    rolled: bool


class LogSlice(NamedTuple):
    """Whole batches for [start_offset, end_offset): in memory, or a region of a file.

    The first batch may begin before `start_offset`; the next read starts at `end_offset`.

    With `file` None the bytes are `buffers`. Otherwise they are `size_bytes` at `position` of
    `file`, which stays open for `file_delete_delay_ms` after its segment is deleted; where a
    truncation raced with the read, fewer bytes come back.
    """

    start_offset: int
    end_offset: int
    size_bytes: int
    buffers: Sequence[Buffer]
    file: File | None
    position: int

    def read_cached(self) -> Sequence[Buffer] | None:
        """The bytes without waiting for the disk; None where that is not possible."""
        if self.file is None:
            return self.buffers
        data = self.file.pread_cached(self.size_bytes, self.position)
        return None if data is None else self._whole(data)

    def read(self) -> Sequence[Buffer]:
        """The bytes; may wait for the disk. Nothing where the log was truncated meanwhile."""
        if self.file is None:
            return self.buffers
        return self._whole(self.file.pread(self.size_bytes, self.position))

    def _whole(self, data: bytes) -> Sequence[Buffer]:
        return (data,) if len(data) == self.size_bytes else ()


class DeletedSegment(NamedTuple):
    """A segment renamed to `.deleted`; `Log.unlink_deleted` removes it for good later."""

    base_offset: int
    end_offset: int
    size_bytes: int
    reason: StartOffsetReason
    segment: Segment
    paths: Sequence[str]


def split_batches(batches: Sequence[Buffer], headers: Sequence[BatchHeader]) -> list[Buffer]:
    """One buffer per batch; views where a buffer holds several."""
    if len(batches) == len(headers):
        return list(batches)
    pieces: list[Buffer] = []
    remaining = iter(headers)
    for buffer in batches:
        view = memoryview(buffer)
        position = 0
        while position < len(view):
            end = position + next(remaining).size_bytes
            pieces.append(view[position:end])
            position = end
    return pieces
