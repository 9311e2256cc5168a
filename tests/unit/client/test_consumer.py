"""The consumer against scripted brokers on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from duolog.consumer import Consumer
from duolog.core.delivery_errors import NoOffsetForPartitionError, RecordDecodeError
from duolog.values import ConsumerRecord, OffsetAndTimestamp
from duolog_protocol import broker_messages as m
from duolog_protocol.error_codes import KafkaErrorCode as Code
from duolog_protocol.errors import (
    ConfigError,
    ConnectionClosedError,
    Error,
    InvalidTopicError,
    LeaderNotAvailableError,
    OffsetOutOfRangeError,
    RequestTimeoutError,
    UnknownTopicOrPartitionError,
)
from duolog_protocol.records import BatchBuilder
from duolog_protocol.types import TopicPartition
from tests.support import until
from tests.unit.client.fake_broker import Call, FakeCluster, FakePartition
from tests.unit.client.test_producer import QUICK

T0 = TopicPartition("t", 0)


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    found = FakeCluster()
    await found.start(2)
    yield found
    await found.stop()


def consumer(cluster: FakeCluster, *topics: str, **settings: Any) -> Consumer:
    servers = f"127.0.0.1:{cluster.nodes[1].port}"
    settings = {**QUICK, "auto_offset_reset": "earliest", "fetch_max_wait_ms": 5_000, **settings}
    return Consumer(*topics, bootstrap_servers=servers, **settings)


def fill(log: FakePartition, *values: bytes, first_ms: int = 1_000) -> None:
    """One batch for each value, a millisecond apart."""
    for value in values:
        builder = BatchBuilder()
        builder.append(first_ms + log.end_offset, b"k", value)
        log.append(builder.build())


def numbers(start: int, end: int) -> list[bytes]:
    return [b"%d" % n for n in range(start, end)]


async def take(each: Consumer, count: int, **options: Any) -> list[ConsumerRecord]:
    """The next records, from all partitions."""
    found: list[ConsumerRecord] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            for records in (await each.getmany(timeout_ms=20_000, **options)).values():
                found += records
    return found


def values(records: list[ConsumerRecord]) -> list[Any]:
    return [record.value for record in records]


def wake(cluster: FakeCluster) -> None:
    """Answer the parked fetches that something has arrived for."""
    cluster.nodes[1]._wake_parked()


async def test_all_records_come_once_in_order_with_everything_about_them(
    cluster: FakeCluster,
) -> None:
    [log] = cluster.add_topic("t")
    fill(log, *numbers(0, 100))
    async with consumer(cluster, "t") as each:
        found = await take(each, 100)
        assert values(found) == numbers(0, 100)
        assert [record.offset for record in found] == list(range(100))
        assert (found[7].topic, found[7].partition) == T0
        assert (found[7].key, found[7].timestamp) == (b"k", 1_007)
        assert await each.position(T0) == 100
        assert each.highwater(T0) == 100
        fill(log, b"later")
        wake(cluster)
        assert values(await take(each, 1)) == [b"later"]


@pytest.mark.parametrize(("rule", "first"), [("earliest", 3), ("latest", 10)])
async def test_a_consumer_without_a_position_begins_where_the_rule_says(
    cluster: FakeCluster, rule: str, first: int
) -> None:
    [log] = cluster.add_topic("t")
    fill(log, *numbers(0, 10))
    log.start_offset = 3
    async with consumer(cluster, "t", auto_offset_reset=rule) as each:
        assert await each.position(T0, timeout=20) == first


@pytest.mark.parametrize(("rule", "next_value"), [("earliest", b"3"), ("latest", b"new")])
async def test_an_offset_that_does_not_exist_follows_the_rule(
    cluster: FakeCluster, rule: str, next_value: bytes
) -> None:
    [log] = cluster.add_topic("t")
    fill(log, *numbers(0, 10))
    log.start_offset = 3
    async with consumer(cluster, "t", auto_offset_reset=rule) as each:
        each.seek(T0, 99)
        waiting = asyncio.ensure_future(each.getone(timeout=20))
        await until(lambda: bool(cluster.nodes[1].parked) or waiting.done())
        fill(log, b"new")
        wake(cluster)
        assert (await waiting).value == next_value


async def test_without_a_rule_every_missing_position_is_an_error(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    fill(log, *numbers(0, 3))
    async with consumer(cluster, "t", auto_offset_reset="none") as each:
        for _ in range(2):
            with pytest.raises(NoOffsetForPartitionError):
                await each.getone(timeout=20)
        each.seek(T0, 77)
        with pytest.raises(OffsetOutOfRangeError, match="no offset 77"):
            await each.getone(timeout=20)
        each.seek(T0, 1)
        assert values(await take(each, 2)) == [b"1", b"2"]


async def test_iteration_raises_every_error_that_is_not_retriable(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    fill(log, b"a", b"b", b"c")
    damaged = bytearray(log.batches[1][1])
    damaged[-2] ^= 1
    log.batches[1] = (log.batches[1][0], bytes(damaged))
    seen: list[Any] = []
    async with consumer(cluster, "t") as each, asyncio.timeout(20):
        for _ in range(2):
            with pytest.raises(RecordDecodeError, match="offset 1"):
                async for record in each:
                    seen.append(record.value)
        each.seek(T0, 2)
        async for record in each:
            seen.append(record.value)
            break
    assert seen == [b"a", b"c"]


async def test_iteration_ends_when_the_consumer_is_stopped(cluster: FakeCluster) -> None:
    cluster.add_topic("t")
    each = consumer(cluster, "t")
    await each.start()

    async def read() -> int:
        return len([record async for record in each])

    reading = asyncio.ensure_future(read())
    await until(lambda: bool(cluster.nodes[1].parked))
    await each.stop()
    assert await reading == 0
    with pytest.raises(ConnectionClosedError):
        await each.getone()


async def test_a_seek_while_a_fetch_is_parked_takes_effect_at_once(cluster: FakeCluster) -> None:
    """The parked fetch would be answered in an hour: it is given up, its answer dropped."""
    [log] = cluster.add_topic("t")
    fill(log, *numbers(0, 5))
    async with consumer(cluster, "t", fetch_max_wait_ms=3_600_000) as each:
        assert len(await take(each, 5)) == 5
        await until(lambda: bool(cluster.nodes[1].parked))
        each.seek(T0, 2)
        assert values(await take(each, 3)) == [b"2", b"3", b"4"]
        await each.seek_to_beginning()
        assert values(await take(each, 5)) == numbers(0, 5)


async def test_seek_to_end_skips_what_is_there_and_nothing_that_comes_after(
    cluster: FakeCluster,
) -> None:
    [log] = cluster.add_topic("t")
    fill(log, *numbers(0, 5))
    async with consumer(cluster, "t") as each:
        await each.seek_to_end(timeout=20)
        assert await each.position(T0) == 5
        fill(log, b"after")
        assert values(await take(each, 1)) == [b"after"]


async def test_offsets_are_told_by_place_and_by_time(cluster: FakeCluster) -> None:
    logs = cluster.add_topic("t", 2)
    fill(logs[0], *numbers(0, 10), first_ms=1_000)
    logs[0].start_offset = 2
    logs[1].leader_id = 2
    t1 = TopicPartition("t", 1)
    async with consumer(cluster, "t") as each:
        assert await each.beginning_offsets([T0, t1]) == {T0: 2, t1: 0}
        assert await each.end_offsets([T0, t1], timeout=20) == {T0: 10, t1: 0}
        found = await each.offsets_for_times({T0: 1_004, t1: 1_004})
        assert found == {T0: OffsetAndTimestamp(4, 1_004, 0), t1: None}
        with pytest.raises(ValueError, match="at least 0"):
            await each.offsets_for_times({T0: -1})
        with pytest.raises(UnknownTopicOrPartitionError, match="no partition 9"):
            await each.end_offsets([TopicPartition("t", 9)])


async def test_paused_partitions_are_neither_handed_out_nor_fetched(cluster: FakeCluster) -> None:
    logs = cluster.add_topic("t", 2)
    for number, log in enumerate(logs):
        fill(log, *[b"%d-%d" % (number, n) for n in range(3)])
    t1 = TopicPartition("t", 1)
    async with consumer(cluster, "t") as each:
        each.pause(T0)
        assert each.paused() == {T0}
        assert values(await take(each, 3)) == [b"1-0", b"1-1", b"1-2"]
        await until(lambda: bool(cluster.nodes[1].parked))
        asked = cluster.calls_of(m.FETCH)[-1].request.partitions
        assert [(found.topic, found.partition) for found in asked] == [t1]
        assert await each.getmany(timeout_ms=0) == {}
        each.resume(T0)
        assert each.paused() == set()
        assert values(await take(each, 3)) == [b"0-0", b"0-1", b"0-2"]


async def test_a_poll_takes_its_turn_among_the_partitions(cluster: FakeCluster) -> None:
    logs = cluster.add_topic("t", 3)
    for log in logs:
        fill(log, *numbers(0, 4))
    async with consumer(cluster, "t", max_poll_records=4) as each:
        states = each._assigned.values()
        await until(lambda: all(state.buffered_bytes > 0 for state in states))
        order = [next(iter(await each.getmany(timeout_ms=20_000))) for _ in range(3)]
        assert sorted(order) == [TopicPartition("t", n) for n in range(3)]
    async with consumer(cluster, "t") as each:
        found = await take(each, 3, max_records=1)
        assert len({record.partition for record in found}) >= 1
        with pytest.raises(ValueError, match="not assigned"):
            await each.getmany(TopicPartition("u", 0))


async def test_a_reassignment_keeps_the_positions_of_what_stays(cluster: FakeCluster) -> None:
    logs = cluster.add_topic("t", 2)
    for log in logs:
        fill(log, *numbers(0, 4))
    t1 = TopicPartition("t", 1)
    async with consumer(cluster) as each:
        each.assign([T0])
        assert len(await take(each, 2, max_records=2)) == 2
        each.assign([t1, T0])
        assert each.assignment() == {T0, t1}
        found = await take(each, 6)
        assert values([r for r in found if r.partition == 0]) == [b"2", b"3"]
        assert values([r for r in found if r.partition == 1]) == numbers(0, 4)
        with pytest.raises(ValueError, match="no partition"):
            each.assign([TopicPartition("", 0)])


async def test_deserializers_of_the_caller_and_their_errors(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    fill(log, b"1", b"2", b"x", b"4")
    async with consumer(
        cluster, "t", value_deserializer=int, key_deserializer=bytes.decode
    ) as each:
        assert [(r.key, r.value) for r in await take(each, 2)] == [("k", 1), ("k", 2)]
        for _ in range(2):
            with pytest.raises(ValueError, match="invalid literal"):
                await each.getone(timeout=20)
        assert await each.position(T0) == 2
        each.seek(T0, 3)
        assert (await each.getone(timeout=20)).value == 4


async def test_an_interrupt_in_a_deserializer_comes_through_at_once(cluster: FakeCluster) -> None:
    """An error there waits until what was found before it is handed out."""
    logs = cluster.add_topic("t", 2)
    fill(logs[0], b"1")
    fill(logs[1], b"interrupt")

    def deserialize(data: bytes) -> bytes:
        if data == b"interrupt":
            raise KeyboardInterrupt
        return data

    async with consumer(cluster, "t", value_deserializer=deserialize) as each:
        await until(lambda: [s.has_records for s in each._assigned.values()] == [True, True])
        with pytest.raises(KeyboardInterrupt):
            await each.getmany()


async def test_a_leader_that_moves_is_followed(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    fill(log, b"a")
    async with consumer(cluster, "t") as each:
        assert values(await take(each, 1)) == [b"a"]
        log.leader_id, log.leader_epoch = 2, 1
        fill(log, b"b")
        for node in cluster.nodes.values():
            for call, timer in list(node.parked):
                node.parked.remove((call, timer))
                timer.cancel()
                call.reply(node.read(call.request))
        assert values(await take(each, 1)) == [b"b"]
    assert cluster.calls_of(m.FETCH)[-1].node.node_id == 2


async def test_the_leader_that_a_refusal_names_is_asked_without_new_metadata(
    cluster: FakeCluster,
) -> None:
    """KIP-951."""
    [log] = cluster.add_topic("t")
    fill(log, b"a")

    def moved(call: Call) -> bool:
        if call.api is m.FETCH and call.node.node_id == 1:
            log.leader_id, log.leader_epoch = 2, 5
            part = m.FetchPartitionResponse(
                *("t", 0, Code.NOT_LEADER_OR_FOLLOWER, -1, -1, -1, (), -1, None, 2, 5), b""
            )
            call.reply(m.FetchResponse(0, (part,)))
            return True
        return False

    async with consumer(cluster, "t") as each:
        cluster.script = moved
        asked = len(cluster.calls_of(m.METADATA))
        assert values(await take(each, 1)) == [b"a"]
        assert len(cluster.calls_of(m.METADATA)) == asked


async def test_lost_connections_and_retriable_errors_are_ridden_out(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    fill(log, *numbers(0, 3))
    trouble = 6

    def spoil(call: Call) -> bool:
        nonlocal trouble
        if call.api not in {m.FETCH, m.LIST_OFFSETS} or not trouble:
            return False
        trouble -= 1
        if trouble % 3 == 0:
            call.drop()
        elif trouble % 3 == 1:
            call.refuse(Code.REQUEST_TIMED_OUT, "busy")
        elif call.api is m.FETCH:
            part = m.FetchPartitionResponse(
                *("t", 0, Code.KAFKA_STORAGE_ERROR, -1, -1, -1, (), -1, None, -1, -1), b""
            )
            call.reply(m.FetchResponse(0, (part,)))
        else:
            call.drop()
        return True

    cluster.script = spoil
    async with consumer(cluster, "t") as each:
        assert values(await take(each, 3)) == numbers(0, 3)
    assert trouble == 0


async def test_an_answer_about_other_partitions_is_never_taken(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    fill(log, b"a")
    lies = 1

    def lie(call: Call) -> bool:
        nonlocal lies
        if call.api is not m.FETCH or not lies:
            return False
        lies -= 1
        part = m.FetchPartitionResponse(
            *("t", 7, 0, 1, 1, 0, (), -1, None, -1, -1), log.batches[0][1]
        )
        call.reply(m.FetchResponse(0, (part,)))
        return True

    cluster.script = lie
    async with consumer(cluster, "t") as each:
        (found,) = await take(each, 1)
        assert (found.partition, found.value) == (0, b"a")


async def test_cancelling_loses_no_record(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    async with consumer(cluster, "t", fetch_max_wait_ms=1) as each:
        found: list[Any] = []
        for n in range(60):
            call = each.getone() if n % 2 else each.getmany(timeout_ms=1000)
            waiting = asyncio.ensure_future(call)
            for _ in range(n % 7):
                await asyncio.sleep(0)
            fill(log, b"%d" % n)
            for _ in range(n % 5):
                await asyncio.sleep(0)
            waiting.cancel()
            try:
                result = await waiting
            except asyncio.CancelledError:
                continue
            if isinstance(result, ConsumerRecord):
                found.append(result)
            else:
                for records in result.values():
                    found += records
        found += await take(each, 60 - len(found)) if len(found) < 60 else []
    assert values(found) == numbers(0, 60)


async def test_the_calls_keep_their_time_limit(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    async with consumer(cluster, "t") as each:
        with pytest.raises(RequestTimeoutError, match="no record within"):
            await each.getone(timeout=0.01)
        assert await each.getmany(timeout_ms=10) == {}
        with pytest.raises(UnknownTopicOrPartitionError, match="not there within"):
            await each.partitions_for_topic("nowhere", timeout=0.01)
        with pytest.raises(InvalidTopicError):
            await each.partitions_for_topic("!", timeout=20)
        log.leader_id = -1
        each._cluster.request_refresh()
        await until(lambda: each._cluster.metadata.leader_of("t", 0) < 0)
        with pytest.raises(LeaderNotAvailableError):
            await each.end_offsets([T0], timeout=0.01)
        with pytest.raises(RequestTimeoutError, match="no position"):
            await each.seek_to_end(timeout=0.01)
    await cluster.stop()
    late = consumer(cluster)
    with pytest.raises(Error):
        await late.start(timeout=0.05)


async def test_an_idle_partition_does_not_hold_up_a_busy_one(cluster: FakeCluster) -> None:
    logs = cluster.add_topic("t", 2)
    async with consumer(cluster, "t", fetch_max_wait_ms=3_600_000) as each:
        await until(lambda: bool(cluster.nodes[1].parked))
        for n in range(5):
            fill(logs[1], b"%d" % n)
            wake(cluster)
            assert values(await take(each, 1)) == [b"%d" % n]


async def test_a_full_buffer_stops_the_fetching(cluster: FakeCluster) -> None:
    [log] = cluster.add_topic("t")
    fill(log, *[b"x" * 500 for _ in range(100)])
    async with consumer(cluster, "t", max_partition_fetch_bytes=2_000) as each:
        await until(lambda: any(state.has_records for state in each._assigned.values()))
        for _ in range(50):
            await asyncio.sleep(0)
        (state,) = each._assigned.values()
        assert state.buffered_bytes < 4_000
        assert len(await take(each, 100)) == 100


@pytest.mark.parametrize(
    "settings",
    [
        {"auto_offset_reset": "somewhere"},
        {"isolation_level": "serializable"},
        {"fetch_max_bytes": 0},
        {"max_poll_records": 0},
        {"bootstrap_servers": "nowhere:x"},
    ],
)
def test_a_wrong_setting_names_itself(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Consumer(**settings)
    assert caught.value.field in settings


async def test_stopping_leaves_no_task_and_no_connection(cluster: FakeCluster) -> None:
    cluster.add_topic("t")
    before = asyncio.all_tasks()
    each = consumer(cluster, "t")
    await each.start()
    await until(lambda: bool(cluster.nodes[1].parked))
    await each.stop()
    await each.stop()
    assert asyncio.all_tasks() == before
    await until(lambda: not any(node.links for node in cluster.nodes.values()))
    with pytest.raises(ConnectionClosedError, match="started only once"):
        await each.start()
