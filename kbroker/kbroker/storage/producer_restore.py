"""Bring producer state to the end of a log: the newest snapshot, then the headers after it."""

from __future__ import annotations

from collections.abc import Sequence

from duolog_runtime.files import Files
from kbroker.storage import producer_snapshot
from kbroker.storage.log_types import ProducerStates
from kbroker.storage.scan import WALK_CHUNK_BYTES, scan_headers
from kbroker.storage.segment import Segment


def restore_producers(
    files: Files,
    directory: str,
    producers: ProducerStates,
    segments: Sequence[Segment],
    *,
    end_offset: int,
) -> None:
    """Load the newest snapshot at or below `end_offset` and replay the headers after it."""
    found = producer_snapshot.load_newest(
        files, directory, at_most=end_offset, at_least=segments[0].base_offset
    )
    offset, entries = found if found is not None else (segments[0].base_offset, [])
    producers.load(entries)
    for segment in segments:
        if segment.end_offset <= offset or segment.base_offset >= end_offset:
            continue
        located = segment.locate(offset) if offset > segment.base_offset else (0, None)
        if located is None:
            continue
        for _, header in scan_headers(
            segment.file, located[0], segment.size_bytes, chunk_bytes=WALK_CHUNK_BYTES
        ):
            if header.producer_id >= 0:
                producers.replay(header)
