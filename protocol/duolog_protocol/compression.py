"""The codecs of record batches, with a bound on what decompression may yield.

Codecs are imported at first use. Decompression never yields, nor allocates much, beyond a bound
that the caller gives; declared sizes are not believed. Source: KIP-110, the framings that
Java's and librdkafka's producers write.
"""

from __future__ import annotations

import zlib
from enum import IntEnum
from typing import Any, Final

from .checksums import Buffer

MAX_DECOMPRESSED_BYTES: Final = 32 * 1024 * 1024
_FIRST_ROOM_BYTES: Final = 64 * 1024
_SNAPPY_JAVA_MAGIC: Final = b"\x82SNAPPY\x00"
_SNAPPY_JAVA_HEADER: Final = _SNAPPY_JAVA_MAGIC + (1).to_bytes(4, "big") * 2
_SNAPPY_BLOCK_BYTES: Final = 32 * 1024
_SNAPPY_MAX_RATIO: Final = 64
_LZ4_HEADER: Final = bytes.fromhex("04224d18 60 40 82")
"""Magic; version 1, independent blocks, no checksums; blocks of 64 KiB; the header's checksum."""
_LZ4_BLOCK_BYTES: Final = 64 * 1024
_LZ4_STORED: Final = 1 << 31
"""Bit in a block's size: the block is not compressed."""
_ZSTD_MAGIC: Final = bytes.fromhex("28b52ffd")
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS


class Codec(IntEnum):
    """Codec in the attributes of a batch."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


class DecompressionError(ValueError):
    """The bytes are not what the codec says, or yield more than allowed."""


def compress(codec: Codec, data: bytes) -> bytes:
    """Compress the records of a batch."""
    match codec:
        case Codec.NONE:
            return data
        case Codec.GZIP:
            packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP_WINDOW)
            return packer.compress(data) + packer.flush()
        case Codec.SNAPPY:
            snappy = _cramjam().snappy
            pieces = [_SNAPPY_JAVA_HEADER]
            for at in range(0, len(data), _SNAPPY_BLOCK_BYTES):
                block = bytes(snappy.compress_raw(data[at : at + _SNAPPY_BLOCK_BYTES]))
                pieces += (len(block).to_bytes(4, "big"), block)
            return b"".join(pieces)
        case Codec.LZ4:
            return _lz4(data)
        case Codec.ZSTD:
            return bytes(_cramjam().zstd.compress(data, 3))


def decompress(codec: Codec, data: Buffer, max_bytes: int = MAX_DECOMPRESSED_BYTES) -> bytes:
    """The records of a batch. Raises DecompressionError."""
    match codec:
        case Codec.NONE:
            return bytes(data)
        case Codec.GZIP:
            return _gunzip(data, max_bytes)
        case Codec.SNAPPY:
            return _unsnappy(bytes(data), max_bytes)
        case Codec.LZ4:
            return _into(_cramjam().lz4.decompress_into, "lz4", bytes(data), 0, max_bytes)
        case Codec.ZSTD:
            source = bytes(data)
            expected = _zstd_content_bytes(source)
            return _into(_cramjam().zstd.decompress_into, "zstd", source, expected, max_bytes)


def _cramjam() -> Any:
    import cramjam

    return cramjam


def _too_large(codec: str, max_bytes: int) -> DecompressionError:
    return DecompressionError(f"{codec} data yields more than {max_bytes} bytes")


def _lz4(data: bytes) -> bytes:
    """A frame as Java's producer writes it; its consumer cannot read blocks that are linked."""
    compress_block = _cramjam().lz4.compress_block
    pieces = [_LZ4_HEADER]
    for at in range(0, len(data), _LZ4_BLOCK_BYTES):
        plain = data[at : at + _LZ4_BLOCK_BYTES]
        block = bytes(compress_block(plain, store_size=False))
        if len(block) < len(plain):
            pieces += (len(block).to_bytes(4, "little"), block)
        else:
            pieces += ((len(plain) | _LZ4_STORED).to_bytes(4, "little"), plain)
    pieces.append(bytes(4))
    return b"".join(pieces)


def _gunzip(data: Buffer, max_bytes: int) -> bytes:
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    try:
        found = unpacker.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise DecompressionError(f"gzip data is damaged: {error}") from error
    if len(found) > max_bytes:
        raise _too_large("gzip", max_bytes)
    if not unpacker.eof or unpacker.unused_data:
        raise DecompressionError("gzip data is cut or has bytes after its end")
    return found


def _unsnappy(data: bytes, max_bytes: int) -> bytes:
    if not data.startswith(_SNAPPY_JAVA_MAGIC):
        return _unsnappy_block(data, max_bytes, max_bytes)
    position = len(_SNAPPY_JAVA_HEADER)
    pieces: list[bytes] = []
    left = max_bytes
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        position += 4
        if size == 0 or position + size > len(data):
            raise DecompressionError(f"snappy block of {size} bytes at {position} is cut")
        piece = _unsnappy_block(data[position : position + size], left, max_bytes)
        left -= len(piece)
        pieces.append(piece)
        position += size
    return b"".join(pieces)


def _unsnappy_block(block: bytes, left: int, max_bytes: int) -> bytes:
    """A block, of which `left` of the `max_bytes` for all blocks may come.

    It tells its size first, and cannot honestly claim over 64 times its own.
    """
    claimed = shift = 0
    for byte in block[:5]:
        claimed |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    if claimed > left:
        raise _too_large("snappy", max_bytes)
    if claimed > _SNAPPY_MAX_RATIO * len(block) + 64:
        raise DecompressionError(f"snappy block of {len(block)} bytes claims {claimed} bytes")
    cramjam = _cramjam()
    try:
        found = bytes(cramjam.snappy.decompress_raw(block))
    except cramjam.DecompressionError as error:
        raise DecompressionError(f"snappy data is damaged: {error}") from error
    if len(found) != claimed:
        raise DecompressionError(f"snappy block claims {claimed} bytes, yields {len(found)}")
    return found


def _zstd_content_bytes(frame: bytes) -> int:
    """What a frame claims to yield, 0 where it does not say; RFC 8878, 3.1.1.1."""
    if len(frame) < 18 or not frame.startswith(_ZSTD_MAGIC):
        return 0
    descriptor = frame[4]
    single_segment = descriptor >> 5 & 1
    size = (single_segment, 2, 4, 8)[descriptor >> 6]
    at = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    return int.from_bytes(frame[at : at + size], "little") + (256 if size == 2 else 0)


def _into(
    decompress_into: Any, codec: str, source: bytes, expected_bytes: int, max_bytes: int
) -> bytes:
    """Decompress into a buffer of our own, enlarged step by step up to the bound.

    The first one is for `expected_bytes`, which may be a lie, and for usual data.
    """
    error_class = _cramjam().DecompressionError
    room = min(max_bytes, expected_bytes or max(_FIRST_ROOM_BYTES, 8 * len(source)))
    while True:
        buffer = bytearray(room)
        try:
            size = decompress_into(source, buffer)
            return bytes(memoryview(buffer)[:size])
        except error_class as error:
            if room >= max_bytes:
                text = f"{codec} data is damaged or yields more than {max_bytes} bytes: {error}"
                raise DecompressionError(text) from error
            room = min(max_bytes, max(_FIRST_ROOM_BYTES, 8 * room))
