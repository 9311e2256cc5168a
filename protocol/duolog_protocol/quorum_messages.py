"""Messages between the servers of an ensemble: election, and leader to learner and back.

A learner is a follower or an observer. Its link to the leader is one connection, whose messages
arrive in order or not at all; a notification of an election travels alone and may be lost, since
only a server's newest one counts. Not ZooKeeper's bytes, but its protocol: reference A.2 to A.7.

    who dials           PeerHello
    who is dialled      PeerWelcome, PeerRefusal
    anybody             Notification
    learner -> leader   FollowerInfo, AckEpoch, HistoryStored, NewLeaderAck, Ack, Pong
    leader -> learner   LeaderInfo, Truncate, Proposal, NewLeader, UpToDate, Commit, Ping,
                        SnapshotBegin, SnapshotChunk, SnapshotEnd (answered by ChunkStored)
    learner -> leader   Requests, LongRequest,            of its clients, once it has adopted the
                        SessionsHeard                     leader's epoch
    leader -> learner   Answers, SessionTaken

A message is a NamedTuple in wire order; its schema is at the end, its number in `PEER_MESSAGES`.
What one message says by itself is checked by `quorum_codec`, what fits where the protocol stands by
`zkserver.core`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeVar

from .codec import (
    BOOL,
    INT16,
    INT32,
    INT64,
    Cursor,
    FieldType,
    Schema,
    array,
    data,
    integer,
    long_list,
    since,
    string,
    structure,
)
from .txns import MAX_TXN_BYTES
from .types import ZXID_EPOCH_LAST
from .zk_messages import MAX_FRAME_BYTES

PEER_VERSION: Final = 1
"""The highest version of these messages that this code speaks.

0  the first one
1  Notification: names_members
"""
HANDSHAKE_VERSION: Final = 0
"""Of what is said before both know what they speak; it is the same in all versions."""
SERVER_ID_LAST: Final = 255
MAX_PROPOSAL_RECORDS: Final = 1_000
MAX_PROPOSAL_BYTES: Final = MAX_TXN_BYTES + 64 * 1024
"""All records of a Proposal together. The longest Txn that any setting allows must fit, with room
for what adds to it: what was accepted can always be replicated (ZOOKEEPER-3496)."""
MAX_REFUSAL_BYTES: Final = 512
MAX_HOST_BYTES: Final = 255
"""Of a server's name or address; no name of the DNS is longer."""
PORT_LAST: Final = 65_535
MAX_CHUNK_BYTES: Final = 16 * 1024 * 1024
"""Of a snapshot."""
MAX_REQUESTS: Final = 1_000
"""Requests of one client that are forwarded, or answered, at once."""
MAX_REQUESTS_BYTES: Final = MAX_FRAME_BYTES + 64 * 1024
"""All frames of a Requests together: the longest one, with room to spare."""
MAX_LONG_REQUEST_BYTES: Final = MAX_PROPOSAL_BYTES
"""Fields of a LongRequest: those of the longest frame that any setting lets a client send, and what
their encoding adds."""
MAX_FAILURES: Final = 25
"""Failures of one Answers: their texts must fit a header."""
MAX_FAILURE_BYTES: Final = 2_000
MAX_SESSIONS_HEARD: Final = 1_000
MAX_IDENTITIES: Final = 64
"""Of one client."""
MAX_IDENTITY_BYTES: Final = 1024
MAX_IDENTITIES_BYTES: Final = MAX_IDENTITIES * (MAX_IDENTITY_BYTES + 128)
"""All of them: more than a header holds, so many of them are an attachment."""


class PeerPurpose(IntEnum):
    """What a connection between two servers is for."""

    ELECTION = 1
    """Notifications, in both directions."""
    LEARNER = 2
    """Whoever dials is a learner, and takes whom it has dialled for its leader."""


class RefusalReason(IntEnum):
    """Why a server does not take a connection."""

    NOT_A_HELLO = 1
    """The first message is none, or cannot be decoded: no server of ours."""
    WRONG_ENSEMBLE = 2
    NOT_A_MEMBER = 3
    """The ensemble has no server with this id."""
    SAME_ID = 4
    """The server that was dialled has this id itself."""
    NO_TLS = 5
    """The server that was dialled takes nothing but TLS."""


class PeerHello(NamedTuple):
    """The first message of a connection, from the server that dials.

    This message and both answers to it never change, whatever `PEER_VERSION` is.
    """

    server_id: int
    ensemble_id: int
    purpose: PeerPurpose
    version: int
    """The highest version of the messages that it speaks."""
    host: str = ""
    """Where the others reach it, with `port`: for one that does not know it, or not any more."""
    port: int = 0


class PeerWelcome(NamedTuple):
    """The hello is accepted: the connection is open, for both."""

    server_id: int
    """Whom the other has reached."""
    version: int
    """What both speak from now on: fields of a later version are not written."""


class PeerRefusal(NamedTuple):
    """The hello is not accepted; the connection is closed behind this."""

    reason: int
    """A `RefusalReason`; a newer server may know others."""
    message: str
    """For people."""


