"""The leader: discovers an epoch, brings its learners to its history, proposes and commits.

    DISCOVERY        a quorum has told its accepted epochs: ours is one more, and durable, before
                     LEADERINFO says it; a quorum has promised it, and none of it knows more than us
    SYNCHRONIZATION  every learner gets what its log lacks, from our disk; once nothing of that is
                     missing, what is in flight, then NEWLEADER; a quorum has adopted the epoch, we
                     among it, durably
    BROADCAST        the history is committed; we propose, count acknowledgements, commit

Owns the learners and where each of them stands. It must never commit by counting what an older
epoch proposed, serve before a quorum has adopted its epoch, or go on without a quorum. A learner
that says what does not fit loses its link; a leader that cannot go on raises `GaveUp`. Source: Zab
(DSN 2011); ZooKeeper `Leader`, `LearnerHandler`; reference A.4 to A.8.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from duolog_protocol.errors import RemoteProtocolError
from duolog_protocol.quorum_messages import (
    Ack,
    AckEpoch,
    ChunkStored,
    Commit,
    FollowerInfo,
    HistoryStored,
    LeaderInfo,
    LeaderMessage,
    LearnerMessage,
    NewLeader,
    NewLeaderAck,
    Ping,
    Pong,
    Proposal,
    Truncate,
    UpToDate,
)
from duolog_protocol.types import ZXID_EPOCH_LAST, epoch_of

from .broadcast import Broadcast
from .ledger import Ledger
from .membership import Membership
from .peer_config import PeerConfig
from .peer_events import CloseLink, LeadConfirmed, ReadOn, SendHistory, SendSnapshot, Serve, Tell
from .roles import MAX_CALLERS_PER_SERVER, MAX_NON_MEMBERS, GaveUp, expect
from .synchronization import plan_sync

LONGEST_SYNC: Final = 24
"""Times `init_limit_ms` that a leader waits for learners that are taking over its history, and that
one of them may be busy with a part of it."""


class LearnerStage(IntEnum):
    """Where a learner stands; it only goes down this list."""

    CONNECTED = 0
    INTRODUCED = 1
    """It told its accepted epoch."""
    ASKED = 2
    """It was asked to promise ours."""
    PROMISED = 3
    CATCHING_UP = 4
    """It is sent what is on our disk; what we propose meanwhile will be there, too."""
    SYNCING = 5
    """It was told all of our history, and is told what we propose."""
    SYNCED = 6
    """It has adopted our epoch."""


_STORED: Final = (ChunkStored, HistoryStored)
_TAKING_OVER: Final = (LearnerStage.CATCHING_UP, LearnerStage.SYNCING)


class Learner:
    """One learner, as its leader sees it."""

    __slots__ = (
        "heard_ms",
        "last_zxid",
        "level",
        "link",
        "round",
        "server_id",
        "stage",
        "stored_ms",
        "synced_zxid",
    )

    def __init__(self, link: Any, now_ms: int) -> None:
        self.link = link
        self.server_id = 0
        """0 until it is introduced."""
        self.level = 0
        """The highest feature level that it knows."""
        self.stage = LearnerStage.CONNECTED
        self.last_zxid = 0
        """What its log held when it promised the epoch; then what it has acknowledged."""
        self.synced_zxid = 0
        """What it has once it has adopted the epoch."""
        self.heard_ms = now_ms
        self.stored_ms = now_ms
        """When it has stored something, while it is being sent what it lacks."""
        self.round = 0
        """Of the last Ping that it has answered."""


class Leader:
    """One term of leadership, established or not."""

    def __init__(self, config: PeerConfig, ledger: Ledger, now_ms: int) -> None:
        assert ledger.is_settled, "elected while the log was still written"
        self._config = config
        self._ledger = ledger
        self.epoch = 0
        """The epoch it opens; 0 until a quorum has told what it has accepted."""
        self.is_established = False
        """A quorum has adopted the epoch: it serves."""
        self._history: Final = (ledger.current_epoch, ledger.log.last_zxid)
        self._broadcast = Broadcast(ledger.log.last_zxid)
        self._accepted: dict[int, int] = {}
        """server_id -> accepted epoch, of all that have told: the epoch is above every one."""
        self._promised: set[int] = set()
        """Voters that have promised the epoch and know no more than we do."""
        self._has_promises = False
        """A quorum of them: the discovery is over."""
        self._synced: set[int] = set()
        """Voters that have adopted the epoch and are still there."""
        self._learners: dict[Any, Learner] = {}
        self._had_quorum = False
        """A quorum was introduced, ourselves among it: from then on one has to be there."""
        self._round = 0
        """Of the pings."""
        self._confirming: list[Any] = []
        """Who waits for a quorum to answer this round."""
        self._asking: list[Any] = []
        """Who came since it has begun, and waits for the next one."""
        self._ping_ms = now_ms + config.ping_interval_ms
        self._limit_ms = now_ms + config.init_limit_ms
        self._last_limit_ms = now_ms + LONGEST_SYNC * config.init_limit_ms
        """However long the history is that a quorum needs."""
        self._introduce(config.server_id, ledger.accepted_epoch)

    @property
    def _membership(self) -> Membership:
        return self._ledger.memberships.current

    @property
    def leader_id(self) -> int:
        """Ourselves."""
        return self._config.server_id

    def close(self, reason: str) -> None:
        """The term ends."""
        self._ledger.effects += [CloseLink(link, reason) for link in self._learners]
        self._learners.clear()

    def deadline_ms(self) -> int:
        """When `on_timer` has something to do."""
        return self._ping_ms if self.is_established else min(self._ping_ms, self._limit_ms)

    # ---- learners -------------------------------------------------------------------------------

    def on_link_opened(self, link: Any, now_ms: int) -> None:
        """Somebody has dialled us. Who says nothing makes room for those that come later."""
        self._learners[link] = Learner(link, now_ms)
        silent = [each for each in self._learners.values() if not each.server_id]
        others = self._membership.others(self.leader_id)
        if len(silent) > MAX_CALLERS_PER_SERVER * max(1, len(others)):
            self._drop(silent[0], "too many have not said who they are")

    def on_link_lost(self, link: Any) -> None:
        """A learner has gone. Raises GaveUp where too few are left."""
        learner = self._learners.pop(link, None)
        if learner is None or not learner.server_id:
            return
        self._synced.discard(learner.server_id)
        needed = self._synced if self.is_established else self._present()
        if self._had_quorum and not self._membership.quorums.has_quorum(needed):
            raise GaveUp(f"server {learner.server_id} has gone: no quorum follows any more")

    def _present(self) -> set[int]:
        """Who has said who it is, and ourselves."""
        return {self._config.server_id, *(each.server_id for each in self._learners.values())}

    def on_message(self, link: Any, message: LearnerMessage, now_ms: int) -> None:
        """What a learner says. Raises GaveUp."""
        learner = self._learners.get(link)
        if learner is None:
            return  # it was dropped, and did not know when it said that
        learner.heard_ms = now_ms
        if learner.stage < LearnerStage.CATCHING_UP or type(message) in _STORED:
            learner.stored_ms = now_ms
        if learner.stage in _TAKING_OVER and not self.is_established:
            self._limit_ms = min(now_ms + self._config.init_limit_ms, self._last_limit_ms)
        try:
            self._take(learner, message)
        except RemoteProtocolError as error:
            self._drop(learner, str(error))

    def _take(self, learner: Learner, message: LearnerMessage) -> None:
        match message:
            case Ack(zxid):
                self._on_ack(learner, zxid)
            case ChunkStored():
                expect(learner.stage == LearnerStage.CATCHING_UP, "no snapshot was sent")
                self._ledger.effects.append(ReadOn(learner.link, None))
            case HistoryStored(zxid):
                expect(learner.stage in _TAKING_OVER, "no history was sent", zxid)
                self._ledger.effects.append(ReadOn(learner.link, zxid))
            case Pong(number):
                expect(number <= self._round, "a round that has not begun", number)
                learner.round = max(learner.round, number)
                self._count_round()
            case FollowerInfo():
                self._on_follower_info(learner, message)
            case AckEpoch():
                self._on_ack_epoch(learner, message)
            case NewLeaderAck():
                self._on_new_leader_ack(learner, message)
            case _:
                raise RemoteProtocolError(f"a learner does not say {message!r}")

    def _drop(self, learner: Learner, reason: str) -> None:
        self._ledger.effects.append(CloseLink(learner.link, reason))
        self.on_link_lost(learner.link)

    def _tell(self, learner: Learner, message: LeaderMessage) -> None:
        self._ledger.effects.append(Tell(learner.link, message))

    # ---- discovery ------------------------------------------------------------------------------

    def _on_follower_info(self, learner: Learner, message: FollowerInfo) -> None:
        server_id = message.server_id
        expect(learner.stage == LearnerStage.CONNECTED, "introduced twice", server_id)
        expect(server_id != self._config.server_id, "our own id", server_id)
        self._expect_room_for(server_id)
        last_of_all = self.epoch if self.epoch == ZXID_EPOCH_LAST else ZXID_EPOCH_LAST - 1
        expect(message.accepted_epoch <= last_of_all, "no epoch is left", message.accepted_epoch)
        level = self._ledger.memberships.level
        expect(message.level >= level, "too old for the ensemble's feature level", level)
        others = [each for each in self._learners.values() if each.server_id == server_id]
        learner.level = message.level
        learner.server_id = server_id
        learner.stage = LearnerStage.INTRODUCED
        for other in others:
            self._drop(other, "it has dialled again")
        if self.epoch and message.accepted_epoch > self.epoch:
            # It can never follow us; and it need not be the only one that has promised that epoch.
            # Who is no member waits until our epochs have overtaken that one.
            problem = f"server {server_id} has promised epoch {message.accepted_epoch}"
            self._ledger.heard_epoch = max(self._ledger.heard_epoch, message.accepted_epoch)
            if server_id not in self._membership.ids:
                raise RemoteProtocolError(problem)
            raise GaveUp(problem)
        self._introduce(server_id, message.accepted_epoch)
        if self.epoch and self._ledger.accepted_epoch == self.epoch:
            self._ask(learner)

    def _expect_room_for(self, server_id: int) -> None:
        """Who is no member (yet, or any more) learns as an observer does: some may."""
        ids = self._membership.ids
        outsiders = {each.server_id for each in self._learners.values()} - ids - {0, server_id}
        room = server_id in ids or len(outsiders) < MAX_NON_MEMBERS
        expect(room, "too many servers follow that are no members", server_id)

    def _introduce(self, server_id: int, accepted_epoch: int) -> None:
        self._accepted[server_id] = accepted_epoch
        self._had_quorum = self._had_quorum or self._membership.quorums.has_quorum(self._present())
        if self.epoch == 0 and self._membership.quorums.has_quorum(self._accepted.keys()):
            self.epoch = max(self._ledger.heard_epoch, *self._accepted.values()) + 1
            assert self.epoch <= ZXID_EPOCH_LAST, self.epoch
            self._ledger.accept_epoch(self.epoch)

    def on_epoch_accepted(self, epoch: int) -> None:
        """Our own promise is durable: now the others may hear of the epoch."""
        assert epoch == self.epoch, (epoch, self.epoch)
        for learner in self._learners.values():
            if learner.stage == LearnerStage.INTRODUCED:
                self._ask(learner)
        self._on_promise(self._config.server_id)

    def _ask(self, learner: Learner) -> None:
        learner.stage = LearnerStage.ASKED
        self._tell(learner, LeaderInfo(self.epoch))

    def _on_ack_epoch(self, learner: Learner, message: AckEpoch) -> None:
        expect(learner.stage == LearnerStage.ASKED, "not asked for a promise", learner.stage)
        learner.stage = LearnerStage.PROMISED
        learner.last_zxid = message.last_zxid
        if not self._has_promises and message.is_promise:
            # Of those that are counted none may know more: it may have been acknowledged (A.4).
            history = (message.current_epoch, message.last_zxid)
            if learner.server_id in self._membership.quorums.voters and history > self._history:
                raise GaveUp(f"server {learner.server_id} knows more than we do: {history}")
            self._on_promise(learner.server_id)
        if self._has_promises and learner.stage == LearnerStage.PROMISED:
            self._sync(learner)

    def _on_promise(self, server_id: int) -> None:
        self._promised.add(server_id)
        if not self._has_promises and self._membership.quorums.has_quorum(self._promised):
            self._has_promises = True
            self._ledger.adopt_epoch(self.epoch)
            for learner in list(self._learners.values()):
                if learner.stage == LearnerStage.PROMISED:
                    self._sync(learner)

    # ---- synchronization ------------------------------------------------------------------------

    def _sync(self, learner: Learner) -> None:
        """Bring a learner's log to where ours ends; what it takes time to send goes from the disk,
        so that we keep nothing of it."""
        plan = plan_sync(learner.last_zxid, self._ledger.log)
        if plan is None:
            learner.stage = LearnerStage.CATCHING_UP
            self._ledger.effects.append(SendSnapshot(learner.link))
            return
        if plan.truncate_to is not None:
            self._tell(learner, Truncate(plan.truncate_to))
        if plan.after_zxid < self._ledger.durable_zxid:
            learner.stage = LearnerStage.CATCHING_UP
            self._ledger.effects.append(SendHistory(learner.link, plan.after_zxid))
        else:
            self._tell_in_flight(learner, plan.after_zxid)

    def on_history_sent(self, link: Any, zxid: int) -> None:
        """A learner has been sent all that is on our disk, or was when it was read."""
        learner = self._learners.get(link)
        if learner is None:
            return  # it was dropped meanwhile
        assert learner.stage == LearnerStage.CATCHING_UP, learner.stage
        assert zxid == self._ledger.durable_zxid, (zxid, self._ledger.durable_zxid)
        self._tell_in_flight(learner, zxid)

    def _tell_in_flight(self, learner: Learner, zxid: int) -> None:
        """What is not on our disk yet, and comes after `zxid`; then that this is all. From now on
        it is told what we propose."""
        for proposal in self._broadcast.in_flight_after(zxid):
            self._tell(learner, proposal)
        learner.synced_zxid = self._broadcast.proposed_zxid
        learner.stage = LearnerStage.SYNCING
        self._tell(learner, NewLeader(self.epoch))

    def on_epoch_adopted(self, epoch: int) -> None:
        """Our own history is that of the epoch, durably."""
        assert epoch == self.epoch, (epoch, self.epoch)
        self._on_synced(self._config.server_id, self._ledger.durable_zxid)

    def _on_new_leader_ack(self, learner: Learner, message: NewLeaderAck) -> None:
        expect(learner.stage == LearnerStage.SYNCING, "was told no NEWLEADER", learner.stage)
        expect(message.epoch == self.epoch, "another epoch", message.epoch, self.epoch)
        learner.stage = LearnerStage.SYNCED
        learner.last_zxid = learner.synced_zxid
        if self.is_established:
            self._tell(learner, UpToDate(self._broadcast.committed_zxid))
        self._on_synced(learner.server_id, learner.synced_zxid)

    def _on_synced(self, server_id: int, zxid: int) -> None:
        self._synced.add(server_id)
        self._broadcast.acknowledge(server_id, zxid)
        if self.is_established:
            self._commit()
        elif self._config.server_id in self._synced and self._membership.quorums.has_quorum(
            self._synced
        ):
            self._establish()

    def _establish(self) -> None:
        self.is_established = True
        self._broadcast.commit_history()
        committed = self._broadcast.committed_zxid
        self._ledger.commit(committed)
        self._ledger.effects.append(Serve(self.epoch, self.leader_id))
        for learner in self._learners.values():
            if learner.stage == LearnerStage.SYNCED:
                self._tell(learner, UpToDate(committed))

    # ---- broadcast ------------------------------------------------------------------------------

    def on_propose(self, records: list[bytes], first_zxid: int, last_zxid: int) -> None:
        """Propose what our own server's requests have made."""
        assert self.is_established, "proposed before a quorum had adopted the epoch"
        assert epoch_of(first_zxid) == epoch_of(last_zxid) == self.epoch, (first_zxid, self.epoch)
        proposal = Proposal(first_zxid, last_zxid, tuple(records))
        self._broadcast.propose(proposal)
        for learner in self._learners.values():
            if learner.stage >= LearnerStage.SYNCING:
                self._tell(learner, proposal)
        self._ledger.append(records, first_zxid, last_zxid)

    def on_logged(self, zxid: int, _now_ms: int) -> None:
        """Our own log is durable up to there: that is our acknowledgement, no sooner."""
        self._broadcast.on_own_disk(zxid)
        self._broadcast.acknowledge(self._config.server_id, zxid)
        self._commit()

    def on_log_refused(self) -> None:
        """Our disk is full; another server may have space. Raises GaveUp."""
        raise GaveUp("there is no disk space for the log")

    def _on_ack(self, learner: Learner, zxid: int) -> None:
        expect(learner.stage == LearnerStage.SYNCED, "acknowledged before NEWLEADER", zxid)
        expect(learner.last_zxid <= zxid, "acknowledged backwards", zxid, learner.last_zxid)
        expect(zxid <= self._broadcast.proposed_zxid, "acknowledged what was not proposed", zxid)
        learner.last_zxid = zxid
        self._broadcast.acknowledge(learner.server_id, zxid)
        self._commit()

    def _commit(self) -> None:
        if self.is_established and self._broadcast.advance(self._membership.quorums):
            committed = self._broadcast.committed_zxid
            self._ledger.commit(committed)
            for learner in self._learners.values():
                if learner.stage == LearnerStage.SYNCED:
                    self._tell(learner, Commit(committed))
            self._leave_if_removed(committed)

    def _leave_if_removed(self, committed: int) -> None:
        """A leader that is no voter of what is committed leads to that point, and no further."""
        membership = self._membership
        if (
            not membership.is_joint
            and not membership.has_voter(self._config.server_id)
            and committed >= self._ledger.memberships.since_zxid
        ):
            raise GaveUp("this server is no participant of the ensemble any more")

    # ---- reads that must be of now --------------------------------------------------------------

    def on_confirm(self, token: Any) -> None:
        """Ask a quorum whether it still follows: one round at a time, each for all that wait."""
        assert self.is_established, "confirms a lead that is not established"
        self._asking.append(token)
        if not self._confirming:
            self._begin_round()

    def _begin_round(self) -> None:
        self._confirming, self._asking = self._asking, []
        self._round += 1
        for learner in self._learners.values():
            if learner.stage == LearnerStage.SYNCED:
                self._tell(learner, Ping(self._round))
        self._count_round()

    def _count_round(self) -> None:
        """Whoever answers this round has followed us after it began: it had promised nobody else.

        So nobody else was established by then (Raft section 6.4, ReadIndex).
        """
        if not self._confirming:
            return
        agreed = {
            each.server_id
            for each in self._learners.values()
            if each.stage == LearnerStage.SYNCED and each.round == self._round
        }
        if self._membership.quorums.has_quorum(agreed | {self._config.server_id}):
            self._ledger.effects += map(LeadConfirmed, self._confirming)
            self._confirming = []
            if self._asking:
                self._begin_round()

    # ---- time -----------------------------------------------------------------------------------

    def on_timer(self, now_ms: int) -> None:
        """Ping, drop who is silent. Raises GaveUp where the epoch is not established in time."""
        if not self.is_established and now_ms >= self._limit_ms:
            raise GaveUp(f"no quorum within {self._config.init_limit_ms} ms")
        self._look_at_disk(now_ms)
        if now_ms < self._ping_ms:
            return
        self._ping_ms = now_ms + self._config.ping_interval_ms
        for learner in list(self._learners.values()):
            if now_ms - learner.heard_ms >= self._limit_of(learner):
                self._drop(learner, f"not heard for {now_ms - learner.heard_ms} ms")
            elif self._has_stalled(learner, now_ms):
                self._drop(learner, f"has stored nothing for {now_ms - learner.stored_ms} ms")
        for learner in self._learners.values():
            if learner.stage >= LearnerStage.INTRODUCED:
                self._tell(learner, Ping(self._round))

    def _look_at_disk(self, now_ms: int) -> None:
        """A leader whose disk hangs holds up everybody, although a quorum may go on without it."""
        stalled_ms = self._ledger.stalled_ms(now_ms)
        if stalled_ms >= self._config.disk_limit_ms:
            raise GaveUp(f"our disk has written nothing for {stalled_ms} ms")

    def common_level(self) -> int:
        """The feature level that all members know, if all are here and synced; that of the log."""
        found = self._ledger.memberships.level
        if set(self._membership.ids) - self._synced:
            return found
        levels = [each.level for each in self._learners.values() if each.server_id]
        return max(found, min([self._config.level, *levels]))

    def absent_members(self) -> list[int]:
        """Members that do not follow."""
        here = {each.server_id for each in self._learners.values()}
        return [each for each in self._membership.others(self.leader_id) if each not in here]

    def synced_servers(self) -> frozenset[int]:
        """Who has adopted the epoch and is here, ourselves among them; voters or not."""
        return frozenset(self._synced)

    def learner_counts(self) -> tuple[int, int, int]:
        """Synced followers, synced observers, all learners."""
        synced = [each for each in self._learners.values() if each.stage == LearnerStage.SYNCED]
        followers = sum(each.server_id in self._membership.quorums.voters for each in synced)
        return followers, len(synced) - followers, len(self._learners)

    def synced_server(self, link: Any) -> int:
        """Whose link it is, if it has adopted our established epoch; 0: nobody's."""
        learner = self._learners.get(link)
        if learner is None or learner.stage != LearnerStage.SYNCED or not self.is_established:
            return 0
        return learner.server_id

    def _has_stalled(self, learner: Learner, now_ms: int) -> bool:
        silent_ms = now_ms - learner.stored_ms
        is_catching_up = learner.stage == LearnerStage.CATCHING_UP
        return is_catching_up and silent_ms >= self._config.catch_up_limit_ms

    def _limit_of(self, learner: Learner) -> int:
        config = self._config
        is_synced = learner.stage == LearnerStage.SYNCED
        return config.sync_limit_ms if is_synced else config.init_limit_ms
