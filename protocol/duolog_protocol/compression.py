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
_FIRST_ROOM_BYTES: Final = 256 * 1024
_SNAPPY_JAVA_MAGIC: Final = b"\x82SNAPPY\x00"
_SNAPPY_JAVA_HEADER: Final = _SNAPPY_JAVA_MAGIC + (1).to_bytes(4, "big") * 2
_SNAPPY_BLOCK_BYTES: Final = 32 * 1024
_SNAPPY_MAX_RATIO: Final = 64
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
            return bytes(_cramjam().lz4.compress(data))
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
            return _into(_cramjam().lz4.decompress_into, "lz4", data, max_bytes)
        case Codec.ZSTD:
            return _into(_cramjam().zstd.decompress_into, "zstd", data, max_bytes)


def _cramjam() -> Any:
    import cramjam

    return cramjam


def _too_large(codec: str, max_bytes: int) -> DecompressionError:
    return DecompressionError(f"{codec} data yields more than {max_bytes} bytes")


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
        return _unsnappy_block(data, max_bytes)
    position = len(_SNAPPY_JAVA_HEADER)
    pieces: list[bytes] = []
    left = max_bytes
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        position += 4
        if size == 0 or position + size > len(data):
            raise DecompressionError(f"snappy block of {size} bytes at {position} is cut")
        piece = _unsnappy_block(data[position : position + size], left)
        left -= len(piece)
        pieces.append(piece)
        position += size
    return b"".join(pieces)


def _unsnappy_block(block: bytes, max_bytes: int) -> bytes:
    """A bare block tells its size first; a block cannot honestly claim over 64 times its own."""
    claimed = shift = 0
    for byte in block[:5]:
        claimed |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    if claimed > max_bytes:
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


def _into(decompress_into: Any, codec: str, data: Buffer, max_bytes: int) -> bytes:
    """Decompress into a buffer of our own, enlarged step by step up to the bound."""
    error_class = _cramjam().DecompressionError
    source = bytes(data)
    room = min(max_bytes, max(_FIRST_ROOM_BYTES, 8 * len(source)))
    while True:
        buffer = bytearray(room)
        try:
            size = decompress_into(source, buffer)
            return bytes(memoryview(buffer)[:size])
        except error_class as error:
            if room >= max_bytes:
                text = f"{codec} data is damaged or yields more than {max_bytes} bytes: {error}"
                raise DecompressionError(text) from error
            room = min(max_bytes, 8 * room)
