"""Sessions: opened, attached again, moved, expired, never expired for the server's own delay."""

from __future__ import annotations

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode as Code
from duolog_protocol.txns import TxnKind, decode_txn
from duolog_protocol.types import OPEN_ACL_UNSAFE, ZXID_COUNTER_LAST, make_zxid
from zkserver.core.config import CoreConfig
from zkserver.core.events import TimerFired

from .core_support import Client, Server


@pytest.mark.parametrize(
    ("asked", "granted"),
    [(0, 4_000), (-1, 4_000), (3_999, 4_000), (4_000, 4_000), (10_000, 10_000), (40_001, 40_000)],
)
def test_the_timeout_is_between_two_and_twenty_ticks(asked: int, granted: int) -> None:
    assert Client(Server()).connect(asked).message.timeout_ms == granted


def test_a_session_is_attached_again_with_its_password_only() -> None:
    server = Server()
    first = server.client()
    first.create("/e", flags=1)
    stranger = Client(server)
    refused = stranger.connect(session_id=first.session_id, password=bytes(16))
    assert refused.code == Code.SESSION_EXPIRED
    assert stranger.closed and not first.closed, "the password comes before the old connection"
    second = Client(server)
    reply = second.connect(7_000, session_id=first.session_id, password=first.password)
    assert (reply.message.session_id, reply.message.timeout_ms) == (first.session_id, 7_000)
    assert "moved" in first.closed
    assert second.exists("/e").message.stat.ephemeral_owner == first.session_id
    first.send((zk.DELETE, zk.DeleteRequest("/e", -1)))
    server.sync()
    assert second.exists("/e").code == 0, "the old connection can do nothing any more"


def test_passwords_survive_a_restart_and_differ_between_sessions() -> None:
    server = Server()
    one, two = server.client(), server.client()
    assert one.password != two.password
    again = Client(server.restart())
    assert again.connect(session_id=one.session_id, password=two.password).code == (
        Code.SESSION_EXPIRED
    )
    again = Client(again.server)
    assert again.connect(session_id=one.session_id, password=one.password).code == 0


def test_a_client_that_has_seen_more_than_the_server_is_refused() -> None:
    server = Server()
    client = Client(server)
    zxid = server.core.last_applied_zxid
    refused = client.connect(last_zxid_seen=zxid + 1)
    assert refused.code == Code.SERVER_BEHIND_CLIENT and client.closed
    assert Client(server).connect(last_zxid_seen=zxid).code == 0


def test_nothing_but_connect_is_served_without_a_session() -> None:
    client = Client(Server())
    refused = client.ask(zk.GET_DATA, zk.GetDataRequest("/", False))
    assert refused.code == Code.UNKNOWN_SESSION and client.closed
    client = Client(Server())
    assert client.ask(zk.DELETE, zk.DeleteRequest("/a", -1)).code == Code.UNKNOWN_SESSION


def test_what_is_pipelined_behind_connect_waits_for_the_session() -> None:
    server = Server()
    client = Client(server)
    client.send(
        (zk.CONNECT, zk.ConnectRequest(0, 10_000, 0, bytes(16), False)),
        (zk.CREATE, zk.CreateRequest("/a", b"1", OPEN_ACL_UNSAFE, 0, -1)),
        (zk.GET_DATA, zk.GetDataRequest("/a", False)),
        (zk.SET_DATA, zk.SetDataRequest("/a", b"2", -1)),
    )
    server.sync()
    connect, created, read, changed = client.replies()
    assert connect.message.session_id and created.message.path == "/a"
    assert read.message.data == b"1" and changed.message.stat.version == 1


def test_a_closed_session_takes_its_ephemerals_along_in_one_txn() -> None:
    server = Server()
    client, other = server.client(), server.client()
    client.create("/e1", flags=1)
    client.create("/e2", flags=1)
    records = len(server.log)
    assert client.ask(zk.CLOSE_SESSION, zk.Empty()).code == 0
    assert client.closed and len(server.log) == records + 1
    assert other.exists("/e1").code == other.exists("/e2").code == Code.NO_NODE
    again = Client(server)
    assert again.connect(session_id=client.session_id, password=client.password).code == (
        Code.SESSION_EXPIRED
    )


def test_ephemerals_that_are_still_being_created_go_with_the_session() -> None:
    server = Server()
    client, other = server.client(), server.client()
    acl = OPEN_ACL_UNSAFE
    client.send(
        (zk.CREATE, zk.CreateRequest("/e", b"", acl, 1, -1)),
        (zk.CREATE, zk.CreateRequest("/gone", b"", acl, 1, -1)),
        (zk.DELETE, zk.DeleteRequest("/gone", -1)),
        (zk.CLOSE_SESSION, zk.Empty()),
    )
    server.sync()
    assert other.exists("/e").code == Code.NO_NODE


