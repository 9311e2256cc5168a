"""What a learner says when, and what ends its term. ZR and Z: reliability.md."""

from __future__ import annotations

from typing import Any

import pytest

from duolog_protocol.quorum_messages import (
    Ack,
    AckEpoch,
    ChunkStored,
    Commit,
    FollowerInfo,
    HistoryStored,
    LeaderInfo,
    NewLeader,
    NewLeaderAck,
    Ping,
    Pong,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    Truncate,
    UpToDate,
    Vote,
)
from duolog_protocol.types import make_zxid
from zkserver.core.peer_events import PeerTimerFired

from .peer_support import DEFAULTS, Ensemble, established, proposal

OLD = [b"1.0 a", b"1.1 b"]


def asked() -> Ensemble:
    """LEADERINFO of epoch 2 is on its way from 3 to 1 and 2, which hold nothing; 3 holds OLD."""
    ensemble = Ensemble()
    ensemble[3].holds(*OLD, accepted=1, current=1)
    ensemble.start()
    ensemble.deliver(1, 3)
    ensemble.deliver(2, 3)
    ensemble[3].do_disk()
    assert ensemble.waiting(3, 1) == [LeaderInfo(2)]
    return ensemble


def syncing() -> Ensemble:
    """The history and NEWLEADER are on their way from 3 to 1."""
    ensemble = asked()
    ensemble.deliver(3, 1)
    ensemble[1].do_disk()
    ensemble.deliver(1, 3)
    assert ensemble.waiting(3, 1) == [*map(proposal, OLD), NewLeader(2)]
    return ensemble


def adopting() -> Ensemble:
    """1 was told everything, and its disk has done nothing of it."""
    ensemble = syncing()
    ensemble.deliver(3, 1)
    return ensemble


def adopted() -> Ensemble:
    """1 has acknowledged NEWLEADER, and UPTODATE has not come: 3 has not adopted its own epoch."""
    ensemble = adopting()
    ensemble[1].do_disk()
    return ensemble


def serving() -> Ensemble:
    ensemble = adopted()
    ensemble.settle()
    assert ensemble[1].serving == (2, 3)
    return ensemble


# --- What must be durable before it is said -------------------------------------------------------


def test_a_promise_is_durable_before_it_is_made() -> None:
    """A.14, Z-2307."""
    ensemble = asked()
    ensemble.deliver(3, 1)
    assert ensemble[1].messages() == [FollowerInfo(1, 0, 1)]
    ensemble[1].do_disk(1)
    assert ensemble[1].accepted_epoch == 2
    assert ensemble[1].messages() == [FollowerInfo(1, 0, 1), AckEpoch(0, 0, is_promise=True)]


def test_newleader_is_acknowledged_behind_history_and_current_epoch_in_this_order() -> None:
    """ZR5, ZR6 (Z-3911, Z-4643, Z-4646): each step happens to the disk before the next one."""
    ensemble = adopting()
    seen = []
    while ensemble[1].do_disk(1):
        acks = ensemble[1].messages(NewLeaderAck, Ack)
        seen.append((len(ensemble[1].log), ensemble[1].current_epoch, acks))
    assert seen == [(1, 0, []), (2, 0, []), (2, 2, [NewLeaderAck(2)])]


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_learner_that_dies_while_it_adopts_votes_with_what_its_disk_has(done: int) -> None:
    """ZR6: with half of the history it does not claim the epoch, so that it cannot win by it."""
    ensemble = adopting()
    ensemble[1].do_disk(done)
    ensemble[1].kill()
    assert ensemble[1].accepted_epoch == 2
    assert ensemble[1].log == OLD[:done]
    assert ensemble[1].current_epoch == (2 if done == 3 else 0)
    ensemble[1].start()
    vote = ensemble[1].notified[0].vote
    last_zxids = [0, make_zxid(1, 0), make_zxid(1, 1), make_zxid(1, 1)]
    assert (vote.epoch, vote.zxid) == (ensemble[1].current_epoch, last_zxids[done])
    ensemble.advance(DEFAULTS.init_limit_ms * 2)
    assert {bool(serving) for serving in ensemble.serving().values()} == {True}
    assert [each.applied for each in ensemble.servers.values()] == [OLD] * 3


