"""`duolog zk status` of ensembles that are whole, wounded, headless, of strangers."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from duolog import ZkClient
from duolog_cluster.__main__ import main
from duolog_cluster.cli.zk_status import look
from duolog_cluster.cluster import Cluster
from duolog_cluster.zk_words import Reach, state_of
from duolog_protocol.txns import LEVEL_LAST
from tests.compat import servers
from tests.support import until

SECONDS = 60
QUICK = {"tick_ms": 200, "ping_interval_ms": 50, "sync_limit_ms": 500}
HEAD = ["server", "address", "role", "epoch", "zxid", "lag", "clients"]


class Shell:
    """Runs `duolog zk status` in a thread, beside the servers' loop."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.error = ""

    async def __call__(self, *words: str, status: int = 0) -> list[list[str]]:
        out = await self._run(*words, status=status)
        return [line.split() for line in out.splitlines()]

    async def json(self, *words: str, status: int = 0) -> Any:
        return json.loads(await self._run(*words, "--json", status=status))

    async def _run(self, *words: str, status: int) -> str:
        found = await asyncio.to_thread(main, ["zk", "status", *words])
        out, self.error = self._capsys.readouterr()
        assert found == status, (words, out, self.error)
        return out


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def ensemble(**settings: Any) -> Cluster:
    return Cluster(brokers=0, zk=3, zk_settings={**QUICK, **settings})


