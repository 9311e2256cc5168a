"""What a leader says when, what it counts, and when it gives up. ZR and Z: reliability.md."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from duolog_protocol.quorum_messages import (
    Ack,
    AckEpoch,
    Commit,
    FollowerInfo,
    LeaderInfo,
    NewLeader,
    NewLeaderAck,
    UpToDate,
)
from duolog_protocol.types import ZXID_COUNTER_LAST, make_zxid
from zkserver.core.peer_events import LinkOpened, MessageReceived, Propose
from zkserver.core.roles import MAX_CALLERS_PER_SERVER

from .peer_support import DEFAULTS, Ensemble, Link, established

# --- Discovery ------------------------------------------------------------------------------------


def introduced() -> Ensemble:
    """3 is elected, and 1 and 2 have introduced themselves; no disk has done anything."""
    ensemble = Ensemble()
    ensemble.start()
    for learner_id in (1, 2):
        assert ensemble.deliver(learner_id, 3) == [None, FollowerInfo(learner_id, 0, 1)]
    return ensemble


def promised() -> Ensemble:
    """2 has promised epoch 1, and 3 knows it; 3 has not adopted it yet."""
    ensemble = introduced()
    ensemble[3].do_disk()
    ensemble.deliver(3, 2)
    ensemble[2].do_disk()
    ensemble.deliver(2, 3)
    return ensemble


def test_leaderinfo_waits_for_the_leaders_own_promise() -> None:
    """A.14: `accepted_epoch` is durable before it is told."""
    ensemble = introduced()
    assert ensemble[3].messages() == []
    ensemble[3].do_disk(1)
    assert ensemble[3].accepted_epoch == 1
    assert ensemble[3].told == [(1, LeaderInfo(1)), (2, LeaderInfo(1))]


def test_a_leader_that_dies_before_its_promise_is_durable_has_told_no_epoch() -> None:
    """Z-2307: otherwise it might open the same epoch a second time, with another history."""
    ensemble = introduced()
    ensemble[3].kill()
    assert ensemble[3].accepted_epoch == 0
    assert ensemble.waiting(3, 1) == [None], "only the end of the link"


def test_the_epoch_is_above_every_one_that_a_quorum_has_promised() -> None:
    """ZR19, Z2."""
    ensemble = Ensemble()
    ensemble[1].holds(accepted=7, current=0)
    ensemble[3].holds(accepted=4, current=0)
    ensemble.start(1, 3)
    ensemble.settle()
    assert ensemble.serving() == {1: (8, 3), 2: None, 3: (8, 3)}


def test_nothing_is_synchronized_before_a_quorum_has_promised() -> None:
    """Z15; the leader's own promise is not enough."""
    ensemble = introduced()
    ensemble[3].do_disk()
    assert ensemble[3].messages(NewLeader) == []
    assert not ensemble[3].disk, "it has not adopted the epoch either"
    ensemble.settle()
    assert ensemble[3].messages(NewLeader) == [NewLeader(1), NewLeader(1)]


def test_an_epoch_promised_before_is_not_counted() -> None:
    """A.4.3: that promise may have been made to another leader."""
    ensemble = introduced()
    ensemble[3].do_disk()
    ensemble.forge(2, 3, AckEpoch(0, 0, is_promise=False))
    assert ensemble[3].messages(NewLeader) == []
    ensemble.forge(1, 3, AckEpoch(0, 0, is_promise=True))
    assert len(ensemble[3].messages(NewLeader)) == 2, "both follow, once one has promised"


@pytest.mark.parametrize("history", [(0, make_zxid(1, 0)), (1, 0)])
def test_a_leader_whose_follower_knows_more_gives_up(history: tuple[int, int]) -> None:
    """A.4.4, Z13: what it knows more may be committed."""
    ensemble = introduced()
    ensemble[3].do_disk()
    ensemble.forge(2, 3, AckEpoch(*history, is_promise=True))
    assert ensemble[3].messages(NewLeader) == []
    assert ensemble[3].is_looking
    assert "knows more" in ensemble[3].reasons[0]


