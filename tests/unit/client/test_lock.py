"""Locks against a real server: order, exclusion, crashes, lost answers, cancellation, fencing."""

from __future__ import annotations

import asyncio
import random

import pytest

from duolog import SessionState, ZkClient
from duolog.recipes.lock import Lock, ReadLock, WriteLock
from duolog_protocol.errors import Error, LockTimeoutError, NoNodeError
from duolog_protocol.types import EventType
from tests.support import until

from .zk_support import FaultyConnect, Zk, fault_at, no_faults


async def contenders_of(zk: ZkClient, path: str = "/lock") -> int:
    await zk.sync(path)
    return len(await zk.get_children(path))


async def test_contenders_get_the_lock_in_the_order_in_which_they_came() -> None:
    async with asyncio.timeout(30), Zk() as server:
        clients = [await server.client() for _ in range(4)]
        order: list[int] = []
        tokens: list[int] = []

        async def contend(number: int) -> None:
            async with Lock(clients[number], "/lock", f"c{number}") as lock:
                order.append(number)
                tokens.append(lock.token)

        first = Lock(clients[0], "/lock", "first")
        await first.acquire()
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(contend(number))
                names = ["first", *(f"c{each}" for each in range(number + 1))]
                while await first.contenders() != names:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            assert order == []
            token = first.token
            await first.release()
        assert order == [0, 1, 2, 3]
        assert [token, *tokens] == sorted([token, *tokens])
        assert await contenders_of(clients[0]) == 0


async def test_a_contender_watches_its_predecessor_only() -> None:
    async with asyncio.timeout(30), Zk() as server:
        holder, second, third = [await server.client() for _ in range(3)]
        async with Lock(holder, "/lock"):
            tasks = []
            for zk in (second, third):
                tasks.append(asyncio.ensure_future(Lock(zk, "/lock").acquire()))
                before = len(tasks)
                while await contenders_of(holder) != before + 1:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            names = sorted(await holder.get_children("/lock"), key=lambda name: name[-10:])
            await until(lambda: third._keeper.watches.count == 1)
            (table,) = [each for each in third._keeper.watches._one_shot.values() if each]
            assert list(table) == [f"/lock/{names[1]}"]
        await tasks[0]
        assert not tasks[1].done()
        tasks[1].cancel()


async def test_a_crashed_holder_is_followed_by_the_next_and_hears_that_it_lost_the_lock() -> None:
    async with asyncio.timeout(30), Zk() as server:
        one, two = await server.client(), await server.client()
        lock = Lock(one, "/lock")
        await lock.acquire()
        assert not lock.lost.is_set()
        waiting = asyncio.ensure_future(Lock(two, "/lock").acquire())
        await server.expire(one)
        assert lock.lost.is_set()
        assert await waiting
        assert lock.is_acquired
        assert await lock.release()


async def test_a_contender_whose_session_ends_while_it_waits_contends_again() -> None:
    async with asyncio.timeout(30), Zk() as server:
        one, two = await server.client(), await server.client()
        async with Lock(one, "/lock"):
            other = Lock(two, "/lock", "two")
            waiting = asyncio.ensure_future(other.acquire())
            while "two" not in await other.contenders():  # noqa: ASYNC110
                await asyncio.sleep(0)
            await server.expire(two)
            while "two" not in await other.contenders():  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert await waiting
        assert await contenders_of(one) == 1


async def test_suspension_puts_the_lock_in_doubt_and_does_not_take_it_away() -> None:
    async with asyncio.timeout(30), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk = await server.client(connect=faults)
        async with Lock(zk, "/lock") as lock:
            faults.cut()
            await lock.lost.wait()
            await zk.wait_for(SessionState.CONNECTED)
            assert await zk.exists(lock.node) is not None
            assert lock.lost.is_set()
        async with lock:
            assert not lock.lost.is_set()


