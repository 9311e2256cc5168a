"""Messages between a client and kbroker (and, later, between brokers).

Api keys and fields are Kafka's (3.9), flattened where Kafka nests topics and partitions: every
partition names its topic. The context of every response is `throttle_time_ms`. Error codes
inside a body are `KafkaErrorCode`s and concern that entry only; the envelope's concerns the
whole request.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .apis import API_VERSIONS, AnyApi, Api
from .codec import (
    BOOL,
    INT8,
    INT16,
    INT32,
    INT64,
    FieldType,
    Piece,
    Schema,
    array,
    long_list,
    records,
    string,
    structure,
)

MAX_FRAME_BYTES: Final = 100 * 1024 * 1024
"""`socket.request.max.bytes`."""
MAX_TOPIC_NAME_BYTES: Final = 249
MAX_PARTITIONS_PER_REQUEST: Final = 10_000
MAX_TOPICS_PER_REQUEST: Final = 10_000
INLINE_COUNT: Final = 16
"""Elements of a list that stand in the header itself; they fit into it however long they are."""
MAX_LIST_BYTES: Final = 64 * 1024 * 1024
MAX_LIST_ENTRIES: Final = 1_000_000

LATEST_TIMESTAMP: Final = -1
EARLIEST_TIMESTAMP: Final = -2
MAX_TIMESTAMP: Final = -3

_TOPIC: Final = string(
    1024
)  # an illegal name gets INVALID_TOPIC_EXCEPTION, not a closed connection
_TEXT: Final = string(1024, nullable=True)
_BATCHES: Final = records(MAX_FRAME_BYTES)


def _listing(of: FieldType, max_count: int) -> FieldType:
    """A list that is short as a rule and may be long: see `long_list`."""
    return long_list(of, max_count, MAX_LIST_BYTES, inline_count=INLINE_COUNT)


class ProducePartition(NamedTuple):
    """Record batches for one partition."""

    topic: str
    partition: int
    records: Piece
    """Exactly one RecordBatch v2, opaque."""


class ProduceRequest(NamedTuple):
    """Append records. With `acks` 0 there is no response."""

    transactional_id: str | None
    acks: int
    """0, 1 or -1 (all in-sync replicas)."""
    timeout_ms: int
    """How long to wait for the acknowledgements."""
    partitions: tuple[ProducePartition, ...]


class ProducePartitionResponse(NamedTuple):
    """Where the batch of one partition landed."""

    topic: str
    partition: int
    error_code: int
    error_message: str | None
    base_offset: int
    """-1 on an error."""
    log_append_time_ms: int
    """-1 unless the topic uses LogAppendTime."""
    log_start_offset: int
    leader_id: int
    """The leader this broker knows, with NOT_LEADER_OR_FOLLOWER (KIP-951); else -1."""
    leader_epoch: int


class ProduceResponse(NamedTuple):
    """One entry for each of the request's, in its order."""

    partitions: tuple[ProducePartitionResponse, ...]


class FetchPartition(NamedTuple):
    """Where to read in one partition."""

    topic: str
    partition: int
    current_leader_epoch: int
    """-1: do not check."""
    fetch_offset: int
    last_fetched_epoch: int
    """-1: do not check for divergence."""
    log_start_offset: int
    """Of a follower; -1 from consumers."""
    partition_max_bytes: int


class FetchRequest(NamedTuple):
    """Read record batches; waits until `min_bytes` are there, at most `max_wait_ms`."""

    replica_id: int
    """-1: a consumer."""
    replica_epoch: int
    max_wait_ms: int
    min_bytes: int
    max_bytes: int
    isolation_level: int
    """0 read_uncommitted, 1 read_committed."""
    session_id: int
    """0: no fetch session (KIP-227); only that is accepted yet."""
    session_epoch: int
    rack_id: str
    partitions: tuple[FetchPartition, ...]


class AbortedTransaction(NamedTuple):
    """A transaction whose records a read_committed consumer skips."""

    producer_id: int
    first_offset: int


class EpochEndOffset(NamedTuple):
    """Where a leader epoch ended: the largest epoch the logs may share."""

    leader_epoch: int
    end_offset: int


class FetchPartitionResponse(NamedTuple):
    """What was read from one partition."""

    topic: str
    partition: int
    error_code: int
    high_watermark: int
    last_stable_offset: int
    log_start_offset: int
    aborted_transactions: tuple[AbortedTransaction, ...]
    preferred_read_replica: int
    diverging_epoch: EpochEndOffset | None
    leader_id: int
    leader_epoch: int
    records: Piece
    """Whole batches, the first may begin before the fetch offset; the last may be cut."""


class FetchResponse(NamedTuple):
    """One entry for each of the request's, in its order."""

    session_id: int
    partitions: tuple[FetchPartitionResponse, ...]


