"""A whole cluster in this process: real sockets and files, servers killed and started again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from duolog import (
    Admin,
    Consumer,
    NewTopic,
    Producer,
    SessionState,
    TopicPartition,
    ZkClient,
)
from duolog_cluster.cluster import Cluster
from duolog_protocol.errors import (
    BrokerNotAvailableError,
    InvalidConfigError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from tests.support import until


async def consume_all(cluster: Cluster, topic: str, partitions: int = 1) -> list[bytes | None]:
    found: list[bytes | None] = []
    async with Consumer(bootstrap_servers=cluster.bootstrap_servers) as consumer:
        wanted = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(wanted)
        await consumer.seek_to_beginning(*wanted)
        ends = await consumer.end_offsets(wanted)
        while any([await consumer.position(each) < ends[each] for each in wanted]):
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                found += [record.value for record in records]
    return found


async def test_the_pair_registers_in_zookeeper_as_kafka_does() -> None:
    async with asyncio.timeout(30), Cluster() as cluster, ZkClient(cluster.zookeeper) as zk:
        (broker_id,) = await zk.get_children("/brokers/ids")
        data, stat = await zk.get(f"/brokers/ids/{broker_id}")
        assert b'"version":5' in (data or b"")
        assert stat.ephemeral_owner != 0
        controller, _ = await zk.get("/controller")
        assert f'"brokerid":{broker_id}'.encode() in (controller or b"")
        assert (await zk.get("/controller_epoch"))[0] == b"1"


async def test_topics_are_made_described_and_deleted_with_clear_errors() -> None:
    async with asyncio.timeout(30), Cluster() as cluster:
        async with Admin(bootstrap_servers=cluster.bootstrap_servers) as admin:
            await admin.create_topics([NewTopic("a", 3, topic_configs={"retention.ms": "60000"})])
            (topic,) = await admin.describe_topics(["a"])
            assert [each.partition for each in topic.partitions] == [0, 1, 2]
            assert {each.leader_id for each in topic.partitions} == {1001}
            configs = await admin.describe_configs(["a"])
            assert configs["a"]["retention.ms"].value == "60000"
            with pytest.raises(TopicAlreadyExistsError):
                await admin.create_topics([NewTopic("a")])
            with pytest.raises(InvalidTopicError, match="letters"):
                await admin.create_topics([NewTopic("no good")])
            with pytest.raises(InvalidReplicationFactorError):
                await admin.create_topics([NewTopic("b", 1, 2)])
            with pytest.raises(InvalidConfigError, match="nearest one is segment"):
                await admin.create_topics([NewTopic("b", topic_configs={"segment.byte": "1"})])
            assert await admin.list_topics() == ["a"]
            await admin.delete_topics(["a"])
            assert await admin.list_topics() == []
            with pytest.raises(UnknownTopicOrPartitionError):
                await admin.delete_topics(["a"])
        async with ZkClient(cluster.zookeeper) as zk:
            assert await zk.get_children("/brokers/topics") == []
            assert await zk.get_children("/admin/delete_topics") == []


async def test_records_and_znodes_survive_the_death_of_everything() -> None:
    async with asyncio.timeout(60), Cluster() as cluster:
        async with Producer(bootstrap_servers=cluster.bootstrap_servers) as producer:
            for index in range(50):
                await producer.send_and_wait("events", b"%d" % index, key=b"k")
        async with ZkClient(cluster.zookeeper) as zk:
            await zk.create("/mine", b"kept")
        await cluster.kill(cluster.brokers[0])
        await cluster.kill(cluster.zk)
        await cluster.start_zk()
        await cluster.start_broker(cluster.brokers[0])
        async with ZkClient(cluster.zookeeper) as zk:
            assert (await zk.get("/mine"))[0] == b"kept"
        assert await consume_all(cluster, "events") == [b"%d" % index for index in range(50)]


async def test_a_producer_rides_over_the_death_of_its_broker_without_loss_or_doubles() -> None:
    async with asyncio.timeout(60), Cluster() as cluster:
        async with Producer(
            bootstrap_servers=cluster.bootstrap_servers, linger_ms=1, retry_backoff_ms=5
        ) as producer:
            futures = [await producer.send("events", b"%d" % index) for index in range(200)]
            await cluster.kill(cluster.brokers[0])
            futures += [await producer.send("events", b"%d" % index) for index in range(200, 400)]
            await cluster.start_broker(cluster.brokers[0])
            await producer.flush()
            offsets = [future.result().offset for future in futures]
        assert offsets == list(range(400))
        assert await consume_all(cluster, "events") == [b"%d" % index for index in range(400)]


async def test_a_broker_serves_while_zkserver_is_away_and_registers_again_after_expiry() -> None:
    settings = {"zookeeper_session_timeout_ms": 1_000}
    async with (
        asyncio.timeout(60),
        Cluster(zk_settings={"tick_ms": 100}, broker_settings=settings) as cluster,
        Admin(bootstrap_servers=cluster.bootstrap_servers, request_timeout_ms=200) as admin,
    ):
        broker = cluster.brokers[0]
        quick = {"retry_backoff_ms": 5, "retry_backoff_max_ms": 20}
        async with Producer(bootstrap_servers=cluster.bootstrap_servers, **quick) as producer:
            await producer.send_and_wait("events", b"before")
            epoch = broker.server.replicas.broker_epoch
            await cluster.kill(cluster.zk)
            await producer.send_and_wait("events", b"without zkserver")
            seen = [b"before", b"without zkserver"]
            assert await consume_all(cluster, "events") == seen
            with pytest.raises(BrokerNotAvailableError):
                await admin.create_topics([NewTopic("impossible")])
            await until(lambda: "session_expired" in broker.log.events)
            refused = asyncio.ensure_future(producer.send_and_wait("events", b"after"))
            assert await consume_all(cluster, "events") == seen  # what it has, it still serves
            with pytest.raises(BrokerNotAvailableError):
                await admin.create_topics([NewTopic("impossible")])
            assert not refused.done()
            await cluster.start_zk()
            await broker.server.control.registered.wait()
            assert broker.server.replicas.broker_epoch > epoch
            await refused
        assert await consume_all(cluster, "events") == [*seen, b"after"]
        async with Admin(bootstrap_servers=cluster.bootstrap_servers) as admin_again:
            await admin_again.create_topics([NewTopic("possible")])
            assert await admin_again.list_topics() == ["events", "possible"]


async def test_a_broker_that_is_killed_comes_back_at_once_not_after_the_session_timeout() -> None:
    async with (
        asyncio.timeout(30),
        Cluster(broker_settings={"zookeeper_session_timeout_ms": 40_000}) as cluster,
    ):
        broker = cluster.brokers[0]
        await cluster.kill(broker)
        await cluster.start_broker(broker)
        assert "former_session_closed" in broker.log.events
        assert broker.server.control.registered.is_set()


async def test_a_client_hears_of_suspension_and_of_the_return() -> None:
    async with asyncio.timeout(30), Cluster(brokers=0) as cluster:
        states: list[SessionState] = []
        async with ZkClient(cluster.zookeeper) as zk:
            zk.add_listener(states.append)
            await zk.create("/e", ephemeral=True)
            await cluster.kill(cluster.zk)
            await zk.wait_for(SessionState.SUSPENDED)
            await cluster.start_zk()
            await zk.wait_for(SessionState.CONNECTED)
            assert await zk.exists("/e") is not None
        assert states[:2] == [SessionState.SUSPENDED, SessionState.CONNECTED]


async def test_data_can_be_kept_in_a_directory_of_the_callers(tmp_path: Path) -> None:
    async def send_one(value: bytes) -> int:
        async with asyncio.timeout(30), Cluster(data=str(tmp_path)) as cluster:
            producer = Producer(bootstrap_servers=cluster.bootstrap_servers)
            async with producer:
                return (await producer.send_and_wait("kept", value)).offset

    assert [await send_one(b"a"), await send_one(b"b")] == [0, 1]


async def test_the_broker_tells_its_metrics() -> None:
    async with asyncio.timeout(30), Cluster(broker_settings={"metrics_port": 0}) as cluster:
        broker = cluster.brokers[0]
        (port,) = [
            values["port"] for _, event, values in broker.log.records if event == "metrics_served"
        ]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        assert "200 OK" in text
        assert "active_controller_count 1.0" in text
        assert "requests_total" in text
