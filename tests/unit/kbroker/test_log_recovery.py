"""Opening a damaged log: the longest valid prefix survives, or the broker refuses clearly."""

from __future__ import annotations

import random

import pytest

from duolog_protocol.errors import CorruptRecordError
from kbroker.storage.log import Log
from kbroker.storage.producer_snapshot import ProducerEntry
from tests.unit.kbroker.storage_support import (
    DIRECTORY,
    PARTITION,
    MemoryFiles,
    Store,
    append,
    batch,
    content,
)

BATCHES = [
    batch(0, 2, producer=(7, 0, 0)),
    batch(2, 1, epoch=1, producer=(7, 0, 2)),
    batch(3, 3, epoch=1, timestamps=[9, 5000, 7]),
    batch(6, 1, epoch=4, producer=(8, 1, 0)),
    batch(7, 2, epoch=4, producer=(7, 0, 3)),
    batch(9, 1, epoch=4),
    batch(10, 1, epoch=5, producer=(7, 0, 5)),
]


def filled(*, segment_bytes: int = 300) -> tuple[Store, Log]:
    store = Store()
    store.config = store.config.__class__(
        segment_bytes=segment_bytes, index_interval_bytes=90, memory_tail_bytes=0
    )
    log = store.create()
    for data in BATCHES:
        append(log, data)
    return store, log


def log_files(files: MemoryFiles) -> list[str]:
    return [f"{DIRECTORY}/{name}" for name in files.list(DIRECTORY) if name.endswith(".log")]


def whole_prefix(data: bytes) -> bytes:
    """The longest run of whole batches at the start, found the naive way."""
    kept = b""
    for one in BATCHES:
        if data[len(kept) : len(kept) + len(one)] != one:
            break
        kept += one
    return kept


def state_of(store: Store, log: Log) -> tuple[object, ...]:
    return (
        content(log),
        log.log_end_offset,
        log.epochs.entries,
        sorted(store.producers.snapshot()),
        [segment._replace(newest_ms=0) for segment in log.segment_infos()],
    )


def expected_producers(prefix: bytes) -> list[ProducerEntry]:
    store = Store()
    log = store.create()
    position = 0
    for one in BATCHES:
        if position < len(prefix):
            append(log, one)
        position += len(one)
    return sorted(store.producers.snapshot())


def test_a_file_cut_at_every_byte_yields_the_longest_prefix_twice() -> None:
    store, _log = filled()
    paths = log_files(store.files)
    assert len(paths) >= 3, paths
    before = b""
    for path in paths:
        data = bytes(store.files.nodes[path].data)
        for cut in range(len(data)):
            crashed = store.reopened()
            del crashed.files.nodes[path].data[cut:]
            first = crashed.open()
            kept = content(first)
            assert kept == whole_prefix(before + data[:cut]), (path, cut)
            assert sorted(crashed.producers.snapshot()) == expected_producers(kept), (path, cut)
            again = crashed.reopened()
            assert state_of(again, again.open()) == state_of(crashed, first), (path, cut)
        before += data


def test_a_flipped_bit_is_never_served() -> None:
    store, _ = filled()
    whole = b"".join(BATCHES)
    before = 0
    for path in log_files(store.files):
        data = store.files.nodes[path].data
        for byte in range(len(data)):
            crashed = store.reopened()
            crashed.files.nodes[path].data[byte] ^= 1 << (byte % 8)
            kept = content(crashed.open())
            if kept != whole_prefix(kept):
                # Base offset and leader epoch are outside the checksum (Kafka's format).
                position = before + byte
                start = 0
                for one in BATCHES:
                    if position < start + len(one):
                        break
                    start += len(one)
                assert position - start < 16, (path, byte)
            else:
                assert whole.startswith(kept)
                assert len(kept) <= before + byte
        before += len(data)


@pytest.mark.parametrize("tail", [bytes(500), b"\xff" * 77, BATCHES[0], BATCHES[-1][:70]])
def test_garbage_zeros_and_stale_batches_at_the_end_are_cut(tail: bytes) -> None:
    store, log = filled()
    crashed = store.reopened()
    crashed.files.nodes[log_files(crashed.files)[-1]].data.extend(tail)
    opened = crashed.open()
    assert content(opened) == b"".join(BATCHES)
    assert crashed.report.cut_bytes == len(tail)
    assert opened.log_end_offset == log.log_end_offset


