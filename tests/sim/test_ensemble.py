"""The ensemble's world is one history for one seed, and its mutants die."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.mutants import MUTANTS, run_mutant

ROOT = Path(__file__).resolve().parents[2]
PRINT_HASHES = """
from tests.sim.ensemble_world import EnsembleWorld
from tests.sim.served_world import FiveServedWorld, ServedWorld
for seed in range(100, 106):
    world = EnsembleWorld(seed)
    world.simulate()
    print(seed, world.trace_hash(), world.scheduler.event_count)
for kind in (ServedWorld, FiveServedWorld):
    for seed in range(100, 104):
        world = kind(seed)
        world.live()
        print(seed, world.trace_hash(), world.scheduler.event_count)
"""


def hashes(hash_seed: str) -> str:
    path = os.pathsep.join([*filter(None, sys.path), str(ROOT)])
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
    found = subprocess.run(
        [sys.executable, "-c", PRINT_HASHES],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=True,
    )
    return found.stdout.decode()


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_finds_its_place_in_the_code(name: str) -> None:
    with MUTANTS[name]():
        pass


def test_a_seed_gives_the_same_history_in_every_process() -> None:
    assert hashes("1") == hashes("2")


@pytest.mark.parametrize(
    "name",
    [
        "ack_before_durable",
        "append_not_synced",
        "committed_without_a_quorum",
        "current_epoch_not_durable",
        "epoch_told_before_durable",
        "leader_acknowledges_before_its_sync",
        "new_leader_ack_before_durable",
        "promise_before_durable",
        "quorum_one_too_small",
        "serves_before_up_to_date",
        "truncated_too_far",
        "uncommitted_applied",
    ],
)
def test_a_mutant_dies(name: str) -> None:
    """Those that most seeds kill; `python -m tests.sim.mutants` runs all of them."""
    assert run_mutant(name, range(20), until=1), f"{name} survives"
