"""From the bytes of a native client of zkserver to requests, sans-I/O.

    stream = *frame          ; a request each, as `frames` and `apis` have it; the preamble is gone

Owns the cutting of the stream and the decoding of what it cut, in one pass over what a read
brought: at half a million requests a second a second pass is what one can do without. GetData,
Exists, GetChildren and SetData are cut by hand as clients write them, everything else goes through
its schema; both give equal values (a test compares them).

A frame that cannot be trusted raises, as in `FrameDecoder`. Nothing else does: a request that
cannot be served becomes a `Refusal` in its place, so that the answers before it still leave in
order.

The length of a header and its first six bytes say what the tag of the path must be, so that a
table of these *forms* leaves only comparisons to the loop: arithmetic is what Python is slow at.
What the reads asked for is remembered for a while.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from .apis import read_message, read_request
from .codec import array_header, pack
from .connection import request_problem
from .error_codes import ZkErrorCode
from .errors import DecodeError
from .frames import Frame, frame_at
from .stream_decoder import LENGTH_BYTES, StreamDecoder
from .zk_codec import REFUSED, Refusal
from .zk_messages import EXISTS, GET_CHILDREN, GET_DATA, SET_DATA, ZK_APIS

NativeRequest = tuple[int, int, Any]
"""(api_key, correlation_id, message)."""

_BEGIN: Final = struct.Struct(">I10sIH")
"""Length; length of the header and its first six bytes; correlation id; mark of the path."""
_BEGIN_BYTES: Final = _BEGIN.size
_unpack_begin = _BEGIN.unpack_from
_HEADER_AT: Final = 8
_PATH_AT: Final = 18
"""Positions in a frame."""

_FIXSTR: Final = 0xA0
_FIXSTR_BYTES: Final = 32
_FIXSTR_MASK: Final = 0xE0
_STR8: Final = 0xD9
_STR8_BYTES: Final = 256
_BYTE_INTS: Final = 128
"""The integers from 0 on that are one byte, itself."""
_MINUS_ONE: Final = 0xFF
_UINT8: Final = 0xCC
_UINT16: Final = 0xCD
_unpack_u16 = struct.Struct(">H").unpack_from
_INT32_LAST: Final = (1 << 31) - 1
_WATCH: Final = tuple({0xC2: False, 0xC3: True}.get(byte) for byte in range(256))
_VERSION: Final = (*range(_BYTE_INTS), *[None] * (_MINUS_ONE - _BYTE_INTS), -1)
"""What one byte says, by the byte; None where it says something else."""

_SET_DATA_KEY: Final = SET_DATA.key
_VERSIONS: Final = {
    tag: struct.Struct(layout)
    for tag, layout in ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xD2, ">i"))
}

_Form = tuple[int, int, int, int, int]
"""(api key, mark of the path, length of the frame, start and end of the path in it).

The mark is the two bytes at `_PATH_AT`: tag and slash of a short path, tag and size of a longer
one. Behind the path is the watch; in a SetData the length of the data and the version, a byte each.

