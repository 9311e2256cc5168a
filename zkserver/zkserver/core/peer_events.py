"""What goes into a `Peer` and what comes out of it.

Disk work is done in the order of its effects, one after the other, and each ends with the event
that its docstring names; none is ever skipped. A failed one that is not for want of space stops
the server. Links are opaque to the core: each is one connection, compared by identity, and nothing
comes from it after `LinkLost`.
"""

from __future__ import annotations

from typing import Any

from duolog_protocol.quorum_messages import LeaderMessage, LearnerMessage, Notification

from .membership import Membership


class NotificationReceived:
    """A server says who should lead."""

    __slots__ = ("notification", "sender_id")

    def __init__(self, sender_id: int, notification: Notification) -> None:
        self.sender_id = sender_id
        self.notification = notification


class LinkOpened:
    """A connection between a learner and a leader: `server_id` says whom a `Dial` has reached, 0 a
    learner that has dialled us."""

    __slots__ = ("link", "server_id")

    def __init__(self, link: Any, server_id: int) -> None:
        self.link = link
        self.server_id = server_id


class DialFailed:
    """A `Dial` has not reached its server."""

    __slots__ = ("server_id",)

    def __init__(self, server_id: int) -> None:
        self.server_id = server_id


class LinkLost:
    """A link has ended, from whichever side."""

    __slots__ = ("link",)

    def __init__(self, link: Any) -> None:
        self.link = link


class MessageReceived:
    """A message came over a link, behind all that came before it."""

    __slots__ = ("link", "message")

    def __init__(self, link: Any, message: LeaderMessage | LearnerMessage) -> None:
        self.link = link
        self.message = message


class EpochAccepted:
    """`accepted_epoch` is durable."""

    __slots__ = ("epoch",)

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch


class EpochAdopted:
    """`current_epoch` is durable."""

    __slots__ = ("epoch",)

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch


class Logged:
    """The log is on disk up to and including `zxid`, with which some `AppendRecords` ends: it, and
    all of them before it."""

    __slots__ = ("zxid",)

    def __init__(self, zxid: int) -> None:
        self.zxid = zxid


class LogRefused:
    """The disk is full: nothing from `first_zxid` on was written; the log ends before it.

    Nothing that was asked for behind it is done, neither appends nor `AdoptEpoch`: they end with
    this one event.
    """

    __slots__ = ("first_zxid",)

    def __init__(self, first_zxid: int) -> None:
        self.first_zxid = first_zxid


class HistorySent:
    """`SendHistory` or `SendSnapshot` has ended: all that is durable, up to `zxid`, was sent."""

    __slots__ = ("link", "zxid")

    def __init__(self, link: Any, zxid: int) -> None:
        self.link = link
        self.zxid = zxid


class Truncated:
    """The log ends at `zxid`, durably, and the state was built anew where it had gone past it."""

    __slots__ = ("zxid",)

    def __init__(self, zxid: int) -> None:
        self.zxid = zxid


class SnapshotBegun:
    """There is room for a leader's snapshot: `ReceiveSnapshot` has ended."""

    __slots__ = ()


class ChunkWritten:
    """A piece of a leader's snapshot is written: `StoreChunk` has ended."""

    __slots__ = ()


class SnapshotInstalled:
    """The state is the leader's at `zxid`, durably; the log is empty and goes on from there."""

    __slots__ = ("level", "members", "zxid")

    def __init__(self, zxid: int, members: Membership | None = None, level: int = 0) -> None:
        """`members`: what the snapshot says of them, if anything; `level`: its feature level."""
        self.level = level
        self.zxid = zxid
        self.members = members


class SnapshotRefused:
    """A leader's snapshot could not be stored, for want of space or because it is damaged.

    All is as before it began. Nothing that was asked for behind it is done; it ends with this.
    """

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Propose:
    """The server's requests made these records; only while it serves as leader."""

    __slots__ = ("first_zxid", "last_zxid", "records")

    def __init__(self, records: list[bytes], first_zxid: int, last_zxid: int) -> None:
        self.records = records
        self.first_zxid = first_zxid
        self.last_zxid = last_zxid


class ConfirmLead:
    """Somebody has to know that this server, an established leader, still leads (for a sync).

    Ends with `LeadConfirmed`; never, if the term ends before.
    """

    __slots__ = ("token",)

    def __init__(self, token: Any) -> None:
        self.token = token


