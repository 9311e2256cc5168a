"""Fast leader election: stories of one server, of a few, and of many seeds."""

from __future__ import annotations

import pytest

from duolog_protocol.quorum_messages import Notification, PeerState, Vote
from zkserver.core.looking import NO_VOTE, Decision, Looking, reply_to_looking
from zkserver.core.members import Member
from zkserver.core.membership import Membership
from zkserver.core.peer_config import PeerConfig
from zkserver.core.quorum import Quorums

from .election_support import NEVER, Elector, Ensemble, World, config_of

LOOKING, FOLLOWING = PeerState.LOOKING, PeerState.FOLLOWING
LEADING, OBSERVING = PeerState.LEADING, PeerState.OBSERVING
WAIT_MS = PeerConfig(1, frozenset({1})).finalize_wait_ms
FIRST_MS = PeerConfig(1, frozenset({1})).notification_first_ms
SOME_MEMBERS = (Member(1, "a", 1),)
LAST_MS = PeerConfig(1, frozenset({1})).notification_last_ms


def vote(server_id: int, zxid: int = 0, epoch: int = 1) -> Vote:
    return Vote(epoch, zxid, server_id)


def looking(
    server_id: int,
    voter_count: int = 3,
    zxid: int = 0,
    election_round: int = 1,
    *,
    hears_outsiders: bool = False,
) -> Looking:
    """A server that has started, and whose first notifications are gone."""
    config = config_of(server_id, set(range(1, voter_count + 1)), {9})
    membership = Membership(config.voters, config.observers, members=SOME_MEMBERS)
    may_lead = server_id in config.voters
    own_vote = vote(server_id, zxid, epoch=1 if may_lead else 0)
    role = Looking(
        *(config, membership, NEVER, own_vote, election_round, 0),
        may_lead=may_lead,
        hears_outsiders=hears_outsiders,
    )
    role.start()
    role.take_notifications()
    return role


def told(role: Looking) -> dict[int, Notification]:
    return {each.server_id: each.notification for each in role.take_notifications()}


def ours(named: Vote, in_round: int) -> Notification:
    """What a server says that looks, and whose log names the members."""
    return Notification(LOOKING, named, in_round, True)


def hear(role: Looking, sender_id: int, state: PeerState, named: Vote, in_round: int = 1) -> None:
    role.on_notification(sender_id, Notification(state, named, in_round), 0)


# --- A few servers --------------------------------------------------------------------------------


def test_three_that_start_together_elect_the_best_at_once() -> None:
    ensemble = Ensemble({1: vote(1, 7), 2: vote(2, 9), 3: vote(3, 8)})
    ensemble.start(1, 2, 3)
    assert ensemble.leaders() == {1: 2, 2: 2, 3: 2}


def test_epoch_goes_before_zxid_and_zxid_before_id() -> None:
    ensemble = Ensemble({1: vote(1, 2, epoch=3), 2: vote(2, 9, epoch=2), 3: vote(3, 1, epoch=3)})
    ensemble.start(1, 2, 3)
    assert ensemble.leaders() == {1: 1, 2: 1, 3: 1}


def test_one_voter_is_its_own_quorum() -> None:
    ensemble = Ensemble({1: vote(1)})
    ensemble.start(1)
    assert ensemble.leaders() == {1: 1}


def test_a_quorum_waits_for_a_better_vote() -> None:
    ensemble = Ensemble({1: vote(1), 2: vote(2), 3: vote(3, 5)})
    ensemble.start(1, 2)
    ensemble.advance(WAIT_MS - 1)
    assert ensemble.leaders() == {1: 0, 2: 0, 3: 0}
    ensemble.start(3)
    assert ensemble.leaders() == {1: 3, 2: 3, 3: 3}


def test_who_comes_after_the_wait_follows_a_worse_one() -> None:
    ensemble = Ensemble({1: vote(1), 2: vote(2), 3: vote(3, 5)})
    ensemble.start(1, 2)
    ensemble.advance(WAIT_MS)
    assert ensemble.leaders() == {1: 2, 2: 2, 3: 0}
    ensemble.start(3)
    assert ensemble.leaders() == {1: 2, 2: 2, 3: 2}


