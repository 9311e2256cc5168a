"""The log of a partition against a naive list of batches, and against disks that fail."""

from __future__ import annotations

import errno
import random
import struct

import pytest

from duolog_protocol.checksums import Buffer, crc32c
from duolog_protocol.errors import (
    DiskFullError,
    LogOfflineError,
    OffsetOutOfRangeError,
)
from kbroker.storage import log as log_module
from kbroker.storage.log import Log
from kbroker.storage.log_types import LogConfig, OutOfOrderAppendError
from kbroker.storage.retention import StartOffsetReason
from kbroker.storage.timestamps import MAX_BATCHES_DECODED, TimestampAndOffset, find_in_batch
from tests.unit.kbroker.storage_support import (
    DIRECTORY,
    Store,
    append,
    batch,
    content,
    header_of,
    small_config,
)


class Model:
    """What a log should hold: batches with their offsets, nothing clever."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, list[int], bytes]] = []
        self.log_start_offset = 0
        self.log_end_offset = 0

    def append(self, data: bytes, times: list[int]) -> None:
        header = header_of(data)
        self.batches.append((header.base_offset, header.next_offset, times, data))
        self.log_end_offset = header.next_offset

    def truncate_to(self, offset: int) -> None:
        kept = [item for item in self.batches if item[1] <= offset]
        if len(kept) < len(self.batches):
            self.log_end_offset = kept[-1][1] if kept else self.batches[0][0]
        self.batches = kept

    def read(self, start: int, max_bytes: int, end: int) -> list[bytes]:
        found: list[bytes] = []
        for _, next_offset, _, data in self.batches:
            if next_offset <= start:
                continue
            if next_offset > end or (found and sum(map(len, found)) + len(data) > max_bytes):
                break
            found.append(data)
        return found

    def offset_for_timestamp(self, timestamp: int) -> int | None:
        for base, _, times, _ in self.batches:
            for delta, time in enumerate(times):
                if time >= timestamp and base + delta >= self.log_start_offset:
                    return base + delta
        return None


def check(log: Log, model: Model, rng: random.Random) -> None:
    assert log.log_end_offset == model.log_end_offset
    assert log.log_start_offset == model.log_start_offset
    for _ in range(4):
        start = rng.randint(model.log_start_offset, model.log_end_offset)
        end = rng.randint(start, model.log_end_offset)
        max_bytes = rng.choice([1, 80, 200, 1000])
        part = log.read(start, max_bytes=max_bytes, end_offset=end)
        expected = model.read(start, max_bytes, end)
        data = b"".join(part.read())
        # A slice may end early, at a segment's end, but never empty and never inside a batch.
        assert b"".join(expected).startswith(data), (start, end, max_bytes)
        assert bool(data) == bool(expected), (start, end, max_bytes)
        if data:
            assert header_of(data).next_offset > start
            assert any(part.end_offset == item[1] for item in model.batches)
            assert data in [b"".join(expected[:count]) for count in range(len(expected) + 1)]
        none = log.read(start, max_bytes=1, end_offset=end, min_one_batch=False)
        assert none.size_bytes == 0
    timestamp = rng.randint(0, 600)
    found = log.offset_for_timestamp(timestamp)
    assert (found.offset if found else None) == model.offset_for_timestamp(timestamp), timestamp
    if model.batches and model.batches[0][0] == model.log_start_offset:
        assert content(log, max_bytes=100) == b"".join(item[3] for item in model.batches)


@pytest.mark.parametrize("seed", range(40))
def test_a_random_life_of_a_log_equals_a_list_of_batches(seed: int) -> None:
    rng = random.Random(seed)
    config = small_config(
        segment_bytes=rng.choice([1, 200, 400, 5000]),
        index_interval_bytes=rng.choice([0, 100, 1000]),
        memory_tail_bytes=rng.choice([0, 150, 10_000]),
    )
    store = Store(config=config)
    log = store.create()
    model = Model()
    epoch = 0
    for _ in range(120):
        action = rng.random()
        if action < 0.6:
            made: list[bytes] = []
            for _ in range(rng.randint(1, 4)):
                count = rng.randint(1, 3)
                times = [rng.randint(0, 500) for _ in range(count)]
                data = batch(
                    model.log_end_offset,
                    count,
                    timestamps=times,
                    epoch=epoch,
                    size=rng.choice([1, 60]),
                )
                made.append(data)
                model.append(data, times)
            headers = [header_of(data) for data in made]
            one_buffer = rng.random() < 0.5
            info = log.append([b"".join(made)] if one_buffer else made, headers, wall_ms=0)
            assert (info.base_offset, info.end_offset) == (
                headers[0].base_offset,
                model.log_end_offset,
            )
        elif action < 0.7:
            offset = rng.randint(model.log_start_offset, model.log_end_offset)
            log.unlink_deleted(log.truncate_to(offset))
            model.truncate_to(offset)
            model.log_end_offset = max(model.log_end_offset, model.log_start_offset)
            epoch += 1
        elif action < 0.76:
            log.roll(0)
        elif action < 0.84:
            offset = rng.randint(model.log_start_offset, model.log_end_offset)
            log.advance_log_start_offset(offset)
            log.unlink_deleted(log.delete_hidden_segments(StartOffsetReason.DELETE_RECORDS))
            model.log_start_offset = offset
            model.batches = [item for item in model.batches if item[1] > offset]
        elif action < 0.9:
            clean = rng.random() < 0.5
            if clean:
                log.close()
                store.checkpoints.write()
            else:
                store.checkpoint(log)
            store = store.reopened()
            log = store.open(clean=clean)
        elif action < 0.95:
            log.flush()
            assert log.durable_end_offset == log.log_end_offset
        elif action < 0.96:
            offset = rng.randint(0, model.log_end_offset + 5)
            log.unlink_deleted(log.truncate_fully_and_start_at(offset))
            model = Model()
            model.log_start_offset = model.log_end_offset = offset
        check(log, model, rng)


def test_appends_below_the_end_or_of_an_older_epoch_are_refused() -> None:
    store = Store()
    log = store.create()
    append(log, batch(0, 3, epoch=4))
    with pytest.raises(OutOfOrderAppendError, match="the log ends at 3"):
        append(log, batch(2, epoch=4))
    with pytest.raises(OutOfOrderAppendError, match="epoch 3 after epoch 4"):
        append(log, batch(3, epoch=3))
    with pytest.raises(OutOfOrderAppendError):
        append(log, batch(3, 2, epoch=4), batch(4, epoch=4))
    assert content(log) == batch(0, 3, epoch=4)
    append(log, batch(9, epoch=4))  # a replica of a compacted log has gaps
    assert log.read(5, max_bytes=1, end_offset=10).read() == (batch(9, epoch=4),)


def test_an_epoch_that_an_election_left_without_data_gives_way() -> None:
    """KAFKA-10706: otherwise the follower and its leader would disagree for ever."""
    store = Store()
    log = store.create()
    append(log, batch(0, epoch=4))
    log.assign_epoch(6)
    append(log, batch(1, epoch=5))
    assert log.epochs.entries == [(4, 0), (5, 1)]
    log.assign_epoch(8)
    log.truncate_to(log.log_end_offset)
    assert log.epochs.entries == [(4, 0), (5, 1)]


def test_the_line_of_a_new_epoch_is_durable_before_the_append_returns() -> None:
    store = Store()
    log = store.create()
    append(log, batch(0, epoch=3))
    lost = store.files.after_power_loss(random.Random(0))
    assert bytes(lost.nodes[f"{DIRECTORY}/leader-epoch-checkpoint"].data) == b"0\n1\n3 0\n"


def test_reads_outside_the_log_say_so() -> None:
    log = Store().create()
    append(log, batch(0, 5))
    log.advance_log_start_offset(2)
    for offset in (1, 6):
        with pytest.raises(OffsetOutOfRangeError):
            log.read(offset, max_bytes=100, end_offset=5)
    assert log.read(5, max_bytes=100, end_offset=5).size_bytes == 0
    assert log.read(3, max_bytes=100, end_offset=5).read() == (batch(0, 5),)  # it holds 3
    with pytest.raises(OffsetOutOfRangeError):
        log.advance_log_start_offset(6)


@pytest.mark.parametrize("memory_tail_bytes", [0, 10_000])
def test_nothing_at_or_above_the_high_watermark_leaks(memory_tail_bytes: int) -> None:
    """KAFKA-9835, KAFKA-9196: the bound holds whatever grows or rolls meanwhile."""
    log = Store(config=small_config(memory_tail_bytes=memory_tail_bytes)).create()
    for offset in range(0, 40, 2):
        append(log, batch(offset, 2))
    for high_watermark in range(41):
        data = content(log, end_offset=high_watermark)
        assert data == b"".join(batch(offset, 2) for offset in range(0, high_watermark - 1, 2))


def test_hot_reads_touch_no_file_and_stop_at_the_budget() -> None:
    store = Store(config=small_config(segment_bytes=10_000, memory_tail_bytes=1000))
    log = store.create()
    for offset in range(100):
        append(log, batch(offset))
    store.files.read_bytes = 0
    part = log.read(98, max_bytes=1000, end_offset=100)
    assert part.file is None
    assert b"".join(part.read()) == batch(98) + batch(99)
    assert store.files.read_bytes == 0
    assert 0 < store.budget.used_bytes <= 1000
    assert log.read(10, max_bytes=1000, end_offset=100).file is not None
    log.truncate_to(99)
    assert store.budget.used_bytes == 0
    assert b"".join(log.read(98, max_bytes=1000, end_offset=99).read()) == batch(98)


def test_finding_a_batch_reads_headers_not_records() -> None:
    store = Store(config=small_config(segment_bytes=2**30, index_interval_bytes=4096))
    log = store.create()
    for offset in range(20):
        append(log, batch(offset, size=100_000))
    store.files.read_bytes = 0
    part = log.read(13, max_bytes=250_000, end_offset=20)
    assert (part.start_offset, part.end_offset) == (13, 15)
    assert store.files.read_bytes <= 10 * 4096


# ---- durability --------------------------------------------------------------------------------


def test_a_sync_reports_only_what_was_appended_before_it_began() -> None:
    log = Store().create()
    append(log, batch(0))
    target = log.flush_target()
    assert target is not None
    append(log, batch(1))
    target.sync()
    assert log.on_flushed(target) == 1
    assert log.flush() == 2
    assert log.flush_target() is None


def test_rolling_while_a_sync_is_in_flight_loses_nothing() -> None:
    store = Store()
    log = store.create()
    append(log, batch(0))
    first = log.flush_target()
    assert first is not None
    append(log, batch(1))
    log.roll(0)
    append(log, batch(2))
    second = log.flush_target()
    assert second is not None
    first.sync()
    assert log.on_flushed(first) == 1
    assert second.directory == DIRECTORY  # the new file's name must be durable before an ack
    second.sync()
    assert log.on_flushed(second) == 3
    lost = store.reopened(store.files.after_power_loss(random.Random(5)))
    assert lost.open().log_end_offset == 3


def test_a_sync_that_a_truncation_overtook_reports_nothing() -> None:
    log = Store().create()
    append(log, batch(0), batch(1), batch(2))
    target = log.flush_target()
    assert target is not None
    log.truncate_to(1)
    append(log, batch(1, epoch=1), batch(2, epoch=1))
    target.sync()
    assert log.on_flushed(target) == 0
    assert log.flush() == 3


def test_only_sealed_segments_are_flushed_after_a_roll() -> None:
    log = Store().create()
    append(log, batch(0))
    log.roll(0)
    append(log, batch(1))
    target = log.flush_target(sealed_only=True)
    assert target is not None
    target.sync()
    assert log.on_flushed(target) == 1 == log.active_base_offset
    assert log.flush_target(sealed_only=True) is None
    assert log.flush() == 2


def test_a_failed_sync_takes_the_log_offline_for_good() -> None:
    store = Store()
    log = store.create()
    append(log, batch(0))
    store.files.fail_sync = True
    with pytest.raises(LogOfflineError, match="sync failed"):
        log.flush()
    store.files.fail_sync = False
    for call in (
        lambda: append(log, batch(1)),
        lambda: log.read(0, max_bytes=1, end_offset=1),
        log.flush_target,
        lambda: log.truncate_to(0),
        lambda: log.assign_epoch(4),
    ):
        with pytest.raises(LogOfflineError):
            call()


def test_a_full_disk_at_every_byte_of_an_append_leaves_the_log_as_it_was() -> None:
    for free_bytes in range(0, 1400, 3):
        store = Store()
        log = store.create()
        append(log, batch(0, producer=(7, 0, 0)))
        store.files.free_bytes = free_bytes
        more = [
            batch(offset, epoch=offset // 3, producer=(7, 0, offset)) for offset in range(1, 12)
        ]
        try:
            append(log, *more)
        except DiskFullError as error:
            assert error.retriable
            assert content(log) == batch(0, producer=(7, 0, 0)), free_bytes
            assert log.log_end_offset == 1
            assert [row[2] for row in store.producers.snapshot()] == [0], free_bytes
        store.files.free_bytes = None
        if log.log_end_offset == 1:
            append(log, *more)
        assert log.log_end_offset == 12, free_bytes
        expected = b"".join([batch(0, producer=(7, 0, 0)), *more])
        assert content(log) == expected, free_bytes
        again = store.reopened()
        assert content(again.open()) == expected, free_bytes
        if free_bytes > 1300:
            assert store.files.free_bytes is None


def test_an_undo_that_fails_takes_the_log_offline() -> None:
    store = Store()
    log = store.create()
    append(log, batch(0))
    store.files.free_bytes = 20
    store.files.fail_truncate = True
    with pytest.raises(LogOfflineError, match="undo"):
        append(log, batch(1))
    with pytest.raises(LogOfflineError):
        append(log, batch(1))


def test_any_other_write_error_takes_the_log_offline() -> None:
    """KAFKA-10778: the next append must not succeed as if nothing had happened."""
    store = Store()
    log = store.create()
    append(log, batch(0))
    store.files.free_bytes = 20
    store.files.write_error = errno.EIO
    with pytest.raises(LogOfflineError, match="write failed"):
        append(log, batch(1))
    store.files.free_bytes = None
    with pytest.raises(LogOfflineError):
        append(log, batch(1))


# ---- roll, retention, time ---------------------------------------------------------------------


def test_a_segment_rolls_by_record_time_or_by_wall_time_without_one() -> None:
    log = Store(config=small_config(segment_bytes=10_000)).create()
    log.config = LogConfig(segment_bytes=10_000, segment_ms=100)
    append(log, batch(0, timestamps=[1000]))
    append(log, batch(1, timestamps=[1100]), wall_ms=10**9)
    assert log.segment_count == 1
    append(log, batch(2, timestamps=[1101]))
    assert log.segment_count == 2
    append(log, batch(3, timestamps=[-1]), wall_ms=100)
    assert log.segment_count == 2
    append(log, batch(4, timestamps=[-1]), wall_ms=101)
    assert log.segment_count == 3


def test_a_segment_rolls_when_an_index_is_full_or_an_offset_does_not_fit() -> None:
    config = small_config(segment_bytes=100_000, index_interval_bytes=0, segment_index_bytes=36)
    log = Store(config=config).create()
    for offset in range(12):
        append(log, batch(offset))
    assert log.segment_count > 2
    append(log, batch(2**33))
    assert log.log_end_offset == 2**33 + 1
    assert log.read(12, max_bytes=1000, end_offset=2**34).read() == (batch(2**33),)


def test_retention_deletes_files_late_and_readers_keep_theirs() -> None:
    store = Store(config=small_config(retention_ms=50))
    log = store.create()
    for offset in range(12):
        append(log, batch(offset, timestamps=[1000 + offset]))
    part = log.read(0, max_bytes=1000, end_offset=12)
    deleted = log.apply_retention(high_watermark=8, wall_ms=10_000)
    assert deleted
    assert deleted[-1].end_offset <= 8
    assert log.log_start_offset == deleted[-1].end_offset
    assert b"".join(part.read()).startswith(batch(0, timestamps=[1000]))
    names = store.files.list(DIRECTORY)
    assert f"{0:020d}.log.deleted" in names
    log.unlink_deleted(deleted)
    assert not any(name.endswith(".deleted") for name in store.files.list(DIRECTORY))


def test_a_log_that_expires_whole_keeps_its_offsets() -> None:
    store = Store(config=small_config(retention_ms=50))
    log = store.create()
    for offset in range(12):
        append(log, batch(offset))
    log.unlink_deleted(log.apply_retention(high_watermark=12, wall_ms=10**6))
    assert (log.log_start_offset, log.log_end_offset, log.size_bytes) == (12, 12, 0)
    again = store.reopened()
    opened = again.open()
    assert (opened.log_start_offset, opened.log_end_offset) == (12, 12)
    assert log.apply_retention(high_watermark=12, wall_ms=10**6) == []


def test_the_largest_timestamp_is_found_where_it_is() -> None:
    log = Store().create()
    assert log.offset_of_max_timestamp() is None
    append(log, batch(0, 3, timestamps=[5, 900, 7], epoch=2))
    for offset in range(3, 12):
        append(log, batch(offset, timestamps=[100], epoch=2))
    found = log.offset_of_max_timestamp()
    assert found is not None
    assert (found.timestamp_ms, found.offset, found.leader_epoch) == (900, 1, 2)
    assert log.offset_for_timestamp(901) is None


def test_headers_that_lie_about_their_timestamps_cost_a_bounded_look_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Store(config=small_config(segment_bytes=100_000)).create()
    append(log, batch(0, timestamps=[1000]))
    lies = [promising(batch(offset, timestamps=[1000]), 5000) for offset in range(1, 4)]
    append(log, *lies)
    append(log, batch(4, timestamps=[5000]))
    found = log.offset_for_timestamp(4000)
    assert found is not None
    assert (found.timestamp_ms, found.offset) == (5000, 4)  # a few lies are looked through
    for offset in range(5, 300):
        append(log, promising(batch(offset, timestamps=[1000]), 9000))
    decoded: list[int] = []

    def find(data: Buffer, timestamp_ms: int, start_offset: int) -> TimestampAndOffset | None:
        decoded.append(len(data))
        return find_in_batch(data, timestamp_ms, start_offset)

    monkeypatch.setattr(log_module, "find_in_batch", find)
    found = log.offset_for_timestamp(8000)
    assert found is not None
    assert (found.timestamp_ms, found.offset) == (9000, 5 + MAX_BATCHES_DECODED)
    assert len(decoded) == MAX_BATCHES_DECODED


def test_a_sealed_batch_of_rubbish_is_found_by_its_header() -> None:
    log = Store(config=small_config(segment_bytes=100_000)).create()
    append(log, batch(0, timestamps=[1000]))
    rubbish = promising(batch(1, 2, timestamps=[2000, 2000])[:-25] + b"\xff" * 25, 2000)
    append(log, rubbish)
    append(log, batch(3, timestamps=[3000]))
    for timestamp, offset in ((1000, 0), (2000, 1), (2001, 3)):
        found = log.offset_for_timestamp(timestamp)
        assert found is not None
        assert found.offset == offset


def promising(data: bytes, max_timestamp: int) -> bytes:
    """The batch with a header that promises a later record than it has."""
    rest = data[21:35] + struct.pack(">q", max_timestamp) + data[43:]
    return data[:17] + struct.pack(">I", crc32c(rest)) + rest


def test_truncation_takes_producer_state_back() -> None:
    store = Store()
    log = store.create()
    for offset in range(12):
        append(log, batch(offset, producer=(7, 0, offset)))
    log.truncate_to(5)
    assert [row[2] for row in store.producers.snapshot()] == [0, 1, 2, 3, 4]


def test_a_full_truncation_that_a_crash_interrupts_leaves_the_old_log_or_the_new_start() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        store = Store()
        log = store.create()
        for offset in range(12):
            append(log, batch(offset))
        log.flush()
        store.checkpoint(log)
        start = rng.choice([0, 5, 12, 50])
        store.files.fail_sync = False
        log.truncate_fully_and_start_at(start)
        opened = store.reopened(store.files.after_power_loss(rng)).open()
        assert (opened.log_start_offset, opened.log_end_offset) == (start, start)
