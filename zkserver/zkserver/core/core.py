"""The coordination server's core: events in, effects out, no I/O.

Owns the order of everything: zxids, what is logged and not yet durable, and per connection the
order of replies. It must never apply what is not durable, answer a write before it is applied, or
show a change in a reply before the watch events of that change went out on the same connection.

    Received --> prepare --> Append --------------> (disk) --> Durable --> apply --> events, replies
                    \\-> reads: at once, or behind the connection's own writes

    applied <= durable <= logged; zxids of the log rise by one, or open a new epoch at counter 0

Source: ZooKeeper's request processor chain (`Prep`, `Sync`, `Final`), `SessionTrackerImpl`.
"""

from __future__ import annotations

import hmac
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import API_VERSIONS
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.errors import DecodeError, StorageError
from duolog_protocol.txns import Body, CloseReason, TxnKind, decode_txn, encode_txn
from duolog_protocol.types import ZXID_EPOCH_LAST, EventType, counter_of, epoch_of, make_zxid
from duolog_protocol.zk_codec import REFUSED, Refusal

from .config import CoreConfig
from .connection import Connection
from .events import (
    Append,
    AppendRefused,
    Close,
    ConnectionLost,
    Durable,
    Effect,
    Event,
    Halt,
    PauseReading,
    Received,
    Request,
    ResumeReading,
    Send,
    SessionAttached,
    TimerFired,
)
from .pending import Pending, failure_reply, write_reply
from .prepare import Preparer, Refused, Rejected
from .reads import Reads
from .session_tracker import Session, SessionTracker, session_password
from .snapshot import Snapshot, load_snapshot
from .state import Change, ReplicatedState
from .status import Status
from .views import Views
from .watches import Watches

SECRET_BYTES: Final = 32
MAX_OVERLAY_ENTRIES: Final = 50_000
"""Paths in the overlay of outstanding changes beyond which it is made anew from them."""
_SYNC: Final = 0
"""`kind` of a pending entry that is no Txn: a sync waits there for its turn."""
_DELETED: Final = int(EventType.DELETED)
_CHANGED: Final = int(EventType.CHANGED)


