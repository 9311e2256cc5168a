"""Requests, responses and events: the table of apis and the envelope around their messages.

    request   [api_key, api_version, correlation_id, *fields]
    response  [correlation_id, error_code, context, *fields]      error_code 0
              [correlation_id, error_code, context, message]      any other error_code
    event     [0, event_key, context, *fields]                    unsolicited

`correlation_id` is a u32 above 0 that the client chooses and the response repeats. `context` is
the one value a service puts on everything it says: zkserver the zxid it has processed, kbroker
the time in ms for which it throttled the client.
"""

from __future__ import annotations

from typing import Any, Final, Generic, NamedTuple, TypeVar

from .codec import (
    INT16,
    INT32,
    MAX_ARRAY_COUNT,
    MAX_ARRAY_COUNT_UNKNOWN_PEER,
    Cursor,
    Piece,
    Schema,
    array,
    array_header,
    assemble,
    cursor_of,
    pack,
    string,
    structure,
    unpack_header,
)
from .errors import DecodeError
from .frames import Frame

Q = TypeVar("Q", bound=NamedTuple)
R = TypeVar("R", bound=NamedTuple)

EVENT_CORRELATION_ID: Final = 0
CORRELATION_ID_LAST: Final = (1 << 32) - 1
MAX_MESSAGE_CHARS: Final = 500


class Api(Generic[Q, R]):
    """One api: its number, its versions, the schemas of its request and response."""

    __slots__ = ("_prefixes", "key", "max_version", "min_version", "name", "request", "response")

    def __init__(
        self,
        key: int,
        name: str,
        request: Schema[Q],
        response: Schema[R],
        *,
        min_version: int = 0,
        max_version: int = 0,
    ) -> None:
        self.key = key
        self.name = name
        self.request = request
        self.response = response
        self.min_version = min_version
        self.max_version = max_version
        self._prefixes: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return f"<Api {self.name} {self.key}>"

    def encode_request(self, correlation_id: int, message: Q, version: int) -> list[Piece]:
        """The pieces of a request frame."""
        prefix = self._prefixes.get(version)
        if prefix is None:
            prefix = array_header(3 + self.request.count(version)) + pack(self.key) + pack(version)
            self._prefixes[version] = prefix
        pieces: list[Piece] = []
        values = self.request.encode(message, version, pieces)
        return assemble(prefix, correlation_id, values, pieces)

    def decode_request(self, values: tuple[Any, ...], version: int, cursor: Cursor) -> Q:
        """The request from the values of its header (all of them, envelope included)."""
        return self.request.decode(values[3:], version, cursor)

    def encode_response(
        self, correlation_id: int, context: int, message: R, version: int
    ) -> list[Piece]:
        """The pieces of a response frame without error."""
        pieces: list[Piece] = []
        values = self.response.encode(message, version, pieces)
        before = array_header(3 + len(values))
        return assemble(before, correlation_id, [0, context, *values], pieces)

    def decode_response(self, values: tuple[Any, ...], version: int, cursor: Cursor) -> R:
        """The response from the values of its header (all of them, envelope included)."""
        return self.response.decode(values[3:], version, cursor)


AnyApi = Api[Any, Any]


class RequestHeader(NamedTuple):
    """The envelope of a request."""

    api_key: int
    api_version: int
    correlation_id: int
    values: tuple[Any, ...]
    """All values of the header; the fields start at index 3."""


class ResponseHeader(NamedTuple):
    """The envelope of a response or an event."""

    correlation_id: int
    error_code: int
    """The error code of a response, the event key of an event."""
    context: int
    values: tuple[Any, ...]
    """All values of the header; the fields start at index 3."""


def read_request(frame: Frame, *, known_peer: bool = True) -> RequestHeader:
    """Decode the envelope of a request. Raises DecodeError."""
    buffer, start, end, _ = frame
    limit = MAX_ARRAY_COUNT if known_peer else MAX_ARRAY_COUNT_UNKNOWN_PEER
    values = unpack_header(memoryview(buffer)[start:end], limit)
    if len(values) < 3:
        raise DecodeError(f"request header has {len(values)} values, at least 3 are needed")
    key, version, correlation_id = values[:3]
    if type(key) is not int or type(version) is not int:
        raise DecodeError(f"api key {key!r} and version {version!r} must be integers")
    if type(correlation_id) is not int or not 0 < correlation_id <= CORRELATION_ID_LAST:
        raise DecodeError(f"correlation id {correlation_id!r} must be in [1, 2^32)")
    return RequestHeader(key, version, correlation_id, values)


def read_response(frame: Frame) -> ResponseHeader:
    """Decode the envelope of a response or an event. Raises DecodeError."""
    buffer, start, end, _ = frame
    values = unpack_header(memoryview(buffer)[start:end])
    if len(values) < 3:
        raise DecodeError(f"response header has {len(values)} values, at least 3 are needed")
    correlation_id, error_code, context = values[:3]
    if type(correlation_id) is not int or type(error_code) is not int or type(context) is not int:
        raise DecodeError(f"response envelope {values[:3]!r} must be integers")
    return ResponseHeader(correlation_id, error_code, context, values)


def error_message(header: ResponseHeader) -> str:
    """The text of an error response."""
    text = header.values[3] if len(header.values) > 3 else ""
    return text if type(text) is str else ""


def encode_error(
    correlation_id: int, error_code: int, context: int, message: str = ""
) -> list[Piece]:
    """The pieces of an error response; a long message is cut."""
    assert error_code != 0
    values = [error_code, context, message[:MAX_MESSAGE_CHARS]]
    return assemble(array_header(4), correlation_id, values, [])


def encode_event(
    event_key: int, context: int, schema: Schema[Any], message: Any, version: int = 0
) -> list[Piece]:
    """The pieces of an unsolicited frame; `version`: of the message."""
    pieces: list[Piece] = []
    values = schema.encode(message, version, pieces)
    before = array_header(3 + len(values))
    return assemble(before, EVENT_CORRELATION_ID, [event_key, context, *values], pieces)


class ApiVersionsRequest(NamedTuple):
    """Who the client is; the first request on every connection."""

    client_software_name: str
    client_software_version: str


class ApiVersionRange(NamedTuple):
    """Versions of one api that the server speaks, both inclusive."""

    api_key: int
    min_version: int
    max_version: int


class Feature(NamedTuple):
    """A feature of the whole ensemble or cluster and its level."""

    name: str
    level: int


class ApiVersionsResponse(NamedTuple):
    """What the server is and speaks."""

    service: str
    """`zkserver` or `kbroker`."""
    server_version: str
    apis: tuple[ApiVersionRange, ...]
    features: tuple[Feature, ...]
    max_frame_bytes: int
    """The longest frame it accepts (the length field's value)."""


API_VERSIONS: Final = Api(
    18,
    "ApiVersions",
    Schema(ApiVersionsRequest, string(128), string(128)),
    Schema(
        ApiVersionsResponse,
        string(128),
        string(128),
        array(structure(ApiVersionRange, INT16, INT16, INT16)),
        array(structure(Feature, string(128), INT32)),
        INT32,
    ),
)


def api_ranges(apis: dict[int, AnyApi]) -> tuple[ApiVersionRange, ...]:
    """The table of a service as ApiVersions tells it."""
    return tuple(
        ApiVersionRange(api.key, api.min_version, api.max_version) for api in apis.values()
    )


def read_message(api: AnyApi, header: RequestHeader, frame: Frame) -> Any:
    """The request message of a frame whose envelope is read. Raises DecodeError."""
    return api.decode_request(header.values, header.api_version, cursor_of(frame))
