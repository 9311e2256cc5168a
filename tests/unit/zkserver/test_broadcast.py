"""The commit rule, alone and against a naive second version."""

from __future__ import annotations

import random

import pytest

from duolog_protocol.quorum_messages import Proposal
from duolog_protocol.types import make_zxid
from zkserver.core.broadcast import Broadcast
from zkserver.core.quorum import Quorums

HISTORY: int = make_zxid(1, 4)


def z(counter: int) -> int:
    return make_zxid(2, counter)


def proposal(first: int, last: int) -> Proposal:
    return Proposal(z(first), z(last), tuple(b"%d" % each for each in range(first, last + 1)))


def quorums(voter_count: int = 3) -> Quorums:
    return Quorums(frozenset(range(1, voter_count + 1)))


def broadcast() -> Broadcast:
    """Epoch 2, which a quorum has adopted, behind a history of epoch 1."""
    found = Broadcast(HISTORY)
    found.commit_history()
    return found


def test_history_is_committed_as_a_whole_and_never_by_counting() -> None:
    """ZR16, Z17 (A.7): not even when every server has it on disk."""
    found = Broadcast(HISTORY)
    for each in (1, 2, 3):
        found.acknowledge(each, HISTORY)
    assert not found.advance(quorums()) and found.committed_zxid == 0
    found.commit_history()
    assert found.committed_zxid == HISTORY
    assert not found.advance(quorums())


def test_counting_never_takes_back_what_is_committed() -> None:
    """Z11: a quorum that holds less than the history is no news."""
    found = broadcast()
    found.acknowledge(1, make_zxid(1, 2))
    found.acknowledge(2, make_zxid(1, 3))
    assert not found.advance(quorums()) and found.committed_zxid == HISTORY


def test_a_record_needs_a_quorum_of_voters() -> None:
    found = broadcast()
    found.propose(proposal(0, 0))
    for each in (1, 2, 7):
        found.acknowledge(each, z(0))
    assert not found.advance(quorums(5)), "7 is no voter"
    found.acknowledge(5, z(0))
    assert found.advance(quorums(5)) and found.committed_zxid == z(0)
    assert not found.advance(quorums(5)), "no more than before"


def test_an_older_acknowledgement_takes_nothing_back() -> None:
    found = broadcast()
    found.propose(proposal(0, 3))
    found.acknowledge(1, z(3))
    found.acknowledge(1, z(1))
    found.acknowledge(2, z(3))
    assert found.advance(quorums()) and found.committed_zxid == z(3)


def test_what_was_not_proposed_is_not_acknowledged() -> None:
    with pytest.raises(AssertionError):
        broadcast().acknowledge(1, z(0))


def test_proposals_come_in_order() -> None:
    found = broadcast()
    found.propose(proposal(0, 1))
    with pytest.raises(AssertionError):
        found.propose(proposal(1, 2))


def test_what_is_in_flight_is_cut_to_what_comes_after() -> None:
    """ZR17: whoever is sent the rest of a group gets no record of it twice."""
    found = broadcast()
    found.propose(proposal(0, 2))
    found.propose(proposal(3, 3))
    assert found.in_flight_after(HISTORY) == [proposal(0, 2), proposal(3, 3)]
    assert found.in_flight_after(z(0)) == [proposal(1, 2), proposal(3, 3)]
    assert found.in_flight_after(z(2)) == [proposal(3, 3)]
    assert found.in_flight_after(z(3)) == []
    found.on_own_disk(z(2))
    assert found.in_flight_after(z(2)) == [proposal(3, 3)]


@pytest.mark.parametrize("voter_count", range(1, 6))
def test_as_counting_each_record_does(voter_count: int) -> None:
    for seed in range(40):
        rng = random.Random(seed)
        found = broadcast()
        holders: dict[int, set[int]] = {}
        committed = HISTORY
        for _ in range(40):
            if rng.random() < 0.3:
                first = len(holders)
                last = first + rng.randrange(3)
                found.propose(proposal(first, last))
                holders |= {z(each): set() for each in range(first, last + 1)}
            if holders:
                server_id, zxid = rng.randint(1, voter_count + 1), rng.choice(list(holders))
                found.acknowledge(server_id, zxid)
                for each, held_by in holders.items():
                    if each <= zxid and server_id <= voter_count:
                        held_by.add(server_id)
            found.advance(quorums(voter_count))
            enough = [each for each, held_by in holders.items() if 2 * len(held_by) > voter_count]
            committed = max([committed, *enough])
            assert found.committed_zxid == committed
