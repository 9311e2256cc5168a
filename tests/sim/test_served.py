"""Whole servers of an ensemble with clients: what they are told is a history, whatever breaks."""

from __future__ import annotations

from collections import Counter

import pytest

from .served_world import ServedWorld

SEEDS = range(1_000, 1_030)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_clients_are_told_is_a_history(seed: int) -> None:
    ServedWorld(seed).live()


def test_the_same_seed_makes_the_same_history() -> None:
    first, second = ServedWorld(3), ServedWorld(3)
    first.live(100)
    second.live(100)
    assert first.history() == second.history()


def test_the_seeds_come_to_what_they_are_for() -> None:
    """Else they would show nothing: clients expire and move, members change, snapshots travel."""
    marks: Counter[str] = Counter()
    for seed in SEEDS:
        world = ServedWorld(seed)
        world.live()
        marks.update(world.marks)
        marks.update(world.reached())
    for each in ("crash", "pause", "cut", "joint", "final", "expired", "attached", "snapshot came"):
        assert marks[each], f"{each} is not reached by any of {SEEDS}"
