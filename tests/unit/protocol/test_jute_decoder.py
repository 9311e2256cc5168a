"""Bytes of ZooKeeper clients to requests: whole, in pieces, cut off, too long, lying."""

from __future__ import annotations

import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from duolog_protocol import zk_messages as zk
from duolog_protocol.jute import JuteReader
from duolog_protocol.jute_decoder import JuteDecoder, JuteRequest
from duolog_protocol.jute_requests import BODIES
from duolog_protocol.types import OPEN_ACL_UNSAFE, Acl
from duolog_protocol.zk_codec import REFUSED, Refusal
from tests.jute_support import (
    boolean,
    buffer,
    connect_request,
    encode,
    frame,
    i32,
    i64,
    multi,
    request,
    ustring,
    vector,
)
from tests.unit.protocol.jute_samples import SAMPLES

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests/golden/jute.txt"
WIRE = ROOT / "protocol/WIRE.md"
LIMIT = 1 << 20
MARSHALLING_ERROR = -5


def golden(side: str) -> dict[str, bytes]:
    lines = [line for line in GOLDEN.read_text().splitlines() if line.startswith(side + " ")]
    return {
        name.removeprefix(side + " "): bytes.fromhex(text)
        for name, text in (line.split(": ") for line in lines)
    }


def opened(limit: int = LIMIT) -> JuteDecoder:
    """A decoder that has seen its connect."""
    decoder = JuteDecoder(limit)
    ((api_key, _, _),) = decoder.feed(connect_request())
    assert api_key == 1000
    return decoder


def refusals(requests: list[JuteRequest]) -> list[Refusal]:
    return [message for api_key, _, message in requests if api_key == REFUSED]


def only_refusal(requests: list[JuteRequest]) -> Refusal:
    ((api_key, _, message),) = requests
    assert api_key == REFUSED
    assert isinstance(message, Refusal)
    return message


def test_the_frames_of_a_real_session_are_understood() -> None:
    frames = golden("C")
    requests = JuteDecoder(LIMIT).feed(b"".join(frames.values()))
    assert dict(zip(frames, requests, strict=True)) == {
        "connect": (1000, 0, zk.ConnectRequest(0, 10_000, 0, bytes(16), False)),
        "create": (1001, 1, zk.CreateRequest("/g", b"hi", OPEN_ACL_UNSAFE, 0, -1)),
        "getData": (1004, 2, zk.GetDataRequest("/g", True)),
        "setData": (1005, 3, zk.SetDataRequest("/g", b"yo", 0)),
        "delete": (1002, 4, zk.DeleteRequest("/g", 9)),
        "getChildren2": (1012, 5, zk.GetChildrenRequest("/", False)),
        "auth": (1100, -4, zk.AuthRequest("digest", b"u:p")),
        "ping": (1011, -2, zk.Empty()),
        "multi": (
            1014,
            6,
            zk.MultiRequest(
                (
                    zk.MultiOp(13, "/g", None, None, 0, -1, 1),
                    zk.MultiOp(2, "/g", None, None, 0, -1, 1),
                )
            ),
        ),
        "closeSession": (1111, 7, zk.Empty()),
    }


@pytest.mark.parametrize(("op", "api_key", "message"), SAMPLES)
def test_every_request_becomes_its_message(op: int, api_key: int, message: Any) -> None:
    for xid in (1, 0, -1, -8, (1 << 31) - 1, -(1 << 31)):
        assert opened().feed(encode(xid, op, message)) == [(api_key, xid, message)]


@pytest.mark.parametrize(("op", "api_key", "message"), SAMPLES)
def test_what_is_cut_by_hand_equals_what_the_readers_make(
    op: int, api_key: int, message: Any
) -> None:
    body = encode(1, op, message)[12:]
    key, read = BODIES[op]
    assert (key, read(JuteReader(body, 0, len(body)))) == (api_key, message)


def test_all_operations_have_a_sample() -> None:
    assert {op for op, _, _ in SAMPLES} | {11} == set(BODIES)


