"""What must hold in an ensemble whatever happens: the properties of ZAB, seen from outside.

One class for each, with the name that the ZAB specifications give it (reference reliability §7.1,
§7.2); what messages may say, and when, is in `message_invariants.py`. Each is told what happens and
checks what that could have broken, so that an event costs little however long the history is.

`Ensemble` is what they share: what was proposed, and the committed history, which is what anybody
has applied. Every server applies a prefix of it, so that PrefixConsistency, Agreement, TotalOrder
and LocalPrimaryOrder of the specification are one comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duolog_cluster.sim.network import Link
from duolog_protocol.quorum_messages import NewLeader, NewLeaderAck, Notification, PeerState
from duolog_protocol.txns import zxid_of
from duolog_protocol.types import epoch_of

from .ensemble_records import before_epoch, follows, last_zxid_of, tell
from .violation import Violation

if TYPE_CHECKING:
    from .ensemble_machine import Machine
    from .ensemble_server import Life


class Ensemble:
    """The history of the whole ensemble, as the invariants see it."""

    def __init__(self, machines: list[Machine], voters: frozenset[int]) -> None:
        self.machines = machines
        self.voters = [each for each in machines if each.server_id in voters]
        self.quorum = len(voters) // 2 + 1
        self.committed: list[bytes] = []
        """What anybody has applied, in order."""
        self.committer: dict[int, int] = {}
        """Index in `committed` -> the epoch under which it was applied first."""
        self.proposed: dict[int, bytes] = {}
        """zxid -> the record that some leader proposed."""
        self.acknowledged: dict[int, bytes] = {}
        """zxid -> the record whose client was told that it is there."""
        self.epoch_logs: dict[int, list[bytes]] = {}
        """epoch -> its leader's log, from the moment at which it says NEWLEADER on."""
        self.epoch_leaders: dict[int, tuple[int, int]] = {}
        """epoch -> (server_id, life) of who has said NEWLEADER in it."""
        self.last_established_epoch = 0
        """The highest epoch that any leader was established in."""
        self.last_acknowledged_zxid = 0
        self.history_counts: dict[int, int] = {}
        """epoch -> how many records its leader brought along."""


class Invariant:
    """Something that must hold. A subclass overrides what it wants to be told."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble

    def fail(self, *what: Any) -> None:
        """Raise the violation."""
        raise Violation(f"{type(self).__name__}: {' '.join(map(str, what))}")

    def booted(self, life: Life, accepted_epoch: int, current_epoch: int) -> None:
        """A process has read its disk; `machine` still says what must be there."""

    def proposes(self, life: Life, records: list[bytes]) -> None:
        """A leader is about to propose."""

    def appends(self, life: Life, records: list[bytes]) -> None:
        """A log is about to grow."""

    def truncates(self, life: Life, zxid: int, kept: int) -> None:
        """A log is about to be cut after `zxid`, to so many records."""

    def applies(self, life: Life, index: int, record: bytes) -> None:
        """A server has applied the record at an index of its log."""

    def tells(self, life: Life, link: Link, message: Any) -> None:
        """A message is about to be sent."""

    def notifies(self, life: Life, notification: Notification) -> None:
        """A notification is about to be sent."""

    def leads(self, life: Life) -> None:
        """A leader has just been established."""

    def installs(self, life: Life, records: list[bytes]) -> None:
        """A leader's snapshot, of these records, is about to take the place of a log."""

    def confirmed(self, life: Life, epoch: int, zxid: int) -> None:
        """A leader knows that it has led since it was asked: then the last epoch that had been
        established was `epoch`, and the last zxid that had been acknowledged `zxid`."""

    def stepped(self, life: Life) -> None:
        """A peer has taken an event, and its effects were performed."""


