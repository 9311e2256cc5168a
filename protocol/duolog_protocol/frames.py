"""Length-prefixed frames.

    frame       = length header_length header attachments
    length        u32, bytes after this field
    header_length u32, bytes of the msgpack header
    attachments   the rest; the header's fields say how it is cut

Owns the cutting of a byte stream into frames and nothing else. A frame is handed out as
`(buffer, header_start, header_end, end)`: positions in an immutable `bytes` for small frames, in
a `bytearray` of its own for large ones, so that neither is copied again.

Memory is bounded: a frame above `max_frame_bytes` is refused from its length field, and the
buffer of a large frame grows with the bytes that really arrive.
"""

from __future__ import annotations

import struct
from typing import Final

from .errors import FrameTooLargeError, RemoteProtocolError

Frame = tuple[bytes | bytearray, int, int, int]
"""(buffer, header_start, header_end, end), positions in bytes."""

PREFIX: Final = struct.Struct(">II")
PREFIX_BYTES: Final = PREFIX.size
LENGTH_BYTES: Final = 4
MAX_HEADER_BYTES: Final = 64 * 1024

READ_BYTES: Final = 256 * 1024
"""Size of the scratch buffer that `FrameDecoder` reads into; may be shared within a thread."""

_LARGE_FRAME_BYTES: Final = 64 * 1024
_LARGE_FIRST_BYTES: Final = 1024 * 1024
_GROWTH_BYTES: Final = 1024 * 1024
_ZEROS: Final = memoryview(bytes(_GROWTH_BYTES))
_unpack_prefix = PREFIX.unpack_from


class FrameDecoder:
    """Cuts one direction of a connection into frames, however the bytes arrive.

    Made for `asyncio.BufferedProtocol`: `get_buffer` names the place for the next bytes,
    `buffer_updated` tells how many came and returns the frames they completed. After an error
    the decoder must not be used again: the stream can no longer be trusted.
    """

    __slots__ = ("_filled", "_large", "_large_end", "_rest", "_view", "max_frame_bytes")

    def __init__(self, max_frame_bytes: int, scratch: memoryview | None = None) -> None:
        self.max_frame_bytes = max_frame_bytes
        """Upper bound of the length field; may be raised once the peer is known."""
        self._view = scratch if scratch is not None else memoryview(bytearray(READ_BYTES))
        """Where bytes arrive. All connections of a loop may share it: what came is copied out
        before the call that brought it returns."""
        self._rest = b""
        """Bytes of an incomplete small frame."""
        self._large: bytearray | None = None
        """The frame that is being received into a buffer of its own."""
        self._large_end = 0
        self._filled = 0

    def get_buffer(self) -> memoryview | bytearray:
        """Where the next bytes go; never empty."""
        large = self._large
        if large is None:
            return self._view
        if self._filled == len(large):
            grow_buffer(large, self._large_end)
        return memoryview(large)[self._filled :]

    def buffer_updated(self, count: int) -> list[Frame]:
        """`count` bytes were written to the buffer: return the frames that are now complete.

        Raises FrameTooLargeError, RemoteProtocolError.
        """
        if self._large is not None:
            self._filled += count
            if self._filled < self._large_end:
                return []
            frame = self._large
            self._large = None
            return [self._frame(frame, 0, self._large_end)]
        rest = self._rest
        chunk = rest + self._view[:count] if rest else bytes(self._view[:count])
        return self._cut(chunk)

    def feed(self, data: bytes) -> list[Frame]:
        """As `get_buffer` and `buffer_updated`, for bytes that are already here."""
        frames: list[Frame] = []
        position = 0
        while position < len(data):
            buffer = self.get_buffer()
            count = min(len(buffer), len(data) - position)
            buffer[:count] = data[position : position + count]
            del buffer  # a bytearray with an exported view cannot grow
            frames += self.buffer_updated(count)
            position += count
        return frames

    @property
    def pending_bytes(self) -> int:
        """Bytes received of a frame that is not complete."""
        return self._filled if self._large is not None else len(self._rest)

    def _cut(self, chunk: bytes) -> list[Frame]:
        frames: list[Frame] = []
        position = 0
        size = len(chunk)
        limit = self.max_frame_bytes
        while size - position >= PREFIX_BYTES:
            length, header_bytes = _unpack_prefix(chunk, position)
            if length > limit:
                raise FrameTooLargeError(length, limit)
            end = position + LENGTH_BYTES + length
            if end > size:
                if length > _LARGE_FRAME_BYTES:
                    self._start_large(chunk, position, end - position)
                    return frames
                break
            header_start = position + PREFIX_BYTES
            header_end = header_start + header_bytes
            if header_end > end or header_bytes > MAX_HEADER_BYTES or header_bytes == 0:
                raise _bad_header(length, header_bytes)
            frames.append((chunk, header_start, header_end, end))
            position = end
        if size - position >= LENGTH_BYTES and size - position < PREFIX_BYTES:
            length = int.from_bytes(chunk[position : position + LENGTH_BYTES], "big")
            if length > limit:
                raise FrameTooLargeError(length, limit)
        self._rest = chunk[position:]
        return frames

    def _start_large(self, chunk: bytes, position: int, total_bytes: int) -> None:
        have = len(chunk) - position
        large = bytearray(min(total_bytes, max(2 * have, _LARGE_FIRST_BYTES)))
        large[:have] = memoryview(chunk)[position:]
        self._large = large
        self._large_end = total_bytes
        self._filled = have
        self._rest = b""

    def _frame(self, buffer: bytearray, start: int, end: int) -> Frame:
        length, header_bytes = _unpack_prefix(buffer, start)
        header_start = start + PREFIX_BYTES
        header_end = header_start + header_bytes
        if header_end > end or header_bytes > MAX_HEADER_BYTES or header_bytes == 0:
            raise _bad_header(length, header_bytes)
        return buffer, header_start, header_end, end


def grow_buffer(buffer: bytearray, end: int) -> None:
    """Double the buffer of a frame that ends at `end`, never beyond it.

    A peer that only claims a length gets no memory. In small steps, since the zeros are memory,
    too.
    """
    left = min(len(buffer), end - len(buffer))
    while left:
        step = min(left, _GROWTH_BYTES)
        buffer.extend(_ZEROS[:step])
        left -= step


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
