"""Servers of an ensemble find each other over real sockets, and keep everybody else out."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import Any

import pytest

from duolog_protocol.codec import INT64, Schema, since
from duolog_protocol.errors import ConfigError
from duolog_protocol.preamble import PREAMBLE
from duolog_protocol.quorum_messages import (
    PEER_MESSAGES,
    PEER_MESSAGES_BY_KEY,
    Ack,
    Commit,
    FollowerInfo,
    LeaderInfo,
    PeerMessageType,
    PeerPurpose,
    PeerRefusal,
    Ping,
    Pong,
    Proposal,
    RefusalReason,
)
from duolog_runtime.connection import USER_TIMEOUT
from tests.support import until
from tests.unit.zkserver.peer_links_support import (
    ELECTION,
    ENSEMBLE_ID,
    HOST,
    LEARNER,
    Hand,
    Server,
    connect,
    encoded,
    ensemble,
    hello,
    introduce,
    server,
    vote,
)
from zkserver.server import peer_link, peer_links


def proposal(first: int, size: int, count: int = 1) -> Proposal:
    """Records of the log, of `size` bytes each."""
    zxids = range(first, first + count)
    return Proposal(
        first, first + count - 1, tuple(z.to_bytes(8, "big") + bytes(size - 8) for z in zxids)
    )


# ---- links between learner and leader -----------------------------------------------------------


async def test_a_learner_and_its_leader_talk_in_order() -> None:
    async with ensemble() as (leader, learner):
        await connect(learner, leader)
        assert learner.opened[0][1] == 1
        assert leader.opened[0][1] == 0
        learner.call("tell", learner.link, FollowerInfo(2, 0, 1), 7)
        await until(lambda: bool(leader.received))
        assert leader.received == [(leader.link, FollowerInfo(2, 0, 1), 7)]
        told = [
            LeaderInfo(1),
            proposal(1, 100),
            proposal(2, 3 << 20),
            proposal(3, 9, 500),
            Commit(9),
        ]
        for each in told:
            leader.call("tell", leader.link, each, 3)
        await until(lambda: len(learner.received) == len(told))
        assert learner.messages == told
        assert {context for _, _, context in learner.received} == {3}


async def test_messages_of_one_loop_turn_leave_in_one_write_and_arrive_in_one_read() -> None:
    async with ensemble() as (leader, learner):
        await connect(learner, leader)
        written: list[bytes] = []
        transport = leader.link.transport
        assert transport is not None
        spy = _Spy(transport, written)
        leader.link.transport = spy  # type: ignore[assignment]
        messages = [Ping(1), proposal(1, 50), Commit(1)]
        for each in messages:
            leader.call("tell", leader.link, each)
        assert not written
        await until(lambda: len(learner.received) == 3)
        assert written == [b"".join(map(encoded, messages))]
        assert learner.reads == 1


async def test_what_goes_to_several_learners_is_encoded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with ensemble(3) as (leader, one, two):
        await connect(one, leader)
        await connect(two, leader)
        encodings: list[Any] = []
        original = peer_links.encode_message

        def encode(message: Any, *form: int) -> Any:
            encodings.append(message)
            return original(message, *form)

        monkeypatch.setattr(peer_links, "encode_message", encode)
        message, equal = proposal(1, 50), proposal(1, 50)
        for each in (message, equal):
            for link, _ in leader.opened:
                leader.call("tell", link, each, 1)
        leader.call("tell", leader.link, equal, 2)
        await until(lambda: (len(one.received), len(two.received)) == (2, 3))
        assert len(encodings) == 3


async def test_nagle_waits_for_nobody() -> None:
    async with ensemble() as (leader, learner):
        await connect(learner, leader)
        for each in (leader, learner):
            assert each.link.transport is not None
            found = each.link.transport.get_extra_info("socket")
            assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_server_that_is_gone_is_heard_at_once_at_both_ends() -> None:
    for killed, other in ((0, 1), (1, 0)):
        async with ensemble() as servers:
            await connect(servers[1], servers[0])
            link = servers[other].link
            await servers[killed].close()
            await until(lambda: bool(servers[other].lost))  # noqa: B023
            assert servers[other].lost == [link]
            servers[other].call("tell", link, Ping(1))
            servers[other].call("close_link", link, "too late")


@pytest.mark.parametrize("we_dial", [False, True])
async def test_an_end_is_heard_with_the_last_read_whatever_is_unsent(
    we_dial: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = peer_link.DialledLink if we_dial else peer_link.AcceptedLink
    original = cls.eof_received
    heard_in_the_same_turn: list[bool] = []
    async with ensemble() as servers:
        leader, learner = servers
        await connect(learner, leader)
        here, there = (learner, leader) if we_dial else (leader, learner)

        def eof_received(link: Any) -> None:
            original(link)
            heard_in_the_same_turn.append(here.lost == [link])

        monkeypatch.setattr(cls, "eof_received", eof_received)
        assert there.link.transport is not None
        there.link.transport.pause_reading()
        for zxid in range(1, 9):
            message = Ack(zxid) if we_dial else proposal(zxid, 1 << 20)
            here.call("tell", here.link, message)
        there.call("tell", there.link, Ping(5) if we_dial else Pong(5))
        there.link.flush()
        there.link.transport.write_eof()
        await until(lambda: bool(here.lost))
        assert heard_in_the_same_turn == [True]
        assert here.messages == [Ping(5) if we_dial else Pong(5)]


async def test_close_link_sends_what_was_told_and_tells_only_the_other() -> None:
    async with ensemble() as (leader, learner):
        await connect(learner, leader)
        link = leader.link
        leader.call("tell", link, Ping(1))
        leader.call("close_link", link, "enough")
        leader.call("close_link", link, "enough")
        leader.call("tell", link, Ping(2))
        await until(lambda: bool(learner.lost))
        assert learner.messages == [Ping(1)]
        await until(lambda: link.transport is None or link.transport.is_closing())
        assert not leader.lost


async def test_a_learner_that_dials_again_and_again_keeps_its_newest_links() -> None:
    async with ensemble() as (leader, learner):
        most = peer_links.MAX_CALLS[LEARNER]
        for _ in range(most + 2):
            await connect(learner, leader)
        await until(lambda: len(leader.lost) == len(learner.lost) == 2)
        assert leader.lost == [link for link, _ in leader.opened[:2]]


async def test_a_reader_that_is_too_slow_is_dropped() -> None:
    async with ensemble(max_unsent_bytes=1 << 20) as (leader, _):
        slow = await Hand.dial(leader, hello(2, LEARNER))
        await slow.welcomed()
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        zxid = 0
        while not leader.lost:
            zxid += 1
            assert zxid < 200
            leader.call("tell", leader.link, proposal(zxid, 1 << 20))
            await asyncio.sleep(0)
        assert "too slow" in str(leader.lost[0].close_reason)
        await slow.hang_up()


# ---- dials that come to nothing -----------------------------------------------------------------


async def test_a_dial_to_nobody_fails_once() -> None:
    async with ensemble(1) as (server,):
        with _taken_port() as port:
            server.call("set_members", {1: (HOST, server.links.port), 2: (HOST, port)})
            server.call("dial", 2)
            assert not server.failed
            await until(lambda: bool(server.failed))
            server.call("dial", 3)
            await until(lambda: len(server.failed) == 2)
        assert server.failed == [2, 3]
        assert server.log.events == ["leader_not_reached"] * 2
        assert "its address is not known here" in server.log.records[-1][2]["reason"]


async def test_a_server_of_no_members_is_dialled_where_it_said_that_it_is() -> None:
    async with ensemble(2) as (server, other):
        stranger = await Hand.dial(server, hello(9, ELECTION, port=other.links.port))
        await stranger.welcomed()
        server.call("dial", 9)
        await until(lambda: bool(server.failed))  # It is 2 that answers there: it was reached.
        assert "dialled server 9, and server 2 answered" in server.log.records[-1][2]["reason"]
        await stranger.hang_up()


async def test_a_server_that_has_moved_is_dialled_where_it_is_now() -> None:
    """Where our members say that it is, nobody listens any more; it has called since."""
    async with ensemble(2) as (server, other):
        with _taken_port() as port:
            server.call("set_members", {2: (HOST, port)})
            moved = await Hand.dial(server, hello(2, ELECTION, port=other.links.port))
            await moved.welcomed()
            server.call("dial", 2)
            await until(lambda: bool(server.failed))
            server.call("dial", 2)
            await until(lambda: bool(server.opened))
            await moved.hang_up()


@pytest.mark.parametrize("host", ["no such host", "a" * 64 + ".example", "host..example"])
async def test_a_name_that_is_none_fails_the_dial(host: str) -> None:
    async with ensemble(1) as (server,):
        server.call("set_members", {1: (HOST, server.links.port), 2: (host, 7001)})
        server.call("dial", 2)
        await until(lambda: bool(server.failed))
        assert server.failed == [2]


async def test_a_server_that_does_not_answer_in_time_fails_the_dial() -> None:
    async with ensemble(1, dial_timeout_ms=30) as (server,):
        listener = socket.create_server((HOST, 0))
        port = listener.getsockname()[1]
        server.call("set_members", {1: (HOST, server.links.port), 2: (HOST, port)})
        server.call("dial", 2)
        await until(lambda: bool(server.failed))
        assert server.reasons == ["no answer within 30 ms"]
        listener.close()


async def test_a_dial_that_reaches_another_server_fails() -> None:
    async with ensemble(3) as (one, two, three):
        one.call("set_members", {1: (HOST, one.links.port), 2: (HOST, three.links.port)})
        one.call("dial", 2)
        await until(lambda: one.failed == [2])
        assert one.reasons == ["dialled server 2, and server 3 answered"]
        await until(lambda: bool(three.lost))  # it had welcomed us
        assert not two.opened


async def test_a_dial_into_another_ensemble_fails_and_both_say_so_once() -> None:
    async with ensemble(1) as (one,):
        other = Server(2, ensemble_id=ENSEMBLE_ID + 1)
        await other.links.start()
        introduce([one, other])
        for count in range(1, 6):
            one.call("dial", 2)
            await until(lambda: len(one.failed) == count)  # noqa: B023
        assert len(one.reasons) == len(other.reasons) == 1
        assert "another ensemble" in one.reasons[0]
        assert "another ensemble" in other.reasons[0]
        assert not other.opened
        one.clock.advance(60_000)
        one.call("dial", 2)
        await until(lambda: len(one.failed) == 6)
        assert one.log.records[-1][2]["left_out"] == 4
        await other.close()


# ---- elections ----------------------------------------------------------------------------------


async def test_servers_hear_each_others_notifications_over_connections_that_stay() -> None:
    async with ensemble(3) as servers:
        for number in range(1, 4):
            for each in servers:
                for other in servers:
                    if other is not each:
                        each.call("notify", other.server_id, vote(number))
            await until(lambda: all(len(each.heard) == 2 * number for each in servers))  # noqa: B023
        for each in servers:
            for other in {1, 2, 3} - {each.server_id}:
                said = [what.election_round for who, what in each.heard if who == other]
                assert said == [1, 2, 3]
            assert len(each.links._accepted) == len(each.links._dialled) == 2
            assert not each.opened
            assert not each.log.records


async def test_the_newest_notification_waits_until_its_server_is_there() -> None:
    with _taken_port() as port:
        one = Server(1)
        await one.links.start()
        addresses = {1: (HOST, one.links.port), 2: (HOST, port)}
        one.call("set_members", addresses)
        for number in (1, 2, 3):
            one.call("notify", 2, vote(number))
        speaker = one.links._speakers[2]
        await until(lambda: speaker.pause_s > 4 * peer_links.FIRST_PAUSE_S)
        assert one.reasons and len(one.reasons) == 1, one.reasons
        one.call("notify", 2, vote(4))
    two = Server(2, addresses)
    await two.links.start()
    await until(lambda: bool(two.heard))
    assert two.heard == [(1, vote(4))]
    assert speaker.waiting is None
    assert speaker.pause_s == peer_links.FIRST_PAUSE_S
    await one.close()
    await two.close()


async def test_a_server_that_comes_back_is_told_again() -> None:
    async with ensemble() as (one, two):
        one.call("notify", 2, vote(1))
        await until(lambda: bool(two.heard))
        await two.close()
        speaker = one.links._speakers[2]
        await until(lambda: speaker.link is None)
        addresses = {1: (HOST, one.links.port), 2: (HOST, two.links.port)}
        again = Server(2, addresses)
        await again.links.start()
        one.call("notify", 2, vote(2))
        await until(lambda: again.heard == [(1, vote(2))])
        await again.close()


async def test_the_second_connection_of_a_server_replaces_its_first() -> None:
    async with ensemble() as (server, _):
        first = await Hand.dial(server, hello(2, ELECTION))
        await first.welcomed()
        second = await Hand.dial(server, hello(2, ELECTION))
        await second.welcomed()
        first.say(encoded(vote(1)))
        second.say(encoded(vote(2)))
        await until(lambda: bool(server.heard))
        assert await first.rest() == b""
        assert server.heard == [(2, vote(2))]
        await second.hang_up()
        await until(lambda: not server.links._accepted)
        assert not server.links._calls


@pytest.mark.parametrize("purpose", [ELECTION, LEARNER])
async def test_an_id_that_calls_from_two_addresses_is_told_of(purpose: PeerPurpose) -> None:
    """Its configuration was copied to another machine: what both say of themselves is the same."""
    async with ensemble() as (server, _):
        callers = []
        for source in ("127.0.0.1", "127.0.0.1", "127.0.0.2"):
            assert not server.log.records
            callers.append(await Hand.dial(server, hello(2, purpose, port=7), source=source))
            await callers[-1].welcomed()
        [(level, event, told)] = server.log.records
        assert (level, event, told["server"]) == ("warning", "id_taken_twice", 2)
        assert told["reason"].startswith("calls from 127.0.0.2 while one from 127.0.0.1 is open: ")
        for each in callers:
            await each.hang_up()


async def test_a_server_that_calls_from_elsewhere_once_it_is_gone_has_moved() -> None:
    async with ensemble() as (server, _):
        for source in ("127.0.0.1", "127.0.0.2"):
            caller = await Hand.dial(server, hello(2, ELECTION), source=source)
            await caller.welcomed()
            await caller.hang_up()
            await until(lambda: not server.links._accepted)
        assert not server.log.records


async def test_an_election_is_told_at_the_new_address_of_a_server() -> None:
    async with ensemble() as (one, old):
        one.call("notify", 2, vote(1))
        await until(lambda: bool(old.heard))
        new = Server(2)
        await new.links.start()
        introduce([one, new])
        one.call("notify", 2, vote(2))
        await until(lambda: new.heard == [(1, vote(2))])
        await new.close()


async def test_a_server_that_nobody_knows_is_heard_and_answered_by_its_own_connection() -> None:
    """It is about to join."""
    async with ensemble(2) as (one, _):
        joining = Server(9)
        await joining.links.start()
        address = (HOST, one.links.port)
        joining.call("set_members", {1: address, 9: (HOST, joining.links.port)})
        joining.call("notify", 1, vote(1))
        await until(lambda: one.heard == [(9, vote(1))])
        one.call("notify", 9, vote(2))
        await until(lambda: joining.heard == [(1, vote(2))])
        one.call("notify", 8, vote(3))  # that has not even called: nothing happens
        await joining.close()


async def test_what_an_older_server_does_not_know_is_not_said_to_it() -> None:
    """A rolling upgrade: each two speak the lower of their versions, whoever has dialled."""
    async with ensemble(2) as (one, two), server(3, version=0) as older, server(9) as joining:
        servers = [one, two, older]
        introduce(servers)
        joining.call("set_members", {3: (HOST, older.links.port), 9: (HOST, joining.links.port)})
        word = vote(1)._replace(names_members=True)
        for each in servers:
            for other in servers:
                if other is not each:
                    each.call("notify", other.server_id, word)
        joining.call("notify", 3, word)
        await until(lambda: [len(each.heard) for each in servers] == [2, 2, 3])
        older.call("notify", 9, word)  # over the connection of the other
        await until(lambda: bool(joining.heard))
        assert sorted(one.heard) == [(2, word), (3, vote(1))]
        assert sorted(two.heard) == [(1, word), (3, vote(1))]
        assert sorted(older.heard) == [(1, vote(1)), (2, vote(1)), (9, vote(1))]
        assert joining.heard == [(3, vote(1))]
        assert not any(each.log.records for each in (*servers, joining))


@pytest.mark.parametrize("leader_version", [0, 1])
async def test_a_learner_and_a_leader_of_two_versions_speak_the_lower_one(
    leader_version: int,
) -> None:
    async with (
        server(1, version=leader_version) as leader,
        server(2, version=1 - leader_version) as learner,
    ):
        introduce([leader, learner])
        await connect(learner, leader)
        assert (leader.link.version, learner.link.version) == (0, 0)


async def test_a_leader_tells_each_learner_in_the_version_of_its_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What if pings had a field since version 1?"""
    key, _ = PEER_MESSAGES[Ping]
    newer = PeerMessageType(key, Schema(Ping, since(1, INT64, 77)))
    monkeypatch.setitem(PEER_MESSAGES, Ping, newer)
    monkeypatch.setitem(PEER_MESSAGES_BY_KEY, key, newer)
    async with ensemble(2) as (leader, learner), server(3, version=0) as older:
        introduce([leader, learner, older])
        await connect(learner, leader)
        await connect(older, leader)
        for _ in range(2):
            ping = Ping(5)
            for link, _ in leader.opened:
                leader.call("tell", link, ping)
        await until(lambda: len(learner.received) == len(older.received) == 2)
        assert learner.messages == [Ping(5), Ping(5)]
        assert older.messages == [Ping(77), Ping(77)]


