"""Who hears what, once, before any answer that shows it; and what was missed while away."""

from __future__ import annotations

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode as Code
from duolog_protocol.types import Acl, AddWatchMode, EventType, WatcherType
from zkserver.core.config import CoreConfig

from .core_support import CHANGED, CHILD, CREATED, DELETED, Client, Reply, Seen, Server, op

RECURSIVE = AddWatchMode.PERSISTENT_RECURSIVE
PERSISTENT = AddWatchMode.PERSISTENT


def told(client: Client) -> list[tuple[int, str]]:
    return [(each.type, each.path) for each in client.take() if isinstance(each, Seen)]


def add_watch(client: Client, path: str, mode: int, after_zxid: int = -1) -> Reply:
    return client.ask(zk.ADD_WATCH, zk.AddWatchRequest(path, mode, after_zxid))


def test_a_watch_fires_once_and_before_the_answer_that_shows_the_change() -> None:
    client = Server().client()
    client.create("/a")
    client.get("/a", watch=True)
    client.take()
    changed = client.set("/a", b"1")
    event, reply = client.take()
    assert event == Seen(changed.zxid, CHANGED, "/a") and isinstance(reply, Reply)
    client.set("/a", b"2")
    assert told(client) == []


def test_the_event_comes_before_a_read_that_shows_the_change() -> None:
    server = Server()
    reader, writer = server.client(), server.client()
    writer.create("/a")
    reader.get("/a", watch=True)
    reader.take()
    writer.send((zk.SET_DATA, zk.SetDataRequest("/a", b"new", -1)))
    reader.send((zk.GET_DATA, zk.GetDataRequest("/a", False)))
    assert [type(each) for each in reader.take()] == [Reply], "not durable: still the old data"
    server.sync()
    reader.get("/a")
    assert [type(each) for each in reader.take()] == [Seen, Reply]


def test_which_change_fires_which_watch() -> None:
    server = Server()
    watcher, writer = server.client(), server.client()
    watcher.exists("/a", watch=True)
    watcher.children("/", watch=True)
    watcher.take()
    writer.create("/a")
    assert told(watcher) == [(CREATED, "/a"), (CHILD, "/")]
    watcher.get("/a", watch=True)
    watcher.children("/a", watch=True)
    watcher.take()
    writer.set("/a", b"")
    assert told(watcher) == [(CHANGED, "/a")]
    watcher.get("/a", watch=True)
    watcher.take()
    writer.delete("/a")
    assert told(watcher) == [(DELETED, "/a")], "one event, though it had two watches"


def test_what_fails_or_is_no_change_fires_nothing() -> None:
    server = Server()
    watcher, writer = server.client(), server.client()
    writer.create("/a")
    watcher.get("/a", watch=True)
    watcher.get("/missing", watch=True)
    watcher.take()
    writer.set("/a", b"", 7)
    writer.multi(op(zk.MultiKind.SET_DATA, "/a", b""), op(zk.MultiKind.CHECK, "/a", version=9))
    writer.ask(zk.SET_ACL, zk.SetAclRequest("/a", (Acl(31, "world", "anyone"),), -1))
    writer.create("/missing")
    assert told(watcher) == [], "a get that misses leaves no watch"


def test_a_multi_tells_each_change_in_order_at_its_zxid() -> None:
    server = Server()
    watcher, writer = server.client(), server.client()
    add_watch(watcher, "/", RECURSIVE)
    watcher.take()
    done = writer.multi(
        op(zk.MultiKind.CREATE, "/a"),
        op(zk.MultiKind.SET_DATA, "/a", b"1"),
        op(zk.MultiKind.DELETE, "/a"),
    )
    assert watcher.take() == [
        Seen(done.zxid, CREATED, "/a"),
        Seen(done.zxid, CHANGED, "/a"),
        Seen(done.zxid, DELETED, "/a"),
    ]


