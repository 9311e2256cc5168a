"""Records that the tests of batches share, and those of the golden file."""

from __future__ import annotations

import random
from typing import NamedTuple

from duolog_protocol.compression import Codec
from duolog_protocol.records import BatchBuilder

START_MS = 1_700_000_000_000


class Sample(NamedTuple):
    """What a producer hands over."""

    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


GOLDEN_RECORDS = [
    Sample(START_MS, b"k", b"v"),
    Sample(START_MS + 5, None, b"xxx", (("h", b"1"), ("n", None))),
    Sample(START_MS - 3, b"earlier than the first", b""),
    Sample(START_MS + 10_000, b"", None),
    Sample(START_MS + 1, "ключ".encode(), b"to be compressed " * 12, (("имя", b"\x00\xff"),)),
    *(Sample(START_MS + 64, b"same", b"shape %02d" % each) for each in range(12)),
    Sample(START_MS + (1 << 33), None, bytes(range(256))),
]
"""The records of every batch of `tests/golden/batches.txt`."""


def build(samples: list[Sample], codec: Codec = Codec.NONE, **fields: int) -> bytes:
    """The batch of these records."""
    builder = BatchBuilder()
    for sample in samples:
        builder.append(*sample)
    return builder.build(codec, **fields)


def random_samples(rng: random.Random) -> list[Sample]:
    """Records as diverse as they come: runs of one shape, mixtures, nulls, long ones, headers."""
    found: list[Sample] = []
    timestamp = START_MS
    spread = rng.choice((0, 1, 50, 10_000, 1 << 40))
    for _ in range(rng.choice((1, 2, 5, 30))):
        key_bytes, value_bytes = rng.randrange(80), rng.choice((0, 3, 60, 64, 100, 300, 9000))
        shape = rng.randrange(6)
        for _ in range(rng.choice((1, 1, 2, 20, 90))):
            timestamp += rng.randint(-spread, spread)
            key = None if shape == 0 else rng.randbytes(key_bytes)
            value = None if shape == 1 else rng.randbytes(value_bytes)
            headers: tuple[tuple[str, bytes | None], ...] = ()
            if shape == 2:
                headers = (("trace", rng.randbytes(8)), ("é" * rng.randrange(90), None))
            elif shape == 3:
                key, value = rng.randbytes(rng.randrange(9)), rng.randbytes(rng.randrange(99))
            found.append(Sample(timestamp, key, value, headers))
    return found
