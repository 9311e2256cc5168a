"""Replies and events as a real server writes them."""

from __future__ import annotations

from typing import Any

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.jute_codec import JuteCodec
from duolog_protocol.jute_decoder import JuteDecoder
from duolog_protocol.types import Acl, Stat
from duolog_protocol.zk_codec import MAX_JOINED_DATA_BYTES
from tests.jute_support import (
    Body,
    Reply,
    Session,
    connect_request,
    frame,
    frames_of,
    i32,
    request,
)
from tests.unit.protocol.test_jute_decoder import golden

STAT = Stat(
    (1 << 32) + 2, (1 << 32) + 3, 1_700_000_000_000, 1_700_000_000_250, 1, -1, 3, 77, 2, 5, 1 << 33
)
ZXID = (1 << 32) + 9


class Node:
    """A znode as the codec sees it; counts how often its Stat is asked for."""

    def __init__(self, data: bytes | None, stat: Stat = STAT) -> None:
        self.data = data
        self.encoded_data: Any = None
        self.encoded_stat: bytes | None = None
        self.jute_body: bytes | None = None
        self._stat = stat
        self.asked = 0

    def stat_fields(self) -> tuple[int, ...]:
        self.asked += 1
        return self._stat


def codec(*, read_only_byte: bool = True, session: bool = True) -> JuteCodec:
    decoder = JuteDecoder(1 << 20)
    decoder.feed(connect_request(read_only=False if read_only_byte else None))
    made = JuteCodec(decoder)
    made.known_peer = session
    return made


def body_of(content: bytes, xid: int = 7, zxid: int = ZXID) -> Body:
    (one,) = frames_of(content)
    reply = Reply.of(one)
    assert reply[:3] == (xid, zxid, 0)
    return Body(reply.body)


def test_the_frames_of_a_real_server_are_written_to_the_byte() -> None:
    frames = golden("S")
    one = 1 << 32
    jute = codec(session=False)
    password = bytes.fromhex("b4c44b5931aa8152b2484aab6228aba1")
    jute.known_peer = True
    connected = zk.ConnectResponse(10_000, 0x1000032109A0000, password, False, 1)
    assert jute.reply(1000, 0, one + 1, connected) == frames["connect"]
    assert jute.reply(1001, 1, one + 2, zk.CreateResponse("/g", STAT)) == frames["create"]
    created_ms = 0x1A201A972CC
    first = Stat(one + 2, one + 2, created_ms, created_ms, 0, 0, 0, 0, 2, 0, one + 2)
    out: list[bytes] = []
    jute.append_data(out, 2, one + 2, Node(b"hi", first))
    assert b"".join(out) == frames["getData"]
    assert jute.event(-1, 3, "/g") == frames["event"]
    second = first._replace(mzxid=one + 3, mtime=0x1A201A972D0, version=1)
    out = []
    jute.append_stat(out, 3, one + 3, Node(b"yo", second))
    assert b"".join(out) == frames["setData"]
    assert jute.error(4, ZkErrorCode.BAD_VERSION, one + 4, "the text is lost") == frames["delete"]
    root = Stat(*[0] * 9, 2, one + 2)
    children = zk.GetChildrenResponse(root, ["zookeeper", "g"])
    assert jute.reply(1012, 5, one + 4, children) == frames["getChildren2"]
    assert jute.empty(-4, one + 4) == frames["auth"]
    assert jute.empty(-2, one + 4) == frames["ping"]
    results = [zk.MultiResult(13, 0, None, None), zk.MultiResult(2, 0, None, None)]
    assert jute.reply(1014, 6, one + 5, zk.MultiResponse(results)) == frames["multi"]
    assert jute.empty(7, one + 6) == frames["closeSession"]


def test_the_answer_to_a_connect_has_the_read_only_byte_if_the_client_sent_one() -> None:
    connected = zk.ConnectResponse(4000, -5, b"p" * 16, True, 1)
    for with_byte in (True, False):
        (content,) = frames_of(codec(read_only_byte=with_byte).reply(1000, 0, 1, connected))
        assert Session.of(content) == (4000, -5, b"p" * 16, True if with_byte else None)
        jute = codec(read_only_byte=with_byte, session=False)
        (content,) = frames_of(jute.error(0, ZkErrorCode.SESSION_EXPIRED, 1, "gone"))
        assert Session.of(content) == (0, 0, bytes(16), False if with_byte else None)


