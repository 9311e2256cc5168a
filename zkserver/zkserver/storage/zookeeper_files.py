"""Finds and opens Apache ZooKeeper's files: snapshots, compressed or not, and transaction logs.

    snapshot.<zxid>[.gz|.snappy]     log.<zxid of its first record>
    log    = "ZKLG" version dbid frame* zeros
    frame  = adler32 i64, length i32, record, "B"

Owns which file is read, decompression, and what counts as the end of a log. It only reads, and
what it reads may be hostile: memory is bounded by the size of the files, and of a compressed one
by one block at a time. Source: `FileTxnSnapLog`, `FileTxnLog`, `SnapStream`, snappy-java's
`SnappyOutputStream`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from duolog_protocol.compression import Codec, DecompressionError, decompress
from duolog_protocol.errors import CorruptRecordError, DataDirectoryError
from duolog_runtime.files import File, Files

from .zookeeper_format import (
    FILE_HEADER,
    LOG_MAGIC,
    ForeignTxn,
    JuteReader,
    SnapshotDecoder,
    check_file_header,
    decode_txn,
)

VERSION_FOLDER: Final = "version-2"
ACCEPTED_EPOCH: Final = "acceptedEpoch"
CURRENT_EPOCH: Final = "currentEpoch"

_CHUNK_BYTES: Final = 256 * 1024
_MAX_BLOCK_BYTES: Final = 16 * 1024 * 1024
_SNAPSHOT_NAME: Final = re.compile(r"snapshot\.([0-9a-f]{1,16})(\.gz|\.snappy)?")
_LOG_NAME: Final = re.compile(r"log\.([0-9a-f]{1,16})")
_SNAPPY_HEADER: Final = b"\x82SNAPPY\x00" + (1).to_bytes(4, "big") * 2
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_FRAME: Final = struct.Struct(">qi")
_FRAME_END: Final = b"B"
_NEXT_FRAME: Final = _FRAME_END + bytes(4)
"""The end of a frame and the upper half of the checksum of the next one."""


class SnapshotFile(NamedTuple):
    """A snapshot by its name."""

    zxid: int
    """The last zxid that it holds for certain; later changes may be in it (it is fuzzy)."""
    name: str
    suffix: str


class LogFile(NamedTuple):
    """A log by its name."""

    zxid: int
    """Of its first record."""
    name: str


def data_folder(files: Files, directory: str) -> str:
    """Where the files are: in `version-2` of what people call the data directory, or right here."""
    inner = f"{directory.rstrip('/')}/{VERSION_FOLDER}"
    return inner if files.exists(inner) else directory.rstrip("/") or "/"


def snapshot_files(files: Files, folder: str) -> list[SnapshotFile]:
    """The snapshots of a folder, newest first."""
    found = [
        SnapshotFile(int(match[1], 16), name, match[2] or "")
        for name in files.list(folder)
        if (match := _SNAPSHOT_NAME.fullmatch(name))
    ]
    return sorted(found, reverse=True)


def log_files(files: Files, folder: str) -> list[LogFile]:
    """The logs of a folder, oldest first."""
    return sorted(
        LogFile(int(match[1], 16), name)
        for name in files.list(folder)
        if (match := _LOG_NAME.fullmatch(name))
    )


def read_epoch(files: Files, folder: str, name: str) -> int:
    """An epoch file, a number in decimal; 0 where there is none (a standalone server)."""
    path = f"{folder}/{name}"
    if not files.exists(path):
        return 0
    file = files.open(path)
    try:
        raw = file.pread(32, 0).strip()
    finally:
        file.close()
    if not re.fullmatch(rb"[0-9]{1,10}", raw) or int(raw) >= 1 << 31:
        raise CorruptRecordError(path, 0, f"{raw!r} is not an epoch")
    return int(raw)


def open_snapshot(files: Files, folder: str, found: SnapshotFile) -> SnapshotDecoder:
    """Begin to read a snapshot; the file is closed when its chunks end or are given up.

    Raises CorruptRecordError, also while its nodes are read.
    """
    path = f"{folder}/{found.name}"
    chunks = _chunks(files.open(path))
    if found.suffix == ".gz":
        chunks = _gunzip(chunks, path)
    elif found.suffix == ".snappy":
        chunks = _unsnappy(chunks, path)
    return SnapshotDecoder(path, chunks)


def _chunks(file: File) -> Iterator[bytes]:
    try:
        position = 0
        while chunk := file.pread(_CHUNK_BYTES, position):
            yield chunk
            position += len(chunk)
    finally:
        file.close()


def _gunzip(chunks: Iterator[bytes], path: str) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    position = 0
    try:
        for chunk in chunks:
            if unpacker.eof:
                raise CorruptRecordError(path, position, "there are bytes after the gzip data")
            position += len(chunk)
            piece = unpacker.decompress(chunk, _CHUNK_BYTES)
            while piece:
                yield piece
                piece = unpacker.decompress(unpacker.unconsumed_tail, _CHUNK_BYTES)
    except zlib.error as error:
        raise CorruptRecordError(path, position, f"the gzip data is damaged: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise CorruptRecordError(path, position, "the gzip data is cut or has bytes after its end")


def _unsnappy(chunks: Iterator[bytes], path: str) -> Iterator[bytes]:
    reader = JuteReader(path, chunks)
    header = reader.take(len(_SNAPPY_HEADER))
    if header[:8] != _SNAPPY_HEADER[:8]:
        raise CorruptRecordError(path, 0, "it does not start as snappy data")
    while reader.left(1):
        position = reader.position
        raw_size = reader.take(4)
        size = int.from_bytes(raw_size, "big")
        if not 0 < size <= _MAX_BLOCK_BYTES:
            raise CorruptRecordError(path, position, f"a snappy block of {size} bytes")
        block = reader.take(size)
        try:
            yield decompress(Codec.SNAPPY, _SNAPPY_HEADER + raw_size + block, _MAX_BLOCK_BYTES)
        except DecompressionError as error:
            raise CorruptRecordError(path, position, str(error)) from error


class LogReader:
    """Reads one log file, front to back."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._path = file.path
        self._size = file.size()
        self._window = b""
        self._window_start = 0
        self.torn_at: int | None = None
        """After the end: where a record was only half written, if one was."""

    def txns(self) -> Iterator[ForeignTxn]:
        """The records. Raises CorruptRecordError.

        Ends, as ZooKeeper does, at zeros, at the end of the file, and at a record that was never
        finished; that one may be nothing but the last thing in the file.
        """
        if self._is_blank(0):  # made, and then the machine stopped
            return
        header = self._bytes(0, FILE_HEADER.size)
        check_file_header(JuteReader(self._path, (), window=header), LOG_MAGIC)
        position = FILE_HEADER.size
        while (record := self._record_at(position, strict=True)) is not None:
            start = position + _FRAME.size
            yield decode_txn(self._path, position, record, start)
            position = start + len(record) + 1
        if self._is_blank(position):
            return
        later = self._whole_record_after(position)
        if later is not None:
            raise CorruptRecordError(
                self._path, position, f"no record can be read here, but one follows at {later}"
            )
        self.torn_at = position

    def _record_at(self, position: int, *, strict: bool) -> bytes | None:
        head = self._bytes(position, _FRAME.size)
        if len(head) < _FRAME.size:
            return None
        checksum, size = _FRAME.unpack(head)
        start = position + _FRAME.size
        if not 0 < size < self._size - start:
            return None
        raw = self._bytes(start, size + 1)
        if not raw.endswith(_FRAME_END):
            return None
        record = raw[:-1]
        if zlib.adler32(record) != checksum:
            if strict:
                raise CorruptRecordError(
                    self._path, position, f"the checksum of a record of {size} bytes is wrong"
                )
            return None
        return record

    def _whole_record_after(self, position: int) -> int | None:
        """Where a good record follows; then what is at `position` is no unfinished write."""
        search = position
        while search < self._size:
            window = self._file.pread(_CHUNK_BYTES, search)
            found = window.find(_NEXT_FRAME)
            if found < 0:
                if search + len(window) >= self._size:
                    return None
                search += len(window) - len(_NEXT_FRAME) + 1
                continue
            start = search + found + 1
            if self._record_at(start, strict=False) is not None:
                return start
            search = start
        return None

    def _is_blank(self, position: int) -> bool:
        while position < self._size:
            window = self._file.pread(_CHUNK_BYTES, position)
            if window.count(0) != len(window):
                return False
            position += len(window)
        return True

    def _bytes(self, position: int, size: int) -> bytes:
        start = position - self._window_start
        if start < 0 or start + size > len(self._window):
            if size > _CHUNK_BYTES:
                return self._file.pread(size, position)
            self._window = self._file.pread(_CHUNK_BYTES, position)
            self._window_start = position
            start = 0
        return self._window[start : start + size]


