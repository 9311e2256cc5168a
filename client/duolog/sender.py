"""The producer's one task: batches to brokers, answers to the accumulator, outcomes to futures.

Owns the produce requests in flight, their deadlines, and the producer id. What may be sent, and
what an answer means for the order of records, the accumulator decides. All work is done in turns
that never await. The task takes them when it is woken; who brings an answer, or a record that
somebody waits for while nothing is in flight, takes one on the spot: a record alone is then not
held up by the event loop's turns, which cost as much as all the rest of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from duolog_protocol.apis import error_message
from duolog_protocol.broker_messages import (
    INIT_PRODUCER_ID,
    PRODUCE,
    InitProducerIdRequest,
    InitProducerIdResponse,
    ProducePartition,
    ProducePartitionResponse,
    ProduceRequest,
    ProduceResponse,
)
from duolog_protocol.connection import Response
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import (
    ConnectionClosedError,
    ConnectionLostError,
    Error,
    RequestTimeoutError,
    broker_error,
)
from duolog_protocol.types import TopicPartition
from duolog_runtime.connection import ClientLink

from .cluster_client import ClusterClient
from .core.accumulator import NEVER_MS, Accumulator, NodeRequest
from .core.partition_queue import Failed
from .core.producer_batch import ProducerBatch
from .values import RecordMetadata

UNKNOWN_OFFSET: Final = -1
_NO_TRANSACTION_TIMEOUT_MS: Final = 60_000
_new_metadata = tuple.__new__


class SenderSettings(NamedTuple):
    """The producer's settings that matter here, under Kafka's names."""

    acks: int
    request_timeout_ms: int
    max_in_flight: int


class _InFlight:
    """A produce request without its answer."""

    __slots__ = ("_sender", "batches", "deadline_ms", "link", "response")

    def __init__(
        self, sender: Sender, link: ClientLink, batches: list[ProducerBatch], deadline_ms: int
    ) -> None:
        self._sender = sender
        self.link = link
        self.batches = batches
        self.deadline_ms = deadline_ms
        self.response: Response | None = None

    def answered(self, response: Response | None) -> None:
        """Called by the link: None when the connection ended first."""
        self.response = response
        self._sender.put_answer(self)


class Sender:
    """Moves batches until it is stopped."""

    def __init__(
        self,
        cluster: ClusterClient,
        accumulator: Accumulator,
        settings: SenderSettings,
        *,
        encode: Callable[[ProducerBatch], bytes],
        on_released: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._accumulator = accumulator
        self._settings = settings
        self._encode = encode
        self._on_released = on_released
        """Called when batches got their outcome, so that there may be room again."""
        self._clock = cluster.clock
        self._wake = asyncio.Event()
        self.wake = self._wake.set
        """There may be something to do."""
        self._inbox: deque[_InFlight] = deque()
        self._in_flight: dict[ClientLink, deque[_InFlight]] = {}
        self._draining: set[ClientLink] = set()
        self._connect_at_ms = NEVER_MS
        self._asking_for_id = False
        self._metadata_version = -1
        self._in_turn = False
        self._outside_task = False
        """The turn is taken by whoever brought the news: what it sends leaves at once."""
        self._crash: Exception | None = None
        """What a turn outside the task has raised: the task ends with it."""

    async def run(self) -> None:
        """Serve until cancelled; then everything without an outcome fails."""
        try:
            while True:
                self._wake.clear()
                if self._crash is not None:
                    raise self._crash
                now_ms = self._clock.now_ms()
                self._turn(now_ms)
                await self._sleep(now_ms)
        finally:
            self._finish_failed(
                self._accumulator.fail_all(ConnectionClosedError("the producer was stopped"))
            )

    def hurry(self) -> None:
        """Somebody waits for a record that can be sent now: if nothing is in flight, it leaves.

        Without acknowledgements it has its outcome when it is sent, and who sends one after the
        other would never suspend: then the task sends it.
        """
        if self._in_flight or self._in_turn or self._settings.acks == 0:
            self._wake.set()
        else:
            self._turn_here()

    def put_answer(self, request: _InFlight) -> None:
        """An answer, or the end of a connection."""
        self._inbox.append(request)
        if self._in_turn or request.response is None:
            self._wake.set()
            return
        self._turn_here(answers_only=True)
        if self._accumulator.may_have_work:
            self._wake.set()

    def _turn(self, now_ms: int, *, answers_only: bool = False) -> None:
        """Do all that can be done now."""
        self._in_turn = True
        try:
            self._take_answers(now_ms)
            if not answers_only:
                self._time_out_requests(now_ms)
                self._finish_failed(self._accumulator.expire(now_ms))
                self._take_metadata()
                self._send_all(now_ms)
        finally:
            self._in_turn = False

    def _turn_here(self, *, answers_only: bool = False) -> None:
        """A turn outside the task, which owns its failures."""
        self._outside_task = True
        try:
            self._turn(self._clock.now_ms(), answers_only=answers_only)
        except Exception as error:
            self._crash = error
            self._wake.set()
        finally:
            self._outside_task = False

    async def _sleep(self, now_ms: int) -> None:
        deadline_ms = min(self._accumulator.deadline_ms(now_ms), self._connect_at_ms)
        for requests in self._in_flight.values():
            deadline_ms = min(deadline_ms, requests[0].deadline_ms)
        # Never longer than a request may take: turns outside the task begin some meanwhile.
        longest_ms = min(60_000, self._settings.request_timeout_ms)
        delay_ms = min(max(0, deadline_ms - now_ms), longest_ms)
        timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    def _take_metadata(self) -> None:
        metadata = self._cluster.metadata
        if metadata.version == self._metadata_version:
            return
        self._metadata_version = metadata.version
        for name in list(self._accumulator.topics):
            info = metadata.topics.get(name)
            if info is not None and info.partitions:
                led = [each.partition for each in info.partitions.values() if each.leader_id >= 0]
                self._accumulator.set_partitions(name, len(info.partitions), led)

    # -- requests out ----------------------------------------------------------------------

    def _send_all(self, now_ms: int) -> None:
        accumulator = self._accumulator
        self._connect_at_ms = NEVER_MS
        while True:
            requests = accumulator.drain(now_ms, self._cluster.metadata.leader_of, self._link_of)
            for request in requests:
                self._send(request, now_ms)
            if accumulator.leaders_missing:
                self._cluster.request_refresh()
            if not requests:
                break
        if accumulator.producer_id_missing and not self._asking_for_id:
            self._asking_for_id = True
            self._cluster.tasks.spawn("producer id", self._ask_for_id())

    def _link_of(self, node_id: int) -> ClientLink | None:
        link = self._cluster.link_to(node_id)
        if link is None:
            address = self._cluster.address_of(node_id)
            if address is not None:
                retry_at_ms = self._cluster.connections.retry_at_ms(address)
                if retry_at_ms > self._clock.now_ms():
                    # Kafka: a broker that cannot be reached may have lost its partitions
                    self._cluster.request_refresh()
                    self._connect_at_ms = min(self._connect_at_ms, retry_at_ms)
            return None
        if link.writing_paused:
            if link not in self._draining:
                self._draining.add(link)
                self._cluster.tasks.spawn("drain", self._await_drain(link))
            return None
        in_flight = self._in_flight.get(link)
        if in_flight is not None and len(in_flight) >= self._settings.max_in_flight:
            return None
        return link

    async def _await_drain(self, link: ClientLink) -> None:
        try:
            await link.drain()
        except ConnectionLostError:
            return  # the requests in flight hear of it themselves
        finally:
            self._draining.discard(link)
            self._wake.set()

    def _send(self, request: NodeRequest, now_ms: int) -> None:
        link = cast(ClientLink, request.link)
        settings = self._settings
        partitions: list[ProducePartition] = []
        for batch in request.batches:
            if batch.encoded is None:
                batch.encoded = self._encode(batch)
            partitions.append(ProducePartition(batch.topic, batch.partition, batch.encoded))
        # The broker gives up first, so that its answer still finds us.
        message = ProduceRequest(
            None, settings.acks, settings.request_timeout_ms * 9 // 10, tuple(partitions)
        )
        deadline_ms = now_ms + settings.request_timeout_ms
        in_flight = _InFlight(self, link, request.batches, deadline_ms)
        try:
            on_answer = in_flight.answered if settings.acks else None
            link.send(PRODUCE, message, on_answer, at_once=self._outside_task)
        except Error as error:
            self._fail_request(request.batches, error, now_ms)
            return
        if settings.acks == 0:
            for batch in request.batches:
                self._stored(batch, UNKNOWN_OFFSET, -1, -1)
            self._on_released()
            return
        waiting = self._in_flight.get(link)
        if waiting is None:
            self._in_flight[link] = deque((in_flight,))
        else:
            waiting.append(in_flight)

    async def _ask_for_id(self) -> None:
        try:
            request = InitProducerIdRequest(None, _NO_TRANSACTION_TIMEOUT_MS, -1, -1)
            attempt = 0
            while True:
                try:
                    response: InitProducerIdResponse = await self._cluster.call_any(
                        INIT_PRODUCER_ID, request
                    )
                    self._accumulator.producer_id = response.producer_id
                    return
                except Error as error:
                    if not error.retriable:
                        self._finish_failed(self._accumulator.fail_all(error))
                        return
                    attempt += 1
                await asyncio.sleep(self._cluster.backoff.delay_ms(attempt) / 1000)
        finally:
            self._asking_for_id = False
            self._wake.set()

    # -- answers in ------------------------------------------------------------------------

    def _take_answers(self, now_ms: int) -> None:
        inbox = self._inbox
        released = bool(inbox)
        while inbox:
            request = inbox.popleft()
            waiting = self._in_flight[request.link]
            waiting.remove(request)  # nearly always the first
            if not waiting:
                del self._in_flight[request.link]
            self._take_answer(request, now_ms)
        if released:
            self._on_released()

    def _take_answer(self, request: _InFlight, now_ms: int) -> None:
        response = request.response
        batches = request.batches
        if response is None:
            reason = request.link.close_reason
            error: Error
            if isinstance(reason, RequestTimeoutError):
                error = reason
            else:
                error = ConnectionLostError(
                    f"the connection to {request.link.peer} ended before the answer: {reason}"
                )
            self._cluster.request_refresh()
            self._fail_request(batches, error, now_ms)
        elif response.header.error_code != 0:
            header = response.header
            self._fail_request(
                batches, broker_error(header.error_code, error_message(header)), now_ms
            )
        else:
            message: ProduceResponse = response.message
            if [(each.topic, each.partition) for each in message.partitions] != [
                (each.topic, each.partition) for each in batches
            ]:
                lost = ConnectionLostError("the answer names other partitions than the request")
                request.link.abort(lost)
                self._fail_request(batches, lost, now_ms)
                return
            for batch, result in zip(batches, message.partitions, strict=True):
                self._take_result(batch, result, now_ms)

    def _take_result(
        self, batch: ProducerBatch, result: ProducePartitionResponse, now_ms: int
    ) -> None:
        code = result.error_code
        if code == KafkaErrorCode.NONE:
            self._stored(
                batch, result.base_offset, result.log_append_time_ms, result.log_start_offset
            )
        elif code == KafkaErrorCode.DUPLICATE_SEQUENCE_NUMBER:
            self._stored(batch, UNKNOWN_OFFSET, -1, result.log_start_offset)
        else:
            error = broker_error(code, result.error_message or "")
            if error.refresh_metadata and not self._cluster.metadata.learn_leader(
                batch.topic, batch.partition, result.leader_id, result.leader_epoch
            ):
                self._cluster.request_refresh()
            self._finish_failed(self._accumulator.on_failure(batch, error, now_ms))

    def _fail_request(self, batches: list[ProducerBatch], error: Error, now_ms: int) -> None:
        for batch in batches:
            self._finish_failed(self._accumulator.on_failure(batch, error, now_ms))

    def _time_out_requests(self, now_ms: int) -> None:
        for link, requests in list(self._in_flight.items()):
            if requests[0].deadline_ms <= now_ms and not link.closed:
                timeout_ms = self._settings.request_timeout_ms
                link.abort(
                    RequestTimeoutError(f"no answer from {link.peer} within {timeout_ms} ms")
                )

    # -- outcomes --------------------------------------------------------------------------

    def _stored(
        self, batch: ProducerBatch, base_offset: int, append_time_ms: int, log_start_offset: int
    ) -> None:
        waited, failed = self._accumulator.on_success(batch)
        if waited:
            complete(batch, base_offset, append_time_ms, log_start_offset)
        self._finish_failed(failed)

    def _finish_failed(self, failed: Failed) -> None:
        for batch, error in failed:
            for future in batch.handles:
                if not future.done():
                    future.set_exception(error)
            for ticket in batch.tickets:
                ticket.batch_done()
        if failed:
            self._on_released()


def complete(
    batch: ProducerBatch, base_offset: int, append_time_ms: int, log_start_offset: int
) -> None:
    """Set the result of every record's future, in one pass."""
    topic, partition = batch.topic, batch.partition
    topic_partition = TopicPartition(topic, partition)
    by_broker = append_time_ms >= 0
    known = base_offset >= 0
    offset = base_offset
    values: tuple[Any, ...]
    for future, record in zip(batch.handles, batch.records, strict=True):
        if not future.done():  # a caller may have cancelled it: the record is stored all the same
            values = (
                topic,
                partition,
                topic_partition,
                offset,
                append_time_ms if by_broker else record[0],
                1 if by_broker else 0,
                log_start_offset,
            )
            future.set_result(_new_metadata(RecordMetadata, values))
        if known:
            offset += 1
    for ticket in batch.tickets:
        ticket.batch_done()
