"""RecordBatch v2 as bytes: Kafka's vectors, the header, the checks of a leader, the stamps."""

from __future__ import annotations

import random

import pytest

from duolog_protocol.checksums import crc32c
from duolog_protocol.compression import Codec
from duolog_protocol.errors import InvalidRecordError, UnsupportedCompressionTypeError
from duolog_protocol.record_decoding import control_type, decode_columns, decode_records
from duolog_protocol.records import (
    BATCH_HEADER,
    CONTROL_BIT,
    CRC_START,
    HEADER_BYTES,
    LOG_APPEND_TIME,
    MAX_RECORDS_PER_BATCH,
    TRANSACTIONAL_BIT,
    BatchBuilder,
    BatchHeader,
    CorruptBatchError,
    check_batch,
    iter_headers,
    read_header,
    record_size_bytes,
    stamp,
    stamp_log_append_time,
    validate_client_batch,
)
from tests.unit.protocol.batch_samples import GOLDEN_RECORDS, START_MS, build, random_samples

TWO_RECORDS = bytes.fromhex(
    "000000000000002a0000004b0000000702d2b2901b0000000000010000018bcfe568000000018bcfe56805ffff"
    "ffffffffffffffffffffffff0000000210000000026b02760020000a0201067878780402680231026e01"
)
"""Offset 42, epoch 7: (k, v), then (null, xxx) 5 ms later with headers h=1, n=null."""
COMMIT_MARKER = bytes.fromhex(
    "000000000000002c000000420000000702ce16e9180030000000000000018bcfe568000000018bcfe568000000"
    "0000000003e80002ffffffff000000012000000008000000010c00000000000300"
)
"""Offset 44, epoch 7, producer 1000 epoch 2, coordinator epoch 3."""


def test_the_two_records_that_kafka_python_reads() -> None:
    builder = BatchBuilder()
    assert builder.append(START_MS, b"k", b"v") == 0
    assert builder.append(START_MS + 5, None, b"xxx", [("h", b"1"), ("n", None)]) == 1
    assert builder.size_bytes == len(TWO_RECORDS) == 87
    assert builder.build(base_offset=42, leader_epoch=7) == TWO_RECORDS
    header = check_batch(TWO_RECORDS)
    assert header == BatchHeader(
        42, 75, 7, 2, 0xD2B2901B, 0, 1, START_MS, START_MS + 5, -1, -1, -1, 2
    )
    assert (header.size_bytes, header.last_offset, header.next_offset) == (87, 43, 44)
    assert decode_records(TWO_RECORDS, topic="t", partition=3) == [
        ("t", 3, 42, START_MS, 0, b"k", b"v", ()),
        ("t", 3, 43, START_MS + 5, 0, None, b"xxx", (("h", b"1"), ("n", None))),
    ]


def test_a_commit_marker() -> None:
    builder = BatchBuilder()
    builder.append(START_MS, b"\0\0\0\1", b"\0\0\0\0\0\3")
    marker = builder.build(
        base_offset=44,
        leader_epoch=7,
        producer_id=1000,
        producer_epoch=2,
        attributes=CONTROL_BIT | TRANSACTIONAL_BIT,
    )
    assert marker == COMMIT_MARKER
    header = check_batch(marker)
    assert header.is_control and header.is_transactional
    assert control_type(marker) == 1
    assert decode_records(marker) == []
    assert decode_columns(marker).values == [b"\0\0\0\0\0\3"]


def test_a_control_batch_without_a_proper_record_is_corrupt() -> None:
    for key in (None, b"", b"\0\0\1"):
        builder = BatchBuilder()
        builder.append(0, key, b"")
        with pytest.raises(CorruptBatchError, match="control batch"):
            control_type(builder.build(attributes=CONTROL_BIT))
    builder = BatchBuilder()
    builder.append(0, b"\0\0\0\0", b"")
    builder.append(0, b"\0\0\0\0", b"")
    with pytest.raises(CorruptBatchError, match="one record"):
        control_type(builder.build(attributes=CONTROL_BIT))
    with pytest.raises(CorruptBatchError, match="no control batch"):
        control_type(TWO_RECORDS)


def test_every_flipped_bit_is_found_but_in_the_two_fields_outside_the_crc() -> None:
    whole = build(GOLDEN_RECORDS[:4], Codec.NONE, base_offset=42, leader_epoch=7)
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        if (bit < 64 and bit != 7) or bit // 8 in range(12, 16):  # bit 7 is the offset's sign
            assert check_batch(damaged).records_count == 4
        else:
            with pytest.raises(CorruptBatchError):
                check_batch(damaged)


def test_a_batch_is_whole_or_refused_at_every_length() -> None:
    for cut in range(len(TWO_RECORDS)):
        with pytest.raises(CorruptBatchError):
            check_batch(TWO_RECORDS[:cut])
        with pytest.raises(CorruptBatchError):
            check_batch(TWO_RECORDS, 0, cut)
    assert check_batch(b"xyz" + TWO_RECORDS + b"more", 3).base_offset == 42


