"""From the files of a data directory to the state they hold, or to a refusal that says why.

Owns the order in which a directory is made and the order in which it is read: lock, identity,
epochs, newest valid snapshot, log. It never repairs anything but a torn tail and files that a
crash left half made. Source: ZooKeeper A.1, ZOOKEEPER-2325 (logs without a snapshot), -2354.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from random import Random
from typing import Final

from duolog_protocol.errors import (
    CorruptRecordError,
    DataDirectoryError,
    LogOfflineError,
    StorageError,
)
from duolog_protocol.types import epoch_of
from duolog_runtime.files import File, Files, make_directory

from .epoch_files import EpochFiles, read_identity, write_identity
from .file_header import HEADER_BYTES, Identity
from .snapshot import (
    SnapshotWriter,
    newest_valid,
    read_snapshot,
    received_files,
    received_name,
    snapshot_files,
    snapshot_name,
)
from .txnlog import LogOptions, TxnLog, log_files, log_name, replace_logs
from .verified_snapshots import VerifiedSnapshots

LOCK: Final = "lock"
FAILED_SYNC_FILE: Final = "sync-failed"
SNAPSHOTS_RETAINED_MIN: Final = 3


class DataDirectory:
    """An opened data directory; the lock is held until `close`.

    `snapshot_chunks`, then `records`, each run through once and in this order, are the state;
    then the log takes appends.
    """

    def __init__(
        self,
        files: Files,
        directory: str,
        server_id: int,
        rng: Random,
        *,
        ensemble_id: int = 0,
        log_options: LogOptions | None = None,
    ) -> None:
        """Open the directory, making it where it is new.

        `ensemble_id` 0 takes the one that is there, or draws one.

        Raises DirectoryLockedError, DataDirectoryError, CorruptRecordError, OSError.
        """
        self.files = files
        self.path = directory.rstrip("/") or "/"
        make_directory(files, self.path)
        self._lock: File | None = files.lock(f"{self.path}/{LOCK}")
        try:
            self._refuse_after_failed_sync()
            self.identity = self._own(server_id, ensemble_id, rng)
            self._remove_temporary()
            # A killed process may have renamed what a power loss would still take back: what is
            # read from here on is relied on.
            files.sync_dir(self.path)
            for zxid in received_files(files, self.path):
                for _ in self.received_chunks(zxid):
                    pass  # whatever it is to replace is still here: read it first
                replace_logs(files, self.path, self.identity, rng, zxid)
                self._adopt_received(zxid)
            self.epochs = EpochFiles(files, self.path, self.identity)
            found = newest_valid(files, self.path, self.identity)
            self.snapshot_zxid = found.zxid
            """Where the state starts; 0 without a snapshot."""
            self.damaged_snapshots: tuple[StorageError, ...] = found.damaged
            """Why newer snapshots are not used. The log still reaches back, or we refuse."""
            self.verified: Final = VerifiedSnapshots(found.zxid)
            self.log = TxnLog(files, self.path, self.identity, rng, log_options)
            self._check_reach()
        except OSError as error:
            self._mark_if_failed(error)
            self.close()
            raise
        except BaseException:
            self.close()
            raise

    def snapshot_chunks(self) -> Iterator[bytes]:
        """The chunks of the snapshot at `snapshot_zxid`; none at 0."""
        if self.snapshot_zxid == 0:
            return iter(())
        return read_snapshot(self.files, self.path, self.identity, self.snapshot_zxid)

    def records(self, *, may_be_half: bool = False) -> Iterator[bytes]:
        """The records after the snapshot, durable once the iteration has ended.

        `may_be_half`: it is a learner's, which was perhaps cut off with half of its leader's
        history. That is of epochs it has promised, and not adopted yet.

        Raises CorruptRecordError, DataDirectoryError.
        """
        try:
            yield from self.log.recover(self.snapshot_zxid)
        except OSError as error:
            self._mark_if_failed(error)
            raise
        last = self.log.last_zxid
        epochs = self.epochs
        name, bound = "current_epoch", epochs.current_epoch
        if may_be_half:
            name, bound = "accepted_epoch", epochs.accepted_epoch
        if epoch_of(last) > bound:
            raise DataDirectoryError(
                f"{self.path}: the log holds zxid {last:#x} of epoch {epoch_of(last)}, but "
                f"{name} is {bound}: the files are not of one moment"
            )

    def records_before_snapshot(self) -> Iterator[bytes]:
        """The records up to the snapshot, as far back as the log goes; once `records` has ended.

        No state rests on them any more. Raises CorruptRecordError, DataDirectoryError, OSError.
        """
        for record in self.log.read_from(self.log.first_zxid_before):
            if int.from_bytes(record[:8], "big") > self.snapshot_zxid:
                return
            yield record

    def purge(self, retain_count: int) -> list[str]:
        """Delete all snapshots but the newest `retain_count`, and the logs that none of them needs.

        Only for snapshots that were verified (ZOOKEEPER-3231). Returns the names deleted. Raises
        OSError: harmless, what is left is deleted next time.
        """
        assert retain_count >= 1, retain_count
        kept = snapshot_files(self.files, self.path)
        removed = []
        # Snapshots go first: a snapshot without its log would look like damage.
        while len(kept) > retain_count:
            name = snapshot_name(kept.pop(0))
            self.files.unlink(f"{self.path}/{name}")
            removed.append(name)
        if removed:
            self.files.sync_dir(self.path)
        if len(kept) == retain_count:
            removed += self.log.purge(kept[0])
        return removed

    def newest_snapshot(self) -> tuple[int, Iterator[bytes]]:
        """The newest snapshot that can be read, as it is now: its zxid and chunks; 0 and none.

        All of it is read to know that.

        Raises DataDirectoryError, OSError; the chunks as `read_snapshot`.
        """
        found = newest_valid(self.files, self.path, self.identity)
        if found.zxid == 0:
            return 0, iter(())
        return found.zxid, read_snapshot(self.files, self.path, self.identity, found.zxid)

    def snapshot_to_send(self) -> tuple[int, Iterator[bytes]]:
        """The newest snapshot that was read before, and was right: its zxid and chunks; 0 and none.

        The log goes on from it. Raises OSError; the chunks as `read_snapshot`.
        """
        zxid = self.verified.newest_of(snapshot_files(self.files, self.path))
        if zxid == 0 or zxid < self.log.first_zxid_before:
            return 0, iter(())
        return zxid, read_snapshot(self.files, self.path, self.identity, zxid)

    def receive_snapshot(self, zxid: int) -> SnapshotWriter:
        """Begin to take a leader's snapshot; finished, it waits for `install`. Raises OSError."""
        return SnapshotWriter(self.files, self.path, self.identity, zxid, received_name(zxid))

    def received_chunks(self, zxid: int, *, is_sealed_only: bool = False) -> Iterator[bytes]:
        """The chunks of a snapshot that was received, and is not installed. As `read_snapshot`.

        `is_sealed_only`: it was not published yet.
        """
        name = received_name(zxid) + (".tmp" if is_sealed_only else "")
        return read_snapshot(self.files, self.path, self.identity, zxid, name)

    def begin_install(self, writer: SnapshotWriter, zxid: int) -> None:
        """A snapshot that was received, and sealed, is to take the place of everything here.

        It goes beyond the end of the log. From the moment at which its name says that it was
        received, every start installs it, so that a crash on the way does no harm. Raises
        LogOfflineError: only the next start knows how far it has come.
        """
        assert zxid > self.log.last_zxid, (f"{zxid:#x}", f"{self.log.last_zxid:#x}")
        try:
            writer.publish()
        except OSError as error:
            raise LogOfflineError(f"cannot install {received_name(zxid)}: {error}") from error

    def finish_install(self, zxid: int) -> None:
        """Durable when it returns. Raises DiskFullError: to be called again until there is space;
        LogOfflineError."""
        try:
            self.log.restart_at(zxid)
            self._adopt_received(zxid)
        except OSError as error:
            raise LogOfflineError(f"cannot install {received_name(zxid)}: {error}") from error
        self.snapshot_zxid = zxid
        self.verified.add(zxid)

    def _adopt_received(self, zxid: int) -> None:
        for each in snapshot_files(self.files, self.path):
            self.files.unlink(f"{self.path}/{snapshot_name(each)}")
        self.files.rename(
            f"{self.path}/{received_name(zxid)}", f"{self.path}/{snapshot_name(zxid)}"
        )
        self.files.sync_dir(self.path)

    def truncate_to(self, zxid: int) -> None:
        """Forget every record after `zxid`, and every snapshot that has one of them, durably.

        Snapshots go first: after a crash in between, the log still holds all that it did. Raises
        as `TxnLog.truncate_to`, OSError; DataDirectoryError, with nothing changed, where neither
        snapshot nor log would be left to say what the state is.
        """
        snapshots = snapshot_files(self.files, self.path)
        newer = [each for each in snapshots if each > zxid]
        older = snapshots[: len(snapshots) - len(newer)]
        if max(older, default=0) < self.log.first_zxid_before:
            raise DataDirectoryError(
                f"{self.path}: cannot be truncated to zxid {zxid:#x}, the log begins after "
                f"{self.log.first_zxid_before:#x}"
            )
        for each in newer:
            self.files.unlink(f"{self.path}/{snapshot_name(each)}")
        if newer:
            self.files.sync_dir(self.path)
        self.verified.truncate_to(zxid)
        self.log.truncate_to(zxid)

    def sizes(self) -> tuple[int, int]:
        """Bytes of all snapshots and of all log files, as far as they can be read. Blocks."""
        snapshots = [snapshot_name(zxid) for zxid in snapshot_files(self.files, self.path)]
        logs = [log_name(base) for base in log_files(self.files, self.path)]
        return self._size_of(snapshots), self._size_of(logs)

    def _size_of(self, names: list[str]) -> int:
        size = 0
        for name in names:
            with contextlib.suppress(OSError):  # it was purged, or cannot be told: it counts for 0
                file = self.files.open(f"{self.path}/{name}")
                try:
                    size += file.size()
                finally:
                    file.close()
        return size

    def mark_failed_sync(self) -> None:
        """Leave word for the next start on this machine, whose page cache lies from now on.

        A retried sync would succeed falsely (fsyncgate). The mark need not be durable: after a
        reboot the cache tells the truth again. Raises OSError.
        """
        self.files.open(f"{self.path}/{FAILED_SYNC_FILE}", create=True).close()

    def _mark_if_failed(self, error: OSError) -> None:
        if error.errno == errno.EIO:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                self.mark_failed_sync()

    def _refuse_after_failed_sync(self) -> None:
        if self.files.exists(f"{self.path}/{FAILED_SYNC_FILE}"):
            raise DataDirectoryError(
                f"a sync in {self.path} has failed: what can be read there may not be on the disk. "
                f"Check the disk, reboot, then remove {FAILED_SYNC_FILE} to start again"
            )

    def close(self) -> None:
        """Close the log and give the lock back. Idempotent."""
        log: TxnLog | None = getattr(self, "log", None)
        if log is not None:
            was_healthy = not log.offline
            log.close()
            if was_healthy and log.offline:
                with contextlib.suppress(OSError):
                    self.mark_failed_sync()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def _own(self, server_id: int, ensemble_id: int, rng: Random) -> Identity:
        found = read_identity(self.files, self.path)
        if found is None:
            identity = Identity(ensemble_id or rng.getrandbits(63) + 1, server_id)
            self._initialize(identity, rng)
            return identity
        if found.server_id != server_id or ensemble_id not in (0, found.ensemble_id):
            wanted = Identity(ensemble_id or found.ensemble_id, server_id)
            raise DataDirectoryError(f"{self.path} belongs to {found}, this is {wanted}")
        return found

    def _initialize(self, identity: Identity, rng: Random) -> None:
        """Make a fresh directory. A crash on the way leaves one that is made again."""
        if snapshot_files(self.files, self.path):
            raise DataDirectoryError(
                f"{self.path} holds snapshots, but the file identity is missing"
            )
        for base in log_files(self.files, self.path):
            path = f"{self.path}/{log_name(base)}"
            file = self.files.open(path)
            size = file.size()
            file.close()
            if size > HEADER_BYTES:
                raise DataDirectoryError(
                    f"{self.path} holds transaction logs, but the file identity is missing"
                )
            self.files.unlink(path)
        TxnLog.create(self.files, self.path, identity, rng, 0)
        EpochFiles.create(self.files, self.path, identity)
        write_identity(self.files, self.path, identity)

    def _remove_temporary(self) -> None:
        """What a crash left half made was never announced."""
        for name in self.files.list(self.path):
            if name.endswith(".tmp"):
                self.files.unlink(f"{self.path}/{name}")

    def _check_reach(self) -> None:
        """The log must go on where the snapshot ends."""
        if self.log.first_zxid_before <= self.snapshot_zxid:
            return
        if self.damaged_snapshots:
            raise self.damaged_snapshots[0]
        raise CorruptRecordError(
            f"{self.path}/{log_name(self.log.first_zxid_before)}",
            0,
            f"the log begins after zxid {self.log.first_zxid_before:#x} and no snapshot covers "
            f"what is before (the newest is at {self.snapshot_zxid:#x})",
        )
