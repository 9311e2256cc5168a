"""Some servers hear each other and some do not, for good; all logs name the same members.

One majority is fully connected: it must come to a leader and keep it, although the best vote may be
for one that only some of them reach, and that others tell them of.
"""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from .peer_support import Ensemble
from .test_changing_members import membership

LOG = [b"1.0 first", b"1.1 a", b"1.2 b", b"1.3 c"]
LIMIT_MS = 60_000
KEPT_MS = 30_000


def partitioned(seed: int) -> Ensemble:
    rng = random.Random(f"{seed} partial")
    count = rng.choice((3, 5, 5))
    ids, majority = range(1, count + 1), count // 2 + 1
    connected, up_to_date = (set(rng.sample(ids, majority)) for _ in range(2))
    ensemble = Ensemble(count)
    ensemble.now_ms = rng.randint(1, 100_000)
    ensemble.members = {b"first": membership(set(ids))}
    committed = rng.randint(1, len(LOG))
    ensemble.delivered = LOG[:committed]
    for each in ids:
        length = max(rng.randint(1, len(LOG)), committed if each in up_to_date else 1)
        promised = 1 + rng.choice((0, 0, 0, 1, 2))
        ensemble[each].holds(*LOG[:length], accepted=promised, current=1)
    share = rng.choice((0.3, 0.6, 0.9))
    for pair in combinations(ids, 2):
        if not connected.issuperset(pair) and rng.random() < share:
            ensemble.cut(*pair)
    for each in ids:
        if each in connected or rng.random() < 0.8:
            ensemble[each].start()
            ensemble.advance(rng.choice((0, 30, 2_000)))
    return ensemble


@pytest.mark.parametrize("ten", range(10))
def test_a_connected_majority_comes_to_a_leader_and_keeps_it(ten: int) -> None:
    for seed in range(10 * ten, 10 * ten + 10):
        ensemble = partitioned(seed)
        end_ms = ensemble.now_ms + LIMIT_MS
        while not ensemble.has_leader():
            assert ensemble.now_ms < end_ms, (seed, ensemble.cuts)
            ensemble.advance(50)
        led = len(ensemble.led)
        ensemble.advance(KEPT_MS)
        assert ensemble.has_leader() and len(ensemble.led) - led <= 1, (seed, ensemble.cuts)
