"""A broker's connections and apis over real sockets, with a control plane made of one image."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from duolog_protocol import broker_messages as kb
from duolog_protocol.apis import API_VERSIONS, AnyApi, ApiVersionsRequest
from duolog_protocol.connection import Push
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import (
    BrokerError,
    ConnectionLostError,
    InvalidRequestError,
    InvalidRequiredAcksError,
    NotControllerError,
    StorageFullError,
    broker_error,
)
from duolog_protocol.frames import encode_frame
from duolog_protocol.preamble import PREAMBLE
from duolog_protocol.record_decoding import decode_records
from duolog_protocol.records import iter_headers
from duolog_runtime.clocks import RealClock
from duolog_runtime.connection import ClientLink, connect
from duolog_runtime.disk import DiskThread
from duolog_runtime.files import RealFiles
from duolog_runtime.logs import RecordingLogger
from kbroker.core.metadata_image import (
    EMPTY_IMAGE,
    BrokerInfo,
    MetadataImage,
    PartitionImage,
    TopicImage,
)
from kbroker.core.purgatory import Purgatory
from kbroker.core.topic_config import TopicConfig, documentation
from kbroker.server.apis import MAX_WAIT_MS, Apis
from kbroker.server.connections import Connections, Limits
from kbroker.server.log_manager import LogManager
from kbroker.server.replica_manager import ReplicaManager
from kbroker.storage.log_types import LogSlice
from tests.support import until
from tests.unit.kbroker.test_replica_manager import encode


class FakeControl:
    """Makes topics in memory; refuses once `refusing` is set."""

    def __init__(self, replicas: ReplicaManager) -> None:
        self.image: MetadataImage = EMPTY_IMAGE._replace(
            cluster_id="c" * 22,
            controller_id=1,
            brokers={1: BrokerInfo(1, "127.0.0.1", 9092, None, 1)},
        )
        self.replicas = replicas
        self.refusing: Exception | None = None
        self.held: asyncio.Event | None = None
        self.blocks = 0

    async def create_topics(
        self, requests: tuple[kb.NewTopicRequest, ...], timeout_ms: int, validate_only: bool
    ) -> tuple[kb.CreateTopicResponse, ...]:
        if self.refusing is not None:
            raise self.refusing
        if self.held is not None:
            await self.held.wait()
        topics = dict(self.image.topics)
        made = []
        for request in requests:
            partition = PartitionImage((1,), 1, 0, (1,), 0, 1, 1)
            configs = {each.name: each.value or "" for each in request.configs}
            topics[request.name] = TopicImage(request.name, "A" * 22, {0: partition}, configs)
            made.append(kb.CreateTopicResponse(request.name, "A" * 22, 0, None, 1, 1))
        self.image = self.image._replace(topics=topics)
        await self.replicas.apply_image(self.image)
        return tuple(made)

    async def delete_topics(
        self, names: tuple[str, ...], timeout_ms: int
    ) -> tuple[kb.DeleteTopicResponse, ...]:
        self.image = self.image._replace(topics={})
        await self.replicas.apply_image(self.image)
        return tuple(kb.DeleteTopicResponse(name, "", 0, None) for name in names)

    async def allocate_producer_ids(self) -> range:
        self.blocks += 1
        return range(self.blocks * 2, self.blocks * 2 + 2)


class World:
    """Connections, apis and replicas of one broker, and its clients."""

    def __init__(self, directory: Path, tasks: asyncio.TaskGroup, limits: Limits) -> None:
        loop = asyncio.get_running_loop()
        clock, log = RealClock(), RecordingLogger()
        self.log = log
        self.disk = DiskThread(loop, "disk")
        purgatory = Purgatory(100)

        def defer(callback: Any) -> None:
            loop.call_soon(callback)

        self.logs = LogManager(
            RealFiles(),
            str(directory),
            self.disk,
            defer=defer,
            clock=clock,
            rng=random.Random(1),
            log=log,
            memory_tail_bytes=10_000,
            memory_tails_bytes=100_000,
            max_producer_ids=100,
            halt=self._halt,
        )
        self.logs.open_directory()
        self.replicas = ReplicaManager(
            self.logs,
            self.disk,
            purgatory,
            TopicConfig(),
            clock=clock,
            log=log,
        )
        self.replicas.identify(1)
        self.replicas.unfence(1)
        self.control = FakeControl(self.replicas)
        self.purgatory = purgatory

        def arm_timer() -> None:
            deadline = purgatory.deadline_ms()
            if deadline is not None:
                delay = max(deadline - clock.now_ms(), 0) / 1000
                loop.call_later(delay, lambda: purgatory.expire(clock.now_ms()))

        apis = Apis(
            self.replicas,
            self.control,
            purgatory,
            self.disk,
            arm_timer=arm_timer,
            clock=clock,
            version="0",
            max_frame_bytes=limits.max_frame_bytes,
            max_fetch_bytes=1 << 20,
            auto_create_topics=True,
            topic_defaults=TopicConfig(),
        )
        self.connections = Connections(loop, tasks, limits, log)
        self.apis = apis
        self.connections.handlers.update(apis.handlers)
        self.clients: list[ClientLink] = []

    def _halt(self, error: Exception) -> None:
        raise AssertionError(error)

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(self.connections.new_link, "127.0.0.1", 0)
        self.port: int = self.server.sockets[0].getsockname()[1]

    async def client(self, *, hello: bool = True) -> ClientLink:
        link = await connect(
            "127.0.0.1",
            self.port,
            max_frame_bytes=1 << 24,
            on_push=no_push,
            on_closed=lambda _reason: None,
        )
        self.clients.append(link)
        if hello:
            await ask(link, API_VERSIONS, ApiVersionsRequest("test", "0"))
        return link

    async def close(self) -> None:
        for client in self.clients:
            client.abort()
        self.connections.abort()
        self.server.close()
        await self.server.wait_closed()
        self.disk.close()
        self.logs.release()


def no_push(push: Push) -> None:
    raise AssertionError(push)


async def ask(link: ClientLink, api: AnyApi, message: Any) -> Any:
    return (await link.call(api, message, broker_error, 0)).message


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    limits = Limits(
        max_connections=5,
        max_connections_per_ip=4,
        max_frame_bytes=1 << 20,
        max_in_flight=3,
        max_unsent_bytes=1 << 20,
    )
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        found = World(tmp_path, tasks, limits)
        await found.listen()
        yield found
        await found.close()


def produce(value: bytes, acks: int = -1, topic: str = "t") -> kb.ProduceRequest:
    partition = kb.ProducePartition(topic, 0, encode(value))
    return kb.ProduceRequest(None, acks, 10_000, (partition,))


def fetch(offset: int, wait_ms: int = 10_000, min_bytes: int = 1) -> kb.FetchRequest:
    partition = kb.FetchPartition("t", 0, -1, offset, -1, -1, 1 << 20)
    return kb.FetchRequest(-1, -1, wait_ms, min_bytes, 1 << 20, 0, 0, -1, "", (partition,))


async def create(link: ClientLink, topic: str = "t") -> None:
    request = kb.MetadataRequest((topic,), True, False)
    response = await ask(link, kb.METADATA, request)
    assert [each.name for each in response.topics] == [topic]
    assert response.partitions[0].leader_id == 1


def values(response: kb.FetchResponse) -> list[bytes]:
    data = bytes(response.partitions[0].records)
    return [
        record.value
        for position, _ in iter_headers(data)
        for record in decode_records(data, position)
    ]


async def test_a_record_goes_in_and_comes_out(world: World) -> None:
    client = await world.client()
    await create(client)
    for acks in (-1, 1):
        response = await ask(client, kb.PRODUCE, produce(b"acks %d" % acks, acks))
        assert response.partitions[0].error_code == 0
    assert values(await ask(client, kb.FETCH, fetch(1))) == [b"acks 1"]


async def test_a_fetch_waits_for_data_and_is_overtaken_by_other_requests(world: World) -> None:
    client = await world.client()
    await create(client)
    waiting = asyncio.ensure_future(ask(client, kb.FETCH, fetch(0)))
    await ask(client, kb.METADATA, kb.MetadataRequest(None, False, False))
    assert not waiting.done()
    await ask(client, kb.PRODUCE, produce(b"a"))
    assert values(await waiting) == [b"a"]


async def test_a_fetch_that_waited_long_enough_is_answered_empty(world: World) -> None:
    client = await world.client()
    await create(client)
    response = await ask(client, kb.FETCH, fetch(0, wait_ms=1))
    assert (response.partitions[0].error_code, values(response)) == (0, [])


async def test_a_waiting_fetch_learns_that_the_topic_is_gone(world: World) -> None:
    client = await world.client()
    await create(client)
    waiting = asyncio.ensure_future(ask(client, kb.FETCH, fetch(0)))
    await ask(client, kb.DELETE_TOPICS, kb.DeleteTopicsRequest(("t",), 1000))
    response = await waiting
    assert response.partitions[0].error_code == KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION


async def test_acks_0_has_no_answer_and_an_error_closes_the_connection(world: World) -> None:
    client = await world.client()
    await create(client)
    client.send(kb.PRODUCE, produce(b"quiet", 0), None)
    assert values(await ask(client, kb.FETCH, fetch(0))) == [b"quiet"]
    client.send(kb.PRODUCE, produce(b"lost", 0, "nowhere"), None)
    with pytest.raises(ConnectionLostError):
        while True:
            await ask(client, kb.METADATA, kb.MetadataRequest(None, False, False))


async def test_what_a_request_gets_wrong_is_said_and_the_connection_lives(world: World) -> None:
    client = await world.client()
    await create(client)
    with pytest.raises(InvalidRequiredAcksError, match="acks is 2"):
        await ask(client, kb.PRODUCE, produce(b"a", 2))
    with pytest.raises(InvalidRequestError, match="transactions"):
        await ask(client, kb.PRODUCE, produce(b"a")._replace(transactional_id="x"))
    twice = produce(b"a")
    with pytest.raises(InvalidRequestError, match="once at most"):
        await ask(client, kb.PRODUCE, twice._replace(partitions=twice.partitions * 2))
    with pytest.raises(InvalidRequestError, match="replica_id"):
        await ask(client, kb.FETCH, fetch(0)._replace(replica_id=2))
    with pytest.raises(InvalidRequestError, match="session"):
        await ask(client, kb.FETCH, fetch(0)._replace(session_id=5))
    world.control.refusing = NotControllerError("broker 2 is")
    with pytest.raises(NotControllerError, match="broker 2"):
        await ask(client, kb.CREATE_TOPICS, kb.CreateTopicsRequest([], 1, False))
    assert (await ask(client, kb.PRODUCE, produce(b"a"))).partitions[0].base_offset == 0


async def test_an_unknown_api_and_wrong_types_get_an_error(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    hello = API_VERSIONS.encode_request(1, ApiVersionsRequest("raw", "0"), 0)
    unknown = encode_frame(msgpack.packb([999, 0, 2]))
    version = encode_frame(msgpack.packb([3, 7, 3, None, True, False]))
    types = encode_frame(msgpack.packb([3, 0, 4, "not a list", True, False]))
    writer.write(PREAMBLE + b"".join([*hello, *unknown, *version, *types]))
    answers = [await read_answer(reader) for _ in range(4)]
    assert [answer[:2] for answer in answers] == [[1, 0], [2, 35], [3, 35], [4, 42]]
    assert "999 is not known" in answers[1][3]
    assert "only 0 to 0" in answers[2][3]
    assert "topics: expected a list" in answers[3][3]
    writer.close()
    await writer.wait_closed()


async def read_answer(reader: asyncio.StreamReader) -> list[Any]:
    length, header = await reader.readexactly(4), await reader.readexactly(4)
    rest = await reader.readexactly(int.from_bytes(length, "big") - 4)
    answer: list[Any] = msgpack.unpackb(rest[: int.from_bytes(header, "big")])
    return answer


@pytest.mark.parametrize(
    "opening",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"ruok",
        b"DUO1\x02\0\0\0",
        PREAMBLE + (20_000).to_bytes(4, "big") + bytes(4),
        PREAMBLE + b"".join(bytes(piece) for piece in encode_frame(b"\xc1")),
        PREAMBLE
        + b"".join(
            bytes(piece)
            for piece in kb.METADATA.encode_request(1, kb.MetadataRequest(None, True, False), 0)
        ),
    ],
)
async def test_strangers_and_broken_clients_are_shown_the_door(
    world: World, opening: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(opening)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    client = await world.client()
    await create(client)


async def test_a_client_that_asks_nothing_for_too_long_is_dropped(world: World) -> None:
    world.connections._limits.max_idle_ms = 50
    idle = await world.client()
    await until(lambda: idle.closed)
    assert world.connections.count == 0
    reasons = [each["reason"] for _, event, each in world.log.records if event.endswith("dropped")]
    assert reasons == ["no request in 0.05 s"]


async def test_a_client_whose_request_waits_is_not_idle(world: World) -> None:
    client = await world.client()
    await create(client)
    waiting = asyncio.ensure_future(ask(client, kb.FETCH, fetch(0)))
    await until(lambda: world.connections.in_flight_count == 1)
    ((link, entry),) = world.connections._links.items()
    entry.heard_s = -1e9
    world.connections._on_maybe_idle(link, entry)
    await ask(await world.client(), kb.PRODUCE, produce(b"a"))
    assert values(await waiting) == [b"a"]
    entry.heard_s = -1e9
    world.connections._on_maybe_idle(link, entry)
    await until(lambda: client.closed)


async def test_an_oversize_request_after_hello_closes_only_that_connection(world: World) -> None:
    client, other = await world.client(), await world.client()
    await create(other)
    huge = kb.ProducePartition("t", 0, bytes(2 << 20))
    with pytest.raises(ConnectionLostError):
        await ask(client, kb.PRODUCE, kb.ProduceRequest(None, -1, 1, (huge,)))
    assert (await ask(other, kb.PRODUCE, produce(b"a"))).partitions[0].error_code == 0


async def test_a_client_with_too_much_in_flight_is_not_read_until_it_is_answered(
    world: World,
) -> None:
    client = await world.client()
    await create(client)
    fetches = [asyncio.ensure_future(ask(client, kb.FETCH, fetch(0))) for _ in range(3)]
    probe = asyncio.ensure_future(ask(client, kb.METADATA, kb.MetadataRequest(None, False, False)))
    other = await world.client()
    await ask(other, kb.METADATA, kb.MetadataRequest(None, False, False))
    assert not probe.done()
    await ask(other, kb.PRODUCE, produce(b"a"))
    await asyncio.gather(probe, *fetches)


async def test_one_connection_too_many_from_an_address_is_refused(world: World) -> None:
    clients = [await world.client() for _ in range(4)]
    with pytest.raises(ConnectionLostError):
        await world.client()
    assert "connection_refused" in world.log.events
    clients[0].close()
    while True:
        try:
            await world.client()
            break
        except ConnectionLostError:
            continue


async def test_producer_ids_come_from_blocks_and_never_twice(world: World) -> None:
    client = await world.client()
    request = kb.InitProducerIdRequest(None, -1, -1, -1)
    ids = [(await ask(client, kb.INIT_PRODUCER_ID, request)).producer_id for _ in range(5)]
    assert len(set(ids)) == 5
    assert world.control.blocks == 3


async def test_topics_settings_and_offsets_can_be_asked_for(world: World) -> None:
    client = await world.client()
    topic = kb.NewTopicRequest("t", 1, 1, (), (kb.TopicConfig("retention.ms", "5000"),))
    await ask(client, kb.CREATE_TOPICS, kb.CreateTopicsRequest([topic], 1000, False))
    found = await ask(client, kb.DESCRIBE_CONFIGS, kb.DescribeConfigsRequest(("t", "u")))
    settings = {entry.name: entry for entry in found.results[0].entries}
    assert (settings["retention.ms"].value, settings["retention.ms"].is_default) == ("5000", False)
    assert settings["durability"].is_default
    assert "fsync" in settings["durability"].documentation
    assert found.results[1].error_code == KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    await ask(client, kb.PRODUCE, produce(b"a"))
    lookup = kb.ListOffsetsPartition("t", 0, -1, -1)
    offsets = await ask(client, kb.LIST_OFFSETS, kb.ListOffsetsRequest(-1, 0, (lookup,)))
    assert offsets.partitions[0].offset == 1
    missing = await ask(client, kb.METADATA, kb.MetadataRequest(("bad name",), True, False))
    assert missing.topics[0].error_code == KafkaErrorCode.INVALID_TOPIC_EXCEPTION


async def test_settings_that_nothing_here_follows_cost_their_topics_answer_only(
    world: World,
) -> None:
    client = await world.client()
    await create(client, "t")
    topics = dict(world.control.image.topics)
    topics["c"] = topics["t"]._replace(name="c", configs={"cleanup.policy": "compact"})
    world.control.image = world.control.image._replace(topics=topics)
    found = await ask(client, kb.DESCRIBE_CONFIGS, kb.DescribeConfigsRequest(("c", "t")))
    assert [each.error_code for each in found.results] == [KafkaErrorCode.INVALID_CONFIG, 0]
    assert "cleanup.policy" in (found.results[0].error_message or "")
    assert documentation() is documentation()  # the source is not parsed again for each request


@pytest.mark.parametrize("error", [StorageFullError("no space"), ValueError("no space")])
async def test_an_error_behind_a_request_fails_the_request_not_the_broker(
    world: World, error: Exception
) -> None:
    client = await world.client()
    world.control.refusing = error
    with pytest.raises(BrokerError, match=f"{type(error).__name__}: no space") as told:
        await ask(client, kb.CREATE_TOPICS, kb.CreateTopicsRequest([], 1, False))
    assert told.value.code == KafkaErrorCode.UNKNOWN_SERVER_ERROR
    assert "request_failed" in world.log.events
    world.control.refusing = None
    await create(client)


async def test_a_handler_that_breaks_costs_its_request_and_no_other(world: World) -> None:
    client = await world.client()
    await create(client)

    def broken(_context: Any, _request: Any) -> None:
        raise ValueError("our bug")

    honest = dict(world.connections.handlers)
    world.connections.handlers[kb.LIST_OFFSETS.key] = broken
    world.connections.handlers[kb.PRODUCE.key] = broken
    asks = [ask(client, kb.LIST_OFFSETS, kb.ListOffsetsRequest(-1, 0, ())) for _ in range(7)]
    answers = await asyncio.gather(*asks, return_exceptions=True)  # some out of the backlog
    assert [getattr(each, "code", None) for each in answers] == [
        KafkaErrorCode.UNKNOWN_SERVER_ERROR
    ] * 7
    assert world.connections.in_flight_count == 0
    world.connections.handlers.update(honest)
    await create(client)
    world.connections.handlers[kb.PRODUCE.key] = broken
    client.send(kb.PRODUCE, produce(b"a", acks=0), lambda _response: None)
    await until(lambda: client.closed)  # the only way to tell


async def test_a_backlog_that_breaks_closes_its_connection(world: World) -> None:
    client = await world.client()
    await create(client)
    world.control.held = asyncio.Event()
    request = kb.CreateTopicsRequest([], 10_000, False)
    waiting = [asyncio.ensure_future(ask(client, kb.CREATE_TOPICS, request)) for _ in range(5)]
    await until(lambda: world.connections.in_flight_count == 3)

    def broken(_context: Any, _request: Any) -> None:
        raise AssertionError("our bug")

    world.connections.handlers[kb.CREATE_TOPICS.key] = broken
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    world.control.held.set()
    await until(lambda: client.closed)
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[-1], ConnectionLostError)
    assert told


async def test_a_response_that_cannot_be_encoded_fails_only_its_request(world: World) -> None:
    client = await world.client()
    world.control.image = world.control.image._replace(cluster_id="c" * 70_000)
    with pytest.raises(BrokerError, match="over the limit"):
        await ask(client, kb.METADATA, kb.MetadataRequest(None, False, False))
    world.control.image = world.control.image._replace(cluster_id="c")
    await create(client)


async def test_requests_of_a_connection_that_ended_wait_no_longer(world: World) -> None:
    client, other = await world.client(), await world.client()
    await create(client)
    waiting = [asyncio.ensure_future(ask(client, kb.FETCH, fetch(0, 1 << 30))) for _ in range(2)]
    survivor = asyncio.ensure_future(ask(other, kb.FETCH, fetch(0)))
    await until(lambda: len(world.purgatory) == 3)
    client.abort()
    await until(lambda: len(world.purgatory) == 1)
    assert world.connections.count == 1
    for each in waiting:
        with pytest.raises(ConnectionLostError):
            await each
    await ask(other, kb.PRODUCE, produce(b"a"))
    assert values(await survivor) == [b"a"]


async def test_nobody_waits_longer_than_the_broker_allows(world: World) -> None:
    client = await world.client()
    await create(client)
    waiting = asyncio.ensure_future(ask(client, kb.FETCH, fetch(0, (1 << 31) - 1)))
    await until(lambda: len(world.purgatory) == 1)
    deadline_ms = world.purgatory.deadline_ms()
    assert deadline_ms is not None and deadline_ms <= RealClock().now_ms() + MAX_WAIT_MS
    await ask(client, kb.PRODUCE, produce(b"a"))
    await waiting


async def test_handlers_that_wait_for_zkserver_are_given_up_at_the_end(world: World) -> None:
    client = await world.client()
    world.control.held = asyncio.Event()
    request = asyncio.ensure_future(
        ask(client, kb.CREATE_TOPICS, kb.CreateTopicsRequest([], 1, False))
    )
    await until(lambda: world.connections.in_flight_count == 1)
    world.connections.stop()
    await world.connections.end_pending()
    world.connections.close()
    with pytest.raises(ConnectionLostError):
        await request


async def test_a_fetch_of_many_partitions_with_long_names_is_answered(world: World) -> None:
    client = await world.client()
    keys = [("n" * 200, number) for number in range(1_500)]
    partitions = tuple(kb.FetchPartition(*key, -1, 0, -1, -1, 1) for key in keys)
    request = fetch(0)._replace(partitions=partitions)
    response = await ask(client, kb.FETCH, request)
    assert [(each.topic, each.partition) for each in response.partitions] == keys


async def test_the_settings_of_a_hundred_topics_are_told_in_one_answer(world: World) -> None:
    client = await world.client()
    partition = PartitionImage((1,), 1, 0, (1,), 0, 1, 1)
    names = tuple(f"topic-{number}" for number in range(100))
    topics = {name: TopicImage(name, "A" * 22, {0: partition}, {}) for name in names}
    world.control.image = world.control.image._replace(topics=topics)
    found = await ask(client, kb.DESCRIBE_CONFIGS, kb.DescribeConfigsRequest(names))
    assert [each.topic for each in found.results] == list(names)


async def test_bad_batches_and_wrong_sequences_are_refused_through_the_socket(
    world: World,
) -> None:
    client = await world.client()
    await create(client)

    async def send(records: bytes) -> kb.ProducePartitionResponse:
        partitions = (kb.ProducePartition("t", 0, records),)
        response = await ask(client, kb.PRODUCE, kb.ProduceRequest(None, -1, 10_000, partitions))
        found: kb.ProducePartitionResponse = response.partitions[0]
        return found

    def numbered(sequence: int, epoch: int = 0) -> bytes:
        return encode(b"n", producer_id=7, producer_epoch=epoch, base_sequence=sequence)

    damaged = bytearray(encode(b"a"))
    damaged[-1] ^= 1
    for records, code in (
        (bytes(damaged), KafkaErrorCode.CORRUPT_MESSAGE),
        (encode(b"a")[:-1], KafkaErrorCode.CORRUPT_MESSAGE),
        (b"", KafkaErrorCode.CORRUPT_MESSAGE),
    ):
        refused = await send(records)
        assert (refused.error_code, refused.base_offset) == (code, -1), refused
        assert refused.error_message
    assert (await send(numbered(0))).base_offset == 0
    assert (await send(numbered(0))).base_offset == 0, "a duplicate is answered as the first"
    assert (await send(numbered(2))).error_code == KafkaErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert (await send(numbered(1))).base_offset == 1
    assert (await send(numbered(0, epoch=1))).base_offset == 2
    assert (await send(numbered(2))).error_code == KafkaErrorCode.INVALID_PRODUCER_EPOCH
    assert values(await ask(client, kb.FETCH, fetch(0))) == [b"n"] * 3


async def test_metadata_makes_no_topic_where_client_or_broker_forbid_it(world: World) -> None:
    client = await world.client()
    unasked = await ask(client, kb.METADATA, kb.MetadataRequest(("t",), False, False))
    assert unasked.topics[0].error_code == KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    world.apis._auto_create_topics = False
    refused = await ask(client, kb.METADATA, kb.MetadataRequest(("t",), True, False))
    assert refused.topics[0].error_code == KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    world.apis._auto_create_topics = True
    world.control.refusing = NotControllerError("broker 2 is")
    failed = await ask(client, kb.METADATA, kb.MetadataRequest(("t",), True, False))
    assert failed.topics[0].error_code == KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert world.control.image.topics == {}


async def test_a_cold_read_that_fails_is_an_error_of_the_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await world.client()
    await create(client)
    await ask(client, kb.PRODUCE, produce(b"a"))

    def unreadable(_slice: LogSlice) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LogSlice, "read_cached", lambda _slice: None)
    monkeypatch.setattr(LogSlice, "read", unreadable)
    response = await ask(client, kb.FETCH, fetch(0))
    assert response.partitions[0].error_code == KafkaErrorCode.KAFKA_STORAGE_ERROR
    monkeypatch.undo()
    assert values(await ask(client, kb.FETCH, fetch(0))) == [b"a"]


async def test_a_produce_that_cannot_be_synced_in_time_may_be_stored_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await world.client()
    await create(client)
    monkeypatch.setattr(world.logs, "sync_soon", lambda *_arguments: None)
    late = produce(b"a")._replace(timeout_ms=1)
    response = await ask(client, kb.PRODUCE, late)
    assert response.partitions[0].error_code == KafkaErrorCode.REQUEST_TIMED_OUT


async def test_when_too_many_wait_the_next_is_answered_at_once(world: World) -> None:
    client = await world.client()
    await create(client)
    world.purgatory.max_operations = 1
    waiting = asyncio.ensure_future(ask(client, kb.FETCH, fetch(0)))
    await until(lambda: world.purgatory.is_full)
    assert values(await ask(client, kb.FETCH, fetch(0))) == []
    await ask(client, kb.PRODUCE, produce(b"a", 1, "t"))
    assert values(await waiting) == [b"a"]
