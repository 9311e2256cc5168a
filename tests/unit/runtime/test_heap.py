"""What survives is set aside, so that collections stay short however large the heap is."""

from __future__ import annotations

import gc
import subprocess
import sys

PROGRAM = """
import gc
from duolog_runtime.heap import set_survivors_aside

set_survivors_aside()
set_survivors_aside()
assert len(gc.callbacks) == 1, gc.callbacks
before = gc.get_freeze_count()
kept = [[number] for number in range(300_000)]
assert gc.get_freeze_count() - before > 150_000, gc.get_freeze_count()
assert len(gc.get_objects()) < 200_000, len(gc.get_objects())


class Cycle:
    alive = 0

    def __init__(self):
        self.me = self
        Cycle.alive += 1

    def __del__(self):
        Cycle.alive -= 1


for _ in range(300_000):
    Cycle()
assert Cycle.alive < 100_000, Cycle.alive
print(len(kept))
"""


def test_survivors_are_set_aside_and_young_cycles_are_still_freed() -> None:
    """In a process of its own: the settings of the collector are the process's."""
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["300000"]
    assert gc.get_threshold()[2] != 1_000_000