async def test_what_is_not_even_received_ends_a_link_of_elections() -> None:
    if USER_TIMEOUT is None:
        pytest.skip("the system has no TCP_USER_TIMEOUT")
    async with ensemble(dial_timeout_ms=12_345) as (one, two):
        one.call("notify", 2, vote(1))
        await until(lambda: bool(two.heard))
        link = one.links._speakers[2].link
        assert link is not None and link.transport is not None
        found = link.transport.get_extra_info("socket")
        assert found.getsockopt(socket.IPPROTO_TCP, USER_TIMEOUT) == 12_345


# ---- strangers ----------------------------------------------------------------------------------

_REFUSED = (
    (hello(2, LEARNER, ENSEMBLE_ID + 1), RefusalReason.WRONG_ENSEMBLE),
    (hello(1, LEARNER), RefusalReason.SAME_ID),
    (PREAMBLE + encoded(vote(1)), RefusalReason.NOT_A_HELLO),
    (PREAMBLE + encoded(Ping(1)), RefusalReason.NOT_A_HELLO),
    (PREAMBLE + b"\0\0\0\4ABCD", RefusalReason.NOT_A_HELLO),
    (PREAMBLE + b"\xff" * 100, RefusalReason.NOT_A_HELLO),
    (hello(2, LEARNER) + encoded(FollowerInfo(2, 0, 1)), RefusalReason.NOT_A_HELLO),
)