class PeerState(IntEnum):
    """What a server is doing, as its notifications say."""

    LOOKING = 0
    FOLLOWING = 1
    LEADING = 2
    OBSERVING = 3


class Vote(NamedTuple):
    """Who should lead. Votes compare as tuples: the greater one is the better one."""

    epoch: int
    """`current_epoch` of the one who should lead."""
    zxid: int
    """Its last zxid on disk."""
    server_id: int


class Notification(NamedTuple):
    """What a server thinks about who should lead."""

    state: PeerState
    vote: Vote
    """Of a server that is not LOOKING: its leader, with the epoch it leads in."""
    election_round: int
    names_members: bool = False
    """The sender's log names the members; False: it goes by its settings, or cannot say (below
    version 1): that one's word for an outsider is only taken by whose own log names members."""


class FollowerInfo(NamedTuple):
    """A learner introduces itself."""

    server_id: int
    accepted_epoch: int
    level: int
    """The highest feature level that it knows."""


class LeaderInfo(NamedTuple):
    """The epoch that the leader wants to open; durable with it."""

    epoch: int


class AckEpoch(NamedTuple):
    """The learner has promised the epoch, durably, and tells what its log holds."""

    current_epoch: int
    last_zxid: int
    """On disk."""
    is_promise: bool
    """False: it had promised this epoch before, so that this one must not be counted."""


class Truncate(NamedTuple):
    """Forget everything after `zxid`; what follows continues from there."""

    zxid: int


class Proposal(NamedTuple):
    """Records to log: history of the sync phase, or what the leader proposes."""

    first_zxid: int
    last_zxid: int
    records: tuple[bytes, ...]


class NewLeader(NamedTuple):
    """Everything that came before this is the leader's history: adopt its epoch."""

    epoch: int


class NewLeaderAck(NamedTuple):
    """The history is durable, and so is `current_epoch`."""

    epoch: int


class UpToDate(NamedTuple):
    """The leader is established; everything up to `zxid` is committed. Serve."""

    zxid: int


class Ack(NamedTuple):
    """Everything up to `zxid` is durable here."""

    zxid: int


class Commit(NamedTuple):
    """Everything up to `zxid` is durable on a quorum."""

    zxid: int


class Ping(NamedTuple):
    """The leader is there."""

    round: int
    """Rises whenever the leader has to know that it still leads."""


class Pong(NamedTuple):
    """The learner is there, and follows."""

    round: int
    """Of the Ping that this answers."""


class SnapshotBegin(NamedTuple):
    """The leader's log does not reach back to where the learner's ends: what follows is the state
    at `zxid`, in chunks; then the history goes on from there."""

    zxid: int


class SnapshotChunk(NamedTuple):
    """The next piece of a snapshot, as it stands in the leader's file."""

    data: bytes


class SnapshotEnd(NamedTuple):
    """All of it was sent."""

    zxid: int
    chunk_count: int
    crc: int
    """CRC-32C of all chunks, one after the other."""


class ChunkStored(NamedTuple):
    """The learner has written a chunk, and takes the next one."""


class HistoryStored(NamedTuple):
    """What was sent of the leader's history is on the learner's disk up to `zxid`: there is room
    for more of it. Ahead of NEWLEADER; it is no acknowledgement."""

    zxid: int


class Identity(NamedTuple):
    """Who a client is, as its server knows it."""

    scheme: str
    id: str


class Requests(NamedTuple):
    """What a client of a learner asks that only the leader can do, in the client's order."""

    first_number: int
    """Of the first one; the others follow without a gap. A learner numbers what it forwards to one
    leader, from 1 on."""
    session_id: int
    """0 where it asks for a session."""
    identities: tuple[Identity, ...]
    frames: bytes
    """The requests as frames of a native client."""


class LongRequest(NamedTuple):
    """A request that is longer than most, or that no native client could send.

    It counts as a `Requests` of one.
    """

    number: int
    session_id: int
    identities: tuple[Identity, ...]
    api_key: int
    fields: bytes
    """See `long_requests`."""


class RequestFailure(NamedTuple):
    """Why a request of an `Answers` has failed."""

    position: int
    """Which one: `first_number` is 0."""
    is_logged: bool
    """It has a zxid of its own; otherwise nothing of it is in the log."""
    code: int
    """A `ZkErrorCode`."""
    message: str
    failed_at: int
    """In a multi the place of the operation that fails; -1: not a multi."""
    op_count: int
    """Operations of the multi."""


class Answers(NamedTuple):
    """Where in the log requests have their place. Ahead of the proposals of these zxids."""

    first_number: int
    zxids: tuple[int, ...]
    """Of each the zxid that it has, or behind which it is to be answered."""
    failures: tuple[RequestFailure, ...]


class SessionsHeard(NamedTuple):
    """Sessions whose clients a learner has heard since it last said so."""

    session_ids: tuple[int, ...]


class SessionTaken(NamedTuple):
    """The client of a session has connected to another server: its old connection must end."""

    session_id: int


