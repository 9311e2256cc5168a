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

import fcntl
import os
from collections.abc import Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class DirectoryLockedError(Exception):
    """Another process holds the lock file of this data directory."""


class File(Protocol):
    """An open file. Positions and sizes are in bytes. Not safe for concurrent appends."""

    path: str

    def pread(self, size_bytes: int, position: int) -> bytes:
        """Read up to `size_bytes` at `position`; shorter only at the end of the file."""
        ...

    def pread_cached(self, size_bytes: int, position: int) -> bytes | None:
        """As `pread`, but only from memory: None where it would have to wait for the disk."""
        ...

    def pwrite(self, data: Buffer, position: int) -> None:
        """Write all of `data` at `position`. Raises OSError; on ENOSPC a prefix may be written."""
        ...

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> None:
        """Write all buffers back to back at `position`; errors as for `pwrite`."""
        ...

    def truncate(self, size_bytes: int) -> None:
        """Cut or extend (with zeros) to exactly `size_bytes`."""
        ...

    def preallocate(self, size_bytes: int) -> None:
        """Reserve space so that the file is at least `size_bytes` long; new bytes read as zeros."""
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
        """Open for reading and writing. `create` makes it where missing, `exclusive` insists.

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

    def sync_dir(self, path: str) -> None: ...

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
        except (BlockingIOError, OSError, AttributeError):
            return None
        if count < size_bytes and position + count < self.size():
            return None
        return bytes(buffer) if count == size_bytes else bytes(buffer[:count])

    def pwrite(self, data: Buffer, position: int) -> None:
        written = os.pwrite(self._fd, data, position)
        if written != len(data):
            view = memoryview(data)
            while written < len(view):
                written += os.pwrite(self._fd, view[written:], position + written)

    def pwritev(self, buffers: Sequence[Buffer], position: int) -> None:
        total = sum(map(len, buffers))
        written = os.pwritev(self._fd, buffers, position)
        if written != total:
            self.pwrite(b"".join(buffers)[written:], position + written)

    def truncate(self, size_bytes: int) -> None:
        os.ftruncate(self._fd, size_bytes)

    def preallocate(self, size_bytes: int) -> None:
        have = self.size()
        if have < size_bytes:
            os.posix_fallocate(self._fd, have, size_bytes - have)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def fileno(self) -> int | None:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RealFiles:
    """The operating system's files."""

    def open(self, path: str, *, create: bool = False, exclusive: bool = False) -> RealFile:
        flags = os.O_RDWR | os.O_CLOEXEC
        if create:
            flags |= os.O_CREAT
        if exclusive:
            flags |= os.O_EXCL
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
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock(self, path: str) -> RealFile:
        file = self.open(path, create=True)
        try:
            fcntl.flock(file._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise DirectoryLockedError(path) from error
        return file