class Leadership(Invariant):
    """Leadership1, Leadership2: an epoch has one leader, over all of history."""

    def tells(self, life: Life, link: Link, message: Any) -> None:
        if isinstance(message, NewLeader):
            ensemble, me = self.ensemble, (life.server_id, life.number)
            other = ensemble.epoch_leaders.setdefault(message.epoch, me)
            if other != me:
                self.fail(life, "leads epoch", message.epoch, "and so does", other)
            if message.epoch not in ensemble.epoch_logs:
                ensemble.epoch_logs[message.epoch] = list(life.records)
                ensemble.history_counts[message.epoch] = len(life.records)

    def leads(self, life: Life) -> None:
        epoch, me = life.peer.epoch, (life.server_id, life.number)
        other = self.ensemble.epoch_leaders.setdefault(epoch, me)
        if other != me:
            self.fail(life, "is established in epoch", epoch, "and so was", other)
        self.ensemble.epoch_logs.setdefault(epoch, list(life.records))
        self.ensemble.last_established_epoch = max(self.ensemble.last_established_epoch, epoch)


class PrefixConsistency(Invariant):
    """Everybody applies the same records in the same order: Agreement, TotalOrder, and the rest."""

    def applies(self, life: Life, index: int, record: bytes) -> None:
        committed = self.ensemble.committed
        if index == len(committed):
            committed.append(record)
            self.ensemble.committer[index] = life.last_epoch
        elif committed[index] != record:
            self.fail(life, "applies", tell([record]), "where", tell([committed[index]]), "was")


class Integrity(Invariant):
    """What is applied was proposed, by the leader of its epoch, and nothing else at its zxid."""

    def proposes(self, life: Life, records: list[bytes]) -> None:
        for record in records:
            other = self.ensemble.proposed.setdefault(zxid_of(record), record)
            if other != record:
                self.fail(life, "proposes", tell([record]), "where", tell([other]), "was proposed")

    def applies(self, life: Life, index: int, record: bytes) -> None:
        if self.ensemble.proposed.get(zxid_of(record)) != record:
            self.fail(life, "applies", tell([record]), "which nobody has proposed")


class GlobalPrimaryOrder(Invariant):
    """proposalConsistent: a log is in zxid order, without a gap within an epoch."""

    def appends(self, life: Life, records: list[bytes]) -> None:
        last = last_zxid_of(life.records)
        for record in records:
            if not follows(zxid_of(record), last):
                self.fail(life, f"logs {zxid_of(record):#x} behind {last:#x}")
            last = zxid_of(record)


class PrimaryIntegrity(Invariant):
    """Before a leader proposes, it has applied what any of its followers has."""

    def proposes(self, life: Life, records: list[bytes]) -> None:
        epoch = life.peer.epoch
        if zxid_of(records[0]) & 0xFFFFFFFF:
            return  # not its first
        for machine in self.ensemble.machines:
            other = machine.life
            if other is None or not other.is_attached or other.peer.epoch != epoch:
                continue
            if other.applied_count > life.applied_count:
                self.fail(life, f"proposes; {other} has applied {other.applied_count} records")


class CommittedByQuorum(Invariant):
    """commitConsistent: what is applied first is on the disks of a quorum that holds the epoch."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__(ensemble)
        self._count = 0
        """Of those that were applied by anybody."""

    def applies(self, life: Life, index: int, record: bytes) -> None:
        ensemble, epoch = self.ensemble, life.last_epoch
        if index < self._count:
            return
        self._count = index + 1
        count = 0
        for machine in ensemble.voters:
            durable = machine.durable
            if index < len(durable) and durable[index] == record and machine.current_epoch >= epoch:
                count += 1
        if count < ensemble.quorum:
            self.fail(life, "applies", tell([record]), f"which {count} voters have on disk")


class CommittedLogMonotonicity(Invariant):
    """What an established leader knows to be committed never falls."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__(ensemble)
        self._known: dict[int, tuple[int, int]] = {}

    def stepped(self, life: Life) -> None:
        if life.is_leading:
            epoch, zxid = life.peer.epoch, life.peer.last_committed_zxid
            known_epoch, known = self._known.get(life.server_id, (0, 0))
            if known_epoch == epoch and zxid < known:
                self.fail(life, f"had committed {known:#x}, now {zxid:#x}")
            self._known[life.server_id] = (epoch, zxid)

    def leads(self, life: Life) -> None:
        last = last_zxid_of(before_epoch(self.ensemble.committed, life.peer.epoch))
        if life.peer.last_committed_zxid < last:
            self.fail(life, f"leads with {life.peer.last_committed_zxid:#x}, {last:#x} was applied")


