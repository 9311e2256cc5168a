"""From the bytes of a jute client to requests, sans-I/O.

    stream  = frame(connect) *frame(header body)
    frame   = length content          ; i32, bytes after it; at least 0, at most `max_frame_bytes`
    header  = xid type                ; i32, i32: the client's number of the request, operation code

Owns the cutting of the stream and the decoding of what it cut, in one pass over what a read
brought: at half a million requests a second a second pass is what one can do without. The
common requests are cut by hand, everything else goes through the readers of `jute_requests`; both
give equal values (a test compares them).

Nothing here raises. What cannot be served becomes a `Refusal` in its place, so that the answers
before it still leave in order; after a frame that cannot be trusted nothing more is read. What a
real server does with each kind of broken request was tried on Apache ZooKeeper 3.8.0:

    length negative or over the limit, no whole header, undecodable connect, auth or SASL: closed
    unknown operation, check alone: UNIMPLEMENTED with zxid -1, then closed
    any other body that is cut short, lies about a length or has a null path: MARSHALLING_ERROR
    bytes behind the last field: ignored

Source: ZooKeeper `NIOServerCnxn`, `ZooKeeperServer.processPacket`; reference C.1 to C.5.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from . import zk_messages as zk
from .error_codes import ZkErrorCode
from .errors import DecodeError
from .jute import INT_BYTES, JuteReader, pack_int
from .jute_requests import BODIES, PING_XID, OpCode
from .stream_decoder import StreamDecoder
from .types import OPEN_ACL_UNSAFE
from .zk_codec import REFUSED, Refusal

JuteRequest = tuple[int, int, Any]
"""(api_key, xid, message)."""

MAX_FRAME_BYTES_WITHOUT_SESSION: Final = 256 * 1024
"""Clients send their watches right behind the connect, in frames of up to 128 KiB."""
DEFAULT_MAX_FRAME_BYTES: Final = 1_048_575
"""ZooKeeper's `jute.maxbuffer`."""

_HEADER_BYTES: Final = 2 * INT_BYTES
_PREFIX: Final = struct.Struct(">iiii")
"""Length, xid, operation code, and the length of the path that most bodies begin with."""
_PREFIX_BYTES: Final = _PREFIX.size
_unpack_prefix = _PREFIX.unpack_from
_HEADER: Final = struct.Struct(">ii")
_INT: Final = struct.Struct(">i")
_unpack_int = _INT.unpack_from

_PATH_AND_WATCH: Final = {
    OpCode.GET_DATA: zk.GET_DATA.key,
    OpCode.EXISTS: zk.EXISTS.key,
    OpCode.GET_CHILDREN: zk.GET_CHILDREN.key,
    OpCode.GET_CHILDREN2: zk.GET_CHILDREN2_KEY,
}
_SET_DATA: Final = OpCode.SET_DATA
_SET_DATA_KEY: Final = zk.SET_DATA.key
_CREATE_KEYS: Final = {OpCode.CREATE: zk.CREATE.key, OpCode.CREATE2: zk.CREATE2_KEY}
_OPEN_ACL: Final = b"\x00\x00\x00\x01\x00\x00\x00\x1f\x00\x00\x00\x05world\x00\x00\x00\x06anyone"
_CLOSES_WHEN_UNDECODABLE: Final = frozenset({OpCode.AUTH, OpCode.SASL})


