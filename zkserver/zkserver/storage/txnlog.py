"""The transaction log: files of groups of records, in zxid order, without a gap.

Owns the files `log.<zxid>` of a data directory, where <zxid> is the last one *before* the file.
Records are opaque but for their zxid, the first eight bytes. It never retries a failed sync and
never forgives damage that a power loss cannot explain. Source: ZooKeeper `FileTxnLog`; torn tail
or corruption: Protocol-Aware Recovery (FAST'18). Bytes: FORMAT.md.

    recover -> open -> append_durably (or append, sync) ... mark, when it is quiet ... -> close
                 |-> offline   after a failed write, truncation or sync; for good

All methods block and belong to one thread at a time (the disk executor's, or its owner's while that
one is idle); the properties are plain values that may be read from any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Final, NamedTuple

from duolog_protocol.errors import CorruptRecordError, DiskFullError, LogOfflineError
from duolog_protocol.txns import zxid_of
from duolog_runtime.files import File, Files

from .epoch_files import NO_SPACE
from .file_header import (
    HEADER_BYTES,
    MARKER_BYTES,
    Identity,
    encode_header,
    read_header,
)
from .groups import GROUP_HEADER_BYTES, Group, GroupReader, encode_group, group_bytes

LOG_MAGIC: Final = b"DUOZKLOG"
_PREFIX: Final = "log."


class LogOptions(NamedTuple):
    """Sizes of the log's files."""

    file_bytes: int = 64 * 1024 * 1024
    """A file that would grow beyond is rolled; a group larger than that has a file alone."""
    preallocate_bytes: int = 4 * 1024 * 1024
    """Step in which a file's space is reserved (ZooKeeper's preAllocSize, in smaller steps)."""


def log_name(previous_zxid: int) -> str:
    """The name of the file whose records come after `previous_zxid`."""
    return f"{_PREFIX}{previous_zxid:016x}"


def numbered(files: Files, directory: str, prefix: str) -> list[int]:
    """The numbers in the names `prefix<16 hex digits>` of a directory, ascending."""
    found = []
    for name in files.list(directory):
        digits = name.removeprefix(prefix)
        if len(digits) == 16 and digits != name and not set(digits) - set("0123456789abcdef"):
            found.append(int(digits, 16))
    return sorted(found)


def log_files(files: Files, directory: str) -> list[int]:
    """The numbers of the log files of a directory, ascending."""
    return numbered(files, directory, _PREFIX)


def replace_logs(files: Files, directory: str, identity: Identity, rng: Random, zxid: int) -> None:
    """Delete all log files, then make an empty one that begins after `zxid`. Raises OSError."""
    for base in log_files(files, directory):
        files.unlink(f"{directory}/{log_name(base)}")
    files.sync_dir(directory)
    TxnLog.create(files, directory, identity, rng, zxid)


