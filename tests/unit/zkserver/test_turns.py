"""The order of answers on one connection, back-pressure, and a full disk in between."""

from __future__ import annotations

import random

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode as Code
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl
from zkserver.core.config import CoreConfig
from zkserver.core.connection import Connection
from zkserver.core.events import Durable, Effect, Send, TimerFired
from zkserver.core.pending import Failure, Pending

from .core_support import Client, Reply, Server, op

KIB = 1024


def set_data(path: str, data: bytes) -> tuple[object, object]:
    return (zk.SET_DATA, zk.SetDataRequest(path, data, -1))


def get(path: str) -> tuple[object, object]:
    return (zk.GET_DATA, zk.GetDataRequest(path, False))


def create(path: str, data: bytes = b"") -> tuple[object, object]:
    return (zk.CREATE, zk.CreateRequest(path, data, OPEN_ACL_UNSAFE, 0, -1))


def test_a_read_between_writes_does_not_hold_them_up() -> None:
    """All three writes are in one group of the log, not one fsync each."""
    server = Server()
    client = server.client()
    client.send(create("/a"), get("/a"), set_data("/a", b"1"), get("/a"), set_data("/a", b"2"))
    assert [len(append.records) for append in server.unsynced] == [3]
    server.sync()
    answers = client.replies()
    assert [each.zxid for each in answers] == sorted(each.zxid for each in answers)
    assert answers[1].message.data == b"" and answers[3].message.data == b"1"


def test_a_sync_waits_for_what_was_logged_before_it() -> None:
    server = Server()
    writer, reader = server.client(), server.client()
    writer.send(create("/a", b"1"))
    reader.send((zk.SYNC, zk.SyncRequest("/a")), get("/a"))
    assert reader.replies() == []
    server.sync()
    synced, read = reader.replies()
    assert synced.message.path == "/a" and read.message.data == b"1"


def test_nothing_is_taken_behind_the_end_of_a_session() -> None:
    server = Server()
    client = server.client()
    client.send(create("/a"), (zk.CLOSE_SESSION, zk.Empty()), set_data("/a", b"late"))
    server.sync()
    assert [each.code for each in client.replies()] == [0, 0]
    assert server.core.state.tree.nodes["/a"].data == b""


def test_a_credential_counts_for_what_comes_behind_it() -> None:
    server = Server()
    client = server.client()
    mine = (Acl(31, "auth", ""),)
    client.send(
        create("/open"),
        (zk.AUTH, zk.AuthRequest("digest", b"bob:secret")),
        (zk.CREATE, zk.CreateRequest("/mine", b"", mine, 0, -1)),
        (zk.WHO_AM_I, zk.Empty()),
    )
    server.sync()
    opened, auth, created, who = client.replies()
    assert (opened.code, auth.code, created.code) == (0, 0, 0)
    assert [tuple(each) for each in who.message.identities] == [("digest", "bob")]


def test_a_wrong_credential_ends_the_connection_in_its_turn() -> None:
    server = Server()
    client = server.client()
    client.send(
        create("/a"), (zk.AUTH, zk.AuthRequest("telepathy", b"x")), set_data("/a", b"never")
    )
    server.sync()
    assert [each.code for each in client.replies()] == [0, Code.AUTH_FAILED]
    assert client.closed and server.core.state.tree.nodes["/a"].data == b""


def test_a_connection_with_too_much_outstanding_is_not_read() -> None:
    server = Server(CoreConfig(max_outstanding_per_connection=10))
    client, other = server.client(), server.client()
    client.create("/a")
    client.send(*[set_data("/a", b"%d" % number) for number in range(9)])
    assert client.connection not in server.paused
    client.send(set_data("/a", b"9"))
    assert server.paused == {client.connection}
    other.send(set_data("/a", b"other"))
    server.sync()
    assert not server.paused
    assert len(client.replies()) == 11


def test_all_writers_are_paused_when_too_much_is_outstanding_in_all() -> None:
    server = Server(CoreConfig(max_outstanding_requests=20))
    clients = [server.client() for _ in range(4)]
    clients[0].create("/a")
    for client in clients:
        client.send(*[set_data("/a", b"") for _ in range(6)])
    assert clients[3].connection in server.paused
    server.sync()
    assert not server.paused


def test_reads_wait_until_the_socket_took_the_long_replies_before_them() -> None:
    """A client that pipelines reads of large znodes costs one backlog, not all of them at once."""
    server = Server(CoreConfig(max_reply_backlog_bytes=300 * KIB))
    client, other = server.client(), server.client()
    client.create("/big", bytes(100 * KIB))
    client.take()
    client.send(*[get("/big") for _ in range(10)], (zk.PING, zk.Empty()), get("/"))
    assert len(client.replies()) == 3 and len(server.undrained) == 1
    assert other.get("/big").code == 0, "others are served"
    for served in (6, 9, 12):
        server.drain()
        assert len(client.replies()) == served
    assert [len(each.message.data) for each in client.replies()[:10]] == [100 * KIB] * 10


