"""Sessions of an ensemble: nobody is told that a session is no more while it may live."""

from __future__ import annotations

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.types import OPEN_ACL_UNSAFE
from tests.jute_support import Session
from zkserver.core.ensemble_core import EnsembleCore
from zkserver.core.events import Durable, TimerFired

from .pair_support import WALL_MS, JuteClient, Pair


def opened_before_the_leader_knows(pair: Pair) -> Session:
    """A session that a client of the learner has, while the leader's disk is slower."""
    client = JuteClient(pair, pair.learner)
    client.send_connect()
    pair.sync_learner()
    (session,) = client.take_sessions()
    assert session.session_id > pair.leader.last_applied_zxid
    return session


def test_a_session_that_the_leader_has_not_applied_yet_is_not_said_to_be_gone() -> None:
    pair = Pair()
    session = opened_before_the_leader_knows(pair)
    client = JuteClient(pair, pair.leader)
    client.send_connect(session_id=session.session_id, password=session.password)
    assert client.take_sessions() == []
    assert "not applied here yet" in client.closed
    pair.sync()
    client = JuteClient(pair, pair.leader)
    again = client.connect(session_id=session.session_id, password=session.password)
    assert again is not None and again.session_id == session.session_id


@pytest.mark.parametrize("password", [bytes(16), bytes(17)])
def test_who_does_not_own_it_learns_nothing_of_it(password: bytes) -> None:
    pair = Pair()
    session = opened_before_the_leader_knows(pair)
    client = JuteClient(pair, pair.leader)
    client.send_connect(session_id=session.session_id, password=password)
    (refused,) = client.take_sessions()
    assert refused.session_id == 0


def test_a_server_that_only_reads_gives_no_verdict_about_a_session() -> None:
    pair = Pair()
    known = pair.client(pair.learner).session
    assert known is not None
    pair.learner.leave("the leader is gone")
    client = JuteClient(pair, pair.leader)
    client.send_connect()
    pair.step(pair.leader, Durable(pair.unsynced.pop().last_zxid))  # without the learner
    (unknown,) = client.take_sessions()
    pair.learner.serve_read_only(pair.now_ms)
    for session_id, password in (
        (unknown.session_id, unknown.password),
        (known.session_id, unknown.password),
        (unknown.session_id, bytes(16)),
    ):
        client = JuteClient(pair, pair.learner)
        assert client.connect(session_id=session_id, password=password, read_only=True) is None
        assert "is not known here" in client.closed
    client = JuteClient(pair, pair.learner)
    found = client.connect(session_id=known.session_id, password=known.password, read_only=True)
    assert found is not None and found.session_id == known.session_id and found.read_only


def test_a_session_of_a_reader_ends_with_its_connection() -> None:
    pair = Pair()
    pair.learner.leave("the leader is gone")
    pair.learner.serve_read_only(pair.now_ms)
    client = JuteClient(pair, pair.learner)
    session = client.connect(read_only=True)
    assert session is not None and session.session_id < 0
    client.lose()
    client = JuteClient(pair, pair.learner)
    again = client.connect(session_id=session.session_id, password=session.password, read_only=True)
    assert again is not None and again.session_id == 0, "it has to open a new one"


def with_a_node(pair: Pair) -> tuple[JuteClient, Session]:
    """A client of the learner, which has made /a."""
    client = pair.client(pair.learner)
    assert client.session is not None
    client.ask(1, zk.CreateRequest("/a", b"", OPEN_ACL_UNSAFE, 0, -1))
    return client, client.session


def coming(pair: Pair, core: EnsembleCore, session: Session) -> JuteClient:
    """A connection by which a session's client has come to a server, which has yet to answer."""
    client = JuteClient(pair, core)
    client.send_connect(session_id=session.session_id, password=session.password)
    return client


@pytest.mark.parametrize("stays", [True, False])
def test_a_write_of_the_connection_that_a_session_has_left_comes_too_late(stays: bool) -> None:
    pair = Pair()
    old, session = with_a_node(pair)
    pair.held = []
    old.send(5, zk.SetDataRequest("/a", b"old", -1))
    new = pair.client(pair.leader, session_id=session.session_id, password=session.password)
    assert "moved" in old.closed
    assert new.ask(5, zk.SetDataRequest("/a", b"new", -1)).err == 0
    if not stays:
        new.lose()
    told = len(pair.answers)
    pair.deliver()
    pair.sync()
    (answers,) = pair.answers[told:]
    assert [failure.code for failure in answers.failures] == [ZkErrorCode.SESSION_MOVED]
    assert {core.state.tree.nodes["/a"].data for core in pair.cores} == {b"new"}
    again = pair.client(pair.learner, session_id=session.session_id, password=session.password)
    assert again.ask(5, zk.SetDataRequest("/a", b"newer", -1)).err == 0