def test_persistent_watches_stay_and_recursive_ones_never_tell_of_children() -> None:
    server = Server()
    one, deep, writer = server.client(), server.client(), server.client()
    writer.create("/a")
    add_watch(one, "/a", PERSISTENT)
    add_watch(deep, "/a", RECURSIVE)
    one.take()
    deep.take()
    writer.create("/a/b")
    writer.set("/a/b", b"")
    writer.set("/a", b"")
    writer.delete("/a/b")
    writer.create("/x")
    assert told(one) == [(CHILD, "/a"), (CHANGED, "/a"), (CHILD, "/a")]
    expected = [(CREATED, "/a/b"), (CHANGED, "/a/b"), (CHANGED, "/a"), (DELETED, "/a/b")]
    assert told(deep) == expected
    assert add_watch(one, "/a", 7).code == Code.BAD_ARGUMENTS


def test_watches_end_with_their_connection() -> None:
    server = Server()
    watcher = server.client()
    watcher.exists("/a", watch=True)
    add_watch(watcher, "/", RECURSIVE)
    assert server.core.status().watch_count == 2
    watcher.lose()
    assert server.core.status().watch_count == 0


def test_watches_are_asked_for_and_removed_by_type() -> None:
    server = Server()
    client, writer = server.client(), server.client()
    writer.create("/a")
    client.get("/a", watch=True)
    client.children("/a", watch=True)
    add_watch(client, "/a", PERSISTENT)

    def ask(api: object, watcher_type: int) -> int:
        return client.ask(api, zk.WatchesRequest("/a", watcher_type)).code

    assert ask(zk.CHECK_WATCHES, WatcherType.DATA) == 0
    assert ask(zk.CHECK_WATCHES, WatcherType.PERSISTENT_RECURSIVE) == Code.NO_WATCHER
    assert ask(zk.REMOVE_WATCHES, WatcherType.DATA) == 0
    assert ask(zk.REMOVE_WATCHES, WatcherType.DATA) == Code.NO_WATCHER
    assert ask(zk.REMOVE_WATCHES, 6) == Code.BAD_ARGUMENTS
    client.take()
    writer.set("/a", b"")
    assert told(client) == [(CHANGED, "/a")], "the persistent one is still there"
    assert ask(zk.REMOVE_WATCHES, WatcherType.ANY) == 0
    assert server.core.status().watch_count == 0


def test_watches_at_their_limit() -> None:
    client = Server(CoreConfig(max_watches_per_connection=3)).client()
    for path in ("/a", "/b", "/c", "/a"):
        client.exists(path, watch=True)
    assert client.server.core.status().watch_count == 3
    assert client.exists("/d", watch=True).code == Code.QUOTA_EXCEEDED


def test_only_who_may_read_a_node_hears_of_it() -> None:
    """CVE-2024-23944: a recursive watch above must not leak the paths below."""
    server = Server()
    owner = server.client((("digest", "bob:x"),))
    stranger, boss = server.client(), server.client((("super", ""),))
    for client in (owner, stranger, boss):
        add_watch(client, "/", RECURSIVE)
        client.take()
    private = (Acl(31, "digest", "bob:x"),)
    owner.create("/secret", acl=private)
    owner.set("/secret", b"")
    owner.delete("/secret")
    heard = [(CREATED, "/secret"), (CHANGED, "/secret"), (DELETED, "/secret")]
    assert told(owner) == heard
    assert told(boss) == heard
    assert told(stranger) == []


def reconnect(client: Client) -> Client:
    client.lose()
    again = Client(client.server)
    again.connect(session_id=client.session_id, password=client.password)
    again.take()
    return again


def set_watches(client: Client, zxid: int, *, resume: bool, **lists: list[str]) -> list[object]:
    names = ("data", "exist", "child", "persistent", "recursive")
    request = zk.SetWatchesRequest(zxid, *[lists.get(name, []) for name in names], resume)
    client.ask(zk.SET_WATCHES, request)
    return client.take()


