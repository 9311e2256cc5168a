"""Producer state on disk: `%020d.snapshot`, what is known about producers below that offset.

Owns Kafka's layout: `int16 version 1 | uint32 CRC-32C of the rest | int32 count | entries`, each
`int64 producer_id, int16 epoch, int32 last_sequence, int64 last_offset, int32 offset_delta,
int64 timestamp, int32 coordinator_epoch, int64 current_txn_first_offset`. Kafka stores the newest
batch of a producer only; here all remembered batches are stored, oldest first. Kafka's loader keeps
the last entry of a producer id, so it reads these files too, and no duplicate window is lost over a
restart. A snapshot is a shortcut: one that is missing or damaged is ignored and the log replayed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain

from duolog_protocol.checksums import crc32c
from duolog_runtime.files import Files

SUFFIX = ".snapshot"

ProducerEntry = tuple[int, int, int, int, int, int, int, int]
"""producer_id, producer_epoch, last_sequence, last_offset, offset_delta, timestamp_ms,
coordinator_epoch, current_txn_first_offset."""

_VERSION = 1
_PREFIX = struct.Struct(">hI")
_COUNT = struct.Struct(">i")
_ENTRY = struct.Struct(">qhiqiqiq")


def snapshot_path(directory: str, offset: int) -> str:
    return f"{directory}/{offset:020d}{SUFFIX}"


def encode(entries: Sequence[ProducerEntry]) -> bytes:
    body = b"".join(chain((_COUNT.pack(len(entries)),), (_ENTRY.pack(*entry) for entry in entries)))
    return _PREFIX.pack(_VERSION, crc32c(body)) + body


def decode(data: bytes) -> list[ProducerEntry] | None:
    """The entries of a snapshot file; None where it is damaged or of another version."""
    if len(data) < _PREFIX.size + _COUNT.size:
        return None
    version, crc = _PREFIX.unpack_from(data)
    body = data[_PREFIX.size :]
    if version != _VERSION or crc != crc32c(body):
        return None
    (count,) = _COUNT.unpack_from(body)
    if len(body) != _COUNT.size + count * _ENTRY.size:
        return None
    return list(_ENTRY.iter_unpack(body[_COUNT.size :]))


def write(files: Files, directory: str, offset: int, entries: Sequence[ProducerEntry]) -> str:
    """Write the snapshot at `offset`, not yet durable, and return its path. Raises OSError."""
    path = snapshot_path(directory, offset)
    data = encode(entries)
    file = files.open(path, create=True)
    try:
        file.pwrite(data, 0)
        file.truncate(len(data))
    finally:
        file.close()
    return path


def offsets(files: Files, directory: str) -> list[int]:
    """The offsets of the snapshots in a partition directory, ascending."""
    names = (name for name in files.list(directory) if name.endswith(SUFFIX))
    stems = (name.removesuffix(SUFFIX) for name in names)
    return sorted(int(stem) for stem in stems if len(stem) == 20 and stem.isdecimal())


def load_newest(
    files: Files, directory: str, *, at_most: int, at_least: int = 0
) -> tuple[int, list[ProducerEntry]] | None:
    """The newest sound snapshot in [at_least, at_most]: its offset and entries."""
    for offset in reversed(offsets(files, directory)):
        if not at_least <= offset <= at_most:
            continue
        file = files.open(snapshot_path(directory, offset))
        try:
            entries = decode(file.pread(file.size(), 0))
        finally:
            file.close()
        if entries is not None:
            return offset, entries
    return None


def delete_outside(files: Files, directory: str, *, first: int, last: int) -> None:
    """Unlink the snapshots below `first` and above `last`, keeping the newest one below `last`."""
    found = offsets(files, directory)
    newest = max((offset for offset in found if offset <= last), default=None)
    for offset in found:
        if offset > last or (offset < first and offset != newest):
            with suppress(FileNotFoundError):
                files.unlink(snapshot_path(directory, offset))
