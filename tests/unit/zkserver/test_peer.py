"""How the role of a server changes, and what it may vote with. ZR and Z: reliability.md."""

from __future__ import annotations

import pytest

from duolog_protocol.quorum_messages import (
    Ack,
    FollowerInfo,
    LeaderInfo,
    NewLeaderAck,
    Notification,
    PeerState,
    Vote,
)
from duolog_protocol.types import make_zxid
from zkserver.core.members import Member
from zkserver.core.membership import membership_of
from zkserver.core.peer_events import (
    DialFailed,
    LinkLost,
    LinkOpened,
    MessageReceived,
    NotificationReceived,
    PeerTimerFired,
)
from zkserver.core.roles import MAX_CALLERS_PER_SERVER

from .peer_support import DEFAULTS, Ensemble, Link, Server, established

# --- From the start to a committed record ---------------------------------------------------------


def test_one_server_elects_itself_serves_and_commits() -> None:
    ensemble = Ensemble(1)
    ensemble.start()
    assert ensemble[1].is_leading and not ensemble[1].peer.is_established
    ensemble[1].do_disk(1)
    assert ensemble[1].accepted_epoch == 1 and ensemble[1].serving is None
    ensemble[1].do_disk(1)
    assert ensemble[1].serving == (1, 1)
    ensemble[1].propose(b"a")
    assert ensemble[1].applied == []
    ensemble[1].do_disk(1)
    assert ensemble[1].applied == [b"1.0 a"]
    ensemble[1].kill()
    ensemble[1].start()
    ensemble[1].do_disk()
    assert ensemble[1].serving == (2, 1) and ensemble[1].applied == [b"1.0 a"]


def test_all_servers_serve_one_epoch_and_apply_what_is_committed_in_it() -> None:
    """Z1, Z2, Z4, Z6."""
    ensemble = established(5, 2)
    records = [*ensemble[5].propose(b"a", b"b"), *ensemble[5].propose(b"c")]
    ensemble.settle()
    assert [each.applied for each in ensemble.servers.values()] == [records] * 7


def test_a_new_leader_has_everything_that_was_committed() -> None:
    """Z13, Z9: the leader dies, and one follower had nothing of it."""
    ensemble = established()
    ensemble.cut(1, 3)
    ensemble[3].propose(b"a")
    ensemble.settle()
    assert ensemble[3].applied == [b"1.0 a"]
    ensemble[3].kill()
    ensemble.advance(2_000)
    assert ensemble.leader is ensemble[2]
    assert ensemble[1].applied == ensemble[2].applied == [b"1.0 a"]
    ensemble[2].propose(b"b")
    ensemble.settle()
    ensemble.heal(1, 3)
    ensemble[3].start()
    ensemble.advance(1_000)
    assert [each.applied for each in ensemble.servers.values()] == [[b"1.0 a", b"2.0 b"]] * 3


def test_what_a_deposed_leader_proposes_never_commits() -> None:
    """ZR1 (Z-1154, Z-2832), Z2: it does not know yet that the others have a new leader."""
    ensemble = established()
    ensemble.cut(1, 3)
    ensemble.cut(2, 3)
    for each in (1, 2):
        ensemble[each].step(LinkLost(ensemble.link_of(each, 3)))
    ensemble.advance(1_000)
    assert ensemble[2].serving == (2, 2) and ensemble[3].serving == (1, 3)
    ensemble[3].propose(b"lost")
    ensemble[2].propose(b"kept")
    ensemble.settle()
    assert ensemble[3].log == [b"1.0 lost"] and ensemble[3].applied == []
    ensemble.advance(DEFAULTS.sync_limit_ms)
    assert ensemble[3].serving is None
    ensemble.heal(1, 3)
    ensemble.heal(2, 3)
    ensemble.advance(DEFAULTS.notification_last_ms * 2)
    assert [each.log for each in ensemble.servers.values()] == [[b"2.0 kept"]] * 3
    assert ensemble.delivered == [b"2.0 kept"]


