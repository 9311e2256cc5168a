"""CRC-32C (Castagnoli), the checksum of record batches and of our own files.

`fastcrc` computes it at memory speed; where that is missing a table stands in, some hundred times
slower and equal in every bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

Buffer = bytes | bytearray | memoryview

_POLYNOMIAL: Final = 0x82F63B78


def _table() -> list[int]:
    entries = []
    for byte in range(256):
        entry = byte
        for _ in range(8):
            entry = entry >> 1 ^ (_POLYNOMIAL if entry & 1 else 0)
        entries.append(entry)
    return entries


def crc32c_by_table(data: Buffer, value: int = 0) -> int:
    """CRC-32C in plain Python; `value` is that of the bytes before."""
    table = _table()
    crc = value ^ 0xFFFFFFFF
    for byte in bytes(data):
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


crc32c: Callable[[Buffer], int]
"""CRC-32C of a buffer."""

try:
    from fastcrc import crc32 as _crc32
except ImportError:  # the pure wheel without its optional speed
    crc32c = crc32c_by_table
else:
    crc32c = _crc32.iscsi
