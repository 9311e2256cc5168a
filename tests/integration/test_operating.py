"""What an operator sees of a running zkserver: words, metrics, commands, health, on both loops.

The shapes are those of Apache ZooKeeper 3.8.0, as `compare_words` found them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from duolog import ZkClient
from duolog_cluster.processes import Daemon, DaemonFailedError, zkserver
from duolog_runtime.http_server import MAX_HEAD_BYTES
from tests.tls_files import client_context, copy_tls_files
from zkserver.config import FOUR_LETTER_WORDS, ServerConfig
from zkserver.server.commands import COMMANDS

ROOTS = ["protocol", "runtime", "client", "zkserver", "kbroker", "cluster"]
ROOT = Path(__file__).resolve().parents[2]
ALL = ["--http-port", "0", "--four-letter-words", "*"]
NOT_ALLOWED = "{} is not executed because it is not in the whitelist.\n"


@pytest.fixture(autouse=True)
def source_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join(str(ROOT / each) for each in ROOTS)
    monkeypatch.setenv("PYTHONPATH", path)


@contextlib.asynccontextmanager
async def running(directory: Path, *arguments: str) -> AsyncIterator[Daemon]:
    daemon = zkserver(str(directory / "zk"), 0, arguments)
    await daemon.start()
    try:
        yield daemon
    finally:
        assert await daemon.stop() == 0, daemon.last_words


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Daemon]:
    """On the same kind of loop as the test."""
    kind = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    async with running(tmp_path, *ALL, "--loop", kind) as daemon:
        yield daemon


@contextlib.asynccontextmanager
async def busy(server: Daemon) -> AsyncIterator[tuple[ZkClient, ZkClient]]:
    """Two sessions with ephemerals and watches."""
    async with (
        ZkClient(server.address, session_timeout=10) as first,
        ZkClient(server.address, session_timeout=30) as second,
    ):
        await first.create("/app", b"x" * 10)
        await first.create("/app/e1", b"", ephemeral=True)
        await first.create("/app/e2", b"", ephemeral=True)
        await second.create("/app/e3", b"", ephemeral=True)
        await second.get("/app", watch=lambda _event: None)
        await second.exists("/none", watch=lambda _event: None)
        yield first, second


async def ask(server: Daemon, word: str, argument: bytes = b"") -> str:
    """The answer to a four-letter word, up to the end of the connection."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(word.encode() + argument)
    try:
        async with asyncio.timeout(20):
            return (await reader.read()).decode()
    finally:
        writer.close()


async def http(
    server: Daemon, path: str, method: str = "GET", headers: str = "", body: bytes = b""
) -> tuple[int, str]:
    """Status and body of a response."""
    port = server.announced["http_port"]
    reader, writer = await asyncio.open_connection(server.host, port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode() + body)
    try:
        async with asyncio.timeout(20):
            head, _, rest = (await reader.read()).decode().partition("\r\n\r\n")
            return int(head.split()[1]), rest
    finally:
        writer.close()


async def command(server: Daemon, name: str) -> dict[str, Any]:
    status, body = await http(server, f"/commands/{name}")
    assert status == 200, body
    values: dict[str, Any] = json.loads(body)
    assert values["error"] is None
    return values


