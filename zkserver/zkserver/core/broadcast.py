"""Proposals in flight, who has them on disk, and what is committed: ZAB phase 3.

Owns the commit rule: in zxid order, and only by counting acknowledgements in the epoch that the
leader opened; what older epochs left outstanding was committed as a whole when a quorum adopted
this one's history (A.7). An acknowledgement is cumulative: logs are written in order.
"""

from __future__ import annotations

from collections import deque

from duolog_protocol.quorum_messages import Proposal

from .quorum import Quorums


class Broadcast:
    """What a leader has proposed in its epoch."""

    def __init__(self, history_zxid: int) -> None:
        """`history_zxid`: the last zxid of the history that the leader brought along."""
        self._durable: dict[int, int] = {}
        """server_id -> what it has on disk; also of those that have no vote (yet)."""
        self.proposed_zxid = history_zxid
        """The last zxid proposed, or of the history."""
        self.committed_zxid = 0
        """0 until a quorum has adopted the history."""
        self._history_zxid = history_zxid
        self._in_flight: deque[Proposal] = deque()
        """Those that are not yet on our own disk, where a late learner could be served from."""

    def propose(self, proposal: Proposal) -> None:
        """Take the next proposal, which goes to our own disk, too."""
        assert proposal.first_zxid > self.proposed_zxid, (proposal.first_zxid, self.proposed_zxid)
        self.proposed_zxid = proposal.last_zxid
        self._in_flight.append(proposal)

    def on_own_disk(self, zxid: int) -> None:
        """Our log is durable up to `zxid`."""
        while self._in_flight and self._in_flight[0].last_zxid <= zxid:
            self._in_flight.popleft()

    def in_flight_after(self, zxid: int) -> list[Proposal]:
        """What of the proposals that are not on our disk comes after `zxid`."""
        found = []
        for each in self._in_flight:
            if each.first_zxid > zxid:
                found.append(each)
            elif each.last_zxid > zxid:
                rest = each.records[zxid - each.first_zxid + 1 :]
                found.append(Proposal(zxid + 1, each.last_zxid, rest))
        return found

    def acknowledge(self, server_id: int, zxid: int) -> None:
        """A server has everything up to `zxid` on disk."""
        assert zxid <= self.proposed_zxid, (f"{zxid:#x}", f"{self.proposed_zxid:#x}")
        self._durable[server_id] = max(zxid, self._durable.get(server_id, 0))

    def commit_history(self) -> None:
        """A quorum has adopted our history: all of it is committed."""
        self.committed_zxid = max(self.committed_zxid, self._history_zxid)

    def advance(self, quorums: Quorums) -> bool:
        """Commit what a quorum has on disk; whether that is more than before."""
        zxid = quorums.committed_zxid(self._durable)
        if zxid <= max(self.committed_zxid, self._history_zxid):
            return False
        self.committed_zxid = zxid
        return True
