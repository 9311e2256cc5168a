"""The role of a server that looks for a leader: fast leader election.

Owns this server's vote, what the others have said, and when to say ours again. Never looks into
the log and never changes role: `Peer` takes the decision and acts on it. A decision is a hint. That
there is one leader in an epoch is ensured by discovery (A.4), so a stale word can cost an election,
never a record.

    looking --- a quorum has our vote, no better one within finalize_wait_ms -------> decided
    looking --- every voter has our vote, and no outsiders are heard ----------------> decided
    looking --- a quorum names an established leader, and so does that leader -------> decided
    looking --- whom we have voted for leads, or one in an epoch that is new to us --> decided
    looking --- whom we have voted for votes for a worse one: it does not stand -----> a new round
    decided     for good: whoever looks again makes a new `Looking` with a higher round

Everybody tells its vote whenever it changes, and again after a silence that doubles. In a round
votes only get better, so that whoever is told a worse one than its own may answer without making
the two answer each other for ever.

Whom we vote for and whose vote we count are two things. We count the voters that our log names; we
vote for the best of all that ask, although our log may not name them, nor ourselves: it may lack
the change that made them voters, and without us they might never be elected (Raft section 6). So a
server that may not lead, as an observer, begins with `NO_VOTE` and takes over the best vote that it
hears; nobody counts it that does not know it as a voter. What we must not do:

- vote for one that knows less than ourselves: it could only fail, in ever new epochs
- vote for an outsider, which our log does not name, unless it has come to that (`hears_outsiders`):
  it may need others, and wait for them while we wait for it
- vote for an outsider that has no more than we have, where we may lead, unless a voter does: it is
  not needed, and may be one that was removed and does not know it
- vote for an outsider where neither its log nor ours names the members: the settings of two servers
  may differ, and then two quorums need not have a server in common
Source: ZooKeeper `FastLeaderElection` (reference A.2), where only known voters are heard.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from duolog_protocol.quorum_messages import Notification, PeerState, Vote

from .membership import Membership
from .peer_config import PeerConfig
from .peer_events import Notify

NO_VOTE: Final = Vote(0, 0, 0)
"""What a server tells that has heard of nobody to vote for: worse than every vote, since server
ids begin at 1."""


class Decision(NamedTuple):
    """Who leads, and what this server answers from now on to those that look."""

    leader_id: int
    vote: Vote
    election_round: int
    """That of the leader, which may be lower than the one we had begun."""


def reply_to_looking(sender_id: int, received: Notification, ours: Notification) -> Notify | None:
    """What a server that looks for no leader says to a notification: to a looking one, its own."""
    assert ours.state != PeerState.LOOKING, ours
    return Notify(sender_id, ours) if received.state == PeerState.LOOKING else None


class Looking:
    """One election, from its first notification to the decision."""

    def __init__(
        self,
        config: PeerConfig,
        membership: Membership,
        accepted_epoch: int,
        own_vote: Vote,
        election_round: int,
        now_ms: int,
        *,
        may_lead: bool,
        hears_outsiders: bool = False,
    ) -> None:
        """`own_vote` names ourselves and says what is durable here; whoever may not lead does not
        tell it.

        `election_round` is the one to begin, higher than every one this server was in before. Who
        may not lead begins none: 0, so that every one it hears of is higher.

        `hears_outsiders`: votes for servers that our log does not name, too, and waits for them.
        """
        assert own_vote.server_id == config.server_id, (own_vote, config.server_id)
        assert election_round > 0, election_round
        self._config = config
        self._hears_outsiders = hears_outsiders or not may_lead
        """Whoever may not lead always does: it has nobody better to vote for."""
        self._names_members = bool(membership.members)
        self._quorums = membership.quorums
        self._others = membership.ids - {config.server_id}
        self._accepted_epoch = accepted_epoch
        self._may_lead = may_lead
        self._own_vote = own_vote
        self._initial_vote = own_vote if may_lead else NO_VOTE
        self.vote = self._initial_vote
        """The best one of this round, as far as we know."""
        self.election_round = election_round if self._may_lead else 0
        self._newest_round = election_round
        """The highest that was begun here or heard of: in it this server votes for nobody."""
        self._round_votes: dict[int, Vote] = {}
        """Newest vote of each server in this round, ours included; `Quorums` picks the voters."""
        self._settled: dict[int, Notification] = {}
        """Newest word of each server that looks no more, of whatever round."""
        self._heard: set[int] = {config.server_id}
        """Whose word has come, and we."""
        self.met_outsiders = False
        """Somebody has told a vote for a server that our log does not name."""
        self._decision: Decision | None = None
        self._finalize_ms: int | None = None
        """When to decide; None while no quorum has our vote."""
        self._untold: set[int] = set()
        """Servers that are to be told our vote."""
        self._silence_ms = config.notification_first_ms
        self._resend_ms = now_ms + self._silence_ms
        self._now_ms = now_ms

    def start(self) -> None:
        """Tell everybody our vote, or ask for theirs."""
        self._untold |= self._others
        if self._may_lead:
            self._adopt(self._initial_vote, self._now_ms)
            self._count(self._now_ms)

    def on_notification(self, sender_id: int, notification: Notification, now_ms: int) -> None:
        """Another server has said who should lead; what cannot be is ignored."""
        if self._decision is not None or not self._is_possible(sender_id, notification):
            return
        self._heard.add(sender_id)
        self._newest_round = max(self._newest_round, notification.election_round)
        if notification.vote.server_id == self._config.server_id and not self._may_lead:
            # Said of us when we stood, or our log was another one. It hears of us from now on.
            self._meet(sender_id)
        elif notification.state != PeerState.LOOKING:
            self._on_settled(sender_id, notification)
        else:
            self._on_looking(sender_id, notification, now_ms)
        if self._decision is None:
            self._count(now_ms)

    def on_timer(self, now_ms: int) -> None:
        """`deadline_ms` has come, or not yet."""
        if self._decision is not None:
            return
        if self._finalize_ms is not None and now_ms >= self._finalize_ms:
            self._decide(self.vote, self.election_round)
        elif now_ms >= self._resend_ms:
            self._untold |= self._others
            self._silence_ms = min(2 * self._silence_ms, self._config.notification_last_ms)
            self._resend_ms = now_ms + self._silence_ms

    def deadline_ms(self) -> int:
        """When `on_timer` has something to do; only while nothing is decided."""
        assert self._decision is None, self._decision
        if self._finalize_ms is None:
            return self._resend_ms
        return min(self._finalize_ms, self._resend_ms)

    def take_notifications(self) -> list[Notify]:
        """What is to be sent since the last call, also after the decision: at most one for each."""
        election_round = self._newest_round if self.vote == NO_VOTE else self.election_round
        notification = Notification(
            PeerState.LOOKING, self.vote, election_round, self._names_members
        )
        notifications = [Notify(server_id, notification) for server_id in sorted(self._untold)]
        self._untold.clear()
        return notifications

    @property
    def has_heard_outsiders(self) -> bool:
        """There are some, and this server was ready to vote for them."""
        return self._hears_outsiders and self.met_outsiders

    @property
    def hears_quorum(self) -> bool:
        """Of those that our log names; without it we are not elected, whatever the others do."""
        return self._quorums.has_quorum(self._heard)

    def decision(self) -> Decision | None:
        """Who leads; stays what it is once it is there."""
        return self._decision

    def _is_possible(self, sender_id: int, notification: Notification) -> bool:
        state, vote, election_round, _ = notification
        if sender_id == self._config.server_id:
            return False
        if vote == NO_VOTE:
            return state == PeerState.LOOKING
        if election_round <= 0:
            return False
        is_of_itself = vote.server_id == sender_id
        return state == PeerState.LOOKING or (state == PeerState.LEADING) == is_of_itself

    def _is_later_leader(self, notification: Notification) -> bool:
        """It leads in no older epoch than we have heard of: our members may be those of long ago.

        Following it needs no quorum's word: discovery decides (A.4).
        """
        state, vote, _, _ = notification
        return state == PeerState.LEADING and vote.epoch >= max(1, self._accepted_epoch)

    def _has_our_vote(self, notification: Notification) -> bool:
        """It leads in this round, and we have voted for it: its log may name us where ours names
        others, so that it waits for us and we would wait for them."""
        return notification[:3] == (PeerState.LEADING, self.vote, self.election_round)

    def _on_looking(self, sender_id: int, notification: Notification, now_ms: int) -> None:
        """Another server looks for a leader, too; in NO_VOTE it has none to tell."""
        self._forget(sender_id)
        self._meet(sender_id)
        _, vote, election_round, names_members = notification
        is_of_now = election_round >= self.election_round
        if is_of_now and sender_id == self.vote.server_id and vote < self.vote:
            self._withdraw(now_ms)
        if vote == NO_VOTE or election_round < self.election_round:
            self._answer(sender_id)
            return
        if not self._may_vote_for(sender_id, vote, names_members):
            return
        if election_round > self.election_round:
            self.election_round = election_round
            self._round_votes.clear()
            # Not with our vote of the round before: whoever it names may be gone.
            self._adopt(max(self._initial_vote, vote), now_ms)
        elif vote > self.vote:
            self._adopt(vote, now_ms)
        elif vote < self.vote:
            self._answer(sender_id)
        self._round_votes[sender_id] = vote

    def _on_settled(self, sender_id: int, notification: Notification) -> None:
        """A server follows, leads or observes; `Quorums` sees to it that observers don't count."""
        self._forget(sender_id)
        if self._is_later_leader(notification) or self._has_our_vote(notification):
            self._decide(notification.vote, notification.election_round)
            return
        self._settled[sender_id] = notification
        self._meet(notification.vote.server_id)
        if notification.election_round == self.election_round:
            self._round_votes[sender_id] = notification.vote
        word = self._word_of_leader(notification)
        if word is not None and self._is_named_by_quorum(notification):
            self._decide(word.vote, word.election_round)

    def _may_vote_for(self, sender_id: int, vote: Vote, names_members: bool) -> bool:
        """See the top of this file; whoever may lead has a better vote than one that knows less."""
        voters, own = self._quorums.voters, self._own_vote
        known, own_known = (vote.epoch, vote.zxid), (own.epoch, own.zxid)
        if not self._may_lead and known < own_known:
            return False
        if vote.server_id in voters or vote.server_id == self._config.server_id:
            return True
        if self._may_lead and known <= own_known and sender_id not in voters:
            return False
        self.met_outsiders = True
        if not self._hears_outsiders:
            return False
        # What a voter tells of an outsider's vote says nothing of that one's log.
        is_named = names_members and sender_id == vote.server_id
        return self._names_members or is_named or vote == self.vote

    def _meet(self, server_id: int) -> None:
        """One that our log may not name is told our vote, too, from now on."""
        if server_id not in self._others and server_id != self._config.server_id:
            self._others |= {server_id}
            self._untold.add(server_id)

    def _forget(self, sender_id: int) -> None:
        """Only the newest notification of a server counts."""
        self._settled.pop(sender_id, None)
        self._round_votes.pop(sender_id, None)

    def _word_of_leader(self, notification: Notification) -> Notification | None:
        """What the server says that is named here, if it does lead.

        ZooKeeper `checkLeader`: those that follow a dead leader must not elect it again.
        """
        _, vote, election_round, _ = notification
        if vote.server_id == self._config.server_id:
            return notification if election_round == self.election_round else None
        word = self._settled.get(vote.server_id)
        if word is None or word.state != PeerState.LEADING or word.vote.epoch != vote.epoch:
            return None
        return word

    def _is_named_by_quorum(self, notification: Notification) -> bool:
        """Whether a quorum names this leader: in this round, or of those that have one already."""
        _, vote, election_round, _ = notification
        if election_round == self.election_round:
            follow = self._having(vote)
            if vote.server_id in follow:  # It leads, and whoever else it needs may be us.
                follow.add(self._config.server_id)
            if self._quorums.has_quorum(follow):
                return True
        # Round and zxid of a leader differ with the way a server came to it (Z-1732, 1805, 1818).
        named = (vote.server_id, vote.epoch)
        words = self._settled.items()
        return self._quorums.has_quorum(
            {each for each, word in words if (word.vote.server_id, word.vote.epoch) == named}
        )

    def _having(self, vote: Vote) -> set[int]:
        """Servers with this vote in this round; if it is for us, also those that have decided on it
        in one before, and wait for us to lead."""
        found = {server_id for server_id, each in self._round_votes.items() if each == vote}
        if vote.server_id == self._config.server_id:
            for server_id, word in self._settled.items():
                if word.vote == vote and word.election_round < self.election_round:
                    found.add(server_id)
        return found

    def _adopt(self, vote: Vote, now_ms: int) -> None:
        """This is our vote from now on; tell everybody."""
        self.vote = vote
        self._finalize_ms = None
        self._silence_ms = self._config.notification_first_ms
        self._resend_ms = now_ms + self._silence_ms
        self._round_votes[self._config.server_id] = vote
        self._untold |= self._others

    def _withdraw(self, now_ms: int) -> None:
        """Whom we vote for does not stand any more, or has less than it had: who stands votes for
        nobody worse. A new round, so that all forget it: votes of a round only get better."""
        self._round_votes.clear()
        if self._may_lead:
            self.election_round += 1
            self._adopt(self._initial_vote, now_ms)
        else:
            self.vote, self.election_round, self._finalize_ms = NO_VOTE, 0, None
            self._untold |= self._others

    def _answer(self, server_id: int) -> None:
        if self.vote != NO_VOTE:
            self._untold.add(server_id)

    def _count(self, now_ms: int) -> None:
        """Decide, or see when to decide, if a quorum has our vote."""
        agreed = self._having(self.vote)
        if not self._quorums.has_quorum(agreed):
            self._finalize_ms = None
        elif agreed >= self._quorums.voters and not self._hears_outsiders:
            self._decide(self.vote, self.election_round)
        elif self._finalize_ms is None:
            self._finalize_ms = now_ms + self._config.finalize_wait_ms

    def _decide(self, vote: Vote, election_round: int) -> None:
        assert self._may_lead or vote.server_id != self._config.server_id, vote
        self._decision = Decision(vote.server_id, vote, election_round)
