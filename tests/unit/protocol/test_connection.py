"""A server's end of a connection tells its callers apart, however their first bytes arrive."""

from __future__ import annotations

from typing import Any

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.connection import ServerConnection, ServerState
from duolog_protocol.frames import FrameDecoder
from duolog_protocol.jute_decoder import JuteDecoder
from duolog_protocol.preamble import PREAMBLE, Caller
from duolog_protocol.zk_decoder import NativeDecoder
from tests.jute_support import connect_request, encode, i32


def take_jute(scratch: memoryview) -> JuteDecoder:
    return JuteDecoder(1000, scratch)


def take_native(scratch: memoryview) -> NativeDecoder:
    return NativeDecoder(2000, scratch)


def feed(connection: ServerConnection, data: bytes) -> list[Any]:
    view = connection.get_buffer()
    view[: len(data)] = data
    return connection.buffer_updated(len(data))


JUTE = connect_request() + encode(1, 4, zk.GetDataRequest("/a", False))
NATIVE = PREAMBLE + b"".join(zk.GET_DATA.encode_request(1, zk.GetDataRequest("/a", False), 0))


@pytest.mark.parametrize(
    ("stream", "caller", "decoder", "count"),
    [
        (JUTE, Caller.LENGTH_PREFIXED, JuteDecoder, 2),
        (NATIVE, Caller.NATIVE, FrameDecoder, 1),
    ],
    ids=["jute", "native"],
)
def test_each_kind_of_client_gets_its_decoder(
    stream: bytes, caller: Caller, decoder: type, count: int
) -> None:
    for cut in range(len(stream) + 1):
        connection = ServerConnection(None, take_jute)
        found = feed(connection, stream[:cut]) + feed(connection, stream[cut:])
        assert (len(found), connection.caller) == (count, caller)
        assert connection.state is ServerState.OPEN
        assert type(connection.decoder) is decoder
        assert connection.pending_bytes == 0
        assert connection.first_bytes == b""


def test_a_caller_with_a_length_is_foreign_where_nobody_takes_it() -> None:
    connection = ServerConnection()
    assert feed(connection, JUTE[:30]) == []
    assert feed(connection, JUTE[30:]) == []
    assert connection.state is ServerState.FOREIGN
    assert connection.caller is Caller.LENGTH_PREFIXED
    assert connection.first_bytes == JUTE


def test_the_limit_of_the_kind_that_came_is_raised() -> None:
    connection = ServerConnection(None, take_jute)
    feed(connection, connect_request())
    connection.raise_limit(2000)
    longer = encode(1, 5, zk.SetDataRequest("/a", bytes(1500), -1))
    assert feed(connection, longer) == [(1005, 1, ("/a", bytes(1500), -1))]


def test_a_native_client_gets_the_decoder_that_was_asked_for() -> None:
    for cut in range(len(NATIVE) + 1):
        connection = ServerConnection(None, take_jute, take_native)
        found = feed(connection, NATIVE[:cut]) + feed(connection, NATIVE[cut:])
        assert found == [(1004, 1, ("/a", False))]
        assert type(connection.decoder) is NativeDecoder
    other = ServerConnection(None, take_jute, take_native)
    assert len(feed(other, JUTE)) == 2
    assert type(other.decoder) is JuteDecoder


@pytest.mark.parametrize("first", [b"ruok", b"\x16\x03\x01\x00", i32(-1), b"GET "])
def test_whoever_else_calls_stays_foreign(first: bytes) -> None:
    connection = ServerConnection(None, take_jute)
    assert feed(connection, first) == []
    assert connection.state is ServerState.FOREIGN