def test_an_older_epoch_after_a_newer_one_is_the_stale_tail_of_a_truncation() -> None:
    store, log = filled()
    crashed = store.reopened()
    crashed.files.nodes[log_files(crashed.files)[-1]].data.extend(batch(11, epoch=2))
    assert crashed.open().log_end_offset == log.log_end_offset


def test_a_missing_segment_in_the_middle_cuts_the_log_there() -> None:
    store, _ = filled()
    crashed = store.reopened()
    paths = log_files(crashed.files)
    crashed.files.unlink(paths[1])
    opened = crashed.open()
    assert content(opened) == bytes(store.files.nodes[paths[0]].data)
    assert log_files(crashed.files) == paths[:1]


@pytest.mark.parametrize("keep_bytes", range(0, 500, 7))
def test_damage_below_the_recovery_point_is_refused(keep_bytes: int) -> None:
    store, log = filled(segment_bytes=100_000)
    log.flush()
    store.checkpoint(log)
    append(log, batch(11, epoch=5))
    synced = sum(map(len, BATCHES))
    crashed = store.reopened()
    del crashed.files.nodes[log_files(crashed.files)[0]].data[keep_bytes:]
    if keep_bytes < synced:
        with pytest.raises(CorruptRecordError, match="synced up to 11"):
            crashed.open()
    else:
        assert crashed.open().log_end_offset == 11


def test_a_lost_first_or_middle_segment_below_the_recovery_point_is_refused() -> None:
    store, log = filled()
    log.flush()
    store.checkpoint(log)
    for path in log_files(store.files):
        crashed = store.reopened()
        crashed.files.unlink(path)
        with pytest.raises(CorruptRecordError):
            crashed.open()
        crashed = store.reopened()
        crashed.files.unlink(path)
        with pytest.raises(CorruptRecordError):
            crashed.open(clean=True)


def test_a_clean_shutdown_opens_without_reading_the_batches() -> None:
    store, log = filled()
    expected = state_of(store, log)
    log.close()
    store.checkpoints.write()
    clean = store.reopened()
    opened = clean.open(clean=True)
    assert clean.report.clean
    assert clean.report.scanned_bytes == 0
    assert state_of(clean, opened) == expected
    append(opened, batch(11, epoch=5))
    assert opened.log_end_offset == 12


def test_a_clean_mark_does_not_hide_a_file_that_is_longer_than_its_recovery_point() -> None:
    store, log = filled()
    log.close()
    store.checkpoints.write()
    dirty = store.reopened()
    dirty.files.nodes[log_files(dirty.files)[-1]].data.extend(b"x" * 40)
    assert content(dirty.open(clean=True)) == b"".join(BATCHES)
    assert not dirty.report.clean


@pytest.mark.parametrize("clean", [True, False])
def test_lost_or_corrupt_indexes_are_rebuilt_equal(clean: bool) -> None:
    store, log = filled()
    log.close()
    store.checkpoints.write()
    reference = store.reopened()
    reference.open(clean=True).close()
    indexes = [name for name in reference.files.list(DIRECTORY) if "index" in name]
    assert any(len(reference.files.nodes[f"{DIRECTORY}/{name}"].data) > 8 for name in indexes)
    damages = {
        "lost": lambda files, path: files.unlink(path),
        "empty": lambda files, path: files.nodes[path].data.clear(),
        "torn": lambda files, path: files.nodes[path].data.extend(b"abc"),
        "zeros": lambda files, path: files.nodes[path].data.__setitem__(
            slice(None), bytes(len(files.nodes[path].data))
        ),
        "garbage": lambda files, path: files.nodes[path].data.extend(b"\x7f" * 24),
    }
    for name in indexes:
        for damage, apply in damages.items():
            other = store.reopened()
            path = f"{DIRECTORY}/{name}"
            apply(other.files, path)
            opened = other.open(clean=clean)
            assert content(opened, max_bytes=1) == b"".join(BATCHES), (name, damage)
            for timestamp in (1, 1001, 1005, 5000):
                opened.offset_for_timestamp(timestamp)
            opened.close()
            assert other.files.nodes[path].data == reference.files.nodes[path].data, (name, damage)


