"""The log of one partition: segments in offset order, the last one active.

Owns [log_start_offset, log_end_offset): appends, reads, rolls, truncation, deletion, and the
knowledge of what is durable. Must never report as durable what was appended after a sync began,
never use a file again after a failed sync, never leave a hole: what survives is a prefix. Stamping
offsets and leader epochs is the caller's work, as are producer checks and the high watermark.

Not thread-safe: one owner calls everything but `FlushTarget.sync`, which the disk thread runs.

Source: Kafka UnifiedLog / LocalLog, KIP-101, KAFKA-10778 (offline on the first I/O error).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from duolog_protocol.errors import (
    CorruptRecordError,
    DiskFullError,
    LogOfflineError,
    OffsetOutOfRangeError,
    StorageError,
)
from duolog_protocol.records import BatchHeader, CorruptBatchError
from duolog_runtime.files import Buffer, Files
from kbroker.storage import producer_snapshot
from kbroker.storage.checkpoints import PartitionCheckpoints
from kbroker.storage.epoch_cache import EpochCache
from kbroker.storage.flush import FlushTarget
from kbroker.storage.log_types import (
    NO_ROOM,
    AppendInfo,
    DeletedSegment,
    LogConfig,
    LogSlice,
    OutOfOrderAppendError,
    ProducerStates,
    split_batches,
)
from kbroker.storage.memory_tail import MemoryTail, TailBudget
from kbroker.storage.producer_restore import restore_producers
from kbroker.storage.reader import SegmentReader
from kbroker.storage.retention import SegmentInfo, StartOffsetReason, decide_retention
from kbroker.storage.segment import NO_TIMESTAMP, Segment
from kbroker.storage.timestamps import (
    MAX_BATCHES_DECODED,
    TimestampAndOffset,
    at_header,
    find_in_batch,
)

__all__ = ["AppendInfo", "DeletedSegment", "Log", "LogConfig", "LogSlice", "OutOfOrderAppendError"]


class Log:
    """Opened by `recovery.open_log`; see there for how one is made."""

    def __init__(
        self,
        files: Files,
        directory: str,
        *,
        config: LogConfig,
        checkpoints: PartitionCheckpoints,
        producers: ProducerStates,
        epochs: EpochCache,
        segments: list[Segment],
        log_start_offset: int,
        tail_budget: TailBudget | None = None,
    ) -> None:
        assert segments, directory
        assert log_start_offset >= 0, log_start_offset
        self.directory = directory
        self.producers = producers
        self.epochs = epochs
        self.log_start_offset = log_start_offset
        """Inclusive; log_start_offset <= durable_end_offset <= log_end_offset."""
        self.log_end_offset = segments[-1].end_offset
        """Exclusive: the next offset to write."""
        self.durable_end_offset = self.log_end_offset
        """Exclusive: everything below is on disk. The recovery point to checkpoint."""
        self.offline: StorageError | None = None
        """Why the log is out of service for good; None while it is healthy."""
        self._files = files
        self._config = config
        self._checkpoints = checkpoints
        self._segments = segments
        self._base_offsets = [segment.base_offset for segment in segments]
        self._active = segments[-1]
        self._tail = MemoryTail(config.memory_tail_bytes, tail_budget or TailBudget(2**40))
        self._generation = 0
        self._unsynced_paths: list[str] = []
        self._reader = SegmentReader()
        assert log_start_offset <= self.log_end_offset, (log_start_offset, self.log_end_offset)

    # ---- what it is ----------------------------------------------------------------------------

    @property
    def config(self) -> LogConfig:
        return self._config

    @config.setter
    def config(self, config: LogConfig) -> None:
        """Follow changed topic settings from the next append on."""
        self._config = config
        self._tail.limit_bytes = config.memory_tail_bytes
        for segment in self._segments:
            segment.limits = config.segment_limits

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self._segments)

    @property
    def segment_count(self) -> int:
        return len(self._segments)

    @property
    def active_base_offset(self) -> int:
        """Everything below lies in sealed segments; what a roll wants flushed."""
        return self._active.base_offset

    @property
    def latest_epoch(self) -> int:
        return self.epochs.latest_epoch

    def segment_infos(self) -> list[SegmentInfo]:
        return [
            SegmentInfo(
                segment.base_offset,
                segment.end_offset,
                segment.size_bytes,
                segment.created_ms
                if segment.max_timestamp == NO_TIMESTAMP
                else segment.max_timestamp,
            )
            for segment in self._segments
        ]

    # ---- append --------------------------------------------------------------------------------

    def assign_epoch(self, epoch: int) -> None:
        """Record, durably, that this replica leads `epoch` from the log end on (KAFKA-7415)."""
        self._check_online()
        try:
            self.epochs.assign(epoch, self.log_end_offset)
        except OSError as error:
            self._refuse(error)

    def append(
        self, batches: Sequence[Buffer], headers: Sequence[BatchHeader], *, wall_ms: int
    ) -> AppendInfo:
        """Append whole batches, stamped and checked, in one write (more only where it rolls).

        Each buffer holds one or more batches; `headers` has those of all buffers in order. The
        buffers belong to the log from now on and must not change; memoryviews are copied.
        Nothing is durable yet: see `flush_target`. The line of a new leader epoch, though, is.

        Raises OutOfOrderAppendError, DiskFullError (nothing happened), LogOfflineError.
        """
        self._check_online()
        base_offset, end_offset, max_timestamp, size_bytes = self._check_order(headers)
        assert size_bytes == sum(map(len, batches)), (size_bytes, list(map(len, batches)))
        before = self._active
        start_offset = self.log_end_offset
        try:
            if before.should_roll(size_bytes, end_offset - 1, max_timestamp, wall_ms):
                self._append_over_segments(batches, headers, wall_ms)
            else:
                self._assign_epochs(headers)
                self._write(batches, headers)
        except OSError as error:
            self._undo_append(start_offset)
            self._refuse(error)
        self._remember(batches, headers)
        return AppendInfo(base_offset, end_offset, size_bytes, self._active is not before)

    def roll(self, wall_ms: int) -> None:
        """Seal the active segment and start an empty one. Raises DiskFullError, LogOfflineError."""
        self._check_online()
        if self._active.size_bytes == 0:
            return
        try:
            self._roll(self.log_end_offset, wall_ms)
        except OSError as error:
            self._refuse(error)

    # ---- read ----------------------------------------------------------------------------------

    def read(
        self,
        start_offset: int,
        *,
        max_bytes: int,
        end_offset: int,
        min_one_batch: bool = True,
    ) -> LogSlice:
        """Whole batches from the one that holds `start_offset`, all of them below `end_offset`.

        At most `max_bytes` of one segment or of the memory tail; with `min_one_batch` at least
        one batch where there is one, so that a reader always makes progress (KIP-74). Nothing,
        where `end_offset` (the high watermark) is reached.

        Raises OffsetOutOfRangeError outside [log_start_offset, log_end_offset],
        CorruptRecordError, LogOfflineError.
        """
        self._check_online()
        if not self.log_start_offset <= start_offset <= self.log_end_offset:
            raise OffsetOutOfRangeError(
                f"{start_offset} is outside [{self.log_start_offset}, {self.log_end_offset}]"
            )
        end_offset = min(end_offset, self.log_end_offset)
        if start_offset >= end_offset:
            return LogSlice(start_offset, start_offset, 0, (), None, 0)
        if self._tail.holds(start_offset):
            run = self._tail.read(start_offset, max_bytes, end_offset, min_one_batch=min_one_batch)
            return LogSlice(start_offset, *run, None, 0)
        return self._reader.read(
            self._segments, start_offset, max_bytes, end_offset, min_one_batch=min_one_batch
        )

    def offset_for_timestamp(self, timestamp_ms: int) -> TimestampAndOffset | None:
        """The first record at or after the log start with `timestamp_ms` or later; None if none.

        Reads and decodes one batch, a few where a header promises what its records do not keep:
        a client writes both. After that, and for records that cannot be decoded, the header's
        word is taken: the answer may lie before the record that was asked for, never behind it.

        Raises CorruptRecordError, LogOfflineError.
        """
        self._check_online()
        start_offset = self.log_start_offset
        decoded = 0
        for segment in self._segments:
            if segment.max_timestamp < timestamp_ms or segment.end_offset <= start_offset:
                continue
            self._reader.note_index_use(segment)
            for position, header in segment.batches_reaching(timestamp_ms, start_offset):
                if decoded < MAX_BATCHES_DECODED:
                    decoded += 1
                    data = segment.file.pread(header.size_bytes, position)
                    try:
                        record = find_in_batch(data, timestamp_ms, start_offset)
                    except CorruptBatchError:  # what a client sealed was rubbish before
                        record = at_header(header, start_offset)
                else:
                    record = at_header(header, start_offset)
                if record is not None:
                    return record._replace(leader_epoch=self.epochs.epoch_for_offset(record.offset))
        return None

    def offset_of_max_timestamp(self) -> TimestampAndOffset | None:
        """The first record with the largest timestamp; None in a log without timestamps."""
        newest = max(
            (
                segment.max_timestamp
                for segment in self._segments
                if segment.end_offset > self.log_start_offset
            ),
            default=NO_TIMESTAMP,
        )
        return None if newest == NO_TIMESTAMP else self.offset_for_timestamp(newest)

    def end_offset_for_epoch(self, epoch: int) -> tuple[int, int]:
        """(epoch, end offset) as KIP-101 answers it; (-1, -1) when undefined."""
        return self.epochs.end_offset_for(epoch, self.log_end_offset)

    # ---- durability ----------------------------------------------------------------------------

    def flush_target(self, *, sealed_only: bool = False) -> FlushTarget | None:
        """What has to be synced for the log to be durable up to its end now; None if nothing.

        With `sealed_only`, up to the start of the active segment: the flush that follows a roll.
        Any thread may then run `sync()`; hand the target to `on_flushed` or `on_flush_failed`.
        """
        self._check_online()
        segments = self._segments[:-1] if sealed_only else self._segments
        end_offset = self._active.base_offset if sealed_only else self.log_end_offset
        dirty: list[Segment] = []
        for segment in reversed(segments):
            if not segment.name_synced or segment.synced_bytes != segment.size_bytes:
                dirty.append(segment)
            elif segment.end_offset <= self.durable_end_offset:
                break
        if not dirty and end_offset <= self.durable_end_offset:
            return None
        unnamed = any(not segment.name_synced for segment in dirty) or bool(self._unsynced_paths)
        paths, self._unsynced_paths = self._unsynced_paths, []
        return FlushTarget(
            self._files,
            end_offset=end_offset,
            generation=self._generation,
            segments=dirty,
            index_paths=paths,
            directory=self.directory if unnamed else None,
        )

    def on_flushed(self, target: FlushTarget) -> int:
        """Take back a target that was synced; returns the new `durable_end_offset`."""
        assert target.is_synced, target.end_offset
        if self.offline is None and target.generation == self._generation:
            assert target.end_offset <= self.log_end_offset, (
                target.end_offset,
                self.log_end_offset,
            )
            for segment, size_bytes in zip(target.segments, target.sizes, strict=True):
                segment.name_synced = True
                segment.synced_bytes = max(segment.synced_bytes, size_bytes)
            self.durable_end_offset = max(self.durable_end_offset, target.end_offset)
        return self.durable_end_offset

    def on_flush_failed(self, target: FlushTarget, error: OSError) -> StorageError:
        """A sync failed: the page cache can no longer be trusted, the log is offline for good."""
        assert not target.is_synced, target.end_offset
        return self._go_offline(f"sync failed: {error}")

    def flush(self) -> int:
        """Sync everything here and now (close, tests). Raises LogOfflineError."""
        target = self.flush_target()
        if target is not None:
            try:
                target.sync()
            except OSError as error:
                raise self.on_flush_failed(target, error) from error
            self.on_flushed(target)
        return self.durable_end_offset

    def stage_checkpoints(self) -> None:
        """Note recovery point and log start offset for the next periodic checkpoint."""
        if self.offline is None:
            self._checkpoints.stage(
                recovery_point=max(self.durable_end_offset, self.log_start_offset),
                log_start_offset=self.log_start_offset,
            )

    # ---- truncation ----------------------------------------------------------------------------

    def truncate_to(self, offset: int) -> list[DeletedSegment]:
        """Drop everything from `offset` (exclusive end) on, durably; also a batch that holds it.

        Indexes, leader epochs, producer state and memory tail follow, even where no record lies
        there (KAFKA-10706). Returns the deleted segments. Raises LogOfflineError.
        """
        self._check_online()
        if offset < self.log_start_offset:
            return self.truncate_fully_and_start_at(offset)
        deleted: list[DeletedSegment] = []
        try:
            if offset < self.log_end_offset:
                deleted = self._truncate_data(offset)
            self.epochs.truncate_from_end(offset)
        except (OSError, CorruptRecordError) as error:
            raise self._go_offline(f"truncation failed: {error}") from error
        return deleted

    def truncate_fully_and_start_at(self, offset: int) -> list[DeletedSegment]:
        """Drop the whole log and go on, empty, at `offset`; durably. Raises LogOfflineError."""
        self._check_online()
        assert offset >= 0, offset
        try:
            self._checkpoints.lower_recovery_point(min(offset, self.log_start_offset))
            self._checkpoints.write_log_start_offset(offset)
            self._forget_positions()
            old = self._segments
            deleted = self._delete_segments(old, StartOffsetReason.TRUNCATION)
            active = Segment.create(
                self._files,
                self.directory,
                offset,
                self._config.segment_limits,
                created_ms=old[-1].created_ms,
            )
            self._files.sync_dir(self.directory)
            active.name_synced = True
            self._set_segments([active])
            self.log_start_offset = self.durable_end_offset = offset
            self.epochs.clear()
            self._rerestore_producers()
        except OSError as error:
            raise self._go_offline(f"truncation failed: {error}") from error
        return deleted

    # ---- log start, retention, deletion --------------------------------------------------------

    def advance_log_start_offset(self, offset: int) -> bool:
        """Hide the records below `offset`; False when they were hidden already.

        In memory: `stage_checkpoints` and `delete_hidden_segments` make it durable. The caller
        keeps `offset` at or below the high watermark. Raises OffsetOutOfRangeError.
        """
        self._check_online()
        if offset > self.log_end_offset:
            raise OffsetOutOfRangeError(f"{offset} is beyond the end {self.log_end_offset}")
        if offset <= self.log_start_offset:
            return False
        try:
            self.epochs.truncate_from_start(offset)
        except OSError as error:
            self._refuse(error)
        self.log_start_offset = offset
        self.durable_end_offset = max(self.durable_end_offset, offset)
        return True

    def apply_retention(self, *, high_watermark: int, wall_ms: int) -> list[DeletedSegment]:
        """Delete what has outlived the topic's limits, never beyond the high watermark.

        Raises DiskFullError, LogOfflineError.
        """
        self._check_online()
        decision = decide_retention(
            self.segment_infos(),
            log_start_offset=self.log_start_offset,
            high_watermark=high_watermark,
            retention_ms=self._config.retention_ms,
            retention_bytes=self._config.retention_bytes,
            wall_ms=wall_ms,
        )
        if not decision.delete_count:
            return []
        if decision.delete_count == len(self._segments):
            self.roll(wall_ms)
        self.advance_log_start_offset(decision.log_start_offset)
        return self.delete_hidden_segments(decision.reason or StartOffsetReason.DELETE_RECORDS)

    def delete_hidden_segments(self, reason: StartOffsetReason) -> list[DeletedSegment]:
        """Rename the segments that lie wholly below the log start to `.deleted`.

        The log start offset is made durable first, so that a missing first segment is never
        mistaken for a short log. Raises DiskFullError, LogOfflineError.
        """
        self._check_online()
        count = 0
        while (
            count < len(self._segments) - 1
            and self._base_offsets[count + 1] <= self.log_start_offset
        ):
            count += 1
        if not count:
            return []
        try:
            if (self._checkpoints.log_start_offset or 0) < self.log_start_offset:
                self._checkpoints.write_log_start_offset(self.log_start_offset)
        except OSError as error:
            self._refuse(error)
        try:
            deleted = self._delete_segments(self._segments[:count], reason)
            self._set_segments(self._segments[count:])
            self._reader.forget_positions()
            producer_snapshot.delete_outside(
                self._files, self.directory, first=self._base_offsets[0], last=self.log_end_offset
            )
        except OSError as error:
            raise self._go_offline(f"deletion failed: {error}") from error
        return deleted

    def unlink_deleted(self, deleted: Sequence[DeletedSegment]) -> None:
        """Remove deleted segments for good, after `file.delete.delay.ms`. Raises OSError."""
        for item in deleted:
            item.segment.release()
            for path in item.paths:
                with suppress(FileNotFoundError):
                    self._files.unlink(path)

    def close(self) -> None:
        """Make everything durable, indexes and producer state too, and close the files.

        After this the caller checkpoints the recovery point and may leave the clean-shutdown
        mark. Raises LogOfflineError, DiskFullError.
        """
        if self.offline is None:
            try:
                self._active.write_indexes()
                path = producer_snapshot.write(
                    self._files, self.directory, self.log_end_offset, self.producers.snapshot()
                )
                self._unsynced_paths += [*self._active.index_paths(), path]
                self._active.name_synced = False
            except OSError as error:
                self._refuse(error)
            self.flush()
            self.stage_checkpoints()
        self.abandon()

    def abandon(self) -> None:
        """Close the files as they are; the next open recovers what was synced."""
        self._tail.clear()
        for segment in self._segments:
            segment.release()
        self.offline = self.offline or LogOfflineError(f"{self.directory} is closed")

    # ---- inner: append -------------------------------------------------------------------------

    def _check_order(self, headers: Sequence[BatchHeader]) -> tuple[int, int, int, int]:
        """Base offset, end offset, largest timestamp and size of a set that fits on the end."""
        end_offset = self.log_end_offset
        epoch = self._active_epoch()
        max_timestamp = NO_TIMESTAMP
        size_bytes = 0
        for header in headers:
            if header.base_offset < end_offset:
                raise OutOfOrderAppendError(
                    f"{self.directory}: batch at {header.base_offset}, the log ends at {end_offset}"
                )
            if header.leader_epoch < epoch and header.leader_epoch >= 0:
                raise OutOfOrderAppendError(
                    f"{self.directory}: batch of epoch {header.leader_epoch} after epoch {epoch}"
                )
            epoch = max(epoch, header.leader_epoch)
            end_offset = header.next_offset
            max_timestamp = max(max_timestamp, header.max_timestamp)
            size_bytes += header.size_bytes
        assert headers, self.directory
        return headers[0].base_offset, end_offset, max_timestamp, size_bytes

    def _active_epoch(self) -> int:
        """The newest epoch that has records; one that only an election left may be replaced."""
        entries = self.epochs
        epoch = entries.latest_epoch
        if epoch >= 0 and entries.latest_start_offset >= self.log_end_offset:
            return entries.epoch_for_offset(self.log_end_offset - 1)
        return epoch

    def _assign_epochs(self, headers: Sequence[BatchHeader]) -> None:
        """Before the data: a line of a new epoch must be durable before its first ack."""
        latest = self.epochs.latest_epoch
        for header in headers:
            epoch = header.leader_epoch
            if epoch != latest and epoch >= 0:
                self.epochs.assign(epoch, header.base_offset)
                latest = epoch

    def _append_over_segments(
        self, batches: Sequence[Buffer], headers: Sequence[BatchHeader], wall_ms: int
    ) -> None:
        """Batch by batch, rolling where each one needs it: rare, so simple."""
        self._assign_epochs(headers)
        buffers = split_batches(batches, headers)
        group: list[Buffer] = []
        group_headers: list[BatchHeader] = []
        group_bytes = 0
        for buffer, header in zip(buffers, headers, strict=True):
            if self._active.should_roll(
                group_bytes + header.size_bytes, header.last_offset, header.max_timestamp, wall_ms
            ) or (group and group_bytes + header.size_bytes > self._config.segment_bytes):
                if group:
                    self._write(group, group_headers)
                    group, group_headers, group_bytes = [], [], 0
                overflow = header.last_offset - self.log_end_offset >= 2**31
                self._roll(header.base_offset if overflow else self.log_end_offset, wall_ms)
            group.append(buffer)
            group_headers.append(header)
            group_bytes += header.size_bytes
        self._write(group, group_headers)

    def _write(self, buffers: Sequence[Buffer], headers: Sequence[BatchHeader]) -> None:
        """One write to the active segment; then log end and producer state follow."""
        self._active.append(buffers, headers)
        self.log_end_offset = self._active.end_offset
        replay = self.producers.replay
        for header in headers:
            if header.producer_id >= 0:
                replay(header)

    def _roll(self, base_offset: int, wall_ms: int) -> None:
        """Raises OSError; the active segment then goes on as it was."""
        old = self._active
        assert base_offset > old.base_offset, (base_offset, old.base_offset)
        path = producer_snapshot.snapshot_path(self.directory, base_offset)
        try:
            old.seal()
            producer_snapshot.write(
                self._files, self.directory, base_offset, self.producers.snapshot()
            )
            new = Segment.create(
                self._files,
                self.directory,
                base_offset,
                self._config.segment_limits,
                created_ms=wall_ms,
            )
        except OSError:
            old.sealed = False
            for leftover in (path, *old.index_paths()):
                with suppress(OSError):
                    self._files.unlink(leftover)
            raise
        self._unsynced_paths += [path, *old.index_paths()]
        self._set_segments([*self._segments, new])
        self._reader.note_index_use(old)

    def _undo_append(self, start_offset: int) -> None:
        """After a failed write: cut back to the last whole batch, or go offline."""
        try:
            self._active.drop_unfinished_write()
            if self._active.base_offset > start_offset or self.log_end_offset > start_offset:
                self.log_end_offset = self._active.end_offset
                self.unlink_deleted(self._truncate_data(start_offset))
        except (OSError, CorruptRecordError) as error:
            raise self._go_offline(f"could not undo a failed append: {error}") from error

    def _remember(self, batches: Sequence[Buffer], headers: Sequence[BatchHeader]) -> None:
        """Keep what was written in the memory tail, each buffer with its own headers."""
        if len(batches) == 1:
            self._tail.append(batches[0], headers)
            return
        first = 0
        for buffer in batches:
            last, room = first, len(buffer)
            while room > 0:
                room -= headers[last].size_bytes
                last += 1
            assert room == 0, (len(buffer), first, last)
            self._tail.append(buffer, headers[first:last])
            first = last

    # ---- inner: truncation and deletion --------------------------------------------------------

    def _truncate_data(self, offset: int) -> list[DeletedSegment]:
        """Raises OSError, CorruptRecordError; the log then has to go offline."""
        keep = max(1, bisect_right(self._base_offsets, offset - 1))
        kept, dropped = self._segments[:keep], self._segments[keep:]
        located = kept[-1].locate(offset)
        if located is not None and located[1].base_offset < self.log_start_offset:
            return self.truncate_fully_and_start_at(self.log_start_offset)
        # The batch that holds `offset` goes as a whole, so the log may end before `offset`.
        self._checkpoints.lower_recovery_point(
            offset if located is None else min(offset, located[1].base_offset)
        )
        self._forget_positions()
        deleted = self._delete_segments(dropped, StartOffsetReason.TRUNCATION)
        kept[-1].truncate_to(offset)
        self._files.sync_dir(self.directory)
        kept[-1].name_synced = True
        self._set_segments(kept)
        self.durable_end_offset = min(self.durable_end_offset, self.log_end_offset)
        self._rerestore_producers()
        return deleted

    def _forget_positions(self) -> None:
        self._generation += 1
        self._reader.forget_positions()
        self._tail.clear()

    def _set_segments(self, segments: list[Segment]) -> None:
        self._segments = segments
        self._base_offsets = [segment.base_offset for segment in segments]
        self._active = segments[-1]
        self._reader.forget_index(self._active)
        self.log_end_offset = self._active.end_offset

    def _delete_segments(
        self, segments: Sequence[Segment], reason: StartOffsetReason
    ) -> list[DeletedSegment]:
        """Rename, for truncation newest first, so that a crash in between leaves a prefix."""
        backwards = reason is StartOffsetReason.TRUNCATION
        deleted = []
        for segment in reversed(segments) if backwards else segments:
            self._reader.forget_index(segment)
            paths = segment.mark_deleted()
            deleted.append(
                DeletedSegment(
                    segment.base_offset,
                    segment.end_offset,
                    segment.size_bytes,
                    reason,
                    segment,
                    paths,
                )
            )
        return deleted

    def _rerestore_producers(self) -> None:
        """Producer state as of the log end: the newest snapshot, and the headers after it."""
        end_offset = self.log_end_offset
        producer_snapshot.delete_outside(self._files, self.directory, first=0, last=end_offset)
        restore_producers(
            self._files, self.directory, self.producers, self._segments, end_offset=end_offset
        )

    # ---- inner: failure ------------------------------------------------------------------------

    def _check_online(self) -> None:
        if self.offline is not None:
            raise self.offline

    def _refuse(self, error: OSError) -> NoReturn:
        """A write failed and was undone: retriable for a full disk, the end for anything else."""
        if error.errno in NO_ROOM:
            raise DiskFullError(f"{self.directory}: {error}") from error
        raise self._go_offline(f"write failed: {error}") from error

    def _go_offline(self, why: str) -> StorageError:
        if self.offline is None:
            self.offline = LogOfflineError(f"{self.directory}: {why}")
        return self.offline
