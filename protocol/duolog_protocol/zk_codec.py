"""The native codec of zkserver: frames to requests, and what the core says to frames.

Owns the bytes of both directions of one native client and nothing else. The common requests
(GetData, Exists, GetChildren, SetData) are cut by hand, everything else goes through its schema;
both give equal values (a test compares them). Replies that show a node are made of a packed prefix
and the node's encoded body, which is kept on the node until `apply` drops it.

Decoding never raises. A request that cannot be served becomes a `Refusal` in its place, so that
the answers before it still leave in order.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple, Protocol

from .apis import AnyApi, encode_event, read_message, read_request
from .codec import pack
from .connection import request_problem
from .error_codes import ZkErrorCode
from .errors import DecodeError
from .frames import Frame
from .types import KeeperState
from .zk_messages import (
    WATCH_EVENT,
    WATCH_EVENT_KEY,
    ZK_APIS,
    ExistsRequest,
    GetChildrenRequest,
    GetDataRequest,
    SetDataRequest,
    WatchEvent,
)

REFUSED: Final = -1
"""Api key of a request whose message is a `Refusal`."""

MAX_JOINED_DATA_BYTES: Final = 4096
"""Longer data is not copied into the encoded body: it leaves as a piece of its own."""

MAX_ERROR_CHARS: Final = 500


class Refusal(NamedTuple):
    """Why a request is not served; it never reaches the log."""

    code: int
    """A `ZkErrorCode`; 0: there is nobody to answer, the frame has no readable envelope."""
    message: str
    closes: bool
    """The connection ends with it: a client that sends such a request is broken."""
    zxid: int | None = None
    """What the answer names as its zxid; None: the last one that was processed."""


class ZnodeView(Protocol):
    """What the codec needs of a znode."""

    data: bytes | None
    encoded_data: Any
    """Slot of the codec: the reply to GetData without its prefix, or None."""
    encoded_stat: bytes | None
    """Slot of the codec: the Stat as it stands in a reply, or None."""
    jute_body: bytes | None
    """Slot of the jute codec: the reply to getData without its header, or None."""

    def stat_fields(self) -> tuple[int, ...]:
        """The fields of the node's `Stat`, in their order."""


_PREFIX: Final = struct.Struct(">IIHIHQ")
_pack_prefix = _PREFIX.pack
_ENVELOPE_BYTES: Final = 16
"""Array header, correlation id (5), error code 0, zxid (9)."""
_LENGTH_BYTES: Final = 4
_OK_AND_U64: Final = 0x00CF
"""Error code 0 and the tag of a u64."""
_ARRAY_3: Final = 0x93CE
_ARRAY_4: Final = 0x94CE
_ARRAY_5: Final = 0x95CE
"""An array header and the tag of a u32."""

_REQUEST_HEAD: Final = struct.Struct(">6sI")
_SHORTEST_BYTES: Final = 12
"""Head, tag of the path, and at least one byte behind it."""
_unpack_head = _REQUEST_HEAD.unpack_from
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_I32: Final = struct.Struct(">i")

_SET_DATA_HEAD: Final = b"\x96\xcd\x03\xed\x00\xce"
_PATH_AND_WATCH: Final[dict[bytes, tuple[int, Any]]] = {
    b"\x95\xcd\x03\xec\x00\xce": (1004, GetDataRequest),
    b"\x95\xcd\x03\xeb\x00\xce": (1003, ExistsRequest),
    b"\x95\xcd\x03\xf0\x00\xce": (1008, GetChildrenRequest),
}
_WATCH: Final = {0xC2: False, 0xC3: True}
_make: Any = tuple.__new__


