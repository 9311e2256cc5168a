"""Snapshots: the whole state at exactly one zxid, in checksummed chunks.

    file = header chunk... footer

Owns the files `snapshot.<zxid>`. One that has its final name was complete and durable when it got
it, so any damage in it is decay, and a shorter file is no excuse. Chunks are opaque. Source:
ZooKeeper `FileSnap`, whose snapshots are fuzzy; ZOOKEEPER-2872 for the order of the renames.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from duolog_protocol.checksums import crc32c
from duolog_protocol.errors import CorruptRecordError, StorageError
from duolog_protocol.quorum_messages import MAX_CHUNK_BYTES
from duolog_runtime.files import Files

from .file_header import HEADER_BYTES, Identity, encode_header, read_header
from .txnlog import numbered

SNAPSHOT_MAGIC: Final = b"DUOZKSNP"
SYNC_EVERY_BYTES: Final = 16 * 1024 * 1024
"""The final sync must not keep the log, which shares the disk, waiting for long."""
_PREFIX: Final = "snapshot."
_RECEIVED_PREFIX: Final = "received."
_CHUNK: Final = struct.Struct(">II")
_FOOTER: Final = struct.Struct(">IQQI")
_CRC: Final = struct.Struct(">I")
_FOOTER_BYTES: Final = _FOOTER.size + _CRC.size


def snapshot_name(zxid: int) -> str:
    """The name of the snapshot at `zxid`."""
    return f"{_PREFIX}{zxid:016x}"


def received_name(zxid: int) -> str:
    """The name of a leader's snapshot that is complete, and not installed yet."""
    return f"{_RECEIVED_PREFIX}{zxid:016x}"


def received_files(files: Files, directory: str) -> list[int]:
    """The zxids of the snapshots that were received and not installed, ascending."""
    return numbered(files, directory, _RECEIVED_PREFIX)


def snapshot_files(files: Files, directory: str) -> list[int]:
    """The zxids of the snapshots of a directory, ascending."""
    return numbered(files, directory, _PREFIX)


class SnapshotWriter:
    """Writes one snapshot; it exists only once `finish` has returned. Raises OSError."""

    def __init__(
        self, files: Files, directory: str, identity: Identity, zxid: int, name: str = ""
    ) -> None:
        """`name`: where it is not to be a snapshot of this server yet."""
        self._files = files
        self._directory = directory
        self._path = f"{directory}/{name or snapshot_name(zxid)}"
        self._file = files.open(self._path + ".tmp", create=True)
        self._count = 0
        self._bytes = 0
        self._chain = 0
        self._unsynced_bytes = 0
        header = encode_header(SNAPSHOT_MAGIC, identity, zxid)
        self._position = len(header)
        try:
            self._file.truncate(0)
            self._file.pwrite(header, 0)
        except OSError:
            self.abort()
            raise

    def write(self, chunk: bytes) -> None:
        """Add a chunk."""
        assert 0 < len(chunk) <= MAX_CHUNK_BYTES, len(chunk)
        head = _CHUNK.pack(len(chunk), crc32c(chunk))
        self._file.pwritev([head, chunk], self._position)
        self._position += len(head) + len(chunk)
        self._chain = _link(self._chain, head)
        self._count += 1
        self._bytes += len(chunk)
        self._unsynced_bytes += len(chunk)
        if self._unsynced_bytes >= SYNC_EVERY_BYTES:
            self._file.sync()
            self._unsynced_bytes = 0

    def finish(self) -> None:
        """Footer, sync, rename, sync of the directory: now it counts."""
        self.seal()
        self.publish()

    def seal(self) -> None:
        """Footer and sync: complete and durable, but the next start removes it all the same."""
        footer = _FOOTER.pack(0, self._count, self._bytes, self._chain)
        self._file.pwrite(footer + _CRC.pack(crc32c(footer)), self._position)
        self._file.sync()

    def publish(self) -> None:
        """Give it its name, durably. Where that fails, only the next start can tell whether it has
        it."""
        self._file.close()
        self._files.rename(self._path + ".tmp", self._path)
        self._files.sync_dir(self._directory)

    def abort(self) -> None:
        """Give up; nothing is left of it."""
        self._file.close()
        if self._files.exists(self._path + ".tmp"):
            self._files.unlink(self._path + ".tmp")


def read_snapshot(
    files: Files, directory: str, identity: Identity, zxid: int, name: str = ""
) -> Iterator[bytes]:
    """The chunks of a snapshot, each verified before it is yielded.

    Only when the iteration has ended is the whole known to be right. Raises CorruptRecordError,
    DataDirectoryError, OSError.
    """
    path = f"{directory}/{name or snapshot_name(zxid)}"
    file = files.open(path)
    try:
        _, number, _ = read_header(file, SNAPSHOT_MAGIC, identity)
        if number != zxid:
            raise CorruptRecordError(path, 0, f"its name says {zxid:#x}, its header {number:#x}")
        position = HEADER_BYTES
        count = total = chain = 0
        while True:
            head = file.pread(_CHUNK.size, position)
            if len(head) < _CHUNK.size:
                raise CorruptRecordError(path, position, "the file ends before its footer")
            size, crc = _CHUNK.unpack(head)
            if size == 0:
                break
            if size > MAX_CHUNK_BYTES:
                raise CorruptRecordError(path, position, f"chunk of {size} bytes")
            chunk = file.pread(size, position + _CHUNK.size)
            if len(chunk) != size or crc32c(chunk) != crc:
                raise CorruptRecordError(path, position, "the checksum of a chunk is wrong")
            chain = _link(chain, head)
            count += 1
            total += size
            position += _CHUNK.size + size
            yield chunk
        expected = _FOOTER.pack(0, count, total, chain)
        footer = file.pread(_FOOTER_BYTES + 1, position)
        if footer != expected + _CRC.pack(crc32c(expected)):
            raise CorruptRecordError(path, position, "the footer does not fit what is before it")
    finally:
        file.close()


class FoundSnapshot(NamedTuple):
    """The snapshot to start from."""

    zxid: int
    """0 where there is none."""
    damaged: tuple[StorageError, ...]
    """What is wrong with the newer ones."""


def newest_valid(files: Files, directory: str, identity: Identity) -> FoundSnapshot:
    """The newest snapshot that can be read from end to end. Raises DataDirectoryError, OSError."""
    damaged: list[StorageError] = []
    for zxid in reversed(snapshot_files(files, directory)):
        try:
            for _ in read_snapshot(files, directory, identity, zxid):
                pass
        except CorruptRecordError as error:
            damaged.append(error)
        else:
            return FoundSnapshot(zxid, tuple(damaged))
    return FoundSnapshot(0, tuple(damaged))


def _link(chain: int, head: bytes) -> int:
    return crc32c(_CRC.pack(chain) + head)
