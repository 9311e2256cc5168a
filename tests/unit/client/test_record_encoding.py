"""The producer's own encoder gives the bytes that the protocol's builder gives."""

from __future__ import annotations

import random

import pytest

from duolog.core.producer_batch import ProducerBatch
from duolog.core.record_encoding import BatchEncoder
from duolog_protocol.compression import Codec
from duolog_protocol.record_decoding import decode_records
from duolog_protocol.records import BatchBuilder


def random_bytes(rng: random.Random) -> bytes | None:
    size = rng.choice([None, 0, 1, 3, 63, 64, 127, 128, 5000])
    return None if size is None else rng.randbytes(size)


@pytest.mark.parametrize("seed", range(40))
def test_both_encoders_write_the_same_batch(seed: int) -> None:
    rng = random.Random(seed)
    codec = Codec.NONE if seed % 2 else rng.choice(list(Codec))
    batch = ProducerBatch("t", 0, 0, 0)
    builder = BatchBuilder()
    base_ms = 1_700_000_000_000
    for _ in range(rng.choice([1, 2, 20, 200])):
        timestamp = base_ms + rng.choice([0, 0, 1, 70, -70, 1 << 33, -(1 << 33)])
        key, value = random_bytes(rng), random_bytes(rng)
        headers = tuple(
            (rng.choice(["", "h", "ü" * 70]), random_bytes(rng))
            for _ in range(rng.choice([0, 0, 1, 3, 70]))
        )
        batch.records.append((timestamp, key, value, headers))
        builder.append(timestamp, key, value, headers)
    numbered = {}
    if rng.random() < 0.5:
        batch.number(7, 3, 41)
        numbered = {"producer_id": 7, "producer_epoch": 3, "base_sequence": 41}
    encoded = BatchEncoder(codec)(batch)
    assert encoded == builder.build(codec, **numbered)
    decoded = [(r.timestamp, r.key, r.value, r.headers) for r in decode_records(encoded)]
    assert decoded == batch.records
