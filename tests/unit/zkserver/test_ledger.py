"""The order of disk work, and what it lets a server say, vote and apply. A.6, A.14."""

from __future__ import annotations

import pytest

from duolog_protocol.txns import TxnKind, encode_txn
from duolog_protocol.types import make_zxid
from zkserver.core.epoch_ends import EpochEnds
from zkserver.core.ledger import Ledger
from zkserver.core.members import Member, config_data
from zkserver.core.membership import Membership, Memberships
from zkserver.core.peer_events import (
    AcceptEpoch,
    AdoptEpoch,
    AppendRecords,
    ApplyUpTo,
    TruncateLog,
)


def z(counter: int, epoch: int = 1) -> int:
    return make_zxid(epoch, counter)


def ledger(accepted: int = 1, current: int = 1, last: int = -1) -> Ledger:
    """One that holds epoch 1 up to this counter."""
    log = EpochEnds(0)
    if last >= 0:
        log.append(z(0), z(last))
    return Ledger(accepted, current, log, Memberships(Membership(frozenset({1}))))


def append(found: Ledger, first: int, last: int) -> None:
    found.append([b""] * (last - first + 1), z(first), z(last))


def applied(found: Ledger) -> list[int]:
    return [each.zxid for each in found.effects if isinstance(each, ApplyUpTo)]


def test_effects_are_the_work_in_the_order_in_which_it_was_asked_for() -> None:
    """ZR6: the disk does it in this order, history before the epoch."""
    found = ledger(last=3)
    found.truncate_to(z(1))
    append(found, 2, 2)
    found.accept_epoch(4)
    found.on_truncated(z(1))
    found.on_logged(z(2))
    found.on_epoch_accepted(4)
    found.adopt_epoch(4)
    kinds = [TruncateLog, AppendRecords, AcceptEpoch, AdoptEpoch]
    assert [type(each) for each in found.effects] == kinds


def test_epochs_are_those_of_the_disk_and_not_those_asked_for() -> None:
    """Z20, A.14."""
    found = ledger()
    found.accept_epoch(2)
    assert found.accepted_epoch == 1 and not found.is_settled
    found.on_epoch_accepted(2)
    assert found.accepted_epoch == 2 and found.is_settled
    found.adopt_epoch(2)
    assert found.current_epoch == 1 and not found.is_settled
    found.on_epoch_adopted(2)
    assert found.current_epoch == 2 and found.is_settled


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_that_was_promised_is_not_promised_again(epoch: int) -> None:
    """Z20: neither before nor after the promise is durable."""
    found = ledger(accepted=2)
    with pytest.raises(AssertionError):
        found.accept_epoch(epoch)
    found.accept_epoch(3)
    with pytest.raises(AssertionError):
        found.accept_epoch(3)


@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_only_the_promised_epoch_is_adopted(epoch: int) -> None:
    """Z20."""
    with pytest.raises(AssertionError):
        ledger(accepted=4, current=2).adopt_epoch(epoch)


def test_current_epoch_is_never_above_the_promise() -> None:
    """Z20."""
    with pytest.raises(AssertionError):
        ledger(accepted=1, current=2)


def test_applied_is_what_is_both_committed_and_durable() -> None:
    found = ledger()
    append(found, 0, 1)
    append(found, 2, 3)
    found.commit(z(2))
    assert applied(found) == []
    found.on_logged(z(1))
    assert applied(found) == [z(1)]
    found.on_logged(z(3))
    assert applied(found) == [z(1), z(2)]
    found.commit(z(3))
    assert applied(found) == [z(1), z(2), z(3)]
    found.commit(z(3))
    assert applied(found) == [z(1), z(2), z(3)], "once"


def test_who_serves_nobody_may_apply_what_is_durable() -> None:
    found = ledger()
    append(found, 0, 3)
    append(found, 4, 4)
    found.apply_durable()
    assert applied(found) == []
    found.on_logged(z(3))
    found.apply_durable()
    assert applied(found) == [z(3)] and not found.may_serve
    found.commit(z(2))
    assert applied(found) == [z(3)] and not found.may_serve, "nothing twice"
    found.commit(z(4))
    assert applied(found) == [z(3)] and found.may_serve
    found.on_logged(z(4))
    assert applied(found) == [z(3), z(4)]


def test_what_waits_for_the_disk_is_counted() -> None:
    found = ledger()
    found.append([b"x" * 5, b"y"], z(0), z(1))
    found.append([b"z" * 7], z(2), z(2))
    found.append([b"z"], z(3), z(3))
    assert found.queued_bytes == 14
    found.on_logged(z(2))
    assert found.queued_bytes == 1
    found.on_refused(z(3))
    assert found.queued_bytes == 0


def test_a_commit_that_is_already_known_is_no_step_back() -> None:
    """Z11: UPTODATE of a term may name less than an earlier term has committed."""
    found = ledger(last=5)
    found.commit(z(4))
    found.commit(z(2))
    assert found.committed_zxid == z(4) and applied(found) == [z(4)]


def test_what_is_not_logged_is_not_committed() -> None:
    with pytest.raises(AssertionError):
        ledger(last=2).commit(z(3))


def test_one_sync_may_end_several_appends() -> None:
    found = ledger()
    for counter in range(4):
        append(found, counter, counter)
    found.on_logged(z(2))
    assert found.durable_zxid == z(2) and not found.is_settled
    found.on_logged(z(3))
    assert found.is_settled


