"""Random ensembles whose logs end in the midst of changes of the members: each has some of it.

What holds is `peer_support`'s: an epoch is served by one leader, what was committed is never lost.
Then everybody is there and hears everybody, or there are some of whom one can be elected, whatever
the others do: somebody must come to lead.
"""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from zkserver.core.members import Member
from zkserver.core.membership import Membership, membership_of
from zkserver.core.quorum import Quorums

from .peer_support import Ensemble, zxid_of

IDS = range(1, 7)
LOG = [b"1.0 first", b"1.1 a", b"2.0 joint", b"2.1 final", b"2.2 b", b"3.0 again", b"3.1 last"]
LATE_LOG = [b"0.1 none", *LOG]
"""Whose log ends with its first record goes by its settings, as whoever has a new disk does."""
LIMIT_MS = 60_000


def membership(voters: set[int], old: set[int] | None = None) -> Membership:
    members = [Member(each, "host", each) for each in sorted(voters)]
    return membership_of(members, None if old is None else frozenset(old))


class History:
    """Which servers vote when, and how much of the log each of them has."""

    def __init__(self, seed: int, log: list[bytes]) -> None:
        self.log = log
        self.rng = rng = random.Random(f"{seed} members")
        self.voters = [set(rng.sample(IDS, rng.randint(1, 4))) for _ in range(3)]
        first, second, third = self.voters
        self.members = {
            b"first": membership(first),
            b"joint": membership(second, first),
            b"final": membership(second),
            b"again": membership(third, second),
            b"last": membership(third),
        }
        self.top = rng.randint(2, len(log))
        # A final change is logged once the joint one before it is committed.
        late = len(log) - len(LOG)
        least = {4: 3, 5: 3, 6: 4, 7: 6}.get(self.top - late, 1)
        self.committed = rng.randint(least + late if least > 1 else 1, self.top)
        self.lengths = self._lengths()

    def _lengths(self) -> dict[int, int]:
        choose = self.rng.randint
        while True:
            found = {each: choose(1, self.top) for each in IDS}
            for each in self.rng.sample(IDS, 4):
                found[each] = max(found[each], self.committed)
            if all(self._has_quorum(number, found) for number in range(self.committed)):
                return found

    def _has_quorum(self, number: int, lengths: dict[int, int]) -> bool:
        """Whether what is to be committed is where its members have to have it."""
        have = {each for each, length in lengths.items() if length > number}
        return self.quorums_at(number + 1).has_quorum(have)

    def quorums_at(self, length: int) -> Quorums:
        """Who decides by a log of this length."""
        words = [b"first", *(record.split()[1] for record in self.log[:length])]
        return [self.members[word] for word in words if word in self.members][-1].quorums

    def ensemble(self) -> Ensemble:
        """Nobody is started."""
        ensemble, first = Ensemble(len(IDS)), frozenset(self.voters[0])
        ensemble.members = self.members
        ensemble.delivered = self.log[: self.committed]
        for each, length in self.lengths.items():
            server = ensemble[each]
            # Who is about to join is named by its own settings only.
            server.config = server.config._replace(voters=first | {each}, observers=frozenset())
            epoch = zxid_of(self.log[length - 1]) >> 32
            promised = epoch + self.rng.choice((0, 0, 0, 1, 2))
            server.holds(*self.log[:length], accepted=promised, current=epoch)
        return ensemble


def trouble(ensemble: Ensemble, rng: random.Random) -> None:
    pairs = [(a, b) for a in IDS for b in IDS if a < b]
    for pair in pairs:
        if rng.random() < 0.4:
            ensemble.cut(*pair)
    for each in IDS:
        if rng.random() < 0.8:
            ensemble[each].start()
    for _ in range(rng.randint(3, 15)):
        ensemble.advance(rng.choice((30, 300, 700, 2_000)))
        for pair in rng.sample(pairs, 3):
            (ensemble.heal if frozenset(pair) in ensemble.cuts else ensemble.cut)(*pair)
        server = ensemble[rng.choice(IDS)]
        if rng.random() < 0.3:
            (server.kill if server.alive else server.start)()
    for pair in pairs:
        ensemble.heal(*pair)
    for each in IDS:
        if not ensemble[each].alive:
            ensemble[each].start()


@pytest.mark.parametrize("log", [LOG, LATE_LOG], ids=["members", "settings"])
@pytest.mark.parametrize("twenty", range(20))
def test_however_far_each_log_goes_one_comes_to_lead(twenty: int, log: list[bytes]) -> None:
    for seed in range(20 * twenty, 20 * twenty + 20):
        history = History(seed, log)
        ensemble = history.ensemble()
        trouble(ensemble, history.rng)
        come_to_lead(ensemble, (seed, history.voters, history.lengths))


@pytest.mark.parametrize("twenty", range(10))
def test_one_comes_to_lead_once_all_are_of_the_newer_version(twenty: int) -> None:
    """Who speaks the older one cannot tell that its log names members: while some do, the first
    change of the members may have to wait. Nothing is lost, and nobody is the worse for it."""
    for seed in range(20 * twenty, 20 * twenty + 20):
        history, rng = History(seed, LATE_LOG), random.Random(f"{seed} older")
        ensemble = history.ensemble()
        ensemble.older = {each for each in IDS if rng.random() < 0.5}
        trouble(ensemble, history.rng)
        ensemble.advance(rng.choice((0, 2_000, 10_000)))
        for each in sorted(ensemble.older):
            ensemble[each].kill()
            ensemble.older.discard(each)
            ensemble[each].start()
            ensemble.advance(rng.choice((0, 700)))
        come_to_lead(ensemble, (seed, history.voters, history.lengths))