def test_reads_that_wait_for_the_socket_do_not_see_the_writes_behind_them() -> None:
    server = Server(CoreConfig(max_reply_backlog_bytes=100 * KIB))
    client = server.client()
    client.create("/big", bytes(60 * KIB))
    client.create("/n")
    client.take()
    client.send(get("/big"), get("/big"), get("/big"), get("/n"), set_data("/n", b"1"), get("/n"))
    assert len(client.replies()) == 2, "up to the backlog"
    server.sync()
    replies = client.replies()
    assert [each.message.stat.version for each in replies[2:]] == [0, 0, 1]
    server.drain()
    assert client.replies()[-1].message.data == b"1"


def test_a_client_that_reads_too_little_of_what_it_asked_for_is_dropped() -> None:
    config = CoreConfig(max_reply_backlog_bytes=100 * KIB, max_unread_reply_bytes=300 * KIB)
    server = Server(config)
    client = server.client()
    client.create("/big", bytes(60 * KIB))
    client.take()
    for _ in range(8):
        client.send(get("/big"), set_data("/", b""))
    server.sync()
    assert "too slow" in client.closed
    assert server.core.state.tree.nodes["/"].version > 0


def test_a_full_disk_takes_back_everything_outstanding_in_order() -> None:
    server = Server()
    client, other = server.client(), server.client()
    client.create("/a", b"old")
    before = server.core.last_applied_zxid
    client.take()
    client.send(
        *(set_data("/a", b"1"), get("/a"), create("/b"), (zk.SYNC, zk.SyncRequest("/"))),
        *(get("/a"), set_data("/a", b"2")),
    )
    other.send((zk.MULTI, zk.MultiRequest((op(zk.MultiKind.CREATE, "/c"),))))
    server.refuse()
    full = Code.STORAGE_FULL
    assert [each.code for each in client.replies()] == [full, 0, full, 0, 0, full]
    assert [each.code for each in other.replies()] == [full]
    assert client.replies()[1].message.data == b"old"
    assert server.core.last_applied_zxid == before
    assert client.set("/a", b"later").zxid == before + 1, "the zxids were taken back, too"
    assert client.exists("/b").code == Code.NO_NODE
    assert server.restart().core.state.tree.nodes["/a"].data == b"later"


def test_a_full_disk_and_sessions() -> None:
    server = Server()
    client, closing = server.client(), server.client()
    closing.create("/e", flags=1)
    opening = Client(server)
    opening.send((zk.CONNECT, zk.ConnectRequest(0, 10_000, 0, bytes(16), False)), create("/never"))
    closing.send((zk.CLOSE_SESSION, zk.Empty()))
    server.refuse()
    assert opening.replies()[0].code == Code.STORAGE_FULL and opening.closed
    assert closing.replies()[-1].code == Code.STORAGE_FULL and closing.closed
    assert client.exists("/e").code == 0
    again = Client(server)
    assert again.connect(session_id=closing.session_id, password=closing.password).code == 0
    assert again.ask(zk.CLOSE_SESSION, zk.Empty()).code == 0
    assert client.exists("/e").code == Code.NO_NODE


@pytest.mark.parametrize("seed", range(40))
def test_answers_come_in_the_order_of_the_requests(seed: int) -> None:
    """Whatever is pipelined, however the disk and the socket answer: FIFO, and no answer lost."""
    rng = random.Random(seed)
    server = Server(CoreConfig(max_reply_backlog_bytes=40 * KIB, max_outstanding_per_connection=50))
    clients = [server.client() for _ in range(3)]
    clients[0].create("/big", bytes(20 * KIB))
    clients[0].create("/n")
    for client in clients:
        client.take()
        client.order.clear()
    expected: dict[Client, list[int]] = {client: [] for client in clients}
    for _ in range(200):
        action = rng.random()
        if action < 0.6:
            client = rng.choice(clients)
            requests = [
                rng.choice(
                    [
                        *(set_data("/n", b""), set_data("/none", b""), get("/n"), get("/big")),
                        *((zk.SYNC, zk.SyncRequest("/")), (zk.PING, zk.Empty())),
                        *(create("/n"), (zk.AUTH, zk.AuthRequest("digest", b"u:p"))),
                        (zk.DELETE, zk.DeleteRequest("", -1)),
                    ]
                )
                for _ in range(rng.randrange(1, 8))
            ]
            first = server.last_id + 1
            expected[client] += range(first, first + len(requests))
            client.send(*requests)
        elif action < 0.8:
            server.sync(1)
        elif action < 0.95:
            server.drain()
        elif server.unsynced:
            server.refuse()
    while server.unsynced or server.undrained:
        server.sync()
        server.drain()
    for client in clients:
        assert not client.asked, "every request was answered"
        zxids = [each.zxid for each in client.heard if isinstance(each, Reply) and each.zxid]
        assert zxids == sorted(zxids)
        assert client.order == expected[client]
    assert not server.paused


