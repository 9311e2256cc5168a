"""The znodes say what Kafka's say, and what a person has spoilt in them is named with its path."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from duolog_protocol.errors import CorruptRecordError
from duolog_protocol.types import Stat
from kbroker.core import znodes
from kbroker.core.metadata_image import BrokerInfo, PartitionImage

STAT = Stat(77, 99, 0, 0, 3, 0, 0, 0, 0, 0, 0)


def test_paths_are_kafkas() -> None:
    assert znodes.broker_path(7) == "/brokers/ids/7"
    assert znodes.topic_path("t") == "/brokers/topics/t"
    assert znodes.state_path("t", 3) == "/brokers/topics/t/partitions/3/state"
    assert znodes.state_path("t", 3).startswith(znodes.partition_path("t", 3))
    assert znodes.partition_path("t", 3).startswith(znodes.partitions_path("t"))
    assert znodes.topic_config_path("t") == "/config/topics/t"
    assert znodes.delete_topic_path("t") == "/admin/delete_topics/t"


def test_a_registration_is_version_5_and_comes_back_with_its_epoch() -> None:
    data = znodes.encode_broker("h", 9092, "r", 1_700)
    assert json.loads(data)["endpoints"] == ["PLAINTEXT://h:9092"]
    assert json.loads(data)["version"] == 5
    assert znodes.decode_broker(7, data, STAT) == BrokerInfo(7, "h", 9092, "r", 77)
    bare = znodes.encode_broker("h", 1, None, 0)
    assert "rack" not in json.loads(bare)
    assert znodes.decode_broker(7, bare, STAT).rack is None


def test_states_topics_settings_and_ids_come_back() -> None:
    state = znodes.decode_state("t", 0, (1, 2), znodes.encode_state(2, 5, (2,), 9), STAT)
    assert state == PartitionImage((1, 2), 2, 5, (2,), 3, 9, 99)
    node = znodes.decode_topic("t", znodes.encode_topic("A" * 22, {10: (1,), 2: (2, 1)}))
    assert (node.topic_id, node.replicas) == ("A" * 22, {2: (2, 1), 10: (1,)})
    assert znodes.decode_config("t", znodes.encode_config({"a": "b"})) == {"a": "b"}
    assert znodes.decode_cluster_id(znodes.encode_cluster_id("c")) == "c"
    assert znodes.decode_controller(znodes.encode_controller(4, 1)) == 4
    assert znodes.decode_last_producer_id(znodes.encode_producer_ids(1, 1000, 1999)) == 1999
    assert znodes.decode_epoch(b"12") == 12


@pytest.mark.parametrize(
    ("decode", "data", "path"),
    [
        (lambda data: znodes.decode_broker(7, data, STAT), b"", "/brokers/ids/7"),
        (lambda data: znodes.decode_broker(7, data, STAT), b'{"host":"h"}', "/brokers/ids/7"),
        (lambda data: znodes.decode_broker(7, data, STAT), b"[]", "/brokers/ids/7"),
        (lambda data: znodes.decode_topic("t", data), b'{"partitions":{}}', "/brokers/topics/t"),
        (
            lambda data: znodes.decode_topic("t", data),
            b'{"topic_id":"x","partitions":{"a":[1]}}',
            "/brokers/topics/t",
        ),
        (
            lambda data: znodes.decode_state("t", 0, (), data, STAT),
            b'{"leader":true}',
            "/brokers/topics/t/partitions/0/state",
        ),
        (lambda data: znodes.decode_config("t", data), b"{}", "/config/topics/t"),
        (lambda data: znodes.decode_config("t", data), b'{"a":' * 100_000, "/config/topics/t"),
        *[
            (
                lambda data: znodes.decode_broker(7, data, STAT),
                b'{"host":%s,"port":%d,"rack":%s}' % fields,
                "/brokers/ids/7",
            )
            for fields in (
                (b'"h"', 1 << 70, b"null"),
                (b'"h"', -1, b"null"),
                (b'"h"', 1, b"3"),
                (b'"\\ud800"', 1, b"null"),
                (b'"\xed\xa0\x80"', 1, b"null"),
            )
        ],
        *[
            (
                lambda data: znodes.decode_topic("t", data),
                b'{"topic_id":"%s","partitions":%s}' % (topic_id * 22, partitions),
                "/brokers/topics/t",
            )
            for topic_id, partitions in (
                (b"A", b"{}"),
                (b"/", b'{"0":[1]}'),
                (b"A", b'{"0":[]}'),
                (b"A", b'{"0":[1,1]}'),
                (b"A", b'{"0":["1"]}'),
                (b"A", b'{"0":[-1]}'),
                (b"A", b'{"-1":[1]}'),
                (b"A", b'{"99999999999":[1]}'),
            )
        ],
        *[
            (
                lambda data: znodes.decode_state("t", 0, (1,), data, STAT),
                b'{"leader":%d,"leader_epoch":%d,"isr":%s,"controller_epoch":1}' % fields,
                "/brokers/topics/t/partitions/0/state",
            )
            for fields in (
                (1, 0, b"[]"),
                (1, 0, b"[2]"),
                (1, -1, b"[1]"),
                (1, 1 << 31, b"[1]"),
                (-2, 0, b"[1]"),
                (1, 0, b'["1"]'),
            )
        ],
        (znodes.decode_epoch, b"x", "/controller_epoch"),
        (znodes.decode_epoch, None, "/controller_epoch"),
        (znodes.decode_controller, b"{}", "/controller"),
        (znodes.decode_cluster_id, b'{"id":1}', "/cluster/id"),
        (znodes.decode_last_producer_id, b'{"block_end":"x"}', "/latest_producer_id_block"),
    ],
)
def test_what_was_spoilt_is_named(
    decode: Callable[[bytes | None], Any], data: bytes | None, path: str
) -> None:
    with pytest.raises(CorruptRecordError) as told:
        decode(data)
    assert told.value.path == path