def test_what_was_committed_survives_the_power_loss_of_the_quorum_that_committed_it() -> None:
    """ZR5: the old leader stays down."""
    ensemble = adopted()
    ensemble.deliver(1, 3)
    ensemble[3].do_disk()
    assert ensemble[3].applied == OLD, "committed by 1 and 3"
    for each in (1, 2, 3):
        ensemble[each].kill()
    ensemble.start(1, 2)
    ensemble.settle()
    assert ensemble.leader is ensemble[1]
    assert ensemble[1].applied == ensemble[2].applied == OLD


def test_a_record_is_acknowledged_once_it_is_durable() -> None:
    """A.14."""
    ensemble = established()
    ensemble[3].propose(b"a")
    ensemble.deliver(3, 1)
    assert ensemble[1].messages(Ack) == []
    ensemble[1].do_disk(1)
    assert ensemble[1].messages(Ack) == [Ack(make_zxid(1, 0))]


def test_what_comes_behind_newleader_is_acknowledged_behind_it() -> None:
    """ZR7 (Z-4685, Z-3023), A.6.6: whatever the disk has done at that moment."""
    ensemble = adopting()
    for record in (b"2.0 c", b"2.1 d"):
        ensemble.forge(3, 1, proposal(record))
    ensemble[1].do_disk(2)
    assert ensemble[1].messages(NewLeaderAck, Ack) == []
    ensemble[1].do_disk()
    assert ensemble[1].messages(NewLeaderAck, Ack) == [
        NewLeaderAck(2),
        Ack(make_zxid(2, 0)),
        Ack(make_zxid(2, 1)),
    ]
    assert ensemble[1].applied == []


def test_uptodate_may_commit_what_is_still_on_its_way_to_the_disk() -> None:
    """ZR8: PROPOSAL, NEWLEADER, PROPOSAL, UPTODATE, COMMIT; each is applied once, and durable."""
    ensemble = adopted()
    ensemble.forge(3, 1, proposal(b"2.0 c"))
    ensemble.forge(3, 1, proposal(b"2.1 d"))
    ensemble.forge(3, 1, UpToDate(make_zxid(2, 0)))
    assert ensemble[1].serving == (2, 3)
    assert ensemble[1].applied == OLD
    ensemble.forge(3, 1, Commit(make_zxid(2, 1)))
    ensemble[1].do_disk(1)
    assert ensemble[1].applied == [*OLD, b"2.0 c"]
    ensemble[1].do_disk(1)
    assert ensemble[1].applied == [*OLD, b"2.0 c", b"2.1 d"]


# --- How much a learner keeps in memory -----------------------------------------------------------


def test_history_is_told_to_be_stored_once_it_is_and_never_acknowledged() -> None:
    ensemble = syncing()
    ensemble.deliver(3, 1, 2)
    assert ensemble[1].messages(HistoryStored) == []
    ensemble[1].do_disk(1)
    assert ensemble[1].messages(HistoryStored, Ack) == [HistoryStored(make_zxid(1, 0))]
    ensemble.deliver(3, 1)
    ensemble[1].do_disk()
    assert len(ensemble[1].messages(HistoryStored)) == 1, "behind NEWLEADER nobody waits for it"


