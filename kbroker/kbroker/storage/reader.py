"""Find the batches of a fetch in segment files, and remember what the next fetch will ask.

Owns two small caches of one log: where offsets lie that readers will come back to, and which sealed
segments have their indexes in memory. Reads headers only; the bytes are the caller's to fetch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter

from duolog_protocol.errors import CorruptRecordError
from kbroker.storage.log_types import LogSlice
from kbroker.storage.scan import scan_headers
from kbroker.storage.segment import Segment

_POSITION_HINTS = 64
_LOADED_INDEXES = 4
_base_offset = attrgetter("base_offset")


class SegmentReader:
    """Reads whole batches of one segment at a time."""

    __slots__ = ("_hints", "_loaded")

    def __init__(self) -> None:
        self._hints: dict[int, tuple[Segment, int]] = {}
        self._loaded: dict[Segment, None] = {}

    def read(
        self,
        segments: Sequence[Segment],
        start_offset: int,
        max_bytes: int,
        end_offset: int,
        *,
        min_one_batch: bool,
    ) -> LogSlice:
        """A file region as `Log.read` describes it; `start_offset` < `end_offset`."""
        segment, position = self._position_of(segments, start_offset)
        end_position, next_offset = segment.extent(position, max_bytes, end_offset)
        size_bytes = end_position - position
        if not size_bytes and min_one_batch:
            _, header = next(scan_headers(segment.file, position, segment.size_bytes))
            if header.next_offset <= end_offset:
                size_bytes, next_offset = header.size_bytes, header.next_offset
        if not size_bytes:
            return LogSlice(start_offset, start_offset, 0, (), None, 0)
        if next_offset < segment.end_offset:
            self._remember(next_offset, segment, position + size_bytes)
        return LogSlice(start_offset, next_offset, size_bytes, (), segment.file, position)

    def forget_positions(self) -> None:
        """After a truncation or deletion."""
        self._hints.clear()

    def forget_index(self, segment: Segment) -> None:
        """The segment is gone, or active again: its index is no longer ours to drop."""
        self._loaded.pop(segment, None)

    def note_index_use(self, segment: Segment) -> None:
        """Keep the indexes of few sealed segments in memory: those looked at last."""
        if not segment.sealed:
            return
        self._loaded.pop(segment, None)
        self._loaded[segment] = None
        if len(self._loaded) > _LOADED_INDEXES:
            oldest = next(iter(self._loaded))
            del self._loaded[oldest]
            oldest.drop_indexes()

    def _position_of(self, segments: Sequence[Segment], offset: int) -> tuple[Segment, int]:
        hint = self._hints.get(offset)
        if hint is not None:
            self.note_index_use(hint[0])
            return hint
        first = bisect_right(segments, offset, key=_base_offset) - 1
        for segment in segments[max(first, 0) :]:
            self.note_index_use(segment)
            located = segment.locate(offset)
            if located is not None:
                self._remember(offset, segment, located[0])
                return segment, located[0]
        last = segments[-1]
        raise CorruptRecordError(last.path, last.size_bytes, f"no batch holds offset {offset}")

    def _remember(self, offset: int, segment: Segment, position: int) -> None:
        hints = self._hints
        if len(hints) >= _POSITION_HINTS and offset not in hints:
            del hints[next(iter(hints))]
        hints[offset] = (segment, position)
