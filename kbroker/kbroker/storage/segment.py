"""One segment of a log: a file of batches back to back, and its two sparse indexes.

Owns the bytes of `%020d.log` and the entries of `.index` and `.timeindex`. Must never trust an
index: the batch that an entry points at is compared with the entry, and a wrong index is rebuilt
from the log file. The active segment's indexes live in memory and reach their files when the
segment is sealed or closed; a sealed segment loads them at the first look-up.

Source: Kafka LogSegment; proglog's store / index / segment layering.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from duolog_protocol.errors import CorruptRecordError
from duolog_protocol.records import HEADER_BYTES, BatchHeader, CorruptBatchError, read_header
from duolog_runtime.files import Buffer, File, Files
from kbroker.storage.index import (
    MAX_RELATIVE_OFFSET,
    OFFSET_ENTRY_BYTES,
    TIME_ENTRY_BYTES,
    CorruptIndexError,
    OffsetIndex,
    TimeIndex,
)
from kbroker.storage.scan import WALK_CHUNK_BYTES, scan_headers

LOG_SUFFIX = ".log"
OFFSET_INDEX_SUFFIX = ".index"
TIME_INDEX_SUFFIX = ".timeindex"
DELETED_SUFFIX = ".deleted"
NO_TIMESTAMP = -1


class SegmentLimits(NamedTuple):
    """When a segment is full, and how sparse its indexes are."""

    segment_bytes: int
    segment_ms: int
    index_interval_bytes: int
    index_bytes: int


def file_name(base_offset: int, suffix: str) -> str:
    """Kafka's name of a file of the segment that starts at `base_offset`."""
    return f"{base_offset:020d}{suffix}"


