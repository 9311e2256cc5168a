"""ZooKeeper's files, written by tests: a model of its tree, the log of a random run, and snapshots
of it as fuzzy as ZooKeeper's are.

Source: `DataTree.serializeNode`, `SnapStream.sealStream`, `FileTxnLog.append`.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zkserver.core.state import ReplicatedState
from zkserver.storage.zookeeper_format import special_owner
from zkserver.tools.json_lines import state_lines

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "zookeeper-3.8.0"
SCENARIOS = sorted(each.name for each in GOLDEN.iterdir() if each.is_dir())
OPEN = ((31, "world", "anyone"),)
Acl = tuple[tuple[int, str, str], ...]


def expected_of(scenario: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / scenario / "expected.json").read_text())
    return found


def text(value: str) -> bytes:
    return data(value.encode())


def data(value: bytes | None) -> bytes:
    return struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value


def acls(entries: Acl) -> bytes:
    return struct.pack(">i", len(entries)) + b"".join(
        struct.pack(">i", perms) + text(scheme) + text(who) for perms, scheme, who in entries
    )


def frame(record: bytes) -> bytes:
    return struct.pack(">qi", zlib.adler32(record), len(record)) + record + b"B"


def record(zxid: int, kind: int, body: bytes, *, session: int = 1, time_ms: int = 5) -> bytes:
    return struct.pack(">qiqqi", session, 0, zxid, time_ms, kind) + body


def log_file(records: list[bytes], zeros: int = 64) -> bytes:
    return struct.pack(">4siq", b"ZKLG", 2, 0) + b"".join(map(frame, records)) + bytes(zeros)


def create_body(
    path: str,
    value: bytes | None,
    creates: int,
    *,
    acl: Acl = OPEN,
    ephemeral: bool = False,
) -> bytes:
    return text(path) + data(value) + acls(acl) + struct.pack(">Bi", ephemeral, creates)


class ModelNode:
    """A node as ZooKeeper has it."""

    def __init__(self, value: bytes | None, acl: Acl, owner: int, zxid: int, time_ms: int) -> None:
        self.data, self.acl, self.owner = value, acl, owner
        self.czxid = self.mzxid = self.pzxid = zxid
        self.ctime = self.mtime = time_ms
        self.version = self.creates = self.aversion = 0
        self.children: dict[str, None] = {}


class Model:
    """ZooKeeper's tree on its live server: every change fits. Writes the records of its changes."""

    def __init__(self) -> None:
        self.nodes: dict[str, ModelNode] = {}
        self.sessions: dict[int, int] = {}
        self.zxid = 0
        self.time_ms = 1000
        self.records: list[bytes] = []
        self.acl_ids: dict[Acl, int] = {}
        self.on_op: Callable[[], object] = lambda: None
        """Called between the operations of a multi: a snapshot does not wait for its end."""
        self.nodes[""] = ModelNode(b"", OPEN, 0, 0, 0)
        for name in ("zookeeper", "zookeeper/quota", "zookeeper/config"):
            self.nodes["/" + name] = ModelNode(b"", OPEN, 0, 0, 0)
            parent, _, last = ("/" + name).rpartition("/")
            self.nodes[parent].children[last] = None

    def log(self, kind: int, body: bytes, session: int = 1) -> None:
        self.zxid += 1
        self.time_ms += 7
        self.records.append(record(self.zxid, kind, body, session=session, time_ms=self.time_ms))

    def acl_id(self, acl: Acl) -> int:
        return self.acl_ids.setdefault(acl, len(self.acl_ids) + 1)

    def create(
        self, path: str, value: bytes | None, acl: Acl, owner: int, ttl_ms: int = 0
    ) -> bytes:
        """Change the tree; the body of the Txn. `log` comes first."""
        parent_path, _, name = path.rpartition("/")
        parent = self.nodes[parent_path]
        parent.creates += 1
        parent.pzxid = self.zxid
        parent.children[name] = None
        self.acl_id(acl)
        special = special_owner(ttl_ms) if ttl_ms else owner
        self.nodes[path] = ModelNode(value, acl, special, self.zxid, self.time_ms)
        if ttl_ms:
            tail = struct.pack(">i", parent.creates)
            tail += struct.pack(">q", ttl_ms) if ttl_ms > 0 else b""
            return text(path) + data(value) + acls(acl) + tail
        return create_body(path, value, parent.creates, acl=acl, ephemeral=bool(owner))

    def delete(self, path: str) -> bytes:
        parent_path, _, name = path.rpartition("/")
        assert not self.nodes[path].children
        del self.nodes[path], self.nodes[parent_path].children[name]
        self.nodes[parent_path].pzxid = self.zxid
        return text(path)

    def set_data(self, path: str, value: bytes | None) -> bytes:
        node = self.nodes[path]
        node.data, node.version = value, node.version + 1
        node.mzxid, node.mtime = self.zxid, self.time_ms
        return text(path) + data(value) + struct.pack(">i", node.version)

    def set_acl(self, path: str, acl: Acl) -> bytes:
        node = self.nodes[path]
        self.acl_id(acl)
        node.acl, node.aversion = acl, node.aversion + 1
        return text(path) + acls(acl) + struct.pack(">i", node.aversion)

    def step(self, rng: random.Random) -> None:
        """One random change, logged and done."""
        self.records.append(b"")
        self.zxid += 1
        self.time_ms += 7
        kind, body, session = self._draw(rng)
        self.records[-1] = record(self.zxid, kind, body, session=session, time_ms=self.time_ms)

    def _draw(self, rng: random.Random) -> tuple[int, bytes, int]:
        session = rng.choice(list(self.sessions)) if self.sessions else 0
        choice = rng.random()
        if not session or choice < 0.06:
            session = 1 << 56 | self.zxid
            self.sessions[session] = 1000 * rng.randint(1, 9)
            return -10, struct.pack(">i", self.sessions[session]), session
        if choice < 0.10:
            owned = [path for path, node in self.nodes.items() if node.owner == session]
            del self.sessions[session]
            for path in owned:
                self.delete(path)
            if not owned and rng.random() < 0.5:
                return -11, b"", session
            return -11, struct.pack(">i", len(owned)) + b"".join(map(text, owned)), session
        if choice < 0.14:
            return -1, struct.pack(">i", -110), session
        if choice < 0.30:
            ops = []
            for _ in range(rng.randint(1, 4)):
                ops.append(self._change(rng, session))
                self.on_op()
            packed = [struct.pack(">i", kind) + data(body) for kind, body in ops]
            return 14, struct.pack(">i", len(ops)) + b"".join(packed), session
        return (*self._change(rng, session), session)

    def _change(self, rng: random.Random, session: int) -> tuple[int, bytes]:
        names = [path for path in self.nodes if path and not path.startswith("/zookeeper")]
        leaves = [path for path in names if not self.nodes[path].children]
        choice = rng.random()
        if leaves and choice < 0.3:
            return 2, self.delete(rng.choice(leaves))
        if names and choice < 0.45:
            return 5, self.set_data(rng.choice(names), rng.choice((None, rng.randbytes(5))))
        if names and choice < 0.6:
            acl = ((rng.randint(1, 31), "digest", f"u{rng.randint(0, 9)}:x"),)
            return 7, self.set_acl(rng.choice(names), acl)
        parents = ["", *(path for path in names if self.nodes[path].owner <= 0)]
        parent = rng.choice(parents)
        path = f"{parent}/{rng.choice('abcdef')}"
        if path in self.nodes or path.count("/") > 4:
            return 13, text("/") + struct.pack(">i", -1)
        acl = rng.choice((OPEN, ((rng.randint(1, 31), "ip", f"10.0.0.{rng.randint(0, 9)}"),)))
        kind = rng.choice((1, 1, 1, 15, 15, 19, 21))
        if kind in (19, 21):
            ttl_ms = -1 if kind == 19 else rng.randint(1, 1 << 30)
            return kind, self.create(path, b"s", acl, 0, ttl_ms)
        owner = session if rng.random() < 0.4 else 0
        return kind, self.create(path, rng.randbytes(3), acl, owner)


