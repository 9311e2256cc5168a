"""The producer: records in, futures of where they were stored out.

Owns the public calls, the waiting for room in the buffer and the choice of partition. `send`
is the hot path: one look-up for the topic, one append to the open batch; everything else happens
once per batch, in the accumulator and the sender. Names and meanings are aiokafka's, settings
are Kafka's in snake_case.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from duolog_protocol.errors import (
    ConfigError,
    ConnectionClosedError,
    MessageTooLargeError,
    RequestTimeoutError,
)
from duolog_protocol.partitioning import partition_for_key

from .clock import Clock, SystemClock
from .cluster_client import ClusterClient
from .core.accumulator import Accumulator, AccumulatorSettings, TopicQueues
from .core.delivery_errors import BufferFullError
from .core.partition_queue import PartitionQueue
from .core.producer_batch import (
    BATCH_HEADER_BYTES,
    ESTIMATED_RECORD_OVERHEAD_BYTES,
    MAX_RECORD_OVERHEAD_BYTES,
    FlushTicket,
    Header,
    headers_size,
)
from .core.record_encoding import BatchEncoder
from .sender import Sender, SenderSettings
from .settings import (
    COMPRESSION_TYPES,
    acks_of,
    addresses,
    at_least,
    cluster_settings,
    one_of,
    random_source,
)
from .values import RecordMetadata

RecordFuture = asyncio.Future[RecordMetadata]
Headers = Sequence[tuple[str, bytes | None]]
Partitioner = Callable[[bytes | None, list[int], list[int]], int]
"""(key bytes, all partitions, partitions with a leader) -> partition, as in aiokafka."""

MAX_IN_FLIGHT_IDEMPOTENT = 5
"""Brokers remember this many batches of a producer."""
MAX_OPENED_UNSENT = 16
"""Batches that a caller who never waits may open before the event loop runs."""


class Producer:
    """Sends records; idempotent by default.

    `acks`: "all", 1 or 0. `enable_idempotence` None means: where acks="all" allows it. `linger_ms`:
    how long a batch may wait for more records; `send_and_wait`, `flush` and `stop` do not let it
    wait. `delivery_timeout_ms` bounds everything from `send` to the outcome, `max_block_ms` the
    waiting of `send` itself.

    A future that fails says with its exception's `definite` whether the record may have been
    stored all the same. An outcome that nobody looks at is logged by asyncio when it is an error.
    """

    def __init__(
        self,
        *,
        bootstrap_servers: str | list[str] = "127.0.0.1:9092",
        client_id: str = "duolog-producer",
        acks: str | int = "all",
        enable_idempotence: bool | None = None,
        linger_ms: int = 5,
        batch_size: int = 16384,
        buffer_memory: int = 32 * 1024 * 1024,
        max_request_size: int = 1024 * 1024,
        compression_type: str | None = None,
        delivery_timeout_ms: int = 120_000,
        request_timeout_ms: int = 30_000,
        max_block_ms: int = 60_000,
        max_in_flight_requests_per_connection: int = 5,
        retry_backoff_ms: int = 100,
        retry_backoff_max_ms: int = 1000,
        reconnect_backoff_ms: int = 50,
        reconnect_backoff_max_ms: int = 1000,
        socket_connection_setup_timeout_ms: int = 10_000,
        metadata_max_age_ms: int = 300_000,
        partitioner: Partitioner | None = None,
        key_serializer: Callable[[Any], bytes] | None = None,
        value_serializer: Callable[[Any], bytes] | None = None,
        rng: random.Random | None = None,
        clock: Clock | None = None,
    ) -> None:
        for name, value, bound in (
            ("linger_ms", linger_ms, 0),
            ("batch_size", batch_size, 1),
            ("buffer_memory", buffer_memory, batch_size),
            ("max_request_size", max_request_size, BATCH_HEADER_BYTES),
            ("max_block_ms", max_block_ms, 0),
            ("max_in_flight_requests_per_connection", max_in_flight_requests_per_connection, 1),
        ):
            at_least(name, value, bound)
        at_least("delivery_timeout_ms", delivery_timeout_ms, linger_ms + request_timeout_ms)
        one_of("compression_type", compression_type, COMPRESSION_TYPES)
        self._acks = acks_of(acks)
        idempotent = _idempotent(
            enable_idempotence, self._acks, max_in_flight_requests_per_connection
        )
        self._addresses = addresses(bootstrap_servers)
        self._cluster_settings = cluster_settings(
            client_id=client_id,
            request_timeout_ms=request_timeout_ms,
            retry_backoff_ms=retry_backoff_ms,
            retry_backoff_max_ms=retry_backoff_max_ms,
            metadata_max_age_ms=metadata_max_age_ms,
            reconnect_backoff_ms=reconnect_backoff_ms,
            reconnect_backoff_max_ms=reconnect_backoff_max_ms,
            socket_connection_setup_timeout_ms=socket_connection_setup_timeout_ms,
        )
        self._sender_settings = SenderSettings(
            self._acks, request_timeout_ms, max_in_flight_requests_per_connection
        )
        self._accumulator_settings = AccumulatorSettings(
            batch_size=batch_size,
            buffer_memory=buffer_memory,
            max_request_size=max_request_size,
            linger_ms=linger_ms,
            delivery_timeout_ms=delivery_timeout_ms,
            idempotent=idempotent,
        )
        self._encode = BatchEncoder(COMPRESSION_TYPES[compression_type])
        self._batch_size = batch_size
        self._max_block_ms = max_block_ms
        self._partitioner = partitioner
        self._key_serializer = key_serializer
        self._value_serializer = value_serializer
        self._rng = random_source(rng)
        self._clock = clock or SystemClock()
        self._wall_ms = self._clock.wall_ms
        self._topics: dict[str, TopicQueues] = {}
        """Where `send` finds a topic; empty when only the long way may be taken."""
        self._room_waiters: deque[asyncio.Future[None]] = deque()
        self._opened_count = 0
        """Batches opened since `send` last let the event loop run."""
        self._started = self._stopping = False

    async def start(self, timeout: float | None = None) -> None:
        """Find the cluster. Raises TransportError when no bootstrap server answers.

        `timeout` in seconds (default: request_timeout_ms).
        """
        if self._started:
            raise ConnectionClosedError("a producer can be started only once")
        self._started = True
        self._create_future = asyncio.get_running_loop().create_future
        self._cluster = ClusterClient(
            self._addresses,
            self._cluster_settings,
            owner="producer",
            allow_auto_topic_creation=True,
            clock=self._clock,
            rng=self._rng,
            on_change=self._changed,
        )
        self._accumulator = Accumulator(
            self._accumulator_settings, self._rng, self._cluster.backoff.delay_ms
        )
        self._sender = Sender(
            self._cluster,
            self._accumulator,
            self._sender_settings,
            encode=self._encode,
            on_released=self._let_waiters_in,
        )
        try:
            await self._cluster.start(timeout)
        except BaseException:
            await self._cluster.stop()
            raise
        self._cluster.tasks.spawn("sender", self._sender.run())
        if self._key_serializer is None and self._value_serializer is None:
            self._topics = self._accumulator.topics

    async def stop(self, timeout: float | None = None) -> None:
        """Deliver what was sent (bounded by delivery_timeout_ms), then close. Idempotent.

        Cancelling it gives up the records without an outcome: their futures fail. So do
        `timeout` seconds without all outcomes; then it raises RequestTimeoutError, closed.
        """
        if not self._started or self._stopping:
            return
        self._stopping = True
        self._topics = {}
        try:
            if self._cluster.failure is None:
                async with asyncio.timeout(timeout):
                    await self._flushed()
        except TimeoutError as cause:
            raise RequestTimeoutError(f"not all was delivered within {timeout} s") from cause
        finally:
            self._let_waiters_in()
            await self._cluster.stop()

    async def __aenter__(self) -> Producer:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def send(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Headers | None = None,
        *,
        timeout: float | None = None,
    ) -> RecordFuture:
        """Take a record; returns the future of where it was stored.

        Waits for the topic's metadata and for room in the buffer, at most `timeout` seconds
        (default: max_block_ms).
        Cancelling this, or the future, never withdraws a record that was taken.

        Raises BufferFullError, MessageTooLargeError, InvalidTopicError,
        UnknownTopicOrPartitionError, ConnectionClosedError: then it was not taken.
        """
        queues = self._topics.get(topic)
        if queues is not None and headers is None and type(value) is bytes:
            size = len(value) + ESTIMATED_RECORD_OVERHEAD_BYTES
            queue: PartitionQueue | None = None
            if partition is None:
                if key is None:
                    queue = queues.sticky
                elif type(key) is bytes:
                    queue = queues.by_key.get(key)
                    size += len(key)
            elif key is None and 0 <= partition < len(queues.queues):
                queue = queues.queues[partition]
            if queue is not None:
                batch = queue.open
                if batch is not None and batch.size_bytes + size <= self._batch_size:
                    batch.size_bytes += size
                    future: RecordFuture = self._create_future()
                    if timestamp_ms is None:
                        timestamp_ms = self._wall_ms()
                    batch.records.append((timestamp_ms, key, value, ()))
                    batch.handles.append(future)
                    return future
        return await self._send(
            topic, value, key, partition, timestamp_ms, headers, hurry=False, timeout=timeout
        )

    async def send_and_wait(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Headers | None = None,
        *,
        timeout: float | None = None,
    ) -> RecordMetadata:
        """As `send`, and wait for the outcome. Cancelling never withdraws a record taken.

        Nor does `timeout`, in seconds: RequestTimeoutError says that the outcome is not known.
        """
        if timeout is None:
            return await (
                await self._send(
                    topic, value, key, partition, timestamp_ms, headers, hurry=True, timeout=None
                )
            )
        try:
            async with asyncio.timeout(timeout):
                return await self.send_and_wait(topic, value, key, partition, timestamp_ms, headers)
        except TimeoutError as cause:
            raise RequestTimeoutError(f"no outcome within {timeout} s") from cause

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until every record sent so far has its outcome; `timeout` in seconds.

        Errors show in the futures, not here. Raises RequestTimeoutError.
        """
        self._check()
        try:
            async with asyncio.timeout(timeout):
                await self._flushed()
        except TimeoutError as cause:
            raise RequestTimeoutError(f"not all was delivered within {timeout} s") from cause

    async def partitions_for(self, topic: str, timeout: float | None = None) -> set[int]:
        """The partitions of a topic; waits up to `timeout` seconds for one that is not there.

        Raises UnknownTopicOrPartitionError, InvalidTopicError.
        """
        self._check()
        limit_ms = self._max_block_ms if timeout is None else round(timeout * 1000)
        return set((await self._cluster.topic(topic, limit_ms)).partitions)

    # -- the long way ----------------------------------------------------------------------

    async def _send(
        self,
        topic: str,
        value: Any,
        key: Any,
        partition: int | None,
        timestamp_ms: int | None,
        headers: Headers | None,
        *,
        hurry: bool,
        timeout: float | None,
    ) -> RecordFuture:
        self._check()
        value_bytes = _as_bytes("value", value, self._value_serializer)
        key_bytes = _as_bytes("key", key, self._key_serializer)
        header_tuple = _checked_headers(headers) if headers else ()
        data_bytes = len(value_bytes or b"") + len(key_bytes or b"") + headers_size(header_tuple)
        bound_bytes = BATCH_HEADER_BYTES + MAX_RECORD_OVERHEAD_BYTES + data_bytes
        settings = self._accumulator_settings
        limit = min(settings.max_request_size, settings.buffer_memory)
        if bound_bytes > limit:
            raise MessageTooLargeError(
                f"a record of {bound_bytes} bytes is over the limit of {limit} "
                "(max_request_size, buffer_memory)"
            )
        limit_ms = self._max_block_ms if timeout is None else round(timeout * 1000)
        deadline_ms = self._clock.now_ms() + limit_ms
        queues = self._accumulator.topics.get(topic)
        if queues is None:
            queues = await self._load_topic(topic, limit_ms)
        size = ESTIMATED_RECORD_OVERHEAD_BYTES + data_bytes
        queue, rolled = await self._place(
            queues, key_bytes, partition, size, bound_bytes, deadline_ms, hurry=hurry
        )
        batch = queue.open
        assert batch is not None
        batch.size_bytes += size
        future: RecordFuture = self._create_future()
        if timestamp_ms is None:
            timestamp_ms = self._wall_ms()
        batch.records.append((timestamp_ms, key_bytes, value_bytes, header_tuple))
        batch.handles.append(future)
        if hurry:
            self._accumulator.hurry(queue)
            self._sender.hurry()
        elif rolled or self._opened_count >= MAX_OPENED_UNSENT:
            self._opened_count = 0
            await asyncio.sleep(0)  # a caller that never waits would starve the sender
        return future

    async def _place(
        self,
        queues: TopicQueues,
        key: bytes | None,
        partition: int | None,
        size: int,
        bound_bytes: int,
        deadline_ms: int,
        *,
        hurry: bool,
    ) -> tuple[PartitionQueue, bool]:
        """A queue whose open batch has room, and whether a full one was closed for it.

        With `hurry` the caller sees to it that the batch is sent.
        """
        accumulator = self._accumulator
        is_retry = rolled = False
        while True:
            queue = self._choose(queues, key, partition)
            batch = queue.open
            if batch is not None and (
                batch.size_bytes + size <= self._batch_size or not batch.records
            ):
                return queue, rolled
            if batch is not None:
                accumulator.close_full(queue)
                self._sender.wake()
                rolled = True
                continue  # the sticky partition may change with the batch
            if (is_retry or not self._room_waiters) and accumulator.has_room(bound_bytes):
                accumulator.open_batch(queue, bound_bytes, self._clock.now_ms(), behind_full=rolled)
                self._opened_count += 1
                if not hurry:
                    self._sender.wake()
                if is_retry:
                    self._let_waiters_in()
                return queue, rolled
            await self._wait_for_room(deadline_ms, is_retry=is_retry)
            is_retry = True

    def _choose(
        self, queues: TopicQueues, key: bytes | None, partition: int | None
    ) -> PartitionQueue:
        if partition is None:
            if self._partitioner is not None:
                everything = list(range(len(queues.queues)))
                with_leader = [each.partition for each in queues.choices]
                partition = self._partitioner(key, everything, with_leader)
            elif key is None:
                return self._accumulator.sticky_queue(queues)
            else:
                queue = queues.queues[partition_for_key(key, len(queues.queues))]
                self._accumulator.remember_key(queues, key, queue)
                return queue
        if not 0 <= partition < len(queues.queues):
            raise ValueError(
                f"topic {queues.name!r} has partitions 0 to {len(queues.queues) - 1}, "
                f"not {partition}"
            )
        return queues.queues[partition]

    async def _load_topic(self, topic: str, timeout_ms: int) -> TopicQueues:
        info = await self._cluster.topic(topic, timeout_ms)
        self._check()
        led = [each.partition for each in info.partitions.values() if each.leader_id >= 0]
        return self._accumulator.set_partitions(topic, len(info.partitions), led)

    async def _wait_for_room(self, deadline_ms: int, *, is_retry: bool) -> None:
        waiter: asyncio.Future[None] = self._create_future()
        if is_retry:
            self._room_waiters.appendleft(waiter)  # it has waited the longest
        else:
            self._room_waiters.append(waiter)
        self._accumulator.hurry_all()
        self._sender.wake()
        left_ms = max(0, deadline_ms - self._clock.now_ms())
        try:
            async with asyncio.timeout(left_ms / 1000):
                await waiter
        except TimeoutError as cause:
            used = self._accumulator.used_bytes
            raise BufferFullError(
                f"no room within the time limit: {used} bytes of buffer_memory wait for "
                "their delivery"
            ) from cause
        finally:
            if waiter in self._room_waiters:
                self._room_waiters.remove(waiter)
            elif waiter.cancelled():
                self._let_waiters_in()  # it was called, but will not go in
        self._check()

    def _let_waiters_in(self) -> None:
        """Call the next that waits for room; it calls the one after it."""
        waiters = self._room_waiters
        ended = self._stopping or self._cluster.failure is not None
        while waiters and (ended or self._accumulator.has_room(0)):
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                if not ended:
                    return

    async def _flushed(self) -> None:
        done: asyncio.Future[None] = self._create_future()
        ticket = FlushTicket(lambda: None if done.done() else done.set_result(None))
        self._accumulator.flush(ticket)
        if ticket.remaining:
            self._sender.wake()
            await done

    def _check(self) -> None:
        if self._stopping or not self._started:
            raise ConnectionClosedError(
                "the producer was stopped" if self._stopping else "the producer was not started"
            )
        self._cluster.check()

    def _changed(self) -> None:
        self._sender.wake()
        if self._cluster.failure is not None:
            self._topics = {}
            self._let_waiters_in()


def _idempotent(wanted: bool | None, acks: int, max_in_flight: int) -> bool:
    possible = acks == -1 and max_in_flight <= MAX_IN_FLIGHT_IDEMPOTENT
    if wanted and not possible:
        raise ConfigError(
            "enable_idempotence",
            wanted,
            "needs acks='all' and max_in_flight_requests_per_connection of at most "
            f"{MAX_IN_FLIGHT_IDEMPOTENT}",
        )
    return possible if wanted is None else wanted


def _as_bytes(what: str, value: Any, serializer: Callable[[Any], bytes] | None) -> bytes | None:
    if serializer is not None:
        value = serializer(value)
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)  # the caller may change its buffer while the record waits
    raise TypeError(
        f"{what} must be bytes or None, got {type(value).__name__}; set {what}_serializer"
    )


def _checked_headers(headers: Headers) -> tuple[Header, ...]:
    found: list[Header] = []
    for name, value in headers:
        if not isinstance(name, str):
            raise TypeError(f"the name of a header must be str, got {type(name).__name__}")
        found.append((name, _as_bytes("header", value, None)))
    return tuple(found)
