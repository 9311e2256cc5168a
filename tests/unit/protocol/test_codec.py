"""The schema decides what reaches a handler; hostile headers cost little and fail clearly."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any, NamedTuple

import msgpack
import pytest

from duolog_protocol import broker_messages as kb
from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import (
    Api,
    encode_error,
    encode_event,
    error_message,
    read_message,
    read_request,
    read_response,
)
from duolog_protocol.codec import (
    INT32,
    Cursor,
    Schema,
    array,
    cursor_of,
    since,
    string,
    unpack_header,
)
from duolog_protocol.errors import DecodeError, Error, LocalProtocolError
from duolog_protocol.frames import Frame, FrameDecoder
from tests.unit.protocol.samples import ALL_APIS, REQUESTS, RESPONSES


def frame_of(pieces: list[Any]) -> Frame:
    (frame,) = FrameDecoder(1 << 27).feed(b"".join(pieces))
    return frame


@pytest.mark.parametrize("api", ALL_APIS, ids=lambda api: api.name)
def test_every_message_survives_the_wire(api: Api[Any, Any]) -> None:
    for request in REQUESTS[api.key]:
        frame = frame_of(api.encode_request(77, request, 0))
        header = read_request(frame)
        assert (header.api_key, header.api_version, header.correlation_id) == (api.key, 0, 77)
        assert read_message(api, header, frame) == request
    for response in RESPONSES[api.key]:
        frame = frame_of(api.encode_response(78, 1 << 40, response, 0))
        header = read_response(frame)
        assert (header.correlation_id, header.error_code, header.context) == (78, 0, 1 << 40)
        assert api.decode_response(header.values, 0, cursor_of(frame)) == response


def test_errors_and_events_have_the_same_envelope() -> None:
    header = read_response(frame_of(encode_error(5, -101, 9, "no /a" + "x" * 1000)))
    assert header[:3] == (5, -101, 9)
    assert error_message(header).startswith("no /a")
    assert len(error_message(header)) == 500
    event = zk.WatchEvent(3, 3, "/a")
    frame = frame_of(encode_event(zk.WATCH_EVENT_KEY, 12, zk.WATCH_EVENT, event))
    header = read_response(frame)
    assert header[:3] == (0, zk.WATCH_EVENT_KEY, 12)
    assert zk.WATCH_EVENT.decode(header.values[3:], 0, cursor_of(frame)) == event


class Old(NamedTuple):
    name: str
    size: int


def test_an_appended_field_is_absent_in_older_versions() -> None:
    schema = Schema(Old, string(10), since(1, INT32, -1))
    empty = Cursor(b"", 0, 0)
    assert schema.encode(Old("a", 5), 1, []) == ["a", 5]
    assert schema.encode(Old("a", 5), 0, []) == ["a"]
    assert schema.decode(("a",), 0, empty) == Old("a", -1)
    assert schema.decode(("a", 5), 1, empty) == Old("a", 5)
    with pytest.raises(DecodeError, match="version 0 has 1 fields, got 2"):
        schema.decode(("a", 5), 0, empty)


WRONG = [
    (zk.GET_DATA, ("/a",), "2 fields, got 1"),
    (zk.GET_DATA, ("/a", 1), "watch: expected a boolean"),
    (zk.GET_DATA, (b"/a", True), "path: expected a string"),
    (zk.GET_DATA, ("/" + "a" * 4096, True), "at most 4096 bytes"),
    (zk.GET_DATA, ("/" + "\u20ac" * 1400, True), "at most 4096 bytes"),
    (zk.SET_DATA, ("/a", 5, -1), "attachment of 5 bytes where 0 are left"),
    (zk.SET_DATA, ("/a", -5, -1), "attachment length"),
    (zk.SET_DATA, ("/a", None, 1 << 31), "version: expected an integer"),
    (zk.SET_DATA, ("/a", None, True), "version: expected an integer"),
    (zk.CONNECT, (0, 1, 0, b"x" * 17, False), "password: expected at most 16 bytes"),
    (zk.CREATE, ("/a", None, ((32, "world", "anyone"),), 0, -1), "acl: expected an integer"),
    (zk.CREATE, ("/a", None, ((1, "world"),), 0, -1), "acl: expected Acl with 3 fields"),
    (kb.METADATA, (["t"] * 1025, True, False), "not valid msgpack"),
    (kb.PRODUCE, (None, 1, 1, [["t", 0, 1 << 40]]), "attachment length"),
]


@pytest.mark.parametrize(("api", "fields", "problem"), WRONG)
def test_a_wrong_field_is_named_in_the_error(
    api: Api[Any, Any], fields: tuple[Any, ...], problem: str
) -> None:
    header_bytes = msgpack.packb([api.key, 0, 1, *fields])
    frame = (header_bytes, 0, len(header_bytes), len(header_bytes))
    with pytest.raises(DecodeError, match=problem):
        read_message(api, read_request(frame), frame)


def test_bytes_after_the_last_attachment_are_refused() -> None:
    pieces = zk.SET_DATA.encode_request(1, zk.SetDataRequest("/a", b"abc", 0), 0)
    (buffer, start, middle, end) = frame_of(pieces)
    longer = (bytes(buffer) + b"z", start, middle, end + 1)
    with pytest.raises(DecodeError, match="1 bytes after the last field"):
        read_message(zk.SET_DATA, read_request(longer), longer)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc0",
        b"\x93\x01\x00",
        b"\x93\x01\x00\x01\x00",
        b"\x92\x01\x00",
        b"\x93\xa1x\x00\x01",
        b"\x93\x01\x00\x00",
        b"\x93\x01\x00\xff",
        b"\x93\x01\x00\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x93\x01\x00\x81\x01\x01",
        b"\x93\x01\x00\xc7\x01\x05\x00",
        b"\x93\x01\x00\xa2\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 2000,
    ],
)
def test_a_header_that_is_no_request_is_refused(header: bytes) -> None:
    with pytest.raises(DecodeError):
        read_request((header, 0, len(header), len(header)))


def test_nested_array_headers_allocate_little() -> None:
    """1,000 nested array16(65535) headers made an unlimited decoder allocate 80 MB."""
    for count, limit_bytes in ((65535, 1 << 20), (1024, 16 << 20)):
        bomb = (b"\xdc" + count.to_bytes(2, "big")) * 1000 + b"\xc0" * 60_000
        tracemalloc.start()
        with pytest.raises(DecodeError):
            unpack_header(bomb)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit_bytes, (count, peak)
    bomb = b"\xdc\x00\x40" * 1000 + b"\xc0" * 1000
    tracemalloc.start()
    with pytest.raises(DecodeError):
        unpack_header(bomb, 64)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_mutated_frames_are_decoded_or_refused_but_never_worse() -> None:
    rng = random.Random(7)
    frames = [
        frame_of(api.encode_request(9, request, 0))
        for api in ALL_APIS
        for request in REQUESTS[api.key]
    ]
    refused = 0
    for _ in range(20_000):
        buffer, start, middle, end = rng.choice(frames)
        mutated = bytearray(buffer)
        for _ in range(rng.randint(1, 4)):
            mutated[rng.randrange(start, end)] = rng.randrange(256)
        frame = (bytes(mutated), start, middle, end)
        try:
            header = read_request(frame)
            api = (zk.ZK_APIS | kb.BROKER_APIS).get(header.api_key)
            if api is not None and header.api_version == 0:
                message = read_message(api, header, frame)
                again = frame_of(api.encode_request(9, message, header.api_version))
                assert read_message(api, read_request(again), again) == message
        except Error:
            refused += 1
    assert 1_000 < refused < 20_000


def test_a_header_of_our_own_that_is_too_long_is_our_bug() -> None:
    request = zk.MultiRequest(
        tuple(zk.MultiOp(2, "/" + "t" * 200, None, None, 0, -1, -1) for _ in range(1000))
    )
    with pytest.raises(LocalProtocolError, match="over the limit"):
        zk.MULTI.encode_request(1, request, 0)


LONGEST_NAME = "n" * kb.MAX_TOPIC_NAME_BYTES


@pytest.mark.parametrize("count", [0, 1, kb.INLINE_COUNT, kb.INLINE_COUNT + 1, 3_000])
def test_the_messages_about_partitions_take_as_many_as_there_are(count: int) -> None:
    """However long the names: what a request may ask for, its response can say."""
    keys = [(LONGEST_NAME, number) for number in range(count)]
    aborted = (kb.AbortedTransaction(1, 2),)
    fetched = (0, 9, 9, 0, aborted, -1, None, -1, -1)
    requests: list[tuple[Api[Any, Any], Any]] = [
        (
            kb.PRODUCE,
            kb.ProduceRequest(
                *(None, -1, 1),
                tuple(kb.ProducePartition(*key, b"batch %d" % key[1]) for key in keys),
            ),
        ),
        (
            kb.FETCH,
            kb.FetchRequest(
                *(-1, -1, 1, 1, 1, 0, 0, -1, ""),
                tuple(kb.FetchPartition(*key, -1, 0, -1, -1, 1) for key in keys),
            ),
        ),
        (
            kb.LIST_OFFSETS,
            kb.ListOffsetsRequest(
                -1, 0, tuple(kb.ListOffsetsPartition(*key, -1, -1) for key in keys)
            ),
        ),
        (kb.METADATA, kb.MetadataRequest(tuple(name for name, _ in keys), True, False)),
    ]
    for api, request in requests:
        frame = frame_of(api.encode_request(1, request, 0))
        assert read_message(api, read_request(frame), frame) == request
    text = "e" * 1000
    responses: list[tuple[Api[Any, Any], Any]] = [
        (
            kb.PRODUCE,
            kb.ProduceResponse(
                tuple(
                    kb.ProducePartitionResponse(*key, 1, text, -1, -1, -1, -1, -1) for key in keys
                )
            ),
        ),
        (
            kb.FETCH,
            kb.FetchResponse(
                0, tuple(kb.FetchPartitionResponse(*key, *fetched, b"%d" % key[1]) for key in keys)
            ),
        ),
        (
            kb.LIST_OFFSETS,
            kb.ListOffsetsResponse(
                tuple(kb.ListOffsetsPartitionResponse(*key, 0, 1, 2, 3) for key in keys)
            ),
        ),
    ]
    for api, response in responses:
        frame = frame_of(api.encode_response(1, 0, response, 0))
        assert api.decode_response(read_response(frame).values, 0, cursor_of(frame)) == response


def test_a_hundred_topics_with_the_longest_names_and_texts_fit_their_messages() -> None:
    names = tuple(f"{number:03d}{LONGEST_NAME[3:]}" for number in range(100))
    configs = tuple(kb.TopicConfig(f"setting.{number}", "v" * 100) for number in range(20))
    entries = tuple(kb.ConfigEntry(f"s.{n}", "v" * 100, False, "d" * 200) for n in range(30))
    text = "e" * 1000
    requests: list[tuple[Api[Any, Any], Any]] = [
        (
            kb.CREATE_TOPICS,
            kb.CreateTopicsRequest(
                [kb.NewTopicRequest(name, 1, 1, (), configs) for name in names], 1, False
            ),
        ),
        (kb.DELETE_TOPICS, kb.DeleteTopicsRequest(names, 1)),
        (kb.DESCRIBE_CONFIGS, kb.DescribeConfigsRequest(names)),
    ]
    for api, request in requests:
        frame = frame_of(api.encode_request(1, request, 0))
        assert read_message(api, read_request(frame), frame) == request
    responses: list[tuple[Api[Any, Any], Any]] = [
        (
            kb.CREATE_TOPICS,
            kb.CreateTopicsResponse(
                tuple(kb.CreateTopicResponse(name, "A" * 22, 1, text, 1, 1) for name in names)
            ),
        ),
        (
            kb.DELETE_TOPICS,
            kb.DeleteTopicsResponse(
                tuple(kb.DeleteTopicResponse(name, "A" * 22, 1, text) for name in names)
            ),
        ),
        (
            kb.DESCRIBE_CONFIGS,
            kb.DescribeConfigsResponse(
                [kb.DescribeConfigsResult(name, 0, text, entries) for name in names]
            ),
        ),
    ]
    for api, response in responses:
        frame = frame_of(api.encode_response(1, 0, response, 0))
        assert api.decode_response(read_response(frame).values, 0, cursor_of(frame)) == response


def test_a_long_list_may_be_longer_than_any_header_array() -> None:
    names = [f"child-{i}" for i in range(50_000)]
    response = zk.GetChildrenResponse(zk.Stat(*range(11)), names)
    frame = frame_of(zk.GET_CHILDREN.encode_response(1, 1, response, 0))
    header = read_response(frame)
    assert zk.GET_CHILDREN.decode_response(header.values, 0, cursor_of(frame)) == response


@pytest.mark.parametrize(
    "attachment",
    [b"\x92\xa1a", b"\x91\xa1a\x00", b"\xdd\xff\xff\xff\xff", b"\xa1a", b"\x91\x05", b""],
)
def test_a_damaged_long_list_is_refused(attachment: bytes) -> None:
    header = msgpack.packb([1, 0, 1, tuple(range(11)), len(attachment)])
    frame = (header + attachment, 0, len(header), len(header) + len(attachment))
    with pytest.raises(DecodeError):
        zk.GET_CHILDREN.decode_response(read_response(frame).values, 0, cursor_of(frame))


def test_an_array_may_not_claim_more_than_the_decoder_allows() -> None:
    with pytest.raises(AssertionError):
        array(INT32, 1025)
