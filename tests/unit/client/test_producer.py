"""The producer against scripted brokers on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from duolog.core.delivery_errors import BufferFullError, DeliveryUnknownError
from duolog.producer import Producer
from duolog_protocol import broker_messages as m
from duolog_protocol.error_codes import KafkaErrorCode as Code
from duolog_protocol.errors import (
    ConfigError,
    ConnectionClosedError,
    InvalidRecordError,
    InvalidTopicError,
    MessageTooLargeError,
    RequestTimeoutError,
    TransportError,
    UnknownTopicOrPartitionError,
)
from duolog_protocol.partitioning import partition_for_key
from tests.support import until
from tests.unit.client.fake_broker import Call, FakeCluster

QUICK: dict[str, Any] = {
    "retry_backoff_ms": 1,
    "retry_backoff_max_ms": 5,
    "reconnect_backoff_ms": 1,
    "reconnect_backoff_max_ms": 5,
}


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    found = FakeCluster()
    await found.start(2)
    async with asyncio.timeout(20):
        yield found
    await found.stop()


def producer(cluster: FakeCluster, **settings: Any) -> Producer:
    return Producer(bootstrap_servers=f"127.0.0.1:{cluster.nodes[1].port}", **{**QUICK, **settings})


def numbers(count: int) -> list[bytes]:
    return [b"%d" % n for n in range(count)]


async def test_records_come_back_as_the_offsets_where_they_lie(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    async with producer(cluster) as each:
        futures = [await each.send("t", value) for value in numbers(500)]
        metadata = await asyncio.gather(*futures)
    assert [found.offset for found in metadata] == list(range(500))
    assert metadata[7].topic_partition == ("t", 0)
    assert metadata[7].timestamp == log.records()[7].timestamp
    assert log.values == numbers(500)


async def test_everything_about_a_record_arrives(cluster: FakeCluster) -> None:
    logs = cluster.add_topic("t", 3)
    headers = [("a", b"1"), ("b", None)]
    async with producer(cluster) as each:
        found = await each.send_and_wait("t", b"v", b"k", 2, 1234, headers)
        await each.send_and_wait("t", None, bytearray(b"k2"), 2)
    first, second = logs[2].records()
    assert (first.key, first.value, first.timestamp) == (b"k", b"v", 1234)
    assert first.headers == (("a", b"1"), ("b", None))
    assert (second.key, second.value) == (b"k2", None)
    assert (found.partition, found.offset, found.timestamp) == (2, 0, 1234)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_batches_hold_the_same_records(cluster: FakeCluster, codec: str) -> None:
    [log] = cluster.add_topic("t")
    async with producer(cluster, compression_type=codec) as each:
        for value in numbers(300):
            await each.send("t", value * 10)
    assert log.values == [value * 10 for value in numbers(300)]


async def test_a_key_stays_on_its_partition_and_records_without_key_spread(
    cluster: FakeCluster,
) -> None:
    logs = cluster.add_topic("t", 4)
    async with producer(cluster, batch_size=500) as each:
        for n in range(50):
            for value in (b"first", b"second"):
                await each.send("t", value, b"key-%d" % n)
        await each.flush()
        keyed = [log.records() for log in logs]
        for _ in range(400):
            await each.send("t", b"x" * 20)
    for partition, records in enumerate(keyed):
        assert {partition_for_key(record.key, 4) for record in records} == {partition}
    assert sum(len(records) for records in keyed) == 100
    assert all(len(log.values) > len(before) for log, before in zip(logs, keyed, strict=True))


async def test_serializers_and_a_partitioner_of_the_caller(cluster: FakeCluster) -> None:
    logs = cluster.add_topic("t", 2)

    def last(key: bytes | None, everything: list[int], with_leader: list[int]) -> int:
        assert key == b"5" and with_leader == everything
        return everything[-1]

    async with producer(
        cluster,
        partitioner=last,
        key_serializer=lambda key: str(key).encode(),
        value_serializer=str.encode,
    ) as each:
        await each.send_and_wait("t", "text", 5)
    assert [(record.key, record.value) for record in logs[1].records()] == [(b"5", b"text")]


async def test_a_lost_answer_is_asked_for_again_and_nothing_is_stored_twice(
    cluster: FakeCluster,
) -> None:
    """The broker stores the batch and the connection ends before its answer."""
    [log] = cluster.add_topic("t")
    losses = 3

    def lose(call: Call) -> bool:
        nonlocal losses
        if call.api is m.PRODUCE and losses:
            losses -= 1
            log.append(bytes(call.request.partitions[0].records))
            call.drop()
            return True
        return False

    cluster.script = lose
    async with producer(cluster) as each:
        futures = [await each.send("t", value) for value in numbers(20)]
        assert [(await future).offset for future in futures] == list(range(20))
    assert log.values == numbers(20)
    assert log.duplicates >= 1


async def test_a_new_leader_is_followed(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    async with producer(cluster) as each:
        await each.send_and_wait("t", b"before")
        log.leader_id, log.leader_epoch = 2, 1
        found = await each.send_and_wait("t", b"after")
    assert found.offset == 1
    assert log.values == [b"before", b"after"]
    assert any(call.node.node_id == 2 for call in cluster.calls_of(m.PRODUCE))


async def test_five_requests_are_under_way_and_order_survives_a_refusal(
    cluster: FakeCluster,
) -> None:
    [log] = cluster.add_topic("t")
    held: list[Call] = []
    async with producer(cluster, batch_size=100, linger_ms=0) as each:
        await each.send_and_wait("t", b"first")
        cluster.script = lambda call: call.api is m.PRODUCE and not held.append(call)
        futures = [await each.send("t", b"%04d" % n + b"x" * 90) for n in range(12)]
        await until(lambda: len(held) == 5)
        cluster.script = None
        held[0].refuse_partitions(Code.NOT_ENOUGH_REPLICAS)
        for call in held[1:]:
            call.serve()
        await asyncio.gather(*futures)
    assert [value[:4] for value in log.values[1:]] == [b"%04d" % n for n in range(12)]


async def test_a_refused_record_fails_alone_with_its_own_error(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    async with producer(cluster) as each:
        await each.send_and_wait("t", b"0")
        cluster.script = lambda call: (
            call.api is m.PRODUCE and call.refuse_partitions(Code.INVALID_RECORD) is None
        )
        with pytest.raises(InvalidRecordError) as caught:
            await each.send_and_wait("t", b"bad")
        assert caught.value.definite
        cluster.script = None
        assert (await each.send_and_wait("t", b"1")).offset == 1
    assert log.values == [b"0", b"1"]


async def test_a_batch_too_large_for_the_topic_is_split(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")

    def at_most_400(call: Call) -> bool:
        if call.api is m.PRODUCE and len(call.request.partitions[0].records) > 400:
            call.refuse_partitions(Code.MESSAGE_TOO_LARGE)
            return True
        return False

    cluster.script = at_most_400
    async with producer(cluster) as each:
        futures = [await each.send("t", value + b"x" * 50) for value in numbers(40)]
        await each.flush()
        with pytest.raises(MessageTooLargeError):
            await each.send_and_wait("t", b"x" * 500)
    assert [(await future).offset for future in futures] == list(range(40))
    assert log.values == [value + b"x" * 50 for value in numbers(40)]


async def test_a_delivery_that_times_out_unanswered_is_of_unknown_fate(
    cluster: FakeCluster,
) -> None:
    """Its number is left behind with its epoch: the next record is stored under a new one."""
    [log] = cluster.add_topic("t")
    async with producer(
        cluster, linger_ms=0, request_timeout_ms=400, delivery_timeout_ms=600
    ) as each:
        await each.send_and_wait("t", b"0")
        held: list[Call] = []
        cluster.script = lambda call: call.api is m.PRODUCE and not held.append(call)
        with pytest.raises(RequestTimeoutError) as caught:
            await each.send_and_wait("t", b"lost")
        assert not caught.value.definite
        cluster.script = None
        future = None
        while future is None or future.exception() is not None:
            future = await each.send("t", b"1")
            await asyncio.wait([future])
        held[0].serve()  # comes through at last: its epoch is over
    assert log.values == [b"0", b"1"]
    assert log.batches[-1][0].producer_epoch >= 1


async def test_requests_already_sent_keep_their_bytes_when_the_batch_expires(
    cluster: FakeCluster,
) -> None:
    """CVE-2026-35554: the buffer of an expired batch must not be filled with another topic's."""
    cluster.add_topic("secret")
    cluster.add_topic("public")
    held: list[Call] = []
    cluster.script = lambda call: call.api is m.PRODUCE and not held.append(call)
    async with producer(
        cluster, linger_ms=0, request_timeout_ms=30, delivery_timeout_ms=40
    ) as each:
        first = await each.send("public", b"p" * 100)
        await asyncio.wait([first])
        others = [await each.send("secret", b"s" * 100) for _ in range(20)]
        await asyncio.wait(others)
        for call in held:
            for part in call.request.partitions:
                letter = part.topic[:1].encode()
                assert bytes(part.records).count(letter * 100) >= 1
        assert isinstance(first.exception(), RequestTimeoutError)
        assert all(other.exception() is not None for other in others)


