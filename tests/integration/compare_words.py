"""Shows the answers of Apache ZooKeeper and of zkserver to operators, side by side.

    python -m tests.integration.compare_words [WORD-OR-COMMAND ...]

Both get the same sessions, ephemerals and watches; then every four-letter word and every command
is asked of both. What is left of an answer when numbers, addresses, dates and paths of the file
system are masked is its shape. Differences are printed; the ones that are meant are in `MEANT`,
each with its reason, and are not counted. Needs Debian's package `zookeeper`, with `jetty9` and
`servlet-api` beside it; exit code 1 where something else differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import struct
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from duolog import ZkClient
from duolog_cluster.processes import zkserver
from duolog_cluster.zk_members import free_ports
from zkserver.config import FOUR_LETTER_WORDS
from zkserver.server.commands import COMMANDS

JARS = "/usr/share/java"
CLASS_PATH = f"{JARS}/servlet-api.jar:{JARS}/zookeeper.jar"
OPEN_ACL = struct.pack(">ii", 1, 31) + b"\0\0\0\5world\0\0\0\6anyone"
OURS = "has names of its own, and none of Java's"
MEANT = {
    "conf": "our own settings follow ZooKeeper's",
    "envi": OURS,
    "mntr": "without what only an ensemble or a JVM has; the log's tallies have quantiles too",
    "/configuration": "our own settings are added",
    "/environment": OURS,
    "/leader": "an ensemble of one leads itself; ZooKeeper says that it is not initialized",
    "/monitor": "as mntr",
    "/server_stats": "without what only TLS and authentication have",
    "/snapshot": "3.8 does not have it",
    "/stats": "as server_stats",
    "/system_properties": OURS,
}


class JuteSession:
    """As much of ZooKeeper's protocol as the scenario needs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.xid = 0

    @classmethod
    async def open(cls, port: int, timeout_ms: int) -> JuteSession:
        session = cls(*await asyncio.open_connection("127.0.0.1", port))
        session._send(struct.pack(">iqiqi16xb", 0, 0, timeout_ms, 0, 16, 0))
        await session._frame()
        return session

    async def call(self, operation: int, body: bytes) -> None:
        self.xid += 1
        self._send(struct.pack(">ii", self.xid, operation) + body)
        while struct.unpack_from(">i", await self._frame())[0] != self.xid:
            pass

    def _send(self, body: bytes) -> None:
        self.writer.write(struct.pack(">i", len(body)) + body)

    async def _frame(self) -> bytes:
        (size,) = struct.unpack(">i", await self.reader.readexactly(4))
        return await self.reader.readexactly(size)


def text(value: str) -> bytes:
    return struct.pack(">i", len(value)) + value.encode()


async def fill_zookeeper(port: int) -> list[JuteSession]:
    """The sessions live as long as the result."""
    first, second = await JuteSession.open(port, 10_000), await JuteSession.open(port, 30_000)
    await first.call(1, text("/app") + text("x" * 10) + OPEN_ACL + struct.pack(">i", 0))
    for session, path in ((first, "/app/e1"), (first, "/app/e2"), (second, "/app/e3")):
        await session.call(1, text(path) + text("") + OPEN_ACL + struct.pack(">i", 1))
    await second.call(4, text("/app") + b"\1")
    await second.call(3, text("/none") + b"\1")
    await second.call(3, text("/deep") + b"\1")
    return [first, second]


async def fill_ours(port: int, stack: contextlib.AsyncExitStack) -> None:
    address = f"127.0.0.1:{port}"
    first = await stack.enter_async_context(ZkClient(address, session_timeout=10))
    second = await stack.enter_async_context(ZkClient(address, session_timeout=30))
    await first.create("/app", b"x" * 10)
    for client, path in ((first, "/app/e1"), (first, "/app/e2"), (second, "/app/e3")):
        await client.create(path, b"", ephemeral=True)
    await second.get("/app", watch=lambda _event: None)
    await second.exists("/none", watch=lambda _event: None)
    await second.exists("/deep", watch=lambda _event: None)


