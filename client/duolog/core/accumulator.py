"""Records on their way: the batches of all partitions, the buffer's bound, what to send next.

Owns the accounting of `buffer_memory`, linger, the deadlines of delivery and the choice of
batches for each broker. Order within a partition is `partition_queue`'s. Source: Kafka's
RecordAccumulator; the cost is per batch, only `Producer.send` touches single records.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from duolog_protocol.broker_messages import MAX_PARTITIONS_PER_REQUEST
from duolog_protocol.errors import Error

from .partition_queue import Failed, PartitionQueue
from .partitioner import choose_sticky
from .producer_batch import FlushTicket, ProducerBatch

MAX_KEYS_REMEMBERED: Final = 10_000
STREAM_LINGER_MS: Final = 1
NEVER_MS: Final = 1 << 62


class AccumulatorSettings(NamedTuple):
    """The producer's settings that matter here, under Kafka's names."""

    batch_size: int
    buffer_memory: int
    max_request_size: int
    linger_ms: int
    delivery_timeout_ms: int
    idempotent: bool


class TopicQueues:
    """The queues of one topic's partitions, and where its records without key go."""

    __slots__ = ("by_key", "choices", "name", "queues", "sticky", "sticky_left_bytes")

    def __init__(self, name: str) -> None:
        self.name = name
        self.queues: list[PartitionQueue] = []
        self.choices: list[PartitionQueue] = []
        """Queues of partitions with a leader; all of them while nobody leads any."""
        self.by_key: dict[bytes, PartitionQueue] = {}
        """Where recent keys go; bounded."""
        self.sticky: PartitionQueue | None = None
        self.sticky_left_bytes = 0
        """Bytes until the sticky partition changes, counted by whole batches."""


class NodeRequest(NamedTuple):
    """Batches for one broker, at most one of each partition."""

    node_id: int
    link: object
    batches: list[ProducerBatch]