LearnerMessage = FollowerInfo | AckEpoch | HistoryStored | NewLeaderAck | Ack | Pong | ChunkStored
LeaderMessage = (
    LeaderInfo
    | Truncate
    | Proposal
    | NewLeader
    | UpToDate
    | Commit
    | Ping
    | SnapshotBegin
    | SnapshotChunk
    | SnapshotEnd
)
LearnerService = Requests | LongRequest | SessionsHeard
"""What a learner says for its clients; the state machine of the learner's role knows none of it."""
LeaderService = Answers | SessionTaken


E = TypeVar("E", bound=IntEnum)


def _one_of(values: type[E]) -> FieldType:
    """A member of an enum, by its number."""
    members = {int(each): each for each in values}
    in_range = integer(min(members), max(members)).check

    def check(value: Any, cursor: Cursor) -> Any:
        return members[in_range(value, cursor)]

    assert len(members) == max(members) - min(members) + 1, values
    return FieldType(check)


_SERVER_ID: Final = integer(1, SERVER_ID_LAST)
_ENSEMBLE_ID: Final = integer(1, (1 << 64) - 1)
_EPOCH: Final = integer(1, ZXID_EPOCH_LAST)
_EPOCH_OR_NONE: Final = integer(0, ZXID_EPOCH_LAST)
_VERSION: Final = integer(0, (1 << 15) - 1)
_COUNT: Final = integer(0, (1 << 63) - 1)
ZXID: Final = _COUNT
_IDENTITIES: Final = long_list(
    structure(Identity, string(64), string(MAX_IDENTITY_BYTES)),
    MAX_IDENTITIES,
    MAX_IDENTITIES_BYTES,
    inline_count=16,
)
_VOTE: Final = structure(Vote, _EPOCH_OR_NONE, ZXID, integer(0, SERVER_ID_LAST))

HandshakeMessage = PeerHello | PeerWelcome | PeerRefusal
PeerMessage = (
    HandshakeMessage
    | Notification
    | LearnerMessage
    | LeaderMessage
    | LearnerService
    | LeaderService
)


class PeerMessageType(NamedTuple):
    """One message: its number on the wire, the schema of its fields."""

    key: int
    schema: Schema[Any]


PEER_MESSAGES: Final[dict[type[Any], PeerMessageType]] = {
    schema.cls: PeerMessageType(key, schema)
    for key, schema in (
        (
            2001,
            Schema(
                *(PeerHello, _SERVER_ID, _ENSEMBLE_ID, _one_of(PeerPurpose), _VERSION),
                *(string(MAX_HOST_BYTES), integer(0, PORT_LAST)),
            ),
        ),
        (2002, Schema(PeerWelcome, _SERVER_ID, _VERSION)),
        (2003, Schema(PeerRefusal, INT16, string(MAX_REFUSAL_BYTES))),
        (
            2004,
            Schema(
                *(Notification, _one_of(PeerState), _VOTE, _COUNT),
                since(1, BOOL, False),
            ),
        ),
        (2005, Schema(FollowerInfo, _SERVER_ID, _EPOCH_OR_NONE, integer(0, 255))),
        (2006, Schema(LeaderInfo, _EPOCH)),
        (2007, Schema(AckEpoch, _EPOCH_OR_NONE, ZXID, BOOL)),
        (2008, Schema(Truncate, ZXID)),
        (
            2009,
            Schema(Proposal, ZXID, ZXID, array(data(MAX_PROPOSAL_BYTES), MAX_PROPOSAL_RECORDS)),
        ),
        (2010, Schema(NewLeader, _EPOCH)),
        (2011, Schema(NewLeaderAck, _EPOCH)),
        (2012, Schema(UpToDate, ZXID)),
        (2013, Schema(Ack, ZXID)),
        (2014, Schema(Commit, ZXID)),
        (2015, Schema(Ping, _COUNT)),
        (2016, Schema(Pong, _COUNT)),
        (2017, Schema(Requests, _COUNT, INT64, _IDENTITIES, data(MAX_REQUESTS_BYTES))),
        (
            2018,
            Schema(
                Answers,
                _COUNT,
                array(ZXID, MAX_REQUESTS),
                array(
                    structure(
                        RequestFailure, _COUNT, BOOL, INT32, string(MAX_FAILURE_BYTES), INT32, INT32
                    ),
                    MAX_FAILURES,
                ),
            ),
        ),
        (2019, Schema(SessionsHeard, array(INT64, MAX_SESSIONS_HEARD))),
        (2020, Schema(SessionTaken, INT64)),
        (2021, Schema(SnapshotBegin, ZXID)),
        (2022, Schema(SnapshotChunk, data(MAX_CHUNK_BYTES))),
        (2023, Schema(SnapshotEnd, ZXID, _COUNT, integer(0, (1 << 32) - 1))),
        (2024, Schema(ChunkStored)),
        (
            2025,
            Schema(LongRequest, _COUNT, INT64, _IDENTITIES, INT16, data(MAX_LONG_REQUEST_BYTES)),
        ),
        (2026, Schema(HistoryStored, ZXID)),
    )
}
"""Class -> number and schema."""
PEER_MESSAGES_BY_KEY: Final = {each.key: each for each in PEER_MESSAGES.values()}