def test_a_joiner_finds_a_leader_in_a_newer_epoch_and_takes_its_round() -> None:
    """Its round is its first one, or the fifth of its own; the others are in their first."""
    ensemble = Ensemble({1: vote(1), 2: vote(2), 3: vote(3, 5)})
    ensemble.start(1, 2)
    ensemble.advance(WAIT_MS)
    for each in (1, 2):
        ensemble.electors[each].lead_epoch(6)
    joiner = ensemble.electors[3]
    joiner.election_round = 4
    ensemble.start(3)
    assert joiner.settled == Notification(FOLLOWING, vote(2, epoch=6), 1)


def test_five_servers_of_which_two_are_dead() -> None:
    ensemble = Ensemble({each: vote(each) for each in range(1, 6)})
    ensemble.start(1, 3)
    ensemble.advance(1_000)
    assert set(ensemble.leaders().values()) == {0}
    ensemble.start(2)
    ensemble.advance(WAIT_MS)
    assert ensemble.leaders() == {1: 3, 2: 3, 3: 3, 4: 0, 5: 0}


def test_who_is_behind_in_rounds_catches_up() -> None:
    ensemble = Ensemble({1: vote(1), 2: vote(2), 3: vote(3)})
    ensemble.electors[1].election_round = 5
    ensemble.start(1, 2, 3)
    assert ensemble.leaders() == {1: 3, 2: 3, 3: 3}
    assert {each.election_round for each in ensemble.electors.values()} == {6}


def test_lost_notifications_are_sent_again() -> None:
    ensemble = Ensemble({1: vote(1), 2: vote(2), 3: vote(3)})
    ensemble.lossy = {(a, b) for a in (1, 2, 3) for b in (1, 2, 3)}
    ensemble.start(1, 2, 3)
    ensemble.advance(FIRST_MS - 1)
    assert set(ensemble.leaders().values()) == {0}
    ensemble.lossy.clear()
    ensemble.advance(1)
    assert ensemble.leaders() == {1: 3, 2: 3, 3: 3}


def test_two_that_hear_each_other_one_way_need_the_third() -> None:
    ensemble = Ensemble({1: vote(1), 2: vote(2), 3: vote(3)})
    ensemble.lossy = {(1, 3), (3, 1)}
    ensemble.start(1, 2, 3)
    assert ensemble.leaders() == {1: 0, 2: 3, 3: 0}
    ensemble.advance(WAIT_MS)
    assert ensemble.leaders() == {1: 3, 2: 3, 3: 3}


def test_an_observer_follows_the_election() -> None:
    ensemble = Ensemble({1: vote(1), 2: vote(2), 3: vote(3), 4: None}, frozenset({4}))
    ensemble.electors[4].election_round = 8
    ensemble.start(4, 1, 2, 3)
    assert ensemble.leaders() == {1: 3, 2: 3, 3: 3, 4: 3}
    assert ensemble.electors[4].settled == Notification(OBSERVING, vote(3), 1)


def test_an_observer_finds_an_established_leader() -> None:
    ensemble = Ensemble({1: vote(1), 2: vote(2), 3: vote(3), 4: None}, frozenset({4}))
    ensemble.start(1, 2, 3)
    ensemble.start(4)
    assert ensemble.leaders()[4] == 3


def test_observers_make_no_quorum_and_do_not_talk_to_each_other_for_ever() -> None:
    ensemble = Ensemble({1: vote(1), 2: vote(2), 4: None, 5: None}, frozenset({4, 5}))
    ensemble.start(1, 4, 5)
    ensemble.advance(500)
    assert set(ensemble.leaders().values()) == {0}


def test_who_does_not_know_that_it_is_a_voter_votes_for_whoever_asks() -> None:
    """Its log lacks the change that made it one: without its vote nobody could bring it there."""
    ensemble = Ensemble({2: vote(2, 9), 6: None})
    ensemble.electors[6] = Elector(config_of(6, {1, 2}, {4}), None)
    ensemble.electors[6].unsaid_vote = vote(6, 8)
    ensemble.start(6, 2)
    ensemble.advance(FIRST_MS)  # Then 6 asks again; of voter 1 of its log nothing is heard.
    assert ensemble.leaders() == {2: 2, 6: 2}


