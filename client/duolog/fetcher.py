"""The consumer's one task: fetches in the background, looks offsets up, follows leaders.

Owns the fetch requests in flight, one for each broker, on links of their own since they may be
parked there for fetch_max_wait_ms. A request that is parked while something else could be
fetched from the same broker is given up after a short grace. What the data means is
`fetch_positions`'. Callbacks of links only put answers into the inbox.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from duolog_protocol.apis import error_message
from duolog_protocol.broker_messages import (
    FETCH,
    MAX_PARTITIONS_PER_REQUEST,
    FetchPartition,
    FetchPartitionResponse,
    FetchRequest,
    FetchResponse,
)
from duolog_protocol.connection import Response
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import (
    ConnectionLostError,
    Error,
    RequestTimeoutError,
    broker_error,
)
from duolog_protocol.types import TopicPartition
from duolog_runtime.connection import ClientLink

from .cluster_client import ClusterClient
from .connection import Purpose
from .core.fetch_positions import PartitionPosition
from .offset_lookup import CONSUMER_REPLICA_ID, ask_offsets

STALE_GRACE_MS: Final = 20
"""How long a parked fetch may delay another one to the same broker."""
_NEVER_MS: Final = 1 << 62


class FetchSettings(NamedTuple):
    """The consumer's settings that matter here, under Kafka's names."""

    fetch_min_bytes: int
    fetch_max_wait_ms: int
    fetch_max_bytes: int
    max_partition_fetch_bytes: int
    isolation_level: int
    request_timeout_ms: int
    reset_timestamp: int | None


class _InFlight:
    """A fetch request without its answer."""

    __slots__ = ("_fetcher", "asked", "deadline_ms", "is_stale", "link", "node_id", "response")

    def __init__(
        self,
        fetcher: Fetcher,
        node_id: int,
        link: ClientLink,
        asked: list[tuple[PartitionPosition, int, int]],
        deadline_ms: int,
    ) -> None:
        self._fetcher = fetcher
        self.node_id = node_id
        self.link = link
        self.asked = asked
        """(partition, its version, offset), in the request's order."""
        self.deadline_ms = deadline_ms
        self.is_stale = False
        """It is given up at its deadline for the sake of another request."""
        self.response: Response | None = None

    def answered(self, response: Response | None) -> None:
        """Called by the link: None when the connection ended first."""
        self.response = response
        self._fetcher.put_answer(self)


