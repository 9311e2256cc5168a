"""The daemons as processes: what a person who starts them wrongly is told, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from duolog import Admin, NewTopic, Producer
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
        ("kbroker", ["--data", "D", "--zookeeper", "h:1//x"], "setting zookeeper"),
        ("kbroker", ["--data", "D", "--zookeeper", "h:x"], "setting zookeeper"),
        ("kbroker", ["--data", "D", "--config", "/nowhere.toml"], "cannot be read"),
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
    from kbroker.config import BrokerConfig
    from zkserver.config import ServerConfig
    from zkserver.core.config import CoreConfig

    ended = run(module, "--help")
    assert ended.returncode == 0
    settings = [BrokerConfig] if module == "kbroker" else [ServerConfig, CoreConfig]
    for config in settings:
        for name in config.__dataclass_fields__:
            flag = {"data_directory": "data"}.get(name, name).replace("_", "-")
            assert f"--{flag}" in ended.stdout, name


async def test_a_port_in_use_and_a_directory_in_use_are_said(zk: Daemon, tmp_path: Path) -> None:
    ended = await asyncio.to_thread(
        run, "zkserver", "--port", str(zk.port), "--data", str(tmp_path / "other")
    )
    assert ended.returncode != 0
    assert str(zk.port) in ended.stderr
    ended = await asyncio.to_thread(run, "zkserver", "--port", "0", "--data", str(tmp_path / "zk"))
    assert ended.returncode != 0
    assert str(tmp_path / "zk") in ended.stderr


@pytest.mark.parametrize("setting", ["port", "metrics-port"])
def test_a_broker_says_that_a_port_is_in_use(setting: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = str(taken.getsockname()[1])
        ports = {"port": "0", "metrics-port": "-1", setting: number}
        flags = [f"--{name}={value}" for name, value in ports.items()]
        ended = run("kbroker", "--data", str(tmp_path), "--zookeeper", "127.0.0.1:1", *flags)
    assert ended.returncode == 2, ended.stderr
    assert f"setting {setting.replace('-', '_')} = {number}" in ended.stderr
    assert "address already in use" in ended.stderr.lower()
    assert "Traceback" not in ended.stderr


async def test_a_broker_refuses_the_directory_of_another_cluster_or_broker(
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
    assert await stranger.wait() == 2
    await stranger.stop()
    assert "belongs to cluster" in stranger.last_words
    ended = await asyncio.to_thread(
        run, "kbroker", "--data", data, "--broker-id", "7", "--port", "0", "--zookeeper", zk.address
    )
    assert ended.returncode == 2
    assert "the data directory belongs to broker 100" in ended.stderr
    again = await asyncio.to_thread(
        run, "kbroker", "--data", str(tmp_path / "zk"), "--port", "0", "--zookeeper", zk.address
    )
    assert again.returncode == 2, again.stderr


async def test_settings_come_from_a_file_the_environment_and_flags(
    zk: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "broker.toml"
    config.write_text(
        f'data = "{tmp_path}/broker"\nport = 0\nbroker_id = 5\nnum_partitions = 2\n'
        f'zookeeper = "{zk.address}"\nrack = "r1"\n'
    )
    monkeypatch.setenv("KBROKER_NUM_PARTITIONS", "3")
    monkeypatch.setenv("KBROKER_RACK", "r2")
    broker = Daemon("kbroker", ["--config", str(config), "--rack", "r3"])
    await broker.start()
    await until_registered(zk.address, 1)
    async with asyncio.timeout(20), Admin(bootstrap_servers=broker.address) as admin:
        await admin.create_topics([NewTopic("t")])
        (topic,) = await admin.describe_topics(["t"])
        (node,) = (await admin.describe_cluster()).brokers
    assert len(topic.partitions) == 3
    assert (node.node_id, node.rack) == (5, "r3")
    assert await broker.stop() == 0, broker.last_words


async def test_the_daemons_run_on_the_stock_loop_too(tmp_path: Path) -> None:
    loop = ["--loop", "asyncio"]
    async with (
        asyncio.timeout(60),
        Pair(str(tmp_path), zkserver_arguments=loop, kbroker_arguments=loop) as pair,
    ):
        async with Producer(bootstrap_servers=pair.bootstrap_servers) as producer:
            assert (await producer.send_and_wait("t", b"a")).offset == 0
        assert await pair.kbroker.stop() == 0, pair.kbroker.last_words
        assert await pair.zkserver.stop() == 0, pair.zkserver.last_words


async def until_registered(zookeeper: str, count: int) -> None:
    from duolog import ZkClient

    async with asyncio.timeout(20), ZkClient(zookeeper) as client:
        await client.ensure_path("/brokers/ids")
        async with client.events("/brokers/ids", recursive=True) as events:
            while len(await client.get_children("/brokers/ids")) < count:
                await anext(events)


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
