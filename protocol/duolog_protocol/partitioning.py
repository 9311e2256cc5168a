"""Which partition a key belongs to: Kafka's murmur2, so that all clients agree.

Source: Kafka `Utils.murmur2`, `BuiltInPartitioner.partitionForKey`.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995
_MASK: Final = 0xFFFFFFFF
_CACHED_KEYS: Final = 8192
_CACHED_KEY_BYTES: Final = 64
"""Longer keys are hashed each time, so that the cache stays under 2 MiB."""
_UNPACK_WORDS: Final = [Struct(f"<{words}I").unpack_from for words in range(16)]


def murmur2(data: bytes) -> int:
    """The hash, unsigned."""
    length = len(data)
    value = _SEED ^ length
    whole = length & ~3
    unpack = _UNPACK_WORDS[length >> 2] if length < 64 else Struct(f"<{length >> 2}I").unpack_from
    for word in unpack(data):
        mixed = word * _M & _MASK
        value = (value * _M ^ (mixed ^ mixed >> 24) * _M) & _MASK
    tail = data[whole:]
    if tail:
        value = (value ^ int.from_bytes(tail, "little")) * _M & _MASK
    value = (value ^ value >> 13) * _M & _MASK
    return value ^ value >> 15


def partition_for_key(key: bytes, partitions_count: int) -> int:
    """The partition of a key: the hash without its sign, modulo the number of partitions."""
    value = _murmur2_of_repeated(key) if len(key) <= _CACHED_KEY_BYTES else murmur2(key)
    return (value & 0x7FFFFFFF) % partitions_count


_murmur2_of_repeated: Final = lru_cache(_CACHED_KEYS)(murmur2)
