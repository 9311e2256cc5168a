"""What the controller decides: topics to make, leaders to choose, as znode operations.

Pure: it is given an image and answers with a plan; nothing changes until the plan has been written
to ZooKeeper and `apply_*` makes the next image from it, live and when a new controller takes over
alike. Every plan is written under a check of `/controller_epoch`'s version, so that a deposed
controller changes nothing (KAFKA-6082).

Source: Kafka `KafkaController`, `PartitionStateMachine`, `AdminZkClient`.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from duolog_protocol.broker_messages import NewTopicRequest
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import ConfigError

from . import znodes
from .leader_election import assign_replicas, first_leader, next_leader
from .metadata_image import NO_LEADER, MetadataImage, PartitionImage, TopicImage
from .topic_config import TopicConfig
from .topic_names import colliding_name, name_problem

MAX_PARTITIONS_PER_TOPIC: Final = 10_000
MULTI_BYTES: Final = 48 * 1024
"""Of the 64 KiB that the header of a request may have."""
MULTI_OP_BYTES: Final = 64
"""More than an operation adds to its path: kind, ACL, lengths, numbers."""
MULTI_OPS: Final = 1_000
"""Below zkserver's limit of operations, with room for the check of the controller epoch."""
MAX_REPLICATION_FACTOR: Final = 1
"""Followers do not fetch yet, so a second replica would never be in sync."""
T = TypeVar("T")
NO_STATE: Final = -1
"""`partition_epoch` of a partition whose state znode does not exist yet."""


class Refusal(NamedTuple):
    """Why a request of an admin is not done."""

    error_code: KafkaErrorCode
    message: str


class TopicPlan(NamedTuple):
    """A topic to write: its znode and its settings."""

    name: str
    topic_id: str
    replicas: Mapping[int, tuple[int, ...]]
    configs: Mapping[str, str]

    @property
    def replication_factor(self) -> int:
        """Replicas of partition 0."""
        return len(self.replicas[0])

    @property
    def topic_data(self) -> bytes:
        """Data of the topic's znode."""
        return znodes.encode_topic(self.topic_id, self.replicas)

    @property
    def config_data(self) -> bytes:
        """Data of the znode with its settings."""
        return znodes.encode_config(self.configs)

    def image(self) -> TopicImage:
        """The topic before any leader is chosen."""
        partitions = {
            each: PartitionImage(replicas, NO_LEADER, -1, (), NO_STATE, 0, 0)
            for each, replicas in self.replicas.items()
        }
        return TopicImage(self.name, self.topic_id, partitions, self.configs)


class StateChange(NamedTuple):
    """A partition state to write; the znode must be at `expected_epoch`, or absent."""

    topic: str
    partition: int
    leader_id: int
    leader_epoch: int
    isr: tuple[int, ...]
    expected_epoch: int
    """`NO_STATE`: create the znode."""
    controller_epoch: int

    @property
    def path(self) -> str:
        """The state znode."""
        return znodes.state_path(self.topic, self.partition)

    @property
    def data(self) -> bytes:
        """Data of the state znode."""
        return znodes.encode_state(
            self.leader_id, self.leader_epoch, self.isr, self.controller_epoch
        )


