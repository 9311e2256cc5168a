"""The life of a session: opened, attached to a connection, moved to another, closed or expired.

    Connect, new               CreateSession is logged --> applied: attached
    Connect, with a password   attached at once; the connection that had it is closed
    CloseSession, silence      `closing`, CloseSession is logged --> applied: gone, and its
                               connection is closed
    no space for the record    never opened; or open as before

Owns the decision who gets a session and when one ends, and what clients are told of it. The old
connection of a session must not be touched before the password was checked. When a session was
heard of last is the tracker's. Source: ZooKeeper `ZooKeeperServer.processConnectRequest`,
`reopenSession`, `SessionTrackerImpl`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import Any, Final

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.txns import CloseReason, TxnKind
from duolog_protocol.zk_codec import Refusal

from .config import CoreConfig
from .connection import Connection
from .pending import Pending
from .prepare import Preparer
from .proposals import Proposals
from .session_tracker import Session, SessionTracker, session_password
from .state import ReplicatedState

_EXPIRED_AT_ONCE: Final = 16
"""Sessions between two looks at how much is outstanding: each may own 2 MiB of paths."""

MOVED: Final = "the session moved to another connection"

_LOCAL_ID_BITS: Final = 48
Forward = Callable[[Connection, int, int, Any], None]
"""Takes (connection, api key, correlation id, message)."""


class Sessions:
    """Opens, attaches and ends the sessions of one server's clients."""

    def __init__(
        self,
        config: CoreConfig,
        state: ReplicatedState,
        tracker: SessionTracker,
        preparer: Preparer,
        proposals: Proposals,
        *,
        refuse: Callable[[Connection, int, Refusal], None],
        close: Callable[[Connection, str], None],
        on_attached: Callable[[Connection], None],
    ) -> None:
        """`on_attached` hears of a connection that has a session, and its answer in `out`."""
        self._config = config
        self._state = state
        self._tracker = tracker
        self._preparer = preparer
        self._proposals = proposals
        self._refuse = refuse
        self._close = close
        self._on_attached = on_attached
        self._forward: Forward | None = None
        self._on_coming: Callable[[int], None] | None = None
        self._read_only = False
        """Nothing can be logged: sessions are what they are, or this server's own."""
        self._local_count = 0

    def begin_term(
        self,
        *,
        forward: Forward | None = None,
        on_coming: Callable[[int], None] | None = None,
        read_only: bool = False,
    ) -> None:
        """Where to take what only the leader can do, on a server that follows; in an ensemble, who
        hears of a session that is not new and whose client has come to this server."""
        self._forward = forward
        self._on_coming = on_coming
        self._read_only = read_only

    def connect(
        self, connection: Connection, correlation_id: int, message: Any, now_ms: int
    ) -> None:
        """A client asks for a session, a new one or its old one."""
        if connection.session is not None:
            text = "the connection has a session already"
            self._refuse(connection, correlation_id, Refusal(ZkErrorCode.BAD_ARGUMENTS, text, True))
            return
        applied = self._state.last_applied_zxid
        if message.last_zxid_seen > applied:
            text = (
                f"this server is at {applied:#x}, the client has seen {message.last_zxid_seen:#x}"
            )
            refusal = Refusal(ZkErrorCode.SERVER_BEHIND_CLIENT, text, True)
            self._refuse(connection, correlation_id, refusal)
            return
        if self._read_only:
            self._connect_to_read(connection, correlation_id, message)
        elif self._forward is not None:
            if message.session_id:
                self._leave_before_asking(message)
            self._forward(connection, zk.CONNECT.key, correlation_id, message)
        elif message.session_id:
            session = self.take_over(
                message.session_id, message.password, message.timeout_ms, connection, now_ms
            )
            if session is None:
                self._refuse_to_attach(connection, correlation_id, message)
            else:
                if self._on_coming is not None:
                    self._on_coming(session.session_id)
                self._attach(connection, session, correlation_id)
        else:
            connection.submitted += 1
            self.log_open(message.timeout_ms, correlation_id, now_ms, connection)

    def _connect_to_read(self, connection: Connection, correlation_id: int, message: Any) -> None:
        """A client that is content with reading; a new session ends with this server's trouble."""
        if not message.read_only:
            self._close(connection, "there is no leader, and the client wants to write, too")
            return
        if message.session_id:
            session = self._find(message.session_id, message.password)
            if session is None:
                if message.session_id < 0:  # one of a reader, which has ended with its connection
                    self._refuse_unknown(connection, correlation_id, message.session_id)
                else:  # it may live: this server may be behind
                    self._close(connection, f"session {message.session_id:#x} is not known here")
                return
            self._leave_old(session, connection)
        else:
            self._local_count += 1
            session_id = -(self._config.server_id << _LOCAL_ID_BITS | self._local_count)
            session = Session(session_id, self._negotiated(message.timeout_ms))
        self._attach(connection, session, correlation_id)

    def _leave_before_asking(self, message: Any) -> None:
        """What the client has asked here by other connections stands before its coming; they ask
        no more. The leader could not tell that: to it they are all of this server."""
        if self._is_shown(message.session_id, message.password):
            session = self._state.sessions.get(message.session_id)
            if session is not None:
                self._leave_old(session, None)
            if self._on_coming is not None:
                self._on_coming(message.session_id)

    def _refuse_to_attach(self, connection: Connection, correlation_id: int, message: Any) -> None:
        """Say that a session is no more, unless it only is not applied here yet: a quorum without
        us has it on disk. Its client comes again, or to another server."""
        session_id = message.session_id
        if self._find(session_id, message.password, also_opening=True) is None:
            self._refuse_unknown(connection, correlation_id, session_id)
            return
        text = f"session {session_id:#x} is not applied here yet"
        refusal = Refusal(ZkErrorCode.SERVER_BEHIND_CLIENT, text, True)
        self._refuse(connection, correlation_id, refusal)

    def _refuse_unknown(self, connection: Connection, correlation_id: int, session_id: int) -> None:
        text = f"session {session_id:#x} does not exist (any more)"
        self._refuse(connection, correlation_id, Refusal(ZkErrorCode.SESSION_EXPIRED, text, True))

    def _negotiated(self, timeout_ms: int) -> int:
        config = self._config
        return min(max(timeout_ms, config.session_timeout_low_ms), config.session_timeout_high_ms)

    def log_open(
        self,
        timeout_ms: int,
        correlation_id: int,
        now_ms: int,
        connection: Connection | None = None,
    ) -> Session:
        """Log that a session is opened: by a client of ours, or by one of a learner."""
        timeout_ms = self._negotiated(timeout_ms)
        zxid = self._proposals.next_zxid()
        session = self._state.opening[zxid] = Session(zxid, timeout_ms)
        body = (TxnKind.CREATE_SESSION, timeout_ms)
        if connection is None:
            self._proposals.add(zxid, zxid, body, None, correlation_id)
            self._tracker.touch(session, now_ms)
        else:
            key = zk.CONNECT.key
            self._proposals.add(zxid, zxid, body, connection, correlation_id, key)
        return session

    def take_over(
        self,
        session_id: int,
        password: bytes,
        timeout_ms: int,
        connection: Connection | None,
        now_ms: int,
    ) -> Session | None:
        """A session's client has come to us by this connection, or (None) to a learner.

        None where it has not shown that the session is its own, or the session is ending. A learner
        may know a session sooner than we: a quorum without us has it on disk.
        """
        session = self._find(session_id, password, also_opening=connection is None)
        if session is not None:
            self._leave_old(session, connection)
            self._tracker.renegotiate(session, self._negotiated(timeout_ms), now_ms)
        return session

    def attach_known(
        self, connection: Connection, correlation_id: int, message: Any, now_ms: int
    ) -> None:
        """The leader knows that a session's client has come to this server, which follows."""
        session = self._state.sessions.get(message.session_id)
        if session is None:  # it was closed in between
            self._refuse_unknown(connection, correlation_id, message.session_id)
            return
        self._leave_old(session, connection)
        self._tracker.renegotiate(session, self._negotiated(message.timeout_ms), now_ms)
        self._attach(connection, session, correlation_id)

    def leave(self, session_id: int) -> None:
        """A session's client has gone to another server."""
        session = self._state.sessions.get(session_id)
        if session is not None:
            self._leave_old(session, None)

    def on_created(self, each: Pending, session: Session, now_ms: int) -> None:
        """A CreateSession was applied."""
        connection = each.connection
        assert connection is not None
        self._tracker.touch(session, now_ms)
        if not connection.closed:
            self._attach(connection, session, each.correlation_id)

    def take_close(self, connection: Connection, session: Session, correlation_id: int) -> None:
        """A client ends its session: the last request that is taken from it."""
        if session.closing:
            text = "the session has expired"
            refusal = Refusal(ZkErrorCode.SESSION_EXPIRED, text, True)
            self._refuse(connection, correlation_id, refusal)
            return
        connection.last_request_taken = True
        if self._read_only:
            zxid = self._state.last_applied_zxid
            connection.out.append(connection.codec.empty(correlation_id, zxid))
            self._close(connection, "the client has gone")
            return
        if self._forward is not None:
            message = zk.Empty()
            self._forward(connection, zk.CLOSE_SESSION.key, correlation_id, message)
            return
        connection.submitted += 1
        self.log_close(session, CloseReason.CLOSED, correlation_id, connection)

    def log_close(
        self,
        session: Session,
        reason: int,
        correlation_id: int = 0,
        connection: Connection | None = None,
    ) -> None:
        """Log that a session ends. `connection`: of ours, whose client has asked for that."""
        session.closing = True
        self._tracker.forget(session)
        body = self._preparer.close_session(session, reason)
        zxid = self._proposals.next_zxid()
        key = zk.CLOSE_SESSION.key
        self._proposals.add(zxid, session.session_id, body, connection, correlation_id, key)

    def on_closed(self, each: Pending, session: Session) -> None:
        """A CloseSession was applied."""
        self._tracker.forget(session)  # where the leader has logged it, not we
        asked, connection = each.connection, session.connection
        if asked is not None and not asked.closed:
            asked.out.append(asked.codec.empty(each.correlation_id, each.zxid))
            self._close(asked, "the session was closed")
        elif connection is not None and not connection.closed:
            self._close(connection, "the session has expired")

    def expire(self, unheard: Iterable[Connection], now_ms: int) -> None:
        """Close the sessions that were silent too long; some at a time, so that others are heard.
        `unheard`: see `hear_unread`."""
        self.hear_unread(unheard, now_ms)
        limit = self._config.max_expirations_per_step
        while limit > 0 and self._proposals.bytes_count < self._config.max_outstanding_bytes:
            expired = self._tracker.take_expired(now_ms, min(limit, _EXPIRED_AT_ONCE))
            if not expired:
                return
            limit -= len(expired)
            for session in expired:
                if not session.closing:
                    self.log_close(session, CloseReason.EXPIRED)

    def hear_unread(self, unheard: Iterable[Connection], now_ms: int) -> None:
        """Who is not read for what is outstanding here cannot be heard, and counts as heard."""
        for connection in unheard:
            session = connection.session
            if session is not None and not session.closing:
                self._tracker.touch(session, now_ms)

    def take_back(self, each: Pending, now_ms: int) -> None:
        """A Txn will never be durable: where it opens or ends a session, it did not."""
        assert each.body is not None, each
        kind = each.body[0]
        if kind == TxnKind.CREATE_SESSION:
            self._state.opening.pop(each.session_id, None)
        elif kind == TxnKind.CLOSE_SESSION:
            session = self._state.sessions[each.session_id]
            session.closing = False
            self._tracker.touch(session, now_ms)

    def _find(
        self, session_id: int, password: bytes, *, also_opening: bool = False
    ) -> Session | None:
        """The session that a client has shown to be its own, unless it is ending."""
        if not self._is_shown(session_id, password):
            return None
        session = self._state.sessions.get(session_id)
        if session is None and also_opening:
            session = self._state.opening.get(session_id)
        return None if session is None or session.closing else session

    def _is_shown(self, session_id: int, password: bytes) -> bool:
        """Whether the client has the password of the session, which may not be."""
        expected = session_password(self._state.secret, session_id)
        return hmac.compare_digest(expected, password)

    def _leave_old(self, session: Session, new: Connection | None) -> None:
        """The connection that a session had ends, where it has another one now."""
        old = session.connection
        if old is not None and old is not new:
            self._close(old, MOVED)

    def _attach(self, connection: Connection, session: Session, correlation_id: int) -> None:
        connection.session = session
        connection.codec.known_peer = True
        session.connection = connection
        reply = zk.ConnectResponse(
            session.timeout_ms,
            session.session_id,
            session_password(self._state.secret, session.session_id),
            self._read_only,
            self._config.server_id,
        )
        zxid = self._state.last_applied_zxid
        connection.out.append(connection.codec.reply(zk.CONNECT.key, correlation_id, zxid, reply))
        self._on_attached(connection)
