"""Queues against a real server: order, waiting, crashes, lost answers, cancellation."""

from __future__ import annotations

import asyncio

import pytest

from duolog import LockingQueue, Queue, ZkClient
from duolog.recipes.claims import Change
from duolog_protocol import zk_messages as zkm
from duolog_protocol.apis import AnyApi
from tests.support import until

from .test_recipes import KINDS, at_every_step, eventually, no_children
from .zk_support import FaultyConnect, Zk, fault_at, no_faults


async def test_entries_come_by_priority_then_by_age() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        async with Queue(zk, "/q") as queue:
            assert await queue.get() is None
            await queue.put(b"low", 900)
            await queue.put(b"one")
            await queue.put(b"two")
            await queue.put(b"high", 0)
            assert await queue.size() == 4
            assert [await queue.get() for _ in range(5)] == [b"high", b"one", b"two", b"low", None]
            for wrong in (-1, 1000):
                with pytest.raises(ValueError):
                    await queue.put(b"", wrong)
            with pytest.raises(TypeError):
                await queue.put("text")  # type: ignore[arg-type]
        await eventually(lambda: no_children(zk, "/q-__once__"))


async def test_each_entry_goes_to_one_of_the_consumers_that_wait() -> None:
    async with asyncio.timeout(30), Zk() as server:
        clients = [await server.client() for _ in range(3)]
        found: list[bytes | None] = []

        async def consume(zk: ZkClient) -> None:
            async with Queue(zk, "/q") as queue:
                for _ in range(4):
                    found.append(await queue.get(timeout=None))

        async with asyncio.TaskGroup() as group:
            for zk in clients:
                group.create_task(consume(zk))
            producer = Queue(await server.client(), "/q")
            for number in range(12):
                await producer.put(b"%02d" % number)
        assert sorted(found) == [b"%02d" % number for number in range(12)]  # type: ignore[type-var]
        assert await Queue(clients[0], "/q").get(timeout=0.01) is None


@pytest.mark.parametrize("kind", KINDS)
async def test_an_entry_is_put_once_and_got_once_with_a_connection_lost_at_any_step(
    kind: str,
) -> None:
    async with asyncio.timeout(30), Zk() as server:

        async def work(zk: ZkClient, step: int) -> None:
            async with Queue(zk, f"/q{step}") as queue:
                await queue.put(b"one")
                await queue.put(b"two")
                assert [await queue.get() for _ in range(3)] == [b"one", b"two", None]

        assert await at_every_step(server, kind, work) > 5


async def test_calls_of_several_tasks_are_done_once_when_all_their_answers_are_lost() -> None:
    async with asyncio.timeout(30), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk = await server.client(connect=faults)
        async with Queue(zk, "/q") as queue:
            await queue.put(b"first")
            commits = 0

            def lose_two(_number: int, api: AnyApi) -> str | None:
                nonlocal commits
                commits += api is zkm.MULTI
                return "together" if api is zkm.MULTI and commits <= 2 else None

            faults.plan = lose_two
            results = await asyncio.gather(
                queue.put(b"second"), queue.put(b"third"), queue.get(), queue.put(b"fourth")
            )
            assert results[2] == b"first"
            faults.plan = no_faults
            left = [await queue.get() for _ in range(4)]
            assert sorted(left[:3]) == [b"fourth", b"second", b"third"]  # type: ignore[type-var]
            assert left[3] is None


async def test_cancelling_a_get_at_any_await_loses_no_entry() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        async with Queue(zk, "/q") as queue:
            await queue.put(b"x")
            turns, got = 0, None
            while got is None:
                getting = asyncio.ensure_future(queue.get())
                for _ in range(turns):
                    await asyncio.sleep(0)
                getting.cancel()
                await asyncio.wait({getting})
                if not getting.cancelled():
                    got = getting.result()
                else:
                    await eventually(lambda: has_entry(queue))
                turns += 1
            assert got == b"x"
            assert turns > 3


async def test_what_was_found_is_kept_when_the_time_is_up_while_the_turn_is_passed_on() -> None:
    async with asyncio.timeout(30), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk, other = await server.client(connect=faults), await server.client()
        waiting: asyncio.Future[bytes | None]

        def cancel_at_release(_number: int, api: AnyApi) -> str | None:
            if api is zkm.DELETE:  # the lock on the turn; an entry goes in a transaction
                waiting.cancel()
            return None

        for queue, producer in (
            (Queue(zk, "/q"), Queue(other, "/q")),
            (LockingQueue(zk, "/l"), LockingQueue(other, "/l")),
        ):
            faults.plan = no_faults
            sent = len(faults.sent)
            waiting = asyncio.ensure_future(queue.get(timeout=None))
            await until(lambda sent=sent: faults.sent[sent:].count("GetChildren") >= 3)  # type: ignore[misc]
            faults.plan = cancel_at_release
            await producer.put(b"job")
            await asyncio.wait({waiting})
            assert not waiting.cancelled()
            assert waiting.result() == b"job"


