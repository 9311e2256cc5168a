"""duolog's client: `Producer`, `Consumer`, `Admin` for kbroker, `ZkClient` for zkserver.

Everything public can be imported from here; each part is loaded when it is first named, so that a
program that only coordinates does not load the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duolog_protocol.errors import Error
    from duolog_protocol.types import (
        Acl,
        EventType,
        KeeperState,
        Perms,
        Stat,
        TopicPartition,
        WatcherType,
    )
    from duolog_runtime.tls_context import client_tls_context

    from .acls import (
        CREATOR_ALL_ACL,
        OPEN_ACL_UNSAFE,
        READ_ACL_UNSAFE,
        make_acl,
        make_digest_acl,
        make_digest_acl_credential,
    )
    from .admin import Admin
    from .consumer import Consumer
    from .core.zk_session import SessionState
    from .core.zk_watches import WatchedEvent
    from .producer import Producer
    from .recipes.barrier import Barrier, DoubleBarrier
    from .recipes.cache import NodeData, TreeCache, TreeEvent, TreeEventType
    from .recipes.counter import Counter
    from .recipes.election import Election
    from .recipes.lease import MultiNonBlockingLease, NonBlockingLease
    from .recipes.lock import Lock, ReadLock, WriteLock
    from .recipes.partitioner import PartitionState, SetPartitioner
    from .recipes.party import Party, ShallowParty
    from .recipes.queue import LockingQueue, Queue
    from .recipes.semaphore import Semaphore
    from .recipes.watchers import watch_children, watch_data
    from .retry import Retry
    from .values import ConsumerRecord, NewTopic, OffsetAndTimestamp, RecordMetadata
    from .zk import MultiRead, Transaction, WatchStream, ZkClient

_HOMES = {
    "Acl": "duolog_protocol.types",
    "Admin": "duolog.admin",
    "Barrier": "duolog.recipes.barrier",
    "CREATOR_ALL_ACL": "duolog.acls",
    "Consumer": "duolog.consumer",
    "ConsumerRecord": "duolog.values",
    "Counter": "duolog.recipes.counter",
    "DoubleBarrier": "duolog.recipes.barrier",
    "Election": "duolog.recipes.election",
    "Error": "duolog_protocol.errors",
    "EventType": "duolog_protocol.types",
    "KeeperState": "duolog_protocol.types",
    "Lock": "duolog.recipes.lock",
    "LockingQueue": "duolog.recipes.queue",
    "MultiNonBlockingLease": "duolog.recipes.lease",
    "MultiRead": "duolog.zk",
    "NewTopic": "duolog.values",
    "NodeData": "duolog.recipes.cache",
    "NonBlockingLease": "duolog.recipes.lease",
    "OPEN_ACL_UNSAFE": "duolog.acls",
    "OffsetAndTimestamp": "duolog.values",
    "PartitionState": "duolog.recipes.partitioner",
    "Party": "duolog.recipes.party",
    "Perms": "duolog_protocol.types",
    "Producer": "duolog.producer",
    "Queue": "duolog.recipes.queue",
    "READ_ACL_UNSAFE": "duolog.acls",
    "ReadLock": "duolog.recipes.lock",
    "RecordMetadata": "duolog.values",
    "Retry": "duolog.retry",
    "Semaphore": "duolog.recipes.semaphore",
    "SessionState": "duolog.core.zk_session",
    "SetPartitioner": "duolog.recipes.partitioner",
    "ShallowParty": "duolog.recipes.party",
    "Stat": "duolog_protocol.types",
    "TopicPartition": "duolog_protocol.types",
    "Transaction": "duolog.zk",
    "TreeCache": "duolog.recipes.cache",
    "TreeEvent": "duolog.recipes.cache",
    "TreeEventType": "duolog.recipes.cache",
    "WatchStream": "duolog.zk",
    "WatchedEvent": "duolog.core.zk_watches",
    "WatcherType": "duolog_protocol.types",
    "WriteLock": "duolog.recipes.lock",
    "ZkClient": "duolog.zk",
    "client_tls_context": "duolog_runtime.tls_context",
    "make_acl": "duolog.acls",
    "make_digest_acl": "duolog.acls",
    "make_digest_acl_credential": "duolog.acls",
    "watch_children": "duolog.recipes.watchers",
    "watch_data": "duolog.recipes.watchers",
}

__all__ = [
    "CREATOR_ALL_ACL",
    "OPEN_ACL_UNSAFE",
    "READ_ACL_UNSAFE",
    "Acl",
    "Admin",
    "Barrier",
    "Consumer",
    "ConsumerRecord",
    "Counter",
    "DoubleBarrier",
    "Election",
    "Error",
    "EventType",
    "KeeperState",
    "Lock",
    "LockingQueue",
    "MultiNonBlockingLease",
    "MultiRead",
    "NewTopic",
    "NodeData",
    "NonBlockingLease",
    "OffsetAndTimestamp",
    "PartitionState",
    "Party",
    "Perms",
    "Producer",
    "Queue",
    "ReadLock",
    "RecordMetadata",
    "Retry",
    "Semaphore",
    "SessionState",
    "SetPartitioner",
    "ShallowParty",
    "Stat",
    "TopicPartition",
    "Transaction",
    "TreeCache",
    "TreeEvent",
    "TreeEventType",
    "WatchStream",
    "WatchedEvent",
    "WatcherType",
    "WriteLock",
    "ZkClient",
    "client_tls_context",
    "make_acl",
    "make_digest_acl",
    "make_digest_acl_credential",
    "watch_children",
    "watch_data",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'duolog' has no attribute {name!r}")
    return getattr(import_module(home), name)