def come_to_lead(ensemble: Ensemble, what: object) -> None:
    """Somebody does, in time."""
    end_ms = ensemble.now_ms + LIMIT_MS
    while not ensemble.has_leader():
        assert ensemble.now_ms < end_ms, what
        ensemble.advance(250)


def electable(history: History) -> list[set[int]]:
    """Groups that have all that was committed, and a quorum of what the best of them knows."""
    found = []
    for count in IDS:
        for group in map(set, combinations(IDS, count)):
            length = max(history.lengths[each] for each in group)
            quorums = history.quorums_at(length)
            best = {each for each in group if history.lengths[each] == length}
            if length >= history.committed and quorums.has_quorum(group) and best & quorums.voters:
                found.append(group)
    return found


@pytest.mark.parametrize("log", [LOG, LATE_LOG], ids=["members", "settings"])
@pytest.mark.parametrize("twenty", range(20))
def test_those_that_can_elect_one_do_whoever_else_is_gone_or_cut_off(
    twenty: int, log: list[bytes]
) -> None:
    """What they lack does not come back, and who is there beside them may be of no use."""
    for seed in range(20 * twenty, 20 * twenty + 20):
        history, rng = History(seed, log), random.Random(f"{seed} stays")
        groups = electable(history)
        if not groups:
            continue
        group = rng.choice([each for each in groups if len(each) <= len(groups[0]) + 1])
        ensemble, share = history.ensemble(), rng.choice((0, 0.2, 0.5))
        for pair in combinations(IDS, 2):
            if not group.issuperset(pair) and rng.random() < share:
                ensemble.cut(*pair)
        for each in rng.sample(IDS, len(IDS)):
            if each in group or rng.random() < 0.6:
                ensemble[each].start()
                ensemble.advance(rng.choice((0, 30, 700, 2_000, 4_000)))
        come_to_lead(ensemble, (seed, group, history.voters, history.lengths))


def change(old: set[int], new: set[int], delivered: list[bytes]) -> Ensemble:
    """The members were `old` and are to be `new`; everybody's settings name `old` and itself."""
    ensemble = Ensemble(max(old | new))
    ensemble.members = {
        b"first": membership(old),
        b"joint": membership(new, old),
        b"final": membership(new),
    }
    ensemble.delivered = delivered
    for each in ensemble.servers.values():
        voters = frozenset(old | {each.server_id})
        each.config = each.config._replace(voters=voters, observers=frozenset())
    return ensemble


def test_who_alone_has_logged_the_change_by_which_it_leaves_is_elected_at_once() -> None:
    """The new members cannot elect one of themselves: they still need a quorum of the old ones, of
    which it is the only one that is there. Ongaro 4.2.2: it leads without counting itself."""
    log = [b"1.0 first", b"1.1 a", b"1.2 joint", b"1.3 final"]
    ensemble = change({1, 2, 3}, {4, 5, 6}, log[:3])
    for each in (1, 4, 5, 6):
        ensemble[each].holds(*log[: 4 if each == 1 else 3], accepted=1, current=1)
    ensemble.start(1, 4, 5, 6)
    for _ in range(5):
        ensemble.advance(ensemble[1].config.finalize_wait_ms)
    assert ensemble.led[2] == 1, "then it leaves, and one of the new members leads"
    assert ensemble.has_leader()


@pytest.mark.parametrize("seed", range(20))
def test_a_removed_server_that_is_started_again_does_not_hold_up_an_election(seed: int) -> None:
    """4 does not know that it was removed for good, and has the highest id."""
    log = [b"1.0 first", b"1.1 a", b"1.2 joint", b"1.3 final", b"1.4 b"]
    ensemble = change({1, 2, 3, 4}, {1, 2, 3}, log)
    ensemble.now_ms = seed
    for each in (1, 2, 4):
        ensemble[each].holds(*log, accepted=1, current=1)
    ensemble.start(4, 1)
    ensemble.advance(5_000)
    assert not ensemble.has_leader()
    ensemble.start(2)
    ensemble.advance(ensemble[1].config.finalize_wait_ms)
    ensemble.settle()
    assert ensemble.has_leader()


@pytest.mark.parametrize("seed", range(20))
def test_an_outsider_that_cannot_win_does_not_hold_up_a_voter_for_ever(seed: int) -> None:
    """4 alone was told of the change that makes it a voter, and 2, which began it, is dead. 3 has
    an empty disk and votes for nobody that its settings do not name; without it 1 elects nobody."""
    log = [b"1.0 first", b"1.1 a", b"1.2 joint"]
    ensemble = change({1, 2, 3}, {1, 2, 3, 4}, log[:2])
    ensemble.now_ms = 1_000 * seed
    ensemble[1].holds(*log[:2], accepted=1, current=1)
    ensemble[4].holds(*log, accepted=1, current=1)
    ensemble.start(4, 1)
    ensemble.advance(5_000)
    ensemble.start(3)
    end_ms = ensemble.now_ms + LIMIT_MS // 4
    while not ensemble.has_leader():
        assert ensemble.now_ms < end_ms
        ensemble.advance(100)
