"""A connection between servers: the handshake first, then what its purpose allows."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest

from duolog_protocol.apis import API_VERSIONS, ApiVersionsRequest
from duolog_protocol.connection import ServerConnection, ServerState
from duolog_protocol.errors import DecodeError, FrameTooLargeError, RemoteProtocolError
from duolog_protocol.peer_decoder import PeerDecoder, PeerStage
from duolog_protocol.preamble import PREAMBLE
from duolog_protocol.quorum_codec import (
    MAX_PEER_FRAME_BYTES,
    MAX_SMALL_FRAME_BYTES,
    encode_message,
)
from duolog_protocol.quorum_messages import (
    MAX_CHUNK_BYTES,
    PEER_VERSION,
    Ack,
    Commit,
    HandshakeMessage,
    LeaderMessage,
    LeaderService,
    LearnerMessage,
    LearnerService,
    Notification,
    PeerHello,
    PeerMessage,
    PeerPurpose,
    PeerRefusal,
    PeerState,
    PeerWelcome,
    Ping,
    Pong,
    Proposal,
    SnapshotBegin,
    SnapshotChunk,
    Vote,
)
from tests.unit.protocol.samples import PEER_SAMPLES

ELECTION, LEARNER = PeerPurpose.ELECTION, PeerPurpose.LEARNER
HELLO = PeerHello(2, 0xE5, LEARNER, PEER_VERSION)
WELCOME = PeerWelcome(1, PEER_VERSION)


def sent(*messages: PeerMessage) -> bytes:
    return b"".join(b"".join(encode_message(each, 0, PEER_VERSION)) for each in messages)


def names(received: list[tuple[PeerMessage, int]]) -> list[PeerMessage]:
    return [message for message, _ in received]


def welcomed(purpose: PeerPurpose) -> PeerDecoder:
    """The end of a server that was dialled, and has welcomed the other."""
    decoder = PeerDecoder()
    decoder.feed(sent(HELLO))
    decoder.open(purpose, PEER_VERSION)
    return decoder


def dialled(purpose: PeerPurpose) -> PeerDecoder:
    """The end of a server that has dialled, and was welcomed."""
    decoder = PeerDecoder(purpose)
    decoder.feed(sent(WELCOME))
    return decoder


def test_a_hello_opens_nothing_until_it_is_welcome() -> None:
    decoder = PeerDecoder()
    assert names(decoder.feed(sent(HELLO))) == [HELLO]
    assert decoder.stage is PeerStage.SHAKING
    decoder.open(LEARNER, PEER_VERSION)
    assert decoder.stage is PeerStage.OPEN
    assert names(decoder.feed(sent(Ack(1), Pong(1)))) == [Ack(1), Pong(1)]


def test_more_may_follow_a_welcome_at_once() -> None:
    decoder = PeerDecoder(LEARNER)
    record = (9).to_bytes(8, "big") + bytes(100_000)
    proposal = Proposal(9, 9, (record,))
    messages = [WELCOME, Ping(1), proposal, Commit(9)]
    assert names(decoder.feed(sent(*messages))) == messages
    assert (decoder.stage, decoder.pending_bytes) == (PeerStage.OPEN, 0)


def test_the_welcome_says_in_which_version_all_that_follows_is() -> None:
    word = Notification(PeerState.LOOKING, Vote(1, 2, 3), 4, names_members=True)
    for version in range(PEER_VERSION + 1):
        said = b"".join(encode_message(word, 0, version))
        heard = word if version else word._replace(names_members=False)
        decoder = PeerDecoder(ELECTION)
        welcome = PeerWelcome(1, version)
        assert names(decoder.feed(sent(welcome) + said)) == [welcome, heard]
        decoder = PeerDecoder()
        decoder.feed(sent(HELLO))
        decoder.open(ELECTION, version)
        assert names(decoder.feed(said)) == [heard]


def test_nothing_follows_a_hello_before_its_welcome() -> None:
    decoder = PeerDecoder()
    with pytest.raises(RemoteProtocolError, match="Ack came where nothing may come"):
        decoder.feed(sent(HELLO, Ack(1)))
    decoder = PeerDecoder()
    decoder.feed(sent(HELLO))
    with pytest.raises(RemoteProtocolError, match="PeerHello came where nothing may come"):
        decoder.feed(sent(HELLO))


def test_nothing_follows_a_refusal() -> None:
    decoder = PeerDecoder(ELECTION)
    refusal = PeerRefusal(2, "another ensemble")
    assert names(decoder.feed(sent(refusal))) == [refusal]
    assert decoder.stage is PeerStage.CLOSED
    with pytest.raises(RemoteProtocolError):
        decoder.feed(sent(WELCOME))


@pytest.mark.parametrize("message", PEER_SAMPLES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("purpose", list(PeerPurpose))
def test_each_side_says_what_is_its_own(purpose: PeerPurpose, message: PeerMessage) -> None:
    is_learner = purpose is LEARNER
    for decoder, allowed in (
        (PeerDecoder(), PeerHello),
        (PeerDecoder(purpose), PeerWelcome | PeerRefusal),
        (welcomed(purpose), LearnerMessage | LearnerService if is_learner else Notification),
        (dialled(purpose), LeaderMessage | LeaderService if is_learner else Notification),
    ):
        if isinstance(message, allowed):
            assert names(decoder.feed(sent(message))) == [message]
        else:
            with pytest.raises(RemoteProtocolError, match=type(message).__name__):
                decoder.feed(sent(message))
            assert decoder.stage is not PeerStage.CLOSED


def test_only_a_leader_and_its_learners_send_long_frames() -> None:
    for decoder, limit in (
        (PeerDecoder(), MAX_SMALL_FRAME_BYTES),
        (PeerDecoder(LEARNER), MAX_SMALL_FRAME_BYTES),
        (welcomed(ELECTION), MAX_SMALL_FRAME_BYTES),
        (welcomed(LEARNER), MAX_PEER_FRAME_BYTES),
        (dialled(ELECTION), MAX_SMALL_FRAME_BYTES),
        (dialled(LEARNER), MAX_PEER_FRAME_BYTES),
    ):
        assert decoder.feed(limit.to_bytes(4, "big")) == []
        assert decoder.pending_bytes == 4
        assert decoder.max_frame_bytes == limit
    for decoder in (PeerDecoder(), welcomed(LEARNER), dialled(LEARNER)):
        with pytest.raises(FrameTooLargeError):
            decoder.feed((decoder.max_frame_bytes + 1).to_bytes(4, "big"))


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        PeerDecoder().feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    client = b"".join(API_VERSIONS.encode_request(1, ApiVersionsRequest("duolog", "1"), 0))
    with pytest.raises(DecodeError, match="correlation id 18"):
        PeerDecoder().feed(client)


def any_message(rng: random.Random, allowed: Any, *, with_large: bool) -> PeerMessage:
    while True:
        message = rng.choice(PEER_SAMPLES)
        if isinstance(message, Proposal) and with_large:
            first = rng.randrange(1 << 32, 1 << 33)
            size = rng.choice([0, 10, 70_000, 1_200_000])
            message = Proposal(first, first, (first.to_bytes(8, "big") + rng.randbytes(size),))
        if isinstance(message, allowed):
            return message


def test_messages_of_all_sizes_survive_any_way_of_arriving() -> None:
    rng = random.Random(1)
    for round_ in range(30):
        messages = [any_message(rng, LeaderMessage, with_large=True) for _ in range(12)]
        stream = sent(WELCOME, *messages)
        cuts = sorted(rng.randrange(len(stream)) for _ in range(round_ * 2))
        decoder = PeerDecoder(LEARNER)
        found = []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            found += names(decoder.feed(stream[start:end]))
        assert found == [WELCOME, *messages]
        assert decoder.pending_bytes == 0


def test_small_messages_arrive_byte_by_byte() -> None:
    says = [each for each in PEER_SAMPLES if isinstance(each, LeaderMessage)]
    decoder = PeerDecoder(LEARNER)
    stream = sent(WELCOME, *says)
    found = [each for byte in stream for each in names(decoder.feed(bytes([byte])))]
    assert found == [WELCOME, *says]


def test_mutated_streams_raise_nothing_but_remote_protocol_errors() -> None:
    rng = random.Random(2)
    for _ in range(3_000):
        purpose = rng.choice(list(PeerPurpose))
        decoder = rng.choice([PeerDecoder(), PeerDecoder(purpose), welcomed(purpose)])
        kinds = HandshakeMessage | LearnerMessage | Notification | LeaderMessage
        stream = bytearray(
            sent(*[any_message(rng, kinds, with_large=False) for _ in range(rng.randint(1, 4))])
        )
        for _ in range(rng.randint(0, 3)):
            stream[rng.randrange(len(stream))] = rng.randrange(256)
        with suppress(RemoteProtocolError):
            decoder.feed(bytes(stream))


def test_the_server_end_of_a_connection_takes_the_preamble_before_it() -> None:
    connection = ServerConnection(take_native=lambda view: PeerDecoder(scratch=view))
    received = []
    for byte in PREAMBLE + sent(HELLO):
        connection.get_buffer()[:1] = bytes([byte])
        received += names(connection.buffer_updated(1))
    assert received == [HELLO]
    assert connection.state is ServerState.OPEN
    stranger = ServerConnection(take_native=lambda view: PeerDecoder(scratch=view))
    stranger.get_buffer()[:4] = b"ruok"
    assert stranger.buffer_updated(4) == []
    assert stranger.state is ServerState.FOREIGN


def test_the_largest_chunk_of_a_snapshot_fits_into_a_frame() -> None:
    decoder = PeerDecoder(LEARNER)
    messages = [WELCOME, SnapshotBegin(9), SnapshotChunk(bytes(MAX_CHUNK_BYTES)), Ping(0)]
    assert names(decoder.feed(sent(*messages))) == messages