@pytest.mark.parametrize("first, reason", _REFUSED)
async def test_who_does_not_belong_here_hears_why(first: bytes, reason: RefusalReason) -> None:
    async with ensemble() as (server, _):
        stranger = await Hand.dial(server, first)
        (answer,) = await stranger.answers()
        assert isinstance(answer, PeerRefusal)
        assert answer.reason == reason
        await until(lambda: not server.links._accepted)
        assert server.reasons == [answer.message]
        assert not server.opened and not server.links._strangers


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n\r\n", b"ruok", b"\x16\x03\x01\2\0\1", bytes(44), b"DUO1\7\0\0\0"]
)
async def test_who_speaks_another_language_is_closed_without_a_word(first: bytes) -> None:
    async with ensemble() as (server, _):
        stranger = await Hand.dial(server, first)
        assert await stranger.rest() == b""
        await until(lambda: not server.links._accepted)
        assert len(server.reasons) == 1
        assert not server.opened


async def test_who_says_nothing_is_dropped_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_links, "HELLO_S", 0.01)
    async with ensemble() as (server, _):
        for first in (b"", PREAMBLE, hello(2, LEARNER)[:-1]):
            stranger = await Hand.dial(server, first)
            assert await stranger.rest() == b""
        assert server.reasons == ["no hello within 0.01 s"]
        assert not server.links._strangers
        monkeypatch.undo()
        stranger = await Hand.dial(server, hello(2, LEARNER))
        await stranger.welcomed()
        await until(lambda: bool(server.opened))
        assert not server.lost
        await stranger.hang_up()


