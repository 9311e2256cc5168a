"""What each operation on znodes answers, to the field of the Stat (ZooKeeper's reference B)."""

from __future__ import annotations

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode as Code
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl, CreateMode, Stat
from zkserver.core.config import CoreConfig

from .core_support import WALL_MS, Client, Server, op


def stat_of(client: Client, path: str) -> Stat:
    return client.exists(path).message.stat


def test_a_fresh_root_is_as_zookeepers() -> None:
    client = Server().client()
    root = stat_of(client, "/")
    assert (root.czxid, root.version, root.cversion, root.num_children) == (0, 0, -1, 1)
    assert client.children("/").message.children == ["zookeeper"]
    assert client.children("/zookeeper").message.children == ["quota", "config"]
    assert client.create("/n-", flags=CreateMode.PERSISTENT_SEQUENTIAL).message.path == (
        "/n-0000000000"
    )
    assert stat_of(client, "/").cversion == 0


def test_quotas_are_anybodys_to_set_and_the_configuration_is_not() -> None:
    client = Server().client()
    for path, acl, aversion in (
        ("/zookeeper", OPEN_ACL_UNSAFE, 0),
        ("/zookeeper/quota", OPEN_ACL_UNSAFE, 0),
        ("/zookeeper/config", (Acl(1, "world", "anyone"),), -1),
    ):
        answer = client.ask(zk.GET_ACL, zk.GetAclRequest(path)).message
        assert (tuple(answer.acl), answer.stat.aversion) == (acl, aversion), path
    assert client.create("/zookeeper/quota/app").code == 0
    assert client.set("/zookeeper/config", b"").code == Code.NO_AUTH


def test_stat_follows_every_change() -> None:
    server = Server()
    client = server.client()
    created = client.create("/a", b"abc")
    stat = created.message.stat
    assert stat == Stat(
        *(created.zxid, created.zxid, WALL_MS, WALL_MS, 0, 0, 0, 0, 3, 0, created.zxid)
    )
    server.wall_ms += 7
    changed = client.set("/a", b"four", 0)
    stat = stat._replace(mzxid=changed.zxid, mtime=WALL_MS + 7, version=1, data_length=4)
    assert changed.message.stat == stat
    server.wall_ms += 7
    child = client.create("/a/b", None)
    stat = stat._replace(cversion=1, num_children=1, pzxid=child.zxid)
    assert client.get("/a").message == (stat, b"four")
    gone = client.delete("/a/b")
    stat = stat._replace(cversion=2, num_children=0, pzxid=gone.zxid)
    assert stat_of(client, "/a") == stat
    acl = client.ask(zk.SET_ACL, zk.SetAclRequest("/a", (Acl(31, "world", "anyone"),), 0))
    assert acl.message.stat == stat._replace(aversion=1)


def test_null_data_and_empty_data_are_different() -> None:
    client = Server().client()
    client.create("/null", None)
    client.create("/empty", b"")
    assert client.get("/null").message.data is None
    assert client.get("/empty").message.data == b""
    client.set("/empty", None)
    assert client.get("/empty").message.data is None


def test_the_suffix_counts_every_creation_and_never_goes_back() -> None:
    client = Server().client()
    client.create("/q")
    client.create("/q/plain")
    names = [client.create("/q/n", flags=2).message.path for _ in range(2)]
    assert names == ["/q/n0000000001", "/q/n0000000002"]
    for name in (*names, "/q/plain"):
        client.delete(name)
    assert client.create("/q/", flags=2).message.path == "/q/0000000003"


def test_an_ephemeral_belongs_to_its_session_and_has_no_children() -> None:
    client = Server().client()
    reply = client.create("/e", flags=CreateMode.EPHEMERAL)
    assert reply.message.stat.ephemeral_owner == client.session_id
    assert client.create("/e/child").code == Code.NO_CHILDREN_FOR_EPHEMERALS
    assert client.create("/s-", flags=3).message.path == "/s-0000000001"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/", Code.NODE_EXISTS),
        ("", Code.BAD_ARGUMENTS),
        ("a", Code.BAD_ARGUMENTS),
        ("/a/", Code.NO_NODE),  # the parent is looked for first
        ("/a/./b", Code.NO_NODE),
        ("/.", Code.BAD_ARGUMENTS),
        ("/..", Code.BAD_ARGUMENTS),
        ("//", Code.BAD_ARGUMENTS),
        ("//a", Code.BAD_ARGUMENTS),
        ("/\0", Code.BAD_ARGUMENTS),
        ("/\x1f", Code.BAD_ARGUMENTS),
        ("/\x7f", Code.BAD_ARGUMENTS),
        ("/\ue000", Code.BAD_ARGUMENTS),
        ("/\ufff0", Code.BAD_ARGUMENTS),
        ("/\U0001f600", Code.BAD_ARGUMENTS),
        ("/missing/child", Code.NO_NODE),
        ("/zookeeper", Code.NODE_EXISTS),
    ],
)
def test_illegal_paths_are_refused_and_change_nothing(path: str, code: Code) -> None:
    server = Server()
    client = server.client()
    before = len(server.core.state.tree.nodes)
    assert client.create(path).code == code
    assert len(server.core.state.tree.nodes) == before
    assert client.create("/fine-ü ~").code == 0


