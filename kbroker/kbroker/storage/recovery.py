"""Open a log: cheaply after a clean shutdown, otherwise batch by batch from what was synced.

Owns the rule of what survives. The recovery point says up to where the log was synced; it is
written only after the sync and lowered, durably, before a truncation. Hence:

- damage at or above the recovery point is the torn tail of a crash: cut there, drop what follows;
- damage below it is loss of synced data: refuse with `CorruptRecordError`, never cut silently;
- what survives is a prefix: segments join without a gap, a segment after a cut is deleted;
- indexes, leader epochs and producer state of the scanned part are rebuilt, never believed.

Recovering twice gives the same log. Source: Kafka LogLoader, LogSegment.recover; KAFKA-3919.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from duolog_protocol.errors import CorruptRecordError
from duolog_runtime.files import Files
from kbroker.storage import epoch_cache, producer_snapshot
from kbroker.storage.checkpoints import TEMPORARY_SUFFIX, PartitionCheckpoints
from kbroker.storage.epoch_cache import EpochCache
from kbroker.storage.index import MAX_RELATIVE_OFFSET
from kbroker.storage.log import Log
from kbroker.storage.log_types import LogConfig, ProducerStates
from kbroker.storage.memory_tail import TailBudget
from kbroker.storage.producer_restore import restore_producers
from kbroker.storage.scan import WALK_CHUNK_BYTES, scan_batches, scan_headers
from kbroker.storage.segment import (
    DELETED_SUFFIX,
    LOG_SUFFIX,
    OFFSET_INDEX_SUFFIX,
    TIME_INDEX_SUFFIX,
    Segment,
    file_name,
)

_LEFTOVER_SUFFIXES = (DELETED_SUFFIX, TEMPORARY_SUFFIX, ".cleaned")
_SEGMENT_SUFFIXES = (LOG_SUFFIX, OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX)


@dataclass(slots=True)
class RecoveryReport:
    """What opening a log found; for one line in the daemon's log."""

    clean: bool = False
    scanned_bytes: int = 0
    cut_bytes: int = 0
    deleted_segments: int = 0


def create_log(
    files: Files,
    directory: str,
    *,
    config: LogConfig,
    checkpoints: PartitionCheckpoints,
    producers: ProducerStates,
    wall_ms: int,
    tail_budget: TailBudget | None = None,
    start_offset: int = 0,
) -> Log:
    """Make an empty log and its directory, durably. Raises OSError.

    Checkpoint lines that a deleted partition of the same name left are removed first.
    """
    checkpoints.forget()
    files.mkdir(directory)
    assert not any(name.endswith(LOG_SUFFIX) for name in files.list(directory)), directory
    segment = Segment.create(
        files, directory, start_offset, config.segment_limits, created_ms=wall_ms
    )
    files.sync_dir(directory)
    files.sync_dir(directory.rpartition("/")[0] or ".")
    segment.name_synced = True
    producers.load([])
    return Log(
        files,
        directory,
        config=config,
        checkpoints=checkpoints,
        producers=producers,
        epochs=EpochCache(files, f"{directory}/{epoch_cache.FILE_NAME}"),
        segments=[segment],
        log_start_offset=start_offset,
        tail_budget=tail_budget,
    )


def open_log(
    files: Files,
    directory: str,
    *,
    config: LogConfig,
    checkpoints: PartitionCheckpoints,
    producers: ProducerStates,
    clean: bool,
    wall_ms: int,
    tail_budget: TailBudget | None = None,
    report: RecoveryReport | None = None,
) -> Log:
    """Open the log in `directory`; `clean` when the directory carried the clean-shutdown mark.

    Raises CorruptRecordError where synced data is damaged or missing, OSError.
    """
    recovery = _Recovery(
        files, directory, config, checkpoints, wall_ms=wall_ms, report=report or RecoveryReport()
    )
    epochs = recovery.run(clean, producers)
    return Log(
        files,
        directory,
        config=config,
        checkpoints=checkpoints,
        producers=producers,
        epochs=epochs,
        segments=recovery.segments,
        log_start_offset=recovery.log_start_offset,
        tail_budget=tail_budget,
    )


