"""Length-prefixed frames.

    frame       = length header_length header attachments
    length        u32, bytes after this field
    header_length u32, bytes of the msgpack header
    attachments   the rest; the header's fields say how it is cut

Owns the cutting of a byte stream into frames and nothing else. A frame is handed out as
`(buffer, header_start, header_end, end)`: positions in an immutable `bytes` for small frames, in
a `bytearray` of its own for large ones, so that neither is copied again. A frame above
`max_frame_bytes` is refused from its length field.
"""

from __future__ import annotations

import struct
from typing import Final

from .errors import FrameTooLargeError, RemoteProtocolError
from .stream_decoder import LENGTH_BYTES, StreamDecoder

Frame = tuple[bytes | bytearray, int, int, int]
"""(buffer, header_start, header_end, end), positions in bytes."""

PREFIX: Final = struct.Struct(">II")
PREFIX_BYTES: Final = PREFIX.size
MAX_HEADER_BYTES: Final = 64 * 1024

_unpack_prefix = PREFIX.unpack_from


class FrameDecoder(StreamDecoder[Frame]):
    """Cuts one direction of a connection into frames, however the bytes arrive.

    `buffer_updated` and `feed` raise FrameTooLargeError, RemoteProtocolError. After an error the
    decoder must not be used again: the stream can no longer be trusted.
    """

    __slots__ = ()

    def _cut(self, chunk: bytes) -> list[Frame]:
        frames: list[Frame] = []
        position = 0
        size = len(chunk)
        limit = self.max_frame_bytes
        while size - position >= PREFIX_BYTES:
            length, header_bytes = _unpack_prefix(chunk, position)
            header_start = position + PREFIX_BYTES
            header_end = header_start + header_bytes
            end = position + LENGTH_BYTES + length
            if end > size or length > limit or header_end > end:
                break
            if header_bytes > MAX_HEADER_BYTES or header_bytes == 0:
                break
            frames.append((chunk, header_start, header_end, end))
            position = end
        if position < size:
            frame = frame_at(chunk, position, limit)  # raises where there is more than a part
            assert frame is None, (position, size)
        self._keep(chunk, position)
        return frames

    def _cut_large(self, frame: bytearray) -> list[Frame]:
        found = frame_at(frame, 0, self.max_frame_bytes)
        assert found is not None, len(frame)
        return [found]


def frame_at(buffer: bytes | bytearray, position: int, max_frame_bytes: int) -> Frame | None:
    """The frame that begins at `position`; None where it is not complete, but may become so.

    Raises FrameTooLargeError, RemoteProtocolError.
    """
    left = len(buffer) - position
    if left < PREFIX_BYTES:
        if left >= LENGTH_BYTES:
            length = int.from_bytes(buffer[position : position + LENGTH_BYTES], "big")
            if length > max_frame_bytes:
                raise FrameTooLargeError(length, max_frame_bytes)
        return None
    length, header_bytes = _unpack_prefix(buffer, position)
    if length > max_frame_bytes:
        raise FrameTooLargeError(length, max_frame_bytes)
    end = position + LENGTH_BYTES + length
    if end > len(buffer):
        return None
    header_start = position + PREFIX_BYTES
    header_end = header_start + header_bytes
    if header_end > end or header_bytes > MAX_HEADER_BYTES or header_bytes == 0:
        raise _bad_header(length, header_bytes)
    return buffer, header_start, header_end, end


def _bad_header(length: int, header_bytes: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"frame of {length} bytes claims a header of {header_bytes} bytes: it must be at least 1, "
        f"at most {MAX_HEADER_BYTES} and fit in the frame"
    )


def encode_frame(
    header: bytes, attachments: tuple[bytes | memoryview, ...] = ()
) -> list[bytes | memoryview]:
    """The pieces of one frame, to be written one after another."""
    size = len(header)
    total = LENGTH_BYTES + size + sum(map(len, attachments))
    return [PREFIX.pack(total, size) + header, *attachments]
