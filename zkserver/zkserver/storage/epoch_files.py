"""Who this directory belongs to, and the two epochs it has promised.

Owns the files `identity`, `accepted_epoch` and `current_epoch`. The rule of ZooKeeper A.1 and
ZOOKEEPER-2307: the file changes before the value in memory, and both before anybody is told.
Invariant: epoch of the last logged zxid <= current_epoch <= accepted_epoch; of a learner that was
cut off before it had all of its leader's history only <= accepted_epoch.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Final

from duolog_protocol.errors import (
    CorruptRecordError,
    DataDirectoryError,
    DiskFullError,
    LogOfflineError,
)
from duolog_protocol.types import ZXID_EPOCH_LAST
from duolog_runtime.files import Files

from .file_header import Identity, encode_header, read_header, write_small_file

IDENTITY_MAGIC: Final = b"DUOZKIDN"
EPOCH_MAGIC: Final = b"DUOZKEPO"
IDENTITY: Final = "identity"
ACCEPTED_EPOCH: Final = "accepted_epoch"
CURRENT_EPOCH: Final = "current_epoch"
_OF_MEMBER: Final = 1
"""The number in the file `identity` of a server that has belonged to an ensemble."""
NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)


def read_identity(files: Files, directory: str) -> Identity | None:
    """The identity of a directory, None where the file is missing."""
    return _read_identity_file(files, directory)[0]


def write_identity(
    files: Files, directory: str, identity: Identity, *, is_member: bool = False
) -> None:
    """Make the directory this server's. Written last: it says that all else is in place."""
    header = encode_header(IDENTITY_MAGIC, identity, _OF_MEMBER if is_member else 0)
    write_small_file(files, directory, IDENTITY, header)


def _read_identity_file(files: Files, directory: str) -> tuple[Identity | None, int]:
    path = f"{directory}/{IDENTITY}"
    if not files.exists(path):
        return None, 0
    file = files.open(path)
    try:
        identity, number, _ = read_header(file, IDENTITY_MAGIC, None)
    finally:
        file.close()
    return identity, number


class EpochFiles:
    """The two epochs of a server."""

    def __init__(self, files: Files, directory: str, identity: Identity) -> None:
        """Read them. Raises CorruptRecordError, DataDirectoryError."""
        self._files = files
        self._directory = directory
        self._identity = identity
        self.accepted_epoch = self._read(ACCEPTED_EPOCH)
        """The highest epoch promised."""
        self.current_epoch = self._read(CURRENT_EPOCH)
        """The epoch whose history this server has adopted (<= accepted_epoch)."""
        self.was_member = _read_identity_file(files, directory)[1] == _OF_MEMBER
        """It has promised an epoch to others, or they to it: a history that they go on with."""
        if self.accepted_epoch < self.current_epoch:
            raise DataDirectoryError(
                f"{directory}: accepted_epoch {self.accepted_epoch} is below current_epoch "
                f"{self.current_epoch}: the files are not of one moment"
            )

    @staticmethod
    def create(files: Files, directory: str, identity: Identity) -> None:
        """Write both with epoch 0."""
        for name in (ACCEPTED_EPOCH, CURRENT_EPOCH):
            write_small_file(files, directory, name, encode_header(EPOCH_MAGIC, identity, 0))

    def next_epoch(self) -> int:
        """The epoch that a start opens."""
        return self.accepted_epoch + 1

    def promise(self, epoch: int) -> None:
        """Accept an epoch as a member of an ensemble, which is noted first, for good.

        Durable when it returns. Raises as `accept`; the note may have been made.
        """
        if not self.was_member:
            place = self._files, self._directory, self._identity
            self._try(IDENTITY, partial(write_identity, *place, is_member=True))
            self.was_member = True
        self.accept(epoch)

    def accept(self, epoch: int) -> None:
        """Promise an epoch: durable when it returns.

        Raises DiskFullError (the promise is as it was; the new one may show after a crash) and
        LogOfflineError.
        """
        assert epoch > self.accepted_epoch, (epoch, self.accepted_epoch)
        assert epoch <= ZXID_EPOCH_LAST, epoch
        self._write(ACCEPTED_EPOCH, epoch)
        self.accepted_epoch = epoch

    def adopt(self, epoch: int) -> None:
        """Say that this server holds the history of an epoch that it has promised: durable when it
        returns. That history must be durable before (ZOOKEEPER-4643). Idempotent, so that a server
        may join the same leader again.

        Raises as `accept`.
        """
        assert epoch >= self.current_epoch, (epoch, self.current_epoch)
        assert epoch <= self.accepted_epoch, (epoch, self.accepted_epoch)
        if epoch == self.current_epoch:
            return
        self._write(CURRENT_EPOCH, epoch)
        self.current_epoch = epoch

    def advance(self, epoch: int) -> None:
        """Accept and adopt an epoch; for a server that asks nobody. Raises as `accept`."""
        assert epoch > self.current_epoch, (epoch, self.current_epoch)
        if epoch > self.accepted_epoch:
            self.accept(epoch)
        self.adopt(epoch)

    def _read(self, name: str) -> int:
        path = f"{self._directory}/{name}"
        if not self._files.exists(path):
            raise CorruptRecordError(path, 0, "the file is missing")
        file = self._files.open(path)
        try:
            return read_header(file, EPOCH_MAGIC, self._identity)[1]
        finally:
            file.close()

    def _write(self, name: str, epoch: int) -> None:
        data = encode_header(EPOCH_MAGIC, self._identity, epoch)
        self._try(name, partial(write_small_file, self._files, self._directory, name, data))

    def _try(self, name: str, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if error.errno in NO_SPACE:
                raise DiskFullError(f"no space to write {self._directory}/{name}") from error
            raise LogOfflineError(f"cannot write {self._directory}/{name}: {error}") from error
