"""`zkserver snapshot take DIR`: a snapshot of a directory whose server is stopped.

Recovers as a start does (a torn tail is cut), writes the state, reads it back, then purges. For a
quick next start, for a copy to keep, or after a log was found too long.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final, NamedTuple

from duolog_protocol.errors import DataDirectoryError
from duolog_runtime.files import Files
from zkserver.core.snapshot import Snapshot
from zkserver.core.snapshot_loading import load_snapshot
from zkserver.core.state import ReplicatedState
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.snapshot import SnapshotWriter

from .read_only import decode, load_named, replay, require_identity

CHUNK_BYTES: Final = 1024 * 1024


class Taken(NamedTuple):
    """What became of it."""

    zxid: int
    is_new: bool
    """False: there was one at this zxid already."""
    purged: tuple[str, ...]


def take_snapshot(
    files: Files, directory: str, rng: Random, *, retain_count: int, note: Callable[[str], None]
) -> Taken:
    """Take one and purge what is older than the `retain_count` newest.

    Raises DirectoryLockedError (a server runs), DataDirectoryError, StorageError, OSError.
    """
    identity = require_identity(files, directory)
    data = DataDirectory(files, directory, identity.server_id, rng)
    try:
        for error in data.damaged_snapshots:
            note(str(error))
        state = ReplicatedState()
        if data.snapshot_zxid:
            state = load_snapshot(data.snapshot_chunks())
        for record in data.records():
            replay(state, decode(record))
        zxid = state.last_applied_zxid
        is_new = zxid not in (0, data.snapshot_zxid)
        if is_new:
            data.log.roll()
            _write(data, state)
            del state  # the copy that is read back takes as much memory
            load_named(files, data.path, identity, zxid)
        return Taken(zxid, is_new, tuple(data.purge(retain_count)))
    finally:
        data.close()


def _write(data: DataDirectory, state: ReplicatedState) -> None:
    if state.members_are_joint:
        raise DataDirectoryError(
            "a change of the ensemble's members is not finished: start the servers"
        )
    view = Snapshot(state)
    writer = SnapshotWriter(data.files, data.path, data.identity, view.zxid)
    try:
        for chunk in view.chunks(CHUNK_BYTES):
            writer.write(chunk)
        writer.finish()
    except BaseException:
        writer.abort()
        raise
    finally:
        view.close()