def test_after_a_reconnect_the_stats_tell_what_was_missed_as_in_zookeeper() -> None:
    server = Server()
    client, writer = server.client(), server.client()
    for path in ("/same", "/changed", "/gone", "/parent", "/quiet"):
        writer.create(path)
    zxid = server.core.last_applied_zxid
    writer.set("/changed", b"")
    writer.delete("/gone")
    writer.create("/new")
    writer.create("/parent/child")
    client = reconnect(client)
    *events, reply = set_watches(
        client,
        zxid,
        resume=False,
        data=["/same", "/changed", "/gone"],
        exist=["/new", "/still-missing"],
        child=["/parent", "/quiet", "/gone"],
        persistent=["/changed"],
        recursive=["/"],
    )
    assert [(each.type, each.path) for each in events] == [
        (CHANGED, "/changed"),
        (DELETED, "/gone"),
        (CREATED, "/new"),
        (CHILD, "/parent"),
        (DELETED, "/gone"),
    ]
    assert isinstance(reply, Reply)
    writer.set("/same", b"")
    writer.create("/still-missing")
    writer.create("/quiet/child")
    heard = told(client)
    assert (CHANGED, "/same") in heard and (CREATED, "/still-missing") in heard
    assert (CHILD, "/quiet") in heard


def test_a_resumed_watch_misses_nothing_and_hears_nothing_twice() -> None:
    server = Server()
    client, writer = server.client(), server.client()
    writer.create("/a")
    zxid = server.core.last_applied_zxid
    zxids = [
        writer.set("/a", b"1").zxid,
        writer.create("/a/b").zxid,
        writer.delete("/a/b").zxid,
        writer.delete("/a").zxid,
        writer.create("/a").zxid,
    ]
    client = reconnect(client)
    *events, _ = set_watches(client, zxid, resume=True, persistent=["/a"])
    assert events == [
        Seen(zxids[0], CHANGED, "/a"),
        Seen(zxids[1], CHILD, "/a"),
        Seen(zxids[2], CHILD, "/a"),
        Seen(zxids[3], DELETED, "/a"),
        Seen(zxids[4], CREATED, "/a"),
    ]
    *events, _ = set_watches(reconnect(client), zxid, resume=True, recursive=["/a"])
    assert [each.path for each in events] == ["/a", "/a/b", "/a/b", "/a", "/a"]
    *events, _ = set_watches(reconnect(client), zxids[2], resume=True, data=["/a"], exist=["/x"])
    assert events == [Seen(zxids[3], DELETED, "/a")], "a one-shot watch tells one event"


def test_a_watch_can_start_in_the_past() -> None:
    server = Server()
    client = server.client()
    zxids = [client.create(f"/n{number}").zxid for number in range(4)]
    client.take()
    add_watch(client, "/", RECURSIVE, zxids[1])
    assert client.take()[:-1] == [Seen(zxids[2], CREATED, "/n2"), Seen(zxids[3], CREATED, "/n3")]


def test_what_is_no_longer_known_is_said() -> None:
    server = Server(CoreConfig(max_history_events=3))
    client = server.client()
    zxids = [client.create(f"/n{number}").zxid for number in range(6)]
    client.take()
    add_watch(client, "/", RECURSIVE, zxids[2])
    assert [each.path for each in client.take()[:-1]] == ["/n3", "/n4", "/n5"]
    add_watch(client, "/", RECURSIVE, zxids[1])
    event, _ = client.take()
    assert (event.type, event.path) == (EventType.COMPACTED, "/")
    *events, _ = set_watches(
        reconnect(client), zxids[0], resume=True, recursive=["/"], data=["/n1"], child=["/"]
    )
    assert [(each.type, each.path) for each in events] == [
        (EventType.COMPACTED, "/"),
        (CHANGED, "/n1"),
        (CHILD, "/"),
    ]


def test_the_history_is_there_after_a_restart() -> None:
    server = Server()
    client = server.client()
    zxid = client.create("/a").zxid
    changed = client.set("/a", b"").zxid
    again = Client(server.restart())
    again.connect()
    again.take()
    add_watch(again, "/a", PERSISTENT, zxid)
    assert again.take()[0] == Seen(changed, CHANGED, "/a")
