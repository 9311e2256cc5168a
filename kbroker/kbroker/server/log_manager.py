"""The log directory: whose it is, its logs, their syncs, their upkeep.

Owns the lock, `meta.properties`, the checkpoints, the clean-shutdown mark and the group commit:
while one round of syncs runs in the disk thread, everything that becomes dirty waits for the next
one, which then covers all of it. A failed sync takes the directory offline for good; with the one
directory that a broker has, that halts it.

Source: Kafka `LogManager`; fsync rules of kafka.md A12 and DESIGN §7.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from duolog_protocol.errors import DataDirectoryError, DiskFullError, StorageError
from duolog_protocol.types import TopicPartition
from duolog_runtime.clocks import Clock
from duolog_runtime.disk import DiskExecutor
from duolog_runtime.files import DirectoryLockedError, File, Files, make_directory
from duolog_runtime.logs import Logger

from ..core.producer_state import ProducerStates
from ..core.topic_config import TopicConfig
from ..storage import checkpoints as marks
from ..storage.flush import FlushTarget
from ..storage.log import DeletedSegment, Log, LogConfig
from ..storage.memory_tail import TailBudget
from ..storage.recovery import RecoveryReport, create_log, open_log
from ..storage.segment import LOG_SUFFIX

DELETED_DIR_SUFFIX: Final = "-delete"
STRAY_DIR_SUFFIX: Final = "-stray"
FAILED_SYNC_FILE: Final = "sync-failed"
_LOCK_FILE: Final = ".lock"


def log_config(topic: TopicConfig, memory_tail_bytes: int) -> LogConfig:
    """The part of a topic's settings that its logs follow."""
    return LogConfig(
        segment_bytes=topic.segment_bytes,
        segment_ms=topic.segment_ms,
        segment_index_bytes=topic.segment_index_bytes,
        index_interval_bytes=topic.index_interval_bytes,
        retention_ms=topic.retention_ms,
        retention_bytes=topic.retention_bytes,
        file_delete_delay_ms=topic.file_delete_delay_ms,
        memory_tail_bytes=memory_tail_bytes,
    )