@pytest.mark.parametrize("path", ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"])
def test_system_nodes_stay(path: str) -> None:
    assert Server().client().delete(path).code == Code.BAD_ARGUMENTS


def test_errors_of_the_other_operations() -> None:
    client = Server().client()
    client.create("/a")
    client.create("/a/b")
    assert client.delete("/a").code == Code.NOT_EMPTY
    assert client.delete("/a/b", 3).code == Code.BAD_VERSION
    assert client.delete("/x").code == Code.NO_NODE
    assert client.set("/x", b"").code == Code.NO_NODE
    assert client.set("/a", b"", 1).code == Code.BAD_VERSION
    assert client.set("a", b"").code == Code.BAD_ARGUMENTS
    assert client.get("/x").code == Code.NO_NODE
    assert client.exists("/x").code == Code.NO_NODE
    assert client.children("/x").code == Code.NO_NODE
    assert client.create("/a").code == Code.NODE_EXISTS
    assert client.create("/c", acl=()).code == Code.INVALID_ACL
    assert client.create("/c", acl=None).code == Code.INVALID_ACL
    assert client.create("/c", flags=9).code == Code.BAD_ARGUMENTS
    assert client.create("/c", flags=5, ttl_ms=0).code == Code.BAD_ARGUMENTS
    assert client.create("/c", flags=5, ttl_ms=1 << 40).code == Code.BAD_ARGUMENTS


def test_a_write_that_fails_takes_a_zxid_and_one_over_a_limit_does_not() -> None:
    server = Server(CoreConfig(max_data_bytes=1_000))
    client = server.client()
    zxid = client.create("/a", bytes(1_000)).zxid
    records = len(server.log)
    failed = client.set("/missing", b"")
    assert (failed.code, failed.zxid) == (Code.NO_NODE, zxid + 1)
    assert len(server.log) == records + 1
    refused = client.set("/a", bytes(1_001))
    assert refused.code == Code.REQUEST_TOO_LARGE
    assert len(server.log) == records + 1
    assert client.get("/a").message.stat.version == 0


def test_paths_at_the_limit_and_one_past_it() -> None:
    client = Server(CoreConfig(max_path_bytes=100)).client()
    assert client.create("/" + "ü" * 49).code == 0
    assert client.create("/" + "x" * 99).code == 0
    assert client.create("/" + "x" * 100).code == Code.BAD_ARGUMENTS
    assert client.create("/" + "y" * 89, flags=2).code == 0
    assert client.create("/" + "y" * 90, flags=2).code == Code.BAD_ARGUMENTS


def test_versions_wrap_and_skip_minus_one() -> None:
    server = Server()
    client = server.client()
    client.create("/a")
    node = server.core.state.tree.nodes["/a"]
    node.version = (1 << 31) - 1
    assert client.set("/a", b"").message.stat.version == -(1 << 31)
    node.version = -2
    server.core._preparer.outstanding.clear()  # it does not hear of such changes
    assert client.set("/a", b"").message.stat.version == 0


def test_a_check_alone_takes_its_turn_behind_writes() -> None:
    client = Server().client()
    client.send(
        (zk.CREATE, zk.CreateRequest("/a", b"", OPEN_ACL_UNSAFE, 0, -1)),
        (zk.SET_DATA, zk.SetDataRequest("/a", b"1", 0)),
        (zk.CHECK, zk.CheckRequest("/a", 1)),
        (zk.CHECK, zk.CheckRequest("/a", 0)),
    )
    client.server.sync()
    assert [each.code for each in client.replies()] == [0, 0, 0, Code.BAD_VERSION]


def test_a_multi_is_all_or_nothing_at_one_zxid() -> None:
    client = Server().client()
    kinds = zk.MultiKind
    done = client.multi(
        op(kinds.CREATE, "/a", b"1"),
        op(kinds.SET_DATA, "/a", b"22", version=0),
        op(kinds.CREATE, "/a/n-", b"", flags=2),
        op(kinds.CHECK, "/a", version=1),
        op(kinds.DELETE, "/a/n-0000000000"),
    )
    results = done.message.results
    assert [each.kind for each in results] == [1, 5, 1, 13, 2]
    assert results[1].stat.version == 1 and results[1].stat.mzxid == done.zxid
    assert results[2].path == "/a/n-0000000000"
    failed = client.multi(
        op(kinds.SET_DATA, "/a", b"333"),
        op(kinds.CREATE, "/a/b"),
        op(kinds.CHECK, "/a", version=1),
        op(kinds.DELETE, "/a"),
    )
    assert failed.code == 0 and failed.zxid == done.zxid + 1
    assert [(each.kind, each.error_code) for each in failed.message.results] == [
        (-1, 0),
        (-1, 0),
        (-1, Code.BAD_VERSION),
        (-1, Code.RUNTIME_INCONSISTENCY),
    ]
    assert client.get("/a").message.data == b"22"
    assert client.children("/a").message.children == []
    assert client.multi().message.results == []


def test_a_multi_at_its_limits() -> None:
    client = Server(CoreConfig(max_multi_ops=3)).client()
    three = [op(zk.MultiKind.CREATE, f"/{name}") for name in "abc"]
    assert client.multi(*three).message.results[2].path == "/c"
    four = [op(zk.MultiKind.CREATE, f"/{name}") for name in "wxyz"]
    assert client.multi(*four).code == Code.BAD_ARGUMENTS
    assert client.exists("/w").code == Code.NO_NODE


def test_a_multi_over_the_size_of_a_txn_never_reaches_the_log() -> None:
    server = Server()
    client = server.client()
    records = len(server.log)
    size = server.config.max_data_bytes
    ops = [op(zk.MultiKind.CREATE, f"/{name}", bytes(size)) for name in "abc"]
    assert client.multi(*ops).code == Code.REQUEST_TOO_LARGE
    assert len(server.log) == records


def test_reads_of_several_znodes_each_fail_for_themselves() -> None:
    client = Server().client()
    client.create("/a", b"data")
    client.create("/a/x")
    client.create("/a/y")
    kinds = zk.MultiKind
    reads = [(kinds.GET_DATA, "/a"), (kinds.GET_CHILDREN, "/a"), (kinds.GET_DATA, "/none")]
    reply = client.ask(zk.MULTI_READ, zk.MultiReadRequest(tuple(zk.ReadOp(*r) for r in reads)))
    data, children, missing = reply.message.results
    assert (data.kind, data.data, data.stat.num_children) == (4, b"data", 2)
    assert (children.kind, children.joined_names) == (8, b"x/y")
    assert (missing.kind, missing.error_code) == (-1, Code.NO_NODE)


def test_counts_and_ephemerals() -> None:
    client = Server().client()
    for path in ("/a", "/a/b", "/a/b/c", "/a/d"):
        client.create(path)
    client.create("/a/e", flags=1)
    other = client.server.client()
    other.create("/a/other", flags=1)

    def count(path: str) -> int:
        return client.ask(zk.GET_ALL_CHILDREN_NUMBER, zk.PathRequest(path)).message.number

    assert count("/a") == 5
    assert count("/a/b/c") == 0
    assert count("/") == len(client.server.core.state.tree.nodes) - 1
    ephemerals = client.ask(zk.GET_EPHEMERALS, zk.PathRequest("/a")).message.paths
    assert ephemerals == ["/a/e"]
    assert client.ask(zk.GET_EPHEMERALS, zk.PathRequest("/b")).message.paths == []


def test_children_that_do_not_fit_in_a_reply_are_refused_in_words() -> None:
    client = Server(CoreConfig(max_children_reply_bytes=1024)).client()
    client.create("/a")
    for number in range(4):
        client.create(f"/a/{number}" + "x" * 255)
    assert len(client.children("/a").message.children) == 4
    client.create("/a/one-more")
    refused = client.children("/a")
    assert refused.code == Code.REQUEST_TOO_LARGE
    assert "5 children of /a" in refused.message
