"""Reads a transaction log without changing it, and says how it ends.

Owns the read-only twin of `TxnLog.recover`: the same groups, the same difference between a torn
tail and damage (FORMAT.md), but nothing is cut, synced or opened for appending. For tools, which
also want what can be read of a log that no server would start on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from duolog_protocol.errors import CorruptRecordError
from duolog_protocol.txns import zxid_of
from duolog_runtime.files import Files

from .file_header import HEADER_BYTES, Identity, read_header
from .groups import Group, GroupReader
from .txnlog import LOG_MAGIC, log_files, log_name

_MAX_REREADS: Final = 100


class LogScan:
    """One log file; `groups` is run through once, then the attributes tell how it was."""

    def __init__(
        self,
        files: Files,
        path: str,
        identity: Identity | None,
        *,
        base: int | None = None,
        live: bool = False,
    ) -> None:
        """Look at the header.

        `identity` None takes any; `base` is the zxid that the name says. `live`: a server may be
        appending, so that what is half there now can be whole a moment later.

        Raises CorruptRecordError, DataDirectoryError, OSError.
        """
        self.path = path
        self._live = live
        self._file = files.open(path)
        try:
            _, self.base, self._marker = read_header(self._file, LOG_MAGIC, identity)
            if base is not None and self.base != base:
                raise CorruptRecordError(
                    path, 0, f"its name says {base:#x}, its header {self.base:#x}"
                )
        except BaseException:
            self._file.close()
            raise
        self.last_zxid = self.base
        """Of the last whole group so far."""
        self.end = HEADER_BYTES
        """Behind the last whole group so far (bytes)."""
        self.group_count = 0
        self.is_torn = False
        """There is more behind `end`: a write that was never known to be durable."""

    def groups(self) -> Iterator[Group]:
        """The groups that hold records. The file is closed afterwards.

        Raises CorruptRecordError for what a power loss cannot explain.
        """
        try:
            for _ in range(_MAX_REREADS):
                yield from self._run()
                reader = GroupReader(self._file, self._marker)
                mark = reader.at(self.end)
                if self._live and mark is not None and not mark.is_mark:
                    continue  # it was written meanwhile
                self.is_torn = not reader.is_blank(self.end if mark is None else mark.end)
                proof = reader.later_proof(self.end)
                if proof is None:
                    return
                if self._live and reader.at(self.end) is not None:
                    continue
                raise CorruptRecordError(
                    self.path,
                    self.end,
                    f"the group at byte {proof.position} says that everything before byte "
                    f"{proof.synced} was durable",
                )
        finally:
            self._file.close()

    def close(self) -> None:
        """Give up; idempotent."""
        self._file.close()

    def _run(self) -> Iterator[Group]:
        position, previous = self.end, self.last_zxid
        for group in GroupReader(self._file, self._marker).groups(previous, position):
            yield group
            self.end, self.last_zxid = group.end, group.last_zxid
            self.group_count += 1


def read_records(
    files: Files, directory: str, identity: Identity, after_zxid: int, *, live: bool = False
) -> Iterator[bytes]:
    """The records after `after_zxid` of all files, a torn tail left out.

    Raises CorruptRecordError, DataDirectoryError, OSError.
    """
    bases = log_files(files, directory)
    if not bases or bases[0] > after_zxid:
        first = f"{directory}/{log_name(bases[0])}" if bases else f"{directory}/log.*"
        raise CorruptRecordError(first, 0, f"the records after zxid {after_zxid:#x} are missing")
    start = max(index for index, base in enumerate(bases) if base <= after_zxid)
    last = after_zxid
    for index, base in enumerate(bases[start:], start):
        scan = LogScan(files, f"{directory}/{log_name(base)}", identity, base=base, live=live)
        for group in scan.groups():
            if group.last_zxid > after_zxid:
                for record in group.records(scan.path):
                    if zxid_of(record) > after_zxid:
                        yield record
        last = scan.last_zxid
        if index + 1 < len(bases) and last != bases[index + 1]:
            raise CorruptRecordError(
                scan.path,
                scan.end,
                f"the records from here to zxid {bases[index + 1]:#x}, where the next file goes "
                "on, are damaged or missing",
            )
    if last < after_zxid:
        raise CorruptRecordError(
            f"{directory}/{log_name(bases[-1])}",
            0,
            f"the log ends at zxid {last:#x}, but it was durable up to {after_zxid:#x}",
        )