def test_the_specification_lists_every_operation_with_its_api() -> None:
    section = WIRE.read_text().partition("## 5. ZooKeeper's clients")[2]
    rows = re.findall(r"^\| ([-0-9, ]+) \| [^|]+ \| (\d+) \|", section, re.MULTILINE)
    listed = {int(op): int(key) for ops, key in rows for op in ops.split(",")}
    assert listed == {op: key for op, (key, _) in BODIES.items()}


def test_requests_survive_any_way_of_arriving() -> None:
    rng = random.Random(5)
    big = zk.SetDataRequest("/big", rng.randbytes(300_000), -1)
    samples = [*SAMPLES, (5, 1005, big), (4, 1004, zk.GetDataRequest("/" + "x" * 70_000, False))]
    rng.shuffle(samples)
    frames = [encode(xid, op, message) for xid, (op, _, message) in enumerate(samples)]
    stream = connect_request() + b"".join(frames)
    expected = [(key, xid, message) for xid, (_, key, message) in enumerate(samples)]
    for round_ in range(30):
        cuts = sorted(rng.randrange(len(stream)) for _ in range(round_ * 3))
        decoder = JuteDecoder(LIMIT)
        found: list[JuteRequest] = []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            found += decoder.feed(stream[start:end])
        assert found[1:] == expected
        assert decoder.pending_bytes == 0


def test_byte_by_byte_and_cut_at_every_length() -> None:
    frames = [connect_request(), *[encode(7, op, message) for op, _, message in SAMPLES]]
    stream = b"".join(frames)
    whole = JuteDecoder(LIMIT).feed(stream)
    decoder = JuteDecoder(LIMIT)
    assert [each for byte in stream for each in decoder.feed(bytes([byte]))] == whole
    ends = [sum(map(len, frames[: count + 1])) for count in range(len(frames))]
    for cut in range(len(stream)):
        decoder = JuteDecoder(LIMIT)
        before = decoder.feed(stream[:cut])
        assert len(before) == sum(end <= cut for end in ends)
        assert decoder.pending_bytes == cut - max([0, *[end for end in ends if end <= cut]])
        assert before + decoder.feed(stream[cut:]) == whole


@pytest.mark.parametrize(("op", "api_key", "message"), SAMPLES)
def test_a_body_cut_at_every_length_is_refused_in_its_place(
    op: int, api_key: int, message: Any
) -> None:
    body = encode(1, op, message)[12:]
    ping = (1011, -2, zk.Empty())
    for size in range(len(body)):
        requests = opened().feed(request(9, op, body[:size]) + request(-2, 11))
        assert requests[1] == ping
        key, xid, refusal = requests[0]
        assert (key, xid) == (REFUSED, 9)
        if op in (100, 102):
            assert (refusal.code, refusal.closes) == (0, True)
        else:
            assert (refusal.code, refusal.closes) == (MARSHALLING_ERROR, False)


@pytest.mark.parametrize(("op", "api_key", "message"), SAMPLES)
def test_bytes_behind_the_last_field_are_ignored(op: int, api_key: int, message: Any) -> None:
    body = encode(1, op, message)[12:]
    for tail in (b"\x00", b"\xff" * 4, b"tail" * 30):
        assert opened().feed(request(1, op, body + tail)) == [(api_key, 1, message)]


def test_a_ping_is_answered_with_the_xid_of_pings() -> None:
    assert opened().feed(request(77, 11)) == [(1011, -2, zk.Empty())]


def test_the_kind_of_a_created_node_in_a_multi_follows_from_its_flags() -> None:
    body = ustring("/a") + buffer(b"") + vector(None)
    for op, flags, kind in (
        (1, 0, 1),
        (1, 4, 15),
        (15, 0, 1),
        (15, 4, 15),
        (19, 0, 1),
        (19, 4, 15),
    ):
        ((_, _, message),) = opened().feed(request(1, 14, multi([(op, body + i32(flags))])))
        assert [(each.kind, each.flags) for each in message.ops] == [(kind, flags)]
    ((_, _, message),) = opened().feed(request(1, 14, multi([(21, body + i32(6) + i64(5))])))
    assert [(each.kind, each.ttl_ms) for each in message.ops] == [(15, 5)]