def test_who_is_about_to_get_a_session_that_has_moved_on_does_not_get_it() -> None:
    """A client gives up its first attempt, at another server, which comes to the leader after its
    second one (ZOOKEEPER-710)."""
    pair = Pair()
    writer = pair.client(pair.leader)
    session = writer.session
    assert session is not None
    writer.send(1, zk.CreateRequest("/a", b"", OPEN_ACL_UNSAFE, 0, -1))
    second = coming(pair, pair.learner, session)
    assert not second.closed and not second.received, "its place is behind the write"
    first = coming(pair, pair.leader, session)
    assert "moved" in second.closed
    pair.sync()
    assert second.take_sessions() == []
    assert first.take_sessions() != []
    third = pair.client(pair.learner, session_id=session.session_id, password=session.password)
    assert third.ask(5, zk.SetDataRequest("/a", b"1", -1)).err == 0
    assert "moved" in first.closed and not third.closed


def test_who_comes_after_a_session_has_moved_on_gets_it() -> None:
    """What the learner is told then is of the connection that it had before."""
    pair = Pair()
    old = pair.client(pair.learner)
    session = old.session
    assert session is not None
    pair.held = []
    new = coming(pair, pair.learner, session)
    between = pair.client(pair.leader, session_id=session.session_id, password=session.password)
    assert "moved" in old.closed and not new.closed
    pair.deliver()
    pair.sync()
    assert "moved" in between.closed and new.take_sessions() != []
    assert new.ask(1, zk.CreateRequest("/a", b"", OPEN_ACL_UNSAFE, 0, -1)).err == 0


def test_what_a_connection_asks_after_its_client_has_come_by_another_one_is_not_taken() -> None:
    """Both are the same server's: to the leader the owner does not change."""
    pair = Pair()
    old, session = with_a_node(pair)
    old.send(5, zk.SetDataRequest("/a", b"before", -1))
    stranger = JuteClient(pair, pair.learner)
    stranger.send_connect(session_id=session.session_id, password=bytes(16))
    assert not old.closed
    new = coming(pair, pair.learner, session)
    assert "moved" in old.closed and not new.received, "its place is behind the write"
    old.send(5, zk.SetDataRequest("/a", b"after", -1))
    old.send(-11, zk.Empty())
    pair.sync()
    assert new.take_sessions() != [] and not new.closed
    assert {core.state.tree.nodes["/a"].data for core in pair.cores} == {b"before"}


def test_a_client_that_comes_back_before_its_server_knows_that_it_had_gone() -> None:
    pair = Pair()
    old, session = with_a_node(pair)
    between = JuteClient(pair, pair.leader)
    with pair.late():
        between.send_connect(session_id=session.session_id, password=session.password)
        between.send(5, zk.SetDataRequest("/a", b"new", -1))
        new = coming(pair, pair.learner, session)
        old.send(5, zk.SetDataRequest("/a", b"old", -1))
    pair.sync()
    assert "moved" in old.closed and "moved" in between.closed
    assert new.take_sessions() != [] and not new.closed
    assert {core.state.tree.nodes["/a"].data for core in pair.cores} == {b"new"}


def test_a_client_that_comes_twice_at_once_is_who_came_last() -> None:
    """With a write behind its first coming, which must not follow the second one."""
    pair = Pair()
    writer, session = with_a_node(pair)
    writer.send(5, zk.SetDataRequest("/a", b"before", -1))
    first = coming(pair, pair.learner, session)
    first.send(5, zk.SetDataRequest("/a", b"after", -1))
    second = coming(pair, pair.learner, session)
    pair.sync()
    assert "moved" in first.closed and first.take_sessions() == []
    assert second.take_sessions() != [] and not second.closed
    assert {core.state.tree.nodes["/a"].data for core in pair.cores} == {b"before"}
    following = pair.learner._following
    assert following is not None and following._arriving == {}


def test_the_leader_remembers_no_more_servers_of_clients_than_there_are_sessions() -> None:
    pair = Pair()
    delegation = pair.leader._delegation
    assert delegation is not None
    closed, moved, silent = (pair.client(pair.learner) for _ in range(3))
    assert len(delegation._owners) == 3
    closed.ask(-11, zk.Empty())
    assert len(delegation._owners) == 2
    session = moved.session
    assert session is not None and silent.session is not None
    pair.client(pair.leader, session_id=session.session_id, password=session.password)
    assert [*delegation._owners] == [silent.session.session_id]
    for _ in range(60):
        pair.now_ms += 500
        pair.step(pair.leader, TimerFired(WALL_MS))
        pair.sync()
    assert pair.leader.state.sessions == {}
    assert delegation._owners == {}
