"""`zkserver check DIR`: is a data directory whole, and if not, what is to be done?

Owns the order of the checks and the words. Nothing is changed. Beyond what a start looks at, every
snapshot is loaded, every log file read to its end, and the log replayed from as far back as it
goes: at the zxid of each snapshot the replayed state must be, byte for byte, the snapshot's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from duolog_protocol.errors import CorruptRecordError, DataDirectoryError, StorageError
from duolog_protocol.types import epoch_of
from duolog_runtime.files import Files
from zkserver.core.snapshot import Snapshot
from zkserver.core.state import ReplicatedState
from zkserver.storage.epoch_files import (
    ACCEPTED_EPOCH,
    CURRENT_EPOCH,
    EPOCH_MAGIC,
    IDENTITY,
    read_identity,
)
from zkserver.storage.file_header import Identity, read_header
from zkserver.storage.groups import Group
from zkserver.storage.inspection import LogScan
from zkserver.storage.recovery import FAILED_SYNC_FILE, LOCK
from zkserver.storage.snapshot import SNAPSHOT_MAGIC, snapshot_files, snapshot_name
from zkserver.storage.txnlog import log_files, log_name

from .read_only import decode, load_named, replay

CHUNK_BYTES: Final = 1024 * 1024
RESTORE: Final = "keep a copy of the directory as it is, and restore it from a backup"
_NUMBERED: Final = re.compile(r"(log|snapshot)\.[0-9a-f]{16}")
_SINGLE: Final = {LOCK, IDENTITY, ACCEPTED_EPOCH, CURRENT_EPOCH, FAILED_SYNC_FILE}


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    """The file, or what else was looked at."""
    is_ok: bool
    text: str
    advice: str = ""
    """What to do about it."""

    def __str__(self) -> str:
        line = f"{self.name:<26} {'ok' if self.is_ok else 'DAMAGED':<8} {self.text}"
        return f"{line}\n{'':<35} -> {self.advice}" if self.advice else line


def check_directory(
    files: Files, directory: str, report: Callable[[Finding], None], *, live: bool = False
) -> bool:
    """Look at everything in a directory; True when a server can start on it and lose nothing.

    `live`: a server writes meanwhile, so a log may end anywhere. Raises DataDirectoryError where
    there is no data directory at all, OSError.
    """
    return _Check(files, directory.rstrip("/") or "/", report, live).run()


class _Check:
    """One run."""

    def __init__(
        self, files: Files, directory: str, report: Callable[[Finding], None], live: bool
    ) -> None:
        self._files = files
        self._directory = directory
        self._report = report
        self._live = live
        self._is_ok = True
        self._identity: Identity | None = None
        self._digests: dict[int, bytes] = {}
        """Zxid of every good snapshot -> digest of its state."""
        self._state: ReplicatedState | None = None
        """The replayed state; None before it starts, and where it could not go on."""
        self._last_zxid = 0

    def run(self) -> bool:
        names = self._files.list(self._directory)
        if not any(name in _SINGLE - {LOCK} or _NUMBERED.fullmatch(name) for name in names):
            raise DataDirectoryError(f"{self._directory} is no data directory of zkserver")
        self._check_failed_sync(names)
        self._check_identity()
        accepted = self._check_epoch(ACCEPTED_EPOCH)
        current = self._check_epoch(CURRENT_EPOCH)
        for zxid in snapshot_files(self._files, self._directory):
            self._check_snapshot(zxid)
        self._check_logs()
        self._check_state()
        self._check_order(accepted, current)
        for name in names:
            if name not in _SINGLE and not _NUMBERED.fullmatch(name):
                self._note_other(name)
        return self._is_ok

    def _ok(self, name: str, text: str, advice: str = "") -> None:
        self._report(Finding(name, True, text, advice))

    def _damaged(self, name: str, text: str, advice: str) -> None:
        self._is_ok = False
        self._report(Finding(name, False, text, advice))

    def _check_failed_sync(self, names: list[str]) -> None:
        if FAILED_SYNC_FILE in names:
            self._damaged(
                FAILED_SYNC_FILE,
                "a sync has failed: what can be read here may not be on the disk",
                f"check the disk, reboot, run this again, then remove {FAILED_SYNC_FILE}",
            )

    def _check_identity(self) -> None:
        try:
            self._identity = read_identity(self._files, self._directory)
        except StorageError as error:
            self._damaged(IDENTITY, _why(error), RESTORE)
            return
        if self._identity is None:
            self._damaged(IDENTITY, "the file is missing", RESTORE)
        else:
            self._ok(IDENTITY, str(self._identity))

    def _check_epoch(self, name: str) -> int | None:
        path = f"{self._directory}/{name}"
        if not self._files.exists(path):
            self._damaged(name, "the file is missing", RESTORE)
            return None
        file = self._files.open(path)
        try:
            epoch = read_header(file, EPOCH_MAGIC, self._identity)[1]
        except StorageError as error:
            self._damaged(name, _why(error), RESTORE)
            return None
        finally:
            file.close()
        self._ok(name, f"epoch {epoch}")
        return epoch

    def _check_snapshot(self, zxid: int) -> None:
        name = snapshot_name(zxid)
        try:
            file = self._files.open(f"{self._directory}/{name}")
            size = file.size()
            file.close()
            identity = self._identity or _any_identity(self._files, self._directory, name)
            state = load_named(self._files, self._directory, identity, zxid)
        except FileNotFoundError:
            self._note_gone(name)
            return
        except StorageError as error:
            self._damaged(
                name,
                _why(error),
                "an older snapshot and the log serve instead, if they are good; keep a copy of "
                "this file elsewhere, then remove it",
            )
            return
        self._digests[zxid] = _digest(state)
        self._ok(
            name,
            f"zxid {zxid:#x}: {len(state.tree.nodes)} nodes, {len(state.sessions)} sessions, "
            f"{size} bytes",
        )

    def _check_logs(self) -> None:
        bases = log_files(self._files, self._directory)
        if not bases:
            self._damaged("log.*", "all log files are missing", RESTORE)
            return
        self._begin_replay(bases[0])
        for index, base in enumerate(bases):
            following = bases[index + 1] if index + 1 < len(bases) else None
            self._check_log(base, following)

    def _begin_replay(self, first: int) -> None:
        """From the earliest state that the log continues."""
        if first == 0:
            self._state = ReplicatedState()
            return
        reachable = [zxid for zxid in sorted(self._digests) if zxid >= first]
        if not reachable:
            newest = max(self._digests, default=0)
            self._damaged(
                log_name(first),
                f"the log begins after zxid {first:#x}, and no good snapshot covers what is before "
                f"(the newest is at {newest:#x})",
                RESTORE,
            )
            return
        identity = self._identity or _any_identity(
            self._files, self._directory, snapshot_name(reachable[0])
        )
        self._state = load_named(self._files, self._directory, identity, reachable[0])

    def _check_log(self, base: int, following: int | None) -> None:
        name = log_name(base)
        path = f"{self._directory}/{name}"
        count = 0
        scan: LogScan | None = None
        try:
            scan = LogScan(
                self._files,
                path,
                self._identity,
                base=base,
                live=self._live and following is None,
            )
            for group in scan.groups():
                count += self._replay(group, path)
            if following is not None and scan.last_zxid != following:
                raise CorruptRecordError(
                    path,
                    scan.end,
                    f"the records from here to zxid {following:#x}, where the next file goes on, "
                    "are damaged or missing",
                )
        except FileNotFoundError:
            self._note_gone(name)
            self._state = None
            return
        except StorageError as error:
            self._damaged(
                name,
                _why(error),
                f"{RESTORE}; `zkserver log dump {path}` shows what can be read before",
            )
            self._state = None
            return
        self._last_zxid = scan.last_zxid
        text = f"after zxid {base:#x} up to {scan.last_zxid:#x}: {count} transactions in "
        text += f"{scan.group_count} groups, {scan.end} bytes"
        if scan.is_torn and following is None:
            self._ok(
                name,
                text,
                f"a half-written group follows at byte {scan.end}; it was never acknowledged, and "
                "the next start cuts it off",
            )
        else:
            self._ok(name, text)

    def _replay(self, group: Group, path: str) -> int:
        """Apply a group to the state where there is one; the number of its records."""
        records = group.records(path)
        for record in records:
            try:
                txn = decode(record)
                state = self._state
                if state is None or txn.zxid <= state.last_applied_zxid:
                    continue
                replay(state, txn)
                self._compare(state)
            except CorruptRecordError:
                raise
            except StorageError as error:
                raise CorruptRecordError(path, group.position, str(error)) from error
        return len(records)

    def _compare(self, state: ReplicatedState) -> None:
        zxid = state.last_applied_zxid
        expected = self._digests.get(zxid)
        if expected is not None and _digest(state) != expected:
            self._damaged(
                snapshot_name(zxid),
                "replaying the log from an older state gives another tree than this snapshot",
                "report this as a bug, with a copy of the directory; the snapshot is what a start "
                "would use",
            )

    def _check_state(self) -> None:
        state = self._state
        if state is None:
            return
        newest = max(self._digests, default=0)
        last = state.last_applied_zxid
        if self._last_zxid < newest and not self._live:
            self._damaged(
                "state",
                f"the log ends at zxid {self._last_zxid:#x}, but it was durable up to {newest:#x}",
                RESTORE,
            )
            return
        try:
            state.check_invariants()
        except AssertionError as error:
            self._damaged("state", f"it contradicts itself: {error}", RESTORE)
            return
        self._ok(
            "state",
            f"at zxid {last:#x}: {len(state.tree.nodes)} nodes, "
            f"{state.ephemeral_count} of them ephemeral, {len(state.sessions)} sessions",
        )

    def _check_order(self, accepted: int | None, current: int | None) -> None:
        if accepted is not None and current is not None and accepted < current:
            self._damaged(
                ACCEPTED_EPOCH, f"it is below {CURRENT_EPOCH}, {accepted} < {current}", RESTORE
            )
        if current is not None and epoch_of(self._last_zxid) > current and not self._live:
            self._damaged(
                CURRENT_EPOCH,
                f"the log holds zxid {self._last_zxid:#x} of a later epoch than {current}",
                RESTORE,
            )

    def _note_other(self, name: str) -> None:
        if name.endswith(".tmp"):
            self._ok(name, "half made by a process that ended; the next start removes it")
        else:
            self._ok(name, "not a file of zkserver; ignored")

    def _note_gone(self, name: str) -> None:
        if self._live:
            self._ok(name, "removed by the server meanwhile")
        else:
            self._damaged(name, "it disappeared while it was looked at", "run this again")


def _why(error: StorageError) -> str:
    """The problem, with the position but without the path that the line begins with."""
    if isinstance(error, CorruptRecordError):
        return f"at byte {error.position}: {error.problem}"
    return str(error)


def _any_identity(files: Files, directory: str, name: str) -> Identity:
    """Whose a snapshot is, where the file `identity` cannot tell."""
    file = files.open(f"{directory}/{name}")
    try:
        return read_header(file, SNAPSHOT_MAGIC, None)[0]
    finally:
        file.close()


def _digest(state: ReplicatedState) -> bytes:
    """Of everything that a snapshot of the state would hold."""
    view = Snapshot(state)
    try:
        found = hashlib.blake2b(digest_size=32)
        for chunk in view.chunks(CHUNK_BYTES):
            found.update(chunk)
        return found.digest()
    finally:
        view.close()
