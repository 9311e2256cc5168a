"""Produce requests that wait for acknowledgements and fetch requests that wait for data.

Owns how such a request is answered; when, is the purgatory's. Both are answered exactly once.
Source: Kafka `DelayedProduce`, `DelayedFetch` (its cases A-H, in the order checked here).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from duolog_protocol.broker_messages import (
    FetchPartition,
    FetchPartitionResponse,
    FetchRequest,
    FetchResponse,
    ProducePartition,
    ProducePartitionResponse,
    ProduceResponse,
)
from duolog_protocol.codec import Piece
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import StorageError
from duolog_runtime.disk import DiskExecutor

from .replica_manager import Appended, Read, ReplicaManager

Answer = Callable[[Any], None]
"""Sends the response of one request; the connection may have gone."""
MAX_COLD_READS: Final = 1_000
"""Fetches that may wait for the disk thread: far below what the thread takes, so that consumers of
old records on a stalled disk never keep out syncs and checkpoints."""


class ColdReads:
    """Reads of what is not in memory, of all connections; a bounded number waits for the disk."""

    __slots__ = ("_disk", "_max_pending", "pending")

    def __init__(self, disk: DiskExecutor, max_pending: int = MAX_COLD_READS) -> None:
        self._disk = disk
        self._max_pending = max_pending
        self.pending = 0

    def submit(
        self,
        work: Callable[[], list[Sequence[Piece]]],
        done: Callable[[list[Sequence[Piece]] | None], None],
    ) -> None:
        """Read in the disk thread. `done` gets None where that failed, or too many wait."""
        if self.pending >= self._max_pending:
            done(None)
            return

        def read(pieces: list[Sequence[Piece]] | None, _error: BaseException | None) -> None:
            self.pending -= 1
            done(pieces)

        self.pending += 1
        try:
            self._disk.submit(work, read)
        except StorageError:
            read(None, None)


class DelayedProduce:
    """A produce request whose batches are in the logs but not yet acknowledged."""

    __slots__ = ("_answer", "_appended", "_partitions", "_replicas")

    def __init__(
        self,
        partitions: Sequence[ProducePartition],
        appended: Sequence[Appended],
        replicas: ReplicaManager,
        answer: Answer,
    ) -> None:
        self._partitions = partitions
        self._appended = appended
        self._replicas = replicas
        self._answer = answer

    def keys(self) -> list[tuple[str, int]]:
        """Partitions whose change may complete it."""
        return [(each.topic, each.partition) for each in self._partitions]

    def try_complete(self) -> bool:
        """Answer once every batch is acknowledged or can never be."""
        codes = self._codes()
        if None in codes:
            return False
        self._respond(codes)
        return True

    def on_expired(self) -> None:
        """Answer REQUEST_TIMED_OUT for what is still open: it is stored, but not acknowledged."""
        self._respond(
            [KafkaErrorCode.REQUEST_TIMED_OUT if code is None else code for code in self._codes()]
        )

    def _codes(self) -> list[int | None]:
        acknowledgement = self._replicas.acknowledgement
        return [
            appended.error_code or acknowledgement((partition.topic, partition.partition), appended)
            for partition, appended in zip(self._partitions, self._appended, strict=True)
        ]

    def _respond(self, codes: Sequence[int | None]) -> None:
        self._answer(produce_response(self._partitions, self._appended, codes))


def produce_response(
    partitions: Sequence[ProducePartition],
    appended: Sequence[Appended],
    codes: Sequence[int | None],
) -> ProduceResponse:
    """The response, with the error code of each partition as it is now."""
    return ProduceResponse(
        tuple(
            [
                ProducePartitionResponse(
                    partition.topic,
                    partition.partition,
                    int(code or 0),
                    each.message,
                    -1 if code else each.base_offset,
                    each.log_append_time_ms,
                    each.log_start_offset,
                    *(each.leader if code else (-1, -1)),
                )
                for partition, each, code in zip(partitions, appended, codes, strict=True)
            ]
        )
    )


class DelayedFetch:
    """A fetch request that waits for `min_bytes`."""

    __slots__ = ("_answer", "_cold_reads", "_replicas", "_request")

    def __init__(
        self,
        request: FetchRequest,
        replicas: ReplicaManager,
        cold_reads: ColdReads,
        answer: Answer,
    ) -> None:
        self._request = request
        self._replicas = replicas
        self._cold_reads = cold_reads
        self._answer = answer

    def keys(self) -> list[tuple[str, int]]:
        """Partitions whose change may complete it."""
        return [(each.topic, each.partition) for each in self._request.partitions]

    def try_complete(self) -> bool:
        """Answer when there is enough, or an error to tell, or nothing to wait for."""
        reads, size_bytes, failed = self._read()
        request = self._request
        if size_bytes < request.min_bytes and not failed and request.partitions:
            return False
        self._respond(reads)
        return True

    def on_expired(self) -> None:
        """Answer with what there is."""
        self._respond(self._read()[0])

    def _read(self) -> tuple[list[Read], int, bool]:
        left = self._request.max_bytes
        size_bytes, failed = 0, False
        reads: list[Read] = []
        for partition in self._request.partitions:
            limit = min(left, partition.partition_max_bytes)
            found = self._replicas.read(partition, max(limit, 0), min_one_batch=size_bytes == 0)
            if found.slice is not None:
                size_bytes += found.slice.size_bytes
                left -= found.slice.size_bytes
            failed = failed or found.error_code != 0
            reads.append(found)
        return reads, size_bytes, failed

    def _respond(self, reads: list[Read]) -> None:
        """Answer from memory where that is possible, else by way of the disk thread."""
        pieces: list[Sequence[Piece]] = []
        for read in reads:
            cached = () if read.slice is None else read.slice.read_cached()
            if cached is None:
                self._respond_from_disk(reads)
                return
            pieces.append(cached)
        self._answer(fetch_response(self._request.partitions, reads, pieces))

    def _respond_from_disk(self, reads: list[Read]) -> None:
        def read_all() -> list[Sequence[Piece]]:
            return [() if read.slice is None else read.slice.read() for read in reads]

        def done(pieces: list[Sequence[Piece]] | None) -> None:
            if pieces is None:
                code = KafkaErrorCode.KAFKA_STORAGE_ERROR
                failed = [read._replace(error_code=int(code), slice=None) for read in reads]
                self._answer(fetch_response(self._request.partitions, failed, [()] * len(reads)))
            else:
                self._answer(fetch_response(self._request.partitions, reads, pieces))

        self._cold_reads.submit(read_all, done)


def fetch_response(
    partitions: Sequence[FetchPartition],
    reads: Sequence[Read],
    pieces: Sequence[Sequence[Piece]],
) -> FetchResponse:
    """The response; the record batches are handed on as they were read."""
    return FetchResponse(
        0,
        tuple(
            [
                FetchPartitionResponse(
                    partition.topic,
                    partition.partition,
                    read.error_code,
                    read.high_watermark,
                    read.high_watermark,
                    read.log_start_offset,
                    (),
                    -1,
                    None,
                    *(read.leader if read.error_code else (-1, -1)),
                    found[0] if len(found) == 1 else b"".join(found),
                )
                for partition, read, found in zip(partitions, reads, pieces, strict=True)
            ]
        ),
    )