@asynccontextmanager
async def scripted(answers: dict[str, str]) -> AsyncIterator[str]:
    """A server that answers words by a script; its address. None for a word: it hangs."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = answers.get((await reader.read(4)).decode())
        if answer is None:
            await reader.read()
        else:
            writer.write(answer.encode())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_all_members_are_found_from_any_of_them(shell: Shell) -> None:
    async with asyncio.timeout(SECONDS), ensemble() as cluster:
        addresses = [f"127.0.0.1:{each.port}" for each in cluster.zk_servers]
        leader = await cluster.until_zk_leader()
        leader_id = cluster.zk_servers.index(leader) + 1
        for server in cluster.zk_servers:  # what an ensemble logs by itself comes first
            await until(lambda server=server: has_level(server))  # type: ignore[misc]
        async with ZkClient(addresses[1]) as zk:
            zxid = (await zk.set("/", b"1")).mzxid
            for server in cluster.zk_servers:
                await until(lambda server=server: applied(server) == zxid)  # type: ignore[misc]
            for given in (cluster.zookeeper, *addresses):
                head, *rows, verdict = await shell("--server", given)
                assert head == HEAD
                for at, row in enumerate(rows):
                    role = "leader" if at + 1 == leader_id else "follower"
                    clients = str(int(at == 1))
                    assert row == [str(at + 1), addresses[at], role, "1", hex(zxid), "0", clients]
                assert " ".join(verdict) == "a quorum serves: 3 of 3 voters"
            told = await shell.json("-z", addresses[0].replace("127.0.0.1", "localhost"))
        assert (told["serves"], told["leader_id"]) == (True, leader_id)
        assert (told["voters"], told["voters_serving"], told["config_version"]) == (3, 3, 0)
        first = told["servers"][0]
        assert first["address"] == addresses[0].replace("127.0.0.1", "localhost")
        assert (first["server_id"], first["voter"], first["lag"]) == (1, True, 0)
        assert (first["reach"], first["epoch"], first["zxid"]) == ("serving", 1, zxid)


def has_level(server: Any) -> bool:
    core = server.server.node._engine.core
    return bool(core.state.level == LEVEL_LAST)


def applied(server: Any) -> int:
    found: int = server.server.node._engine.core.last_applied_zxid
    return found


async def test_who_is_down_is_shown_and_the_status_says_whether_a_quorum_serves(
    shell: Shell,
) -> None:
    async with asyncio.timeout(SECONDS), ensemble() as cluster:
        leader = await cluster.until_zk_leader()
        others = [each for each in cluster.zk_servers if each is not leader]
        await cluster.kill(others[0])
        table = await shell("-z", f"127.0.0.1:{leader.port}")
        down = next(row for row in table if row[1] == f"127.0.0.1:{others[0].port}")
        assert down[2:] == ["unreachable", "connection", "refused"]
        assert " ".join(table[-1]) == "a quorum serves: 2 of 3 voters"
        await cluster.kill(leader)
        await until(lambda: not others[1].server.role)
        table = await shell("-z", cluster.zookeeper, status=1)
        assert table[-1] == ["no", "quorum", "serves"]
        assert sorted(row[2] for row in table[1:-1]) == ["not", "unreachable", "unreachable"]
        told = await shell.json("-z", f"127.0.0.1:{others[1].port}", status=1)
        assert (told["serves"], told["leader_id"], told["voters"]) == (False, None, None)
        assert [each["reach"] for each in told["servers"]] == ["not serving"]


async def test_a_server_without_a_leader_that_may_be_read_is_no_quorum(shell: Shell) -> None:
    async with asyncio.timeout(SECONDS), ensemble(read_only_after_ms=1) as cluster:
        last = cluster.zk_servers[2]
        for each in cluster.zk_servers[:2]:
            await cluster.kill(each)
        await until(lambda: last.server.role == "read-only")
        told = await shell.json("-z", f"127.0.0.1:{last.port}", status=1)
        assert [each["reach"] for each in told["servers"]] == [*["unreachable"] * 2, "read-only"]
        assert (told["voters"], told["voters_serving"]) == (3, 0)


async def test_it_waits_until_all_members_serve(shell: Shell) -> None:
    async with asyncio.timeout(SECONDS), ensemble() as cluster:
        last = cluster.zk_servers[2]
        await cluster.kill(last)
        leader = await cluster.until_zk_leader(other_than=last)
        given = ("-z", f"127.0.0.1:{leader.port}")
        assert (await shell.json(*given, "--wait", "60"))["serves"]
        await shell(*given, "--all", status=1)
        waiting = asyncio.create_task(shell.json(*given, "--all", "--wait", "60"))
        await cluster.start_zk(last)
        assert [each["reach"] for each in (await waiting)["servers"]] == ["serving"] * 3


async def test_members_join_and_leave(capsys: pytest.CaptureFixture[str], shell: Shell) -> None:
    super_digests = ("super:D/InIHSb7yEEbrWz8b9l71RjZJU=",)
    async with asyncio.timeout(SECONDS), ensemble(super_digests=super_digests) as cluster:

        async def change(*words: str, status: int = 0) -> str:
            given = ("-z", cluster.zookeeper, "--auth", "digest:super:test")
            found = await asyncio.to_thread(main, ["zk", "reconfig", *words, *given])
            out, error = capsys.readouterr()
            assert found == status, (words, out, error)
            return error if status else out

        assert "--add, --remove or --members" in await change(status=2)
        assert "no id of a server" in await change("--remove", "x", status=1)
        await shell("-z", cluster.zookeeper, "--all", "--wait", "60")
        out = await change("--remove", "3")
        names = [line.partition("=")[0] for line in out.split()]
        assert names == ["server.1", "server.2", "version"]
        version = out.split()[-1].partition("=")[2]
        await until(lambda: cluster.zk_leader is not None)
        told = await shell.json("-z", cluster.zookeeper, "--wait", "60")
        assert (told["voters"], told["config_version"]) == (2, int(version, 16))
        third = cluster._zk_members[2].replace(":participant", ":observer")
        assert "not 0x1" in await change("--add", third, "-v", "1", status=1)
        assert ":observer;" in await change("--add", third, "-v", version)
        told = await shell.json("-z", cluster.zookeeper, "--all", "--wait", "60")
        assert [each["role"] == "observer" for each in told["servers"]] == [False, False, True]
        assert len((await change("--members", ",".join(cluster._zk_members))).split()) == 4


async def test_one_server_alone(shell: Shell) -> None:
    async with asyncio.timeout(SECONDS), Cluster(brokers=0) as cluster:
        _, row, verdict = await shell("-z", cluster.zookeeper)
        assert (row[0], row[2]) == ("-", "standalone")
        assert " ".join(verdict) == "it serves, standalone"


async def test_members_are_found_by_the_znode_where_conf_is_not_allowed(shell: Shell) -> None:
    words = ("srvr", "mntr")
    async with asyncio.timeout(SECONDS), ensemble(four_letter_words=words) as cluster:
        told = await shell.json("-z", f"127.0.0.1:{cluster.zk.port}")
        assert [each["server_id"] for each in told["servers"]] == [1, 2, 3]
        assert (told["serves"], told["voters_serving"]) == (True, 3)


async def test_servers_that_hang_or_do_not_tell_are_rows() -> None:
    options = argparse.Namespace(timeout=2.0, session_timeout=2.0, auth=[])
    members = (
        "membership: \nserver.1=127.0.0.1:1:2:participant;127.0.0.1:{}\n"
        "server.2=127.0.0.1:3:4:participant\nserver.3=127.0.0.1:5:6:observer\nversion=1f\n"
    )
    follower = "Zookeeper version: 3.8.0\nConnections: 3\nZxid: 0x200000007\nMode: follower\n"
    leader = "Zookeeper version: 3.8.0\nConnections: 1\nZxid: 0x200000009\nMode: leader\n"
    told = {"mntr": "zk_epoch\t2\n"}
    answers = {"srvr": follower, **told}
    async with (
        asyncio.timeout(SECONDS),
        scripted(answers) as first,
        scripted({}) as hangs,
        scripted({"srvr": "srvr is not executed because it is not in the whitelist.\n"}) as silent,
        scripted({"srvr": ""}) as empty,
        scripted({"srvr": leader, **told}) as other,
    ):
        answers["conf"] = "clientPort=1\n" + members.format(first.split(":")[1])
        given = [address(each) for each in (hangs, silent, empty, first, other)]
        found = await look(given, options)
    states = [each.state for each in found.servers]
    assert [each.member.server_id for each in found.servers if each.member] == [1, 2, 3]
    assert [each.reach for each in states[3:]] == [
        Reach.UNREACHABLE,
        Reach.SILENT,
        Reach.UNREACHABLE,
        Reach.SERVING,
    ]
    assert [each.problem for each in states] == [
        "",
        *["its client port is not told"] * 2,
        "no answer in 2 s",
        "srvr is not allowed",
        "it does not answer srvr",
        "",
    ]
    assert (states[0].epoch, states[0].zxid, states[0].clients) == (2, 0x200000007, 2)
    assert [found.lag(each) for each in found.servers] == [2, None, None, None, None, None, 0]
    assert (found.voters, found.voters_serving, found.serves) == (2, 1, False)
    assert found.members is not None and found.members.version == 0x1F


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def test_wrong_use_is_said(shell: Shell) -> None:
    await shell("-z", "127.0.0.1:1/a", status=2)
    assert "a chroot has no servers of its own" in shell.error
    await shell("-z", "127.0.0.1:x", status=2)
    told = await shell.json("-z", "nowhere.invalid:1,127.0.0.1:1", status=1)
    assert [each["reach"] for each in told["servers"]] == ["unreachable"] * 2


@pytest.mark.skipif(servers.missing("apache") is not None, reason="needs Apache ZooKeeper")
async def test_an_ensemble_of_apache_zookeeper(shell: Shell) -> None:
    members = servers.ensemble("apache", 3)
    try:
        for each in members:
            each.launch()
        for each in members:
            await asyncio.to_thread(each.wait)
        told = await shell.json("-z", members[1].address)
        assert (told["serves"], told["voters"], told["voters_serving"]) == (True, 3, 3)
        roles = [each["role"] for each in told["servers"]]
        assert sorted(roles) == ["follower", "follower", "leader"]
        assert [each["server_id"] for each in told["servers"]] == [1, 2, 3]
        assert roles[told["leader_id"] - 1] == "leader"
        state = await state_of(*address(members[told["leader_id"] - 1].address))
        assert state.epoch == state.zxid >> 32 > 0
        await asyncio.to_thread(members[0].stop)
        await asyncio.to_thread(members[2].stop)
        assert not (await shell.json("-z", members[1].address, status=1))["serves"]
    finally:
        for each in members:
            each.destroy()
