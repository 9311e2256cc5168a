"""The glue between the core and the disk: events in, effects performed, completions back in.

Owns group commit, the moment of a snapshot, and the rule that a failed disk stops the server. It
has no event loop, no socket and no thread: the shell, the clock and the disk executor are given,
so that the simulation drives exactly this object.

    step(event) -> core -> Append -> queue -> one group: epochs, append, sync -> Durable -> core
                        -> Send, Close, PauseReading, ResumeReading -> shell

Group commit: while one group is written, appends queue; the next group takes all of them. It starts
at the end of the first loop turn in which nobody is heard, or after a millisecond: what the sockets
hold at one moment goes to the disk together. A lone write waits for nobody. What makes the last
group of a burst recognizable, its mark, is written when the engine is quiet.

A group is a job of the disk thread. On a quick disk it is none: this thread writes it, and while
the disk works, the core works out what it changes. The effects wait for the sync.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from duolog_protocol.errors import DiskFullError
from duolog_protocol.txns import zxid_of
from duolog_protocol.types import epoch_of
from duolog_runtime.clocks import Clock
from duolog_runtime.disk import DiskClosedError, DiskExecutor, DiskQueueFullError
from duolog_runtime.logs import Logger
from zkserver.core.events import (
    Append,
    AppendRefused,
    Durable,
    Event,
    Received,
    TimerFired,
)
from zkserver.storage.groups import group_bytes
from zkserver.storage.recovery import DataDirectory

from .stats import WrittenGroup
from .stepping import MAX_GROUP_BYTES, EngineOptions, Shell, Stepper

if TYPE_CHECKING:
    from zkserver.core.core import ZkCore

GATHER_MS: Final = 1
"""How long the disk waits for more while clients are heard, at most."""
QUICK_MS: Final = 1
"""Syncs that take no longer (in whole milliseconds) are worth waiting for: with replies that can
leave together, and in this thread. A disk that is slower, or has just been, holds up nobody."""
MAX_BYTES_HERE: Final = 256 * 1024
"""The largest group that is written in this thread: no disk that is quick takes long for it."""


class Engine(Stepper):
    """Drives one core with one data directory."""

    def __init__(
        self,
        core: ZkCore,
        data: DataDirectory,
        *,
        disk: DiskExecutor,
        clock: Clock,
        rng: Random,
        shell: Shell,
        log: Logger,
        options: EngineOptions | None = None,
    ) -> None:
        super().__init__(
            core, data, disk=disk, clock=clock, rng=rng, shell=shell, log=log, options=options
        )
        self._disk = disk
        self._queue: list[Append] = []
        self._queued_count = 0
        """Records in the queue."""
        self._queued_since_ms = 0
        self._writing = False
        self._needs_mark = False
        """The last group of the log has no mark behind it."""
        self._recent_sync_ms = QUICK_MS + 1
        """What syncs take; a slow one counts for several after it. At first nobody knows."""
        self._disk_is_quick = False
        """It is no more than `QUICK_MS`."""
        self._armed_for_ms: int | None = None
        """The deadline that `_arm` last gave the shell; None: no timer will come to mark the log.
        """
        self._turn_scheduled = False
        self._turn_reads = 0
        """Reads of clients since the last end of a turn."""

    def recover(self) -> None:
        """Bring the core to the state that the disk holds. Blocks; before `start`.

        Raises CorruptRecordError, DataDirectoryError, StorageError, OSError.
        """
        for _ in self._load():
            pass

    def start(self) -> None:
        """Open a new epoch. `ready` tells when it is durable."""
        last = self._data.log.last_zxid
        epoch = max(self._data.epochs.next_epoch(), epoch_of(last) + 1)
        self._now_ms = self._clock.now_ms()
        self._perform(self.core.start(epoch, self._now_ms, self._clock.wall_ms()))
        self._log.info("epoch_opened", epoch=epoch)

    def step(self, event: Event) -> None:
        """Feed the core one event and perform what it decides."""
        if type(event) is Received:
            self._turn_reads += 1
        super().step(event)

    @property
    def mode(self) -> str:
        """What operators call the role."""
        return "standalone"

    def member_status(self) -> None:
        """It is no member of an ensemble."""

    @property
    def idle(self) -> bool:
        """Nothing waits for the disk."""
        return not self._queue and not self._writing

    @property
    def last_durable_zxid(self) -> int:
        """The last zxid on disk."""
        return self._data.log.durable_zxid

    def deadline_ms(self) -> int | None:
        """When to call `fire_timer` if nothing else happens."""
        return None if self.halted else self.core.deadline_ms()

    def fire_timer(self) -> None:
        """The core's deadline has come."""
        self.step(TimerFired(self._clock.wall_ms()))
        if self.idle and not self.halted:
            self._mark_log()  # nobody writes: a quiet moment

    def begin_snapshot(self) -> int | None:
        """Take a snapshot now; the zxid it will stand at, None while one is under way."""
        return None if self.halted else self._snapshotting.begin()

    def end_turn(self) -> None:
        """The loop turn ends: what has gathered goes to the disk, unless more is coming."""
        self._turn_scheduled = False
        heard, self._turn_reads = self._turn_reads, 0
        alone = heard == 1 and self._queued_count == 1  # nobody else was heard in this turn
        if not self._queue or self._writing:
            self._arm()  # after a job it is armed anyway
        elif heard and not alone and self._clock.now_ms() - self._queued_since_ms < GATHER_MS:
            self._schedule_write()
        else:
            self._write()

    def halt(self, reason: str) -> None:
        """Stop for good: no effect is performed and no event taken any more. Idempotent."""
        self._queue.clear()
        self._queued_count = 0
        super().halt(reason)

    def _enqueue(self, append: Append) -> None:
        if not self._queue:
            self._queued_since_ms = self._now_ms
        self._queue.append(append)
        self._queued_count += len(append.records)
        self._schedule_write()

    def _schedule_write(self) -> None:
        if not self._turn_scheduled and not self._writing:
            self._turn_scheduled = True
            self._shell.call_soon()

    def _write(self) -> None:
        """Write what is queued, or as much as one group may take."""
        if self.halted:
            return
        records, first_zxid, last_zxid = self._take_group()
        since_ms = self._queued_since_ms
        now_ms = self._queued_since_ms = self._clock.now_ms()
        count, waiting = len(records), self._queued_count
        self._queued_count = waiting - count
        group = _Group(first_zxid, last_zxid, count, waiting, since_ms, now_ms)
        if self._may_write_here(records, last_zxid):
            self._write_here(records, group)
        else:
            self._submit(records, group)

    def _may_write_here(self, records: list[bytes], last_zxid: int) -> bool:
        """Whether the disk is quick and idle, and nothing but the group itself is to be written.

        So its sync cannot fail for want of space, where the file system writes in place: what the
        core has worked out by then it cannot take back, and such a failure would stop the server.
        """
        data, size_bytes = self._data, group_bytes(records)
        return (
            self._disk_is_quick
            and not self._disk.pending
            and size_bytes <= MAX_BYTES_HERE
            and data.log.has_space_for(size_bytes)
            and epoch_of(last_zxid) <= data.epochs.current_epoch
        )

    def _write_here(self, records: list[bytes], group: _Group) -> None:
        """Write a group and wait for the disk."""
        begun_ms = self._clock.now_ms()
        try:
            self._data.log.append(records, group.last_zxid)
        except Exception as error:  # as what a job raises: it stops the server
            self._written(group, None, error)
            return
        if self._queue:
            self._schedule_write()
        sync = partial(self._sync_log, group, self._clock.now_ms() - begun_ms)
        self._run(Durable(group.last_zxid), before_effects=sync)
        self._mark_where_no_timer_will()

    def _sync_log(self, group: _Group, append_ms: int) -> None:
        """The rest of a write that took so long so far; what the core did since does not count."""
        self._arm()  # while the disk works
        begun_ms = self._clock.now_ms()
        try:
            self._data.log.sync()
        except Exception as error:
            self._halt_for_disk(f"the transaction log cannot be written: {error}", error)
            return
        self._now_ms = self._clock.now_ms()
        self._note_written(group, append_ms + self._now_ms - begun_ms)

    def _submit(self, records: list[bytes], group: _Group) -> None:
        """Give the disk thread a group."""
        self._writing = True
        try:
            self._disk.submit(
                partial(self._write_group, records, group.last_zxid),
                partial(self._written, group),
            )
        except DiskQueueFullError as error:  # what was taken from the queue cannot be put back
            self.halt(f"the disk takes no work: {error}")

    def _take_group(self) -> tuple[list[bytes], int, int]:
        """Records from the front of the queue, as many as one job may take, and their zxids."""
        queue = self._queue
        records: list[bytes] = []
        size = taken = 0
        first_zxid = last_zxid = queue[0].first_zxid
        for append in queue:
            more = sum(map(len, append.records))
            if size + more > MAX_GROUP_BYTES:
                break
            size += more
            taken += 1
            records += append.records
            last_zxid = append.last_zxid
        del queue[:taken]
        if not records:  # a single step has logged more than that: it is cut between records
            append = queue[0]
            for record in append.records:
                size += len(record)
                if records and size > MAX_GROUP_BYTES:
                    break
                records.append(record)
            last_zxid = zxid_of(records[-1])
            rest = append.records[len(records) :]
            if rest:
                queue[0] = Append(rest, zxid_of(rest[0]), append.last_zxid)
            else:
                del queue[0]
        return records, first_zxid, last_zxid

    def _write_group(self, records: list[bytes], last_zxid: int) -> int:
        """In the disk thread: durable when it returns. The result is the time of the sync, ms."""
        epochs = self._data.epochs
        if epoch_of(last_zxid) > epochs.current_epoch:
            epochs.advance(epoch_of(last_zxid))  # before any record of it is in the log
        begun_ms = self._clock.now_ms()
        self._data.log.append_durably(records, last_zxid)
        return self._clock.now_ms() - begun_ms

    def _written(self, group: _Group, sync_ms: int | None, error: BaseException | None) -> None:
        self._writing = False
        if not self.halted:
            self._take_outcome(group, sync_ms, error)
        self._arm()
        self._mark_where_no_timer_will()

    def _arm(self) -> None:
        self._armed_for_ms = self.deadline_ms()
        self._shell.arm(self._armed_for_ms)

    def _mark_where_no_timer_will(self) -> None:
        if self._armed_for_ms is None and self.idle and not self.halted:
            self._mark_log()

    def _take_outcome(
        self, group: _Group, sync_ms: int | None, error: BaseException | None
    ) -> None:
        first_zxid = group.first_zxid
        if isinstance(error, DiskFullError):
            self._log.warning("append_refused", reason=str(error), first_zxid=f"{first_zxid:#x}")
            self._queue.clear()
            self._queued_count = 0
            self.step(AppendRefused(first_zxid))
            return
        if error is not None:
            self._halt_for_disk(f"the transaction log cannot be written: {error}", error)
            return
        if self._queue:
            self._schedule_write()
        assert sync_ms is not None
        self.step(Durable(group.last_zxid))
        self._note_written(group, sync_ms)

    def _note_written(self, group: _Group, sync_ms: int) -> None:
        """It is on disk: count it, and begin a snapshot where it is time."""
        if self.halted:
            return
        self._recent_sync_ms = max(sync_ms, self._recent_sync_ms // 2)
        self._disk_is_quick = self._recent_sync_ms <= QUICK_MS
        self._needs_mark = True
        self._measure(group, sync_ms)
        self._snapshotting.count(group.records)
        self._snapshotting.maybe_begin()

    def _mark_log(self) -> None:
        """It is quiet: what was written last needs a mark, no group after it speaks for it."""
        if self._needs_mark:
            self._needs_mark = False
            with suppress(DiskClosedError, DiskQueueFullError):  # then `close` does it
                self._disk.submit(self._data.log.mark, self._marked)

    def _marked(self, _: None, error: BaseException | None) -> None:
        if error is not None and not self.halted and not isinstance(error, DiskClosedError):
            self._halt_for_disk(f"the transaction log cannot be written: {error}", error)

    def _measure(self, group: _Group, sync_ms: int) -> None:
        queue_ms, flush_ms = group.taken_ms - group.since_ms, self._now_ms - group.taken_ms
        written = WrittenGroup(group.records, group.waiting, queue_ms, sync_ms, flush_ms)
        self._wrote(written)


class _Group(NamedTuple):
    """A group of records on its way to the disk."""

    first_zxid: int
    last_zxid: int
    records: int
    waiting: int
    """Records that waited when it was taken, its own among them."""
    since_ms: int
    """When its first record came."""
    taken_ms: int
    """When it was taken from the queue."""
