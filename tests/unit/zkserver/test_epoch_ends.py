"""Which zxids a log holds, and where two logs part."""

from __future__ import annotations

import random

import pytest

from duolog_protocol.types import ZXID_COUNTER_LAST, epoch_of, make_zxid
from zkserver.core.epoch_ends import EpochEnds


class PlainLog:
    """The same log, as a plain set of zxids."""

    def __init__(self, first_zxid_before: int) -> None:
        self.zxids = {first_zxid_before}

    def append(self, first_zxid: int, last_zxid: int) -> None:
        self.zxids |= set(range(first_zxid, last_zxid + 1))

    def truncate_to(self, zxid: int) -> None:
        self.zxids = {each for each in self.zxids if each <= zxid}

    def forget_before(self, zxid: int) -> None:
        self.zxids = {each for each in self.zxids if each >= zxid}

    def last_common(self, zxid: int) -> int | None:
        return max((each for each in self.zxids if each <= zxid), default=None)


def log_of(*ends: tuple[int, int]) -> EpochEnds:
    """A log with no snapshot before it that ends each of these epochs at this counter."""
    log = EpochEnds(0)
    for epoch, counter in ends:
        log.append(make_zxid(epoch, 0), make_zxid(epoch, counter))
    return log


def test_an_empty_log_ends_where_it_begins() -> None:
    log = EpochEnds(make_zxid(2, 7))
    assert log.last_zxid == make_zxid(2, 7)
    assert log.holds(make_zxid(2, 7)) and not log.holds(make_zxid(2, 6))
    assert log.last_common(make_zxid(2, 6)) is None
    assert log.last_common(make_zxid(5, 0)) == make_zxid(2, 7)


def test_the_first_record_of_all() -> None:
    """zxid 0 is nobody's: alone, the first one is 1; in an ensemble it opens epoch 1."""
    log = EpochEnds(0)
    assert log.follows(1) and log.follows(make_zxid(1, 0))
    assert not log.follows(0) and not log.follows(2) and not log.follows(make_zxid(1, 1))


def test_what_may_be_appended() -> None:
    log = log_of((1, 4), (3, 2))
    assert log.follows(make_zxid(3, 3))
    assert log.follows(make_zxid(4, 0)) and log.follows(make_zxid(9, 0))
    for wrong in [(3, 2), (3, 4), (4, 1), (2, 0), (3, 0), (1, 5)]:
        assert not log.follows(make_zxid(*wrong)), wrong
        with pytest.raises(AssertionError):
            log.append(make_zxid(*wrong), make_zxid(*wrong))


def test_a_group_is_of_one_epoch() -> None:
    log = log_of((1, 4))
    with pytest.raises(AssertionError):
        log.append(make_zxid(1, 5), make_zxid(2, 0))
    with pytest.raises(AssertionError):
        log.append(make_zxid(1, 5), make_zxid(1, 4))
    assert log.last_zxid == make_zxid(1, 4)


def test_behind_the_last_counter_comes_the_next_epoch() -> None:
    log = EpochEnds(make_zxid(1, ZXID_COUNTER_LAST))
    assert log.follows(make_zxid(2, 0)) and not log.follows(make_zxid(2, 1))
    log.append(make_zxid(2, 0), make_zxid(2, 0))
    log.truncate_to(make_zxid(1, ZXID_COUNTER_LAST))
    assert log.last_zxid == make_zxid(1, ZXID_COUNTER_LAST)


@pytest.mark.parametrize(
    ("learner", "common"),
    [
        ((3, 1), (3, 1)),  # behind
        ((3, 2), (3, 2)),  # equal
        ((3, 9), (3, 2)),  # has more of our last epoch
        ((1, 9), (1, 4)),  # has logged in an epoch what its leader took with it
        ((2, 5), (1, 4)),  # an epoch that nobody else has a record of
        ((4, 0), (3, 2)),  # a newer epoch
        ((0, 0), (0, 0)),  # nothing
    ],
)
def test_where_a_learner_leaves_our_log(learner: tuple[int, int], common: tuple[int, int]) -> None:
    assert log_of((1, 4), (3, 2)).last_common(make_zxid(*learner)) == make_zxid(*common)


