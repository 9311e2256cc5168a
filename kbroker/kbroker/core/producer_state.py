"""What one partition remembers of its idempotent producers, to recognise duplicates and gaps.

Owns, per producer id, the epoch and the last five batches. Decide, then replay: `check` looks at a
batch before it is appended and changes nothing; `replay` records a batch that is in the log, live,
on followers and in recovery alike, and never refuses. Must never let a clock gate a decision
(KAFKA-8803): time only forgets producers that were idle, counted from when they were last seen
here, never from the timestamps that they claim.

Source: KIP-98, Kafka ProducerAppendInfo, ProducerStateManager.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.records import BatchHeader

REMEMBERED_BATCHES = 5
SEQUENCE_MODULUS = 2**31
NO_SEQUENCE = -1
NO_OFFSET = -1

ProducerEntry = tuple[int, int, int, int, int, int, int, int]
"""producer_id, producer_epoch, last_sequence, last_offset, offset_delta, timestamp_ms,
coordinator_epoch, current_txn_first_offset: one row of a snapshot."""


class Duplicate(NamedTuple):
    """The batch is in the log already: acknowledge it again with its old offsets."""

    base_offset: int
    last_offset: int
    timestamp_ms: int


def next_sequence(sequence: int, count: int = 1) -> int:
    """The sequence number `count` after `sequence`; 2147483647 is followed by 0."""
    return (sequence + count) % SEQUENCE_MODULUS


class _Batch(NamedTuple):
    first_sequence: int
    last_sequence: int
    last_offset: int
    offset_delta: int
    timestamp_ms: int


class _Producer:
    __slots__ = (
        "batches",
        "coordinator_epoch",
        "current_txn_first_offset",
        "epoch",
        "last_seen_ms",
        "was_active",
    )

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.batches: list[_Batch] = []
        """At most five of this epoch, oldest first."""
        self.coordinator_epoch = -1
        self.current_txn_first_offset = NO_OFFSET
        self.last_seen_ms = 0
        self.was_active = True
        """Appended since the last `expire`, which then restarts its idle time."""


class ProducerStates:
    """The producers of one partition, least recently active first."""

    __slots__ = ("_producers", "max_producer_ids")

    def __init__(self, max_producer_ids: int = 10_000) -> None:
        assert max_producer_ids > 0, max_producer_ids
        self.max_producer_ids = max_producer_ids
        """Beyond so many, the producer that was idle longest is forgotten."""
        self._producers: dict[int, _Producer] = {}

    def __len__(self) -> int:
        return len(self._producers)

    def __contains__(self, producer_id: int) -> bool:
        return producer_id in self._producers

    # ---- decide --------------------------------------------------------------------------------

    def check(self, header: BatchHeader) -> Duplicate | KafkaErrorCode | None:
        """Whether a client's batch may be appended: None for yes; changes nothing.

        Kafka's order: an exact match of a remembered batch is a duplicate; an older epoch is
        fenced (47); a new epoch starts at 0 and the same one goes on without a gap (45); of an
        unknown producer any sequence is accepted, since its state may have expired.
        """
        producer = self._producers.get(header.producer_id)
        if producer is None or header.producer_id < 0:
            return None
        sequence = header.base_sequence
        if header.producer_epoch != producer.epoch:
            if header.producer_epoch < producer.epoch:
                return KafkaErrorCode.INVALID_PRODUCER_EPOCH
            return None if sequence == 0 else KafkaErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
        batches = producer.batches
        expected = next_sequence(batches[-1].last_sequence) if batches else 0
        if sequence == expected:
            return None
        last_sequence = next_sequence(sequence, header.last_offset_delta)
        for batch in batches:
            if batch.first_sequence == sequence and batch.last_sequence == last_sequence:
                return Duplicate(
                    batch.last_offset - batch.offset_delta, batch.last_offset, batch.timestamp_ms
                )
        return KafkaErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER

    # ---- replay --------------------------------------------------------------------------------

    def replay(self, header: BatchHeader) -> None:
        """Record a batch that is in the log. A transaction marker ends the open transaction."""
        producer_id = header.producer_id
        if producer_id < 0:
            return
        producers = self._producers
        producer = producers.pop(producer_id, None)
        if producer is None or producer.epoch != header.producer_epoch:
            opened = producer.current_txn_first_offset if producer is not None else NO_OFFSET
            producer = _Producer(header.producer_epoch)
            producer.current_txn_first_offset = opened
        producers[producer_id] = producer
        producer.was_active = True
        if header.is_control:
            producer.current_txn_first_offset = NO_OFFSET
        elif header.base_sequence != NO_SEQUENCE:
            last_offset = header.last_offset
            delta = header.last_offset_delta
            producer.batches.append(
                _Batch(
                    header.base_sequence,
                    next_sequence(header.base_sequence, delta),
                    last_offset,
                    delta,
                    header.max_timestamp,
                )
            )
            if len(producer.batches) > REMEMBERED_BATCHES:
                del producer.batches[0]
            if header.is_transactional and producer.current_txn_first_offset == NO_OFFSET:
                producer.current_txn_first_offset = header.base_offset
        if len(producers) > self.max_producer_ids:
            self._forget_idlest()

    def expire(self, now_ms: int, producer_id_expiration_ms: int) -> int:
        """Forget the producers that were idle for so long; returns how many.

        Call it every few minutes: idle time counts from the first call after the last append, so
        a producer is forgotten up to one interval late, never early. Open transactions stay.
        """
        expired = []
        for producer_id, producer in self._producers.items():
            if producer.was_active:
                producer.was_active = False
                producer.last_seen_ms = now_ms
            elif (
                now_ms - producer.last_seen_ms >= producer_id_expiration_ms
                and producer.current_txn_first_offset == NO_OFFSET
            ):
                expired.append(producer_id)
        for producer_id in expired:
            del self._producers[producer_id]
        return len(expired)

    # ---- snapshot ------------------------------------------------------------------------------

    def snapshot(self) -> list[ProducerEntry]:
        """One row per remembered batch, the batches of a producer oldest first."""
        rows: list[ProducerEntry] = []
        for producer_id, producer in self._producers.items():
            fixed = (producer.coordinator_epoch, producer.current_txn_first_offset)
            rows.extend(
                (
                    producer_id,
                    producer.epoch,
                    batch.last_sequence,
                    batch.last_offset,
                    batch.offset_delta,
                    batch.timestamp_ms,
                    *fixed,
                )
                for batch in producer.batches
            )
            if not producer.batches:
                rows.append((producer_id, producer.epoch, NO_SEQUENCE, NO_OFFSET, 0, -1, *fixed))
        return rows

    def load(self, entries: Sequence[ProducerEntry]) -> None:
        """Replace everything by the rows of a snapshot; Kafka's have one row per producer."""
        self._producers.clear()
        for producer_id, epoch, last_sequence, last_offset, delta, timestamp_ms, *rest in entries:
            producer = self._producers.get(producer_id)
            if producer is None or producer.epoch != epoch:
                producer = self._producers[producer_id] = _Producer(epoch)
            producer.coordinator_epoch, producer.current_txn_first_offset = rest
            if last_sequence != NO_SEQUENCE:
                first_sequence = (last_sequence - delta) % SEQUENCE_MODULUS
                producer.batches.append(
                    _Batch(first_sequence, last_sequence, last_offset, delta, timestamp_ms)
                )
                del producer.batches[:-REMEMBERED_BATCHES]

    def _forget_idlest(self) -> None:
        for producer_id, producer in self._producers.items():
            if producer.current_txn_first_offset == NO_OFFSET:
                del self._producers[producer_id]
                return
        del self._producers[next(iter(self._producers))]
