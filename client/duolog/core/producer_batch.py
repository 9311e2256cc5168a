"""One batch of records for one partition, from its first record to its last answer.

A batch is open (records are appended), then closed (it has its bytes), then sent any number of
times. Its bytes are made once for a given numbering and are immutable `bytes`, never pooled or
reused: a request still on its way can only ever carry the records it was built from
(CVE-2026-35554).
"""

from __future__ import annotations

from typing import Any, Final

from duolog_protocol.errors import Error

NO_SEQUENCE: Final = -1

ESTIMATED_RECORD_OVERHEAD_BYTES: Final = 12
"""Lengths and deltas of a record of some hundred bytes; batch_size is a target, not a bound."""
MAX_RECORD_OVERHEAD_BYTES: Final = 21
BATCH_HEADER_BYTES: Final = 61

Header = tuple[str, bytes | None]
PendingRecord = tuple[int, bytes | None, bytes | None, tuple[Header, ...]]
"""(timestamp_ms, key, value, headers)."""


class FlushTicket:
    """Counts the batches that a flush waits for; `on_done` is called when none is left."""

    __slots__ = ("on_done", "remaining")

    def __init__(self, on_done: Any) -> None:
        self.remaining = 0
        self.on_done = on_done

    def batch_done(self) -> None:
        """One batch has its outcome."""
        self.remaining -= 1
        assert self.remaining >= 0, self.remaining
        if self.remaining == 0:
            self.on_done()


class ProducerBatch:
    """Records of one partition that are sent, acknowledged and failed together."""

    __slots__ = (
        "after_clean_hole",
        "attempts",
        "base_sequence",
        "deadline_ms",
        "done",
        "due",
        "encoded",
        "handles",
        "in_flight",
        "last_error",
        "partition",
        "producer_epoch",
        "producer_id",
        "records",
        "reserved_bytes",
        "retry_at_ms",
        "sent_as_head",
        "size_bytes",
        "tickets",
        "topic",
        "unanswered_count",
    )

    def __init__(self, topic: str, partition: int, deadline_ms: int, reserved_bytes: int) -> None:
        self.topic = topic
        self.partition = partition
        self.deadline_ms = deadline_ms
        """When delivery has failed, wherever the batch is."""
        self.reserved_bytes = reserved_bytes
        """Its share of buffer_memory, returned when it is done."""
        self.records: list[PendingRecord] = []
        self.handles: list[Any] = []
        """What the shell completes, one for each record."""
        self.size_bytes = BATCH_HEADER_BYTES
        """Estimated size uncompressed."""
        self.encoded: bytes | None = None
        self.producer_id = -1
        self.producer_epoch = -1
        self.base_sequence = NO_SEQUENCE
        self.attempts = 0
        self.unanswered_count = 0
        """Attempts that may have stored the records: no answer, or one that does not say."""
        self.in_flight = False
        self.sent_as_head = False
        """At its last sending every numbered batch before it had its outcome."""
        self.after_clean_hole = False
        """A batch before it is known never to be stored, so neither can this one be with its
        present number."""
        self.retry_at_ms = 0
        self.last_error: Error | None = None
        self.done = False
        self.due = False
        """Its linger is over, or somebody waits for it."""
        self.tickets: list[FlushTicket] = []

    @property
    def record_count(self) -> int:
        """Number of records."""
        return len(self.records)

    def number(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        """Give the batch its place in the partition's sequence."""
        assert self.base_sequence == NO_SEQUENCE, self.base_sequence
        self.producer_id = producer_id
        self.producer_epoch = producer_epoch
        self.base_sequence = base_sequence
        self.encoded = None

    def unnumber(self) -> None:
        """Take its number away: it was never stored under it and never will be."""
        assert not self.in_flight, (self.topic, self.partition, self.base_sequence)
        self.producer_id = self.producer_epoch = self.base_sequence = NO_SEQUENCE
        self.encoded = None
        self.after_clean_hole = False

    def split(self) -> tuple[ProducerBatch, ProducerBatch]:
        """Two halves that continue its numbering, for a batch the broker finds too large."""
        middle = len(self.records) // 2
        assert middle > 0, "a batch of one record cannot be split"
        share = self.reserved_bytes // 2
        first = self._part(0, middle, self.reserved_bytes - share)
        second = self._part(middle, len(self.records), share)
        for ticket in self.tickets:
            ticket.remaining += 1  # two batches to wait for where there was one
        self.done = True
        self.records, self.handles, self.encoded = [], [], None
        return first, second

    def _part(self, start: int, end: int, reserved_bytes: int) -> ProducerBatch:
        part = ProducerBatch(self.topic, self.partition, self.deadline_ms, reserved_bytes)
        part.records = self.records[start:end]
        part.handles = self.handles[start:end]
        part.size_bytes = BATCH_HEADER_BYTES + sum(map(estimated_size, part.records))
        if self.base_sequence != NO_SEQUENCE:
            base_sequence = (self.base_sequence + start) & 0x7FFF_FFFF
            part.number(self.producer_id, self.producer_epoch, base_sequence)
        part.attempts = self.attempts
        part.unanswered_count = self.unanswered_count
        part.after_clean_hole = self.after_clean_hole
        part.last_error = self.last_error
        part.tickets = list(self.tickets)
        return part


def estimated_size(record: PendingRecord) -> int:
    """About how many bytes a record takes in a batch."""
    _, key, value, headers = record
    size = ESTIMATED_RECORD_OVERHEAD_BYTES
    if key is not None:
        size += len(key)
    if value is not None:
        size += len(value)
    return size + headers_size(headers) if headers else size


def headers_size(headers: tuple[Header, ...]) -> int:
    """Upper bound of the bytes that headers take."""
    return sum(
        10 + len(name.encode()) + (0 if value is None else len(value)) for name, value in headers
    )