def test_a_record_of_a_leader_that_died_with_it_is_truncated_before_it_is_applied() -> None:
    """ZR1: all die; the others come back first and commit, then it returns."""
    ensemble = established()
    ensemble[3].propose(b"lost")
    ensemble[3].do_disk()
    for each in (1, 2, 3):
        ensemble[each].kill()
    ensemble.start(1, 2)
    ensemble.settle()
    ensemble.leader.propose(b"kept")
    ensemble.settle()
    ensemble[3].start()
    ensemble.advance(1_000)
    assert ensemble[3].log == ensemble[3].applied == [b"2.0 kept"]


def test_a_minority_has_no_leader_however_long_it_waits() -> None:
    ensemble = Ensemble(5)
    ensemble.start(1, 2)
    ensemble.advance(20_000)
    assert ensemble[1].is_looking and ensemble[2].is_looking
    assert ensemble[1].accepted_epoch == 0


# --- The vote -------------------------------------------------------------------------------------


def test_a_vote_waits_for_the_disk_and_names_what_is_durable_then() -> None:
    """ZR9, ZR10 (Z-4785, Z-4712, Z-4541), A.6.8: the last role's log writer still runs."""
    ensemble = established()
    ensemble[3].propose(b"a")
    ensemble[3].propose(b"b")
    ensemble.deliver(3, 1)
    said = len(ensemble[1].notified)
    ensemble.lose_link(1, 3)
    ensemble[1].do_disk(1)
    assert ensemble[1].peer.role == PeerState.LOOKING
    assert len(ensemble[1].notified) == said, "it votes while its log is written"
    assert ensemble[1].peer.deadline_ms() is None
    ensemble[1].do_disk(1)
    assert ensemble[1].notified[said].vote == Vote(1, make_zxid(1, 1), 1)
    assert ensemble[1].messages(Ack) == [], "of a term that is over"


@pytest.mark.parametrize("is_leader", [False, True])
def test_a_promise_that_is_on_its_way_to_the_disk_outlives_its_term(is_leader: bool) -> None:
    """ZR10, Z20: the next role begins when it is durable, and never promises less."""
    ensemble = Ensemble()
    ensemble.start()
    for each in (1, 2):
        ensemble.deliver(each, 3)
    if is_leader:
        server = ensemble[3]
        ensemble.advance(DEFAULTS.init_limit_ms, quiet=False)
    else:
        server = ensemble[1]
        ensemble[3].do_disk()
        assert ensemble.deliver(3, 1) == [LeaderInfo(1)]
        ensemble.lose_link(1, 3)
    said = len(server.notified)
    assert len(server.disk) == 1 and server.is_looking
    ensemble.gossip()
    assert len(server.notified) == said
    server.do_disk()
    assert server.accepted_epoch == server.peer.accepted_epoch == 1
    assert server.notified[said].state is PeerState.LOOKING
    ensemble.advance(2 * DEFAULTS.init_limit_ms)
    assert len(set(ensemble.serving().values())) == 1 and ensemble[1].serving


def test_an_epoch_whose_history_did_not_fit_on_the_disk_is_not_adopted() -> None:
    """ZR12 (Z-4882), ZR6: `AdoptEpoch` stands behind the append that is refused."""
    ensemble = Ensemble()
    ensemble[3].holds(b"1.0 a", accepted=1, current=1)
    ensemble.start()
    ensemble.settle(without_disk_of=1)
    ensemble[1].do_disk(1)
    ensemble.settle(without_disk_of=1)
    assert len(ensemble[1].disk) == 2
    ensemble[1].is_full = True
    said = len(ensemble[1].notified)
    ensemble[1].do_disk(1)
    assert not ensemble[1].disk and ensemble[1].peer.current_epoch == 0
    assert ensemble[1].messages(NewLeaderAck, Ack) == []
    assert ensemble[1].notified[said].vote == Vote(0, 0, 1)
    ensemble[1].is_full = False
    ensemble.settle()
    assert ensemble[1].applied == [b"1.0 a"] and ensemble[1].current_epoch == 2