class ProcessConsistency(Invariant):
    """Once a learner has adopted an epoch, its log is a prefix of its leader's, with all history.

    NewLeaderAck says that it has; from then on each append is compared.
    """

    def proposes(self, life: Life, records: list[bytes]) -> None:
        self.ensemble.epoch_logs[life.peer.epoch] += records

    def tells(self, life: Life, link: Link, message: Any) -> None:
        if not isinstance(message, NewLeaderAck):
            return
        durable = life.durable
        whole = self.ensemble.epoch_logs.get(message.epoch, [])
        if len(durable) < self.ensemble.history_counts.get(message.epoch, 0):
            self.fail(life, "adopts epoch", message.epoch, "with", tell(durable), "of", tell(whole))
        if life.records != whole[: len(life.records)]:
            self.fail(life, "has", tell(life.records), "where its leader has", tell(whole))
        life.adopted_epoch = message.epoch

    def appends(self, life: Life, records: list[bytes]) -> None:
        if life.adopted_epoch:
            start = len(life.records)
            whole = self.ensemble.epoch_logs[life.adopted_epoch]
            if records != whole[start : start + len(records)]:
                self.fail(life, "logs", tell(records), "which is not what its leader proposed")


class LeaderLogCompleteness(Invariant):
    """An established leader's log holds everything of earlier epochs that was applied anywhere."""

    def leads(self, life: Life) -> None:
        committed = before_epoch(self.ensemble.committed, life.peer.epoch)
        if life.records[: len(committed)] != committed:
            self.fail(life, "leads with", tell(life.records), "without", tell(committed))


class NoAckedWriteLost(Invariant):
    """Every record whose client was told so is in every later leader's log."""

    def leads(self, life: Life) -> None:
        acknowledged = sorted(self.ensemble.acknowledged.values())
        self._require(life, before_epoch(acknowledged, life.peer.epoch))

    def check(self, life: Life) -> None:
        """Whether a server has everything that was acknowledged."""
        self._require(life, list(self.ensemble.acknowledged.values()))

    def _require(self, life: Life, records: list[bytes]) -> None:
        missing = set(records).difference(life.records)
        if missing:
            self.fail(life, "lacks", sorted(map(zxid_of, missing)))


class ServesCommitted(Invariant):
    """A client never sees what may still be truncated: all that is applied is committed.

    Applied is what was recovered, at once, and what was told; and it is what the log says.
    """

    def stepped(self, life: Life) -> None:
        state, peer = life.state, life.peer
        if not life.serving_epoch:
            return
        last = last_zxid_of(state)
        if last > peer.last_committed_zxid:
            self.fail(life, f"serves {last:#x}, committed is {peer.last_committed_zxid:#x}")
        if last != min(peer.last_committed_zxid, peer.last_durable_zxid):
            self.fail(life, f"has applied {last:#x} of {peer.last_committed_zxid:#x}")
        if state and state[-1] != life.records[len(state) - 1]:
            self.fail(life, "has applied", tell(state), "of", tell(life.records))


class LinearizableSync(Invariant):
    """Who reads after a sync sees whatever had been acknowledged when the sync was asked for.

    A leader that has confirmed its lead was followed by nobody that was established by then.
    """

    def confirmed(self, life: Life, epoch: int, zxid: int) -> None:
        if epoch > life.peer.epoch:
            self.fail(life, "leads epoch", life.peer.epoch, "when", epoch, "was established")
        if zxid > last_zxid_of(life.state):
            self.fail(life, "shows", tell(life.state), f"when {zxid:#x} was acknowledged")


