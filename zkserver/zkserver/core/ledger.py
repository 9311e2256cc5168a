"""What a server has on its disk, what is on its way there, and what of it is committed.

Owns the order of the disk work that ZAB's safety rests on, and asserts it (reference A.6, A.14):

    accepted_epoch >= current_epoch; neither ever falls
    current_epoch >= epoch of every logged record, but for the history of a learner that was cut
    off before it could adopt its epoch: it votes with the lower one, and cannot win by it
    applied <= durable, and <= committed where clients are served;  committed, durable <= logged
    nothing committed is ever truncated

Roles ask for work and hear of its end; the work outlives the role that asked. Nobody may vote
before all of it is done (`is_settled`): a vote names what is on the disk (ZOOKEEPER-4712, -4541).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .epoch_ends import EpochEnds
from .membership import Membership, Memberships
from .peer_events import (
    AcceptEpoch,
    AdoptEpoch,
    AppendRecords,
    ApplyUpTo,
    InstallSnapshot,
    MembersChanged,
    PeerEffect,
    ReceiveSnapshot,
    StoreChunk,
    TruncateLog,
)


class Ledger:
    """The durable side of one server, as its roles see it."""

    def __init__(
        self,
        accepted_epoch: int,
        current_epoch: int,
        log: EpochEnds,
        memberships: Memberships,
        applied_zxid: int = 0,
    ) -> None:
        """`applied_zxid`: what the state holds at the start, perhaps more than is committed."""
        assert applied_zxid <= log.last_zxid, (applied_zxid, log.last_zxid)
        assert accepted_epoch >= current_epoch, (accepted_epoch, current_epoch)
        self.accepted_epoch = accepted_epoch
        """The highest epoch promised; durable."""
        self.heard_epoch = 0
        """The highest one that a server has said to have promised when it came too late for a term:
        the next one of ours is higher. Not kept over a restart."""
        self.current_epoch = current_epoch
        """The epoch whose history the log holds; durable."""
        self.log = log
        """What is logged: on the disk, or on its way there."""
        self.memberships = memberships
        """Who belongs to the ensemble, as the log says."""
        self.durable_zxid = log.last_zxid
        """On the disk (<= logged)."""
        self.committed_zxid = 0
        """Known to be durable on a quorum (<= logged); not kept over a restart."""
        self.applied_zxid = applied_zxid
        """What the state holds: what was applied at the start, or `ApplyUpTo` has told (<= durable,
        <= committed wherever clients are served)."""
        self.effects: list[PeerEffect] = []
        """What the shell has to do, in order; the owner takes them."""
        self._asked_epoch = accepted_epoch
        """The highest epoch that was asked to be made durable."""
        self._replaced_log: EpochEnds | None = None
        """What the log was, while a snapshot is being installed in its place."""
        self._jobs = 0
        """Pieces of disk work that have not ended, without the appends."""
        self.queued_bytes = 0
        """Records that are not on the disk yet."""
        self._appends: deque[tuple[int, int]] = deque()
        """The last zxid and the bytes of every append that has not ended, in order."""
        self._oldest_append = (0, 0)
        """The one of them that was asked about last, and since when (ms)."""

    @property
    def is_settled(self) -> bool:
        """No disk work is under way: what is logged is durable."""
        return self._jobs == 0 and not self._appends

    def stalled_ms(self, now_ms: int) -> int:
        """For how long the oldest append has been under way, as far as is known: ask regularly."""
        oldest = self._appends[0][0] if self._appends else 0
        if oldest == 0 or oldest != self._oldest_append[0]:
            self._oldest_append = (oldest, now_ms)
        return now_ms - self._oldest_append[1]

    @property
    def may_serve(self) -> bool:
        """Nothing is applied that is not committed."""
        return self.applied_zxid <= self.committed_zxid

    # ---- asked for by roles ---------------------------------------------------------------------

    def accept_epoch(self, epoch: int) -> None:
        """Promise an epoch; `on_epoch_accepted` follows."""
        assert epoch > self._asked_epoch, (epoch, self._asked_epoch)
        self._asked_epoch = epoch
        self._do(AcceptEpoch(epoch))

    def adopt_epoch(self, epoch: int) -> None:
        """What is logged, and logged durably before this, is that epoch's history."""
        assert epoch == self.accepted_epoch, (epoch, self.accepted_epoch)
        assert epoch >= self.current_epoch, (epoch, self.current_epoch)
        self._do(AdoptEpoch(epoch))

    def append(self, records: Sequence[bytes], first_zxid: int, last_zxid: int) -> None:
        """Log records; `on_logged` or `on_refused` follows."""
        assert self.log.follows(first_zxid), (f"{first_zxid:#x}", f"{self.log.last_zxid:#x}")
        assert len(records) == last_zxid - first_zxid + 1, (len(records), first_zxid, last_zxid)
        self.log.append(first_zxid, last_zxid)
        size_bytes = sum(map(len, records))
        self._appends.append((last_zxid, size_bytes))
        self.queued_bytes += size_bytes
        self.effects.append(AppendRecords(list(records), first_zxid, last_zxid))
        if self.memberships.on_appended(first_zxid, records):
            self._members_changed()

    def truncate_to(self, zxid: int) -> None:
        """Forget everything after `zxid`; `on_truncated` follows."""
        assert self.is_settled, "truncated under a running append"
        assert zxid >= self.committed_zxid, (f"{zxid:#x}", f"{self.committed_zxid:#x}")
        self.log.truncate_to(zxid)
        self.durable_zxid = min(self.durable_zxid, zxid)
        self.applied_zxid = min(self.applied_zxid, zxid)
        self._truncate_members()
        self._do(TruncateLog(zxid))

    def receive_snapshot(self, zxid: int) -> None:
        """A leader's snapshot comes; `store_chunk`s and `install_snapshot` follow."""
        assert self.is_settled, "a snapshot comes while the log is written"
        assert zxid > self.log.last_zxid, (f"{zxid:#x}", f"{self.log.last_zxid:#x}")
        self._do(ReceiveSnapshot(zxid))

    def store_chunk(self, data: bytes) -> None:
        """The next piece of it; `on_chunk_written` or `on_snapshot_refused` follows."""
        self._do(StoreChunk(data))

    def install_snapshot(self, zxid: int, chunk_count: int, crc: int) -> None:
        """It is complete: the log goes on after it. `on_snapshot_installed` or `..._refused`."""
        assert zxid > self.log.last_zxid, (f"{zxid:#x}", f"{self.log.last_zxid:#x}")
        self._replaced_log, self.log = self.log, EpochEnds(zxid)
        self._do(InstallSnapshot(zxid, chunk_count, crc))

    def commit(self, zxid: int) -> None:
        """Everything up to `zxid`, which is logged here, is durable on a quorum."""
        assert zxid <= self.log.last_zxid, (f"{zxid:#x}", f"{self.log.last_zxid:#x}")
        self.committed_zxid = max(self.committed_zxid, zxid)
        self._apply()

    def apply_durable(self) -> None:
        """Apply all that is on the disk, committed or not, for a server that serves nobody and will
        not before it is known to be (`may_serve`): what is applied need not be kept in memory."""
        self._apply_up_to(self.durable_zxid)

    # ---- what the disk has done -----------------------------------------------------------------

    def on_epoch_accepted(self, epoch: int) -> None:
        """`accepted_epoch` is durable."""
        self._ended()
        assert epoch > self.accepted_epoch, (epoch, self.accepted_epoch)
        self.accepted_epoch = epoch

    def on_epoch_adopted(self, epoch: int) -> None:
        """`current_epoch` is durable, and so is everything that was logged before it."""
        self._ended()
        assert self.current_epoch <= epoch <= self.accepted_epoch, (self.current_epoch, epoch)
        self.current_epoch = epoch

    def on_logged(self, zxid: int) -> None:
        """Every `AppendRecords` up to the one that ends with `zxid` is durable."""
        ended = 0
        while ended != zxid:
            ended, size_bytes = self._appends.popleft()
            assert ended <= zxid, (ended, zxid)
            self.queued_bytes -= size_bytes
        self.durable_zxid = zxid
        self._apply()

    def on_refused(self, first_zxid: int) -> None:
        """There was no space: nothing that was asked for from `first_zxid` on is done."""
        assert first_zxid > self.durable_zxid, (first_zxid, self.durable_zxid)
        self._forget_work()
        self.log.truncate_to(self.durable_zxid)
        self._truncate_members()
        self.committed_zxid = min(self.committed_zxid, self.durable_zxid)

    def on_snapshot_begun(self) -> None:
        """There is room for a snapshot."""
        self._ended()

    def on_chunk_written(self) -> None:
        """A piece of a snapshot is written."""
        self._ended()

    def on_snapshot_installed(self, zxid: int, members: Membership | None, level: int) -> None:
        """State and log are what the leader had at `zxid`, which is committed."""
        self._ended()
        later = self.memberships  # what was appended behind it comes after it
        self.memberships = later.rebased(zxid, members, level)
        self._members_changed()
        assert zxid == self.log.first_zxid_before, (zxid, self.log.first_zxid_before)
        assert zxid > max(self.durable_zxid, self.committed_zxid), (zxid, self.durable_zxid)
        self._replaced_log = None
        self.durable_zxid = self.applied_zxid = self.committed_zxid = zxid

    def on_snapshot_refused(self) -> None:
        """It is not stored, nor is anything done that was asked for behind it."""
        self._forget_work()
        if self._replaced_log is not None:
            self.log, self._replaced_log = self._replaced_log, None
        self._truncate_members()  # what came behind the snapshot may have named others
        assert self.log.last_zxid == self.durable_zxid, (self.log.last_zxid, self.durable_zxid)

    def on_purged(self, first_zxid_before: int) -> None:
        """The log's files begin after that zxid, also if what is to replace them is refused."""
        for log in (self.log, self._replaced_log):
            if log is not None:
                log.forget_before(first_zxid_before)

    def on_truncated(self, zxid: int) -> None:
        """The log ends at `zxid`."""
        self._ended()
        assert zxid == self.durable_zxid, (zxid, self.durable_zxid)

    def _forget_work(self) -> None:
        self._appends.clear()
        self.queued_bytes = self._jobs = 0
        self._asked_epoch = self.accepted_epoch

    def _truncate_members(self) -> None:
        if self.memberships.truncate_to(self.log.last_zxid):
            self._members_changed()

    def _members_changed(self) -> None:
        self.effects.append(MembersChanged(self.memberships.current))

    def _do(
        self,
        work: AcceptEpoch
        | AdoptEpoch
        | TruncateLog
        | ReceiveSnapshot
        | StoreChunk
        | InstallSnapshot,
    ) -> None:
        self._jobs += 1
        self.effects.append(work)

    def _ended(self) -> None:
        assert self._jobs > 0, "disk work ended that nobody asked for"
        self._jobs -= 1

    def _apply(self) -> None:
        self._apply_up_to(min(self.committed_zxid, self.durable_zxid))

    def _apply_up_to(self, zxid: int) -> None:
        if zxid > self.applied_zxid:
            self.applied_zxid = zxid
            self.effects.append(ApplyUpTo(zxid))