def test_what_is_durable_is_applied_piece_by_piece_before_anybody_is_served() -> None:
    """So that neither all of the history is kept until UPTODATE nor all of it applied at once."""
    ensemble = adopting()
    ensemble.forge(3, 1, proposal(b"2.0 c"))
    for count in (1, 2, 2, 3):
        ensemble[1].do_disk(1)
        assert ensemble[1].built == [*OLD, b"2.0 c"][:count]
        assert ensemble[1].applied == [] and ensemble[1].serving is None
    ensemble.forge(3, 1, UpToDate(make_zxid(1, 1)))
    assert ensemble[1].serving is None, "2.0 is applied, and may have to go again"
    ensemble.forge(3, 1, proposal(b"2.1 d"))
    ensemble[1].do_disk()
    assert len(ensemble[1].built) == 3, "from now on only what is committed"
    ensemble.forge(3, 1, Commit(make_zxid(2, 0)))
    assert ensemble[1].serving == (2, 3) and ensemble[1].applied == [*OLD, b"2.0 c"]
    ensemble.forge(3, 1, Commit(make_zxid(2, 1)))
    assert ensemble[1].applied == [*OLD, b"2.0 c", b"2.1 d"]


def test_what_was_applied_before_it_was_committed_goes_again_with_a_truncation() -> None:
    ensemble = syncing()
    ensemble.deliver(3, 1, 2)
    ensemble[1].do_disk()
    assert ensemble[1].built == OLD
    ensemble[3].kill()
    ensemble.lose_link(1, 3)
    ensemble[2].holds(b"1.0 a", accepted=3, current=3)
    ensemble[2].kill()
    ensemble[2].start()
    ensemble.advance(DEFAULTS.init_limit_ms)
    assert ensemble.leader is ensemble[2]
    assert ensemble[1].built == ensemble[1].log == ensemble[1].applied == [b"1.0 a"]


@pytest.mark.parametrize("is_adopted", [False, True])
def test_who_is_permanently_slower_than_the_leader_gives_up(is_adopted: bool) -> None:
    """What is proposed would heap up without end; then it is sent as fast as it can take it."""
    ensemble = Ensemble()
    config = ensemble[1].config
    ensemble[1].config = config._replace(max_queued_bytes=100)
    ensemble.start()
    ensemble.settle()
    if not is_adopted:
        ensemble.lose_link(1, 3)
        ensemble.settle(without_disk_of=1)
        ensemble[1].do_disk(1)
    words = [b"%d" % number for number in range(20)]
    for word in words:
        ensemble[3].propose(word)
        ensemble.settle(without_disk_of=1)
    assert any("too slow" in reason for reason in ensemble[1].reasons)
    queued = sum(len(r) for work in ensemble[1].disk for r in getattr(work, "records", ()))
    assert 100 < queued < 120 and ensemble[3].serving == (1, 3)
    ensemble.advance(DEFAULTS.init_limit_ms)
    assert ensemble[1].serving == (1, 3) and len(ensemble[1].applied) == len(words)


def test_history_that_is_still_written_does_not_count_as_too_slow() -> None:
    """It has come as fast as was asked for; else a short bound would send it back for ever."""
    ensemble = syncing()
    ensemble[1].peer._config = ensemble[1].config._replace(max_queued_bytes=8)
    ensemble[1].peer._role._config = ensemble[1].peer._config  # type: ignore[union-attr]
    ensemble.deliver(3, 1)
    queued = sum(map(len, OLD))
    assert queued > 8 and ensemble[1].peer._ledger.queued_bytes == queued
    for record in (b"2.0 c", b"2.1 d"):
        ensemble.forge(3, 1, proposal(record))
    assert ensemble[1].reasons == []
    ensemble.forge(3, 1, proposal(b"2.2 e"))
    assert "too slow" in ensemble[1].reasons[0]


# --- What does not fit ----------------------------------------------------------------------------

