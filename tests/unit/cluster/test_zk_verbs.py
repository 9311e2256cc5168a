"""`duolog zk` where sessions end and znodes come and go while it works."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

import pytest

from duolog import ZkClient
from duolog_cluster.cli import zk_verbs
from duolog_protocol.errors import BadVersionError, Error, NoNodeError, SessionExpiredError
from tests.support import until
from tests.unit.client.zk_support import Zk


def options(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"json": False, "path": "/a", "version": -1, **values})


async def acl_texts(zk: ZkClient, path: str) -> list[str]:
    return [zk_verbs.acl_text(each) for each in (await zk.get_acls(path))[0]]


async def test_an_acl_that_forbids_reading_reaches_the_whole_subtree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.ensure_path("/a/b/c")
        listed = zk_verbs._subtree

        async def listed_late(zk: ZkClient, path: str) -> list[str]:
            return [*await listed(zk, path), f"{path}/gone"]

        monkeypatch.setattr(zk_verbs, "_subtree", listed_late)
        await zk_verbs.setacl(zk, options(acl="world:anyone:cdwa", recursive=True))
        for path in ("/a", "/a/b", "/a/b/c"):
            assert await acl_texts(zk, path) == ["world:anyone:cdwa"]


async def test_a_wrong_version_changes_no_acl_of_the_subtree() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.ensure_path("/a/b")
        setting = options(acl="world:anyone:ra", recursive=True, version=7)
        with pytest.raises(BadVersionError):
            await zk_verbs.setacl(zk, setting)
        assert await acl_texts(zk, "/a/b") == ["world:anyone:cdrwa"]
        setting.version = 0
        await zk_verbs.setacl(zk, setting)
        assert await acl_texts(zk, "/a") == await acl_texts(zk, "/a/b") == ["world:anyone:ra"]
        with pytest.raises(NoNodeError):
            await zk_verbs.setacl(zk, options(path="/none", acl="world:anyone:r", recursive=True))


async def test_a_lock_in_doubt_stops_the_command_without_waiting_for_the_server(
    tmp_path: Path,
) -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        begun = tmp_path / "begun"
        command = ["sh", "-c", f"sleep 600 & echo > '{begun}'; wait"]
        locking = options(path="/l", timeout=None, command=command)
        running = asyncio.create_task(zk_verbs.lock(zk, locking))
        await until(begun.exists)
        await server.kill(server.zk)
        with pytest.raises(Error, match="in doubt"):
            await running
        await zk.close()


async def test_an_ephemeral_that_is_gone_ends_the_command() -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk, other = await server.client(), await server.client()
        made = asyncio.Event()
        await other.exists("/a", lambda _event: made.set())
        kinds = {"ephemeral": True, "sequence": False, "container": False, "ttl": None}
        creating = options(data="", acl=None, parents=False, **kinds)
        running = asyncio.create_task(zk_verbs.create(zk, creating))
        await made.wait()
        assert not running.done()
        await server.expire(zk)
        with pytest.raises(SessionExpiredError, match="/a is gone"):
            await running


@pytest.mark.parametrize("verb", ["get", "ls"])
async def test_waiting_for_a_change_ends_with_the_session(
    verb: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    async with asyncio.timeout(30), Zk() as server:
        zk = await server.client()
        await zk.create("/a")
        looking = options(watch=True, recursive=False, long=False, stat=False)
        running = asyncio.create_task(getattr(zk_verbs, verb)(zk, looking))
        await until(lambda: zk._keeper.watches.count == 1)
        await server.expire(zk)
        with pytest.raises(SessionExpiredError, match="before /a changed"):
            await running
        assert b"none" not in capsysbinary.readouterr().out
