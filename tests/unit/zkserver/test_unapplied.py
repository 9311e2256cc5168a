"""The queue of what is logged and not applied."""

from __future__ import annotations

import random

from duolog_protocol.types import make_zxid
from zkserver.core.peer_events import AppendRecords
from zkserver.core.unapplied import Unapplied


def record(zxid: int) -> bytes:
    return zxid.to_bytes(8, "big")


def append(first_zxid: int, last_zxid: int) -> AppendRecords:
    records = [record(zxid) for zxid in range(first_zxid, last_zxid + 1)]
    return AppendRecords(records, first_zxid, last_zxid)


def queue(*ranges: tuple[int, int]) -> Unapplied:
    found = Unapplied()
    for first_zxid, last_zxid in ranges:
        found.append(append(first_zxid, last_zxid))
    return found


def test_an_append_is_taken_in_parts() -> None:
    unapplied = queue((1, 3), (4, 4), (5, 9))
    assert unapplied.take_up_to(2) == [record(1), record(2)]
    assert unapplied.take_up_to(2) == []
    assert unapplied.take_up_to(6) == [record(zxid) for zxid in (3, 4, 5, 6)]
    assert unapplied.take_up_to(99) == [record(zxid) for zxid in (7, 8, 9)]
    assert unapplied.take_up_to(99) == []


def test_what_the_log_loses_is_never_taken() -> None:
    unapplied = queue((1, 3), (4, 9))
    unapplied.cut_after(6)
    unapplied.append(append(7, 7))
    assert len(unapplied.take_up_to(99)) == 7
    unapplied.append(append(8, 9))
    unapplied.cut_after(7)
    assert unapplied.take_up_to(99) == []


def test_an_append_is_not_changed() -> None:
    """The disk is about to write it."""
    effect = append(1, 4)
    unapplied = Unapplied()
    unapplied.append(effect)
    unapplied.take_up_to(2)
    unapplied.cut_after(3)
    assert (effect.first_zxid, effect.last_zxid, len(effect.records)) == (1, 4, 4)


def test_it_is_as_a_plain_list_of_records() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        unapplied, naive, last, epoch = Unapplied(), list[int](), make_zxid(1, 0), 1
        for _ in range(30):
            lowest = naive[0] if naive else last
            match rng.randrange(4):
                case 0:
                    zxid = rng.randint(lowest - 1, last)
                    assert unapplied.take_up_to(zxid) == [record(z) for z in naive if z <= zxid]
                    naive = [each for each in naive if each > zxid]
                case 1:
                    zxid = rng.choice([*naive, lowest - 1, last])
                    unapplied.cut_after(zxid)
                    naive = [each for each in naive if each <= zxid]
                    last = naive[-1] if naive else last
                case _:
                    epoch += rng.random() < 0.2
                    first = max(last, make_zxid(epoch, 0)) + 1
                    last = first + rng.randrange(5)
                    unapplied.append(append(first, last))
                    naive += range(first, last + 1)