def test_an_observer_that_knows_more_is_no_reason_to_give_up() -> None:
    """It may hold what a quorum never had."""
    ensemble = Ensemble(3, 1)
    ensemble[4].holds(b"1.0 lost", accepted=1, current=0)
    ensemble.start()
    ensemble.settle()
    ensemble.advance(DEFAULTS.notification_first_ms)  # It votes for nobody; then it asks again.
    assert ensemble.leader is ensemble[3]
    assert ensemble[4].log == []


def test_a_learner_that_promised_a_newer_epoch_makes_the_leader_give_up() -> None:
    """It could never follow; the next leader opens an epoch above that promise."""
    ensemble = Ensemble()
    ensemble.start(2, 3)
    ensemble.settle()
    ensemble[1].holds(accepted=2, current=0).start()
    ensemble.settle()
    assert "promised epoch 2" in " ".join(ensemble[3].reasons)
    ensemble.advance(1_000)
    assert set(ensemble.serving().values()) == {(3, 3)}


def test_one_loss_of_the_leader_is_enough_however_high_the_promise() -> None:
    """The next term begins without the one that promised it, and opens an epoch above it."""
    ensemble = Ensemble()
    ensemble.start(2, 3)
    ensemble.settle()
    ensemble[1].holds(accepted=40, current=0).start()
    ensemble.advance(3_000)
    assert set(ensemble.serving().values()) == {(41, 3)}
    losses = sum("promised epoch" in each for each in ensemble[3].reasons)
    assert losses == 3, "of the service, and of both links, once"


def test_who_is_no_member_ends_no_term_by_what_it_has_promised() -> None:
    ensemble = Ensemble(3, 1)
    ensemble[4].config = ensemble[4].config._replace(observers=frozenset({4}))
    for each in (1, 2, 3):
        ensemble[each].config = ensemble[each].config._replace(observers=frozenset())
    ensemble.start(1, 2, 3)
    ensemble.settle()
    link = Link(4, 3)
    ensemble.links.append(link)
    ensemble[3].step(LinkOpened(link, 0))
    ensemble[3].step(MessageReceived(link, FollowerInfo(4, 40, 1)))
    assert 3 not in link.open and ensemble[3].is_leading


# --- Establishment --------------------------------------------------------------------------------


def test_a_leader_with_a_slow_disk_opens_late_and_then_needs_the_others_disks_only() -> None:
    """Z13: it serves, counts itself, and applies, once its own disk has come so far."""
    ensemble = promised()
    ensemble.settle(without_disk_of=3)
    assert ensemble[3].serving is None and ensemble[3].current_epoch == 0
    ensemble[3].do_disk(1)
    assert ensemble[3].serving == (1, 3) and ensemble[3].current_epoch == 1
    ensemble.settle(without_disk_of=3)
    ensemble[3].propose(b"a")
    ensemble.settle(without_disk_of=3)
    assert ensemble[1].applied == ensemble[2].applied == [b"1.0 a"]
    assert ensemble[3].applied == ensemble[3].log == []
    ensemble[3].do_disk(1)
    assert ensemble[3].applied == [b"1.0 a"]


def test_a_leader_whose_disk_is_slow_is_not_its_own_quorum() -> None:
    """Z13: one follower has adopted the epoch, and nobody else."""
    ensemble = promised()
    ensemble.deliver(3, 2)
    ensemble[2].do_disk()
    assert ensemble.deliver(2, 3) == [NewLeaderAck(1)]
    assert ensemble[3].serving is None
    ensemble[3].do_disk(1)
    assert ensemble[3].serving == (1, 3)


def test_a_leader_serves_only_once_a_quorum_has_adopted_its_epoch() -> None:
    """ZR16."""
    ensemble = promised()
    ensemble[3].do_disk()
    assert ensemble[3].current_epoch == 1 and ensemble[3].serving is None
    ensemble.deliver(3, 2)
    ensemble[2].do_disk()
    assert ensemble[3].serving is None
    assert ensemble.deliver(2, 3) == [NewLeaderAck(1)]
    assert ensemble[3].serving == (1, 3)


