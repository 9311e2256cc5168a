"""When a snapshot is taken, and its way to the disk in slices between loop turns.

    idle -> rolling the log -> writing chunks -> verifying -> purging -> idle
             any step without space, or overtaken by a leader's snapshot: give up, idle
             any other failure: halt

Owns that sequence. The core's view stays exact at its zxid while writes go on; each slice is made
on the loop and written by the disk thread, in between the groups of the log, so that neither
stops. Purging comes last, once what it relies on was read back (ZOOKEEPER-3231).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Final, Protocol

from duolog_protocol.errors import DiskFullError
from duolog_runtime.clocks import Clock
from duolog_runtime.disk import DiskExecutor
from duolog_runtime.logs import Logger
from zkserver.storage.epoch_files import NO_SPACE
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.snapshot import SnapshotWriter, read_snapshot

from .stats import DiskStats

SLICE_BYTES: Final = 128 * 1024
VERIFY_BYTES: Final = 4 * 1024 * 1024


class SnapshotView(Protocol):
    """The core's state at one zxid."""

    @property
    def zxid(self) -> int:
        """Where it is exact."""

    def chunks(self, max_bytes: int) -> Iterator[bytes]:
        """Its pieces; may be advanced while writes go on."""

    def close(self) -> None:
        """It is needed no more."""


class Snapshotting:
    """Takes one snapshot after the other."""

    def __init__(
        self,
        data: DataDirectory,
        disk: DiskExecutor,
        rng: Random,
        log: Logger,
        clock: Clock,
        stats: DiskStats,
        *,
        begin: Callable[[], SnapshotView],
        halt: Callable[[str, BaseException], None],
        snap_count: int,
        retain_count: int,
        on_purged: Callable[[int], None] | None = None,
        may_purge: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_purge` is asked in the disk thread; if not, the next snapshot's purge does it.
        `on_purged` hears after which zxid the log begins, once something of it was deleted."""
        assert snap_count >= 2, snap_count
        self._data = data
        self._disk = disk
        self._rng = rng
        self._log = log
        self._clock = clock
        self._stats = stats
        self._begun_ms = 0
        self._begin = begin
        self._on_purged = on_purged
        self._may_purge = may_purge
        self._halt = halt
        self._snap_count = snap_count
        self._retain_count = retain_count
        self._since = 0
        self._threshold = self._draw()
        self._view: SnapshotView | None = None
        """The snapshot under way."""
        self._chunks: Iterator[bytes] = iter(())
        self._writer: SnapshotWriter | None = None
        self._read_back: Iterator[bytes] = iter(())
        """The snapshot that was written, as it is read back."""
        self._verified = False
        self._purged: list[str] | OSError = []
        self._closed = False

    @property
    def active(self) -> bool:
        """A snapshot is under way."""
        return self._view is not None

    def count(self, records: int) -> None:
        """So many records were logged."""
        self._since += records

    def maybe_begin(self) -> None:
        """Begin one where enough was logged since the last."""
        if self._since >= self._threshold:
            self.begin()

    def begin(self) -> int | None:
        """Begin one now; the zxid it stands at, None where one is under way or the server stops."""
        if self._view is not None or self._closed:
            return None
        self._since = 0
        self._begun_ms = self._clock.now_ms()
        self._threshold = self._draw()
        view = self._view = self._begin()
        self._chunks = view.chunks(SLICE_BYTES)
        self._log.info("snapshot_begun", zxid=f"{view.zxid:#x}")
        zxid = view.zxid

        def open_files() -> None:
            data = self._data
            data.log.roll()
            self._writer = SnapshotWriter(data.files, data.path, data.identity, zxid)

        self._submit(open_files, self._next_slice)
        return zxid

    def close(self) -> None:
        """The server stops: what is not finished is nothing. The disk is idle already."""
        self._closed = True
        self._give_up()

    def _draw(self) -> int:
        """ZooKeeper's random point in [n/2, n], so that servers do not snapshot together."""
        return self._rng.randint(self._snap_count // 2, self._snap_count)

    def _submit(self, work: Callable[[], object], then: Callable[[], None]) -> None:
        def done(_: object, error: BaseException | None) -> None:
            if self._closed:
                return
            if error is None:
                then()
            elif (
                self._is_overtaken(error)
                or isinstance(error, DiskFullError)
                or (isinstance(error, OSError) and error.errno in NO_SPACE)
            ):
                self._log.warning("snapshot_abandoned", reason=str(error))
                self._give_up()
            else:
                self._halt(f"the snapshot cannot be written: {error}", error)

        self._disk.submit(work, done)

    def _is_overtaken(self, error: BaseException) -> bool:
        """The file has gone because a leader's newer snapshot has taken the place of everything."""
        view = self._view
        is_gone = isinstance(error, FileNotFoundError) and view is not None
        return is_gone and self._data.snapshot_zxid > view.zxid  # type: ignore[union-attr]

    def _next_slice(self) -> None:
        writer = self._writer
        assert writer is not None
        chunk = next(self._chunks, None)
        if chunk is None:
            self._submit(writer.finish, self._verify)
        else:
            self._submit(lambda: writer.write(chunk), self._next_slice)

    def _verify(self) -> None:
        """Read back what was written, some of it at a time; then purge."""
        view = self._view
        assert view is not None
        self._writer = None
        view.close()
        data = self._data
        self._read_back = read_snapshot(data.files, data.path, data.identity, view.zxid)
        self._submit(self._read_some, self._verify_more)

    def _read_some(self) -> None:
        """In the disk thread."""
        view = self._view
        assert view is not None
        seen = 0
        for chunk in self._read_back:
            seen += len(chunk)
            if seen >= VERIFY_BYTES:
                return
        self._verified = True
        self._data.verified.add(view.zxid)

    def _verify_more(self) -> None:
        view = self._view
        assert view is not None
        if not self._verified:
            self._submit(self._read_some, self._verify_more)
            return
        self._verified = False
        self._read_back = iter(())
        stats = self._stats
        stats.snapshot_time.add(self._clock.now_ms() - self._begun_ms)
        stats.last_snapshot_zxid = view.zxid
        stats.last_snapshot_wall_ms = self._clock.wall_ms()
        self._log.info("snapshot_taken", zxid=f"{view.zxid:#x}")
        self._submit(self._purge, self._finished)

    def _purge(self) -> None:
        """In the disk thread. A failure is harmless: the next purge deletes what is left."""
        if not self._may_purge():
            return
        try:
            self._purged = self._data.purge(self._retain_count)
        except OSError as error:
            self._purged = error

    def _finished(self) -> None:
        self._view = None
        self._chunks = iter(())
        purged, self._purged = self._purged, []
        if isinstance(purged, OSError):
            self._log.warning("purge_failed", reason=str(purged))
        elif purged:
            self._log.info("files_purged", names=purged)
            if self._on_purged is not None:
                self._on_purged(self._data.log.first_zxid_before)

    def _give_up(self) -> None:
        view, self._view = self._view, None
        self._chunks = iter(())
        writer, self._writer = self._writer, None
        if view is not None:
            view.close()
        if writer is not None:
            try:
                writer.abort()
            except OSError as error:  # the next start removes it
                self._log.warning("snapshot_left", reason=str(error))