class ListOffsetsPartition(NamedTuple):
    """Which offset to look up in one partition."""

    topic: str
    partition: int
    current_leader_epoch: int
    timestamp_ms: int
    """-1 latest, -2 earliest, -3 the record with the largest timestamp, else the first record
    at or after it."""


class ListOffsetsRequest(NamedTuple):
    """Look up offsets."""

    replica_id: int
    isolation_level: int
    partitions: tuple[ListOffsetsPartition, ...]


class ListOffsetsPartitionResponse(NamedTuple):
    """The offset, -1 when no record is that late."""

    topic: str
    partition: int
    error_code: int
    timestamp_ms: int
    offset: int
    leader_epoch: int


class ListOffsetsResponse(NamedTuple):
    """One entry for each of the request's, in its order."""

    partitions: tuple[ListOffsetsPartitionResponse, ...]


class MetadataRequest(NamedTuple):
    """Ask who leads what; `topics` None means all of them."""

    topics: tuple[str, ...] | None
    allow_auto_topic_creation: bool
    include_topic_authorized_operations: bool


class BrokerMetadata(NamedTuple):
    """A live broker."""

    node_id: int
    host: str
    port: int
    rack: str | None


class TopicMetadata(NamedTuple):
    """A topic; its partitions are in the list of partitions."""

    error_code: int
    name: str
    topic_id: str
    """22 characters, base64url of the 16 bytes."""
    is_internal: bool


class PartitionMetadata(NamedTuple):
    """A partition of the topic at `topic_index` of the response's topics."""

    topic_index: int
    error_code: int
    partition: int
    leader_id: int
    leader_epoch: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    offline_replicas: tuple[int, ...]


class MetadataResponse(NamedTuple):
    """The cluster as this broker sees it."""

    cluster_id: str
    controller_id: int
    """-1: none known."""
    brokers: list[BrokerMetadata]
    topics: list[TopicMetadata]
    partitions: list[PartitionMetadata]


class ReplicaAssignment(NamedTuple):
    """Which brokers hold a partition, the preferred leader first."""

    partition: int
    replicas: tuple[int, ...]


class TopicConfig(NamedTuple):
    """A topic setting; None takes it away."""

    name: str
    value: str | None


class NewTopicRequest(NamedTuple):
    """A topic to create."""

    name: str
    num_partitions: int
    """-1: the broker's default, or as `assignments` says."""
    replication_factor: int
    """-1: the broker's default, or as `assignments` says."""
    assignments: tuple[ReplicaAssignment, ...]
    configs: tuple[TopicConfig, ...]


class CreateTopicsRequest(NamedTuple):
    """Create topics, each on its own."""

    topics: list[NewTopicRequest]
    timeout_ms: int
    validate_only: bool


class CreateTopicResponse(NamedTuple):
    """What became of one topic."""

    name: str
    topic_id: str
    error_code: int
    error_message: str | None
    num_partitions: int
    replication_factor: int


class CreateTopicsResponse(NamedTuple):
    """One entry for each of the request's, in its order."""

    topics: tuple[CreateTopicResponse, ...]


class DeleteTopicsRequest(NamedTuple):
    """Delete topics, each on its own."""

    names: tuple[str, ...]
    timeout_ms: int


class DeleteTopicResponse(NamedTuple):
    """What became of one topic."""

    name: str
    topic_id: str
    error_code: int
    error_message: str | None


class DeleteTopicsResponse(NamedTuple):
    """One entry for each of the request's, in its order."""

    topics: tuple[DeleteTopicResponse, ...]


class InitProducerIdRequest(NamedTuple):
    """Ask for a producer id."""

    transactional_id: str | None
    transaction_timeout_ms: int
    producer_id: int
    """-1, or the current id when its epoch is to be raised (KIP-360)."""
    producer_epoch: int


class InitProducerIdResponse(NamedTuple):
    """The producer id and its epoch."""

    producer_id: int
    producer_epoch: int


class DescribeConfigsRequest(NamedTuple):
    """Ask for all settings of topics."""

    topics: tuple[str, ...]


class ConfigEntry(NamedTuple):
    """A setting as it is in force."""

    name: str
    value: str
    is_default: bool
    documentation: str


class DescribeConfigsResult(NamedTuple):
    """The settings of one topic."""

    topic: str
    error_code: int
    error_message: str | None
    entries: tuple[ConfigEntry, ...]


class DescribeConfigsResponse(NamedTuple):
    """One entry for each of the request's, in its order."""

    results: list[DescribeConfigsResult]


_BROKER_IDS: Final = array(INT32)

