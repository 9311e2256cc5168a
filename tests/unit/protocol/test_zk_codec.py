"""Replies to native clients: by hand or by schema, the bytes are the same."""

from __future__ import annotations

from typing import Any

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import encode_error, encode_event
from duolog_protocol.types import Stat
from duolog_protocol.zk_codec import MAX_JOINED_DATA_BYTES, NativeCodec
from duolog_protocol.zk_decoder import NativeDecoder
from tests.unit.protocol.samples import STAT, ZK_RESPONSES

ZXID = (7 << 32) + 9
LEAST = Stat(0, 0, 0, 0, 0, -1, 0, 0, 0, 0, 0)
MOST = Stat(*[(1 << 63) - 1] * 11)
WIDE = STAT._replace(version=-(1 << 31), cversion=70_000, ephemeral_owner=-(1 << 63))


class Node:
    """What a codec sees of a znode."""

    def __init__(self, data: bytes | None, stat: Stat) -> None:
        self.data = data
        self.made = stat
        self.encoded_data: Any = None
        self.encoded_stat: bytes | None = None
        self.jute_body: bytes | None = None

    def stat_fields(self) -> tuple[int, ...]:
        return self.made


def codec() -> NativeCodec:
    return NativeCodec(NativeDecoder(1 << 20))


def by_schema(key: int, correlation_id: int, zxid: int, message: Any) -> bytes:
    return b"".join(zk.ZK_APIS[key].encode_response(correlation_id, zxid, message, 0))


@pytest.mark.parametrize("stat", [LEAST, STAT, WIDE, MOST], ids=["least", "usual", "wide", "most"])
@pytest.mark.parametrize(
    "size", [None, 0, 1, 127, 128, 256, MAX_JOINED_DATA_BYTES, MAX_JOINED_DATA_BYTES + 1, 70_000]
)
def test_replies_that_show_a_node(size: int | None, stat: Stat) -> None:
    data = None if size is None else b"d" * size
    node = Node(data, stat)
    native = codec()
    for first in (native.append_data, native.append_stat):
        node.encoded_data = node.encoded_stat = None
        first([], 1, ZXID, node)
        for correlation_id in (1, 300, (1 << 32) - 1):
            out: list[bytes] = []
            native.append_data(out, correlation_id, ZXID, node)
            native.append_stat(out, correlation_id, ZXID, node)
            native.append_data(out, correlation_id, ZXID, node)
            shown = by_schema(1004, correlation_id, ZXID, zk.GetDataResponse(stat, data))
            alone = by_schema(1003, correlation_id, ZXID, zk.StatResponse(stat))
            assert b"".join(out) == shown + alone + shown


def test_short_data_is_joined_and_long_data_is_not_copied() -> None:
    native = codec()
    short, long = (Node(bytes(MAX_JOINED_DATA_BYTES + more), STAT) for more in (0, 1))
    for node, count in ((short, 1), (long, 2)):
        for _ in range(2):
            out: list[bytes] = []
            native.append_data(out, 1, ZXID, node)
            assert len(out) == count
    assert out[1] is long.data


def test_every_reply_and_the_empty_one() -> None:
    native = codec()
    for key, messages in ZK_RESPONSES.items():
        for message in messages:
            assert native.reply(key, 9, ZXID, message) == by_schema(key, 9, ZXID, message)
    assert native.empty(9, ZXID) == by_schema(1011, 9, ZXID, zk.Empty())


def test_errors_and_events() -> None:
    native = codec()
    for code in (-1, -101, -1001):
        for text in ("", "no /a", "é" * 900):
            expected = b"".join(encode_error(77, code, ZXID, text))
            assert native.error(77, code, ZXID, text) == expected
    event = b"".join(encode_event(1, ZXID, zk.WATCH_EVENT, zk.WatchEvent(3, 3, "/é")))
    assert native.event(ZXID, 3, "/é") == event
