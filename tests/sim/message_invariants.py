"""What the servers of an ensemble may say over a link, and what must be durable before (A.14).

Z15 stateConsistent, Z16 proposalConsistent, Z17 commitConsistent, Z18 ackConsistent and Z19
messageLegal of reference reliability §7.2, checked where a message is sent: the grammar is

    leader     LeaderInfo [Truncate | SnapshotBegin SnapshotChunk* SnapshotEnd]
               Proposal* NewLeader Proposal* UpToDate (Proposal | Commit)*
    learner    FollowerInfo AckEpoch ChunkStored* HistoryStored* NewLeaderAck Ack*

with Ping and Pong anywhere behind the first FollowerInfo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from duolog_cluster.sim.network import Link
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
    Proposal,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    Truncate,
    UpToDate,
)
from duolog_protocol.txns import zxid_of

from .ensemble_records import count_up_to, follows, last_zxid_of
from .invariants import Ensemble, Invariant

if TYPE_CHECKING:
    from .ensemble_server import Life

START: Final = ""
GRAMMAR: Final = {
    LeaderInfo: ({START}, "led"),
    Truncate: ({"led"}, "cut"),
    SnapshotBegin: ({"led"}, "snapshot"),
    SnapshotChunk: ({"snapshot"}, "snapshot"),
    SnapshotEnd: ({"snapshot"}, "cut"),
    NewLeader: ({"led", "cut", "history"}, "new"),
    UpToDate: ({"new"}, "up"),
    Commit: ({"up"}, "up"),
    FollowerInfo: ({START}, "introduced"),
    AckEpoch: ({"introduced"}, "promised"),
    ChunkStored: ({"promised"}, "promised"),
    HistoryStored: ({"promised", "storing"}, "storing"),
    NewLeaderAck: ({"promised", "storing"}, "adopted"),
    Ack: ({"adopted"}, "adopted"),
}
LEADER_SAYS: Final = (
    *(LeaderInfo, Truncate, SnapshotBegin, SnapshotChunk, SnapshotEnd),
    *(Proposal, NewLeader, UpToDate, Commit, Ping),
)


class Talk:
    """What was said so far at one end of a link."""

    __slots__ = ("acked_zxid", "committed_zxid", "epoch", "state", "zxid")

    def __init__(self) -> None:
        self.state = START
        self.epoch = 0
        self.zxid: int | None = None
        """Where the learner's log ends when everything has arrived; None: it is not known."""
        self.committed_zxid = 0
        self.acked_zxid = 0


