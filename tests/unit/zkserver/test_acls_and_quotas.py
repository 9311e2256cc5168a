"""Who may do what on a znode, and how much a subtree may hold."""

from __future__ import annotations

import random

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode as Code
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl
from zkserver.core.config import CoreConfig
from zkserver.core.quota import QUOTA_ROOT, Limits, parse_limits

from .core_support import Client, Server, op

BOB = ("digest", "bob:hash")


def acl_of(client: Client, path: str) -> tuple[Acl, ...]:
    return tuple(client.ask(zk.GET_ACL, zk.GetAclRequest(path)).message.acl)


@pytest.mark.parametrize(
    ("perm", "allowed"),
    [(1, "get"), (2, "set"), (4, "create"), (8, "delete"), (16, "set_acl")],
)
def test_each_operation_needs_its_permission(perm: int, allowed: str) -> None:
    server = Server()
    owner, other = server.client((BOB,)), server.client()
    owner.create("/a", acl=(Acl(31, *BOB), Acl(perm, "world", "anyone")))
    owner.create("/a/child")
    codes = {
        "get": other.get("/a").code,
        "set": other.set("/a", b"").code,
        "create": other.create("/a/new").code,
        "delete": other.delete("/a/child").code,
        "set_acl": other.ask(zk.SET_ACL, zk.SetAclRequest("/a", OPEN_ACL_UNSAFE, -1)).code,
    }
    assert codes.pop(allowed) == 0
    assert set(codes.values()) == {Code.NO_AUTH}
    assert other.exists("/a").code == 0, "exists asks for nothing"
    for each in (owner, server.client((("super", ""),))):
        assert each.get("/a").code == 0 and each.set("/a", b"").code == 0


def test_children_of_a_node_that_may_not_be_read_are_hidden() -> None:
    server = Server()
    owner, other = server.client((BOB,)), server.client()
    owner.create("/a", acl=(Acl(31, *BOB),))
    assert other.children("/a").code == Code.NO_AUTH
    count = other.ask(zk.GET_ALL_CHILDREN_NUMBER, zk.PathRequest("/a"))
    assert count.code == Code.NO_AUTH
    read = zk.MultiReadRequest((zk.ReadOp(zk.MultiKind.GET_DATA, "/a"),))
    (result,) = other.ask(zk.MULTI_READ, read).message.results
    assert result.error_code == Code.NO_AUTH
    check = other.multi(op(zk.MultiKind.CHECK, "/a"))
    assert check.message.results[0].error_code == Code.NO_AUTH


def test_an_acl_is_checked_against_what_is_outstanding() -> None:
    """CVE-2026-100235: the permission was taken away in the request before, not yet durable."""
    server = Server()
    owner, other = server.client((BOB,)), server.client()
    owner.create("/a")
    owner.send((zk.SET_ACL, zk.SetAclRequest("/a", (Acl(31, *BOB),), -1)))
    other.send((zk.SET_DATA, zk.SetDataRequest("/a", b"stolen", -1)))
    server.sync()
    assert other.replies()[-1].code == Code.NO_AUTH
    assert server.core.state.tree.nodes["/a"].data == b""


def test_digests_are_masked_for_those_who_do_not_administer() -> None:
    server = Server()
    owner, other = server.client((BOB,)), server.client()
    owner.create("/a", acl=(Acl(31, *BOB), Acl(1, "world", "anyone")))
    assert acl_of(owner, "/a")[0].id == "bob:hash"
    assert acl_of(other, "/a")[0].id == "bob:x"


