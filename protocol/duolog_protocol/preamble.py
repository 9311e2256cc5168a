"""The first bytes of a connection tell who is calling.

A native client opens with eight bytes: the magic `DUO1`, the version of the framing, flags and
two reserved bytes. Everything else that may one day be answered on the same port is told apart
by its first bytes: TLS, ZooKeeper's four-letter words, a ZooKeeper (jute) or a Kafka client.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

MAGIC: Final = b"DUO1"
FRAMING_VERSION: Final = 1
PREAMBLE: Final = MAGIC + bytes([FRAMING_VERSION, 0, 0, 0])
PREAMBLE_BYTES: Final = len(PREAMBLE)
_TLS_HANDSHAKE: Final = 0x16


class Caller(Enum):
    """Who opened the connection, as far as its first bytes tell."""

    UNKNOWN_YET = "fewer than four bytes so far"
    NATIVE = "duolog frames"
    FOUR_LETTER_WORD = "a four-letter word"
    LENGTH_PREFIXED = "a ZooKeeper or Kafka client"
    TLS = "a TLS client"
    STRANGER = "none of ours"


def classify(first: bytes) -> Caller:
    """Tell the caller from the first four bytes of a connection."""
    if first[:1] and first[0] == _TLS_HANDSHAKE:
        return Caller.TLS
    if len(first) < len(MAGIC):
        return Caller.UNKNOWN_YET
    if first[:4] == MAGIC:
        return Caller.NATIVE
    if all(97 <= byte <= 122 for byte in first[:4]):
        return Caller.FOUR_LETTER_WORD
    if first[0] == 0:
        return Caller.LENGTH_PREFIXED
    return Caller.STRANGER


def preamble_problem(preamble: bytes) -> str | None:
    """What is wrong with a native preamble, in words, or None."""
    assert len(preamble) == PREAMBLE_BYTES, preamble
    if preamble[:4] != MAGIC:
        return f"connection opens with {preamble[:4]!r}, not with {MAGIC!r}"
    if preamble[4] != FRAMING_VERSION:
        return f"framing version {preamble[4]} is not supported, only {FRAMING_VERSION}"
    if any(preamble[5:]):
        return f"preamble flags {preamble[5:].hex()} are not supported"
    return None
