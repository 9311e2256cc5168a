"""duolog's client: `Producer`, `Consumer`, `Admin` for kbroker, `ZkClient` for zkserver.

Everything public can be imported from here; each part is loaded when it is first named, so that a
program that only coordinates does not load the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duolog_protocol.errors import Error
    from duolog_protocol.types import Acl, EventType, Stat, TopicPartition
    from duolog_runtime.tls_context import client_tls_context

    from .admin import Admin
    from .consumer import Consumer
    from .core.zk_session import SessionState
    from .core.zk_watches import WatchedEvent
    from .producer import Producer
    from .values import ConsumerRecord, NewTopic, OffsetAndTimestamp, RecordMetadata
    from .zk import Transaction, WatchStream, ZkClient

_HOMES = {
    "Acl": "duolog_protocol.types",
    "Admin": "duolog.admin",
    "Consumer": "duolog.consumer",
    "ConsumerRecord": "duolog.values",
    "Error": "duolog_protocol.errors",
    "EventType": "duolog_protocol.types",
    "NewTopic": "duolog.values",
    "OffsetAndTimestamp": "duolog.values",
    "Producer": "duolog.producer",
    "RecordMetadata": "duolog.values",
    "SessionState": "duolog.core.zk_session",
    "Stat": "duolog_protocol.types",
    "TopicPartition": "duolog_protocol.types",
    "Transaction": "duolog.zk",
    "WatchStream": "duolog.zk",
    "WatchedEvent": "duolog.core.zk_watches",
    "ZkClient": "duolog.zk",
    "client_tls_context": "duolog_runtime.tls_context",
}

__all__ = [
    "Acl",
    "Admin",
    "Consumer",
    "ConsumerRecord",
    "Error",
    "EventType",
    "NewTopic",
    "OffsetAndTimestamp",
    "Producer",
    "RecordMetadata",
    "SessionState",
    "Stat",
    "TopicPartition",
    "Transaction",
    "WatchStream",
    "WatchedEvent",
    "ZkClient",
    "client_tls_context",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'duolog' has no attribute {name!r}")
    return getattr(import_module(home), name)