class NativeCodec:
    """One client's codec; its only state is whether the client has a session."""

    __slots__ = ("known_peer",)

    def __init__(self) -> None:
        self.known_peer = False

    def decode(self, frames: list[Frame]) -> list[tuple[int, int, Any]]:
        """The requests of some frames: (api_key, correlation_id, message)."""
        requests: list[tuple[int, int, Any]] = []
        append = requests.append
        by_head = _PATH_AND_WATCH.get
        for frame in frames:
            buffer, start, end, frame_end = frame
            if end - start >= _SHORTEST_BYTES and type(buffer) is bytes:
                head, correlation_id = _unpack_head(buffer, start)
                found = by_head(head)
                if found is not None:
                    # <path> <watch>: the last byte is the watch, the path fills the rest.
                    tag = buffer[start + 10]
                    if 0xA0 <= tag <= 0xBF:
                        first = start + 11
                        size = tag & 31
                    elif tag == 0xD9:
                        first = start + 12
                        size = buffer[start + 11]
                    else:
                        append(self._decode_any(frame))
                        continue
                    last = end - 1
                    watch = _WATCH.get(buffer[last])
                    if (
                        first + size == last
                        and watch is not None
                        and end == frame_end
                        and correlation_id
                    ):
                        try:
                            path = buffer[first:last].decode()
                        except UnicodeDecodeError:
                            append(self._decode_any(frame))
                            continue
                        append((found[0], correlation_id, _make(found[1], (path, watch))))
                        continue
                elif head == _SET_DATA_HEAD and correlation_id:
                    request = _decode_set(buffer, start + 10, end, frame_end)
                    if request is not None:
                        append((1005, correlation_id, request))
                        continue
            append(self._decode_any(frame))
        return requests

    def _decode_any(self, frame: Frame) -> tuple[int, int, Any]:
        try:
            header = read_request(frame, known_peer=self.known_peer)
        except DecodeError as error:
            return REFUSED, 0, Refusal(0, str(error), True)
        api = ZK_APIS.get(header.api_key)
        if api is None or not api.min_version <= header.api_version <= api.max_version:
            code = ZkErrorCode.UNIMPLEMENTED if api is None else ZkErrorCode.UNSUPPORTED_VERSION
            problem = request_problem(header, ZK_APIS) or ""
            return REFUSED, header.correlation_id, Refusal(code, problem, False)
        try:
            message = read_message(api, header, frame)
        except DecodeError as error:
            refusal = Refusal(ZkErrorCode.MARSHALLING_ERROR, str(error), True)
            return REFUSED, header.correlation_id, refusal
        return header.api_key, header.correlation_id, message

    def append_data(
        self, out: list[bytes], correlation_id: int, zxid: int, node: ZnodeView
    ) -> None:
        """Add the reply to GetData."""
        cached = node.encoded_data
        if cached is None:
            cached = node.encoded_data = _encode_data(node)
        total, header, pieces = cached
        out.append(_pack_prefix(total, header, _ARRAY_5, correlation_id, _OK_AND_U64, zxid))
        out += pieces

    def append_stat(
        self, out: list[bytes], correlation_id: int, zxid: int, node: ZnodeView
    ) -> None:
        """Add the reply to Exists or SetData."""
        stat = node.encoded_stat
        if stat is None:
            stat = node.encoded_stat = pack(node.stat_fields())
        header = _ENVELOPE_BYTES + len(stat)
        out.append(
            _pack_prefix(
                _LENGTH_BYTES + header, header, _ARRAY_4, correlation_id, _OK_AND_U64, zxid
            )
            + stat
        )

    def empty(self, correlation_id: int, zxid: int) -> bytes:
        """A reply without fields."""
        return _pack_prefix(
            _LENGTH_BYTES + _ENVELOPE_BYTES,
            _ENVELOPE_BYTES,
            _ARRAY_3,
            correlation_id,
            _OK_AND_U64,
            zxid,
        )

    def reply(self, api_key: int, correlation_id: int, zxid: int, message: Any) -> bytes:
        """Any reply without error."""
        api: AnyApi = ZK_APIS[api_key]
        return b"".join(api.encode_response(correlation_id, zxid, message, api.max_version))

    def error(self, correlation_id: int, code: int, zxid: int, message: str = "") -> bytes:
        """A reply with an error; a long message is cut."""
        assert code != 0, message
        header = b"".join(
            (
                b"\x94\xce",
                _U32.pack(correlation_id),
                pack(code),
                pack(zxid),
                pack(message[:MAX_ERROR_CHARS]),
            )
        )
        return _LENGTHS.pack(_LENGTH_BYTES + len(header), len(header)) + header

    def event(self, zxid: int, event_type: int, path: str) -> bytes:
        """A watch event."""
        message = WatchEvent(event_type, KeeperState.SYNC_CONNECTED, path)
        return b"".join(encode_event(WATCH_EVENT_KEY, zxid, WATCH_EVENT, message))


_LENGTHS: Final = struct.Struct(">II")


def _encode_data(node: ZnodeView) -> tuple[int, int, tuple[bytes, ...]]:
    """(frame length, header length, pieces behind the envelope) of the reply to GetData."""
    stat = node.encoded_stat
    if stat is None:
        stat = node.encoded_stat = pack(node.stat_fields())
    data = node.data
    if data is None:
        header = _ENVELOPE_BYTES + len(stat) + 1
        return _LENGTH_BYTES + header, header, (stat + b"\xc0",)
    fields = stat + pack(len(data))
    header = _ENVELOPE_BYTES + len(fields)
    total = _LENGTH_BYTES + header + len(data)
    if len(data) <= MAX_JOINED_DATA_BYTES:
        return total, header, (fields + data,)
    return total, header, (fields, data)


def _decode_set(buffer: bytes, at: int, end: int, frame_end: int) -> SetDataRequest | None:
    """The request of `<path> <data length> <version>` and its attachment.

    None where it is not in the common form: then the schema decides.
    """
    tag = buffer[at]
    if 0xA0 <= tag <= 0xBF:
        first = at + 1
        at = first + (tag & 31)
    elif tag == 0xD9:
        first = at + 2
        at = first + buffer[at + 1]
    else:
        return None
    if at + 2 > end:
        return None
    last = at
    tag = buffer[at]
    if tag <= 0x7F:
        size = tag
        at += 1
    elif tag == 0xCC:
        size = buffer[at + 1]
        at += 2
    elif tag == 0xCD:
        if at + 3 > end:
            return None
        (size,) = _U16.unpack_from(buffer, at + 1)
        at += 3
    else:
        return None
    if at >= end:
        return None
    tag = buffer[at]
    at += 1
    if tag == 0xFF:
        version = -1
    elif tag <= 0x7F:
        version = tag
    elif tag in _VERSION_TAGS:
        layout = _VERSION_TAGS[tag]
        if at + layout.size > end:
            return None
        (version,) = layout.unpack_from(buffer, at)
        at += layout.size
    else:
        return None
    if at != end or frame_end - end != size:
        return None
    try:
        path = buffer[first:last].decode()
    except UnicodeDecodeError:
        return None
    if not -(1 << 31) <= version < 1 << 31:
        return None
    request: SetDataRequest = _make(SetDataRequest, (path, buffer[end:frame_end], version))
    return request


_VERSION_TAGS: Final = {0xCC: struct.Struct(">B"), 0xCD: _U16, 0xCE: _U32, 0xD2: _I32}
