"""Whole clusters in a simulated world: what was acknowledged stays, and a seed decides it all."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from duolog import NewTopic, TopicPartition, ZkClient
from duolog_cluster.sim import NetworkFaults, SimCluster, SimMember, SimWorld
from duolog_protocol.errors import ConnectionClosedError, Error, ReconfigDisabledError
from duolog_protocol.txns import LEVEL_LAST
from zkserver.core.peer_config import PeerConfig
from zkserver.server import node

ROOT = Path(__file__).resolve().parents[3]
PRINT_HASHES = """
from tests.unit.cluster.test_sim_cluster import trouble
from duolog_cluster.sim import SimWorld
for seed in range(3):
    with SimWorld(seed) as world:
        world.run(trouble(world))
        print(seed, world.trace_hash())
"""


SUPER = ("digest", "super:secret")
_DIGEST = base64.b64encode(hashlib.sha1(b"super:secret").digest()).decode()
WITH_SUPER = {"super_digests": (f"super:{_DIGEST}",)}


async def count_up(zk: ZkClient, acknowledged: list[int]) -> None:
    """Write numbers, one after the other, for ever; an answer that was lost is no answer."""
    number = 0
    while True:
        number += 1
        try:
            await zk.set("/count", b"%d" % number, timeout=5.0)
        except ConnectionClosedError:
            return
        except Error:
            continue
        acknowledged.append(number)


async def trouble(world: SimWorld) -> None:
    """Everything happens to the leader, one thing after the other, while somebody writes."""
    rng = world.rng
    async with SimCluster(world, zk=3) as cluster, cluster.zk_client() as zk:
        await zk.create("/count", b"0")
        acknowledged: list[int] = []
        writer = asyncio.create_task(count_up(zk, acknowledged))
        for what in rng.sample(("kill", "power", "pause", "isolate", "disk"), 3):
            await world.sleep(rng.uniform(0, 0.2))
            leader = await cluster.until_zk_leader()
            before = len(acknowledged)
            match what:
                case "kill":
                    cluster.kill(leader)
                case "power":
                    cluster.lose_power(leader, lose_unsynced=rng.random() < 0.5)
                case "pause":
                    cluster.pause(leader)
                case "isolate":
                    cluster.isolate(leader)
                case "disk":
                    cluster.fill_disk(leader)
            await world.sleep(rng.uniform(0, 3))
            cluster.heal()
            cluster.resume(leader)
            cluster.free_disk(leader)
            if not leader.is_running:
                cluster.start(leader)
            await cluster.until_zk_serves()
            await cluster.until(lambda before=before: len(acknowledged) > before)
        writer.cancel()
        await zk.sync("/")
        data, stat = await zk.get("/count")
        assert int(data) >= acknowledged[-1] and stat.version >= len(acknowledged)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_acknowledged_is_lost_whatever_happens_to_the_leader(seed: int) -> None:
    with SimWorld(seed) as world:
        world.run(trouble(world))


def test_a_seed_gives_the_same_history_in_every_process() -> None:
    found = set()
    for hash_seed in ("1", "2"):
        path = os.pathsep.join([*filter(None, sys.path), str(ROOT)])
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        found.add(
            subprocess.run(
                [sys.executable, "-c", PRINT_HASHES],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                check=True,
            ).stdout
        )
    assert len(found) == 1 and b"2 " in found.pop()


def test_an_ensemble_serves_on_a_bad_network_with_wrong_clocks() -> None:
    async def story(world: SimWorld) -> None:
        cluster = SimCluster(world, zk=5)
        for number, member in enumerate(cluster.zk_servers):
            member.machine.clock.wall_offset_ms = (number - 2) * 86_400_000
            member.machine.clock.rate = 1 + (number - 2) / 100
        async with cluster, cluster.zk_client() as zk:
            await zk.create("/a", b"")
            for number in range(200):
                await zk.retry(zk.set, "/a", b"%d" % number)
            assert (await zk.get("/a"))[0] == b"199"

    for seed in range(5):
        with SimWorld(seed, NetworkFaults(loss_rate=0.002, dial_failure_rate=0.05)) as world:
            world.run(story(world))


@pytest.mark.parametrize("session_timeout", [4.0, 6.0, 10.0, 30.0])
def test_quiet_clients_of_every_server_keep_their_sessions(session_timeout: float) -> None:
    """Ten minutes in which nothing happens but pings; then one client does not ping any more."""

    async def hold(zk: ZkClient, path: str) -> None:
        async with zk:
            await zk.create(path, ephemeral=True)
            await asyncio.Event().wait()

    async def story(world: SimWorld) -> None:
        async with SimCluster(world, zk=3) as cluster:
            machines = []
            for server in cluster.zk_servers:
                zk = cluster.zk_client(hosts=server.address, session_timeout=session_timeout)
                machines.append(world.machine(f"client of {server.name}"))
                machines[-1].boot().start(hold(zk, f"/{server.name}"))
            await world.sleep(600)
            async with cluster.zk_client() as zk:
                names = {"zk-1", "zk-2", "zk-3"}
                assert names <= set(await zk.get_children("/"))
                machines[0].pause()
                await world.sleep(2 * session_timeout)
                assert names - set(await zk.get_children("/")) == {"zk-1"}

    with SimWorld() as world:
        world.run(story(world))


def test_nobody_writes_the_members_but_a_reconfiguration() -> None:
    async def story(world: SimWorld) -> None:
        async with SimCluster(world, zk=3, zk_settings=WITH_SUPER) as cluster:
            for server in cluster.zk_servers:
                async with cluster.zk_client(hosts=server.address, auth_data=[SUPER]) as zk:
                    shown = (await zk.get("/zookeeper/config"))[0]
                    with pytest.raises(Error, match="reconfig"):
                        await zk.set("/zookeeper/config", b"junk")
                    with pytest.raises(Error):
                        async with zk.transaction() as transaction:
                            transaction.set_data("/zookeeper/config", b"junk")
                    assert (await zk.get("/zookeeper/config"))[0] == shown

    with SimWorld() as world:
        world.run(story(world))


def test_servers_are_upgraded_one_by_one_under_load() -> None:
    """What the newer version knows is there once all have it, and not before."""
    real = node.peer_config

    def of_the_version_before(*given: Any) -> PeerConfig:
        return real(*given)._replace(level=0)

    async def story(world: SimWorld) -> None:
        with mock.patch.object(node, "peer_config", of_the_version_before):
            cluster = SimCluster(world, zk=3, zk_settings=WITH_SUPER)
            await cluster.__aenter__()
        async with cluster.zk_client(auth_data=[SUPER]) as zk:
            await zk.create("/count", b"0")
            acknowledged: list[int] = []
            writer = asyncio.create_task(count_up(zk, acknowledged))
            for server in cluster.zk_servers:
                with pytest.raises(ReconfigDisabledError):
                    await zk.retry(zk.reconfig, leaving="3")
                before = len(acknowledged)
                await cluster.stop(server)
                cluster.start(server)
                await cluster.until_zk_serves()
                await cluster.until(lambda before=before: len(acknowledged) > before)
            await cluster.until(lambda: all(map(_knows_the_level, cluster.zk_servers)))
            await zk.retry(zk.reconfig, leaving="3")
            writer.cancel()
            await zk.sync("/")
            assert int((await zk.get("/count"))[0]) >= acknowledged[-1]
        await cluster.__aexit__()

    for seed in range(3):
        with SimWorld(seed) as world:
            world.run(story(world))


def _knows_the_level(server: SimMember) -> bool:
    return bool(server.server.node._engine.core.state.level == LEVEL_LAST)


def test_an_observer_serves_and_decides_nothing() -> None:
    async def story(world: SimWorld) -> None:
        async with SimCluster(world, zk=2, observers=1) as cluster:
            observer = cluster.zk_servers[2]
            assert cluster.role(observer) == "observer"
            async with cluster.zk_client(hosts=observer.address) as zk:
                await zk.create("/a", b"1")
                cluster.kill(cluster.zk_servers[0])
                with pytest.raises(Error):
                    await zk.set("/a", b"2", timeout=20.0)
                cluster.start(cluster.zk_servers[0])
                await cluster.until_zk_serves()
                await zk.retry(zk.set, "/a", b"3")

    with SimWorld() as world:
        world.run(story(world))


def test_settings_that_name_other_members_are_ignored_with_a_warning() -> None:
    async def story(world: SimWorld) -> None:
        async with SimCluster(world, zk=3) as cluster:
            async with cluster.zk_client() as zk:
                await zk.create("/a")
            server = cluster.zk_servers[0]
            await cluster.stop(server)
            assert "servers_setting_ignored" not in server.log.events
            moved = [f"{n}=10.9.9.{n}:2888:participant;10.9.9.{n}:2181" for n in (1, 2, 3)]
            cluster.zk_settings["servers"] = tuple(moved)
            cluster.start(server)
            await cluster.until_zk_serves()
            assert "servers_setting_ignored" in server.log.events

    with SimWorld() as world:
        world.run(story(world))


def test_a_leader_that_is_left_out_leads_once_more_where_nobody_else_knows_it() -> None:
    """It alone has logged that it is no member any more when all of them go."""

    async def story(world: SimWorld) -> None:
        async with SimCluster(world, zk=2, zk_settings=WITH_SUPER) as cluster:
            async with cluster.zk_client(auth_data=[SUPER]) as zk:
                leader = await cluster.until_zk_leader()
                (other,) = (each for each in cluster.zk_servers if each is not leader)
                leaving = cluster.zk_servers.index(leader) + 1
                change = asyncio.create_task(zk.reconfig(leaving=str(leaving)))
                peer = leader.server.node._engine.peer
                await cluster.until(lambda: not peer.membership.has_voter(leaving), look_s=0.00005)
                cluster.isolate(leader)  # the final change does not come to the other, mostly
                final_zxid = peer.last_logged_zxid
                await cluster.until(lambda: peer.last_durable_zxid >= final_zxid, look_s=0.00005)
                for each in cluster.zk_servers:
                    cluster.kill(each)
                change.cancel()
            for each in cluster.zk_servers:
                cluster.start(each)
            cluster.heal()
            await cluster.until(lambda: cluster.zk_leader is other)

    for seed in range(5):
        with SimWorld(seed) as world:
            world.run(story(world))


def _members_of(cluster: SimCluster) -> list[str]:
    """A line for each server, as a voter."""
    return [
        f"{number}={each.machine.ip}:2888:participant;{each.address}"
        for number, each in enumerate(cluster.zk_servers, 1)
    ]


async def _start(cluster: SimCluster, known: list[str], *servers: SimMember) -> None:
    """Start servers whose settings name these members; they serve when it returns."""
    cluster.zk_settings["servers"] = tuple(known)
    for each in servers:
        cluster.start(each)
    await cluster.until_zk_serves(*servers)


@pytest.mark.parametrize(("is_voter", "limit_ms"), [(False, 1_000), (True, 12_000)])
def test_who_alone_has_logged_a_change_of_the_members_keeps_nobody_waiting(
    is_voter: bool, limit_ms: int
) -> None:
    """It has the longest log, and by that log it needs servers that have died. The others do not:
    they have a quorum, and do not hear it if they know it as no voter; else it stands aside."""

    async def story(world: SimWorld) -> None:
        cluster = SimCluster(world, zk=6, zk_settings=WITH_SUPER)
        members, old, new = _members_of(cluster), cluster.zk_servers[:3], cluster.zk_servers[3:]
        await _start(cluster, members[:3], *old)
        for each, line in zip(new, members[3:], strict=True):
            await _start(cluster, [*members[:3], line], each)
        leader = await cluster.until_zk_leader()
        hearing = next(each for each in old if each is not leader) if is_voter else new[0]
        async with cluster.zk_client(hosts=leader.address, auth_data=[SUPER]) as zk:
            await zk.create("/a", b"1")
            for each in cluster.zk_servers:
                if each is not leader and each is not hearing:
                    world.network.stall(leader.machine.address, each.machine.address, 60_000)
            leader.pace.mean_work_us = 60_000_000
            change = asyncio.create_task(
                zk.reconfig(joining=",".join(members[3:]), leaving="1,2,3")
            )
            await world.sleep(0.3)
            cluster.lose_power(leader, lose_unsynced=True)
            change.cancel()
        leader.pace.mean_work_us = 200
        for each in cluster.zk_servers:
            cluster.kill(each)
        world.heal()
        began_ms = world.elapsed_ms
        cluster.zk_settings["servers"] = tuple(members[:4])
        for each in cluster.zk_servers[: 3 if is_voter else 4]:
            cluster.start(each)
        await cluster.until_zk_serves(*(each for each in old if each is not hearing))
        assert world.elapsed_ms - began_ms < limit_ms
        await cluster.until_zk_serves(*old, hearing)
        await cluster.__aexit__()

    for seed in range(3):
        with SimWorld(seed) as world:
            world.run(story(world))


def test_who_was_away_finds_leaders_that_it_has_never_heard_of() -> None:
    """3 slept while 4 and 5 took the places of 1 and 2: neither its log nor its settings name them,
    and those that it knows are gone."""

    async def story(world: SimWorld) -> None:
        cluster = SimCluster(world, zk=5, zk_settings=WITH_SUPER)
        one, two, three, four, five = cluster.zk_servers
        members = _members_of(cluster)
        await _start(cluster, members[:3], one, two, three)
        cluster.kill(three)
        await _start(cluster, [*members[:2], members[3]], four)
        await _start(cluster, [*members[:2], members[4]], five)
        async with cluster.zk_client(auth_data=[SUPER]) as zk:
            await zk.create("/a", b"1")
            await zk.retry(zk.reconfig, joining=",".join(members[3:]), leaving="1,2")
        cluster.kill(one)
        cluster.kill(two)
        await _start(cluster, members[:3], three)
        assert cluster.role(three) == "follower"
        async with cluster.zk_client(hosts=three.address) as zk:
            assert (await zk.get("/a"))[0] == b"1"
        await cluster.__aexit__()

    for seed in range(3):
        with SimWorld(seed) as world:
            world.run(story(world))


def test_a_broker_keeps_what_it_acknowledged() -> None:
    async def story(world: SimWorld) -> None:
        async with SimCluster(world, zk=3, brokers=1) as cluster:
            async with cluster.admin() as admin:
                await admin.create_topics([NewTopic("numbers", num_partitions=1)])
            async with cluster.producer() as producer:
                for number in range(30):
                    if number % 10 == 5:
                        cluster.lose_power(cluster.brokers[0], lose_unsynced=True)
                        cluster.start(cluster.brokers[0])
                    await producer.send_and_wait("numbers", b"%d" % number)
            async with cluster.consumer() as consumer:
                consumer.assign([TopicPartition("numbers", 0)])
                await consumer.seek_to_beginning()
                found = [int((await consumer.getone()).value) for _ in range(30)]
            assert found == list(range(30))

    for seed in range(5):
        with SimWorld(seed) as world:
            world.run(story(world))


def test_a_broker_to_which_nothing_happens_stays_the_controller() -> None:
    async def story(world: SimWorld) -> None:
        async with SimCluster(world, zk=1, brokers=1) as cluster:
            await world.sleep(600)
            events = cluster.brokers[0].log.events
            assert "session_expired" not in events
            async with cluster.zk_client() as zk:
                assert (await zk.get("/controller_epoch"))[0] == b"1"

    with SimWorld() as world:
        world.run(story(world))


@pytest.mark.parametrize("snap_count", [40, 100_000])
def test_a_learner_is_sent_a_snapshot_where_the_log_is_damaged(snap_count: int) -> None:
    """An old file of the log is read only when somebody lacks what it holds. Where no snapshot
    stands for it, the leader makes one of what it has in memory."""

    async def story(world: SimWorld) -> None:
        settings = {"snap_count": snap_count, "snap_retain_count": 100, "log_file_bytes": 4_096}
        async with SimCluster(world, zk=3, zk_settings=settings) as cluster:
            async with cluster.zk_client() as zk:
                await zk.create("/a")
                leader = await cluster.until_zk_leader()
                learner = next(each for each in cluster.zk_servers if each is not leader)
                cluster.kill(learner)
                for number in range(200):
                    await zk.retry(zk.set, "/a", b"%d" % number)
            leader = await cluster.until_zk_leader()
            disk = leader.machine.disk
            first = min(name for name in disk.list("/data") if name.startswith("log."))
            disk.flip(f"/data/{first}", 300, 1)
            cluster.start(learner)
            await cluster.until_zk_serves(learner)
            assert "history_lost" in leader.log.events
            assert "snapshot_received" in learner.log.events

    with SimWorld() as world:
        world.run(story(world))


def test_a_server_that_waits_for_space_says_so_and_stops_at_once() -> None:
    async def story(world: SimWorld) -> None:
        async with SimCluster(world, zk=3) as cluster:
            leader = await cluster.until_zk_leader()
            server = next(each for each in cluster.zk_servers if each is not leader)
            cluster.fill_disk(server)
            cluster.kill(leader)  # the others are to promise an epoch
            await cluster.until(lambda: "waits_for_space" in server.log.events)
            began_ms = world.elapsed_ms
            await cluster.stop(server)
            assert world.elapsed_ms - began_ms < 1_000
            cluster.free_disk(server)
            cluster.start(server)
            await cluster.until_zk_serves(server)

    with SimWorld() as world:
        world.run(story(world))


def test_a_server_that_is_stopped_ends_in_order() -> None:
    async def story(world: SimWorld) -> None:
        async with SimCluster(world, zk=1) as cluster:
            (server,) = cluster.zk_servers
            async with cluster.zk_client() as zk:
                await zk.create("/kept", b"")
            await cluster.stop(server)
            assert "server_stopped" in server.log.events
            cluster.start(server)
            async with cluster.zk_client() as zk:
                assert await zk.exists("/kept") is not None

    with SimWorld() as world:
        world.run(story(world))


def test_a_server_that_cannot_start_says_why() -> None:
    async def story(world: SimWorld) -> None:
        async with SimCluster(world, zk=3, zk_settings={"tick_ms": -1}):
            raise AssertionError("it has started")

    with SimWorld() as world, pytest.raises(Error, match="tick_ms"):
        world.run(story(world))