async def test_the_oldest_of_too_many_strangers_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_links, "MAX_STRANGERS", 3)
    async with ensemble() as (server, learner):
        strangers = []
        for count in range(1, 4):
            strangers.append(await Hand.dial(server))
            await until(lambda: len(server.links._strangers) == count)  # noqa: B023
        await connect(learner, server)
        assert await strangers[0].rest() == b""
        assert len(server.links._strangers) == 2
        for each in strangers[1:]:
            await each.hang_up()


async def test_strangers_with_ever_new_words_make_no_storm_of_lines() -> None:
    async with ensemble() as (server, _):
        for number in range(50):
            await (await Hand.dial(server, hello(9, LEARNER, 1000 + number))).answers()
        assert len(server.reasons) <= 4


async def test_bytes_at_random_bring_nothing_but_a_close() -> None:
    rng = random.Random(5)
    starts = (b"", PREAMBLE, hello(2, LEARNER), hello(2, ELECTION), hello(9, LEARNER))
    sound = [FollowerInfo(2, 1, 1), Ack(3), Pong(1), vote(2), Ping(1), proposal(1, 30, 3)]
    async with ensemble() as (server, learner):
        for number in range(300):
            start = rng.choice(starts)
            rest = b"".join(encoded(rng.choice(sound)) for _ in range(rng.randrange(4)))
            if number % 3 == 0:
                rest = rng.randbytes(rng.randrange(1, 200))
            elif number % 3 == 1 and rest:
                place = rng.randrange(len(rest))
                rest = rest[:place] + rng.randbytes(1) + rest[place + 1 :]
            stranger = await Hand.dial(server, start)
            if start in starts[2:] and number % 2:
                await stranger.welcomed()
            stranger.say(rest)
            with contextlib.suppress(OSError):
                stranger.writer.write_eof()
            await stranger.rest()
        await until(lambda: not server.links._accepted)
        assert not server.links._strangers and not server.links._calls and not server.links._open
        assert len(server.lost) == len(server.opened)
        await connect(learner, server)


