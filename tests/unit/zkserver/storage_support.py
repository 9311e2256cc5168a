"""What the tests of zkserver's storage share: records, and a data directory in memory."""

from __future__ import annotations

import random
from collections.abc import Callable

from duolog_protocol.types import make_zxid
from tests.unit.kbroker.storage_support import MemoryFiles
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.snapshot import SnapshotWriter
from zkserver.storage.txnlog import LogOptions

DIRECTORY = "data"
SMALL = LogOptions(file_bytes=600, preallocate_bytes=256)


def record(zxid: int, size_bytes: int = 12) -> bytes:
    """A record whose content depends on its zxid."""
    return zxid.to_bytes(8, "big") + bytes([zxid % 251 + 1]) * size_bytes


def zxids(records: list[bytes]) -> list[int]:
    return [int.from_bytes(each[:8], "big") for each in records]


def open_directory(
    files: MemoryFiles,
    *,
    seed: int = 1,
    options: LogOptions = SMALL,
    server_id: int = 1,
    may_be_half: bool = False,
) -> tuple[DataDirectory, list[bytes]]:
    """Open and recover: the directory and the records after its snapshot."""
    data = DataDirectory(files, DIRECTORY, server_id, random.Random(seed), log_options=options)
    try:
        return data, list(data.records(may_be_half=may_be_half))
    except BaseException:
        data.close()
        raise


def fill(
    data: DataDirectory, groups: list[int], *, epoch: int = 1, first: int = 1, size_bytes: int = 12
) -> list[bytes]:
    """Append and sync groups of so many records each; return the records."""
    if data.epochs.current_epoch < epoch:
        data.epochs.advance(epoch)
    counter = first
    written = []
    for count in groups:
        records = [record(make_zxid(epoch, counter + i), size_bytes) for i in range(count)]
        counter += count
        data.log.append(records, make_zxid(epoch, counter - 1))
        data.log.sync()
        written += records
    return written


def take_snapshot(data: DataDirectory, zxid: int, chunks: list[bytes]) -> None:
    writer = SnapshotWriter(data.files, data.path, data.identity, zxid)
    for chunk in chunks:
        writer.write(chunk)
    writer.finish()


def change(files: MemoryFiles, path: str, edit: Callable[[bytearray], None]) -> MemoryFiles:
    """A copy of the disk with one file edited."""
    other = files.copy()
    edit(other.nodes[path].data)
    return other
