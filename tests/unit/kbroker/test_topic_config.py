"""Topic settings and names: what is taken, what is refused and with which words."""

from __future__ import annotations

import pytest

from duolog_protocol.errors import ConfigError
from kbroker.core.topic_config import Durability, TimestampType, TopicConfig, documentation
from kbroker.core.topic_names import MAX_NAME_CHARS, colliding_name, name_problem


def test_a_topics_own_settings_lie_over_the_brokers() -> None:
    defaults = TopicConfig(retention_ms=5)
    found = defaults.with_overrides(
        {
            "durability": "replicated",
            "message.timestamp.type": "LogAppendTime",
            "segment.bytes": "2048",
        }
    )
    assert found.durability is Durability.REPLICATED
    assert found.message_timestamp_type is TimestampType.LOG_APPEND_TIME
    assert (found.segment_bytes, found.retention_ms) == (2048, 5)
    assert defaults.with_overrides({}) is defaults


def test_every_setting_can_be_told_as_text_and_read_back() -> None:
    config = TopicConfig(durability=Durability.REPLICATED, retention_bytes=7)
    assert TopicConfig().with_overrides(config.as_texts()) == config
    assert documentation().keys() == config.as_texts().keys()
    assert all(documentation().values())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("retention.sm", "1", "nearest one is retention.ms"),
        ("retention_ms", "1", "nearest one is retention.ms"),
        ("retention.ms", "soon", "integer"),
        ("retention.ms", "-2", "must be in"),
        ("segment.bytes", "1023", "must be in"),
        ("segment.bytes", str(1 << 31), "must be in"),
        ("min.insync.replicas", "0", "must be in"),
        ("durability", "maybe", "fsync, replicated"),
        ("message.timestamp.type", "Now", "CreateTime, LogAppendTime"),
        ("cleanup.policy", "compact", "one of delete"),
        ("compression.type", "zstd", "one of producer"),
    ],
)
def test_a_wrong_setting_is_named_with_its_rule(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as told:
        TopicConfig().with_overrides({name: value})
    assert told.value.field == name


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "n" * MAX_NAME_CHARS, "__internal", "..."])
def test_legal_names(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "empty"),
        (".", "called"),
        ("..", "called"),
        ("n" * (MAX_NAME_CHARS + 1), "at most 249"),
        ("a b", "letters"),
        ("a/b", "letters"),
        ("ä", "letters"),
        ("a\n", "letters"),
    ],
)
def test_illegal_names_and_why(name: str, words: str) -> None:
    assert words in (name_problem(name) or "")


def test_names_that_metrics_would_confuse_collide() -> None:
    assert colliding_name("a.b", ["x", "a_b"]) == "a_b"
    assert colliding_name("a_b", ["a.b"]) == "a.b"
    assert colliding_name("a.b", ["a.b", "ab", "a-b"]) is None
    assert colliding_name("ab", ["a.b"]) is None