@pytest.mark.parametrize("code", [-1001, -1003, -8, -115, -124])
def test_every_other_refusal_of_a_connect_is_silence(code: int) -> None:
    assert codec(session=False).error(0, code, 1, "no") == b""


@pytest.mark.parametrize("data", [None, b"", b"hello", bytes(MAX_JOINED_DATA_BYTES)])
def test_the_body_of_a_node_is_encoded_once_and_its_end_is_the_stat(data: bytes | None) -> None:
    jute, node = codec(), Node(data)
    for xid in (1, 2):
        out: list[bytes] = []
        jute.append_data(out, xid, ZXID, node)
        jute.append_stat(out, xid, ZXID, node)
        got, exists = frames_of(b"".join(out))
        body = body_of(frame(got), xid)
        assert (body.buffer(), body.stat()) == (data, STAT)
        body.end()
        body = body_of(frame(exists), xid)
        assert body.stat() == STAT
        body.end()
    assert node.asked == 1


def test_a_stat_alone_does_not_encode_the_data() -> None:
    node = Node(b"hello")
    out: list[bytes] = []
    codec().append_stat(out, 1, ZXID, node)
    assert node.jute_body is None
    assert body_of(out[0], 1).stat() == STAT


def test_long_data_is_sent_as_it_is_and_never_kept_twice() -> None:
    node = Node(bytes(MAX_JOINED_DATA_BYTES + 1))
    out: list[bytes] = []
    codec().append_data(out, 7, ZXID, node)
    assert any(piece is node.data for piece in out)
    assert node.jute_body is None
    body = body_of(b"".join(out))
    assert (body.buffer(), body.stat()) == (node.data, STAT)
    body.end()


def test_replies_of_the_other_operations() -> None:
    jute = codec()

    def reply(api_key: int, message: Any) -> Body:
        return body_of(jute.reply(api_key, 7, ZXID, message))

    body = reply(1015, zk.CreateResponse("/é", STAT))
    assert (body.ustring(), body.stat()) == ("/é", STAT)
    body.end()
    body = reply(1008, zk.GetChildrenResponse(STAT, ["a", "ü"]))
    assert body.ustrings() == ["a", "ü"]
    body.end()
    acl = (Acl(31, "world", "anyone"), Acl(1, "digest", "bob:x"))
    body = reply(1006, zk.GetAclResponse(acl, STAT))
    assert (body.acl(), body.stat()) == (acl, STAT)
    body.end()
    for api_key in (1003, 1005, 1007):
        body = reply(api_key, zk.StatResponse(STAT))
        assert body.stat() == STAT
        body.end()
    body = reply(1004, zk.GetDataResponse(STAT, None))
    assert (body.buffer(), body.stat()) == (None, STAT)
    body.end()
    body = reply(1009, zk.SyncResponse("/a"))
    assert body.ustring() == "/a"
    body.end()
    body = reply(1016, zk.GetDataResponse(STAT, b"server.1"))
    assert (body.buffer(), body.stat()) == (b"server.1", STAT)
    body.end()
    body = reply(1103, zk.GetEphemeralsResponse(["/a", "/b"]))
    assert body.ustrings() == ["/a", "/b"]
    body.end()
    body = reply(1104, zk.GetAllChildrenNumberResponse(12))
    assert body.i32() == 12
    body.end()
    identities = (zk.ClientIdentity("ip", "::1"), zk.ClientIdentity("digest", "bob"))
    body = reply(1107, zk.WhoAmIResponse(identities))
    assert body.i32() == 2
    assert [body.ustring() for _ in range(4)] == ["ip", "::1", "digest", "bob"]
    body.end()
    body = reply(1106, zk.Empty())
    assert body.data == i32(0)
    for api_key in (1002, 1011, 1013, 1017, 1018, 1105, 1111):
        reply(api_key, zk.Empty()).end()