# ---- beginning and end --------------------------------------------------------------------------


async def test_a_port_that_is_taken_is_a_wrong_setting() -> None:
    async with ensemble(1) as (one,):
        other = Server(1, {1: (HOST, one.links.port)})
        with pytest.raises(ConfigError, match="servers"):
            await other.links.start()
        await other.close()


async def test_nothing_is_heard_after_the_close() -> None:
    async with ensemble(3) as (one, two, three):
        await connect(two, one)
        await connect(three, one)
        three.call("notify", 1, vote(1))
        await until(lambda: bool(one.heard))
        one.call("dial", 2)
        one.call("dial", 9)
        one.call("notify", 3, vote(2))
        two.call("tell", two.link, FollowerInfo(2, 0, 1))
        await one.close()
        await one.close()
        one.call("dial", 2)
        one.call("notify", 2, vote(3))
        await until(lambda: bool(two.lost) and bool(three.lost))
        assert not three.heard


async def test_the_owner_may_close_while_it_is_called() -> None:
    async with ensemble() as (server, _):
        server.close_at_notification = True
        caller = await Hand.dial(server, hello(2, ELECTION))
        await caller.welcomed()
        caller.say(b"".join(encoded(vote(number)) for number in (1, 2, 3)))
        await caller.rest()
        assert server.heard == [(2, vote(1))]


class _Spy:
    """A transport that keeps what is written."""

    def __init__(self, transport: asyncio.Transport, written: list[bytes]) -> None:
        self._transport = transport
        self._written = written

    def write(self, data: bytes) -> None:
        self._written.append(bytes(data))
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@contextlib.contextmanager
def _taken_port() -> Any:
    """A port on which nobody listens, and that nobody else is given."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((HOST, 0))
        yield taken.getsockname()[1]