async def test_a_contender_that_is_deleted_by_somebody_loses_the_lock() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        async with Lock(zk, "/lock") as lock:
            transaction = lock.transaction().create("/made", b"")
            await zk.delete(lock.node)
            await lock.lost.wait()
            results = await transaction.commit()
            assert isinstance(results[0], NoNodeError)
            assert await zk.exists("/made") is None


async def test_a_waiting_contender_that_is_deleted_by_somebody_queues_up_again() -> None:
    async with asyncio.timeout(30), Zk() as server:
        one, two = await server.client(), await server.client()
        async with Lock(one, "/lock"):
            waiting = asyncio.ensure_future(Lock(two, "/lock").acquire())
            while await contenders_of(one) != 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            newest = max(await one.get_children("/lock"), key=lambda name: name[-10:])
            await one.delete(f"/lock/{newest}")
        assert await waiting


async def test_one_that_does_not_want_to_wait_gets_an_answer_and_leaves_nothing() -> None:
    async with asyncio.timeout(30), Zk() as server:
        one, two = await server.client(), await server.client()
        lock = Lock(two, "/lock")
        async with Lock(one, "/lock"):
            assert not await lock.acquire(blocking=False)
            while await contenders_of(one) != 1:  # noqa: ASYNC110
                await asyncio.sleep(0)
            with pytest.raises(LockTimeoutError):
                await lock.acquire(timeout=0.01)
            while await contenders_of(one) != 1:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert await lock.acquire(blocking=False)
        assert not await lock.acquire(blocking=False)
        assert await lock.release()
        assert not await lock.release()
        with pytest.raises(RuntimeError, match="not acquired"):
            _ = lock.token


async def test_tasks_that_share_a_lock_object_take_turns() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        lock = Lock(zk, "/lock")
        inside = 0

        async def work() -> None:
            nonlocal inside
            async with lock:
                inside += 1
                await zk.sync()
                assert inside == 1
                inside -= 1

        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(work())


async def test_readers_share_and_a_writer_is_alone() -> None:
    async with asyncio.timeout(30), Zk() as server:
        clients = [await server.client() for _ in range(4)]
        reader, other_reader = ReadLock(clients[0], "/rw", "r1"), ReadLock(clients[1], "/rw", "r2")
        writer, late_reader = WriteLock(clients[2], "/rw", "w"), ReadLock(clients[3], "/rw", "r3")
        await reader.acquire()
        await other_reader.acquire()
        writing = asyncio.ensure_future(writer.acquire())
        while "w" not in await writer.contenders():  # noqa: ASYNC110
            await asyncio.sleep(0)
        reading = asyncio.ensure_future(late_reader.acquire())
        while "r3" not in await late_reader.contenders():  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert await writer.contenders() == ["r1", "r2", "w", "r3"]
        await reader.release()
        assert not writing.done()
        await other_reader.release()
        await writing
        assert not reading.done()
        await writer.release()
        await reading
        assert await late_reader.release()


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("held_up", [False, True])
async def test_a_connection_lost_at_any_step_neither_leaks_nor_doubles_a_contender(
    kind: str, held_up: bool
) -> None:
    async with asyncio.timeout(60), Zk() as server:
        other = await server.client()
        await other.ensure_path("/lock")
        for step in range(100):
            faults = FaultyConnect(fault_at(step, kind))
            zk = await server.client(connect=faults)
            lock = Lock(zk, "/lock")
            holder = Lock(other, "/lock")
            if held_up:
                await holder.acquire()
            acquiring = asyncio.ensure_future(lock.acquire())
            if held_up:
                while await contenders_of(other) != 2:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                await holder.release()
            assert await acquiring
            assert await contenders_of(other) == 1
            assert await lock.release()
            assert await contenders_of(other) == 0
            await zk.close()
            if len(faults.sent) < step:
                break
        else:
            pytest.fail("the faults never ended")


