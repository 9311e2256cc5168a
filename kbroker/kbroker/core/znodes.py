"""The classic znode layout: paths, and their JSON to values and back.

Owns what stands in ZooKeeper and how it is spelled, so that people who know Kafka, and tools that
browse ZooKeeper, find what they expect. Anybody may have written what is decoded here: whatever
comes back as a value may be relied on, all else is a CorruptZnodeError. Source: Kafka 3.9
`ZkData.scala`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from duolog_protocol.errors import CorruptRecordError
from duolog_protocol.types import Stat

from .metadata_image import NO_LEADER, BrokerInfo, PartitionImage

CONTROLLER: Final = "/controller"
CONTROLLER_EPOCH: Final = "/controller_epoch"
BROKER_IDS: Final = "/brokers/ids"
BROKER_SEQID: Final = "/brokers/seqid"
TOPICS: Final = "/brokers/topics"
TOPIC_CONFIGS: Final = "/config/topics"
DELETE_TOPICS: Final = "/admin/delete_topics"
CLUSTER_ID: Final = "/cluster/id"
PRODUCER_IDS: Final = "/latest_producer_id_block"
FIRST_CONTROLLER_EPOCH: Final = 0
PRODUCER_ID_BLOCK: Final = 1000
RESERVED_BROKER_MAX_ID: Final = 1000
_INT32_MAX: Final = (1 << 31) - 1
_EPOCH_MAX: Final = 1 << 30
"""Of what others have written; leaves room for as many elections before 31 bits are full."""
_TOPIC_ID: Final = re.compile(r"[A-Za-z0-9_-]{22}")

PERSISTENT_PARENTS: Final = (
    BROKER_IDS,
    TOPICS,
    "/config/changes",
    DELETE_TOPICS,
    BROKER_SEQID,
    "/isr_change_notification",
    "/log_dir_event_notification",
    TOPIC_CONFIGS,
    "/config/brokers",
    "/config/clients",
    "/config/users",
    "/config/ips",
    "/cluster",
)
"""Made at the start of every broker where they are missing."""


class CorruptZnodeError(CorruptRecordError):
    """A znode does not say what it must. A person has to mend it; the broker can go on."""


def broker_path(broker_id: int) -> str:
    """A broker's registration, ephemeral."""
    return f"{BROKER_IDS}/{broker_id}"


def topic_path(topic: str) -> str:
    """A topic's id and assignment."""
    return f"{TOPICS}/{topic}"


def partitions_path(topic: str) -> str:
    """Parent of a topic's partitions."""
    return f"{TOPICS}/{topic}/partitions"


def partition_path(topic: str, partition: int) -> str:
    """Parent of a partition's state."""
    return f"{TOPICS}/{topic}/partitions/{partition}"


def state_path(topic: str, partition: int) -> str:
    """A partition's leader, leader epoch and ISR."""
    return f"{TOPICS}/{topic}/partitions/{partition}/state"


def topic_config_path(topic: str) -> str:
    """A topic's settings."""
    return f"{TOPIC_CONFIGS}/{topic}"


def delete_topic_path(topic: str) -> str:
    """The request to delete a topic: there until all of it is gone."""
    return f"{DELETE_TOPICS}/{topic}"


def encode_broker(host: str, port: int, rack: str | None, timestamp_ms: int) -> bytes:
    """A registration, version 5."""
    value: dict[str, Any] = {
        "version": 5,
        "host": host,
        "port": port,
        "jmx_port": -1,
        "timestamp": str(timestamp_ms),
        "endpoints": [f"PLAINTEXT://{host}:{port}"],
        "listener_security_protocol_map": {"PLAINTEXT": "PLAINTEXT"},
        "features": {},
    }
    if rack is not None:
        value["rack"] = rack
    return _encode(value)


def decode_broker(broker_id: int, data: bytes | None, stat: Stat) -> BrokerInfo:
    """A registration and its epoch."""
    path = broker_path(broker_id)
    value = _decode(path, data)
    rack = value.get("rack")
    if rack is not None and not isinstance(rack, str):
        raise CorruptZnodeError(path, 0, "its rack is no text")
    return BrokerInfo(
        broker_id,
        _field(path, value, "host", str),
        _number(path, value, "port", 0, 65_535),
        rack,
        stat.czxid,
    )


def encode_controller(broker_id: int, timestamp_ms: int) -> bytes:
    """The claim of the controller, version 2."""
    return _encode(
        {
            "version": 2,
            "brokerid": broker_id,
            "timestamp": str(timestamp_ms),
            "kraftControllerEpoch": -1,
        }
    )


def decode_controller(data: bytes | None) -> int:
    """Id of the broker that is the controller."""
    return _number(CONTROLLER, _decode(CONTROLLER, data), "brokerid", 0, _INT32_MAX)


def decode_epoch(data: bytes | None) -> int:
    """The controller epoch: decimal text."""
    text = (data or b"")[:20].strip()
    if not text.isdigit() or int(text) >= _INT32_MAX:
        raise CorruptZnodeError(CONTROLLER_EPOCH, 0, f"{text!r} is no epoch")
    return int(text)


class TopicNode(NamedTuple):
    """What a topic's znode says."""

    topic_id: str
    replicas: Mapping[int, tuple[int, ...]]


