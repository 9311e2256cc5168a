"""Events into a core, and its effects performed: what a standalone server and an ensemble's share.

Owns the order: one event at a time, each with all its effects; what comes meanwhile waits. A step
that fails stops the server, as does a failed disk. What an `Append` means is a subclass's, and when
it is time for a snapshot.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from duolog_protocol.codec import Piece
from duolog_protocol.errors import StorageError
from duolog_runtime.clocks import Clock
from duolog_runtime.disk import DiskExecutor
from duolog_runtime.logs import Logger
from zkserver.core.connection import Connection
from zkserver.core.events import (
    Append,
    AwaitDrain,
    Close,
    Effect,
    Event,
    Halt,
    PauseReading,
    ResumeReading,
    Send,
    SessionAttached,
)
from zkserver.storage.recovery import DataDirectory

from .snapshotting import Snapshotting
from .stats import DiskStats, WrittenGroup

if TYPE_CHECKING:
    from zkserver.core.core import ZkCore

MAX_GROUP_BYTES: Final = 8 * 1024 * 1024
"""Records that one job takes at most, so that nobody waits long for what others wrote."""
_OUT_OF_MEANS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class EngineOptions(NamedTuple):
    """How often to snapshot and how much to keep."""

    snap_count: int = 100_000
    snap_retain_count: int = 3
    fsync_warning_ms: int = 1_000
    """A sync that takes longer is worth a line in the log."""


class Shell(Protocol):
    """What the engine needs from whoever has the sockets and the loop."""

    def send(
        self, connection: Connection, pieces: list[Piece], more: bool, zxid: int, now_ms: int
    ) -> None:
        """Write the pieces, one after another; where there is `more`, they may wait a moment.

        `zxid`: the last one applied. `now_ms`: the time.
        """

    def session_attached(self, connection: Connection) -> None:
        """It has a session: longer frames may come, and it may stay."""

    def close(self, connection: Connection, reason: str) -> None:
        """Close once what was sent is out."""

    def pause_reading(self, connection: Connection) -> None:
        """Read no more from it."""

    def resume_reading(self, connection: Connection) -> None:
        """Read again."""

    def await_drain(self, connection: Connection) -> None:
        """Step `Drained` once its socket has taken most of what was sent."""

    def call_soon(self) -> None:
        """Call `Engine.end_turn` once, after everything that arrived in this loop turn."""

    def arm(self, deadline_ms: int | None) -> None:
        """Call `Engine.fire_timer` at the deadline (None: never). The disk may have become idle."""

    def halt(self, reason: str) -> None:
        """Stop the process: the server cannot go on."""


class Stepper:
    """Drives one core."""

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
        options: EngineOptions | None,
        on_purged: Callable[[int], None] | None = None,
        may_purge: Callable[[], bool] = lambda: True,
    ) -> None:
        """`on_purged`, `may_purge`: see Snapshotting."""
        self.core = core
        self._data = data
        self._clock = clock
        self._shell = shell
        self._log = log
        options = options or EngineOptions()
        self._fsync_warning_ms = options.fsync_warning_ms
        self.stats: Final = DiskStats()
        self._snapshotting = Snapshotting(
            data,
            disk,
            rng,
            log,
            clock,
            self.stats,
            begin=core.begin_snapshot,
            halt=self._halt_for_disk,
            on_purged=on_purged,
            may_purge=may_purge,
            snap_count=options.snap_count,
            retain_count=options.snap_retain_count,
        )
        self._now_ms = 0
        """When the step that runs now, or ran last, began."""
        self._disk_is_quick = False
        """Replies may wait for those that the disk lets go next."""
        self._events: deque[Any] = deque()
        """Events that came while one was being stepped."""
        self._stepping = False
        self.halted = ""
        """Why the server stopped, or empty; then nothing happens any more."""

    def _load(self, *, may_be_half: bool = False) -> Iterator[bytes]:
        """Load the snapshot; the iterator replays the log, and yields each record once that is
        done. Blocks. `may_be_half` and what is raised: see `DataDirectory.records`."""
        data, now_ms = self._data, self._clock.now_ms
        begun_ms = now_ms()
        for error in data.damaged_snapshots:
            self._log.warning("snapshot_damaged", reason=str(error))
        if data.snapshot_zxid:
            self.core.load_snapshot(data.snapshot_chunks())
        self.stats.last_snapshot_zxid = data.snapshot_zxid
        self.stats.snapshot_load_time.add(now_ms() - begun_ms)
        return self._replayed(data.records(may_be_half=may_be_half), begun_ms)

    def _replayed(self, records: Iterator[bytes], begun_ms: int) -> Iterator[bytes]:
        stats, now_ms = self.stats, self._clock.now_ms
        loaded_ms = now_ms()
        count = 0
        replay = self.core.replay
        for record in records:
            replay(record)
            count += 1
            yield record
        stats.log_load_time.add(now_ms() - loaded_ms)
        stats.records_loaded.add(count)
        stats.init_time.add(now_ms() - begun_ms)
        self._snapshotting.count(count)
        self._log.info(
            "state_recovered",
            snapshot_zxid=f"{self._data.snapshot_zxid:#x}",
            zxid=f"{self._data.log.last_zxid:#x}",
            records=count,
        )

    def close(self) -> None:
        """Give up a snapshot that is under way; the directory's owner closes that."""
        self._snapshotting.close()

    def step(self, event: Any) -> None:
        """Feed the core one event and perform what it decides."""
        if self.halted:
            return
        if self._stepping:
            self._events.append(event)
            return
        self._run(event)

    def _run(self, event: Event, before_effects: Callable[[], None] | None = None) -> None:
        """Step an event, and then those that its effects brought."""
        self._stepping = True
        try:
            if before_effects is None:
                self._one(event)
            else:
                self._now_ms = self._clock.now_ms()
                effects = self.core.step(event, self._now_ms)
                before_effects()
                self._perform(effects)
            while self._events and not self.halted:
                self._one(self._events.popleft())
        except Exception as error:  # the state may be half changed: nothing after this is safe
            self._log.error("step_failed", exc_info=error)
            self.halt(f"the core failed: {error!r}")
        finally:
            self._stepping = False

    def _one(self, event: Any) -> None:
        """Step one event, with its effects."""
        self._now_ms = self._clock.now_ms()
        self._perform(self.core.step(event, self._now_ms))

    def halt(self, reason: str) -> None:
        """Stop for good: no effect is performed and no event taken any more. Idempotent."""
        if not self.halted:
            self.halted = reason
            self._events.clear()
            self._shell.halt(reason)

    def _halt_for_disk(self, reason: str, error: BaseException) -> None:
        """The disk failed: the next start must not trust what the page cache shows.

        A process that has run out of files or memory, or into a bug, says nothing of the disk.
        """
        cause = error if isinstance(error, OSError) else error.__cause__
        out_of_means = isinstance(cause, OSError) and cause.errno in _OUT_OF_MEANS
        of_the_disk = isinstance(error, OSError | StorageError) and not out_of_means
        if not self.halted and of_the_disk:
            try:
                self._data.mark_failed_sync()
            except OSError as unmarked:
                self._log.error("failed_sync_not_marked", reason=str(unmarked))
        self.halt(reason)

    def _wrote(self, group: WrittenGroup) -> None:
        """A group is durable."""
        self.stats.wrote(group)
        if group.sync_ms > self._fsync_warning_ms:
            self.stats.slow_fsyncs += 1
            self._log.warning("fsync_slow", elapsed_ms=group.sync_ms, records=group.records)

    def _perform(self, effects: list[Effect]) -> None:
        shell = self._shell
        for effect in effects:
            if self.halted:
                return
            kind = type(effect)
            if kind is Send:
                more = effect.more and self._disk_is_quick  # type: ignore[union-attr]
                connection, pieces = effect.connection, effect.pieces  # type: ignore[union-attr]
                zxid, now_ms = self.core.last_applied_zxid, self._clock.now_ms()
                shell.send(connection, pieces, more, zxid, now_ms)
            elif kind is Append:
                self._enqueue(effect)  # type: ignore[arg-type]
            else:
                self._perform_rare(effect)

    def _perform_rare(self, effect: Effect) -> None:
        match effect:
            case SessionAttached():
                self._shell.session_attached(effect.connection)
            case Close():
                self._shell.close(effect.connection, effect.reason)
            case PauseReading():
                self._shell.pause_reading(effect.connection)
            case ResumeReading():
                self._shell.resume_reading(effect.connection)
            case AwaitDrain():
                self._shell.await_drain(effect.connection)
            case Halt():
                self.halt(effect.reason)
            case _:
                raise AssertionError(f"unknown effect {effect!r}")

    def _enqueue(self, append: Append) -> None:
        raise AssertionError("a subclass logs it")