def test_one_that_our_log_does_not_name_is_elected_with_our_vote() -> None:
    """The voters were {1, 2, 3}; 2 has not heard that 4 and 5 have taken the place of 1."""
    ensemble = Ensemble({2: vote(2, 5), 3: vote(3, 9), 4: vote(4, 9), 5: vote(5, 7)})
    ensemble.electors[2] = Elector(config_of(2, {1, 2, 3}, set()), vote(2, 5))
    for each in ensemble.electors.values():
        each.members = SOME_MEMBERS
    ensemble.start(2, 3, 4)
    ensemble.advance(LAST_MS)
    assert ensemble.leaders() == {2: 0, 3: 0, 4: 0, 5: 0}
    ensemble.electors[2].hears_outsiders = True
    ensemble.start(2)
    ensemble.advance(WAIT_MS)
    assert ensemble.leaders() == {2: 4, 3: 4, 4: 4, 5: 0}


def test_an_outsider_does_not_keep_the_voters_from_electing_one_of_themselves() -> None:
    """4 has logged that it, 5 and 6 are to be the voters; they are not there, and it cannot win."""
    ensemble = Ensemble({1: vote(1, 5), 2: vote(2, 5), 3: vote(3, 4), 4: vote(4, 9)})
    for each in (1, 2, 3):
        ensemble.electors[each] = Elector(config_of(each, {1, 2, 3}, {4}), vote(each, 5))
    ensemble.electors[4] = Elector(config_of(4, {4, 5, 6}, {1, 2, 3}), vote(4, 9), 7)
    ensemble.start(4, 1, 2, 3)
    assert ensemble.leaders() == {1: 3, 2: 3, 3: 3, 4: 0}


def test_no_outsider_is_elected_where_only_settings_name_the_members() -> None:
    """4 and 5 are about to join, and their settings name them: a quorum of those five and one of
    the three that are members need not have a server in common."""
    ensemble = Ensemble({each: vote(each) for each in (1, 4, 5)})
    for each in (4, 5):
        ensemble.electors[each] = Elector(config_of(each, {1, 2, 3, 4, 5}, set()), vote(each))
    ensemble.electors[1] = Elector(config_of(1, {1, 2, 3}, set()), vote(1))
    for each in ensemble.electors.values():
        each.hears_outsiders = True
    ensemble.start(1, 4, 5)
    ensemble.advance(2 * LAST_MS)
    assert set(ensemble.leaders().values()) == {0}


def test_where_settings_name_the_members_one_is_elected_whose_log_does() -> None:
    """1 and 4 have logged that 4 is a member, too, and 1 has gone; 3 has got a new disk. What 2
    tells of 4 says nothing of its log, and is believed once 4 has said so itself."""
    ensemble = Ensemble({each: vote(each, 9 if each == 4 else 5) for each in (2, 4)})
    ensemble.electors[2].config = config_of(2, {1, 2, 3, 4}, set())
    ensemble.electors[4].config = config_of(4, {1, 2, 3, 4}, set())
    ensemble.electors[3] = Elector(config_of(3, {1, 2, 3}, set()), vote(3, 0, epoch=0))
    for each in (2, 4):
        ensemble.electors[each].members = SOME_MEMBERS
    for elector in ensemble.electors.values():
        elector.hears_outsiders = True
    ensemble.lossy.add((4, 3))
    ensemble.start(2, 3, 4)
    ensemble.advance(2 * LAST_MS)
    assert set(ensemble.leaders().values()) == {0}
    ensemble.lossy.clear()
    ensemble.advance(LAST_MS + WAIT_MS)
    assert ensemble.leaders() == {2: 4, 3: 4, 4: 4}


def test_who_was_left_out_lends_its_vote_to_nobody_that_knows_less() -> None:
    """3 has slept through the change that left 2 and it out. It could not win: 2 would tell it."""
    ensemble = Ensemble({2: None, 3: vote(3, 8)})
    ensemble.electors[2] = Elector(config_of(2, {1, 4, 5}, set()), None)
    ensemble.electors[2].unsaid_vote = vote(2, 9)
    ensemble.electors[3] = Elector(config_of(3, {1, 2, 3}, set()), vote(3, 8))
    for each in ensemble.electors.values():
        each.members = SOME_MEMBERS
        each.hears_outsiders = True
    ensemble.start(2, 3)
    ensemble.advance(2 * LAST_MS)
    assert set(ensemble.leaders().values()) == {0}