def encode_topic(topic_id: str, replicas: Mapping[int, tuple[int, ...]]) -> bytes:
    """A topic's id and assignment, version 3."""
    return _encode(
        {
            "version": 3,
            "topic_id": topic_id,
            "partitions": {str(each): list(replicas[each]) for each in sorted(replicas)},
            "adding_replicas": {},
            "removing_replicas": {},
        }
    )


def decode_topic(topic: str, data: bytes | None) -> TopicNode:
    """A topic's id and assignment."""
    path = topic_path(topic)
    value = _decode(path, data)
    topic_id = _field(path, value, "topic_id", str)
    if not _TOPIC_ID.fullmatch(topic_id):
        raise CorruptZnodeError(path, 0, "its topic_id is not 22 characters of base64url")
    replicas: dict[int, tuple[int, ...]] = {}
    for number, found in _field(path, value, "partitions", dict).items():
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise CorruptZnodeError(path, 0, f"{number[:20]!r} is no partition")
        brokers = _broker_ids(found)
        if brokers is None:
            raise CorruptZnodeError(path, 0, f"partition {number} has no list of distinct replicas")
        replicas[int(number)] = brokers
    if not replicas:
        raise CorruptZnodeError(path, 0, "has no partitions")
    return TopicNode(topic_id, replicas)


def encode_state(
    leader_id: int, leader_epoch: int, isr: tuple[int, ...], controller_epoch: int
) -> bytes:
    """A partition's state, version 1."""
    return _encode(
        {
            "controller_epoch": controller_epoch,
            "leader": leader_id,
            "version": 1,
            "leader_epoch": leader_epoch,
            "isr": list(isr),
        }
    )


def decode_state(
    topic: str, partition: int, replicas: tuple[int, ...], data: bytes | None, stat: Stat
) -> PartitionImage:
    """A partition's state, with its assignment."""
    path = state_path(topic, partition)
    value = _decode(path, data)
    leader_id = _number(path, value, "leader", NO_LEADER, _INT32_MAX)
    isr = _broker_ids(_field(path, value, "isr", list))
    if isr is None or leader_id not in {NO_LEADER, *isr}:
        raise CorruptZnodeError(path, 0, f"leader {leader_id} is not in its isr")
    return PartitionImage(
        replicas,
        leader_id,
        _number(path, value, "leader_epoch", 0, _EPOCH_MAX),
        isr,
        stat.version,
        _number(path, value, "controller_epoch", 0, _INT32_MAX),
        stat.mzxid,
    )


def encode_config(config: Mapping[str, str]) -> bytes:
    """A topic's settings, version 1."""
    return _encode({"version": 1, "config": dict(config)})


def decode_config(topic: str, data: bytes | None) -> dict[str, str]:
    """A topic's settings."""
    path = topic_config_path(topic)
    found = _field(path, _decode(path, data), "config", dict)
    return {str(name): str(value) for name, value in found.items()}


def encode_cluster_id(cluster_id: str) -> bytes:
    """The cluster's id, version 1."""
    return _encode({"version": "1", "id": cluster_id})


def decode_cluster_id(data: bytes | None) -> str:
    """The cluster's id."""
    cluster_id: str = _field(CLUSTER_ID, _decode(CLUSTER_ID, data), "id", str)
    return cluster_id


def encode_producer_ids(broker_id: int, first: int, last: int) -> bytes:
    """A block of producer ids, `last` inclusive, version 1."""
    return _encode(
        {"version": 1, "broker": broker_id, "block_start": str(first), "block_end": str(last)}
    )


def decode_last_producer_id(data: bytes | None) -> int:
    """The last producer id of the block that was handed out last."""
    value = _field(PRODUCER_IDS, _decode(PRODUCER_IDS, data), "block_end", str)
    try:
        return int(value)
    except ValueError:
        raise CorruptZnodeError(PRODUCER_IDS, 0, f"{value!r} is no number") from None


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _decode(path: str, data: bytes | None) -> dict[str, Any]:
    try:
        text = (data or b"").decode()  # json.loads would let surrogates pass
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate fits in no message
    except (ValueError, RecursionError) as error:
        raise CorruptZnodeError(path, 0, f"is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptZnodeError(path, 0, "is no JSON object")
    return value


def _field(path: str, value: Mapping[str, Any], name: str, kind: type) -> Any:
    found = value.get(name)
    if not isinstance(found, kind) or isinstance(found, bool):
        raise CorruptZnodeError(path, 0, f"has no {kind.__name__} called {name}")
    return found


def _number(path: str, value: Mapping[str, Any], name: str, low: int, high: int) -> int:
    found: int = _field(path, value, name, int)
    if not low <= found <= high:
        raise CorruptZnodeError(path, 0, f"its {name} is not in [{low}, {high}]")
    return found


def _broker_ids(found: object) -> tuple[int, ...] | None:
    """Distinct broker ids, at least one; None where it is anything else."""
    if not isinstance(found, list) or not found:
        return None
    for each in found:
        if not isinstance(each, int) or isinstance(each, bool) or not 0 <= each <= _INT32_MAX:
            return None
    return tuple(found) if len(set(found)) == len(found) else None
