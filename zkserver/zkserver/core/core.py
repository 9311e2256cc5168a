"""The coordination server's core: events in, effects out, no I/O.

Owns the order of everything: zxids, what is logged and not yet durable, and per connection the
order of replies. It must never apply a Txn before a `Durable` covers it, answer a write before it
is applied, or show a change in a reply before the watch events of that change went out on the same
connection.

    Received --> prepare --> Append --------------> (disk) --> Durable --> apply --> events, replies
                    \\-> reads: at once, or behind the connection's own writes

    told <= durable <= logged; zxids of the log rise by one, or open a new epoch at counter 0

Source: ZooKeeper's request processor chain (`Prep`, `Sync`, `Final`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, Final

from duolog_protocol import zk_messages as zk
from duolog_protocol.apis import API_VERSIONS
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.errors import DecodeError, StorageError
from duolog_protocol.txns import Body, TxnKind, decode_txn
from duolog_protocol.types import epoch_of, make_zxid
from duolog_protocol.zk_codec import REFUSED, Refusal

from .auth import AuthProviders
from .config import CoreConfig
from .connection import Connection
from .credentials import Credentials
from .events import (
    AppendRefused,
    AwaitDrain,
    Close,
    ConnectionLost,
    Drained,
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
from .flow import Flow
from .history import History
from .pending import Failure, Pending, failure_reply, write_reply
from .prepare import Preparer, Refused, Rejected
from .proposals import Proposals
from .reads import Reads
from .reaper import Reaper
from .session_tracker import SessionTracker
from .sessions import Sessions
from .snapshot import Snapshot
from .snapshot_loading import load_snapshot
from .state import ReplicatedState
from .status import Status
from .turns import ANSWERED, Turns
from .watches import Watches
from .writes import Writes

SECRET_BYTES: Final = 32
MAX_HELD_BYTES: Final = 16 * 1024
"""Replies that may wait for those of the writes behind them; more are worth a send of their own."""
MAX_OVERLAY_ENTRIES: Final = 50_000
"""Paths in the overlay of outstanding changes beyond which it is made anew from them."""
_SET_DATA_KEY: Final = zk.SET_DATA.key


class ZkCore:
    """A standalone server's core: an ensemble of one, where logged is proposed."""

    def __init__(
        self, config: CoreConfig, rng: random.Random, auth: AuthProviders | None = None
    ) -> None:
        self.config = config
        self._auth = auth or AuthProviders()
        self._credentials = Credentials(self._auth, rng)
        self._rng = rng
        self._tracker = SessionTracker(config.tick_ms)
        self._reaper = Reaper(config)
        self._watches = Watches()
        self._proposals = Proposals(config)
        self._flow = Flow(config, self._proposals)
        self._use(ReplicatedState())
        self._now_ms = 0
        self.is_serving = False
        """Clients are served."""
        self._dirty: dict[Connection, None] = {}
        """Connections with something to send, in the order in which they got it."""
        self._closing: dict[Connection, str] = {}
        self._later: list[Any] = []

    def _use(self, state: ReplicatedState) -> None:
        self.state = state
        self._history = History(
            self.config.max_history_events, state.last_applied_zxid, state.changes
        )
        self._reads = Reads(self.config, state, self._watches, self._history)
        self._turns = Turns(self._reads, self._flow, self._take, self._take_rare)
        preparer = self._preparer = Preparer(self.config, state, self._auth.schemes)
        self._sessions = Sessions(
            self.config,
            state,
            self._tracker,
            preparer,
            self._proposals,
            refuse=self._refuse,
            close=self._close,
            on_attached=self._on_attached,
        )
        self._writes = Writes(preparer, self._proposals, self._reconfig)

    # ---- recovery ------------------------------------------------------------------------------

    def load_snapshot(self, chunks: Iterable[bytes]) -> None:
        """Begin with a snapshot. Raises StorageError."""
        assert self._proposals.last_logged_zxid == 0, "a snapshot comes before any record"
        self._use(load_snapshot(chunks))
        self._proposals.last_logged_zxid = self.state.last_applied_zxid

    def replay(self, record: bytes) -> int:
        """Apply a record of the log and return its zxid. Raises StorageError."""
        try:
            txn = decode_txn(record)
        except DecodeError as error:
            raise StorageError(f"a log record cannot be decoded: {error}") from error
        self.state.replay(txn)
        self._proposals.last_logged_zxid = txn.zxid
        if len(self.state.changes) > 1_000:
            self._history.take_new()
        return txn.zxid

    def start(self, epoch: int, now_ms: int, wall_ms: int) -> list[Effect]:
        """Open an epoch, standalone; every session gets its full timeout again."""
        self._open_epoch(epoch, now_ms, wall_ms)
        return self._effects()

    def _open_epoch(self, epoch: int, now_ms: int, wall_ms: int) -> None:
        self._history.take_new()
        assert epoch > epoch_of(self._proposals.last_logged_zxid), (
            epoch,
            self._proposals.last_logged_zxid,
        )
        self.is_serving = True
        self._now_ms, self._proposals.wall_ms = now_ms, wall_ms
        for session in self.state.sessions.values():
            self._tracker.touch(session, now_ms)
        secret = b"" if self.state.secret else self._rng.randbytes(SECRET_BYTES)
        self._proposals.add(make_zxid(epoch, 0), 0, (TxnKind.NEW_EPOCH, secret))

    # ---- the way in ----------------------------------------------------------------------------

    def step(self, event: Any, now_ms: int) -> list[Effect]:
        """Take an `Event`; the effects are to be performed in order."""
        self._now_ms = now_ms
        if now_ms >= self._tracker.check_ms:
            self._tracker.look_at_clock(now_ms)
        kind = type(event)
        if kind is Received:
            self._on_received(event)
            return self._effects(heard=event.connection)
        if kind is Durable:
            self._on_durable(event.zxid)
        else:
            self._on_rare(event)
        return self._effects()

    def deadline_ms(self) -> int | None:
        """When to step(TimerFired()) if nothing else happens."""
        sessions_ms = self._tracker.deadline_ms()
        reaper_ms = self._reaper.deadline_ms(self.state.tree, self._now_ms)
        if sessions_ms is None or reaper_ms is None:
            return reaper_ms if sessions_ms is None else sessions_ms
        return min(sessions_ms, reaper_ms)

    def _on_rare(self, event: Event) -> None:
        match event:
            case TimerFired(wall_ms=wall_ms):
                self._proposals.wall_ms = wall_ms
                unheard = self._flow.unheard(self._reads.max_backlog_bytes)
                self._sessions.expire(unheard, self._now_ms)
                self._reap()
            case Drained(connection=connection):
                self._on_drained(connection)
            case ConnectionLost(connection=connection):
                self._on_connection_lost(connection)
            case AppendRefused(first_zxid=first_zxid):
                self._on_append_refused(first_zxid)
            case _:
                raise AssertionError(f"unknown event {event!r}")

    def _effects(self, heard: Connection | None = None) -> list[Effect]:
        """What the shell has to do; `heard` has just asked for something."""
        effects: list[Effect] = []
        if self._proposals.new_records:
            effects.append(self._proposals.take_append())
        for connection in self._dirty:
            out = connection.out
            if out:
                more = (
                    connection is heard
                    and connection.submitted != connection.completed
                    and sum(map(len, out)) <= MAX_HELD_BYTES
                )
                effects.append(Send(connection, out, more))
                connection.out = []
        self._dirty.clear()
        if self._proposals.epochs_are_used_up:
            effects.append(Halt("no epoch is left"))
        if self._reads.crowded:
            effects += map(AwaitDrain, self._reads.crowded)
            self._reads.crowded.clear()
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
        if not self.is_serving:
            self._close(connection, "clients are not served now: there is no leader")
            return
        self._proposals.wall_ms = event.wall_ms
        session = connection.session
        if session is not None and not session.closing:
            self._tracker.touch(session, self._now_ms)
        self._dirty[connection] = None
        requests = event.requests
        if self._auth.enforces:
            requests = self._credentials.admit(connection, requests)
        self._take_batch(connection, requests)
        if self._flow.must_pause(connection):
            self._later.append(PauseReading(connection))

    def _take_batch(self, connection: Connection, requests: list[Request]) -> None:
        """Take requests in order: reads that follow each other as one run, the others one by one.

        A run is answered at once, or waits as a whole behind the connection's writes.
        """
        turns, is_read = self._turns, self._reads.by_key
        must_wait = turns.must_wait(connection)
        if connection.session is not None and not must_wait and requests[0][0] in is_read:
            served = self._reads.serve_run(connection, requests)
            if served == len(requests):
                return
            if served:
                requests = requests[served:]
        run: list[Request] = []
        for request in requests:
            api_key = request[0]
            if must_wait and api_key in is_read:
                run.append(request)
                continue
            if run:
                turns.add_reads(connection, run)
                run = []
            if api_key == _SET_DATA_KEY and self._log_set(connection, request):
                must_wait = True
                continue
            self._take(connection, request)
            if connection.last_request_taken:
                return
            must_wait = turns.must_wait(connection)
        if run:
            turns.add_reads(connection, run)

    def _log_set(self, connection: Connection, request: Request) -> bool:
        """Log a SetData about which nothing is special; False: `_take` decides."""
        session = connection.session
        if session is None or session.closing or connection.barrier_count:
            return False
        body = self._preparer.plain_set(request[2])
        if body is None:
            return False
        connection.submitted += 1
        self._proposals.add_set(session.session_id, body, connection, request[1])
        return True

    def _take(self, connection: Connection, request: Request) -> None:
        """Answer a request, log it, or let it wait behind what the connection asked before.

        A write is logged at once, although reads before it may still wait: those wait for the
        writes before them, and so their replies leave before its own.
        """
        api_key, correlation_id, message = request
        if api_key in self._writes and self._may_log(connection):
            self._submit(connection, api_key, correlation_id, message)
        elif api_key == zk.SYNC.key and self._sync_must_wait() and self._may_log(connection):
            self._begin_sync(connection, correlation_id, message)
        elif self._turns.must_wait(connection):
            if self._credentials.knows(api_key):
                # Who the client is counts from now on; only the answer waits for its turn.
                request = self._credentials.take(connection, request)
            self._turns.add(connection, request)
        elif self._reads.knows(api_key) and (
            connection.session is not None or api_key == API_VERSIONS.key
        ):
            self._reads.serve(connection, request)
        else:
            self._take_rare(connection, request)

    def _take_rare(self, connection: Connection, request: Request) -> None:
        """What comes once in a connection, or should not come; nothing of it is outstanding."""
        api_key, correlation_id, message = request
        if self._credentials.knows(api_key):
            api_key, correlation_id, message = self._credentials.take(connection, request)
        if api_key == REFUSED:
            self._refuse(connection, correlation_id, message)
        elif api_key == ANSWERED:
            connection.out += message
        elif api_key == zk.CONNECT.key:
            self._sessions.connect(connection, correlation_id, message, self._now_ms)
        elif connection.session is None:
            text = "a session must be opened first: send Connect"
            refusal = Refusal(ZkErrorCode.UNKNOWN_SESSION, text, True)
            self._refuse(connection, correlation_id, refusal)
        elif api_key == zk.SYNC.key:
            self._answer_sync(connection, correlation_id, message)
        elif api_key == zk.CLOSE_SESSION.key:
            self._sessions.take_close(connection, connection.session, correlation_id)
        else:
            text = f"api {api_key} is not served yet"
            self._refuse(
                connection, correlation_id, Refusal(ZkErrorCode.UNIMPLEMENTED, text, False)
            )

    def _refuse(self, connection: Connection, correlation_id: int, refusal: Refusal) -> None:
        if refusal.code:
            zxid = self.state.last_applied_zxid if refusal.zxid is None else refusal.zxid
            connection.out.append(
                connection.codec.error(correlation_id, refusal.code, zxid, refusal.message)
            )
        if refusal.closes:
            self._close(connection, refusal.message)

    def _submit(
        self, connection: Connection, api_key: int, correlation_id: int, message: Any
    ) -> None:
        try:
            self._writes.log(connection, api_key, correlation_id, message)
        except Refused as error:
            refusal = Refusal(error.code, error.message, False)
            self._take(connection, (REFUSED, correlation_id, refusal))

    def _reconfig(self, connection: Connection, message: Any) -> Body:
        """There are no members to change; the attempt takes a zxid all the same."""
        text = "a standalone server has no members to change"
        raise Rejected(ZkErrorCode.RECONFIG_DISABLED, text)

    def _may_log(self, connection: Connection) -> bool:
        """What it asks now may go before what it asked and still waits."""
        return connection.session is not None and not connection.barrier_count

    def _sync_must_wait(self) -> bool:
        """A quorum of one: only for what is outstanding."""
        return bool(self._proposals.pending)

    def _begin_sync(self, connection: Connection, correlation_id: int, message: Any) -> None:
        """A sync is answered when all that is logged now is applied."""
        connection.submitted += 1
        self._proposals.add_sync(connection, correlation_id, zk.SYNC.key, message)

    def _answer_sync(self, connection: Connection, correlation_id: int, message: Any) -> None:
        reply = zk.SyncResponse(message.path)
        zxid = self.state.last_applied_zxid
        connection.out.append(connection.codec.reply(zk.SYNC.key, correlation_id, zxid, reply))

    # ---- connections ---------------------------------------------------------------------------

    def _on_attached(self, connection: Connection) -> None:
        self._dirty[connection] = None
        self._later.append(SessionAttached(connection))

    def _on_connection_lost(self, connection: Connection) -> None:
        self._forget_connection(connection)
        self._closing.pop(connection, None)

    def _forget_connection(self, connection: Connection) -> None:
        """It has ended, or is about to: its watches go, its session stays (A.9)."""
        connection.closed = True
        self._turns.forget(connection)
        self._watches.remove_connection(connection)
        self._flow.forget(connection)
        session = connection.session
        if session is not None and session.connection is connection:
            session.connection = None

    def _close(self, connection: Connection, reason: str) -> None:
        """Close after what was sent; nothing it says counts any more."""
        connection.last_request_taken = True
        self._closing[connection] = reason
        self._forget_connection(connection)
        self._dirty[connection] = None

    # ---- applying ------------------------------------------------------------------------------

    def _on_durable(self, zxid: int) -> None:
        assert zxid <= self._proposals.last_logged_zxid, (zxid, self._proposals.last_logged_zxid)
        proposals, state, watches = self._proposals, self.state, self._watches
        pending = proposals.pending
        apply, changes, dirty, serve = state.apply, state.changes, self._dirty, self._turns.serve
        applied_count = applied_bytes = 0
        while pending and pending[0][0] <= zxid:
            each = pending.popleft()
            own_zxid, session_id, wall_ms, body, connection, correlation_id, api_key, note, size = (
                each
            )
            if connection is not None:
                waiting = connection.waiting
                if waiting and waiting[0][0] <= connection.completed:
                    self._serve_before_write(connection)
            if body is None:
                assert connection is not None
                if not connection.closed:
                    self._answer_sync(connection, correlation_id, note)
            else:
                applied_count += 1
                applied_bytes += size
                seen = len(changes)
                result = apply(own_zxid, session_id, wall_ms, body)
                if watches.count and len(changes) > seen:
                    watches.announce(changes[seen:], dirty)
                if api_key == _SET_DATA_KEY and note is None and connection is not None:
                    if not connection.closed:
                        connection.codec.append_stat(
                            connection.out, correlation_id, own_zxid, result
                        )
                elif api_key:
                    self._answer(Pending._make(each), result)
            if connection is not None:
                connection.completed += 1
                dirty[connection] = None
                if waiting and waiting[0][0] <= connection.completed:
                    serve(connection)
        proposals.on_applied(applied_count, applied_bytes)
        self._history.take_new()
        assert state.last_applied_zxid <= zxid, (state.last_applied_zxid, zxid)
        if not pending:
            self._preparer.outstanding.settle()
        elif len(self._preparer.outstanding.entries) > MAX_OVERLAY_ENTRIES:
            self._rebuild_overlay()
        if self._flow.paused:
            self._resume()

    def _rebuild_overlay(self) -> None:
        pending = map(Pending._make, self._proposals.pending)
        self._preparer.rebuild(
            (each.session_id, each.body) for each in pending if each.body is not None
        )

    def _answer(self, each: Pending, result: Any) -> None:
        """Reply to a write that was just applied, where somebody still waits for it."""
        connection, api_key = each.connection, each.api_key
        if api_key == zk.CONNECT.key:
            self._sessions.on_created(each, result, self._now_ms)
        elif api_key == zk.CLOSE_SESSION.key:
            self._sessions.on_closed(each, result)
        elif connection is None or connection.closed:
            return
        elif isinstance(each.note, Failure):
            connection.out.append(failure_reply(connection.codec, each))
        elif api_key in (zk.SET_ACL.key, _SET_DATA_KEY):
            connection.codec.append_stat(connection.out, each.correlation_id, each.zxid, result)
        else:
            connection.out.append(write_reply(connection.codec, each, result))

    def _serve_before_write(self, connection: Connection) -> None:
        """Reads that still wait for the socket must not see a write that came after them."""
        self._turns.serve(connection, forced=True)
        limit = self.config.max_unread_reply_bytes
        if connection.backlog_bytes >= limit and not connection.closed:
            self._close(connection, f"over {limit} bytes of replies were not read: it is too slow")

    def _on_drained(self, connection: Connection) -> None:
        connection.backlog_bytes = 0
        if not connection.closed:
            self._dirty[connection] = None
            self._turns.serve(connection)
            self._resume()

    def _resume(self) -> None:
        self._later += map(ResumeReading, self._flow.resumed())

    def _reap(self) -> None:
        """Delete containers and TTL nodes that have had their time, each in a Txn of its own."""
        for path in self._reaper.take(self.state.tree, self._now_ms, self._proposals.wall_ms):
            body = self._preparer.reap(path)
            if body is not None:
                self._proposals.add(self._proposals.next_zxid(), 0, body)

    # ---- a full disk ---------------------------------------------------------------------------

    def _on_append_refused(self, first_zxid: int) -> None:
        """Take everything from `first_zxid` on back, exactly as if it had not come."""
        pending = self._proposals.take_back(first_zxid, self.state.last_applied_zxid)
        self._preparer.outstanding.clear()
        for each in pending:
            if each.body is not None:
                self._take_back(each)
        # Only now the answers, in order with the reads between them, which may log anew.
        for each in pending:
            connection = each.connection
            if connection is None:
                continue
            self._serve_before_write(connection)
            if not connection.closed:
                self._answer_refused(each, connection)
            connection.completed += 1
            self._dirty[connection] = None
            if connection.waiting and not connection.closed:
                self._turns.serve(connection)
        self._resume()

    def _take_back(self, each: Pending) -> None:
        """Undo what logging a Txn has changed besides the overlay."""
        assert each.body is not None, each
        if each.body[0] == TxnKind.NEW_EPOCH:
            self._later.append(Halt("there is no disk space to open an epoch"))
        else:
            self._sessions.take_back(each, self._now_ms)

    def _answer_refused(self, each: Pending, connection: Connection) -> None:
        if each.body is None:
            self._answer_sync(connection, each.correlation_id, each.note)
            return
        text = "there is no disk space for the write; it did not happen"
        zxid = self.state.last_applied_zxid
        connection.out.append(
            connection.codec.error(each.correlation_id, ZkErrorCode.STORAGE_FULL, zxid, text)
        )
        if each.body[0] in (TxnKind.CREATE_SESSION, TxnKind.CLOSE_SESSION):
            self._close(connection, text)  # what came behind it was not taken

    # ---- views ---------------------------------------------------------------------------------

    def begin_snapshot(self) -> Snapshot:
        """A view of the state, exact at `last_applied_zxid`; close it when done."""
        return Snapshot(self.state)

    @property
    def last_applied_zxid(self) -> int:
        """The zxid the tree stands at."""
        return self.state.last_applied_zxid

    def status(self) -> Status:
        """The core at this moment."""
        state = self.state
        return Status(
            zxid=state.last_applied_zxid,
            epoch=epoch_of(max(self._proposals.last_logged_zxid, state.last_applied_zxid)),
            node_count=len(state.tree.nodes),
            watch_count=self._watches.count,
            sessions=len(state.sessions),
            ephemerals=state.ephemeral_count,
            outstanding=len(self._proposals.pending) + self._flow.forwarded_count,
            data_bytes=state.tree.data_bytes,
        )

    def check_invariants(self) -> None:
        """Compare everything that is kept twice; for tests and the simulator."""
        self.state.check_invariants()
        self._watches.check_invariants()
        self._proposals.check_invariants(self.state.last_applied_zxid)
        if not self._proposals.pending:
            self._preparer.outstanding.check_settled()