@pytest.mark.parametrize("leader_id", [3, 7])
def test_whom_we_have_voted_for_is_followed_when_it_leads(leader_id: int) -> None:
    """It has a quorum by what it knows. Ours may never come: it is that of long ago."""
    role = looking(1, 5, hears_outsiders=True)
    named = vote(leader_id, 8)
    hear(role, leader_id, LEADING, named)
    hear(role, leader_id, LOOKING, named, in_round=4)
    hear(role, leader_id, LEADING, named, in_round=3)
    hear(role, leader_id, LEADING, vote(leader_id, 7), in_round=4)
    assert role.decision() is None
    hear(role, leader_id, LEADING, named, in_round=4)
    assert role.decision() == Decision(leader_id, named, 4)


def test_a_stranger_that_follows_says_whom_to_ask() -> None:
    role = looking(1)
    hear(role, 7, FOLLOWING, vote(8))
    assert told(role) == {8: ours(vote(1), 1)}
    hear(role, 8, LEADING, vote(8, epoch=NEVER))
    assert role.decision() == Decision(8, vote(8, epoch=NEVER), 1)


def test_a_stranger_hears_of_every_change_of_our_vote() -> None:
    role = looking(1)
    hear(role, 7, LOOKING, vote(1))
    assert told(role) == {7: ours(vote(1), 1)}
    hear(role, 3, LOOKING, vote(3))
    assert told(role).keys() == {2, 3, 7, 9}


# --- One server -----------------------------------------------------------------------------------


def test_a_better_vote_is_adopted_and_told_to_all() -> None:
    role = looking(1, 5)
    hear(role, 3, LOOKING, vote(3))
    assert role.vote == vote(3)
    assert told(role) == dict.fromkeys([2, 3, 4, 5, 9], ours(vote(3), 1))


def test_a_worse_vote_is_answered_and_an_equal_one_is_not() -> None:
    role = looking(2, 5)
    hear(role, 1, LOOKING, vote(1))
    assert told(role) == {1: ours(vote(2), 1)}
    hear(role, 1, LOOKING, vote(2))
    assert told(role) == {}


def test_a_higher_round_begins_with_the_initial_vote() -> None:
    """What was adopted in the round before may be the vote for a server that is gone."""
    role = looking(2, 5)
    hear(role, 5, LOOKING, vote(5))
    hear(role, 4, LOOKING, vote(5))
    hear(role, 1, LOOKING, vote(1), in_round=2)
    assert (role.vote, role.election_round) == (vote(2), 2)
    assert told(role) == dict.fromkeys([1, 3, 4, 5, 9], ours(vote(2), 2))
    hear(role, 3, LOOKING, vote(3), in_round=7)
    assert (role.vote, role.election_round) == (vote(3), 7)


def test_votes_of_the_round_before_are_forgotten() -> None:
    role = looking(1, 5)
    hear(role, 5, LOOKING, vote(5))
    hear(role, 4, LOOKING, vote(5), in_round=2)
    role.on_timer(WAIT_MS)
    assert role.decision() is None


@pytest.mark.parametrize("last", [NO_VOTE, vote(2, 8), vote(3, 8)])
def test_whom_we_vote_for_is_forgotten_by_all_once_it_does_not_stand_any_more(last: Vote) -> None:
    """2 hears 1 only, and would go on with the vote that it has from it."""
    role, other = looking(1), looking(2)
    for each in (role, other):
        hear(each, 3 if each is role else 1, LOOKING, vote(3, 9))
        each.take_notifications()
    hear(role, 2, LOOKING, last)
    assert role.vote == vote(3, 9), "it is not the one that does not stand"
    role.take_notifications()
    hear(role, 3, LOOKING, last)
    said = told(role)
    assert said == dict.fromkeys([2, 3, 9], ours(vote(1), 2))
    other.on_notification(1, said[2], 0)
    assert told(other)[1] == ours(vote(2), 2)


