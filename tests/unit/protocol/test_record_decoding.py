"""Batches to records: every codec, other clients' bytes, the short-cut for runs, hostile input."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from duolog_protocol import record_decoding
from duolog_protocol.checksums import crc32c
from duolog_protocol.compression import Codec, compress
from duolog_protocol.record_decoding import (
    MAX_HEADERS_PER_BATCH,
    Columns,
    Record,
    decode_columns,
    decode_records,
    validate_records,
)
from duolog_protocol.record_runs import Run, read_run
from duolog_protocol.records import (
    HEADER_BYTES,
    MAX_RECORDS_PER_BATCH,
    CorruptBatchError,
    encode_batch_header,
    read_header,
)
from duolog_protocol.varints import encode_varint
from tests.unit.protocol.batch_samples import (
    GOLDEN_RECORDS,
    START_MS,
    Sample,
    build,
    random_samples,
)

GOLDEN = Path(__file__).resolve().parents[3] / "tests/golden/batches.txt"


def samples_of(columns: Columns) -> list[Sample]:
    rows = zip(columns.timestamps, columns.keys, columns.values, columns.headers, strict=True)
    return [Sample(*row) for row in rows]


def around(records: bytes, count: int, codec: Codec = Codec.NONE, **fields: int) -> bytes:
    """A batch with a right CRC around these bytes, whatever they are."""
    values = {
        "attributes": int(codec),
        "last_offset_delta": max(count - 1, 0),
        "base_timestamp": START_MS,
        "max_timestamp": START_MS,
        "producer_id": -1,
        "producer_epoch": -1,
        "base_sequence": -1,
        "records_count": count,
    }
    return encode_batch_header(records, **values | fields)


def record(body: bytes) -> bytes:
    return encode_varint(len(body)) + body


def golden() -> list[tuple[str, str, bytes]]:
    """(writer, codec, batch): written once by kafka-python 3.0.12, aiokafka 0.14.0 and by us."""
    lines = [line.replace(":", "").split() for line in GOLDEN.read_text().splitlines()]
    return [(writer, codec, bytes.fromhex(batch)) for writer, codec, batch in lines]


def test_there_is_a_golden_batch_of_every_writer_and_codec() -> None:
    assert {(writer, codec) for writer, codec, _ in golden()} == {
        (writer, codec.name.lower())
        for writer in ("duolog", "kafka-python", "aiokafka")
        for codec in Codec
    }


@pytest.mark.parametrize(("writer", "codec", "batch"), golden())
def test_batches_of_other_clients_hold_the_same_records(
    writer: str, codec: str, batch: bytes
) -> None:
    assert read_header(batch).codec == Codec[codec.upper()]
    assert samples_of(validate_records(batch)) == GOLDEN_RECORDS
    if codec == "none":
        assert build(GOLDEN_RECORDS)[16:] == batch[16:], writer  # but for the leader epoch


@pytest.mark.parametrize("seed", range(20))
def test_any_records_round_trip_in_every_codec(seed: int) -> None:
    samples = random_samples(random.Random(seed))
    for codec in Codec:
        batch = build(samples, codec, base_offset=seed)
        columns = validate_records(batch)
        assert samples_of(columns) == samples
        for buffer in (bytearray(batch), memoryview(b"ab" + batch + b"rest")):
            at = 0 if isinstance(buffer, bytearray) else 2
            assert decode_columns(buffer, at) == columns
        assert decode_columns(b"ab" + batch + b"rest", 2) == columns


@pytest.mark.parametrize("seed", range(20))
def test_runs_and_the_walk_give_the_same_records(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = build(random_samples(random.Random(seed)))
    quick = decode_columns(batch)
    monkeypatch.setattr(record_decoding, "read_run", lambda *_, **__: None)
    assert decode_columns(batch) == quick


class Looks:
    """Counts what looking for runs costs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.limits: list[int] = []
        self.found: list[int] = []
        monkeypatch.setattr(record_decoding, "read_run", self)

    def __call__(self, *args: Any, limit: int, end: int) -> Run | None:
        run = read_run(*args, limit=limit, end=end)
        self.limits.append(limit)
        self.found.append(run.records_count if run else 0)
        return run