SERVER_LINES = (
    r"Latency min/avg/max: \d+/\d+\.\d+/\d+\n"
    r"Received: \d+\nSent: \d+\nConnections: \d+\nOutstanding: \d+\n"
    r"Zxid: 0x[0-9a-f]+\nMode: standalone\nNode count: \d+\n"
)
VERSION_LINE = r"Zookeeper version: 3\.\d+\.\d+-\S+, built on .+\n"
BRIEF = r" /127\.0\.0\.1:\d+\[[01]\]\(queued=\d+,recved=\d+,sent=\d+"
FULL = (
    BRIEF + r",sid=0x[0-9a-f]+,lop=[A-Z]+,est=\d+,to=\d+(,lcxid=0x[0-9a-f]+)?,lzxid=0x[0-9a-f]+,"
    r"lresp=\d+,llat=\d+,minlat=\d+,avglat=\d+,maxlat=\d+\)\n"
)
EXPIRY = r"\d+ expire at \w{3} \w{3} \d\d \d\d:\d\d:\d\d UTC \d{4}:\n"
SHAPES = {
    "conf": r"clientPort=\d+\nsecureClientPort=-1\ndataDir=/.+\ndataDirSize=\d+\ndataLogDir=/.+\n"
    r"dataLogSize=[1-9]\d*\ntickTime=2000\nmaxClientCnxns=60\nminSessionTimeout=4000\n"
    r"maxSessionTimeout=40000\nclientPortListenBacklog=\d+\nserverId=1\n(\w+=.*\n)+",
    "cons": rf"({BRIEF}\)\n|{FULL}){{3}}\n",
    "crst": r"Connection stats reset\.\n",
    "dirs": r"datadir_size: \d+\nlogdir_size: [1-9]\d*\n",
    "dump": rf"SessionTracker dump:\nSession Sets \(2\)/\(2\):\n({EXPIRY}(\t0x[0-9a-f]+\n)+){{2}}"
    r"ephemeral nodes dump:\nSessions with Ephemerals \(2\):\n"
    r"0x[0-9a-f]+:\n\t/app/e1\n\t/app/e2\n0x[0-9a-f]+:\n\t/app/e3\n"
    rf"Connections dump:\nConnections Sets \(\d\)/\(3\):\n"
    rf"({EXPIRY}(\tip: /127\.0\.0\.1:\d+ sessionId: 0x[0-9a-f]+\n)+)+",
    "envi": r"Environment:\nzookeeper\.version=3\.\d+\.\d+.*\nhost\.name=.*\n([a-z.]+=.*\n)+",
    "gtmk": r"306",
    "hash": r"",
    "isro": r"rw",
    "mntr": r"zk_version\t3\..*\nzk_server_state\tstandalone\n(zk_\w+\t-?\d+(\.\d+)?\n)+",
    "ruok": r"imok",
    "srst": r"Server stats reset\.\n",
    "srvr": VERSION_LINE + SERVER_LINES,
    "stat": rf"{VERSION_LINE}Clients:\n({BRIEF}\)\n){{3}}\n{SERVER_LINES}",
    "stmk": r"255",
    "wchc": r"0x[0-9a-f]+\n\t/app\n\t/none\n\n",
    "wchp": r"/app\n\t0x[0-9a-f]+\n/none\n\t0x[0-9a-f]+\n\n",
    "wchs": r"1 connections watching 2 paths\nTotal watches:2\n",
}


async def test_every_word_has_its_shape(server: Daemon) -> None:
    assert SHAPES.keys() == set(FOUR_LETTER_WORDS)
    async with busy(server):
        for word, shape in SHAPES.items():
            argument = struct.pack(">q", 255) if word == "stmk" else b""
            answer = await ask(server, word, argument)
            assert re.fullmatch(shape, answer), (word, answer)
        assert await ask(server, "gtmk") == "255"
        assert await ask(server, "ruok", b"\n") == "imok"
        assert await ask(server, "zzzz") == ""


async def test_a_word_waits_for_its_argument(server: Daemon) -> None:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    mask = struct.pack(">q", -2)
    for piece in (b"st", b"mk", mask[:3], mask[3:]):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    assert await reader.read() == b"-2"
    writer.close()


async def test_connections_count_what_they_did(server: Daemon) -> None:
    async with busy(server) as (first, _second):
        assert await ask(server, "crst")
        await first.get("/app")
        await first.set("/app", b"new")
        line = next(each for each in (await ask(server, "cons")).splitlines() if "lop=SETD" in each)
        # The event that the change caused went to the other connection.
        assert "(queued=0,recved=2,sent=2," in line
        assert "lop=NA" in await ask(server, "cons")
        values = await command(server, "connections")
        changed = next(each for each in values["connections"] if each["last_operation"] == "SETD")
        told = next(each for each in values["connections"] if each["last_operation"] == "NA")
        assert (changed["packets_received"], changed["packets_sent"]) == (2, 2)
        assert (told["packets_received"], told["packets_sent"]) == (0, 1)
        assert (
            changed["last_zxid"]
            == (await command(server, "server_stats"))["server_stats"]["last_processed_zxid"]
        )
        assert (changed["session_timeout"], told["session_timeout"]) == (10_000, 30_000)


