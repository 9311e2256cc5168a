"""A learner: promises its leader's epoch, takes over its history, logs and acknowledges.

    DIALLING         the link to the leader is being opened
    DISCOVERY        LEADERINFO: an epoch that is not older than what was promised
    SYNCHRONIZATION  TRUNC or SNAP, history, NEWLEADER: logged and durable, then `current_epoch`,
                     then ACK; what is durable is applied at once, and shown to nobody
    BROADCAST        UPTODATE: serve; log proposals, acknowledge what is durable, apply what is
                     committed

Owns the order of these on the learner's side (reference A.6), which is where ZooKeeper lost data.
What the leader says where it does not fit ends the term, as does silence. An observer is a follower
whose acknowledgements nobody counts. Source: ZooKeeper `Learner`, `Follower`, `Observer`.
"""

from __future__ import annotations

from enum import Enum, auto
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
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    Truncate,
    UpToDate,
)
from duolog_protocol.types import epoch_of

from .ledger import Ledger
from .peer_config import PeerConfig
from .peer_events import CloseLink, Dial, DropSnapshot, Serve, Tell
from .roles import GaveUp, expect


class Phase(Enum):
    """Where a follower's term stands; it only goes down this list."""

    DIALLING = auto()
    DISCOVERY = auto()
    PROMISING = auto()
    """The promise is on its way to the disk."""
    SYNCHRONIZATION = auto()
    """Nothing of the leader's history has come: the log may be cut, or replaced."""
    HISTORY = auto()
    """Some of it has come."""
    ADOPTING = auto()
    """NEWLEADER has come; history and epoch are on their way to the disk."""
    ADOPTED = auto()
    BROADCAST = auto()


_PATIENT: Final = (Phase.SYNCHRONIZATION, Phase.HISTORY, Phase.ADOPTING, Phase.ADOPTED)
"""A long history takes its time, ours or that of another that the leader needs for its quorum, as
long as the leader says something; it has a limit of its own."""
_LOGGING: Final = (Phase.HISTORY, Phase.ADOPTING, Phase.ADOPTED, Phase.BROADCAST)
"""Proposals may come."""


