"""Positions: what is handed out next, whatever is buffered, damaged, aborted or sought."""

from __future__ import annotations

import random
from typing import Any

import pytest

from duolog.core.delivery_errors import NoOffsetForPartitionError, RecordDecodeError
from duolog.core.fetch_positions import Decoder, PartitionPosition
from duolog.values import ConsumerRecord
from duolog_protocol.broker_messages import (
    EARLIEST_TIMESTAMP,
    AbortedTransaction,
    FetchPartitionResponse,
)
from duolog_protocol.errors import OffsetOutOfRangeError
from duolog_protocol.records import BatchBuilder

TRANSACTIONAL, CONTROL = 0x10, 0x20
PLAIN = Decoder(ConsumerRecord, True, False, None)
COMMITTED = Decoder(ConsumerRecord, True, True, None)


def batch(base_offset: int, *values: bytes, **options: Any) -> bytes:
    builder = BatchBuilder()
    for value in values:
        builder.append(1_000, None, value)
    return builder.build(base_offset=base_offset, leader_epoch=0, **options)


def marker(base_offset: int, producer_id: int, *, commit: bool) -> bytes:
    builder = BatchBuilder()
    builder.append(1_000, bytes([0, 0, 0, int(commit)]), b"")
    return builder.build(
        base_offset=base_offset,
        leader_epoch=0,
        producer_id=producer_id,
        producer_epoch=0,
        attributes=TRANSACTIONAL | CONTROL,
    )


def in_transaction(base_offset: int, producer_id: int, *values: bytes) -> bytes:
    return batch(
        base_offset,
        *values,
        producer_id=producer_id,
        producer_epoch=0,
        base_sequence=0,
        attributes=TRANSACTIONAL,
    )


def answer(data: bytes, aborted: tuple[AbortedTransaction, ...] = ()) -> FetchPartitionResponse:
    return FetchPartitionResponse("t", 0, 0, 100, 100, 0, aborted, -1, None, -1, -1, data)


def at(offset: int, *pieces: bytes) -> PartitionPosition:
    """A partition at `offset` with each piece fetched by itself."""
    found = PartitionPosition("t", 0)
    found.seek(offset)
    for piece in pieces:
        found.take_answer(found.fetch_offset, answer(piece), None)
    return found


def taken(position: PartitionPosition, limit: int = 1000, decoder: Decoder = PLAIN) -> list[Any]:
    return [(record.offset, record.value) for record in position.take(limit, decoder)]


def test_records_come_in_order_from_the_position_on_however_they_are_asked_for() -> None:
    data = [batch(0, b"a", b"b", b"c"), batch(3, b"d"), batch(4, b"e", b"f")]
    every = [(n, b"abcdef"[n : n + 1]) for n in range(6)]
    rng = random.Random(1)
    for start in range(6):
        for _ in range(20):
            first = 0 if start < 3 else 1 if start == 3 else 2
            position = at(start, *data[first:])
            found: list[Any] = []
            while position.has_records:
                before = position.position
                some = taken(position, rng.randint(1, 4))
                assert position.position == before + len(some)  # type: ignore[operator]
                found += some
            assert found == every[start:]
            assert position.fetch_offset == 6 and position.buffered_bytes == 0


def test_what_was_asked_before_a_seek_is_dropped() -> None:
    position = at(0, batch(0, b"a", b"b"))
    version = position.version
    position.seek(1)
    assert position.version > version
    assert not position.has_records and position.buffered_bytes == 0
    assert (position.position, position.fetch_offset) == (1, 1)


def test_an_offset_that_is_gone_follows_the_rule() -> None:
    position = at(5)
    position.out_of_range(EARLIEST_TIMESTAMP)
    assert position.position is None and position.reset_timestamp == EARLIEST_TIMESTAMP
    position = at(5)
    position.out_of_range(None)
    assert isinstance(position.error, OffsetOutOfRangeError)
    assert not position.may_fetch
    position.seek(0)
    assert position.error is None and position.may_fetch