def test_a_refused_append_takes_back_everything_behind_it() -> None:
    """ZR12: memory does not run ahead of the disk, whatever has been proposed since."""
    ensemble = established()
    for word in (b"a", b"b", b"c"):
        ensemble[3].propose(word)
    ensemble.deliver(3, 1)
    ensemble[1].do_disk(1)
    ensemble[1].is_full = True
    ensemble[1].do_disk()
    assert ensemble[1].log == [b"1.0 a"]
    assert ensemble[1].peer.last_logged_zxid == make_zxid(1, 0)
    assert ensemble[1].notified[-1].vote == Vote(1, make_zxid(1, 0), 1)
    ensemble[1].is_full = False
    ensemble.settle()
    assert ensemble[1].applied == [b"1.0 a", b"1.1 b", b"1.2 c"]


def test_a_refusal_may_come_after_the_term_has_ended() -> None:
    ensemble = established()
    ensemble[3].propose(b"a")
    ensemble.deliver(3, 1)
    ensemble.lose_link(1, 3)
    ensemble[1].is_full = True
    said = len(ensemble[1].notified)
    ensemble[1].do_disk()
    assert ensemble[1].notified[said].vote == Vote(1, 0, 1)


def test_a_late_joiner_finds_the_leader_from_whatever_round() -> None:
    """ZR24 (Z-1818): its round and its vote are others than those of the election."""
    ensemble = established()
    for _ in range(5):
        ensemble.lose_link(1, 3)
        ensemble.settle()
        ensemble.advance(DEFAULTS.back_off_last_ms)
        assert ensemble[1].serving == (1, 3)
    ensemble[2].kill()
    ensemble[2].start()
    ensemble.settle()
    assert set(ensemble.serving().values()) == {(1, 3)}


def test_an_established_server_answers_with_the_epoch_it_serves() -> None:
    """A.2: late joiners see one vote."""
    ensemble = established(3, 1)
    for each in (1, 2, 3, 4):
        question = Notification(PeerState.LOOKING, Vote(1, 0, 1), 9)
        ensemble[each].step(NotificationReceived(1 if each != 1 else 2, question))
    states = [ensemble[each].notified[-1].state for each in (1, 2, 3, 4)]
    assert states == [
        PeerState.FOLLOWING,
        PeerState.FOLLOWING,
        PeerState.LEADING,
        PeerState.OBSERVING,
    ]
    assert {ensemble[each].notified[-1].vote.epoch for each in (1, 2, 3, 4)} == {1}


# --- Links of no term -----------------------------------------------------------------------------


def call(ensemble: Ensemble, caller_id: int, called_id: int, accepted_epoch: int = 0) -> Link:
    """A learner whose election has ended sooner than ours dials and introduces itself."""
    link = Link(caller_id, called_id)
    ensemble.links.append(link)
    ensemble[called_id].step(LinkOpened(link, 0))
    message = FollowerInfo(caller_id, accepted_epoch, 1)
    ensemble[called_id].step(MessageReceived(link, message))
    return link


def elect(ensemble: Ensemble, leader_id: int, *voter_ids: int) -> None:
    """`leader_id`, which looks, hears that these vote for it, and waits for more."""
    for each in voter_ids:
        vote = Notification(PeerState.LOOKING, Vote(0, 0, leader_id), 1)
        ensemble[leader_id].step(NotificationReceived(each, vote))
    ensemble.advance(DEFAULTS.finalize_wait_ms, quiet=False)


def test_who_calls_before_the_election_has_ended_here_is_served_after_it() -> None:
    """ZR28."""
    ensemble = Ensemble()
    ensemble[3].start()
    link = call(ensemble, 1, 3)
    assert 3 in link.open and not ensemble[3].disk
    elect(ensemble, 3, 1)
    ensemble[3].do_disk()
    assert ensemble[3].told == [(1, LeaderInfo(1))]


