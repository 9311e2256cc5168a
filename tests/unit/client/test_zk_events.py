"""Streams of events against a real server: over reconnects, from a zxid, compacted, at the end."""

from __future__ import annotations

import asyncio
import random

import pytest

from duolog import SessionState, ZkClient
from duolog.zk import WatchedEvent
from duolog_protocol import zk_messages as zkm
from duolog_protocol.errors import SessionExpiredError, WatchOverflowError
from duolog_protocol.types import EventType, WatcherType

from .zk_support import FaultyConnect, Zk, no_faults


def told(event: WatchedEvent) -> tuple[str, str]:
    return event.type.name, event.path


async def take(stream: object, count: int) -> list[tuple[str, str]]:
    return [told(await anext(stream)) for _ in range(count)]  # type: ignore[call-overload]


async def test_a_stream_tells_what_happens_to_its_path_with_the_zxid() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk, other = await server.client(), await server.client()
        async with zk.events("/a") as events:
            _, created = await other.create("/a", include_data=True)
            changed = await other.set("/a", b"1")
            await other.create("/a/b")
            await other.delete("/a/b")
            await other.delete("/a")
            found = [await anext(events) for _ in range(5)]
        assert [each.type.name for each in found] == [
            *("CREATED", "CHANGED", "CHILD", "CHILD", "DELETED")
        ]
        assert [each.zxid for each in found[:2]] == [created.czxid, changed.mzxid]
        assert events.zxid == found[-1].zxid
        while await zk.check_watches("/a"):  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_recursive_stream_tells_of_the_subtree() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        async with zk.events("/", recursive=True) as events:
            await zk.create("/a/b", makepath=True)
            await zk.set("/a/b", b"1")
            assert await take(events, 3) == [
                ("CREATED", "/a"),
                ("CREATED", "/a/b"),
                ("CHANGED", "/a/b"),
            ]


async def test_every_event_of_a_gap_comes_once_and_in_order() -> None:
    async with asyncio.timeout(30), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk, other = await server.client(connect=faults), await server.client()
        await other.create("/a")
        async with zk.events("/a") as one, zk.events("/", recursive=True) as two:
            await other.set("/a", b"1")
            assert await take(one, 1) == await take(two, 1) == [("CHANGED", "/a")]
            faults.cut()
            for number in range(3):
                await other.set("/a", b"%d" % number)
            await other.create("/a/b")
            await other.delete("/a/b")
            assert await take(one, 5) == [("CHANGED", "/a")] * 3 + [("CHILD", "/a")] * 2
            assert await take(two, 5) == [("CHANGED", "/a")] * 3 + [
                ("CREATED", "/a/b"),
                ("DELETED", "/a/b"),
            ]
            await other.delete("/a")
            assert await take(one, 1) == await take(two, 1) == [("DELETED", "/a")]


async def test_the_gap_of_a_dead_server_is_told_too() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/a")
        async with zk.events("/a") as events:
            await server.kill(server.zk)
            await zk.wait_for(SessionState.SUSPENDED)
            await server.start_zk()
            other = await server.client()
            await other.set("/a", b"1")
            assert await take(events, 1) == [("CHANGED", "/a")]


async def test_a_stream_goes_on_after_the_zxid_where_another_ended() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk, other = await server.client(), await server.client()
        await other.create("/a")
        first = zk.events("/a")
        async with first:
            await other.set("/a", b"1")
            await take(first, 1)
        await other.set("/a", b"2")
        async with other.events("/a", after_zxid=first.zxid) as events:
            await other.delete("/a")
            assert await take(events, 2) == [("CHANGED", "/a"), ("DELETED", "/a")]


async def test_a_session_that_ends_is_told_and_another_stream_goes_on() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk, other = await server.client(), await server.client()
        await other.create("/a")
        async with zk.events("/a") as events:
            await other.set("/a", b"1")
            await take(events, 1)
            await server.expire(zk)
            await other.set("/a", b"2")
            with pytest.raises(SessionExpiredError):
                await anext(events)
        async with zk.events("/a", after_zxid=events.zxid) as again:
            assert await take(again, 1) == [("CHANGED", "/a")]


