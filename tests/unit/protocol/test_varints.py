"""Varints: Kafka's vectors, the borders of every width, and what is no number."""

from __future__ import annotations

import pytest

from duolog_protocol.varints import TABLE_END, VARINT, decode_varint, encode_varint

VECTORS = {
    0: "00",
    -1: "01",
    1: "02",
    -2: "03",
    63: "7e",
    64: "8001",
    -64: "7f",
    -65: "8101",
    300: "d804",
    2147483647: "feffffff0f",
    -2147483648: "ffffffff0f",
    (1 << 63) - 1: "feffffffffffffffff01",
    -(1 << 63): "ffffffffffffffffff01",
}


@pytest.mark.parametrize("number", VECTORS)
def test_vectors(number: int) -> None:
    encoded = bytes.fromhex(VECTORS[number])
    assert encode_varint(number) == encoded
    assert decode_varint(b"\xff" + encoded + b"\xff", 1, 64) == (number, 1 + len(encoded))


def test_both_sides_of_every_width_and_cut_at_every_length() -> None:
    for bit in range(64):
        for zigzag in ((1 << bit) - 1, 1 << bit):
            number = zigzag >> 1 ^ -(zigzag & 1)
            encoded = encode_varint(number)
            assert decode_varint(encoded, 0, 64) == (number, len(encoded))
            for cut in range(len(encoded)):
                with pytest.raises(IndexError):
                    decode_varint(encoded[:cut], 0, 64)


def test_the_table_is_what_the_function_gives() -> None:
    assert list(VARINT) == [encode_varint(number) for number in range(TABLE_END)]


@pytest.mark.parametrize(
    ("encoded", "bits"),
    [("ffffffff1f", 32), ("808080808000", 32), ("ffffffffffffffffff03", 64), ("80" * 20, 64)],
)
def test_too_many_bits_are_refused(encoded: str, bits: int) -> None:
    with pytest.raises(ValueError, match=f"more than {bits} bits"):
        decode_varint(bytes.fromhex(encoded), 0, bits)


def test_a_longer_form_than_needed_is_read_as_java_does() -> None:
    assert decode_varint(bytes.fromhex("8000"), 0) == (0, 2)