def plan_topic(
    request: NewTopicRequest,
    image: MetadataImage,
    defaults: TopicConfig,
    default_partitions: int,
    rng: random.Random,
) -> TopicPlan | Refusal:
    """Check a request for a topic and choose its replicas."""
    name = request.name
    problem = name_problem(name)
    if problem is not None:
        return Refusal(KafkaErrorCode.INVALID_TOPIC_EXCEPTION, problem)
    if name in image.topics or name in image.unreadable:
        return Refusal(KafkaErrorCode.TOPIC_ALREADY_EXISTS, f"topic {name!r} already exists")
    collision = colliding_name(name, image.topics)
    if collision is not None:
        return Refusal(
            KafkaErrorCode.INVALID_TOPIC_EXCEPTION,
            f"topic {name!r} differs from {collision!r} only in '.' against '_'",
        )
    configs = {each.name: each.value for each in request.configs if each.value is not None}
    try:
        settings = defaults.with_overrides(configs)
    except ConfigError as error:
        return Refusal(KafkaErrorCode.INVALID_CONFIG, str(error))
    if request.assignments:
        replicas = _given_replicas(request, image)
    else:
        replicas = _chosen_replicas(request, image, default_partitions, rng)
    if isinstance(replicas, Refusal):
        return replicas
    if settings.min_insync_replicas > len(replicas[0]):
        return Refusal(
            KafkaErrorCode.INVALID_CONFIG,
            f"min.insync.replicas={settings.min_insync_replicas} is more than the "
            f"{len(replicas[0])} replicas: no acks=all produce could ever succeed",
        )
    return TopicPlan(name, new_topic_id(rng), replicas, configs)


def _given_replicas(
    request: NewTopicRequest, image: MetadataImage
) -> dict[int, tuple[int, ...]] | Refusal:
    code = KafkaErrorCode.INVALID_REPLICA_ASSIGNMENT
    if request.num_partitions != -1 or request.replication_factor != -1:
        return Refusal(
            KafkaErrorCode.INVALID_REQUEST,
            "give either assignments or numbers of partitions and replicas, not both",
        )
    replicas = {each.partition: each.replicas for each in request.assignments}
    if sorted(replicas) != list(range(len(request.assignments))):
        return Refusal(code, "assignments must name the partitions 0, 1, 2, ... once each")
    for partition, brokers in replicas.items():
        if len(set(brokers)) != len(brokers) or not brokers:
            return Refusal(code, f"partition {partition} has no or repeated replicas: {brokers}")
        if len(brokers) != len(replicas[0]):
            return Refusal(code, "all partitions must have the same number of replicas")
        unknown = [each for each in brokers if each not in image.brokers]
        if unknown:
            return Refusal(code, f"partition {partition} names unknown brokers {unknown}")
    refusal = _replication_problem(len(replicas[0]), image)
    return refusal or replicas


def _chosen_replicas(
    request: NewTopicRequest,
    image: MetadataImage,
    default_partitions: int,
    rng: random.Random,
) -> dict[int, tuple[int, ...]] | Refusal:
    count = default_partitions if request.num_partitions == -1 else request.num_partitions
    if not 1 <= count <= MAX_PARTITIONS_PER_TOPIC:
        return Refusal(
            KafkaErrorCode.INVALID_PARTITIONS,
            f"a topic has 1 to {MAX_PARTITIONS_PER_TOPIC} partitions, not {count}",
        )
    factor = 1 if request.replication_factor == -1 else request.replication_factor
    refusal = _replication_problem(factor, image)
    if refusal is not None:
        return refusal
    brokers = sorted(image.brokers)
    start, shift = rng.randrange(len(brokers)), rng.randrange(len(brokers))
    return assign_replicas(brokers, count, factor, start, shift)


def _replication_problem(factor: int, image: MetadataImage) -> Refusal | None:
    code = KafkaErrorCode.INVALID_REPLICATION_FACTOR
    if factor < 1:
        return Refusal(code, f"replication factor {factor} must be at least 1")
    if factor > len(image.brokers):
        return Refusal(
            code, f"replication factor {factor} is above the {len(image.brokers)} live brokers"
        )
    if factor > MAX_REPLICATION_FACTOR:
        return Refusal(
            code, f"replication factor {factor}: this version keeps one replica of a partition"
        )
    return None


def new_topic_id(rng: random.Random) -> str:
    """A random id: 16 bytes as 22 characters of base64url, as Kafka's `Uuid`."""
    return base64.urlsafe_b64encode(rng.randbytes(16)).decode().rstrip("=")