class MessageLegal(Invariant):
    """Every message fits what was said before, and who says it."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__(ensemble)
        self.talks: dict[Link, Talk] = {}

    def tells(self, life: Life, link: Link, message: Any) -> None:
        talk = self.talks.get(link)
        if talk is None:
            talk = self.talks[link] = Talk()
        if life.speaks_as_leader != isinstance(message, LEADER_SAYS):
            self.fail(life, "says", message, "as", life.peer.role.name)
        self._advance(life, talk, message)
        match message:
            case LeaderInfo(epoch):
                talk.epoch = epoch
            case AckEpoch():
                theirs = self.talks[link.other]
                theirs.zxid = message.last_zxid
            case Truncate(zxid):
                self._truncates(life, talk, zxid)
            case SnapshotBegin(zxid):
                if talk.zxid is None or zxid <= talk.zxid:
                    self.fail(life, f"sends a snapshot at {zxid:#x} to who is at {talk.zxid}")
                talk.zxid = zxid
            case Proposal():
                self._proposes(life, talk, message)
            case NewLeader(epoch):
                if epoch != talk.epoch or life.last_epoch != epoch:
                    self.fail(life, "says", message, "in epoch", talk.epoch)
            case UpToDate(zxid):
                if not (life.is_leading or life.was_leading):
                    self.fail(life, "says UpToDate and is not established")
                self._commits(life, talk, zxid)
            case Commit(zxid):
                if zxid <= talk.committed_zxid:
                    self.fail(life, f"commits {zxid:#x} behind {talk.committed_zxid:#x}")
                self._commits(life, talk, zxid)
            case Ack(zxid):
                if zxid < talk.acked_zxid:
                    self.fail(life, f"acknowledges {zxid:#x} behind {talk.acked_zxid:#x}")
                talk.acked_zxid = zxid

    def _advance(self, life: Life, talk: Talk, message: Any) -> None:
        if isinstance(message, Ping | Pong):
            return
        if isinstance(message, Proposal):
            allowed = talk.state in ("led", "cut", "history", "new", "up")
            state = "history" if talk.state in ("led", "cut") else talk.state
        else:
            states, state = GRAMMAR[type(message)]
            allowed = talk.state in states
        if not allowed:
            self.fail(life, "says", message, "when", talk.state or "nothing", "was said")
        talk.state = state

    def _truncates(self, life: Life, talk: Talk, zxid: int) -> None:
        if talk.zxid is None or zxid >= talk.zxid:
            self.fail(life, f"cuts to {zxid:#x} a log that ends at {talk.zxid}")
        if zxid and count_up_to(life.records, zxid) == count_up_to(life.records, zxid - 1):
            self.fail(life, f"cuts a log to {zxid:#x}, which it does not have")
        talk.zxid = zxid

    def _proposes(self, life: Life, talk: Talk, message: Proposal) -> None:
        zxid = talk.zxid
        if zxid is None:
            self.fail(life, "proposes to who has not said where its log ends")
        assert zxid is not None
        for record in message.records:
            if not follows(zxid_of(record), zxid):
                self.fail(life, f"proposes {zxid_of(record):#x} behind {zxid:#x}")
            zxid = zxid_of(record)
        if (message.first_zxid, message.last_zxid) != (zxid_of(message.records[0]), zxid):
            self.fail(life, "misnames its proposal", message)
        talk.zxid = zxid

    def _commits(self, life: Life, talk: Talk, zxid: int) -> None:
        if talk.zxid is None or zxid > talk.zxid:
            self.fail(life, f"commits {zxid:#x}, but proposed up to {talk.zxid}")
        if zxid > life.peer.last_committed_zxid:
            self.fail(life, f"says that {zxid:#x} is committed, and does not believe it")
        talk.committed_zxid = zxid


class DurableBeforeSent(Invariant):
    """What a message promises is on the disk of who sends it."""

    def tells(self, life: Life, link: Link, message: Any) -> None:
        machine = life.machine
        held = last_zxid_of(machine.durable)
        match message:
            case LeaderInfo(epoch):
                if machine.accepted_epoch != epoch:
                    self.fail(life, "says", message, "having accepted", machine.accepted_epoch)
            case AckEpoch(current_epoch, last_zxid, _):
                if (current_epoch, last_zxid) != (machine.current_epoch, held):
                    self.fail(life, "says", message, "having", machine.current_epoch, f"{held:#x}")
                if machine.accepted_epoch != life.peer.epoch:
                    self.fail(life, "says", message, "having accepted", machine.accepted_epoch)
            case NewLeaderAck(epoch):
                if machine.current_epoch != epoch:
                    self.fail(life, "says", message, "having adopted", machine.current_epoch)
            case HistoryStored(zxid):
                if zxid > held:
                    self.fail(life, f"says that {zxid:#x} is stored, having {held:#x}")
            case Ack(zxid):
                if zxid > held:
                    self.fail(life, f"acknowledges {zxid:#x}, having {held:#x}")
                if machine.current_epoch != life.peer.epoch:
                    self.fail(life, "acknowledges, having adopted", machine.current_epoch)


class PromisedOnce(Invariant):
    """A server promises an epoch to one leader only, over all its lives."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__(ensemble)
        self._promised: set[tuple[int, int]] = set()

    def tells(self, life: Life, link: Link, message: Any) -> None:
        if isinstance(message, AckEpoch) and message.is_promise:
            promise = (life.server_id, life.peer.epoch)
            if promise in self._promised:
                self.fail(life, "promises epoch", life.peer.epoch, "a second time")
            self._promised.add(promise)