def test_headers_of_batches_back_to_back_and_the_last_one_cut() -> None:
    second = build(GOLDEN_RECORDS, Codec.ZSTD, base_offset=44)
    both = b"..." + TWO_RECORDS + second
    for cut in range(3, len(both) + 1):
        found = [(at, header.base_offset) for at, header in iter_headers(both, 3, cut)]
        assert found == [(3, 42), (90, 44)][: (cut >= 90) + (cut == len(both))]


def test_a_length_that_would_never_end_the_walk_is_refused() -> None:
    for length in (0, 48, -12, -(1 << 31)):
        hostile = bytearray(TWO_RECORDS)
        hostile[8:12] = length.to_bytes(4, "big", signed=True)
        with pytest.raises(CorruptBatchError, match="has length"):
            list(iter_headers(hostile))


@pytest.mark.parametrize(("field", "value"), [(3, 1), (0, -1), (6, -1), (12, -1), (12, 3)])
def test_a_header_that_contradicts_itself_is_refused(field: int, value: int) -> None:
    header = list(read_header(TWO_RECORDS))
    header[field] = value
    with pytest.raises(CorruptBatchError):
        read_header(BATCH_HEADER.pack(*header) + TWO_RECORDS[HEADER_BYTES:])


def test_fewer_records_than_offsets_are_what_compaction_leaves() -> None:
    header = read_header(TWO_RECORDS)._replace(last_offset_delta=9, records_count=0)
    assert read_header(BATCH_HEADER.pack(*header)).next_offset == 52


def test_sequences_wrap_to_zero() -> None:
    header = read_header(TWO_RECORDS)._replace(base_sequence=2147483646, last_offset_delta=1)
    assert header.last_sequence == 2147483647
    assert header._replace(last_offset_delta=2).last_sequence == 0


def test_offset_and_epoch_are_stamped_without_touching_the_crc() -> None:
    batch = bytearray(build(GOLDEN_RECORDS, Codec.GZIP))
    stamp(batch, (1 << 62) + 5, 2147483647)
    header = check_batch(batch)
    assert (header.base_offset, header.leader_epoch) == ((1 << 62) + 5, 2147483647)


def test_the_brokers_time_replaces_that_of_every_record() -> None:
    batch = bytearray(build(GOLDEN_RECORDS))
    stamp_log_append_time(memoryview(batch), START_MS + 77)
    header = check_batch(batch)
    assert header.timestamp_type == LOG_APPEND_TIME
    assert header.base_timestamp == START_MS
    records = decode_records(batch)
    assert {(each.timestamp, each.timestamp_type) for each in records} == {(START_MS + 77, 1)}


def client_header(**changes: int) -> BatchHeader:
    return read_header(build(GOLDEN_RECORDS))._replace(**changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"attributes": CONTROL_BIT}, "control"),
        ({"attributes": TRANSACTIONAL_BIT}, "transactions"),
        ({"attributes": 0x08}, "only a broker"),
        ({"attributes": 0x40}, "only a broker"),
        ({"records_count": 0}, "0 records"),
        ({"records_count": 17}, "17 records"),
        ({"records_count": -1}, "-1 records"),
        ({"max_timestamp": START_MS - 1}, "maximal timestamp"),
        ({"producer_id": 5, "producer_epoch": 0}, "sequence -1"),
        ({"producer_id": 5, "base_sequence": 0}, "epoch -1"),
        (
            {
                "records_count": MAX_RECORDS_PER_BATCH + 1,
                "last_offset_delta": MAX_RECORDS_PER_BATCH,
            },
            "over the limit",
        ),
    ],
)
def test_what_a_leader_refuses_from_clients(changes: dict[str, int], problem: str) -> None:
    header = client_header(**changes)
    with pytest.raises(InvalidRecordError, match=problem):
        validate_client_batch(header, header.size_bytes)


def test_what_a_leader_takes_from_clients() -> None:
    for changes in ({}, {"producer_id": 0, "producer_epoch": 0, "base_sequence": 0}):
        header = client_header(**changes)
        validate_client_batch(header, header.size_bytes)
    with pytest.raises(CorruptBatchError, match="1 bytes after the batch"):
        validate_client_batch(client_header(), client_header().size_bytes + 1)
    header = client_header(attributes=5)
    with pytest.raises(UnsupportedCompressionTypeError):
        validate_client_batch(header, header.size_bytes)


def test_sizes_are_exact_and_never_above_the_estimate() -> None:
    rng = random.Random(5)
    for _ in range(30):
        builder = BatchBuilder()
        bound = HEADER_BYTES
        for sample in random_samples(rng):
            builder.append(*sample)
            bound += record_size_bytes(sample.key, sample.value, sample.headers)
        batch = builder.build()
        assert len(batch) == builder.size_bytes <= bound
        assert crc32c(batch[CRC_START:]) == check_batch(batch).crc


def test_a_builder_builds_again_under_another_producer_epoch() -> None:
    builder = BatchBuilder()
    builder.append(START_MS, None, b"x")
    first = builder.build(Codec.LZ4, producer_id=1, producer_epoch=0, base_sequence=9)
    again = builder.build(Codec.LZ4, producer_id=1, producer_epoch=1, base_sequence=0)
    assert check_batch(first).base_sequence == 9
    assert check_batch(again)._replace(crc=0) == check_batch(first)._replace(
        crc=0, producer_epoch=1, base_sequence=0
    )