A SetData has minus its length without data: no frame has that length, so that a read is told from
a set by the comparison it needs anyway, and the sum of both lengths is that of the data."""


def _forms() -> dict[bytes, _Form]:
    """Length of the header and its first six bytes -> the form."""
    found = {}
    for api in (GET_DATA, EXISTS, GET_CHILDREN, SET_DATA):
        fields = api.request.count(0)
        head = array_header(3 + fields) + pack(api.key) + b"\x00\xce"
        for size in range(1, _STR8_BYTES):
            is_short = size < _FIXSTR_BYTES
            mark = (_FIXSTR | size) << 8 | ord("/") if is_short else _STR8 << 8 | size
            start = _PATH_AT + (1 if is_short else 2)
            header_bytes = start + size + fields - 1 - _HEADER_AT
            length = LENGTH_BYTES + header_bytes
            begin = header_bytes.to_bytes(LENGTH_BYTES, "big") + head
            expected_length = length if api is not SET_DATA else -length
            found[begin] = (api.key, mark, expected_length, start, start + size)
    return found


_FORMS: Final = _forms()
_LEAST_LIMIT: Final = 1024
"""No frame in one of the forms is longer."""
MAX_RECENT_READS: Final = 4_096
_WORTH_IT: Final = 4
"""Least requests per read remembered; with fewer, decoding every one is cheaper."""
_REST: Final = 64
"""How long it then rests: reads that are not kept, in multiples of `MAX_RECENT_READS`."""


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


class NativeDecoder(StreamDecoder[NativeRequest]):
    """Cuts what one client sends into requests, however the bytes arrive.

    `buffer_updated` and `feed` raise FrameTooLargeError, RemoteProtocolError. After an error the
    decoder must not be used again. Requests that were cut by hand are plain tuples, equal to their
    message: making a NamedTuple would cost a third of it.
    """

    __slots__ = ("_recent", "known_peer")

    def __init__(
        self,
        max_frame_bytes: int,
        scratch: memoryview | None = None,
        recent: RecentReads | None = None,
    ) -> None:
        assert max_frame_bytes >= _LEAST_LIMIT, max_frame_bytes
        super().__init__(max_frame_bytes, scratch)
        self._recent = recent or RecentReads()
        self.known_peer = False
        """The client has a session: larger requests are decoded."""

    def _cut(self, chunk: bytes) -> list[NativeRequest]:
        requests: list[NativeRequest] = []
        append = requests.append
        position = 0
        size = len(chunk)
        stop = size - _BEGIN_BYTES
        limit = self.max_frame_bytes
        recent = self._recent
        form_of, known, version_of = _FORMS.get, recent.messages.get, _VERSION
        while position <= stop:
            length, head, correlation_id, mark = _unpack_begin(chunk, position)
            form = form_of(head)
            if form is not None and correlation_id:
                api_key, expected_mark, expected_length, start, path_end = form
                path_end += position
                if length == expected_length and path_end < size:  # path and watch
                    end = path_end + 1
                    key = chunk[position + _PATH_AT : end]
                    message = known(key)  # what is known had the right mark: the bytes are the same
                    if message is None and mark == expected_mark:
                        path_bytes = chunk[position + start : path_end]
                        message = recent.learn(key, path_bytes, chunk[path_end])
                    if message is not None:
                        append((api_key, correlation_id, message))
                        position = end
                        continue
                elif mark == expected_mark and api_key == _SET_DATA_KEY:
                    # Path, data of a byte's length, short version.
                    data_start = path_end + 2
                    data_bytes = length + expected_length
                    end = data_start + data_bytes
                    if 0 <= data_bytes < _BYTE_INTS and end <= size:
                        version = version_of[chunk[path_end + 1]]
                        if chunk[path_end] == data_bytes and version is not None:
                            try:
                                path = chunk[position + start : path_end].decode()
                            except UnicodeDecodeError:
                                pass
                            else:
                                change = (path, chunk[data_start:end], version)
                                append((api_key, correlation_id, change))
                                position = end
                                continue
                if api_key == _SET_DATA_KEY and length <= limit:  # longer data, or any version
                    end = position + LENGTH_BYTES + length
                    if end <= size:
                        set_data = _cut_set_data(chunk, position + _PATH_AT, path_end + 2, end)
                        if set_data is not None:
                            append((api_key, correlation_id, set_data))
                            position = end
                            continue
            # Anything else, or a request that is not all there.
            frame = frame_at(chunk, position, limit)
            if frame is None:
                break
            append(self._decode(frame))
            position = frame[3]
        recent.request_count += len(requests)
        if position == size:
            self._rest = b""
        else:
            self._cut_rest(chunk, position, requests)
        return requests

    def _cut_rest(self, chunk: bytes, position: int, requests: list[NativeRequest]) -> None:
        """What the loop left: short frames at the end, and a frame that is cut off."""
        while (frame := frame_at(chunk, position, self.max_frame_bytes)) is not None:
            requests.append(self._decode(frame))
            position = frame[3]
        self._keep(chunk, position)

    def _decode(self, frame: Frame) -> NativeRequest:
        """One request that is in none of the forms of the loop."""
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


def _cut_set_data(chunk: bytes, at: int, header_end: int, end: int) -> tuple[Any, ...] | None:
    """`<path> <data length> <version>` and the data, with any version and data of up to 64 KiB.

    It begins at `at`; the frame is all there, its header may end anywhere. None where it is not in
    a usual encoding: then the schema decides.
    """
    data_bytes = end - header_end
    if data_bytes < 0:
        return None
    tag = chunk[at]
    path_start = at + 1
    if tag & _FIXSTR_MASK == _FIXSTR:
        path_end = path_start + (tag & ~_FIXSTR_MASK)
    elif tag == _STR8:
        path_start += 1
        path_end = path_start + chunk[at + 1]
    else:
        return None
    at = path_end
    if at + 2 > header_end:
        return None
    tag = chunk[at]
    if tag == _UINT16 and at + 4 <= header_end:
        (tag,) = _unpack_u16(chunk, at + 1)
        at += 3
    elif tag == _UINT8:
        tag = chunk[at + 1]
        at += 2
    elif tag < _BYTE_INTS:
        at += 1
    else:
        return None
    if tag != data_bytes or at >= header_end:
        return None
    version = _VERSION[chunk[at]]
    at += 1
    if version is None:
        layout = _VERSIONS.get(chunk[at - 1])
        if layout is None or at + layout.size != header_end:
            return None
        (version,) = layout.unpack_from(chunk, at)
        if version > _INT32_LAST:
            return None
    elif at != header_end:
        return None
    try:
        path = chunk[path_start:path_end].decode()
    except UnicodeDecodeError:
        return None
    return path, chunk[header_end:end], version