def test_who_was_elected_by_others_in_vain_does_not_stand_in_the_next_election() -> None:
    """Its log holds a change of the members that theirs lack, and the new ones are not there."""
    ensemble = Ensemble()
    ensemble[3].start()
    links = [call(ensemble, each, 3) for each in (1, 2)]
    ensemble.advance(DEFAULTS.patience_ms - 1, quiet=False)
    assert all(3 in link.open for link in links)
    ensemble.advance(DEFAULTS.patience_ms + 1, quiet=False)
    assert not any(3 in link.open for link in links)
    vote = Notification(PeerState.LOOKING, Vote(0, 0, 2), 2)
    ensemble[3].step(NotificationReceived(1, vote))
    assert ensemble[3].notified[-1] == vote, "it votes for another one, though 3 is more than 2"


def test_who_was_elected_in_vain_again_while_it_did_not_stand_stands_in_the_election_after() -> (
    None
):
    """It did not tell that it stands, so that nobody had a reason to vote for another one."""
    ensemble = Ensemble()
    ensemble[3].start()
    for _ in range(2):
        link, end_ms = call(ensemble, 1, 3), ensemble.now_ms + 2 * DEFAULTS.patience_ms
        while 3 in link.open:
            assert ensemble.now_ms < end_ms
            ensemble.advance(20, quiet=False)
    said = ensemble[3].notified[-1]
    assert (said.state, said.vote) == (PeerState.LOOKING, Vote(0, 0, 3))
    for each in (1, 2):
        ensemble[3].step(NotificationReceived(each, said))
    ensemble.advance(DEFAULTS.finalize_wait_ms, quiet=False)
    assert ensemble[3].is_leading


def test_an_election_lasts_while_a_quorum_is_heard_that_elects_nobody_else() -> None:
    """Two of those five are not enough to begin with, whoever speaks; three are."""
    ensemble = Ensemble(5)
    ensemble[3].start()
    for _ in range(10):
        for each in (1, 2):
            vote = Notification(PeerState.LOOKING, Vote(0, 0, each), 1)
            ensemble[3].step(NotificationReceived(each, vote))
        ensemble.advance(10 * DEFAULTS.patience_ms, quiet=False)
    assert {each.election_round for each in ensemble[3].notified} == {1}


