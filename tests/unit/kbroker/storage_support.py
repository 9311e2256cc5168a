"""What the tests of the log storage share: real batches, and files in memory that can fail.

`MemoryFiles` follows the rules of `duolog_runtime.files`: content is durable after `File.sync`,
names after `sync_dir`; `after_power_loss` gives what a disk may hold then.
"""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from duolog_protocol.checksums import Buffer, crc32c
from duolog_protocol.records import BatchHeader, read_header
from duolog_protocol.types import TopicPartition
from kbroker.core.producer_state import ProducerStates
from kbroker.storage.checkpoints import LogDirCheckpoints
from kbroker.storage.log import Log
from kbroker.storage.log_types import LogConfig
from kbroker.storage.memory_tail import TailBudget
from kbroker.storage.recovery import RecoveryReport, create_log, open_log

PARTITION = TopicPartition("t", 0)
DIRECTORY = "data/t-0"


def _varint(value: int) -> bytes:
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def batch(
    base_offset: int,
    count: int = 1,
    *,
    timestamps: Sequence[int] | None = None,
    epoch: int = 0,
    producer: tuple[int, int, int] = (-1, -1, -1),
    size: int = 10,
    attributes: int = 0,
) -> bytes:
    """An uncompressed RecordBatch v2 with `count` records of `size` bytes each."""
    times = list(timestamps) if timestamps is not None else [1000 + base_offset] * count
    assert len(times) == count, (times, count)
    records = b""
    for delta, timestamp in enumerate(times):
        body = (
            b"\0"
            + _varint(timestamp - times[0])
            + _varint(delta)
            + _varint(-1)
            + _varint(size)
            + bytes([(base_offset + delta) % 251]) * size
            + _varint(0)
        )
        records += _varint(len(body)) + body
    rest = (
        struct.pack(">hiqqqhii", attributes, count - 1, times[0], max(times), *producer, count)
        + records
    )
    return struct.pack(">qiibI", base_offset, 9 + len(rest), epoch, 2, crc32c(rest)) + rest


def header_of(data: Buffer) -> BatchHeader:
    return read_header(data, 0)


def append(log: Log, *batches: bytes, wall_ms: int = 0) -> None:
    log.append(list(batches), [header_of(data) for data in batches], wall_ms=wall_ms)


def content(log: Log, *, max_bytes: int = 1 << 20, end_offset: int | None = None) -> bytes:
    """All batches from the log start on, read slice by slice."""
    data = b""
    offset = log.log_start_offset
    end = log.log_end_offset if end_offset is None else end_offset
    while offset < end:
        part = log.read(offset, max_bytes=max_bytes, end_offset=end)
        if not part.size_bytes:
            break
        pieces = b"".join(part.read())
        assert len(pieces) == part.size_bytes, (offset, len(pieces), part)
        data += pieces
        assert part.end_offset > offset, part
        offset = part.end_offset
    return data


