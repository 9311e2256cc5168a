"""Our recipes and kazoo's on the same paths: they exclude each other and share what they hold.

Skipped where kazoo is not installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from duolog import (
    Counter,
    DoubleBarrier,
    Lock,
    LockingQueue,
    NonBlockingLease,
    Party,
    Queue,
    ReadLock,
    Semaphore,
    WriteLock,
    ZkClient,
)
from duolog_cluster.cluster import Cluster

kazoo_client = pytest.importorskip("kazoo.client")
in_thread: Callable[..., Any] = asyncio.to_thread


@asynccontextmanager
async def both() -> AsyncIterator[tuple[ZkClient, Any]]:
    """Our client and kazoo's, of one zkserver."""
    async with (
        asyncio.timeout(60),
        Cluster(brokers=0) as cluster,
        ZkClient(cluster.zookeeper) as ours,
    ):
        theirs = kazoo_client.KazooClient(hosts=cluster.zookeeper)
        await in_thread(theirs.start)
        try:
            yield ours, theirs
        finally:
            await in_thread(theirs.stop)
            await in_thread(theirs.close)


async def test_locks() -> None:
    async with both() as (ours, theirs):
        their_lock, our_lock = theirs.Lock("/lock", "theirs"), Lock(ours, "/lock", "ours")
        await in_thread(their_lock.acquire)
        assert not await our_lock.acquire(blocking=False)
        waiting = asyncio.ensure_future(our_lock.acquire())
        while await our_lock.contenders() != ["theirs", "ours"]:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert await in_thread(their_lock.contenders) == ["theirs", "ours"]
        await in_thread(their_lock.release)
        await waiting
        assert not await in_thread(their_lock.acquire, blocking=False)
        await our_lock.release()
        their_reader = theirs.ReadLock("/rw")
        await in_thread(their_reader.acquire)
        assert await ReadLock(ours, "/rw").acquire(blocking=False)
        assert not await WriteLock(ours, "/rw").acquire(blocking=False)


async def test_semaphores_parties_and_leases() -> None:
    async with both() as (ours, theirs):
        await in_thread(theirs.Semaphore("/s", "theirs", 2).acquire)
        async with Semaphore(ours, "/s", "ours", 2) as lease:
            assert sorted(await lease.lease_holders()) == ["ours", "theirs"]
            assert not await Semaphore(ours, "/s", "more", 2).acquire(blocking=False)
        party = theirs.Party("/p", "theirs")
        await in_thread(party.join)
        async with Party(ours, "/p", "ours") as our_party:
            assert sorted(await our_party.members()) == ["ours", "theirs"]
            assert sorted(await in_thread(list, party)) == ["ours", "theirs"]
        hour = timedelta(hours=1)
        assert await in_thread(lambda: bool(theirs.NonBlockingLease("/l", hour, "theirs")))
        assert not await NonBlockingLease(ours, "/l", hour, "ours").obtain()


async def test_counters_and_queues() -> None:
    async with both() as (ours, theirs):

        def add_five() -> int:
            counter = theirs.Counter("/c")
            counter += 5
            return int(counter.value)

        assert await in_thread(add_five) == 5
        assert await Counter(ours, "/c").add(2) == 7
        assert await in_thread(lambda: theirs.Counter("/c").value) == 7
        queue, their_queue = Queue(ours, "/q"), theirs.Queue("/q")
        await queue.put(b"a")
        await in_thread(their_queue.put, b"b", priority=1)
        assert await queue.get() == b"b"
        assert await in_thread(their_queue.get) == b"a"
        locking, their_locking = LockingQueue(ours, "/lq"), theirs.LockingQueue("/lq")
        await in_thread(their_locking.put, b"1")
        await locking.put(b"2")
        assert await in_thread(their_locking.get, 5) == b"1"
        assert await locking.get(5) == b"2"
        assert await locking.consume()
        assert await in_thread(their_locking.consume)


async def test_double_barriers() -> None:
    async with both() as (ours, theirs):
        barrier, their_barrier = DoubleBarrier(ours, "/d", 2), theirs.DoubleBarrier("/d", 2)
        entering = asyncio.ensure_future(in_thread(their_barrier.enter))
        await barrier.enter()
        await entering
        leaving = asyncio.ensure_future(in_thread(their_barrier.leave))
        await barrier.leave()
        await leaving
