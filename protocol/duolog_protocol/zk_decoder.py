"""From the bytes of a native client of zkserver to requests, sans-I/O.

    stream = *frame          ; a request each, as `frames` and `apis` have it; the preamble is gone

Owns the cutting of the stream and the decoding of what it cut, in one pass over what a read
brought: at half a million requests a second a second pass is what one can do without. GetData,
Exists, GetChildren and SetData are cut by hand as clients write them (`zk_forms`), a run of equal
ones in one go (`zk_runs`), everything else goes through its schema; all give equal values (a test
compares them).

A frame that cannot be trusted raises, as in `FrameDecoder`. Nothing else does: a request that
cannot be served becomes a `Refusal` in its place, so that the answers before it still leave in
order.
"""

from __future__ import annotations

from typing import Any

from .apis import read_message, read_request
from .connection import request_problem
from .error_codes import ZkErrorCode
from .errors import DecodeError
from .frames import Frame, frame_at
from .recent_reads import RecentReads
from .stream_decoder import LENGTH_BYTES, StreamDecoder
from .zk_codec import REFUSED, Refusal
from .zk_forms import (
    BEGIN_BYTES,
    BYTE_INTS,
    FORMS,
    LEAST_LIMIT,
    PATH_AT,
    SET_DATA_KEY,
    VERSION,
    cut_set_data,
    unpack_begin,
)
from .zk_messages import ZK_APIS
from .zk_runs import cut_run

NativeRequest = tuple[int, int, Any]
"""(api_key, correlation_id, message)."""


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
        assert max_frame_bytes >= LEAST_LIMIT, max_frame_bytes
        super().__init__(max_frame_bytes, scratch)
        self._recent = recent or RecentReads()
        self.known_peer = False
        """The client has a session: larger requests are decoded."""

    def _cut(self, chunk: bytes) -> list[NativeRequest]:
        requests: list[NativeRequest] = []
        append = requests.append
        position = 0
        size = len(chunk)
        stop = size - BEGIN_BYTES
        limit = self.max_frame_bytes
        recent = self._recent
        form_of, known, version_of = FORMS.get, recent.messages.get, VERSION
        last_length, last_head = 0, b""
        while position <= stop:
            length, head, correlation_id, mark = unpack_begin(chunk, position)
            form = form_of(head)
            if length == last_length and head == last_head and form is not None:
                last_length = 0  # where it ends, a new one may begin two frames later
                end = cut_run(chunk, position, length, form, recent, requests)
                if end > position:
                    position = end
                    continue
            else:
                last_length, last_head = length, head
            if form is not None and correlation_id:
                api_key, expected_mark, expected_length, start, path_end = form
                path_end += position
                if length == expected_length and path_end < size:  # path and watch
                    end = path_end + 1
                    key = chunk[position + PATH_AT : end]
                    message = known(key)  # what is known had the right mark: the bytes are the same
                    if message is None and mark == expected_mark:
                        path_bytes = chunk[position + start : path_end]
                        message = recent.learn(key, path_bytes, chunk[path_end])
                    if message is not None:
                        append((api_key, correlation_id, message))
                        position = end
                        continue
                elif mark == expected_mark and api_key == SET_DATA_KEY:
                    # Path, data of a byte's length, short version.
                    data_start = path_end + 2
                    data_bytes = length + expected_length
                    end = data_start + data_bytes
                    if 0 <= data_bytes < BYTE_INTS and end <= size:
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
                if api_key == SET_DATA_KEY and length <= limit:  # longer data, or any version
                    end = position + LENGTH_BYTES + length
                    if end <= size:
                        set_data = cut_set_data(chunk, position + PATH_AT, path_end + 2, end)
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
