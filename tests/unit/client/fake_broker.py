"""Brokers of one process that speak the wire and obey a script, for tests of the client.

They keep real logs of real batches, with the rules for idempotent producers (kafka.md A10) and
long polls. A test steps in with `cluster.script`: a callable that sees each call first and may
hold, refuse, drop or serve it; calls it holds are served later when the test says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from duolog_protocol import broker_messages as m
from duolog_protocol.apis import (
    API_VERSIONS,
    AnyApi,
    ApiVersionsResponse,
    api_ranges,
    encode_error,
    read_message,
    read_request,
)
from duolog_protocol.error_codes import KafkaErrorCode as Code
from duolog_protocol.frames import Frame
from duolog_protocol.record_decoding import decode_records
from duolog_protocol.records import BatchHeader, check_batch, stamp
from duolog_runtime.connection import ServerLink


class Call:
    """One request as it came to one broker."""

    def __init__(self, node: FakeBroker, link: ServerLink, api: AnyApi, request: Any, id_: int):
        self.node = node
        self.link = link
        self.api = api
        self.request = request
        self._id = id_

    def reply(self, message: Any) -> None:
        self.link.write(self.api.encode_response(self._id, 0, message, 0))

    def refuse(self, code: int, text: str = "") -> None:
        """An error for the whole request."""
        self.link.write(encode_error(self._id, code, 0, text))

    def refuse_partitions(self, code: int) -> None:
        """The same error for every partition of a produce request; nothing is stored."""
        self.reply(
            m.ProduceResponse(
                tuple(
                    m.ProducePartitionResponse(
                        each.topic, each.partition, code, "", -1, -1, 0, -1, -1
                    )
                    for each in self.request.partitions
                )
            )
        )

    def drop(self) -> None:
        """Cut the connection."""
        self.link.abort()

    def serve(self) -> None:
        """What a healthy broker does."""
        self.node.serve(self)


class FakePartition:
    """A log in memory."""

    def __init__(self) -> None:
        self.leader_id = 1
        self.leader_epoch = 0
        self.start_offset = 0
        self.end_offset = 0
        self.batches: list[tuple[BatchHeader, bytes]] = []
        self.producers: dict[int, tuple[int, list[tuple[int, int, int]]]] = {}
        self.duplicates = 0

    def append(self, data: bytes) -> tuple[int, int]:
        """(error code, base offset)."""
        header = check_batch(data)
        if header.producer_id >= 0:
            found = self._check_sequence(header)
            if found is not None:
                return found
        whole = bytearray(data)
        stamp(whole, self.end_offset, self.leader_epoch)
        header = check_batch(whole)
        self.batches.append((header, bytes(whole)))
        self.end_offset = header.next_offset
        return Code.NONE, header.base_offset

    def _check_sequence(self, header: BatchHeader) -> tuple[int, int] | None:
        epoch, known = self.producers.get(header.producer_id, (-1, []))
        this = (header.base_sequence, header.last_sequence)
        if epoch == header.producer_epoch:
            for first, last, offset in known:
                if (first, last) == this:
                    self.duplicates += 1
                    return Code.NONE, offset
        if header.producer_epoch < epoch:
            return Code.INVALID_PRODUCER_EPOCH, -1
        if header.producer_epoch > epoch:
            if epoch >= 0 and header.base_sequence != 0:
                return Code.OUT_OF_ORDER_SEQUENCE_NUMBER, -1
            known = []
        elif known and header.base_sequence != (known[-1][1] + 1) & 0x7FFFFFFF:
            return Code.OUT_OF_ORDER_SEQUENCE_NUMBER, -1
        known = [*known[-4:], (*this, self.end_offset)]
        self.producers[header.producer_id] = (header.producer_epoch, known)
        return None

    def records(self) -> list[Any]:
        return [record for _, data in self.batches for record in decode_records(data)]

    @property
    def values(self) -> list[Any]:
        return [record.value for record in self.records()]


class FakeCluster:
    """Brokers 1..n and their topics."""

    def __init__(self) -> None:
        self.nodes: dict[int, FakeBroker] = {}
        self.topics: dict[str, list[FakePartition]] = {}
        self.configs: dict[str, dict[str, str]] = {}
        self.controller_id = 1
        self.next_producer_id = 1000
        self.script: Callable[[Call], bool] | None = None
        """Sees each call first; True when it has dealt with it."""
        self.calls: list[Call] = []

    async def start(self, nodes: int = 1) -> str:
        for node_id in range(1, nodes + 1):
            self.nodes[node_id] = FakeBroker(self, node_id)
            await self.nodes[node_id].start()
        return f"127.0.0.1:{self.nodes[1].port}"

    async def stop(self) -> None:
        for node in self.nodes.values():
            await node.stop()

    def add_topic(self, name: str, partitions: int = 1) -> list[FakePartition]:
        self.topics[name] = [FakePartition() for _ in range(partitions)]
        return self.topics[name]

    def calls_of(self, api: AnyApi) -> list[Call]:
        return [call for call in self.calls if call.api is api]


class FakeBroker:
    """One broker of the cluster."""

    def __init__(self, cluster: FakeCluster, node_id: int) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.port = 0
        self.links: list[ServerLink] = []
        self.parked: list[tuple[Call, asyncio.TimerHandle]] = []
        self._handlers: dict[int, Callable[[Call], None]] = {
            m.METADATA.key: self.metadata,
            m.PRODUCE.key: self.produce,
            m.FETCH.key: self.fetch,
            m.LIST_OFFSETS.key: self.list_offsets,
            m.INIT_PRODUCER_ID.key: self.init_producer_id,
            m.CREATE_TOPICS.key: self.create_topics,
            m.DELETE_TOPICS.key: self.delete_topics,
            m.DESCRIBE_CONFIGS.key: self.describe_configs,
            API_VERSIONS.key: self.api_versions,
        }

    async def start(self) -> None:
        loop = asyncio.get_running_loop()

        def factory() -> ServerLink:
            return ServerLink(
                loop,
                on_made=self.links.append,
                on_frames=self.on_frames,
                on_foreign=lambda link: link.abort(),
                on_closed=lambda link, _reason: self.links.remove(link),
                max_unsent_bytes=0,
            )

        self.server = await loop.create_server(factory, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.server.close()
        for _, timer in self.parked:
            timer.cancel()
        self.parked.clear()
        for link in list(self.links):
            link.abort()
        await self.server.wait_closed()

    def on_frames(self, link: ServerLink, frames: list[Frame]) -> None:
        link.endpoint.raise_limit(m.MAX_FRAME_BYTES)
        for frame in frames:
            header = read_request(frame)
            api = m.BROKER_APIS[header.api_key]
            request = read_message(api, header, frame)
            call = Call(self, link, api, request, header.correlation_id)
            self.cluster.calls.append(call)
            if self.cluster.script is None or not self.cluster.script(call):
                self.serve(call)

    def serve(self, call: Call) -> None:
        self._handlers[call.api.key](call)

    def api_versions(self, call: Call) -> None:
        call.reply(
            ApiVersionsResponse("kbroker", "0", api_ranges(m.BROKER_APIS), (), m.MAX_FRAME_BYTES)
        )

    def metadata(self, call: Call) -> None:
        cluster = self.cluster
        wanted = call.request.topics
        names = list(cluster.topics) if wanted is None else list(wanted)
        topics, partitions = [], []
        for index, name in enumerate(names):
            found = cluster.topics.get(name)
            code = Code.NONE if found is not None else Code.UNKNOWN_TOPIC_OR_PARTITION
            if name.startswith("!"):
                code = Code.INVALID_TOPIC_EXCEPTION
            topics.append(m.TopicMetadata(code, name, "A" * 22, False))
            for number, each in enumerate(found or ()):
                replicas = tuple(cluster.nodes)
                partitions.append(
                    m.PartitionMetadata(
                        *(index, 0, number, each.leader_id, each.leader_epoch),
                        *(replicas, replicas, ()),
                    )
                )
        brokers = [
            m.BrokerMetadata(node.node_id, "127.0.0.1", node.port, None)
            for node in cluster.nodes.values()
        ]
        call.reply(m.MetadataResponse("fake", cluster.controller_id, brokers, topics, partitions))

    def init_producer_id(self, call: Call) -> None:
        self.cluster.next_producer_id += 1
        call.reply(m.InitProducerIdResponse(self.cluster.next_producer_id, 0))

    def _led(self, each: Any) -> tuple[int, FakePartition | None]:
        topic = self.cluster.topics.get(each.topic)
        if topic is None or each.partition >= len(topic):
            return Code.UNKNOWN_TOPIC_OR_PARTITION, None
        found = topic[each.partition]
        if found.leader_id != self.node_id:
            return Code.NOT_LEADER_OR_FOLLOWER, found
        return Code.NONE, found

    def produce(self, call: Call) -> None:
        results = []
        for each in call.request.partitions:
            code, found = self._led(each)
            offset, leader_id, leader_epoch = -1, -1, -1
            if code == Code.NONE:
                assert found is not None
                code, offset = found.append(bytes(each.records))
            elif found is not None:
                leader_id, leader_epoch = found.leader_id, found.leader_epoch
            results.append(
                m.ProducePartitionResponse(
                    *(each.topic, each.partition, code, None, offset, -1, 0),
                    *(leader_id, leader_epoch),
                )
            )
        if call.request.acks != 0:
            call.reply(m.ProduceResponse(tuple(results)))
        self._wake_parked()

    def _wake_parked(self) -> None:
        for node in self.cluster.nodes.values():
            for call, timer in list(node.parked):
                response = node.read(call.request)
                if any(len(each.records) for each in response.partitions):
                    node.parked.remove((call, timer))
                    timer.cancel()
                    call.reply(response)

    def fetch(self, call: Call) -> None:
        response = self.read(call.request)
        if any(len(each.records) or each.error_code for each in response.partitions):
            call.reply(response)
            return
        loop = asyncio.get_running_loop()
        entry: tuple[Call, asyncio.TimerHandle]

        def give_up() -> None:
            self.parked.remove(entry)
            call.reply(self.read(call.request))

        entry = (call, loop.call_later(call.request.max_wait_ms / 1000, give_up))
        self.parked.append(entry)

    def read(self, request: m.FetchRequest) -> m.FetchResponse:
        results = []
        for each in request.partitions:
            code, found = self._led(each)
            data = b""
            end = start = -1
            if found is not None:
                start, end = found.start_offset, found.end_offset
                if code == Code.NONE and not start <= each.fetch_offset <= end:
                    code = Code.OFFSET_OUT_OF_RANGE
                if code == Code.NONE:
                    data = self._run(found, each)
            results.append(
                m.FetchPartitionResponse(
                    *(each.topic, each.partition, code, end, end, start, (), -1, None, -1, -1),
                    data,
                )
            )
        return m.FetchResponse(0, tuple(results))

    @staticmethod
    def _run(found: FakePartition, each: m.FetchPartition) -> bytes:
        pieces: list[bytes] = []
        size = 0
        for header, data in found.batches:
            if header.last_offset >= each.fetch_offset:
                if pieces and size + len(data) > each.partition_max_bytes:
                    break
                pieces.append(data)
                size += len(data)
        return b"".join(pieces)

    def list_offsets(self, call: Call) -> None:
        results = []
        for each in call.request.partitions:
            code, found = self._led(each)
            offset = timestamp = -1
            if code == Code.NONE:
                assert found is not None
                if each.timestamp_ms == m.LATEST_TIMESTAMP:
                    offset = found.end_offset
                elif each.timestamp_ms == m.EARLIEST_TIMESTAMP:
                    offset = found.start_offset
                else:
                    for record in found.records():
                        if record.timestamp >= each.timestamp_ms:
                            offset, timestamp = record.offset, record.timestamp
                            break
            results.append(
                m.ListOffsetsPartitionResponse(
                    each.topic, each.partition, code, timestamp, offset, 0
                )
            )
        call.reply(m.ListOffsetsResponse(tuple(results)))

    def create_topics(self, call: Call) -> None:
        results = []
        for each in call.request.topics:
            code = Code.NONE
            if self.cluster.controller_id != self.node_id:
                code = Code.NOT_CONTROLLER
            elif each.name in self.cluster.topics:
                code = Code.TOPIC_ALREADY_EXISTS
            elif not call.request.validate_only:
                self.cluster.add_topic(
                    each.name, len(each.assignments) or max(each.num_partitions, 1)
                )
                self.cluster.configs[each.name] = {c.name: c.value or "" for c in each.configs}
            results.append(m.CreateTopicResponse(each.name, "A" * 22, code, "told so", 1, 1))
        call.reply(m.CreateTopicsResponse(tuple(results)))

    def delete_topics(self, call: Call) -> None:
        results = []
        for name in call.request.names:
            code = Code.NONE if name in self.cluster.topics else Code.UNKNOWN_TOPIC_OR_PARTITION
            self.cluster.topics.pop(name, None)
            results.append(m.DeleteTopicResponse(name, "", code, None))
        call.reply(m.DeleteTopicsResponse(tuple(results)))

    def describe_configs(self, call: Call) -> None:
        results = []
        for name in call.request.topics:
            known = name in self.cluster.topics
            entries = tuple(
                m.ConfigEntry(key, value, False, "doc")
                for key, value in self.cluster.configs.get(name, {}).items()
            )
            code = Code.NONE if known else Code.UNKNOWN_TOPIC_OR_PARTITION
            results.append(m.DescribeConfigsResult(name, code, None, entries))
        call.reply(m.DescribeConfigsResponse(results))
