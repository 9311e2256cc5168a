"""Values that the public calls take and return, with the names and fields of aiokafka."""

from __future__ import annotations

from typing import NamedTuple

from duolog_protocol.record_decoding import Record
from duolog_protocol.types import TopicPartition


class RecordMetadata(NamedTuple):
    """Where a record was stored."""

    topic: str
    partition: int
    topic_partition: TopicPartition
    offset: int
    """-1 when it is not known: acks=0, or a duplicate that was stored long ago."""
    timestamp: int
    """ms since the Unix epoch: the record's, or the broker's with LogAppendTime."""
    timestamp_type: int
    """0 CreateTime, 1 LogAppendTime."""
    log_start_offset: int


class ConsumerRecord(Record):
    """A record as it was read; key and value are what the deserializers made of them."""

    __slots__ = ()

    @property
    def serialized_key_size(self) -> int:
        """Bytes of the key, -1 without one or when a deserializer made something else of it."""
        return len(self.key) if isinstance(self.key, bytes) else -1

    @property
    def serialized_value_size(self) -> int:
        """Bytes of the value, -1 as for the key."""
        return len(self.value) if isinstance(self.value, bytes) else -1

    @property
    def checksum(self) -> None:
        """Always None: records of the v2 format have no checksum of their own."""
        return None


class OffsetAndTimestamp(NamedTuple):
    """The answer to a look-up by timestamp."""

    offset: int
    timestamp: int
    """ms since the Unix epoch, of the record at `offset`."""
    leader_epoch: int = -1


class NewTopic(NamedTuple):
    """A topic to create; -1 takes the broker's default."""

    name: str
    num_partitions: int = -1
    replication_factor: int = -1
    replica_assignments: dict[int, list[int]] | None = None
    """Partition -> brokers, the preferred leader first; then both numbers must be -1."""
    topic_configs: dict[str, str] | None = None


class TopicDescription(NamedTuple):
    """A topic as the cluster sees it."""

    name: str
    topic_id: str
    is_internal: bool
    partitions: tuple[PartitionDescription, ...]


class PartitionDescription(NamedTuple):
    """A partition as the cluster sees it."""

    partition: int
    leader_id: int
    """-1: nobody leads it."""
    leader_epoch: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    offline_replicas: tuple[int, ...]


class ConfigValue(NamedTuple):
    """A setting as it is in force."""

    value: str
    is_default: bool
    documentation: str


class BrokerDescription(NamedTuple):
    """A live broker."""

    node_id: int
    host: str
    port: int
    rack: str | None


class ClusterDescription(NamedTuple):
    """The cluster as one broker sees it."""

    cluster_id: str
    controller_id: int
    """-1: none known."""
    brokers: tuple[BrokerDescription, ...]


class OffsetSpec:
    """What to look up with `Admin.list_offsets`: one of these, or a timestamp in ms."""

    LATEST: int = -1
    EARLIEST: int = -2
    MAX_TIMESTAMP: int = -3


class ListedOffset(NamedTuple):
    """The answer of `Admin.list_offsets` for one partition."""

    offset: int
    """-1: no record is that late."""
    timestamp: int
    leader_epoch: int
