"""Positions and fetched data of the assigned partitions, without any I/O.

Owns what a consumer must never get wrong: the position is the next record to hand out; data
that was asked for before a seek is dropped; a damaged record stops the partition in front of it.
Batches are decoded when their records are asked for, whole, never one by one in the fetcher.
Source: Kafka's SubscriptionState, CompletedFetch; KIP-74, KIP-98 (aborted transactions).

A partition is in one of these states:

    needs an offset (position None, `reset_timestamp`)  --looked up / seek-->  has a position
    has a position  --OFFSET_OUT_OF_RANGE, seek_to_...-->  needs an offset
    has a position  --OFFSET_OUT_OF_RANGE behind what is buffered-->  hands that out first
    any  --not retriable error-->  failed (`error`), until the next seek
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from duolog_protocol.broker_messages import (
    EARLIEST_TIMESTAMP,
    LATEST_TIMESTAMP,
    AbortedTransaction,
    FetchPartitionResponse,
)
from duolog_protocol.codec import Piece
from duolog_protocol.errors import Error, OffsetOutOfRangeError
from duolog_protocol.record_decoding import control_type, decode_records
from duolog_protocol.records import CorruptBatchError, iter_headers, read_header
from duolog_protocol.types import TopicPartition

from .delivery_errors import NoOffsetForPartitionError, RecordDecodeError

RESET_TIMESTAMPS: Final[dict[str, int | None]] = {
    "latest": LATEST_TIMESTAMP,
    "earliest": EARLIEST_TIMESTAMP,
    "none": None,
}
_ABORT_MARKER: Final = 0


class _Fetched:
    """The batches of one answer that are not yet decoded."""

    __slots__ = ("aborted", "aborting", "data", "position", "size_bytes")

    def __init__(self, data: Piece, size_bytes: int, aborted: Iterable[AbortedTransaction]) -> None:
        self.data = data
        self.size_bytes = size_bytes
        """Bytes of whole batches; what is cut behind them is not used."""
        self.position = 0
        self.aborted = deque(sorted(aborted, key=lambda each: each.first_offset))
        self.aborting: set[int] = set()
        """Producers inside an aborted transaction at this place."""


class PartitionPosition:
    """One assigned partition."""

    __slots__ = (
        "_after_ready",
        "_fetched",
        "_ready",
        "_ready_at",
        "buffered_bytes",
        "error",
        "failures",
        "fetch_offset",
        "high_watermark",
        "is_behind_end",
        "is_paused",
        "log_start_offset",
        "looking_up",
        "partition",
        "position",
        "reset_timestamp",
        "retry_at_ms",
        "topic",
        "version",
    )

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.version = 0
        """Grows with every seek: answers to older questions are dropped."""
        self.position: int | None = None
        """Offset of the next record to hand out."""
        self.fetch_offset = 0
        """Offset of the next record to fetch: behind everything buffered."""
        self.reset_timestamp: int | None = None
        """What to look up while there is no position: -1 latest, -2 earliest."""
        self.looking_up = False
        self.error: Error | None = None
        """Why nothing more comes; raised to the caller until a seek."""
        self.is_paused = False
        self.is_behind_end = False
        """The offset to fetch does not exist: first everything buffered is handed out."""
        self.high_watermark: int | None = None
        self.log_start_offset: int | None = None
        self.retry_at_ms = 0
        self.failures = 0
        """Retriable errors in a row."""
        self.buffered_bytes = 0
        self._fetched: deque[_Fetched] = deque()
        self._ready: list[Any] = []
        """Records of one decoded batch."""
        self._ready_at = 0
        self._after_ready = 0

    @property
    def topic_partition(self) -> TopicPartition:
        """The key of this partition."""
        return TopicPartition(self.topic, self.partition)

    @property
    def has_records(self) -> bool:
        """There is something to decode or to hand out."""
        return self._ready_at < len(self._ready) or bool(self._fetched)

    def seek(self, offset: int) -> None:
        """Go on from an offset; what is buffered or on its way is dropped."""
        self._restart()
        self.position = self.fetch_offset = offset

    def reset(self, timestamp: int | None) -> None:
        """Go on from an offset still to be looked up; None: there is no rule to find one."""
        self._restart()
        self.position = None
        self.reset_timestamp = timestamp
        if timestamp is None:
            self.error = NoOffsetForPartitionError(
                f"{self.topic}-{self.partition} has no position and auto_offset_reset is 'none'"
            )

    def _restart(self) -> None:
        self.version += 1
        self.error = None
        self.is_behind_end = False
        self.retry_at_ms = self.failures = 0
        self._drop()

    def _drop(self) -> None:
        self._fetched.clear()
        self._ready, self._ready_at = [], 0
        self.buffered_bytes = 0

    def take_answer(
        self, offset: int, result: FetchPartitionResponse, reset_timestamp: int | None
    ) -> None:
        """An answer without retriable error to a fetch from `offset` of the present version."""
        assert offset == self.fetch_offset, (offset, self.fetch_offset)
        self.failures = 0
        if result.high_watermark >= 0:
            self.high_watermark = result.high_watermark
        if result.log_start_offset >= 0:
            self.log_start_offset = result.log_start_offset
        if not len(result.records):
            return
        try:
            size_bytes, next_offset = _whole_batches(result.records)
        except CorruptBatchError as error:
            self._damaged(offset, error)
            return
        if next_offset <= offset:
            self._damaged(offset, CorruptBatchError("no whole batch reaches that offset"))
            return
        fetched = _Fetched(result.records, size_bytes, result.aborted_transactions)
        self._fetched.append(fetched)
        self.buffered_bytes += size_bytes
        self.fetch_offset = next_offset

    def out_of_range(self, reset_timestamp: int | None) -> None:
        """The offset to fetch does not exist (any more): follow the rule for that.

        Not before everything buffered was handed out: those records lie before that offset.
        """
        if self.has_records:
            self.is_behind_end = True
        elif reset_timestamp is not None:
            self.reset(reset_timestamp)
        else:
            self.error = OffsetOutOfRangeError(
                f"{self.topic}-{self.partition} has no offset {self.fetch_offset} "
                "and auto_offset_reset is 'none'"
            )

    @property
    def may_fetch(self) -> bool:
        """Whether a fetch of what follows makes sense at all."""
        if self.is_behind_end:
            self.is_behind_end = self.has_records
        return not (
            self.is_paused or self.position is None or self.error is not None or self.is_behind_end
        )

    def take(self, limit: int, decoder: Decoder) -> list[Any]:
        """Up to `limit` of the next records; the position moves behind them.

        Raises RecordDecodeError, or what a deserializer raised, in front of the record that
        cannot be read, when there is none before it.
        """
        out: list[Any] = []
        while limit > 0:
            ready, at = self._ready, self._ready_at
            if at == len(ready):
                try:
                    if not self._decode_next(decoder):
                        break
                except CorruptBatchError as error:
                    if not out:
                        assert self.position is not None
                        self._damaged(self.position, error)
                        assert self.error is not None
                        error_now, self.error = self.error, None  # fetched anew next time
                        raise error_now from error
                    break
                continue
            chunk = ready[at : at + limit] if at or limit < len(ready) else ready
            if decoder.finish is not None:
                try:
                    chunk = [decoder.finish(record) for record in chunk]
                except Exception:
                    if len(chunk) > 1 or out:
                        # The ones before the bad record first, one by one; then its error.
                        if out:
                            return out
                        limit = 1
                        continue
                    raise
            self._ready_at = at + len(chunk)
            limit -= len(chunk)
            self.position = (
                self._after_ready if self._ready_at == len(ready) else chunk[-1].offset + 1
            )
            out = out + chunk if out else chunk
        return out

    def _decode_next(self, decoder: Decoder) -> bool:
        """Make the next batch's records ready; False when nothing is buffered."""
        self._ready, self._ready_at = [], 0
        while self._fetched:
            fetched = self._fetched[0]
            if fetched.position == fetched.size_bytes:
                self._fetched.popleft()
                self.buffered_bytes -= fetched.size_bytes
                continue
            header = read_header(fetched.data, fetched.position)
            assert self.position is not None, (self.topic, self.partition)
            if decoder.read_committed and self._is_aborted(fetched, header):
                records = []
            else:
                records = decode_records(
                    fetched.data,
                    fetched.position,
                    topic=self.topic,
                    partition=self.partition,
                    start_offset=self.position,
                    cls=decoder.cls,
                    check_crc=decoder.check_crc,
                )
            fetched.position += header.size_bytes
            after = max(self.position, header.next_offset)
            if records:
                self._ready, self._after_ready = records, after
                return True
            self.position = after  # a control batch, an aborted one, or compacted away
        return False

    def _is_aborted(self, fetched: _Fetched, header: Any) -> bool:
        while fetched.aborted and fetched.aborted[0].first_offset <= header.last_offset:
            fetched.aborting.add(fetched.aborted.popleft().producer_id)
        if not header.is_transactional:
            return False
        if header.is_control:
            if control_type(fetched.data, fetched.position) == _ABORT_MARKER:
                fetched.aborting.discard(header.producer_id)
            return False
        return header.producer_id in fetched.aborting

    def _damaged(self, offset: int, cause: Exception) -> None:
        self._drop()
        self.fetch_offset = self.position if self.position is not None else offset
        self.version += 1
        self.error = RecordDecodeError(
            f"{self.topic}-{self.partition} cannot be read at offset {offset}: {cause}"
        )
        self.error.__cause__ = cause


class Decoder(NamedTuple):
    """How batches become what the caller gets."""

    cls: type[Any]
    check_crc: bool
    read_committed: bool
    finish: Callable[[Any], Any] | None
    """Applies the deserializers; None without any."""


def _whole_batches(data: Piece) -> tuple[int, int]:
    """Bytes of the whole batches and the offset after the last one (-1 without any)."""
    end, next_offset = 0, -1
    for position, header in iter_headers(data):
        end = position + header.size_bytes
        next_offset = header.next_offset
    return end, next_offset
