"""The disk work of one server of an ensemble: effects of its `Peer` in, events back to it.

    put(effect) ──► queue ──► one job ──► EpochAccepted, EpochAdopted, Logged, Truncated
                                     └──► LogRefused: nothing that is queued is done any more

Owns the order: one job at a time, as it was asked for. Appends that stand behind one another share
a group and a sync. A full disk refuses appends, and what was asked for behind them, with one event;
an epoch file is written again until there is space. Whatever else fails stops the server.

A leader's snapshot is written chunk by chunk. Only when it is complete, and a state was built of
it, does it take the place of what is here.

What a learner lacks is read here, too (`learner_history.py`), piece by piece and each in its turn,
so that no write waits for all of it.

It has no loop and no thread: the executor is given, so that the simulation drives this object.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, Protocol

from duolog_protocol.checksums import crc32c
from duolog_protocol.errors import DiskFullError, StorageError
from duolog_protocol.quorum_messages import LeaderMessage
from duolog_runtime.disk import DiskClosedError, DiskExecutor, DiskQueueFullError
from zkserver.core.peer_events import (
    AcceptEpoch,
    AdoptEpoch,
    AppendRecords,
    ChunkWritten,
    DropSnapshot,
    EpochAccepted,
    EpochAdopted,
    HistorySent,
    InstallSnapshot,
    Logged,
    LogRefused,
    PeerEvent,
    ReceiveSnapshot,
    SendHistory,
    SendSnapshot,
    SnapshotBegun,
    SnapshotInstalled,
    SnapshotRefused,
    StoreChunk,
    Truncated,
    TruncateLog,
)
from zkserver.storage.epoch_files import NO_SPACE
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.snapshot import SnapshotWriter

from .learner_history import HistoryGone, LearnerHistory, Piece
from .stats import WrittenGroup
from .stepping import MAX_GROUP_BYTES

PART_BYTES: Final = 1024 * 1024
"""Records of a history that are read at once while little is written."""
RETRY_MS: Final = 100
"""An epoch file is tried again after so long where there was no space for it."""

SnapshotWork = ReceiveSnapshot | StoreChunk | InstallSnapshot | DropSnapshot
EpochOrCut = AcceptEpoch | AdoptEpoch | TruncateLog
_Job = tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]
"""Work for the disk executor, and what to call at its end."""


class PeerDiskOwner(Protocol):
    """Whose disk this is."""

    def step(self, event: PeerEvent) -> None:
        """Let the peer take an event."""

    def history_read(self, link: Any, records: list[bytes]) -> None:
        """The next part of what a `SendHistory` asked for: send it."""

    def history_gone(self, link: Any, reason: str, snapshot_zxid: int) -> None:
        """The rest of what a `SendHistory` asked for cannot be read: the link is of no use.

        `snapshot_zxid`: what is to be sent from now on instead of the log before it; 0: no snapshot
        stands for what is lost.
        """

    def snapshot_read(self, link: Any, message: LeaderMessage) -> None:
        """The next message of the snapshot that a `SendSnapshot` asked for: send it."""

    def retry_disk(self, delay_ms: int, reason: str) -> None:
        """There is no space: call `PeerDisk.retry` in so many milliseconds."""

    def halt_for_disk(self, error: BaseException) -> None:
        """The disk failed: stop the server. No event follows."""


class StateBuilder(Protocol):
    """Who builds the state anew when the log changes otherwise than by growing; called in the disk
    executor, ahead of the event that tells of it."""

    def on_truncated(self, zxid: int) -> None:
        """The log now ends at `zxid`."""

    def on_received(self, zxid: int, chunks: Iterator[bytes]) -> None:
        """A leader's snapshot, to be installed next. Raises StorageError: it is not."""


class _SnapshotDamaged(Exception):
    """What a leader has sent is no snapshot."""