class Fetcher:
    """Keeps the assigned partitions supplied until it is stopped."""

    def __init__(
        self, cluster: ClusterClient, settings: FetchSettings, on_progress: Callable[[], None]
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._on_progress = on_progress
        """Called when there may be records, a position or an error that were not there."""
        self._clock = cluster.clock
        self.assigned: dict[TopicPartition, PartitionPosition] = {}
        self.waiter_count = 0
        """Callers that wait for records: a full buffer of other partitions must not hold them."""
        self._wake = asyncio.Event()
        self.wake = self._wake.set
        """There may be something to do."""
        self._inbox: deque[_InFlight] = deque()
        self._in_flight: dict[int, _InFlight] = {}
        self._connect_at_ms = _NEVER_MS

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            self._wake.clear()
            now_ms = self._clock.now_ms()
            self._take_answers(now_ms)
            self._time_out_requests(now_ms)
            self._look_up_offsets(now_ms)
            self._send_fetches(now_ms)
            await self._sleep(now_ms)

    def put_answer(self, request: _InFlight) -> None:
        """An answer, or the end of a connection, for the next turn of the task."""
        self._inbox.append(request)
        self._wake.set()

    async def _sleep(self, now_ms: int) -> None:
        deadlines = [self._connect_at_ms, now_ms + 60_000]
        deadlines += [each.deadline_ms for each in self._in_flight.values()]
        deadlines += [
            each.retry_at_ms for each in self.assigned.values() if each.retry_at_ms > now_ms
        ]
        delay_ms = max(0, min(deadlines) - now_ms)
        timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    # -- fetches ---------------------------------------------------------------------------

    def _send_fetches(self, now_ms: int) -> None:
        self._connect_at_ms = _NEVER_MS
        settings = self._settings
        by_node: dict[int, list[PartitionPosition]] = {}
        full_nodes: set[int] = set()
        buffered = sum(each.buffered_bytes for each in self.assigned.values())
        for each in self.assigned.values():
            if not each.may_fetch or now_ms < each.retry_at_ms:
                continue
            node_id = self._cluster.metadata.leader_of(each.topic, each.partition)
            if node_id < 0:
                self._cluster.topics.add(each.topic)
                self._cluster.request_refresh()
            elif (
                each.buffered_bytes >= settings.max_partition_fetch_bytes
                or buffered >= settings.fetch_max_bytes
            ):
                full_nodes.add(node_id)
            else:
                by_node.setdefault(node_id, []).append(each)
        for node_id, wanted in by_node.items():
            in_flight = self._in_flight.get(node_id)
            if in_flight is not None:
                self._check_stale(in_flight, wanted, now_ms)
            elif node_id not in full_nodes or self.waiter_count:
                # Otherwise the caller is busy with what is there, and a request for the others
                # might be parked just when it comes back for more.
                self._fetch_from(node_id, wanted, now_ms)

    def _check_stale(
        self, in_flight: _InFlight, wanted: list[PartitionPosition], now_ms: int
    ) -> None:
        asked = {(id(each), version) for each, version, _ in in_flight.asked}
        if not in_flight.is_stale and any(
            (id(each), each.version) not in asked for each in wanted[:MAX_PARTITIONS_PER_REQUEST]
        ):
            in_flight.is_stale = True
            in_flight.deadline_ms = min(in_flight.deadline_ms, now_ms + STALE_GRACE_MS)

    def _fetch_from(self, node_id: int, wanted: list[PartitionPosition], now_ms: int) -> None:
        link = self._cluster.link_to(node_id, Purpose.FETCH)
        if link is None:
            address = self._cluster.address_of(node_id)
            if address is not None:
                retry_at_ms = self._cluster.connections.retry_at_ms(address, Purpose.FETCH)
                if retry_at_ms > now_ms:
                    self._cluster.request_refresh()
                    self._connect_at_ms = min(self._connect_at_ms, retry_at_ms)
            return
        settings = self._settings
        del wanted[MAX_PARTITIONS_PER_REQUEST:]
        partitions = tuple(
            FetchPartition(
                each.topic,
                each.partition,
                -1,
                each.fetch_offset,
                -1,
                -1,
                settings.max_partition_fetch_bytes,
            )
            for each in wanted
        )
        request = FetchRequest(
            CONSUMER_REPLICA_ID,
            -1,
            settings.fetch_max_wait_ms,
            settings.fetch_min_bytes,
            settings.fetch_max_bytes,
            settings.isolation_level,
            0,
            -1,
            "",
            partitions,
        )
        asked = [(each, each.version, each.fetch_offset) for each in wanted]
        deadline_ms = now_ms + settings.fetch_max_wait_ms + settings.request_timeout_ms
        in_flight = _InFlight(self, node_id, link, asked, deadline_ms)
        try:
            link.send(FETCH, request, in_flight.answered)
        except Error as error:
            self._fail_request(in_flight, error, now_ms)
            return
        self._in_flight[node_id] = in_flight

    def _time_out_requests(self, now_ms: int) -> None:
        for in_flight in list(self._in_flight.values()):
            if in_flight.deadline_ms > now_ms or in_flight.link.closed:
                continue
            if in_flight.is_stale:
                address = self._cluster.address_of(in_flight.node_id)
                if address is not None:
                    self._cluster.connections.reopen(address, Purpose.FETCH)
                in_flight.link.abort()
            else:
                peer = in_flight.link.peer
                in_flight.link.abort(RequestTimeoutError(f"no answer to a fetch from {peer}"))

    def _take_answers(self, now_ms: int) -> None:
        inbox = self._inbox
        progress = bool(inbox)
        while inbox:
            in_flight = inbox.popleft()
            if self._in_flight.get(in_flight.node_id) is in_flight:
                del self._in_flight[in_flight.node_id]
            self._take_answer(in_flight, now_ms)
        if progress:
            self._on_progress()

    def _take_answer(self, in_flight: _InFlight, now_ms: int) -> None:
        response = in_flight.response
        if response is None:
            if not in_flight.is_stale:
                lost = ConnectionLostError(f"the connection to {in_flight.link.peer} ended")
                self._fail_request(in_flight, lost, now_ms)
            return
        header = response.header
        if header.error_code != 0:
            error = broker_error(header.error_code, error_message(header))
            self._fail_request(in_flight, error, now_ms)
            return
        message: FetchResponse = response.message
        names = [(each.topic, each.partition) for each in message.partitions]
        if names != [(each.topic, each.partition) for each, _, _ in in_flight.asked]:
            lost = ConnectionLostError("the answer names other partitions than the request")
            in_flight.link.abort(lost)
            self._fail_request(in_flight, lost, now_ms)
            return
        for (each, version, offset), result in zip(
            in_flight.asked, message.partitions, strict=True
        ):
            if each.version == version and self.assigned.get(each.topic_partition) is each:
                self._take_result(each, offset, result, now_ms)

    def _take_result(
        self, each: PartitionPosition, offset: int, result: FetchPartitionResponse, now_ms: int
    ) -> None:
        code = result.error_code
        if code == KafkaErrorCode.NONE:
            each.take_answer(offset, result, self._settings.reset_timestamp)
        elif code == KafkaErrorCode.OFFSET_OUT_OF_RANGE:
            each.out_of_range(self._settings.reset_timestamp)
        else:
            metadata = self._cluster.metadata
            if result.leader_id >= 0 and metadata.learn_leader(
                each.topic, each.partition, result.leader_id, result.leader_epoch
            ):
                return
            self._fail(each, broker_error(code, f"{each.topic}-{each.partition}"), now_ms)

    def _fail_request(self, in_flight: _InFlight, error: Error, now_ms: int) -> None:
        for each, version, _ in in_flight.asked:
            if each.version == version:
                self._fail(each, error, now_ms)

    def _fail(self, each: PartitionPosition, error: Error, now_ms: int) -> None:
        if error.refresh_metadata:
            self._cluster.request_refresh()
        if error.retriable:
            each.failures += 1
            each.retry_at_ms = now_ms + self._cluster.backoff.delay_ms(each.failures)
        else:
            each.error = error
            self._on_progress()

    # -- offsets ---------------------------------------------------------------------------

    def _look_up_offsets(self, now_ms: int) -> None:
        by_node: dict[int, list[PartitionPosition]] = {}
        for each in self.assigned.values():
            if each.position is None and each.error is None and not each.looking_up:
                if now_ms < each.retry_at_ms or each.reset_timestamp is None:
                    continue
                node_id = self._cluster.metadata.leader_of(each.topic, each.partition)
                if node_id >= 0:
                    by_node.setdefault(node_id, []).append(each)
                else:
                    self._cluster.topics.add(each.topic)
                    self._cluster.request_refresh()
        for node_id, wanted in by_node.items():
            for each in wanted:
                each.looking_up = True
            self._cluster.tasks.spawn("look up offsets", self._look_up(node_id, wanted))

    async def _look_up(self, node_id: int, wanted: list[PartitionPosition]) -> None:
        asked = [(each, each.version) for each in wanted]
        queries = {each.topic_partition: each.reset_timestamp or 0 for each in wanted}
        try:
            found = await ask_offsets(
                self._cluster, node_id, queries, self._settings.isolation_level
            )
        except Error as error:
            failure: Error | None = error
            found = {}
        else:
            failure = None
        finally:
            for each in wanted:
                each.looking_up = False
        now_ms = self._clock.now_ms()
        for each, version in asked:
            if each.version != version:
                continue
            result = found.get(each.topic_partition)
            if failure is None and result is not None and result.error_code == KafkaErrorCode.NONE:
                each.seek(result.offset)
            else:
                code = 0 if result is None else result.error_code
                where = f"{each.topic}-{each.partition}"
                self._fail(each, failure or broker_error(code, where), now_ms)
        self._wake.set()
        self._on_progress()