PRODUCE: Final = Api(
    0,
    "Produce",
    Schema(
        ProduceRequest,
        _TEXT,
        INT16,
        INT32,
        _listing(structure(ProducePartition, _TOPIC, INT32, _BATCHES), MAX_PARTITIONS_PER_REQUEST),
    ),
    Schema(
        ProduceResponse,
        _listing(
            structure(
                ProducePartitionResponse,
                *(_TOPIC, INT32, INT16, _TEXT, INT64, INT64, INT64, INT32, INT32),
            ),
            MAX_PARTITIONS_PER_REQUEST,
        ),
    ),
)
FETCH: Final = Api(
    1,
    "Fetch",
    Schema(
        FetchRequest,
        *(INT32, INT64, INT32, INT32, INT32, INT8, INT32, INT32, string(256)),
        _listing(
            structure(FetchPartition, _TOPIC, INT32, INT32, INT64, INT32, INT64, INT32),
            MAX_PARTITIONS_PER_REQUEST,
        ),
    ),
    Schema(
        FetchResponse,
        INT32,
        _listing(
            structure(
                FetchPartitionResponse,
                *(_TOPIC, INT32, INT16, INT64, INT64, INT64),
                array(structure(AbortedTransaction, INT64, INT64)),
                INT32,
                structure(EpochEndOffset, INT32, INT64, nullable=True),
                *(INT32, INT32),
                _BATCHES,
            ),
            MAX_PARTITIONS_PER_REQUEST,
        ),
    ),
)
LIST_OFFSETS: Final = Api(
    2,
    "ListOffsets",
    Schema(
        ListOffsetsRequest,
        INT32,
        INT8,
        _listing(
            structure(ListOffsetsPartition, _TOPIC, INT32, INT32, INT64),
            MAX_PARTITIONS_PER_REQUEST,
        ),
    ),
    Schema(
        ListOffsetsResponse,
        _listing(
            structure(ListOffsetsPartitionResponse, _TOPIC, INT32, INT16, INT64, INT64, INT32),
            MAX_PARTITIONS_PER_REQUEST,
        ),
    ),
)
METADATA: Final = Api(
    3,
    "Metadata",
    Schema(
        MetadataRequest,
        long_list(
            *(_TOPIC, MAX_TOPICS_PER_REQUEST, MAX_LIST_BYTES),
            inline_count=INLINE_COUNT,
            nullable=True,
        ),
        BOOL,
        BOOL,
    ),
    Schema(
        MetadataResponse,
        string(64),
        INT32,
        long_list(
            structure(BrokerMetadata, INT32, string(256), INT32, _TEXT),
            MAX_LIST_ENTRIES,
            MAX_LIST_BYTES,
        ),
        long_list(
            structure(TopicMetadata, INT16, _TOPIC, string(64), BOOL),
            MAX_LIST_ENTRIES,
            MAX_LIST_BYTES,
        ),
        long_list(
            structure(
                PartitionMetadata,
                *(INT32, INT16, INT32, INT32, INT32, _BROKER_IDS, _BROKER_IDS, _BROKER_IDS),
            ),
            MAX_LIST_ENTRIES,
            MAX_LIST_BYTES,
        ),
    ),
)
CREATE_TOPICS: Final = Api(
    19,
    "CreateTopics",
    Schema(
        CreateTopicsRequest,
        long_list(
            structure(
                NewTopicRequest,
                _TOPIC,
                INT32,
                INT16,
                array(structure(ReplicaAssignment, INT32, _BROKER_IDS)),
                array(structure(TopicConfig, string(256), _TEXT), 128),
            ),
            *(128, MAX_LIST_BYTES),
        ),
        INT32,
        BOOL,
    ),
    Schema(
        CreateTopicsResponse,
        _listing(
            structure(CreateTopicResponse, _TOPIC, string(64), INT16, _TEXT, INT32, INT16), 128
        ),
    ),
)
DELETE_TOPICS: Final = Api(
    20,
    "DeleteTopics",
    Schema(DeleteTopicsRequest, _listing(_TOPIC, 128), INT32),
    Schema(
        DeleteTopicsResponse,
        _listing(structure(DeleteTopicResponse, _TOPIC, string(64), INT16, _TEXT), 128),
    ),
)
INIT_PRODUCER_ID: Final = Api(
    22,
    "InitProducerId",
    Schema(InitProducerIdRequest, _TEXT, INT32, INT64, INT16),
    Schema(InitProducerIdResponse, INT64, INT16),
)
DESCRIBE_CONFIGS: Final = Api(
    32,
    "DescribeConfigs",
    Schema(DescribeConfigsRequest, _listing(_TOPIC, 128)),
    Schema(
        DescribeConfigsResponse,
        long_list(
            structure(
                DescribeConfigsResult,
                _TOPIC,
                INT16,
                _TEXT,
                array(structure(ConfigEntry, string(256), string(1024), BOOL, string(1024))),
            ),
            *(128, MAX_LIST_BYTES),
        ),
    ),
)

BROKER_APIS: Final[dict[int, AnyApi]] = {
    api.key: api
    for api in (
        API_VERSIONS,
        PRODUCE,
        FETCH,
        LIST_OFFSETS,
        METADATA,
        CREATE_TOPICS,
        DELETE_TOPICS,
        INIT_PRODUCER_ID,
        DESCRIBE_CONFIGS,
    )
}
