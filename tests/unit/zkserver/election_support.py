"""Servers that elect, without log, link or disk: `Looking` and what its owner does with it."""

from __future__ import annotations

import random
from heapq import heappop, heappush

from duolog_protocol.quorum_messages import Notification, PeerState, Vote
from zkserver.core.looking import Decision, Looking, reply_to_looking
from zkserver.core.members import Member
from zkserver.core.membership import Membership
from zkserver.core.peer_config import PeerConfig
from zkserver.core.peer_events import Notify
from zkserver.core.quorum import Quorums

NEVER = 1 << 30
"""An accepted epoch after which no leader is a later one."""


def config_of(server_id: int, voters: set[int], observers: set[int]) -> PeerConfig:
    return PeerConfig(server_id, frozenset(voters), frozenset(observers))


class Elector:
    """One server: looks, and then answers those that look."""

    def __init__(self, config: PeerConfig, own_vote: Vote | None, election_round: int = 0) -> None:
        self.config = config
        self.own_vote = own_vote
        self.unsaid_vote = Vote(0, 0, config.server_id)
        """What it knows, where it may not lead."""
        self.hears_outsiders = False
        self.members: tuple[Member, ...] = ()
        """Some, where its log names the members."""
        self.election_round = election_round
        """Of the last election."""
        self.looking: Looking | None = None
        self.settled: Notification | None = None
        self._replies: list[Notify] = []

    @property
    def leader_id(self) -> int:
        """Whom it follows, or itself; 0 while it looks."""
        return self.settled.vote.server_id if self.settled else 0

    def look(self, now_ms: int) -> None:
        self.settled = None
        self.election_round += 1
        config = self.config
        members = Membership(config.voters, config.observers, members=self.members)
        self.looking = Looking(
            *(self.config, members, NEVER, self.own_vote or self.unsaid_vote),
            *(self.election_round, now_ms),
            may_lead=self.own_vote is not None,
            hears_outsiders=self.hears_outsiders,
        )
        self.looking.start()
        self._settle()

    def receive(self, sender_id: int, notification: Notification, now_ms: int) -> None:
        if self.looking is not None:
            self.looking.on_notification(sender_id, notification, now_ms)
            self._settle()
        elif self.settled is not None:
            reply = reply_to_looking(sender_id, notification, self.settled)
            self._replies += [reply] if reply else []

    def on_timer(self, now_ms: int) -> None:
        if self.looking is not None:
            self.looking.on_timer(now_ms)
            self._settle()

    def take(self) -> list[Notify]:
        taken, self._replies = self._replies, []
        return taken + (self.looking.take_notifications() if self.looking is not None else [])

    def lead_epoch(self, epoch: int) -> None:
        """The leader is established and its epoch is known here."""
        assert self.settled is not None
        vote = self.settled.vote._replace(epoch=epoch)
        self.settled = self.settled._replace(vote=vote)

    def _settle(self) -> None:
        assert self.looking is not None
        decision = self.looking.decision()
        if decision is not None:
            self._replies += self.looking.take_notifications()
            self.looking = None
            self.election_round = decision.election_round
            self.settled = Notification(self._role(decision), decision.vote, self.election_round)

    def _role(self, decision: Decision) -> PeerState:
        if decision.leader_id == self.config.server_id:
            return PeerState.LEADING
        is_voter = self.config.server_id in self.config.voters
        return PeerState.FOLLOWING if is_voter else PeerState.OBSERVING


class Ensemble:
    """Electors that hear of each other at once, and in order; others that they name are dead."""

    def __init__(self, votes: dict[int, Vote | None], observers: frozenset[int] = frozenset()):
        """Observers are among the keys of `votes`."""
        voters = votes.keys() - observers
        self.now_ms = 0
        self.electors = {
            each: Elector(config_of(each, set(voters), set(observers)), vote)
            for each, vote in votes.items()
        }
        self.lossy: set[tuple[int, int]] = set()
        """(from, to): what is sent there gets lost."""

    def start(self, *server_ids: int) -> None:
        for each in server_ids:
            self.electors[each].look(self.now_ms)
        self.deliver()

    def deliver(self) -> None:
        """Deliver until there is silence."""
        for _ in range(100):
            sent = [
                (each, notify)
                for each, elector in self.electors.items()
                for notify in elector.take()
                if (each, notify.server_id) not in self.lossy and notify.server_id in self.electors
            ]
            if not sent:
                return
            for sender_id, notify in sent:
                receiver = self.electors[notify.server_id]
                receiver.receive(sender_id, notify.notification, self.now_ms)
        raise AssertionError("they never stop talking")

    def advance(self, ms: int) -> None:
        """Let time pass, a millisecond at a time."""
        for _ in range(ms):
            self.now_ms += 1
            for elector in self.electors.values():
                if elector.looking is not None and elector.looking.deadline_ms() <= self.now_ms:
                    elector.on_timer(self.now_ms)
            self.deliver()

    def leaders(self) -> dict[int, int]:
        return {each: elector.leader_id for each, elector in self.electors.items()}