IN_EVERY_PHASE: list[Any] = [
    LeaderInfo(1),  # older than what was promised, or out of its phase
    NewLeader(9),
    UpToDate(make_zxid(2, 9)),  # commits what was not proposed
    Commit(make_zxid(2, 9)),
    Truncate(make_zxid(1, 9)),  # not in the log
    proposal(b"2.3 gap"),
    proposal(b"1.3 gap"),
    proposal(b"1.0 again"),
    proposal(b"9.0 of a later epoch"),
    Ack(0),  # learners say that
    Pong(0),
    FollowerInfo(3, 0, 1),
    NewLeaderAck(2),
    AckEpoch(0, 0, is_promise=True),
]
OUT_OF_PHASE: dict[str, tuple[Any, list[Any]]] = {
    "asked": (asked, [NewLeader(2), UpToDate(0), Commit(0), Truncate(0), proposal(b"1.0 a")]),
    "syncing": (syncing, [LeaderInfo(2), LeaderInfo(3), UpToDate(0), Commit(0)]),
    "adopting": (
        adopting,
        [LeaderInfo(2), LeaderInfo(3), NewLeader(2), UpToDate(0), Commit(0), Truncate(0)],
    ),
    "adopted": (adopted, [LeaderInfo(3), NewLeader(2), Commit(0), Truncate(make_zxid(1, 1))]),
    "serving": (
        serving,
        [LeaderInfo(3), NewLeader(2), UpToDate(make_zxid(1, 1)), Truncate(make_zxid(1, 1))],
    ),
}


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        pytest.param(phase, message, id=f"{phase} {message!r}")
        for phase, (_, messages) in OUT_OF_PHASE.items()
        for message in IN_EVERY_PHASE + messages
        if (phase, message) not in {("asked", LeaderInfo(1)), ("syncing", proposal(b"1.0 again"))}
    ],
)
def test_what_does_not_fit_ends_the_term_without_an_effect_on_the_log(
    phase: str, message: Any
) -> None:
    """Z15, Z16, Z17, Z19, ZR11: and the server comes back, to the same log as the others."""
    ensemble: Ensemble = OUT_OF_PHASE[phase][0]()
    before = ensemble[1].peer.last_logged_zxid
    link = ensemble.link_of(1, 3)
    work = len(ensemble[1].disk)
    ensemble.forge(3, 1, message)
    assert 1 not in link.open and ensemble[1].is_looking and ensemble[1].serving is None
    assert ensemble[1].peer.last_logged_zxid == before and len(ensemble[1].disk) == work
    ensemble.advance(2 * DEFAULTS.init_limit_ms)
    assert ensemble.leader.applied == ensemble[1].applied == OLD


def test_an_epoch_older_than_the_promise_is_refused() -> None:
    """ZR19, A.4.3."""
    ensemble = Ensemble()
    ensemble[1].holds(accepted=5, current=0)
    ensemble.start()
    ensemble.deliver(1, 3)
    ensemble.forge(3, 1, LeaderInfo(4))
    assert ensemble[1].accepted_epoch == 5 and not ensemble[1].disk
    assert 1 not in ensemble.link_of(1, 3).open


def test_the_same_epoch_is_not_promised_twice() -> None:
    """A.4.3: what was promised to one leader must not be counted by another one."""
    ensemble = Ensemble()
    ensemble[1].holds(accepted=5, current=0)
    ensemble.start()
    ensemble.deliver(1, 3)
    ensemble.forge(3, 1, LeaderInfo(5))
    assert ensemble[1].messages(AckEpoch) == [AckEpoch(0, 0, is_promise=False)]
    assert not ensemble[1].disk


def test_a_truncation_of_what_is_committed_ends_the_term_and_not_the_process() -> None:
    """Z14: the log stays as it is."""
    ensemble = serving()
    ensemble.lose_link(1, 3)
    ensemble.gossip()
    ensemble.deliver(1, 3)
    assert ensemble.deliver(3, 1) == [LeaderInfo(2)]
    ensemble.forge(3, 1, Truncate(make_zxid(1, 0)))
    assert ensemble[1].is_looking and not ensemble[1].disk


# --- Silence --------------------------------------------------------------------------------------


