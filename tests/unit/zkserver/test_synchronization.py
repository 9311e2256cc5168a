"""How the log of a learner becomes that of its leader. ZR and Z: reliability.md."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from duolog_protocol.quorum_messages import (
    ChunkStored,
    Commit,
    LeaderInfo,
    NewLeader,
    Pong,
    Proposal,
    Truncate,
    UpToDate,
)
from duolog_protocol.types import make_zxid
from zkserver.core.epoch_ends import EpochEnds
from zkserver.core.leader import Leader, LearnerStage
from zkserver.core.peer_events import HistorySent
from zkserver.core.synchronization import SyncPlan, plan_sync

from .peer_support import DEFAULTS, Ensemble, established, proposal, zxid_of

# --- The plan -------------------------------------------------------------------------------------


def log_of(*records: bytes, after: int = 0) -> EpochEnds:
    log = EpochEnds(after)
    for zxid in map(zxid_of, records):
        log.append(zxid, zxid)
    return log


OURS = log_of(b"1.0", b"1.1", b"1.2", b"3.0", b"3.1")


@pytest.mark.parametrize(
    ("learner", "plan"),
    [
        (0, SyncPlan(None, 0)),
        (make_zxid(1, 1), SyncPlan(None, make_zxid(1, 1))),
        (make_zxid(3, 1), SyncPlan(None, make_zxid(3, 1))),
        (make_zxid(3, 4), SyncPlan(make_zxid(3, 1), make_zxid(3, 1))),
        (make_zxid(1, 9), SyncPlan(make_zxid(1, 2), make_zxid(1, 2))),
        (make_zxid(2, 0), SyncPlan(make_zxid(1, 2), make_zxid(1, 2))),
        (make_zxid(9, 0), SyncPlan(make_zxid(3, 1), make_zxid(3, 1))),
    ],
)
def test_a_learner_is_cut_to_the_last_common_zxid_and_told_what_follows(
    learner: int, plan: SyncPlan
) -> None:
    """A.5, across epochs, too."""
    assert plan_sync(learner, OURS) == plan


def test_a_learner_from_before_the_log_begins_needs_a_snapshot() -> None:
    log = log_of(b"2.5", after=make_zxid(2, 4))
    assert plan_sync(make_zxid(2, 3), log) is None
    assert plan_sync(make_zxid(2, 4), log) == SyncPlan(None, make_zxid(2, 4))


def leader_and_learner(rng: random.Random) -> tuple[list[int], list[int]]:
    """Two of three logs as they may come to be: an epoch has records once a quorum has adopted it,
    and whoever leads knows no less than one other server."""
    logs: list[list[int]] = [[], [], []]
    adopted = [0, 0, 0]
    epoch = 0
    while True:
        epoch += 1
        follower, leader = sorted(rng.sample(range(3), 2), key=lambda i: (adopted[i], logs[i]))
        other = 3 - leader - follower
        if epoch > 6:
            return logs[leader], logs[rng.choice([follower, other])]
        history = list(logs[leader])
        adopted[leader] = adopted[follower] = epoch
        logs[leader] += [make_zxid(epoch, each) for each in range(rng.randrange(4))]
        logs[follower] = logs[leader][: rng.randint(len(history), len(logs[leader]))]
        if rng.random() < 0.5:  # it is synchronized, and may be cut off in the middle of that
            parts = [a == b for a, b in zip(logs[other], logs[leader], strict=False)]
            common = [*parts, False].index(False)
            logs[other] = logs[leader][: rng.randint(common, len(logs[leader]))]
            if len(logs[other]) >= len(history) and rng.random() < 0.5:
                adopted[other] = epoch


def test_a_plan_followed_makes_both_logs_equal() -> None:
    """Z12: whatever is in either log."""
    truncations = 0
    for seed in range(1000):
        ours, theirs = leader_and_learner(random.Random(seed))
        ends = EpochEnds(0)
        for zxid in ours:
            ends.append(zxid, zxid)
        plan = plan_sync(theirs[-1] if theirs else 0, ends)
        assert plan is not None
        kept = theirs
        if plan.truncate_to is not None:
            truncations += 1
            kept = [zxid for zxid in theirs if zxid <= plan.truncate_to]
        assert kept + [zxid for zxid in ours if zxid > plan.after_zxid] == ours, seed
    assert truncations > 50, truncations


# --- What a learner is told -----------------------------------------------------------------------


def joining(learner_log: list[bytes], *, accepted: int, current: int) -> Ensemble:
    """2 and 3 serve epoch 2 with three records; 1 comes with another log."""
    ensemble = Ensemble()
    for each in (2, 3):
        ensemble[each].holds(b"1.0 a", b"1.1 b", accepted=1, current=1)
    ensemble.start(2, 3)
    ensemble.settle()
    ensemble[3].propose(b"c")
    ensemble.settle()
    assert ensemble[3].serving == (2, 3)
    ensemble[1].holds(*learner_log, accepted=accepted, current=current).start()
    return ensemble


LOG = [b"1.0 a", b"1.1 b", b"2.0 c"]


@pytest.mark.parametrize(
    ("learner_log", "told"),
    [
        ([], [*map(proposal, LOG)]),
        (LOG[:1], [*map(proposal, LOG[1:])]),
        (LOG, []),
        ([*LOG[:2], b"1.2 lost"], [Truncate(make_zxid(1, 1)), proposal(LOG[2])]),
    ],
)
def test_a_learner_is_told_what_its_log_lacks_then_newleader_then_uptodate(
    learner_log: list[bytes], told: list[Truncate | Proposal]
) -> None:
    """ZR15 (Z-3104), ZR1: and a log that is longer is cut to the last common zxid first."""
    ensemble = joining(learner_log, accepted=1, current=1)
    ensemble.settle()
    assert ensemble[3].messages(to=1) == [
        LeaderInfo(2),
        *told,
        NewLeader(2),
        UpToDate(make_zxid(2, 0)),
    ]
    assert ensemble[1].log == ensemble[1].applied == LOG


@pytest.mark.parametrize("done", range(6))
def test_a_learner_that_dies_at_any_point_of_its_synchronization_is_synchronized_again(
    done: int,
) -> None:
    """ZR1, ZR6, ZR9: TRUNC, history and epoch happen to its disk in this order, or not yet."""
    ensemble = joining([b"1.0 a", b"1.1 b", b"1.2 lost", b"1.3 lost"], accepted=1, current=1)
    for _ in range(done):
        ensemble.settle(without_disk_of=1)
        ensemble[1].do_disk(1)
    common = ensemble[1].log[:2]
    assert common == LOG[:2] and ensemble[1].log in (
        [*common, b"1.2 lost", b"1.3 lost"],
        common,
        LOG,
    )
    assert ensemble[1].current_epoch == 1 or ensemble[1].log == LOG
    ensemble[1].kill()
    ensemble[1].start()
    ensemble.settle()
    assert ensemble[1].applied == LOG and ensemble[1].serving == (2, 3)


def test_a_learner_whose_link_breaks_while_it_truncates_finishes_that_first() -> None:
    """ZR9, ZR4 (Z-5094): it votes with the log that it has afterwards."""
    ensemble = joining([b"1.0 a", b"1.1 b", b"1.2 lost"], accepted=1, current=1)
    ensemble.settle(without_disk_of=1)
    ensemble[1].do_disk(1)
    ensemble.settle(without_disk_of=1)
    said = len(ensemble[1].notified)
    ensemble.lose_link(1, 3)
    ensemble[1].do_disk(1)
    assert ensemble[1].log == LOG[:2] and len(ensemble[1].notified) == said
    ensemble[1].do_disk()
    assert ensemble[1].notified[said].vote.zxid == make_zxid(2, 0)
    ensemble.settle()
    assert ensemble[1].applied == LOG


def waiting_for_a_snapshot() -> Ensemble:
    """1 has nothing, and what 3 leads with is in a snapshot."""
    ensemble = Ensemble()
    ensemble[3].holds(b"1.0 a", accepted=1, current=1)
    ensemble.start(2, 3)
    ensemble.settle()
    log = ensemble[3].peer._ledger.log  # what comes before its end is in a snapshot
    log.first_zxid_before = log.last_zxid
    ensemble[1].start()
    ensemble.gossip()
    ensemble.deliver(1, 3)
    ensemble.deliver(3, 1)
    ensemble[1].do_disk()
    ensemble.deliver(1, 3)
    return ensemble


def test_a_learner_that_only_a_snapshot_can_help_is_sent_one_and_all_that_comes_after_it() -> None:
    """SNAP, and all that becomes durable meanwhile; then the proposals that are not, and NEWLEADER;
    until then nothing that is proposed is kept for it."""
    ensemble = waiting_for_a_snapshot()
    (snapshot,) = ensemble[3].snapshots
    assert snapshot.link is ensemble.link_of(1, 3)
    ensemble[3].propose(b"b")
    ensemble[3].do_disk()
    in_flight = ensemble[3].propose(b"c")
    assert ensemble[3].messages(NewLeader, Proposal, to=1) == [], "it comes from the log"
    ensemble[3].step(HistorySent(snapshot.link, ensemble[3].peer.last_durable_zxid))
    assert ensemble[3].messages(to=1)[-2:] == [proposal(*in_flight), NewLeader(2)]
    ensemble[3].propose(b"d")
    assert ensemble[3].messages(Proposal, to=1)[-1].records == (b"2.2 d",)


def test_a_learner_that_stores_nothing_of_what_it_is_sent_is_dropped() -> None:
    """It answers all the while; but for its sake the leader keeps its log."""
    ensemble = waiting_for_a_snapshot()
    leader = ensemble[3].peer._role
    assert isinstance(leader, Leader)
    leader._config = leader._config._replace(catch_up_limit_ms=30_000)
    (link,) = (each for each, it in leader._learners.items() if it.server_id == 1)
    assert leader._learners[link].stage == LearnerStage.CATCHING_UP

    now_ms = ensemble.now_ms

    def answer_for(duration_ms: int) -> None:
        nonlocal now_ms
        for _ in range(duration_ms // 200):
            now_ms += 200
            for each in list(leader._learners):
                leader.on_message(each, Pong(0), now_ms)
            leader.on_timer(now_ms)

    answer_for(29_000)
    leader.on_message(link, ChunkStored(), now_ms)
    answer_for(29_000)
    assert link in leader._learners
    answer_for(2_000)
    assert link not in leader._learners


# --- While the leader proposes --------------------------------------------------------------------


@pytest.mark.parametrize("own_disk", [0, 1, 2, 3])
@pytest.mark.parametrize("step", range(7))
def test_who_joins_while_proposals_are_in_flight_gets_each_record_once(
    step: int, own_disk: int
) -> None:
    """ZR17 (Z-962), ZR15: whatever of them is on the leader's disk, in whatever phase it is."""
    ensemble = joining([], accepted=1, current=1)
    phases: list[Callable[[], object]] = [
        ensemble.gossip,
        lambda: ensemble.deliver(1, 3),
        lambda: ensemble.deliver(3, 1),
        ensemble[1].do_disk,
        lambda: ensemble.deliver(1, 3),
        lambda: ensemble.deliver(3, 1),
        ensemble[1].do_disk,
    ]
    for each in phases[:step]:
        each()
    records = [*ensemble[3].propose(b"d", b"e"), *ensemble[3].propose(b"f")]
    ensemble[3].do_disk(own_disk)
    for each in phases[step:]:
        each()
    records += ensemble[3].propose(b"g")
    ensemble.settle()
    told = [record for m in ensemble[3].messages(Proposal, to=1) for record in m.records]
    assert told == ensemble[1].log == ensemble[1].applied == [*LOG, *records]
    kinds = [type(m) for m in ensemble[3].messages(NewLeader, UpToDate, Commit, to=1)]
    assert kinds[:2] == [NewLeader, UpToDate] and set(kinds[2:]) <= {Commit}


