"""The admin client against scripted brokers on real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from duolog.admin import TOPICS_PER_REQUEST, Admin
from duolog.values import NewTopic, OffsetSpec
from duolog_protocol import broker_messages as m
from duolog_protocol.error_codes import KafkaErrorCode as Code
from duolog_protocol.errors import (
    ConnectionClosedError,
    ConnectionLostError,
    Error,
    InvalidReplicaAssignmentError,
    LeaderNotAvailableError,
    RequestTimeoutError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from duolog_protocol.types import TopicPartition
from tests.unit.client.fake_broker import Call, FakeCluster
from tests.unit.client.test_consumer import fill
from tests.unit.client.test_producer import QUICK


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    found = FakeCluster()
    await found.start(2)
    yield found
    await found.stop()


def admin(cluster: FakeCluster, **settings: Any) -> Admin:
    servers = f"127.0.0.1:{cluster.nodes[1].port}"
    return Admin(bootstrap_servers=servers, **{**QUICK, **settings})


async def test_topics_are_made_listed_described_and_deleted(cluster: FakeCluster) -> None:
    async with admin(cluster) as each:
        await each.create_topics(
            [NewTopic("b", 2, topic_configs={"retention.ms": "5"}), NewTopic("a")]
        )
        assert await each.list_topics() == ["a", "b"]
        second, first = await each.describe_topics(["b", "a"])
        assert [len(topic.partitions) for topic in (first, second)] == [1, 2]
        assert (second.name, second.partitions[1].partition) == ("b", 1)
        assert second.partitions[0].leader_id == 1
        configs = await each.describe_configs(["a", "b"])
        assert configs["b"]["retention.ms"].value == "5"
        await each.delete_topics(["a"])
        assert await each.list_topics() == ["b"]


async def test_more_topics_than_fit_a_request_are_sent_in_parts(cluster: FakeCluster) -> None:
    names = [f"t-{number:03d}" for number in range(2 * TOPICS_PER_REQUEST + 1)]
    async with admin(cluster) as each:
        await each.create_topics([NewTopic(name) for name in names])
        assert await each.list_topics() == names
        assert [topic.name for topic in await each.describe_topics(names)] == names
        assert list(await each.describe_configs(names)) == names
        await each.delete_topics(names)
    for api, field in (
        (m.CREATE_TOPICS, "topics"),
        (m.DELETE_TOPICS, "names"),
        (m.DESCRIBE_CONFIGS, "topics"),
    ):
        sizes = [len(getattr(call.request, field)) for call in cluster.calls_of(api)]
        assert sizes == [TOPICS_PER_REQUEST, TOPICS_PER_REQUEST, 1]


async def test_the_first_topic_that_fails_is_the_error(cluster: FakeCluster) -> None:
    cluster.add_topic("there")
    async with admin(cluster) as each:
        with pytest.raises(TopicAlreadyExistsError, match="told so"):
            await each.create_topics([NewTopic("new"), NewTopic("there")])
        assert await each.list_topics() == ["new", "there"]
        with pytest.raises(UnknownTopicOrPartitionError):
            await each.delete_topics(["nowhere"])
        with pytest.raises(UnknownTopicOrPartitionError, match="nowhere"):
            await each.describe_topics(["there", "nowhere"])
        with pytest.raises(UnknownTopicOrPartitionError):
            await each.describe_configs(["nowhere"])


async def test_validate_only_makes_nothing(cluster: FakeCluster) -> None:
    async with admin(cluster) as each:
        await each.create_topics([NewTopic("t")], validate_only=True)
        assert await each.list_topics() == []
    (call,) = cluster.calls_of(m.CREATE_TOPICS)
    assert call.request.validate_only


async def test_assignments_are_told_instead_of_numbers(cluster: FakeCluster) -> None:
    async with admin(cluster) as each:
        await each.create_topics([NewTopic("t", replica_assignments={1: [2], 0: [1]})])
        with pytest.raises(InvalidReplicaAssignmentError, match="not both"):
            await each.create_topics([NewTopic("u", 2, replica_assignments={0: [1]})])
    (call,) = cluster.calls_of(m.CREATE_TOPICS)
    (sent,) = call.request.topics
    assert sent.assignments == (m.ReplicaAssignment(0, (1,)), m.ReplicaAssignment(1, (2,)))
    assert (sent.num_partitions, sent.replication_factor) == (-1, -1)


async def test_a_controller_that_moves_is_followed(cluster: FakeCluster) -> None:
    def move(call: Call) -> bool:
        if call.api is m.CREATE_TOPICS:
            cluster.controller_id = 2
            if call.node.node_id == 1:
                call.refuse(Code.NOT_CONTROLLER, "broker 2 is")
                return True
        return False

    cluster.script = move
    async with admin(cluster) as each:
        await each.create_topics([NewTopic("t")])
        assert (await each.describe_cluster()).controller_id == 2
    assert [call.node.node_id for call in cluster.calls_of(m.CREATE_TOPICS)] == [1, 2]


async def test_a_creation_whose_answer_is_lost_is_not_sent_twice(cluster: FakeCluster) -> None:
    def lose(call: Call) -> bool:
        if call.api is m.CREATE_TOPICS:
            call.drop()
            return True
        return False

    cluster.script = lose
    async with admin(cluster) as each:
        with pytest.raises(ConnectionLostError):
            await each.create_topics([NewTopic("t")])
    assert len(cluster.calls_of(m.CREATE_TOPICS)) == 1


async def test_offsets_come_from_the_leaders_wherever_they_move(cluster: FakeCluster) -> None:
    logs = cluster.add_topic("t", 2)
    fill(logs[0], b"a", b"b", b"c")
    logs[0].start_offset = 1
    logs[1].leader_id = 2
    fill(logs[1], b"a")
    t0, t1 = TopicPartition("t", 0), TopicPartition("t", 1)
    async with admin(cluster) as each:
        found = await each.list_offsets({t0: OffsetSpec.EARLIEST, t1: OffsetSpec.LATEST})
        assert (found[t0].offset, found[t1].offset) == (1, 1)
        assert (await each.list_offsets({t0: 1_002}))[t0][:2] == (2, 1_002)
        logs[0].leader_id, logs[0].leader_epoch = 2, 1
        assert (await each.list_offsets({t0: OffsetSpec.LATEST}))[t0].offset == 3
        with pytest.raises(UnknownTopicOrPartitionError, match="no partition 5"):
            await each.list_offsets({TopicPartition("t", 5): OffsetSpec.LATEST})
        logs[0].leader_id, logs[0].leader_epoch = -1, 2
        with pytest.raises((LeaderNotAvailableError, Error)):
            await each.list_offsets({t0: OffsetSpec.LATEST}, timeout=0.05)


async def test_the_cluster_is_described(cluster: FakeCluster) -> None:
    async with admin(cluster) as each:
        found = await each.describe_cluster()
    assert (found.cluster_id, found.controller_id) == ("fake", 1)
    assert {(b.node_id, b.port) for b in found.brokers} == {
        (node.node_id, node.port) for node in cluster.nodes.values()
    }


async def test_every_call_keeps_its_time_limit(cluster: FakeCluster) -> None:
    cluster.add_topic("t")
    async with admin(cluster) as each:
        cluster.script = lambda call: call.api.key != 18  # nobody answers any more
        for call in (
            lambda: each.list_topics(timeout=0.01),
            lambda: each.describe_topics(["t"], timeout=0.01),
            lambda: each.describe_configs(["t"], timeout=0.01),
            lambda: each.describe_cluster(timeout=0.01),
            lambda: each.create_topics([NewTopic("u")], timeout=0.01),
            lambda: each.delete_topics(["t"], timeout=0.01),
        ):
            with pytest.raises((RequestTimeoutError, ConnectionLostError)):
                await call()
    with pytest.raises(ConnectionClosedError):
        await each.list_topics()
    with pytest.raises(Error):
        await admin(cluster).start(timeout=0.01)