@pytest.mark.parametrize("counter", [0, 2, 4])
def test_a_sync_ends_with_an_append_that_was_asked_for(counter: int) -> None:
    """An end in the middle of a group, or behind all of them, is our own fault."""
    found = ledger()
    append(found, 0, 1)
    append(found, 2, 3)
    with pytest.raises((AssertionError, IndexError)):
        found.on_logged(z(counter))


def test_a_gap_is_not_logged() -> None:
    """ZR11, Z16."""
    found = ledger(last=2)
    for first in (z(4), z(2), z(1, epoch=2)):
        with pytest.raises(AssertionError):
            found.append([b""], first, first)
    assert found.effects == [] and found.log.last_zxid == z(2)


def test_nothing_committed_is_truncated() -> None:
    """Z14."""
    found = ledger(last=5)
    found.commit(z(3))
    with pytest.raises(AssertionError):
        found.truncate_to(z(2))
    found.truncate_to(z(3))
    assert found.log.last_zxid == found.durable_zxid == z(3)


def test_the_log_is_not_truncated_under_a_running_append() -> None:
    """ZR9, ZR10."""
    found = ledger(last=5)
    append(found, 6, 6)
    with pytest.raises(AssertionError):
        found.truncate_to(z(3))


def test_a_refusal_takes_back_all_that_was_asked_for_behind_it() -> None:
    """ZR12: appends, `AdoptEpoch`, and a commit that had come before the disk."""
    found = ledger(accepted=2, last=1)
    append(found, 2, 2)
    append(found, 3, 4)
    found.adopt_epoch(2)
    append(found, 5, 5)
    found.commit(z(4))
    found.on_logged(z(2))
    found.on_refused(z(3))
    assert found.is_settled
    assert found.log.last_zxid == found.durable_zxid == found.committed_zxid == z(2)
    assert found.current_epoch == 1
    assert applied(found) == [z(1), z(2)]
    append(found, 3, 3)
    found.adopt_epoch(2)
    found.on_logged(z(3))
    found.on_epoch_adopted(2)
    assert found.is_settled and found.current_epoch == 2


def test_a_refusal_does_not_take_back_what_is_durable() -> None:
    found = ledger(last=2)
    append(found, 3, 3)
    with pytest.raises(AssertionError):
        found.on_refused(z(2))


def test_work_that_nobody_asked_for_does_not_end() -> None:
    found = ledger(accepted=2, last=2)
    with pytest.raises(AssertionError):
        found.on_epoch_accepted(3)
    with pytest.raises(AssertionError):
        found.on_epoch_adopted(2)
    with pytest.raises(AssertionError):
        found.on_truncated(z(2))


# --- What is applied at the start -----------------------------------------------------------------


def rebuilt(last: int, applied_to: int) -> Ledger:
    """One that holds epoch 1 up to `last`, and has applied that much of it already."""
    log = EpochEnds(0)
    log.append(z(0), z(last))
    return Ledger(1, 1, log, Memberships(Membership(frozenset({1}))), z(applied_to))


def test_what_is_applied_already_is_not_told_to_be_applied() -> None:
    found = rebuilt(last=5, applied_to=5)
    assert not found.may_serve
    found.commit(z(3))
    assert applied(found) == [] and not found.may_serve, "4 and 5 may have to go again"
    found.commit(z(5))
    assert applied(found) == [] and found.may_serve
    append(found, 6, 6)
    found.commit(z(6))
    assert found.may_serve
    found.on_logged(z(6))
    assert applied(found) == [z(6)]


def test_what_was_applied_and_truncated_is_applied_again_as_it_is_then() -> None:
    found = rebuilt(last=5, applied_to=5)
    found.truncate_to(z(2))
    assert found.applied_zxid == z(2)
    found.on_truncated(z(2))
    append(found, 3, 3)
    found.on_logged(z(3))
    found.commit(z(3))
    assert applied(found) == [z(3)] and found.may_serve


def test_nothing_is_applied_that_is_not_logged() -> None:
    with pytest.raises(AssertionError):
        rebuilt(last=2, applied_to=3)


def test_a_purge_is_heard_of_also_while_a_snapshot_is_installed_that_is_refused_then() -> None:
    """Otherwise the log would be promised to learners further back than it goes."""
    found = rebuilt(last=5, applied_to=5)
    found.receive_snapshot(z(9))
    found.install_snapshot(z(9), 1, 0)
    found.on_purged(z(3))
    found.on_snapshot_refused()
    assert (found.log.first_zxid_before, found.log.last_zxid) == (z(3), z(5))


def test_members_that_came_behind_a_snapshot_that_is_refused_are_none() -> None:
    found = rebuilt(last=5, applied_to=5)
    found.receive_snapshot(z(9))
    found.on_snapshot_begun()
    found.install_snapshot(z(9), 1, 0)
    others = tuple(Member(n, f"10.0.0.{n}", 2888) for n in (4, 5, 6))
    body = (TxnKind.MEMBERS, 0, config_data(others, 1))
    found.append([encode_txn(z(10), 0, 0, 0, body)], z(10), z(10))
    assert found.memberships.current.voters == {4, 5, 6}
    found.on_snapshot_refused()
    assert found.memberships.current.voters == {1} and found.is_settled


def test_nobody_votes_while_room_for_a_snapshot_is_being_made() -> None:
    """It may be refused, and then takes back what was asked for behind it."""
    found = rebuilt(last=5, applied_to=5)
    found.receive_snapshot(z(9))
    assert not found.is_settled
    found.on_snapshot_begun()
    assert found.is_settled