async def test_a_reset_begins_anew(server: Daemon) -> None:
    async with busy(server) as (first, _second):
        before = await command(server, "monitor")
        assert before["packets_received"] >= 7
        assert await ask(server, "srst")
        await first.get("/app")
        values = await command(server, "monitor")
        # The word itself was counted before the reset.
        assert (values["packets_received"], values["packets_sent"]) == (1, 1)
        assert values["cnt_readlatency"] == 1
        assert 0 < values["bytes_received_count"] < before["bytes_received_count"]
        assert 0 < values["response_bytes"] < before["response_bytes"]


KEYS = {
    "configuration": "client_port data_dir data_log_dir tick_time max_client_cnxns settings "
    "min_session_timeout max_session_timeout server_id client_port_listen_backlog",
    "connection_stat_reset": "",
    "connections": "connections secure_connections",
    "dirs": "datadir_size logdir_size",
    "dump": "expiry_time_to_session_ids session_id_to_ephemeral_paths",
    "environment": "zookeeper.version host.name os.name os.arch os.version user.dir",
    "get_trace_mask": "tracemask",
    "hash": "digests",
    "initial_configuration": "initial_configuration",
    "is_read_only": "read_only",
    "last_snapshot": "zxid timestamp",
    "leader": "is_leader leader_id leader_ip",
    "monitor": "version server_state znode_count avg_latency cnt_fsynctime p99_fsynctime",
    "observer_connection_stat_reset": "",
    "observers": "synced_observers observers",
    "ruok": "",
    "server_stats": "version read_only server_stats client_response node_count",
    "stat_reset": "",
    "stats": "version read_only server_stats client_response node_count connections "
    "secure_connections",
    "system_properties": "os.name zkserver.tick_ms",
    "voting_view": "current_config",
    "watch_summary": "num_connections num_paths num_total_watches",
    "watches": "session_id_to_watched_paths",
    "watches_by_path": "path_to_session_ids",
    "zabstate": "voting zabstate",
}


async def test_every_command_is_json_with_its_keys(server: Daemon) -> None:
    asked = {each.names[0] for each in COMMANDS}
    assert KEYS.keys() | {"set_trace_mask", "snapshot"} == asked
    async with busy(server) as (first, second):
        for name, keys in KEYS.items():
            values = await command(server, name)
            assert set(keys.split()) <= values.keys(), name
            assert values["command"] == name
        for each in COMMANDS:
            if "GET" in each.methods and each.names[0] != "set_trace_mask":
                for name in each.names:
                    assert (await command(server, name))["command"] == each.names[0]
        watches = await command(server, "watches")
        ephemerals = (await command(server, "dump"))["session_id_to_ephemeral_paths"]
        assert watches["session_id_to_watched_paths"] == {
            str(second.client_id[0]): ["/app", "/none"]
        }
        assert ephemerals[str(first.client_id[0])] == ["/app/e1", "/app/e2"]
    status, body = await http(server, "/commands")
    assert status == 200
    assert re.findall(r'href="/commands/(\w+)"', body) == sorted(asked)


async def test_commands_that_are_refused(server: Daemon) -> None:
    assert (await http(server, "/commands/nosuch"))[0] == 404
    assert (await http(server, "/commands/dump", "POST"))[0] == 405
    assert (await http(server, "/commands/snapshot"))[0] == 405
    assert (await http(server, "/commands/snapshot", "HEAD"))[0] == 405
    status, body = await http(server, "/commands/snapshot", "POST")
    assert (status, json.loads(body)["command"]) == (403, "snapshot")
    # A web page in a browser on this machine can send a POST, but not hide where it is from.
    assert (await http(server, "/commands/stat_reset", "POST"))[0] == 200
    assert (await http(server, "/commands/stat_reset", "POST", "Origin: http://x\r\n"))[0] == 403
    for site, status in (("none", 200), ("same-origin", 200), ("cross-site", 403)):
        headers = f"Sec-Fetch-Site: {site}\r\n"
        assert (await http(server, "/commands/stat_reset", headers=headers))[0] == status, site
    assert (await http(server, "/commands/set_trace_mask"))[0] == 400
    assert (await http(server, "/commands/set_trace_mask?traceMask=" + "9" * 30))[0] == 400
    assert (await http(server, "/commands/set_trace_mask?traceMask=-9"))[0] == 200
    assert (await command(server, "get_trace_mask"))["tracemask"] == -9


