"""Idempotent producers: duplicates, gaps, fencing, wrap-around, expiry, snapshots."""

from __future__ import annotations

from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.records import BatchHeader
from kbroker.core.producer_state import Duplicate, ProducerStates, next_sequence
from tests.unit.kbroker.storage_support import batch, header_of

FENCED = KafkaErrorCode.INVALID_PRODUCER_EPOCH
OUT_OF_ORDER = KafkaErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
LAST = 2**31 - 1
TRANSACTIONAL, CONTROL = 0x10, 0x30


def header(
    offset: int, sequence: int, count: int = 1, *, pid: int = 7, epoch: int = 0, attributes: int = 0
) -> BatchHeader:
    return header_of(batch(offset, count, producer=(pid, epoch, sequence), attributes=attributes))


def after(*headers: BatchHeader) -> ProducerStates:
    states = ProducerStates()
    for one in headers:
        assert states.check(one) is None, one
        states.replay(one)
    return states


def test_the_next_batch_of_a_producer_is_accepted_and_a_gap_is_not() -> None:
    states = after(header(0, 0, 3))
    assert states.check(header(3, 3)) is None
    assert states.check(header(3, 4)) is OUT_OF_ORDER
    assert states.check(header(3, 2)) is OUT_OF_ORDER


def test_each_of_the_last_five_batches_is_a_duplicate_with_its_old_offset() -> None:
    states = after(*(header(10 * n, 2 * n, 2) for n in range(6)))
    for n in range(1, 6):
        assert states.check(header(99, 2 * n, 2)) == Duplicate(10 * n, 10 * n + 1, 1000 + 10 * n)
    assert states.check(header(99, 0, 2)) is OUT_OF_ORDER  # the sixth is forgotten
    assert states.check(header(99, 4, 1)) is OUT_OF_ORDER  # part of a batch is no duplicate


def test_checking_changes_nothing() -> None:
    states = after(header(0, 0))
    before = states.snapshot()
    for sequence in (0, 1, 5):
        states.check(header(1, sequence))
        states.check(header(1, sequence, epoch=3))
    assert states.snapshot() == before


def test_an_older_epoch_is_fenced_and_a_newer_one_starts_at_zero() -> None:
    states = after(header(0, 0, epoch=3))
    assert states.check(header(1, 1, epoch=2)) is FENCED
    assert states.check(header(1, 1, epoch=4)) is OUT_OF_ORDER
    assert states.check(header(1, 0, epoch=4)) is None
    states.replay(header(1, 0, epoch=4))
    assert states.check(header(2, 0, epoch=3)) is FENCED
    assert states.check(header(2, 0, epoch=4)) == Duplicate(1, 1, 1001)


def test_a_producer_that_is_not_known_may_start_anywhere() -> None:
    """Its state may have expired or its data been deleted (KAFKA-7298)."""
    states = ProducerStates()
    assert states.check(header(0, 41)) is None
    states.replay(header(0, 41))
    assert states.check(header(1, 42)) is None
    assert states.check(header(1, 0)) is OUT_OF_ORDER


def test_sequences_wrap_to_zero() -> None:
    assert next_sequence(LAST) == 0
    assert next_sequence(LAST - 1, 3) == 1
    states = after(header(0, LAST - 1, 4))  # LAST - 1, LAST, 0, 1
    assert states.check(header(4, 2)) is None
    assert states.check(header(4, LAST - 1, 4)) == Duplicate(0, 3, 1000)
    assert after(header(0, LAST)).check(header(1, 0)) is None
    rows = states.snapshot()
    states.load(rows)
    assert states.check(header(4, LAST - 1, 4)) == Duplicate(0, 3, 1000)


def test_batches_without_a_producer_are_ignored() -> None:
    states = ProducerStates()
    plain = header_of(batch(0))
    assert states.check(plain) is None
    states.replay(plain)
    assert len(states) == 0


def test_replay_records_what_it_is_given_without_refusing() -> None:
    """Followers and recovery take the leader's word."""
    states = after(header(0, 0))
    states.replay(header(1, 50))
    states.replay(header(2, 9, epoch=5))
    assert states.check(header(3, 10, epoch=5)) is None


def test_a_snapshot_brings_all_five_batches_back() -> None:
    states = after(*(header(n, n) for n in range(9)), header(9, 0, pid=8))
    loaded = ProducerStates()
    loaded.load(states.snapshot())
    assert loaded.snapshot() == states.snapshot()
    assert loaded.check(header(99, 4)) == Duplicate(4, 4, 1004)
    assert loaded.check(header(99, 3)) is OUT_OF_ORDER


def test_kafkas_snapshot_with_one_row_per_producer_loads() -> None:
    states = ProducerStates()
    states.load([(7, 2, 9, 109, 4, 1234, -1, -1)])
    assert states.check(header(110, 10, epoch=2)) is None
    assert states.check(header(110, 5, 5, epoch=2)) == Duplicate(105, 109, 1234)


def test_idle_producers_are_forgotten_late_but_never_early() -> None:
    states = after(header(0, 0), header(1, 0, pid=8))
    assert states.expire(1000, 100) == 0  # idle time starts here
    states.replay(header(2, 1, pid=8))
    assert states.expire(1099, 100) == 0
    assert states.expire(1100, 100) == 1
    assert 7 not in states
    assert 8 in states
    assert states.expire(1199, 100) == 1


def test_an_open_transaction_keeps_its_producer() -> None:
    states = after(header(5, 0, attributes=TRANSACTIONAL), header(6, 1, attributes=TRANSACTIONAL))
    states.expire(0, 10)
    assert states.expire(10**9, 10) == 0
    assert states.snapshot()[0][-1] == 5
    states.replay(header_of(batch(7, producer=(7, 0, -1), attributes=CONTROL)))
    assert states.snapshot()[0][-1] == -1
    assert states.check(header(8, 2)) is None
    states.expire(10**9, 10)
    assert states.expire(2 * 10**9, 10) == 1


def test_the_number_of_producers_is_bounded_and_the_idlest_goes() -> None:
    states = ProducerStates(max_producer_ids=3)
    for pid in range(3):
        states.replay(header(pid, 0, pid=pid))
    states.replay(header(3, 1, pid=0))
    states.replay(header(4, 0, pid=9))
    assert len(states) == 3
    assert 1 not in states
    assert 0 in states