def test_only_what_is_held_can_be_truncated_to() -> None:
    log = log_of((1, 4), (3, 2))
    for wrong in [(2, 0), (1, 5), (3, 3)]:
        with pytest.raises(AssertionError):
            log.truncate_to(make_zxid(*wrong))
    log.truncate_to(make_zxid(1, 2))
    assert log.last_zxid == make_zxid(1, 2)
    assert log.follows(make_zxid(1, 3)) and log.follows(make_zxid(2, 0))
    log.truncate_to(0)
    assert log.last_zxid == 0 and log.follows(1)


def test_what_was_forgotten_before_the_log_begins_is_forgotten_once() -> None:
    """A log's files may go back further than what was read of them at the start."""
    log = EpochEnds(make_zxid(2, 7))
    log.forget_before(make_zxid(1, 3))
    assert log.first_zxid_before == log.last_zxid == make_zxid(2, 7)
    with pytest.raises(AssertionError):
        log.forget_before(make_zxid(2, 8))


def test_a_log_that_was_read_from_its_snapshot_on_is_known_from_further_back() -> None:
    whole = log_of((1, 4), (3, 6), (4, 1))
    zxids = [make_zxid(epoch, n) for epoch, count in ((1, 5), (3, 3)) for n in range(count)]
    behind = EpochEnds(zxids[-1])
    behind.append(make_zxid(3, 3), make_zxid(3, 6))
    behind.append(make_zxid(4, 0), make_zxid(4, 1))
    found = behind.with_history(0, zxids)
    assert found.first_zxid_before == 0 and found._ends == whole._ends
    assert behind.with_history(zxids[1], zxids[2:])._ends == whole._ends[1:]
    assert behind.with_history(zxids[-1], [])._ends == behind._ends


@pytest.mark.parametrize("missing", [0, 3, 7])
def test_what_is_read_with_a_gap_is_not_promised(missing: int) -> None:
    zxids = [make_zxid(epoch, n) for epoch, count in ((1, 5), (3, 3)) for n in range(count)]
    behind = EpochEnds(zxids[-1])
    del zxids[missing]
    assert behind.with_history(0, zxids) is behind


def nearby(rng: random.Random, log: EpochEnds) -> int:
    """A zxid in, around and between the epochs of the log."""
    return make_zxid(rng.randint(0, epoch_of(log.last_zxid) + 2), rng.randint(0, 12))


def step(rng: random.Random, log: EpochEnds, plain: PlainLog) -> None:
    kind = rng.randrange(8)
    if kind == 7:
        zxid = rng.choice(sorted(plain.zxids))
        log.forget_before(zxid)
        plain.forget_before(zxid)
        return
    if kind == 0:
        zxid = rng.choice(sorted(plain.zxids))
        log.truncate_to(zxid)
        plain.truncate_to(zxid)
        return
    first_zxid = log.last_zxid + 1
    if kind <= 2:
        first_zxid = make_zxid(epoch_of(log.last_zxid) + rng.randint(1, 2), 0)
    last_zxid = first_zxid + rng.randrange(4)
    assert log.follows(first_zxid), f"{first_zxid:#x}"
    log.append(first_zxid, last_zxid)
    plain.append(first_zxid, last_zxid)


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_against_a_plain_set(seed: int) -> None:
    rng = random.Random(seed)
    start = make_zxid(rng.randrange(3), rng.randrange(5))
    log, plain = EpochEnds(start), PlainLog(start)
    for _ in range(40):
        step(rng, log, plain)
        assert log.first_zxid_before == min(plain.zxids)
        assert log.last_zxid == max(plain.zxids)
        assert all(map(log.holds, plain.zxids)), seed
        for _ in range(20):
            zxid = nearby(rng, log)
            assert log.holds(zxid) == (zxid in plain.zxids), (seed, hex(zxid))
            assert log.last_common(zxid) == plain.last_common(zxid), (seed, hex(zxid))
