"""Sparse indexes of one segment: offset to position, and timestamp to offset.

Owns the entries in memory (typed arrays, searched with `bisect`) and their byte layout on disk,
which is Kafka's: 8-byte entries `int32 offset - base_offset | int32 position`, and 12-byte entries
`int64 timestamp | int32 offset - base_offset`, big-endian. Must never be trusted after a crash:
the files carry no checksum, so a file is loaded only after `from_bytes` found it plausible, and
whoever follows an entry checks the batch it points at. They are written at roll and close only.

Source: Kafka OffsetIndex, TimeIndex (an entry maps the *last* offset of a batch to its position).
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right

OFFSET_ENTRY_BYTES = 8
TIME_ENTRY_BYTES = 12
MAX_RELATIVE_OFFSET = 2**31 - 1

_SWAP = sys.byteorder == "little"
assert array("I").itemsize == 4, array("I").itemsize
assert array("q").itemsize == 8, array("q").itemsize


class CorruptIndexError(Exception):
    """The bytes cannot be an index of this segment; it has to be rebuilt from the log file."""


def _is_increasing(values: array[int]) -> bool:
    ordered = sorted(values)
    return ordered == values.tolist() and len(set(ordered)) == len(ordered)


class OffsetIndex:
    """Maps the last offset of some batches to the position where that batch starts."""

    __slots__ = ("base_offset", "positions", "relative_offsets")

    def __init__(self, base_offset: int) -> None:
        self.base_offset = base_offset
        self.relative_offsets = array("I")
        self.positions = array("I")

    def __len__(self) -> int:
        return len(self.positions)

    def append(self, last_offset: int, position: int) -> None:
        """Add an entry for the batch that ends with `last_offset` and starts at `position`."""
        relative = last_offset - self.base_offset
        assert 0 <= relative <= MAX_RELATIVE_OFFSET, (relative, self.base_offset)
        if self.positions:
            assert relative > self.relative_offsets[-1], (relative, self.relative_offsets[-1])
            assert position > self.positions[-1], (position, self.positions[-1])
        self.relative_offsets.append(relative)
        self.positions.append(position)

    def position_at_or_before(self, offset: int) -> int:
        """A position from which scanning forward finds the batch that holds `offset`."""
        at = bisect_right(self.relative_offsets, offset - self.base_offset) - 1
        return self.positions[at] if at >= 0 else 0

    def indexed_position_up_to(self, position: int) -> int:
        """The largest indexed batch start that is not above `position`; 0 if there is none."""
        at = bisect_right(self.positions, position) - 1
        return self.positions[at] if at >= 0 else 0

    def last_position(self) -> int:
        return self.positions[-1] if self.positions else 0

    def truncate_to(self, offset: int) -> None:
        """Drop the entries of batches that reach `offset` (exclusive end) or lie beyond it."""
        keep = bisect_left(self.relative_offsets, max(0, offset - self.base_offset))
        del self.relative_offsets[keep:]
        del self.positions[keep:]

    def to_bytes(self) -> bytes:
        entries = array("I", bytes(OFFSET_ENTRY_BYTES * len(self)))
        entries[0::2] = self.relative_offsets
        entries[1::2] = self.positions
        if _SWAP:
            entries.byteswap()
        return entries.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, base_offset: int, log_size_bytes: int) -> OffsetIndex:
        """Load the content of an index file. Raises CorruptIndexError where it cannot be right."""
        if len(data) % OFFSET_ENTRY_BYTES:
            raise CorruptIndexError(f"{len(data)} bytes are no multiple of {OFFSET_ENTRY_BYTES}")
        entries = array("I", data)
        if _SWAP:
            entries.byteswap()
        index = cls(base_offset)
        index.relative_offsets = entries[0::2]
        index.positions = entries[1::2]
        if not (_is_increasing(index.relative_offsets) and _is_increasing(index.positions)):
            raise CorruptIndexError("entries are not increasing")
        if index.positions and index.positions[-1] >= log_size_bytes:
            raise CorruptIndexError(f"{index.positions[-1]} is beyond {log_size_bytes} bytes")
        if index.positions and index.relative_offsets[-1] > MAX_RELATIVE_OFFSET:
            raise CorruptIndexError(f"relative offset {index.relative_offsets[-1]} is negative")
        return index


class TimeIndex:
    """Maps a timestamp to the offset after which every record with a larger timestamp lies."""

    __slots__ = ("base_offset", "relative_offsets", "timestamps")

    def __init__(self, base_offset: int) -> None:
        self.base_offset = base_offset
        self.timestamps = array("q")
        self.relative_offsets = array("I")

    def __len__(self) -> int:
        return len(self.timestamps)

    def maybe_append(self, timestamp_ms: int, offset: int) -> None:
        """Add an entry if the timestamp grew since the last one; otherwise do nothing."""
        if timestamp_ms < 0 or (self.timestamps and timestamp_ms <= self.timestamps[-1]):
            return
        relative = offset - self.base_offset
        assert 0 <= relative <= MAX_RELATIVE_OFFSET, (relative, self.base_offset)
        if self.relative_offsets:
            assert relative > self.relative_offsets[-1], (relative, self.relative_offsets[-1])
        self.timestamps.append(timestamp_ms)
        self.relative_offsets.append(relative)

    def last(self) -> tuple[int, int]:
        """The last (timestamp, offset); (-1, base offset) when there is no entry."""
        if not self.timestamps:
            return -1, self.base_offset
        return self.timestamps[-1], self.base_offset + self.relative_offsets[-1]

    def at_or_before(self, timestamp_ms: int) -> tuple[int, int]:
        """The last entry whose timestamp is not above `timestamp_ms`; (-1, base) if none."""
        at = bisect_right(self.timestamps, timestamp_ms) - 1
        if at < 0:
            return -1, self.base_offset
        return self.timestamps[at], self.base_offset + self.relative_offsets[at]

    def truncate_to(self, offset: int) -> None:
        """Drop the entries at `offset` and above."""
        keep = bisect_left(self.relative_offsets, max(0, offset - self.base_offset))
        del self.timestamps[keep:]
        del self.relative_offsets[keep:]

    def to_bytes(self) -> bytes:
        timestamps = array("q", self.timestamps)
        offsets = array("I", self.relative_offsets)
        if _SWAP:
            timestamps.byteswap()
            offsets.byteswap()
        halves = array("I", timestamps.tobytes())
        entries = array("I", bytes(TIME_ENTRY_BYTES * len(self)))
        entries[0::3] = halves[0::2]
        entries[1::3] = halves[1::2]
        entries[2::3] = offsets
        return entries.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, base_offset: int, end_offset: int) -> TimeIndex:
        """Load the content of an index file. Raises CorruptIndexError where it cannot be right."""
        if len(data) % TIME_ENTRY_BYTES:
            raise CorruptIndexError(f"{len(data)} bytes are no multiple of {TIME_ENTRY_BYTES}")
        entries = array("I", data)
        halves = array("I", bytes(8 * (len(data) // TIME_ENTRY_BYTES)))
        halves[0::2] = entries[0::3]
        halves[1::2] = entries[1::3]
        index = cls(base_offset)
        index.timestamps = array("q", halves.tobytes())
        index.relative_offsets = entries[2::3]
        if _SWAP:
            index.timestamps.byteswap()
            index.relative_offsets.byteswap()
        if not (_is_increasing(index.timestamps) and _is_increasing(index.relative_offsets)):
            raise CorruptIndexError("entries are not increasing")
        if index.timestamps and index.timestamps[0] < 0:
            raise CorruptIndexError(f"timestamp {index.timestamps[0]} is negative")
        if index.relative_offsets and base_offset + index.relative_offsets[-1] >= end_offset:
            raise CorruptIndexError(f"last entry is not below offset {end_offset}")
        return index