def test_acl_lists_have_a_version_of_their_own_and_are_kept_once() -> None:
    server = Server()
    client = server.client((BOB,))
    mine = (Acl(31, *BOB), Acl(31, *BOB), Acl(1, "world", "anyone"))
    client.create("/a", acl=mine)
    client.create("/b", acl=mine)
    assert acl_of(client, "/a") == mine[1:], "duplicates are dropped"
    nodes = server.core.state.tree.nodes
    assert nodes["/a"].acl is nodes["/b"].acl
    stale = client.ask(zk.SET_ACL, zk.SetAclRequest("/a", OPEN_ACL_UNSAFE, 3))
    assert stale.code == Code.BAD_VERSION
    assert client.ask(zk.SET_ACL, zk.SetAclRequest("/a", OPEN_ACL_UNSAFE, 0)).code == 0
    assert nodes["/a"].acl is OPEN_ACL_UNSAFE
    assert client.ask(zk.SET_ACL, zk.SetAclRequest("/none", OPEN_ACL_UNSAFE, 0)).code == (
        Code.NO_NODE
    )
    client.delete("/b")
    assert len(server.core.state.tree.acls.counts()) == 1, "only that of the system nodes"
    assert acl_of(Client_of(server.restart()), "/a") == OPEN_ACL_UNSAFE


def Client_of(server: Server) -> Client:
    return server.client((BOB,))


def test_acl_lists_at_their_limit() -> None:
    client = Server(CoreConfig(max_acl_entries=2)).client((BOB,))
    two = (Acl(31, *BOB), Acl(1, "world", "anyone"))
    assert client.create("/two", acl=two).code == 0
    three = client.create("/three", acl=(*two, Acl(1, "ip", "127.0.0.1")))
    assert three.code == Code.INVALID_ACL


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        (b"count=5,bytes=-1", Limits(5, -1, -1, -1)),
        (b"count=-1,bytes=10", Limits(-1, 10, -1, -1)),
        (b"count=1,bytes=2=;byteHardLimit=3;countHardLimit=4", Limits(1, 2, 4, 3)),
        (b"", Limits()),
        (None, Limits()),
        (b"count=many,\xff=,bytes=" + b"9" * 50, Limits()),
        (b"count=--5,bytes=5-", Limits()),
        (b"count=7" + b"," * 2000 + b"bytes=8", Limits(7)),
    ],
)
def test_the_text_of_a_quota(text: bytes | None, limits: Limits) -> None:
    assert parse_limits(text) == limits


def set_quota(client: Client, path: str, limits: bytes) -> None:
    at = QUOTA_ROOT
    for name in path.strip("/").split("/"):
        at = f"{at}/{name}"
        client.create(at)
    assert client.create(f"{QUOTA_ROOT}{path}/zookeeper_limits", limits).code == 0
    assert client.create(f"{QUOTA_ROOT}{path}/zookeeper_stats", b"").code == 0


def admin_of(server: Server) -> Client:
    return server.client((("super", ""),))


def usage(client: Client, path: str) -> bytes:
    data: bytes = client.get(f"{QUOTA_ROOT}{path}/zookeeper_stats").message.data
    return data


def test_usage_is_counted_and_is_a_function_of_the_log() -> None:
    server = Server()
    client = admin_of(server)
    client.create("/a", b"12345")
    client.create("/a/b", b"1")
    set_quota(client, "/a", b"count=100,bytes=100")
    assert usage(client, "/a") == b"count=2,bytes=6"
    client.create("/a/b/c", b"22")
    client.set("/a", b"")
    client.create("/elsewhere", b"xxx")
    stat = client.get(f"{QUOTA_ROOT}/a/zookeeper_stats").message.stat
    assert usage(client, "/a") == b"count=3,bytes=3"
    assert stat.version == 0, "the server's own counting changes no version"
    client.delete("/a/b/c")
    assert usage(client, "/a") == b"count=2,bytes=1"
    assert usage(admin_of(server.restart()), "/a") == b"count=2,bytes=1"


