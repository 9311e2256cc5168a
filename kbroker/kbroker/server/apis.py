"""One handler per api: from a decoded request to its response.

Owns what each api checks and answers. A handler gets the request's context, answers through it
exactly once (produce with acks=0: never), and raises BrokerError to refuse the request as a whole.
Handlers that must wait for zkserver are coroutines; all others answer in the turn they are called
or leave a delayed operation in the purgatory.

Source: Kafka `KafkaApis`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

from duolog_protocol.apis import (
    API_VERSIONS,
    AnyApi,
    ApiVersionsRequest,
    ApiVersionsResponse,
    api_ranges,
)
from duolog_protocol.broker_messages import (
    BROKER_APIS,
    CREATE_TOPICS,
    DELETE_TOPICS,
    DESCRIBE_CONFIGS,
    FETCH,
    INIT_PRODUCER_ID,
    LIST_OFFSETS,
    METADATA,
    PRODUCE,
    BrokerMetadata,
    ConfigEntry,
    CreateTopicsRequest,
    CreateTopicsResponse,
    DeleteTopicsRequest,
    DeleteTopicsResponse,
    DescribeConfigsRequest,
    DescribeConfigsResponse,
    DescribeConfigsResult,
    FetchRequest,
    InitProducerIdRequest,
    InitProducerIdResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    MetadataRequest,
    MetadataResponse,
    NewTopicRequest,
    PartitionMetadata,
    ProduceRequest,
    TopicMetadata,
)
from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import (
    BrokerError,
    ConfigError,
    InvalidRequestError,
    InvalidRequiredAcksError,
)
from duolog_runtime.clocks import Clock
from duolog_runtime.disk import DiskExecutor

from ..core.metadata_image import NO_LEADER, MetadataImage, TopicImage
from ..core.purgatory import Purgatory
from ..core.topic_config import TopicConfig, documentation
from ..core.topic_names import name_problem
from .control_plane import ControlPlane
from .delayed import ColdReads, DelayedFetch, DelayedProduce, produce_response
from .replica_manager import ReplicaManager

ACKS: Final = (0, 1, -1)
MAX_WAIT_MS: Final = 300_000
"""Longest time a request waits for data or acknowledgements, whatever it asks for."""


class RequestContext(Protocol):
    """One request on one connection."""

    @property
    def peer(self) -> str:
        """Who asks, for logs."""
        ...

    def answer(self, message: Any) -> None:
        """Send the response; ignored when the connection has gone. Never raises."""
        ...

    def on_gone(self, forget: Callable[[], None]) -> None:
        """Call `forget` if the connection ends before the answer."""
        ...

    def close(self, reason: str) -> None:
        """Close the connection (the only way to tell a producer with acks=0 of an error)."""
        ...


Handler = Callable[[RequestContext, Any], Awaitable[None] | None]


class Apis:
    """The handlers, by api key."""

    def __init__(
        self,
        replicas: ReplicaManager,
        control: ControlPlane,
        purgatory: Purgatory,
        disk: DiskExecutor,
        *,
        arm_timer: Callable[[], None],
        clock: Clock,
        version: str,
        max_frame_bytes: int,
        max_fetch_bytes: int,
        auto_create_topics: bool,
        topic_defaults: TopicConfig,
    ) -> None:
        self._replicas = replicas
        self._control = control
        self._purgatory = purgatory
        self._cold_reads = ColdReads(disk)
        self._arm_timer = arm_timer
        self._clock = clock
        self._max_fetch_bytes = max_fetch_bytes
        self._auto_create_topics = auto_create_topics
        self._topic_defaults = topic_defaults
        self._producer_ids = iter(range(0))
        self._versions = ApiVersionsResponse(
            "kbroker", version, api_ranges(BROKER_APIS), (), max_frame_bytes
        )
        self.handlers: dict[int, Handler] = {
            API_VERSIONS.key: self.on_api_versions,
            PRODUCE.key: self.on_produce,
            FETCH.key: self.on_fetch,
            LIST_OFFSETS.key: self.on_list_offsets,
            METADATA.key: self.on_metadata,
            CREATE_TOPICS.key: self.on_create_topics,
            DELETE_TOPICS.key: self.on_delete_topics,
            INIT_PRODUCER_ID.key: self.on_init_producer_id,
            DESCRIBE_CONFIGS.key: self.on_describe_configs,
        }
        assert self.handlers.keys() == BROKER_APIS.keys()

    def on_api_versions(self, context: RequestContext, _request: ApiVersionsRequest) -> None:
        """Say what this broker speaks."""
        context.answer(self._versions)

    # ---- data ----------------------------------------------------------------------------------

    def on_produce(self, context: RequestContext, request: ProduceRequest) -> None:
        """Append; answer at once, after the sync, or when the time is up."""
        acks = request.acks
        if acks not in ACKS:
            raise InvalidRequiredAcksError(f"acks is {acks}, must be 0, 1 or -1 (all)")
        if request.transactional_id is not None:
            raise InvalidRequestError("transactions are not offered yet")
        partitions = request.partitions
        if len({(each.topic, each.partition) for each in partitions}) != len(partitions):
            raise InvalidRequestError("a produce request names a partition once at most")
        append = self._replicas.append
        appended = [append(each) for each in partitions]
        if acks == 0:
            for each in appended:
                if each.error_code:
                    context.close(f"produce with acks=0 failed: {each.message}")
                    return
            return
        operation = DelayedProduce(partitions, appended, self._replicas, context.answer)
        self._wait_for(context, operation, request.timeout_ms)

    def on_fetch(self, context: RequestContext, request: FetchRequest) -> None:
        """Read; wait for `min_bytes` where there is less."""
        if request.replica_id != -1:
            raise InvalidRequestError("this broker has no followers: replica_id must be -1")
        if request.session_id != 0:
            raise InvalidRequestError("fetch sessions are not offered: session_id must be 0")
        request = request._replace(max_bytes=min(request.max_bytes, self._max_fetch_bytes))
        operation = DelayedFetch(request, self._replicas, self._cold_reads, context.answer)
        self._wait_for(context, operation, request.max_wait_ms)

    def _wait_for(
        self, context: RequestContext, operation: DelayedProduce | DelayedFetch, wait_ms: int
    ) -> None:
        """Answer now or within `wait_ms`; with no room to wait, now with what there is."""
        if operation.try_complete():
            return
        if wait_ms <= 0 or self._purgatory.is_full:
            operation.on_expired()
            return
        deadline_ms = self._clock.now_ms() + min(wait_ms, MAX_WAIT_MS)
        self._purgatory.watch(operation, operation.keys(), deadline_ms)
        context.on_gone(partial(self._purgatory.forget, operation))
        self._arm_timer()

    def on_list_offsets(self, context: RequestContext, request: ListOffsetsRequest) -> None:
        """Look up offsets."""
        found = tuple([self._replicas.list_offset(each) for each in request.partitions])
        context.answer(ListOffsetsResponse(found))

    async def on_init_producer_id(
        self, context: RequestContext, request: InitProducerIdRequest
    ) -> None:
        """Hand out a producer id that nobody else will get."""
        if request.transactional_id is not None:
            raise InvalidRequestError("transactions are not offered yet")
        producer_id = next(self._producer_ids, None)
        while producer_id is None:
            self._producer_ids = iter(await self._control.allocate_producer_ids())
            producer_id = next(self._producer_ids, None)
        context.answer(InitProducerIdResponse(producer_id, 0))

    # ---- topics --------------------------------------------------------------------------------

    async def on_metadata(self, context: RequestContext, request: MetadataRequest) -> None:
        """Describe the cluster; make missing topics where client and broker allow it."""
        names = request.topics
        image = self._control.image
        if names and request.allow_auto_topic_creation and self._auto_create_topics:
            missing = [
                NewTopicRequest(name, -1, -1, (), ())
                for name in dict.fromkeys(names)
                if name not in image.topics and name_problem(name) is None
            ]
            if missing:
                await self._create_quietly(tuple(missing))
                image = self._control.image
        context.answer(self._describe(image, names))

    async def _create_quietly(self, missing: tuple[NewTopicRequest, ...]) -> None:
        try:
            await self._control.create_topics(missing, 30_000, False)
        except BrokerError:
            return  # the answer then says that the topics do not exist

    def _describe(self, image: MetadataImage, names: tuple[str, ...] | None) -> MetadataResponse:
        topics: list[TopicMetadata] = []
        partitions: list[PartitionMetadata] = []
        for name in image.topics if names is None else dict.fromkeys(names):
            topic = image.topics.get(name)
            if topic is None:
                code = (
                    KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION
                    if name_problem(name) is None
                    else KafkaErrorCode.INVALID_TOPIC_EXCEPTION
                )
                topics.append(TopicMetadata(int(code), name, "", False))
                continue
            partitions += self._describe_partitions(len(topics), topic, image)
            topics.append(TopicMetadata(0, name, topic.topic_id, name.startswith("__")))
        return MetadataResponse(
            image.cluster_id,
            image.controller_id,
            [
                BrokerMetadata(each.broker_id, each.host, each.port, each.rack)
                for each in image.brokers.values()
            ],
            topics,
            partitions,
        )

    def _describe_partitions(
        self, topic_index: int, topic: TopicImage, image: MetadataImage
    ) -> list[PartitionMetadata]:
        return [
            PartitionMetadata(
                topic_index,
                0
                if partition.leader_id in image.brokers
                else int(KafkaErrorCode.LEADER_NOT_AVAILABLE),
                number,
                partition.leader_id if partition.leader_id in image.brokers else NO_LEADER,
                partition.leader_epoch,
                partition.replicas,
                partition.isr,
                tuple([each for each in partition.replicas if each not in image.brokers]),
            )
            for number, partition in topic.partitions.items()
        ]

    async def on_create_topics(self, context: RequestContext, request: CreateTopicsRequest) -> None:
        """Create topics, each on its own."""
        made = await self._control.create_topics(
            tuple(request.topics), request.timeout_ms, request.validate_only
        )
        context.answer(CreateTopicsResponse(made))

    async def on_delete_topics(self, context: RequestContext, request: DeleteTopicsRequest) -> None:
        """Delete topics, each on its own."""
        gone = await self._control.delete_topics(request.names, request.timeout_ms)
        context.answer(DeleteTopicsResponse(gone))

    def on_describe_configs(self, context: RequestContext, request: DescribeConfigsRequest) -> None:
        """All settings of topics as they are in force."""
        documents = documentation()
        results: list[DescribeConfigsResult] = []
        for name in request.topics:
            topic = self._control.image.topics.get(name)
            if topic is None:
                code = KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION
                results.append(
                    DescribeConfigsResult(name, int(code), f"topic {name!r} does not exist", ())
                )
                continue
            try:
                settings = self._topic_defaults.with_overrides(topic.configs).as_texts()
            except ConfigError as error:  # another tool's settings: nothing here follows them
                code = KafkaErrorCode.INVALID_CONFIG
                results.append(DescribeConfigsResult(name, int(code), str(error), ()))
                continue
            entries = tuple(
                [
                    ConfigEntry(each, value, each not in topic.configs, documents.get(each, ""))
                    for each, value in settings.items()
                ]
            )
            results.append(DescribeConfigsResult(name, 0, None, entries))
        context.answer(DescribeConfigsResponse(results))


__all__ = ["ACKS", "AnyApi", "Apis", "Handler", "RequestContext", "produce_response"]
