"""Semaphore, election, barriers, counter, party and lease against a real server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from duolog import (
    Barrier,
    Counter,
    DoubleBarrier,
    Election,
    MultiNonBlockingLease,
    NonBlockingLease,
    Party,
    Semaphore,
    SessionState,
    ShallowParty,
    ZkClient,
)
from duolog_protocol import zk_messages as zkm
from duolog_protocol.apis import AnyApi
from duolog_protocol.errors import ConnectionLostError, LockTimeoutError

from .zk_support import FaultyConnect, Zk, fault_at, no_faults

KINDS = ["before", "after"]


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


async def at_every_step(
    server: Zk, kind: str, work: Callable[[ZkClient, int], Awaitable[Any]]
) -> int:
    """Run `work` again and again, with the connection broken at its 0th, 1st, ... request."""
    for step in range(200):
        faults = FaultyConnect(fault_at(step, kind))
        zk = await server.client(connect=faults)
        await work(zk, step)
        await zk.close()
        if len(faults.sent) <= step:
            return step
    raise AssertionError("the faults never ended")


# ---- semaphore ---------------------------------------------------------------------------------


async def test_a_semaphore_has_so_many_leases_and_no_more() -> None:
    async with asyncio.timeout(30), Zk() as server:
        clients = [await server.client() for _ in range(5)]
        inside = most = 0

        async def work(number: int) -> None:
            nonlocal inside, most
            for _ in range(4):
                async with Semaphore(clients[number], "/s", f"c{number}", 2) as lease:
                    assert lease.token > 0
                    inside += 1
                    most = max(most, inside)
                    for _ in range(8):
                        await clients[number].set("/", b"")
                    inside -= 1

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(work(number))
        assert most == 2
        assert (await clients[0].get("/s"))[0] == b"2"
        assert await Semaphore(clients[0], "/s", max_leases=2).lease_holders() == []


async def test_a_lease_of_a_crashed_holder_is_free_and_its_holder_told() -> None:
    async with asyncio.timeout(30), Zk() as server:
        one, two = await server.client(), await server.client()
        lease, other = Semaphore(one, "/s", "one"), Semaphore(two, "/s", "two")
        await lease.acquire()
        assert await other.lease_holders() == ["one"]
        assert not await other.acquire(blocking=False)
        with pytest.raises(LockTimeoutError):
            await other.acquire(timeout=0.05)
        waiting = asyncio.ensure_future(other.acquire())
        await server.expire(one)
        assert lease.lost.is_set()
        assert await waiting
        assert await other.lease_holders() == ["two"]
        assert await other.release()
        assert not await other.release()


async def test_a_semaphore_refuses_another_number_of_leases() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/s")
        async with Semaphore(zk, "/s", max_leases=3):
            with pytest.raises(ValueError, match="has 3 leases, not 2"):
                await Semaphore(zk, "/s", max_leases=2).acquire()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_semaphore_neither_leaks_nor_doubles_a_lease(kind: str) -> None:
    async with asyncio.timeout(30), Zk() as server:
        other = await server.client()

        async def work(zk: ZkClient, _step: int) -> None:
            async with Semaphore(zk, "/s", max_leases=2):
                await other.sync()
                assert len(await other.get_children("/s")) == 1
            await other.sync()
            assert await other.get_children("/s") == []
            await eventually(lambda: no_children(other, "/s-__lock__"))

        assert await at_every_step(server, kind, work) > 5


async def no_children(zk: ZkClient, path: str) -> bool:
    await zk.sync()
    return await zk.get_children(path) == []


async def test_cancelling_a_semaphore_at_any_await_leaks_no_lease() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk, other = await server.client(), await server.client()
        turns, done = 0, False
        await other.create("/s", b"1")
        await other.create("/s-__lock__")
        while not done:
            semaphore = Semaphore(zk, "/s")
            acquiring = asyncio.ensure_future(semaphore.acquire())
            for _ in range(turns):
                await asyncio.sleep(0)
            acquiring.cancel()
            await asyncio.wait({acquiring})
            if not acquiring.cancelled():
                done = await semaphore.release()
            await eventually(lambda: no_children(other, "/s"))
            await eventually(lambda: no_children(other, "/s-__lock__"))
            turns += 1


@pytest.mark.parametrize("kind", KINDS)
async def test_the_only_lease_is_acquired_with_a_connection_lost_at_any_step(kind: str) -> None:
    async with asyncio.timeout(20), Zk() as server:

        async def work(zk: ZkClient, step: int) -> None:
            async with Semaphore(zk, f"/s{step}", max_leases=1) as lease:
                assert len(await zk.get_children(f"/s{step}")) == 1
                assert lease.token > 0
            await eventually(lambda: no_children(zk, f"/s{step}"))

        assert await at_every_step(server, kind, work) > 5


# ---- election ----------------------------------------------------------------------------------


async def test_leaders_follow_each_other_and_epochs_rise() -> None:
    async with asyncio.timeout(30), Zk() as server:
        clients = [await server.client() for _ in range(3)]
        elections = [Election(zk, "/e", f"c{at}") for at, zk in enumerate(clients)]
        terms: list[tuple[int, int]] = []

        async def lead(number: int) -> int:
            terms.append((elections[number].lock.token, number))
            assert await elections[number].leader() == f"c{number}"
            return number

        results = await asyncio.gather(
            *(election.run(lead, at) for at, election in enumerate(elections))
        )
        assert results == [0, 1, 2]
        assert terms == sorted(terms)
        assert await elections[0].leader() is None


async def test_a_leader_whose_session_ends_is_stopped_and_stands_again() -> None:
    async with asyncio.timeout(30), Zk() as server:
        one, two = await server.client(), await server.client()
        stopped = asyncio.Event()
        leading = asyncio.Event()

        async def lead() -> str:
            if stopped.is_set():
                return "again"
            leading.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
            return "never"

        running = asyncio.ensure_future(Election(one, "/e", "one").run(lead))
        await leading.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(server.expire(one))
            async with Election(two, "/e", "two") as term:
                assert term.token > 0
                await stopped.wait()
                assert not running.done()
        assert await running == "again"


async def test_cancelling_run_stops_the_leader_and_gives_leadership_up() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        leading, ended = asyncio.Event(), asyncio.Event()

        async def lead() -> None:
            leading.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        election = Election(zk, "/e")
        running = asyncio.ensure_future(election.run(lead))
        await leading.wait()
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled() and ended.is_set()
        assert await election.contenders() == []


async def test_what_a_leader_raises_is_raised() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()

        async def lead() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await Election(zk, "/e").run(lead)


# ---- barriers ----------------------------------------------------------------------------------


async def test_a_barrier_holds_up_until_it_is_lifted_over_lost_connections_and_sessions() -> None:
    async with asyncio.timeout(30), Zk() as server:
        faults = FaultyConnect(no_faults)
        one, two = await server.client(), await server.client(connect=faults)
        barrier = Barrier(two, "/b/x")
        assert await barrier.wait()
        async with Barrier(one, "/b/x"):
            assert not await barrier.wait(timeout=0.01)
            waiting = asyncio.ensure_future(barrier.wait())
            faults.cut()
            await two.sync()
            await server.expire(two)
            await two.sync()
            assert not waiting.done()
        assert await waiting
        assert not await barrier.remove()


async def test_all_enter_together_and_leave_together() -> None:
    async with asyncio.timeout(30), Zk() as server:
        clients = [await server.client() for _ in range(3)]
        log: list[str] = []

        async def work(zk: ZkClient) -> None:
            log.append("come")
            async with DoubleBarrier(zk, "/d", 3):
                log.append("in")
                await zk.sync()
            log.append("out")

        async with asyncio.TaskGroup() as group:
            for zk in clients:
                group.create_task(work(zk))
        assert log[:3] == ["come"] * 3
        assert sorted(log[3:]) == ["in"] * 3 + ["out"] * 3
        assert log.index("out") > max(at for at, each in enumerate(log) if each == "in")
        assert await clients[0].get_children("/d") == []


async def test_a_member_that_gives_up_or_dies_is_not_counted() -> None:
    async with asyncio.timeout(30), Zk() as server:
        one, two, three = [await server.client() for _ in range(3)]
        with pytest.raises(LockTimeoutError):
            await DoubleBarrier(one, "/d", 2).enter(timeout=0.05)
        await one.ensure_path("/d")
        await eventually(lambda: has_children(one, "/d", 0))
        entering = asyncio.ensure_future(DoubleBarrier(two, "/d", 2).enter())
        await eventually(lambda: has_children(one, "/d", 1))
        await server.expire(two)
        await eventually(lambda: has_children(one, "/d", 1))  # it has joined again
        assert not entering.done()
        barrier = DoubleBarrier(three, "/d", 2)
        await barrier.enter()
        await entering
        await server.expire(two)
        await barrier.leave()


async def has_children(zk: ZkClient, path: str, count: int) -> bool:
    await zk.sync()
    return len(await zk.get_children(path)) == count


async def test_a_round_whose_members_died_does_not_open_the_next_one() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/d")
        await zk.create("/d/ready")
        with pytest.raises(LockTimeoutError):
            await DoubleBarrier(zk, "/d", 2).enter(timeout=0.05)


async def test_no_part_of_a_round_opens_a_barrier_whose_last_round_died() -> None:
    async with asyncio.timeout(10), Zk() as server:
        clients = [await server.client() for _ in range(3)]
        await clients[0].create("/d")
        await clients[0].create("/d/ready")
        barriers = [DoubleBarrier(zk, "/d", 3) for zk in clients]
        entering = [asyncio.ensure_future(each.enter()) for each in barriers[:2]]
        await eventually(lambda: has_children(clients[2], "/d", 2))  # both, and no `ready`
        assert not any(each.done() for each in entering)
        await barriers[2].enter()
        await asyncio.gather(*entering)
        await asyncio.gather(*(each.leave() for each in barriers))
        assert await clients[0].get_children("/d") == []


async def test_a_double_barrier_is_entered_again_while_others_still_leave() -> None:
    async with asyncio.timeout(10), Zk() as server:
        clients = [await server.client() for _ in range(3)]

        async def rounds(zk: ZkClient) -> None:
            barrier = DoubleBarrier(zk, "/d", 3)
            for _ in range(20):
                await barrier.enter()
                await barrier.leave()

        await asyncio.gather(*(rounds(zk) for zk in clients))
        assert await clients[0].get_children("/d") == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_double_barrier_works_with_a_connection_lost_at_any_step(kind: str) -> None:
    async with asyncio.timeout(30), Zk() as server:
        other = await server.client()

        async def work(zk: ZkClient, step: int) -> None:
            async def one(client: ZkClient) -> None:
                async with DoubleBarrier(client, f"/d{step}", 2):
                    await client.sync()

            async with asyncio.TaskGroup() as group:
                group.create_task(one(zk))
                group.create_task(one(other))
            await eventually(lambda: no_children(other, f"/d{step}"))

        assert await at_every_step(server, kind, work) > 5


# ---- counter -----------------------------------------------------------------------------------


async def test_counters_of_each_kind() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        async with Counter(zk, "/n/int") as counter:
            assert await counter.value() == 0
            assert await counter.add(2) == 2
            assert await counter.subtract(5) == -3
            assert (counter.pre_value, counter.post_value) == (2, -3)
            assert (await zk.get("/n/int"))[0] == b"-3"
            with pytest.raises(TypeError):
                await counter.add(1.5)  # type: ignore[arg-type]
        async with Counter(zk, "/n/float", default=1.0) as floating:
            assert await floating.add(0.5) == 1.5
        async with Counter(zk, "/n/curator", support_curator=True) as curator:
            assert await curator.add(258) == 258
            assert (await zk.get("/n/curator"))[0] == b"\x00\x00\x01\x02"
        with pytest.raises(TypeError):
            Counter(zk, "/n/x", default=1.0, support_curator=True)
        await eventually(lambda: no_children(zk, "/n/int-__once__"))


async def test_concurrent_additions_are_all_there() -> None:
    async with asyncio.timeout(30), Zk() as server:
        clients = [await server.client() for _ in range(4)]

        async def work(zk: ZkClient) -> None:
            async with Counter(zk, "/n") as counter:
                for _ in range(8):
                    await counter.add(1)

        async with asyncio.TaskGroup() as group:
            for zk in clients:
                group.create_task(work(zk))
        assert await Counter(clients[0], "/n").value() == 32


@pytest.mark.parametrize("kind", KINDS)
async def test_an_addition_is_done_once_though_its_answer_is_lost(kind: str) -> None:
    async with asyncio.timeout(30), Zk() as server:
        other = await server.client()
        expected = 0

        async def work(zk: ZkClient, _step: int) -> None:
            nonlocal expected
            async with Counter(zk, "/n") as counter:
                await counter.add(1)
                await counter.add(1)
            expected += 2
            await other.sync()
            assert await Counter(other, "/n").value() == expected

        assert await at_every_step(server, kind, work) > 4


# ---- parties -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Party, ShallowParty])
async def test_members_come_and_go_and_come_back_after_their_session_ended(
    make: type[Party],
) -> None:
    async with asyncio.timeout(30), Zk() as server:
        one, two = await server.client(), await server.client()
        watching = make(one, "/p")
        assert await watching.members() == []
        assert await watching.size() == 0
        async with make(one, "/p", "one") as party, make(two, "/p", "two-2") as other:
            assert sorted(await party.members()) == ["one", "two-2"]
            assert other.participating
            node = other.node
            await server.expire(two)

            async def is_back() -> bool:
                return sorted(await party.members()) == ["one", "two-2"] and other.node == node

            await eventually(is_back)
            await other.join()
        assert await watching.size() == 0
        assert not await party.leave()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_member_is_there_once(kind: str) -> None:
    async with asyncio.timeout(30), Zk() as server:
        other = await server.client()

        async def work(zk: ZkClient, _step: int) -> None:
            async with Party(zk, "/p", "me"):
                await other.sync()
                assert await Party(other, "/p").members() == ["me"]
            await other.sync()
            assert await Party(other, "/p").size() == 0

        assert await at_every_step(server, kind, work) > 2


# ---- leases ------------------------------------------------------------------------------------


class WallClock:
    def __init__(self) -> None:
        self.now = datetime(2024, 2, 28, 12, 0, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


async def test_a_lease_outlives_its_client_and_ends_by_the_clock() -> None:
    clock, hour = WallClock(), timedelta(hours=1)
    async with asyncio.timeout(30), Zk() as server:
        one, two = await server.client(), await server.client()
        async with NonBlockingLease(one, "/l/job", hour, "one", clock) as lease:
            assert lease.obtained
            assert lease.end == clock.now + hour
        await one.close()
        other = NonBlockingLease(two, "/l/job", hour, "two", clock)
        assert not await other.obtain()
        clock.now += timedelta(minutes=59)
        renewed = NonBlockingLease(two, "/l/job", hour, "one", clock)
        assert await renewed.obtain()
        clock.now += timedelta(minutes=59)
        assert not await other.obtain()
        clock.now += timedelta(minutes=2)
        assert await other.obtain()
        assert not await renewed.release()
        assert await other.release()
        assert await renewed.obtain()
        assert b'"holder": "one"' in ((await two.get("/l/job/lease_holder"))[0] or b"")


@pytest.mark.parametrize(
    "text", [b'{"version": 2}', b"nonsense", b'{"version": 1, "holder": "x", "end": "soon"}', b"[]"]
)
async def test_a_lease_that_another_program_wrote_is_not_taken(text: bytes) -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/l/lease_holder", text, makepath=True)
        assert not await NonBlockingLease(zk, "/l", timedelta(hours=1), "me").obtain()


async def test_several_holders_share_a_multi_lease() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        leases = [
            MultiNonBlockingLease(zk, 2, "/l", timedelta(hours=1), f"c{at}") for at in range(3)
        ]
        assert [await lease.obtain() for lease in leases] == [True, True, False]
        assert await leases[0].release()
        assert not await leases[0].release()
        async with leases[2] as lease:
            assert lease.obtained


@pytest.mark.parametrize("kind", KINDS)
async def test_a_lease_is_obtained_with_a_connection_lost_at_any_step(kind: str) -> None:
    async with asyncio.timeout(30), Zk() as server:

        async def work(zk: ZkClient, step: int) -> None:
            lease = NonBlockingLease(zk, f"/l{step}", timedelta(hours=1), "me")
            assert await lease.obtain()
            assert await lease.obtain()

        assert await at_every_step(server, kind, work) > 5


@pytest.mark.parametrize("seed", range(3))
async def test_a_semaphore_is_never_overbooked_though_sessions_end(seed: int) -> None:
    """Whoever works with a lease that is not in doubt is one of at most two."""
    rng = random.Random(seed)
    async with asyncio.timeout(30), Zk() as server:
        clients = [await server.client() for _ in range(4)]
        sure: set[int] = set()

        async def work(number: int) -> None:
            for _ in range(5):
                semaphore = Semaphore(clients[number], "/s", max_leases=2)
                async with semaphore as lease:
                    sure.add(number)
                    for _ in range(rng.randrange(20)):
                        await asyncio.sleep(0)
                        if lease.lost.is_set():
                            break
                        assert len(sure) <= 2
                    sure.discard(number)

        async def disturb() -> None:
            while True:
                for _ in range(rng.randrange(60)):
                    await asyncio.sleep(0)
                victim = rng.randrange(4)
                zk = clients[victim]
                if zk.client_id is not None and zk.state is SessionState.CONNECTED:
                    sure.discard(victim)
                    await server.expire(zk)
                    sure.discard(victim)

        disturbing = asyncio.ensure_future(disturb())
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(work(number))
        disturbing.cancel()
        await asyncio.wait({disturbing})


async def test_an_addition_whose_fate_cannot_be_asked_for_is_told_as_open() -> None:
    async with asyncio.timeout(30), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk, other = await server.client(connect=faults), await server.client()
        counter = Counter(zk, "/c")
        await counter.add(1)
        closing: list[asyncio.Task[None]] = []

        def lose_and_close(_number: int, api: AnyApi) -> str | None:
            if api is zkm.MULTI:
                return "after"
            if api is zkm.SYNC:
                closing.append(asyncio.ensure_future(zk.close()))
            return None

        faults.plan = lose_and_close
        with pytest.raises(ConnectionLostError):
            await counter.add(1)
        await closing[0]
        assert await Counter(other, "/c").value() == 2
