"""One process of the ensemble's world, from its start to its crash.

A life is the real Peer over the real PeerDisk and DataDirectory, with everything asynchronous
stepped by the scheduler. A crash point may end a life in the middle of its effects. State is
f(log prefix): all that was recovered at the start, then what `ApplyUpTo` has told.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from duolog_cluster.sim.disk import PowerLoss
from duolog_cluster.sim.network import Link
from duolog_cluster.sim.process_parts import SimExecutor
from duolog_protocol.quorum_messages import (
    Ack,
    AckEpoch,
    LeaderInfo,
    NewLeaderAck,
    Notification,
    PeerState,
    Proposal,
    UpToDate,
)
from duolog_protocol.txns import zxid_of
from duolog_protocol.types import epoch_of, make_zxid
from zkserver.core.epoch_ends import EpochEnds
from zkserver.core.peer import Peer
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
    HistorySent,
    InstallSnapshot,
    LeadConfirmed,
    LinkLost,
    LinkOpened,
    LogPurged,
    LogRefused,
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
    StopServing,
    StoreChunk,
    Tell,
    Truncated,
    TruncateLog,
)
from zkserver.server.peer_disk import PeerDisk
from zkserver.server.snapshotting import Snapshotting
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.txnlog import LogOptions

from .ensemble_records import count_up_to, last_zxid_of, make_record
from .ensemble_snapshots import decode_chunks, records_on_disk, snapshotting_of
from .violation import Violation

if TYPE_CHECKING:
    from .ensemble_machine import Machine

DIRECTORY: Final = "/zk"
MAX_GROUP_BYTES: Final = (1, 100, 1_000, 1 << 20)
PART_BYTES: Final = (40, 400, 1 << 20)
"""From two records to all there are."""
ENSEMBLE_ID: Final = 7
IMPORTANT: Final = (LeaderInfo, AckEpoch, NewLeaderAck, Ack, UpToDate)
"""Messages that something must be durable before: a crash next to them is worth trying."""
MOST_TIMERS: Final = 50
"""A timer that fires more often than so at one moment will do so for ever."""


class Life:
    """The process of a machine; every start makes a new one."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.world = machine.world
        self.server_id = machine.server_id
        self.number = machine.life_count
        self.is_over = False
        self.is_paused = False
        self.is_attached = False
        self.durable = machine.durable
        self.records: list[bytes] = []
        """The log as the peer sees it: on the disk, or on its way there."""
        self.state: list[bytes] = []
        """What clients would see: what was recovered and applied, committed or not."""
        self.applied_count = 0
        """How many of `records` are applied and known to be committed."""
        self._rebuilt: list[bytes] | None = None
        """The state that a disk job has built anew, until its end is told."""
        self.serving_epoch = 0
        """Clients are served under this epoch; 0: they are not."""
        self.serves_as_leader = False
        self.last_epoch = 0
        """The last epoch in which it led or followed."""
        self.adopted_epoch = 0
        """The epoch of the leader that it follows, once it has said that it has its history."""
        self.speaks_as_leader = False
        """It led before its last step, or leads since."""
        self.was_leading = False
        """It was an established leader after its last step."""
        self.pending: deque[bytes] = deque()
        """Records whose clients wait for an answer."""
        self._links: set[Link] = set()
        """Links that the peer knows."""
        self._inbox: list[Callable[[], None]] = []
        """What came while the process was paused."""
        self._timer_us = 0
        """The earliest timer that is set, 0 for none."""
        self._timers_now = (0, 0)
        self.rng = random.Random(f"{self.world.seed} life {self.server_id} {self.number}")
        self._snapshot: list[bytes] = []
        """Chunks of a leader's snapshot that have come so far."""
        self._data: DataDirectory
        self._disk: PeerDisk
        self._snapshotting: Snapshotting
        self.peer: Peer

    def __repr__(self) -> str:
        return f"server {self.server_id}, life {self.number}"

    # ---- start and end --------------------------------------------------------------------------

    def start(self) -> None:
        """Recover from the disk and look for a leader."""
        world, machine, rng = self.world, self.machine, self.rng
        self._data = DataDirectory(
            machine.disk,
            DIRECTORY,
            self.server_id,
            rng,
            ensemble_id=ENSEMBLE_ID,
            log_options=LogOptions(world.mix.log_file_bytes, 512),
        )
        data = self._data
        before = decode_chunks(data.snapshot_chunks())
        behind = list(data.records(may_be_half=True))
        self.records = before + behind
        self.state = list(self.records)
        epochs = self._data.epochs
        world.checks.booted(self, epochs.accepted_epoch, epochs.current_epoch)
        machine.recovered(data, self.records)
        executor = SimExecutor(self.later, rng, world.mix.pace, self._disk_has_worked)
        self._snapshotting = snapshotting_of(self, data, executor)
        self._disk = PeerDisk(
            data,
            executor,
            self,
            max_group_bytes=rng.choice(MAX_GROUP_BYTES),
            part_bytes=rng.choice(PART_BYTES),
            builder=self,
        )
        log = EpochEnds(data.snapshot_zxid)
        for zxid in map(zxid_of, behind):
            log.append(zxid, zxid)
        older = map(zxid_of, data.records_before_snapshot())
        log = log.with_history(data.log.first_zxid_before, older)
        self.peer = Peer(
            machine.config,
            epochs.accepted_epoch,
            epochs.current_epoch,
            log,
            random.Random(rng.getrandbits(64)),
            last_zxid_of(self.state),
        )
        world.network.attach(self.server_id, self)
        self.is_attached = True
        self._perform_all(self.peer.start(world.scheduler.now_ms))

    def end(self, *, power_lost: bool) -> None:
        """The process is gone."""
        self.is_over = True
        if self.is_attached:
            self.world.network.detach(self.server_id, power_lost=power_lost)
        self._inbox.clear()

    def pause(self) -> None:
        """SIGSTOP: nothing runs, everything waits."""
        self.is_paused = True

    def resume(self) -> None:
        """SIGCONT: what has come in the meantime, in its order, then the timer, or before it."""
        if not self.is_paused or self.is_over:
            return
        self.is_paused = False
        inbox, self._inbox = self._inbox, []
        if self.rng.random() < 0.5:
            self._fire_timer()
        for callback in inbox:
            if not self.is_over:
                callback()
        self._fire_timer()

    def log_on_disk(self) -> list[bytes]:
        """What snapshot and log hold."""
        return records_on_disk(self._data)

    def guarded(self, callback: Callable[[], None]) -> Callable[[], None]:
        """The callback of this life: it does nothing after its end, and may end it."""

        def run() -> None:
            if not self.is_over:
                self.run(callback)

        return run

    def run(self, callback: Callable[[], None]) -> None:
        """Call something that a crash point may end."""
        try:
            callback()
        except PowerLoss:
            self.world.crash(self.machine)

    def crash_point(self, place: str) -> None:
        """May raise PowerLoss."""
        self.world.crash_point(self.machine, place)

    # ---- the network's endpoint -----------------------------------------------------------------

    def link_opened(self, link: Link, dialled: bool) -> None:
        """See Endpoint."""

        def take() -> None:
            self._links.add(link)
            self.step(LinkOpened(link, link.peer_address if dialled else 0))

        self.arrive(take)

    def dial_failed(self, target: int) -> None:
        """See Endpoint."""
        self.arrive(lambda: self.step(DialFailed(target)))

    def message_received(self, link: Link, message: Any) -> None:
        """See Endpoint."""

        def take() -> None:
            if link in self._links:
                self.step(MessageReceived(link, message))

        self.arrive(take)

    def link_lost(self, link: Link) -> None:
        """See Endpoint."""

        def take() -> None:
            if link in self._links:
                self._links.discard(link)
                self._disk.forget(link)
                self.step(LinkLost(link))

        self.arrive(take)

    def datagram_received(self, source: int, message: Notification) -> None:
        """See Endpoint."""
        self.arrive(lambda: self.step(NotificationReceived(source, message)))

    def arrive(self, callback: Callable[[], None]) -> None:
        """Something comes to the process: it waits while that is paused."""
        if self.is_paused:
            self._inbox.append(self.guarded(callback))
        elif not self.is_over:
            self.run(callback)

    def later(self, delay_us: int, callback: Callable[[], None]) -> None:
        """As `arrive`, after a while."""
        self.world.scheduler.after(delay_us, self.guarded(lambda: self.arrive(callback)))

    # ---- the disk's owner -----------------------------------------------------------------------

    def _disk_has_worked(self) -> None:
        """The end of the work was not told yet."""
        self.machine.note_epochs(self._data)
        text = f"disk {self.machine.current_epoch} {len(self.durable)}"
        self.world.trace(self.server_id, text)
        self.crash_point("between work and notice")

    def history_read(self, link: Link, records: list[bytes]) -> None:
        """See PeerDiskOwner: in proposals of any size, none of two epochs."""
        start = 0
        while start < len(records):
            epoch = epoch_of(zxid_of(records[start]))
            end = start + self.rng.randint(1, self.world.mix.most_in_history)
            part = [each for each in records[start:end] if epoch_of(zxid_of(each)) == epoch]
            self._tell(link, Proposal(zxid_of(part[0]), zxid_of(part[-1]), tuple(part)))
            start += len(part)

    def history_gone(self, link: Link, reason: str, snapshot_zxid: int) -> None:
        """See PeerDiskOwner."""
        self.world.mark("history gone")
        if snapshot_zxid:
            self.step(LogPurged(snapshot_zxid))
        self._disk.forget(link)
        self._links.discard(link)
        link.close()
        self.step(LinkLost(link))

    def snapshot_read(self, link: Link, message: Any) -> None:
        """See PeerDiskOwner."""
        self._tell(link, message)

    def may_purge(self) -> bool:
        """Nothing of the log is being read for a learner."""
        return not self._disk.sends_history

    def log_purged(self, first_zxid_before: int) -> None:
        """Some of the log's files were deleted."""
        self.world.mark("log purged")
        self.step(LogPurged(first_zxid_before))

    def retry_disk(self, delay_ms: int, reason: str) -> None:
        """See PeerDiskOwner."""
        self.later(delay_ms * 1_000, self._disk.retry)

    def halt_for_disk(self, error: BaseException) -> None:
        """See PeerDiskOwner."""
        if isinstance(error, AssertionError):
            raise error
        self.world.mark("halted by its disk")
        self.world.crash(self.machine, power_lost=False)

    # ---- the peer -------------------------------------------------------------------------------

    def propose(self, count: int) -> None:
        """Let the established leader propose so many records, for clients that wait."""
        assert self.serves_as_leader
        epoch, last = self.serving_epoch, last_zxid_of(self.records)
        first = last + 1 if epoch_of(last) == epoch else make_zxid(epoch, 0)
        records = [
            make_record(zxid, self.server_id, epoch, self.world.next_number())
            for zxid in range(first, first + count)
        ]
        self.world.checks.proposes(self, records)
        self.pending += records
        self.run(lambda: self.step(Propose(records, first, first + count - 1)))

    def confirm_lead(self) -> None:
        """Let a client ask the established leader for a sync."""
        ensemble = self.world.ensemble
        asked = (ensemble.last_established_epoch, ensemble.last_acknowledged_zxid)
        self.run(lambda: self.step(ConfirmLead(asked)))

    def step(self, event: PeerEvent) -> None:
        """Let the peer take an event, and do what it asks for."""
        now_ms = self.world.scheduler.now_ms
        self.world.trace_event(self.server_id, event)
        if isinstance(event, LogRefused):
            del self.records[len(self.durable) :]
            self.world.mark("disk full")
        elif isinstance(event, HistorySent):
            self.world.mark("history sent")
        elif isinstance(event, SnapshotRefused):
            self.world.mark("snapshot refused")
            self.records[:] = self.durable
        elif isinstance(event, Truncated | SnapshotInstalled):
            assert self._rebuilt is not None, "nothing was built anew"
            self.state, self._rebuilt = self._rebuilt, None
            if isinstance(event, SnapshotInstalled):
                self._confirm(len(self.state))
        was_leader = self.peer.role == PeerState.LEADING
        effects = self.peer.step(event, now_ms)
        self.speaks_as_leader = was_leader or self.peer.role == PeerState.LEADING
        epoch = self.peer.epoch
        self.last_epoch = epoch or self.last_epoch
        if self.adopted_epoch != epoch:
            self.adopted_epoch = 0
        self._perform_all(effects)

    def _perform_all(self, effects: list[PeerEffect]) -> None:
        for effect in effects:
            self.world.trace_event(self.server_id, effect)
            self._perform(effect)
        self.world.checks.stepped(self)
        self._arm()

    def _perform(self, effect: PeerEffect) -> None:
        match effect:
            case Tell(link=link, message=message):
                self._tell(link, message)
            case Notify(server_id=server_id, notification=notification):
                self.world.checks.notifies(self, notification)
                self.world.network.send_datagram(self.server_id, server_id, notification)
            case AppendRecords():
                records = list(effect.records)
                self.world.checks.appends(self, records)
                self.records += records
                self._disk.put(effect)
            case ApplyUpTo(zxid=zxid):
                self._apply_up_to(zxid)
            case AcceptEpoch() | AdoptEpoch():
                self._disk.put(effect)
            case TruncateLog(zxid=zxid):
                kept = count_up_to(self.records, zxid)
                self.world.checks.truncates(self, zxid, kept)
                del self.records[kept:]
                self._disk.put(effect)
            case ReceiveSnapshot():
                self._snapshot = []
                self._disk.put(effect)
            case StoreChunk(data=data):
                self._snapshot.append(data)
                self._disk.put(effect)
            case InstallSnapshot():
                records = decode_chunks(self._snapshot)
                self.world.checks.installs(self, records)
                self.records[:] = records
                self._disk.put(effect)
            case DropSnapshot():
                self._disk.put(effect)
            case ReadOn(link=link, stored_zxid=zxid):
                if zxid is not None:
                    self.world.mark("history in parts")
                self._disk.read_on(link, zxid)
            case SendHistory(link=link) | SendSnapshot(link=link):
                if link in self._links:
                    self._disk.put(effect)
            case Dial(server_id=server_id):
                self.world.network.dial(self.server_id, server_id)
            case CloseLink(link=link):
                self._links.discard(link)
                self._disk.forget(link)
                link.close()
            case Serve(epoch=epoch, leader_id=leader_id):
                if not self.peer.is_established:
                    raise Violation(f"ServesOnceSynced: {self} serves before it may")
                self.serving_epoch = epoch
                self.serves_as_leader = leader_id == self.server_id
                self._confirm(len(self.state))
            case StopServing(reason=reason):
                if "too slow" in reason:
                    self.world.mark("disk too slow for the leader")
                self.serving_epoch = 0
                self.serves_as_leader = False
                self.pending.clear()
            case LeadConfirmed(token=asked):
                self.world.checks.confirmed(self, *asked)

    def _tell(self, link: Link, message: Any) -> None:
        if link not in self._links:
            return  # it has ended, and the peer will hear of it
        important = isinstance(message, IMPORTANT)
        if important:
            self.crash_point(f"before {type(message).__name__}")
        self.world.checks.tells(self, link, message)
        link.send(message)
        if important:
            self.crash_point(f"after {type(message).__name__}")

    def _apply_up_to(self, zxid: int) -> None:
        count = count_up_to(self.records, zxid)
        self._snapshotting.count(count - len(self.state))
        self.state += self.records[len(self.state) : count]
        if not self.serving_epoch:  # nobody sees it
            if zxid > self.peer.last_committed_zxid:
                self.world.mark("applied before it was committed")
            count = count_up_to(self.records, min(zxid, self.peer.last_committed_zxid))
        self._confirm(count)
        self.world.applied(self)
        if self.serving_epoch:
            self._snapshotting.maybe_begin()

    def _confirm(self, count: int) -> None:
        """So much of the state is known to be committed."""
        for index in range(self.applied_count, count):
            self.applied_count = index + 1
            self.world.checks.applies(self, index, self.state[index])

    # ---- the disk's builder of states, in a disk job --------------------------------------------

    def on_truncated(self, zxid: int) -> None:
        """See StateBuilder."""
        self._rebuilt = self.log_on_disk()
        assert last_zxid_of(self._rebuilt) == zxid, f"{zxid:#x}"

    def on_received(self, zxid: int, chunks: Iterator[bytes]) -> None:
        """See StateBuilder."""
        self._rebuilt = decode_chunks(chunks)
        assert last_zxid_of(self._rebuilt) == zxid, f"{zxid:#x}"
        self.machine.begin_taking_over(self._rebuilt)

    # ---- time -----------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Set a timer, unless an earlier one is set: that one will look again."""
        deadline_ms = self.peer.deadline_ms()
        if deadline_ms is None:
            return
        moment = max(deadline_ms * 1_000, self.world.scheduler.now_us)
        if self._timer_us and self._timer_us <= moment:
            return
        moment += self.rng.randrange(500)  # no loop is exactly on time
        self._timer_us = moment

        def fire() -> None:
            if self._timer_us == moment:
                self._timer_us = 0
                if not self.is_paused:
                    self._fire_timer()

        self.world.scheduler.at(moment, self.guarded(fire))

    def _fire_timer(self) -> None:
        now_us = self.world.scheduler.now_us
        deadline_ms = None if self.is_over else self.peer.deadline_ms()
        if deadline_ms is not None and deadline_ms * 1_000 <= now_us:
            moment, count = self._timers_now
            self._timers_now = (now_us, count + 1 if moment == now_us else 1)
            if count > MOST_TIMERS and moment == now_us:
                raise Violation(f"TimerEnds: the timer of {self} fires for ever ({deadline_ms})")
            self.run(lambda: self.step(PeerTimerFired()))
        elif not self.is_over:
            self._arm()

    @property
    def is_leading(self) -> bool:
        """It is an established leader."""
        return self.peer.role == PeerState.LEADING and self.peer.is_established
