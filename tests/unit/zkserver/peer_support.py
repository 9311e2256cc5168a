"""A tiny ensemble of `Peer`s in which nothing happens unless the test asks for it.

A server is a list of records, two epochs, and a queue of disk work; a way from one server to
another is a queue of messages. A record says its zxid and a word: b"2.0 a" is the first record of
epoch 2. Every disk and every application is checked while the story goes on: epochs never fall,
`accepted_epoch >= current_epoch` (Z20), what is applied is on the disk, and all servers apply the
same sequence (Z3, Z5, Z6); an epoch is served by one leader (Z1, Z2).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from duolog_protocol.quorum_messages import Notification, PeerState, Proposal
from duolog_protocol.types import counter_of, epoch_of, make_zxid
from zkserver.core.epoch_ends import EpochEnds
from zkserver.core.membership import Membership, Memberships
from zkserver.core.peer import Peer
from zkserver.core.peer_config import PeerConfig
from zkserver.core.peer_events import (
    AcceptEpoch,
    AdoptEpoch,
    AppendRecords,
    ApplyUpTo,
    ChunkWritten,
    CloseLink,
    Dial,
    DialFailed,
    DropSnapshot,
    EpochAccepted,
    EpochAdopted,
    HistorySent,
    InstallSnapshot,
    LeadConfirmed,
    LinkLost,
    LinkOpened,
    Logged,
    LogRefused,
    MessageReceived,
    NotificationReceived,
    Notify,
    PeerEffect,
    PeerEvent,
    PeerTimerFired,
    Propose,
    ReadOn,
    ReceiveSnapshot,
    SendHistory,
    SendSnapshot,
    Serve,
    SnapshotBegun,
    SnapshotInstalled,
    StopServing,
    StoreChunk,
    Tell,
    Truncated,
    TruncateLog,
)

MAX_ROUNDS = 200
"""An ensemble is quiet after so many."""
DEFAULTS = PeerConfig(1, frozenset({1}))

Work = (
    AcceptEpoch
    | AdoptEpoch
    | AppendRecords
    | TruncateLog
    | ReceiveSnapshot
    | StoreChunk
    | InstallSnapshot
    | DropSnapshot
)


def zxid_of(record: bytes) -> int:
    epoch, _, counter = record.split()[0].partition(b".")
    return make_zxid(int(epoch), int(counter))


def proposal(*records: bytes) -> Proposal:
    return Proposal(zxid_of(records[0]), zxid_of(records[-1]), records)


class Link:
    """One connection; the same object for both ends."""

    def __init__(self, learner_id: int, leader_id: int) -> None:
        self.learner_id = learner_id
        self.leader_id = leader_id
        self.open = {learner_id, leader_id}
        """Ends that do not know of its end yet."""
        self.is_broken = False
        """Nothing comes through any more."""

    def other(self, server_id: int) -> int:
        return self.leader_id if server_id == self.learner_id else self.learner_id


class SpokenMemberships(Memberships):
    """Words of the log that are members."""

    def __init__(self, base: Membership, words: dict[bytes, Membership]) -> None:
        super().__init__(base)
        self._words = words

    def on_appended(self, first_zxid: int, records: Sequence[bytes]) -> bool:
        before = len(self._entries)
        for zxid, record in enumerate(records, first_zxid):
            membership = self._words.get(record.split()[1])
            if membership is not None:
                self._entries.append((zxid, membership))
                self._records.append((zxid, membership.is_joint, membership.members))
        return len(self._entries) != before


class InFlight(NamedTuple):
    """A message; without one, the end of the link; without a link, a `Dial`."""

    link: Link | None
    message: Any


class Server:
    """One server, alive or not."""

    def __init__(self, ensemble: Ensemble, config: PeerConfig) -> None:
        self.ensemble = ensemble
        self.config = config
        self.server_id = config.server_id
        self.log: list[bytes] = []
        self.accepted_epoch = 0
        self.current_epoch = 0
        self.disk: deque[Work] = deque()
        self.is_full = False
        self.alive: Peer | None = None
        self.built: list[bytes] = []
        """The state: all of the log at the start, then what it was told to apply."""
        self.applied: list[bytes] = []
        """What of it is known to be committed: what it was told to apply, all once it serves."""
        self.confirmed: list[Any] = []
        """Tokens, in the order in which its lead was confirmed."""
        self.serving: tuple[int, int] | None = None
        """(epoch, leader_id)"""
        self.told: list[tuple[int, Any]] = []
        """(to whom, message), of this life."""
        self.notified: list[Notification] = []
        self.snapshots: list[SendSnapshot] = []
        """What it was to send of its newest snapshot."""
        self.reasons: list[str] = []
        """Why it closed links and stopped serving."""

    @property
    def peer(self) -> Peer:
        assert self.alive is not None, f"server {self.server_id} is dead"
        return self.alive

    @property
    def is_leading(self) -> bool:
        return self.peer.role == PeerState.LEADING

    @property
    def is_looking(self) -> bool:
        return self.peer.role == PeerState.LOOKING

    def holds(self, *records: bytes, accepted: int, current: int) -> Server:
        """What is on the disk before the story begins."""
        self.log, self.accepted_epoch, self.current_epoch = list(records), accepted, current
        return self

    def start(self) -> None:
        log = EpochEnds(0)
        for zxid in map(zxid_of, self.log):
            log.append(zxid, zxid)
        self.applied, self.told, self.notified, self.reasons = [], [], [], []
        self.built, self.confirmed = list(self.log), []
        rng = random.Random(self.server_id + self.ensemble.now_ms)
        settings = Membership(self.config.voters, self.config.observers)
        memberships = SpokenMemberships(settings, self.ensemble.members)
        for record in self.log:
            memberships.on_appended(zxid_of(record), [record])
        self.alive = Peer(
            *(self.config, self.accepted_epoch, self.current_epoch, log, rng),
            *(log.last_zxid, memberships),
        )
        self._perform(self.alive.start(self.ensemble.now_ms))

    def kill(self) -> None:
        """It forgets all but what the disk has done."""
        self.alive, self.serving = None, None
        self.disk.clear()
        self.ensemble.forget(self.server_id)

    def step(self, event: PeerEvent) -> None:
        self._perform(self.peer.step(event, self.ensemble.now_ms))

    def messages(self, *kinds: type, to: int | None = None) -> list[Any]:
        """What it has told, of these kinds or of all."""
        told = [message for server_id, message in self.told if to in {None, server_id}]
        return [each for each in told if isinstance(each, kinds)] if kinds else told

    def propose(self, *words: bytes) -> list[bytes]:
        """Propose one group of records, as the leader's own requests do."""
        assert self.serving is not None and self.serving[1] == self.server_id, self.serving
        epoch, last = self.serving[0], self.peer.last_logged_zxid
        first = counter_of(last) + 1 if epoch_of(last) == epoch else 0
        records = [b"%d.%d %s" % (epoch, first + i, word) for i, word in enumerate(words)]
        self.step(Propose(records, zxid_of(records[0]), zxid_of(records[-1])))
        return records

    def do_disk(self, count: int | None = None) -> int:
        """Do the next pieces of disk work, or all; how many there were."""
        done = 0
        while self.disk and done != count:
            done += 1
            event = self._do(self.disk.popleft())
            if event is not None:
                self.step(event)
        return done

    def _do(self, work: Work) -> PeerEvent | None:
        match work:
            case AppendRecords(first_zxid=first_zxid) if self.is_full:
                self.disk.clear()
                return LogRefused(first_zxid)
            case AppendRecords():
                self.log += work.records
                return Logged(work.last_zxid)
            case TruncateLog(zxid=zxid):
                self.log = [record for record in self.log if zxid_of(record) <= zxid]
                assert self.log[: len(self.applied)] == self.applied, "truncates what is committed"
                self.built = self.built[: len(self.log)]
                return Truncated(zxid)
            case DropSnapshot():
                return None
            case ReceiveSnapshot():
                return SnapshotBegun()
            case StoreChunk():
                return ChunkWritten()
            case InstallSnapshot(zxid=zxid):
                self.log, self.built = [], []
                return SnapshotInstalled(zxid)
            case AcceptEpoch(epoch=epoch):
                assert epoch > self.accepted_epoch, (epoch, self.accepted_epoch)
                self.accepted_epoch = epoch
                return EpochAccepted(epoch)
            case AdoptEpoch(epoch=epoch):
                assert self.current_epoch <= epoch <= self.accepted_epoch, epoch
                self.current_epoch = epoch
                return EpochAdopted(epoch)

    def _perform(self, effects: list[PeerEffect]) -> None:
        sent: list[HistorySent] = []
        for effect in effects:
            match effect:
                case Tell(link=link, message=message):
                    self._tell(link, message)
                case SendSnapshot():
                    self.snapshots.append(effect)
                case SendHistory(link=link, after_zxid=after):
                    for record in self.log:
                        if after < zxid_of(record):
                            self._tell(link, proposal(record))
                    sent.append(HistorySent(link, zxid_of(self.log[-1])))
                case CloseLink(link=link, reason=reason):
                    self.reasons.append(reason)
                    self._tell(link, None)
                    link.open.discard(self.server_id)
                case Dial(server_id=server_id):
                    self.ensemble.ways[self.server_id, server_id].append(InFlight(None, None))
                case Notify(server_id=server_id, notification=notification):
                    self.notified.append(notification)
                    self.ensemble.gossiped.append((self.server_id, server_id, notification))
                case ApplyUpTo(zxid=zxid):
                    self._apply_up_to(zxid)
                case Serve(epoch=epoch, leader_id=leader_id):
                    self.serving = (epoch, leader_id)
                    self._deliver(self.built)
                    assert self.ensemble.led.setdefault(epoch, leader_id) == leader_id
                case StopServing(reason=reason):
                    self.reasons.append(reason)
                    self.serving = None
                case LeadConfirmed(token=token):
                    self.confirmed.append(token)
                case ReadOn():
                    pass  # all of it is sent at once
                case _:
                    self.disk.append(effect)
        for each in sent:
            self.step(each)

    def _tell(self, link: Link, message: Any) -> None:
        if message is not None:
            self.told.append((link.other(self.server_id), message))
        self.ensemble.send(self.server_id, link, message)

    def _apply_up_to(self, zxid: int) -> None:
        built = [record for record in self.log if zxid_of(record) <= zxid]
        assert zxid_of(built[-1]) == zxid, "applies what is not on its disk"
        assert built[: len(self.built)] == self.built, "applies something twice"
        self.built = built
        if self.serving is None:  # nobody sees it: some of it may have to go again
            committed = self.peer.last_committed_zxid
            built = [record for record in built if zxid_of(record) <= committed]
        if len(built) > len(self.applied):
            self._deliver(built)

    def _deliver(self, records: list[bytes]) -> None:
        """These are known to be committed."""
        if records:
            assert zxid_of(records[-1]) <= self.peer.last_committed_zxid, "shows what may go again"
        self.applied = list(records)
        delivered = self.ensemble.delivered
        delivered += records[len(delivered) :]
        assert delivered[: len(records)] == records, (delivered, records)