async def test_cancelling_at_any_await_leaks_no_contender() -> None:
    """The acquire is cancelled after each number of turns of the loop that it can last."""
    async with asyncio.timeout(60), Zk() as server:
        zk, other = await server.client(), await server.client()
        await other.ensure_path("/lock")
        turns = done = 0
        while not done:
            lock = Lock(zk, "/lock")
            acquiring = asyncio.ensure_future(lock.acquire())
            for _ in range(turns):
                await asyncio.sleep(0)
            acquiring.cancel()
            await asyncio.wait({acquiring})
            if acquiring.cancelled():
                assert not lock.is_acquired
            else:
                done = 1
                await lock.release()
            while await contenders_of(other):  # noqa: ASYNC110
                await asyncio.sleep(0)
            turns += 1
        assert turns > 5


async def test_cancelling_while_it_is_suspended_leaks_no_contender() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.ensure_path("/lock")
        await server.kill(server.zk)
        await zk.wait_for(SessionState.SUSPENDED)
        acquiring = asyncio.ensure_future(Lock(zk, "/lock").acquire())
        await asyncio.sleep(0)
        acquiring.cancel()
        await server.start_zk()
        other = await server.client()
        async with Lock(other, "/lock"):
            assert await contenders_of(other) == 1


async def test_closing_the_client_while_it_waits_ends_the_wait() -> None:
    async with asyncio.timeout(30), Zk() as server:
        one, two = await server.client(), await server.client()
        async with Lock(one, "/lock"):
            waiting = asyncio.ensure_future(Lock(two, "/lock").acquire())
            while await contenders_of(one) != 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await two.close()
            with pytest.raises(Error):
                await waiting
            assert await contenders_of(one) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_a_counter_behind_a_fenced_lock_loses_no_update_though_sessions_end(
    seed: int,
) -> None:
    """Every increment that was acknowledged is there once, whatever happened to the holders."""
    rng = random.Random(seed)
    async with asyncio.timeout(120), Zk() as server:
        workers = [await server.client() for _ in range(3)]
        await workers[0].create("/counter", b"0")
        added = 0
        seen: list[tuple[int, int]] = []

        async def work(zk: ZkClient) -> None:
            nonlocal added
            lock = Lock(zk, "/lock")
            for _ in range(5):
                async with lock:
                    token = lock.token
                    data, _ = await zk.get("/counter")
                    if rng.random() < 0.4:  # a holder that sleeps through the end of its session
                        await lock.lost.wait()
                        for _ in range(rng.randrange(20)):
                            await zk.sync()
                    value = int(data or b"0") + 1
                    transaction = lock.transaction().set_data("/counter", b"%d" % value)
                    try:
                        results = await transaction.commit()
                    except Error as error:
                        if error.definite:
                            continue
                        await zk.sync()
                        raise AssertionError("this test breaks no connection by itself") from error
                    if not isinstance(results[-1], Error):
                        added += 1
                        seen.append((token, value))

        async def disturb() -> None:
            while True:
                for _ in range(rng.randrange(30)):
                    await asyncio.sleep(0)
                victim = rng.choice(workers)
                if victim.client_id is not None:
                    await server.expire(victim)

        disturbing = asyncio.ensure_future(disturb())
        done, _ = await asyncio.wait({asyncio.ensure_future(work(zk)) for zk in workers})
        disturbing.cancel()
        await asyncio.wait({disturbing})
        lost_answers = [task for task in done if task.exception() is not None]
        data, _ = await workers[0].get("/counter")
        assert added <= int(data or b"0") <= added + len(lost_answers)
        assert [value for _, value in seen] == sorted({value for _, value in seen})
        assert [token for token, _ in seen] == sorted(token for token, _ in seen)


async def test_an_event_of_another_kind_does_not_end_a_wait() -> None:
    """A predecessor whose data changes is still there."""
    async with asyncio.timeout(30), Zk() as server:
        one, two = await server.client(), await server.client()
        async with Lock(one, "/lock") as lock:
            waiting = asyncio.ensure_future(Lock(two, "/lock").acquire())
            while await contenders_of(one) != 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            events: list[EventType] = []
            await one.get(lock.node, lambda event: events.append(event.type))
            await one.set(lock.node, b"new")
            assert events == [EventType.CHANGED]
            assert not waiting.done()
        assert await waiting
