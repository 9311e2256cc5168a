"""Metadata and connections that the three clients share, against scripted brokers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from duolog.clock import SystemClock
from duolog.cluster_client import ClusterClient, ClusterSettings
from duolog_protocol import broker_messages as m
from duolog_protocol.apis import API_VERSIONS, ApiVersionsResponse
from duolog_protocol.error_codes import KafkaErrorCode as Code
from duolog_protocol.errors import (
    ConnectionClosedError,
    ConnectionLostError,
    InvalidTopicError,
    RequestTimeoutError,
)
from tests.support import until
from tests.unit.client.fake_broker import Call, FakeCluster

SETTINGS = ClusterSettings("test", 5_000, 1, 5, 300_000, 5_000, 1, 5)


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    found = FakeCluster()
    await found.start(3)
    yield found
    await found.stop()


def client(cluster: FakeCluster, settings: ClusterSettings = SETTINGS) -> ClusterClient:
    return ClusterClient(
        [("127.0.0.1", node.port) for node in cluster.nodes.values()],
        settings,
        owner="test",
        allow_auto_topic_creation=False,
        clock=SystemClock(),
        rng=random.Random(1),
        on_change=lambda: None,
    )


async def test_any_bootstrap_server_will_do(cluster: FakeCluster) -> None:
    await cluster.nodes[1].stop()
    await cluster.nodes[2].stop()
    each = client(cluster)
    await each.start()
    assert sorted(each.metadata.brokers) == [1, 2, 3]
    await each.stop()
    with pytest.raises(ConnectionClosedError):
        each.check()


async def test_a_request_to_any_broker_goes_on_to_the_next_one(cluster: FakeCluster) -> None:
    each = client(cluster)
    await each.start()
    deaf = {1, 2}

    def drop(call: Call) -> bool:
        if call.api is m.INIT_PRODUCER_ID and call.node.node_id in deaf:
            call.drop()
            return True
        return False

    cluster.script = drop
    request = m.InitProducerIdRequest(None, -1, -1, -1)
    for _ in range(3):
        assert (await each.call_any(m.INIT_PRODUCER_ID, request)).producer_id > 0
    deaf.add(3)
    with pytest.raises(ConnectionLostError):
        await each.call_any(m.INIT_PRODUCER_ID, request)
    cluster.script = lambda call: call.api is m.INIT_PRODUCER_ID
    with pytest.raises(RequestTimeoutError):
        await each.call_any(m.INIT_PRODUCER_ID, request, timeout_ms=10)
    await each.stop()


async def test_a_broker_that_hangs_leaves_time_for_the_next_one(cluster: FakeCluster) -> None:
    first = list(cluster.nodes.values())[:2]
    cluster.script = lambda call: call.node in first
    each = client(cluster)
    await each.start(timeout=3)
    assert sorted(each.metadata.brokers) == [1, 2, 3]
    await each.stop()


async def test_a_refusal_for_good_is_not_asked_of_the_others(cluster: FakeCluster) -> None:
    each = client(cluster)
    await each.start()

    def refuse(call: Call) -> bool:
        if call.api is m.DESCRIBE_CONFIGS:
            call.refuse(Code.INVALID_TOPIC_EXCEPTION, "no")
            return True
        return False

    cluster.script = refuse
    with pytest.raises(InvalidTopicError):
        await each.call_any(m.DESCRIBE_CONFIGS, m.DescribeConfigsRequest(("t",)))
    assert len(cluster.calls_of(m.DESCRIBE_CONFIGS)) == 1
    await each.stop()


async def test_a_topic_is_waited_for_until_it_is_there(cluster: FakeCluster) -> None:
    each = client(cluster)
    await each.start()
    waiting = asyncio.ensure_future(each.topic("t", 20_000))
    await until(lambda: len(cluster.calls_of(m.METADATA)) >= 3)
    assert not waiting.done()
    cluster.add_topic("t", 2)
    assert list((await waiting).partitions) == [0, 1]
    await each.stop()


async def test_those_who_ask_at_the_same_time_share_one_answer(cluster: FakeCluster) -> None:
    each = client(cluster)
    await each.start()
    before = len(cluster.calls_of(m.METADATA))
    await asyncio.gather(*[each.refreshed() for _ in range(50)])
    assert len(cluster.calls_of(m.METADATA)) <= before + 2
    await each.stop()


async def test_metadata_that_is_old_is_renewed_unasked(cluster: FakeCluster) -> None:
    each = client(cluster, SETTINGS._replace(metadata_max_age_ms=5))
    await each.start()
    await until(lambda: len(cluster.calls_of(m.METADATA)) >= 4)
    await each.stop()


async def test_another_service_on_the_port_is_named(cluster: FakeCluster) -> None:
    def impostor(call: Call) -> bool:
        if call.api is API_VERSIONS:
            call.reply(ApiVersionsResponse("zkserver", "0", (), (), 1 << 20))
            return True
        return False

    cluster.script = impostor
    each = client(cluster, SETTINGS._replace(request_timeout_ms=1_000))
    with pytest.raises((ConnectionLostError, RequestTimeoutError), match=r"'zkserver'|no answer"):
        await each.start()
    await each.stop()


async def test_a_peer_that_takes_and_drops_connections_is_not_hammered(
    cluster: FakeCluster,
) -> None:
    await cluster.nodes[2].stop()
    await cluster.nodes[3].stop()
    cluster.script = lambda call: call.drop() is None
    each = client(cluster, SETTINGS._replace(reconnect_backoff_ms=20, reconnect_backoff_max_ms=20))
    with pytest.raises((ConnectionLostError, RequestTimeoutError)):
        await each.start(timeout=0.1)
    assert 1 <= len(cluster.calls_of(API_VERSIONS)) <= 10
    await each.stop()
