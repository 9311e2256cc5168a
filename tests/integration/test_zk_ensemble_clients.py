"""Clients of an ensemble whose servers die, in one process: sessions, watches, writes, a broker."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from pathlib import Path

import pytest

from duolog import Consumer, Producer, SessionState, TopicPartition, WatchedEvent, ZkClient
from duolog_cluster.cluster import Cluster, Member
from duolog_protocol import zk_messages
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.errors import ConfigError, ConnectionLostError, NodeExistsError
from duolog_protocol.types import OPEN_ACL_UNSAFE
from tests.jute_support import Body, JuteClient
from tests.support import until

SECONDS = 60
QUICK = {"tick_ms": 200, "ping_interval_ms": 50, "sync_limit_ms": 500}


def ensemble(brokers: int = 0, count: int = 3, **more: str) -> Cluster:
    return Cluster(brokers=brokers, zk=count, zk_settings=QUICK, **more)  # type: ignore[arg-type]


async def create_surely(zk: ZkClient, path: str) -> None:
    """A create whose answer may get lost: what is there then is ours."""
    while True:
        try:
            await zk.create(path)
        except ConnectionLostError:
            continue
        except NodeExistsError:
            return
        return


async def server_of(cluster: Cluster, zk: ZkClient) -> Member:
    """The server that a client is connected to, once it is."""
    assert zk.client_id is not None
    session_id = zk.client_id[0]

    def found() -> list[Member]:
        return [
            each
            for each in cluster.zk_servers
            if each.is_running
            for _, connection in each.server.node._links.items()
            if connection.session is not None and connection.session.session_id == session_id
        ]

    await until(lambda: len(found()) == 1)
    return found()[0]


async def test_an_ensemble_in_one_process_has_one_leader_and_all_serve() -> None:
    async with asyncio.timeout(SECONDS), ensemble(count=5) as cluster:
        roles = sorted(each.server.role for each in cluster.zk_servers)
        assert roles == [*["follower"] * 4, "leader"]
        assert cluster.zk_leader is await cluster.until_zk_leader()
        async with ZkClient(cluster.zookeeper) as zk:
            await zk.create("/a", b"1")
        for each in cluster.zk_servers:
            async with ZkClient(f"127.0.0.1:{each.port}") as zk:
                await zk.sync("/a")
                assert (await zk.get("/a"))[0] == b"1"


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_writes_go_on_without_the_leader_and_none_is_lost(how: str) -> None:
    async with asyncio.timeout(SECONDS), ensemble() as cluster:
        async with ZkClient(cluster.zookeeper, session_timeout=4) as zk:
            await zk.create("/w")
            session = zk.client_id
            done: list[int] = []

            async def write() -> None:
                for number in itertools.count():
                    await create_surely(zk, f"/w/{number}")
                    done.append(number)

            writing = asyncio.create_task(write())
            for _ in range(3):
                leader = await cluster.until_zk_leader()
                count = len(done)
                await until(lambda count=count: len(done) > count + 20)  # type: ignore[misc]
                await (cluster.kill(leader) if how == "kill" else cluster.stop(leader))
                count = len(done)
                await until(lambda count=count: len(done) > count + 20)  # type: ignore[misc]
                await cluster.start_zk(leader)
                await cluster.until_zk_serves(leader)
            writing.cancel()
            await asyncio.wait({writing})
            assert zk.client_id == session
        for each in cluster.zk_servers:
            async with ZkClient(f"127.0.0.1:{each.port}") as zk:
                await zk.sync("/w")
                there = {int(name) for name in await zk.get_children("/w")}
                assert there >= {*done}, each.name


async def test_everything_survives_the_death_of_all() -> None:
    async with (
        asyncio.timeout(SECONDS),
        ensemble() as cluster,
        ZkClient(cluster.zookeeper, session_timeout=10) as zk,
    ):
        await zk.create("/kept", b"1")
        await zk.create("/e", ephemeral=True)
        session = zk.client_id
        for each in cluster.zk_servers:
            await cluster.kill(each)
        await zk.wait_for(SessionState.SUSPENDED)
        for each in cluster.zk_servers:
            await cluster.start_zk(each)
        await cluster.until_zk_serves()
        await zk.wait_for(SessionState.CONNECTED)
        assert zk.client_id == session
        assert await zk.exists("/e") is not None
        assert (await zk.get("/kept"))[0] == b"1"


async def test_a_client_moves_with_its_session_and_its_ephemerals() -> None:
    async with (
        asyncio.timeout(SECONDS),
        ensemble() as cluster,
        ZkClient(cluster.zookeeper, session_timeout=4) as zk,
        ZkClient(cluster.zookeeper, session_timeout=4) as other,
    ):
        await zk.create("/e", ephemeral=True)
        session = zk.client_id
        states: list[SessionState] = []
        zk.add_listener(states.append)
        first = await server_of(cluster, zk)
        await cluster.kill(first)
        await until(lambda: len(states) == 2)
        assert states == [SessionState.SUSPENDED, SessionState.CONNECTED]
        assert await server_of(cluster, zk) is not first
        assert zk.client_id == session
        await other.sync("/e")
        stat = await other.exists("/e")
        assert stat is not None and session is not None
        assert stat.ephemeral_owner == session[0]


async def test_a_watch_that_moves_misses_no_change() -> None:
    async with (
        asyncio.timeout(SECONDS),
        ensemble() as cluster,
        ZkClient(cluster.zookeeper, session_timeout=4) as watcher,
        ZkClient(cluster.zookeeper, session_timeout=4) as writer,
    ):
        await writer.create("/a", b"0")
        await watcher.sync("/a")
        once: list[WatchedEvent] = []
        await watcher.get("/a", watch=once.append)
        async with watcher.events("/w", recursive=True) as events:
            expected = ["/w"]
            await create_surely(writer, "/w")
            for number in range(6):
                if number % 2:
                    server = await server_of(cluster, watcher)
                    await cluster.kill(server)
                expected.append(f"/w/{number}")
                await create_surely(writer, f"/w/{number}")
                if number % 2:
                    await cluster.start_zk(server)
                    await cluster.until_zk_serves(server)
            seen = [(await anext(events)).path for _ in expected]
            assert seen == expected
        assert once == []
        await writer.retry(writer.set, "/a", b"1")
        await until(lambda: len(once) == 1)


async def test_no_quorum_no_writes_and_no_reads_until_it_is_back() -> None:
    async with (
        asyncio.timeout(SECONDS),
        ensemble() as cluster,
        ZkClient(cluster.zookeeper, session_timeout=4) as zk,
    ):
        leader = await cluster.until_zk_leader()
        others = [each for each in cluster.zk_servers if each is not leader]
        for each in others:
            await cluster.kill(each)
        await until(lambda: cluster.zk_leader is None)
        await zk.wait_for(SessionState.SUSPENDED)
        await cluster.start_zk(others[0])
        await cluster.until_zk_serves(leader, others[0])
        await zk.create("/after")


async def test_a_broker_rides_over_the_death_of_each_zkserver_in_turn() -> None:
    async with asyncio.timeout(SECONDS), ensemble(brokers=1) as cluster:
        epoch = cluster.brokers[0].server.replicas.broker_epoch
        async with Producer(bootstrap_servers=cluster.bootstrap_servers) as producer:
            for number, server in enumerate(cluster.zk_servers):
                await cluster.kill(server)
                await cluster.until_zk_leader(other_than=server)
                await producer.send_and_wait(f"t{number}", b"made without one zkserver")
                await cluster.start_zk(server)
                await cluster.until_zk_serves(server)
        assert cluster.brokers[0].server.replicas.broker_epoch == epoch
        async with Consumer(bootstrap_servers=cluster.bootstrap_servers) as consumer:
            wanted = [TopicPartition(f"t{number}", 0) for number in range(3)]
            assert list((await consumer.end_offsets(wanted)).values()) == [1, 1, 1]


async def test_an_ensemble_is_kept_in_a_directory_of_the_callers(tmp_path: Path) -> None:
    async with asyncio.timeout(SECONDS):
        async with ensemble(data=str(tmp_path)) as cluster, ZkClient(cluster.zookeeper) as zk:
            await zk.create("/kept")
        async with ensemble(data=str(tmp_path)) as cluster, ZkClient(cluster.zookeeper) as zk:
            assert await zk.exists("/kept") is not None
        with pytest.raises(ConfigError, match="holds the data of 3"):
            async with ensemble(count=5, data=str(tmp_path)):
                pass


async def test_clients_of_a_follower_may_send_what_those_of_the_leader_may() -> None:
    # Nobody is to be taken for dead, however busy the machine is.
    more = {"jute_max_frame_bytes": 8 << 20, "sync_limit_ms": 20_000}
    paths = [f"/{number:0900}" for number in range(1_000)]
    op = zk_messages.MultiOp
    long = "/" + "a" * 5_000
    async with (
        asyncio.timeout(SECONDS),
        Cluster(brokers=0, zk=3, zk_settings=more) as cluster,
        ZkClient(cluster.zookeeper, session_timeout=20) as bystander,
    ):
        await bystander.create("/e", ephemeral=True)
        states: list[SessionState] = []
        bystander.add_listener(states.append)
        leader = await cluster.until_zk_leader()
        for server in sorted(cluster.zk_servers, key=lambda each: each is leader):
            client = await JuteClient.open(server.port)
            with contextlib.closing(client.writer):
                creates = [op(1, path, b"", OPEN_ACL_UNSAFE, 0, -1, -1) for path in paths]
                deletes = [op(2, path, None, None, 0, -1, -1) for path in paths]
                for ops in (creates, deletes):
                    reply = await client.call(14, zk_messages.MultiRequest(tuple(ops)))
                    results = Body(reply.body).multi()
                    assert [kind for kind, _ in results] == [each.kind for each in ops]
                for code, request in (
                    (2, zk_messages.DeleteRequest(long, -1)),
                    (5, zk_messages.SetDataRequest(long * 20, b"", -1)),
                    (1, zk_messages.CreateRequest(f"{long}/a", b"", OPEN_ACL_UNSAFE, 0, -1)),
                ):
                    assert (await client.call(code, request)).err == ZkErrorCode.NO_NODE
                request = zk_messages.CreateRequest(long, b"", OPEN_ACL_UNSAFE, 0, -1)
                assert (await client.call(1, request)).err == ZkErrorCode.BAD_ARGUMENTS
                request = zk_messages.SetDataRequest("/e", bytes(7 << 20), -1)
                assert (await client.call(5, request)).err == ZkErrorCode.BAD_ARGUMENTS
                assert (await client.call(5, request._replace(data=b"1"))).err == 0
                assert (
                    Body((await client.call(9, zk_messages.SyncRequest(long))).body).ustring()
                    == long
                )
                await client.close()
        assert await cluster.until_zk_leader() is leader
        assert states == []
        assert all(each.is_running for each in cluster.zk_servers)
