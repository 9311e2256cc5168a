"""Runs seeds of the simulated worlds, outside pytest's event loops."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

from .ensemble_world import EnsembleWorld
from .kbroker_world import BrokerWorld
from .served_world import ServedWorld
from .zkserver_world import ServerWorld

WORLDS: Final[dict[str, Callable[[int], Any]]] = {
    "zkserver": ServerWorld,
    "kbroker": BrokerWorld,
    "ensemble": EnsembleWorld,
    "served": ServedWorld,
}
SHARES: Final = {"ensemble": 3, "served": 8}
"""Worlds with long histories: so many times fewer are run, unless one is asked for by name."""


def run_seed(name: str, seed: int) -> dict[str, int]:
    """One history; the marks it reached. Raises what it violates."""
    world = WORLDS[name](seed)
    asyncio.run(world.run())
    marks: dict[str, int] = world.marks
    return marks


def run_seeds(
    name: str, seeds: Iterable[int]
) -> tuple[list[tuple[int, BaseException]], Counter[str]]:
    """Many histories: (seed, what was violated), and all marks together."""
    failures: list[tuple[int, BaseException]] = []
    marks: Counter[str] = Counter()
    with asyncio.Runner() as runner:
        for seed in seeds:
            world = WORLDS[name](seed)
            try:
                runner.run(world.run())
            except Exception as violation:
                failures.append((seed, violation))
            marks.update(world.marks)
    return failures, marks
