"""What the core of zkserver says, as a native client understands it.

Owns the bytes of the replies and events of one client. Replies that show a node are a packed
prefix and the node's encoded body, which is kept on the node until `apply` drops it.

A request that cannot be served is a `Refusal` in its place, so that the answers before it still
leave in order; the decoders of both kinds of clients make it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from .apis import AnyApi, encode_event
from .codec import pack
from .frames import PREFIX
from .stream_decoder import LENGTH_BYTES
from .types import KeeperState, Stat
from .zk_messages import WATCH_EVENT, WATCH_EVENT_KEY, ZK_APIS, WatchEvent

if TYPE_CHECKING:
    from .zk_decoder import NativeDecoder

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


_PREFIX: Final = struct.Struct(">10sIHQ")
"""Beginning, correlation id, error code 0 and the tag of a u64, zxid: all before a body."""
_pack_prefix = _PREFIX.pack
_BEGINNING: Final = struct.Struct(">IIH")
"""Lengths of frame and header, the header's array and the tag of a u32."""
_ENVELOPE_BYTES: Final = 16
"""Array header, correlation id (5), error code 0, zxid (9)."""
_OK_AND_U64: Final = 0x00CF
_ARRAY_3: Final = 0x93CE
_ARRAY_4: Final = 0x94CE
_ARRAY_5: Final = 0x95CE


class NativeCodec:
    """One client's codec; the decoder in front of it has made the requests."""

    __slots__ = ("_decoder",)

    def __init__(self, decoder: NativeDecoder) -> None:
        self._decoder = decoder

    @property
    def known_peer(self) -> bool:
        """The client has a session: larger requests may be decoded."""
        return self._decoder.known_peer

    @known_peer.setter
    def known_peer(self, known: bool) -> None:
        self._decoder.known_peer = known

    def append_data(
        self, out: list[bytes], correlation_id: int, zxid: int, node: ZnodeView
    ) -> None:
        """Add the reply to GetData."""
        cached = node.encoded_data
        if cached is None:
            cached = node.encoded_data = _encode_data(node)
        pack_reply, beginning, body, data = cached
        out.append(pack_reply(beginning, correlation_id, _OK_AND_U64, zxid, body))
        if data is not None:
            out.append(data)

    def append_stat(
        self, out: list[bytes], correlation_id: int, zxid: int, node: ZnodeView
    ) -> None:
        """Add the reply to Exists or SetData; what a get has encoded is used, else made anew."""
        stat = node.encoded_stat
        if stat is None:
            stat = pack(node.stat_fields())
        pack_reply, beginning = _STAT_REPLIES[len(stat)]
        out.append(pack_reply(beginning, correlation_id, _OK_AND_U64, zxid, stat))

    def empty(self, correlation_id: int, zxid: int) -> bytes:
        """A reply without fields."""
        return _pack_prefix(_EMPTY_BEGINNING, correlation_id, _OK_AND_U64, zxid)

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
                correlation_id.to_bytes(4, "big"),
                pack(code),
                pack(zxid),
                pack(message[:MAX_ERROR_CHARS]),
            )
        )
        return PREFIX.pack(LENGTH_BYTES + len(header), len(header)) + header

    def event(self, zxid: int, event_type: int, path: str) -> bytes:
        """A watch event."""
        message = WatchEvent(event_type, KeeperState.SYNC_CONNECTED, path)
        return b"".join(encode_event(WATCH_EVENT_KEY, zxid, WATCH_EVENT, message))


def _beginning(array: int, fields_bytes: int, data_bytes: int = 0) -> bytes:
    """The first bytes of a reply, by what follows the envelope: fields, then data."""
    header_bytes = _ENVELOPE_BYTES + fields_bytes
    return _BEGINNING.pack(LENGTH_BYTES + header_bytes + data_bytes, header_bytes, array)


@cache
def _packer(body_bytes: int) -> Callable[..., bytes]:
    """Packs the prefix of a reply and a body in one go: cheaper than joining them."""
    return struct.Struct(f"{_PREFIX.format}{body_bytes}s").pack


_MAX_STAT_BYTES: Final = 1 + len(Stat._fields) * 9
_STAT_REPLIES: Final = tuple(
    (_packer(size), _beginning(_ARRAY_4, size)) for size in range(_MAX_STAT_BYTES + 1)
)
"""Packer and beginning of a reply with a Stat only, by the size of the Stat."""
_EMPTY_BEGINNING: Final = _beginning(_ARRAY_3, 0)


def _encode_data(
    node: ZnodeView,
) -> tuple[Callable[..., bytes], bytes, bytes, bytes | None]:
    """The reply to GetData: packer, beginning, what follows the envelope, data that is a piece."""
    stat = node.encoded_stat
    if stat is None:
        stat = node.encoded_stat = pack(node.stat_fields())
    data = node.data
    if data is None:
        body = stat + b"\xc0"
        return _packer(len(body)), _beginning(_ARRAY_5, len(body)), body, None
    fields = stat + pack(len(data))
    beginning = _beginning(_ARRAY_5, len(fields), len(data))
    if len(data) <= MAX_JOINED_DATA_BYTES:
        fields, data = fields + data, None
    return _packer(len(fields)), beginning, fields, data
