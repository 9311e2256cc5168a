"""Which zxids a log holds, kept as the last one of each epoch.

Within an epoch the counters of a log are contiguous from 0, so that the ends of the epochs say it
all. A leader finds with them where a learner's log leaves its own, and sends what follows.

The same zxid in two logs means the same record, and the same records before it:

- An epoch has one leader, since a quorum has promised it to nobody else. The leader numbers its
  records once, in order, and a server that starts anew never goes on in an epoch it has led: a
  zxid of an epoch names one record.
- What a learner logs in an epoch comes from its leader, in order, behind the whole history that the
  leader had when it opened the epoch: its log is a prefix of its leader's (Zab, DSN 2011: agreement
  and local primary order; Raft's log matching property).

So the last zxid of a learner tells all it has, and `last_common` of it is where both logs part.
That holds even if the leader has nothing of the epoch that the learner ends in: its log then skips
that epoch right behind the history that it was opened with, which the learner has, too. For this, a
leader must not log anything in its epoch before a quorum has adopted it (Zab phase 3 begins after
phase 2): only then has every later leader adopted that epoch or a newer one, history and all.

It replaces ZooKeeper's window of the last 500 committed proposals (A.5), outside of which it sends
a snapshot: ours sends records from any zxid that the log goes back to, and truncates across epochs.
Source: Kafka's `LeaderEpochFileCache` (KIP-101), for zxids.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from duolog_protocol.types import counter_of, epoch_of


class EpochEnds:
    """The zxids of one log: everything after `first_zxid_before`, up to `last_zxid`."""

    def __init__(self, first_zxid_before: int) -> None:
        """An empty log; what comes before it is in a snapshot, or there is nothing: 0."""
        assert first_zxid_before >= 0, first_zxid_before
        self.first_zxid_before = first_zxid_before
        """The log holds what comes after this one; it counts as held itself."""
        self._ends: list[int] = [first_zxid_before]
        """Last zxid of each epoch, ascending. The first one is in the epoch of
        `first_zxid_before`, and not less; each other epoch is held from its counter 0 on."""

    @property
    def last_zxid(self) -> int:
        """The last one held; `first_zxid_before` when the log is empty."""
        return self._ends[-1]

    def follows(self, first_zxid: int) -> bool:
        """Whether a record with this zxid may be appended now."""
        last_zxid = self._ends[-1]
        if epoch_of(first_zxid) == epoch_of(last_zxid):
            return first_zxid == last_zxid + 1
        return first_zxid > last_zxid and counter_of(first_zxid) == 0

    def append(self, first_zxid: int, last_zxid: int) -> None:
        """The log holds these, too, both inclusive and of one epoch; a caller splits groups."""
        assert self.follows(first_zxid), f"{first_zxid:#x} after {self.last_zxid:#x}"
        assert first_zxid <= last_zxid, f"{first_zxid:#x} to {last_zxid:#x}"
        epoch = epoch_of(first_zxid)
        assert epoch == epoch_of(last_zxid), f"{first_zxid:#x} to {last_zxid:#x}"
        if epoch == epoch_of(self._ends[-1]):
            self._ends[-1] = last_zxid
        else:
            self._ends.append(last_zxid)

    def with_history(self, first_zxid_before: int, zxids: Iterable[int]) -> EpochEnds:
        """The same log from further back on: `zxids` are the records from there to where it begins.

        As it was, if they have a gap: then a snapshot serves whoever ends before.
        """
        whole = EpochEnds(first_zxid_before)
        for zxid in zxids:
            if not whole.follows(zxid):
                return self
            whole.append(zxid, zxid)
        if whole.last_zxid != self.first_zxid_before:
            return self
        whole._ends[-1:] = self._ends
        return whole

    def forget_before(self, zxid: int) -> None:
        """The log begins after `zxid`, which is held, from now on: a snapshot holds the rest.

        Nothing happens where it begins later already: the log's files may go back further than what
        was read of them at the start.
        """
        if zxid <= self.first_zxid_before:
            return
        assert self.holds(zxid), f"{zxid:#x} is not in the log"
        self.first_zxid_before = zxid
        del self._ends[: bisect_left(self._ends, zxid)]

    def truncate_to(self, zxid: int) -> None:
        """Forget everything after `zxid`, which is held."""
        assert self.holds(zxid), f"{zxid:#x} is not in the log up to {self.last_zxid:#x}"
        del self._ends[bisect_left(self._ends, zxid) :]
        self._ends.append(zxid)

    def holds(self, zxid: int) -> bool:
        """Whether the log holds it, or it is the last one before the log."""
        return self.last_common(zxid) == zxid

    def last_common(self, zxid: int) -> int | None:
        """The highest zxid held that is not higher than `zxid`, the last one of another log.

        None when that one ends before ours begins: only a snapshot can bridge the gap.
        """
        if zxid < self.first_zxid_before:
            return None
        position = bisect_left(self._ends, zxid)
        if position == len(self._ends):
            return self._ends[-1]
        # The first epoch is held from `first_zxid_before` on, the others from their beginning; so
        # what is not held lies between two epochs, and never before the first.
        if epoch_of(self._ends[position]) == epoch_of(zxid):
            return zxid
        return self._ends[position - 1]
