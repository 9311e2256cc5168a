"""Where the bytes of one direction of a connection arrive, whatever is cut from them.

Owns the buffers of a stream of frames that begin with their length: a scratch view for what a read
brings, the start of a frame that is not complete, and for a large frame a buffer of its own, which
the socket fills directly. What the frames are is a subclass's business.

Memory is bounded: the buffer of a large frame grows with the bytes that really arrive. A subclass
refuses a frame over `max_frame_bytes` before it asks for it to be kept.
"""

from __future__ import annotations

from typing import ClassVar, Final, Generic, TypeVar

READ_BYTES: Final = 256 * 1024
"""Size of the scratch buffer that a decoder reads into; may be shared within a thread."""
LENGTH_BYTES: Final = 4

_LARGE_FRAME_BYTES: Final = 64 * 1024
_GROWTH_BYTES: Final = 1024 * 1024
_ZEROS: Final = memoryview(bytes(_GROWTH_BYTES))

T = TypeVar("T")


class StreamDecoder(Generic[T]):
    """Makes values of what one end sends, however the bytes arrive.

    Made for `asyncio.BufferedProtocol`: `get_buffer` names the place for the next bytes,
    `buffer_updated` tells how many came and returns what they completed.
    """

    __slots__ = ("_filled", "_large", "_large_end", "_rest", "_view", "max_frame_bytes")

    _large_first_bytes: ClassVar = 1024 * 1024
    """What a large frame gets at first, unless more of it is there or it is shorter."""

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
            _grow(large, self._large_end)
        return memoryview(large)[self._filled :]

    def buffer_updated(self, count: int) -> list[T]:
        """`count` bytes were written to the buffer: return what is now complete."""
        large = self._large
        if large is not None:
            self._filled += count
            if self._filled < self._large_end:
                return []
            self._large = None
            return self._cut_large(large)
        rest = self._rest
        chunk = rest + self._view[:count] if rest else bytes(self._view[:count])
        return self._cut(chunk)

    def feed(self, data: bytes) -> list[T]:
        """As `get_buffer` and `buffer_updated`, for bytes that are already here."""
        found: list[T] = []
        position = 0
        while position < len(data):
            buffer = self.get_buffer()
            count = min(len(buffer), len(data) - position)
            buffer[:count] = data[position : position + count]
            del buffer  # a bytearray with an exported view cannot grow
            found += self.buffer_updated(count)
            position += count
        return found

    @property
    def pending_bytes(self) -> int:
        """Bytes received of a frame that is not complete."""
        return self._filled if self._large is not None else len(self._rest)

    def _cut(self, chunk: bytes) -> list[T]:
        """What is complete in `chunk`; what is left of it, or b"", becomes `_rest` or `_large`."""
        raise AssertionError("a subclass answers this")

    def _cut_large(self, frame: bytearray) -> list[T]:
        """As `_cut`, for one frame from a buffer of its own."""
        return self._cut(bytes(frame))

    def _keep(self, chunk: bytes, position: int) -> None:
        """Keep what there is of the frame at `position`: it is not complete, its length allowed."""
        have = len(chunk) - position
        if have >= LENGTH_BYTES:
            length = int.from_bytes(chunk[position : position + LENGTH_BYTES], "big")
            if length > _LARGE_FRAME_BYTES:
                total = LENGTH_BYTES + length
                large = bytearray(min(total, max(2 * have, self._large_first_bytes)))
                large[:have] = memoryview(chunk)[position:]
                self._large, self._large_end, self._filled = large, total, have
                self._rest = b""
                return
        self._rest = chunk[position:]


def _grow(buffer: bytearray, end: int) -> None:
    """Double the buffer of a frame that ends at `end`, never beyond it.

    A peer that only claims a length gets no memory. In small steps, since the zeros are memory,
    too.
    """
    left = min(len(buffer), end - len(buffer))
    while left:
        step = min(left, _GROWTH_BYTES)
        buffer.extend(_ZEROS[:step])
        left -= step
