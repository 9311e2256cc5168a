"""One server among its peers: the only place where its role changes.

    Settling   the disk work of the last role goes on ----------> Looking, once none is left
    Looking    an election is decided --------------------------> Leader, if it named us
                                                       `--------> Follower of whom it named
    Leader     no quorum, or not in time; someone knows more ---> Settling
    Follower   the link has ended, silence, a breach -----------> Settling

Owns these transitions, the election round, and the links of learners that dial before their
election is decided here, too. Nobody votes while the log is still written. Source: ZooKeeper
`QuorumPeer.run`; reference A.2, A.6.8.

The best vote may be for one that cannot win, and others may elect it again and again: it needs
servers that are gone, as its log names other members, or that it does not reach. Or the best is one
that our log does not name, and that needs our vote. So an election in which that may be is begun
anew after a while, which is random as Raft's election timeouts are. From then on every second one
is about such outsiders, too; and who was elected by others in vain, or has heard no quorum of those
that its log names, does not stand in the next one: the latter only until it hears one. Where all
logs name the same members, who hears one of them hears all, nobody else is there and a quorum is,
nothing of this happens.
"""

from __future__ import annotations

import random
from typing import Any, Final

from duolog_protocol.quorum_messages import Notification, PeerState, Vote

from .epoch_ends import EpochEnds
from .follower import Follower
from .leader import Leader
from .ledger import Ledger
from .looking import Decision, Looking, reply_to_looking
from .membership import Membership, Memberships
from .peer_config import PeerConfig
from .peer_events import (
    ChunkWritten,
    CloseLink,
    ConfirmLead,
    DialFailed,
    EpochAccepted,
    EpochAdopted,
    HistorySent,
    LinkLost,
    LinkOpened,
    Logged,
    LogPurged,
    LogRefused,
    MessageReceived,
    NotificationReceived,
    Notify,
    PeerEffect,
    PeerEvent,
    PeerTimerFired,
    Propose,
    SnapshotBegun,
    SnapshotInstalled,
    SnapshotRefused,
    StepDown,
    StopServing,
    Truncated,
)
from .roles import MAX_CALLERS_PER_SERVER, GaveUp

_FAILURES_WITHOUT_WAIT: Final = 2
_CALLED_IN_VAIN_MS: Final = 500
"""A server that others have elected for so long should have been told of it by now."""


class Settling:
    """Between two roles: what the last one has asked of the disk is being done."""


Role = Settling | Looking | Leader | Follower


