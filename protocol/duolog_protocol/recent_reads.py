"""What native clients' reads asked for lately, by the bytes that said it."""

from __future__ import annotations

from typing import Final

MAX_RECENT_READS: Final = 4_096
_WORTH_IT: Final = 4
"""Least requests per read remembered; with fewer, decoding every one is cheaper."""
_REST: Final = 64
"""How long it then rests: reads that are not kept, in multiples of `MAX_RECENT_READS`."""
_WATCH: Final = tuple({0xC2: False, 0xC3: True}.get(byte) for byte in range(256))
"""What the last byte of a read says, by the byte."""


class RecentReads:
    """What reads asked for lately, by the bytes that said it.

    Who asks again is understood without decoding it again, and the tree is asked for a string whose
    hash is known. Bounded; where nearly every request is a read not seen before it rests for a
    while. Shared by the connections of a loop.
    """

    __slots__ = ("_request_count_before", "_rest_count", "messages", "request_count")

    def __init__(self) -> None:
        self.messages: Final[dict[bytes, tuple[str, bool]]] = {}
        """Path with its tag, and watch -> what they mean."""
        self.request_count = 0
        """Requests that were decoded, whatever they were."""
        self._request_count_before = 0
        """`request_count` when it was last empty."""
        self._rest_count = 0
        """So many more are not kept."""

    def learn(self, key: bytes, path: bytes, watch: int) -> tuple[str, bool] | None:
        """What a read means that is not known; None where its schema must decide."""
        shown = _WATCH[watch]
        if shown is None:
            return None
        try:
            message = (path.decode(), shown)
        except UnicodeDecodeError:
            return None
        self._keep(key, message)
        return message

    def _keep(self, key: bytes, message: tuple[str, bool]) -> None:
        if self._rest_count:
            self._rest_count -= 1
            return
        if len(self.messages) >= MAX_RECENT_READS:
            if self.request_count - self._request_count_before < _WORTH_IT * MAX_RECENT_READS:
                self._rest_count = _REST * MAX_RECENT_READS
            self._request_count_before = self.request_count
            self.messages.clear()
        self.messages[key] = message
