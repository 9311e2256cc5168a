"""One server of an ensemble between its parts: the peer that elects and replicates, the core that
serves clients, the disk, and the links to the other servers.

    other servers ── PeerLinks ──► Peer ──► PeerDisk ──► log
                         ▲           │ ApplyUpTo, Serve, StopServing
                         │           ▼
    clients ── ClientLinks ──► EnsembleCore ── Append ──► Propose (one a loop turn)
                                     └── TellLeader, TellLearner, Confirm

It has no loop, no socket and no thread: all of them are given, as to `Engine`, its counterpart of a
standalone server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any, Final, Protocol

from duolog_protocol.errors import DataDirectoryError, StorageError
from duolog_protocol.quorum_codec import proposals_of
from duolog_protocol.quorum_messages import (
    Answers,
    LeaderMessage,
    LeaderService,
    LearnerMessage,
    LearnerService,
    LongRequest,
    Notification,
    PeerMessage,
    PeerState,
    Ping,
    Requests,
    SessionsHeard,
    SessionTaken,
)
from duolog_protocol.txns import zxid_of
from duolog_runtime.clocks import Clock
from duolog_runtime.disk import DiskExecutor
from duolog_runtime.logs import Logger
from zkserver.core.ensemble_core import EnsembleCore
from zkserver.core.ensemble_events import (
    ClientsHeard,
    Committed,
    Confirm,
    Confirmed,
    DropLearner,
    LeaderAnswered,
    LearnerGone,
    LevelKnown,
    RequestsForwarded,
    SessionMoved,
    TellLeader,
    TellLearner,
)
from zkserver.core.epoch_ends import EpochEnds
from zkserver.core.events import Append, Durable, Effect, TimerFired
from zkserver.core.membership import Membership, Memberships
from zkserver.core.peer import Peer
from zkserver.core.peer_config import PeerConfig
from zkserver.core.peer_events import (
    AcceptEpoch,
    AdoptEpoch,
    AppendRecords,
    ApplyUpTo,
    CloseLink,
    ConfirmLead,
    Dial,
    DialFailed,
    DropSnapshot,
    InstallSnapshot,
    LeadConfirmed,
    LinkLost,
    LinkOpened,
    LogPurged,
    LogRefused,
    MembersChanged,
    MessageReceived,
    NotificationReceived,
    Notify,
    PeerEffect,
    PeerEvent,
    PeerTimerFired,
    Propose,
    ReadOn,
    ReceiveSnapshot,
    SendHistory,
    SendSnapshot,
    Serve,
    SnapshotInstalled,
    SnapshotRefused,
    StepDown,
    StopServing,
    StoreChunk,
    Tell,
    Truncated,
    TruncateLog,
)
from zkserver.core.status import MemberStatus
from zkserver.core.unapplied import Unapplied
from zkserver.storage.recovery import DataDirectory

from .peer_disk import PeerDisk
from .rebuilding import Rebuilding, membership_in
from .stepping import EngineOptions, Shell, Stepper

_ENDS_OF_BUILDING: Final = (Truncated, SnapshotInstalled, SnapshotRefused)
_PEER_EVENTS: Final = frozenset(PeerEvent.__args__)


NO_SPACE_TOLD_MS: Final = 60_000
"""That there is no space is told so often."""


class Links(Protocol):
    """The links to the other servers, as the replica uses them."""

    def dial(self, server_id: int) -> None:
        """Open a learner's link; ends with `link_opened` or `dial_failed`."""

    def notify(self, server_id: int, notification: Notification) -> None:
        """Tell a server of an election; a newer one replaces what waits."""

    def tell(self, link: Any, message: PeerMessage, context: int = 0) -> None:
        """Send over a link, if it is still there."""

    def close_link(self, link: Any, reason: str) -> None:
        """End a link. Idempotent."""

    def set_members(self, addresses: Mapping[int, tuple[str, int]]) -> None:
        """Where the members are now; others keep the addresses that they had."""


class ReplicaShell(Shell, Protocol):
    """What a replica needs beside what an engine does."""

    def drop_clients(self) -> None:
        """Close every client's connection."""

    def call_later(self, delay_ms: int, callback: Callable[[], None]) -> None:
        """Call back once."""