class TxnLog:
    """The log of one server."""

    def __init__(
        self,
        files: Files,
        directory: str,
        identity: Identity,
        rng: Random,
        options: LogOptions | None = None,
    ) -> None:
        """Look at the files; `recover` must be run through before the first append.

        Raises CorruptRecordError, DataDirectoryError.
        """
        self._files = files
        self._directory = directory
        self._identity = identity
        self._rng = rng
        self._options = options or LogOptions()
        self._bases = log_files(files, directory)
        """Number of every file: the zxid before its first record. Never empty."""
        if not self._bases:
            raise CorruptRecordError(f"{directory}/{_PREFIX}*", 0, "all log files are missing")
        self._file: File | None = None
        """The last file, open for appending; None before recovery and after close."""
        self._marker = b""
        self._position = 0
        """End of the last whole group of the last file."""
        self._synced_position = 0
        """What of the last file is known to be durable (<= _position)."""
        self._marked_position = 0
        """Where the last mark was written, or had no space; 0 once a group went there."""
        self._allocated = 0
        """Size of the last file; what lies behind _position reads as zeros, or as a mark."""
        self._is_reserved = False
        """There is space for all of `_allocated`: a sync does not fail for want of it."""
        self.last_zxid = self._bases[-1]
        """The last zxid appended."""
        self.durable_zxid = self._bases[-1]
        """The last zxid that a sync covered (<= last_zxid)."""
        self.offline = ""
        """Why nothing works any more, or empty."""

    @staticmethod
    def create(
        files: Files, directory: str, identity: Identity, rng: Random, previous_zxid: int
    ) -> None:
        """Make an empty log file; durable, name included, when it returns. Raises OSError."""
        path = f"{directory}/{log_name(previous_zxid)}"
        marker = rng.randbytes(MARKER_BYTES)
        file = files.open(path + ".tmp", create=True)
        try:
            file.truncate(0)
            file.pwrite(encode_header(LOG_MAGIC, identity, previous_zxid, marker), 0)
            file.sync()
        finally:
            file.close()
        files.rename(path + ".tmp", path)
        files.sync_dir(directory)

    @property
    def first_zxid_before(self) -> int:
        """The log holds every record after this zxid."""
        return self._bases[0]

    def recover(self, after_zxid: int) -> Iterator[bytes]:
        """Yield the records after `after_zxid`; at the end cut a torn tail and open for appending.

        What was yielded is durable when the iteration ends. Files that end at or before
        `after_zxid` are not read. Raises CorruptRecordError, DataDirectoryError, OSError.
        """
        assert self._file is None, "recovered twice"
        first = self._index_of(after_zxid)
        for base in self._bases[:first]:
            self._open(base)[0].close()
        for index in range(first, len(self._bases) - 1):
            file, marker = self._open(self._bases[index])
            try:
                reader = GroupReader(file, marker)
                end, last = HEADER_BYTES, self._bases[index]
                for group in reader.groups(last):
                    end, last = group.end, group.last_zxid
                    yield from _after(group.records(file.path), after_zxid)
                if last != self._bases[index + 1]:
                    raise CorruptRecordError(
                        file.path,
                        end,
                        f"the records from here to zxid {self._bases[index + 1]:#x}, "
                        "where the next file goes on, are damaged or missing",
                    )
            finally:
                file.close()
        yield from self._recover_last(after_zxid)
        if self.last_zxid < after_zxid:
            raise CorruptRecordError(
                f"{self._directory}/{log_name(self._bases[-1])}",
                self._position,
                f"the log ends at zxid {self.last_zxid:#x}, but it was durable up to "
                f"{after_zxid:#x}",
            )

    def has_space_for(self, size_bytes: int) -> bool:
        """Whether a group of that size goes where space is reserved for it: no sync fails for want
        of it, and `append` does nothing but write."""
        end = self._position + size_bytes
        return (
            self._is_reserved
            and end + GROUP_HEADER_BYTES <= self._allocated
            and end <= self._options.file_bytes
        )

    def append(self, records: Sequence[bytes], last_zxid: int) -> None:
        """Write the records as one group and begin their sync. Not durable before `sync`.

        Raises DiskFullError (the log is as before) and LogOfflineError.
        """
        self._append(records, last_zxid, durably=False)

    def append_durably(self, records: Sequence[bytes], last_zxid: int) -> None:
        """As `append` and `sync`, in fewer calls.

        Everything before was durable: so where there is no space for the group, nothing but the
        group can be missing, whatever it was that failed, the write or its sync.
        """
        assert self._synced_position == self._position, (self._synced_position, self._position)
        self._append(records, last_zxid, durably=True)
        self._synced_position = self._position
        self.durable_zxid = self.last_zxid

    def _append(self, records: Sequence[bytes], last_zxid: int, *, durably: bool) -> None:
        assert records, "an empty append"
        assert last_zxid > self.last_zxid, (last_zxid, self.last_zxid)
        first_zxid = zxid_of(records[0])
        assert first_zxid > self.last_zxid, (first_zxid, self.last_zxid)
        self._check_usable()
        size_bytes = group_bytes(records)
        if self._position + size_bytes > self._options.file_bytes:
            self.roll()
        file = self._file
        assert file is not None
        buffers = encode_group(
            self._marker, records, self.last_zxid, last_zxid, self._synced_position
        )
        end = self._position + size_bytes
        self._marked_position = 0  # the group goes where the mark is
        try:
            if end + GROUP_HEADER_BYTES > self._allocated:
                self._reserve(file, end + GROUP_HEADER_BYTES)
            if durably:
                file.pwritev_durably(buffers, self._position)
            else:
                file.pwritev(buffers, self._position)
                file.begin_sync(self._position, size_bytes)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise self._fail("cannot write", file.path, error) from error
            self._take_back(file)
            raise DiskFullError(f"no space to append to {file.path}") from error
        self._allocated = max(self._allocated, end)
        self._position = end
        self.last_zxid = last_zxid

    def sync(self) -> None:
        """Make everything appended durable. Raises LogOfflineError: then nothing works any more."""
        self._check_usable()
        file = self._file
        assert file is not None
        try:
            file.sync()
        except OSError as error:
            raise self._fail("cannot sync", file.path, error) from error
        self._synced_position = self._position
        self.durable_zxid = self.last_zxid

    def mark(self) -> None:
        """Say, where the next group will be, that everything before is durable; once is enough.

        Not synced: it costs one small write, and what it is for is damage that comes later. Each
        group says it of those before it, so only the last one needs it. Raises LogOfflineError.
        """
        file, position = self._file, self._position
        if file is None:
            return  # `close` has left a mark
        self._check_usable()
        assert self._synced_position == position, (self._synced_position, position)
        if position == self._marked_position or position + GROUP_HEADER_BYTES > self._allocated:
            return
        mark = encode_group(self._marker, (), self.last_zxid, self.last_zxid, position)
        try:
            file.pwrite(b"".join(mark), position)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise self._fail("cannot write", file.path, error) from error
        self._marked_position = position

    def roll(self) -> None:
        """Go on in a new file; nothing happens while the last one is empty.

        Raises DiskFullError (the log is as before) and LogOfflineError.
        """
        self._check_usable()
        if self._position == HEADER_BYTES:
            return
        if self._synced_position < self._position:
            self.sync()
        file = self._file
        assert file is not None
        base = self.last_zxid
        try:
            self.create(self._files, self._directory, self._identity, self._rng, base)
            fresh, marker = self._open(base)
        except OSError as error:
            path = f"{self._directory}/{log_name(base)}"
            if error.errno in NO_SPACE and not self._files.exists(path):
                raise DiskFullError(f"no space for a new log file in {self._directory}") from error
            raise self._fail("cannot make", log_name(base), error) from error
        try:
            file.truncate(self._position)
        except OSError as error:
            raise self._fail("cannot truncate", file.path, error) from error
        file.close()
        self._bases.append(base)
        self._start_at(fresh, marker, HEADER_BYTES)

    def read_from(self, zxid: int) -> Iterator[bytes]:
        """The durable records after `zxid`, which must not be before `first_zxid_before`.

        Raises CorruptRecordError, OSError.
        """
        assert zxid >= self.first_zxid_before, (zxid, self.first_zxid_before)
        until = self.durable_zxid
        for base in self._bases[self._index_of(zxid) :]:
            file, marker = self._open(base)
            try:
                for group in GroupReader(file, marker).groups(base):
                    if group.last_zxid > until:
                        return
                    if group.last_zxid > zxid:
                        yield from _after(group.records(file.path), zxid)
            finally:
                file.close()

    def open_after(self, zxid: int) -> tuple[int, File, bytes]:
        """The file that holds, or is to hold, what comes after `zxid`: its number, itself, its
        marker. Raises CorruptRecordError where the log begins later, DataDirectoryError, OSError.
        """
        base = self._bases[self._index_of(zxid)]
        return base, *self._open(base)

    def truncate_to(self, zxid: int) -> None:
        """Forget every record after `zxid`, durably; a crash in between leaves a longer prefix.

        Raises DiskFullError: to be called again until there is space, and nothing else before;
        LogOfflineError: also where the log does not reach back to `zxid`.
        """
        if self.offline:
            raise LogOfflineError(self.offline)
        if zxid >= self.last_zxid:
            return
        if zxid < self.first_zxid_before:
            raise self._fail("cannot truncate", self._directory, OSError(f"zxid {zxid:#x} is gone"))
        self._close_file()
        path = self._directory
        try:
            while self._bases[-1] > zxid:  # newest first, so that a prefix is left at any moment
                path = f"{self._directory}/{log_name(self._bases[-1])}"
                self._files.unlink(path)
                self._files.sync_dir(self._directory)
                self._bases.pop()
            path = f"{self._directory}/{log_name(self._bases[-1])}"
            self._cut_file(self._bases[-1], zxid)
        except OSError as error:
            if error.errno in NO_SPACE:  # a group that is cut is written anew
                raise DiskFullError(f"no space to truncate {path}") from error
            raise self._fail("cannot truncate", path, error) from error

    def restart_at(self, zxid: int) -> None:
        """Forget everything, and go on after `zxid`: a durable snapshot holds what is before.

        Raises DiskFullError: to be called again until there is space, and nothing else before;
        LogOfflineError.
        """
        if self.offline:
            raise LogOfflineError(self.offline)
        self._close_file()
        try:
            replace_logs(self._files, self._directory, self._identity, self._rng, zxid)
            fresh, marker = self._open(zxid)
        except OSError as error:
            if error.errno in NO_SPACE:
                text = f"no space for {self._directory}/{log_name(zxid)}"
                raise DiskFullError(text) from error
            raise self._fail("cannot restart", log_name(zxid), error) from error
        self._bases = [zxid]
        self.last_zxid = self.durable_zxid = zxid
        self._start_at(fresh, marker, HEADER_BYTES)

    def purge(self, before_zxid: int) -> list[str]:
        """Delete the files that hold nothing after `before_zxid`; return their names.

        The last file stays. Raises OSError: harmless, the files are deleted next time.
        """
        removed = []
        while len(self._bases) > 1 and self._bases[1] <= before_zxid:
            name = log_name(self._bases[0])
            self._files.unlink(f"{self._directory}/{name}")
            self._bases.pop(0)
            removed.append(name)
        if removed:
            self._files.sync_dir(self._directory)
        return removed

    def close(self) -> None:
        """Leave a durable mark behind the last group, so that any damage will be told from a tear.

        Idempotent; nothing appended but not synced is made durable by it.
        """
        file = self._file
        if file is None:
            return
        try:
            if not self.offline and self._synced_position == self._position:
                self.mark()
                file.sync()
        except OSError as error:
            self._fail("cannot sync", file.path, error)
        except LogOfflineError:
            pass  # `offline` tells
        finally:
            self._file = None
            file.close()

    def _index_of(self, zxid: int) -> int:
        """The file that holds what comes after `zxid`."""
        if self._bases[0] > zxid:
            raise CorruptRecordError(
                f"{self._directory}/{log_name(self._bases[0])}",
                0,
                f"the log begins after zxid {self._bases[0]:#x}: "
                f"the records from {zxid:#x} to there are missing",
            )
        index = len(self._bases) - 1
        while self._bases[index] > zxid:
            index -= 1
        return index

    def _open(self, base: int) -> tuple[File, bytes]:
        path = f"{self._directory}/{log_name(base)}"
        file = self._files.open(path)
        try:
            _, number, marker = read_header(file, LOG_MAGIC, self._identity)
            if number != base:
                raise CorruptRecordError(
                    path, 0, f"its name says {base:#x}, its header {number:#x}"
                )
        except BaseException:
            file.close()
            raise
        return file, marker

    def _recover_last(self, after_zxid: int) -> Iterator[bytes]:
        base = self._bases[-1]
        file, marker = self._open(base)
        try:
            reader = GroupReader(file, marker)
            end = HEADER_BYTES
            last_zxid = base
            for group in reader.groups(base):
                end, last_zxid = group.end, group.last_zxid
                yield from _after(group.records(file.path), after_zxid)
            proof = reader.later_proof(end)
            if proof is not None:
                raise CorruptRecordError(
                    file.path,
                    end,
                    f"the group at byte {proof.position} says that everything before byte "
                    f"{proof.synced} was durable",
                )
            if not _is_clean(reader, end):
                file.truncate(end)
            # Also what only the page cache holds is served from now on: make it durable first.
            file.sync()
        except BaseException:
            file.close()
            raise
        self.last_zxid = self.durable_zxid = last_zxid
        self._start_at(file, marker, end)
        self.mark()

    def _start_at(self, file: File, marker: bytes, position: int) -> None:
        self._file = file
        self._marker = marker
        self._position = self._synced_position = position
        self._marked_position = 0
        self._allocated = file.size()
        self._is_reserved = file.is_allocated()

    def _reserve(self, file: File, end: int) -> None:
        step = self._options.preallocate_bytes
        try:
            file.preallocate(-(-end // step) * step)
            self._is_reserved = file.is_allocated()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            # Too little for a whole step: the write itself will show whether there is enough.
            self._is_reserved = False
        self._allocated = file.size()

    def _take_back(self, file: File) -> None:
        """The write failed for want of space: end the file after its last whole group.

        Durably: the refused group may be whole in the file, and must not come back.
        """
        try:
            file.truncate(self._position)
            file.sync()
        except OSError as error:
            raise self._fail("cannot truncate", file.path, error) from error
        self._allocated = self._position
        self._is_reserved = False

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _cut_file(self, base: int, zxid: int) -> None:
        """End the file `base` after `zxid`; a group that straddles it is written anew."""
        file, marker = self._open(base)
        end = HEADER_BYTES
        last_zxid = base
        kept: list[bytes] = []
        try:
            for group in GroupReader(file, marker).groups(base):
                if group.last_zxid > zxid:
                    kept = [r for r in group.records(file.path) if zxid_of(r) <= zxid]
                    break
                end, last_zxid = group.end, group.last_zxid
            if kept:
                start = end
                buffers = encode_group(marker, kept, last_zxid, zxid_of(kept[-1]), HEADER_BYTES)
                last_zxid = zxid_of(kept[-1])
                fresh = self._copy(file, start, buffers)
                file.close()
                file = fresh
                end = start + sum(map(len, buffers))
            file.truncate(end)
            file.sync()
        except BaseException:
            file.close()
            raise
        self.last_zxid = self.durable_zxid = last_zxid
        self._start_at(file, marker, end)

    def _copy(self, file: File, size_bytes: int, tail: Sequence[bytes]) -> File:
        """Replace a file by its first bytes and a tail, atomically."""
        temporary = self._files.open(file.path + ".tmp", create=True)
        try:
            temporary.truncate(0)
            position = 0
            while position < size_bytes:
                data = file.pread(min(1024 * 1024, size_bytes - position), position)
                temporary.pwrite(data, position)
                position += len(data)
            temporary.pwritev(tail, position)
            temporary.sync()
        finally:
            temporary.close()
        self._files.rename(file.path + ".tmp", file.path)
        self._files.sync_dir(self._directory)
        return self._files.open(file.path)

    def _check_usable(self) -> None:
        if self.offline:
            raise LogOfflineError(self.offline)
        assert self._file is not None, "the log is not open"

    def _fail(self, what: str, path: str, error: OSError) -> LogOfflineError:
        self.offline = f"{what} {path}: {error}"
        return LogOfflineError(self.offline)


def _after(records: list[bytes], zxid: int) -> list[bytes]:
    if zxid_of(records[0]) > zxid:
        return records
    return [record for record in records if zxid_of(record) > zxid]


def _is_clean(reader: GroupReader, end: int) -> bool:
    """Behind `end` lie only a mark and zeros."""
    found: Group | None = reader.at(end)
    return reader.is_blank(end if found is None else found.end)
