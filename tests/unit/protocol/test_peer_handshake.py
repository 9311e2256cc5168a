"""Who is welcome in an ensemble, and what the others are told."""

from __future__ import annotations

import pytest

from duolog_protocol.errors import DecodeError, PeerRefusedError, RemoteProtocolError
from duolog_protocol.peer_decoder import PeerDecoder
from duolog_protocol.peer_handshake import answer_hello, check_answer, refuse_stranger
from duolog_protocol.quorum_codec import encode_message
from duolog_protocol.quorum_messages import (
    HANDSHAKE_VERSION,
    MAX_REFUSAL_BYTES,
    PEER_VERSION,
    PeerHello,
    PeerPurpose,
    PeerRefusal,
    PeerWelcome,
    RefusalReason,
)

HELLO = PeerHello(2, 0xE5, PeerPurpose.ELECTION, PEER_VERSION)


def answer(hello: PeerHello) -> PeerWelcome | PeerRefusal:
    """Of server 1 of the ensemble 0xe5, which has servers 1 to 3; as the other end reads it."""
    said = answer_hello(hello, 1, 0xE5, (2, 3), PEER_VERSION)
    frame = b"".join(encode_message(said, 0, HANDSHAKE_VERSION))
    ((read, _),) = PeerDecoder(hello.purpose).feed(frame)
    assert read == said
    return said


def test_a_server_of_the_ensemble_is_welcome() -> None:
    for server_id in (2, 3):
        said = answer(HELLO._replace(server_id=server_id))
        assert said == PeerWelcome(1, PEER_VERSION)
        check_answer(said, 1, PEER_VERSION)


def test_a_newer_server_is_answered_in_our_version() -> None:
    assert answer(HELLO._replace(version=32767)) == PeerWelcome(1, PEER_VERSION)


def test_an_older_server_is_answered_in_its_own() -> None:
    assert answer(HELLO._replace(version=0)) == PeerWelcome(1, 0)
    with pytest.raises(RemoteProtocolError, match="speaks version 1, offered was 0"):
        check_answer(PeerWelcome(1, 1), 1, offered=0)


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (HELLO._replace(ensemble_id=0xE6), RefusalReason.WRONG_ENSEMBLE),
        (HELLO._replace(ensemble_id=(1 << 64) - 1, server_id=9), RefusalReason.WRONG_ENSEMBLE),
        (HELLO._replace(server_id=4), RefusalReason.NOT_A_MEMBER),
        (HELLO._replace(server_id=1), RefusalReason.SAME_ID),
    ],
)
def test_everybody_else_is_told_why_not(hello: PeerHello, reason: RefusalReason) -> None:
    said = answer(hello)
    assert isinstance(said, PeerRefusal) and said.reason == reason
    with pytest.raises(PeerRefusedError, match=said.message) as caught:
        check_answer(said, 1, PEER_VERSION)
    assert (caught.value.server_id, caught.value.reason) == (1, reason)


def test_another_ensemble_is_not_told_which_one_this_is() -> None:
    said = answer(HELLO._replace(ensemble_id=0x77))
    assert isinstance(said, PeerRefusal) and "0xe5" not in said.message


def test_a_stranger_is_told_as_much_as_fits() -> None:
    for text in ("short", "x" * 2000, "é" * 2000, "x" + "é" * 2000):
        said = refuse_stranger(DecodeError(text))
        assert said.reason == RefusalReason.NOT_A_HELLO
        assert text.startswith(said.message)
        assert len(said.message.encode()) >= min(len(text), MAX_REFUSAL_BYTES - 1)
        PeerDecoder(PeerPurpose.LEARNER).feed(b"".join(encode_message(said, 0, HANDSHAKE_VERSION)))


def test_another_server_than_was_dialled_is_no_welcome() -> None:
    with pytest.raises(RemoteProtocolError, match="dialled server 3, and server 1 answered"):
        check_answer(PeerWelcome(1, PEER_VERSION), 3, PEER_VERSION)
    with pytest.raises(RemoteProtocolError, match=f"speaks version {PEER_VERSION + 1}"):
        check_answer(PeerWelcome(1, PEER_VERSION + 1), 1, PEER_VERSION)


def test_a_refusal_for_a_reason_of_tomorrow_can_be_read() -> None:
    frame = b"".join(encode_message(PeerRefusal(77, "not on Sundays"), 0, HANDSHAKE_VERSION))
    ((said, _),) = PeerDecoder(PeerPurpose.ELECTION).feed(frame)
    assert isinstance(said, PeerRefusal)
    with pytest.raises(PeerRefusedError, match="reason 77: not on Sundays"):
        check_answer(said, 1, PEER_VERSION)
