"""What a leader does with learners that say what does not fit. ZR and Z: reliability.md."""

from __future__ import annotations

from typing import Any

import pytest

from duolog_protocol.quorum_messages import (
    Ack,
    AckEpoch,
    Commit,
    FollowerInfo,
    NewLeader,
    NewLeaderAck,
    Ping,
    Pong,
    Proposal,
)
from duolog_protocol.types import ZXID_EPOCH_LAST, make_zxid

from .peer_support import Ensemble, established


def asked() -> Ensemble:
    """3 is elected, and has told its epoch and NEWLEADER to 2, which has promised."""
    ensemble = Ensemble()
    ensemble.start(2, 3)
    ensemble.deliver(2, 3)
    ensemble[3].do_disk()
    ensemble.deliver(3, 2)
    ensemble[2].do_disk()
    ensemble.deliver(2, 3)
    return ensemble


@pytest.mark.parametrize(
    "message",
    [
        Ack(make_zxid(1, 0)),  # not proposed
        Ack(make_zxid(2, 0)),
        NewLeaderAck(1),  # for the second time
        AckEpoch(1, 0, is_promise=True),  # it was not asked
        FollowerInfo(1, 1, 1),
        Commit(0),  # leaders say that
        Ping(0),
        NewLeader(1),
        Proposal(make_zxid(1, 0), make_zxid(1, 0), (b"1.0 forged",)),
    ],
    ids=repr,
)
def test_a_learner_that_says_what_does_not_fit_loses_its_link_and_nothing_else(
    message: Any,
) -> None:
    """Z18, Z19."""
    ensemble = established()
    link = ensemble.link_of(1, 3)
    ensemble.forge(1, 3, message)
    assert 3 not in link.open
    assert ensemble[3].serving == (1, 3) and not ensemble[3].disk
    ensemble.advance(1_000)
    assert set(ensemble.serving().values()) == {(1, 3)}, "it comes back"
    ensemble[3].propose(b"a")
    ensemble.settle()
    assert ensemble[1].applied == [b"1.0 a"]


@pytest.mark.parametrize(
    "message", [NewLeaderAck(1), Ack(0), AckEpoch(0, 0, is_promise=True), FollowerInfo(3, 0, 1)]
)
def test_a_caller_introduces_itself_first_and_not_as_the_leader(message: Any) -> None:
    """Z15."""
    ensemble = Ensemble()
    ensemble.start()
    ensemble.deliver(1, 3, 1)
    ensemble.forge(1, 3, message)
    assert 3 not in ensemble.link_of(1, 3).open and ensemble[3].is_leading


def test_a_record_is_not_acknowledged_before_newleader() -> None:
    """ZR7, Z18: this would count a log that may still be another one."""
    ensemble = asked()
    ensemble.forge(2, 3, Ack(0))
    assert 3 not in ensemble.link_of(2, 3).open


def test_newleader_is_acknowledged_with_its_own_epoch() -> None:
    """Z18."""
    ensemble = asked()
    ensemble.forge(2, 3, NewLeaderAck(2))
    assert 3 not in ensemble.link_of(2, 3).open and ensemble[3].serving is None


def test_acknowledgements_go_forward() -> None:
    """Z18."""
    ensemble = established()
    ensemble[3].propose(b"a", b"b")
    ensemble.forge(1, 3, Ack(make_zxid(1, 1)))
    ensemble.forge(1, 3, Ack(make_zxid(1, 0)))
    assert 3 not in ensemble.link_of(1, 3).open


def test_a_server_that_dials_again_replaces_its_link() -> None:
    """It has died and come back; the end of its old link is still on its way."""
    ensemble = established(5)
    old = ensemble.link_of(1, 5)
    old.is_broken = True
    ensemble[1].kill()
    ensemble[1].start()
    ensemble.settle()
    assert 5 not in old.open and ensemble.link_of(1, 5).open == {1, 5}
    assert ensemble[5].reasons == ["it has dialled again"]
    assert set(ensemble.serving().values()) == {(1, 5)}


def test_what_a_dropped_learner_said_before_it_knew_is_ignored() -> None:
    ensemble = established()
    ensemble[3].propose(b"a")
    ensemble.forge(1, 3, Commit(0))
    ensemble.forge(1, 3, Ack(make_zxid(1, 0)))
    ensemble.forge(1, 3, Pong(0))
    ensemble[3].do_disk()
    assert ensemble[3].applied == [], "its acknowledgement was counted"


def test_a_promise_of_the_last_epoch_opens_none_behind_it() -> None:
    """Z20, Z21: its server cannot join, and the others are not made unusable with it."""
    ensemble = Ensemble()
    ensemble.start(2, 3)
    ensemble.deliver(2, 3, 1)
    link = ensemble.link_of(2, 3)
    ensemble.forge(2, 3, FollowerInfo(2, ZXID_EPOCH_LAST, 1))
    assert 3 not in link.open
    assert ensemble[3].accepted_epoch == 0 and not ensemble[3].disk


def test_the_last_epoch_is_one_that_its_servers_can_come_back_to() -> None:
    ensemble = Ensemble()
    for each in (1, 2, 3):
        ensemble[each].holds(accepted=ZXID_EPOCH_LAST - 1, current=0)
    ensemble.start()
    ensemble.settle()
    assert set(ensemble.serving().values()) == {(ZXID_EPOCH_LAST, 3)}
    ensemble.lose_link(1, 3)
    ensemble.advance(1_000)
    assert set(ensemble.serving().values()) == {(ZXID_EPOCH_LAST, 3)}