@pytest.mark.parametrize("spread_ms", [0, 1, 3, 1000, 100_000])
@pytest.mark.parametrize(
    ("key", "value"),
    [(None, b"v" * 100), (b"k" * 9, b"w" * 3), (b"", None), (b"k", b""), (None,) * 2],
)
def test_records_of_one_shape_go_through_runs(
    key: bytes | None, value: bytes | None, spread_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 of them: offset deltas of one, two and three bytes, timestamps of one to four."""
    looks = Looks(monkeypatch)
    samples = [Sample(START_MS + at // 100 * spread_ms, key, value) for at in range(20_000)]
    assert samples_of(validate_records(build(samples))) == samples
    assert sum(looks.found) > 19_000


def test_looking_for_runs_costs_little_where_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Equal sizes and different shapes once made each look cost all that was left."""
    looks = Looks(monkeypatch)
    samples = [Sample(0, b"k" * (at % 7), b"v" * (50 - at % 7)) for at in range(20_000)]
    assert samples_of(validate_records(build(samples))) == samples
    assert sum(looks.limits) < 2 * len(samples)


def test_runs_end_where_the_shape_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One record in fifty is of the same size but has other lengths, a header or later time."""
    looks = Looks(monkeypatch)
    odd = [
        Sample(START_MS, b"ke", b"valu"),
        Sample(START_MS, b"key", None, (("h", b""),)),
        Sample(START_MS + 64, b"key", b"va"),
        Sample(START_MS - 1, b"key", b"val"),
    ]
    samples = [
        odd[at // 50 % 4] if at % 50 == 49 else Sample(START_MS, b"key", b"val")
        for at in range(2000)
    ]
    assert samples_of(validate_records(build(samples))) == samples
    assert sum(looks.found) > 1000


UNIFORM = {
    "keyless": [Sample(START_MS, None, b"value")] * 90,
    "keyed": [Sample(START_MS, b"key", b"value")] * 90,
    "null values": [Sample(START_MS, b"k" * 70, None)] * 30,
    "long values": [Sample(START_MS, b"", b"v" * 70)] * 30,
    "later and later": [Sample(START_MS + 70 * at, None, b"v") for at in range(90)],
    "minutes apart": [Sample(START_MS + 60_000 * at, None, b"") for at in range(30)],
    "a header each": [Sample(START_MS, None, b"v", (("h", b"x"),))] * 30,
}


@pytest.mark.parametrize("name", UNIFORM)
def test_runs_and_the_walk_refuse_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte of one record in the middle of a run is changed to what it could be taken for."""
    whole = build(UNIFORM[name])[HEADER_BYTES:]
    count = len(UNIFORM[name])
    batches = []
    for at in range(len(whole) * 2 // 3, len(whole) * 2 // 3 + 90):
        for byte in {0, 1, 2, 4, 0x7F, 0x80, 0x81, 0xFF, whole[at] ^ 0x80, whole[at] + 2 & 0xFF}:
            damaged = whole[:at] + bytes((byte,)) + whole[at + 1 :]
            batches.append(around(damaged, count, last_offset_delta=20_000))

    def outcome(batch: bytes) -> Columns | None:
        try:
            return decode_columns(batch)
        except CorruptBatchError:
            return None

    quick = list(map(outcome, batches))
    monkeypatch.setattr(record_decoding, "read_run", lambda *_, **__: None)
    assert list(map(outcome, batches)) == quick
    assert None in quick


def test_records_from_an_offset_on() -> None:
    batch = build(GOLDEN_RECORDS, Codec.SNAPPY, base_offset=100)
    for start in (0, 100, 101, 117, 118, 1000):
        records = decode_records(batch, topic="t", partition=1, start_offset=start)
        assert [each.offset for each in records] == list(range(max(100, start), 118))
        columns = decode_columns(batch, start_offset=start)
        assert [each.value for each in records] == columns.values


def test_values_of_a_callers_own_class() -> None:
    class Mine(Record):
        __slots__ = ()

    (mine,) = decode_records(build([Sample(5, None, b"x")]), topic="t", partition=0, cls=Mine)
    assert type(mine) is Mine
    assert mine == ("t", 0, 0, 5, 0, None, b"x", ())


def test_holes_that_compaction_leaves() -> None:
    deltas = [2, 3, 4, 90, 91, *range(200, 300), 8000, 8999]
    body = b"".join(record(b"\0\0" + encode_varint(delta) + b"\1\2v\0") for delta in deltas)
    batch = around(body, len(deltas), last_offset_delta=9000, base_offset=1000)
    assert decode_columns(batch).offsets == [1000 + delta for delta in deltas]
    with pytest.raises(CorruptBatchError, match="consecutive"):
        validate_records(batch)
    with pytest.raises(CorruptBatchError, match="behind its last offset"):
        decode_columns(around(body, len(deltas), last_offset_delta=8998))


@pytest.mark.parametrize("codec", Codec)
def test_a_batch_that_compaction_emptied_has_no_records(codec: Codec) -> None:
    assert decode_columns(around(b"", 0, codec, last_offset_delta=7)) == ([], [], [], [], [])


HOSTILE = {
    "no records": (b"", 1),
    "fewer records than announced": (record(b"\0\0\0\1\1\0"), 2),
    "bytes behind the last record": (record(b"\0\0\0\1\1\0") + b"\0", 1),
    "a negative length": (b"\x0b\0\0\0\1\1\0", 1),
    "a length that is too short": (b"\x0a\0\0\0\1\1\0", 1),
    "a length that is too long": (b"\x0e\0\0\0\1\1\0", 1),
    "a length of 2 GiB": (b"\xfe\xff\xff\xff\x0f\0\0\0\1\1\0", 1),
    "a length of more than 32 bits": (b"\x8c\x80\x80\x80\x80\0\0\0\0\1\1\0", 1),
    "an offset before the first": (record(b"\0\0\1\1\1\0"), 1),
    "an offset behind the last": (record(b"\0\0\2\1\1\0"), 1),
    "the same offset twice": (record(b"\0\0\0\1\1\0") * 2, 2),
    "offsets backwards": (record(b"\0\0\2\1\1\0") + record(b"\0\0\0\1\1\0"), 2),
    "a key of length -2": (record(b"\0\0\0\3\1\0"), 1),
    "a value of length -2": (record(b"\0\0\0\1\3\0"), 1),
    "a key beyond the record": (record(b"\0\0\0\4\1\0"), 1),
    "a key of 2 GiB": (record(b"\0\0\0\xfe\xff\xff\xff\x0f\1\0"), 1),
    "a value of 2 GiB": (record(b"\0\0\0\1\xfe\xff\xff\xff\x0f\0"), 1),
    "a negative count of headers": (record(b"\0\0\0\1\1\1"), 1),
    "two billion headers": (record(b"\0\0\0\1\1\xfe\xff\xff\xff\x0f"), 1),
    "a header without a key": (record(b"\0\0\0\1\1\2\1\1"), 1),
    "a header's value of length -2": (record(b"\0\0\0\1\1\2\2h\3"), 1),
    "a header beyond the record": (record(b"\0\0\0\1\1\2\x08h\1") + b"hhhh", 1),
    "a header's value beyond the record": (record(b"\0\0\0\1\1\2\2h\x08") + b"hhhh", 1),
    "a timestamp of more than 64 bits": (record(b"\0" + b"\xff" * 9 + b"\2\0\1\1\0"), 1),
}


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.ZSTD])
@pytest.mark.parametrize("name", HOSTILE)
def test_records_that_do_not_add_up_are_refused(name: str, codec: Codec) -> None:
    records, count = HOSTILE[name]
    batch = around(compress(codec, records), count, codec)
    with pytest.raises(CorruptBatchError, match="batch at 0 with base offset 0"):
        decode_columns(batch)
    with pytest.raises(CorruptBatchError, match="batch at 5 with base offset 0"):
        decode_columns(b"12345" + batch + batch, 5)  # what follows is no part of it


