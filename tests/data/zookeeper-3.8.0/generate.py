"""Makes the directories beside this file with a real Apache ZooKeeper 3.8.0.

    python3 generate.py [NAME...]

Needs Java and Debian's package `zookeeper`; the tests do not run it. Each directory holds what the
server left when it was killed (`version-2/`), and `expected.json`: the tree as the server itself
told it over its client protocol right before, the sessions that were open, and what a client
cannot see (container, TTL).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLASS_PATH = "/usr/share/java/zookeeper.jar"
OPEN = [(31, "world", "anyone")]
SUPER = "super:secret"
STAT = (
    "czxid", "mzxid", "ctime", "mtime", "version", "cversion", "aversion", "ephemeral_owner",
    "data_length", "num_children", "pzxid",
)  # fmt: skip
Acls = list[tuple[int, str, str]]


def text(value: str | None) -> bytes:
    return data(None if value is None else value.encode())


def data(value: bytes | None) -> bytes:
    return struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value


def acls(entries: Acls) -> bytes:
    parts = [struct.pack(">i", len(entries))]
    parts += [struct.pack(">i", perms) + text(scheme) + text(who) for perms, scheme, who in entries]
    return b"".join(parts)


def create_body(path: str, value: bytes | None, acl: Acls, flags: int, ttl_ms: int = 0) -> bytes:
    tail = struct.pack(">q", ttl_ms) if flags in (5, 6) else b""
    return text(path) + data(value) + acls(acl) + struct.pack(">i", flags) + tail


class Reply:
    """Fields of a reply, front to back."""

    def __init__(self, raw: bytes, error: int) -> None:
        self.raw, self.error, self.at = raw, error, 0

    def number(self, layout: str) -> int:
        (value,) = struct.unpack_from(">" + layout, self.raw, self.at)
        self.at += struct.calcsize(">" + layout)
        return value

    def data(self) -> bytes | None:
        size = self.number("i")
        if size < 0:
            return None
        self.at += size
        return self.raw[self.at - size : self.at]

    def text(self) -> str:
        return (self.data() or b"").decode()

    def stat(self) -> dict[str, int]:
        return dict(zip(STAT, map(self.number, "qqqqiiiqiiq"), strict=True))


class Client:
    """One session, one request at a time."""

    def __init__(self, port: int, timeout_ms: int = 30_000) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        self.socket.settimeout(20)
        self.xid = 0
        self._send(struct.pack(">iqiq", 0, 0, timeout_ms, 0) + data(bytes(16)) + b"\0")
        raw = self._receive()
        _, self.timeout_ms, self.session_id = struct.unpack_from(">iiq", raw)

    def _send(self, body: bytes) -> None:
        self.socket.sendall(struct.pack(">i", len(body)) + body)

    def _receive(self) -> bytes:
        raw = b""
        size = 4
        while len(raw) < size:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError("the server closed the connection")
            raw += more
            if len(raw) >= 4:
                size = 4 + struct.unpack_from(">i", raw)[0]
        assert len(raw) == size, (len(raw), size)
        return raw[4:]

    def call(self, op: int, body: bytes, xid: int | None = None) -> Reply:
        self.xid += 1
        self._send(struct.pack(">ii", self.xid if xid is None else xid, op) + body)
        raw = self._receive()
        return Reply(raw[16:], struct.unpack_from(">i", raw, 12)[0])

    def ok(self, op: int, body: bytes) -> Reply:
        reply = self.call(op, body)
        assert reply.error == 0, (op, body, reply.error)
        return reply

    def auth(self, credential: str) -> None:
        body = struct.pack(">i", 0) + text("digest") + data(credential.encode())
        assert self.call(100, body, xid=-4).error == 0

    def create(
        self,
        path: str,
        value: bytes | None = b"",
        acl: Acls = OPEN,
        flags: int = 0,
        ttl_ms: int = 0,
        op: int | None = None,
    ) -> str:
        op = op or {4: 19, 5: 21, 6: 21}.get(flags, 1)
        return self.ok(op, create_body(path, value, acl, flags, ttl_ms)).text()

    def set(self, path: str, value: bytes | None, version: int = -1) -> None:
        self.ok(5, text(path) + data(value) + struct.pack(">i", version))

    def set_acl(self, path: str, acl: Acls) -> None:
        self.ok(7, text(path) + acls(acl) + struct.pack(">i", -1))

    def delete(self, path: str) -> None:
        self.ok(2, text(path) + struct.pack(">i", -1))

    def exists(self, path: str) -> bool:
        return self.call(3, text(path) + b"\0").error == 0

    def multi(self, *ops: tuple[int, bytes]) -> None:
        body = b"".join(struct.pack(">ibi", op, 0, -1) + one for op, one in ops)
        self.ok(14, body + struct.pack(">ibi", -1, 1, -1))

    def close(self) -> None:
        self.call(-11, b"")
        self.socket.close()

    def tree(self, path: str = "/") -> Iterator[dict[str, object]]:
        node = self.ok(4, text(path) + b"\0")
        value = node.data()
        stat = node.stat()
        reply = self.ok(6, text(path))
        acl = [[reply.number("i"), reply.text(), reply.text()] for _ in range(reply.number("i"))]
        yield {
            "path": path,
            "data64": None if value is None else base64.b64encode(value).decode(),
            "acl": acl,
            "stat": stat,
        }
        listing = self.ok(8, text(path) + b"\0")
        for name in sorted(listing.text() for _ in range(listing.number("i"))):
            yield from self.tree(f"{path if path != '/' else ''}/{name}")


def until(condition: Callable[[], bool], what: str, seconds: float = 40) -> None:
    pause = threading.Event()
    for _ in range(int(seconds * 20)):
        if condition():
            return
        pause.wait(0.05)
    raise TimeoutError(what)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def word(port: int, name: str) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as one:
            one.sendall(name.encode())
            return one.recv(4096).decode()
    except OSError:
        return ""


class Server:
    """A Java process on a directory."""

    def __init__(self, root: Path, options: dict[str, str], settings: str = "") -> None:
        self.root, self.port = root, free_port()
        root.mkdir(exist_ok=True)
        digest = base64.b64encode(hashlib.sha1(SUPER.encode()).digest()).decode()
        options = {
            "zookeeper.preAllocSize": "1",
            "zookeeper.snapCount": "12",
            "zookeeper.admin.enableServer": "false",
            "zookeeper.DigestAuthenticationProvider.superDigest": f"super:{digest}",
            **options,
        }
        (root / "zoo.cfg").write_text(
            f"tickTime=500\ndataDir={root}\nclientPort={self.port}\n"
            f"clientPortAddress=127.0.0.1\n4lw.commands.whitelist=*\n{settings}"
        )
        flags = [f"-D{name}={value}" for name, value in options.items()]
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        with (root / "out.txt").open("w") as out:
            self.process = subprocess.Popen(
                ["java", "-Xmx128m", *flags, "-cp", CLASS_PATH, main, str(root / "zoo.cfg")],
                stdout=out,
                stderr=out,
            )

    def ready(self) -> None:
        until(lambda: "Mode:" in word(self.port, "srvr"), f"start of {self.root}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def mixed(client: Client) -> None:
    """A bit of everything that needs no other session."""
    client.create("/app", b"application")
    client.create("/app/config", None)
    client.create("/app/größe-日本", "größe".encode())
    for index in range(4):
        client.create("/app/queue-", b"item %d" % index, flags=2)
    client.delete("/app/queue-0000000003")
    for index in range(5):
        client.set("/app/config", b"version %d" % index)
    client.set("/", b"root data")
    client.call(1, create_body("/app", b"", OPEN, 0))  # NodeExists: an error Txn
    client.multi(
        (1, create_body("/multi", b"", OPEN, 0)),
        (15, create_body("/multi/a", b"a", OPEN, 0)),
        (5, text("/app") + data(b"set in a multi") + struct.pack(">i", -1)),
        (13, text("/app/config") + struct.pack(">i", 5)),
        (2, text("/multi/a") + struct.pack(">i", -1)),
        (15, create_body("/multi/s-", b"s", OPEN, 2)),
    )
    client.multi(
        (1, create_body("/never", b"", OPEN, 0)), (2, text("/missing") + struct.pack(">i", -1))
    )
    client.create("/gone", b"")
    client.create("/gone/child", b"x")
    client.delete("/gone/child")
    client.delete("/gone")
    client.create("/two", b"made by create2", op=15)
    client.set_acl("/two", [(1, "world", "anyone"), (31, "ip", "127.0.0.1")])


def plain(client: Client, port: int) -> None:
    mixed(client)
    client.create("/zookeeper/quota/app", b"")
    client.create("/zookeeper/quota/app/zookeeper_limits", b"count=100,bytes=100000")
    client.create("/zookeeper/quota/app/zookeeper_stats", b"count=0,bytes=0")
    for index in range(3):
        client.create(f"/app/late-{index}", b"after the quota")
    client.delete("/app/late-1")


def sessions(client: Client, port: int) -> list[Client]:
    others = [Client(port, timeout) for timeout in (10_000, 10_000, 1_000)]
    client.create("/members", b"")
    for index, other in enumerate(others):
        other.create(f"/members/{index}", b"member", flags=1)
        for _ in range(3):
            other.create("/members/seq-", b"", flags=3)
    others[0].delete("/members/seq-0000000002")
    others[1].close()
    until(lambda: not client.exists("/members/2"), "expiry of a session")
    others[0].create("/members/1", b"taken over", flags=1)
    late = Client(port, 9_000)
    late.create("/members/late", b"", flags=1)
    for index in range(4):
        client.set("/members", b"round %d" % index)
    return [others[0], late]


def types(client: Client, port: int) -> None:
    client.create("/container", b"kept", flags=4)
    client.create("/container/child", b"")
    client.create("/emptied", b"", flags=4)
    client.create("/emptied/child", b"")
    client.delete("/emptied/child")
    client.create("/short", b"", flags=5, ttl_ms=300)
    client.create("/long", b"ttl", flags=5, ttl_ms=987_654_321)
    client.create("/long-", b"ttl", flags=6, ttl_ms=(1 << 40) - 1)
    until(lambda: not client.exists("/emptied") and not client.exists("/short"), "the reaper")
    for index in range(14):
        client.set("/long", b"round %d" % index)
    client.multi(
        (19, create_body("/container2", b"", OPEN, 4)),
        (21, create_body("/ttl2", b"", OPEN, 5, 86_400_000)),
    )
    client.create("/container2/child", b"")


def permissions(client: Client, port: int) -> None:
    owner = Client(port)
    owner.auth("ann:secret")
    bob = "bob:" + base64.b64encode(hashlib.sha1(b"bob:b").digest()).decode()
    owner.create("/private", b"p", [(31, "auth", "")])
    owner.create("/private/deep", b"q", [(31, "auth", ""), (1, "digest", bob)])
    owner.create("/net", b"n", [(5, "ip", "10.0.0.0/8"), (31, "world", "anyone")])
    owner.set_acl("/net", [(1, "world", "anyone"), (16, "digest", bob)])
    for index in range(12):
        client.set("/net", b"round %d" % index)
    client.set_acl("/net", [(3, "world", "anyone"), (16, "digest", bob)])
    owner.close()


SCENARIOS: dict[str, tuple[Callable[[Client, int], list[Client] | None], dict[str, str]]] = {
    "plain": (plain, {}),
    "sessions": (sessions, {}),
    "types": (
        types,
        {"zookeeper.extendedTypesEnabled": "true", "znode.container.checkIntervalMs": "500"},
    ),
    "acls": (permissions, {}),
    "gzip": (plain, {"zookeeper.snapshot.compression.method": "gz"}),
    "snappy": (plain, {"zookeeper.snapshot.compression.method": "snappy"}),
    "no-digest": (plain, {"zookeeper.digest.enabled": "false"}),
    "no-close-txn": (sessions, {"zookeeper.closeSessionTxn.enabled": "false"}),
}
TTLS = {
    "/container": -1,
    "/container2": -1,
    "/long": 987_654_321,
    "/long-0000000004": (1 << 40) - 1,
    "/ttl2": 86_400_000,
}


def snapshot_count(root: Path) -> int:
    return len(list((root / "version-2").glob("snapshot.*")))


def keep(root: Path, target: Path, expected: dict[str, object]) -> None:
    """Take over what the server left: of the logs everything but most of the zeros at the end."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "version-2").mkdir(parents=True)
    for each in sorted((root / "version-2").iterdir()):
        raw = each.read_bytes()
        if each.name.startswith("log."):
            raw = raw.rstrip(b"\0") + bytes(16)
        (target / "version-2" / each.name).write_bytes(raw)
    lines = json.dumps(expected, indent=1, ensure_ascii=False)
    (target / "expected.json").write_text(lines + "\n")
    size = sum(each.stat().st_size for each in target.rglob("*") if each.is_file())
    print(f"{target.name}: {size} bytes", *(p.name for p in sorted(target.rglob("*.*"))))