def test_every_flipped_bit_of_an_index_gives_the_same_answers() -> None:
    store, log = filled()
    times = [0, 9, 1000, 1002, 1003, 1006, 1008, 1010, 5000, 5001]
    expected = [log.offset_for_timestamp(time) for time in times]
    log.close()
    store.checkpoints.write()
    for name in store.files.list(DIRECTORY):
        if "index" not in name:
            continue
        path = f"{DIRECTORY}/{name}"
        for bit in range(len(store.files.nodes[path].data) * 8):
            other = store.reopened()
            other.files.nodes[path].data[bit // 8] ^= 1 << (bit % 8)
            opened = other.open(clean=True)
            assert content(opened, max_bytes=100) == b"".join(BATCHES), (name, bit)
            assert [opened.offset_for_timestamp(time) for time in times] == expected, (name, bit)


def test_a_lost_epoch_file_is_read_back_from_the_batches() -> None:
    store, log = filled()
    entries = log.epochs.entries
    log.close()
    store.checkpoints.write()
    for damage in (b"", b"0\n1\n", b"nonsense", b"0\n2\n5 10\n4 11\n"):
        for clean in (True, False):
            other = store.reopened()
            other.files.nodes[f"{DIRECTORY}/leader-epoch-checkpoint"].data[:] = damage
            assert other.open(clean=clean).epochs.entries == entries


def test_an_election_without_data_is_remembered_over_a_restart() -> None:
    """KAFKA-7415: the epoch was announced; its start offset must not be forgotten."""
    store, log = filled()
    log.assign_epoch(9)
    opened = store.reopened().open()
    assert opened.epochs.entries[-1] == (9, 11)
    assert opened.end_offset_for_epoch(9) == (9, 11)


def test_leftovers_are_cleared_away_and_strangers_left_alone() -> None:
    store, _ = filled()
    crashed = store.reopened()
    for name in (
        "00000000000000000000.log.deleted",
        "leader-epoch-checkpoint.tmp",
        "00000000000000000000.log.cleaned",
        "00000000000000000999.index",
        "notes.txt",
    ):
        crashed.files.open(f"{DIRECTORY}/{name}", create=True)
    assert content(crashed.open()) == b"".join(BATCHES)
    names = crashed.files.list(DIRECTORY)
    assert not any(name.endswith((".deleted", ".tmp", ".cleaned")) for name in names)
    assert "00000000000000000999.index" not in names
    assert "notes.txt" in names


def test_a_log_that_ends_before_its_start_offset_restarts_there() -> None:
    store, _ = filled()
    crashed = store.reopened()
    crashed.checkpoints.partition(PARTITION).write_log_start_offset(40)
    opened = crashed.open()
    assert (opened.log_start_offset, opened.log_end_offset) == (40, 40)
    append(opened, batch(40, epoch=5))
    assert content(opened) == batch(40, epoch=5)


@pytest.mark.parametrize("seed", range(150))
def test_after_power_loss_what_was_durable_is_there_and_nothing_is_missing_in_between(
    seed: int,
) -> None:
    rng = random.Random(seed)
    store = Store()
    log = store.create()
    durable = 0
    written: dict[int, bytes] = {}
    epoch = 0
    for _ in range(rng.randint(1, 40)):
        action = rng.random()
        if action < 0.6:
            epoch += rng.random() < 0.1
            data = batch(log.log_end_offset, rng.randint(1, 3), epoch=epoch)
            written[log.log_end_offset] = data
            append(log, data)
        elif action < 0.8:
            durable = log.flush()
        elif action < 0.9:
            store.checkpoint(log)
        elif action < 0.95 and log.log_end_offset:
            cut = rng.randint(max(0, log.log_end_offset - 6), log.log_end_offset)
            log.unlink_deleted(log.truncate_to(cut))
            durable = min(durable, log.log_end_offset)
            written = {at: data for at, data in written.items() if at < log.log_end_offset}
            epoch += 1
        else:
            log.roll(0)
    whole = b"".join(written[at] for at in sorted(written))
    crashed = store.reopened(store.files.after_power_loss(rng))
    opened = crashed.open()
    kept = content(opened)
    assert whole.startswith(kept)
    assert opened.log_end_offset >= durable
    assert content(store.reopened(crashed.files.copy()).open()) == kept
