"""Random programs against a naive second implementation of the tree.

After each program: a replay of the log and a snapshot taken in the middle of it give the same
state, and the snapshot is exactly the state at its zxid, whatever changed while it was written.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode as Code
from duolog_protocol.errors import StorageError
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl
from zkserver.core.datatree import Node
from zkserver.core.snapshot import Snapshot
from zkserver.core.snapshot_loading import load_snapshot
from zkserver.core.state import ReplicatedState

from .core_support import Client, Server, op

NAMES = ("a", "b", "c", "n-")
BOB = ("digest", "bob:hash")
BOBS_ACL = (Acl(31, *BOB), Acl(1, "world", "anyone"))


class NaiveNode:
    def __init__(self, zxid: int, data: bytes | None, owner: int, acl: tuple[Acl, ...]) -> None:
        self.czxid = self.mzxid = self.pzxid = zxid
        self.data = data
        self.owner = owner
        self.acl = acl
        self.version = self.aversion = self.created = self.deleted = 0


class NaiveTree:
    """The rules once more, without versions of their own for anything."""

    def __init__(self) -> None:
        self.nodes = {
            path: NaiveNode(0, b"", 0, OPEN_ACL_UNSAFE if path == "/" else (Acl(1, "world", "a"),))
            for path in ("/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config")
        }

    def children(self, path: str) -> list[str]:
        prefix = path.rstrip("/") + "/"
        return [
            each[len(prefix) :]
            for each in self.nodes
            if each.startswith(prefix) and each != "/" and "/" not in each[len(prefix) :]
        ]

    def may(self, path: str, perm: int, who: str) -> bool:
        return any(
            perms & perm and (scheme == "world" or (scheme == "digest" and who == "bob"))
            for perms, scheme, _ in self.nodes[path].acl
        )

    def write(self, zxid: int, owner: int, who: str, each: zk.MultiOp) -> int:
        """Apply an operation; the code of its error, or 0."""
        kind, path, data, acl, flags, _, version = each
        node = self.nodes.get(path)
        parent_path = path.rpartition("/")[0] or "/"
        if kind == zk.MultiKind.CREATE:
            parent = self.nodes.get(parent_path)
            if parent is None:
                return Code.NO_NODE
            if not self.may(parent_path, 4, who):
                return Code.NO_AUTH
            if flags & 2:
                path = f"{path}{parent.created:010d}"
            if path in self.nodes:
                return Code.NODE_EXISTS
            if parent.owner:
                return Code.NO_CHILDREN_FOR_EPHEMERALS
            assert acl is not None
            self.nodes[path] = NaiveNode(zxid, data, owner if flags & 1 else 0, acl)
            parent.created += 1
            parent.pzxid = zxid
            return 0
        if kind == zk.MultiKind.DELETE and path == "/":
            return Code.BAD_ARGUMENTS
        if node is None:
            return Code.NO_NODE
        if kind == zk.MultiKind.DELETE:
            if not self.may(parent_path, 8, who):
                return Code.NO_AUTH
            if version not in (-1, node.version):
                return Code.BAD_VERSION
            if self.children(path):
                return Code.NOT_EMPTY
            del self.nodes[path]
            self.nodes[parent_path].deleted += 1
            self.nodes[parent_path].pzxid = zxid
            return 0
        if not self.may(path, 2 if kind == zk.MultiKind.SET_DATA else 1, who):
            return Code.NO_AUTH
        if version not in (-1, node.version):
            return Code.BAD_VERSION
        if kind == zk.MultiKind.SET_DATA:
            node.data, node.mzxid = data, zxid
            node.version += 1
        return 0

    def close(self, zxid: int, owner: int) -> None:
        for path in [each for each, node in self.nodes.items() if node.owner == owner]:
            parent = self.nodes[path.rpartition("/")[0] or "/"]
            del self.nodes[path]
            parent.deleted += 1
            parent.pzxid = zxid


def compare(naive: NaiveTree, state: ReplicatedState) -> None:
    assert list(naive.nodes) == list(state.tree.nodes)
    for path, wanted in naive.nodes.items():
        found = state.tree.nodes[path]
        stat = found.stat()
        names = naive.children(path)
        built_in = {"/": 1, "/zookeeper": 2}.get(path, 0)
        cversion = wanted.created + wanted.deleted - built_in
        assert found.data == wanted.data, path
        assert (stat.czxid, stat.mzxid, stat.pzxid) == (
            *(wanted.czxid, wanted.mzxid, wanted.pzxid),
        ), path
        assert (stat.version, stat.num_children) == (wanted.version, len(names)), path
        assert stat.cversion == cversion, path
        assert stat.ephemeral_owner == wanted.owner, path


def bytes_of(state: ReplicatedState) -> bytes:
    view = Snapshot(state)
    try:
        return b"".join(view.chunks(1 << 20))
    finally:
        view.close()


def random_op(rng: random.Random, paths: list[str]) -> zk.MultiOp:
    kinds = zk.MultiKind
    kind = rng.choice([kinds.CREATE, kinds.CREATE, kinds.DELETE, kinds.SET_DATA, kinds.CHECK])
    path = rng.choice(paths)
    version = rng.choice([-1, -1, 0, 1, 2])
    data = rng.choice([None, b"", b"x" * rng.randrange(1, 40)])
    if kind != kinds.CREATE:
        return op(kind, path, data, version=version)
    path = f"{path.rstrip('/')}/{rng.choice(NAMES)}"
    acl = rng.choice([OPEN_ACL_UNSAFE, OPEN_ACL_UNSAFE, BOBS_ACL])
    return op(kind, path, data, flags=rng.choice([0, 0, 1, 2, 3]), acl=acl)


def run_write(naive: NaiveTree, client: Client, who: str, each: zk.MultiOp) -> None:
    kinds = zk.MultiKind
    kind, path, data, acl, flags, _, version = each
    if kind == kinds.CREATE:
        reply = client.create(path, data, flags, acl=acl)
    elif kind == kinds.DELETE:
        reply = client.delete(path, version)
    elif kind == kinds.SET_DATA:
        reply = client.set(path, data, version)
    else:
        reply = client.ask(zk.CHECK, zk.CheckRequest(path, version))
    assert reply.code == naive.write(reply.zxid, client.session_id, who, each), each


@pytest.mark.parametrize("seed", range(25))
def test_random_programs_agree_with_the_naive_tree(seed: int) -> None:
    rng = random.Random(seed)
    server = Server()
    naive = NaiveTree()
    clients = {"bob": server.client((BOB,)), "eve": server.client()}
    snapshot: tuple[Snapshot, Any, bytes, list[bytes]] | None = None
    for _ in range(120):
        who = rng.choice(["bob", "eve"])
        client = clients[who]
        paths = [each for each in naive.nodes if not each.startswith("/zookeeper")] + ["/none"]
        action = rng.random()
        if action < 0.7:
            run_write(naive, client, who, random_op(rng, paths))
        elif action < 0.85:
            ops = [random_op(rng, paths) for _ in range(rng.randrange(1, 5))]
            results = client.multi(*ops).message.results
            zxid = client.replies()[-1].zxid
            before = copy.deepcopy(naive)
            trial = [naive.write(zxid, client.session_id, who, each) for each in ops]
            bad = next((at for at, code in enumerate(trial) if code), None)
            codes = [each.error_code for each in results]
            if bad is None:
                assert codes == trial
            else:
                after = [Code.RUNTIME_INCONSISTENCY] * (len(ops) - bad - 1)
                assert codes == [0] * bad + [trial[bad]] + after
                naive = before
        elif action < 0.88:
            reply = client.ask(zk.CLOSE_SESSION, zk.Empty())
            naive.close(reply.zxid, client.session_id)
            clients[who] = server.client((BOB,) if who == "bob" else ())
        elif action < 0.94 and snapshot is None:
            whole = bytes_of(server.core.state)
            view = server.core.begin_snapshot()
            snapshot = (view, view.chunks(64), whole, [])
        elif snapshot is not None:
            view, chunks, whole, pieces = snapshot
            for _ in range(rng.randrange(1, 6)):
                piece = next(chunks, None)
                if piece is None:
                    view.close()
                    assert b"".join(pieces) == whole, "exact at the zxid where it was begun"
                    snapshot = None
                    break
                pieces.append(piece)
        compare(naive, server.core.state)
    if snapshot is not None:
        snapshot[0].close()
    again = server.restart().core.state
    compare(naive, again)
    loaded = load_snapshot([bytes_of(server.core.state)])
    loaded.check_invariants()
    assert bytes_of(loaded) == bytes_of(server.core.state)


def test_a_damaged_snapshot_is_refused_wherever_the_damage_is() -> None:
    server = Server()
    client = server.client((BOB,))
    client.create("/a", b"data", acl=BOBS_ACL)
    client.create("/a/e", flags=1)
    client.create("/t", flags=5, ttl_ms=1_000)
    client.create("/c", flags=4)
    whole = bytes_of(server.core.state)
    for size in range(len(whole)):
        with pytest.raises(StorageError):
            load_snapshot([whole[:size]])
    with pytest.raises(StorageError):
        load_snapshot([whole + b"\0"])
    rng = random.Random(1)
    for _ in range(2_000):
        at = rng.randrange(len(whole))
        damaged = whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
        try:
            load_snapshot([damaged]).check_invariants()
        except (StorageError, AssertionError):
            continue
    cut = [whole[at : at + 7] for at in range(0, len(whole), 7)]
    assert bytes_of(load_snapshot(cut)) == whole


@pytest.mark.parametrize(
    "path", ["//x", "/a//x", "/a/", "/a/.", "/a/..", "a", "", "/a/\x01", "/a/\ud7ff\uf8ff", "/b/x"]
)
def test_a_snapshot_with_a_path_that_cannot_be_is_refused(path: str) -> None:
    server = Server()
    server.client().create("/a")
    state = server.core.state
    node = Node(path, b"", OPEN_ACL_UNSAFE, 0, state.last_applied_zxid, 0)
    state.tree.nodes[path] = node
    with pytest.raises(StorageError):
        load_snapshot([bytes_of(state)])


@pytest.mark.parametrize("path", ["/a/x", "/a/...", "/a/ü", "/a/ b", "/a/.x", "/x/y"])
def test_a_snapshot_with_any_legal_path_is_loaded(path: str) -> None:
    server = Server()
    client = server.client()
    for each in ("/a", "/x", path):
        assert client.create(each).code == 0
    assert path in load_snapshot([bytes_of(server.core.state)]).tree.nodes