@pytest.mark.parametrize(
    ("read_only", "password", "expected"),
    [
        (None, bytes(16), (False, bytes(16), False)),
        (False, bytes(16), (True, bytes(16), False)),
        (True, b"p" * 16, (True, b"p" * 16, True)),
        (True, None, (True, b"", True)),
        (False, b"short", (True, b"short", False)),
    ],
)
def test_a_connect_with_and_without_the_read_only_byte(
    read_only: bool | None, password: bytes | None, expected: tuple[bool, bytes, bool]
) -> None:
    decoder = JuteDecoder(LIMIT)
    ((key, xid, message),) = decoder.feed(
        connect_request(-5, -1, -77, password, read_only=read_only)
    )
    assert (key, xid, message[:3]) == (1000, 0, (-5, -1, -77))
    assert (decoder.with_read_only, message.password, message.read_only) == expected


def test_a_connect_with_more_behind_it_is_still_a_connect() -> None:
    longer = frame(connect_request()[4:] + b"zzz")
    assert len(JuteDecoder(LIMIT).feed(longer)) == 1


@pytest.mark.parametrize("size", range(44))
def test_a_connect_cut_at_every_length_ends_the_connection(size: int) -> None:
    body = connect_request(read_only=None)[4:]
    assert len(body) == 44
    decoder = JuteDecoder(LIMIT)
    refusal = only_refusal(decoder.feed(frame(body[:size]) + request(-2, 11)))
    assert (refusal.code, refusal.closes) == (0, True)
    assert decoder.feed(connect_request()) == []


NULL = i32(-1)
HOSTILE: list[tuple[int, bytes]] = [
    (4, NULL + b"\x00"),
    (4, i32(-2) + b"\x00"),
    (4, i32(1 << 30) + b"/a\x00"),
    (4, i32(-(1 << 31)) + b"/a\x00"),
    (5, NULL + buffer(b"x") + i32(-1)),
    (5, ustring("/a") + i32(-2) + i32(-1)),
    (5, ustring("/a") + i32(1 << 30) + i32(-1)),
    (5, i32((1 << 31) - 1) + b"/a" * 10),
    (1, NULL + buffer(b"x") + vector(None) + i32(0)),
    (1, ustring("/a") + buffer(b"x") + i32((1 << 31) - 1) + i32(31)),
    (1, ustring("/a") + buffer(b"x") + vector([i32(31) + ustring("world") + NULL]) + i32(0)),
    (1, ustring("/a") + buffer(b"x") + vector([i32(1) + ustring("s" * 65) + ustring("")]) + i32(0)),
    (
        1,
        ustring("/a")
        + buffer(b"x")
        + vector([i32(1) + ustring("") + ustring("i" * 1025)])
        + i32(0),
    ),
    (1, ustring("/a") + buffer(b"x") + vector([i32(1) + ustring("") + ustring("")] * 65) + i32(0)),
    (2, NULL + i32(-1)),
    (2, i32(1 << 30) + i32(-1)),
    (9, NULL),
    (14, b""),
    (14, i32(13) + b"\x00" + i32(-1) + ustring("/a") + i32(1)),
    (14, multi([(4, ustring("/a") + b"\x00")])),
    (14, multi([(20, ustring("/a"))])),
    (14, multi([(-1, b"")])),
    (14, multi([(13, ustring("/a") + i32(1)), (8, ustring("/a") + b"\x00")])),
    (14, multi([(13, NULL + i32(1))])),
    (14, multi([(13, ustring("") + i32(1))] * 1025)),
    (22, multi([(5, ustring("/a") + buffer(b"") + i32(1))])),
    (22, multi([(12, ustring("/a") + b"\x00")])),
    (22, multi([(4, ustring("/a") + b"\x00")] * 1025)),
    (101, i64(0) + i32((1 << 31) - 1)),
    (101, i64(0) + i32(3) + ustring("") * 2),
    (101, i64(0) + vector([NULL]) + vector([]) + vector([])),
    (105, i64(0) + vector([]) * 3),
    (106, NULL + i32(0)),
]