@pytest.mark.parametrize("last", [NO_VOTE, vote(2)])
def test_what_a_candidate_said_before_it_stood_does_not_count_against_it(last: Vote) -> None:
    """2 has told us of it; what it says itself has taken longer."""
    role = looking(1)
    hear(role, 2, LOOKING, vote(3, 9), in_round=4)
    hear(role, 3, LOOKING, last, in_round=3)
    assert (role.vote, role.election_round) == (vote(3, 9), 4)


def test_who_may_not_lead_itself_asks_again_when_its_candidate_stands_back() -> None:
    role = looking(9)
    hear(role, 3, LOOKING, vote(3, 9), in_round=4)
    hear(role, 3, LOOKING, NO_VOTE, in_round=5)
    assert told(role) == dict.fromkeys([1, 2, 3], ours(NO_VOTE, 5))
    hear(role, 2, LOOKING, vote(2), in_round=4)
    assert role.vote == vote(2) and role.decision() is None


def test_a_lower_round_is_answered_and_not_counted() -> None:
    role = looking(1, election_round=4)
    hear(role, 2, LOOKING, vote(2), in_round=3)
    assert role.vote == vote(1) and told(role) == {2: ours(vote(1), 4)}


def test_a_better_vote_takes_back_the_wait() -> None:
    role = looking(2, 5)
    for each in (1, 3):
        hear(role, each, LOOKING, vote(2) if each == 1 else vote(3))
    hear(role, 1, LOOKING, vote(3))
    assert role.deadline_ms() == WAIT_MS
    hear(role, 4, LOOKING, vote(4))
    assert role.deadline_ms() == FIRST_MS
    role.on_timer(WAIT_MS)
    assert role.decision() is None


def test_the_wait_begins_anew_where_the_better_vote_has_a_quorum_at_once() -> None:
    role = looking(1)
    hear(role, 2, LOOKING, vote(2))
    assert role.deadline_ms() == WAIT_MS
    role.on_notification(3, Notification(LOOKING, vote(3), 1), WAIT_MS - 5)
    assert role.deadline_ms() == WAIT_MS - 5 + WAIT_MS


def test_a_quorum_that_falls_apart_takes_back_the_wait() -> None:
    role = looking(3)
    hear(role, 1, LOOKING, vote(3))
    assert role.deadline_ms() == WAIT_MS
    hear(role, 1, LOOKING, vote(1))
    assert role.deadline_ms() == FIRST_MS


def test_silence_doubles_up_to_its_limit() -> None:
    role = looking(1, 5)
    silences_ms, now_ms = [], 0
    for _ in range(8):
        silences_ms.append(role.deadline_ms() - now_ms)
        now_ms = role.deadline_ms()
        role.on_timer(now_ms - 1)
        assert told(role) == {}
        role.on_timer(now_ms)
        assert told(role).keys() == {2, 3, 4, 5, 9}
    assert silences_ms[:4] == [FIRST_MS, 2 * FIRST_MS, 4 * FIRST_MS, 8 * FIRST_MS]
    assert silences_ms[-2:] == [LAST_MS, LAST_MS]
    role.on_notification(2, Notification(LOOKING, vote(2), 1), now_ms)
    assert role.deadline_ms() - now_ms == FIRST_MS  # What is new is told again soon.


@pytest.mark.parametrize("in_round", [1, 3, 8])
def test_followers_need_the_word_of_their_leader(in_round: int) -> None:
    """Their leader may have died, and they do not know it yet (ZooKeeper `checkLeader`)."""
    role = looking(5, 5, election_round=3)
    led = vote(2, epoch=6)
    for each in (1, 3, 4):
        hear(role, each, FOLLOWING, led, in_round)
    role.on_timer(WAIT_MS)
    assert role.decision() is None
    hear(role, 2, LOOKING, vote(2), in_round)
    assert role.decision() is None
    hear(role, 2, LEADING, led, in_round)
    assert role.decision() == Decision(2, led, in_round)


