"""What servers say to each other survives the wire, within its bounds and nowhere beyond."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from duolog_protocol.codec import Piece
from duolog_protocol.errors import (
    ConfigError,
    DecodeError,
    LocalProtocolError,
    RemoteProtocolError,
)
from duolog_protocol.frames import Frame, FrameDecoder
from duolog_protocol.quorum_codec import (
    MAX_PEER_FRAME_BYTES,
    MAX_SMALL_FRAME_BYTES,
    SENT_PROPOSAL_BYTES,
    decode_message,
    encode_message,
    proposals_of,
)
from duolog_protocol.quorum_messages import (
    MAX_PROPOSAL_BYTES,
    MAX_PROPOSAL_RECORDS,
    MAX_REFUSAL_BYTES,
    PEER_MESSAGES,
    PEER_MESSAGES_BY_KEY,
    PEER_VERSION,
    HandshakeMessage,
    LeaderMessage,
    LeaderService,
    LearnerMessage,
    LearnerService,
    LongRequest,
    Notification,
    PeerMessage,
    PeerRefusal,
    PeerState,
    Proposal,
    Vote,
)
from duolog_protocol.txns import MAX_TXN_BYTES
from tests.unit.protocol.samples import PEER_SAMPLES
from zkserver.core.config import CoreConfig
from zkserver.storage.groups import MAX_GROUP_BYTES

EPOCH_LAST = (1 << 31) - 1
ZXID_LAST = (1 << 63) - 1
EPOCH_START = 3 << 32


def frames_of(pieces: list[Piece]) -> list[Frame]:
    return FrameDecoder(MAX_PEER_FRAME_BYTES).feed(b"".join(pieces))


def frame_of(pieces: list[Piece]) -> Frame:
    (frame,) = frames_of(pieces)
    return frame


def raw(*header: Any, records: bytes = b"") -> Frame:
    """A frame whose header says whatever it is told to."""
    packed = msgpack.packb(header)
    return packed + records, 0, len(packed), len(packed) + len(records)


def key_of(name: str) -> int:
    (key,) = [each.key for cls, each in PEER_MESSAGES.items() if cls.__name__ == name]
    return key


def encode(message: PeerMessage, context: int = 0, version: int = PEER_VERSION) -> list[Piece]:
    return encode_message(message, context, version)


def decode(
    frame: Frame, version: int = PEER_VERSION, *, known_peer: bool = True
) -> tuple[PeerMessage, int]:
    return decode_message(frame, version, known_peer=known_peer)


def record(zxid: int, size: int = 8) -> bytes:
    return zxid.to_bytes(8, "big") + bytes(size - 8)


def run(first_zxid: int, count: int, size: int = 8) -> tuple[bytes, ...]:
    return tuple(record(zxid, size) for zxid in range(first_zxid, first_zxid + count))


def proposal_frame(first: Any, last: Any, *records: bytes) -> Frame:
    sizes = [len(each) for each in records]
    return raw(0, key_of("Proposal"), 0, first, last, sizes, records=b"".join(records))


# ---- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("message", PEER_SAMPLES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("context", [0, EPOCH_START + 1, ZXID_LAST])
def test_every_message_survives_the_wire(message: PeerMessage, context: int) -> None:
    decoded, found = decode(frame_of(encode(message, context)))
    assert (decoded, found) == (message, context)
    assert type(decoded) is type(message)


@pytest.mark.parametrize("message", PEER_SAMPLES, ids=lambda each: type(each).__name__)
def test_every_message_can_be_said_in_every_version(message: PeerMessage) -> None:
    for version in range(PEER_VERSION + 1):
        decoded, _ = decode(frame_of(encode(message, 0, version)), version)
        schema = PEER_MESSAGES[type(message)].schema
        count = schema.count(version)
        assert decoded[:count] == message[:count]
        assert decoded[count:] == tuple(field.default for field in schema.fields[count:])
        if isinstance(message, HandshakeMessage):
            assert count == len(message), "what comes before the versions are known never changes"


def test_a_notification_of_the_first_version_cannot_say_who_names_the_members() -> None:
    word = Notification(PeerState.LOOKING, Vote(1, 2, 3), 4, names_members=True)
    first = frame_of(encode(word, 0, 0))
    assert decode(first, 0)[0] == word._replace(names_members=False)
    with pytest.raises(DecodeError, match="version 1 has 4 fields, got 3"):
        decode(first, 1)
    with pytest.raises(DecodeError, match="version 0 has 3 fields, got 4"):
        decode(frame_of(encode(word, 0, 1)), 0)


def test_there_is_a_sample_a_number_and_a_side_for_every_message() -> None:
    members: set[Any] = {Notification}
    for union in (
        HandshakeMessage,
        LearnerMessage,
        LeaderMessage,
        LearnerService,
        LeaderService,
    ):
        members |= set(union.__args__)
    assert members == set(PEER_MESSAGES) == {type(each) for each in PEER_SAMPLES}
    assert sorted(PEER_MESSAGES_BY_KEY) == list(range(2001, 2001 + len(PEER_MESSAGES)))


def test_enums_come_back_as_members() -> None:
    for state in PeerState:
        vote = Vote(1, 2, 3) if state else Vote(0, 0, 0)
        message = Notification(state, vote, 1)
        (decoded, _) = decode(frame_of(encode(message, 0)))
        assert isinstance(decoded, Notification) and decoded.state is state
        assert type(decoded.vote) is Vote


@pytest.mark.parametrize("known_peer", [True, False])
def test_small_messages_fit_a_small_frame(known_peer: bool) -> None:
    longest = [
        PeerRefusal(32767, "é" * (MAX_REFUSAL_BYTES // 2)),
        Notification(PeerState.OBSERVING, Vote(EPOCH_LAST, ZXID_LAST, 255), ZXID_LAST, True),
        *[each for each in PEER_SAMPLES if not isinstance(each, Proposal | LongRequest)],
    ]
    for message in longest:
        frame = frame_of(encode(message, ZXID_LAST))
        assert frame[3] <= MAX_SMALL_FRAME_BYTES
        assert decode(frame, known_peer=known_peer)[0] == message


# ---- bounds -------------------------------------------------------------------------------------

LIMITS: list[tuple[str, tuple[Any, ...], tuple[Any, ...]]] = [
    ("PeerHello", (1, 1, 1, 0, "", 0), (0, 1, 1, 0, "", 0)),
    ("PeerHello", (255, 1, 1, 0, "", 0), (256, 1, 1, 0, "", 0)),
    ("PeerHello", (1, 1, 1, 0, "", 0), (1, 0, 1, 0, "", 0)),
    ("PeerHello", (1, (1 << 64) - 1, 1, 0, "", 0), (1, -1, 1, 0, "", 0)),
    ("PeerHello", (1, 1, 1, 0, "", 0), (1, 1, 0, 0, "", 0)),
    ("PeerHello", (1, 1, 2, 0, "", 0), (1, 1, 3, 0, "", 0)),
    ("PeerHello", (1, 1, 2, 0, "", 0), (1, 1, 2, -1, "", 0)),
    ("PeerHello", (1, 1, 2, 32767, "", 0), (1, 1, 2, 32768, "", 0)),
    ("PeerHello", (1, 1, 2, 0, "h" * 255, 1), (1, 1, 2, 0, "h" * 256, 1)),
    ("PeerHello", (1, 1, 2, 0, "", 65_535), (1, 1, 2, 0, "", 65_536)),
    ("PeerHello", (1, 1, 2, 0, "", 0), (1, 1, 2, 0, "", -1)),
    ("PeerWelcome", (1, 0), (0, 0)),
    ("PeerWelcome", (255, 32767), (256, 32767)),
    ("PeerWelcome", (255, 32767), (255, 32768)),
    ("PeerRefusal", (32767, ""), (32768, "")),
    ("PeerRefusal", (-32768, ""), (-32769, "")),
    ("PeerRefusal", (1, "x" * MAX_REFUSAL_BYTES), (1, "x" * (MAX_REFUSAL_BYTES + 1))),
    ("PeerRefusal", (1, "é" * (MAX_REFUSAL_BYTES // 2)), (1, "é" * (MAX_REFUSAL_BYTES // 2) + "x")),
    ("Notification", (0, (1, 2, 3), 1, False), (-1, (1, 2, 3), 1, False)),
    ("Notification", (3, (1, 2, 3), 1, False), (4, (1, 2, 3), 1, False)),
    ("Notification", (0, (0, 2, 3), 1, False), (0, (-1, 2, 3), 1, False)),
    ("Notification", (0, (EPOCH_LAST, 2, 3), 1, False), (0, (EPOCH_LAST + 1, 2, 3), 1, False)),
    ("Notification", (0, (1, 0, 3), 1, False), (0, (1, -1, 3), 1, False)),
    ("Notification", (0, (1, ZXID_LAST, 3), 1, False), (0, (1, ZXID_LAST + 1, 3), 1, False)),
    ("Notification", (0, (1, 2, 255), 1, False), (0, (1, 2, 256), 1, False)),
    ("Notification", (0, (0, 0, 0), 0, False), (0, (0, 0, -1), 0, False)),
    ("Notification", (0, (0, 0, 0), 0, False), (0, (0, 0, 0), -1, False)),
    ("Notification", (0, (1, 2, 3), ZXID_LAST, False), (0, (1, 2, 3), ZXID_LAST + 1, False)),
    ("Notification", (0, (1, 2, 3), 1, False), (0, (1, 2, 3), 0, False)),
    ("Notification", (0, (0, 0, 0), 0, False), (1, (0, 0, 0), 0, False)),
    ("Notification", (0, (0, 0, 0), 7, False), (2, (0, 0, 0), 7, False)),
    ("Notification", (0, (0, 0, 0), 0, False), (0, (1, 0, 0), 0, False)),
    ("Notification", (0, (0, 0, 0), 0, False), (0, (0, 1, 0), 0, False)),
    ("Notification", (0, (1, 2, 3), 1, False), (0, (1, 2), 1, False)),
    ("Notification", (0, (1, 2, 3), 1, False), (0, (1, 2, 3, 4), 1, False)),
    ("Notification", (0, (1, 2, 3), 1, True), (0, (1, 2, 3), 1, 1)),
    ("FollowerInfo", (1, 0, 1), (0, 0, 1)),
    ("FollowerInfo", (255, EPOCH_LAST, 255), (256, EPOCH_LAST, 1)),
    ("FollowerInfo", (1, 0, 0), (1, -1, 0)),
    ("FollowerInfo", (1, EPOCH_LAST, 0), (1, EPOCH_LAST + 1, 0)),
    ("FollowerInfo", (1, 0, 255), (1, 0, 256)),
    ("LeaderInfo", (1,), (0,)),
    ("LeaderInfo", (EPOCH_LAST,), (EPOCH_LAST + 1,)),
    ("AckEpoch", (0, 0, True), (-1, 0, True)),
    ("AckEpoch", (EPOCH_LAST, 0, True), (EPOCH_LAST + 1, 0, True)),
    ("AckEpoch", (0, 0, False), (0, -1, False)),
    ("AckEpoch", (0, ZXID_LAST, False), (0, ZXID_LAST + 1, False)),
    ("AckEpoch", (0, 0, True), (0, 0, 1)),
    ("Truncate", (0,), (-1,)),
    ("Truncate", (ZXID_LAST,), (ZXID_LAST + 1,)),
    ("NewLeader", (1,), (0,)),
    ("NewLeader", (EPOCH_LAST,), (EPOCH_LAST + 1,)),
    ("NewLeaderAck", (1,), (0,)),
    ("NewLeaderAck", (EPOCH_LAST,), (EPOCH_LAST + 1,)),
    ("UpToDate", (0,), (-1,)),
    ("UpToDate", (ZXID_LAST,), (ZXID_LAST + 1,)),
    ("Ack", (0,), (-1,)),
    ("Ack", (ZXID_LAST,), (ZXID_LAST + 1,)),
    ("Commit", (0,), (-1,)),
    ("Commit", (ZXID_LAST,), (ZXID_LAST + 1,)),
    ("Ack", (1,), (True,)),
    ("Ack", (1,), (1.0,)),
    ("Ping", (0,), (-1,)),
    ("Pong", (0,), (-1,)),
    ("SessionTaken", (1,), ("1",)),
    ("SessionsHeard", ((1,) * 1_000,), ((1,) * 1_001,)),
    ("Answers", (1, (1,) * 1_000, ()), (1, (1,) * 1_001, ())),
]


@pytest.mark.parametrize(("name", "legal", "illegal"), LIMITS)
def test_fields_are_taken_up_to_their_limit_and_refused_beyond(
    name: str, legal: tuple[Any, ...], illegal: tuple[Any, ...]
) -> None:
    decoded, _ = decode(raw(0, key_of(name), 0, *legal))
    assert tuple(decoded) == legal
    with pytest.raises(DecodeError):
        decode(raw(0, key_of(name), 0, *illegal))


@pytest.mark.parametrize("name", [cls.__name__ for cls in PEER_MESSAGES])
def test_a_field_too_few_or_too_many_is_refused(name: str) -> None:
    (message, *_) = [each for each in PEER_SAMPLES if type(each).__name__ == name]
    buffer, start, end, whole = frame_of(encode(message, 0))
    values = msgpack.unpackb(buffer[start:end])
    rest = bytes(buffer[end:whole])
    with pytest.raises(DecodeError, match=name):
        decode(raw(*values, 0, records=rest))
    with pytest.raises(DecodeError):
        decode(raw(*values[:-1], records=rest))
    with pytest.raises(DecodeError, match="after the last field"):
        decode(raw(*values, records=rest + b"\0"))


# ---- the envelope -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ((), "at least 3"),
        ((0, 2015), "at least 3"),
        ((1, 2015, 0), "correlation id 1"),
        ((False, 2015, 0), "correlation id False"),
        ((18, 0, 1, "kafka", "3"), "correlation id 18"),
        ((0, 2000, 0), "message 2000"),
        ((0, 2099, 0), "message 2099"),
        ((0, 1, 0, 3, 3, "/a"), "message 1"),
        ((0, "2015", 0), "message '2015'"),
        ((0, [2015], 0), "message"),
        ((0, 2015.0, 0), "message 2015.0"),
        ((0, 2015, -1), "context -1"),
        ((0, 2015, 1 << 63), "context"),
        ((0, 2015, None), "context None"),
        ((0, 2015, True), "context True"),
    ],
)
def test_an_envelope_of_anybody_else_is_refused(header: tuple[Any, ...], what: str) -> None:
    with pytest.raises(DecodeError, match=what):
        decode(raw(*header))


@pytest.mark.parametrize("header", [b"\xc0", b"\x00", b"\x80", b"\x93\x00", b"\xff", b"\x90\x90"])
def test_a_header_that_is_no_array_is_refused(header: bytes) -> None:
    with pytest.raises(DecodeError):
        decode((header, 0, len(header), len(header)))


def test_an_unknown_peer_gets_small_limits() -> None:
    frame = frame_of(encode(Proposal(0, 64, run(0, 65)), 0))
    assert decode(frame)[0] == Proposal(0, 64, run(0, 65))
    with pytest.raises(DecodeError):
        decode(frame, known_peer=False)


# ---- proposals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        proposal_frame(5, 4),
        proposal_frame(5, 5),
        proposal_frame(5, 6, record(5)),
        proposal_frame(5, 5, record(5), record(6)),
        proposal_frame(6, 5, record(6)),
        proposal_frame(5, 6, record(6), record(5)),
        proposal_frame(5, 6, record(5), record(5)),
        proposal_frame(5, 7, record(5), record(7)),
        proposal_frame(5, 6, record(5), record(7)),
        proposal_frame(5, 5, b""),
        proposal_frame(5, 5, record(5)[:7]),
        proposal_frame(5, 6, record(5) + b"\0", record(6)[1:]),
        proposal_frame(0xFFFFFFFF, 1 << 32, record(0xFFFFFFFF), record(1 << 32)),
        proposal_frame(-1, 0, b"\xff" * 8, record(0)),
        proposal_frame(ZXID_LAST, ZXID_LAST + 1, record(ZXID_LAST), record(ZXID_LAST + 1)),
        proposal_frame(1 << 63, 1 << 63, record(1 << 63)),
        raw(0, 2009, 0, 5, 5, [9], records=record(5)),
        raw(0, 2009, 0, 5, 5, [-1], records=record(5)),
        raw(0, 2009, 0, 5, 5, [None], records=record(5)),
        raw(0, 2009, 0, 5, 5, [record(5)]),
        raw(0, 2009, 0, 5, 5, 8, records=record(5)),
        raw(0, 2009, 0, 5, 5, None),
    ],
)
def test_a_proposal_that_contradicts_itself_is_refused(frame: Frame) -> None:
    with pytest.raises(DecodeError):
        decode(frame)


def test_a_proposal_may_be_the_first_or_the_last_there_is() -> None:
    for first, count in ((0, 1), (0xFFFFFFFE, 2), (ZXID_LAST - 1, 2)):
        message = Proposal(first, first + count - 1, run(first, count))
        assert decode(frame_of(encode(message, 0)))[0] == message


def test_a_proposal_has_at_most_so_many_records() -> None:
    records = run(EPOCH_START, MAX_PROPOSAL_RECORDS + 1)
    last = EPOCH_START + MAX_PROPOSAL_RECORDS - 1
    full = Proposal(EPOCH_START, last, records[:-1])
    assert decode(frame_of(encode(full, 0)))[0] == full
    with pytest.raises(DecodeError, match="at most 1000"):
        decode(proposal_frame(EPOCH_START, last + 1, *records))


def test_the_longest_transaction_that_can_be_accepted_can_be_replicated() -> None:
    """ZOOKEEPER-3496: one that only its leader could log stopped every follower."""
    assert CoreConfig(max_txn_bytes=MAX_TXN_BYTES).max_txn_bytes < MAX_PROPOSAL_BYTES
    with pytest.raises(ConfigError):
        CoreConfig(max_txn_bytes=MAX_TXN_BYTES + 1)
    assert MAX_PROPOSAL_BYTES + 4 * MAX_PROPOSAL_RECORDS <= MAX_GROUP_BYTES
    longest = Proposal(1, 1, (record(1, MAX_PROPOSAL_BYTES),))
    frame = frame_of(encode(longest, ZXID_LAST))
    assert decode(frame)[0] == longest


def test_a_proposal_has_at_most_so_many_bytes() -> None:
    one_more = record(1, MAX_PROPOSAL_BYTES + 1)
    with pytest.raises(LocalProtocolError, match="over the limit"):
        encode(Proposal(1, 1, (one_more,)), 0)
    with pytest.raises(DecodeError, match="attachment length"):
        decode(proposal_frame(1, 1, one_more))
    with pytest.raises(DecodeError, match="over the limit"):
        decode(proposal_frame(1, 2, one_more[:-8], record(2, 8) + b"\0"))


def test_a_long_proposal_is_sent_as_several_that_say_the_same() -> None:
    rng = random.Random(4)
    for _ in range(40):
        count = rng.choice([1, 7, 999, 1000, 1001, 2500])
        records = tuple(
            record(EPOCH_START + i, rng.choice([8, 100, 5_000, 300_000] if i < 9 else [8, 3_000]))
            for i in range(count)
        )
        whole = Proposal(EPOCH_START, EPOCH_START + count - 1, records)
        parts: list[Any] = [decode(each)[0] for each in frames_of(encode(whole, 9))]
        assert tuple(each for part in parts for each in part.records) == records
        fits = count <= 1000 and sum(map(len, records)) <= SENT_PROPOSAL_BYTES
        assert fits == (parts == [whole])
        for part in parts:
            size = sum(map(len, part.records))
            assert len(part.records) == 1 or size <= SENT_PROPOSAL_BYTES


def test_a_history_is_cut_where_a_proposal_must_end() -> None:
    assert list(proposals_of([])) == []
    epochs = [*run(5, 2), *run(1 << 32, 3), *run((1 << 32) + 9, 1), *run(4 << 32, 1)]
    ends = [(each.first_zxid, each.last_zxid) for each in proposals_of(iter(epochs))]
    second = 1 << 32
    assert ends == [(5, 6), (second, second + 2), (second + 9, second + 9), (4 << 32, 4 << 32)]
    full = run(0xFFFFFFFF, 2)  # The counter ran full: the next zxid is of the next epoch.
    assert [len(each.records) for each in proposals_of(full)] == [1, 1]
    half = SENT_PROPOSAL_BYTES // 2
    sizes = [half, half, half, half + 1, SENT_PROPOSAL_BYTES + 1, 8, 8]
    records = [record(number, size) for number, size in enumerate(sizes)]
    counts = [len(each.records) for each in proposals_of(records)]
    assert counts == [2, 1, 1, 1, 2]


# ---- arrival ------------------------------------------------------------------------------------


def test_messages_byte_by_byte_and_cut_at_every_length() -> None:
    stream = b"".join(b"".join(encode(each, 5)) for each in PEER_SAMPLES)
    for cuts in ([*range(1, len(stream))], *[[cut] for cut in range(1, len(stream))]):
        decoder = FrameDecoder(MAX_SMALL_FRAME_BYTES)
        found = [
            decode(frame)
            for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
            for frame in decoder.feed(stream[start:end])
        ]
        assert found == [(each, 5) for each in PEER_SAMPLES]


def test_a_message_cut_short_is_refused_at_every_length() -> None:
    for message in PEER_SAMPLES:
        buffer, start, end, whole = frame_of(encode(message, 5))
        for header_end in range(start, end):
            with pytest.raises(DecodeError):
                decode((buffer, start, header_end, header_end))
        for cut in range(end, whole):
            with pytest.raises(DecodeError):
                decode((buffer, start, end, cut))


def test_mutated_messages_are_decoded_or_refused_but_never_worse() -> None:
    rng = random.Random(8)
    frames = [frame_of(encode(each, EPOCH_START)) for each in PEER_SAMPLES]
    decoded = refused = 0
    for _ in range(20_000):
        buffer, start, middle, end = rng.choice(frames)
        mutated = bytearray(buffer[start:end])
        for _ in range(rng.randint(1, 3)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        header_end = rng.choice([middle - start] * 9 + [rng.randrange(len(mutated) + 1)])
        frame = (bytes(mutated), 0, header_end, len(mutated))
        try:
            message, context = decode(frame, known_peer=rng.random() < 0.9)
        except DecodeError:
            refused += 1
            continue
        decoded += 1
        again = frame_of(encode(message, context))
        assert decode(again) == (message, context)
    assert decoded > 1_000 and refused > 5_000, (decoded, refused)


def test_mutated_streams_raise_nothing_but_remote_protocol_errors() -> None:
    rng = random.Random(9)
    frames = [b"".join(encode(each, EPOCH_START)) for each in PEER_SAMPLES]
    for _ in range(3_000):
        stream = bytearray(b"".join(rng.sample(frames, 3)))
        for _ in range(rng.randint(0, 4)):
            stream[rng.randrange(len(stream))] = rng.randrange(256)
        try:
            for frame in FrameDecoder(MAX_SMALL_FRAME_BYTES).feed(bytes(stream)):
                decode(frame)
        except RemoteProtocolError:
            pass