@pytest.mark.parametrize(("op", "body"), HOSTILE)
def test_a_body_that_lies_is_refused_and_the_connection_goes_on(op: int, body: bytes) -> None:
    decoder = opened()
    tracemalloc.start()
    requests = decoder.feed(request(3, op, body) + request(-2, 11))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert requests[1] == (1011, -2, zk.Empty())
    key, xid, refusal = requests[0]
    assert (key, xid, refusal.code, refusal.closes) == (REFUSED, 3, MARSHALLING_ERROR, False)
    assert peak < 64 * 1024 + 16 * len(body)


@pytest.mark.parametrize("op", [0, -1, -2, -10, -12, 10, 13, 23, 99, 108, 500, 1004, (1 << 31) - 1])
def test_an_unknown_operation_is_named_with_zxid_minus_one_and_ends_the_connection(op: int) -> None:
    refusal = only_refusal(opened().feed(request(3, op, ustring("/a") + i32(-1))))
    assert (refusal.code, refusal.closes, refusal.zxid) == (-6, True, -1)


def test_clients_may_not_delete_containers_as_a_server_does() -> None:
    refusal = only_refusal(opened().feed(request(3, 20, ustring("/a"))))
    assert (refusal.code, refusal.closes) == (-8, False)


@pytest.mark.parametrize("limit", [64, 100_000, 1_048_575])
def test_a_frame_at_the_limit_is_taken_and_one_past_it_ends_the_connection(limit: int) -> None:
    overhead = len(request(1, 5, ustring("/a") + buffer(b"") + i32(-1))) - 4
    for more in (0, 1):
        message = zk.SetDataRequest("/a", bytes(limit - overhead + more), -1)
        stream = encode(1, 5, message) + request(-2, 11)
        for step in (len(stream), 4096):
            decoder = opened(limit)
            found: list[JuteRequest] = []
            for start in range(0, len(stream), step):
                found += decoder.feed(stream[start : start + step])
            if not more:
                assert found == [(1005, 1, message), (1011, -2, zk.Empty())]
                continue
            refusal = only_refusal(found)
            assert (refusal.code, refusal.closes) == (0, True)
            assert f"{limit + 1} bytes is over the limit of {limit}" in refusal.message
            decoder.max_frame_bytes = 1 << 30
            assert decoder.feed(request(-2, 11)) == []


@pytest.mark.parametrize("length", [-1, -(1 << 31), 0, 1, 7, (1 << 31) - 1])
def test_a_length_that_holds_no_header_ends_the_connection_after_what_came_before(
    length: int,
) -> None:
    for rest in (b"", bytes(40)):
        decoder = opened()
        requests = decoder.feed(
            request(-2, 11) + i32(length) + bytes(max(0, min(length, 7))) + rest
        )
        assert requests[0] == (1011, -2, zk.Empty())
        refusal = only_refusal(requests[1:])
        assert (refusal.code, refusal.closes) == (0, True)
        assert decoder.feed(request(-2, 11)) == []
        assert decoder.pending_bytes == 0


def test_a_peer_that_only_claims_a_length_gets_no_memory_for_it() -> None:
    decoder = opened(64 << 20)
    decoder.feed(i32(64 << 20) + bytes(8))
    assert len(decoder.get_buffer()) <= 64 * 1024
    decoder.feed(bytes(200_000))
    assert len(decoder.get_buffer()) <= 400_000


