"""The sparse indexes: Kafka's bytes, look-ups against a naive search, implausible files refused."""

from __future__ import annotations

import random

import pytest

from kbroker.storage.index import CorruptIndexError, OffsetIndex, TimeIndex

BIG = 2**40


def offset_index() -> OffsetIndex:
    index = OffsetIndex(100)
    for last_offset, position in ((110, 4200), (125, 9000), (126, 14000)):
        index.append(last_offset, position)
    return index


def time_index() -> TimeIndex:
    index = TimeIndex(100)
    for timestamp, offset in ((1_700_000_000_000, 110), (1_700_000_000_005, 126)):
        index.maybe_append(timestamp, offset)
    return index


def test_the_bytes_are_kafkas() -> None:
    assert offset_index().to_bytes().hex() == ("0000000a0000106800000019000023280000001a000036b0")
    assert time_index().to_bytes().hex() == ("0000018bcfe568000000000a0000018bcfe568050000001a")


def test_what_was_written_reads_back() -> None:
    offsets = OffsetIndex.from_bytes(offset_index().to_bytes(), 100, 20000)
    assert offsets.to_bytes() == offset_index().to_bytes()
    times = TimeIndex.from_bytes(time_index().to_bytes(), 100, 127)
    assert times.to_bytes() == time_index().to_bytes()
    assert times.last() == (1_700_000_000_005, 126)
    assert len(OffsetIndex.from_bytes(b"", 100, 0)) == len(TimeIndex.from_bytes(b"", 100, 100)) == 0


@pytest.mark.parametrize("seed", range(20))
def test_lookups_equal_a_naive_search(seed: int) -> None:
    rng = random.Random(seed)
    base = rng.choice([0, 7, BIG])
    index, times = OffsetIndex(base), TimeIndex(base)
    entries, stamps = [], []
    offset, position, timestamp = base, 0, 0
    for _ in range(rng.randint(0, 30)):
        offset += rng.randint(1, 9)
        position += rng.randint(61, 900)
        timestamp += rng.randint(-5, 9)
        index.append(offset, position)
        entries.append((offset, position))
        times.maybe_append(timestamp, offset)
        if timestamp >= 0 and (not stamps or timestamp > stamps[-1][0]):
            stamps.append((timestamp, offset))
    for _ in range(60):
        wanted = rng.randint(base, offset + 3)
        naive = [at for last, at in entries if last <= wanted]
        assert index.position_at_or_before(wanted) == (naive[-1] if naive else 0)
        limit = rng.randint(0, position + 50)
        naive = [at for _, at in entries if at <= limit]
        assert index.indexed_position_up_to(limit) == (naive[-1] if naive else 0)
        asked = rng.randint(0, max(timestamp, 0) + 3)
        before = [entry for entry in stamps if entry[0] <= asked]
        assert times.at_or_before(asked) == (before[-1] if before else (-1, base))
    cut = rng.randint(base, offset + 3)
    index.truncate_to(cut)
    times.truncate_to(cut)
    assert len(index) == sum(last < cut for last, _ in entries)
    assert len(times) == sum(last < cut for _, last in stamps)


def test_implausible_files_are_refused() -> None:
    good = offset_index().to_bytes()
    for bad in (good[:-1], good[8:] + good[:8], good + bytes(8), good[:8] * 2):
        with pytest.raises(CorruptIndexError):
            OffsetIndex.from_bytes(bad, 100, 20000)
    with pytest.raises(CorruptIndexError, match="beyond"):
        OffsetIndex.from_bytes(good, 100, 14000)
    good = time_index().to_bytes()
    for bad in (good[:-1], good[12:] + good[:12], good + bytes(12), b"\xff" * 12):
        with pytest.raises(CorruptIndexError):
            TimeIndex.from_bytes(bad, 100, 127)
    with pytest.raises(CorruptIndexError, match="not below"):
        TimeIndex.from_bytes(good, 100, 126)
