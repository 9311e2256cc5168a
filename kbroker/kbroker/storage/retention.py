"""Which segments of a log have outlived their topic's limits: a pure decision.

Owns the rules of `retention.ms`, `retention.bytes` and the log start offset. Must never choose a
segment that reaches beyond the high watermark, nor one whose older neighbour stays: what is
deleted is always a prefix. Source: Kafka UnifiedLog.deleteOldSegments.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

UNLIMITED = -1


class StartOffsetReason(Enum):
    """Why a log start offset moves."""

    RETENTION_TIME = "retention_time"
    RETENTION_SIZE = "retention_size"
    DELETE_RECORDS = "delete_records"
    LEADER_START_OFFSET = "leader_start_offset"
    TRUNCATION = "truncation"


class SegmentInfo(NamedTuple):
    """What the decision knows of a segment."""

    base_offset: int
    end_offset: int
    size_bytes: int
    newest_ms: int
    """Largest record timestamp, or when the file was made if its records have none."""


class RetentionDecision(NamedTuple):
    """The first `delete_count` segments go; the log then starts at `log_start_offset`."""

    delete_count: int
    log_start_offset: int
    reason: StartOffsetReason | None


def decide_retention(
    segments: Sequence[SegmentInfo],
    *,
    log_start_offset: int,
    high_watermark: int,
    retention_ms: int,
    retention_bytes: int,
    wall_ms: int,
) -> RetentionDecision:
    """Choose the oldest segments to delete; -1 means no limit.

    The last segment may be among them; the caller then rolls an empty one first, so that the log
    keeps its end offset. An empty last segment is never chosen.
    """
    excess_bytes = sum(segment.size_bytes for segment in segments) - retention_bytes
    count = 0
    reason = None
    for segment in segments:
        if segment.end_offset > high_watermark:
            break
        if segment.size_bytes == 0 and count == len(segments) - 1:
            break
        why = None
        if retention_ms != UNLIMITED and wall_ms - segment.newest_ms > retention_ms:
            why = StartOffsetReason.RETENTION_TIME
        elif retention_bytes != UNLIMITED and excess_bytes >= segment.size_bytes:
            why = StartOffsetReason.RETENTION_SIZE
        elif segment.end_offset > log_start_offset:
            break
        reason = why or reason
        excess_bytes -= segment.size_bytes
        count += 1
    start = max(log_start_offset, segments[count - 1].end_offset) if count else log_start_offset
    return RetentionDecision(count, start, reason)
