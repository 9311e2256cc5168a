"""Partitions of keys: the vectors of Kafka's own test, and more from its algorithm."""

from __future__ import annotations

import random

import pytest

from duolog_protocol.partitioning import murmur2, partition_for_key

VECTORS: list[tuple[bytes, int, int, int]] = [
    (b"", 275646681, 1, 0),
    (b"a", -1563381124, 4, 1),
    (b"ab", 316155434, 4, 2),
    (b"abc", 479470107, 7, 0),
    (b"abcd", -1323649548, 0, 2),
    (b"21", -973932308, 0, 0),
    (b"foobar", -790332482, 6, 0),
    (b"key-0", 29210041, 1, 1),
    (b"hello world", 1221641059, 9, 1),
    (b"\x00", 375494588, 8, 2),
    (b"\xff\xfe\xfd", 998637092, 2, 2),
    (b"a-little-bit-long-string", -985981536, 2, 2),
    (b"a-little-bit-longer-string", -1486304829, 9, 2),
    (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971, 7, 2),
    ("ключ".encode(), 2122343024, 4, 2),
]


@pytest.mark.parametrize(("key", "signed", "of_ten", "of_three"), VECTORS)
def test_vectors(key: bytes, signed: int, of_ten: int, of_three: int) -> None:
    assert murmur2(key) == signed & 0xFFFFFFFF
    assert partition_for_key(key, 10) == of_ten
    assert partition_for_key(key, 3) == of_three


def test_long_and_repeated_keys_go_where_their_hash_says() -> None:
    rng = random.Random(3)
    keys = [rng.randbytes(size) for size in (0, 1, 63, 64, 65, 1000)]
    for key in keys * 2:
        assert partition_for_key(key, 7) == (murmur2(key) & 0x7FFFFFFF) % 7
