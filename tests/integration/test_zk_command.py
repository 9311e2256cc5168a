"""`duolog zk`: every verb against a real server, its text, its JSON, its errors."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from duolog_cluster.__main__ import main
from duolog_cluster.cli.zk_quota import limits_text, parse
from duolog_cluster.cli.zk_verbs import acl_text, parse_acl
from duolog_cluster.cluster import Cluster
from duolog_protocol.errors import ConfigError
from duolog_protocol.types import Acl


class Shell:
    """Runs `duolog zk` in a thread, beside the server's loop."""

    def __init__(self, address: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.address = address
        self._capsys = capsys
        self.error = ""

    async def __call__(self, *words: str, status: int = 0) -> str:
        found = await asyncio.to_thread(main, ["zk", *words, "-z", self.address])
        out, self.error = self._capsys.readouterr()
        assert found == status, (words, out, self.error)
        return out.rstrip("\n")

    async def json(self, *words: str, status: int = 0) -> Any:
        return json.loads(await self(*words, "--json", status=status))


async def with_shell(capsys: pytest.CaptureFixture[str], test: Any) -> None:
    async with asyncio.timeout(60), Cluster(brokers=0) as cluster:
        await test(Shell(cluster.zookeeper, capsys), cluster)


async def test_znodes_are_made_shown_changed_and_deleted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def story(zk: Shell, _cluster: Cluster) -> None:
        assert await zk("create", "/a/b", "text", "-p") == "/a/b"
        assert await zk("create", "/a/s-", "-s") == "/a/s-0000000001"
        assert await zk("create", "/c", "-c") == "/c"
        assert (await zk.json("create", "/t", "x", "-t", "60"))["stat"]["data_length"] == 1
        assert await zk("get", "/a/b") == "text"
        assert await zk.json("get", "/a/b") == {"data": "text"}
        assert (await zk.json("get", "/a/b", "-s"))["stat"]["version"] == 0
        assert "version         0" in await zk("get", "/a/b", "-s")
        assert await zk("set", "/a/b", "new", "-v", "0") == "version 1"
        assert await zk("ls") == "a\nc\nt\nzookeeper"
        assert await zk.json("ls", "/a") == ["b", "s-0000000001"]
        assert (await zk("ls", "/a", "-R")).split() == ["/a", "/a/b", "/a/s-0000000001"]
        assert "3" in await zk("ls", "/a", "-l")
        assert (await zk.json("ls", "/a", "-l"))["/a/b"]["data_length"] == 3
        assert "czxid" in await zk("stat", "/a")
        assert (await zk.json("stat", "/a"))["num_children"] == 2
        assert "new" in await zk("tree", "/a")
        shown = await zk.json("tree", "/a")
        assert [each["path"] for each in shown["children"]] == ["/a/b", "/a/s-0000000001"]
        assert await zk("count", "/a") == "2"
        assert await zk("ephemerals") == ""
        assert await zk.json("ephemerals") == []
        assert (await zk("sync")).startswith("0x")
        await zk("rm", "/a", status=1)
        assert "children" in zk.error
        assert await zk.json("rm", "/a", "-r") == {"deleted": "/a"}
        await zk("stat", "/a", status=1)
        assert zk.error == "duolog: /a does not exist\n"
        await zk("get", "/a", "--json", status=1)
        assert json.loads(zk.error)["error"] == "NoNodeError"
        assert json.loads(zk.error)["code"] == -101
        await zk("create", "/x", "-c", "-s", status=2)
        await zk("create", "/x", "-c", "-s", "--json", status=2)
        assert json.loads(zk.error)["error"] == "ConfigError"

    await with_shell(capsys, story)


async def test_identities_and_acls(capsys: pytest.CaptureFixture[str]) -> None:
    async def story(zk: Shell, _cluster: Cluster) -> None:
        me = ("--auth", "digest:ann:secret")
        assert "digest:ann" in await zk("whoami", *me)
        assert {"scheme": "digest", "user": "ann"} in await zk.json("whoami", *me)
        await zk("create", "/mine", "x", "auth::cdrwa", *me)
        await zk("get", "/mine", status=1)
        assert await zk("get", "/mine", *me) == "x"
        assert (await zk("getacl", "/mine", *me)).startswith("digest:ann:")
        await zk("create", "/mine/sub", *me)
        await zk("setacl", "/mine", "world:anyone:r,auth::cdrwa", "-R", *me)
        assert (await zk("getacl", "/mine/sub")).startswith("world:anyone:r\ndigest:ann:x")
        assert (await zk.json("getacl", "/mine"))[0]["text"] == "world:anyone:r"
        await zk("setacl", "/mine", "nonsense", status=2)
        await zk("whoami", "--auth", "nonsense:x", status=1)

    await with_shell(capsys, story)


async def test_several_operations_all_or_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(zk: Shell, _cluster: Cluster) -> None:
        file = tmp_path / "ops"
        file.write_text("# a comment\ncreate /a 'two words'\ncreate -s -t 5 /a/s-\nset /a x 0\n")
        assert "create /a 'two words'  ->  /a" in await zk("multi", str(file))
        monkeypatch.setattr(sys, "stdin", io.StringIO("check /a 7\nrm /a\n"))
        shown = await zk.json("multi", status=1)
        assert [each["error"] for each in shown] == ["BadVersionError", "RolledBackError"]
        for wrong in ("nonsense", "set /a", "create", "create -z /a", "check /a x", "create '"):
            monkeypatch.setattr(sys, "stdin", io.StringIO(wrong))
            await zk("multi", status=2)

    await with_shell(capsys, story)


async def test_events_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    async def story(zk: Shell, _cluster: Cluster) -> None:
        zxid = (await zk.json("create", "/a"))["stat"]["czxid"]
        changed = (await zk.json("set", "/a", "1"))["mzxid"]
        await zk("create", "/a/b")
        shown = await zk("watch", "/a", "-R", "--after", hex(zxid), "-n", "2")
        assert shown.splitlines() == ["changed   /a", "created   /a/b"]
        shown = await zk("watch", "/a", "--after", str(zxid), "-n", "1", "--json")
        assert json.loads(shown) == {"type": "changed", "path": "/a", "zxid": changed}
        with pytest.raises(SystemExit):
            await zk("watch", "/a", "--after", "soon")
        capsys.readouterr()

    await with_shell(capsys, story)


async def test_quotas_are_zookeepers(capsys: pytest.CaptureFixture[str]) -> None:
    async def story(zk: Shell, _cluster: Cluster) -> None:
        await zk("create", "/a/b", "yy", "-p")
        assert await zk("quota", "set", "/a", "-n", "5") == "limit  count 5"
        place = "/zookeeper/quota/a/zookeeper_limits"
        assert await zk("get", place) == "count=5,bytes=-1=;byteHardLimit=-1;countHardLimit=-1"
        await zk("quota", "set", "/a", "-b", "100", "-N", "7", "-B", "200")
        assert await zk("get", place) == "count=5,bytes=100=;byteHardLimit=200;countHardLimit=7"
        shown = await zk.json("quota", "list", "/a")
        assert shown["limits"]["bytes"] == 100
        assert shown["usage"] == {"count": 2, "bytes": 2}
        await zk("quota", "set", "/a/b", "-n", "1", status=1)
        assert "parent with a quota: /a" in zk.error
        await zk("quota", "set", "/none", "-n", "1", status=1)
        await zk("quota", "set", "/a", status=1)
        await zk("quota", "del", "/a", "-n")
        assert await zk("get", place) == "count=-1,bytes=100=;byteHardLimit=200;countHardLimit=7"
        await zk("quota", "del", "/a")
        assert await zk("ls", "/zookeeper/quota") == ""
        await zk("quota", "list", "/a", status=1)
        await zk("quota", "set", "/a/b", "-n", "1")
        await zk("quota", "set", "/a", "-n", "1", status=1)
        assert "child with a quota: /a/b" in zk.error
        await zk("quota", "set", "/", "-n", "1", status=2)
        assert "the root has no quota" in zk.error
        inside = Shell(f"{zk.address}/a", capsys)
        for words in (("set", "/b", "-n", "1"), ("list", "/b"), ("del", "/b")):
            await inside("quota", *words, status=2)
            assert "no chroot here" in inside.error
        assert await zk("ls", "/a") == "b"

    await with_shell(capsys, story)


async def test_a_command_runs_under_a_lock(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    async def story(zk: Shell, cluster: Cluster) -> None:
        made = tmp_path / "token"
        program = "import os, sys; open(sys.argv[1], 'w').write(os.environ['DUOLOG_LOCK_TOKEN'])"
        command: Sequence[str] = (sys.executable, "-c", program, str(made))
        words = ["zk", "lock", "-z", cluster.zookeeper, "/l", "--", *command]
        assert await asyncio.to_thread(main, words) == 0
        assert int(made.read_text()) > 0
        words[-3:] = ["-c", "raise SystemExit(3)"]
        assert await asyncio.to_thread(main, words) == 1
        assert await zk("ls", "/l") == ""

    await with_shell(capsys, story)


def test_acls_and_quotas_have_one_text_each() -> None:
    acl = (Acl(31, "world", "anyone"), Acl(1, "digest", "u:h="), Acl(9, "ip", "::1"))
    assert parse_acl(",".join(map(acl_text, acl))) == acl
    for wrong in ("", "world", "world:anyone", "world:anyone:", "world:anyone:xyz"):
        with pytest.raises(ConfigError):
            parse_acl(wrong)
    limits = {"count": 1, "bytes": 2, "countHardLimit": 3, "byteHardLimit": 4}
    assert parse(limits_text(limits)) == limits
    assert parse(b"nonsense") == parse(None) == {}