async def test_a_snapshot_on_request(tmp_path: Path) -> None:
    async with running(tmp_path, *ALL, "--admin-snapshot") as server:
        async with ZkClient(server.address) as client:
            await client.create("/a", b"")
        status, body = await http(server, "/commands/snapshot", "POST")
        assert status == 200, body
        zxid = int(json.loads(body)["last_zxid"], 16)
        async with asyncio.timeout(20):
            while int((await command(server, "last_snapshot"))["zxid"], 16) != zxid:
                continue
        assert (await command(server, "monitor"))["cnt_snapshottime"] == 1
        assert (await command(server, "dirs"))["datadir_size"] > 0
        assert (await http(server, "/commands/snapshot", "POST"))[0] == 429
    async with running(tmp_path, *ALL) as server, ZkClient(server.address) as client:
        assert await client.exists("/a") is not None
        assert int((await command(server, "last_snapshot"))["zxid"], 16) == zxid


async def test_metrics_are_what_mntr_says(server: Daemon) -> None:
    async with busy(server):
        status, text = await http(server, "/metrics")
        assert status == 200
        families = {each.name: each for each in text_string_to_metric_families(text)}
        assert families["znode_count"].type == "gauge"
        assert families["znode_count"].samples[0].value == 8
        fsync = families["fsynctime"]
        assert fsync.type == "summary"
        names = {each.name for each in fsync.samples}
        assert names == {"fsynctime", "fsynctime_count", "fsynctime_sum"}
        quantiles = [each.labels["quantile"] for each in fsync.samples if each.labels]
        assert quantiles == ["0.5", "0.95", "0.99"]
        shown = {
            re.sub(r"^(avg|min|max|cnt|sum|p\d+)_", "", name) if "latency" not in name else name
            for name in await command(server, "monitor")
        }
        assert families.keys() - {"readlatency", "updatelatency", "max_file_descriptor_count"} <= {
            *shown,
            *(name for name in families if name.endswith("_latency")),
        }


async def test_health_and_readiness(server: Daemon) -> None:
    assert await http(server, "/health") == (200, "ok\n")
    assert await http(server, "/ready") == (200, "ok\n")
    assert (await http(server, "/nothing"))[0] == 404


async def test_hostile_http_is_bounded(server: Daemon) -> None:
    port = server.announced["http_port"]
    for sent in (b"GET /" + b"a" * (4 * MAX_HEAD_BYTES), b"\0" * (4 * MAX_HEAD_BYTES)):
        reader, writer = await asyncio.open_connection(server.host, port)
        writer.write(sent)
        assert b" 431 " in await reader.read()
        writer.close()
    assert (await http(server, "/metrics", "BREW"))[0] == 405
    headers = "X-Forwarded-For: 127.0.0.1\r\nContent-Length: 999999999\r\n"
    assert (await http(server, "/commands/ruok", "POST", headers))[0] == 413
    slow = [await asyncio.open_connection(server.host, port) for _ in range(16)]
    reader, writer = await asyncio.open_connection(server.host, port)
    assert b" 503 " in await reader.read()
    for _, each in [*slow, (reader, writer)]:
        each.close()
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(ConnectionError):  # refused while it answered: no matter
                if (await http(server, "/health"))[0] == 200:
                    return