def test_a_leader_needs_its_followers() -> None:
    role = looking(5, 5)
    hear(role, 2, LEADING, vote(2, epoch=6), in_round=8)
    hear(role, 1, FOLLOWING, vote(2, epoch=6), in_round=8)
    assert role.decision() is None
    # One that has gone to look for a leader again does not count any more.
    hear(role, 1, LOOKING, vote(1), in_round=1)
    hear(role, 3, FOLLOWING, vote(2, epoch=6), in_round=8)
    assert role.decision() is None
    hear(role, 4, FOLLOWING, vote(2, epoch=6), in_round=8)
    assert role.decision() == Decision(2, vote(2, epoch=6), 8)


def test_the_one_that_is_named_must_not_follow_another() -> None:
    role = looking(5, 5)
    hear(role, 2, FOLLOWING, vote(3))
    for each in (1, 3, 4):
        hear(role, each, FOLLOWING, vote(2), in_round=8)
    assert role.decision() is None


def test_a_leader_is_named_in_the_epoch_that_it_leads() -> None:
    """Those that name it in an older one have not heard from it since it was elected again."""
    role = looking(5, 5)
    hear(role, 2, LEADING, vote(2, epoch=6), in_round=8)
    for each in (1, 3, 4):
        hear(role, each, FOLLOWING, vote(2, epoch=5), in_round=7)
    assert role.decision() is None


def test_votes_of_this_round_do_not_count_with_words_of_another() -> None:
    role = looking(5, 5)
    for each in (1, 3, 4):
        hear(role, each, LOOKING, vote(2))
    hear(role, 2, LEADING, vote(2), in_round=8)
    assert role.decision() is None


def test_who_waits_for_us_since_the_round_before_counts_with_the_votes_of_this_one() -> None:
    """It will not look again as long as it waits, and we need both."""
    role = looking(3, 5, zxid=9, election_round=4)
    hear(role, 1, FOLLOWING, vote(3, 9), in_round=3)
    hear(role, 4, FOLLOWING, vote(3, 8), in_round=3)
    assert role.deadline_ms() == FIRST_MS
    hear(role, 2, LOOKING, vote(3, 9), in_round=5)
    role.on_timer(WAIT_MS)
    assert role.decision() == Decision(3, vote(3, 9), 5)


def test_who_does_not_stand_is_made_known_to_those_that_vote_for_it() -> None:
    """5 votes for it, which its log does not name; so 5 was not told that it stands back."""
    config = config_of(1, {1, 2, 3}, set())
    membership = Membership(config.voters, config.observers, members=SOME_MEMBERS)
    role = Looking(config, membership, NEVER, vote(1), 4, 0, may_lead=False)
    role.start()
    assert told(role).keys() == {2, 3}
    for _ in range(2):
        hear(role, 2, LOOKING, vote(1, 9), in_round=8)
        hear(role, 5, LOOKING, vote(1, 9), in_round=8)
    assert told(role) == {5: ours(NO_VOTE, 8)}


def test_followers_of_another_round_do_not_count_with_votes_of_this_one() -> None:
    role = looking(3)
    hear(role, 1, FOLLOWING, vote(3), in_round=8)
    assert role.deadline_ms() == FIRST_MS
    hear(role, 1, LOOKING, vote(3))
    assert role.deadline_ms() == WAIT_MS
    hear(role, 1, FOLLOWING, vote(2, epoch=6), in_round=8)  # It has gone back to its leader.
    assert role.deadline_ms() == FIRST_MS


def test_out_of_election_zxid_and_round_do_not_matter_but_the_epoch_does() -> None:
    role = looking(5, 5)
    hear(role, 2, LEADING, vote(2, 10, epoch=6), in_round=8)
    hear(role, 1, FOLLOWING, vote(2, 11, epoch=5), in_round=8)
    hear(role, 3, FOLLOWING, vote(2, 12, epoch=6), in_round=9)
    assert role.decision() is None
    hear(role, 4, FOLLOWING, vote(2, 13, epoch=6), in_round=7)
    assert role.decision() == Decision(2, vote(2, 10, epoch=6), 8)


def test_in_the_same_round_those_that_look_count_with_those_that_follow() -> None:
    """Our own vote is better than theirs, which comes too late."""
    role = looking(5, 5)
    hear(role, 1, LOOKING, vote(2))
    hear(role, 3, FOLLOWING, vote(2))
    assert role.decision() is None
    hear(role, 2, LEADING, vote(2))
    assert role.decision() == Decision(2, vote(2), 1)


