"""The consumer: assigned partitions in, records out, by batch poll or one by one.

Owns the public calls and who waits for what; the fetcher works in the background, positions are
`fetch_positions`'. Names and meanings are aiokafka's, settings are Kafka's in snake_case. There
are no groups here: partitions are assigned by hand and positions are not stored.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final

from duolog_protocol.broker_messages import EARLIEST_TIMESTAMP, LATEST_TIMESTAMP
from duolog_protocol.errors import ConnectionClosedError, RequestTimeoutError
from duolog_protocol.types import TopicPartition

from .clock import Clock, SystemClock
from .cluster_client import ClusterClient
from .core.fetch_positions import RESET_TIMESTAMPS, Decoder, PartitionPosition
from .fetcher import Fetcher, FetchSettings
from .offset_lookup import list_offsets
from .settings import (
    ISOLATION_LEVELS,
    addresses,
    at_least,
    cluster_settings,
    one_of,
    random_source,
)
from .values import ConsumerRecord, OffsetAndTimestamp

NO_LIMIT: Final = 1 << 62
MAX_RECORDS_WITHOUT_YIELD: Final = 2000
"""A caller who always finds records must still let the fetcher run."""


class Consumer:
    """Reads the partitions that were assigned to it.

    `auto_offset_reset` says where to begin without a position, or when the position does not
    exist any more: "latest", "earliest" or "none" (an error). Topics given to the constructor
    are assigned with all their partitions at `start`.

    All calls are safe to cancel: the next call returns the same records.
    """

    def __init__(
        self,
        *topics: str,
        bootstrap_servers: str | list[str] = "127.0.0.1:9092",
        client_id: str = "duolog-consumer",
        auto_offset_reset: str = "latest",
        fetch_min_bytes: int = 1,
        fetch_max_wait_ms: int = 500,
        fetch_max_bytes: int = 50 * 1024 * 1024,
        max_partition_fetch_bytes: int = 1024 * 1024,
        max_poll_records: int | None = None,
        isolation_level: str = "read_uncommitted",
        check_crcs: bool = True,
        key_deserializer: Callable[[bytes], Any] | None = None,
        value_deserializer: Callable[[bytes], Any] | None = None,
        request_timeout_ms: int = 30_000,
        retry_backoff_ms: int = 100,
        retry_backoff_max_ms: int = 1000,
        reconnect_backoff_ms: int = 50,
        reconnect_backoff_max_ms: int = 1000,
        socket_connection_setup_timeout_ms: int = 10_000,
        metadata_max_age_ms: int = 300_000,
        allow_auto_create_topics: bool = False,
        rng: random.Random | None = None,
        clock: Clock | None = None,
    ) -> None:
        one_of("auto_offset_reset", auto_offset_reset, tuple(RESET_TIMESTAMPS))
        one_of("isolation_level", isolation_level, ISOLATION_LEVELS)
        for name, value, bound in (
            ("fetch_min_bytes", fetch_min_bytes, 0),
            ("fetch_max_wait_ms", fetch_max_wait_ms, 0),
            ("fetch_max_bytes", fetch_max_bytes, 1),
            ("max_partition_fetch_bytes", max_partition_fetch_bytes, 1),
        ):
            at_least(name, value, bound)
        if max_poll_records is not None:
            at_least("max_poll_records", max_poll_records, 1)
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
        self._reset_timestamp = RESET_TIMESTAMPS[auto_offset_reset]
        self._fetch_settings = FetchSettings(
            fetch_min_bytes=fetch_min_bytes,
            fetch_max_wait_ms=fetch_max_wait_ms,
            fetch_max_bytes=fetch_max_bytes,
            max_partition_fetch_bytes=max_partition_fetch_bytes,
            isolation_level=ISOLATION_LEVELS[isolation_level],
            request_timeout_ms=request_timeout_ms,
            reset_timestamp=self._reset_timestamp,
        )
        self._decoder = Decoder(
            ConsumerRecord,
            check_crcs,
            isolation_level == "read_committed",
            _finisher(key_deserializer, value_deserializer),
        )
        self._topics = topics
        self._max_poll_records = max_poll_records or NO_LIMIT
        self._allow_auto_create_topics = allow_auto_create_topics
        self._request_timeout_ms = request_timeout_ms
        self._rng = random_source(rng)
        self._clock = clock or SystemClock()
        self._assigned: dict[TopicPartition, PartitionPosition] = {}
        self._progress: asyncio.Event | None = None
        self._turn = 0
        self._without_yield = 0
        self._started = self._stopped = False

    async def start(self, timeout: float | None = None) -> None:
        """Find the cluster and begin to fetch. Raises TransportError.

        `timeout` in seconds, for finding it (default: request_timeout_ms).
        """
        if self._started:
            raise ConnectionClosedError("a consumer can be started only once")
        self._started = True
        self._progress = asyncio.Event()
        self._cluster = ClusterClient(
            self._addresses,
            self._cluster_settings,
            owner="consumer",
            allow_auto_topic_creation=self._allow_auto_create_topics,
            clock=self._clock,
            rng=self._rng,
            on_change=self._changed,
        )
        self._fetcher = Fetcher(self._cluster, self._fetch_settings, self._progress.set)
        self._fetcher.assigned = self._assigned
        try:
            await self._cluster.start(timeout)
            if self._topics:
                self.assign(
                    [
                        TopicPartition(topic, partition)
                        for topic in self._topics
                        for partition in sorted(await self.partitions_for_topic(topic, timeout))
                    ]
                )
        except BaseException:
            await self._cluster.stop()
            raise
        self._cluster.tasks.spawn("fetcher", self._fetcher.run())

    async def stop(self) -> None:
        """Close. Idempotent."""
        if not self._started or self._stopped:
            return
        self._stopped = True
        assert self._progress is not None
        self._progress.set()
        await self._cluster.stop()

    async def __aenter__(self) -> Consumer:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    # -- what to read ----------------------------------------------------------------------

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Read these partitions and no others; those already assigned keep their position."""
        before = dict(self._assigned)
        self._assigned.clear()
        for topic, partition in partitions:
            if not topic or partition < 0:
                raise ValueError(f"{topic!r}-{partition} is no partition")
            tp = TopicPartition(topic, partition)
            known = before.get(tp)
            if known is None:
                known = PartitionPosition(topic, partition)
                known.reset(self._reset_timestamp)
            self._assigned[tp] = known
        self._poke()

    def assignment(self) -> set[TopicPartition]:
        """What is assigned."""
        return set(self._assigned)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go on from this offset; whether it exists shows at the next fetch."""
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise ValueError(f"offset must be an integer of at least 0, got {offset!r}")
        self._state(partition).seek(offset)
        self._poke()

    async def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        """Go on from the oldest record of these partitions (of all without any)."""
        self._reset(partitions, EARLIEST_TIMESTAMP)

    async def seek_to_end(self, *partitions: TopicPartition, timeout: float | None = None) -> None:
        """Go on behind the newest record of these partitions (of all without any).

        Waits until that is looked up, `timeout` seconds at most: what is appended later is read.
        """
        limit = timeout if timeout is not None else self._request_timeout_ms / 1000
        self._reset(partitions, LATEST_TIMESTAMP)
        deadline = self._clock.now_ms() + limit * 1000
        for each in partitions or tuple(self._assigned):
            await self.position(each, max(deadline - self._clock.now_ms(), 0) / 1000)

    async def position(self, partition: TopicPartition, timeout: float | None = None) -> int:
        """Offset of the next record that will be handed out; `timeout` in seconds.

        Raises RequestTimeoutError, and what keeps the partition from having a position.
        """
        state = self._state(partition)
        limit = timeout if timeout is not None else self._request_timeout_ms / 1000
        try:
            async with asyncio.timeout(limit):
                while state.position is None:
                    self._check()
                    if state.error is not None:
                        raise state.error
                    await self._wait()
        except TimeoutError as cause:
            raise RequestTimeoutError(f"no position of {partition} within {limit} s") from cause
        return state.position

    def highwater(self, partition: TopicPartition) -> int | None:
        """The high watermark as the last fetch told it: the offset after the last record."""
        return self._state(partition).high_watermark

    def pause(self, *partitions: TopicPartition) -> None:
        """Hand out and fetch nothing of these until `resume`."""
        for each in partitions:
            self._state(each).is_paused = True

    def resume(self, *partitions: TopicPartition) -> None:
        """Undo `pause`."""
        for each in partitions:
            self._state(each).is_paused = False
        self._poke()

    def paused(self) -> set[TopicPartition]:
        """What is paused."""
        return {tp for tp, state in self._assigned.items() if state.is_paused}

    # -- what there is ---------------------------------------------------------------------

    async def partitions_for_topic(self, topic: str, timeout: float | None = None) -> set[int]:
        """The partitions of a topic; waits up to `timeout` seconds for one that is not there.

        Raises UnknownTopicOrPartitionError, InvalidTopicError.
        """
        limit_ms = self._request_timeout_ms if timeout is None else round(timeout * 1000)
        return set((await self._cluster.topic(topic, limit_ms)).partitions)

    async def beginning_offsets(
        self, partitions: Iterable[TopicPartition], timeout: float | None = None
    ) -> dict[TopicPartition, int]:
        """Offsets of the oldest records; `timeout` in seconds."""
        queries = {TopicPartition(*each): EARLIEST_TIMESTAMP for each in partitions}
        return {tp: each.offset for tp, each in (await self._list(queries, timeout)).items()}

    async def end_offsets(
        self, partitions: Iterable[TopicPartition], timeout: float | None = None
    ) -> dict[TopicPartition, int]:
        """Offsets after the newest records; `timeout` in seconds."""
        queries = {TopicPartition(*each): LATEST_TIMESTAMP for each in partitions}
        return {tp: each.offset for tp, each in (await self._list(queries, timeout)).items()}

    async def offsets_for_times(
        self, timestamps: dict[TopicPartition, int], timeout: float | None = None
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """For each partition the first record at or after a time (ms), None when there is none."""
        for tp, timestamp in timestamps.items():
            if timestamp < 0:
                raise ValueError(f"timestamp of {tp} must be at least 0, got {timestamp}")
        queries = {TopicPartition(*tp): each for tp, each in timestamps.items()}
        return {
            tp: None
            if each.offset < 0
            else OffsetAndTimestamp(each.offset, each.timestamp_ms, each.leader_epoch)
            for tp, each in (await self._list(queries, timeout)).items()
        }

    async def _list(self, queries: dict[TopicPartition, int], timeout: float | None) -> Any:
        self._check()
        limit_ms = self._request_timeout_ms if timeout is None else round(timeout * 1000)
        level = self._fetch_settings.isolation_level
        return await list_offsets(
            self._cluster, queries, isolation_level=level, timeout_ms=limit_ms
        )

    # -- records ---------------------------------------------------------------------------

    async def getmany(
        self,
        *partitions: TopicPartition,
        timeout_ms: int = 0,
        max_records: int | None = None,
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        """The next records of these partitions (of all without any), by partition.

        Waits up to `timeout_ms` for the first one. Raises every error that is not retriable, once
        what lies before it was handed out. An interrupt (KeyboardInterrupt) in a deserializer comes
        through at once: what this call has taken before it is lost unless the caller seeks back.
        """
        states = [self._state(each) for each in partitions] or None
        limit = min(max_records or NO_LIMIT, self._max_poll_records)
        await self._maybe_yield()
        found = self._take(states, limit)
        if found or timeout_ms <= 0:
            if not found:
                await asyncio.sleep(0)  # a caller that only polls must let the fetcher run
            return found
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while not found:
                    await self._wait()
                    found = self._take(states, limit)
        except TimeoutError:
            return {}
        return found

    async def getone(
        self, *partitions: TopicPartition, timeout: float | None = None
    ) -> ConsumerRecord:
        """The next record of these partitions (of all without any); waits until there is one.

        Raises RequestTimeoutError after `timeout` seconds without one.
        """
        states = [self._state(each) for each in partitions] or None
        await self._maybe_yield()
        for records in self._take(states, 1).values():
            return records[0]
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self._wait()
                    for records in self._take(states, 1).values():
                        return records[0]
        except TimeoutError as cause:
            raise RequestTimeoutError(f"no record within {timeout} s") from cause

    def __aiter__(self) -> Consumer:
        return self

    async def __anext__(self) -> ConsumerRecord:
        """Ends when the consumer is stopped."""
        if self._stopped:
            raise StopAsyncIteration
        try:
            return await self.getone()
        except ConnectionClosedError:
            if self._stopped:
                raise StopAsyncIteration from None
            raise

    def _take(
        self, states: list[PartitionPosition] | None, limit: int
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        self._check()
        candidates = list(self._assigned.values()) if states is None else states
        found: dict[TopicPartition, list[ConsumerRecord]] = {}
        count = len(candidates)
        failed: PartitionPosition | None = None
        for step in range(count):
            state = candidates[(self._turn + step) % count]
            if state.is_paused:
                continue
            if state.has_records and state.position is not None:
                try:
                    records = state.take(limit, self._decoder)
                except Exception:
                    self._fetcher.wake()
                    if found:
                        break  # handed out first; the error comes again with the next call
                    raise
                if records:
                    found[state.topic_partition] = records
                    limit -= len(records)
                    self._without_yield += len(records)
                    if limit == 0:
                        if state.has_records:
                            self._turn += step  # go on with the same one, then with the next
                        else:
                            self._turn += step + 1
                        break
            elif state.error is not None:
                failed = failed or state
        if found:
            self._fetcher.wake()
        elif failed is not None:
            assert failed.error is not None
            error = failed.error
            if not failed.has_records and failed.position is not None:
                failed.error = None  # raised once for every attempt to read
                self._fetcher.wake()
            raise error
        return found

    async def _maybe_yield(self) -> None:
        if self._without_yield >= MAX_RECORDS_WITHOUT_YIELD:
            self._without_yield = 0
            await asyncio.sleep(0)

    async def _wait(self) -> None:
        """Until the fetcher has made progress."""
        progress = self._progress
        assert progress is not None
        self._check()
        progress.clear()
        self._fetcher.waiter_count += 1
        self._fetcher.wake()
        try:
            await progress.wait()
        finally:
            self._fetcher.waiter_count -= 1
        self._check()

    def _state(self, partition: TopicPartition) -> PartitionPosition:
        state = self._assigned.get(partition)
        if state is None:
            raise ValueError(f"{partition} is not assigned to this consumer")
        return state

    def _reset(self, partitions: tuple[TopicPartition, ...], timestamp: int) -> None:
        for each in partitions or tuple(self._assigned):
            self._state(each).reset(timestamp)
        self._poke()

    def _check(self) -> None:
        if self._stopped or not self._started:
            raise ConnectionClosedError(
                "the consumer was stopped" if self._stopped else "the consumer was not started"
            )
        self._cluster.check()

    def _poke(self) -> None:
        if self._started:
            self._fetcher.wake()
            assert self._progress is not None
            self._progress.set()

    def _changed(self) -> None:
        self._fetcher.wake()
        if self._cluster.failure is not None:
            assert self._progress is not None
            self._progress.set()


def _finisher(
    key_deserializer: Callable[[bytes], Any] | None,
    value_deserializer: Callable[[bytes], Any] | None,
) -> Callable[[Any], Any] | None:
    if key_deserializer is None and value_deserializer is None:
        return None

    def finish(record: ConsumerRecord) -> ConsumerRecord:
        key: Any = record.key
        value: Any = record.value
        if key is not None and key_deserializer is not None:
            key = key_deserializer(key)
        if value is not None and value_deserializer is not None:
            value = value_deserializer(value)
        return record._replace(key=key, value=value)

    return finish
