"""A failing history becomes a short script that fails the same way."""

from __future__ import annotations

import pytest

from tests.sim.ensemble_world import EnsembleWorld
from tests.sim.mutants import MUTANTS, shrink_mutant
from tests.sim.script import Script
from tests.sim.shrinking import attempt, shrink


def test_nothing_is_left_that_can_be_left_out() -> None:
    def live(script: Script) -> None:
        happened = [number for number in range(100) if script.happens(number, f"thing {number}")]
        if {17, 40, 83} <= set(happened):
            raise ValueError("Three: these together")
        if 99 in happened:
            raise ValueError("Other: this one alone")

    failure = shrink(live)
    assert failure.kept == [17, 40, 83]
    assert str(failure.told[0]).endswith("thing 17")


def test_a_history_that_holds_has_nothing_to_shrink() -> None:
    with pytest.raises(ValueError, match="holds"):
        shrink(lambda script: script.happens(0, "nothing"))


def test_a_seed_that_kills_a_mutant_becomes_short_and_kills_it_still() -> None:
    name, seed = "append_not_synced", 0

    def live(script: Script) -> None:
        EnsembleWorld(seed, script=script).simulate()

    with MUTANTS[name]():
        whole = attempt(live, None)
    failure = shrink_mutant(name, seed)
    assert whole is not None and failure.kind == whole.kind
    assert len(failure.told) < len(whole.told)
    with MUTANTS[name]():
        again = attempt(live, failure.kept)
        assert again is not None and again.told == failure.told
    assert attempt(live, failure.kept) is None  # it is the mutant's fault
