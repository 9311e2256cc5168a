"""zkserver whose disk is full at its n-th write, for every n from an empty directory on.

Each run is one history of the simulated world with nothing else wrong: the real core, log and
snapshots, several lives in one data directory. Wherever the disk is full, the server either says
so when it starts or refuses what it cannot write; the world checks that nothing acknowledged is
missing in any later life, the last one on a healthy disk.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.sim.zkserver_world import ServerWorld


def live(seed: int, full_at_write: int | None, full_for_writes: int) -> ServerWorld:
    """One history; raises what it violates."""
    world = ServerWorld(seed)
    world.faults.fail_at_sync = None
    world.faults.full_at_write = full_at_write
    world.faults.full_for_writes = full_for_writes
    world.crash_rate = 0.0
    world.snap_count = 10
    world.log_file_bytes = 2_048
    asyncio.run(world.run())
    return world


@pytest.mark.parametrize("full_for_writes", [1, 5])
@pytest.mark.parametrize("seed", [1, 6])
def test_a_full_disk_at_every_write_loses_nothing_acknowledged(
    seed: int, full_for_writes: int
) -> None:
    healthy = live(seed, None, full_for_writes)
    assert healthy.acknowledged_zxid > 0
    reached: Counter[str] = Counter()
    for at in range(1, healthy.disk.write_count + 1):
        reached.update(live(seed, at, full_for_writes).marks)
    assert reached["start failed"] > 0, "a start says that the disk is full"
    assert reached["refused"] > 0, "a write is refused, and the server goes on"
