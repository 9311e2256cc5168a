"""A follower's side of what only the leader can do: forwarded, placed, applied, answered.

    ask ---> Requests ---> (leader) ---> Answers: each has a zxid ---> applied up to there: answered
        LongRequest                 `--> Proposal, Commit  --------'

Owns the numbers of what is forwarded, and the order of the answers. Whatever a client may send can
be forwarded: that is decided when it is asked, and what is on its way to the leader is bounded, so
that no client ends the link. An answer names the zxid of a
write, or for what has no Txn (a sync, a session that is taken over, a refusal) the zxid behind
which it has its place; it comes ahead of the leader's proposal of that zxid. Everything is applied
from the log's records, whoever has asked for it. Source: ZooKeeper `FollowerRequestProcessor`,
`CommitProcessor`, which match by session and xid instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from duolog_protocol import zk_messages as zk
from duolog_protocol.long_requests import encode_fields, is_short
from duolog_protocol.quorum_messages import (
    MAX_LONG_REQUEST_BYTES,
    MAX_REQUESTS,
    MAX_REQUESTS_BYTES,
    Answers,
    Identity,
    LongRequest,
    RequestFailure,
    Requests,
)
from duolog_protocol.txns import TxnKind, decode_txn
from duolog_protocol.zk_codec import Refusal

from .connection import Connection
from .flow import Flow
from .pending import Failure, Pending
from .sessions import MOVED
from .state import ReplicatedState
from .watches import Watches
from .writes import kinds_of

_ANY_SYNC: Final = zk.SyncRequest("/")
"""The leader does not look at the path."""
MAX_ON_THE_WAY_BYTES: Final = 16 * 1024 * 1024
"""Requests that the leader was told and has not placed; the others wait here. What the link has not
sent stays far below the bound at which it ends."""
_CLOSE_SESSION: Final = int(TxnKind.CLOSE_SESSION)
_U32_LAST: Final = (1 << 32) - 1

Asked = tuple[Connection, int, int, int, Any, int]
"""(connection, correlation id, api key, session id, note, size): what waits for its place."""


class _Placed(NamedTuple):
    """What waits until the state has come to its zxid."""

    zxid: int
    is_logged: bool
    """It is the Txn with this zxid; otherwise it comes behind it."""
    asked: Asked
    failure: RequestFailure | None


class _New(NamedTuple):
    """What is to be forwarded."""

    connection: Connection
    content: bytes
    """A frame of a native client, or the fields of a `LongRequest`."""
    long_key: int
    """Api key of a LongRequest, or 0."""


class FollowingHost(NamedTuple):
    """What `Following` needs of the core; the core's own methods."""

    answer: Callable[[Pending, Any], None]
    answer_sync: Callable[[Connection, int, Any], None]
    attach: Callable[[Connection, int, Any], None]
    """A session's client has come here, and the leader knows."""
    close: Callable[[Connection, str], None]
    refuse: Callable[[Connection, int, Refusal], None]
    serve: Callable[[Connection], None]
    serve_before: Callable[[Connection], None]
    dirty: dict[Connection, None]