async def test_acks_0_gets_no_answer_and_no_offset(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    async with producer(cluster, acks=0) as each:
        found = [await (await each.send("t", value)) for value in numbers(3)]
        await until(lambda: len(log.values) == 3)
    assert [each.offset for each in found] == [-1, -1, -1]
    assert log.batches[0][0].producer_id == -1


async def test_with_acks_0_one_record_after_the_other_lets_the_loop_turn(
    cluster: FakeCluster,
) -> None:
    cluster.add_topic("t")
    loop = asyncio.get_running_loop()
    async with producer(cluster, acks=0) as each:
        await each.send_and_wait("t", b"x")  # from here on there is a connection
        turned: list[bytes] = []
        for value in numbers(10):
            loop.call_soon(turned.append, value)
            await each.send_and_wait("t", value)
        assert turned == numbers(10)


async def test_acks_1_travels_as_such(cluster: FakeCluster) -> None:
    cluster.add_topic("t")
    async with producer(cluster, acks=1) as each:
        await each.send_and_wait("t", b"x")
    assert cluster.calls_of(m.PRODUCE)[0].request.acks == 1


async def test_a_full_buffer_makes_send_wait_then_fail_clearly(cluster: FakeCluster) -> None:
    cluster.add_topic("t")
    held: list[Call] = []
    cluster.script = lambda call: call.api is m.PRODUCE and not held.append(call)
    async with producer(
        cluster, batch_size=1000, buffer_memory=2000, max_block_ms=30, linger_ms=0
    ) as each:
        taken = [await each.send("t", b"x" * 900) for _ in range(2)]
        with pytest.raises(BufferFullError, match="no room within the time limit") as caught:
            await each.send("t", b"x" * 900)
        assert caught.value.definite
        cluster.script = None
        waiting = asyncio.ensure_future(each.send("t", b"y" * 900))
        await until(lambda: len(held) == 1)
        held[0].serve()
        assert (await (await waiting)).offset == 2
        assert [(await future).offset for future in taken] == [0, 1]


async def test_cancelling_never_withdraws_a_record_that_was_taken(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    held: list[Call] = []
    cluster.script = lambda call: call.api is m.PRODUCE and not held.append(call)
    async with producer(cluster) as each:
        waiting = asyncio.ensure_future(each.send_and_wait("t", b"0"))
        await until(lambda: bool(held))
        waiting.cancel()
        future = await each.send("t", b"1")
        future.cancel()
        cluster.script = None
        held[0].serve()
        assert (await each.send_and_wait("t", b"2")).offset == 2
    assert log.values == [b"0", b"1", b"2"]


async def test_flush_waits_for_all_and_says_when_it_takes_too_long(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    held: list[Call] = []
    async with producer(cluster, linger_ms=10_000) as each:
        futures = [await each.send("t", value) for value in numbers(10)]
        await each.flush()
        assert all(future.done() for future in futures)
        await each.flush()
        cluster.script = lambda call: call.api is m.PRODUCE and not held.append(call)
        await each.send("t", b"10")
        with pytest.raises(RequestTimeoutError):
            await each.flush(timeout=0.01)
        cluster.script = None
        await until(lambda: bool(held))
        held[0].serve()
    assert log.values == numbers(11)


async def test_a_caller_that_never_waits_does_not_starve_the_sender(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    async with producer(cluster, linger_ms=60_000, buffer_memory=1 << 16) as each:
        for value in numbers(10_000):
            await each.send("t", value * 5)
        assert len(log.values) > 1000
    assert len(log.values) == 10_000


async def test_wrong_calls_get_clear_errors(cluster: FakeCluster) -> None:
    cluster.add_topic("t")
    each = producer(cluster, max_block_ms=30)
    with pytest.raises(ConnectionClosedError, match="not started"):
        await each.send("t", b"x")
    async with each:
        with pytest.raises(TypeError, match="value must be bytes"):
            await each.send("t", "text")
        with pytest.raises(TypeError, match="header must be str"):
            await each.send("t", b"x", headers=[(b"a", b"1")])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="partitions 0 to 0, not 3"):
            await each.send("t", b"x", partition=3)
        with pytest.raises(MessageTooLargeError, match="over the limit"):
            await each.send("t", b"x" * (1 << 20))
        with pytest.raises(UnknownTopicOrPartitionError, match="'nowhere' was not there"):
            await each.send("nowhere", b"x")
        with pytest.raises(InvalidTopicError):
            await each.send("!bad", b"x")
        assert await each.partitions_for("t") == {0}
    with pytest.raises(ConnectionClosedError, match="was stopped"):
        await each.send("t", b"x")


@pytest.mark.parametrize(
    "settings",
    [
        {"acks": 2},
        {"acks": 1, "enable_idempotence": True},
        {"enable_idempotence": True, "max_in_flight_requests_per_connection": 6},
        {"compression_type": "rar"},
        {"linger_ms": -1},
        {"delivery_timeout_ms": 10},
        {"bootstrap_servers": "nowhere:port"},
        {"buffer_memory": 10},
    ],
)
def test_a_wrong_setting_names_itself(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Producer(**settings)
    assert caught.value.field in settings


async def test_no_broker_at_all_is_a_clear_error_and_leaves_nothing_behind() -> None:
    cluster = FakeCluster()
    await cluster.start()
    await cluster.stop()
    each = producer(cluster, request_timeout_ms=200, delivery_timeout_ms=300)
    with pytest.raises(TransportError, match=r"cannot connect|no answer"):
        await each.start()
    assert len(asyncio.all_tasks()) == 1


async def test_stopping_leaves_no_task_and_no_connection(cluster: FakeCluster) -> None:
    cluster.add_topic("t")
    before = asyncio.all_tasks()
    each = producer(cluster)
    await each.start()
    await each.send("t", b"x")
    await each.stop()
    await each.stop()
    assert asyncio.all_tasks() == before
    await until(lambda: not any(node.links for node in cluster.nodes.values()))


async def test_giving_up_a_stop_fails_what_is_under_way(cluster: FakeCluster) -> None:
    cluster.add_topic("t")
    held: list[Call] = []
    cluster.script = lambda call: call.api is m.PRODUCE and not held.append(call)
    each = producer(cluster)
    await each.start()
    future = await each.send("t", b"x")
    stopping = asyncio.ensure_future(each.stop())
    await until(lambda: bool(held))
    stopping.cancel()
    await asyncio.wait([stopping])
    assert isinstance(future.exception(), DeliveryUnknownError)


async def test_the_broker_returns_and_everything_goes_on(cluster: FakeCluster) -> None:
    logs = cluster.add_topic("t", 2)
    async with producer(cluster) as each:
        await each.send_and_wait("t", b"0", partition=0)
        await cluster.nodes[1].stop()
        futures = [await each.send("t", b"%d" % n, partition=n % 2) for n in range(1, 50)]
        await asyncio.sleep(0)
        await cluster.nodes[1].start()
        await asyncio.gather(*futures)
    assert sorted(logs[0].values + logs[1].values) == sorted(numbers(50))


async def test_the_calls_keep_their_time_limit(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    each = producer(cluster)
    await each.start(timeout=20)
    with pytest.raises(UnknownTopicOrPartitionError, match="not there within"):
        await each.send("nowhere", b"x", timeout=0.01)
    with pytest.raises(UnknownTopicOrPartitionError):
        await each.partitions_for("nowhere", timeout=0.01)
    cluster.script = lambda call: call.api is m.PRODUCE  # nobody answers
    with pytest.raises(RequestTimeoutError, match="no outcome within"):
        await each.send_and_wait("t", b"a", timeout=0.01)
    future = await each.send("t", b"b", timeout=20)
    with pytest.raises(RequestTimeoutError, match="not all was delivered"):
        await each.stop(timeout=0.01)
    with pytest.raises((ConnectionClosedError, DeliveryUnknownError)):
        await future  # it may have been sent
    with pytest.raises(ConnectionClosedError):
        await each.send("t", b"c")
    assert log.values == []


async def test_a_record_whose_time_limit_ran_out_is_delivered_all_the_same(
    cluster: FakeCluster,
) -> None:
    [log] = cluster.add_topic("t")
    held: list[Call] = []

    def hold(call: Call) -> bool:
        if call.api is m.PRODUCE:
            held.append(call)
        return call.api is m.PRODUCE

    cluster.script = hold
    async with producer(cluster) as each:
        with pytest.raises(RequestTimeoutError):
            await each.send_and_wait("t", b"kept", timeout=0.01)
        await until(lambda: bool(held))
        cluster.script = None
        held[0].serve()
        await each.flush(timeout=20)
    assert log.values == [b"kept"]
