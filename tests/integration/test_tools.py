"""The offline tools from outside: an imported directory is served; the document's examples run."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from duolog import ZkClient
from duolog_cluster.processes import zkserver
from duolog_protocol.errors import SessionExpiredError
from duolog_protocol.types import epoch_of
from tests.unit.zkserver import zookeeper_support as golden
from tests.unit.zkserver.tools_support import make_directory, run

ROOTS = ["protocol", "runtime", "client", "zkserver", "kbroker", "cluster"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def source_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join(str(ROOT / each) for each in ROOTS)
    monkeypatch.setenv("PYTHONPATH", path)


@pytest.mark.parametrize("scenario", ["plain", "sessions", "types", "acls", "ensemble"])
async def test_an_imported_tree_is_served(scenario: str, tmp_path: Path) -> None:
    expected = golden.expected_of(scenario)
    assert run("import", "--from", golden.GOLDEN / scenario, "--data", tmp_path / "zk")[0] == 0
    daemon = zkserver(str(tmp_path / "zk"), 0)
    await daemon.start()
    try:
        async with asyncio.timeout(30), ZkClient(f"127.0.0.1:{daemon.port}") as zk:
            for each in expected["nodes"]:
                path = each["path"]
                if path == "/zookeeper/config":
                    continue
                stat = await zk.exists(path)
                assert stat is not None, path
                assert stat._asdict() == each["stat"], path
                if any(perms & 1 and scheme == "world" for perms, scheme, _ in each["acl"]):
                    data, _ = await zk.get(path)
                    told = each["data64"]
                    assert data == (None if told is None else base64.b64decode(told)), path
                    prefix = path.rstrip("/") + "/"
                    below = [
                        other["path"][len(prefix) :]
                        for other in expected["nodes"]
                        if other["path"].startswith(prefix) and other["path"] != path
                    ]
                    children = {name for name in below if "/" not in name}
                    assert set(await zk.get_children(path)) == children
            await zk.create("/after", b"the import")
            stat = await zk.exists("/after")
            assert stat is not None
            assert stat.czxid > expected["zxid"]
            assert epoch_of(stat.czxid) == expected.get("epoch", 0) + 1
            sequential = await zk.create("/n-", b"", sequence=True)
            root = next(each["stat"] for each in expected["nodes"] if each["path"] == "/")
            created = (root["cversion"] + root["num_children"]) // 2
            assert sequential == f"/n-{created + 1:010d}"
        for session_id, _ in expected["sessions"]:
            stranger = ZkClient(f"127.0.0.1:{daemon.port}", client_id=(session_id, bytes(16)))
            with pytest.raises(SessionExpiredError):
                await stranger.start()
            await stranger.close()
    finally:
        assert await daemon.stop() == 0, daemon.last_words
    assert run("check", tmp_path / "zk")[0] == 0


async def test_sessions_of_an_import_expire_with_their_ephemerals(tmp_path: Path) -> None:
    assert run("import", "--from", golden.GOLDEN / "sessions", "--data", tmp_path / "a")[0] == 0
    lines = [json.loads(line) for line in run("export", tmp_path / "a", "--json")[1].splitlines()]
    for line in lines:
        if "timeout_ms" in line:
            line["timeout_ms"] = 100
    (tmp_path / "dump.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("import", "--from-json", tmp_path / "dump.json", "--data", tmp_path / "b")
    assert run(*words)[0] == 0
    daemon = zkserver(str(tmp_path / "b"), 0, ["--tick-ms", "50"])
    await daemon.start()
    try:
        async with asyncio.timeout(30), ZkClient(f"127.0.0.1:{daemon.port}") as zk:
            gone = asyncio.Event()
            while await zk.get_children("/members", lambda _: gone.set()):
                await gone.wait()
                gone.clear()
    finally:
        assert await daemon.stop() == 0, daemon.last_words
    assert run("check", tmp_path / "b")[0] == 0


def shown(expected: str) -> re.Pattern[str]:
    """What a document prints; "..." stands for what differs from run to run."""
    pieces = []
    for line in expected.splitlines(keepends=True):
        if line == "...\n":
            pieces.append("(?:.*\n)*?")
        else:
            pieces.append(".*?".join(re.escape(part) for part in line.split("...")))
    return re.compile("".join(pieces))


def test_the_examples_of_the_document(tmp_path: Path) -> None:
    shutil.copytree(golden.GOLDEN / "sessions", tmp_path / "zookeeper")
    make_directory(tmp_path / "server-data")
    shim = tmp_path / "bin" / "zkserver"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m zkserver "$@"\n')
    shim.chmod(0o755)
    document = (ROOT / "docs" / "zkserver-tools.md").read_text()
    count = 0
    for block in re.findall(r"```console\n(.*?)```", document, re.DOTALL):
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env={**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"},
            )
            assert shown(expected).fullmatch(done.stdout), (command, done.stdout, done.stderr)
            count += 1
    assert count >= 10


def test_the_command_line_dispatches(tmp_path: Path) -> None:
    def zkserver_says(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "zkserver", *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert "did you mean check?" in zkserver_says("chekc", "x").stderr
    assert "zkserver check DIR" in zkserver_says("--help").stdout
    assert zkserver_says("check", "--help").returncode == 0
    assert zkserver_says("check", str(tmp_path)).returncode == 2


def test_the_daemon_does_not_load_the_tools() -> None:
    code = (
        "import sys, zkserver.__main__; sys.exit(any('zkserver.tools' in n for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