class Ensemble:
    """Some servers, the ways between them, and the clock."""

    def __init__(self, voter_count: int = 3, observer_count: int = 0) -> None:
        """Voters are numbered from 1, observers after them."""
        voters = frozenset(range(1, voter_count + 1))
        observers = frozenset(range(voter_count + 1, voter_count + observer_count + 1))
        ids = sorted(voters | observers)
        self.now_ms = 0
        self.servers = {each: Server(self, PeerConfig(each, voters, observers)) for each in ids}
        self.ways: dict[tuple[int, int], deque[InFlight]] = {
            (a, b): deque() for a in ids for b in ids if a != b
        }
        self.links: list[Link] = []
        self.gossiped: list[tuple[int, int, Notification]] = []
        self.cuts: set[frozenset[int]] = set()
        self.older: set[int] = set()
        """Whose notifications, said and heard, are of version 0."""
        self.delivered: list[bytes] = []
        """The longest sequence that any server has applied."""
        self.members: dict[bytes, Membership] = {}
        """What some words say of the members."""
        self.led: dict[int, int] = {}
        """epoch -> who served it."""

    def __getitem__(self, server_id: int) -> Server:
        return self.servers[server_id]

    # ---- what may happen ------------------------------------------------------------------------

    def start(self, *server_ids: int) -> None:
        """Start these, or all, and let them elect; nothing goes over a link yet."""
        for each in server_ids or self.servers:
            self[each].start()
        self.advance(DEFAULTS.finalize_wait_ms, quiet=False)

    def deliver(self, sender_id: int, receiver_id: int, count: int | None = None) -> list[Any]:
        """Deliver the next messages (and dials, and ends of links) on a way, or all there are."""
        delivered: list[Any] = []
        way = self.ways[sender_id, receiver_id]
        while way and len(delivered) != count:
            item = way.popleft()
            if self._arrive(sender_id, receiver_id, item):
                delivered.append(item.message)
        return delivered

    def gossip(self) -> None:
        """Deliver notifications until there is silence."""
        for _ in range(MAX_ROUNDS):
            gossiped, self.gossiped = self.gossiped, []
            if not gossiped:
                return
            for sender_id, receiver_id, said in gossiped:
                is_older = not self.older.isdisjoint((sender_id, receiver_id))
                notification = said._replace(names_members=False) if is_older else said
                if self[receiver_id].alive and frozenset((sender_id, receiver_id)) not in self.cuts:
                    self[receiver_id].step(NotificationReceived(sender_id, notification))
        raise AssertionError("they never stop talking")

    def settle(self, *, without_disk_of: int = 0) -> None:
        """Let everything happen that needs no time."""
        for _ in range(MAX_ROUNDS):
            self.gossip()
            happened = 0
            for each, server in self.servers.items():
                happened += server.do_disk() if each != without_disk_of else 0
            happened += sum(len(self.deliver(*way)) for way in self.ways)
            if not happened and not self.gossiped:
                return
        raise AssertionError("it never settles")

    def advance(self, ms: int, *, quiet: bool = True) -> None:
        """Let time pass; with `quiet`, everything else happens too, whenever a timer has fired."""
        end_ms = self.now_ms + ms
        for _ in range(ms + MAX_ROUNDS):
            (self.settle if quiet else self.gossip)()
            alive = [server for server in self.servers.values() if server.alive]
            deadlines = [each.peer.deadline_ms() for each in alive]
            self.now_ms = max(self.now_ms, min([end_ms, *(d for d in deadlines if d is not None)]))
            due = [s for s, d in zip(alive, deadlines, strict=True) if d and d <= self.now_ms]
            for server in due:
                server.step(PeerTimerFired())
            if self.now_ms >= end_ms and not due:
                return
        raise AssertionError("a timer fires for ever")

    def forge(self, sender_id: int, receiver_id: int, message: Any) -> None:
        """Let a message arrive, ahead of all others, that the sender never told."""
        self[receiver_id].step(MessageReceived(self.link_of(sender_id, receiver_id), message))

    def lose_link(self, a: int, b: int) -> None:
        """The newest link between two breaks, and both hear of it at once."""
        link = self.link_of(a, b)
        link.is_broken = True
        for each in sorted(link.open):
            link.open.discard(each)
            self[each].step(LinkLost(link))

    def cut(self, a: int, b: int) -> None:
        """Nothing comes through between two any more, and nobody tells them."""
        self.cuts.add(frozenset((a, b)))
        for link in self.links:
            link.is_broken |= {link.learner_id, link.leader_id} == {a, b}

    def heal(self, a: int, b: int) -> None:
        """New links may be opened, and notifications pass."""
        self.cuts.discard(frozenset((a, b)))

    def forget(self, server_id: int) -> None:
        """A server has died: its links end behind what it had told."""
        for link in self.links:
            if server_id in link.open:
                self.send(server_id, link, None)
                link.open.discard(server_id)

    # ---- what is to be seen ---------------------------------------------------------------------

    def waiting(self, sender_id: int, receiver_id: int) -> list[Any]:
        """What is under way."""
        return [item.message for item in self.ways[sender_id, receiver_id]]

    def link_of(self, a: int, b: int) -> Link:
        """The newest link between two."""
        return next(x for x in reversed(self.links) if {x.learner_id, x.leader_id} == {a, b})

    @property
    def leader(self) -> Server:
        """The one server that serves as leader."""
        (leader,) = self._leaders()
        return leader

    def has_leader(self) -> bool:
        """Somebody leads, and serves."""
        return bool(self._leaders())

    def _leaders(self) -> list[Server]:
        return [s for s in self.servers.values() if s.serving and s.serving[1] == s.server_id]

    def serving(self) -> dict[int, tuple[int, int] | None]:
        return {each: server.serving for each, server in self.servers.items()}

    # ---- inside ---------------------------------------------------------------------------------

    def send(self, sender_id: int, link: Link, message: Any) -> None:
        if sender_id in link.open and not link.is_broken:
            self.ways[sender_id, link.other(sender_id)].append(InFlight(link, message))

    def _arrive(self, sender_id: int, receiver_id: int, item: InFlight) -> bool:
        link, message = item
        if link is None:
            self._dial(sender_id, receiver_id)
        elif receiver_id not in link.open or link.is_broken:
            return False
        elif message is None:
            link.open.discard(receiver_id)
            self[receiver_id].step(LinkLost(link))
        else:
            self[receiver_id].step(MessageReceived(link, message))
        return True

    def _dial(self, caller_id: int, called_id: int) -> None:
        caller = self[caller_id]
        if caller.alive is None:
            return
        if self[called_id].alive is None or frozenset((caller_id, called_id)) in self.cuts:
            caller.step(DialFailed(called_id))
            return
        link = Link(caller_id, called_id)
        self.links.append(link)
        self[called_id].step(LinkOpened(link, 0))
        caller.step(LinkOpened(link, called_id))


def established(voter_count: int = 3, observer_count: int = 0) -> Ensemble:
    """All are up, and serve; the voter with the highest id leads epoch 1."""
    ensemble = Ensemble(voter_count, observer_count)
    ensemble.start()
    ensemble.settle()
    assert set(ensemble.serving().values()) == {(1, voter_count)}, ensemble.serving()
    return ensemble