class Following:
    """One term under one leader, for the clients of this server."""

    def __init__(
        self, state: ReplicatedState, watches: Watches, flow: Flow, host: FollowingHost
    ) -> None:
        self._state = state
        self._watches = watches
        self._flow = flow
        self._host = host
        self._next_number = 1
        self._unplaced: dict[int, Asked] = {}
        """By number."""
        self._placed: deque[_Placed] = deque()
        """In the order of their places."""
        self._arriving: dict[int, dict[Connection, bool]] = {}
        """Id of a session that is not new -> who has asked for it and is not answered, and whether
        the leader has given it to that connection."""
        self._new: deque[_New] = deque()
        self._told_bytes = 0
        """Of what is on its way to the leader."""

    def ask(self, connection: Connection, api_key: int, correlation_id: int, message: Any) -> bool:
        """Forward a request of a client; its answer comes in its turn.

        False: no message to the leader can hold it, and nothing was done.
        """
        forwarded_key, forwarded, note = api_key, message, None
        if api_key == zk.MULTI.key:
            note = kinds_of(message)
        elif api_key == zk.CREATE2_KEY:
            forwarded_key = zk.CREATE.key
        elif api_key == zk.CONNECT.key:
            note = message
        elif api_key == zk.SYNC.key:
            forwarded, note = _ANY_SYNC, message
        content, long_key = encode_fields(forwarded), forwarded_key
        if is_short(forwarded_key, forwarded, len(content)):
            content, long_key = _frame(forwarded_key, correlation_id, forwarded), 0
        elif len(content) > MAX_LONG_REQUEST_BYTES:
            return False
        connection.submitted += 1
        session = connection.session
        size = len(content)
        session_id = 0 if session is None else session.session_id
        number = self._next_number
        self._next_number = number + 1
        self._unplaced[number] = (connection, correlation_id, api_key, session_id, note, size)
        self._flow.forwarded_count += 1
        self._flow.forwarded_bytes += size
        if api_key == zk.CONNECT.key and message.session_id:
            self._arriving.setdefault(message.session_id, {})[connection] = False
        self._new.append(_New(connection, content, long_key))
        return True

    def take_requests(self) -> list[Requests | LongRequest]:
        """What is to be told to the leader now, in order."""
        new = self._new
        found: list[Requests | LongRequest] = []
        while new and self._told_bytes < MAX_ON_THE_WAY_BYTES:
            connection, content, long_key = new[0]
            number = self._next_number - len(new)
            session_id = 0 if connection.session is None else connection.session.session_id
            identities = tuple(map(Identity._make, connection.identities))
            if long_key:
                new.popleft()
                found.append(LongRequest(number, session_id, identities, long_key, content))
            else:
                content = _take_run(new)
                found.append(Requests(number, session_id, identities, content))
            self._told_bytes += len(content)
        return found

    def on_answers(self, answers: Answers) -> None:
        """The leader has placed what was forwarded."""
        first_number, zxids, failures = answers
        failed = {each.position: each for each in failures} if failures else {}
        applied = self._state.last_applied_zxid
        for index, zxid in enumerate(zxids):
            asked = self._unplaced.pop(first_number + index)
            failure = failed.get(index)
            _, _, api_key, _, note, size = asked
            self._told_bytes -= size
            takes_over = api_key == zk.CONNECT.key and note.session_id
            if failure is not None:
                is_logged = failure.is_logged
            else:
                is_logged = api_key != zk.SYNC.key and not takes_over
                if takes_over and asked[0] in self._arriving.get(note.session_id, ()):
                    self._arriving[note.session_id][asked[0]] = True
            assert zxid > applied or (zxid == applied and not is_logged), (zxid, applied)
            self._placed.append(_Placed(zxid, is_logged, asked, failure))
        self._settle(applied)

    def leave(self, session_id: int, *, has_come_here: bool) -> None:
        """A session's client has gone to another connection: so must whoever is about to get it.

        Where that is another server's, those stay whose requests the leader has yet to hear. It may
        be the same client, whose first attempt, at the other server, came to the leader after its
        second one, here: each server would take the other for the owner (ZOOKEEPER-710).
        """
        for connection, is_given in [*self._arriving.get(session_id, {}).items()]:
            if is_given or has_come_here:
                self._has_arrived(connection, session_id)
                if not connection.closed:
                    self._host.close(connection, MOVED)

    def _has_arrived(self, connection: Connection, session_id: int) -> None:
        """Or never will."""
        arriving = self._arriving.get(session_id)
        if arriving is not None:
            arriving.pop(connection, None)
            if not arriving:
                del self._arriving[session_id]

    def apply(self, records: list[bytes]) -> None:
        """These records are committed and durable: apply them, tell watchers, answer."""
        state, watches, host, placed = self._state, self._watches, self._host, self._placed
        apply, changes, dirty = state.apply, state.changes, host.dirty
        for record in records:
            zxid, session_id, _, wall_ms, body = decode_txn(record)
            own: _Placed | None = None
            if placed and placed[0].zxid == zxid and placed[0].is_logged:
                own = placed.popleft()
                connection = own.asked[0]
                if connection.waiting and connection.waiting[0][0] <= connection.completed:
                    host.serve_before(connection)
            seen = len(changes)
            result = apply(zxid, session_id, wall_ms, body)
            if watches.count and len(changes) > seen:
                watches.announce(changes[seen:], dirty)
            if own is not None:
                self._answer(own, session_id, wall_ms, body, result)
            elif body[0] == _CLOSE_SESSION:
                key = zk.CLOSE_SESSION.key
                host.answer(Pending(zxid, session_id, wall_ms, body, None, 0, key, None, 0), result)
            if placed and placed[0].zxid <= zxid:
                self._settle(zxid)

    def _answer(self, own: _Placed, session_id: int, wall_ms: int, body: Any, result: Any) -> None:
        connection, correlation_id, api_key, _, note, size = own.asked
        if own.failure is not None:
            _, _, code, message, failed_at, op_count = own.failure
            note = Failure(code, message, failed_at, op_count)
        self._host.answer(
            Pending(
                *(own.zxid, session_id, wall_ms, body, connection),
                *(correlation_id, api_key, note, size),
            ),
            result,
        )
        self._complete(connection, size)

    def _settle(self, applied: int) -> None:
        """Answer what has its place behind what is applied."""
        placed, host = self._placed, self._host
        while placed and placed[0].zxid <= applied:
            _, is_logged, asked, failure = placed.popleft()
            assert not is_logged, (applied, asked)
            connection, correlation_id, api_key, _, note, size = asked
            if api_key == zk.SYNC.key and not connection.closed:
                connection.barrier_count -= 1
            if api_key == zk.CONNECT.key:
                self._has_arrived(connection, note.session_id)
            if connection.closed:
                pass
            elif failure is not None:
                closes = api_key == zk.CONNECT.key
                host.refuse(
                    connection, correlation_id, Refusal(failure.code, failure.message, closes)
                )
            elif api_key == zk.SYNC.key:
                host.answer_sync(connection, correlation_id, note)
            else:
                host.attach(connection, correlation_id, note)
            self._complete(connection, size)

    def _complete(self, connection: Connection, size: int) -> None:
        flow = self._flow
        flow.forwarded_count -= 1
        flow.forwarded_bytes -= size
        connection.completed += 1
        self._host.dirty[connection] = None
        waiting = connection.waiting
        if waiting and waiting[0][0] <= connection.completed:
            self._host.serve(connection)


def _frame(api_key: int, correlation_id: int, message: Any) -> bytes:
    api = zk.ZK_APIS[api_key]
    number = correlation_id & _U32_LAST or 1
    return b"".join(api.encode_request(number, message, api.max_version))


def _take_run(new: deque[_New]) -> bytes:
    """Take what the first connection asks by frames, as far as it fits a `Requests`."""
    frames: list[bytes] = []
    asker, size = new[0].connection, 0
    while new and len(frames) < MAX_REQUESTS:
        connection, frame, long_key = new[0]
        size += len(frame)
        if long_key or connection is not asker or size > MAX_REQUESTS_BYTES:
            break
        frames.append(frame)
        new.popleft()
    return b"".join(frames)
