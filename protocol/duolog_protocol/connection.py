"""The two ends of a connection, sans-I/O.

    client                               server
    PREAMBLE, ApiVersions  ------->      EXPECT_PREAMBLE -> OPEN
    <-------                             ApiVersions response
    requests, pipelined    ------->
    <-------                             responses; events in between

A server's end is given the decoder of its clients, which need not stop at frames. It may also take
clients of another protocol whose frames begin with their length: with a decoder for them it is OPEN
from their first bytes on.

Owns correlation ids, the negotiated api versions and the states of the connection; never touches
a socket. Requests may be sent before the answer to ApiVersions has come, at the version the
caller names. The shape is h11's and websockets': bytes in, events out, bytes to send as a value.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol

from .apis import (
    CORRELATION_ID_LAST,
    EVENT_CORRELATION_ID,
    AnyApi,
    ApiVersionsResponse,
    RequestHeader,
    ResponseHeader,
    encode_error,
    read_request,
    read_response,
)
from .codec import Piece, cursor_of
from .errors import LocalProtocolError, RemoteProtocolError
from .frames import Frame, FrameDecoder
from .preamble import PREAMBLE, PREAMBLE_BYTES, Caller, classify, preamble_problem
from .stream_decoder import READ_BYTES

MAX_FRAME_BYTES_UNKNOWN_PEER: Final = 16 * 1024
"""Longest frame before the peer has said who it is."""


class ServerState(Enum):
    """States of a server's end; each only follows the one before it (but see `start_over`)."""

    EXPECT_PREAMBLE = 1
    OPEN = 2
    """`ServerConnection.caller` tells what kind of client it is."""
    FOREIGN = 3
    """Not a client of this server; `ServerConnection.first_bytes` holds what it sent."""


class Decoder(Protocol):
    """What cuts the bytes of one kind of client: `FrameDecoder`, or another in its place."""

    max_frame_bytes: int

    def get_buffer(self) -> memoryview | bytearray:
        """Where the next bytes go; never empty."""

    def buffer_updated(self, count: int) -> list[Any]:
        """`count` bytes were written to the buffer: return what is now complete."""

    def feed(self, data: bytes) -> list[Any]:
        """As `get_buffer` and `buffer_updated`, for bytes that are already here."""

    @property
    def pending_bytes(self) -> int:
        """Bytes received of something incomplete."""


def take_frames(view: memoryview) -> FrameDecoder:
    """The decoder of a native client whose frames are decoded elsewhere."""
    return FrameDecoder(MAX_FRAME_BYTES_UNKNOWN_PEER, view)


class ServerConnection:
    """A server's end: tells the kinds of clients apart and has their bytes decoded."""

    __slots__ = (
        "_preamble_view",
        "_take_length_prefixed",
        "caller",
        "decoder",
        "first_bytes",
        "state",
    )

    def __init__(
        self,
        scratch: memoryview | None = None,
        take_length_prefixed: Callable[[memoryview], Decoder] | None = None,
        take_native: Callable[[memoryview], Decoder] = take_frames,
    ) -> None:
        """Each `take` makes a decoder from the view it may read into: that of a client that opens
        with a length, which is FOREIGN without it, and that of a native client."""
        view = scratch if scratch is not None else memoryview(bytearray(READ_BYTES))
        self.state = ServerState.EXPECT_PREAMBLE
        self.caller = Caller.UNKNOWN_YET
        self.first_bytes = b""
        """All bytes received until the caller is told; for a foreign one its first words."""
        self.decoder: Decoder = take_native(view)
        """A native client's; replaced once the caller is known to be of another kind."""
        self._take_length_prefixed = take_length_prefixed
        self._preamble_view = view

    def get_buffer(self) -> memoryview | bytearray:
        """Where the next bytes go; never empty."""
        if self.state is ServerState.OPEN:
            return self.decoder.get_buffer()
        return self._preamble_view

    def buffer_updated(self, count: int) -> list[Any]:
        """`count` bytes came: return what the decoder makes of them, complete frames or requests.

        Raises RemoteProtocolError.
        """
        if self.state is ServerState.OPEN:
            return self.decoder.buffer_updated(count)
        received = bytes(self._preamble_view[:count])
        self.first_bytes += received
        if self.state is ServerState.FOREIGN:
            return []
        self.caller = classify(self.first_bytes)
        if self.caller is Caller.UNKNOWN_YET:
            return []
        take = self._take_length_prefixed
        if self.caller is Caller.LENGTH_PREFIXED and take is not None:
            self.decoder = take(self._preamble_view)
            return self._open(0)
        if self.caller is not Caller.NATIVE:
            self.state = ServerState.FOREIGN
            return []
        if len(self.first_bytes) < PREAMBLE_BYTES:
            return []
        problem = preamble_problem(self.first_bytes[:PREAMBLE_BYTES])
        if problem is not None:
            raise RemoteProtocolError(problem)
        return self._open(PREAMBLE_BYTES)

    def _open(self, used_bytes: int) -> list[Any]:
        self.state = ServerState.OPEN
        rest, self.first_bytes = self.first_bytes[used_bytes:], b""
        return self.decoder.feed(rest) if rest else []

    def start_over(self) -> bytes:
        """The caller opened TLS: expect a caller inside it. The result is all that came so far."""
        assert self.state is ServerState.FOREIGN, self.state
        first, self.first_bytes = self.first_bytes, b""
        self.caller = Caller.UNKNOWN_YET
        self.state = ServerState.EXPECT_PREAMBLE
        return first

    def raise_limit(self, max_frame_bytes: int) -> None:
        """The peer is known now: accept longer frames from it."""
        self.decoder.max_frame_bytes = max_frame_bytes

    @property
    def pending_bytes(self) -> int:
        """Bytes received of something incomplete: a peer that stays there is slow or hostile."""
        if self.state is ServerState.OPEN:
            return self.decoder.pending_bytes
        return len(self.first_bytes)