def read_log(
    files: Files, folder: str, found: LogFile, on_torn: Callable[[str, int], None]
) -> Iterator[ForeignTxn]:
    """The records of a log file; its name must be that of the first one.

    `on_torn(path, position)` is called where the last record was only half written. Raises
    CorruptRecordError.
    """
    file = files.open(f"{folder}/{found.name}")
    try:
        reader = LogReader(file)
        first = True
        for txn in reader.txns():
            if first and txn.zxid != found.zxid:
                raise CorruptRecordError(
                    file.path, txn.position, f"its first record has zxid {txn.zxid:#x}"
                )
            first = False
            yield txn
        if reader.torn_at is not None:
            on_torn(file.path, reader.torn_at)
    finally:
        file.close()


def logs_after(files: Files, folder: str, zxid: int) -> list[LogFile]:
    """The logs that can hold records after `zxid`, oldest first."""
    found = log_files(files, folder)
    first = 0
    for index, each in enumerate(found):
        if each.zxid <= zxid + 1:
            first = index
    return found[first:]


def require_snapshots(files: Files, folder: str) -> list[SnapshotFile]:
    """The snapshots, newest first. Raises DataDirectoryError where there are none."""
    found = snapshot_files(files, folder)
    if not found:
        raise DataDirectoryError(
            f"{folder} holds no snapshot of ZooKeeper (snapshot.<zxid>, also in {VERSION_FOLDER})"
        )
    return found
