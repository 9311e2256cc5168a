"""Which segments go: by age, by size, because they are hidden; never beyond the high watermark."""

from __future__ import annotations

from itertools import pairwise

import pytest

from kbroker.storage.retention import (
    RetentionDecision,
    SegmentInfo,
    StartOffsetReason,
    decide_retention,
)


def segments(*ages: int, size_bytes: int = 10) -> list[SegmentInfo]:
    """Segments of ten offsets each, with their newest record so many ms before 1000."""
    return [SegmentInfo(10 * n, 10 * n + 10, size_bytes, 1000 - age) for n, age in enumerate(ages)]


def decide(
    infos: list[SegmentInfo],
    *,
    start: int = 0,
    high_watermark: int = 10**6,
    retention_ms: int = -1,
    retention_bytes: int = -1,
) -> RetentionDecision:
    return decide_retention(
        infos,
        log_start_offset=start,
        high_watermark=high_watermark,
        retention_ms=retention_ms,
        retention_bytes=retention_bytes,
        wall_ms=1000,
    )


def test_without_limits_nothing_goes() -> None:
    assert decide(segments(900, 800)) == RetentionDecision(0, 0, None)


def test_the_oldest_go_by_time_and_a_young_one_protects_those_after_it() -> None:
    assert decide(segments(900, 101, 100, 900), retention_ms=100) == RetentionDecision(
        2, 20, StartOffsetReason.RETENTION_TIME
    )


@pytest.mark.parametrize(("limit", "count"), [(30, 0), (29, 0), (21, 0), (20, 1), (11, 1), (0, 3)])
def test_size_keeps_at_least_the_limit(limit: int, count: int) -> None:
    assert decide(segments(1, 1, 1), retention_bytes=limit).delete_count == count


@pytest.mark.parametrize(("high_watermark", "count"), [(9, 0), (10, 1), (19, 1), (30, 3)])
def test_nothing_beyond_the_high_watermark_goes(high_watermark: int, count: int) -> None:
    infos = segments(900, 900, 900)
    found = decide(infos, high_watermark=high_watermark, retention_ms=1, retention_bytes=0)
    assert found.delete_count == count
    assert found.log_start_offset == 10 * count


def test_what_the_log_start_hides_goes_without_any_limit() -> None:
    assert decide(segments(1, 1, 1), start=20) == RetentionDecision(2, 20, None)
    assert decide(segments(1, 1, 1), start=19) == RetentionDecision(1, 19, None)


def test_an_empty_last_segment_stays() -> None:
    infos = [*segments(900, 900), SegmentInfo(20, 20, 0, 0)]
    assert decide(infos, retention_ms=1, high_watermark=20).delete_count == 2
    assert decide(infos[2:], retention_ms=1, high_watermark=20).delete_count == 0


def test_every_choice_is_a_prefix_of_touching_segments() -> None:
    infos = segments(5, 3, 9, 1)
    for limit in range(12):
        found = decide(infos, retention_ms=limit)
        assert all(one.end_offset == other.base_offset for one, other in pairwise(infos))
        assert found.log_start_offset == 10 * found.delete_count