def test_its_history_is_committed_when_the_epoch_is_and_no_sooner() -> None:
    """ZR16, Z17: what older epochs left outstanding is committed as a whole."""
    ensemble = Ensemble()
    ensemble[3].holds(b"1.0 a", b"1.1 b", accepted=1, current=1)
    ensemble[2].holds(b"1.0 a", accepted=1, current=1)
    ensemble.start(2, 3)
    ensemble.settle(without_disk_of=2)
    assert ensemble[3].applied == []
    ensemble[2].do_disk(1)
    ensemble.deliver(2, 3)
    ensemble[3].do_disk()
    ensemble.deliver(3, 2)
    ensemble[2].do_disk(1)
    assert ensemble[2].log == ensemble[3].log
    ensemble.deliver(2, 3)
    assert ensemble[3].applied == [], "the same records on a quorum do not commit anything"
    ensemble[2].do_disk(1)
    ensemble.deliver(2, 3)
    assert ensemble[3].applied == [b"1.0 a", b"1.1 b"]
    assert ensemble[3].messages(UpToDate) == [UpToDate(make_zxid(1, 1))]


def test_an_observer_never_counts() -> None:
    """A.12: not for the epoch, the promise, NEWLEADER or a record."""
    ensemble = Ensemble(3, 1)
    ensemble.start()
    ensemble.deliver(4, 3)
    assert not ensemble[3].disk, "an observer has introduced itself: no quorum"
    ensemble.deliver(1, 3)
    ensemble[3].do_disk()
    ensemble.deliver(3, 4)
    ensemble[4].do_disk()
    assert ensemble.deliver(4, 3) == [AckEpoch(0, 0, is_promise=True)]
    assert not ensemble[3].disk, "and has promised: no quorum"
    ensemble.deliver(3, 1)
    ensemble[1].do_disk()
    ensemble.deliver(1, 3)
    ensemble[3].do_disk()
    ensemble.deliver(3, 4)
    ensemble[4].do_disk()
    assert ensemble.deliver(4, 3) == [NewLeaderAck(1)]
    assert ensemble[3].serving is None, "and has adopted: no quorum"
    ensemble.settle()
    ensemble[3].propose(b"a")
    ensemble[3].do_disk()
    ensemble.deliver(3, 4)
    ensemble[4].do_disk()
    assert ensemble.deliver(4, 3) == [Ack(make_zxid(1, 0))]
    assert ensemble[3].applied == [], "and has logged: no quorum"
    ensemble.settle()
    assert ensemble[4].applied == [b"1.0 a"]


def test_without_a_quorum_in_time_a_leader_gives_up() -> None:
    ensemble = introduced()
    ensemble[3].do_disk()
    ensemble.advance(DEFAULTS.init_limit_ms - ensemble.now_ms - 1, quiet=False)
    assert ensemble[3].reasons == []
    ensemble.advance(1, quiet=False)
    assert set(ensemble[3].reasons) == {"no quorum within 5000 ms"}


# --- Broadcast ------------------------------------------------------------------------------------


def test_the_leader_counts_itself_only_once_its_log_is_durable() -> None:
    """A.7."""
    ensemble = established()
    ensemble[3].propose(b"a")
    ensemble.deliver(3, 2)
    ensemble[2].do_disk()
    ensemble.deliver(2, 3)
    assert ensemble[3].messages(Commit) == [], "one disk of three"
    ensemble[3].do_disk()
    assert ensemble[3].messages(Commit) == [Commit(make_zxid(1, 0))] * 2


def test_what_two_followers_hold_is_committed_but_applied_behind_the_leaders_own_disk() -> None:
    """STYLE section 4: applied <= min(committed, durable)."""
    ensemble = established()
    ensemble[3].propose(b"a")
    ensemble.settle(without_disk_of=3)
    assert ensemble[2].applied == [b"1.0 a"]
    assert ensemble[3].peer.last_committed_zxid == make_zxid(1, 0) and ensemble[3].applied == []
    ensemble[3].do_disk()
    assert ensemble[3].applied == [b"1.0 a"]


def test_commits_come_in_order_and_an_ack_counts_for_all_before_it() -> None:
    """Z17, Z7."""
    ensemble = established()
    for word in (b"a", b"b", b"c"):
        ensemble[3].propose(word)
    ensemble[3].do_disk()
    ensemble.forge(2, 3, Ack(make_zxid(1, 1)))
    ensemble.forge(1, 3, Ack(make_zxid(1, 0)))
    ensemble.forge(1, 3, Ack(make_zxid(1, 2)))
    assert ensemble[3].messages(Commit, to=1) == [
        Commit(make_zxid(1, 1)),
        Commit(make_zxid(1, 2)),
    ]