@contextlib.asynccontextmanager
async def zookeeper(directory: str) -> AsyncIterator[tuple[int, int]]:
    """A real one: (client port, HTTP port)."""
    port, http_port = free_ports(2)
    settings = {
        "tickTime": 2000,
        "dataDir": f"{directory}/data",
        "clientPort": port,
        "clientPortAddress": "127.0.0.1",
        "4lw.commands.whitelist": "*",
        "admin.serverAddress": "127.0.0.1",
        "admin.serverPort": http_port,
    }
    path = Path(directory) / "zoo.cfg"
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
    process = await asyncio.create_subprocess_exec(
        *("java", "-Xmx256m", "-cp", CLASS_PATH, main, str(path)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=directory,
    )
    try:
        async with asyncio.timeout(60):
            while not await word(port, "ruok") or not await command(http_port, "ruok"):
                continue
        yield port, http_port
    finally:
        process.terminate()
        await process.wait()


async def word(port: int, name: str) -> str:
    argument = struct.pack(">q", 306) if name == "stmk" else b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return ""
    writer.write(name.encode() + argument)
    try:
        async with asyncio.timeout(5):
            return (await reader.read()).decode()
    except (TimeoutError, ConnectionError):  # a server that starts may take it and say nothing
        return ""
    finally:
        writer.close()


async def command(port: int, name: str) -> dict[str, Any]:
    def ask() -> bytes:
        method = "POST" if name == "snapshot" else "GET"
        url = f"http://127.0.0.1:{port}/commands/{name}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method)) as response:
                return response.read()  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            return error.read()
        except OSError:
            return b""

    try:
        return json.loads(await asyncio.to_thread(ask) or b"{}")  # type: ignore[no-any-return]
    except ValueError:
        return {}


def shape(answer: str) -> list[str]:
    """The lines of a word's answer without what is different each time; each once."""
    masks = (
        (r"^Zookeeper version: .*", "Zookeeper version: V"),
        (r"expire at .*:$", "expire at DATE:"),
        (r"/?127\.0\.0\.1:\d+", "ADDRESS"),
        (r"=/.*", "=PATH"),
        (r"0x[0-9a-f]+", "HEX"),
        (r"-?\d+(\.\d+)?", "N"),
    )
    lines: dict[str, None] = {}
    for line in answer.split("\n"):
        masked = line
        for pattern, mask in masks:
            masked = re.sub(pattern, mask, masked)
        lines[masked] = None
    return sorted(lines)


def keys(value: Any) -> Any:
    """JSON without its values; keys that are ids or paths are masked."""
    if isinstance(value, dict):
        return {re.sub(r"^-?\d+$|^/.*", "KEY", key): keys(each) for key, each in value.items()}
    if isinstance(value, list):
        return [keys(value[0])] if value else []
    return type(value).__name__


async def main(wanted: list[str]) -> int:
    differing = 0
    async with contextlib.AsyncExitStack() as stack:
        directory = tempfile.mkdtemp(prefix="compare-words-")
        stack.callback(shutil.rmtree, directory)
        theirs, their_http = await stack.enter_async_context(zookeeper(directory))
        arguments = ["--http-port", "0", "--four-letter-words", "*"]
        daemon = zkserver(f"{directory}/ours", 0, arguments)
        await daemon.start()
        stack.push_async_callback(daemon.stop)
        ours, our_http = daemon.port, int(daemon.announced["http_port"])
        sessions = await fill_zookeeper(theirs)
        stack.callback(lambda: [each.writer.close() for each in sessions])
        await fill_ours(ours, stack)
        names = [*FOUR_LETTER_WORDS, "zzzz", *(f"/{each.names[0]}" for each in COMMANDS)]
        for name in wanted or names:
            if name.startswith("/"):
                pair = [keys(await command(port, name[1:])) for port in (their_http, our_http)]
            else:
                pair = [shape(await word(port, name)) for port in (theirs, ours)]
            meant = MEANT.get(name)
            if pair[0] == pair[1]:
                print(f"{name}: equal")
            elif meant is not None and not wanted:
                print(f"{name}: differs as meant: {meant}")
            else:
                differing += 1
                print(f"{name}: DIFFERS\n  ZooKeeper {pair[0]}\n  zkserver  {pair[1]}")
    return 1 if differing else 0


if __name__ == "__main__":
    roots = ("protocol", "runtime", "client", "zkserver", "cluster")
    os.environ.setdefault("PYTHONPATH", os.pathsep.join(roots))
    sys.exit(asyncio.run(main(sys.argv[1:])))
