"""A blocking client of kbroker for pre-built batches, and the first answer of any daemon.

Owns one socket. It costs next to nothing per batch, so that what is measured is the broker; every
reply is decoded and compared all the same.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import deque
from types import TracebackType
from typing import Any, Final, Self

from duolog_protocol import broker_messages as kb
from duolog_protocol.apis import API_VERSIONS, AnyApi, ApiVersionsRequest, read_response
from duolog_protocol.codec import Piece, cursor_of
from duolog_protocol.connection import ClientConnection, Push
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.frames import Frame, FrameDecoder
from duolog_protocol.records import BatchBuilder

from .plan import find_correlation_id
from .processes import NoFigureError

_U32: Final = struct.Struct(">I")
TIMEOUT_S: Final = 30
TOPIC_S: Final = 10
IN_FLIGHT: Final = 5
"""Produce requests sent ahead, as Kafka's clients do by default."""
_FROM_MAGIC: Final = 16
"""From here on a broker must not change a batch."""


class WrongReplyError(NoFigureError):
    """A reply was not what it must be: there is no figure."""


class NativeClient:
    """One connection, over which ApiVersions was exchanged."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = ClientConnection(kb.MAX_FRAME_BYTES)
        self.service: str = self.call(API_VERSIONS, ApiVersionsRequest("bench", "1")).service

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def call(self, api: AnyApi, message: Any) -> Any:
        """One request and its response."""
        pieces: list[Piece] = self._connection.request(api, message, True, 0)
        self.socket.sendall(b"".join(pieces))
        while True:
            received = self.socket.recv_into(self._connection.get_buffer())
            if received == 0:
                raise WrongReplyError(f"the connection ended before the answer to {api.name}")
            for event in self._connection.buffer_updated(received):
                if isinstance(event, Push) or event.message is None:
                    raise WrongReplyError(f"{api.name}: {event.header.values}")
                return event.message


class Batch:
    """A pre-built batch of records of one size."""

    def __init__(self, records_count: int, size_bytes: int) -> None:
        builder = BatchBuilder()
        now_ms = int(time.time() * 1000)
        for number in range(records_count):
            builder.append(now_ms, None, b"%010d" % number + b"x" * (size_bytes - 10))
        self.bytes = bytes(builder.build())
        self.records_count = records_count


class BatchClient(NativeClient):
    """Pushes one batch into partition 0 of a topic over and over, and reads it back."""

    def create_topic(self, name: str, batch: Batch, durability: str) -> int:
        """Create a topic, wait until it takes a batch; how many records it holds then."""
        configs = (kb.TopicConfig("durability", durability),)
        new = kb.NewTopicRequest(name, 1, 1, (), configs)
        made = self.call(kb.CREATE_TOPICS, kb.CreateTopicsRequest([new], 10_000, False)).topics[0]
        if made.error_code != 0:
            raise WrongReplyError(f"topic {name}: {KafkaErrorCode(made.error_code).name}")
        deadline = time.monotonic() + TOPIC_S
        while True:
            (stored,) = self.call(kb.PRODUCE, _produce(name, batch)).partitions
            if stored.error_code == 0:
                return batch.records_count
            if time.monotonic() > deadline:
                raise WrongReplyError(f"{name}: {KafkaErrorCode(stored.error_code).name}")
            time.sleep(0.005)

    def push(self, topic: str, batch: Batch, times: int, offset: int) -> float:
        """Seconds for `times` batches, the first of which must land at `offset`."""

        def encode(correlation_id: int) -> bytes:
            return b"".join(kb.PRODUCE.encode_request(correlation_id, _produce(topic, batch), 0))

        template, at = find_correlation_id(encode)
        request = bytearray(template)
        decoder = FrameDecoder(kb.MAX_FRAME_BYTES)
        sent = answered = 0
        start = time.perf_counter()
        while answered < times:
            while sent < times and sent - answered < IN_FLIGHT:
                _U32.pack_into(request, at, sent + 1)
                self.socket.sendall(request)
                sent += 1
            for frame in self._receive(decoder):
                (stored,) = _response(kb.PRODUCE, frame, answered + 1).partitions
                due = offset + answered * batch.records_count
                if stored.error_code != 0 or stored.base_offset != due:
                    raise WrongReplyError(f"{stored} where offset {due} is due")
                answered += 1
        return time.perf_counter() - start

    def pull(self, topic: str, batch: Batch, end_offset: int, fetch_bytes: int) -> float:
        """Seconds to read everything below `end_offset`; the next fetch is always under way."""
        decoder = FrameDecoder(kb.MAX_FRAME_BYTES)
        frames: deque[Frame] = deque()
        offset, number = 0, 1
        start = time.perf_counter()
        self._fetch(topic, number, offset, fetch_bytes)
        while True:
            while not frames:
                frames.extend(self._receive(decoder))
            (found,) = _response(kb.FETCH, frames.popleft(), number).partitions
            if found.error_code != 0:
                raise WrongReplyError(f"fetch: {KafkaErrorCode(found.error_code).name}")
            count = len(found.records) // len(batch.bytes)
            if count == 0:
                raise WrongReplyError(f"a fetch at {offset} of {end_offset} brought no batch")
            next_offset = offset + count * batch.records_count
            if next_offset < end_offset:
                number += 1
                self._fetch(topic, number, next_offset, fetch_bytes)
            _compare(found.records, batch, count, offset)
            offset = next_offset
            if offset >= end_offset:
                return time.perf_counter() - start

    def _fetch(self, topic: str, number: int, offset: int, fetch_bytes: int) -> None:
        partition = kb.FetchPartition(topic, 0, -1, offset, -1, -1, fetch_bytes)
        message = kb.FetchRequest(-1, -1, 500, 1, 50 << 20, 0, 0, 0, "", (partition,))
        self.socket.sendall(b"".join(kb.FETCH.encode_request(number, message, 0)))

    def _receive(self, decoder: FrameDecoder) -> list[Frame]:
        received = self.socket.recv_into(decoder.get_buffer())
        if received == 0:
            raise WrongReplyError("the connection ended")
        return decoder.buffer_updated(received)


def _produce(topic: str, batch: Batch) -> kb.ProduceRequest:
    return kb.ProduceRequest(None, -1, 30_000, (kb.ProducePartition(topic, 0, batch.bytes),))


def _response(api: AnyApi, frame: Frame, due: int) -> Any:
    header = read_response(frame)
    if header.correlation_id != due or header.error_code != 0:
        raise WrongReplyError(f"{header.values[:4]} where the response to {due} is due")
    return api.decode_response(header.values, 0, cursor_of(frame))


def _compare(records: Piece, batch: Batch, count: int, offset: int) -> None:
    """Every byte from the magic on, and the offset of each batch."""
    size = len(batch.bytes)
    due = batch.bytes[_FROM_MAGIC:]
    for number in range(count):
        start = number * size
        found = int.from_bytes(records[start : start + 8], "big")
        if found != offset + number * batch.records_count:
            raise WrongReplyError(f"a batch at offset {found} after {offset} + {number} batches")
        if bytes(records[start + _FROM_MAGIC : start + size]) != due:
            raise WrongReplyError(f"the batch at offset {found} is not what was sent")
