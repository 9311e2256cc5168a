"""Reads a log's records front to back while it grows: what is durable now, and later on from there.

Owns where in which file it stands, and one open file. It is for the thread that writes the log
(the disk executor's), between whose appends it reads; it never reads what is not durable. Where
the log says that a record is durable and none is there, the log is damaged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from duolog_protocol.errors import CorruptRecordError
from duolog_runtime.files import File

from .file_header import HEADER_BYTES
from .groups import Group, GroupReader
from .txnlog import TxnLog


class LogCursor:
    """A place in a log. Close it."""

    def __init__(self, log: TxnLog, zxid: int) -> None:
        """Read the records after `zxid`, at which a record ends, or which is not in the log yet."""
        self.zxid = zxid
        """The last one read."""
        self._log = log
        self._base = 0
        """The number of the file that is open."""
        self._file: File | None = None
        self._marker = b""
        self._position = HEADER_BYTES
        """Where in it the next group begins."""
        self._group_zxid = 0
        """The last zxid of the group before it."""
        self._left: deque[bytes] = deque()
        """Records of that group that were not read."""

    def read(self, max_bytes: int) -> tuple[list[bytes], bool]:
        """The next records, and whether they end with all that is durable.

        A single one may be longer than `max_bytes`. Raises CorruptRecordError, also where the log
        begins after `zxid` by now; DataDirectoryError, OSError.
        """
        records: list[bytes] = []
        size = 0
        groups: Iterator[Group] | None = None
        left = self._left
        while size < max_bytes and self.zxid < self._log.durable_zxid:
            if not left:  # a reader of this call: an older one does not see what was written since
                groups = self._next_group(groups)
                continue
            record = left.popleft()
            self.zxid = int.from_bytes(record[:8], "big")
            size += len(record)
            records.append(record)
        return records, self.zxid >= self._log.durable_zxid

    def close(self) -> None:
        """Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _next_group(self, groups: Iterator[Group] | None) -> Iterator[Group]:
        """Fill `_left`, or go on to the next file; the groups behind it."""
        file = self._file
        if file is None:
            file = self._open()
        if groups is None:
            groups = GroupReader(file, self._marker).groups(self._group_zxid, self._position)
        group = next(groups, None)
        if group is not None:
            self._position, self._group_zxid = group.end, group.last_zxid
            if group.last_zxid > self.zxid:
                zxid = self.zxid
                self._left += (
                    each
                    for each in group.records(file.path)
                    if int.from_bytes(each[:8], "big") > zxid
                )
            return groups
        base, position = self._base, self._position
        self.close()
        file = self._open()
        if self._base == base or self._group_zxid != self.zxid:
            text = f"the records after zxid {self.zxid:#x} are damaged or missing"
            raise CorruptRecordError(file.path, position, text)
        return GroupReader(file, self._marker).groups(self._group_zxid, self._position)

    def _open(self) -> File:
        """The file that holds what comes next."""
        self._base, self._file, self._marker = self._log.open_after(self.zxid)
        self._position, self._group_zxid = HEADER_BYTES, self._base
        return self._file