class JuteDecoder(StreamDecoder[JuteRequest]):
    """Cuts what one client sends into requests, however the bytes arrive.

    Requests that were cut by hand are plain tuples, equal to their message: making a NamedTuple
    would cost a third of it.
    """

    __slots__ = ("_broken", "_connected", "sasl_xid", "with_read_only")

    _large_first_bytes = 64 * 1024

    def __init__(self, max_frame_bytes: int, scratch: memoryview | None = None) -> None:
        super().__init__(max_frame_bytes, scratch)
        self.with_read_only = False
        """The connect had the byte `readOnly`, so its answer has it, too (ZOOKEEPER-4814)."""
        self.sasl_xid: int | None = None
        """The last SASL token's: an error for it has a body, unlike any other."""
        self._connected = False
        """The connect was decoded."""
        self._broken = False
        """A frame could not be trusted: what follows is thrown away."""

    def _cut(self, chunk: bytes) -> list[JuteRequest]:
        requests: list[JuteRequest] = []
        if self._broken:
            return requests
        position = 0
        if not self._connected:
            position = self._cut_connect(chunk, requests)
            if not self._connected:
                return requests
        size = len(chunk)
        limit = self.max_frame_bytes
        append = requests.append
        by_code = _PATH_AND_WATCH.get
        while size - position >= _PREFIX_BYTES:
            length, xid, code, path_bytes = _unpack_prefix(chunk, position)
            end = position + INT_BYTES + length
            if end > size or length > limit:
                break
            start = position + _PREFIX_BYTES
            api_key = by_code(code)
            if api_key is not None:
                last = end - 1
                if start + path_bytes == last and path_bytes > 0:
                    try:
                        path = chunk[start:last].decode()
                    except UnicodeDecodeError:
                        append(self._decode_body(xid, code, chunk, start - INT_BYTES, end))
                    else:
                        append((api_key, xid, (path, chunk[last] != 0)))
                    position = end
                    continue
            elif code == _SET_DATA:
                path_end = start + path_bytes
                data_start = path_end + INT_BYTES
                data_end = end - INT_BYTES
                if path_bytes > 0 and data_start <= data_end:
                    (data_bytes,) = _unpack_int(chunk, path_end)
                    if data_start + data_bytes == data_end and data_bytes >= 0:
                        try:
                            path = chunk[start:path_end].decode()
                        except UnicodeDecodeError:
                            append(self._decode_body(xid, code, chunk, start - INT_BYTES, end))
                        else:
                            data = chunk[data_start:data_end]
                            (version,) = _unpack_int(chunk, data_end)
                            append((_SET_DATA_KEY, xid, (path, data, version)))
                        position = end
                        continue
            if length < _HEADER_BYTES:
                break
            append(self._decode(xid, code, chunk, start - INT_BYTES, end))
            position = end
        if position == size:
            self._rest = b""
        else:
            self._cut_rest(chunk, position, requests)
        return requests

    def _cut_connect(self, chunk: bytes, requests: list[JuteRequest]) -> int:
        """Take the first frame. Returns where the next one starts."""
        end = self._frame_end(chunk, 0, requests)
        if end:
            try:
                message = self._connect(JuteReader(chunk, INT_BYTES, end))
            except DecodeError as error:
                self._break(requests, f"connect: {error}")
                return 0
            requests.append((zk.CONNECT.key, 0, message))
            self._connected = True
        return end

    def _connect(self, body: JuteReader) -> zk.ConnectRequest:
        body.int32()  # `protocolVersion`: always 0, looked at by nobody
        last_zxid_seen, timeout_ms, session_id = body.int64(), body.int32(), body.int64()
        password = body.data() or b""
        self.with_read_only = body.position < body.end
        read_only = body.boolean() if self.with_read_only else False
        return zk.ConnectRequest(last_zxid_seen, timeout_ms, session_id, password, read_only)

    def _cut_rest(self, chunk: bytes, position: int, requests: list[JuteRequest]) -> None:
        """What the fast loop left: short frames at the end, a frame that is cut off, a bad one."""
        while end := self._frame_end(chunk, position, requests):
            if end - position < INT_BYTES + _HEADER_BYTES:
                self._break(requests, f"a request of {end - position - INT_BYTES} bytes")
                return
            xid, code = _HEADER.unpack_from(chunk, position + INT_BYTES)
            start = position + INT_BYTES + _HEADER_BYTES
            requests.append(self._decode(xid, code, chunk, start, end))
            position = end

    def _frame_end(self, chunk: bytes, position: int, requests: list[JuteRequest]) -> int:
        """Where the frame at `position` ends; 0 when it is not complete, and what there is of it
        is kept, or when it is refused."""
        left = len(chunk) - position
        if left < INT_BYTES:
            self._keep(chunk, position)
            return 0
        length: int = _unpack_int(chunk, position)[0]
        if not 0 <= length <= self.max_frame_bytes:
            limit = self.max_frame_bytes
            self._break(requests, f"a frame of {length} bytes is over the limit of {limit}")
            return 0
        total = INT_BYTES + length
        if total <= left:
            return position + total
        self._keep(chunk, position)
        return 0

    def _break(self, requests: list[JuteRequest], problem: str) -> None:
        """The stream cannot be trusted any more: the connection ends without an answer."""
        self._broken = True
        self._rest = b""
        requests.append((REFUSED, 0, Refusal(0, problem, True)))

    def _decode(self, xid: int, code: int, chunk: bytes, start: int, end: int) -> JuteRequest:
        """One request that is not cut in the fast loop; its body is `chunk[start:end]`."""
        api_key = _CREATE_KEYS.get(code)
        if api_key is not None:
            created = _cut_create(chunk, start, end)
            if created is not None:
                return api_key, xid, created
        elif code == OpCode.DELETE:
            deleted = _cut_delete(chunk, start, end)
            if deleted is not None:
                return zk.DELETE.key, xid, deleted
        return self._decode_body(xid, code, chunk, start, end)

    def _decode_body(self, xid: int, code: int, chunk: bytes, start: int, end: int) -> JuteRequest:
        found = BODIES.get(code)
        if found is None:
            return REFUSED, xid, _unknown(code)
        api_key, read = found
        try:
            message = read(JuteReader(chunk, start, end))
        except DecodeError as error:
            if code in _CLOSES_WHEN_UNDECODABLE:
                return REFUSED, xid, Refusal(0, f"operation {code}: {error}", True)
            return REFUSED, xid, Refusal(ZkErrorCode.MARSHALLING_ERROR, str(error), False)
        if code == OpCode.PING:
            xid = PING_XID  # whatever the client sent
        elif code == OpCode.SASL:
            self.sasl_xid = xid
        return api_key, xid, message


