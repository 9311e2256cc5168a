"""What becomes of calls and watches when connections and sessions end."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from duolog import SessionState, WatchedEvent, ZkClient, zk_keeper
from duolog_protocol.errors import (
    ConnectionClosedError,
    ConnectionLostError,
    RequestTimeoutError,
    SessionExpiredError,
)
from duolog_protocol.types import EventType, KeeperState
from duolog_runtime.connection import ClientLink
from tests.support import until

from .zk_support import FaultyConnect, Zk, fault_at, no_faults


@pytest.mark.parametrize("kind", ["before", "after"])
async def test_a_read_is_sent_again_and_a_write_is_not(kind: str) -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client(connect=FaultyConnect(fault_at(0, kind)))
        assert await zk.exists("/a") is None
        zk = await server.client(connect=FaultyConnect(fault_at(0, kind)))
        with pytest.raises(ConnectionLostError):
            await zk.create("/a")
        assert (await zk.exists("/a") is not None) == (kind == "after")


async def test_a_call_waits_for_the_connection_up_to_its_timeout() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await server.kill(server.zk)
        await zk.wait_for(SessionState.SUSPENDED)
        with pytest.raises(RequestTimeoutError, match="Exists"):
            await zk.exists("/", timeout=0.01)
        waiting = asyncio.ensure_future(zk.create("/a"))
        await asyncio.sleep(0)
        await server.start_zk()
        assert await waiting == "/a"


async def test_watches_outlive_the_connection() -> None:
    async with asyncio.timeout(30), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk, other = await server.client(connect=faults), await server.client()
        await other.create("/a")
        heard: list[tuple[EventType, str]] = []

        def hear(event: WatchedEvent) -> None:
            heard.append((event.type, event.path))

        await zk.get("/a", hear)
        await zk.get_children("/", hear)
        await zk.exists("/b", hear)
        faults.cut()
        await other.set("/a", b"1")
        await other.create("/b")
        await zk.sync()
        assert set(heard) == {
            (EventType.CHANGED, "/a"),
            (EventType.CREATED, "/b"),
            (EventType.CHILD, "/"),
        }
        assert len(heard) == 3


async def test_the_end_of_the_session_is_told_to_watches_and_the_next_one_opens_by_itself() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        states: list[SessionState] = []
        zk.add_listener(states.append)
        heard: list[WatchedEvent] = []
        await zk.exists("/a", heard.append)
        first = zk.client_id
        await zk.create("/e", ephemeral=True)
        await server.expire(zk)
        assert await zk.exists("/e") is None
        assert zk.client_id != first
        assert [(each.type, each.state) for each in heard] == [
            (EventType.NONE, KeeperState.EXPIRED)
        ]
        assert states == [SessionState.SUSPENDED, SessionState.LOST, SessionState.CONNECTED]
        zk.remove_listener(states.append)


async def test_what_belongs_to_a_session_is_not_sent_in_the_next_one() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        assert zk.client_id is not None
        session_id = zk.client_id[0]
        assert await zk.transaction().create("/a").commit(session_id=session_id) == ["/a"]
        await server.expire(zk)
        with pytest.raises(SessionExpiredError):
            await zk.transaction().create("/b").commit(session_id=session_id)
        assert await zk.exists("/b") is None


async def test_a_session_can_be_taken_over_and_only_that_one() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/e", ephemeral=True)
        client_id = zk.client_id
        assert zk._keeper._task is not None
        zk._keeper._task.cancel()  # it died
        async with ZkClient(server.zookeeper, client_id=client_id) as heir:
            assert heir.client_id == client_id
            assert await heir.exists("/e") is not None
        with pytest.raises(SessionExpiredError):
            await ZkClient(server.zookeeper, client_id=(1, b"x" * 16)).start()


async def test_tasks_of_a_client_end_with_it() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        task = zk.spawn("wait", asyncio.Event().wait())
        closing = zk.spawn("close", zk.close())
        await closing
        assert task.cancelled()
        with pytest.raises(ConnectionClosedError):
            await zk.exists("/")
        assert zk.client_id is None
        assert not zk.connected


async def stubborn(release: asyncio.Event) -> None:
    while not release.is_set():
        try:
            await release.wait()
        except asyncio.CancelledError:
            continue


async def test_a_task_that_does_not_end_does_not_hold_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zk_keeper, "CLOSE_SECONDS", 0.05)
    async with asyncio.timeout(30), Zk() as server:
        zk, other = await server.client(), await server.client()
        await zk.create("/e", ephemeral=True)
        release = asyncio.Event()
        task = zk.spawn("stubborn", stubborn(release))
        await asyncio.sleep(0)  # it must have begun to withstand
        await zk.close()
        assert zk.state is SessionState.LOST
        assert await other.exists("/e") is None
        assert not task.done()
        release.set()
        await task


async def test_a_close_that_is_cancelled_leaves_no_connection() -> None:
    async with asyncio.timeout(30), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk = await server.client(connect=faults)
        [session] = [each for each in asyncio.all_tasks() if each.get_name() == "zk-session"]
        release = asyncio.Event()
        task = zk.spawn("stubborn", stubborn(release))
        await asyncio.sleep(0)
        closing = asyncio.create_task(zk.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing, session})
        assert closing.cancelled() and session.cancelled()
        assert faults.links[-1].closed
        assert zk.state is SessionState.LOST
        release.set()
        await task
        await zk.close()


async def test_a_client_that_reaches_nobody_says_so() -> None:
    zk = ZkClient("127.0.0.1:1")
    with pytest.raises(RequestTimeoutError, match="accepted"):
        await zk.start(0.05)


async def test_who_waits_in_vain_hears_why_of_every_server() -> None:
    reasons = [
        ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"),
        socket.gaierror(socket.EAI_NONAME, "no such name"),
    ]
    all_tried = asyncio.Event()

    async def fail(*_: Any, **__: Any) -> ClientLink:
        if not reasons:
            all_tried.set()
            await asyncio.Event().wait()
        raise ConnectionLostError("cannot connect") from reasons.pop(0)

    zk = ZkClient("a:1,b:1,c:1", connect=fail)
    async with asyncio.timeout(30):
        starting = asyncio.create_task(zk.start(60))
        await all_tried.wait()
        with pytest.raises(RequestTimeoutError, match="accepted") as start:
            await zk._keeper._until_usable(0)
        with pytest.raises(RequestTimeoutError, match="Exists") as call:
            await zk.exists("/", timeout=0)
        for told in (str(start.value), str(call.value)):
            servers = [each.split(":1: ") for each in told[:-1].partition(" (")[2].split("; ")]
            assert sorted(server for server, _ in servers) == ["a", "b", "c"]
            whys = [why for _, why in servers]
            assert whys == ["connection refused", "no such name", "no answer yet"]
        starting.cancel()
        await asyncio.wait({starting})


async def test_what_kept_servers_away_is_forgotten_with_the_next_connection() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await server.kill(server.zk)
        await zk.wait_for(SessionState.SUSPENDED)
        await until(lambda: "connection refused" in zk._keeper._why())
        await server.start_zk()
        await zk.wait_for(SessionState.CONNECTED)
        assert zk._keeper._why() == ""


async def test_states_are_told_until_the_end() -> None:
    async with asyncio.timeout(30), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk = await server.client(connect=faults)
        states = zk.states()
        assert await anext(states) is SessionState.CONNECTED
        faults.cut()
        assert await anext(states) is SessionState.SUSPENDED
        assert await anext(states) is SessionState.CONNECTED
        await states.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_connections_that_break_at_any_moment_of_a_reconnect_do_not_hold_the_loop(
    turns: int,
) -> None:
    """The end of a link that is told late was once taken for the end of the next one."""
    async with asyncio.timeout(30), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk = await server.client(connect=faults)
        await zk.exists("/a", lambda _event: None)
        for _ in range(5):
            faults.cut()
            for _ in range(turns):
                await asyncio.sleep(0)
        assert await zk.sync() == "/"


async def test_an_error_of_a_task_goes_to_the_loops_handler() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        told: list[BaseException] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))

        async def fail() -> None:
            raise ZeroDivisionError

        task = zk.spawn("fail", fail())
        await asyncio.wait({task})
        await asyncio.sleep(0)
        loop.set_exception_handler(None)
        assert [type(each) for each in told] == [ZeroDivisionError]


async def test_a_fault_of_the_client_itself_is_raised_by_every_call() -> None:
    async def broken(*_args: object, **_kwargs: object) -> object:
        raise ZeroDivisionError

    told: list[BaseException] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))
    zk = ZkClient("127.0.0.1:1", connect=broken)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        await zk.start()
    loop.set_exception_handler(None)
    assert len(told) == 1


async def test_more_watches_than_one_request_holds_survive_a_reconnect_in_which_they_fire() -> None:
    async with asyncio.timeout(30), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk, other = await server.client(connect=faults), await server.client()
        paths = [f"/{number:04d}{'x' * 90}" for number in range(600)]
        await asyncio.gather(*(other.create(path) for path in paths))
        heard: list[str] = []
        await asyncio.gather(
            *(zk.get(path, lambda each: heard.append(each.path)) for path in paths)
        )
        faults.cut()
        await other.set(paths[0], b"x")
        await zk.sync()
        await other.set(paths[-1], b"x")
        await until(lambda: heard == [paths[0], paths[-1]])


async def test_a_watcher_or_listener_that_raises_keeps_nothing_from_the_others() -> None:
    async with asyncio.timeout(10), Zk() as server:
        faults = FaultyConnect(no_faults)
        zk, other = await server.client(connect=faults), await server.client()
        await other.create("/a")
        failed: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: failed.append(context["exception"])
        )

        def raises(_told: object) -> None:
            raise ZeroDivisionError

        states: list[SessionState] = []
        zk.add_listener(raises)
        zk.add_listener(states.append)
        async with zk.events("/a") as events:
            await zk.exists("/a", raises)
            await other.set("/a", b"1")
            assert (await anext(events)).type is EventType.CHANGED
            assert len(failed) == 1
            faults.cut()
            await zk.sync()
            assert states == [SessionState.SUSPENDED, SessionState.CONNECTED]
            assert [type(each) for each in failed] == [ZeroDivisionError] * 3
