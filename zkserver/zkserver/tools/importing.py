"""Imports: a directory of Apache ZooKeeper, or a dump in JSON lines, to a fresh directory.

    zkserver import --from ZK_DIR [--from-logs ZK_LOG_DIR] --data DIR
    zkserver import --from-json FILE --data DIR

Owns the order: the source is read completely and found consistent before anything is made; what
was made is read back before success is told. The source is never changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from duolog_protocol.errors import CorruptRecordError, StorageError
from duolog_protocol.txns import CloseReason, TxnKind
from duolog_runtime.files import Files
from zkserver.core.datatree import CONFIG_PATH
from zkserver.core.snapshot import Snapshot
from zkserver.core.snapshot_loading import load_snapshot
from zkserver.core.state import ReplicatedState
from zkserver.storage.file_header import Identity
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.seeding import seed_directory
from zkserver.storage.zookeeper_files import (
    ACCEPTED_EPOCH,
    CURRENT_EPOCH,
    SnapshotFile,
    data_folder,
    logs_after,
    open_snapshot,
    read_epoch,
    read_log,
    require_snapshots,
)

from .read_only import decode
from .read_only import replay as replay_txn
from .zookeeper_replay import Replay

if TYPE_CHECKING:
    from zkserver.storage.zookeeper_format import ForeignTxn

CHUNK_BYTES: Final = 1024 * 1024
MAX_SNAPSHOTS: Final = 100
"""So many of the newest are tried, as by ZooKeeper."""
_MAX_NAMED: Final = 10


class Imported(NamedTuple):
    """A state, and what its directory needs beside it."""

    state: ReplicatedState
    epoch: int
    """The last epoch that the source has promised."""
    source: str
    """Where it comes from, in words."""


def read_zookeeper(
    files: Files,
    directory: str,
    log_directory: str | None,
    *,
    note: Callable[[str], None],
    check_digest: bool = True,
) -> Imported:
    """The state that a ZooKeeper server would start with.

    `note` hears what a person should know: snapshots that could not be used, a torn tail,
    ephemerals without a session. Raises StorageError (CorruptRecordError with file and position),
    DataDirectoryError where there is nothing to read, OSError.
    """
    folder = data_folder(files, directory)
    log_folder = data_folder(files, log_directory) if log_directory else folder
    replay, snapshot, digest = _newest_usable(files, folder, note)
    count = 0

    def torn(path: str, position: int) -> None:
        note(f"{path} ends in a half-written record at byte {position}; it was never acknowledged")

    for log in logs_after(files, log_folder, snapshot.zxid):
        for txn in read_log(files, log_folder, log, torn):
            if txn.zxid > snapshot.zxid:
                _apply(replay, txn, f"{log_folder}/{log.name}")
                count += 1
                digest = None if txn.digest is None else (txn.zxid, txn.digest)
    if check_digest and digest is not None and digest[0] == replay.last_zxid:
        _require_digest(replay, digest[1], folder)
    try:
        state = replay.finish()
    except StorageError as error:
        raise StorageError(f"{folder}: {error}") from error
    if replay.dropped:
        some = ", ".join(replay.dropped[:_MAX_NAMED])
        more = ", ..." if len(replay.dropped) > _MAX_NAMED else ""
        count_dropped = len(replay.dropped)
        note(f"{count_dropped} ephemerals of sessions that are gone are left out: {some}{more}")
    epochs = [read_epoch(files, folder, name) for name in (ACCEPTED_EPOCH, CURRENT_EPOCH)]
    source = f"{folder}/{snapshot.name} and {count} transactions after it"
    return Imported(state, max(epochs), source)


def _newest_usable(
    files: Files, folder: str, note: Callable[[str], None]
) -> tuple[Replay, SnapshotFile, tuple[int, int] | None]:
    first_error: StorageError | None = None
    for snapshot in require_snapshots(files, folder)[:MAX_SNAPSHOTS]:
        try:
            decoder = open_snapshot(files, folder, snapshot)
            replay = Replay(snapshot.zxid, decoder.sessions)
            for position, node in decoder.nodes():
                try:
                    replay.load(node)
                except StorageError as error:
                    path = f"{folder}/{snapshot.name}"
                    raise CorruptRecordError(path, position, str(error)) from error
        except CorruptRecordError as error:
            note(f"not used: {error}")
            first_error = first_error or error
        else:
            return replay, snapshot, decoder.digest
    assert first_error is not None
    raise first_error


def _require_digest(replay: Replay, noted: int, folder: str) -> None:
    """The tree must be the one that ZooKeeper had."""
    found = replay.digest()
    noted &= (1 << 64) - 1
    if found != noted:
        raise StorageError(
            f"{folder}: at zxid {replay.last_zxid:#x} the tree has the digest {found:#x}, but "
            f"ZooKeeper noted {noted:#x}: what it served was not what its files say. "
            "--ignore-digest imports what the files say"
        )


def _apply(replay: Replay, txn: ForeignTxn, path: str) -> None:
    try:
        replay.apply(txn)
    except StorageError as error:
        raise CorruptRecordError(path, txn.position, str(error)) from error


def drop_sessions(state: ReplicatedState) -> int:
    """Close every session, as one Txn each; return how many there were."""
    wall_ms = time.time_ns() // 1_000_000
    count = len(state.sessions)
    for session in list(state.sessions.values()):
        body = (TxnKind.CLOSE_SESSION, CloseReason.EXPIRED, tuple(session.ephemerals))
        state.apply(state.last_applied_zxid + 1, session.session_id, wall_ms, body)
        state.changes.clear()
    return count


def forget_members(state: ReplicatedState) -> None:
    """Who belonged to the ensemble of the source is not told any more: it is another one's state
    now, or that of a server alone."""
    node = state.tree.nodes[CONFIG_PATH]
    if node.data:
        state.tree.set_data(CONFIG_PATH, b"", node.version, node.mzxid, node.mtime)


def write_directory(
    files: Files, directory: str, imported: Imported, identity: Identity, rng: Random
) -> None:
    """Make the data directory. Raises DataDirectoryError, OSError."""
    state = imported.state
    state.last_applied_zxid = max(state.last_applied_zxid, 1)  # 0 is a directory without snapshot
    view = Snapshot(state)
    try:
        seed_directory(
            files,
            directory,
            identity,
            rng,
            zxid=state.last_applied_zxid,
            epoch=imported.epoch,
            chunks=view.chunks(CHUNK_BYTES),
        )
    finally:
        view.close()


def verify_directory(files: Files, directory: str, identity: Identity, rng: Random) -> None:
    """Read back what was written, as a server will. Raises StorageError, OSError."""
    data = DataDirectory(files, directory, identity.server_id, rng)
    try:
        state = load_snapshot(data.snapshot_chunks())
        for record in data.records():
            replay_txn(state, decode(record))
    finally:
        data.close()
