"""Values that both daemons and the client share.

Owns the words of the two original systems (Zxid, Stat, Acl, CreateMode, TopicPartition) and the
arithmetic on them. Source: ZooKeeper `zookeeper.jute`, Kafka `TopicPartition`.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, NewType

Zxid = NewType("Zxid", int)
"""A transaction id: epoch in the high 32 bits, counter in the low 32; always >= 0."""

ZXID_COUNTER_BITS: Final = 32
ZXID_COUNTER_LAST: Final = (1 << ZXID_COUNTER_BITS) - 1
ZXID_EPOCH_LAST: Final = (1 << 31) - 1


def make_zxid(epoch: int, counter: int) -> Zxid:
    """Combine an epoch and a counter."""
    assert 0 <= epoch <= ZXID_EPOCH_LAST, epoch
    assert 0 <= counter <= ZXID_COUNTER_LAST, counter
    return Zxid(epoch << ZXID_COUNTER_BITS | counter)


def epoch_of(zxid: int) -> int:
    """The epoch part of a zxid."""
    return zxid >> ZXID_COUNTER_BITS


def counter_of(zxid: int) -> int:
    """The counter part of a zxid."""
    return zxid & ZXID_COUNTER_LAST


class Stat(NamedTuple):
    """The metadata of a znode, in ZooKeeper's field order."""

    czxid: int
    """zxid that created the node."""
    mzxid: int
    """zxid of the last change of its data."""
    ctime: int
    """Wall time of its creation, ms since the Unix epoch."""
    mtime: int
    """Wall time of the last change of its data, ms since the Unix epoch."""
    version: int
    """Number of changes of the data, wrapping over -1 (never -1 itself)."""
    cversion: int
    """Number of creations plus deletions of children."""
    aversion: int
    """Number of changes of the ACL."""
    ephemeral_owner: int
    """Session id of the owner of an ephemeral node, else 0."""
    data_length: int
    """Bytes of data; 0 for null data."""
    num_children: int
    pzxid: int
    """zxid of the last creation or deletion of a child."""


class Perms(IntFlag):
    """Permissions of an ACL entry."""

    READ = 1
    WRITE = 2
    CREATE = 4
    DELETE = 8
    ADMIN = 16
    ALL = 31


class Acl(NamedTuple):
    """One ACL entry: `perms` granted to `id` under `scheme`."""

    perms: int
    scheme: str
    id: str


OPEN_ACL_UNSAFE: Final = (Acl(31, "world", "anyone"),)
"""Everybody may do everything."""


class CreateMode(IntEnum):
    """ZooKeeper's create flags, with its numbers."""

    PERSISTENT = 0
    EPHEMERAL = 1
    PERSISTENT_SEQUENTIAL = 2
    EPHEMERAL_SEQUENTIAL = 3
    CONTAINER = 4
    PERSISTENT_WITH_TTL = 5
    PERSISTENT_SEQUENTIAL_WITH_TTL = 6


class EventType(IntEnum):
    """What a watch event tells, with ZooKeeper's numbers."""

    NONE = -1
    CREATED = 1
    DELETED = 2
    CHANGED = 3
    CHILD = 4
    DATA_WATCH_REMOVED = 5
    """Never sent: a client tells its own watchers of a watch that it removed."""
    CHILD_WATCH_REMOVED = 6
    PERSISTENT_WATCH_REMOVED = 7
    COMPACTED = 100
    """Ours, native clients only: events between the zxid that was asked for and the event's are no
    longer known; look again."""


class AddWatchMode(IntEnum):
    """How a persistent watch covers the tree, with ZooKeeper's numbers."""

    PERSISTENT = 0
    PERSISTENT_RECURSIVE = 1


class WatcherType(IntEnum):
    """Which watches a request means, with ZooKeeper's numbers."""

    CHILDREN = 1
    DATA = 2
    ANY = 3
    PERSISTENT = 4
    PERSISTENT_RECURSIVE = 5


class KeeperState(IntEnum):
    """State of the session as a watch event carries it, with ZooKeeper's numbers."""

    DISCONNECTED = 0
    SYNC_CONNECTED = 3
    AUTH_FAILED = 4
    CONNECTED_READ_ONLY = 5
    EXPIRED = -112
    CLOSED = 7


class TopicPartition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class LeaderAndEpoch(NamedTuple):
    """Who leads a partition, and since which leader epoch; `leader_id` is -1 for nobody."""

    leader_id: int
    leader_epoch: int
