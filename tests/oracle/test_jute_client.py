"""The oracle's own client against bytes that a real Apache ZooKeeper 3.8.0 has sent and taken."""

from __future__ import annotations

import pytest

from . import jute
from .jute import OPEN_ACL, Event, JuteError, OpResult, Reply

REQUESTS = {
    "00000033 00000001 00000001 000000022f67 000000026869 00000001 0000001f 00000005776f726c64"
    "00000006616e796f6e65 00000000": (1, "create", ("/g", b"hi", OPEN_ACL, 0)),
    "0000000f 00000002 00000004 000000022f67 01": (2, "get_data", ("/g", True)),
    "00000018 00000003 00000005 000000022f67 00000002796f 00000000": (
        *(3, "set_data"),
        ("/g", b"yo", 0),
    ),
    "00000012 00000004 00000002 000000022f67 00000009": (4, "delete", ("/g", 9)),
    "0000000e 00000005 0000000c 000000012f 00": (5, "get_children2", ("/", False)),
    "0000001d fffffffc 00000064 00000000 00000006646967657374 00000003753a70": (
        *(-4, "auth"),
        (0, "digest", b"u:p"),
    ),
    "00000008 fffffffe 0000000b": (-2, "ping", ()),
    "00000037 00000006 0000000e 0000000d 00 ffffffff 000000022f67 00000001 00000002 00 ffffffff"
    "000000022f67 00000001 ffffffff 01 ffffffff": (
        *(6, "multi"),
        ((("check", "/g", 1), ("delete", "/g", 1)),),
    ),
    "00000008 00000007 fffffff5": (7, "close", ()),
}


@pytest.mark.parametrize("text", REQUESTS, ids=lambda text: REQUESTS[text][1])
def test_requests_are_those_of_the_golden_vectors(text: str) -> None:
    xid, name, arguments = REQUESTS[text]
    assert jute.encode_request(name, xid, arguments) == bytes.fromhex(text)


def test_a_connect_is_that_of_the_golden_vector() -> None:
    head = "0000002d 00000000 0000000000000000 00002710 0000000000000000 00000010"
    expected = bytes.fromhex(head) + bytes(16) + b"\0"
    assert jute.encode_connect(0, 10_000, 0, bytes(16), read_only=False) == expected
    old = jute.encode_connect(0, 10_000, 0, bytes(16), read_only=None)
    assert old == b"\0\0\0\x2c" + expected[4:-1]


def test_replies_are_read() -> None:
    created = bytes.fromhex("00000001 0000000100000002 00000000 000000022f67")
    assert jute.decode_reply("create", created) == Reply(1, 0x100000002, 0, ("/g",), b"")
    failed = bytes.fromhex("00000004 0000000100000004 ffffff99")
    assert jute.decode_reply("delete", failed) == Reply(4, 0x100000004, -103, (), b"")
    multi = bytes.fromhex(
        "00000006 0000000100000005 00000000 0000000d 00 00000000 00000002 00 00000000"
        "ffffffff 01 ffffffff"
    )
    results = (OpResult(13, 0, ()), OpResult(2, 0, ()))
    assert jute.decode_reply("multi", multi).values == (results,)


def test_an_event_is_read() -> None:
    body = bytes.fromhex("ffffffff ffffffffffffffff 00000000 00000003 00000003 000000022f67")
    assert jute.is_event(body)
    assert jute.decode_event(body) == Event(-1, 0, 3, 3, "/g", b"")


def test_a_reply_that_is_cut_is_an_error() -> None:
    whole = bytes.fromhex("00000001 0000000100000002 00000000 000000022f67")
    for size in range(len(whole)):
        with pytest.raises(JuteError):
            jute.decode_reply("create", whole[:size])
