"""A broker whose disk is full at its n-th write, for every n from an empty directory on.

Each run is one broker over a simulated disk with real sockets to a real zkserver: it registers,
makes a topic, appends over several segments, writes its checkpoints, deletes old segments, stops
in order. Wherever the disk is full, the broker either says so when it starts, or answers a
retriable error and goes on; after that nothing acknowledged is missing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from duolog import ZkClient
from duolog_cluster.cluster import Cluster
from duolog_cluster.sim.disk import DiskFaults, SimDisk
from duolog_protocol.broker_messages import (
    FetchPartition,
    NewTopicRequest,
    ProducePartition,
    TopicConfig,
)
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import DiskFullError, StorageError
from duolog_protocol.record_decoding import decode_records
from duolog_protocol.records import BatchBuilder, iter_headers
from duolog_runtime.clocks import RealClock
from duolog_runtime.disk import InlineDisk
from duolog_runtime.logs import RecordingLogger
from kbroker.config import BrokerConfig
from kbroker.server import controller_link
from kbroker.server.broker import Broker
from tests.support import until

RECORDS = 12
RETRIABLE = {
    KafkaErrorCode.KAFKA_STORAGE_ERROR,
    KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
    KafkaErrorCode.NOT_LEADER_OR_FOLLOWER,
    KafkaErrorCode.BROKER_NOT_AVAILABLE,
}
SETTINGS = (
    TopicConfig("segment.bytes", "1024"),
    TopicConfig("index.interval.bytes", "0"),
    TopicConfig("retention.bytes", "100000"),
)


async def either(serving: asyncio.Task[None], event: asyncio.Event) -> None:
    """Until the event is set, or the broker has ended."""
    waiting = asyncio.ensure_future(event.wait())
    async with asyncio.timeout(20):
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


class Run:
    """One broker's lives on one disk."""

    def __init__(self, zookeeper: str, full_at_write: int | None, full_for_writes: int) -> None:
        self.faults = DiskFaults(full_at_write=full_at_write, full_for_writes=full_for_writes)
        self.disk = SimDisk(random.Random(1), self.faults)
        self.zookeeper = zookeeper
        self.acknowledged: list[bytes] = []
        self.refusals = 0

    async def live(self, work: Callable[[Broker], Any]) -> BaseException | None:
        """Start, work, stop in order; what ended the broker instead, if anything did."""
        config = BrokerConfig(data="/data", port=0, zookeeper=self.zookeeper, broker_id=1)
        self.log = RecordingLogger()
        broker = Broker(
            config,
            self.disk,
            InlineDisk(),
            clock=RealClock(),
            rng=random.Random(1),
            log=self.log,
            version="0",
        )
        stop, listening = asyncio.Event(), asyncio.Event()
        serving = asyncio.create_task(broker.serve(stop, listening.set))
        await either(serving, listening)
        if not serving.done():
            assert broker.control is not None
            await either(serving, broker.control.registered)
        if not serving.done():
            working = asyncio.create_task(work(broker))
            await asyncio.wait({working, serving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                working.cancel()
                return serving.exception()
            failure = working.exception()
            if isinstance(failure, StorageError):
                serving.cancel()  # as the task of the request would end it
                await asyncio.wait({serving})
                return failure
            working.result()
            stop.set()
        await asyncio.wait({serving})
        return serving.exception()

    async def fill(self, broker: Broker) -> None:
        """Make the topic and append to it until all is acknowledged."""
        assert broker.control is not None
        request = NewTopicRequest("t", 1, 1, (), SETTINGS)
        (made,) = await broker.control.create_topics((request,), 20_000, False)
        assert made.error_code in {0, KafkaErrorCode.REQUEST_TIMED_OUT}, made
        self.refusals += made.error_code != 0
        for number in range(RECORDS):
            await self._append(broker, b"%d" % number * 100)
        broker.logs.checkpoint(broker.replicas.high_watermarks())
        broker.logs.apply_retention(broker.replicas.high_watermarks())

    async def _append(self, broker: Broker, value: bytes) -> None:
        builder = BatchBuilder()
        builder.append(RealClock().wall_ms(), None, value)
        batch = builder.build()
        while True:
            appended = broker.replicas.append(ProducePartition("t", 0, batch))
            if appended.error_code == 0:
                break
            assert appended.error_code in RETRIABLE, appended
            self.refusals += 1
            await asyncio.sleep(0)
        replicas = broker.replicas
        await until(lambda: replicas.acknowledgement(("t", 0), appended) == 0)
        self.acknowledged.append(value)

    async def check(self, broker: Broker) -> None:
        """Everything acknowledged is there, in order, and more can be appended."""
        await until(lambda: broker.replicas.led_count == 1)
        found: list[bytes | None] = []
        end = broker.replicas.high_watermarks()["t", 0]  # type: ignore[index]
        while len(found) < end:
            request = FetchPartition("t", 0, -1, len(found), -1, -1, 1 << 20)
            read = broker.replicas.read(request, 1 << 20, min_one_batch=True)
            assert read.error_code == 0 and read.slice is not None, read
            data = b"".join(read.slice.read())
            for position, _ in iter_headers(data):
                found += [record.value for record in decode_records(data, position)]
        assert found == self.acknowledged
        await self._append(broker, b"one more")
        self.acknowledged.pop()


def zkserver() -> Cluster:
    """A zkserver on a disk of its own that is quick and never full."""
    return Cluster(brokers=0, data="/zk", files=SimDisk(random.Random(0)))


async def history(zookeeper: str, full_at_write: int | None, full_for_writes: int) -> Run:
    """Live with the fault, and then without it."""
    run = Run(zookeeper, full_at_write, full_for_writes)
    ended = await run.live(run.fill)
    if ended is not None:
        assert isinstance(ended, DiskFullError), repr(ended)
        assert "/data" in str(ended)
    run.faults.full_at_write = None
    if len(run.acknowledged) < RECORDS:
        assert ended is not None
        assert run.acknowledged == []  # it never ends once it serves
        assert await run.live(run.fill) is None
    assert await run.live(run.check) is None, run.log.records
    return run


def test_wherever_the_disk_is_full_nothing_acknowledged_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controller_link, "_INCOMPLETE_RETRY_SECONDS", 0.001)

    async def sweep() -> tuple[int, int]:
        async with zkserver() as cluster, ZkClient(cluster.zookeeper) as zk:

            async def at(full_at_write: int | None) -> Run:
                chroot = f"/at-{full_at_write}"
                await zk.ensure_path(chroot)
                full_for_writes = 4 if (full_at_write or 0) % 2 else 1
                return await history(cluster.zookeeper + chroot, full_at_write, full_for_writes)

            healthy = await at(None)
            writes = healthy.disk.write_count
            assert healthy.refusals == 0
            refused = 0
            for number in range(1, writes + 1):
                refused += (await at(number)).refusals > 0
            return writes, refused

    writes, refused = asyncio.run(sweep())
    assert writes > 30, "the history has become too short to show anything"
    assert refused > 5


def test_a_sync_that_fails_stops_the_broker_until_a_person_has_looked() -> None:
    """Whenever it is: at the start, while a topic is made, under an append, at a roll."""

    async def look(_broker: Broker) -> None:
        """It serves: that is all."""

    async def sweep() -> None:
        async with zkserver() as cluster, ZkClient(cluster.zookeeper) as zk:

            async def start(name: str) -> Run:
                await zk.ensure_path(f"/{name}")
                return Run(f"{cluster.zookeeper}/{name}", None, 1)

            healthy = await start("healthy")
            assert await healthy.live(healthy.fill) is None
            syncs = healthy.disk.sync_count
            assert syncs > 20
            refused = 0
            for number in range(1, syncs + 1, max(syncs // 12, 1)):
                run = await start(f"at-{number}")
                run.faults.fail_at_sync = number
                ended = await run.live(run.fill)
                assert run.disk.used_after_failed_sync_count == 0 or ended is not None
                if ended is None:
                    continue  # of a file that nothing relies on, such as the session's
                assert isinstance(ended, StorageError), repr(ended)
                again = await run.live(look)
                if again is not None:
                    assert "a sync of /data has failed" in str(again)
                    refused += 1
            assert refused > 2

    asyncio.run(sweep())