class Accumulator:
    """All batches without an outcome."""

    __slots__ = (
        "_active",
        "_delay_ms",
        "_expiry_check_ms",
        "_linger",
        "_queues",
        "_ready",
        "_rng",
        "_settings",
        "leaders_missing",
        "producer_id",
        "producer_id_missing",
        "topics",
        "used_bytes",
    )

    def __init__(
        self,
        settings: AccumulatorSettings,
        rng: random.Random,
        delay_ms: Callable[[int], int],
    ) -> None:
        self._settings = settings
        self._rng = rng
        self._delay_ms = delay_ms
        self.topics: dict[str, TopicQueues] = {}
        self._queues: dict[tuple[str, int], PartitionQueue] = {}
        self._ready: dict[PartitionQueue, None] = {}
        """Queues that may have something to send, the longest not served first."""
        self._active: dict[PartitionQueue, None] = {}
        """Queues that had a batch without outcome when last looked at."""
        self._linger: deque[tuple[int, ProducerBatch, PartitionQueue]] = deque()
        self._expiry_check_ms = NEVER_MS
        self.used_bytes = 0
        self.producer_id = -1
        self.producer_id_missing = False
        """The last `drain` could not number a batch."""
        self.leaders_missing: set[str] = set()
        """Topics where the last `drain` found records for a partition without a leader."""

    # -- records in ------------------------------------------------------------------------

    def set_partitions(self, topic: str, count: int, with_leader: list[int]) -> TopicQueues:
        """What the metadata says of a topic; partitions never become fewer."""
        found = self.topics.get(topic)
        if found is None:
            found = self.topics[topic] = TopicQueues(topic)
        if count > len(found.queues):
            for partition in range(len(found.queues), count):
                queue = PartitionQueue(topic, partition, idempotent=self._settings.idempotent)
                found.queues.append(queue)
                self._queues[topic, partition] = queue
            found.by_key.clear()
        found.choices = [found.queues[each] for each in with_leader] or found.queues
        if found.sticky is not None and found.sticky not in found.choices:
            found.sticky_left_bytes = 0
        return found

    def sticky_queue(self, topic: TopicQueues) -> PartitionQueue:
        """Where a new batch of records without key goes."""
        if topic.sticky is None or topic.sticky_left_bytes <= 0:
            choices = topic.choices
            topic.sticky = choices[
                choose_sticky([each.pending_count for each in choices], self._rng)
            ]
            topic.sticky_left_bytes = self._settings.batch_size
        return topic.sticky

    def remember_key(self, topic: TopicQueues, key: bytes, queue: PartitionQueue) -> None:
        """The next record with this key finds its queue by one look-up."""
        if len(topic.by_key) >= MAX_KEYS_REMEMBERED:
            topic.by_key.clear()
        topic.by_key[key] = queue

    def close_full(self, queue: PartitionQueue) -> None:
        """The next record does not fit in the open batch."""
        batch = queue.open
        if batch is None:
            return
        self._count_sticky(queue, batch)
        queue.close_open()
        self._ready[queue] = None

    def _count_sticky(self, queue: PartitionQueue, batch: ProducerBatch) -> None:
        topic = self.topics[queue.topic]
        if queue is topic.sticky:
            topic.sticky_left_bytes -= batch.size_bytes

    def has_room(self, record_bytes: int) -> bool:
        """Whether `open_batch` may be called for a record of this size (upper bound)."""
        size = max(record_bytes, self._settings.batch_size)
        return self.used_bytes == 0 or self.used_bytes + size <= self._settings.buffer_memory

    def open_batch(
        self, queue: PartitionQueue, record_bytes: int, now_ms: int, *, behind_full: bool = False
    ) -> ProducerBatch:
        """Start a batch; its share of the buffer is taken until it is done.

        One behind a full batch lingers at least STREAM_LINGER_MS: there is a stream of records,
        and without linger every second batch would hold a single one.
        """
        assert queue.open is None, (queue.topic, queue.partition)
        settings = self._settings
        reserved = max(record_bytes, settings.batch_size)
        deadline_ms = now_ms + settings.delivery_timeout_ms
        batch = ProducerBatch(queue.topic, queue.partition, deadline_ms, reserved)
        self.used_bytes += reserved
        queue.open = batch
        self._active[queue] = None
        self._expiry_check_ms = min(self._expiry_check_ms, deadline_ms)
        linger_ms = settings.linger_ms or (STREAM_LINGER_MS if behind_full else 0)
        if linger_ms == 0:
            self.hurry(queue)
        else:
            self._linger.append((now_ms + linger_ms, batch, queue))
        return batch

    def hurry(self, queue: PartitionQueue) -> None:
        """Somebody waits for the open batch: it need not linger."""
        if queue.open is not None:
            queue.open.due = True
        self._ready[queue] = None

    def hurry_all(self) -> None:
        """Send everything: a flush, or the buffer is full."""
        for queue in self._active:
            if queue.open is not None:
                self.hurry(queue)

    def flush(self, ticket: FlushTicket) -> None:
        """Hurry everything; the ticket counts all batches without an outcome."""
        self.hurry_all()
        for queue in self._active:
            pending = [*queue.numbered, *queue.waiting]
            if queue.open is not None:
                pending.append(queue.open)
            for batch in pending:
                batch.tickets.append(ticket)
            ticket.remaining += len(pending)

    # -- batches out -----------------------------------------------------------------------

    def drain(
        self,
        now_ms: int,
        leader_of: Callable[[str, int], int],
        link_of: Callable[[int], object | None],
    ) -> list[NodeRequest]:
        """One request for each broker that has something to get and can take it.

        `link_of` gives the connection of a broker, None when it cannot take a request now. Call
        again until the answer is empty.
        """
        while self._linger and self._linger[0][0] <= now_ms:
            _, lingering, queue = self._linger.popleft()
            if lingering is queue.open:
                self.hurry(queue)
        self.producer_id_missing = False
        self.leaders_missing.clear()
        if not self._ready:
            return []
        nodes: dict[int, tuple[object | None, list[ProducerBatch]]] = {}
        sizes: dict[int, int] = {}
        for queue in list(self._ready):
            if not queue.has_work:
                del self._ready[queue]
                continue
            node_id = leader_of(queue.topic, queue.partition)
            if node_id < 0:
                self.leaders_missing.add(queue.topic)
                continue
            found = nodes.get(node_id)
            if found is None:
                found = nodes[node_id] = (link_of(node_id), [])
            link, batches = found
            if link is None or len(batches) >= MAX_PARTITIONS_PER_REQUEST:
                continue
            if queue.needs_producer_id(self.producer_id):
                self.producer_id_missing = True
                continue
            size = sizes.get(node_id, 0)
            if batches and size + queue.next_size_bytes > self._settings.max_request_size:
                continue
            was_open = queue.open
            batch = queue.next_batch(now_ms, link, self.producer_id)
            if batch is None:
                continue
            if batch is was_open:
                self._count_sticky(queue, batch)
            batches.append(batch)
            sizes[node_id] = size + batch.size_bytes
            del self._ready[queue]  # and to the end: others are served first next time
            if queue.has_work:
                self._ready[queue] = None
        return [
            NodeRequest(node_id, link, batches)
            for node_id, (link, batches) in nodes.items()
            if batches
        ]

    @property
    def may_have_work(self) -> bool:
        """Whether `drain` may find something to send."""
        return any(queue.has_work for queue in self._ready)

    def on_success(self, batch: ProducerBatch) -> tuple[bool, Failed]:
        """The batch is stored: whether anybody still waited for that, and what failed for good."""
        waited = not batch.done
        queue = self._queues[batch.topic, batch.partition]
        failed = queue.on_success(batch)
        if waited:
            self._release(batch)
        return waited, self._after(queue, failed)

    def on_failure(self, batch: ProducerBatch, error: Error, now_ms: int) -> Failed:
        """The batch was refused or got no answer. Returns what failed for good."""
        queue = self._queues[batch.topic, batch.partition]
        return self._after(queue, queue.on_failure(batch, error, now_ms, self._delay_ms))

    def expire(self, now_ms: int) -> Failed:
        """Fail the batches whose delivery deadline has passed."""
        if now_ms < self._expiry_check_ms:
            return []
        failed: Failed = []
        self._expiry_check_ms = NEVER_MS
        for queue in list(self._active):
            oldest = queue.oldest
            while oldest is not None and oldest.deadline_ms <= now_ms:
                failed += self._after(queue, queue.expire(oldest))
                oldest = queue.oldest
            if oldest is None:
                del self._active[queue]
            else:
                self._expiry_check_ms = min(self._expiry_check_ms, oldest.deadline_ms)
        return failed

    def fail_all(self, error: Error) -> Failed:
        """Every batch without an outcome fails."""
        failed: Failed = []
        for queue in list(self._active):
            failed += self._after(queue, queue.fail_all(error))
        return failed

    def deadline_ms(self, now_ms: int) -> int:
        """When `drain` or `expire` has something to do though nothing else happens."""
        deadline = self._expiry_check_ms
        if self._linger:
            deadline = min(deadline, self._linger[0][0])
        for queue in self._ready:
            retry_at_ms = queue.retry_at_ms
            if now_ms < retry_at_ms < deadline:
                deadline = retry_at_ms
        return deadline

    @property
    def is_empty(self) -> bool:
        """Every record has its outcome."""
        return self.used_bytes == 0

    def _after(self, queue: PartitionQueue, failed: Failed) -> Failed:
        for batch, _ in failed:
            self._release(batch)
        self._ready[queue] = None
        return failed

    def _release(self, batch: ProducerBatch) -> None:
        assert batch.done and batch.reserved_bytes <= self.used_bytes, self.used_bytes
        self.used_bytes -= batch.reserved_bytes
        batch.reserved_bytes = 0
