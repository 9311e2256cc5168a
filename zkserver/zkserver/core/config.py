"""Limits and times of the core; the daemon's configuration fills them in."""

from __future__ import annotations

from dataclasses import dataclass

from duolog_protocol.errors import ConfigError
from duolog_protocol.txns import MAX_TXN_BYTES
from duolog_protocol.types import ZXID_COUNTER_LAST
from duolog_protocol.zk_messages import MAX_DATA_BYTES, MAX_FRAME_BYTES, MAX_LIST_BYTES

MAX_PATH_BYTES = 4096
MAX_ACL_BYTES = 12_000
"""An ACL list as it stands in a Txn."""
TXN_OVERHEAD_BYTES = 16 * 1024
"""More than a Txn of one operation adds to its data: header, path, ACL list."""


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """What the core needs to know; all of it must be equal on every server of an ensemble."""

    server_id: int = 1
    """This server, 1 to 255 (`myid`)."""
    server_version: str = "0.1.0"
    """What ApiVersions tells."""
    tick_ms: int = 2000
    """Unit of session timeouts and width of an expiry bucket (`tickTime`)."""
    min_session_timeout_ms: int = 0
    """Shortest timeout a client gets; 0: 2 ticks (`minSessionTimeout`)."""
    max_session_timeout_ms: int = 0
    """Longest timeout a client gets; 0: 20 ticks (`maxSessionTimeout`)."""
    max_data_bytes: int = 1_048_575
    """Data of one znode (`jute.maxbuffer`)."""
    max_path_bytes: int = 1024
    """A path in UTF-8, sequence suffix included (ZooKeeper: `jute.maxbuffer` only)."""
    max_multi_ops: int = 1024
    """Operations of one multi."""
    max_acl_entries: int = 64
    """Entries of one ACL list."""
    enforce_quota: bool = True
    """A hard quota refuses what would pass it (`enforceQuota`, which is off in ZooKeeper)."""
    reap_interval_ms: int = 60_000
    """How often empty containers and outlived TTL nodes are looked for
    (`znode.container.checkIntervalMs`)."""
    max_reaped_per_interval: int = 10_000
    """Most of them deleted at a time (`znode.container.maxPerMinute`)."""
    never_used_container_ms: int = 300_000
    """A container that never had a child is deleted after so long; 0: never
    (`znode.container.maxNeverUsedIntervalMs`)."""
    max_history_events: int = 20_000
    """Changes that are remembered for watches that a native client resumes."""
    max_reply_backlog_bytes: int = 1024 * 1024
    """Replies of one connection that may wait for its socket; beyond, its reads wait."""
    max_unread_reply_bytes: int = 64 * 1024 * 1024
    """As `max_reply_backlog_bytes`, for reads that cannot wait because the same connection's writes
    come behind them; beyond, it is dropped."""
    max_txn_bytes: int = MAX_FRAME_BYTES
    """A log record: checked on the resulting Txn (`jute.maxbuffer`, ZOOKEEPER-2101, -4306)."""
    max_children_reply_bytes: int = 16 * 1024 * 1024
    """Names in one reply to GetChildren."""
    max_watches_per_connection: int = 100_000
    """Watches of one connection, all kinds together."""
    max_outstanding_per_connection: int = 2_000
    """Unanswered requests of a connection; beyond, it is not read."""
    max_waiting_bytes_per_connection: int = 4 * 1024 * 1024
    """Data of a connection's writes that wait behind a request of another kind; beyond, it is not
    read."""
    max_outstanding_requests: int = 20_000
    """Unanswered requests in total; beyond, senders are not read (`globalOutstandingLimit`)."""
    max_outstanding_bytes: int = 64 * 1024 * 1024
    """Log records that are not applied yet, in total; beyond, senders are not read."""
    max_expirations_per_step: int = 1_000
    """Sessions closed in one step, so that a mass expiry does not hold up the others."""
    zxid_counter_last: int = ZXID_COUNTER_LAST
    """Counter at which the epoch rolls; lowered by tests only."""

    def __post_init__(self) -> None:
        self._require("server_id", 1, 255)
        self._require("tick_ms", 1, 3_600_000)
        self._require("min_session_timeout_ms", 0, 24 * 3_600_000)
        self._require("max_session_timeout_ms", 0, 24 * 3_600_000)
        if self.session_timeout_low_ms > self.session_timeout_high_ms:
            raise ConfigError(
                "min_session_timeout_ms",
                self.session_timeout_low_ms,
                f"must not be above the longest timeout, {self.session_timeout_high_ms}",
            )
        self._require("max_data_bytes", 1, MAX_DATA_BYTES)
        self._require("max_path_bytes", 1, MAX_PATH_BYTES)
        self._require("max_multi_ops", 1, 1024)
        self._require("max_acl_entries", 1, 250)
        self._require("reap_interval_ms", 1, 24 * 3_600_000)
        self._require("max_reaped_per_interval", 1, 1_000_000)
        self._require("never_used_container_ms", 0, 365 * 24 * 3_600_000)
        self._require("max_history_events", 0, 10_000_000)
        self._require("max_reply_backlog_bytes", 1, 1 << 30)
        self._require("max_unread_reply_bytes", self.max_reply_backlog_bytes, 1 << 40)
        self._require("max_txn_bytes", self.max_data_bytes + TXN_OVERHEAD_BYTES, MAX_TXN_BYTES)
        self._require("max_children_reply_bytes", 1024, MAX_LIST_BYTES)
        self._require("max_watches_per_connection", 1, 10_000_000)
        self._require("max_outstanding_per_connection", 1, 1_000_000)
        self._require("max_waiting_bytes_per_connection", 1, 1 << 40)
        self._require("max_outstanding_requests", 1, 10_000_000)
        self._require("max_outstanding_bytes", 1, 1 << 40)
        self._require("max_expirations_per_step", 1, 1_000_000)
        self._require("zxid_counter_last", 1, ZXID_COUNTER_LAST)

    @property
    def session_timeout_low_ms(self) -> int:
        """Shortest timeout a client gets."""
        return self.min_session_timeout_ms or 2 * self.tick_ms

    @property
    def session_timeout_high_ms(self) -> int:
        """Longest timeout a client gets."""
        return self.max_session_timeout_ms or 20 * self.tick_ms

    def _require(self, field: str, low: int, high: int) -> None:
        value = getattr(self, field)
        if not low <= value <= high:
            raise ConfigError(field, value, f"must be in [{low}, {high}]")
