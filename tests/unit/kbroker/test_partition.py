"""What a leader shows and acknowledges, by durability."""

from __future__ import annotations

import pytest

from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.types import LeaderAndEpoch
from kbroker.core.partition import Leading, Offline, epoch_problem
from kbroker.core.topic_config import Durability

LEADER = LeaderAndEpoch(1, 4)


def leading(durability: Durability, end: int = 0, durable: int = 0) -> Leading:
    return Leading(LEADER, (1,), durability, log_end_offset=end, durable_end_offset=durable)


def test_with_fsync_a_record_is_visible_and_acknowledged_once_it_is_synced() -> None:
    partition = leading(Durability.FSYNC)
    assert not partition.on_appended(10)
    assert partition.high_watermark == 0
    assert not partition.is_acknowledged(10)
    assert partition.on_durable(6)
    assert (partition.is_acknowledged(6), partition.is_acknowledged(7)) == (True, False)
    assert not partition.on_durable(6)
    assert partition.on_durable(10)
    assert partition.is_acknowledged(10)


def test_with_replicated_it_is_once_it_is_appended() -> None:
    partition = leading(Durability.REPLICATED)
    assert partition.on_appended(10)
    assert partition.is_acknowledged(10)
    assert not partition.on_durable(10)


def test_what_was_not_synced_before_an_election_is_not_visible_after_it() -> None:
    assert leading(Durability.FSYNC, end=10, durable=4).high_watermark == 4
    assert leading(Durability.REPLICATED, end=10, durable=4).high_watermark == 10


def test_reporting_durable_what_was_never_appended_is_a_bug() -> None:
    partition = leading(Durability.FSYNC)
    partition.on_appended(5)
    with pytest.raises(AssertionError):
        partition.on_durable(6)
    partition.on_durable(5)
    with pytest.raises(AssertionError):
        partition.on_durable(4)
    with pytest.raises(AssertionError):
        partition.on_appended(4)


@pytest.mark.parametrize("role", [leading(Durability.FSYNC), Offline(LEADER)])
def test_requests_of_another_leader_epoch_are_fenced(role: Leading | Offline) -> None:
    assert epoch_problem(role, -1) is None
    assert epoch_problem(role, 4) is None
    assert epoch_problem(role, 3) is KafkaErrorCode.FENCED_LEADER_EPOCH
    assert epoch_problem(role, 5) is KafkaErrorCode.UNKNOWN_LEADER_EPOCH
