"""The controller's decisions: which topics may be, and who must be elected."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from duolog_protocol.broker_messages import NewTopicRequest, ReplicaAssignment, TopicConfig
from duolog_protocol.error_codes import KafkaErrorCode
from kbroker.core import znodes
from kbroker.core.controller import (
    NO_STATE,
    Refusal,
    StateChange,
    TopicPlan,
    apply_deletion,
    apply_states,
    apply_topic,
    batches,
    deletion_batches,
    elections,
    plan_topic,
)
from kbroker.core.metadata_image import (
    EMPTY_IMAGE,
    NO_LEADER,
    BrokerInfo,
    MetadataImage,
    PartitionImage,
)
from kbroker.core.topic_config import TopicConfig as TopicSettings

BROKER = BrokerInfo(1, "127.0.0.1", 9092, None, 100)
IMAGE = EMPTY_IMAGE._replace(brokers={1: BROKER}, controller_id=1)


def plan(request: NewTopicRequest, image: MetadataImage = IMAGE) -> TopicPlan | Refusal:
    return plan_topic(request, image, TopicSettings(), 2, random.Random(1))


def topic(name: str, partitions: int = -1, factor: int = -1, **configs: str) -> NewTopicRequest:
    settings = tuple(TopicConfig(key.replace("_", "."), value) for key, value in configs.items())
    return NewTopicRequest(name, partitions, factor, (), settings)


def with_topic(name: str) -> MetadataImage:
    made = plan(topic(name))
    assert isinstance(made, TopicPlan)
    return apply_topic(IMAGE, made.image())


def test_a_topic_gets_the_default_number_of_partitions_and_a_random_id() -> None:
    made = plan(topic("events", retention_ms="1000"))
    assert isinstance(made, TopicPlan)
    assert made.replicas == {0: (1,), 1: (1,)}
    assert len(made.topic_id) == 22
    assert made.configs == {"retention.ms": "1000"}
    node = znodes.decode_topic("events", made.topic_data)
    assert (node.topic_id, node.replicas) == (made.topic_id, made.replicas)


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (topic(""), KafkaErrorCode.INVALID_TOPIC_EXCEPTION, "empty"),
        (topic(".."), KafkaErrorCode.INVALID_TOPIC_EXCEPTION, "called"),
        (topic("a/b"), KafkaErrorCode.INVALID_TOPIC_EXCEPTION, "letters"),
        (topic("x" * 250), KafkaErrorCode.INVALID_TOPIC_EXCEPTION, "at most 249"),
        (topic("a", 0), KafkaErrorCode.INVALID_PARTITIONS, "not 0"),
        (topic("a", 10_001), KafkaErrorCode.INVALID_PARTITIONS, "not 10001"),
        (topic("a", 1, 0), KafkaErrorCode.INVALID_REPLICATION_FACTOR, "at least 1"),
        (topic("a", 1, 2), KafkaErrorCode.INVALID_REPLICATION_FACTOR, "1 live brokers"),
        (topic("a", retention_mss="1"), KafkaErrorCode.INVALID_CONFIG, "nearest one is retention"),
        (topic("a", retention_ms="x"), KafkaErrorCode.INVALID_CONFIG, "integer"),
        (topic("a", durability="never"), KafkaErrorCode.INVALID_CONFIG, "fsync, replicated"),
        (topic("a", cleanup_policy="compact"), KafkaErrorCode.INVALID_CONFIG, "one of delete"),
        (topic("a", min_insync_replicas="2"), KafkaErrorCode.INVALID_CONFIG, "ever succeed"),
        (
            NewTopicRequest("a", 1, -1, (ReplicaAssignment(0, (1,)),), ()),
            KafkaErrorCode.INVALID_REQUEST,
            "not both",
        ),
        (
            NewTopicRequest("a", -1, -1, (ReplicaAssignment(1, (1,)),), ()),
            KafkaErrorCode.INVALID_REPLICA_ASSIGNMENT,
            "0, 1, 2",
        ),
        (
            NewTopicRequest("a", -1, -1, (ReplicaAssignment(0, (7,)),), ()),
            KafkaErrorCode.INVALID_REPLICA_ASSIGNMENT,
            "unknown brokers",
        ),
        (
            NewTopicRequest("a", -1, -1, (ReplicaAssignment(0, (1, 1)),), ()),
            KafkaErrorCode.INVALID_REPLICA_ASSIGNMENT,
            "repeated",
        ),
    ],
)
def test_a_topic_that_cannot_be_is_refused_with_the_reason(
    request_: NewTopicRequest, code: KafkaErrorCode, words: str
) -> None:
    refusal = plan(request_)
    assert isinstance(refusal, Refusal)
    assert refusal.error_code is code
    assert words in refusal.message


def test_names_that_exist_or_collide_are_refused() -> None:
    image = with_topic("a.b")
    existing = plan(topic("a.b"), image)
    assert isinstance(existing, Refusal)
    assert existing.error_code is KafkaErrorCode.TOPIC_ALREADY_EXISTS
    colliding = plan(topic("a_b"), image)
    assert isinstance(colliding, Refusal)
    assert colliding.error_code is KafkaErrorCode.INVALID_TOPIC_EXCEPTION


def written(changes: list[StateChange], zxid: int) -> list[tuple[StateChange, int, int]]:
    return [(change, change.expected_epoch + 1, zxid) for change in changes]


def test_new_partitions_are_led_by_their_first_live_replica_at_epoch_0() -> None:
    image = with_topic("events")
    changes = elections(image, controller_epoch=3)
    assert [change.expected_epoch for change in changes] == [NO_STATE, NO_STATE]
    image = apply_states(image, written(changes, 200))
    partition = image.partition("events", 1)
    assert partition == PartitionImage((1,), 1, 0, (1,), 0, 3, 200)
    assert elections(image, 3) == []


def test_a_leader_that_registered_again_gets_a_new_epoch() -> None:
    """The broker was killed and came back before its partitions moved (KAFKA-7186's cousin)."""
    image = with_topic("events")
    image = apply_states(image, written(elections(image, 3), 200))
    image = image._replace(brokers={1: BROKER._replace(epoch=300)})
    changes = elections(image, 4)
    assert [(change.leader_id, change.leader_epoch) for change in changes] == [(1, 1), (1, 1)]
    image = apply_states(image, written(changes, 301))
    assert elections(image, 4) == []


def test_a_partition_whose_only_replica_is_gone_has_no_leader_but_keeps_its_isr() -> None:
    image = with_topic("events")
    image = apply_states(image, written(elections(image, 3), 200))
    image = image._replace(brokers={2: replace_id(BROKER, 2)})
    changes = elections(image, 3)
    assert {(change.leader_id, change.isr, change.leader_epoch) for change in changes} == {
        (NO_LEADER, (1,), 1)
    }
    image = apply_states(image, written(changes, 210))
    assert elections(image, 3) == []
    image = image._replace(brokers={1: BROKER._replace(epoch=400)})
    assert {(change.leader_id, change.leader_epoch) for change in elections(image, 3)} == {(1, 2)}


def replace_id(broker: BrokerInfo, broker_id: int) -> BrokerInfo:
    return broker._replace(broker_id=broker_id)


def test_a_topic_waits_where_none_of_its_replicas_lives() -> None:
    image = with_topic("events")._replace(brokers={})
    assert elections(image, 3) == []


def test_a_deleted_topic_is_gone_from_the_image() -> None:
    image = apply_deletion(with_topic("events"), "events")
    assert image.topics == {}
    assert image.partition("events", 0) is None


def test_settings_refuse_what_their_documentation_excludes() -> None:
    settings = TopicSettings()
    assert replace(settings, retention_ms=5).retention_ms == 5
    assert settings.with_overrides(settings.as_texts()) == settings


def test_the_largest_topic_is_written_in_transactions_that_fit_their_frames() -> None:
    """A topic of the longest name with all its partitions: bounded by bytes, not by number."""
    from duolog_protocol import zk_messages as zk
    from duolog_protocol.types import OPEN_ACL_UNSAFE

    name = "n" * 249
    made = plan(topic(name, 10_000))
    assert isinstance(made, TopicPlan)
    changes = elections(apply_topic(IMAGE, made.image()), 1)
    parts = batches(changes)
    assert [change for part in parts for change in part] == changes
    assert len(parts) < 200
    deletions = deletion_batches(name, [str(number) for number in range(10_000)])
    transactions = [
        [
            op
            for change in part
            for path in (znodes.partition_path(name, change.partition), change.path)
            for op in [zk.MultiOp(1, path, change.data, OPEN_ACL_UNSAFE, 0, -1, -1)]
        ]
        for part in parts
    ]
    transactions += [
        [zk.MultiOp(2, path, None, None, 0, -1, -1) for path in part] for part in deletions
    ]
    fence = zk.MultiOp(13, znodes.CONTROLLER_EPOCH, None, None, 0, -1, 1 << 40)
    for ops in transactions:
        assert len(ops) < zk.MAX_MULTI_OPS
        zk.MULTI.encode_request(1, zk.MultiRequest((fence, *ops)), 0)
    assert sum(map(len, deletions)) == 20_000
    assert deletions[0][:2] == [znodes.state_path(name, 0), znodes.partition_path(name, 0)]
