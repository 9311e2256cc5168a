"""A log read while it grows: every durable record once, whatever the pieces are."""

from __future__ import annotations

import random

import pytest

from duolog_cluster.sim.disk import SimDisk
from duolog_protocol.errors import CorruptRecordError
from duolog_protocol.types import make_zxid
from zkserver.storage.log_cursor import LogCursor
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.txnlog import LogOptions


def zxid(counter: int) -> int:
    return make_zxid(1, counter)


def record(counter: int) -> bytes:
    return zxid(counter).to_bytes(8, "big") + bytes([counter % 251]) * (counter % 40)


def open_log() -> DataDirectory:
    options = LogOptions(file_bytes=600, preallocate_bytes=128)
    data = DataDirectory(SimDisk(random.Random(1)), "/zk", 1, random.Random(1), log_options=options)
    assert list(data.records()) == []
    return data


def write(data: DataDirectory, first: int, last: int) -> None:
    records = [record(counter) for counter in range(first, last + 1)]
    data.log.append_durably(records, zxid(last))


@pytest.mark.parametrize("seed", range(40))
def test_every_record_comes_once_and_in_order(seed: int) -> None:
    rng, data = random.Random(seed), open_log()
    written = rng.randint(1, 60)
    write(data, 0, written)
    after = rng.randint(0, written)
    cursor = LogCursor(data.log, zxid(after))
    found: list[bytes] = []
    for _ in range(200):
        match rng.choice(("write", "read", "read", "mark", "roll")):
            case "write":
                count = rng.randint(1, 9)
                write(data, written + 1, written + count)
                written += count
            case "mark":
                data.log.mark()
            case "roll":
                data.log.roll()
            case "read":
                max_bytes = rng.choice((1, 100, 5_000))
                records, is_last = cursor.read(max_bytes)
                found += records
                assert is_last is (after + len(found) == written)
                assert is_last or sum(map(len, records)) >= max_bytes
                assert sum(map(len, records[:-1])) < max_bytes
                assert cursor.zxid == zxid(after + len(found))
    found += cursor.read(1 << 20)[0]
    assert found == [record(counter) for counter in range(after + 1, written + 1)]
    cursor.close()
    cursor.close()


def test_what_was_appended_and_not_synced_does_not_come() -> None:
    data = open_log()
    write(data, 0, 3)
    cursor = LogCursor(data.log, zxid(0))
    data.log.append([record(4)], zxid(4))
    assert cursor.read(1 << 20) == ([record(1), record(2), record(3)], True)
    data.log.sync()
    assert cursor.read(1 << 20) == ([record(4)], True)


def test_an_open_file_outlives_its_purge_and_what_is_missing_behind_it_is_told() -> None:
    data = open_log()
    for first in range(0, 30, 10):
        write(data, first, first + 9)
        data.log.roll()
    cursor = LogCursor(data.log, zxid(0))
    assert cursor.read(1)[0] == [record(1)]
    assert len(data.log.purge(zxid(29))) == 3
    with pytest.raises(CorruptRecordError, match="begins after"):
        cursor.read(1 << 20)
    with pytest.raises(CorruptRecordError, match="begins after"):
        LogCursor(data.log, zxid(5)).read(1)


@pytest.mark.parametrize("counter", [0, 5, 25])
def test_damage_is_told_and_nothing_behind_it_is_read(counter: int) -> None:
    data = open_log()
    for first in range(0, 30, 10):
        write(data, first, first + 4)
        write(data, first + 5, first + 9)
        data.log.roll()
    base, file, _ = data.log.open_after(zxid(counter))
    del base
    content = file.pread(file.size(), 0)
    place = content.index(record(counter + 1))
    file.pwrite(b"?", place)
    file.close()
    cursor = LogCursor(data.log, zxid(0))
    with pytest.raises(CorruptRecordError, match="damaged or missing"):
        for _ in range(100):
            cursor.read(1)
    assert cursor.zxid <= zxid(counter)
