"""Looking up offsets by time or place, at whoever leads the partitions.

Owns the way from a question about many partitions to the brokers that can answer it, and its
repetition while leaders move. The consumer's positions and the public calls use the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from duolog_protocol.broker_messages import (
    LIST_OFFSETS,
    MAX_PARTITIONS_PER_REQUEST,
    ListOffsetsPartition,
    ListOffsetsPartitionResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
)
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import (
    Error,
    LeaderNotAvailableError,
    RequestTimeoutError,
    UnknownTopicOrPartitionError,
    broker_error,
)
from duolog_protocol.types import TopicPartition

from .cluster_client import ClusterClient

CONSUMER_REPLICA_ID: Final = -1
NO_LEADER_EPOCH: Final = -1


async def ask_offsets(
    cluster: ClusterClient,
    node_id: int,
    queries: Mapping[TopicPartition, int],
    isolation_level: int,
) -> dict[TopicPartition, ListOffsetsPartitionResponse]:
    """What one broker says of offsets at timestamps. Raises Error."""
    found: dict[TopicPartition, ListOffsetsPartitionResponse] = {}
    items = list(queries.items())
    for at in range(0, len(items), MAX_PARTITIONS_PER_REQUEST):
        wanted = tuple(
            ListOffsetsPartition(tp.topic, tp.partition, NO_LEADER_EPOCH, timestamp_ms)
            for tp, timestamp_ms in items[at : at + MAX_PARTITIONS_PER_REQUEST]
        )
        request = ListOffsetsRequest(CONSUMER_REPLICA_ID, isolation_level, wanted)
        response: ListOffsetsResponse = await cluster.call_node(node_id, LIST_OFFSETS, request)
        for each in response.partitions:
            found[TopicPartition(each.topic, each.partition)] = each
    return found


async def list_offsets(
    cluster: ClusterClient,
    queries: Mapping[TopicPartition, int],
    *,
    isolation_level: int,
    timeout_ms: int,
) -> dict[TopicPartition, ListOffsetsPartitionResponse]:
    """Look offsets up at whoever leads the partitions, until all are answered.

    Raises the first error that is not retriable; the last retriable one after `timeout_ms`.
    """
    found: dict[TopicPartition, ListOffsetsPartitionResponse] = {}
    last: Error = RequestTimeoutError(f"offsets were not found within {timeout_ms} ms")
    attempt = 0
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            for name in {tp.topic for tp in queries}:
                await cluster.topic(name, timeout_ms)
            while len(found) < len(queries):
                by_node: dict[int, dict[TopicPartition, int]] = {}
                for tp, timestamp in queries.items():
                    if tp in found:
                        continue
                    info = cluster.metadata.topics.get(tp.topic)
                    if info is not None and info.partitions and tp.partition not in info.partitions:
                        raise UnknownTopicOrPartitionError(
                            f"no partition {tp.partition} in {tp.topic}"
                        )
                    node_id = cluster.metadata.leader_of(*tp)
                    by_node.setdefault(node_id, {})[tp] = timestamp
                for node_id, part in by_node.items():
                    if node_id < 0:
                        last = LeaderNotAvailableError(f"nobody leads {sorted(part)[0]}")
                        continue
                    try:
                        results = await ask_offsets(cluster, node_id, part, isolation_level)
                    except Error as error:
                        if not error.retriable:
                            raise
                        last = error
                        continue
                    for tp, result in results.items():
                        if result.error_code == KafkaErrorCode.NONE:
                            found[tp] = result
                            continue
                        problem = broker_error(result.error_code, f"{tp.topic}-{tp.partition}")
                        if not problem.retriable:
                            raise problem
                        last = problem
                if len(found) < len(queries):
                    attempt += 1
                    await asyncio.sleep(cluster.backoff.delay_ms(attempt) / 1000)
                    await cluster.refreshed()
    except TimeoutError as cause:
        raise last from cause
    return found