def request_problem(header: RequestHeader, apis: dict[int, AnyApi]) -> str | None:
    """Why a server with these apis cannot take the request, in words, or None."""
    api = apis.get(header.api_key)
    if api is None:
        return f"api {header.api_key} is not known here"
    if not api.min_version <= header.api_version <= api.max_version:
        return (
            f"version {header.api_version} of {api.name} is not supported, "
            f"only {api.min_version} to {api.max_version}"
        )
    return None


class Response(NamedTuple):
    """The answer to a request."""

    header: ResponseHeader
    tag: Any
    """What the caller gave with the request."""
    message: Any
    """The api's response, or None when `header.error_code` is not 0."""


class Push(NamedTuple):
    """An unsolicited frame."""

    header: ResponseHeader
    frame: Frame


class ClientConnection:
    """A client's end: numbers requests and matches what comes back to them."""

    __slots__ = ("_decoder", "_last_id", "_opened", "_outstanding", "versions")

    def __init__(self, max_frame_bytes: int, scratch: memoryview | None = None) -> None:
        self._decoder = FrameDecoder(max_frame_bytes, scratch)
        self._outstanding: dict[int, tuple[AnyApi, int, Any]] = {}
        self._last_id = 0
        self._opened = False
        self.versions: dict[int, int] | None = None
        """api key -> version both ends speak, once ApiVersions was answered."""

    def request(
        self, api: AnyApi, message: Any, tag: Any, version: int | None = None
    ) -> list[Piece]:
        """The bytes to send for a request (the preamble before the first one).

        `tag` comes back with the response. Raises LocalProtocolError where the server has no
        common version.
        """
        if version is None:
            version = self.version_of(api)
        correlation_id = self._last_id % CORRELATION_ID_LAST + 1
        pieces = api.encode_request(correlation_id, message, version)
        self._last_id = correlation_id
        if tag is not None:
            self._outstanding[correlation_id] = (api, version, tag)
        if not self._opened:
            self._opened = True
            return [PREAMBLE, *pieces]
        return pieces

    def version_of(self, api: AnyApi) -> int:
        """The version in use for an api. Raises LocalProtocolError when there is none."""
        if self.versions is None:
            return api.max_version
        version = self.versions.get(api.key)
        if version is None:
            raise LocalProtocolError(f"the server does not offer {api.name}")
        return version

    def learn_versions(self, response: ApiVersionsResponse, apis: dict[int, AnyApi]) -> None:
        """Take the highest common version of every api."""
        versions: dict[int, int] = {}
        for key, low, high in response.apis:
            api = apis.get(key)
            if api is not None and low <= api.max_version and high >= api.min_version:
                versions[key] = min(high, api.max_version)
        self.versions = versions

    @property
    def outstanding_count(self) -> int:
        """Requests whose response has not come."""
        return len(self._outstanding)

    def forget_all(self) -> list[Any]:
        """The tags of all outstanding requests, oldest first; none of them will be answered."""
        tags = [tag for _, _, tag in self._outstanding.values()]
        self._outstanding.clear()
        return tags

    def get_buffer(self) -> memoryview | bytearray:
        """Where the next bytes go; never empty."""
        return self._decoder.get_buffer()

    def buffer_updated(self, count: int) -> list[Response | Push]:
        """`count` bytes came: return what they completed, in order.

        Raises RemoteProtocolError; then the connection must be closed.
        """
        return [self._event(frame) for frame in self._decoder.buffer_updated(count)]

    def feed(self, data: bytes) -> list[Response | Push]:
        """As `buffer_updated`, for bytes that are already here."""
        return [self._event(frame) for frame in self._decoder.feed(data)]

    def _event(self, frame: Frame) -> Response | Push:
        header = read_response(frame)
        if header.correlation_id == EVENT_CORRELATION_ID:
            return Push(header, frame)
        found = self._outstanding.pop(header.correlation_id, None)
        if found is None:
            raise RemoteProtocolError(
                f"response to correlation id {header.correlation_id}, which is not outstanding"
            )
        api, version, tag = found
        if header.error_code != 0:
            return Response(header, tag, None)
        return Response(header, tag, api.decode_response(header.values, version, cursor_of(frame)))


__all__ = [
    "MAX_FRAME_BYTES_UNKNOWN_PEER",
    "ClientConnection",
    "Push",
    "Response",
    "ServerConnection",
    "ServerState",
    "encode_error",
    "read_request",
    "request_problem",
]