class _Recovery:
    """The steps of one opening, in order of the calls in `run`."""

    def __init__(
        self,
        files: Files,
        directory: str,
        config: LogConfig,
        checkpoints: PartitionCheckpoints,
        *,
        wall_ms: int,
        report: RecoveryReport,
    ) -> None:
        self.files = files
        self.directory = directory
        self.limits = config.segment_limits
        self.recovery_point = checkpoints.recovery_point
        self.checkpointed_start = checkpoints.log_start_offset
        self.log_start_offset = checkpoints.log_start_offset or 0
        self.wall_ms = wall_ms
        self.segments: list[Segment] = []
        self.scan_start = 0
        """Everything below was believed, from here on every batch was checked."""
        self.transitions: list[tuple[int, int]] = []
        """(leader epoch, base offset) wherever the epoch changes in the scanned part."""
        self.report = report

    def run(self, clean: bool, producers: ProducerStates) -> EpochCache:
        bases = self._segment_files()
        if not bases:
            self._start_empty()
        else:
            self.segments = [
                Segment(self.files, self.directory, base, self.limits, created_ms=self.wall_ms)
                for base in bases
            ]
            if not (clean and self._open_clean()):
                self._scan()
            if self.segments[-1].end_offset < self.log_start_offset:
                self._restart_at_log_start()
        epochs = self._recover_epochs()
        end_offset = self.segments[-1].end_offset
        producer_snapshot.delete_outside(
            self.files, self.directory, first=self.segments[0].base_offset, last=end_offset
        )
        if not self.report.clean:
            # Snapshots above the first checked byte were not known to be synced with their data.
            producer_snapshot.delete_outside(
                self.files, self.directory, first=0, last=max(self.scan_start, 0)
            )
        restore_producers(
            self.files, self.directory, producers, self.segments, end_offset=end_offset
        )
        return epochs

    def _segment_files(self) -> list[int]:
        """Base offsets of the segments that count, ascending; clears away what does not."""
        names = self.files.list(self.directory)
        for name in names:
            if name.endswith(_LEFTOVER_SUFFIXES):
                self.files.unlink(f"{self.directory}/{name}")
        bases = sorted(
            int(name[:20])
            for name in names
            if len(name) == 24 and name.endswith(LOG_SUFFIX) and name[:20].isdecimal()
        )
        for name in names:
            orphan = name.endswith((OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX))
            if orphan and name[:20].isdecimal() and int(name[:20]) not in bases:
                self.files.unlink(f"{self.directory}/{name}")
        hidden = 0
        while hidden + 1 < len(bases) and bases[hidden + 1] <= self.log_start_offset:
            hidden += 1
        self._delete_files(bases[:hidden])
        bases = bases[hidden:]
        if bases and self.checkpointed_start is None:
            self.log_start_offset = bases[0]
        if self._holds_synced_data and (not bases or bases[0] > self.log_start_offset):
            raise CorruptRecordError(
                f"{self.directory}/{file_name(self.log_start_offset, LOG_SUFFIX)}",
                0,
                f"no segment holds offsets from {self.log_start_offset}, "
                f"synced up to {self.recovery_point}",
            )
        if bases and bases[0] > self.log_start_offset:
            # A full truncation that was interrupted: what is left does not join the log start.
            self._delete_files(bases)
            return []
        return bases

    @property
    def _holds_synced_data(self) -> bool:
        return self.recovery_point > self.log_start_offset

    def _start_empty(self) -> None:
        segment = Segment.create(
            self.files,
            self.directory,
            self.log_start_offset,
            self.limits,
            created_ms=self.wall_ms,
        )
        self.files.sync_dir(self.directory)
        segment.name_synced = True
        self.segments = [segment]
        self.scan_start = self.log_start_offset

    def _restart_at_log_start(self) -> None:
        """The log ends before its start offset: nothing of it is visible (Kafka does the same)."""
        for segment in self.segments:
            segment.release()
        self._delete_files([segment.base_offset for segment in self.segments])
        self.transitions.clear()
        self._start_empty()

    def _open_clean(self) -> bool:
        """Believe the files after a look at the end of each; False where that is not possible."""
        following = self.segments[1:]
        try:
            for segment, after in zip(self.segments, following, strict=False):
                segment.open_sealed(after.base_offset)
            self.segments[-1].open_active()
        except CorruptRecordError:
            return False
        if self.segments[-1].end_offset != max(self.recovery_point, self.log_start_offset):
            return False
        self.scan_start = self.segments[-1].end_offset
        self.report.clean = True
        return True

    def _scan(self) -> None:
        """Check every batch from the segment that holds the recovery point on."""
        segments = self.segments
        first = 0
        while first + 1 < len(segments) and segments[first + 1].base_offset <= self.recovery_point:
            segments[first].open_sealed(segments[first + 1].base_offset)
            first += 1
        self.scan_start = expected_offset = segments[first].base_offset
        latest_epoch = -1
        for number in range(first, len(segments)):
            segment = segments[number]
            segment.sealed = number + 1 < len(segments)
            gap = segment.base_offset - expected_offset
            if gap < 0 or 0 < gap <= MAX_RELATIVE_OFFSET:
                self._refuse_if_synced(segment.path, 0, expected_offset)
                self._drop_from(number)
                break
            size_bytes, latest_epoch = self._scan_segment(segment, latest_epoch)
            expected_offset = segment.end_offset
            if segment.size_bytes < size_bytes:
                self._refuse_if_synced(segment.path, segment.size_bytes, expected_offset)
                self.report.cut_bytes += size_bytes - segment.size_bytes
                segment.file.truncate(segment.size_bytes)
                self._drop_from(number + 1)
                break
        last = self.segments[-1]
        last.sealed = False
        self._refuse_if_synced(last.path, last.size_bytes, last.end_offset)
        for segment in self.segments[first:]:
            # What survived may so far be in the page cache only.
            segment.file.sync()
            segment.synced_bytes = segment.size_bytes
            segment.name_synced = True
            if segment.sealed:
                segment.seal()
                segment.drop_indexes()
                segment.release()
        self.files.sync_dir(self.directory)

    def _scan_segment(self, segment: Segment, latest_epoch: int) -> tuple[int, int]:
        """Account for the sound batches; returns the file's size and the last leader epoch."""
        size_bytes = segment.start_recovery()
        for _, header in scan_batches(segment.file, 0, size_bytes):
            if header.base_offset < segment.end_offset:
                break
            if header.last_offset - segment.base_offset > MAX_RELATIVE_OFFSET:
                break
            if 0 <= header.leader_epoch < latest_epoch:
                break  # the stale tail of a truncation that was not durable
            if header.leader_epoch > latest_epoch:
                latest_epoch = header.leader_epoch
                self.transitions.append((latest_epoch, header.base_offset))
            segment.note_batch(header)
        self.report.scanned_bytes += size_bytes
        return size_bytes, latest_epoch

    def _refuse_if_synced(self, path: str, position: int, offset: int) -> None:
        if self._holds_synced_data and offset < self.recovery_point:
            raise CorruptRecordError(
                path,
                position,
                f"no sound batch at offset {offset}, though the log was synced up to "
                f"{self.recovery_point}",
            )

    def _drop_from(self, number: int) -> None:
        """Delete the segments after a cut, newest first."""
        dropped = self.segments[number:]
        self.segments = self.segments[:number]
        for segment in dropped:
            segment.release()
        self._delete_files([segment.base_offset for segment in reversed(dropped)])
        self.report.deleted_segments += len(dropped)

    def _delete_files(self, bases: Sequence[int]) -> None:
        for base in bases:
            for suffix in _SEGMENT_SUFFIXES:
                with suppress(FileNotFoundError):
                    self.files.unlink(f"{self.directory}/{file_name(base, suffix)}")

    def _recover_epochs(self) -> EpochCache:
        """The checkpointed epochs below the scanned part, then what its batches say."""
        path = f"{self.directory}/{epoch_cache.FILE_NAME}"
        end_offset = self.segments[-1].end_offset
        stored = epoch_cache.read_entries(self.files, path)
        entries = stored
        if entries is None:
            entries = self._epochs_of_believed_part()
        kept = [entry for entry in entries if entry[1] < self.scan_start]
        newer = [entry for entry in entries if self.scan_start <= entry[1] <= end_offset]
        if self.report.clean:
            kept, newer = [*kept, *newer], []
        for epoch, start in self.transitions:
            if not kept or epoch > kept[-1][0]:
                kept.append((epoch, start))
        # An election without data leaves a line at the log end (KAFKA-7415).
        kept += [
            entry
            for entry in newer
            if entry[1] == end_offset and (not kept or entry[0] > kept[-1][0])
        ]
        cache = EpochCache(self.files, path, kept)
        if kept != stored and (kept or stored):
            cache.write()
        cache.truncate_from_start(self.log_start_offset)
        return cache

    def _epochs_of_believed_part(self) -> list[tuple[int, int]]:
        """The checkpoint is lost: read the epochs from the headers of the unscanned segments."""
        entries: list[tuple[int, int]] = []
        for segment in self.segments:
            if segment.base_offset >= self.scan_start:
                break
            for _, header in scan_headers(
                segment.file, 0, segment.size_bytes, chunk_bytes=WALK_CHUNK_BYTES
            ):
                if not entries or header.leader_epoch > entries[-1][0]:
                    entries.append((header.leader_epoch, header.base_offset))
        return [entry for entry in entries if entry[0] >= 0]