@dataclass
class _Node:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Since the last sync: (position, bytes), or (size, None) for a truncation."""


class MemoryFile:
    def __init__(self, disk: MemoryFiles, path: str, node: _Node) -> None:
        self.path = path
        self._disk = disk
        self._node = node
        self.closed = False

    def pread(self, size_bytes: int, position: int) -> bytes:
        assert not self.closed, self.path
        self._disk.read_bytes += size_bytes
        return bytes(self._node.data[position : position + size_bytes])

    def pread_cached(self, size_bytes: int, position: int) -> bytes | None:
        return self.pread(size_bytes, position)

    def pwrite(self, data: Buffer, position: int) -> None:
        self.pwritev([data], position)

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> None:
        assert not self.closed, self.path
        data = b"".join(buffers)
        allowed = self._disk.spend(len(data))
        self._put(data[:allowed], position)
        if allowed < len(data):
            raise OSError(self._disk.write_error, "injected", self.path)

    def pwritev_durably(self, buffers: Sequence[Buffer], position: int) -> None:
        self.pwritev(buffers, position)
        self.sync()

    def begin_sync(self, position: int, size_bytes: int) -> None: ...

    def is_allocated(self) -> bool:
        return True

    def _put(self, data: bytes, position: int) -> None:
        node = self._node
        if len(node.data) < position:
            node.data.extend(bytes(position - len(node.data)))
        node.data[position : position + len(data)] = data
        node.unsynced.append((position, data))

    def truncate(self, size_bytes: int) -> None:
        if self._disk.fail_truncate:
            raise OSError(errno.EIO, "injected", self.path)
        node = self._node
        del node.data[size_bytes:]
        node.data.extend(bytes(size_bytes - len(node.data)))
        node.unsynced.append((size_bytes, None))

    def preallocate(self, size_bytes: int) -> None:
        self.truncate(max(size_bytes, self.size()))

    def size(self) -> int:
        return len(self._node.data)

    def sync(self) -> None:
        assert not self.closed, self.path
        if self._disk.fail_sync:
            raise OSError(errno.EIO, "injected", self.path)
        self._disk.sync_count += 1
        self._node.synced = bytes(self._node.data)
        self._node.unsynced.clear()

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        self.closed = True


class MemoryFiles:
    def __init__(self) -> None:
        self.nodes: dict[str, _Node] = {}
        self.durable_names: dict[str, _Node] = {}
        self.name_log: list[tuple[str, str, _Node | None]] = []
        """Unsynced (directory, path, node or None) changes, in order."""
        self.free_bytes: int | None = None
        """Bytes that can still be written; None for no limit."""
        self.write_error = errno.ENOSPC
        self.fail_sync = False
        self.fail_truncate = False
        self.sync_count = 0
        self.read_bytes = 0

    def spend(self, size_bytes: int) -> int:
        if self.free_bytes is None:
            return size_bytes
        allowed = min(size_bytes, self.free_bytes)
        self.free_bytes -= allowed
        return allowed

    def _name(self, path: str, node: _Node | None) -> None:
        self.name_log.append((path.rpartition("/")[0], path, node))
        if node is None:
            del self.nodes[path]
        else:
            self.nodes[path] = node

    def open(self, path: str, *, create: bool = False, exclusive: bool = False) -> MemoryFile:
        if path not in self.nodes:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no file", path)
            self._name(path, _Node())
        elif exclusive:
            raise FileExistsError(errno.EEXIST, "exists", path)
        return MemoryFile(self, path, self.nodes[path])

    def exists(self, path: str) -> bool:
        return path in self.nodes

    def list(self, path: str) -> list[str]:
        start = path + "/"
        return sorted(
            name[len(start) :]
            for name in self.nodes
            if name.startswith(start) and "/" not in name[len(start) :]
        )

    def mkdir(self, path: str) -> None: ...

    def rmdir(self, path: str) -> None: ...

    def rename(self, source: str, target: str) -> None:
        node = self.nodes[source]
        self._name(source, None)
        self._name(target, node)

    def unlink(self, path: str) -> None:
        if path not in self.nodes:
            raise FileNotFoundError(errno.ENOENT, "no file", path)
        self._name(path, None)

    def sync_dir(self, path: str) -> None:
        if self.fail_sync:
            raise OSError(errno.EIO, "injected", path)
        rest = []
        for directory, name, node in self.name_log:
            if directory != path:
                rest.append((directory, name, node))
            elif node is None:
                self.durable_names.pop(name, None)
            else:
                self.durable_names[name] = node
        self.name_log = rest

    def lock(self, path: str) -> MemoryFile:
        return self.open(path, create=True)

    def copy(self) -> MemoryFiles:
        """The same content, all of it durable: what a killed process leaves behind."""
        other = MemoryFiles()
        for path, node in self.nodes.items():
            data = bytes(node.data)
            other.nodes[path] = other.durable_names[path] = _Node(bytearray(data), data)
        return other

    def after_power_loss(self, rng: random.Random) -> MemoryFiles:
        """Each unsynced write kept, dropped or torn; a prefix of the unsynced name changes."""
        names = dict(self.durable_names)
        for _, path, node in self.name_log[: rng.randint(0, len(self.name_log))]:
            if node is None:
                names.pop(path, None)
            else:
                names[path] = node
        other = MemoryFiles()
        for path, node in names.items():
            data = bytearray(node.synced)
            for position, piece in node.unsynced:
                fate = rng.randrange(3)
                if fate == 0:
                    continue
                if piece is None:
                    del data[position:]
                    data.extend(bytes(position - len(data)))
                    continue
                kept = piece if fate == 1 else piece[: rng.randint(0, len(piece))]
                if len(data) < position:
                    data.extend(bytes(position - len(data)))
                data[position : position + len(kept)] = kept
            other.nodes[path] = other.durable_names[path] = _Node(data, bytes(data))
        return other


def small_config(**changes: int) -> LogConfig:
    """Tiny segments and dense indexes, so that everything happens in every test."""
    settings = {
        "segment_bytes": 300,
        "index_interval_bytes": 90,
        "memory_tail_bytes": 0,
        "retention_ms": -1,
    }
    return LogConfig(**(settings | changes))


class Store:
    """One log and what it needs around it."""

    def __init__(self, files: MemoryFiles | None = None, config: LogConfig | None = None) -> None:
        self.files = files or MemoryFiles()
        self.config = config or small_config()
        self.checkpoints = LogDirCheckpoints(self.files, "data")
        self.producers = ProducerStates()
        self.report = RecoveryReport()
        self.budget = TailBudget(1 << 20)

    def create(self) -> Log:
        return create_log(
            self.files,
            DIRECTORY,
            config=self.config,
            checkpoints=self.checkpoints.partition(PARTITION),
            producers=self.producers,
            wall_ms=0,
            tail_budget=self.budget,
        )

    def open(self, *, clean: bool = False) -> Log:
        return open_log(
            self.files,
            DIRECTORY,
            config=self.config,
            checkpoints=self.checkpoints.partition(PARTITION),
            producers=self.producers,
            clean=clean,
            wall_ms=0,
            tail_budget=self.budget,
            report=self.report,
        )

    def reopened(self, files: MemoryFiles | None = None) -> Store:
        """Another process on the same files (a copy, unless given)."""
        return Store(files or self.files.copy(), self.config)

    def checkpoint(self, log: Log) -> None:
        log.stage_checkpoints()
        self.checkpoints.write()
