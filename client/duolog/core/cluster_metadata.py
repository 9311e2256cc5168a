"""What the client knows of the cluster: brokers, controller, leaders of partitions.

Owns the merge of Metadata responses. An answer for some topics replaces those topics only; a
leader never goes back to an older leader epoch of the same topic id (KIP-320), so that a broker
that lags behind cannot send us back to a deposed leader. Never decides when to ask.
"""

from __future__ import annotations

from typing import NamedTuple

from duolog_protocol.broker_messages import BrokerMetadata, MetadataResponse

NO_LEADER = -1


class PartitionInfo(NamedTuple):
    """One partition as the metadata tells it."""

    partition: int
    leader_id: int
    """-1: nobody."""
    leader_epoch: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    offline_replicas: tuple[int, ...]
    error_code: int


class TopicInfo(NamedTuple):
    """One topic as the metadata tells it."""

    name: str
    topic_id: str
    is_internal: bool
    error_code: int
    partitions: dict[int, PartitionInfo]
    """In ascending order of partition."""


class ClusterMetadata:
    """The merged view; `version` grows with every answer taken."""

    __slots__ = ("brokers", "cluster_id", "controller_id", "topics", "version")

    def __init__(self) -> None:
        self.cluster_id = ""
        self.controller_id = NO_LEADER
        self.brokers: dict[int, BrokerMetadata] = {}
        self.topics: dict[str, TopicInfo] = {}
        self.version = 0

    def update(self, response: MetadataResponse, *, whole: bool) -> None:
        """Take an answer; `whole` when it covers all topics, so that others are gone."""
        topics = [
            TopicInfo(topic.name, topic.topic_id, topic.is_internal, topic.error_code, {})
            for topic in response.topics
        ]
        for each in sorted(response.partitions, key=lambda found: found.partition):
            if 0 <= each.topic_index < len(topics):
                topic = topics[each.topic_index]
                topic.partitions[each.partition] = self._newest(
                    topic,
                    PartitionInfo(
                        each.partition,
                        each.leader_id,
                        each.leader_epoch,
                        each.replicas,
                        each.isr,
                        each.offline_replicas,
                        each.error_code,
                    ),
                )
        found = {topic.name: topic for topic in topics}
        self.topics = found if whole else {**self.topics, **found}
        self.brokers = {broker.node_id: broker for broker in response.brokers}
        self.controller_id = response.controller_id
        self.cluster_id = response.cluster_id
        self.version += 1

    def _newest(self, topic: TopicInfo, info: PartitionInfo) -> PartitionInfo:
        known = self.topics.get(topic.name)
        if known is not None and known.topic_id == topic.topic_id:
            before = known.partitions.get(info.partition)
            if before is not None and before.leader_epoch > info.leader_epoch >= 0:
                return before
        return info

    def leader_of(self, topic: str, partition: int) -> int:
        """The broker that leads a partition, -1 when nobody does or it is not known."""
        found = self.topics.get(topic)
        if found is None:
            return NO_LEADER
        info = found.partitions.get(partition)
        return NO_LEADER if info is None or info.leader_id not in self.brokers else info.leader_id

    def learn_leader(self, topic: str, partition: int, leader_id: int, leader_epoch: int) -> bool:
        """Take the leader that a NOT_LEADER_OR_FOLLOWER answer names (KIP-951).

        Returns whether that was news and the broker's address is known.
        """
        found = self.topics.get(topic)
        info = None if found is None else found.partitions.get(partition)
        if found is None or info is None or leader_id not in self.brokers:
            return False
        if leader_epoch <= info.leader_epoch:
            return False
        found.partitions[partition] = info._replace(leader_id=leader_id, leader_epoch=leader_epoch)
        return True