async def test_a_stream_that_heard_of_nothing_is_gone_on_with_too() -> None:
    async with asyncio.timeout(10), Zk() as server:
        zk, other = await server.client(), await server.client()
        await other.create("/a")
        async with zk.events("/a") as events:
            await server.expire(zk)
            with pytest.raises(SessionExpiredError):
                await anext(events)
        await other.set("/a", b"1")
        async with zk.events("/a", after_zxid=events.zxid) as again:
            assert await take(again, 1) == [("CHANGED", "/a")]


async def test_a_gap_that_is_not_known_any_more_is_compacted() -> None:
    async with asyncio.timeout(30), Zk(max_history_events=3) as server:
        zk, other = await server.client(), await server.client()
        await other.create("/a")
        for _ in range(10):
            await other.set("/a", b"")
        async with zk.events("/a", after_zxid=1) as events:
            assert await take(events, 1) == [("COMPACTED", "/a")]
            await other.set("/a", b"")
            assert await take(events, 1) == [("CHANGED", "/a")]


async def test_a_reader_that_is_too_slow_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duolog.zk_events.MAX_BUFFERED_EVENTS", 3)
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/a")
        async with zk.events("/a") as events:
            for _ in range(5):
                await zk.set("/a", b"")
            await take(events, 3)
            with pytest.raises(WatchOverflowError, match="read again"):
                await anext(events)


async def test_a_stream_ends_when_its_watch_is_removed_or_its_client_closed() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        async with zk.events("/a") as events, zk.events("/b") as others:
            assert await zk.remove_watches("/a", WatcherType.PERSISTENT)
            assert [event async for event in events] == []
            assert not await zk.remove_watches("/a", WatcherType.PERSISTENT)
            await zk.close()
            assert [event async for event in others] == []


async def test_removing_one_shot_watches_tells_their_watchers() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/a")
        heard: list[EventType] = []
        await zk.get("/a", lambda event: heard.append(event.type))
        await zk.get_children("/a", lambda event: heard.append(event.type))
        assert await zk.check_watches("/a", WatcherType.DATA)
        assert await zk.remove_watches("/a")
        assert heard == [EventType.DATA_WATCH_REMOVED, EventType.CHILD_WATCH_REMOVED]
        assert not await zk.check_watches("/a")


async def test_one_of_two_streams_on_a_path_may_end_without_the_other() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        async with zk.events("/a") as one:
            async with zk.events("/a") as two:
                await zk.create("/a")
                assert await take(one, 1) == await take(two, 1)
            await zk.delete("/a")
            assert await take(one, 1) == [("DELETED", "/a")]


@pytest.mark.parametrize("seed", range(8))
async def test_random_cuts_and_new_streams_lose_and_double_nothing(seed: int) -> None:
    """Streams on one path and on the whole tree, cut again and again, beside late streams."""
    rng = random.Random(seed)
    async with asyncio.timeout(60), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk, other = await server.client(connect=faults), await server.client()
        await other.create("/t")
        start = other.last_zxid_seen
        streams = [zk.events("/t", recursive=True), zk.events("/t/a")]
        for stream in streams:
            await stream._arm()
        written: list[tuple[int, str, str]] = []

        async def write() -> None:
            for _ in range(60):
                name = rng.choice("ab")
                path = f"/t/{name}"
                transaction = other.transaction()
                stat = await other.exists(path)
                if stat is None:
                    transaction.create(path, include_data=True).set_data(path, b"1")
                    kinds = ["CREATED", "CHANGED"]
                elif rng.random() < 0.5:
                    transaction.set_data(path, b"2")
                    kinds = ["CHANGED"]
                else:
                    transaction.set_data(path, b"3").delete(path)
                    kinds = ["CHANGED", "DELETED"]
                await transaction.commit()
                zxid = other.last_zxid_seen
                written.extend((zxid, kind, path) for kind in kinds)

        async def cut() -> None:
            while True:
                for _ in range(rng.randrange(60)):
                    await asyncio.sleep(0)
                if rng.random() < 0.7:
                    faults.cut()
                else:
                    late = zk.events("/t", recursive=True, after_zxid=start)
                    await late._arm()
                    streams.append(late)

        cutting = asyncio.ensure_future(cut())
        await write()
        cutting.cancel()
        await asyncio.wait({cutting})
        late = zk.events("/t", recursive=True, after_zxid=start)
        await late._arm()
        streams.append(late)
        await other.create("/t/end")
        for stream in streams:
            if not stream._watch.armed:
                continue
            wanted = "/t/a" if stream._watch.path == "/t/a" else "/t"
            expected = [each for each in written if each[2].startswith(wanted)]
            found: list[tuple[int, str, str]] = []
            while len(found) < len(expected):
                event = await anext(stream)
                found.append((event.zxid, event.type.name, event.path))
            assert found == expected
            if wanted == "/t":
                assert told(await anext(stream)) == ("CREATED", "/t/end")


