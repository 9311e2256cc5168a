"""A few hundred seeds of every simulated world; `make sim` runs thousands."""

from __future__ import annotations

import pytest

from tests.sim.runner import WORLDS, run_seeds

SEEDS = {"zkserver": 300, "kbroker": 300, "ensemble": 80, "served": 40, "served-five": 20}
MUST_REACH = {
    "zkserver": {
        "clean stop",
        "crash point",
        "failed sync",
        "halted",
        "refused",
        "state compared",
        "written in the loop",
        "left",
    },
    "kbroker": {
        "clean stop",
        "crash point",
        "duplicate",
        "failed sync",
        "read from the disk",
        "refused KAFKA_STORAGE_ERROR",
        "segments deleted",
        "suffix lost",
    },
    "ensemble": {
        "committed before the leader's own sync",
        "crash after sync",
        "crash before Ack",
        "crash before NewLeaderAck",
        "crash between work and notice",
        "disk full",
        "history sent",
        "late joiner",
        "leader change",
        "log truncated",
        "observer caught up",
        "only a quorum was healed",
        "record committed by a later epoch",
        "synced while proposals were in flight",
        "two leaders alive",
    },
    "served-five": {
        *("crash", "cut", "final", "joint", "pause"),
        *("newer messages", "snapshot came", "upgrade"),
    },
    "served": {
        "attached",
        "crash",
        "cut",
        "expired",
        "final",
        "joint",
        "newer messages",
        "opened",
        "pause",
        "snapshot came",
        "upgrade",
    },
}


@pytest.mark.parametrize("name", WORLDS)
def test_no_seed_violates_an_invariant_and_the_rare_situations_are_reached(name: str) -> None:
    failures, marks, _ = run_seeds(name, range(SEEDS[name]))
    assert not failures, f"replay with: python -m tests.sim --only {name} --seed {failures[0][0]}"
    assert MUST_REACH[name] <= marks.keys(), MUST_REACH[name] - marks.keys()


@pytest.mark.parametrize("name", WORLDS)
def test_a_seed_decides_everything(name: str) -> None:
    seeds = range(min(20, SEEDS[name] // 4))
    first, again = run_seeds(name, seeds), run_seeds(name, seeds)
    assert first == again