def elections(image: MetadataImage, controller_epoch: int) -> list[StateChange]:
    """All partitions that need a leader, or another one.

    Those without state; those whose leader is gone; and those whose leader has registered again
    since the state was written: it has restarted, so it gets a new leader epoch, by which
    consumers can tell a log that lost its tail (KIP-320).
    """
    changes: list[StateChange] = []
    live = image.brokers
    for topic in image.topics.values():
        for number, partition in topic.partitions.items():
            if partition.partition_epoch == NO_STATE:
                first = first_leader(partition.replicas, live)
                if first is not None:
                    changes.append(
                        StateChange(
                            *(topic.name, number, first.leader_id, 0, first.isr, NO_STATE),
                            controller_epoch,
                        )
                    )
                continue
            leader = live.get(partition.leader_id)
            if leader is not None and leader.epoch <= partition.state_zxid:
                continue
            chosen = next_leader(partition.replicas, partition.isr, live)
            if chosen.leader_id == partition.leader_id == NO_LEADER:
                continue
            changes.append(
                StateChange(
                    topic.name,
                    number,
                    chosen.leader_id,
                    partition.leader_epoch + 1,
                    chosen.isr,
                    partition.partition_epoch,
                    controller_epoch,
                )
            )
    return changes


def batches(changes: Sequence[StateChange]) -> list[list[StateChange]]:
    """The changes in order, cut so that each part fits into one transaction."""
    return _cut(changes, lambda each: [each.path] * (2 if each.expected_epoch == NO_STATE else 1))


def deletion_batches(topic: str, partitions: Sequence[str]) -> list[list[str]]:
    """The znodes of partitions in the order of their deletion, cut in the same way."""
    pairs = [
        (f"{znodes.partitions_path(topic)}/{each}/state", f"{znodes.partitions_path(topic)}/{each}")
        for each in partitions
    ]
    return [[path for pair in part for path in pair] for part in _cut(pairs, list)]


def path_batches(paths: Sequence[str]) -> list[list[str]]:
    """Znodes to delete, in order, cut in the same way."""
    return _cut(paths, lambda path: [path])


def _cut(items: Sequence[T], paths_of: Callable[[T], list[str]]) -> list[list[T]]:
    parts: list[list[T]] = []
    size_bytes = op_count = 0
    for item in items:
        paths = paths_of(item)
        cost_bytes = sum([len(path) + MULTI_OP_BYTES for path in paths])
        assert cost_bytes <= MULTI_BYTES, item
        fits = size_bytes + cost_bytes <= MULTI_BYTES and op_count + len(paths) <= MULTI_OPS
        if not parts or not fits:
            parts.append([])
            size_bytes = op_count = 0
        parts[-1].append(item)
        size_bytes += cost_bytes
        op_count += len(paths)
    return parts


def apply_states(
    image: MetadataImage, written: Iterable[tuple[StateChange, int, int]]
) -> MetadataImage:
    """The image after states were written: (change, version of the znode, its mzxid)."""
    by_topic: dict[str, dict[int, PartitionImage]] = {}
    for change, version, zxid in written:
        topic = image.topics[change.topic]
        partitions = by_topic.setdefault(change.topic, dict(topic.partitions))
        before = partitions[change.partition]
        assert change.leader_epoch > before.leader_epoch, (change, before)
        partitions[change.partition] = PartitionImage(
            before.replicas,
            change.leader_id,
            change.leader_epoch,
            change.isr,
            version,
            change.controller_epoch,
            zxid,
        )
    if not by_topic:
        return image
    topics = dict(image.topics)
    for name, partitions in by_topic.items():
        topics[name] = topics[name]._replace(partitions=partitions)
    return image._replace(topics=topics)


def apply_topic(image: MetadataImage, topic: TopicImage) -> MetadataImage:
    """The image with a topic added or replaced."""
    return image._replace(topics={**image.topics, topic.name: topic})


def apply_deletion(image: MetadataImage, name: str) -> MetadataImage:
    """The image without a topic."""
    return image._replace(
        topics={each: topic for each, topic in image.topics.items() if each != name},
        unreadable=image.unreadable - {name},
    )
