"""The file interface: every byte that a daemon keeps goes through it.

Owns the vocabulary (`Files`, `File`) and the real implementation. Storage code takes a `Files`
at construction and never opens a path by itself; the simulated disk implements the same two
protocols, forgets what was not synced and tears the last write.

Durability rules a caller relies on, on both implementations:

- `File.sync()` makes the *content and size* of that file durable.
- `Files.sync_dir(path)` makes the *names* in that directory durable: creations, renames, unlinks.
- Until then a crash may keep, drop or tear (at any byte) each write, independently.
- After a failed sync the file is lost for good: never retry it, stop (fsyncgate).
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol

from duolog_protocol.errors import DataDirectoryError

Buffer = bytes | bytearray | memoryview

MAX_BUFFERS: Final = 1024
"""IOV_MAX of Linux and macOS: one system call takes no more buffers."""
_NO_PREALLOCATION: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_WRITE_THROUGH: Final[int | None] = getattr(os, "RWF_DSYNC", None)
"""Linux: sync with the write what is written."""
_NO_WRITE_THROUGH: Final = _NO_PREALLOCATION
_BEGIN_WRITE_BACK: Final[int | None] = os.POSIX_FADV_DONTNEED if sys.platform == "linux" else None
"""Linux: begins to write what is dirty. What it then drops from the cache is clean."""
_ZEROS: Final = memoryview(bytes(1024 * 1024))


class DirectoryLockedError(DataDirectoryError):
    """Another process, or another owner in this one, holds the lock file at `path`."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is locked: another process uses this data directory")
        self.path = path


class File(Protocol):
    """An open file. Positions and sizes are in bytes. Not safe for concurrent appends.

    Its owner closes it once no other thread reads it any more: a descriptor is reused at once.
    """

    path: str

    def pread(self, size_bytes: int, position: int) -> bytes:
        """Read up to `size_bytes` at `position`; shorter only at the end of the file."""
        ...

    def pread_cached(self, size_bytes: int, position: int) -> bytes | None:
        """As `pread`, but only from memory: None where it would have to wait for the disk.

        None also where the system cannot tell, or the read fails: `pread` then has the answer.
        """
        ...

    def pwrite(self, data: Buffer, position: int) -> None:
        """Write all of `data` at `position`. Raises OSError; on ENOSPC a prefix may be written."""
        ...

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> None:
        """Write all buffers back to back at `position`; errors as for `pwrite`."""
        ...

    def pwritev_durably(self, buffers: Sequence[Buffer], position: int) -> None:
        """As `pwritev` and then a `sync` of what it wrote, in one call of the system where it can.

        What was written before and not synced need not be durable. Raises OSError of either; where
        it is not for want of space, the file must not be used again.
        """
        ...

    def begin_sync(self, position: int, size_bytes: int) -> None:
        """Begin to write what is dirty there, without waiting: a `sync` soon after takes less time.

        Durable only after that `sync`, which also tells what failed. Where the system has no such
        thing, nothing happens.
        """
        ...

    def truncate(self, size_bytes: int) -> None:
        """Cut or extend (with zeros) to exactly `size_bytes`."""
        ...

    def preallocate(self, size_bytes: int) -> None:
        """Reserve space so that the file is at least `size_bytes` long; new bytes read as zeros.

        Where the system can reserve, they are written as zeros and synced, so that a later write
        changes nothing that the file system keeps of the file, and its sync is one of data.
        Elsewhere the file only grows: rely on neither. Raises OSError; on ENOSPC the file may have
        grown by a part of it.
        """
        ...

    def is_allocated(self) -> bool:
        """There is space on the disk for every byte of it, also for those that were skipped.

        False also where nobody can tell: macOS, file systems that compress.
        """
        ...

    def size(self) -> int: ...

    def sync(self) -> None:
        """Make content and size durable. Raises OSError: then the file must not be used again."""
        ...

    def fileno(self) -> int | None:
        """The real descriptor for zero-copy, None where there is none (simulation)."""
        ...

    def close(self) -> None:
        """Close; idempotent. Does not sync."""
        ...