def test_a_follower_with_our_vote_is_counted_like_one_that_looks() -> None:
    role = looking(3)
    hear(role, 1, FOLLOWING, vote(3))
    role.on_timer(WAIT_MS)
    assert role.decision() == Decision(3, vote(3), 1)


@pytest.mark.parametrize("in_round", [1, 2])
def test_followers_of_ours_make_us_lead_in_the_same_round_only(in_round: int) -> None:
    """Of another round: they follow what we were before we started anew."""
    role = looking(1, 5)
    hear(role, 5, LOOKING, vote(5))
    for each in (2, 3, 4):
        hear(role, each, FOLLOWING, vote(1), in_round)
    assert role.decision() == (Decision(1, vote(1), 1) if in_round == 1 else None)


def test_a_decision_stays() -> None:
    role = looking(3)
    hear(role, 1, LOOKING, vote(3))
    hear(role, 2, LOOKING, vote(3))
    decided = role.decision()
    assert decided == Decision(3, vote(3), 1)
    hear(role, 2, LOOKING, vote(2, 99), in_round=2)
    role.on_timer(10 * LAST_MS)
    assert role.decision() is decided and told(role) == {}


def test_the_vote_that_decides_is_still_told() -> None:
    """Or the others would wait for it until they ask again."""
    role = looking(1)
    hear(role, 2, LOOKING, vote(3))
    hear(role, 3, LOOKING, vote(3))
    assert role.decision() is not None
    assert told(role)[3] == ours(vote(3), 1)


def test_a_listener_is_never_led_by_itself() -> None:
    config = config_of(1, {1, 2, 3}, set())
    membership = Membership(config.voters, config.observers)
    role = Looking(config, membership, NEVER, vote(1), 4, 0, may_lead=False)
    role.start()
    assert told(role) == dict.fromkeys([2, 3], Notification(LOOKING, NO_VOTE, 4))
    for state in (LOOKING, FOLLOWING):
        for each in (2, 3):
            hear(role, each, state, vote(1, 50))
    role.on_timer(WAIT_MS)
    assert role.decision() is None


def test_both_configurations_must_agree() -> None:
    config = config_of(1, {1, 2, 3}, {4})
    joint = Membership(frozenset({3, 4, 5}), old_voters=frozenset({1, 2, 3}))
    role = Looking(config, joint, NEVER, vote(1, 9), 1, 0, may_lead=True)
    role.start()
    hear(role, 2, LOOKING, vote(1, 9))
    hear(role, 4, LOOKING, vote(1, 9))
    role.on_timer(WAIT_MS)
    assert role.decision() is None
    hear(role, 5, LOOKING, vote(1, 9))
    role.on_timer(WAIT_MS)
    assert role.decision() == Decision(1, vote(1, 9), 1)


IMPOSSIBLE = {
    "from ourselves": (1, LOOKING, vote(1), 1),
    "leads, in a round before the first": (2, LEADING, vote(2, epoch=NEVER), 0),
    "for nobody, leading": (2, LEADING, NO_VOTE, 1),
    "leads another one": (2, LEADING, vote(3), 1),
    "follows itself": (2, FOLLOWING, vote(2), 1),
    "a round before the first": (2, LOOKING, vote(3), 0),
    "a negative round": (2, LEADING, vote(2), -5),
}


@pytest.mark.parametrize("case", IMPOSSIBLE.values(), ids=list(IMPOSSIBLE))
def test_what_cannot_be_is_ignored(case: tuple[int, PeerState, Vote, int]) -> None:
    role = looking(1)
    sender_id, state, named, in_round = case
    hear(role, sender_id, state, named, in_round)
    assert (role.vote, role.election_round) == (vote(1), 1)
    assert told(role) == {} and role.decision() is None and role.deadline_ms() == FIRST_MS


def test_observers_are_answered_and_never_counted() -> None:
    role = looking(1)
    hear(role, 9, LOOKING, NO_VOTE, in_round=50)
    assert told(role) == {9: ours(vote(1), 1)} and role.election_round == 1
    hear(role, 9, LOOKING, vote(1))
    hear(role, 9, OBSERVING, vote(1))
    assert role.vote == vote(1) and role.deadline_ms() == FIRST_MS