async def test_lists_are_bounded(tmp_path: Path) -> None:
    async with (
        running(tmp_path, *ALL, "--max-listed", "3") as server,
        ZkClient(server.address) as client,
    ):
        for number in range(3):
            await client.create(f"/e{number}", b"", ephemeral=True)
            await client.exists(f"/w{number}", watch=lambda _event: None)
        for word in ("dump", "wchc", "wchp", "cons"):
            assert "(more is not shown)" not in await ask(server, word), word
        assert "truncated" not in await command(server, "watches")
        await client.create("/e3", b"", ephemeral=True)
        await client.exists("/w3", watch=lambda _event: None)
        for word, last in (("dump", "/e2"), ("wchc", "/w2"), ("wchp", "/w2")):
            answer = await ask(server, word)
            assert "(more is not shown)\n" in answer, word
            assert last in answer and last.replace("2", "3") not in answer, word
        for name in ("dump", "watches", "watches_by_path"):
            assert (await command(server, name))["truncated"], name
        others = [await asyncio.open_connection(server.host, server.port) for _ in range(3)]
        assert "(more is not shown)\n\n" in await ask(server, "cons")
        values = await command(server, "connections")
        assert len(values["connections"]) == 3 and values["truncated"]
        for _, writer in others:
            writer.close()


async def test_words_that_are_not_allowed_say_so(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        allowed = ServerConfig(data_directory="d").four_letter_words
        for word in FOUR_LETTER_WORDS:
            answer = await ask(server, word)
            assert (answer == NOT_ALLOWED.format(word)) == (word not in allowed), word
        assert server.announced["http_port"] == -1
    async with running(tmp_path, "--four-letter-words", "ruok,cons") as server:
        assert await ask(server, "ruok") == "imok"
        assert await ask(server, "cons") != NOT_ALLOWED.format("cons")
        assert await ask(server, "srvr") == NOT_ALLOWED.format("srvr")
    async with running(tmp_path, "--four-letter-words", "") as server:
        assert await ask(server, "ruok") == NOT_ALLOWED.format("ruok")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--four-letter-words", "ruok,boom"], "is not a four-letter word"),
        (["--http-port", "0", "--http-host", "0.0.0.0"], "--insecure"),
        (["--http-port", "65536"], "must be in [-1, 65535]"),
        (["--http-port", "0", "--http-host", "127.0.0.1", "--max-listed", "0"], "at least 1"),
    ],
)
async def test_wrong_settings_are_named(tmp_path: Path, arguments: list[str], says: str) -> None:
    daemon = zkserver(str(tmp_path), 0, arguments)
    with pytest.raises(DaemonFailedError, match=re.escape(says)):
        await daemon.start()


async def test_an_http_port_in_use_is_named(server: Daemon, tmp_path: Path) -> None:
    taken = str(server.announced["http_port"])
    daemon = zkserver(str(tmp_path / "other"), 0, ["--http-port", taken])
    with pytest.raises(DaemonFailedError, match="http_port"):
        await daemon.start()


async def test_tls_connections_are_told_apart(tmp_path: Path) -> None:
    folder = copy_tls_files(tmp_path / "tls")
    tls = ["--tls-certificate-file", str(folder / "server.pem")]
    tls += ["--tls-key-file", str(folder / "server.key"), "--tls-port", "0"]
    async with running(tmp_path, *ALL, *tls) as server:
        conf = await ask(server, "conf")
        port = int(re.findall(r"^secureClientPort=(\d+)$", conf, re.MULTILINE)[0])
        assert (await command(server, "configuration"))["secure_client_port"] == port
        context = client_context()
        inside = await asyncio.open_connection(
            server.host, port, ssl=context, server_hostname="localhost"
        )
        outside = await asyncio.open_connection(server.host, server.port)
        begun = await asyncio.open_connection(server.host, port)
        async with asyncio.timeout(20):  # until the server has taken all three
            while (await command(server, "monitor"))["num_alive_connections"] < 3:
                continue
        values = await command(server, "connections")
        assert [len(values["connections"]), len(values["secure_connections"])] == [1, 2]
        assert (await command(server, "monitor"))["outstanding_tls_handshake"] == 1
        inside[1].write(b"ruok")
        assert await inside[0].read() == b"imok"
        for _, writer in (inside, outside, begun):
            writer.close()