class StepDown:
    """The established leader is to lead no longer."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


class LogPurged:
    """A snapshot holds what comes before: the log now begins after `first_zxid_before`."""

    __slots__ = ("first_zxid_before",)

    def __init__(self, first_zxid_before: int) -> None:
        self.first_zxid_before = first_zxid_before


class PeerTimerFired:
    """`Peer.deadline_ms` has come."""

    __slots__ = ()


PeerEvent = (
    NotificationReceived
    | LinkOpened
    | DialFailed
    | LinkLost
    | MessageReceived
    | EpochAccepted
    | EpochAdopted
    | Logged
    | LogRefused
    | HistorySent
    | Truncated
    | SnapshotBegun
    | ChunkWritten
    | SnapshotInstalled
    | SnapshotRefused
    | Propose
    | ConfirmLead
    | StepDown
    | LogPurged
    | PeerTimerFired
)


class Notify:
    """Send a notification to a server; it may get lost, and a newer one replaces it."""

    __slots__ = ("notification", "server_id")

    def __init__(self, server_id: int, notification: Notification) -> None:
        self.server_id = server_id
        self.notification = notification


class Dial:
    """Open a link to the leader; answered by `LinkOpened` or `DialFailed`."""

    __slots__ = ("server_id",)

    def __init__(self, server_id: int) -> None:
        self.server_id = server_id


class Tell:
    """Send a message over a link, behind everything that was told before."""

    __slots__ = ("link", "message")

    def __init__(self, link: Any, message: LeaderMessage | LearnerMessage) -> None:
        self.link = link
        self.message = message


class SendHistory:
    """Send the durable records after `after_zxid` over a link as `Proposal`s, from the log, as fast
    as `ReadOn` says that they are taken; ends with `HistorySent` once none is missing. Until then
    the link is told nothing but Pings."""

    __slots__ = ("after_zxid", "link")

    def __init__(self, link: Any, after_zxid: int) -> None:
        self.link = link
        self.after_zxid = after_zxid


class SendSnapshot:
    """Send the newest snapshot over a link, chunk by chunk, each once `ReadOn` says so; then the
    durable records after it, as `SendHistory` does."""

    __slots__ = ("link",)

    def __init__(self, link: Any) -> None:
        self.link = link


class ReadOn:
    """A learner has stored its log up to `stored_zxid`; None: the last chunk of its snapshot."""

    __slots__ = ("link", "stored_zxid")

    def __init__(self, link: Any, stored_zxid: int | None) -> None:
        self.link = link
        self.stored_zxid = stored_zxid


class CloseLink:
    """End a link; `LinkLost` need not follow."""

    __slots__ = ("link", "reason")

    def __init__(self, link: Any, reason: str) -> None:
        self.link = link
        self.reason = reason


class AcceptEpoch:
    """Make `accepted_epoch` durable; ends with `EpochAccepted`, on a full disk only once there is
    space. So does `AdoptEpoch`."""

    __slots__ = ("epoch",)

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch


class AdoptEpoch:
    """Make `current_epoch` durable; ends with `EpochAdopted`."""

    __slots__ = ("epoch",)

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch


class AppendRecords:
    """Append to the log and sync; ends with `Logged` or `LogRefused`. Several may share a sync."""

    __slots__ = ("first_zxid", "last_zxid", "records")

    def __init__(self, records: tuple[bytes, ...] | list[bytes], first: int, last: int) -> None:
        self.records = records
        self.first_zxid = first
        self.last_zxid = last


class TruncateLog:
    """Forget everything in the log after `zxid`; ends with `Truncated`."""

    __slots__ = ("zxid",)

    def __init__(self, zxid: int) -> None:
        self.zxid = zxid


class ReceiveSnapshot:
    """Make room for a leader's snapshot at `zxid`; ends with `SnapshotBegun` or `SnapshotRefused`.
    One that was begun before, and not installed, is thrown away."""

    __slots__ = ("zxid",)

    def __init__(self, zxid: int) -> None:
        self.zxid = zxid


class StoreChunk:
    """Write a piece of it; ends with `ChunkWritten` or `SnapshotRefused`."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class InstallSnapshot:
    """It is complete: let it take the place of state and log; ends with `SnapshotInstalled` or
    `SnapshotRefused`."""

    __slots__ = ("chunk_count", "crc", "zxid")

    def __init__(self, zxid: int, chunk_count: int, crc: int) -> None:
        self.zxid = zxid
        self.chunk_count = chunk_count
        self.crc = crc


class DropSnapshot:
    """It will not be completed: throw away what there is of it; without an event."""

    __slots__ = ()


class ApplyUpTo:
    """Everything up to `zxid` is durable here, and committed, unless nobody is served: apply it."""

    __slots__ = ("zxid",)

    def __init__(self, zxid: int) -> None:
        self.zxid = zxid


class Serve:
    """Take clients. As leader (`leader_id` is our own), propose for the epoch from now on."""

    __slots__ = ("epoch", "leader_id")

    def __init__(self, epoch: int, leader_id: int) -> None:
        self.epoch = epoch
        self.leader_id = leader_id


class StopServing:
    """Drop all clients: there is no leader, or we are none any more."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


class MembersChanged:
    """From now on these belong to the ensemble, as far as this server knows."""

    __slots__ = ("membership",)

    def __init__(self, membership: Membership) -> None:
        self.membership = membership


class LeadConfirmed:
    """When the `ConfirmLead` with this token came, no other leader was established."""

    __slots__ = ("token",)

    def __init__(self, token: Any) -> None:
        self.token = token


PeerEffect = (
    Notify
    | Dial
    | Tell
    | SendHistory
    | SendSnapshot
    | ReadOn
    | CloseLink
    | AcceptEpoch
    | AdoptEpoch
    | AppendRecords
    | TruncateLog
    | ReceiveSnapshot
    | StoreChunk
    | InstallSnapshot
    | DropSnapshot
    | ApplyUpTo
    | Serve
    | StopServing
    | LeadConfirmed
    | MembersChanged
)
