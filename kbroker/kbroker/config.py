"""The broker's settings: names, defaults, units, and Kafka's name where it has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from duolog.core.zk_session import parse_hosts
from duolog_protocol.errors import ConfigError
from duolog_runtime.config import is_loopback

from .core.topic_config import Durability, TimestampType, TopicConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """Settings of one broker process."""

    host: str = "127.0.0.1"
    """Address to listen on (Kafka: `listeners`)."""
    port: int = 9092
    """Port to listen on; 0 takes any free one."""
    advertised_host: str = ""
    """Address that clients are told; empty: `host` (Kafka: `advertised.listeners`)."""
    insecure: bool = False
    """Allow an address that is not loopback although there is no authentication yet."""
    data: str = ""
    """Directory for the logs (Kafka: `log.dirs`, one of them)."""
    zookeeper: str = "127.0.0.1:2181"
    """zkserver's addresses: HOST:PORT[,HOST:PORT...][/chroot] (Kafka: `zookeeper.connect`)."""
    zookeeper_session_timeout_ms: int = 18_000
    """Session timeout with zkserver (Kafka: `zookeeper.session.timeout.ms`)."""
    zookeeper_connection_timeout_ms: int = 18_000
    """How long the first connection to zkserver may take."""
    broker_id: int = -1
    """Id of this broker; -1: the next free one from 1001 on (Kafka: `broker.id`)."""
    rack: str = ""
    """Rack of this broker (Kafka: `broker.rack`)."""
    loop: Literal["auto", "uvloop", "asyncio"] = "auto"
    """Event loop; auto: uvloop where it is installed."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of the log lines on stderr."""
    metrics_port: int = -1
    """Port of the HTTP metrics on `host`; -1: none, 0: any."""
    num_partitions: int = 1
    """Partitions of a topic that does not say (Kafka: `num.partitions`)."""
    auto_create_topics_enable: bool = True
    """Whether asking for a topic makes it (Kafka: `auto.create.topics.enable`)."""
    max_connections: int = 10_000
    """Open connections in all (Kafka: `max.connections`)."""
    max_connections_per_ip: int = 1_000
    """Open connections from one address (Kafka: `max.connections.per.ip`)."""
    connections_max_idle_ms: int = 600_000
    """Time without a request after which a client is dropped (Kafka: `connections.max.idle.ms`)."""
    max_in_flight_requests_per_connection: int = 64
    """Unanswered requests of a connection above which it is not read."""
    socket_request_max_bytes: int = 100 * 1024 * 1024
    """Longest request, in bytes (Kafka: `socket.request.max.bytes`)."""
    max_unsent_bytes: int = 128 * 1024 * 1024
    """Bytes a client may leave unread before it is dropped."""
    fetch_max_bytes: int = 55 * 1024 * 1024
    """Largest answer to a fetch, in bytes (Kafka: `fetch.max.bytes`)."""
    max_delayed_operations: int = 100_000
    """Requests that may wait for acknowledgements or data at once."""
    memory_tail_bytes: int = 2 * 1024 * 1024
    """Newest records of each partition kept in memory, in bytes."""
    memory_tails_bytes: int = 64 * 1024 * 1024
    """The same over all partitions."""
    max_producer_ids_per_partition: int = 10_000
    """Idempotent producers a partition remembers."""
    producer_id_expiration_ms: int = 86_400_000
    """Idle time after which a producer is forgotten (Kafka: `producer.id.expiration.ms`)."""
    log_retention_check_interval_ms: int = 300_000
    """Time between looks for old segments (Kafka: `log.retention.check.interval.ms`)."""
    log_flush_offset_checkpoint_interval_ms: int = 60_000
    """Time between checkpoints of what is synced (Kafka: same name)."""
    durability: Literal["fsync", "replicated"] = "fsync"
    """Default of the topic setting `durability`."""
    message_max_bytes: int = 1_048_588
    """Default of `max.message.bytes` (Kafka: `message.max.bytes`)."""
    log_segment_bytes: int = 1 << 30
    """Default of `segment.bytes` (Kafka: `log.segment.bytes`)."""
    log_roll_ms: int = 604_800_000
    """Default of `segment.ms` (Kafka: `log.roll.ms`)."""
    log_retention_ms: int = 604_800_000
    """Default of `retention.ms` (Kafka: `log.retention.ms`)."""
    log_retention_bytes: int = -1
    """Default of `retention.bytes` (Kafka: `log.retention.bytes`)."""
    log_index_interval_bytes: int = 4096
    """Default of `index.interval.bytes` (Kafka: `log.index.interval.bytes`)."""
    log_message_timestamp_type: Literal["CreateTime", "LogAppendTime"] = "CreateTime"
    """Default of `message.timestamp.type` (Kafka: `log.message.timestamp.type`)."""
    seed: int = -1
    """Seed of all random choices; -1: from the operating system. For tests."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("data", self.data, "name a directory for the logs: --data DIR")
        if not 0 <= self.port <= 65_535:
            raise ConfigError("port", self.port, "must be in [0, 65535]")
        if self.broker_id < -1:
            raise ConfigError("broker_id", self.broker_id, "must be at least 0, or -1 for any")
        if not is_loopback(self.host) and not self.insecure:
            rule = "is not a loopback address, and there is no authentication yet: add --insecure"
            raise ConfigError("host", self.host, rule)
        for name in (
            "zookeeper_session_timeout_ms",
            "zookeeper_connection_timeout_ms",
            "num_partitions",
            "max_connections",
            "max_connections_per_ip",
            "connections_max_idle_ms",
            "max_in_flight_requests_per_connection",
            "max_delayed_operations",
            "max_producer_ids_per_partition",
            "log_retention_check_interval_ms",
            "log_flush_offset_checkpoint_interval_ms",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "must be at least 1")
        try:
            parse_hosts(self.zookeeper)
        except ConfigError as error:
            raise ConfigError("zookeeper", self.zookeeper, error.rule) from None
        if self.socket_request_max_bytes < self.message_max_bytes:
            raise ConfigError(
                "socket_request_max_bytes",
                self.socket_request_max_bytes,
                f"must be at least message_max_bytes={self.message_max_bytes}",
            )
        self.topic_defaults()

    def topic_defaults(self) -> TopicConfig:
        """What a topic's settings are where it does not say. Raises ConfigError."""
        return TopicConfig(
            durability=Durability(self.durability),
            index_interval_bytes=self.log_index_interval_bytes,
            max_message_bytes=self.message_max_bytes,
            message_timestamp_type=TimestampType(self.log_message_timestamp_type),
            retention_bytes=self.log_retention_bytes,
            retention_ms=self.log_retention_ms,
            segment_bytes=self.log_segment_bytes,
            segment_ms=self.log_roll_ms,
        )