async def test_arming_survives_a_lost_answer() -> None:
    def lose_first_add(number: int, api: object) -> str | None:
        return "after" if number == 0 and api is zkm.ADD_WATCH else None

    async with asyncio.timeout(30), Zk() as server:
        zk: ZkClient = await server.client(connect=FaultyConnect(lose_first_add))
        other = await server.client()
        await other.create("/a")
        async with zk.events("/a", after_zxid=0) as events:
            await other.set("/a", b"1")
            assert await take(events, 2) == [("CREATED", "/a"), ("CHANGED", "/a")]


async def test_cancelling_while_it_is_armed_leaves_a_stream_that_hears() -> None:
    """The answer to the cancelled try comes before, or after, the next one is sent."""
    async with asyncio.timeout(10), Zk() as server:
        zk, other = await server.client(), await server.client()
        await other.create("/a")
        start = other.last_zxid_seen
        for turns in range(12):
            stream = zk.events("/a", after_zxid=other.last_zxid_seen)
            await other.set("/a", b"before")
            for answered_before in (True, False):
                getting = asyncio.ensure_future(anext(stream))
                for _ in range(turns):
                    await asyncio.sleep(0)
                getting.cancel()
                await asyncio.wait({getting})
                if not getting.cancelled():
                    assert told(getting.result()) == ("CHANGED", "/a")
                    break
                if answered_before:
                    await zk.sync()
            else:
                assert await take(stream, 1) == [("CHANGED", "/a")]
            await other.set("/a", b"after")
            assert await take(stream, 1) == [("CHANGED", "/a")]
            assert stream.zxid == other.last_zxid_seen > start
            stream.close()
            await zk.sync()
            assert not await zk.check_watches("/a")
            assert not zk._keeper.watches._asked


async def test_what_is_told_to_a_stream_that_was_cancelled_doubles_nothing_for_another() -> None:
    """Its past comes all the same, and concerns the other one's paths."""
    async with asyncio.timeout(10), Zk() as server:
        zk, other = await server.client(), await server.client()
        start = zk.last_zxid_seen
        async with zk.events("/", recursive=True) as stream:
            await other.transaction().create("/a").set_data("/a", b"1").commit()
            assert await take(stream, 2) == [("CREATED", "/a"), ("CHANGED", "/a")]
            arming = asyncio.ensure_future(zk.events("/", recursive=True, after_zxid=start)._arm())
            await asyncio.sleep(0)
            assert arming.cancel(), "sent, and not answered"
            await asyncio.wait({arming})
            await zk.sync()
            assert not zk._keeper.watches._asked
            await other.set("/a", b"2")
            assert await take(stream, 1) == [("CHANGED", "/a")]
            assert stream.zxid == other.last_zxid_seen


async def test_a_stream_that_begins_now_has_no_past_that_others_could_hear_again() -> None:
    async with asyncio.timeout(10), Zk() as server:
        zk = await server.client()
        arming = asyncio.ensure_future(zk.events("/", recursive=True)._arm())
        await asyncio.sleep(0)
        assert not arming.done() and not zk._keeper.watches._asked
        await arming
