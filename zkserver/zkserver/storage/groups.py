"""Groups: what one append writes, and how they are found again.

    group = marker crc body_length count previous_zxid last_zxid synced_position lengths records

Owns the bytes of a group and the reading of one file's groups. `marker` is eight random bytes of
the file, which no client knows, so that data inside a record cannot pass for a group.
`synced_position` is what makes a torn tail distinguishable from damage: everything before it was
known to be durable when the group was written (FORMAT.md, "Torn tail or damage"). A group without
records is a mark: it says only that, and the next group overwrites it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from duolog_protocol.checksums import crc32c
from duolog_protocol.errors import CorruptRecordError
from duolog_protocol.txns import zxid_of
from duolog_runtime.files import File

from .file_header import HEADER_BYTES, MARKER_BYTES

_GROUP: Final = struct.Struct(">8sIIIQQQ")
_CHECKED: Final = struct.Struct(">IIQQQ")
_CRC: Final = struct.Struct(">I")
GROUP_HEADER_BYTES: Final = _GROUP.size
_CHECKED_START: Final = MARKER_BYTES + _CRC.size
MIN_RECORD_BYTES: Final = 8
"""Every record starts with its zxid."""
MAX_GROUP_BYTES: Final = 128 * 1024 * 1024
_WINDOW_BYTES: Final = 256 * 1024


def group_bytes(records: Sequence[bytes]) -> int:
    """The size of their group in the log."""
    return GROUP_HEADER_BYTES + 4 * len(records) + sum(map(len, records))


def encode_group(
    marker: bytes,
    records: Sequence[bytes],
    previous_zxid: int,
    last_zxid: int,
    synced_position: int,
) -> list[bytes]:
    """The buffers of a group, to be written one after another."""
    sizes = list(map(len, records))
    body_bytes = 4 * len(sizes) + sum(sizes)
    assert body_bytes <= MAX_GROUP_BYTES, body_bytes
    checked = b"".join(
        [
            _CHECKED.pack(body_bytes, len(sizes), previous_zxid, last_zxid, synced_position),
            struct.pack(f">{len(sizes)}I", *sizes),
            *records,
        ]
    )
    return [marker + _CRC.pack(crc32c(checked)), checked]


class Group:
    """A group whose checksum is right."""

    __slots__ = ("_body", "_count", "end", "last_zxid", "position", "previous_zxid", "synced")

    def __init__(self, position: int, header: tuple[int, int, int, int, int], body: bytes) -> None:
        self.position = position
        body_bytes, self._count, self.previous_zxid, self.last_zxid, self.synced = header
        self.end = position + GROUP_HEADER_BYTES + body_bytes
        """Exclusive."""
        self._body = body

    @property
    def is_mark(self) -> bool:
        """It has no records."""
        return self._count == 0

    def records(self, path: str) -> list[bytes]:
        """Its records. Raises CorruptRecordError where zxids do not ascend to `last_zxid`."""
        body = self._body
        count = self._count
        position = 4 * count
        if position > len(body):
            raise CorruptRecordError(path, self.position, f"{count} records cannot be in the group")
        sizes = struct.unpack_from(f">{count}I", body)
        if position + sum(sizes) != len(body):
            raise CorruptRecordError(path, self.position, "the lengths do not add up")
        found = []
        zxid = self.previous_zxid
        for size in sizes:
            record = body[position : position + size]
            position += size
            if size < MIN_RECORD_BYTES or (own := zxid_of(record)) <= zxid:
                raise CorruptRecordError(
                    path, self.position, f"the record after zxid {zxid:#x} is not in order"
                )
            zxid = own
            found.append(record)
        if zxid != self.last_zxid:
            raise CorruptRecordError(
                path, self.position, f"group ends at zxid {zxid:#x}, not at {self.last_zxid:#x}"
            )
        return found


class GroupReader:
    """Reads the groups of one file, front to back, through a window."""

    def __init__(self, file: File, marker: bytes) -> None:
        self._file = file
        self._marker = marker
        self._size = file.size()
        self._window = b""
        self._window_start = 0

    def groups(self, previous_zxid: int, position: int = HEADER_BYTES) -> Iterator[Group]:
        """The groups with records from `position` on, up to the first place that holds none.

        Raises CorruptRecordError where a whole group does not continue the one before it.
        """
        while (group := self.at(position)) is not None and not group.is_mark:
            if group.previous_zxid != previous_zxid:
                raise CorruptRecordError(
                    self._file.path,
                    position,
                    f"the group continues zxid {group.previous_zxid:#x}, "
                    f"but the one before it ends at {previous_zxid:#x}: records are missing",
                )
            yield group
            position = group.end
            previous_zxid = group.last_zxid

    def at(self, position: int) -> Group | None:
        """The group at `position`, None where there is no whole one."""
        header = self._bytes(position, GROUP_HEADER_BYTES)
        if len(header) < GROUP_HEADER_BYTES or not header.startswith(self._marker):
            return None
        _, crc, *fields = _GROUP.unpack(header)
        body_bytes, count, previous_zxid, last_zxid, synced = fields
        if body_bytes > self._size - position - GROUP_HEADER_BYTES:
            return None
        body = self._bytes(position + GROUP_HEADER_BYTES, body_bytes)
        if crc32c(header[_CHECKED_START:] + body) != crc:
            return None
        return Group(position, (body_bytes, count, previous_zxid, last_zxid, synced), body)

    def later_proof(self, position: int) -> Group | None:
        """A whole group after `position` which says that `position` was durable before it."""
        search = position + 1
        while search < self._size:
            window = self._file.pread(_WINDOW_BYTES, search)
            found = window.find(self._marker)
            if found < 0:
                if search + len(window) >= self._size:
                    return None
                search += len(window) - MARKER_BYTES + 1
                continue
            group = self.at(search + found)
            if group is not None and group.synced > position:
                return group
            search += found + 1
        return None

    def is_blank(self, position: int) -> bool:
        """Only zeros from `position` to the end of the file."""
        while position < self._size:
            window = self._file.pread(_WINDOW_BYTES, position)
            if window.count(0) != len(window):
                return False
            position += len(window)
        return True

    def _bytes(self, position: int, size_bytes: int) -> bytes:
        start = position - self._window_start
        if start < 0 or start + size_bytes > len(self._window):
            if size_bytes > _WINDOW_BYTES:
                return self._file.pread(size_bytes, position)
            self._window = self._file.pread(_WINDOW_BYTES, position)
            self._window_start = position
            start = 0
        return self._window[start : start + size_bytes]