def test_who_hears_no_quorum_stands_in_every_second_election() -> None:
    """Others may hear it that it does not hear, and vote for it though it cannot win."""
    ensemble = Ensemble(5)
    ensemble[3].start()
    stood = []
    for _ in range(20):
        vote = Notification(PeerState.LOOKING, Vote(0, 0, 1), 1)
        ensemble[3].step(NotificationReceived(1, vote))
        ensemble.advance(DEFAULTS.patience_ms // 2, quiet=False)
        stands = ensemble[3].notified[-1].vote == Vote(0, 0, 3)
        if not stood or stood[-1] != stands:
            stood.append(stands)
    assert len(stood) > 4 and stood[0]


@pytest.mark.parametrize("alone_ms", range(0, 12_000, 400))
def test_the_best_server_stands_when_a_quorum_comes_however_long_it_was_alone(
    alone_ms: int,
) -> None:
    ensemble = Ensemble()
    log = [b"1.0 a", b"1.1 b"]
    ensemble.delivered = log
    ensemble[3].holds(*log, accepted=1, current=1).start()
    ensemble[1].holds(*log[:1], accepted=1, current=1)
    ensemble.advance(alone_ms)
    ensemble[1].start()
    ensemble.advance(DEFAULTS.finalize_wait_ms)
    assert ensemble[3].is_leading


def test_who_was_alone_does_not_take_back_a_vote_by_which_one_may_be_elected() -> None:
    """Its vote makes all four agree on 4, which then waits for it in that round."""
    ensemble = Ensemble(4)
    ensemble[1].start()
    while ensemble[1].notified[-1].vote.server_id:
        ensemble.advance(20, quiet=False)
    named = Vote(0, 0, 4)
    for each in (3, 2):
        ensemble[1].step(NotificationReceived(each, Notification(PeerState.LOOKING, named, 9)))
    assert ensemble[1].notified[-1].vote == named
    leads = Notification(PeerState.LEADING, named, 9)
    ensemble[1].step(NotificationReceived(4, leads))
    assert ensemble[1].peer.leader_id == 4


def test_after_long_without_a_leader_every_second_election_is_about_outsiders_too() -> None:
    """6 is none of the voters in this log; without the vote of 3 it may never be elected. With it
    3 may wait for it for ever, if 6 needs servers that are gone."""
    ensemble = Ensemble(6)
    ensemble.members = {b"first": membership_of([Member(each, "a", each) for each in range(1, 6)])}
    ensemble[3].holds(b"1.0 first", accepted=1, current=1).start()
    outsider = Vote(1, make_zxid(1, 9), 6)
    voted: dict[int, bool] = {}
    for _ in range(50):
        election_round = ensemble[3].notified[-1].election_round
        for each, named in ((4, Vote(0, 0, 4)), (2, outsider)):
            said = Notification(PeerState.LOOKING, named, election_round)
            ensemble[3].step(NotificationReceived(each, said))
        voted[election_round] = ensemble[3].notified[-1].vote == outsider
        ensemble.advance(DEFAULTS.patience_ms // 4, quiet=False)
    assert list(voted.values())[:5] == [False, True, False, True, False]


def test_a_follower_whose_leader_votes_for_another_one_looks_again_at_once() -> None:
    """It would wait for it as long as for a leader that is slow to start."""
    ensemble = Ensemble()
    ensemble[1].start()
    for each in (2, 3):
        vote = Notification(PeerState.LOOKING, Vote(0, 0, 3), 1)
        ensemble[1].step(NotificationReceived(each, vote))
    assert not ensemble[1].is_looking
    ensemble[1].step(NotificationReceived(3, Notification(PeerState.LOOKING, Vote(0, 0, 3), 1)))
    assert not ensemble[1].is_looking
    ensemble[1].step(NotificationReceived(3, Notification(PeerState.LOOKING, Vote(0, 9, 2), 1)))
    assert ensemble[1].is_looking


def test_who_calls_a_server_that_will_follow_is_sent_away() -> None:
    ensemble = Ensemble()
    ensemble[1].start()
    early = call(ensemble, 2, 1)
    vote = Notification(PeerState.LOOKING, Vote(0, 0, 3), 1)
    ensemble[1].step(NotificationReceived(2, vote))
    ensemble[1].step(NotificationReceived(3, vote))
    late = call(ensemble, 2, 1)
    assert 1 not in early.open and 1 not in late.open
    assert not ensemble[1].is_looking


def test_who_calls_and_does_not_wait_for_its_turn_is_sent_away() -> None:
    ensemble = Ensemble()
    ensemble[3].start()
    link = call(ensemble, 1, 3)
    ensemble[3].step(MessageReceived(link, NewLeaderAck(1)))
    assert 3 not in link.open


def test_callers_that_wait_are_bounded_and_the_oldest_ones_go() -> None:
    ensemble = Ensemble()
    ensemble[3].start()
    links = [call(ensemble, 1, 3) for _ in range(2 * MAX_CALLERS_PER_SERVER + 3)]
    assert [3 in link.open for link in links] == [False] * 3 + [True] * 2 * MAX_CALLERS_PER_SERVER


def test_when_a_caller_ends_the_term_at_once_no_caller_is_forgotten() -> None:
    """2 has promised more than the epoch that 3 opens as soon as 1 has introduced itself."""
    ensemble = Ensemble()
    ensemble[3].start()
    links = [call(ensemble, 1, 3), call(ensemble, 2, 3, accepted_epoch=7), call(ensemble, 1, 3)]
    elect(ensemble, 3, 1)
    assert ensemble[3].is_looking
    assert [3 in link.open for link in links] == [False] * 3


def test_a_link_that_is_opened_too_late_is_closed() -> None:
    ensemble = Ensemble()
    ensemble[1].start()
    link = Link(1, 3)
    ensemble[1].step(LinkOpened(link, 3))
    assert 1 not in link.open


def test_a_dial_of_an_earlier_term_that_fails_late_does_not_end_this_one() -> None:
    """A connect may take longer than a whole election."""
    ensemble = established()
    for each in (1, 2, 3):
        for called_id in (1, 2, 3):
            ensemble[each].step(DialFailed(called_id))
    assert set(ensemble.serving().values()) == {(1, 3)}


# --- What fails again and again -------------------------------------------------------------------


def terms_of(server: Server) -> int:
    return len(server.messages(FollowerInfo))


def test_a_follower_without_space_tries_less_and_less_often_and_comes_back_soon() -> None:
    """It is served, as it has everything, and is refused the next write: no success."""
    ensemble = established()
    ensemble[1].is_full = True
    counts = []
    for _ in range(20):
        before = terms_of(ensemble[1])
        for _ in range(10):
            ensemble[3].propose(b"a")
            ensemble.advance(100)
        counts.append(terms_of(ensemble[1]) - before)
    assert counts[0] >= 3, "the first pauses are short"
    assert all(1 <= sum(counts[i : i + 2]) <= 3 for i in range(4, 20, 2)), counts
    assert set(ensemble.serving().values()) >= {(1, 3)} and ensemble[3].is_leading
    ensemble[1].is_full = False
    ensemble.advance(DEFAULTS.back_off_last_ms + 100)
    assert ensemble[1].applied == ensemble[3].applied and ensemble[1].serving == (1, 3)


def test_a_term_that_has_lasted_is_a_success() -> None:
    ensemble = established()
    for _ in range(5):
        ensemble.advance(DEFAULTS.back_off_last_ms + 1)
        ensemble.lose_link(1, 3)
        ensemble.settle()
        assert ensemble[1].serving == (1, 3), "without a pause"


def advance_without_disk_of(ensemble: Ensemble, server_id: int, ms: int) -> None:
    """Let time pass for all, while nothing that one server asks of its disk is done."""
    for _ in range(ms // 50):
        ensemble.settle(without_disk_of=server_id)
        ensemble.now_ms += 50
        for server in ensemble.servers.values():
            server.step(PeerTimerFired())


def test_a_leader_whose_disk_hangs_leaves_it_to_the_others() -> None:
    ensemble = established()
    ensemble.advance(DEFAULTS.disk_limit_ms)
    ensemble[3].propose(b"a")
    advance_without_disk_of(ensemble, 3, DEFAULTS.disk_limit_ms)
    assert ensemble[3].is_leading
    advance_without_disk_of(ensemble, 3, 2 * DEFAULTS.ping_interval_ms)
    assert not ensemble[3].is_leading and "our disk" in ensemble[3].reasons[0]
    assert ensemble[3].peer.deadline_ms() is None, "it does not vote before the disk is done"
    advance_without_disk_of(ensemble, 3, DEFAULTS.notification_last_ms)
    assert ensemble.leader is ensemble[2] and ensemble[2].applied == [b"1.0 a"]
    ensemble.settle()
    ensemble.advance(DEFAULTS.notification_last_ms)
    assert ensemble[3].serving == (2, 2) and ensemble[3].applied == [b"1.0 a"]


def test_a_follower_whose_disk_hangs_keeps_nobody_waiting_and_heaps_nothing_up() -> None:
    ensemble = established()
    ensemble[3].propose(b"a")
    advance_without_disk_of(ensemble, 1, DEFAULTS.disk_limit_ms + 2 * DEFAULTS.ping_interval_ms)
    assert ensemble[1].serving is None and "our disk" in ensemble[1].reasons[0]
    assert ensemble[3].serving == ensemble[2].serving == (1, 3)


def test_a_slow_disk_that_gets_on_is_no_reason() -> None:
    ensemble = established()
    for _ in range(4):
        ensemble[3].propose(b"a")
        ensemble[3].propose(b"b")
        advance_without_disk_of(ensemble, 3, DEFAULTS.disk_limit_ms - 1_000)
        ensemble[3].do_disk(1)
    assert ensemble[3].is_leading and ensemble[3].disk