class World:
    """Electors on a network that loses, delays and reorders; one seed decides everything."""

    LED_EPOCH = 7
    """Of every leader that is established, by which its vote differs from that of its election."""
    PATIENCE_MS = 400
    """So long a decision is believed in before it is looked at whether it has come true."""
    TICK_MS = 5

    def __init__(self, seed: int, voter_count: int) -> None:
        self.rng = rng = random.Random(seed)
        voters = set(range(1, voter_count + 1))
        observer_id = voter_count + 1
        self.now_ms = 0
        self.loss = rng.choice([0.0, 0.1, 0.3])
        self.max_delay_ms = rng.choice([1, 15, 80])
        dead = set(rng.sample(sorted(voters), rng.randint(0, (voter_count - 1) // 2)))
        self.electors: dict[int, Elector] = {}
        for each in [*sorted(voters - dead), observer_id]:
            config = config_of(each, voters, {observer_id})
            vote = Vote(rng.randint(1, 2), rng.randint(0, 3), each) if each in voters else None
            self.electors[each] = Elector(config, vote, rng.choice([0, 0, 0, 3]))
        self._wake_ms = {each: rng.choice([0, 0, 30, 300, 900]) for each in self.electors}
        """When to start, or to look at a decision."""
        self._on_the_way: list[tuple[int, int, int, Notify]] = []
        """(when it arrives, a number, its sender, it)."""
        self._sent_count = 0

    def run(self, limit_ms: int) -> None:
        """Until all that live are led by one leader."""
        while not self.is_established(self.agreed_leader_id()):
            assert self.now_ms < limit_ms, {k: v.settled for k, v in self.electors.items()}
            self.now_ms += self.TICK_MS
            self._arrive()
            for server_id, elector in self.electors.items():
                self._wake(server_id, elector)
                elector.on_timer(self.now_ms)
                self._send(server_id, elector)

    def agreed_leader_id(self) -> int:
        """Whom all name; 0 while they do not."""
        leader_ids = {elector.leader_id for elector in self.electors.values()}
        return leader_ids.pop() if len(leader_ids) == 1 else 0

    def is_established(self, leader_id: int) -> bool:
        """Whether this server leads and a quorum follows it, as synchronisation would find out."""
        leader = self.electors.get(leader_id)
        if leader is None or leader.settled is None or leader.leader_id != leader_id:
            return False
        named = {each for each, elector in self.electors.items() if elector.leader_id == leader_id}
        return Quorums(leader.config.voters).has_quorum(named)

    def _wake(self, server_id: int, elector: Elector) -> None:
        if self.now_ms < self._wake_ms[server_id]:
            return
        self._wake_ms[server_id] = self.now_ms + self.PATIENCE_MS + self.rng.randrange(50)
        if elector.looking is not None:
            return
        if self.is_established(elector.leader_id):
            elector.lead_epoch(self.LED_EPOCH)
        else:
            elector.look(self.now_ms)

    def _arrive(self) -> None:
        while self._on_the_way and self._on_the_way[0][0] <= self.now_ms:
            _, _, sender_id, notify = heappop(self._on_the_way)
            receiver = self.electors.get(notify.server_id)
            if receiver is not None:
                receiver.receive(sender_id, notify.notification, self.now_ms)

    def _send(self, server_id: int, elector: Elector) -> None:
        for notify in elector.take():
            if self.rng.random() >= self.loss:
                self._sent_count += 1
                arrival_ms = self.now_ms + self.rng.randint(0, self.max_delay_ms)
                heappush(self._on_the_way, (arrival_ms, self._sent_count, server_id, notify))
