"""Dividing a set among members, against a real server; and the pure arithmetic of it."""

from __future__ import annotations

import asyncio

import pytest

from duolog import SetPartitioner, ZkClient
from duolog.core.zk_contenders import (
    EXCLUSIVE,
    SHARED,
    divide,
    in_order,
    predecessor,
    sequence_of,
)

from .test_recipes import eventually, no_children
from .zk_support import Zk

ITEMS = {"a", "b", "c", "d", "e"}
QUICK = {"time_boundary": 0.05, "max_reaction_time": 0.05}


def test_every_item_goes_to_one_member() -> None:
    for count in range(1, 7):
        members = [f"m{number}" for number in range(count)]
        shares = [divide(ITEMS, members, member) for member in members]
        assert sorted(item for share in shares for item in share) == sorted(ITEMS)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def name(number: int, kind: str = EXCLUSIVE) -> str:
    return f"{'f' * 32}{kind}{number:010d}"


def test_contenders_are_ordered_by_their_number_and_kind() -> None:
    names = [name(3), name(1, SHARED), name(2), "lease_holder", "x-0000000000"]
    assert in_order(names, [EXCLUSIVE]) == [name(2), name(3)]
    assert in_order(names, [EXCLUSIVE, SHARED]) == [name(1, SHARED), name(2), name(3)]
    assert sequence_of("lease_holder") is None
    assert sequence_of("x--2147483648") == -2147483648


def test_the_order_goes_on_where_the_servers_counter_overflows() -> None:
    before, after = name(2147483647), f"{'0' * 32}{EXCLUSIVE}-2147483648"
    assert in_order([after, before], [EXCLUSIVE]) == [before, after]
    last, first = f"{'0' * 32}{EXCLUSIVE}-0000000001"[:-11] + "-000000001", name(0)
    assert in_order([first, last], [EXCLUSIVE])[-1] == first


def test_only_those_that_exclude_are_waited_for() -> None:
    names = [name(1, SHARED), name(2), name(3, SHARED), name(4, SHARED), name(5)]

    def before(mine: str, kind: str, blocked_by: tuple[str, ...]) -> str | None:
        return predecessor(names, mine, own_kind=kind, blocked_by=blocked_by)

    assert before(names[0], SHARED, (EXCLUSIVE,)) is None
    assert before(names[1], EXCLUSIVE, (EXCLUSIVE, SHARED)) == names[0]
    assert before(names[3], SHARED, (EXCLUSIVE,)) == names[1]
    assert before(names[4], EXCLUSIVE, (EXCLUSIVE, SHARED)) == names[3]
    assert before(names[4], EXCLUSIVE, (EXCLUSIVE,)) == names[1]


async def follow(
    zk: ZkClient, name: str, owned: dict[str, list[str]], settled: asyncio.Event
) -> None:
    async with SetPartitioner(zk, "/work", ITEMS, identifier=name, **QUICK) as partitioner:
        try:
            while not partitioner.failed:
                await partitioner.wait_for_acquire()
                owned[name] = list(partitioner)
                everything = [item for share in owned.values() for item in share]
                assert len(everything) == len(set(everything)), owned
                settled.set()
                await partitioner.wait_for_release()
                owned[name] = []
                await partitioner.release_set()
        finally:
            owned.pop(name, None)


async def test_members_share_the_set_and_share_it_anew_when_they_come_and_go() -> None:
    async with asyncio.timeout(30), Zk() as server:
        clients = [await server.client() for _ in range(3)]
        owned: dict[str, list[str]] = {}
        changed = asyncio.Event()
        tasks = [
            asyncio.ensure_future(follow(zk, f"m{at}", owned, changed))
            for at, zk in enumerate(clients)
        ]

        async def settle(count: int) -> None:
            while (
                len([share for share in owned.values() if share]) != count
                or {item for share in owned.values() for item in share} != ITEMS
            ):
                for task in tasks:
                    if task.done() and not task.cancelled():
                        task.result()
                changed.clear()
                await changed.wait()

        await settle(3)
        tasks[0].cancel()
        await asyncio.wait({tasks[0]})
        await settle(2)
        await server.expire(clients[1])
        await settle(2)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_a_partitioner_ends_with_its_client_and_can_be_released_early() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        async with SetPartitioner(zk, "/work", ITEMS, **QUICK) as partitioner:
            assert partitioner.allocating
            assert not await partitioner.wait_for_acquire(timeout=0)
            assert await partitioner.wait_for_acquire()
            assert partitioner.acquired
            assert sorted(partitioner) == sorted(ITEMS)
            assert not await partitioner.wait_for_release(timeout=0.01)
            await partitioner.release_set()
            assert list(partitioner) == []
            assert await partitioner.wait_for_acquire()
            await zk.close()
            assert await partitioner.wait_for_release()
            assert partitioner.failed


@pytest.mark.parametrize("ending", ["release_set", "finish"])
async def test_cancelling_the_end_of_a_share_leaks_no_lock(ending: str) -> None:
    async with asyncio.timeout(10), Zk() as server:
        zk = await server.client()
        for turns in range(6):
            partitioner = SetPartitioner(zk, "/work", ITEMS, **QUICK)
            await partitioner.__aenter__()
            await partitioner.wait_for_acquire()
            ended = asyncio.ensure_future(getattr(partitioner, ending)())
            for _ in range(turns):
                await asyncio.sleep(0)
            ended.cancel()
            await asyncio.wait({ended})
            await partitioner.finish()
            for item in ITEMS:
                await eventually(lambda item=item: no_children(zk, f"/work/locks/{item}"))  # type: ignore[misc]
            await eventually(lambda: no_children(zk, "/work/party"))
