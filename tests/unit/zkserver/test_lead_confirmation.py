"""A leader that has to know that it still leads asks a quorum (A.10; Raft 6.4, ReadIndex)."""

from __future__ import annotations

from duolog_protocol.quorum_messages import Ping, Pong
from zkserver.core.peer_events import ConfirmLead, StepDown

from .peer_support import Ensemble, established


def ask(ensemble: Ensemble, token: str) -> None:
    ensemble[3].step(ConfirmLead(token))


def rounds(ensemble: Ensemble, learner_id: int) -> list[int]:
    return [ping.round for ping in ensemble[3].messages(Ping, to=learner_id)]


def test_a_quorum_that_answers_a_ping_sent_since_confirms_the_lead() -> None:
    ensemble = established()
    ask(ensemble, "a")
    assert ensemble.waiting(3, 1) == ensemble.waiting(3, 2) == [Ping(1)]
    assert ensemble[3].confirmed == []
    ensemble.deliver(3, 2)
    assert ensemble.waiting(2, 3) == [Pong(1)]
    ensemble.deliver(2, 3)
    assert ensemble[3].confirmed == ["a"]
    ensemble.settle()
    assert ensemble[3].confirmed == ["a"], "once"


def test_a_pong_to_an_earlier_ping_confirms_nothing() -> None:
    """Its sender may have followed somebody else since."""
    ensemble = established()
    ensemble.cut(1, 3)
    ensemble.advance(300, quiet=False)
    assert ensemble.waiting(3, 2) == [Ping(0)], "time for a ping"
    ensemble.deliver(3, 2)
    ask(ensemble, "a")
    ensemble.deliver(2, 3)
    assert ensemble[3].confirmed == []
    ensemble.settle()
    assert ensemble[3].confirmed == ["a"]


def test_who_asks_while_a_round_is_under_way_waits_for_the_next_one() -> None:
    ensemble = established()
    for token in ("a", "b", "c"):
        ask(ensemble, token)
    assert rounds(ensemble, 1) == rounds(ensemble, 2) == [1], "one round at a time"
    ensemble.deliver(3, 1)
    ensemble.deliver(1, 3)
    assert ensemble[3].confirmed == ["a"]
    assert rounds(ensemble, 1) == rounds(ensemble, 2) == [1, 2]
    ensemble.deliver(3, 2, 1)
    ensemble.deliver(2, 3)
    assert ensemble[3].confirmed == ["a"], "2 has answered the first round"
    ensemble.deliver(3, 2)
    ensemble.deliver(2, 3)
    assert ensemble[3].confirmed == ["a", "b", "c"], "one round for both"


def test_a_leader_that_is_a_quorum_needs_nobody() -> None:
    ensemble = established(1)
    ensemble[1].step(ConfirmLead("a"))
    assert ensemble[1].confirmed == ["a"]


def test_an_observer_confirms_nothing() -> None:
    ensemble = established(3, 1)
    ask(ensemble, "a")
    ensemble.deliver(3, 4)
    assert ensemble.waiting(4, 3) == [Pong(1)]
    ensemble.deliver(4, 3)
    assert ensemble[3].confirmed == []


def test_a_ping_that_was_lost_is_sent_again_in_its_time() -> None:
    ensemble = established()
    ask(ensemble, "a")
    ensemble.ways[3, 1].clear()
    ensemble.ways[3, 2].clear()
    ensemble.advance(300)
    assert ensemble[3].confirmed == ["a"]


def test_a_term_that_ends_confirms_nothing_any_more() -> None:
    ensemble = established()
    ask(ensemble, "a")
    ensemble[3].step(StepDown("it is asked to"))
    assert ensemble[3].serving is None and "it is asked to" in ensemble[3].reasons
    ensemble.settle()
    ensemble.advance(3_000)
    assert ensemble.leader.confirmed == [] and ensemble[3].confirmed == []


def test_who_does_not_lead_confirms_nothing() -> None:
    ensemble = established()
    ensemble[1].step(ConfirmLead("a"))
    ensemble[1].step(StepDown("nothing to resign from"))
    assert ensemble[1].confirmed == [] and ensemble[1].serving == (1, 3)


def test_a_pong_of_a_round_that_has_not_begun_is_a_lie() -> None:
    ensemble = established()
    ensemble.forge(1, 3, Pong(1))
    assert any("has not begun" in reason for reason in ensemble[3].reasons)


def test_whose_link_it_is() -> None:
    ensemble = established(3, 1)
    one, two, four = (ensemble.link_of(each, 3) for each in (1, 2, 4))
    leader = ensemble[3].peer
    assert [leader.server_id_of(each) for each in (one, two, four, object())] == [1, 2, 4, 0]
    assert leader.learner_counts() == (2, 1, 3)
    assert ensemble[1].peer.leader_link is one and leader.leader_link is None
    assert ensemble[1].peer.server_id_of(one) == 0
    ensemble.lose_link(1, 3)
    assert leader.server_id_of(one) == 0 and ensemble[1].peer.leader_link is None