def test_a_leader_that_loses_its_quorum_gives_up_at_once() -> None:
    ensemble = established()
    ensemble.lose_link(1, 3)
    assert ensemble[3].serving == (1, 3)
    ensemble.lose_link(2, 3)
    assert ensemble[3].serving is None and not ensemble[3].is_leading


@pytest.mark.parametrize("stage", [introduced, promised])
def test_it_does_not_wait_for_the_limit_either_when_the_quorum_that_came_has_gone(
    stage: Callable[[], Ensemble],
) -> None:
    ensemble = stage()
    ensemble.lose_link(1, 3)
    assert ensemble[3].is_leading, "2 is there"
    ensemble.lose_link(2, 3)
    assert not ensemble[3].is_leading
    ensemble.settle()
    ensemble.advance(DEFAULTS.notification_last_ms)
    assert len(set(ensemble.serving().values())) == 1 and ensemble[3].serving is not None


def test_a_server_that_dials_again_before_the_epoch_is_established_has_not_gone() -> None:
    ensemble = Ensemble()
    ensemble.start(2, 3)
    ensemble.deliver(2, 3)
    again = Link(2, 3)
    ensemble[3].step(LinkOpened(again, 0))
    ensemble[3].step(MessageReceived(again, FollowerInfo(2, 0, 1)))
    assert ensemble[3].reasons == ["it has dialled again"]
    assert ensemble[3].is_leading and 3 in again.open


def test_links_that_never_say_whose_they_are_are_bounded() -> None:
    ensemble = established()
    links = [Link(1, 3) for _ in range(2 * MAX_CALLERS_PER_SERVER + 3)]
    for link in links:
        ensemble[3].step(LinkOpened(link, 0))
    assert [3 in link.open for link in links] == [False] * 3 + [True] * 2 * MAX_CALLERS_PER_SERVER
    assert ensemble[3].serving == (1, 3)


def test_an_observer_is_no_quorum_to_lose() -> None:
    ensemble = established(3, 1)
    ensemble.lose_link(4, 3)
    ensemble.lose_link(1, 3)
    assert ensemble[3].serving == (1, 3)


def test_learners_that_are_silent_are_dropped_and_with_the_quorum_the_term() -> None:
    """A.8."""
    ensemble = established()
    ensemble.cut(1, 3)
    ensemble.advance(DEFAULTS.sync_limit_ms + DEFAULTS.ping_interval_ms)
    assert any("not heard" in reason for reason in ensemble[3].reasons)
    assert ensemble[3].serving == (1, 3)
    ensemble.cut(2, 3)
    ensemble.advance(DEFAULTS.sync_limit_ms + DEFAULTS.ping_interval_ms)
    assert ensemble[3].serving is None


def test_a_disk_without_space_ends_the_term_of_a_leader() -> None:
    """ZR12: another server may have space, and what the others have logged is not lost."""
    ensemble = established()
    ensemble[3].is_full = True
    ensemble[3].propose(b"a")
    ensemble[3].do_disk()
    assert ensemble[3].serving is None and "no disk space" in ensemble[3].reasons[0]
    assert ensemble[3].peer.last_logged_zxid == 0 and ensemble[3].notified[-1].vote.zxid == 0
    ensemble[3].is_full = False
    ensemble.advance(1_000)
    assert ensemble.leader is ensemble[2]
    assert [each.applied for each in ensemble.servers.values()] == [[b"1.0 a"]] * 3


def test_no_proposal_goes_beyond_the_last_counter_of_an_epoch() -> None:
    """Z-1277: whoever makes the records resigns before; the next epoch is opened by an election."""
    ensemble = established()
    last = make_zxid(1, ZXID_COUNTER_LAST)
    for first, end in [(last, last + 1), (last + 1, last + 1)]:
        with pytest.raises(AssertionError):
            ensemble[3].step(Propose([b"a"] * (end - first + 1), first, end))
