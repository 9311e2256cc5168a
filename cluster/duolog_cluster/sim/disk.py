"""The simulated disk: `Files` in memory, with everything a real one may do to unsynced data.

Owns paths, handles, locks, the fault plan and the moment of a crash; what a crash leaves of one
file is in `disk_nodes.py`. Everything random comes from the generator it is given, so one seed
gives one history. Sources: reference designs of FoundationDB and TigerBeetle; fsyncgate for the
failed sync; ALICE (OSDI 2014) for names that are durable apart from data.

- Writes, truncations and preallocations pend until `File.sync`; creations, removals and renames
  until `sync_dir` of the directory (a rename across two: of either).
- `crash()` keeps, drops or tears each pending operation, kills all handles and locks, and what is
  left is the disk's new state. `kill()` is the death of the process only: nothing is lost.
- A failed sync lies from then on, as Linux does: some of the writes are gone although readers see
  them, and the next sync succeeds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from duolog_runtime.files import Buffer, DirectoryLockedError

from .disk_nodes import (
    EXTEND,
    RESIZE,
    WRITE,
    CrashPlan,
    DirectoryNode,
    FileNode,
    NameOp,
    Node,
    Op,
    Place,
    Survivors,
    Touched,
    needed_with,
    survive,
)


class PowerLoss(BaseException):
    """The machine is off: no code of it goes on. Raised by a crash point, and to what remains.

    Not an Exception, so that no handler of the code under test mistakes it for an error.
    """


class CrashReport(NamedTuple):
    """What a crash did with the pending operations."""

    kept: int
    dropped: int
    torn: int
    names_kept: int
    names_dropped: int


@dataclass(slots=True)
class DiskFaults:
    """The fault plan of one disk; may be changed at any time. Counters start at 1."""

    drop_rate: float | None = None
    """Share of pending writes that a crash drops; None: drawn for each crash, also 0 and 1."""
    tear_rate: float | None = None
    """Share of pending writes that a crash tears; None: drawn for each crash."""
    zeros_rate: float = 0.15
    """Share of torn writes whose missing part reads as zeros."""
    garbage_rate: float = 0.15
    """Share of torn writes whose missing part reads as garbage."""
    name_drop_rate: float | None = None
    """Share of pending creations, removals and renames that a crash drops; None: drawn."""
    cache_miss_rate: float = 0.0
    """Share of `pread_cached` that would have to wait."""
    full_after_bytes: int | None = None
    """Capacity: a write that needs more raises ENOSPC, with a prefix written."""
    full_at_write: int | None = None
    """This write (creations, directories and preallocations count) raises ENOSPC ..."""
    full_for_writes: int = 1
    """... and so do those after it, this many together."""
    fail_at_write: int | None = None
    """This write raises EIO, with a prefix written."""
    fail_at_sync: int | None = None
    """This sync (of a file or a directory) raises EIO."""


CrashPoint = Callable[[str, str, str], None]
"""Called with "before" or "after", "sync", "sync_dir" or "rename", and the path."""


class SimDisk:
    """A file system in memory that forgets. Implements `Files`; "/" itself is always durable."""

    def __init__(
        self,
        rng: random.Random,
        faults: DiskFaults | None = None,
        *,
        crash_points: CrashPoint | None = None,
        latency: Callable[[str, int], None] | None = None,
    ) -> None:
        """Make an empty disk.

        Args:
            rng: the only source of chance.
            faults: what goes wrong; by default only crashes do.
            crash_points: may raise PowerLoss; then the disk is off until `crash()`.
            latency: told of each operation ("read", "write", "sync", "name") and its bytes.
        """
        self._rng = rng
        self.faults = DiskFaults() if faults is None else faults
        self.crash_points = crash_points
        self.latency = latency
        self.write_count = 0
        self.sync_count = 0
        self.read_count = 0
        self.crash_count = 0
        self.written_bytes = 0
        self.used_bytes = 0
        """Sizes of all files that have a name or a handle."""
        self.used_after_failed_sync_count = 0
        """Writes and syncs on a file whose sync had failed: must stay 0."""
        self._root = DirectoryNode()
        self._dirty: dict[FileNode, None] = {}
        """Files whose image is not what the platter has, in the order they became so."""
        self._pending_names: list[NameOp] = []
        self._locks: dict[FileNode, SimFile] = {}
        self._life = 0
        """Handles of an earlier life are dead."""
        self._powered = True

    # The interface of Files.

    def open(self, path: str, *, create: bool = False, exclusive: bool = False) -> SimFile:
        place = self._place(path)
        directory, name = place
        node = directory.entries.get(name)
        if node is None:
            if not create and not exclusive:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self._count_write(path)
            node = FileNode()
            self._change_names(NameOp(node, None, place))
        elif exclusive:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        elif isinstance(node, DirectoryNode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        node.handles += 1
        return SimFile(self, path, node, self._life)

    def exists(self, path: str) -> bool:
        try:
            self._find(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def list(self, path: str) -> list[str]:
        return sorted(self._directory(path).entries)

    def mkdir(self, path: str) -> None:
        parts = _parts(path)
        directory = self._root
        self._check()
        for depth, name in enumerate(parts, 1):
            node = directory.entries.get(name)
            if node is None:
                self._count_write(path)
                node = DirectoryNode()
                self._change_names(NameOp(node, None, (directory, name)))
            elif isinstance(node, FileNode):
                number = errno.EEXIST if depth == len(parts) else errno.ENOTDIR
                raise OSError(number, os.strerror(number), path)
            directory = node

    def rmdir(self, path: str) -> None:
        node = self._directory(path)
        if node.entries:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self._change_names(NameOp(node, self._place(path), None))

    def rename(self, source: str, target: str) -> None:
        source_place, target_place = self._place(source), self._place(target)
        node = self._find(source)
        if source_place == target_place:
            return
        _check_rename(node, target_place, source, target)
        self._step("before", "rename", target)
        self._change_names(NameOp(node, source_place, target_place))
        self._step("after", "rename", target)

    def unlink(self, path: str) -> None:
        node = self._find(path)
        if isinstance(node, DirectoryNode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self._change_names(NameOp(node, self._place(path), None))

    def sync_dir(self, path: str) -> None:
        directory = self._directory(path)
        self._step("before", "sync_dir", path)
        failed = self._count_sync("sync_dir")
        taken = needed_with(self._pending_names, directory)
        gone = set(map(id, taken))
        self._pending_names = [op for op in self._pending_names if id(op) not in gone]
        if failed:
            self._keep_some_names(taken, 0.5)
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        for op in taken:
            op.apply()
        self._step("after", "sync_dir", path)

    def lock(self, path: str) -> SimFile:
        file = self.open(path, create=True)
        if file.node in self._locks:
            file.close()
            raise DirectoryLockedError(path)
        self._locks[file.node] = file
        return file

    # What happens to a machine.

    def crash(self, *, lose_unsynced: bool = False) -> CrashReport:
        """Cut the power and switch it on again: what survives is the disk's new state.

        Everything that was open or locked is dead. With `lose_unsynced` nothing pending survives.
        """
        rng, faults = self._rng, self.faults
        if lose_unsynced:
            plan, name_drop_rate = CrashPlan(1.0, 0.0, 0.0, 0.0, False), 1.0
        else:
            plan, name_drop_rate = _draw_plan(faults, rng)
        names_kept = self._keep_some_names(self._pending_names, name_drop_rate)
        names_dropped = len(self._pending_names) - names_kept
        self._pending_names = []
        counts = Survivors()
        for node in self._dirty:
            survive(node, plan, rng, counts)
            node.revert()
        self._dirty.clear()
        self.used_bytes = 0
        self._revert(self._root)
        self.crash_count += 1
        self._end_life()
        return CrashReport(counts.kept, counts.dropped, counts.torn, names_kept, names_dropped)

    def kill(self) -> None:
        """The process dies, the machine lives: handles and locks are gone, nothing else."""
        self.used_bytes = 0
        for _, node in _walk(self._root, ""):
            node.handles = 0
            self.used_bytes += node.image.size_bytes
        self._end_life()

    # What tests look at and damage.

    @contextlib.contextmanager
    def turned_off(self) -> Iterator[None]:
        """Whoever touches it meanwhile gets PowerLoss, without any other effect."""
        powered, self._powered = self._powered, False
        try:
            yield
        finally:
            self._powered = powered

    def contents(self) -> dict[str, bytes]:
        """Every file as a reader sees it, by path."""
        return {
            path: node.image.read(node.image.size_bytes, 0) for path, node in _walk(self._root, "")
        }

    def flip(self, path: str, position: int, mask: int) -> None:
        """Damage one byte of a file, on the platter and for readers (bit rot)."""
        node = self._find(path)
        assert isinstance(node, FileNode), path
        for image in (node.image, node.durable):
            old = image.read(1, position)
            if old:
                image.apply((WRITE, position, bytes([old[0] ^ mask])))

    # For SimFile.

    def check(self, life: int) -> None:
        """Raise PowerLoss to code of a life that has ended."""
        if life != self._life or not self._powered:
            raise PowerLoss("a handle of a machine that lost its power")

    def alive(self, life: int) -> bool:
        """Is a handle of that life still worth closing?"""
        return life == self._life

    def write(self, node: FileNode, data: bytes, position: int, path: str) -> None:
        if position < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        image = node.image
        error = self._write_fault()
        grows = position + len(data) - image.size_bytes
        room = None
        if self.faults.full_after_bytes is not None and grows > 0:
            room = max(0, self.faults.full_after_bytes - self.used_bytes)
        if room is not None and grows > room:
            error = errno.ENOSPC
            data = data[: max(0, len(data) - (grows - room))]
        if error:
            data = data[: self._rng.randint(0, len(data))]
        if data:
            self._change(node, (WRITE, position, data))
            self.written_bytes += len(data)
        if self.latency is not None:
            self.latency("write", len(data))
        if error:
            raise OSError(error, os.strerror(error), path)

    def resize(self, node: FileNode, size_bytes: int) -> None:
        self._change(node, (RESIZE, size_bytes, b""))

    def extend(self, node: FileNode, size_bytes: int, path: str) -> None:
        grows = size_bytes - node.image.size_bytes
        if grows <= 0:
            return
        self._count_write(path)
        capacity = self.faults.full_after_bytes
        if capacity is not None and self.used_bytes + grows > capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        self._change(node, (EXTEND, size_bytes, b""))

    def read(self, node: FileNode, size_bytes: int, position: int) -> bytes:
        if position < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.read_count += 1
        if self.latency is not None:
            self.latency("read", size_bytes)
        return node.image.read(size_bytes, position)

    def misses_cache(self) -> bool:
        rate = self.faults.cache_miss_rate
        return rate > 0 and self._rng.random() < rate

    def sync(self, node: FileNode, path: str) -> None:
        self._step("before", "sync", path)
        if node.sync_failed:
            self.used_after_failed_sync_count += 1
        if self._count_sync("sync"):
            survive(node, CrashPlan(0.5, 0.2, 0.0, 0.0, False), self._rng, Survivors())
            node.sync_failed = True
            self._dirty[node] = None
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        node.settle()
        if not node.sync_failed:
            self._dirty.pop(node, None)
        self._step("after", "sync", path)

    def closed(self, file: SimFile) -> None:
        """A handle of this life was closed."""
        node = file.node
        if self._locks.get(node) is file:
            del self._locks[node]
        node.handles -= 1
        self._forget_if_unused(node)

    # Inside.

    def _check(self) -> None:
        if not self._powered:
            raise PowerLoss("the machine is off")

    def _step(self, when: str, kind: str, path: str) -> None:
        if self.crash_points is not None:
            try:
                self.crash_points(when, kind, path)
            except PowerLoss:
                self._powered = False
                raise

    def _write_fault(self) -> int:
        """Count a write; the errno it shall fail with, or 0."""
        self.write_count += 1
        faults = self.faults
        if self.write_count == faults.fail_at_write:
            return errno.EIO
        first = faults.full_at_write
        if first is not None and first <= self.write_count < first + faults.full_for_writes:
            return errno.ENOSPC
        return 0

    def _count_write(self, path: str) -> None:
        error = self._write_fault()
        if error:
            raise OSError(error, os.strerror(error), path)

    def _count_sync(self, kind: str) -> bool:
        self.sync_count += 1
        if self.latency is not None:
            self.latency(kind, 0)
        return self.sync_count == self.faults.fail_at_sync

    def _change(self, node: FileNode, op: Op) -> None:
        image = node.image
        before = image.size_bytes
        image.apply(op)
        self.used_bytes += image.size_bytes - before
        node.pending.append(op)
        self._dirty[node] = None
        if node.sync_failed:
            self.used_after_failed_sync_count += 1

    def _change_names(self, op: NameOp) -> None:
        self._check()
        if op.source is not None:
            del op.source[0].entries[op.source[1]]
        if op.target is None:
            self._unlinked(op.node)
        else:
            directory, name = op.target
            if name in directory.entries:
                self._unlinked(directory.entries[name])
            directory.entries[name] = op.node
        self._pending_names.append(op)
        if self.latency is not None:
            self.latency("name", 0)

    def _unlinked(self, node: Node) -> None:
        if isinstance(node, FileNode):
            node.linked = False
            self._forget_if_unused(node)

    def _forget_if_unused(self, node: FileNode) -> None:
        """Free the space. Its durable image stays: the removal itself still pends."""
        if not node.linked and not node.handles:
            self.used_bytes -= node.image.size_bytes

    def _keep_some_names(self, ops: Sequence[NameOp], drop_rate: float) -> int:
        """Let some of the operations reach the platter, keeping the order on each name."""
        dropped = Touched()
        kept = 0
        for op in ops:
            if self._rng.random() < drop_rate or dropped.hold(op):
                dropped.add(op)
            else:
                op.apply()
                kept += 1
        return kept

    def _revert(self, directory: DirectoryNode) -> None:
        directory.entries = dict(directory.durable)
        for node in directory.entries.values():
            if isinstance(node, DirectoryNode):
                self._revert(node)
            else:
                node.linked = True
                node.handles = 0
                self.used_bytes += node.image.size_bytes

    def _end_life(self) -> None:
        self._locks.clear()
        self._life += 1
        self._powered = True

    def _find(self, path: str) -> Node:
        self._check()
        node: Node = self._root
        for name in _parts(path):
            if isinstance(node, FileNode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            try:
                node = node.entries[name]
            except KeyError:
                text = os.strerror(errno.ENOENT)
                raise FileNotFoundError(errno.ENOENT, text, path) from None
        return node

    def _directory(self, path: str) -> DirectoryNode:
        node = self._find(path)
        if isinstance(node, FileNode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return node

    def _place(self, path: str) -> Place:
        parts = _parts(path)
        assert parts, f"{path!r} names no entry of a directory"
        return self._directory("/".join(parts[:-1])), parts[-1]


class SimFile:
    """An open file of a SimDisk; dead after a crash."""

    __slots__ = ("_closed", "_disk", "_life", "node", "path")

    def __init__(self, disk: SimDisk, path: str, node: FileNode, life: int) -> None:
        self._disk = disk
        self.path = path
        self.node = node
        self._life = life
        self._closed = False

    def pread(self, size_bytes: int, position: int) -> bytes:
        self._check()
        return self._disk.read(self.node, size_bytes, position)

    def pread_cached(self, size_bytes: int, position: int) -> bytes | None:
        self._check()
        if self._disk.misses_cache():
            return None
        return self._disk.read(self.node, size_bytes, position)

    def pwrite(self, data: Buffer, position: int) -> None:
        self._check()
        self._disk.write(self.node, bytes(data), position, self.path)

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> None:
        self._check()
        self._disk.write(self.node, b"".join(buffers), position, self.path)

    def pwritev_durably(self, buffers: Sequence[Buffer], position: int) -> None:
        self.pwritev(buffers, position)
        self.sync()

    def begin_sync(self, position: int, size_bytes: int) -> None:
        self._check()  # what is on its way is as lost in a power cut as what is not

    def is_allocated(self) -> bool:
        return True

    def truncate(self, size_bytes: int) -> None:
        self._check()
        self._disk.resize(self.node, size_bytes)

    def preallocate(self, size_bytes: int) -> None:
        self._check()
        self._disk.extend(self.node, size_bytes, self.path)

    def size(self) -> int:
        self._check()
        return self.node.image.size_bytes

    def sync(self) -> None:
        self._check()
        self._disk.sync(self.node, self.path)

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        """Close; idempotent, and quiet after a crash so that `finally` blocks may run."""
        if self._closed:
            return
        self._closed = True
        if self._disk.alive(self._life):
            self._disk.closed(self)

    def _check(self) -> None:
        self._disk.check(self._life)
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    assert ".." not in parts, path
    return parts


def _walk(directory: DirectoryNode, prefix: str) -> Iterator[tuple[str, FileNode]]:
    for name, node in sorted(directory.entries.items()):
        if isinstance(node, DirectoryNode):
            yield from _walk(node, f"{prefix}/{name}")
        else:
            yield f"{prefix}/{name}", node


def _check_rename(node: Node, target_place: Place, source: str, target: str) -> None:
    """Raise what POSIX says about directories and files in each other's place."""
    directory, name = target_place
    there = directory.entries.get(name)
    old, new = _parts(source), _parts(target)
    number = 0
    if old[: len(new)] == new:
        number = errno.ENOTEMPTY
    elif isinstance(node, DirectoryNode):
        if new[: len(old)] == old:
            number = errno.EINVAL
        elif isinstance(there, FileNode):
            number = errno.ENOTDIR
        elif there is not None and there.entries:
            number = errno.ENOTEMPTY
    elif isinstance(there, DirectoryNode):
        number = errno.EISDIR
    if number:
        raise OSError(number, os.strerror(number), source, None, target)


def _draw_plan(faults: DiskFaults, rng: random.Random) -> tuple[CrashPlan, float]:
    """How this crash treats writes, and the share of names it drops.

    One fixed rate would almost never show the extremes: all lost, all there, all but the last.
    """
    in_order = faults.drop_rate is None and rng.random() < 0.3
    drop_rate = faults.drop_rate
    if drop_rate is None:
        drop_rate = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    tear_rate = faults.tear_rate
    if tear_rate is None:
        tear_rate = rng.choice((0.0, 0.1, 0.5)) if not in_order else 0.8
    name_drop_rate = faults.name_drop_rate
    if name_drop_rate is None:
        name_drop_rate = rng.choice((0.0, 0.2, 0.5, 1.0))
    plan = CrashPlan(drop_rate, tear_rate, faults.zeros_rate, faults.garbage_rate, in_order)
    return plan, name_drop_rate
