"""Snapshot files of producer state: Kafka's bytes; any damage means the log is replayed instead."""

from __future__ import annotations

from kbroker.storage import producer_snapshot
from tests.unit.kbroker.storage_support import MemoryFiles

ROWS = [(1000, 2, 9, 109, 4, 1_700_000_000_000, -1, -1), (7, 0, 0, 1, 0, 5, 3, 1)]


def test_the_bytes_are_kafkas() -> None:
    data = producer_snapshot.encode(ROWS[:1])
    assert data[:2].hex() == "0001"
    assert data[6:].hex() == (
        "00000001"
        "00000000000003e8"
        "0002"
        "00000009"
        "000000000000006d"
        "00000004"
        "0000018bcfe56800"
        "ffffffff"
        "ffffffffffffffff"
    )
    assert producer_snapshot.decode(data) == ROWS[:1]
    assert producer_snapshot.decode(producer_snapshot.encode([])) == []


def test_every_cut_and_every_flipped_bit_is_noticed() -> None:
    data = producer_snapshot.encode(ROWS)
    assert producer_snapshot.decode(data) == ROWS
    assert producer_snapshot.decode(data + b"\0") is None
    for cut in range(len(data)):
        assert producer_snapshot.decode(data[:cut]) is None
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        assert producer_snapshot.decode(bytes(damaged)) is None


def test_the_newest_sound_snapshot_is_loaded_and_the_others_go() -> None:
    files = MemoryFiles()
    for offset in (10, 20, 30):
        producer_snapshot.write(files, "d", offset, [(offset, *ROWS[0][1:])])
    files.nodes["d/00000000000000000020.snapshot"].data[9] ^= 1
    newest = producer_snapshot.load_newest(files, "d", at_most=29)
    assert newest == (10, [(10, *ROWS[0][1:])])
    assert producer_snapshot.load_newest(files, "d", at_most=29, at_least=11) is None
    assert producer_snapshot.load_newest(files, "d", at_most=9) is None
    producer_snapshot.delete_outside(files, "d", first=25, last=29)
    assert producer_snapshot.offsets(files, "d") == [20]
