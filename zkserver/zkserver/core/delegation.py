"""A leader's side of what its learners forward for their clients.

Owns which server a session's client is connected to, as far as it is known, and the places in the
log that forwarded requests get: answered in order, ahead of the proposals, so that a learner knows
its own Txns when they come. What a client may do is decided here, by the identities that its server
has told. Source: ZooKeeper `LearnerHandler` (REQUEST, PING, REVALIDATE), `setOwner` and
`SessionMovedException`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.errors import DecodeError, Error, RemoteProtocolError
from duolog_protocol.long_requests import decode_fields
from duolog_protocol.quorum_messages import (
    MAX_FAILURE_BYTES,
    MAX_FAILURES,
    Answers,
    LongRequest,
    RequestFailure,
    Requests,
    SessionTaken,
)
from duolog_protocol.txns import CloseReason
from duolog_protocol.zk_codec import REFUSED, Refusal
from duolog_protocol.zk_decoder import NativeDecoder
from duolog_protocol.zk_messages import MAX_FRAME_BYTES

from .connection import Codec, Connection
from .ensemble_events import Confirm, EnsembleEffect, TellLearner
from .pending import Failure
from .prepare import Refused
from .proposals import Proposals
from .session_tracker import Session
from .sessions import Sessions
from .state import ReplicatedState
from .writes import Writes

_MESSAGE_CHARS: Final = MAX_FAILURE_BYTES // 4
_NO_CODEC: Final[Codec] = None  # type: ignore[assignment]  # nobody is answered through it


class Delegation:
    """What one established leader does for the clients of its learners."""

    def __init__(
        self,
        state: ReplicatedState,
        proposals: Proposals,
        sessions: Sessions,
        writes: Writes,
    ) -> None:
        self._state = state
        self._proposals = proposals
        self._sessions = sessions
        self._writes = writes
        self._owners: dict[int, Any] = {}
        """Session id -> link of the learner that its client is connected to.

        Only sessions that live, or are about to. One that is not here has its client at the leader
        itself, or nowhere: nothing is taken for it from a learner, where it may be on its way from
        a connection that the session has left.
        """
        self._decoder = _new_decoder()
        self._effects: list[EnsembleEffect] = []

    def take_effects(self) -> list[EnsembleEffect]:
        """What is to be told, in order; ahead of the records that were logged meanwhile."""
        effects, self._effects = self._effects, []
        return effects

    def forget(self, link: Any) -> None:
        """A learner has gone; its clients will come to another server."""
        for session_id in [each for each, owner in self._owners.items() if owner is link]:
            del self._owners[session_id]

    def taken_here(self, session_id: int) -> None:
        """A session's client has connected to the leader itself."""
        self._move(session_id, None)

    def on_closed(self, session_id: int) -> None:
        """The session is no more."""
        self._owners.pop(session_id, None)

    def take(self, link: Any, message: Requests | LongRequest, now_ms: int) -> None:
        """Log what a learner forwards. Raises RemoteProtocolError: nothing of it was taken."""
        if isinstance(message, Requests):
            number, session_id, identities, frames = message
            requests = self._decode(frames)
        else:
            number, session_id, identities, api_key, fields = message
            requests = [_decode_long(api_key, fields)]
        asker = Connection(_NO_CODEC, "", link, identities)
        asker.session = self._session(session_id)
        answers = _Answers(link, number, self._effects)
        for api_key, correlation_id, body in requests:
            if api_key == zk.SYNC.key:
                answers.answer_later(partial(self._answer_sync, link))
                continue
            try:
                failure = self._take_one(asker, link, api_key, correlation_id, body, now_ms)
            except Refused as error:
                answers.refuse(self._proposals.last_logged_zxid, error)
            else:
                answers.add(self._proposals.last_logged_zxid, failure)
        answers.flush()

    def _decode(self, frames: bytes) -> list[tuple[int, int, Any]]:
        decoder = self._decoder
        try:
            requests = decoder.feed(frames)
        except Error as error:
            self._decoder = _new_decoder()
            raise RemoteProtocolError(f"requests cannot be decoded: {error}") from error
        if decoder.pending_bytes:
            raise RemoteProtocolError("the last request is not complete")
        return requests

    def _session(self, session_id: int) -> Session | None:
        """The session that a learner names; also one that is not applied yet."""
        state = self._state
        return state.sessions.get(session_id) or state.opening.get(session_id)

    def _take_one(
        self,
        asker: Connection,
        link: Any,
        api_key: int,
        correlation_id: int,
        message: Any,
        now_ms: int,
    ) -> Failure | None:
        if api_key == REFUSED:
            raise Refused(message.code or ZkErrorCode.MARSHALLING_ERROR, message.message)
        if api_key == zk.CONNECT.key:
            if message.session_id:
                self._take_over(link, message, now_ms)
            else:
                session = self._sessions.log_open(message.timeout_ms, correlation_id, now_ms)
                self._owners[session.session_id] = link
            return None
        session = asker.session  # type: ignore[assignment]
        if session is None or session.closing:
            raise Refused(ZkErrorCode.SESSION_EXPIRED, "the session has expired")
        if self._owners.get(session.session_id) is not link:
            raise Refused(ZkErrorCode.SESSION_MOVED, "the session moved to another server")
        if api_key == zk.CLOSE_SESSION.key:
            self._sessions.log_close(session, CloseReason.CLOSED, correlation_id)
            return None
        writes = self._writes
        if api_key == zk.SET_DATA.key and writes.log_plain_set(asker, message, correlation_id):
            return None
        if api_key not in writes:
            raise Refused(ZkErrorCode.UNIMPLEMENTED, f"api {api_key} is no write")
        return writes.log(asker, api_key, correlation_id, message, is_ours=False)

    def _take_over(self, link: Any, message: Any, now_ms: int) -> None:
        session = self._sessions.take_over(
            message.session_id, message.password, message.timeout_ms, None, now_ms
        )
        if session is None:
            text = f"session {message.session_id:#x} does not exist (any more)"
            raise Refused(ZkErrorCode.SESSION_EXPIRED, text)
        self._move(session.session_id, link)

    def _move(self, session_id: int, link: Any) -> None:
        old = self._owners.pop(session_id, None)
        if old is not None and old is not link:
            self._effects.append(TellLearner(old, SessionTaken(session_id)))
        if link is not None:
            self._owners[session_id] = link

    def _answer_sync(self, link: Any, number: int) -> None:
        """Everything that was acknowledged before the sync came is logged by now."""
        zxid = self._proposals.last_logged_zxid
        self._effects.append(TellLearner(link, Answers(number, (zxid,), ())))


