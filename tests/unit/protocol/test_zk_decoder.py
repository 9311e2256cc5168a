"""Bytes of native clients to requests: whole, in pieces, cut off, too long, lying.

What a request must become is said by a second decoder: frames first, then the schema of each.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from duolog_protocol import zk_decoder
from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import read_message, read_request
from duolog_protocol.connection import request_problem
from duolog_protocol.errors import DecodeError, FrameTooLargeError, RemoteProtocolError
from duolog_protocol.frames import FrameDecoder, encode_frame
from duolog_protocol.recent_reads import MAX_RECENT_READS, RecentReads
from duolog_protocol.zk_codec import REFUSED, NativeCodec, Refusal
from duolog_protocol.zk_decoder import NativeDecoder, NativeRequest
from tests.unit.protocol.samples import ZK_REQUESTS

LIMIT = 1 << 21
UNKNOWN, UNSUPPORTED, UNDECODABLE = -6, -1002, -5
SHOWS = [
    (zk.GET_DATA, zk.GetDataRequest),
    (zk.EXISTS, zk.ExistsRequest),
    (zk.GET_CHILDREN, zk.GetChildrenRequest),
]
SLASHED = [1, 2, 30, 31, 32, 33, 127, 128, 254, 255, 256, 257, 4096]
PATHS = ["", "a", "é", "/é", "/" + "ü" * 15, "€" * 85, *["/" + "x" * (n - 1) for n in SLASHED]]
SIZES = [0, 1, 5, 31, 32, 126, 127, 128, 129, 255, 256, 1000, 65_535, 65_536, 70_000]
VERSIONS = [-1, 0, 1, 127, 128, 255, 256, 65_535, 65_536, (1 << 31) - 1, -2, -32, -33, -(1 << 31)]
PING = zk.Empty()


def encode(key: int, message: Any, correlation_id: int = 7) -> bytes:
    return b"".join(zk.ZK_APIS[key].encode_request(correlation_id, message, 0))


def framed(*values: object, attachment: bytes = b"") -> bytes:
    """A frame whose header is exactly so."""
    return b"".join(encode_frame(msgpack.packb(values), (attachment,)))


def slowly(stream: bytes, *, known_peer: bool = False) -> list[NativeRequest]:
    """The requests of a stream, frame by frame through the schemas."""
    requests: list[NativeRequest] = []
    for frame in FrameDecoder(LIMIT).feed(stream):
        try:
            header = read_request(frame, known_peer=known_peer)
        except DecodeError as error:
            requests.append((REFUSED, 0, Refusal(0, str(error), True)))
            continue
        problem = request_problem(header, zk.ZK_APIS)
        key, correlation_id = header.api_key, header.correlation_id
        if problem is not None:
            code = UNSUPPORTED if key in zk.ZK_APIS else UNKNOWN
            requests.append((REFUSED, correlation_id, Refusal(code, problem, False)))
            continue
        try:
            requests.append((key, correlation_id, read_message(zk.ZK_APIS[key], header, frame)))
        except DecodeError as error:
            refusal = Refusal(UNDECODABLE, str(error), True)
            requests.append((REFUSED, correlation_id, refusal))
    return requests


def samples() -> list[bytes]:
    """Frames of every api and of all widths."""
    found = [
        encode(key, message, 1 + 9999 * key)
        for key, messages in ZK_REQUESTS.items()
        for message in messages
    ]
    for path in PATHS:
        found += [encode(api.key, make(path, False)) for api, make in SHOWS]
        found += [encode(api.key, make(path, True)) for api, make in SHOWS]
        found.append(encode(1005, zk.SetDataRequest(path, b"some data", -1)))
        found.append(encode(1005, zk.SetDataRequest(path, bytes(200), 300)))
    for version in VERSIONS:
        found += [encode(1005, zk.SetDataRequest("/a", bytes(size), version)) for size in SIZES]
    return found


def test_every_request_becomes_what_its_schema_makes_of_it() -> None:
    frames = samples()
    for each in frames:
        assert NativeDecoder(LIMIT).feed(each) == slowly(each), each[:80]
    stream = b"".join(frames)
    found = NativeDecoder(LIMIT).feed(stream)
    assert found == slowly(stream)
    assert {key for key, _, _ in found} == set(zk.ZK_APIS)


def test_what_is_cut_by_hand_has_the_types_of_its_message() -> None:
    shows = [encode(api.key, make("/a", watch)) for api, make in SHOWS for watch in (False, True)]
    sets = [
        encode(1005, zk.SetDataRequest("/a", bytes(size), version))
        for size in (0, 1, 127, 128, 65_535)
        for version in (-1, 5, 200, 70_000)
    ]
    for each in shows + sets:
        ((_, _, message),) = NativeDecoder(LIMIT).feed(each)
        ((_, _, expected),) = slowly(each)
        assert type(message) is tuple, each[:80]
        assert [type(value) for value in message] == [type(value) for value in expected]


def test_requests_survive_any_way_of_arriving() -> None:
    rng = random.Random(5)
    frames = samples()
    frames.append(encode(1005, zk.SetDataRequest("/big", rng.randbytes(900_000), -1)))
    rng.shuffle(frames)
    stream = b"".join(frames)
    expected = slowly(stream)
    recent = RecentReads()  # what one has said, the next finds
    for round_ in range(12):
        cuts = sorted(rng.randrange(len(stream)) for _ in range(round_ * 5))
        decoder = NativeDecoder(LIMIT, None, recent)
        found: list[NativeRequest] = []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            found += decoder.feed(stream[start:end])
        assert found == expected
        assert decoder.pending_bytes == 0


def outcome(decode: Callable[[bytes], list[NativeRequest]], stream: bytes) -> object:
    """The requests of a stream; where it cannot be trusted, that."""
    try:
        return decode(stream)
    except RemoteProtocolError as error:
        return type(error)


@pytest.mark.parametrize("path_bytes", [1, 2, 8, 31, 32, 100, 255, 256])
def test_a_run_of_equal_requests_is_cut_in_one_go(
    path_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[int] = []

    def watched(*given: Any) -> int:
        ends.append(cut_run(*given) - given[1])
        return ends[-1] + given[1]

    cut_run = zk_decoder.cut_run
    monkeypatch.setattr(zk_decoder, "cut_run", watched)
    paths = [("/" + "abc"[number % 3] * 300)[:path_bytes] for number in range(64)]
    for make in (
        *(
            lambda path, api=api, kind=kind: encode(api.key, kind(path, True))
            for api, kind in SHOWS
        ),
        lambda path: encode(1005, zk.SetDataRequest(path, b"some data", -1)),
        lambda path: encode(1005, zk.SetDataRequest(path, b"", 127)),
    ):
        frames = [make(path) for path in paths]  # type: ignore[no-untyped-call]
        ends.clear()
        stream = b"".join(frames)
        assert NativeDecoder(LIMIT).feed(stream) == slowly(stream)
        if path_bytes < 256:
            assert ends == [63 * len(frames[0])], "all but the first"
        ends.clear()
        NativeDecoder(LIMIT).feed(frames[0] + encode(1011, PING) + frames[1] + frames[2][:-1])
        assert ends in ([], [0])


@pytest.mark.parametrize("seed", range(20))
def test_a_run_ends_where_a_request_is_another_one(seed: int) -> None:
    """Any byte may differ, also one that makes the frame, the text or the stream a bad one."""
    rng = random.Random(seed)
    for _ in range(60):
        path = "/" + "x" * rng.choice([0, 1, 5, 29, 30, 31, 32, 200])
        api, make = rng.choice(SHOWS)
        sizes = rng.choice([[0], [9], [127], [9, 10], [127, 128]])
        kinds = [
            lambda path=path, api=api, make=make: encode(api.key, make(path, rng.random() < 0.5)),
            lambda path=path, sizes=sizes: encode(
                1005, zk.SetDataRequest(path, bytes(rng.choice(sizes)), rng.randrange(-1, 130))
            ),
        ]
        chosen = rng.choice([kinds, kinds[:1], kinds[1:]])
        frames = [bytearray(rng.choice(chosen)()) for _ in range(rng.randrange(1, 30))]
        for frame in frames:
            frame[14:18] = rng.randrange(1, 1 << 32).to_bytes(4, "big")
            if rng.random() < 0.08:
                frame[rng.randrange(8, len(frame))] = rng.randrange(256)
        stream = b"".join(frames)
        expected = outcome(slowly, stream)
        recent = RecentReads()
        for _ in range(2):  # then every path is known
            assert outcome(NativeDecoder(LIMIT, None, recent).feed, stream) == expected


def test_byte_by_byte_and_cut_at_every_length() -> None:
    frames = [encode(1011, PING)]
    frames += [encode(key, message) for key in ZK_REQUESTS for message in ZK_REQUESTS[key]]
    frames += [encode(1004, zk.GetDataRequest("/" + "x" * 40, True)), encode(1011, PING)]
    stream = b"".join(frames)
    whole = slowly(stream)
    decoder = NativeDecoder(LIMIT)
    assert [each for byte in stream for each in decoder.feed(bytes([byte]))] == whole
    ends = [sum(map(len, frames[: count + 1])) for count in range(len(frames))]
    for cut in range(len(stream)):
        decoder = NativeDecoder(LIMIT)
        before = decoder.feed(stream[:cut])
        assert len(before) == sum(end <= cut for end in ends)
        assert decoder.pending_bytes == cut - max([0, *[end for end in ends if end <= cut]])
        assert before + decoder.feed(stream[cut:]) == whole


def test_mutated_streams_become_what_the_schemas_make_of_them() -> None:
    rng = random.Random(11)
    frames = [each for each in samples() if len(each) < 400]
    interesting = (
        b"\x00\x01\x1f\x20\x7f\x80\x90\xa0\xbf\xc0\xc2\xc3\xc4\xcc\xcd\xce\xd2\xd9\xe0\xff"
    )
    outcomes = {"raised": 0, "refused": 0, "accepted": 0}
    for _ in range(6000):
        picked = [bytearray(rng.choice(frames)) for _ in range(rng.randrange(1, 4))]
        broken = rng.choice(picked)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            at = rng.randrange(len(broken))
            match rng.randrange(4):
                case 0:
                    broken[at] = rng.choice(interesting)
                case 1:
                    broken[at] ^= 1 << rng.randrange(8)
                case 2 if len(broken) > 20:
                    del broken[at]
                case _:
                    broken.insert(at, rng.choice(interesting))
        if rng.randrange(3):
            broken[:4] = (len(broken) - 4).to_bytes(4, "big")
            if rng.randrange(2):
                broken[4:8] = (len(broken) - 8).to_bytes(4, "big")
        stream = b"".join(map(bytes, picked))
        try:
            expected = slowly(stream)
        except RemoteProtocolError as error:
            outcomes["raised"] += 1
            with pytest.raises(type(error), match=str(error)):
                NativeDecoder(LIMIT).feed(stream)
            continue
        decoder = NativeDecoder(LIMIT)
        assert decoder.feed(stream) == expected, stream
        for key, _, _ in expected:
            outcomes["refused" if key == REFUSED else "accepted"] += 1
        cut = NativeDecoder(LIMIT, memoryview(bytearray(16)))
        assert cut.feed(stream) == expected, stream
        assert cut.pending_bytes == decoder.pending_bytes
    assert min(outcomes.values()) > 500, outcomes


REFUSALS = [
    (framed(1004, 0, 0, "/a", False), 0, 0, "correlation id 0 must be"),
    (framed(1005, 0, 0, "/a", 1, -1, attachment=b"x"), 0, 0, "correlation id 0 must be"),
    (framed(1004, 0), 0, 0, "has 2 values"),
    (b"".join(encode_frame(b"\xc1")), 0, 0, "not valid msgpack"),
    (framed(4444, 0, 70_000), 70_000, UNKNOWN, "api 4444 is not known"),
    (framed(1004, 1, 70_000, "/a", False), 70_000, UNSUPPORTED, "version 1 of GetData"),
    (framed(1004, 0, 70_000, "/a", 0), 70_000, UNDECODABLE, "watch: expected a boolean"),
    (
        framed(1004, 0, 70_000, "/a", False, attachment=b"zz"),
        70_000,
        UNDECODABLE,
        "2 bytes after the last field",
    ),
    (
        framed(1005, 0, 70_000, "/a", 3, -1, attachment=b"zz"),
        70_000,
        UNDECODABLE,
        "attachment of 3 bytes where 2 are left",
    ),
    (framed(1005, 0, 70_000, "/a", 0, 1 << 31), 70_000, UNDECODABLE, "version: expected"),
]


@pytest.mark.parametrize(("stream", "correlation_id", "code", "text"), REFUSALS)
def test_what_cannot_be_served_is_refused_in_its_place(
    stream: bytes, correlation_id: int, code: int, text: str
) -> None:
    ping = encode(1011, PING)
    before, refused, after = NativeDecoder(LIMIT).feed(ping + stream + ping)
    assert before == after == (1011, 7, PING)
    assert refused[:2] == (REFUSED, correlation_id)
    assert refused[2].code == code
    assert refused[2].closes is (code in (0, UNDECODABLE))
    assert text in refused[2].message


def test_a_path_that_is_no_utf8_is_refused() -> None:
    for good in (
        encode(1004, zk.GetDataRequest("/abc", False)),
        encode(1005, zk.SetDataRequest("/abc", b"x", -1)),
        encode(1005, zk.SetDataRequest("/abc", bytes(500), 1000)),
    ):
        bad = good.replace(b"/abc", b"/a\xed\xa0")
        assert NativeDecoder(LIMIT).feed(bad) == slowly(bad)
        assert slowly(bad)[0][0] == REFUSED


def test_long_arrays_are_decoded_once_the_client_is_known() -> None:
    ops = tuple(zk.ReadOp(zk.MultiKind.GET_DATA, "/a") for _ in range(100))
    stream = framed(1022, 0, 70_000, ops)
    decoder = NativeDecoder(LIMIT)
    codec = NativeCodec(decoder)
    assert not codec.known_peer
    assert decoder.feed(stream) == slowly(stream)
    assert decoder.feed(stream)[0][0] == REFUSED
    codec.known_peer = True
    assert decoder.known_peer
    requests = decoder.feed(stream)
    assert requests == slowly(stream, known_peer=True)
    assert requests == [(1022, 70_000, zk.MultiReadRequest(ops))]


@pytest.mark.parametrize("limit", [1024, 100_000])
def test_a_frame_at_the_limit_is_taken_and_one_past_it_is_not(limit: int) -> None:
    def frame_of(length: int) -> bytes:
        overhead = len(encode(1005, zk.SetDataRequest("/a", bytes(1000), -1))) - 1000 - 4
        extra = 2 if length - overhead > 65_535 else 0
        frame = encode(1005, zk.SetDataRequest("/a", bytes(length - overhead - extra), -1))
        assert len(frame) == length + 4
        return frame

    taken = frame_of(limit)
    assert NativeDecoder(limit).feed(taken) == slowly(taken)
    longer = frame_of(limit + 1)
    refused = f"{limit + 1} bytes is over the limit of {limit}"
    for part in (longer, longer[:4], longer[:7], longer[:30], taken + longer):
        with pytest.raises(FrameTooLargeError, match=refused):
            NativeDecoder(limit).feed(part)
    raised = NativeDecoder(limit)
    raised.max_frame_bytes = limit + 1
    assert raised.feed(longer) == slowly(longer)


@pytest.mark.parametrize("header_bytes", [0, 5, 15, 64 * 1024 + 1, (1 << 32) - 1])
def test_a_header_length_that_does_not_fit_ends_the_connection(header_bytes: int) -> None:
    frame = bytearray(encode(1004, zk.GetDataRequest("/a", False)))
    assert frame[4:8] == (14).to_bytes(4, "big")
    frame[4:8] = header_bytes.to_bytes(4, "big")
    if header_bytes == 5:
        frame[:4] = (4).to_bytes(4, "big")
    with pytest.raises(RemoteProtocolError, match=f"claims a header of {header_bytes} bytes"):
        NativeDecoder(LIMIT).feed(bytes(frame))


def test_a_peer_that_only_claims_a_length_gets_no_memory_for_it() -> None:
    decoder = NativeDecoder(100 << 20)
    tracemalloc.start()
    decoder.feed((100 << 20).to_bytes(4, "big") + (14).to_bytes(4, "big") + bytes(100_000))
    assert len(decoder.get_buffer()) <= 1 << 20
    assert decoder.pending_bytes == 100_008
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_connections_of_one_loop_may_share_their_scratch_buffer() -> None:
    scratch = memoryview(bytearray(16))
    decoders = [NativeDecoder(LIMIT, scratch) for _ in range(2)]
    streams = [
        b"".join(encode(1004, zk.GetDataRequest(path, False)) for _ in range(9))
        for path in ("/one", "/second")
    ]
    found: list[list[NativeRequest]] = [[], []]
    for at in range(0, max(map(len, streams)), 10):
        for decoder, stream, requests in zip(decoders, streams, found, strict=True):
            requests.extend(decoder.feed(stream[at : at + 10]))
    assert [[each[2][0] for each in requests] for requests in found] == [
        ["/one"] * 9,
        ["/second"] * 9,
    ]


def test_reads_that_come_again_are_remembered_and_others_soon_are_not() -> None:
    recent = RecentReads()
    decoder = NativeDecoder(LIMIT, None, recent)

    def read(numbers: range) -> None:
        for number in numbers:
            frame = encode(1004, zk.GetDataRequest(f"/n{number}", False))
            assert decoder.feed(frame)[0][2] == (f"/n{number}", False)

    most = MAX_RECENT_READS
    for _ in range(6):
        read(range(most))
    assert len(recent.messages) == most
    read(range(most, most + 10))
    assert len(recent.messages) == 10, (
        "full: it begins anew, since they were asked for often enough"
    )
    read(range(2 * most, 3 * most + 1))
    assert 0 < len(recent.messages) < most
    kept = dict(recent.messages)
    read(range(4 * most, 6 * most))
    assert recent.messages == kept, "hardly anybody asks again: it rests"