def test_results_of_a_multi() -> None:
    results = [
        zk.MultiResult(1, 0, "/a-0000000001", STAT),
        zk.MultiResult(15, 0, "/c", STAT),
        zk.MultiResult(5, 0, None, STAT),
        zk.MultiResult(2, 0, None, None),
        zk.MultiResult(13, 0, None, None),
    ]
    body = body_of(codec().reply(1014, 7, ZXID, zk.MultiResponse(results)))
    expected = [(1, "/a-0000000001"), (15, ("/c", STAT)), (5, STAT), (2, None), (13, None)]
    assert body.multi() == expected
    body.end()
    body = body_of(codec().reply(1014, 7, ZXID, zk.MultiResponse([])))
    assert body.multi() == []
    body.end()


def test_a_multi_that_failed_has_an_error_for_each_operation() -> None:
    results = [zk.MultiResult(-1, code, None, None) for code in (0, -101, -2)]
    content = codec().reply(1014, 7, ZXID, zk.MultiResponse(results))
    (one,) = frames_of(content)
    assert Reply.of(one).body == bytes.fromhex(
        "ffffffff 00 00000000 00000000"
        "ffffffff 00 ffffff9b ffffff9b"
        "ffffffff 00 fffffffe fffffffe"
        "ffffffff 01 ffffffff"
    )


def test_results_of_a_multi_read() -> None:
    results = [
        zk.ReadResult(4, 0, b"hello", STAT, None),
        zk.ReadResult(4, 0, None, STAT, None),
        zk.ReadResult(8, 0, None, None, "a/ü".encode()),
        zk.ReadResult(8, 0, None, None, b""),
        zk.ReadResult(-1, -101, None, None, None),
    ]
    body = body_of(codec().reply(1022, 7, ZXID, zk.MultiReadResponse(results)))
    expected = [(4, (b"hello", STAT)), (4, (None, STAT)), (8, ["a", "ü"]), (8, []), (-1, -101)]
    assert body.multi() == expected
    body.end()


def test_errors_of_ours_are_told_in_words_that_zookeeper_knows() -> None:
    told = {}
    for code in ZkErrorCode:
        if code != 0:
            (content,) = frames_of(codec().error(3, code, ZXID, "text"))
            reply = Reply.of(content)
            assert (reply.xid, reply.zxid, reply.body) == (3, ZXID, b"")
            told[code] = reply.err
    assert all(err == code for code, err in told.items() if code > -1000)
    assert {code: err for code, err in told.items() if code < -1000} == {
        ZkErrorCode.SERVER_BEHIND_CLIENT: ZkErrorCode.SYSTEM_ERROR,
        ZkErrorCode.UNSUPPORTED_VERSION: ZkErrorCode.SYSTEM_ERROR,
        ZkErrorCode.STORAGE_FULL: ZkErrorCode.SYSTEM_ERROR,
        ZkErrorCode.REQUEST_TOO_LARGE: ZkErrorCode.BAD_ARGUMENTS,
    }


def test_auth_and_sasl_name_no_zxid_and_a_failed_sasl_has_a_null_token() -> None:
    decoder = JuteDecoder(1 << 20)
    decoder.feed(connect_request())
    jute = JuteCodec(decoder)
    jute.known_peer = True
    (content,) = frames_of(jute.error(-4, -115, ZXID))
    assert Reply.of(content) == (-4, 0, -115, b"")
    ((_, xid, _),) = decoder.feed(request(12, 102, i32(2) + b"ab"))
    (content,) = frames_of(jute.reply(1102, xid, ZXID, zk.SaslToken(b"challenge")))
    assert Reply.of(content) == (12, 0, 0, i32(9) + b"challenge")
    (content,) = frames_of(jute.error(xid, -115, ZXID))
    assert Reply.of(content) == (12, 0, -115, i32(-1))


def test_an_event_has_the_zxid_of_its_change() -> None:
    (content,) = frames_of(codec().event(ZXID, 1, "/é"))
    reply = Reply.of(content)
    assert reply[:3] == (-1, ZXID, 0)
    body = Body(reply.body)
    assert (body.i32(), body.i32(), body.ustring()) == (1, 3, "/é")
    body.end()