def test_more_records_or_headers_than_a_consumer_could_hold() -> None:
    least = record(b"\0\0\0\1\1\0")
    count = MAX_RECORDS_PER_BATCH + 1
    with pytest.raises(CorruptBatchError, match=f"{count} records"):
        decode_columns(around(compress(Codec.ZSTD, least * count), count, Codec.ZSTD))
    headers = encode_varint(MAX_HEADERS_PER_BATCH + 1) + b"\0\1" * (MAX_HEADERS_PER_BATCH + 1)
    with pytest.raises(CorruptBatchError, match="headers"):
        decode_columns(around(record(b"\0\0\0\1\1" + headers), 1))
    half = encode_varint(600_000) + b"\0\1" * 600_000
    two = record(b"\0\0\0\1\1" + half) + record(b"\0\0\2\1\1" + half)
    with pytest.raises(CorruptBatchError, match="headers"):
        decode_columns(around(compress(Codec.GZIP, two), 2, Codec.GZIP))


@pytest.mark.parametrize("codec", [Codec.GZIP, Codec.SNAPPY, Codec.LZ4, Codec.ZSTD])
def test_a_bomb_is_a_corrupt_batch(codec: Codec) -> None:
    batch = around(compress(codec, bytes(4 << 20)), 1, codec)
    with pytest.raises(CorruptBatchError, match="more than 1000000 bytes"):
        decode_columns(batch, max_bytes=1_000_000)


