"""Following data and children, and the cache of a subtree, against a real server."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from duolog import (
    SessionState,
    TreeCache,
    TreeEvent,
    TreeEventType,
    ZkClient,
    watch_children,
    watch_data,
)
from tests.support import until

from .zk_support import FaultyConnect, Zk, no_faults


async def test_data_is_followed_through_creation_change_deletion_and_the_end_of_sessions() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk, other = await server.client(), await server.client()
        states = aiter(watch_data(zk, "/a"))
        assert await anext(states) == (None, None)
        await other.create("/a", b"1")
        assert (await anext(states))[0] == b"1"
        await other.set("/a", b"2")
        assert (await anext(states))[0] == b"2"
        await server.expire(zk)
        await other.set("/a", b"3")
        assert (await anext(states))[0] == b"3"
        await other.delete("/a")
        assert await anext(states) == (None, None)
        await other.create("/a", b"3")
        data, stat = await anext(states)
        assert data == b"3" and stat is not None
        waiting = asyncio.ensure_future(anext(states))
        await asyncio.sleep(0)
        await zk.close()
        with pytest.raises(StopAsyncIteration):
            await waiting


async def test_cancelling_a_wait_at_any_await_ends_no_iteration() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk, other = await server.client(), await server.client()
        await other.create("/a", b"0")
        states = aiter(watch_data(zk, "/a"))
        assert (await anext(states))[0] == b"0"
        for turns in range(12):
            await other.set("/a", b"%d" % turns)
            waiting = asyncio.ensure_future(anext(states))
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
            state = await anext(states) if waiting.cancelled() else waiting.result()
            while state[0] != b"%d" % turns:
                state = await anext(states)
        assert zk._keeper.watches.count == 1
        del states
        assert zk._keeper.watches.count == 0


async def test_a_state_that_did_not_change_is_not_told_again() -> None:
    async with asyncio.timeout(30), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk = await server.client(connect=faults)
        await zk.create("/a", b"1")
        told: list[Any] = []
        watch_data(zk, "/a")(lambda data, _stat: told.append(data))
        await until(lambda: told == [b"1"])
        faults.cut()
        await zk.sync()
        await zk.set("/a", b"2")
        await until(lambda: told[-1] == b"2")
        assert told == [b"1", b"2"]


async def test_children_are_followed_until_the_function_has_enough() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        told: list[list[str] | None] = []

        @watch_children(zk, "/p")
        async def changed(names: list[str] | None) -> bool:
            told.append(names)
            return names != ["a", "b"]

        await until(lambda: told == [None])
        await zk.create("/p")
        await until(lambda: told[-1] == [])
        await zk.create("/p/b")
        await until(lambda: told[-1] == ["b"])
        await zk.create("/p/a")
        await until(lambda: told[-1] == ["a", "b"])
        await zk.create("/p/c")
        await zk.sync()
        assert told == [None, [], ["b"], ["a", "b"]]


async def test_children_can_be_iterated() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/p")
        async for names in watch_children(zk, "/p"):
            if names == ["x"]:
                break
            await zk.create("/p/x")


async def content(zk: ZkClient, path: str) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {path: (await zk.get(path))[0]}
    for name in await zk.get_children(path):
        found |= await content(zk, f"{path.rstrip('/')}/{name}")
    return found


def cached(cache: TreeCache, path: str) -> dict[str, bytes | None]:
    node = cache.get_data(path)
    found: dict[str, bytes | None] = {} if node is None else {path: node.data}
    for name in cache.get_children(path) or ():
        found |= cached(cache, f"{path.rstrip('/')}/{name}")
    return found


async def test_a_cache_tells_what_it_reads_and_what_changes() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk, other = await server.client(), await server.client()
        await other.create("/c/x", b"1", makepath=True)
        cache = TreeCache(zk, "/c")
        events: list[TreeEvent] = []
        cache.listen(events.append)
        async with cache:
            node = cache.get_data("/c/x")
            assert node is not None and node.data == b"1"
            assert cache.get_children("/c") == frozenset({"x"})
            assert cache.get_data("/c/none") is None
            assert cache.get_children("/c/none", frozenset()) == frozenset()
            with pytest.raises(ValueError, match="outside"):
                cache.get_data("/d")
            await other.set("/c/x", b"2")
            await other.create("/c/y")
            await other.delete("/c/x")
            await until(lambda: cached(cache, "/c") == {"/c": b"", "/c/y": b""})
            kinds = [
                (each.type.name, each.event_data.path if each.event_data else "") for each in events
            ]
            assert kinds[:3] == [("NODE_ADDED", "/c"), ("NODE_ADDED", "/c/x"), ("INITIALIZED", "")]
            assert ("NODE_ADDED", "/c/y") in kinds
            assert kinds[-1] in {("NODE_REMOVED", "/c/x"), ("NODE_ADDED", "/c/y")}


async def test_a_cache_of_nothing_waits_for_its_root() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        async with TreeCache(zk, "/c") as cache:
            assert cache.get_data("/c") is None
            await zk.create("/c", b"1")
            await until(lambda: cache.get_data("/c") is not None)


async def test_a_cache_hears_of_the_session_and_reads_all_again_in_the_next_one() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk, other = await server.client(), await server.client()
        await other.create("/c/x", b"1", makepath=True)
        kinds: list[TreeEventType] = []
        async with TreeCache(zk, "/c") as cache:
            cache.listen(lambda event: kinds.append(event.type))
            await server.expire(zk)
            await other.delete("/c/x")
            await other.create("/c/z")
            await until(lambda: cached(cache, "/c") == {"/c": b"", "/c/z": b""})
            await until(lambda: TreeEventType.CONNECTION_RECONNECTED in kinds)
        assert kinds.index(TreeEventType.CONNECTION_LOST) >= 0
        assert kinds.index(TreeEventType.CONNECTION_SUSPENDED) >= 0


async def test_what_a_listener_raises_goes_to_the_fault_listeners() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/c")
        faults: list[BaseException] = []
        cache = TreeCache(zk, "/c")
        cache.listen_fault(faults.append)

        @cache.listen
        async def fail(_event: TreeEvent) -> None:
            raise ZeroDivisionError

        async with cache:
            assert [type(each) for each in faults] == [ZeroDivisionError] * 2


@pytest.mark.parametrize("seed", range(4))
async def test_a_cache_agrees_with_the_tree_after_random_changes_and_cuts(seed: int) -> None:
    rng = random.Random(seed)
    async with asyncio.timeout(30), Zk(max_history_events=rng.choice((5, 1000))) as server:
        faults = FaultyConnect(no_faults)
        zk, other = await server.client(connect=faults), await server.client()
        await other.create("/c")
        async with TreeCache(zk, "/c") as cache:
            for _ in range(120):
                path = "/c" + "".join(f"/{rng.choice('ab')}" for _ in range(rng.randrange(1, 4)))
                chance = rng.random()
                if chance < 0.45:
                    if await other.exists(path) is None:
                        await other.create(path, makepath=True)
                elif chance < 0.7:
                    if await other.exists(path) is not None:
                        await other.set(path, b"%d" % rng.randrange(1000))
                elif chance < 0.85:
                    if await other.exists(path) is not None:
                        await other.delete(path, recursive=True)
                elif chance < 0.95:
                    faults.cut()
                elif zk.state is SessionState.CONNECTED:
                    await server.expire(zk)
            expected = await content(other, "/c")
            await until(lambda: cached(cache, "/c") == expected)


async def test_a_cache_keeps_its_watch_on_a_tree_that_changes_faster_than_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("duolog.zk_events.MAX_BUFFERED_EVENTS", 30)
    async with asyncio.timeout(10), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk, other = await server.client(connect=faults), await server.client()
        await other.create("/t")
        for number in range(10):
            await other.create(f"/t/{number}")
        cache = TreeCache(zk, "/t")
        read_node = cache._read_node

        async def read_slowly(path: str) -> list[str] | None:
            for _ in range(10):
                await other.set("/t/1", b"")
            await zk.sync()
            return await read_node(path)

        cache._read_node = read_slowly  # type: ignore[method-assign]
        async with cache:
            assert len(cache.get_children("/t") or ()) == 10
            await other.set("/t/1", b"last")
            await other.create("/t/new")
            await until(lambda: cache.get_data("/t/new") is not None)
            await until(lambda: cache.get_data("/t/1").data == b"last")  # type: ignore[union-attr]
        assert faults.sent.count("AddWatch") == 1