def listing(client: Client, open_sessions: list[Client]) -> dict[str, object]:
    nodes = list(client.tree())
    for node in nodes:
        node["ttl_ms"] = TTLS.get(str(node["path"]), 0)
    zxid = int(next(each for each in word_lines(client) if each.startswith("Zxid:")).split()[1], 16)
    return {
        "zxid": zxid,
        "sessions": sorted([each.session_id, each.timeout_ms] for each in open_sessions),
        "nodes": nodes,
    }


def word_lines(client: Client) -> list[str]:
    return word(client.socket.getpeername()[1], "srvr").splitlines()


def standalone(name: str) -> None:
    steps, options = SCENARIOS[name]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as cleanup:
        server = Server(Path(folder), options)
        cleanup.callback(server.kill)
        server.ready()
        client = Client(server.port)
        client.auth(SUPER)
        others = steps(client, server.port) or []
        until(lambda: snapshot_count(server.root) > 1, "a second snapshot")
        client.create("/last", b"written after the last snapshot")
        expected = listing(client, [client, *others])
        server.kill()
        keep(server.root, HERE / name, expected)


def ensemble() -> None:
    """Three servers and a change of the leader: epochs above 0."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as cleanup:
        ports = [(free_port(), free_port()) for _ in range(3)]
        settings = "initLimit=20\nsyncLimit=20\n" + "".join(
            f"server.{number}=127.0.0.1:{quorum}:{election}\n"
            for number, (quorum, election) in enumerate(ports, 1)
        )
        servers = []
        for number in (1, 2, 3):
            root = Path(folder) / str(number)
            root.mkdir()
            (root / "myid").write_text(f"{number}\n")
            servers.append(Server(root, {}, settings))
            cleanup.callback(servers[-1].kill)
        for server in servers:
            server.ready()
        client = Client(servers[0].port)
        mixed(client)
        client.close()
        servers[2].kill()  # the leader: the largest id
        until(lambda: "Mode: leader" in word(servers[1].port, "srvr"), "the next leader")
        until(lambda: "Mode: follower" in word(servers[0].port, "srvr"), "its follower")
        client = Client(servers[0].port)
        client.auth(SUPER)
        other = Client(servers[1].port)
        other.create("/member", b"m", flags=1)
        client.ok(9, text("/"))
        client.create("/last", b"in the second epoch")
        expected = listing(client, [client, other])
        expected["epoch"] = int((servers[0].root / "version-2/currentEpoch").read_text())
        for server in servers[:2]:
            server.kill()
        keep(servers[0].root, HERE / "ensemble", expected)


def main() -> None:
    os.umask(0o022)
    for name in sys.argv[1:] or [*SCENARIOS, "ensemble"]:
        if name == "ensemble":
            ensemble()
        else:
            standalone(name)


if __name__ == "__main__":
    main()
