"""CRC-32C: the catalogue's check value, both implementations, any buffer, continued."""

from __future__ import annotations

import random

import pytest

from duolog_protocol.checksums import crc32c, crc32c_by_table


@pytest.mark.parametrize("checksum", [crc32c, crc32c_by_table])
def test_the_check_value_of_the_catalogue(checksum) -> None:  # type: ignore[no-untyped-def]
    assert checksum(b"123456789") == 0xE3069283
    assert checksum(b"") == 0
    assert checksum(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_the_table_and_the_library_agree_and_both_continue() -> None:
    rng = random.Random(1)
    for size in (0, 1, 7, 64, 1000):
        data = rng.randbytes(size)
        for buffer in (data, bytearray(data), memoryview(data)):
            assert crc32c(buffer) == crc32c_by_table(buffer)
        cut = rng.randrange(size + 1)
        for checksum in (crc32c, crc32c_by_table):
            assert checksum(data[cut:], checksum(data[:cut])) == checksum(data)
