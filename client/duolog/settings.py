"""Checks of the settings that the public classes take; a wrong one names itself and its rule."""

from __future__ import annotations

import random
from typing import Final

from duolog_protocol.errors import ConfigError

from .cluster_client import ClusterSettings
from .connection import Address, parse_servers

COMPRESSION_TYPES: Final[dict[str | None, int]] = {
    None: 0,
    "none": 0,
    "gzip": 1,
    "snappy": 2,
    "lz4": 3,
    "zstd": 4,
}
ISOLATION_LEVELS: Final = {"read_uncommitted": 0, "read_committed": 1}
OFFSET_RESETS: Final = ("latest", "earliest", "none")


def at_least(name: str, value: float, bound: float) -> None:
    """Raise ConfigError unless `value >= bound`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < bound:
        raise ConfigError(name, value, f"must be a number, at least {bound}")


def one_of(name: str, value: object, choices: object) -> None:
    """Raise ConfigError unless `value` is among the choices."""
    assert isinstance(choices, (dict, tuple)), choices
    if value not in choices:
        raise ConfigError(name, value, f"must be one of {', '.join(map(repr, choices))}")


def addresses(bootstrap_servers: str | list[str]) -> list[Address]:
    """The bootstrap addresses. Raises ConfigError."""
    try:
        return parse_servers(bootstrap_servers)
    except ValueError as error:
        raise ConfigError("bootstrap_servers", bootstrap_servers, str(error)) from error


def acks_of(acks: object) -> int:
    """Kafka's number for acks. Raises ConfigError."""
    if acks in ("all", "-1", -1):
        return -1
    if acks in ("0", "1", 0, 1) and not isinstance(acks, bool):
        return int(str(acks))
    raise ConfigError("acks", acks, "must be 0, 1 or 'all'")


def cluster_settings(
    *,
    client_id: str,
    request_timeout_ms: int,
    retry_backoff_ms: int,
    retry_backoff_max_ms: int,
    metadata_max_age_ms: int,
    reconnect_backoff_ms: int,
    reconnect_backoff_max_ms: int,
    socket_connection_setup_timeout_ms: int,
) -> ClusterSettings:
    """The settings that all clients share. Raises ConfigError."""
    at_least("request_timeout_ms", request_timeout_ms, 1)
    at_least("retry_backoff_ms", retry_backoff_ms, 0)
    at_least("retry_backoff_max_ms", retry_backoff_max_ms, retry_backoff_ms)
    at_least("reconnect_backoff_ms", reconnect_backoff_ms, 0)
    at_least("reconnect_backoff_max_ms", reconnect_backoff_max_ms, reconnect_backoff_ms)
    at_least("metadata_max_age_ms", metadata_max_age_ms, 1)
    at_least("socket_connection_setup_timeout_ms", socket_connection_setup_timeout_ms, 1)
    if len(client_id.encode()) > 100:
        raise ConfigError("client_id", client_id, "must be at most 100 bytes")
    return ClusterSettings(
        client_id=client_id,
        request_timeout_ms=request_timeout_ms,
        retry_backoff_ms=retry_backoff_ms,
        retry_backoff_max_ms=retry_backoff_max_ms,
        metadata_max_age_ms=metadata_max_age_ms,
        socket_connection_setup_timeout_ms=socket_connection_setup_timeout_ms,
        reconnect_backoff_ms=reconnect_backoff_ms,
        reconnect_backoff_max_ms=reconnect_backoff_max_ms,
    )


def random_source(rng: random.Random | None) -> random.Random:
    """The injected source of randomness, or a new one seeded by the system."""
    return rng if rng is not None else random.Random()
