"""The pure half of a coordination session: hosts, deadlines, what becomes of the state."""

from __future__ import annotations

import random

import pytest

from duolog.core.zk_session import Hosts, Session, SessionState, parse_hosts
from duolog_protocol.errors import ConfigError
from duolog_protocol.zk_messages import ConnectResponse

ACCEPTED = ConnectResponse(9_000, 77, b"p" * 16, False, 1)


def session(hosts: str = "a:1,b:2,c:3") -> Session:
    return Session(parse_hosts(hosts), 10_000, random.Random(1))


@pytest.mark.parametrize(
    ("text", "addresses", "chroot"),
    [
        ("h", (("h", 2181),), ""),
        ("h:1", (("h", 1),), ""),
        ("a:1, b:2", (("a", 1), ("b", 2)), ""),
        ("h:1/", (("h", 1),), ""),
        ("h:1/x/y", (("h", 1),), "/x/y"),
        ("[::1]:5/x", (("::1", 5),), "/x"),
        ("[::1]", (("::1", 2181),), ""),
    ],
)
def test_hosts_may_have_ports_and_a_chroot(
    text: str, addresses: tuple[tuple[str, int], ...], chroot: str
) -> None:
    assert parse_hosts(text) == Hosts(addresses, chroot)


@pytest.mark.parametrize("text", ["", ":1", "h:", "h:x", "h:0", "h:65536", "a,,b", "/x"])
def test_hosts_that_name_nothing_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be HOST"):
        parse_hosts(text)


@pytest.mark.parametrize("text", ["h/a//b", "h/a/../b", "h/a\x00"])
def test_a_chroot_that_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="chroot: path"):
        parse_hosts(text)


def test_every_server_is_tried_once_before_the_first_pause() -> None:
    found = session()
    assert {found.next_address() for _ in range(3)} == {("a", 1), ("b", 2), ("c", 3)}
    assert [found.retry_delay_ms() for _ in range(2)] == [0, 0]
    delays = [found.retry_delay_ms() for _ in range(40)]
    assert 0 < delays[0] <= 12
    assert max(delays) <= 1_200


def test_it_pings_after_a_third_and_gives_up_a_server_after_two_thirds() -> None:
    found = session()
    assert found.on_connected(ACCEPTED, 1_000)
    assert found.on_usable()
    assert not found.must_ping(3_999)
    assert found.must_ping(4_000)
    assert found.next_look_ms() == 4_000
    found.on_sent(4_000)
    assert not found.is_silent(6_999)
    assert found.is_silent(7_000)
    found.on_heard(4_001)
    assert not found.is_silent(7_000)


def test_a_lost_connection_suspends_and_silence_of_all_servers_loses_the_session() -> None:
    found = session()
    found.on_connected(ACCEPTED, 1_000)
    found.on_usable()
    assert found.on_disconnected(2_000)
    assert found.state is SessionState.SUSPENDED
    assert not found.on_disconnected(2_000)
    assert not found.is_overdue(12_999)
    assert found.is_overdue(13_000)
    assert found.on_expired()
    assert found.state is SessionState.LOST
    assert found.connect_request().session_id == 0


def test_attaching_again_keeps_the_session_and_tells_what_was_seen() -> None:
    found = session()
    found.on_connected(ACCEPTED, 1_000)
    found.on_usable()
    found.saw(55)
    found.saw(54)
    found.on_disconnected(2_000)
    request = found.connect_request()
    assert (request.session_id, request.password, request.last_zxid_seen) == (77, b"p" * 16, 55)
    assert not found.on_connected(ACCEPTED, 3_000)
    assert found.state is SessionState.SUSPENDED
    assert found.on_usable()
    assert not found.is_overdue(10**9)


def test_a_connection_that_dies_before_it_is_usable_does_not_reset_the_deadline() -> None:
    found = session()
    found.on_connected(ACCEPTED, 1_000)
    found.on_usable()
    found.on_disconnected(2_000)
    found.on_connected(ACCEPTED, 12_000)
    assert not found.on_disconnected(12_500)
    assert found.is_overdue(13_000)


def test_connections_that_end_at_once_are_replaced_ever_more_slowly() -> None:
    found = session()
    for _ in range(2):
        assert found.reconnect_delay_ms() == 0
        found.on_connected(ACCEPTED, 1_000)
        found.on_usable()
        found.on_disconnected(1_001)
    delays = []
    for _ in range(12):
        delays.append(found.reconnect_delay_ms())
        found.on_connected(ACCEPTED, 1_000)
        found.on_usable()
        found.on_disconnected(1_001)
    assert 8 <= delays[0] <= 12
    assert 800 <= delays[-1] <= 1_200
    found.on_connected(ACCEPTED, 1_000)
    found.on_usable()
    found.on_disconnected(2_000)
    assert found.reconnect_delay_ms() == 0


def test_events_move_the_place_to_resume_only_behind_whole_transactions() -> None:
    found = session()
    found.saw(5)
    found.saw_event(9)
    assert (found.told_zxid, found.last_zxid_seen) == (8, 9)
    found.saw_past_event(20)
    assert (found.told_zxid, found.last_zxid_seen) == (8, 20)
    found.saw(12)
    assert (found.told_zxid, found.last_zxid_seen) == (12, 20)


def test_a_refused_credential_is_the_end_of_the_session() -> None:
    found = session()
    found.on_connected(ACCEPTED, 1_000)
    found.on_usable()
    assert found.on_auth_failed()
    assert not found.on_auth_failed()
    assert found.state is SessionState.AUTH_FAILED
    assert found.connect_request().session_id == 0