def test_a_silent_session_expires_and_its_watchers_hear_of_it() -> None:
    server = Server()
    silent, other = server.client(timeout_ms=4_000), server.client(timeout_ms=40_000)
    silent.create("/e", flags=1)
    other.exists("/e", watch=True)
    other.take()
    server.pass_time(3_900)
    assert not silent.closed
    server.pass_time(4_200)
    assert "expired" in silent.closed
    assert [(each.type, each.path) for each in other.events()] == [(2, "/e")]
    assert server.core.status().sessions == 1


def test_a_session_that_pings_lives() -> None:
    server = Server()
    client = server.client(timeout_ms=4_000)
    for _ in range(20):
        server.pass_time(1_500)
        assert client.ask(zk.PING, zk.Empty()).code == 0
    assert not client.closed


def test_a_lost_connection_does_not_end_the_session() -> None:
    server = Server()
    client = server.client(timeout_ms=8_000)
    client.create("/e", flags=1)
    client.lose()
    server.pass_time(6_000)
    again = Client(server)
    assert again.connect(session_id=client.session_id, password=client.password).code == 0
    assert again.exists("/e").code == 0


def test_time_that_the_server_lost_is_given_back() -> None:
    """The process was stopped for a minute: nobody could be heard, and nobody expires."""
    server = Server()
    client = server.client(timeout_ms=4_000)
    server.pass_time(1_000)
    server.now_ms += 60_000
    server.pass_time(2_000)
    assert not client.closed
    server.pass_time(8_000)
    assert client.closed


def test_many_sessions_expire_in_slices() -> None:
    server = Server(CoreConfig(max_expirations_per_step=10))
    clients = [server.client(timeout_ms=4_000) for _ in range(35)]
    server.pass_time(12_000)
    assert all(client.closed for client in clients)
    assert server.core.status().sessions == 0


def test_an_expired_session_is_not_acknowledged_later() -> None:
    """Its CloseSession is logged: what it asks from then on is refused."""
    server = Server()
    client = server.client(timeout_ms=4_000)
    server.now_ms += 500
    while not server.unsynced:
        server.now_ms += 500
        deadline = server.core.deadline_ms()
        if deadline is not None and deadline <= server.now_ms:
            server.step(TimerFired(server.wall_ms))
    client.send((zk.SET_DATA, zk.SetDataRequest("/", b"late", -1)))
    server.sync()
    assert Code.SESSION_EXPIRED in [each.code for each in client.replies()]
    assert server.core.state.tree.nodes["/"].data == b""


def test_the_ephemerals_of_a_session_fit_in_the_txn_that_ends_it() -> None:
    config = CoreConfig(max_data_bytes=1, max_txn_bytes=16 * 1024 + 1)
    server = Server(config)
    client = server.client()
    name = "/" + "e" * 900
    codes = [client.create(name + str(number), flags=1).code for number in range(30)]
    assert codes[0] == 0 and codes[-1] == Code.QUOTA_EXCEEDED
    assert client.ask(zk.CLOSE_SESSION, zk.Empty()).code == 0
    assert max(map(len, server.log)) <= config.max_txn_bytes


def test_a_full_counter_opens_an_epoch_and_drops_nobody() -> None:
    server = Server(CoreConfig(zxid_counter_last=20))
    client, other = server.client(), server.client()
    client.create("/e", flags=1)
    client.create("/a")
    epochs = set()
    for number in range(60):
        reply = client.set("/a", b"%d" % number)
        assert reply.code == 0
        epochs.add(reply.zxid >> 32)
    assert len(epochs) >= 3
    assert not client.closed and other.get("/a").message.data == b"59"
    again = Client(server.restart())
    assert again.connect(session_id=client.session_id, password=client.password).code == 0


def test_sessions_with_many_ephemerals_expire_as_far_as_there_is_room() -> None:
    server = Server(CoreConfig(max_outstanding_bytes=20_000))
    clients = [server.client(timeout_ms=4_000) for _ in range(60)]
    for number, client in enumerate(clients):
        client.create(f"/{number}-" + "e" * 900, flags=1)
    largest = 0
    for _ in range(40):
        server.now_ms += 500
        deadline = server.core.deadline_ms()
        if deadline is not None and deadline <= server.now_ms:
            server.step(TimerFired(server.wall_ms))
        largest = max(largest, server.core._proposals.bytes_count)
        server.sync()
    assert all(client.closed for client in clients)
    assert largest < 20_000 + 16 * 1_100


@pytest.mark.parametrize("left", [0, 1, 3])
def test_the_last_counter_of_all_is_followed_by_a_new_epoch(left: int) -> None:
    """With counters of the full width, where one more is the epoch's own first zxid."""
    server = Server()
    client = server.client()
    client.create("/a")
    last = make_zxid(1, ZXID_COUNTER_LAST - left)
    server.core._proposals.last_logged_zxid = server.core.state.last_applied_zxid = last
    for number in range(6):
        assert client.set("/a", b"%d" % number).code == 0
    assert server.core.last_applied_zxid == make_zxid(2, 6 - left)
    kinds = [decode_txn(record).body[0] for record in server.log[-7:]]
    assert kinds.count(TxnKind.NEW_EPOCH) == 1 and kinds.count(TxnKind.SET_DATA) == 6
