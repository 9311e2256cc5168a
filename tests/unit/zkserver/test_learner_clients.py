"""What a learner does for its own clients: hears them, reads them, and forgets them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.quorum_messages import Answers
from duolog_protocol.txns import TxnKind, encode_txn
from duolog_protocol.types import make_zxid
from zkserver.core.config import CoreConfig
from zkserver.core.connection import Connection
from zkserver.core.ensemble_core import EnsembleCore
from zkserver.core.ensemble_events import Committed, Confirm, Confirmed, LeaderAnswered
from zkserver.core.events import Durable, PauseReading, Received, ResumeReading
from zkserver.core.session_tracker import Session

WALL_MS = 1_700_000_000_000
PING = (zk.PING.key, 0, zk.Empty())


class Silent:
    """A codec for clients whose replies nobody looks at."""

    known_peer = True

    def __getattr__(self, name: str) -> Any:
        return lambda *_: b""


def core() -> EnsembleCore:
    return EnsembleCore(CoreConfig(), random.Random(1))


def learner() -> EnsembleCore:
    made = core()
    made.follow(0)
    made.step(
        Committed([encode_txn(make_zxid(1, 0), 0, 0, WALL_MS, (TxnKind.NEW_EPOCH, b"s" * 32))]), 0
    )
    return made


def client(of: EnsembleCore, timeout_ms: int = 10_000) -> Connection:
    """A client with a session that all servers know."""
    connection = Connection(Silent(), "127.0.0.1:1")
    session = of.state.sessions[7] = Session(7, timeout_ms)
    connection.session, session.connection = session, connection
    return connection


@pytest.mark.parametrize("timeout_ms", [4_000, 6_000, 8_000, 10_000, 30_000])
def test_the_leader_is_told_of_a_client_that_only_pings(timeout_ms: int) -> None:
    """Else it ends the session of a client that is there."""
    server = learner()
    connection = client(server, timeout_ms)
    told_ms = 0
    next_ping_ms = 0
    for now_ms in range(0, 120_000, 250):  # the leader asks so often
        if now_ms >= next_ping_ms:
            server.step(Received(connection, [PING], WALL_MS), now_ms)
            next_ping_ms += timeout_ms // 3
        if server.take_sessions_heard(now_ms):
            told_ms = now_ms
        assert now_ms - told_ms < timeout_ms, "the leader would have ended it"


def test_a_client_that_is_not_read_for_our_own_load_counts_as_heard() -> None:
    server = learner()
    connection = client(server)
    limit = server.config.max_outstanding_per_connection
    sets = [(zk.SET_DATA.key, n, zk.SetDataRequest("/a", b"", -1)) for n in range(1, limit + 1)]
    effects = server.step(Received(connection, sets, WALL_MS), 1)
    assert [each for each in effects if isinstance(each, PauseReading)]
    assert server.take_sessions_heard(1)
    assert server.take_sessions_heard(9_000), "and no commit has come for nine seconds"


@pytest.mark.parametrize("leads", [False, True])
def test_a_client_that_waited_for_a_sync_is_read_again(leads: bool) -> None:
    server = core() if leads else learner()
    if leads:
        server.lead(1, 0, WALL_MS)
        server.step(Durable(make_zxid(1, 0)), 0)
    connection = client(server)
    count = server.config.max_outstanding_per_connection + 100
    reads = [(zk.GET_DATA.key, n, zk.GetDataRequest("/", False)) for n in range(2, count)]
    asked = [(zk.SYNC.key, 1, zk.SyncRequest("/")), *reads]
    effects = server.step(Received(connection, asked, WALL_MS), 1)
    assert connection.paused
    if leads:
        (confirm,) = (each for each in effects if isinstance(each, Confirm))
        effects = server.step(Confirmed(confirm.go_on), 2)
    else:
        answers = Answers(1, (server.last_applied_zxid,), ())
        effects = server.step(LeaderAnswered(answers), 2)
    assert [each for each in effects if isinstance(each, ResumeReading)]
    assert not connection.paused and connection.outstanding_count() == 0


def test_sessions_that_were_closed_are_not_kept() -> None:
    server = learner()
    zxid, number = server.last_applied_zxid, 0
    for turn in range(1, 20):
        connection = Connection(Silent(), "127.0.0.1:1")
        message = zk.ConnectRequest(0, 10_000, 0, bytes(16), False)
        for request, body in (
            ((zk.CONNECT.key, 1, message), (TxnKind.CREATE_SESSION, 10_000)),
            ((zk.CLOSE_SESSION.key, 2, zk.Empty()), (TxnKind.CLOSE_SESSION, 0, ())),
        ):
            zxid, number = zxid + 1, number + 1
            session_id = zxid if body[0] == TxnKind.CREATE_SESSION else zxid - 1
            server.step(Received(connection, [request], WALL_MS), turn)
            server.step(LeaderAnswered(Answers(number, (zxid,), ())), turn)
            record = encode_txn(zxid, session_id, request[1], WALL_MS, body)
            server.step(Committed([record]), turn)
    assert not server.state.sessions and server._tracker.tracked_count() == 0