class Peer:
    """The state machine of one server of an ensemble."""

    def __init__(
        self,
        config: PeerConfig,
        accepted_epoch: int,
        current_epoch: int,
        log: EpochEnds,
        rng: random.Random,
        applied_zxid: int = 0,
        memberships: Memberships | None = None,
    ) -> None:
        """The epochs and the log are what the disk holds; `applied_zxid` as in `Ledger`.

        `memberships`: those of the log; None: the log says nothing, the settings count.
        """
        self._config = config
        self._ledger = Ledger(
            accepted_epoch,
            current_epoch,
            log,
            memberships or Memberships(Membership(config.voters, config.observers)),
            applied_zxid,
        )
        self._rng = rng
        self._role: Role = Settling()
        self._election_round = 0
        """The highest one this server was in."""
        self._elected: Decision | None = None
        """How the last election ended."""
        self._callers: dict[Any, list[Any]] = {}
        """Links of learners that dialled while we were looking, and what they have said."""
        self._now_ms = 0
        self._failures = 0
        """Terms, one after the other, that have ended soon, or without having served."""
        self._call_ms = 0
        """When it tells absent members again that it leads."""
        self._elected_ms = 0
        """When the last election ended."""
        self._look_ms = 0
        """Not before this does it look for a leader."""
        self._leaderless_ms = 0
        """Since when it has not served."""
        self._renew_ms = 0
        """When it looks whether to begin its election anew."""
        self._stands = True
        """Whether it may be elected in this election."""
        self._is_lonely = False
        """It does not stand because it heard no quorum; the next one that it hears changes that."""
        self._heard_outsiders = False
        """Whether its last election was about servers that its log does not name."""
        self._called_ms = 0
        """Since when learners wait for it."""

    def start(self, now_ms: int) -> list[PeerEffect]:
        """Begin to look for a leader."""
        self._now_ms = self._leaderless_ms = now_ms
        self._look_if_settled()
        self._follow_decision()
        return self._take_effects()

    def step(self, event: PeerEvent, now_ms: int) -> list[PeerEffect]:
        """Take an event; the effects are to be performed in order."""
        self._now_ms = now_ms
        try:
            self._take(event)
        except GaveUp as reason:
            self._give_up(str(reason))
        self._look_if_settled()
        self._follow_decision()
        return self._take_effects()

    def deadline_ms(self) -> int | None:
        """When to step(PeerTimerFired()) if nothing else happens."""
        role = self._role
        if isinstance(role, Settling):
            return self._look_ms if self._ledger.is_settled else None
        if isinstance(role, Looking):
            return min(role.deadline_ms(), self._renew_ms)
        return role.deadline_ms()

    # ---- what others may see --------------------------------------------------------------------

    @property
    def role(self) -> PeerState:
        """What the server is doing."""
        match self._role:
            case Leader():
                return PeerState.LEADING
            case Follower():
                return PeerState.FOLLOWING if self._is_voter else PeerState.OBSERVING
            case _:
                return PeerState.LOOKING

    @property
    def epoch(self) -> int:
        """The epoch it leads or follows in; 0 while there is none."""
        role = self._role
        return role.epoch if isinstance(role, Leader | Follower) else 0

    @property
    def leader_id(self) -> int:
        """Whom it follows, itself where it leads; 0: nobody."""
        role = self._role
        return role.leader_id if isinstance(role, Leader | Follower) else 0

    @property
    def is_established(self) -> bool:
        """It serves: a quorum has adopted the epoch."""
        role = self._role
        return isinstance(role, Leader | Follower) and role.is_established

    @property
    def membership(self) -> Membership:
        """Who belongs to the ensemble, as far as this server knows."""
        return self._ledger.memberships.current

    @property
    def _others(self) -> tuple[int, ...]:
        return self.membership.others(self._config.server_id)

    def common_level(self) -> int:
        """The feature level that all members know; that of the log unless all are here and synced
        and this server is their established leader."""
        role = self._role
        if not isinstance(role, Leader) or not role.is_established:
            return self._ledger.memberships.level
        return role.common_level()

    @property
    def _is_voter(self) -> bool:
        return self.membership.has_voter(self._config.server_id)

    def synced_servers(self) -> frozenset[int]:
        """Those that have all that an established leader proposes, itself among them."""
        role = self._role
        is_leader = isinstance(role, Leader) and role.is_established
        return role.synced_servers() if is_leader else frozenset()  # type: ignore[union-attr]

    @property
    def leader_link(self) -> Any:
        """The link to the leader under whom this server serves, or None."""
        role = self._role
        return role.link if isinstance(role, Follower) and role.is_established else None

    def server_id_of(self, link: Any) -> int:
        """Whose link it is, if a learner's that has adopted the epoch we lead in; else 0."""
        return self._role.synced_server(link) if isinstance(self._role, Leader) else 0

    def learner_counts(self) -> tuple[int, int, int]:
        """Synced followers, synced observers, and all learners of a leader."""
        return self._role.learner_counts() if isinstance(self._role, Leader) else (0, 0, 0)

    @property
    def accepted_epoch(self) -> int:
        """The highest epoch promised; durable."""
        return self._ledger.accepted_epoch

    @property
    def current_epoch(self) -> int:
        """The epoch whose history it holds; durable."""
        return self._ledger.current_epoch

    @property
    def last_logged_zxid(self) -> int:
        """The end of the log, on the disk or on its way."""
        return self._ledger.log.last_zxid

    @property
    def last_durable_zxid(self) -> int:
        """The end of the log on the disk."""
        return self._ledger.durable_zxid

    @property
    def last_committed_zxid(self) -> int:
        """What it knows to be committed."""
        return self._ledger.committed_zxid

    # ---- events ---------------------------------------------------------------------------------

    def _take(self, event: PeerEvent) -> None:
        match event:
            case MessageReceived():
                self._on_message(event.link, event.message)
            case Logged():
                self._on_logged(event.zxid)
            case Propose():
                assert isinstance(self._role, Leader), self._role
                self._role.on_propose(event.records, event.first_zxid, event.last_zxid)
            case HistorySent(link=link, zxid=zxid):
                if isinstance(self._role, Leader):
                    self._role.on_history_sent(link, zxid)
            case ConfirmLead(token=token):
                if isinstance(self._role, Leader) and self._role.is_established:
                    self._role.on_confirm(token)
            case StepDown(reason=reason):
                if isinstance(self._role, Leader):
                    raise GaveUp(reason)
            case LogPurged(first_zxid_before=zxid):
                if zxid > self._ledger.log.first_zxid_before:
                    self._ledger.on_purged(zxid)
            case NotificationReceived():
                self._on_notification(event.sender_id, event.notification)
            case PeerTimerFired():
                if not isinstance(self._role, Settling):
                    self._role.on_timer(self._now_ms)
                self._call_absent()
                self._renew_election()
            case LinkOpened():
                self._on_link_opened(event.link, event.server_id)
            case DialFailed():
                role = self._role
                if isinstance(role, Follower) and role.is_dialling_to(event.server_id):
                    role.on_dial_failed()
            case LinkLost():
                self._callers.pop(event.link, None)
                if isinstance(self._role, Leader | Follower):
                    self._role.on_link_lost(event.link)
            case EpochAccepted(epoch=epoch):
                self._ledger.on_epoch_accepted(epoch)
                if isinstance(self._role, Leader | Follower):
                    self._role.on_epoch_accepted(epoch)
            case EpochAdopted(epoch=epoch):
                self._ledger.on_epoch_adopted(epoch)
                if isinstance(self._role, Leader | Follower):
                    self._role.on_epoch_adopted(epoch)
            case Truncated(zxid=zxid):
                self._ledger.on_truncated(zxid)
            case SnapshotBegun():
                self._ledger.on_snapshot_begun()
            case ChunkWritten():
                self._ledger.on_chunk_written()
                if isinstance(self._role, Follower):
                    self._role.on_chunk_written()
            case SnapshotInstalled(zxid=zxid, members=members, level=level):
                self._ledger.on_snapshot_installed(zxid, members, level)
            case SnapshotRefused(reason=reason):
                self._ledger.on_snapshot_refused()
                if isinstance(self._role, Follower):
                    self._role.on_snapshot_refused(reason)
            case LogRefused(first_zxid=first_zxid):
                self._on_log_refused(first_zxid)

    def _on_message(self, link: Any, message: Any) -> None:
        role = self._role
        if link in self._callers:
            said = self._callers[link]
            if said:  # a learner says one thing, and waits
                self._close_caller(link, "it does not wait for its turn")
            else:
                said.append(message)
        elif isinstance(role, Leader | Follower):
            role.on_message(link, message, self._now_ms)

    def _on_notification(self, sender_id: int, notification: Notification) -> None:
        role = self._role
        if isinstance(role, Looking):
            role.on_notification(sender_id, notification, self._now_ms)
            if self._is_lonely and role.decision() is None and role.hears_quorum:
                self._stand_again(role)
        elif isinstance(role, Leader | Follower):
            self._expect_it_leads(sender_id, notification)
            ours = self._settled_notification(role)
            reply = reply_to_looking(sender_id, notification, ours)
            if reply is not None:
                self._ledger.effects.append(reply)

    def _expect_it_leads(self, sender_id: int, notification: Notification) -> None:
        """Whom we have elected votes for another one now: it will not lead. Raises GaveUp."""
        role = self._role
        if not isinstance(role, Follower) or role.epoch or sender_id != role.leader_id:
            return
        assert self._elected is not None, "a follower without an election"
        state, vote, election_round, _ = notification
        is_newer = election_round >= self._elected.election_round
        if state == PeerState.LOOKING and is_newer and vote.server_id != sender_id:
            raise GaveUp(f"server {sender_id}, which we have elected, votes for {vote.server_id}")

    def _call_absent(self) -> None:
        """Tell the members that do not follow who leads: they may know the members of long ago."""
        role, now_ms = self._role, self._now_ms
        if not isinstance(role, Leader) or not role.is_established or now_ms < self._call_ms:
            return
        self._call_ms = now_ms + self._config.notification_last_ms
        ours = self._settled_notification(role)
        absent = role.absent_members()
        self._ledger.effects += [Notify(server_id, ours) for server_id in absent]

    def _settled_notification(self, role: Leader | Follower) -> Notification:
        """What we answer to those that look."""
        assert self._elected is not None, "a role without an election"
        vote = self._elected.vote
        if role.is_established:
            vote = vote._replace(epoch=role.epoch)  # so that late joiners see one vote (A.2)
        names_members = bool(self.membership.members)
        return Notification(self.role, vote, self._elected.election_round, names_members)

    def _on_link_opened(self, link: Any, server_id: int) -> None:
        role = self._role
        if server_id:
            if isinstance(role, Follower) and role.is_dialling_to(server_id):
                role.on_link_opened(link, self._now_ms)
            else:
                self._ledger.effects.append(CloseLink(link, "nobody asked for it any more"))
        elif isinstance(role, Leader):
            role.on_link_opened(link, self._now_ms)
        elif isinstance(role, Follower):
            self._ledger.effects.append(CloseLink(link, "this server does not lead"))
        else:
            if not self._callers:
                self._called_ms = self._now_ms
            self._callers[link] = []
            if len(self._callers) > MAX_CALLERS_PER_SERVER * max(1, len(self._others)):
                self._close_caller(next(iter(self._callers)), "too many wait")

    def _close_caller(self, link: Any, reason: str) -> None:
        del self._callers[link]
        self._ledger.effects.append(CloseLink(link, reason))

    # ---- the disk -------------------------------------------------------------------------------

    def _on_logged(self, zxid: int) -> None:
        self._ledger.on_logged(zxid)
        if isinstance(self._role, Leader | Follower):
            self._role.on_logged(zxid, self._now_ms)

    def _on_log_refused(self, first_zxid: int) -> None:
        self._ledger.on_refused(first_zxid)
        if isinstance(self._role, Leader | Follower):
            self._role.on_log_refused()

    # ---- transitions ----------------------------------------------------------------------------

    def _give_up(self, reason: str) -> None:
        role = self._role
        assert isinstance(role, Leader | Follower), role
        served_ms = 0
        if role.is_established:
            self._ledger.effects.append(StopServing(reason))
            served_ms = self._now_ms - self._elected_ms
            self._leaderless_ms = self._now_ms
        # Whoever is served for a moment only, as with a full disk, has not succeeded.
        is_success = served_ms > self._config.back_off_last_ms
        self._failures = 0 if is_success else self._failures + 1
        self._look_ms = self._now_ms + self._back_off_ms()
        role.close(reason)
        self._role = Settling()

    def _back_off_ms(self) -> int:
        """How long to wait, so that what fails again and again does not busy everybody."""
        config, doublings = self._config, self._failures - _FAILURES_WITHOUT_WAIT - 1
        if doublings < 0:
            return 0
        longest = min(config.back_off_first_ms << min(doublings, 16), config.back_off_last_ms)
        return self._rng.randint(longest // 2, longest)

    def _look_if_settled(self) -> None:
        if not isinstance(self._role, Settling) or not self._ledger.is_settled:
            return
        if self._now_ms < self._look_ms:
            return
        self._look()

    def _look(self, *, stands: bool = True) -> None:
        """Begin an election, perhaps without standing in it."""
        ledger, config = self._ledger, self._config
        is_long = self._now_ms - self._leaderless_ms >= config.patience_ms
        may_lead = ledger.memberships.may_lead(config.server_id, ledger.committed_zxid)
        self._election_round += 1
        self._renew_later()
        self._stands = stands
        self._is_lonely = False
        role = self._role = Looking(
            config,
            self.membership,
            ledger.accepted_epoch,
            Vote(ledger.current_epoch, ledger.durable_zxid, config.server_id),
            self._election_round,
            self._now_ms,
            may_lead=may_lead and stands,
            hears_outsiders=is_long and not self._heard_outsiders,
        )
        role.start()

    def _renew_later(self) -> None:
        patience_ms = self._config.patience_ms
        self._renew_ms = self._now_ms + self._rng.randint(patience_ms, 2 * patience_ms)

    def _renew_election(self) -> None:
        """Nobody has won for long: see the top of this file."""
        role, now_ms = self._role, self._now_ms
        if not isinstance(role, Looking) or role.decision() is not None or now_ms < self._renew_ms:
            return
        is_called = bool(self._callers) and now_ms - self._called_ms >= _CALLED_IN_VAIN_MS
        is_lonely = not role.hears_quorum
        if self._stands and not is_called and not is_lonely and not role.met_outsiders:
            self._renew_later()
            return
        if is_called:
            for link in list(self._callers):
                self._close_caller(link, "this server was not elected by those that it knows")
        stands = not self._stands or not (is_called or is_lonely)
        self._look_anew(role, stands=stands)
        self._is_lonely = not stands and not is_called

    def _stand_again(self, role: Looking) -> None:
        """A quorum is heard. Who has voted for a voter since may have decided the election by it,
        and would leave the one that it has elected: that one need not know of the new round."""
        if not self.membership.has_voter(role.vote.server_id):
            self._look_anew(role)

    def _look_anew(self, role: Looking, *, stands: bool = True) -> None:
        self._election_round = max(self._election_round, role.election_round)
        self._heard_outsiders = role.has_heard_outsiders
        self._look(stands=stands)

    def _follow_decision(self) -> None:
        role = self._role
        if not isinstance(role, Looking):
            return
        self._ledger.effects += role.take_notifications()
        decision = role.decision()
        if decision is None:
            return
        self._election_round = max(self._election_round, decision.election_round)
        self._heard_outsiders = role.has_heard_outsiders
        self._elected = decision
        self._elected_ms = self._now_ms
        callers, self._callers = self._callers, {}
        if decision.leader_id != self._config.server_id:
            self._role = Follower(self._config, self._ledger, decision.leader_id, self._now_ms)
            for link in callers:
                self._ledger.effects.append(CloseLink(link, "this server does not lead"))
            return
        leader = self._role = Leader(self._config, self._ledger, self._now_ms)
        try:
            for link in callers:  # all, before any can end the term: it closes their links
                leader.on_link_opened(link, self._now_ms)
            for link, said in callers.items():
                for message in said:
                    leader.on_message(link, message, self._now_ms)
        except GaveUp as reason:
            self._give_up(str(reason))

    def _take_effects(self) -> list[PeerEffect]:
        effects, self._ledger.effects = self._ledger.effects, []
        return effects
