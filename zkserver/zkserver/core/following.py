"""A follower's side of what only the leader can do: forwarded, placed, applied, answered.

    ask ---> Requests ---> (leader) ---> Answers: each has a zxid ---> applied up to there: answered
                                    `--> Proposal, Commit  --------'

Owns the numbers of what is forwarded, and the order of the answers. An answer names the zxid of a
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
from duolog_protocol.codec import Piece
from duolog_protocol.quorum_messages import (
    MAX_REQUESTS,
    MAX_REQUESTS_BYTES,
    Answers,
    Identity,
    RequestFailure,
    Requests,
)
from duolog_protocol.txns import TxnKind, decode_txn
from duolog_protocol.zk_codec import Refusal

from .connection import Connection
from .flow import Flow
from .pending import Failure, Pending
from .state import ReplicatedState
from .watches import Watches
from .writes import kinds_of

_FORWARDED_AS: Final = {zk.CREATE2_KEY: zk.CREATE.key}
"""Requests that native clients know by another number."""
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


class FollowingHost:
    """What `Following` needs of the core; the core's own methods."""

    __slots__ = ("answer", "answer_sync", "attach", "dirty", "refuse", "serve", "serve_before")

    def __init__(
        self,
        *,
        answer: Callable[[Pending, Any], None],
        answer_sync: Callable[[Connection, int, Any], None],
        attach: Callable[[Connection, int, Any], None],
        refuse: Callable[[Connection, int, Refusal], None],
        serve: Callable[[Connection], None],
        serve_before: Callable[[Connection], None],
        dirty: dict[Connection, None],
    ) -> None:
        self.answer = answer
        self.answer_sync = answer_sync
        self.attach = attach
        """A session's client has come here, and the leader knows."""
        self.refuse = refuse
        self.serve = serve
        self.serve_before = serve_before
        self.dirty = dirty


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
        self._new: list[tuple[Connection, list[tuple[int, int, Any]]]] = []
        """What is to be forwarded: runs of requests of one connection."""

    @property
    def count(self) -> int:
        """Forwarded, and not answered."""
        return len(self._unplaced) + len(self._placed)

    def ask(self, connection: Connection, api_key: int, correlation_id: int, message: Any) -> None:
        """Forward a request of a client; its answer comes in its turn."""
        connection.submitted += 1
        session = connection.session
        note: Any = None
        size = 0
        if api_key == zk.SET_DATA.key:
            size = len(message[1] or b"")
        elif api_key == zk.MULTI.key:
            note = kinds_of(message)
            size = sum(len(op.data or b"") for op in message.ops)
        elif api_key in (zk.CREATE.key, zk.CREATE2_KEY):
            size = len(message[1] or b"")
        elif api_key in (zk.SYNC.key, zk.CONNECT.key):
            note = message
        number = self._next_number
        self._next_number = number + 1
        session_id = 0 if session is None else session.session_id
        self._unplaced[number] = (connection, correlation_id, api_key, session_id, note, size)
        self._flow.forwarded_count += 1
        self._flow.forwarded_bytes += size
        request = (_FORWARDED_AS.get(api_key, api_key), correlation_id, message)
        if self._new and self._new[-1][0] is connection:
            self._new[-1][1].append(request)
        else:
            self._new.append((connection, [request]))

    def take_requests(self) -> list[Requests]:
        """What is to be told to the leader now, in order."""
        new, self._new = self._new, []
        number = self._next_number - sum(len(requests) for _, requests in new)
        found: list[Requests] = []
        for connection, requests in new:
            session_id = 0 if connection.session is None else connection.session.session_id
            identities = tuple(map(Identity._make, connection.identities))
            for count, frames in _frames_of(requests):
                found.append(Requests(number, session_id, identities, frames))
                number += count
        return found

    def on_answers(self, answers: Answers) -> None:
        """The leader has placed what was forwarded."""
        first_number, zxids, failures = answers
        failed = {each.position: each for each in failures} if failures else {}
        applied = self._state.last_applied_zxid
        for index, zxid in enumerate(zxids):
            asked = self._unplaced.pop(first_number + index)
            failure = failed.get(index)
            api_key, note = asked[2], asked[4]
            if failure is not None:
                is_logged = failure.is_logged
            else:
                is_logged = api_key != zk.SYNC.key and not (
                    api_key == zk.CONNECT.key and note.session_id
                )
            assert zxid > applied or (zxid == applied and not is_logged), (zxid, applied)
            self._placed.append(_Placed(zxid, is_logged, asked, failure))
        self._settle(applied)

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


def _frames_of(requests: list[tuple[int, int, Any]]) -> list[tuple[int, bytes]]:
    """Requests as frames, in parts that fit a `Requests`: how many, and their bytes."""
    parts: list[tuple[int, bytes]] = []
    pieces: list[Piece] = []
    count = size = 0
    for api_key, correlation_id, message in requests:
        api = zk.ZK_APIS[api_key]
        frame = api.encode_request(correlation_id & _U32_LAST or 1, message, api.max_version)
        frame_bytes = sum(map(len, frame))
        if count == MAX_REQUESTS or (count and size + frame_bytes > MAX_REQUESTS_BYTES):
            parts.append((count, b"".join(pieces)))
            pieces, count, size = [], 0, 0
        pieces += frame
        count += 1
        size += frame_bytes
    parts.append((count, b"".join(pieces)))
    return parts