async def has_entry(queue: Queue) -> bool:
    return await queue.size() == 1


async def test_an_entry_is_locked_until_it_is_consumed_or_given_back() -> None:
    async with asyncio.timeout(30), Zk() as server:
        one, two = await server.client(), await server.client()
        async with LockingQueue(one, "/q") as queue, LockingQueue(two, "/q") as other:
            await queue.put_all([b"a", b"b"])
            assert await queue.get() == b"a"
            assert await queue.get() == b"a"
            assert await queue.holds_lock()
            assert await other.get() == b"b"
            assert await other.release()
            assert not await other.release()
            assert not await other.consume()
            assert await queue.consume()
            assert not await queue.holds_lock()
            assert await queue.size() == 1
            async with other.claim() as value:
                assert value == b"b"
            assert await other.size() == 0
            assert await other.get(timeout=0.01) is None


async def test_an_entry_of_a_crashed_consumer_goes_to_another_who_waits() -> None:
    async with asyncio.timeout(30), Zk() as server:
        one, two = await server.client(), await server.client()
        queue, other = LockingQueue(one, "/q"), LockingQueue(two, "/q")
        await queue.put(b"job")
        assert await queue.get() == b"job"
        waiting = asyncio.ensure_future(other.get())
        await server.expire(one)
        assert await waiting == b"job"
        assert not await queue.holds_lock()
        assert not await queue.consume()
        assert await other.holds_lock()
        assert await other.consume()


async def test_an_entry_that_is_given_back_wakes_the_first_who_ever_waited() -> None:
    async with asyncio.timeout(10), Zk() as server:
        one, two = await server.client(), await server.client()
        queue, other = LockingQueue(one, "/q"), LockingQueue(two, "/q")
        await queue.put(b"job")
        lock = queue._lock

        async def outrun(name: str) -> None:
            queue._lock = lock  # type: ignore[method-assign]
            assert await other.get() == b"job"

        queue._lock = outrun  # type: ignore[assignment, method-assign]
        async with Change(one) as change:
            assert await queue._take_first(change) is None
            await other.release()
            await change.wait()
            assert await queue._take_first(change) is not None


async def test_a_claim_whose_work_fails_is_given_back() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        async with LockingQueue(zk, "/q") as queue:
            await queue.put(b"job")
            with pytest.raises(ZeroDivisionError):
                async with queue.claim():
                    raise ZeroDivisionError
            assert await queue.get() == b"job"
        async with LockingQueue(zk, "/q") as queue:
            assert await queue.get(timeout=1) == b"job"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_locking_queue_works_with_a_connection_lost_at_any_step(kind: str) -> None:
    async with asyncio.timeout(30), Zk() as server:

        async def work(zk: ZkClient, step: int) -> None:
            async with LockingQueue(zk, f"/q{step}") as queue:
                await queue.put(b"one")
                async with queue.claim() as value:
                    assert value == b"one"
                assert await queue.get(timeout=0) is None
                assert await queue.size() == 0

        assert await at_every_step(server, kind, work) > 5


async def test_cancelling_a_locking_get_leaves_no_lock() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk, other = await server.client(), await server.client()
        queue = LockingQueue(zk, "/q")
        await queue.put(b"x")
        turns, got = 0, None
        await other.ensure_path("/q/taken")
        while got is None:
            getting = asyncio.ensure_future(queue.get())
            for _ in range(turns):
                await asyncio.sleep(0)
            getting.cancel()
            await asyncio.wait({getting})
            if not getting.cancelled():
                got = getting.result()
            else:
                await eventually(lambda: no_children(other, "/q/taken"))
            turns += 1
        assert got == b"x"


async def test_a_session_that_ends_with_an_answer_is_told_as_open() -> None:
    """The journal goes with the session: nobody can say whether the entry was put."""
    async with asyncio.timeout(30), Zk() as server:
        faults = FaultyConnect(fault_at(-1, ""))
        zk = await server.client(connect=faults)
        queue = Queue(zk, "/q")
        await queue.put(b"first")
        putting: asyncio.Future[None] | None = None

        def plan(_number: int, api: object) -> str | None:
            return "after" if getattr(api, "name", "") == "Multi" and not server_down else None

        server_down: list[bool] = []
        faults.plan = plan  # type: ignore[assignment]
        putting = asyncio.ensure_future(queue.put(b"second"))
        await zk.wait_for(zk.state.__class__.SUSPENDED)
        server_down.append(True)
        await server.expire(zk) if zk.client_id is not None else None
        await asyncio.wait({putting})
        outcome = putting.exception()
        assert outcome is None or getattr(outcome, "definite", True) is False