class _Answers:
    """The answers to one `Requests`, as few messages as they fit."""

    def __init__(self, link: Any, first_number: int, effects: list[EnsembleEffect]) -> None:
        self._link = link
        self._number = first_number
        self._effects = effects
        self._zxids: list[int] = []
        self._failures: list[RequestFailure] = []

    def add(self, zxid: int, failure: Failure | None) -> None:
        """The next one is the Txn with this zxid."""
        if failure is not None:
            self._fail(RequestFailure(0, True, *_short(failure)))
        self._zxids.append(zxid)

    def refuse(self, zxid: int, error: Refused) -> None:
        """The next one is not logged; it is told so behind this zxid."""
        self._fail(RequestFailure(0, False, int(error.code), error.message[:_MESSAGE_CHARS], -1, 0))
        self._zxids.append(zxid)

    def answer_later(self, answer: Callable[[int], None]) -> None:
        """The next one has no place yet: a quorum is asked first."""
        self.flush()
        self._effects.append(Confirm(partial(answer, self._number)))
        self._number += 1

    def _fail(self, failure: RequestFailure) -> None:
        if len(self._failures) == MAX_FAILURES:
            self.flush()
        self._failures.append(failure._replace(position=len(self._zxids)))

    def flush(self) -> None:
        """Tell what has gathered."""
        if self._zxids:
            answers = Answers(self._number, tuple(self._zxids), tuple(self._failures))
            self._effects.append(TellLearner(self._link, answers))
            self._number += len(self._zxids)
            self._zxids, self._failures = [], []


def _new_decoder() -> NativeDecoder:
    decoder = NativeDecoder(MAX_FRAME_BYTES)
    decoder.known_peer = True
    return decoder


def _decode_long(api_key: int, fields: bytes) -> tuple[int, int, Any]:
    try:
        return api_key, 0, decode_fields(api_key, fields)
    except DecodeError as error:
        return REFUSED, 0, Refusal(ZkErrorCode.MARSHALLING_ERROR, str(error), True)


def _short(failure: Failure) -> tuple[int, str, int, int]:
    code, message, failed_at, op_count = failure
    return int(code), message[:_MESSAGE_CHARS], failed_at, op_count
