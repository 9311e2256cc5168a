"""Makes a data directory that starts from a given state: for what was kept elsewhere before.

    lock, snapshot.<zxid>, log.<zxid>, accepted_epoch, current_epoch, identity

Owns that order. As with any fresh directory `identity` comes last, so a crash on the way leaves a
directory that no server starts on. The next start opens the epoch after `epoch`, so that zxids go
on upward for clients that have seen the old ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from duolog_protocol.errors import DataDirectoryError
from duolog_protocol.types import ZXID_EPOCH_LAST, epoch_of
from duolog_runtime.files import Files, make_directory

from .epoch_files import EpochFiles, write_identity
from .file_header import Identity
from .recovery import LOCK
from .snapshot import SnapshotWriter
from .txnlog import TxnLog


def seed_directory(
    files: Files,
    directory: str,
    identity: Identity,
    rng: Random,
    *,
    zxid: int,
    epoch: int,
    chunks: Iterable[bytes],
) -> None:
    """Make `directory` hold the state that `chunks` are the snapshot of, exact at `zxid`.

    Durable when it returns. Raises DataDirectoryError for a directory that is not empty, or for
    an epoch after which no other can be opened; DirectoryLockedError; OSError.
    """
    assert zxid > 0, zxid
    epoch = max(epoch, epoch_of(zxid))
    if epoch >= ZXID_EPOCH_LAST:
        raise DataDirectoryError(f"no epoch can be opened after {epoch}: it is the last one")
    directory = directory.rstrip("/") or "/"
    make_directory(files, directory)
    lock = files.lock(f"{directory}/{LOCK}")
    try:
        others = [name for name in files.list(directory) if name != LOCK]
        if others:
            raise DataDirectoryError(f"{directory} is not empty: it holds {others[0]}")
        writer = SnapshotWriter(files, directory, identity, zxid)
        try:
            for chunk in chunks:
                writer.write(chunk)
            writer.finish()
        except BaseException:
            writer.abort()
            raise
        TxnLog.create(files, directory, identity, rng, zxid)
        EpochFiles.create(files, directory, identity)
        epochs = EpochFiles(files, directory, identity)
        if epoch > epochs.current_epoch:
            epochs.advance(epoch)
        write_identity(files, directory, identity)
    finally:
        lock.close()
