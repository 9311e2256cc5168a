"""Bytes of the messages between servers, and back.

    frame   = length header_length header records
    header  = [0, key, context, *fields]       unsolicited in both directions, as an event is

`context` is the last zxid that the sender knows to be committed, 0 where it knows none (and before
the welcome): what a link tells of its sender for logs and metrics, such as how far a learner is
behind. It is of the sender, not of the link, so that what goes to several learners is encoded once.
It is never a `Commit`.

Owns what one message must be by itself, whatever was said before: the schema, then what its fields
say of each other. Sources: `quorum_messages`, WIRE.md section 6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final

from .apis import EVENT_CORRELATION_ID, encode_event
from .codec import (
    MAX_ARRAY_COUNT,
    MAX_ARRAY_COUNT_UNKNOWN_PEER,
    Piece,
    cursor_of,
    unpack_header,
)
from .errors import DecodeError, LocalProtocolError
from .frames import MAX_HEADER_BYTES, Frame
from .quorum_messages import (
    MAX_IDENTITIES_BYTES,
    MAX_LONG_REQUEST_BYTES,
    MAX_PROPOSAL_BYTES,
    MAX_PROPOSAL_RECORDS,
    PEER_MESSAGES,
    PEER_MESSAGES_BY_KEY,
    Notification,
    PeerMessage,
    PeerState,
    Proposal,
)
from .stream_decoder import LENGTH_BYTES
from .txns import zxid_of
from .types import epoch_of

MAX_PEER_FRAME_BYTES: Final = (
    LENGTH_BYTES + MAX_HEADER_BYTES + MAX_IDENTITIES_BYTES + MAX_PROPOSAL_BYTES
)
"""Longest frame between a leader and a learner: a LongRequest; a Proposal has no identities."""
assert MAX_LONG_REQUEST_BYTES <= MAX_PROPOSAL_BYTES
MAX_SMALL_FRAME_BYTES: Final = 1024
"""Longest frame of any other message."""
SENT_PROPOSAL_BYTES: Final = 1024 * 1024
"""A Proposal is sent in parts of no more, as far as its records allow: what arrives is a sign of
life only when it is whole."""
CONTEXT_LAST: Final = (1 << 63) - 1
_ZXID_BYTES: Final = 8


def encode_message(message: PeerMessage, context: int, version: int) -> list[Piece]:
    """The pieces of a message, to be written one after another.

    In the `version` that both ends have agreed on: fields since a later one are not written. One
    frame, but for a Proposal of many or long records: several, which say the same. Raises
    LocalProtocolError for a record that no Proposal can have.
    """
    assert 0 <= context <= CONTEXT_LAST, context
    if type(message) is not Proposal or _fits_a_frame(message):
        return _encode(message, context, version)
    pieces: list[Piece] = []
    for part in proposals_of(message.records):
        size = len(part.records[0])
        if size > MAX_PROPOSAL_BYTES:  # then it is the only one
            raise LocalProtocolError(
                f"a record of {size} bytes is over the limit of {MAX_PROPOSAL_BYTES} bytes"
            )
        pieces += _encode(part, context, version)
    return pieces


def proposals_of(records: Iterable[bytes]) -> Iterator[Proposal]:
    """Records of the log, in order, as Proposals that are fit to be sent.

    A Proposal has records of one epoch, without a gap; no more than `MAX_PROPOSAL_RECORDS`, nor,
    unless it is a single one, than `SENT_PROPOSAL_BYTES`.
    """
    part: list[bytes] = []
    size = 0
    last_zxid = -1
    for record in records:
        zxid = zxid_of(record)
        if part and (
            len(part) == MAX_PROPOSAL_RECORDS
            or size + len(record) > SENT_PROPOSAL_BYTES
            or zxid != last_zxid + 1
            or epoch_of(zxid) != epoch_of(last_zxid)
        ):
            yield Proposal(last_zxid - len(part) + 1, last_zxid, tuple(part))
            part, size = [], 0
        part.append(record)
        size += len(record)
        last_zxid = zxid
    if part:
        yield Proposal(last_zxid - len(part) + 1, last_zxid, tuple(part))


def decode_message(
    frame: Frame, version: int, *, known_peer: bool = True
) -> tuple[PeerMessage, int]:
    """The message of a frame, and its context. Raises DecodeError.

    It is in the `version` that both ends have agreed on; fields since a later one have their
    defaults. A header of a peer that is not known yet is decoded with small limits.
    """
    buffer, start, end, _ = frame
    limit = MAX_ARRAY_COUNT if known_peer else MAX_ARRAY_COUNT_UNKNOWN_PEER
    values = unpack_header(memoryview(buffer)[start:end], limit)
    if len(values) < 3:
        raise DecodeError(f"peer header has {len(values)} values, at least 3 are needed")
    correlation_id, key, context = values[:3]
    if type(correlation_id) is not int or correlation_id != EVENT_CORRELATION_ID:
        raise DecodeError(f"correlation id {correlation_id!r} is not 0: no message of a server")
    known = PEER_MESSAGES_BY_KEY.get(key) if type(key) is int else None
    if known is None:
        raise DecodeError(f"message {key!r} is not known between servers")
    if type(context) is not int or not 0 <= context <= CONTEXT_LAST:
        raise DecodeError(f"context {context!r} is not a zxid")
    message: Any = known.schema.decode(values[3:], version, cursor_of(frame))
    if type(message) is Proposal:
        _check_proposal(message)
    elif type(message) is Notification:
        _check_notification(message)
    return message, context


def _encode(message: PeerMessage, context: int, version: int) -> list[Piece]:
    key, schema = PEER_MESSAGES[type(message)]
    return encode_event(key, context, schema, message, version)


def _fits_a_frame(proposal: Proposal) -> bool:
    records = proposal.records
    assert records, proposal
    return len(records) <= MAX_PROPOSAL_RECORDS and sum(map(len, records)) <= SENT_PROPOSAL_BYTES


def _check_proposal(proposal: Proposal) -> None:
    first, last, records = proposal
    if epoch_of(first) != epoch_of(last):
        raise DecodeError(f"Proposal of more than one epoch: {first:#x} to {last:#x}")
    if not records or last - first + 1 != len(records):
        raise DecodeError(f"Proposal of {len(records)} records, from {first:#x} to {last:#x}")
    size = sum(map(len, records))
    if size > MAX_PROPOSAL_BYTES:
        raise DecodeError(f"Proposal of {size} bytes is over the limit of {MAX_PROPOSAL_BYTES}")
    # All at once: one by one it would cost as much as the rest of the decoding.
    begins = b"".join([record[:_ZXID_BYTES] for record in records])
    if begins != struct.pack(f">{len(records)}Q", *range(first, last + 1)):
        wrong = next(zxid for zxid, each in enumerate(records, first) if not _begins(each, zxid))
        found = records[wrong - first][:_ZXID_BYTES].hex()
        raise DecodeError(f"record of zxid {wrong:#x} begins with {found!r}")


def _begins(record: bytes, zxid: int) -> bool:
    return record[:_ZXID_BYTES] == zxid.to_bytes(_ZXID_BYTES, "big")


def _check_notification(notification: Notification) -> None:
    state, vote, election_round, _ = notification
    if vote.server_id == 0:
        # A server without a vote asks, in round 0 or in one that it has heard of.
        if vote.epoch or vote.zxid or state != PeerState.LOOKING:
            raise DecodeError(f"{state.name} with a vote for nobody: {vote}")
    elif election_round == 0:
        raise DecodeError(f"a vote for server {vote.server_id} in round 0")