class LogManager:
    """All logs of the one log directory. Blocking parts say so; run them in the disk thread."""

    def __init__(
        self,
        files: Files,
        directory: str,
        disk: DiskExecutor,
        *,
        defer: Callable[[Callable[[], None]], None],
        clock: Clock,
        rng: random.Random,
        log: Logger,
        memory_tail_bytes: int,
        memory_tails_bytes: int,
        max_producer_ids: int,
        halt: Callable[[StorageError], None],
    ) -> None:
        self.directory = directory
        self.logs: dict[TopicPartition, Log] = {}
        self._files = files
        self._disk = disk
        self._defer = defer
        self._clock = clock
        self._rng = rng
        self._log = log
        self._memory_tail_bytes = memory_tail_bytes
        self._tails = TailBudget(memory_tails_bytes)
        self._max_producer_ids = max_producer_ids
        self.halt = halt
        """Called when a log can no longer be trusted: the broker must stop."""
        self._lock: File | None = None
        self._was_clean = False
        self._checkpoints: marks.LogDirCheckpoints | None = None
        self._dirty: dict[Log, Callable[[int], None]] = {}
        self._sync_running = False
        self._sync_deferred = False
        self._deleted: list[tuple[int, Log, list[DeletedSegment]]] = []
        """(when to unlink, log, segments)"""
        self._unlinking = False
        self._checkpointing = False

    # ---- the directory -------------------------------------------------------------------------

    def open_directory(self) -> marks.MetaProperties | None:
        """Take the directory; blocking. Returns whose it is, None for a new one.

        Raises DataDirectoryError where another process has it or its format is not ours.
        """
        files = self._files
        make_directory(files, self.directory)
        try:
            self._lock = files.lock(f"{self.directory}/{_LOCK_FILE}")
        except DirectoryLockedError as error:
            raise DataDirectoryError(
                f"{self.directory} is in use by another broker process"
            ) from error
        if files.exists(f"{self.directory}/{FAILED_SYNC_FILE}"):
            self.release()
            raise DataDirectoryError(
                f"a sync of {self.directory} has failed: what can be read there may not be on the "
                f"disk. Check the disk, reboot, then remove {FAILED_SYNC_FILE} to recover the logs"
            )
        owner = marks.read_meta_properties(files, self.directory)
        if owner is None:
            strangers = [
                name for name in files.list(self.directory) if name.startswith(("log.", "zk"))
            ]
            if strangers:
                raise DataDirectoryError(
                    f"{self.directory} holds {strangers[0]!r} and is no broker's directory"
                )
        # A killed process may have made a partition's directory whose name a power loss would still
        # take back: what is found from here on is relied on.
        files.sync_dir(self.directory)
        self._checkpoints = marks.LogDirCheckpoints(files, self.directory)
        self._was_clean = marks.take_clean_shutdown(files, self.directory) is not None
        for name in files.list(self.directory):
            if name.endswith(DELETED_DIR_SUFFIX):
                self._remove_directory(name)
        return owner

    def claim_directory(self, broker_id: int, cluster_id: str) -> None:
        """Write, or compare, who owns the directory; blocking. Raises DataDirectoryError."""
        owner = marks.read_meta_properties(self._files, self.directory)
        if owner is None:
            directory_id = f"{self._rng.getrandbits(128):032x}"
            owner = marks.MetaProperties(broker_id, cluster_id, directory_id)
            marks.write_meta_properties(self._files, self.directory, owner)
        marks.check_meta_properties(
            owner, directory=self.directory, broker_id=broker_id, cluster_id=cluster_id
        )

    def partitions_on_disk(self) -> list[TopicPartition]:
        """Partitions that have a directory; blocking."""
        found: list[TopicPartition] = []
        for name in self._files.list(self.directory):
            topic, dash, number = name.rpartition("-")
            if dash and number.isdecimal() and self._files.exists(self._path(name)):
                found.append(TopicPartition(topic, int(number)))
        return found

    # ---- logs ----------------------------------------------------------------------------------

    def open_or_create(
        self, key: TopicPartition, topic_id: str, topic: TopicConfig
    ) -> tuple[Log, ProducerStates]:
        """Open a partition's log, or make it; blocking. Raises StorageError, OSError.

        A directory of another topic of the same name (made again while we were away), or with
        records of an unknown one, is put aside as stray, never deleted.
        """
        assert key not in self.logs, key
        try:
            return self._open_or_create(key, topic_id, topic)
        except OSError as error:
            if error.errno == errno.EIO:
                self._mark_failed_sync()
            raise

    def _open_or_create(
        self, key: TopicPartition, topic_id: str, topic: TopicConfig
    ) -> tuple[Log, ProducerStates]:
        assert self._checkpoints is not None
        files, name = self._files, f"{key.topic}-{key.partition}"
        path = self._path(name)
        config = log_config(topic, self._memory_tail_bytes)
        jitter = self._rng.randrange(max(config.segment_ms // 20, 1))
        config = replace(config, segment_ms=max(config.segment_ms - jitter, 1))
        producers = ProducerStates(self._max_producer_ids)
        known = marks.read_partition_metadata(files, path) if files.exists(path) else None
        if known is not None and known != topic_id:
            self.put_aside(key)
            known = None
        if known is None:
            if files.exists(path):
                if self._holds_records(name):
                    self.put_aside(key)  # whose they are is not known: a person may find out
                else:
                    self._remove_directory(name)  # its creation was interrupted
            log = create_log(
                files,
                path,
                config=config,
                checkpoints=self._checkpoints.partition(key),
                producers=producers,
                wall_ms=self._clock.wall_ms(),
                tail_budget=self._tails,
            )
            marks.write_partition_metadata(files, path, topic_id)
            return log, producers
        report = RecoveryReport()
        log = open_log(
            files,
            path,
            config=config,
            checkpoints=self._checkpoints.partition(key),
            producers=producers,
            clean=self._was_clean,
            wall_ms=self._clock.wall_ms(),
            tail_budget=self._tails,
            report=report,
        )
        if not report.clean:
            self._log.info(
                "log_recovered",
                topic=key.topic,
                partition=key.partition,
                log_end_offset=log.log_end_offset,
                scanned_bytes=report.scanned_bytes,
                cut_bytes=report.cut_bytes,
            )
        # What recovery read back may still be in the page cache only: sync it before it counts.
        log.flush()
        return log, producers

    def add(self, key: TopicPartition, log: Log) -> None:
        """Look after a log that `open_or_create` made."""
        self.logs[key] = log

    def put_aside(self, key: TopicPartition) -> None:
        """Rename a partition's directory that no topic claims; blocking. Nothing is deleted."""
        name = f"{key.topic}-{key.partition}"
        stray = f"{name}.{self._rng.getrandbits(64):016x}{STRAY_DIR_SUFFIX}"
        self._files.rename(self._path(name), self._path(stray))
        self._files.sync_dir(self.directory)
        self._log.warning("partition_put_aside", partition=name, directory=stray)

    def forget(self, key: TopicPartition) -> Log | None:
        """Stop looking after a log; `delete` may follow in the disk thread."""
        log = self.logs.pop(key, None)
        if log is not None:
            self._dirty.pop(log, None)
        return log

    def delete(self, key: TopicPartition, log: Log | None) -> None:
        """Delete a forgotten partition: its name at once, then its files; blocking."""
        assert key not in self.logs, key
        assert self._checkpoints is not None
        if log is not None:
            log.abandon()
        name = f"{key.topic}-{key.partition}"
        if not self._files.exists(self._path(name)):
            return
        doomed = f"{name}.{self._rng.getrandbits(64):016x}{DELETED_DIR_SUFFIX}"
        self._files.rename(self._path(name), self._path(doomed))
        self._files.sync_dir(self.directory)
        self._checkpoints.partition(key).forget()
        self._remove_directory(doomed)

    # ---- group commit --------------------------------------------------------------------------

    @property
    def is_syncing(self) -> bool:
        """Whether acknowledgements are on their way: a round runs or is about to."""
        return self._sync_running or bool(self._dirty)

    def sync_soon(self, log: Log, on_durable: Callable[[int], None]) -> None:
        """Sync what was appended; `on_durable` then gets the new durable end offset.

        Rounds start at the end of a loop turn, one at a time: a round covers everything that
        was appended before it began.
        """
        self._dirty[log] = on_durable
        if not self._sync_running and not self._sync_deferred:
            self._sync_deferred = True
            self._defer(self._start_round)

    def _start_round(self) -> None:
        self._sync_deferred = False
        if self._sync_running or not self._dirty:
            return
        dirty, self._dirty = self._dirty, {}
        round_: list[tuple[Log, FlushTarget | None, Callable[[int], None]]] = []
        for log, on_durable in dirty.items():
            if log.offline is not None:
                continue
            round_.append((log, log.flush_target(), on_durable))
        if not round_:
            return

        def sync_all() -> None:
            for _, target, _ in round_:
                if target is not None:
                    target.sync()

        def synced(_result: None, error: BaseException | None) -> None:
            self._sync_running = False
            broken: Exception | None = None
            for each in round_:
                try:
                    self._take_back(*each, error)
                except Exception as failure:  # of one log's: the others must hear of theirs
                    broken = broken or failure
            if self._dirty:
                self._start_round()
            if broken is not None:
                raise broken

        self._sync_running = True
        try:
            self._disk.submit(sync_all, synced)
        except StorageError as error:
            # What was to be synced would never be: nobody may be acknowledged any more.
            self._sync_running = False
            self.halt(error)

    def _take_back(
        self,
        log: Log,
        target: FlushTarget | None,
        on_durable: Callable[[int], None],
        error: BaseException | None,
    ) -> None:
        """What a round of syncs has done for one log; no target: it was durable before."""
        if target is None:
            on_durable(log.durable_end_offset)
            return
        if target.is_synced:
            on_durable(log.on_flushed(target))
            return
        assert error is not None, log.directory
        cause = error if isinstance(error, OSError) else OSError(str(error))
        failure = log.on_flush_failed(target, cause)
        self._mark_failed_sync()
        self.halt(failure)

    def _mark_failed_sync(self) -> None:
        """Leave word for the next start on this machine, whose page cache lies from now on.

        The mark need not be durable: after a reboot the cache tells the truth again.
        """
        try:
            self._files.open(f"{self.directory}/{FAILED_SYNC_FILE}", create=True).close()
        except OSError as error:
            self._log.error("failed_sync_not_marked", error=str(error))

    # ---- upkeep --------------------------------------------------------------------------------

    def apply_retention(self, high_watermarks: dict[TopicPartition, int]) -> int:
        """Delete what has outlived its topic's limits; returns how many segments."""
        count = 0
        now_ms, wall_ms = self._clock.now_ms(), self._clock.wall_ms()
        for key, log in self.logs.items():
            if log.offline is not None or key not in high_watermarks:
                continue
            try:
                deleted = log.apply_retention(high_watermark=high_watermarks[key], wall_ms=wall_ms)
            except DiskFullError as error:
                self._log.warning("retention_refused", partition=key, error=str(error))
                continue
            except StorageError as error:
                self.halt(error)
                break
            if deleted:
                count += len(deleted)
                self._deleted.append((now_ms + log.config.file_delete_delay_ms, log, deleted))
                self._log.info(
                    "segments_deleted",
                    topic=key.topic,
                    partition=key.partition,
                    count=len(deleted),
                    log_start_offset=log.log_start_offset,
                    reason=deleted[0].reason.name,
                )
        return count

    def unlink_deleted(self) -> None:
        """Unlink the files of deleted segments whose delay is over; one job at a time."""
        now_ms = self._clock.now_ms()
        due = [(log, deleted) for when_ms, log, deleted in self._deleted if when_ms <= now_ms]
        if self._unlinking or not due:
            return

        def unlink() -> None:
            failed: OSError | None = None
            for log, deleted in due:
                try:
                    log.unlink_deleted(deleted)
                except OSError as error:
                    failed = error
            if failed is not None:
                raise failed

        def unlinked(_result: None, error: BaseException | None) -> None:
            self._unlinking = False
            if error is not None:
                self._log.warning("unlink_failed", error=str(error))

        self._unlinking = True
        self._deleted = [each for each in self._deleted if each[0] > now_ms]
        self._disk.submit(unlink, unlinked)

    def checkpoint(self, high_watermarks: dict[TopicPartition, int]) -> None:
        """Write recovery points, log starts and high watermarks, in the disk thread.

        One job at a time: while a slow disk has not written the former, there is no further one.
        """
        assert self._checkpoints is not None
        if self._checkpointing:
            return
        for key, log in self.logs.items():
            log.stage_checkpoints()
            if key in high_watermarks:
                self._checkpoints.partition(key).stage_high_watermark(high_watermarks[key])

        def checkpointed(_result: None, error: BaseException | None) -> None:
            self._checkpointing = False
            if error is not None:
                self._log.warning("checkpoint_failed", error=str(error))

        self._checkpointing = True
        self._disk.submit(self._checkpoints.write, checkpointed)

    def close(self, broker_epoch: int) -> None:
        """Close every log and leave the clean-shutdown mark; blocking, after the last append."""
        if self._checkpoints is not None:
            # What was not opened in this life is as clean as the life before has left it.
            clean = self._was_clean or all(key in self.logs for key in self.partitions_on_disk())
            for log in self.logs.values():
                if log.offline is None:
                    log.close()
                else:
                    clean = False
            for _, log, deleted in self._deleted:
                log.unlink_deleted(deleted)
            self._deleted.clear()
            self._checkpoints.write()
            if clean:
                marks.write_clean_shutdown(self._files, self.directory, broker_epoch)
        self.release()

    def release(self) -> None:
        """Give the directory back without any write. Idempotent."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # ---- inner ---------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def _holds_records(self, name: str) -> bool:
        path = self._path(name)
        for each in self._files.list(path):
            if each.endswith(LOG_SUFFIX):
                file = self._files.open(f"{path}/{each}")
                try:
                    if file.size() > 0:
                        return True
                finally:
                    file.close()
        return False

    def _remove_directory(self, name: str) -> None:
        path = self._path(name)
        for each in self._files.list(path):
            self._files.unlink(f"{path}/{each}")
        self._files.rmdir(path)
