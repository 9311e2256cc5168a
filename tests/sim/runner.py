"""Runs seeds of the simulated worlds, outside pytest's event loops."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from duolog_cluster.sim.scheduler import Scheduler

from .ensemble_world import EnsembleWorld
from .kbroker_world import BrokerWorld
from .script import Script
from .served_world import FiveServedWorld, ServedWorld
from .zkserver_world import ServerWorld

WORLDS: Final[dict[str, Callable[..., Any]]] = {
    "zkserver": ServerWorld,
    "kbroker": BrokerWorld,
    "ensemble": EnsembleWorld,
    "served": ServedWorld,
    "served-five": FiveServedWorld,
}
SHARES: Final = {"ensemble": 3, "served": 8, "served-five": 16}
"""Worlds with long histories: so many times fewer are run, unless one is asked for by name."""


WITH_SCRIPTS: Final = {"ensemble", "served", "served-five"}
"""Worlds that can be told what of a seed happens."""


def run_seed(name: str, seed: int, script: Script | None = None) -> dict[str, int]:
    """One history; the marks it reached. Raises what it violates."""
    world = WORLDS[name](seed) if script is None else WORLDS[name](seed, script=script)
    asyncio.run(world.run())
    marks: dict[str, int] = world.marks
    return marks


class Outcome(NamedTuple):
    """What came of many histories."""

    failures: list[tuple[int, BaseException]]
    """(seed, what was violated)"""
    marks: Counter[str]
    """All marks together."""
    simulated_hours: float
    """Of virtual time; 0 for worlds whose time is a count of steps."""


def run_seeds(name: str, seeds: Iterable[int]) -> Outcome:
    """Many histories, one after the other."""
    failures: list[tuple[int, BaseException]] = []
    marks: Counter[str] = Counter()
    simulated_us = 0
    with asyncio.Runner() as runner:
        for seed in seeds:
            world = WORLDS[name](seed)
            try:
                runner.run(world.run())
            except Exception as violation:
                failures.append((seed, violation))
            marks.update(world.marks)
            scheduler: Scheduler | None = getattr(world, "scheduler", None)
            simulated_us += scheduler.now_us if scheduler else 0
    return Outcome(failures, marks, simulated_us / 3.6e9)