class ZkCore:
    """One server's core. Standalone it is an ensemble of one: logged is proposed."""

    def __init__(self, config: CoreConfig, rng: random.Random) -> None:
        self.config = config
        self._rng = rng
        self._tracker = SessionTracker(config.tick_ms)
        self._watches = Watches()
        self._use(ReplicatedState())
        self._last_logged_zxid = 0
        self._pending: deque[Pending] = deque()
        """In zxid order; what is at the left is applied next."""
        self._pending_bytes = 0
        self._now_ms = 0
        self._wall_ms = 0
        self._records: list[bytes] = []
        self._first_zxid = 0
        """Of `_records`, the Append of this step."""
        self._dirty: dict[Connection, None] = {}
        """Connections with something to send, in the order in which they got it."""
        self._closing: dict[Connection, str] = {}
        self._later: list[Effect] = []
        self._paused: dict[Connection, None] = {}
        self._changes: list[Change] = []
        self._received_count = 0
        self._sent_count = 0
        self._write: Final[dict[int, Callable[[Connection, int, Any], Body]]] = {
            zk.SET_DATA.key: lambda _connection, _id, message: self._preparer.set_data(*message),
            zk.CREATE.key: lambda connection, _id, message: self._preparer.create(
                _session_of(connection), message
            ),
            zk.DELETE.key: lambda connection, _id, message: self._preparer.delete(
                _session_of(connection), message
            ),
            zk.CHECK.key: lambda _connection, _id, message: self._preparer.check(message),
            zk.MULTI.key: lambda connection, _id, message: self._preparer.multi(
                _session_of(connection), message.ops
            ),
        }

    def _use(self, state: ReplicatedState) -> None:
        self.state = state
        self._reads = Reads(self.config, state, self._watches)
        self._preparer = Preparer(self.config, state)

    # ---- recovery ------------------------------------------------------------------------------

    def load_snapshot(self, chunks: Iterable[bytes]) -> None:
        """Begin with a snapshot. Raises StorageError."""
        assert self._last_logged_zxid == 0, "a snapshot comes before any record"
        self._use(load_snapshot(chunks))
        self._last_logged_zxid = self.state.last_applied_zxid

    def replay(self, record: bytes) -> int:
        """Apply a record of the log and return its zxid. Raises StorageError."""
        try:
            txn = decode_txn(record)
        except DecodeError as error:
            raise StorageError(f"a log record cannot be decoded: {error}") from error
        self.state.replay(txn)
        self._last_logged_zxid = txn.zxid
        return txn.zxid

    def start(self, epoch: int, now_ms: int, wall_ms: int) -> list[Effect]:
        """Open an epoch; every session gets its full timeout again."""
        assert epoch > epoch_of(self._last_logged_zxid), (epoch, self._last_logged_zxid)
        self._now_ms, self._wall_ms = now_ms, wall_ms
        for session in self.state.sessions.values():
            self._tracker.touch(session, now_ms)
        secret = b"" if self.state.secret else self._rng.randbytes(SECRET_BYTES)
        self._log_txn(make_zxid(epoch, 0), 0, (TxnKind.NEW_EPOCH, secret))
        return self._effects()

    # ---- the way in ----------------------------------------------------------------------------

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """Take an event; the effects are to be performed in order."""
        self._now_ms = now_ms
        self._tracker.look_at_clock(now_ms)
        kind = type(event)
        if kind is Received:
            self._on_received(event)  # type: ignore[arg-type]
        elif kind is Durable:
            self._on_durable(event.zxid)  # type: ignore[union-attr]
        else:
            self._on_rare(event)
        return self._effects()

    def deadline_ms(self) -> int | None:
        """When to step(TimerFired()) if nothing else happens."""
        return self._tracker.deadline_ms()

    def _on_rare(self, event: Event) -> None:
        match event:
            case TimerFired(wall_ms=wall_ms):
                self._wall_ms = wall_ms
                limit = self.config.max_expirations_per_step
                for session in self._tracker.take_expired(self._now_ms, limit):
                    self._close_session(session, CloseReason.EXPIRED, None, 0)
            case ConnectionLost(connection=connection):
                self._on_connection_lost(connection)
            case AppendRefused(first_zxid=first_zxid):
                self._on_append_refused(first_zxid)
            case _:
                raise AssertionError(f"unknown event {event!r}")

    def _effects(self) -> list[Effect]:
        effects: list[Effect] = []
        if self._records:
            effects.append(Append(self._records, self._first_zxid, self._last_logged_zxid))
            self._records = []
        for connection in self._dirty:
            out = connection.out
            if out:
                self._sent_count += len(out)
                effects.append(Send(connection, out))
                connection.out = []
        self._dirty.clear()
        if self._closing:
            effects += [Close(connection, why) for connection, why in self._closing.items()]
            self._closing.clear()
        if self._later:
            effects += self._later
            self._later = []
        return effects

    # ---- requests ------------------------------------------------------------------------------

    def _on_received(self, event: Received) -> None:
        connection = event.connection
        if connection.closed:
            return
        self._wall_ms = event.wall_ms
        requests = event.requests
        self._received_count += len(requests)
        session = connection.session
        if session is not None and not session.closing:
            self._tracker.touch(session, self._now_ms)
        self._dirty[connection] = None
        take, waiting = self._take, connection.waiting
        for request in requests:
            if waiting:
                waiting.append((connection.submitted, request))
            else:
                take(connection, request)
            if connection.last_request_taken:
                break
        self._maybe_pause(connection)

    def _take(self, connection: Connection, request: Request) -> None:
        """Answer a request, log it, or let it wait behind the connection's own writes."""
        api_key, correlation_id, message = request
        write = self._write.get(api_key)
        if write is not None and connection.session is not None:
            self._submit(connection, api_key, correlation_id, message, write)
        elif connection.submitted != connection.completed:
            connection.waiting.append((connection.submitted, request))
        elif self._reads.knows(api_key) and (
            connection.session is not None or api_key == API_VERSIONS.key
        ):
            self._reads.serve(connection, request)
        else:
            self._take_rare(connection, request)

    def _take_rare(self, connection: Connection, request: Request) -> None:
        """What comes once in a connection, or should not come; nothing of it is outstanding."""
        api_key, correlation_id, message = request
        if api_key == REFUSED:
            self._refuse(connection, correlation_id, message)
        elif api_key == zk.CONNECT.key:
            self._connect(connection, correlation_id, message)
        elif connection.session is None:
            text = "a session must be opened first: send Connect"
            refusal = Refusal(ZkErrorCode.UNKNOWN_SESSION, text, True)
            self._refuse(connection, correlation_id, refusal)
        elif api_key == zk.SYNC.key:
            self._sync(connection, correlation_id, message)
        elif api_key == zk.CLOSE_SESSION.key:
            connection.last_request_taken = True
            self._close_session(connection.session, CloseReason.CLOSED, connection, correlation_id)
        else:
            raise AssertionError(f"api {api_key} is in the table and nobody takes it")

    def _refuse(self, connection: Connection, correlation_id: int, refusal: Refusal) -> None:
        if refusal.code:
            zxid = self.state.last_applied_zxid
            connection.out.append(
                connection.codec.error(correlation_id, refusal.code, zxid, refusal.message)
            )
        if refusal.closes:
            self._close(connection, refusal.message)

    def _submit(
        self,
        connection: Connection,
        api_key: int,
        correlation_id: int,
        message: Any,
        write: Callable[[Connection, int, Any], Body],
    ) -> None:
        session = _session_of(connection)
        failure: Rejected | None = None
        try:
            if session.closing:
                raise Refused(ZkErrorCode.SESSION_EXPIRED, "the session is ending")
            body = write(connection, correlation_id, message)
        except Refused as error:
            refusal = Refusal(error.code, error.message, False)
            self._take_in_order(connection, (REFUSED, correlation_id, refusal))
            return
        except Rejected as error:
            failure = error
            body = (TxnKind.ERROR, error.code)
        connection.submitted += 1
        self._log_txn(
            self._next_zxid(),
            session.session_id,
            body,
            connection,
            correlation_id,
            api_key,
            failure,
        )

    def _take_in_order(self, connection: Connection, request: Request) -> None:
        if connection.submitted != connection.completed:
            connection.waiting.append((connection.submitted, request))
        else:
            self._take_rare(connection, request)

    def _sync(self, connection: Connection, correlation_id: int, message: Any) -> None:
        """Answered when everything that is logged now is applied (standalone: a quorum of one)."""
        if not self._pending:
            self._answer_sync(connection, correlation_id, message)
            return
        connection.submitted += 1
        self._pending.append(
            Pending(
                self._last_logged_zxid,
                *(0, 0, None, connection, correlation_id, zk.SYNC.key, message, 0),
            )
        )

    def _answer_sync(self, connection: Connection, correlation_id: int, message: Any) -> None:
        reply = zk.SyncResponse(message.path)
        zxid = self.state.last_applied_zxid
        connection.out.append(connection.codec.reply(zk.SYNC.key, correlation_id, zxid, reply))

    # ---- sessions ------------------------------------------------------------------------------

    def _connect(self, connection: Connection, correlation_id: int, message: Any) -> None:
        if connection.session is not None:
            text = "the connection has a session already"
            self._refuse(connection, correlation_id, Refusal(ZkErrorCode.BAD_ARGUMENTS, text, True))
            return
        applied = self.state.last_applied_zxid
        if message.last_zxid_seen > applied:
            text = (
                f"this server is at {applied:#x}, the client has seen {message.last_zxid_seen:#x}"
            )
            refusal = Refusal(ZkErrorCode.SERVER_BEHIND_CLIENT, text, True)
            self._refuse(connection, correlation_id, refusal)
            return
        low, high = self.config.session_timeout_low_ms, self.config.session_timeout_high_ms
        timeout_ms = min(max(message.timeout_ms, low), high)
        if message.session_id:
            self._attach_again(connection, correlation_id, message, timeout_ms)
            return
        zxid = self._next_zxid()
        self.state.opening[zxid] = Session(zxid, timeout_ms)
        connection.submitted += 1
        body = (TxnKind.CREATE_SESSION, timeout_ms)
        self._log_txn(zxid, zxid, body, connection, correlation_id, zk.CONNECT.key)

    def _attach_again(
        self, connection: Connection, correlation_id: int, message: Any, timeout_ms: int
    ) -> None:
        """The password is checked before the old connection is touched."""
        session = self.state.sessions.get(message.session_id)
        expected = session_password(self.state.secret, message.session_id)
        known = hmac.compare_digest(expected, message.password)
        if session is None or session.closing or not known:
            text = f"session {message.session_id:#x} does not exist (any more)"
            refusal = Refusal(ZkErrorCode.SESSION_EXPIRED, text, True)
            self._refuse(connection, correlation_id, refusal)
            return
        old = session.connection
        if old is not None and old is not connection:
            self._forget_connection(old)
            self._closing[old] = "the session moved to another connection"
        self._tracker.renegotiate(session, timeout_ms, self._now_ms)
        self._attach(connection, session, correlation_id)

    def _attach(self, connection: Connection, session: Session, correlation_id: int) -> None:
        connection.session = session
        connection.codec.known_peer = True
        session.connection = connection
        reply = zk.ConnectResponse(
            session.timeout_ms,
            session.session_id,
            session_password(self.state.secret, session.session_id),
            False,
            self.config.server_id,
        )
        zxid = self.state.last_applied_zxid
        connection.out.append(connection.codec.reply(zk.CONNECT.key, correlation_id, zxid, reply))
        self._dirty[connection] = None
        self._later.append(SessionAttached(connection))

    def _close_session(
        self, session: Session, reason: int, connection: Connection | None, correlation_id: int
    ) -> None:
        if session.closing:
            return
        session.closing = True
        self._tracker.forget(session)
        body = self._preparer.close_session(session, reason)
        if connection is not None:
            connection.submitted += 1
        self._log_txn(
            self._next_zxid(),
            session.session_id,
            body,
            connection,
            correlation_id,
            zk.CLOSE_SESSION.key,
        )

    def _on_connection_lost(self, connection: Connection) -> None:
        self._forget_connection(connection)
        self._closing.pop(connection, None)

    def _forget_connection(self, connection: Connection) -> None:
        """It has ended, or is about to: its watches go, its session stays (A.9)."""
        connection.closed = True
        connection.waiting.clear()
        self._watches.remove_connection(connection)
        self._paused.pop(connection, None)
        session = connection.session
        if session is not None and session.connection is connection:
            session.connection = None

    def _close(self, connection: Connection, reason: str) -> None:
        """Close after what was sent; nothing it says counts any more."""
        connection.last_request_taken = True
        self._closing[connection] = reason
        self._forget_connection(connection)
        self._dirty[connection] = None

    # ---- logging -------------------------------------------------------------------------------

    def _next_zxid(self) -> int:
        last = self._last_logged_zxid
        if counter_of(last) >= self.config.zxid_counter_last:
            epoch = epoch_of(last) + 1
            if epoch > ZXID_EPOCH_LAST:
                self._later.append(Halt("no epoch is left"))
            self._log_txn(make_zxid(epoch, 0), 0, (TxnKind.NEW_EPOCH, b""))
            last = self._last_logged_zxid
        return last + 1

    def _log_txn(
        self,
        zxid: int,
        session_id: int,
        body: Body,
        connection: Connection | None = None,
        correlation_id: int = 0,
        api_key: int = 0,
        failure: Rejected | None = None,
    ) -> None:
        assert zxid > self._last_logged_zxid, (zxid, self._last_logged_zxid)
        wall_ms = self._wall_ms
        record = encode_txn(zxid, session_id, correlation_id, wall_ms, body)
        size = len(record)
        if not self._records:
            self._first_zxid = zxid
        self._records.append(record)
        self._last_logged_zxid = zxid
        self._pending_bytes += size
        self._pending.append(
            _make_pending(
                Pending,
                (
                    zxid,
                    session_id,
                    wall_ms,
                    body,
                    connection,
                    correlation_id,
                    api_key,
                    failure,
                    size,
                ),
            )
        )

    # ---- applying ------------------------------------------------------------------------------

    def _on_durable(self, zxid: int) -> None:
        assert zxid <= self._last_logged_zxid, (zxid, self._last_logged_zxid)
        pending, state, watches = self._pending, self.state, self._watches
        apply, changes, dirty = state.apply, self._changes, self._dirty
        while pending and pending[0].zxid <= zxid:
            each = pending.popleft()
            body, connection = each.body, each.connection
            if body is None:
                assert connection is not None
                if not connection.closed:
                    self._answer_sync(connection, each.correlation_id, each.failure)
            else:
                self._pending_bytes -= each.size_bytes
                state.changes = changes if watches.count else None
                result = apply(each.zxid, each.session_id, each.wall_ms, body)
                if changes:
                    watches.announce(changes, each.zxid, dirty)
                    changes.clear()
                if each.api_key == 1005 and connection is not None and each.failure is None:
                    if not connection.closed:
                        connection.codec.append_stat(
                            connection.out, each.correlation_id, each.zxid, result
                        )
                elif each.api_key:
                    self._answer(each, result)
            if connection is not None:
                connection.completed += 1
                dirty[connection] = None
                if connection.waiting:
                    self._serve_waiting(connection)
        assert state.last_applied_zxid <= zxid, (state.last_applied_zxid, zxid)
        if not pending:
            self._preparer.outstanding.clear()
        elif len(self._preparer.outstanding.entries) > MAX_OVERLAY_ENTRIES:
            self._rebuild_overlay()
        if self._paused:
            self._maybe_resume()

    def _rebuild_overlay(self) -> None:
        self._preparer.rebuild(
            (each.session_id, each.body) for each in self._pending if each.body is not None
        )

    def _answer(self, each: Pending, result: Any) -> None:
        """Reply to a write that was just applied, where somebody still waits for it."""
        connection, api_key = each.connection, each.api_key
        if api_key == zk.CONNECT.key:
            self._answer_connect(each, result)
        elif api_key == zk.CLOSE_SESSION.key:
            self._answer_close(each, result)
        elif connection is None or connection.closed:
            return
        elif each.failure is not None:
            connection.out.append(failure_reply(connection.codec, each))
        else:
            connection.out.append(write_reply(connection.codec, each, result))

    def _answer_connect(self, each: Pending, session: Session) -> None:
        connection = each.connection
        assert connection is not None
        self._tracker.touch(session, self._now_ms)
        if not connection.closed:
            self._attach(connection, session, each.correlation_id)

    def _answer_close(self, each: Pending, session: Session) -> None:
        asked, connection = each.connection, session.connection
        if asked is not None and not asked.closed:
            asked.out.append(asked.codec.empty(each.correlation_id, each.zxid))
            self._close(asked, "the session was closed")
        elif connection is not None and not connection.closed:
            self._close(connection, "the session has expired")

    def _serve_waiting(self, connection: Connection) -> None:
        """Requests that waited until now, in order; one that is logged holds up the rest again."""
        waiting = connection.waiting
        while waiting and waiting[0][0] <= connection.completed:
            _, request = waiting.popleft()
            submitted = connection.submitted
            rest = list(waiting)
            waiting.clear()
            self._take(connection, request)
            if connection.last_request_taken:
                return
            if connection.submitted != submitted or waiting:
                behind = connection.submitted
                waiting.extend((max(at, behind), each) for at, each in rest)
            else:
                waiting.extend(rest)

    # ---- a full disk ---------------------------------------------------------------------------

    def _on_append_refused(self, first_zxid: int) -> None:
        """Take everything from `first_zxid` on back, exactly as if it had not come."""
        pending = list(self._pending)
        self._pending.clear()
        assert self.state.last_applied_zxid < first_zxid, (self.state.last_applied_zxid, first_zxid)
        self._last_logged_zxid = self.state.last_applied_zxid
        self._pending_bytes = 0
        self._preparer.outstanding.clear()
        for each in pending:
            if each.body is not None and each.zxid < first_zxid:
                raise AssertionError(f"{each.zxid:#x} is durable and was not applied")
            self._take_back(each)
        for each in pending:
            connection = each.connection
            if connection is not None:
                connection.completed += 1
                self._dirty[connection] = None
                if connection.waiting and not connection.closed:
                    self._serve_waiting(connection)
        self._maybe_resume()

    def _take_back(self, each: Pending) -> None:
        connection, body = each.connection, each.body
        if body is None:
            assert connection is not None
            if not connection.closed:
                self._answer_sync(connection, each.correlation_id, each.failure)
            return
        kind = body[0]
        if kind == TxnKind.NEW_EPOCH:
            self._later.append(Halt("there is no disk space to open an epoch"))
            return
        if kind == TxnKind.CREATE_SESSION:
            self.state.opening.pop(each.session_id, None)
        elif kind == TxnKind.CLOSE_SESSION:
            session = self.state.sessions[each.session_id]
            session.closing = False
            self._tracker.touch(session, self._now_ms)
        if connection is None or connection.closed:
            return
        text = "there is no disk space for the write; it did not happen"
        zxid = self.state.last_applied_zxid
        connection.out.append(
            connection.codec.error(each.correlation_id, ZkErrorCode.STORAGE_FULL, zxid, text)
        )
        if kind == TxnKind.CREATE_SESSION:
            self._close(connection, text)
        elif kind == TxnKind.CLOSE_SESSION:
            connection.last_request_taken = False

    # ---- back-pressure -------------------------------------------------------------------------

    def _maybe_pause(self, connection: Connection) -> None:
        if connection.paused or connection.closed:
            return
        own_limit = self.config.max_outstanding_per_connection
        if connection.outstanding_count() >= own_limit or self._is_loaded(1):
            connection.paused = True
            self._paused[connection] = None
            self._later.append(PauseReading(connection))

    def _is_loaded(self, share: int) -> bool:
        """Whether as much is outstanding as the limits allow, divided by `share`."""
        config = self.config
        return (
            share * len(self._pending) >= config.max_outstanding_requests
            or share * self._pending_bytes >= config.max_outstanding_bytes
        )

    def _maybe_resume(self) -> None:
        """Read again at half of every limit, so that it does not flutter."""
        if self._is_loaded(2):
            return
        for connection in list(self._paused):
            if 2 * connection.outstanding_count() <= self.config.max_outstanding_per_connection:
                connection.paused = False
                del self._paused[connection]
                self._later.append(ResumeReading(connection))

    # ---- views ---------------------------------------------------------------------------------

    def begin_snapshot(self) -> Snapshot:
        """A view of the state, exact at `last_applied_zxid`; close it when done."""
        return Snapshot(self.state)

    @property
    def last_applied_zxid(self) -> int:
        """The zxid the tree stands at."""
        return self.state.last_applied_zxid

    @property
    def views(self) -> Views:
        """Lists for operators, of this moment."""
        return Views(self.state, self._watches)

    def status(self) -> Status:
        """The core at this moment."""
        state = self.state
        return Status(
            zxid=state.last_applied_zxid,
            epoch=epoch_of(self._last_logged_zxid),
            node_count=len(state.tree.nodes),
            watch_count=self._watches.count,
            sessions=len(state.sessions),
            ephemerals=state.ephemeral_count,
            outstanding=len(self._pending),
            packets_received=self._received_count,
            packets_sent=self._sent_count,
            data_bytes=state.tree.data_bytes,
        )

    def check_invariants(self) -> None:
        """Compare everything that is kept twice; for tests and the simulator."""
        self.state.check_invariants()
        self._watches.check_invariants()
        zxids = [each.zxid for each in self._pending if each.body is not None]
        assert zxids == sorted(set(zxids)), zxids
        assert not zxids or zxids[0] > self.state.last_applied_zxid, zxids
        assert not zxids or zxids[-1] == self._last_logged_zxid, zxids
        sizes = sum(each.size_bytes for each in self._pending)
        assert sizes == self._pending_bytes, (sizes, self._pending_bytes)


_make_pending: Any = tuple.__new__


def _session_of(connection: Connection) -> Session:
    session = connection.session
    assert session is not None, connection
    return session
