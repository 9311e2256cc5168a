"""The batches of one partition in order, and the numbering that keeps them in order.

Owns what an idempotent producer must never get wrong: which batch may be sent next, what an
answer or its absence proves, and when the epoch is raised. Never knows brokers, sockets or time.
Source: Kafka's RecordAccumulator, TransactionManager; KIP-98, KIP-360; `reliability.md` KP1-KP6.

    open --close--> waiting --number, send--> numbered: in flight <--> waiting for its retry
                       ^                         |            |
                       +------- unnumber --------+            +--> done: success or failure

Rules, each with the disorder that it prevents:

- Numbered batches are resolved in order; a retry goes alone, at the head, with its old number and
  bytes. A new batch is numbered only when none waits for a retry.
- All in flight travel over one connection, which the broker serves in order. After a change of
  leader or connection the next batch waits until all have their outcome.
- The first batch of an epoch travels alone: a broker that knows nothing of the producer accepts
  any number, so a second one could be stored in place of a first one that was refused.
- A batch that failed leaves a hole in the numbers. Nothing new is numbered until every numbered
  batch is resolved; then the partition continues under a raised epoch from 0. Batches after the
  hole are renumbered when it is proven that they were not stored, else they fail as "unknown":
  to send them again under a new number could store them twice.

The epoch is the partition's own: brokers keep a producer's state by partition, and without
transactions nothing binds the epochs of two partitions together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import BrokerError, Error, RequestTimeoutError

from .delivery_errors import DeliveryUnknownError, RecordExpiredError, is_definite
from .producer_batch import NO_SEQUENCE, ProducerBatch

PRODUCER_EPOCH_LAST: Final = 32767
_SEQUENCE_MASK: Final = 0x7FFF_FFFF
_SEQUENCE_LOST: Final = frozenset(
    {
        KafkaErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaErrorCode.UNKNOWN_PRODUCER_ID,
        KafkaErrorCode.INVALID_PRODUCER_EPOCH,
    }
)
_SPLITTABLE: Final = frozenset(
    {KafkaErrorCode.MESSAGE_TOO_LARGE, KafkaErrorCode.RECORD_LIST_TOO_LARGE}
)

Failed = list[tuple[ProducerBatch, Error]]
"""Batches that are done, and why they failed."""


class PartitionQueue:
    """One partition's batches."""

    __slots__ = (
        "_epoch_acknowledged",
        "_idempotent",
        "_link",
        "_needs_bump",
        "_sequence_lost",
        "in_flight_count",
        "next_sequence",
        "numbered",
        "open",
        "partition",
        "producer_epoch",
        "producer_id",
        "topic",
        "waiting",
    )

    def __init__(self, topic: str, partition: int, *, idempotent: bool) -> None:
        self.topic = topic
        self.partition = partition
        self._idempotent = idempotent
        self.open: ProducerBatch | None = None
        self.waiting: deque[ProducerBatch] = deque()
        """Closed and without a number, in order."""
        self.numbered: deque[ProducerBatch] = deque()
        """Sent at least once and without an outcome, in the order of their numbers."""
        self.in_flight_count = 0
        """Requests without answer, those of batches that have expired meanwhile included."""
        self.producer_id = -1
        """-1: takes the producer's current one at the next numbering."""
        self.producer_epoch = 0
        self.next_sequence = 0
        self._epoch_acknowledged = False
        self._needs_bump = False
        self._sequence_lost = False
        """The broker refused the head's number though nothing before it is open."""
        self._link: object = None

    @property
    def has_work(self) -> bool:
        """There may be something to send: a closed batch, a due one, or a retry."""
        if self.waiting or (self.open is not None and self.open.due):
            return True
        return any(not batch.in_flight for batch in self.numbered)

    @property
    def oldest(self) -> ProducerBatch | None:
        """The batch with the earliest deadline."""
        if self.numbered:
            return self.numbered[0]
        return self.waiting[0] if self.waiting else self.open

    @property
    def retry_at_ms(self) -> int:
        """When the next batch may be sent as far as backoff is concerned."""
        if self.numbered:
            return self.numbered[0].retry_at_ms if self.in_flight_count == 0 else 0
        return self.waiting[0].retry_at_ms if self.waiting else 0

    @property
    def pending_count(self) -> int:
        """Batches without an outcome."""
        return len(self.waiting) + len(self.numbered) + (self.open is not None)

    @property
    def next_size_bytes(self) -> int:
        """Estimated size of what `next_batch` would give."""
        if self.numbered and not self.numbered[0].in_flight:
            return self.numbered[0].size_bytes
        batch = self.waiting[0] if self.waiting else self.open
        return 0 if batch is None else batch.size_bytes

    def close_open(self) -> None:
        """No more records go into the open batch."""
        if self.open is not None:
            assert self.open.records, (self.topic, self.partition)
            self.waiting.append(self.open)
            self.open = None

    def next_batch(self, now_ms: int, link: object, producer_id: int) -> ProducerBatch | None:
        """The batch to send now over `link`, counted as in flight, or None.

        Takes the open batch when it is due and no other waits, so that batches go on filling as
        long as the broker has enough to do. `producer_id` is the producer's current one; ignored
        by partitions that have one.
        """
        head = self.numbered[0] if self.numbered else None
        if head is not None:
            if self.in_flight_count == 0:
                if now_ms < head.retry_at_ms:
                    return None
                head.sent_as_head = True
                return self._send(head, link)
            if not self._may_pipeline(link):
                return None
        elif self.in_flight_count != 0 and (self._needs_bump or self._link is not link):
            return None  # an expired batch is still on its way: what it did must be over first
        if not self.waiting:
            if self.open is None or not self.open.due:
                return None
            self.close_open()
        if now_ms < self.waiting[0].retry_at_ms:
            return None
        batch = self.waiting.popleft()
        batch.sent_as_head = head is None
        if self._idempotent:
            self._number(batch, producer_id)
        self.numbered.append(batch)
        return self._send(batch, link)

    def _may_pipeline(self, link: object) -> bool:
        return (
            self._link is link
            and not self._needs_bump
            and (self._epoch_acknowledged or not self._idempotent)
            and all(batch.in_flight for batch in self.numbered)
        )

    def _send(self, batch: ProducerBatch, link: object) -> ProducerBatch:
        assert not batch.in_flight, (self.topic, self.partition, batch.base_sequence)
        batch.in_flight = True
        batch.attempts += 1
        self.in_flight_count += 1
        self._link = link
        return batch

    def _number(self, batch: ProducerBatch, producer_id: int) -> None:
        if self._needs_bump:
            self._bump()
        if self.producer_id < 0:
            assert producer_id >= 0, producer_id
            self.producer_id = producer_id
        batch.number(self.producer_id, self.producer_epoch, self.next_sequence)
        self.next_sequence = (self.next_sequence + batch.record_count) & _SEQUENCE_MASK

    def _bump(self) -> None:
        assert not self.numbered and self.in_flight_count == 0, (
            len(self.numbered),
            self.in_flight_count,
        )
        if self.producer_epoch == PRODUCER_EPOCH_LAST:
            self.producer_id = -1
            self.producer_epoch = 0
        else:
            self.producer_epoch += 1
        self.next_sequence = 0
        self._epoch_acknowledged = False
        self._needs_bump = self._sequence_lost = False

    def needs_producer_id(self, producer_id: int) -> bool:
        """Whether numbering the next batch takes another id than the producer's current one."""
        if not self._idempotent:
            return False
        if self._needs_bump and self.producer_epoch == PRODUCER_EPOCH_LAST:
            return producer_id in (-1, self.producer_id)
        return self.producer_id < 0 and producer_id < 0

    def on_success(self, batch: ProducerBatch) -> Failed:
        """The batch is stored (unless it is done, it is now). Returns what failed for good."""
        self._answered(batch)
        if not batch.done:
            batch.done = True
            self._epoch_acknowledged = True
            self.numbered.remove(batch)
        return self.settle()

    def on_failure(
        self, batch: ProducerBatch, error: Error, now_ms: int, delay_ms: Callable[[int], int]
    ) -> Failed:
        """The broker refused the batch, or no answer will come.

        `delay_ms` gives the wait before the retry for a number of attempts. Returns what failed
        for good.
        """
        self._answered(batch)
        if batch.done:
            return self.settle()
        batch.last_error = error
        if not is_definite(error):
            batch.unanswered_count += 1
        batch.retry_at_ms = now_ms + delay_ms(batch.attempts)
        code = error.code if isinstance(error, BrokerError) else KafkaErrorCode.NONE
        if self._idempotent and code in _SEQUENCE_LOST:
            if batch.sent_as_head:
                self._needs_bump = self._sequence_lost = True
            else:
                batch.retry_at_ms = now_ms  # it only came too early: wait for those before it
            return self.settle()
        if code in _SPLITTABLE and batch.record_count > 1:
            at = self.numbered.index(batch)
            first, second = batch.split()
            self.numbered[at] = second
            self.numbered.insert(at, first)
            return self.settle()
        if error.retriable:
            return self.settle()
        return self._fail(batch, error) + self.settle()

    def _answered(self, batch: ProducerBatch) -> None:
        assert batch.in_flight and self.in_flight_count > 0, (batch.in_flight, self.in_flight_count)
        batch.in_flight = False
        self.in_flight_count -= 1

    def _fail(self, batch: ProducerBatch, error: Error) -> Failed:
        """Take a batch out that will not be tried again; it may leave a hole in the numbers."""
        clean = batch.unanswered_count == 0 and not batch.in_flight
        batch.done = True
        if batch.base_sequence != NO_SEQUENCE:
            self._needs_bump = True
            if clean:
                for after in list(self.numbered)[self.numbered.index(batch) + 1 :]:
                    after.after_clean_hole = True
        self.numbered.remove(batch)
        if clean or not error.definite:
            return [(batch, error)]
        unknown = DeliveryUnknownError(
            f"an earlier attempt may have stored the records; the last one failed: {error}"
        )
        unknown.__cause__ = error
        return [(batch, unknown)]

    def settle(self) -> Failed:
        """Once nothing is in flight, renumber what follows a hole and cannot have been stored.

        That is known of batches behind a batch that was never stored, and, when the broker has
        lost track of this producer, of batches whose every attempt was refused. A batch with an
        attempt that had no answer may still be under way on a connection that is gone.
        """
        if self.in_flight_count or not self.numbered:
            return []
        if not self._sequence_lost and not self.numbered[0].after_clean_hole:
            return []
        assert self._needs_bump, (self.topic, self.partition)
        failed: Failed = []
        for batch in list(self.numbered):
            if batch.unanswered_count and not batch.after_clean_hole:
                assert batch.last_error is not None
                failed += self._fail(batch, batch.last_error)
        while self.numbered:
            batch = self.numbered.pop()
            batch.unnumber()
            self.waiting.appendleft(batch)
        return failed

    def expire(self, batch: ProducerBatch) -> Failed:
        """The batch's delivery deadline has passed: it fails wherever it is."""
        assert not batch.done, (self.topic, self.partition)
        why = f" (last error: {batch.last_error})" if batch.last_error is not None else ""
        where = f"{batch.record_count} records of {self.topic}-{self.partition}"
        if batch in self.numbered:
            error: Error
            if batch.unanswered_count or batch.in_flight:
                error = RequestTimeoutError(
                    f"{where} got no final answer within the delivery timeout; "
                    f"they may be stored{why}"
                )
            else:
                error = RecordExpiredError(f"{where} could not be stored in time{why}")
            error.__cause__ = batch.last_error
            return self._fail(batch, error) + self.settle()
        expired = RecordExpiredError(f"{where} could not be sent within the delivery timeout{why}")
        expired.__cause__ = batch.last_error
        batch.done = True
        if batch is self.open:
            self.open = None
        else:
            self.waiting.remove(batch)
        return [(batch, expired)]

    def fail_all(self, error: Error) -> Failed:
        """Every batch without an outcome fails: the producer stops."""
        self.close_open()
        failed: Failed = []
        for batch in list(self.numbered):
            failed += self._fail(batch, error)
        for batch in self.waiting:
            batch.done = True
            failed.append((batch, error))
        self.waiting.clear()
        return failed
