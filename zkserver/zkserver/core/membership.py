"""Who belongs to the ensemble and what all of them know, as the log says it.

    MEMBERS joint   at z: from the append on, quorums of the old and of the new voters are needed
    MEMBERS final   once z is committed by both: from the append on, the new ones alone

Joint consensus: a server goes by the last MEMBERS in its log, committed or not; what is truncated
is taken back. So a new membership is decided by both, and no two disjoint quorums ever decide (Raft
section 6; ZooKeeper's reconfiguration has the same joint quorum, and keeps what it saw in files).
A server without any goes by its settings.

Whom a final membership leaves out may have to lead once more: as long as it is not known to be
committed, perhaps nobody else has it who could (Ongaro, Raft dissertation, section 4.2.2).

A LEVEL says that all members know the Txns of a feature level, which may be written from then on.
"""

from __future__ import annotations

from collections.abc import Sequence

from duolog_protocol.errors import DecodeError
from duolog_protocol.txns import TxnKind, decode_txn, is_of_the_ensemble

from .members import Member, parse_config
from .quorum import Quorums


class Membership:
    """The members at one moment; never changed."""

    __slots__ = ("ids", "is_joint", "members", "observers", "quorums", "voters")

    def __init__(
        self,
        voters: frozenset[int],
        observers: frozenset[int] = frozenset(),
        old_voters: frozenset[int] | None = None,
        members: tuple[Member, ...] = (),
    ) -> None:
        """`old_voters` while both must agree. `members` say where they are, where that is known."""
        self.voters = voters
        """Of the new membership."""
        self.observers = observers
        self.is_joint = old_voters is not None
        self.members = members
        self.quorums = Quorums(voters) if old_voters is None else Quorums(old_voters, voters)
        self.ids = self.quorums.voters | observers
        """Everybody, also those that are about to leave."""

    def others(self, server_id: int) -> tuple[int, ...]:
        """All other servers, ascending."""
        return tuple(sorted(self.ids - {server_id}))

    def has_voter(self, server_id: int) -> bool:
        """Whether it takes part in elections and quorums; also while it is about to leave."""
        return server_id in self.quorums.voters


def membership_of(
    members: Sequence[Member], old_voters: frozenset[int] | None = None
) -> Membership:
    """The membership that these are."""
    return Membership(
        frozenset(each.server_id for each in members if each.is_voter),
        frozenset(each.server_id for each in members if not each.is_voter),
        old_voters,
        tuple(members),
    )


class Memberships:
    """The memberships that a log has had, from its beginning to its end."""

    def __init__(self, base: Membership, level: int = 0) -> None:
        """`base`, `level`: before its first record."""
        self._levels: list[tuple[int, int]] = [(-1, level)]
        """(zxid, level), ascending."""
        self._entries: list[tuple[int, Membership]] = [(-1, base)]
        """(zxid from which on, membership), ascending; the first one is always there."""
        self._records: list[tuple[int, bool, tuple[Member, ...]]] = []
        """(zxid, is joint, members) of all entries but the first."""

    @property
    def current(self) -> Membership:
        """At the end of the log."""
        return self._entries[-1][1]

    @property
    def level(self) -> int:
        """The feature level at the end of the log."""
        return self._levels[-1][1]

    @property
    def since_zxid(self) -> int:
        """The record that made it so; -1: the settings, or a snapshot."""
        return self._entries[-1][0]

    def may_lead(self, server_id: int, committed_zxid: int) -> bool:
        """Whether a server may be elected: a voter, or one that was until a change that is not
        known to be committed."""
        if self.current.has_voter(server_id):
            return True
        if len(self._entries) == 1 or self.since_zxid <= committed_zxid:
            return False
        before = self._entries[-2][1]
        # Its settings alone make nobody a voter: it may have been about to join.
        return bool(before.members) and before.has_voter(server_id)

    def on_appended(self, first_zxid: int, records: Sequence[bytes]) -> bool:
        """The log has grown by these; whether the membership has changed. Raises DecodeError."""
        changed = False
        for zxid, record in enumerate(records, first_zxid):
            if not is_of_the_ensemble(record):
                continue
            match decode_txn(record).body:
                case (TxnKind.LEVEL, level):
                    self._levels.append((zxid, level))
                case (TxnKind.MEMBERS, is_joint, data):
                    self._add(zxid, bool(is_joint), _members_of(data))
                    changed = True
        return changed

    def _add(self, zxid: int, is_joint: bool, members: tuple[Member, ...]) -> None:
        old_voters = self.current.voters if is_joint else None
        self._entries.append((zxid, membership_of(members, old_voters)))
        self._records.append((zxid, is_joint, members))

    def truncate_to(self, zxid: int) -> bool:
        """The log ends at `zxid`; whether the membership has changed."""
        before = len(self._entries)
        while self._entries[-1][0] > zxid:
            self._entries.pop()
            self._records.pop()
        while self._levels[-1][0] > zxid:
            self._levels.pop()
        return len(self._entries) != before

    def rebased(self, zxid: int, base: Membership | None, level: int) -> Memberships:
        """As it is once a snapshot has taken the place of all up to `zxid`.

        `base` None: the snapshot says nothing of members. `level`: what it says. A joint change
        that was logged behind it before it was installed changes what *it* says, not what the
        log had said until then.
        """
        found = Memberships(base or self._entries[0][1], level)
        found._levels += [each for each in self._levels if each[0] > zxid]
        for at, is_joint, members in self._records:
            if at > zxid:
                found._add(at, is_joint, members)
        return found


def _members_of(data: bytes) -> tuple[Member, ...]:
    try:
        members, _ = parse_config(data)
    except ValueError as error:
        raise DecodeError(f"a record of members: {error}") from error
    return members