def test_a_vector_of_empty_strings_costs_no_more_than_it_weighs() -> None:
    body = i64(0) + (i32(20_000) + ustring("") * 20_000) + vector([]) * 2
    frames = request(1, 101, body)
    decoder = opened()
    tracemalloc.start()
    ((key, _, message),) = decoder.feed(frames)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (key, len(message.data_watches)) == (1105, 20_000)
    assert peak < 8 * len(frames)


def test_text_that_is_no_utf8_becomes_a_path_that_cannot_exist() -> None:
    for op, tail in ((4, b"\x00"), (3, b"\x01"), (5, buffer(b"x") + i32(-1)), (2, i32(-1))):
        ((_, _, message),) = opened().feed(request(1, op, buffer(b"/a\xff\xed\xa0\x80") + tail))
        assert "\ufffd" in message[0]
        assert message[0].startswith("/a")


def test_whatever_is_not_zero_is_true() -> None:
    for byte in (0, 1, 2, 255):
        ((_, _, message),) = opened().feed(request(1, 4, ustring("/a") + bytes([byte])))
        assert message == ("/a", byte != 0)
    assert boolean(True) == b"\x01"


def test_bits_of_an_acl_entry_that_mean_nothing_are_dropped() -> None:
    entry = i32(-1) + ustring(None) + ustring("anyone")
    body = ustring("/a") + buffer(b"") + vector([entry]) + i32(0)
    ((_, _, message),) = opened().feed(request(1, 1, body))
    assert message.acl == (Acl(31, "", "anyone"),)


@pytest.mark.parametrize("scheme", ["auth", "x509", "nonsense", ""])
def test_a_null_id_is_empty_where_nobody_reads_it(scheme: str) -> None:
    """kazoo writes CREATOR_ALL_ACL so."""
    entry = i32(31) + ustring(scheme) + NULL
    body = ustring("/a") + buffer(b"") + vector([entry]) + i32(0)
    ((_, _, message),) = opened().feed(request(1, 1, body))
    assert message.acl == (Acl(31, scheme, ""),)


def test_a_null_vector_is_empty_and_a_null_acl_is_none() -> None:
    ((_, _, message),) = opened().feed(request(-8, 101, i64(5) + NULL + i32(-7) + NULL))
    assert message == zk.SetWatchesRequest(5, [], [], [], [], [], False)
    body = ustring("/a") + buffer(None) + NULL + i32(0)
    ((_, _, created),) = opened().feed(request(1, 1, body))
    assert created == zk.CreateRequest("/a", None, None, 0, -1)


def test_a_credential_has_a_bound_and_a_null_one_proves_nothing() -> None:
    for size, taken in ((zk.MAX_CREDENTIAL_BYTES, True), (zk.MAX_CREDENTIAL_BYTES + 1, False)):
        message = zk.AuthRequest("digest", b"u:" + b"p" * (size - 2))
        ((key, _, _),) = opened().feed(encode(-4, 100, message))
        assert key == (1100 if taken else REFUSED)
    null = request(-4, 100, i32(0) + ustring("digest") + NULL)
    assert opened().feed(null) == [(1100, -4, zk.AuthRequest("", b""))]


def test_a_null_sasl_token_is_an_empty_one() -> None:
    """kazoo begins so."""
    assert opened().feed(request(3, 102, NULL)) == [(1102, 3, zk.SaslToken(b""))]


def test_connections_of_one_loop_may_share_their_scratch_buffer() -> None:
    scratch = memoryview(bytearray(16))
    decoders = [JuteDecoder(LIMIT, scratch) for _ in range(2)]
    streams = [
        connect_request() + b"".join(encode(i, 4, zk.GetDataRequest(path, False)) for i in range(9))
        for path in ("/one", "/second")
    ]
    found: list[list[JuteRequest]] = [[], []]
    for at in range(0, max(map(len, streams)), 10):
        for decoder, stream, requests in zip(decoders, streams, found, strict=True):
            requests.extend(decoder.feed(stream[at : at + 10]))
    assert [[each[2][0] for each in requests[1:]] for requests in found] == [
        ["/one"] * 9,
        ["/second"] * 9,
    ]
