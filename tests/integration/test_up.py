"""`duolog up` and the long-running verbs as processes: addresses, signals, the death of a child."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from duolog import Consumer, Producer, ZkClient
from duolog_cluster.zk_words import state_of
from tests.integration.test_processes import source_roots

__all__ = ["source_roots"]

SECONDS = 60


@contextmanager
def started(*words: str, temporary: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A `duolog` process; killed if the test leaves it running."""
    environment = dict(os.environ)
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    process = subprocess.Popen(
        [sys.executable, "-m", "duolog_cluster", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def ready(process: subprocess.Popen[str]) -> Any:
    line = first_line(process)
    assert line, process.communicate(timeout=SECONDS)
    return json.loads(line)


async def send(servers: str, value: bytes) -> int:
    async with asyncio.timeout(SECONDS), Producer(bootstrap_servers=servers) as producer:
        return (await producer.send_and_wait("t", value)).offset


async def read(servers: str, count: int) -> list[bytes | None]:
    async with (
        asyncio.timeout(SECONDS),
        Consumer("t", bootstrap_servers=servers, auto_offset_reset="earliest") as consumer,
    ):
        return [(await consumer.getone()).value for _ in range(count)]


async def create(zookeeper: str, path: str) -> None:
    async with asyncio.timeout(SECONDS), ZkClient(zookeeper) as zk:
        await zk.create(path)


def led_by(servers: Sequence[str]) -> int:
    """The id of the server that leads."""
    states = [asyncio.run(state_of(*address(each))) for each in servers]
    return [each.role for each in states].index("leader") + 1


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def test_a_pair_on_any_ports_serves_until_ctrl_c_and_leaves_nothing(tmp_path: Path) -> None:
    with started("up", "--port", "0", "--json", temporary=tmp_path) as process:
        told = ready(process)
        assert asyncio.run(send(told["bootstrap_servers"], b"a")) == 0
        (scratch,) = tmp_path.iterdir()
        assert told["data"] == str(scratch)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
        assert (process.returncode, errors) == (0, "")
    assert list(tmp_path.iterdir()) == []
    assert not any(is_alive(pid) for pid in told["pids"].values())


def test_data_in_a_directory_of_the_callers_is_there_the_next_time(tmp_path: Path) -> None:
    data = tmp_path / "kept"
    words = ("up", "--port", "0", "--data", str(data), "--durability", "replicated")
    for round_ in range(2):
        with started(*words) as process:
            lines = [first_line(process).split() for _ in range(4)]
            assert [line[0] for line in lines[:3]] == ["zkserver", "kbroker", "data"]
            servers = lines[1][1]
            assert asyncio.run(send(servers, b"%d" % round_)) == round_
            assert asyncio.run(read(servers, round_ + 1)) == [b"0", b"1"][: round_ + 1]
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=SECONDS)
            assert (process.returncode, errors) == (0, "stopped\n")
    assert (data / "kbroker" / ".kafka_cleanshutdown").exists()


@pytest.mark.parametrize("victim", ["zkserver", "kbroker"])
def test_the_death_of_one_daemon_ends_the_other_and_is_said(victim: str, tmp_path: Path) -> None:
    with started("up", "--port", "0", "--json", temporary=tmp_path) as process:
        told = ready(process)
        os.kill(told["pids"][victim], signal.SIGKILL)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 1
        assert f"{victim} has ended" in errors and "Traceback" not in errors
    assert not any(is_alive(pid) for pid in told["pids"].values())
    assert list(tmp_path.iterdir()) == []


def test_an_ensemble_goes_on_without_one_server_and_is_kept(tmp_path: Path) -> None:
    data = tmp_path / "kept"
    with started("up", "--port", "0", "--data", str(data), "--zk", "3", "--json") as process:
        told = ready(process)
        servers = told["zookeeper"].split(",")
        assert [*told["pids"]] == ["zkserver-1", "zkserver-2", "zkserver-3", "kbroker"]
        assert asyncio.run(send(told["bootstrap_servers"], b"0")) == 0
        victim = led_by(servers)
        os.kill(told["pids"][f"zkserver-{victim}"], signal.SIGKILL)
        assert process.stderr is not None
        assert process.stderr.readline() == (
            f"duolog: zkserver {victim} ({servers[victim - 1]}) has ended: killed by SIGKILL; "
            f"2 of 3 are left; kill -USR1 {process.pid} starts it again\n"
        )
        asyncio.run(create(told["zookeeper"], "/without-one"))
        process.send_signal(signal.SIGUSR1)
        again = process.stderr.readline()
        assert f"zkserver {victim} ({servers[victim - 1]}) is up again" in again
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
        assert (process.returncode, errors) == (0, "")
        assert not is_alive(int(again.split()[-1]))
    assert not any(is_alive(pid) for pid in told["pids"].values())
    with started("up", "--port", "0", "--data", str(data)) as process:
        lines = [first_line(process).split() for _ in range(7)]
        names = ["zkserver-1", "zkserver-2", "zkserver-3", "zookeeper", "kbroker", "data"]
        assert [line[0] for line in lines] == [*names, "Ctrl-C"]
        assert asyncio.run(read(lines[4][1], 1)) == [b"0"]
        asyncio.run(create(lines[3][1], "/without-one/child"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    with started("up", "--port", "0", "--data", str(data), "--zk", "5") as process:
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 2
        assert errors.startswith("duolog: setting zk = 5") and "holds the data of 3" in errors


def test_an_ensemble_that_loses_its_quorum_ends(tmp_path: Path) -> None:
    with started("up", "--port", "0", "--zk", "3", "--json", temporary=tmp_path) as process:
        told = ready(process)
        for number in (1, 2):
            os.kill(told["pids"][f"zkserver-{number}"], signal.SIGKILL)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 1
        assert "1 of 3 are left, which is no quorum" in errors and "Traceback" not in errors
    assert not any(is_alive(pid) for pid in told["pids"].values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--port", "--zk-port"])
def test_a_port_in_use_is_said_and_nothing_is_left(flag: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        others = ["--zk-port", "0"] if flag == "--port" else ["--port", "0"]
        with started("up", flag, port, *others, temporary=tmp_path) as process:
            _, errors = process.communicate(timeout=SECONDS)
            assert process.returncode == 1
            assert port in errors and "address already in use" in errors.lower(), errors
            assert errors.startswith("duolog: ") and errors.count("\n") == 1, errors
    assert list(tmp_path.iterdir()) == []


def test_watching_and_ephemeral_znodes_last_until_ctrl_c(tmp_path: Path) -> None:
    from duolog_cluster.processes import zkserver

    async def story() -> None:
        daemon = zkserver(str(tmp_path), 0)
        await daemon.start()
        try:
            async with asyncio.timeout(SECONDS), ZkClient(daemon.address) as zk:
                await zk.create("/w")
                await asyncio.to_thread(commands, daemon.address, zk, asyncio.get_running_loop())
        finally:
            await daemon.stop()

    def commands(address: str, zk: ZkClient, loop: asyncio.AbstractEventLoop) -> None:
        def run(work: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result(SECONDS)

        with (
            started("zk", "watch", "/w", "-r", "-z", address) as watching,
            started("zk", "create", "/w/e", "here", "-e", "-z", address) as creating,
        ):
            assert first_line(creating) == "/w/e\n"
            assert run(zk.exists("/w/e")).ephemeral_owner != 0
            # The watch may have been armed after the creation: change something until it shows.
            while not select.select([watching.stdout], [], [], 0.05)[0]:
                run(zk.set("/w", b"x"))
            assert first_line(watching).split()[1] in {"/w", "/w/e"}
            for process in (creating, watching):
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=SECONDS)
                assert process.returncode == 130
        assert run(zk.exists("/w/e")) is None

    asyncio.run(story())