def test_a_hard_quota_refuses_what_passes_it_and_a_soft_one_does_not() -> None:
    server = Server()
    client = admin_of(server)
    client.create("/a", b"")
    set_quota(client, "/a", b"count=1,bytes=1=;byteHardLimit=10;countHardLimit=3")
    assert client.create("/a/1", b"12345").code == 0
    assert client.create("/a/2", b"12345").code == 0
    assert client.create("/a/3", b"").code == Code.QUOTA_EXCEEDED
    assert client.set("/a", b"x").code == Code.QUOTA_EXCEEDED
    assert client.set("/a/1", b"1234").code == 0
    assert client.set("/a", b"x").code == 0
    multi = client.multi(op(zk.MultiKind.DELETE, "/a/2"), op(zk.MultiKind.CREATE, "/a/4"))
    assert [each.error_code for each in multi.message.results] == [0, 0]


def test_a_hard_quota_counts_what_is_outstanding() -> None:
    server = Server()
    client = admin_of(server)
    client.create("/a")
    set_quota(client, "/a", b"count=-1,bytes=-1=;countHardLimit=4")
    create = zk.CreateRequest("/a/n", b"", OPEN_ACL_UNSAFE, 2, -1)
    client.take()
    client.send(*[(zk.CREATE, create)] * 6)
    server.sync()
    assert [each.code for each in client.replies()] == [0] * 3 + [Code.QUOTA_EXCEEDED] * 3


def test_quotas_can_be_left_unenforced_and_taken_away() -> None:
    client = admin_of(Server(CoreConfig(enforce_quota=False)))
    client.create("/a")
    set_quota(client, "/a", b"count=-1,bytes=-1=;countHardLimit=1")
    assert client.create("/a/b").code == 0
    client = admin_of(Server())
    client.create("/a")
    set_quota(client, "/a", b"count=-1,bytes=-1=;countHardLimit=1")
    assert client.create("/a/b").code == Code.QUOTA_EXCEEDED
    client.delete(f"{QUOTA_ROOT}/a/zookeeper_limits")
    assert client.create("/a/b").code == 0


@pytest.mark.parametrize("seed", range(8))
def test_usage_is_what_a_walk_would_count(seed: int) -> None:
    rng = random.Random(seed)
    server = Server()
    client = admin_of(server)
    client.create("/a")
    client.create("/a/deep")
    set_quota(client, "/a", b"count=9,bytes=9")
    set_quota(client, "/a/deep", b"count=9,bytes=9")
    for _ in range(150):
        paths = [each for each in server.core.state.tree.nodes if each.startswith("/a")]
        path = rng.choice(paths)
        data = bytes(rng.randrange(20))
        rng.choice(
            [
                lambda p=path, d=data: client.create(f"{p}/n", d, flags=2),
                lambda p=path, d=data: client.set(p, d),
                lambda p=path: client.delete(p) if p.count("/") > 2 else None,
            ]
        )()
    nodes = server.core.state.tree.nodes
    for top, others in (("/a/deep", ""), ("/a", "/a/deep")):
        own = [
            node
            for path, node in nodes.items()
            if (path + "/").startswith(top + "/")
            and not (others and (path + "/").startswith(others + "/"))
        ]
        # What is below a deeper quota counts there only, but for what the outer one was told
        # when it was made.
        count = len(own) + (1 if others else 0)
        size = sum(len(node.data or b"") for node in own)
        assert usage(client, top) == f"count={count},bytes={size}".encode(), top


