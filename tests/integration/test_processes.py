"""The daemons as processes: what a person who starts them wrongly is told, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from duolog_cluster.processes import Daemon, Pair, kbroker, zkserver

ROOTS = ["protocol", "runtime", "client", "zkserver", "kbroker", "cluster"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def source_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join(str(ROOT / each) for each in ROOTS)
    monkeypatch.setenv("PYTHONPATH", path)


@pytest.fixture
async def zk(tmp_path: Path) -> AsyncIterator[Daemon]:
    daemon = zkserver(str(tmp_path / "zk"), 0)
    await daemon.start()
    yield daemon
    assert await daemon.stop() == 0, daemon.last_words


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a daemon that is expected to refuse to start."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("zkserver", ["--data", "D", "--prot", "1"], "did you mean --port"),
        ("zkserver", ["--data", "D", "--port", "x"], "whole number"),
        ("zkserver", ["--data", "D", "--host", "0.0.0.0"], "--insecure"),
        ("kbroker", ["--data", "D", "--zokeeper", "x"], "did you mean --zookeeper"),
        ("kbroker", ["--data", "D", "--host", "0.0.0.0"], "--insecure"),
        ("kbroker", [], "--data DIR"),
        ("kbroker", ["--data", "D", "--durability", "never"], "must be one of"),
    ],
)
def test_a_wrong_setting_is_named_with_its_rule(
    module: str, arguments: list[str], words: str, tmp_path: Path
) -> None:
    ended = run(module, *[str(tmp_path) if each == "D" else each for each in arguments])
    assert ended.returncode == 2, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("module", ["zkserver", "kbroker"])
def test_help_lists_every_setting(module: str) -> None:
    ended = run(module, "--help")
    assert ended.returncode == 0
    assert "--port" in ended.stdout
    assert "--data" in ended.stdout


async def test_a_port_in_use_and_a_directory_in_use_are_said(zk: Daemon, tmp_path: Path) -> None:
    ended = await asyncio.to_thread(
        run, "zkserver", "--port", str(zk.port), "--data", str(tmp_path / "other")
    )
    assert ended.returncode != 0
    assert str(zk.port) in ended.stderr
    ended = await asyncio.to_thread(run, "zkserver", "--port", "0", "--data", str(tmp_path / "zk"))
    assert ended.returncode != 0
    assert str(tmp_path / "zk") in ended.stderr


async def test_a_broker_refuses_the_directory_of_another_cluster(
    zk: Daemon, tmp_path: Path
) -> None:
    data = str(tmp_path / "broker")
    async with Pair(str(tmp_path / "first")) as first:
        broker = kbroker(data, 0, first.zookeeper)
        await broker.start()
        await until_registered(first.zookeeper, 2)
        await broker.stop()
    stranger = kbroker(data, 0, zk.address)
    await stranger.start()
    assert await stranger.wait() != 0
    await stranger.stop()
    assert "belongs to cluster" in stranger.last_words


async def until_registered(zookeeper: str, count: int) -> None:
    from duolog import ZkClient

    async with asyncio.timeout(20), ZkClient(zookeeper) as client:
        await client.ensure_path("/brokers/ids")
        while len(await client.get_children("/brokers/ids")) < count:
            continue


async def test_a_stop_signal_ends_a_pair_in_order_and_leaves_the_clean_mark(
    tmp_path: Path,
) -> None:
    async with asyncio.timeout(60):
        pair = Pair(str(tmp_path))
        async with pair:
            await until_registered(pair.zookeeper, 1)
            pair.kbroker.send_signal(signal.SIGINT)
            assert await pair.kbroker.wait() == 0
        assert await pair.zkserver.wait() == 0
    assert (tmp_path / "kbroker" / ".kafka_cleanshutdown").exists()


async def test_four_letter_words_are_answered(zk: Daemon) -> None:
    for word, expected in ((b"ruok", b"imok"), (b"srvr", b"Mode: standalone"), (b"mntr", b"zk_")):
        reader, writer = await asyncio.open_connection(zk.host, zk.port)
        writer.write(word)
        assert expected in await reader.read()
        writer.close()
        await writer.wait_closed()


async def test_the_command_does_what_the_readme_says(zk: Daemon, tmp_path: Path) -> None:
    async with asyncio.timeout(60), Pair(str(tmp_path / "pair")) as pair:
        environment = {
            **os.environ,
            "DUOLOG_BOOTSTRAP_SERVERS": pair.bootstrap_servers,
            "DUOLOG_ZOOKEEPER": pair.zookeeper,
        }

        async def duolog(*words: str, given: bytes = b"") -> str:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "duolog_cluster", *words),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
            )
            out, errors = await process.communicate(given)
            assert process.returncode == 0, (words, errors.decode())
            return out.decode()

        assert "created events" in await duolog("topic", "create", "events", "-p", "3")
        await duolog("produce", "events", "-K", ":", given=b"a:1\nb:2\na:3\n")
        printed = await duolog("consume", "events", "-e", "-f", r"%k=%s\n")
        assert sorted(printed.splitlines()) == ["a=1", "a=3", "b=2"]
        assert printed.index("a=1") < printed.index("a=3")
        assert "events" in (await duolog("topic", "list")).splitlines()
        assert "partition" in await duolog("topic", "describe", "events")
        assert "events" in await duolog("zk", "tree", "/brokers/topics")
        await duolog("zk", "create", "/a/b", "hello", "-p")
        assert await duolog("zk", "get", "/a/b") == "hello"
        assert "version" in await duolog("zk", "stat", "/a/b")
        await duolog("zk", "set", "/a/b", "new")
        assert (await duolog("zk", "ls", "/a")).split() == ["b"]
        await duolog("zk", "rm", "/a", "-r")
        await duolog("topic", "delete", "events")
