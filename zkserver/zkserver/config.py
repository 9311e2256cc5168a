"""The settings of this process; those of the ensemble's behaviour are `core.config.CoreConfig`.

Read once, in `__main__`, from flags, environment (`ZKSERVER_...`) and a TOML file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from duolog_runtime.config import require

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """This server: where it listens, where it keeps its data, what it takes from clients."""

    data_directory: str = field(metadata={"flag": "data"})
    """Directory of the transaction log and the snapshots; made where it is missing (`dataDir`)."""
    host: str = "127.0.0.1"
    """Address to listen on; one that is not loopback needs --insecure (`clientPortAddress`)."""
    port: int = 2181
    """Port to listen on; 0 for any free one (`clientPort`)."""
    insecure: bool = False
    """Listen on an address that others can reach, although nobody is authenticated yet."""
    ensemble_id: int = 0
    """The ensemble this server belongs to; 0 takes the one of the data directory, or draws one."""
    loop: Literal["auto", "uvloop", "asyncio"] = "auto"
    """Event loop; auto takes uvloop where it is installed."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged on stderr."""
    max_connections: int = 10_000
    """Most client connections; 0 for no bound (`maxCnxns`)."""
    max_connections_per_address: int = 60
    """Most connections of one address; 0 for no bound (`maxClientCnxns`)."""
    max_unknown_connections: int = 256
    """Most connections without a session; beyond it the oldest of them is dropped."""
    handshake_timeout_ms: int = 10_000
    """Time a connection has until its session is there."""
    jute_max_frame_bytes: int = 1_048_575
    """Longest frame of a ZooKeeper client that has a session (`jute.maxbuffer`)."""
    max_unsent_bytes: int = 4 * _MIB
    """A client that leaves more than this unread is dropped."""
    snap_count: int = 100_000
    """Transactions after which a snapshot is taken, at a random point in its upper half
    (`snapCount`)."""
    snap_retain_count: int = 3
    """Snapshots kept, with the logs that they need (`autopurge.snapRetainCount`)."""
    log_file_bytes: int = 64 * _MIB
    """Size at which a new log file is begun."""
    preallocate_bytes: int = 4 * _MIB
    """Step in which disk space is reserved for the log (`preAllocSize`)."""
    stop_timeout_ms: int = 10_000
    """Longest wait, at an orderly stop, for what is on its way to the disk and to clients."""

    def __post_init__(self) -> None:
        require(self.data_directory != "", "data", self.data_directory, "must not be empty")
        require(0 <= self.port <= 65535, "port", self.port, "must be in [0, 65535]")
        rule = "is not a loopback address; without authentication yet that needs --insecure"
        require(self.insecure or is_loopback(self.host), "host", self.host, rule)
        require(
            0 <= self.ensemble_id < 1 << 64, "ensemble_id", self.ensemble_id, "must be in [0, 2^64)"
        )
        for name in ("max_connections", "max_connections_per_address"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0")
        require(
            1024 <= self.jute_max_frame_bytes <= 64 * _MIB,
            "jute_max_frame_bytes",
            self.jute_max_frame_bytes,
            f"must be in [1024, {64 * _MIB}]",
        )
        for name, low in (
            ("max_unknown_connections", 1),
            ("handshake_timeout_ms", 1),
            ("max_unsent_bytes", 64 * 1024),
            ("snap_count", 2),
            ("snap_retain_count", 3),
            ("log_file_bytes", 4096),
            ("preallocate_bytes", 4096),
            ("stop_timeout_ms", 1),
        ):
            value = getattr(self, name)
            require(value >= low, name, value, f"must be at least {low}")


def is_loopback(host: str) -> bool:
    """Nobody but this machine reaches the address."""
    return host in ("localhost", "::1") or host.startswith("127.")
