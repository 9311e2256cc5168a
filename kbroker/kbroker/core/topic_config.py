"""The settings of a topic, with Kafka's names, and the broker's defaults for them.

Owns which settings there are, what they may be and what they mean; it never reads a file. A
setting that Kafka does not have is `durability` (and says so).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import cache
from typing import Any, Final

from duolog_protocol.errors import ConfigError


class Durability(Enum):
    """When a record counts as stored on a replica."""

    FSYNC = "fsync"
    """Once it is synced to the disk: what is acknowledged survives a loss of power."""
    REPLICATED = "replicated"
    """Once it is in the page cache (Kafka's way): a crash of the process loses nothing, a loss
    of power on all replicas may take a suffix, never a hole."""


class TimestampType(Enum):
    """Whose clock a record's timestamp shows."""

    CREATE_TIME = "CreateTime"
    LOG_APPEND_TIME = "LogAppendTime"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicConfig:
    """The settings in force for one topic. Field `a_b` is Kafka's `a.b`."""

    cleanup_policy: str = "delete"
    """What happens to old records; only `delete` so far."""
    compression_type: str = "producer"
    """Codec on disk; only `producer` (as it was sent) so far."""
    durability: Durability = Durability.FSYNC
    """`fsync` or `replicated`. Not in Kafka, where it is always `replicated`."""
    file_delete_delay_ms: int = 60_000
    """Time between dropping a segment and unlinking its files."""
    index_interval_bytes: int = 4096
    """Bytes of log between two entries of the offset index."""
    max_message_bytes: int = 1_048_588
    """Largest record batch that is accepted, in bytes, compressed."""
    message_timestamp_after_max_ms: int = 3_600_000
    """How far a record's timestamp may lie ahead of the broker's clock."""
    message_timestamp_before_max_ms: int = (1 << 63) - 1
    """How far a record's timestamp may lie behind the broker's clock."""
    message_timestamp_type: TimestampType = TimestampType.CREATE_TIME
    """`CreateTime` or `LogAppendTime`."""
    min_insync_replicas: int = 1
    """Replicas that must have a record before a produce with acks=all is answered."""
    retention_bytes: int = -1
    """Size of a partition above which old segments are deleted; -1: no limit."""
    retention_ms: int = 604_800_000
    """Age above which old segments are deleted; -1: no limit."""
    segment_bytes: int = 1 << 30
    """Size at which a segment is rolled."""
    segment_index_bytes: int = 10 * 1024 * 1024
    """Size at which an index is full and its segment rolled."""
    segment_ms: int = 604_800_000
    """Age at which a segment is rolled."""

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(kafka_name(name), value, f"must be in [{low}, {high}]")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                rule = f"must be one of {', '.join(allowed)}"
                raise ConfigError(kafka_name(name), value, rule)

    def with_overrides(self, overrides: Mapping[str, str]) -> TopicConfig:
        """These settings with a topic's own on top. Raises ConfigError."""
        if not overrides:
            return self
        values = {field_name(name): _parse(name, text) for name, text in overrides.items()}
        return replace(self, **values)

    def as_texts(self) -> dict[str, str]:
        """All settings by Kafka's names, as text."""
        return {kafka_name(field.name): _text(getattr(self, field.name)) for field in fields(self)}


_INT64: Final = (1 << 63) - 1
_INT32: Final = (1 << 31) - 1
_BOUNDS: Final = {
    "file_delete_delay_ms": (0, _INT64),
    "index_interval_bytes": (0, _INT32),
    "max_message_bytes": (0, _INT32),
    "message_timestamp_after_max_ms": (0, _INT64),
    "message_timestamp_before_max_ms": (0, _INT64),
    "min_insync_replicas": (1, _INT32),
    "retention_bytes": (-1, _INT64),
    "retention_ms": (-1, _INT64),
    "segment_bytes": (1024, _INT32),
    "segment_index_bytes": (64, _INT32),
    "segment_ms": (1, _INT64),
}
_CHOICES: Final = {"cleanup_policy": ("delete",), "compression_type": ("producer",)}


def kafka_name(name: str) -> str:
    """`retention_ms` -> `retention.ms`."""
    return name.replace("_", ".")


def field_name(name: str) -> str:
    """`retention.ms` -> `retention_ms`. Raises ConfigError, naming the nearest setting."""
    found = _BY_NAME.get(name)
    if found is None:
        import difflib

        near = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.0)
        raise ConfigError(name, "", f"is not a topic setting; the nearest one is {near[0]}")
    return found


_BY_NAME: Final = {kafka_name(field.name): field.name for field in fields(TopicConfig)}
_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "durability": Durability,
    "message_timestamp_type": TimestampType,
    "cleanup_policy": str,
    "compression_type": str,
}


def _parse(name: str, text: str) -> Any:
    parse = _PARSERS.get(field_name(name), int)
    try:
        return parse(text)
    except ValueError:
        if isinstance(parse, type) and issubclass(parse, Enum):
            rule = f"must be one of {', '.join(str(each.value) for each in parse)}"
        else:
            rule = "must be an integer"
        raise ConfigError(name, text, rule) from None


def _text(value: object) -> str:
    return str(value.value) if isinstance(value, Enum) else str(value)


@cache
def documentation() -> Mapping[str, str]:
    """Kafka's name of every setting -> what it means; read once, from this file's docstrings."""
    import ast
    import inspect
    from itertools import pairwise

    tree = ast.parse(inspect.getsource(TopicConfig))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    found: dict[str, str] = {}
    for field, text in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[kafka_name(field.target.id)] = " ".join(str(text.value.value).split())
    return found