def test_a_container_goes_after_its_last_child_and_a_ttl_node_after_its_time() -> None:
    server = Server()
    client = server.client(timeout_ms=40_000)
    client.create("/unused", flags=4)
    client.create("/used", flags=4)
    client.create("/used/child")
    client.create("/short", flags=5, ttl_ms=90_000)
    client.create("/parent", flags=5, ttl_ms=1)
    client.create("/parent/child")
    assert client.create("/seq-", flags=6, ttl_ms=1 << 39).message.path == "/seq-0000000004"
    client.exists("/used", watch=True)
    client.take()

    def alive() -> set[str]:
        return {path for path in server.core.state.tree.nodes if not path.startswith("/zoo")}

    def wait(seconds: int) -> None:
        for _ in range(seconds // 10):
            server.pass_time(10_000)
            client.ask(zk.PING, zk.Empty())

    everything = alive()
    wait(70)
    assert alive() == everything
    client.delete("/used/child")
    client.set("/short", b"touched")
    wait(70)
    assert "/used" not in alive() and "/short" in alive() and "/unused" in alive()
    assert [each.path for each in client.events()] == ["/used"]
    wait(100)
    assert "/short" not in alive()
    wait(200)
    assert "/unused" not in alive()
    assert {"/parent", "/parent/child", "/seq-0000000004"} <= alive()
    assert server.restart().core.state.tree.reapable.keys() == {"/parent", "/seq-0000000004"}


def test_a_container_that_got_a_child_meanwhile_stays() -> None:
    server = Server()
    client = server.client(timeout_ms=40_000)
    client.create("/c", flags=4)
    client.create("/c/x")
    client.delete("/c/x")
    create = zk.CreateRequest("/c/new", b"", OPEN_ACL_UNSAFE, 0, -1)
    server.now_ms += 61_000
    client.send((zk.CREATE, create))
    assert server.core._preparer.reap("/c") is None
    server.sync()
    assert client.exists("/c/new").code == 0


@pytest.mark.parametrize("text", [b"count=--5", b"count=-", b"=", b"count=\xd9\xa3", b"count=1e9"])
def test_whatever_stands_in_a_quota_replays(text: bytes) -> None:
    """Any client may write the znodes of a quota, and what it writes is read by `apply`."""
    server = Server()
    client = admin_of(server)
    client.create("/a")
    set_quota(client, "/a", b"count=10")
    client.set(f"{QUOTA_ROOT}/a/zookeeper_stats", text)
    client.set(f"{QUOTA_ROOT}/a/zookeeper_limits", text)
    assert client.create("/a/b", b"1").code == 0
    assert client.delete("/a/b").code == 0
    assert server.restart().core.last_applied_zxid > 0


def test_a_multi_begins_to_count_one_subtree_only() -> None:
    client = admin_of(Server())
    client.create(f"{QUOTA_ROOT}/a")
    client.create(f"{QUOTA_ROOT}/b")
    ops = [op(zk.MultiKind.CREATE, f"{QUOTA_ROOT}/{each}/zookeeper_stats") for each in "ab"]
    assert client.multi(*ops).code == Code.BAD_ARGUMENTS
    assert client.multi(ops[0]).code == 0


def test_a_stored_acl_list_is_bounded_and_can_be_read_back() -> None:
    many = tuple(("digest", f"{number:03}" + "u" * 300) for number in range(60))
    client = Server().client(many)
    auth = (Acl(31, "auth", ""), Acl(1, "world", "anyone"))
    assert client.create("/long", acl=auth).code == Code.INVALID_ACL
    some = tuple(("digest", f"{number:03}" + "u" * 100) for number in range(64))
    client = Server().client(some)
    assert client.create("/a", acl=auth).code == 0
    assert len(acl_of(client, "/a")) == 65


def test_the_reaper_leaves_alone_what_is_about_to_change() -> None:
    server = Server()
    client = server.client(timeout_ms=40_000)
    client.create("/c", flags=4)
    client.create("/c/x")
    client.delete("/c/x")
    client.create("/ttl", flags=5, ttl_ms=1)
    again = (op(zk.MultiKind.DELETE, "/c"), op(zk.MultiKind.CREATE, "/c", b"mine"))
    client.send(
        (zk.MULTI, zk.MultiRequest(again)), (zk.SET_DATA, zk.SetDataRequest("/ttl", b"", -1))
    )
    for path in ("/c", "/ttl"):
        assert server.core._preparer.reap(path) is None, path
    server.sync()
    assert client.get("/c").message.data == b"mine"
    assert client.exists("/ttl").code == 0