class Replica(Stepper):
    """Drives the peer and the core of one server."""

    core: EnsembleCore
    _shell: ReplicaShell

    def __init__(
        self,
        core: EnsembleCore,
        data: DataDirectory,
        config: PeerConfig,
        *,
        disk: DiskExecutor,
        clock: Clock,
        rng: Random,
        shell: ReplicaShell,
        log: Logger,
        options: EngineOptions | None = None,
        read_only_after_ms: int = 0,
    ) -> None:
        """`links` is set before `start`. `read_only_after_ms`: how long there has to be no leader
        before clients may read what is here; 0: never."""
        super().__init__(
            core,
            data,
            disk=disk,
            clock=clock,
            rng=rng,
            shell=shell,
            log=log,
            options=options,
            on_purged=self._on_purged,
            may_purge=lambda: not self._peer_disk.sends_history,
        )
        self._config = config
        self._rng = rng
        self.links: Links
        self.peer: Peer
        """From `recover` on."""
        self._rebuilding = Rebuilding(data, lambda: core.last_applied_zxid)
        self._peer_disk = PeerDisk(
            data,
            disk,
            self,
            builder=self._rebuilding,
            now_ms=clock.now_ms,
            on_written=self._wrote,
        )
        self._unapplied = Unapplied()
        self._new: list[Append] = []
        """What the core has logged as leader in this loop turn."""
        self._turn_scheduled = False
        self._no_space_ms = -NO_SPACE_TOLD_MS
        """When it was last told that something waits for space."""
        self._read_only_after_ms = read_only_after_ms
        self._leaderless_ms = 0
        """Since when there is no leader; 0: there is one, or we do not care."""

    # ---- start and end --------------------------------------------------------------------------

    def recover(self) -> None:
        """Bring the core to the state that the disk holds. Blocks; before `start`.

        All of the log is applied, although its end may not be committed: that may have to go again
        (`TruncateLog`), and nobody is served before it is known. Raises as `Engine.recover`.
        """
        data = self._data
        replayed = self._load(may_be_half=True)
        settings = Membership(self._config.voters, self._config.observers)
        state = self.core.state
        memberships = Memberships(membership_in(state) or settings, state.level)
        ends = EpochEnds(data.snapshot_zxid)
        for record in replayed:
            zxid = zxid_of(record)
            ends.append(zxid, zxid)
            memberships.on_appended(zxid, [record])
        ends = self._with_history(ends)
        self.peer = Peer(
            self._config,
            data.epochs.accepted_epoch,
            data.epochs.current_epoch,
            ends,
            self._rng,
            applied_zxid=self.core.last_applied_zxid,
            memberships=memberships,
        )
        self.core.synced_servers = self.peer.synced_servers
        if memberships.level > self._config.level:
            raise DataDirectoryError(
                f"{data.path} has feature level {memberships.level}, this program knows "
                f"{self._config.level}: it is too old for this directory"
            )

    def _with_history(self, ends: EpochEnds) -> EpochEnds:
        """What the log holds from its beginning on: who lacks a little needs no snapshot."""
        data = self._data
        zxids = map(zxid_of, data.records_before_snapshot())
        try:
            return ends.with_history(data.log.first_zxid_before, zxids)
        except (StorageError, OSError) as error:
            self._log.warning("history_unreadable", reason=str(error))
            return ends

    def start(self) -> None:
        """Look for a leader."""
        self._now_ms = self._clock.now_ms()
        if self._read_only_after_ms:
            self._leaderless_ms = self._now_ms
        self._reach(self.peer.membership)
        self._perform_peer(self.peer.start(self._now_ms))
        self._arm()

    @property
    def idle(self) -> bool:
        """Nothing waits for the disk but what there is no space for."""
        disk = self._peer_disk
        return not self._new and (disk.idle or disk.waits_for_space)

    def close(self) -> None:
        """See Stepper; nor is anything sent to learners any more."""
        super().close()
        self._peer_disk.close()

    @property
    def mode(self) -> str:
        """What operators call the role; empty while nobody is served."""
        if not self.core.is_serving:
            return ""
        return "read-only" if self.core.is_read_only else _MODES[self.peer.role]

    def member_status(self) -> MemberStatus:
        """This server among the others."""
        peer = self.peer
        counts = peer.learner_counts()
        return MemberStatus(
            self.mode or "looking",
            peer.epoch,
            peer.leader_id,
            peer.last_logged_zxid,
            peer.last_durable_zxid,
            peer.last_committed_zxid,
            *counts,
        )

    @property
    def last_durable_zxid(self) -> int:
        """The last zxid on disk."""
        return self.peer.last_durable_zxid

    # ---- events ---------------------------------------------------------------------------------

    def _one(self, event: Any) -> None:
        """Step one event, of the peer or of the core, with its effects."""
        self._now_ms = self._clock.now_ms()
        if type(event) not in _PEER_EVENTS:
            self._perform(self.core.step(event, self._now_ms))
            return
        state = self._rebuilding.take() if type(event) in _ENDS_OF_BUILDING else None
        if type(event) is SnapshotRefused:
            state = None  # a state that was built of it is nobody's
        if state is not None:
            self.core.replace_state(state)
            if type(event) is SnapshotInstalled:
                event = SnapshotInstalled(event.zxid, membership_in(state), state.level)
            self._unapplied.take_up_to(state.last_applied_zxid)
        elif type(event) is LogRefused:
            self._unapplied.cut_after(event.first_zxid - 1)
        elif type(event) is SnapshotRefused:  # nor is what came behind it
            self._unapplied.cut_after(self.peer.last_durable_zxid)
        self._perform_peer(self.peer.step(event, self._now_ms))
        if self._read_only_after_ms:
            self._look_for_leader()

    def _look_for_leader(self) -> None:
        """Note since when there is none; where there may be one, nobody only reads any more."""
        if self.peer.role == PeerState.LOOKING:
            self._leaderless_ms = self._leaderless_ms or self._now_ms
            return
        self._leaderless_ms = 0
        if self.core.is_read_only:
            self._stop_serving("there may be a leader again")

    def step(self, event: Any) -> None:
        """Take an event and perform what it brings."""
        super().step(event)
        if type(event) in _PEER_EVENTS:
            if self.core.state.level < self._config.level:
                self._offer_level()
            self._arm()

    def deadline_ms(self) -> int | None:
        """When to call `fire_timer` if nothing else happens."""
        if self.halted:
            return None
        deadlines = (self.core.deadline_ms(), self.peer.deadline_ms(), self._read_only_ms())
        return min((each for each in deadlines if each is not None), default=None)

    def _read_only_ms(self) -> int | None:
        """When clients may read what is here."""
        if not self._leaderless_ms or self.core.is_serving or not self._peer_disk.idle:
            return None  # the state may be about to be replaced
        return self._leaderless_ms + self._read_only_after_ms

    def fire_timer(self) -> None:
        """A deadline has come."""
        now_ms = self._clock.now_ms()
        core_ms = self.core.deadline_ms()
        if core_ms is not None and core_ms <= now_ms:
            self.step(TimerFired(self._clock.wall_ms()))
        peer_ms = self.peer.deadline_ms()
        if peer_ms is not None and peer_ms <= now_ms:
            self.step(PeerTimerFired())
            self._peer_disk.mark_if_quiet()
        read_only_ms = self._read_only_ms()
        if read_only_ms is not None and read_only_ms <= now_ms:
            self._log.warning("serving_read_only", zxid=f"{self.core.last_applied_zxid:#x}")
            self.core.serve_read_only(now_ms)

    def _offer_level(self) -> None:
        """Once all members know a feature level, the ensemble goes on to it."""
        level = self.peer.common_level()
        if self.core.is_serving and level > self.core.state.level and not self.halted:
            self.step(LevelKnown(level))

    def _arm(self) -> None:
        if not self.halted:
            self._shell.arm(self.deadline_ms())

    def end_turn(self) -> None:
        """The loop turn ends: what the leader's clients have written is proposed."""
        self._turn_scheduled = False
        new, self._new = self._new, []
        if not new or self.halted:
            return
        records = new[0].records if len(new) == 1 else [r for each in new for r in each.records]
        self.step(Propose(records, new[0].first_zxid, new[-1].last_zxid))

    def begin_snapshot(self) -> int | None:
        """Take a snapshot now; None while one is under way, or what is applied may go again."""
        if self.halted or not self._may_snapshot():
            return None
        return self._snapshotting.begin()

    def _may_snapshot(self) -> bool:
        """What is applied is committed, and the members are not about to change."""
        core = self.core
        return core.is_serving and not core.is_read_only and not core.state.members_are_joint

    # ---- the core's effects ---------------------------------------------------------------------

    def _enqueue(self, append: Append) -> None:
        self._new.append(append)
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._shell.call_soon()

    def _perform_rare(self, effect: Effect | Any) -> None:
        match effect:
            case TellLeader(message=message):
                link = self.peer.leader_link
                if link is not None:
                    self.links.tell(link, message, self.peer.last_committed_zxid)
            case TellLearner(link=link, message=message):
                self._tell(link, message)
            case Confirm(go_on=go_on):
                self.step(ConfirmLead(go_on))
            case DropLearner(link=link, reason=reason):
                self._log.warning("learner_dropped", reason=reason)
                self._end_link(link, reason)
                self.step(LinkLost(link))
            case StepDown():
                self.step(effect)
            case _:
                super()._perform_rare(effect)

    # ---- the peer's effects ---------------------------------------------------------------------

    def _perform_peer(self, effects: Iterable[PeerEffect]) -> None:
        for effect in effects:
            if self.halted:
                return
            kind = type(effect)
            if kind is Tell:
                self._tell(effect.link, effect.message)  # type: ignore[union-attr]
            elif kind is AppendRecords:
                self._unapplied.append(effect)  # type: ignore[arg-type]
                self._peer_disk.put(effect)  # type: ignore[arg-type]
            elif kind is ApplyUpTo:
                self._apply_up_to(effect.zxid)  # type: ignore[union-attr]
            else:
                self._perform_rare_peer(effect)

    def _perform_rare_peer(self, effect: PeerEffect) -> None:
        match effect:
            case Notify(server_id=server_id, notification=notification):
                self.links.notify(server_id, notification)
            case Dial(server_id=server_id):
                self.links.dial(server_id)
            case CloseLink(link=link, reason=reason):
                self._log.info("peer_link_closed", reason=reason)
                self._end_link(link, reason)
            case SendHistory() | SendSnapshot():
                self._peer_disk.put(effect)
            case ReadOn(link=link, stored_zxid=zxid):
                self._peer_disk.read_on(link, zxid)
            case AcceptEpoch() | AdoptEpoch() | StoreChunk() | DropSnapshot():
                self._peer_disk.put(effect)
            case ReceiveSnapshot(zxid=zxid) | InstallSnapshot(zxid=zxid):
                self._log.info(_SNAPSHOT_STEPS[type(effect)], zxid=f"{zxid:#x}")
                self._peer_disk.put(effect)
            case TruncateLog(zxid=zxid):
                self._log.warning("log_truncated", zxid=f"{zxid:#x}")
                self._unapplied.cut_after(zxid)
                self._peer_disk.put(effect)
            case Serve(epoch=epoch, leader_id=leader_id):
                self._serve(epoch, leader_id)
            case StopServing(reason=reason):
                self._stop_serving(reason)
            case MembersChanged(membership=membership):
                self._reach(membership)
            case LeadConfirmed(token=go_on):
                self._perform(self.core.step(Confirmed(go_on), self._now_ms))
            case _:
                raise AssertionError(f"unknown effect {effect!r}")

    def _reach(self, membership: Membership) -> None:
        """Where the other members are: as the log says, else as the settings do."""
        voters, observers = sorted(membership.voters), sorted(membership.observers)
        joint = {"joint": True} if membership.is_joint else {}
        self._log.info("members", voters=voters, observers=observers, **joint)
        if membership.members:
            self.links.set_members({m.server_id: (m.host, m.peer_port) for m in membership.members})

    def _serve(self, epoch: int, leader_id: int) -> None:
        self._log.info("serving", epoch=epoch, leader=leader_id, mode=_MODES[self.peer.role])
        if leader_id == self._config.server_id:
            wall_ms = self._clock.wall_ms()
            self._perform(self.core.lead(epoch, self._now_ms, wall_ms))
        else:
            self.core.follow(self._now_ms)

    def _stop_serving(self, reason: str) -> None:
        self._log.warning("not_serving", reason=reason)
        self._new.clear()
        if self.core.is_serving:
            self._perform(self.core.leave(reason))
        self._shell.drop_clients()

    def _apply_up_to(self, zxid: int) -> None:
        records = self._unapplied.take_up_to(zxid)
        leads = self.core.is_serving and self.peer.role == PeerState.LEADING
        event: Any = Durable(zxid) if leads else Committed(records)
        self._perform(self.core.step(event, self._now_ms))
        self._snapshotting.count(len(records))
        if self._may_snapshot():
            self._snapshotting.maybe_begin()

    # ---- the disk's owner -----------------------------------------------------------------------

    def history_read(self, link: Any, records: list[bytes]) -> None:
        """See PeerDiskOwner."""
        for proposal in proposals_of(records):
            self._tell(link, proposal)

    def history_gone(self, link: Any, reason: str, snapshot_zxid: int) -> None:
        """See PeerDiskOwner."""
        self._log.warning("history_lost", reason=reason)
        if snapshot_zxid:
            self.step(LogPurged(snapshot_zxid))  # for learners the log begins there
        else:
            self.begin_snapshot()  # for the next time
        self._end_link(link, f"what it lacks cannot be read: {reason}")
        self.step(LinkLost(link))

    def snapshot_read(self, link: Any, message: LeaderMessage) -> None:
        """See PeerDiskOwner."""
        self._tell(link, message)

    def retry_disk(self, delay_ms: int, reason: str) -> None:
        """See PeerDiskOwner."""
        now_ms = self._clock.now_ms()
        if now_ms - self._no_space_ms >= NO_SPACE_TOLD_MS:
            self._no_space_ms = now_ms
            self._log.warning("waits_for_space", reason=reason)
        self._shell.call_later(delay_ms, self._peer_disk.retry)
        self._arm()  # who waits until we are idle waits for nothing more

    def halt_for_disk(self, error: BaseException) -> None:
        """See PeerDiskOwner."""
        self._halt_for_disk(f"the transaction log cannot be written: {error}", error)

    def _on_purged(self, first_zxid_before: int) -> None:
        self.step(LogPurged(first_zxid_before))

    # ---- the links' owner -----------------------------------------------------------------------

    def link_opened(self, link: Any, server_id: int) -> None:
        """See PeerLinksOwner."""
        self.step(LinkOpened(link, server_id))

    def dial_failed(self, server_id: int) -> None:
        """See PeerLinksOwner."""
        self.step(DialFailed(server_id))

    def link_lost(self, link: Any) -> None:
        """See PeerLinksOwner."""
        self._end_link(link, "it has ended")
        self.step(LinkLost(link))

    def notification_received(self, sender_id: int, notification: Notification) -> None:
        """See PeerLinksOwner."""
        self.step(NotificationReceived(sender_id, notification))

    def messages_received(self, link: Any, received: list[tuple[PeerMessage, int]]) -> None:
        """See PeerLinksOwner."""
        for message, _ in received:
            match message:
                case Requests() | LongRequest():
                    if self.peer.server_id_of(link):
                        wall_ms = self._clock.wall_ms()
                        self.step(RequestsForwarded(link, message, wall_ms))
                case SessionsHeard(session_ids):
                    if self.peer.server_id_of(link):
                        self.step(ClientsHeard(session_ids))
                case Answers():
                    if self.peer.leader_link is link:
                        self.step(LeaderAnswered(message))
                case SessionTaken(session_id):
                    if self.peer.leader_link is link:
                        self.step(SessionMoved(session_id))
                case _:
                    self.step(MessageReceived(link, message))  # type: ignore[arg-type]
                    if type(message) is Ping and self.peer.leader_link is link:
                        for heard in self.core.take_sessions_heard(self._now_ms):
                            self.links.tell(link, heard)

    def _end_link(self, link: Any, reason: str) -> None:
        """Nobody is to be heard or told by it any more, whoever ends it."""
        self._peer_disk.forget(link)
        if self.core.is_serving:
            self.step(LearnerGone(link))
        self.links.close_link(link, reason)

    def _tell(
        self, link: Any, message: LeaderMessage | LearnerMessage | LeaderService | LearnerService
    ) -> None:
        self.links.tell(link, message, self.peer.last_committed_zxid)


_SNAPSHOT_STEPS: Final = {
    ReceiveSnapshot: "snapshot_comes",
    InstallSnapshot: "snapshot_received",
}
_MODES: Final = {
    PeerState.LEADING: "leader",
    PeerState.FOLLOWING: "follower",
    PeerState.OBSERVING: "observer",
    PeerState.LOOKING: "",
}
