"""An ensemble of zkserver processes: it is made, loses servers, gets them back, and is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from duolog import ZkClient
from duolog_cluster.processes import DaemonFailedError, ZkEnsemble, zkserver, zkservers_in
from duolog_cluster.zk_members import free_ports, members_in
from duolog_cluster.zk_words import Reach
from duolog_protocol.errors import ConfigError
from tests.integration.test_processes import source_roots
from tests.unit.zkserver.tools_support import run

__all__ = ["source_roots"]

SECONDS = 90


async def test_an_ensemble_goes_on_without_its_leader_and_takes_it_back(tmp_path: Path) -> None:
    async with asyncio.timeout(SECONDS), ZkEnsemble(str(tmp_path)) as ensemble:
        leader_id = await ensemble.until_leader()
        states = await ensemble.states()
        assert sorted(each.role for each in states) == ["follower", "follower", "leader"]
        assert states[leader_id - 1].role == "leader"
        assert {each.epoch for each in states} == {1}
        async with ZkClient(ensemble.address) as zk:
            session = zk.client_id
            await zk.create("/before", b"1")
            await ensemble.kill(leader_id)
            assert (await ensemble.states())[leader_id - 1].reach is Reach.UNREACHABLE
            assert await ensemble.until_leader(other_than=leader_id) != leader_id
            await zk.retry(zk.create, "/after", b"2")
            assert zk.client_id == session
            await ensemble.restart(leader_id)
            assert (await ensemble.states())[leader_id - 1].role == "follower"
        async with ZkClient(ensemble.server(leader_id).address) as zk:
            await zk.sync("/")
            assert {"before", "after"} <= {*await zk.get_children("/")}


async def test_an_ensemble_without_a_quorum_serves_nobody(tmp_path: Path) -> None:
    async with asyncio.timeout(SECONDS), ZkEnsemble(str(tmp_path)) as ensemble:
        leader_id = await ensemble.until_leader()
        for each in (1, 2, 3):
            if each != leader_id:
                assert await ensemble.stop(each) == 0
        while (await ensemble.states())[leader_id - 1].reach is not Reach.NOT_SERVING:
            continue
        with pytest.raises(DaemonFailedError, match="nobody leads"):
            await ensemble.until_leader(seconds=0.1)
        with pytest.raises(DaemonFailedError, match=rf"zkserver \[{leader_id}\] do not serve"):
            await ensemble.until_serving([leader_id], seconds=0.1)


async def test_an_ensemble_is_kept_and_not_mixed_with_another_number(tmp_path: Path) -> None:
    data = str(tmp_path / "kept")
    assert zkservers_in(data) == 0
    async with asyncio.timeout(SECONDS):
        async with ZkEnsemble(data) as ensemble, ZkClient(ensemble.address) as zk:
            await zk.create("/kept")
        assert zkservers_in(data) == 3
        for count in (1, 5):
            with pytest.raises(ConfigError, match="holds the data of 3"):
                ZkEnsemble(data, count)
        with pytest.raises(ConfigError, match="whose first port is"):
            ZkEnsemble(data, port=1)
        address = ensemble.address
        async with ZkEnsemble(data) as ensemble, ZkClient(address) as zk:
            assert await zk.exists("/kept") is not None
            assert {each.epoch for each in await ensemble.states()} == {2}


async def test_a_member_does_not_go_on_alone(tmp_path: Path) -> None:
    """Whoever forgets its settings would get two histories of one epoch, and lose one of them."""
    data = tmp_path / "kept"
    async with asyncio.timeout(SECONDS):
        async with ZkEnsemble(str(data)) as ensemble, ZkClient(ensemble.address) as zk:
            await zk.create("/kept", b"1")
        places = members_in(str(data))
        first = str(data / "zkserver-1")
        alone = zkserver(first, 0, ["--server-id", "1"])
        with pytest.raises(DaemonFailedError, match="servers is not given"):
            await alone.start()
        await alone.stop()
        assert members_in(str(data)) == places
        dump, copy = tmp_path / "dump", str(tmp_path / "copy")
        status, exported, _ = run("export", first, "--json")
        dump.write_text(exported)
        assert (status, run("import", "--from-json", dump, "--data", copy)[0]) == (0, 0)
        alone = zkserver(copy, 0)
        await alone.start()
        try:
            async with ZkClient(alone.address) as zk:
                assert (await zk.get("/kept"))[0] == b"1"
        finally:
            await alone.stop()


async def test_a_member_does_not_go_on_alone_before_all_were_there(tmp_path: Path) -> None:
    """Its log does not name the members yet: its directory tells."""
    ensemble = ZkEnsemble(str(tmp_path))
    async with asyncio.timeout(SECONDS):
        try:
            await asyncio.gather(*(each.start() for each in ensemble.servers[:2]))
            async with ZkClient(ensemble.server(2).address) as zk:
                await zk.create("/kept", b"1")
                assert (await zk.get("/zookeeper/config"))[0] == b""
        finally:
            await ensemble.close()
        alone = zkserver(ensemble.directories[1], 0, ["--server-id", "2"])
        with pytest.raises(DaemonFailedError, match="servers is not given"):
            await alone.start()


async def test_observers_follow_and_ports_come_one_after_the_other(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    ensemble = ZkEnsemble(str(tmp_path), 1, observers=1, port=port)
    async with asyncio.timeout(SECONDS), ensemble:
        assert [each.port for each in ensemble.servers] == [port, port + 1]
        assert [each.role for each in await ensemble.states()] == ["leader", "observer"]
        assert await ensemble.leader_id() == 1


async def test_one_zkserver_stands_alone(tmp_path: Path) -> None:
    async with asyncio.timeout(SECONDS), ZkEnsemble(str(tmp_path), 1) as ensemble:
        (state,) = await ensemble.states()
        assert (state.role, state.reach) == ("standalone", Reach.SERVING)
        assert await ensemble.until_leader() == 1
        assert zkservers_in(str(tmp_path)) == 1


async def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    ensemble = ZkEnsemble(str(tmp_path), arguments=["--log-level", "nonsense"])
    with pytest.raises(DaemonFailedError, match="log_level"):
        await ensemble.start()
    assert not any(each.is_running for each in ensemble.servers)