def test_a_leader_that_is_silent_ends_the_term() -> None:
    """A.8."""
    ensemble = established()
    ensemble.cut(1, 3)
    ensemble.advance(DEFAULTS.sync_limit_ms - 1)
    assert ensemble[1].serving == (1, 3)
    ensemble.advance(1)
    assert ensemble[1].serving is None
    assert ensemble[2].serving == ensemble[3].serving == (1, 3)


def test_pings_keep_an_idle_ensemble_together() -> None:
    """A.8."""
    ensemble = established(3, 1)
    ensemble.advance(5 * DEFAULTS.sync_limit_ms)
    assert set(ensemble.serving().values()) == {(1, 3)}
    assert all(server.reasons == [] for server in ensemble.servers.values())
    assert ensemble[3].messages(Ping) and ensemble[4].messages(Pong)


def test_a_leader_that_does_not_get_ready_in_time_ends_the_term() -> None:
    ensemble = asked()
    ensemble.advance(DEFAULTS.init_limit_ms - ensemble.now_ms - 1, quiet=False)
    assert ensemble[1].reasons == []
    ensemble.advance(1, quiet=False)
    assert "slow to start" in ensemble[1].reasons[0]


def test_the_end_of_the_link_ends_the_term() -> None:
    ensemble = established()
    ensemble.lose_link(1, 3)
    assert ensemble[1].serving is None and ensemble[1].is_looking
    assert ensemble[3].serving == (1, 3)


def test_a_server_that_cannot_be_reached_is_not_waited_for() -> None:
    ensemble = Ensemble()
    ensemble.start()
    ensemble[3].kill()
    ensemble.deliver(1, 3)
    assert ensemble[1].is_looking
    ensemble.deliver(2, 3)
    ensemble.advance(1_000)
    assert ensemble.leader is ensemble[2]


# --- What is applied at the start -----------------------------------------------------------------


def test_nobody_is_served_before_all_that_was_applied_at_the_start_is_committed() -> None:
    """What only 2 has on its disk is applied there, and may have to go again."""
    ensemble = established()
    ensemble[3].propose(b"a")
    ensemble.deliver(3, 2)
    ensemble[2].do_disk()
    ensemble.lose_link(2, 3)
    ensemble[2].kill()
    ensemble[2].start()
    ensemble.gossip()
    ensemble.advance(DEFAULTS.notification_last_ms, quiet=False)
    for _ in range(3):
        ensemble.deliver(2, 3)
        ensemble.deliver(3, 2)
        ensemble[2].do_disk()
    assert ensemble[2].built == [b"1.0 a"] and ensemble[2].serving is None
    assert ensemble[3].messages(UpToDate, to=2)[-1] == UpToDate(0)
    ensemble[3].do_disk()
    ensemble.settle()
    assert ensemble[2].serving == (1, 3) and ensemble[2].applied == [b"1.0 a"]


# --- What comes of the history, and in which order ------------------------------------------------


@pytest.mark.parametrize("is_written", [False, True])
@pytest.mark.parametrize("late", [Truncate(0), SnapshotBegin(make_zxid(2, 7))])
def test_nothing_is_cut_or_replaced_once_history_has_come(late: Any, is_written: bool) -> None:
    ensemble = syncing()
    ensemble.deliver(3, 1, 1)
    if is_written:
        ensemble[1].do_disk()
    ensemble.forge(3, 1, late)
    assert "out of its phase" in ensemble[1].reasons[0]


def receiving() -> Ensemble:
    """1 has promised epoch 2, and was told that a snapshot comes, at 1.5."""
    ensemble = asked()
    ensemble.deliver(3, 1)
    ensemble[1].do_disk()
    ensemble.ways[3, 1].clear()
    ensemble.forge(3, 1, SnapshotBegin(make_zxid(1, 5)))
    return ensemble


