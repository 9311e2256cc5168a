"""What the client believes of the cluster never goes back to a deposed leader."""

from __future__ import annotations

from duolog.core.cluster_metadata import ClusterMetadata
from duolog_protocol import broker_messages as m

BROKERS = [m.BrokerMetadata(n, "127.0.0.1", 9090 + n, None) for n in (1, 2, 3)]


def told(
    leader: int, epoch: int, *, name: str = "t", topic_id: str = "A", code: int = 0
) -> m.MetadataResponse:
    return m.MetadataResponse(
        "c",
        1,
        BROKERS,
        [m.TopicMetadata(code, name, topic_id, False)],
        [m.PartitionMetadata(0, 0, 0, leader, epoch, (1, 2), (1,), ())],
    )


def knowing(*answers: m.MetadataResponse) -> ClusterMetadata:
    found = ClusterMetadata()
    for answer in answers:
        found.update(answer, whole=False)
    return found


def test_a_newer_leader_epoch_wins_and_an_older_one_is_ignored() -> None:
    metadata = knowing(told(1, 5), told(2, 6))
    assert metadata.leader_of("t", 0) == 2
    metadata.update(told(1, 5), whole=False)
    assert metadata.leader_of("t", 0) == 2
    metadata.update(told(3, 6), whole=False)
    assert metadata.leader_of("t", 0) == 3


def test_another_topic_of_the_same_name_begins_anew() -> None:
    metadata = knowing(told(1, 5), told(2, 0, topic_id="B"))
    assert metadata.leader_of("t", 0) == 2


def test_a_leader_that_is_no_live_broker_is_nobody() -> None:
    assert knowing(told(9, 1)).leader_of("t", 0) == -1
    assert knowing(told(-1, 1)).leader_of("t", 0) == -1
    assert knowing(told(1, 1)).leader_of("t", 7) == -1
    assert knowing().leader_of("u", 0) == -1


def test_an_answer_for_some_topics_leaves_the_others_an_answer_for_all_does_not() -> None:
    metadata = knowing(told(1, 0), told(1, 0, name="u"))
    assert set(metadata.topics) == {"t", "u"}
    metadata.update(told(1, 0, name="u"), whole=True)
    assert set(metadata.topics) == {"u"}
    assert metadata.version == 3


def test_a_refusal_may_name_the_new_leader() -> None:
    """KIP-951: only news, and only of a broker whose address is known."""
    metadata = knowing(told(1, 5))
    assert not metadata.learn_leader("t", 0, 2, 5), "no newer epoch"
    assert not metadata.learn_leader("t", 0, 9, 6), "an unknown broker"
    assert not metadata.learn_leader("t", 1, 2, 6), "an unknown partition"
    assert not metadata.learn_leader("u", 0, 2, 6), "an unknown topic"
    assert metadata.leader_of("t", 0) == 1
    assert metadata.learn_leader("t", 0, 2, 6)
    assert metadata.leader_of("t", 0) == 2
    metadata.update(told(1, 5), whole=False)
    assert metadata.leader_of("t", 0) == 2


def test_partitions_of_no_topic_are_passed_over() -> None:
    answer = told(1, 0)
    stray = m.PartitionMetadata(7, 0, 0, 1, 0, (1,), (1,), ())
    metadata = knowing(answer._replace(partitions=[*answer.partitions, stray]))
    assert list(metadata.topics["t"].partitions) == [0]