class Files(Protocol):
    """A file system seen through absolute or relative path strings."""

    def open(self, path: str, *, create: bool = False, exclusive: bool = False) -> File:
        """Open for reading and writing. `create` makes it where missing, `exclusive` must make it.

        Raises FileNotFoundError, FileExistsError, OSError.
        """
        ...

    def exists(self, path: str) -> bool: ...

    def list(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        ...

    def mkdir(self, path: str) -> None:
        """Create a directory and its parents; fine when it is there."""
        ...

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Atomically replace `target`; durable after `sync_dir`."""
        ...

    def unlink(self, path: str) -> None: ...

    def sync_dir(self, path: str) -> None:
        """Make the names in this directory durable, not its own name in its parent."""
        ...

    def lock(self, path: str) -> File:
        """Take the exclusive lock file at `path` until it is closed or the process ends.

        Raises DirectoryLockedError when another process (or another owner in this one) holds it.
        """
        ...


class RealFile:
    """A file of the operating system."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def pread(self, size_bytes: int, position: int) -> bytes:
        data = os.pread(self._fd, size_bytes, position)
        if len(data) == size_bytes or not data:
            return data
        pieces = [data]
        have = len(data)
        while have < size_bytes:
            data = os.pread(self._fd, size_bytes - have, position + have)
            if not data:
                break
            pieces.append(data)
            have += len(data)
        return b"".join(pieces)

    def pread_cached(self, size_bytes: int, position: int) -> bytes | None:
        buffer = bytearray(size_bytes)
        try:
            count = os.preadv(self._fd, [buffer], position, os.RWF_NOWAIT)
        except (OSError, AttributeError):  # EAGAIN, EOPNOTSUPP; no such flag on this system
            return None
        if count < size_bytes:
            if position + count < self.size():
                return None
            del buffer[count:]
        return bytes(buffer)

    def pwrite(self, data: Buffer, position: int) -> None:
        written = os.pwrite(self._fd, data, position)
        if written != len(data):
            self._write_rest(memoryview(data)[written:], position + written)

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> None:
        for first in range(0, len(buffers), MAX_BUFFERS):
            some = buffers[first : first + MAX_BUFFERS] if len(buffers) > MAX_BUFFERS else buffers
            total = sum(map(len, some))
            written = os.pwritev(self._fd, some, position)
            if written != total:
                rest = memoryview(b"".join(some))[written:]
                self._write_rest(rest, position + written)
            position += total

    def pwritev_durably(self, buffers: Sequence[Buffer], position: int) -> None:
        if len(buffers) <= MAX_BUFFERS and _WRITE_THROUGH is not None:
            try:
                written = os.pwritev(self._fd, buffers, position, _WRITE_THROUGH)
            except OSError as error:
                if error.errno not in _NO_WRITE_THROUGH:
                    raise
            else:
                total = sum(map(len, buffers))
                if written == total:
                    return
                self._write_rest(memoryview(b"".join(buffers))[written:], position + written)
                self.sync()
                return
        self.pwritev(buffers, position)
        self.sync()

    def _write_rest(self, rest: memoryview, position: int) -> None:
        """After a short write: the next one goes on, or raises what cut the first one short."""
        while rest:
            written = os.pwrite(self._fd, rest, position)
            if written == 0:  # POSIX leaves this open; without it the loop had no bound
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            rest = rest[written:]
            position += written

    def truncate(self, size_bytes: int) -> None:
        os.ftruncate(self._fd, size_bytes)

    def begin_sync(self, position: int, size_bytes: int) -> None:
        if _BEGIN_WRITE_BACK is not None:
            with suppress(OSError):  # a hint: what the write came to, `sync` tells
                os.posix_fadvise(self._fd, position, size_bytes, _BEGIN_WRITE_BACK)

    def preallocate(self, size_bytes: int) -> None:
        have = self.size()
        if have >= size_bytes:
            return
        try:
            os.posix_fallocate(self._fd, have, size_bytes - have)
        except AttributeError:  # macOS
            os.ftruncate(self._fd, size_bytes)
        except OSError as error:
            if error.errno not in _NO_PREALLOCATION:
                raise
            os.ftruncate(self._fd, size_bytes)
        else:
            for position in range(have, size_bytes, len(_ZEROS)):
                self.pwrite(_ZEROS[: size_bytes - position], position)
            self.sync()

    def is_allocated(self) -> bool:
        status = os.fstat(self._fd)
        return status.st_blocks * 512 >= status.st_size

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def sync(self) -> None:
        if sys.platform == "darwin":  # there fsync leaves the data in the drive's cache
            fcntl.fcntl(self._fd, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(self._fd)  # data, and of the metadata what is needed to read it: the size

    def fileno(self) -> int | None:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class RealFiles:
    """The operating system's files."""

    def open(self, path: str, *, create: bool = False, exclusive: bool = False) -> RealFile:
        flags = os.O_RDWR | os.O_CLOEXEC
        if create:
            flags |= os.O_CREAT
        if exclusive:
            flags |= os.O_CREAT | os.O_EXCL
        return RealFile(path, os.open(path, flags, 0o640))

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def list(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def mkdir(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_dir(self, path: str) -> None:
        fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock(self, path: str) -> RealFile:
        # flock belongs to the open file, so a second owner in this process is refused as well;
        # it ends with the process, however that ends.
        file = self.open(path, create=True)
        try:
            fcntl.flock(file._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise DirectoryLockedError(path) from error
        except OSError:  # a file system without locks: say so, not that somebody holds it
            file.close()
            raise
        return file


_NOT_OURS: Final = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL))


def make_directory(files: Files, path: str) -> None:
    """Create a directory and its missing parents, with names that survive a power failure.

    Also where all of them are there: a process that was killed may have made them a moment ago,
    without coming to make their names durable.
    """
    path = path.rstrip("/") or "/"
    missing = set()
    at = path
    while at not in {"/", "", "."} and not files.exists(at):
        missing.add(at)
        at = _parent(at)
    files.mkdir(path)
    at = path
    while at not in {"/", "", "."}:
        try:
            files.sync_dir(_parent(at))
        except OSError as error:
            if at in missing or error.errno not in _NOT_OURS:
                raise
            break  # what is read-only, or not for us to read, is not where something was made
        at = _parent(at)


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