def _unknown(code: int) -> Refusal:
    if code == OpCode.DELETE_CONTAINER:
        text = "only a server may delete a container"
        return Refusal(ZkErrorCode.BAD_ARGUMENTS, text, False)
    text = f"operation {code} is not known"
    return Refusal(ZkErrorCode.UNIMPLEMENTED, text, True, zxid=-1)


def _cut_create(chunk: bytes, start: int, end: int) -> tuple[Any, ...] | None:
    """`<path> <data> <the open ACL list> <flags>`; None where it is not in that form."""
    acl_start = end - INT_BYTES - len(_OPEN_ACL)
    path_start = start + INT_BYTES
    if acl_start < path_start + INT_BYTES or not chunk.startswith(_OPEN_ACL, acl_start):
        return None
    (path_bytes,) = _unpack_int(chunk, start)
    path_end = path_start + path_bytes
    data_start = path_end + INT_BYTES
    if path_bytes <= 0 or data_start > acl_start:
        return None
    (data_bytes,) = _unpack_int(chunk, path_end)
    if data_bytes < 0 or data_start + data_bytes != acl_start:
        return None
    try:
        path = chunk[path_start:path_end].decode()
    except UnicodeDecodeError:
        return None
    (flags,) = _unpack_int(chunk, end - INT_BYTES)
    return path, chunk[data_start:acl_start], OPEN_ACL_UNSAFE, flags, -1


def _cut_delete(chunk: bytes, start: int, end: int) -> tuple[str, int] | None:
    """`<path> <version>`; None where it is not in that form."""
    path_start = start + INT_BYTES
    path_end = end - INT_BYTES
    if path_end <= path_start or chunk[start:path_start] != pack_int(path_end - path_start):
        return None
    try:
        path = chunk[path_start:path_end].decode()
    except UnicodeDecodeError:
        return None
    return path, _unpack_int(chunk, path_end)[0]
