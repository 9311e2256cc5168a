"""Data directories seen by tools that must not change them.

Owns the read-only files, and the question whether a server uses the directory: a shared lock is
taken beside the server's exclusive one, so that a server cannot start meanwhile, and a running one
refuses the tool. With `live` no lock is taken.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from duolog_protocol.errors import CorruptRecordError, DataDirectoryError, DecodeError, StorageError
from duolog_protocol.txns import Txn, decode_txn, zxid_of
from duolog_runtime.files import DirectoryLockedError, Files, RealFile, RealFiles
from zkserver.core.snapshot_loading import load_snapshot
from zkserver.core.state import ReplicatedState
from zkserver.storage.epoch_files import IDENTITY, read_identity
from zkserver.storage.file_header import Identity
from zkserver.storage.inspection import read_records
from zkserver.storage.recovery import LOCK
from zkserver.storage.snapshot import newest_valid, read_snapshot, snapshot_name


class ReadOnlyFiles(RealFiles):
    """The operating system's files, of which none is ever changed."""

    def open(self, path: str, *, create: bool = False, exclusive: bool = False) -> RealFile:
        if create or exclusive:
            raise _refused(path)
        return RealFile(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def mkdir(self, path: str) -> None:
        raise _refused(path)

    def rmdir(self, path: str) -> None:
        raise _refused(path)

    def rename(self, source: str, target: str) -> None:
        raise _refused(target)

    def unlink(self, path: str) -> None:
        raise _refused(path)

    def lock(self, path: str) -> RealFile:
        """A shared lock on an existing file. Raises DirectoryLockedError."""
        file = self.open(path)
        try:
            fcntl.flock(file.fileno() or 0, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise DirectoryLockedError(path) from error
        except BaseException:
            file.close()
            raise
        return file


def _refused(path: str) -> OSError:
    return OSError(errno.EROFS, os.strerror(errno.EROFS), path)


@contextmanager
def reading(files: Files, directory: str, *, live: bool) -> Iterator[None]:
    """Keep servers away while the directory is read, unless `live`.

    Raises DataDirectoryError: not a directory; a server uses it.
    """
    if not files.exists(directory):
        raise DataDirectoryError(f"{directory} does not exist")
    path = f"{directory}/{LOCK}"
    if live or not files.exists(path):
        yield
        return
    try:
        lock = files.lock(path)
    except DirectoryLockedError as error:
        raise DataDirectoryError(
            f"{directory} is in use by a server. Stop it, or read beside it with --live"
        ) from error
    try:
        yield
    finally:
        lock.close()


def require_identity(files: Files, directory: str) -> Identity:
    """Whose directory it is. Raises DataDirectoryError, CorruptRecordError."""
    found = read_identity(files, directory)
    if found is None:
        raise DataDirectoryError(f"{directory} is no data directory of zkserver: no {IDENTITY}")
    return found


def read_state(
    files: Files,
    directory: str,
    *,
    live: bool = False,
    on_problem: Callable[[StorageError], None] = lambda _: None,
) -> ReplicatedState:
    """The state that a server would start with, nothing changed on the way.

    `on_problem` hears of damage that a start survives: a newer snapshot that is not used. Raises
    CorruptRecordError, StorageError, DataDirectoryError, OSError.
    """
    identity = require_identity(files, directory)
    found = newest_valid(files, directory, identity)
    for error in found.damaged:
        on_problem(error)
    state = ReplicatedState()
    if found.zxid:
        state = load_named(files, directory, identity, found.zxid)
    for record in read_records(files, directory, identity, found.zxid, live=live):
        replay(state, decode(record))
    return state


def load_named(files: Files, directory: str, identity: Identity, zxid: int) -> ReplicatedState:
    """The state of the snapshot at `zxid`. Raises CorruptRecordError, also for its content."""
    path = f"{directory}/{snapshot_name(zxid)}"
    try:
        state = load_snapshot(read_snapshot(files, directory, identity, zxid))
    except (CorruptRecordError, DataDirectoryError):
        raise
    except StorageError as error:
        raise CorruptRecordError(path, 0, str(error)) from error
    if state.last_applied_zxid != zxid:
        raise CorruptRecordError(path, 0, f"it holds the state at {state.last_applied_zxid:#x}")
    return state


def decode(record: bytes) -> Txn:
    """As `decode_txn`. Raises StorageError."""
    try:
        return decode_txn(record)
    except DecodeError as error:
        zxid = zxid_of(record)
        raise StorageError(f"log record {zxid:#x} cannot be decoded: {error}") from error


def replay(state: ReplicatedState, txn: Txn) -> None:
    """Apply a Txn where nobody watches. Raises StorageError."""
    state.replay(txn)
    state.changes.clear()