def test_a_client_that_waits_for_its_session_behind_a_full_server_is_heard() -> None:
    """It is paused for what is outstanding: its pings cannot be read, and it must not expire."""
    server = Server(CoreConfig(max_outstanding_per_connection=5))
    client, silent = server.client(timeout_ms=4_000), server.client(timeout_ms=4_000)
    client.send(*[set_data("/", b"") for _ in range(5)])
    held, server.unsynced = server.unsynced, []
    assert client.connection in server.paused
    server.pass_time(9_000)
    assert not client.closed and silent.closed
    server.unsynced = held + server.unsynced


def test_writes_that_wait_are_weighed() -> None:
    server = Server(CoreConfig(max_waiting_bytes_per_connection=300 * KIB))
    client = server.client()
    barrier = (zk.CONNECT, zk.ConnectRequest(0, 1, 0, bytes(16), False))
    client.send(set_data("/", b""), barrier, set_data("/", bytes(200 * KIB)))
    assert client.connection not in server.paused
    client.send(set_data("/", bytes(100 * KIB)))
    assert client.connection in server.paused
    client.lose()
    assert server.core._flow.waiting_bytes == 0


def test_missed_events_of_the_same_group_of_the_log_are_told() -> None:
    """The watch waits behind a write of its connection that is durable together with the change."""
    server = Server()
    watcher, writer = server.client(), server.client()
    zxid = server.core.last_applied_zxid
    writer.send(create("/x"))
    watcher.send(create("/y"), (zk.ADD_WATCH, zk.AddWatchRequest("/x", 0, zxid)))
    server.log += [record for append in server.unsynced for record in append.records]
    last, server.unsynced = server.unsynced[-1].last_zxid, []
    server.step(Durable(last))
    assert [(each.type, each.path) for each in watcher.events()] == [(1, "/x")]


def test_asking_for_the_past_again_and_again_lets_others_in_between() -> None:
    server = Server(CoreConfig(max_reply_backlog_bytes=30_000))
    client = server.client()
    for number in range(500):
        client.create(f"/n{number}")
    client.take()
    ask = (zk.ADD_WATCH, zk.AddWatchRequest("/", 1, 0))
    client.send(*[ask] * 20)
    assert len(client.replies()) < 5 and server.undrained
    while server.undrained:
        server.drain()
    assert len(client.replies()) == 20


def test_a_close_of_an_expired_session_is_answered() -> None:
    server = Server()
    client = server.client(timeout_ms=4_000)
    while not server.unsynced:
        server.now_ms += 500
        server.step(TimerFired(server.wall_ms))
    client.send((zk.CLOSE_SESSION, zk.Empty()))
    server.sync()
    assert client.replies()[-1].code == Code.SESSION_EXPIRED and client.closed


def test_a_rejected_write_keeps_nothing_of_its_request() -> None:
    server = Server()
    client = server.client()
    client.send(set_data("/none", bytes(1000)))
    (pending,) = map(Pending._make, server.core._proposals.pending)
    assert isinstance(pending.note, Failure)


def test_only_replies_behind_which_a_write_waits_may_wait_for_more() -> None:
    server = Server()
    client, other = server.client(), server.client()
    client.create("/a", b"1")
    sent: list[tuple[Connection, bool]] = []
    perform = server.perform

    def note(effects: list[Effect]) -> None:
        sent.extend((each.connection, each.more) for each in effects if isinstance(each, Send))
        perform(effects)

    server.perform = note  # type: ignore[method-assign]
    client.send(get("/a"), get("/a"))
    assert sent == [(client.connection, False)]
    sent.clear()
    client.send(get("/a"), set_data("/a", b"2"), get("/a"))
    other.send(get("/a"))
    assert sent == [(client.connection, True), (other.connection, False)]
    sent.clear()
    server.sync()
    assert sent == [(client.connection, False)]
    assert [each.message.data for each in client.replies() if hasattr(each.message, "data")] == [
        b"1",
        b"1",
        b"1",
        b"2",
    ]
    client.send(set_data("/a", bytes(17_000)))
    server.sync()
    sent.clear()
    client.send(get("/a"), set_data("/a", b"3"))
    assert sent == [(client.connection, False)], "long replies go out at once"
