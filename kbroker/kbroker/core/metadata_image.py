"""The cluster as a broker sees it: an immutable value, replaced as a whole.

Owns no logic beyond look-ups. The control side makes a new image after every change it learns or
makes; the data side compares two images and acts. Source: Kafka `MetadataImage`, and for the
meaning of the fields the znodes of ZooKeeper mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

NO_LEADER: Final = -1


class BrokerInfo(NamedTuple):
    """A registered broker."""

    broker_id: int
    host: str
    port: int
    rack: str | None
    epoch: int
    """czxid of its registration: a broker that registers again is another incarnation."""


class PartitionImage(NamedTuple):
    """State of one partition."""

    replicas: tuple[int, ...]
    """The assignment, preferred leader first."""
    leader_id: int
    """-1: nobody."""
    leader_epoch: int
    isr: tuple[int, ...]
    partition_epoch: int
    """Version of the state znode: every change must name it."""
    controller_epoch: int
    state_zxid: int
    """mzxid of the state znode: a broker registered after it has restarted since."""


class TopicImage(NamedTuple):
    """A topic, its partitions and its settings."""

    name: str
    topic_id: str
    """22 characters, base64url of 16 bytes."""
    partitions: Mapping[int, PartitionImage]
    configs: Mapping[str, str]
    """Settings that differ from the broker's defaults, by Kafka's names."""


class MetadataImage(NamedTuple):
    """The whole cluster."""

    cluster_id: str
    controller_id: int
    """-1: none known."""
    brokers: Mapping[int, BrokerInfo]
    topics: Mapping[str, TopicImage]
    unreadable: frozenset[str] = frozenset()
    """Topics whose znodes cannot be understood: offline, but there; what they hold stays."""

    def partition(self, topic: str, partition: int) -> PartitionImage | None:
        """State of a partition, None where it does not exist."""
        found = self.topics.get(topic)
        return None if found is None else found.partitions.get(partition)


EMPTY_IMAGE: Final = MetadataImage("", NO_LEADER, {}, {})