class Segment:
    """Batches with offsets in [base_offset, end_offset)."""

    __slots__ = (
        "_bytes_since_index_entry",
        "_directory",
        "_file",
        "_files",
        "_first_timestamp",
        "_offset_index",
        "_time_index",
        "base_offset",
        "created_ms",
        "end_offset",
        "limits",
        "max_timestamp",
        "max_timestamp_offset",
        "name_synced",
        "path",
        "sealed",
        "size_bytes",
        "synced_bytes",
    )

    def __init__(
        self,
        files: Files,
        directory: str,
        base_offset: int,
        limits: SegmentLimits,
        *,
        created_ms: int,
    ) -> None:
        self._files = files
        self._directory = directory
        self.limits = limits
        self._file: File | None = None
        self.path = f"{directory}/{file_name(base_offset, LOG_SUFFIX)}"
        self.base_offset = base_offset
        self.created_ms = created_ms
        """Wall time when this process created or opened it; used where records have no time."""
        self.sealed = False
        self.name_synced = False
        """The file's name is durable in its directory."""
        self.synced_bytes = 0
        """This much of the file is durable; synced_bytes <= size_bytes."""
        self.size_bytes = 0
        self.end_offset = base_offset
        """Exclusive: the next offset after the last batch."""
        self.max_timestamp = NO_TIMESTAMP
        self.max_timestamp_offset = base_offset
        """Last offset of the first batch that has `max_timestamp`."""
        self._first_timestamp: int | None = None
        self._bytes_since_index_entry = 0
        self._offset_index: OffsetIndex | None = None
        self._time_index: TimeIndex | None = None

    @classmethod
    def create(
        cls,
        files: Files,
        directory: str,
        base_offset: int,
        limits: SegmentLimits,
        *,
        created_ms: int,
    ) -> Segment:
        """Make an empty segment; its name is not durable yet. Raises OSError."""
        segment = cls(files, directory, base_offset, limits, created_ms=created_ms)
        segment._offset_index = OffsetIndex(base_offset)
        segment._time_index = TimeIndex(base_offset)
        file = files.open(segment.path, create=True)
        if file.size():  # left behind by a roll that failed
            file.truncate(0)
        segment._file = file
        return segment

    # ---- opening -------------------------------------------------------------------------------

    def open_sealed(self, expected_end_offset: int) -> None:
        """Take over a segment that was synced before, reading only its ends.

        The last batches are followed from the last index entry and must end exactly at the end
        of the file and at `expected_end_offset`, the start of the next segment. Raises
        CorruptRecordError where they do not, even after rebuilding the indexes.
        """
        self.sealed = True
        size_bytes = self.file.size()
        if not self._settle_from_index_ends(size_bytes) or self.end_offset != expected_end_offset:
            self.rebuild_indexes(size_bytes)
        if self.end_offset != expected_end_offset and not self._may_end_before(expected_end_offset):
            raise CorruptRecordError(
                self.path,
                self.size_bytes,
                f"ends at offset {self.end_offset}, the next segment is {expected_end_offset}",
            )
        self.synced_bytes = self.size_bytes
        self.name_synced = True
        self.release()

    def open_active(self) -> None:
        """Take over the last segment after a clean shutdown. Raises CorruptRecordError."""
        size_bytes = self.file.size()
        try:
            self._load_indexes(size_bytes)
            plausible = self._settle(size_bytes)
        except (CorruptIndexError, FileNotFoundError):
            plausible = False
        if not plausible:
            self.rebuild_indexes(size_bytes)
        self.synced_bytes = self.size_bytes
        self.name_synced = True

    def start_recovery(self) -> int:
        """Forget everything but the file, whose size is returned; `note_batch` then refills."""
        self.size_bytes = 0
        self.end_offset = self.base_offset
        self.max_timestamp = NO_TIMESTAMP
        self.max_timestamp_offset = self.base_offset
        self._first_timestamp = None
        self._bytes_since_index_entry = 0
        self._offset_index = OffsetIndex(self.base_offset)
        self._time_index = TimeIndex(self.base_offset)
        return self.file.size()

    def rebuild_indexes(self, size_bytes: int) -> None:
        """Make both indexes anew from the headers of the log file, as appending had made them.

        Raises CorruptRecordError when the first `size_bytes` are not whole batches.
        """
        self.start_recovery()
        for _, header in scan_headers(self.file, 0, size_bytes, chunk_bytes=WALK_CHUNK_BYTES):
            if header.base_offset < self.end_offset:
                break
            self.note_batch(header)
        if self.size_bytes != size_bytes:
            raise CorruptRecordError(
                self.path, self.size_bytes, f"no whole batch after offset {self.end_offset}"
            )
        if self.sealed:
            self.seal()

    # ---- writing -------------------------------------------------------------------------------

    def should_roll(
        self, size_bytes: int, last_offset: int, max_timestamp: int, wall_ms: int
    ) -> bool:
        """Whether a batch set of `size_bytes` ending at `last_offset` needs a new segment."""
        if last_offset - self.base_offset > MAX_RELATIVE_OFFSET:
            return True
        if self.size_bytes == 0:
            return False
        limits = self.limits
        return (
            self.size_bytes > limits.segment_bytes - size_bytes
            or self._age_ms(max_timestamp, wall_ms) > limits.segment_ms
            or len(self.offset_index) >= limits.index_bytes // OFFSET_ENTRY_BYTES
            or len(self.time_index) >= limits.index_bytes // TIME_ENTRY_BYTES - 1
        )

    def append(self, buffers: Sequence[Buffer], headers: Sequence[BatchHeader]) -> None:
        """Write whole batches at the end with one call. Raises OSError; then nothing changed
        but bytes beyond `size_bytes`, which `drop_unfinished_write` removes."""
        if len(buffers) == 1:
            self.file.pwrite(buffers[0], self.size_bytes)
        else:
            self.file.pwritev(buffers, self.size_bytes)
        for header in headers:
            self.note_batch(header)

    def drop_unfinished_write(self) -> None:
        """Cut what a failed append may have written, durably: the refusal is definite, so not even
        a power failure may bring the batch back. Raises OSError."""
        self.file.truncate(self.size_bytes)
        self.file.sync()

    def note_batch(self, header: BatchHeader) -> None:
        """Account for a batch that is in the file at `size_bytes`; live and in recovery alike."""
        size_bytes = header.size_bytes
        last_offset = header.last_offset
        max_timestamp = header.max_timestamp
        if max_timestamp > self.max_timestamp:
            self.max_timestamp = max_timestamp
            self.max_timestamp_offset = last_offset
        if self._bytes_since_index_entry > self.limits.index_interval_bytes:
            self.offset_index.append(last_offset, self.size_bytes)
            self.time_index.maybe_append(self.max_timestamp, self.max_timestamp_offset)
            self._bytes_since_index_entry = 0
        if self.size_bytes == 0:
            self._first_timestamp = max_timestamp
        self._bytes_since_index_entry += size_bytes
        self.size_bytes += size_bytes
        self.end_offset = last_offset + 1

    def seal(self) -> None:
        """Write the indexes, complete; the segment takes no more appends. Raises OSError."""
        self.time_index.maybe_append(self.max_timestamp, self.max_timestamp_offset)
        self.write_indexes()
        self.sealed = True

    def write_indexes(self) -> None:
        """Write both indexes to their files, not yet durable. Raises OSError."""
        for path, data in zip(
            self.index_paths(),
            (self.offset_index.to_bytes(), self.time_index.to_bytes()),
            strict=True,
        ):
            file = self._files.open(path, create=True)
            try:
                file.pwrite(data, 0)
                file.truncate(len(data))
            finally:
                file.close()

    def truncate_to(self, offset: int) -> None:
        """Drop the batches that reach `offset` (exclusive end) or beyond, durably.

        The segment may be appended to again. Raises OSError, CorruptRecordError.
        """
        self.sealed = False
        located = self.locate(offset)
        if located is not None:
            position, _ = located
            self.offset_index.truncate_to(offset)
            self.time_index.truncate_to(offset)
            self.file.truncate(position)
            if not self._settle(position):
                self.rebuild_indexes(position)
        self.file.sync()
        self.synced_bytes = self.size_bytes

    # ---- reading -------------------------------------------------------------------------------

    def locate(self, offset: int) -> tuple[int, BatchHeader] | None:
        """Position and header of the batch that holds `offset`, or else of the next one.

        None when every batch of the segment lies before it. Raises CorruptRecordError.
        """
        for last_try in (False, True):
            start = reached = self.offset_index.position_at_or_before(offset)
            for position, header in scan_headers(self.file, start, self.size_bytes):
                if position == start and start and header.base_offset > offset:
                    break
                if header.next_offset > offset:
                    return position, header
                reached = position + header.size_bytes
            if reached == self.size_bytes:
                return None
            if last_try:
                break
            self.rebuild_indexes(self.size_bytes)
        raise CorruptRecordError(self.path, reached, f"no whole batch on the way to {offset}")

    def extent(self, start: int, max_bytes: int, end_offset: int) -> tuple[int, int]:
        """Where the run of whole batches from position `start` ends, and its next offset.

        The run has at most `max_bytes` and stays below `end_offset`; it may be empty. Raises
        CorruptRecordError.
        """
        if end_offset >= self.end_offset and self.size_bytes - start <= max_bytes:
            return self.size_bytes, self.end_offset
        hint = self.offset_index.indexed_position_up_to(start + max_bytes)
        if end_offset < self.end_offset:
            hint = min(hint, self.offset_index.position_at_or_before(end_offset - 1))
        for scan_from in (max(hint, start), start):
            end_position, next_offset = scan_from, -1
            for position, header in scan_headers(self.file, scan_from, self.size_bytes):
                if position == scan_from:
                    if position > start and header.base_offset > end_offset:
                        break  # a wrong index entry: take the long way
                    next_offset = header.base_offset
                end = position + header.size_bytes
                if end - start > max_bytes or header.next_offset > end_offset:
                    break
                end_position, next_offset = end, header.next_offset
            if next_offset >= 0:
                return end_position, next_offset
        raise CorruptRecordError(self.path, start, "no batch where one was written")

    def batches_reaching(
        self, timestamp_ms: int, start_offset: int
    ) -> Iterator[tuple[int, BatchHeader]]:
        """The batches at or after `start_offset` whose header promises `timestamp_ms` or later.

        One walk over the segment's headers, however many of them are taken.
        """
        for _ in range(2):
            entry_timestamp, entry_offset = self.time_index.at_or_before(timestamp_ms)
            located = self.locate(entry_offset)
            if located is None:
                return
            position, header = located
            if entry_timestamp < 0 or header.max_timestamp == entry_timestamp:
                break
            self.rebuild_indexes(self.size_bytes)
        for found, header in scan_headers(
            self.file, position, self.size_bytes, chunk_bytes=WALK_CHUNK_BYTES
        ):
            if header.max_timestamp >= timestamp_ms and header.last_offset >= start_offset:
                yield found, header

    # ---- files ---------------------------------------------------------------------------------

    @property
    def file(self) -> File:
        """The log file, opened when it is first needed."""
        if self._file is None:
            self._file = self._files.open(self.path)
        return self._file

    @property
    def offset_index(self) -> OffsetIndex:
        if self._offset_index is None:
            self._load_or_rebuild()
        assert self._offset_index is not None
        return self._offset_index

    @property
    def time_index(self) -> TimeIndex:
        if self._time_index is None:
            self._load_or_rebuild()
        assert self._time_index is not None
        return self._time_index

    @property
    def indexes_loaded(self) -> bool:
        return self._offset_index is not None

    def drop_indexes(self) -> None:
        """Free the memory of a sealed segment's indexes; they are loaded again when needed."""
        assert self.sealed, self.path
        self._offset_index = None
        self._time_index = None

    def index_paths(self) -> list[str]:
        return [
            f"{self._directory}/{file_name(self.base_offset, suffix)}"
            for suffix in (OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX)
        ]

    def mark_deleted(self) -> list[str]:
        """Rename the files to `.deleted`; open readers keep theirs. Returns the new paths."""
        renamed = []
        for path in (self.path, *self.index_paths()):
            if self._files.exists(path):
                self._files.rename(path, path + DELETED_SUFFIX)
                renamed.append(path + DELETED_SUFFIX)
        return renamed

    def release(self) -> None:
        """Close the file; a later use opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    # ---- inner ---------------------------------------------------------------------------------

    def _age_ms(self, max_timestamp: int, wall_ms: int) -> int:
        """Kafka's age for rolling: by record time where there is one, by wall time otherwise."""
        if self._first_timestamp is None:
            self._first_timestamp = self._read_first_timestamp()
        if NO_TIMESTAMP not in (self._first_timestamp, max_timestamp):
            return max_timestamp - self._first_timestamp
        return wall_ms - self.created_ms

    def _read_first_timestamp(self) -> int:
        try:
            return read_header(self.file.pread(HEADER_BYTES, 0), 0).max_timestamp
        except CorruptBatchError as error:
            raise CorruptRecordError(self.path, 0, "no batch header") from error

    def _may_end_before(self, next_base_offset: int) -> bool:
        """A replica of a compacted log rolls where a relative offset would not fit."""
        return next_base_offset - self.end_offset > MAX_RELATIVE_OFFSET

    def _load_or_rebuild(self) -> None:
        try:
            self._load_indexes(self.size_bytes)
        except (CorruptIndexError, FileNotFoundError):
            self.rebuild_indexes(self.size_bytes)

    def _load_indexes(self, size_bytes: int) -> None:
        offset_path, time_path = self.index_paths()
        self._offset_index = OffsetIndex.from_bytes(
            _read_all(self._files, offset_path), self.base_offset, size_bytes
        )
        self._time_index = TimeIndex.from_bytes(
            _read_all(self._files, time_path),
            self.base_offset,
            self.base_offset + MAX_RELATIVE_OFFSET + 1,
        )

    def _settle(self, size_bytes: int) -> bool:
        """Work out the segment's ends from the loaded indexes and the batches after their last
        entry. False when the entry and the batch disagree or the file ends in no whole batch."""
        position = self.offset_index.last_position()
        last_indexed = (
            self.base_offset + self.offset_index.relative_offsets[-1] if self.offset_index else None
        )
        timestamp, timestamp_offset = self.time_index.last()
        return self._settle_from(size_bytes, position, last_indexed, timestamp, timestamp_offset)

    def _settle_from_index_ends(self, size_bytes: int) -> bool:
        """As `_settle` for a sealed segment, reading only the last entry of each index file."""
        offset_path, time_path = self.index_paths()
        try:
            entry = _read_last(self._files, offset_path, OFFSET_ENTRY_BYTES)
            offsets = OffsetIndex.from_bytes(entry, self.base_offset, size_bytes)
            entry = _read_last(self._files, time_path, TIME_ENTRY_BYTES)
            times = TimeIndex.from_bytes(
                entry, self.base_offset, self.base_offset + MAX_RELATIVE_OFFSET + 1
            )
        except (CorruptIndexError, FileNotFoundError):
            return False
        last_indexed = self.base_offset + offsets.relative_offsets[-1] if offsets else None
        timestamp, timestamp_offset = times.last()
        settled = self._settle_from(
            size_bytes, offsets.last_position(), last_indexed, timestamp, timestamp_offset
        )
        # A sealed segment's time index ends with its largest timestamp.
        return settled and (self.max_timestamp, self.max_timestamp_offset) == times.last()

    def _settle_from(
        self,
        size_bytes: int,
        position: int,
        last_indexed: int | None,
        timestamp: int,
        timestamp_offset: int,
    ) -> bool:
        self.max_timestamp = timestamp
        self.max_timestamp_offset = timestamp_offset
        self._first_timestamp = None
        self.size_bytes = position
        self.end_offset = self.base_offset
        for at, header in scan_headers(self.file, position, size_bytes):
            if at == position and last_indexed not in (None, header.last_offset):
                return False
            if header.base_offset < self.end_offset:
                return False
            if at == position and last_indexed is not None and header.max_timestamp > timestamp:
                return False  # the time index lost entries
            if self.size_bytes - position > self.limits.index_interval_bytes:
                return False  # the offset index lost entries
            if header.max_timestamp > self.max_timestamp:
                self.max_timestamp = header.max_timestamp
                self.max_timestamp_offset = header.last_offset
            self.size_bytes += header.size_bytes
            self.end_offset = header.next_offset
        self._bytes_since_index_entry = self.size_bytes - position
        return self.size_bytes == size_bytes and timestamp_offset <= self.end_offset


def _read_all(files: Files, path: str) -> bytes:
    file = files.open(path)
    try:
        return file.pread(file.size(), 0)
    finally:
        file.close()


def _read_last(files: Files, path: str, entry_bytes: int) -> bytes:
    file = files.open(path)
    try:
        size_bytes = file.size()
        if size_bytes % entry_bytes:
            raise CorruptIndexError(f"{size_bytes} bytes are no multiple of {entry_bytes}")
        return file.pread(entry_bytes, max(0, size_bytes - entry_bytes))
    finally:
        file.close()