def test_an_unknown_codec_is_named() -> None:
    for codec in (5, 6, 7):
        with pytest.raises(CorruptBatchError, match=f"{codec} is not a valid Codec"):
            decode_columns(around(b"", 1, attributes=codec))


def test_a_header_key_that_is_no_utf8_does_not_stop_a_consumer() -> None:
    batch = around(record(b"\0\0\0\1\1\2\4\xffA\1"), 1)
    assert decode_columns(batch).headers == [(("\ufffdA", None),)]


def test_longer_varints_than_needed_are_read() -> None:
    body = record(b"\0\x80\0\x80\0\x82\x80\0k\x84\x80\0vv\x80\0")
    assert samples_of(decode_columns(around(body, 1))) == [Sample(START_MS, b"k", b"vv")]


def test_the_last_record_does_not_reach_behind_the_batch() -> None:
    whole = record(b"\0\0\0\1\2v\0") + record(b"\0\0\2\1\2v\0")
    with pytest.raises(CorruptBatchError, match=r"end \+1 bytes"):
        decode_columns(around(whole[:-1], 2, leader_epoch=0) + b"\0")


def test_an_unchecked_batch_that_is_cut_is_refused_at_every_length() -> None:
    batch = build(GOLDEN_RECORDS)
    for cut in range(len(batch)):
        with pytest.raises(CorruptBatchError):
            decode_records(batch[:cut], check_crc=False)


@pytest.mark.parametrize("codec", Codec)
def test_mutated_batches_decode_or_are_corrupt(codec: Codec) -> None:
    """With the CRC made right again, as a hostile producer would. Nothing else may be raised."""
    rng = random.Random(int(codec))
    whole = build(GOLDEN_RECORDS, codec)
    plain = bytes(whole[HEADER_BYTES:])
    decoded = 0
    for _ in range(1500 if codec is Codec.NONE else 500):
        records = bytearray(plain)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(records))
            match rng.randrange(4):
                case 0:
                    records[at] = rng.randrange(256)
                case 1:
                    records[at] ^= 1 << rng.randrange(8)
                case 2:
                    del records[at : at + rng.randrange(1, 9)]
                    records += b"\0"
                case 3:
                    records[at:at] = rng.choice((b"\xff" * 5, b"\x80\0", b"\1", b"\0" * 9))
        count = rng.choice((18, 18, 18, 17, 1, 19, 1 << 30))
        batch = around(bytes(records), count, codec, last_offset_delta=max(count - 1, 17))
        assert crc32c(batch[21:]) == read_header(batch).crc
        try:
            decoded += len(decode_columns(batch, max_bytes=100_000).offsets) == count
        except CorruptBatchError:
            continue
    assert decoded > 50 or codec is not Codec.NONE
