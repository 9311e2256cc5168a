"""`Admin`: topics, their settings and offsets. Names are aiokafka's and Kafka's.

Owns how an answer becomes a value or an exception. Creating and deleting go to the controller,
which is looked up again when it has moved; everything else to any broker, or to the leader.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self

from duolog_protocol import broker_messages as kb
from duolog_protocol.errors import (
    Error,
    InvalidReplicaAssignmentError,
    broker_error,
)
from duolog_protocol.types import TopicPartition

from .clock import Clock, SystemClock
from .cluster_client import ClusterClient
from .offset_lookup import list_offsets
from .settings import ISOLATION_LEVELS, addresses, cluster_settings, random_source
from .values import (
    BrokerDescription,
    ClusterDescription,
    ConfigValue,
    ListedOffset,
    NewTopic,
    PartitionDescription,
    TopicDescription,
)

TOPICS_PER_REQUEST: Final = 100


class Admin:
    """Looks after topics.

    Every call takes `timeout=` in seconds (default: `request_timeout_ms`) and raises the error of
    the first topic that failed; topics before it are done. Cancelling does not withdraw a request
    that was sent.
    """

    def __init__(
        self,
        *,
        bootstrap_servers: str | list[str] = "127.0.0.1:9092",
        client_id: str = "duolog-admin",
        request_timeout_ms: int = 30_000,
        retry_backoff_ms: int = 100,
        retry_backoff_max_ms: int = 1000,
        reconnect_backoff_ms: int = 50,
        reconnect_backoff_max_ms: int = 1000,
        socket_connection_setup_timeout_ms: int = 10_000,
        metadata_max_age_ms: int = 300_000,
        rng: random.Random | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._addresses = addresses(bootstrap_servers)
        self._settings = cluster_settings(
            client_id=client_id,
            request_timeout_ms=request_timeout_ms,
            retry_backoff_ms=retry_backoff_ms,
            retry_backoff_max_ms=retry_backoff_max_ms,
            metadata_max_age_ms=metadata_max_age_ms,
            reconnect_backoff_ms=reconnect_backoff_ms,
            reconnect_backoff_max_ms=reconnect_backoff_max_ms,
            socket_connection_setup_timeout_ms=socket_connection_setup_timeout_ms,
        )
        self._rng = random_source(rng)
        self._clock = clock or SystemClock()
        self._cluster: ClusterClient | None = None

    async def start(self, timeout: float | None = None) -> None:
        """Connect. Raises TransportError when no broker answers in time."""
        assert self._cluster is None, "the client was started already"
        cluster = ClusterClient(
            self._addresses,
            self._settings,
            owner="admin",
            allow_auto_topic_creation=False,
            clock=self._clock,
            rng=self._rng,
            on_change=lambda: None,
        )
        self._cluster = cluster
        try:
            await cluster.start(timeout)
        except BaseException:
            await cluster.stop()
            raise

    async def stop(self) -> None:
        """Close all connections. Idempotent."""
        if self._cluster is not None:
            await self._cluster.stop()

    async def __aenter__(self) -> Self:
        """Connect."""
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close all connections."""
        await self.stop()

    # ---- topics --------------------------------------------------------------------------------

    async def create_topics(
        self,
        topics: Sequence[NewTopic],
        *,
        timeout: float | None = None,
        validate_only: bool = False,
    ) -> None:
        """Create topics; they can be used when this returns.

        Raises TopicAlreadyExistsError, InvalidTopicError, InvalidConfigError, ...
        """
        timeout_ms = self._timeout_ms(timeout)
        for batch in _batches(topics):
            wanted = [_new_topic_request(topic) for topic in batch]
            request = kb.CreateTopicsRequest(wanted, timeout_ms, validate_only)
            response = await self._controller(kb.CREATE_TOPICS, request, timeout_ms)
            _raise_first(response.topics)

    async def delete_topics(self, names: Sequence[str], *, timeout: float | None = None) -> None:
        """Delete topics and their records. Raises UnknownTopicOrPartitionError."""
        timeout_ms = self._timeout_ms(timeout)
        for batch in _batches(names):
            request = kb.DeleteTopicsRequest(tuple(batch), timeout_ms)
            response = await self._controller(kb.DELETE_TOPICS, request, timeout_ms)
            _raise_first(response.topics)

    async def list_topics(self, *, timeout: float | None = None) -> list[str]:
        """Names of all topics, sorted."""
        response = await self._metadata(None, timeout)
        return sorted(topic.name for topic in response.topics)

    async def describe_topics(
        self, names: Sequence[str], *, timeout: float | None = None
    ) -> list[TopicDescription]:
        """Topics with their partitions, in the order asked for.

        Raises UnknownTopicOrPartitionError.
        """
        response = await self._metadata(tuple(names), timeout)
        partitions: dict[int, list[PartitionDescription]] = {}
        for each in response.partitions:
            partitions.setdefault(each.topic_index, []).append(
                PartitionDescription(
                    each.partition,
                    each.leader_id,
                    each.leader_epoch,
                    each.replicas,
                    each.isr,
                    each.offline_replicas,
                )
            )
        found: dict[str, TopicDescription] = {}
        for index, topic in enumerate(response.topics):
            if topic.error_code:
                raise broker_error(topic.error_code, f"topic {topic.name!r}")
            ordered = sorted(partitions.get(index, ()))
            found[topic.name] = TopicDescription(
                topic.name, topic.topic_id, topic.is_internal, tuple(ordered)
            )
        return [found[name] for name in names]

    async def describe_configs(
        self, names: Sequence[str], *, timeout: float | None = None
    ) -> dict[str, dict[str, ConfigValue]]:
        """All settings in force: topic -> name -> value."""
        found: dict[str, dict[str, ConfigValue]] = {}
        for batch in _batches(names):
            request = kb.DescribeConfigsRequest(tuple(batch))
            response = await self._cluster_client().call_any(
                kb.DESCRIBE_CONFIGS, request, timeout_ms=self._timeout_ms(timeout)
            )
            _raise_first(response.results)
            for result in response.results:
                found[result.topic] = {
                    entry.name: ConfigValue(entry.value, entry.is_default, entry.documentation)
                    for entry in result.entries
                }
        return found

    async def list_offsets(
        self, queries: dict[TopicPartition, int], *, timeout: float | None = None
    ) -> dict[TopicPartition, ListedOffset]:
        """Offsets by `OffsetSpec` or timestamp in ms, from the leaders of the partitions."""
        found = await list_offsets(
            self._cluster_client(),
            {TopicPartition(*each): timestamp for each, timestamp in queries.items()},
            isolation_level=ISOLATION_LEVELS["read_uncommitted"],
            timeout_ms=self._timeout_ms(timeout),
        )
        return {
            each: ListedOffset(answer.offset, answer.timestamp_ms, answer.leader_epoch)
            for each, answer in found.items()
        }

    async def describe_cluster(self, *, timeout: float | None = None) -> ClusterDescription:
        """The brokers and the controller."""
        response = await self._metadata((), timeout)
        brokers = tuple(BrokerDescription(*each) for each in response.brokers)
        return ClusterDescription(response.cluster_id, response.controller_id, brokers)

    # ---- inner ---------------------------------------------------------------------------------

    def _cluster_client(self) -> ClusterClient:
        assert self._cluster is not None, "the client was not started"
        self._cluster.check()
        return self._cluster

    def _timeout_ms(self, timeout: float | None) -> int:
        return self._settings.request_timeout_ms if timeout is None else int(timeout * 1000)

    async def _metadata(self, names: tuple[str, ...] | None, timeout: float | None) -> Any:
        timeout_ms = self._timeout_ms(timeout)
        return await self._cluster_client().fetch_metadata(names, timeout_ms=timeout_ms)

    async def _controller(self, api: Any, request: Any, timeout_ms: int) -> Any:
        return await self._cluster_client().call_controller(api, request, timeout_ms=timeout_ms)


def _batches(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    for start in range(0, len(items), TOPICS_PER_REQUEST):
        yield items[start : start + TOPICS_PER_REQUEST]


def _new_topic_request(topic: NewTopic) -> kb.NewTopicRequest:
    assignments = topic.replica_assignments or {}
    if assignments and (topic.num_partitions, topic.replication_factor) != (-1, -1):
        raise InvalidReplicaAssignmentError("give assignments or numbers, not both")
    return kb.NewTopicRequest(
        topic.name,
        topic.num_partitions,
        topic.replication_factor,
        tuple(kb.ReplicaAssignment(each, tuple(assignments[each])) for each in sorted(assignments)),
        tuple(kb.TopicConfig(name, value) for name, value in (topic.topic_configs or {}).items()),
    )


def _raise_first(results: Iterable[Any]) -> None:
    for result in results:
        if result.error_code:
            error: Error = broker_error(result.error_code, result.error_message or "")
            raise error