class FuzzySnapshot:
    """Serializes a model as ZooKeeper does: node by node, while the model goes on."""

    def __init__(self, model: Model) -> None:
        self.zxid = model.zxid
        self._model = model
        sessions = b"".join(struct.pack(">qi", *each) for each in model.sessions.items())
        table = b"".join(
            struct.pack(">q", number) + acls(acl) for acl, number in model.acl_ids.items()
        )
        self._raw = (
            struct.pack(">4siqi", b"ZKSN", 2, -1, len(model.sessions))
            + sessions
            + struct.pack(">i", len(model.acl_ids))
            + table
        )
        self._stack = [""]

    def step(self) -> bool:
        """Write the next node, if there is one left."""
        if not self._stack:
            return False
        path = self._stack.pop()
        node = self._model.nodes.get(path)
        if node is not None:  # else it was deleted since its parent was written
            self._stack += [f"{path}/{name}" for name in reversed(node.children)]
            acl_id = self._model.acl_id(node.acl) if node.acl != OPEN else -1
            self._raw += text(path) + data(node.data)
            self._raw += struct.pack(
                ">qqqqqiiiqq",
                acl_id,
                node.czxid,
                node.mzxid,
                node.ctime,
                node.mtime,
                node.version,
                node.creates,
                node.aversion,
                node.owner,
                node.pzxid,
            )
        return True

    def finish(self) -> bytes:
        while self.step():
            pass
        raw = self._raw + text("/")
        return raw + struct.pack(">q", zlib.adler32(raw)) + text("/")


def model_tree(model: Model) -> dict[str, tuple[Any, ...]]:
    """What a client would see, system nodes left out; owners of TTL nodes as they are kept."""
    return {
        path or "/": (
            node.data, node.acl, node.owner, node.czxid, node.mzxid, node.pzxid, node.ctime,
            node.mtime, node.version, node.creates, node.aversion, len(node.children),
        )
        for path, node in model.nodes.items()
        if not path.startswith("/zookeeper")
    }  # fmt: skip


def state_tree(state: ReplicatedState) -> dict[str, tuple[Any, ...]]:
    """The same of ours."""
    found = {}
    for path, node in state.tree.nodes.items():
        if path.startswith("/zookeeper"):
            continue
        ttl_ms = node.ttl_ms
        found[path] = (
            node.data, tuple(map(tuple, node.acl)),
            special_owner(ttl_ms) if ttl_ms else node.ephemeral_owner, node.czxid, node.mzxid,
            node.pzxid, node.ctime, node.mtime, node.version, node.creates, node.aversion,
            node.child_count(),
        )  # fmt: skip
    return found


def exported(state: ReplicatedState) -> list[dict[str, Any]]:
    return list(state_lines(state))
