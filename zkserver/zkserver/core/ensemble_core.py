"""The core of an ensemble's server: `ZkCore` as leader, as learner, or serving nobody.

    (nobody) ── serve_read_only ──► reader: of what is here, while there is no leader
    (nobody) ── lead ──► leader     prepares and logs, also what learners forward
        ▲    └─ follow ► learner    forwards, applies what is committed
        └────── leave ──────────────┘

What the log says is applied by leader, learner and nobody: `Committed` brings its records, but
those that a leader has made itself, of which it hears by `Durable`: here, committed and durable.

Owns what differs from a standalone server. It must never expire a session but through a Txn of the
leader, and a sync must not be answered before a quorum has said that the leader still leads.
Source: ZooKeeper `LeaderZooKeeperServer`, `FollowerZooKeeperServer`, `ObserverZooKeeperServer`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.errors import RemoteProtocolError
from duolog_protocol.quorum_messages import MAX_SESSIONS_HEARD, SessionsHeard
from duolog_protocol.txns import Body, TxnKind
from duolog_protocol.zk_codec import REFUSED, Refusal

from .auth import AuthProviders
from .config import CoreConfig
from .connection import Connection
from .core import ZkCore
from .datatree import CONFIG_PATH
from .delegation import Delegation
from .ensemble_events import (
    ClientsHeard,
    Committed,
    Confirm,
    Confirmed,
    DropLearner,
    EnsembleEvent,
    LeaderAnswered,
    LearnerGone,
    LevelKnown,
    RequestsForwarded,
    SessionMoved,
    TellLeader,
)
from .events import Effect, Request, TimerFired
from .following import Following, FollowingHost
from .members import config_data
from .peer_events import StepDown
from .pending import Pending
from .prepare import Rejected
from .reconfiguration import require_quorum, wanted_members
from .state import ReplicatedState


class EnsembleCore(ZkCore):
    """One server of an ensemble, as its clients see it."""

    def __init__(
        self,
        config: CoreConfig,
        rng: random.Random,
        auth: AuthProviders | None = None,
        members_shown: bytes = b"",
    ) -> None:
        """`members_shown`: what `/zookeeper/config` holds at the very first, if anything."""
        super().__init__(config, rng, auth)
        self._members_shown = members_shown
        self.is_read_only = False
        """It serves those that are content with reading."""
        self.synced_servers: Callable[[], frozenset[int]] = frozenset
        """Which servers have all that a leader proposes; the peer knows."""
        self._level_logged = 0
        """The feature level of a LEVEL that is on its way; 0: none is."""
        self._joint_zxid = 0
        """Of a change of the members that old and new ones have not agreed on yet; 0: none."""
        self._following: Following | None = None
        """While it follows."""
        self._delegation: Delegation | None = None
        """While it leads."""

    def _use(self, state: ReplicatedState) -> None:
        super()._use(state)
        self._preparer.shows_members = True

    def lead(self, epoch: int, now_ms: int, wall_ms: int) -> list[Effect]:
        """A quorum has adopted the epoch: serve as its leader. Everything logged is applied."""
        assert not self.is_serving, "it serves already"
        self._proposals.begin_term(self.state.last_applied_zxid)
        self._tracker.begin_term(follows=False)
        self._delegation = Delegation(self.state, self._proposals, self._sessions, self._writes)
        self._sessions.begin_term(on_coming=self._delegation.taken_here)
        self._open_epoch(epoch, now_ms, wall_ms)
        shown = self.state.tree.nodes[CONFIG_PATH].data
        if self.state.members_are_joint:  # a leader before us has begun it
            self._log_final_members()
        elif self.state.level and self._members_shown and not shown:
            self._log_first_members()
        return self._effects()

    def _on_level_known(self, level: int) -> None:
        """The leader says so in the log, once."""
        if self._delegation is not None and level > max(self.state.level, self._level_logged):
            self._level_logged = level
            self._proposals.add(self._proposals.next_zxid(), 0, (TxnKind.LEVEL, level))
            if self._members_shown and not self.state.tree.nodes[CONFIG_PATH].data:
                self._log_first_members()

    def _log_first_members(self) -> None:
        body = self._preparer.change_members(self._members_shown, is_joint=False)
        self._proposals.add(self._proposals.next_zxid(), 0, body)

    def follow(self, now_ms: int) -> None:
        """Serve as a learner: of the leader that the shell tells `TellLeader`s."""
        assert not self.is_serving, "it serves already"
        self._now_ms = now_ms
        self._history.take_new()
        self._proposals.begin_term(self.state.last_applied_zxid)
        self._tracker.begin_term(follows=True)
        host = FollowingHost(
            answer=self._answer,
            answer_sync=self._answer_sync,
            attach=self._attach_known,
            close=self._close,
            refuse=self._refuse,
            serve=self._turns.serve,
            serve_before=self._serve_before_write,
            dirty=self._dirty,
        )
        self._following = Following(self.state, self._watches, self._flow, host)
        self._sessions.begin_term(
            forward=self._forward, on_coming=partial(self._following.leave, has_come_here=True)
        )
        self.is_serving = True

    def serve_read_only(self, now_ms: int) -> None:
        """There is no leader: clients that are content with that may read what is here.

        What they see may be old, and may even have to go again (ZOOKEEPER-704).
        """
        assert not self.is_serving, "it serves already"
        self._now_ms = now_ms
        self._history.take_new()
        self._tracker.begin_term(follows=False)
        self._sessions.begin_term(read_only=True)
        self.is_read_only = self.is_serving = True

    def leave(self, reason: str) -> list[Effect]:
        """The term is over: every client is dropped, and nothing outstanding is answered."""
        assert self.is_serving, "it does not serve"
        self.is_serving = self.is_read_only = False
        self._following = self._delegation = None
        self._joint_zxid = self._level_logged = 0
        for session in self.state.sessions.values():
            session.closing = False
            if session.connection is not None:
                self._close(session.connection, reason)
        self.state.opening.clear()
        self._proposals.begin_term(self.state.last_applied_zxid)
        self._tracker.begin_term(follows=False)
        self._preparer.outstanding.clear()
        self._flow.clear()
        self._sessions.begin_term()
        return self._effects()

    def replace_state(self, state: ReplicatedState) -> None:
        """The log was cut, or a snapshot came: this is what they hold now."""
        assert not self.is_serving, "it serves"
        self._use(state)
        self._proposals.begin_term(state.last_applied_zxid)

    def take_sessions_heard(self, now_ms: int) -> list[SessionsHeard]:
        """What a follower tells its leader: whose clients it has heard since it last did."""
        self._sessions.hear_unread(self._flow.unheard(self._reads.max_backlog_bytes), now_ms)
        ids = self._tracker.take_heard()
        parts = range(0, len(ids), MAX_SESSIONS_HEARD)
        return [SessionsHeard(ids[start : start + MAX_SESSIONS_HEARD]) for start in parts]

    def _attach_known(self, connection: Connection, correlation_id: int, message: Any) -> None:
        self._sessions.attach_known(connection, correlation_id, message, self._now_ms)

    def _on_ensemble(self, event: EnsembleEvent) -> None:
        following, delegation = self._following, self._delegation
        match event:
            case Committed(records=records):
                if following is None:
                    for record in records:
                        self.replay(record)
                    self._history.take_new()
                else:
                    following.apply(records)
                    self._history.take_new()
            case LeaderAnswered(answers=answers):
                assert following is not None, "answered without having asked"
                following.on_answers(answers)
            case RequestsForwarded(link=link, message=message, wall_ms=wall_ms):
                assert delegation is not None, "asked without leading"
                self._proposals.wall_ms = wall_ms
                try:
                    delegation.take(link, message, self._now_ms)
                except RemoteProtocolError as error:
                    self._later.append(DropLearner(link, str(error)))
            case LearnerGone(link=link):
                if delegation is not None:
                    delegation.forget(link)
            case ClientsHeard(session_ids=session_ids):
                self._hear(session_ids)
            case SessionMoved(session_id=session_id):
                self._sessions.leave(session_id)
                if following is not None:
                    following.leave(session_id, has_come_here=False)
            case Confirmed(go_on=go_on):
                go_on()
            case LevelKnown(level=level):
                self._on_level_known(level)
        if self._flow.paused:
            self._resume()

    def _hear(self, session_ids: tuple[int, ...]) -> None:
        """A learner has heard these clients."""
        sessions, opening = self.state.sessions, self.state.opening
        for session_id in session_ids:
            session = sessions.get(session_id) or opening.get(session_id)
            if session is not None and not session.closing:
                self._tracker.touch(session, self._now_ms)

    # ---- changes of the members -----------------------------------------------------------------

    def _reconfig(self, connection: Connection, message: Any) -> Body:
        if not self.state.level:  # nor does `/zookeeper/config` tell the members
            text = "not all members know this yet: upgrade them, and start them all"
            raise Rejected(ZkErrorCode.RECONFIG_DISABLED, text)
        shown = self.state.tree.nodes[CONFIG_PATH].data or b""
        wanted = wanted_members(shown, message)
        self._preparer.require_change_of_members(connection)
        if self._joint_zxid:
            text = "another change of the members is under way"
            raise Rejected(ZkErrorCode.RECONFIG_IN_PROGRESS, text)
        require_quorum(wanted, self.synced_servers())
        zxid = self._joint_zxid = self._proposals.next_zxid()
        return self._preparer.change_members(config_data(wanted, zxid), is_joint=True)

    def _on_durable(self, zxid: int) -> None:
        super()._on_durable(zxid)
        if 0 < self._joint_zxid <= self.state.last_applied_zxid:
            self._log_final_members()

    def _log_final_members(self) -> None:
        """Old and new members have agreed on the new ones: from here on those decide alone.

        The next change may begin before this is committed: whatever decides on it, now or then,
        has a quorum of these.
        """
        self._joint_zxid = 0
        data = self.state.tree.nodes[CONFIG_PATH].data or b""
        body = self._preparer.change_members(data, is_joint=False)
        self._proposals.add(self._proposals.next_zxid(), 0, body)

    # ---- what differs ---------------------------------------------------------------------------

    def deadline_ms(self) -> int | None:
        """When to step(TimerFired()): a leader ends sessions, and deletes what has had its time."""
        return None if self._delegation is None else super().deadline_ms()

    def _on_rare(self, event: Any) -> None:
        if isinstance(event, EnsembleEvent):
            self._on_ensemble(event)
        elif not isinstance(event, TimerFired) or self._delegation is not None:
            super()._on_rare(event)

    def _effects(self, heard: Connection | None = None) -> list[Any]:
        ahead: list[Any] = []
        if self._following is not None:
            ahead += map(TellLeader, self._following.take_requests())
        elif self._delegation is not None:
            ahead += self._delegation.take_effects()  # before the records that they speak of
            if self._proposals.term_is_full:
                ahead.append(StepDown("no zxid is left in the epoch"))
        return ahead + super()._effects(heard)

    def _log_set(self, connection: Connection, request: Request) -> bool:
        if self.is_read_only:
            return False
        if self._following is None:
            return super()._log_set(connection, request)
        session = connection.session
        if session is None or connection.barrier_count:
            return False
        return self._following.ask(connection, *request)

    def _submit(
        self, connection: Connection, api_key: int, correlation_id: int, message: Any
    ) -> None:
        if self.is_read_only:
            self._refuse_write(connection, correlation_id)
        elif self._following is None:
            super()._submit(connection, api_key, correlation_id, message)
        else:
            self._forward(connection, api_key, correlation_id, message)

    def _forward(
        self, connection: Connection, api_key: int, correlation_id: int, message: Any
    ) -> None:
        assert self._following is not None, "there is no leader to ask"
        if not self._following.ask(connection, api_key, correlation_id, message):
            text = "the request is too long for the servers of an ensemble"
            refusal = Refusal(ZkErrorCode.REQUEST_TOO_LARGE, text, False)
            self._take(connection, (REFUSED, correlation_id, refusal))

    def _refuse_write(self, connection: Connection, correlation_id: int) -> None:
        text = "there is no leader: this server only reads"
        refusal = Refusal(ZkErrorCode.NOT_READ_ONLY, text, False)
        self._take(connection, (REFUSED, correlation_id, refusal))

    def _answer(self, each: Pending, result: Any) -> None:
        super()._answer(each, result)
        if each.api_key == zk.CLOSE_SESSION.key and self._delegation is not None:
            self._delegation.on_closed(each.session_id)

    def _sync_must_wait(self) -> bool:
        return True

    def _begin_sync(self, connection: Connection, correlation_id: int, message: Any) -> None:
        """Answer once everything that anybody was told before is applied here.

        A quorum says first that the leader still leads: sync and read together are linearizable.
        What the connection asks meanwhile waits behind it.
        """
        if self.is_read_only:
            self._refuse_write(connection, correlation_id)
            return
        if self._following is not None:
            connection.barrier_count += 1
            self._forward(connection, zk.SYNC.key, correlation_id, message)
            return
        connection.submitted += 1
        connection.barrier_count += 1
        self._later.append(
            Confirm(partial(self._on_sync_confirmed, connection, correlation_id, message))
        )

    def _on_sync_confirmed(self, connection: Connection, correlation_id: int, message: Any) -> None:
        if connection.closed:
            return
        connection.barrier_count -= 1
        if self._proposals.pending:
            self._proposals.add_sync(connection, correlation_id, zk.SYNC.key, message)
            return
        self._answer_sync(connection, correlation_id, message)
        connection.completed += 1
        self._dirty[connection] = None
        if connection.waiting:
            self._turns.serve(connection)
