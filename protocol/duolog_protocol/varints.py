"""Zigzag variable-length integers of Kafka's records.

Hot paths of `records.py` decode the one- and two-byte forms in place and take `VARINT` for
encoding; what is here is the general form.
"""

from __future__ import annotations

from typing import Final

MAX_VARINT_BYTES: Final = 10


def encode_varint(value: int) -> bytes:
    """Zigzag, then seven bits a byte, low bits first. For 64-bit values."""
    rest = value << 1 ^ value >> 63
    assert 0 <= rest < 1 << 64, value
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def decode_varint(data: bytes, position: int) -> tuple[int, int]:
    """The value at `position` and the position after it.

    Raises IndexError at the end of the data and ValueError for more than 64 bits.
    """
    rest = shift = 0
    while True:
        byte = data[position]
        position += 1
        rest |= (byte & 0x7F) << shift
        if byte < 0x80:
            if rest >= 1 << 64:
                raise ValueError("varint has more than 64 bits")
            return rest >> 1 ^ -(rest & 1), position
        shift += 7
        if shift >= 7 * MAX_VARINT_BYTES:
            raise ValueError(f"varint is longer than {MAX_VARINT_BYTES} bytes")


TABLE_END: Final = 1 << 13
VARINT: Final = tuple(
    [bytes([n << 1]) for n in range(64)]
    + [bytes([n << 1 & 0x7F | 0x80, n >> 6]) for n in range(64, TABLE_END)]
)
"""Encoded forms of 0 ... 8191, the one- and two-byte ones."""
