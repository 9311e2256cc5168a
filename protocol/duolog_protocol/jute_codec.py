"""What the core says, as a jute client understands it.

    frame        = length header body
    header       = xid zxid err         ; i32, i64, i32; a reply with an error has no body
    notification = header(-1, zxid, 0) type state path

Owns the bytes of the replies and events of one client. Replies that show a node are a packed
header and the node's encoded body, which is kept on the node until `apply` drops it; the last 68
bytes of it are the Stat, the reply to exists and setData.

The first answer of a connection is that to its connect and has no header. "Your session has
expired" is told by one full of zeros; every other refusal of a connect is told by closing without
a word. Source: ZooKeeper `NIOServerCnxn`, `FinalRequestProcessor`; reference C.2 to C.6.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from . import zk_messages as zk
from .error_codes import ZkErrorCode
from .jute import (
    NULL,
    STAT,
    encode_acl,
    encode_bytes,
    encode_stat,
    encode_text,
    encode_texts,
    pack_int,
)
from .jute_decoder import JuteDecoder
from .jute_requests import AUTH_XID
from .types import KeeperState
from .zk_codec import MAX_JOINED_DATA_BYTES, ZnodeView

_LENGTH_BYTES: Final = 4
_HEADER_BYTES: Final = 16
_STAT_BYTES: Final = STAT.size
_EVENT_XID: Final = -1

_HEADER: Final = struct.Struct(">iiqi")
_pack_header = _HEADER.pack
_STAT_REPLY: Final = struct.Struct(_HEADER.format + STAT.format.lstrip(">"))
_pack_stat = _STAT_REPLY.pack
_pack_fields = STAT.pack
_EVENT_HEADER: Final = struct.Struct(">iiqiiii")
"""Length, header, type, state, length of the path."""
_STAT_REPLY_BYTES: Final = _HEADER_BYTES + _STAT_BYTES
_CONNECT: Final = struct.Struct(">iiq")
_CONNECT_PROTOCOL: Final = 0
_EXPIRED: Final = _CONNECT.pack(_CONNECT_PROTOCOL, 0, 0) + encode_bytes(bytes(zk.PASSWORD_BYTES))

_MULTI_HEADER: Final = struct.Struct(">i?i")
_MULTI_ERROR: Final = struct.Struct(">i?ii")
_MULTI_FAILED: Final = -1
_MULTI_END: Final = _MULTI_HEADER.pack(-1, True, -1)

_OURS_BELOW: Final = -1000
_FOREIGN_CODES: Final[dict[int, int]] = {ZkErrorCode.REQUEST_TOO_LARGE: ZkErrorCode.BAD_ARGUMENTS}
"""Codes that only our own clients know, as the others are told; else SYSTEM_ERROR."""


class JuteCodec:
    """One client's codec; the decoder, which has made the requests, knows how the client opened."""

    __slots__ = ("_decoder", "known_peer")

    def __init__(self, decoder: JuteDecoder) -> None:
        self._decoder = decoder
        self.known_peer = False

    def append_data(
        self, out: list[bytes], correlation_id: int, zxid: int, node: ZnodeView
    ) -> None:
        """Add the reply to getData."""
        body = node.jute_body
        if body is None:
            data = node.data
            if data is not None and len(data) > MAX_JOINED_DATA_BYTES:
                length = _HEADER_BYTES + _LENGTH_BYTES + len(data) + _STAT_BYTES
                header = _pack_header(length, correlation_id, zxid, 0)
                out += (header + pack_int(len(data)), data, _pack_fields(*node.stat_fields()))
                return
            body = node.jute_body = encode_bytes(data) + _pack_fields(*node.stat_fields())
        out.append(_pack_header(_HEADER_BYTES + len(body), correlation_id, zxid, 0) + body)

    def append_stat(
        self, out: list[bytes], correlation_id: int, zxid: int, node: ZnodeView
    ) -> None:
        """Add the reply to exists or setData."""
        body = node.jute_body
        if body is None:
            out.append(_pack_stat(_STAT_REPLY_BYTES, correlation_id, zxid, 0, *node.stat_fields()))
        else:
            header = _pack_header(_STAT_REPLY_BYTES, correlation_id, zxid, 0)
            out.append(header + body[-_STAT_BYTES:])

    def empty(self, correlation_id: int, zxid: int) -> bytes:
        """A reply without fields; one to an auth packet names no zxid."""
        if correlation_id == AUTH_XID:
            zxid = 0
        return _pack_header(_HEADER_BYTES, correlation_id, zxid, 0)

    def reply(self, api_key: int, correlation_id: int, zxid: int, message: Any) -> bytes:
        """Any reply without error."""
        if api_key == zk.CONNECT.key:
            return self._connected(message)
        encode = _BODIES.get(api_key)
        if encode is None:
            return self.empty(correlation_id, zxid)
        if api_key == zk.SASL_KEY:
            zxid = 0
        body = encode(message)
        return _pack_header(_HEADER_BYTES + len(body), correlation_id, zxid, 0) + body

    def error(self, correlation_id: int, code: int, zxid: int, message: str = "") -> bytes:
        """A reply with an error; this protocol has no place for the text."""
        assert code != 0, message
        if not self.known_peer:
            return self._refused(code)
        if code < _OURS_BELOW:
            code = _FOREIGN_CODES.get(code, ZkErrorCode.SYSTEM_ERROR)
        if correlation_id == self._decoder.sasl_xid:
            header = _pack_header(_HEADER_BYTES + len(NULL), correlation_id, 0, code)
            return header + NULL
        if correlation_id == AUTH_XID:
            zxid = 0
        return _pack_header(_HEADER_BYTES, correlation_id, zxid, code)

    def event(self, zxid: int, event_type: int, path: str) -> bytes:
        """A watch event, with the zxid of its change as from ZooKeeper 3.9 on."""
        raw = path.encode()
        head = _EVENT_HEADER.pack(
            _EVENT_HEADER.size - _LENGTH_BYTES + len(raw),
            _EVENT_XID,
            zxid,
            0,
            event_type,
            KeeperState.SYNC_CONNECTED,
            len(raw),
        )
        return head + raw

    def _connected(self, message: zk.ConnectResponse) -> bytes:
        timeout_ms, session_id, password, read_only, _server_id = message
        head = _CONNECT.pack(_CONNECT_PROTOCOL, timeout_ms, session_id)
        return self._opening(head + encode_bytes(password), read_only)

    def _refused(self, code: int) -> bytes:
        """The answer to a connect that failed: nothing, except for a session that is gone."""
        return self._opening(_EXPIRED, False) if code == ZkErrorCode.SESSION_EXPIRED else b""

    def _opening(self, body: bytes, read_only: bool) -> bytes:
        if self._decoder.with_read_only:
            body += b"\x01" if read_only else b"\x00"
        return encode_bytes(body)