@pytest.mark.parametrize("rule", [EARLIEST_TIMESTAMP, None])
def test_behind_the_end_the_buffered_records_come_first_then_the_rule(rule: int | None) -> None:
    position = at(0, batch(0, b"a", b"b"))
    position.out_of_range(rule)
    assert not position.may_fetch, "nothing is asked again while records are buffered"
    assert position.error is None
    assert taken(position, 1) == [(0, b"a")]
    assert not position.may_fetch
    assert taken(position) == [(1, b"b")]
    assert position.may_fetch, "the next answer decides"
    position.out_of_range(rule)
    if rule is None:
        assert isinstance(position.error, OffsetOutOfRangeError)
    else:
        assert position.reset_timestamp == rule and position.position is None


def test_without_a_rule_there_is_no_position_until_a_seek() -> None:
    position = PartitionPosition("t", 0)
    position.reset(None)
    assert isinstance(position.error, NoOffsetForPartitionError)
    position.seek(3)
    assert position.error is None


def test_a_damaged_batch_stops_in_front_of_it_and_can_be_passed_by_a_seek() -> None:
    damaged = bytearray(batch(2, b"c"))
    damaged[-2] ^= 1
    position = at(0, batch(0, b"a", b"b") + bytes(damaged) + batch(3, b"d"))
    assert taken(position) == [(0, b"a"), (1, b"b")]
    for _ in range(2):
        if not position.has_records:
            position.take_answer(position.fetch_offset, answer(bytes(damaged)), None)
        with pytest.raises(RecordDecodeError, match="t-0 cannot be read at offset 2"):
            position.take(10, PLAIN)
        assert position.position == position.fetch_offset == 2
    position.seek(3)
    position.take_answer(3, answer(batch(3, b"d")), None)
    assert taken(position) == [(3, b"d")]


def test_without_the_crc_check_the_caller_gets_what_can_be_decoded() -> None:
    damaged = bytearray(batch(0, b"a"))
    damaged[-2] ^= 1  # in the value
    position = at(0, bytes(damaged))
    assert len(position.take(1, Decoder(ConsumerRecord, False, False, None))) == 1


def test_an_answer_that_holds_no_whole_batch_is_said() -> None:
    position = at(0)
    position.take_answer(0, answer(batch(0, b"a")[:-1]), None)
    assert isinstance(position.error, RecordDecodeError)


def test_a_batch_that_is_cut_off_at_the_end_is_fetched_again() -> None:
    position = at(0, batch(0, b"a") + batch(1, b"b")[:-1])
    assert position.fetch_offset == 1
    assert taken(position) == [(0, b"a")]


def test_read_committed_passes_over_aborted_transactions_and_markers() -> None:
    data = (
        in_transaction(0, 7, b"aborted")
        + in_transaction(1, 8, b"kept")
        + batch(2, b"plain")
        + in_transaction(3, 7, b"aborted too")
        + marker(4, 7, commit=False)
        + in_transaction(5, 7, b"of the next transaction")
        + marker(6, 8, commit=True)
    )
    position = PartitionPosition("t", 0)
    position.seek(0)
    position.take_answer(0, answer(data, (AbortedTransaction(7, 0),)), None)
    assert taken(position, decoder=COMMITTED) == [
        (1, b"kept"),
        (2, b"plain"),
        (5, b"of the next transaction"),
    ]
    assert position.position == 7
    uncommitted = at(0, data)
    assert [offset for offset, _ in taken(uncommitted)] == [0, 1, 2, 3, 5]


def test_a_deserializer_that_fails_lets_the_records_before_it_through() -> None:
    def finish(record: ConsumerRecord) -> ConsumerRecord:
        if record.value == b"bad":
            raise ValueError("cannot be deserialized")
        return record

    decoder = Decoder(ConsumerRecord, True, False, finish)
    position = at(0, batch(0, b"a", b"b", b"bad", b"c"))
    found: list[Any] = []
    while len(found) < 2:
        found += taken(position, decoder=decoder)
    assert found == [(0, b"a"), (1, b"b")]
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be deserialized"):
            position.take(10, decoder)
        assert position.position == 2
    position.seek(3)
    position.take_answer(3, answer(batch(0, b"a", b"b", b"bad", b"c")), None)
    assert taken(position, decoder=decoder) == [(3, b"c")]