class PeerDisk:
    """Performs what a `Peer` asks of the disk, on its data directory."""

    def __init__(
        self,
        data: DataDirectory,
        disk: DiskExecutor,
        owner: PeerDiskOwner,
        *,
        max_group_bytes: int = MAX_GROUP_BYTES,
        part_bytes: int = PART_BYTES,
        builder: StateBuilder | None = None,
        now_ms: Callable[[], int] = lambda: 0,
        on_written: Callable[[WrittenGroup], None] = lambda _: None,
    ) -> None:
        """`on_written` hears of every group, measured by `now_ms` (ms, monotonic)."""
        self._data = data
        self._disk = disk
        self._owner = owner
        self._max_group_bytes = max_group_bytes
        self._part_bytes = part_bytes
        self._builder = builder
        self._now_ms = now_ms
        self._on_written = on_written
        self._needs_mark = False
        """The last group of the log has no mark behind it."""
        self._writer: SnapshotWriter | None = None
        """Of a leader's snapshot that is being received; used in the disk executor only."""
        self._written = [0, 0]
        """Its chunks so far, and their checksum."""
        self._queue: deque[EpochOrCut | AppendRecords | SnapshotWork | LearnerHistory] = deque()
        self._is_working = False
        self._installing_zxid = 0
        """Of a snapshot from which there is no way back any more; used in the disk executor, and
        looked at when it is done."""
        self._waits_for_space: _Job | None = None
        self._written_bytes = 0
        """Records appended so far."""
        self._histories: dict[Any, LearnerHistory] = {}
        self._halted = False

    @property
    def idle(self) -> bool:
        """Nothing is asked for that is not done."""
        return not self._queue and not self._is_working

    @property
    def waits_for_space(self) -> bool:
        """What is to be done next cannot be, for want of space: it is tried again and again."""
        return self._waits_for_space is not None

    @property
    def sends_history(self) -> bool:
        """Some of the log is being read for a learner, which may come to its end: nothing of it may
        be deleted. From any thread."""
        written_bytes = self._written_bytes
        return not all(each.is_hopeless(written_bytes) for each in list(self._histories.values()))

    def put(
        self, effect: EpochOrCut | AppendRecords | SnapshotWork | SendHistory | SendSnapshot
    ) -> None:
        """Do this behind everything that was put before."""
        if isinstance(effect, SendHistory | SendSnapshot):
            assert effect.link not in self._histories, "history is sent twice"
            history = LearnerHistory(effect, self._data, self._part_bytes, self._written_bytes)
            self._histories[effect.link] = history
            self._queue.append(history)
        else:
            self._queue.append(effect)
        self._go_on()

    def read_on(self, link: Any, stored_zxid: int | None) -> None:
        """A learner has stored its log up to there, or, None, a chunk of its snapshot.

        Nothing happens if it is forgotten, or says so more often than it should.
        """
        history = self._histories.get(link)
        if history is None:
            return
        if stored_zxid is None:
            history.chunk_stored()
        else:
            history.records_stored(stored_zxid)
        if history.may_read and not history.is_reading and history not in self._queue:
            self._queue.append(history)
            self._go_on()

    def forget(self, link: Any) -> None:
        """A link has ended: nobody wants its history. Idempotent."""
        history = self._histories.pop(link, None)
        if history is not None:
            history.is_wanted = False
            if not history.is_reading:
                history.close()

    def close(self) -> None:
        """Nobody is sent anything more: let go of the files that are open for it."""
        for link in list(self._histories):
            self.forget(link)

    def mark_if_quiet(self) -> None:
        """Nobody writes: let what was written last be told from a torn end, as no group after it
        speaks for it."""
        if self._needs_mark and self.idle and not self._halted:
            self._needs_mark = False
            self._start(self._data.log.mark, self._marked)

    def _marked(self, _: None, error: BaseException | None) -> None:
        if error is None:
            self._ended(None)
        else:
            self._halt(error)

    def retry(self) -> None:
        """There may be space now."""
        job, self._waits_for_space = self._waits_for_space, None
        if job is not None:
            self._submit(*job)

    def _retry_later(self, job: _Job, error: DiskFullError) -> None:
        """There is no space for what cannot be refused: nothing else is done before it."""
        self._waits_for_space = job
        self._owner.retry_disk(RETRY_MS, str(error))

    # ---- one job at a time ----------------------------------------------------------------------

    def _go_on(self) -> None:
        while self._queue and not self._is_working and not self._halted:
            job = self._queue.popleft()
            match job:
                case AppendRecords():
                    self._start(*self._append(job))
                case LearnerHistory():
                    if job.is_wanted:
                        job.is_reading = True
                        read = partial(job.read, self._written_bytes)
                        self._start(read, partial(self._piece_read, job))
                case ReceiveSnapshot() | StoreChunk() | InstallSnapshot() | DropSnapshot():
                    self._start(
                        partial(self._do_snapshot_work, job), partial(self._snapshot_work_done, job)
                    )
                case _:
                    self._start(*self._epoch_or_cut(job))

    def _start(
        self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        self._is_working = True
        self._submit(work, done)

    def _submit(
        self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        try:
            self._disk.submit(work, done)
        except DiskQueueFullError as error:  # nothing may be left out
            self._halt(error)

    def _ended(self, event: PeerEvent | None) -> None:
        self._is_working = False
        if event is not None:
            self._owner.step(event)
        self._go_on()

    def _halt(self, error: BaseException) -> None:
        if not self._halted:
            self._halted = True
            self._queue.clear()
            if not isinstance(error, DiskClosedError):
                self._owner.halt_for_disk(error)

    # ---- appends --------------------------------------------------------------------------------

    def _append(self, first: AppendRecords) -> _Job:
        """A group: this append, and those behind it that fit."""
        records = list(first.records)
        last_zxid = first.last_zxid
        size = sum(map(len, records))
        queue = self._queue
        while queue and isinstance(queue[0], AppendRecords):
            size += sum(map(len, queue[0].records))
            if size > self._max_group_bytes:
                break
            each = queue.popleft()
            assert isinstance(each, AppendRecords), each
            records += each.records
            last_zxid = each.last_zxid
        taken_ms = self._now_ms()
        self._written_bytes += sum(map(len, records))
        return (
            partial(self._write, records, last_zxid),
            partial(self._appended, first.first_zxid, last_zxid, len(records), taken_ms),
        )

    def _write(self, records: list[bytes], last_zxid: int) -> int:
        """In the disk thread: durable when it returns. The result is how long it took (ms)."""
        begun_ms = self._now_ms()
        self._data.log.append_durably(records, last_zxid)
        return self._now_ms() - begun_ms

    def _appended(
        self,
        first_zxid: int,
        last_zxid: int,
        count: int,
        taken_ms: int,
        sync_ms: int | None,
        error: BaseException | None,
    ) -> None:
        if error is None:
            assert sync_ms is not None
            self._needs_mark = True
            waiting = count + sum(
                len(each.records) for each in self._queue if isinstance(each, AppendRecords)
            )
            flush_ms = self._now_ms() - taken_ms
            self._on_written(WrittenGroup(count, waiting, 0, sync_ms, flush_ms))
            self._ended(Logged(last_zxid))
        elif isinstance(error, DiskFullError):
            refused = [job for job in self._queue if not isinstance(job, LearnerHistory)]
            assert all(isinstance(job, AppendRecords | AdoptEpoch) for job in refused), refused
            self._queue = deque(job for job in self._queue if isinstance(job, LearnerHistory))
            self._ended(LogRefused(first_zxid))
        else:
            self._halt(error)

    # ---- epochs and truncation ------------------------------------------------------------------

    def _epoch_or_cut(self, job: EpochOrCut) -> _Job:
        work: Callable[[], Any]
        event: PeerEvent
        match job:
            case AcceptEpoch(epoch=epoch):
                work, event = partial(self._data.epochs.promise, epoch), EpochAccepted(epoch)
            case AdoptEpoch(epoch=epoch):
                work, event = partial(self._data.epochs.adopt, epoch), EpochAdopted(epoch)
            case TruncateLog(zxid=zxid):
                assert not self._histories, "what is truncated is being read"
                work, event = partial(self._truncate, zxid), Truncated(zxid)

        def done(_: None, error: BaseException | None) -> None:
            if error is None:
                self._ended(event)
            elif isinstance(error, DiskFullError):
                self._retry_later((work, done), error)
            else:
                self._halt(error)

        return work, done

    def _truncate(self, zxid: int) -> None:
        """In the disk thread."""
        self._data.truncate_to(zxid)
        if self._builder is not None:
            self._builder.on_truncated(zxid)

    # ---- a leader's snapshot --------------------------------------------------------------------

    def _do_snapshot_work(self, job: SnapshotWork) -> None:
        """In the disk executor."""
        match job:
            case ReceiveSnapshot(zxid=zxid):
                self._abort_writer()
                self._written = [0, 0]
                self._writer = self._data.receive_snapshot(zxid)
            case StoreChunk(data=data):
                assert self._writer is not None, "a chunk of no snapshot"
                self._writer.write(data)
                self._written[0] += 1
                self._written[1] = crc32c(data, self._written[1])
            case InstallSnapshot(zxid=zxid):
                if not self._installing_zxid:
                    self._begin_install(job)
                self._data.finish_install(zxid)
                self._installing_zxid = 0
            case DropSnapshot():
                self._abort_writer()

    def _begin_install(self, job: InstallSnapshot) -> None:
        assert self._writer is not None, "no snapshot to install"
        if self._written != [job.chunk_count, job.crc]:
            raise _SnapshotDamaged("not all that was sent has come")
        self._writer.seal()
        if self._builder is not None:
            chunks = self._data.received_chunks(job.zxid, is_sealed_only=True)
            try:
                self._builder.on_received(job.zxid, chunks)
            except StorageError as error:
                raise _SnapshotDamaged(str(error)) from error
        writer, self._writer = self._writer, None  # no way back any more
        self._data.begin_install(writer, job.zxid)
        self._installing_zxid = job.zxid

    def _abort_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abort()

    def _snapshot_work_done(self, job: SnapshotWork, _: None, error: BaseException | None) -> None:
        if error is None:
            match job:
                case ReceiveSnapshot():
                    self._ended(SnapshotBegun())
                case StoreChunk():
                    self._ended(ChunkWritten())
                case InstallSnapshot(zxid=zxid):
                    self._ended(SnapshotInstalled(zxid))
                case _:
                    self._ended(None)
            return
        if isinstance(error, DiskFullError) and self._installing_zxid:
            work = partial(self._do_snapshot_work, job)
            self._retry_later((work, partial(self._snapshot_work_done, job)), error)
            return
        no_space = isinstance(error, OSError) and error.errno in NO_SPACE
        if not isinstance(error, _SnapshotDamaged | DiskFullError) and not no_space:
            self._halt(error)
            return
        self._queue = deque(job for job in self._queue if isinstance(job, LearnerHistory))
        self._queue.appendleft(DropSnapshot())
        self._ended(SnapshotRefused(str(error)))

    # ---- a snapshot and history for a learner ---------------------------------------------------

    def _piece_read(
        self, history: LearnerHistory, piece: Piece | None, error: BaseException | None
    ) -> None:
        history.is_reading = False
        if error is not None and not isinstance(error, HistoryGone):
            history.close()
            self._halt(error)
            return
        self._is_working = False
        if not history.is_wanted:
            history.close()
        elif isinstance(error, HistoryGone):
            self.forget(history.link)
            self._owner.history_gone(history.link, str(error), error.snapshot_zxid)
        else:
            assert piece is not None
            self._send(history, piece)
        self._go_on()

    def _send(self, history: LearnerHistory, piece: Piece) -> None:
        link = history.link
        history.sent(piece)
        for message in piece.messages:
            self._owner.snapshot_read(link, message)
        if piece.records:
            self._owner.history_read(link, piece.records)
        if not history.is_wanted:
            return
        if piece.is_last:
            self.forget(link)
            self._owner.step(HistorySent(link, history.zxid))
        elif history.may_read:
            self._queue.append(history)