def test_a_learner_that_comes_back_with_part_of_a_group_is_told_the_rest_of_it() -> None:
    """ZR17: its disk is ahead of the leader's."""
    ensemble = established()
    ensemble[3].propose(b"a", b"b", b"c")
    ensemble.lose_link(1, 3)
    ensemble[1].kill()
    ensemble[1].holds(b"1.0 a", accepted=1, current=1).start()
    ensemble.settle(without_disk_of=3)
    assert ensemble[3].messages(Proposal, to=1)[1:] == [proposal(b"1.1 b", b"1.2 c")]
    assert ensemble[1].applied == [b"1.0 a", b"1.1 b", b"1.2 c"]
    assert ensemble[3].applied == [], "its own disk is slow"
    ensemble[3].do_disk()
    assert ensemble[3].applied == ensemble[1].applied


def test_a_proposal_of_a_leader_that_gave_up_is_kept_where_its_successor_has_it() -> None:
    """Z14, Z8: it is in the history of the next epoch, and committed as a part of it."""
    ensemble = established()
    ensemble[3].propose(b"a")
    ensemble.deliver(3, 2)
    ensemble[2].do_disk()
    ensemble[3].kill()
    ensemble.advance(2 * DEFAULTS.sync_limit_ms)
    assert ensemble.leader is ensemble[2]
    assert ensemble[1].applied == ensemble[2].applied == [b"1.0 a"]
    ensemble[3].start()
    ensemble.settle()
    assert ensemble[3].applied == [b"1.0 a"]