def _children2(message: zk.GetChildrenResponse) -> bytes:
    return encode_texts(message.children) + encode_stat(message.stat)


def _multi_result(result: zk.MultiResult) -> bytes:
    kind, code, path, stat = result
    if kind == _MULTI_FAILED:
        return _MULTI_ERROR.pack(_MULTI_FAILED, False, code, code)
    body = _MULTI_HEADER.pack(kind, False, 0)
    if kind in _SHOWS_PATH:
        body += encode_text(path)
    if kind in _SHOWS_STAT:
        assert stat is not None, result
        body += encode_stat(stat)
    return body


_SHOWS_PATH: Final = frozenset({zk.MultiKind.CREATE, zk.MultiKind.CREATE2})
_SHOWS_STAT: Final = frozenset({zk.MultiKind.CREATE2, zk.MultiKind.SET_DATA})


def _read_result(result: zk.ReadResult) -> bytes:
    kind, code, data, stat, joined_names = result
    if kind == _MULTI_FAILED:
        return _MULTI_ERROR.pack(_MULTI_FAILED, False, code, code)
    header = _MULTI_HEADER.pack(kind, False, 0)
    if kind == zk.MultiKind.GET_DATA:
        assert stat is not None, result
        return header + encode_bytes(data) + encode_stat(stat)
    names = joined_names.split(b"/") if joined_names else []
    return header + pack_int(len(names)) + b"".join(map(encode_bytes, names))


_BODIES: Final[dict[int, Callable[[Any], bytes]]] = {
    zk.CREATE.key: lambda message: encode_text(message.path),
    zk.CREATE2_KEY: lambda message: encode_text(message.path) + encode_stat(message.stat),
    zk.EXISTS.key: lambda message: encode_stat(message.stat),
    zk.GET_DATA.key: lambda message: encode_bytes(message.data) + encode_stat(message.stat),
    zk.SET_DATA.key: lambda message: encode_stat(message.stat),
    zk.GET_ACL.key: lambda message: encode_acl(message.acl) + encode_stat(message.stat),
    zk.SET_ACL.key: lambda message: encode_stat(message.stat),
    zk.GET_CHILDREN.key: lambda message: encode_texts(message.children),
    zk.GET_CHILDREN2_KEY: _children2,
    zk.SYNC.key: lambda message: encode_text(message.path),
    zk.MULTI.key: lambda message: b"".join(map(_multi_result, message.results)) + _MULTI_END,
    zk.MULTI_READ.key: lambda message: b"".join(map(_read_result, message.results)) + _MULTI_END,
    zk.RECONFIG.key: lambda message: encode_bytes(message.data) + encode_stat(message.stat),
    zk.SASL_KEY: lambda message: encode_bytes(message.token),
    zk.GET_EPHEMERALS.key: lambda message: encode_texts(message.paths),
    zk.GET_ALL_CHILDREN_NUMBER.key: lambda message: pack_int(message[0]),
    zk.ADD_WATCH.key: lambda message: pack_int(0),
    zk.WHO_AM_I.key: lambda message: (
        pack_int(len(message.identities))
        + b"".join([encode_text(scheme) + encode_text(user) for scheme, user in message.identities])
    ),
}
"""Api key -> encoder of the body of a reply; the others have none."""