def test_a_better_vote_is_adopted_from_whoever_tells_it() -> None:
    role = looking(1)
    hear(role, 9, LOOKING, vote(3), in_round=50)
    assert told(role) == dict.fromkeys([2, 3, 9], ours(vote(3), 50))
    assert role.deadline_ms() == FIRST_MS


def test_an_outsider_is_not_answered_where_it_gets_no_vote() -> None:
    """Or each would answer the other for ever."""
    role = looking(1)
    said = ours(vote(7, 9), 50)
    for sender_id in (2, 9):
        role.on_notification(sender_id, said, 0)
    assert told(role) == {} and (role.vote, role.election_round) == (vote(1), 1)
    role = looking(1, hears_outsiders=True)
    role.on_notification(2, said, 0)
    assert told(role) == dict.fromkeys([2, 3, 9], said)


def test_an_outsider_with_no_more_history_is_heard_only_where_a_voter_votes_for_it() -> None:
    """It is not needed; but whoever has voted for it already can be joined."""
    for zxid, sender_id, is_heard in [(5, 7, False), (5, 2, True), (6, 7, True), (4, 2, False)]:
        role = looking(1, 3, 5, hears_outsiders=True)
        hear(role, sender_id, LOOKING, vote(7, zxid))
        assert (role.vote == vote(7, zxid)) == is_heard
        assert role.met_outsiders == (is_heard or sender_id == 2)


def test_who_is_no_voter_of_its_own_log_hears_who_votes_for_it() -> None:
    """It alone has logged the change by which it leaves: the others are not there without it."""
    config = config_of(1, {4, 5, 6}, set())
    members = Membership(config.voters, config.observers, members=SOME_MEMBERS)
    role = Looking(config, members, NEVER, vote(1, 9), 1, 0, may_lead=True)
    role.start()
    for each in (4, 5):
        hear(role, each, LOOKING, vote(1, 9), in_round=3)
    role.on_timer(WAIT_MS)
    assert role.decision() == Decision(1, vote(1, 9), 3) and not role.met_outsiders


def test_who_hears_outsiders_waits_for_them() -> None:
    """They may know of a change that the voters of its log do not know."""
    role = looking(1, 1, hears_outsiders=True)
    assert role.decision() is None and role.deadline_ms() == WAIT_MS
    hear(role, 7, LOOKING, vote(7, 9))
    role.on_timer(WAIT_MS)
    assert role.decision() == Decision(7, vote(7, 9), 1)


def test_who_may_not_lead_takes_over_the_best_vote_and_never_one_for_itself() -> None:
    role = looking(9)
    hear(role, 1, LOOKING, vote(1), in_round=4)
    assert told(role) == dict.fromkeys([1, 2, 3], ours(vote(1), 4))
    hear(role, 2, LOOKING, vote(9, 50), in_round=4)
    assert told(role) == {} and role.vote == vote(1)
    hear(role, 3, LOOKING, vote(3), in_round=4)
    assert told(role).keys() == {1, 2, 3} and role.vote == vote(3)
    hear(role, 1, LOOKING, vote(1), in_round=4)
    assert told(role) == {1: ours(vote(3), 4)}


def test_only_those_that_look_are_answered_by_one_that_does_not() -> None:
    ours = Notification(FOLLOWING, vote(2, epoch=6), 8)
    reply = reply_to_looking(3, Notification(LOOKING, vote(3), 1), ours)
    assert reply is not None and (reply.server_id, reply.notification) == (3, ours)
    assert reply_to_looking(2, Notification(LEADING, vote(2), 1), ours) is None


# --- Many seeds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("voter_count", [3, 5])
@pytest.mark.parametrize("hundred", range(2))
def test_whatever_the_network_does_one_is_elected(voter_count: int, hundred: int) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        world = World(seed, voter_count)
        world.run(limit_ms=60_000)
        leader = world.electors[world.agreed_leader_id()]
        assert leader.own_vote is not None, seed
        votes = {each: elector.own_vote for each, elector in world.electors.items()}
        outvoted = {each for each, own in votes.items() if own and own <= leader.own_vote}
        assert Quorums(leader.config.voters).has_quorum(outvoted), (seed, leader.own_vote, votes)