class CommittedLogDurability(Invariant):
    """No synchronization takes a committed record away; and it cuts where the log has a record."""

    def truncates(self, life: Life, zxid: int, kept: int) -> None:
        if kept < life.applied_count:
            self.fail(life, f"is cut to {zxid:#x} below what it has applied")
        if zxid != last_zxid_of(life.records[:kept]):
            self.fail(life, f"is cut to {zxid:#x}, which is not in", tell(life.records))
        for mine, committed in zip(
            life.records[kept:], self.ensemble.committed[kept:], strict=False
        ):
            if mine == committed:
                self.fail(life, f"is cut to {zxid:#x}: loses", tell([mine]))


class WholeSnapshot(Invariant):
    """A leader's snapshot is of committed records, and is taken over whole or not at all."""

    def installs(self, life: Life, records: list[bytes]) -> None:
        if records != self.ensemble.committed[: len(records)]:
            self.fail(life, "is given", tell(records), "which is not committed")
        if records[: life.applied_count] != life.state[: life.applied_count]:
            self.fail(life, "is given", tell(records), "after", tell(life.state))

    def booted(self, life: Life, accepted_epoch: int, current_epoch: int) -> None:
        was = life.machine.taking_over
        if was is not None and life.records not in was:
            self.fail(life, "recovered", tell(life.records), "of", *map(tell, was))


class DurableLog(Invariant):
    """What a disk has synced is there after a crash, and what it has truncated is not; epochs never
    fall, and are in order."""

    def booted(self, life: Life, accepted_epoch: int, current_epoch: int) -> None:
        machine = life.machine
        durable = machine.durable
        if life.records[: len(durable)] != durable:
            self.fail(life, "recovered", tell(life.records), "of", tell(durable))
        back = machine.gone.intersection(life.records[len(durable) :])
        if back:
            self.fail(life, "recovered what was truncated:", tell(sorted(back)))
        if accepted_epoch < machine.accepted_epoch or current_epoch < machine.current_epoch:
            was = (machine.accepted_epoch, machine.current_epoch)
            self.fail(life, "recovered epochs", (accepted_epoch, current_epoch), "of", was)
        self._in_order(life, accepted_epoch, current_epoch)

    def stepped(self, life: Life) -> None:
        machine, peer = life.machine, life.peer
        self._in_order(life, machine.accepted_epoch, machine.current_epoch)
        if peer.accepted_epoch > machine.accepted_epoch:
            self.fail(life, "believes in a promise that is not on its disk:", peer.accepted_epoch)
        if peer.current_epoch > machine.current_epoch:
            self.fail(life, "believes in an epoch that is not on its disk:", peer.current_epoch)
        held = machine.durable
        if machine.taking_over is not None:  # it is told of the end later, and votes no sooner
            held, _ = machine.taking_over
        if peer.last_durable_zxid > last_zxid_of(held):
            self.fail(life, f"believes {peer.last_durable_zxid:#x} to be on its disk")

    def _in_order(self, life: Life, accepted_epoch: int, current_epoch: int) -> None:
        if accepted_epoch < current_epoch:
            self.fail(life, "has accepted", accepted_epoch, "and adopted", current_epoch)


class HonestVote(Invariant):
    """Who looks for a leader and votes for itself says what its disk holds (ZOOKEEPER-2845)."""

    def notifies(self, life: Life, notification: Notification) -> None:
        vote = notification.vote
        if notification.state == PeerState.LOOKING and vote.server_id == life.server_id:
            machine = life.machine
            held = (machine.current_epoch, last_zxid_of(machine.durable))
            if (vote.epoch, vote.zxid) != held:
                self.fail(life, "votes", vote, "but has", held)


class EpochOfLog(Invariant):
    """No log holds a record of an epoch that its server has not promised."""

    def appends(self, life: Life, records: list[bytes]) -> None:
        if epoch_of(zxid_of(records[-1])) > life.machine.accepted_epoch:
            self.fail(life, "logs", tell(records), "but accepted", life.machine.accepted_epoch)
