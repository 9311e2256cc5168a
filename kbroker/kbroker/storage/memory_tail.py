"""The last appended batches of a log, kept as the bytes that were written.

Owns what hot fetches are served from, so that they touch no file. Bounded twice: per log, and over
all logs by a shared `TailBudget`, which takes memory back from the log that was appended to longest
ago. Must never hold a view into somebody's receive buffer: a memoryview is copied.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from duolog_protocol.records import BatchHeader
from duolog_runtime.files import Buffer

_COMPACT_AT = 256


class TailRun(NamedTuple):
    """Whole batches from memory, up to `end_offset` (exclusive)."""

    end_offset: int
    size_bytes: int
    buffers: list[Buffer]


class TailBudget:
    """Bytes that all memory tails of a process may hold together."""

    __slots__ = ("_order", "limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._order: dict[MemoryTail, None] = {}
        """Tails that hold something, least recently appended to first."""

    def grow(self, tail: MemoryTail, size_bytes: int) -> None:
        """Account for bytes just added to `tail`, and take as many from the coldest tails."""
        self.used_bytes += size_bytes
        order = self._order
        order.pop(tail, None)
        order[tail] = None
        while self.used_bytes > self.limit_bytes:
            coldest = next(iter(order))
            coldest.drop_oldest()

    def shrink(self, tail: MemoryTail, size_bytes: int) -> None:
        self.used_bytes -= size_bytes
        assert self.used_bytes >= 0, self.used_bytes
        if not tail.size_bytes:
            self._order.pop(tail, None)


class _Entry(NamedTuple):
    base_offset: int
    end_offset: int
    buffer: Buffer
    headers: Sequence[BatchHeader]


class MemoryTail:
    """Appended buffers in offset order; each holds one or more whole batches."""

    __slots__ = ("_budget", "_end_offsets", "_entries", "_head", "limit_bytes", "size_bytes")

    def __init__(self, limit_bytes: int, budget: TailBudget) -> None:
        self.limit_bytes = limit_bytes
        self._budget = budget
        self._entries: list[_Entry | None] = []
        self._end_offsets: list[int] = []
        self._head = 0
        """Entries before this one were dropped."""
        self.size_bytes = 0

    def holds(self, offset: int) -> bool:
        """Whether every batch from `offset` up to the log end is in memory."""
        if self._head == len(self._entries):
            return False
        first = self._entries[self._head]
        assert first is not None, self._head
        return first.base_offset <= offset

    def append(self, buffer: Buffer, headers: Sequence[BatchHeader]) -> None:
        """Keep a buffer that was just appended; it must not be changed any more."""
        size_bytes = len(buffer)
        if size_bytes > self.limit_bytes:
            self.clear()
            return
        if isinstance(buffer, memoryview):
            buffer = bytes(buffer)
        end_offset = headers[-1].next_offset
        self._entries.append(_Entry(headers[0].base_offset, end_offset, buffer, headers))
        self._end_offsets.append(end_offset)
        self.size_bytes += size_bytes
        self._budget.grow(self, size_bytes)
        while self.size_bytes > self.limit_bytes:
            self.drop_oldest()

    def drop_oldest(self) -> None:
        """Forget the oldest buffer."""
        entry = self._entries[self._head]
        assert entry is not None, self._head
        self._entries[self._head] = None
        self._head += 1
        if self._head >= _COMPACT_AT and self._head * 2 >= len(self._entries):
            del self._entries[: self._head]
            del self._end_offsets[: self._head]
            self._head = 0
        self.size_bytes -= len(entry.buffer)
        self._budget.shrink(self, len(entry.buffer))

    def clear(self) -> None:
        """Forget everything: after a truncation, when the log closes, or for an oversize batch."""
        size_bytes = self.size_bytes
        self._entries.clear()
        self._end_offsets.clear()
        self._head = 0
        self.size_bytes = 0
        self._budget.shrink(self, size_bytes)

    def read(
        self, start_offset: int, max_bytes: int, end_offset: int, *, min_one_batch: bool
    ) -> TailRun:
        """Whole batches from the one that holds `start_offset`, all below `end_offset`."""
        at = bisect_right(self._end_offsets, start_offset, self._head)
        buffers: list[Buffer] = []
        size_bytes = 0
        next_offset = start_offset
        for index in range(at, len(self._entries)):
            entry = self._entries[index]
            assert entry is not None, index
            fits = entry.end_offset <= end_offset and size_bytes + len(entry.buffer) <= max_bytes
            if fits and (entry.base_offset >= start_offset or len(entry.headers) == 1):
                buffers.append(entry.buffer)
                size_bytes += len(entry.buffer)
                next_offset = entry.end_offset
                continue
            begin = position = -1
            end = 0
            for header in entry.headers:
                position, end = end, end + header.size_bytes
                if header.next_offset <= start_offset:
                    continue
                if header.next_offset > end_offset:
                    end = position
                    break
                must = min_one_batch and not size_bytes
                if size_bytes + header.size_bytes > max_bytes and not must:
                    end = position
                    break
                if begin < 0:
                    begin = position
                size_bytes += header.size_bytes
                next_offset = header.next_offset
            if begin >= 0:
                whole = begin == 0 and end == len(entry.buffer)
                buffers.append(entry.buffer if whole else memoryview(entry.buffer)[begin:end])
            if next_offset < entry.end_offset:
                break
        return TailRun(next_offset, size_bytes, buffers)