class Follower:
    """One term under one leader."""

    def __init__(self, config: PeerConfig, ledger: Ledger, leader_id: int, now_ms: int) -> None:
        assert ledger.is_settled, "follows while the log is still written"
        self._config = config
        self._ledger = ledger
        self.leader_id = leader_id
        self.epoch = 0
        """The leader's; 0 until LEADERINFO has come."""
        self._phase = Phase.DIALLING
        self.link: Any = None
        """To the leader, once it is reached."""
        self.is_established = False
        """The leader has said that a quorum follows it: this server serves."""
        self._snapshot_zxid = 0
        """Of the leader's snapshot that is being received; 0: none is."""
        self._history_bytes = 0
        """What of the history was not on our disk when all of it had come: what is proposed while
        that is written waits behind it, on a disk that need not be slow."""
        self._heard_ms = now_ms
        self._limit_ms = now_ms + config.init_limit_ms
        ledger.effects.append(Dial(leader_id))

    def is_dialling_to(self, server_id: int) -> bool:
        """The link to that server is still being opened."""
        return self._phase is Phase.DIALLING and self.leader_id == server_id

    def deadline_ms(self) -> int:
        """When `on_timer` has something to do."""
        if self._phase is Phase.BROADCAST:
            return self._heard_ms + self._config.sync_limit_ms
        return self._limit_ms

    def on_timer(self, now_ms: int) -> None:
        """Raises GaveUp where the leader was silent for too long."""
        if now_ms >= self.deadline_ms():
            raise GaveUp(f"leader {self.leader_id} is silent, or slow to start")

    def on_link_opened(self, link: Any, now_ms: int) -> None:
        """The leader is reached."""
        assert self._phase is Phase.DIALLING, self._phase
        self.link = link
        self._heard_ms = now_ms
        self._phase = Phase.DISCOVERY
        self._tell(
            FollowerInfo(self._config.server_id, self._ledger.accepted_epoch, self._config.level)
        )

    def on_dial_failed(self) -> None:
        """The leader was not reached. Raises GaveUp."""
        raise GaveUp(f"leader {self.leader_id} cannot be reached")

    def on_link_lost(self, link: Any) -> None:
        """A link has ended. Raises GaveUp."""
        if link is self.link:
            self.link = None
            raise GaveUp(f"the link to leader {self.leader_id} has ended")

    def close(self, reason: str) -> None:
        """The term ends."""
        if self._snapshot_zxid:
            self._ledger.effects.append(DropSnapshot())
        if self.link is not None:
            self._ledger.effects.append(CloseLink(self.link, reason))
            self.link = None

    def on_message(self, link: Any, message: LeaderMessage, now_ms: int) -> None:
        """What the leader says. Raises GaveUp."""
        if link is not self.link:
            return  # of a term that is over
        self._heard_ms = now_ms
        if self._phase in _PATIENT:
            self._limit_ms = now_ms + self._config.init_limit_ms
        try:
            self._take(message)
        except RemoteProtocolError as error:
            raise GaveUp(f"leader {self.leader_id}: {error}") from error

    def _take(self, message: LeaderMessage) -> None:
        match message:
            case Proposal():
                self._on_proposal(message)
            case Commit(zxid):
                self._on_commit(zxid)
            case Ping(number):
                self._look_at_disk()
                self._tell(Pong(number))
            case SnapshotBegin(zxid):
                self._on_snapshot_begin(zxid)
            case SnapshotChunk(data):
                expect(self._snapshot_zxid != 0, "a piece of no snapshot")
                self._ledger.store_chunk(data)
            case SnapshotEnd():
                self._on_snapshot_end(message)
            case LeaderInfo(epoch):
                self._on_leader_info(epoch)
            case Truncate(zxid):
                self._on_truncate(zxid)
            case NewLeader(epoch):
                self._on_new_leader(epoch)
            case UpToDate(zxid):
                self._on_up_to_date(zxid)
            case _:
                raise RemoteProtocolError(f"a leader does not say {message!r}")

    def _look_at_disk(self) -> None:
        """What is logged would heap up behind a disk that hangs. Raises GaveUp."""
        stalled_ms = self._ledger.stalled_ms(self._heard_ms)
        if self.is_established and stalled_ms >= self._config.disk_limit_ms:
            raise GaveUp(f"our disk has written nothing for {stalled_ms} ms")

    def _look_at_queue(self) -> None:
        """A disk that is slower than the leader's, and works. Raises GaveUp."""
        queued_bytes = self._ledger.queued_bytes
        if queued_bytes > self._config.max_queued_bytes + self._history_bytes:
            raise GaveUp(f"our disk is too slow for the leader: {queued_bytes} bytes wait for it")

    def _tell(self, message: LearnerMessage) -> None:
        self._ledger.effects.append(Tell(self.link, message))

    # ---- discovery ------------------------------------------------------------------------------

    def _on_leader_info(self, epoch: int) -> None:
        accepted = self._ledger.accepted_epoch
        expect(self._phase is Phase.DISCOVERY, "LEADERINFO out of its phase", epoch)
        expect(epoch >= accepted, "a newer epoch was promised", accepted, epoch)
        self.epoch = epoch
        if epoch > accepted:
            self._phase = Phase.PROMISING
            self._ledger.accept_epoch(epoch)
        else:
            self._ack_epoch(is_promise=False)

    def on_epoch_accepted(self, epoch: int) -> None:
        """The promise is durable: only now it is made."""
        assert epoch == self.epoch and self._phase is Phase.PROMISING, (epoch, self._phase)
        self._ack_epoch(is_promise=True)

    def _ack_epoch(self, *, is_promise: bool) -> None:
        ledger = self._ledger
        assert ledger.is_settled, "the log moves while it is told where it ends"
        self._phase = Phase.SYNCHRONIZATION
        self._tell(AckEpoch(ledger.current_epoch, ledger.durable_zxid, is_promise))

    # ---- synchronization ------------------------------------------------------------------------

    def _on_truncate(self, zxid: int) -> None:
        ledger = self._ledger
        expect(self._phase is Phase.SYNCHRONIZATION, "TRUNC out of its phase", zxid)
        expect(ledger.log.holds(zxid), "truncated to what is not in the log", zxid)
        expect(zxid >= ledger.committed_zxid, "truncates what is committed", zxid)
        self._phase = Phase.HISTORY
        ledger.truncate_to(zxid)

    def _on_snapshot_begin(self, zxid: int) -> None:
        ledger = self._ledger
        expect(self._phase is Phase.SYNCHRONIZATION, "SNAP out of its phase", zxid)
        expect(zxid > ledger.log.last_zxid, "a snapshot of what is here", zxid)
        expect(epoch_of(zxid) <= self.epoch, "of a later epoch", zxid)
        self._phase = Phase.HISTORY
        self._snapshot_zxid = zxid
        ledger.receive_snapshot(zxid)

    def on_chunk_written(self) -> None:
        """The leader may send the next piece, and no sooner."""
        self._tell(ChunkStored())

    def _on_snapshot_end(self, message: SnapshotEnd) -> None:
        zxid, chunk_count, crc = message
        expect(zxid == self._snapshot_zxid != 0, "the end of another snapshot", zxid)
        self._snapshot_zxid = 0
        self._ledger.install_snapshot(zxid, chunk_count, crc)

    def on_snapshot_refused(self, reason: str) -> None:
        """It cannot be stored. Raises GaveUp."""
        raise GaveUp(f"the leader's snapshot is of no use: {reason}")

    def _on_proposal(self, message: Proposal) -> None:
        log = self._ledger.log
        if self._phase is Phase.SYNCHRONIZATION:
            self._phase = Phase.HISTORY
        expect(self._phase in _LOGGING, "a proposal out of its phase", message.first_zxid)
        expect(not self._snapshot_zxid, "a proposal inside a snapshot", message.first_zxid)
        expect(log.follows(message.first_zxid), "a gap", log.last_zxid, message.first_zxid)
        expect(epoch_of(message.last_zxid) <= self.epoch, "of a later epoch", message.last_zxid)
        if self._phase is not Phase.HISTORY:  # that comes no faster than it is stored
            self._look_at_queue()
        self._ledger.append(message.records, message.first_zxid, message.last_zxid)

    def _on_new_leader(self, epoch: int) -> None:
        phases = (Phase.SYNCHRONIZATION, Phase.HISTORY)
        expect(self._phase in phases, "NEWLEADER out of its phase", epoch)
        expect(not self._snapshot_zxid, "NEWLEADER inside a snapshot", epoch)
        expect(epoch == self.epoch, "another epoch", epoch, self.epoch)
        self._phase = Phase.ADOPTING
        self._history_bytes = self._ledger.queued_bytes
        self._ledger.adopt_epoch(epoch)  # behind the history, in the order of the disk

    def on_epoch_adopted(self, epoch: int) -> None:
        """History and epoch are durable, in this order: now it is acknowledged."""
        assert epoch == self.epoch and self._phase is Phase.ADOPTING, (epoch, self._phase)
        self._phase = Phase.ADOPTED
        self._tell(NewLeaderAck(epoch))

    # ---- broadcast ------------------------------------------------------------------------------

    def on_logged(self, zxid: int, now_ms: int) -> None:
        """A proposal is durable: only now it is acknowledged, never before NEWLEADER is
        (A.6.6). Of the history before that it is said only so that more of it is sent."""
        self._limit_ms = now_ms + self._config.init_limit_ms
        if self._phase in (Phase.ADOPTED, Phase.BROADCAST):
            self._tell(Ack(zxid))
        elif self._phase is Phase.HISTORY:
            self._tell(HistoryStored(zxid))
        if self._phase is not Phase.BROADCAST:
            self._ledger.apply_durable()

    def on_log_refused(self) -> None:
        """There is no space for what the leader proposes. Raises GaveUp."""
        raise GaveUp("there is no disk space for the log")

    def _on_up_to_date(self, zxid: int) -> None:
        expect(self._phase is Phase.ADOPTED, "UPTODATE out of its phase", zxid)
        self._commit(zxid)
        self._phase = Phase.BROADCAST
        self._serve_if_committed()

    def _on_commit(self, zxid: int) -> None:
        expect(self._phase is Phase.BROADCAST, "COMMIT out of its phase", zxid)
        expect(zxid > self._ledger.committed_zxid, "committed backwards", zxid)
        self._commit(zxid)
        self._serve_if_committed()

    def _serve_if_committed(self) -> None:
        """Serve, once all that this server has applied when it started is known to be committed."""
        if not self.is_established and self._ledger.may_serve:
            self.is_established = True
            self._ledger.effects.append(Serve(self.epoch, self.leader_id))

    def _commit(self, zxid: int) -> None:
        expect(zxid <= self._ledger.log.last_zxid, "commits what was not proposed", zxid)
        self._ledger.commit(zxid)