def test_every_chunk_is_answered_once_it_is_written() -> None:
    ensemble = receiving()
    ensemble.forge(3, 1, SnapshotChunk(b"a"))
    assert ensemble[1].messages(ChunkStored) == []
    ensemble[1].do_disk()
    assert ensemble[1].messages(ChunkStored) == [ChunkStored()]


def test_behind_a_snapshot_the_log_goes_on_and_the_epoch_is_adopted_last() -> None:
    """A.6: state, history, epoch, and only then it is acknowledged."""
    ensemble = receiving()
    ensemble.forge(3, 1, SnapshotChunk(b"a"))
    ensemble.forge(3, 1, SnapshotEnd(make_zxid(1, 5), 1, 0))
    ensemble.forge(3, 1, proposal(b"1.6 b"))
    ensemble.forge(3, 1, NewLeader(2))
    kinds = [type(work).__name__ for work in ensemble[1].disk]
    assert kinds == [
        *("ReceiveSnapshot", "StoreChunk", "InstallSnapshot", "AppendRecords", "AdoptEpoch")
    ]
    ensemble[1].do_disk(4)
    assert ensemble[1].current_epoch == 0 and ensemble[1].messages(NewLeaderAck) == []
    assert ensemble[1].peer.last_durable_zxid == make_zxid(1, 6)
    ensemble[1].do_disk()
    assert ensemble[1].messages(NewLeaderAck) == [NewLeaderAck(2)]


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_term_that_ends_within_a_snapshot_votes_with_what_is_there(has_ended: bool) -> None:
    """A.6.7: half a snapshot is nothing; a whole one is installed, and then there is a vote."""
    ensemble = receiving()
    ensemble.forge(3, 1, SnapshotChunk(b"a"))
    if has_ended:
        ensemble.forge(3, 1, SnapshotEnd(make_zxid(1, 5), 1, 0))
    count = len(ensemble[1].notified)
    ensemble.lose_link(1, 3)
    assert ensemble[1].is_looking and len(ensemble[1].notified) == count, "not yet"
    ensemble[1].do_disk()
    zxid = make_zxid(1, 5) if has_ended else 0
    assert ensemble[1].notified[-1].vote == Vote(0, zxid, 1)
    assert ensemble[1].peer.last_committed_zxid == zxid


@pytest.mark.parametrize(
    "wrong",
    [
        SnapshotEnd(make_zxid(1, 4), 0, 0),
        SnapshotBegin(make_zxid(1, 6)),
        proposal(b"1.6 b"),
        NewLeader(2),
        Truncate(0),
    ],
)
def test_what_does_not_belong_into_a_snapshot_ends_the_term(wrong: Any) -> None:
    ensemble = receiving()
    ensemble.forge(3, 1, wrong)
    assert len(ensemble[1].reasons) == 1 and ensemble[1].messages(NewLeaderAck) == []


@pytest.mark.parametrize("wrong", [SnapshotChunk(b"a"), SnapshotEnd(make_zxid(1, 5), 0, 0)])
def test_nothing_of_a_snapshot_comes_without_its_beginning(wrong: Any) -> None:
    ensemble = asked()
    ensemble.deliver(3, 1)
    ensemble[1].do_disk()
    ensemble.ways[3, 1].clear()
    ensemble.forge(3, 1, wrong)
    assert len(ensemble[1].reasons) == 1


def test_who_has_adopted_waits_for_others_whose_history_takes_long() -> None:
    """Else who is ready takes the quorum away from a leader that sends a snapshot to another."""
    ensemble = adopted()
    for _ in range(4):
        ensemble.now_ms += DEFAULTS.init_limit_ms - 1
        ensemble.forge(3, 1, Ping(0))
        ensemble[1].step(PeerTimerFired())
    assert ensemble[1].reasons == []
    ensemble.now_ms += DEFAULTS.init_limit_ms
    ensemble[1].step(PeerTimerFired())
    assert "silent" in ensemble[1].reasons[0]
