"""A snapshot under way, and a leader's that takes the place of everything meanwhile."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from duolog_runtime.logs import RecordingLogger
from zkserver.core.peer_events import Logged, SnapshotInstalled
from zkserver.server.snapshotting import Snapshotting
from zkserver.server.stats import DiskStats

from .test_peer_disk import append, zxid
from .test_snapshot_transfer import Ends, learner, receive


class View:
    """The state at zxid 2."""

    zxid = zxid(2)

    def chunks(self, max_bytes: int) -> Iterator[bytes]:
        yield b"one"
        yield b"other"

    def close(self) -> None:
        """Nothing is held."""


class Clock:
    def now_ms(self) -> int:
        return 0

    def wall_ms(self) -> int:
        return 0


def snapshotting(world: Ends, log: RecordingLogger, halts: list[str]) -> Snapshotting:
    return Snapshotting(
        world.data,
        world.executor,
        random.Random(1),
        log,
        Clock(),
        DiskStats(),
        begin=View,
        halt=lambda reason, _: halts.append(reason),
        snap_count=10,
        retain_count=3,
    )


@pytest.mark.parametrize("jobs", range(5))
def test_a_leaders_snapshot_that_comes_in_between_is_no_failure(jobs: int) -> None:
    """The file that was to be read back has gone with all the others."""
    world, log, halts = learner(), RecordingLogger(), []
    ours = snapshotting(world, log, halts)
    world.told.clear()
    world.put(*receive())
    for _ in range(jobs):
        world.executor.run_work()
        world.executor.deliver()
    assert ours.begin() == zxid(2)  # from here on they take turns
    world.executor.run_pending()
    assert (SnapshotInstalled, 0, None, zxid(5)) in world.told
    assert halts == [] and not ours.active
    assert log.events[-1] in ("snapshot_taken", "snapshot_abandoned")
    assert world.do(append(6, 6)) == [(Logged, zxid(6))]
    assert world.data.snapshot_to_send()[0] == zxid(5)
    assert world.reopened().snapshot_zxid == zxid(5)


def test_a_file_that_has_gone_by_itself_is_one() -> None:
    world, log, halts = learner(), RecordingLogger(), []
    ours = snapshotting(world, log, halts)
    ours.begin()
    name = f"/zk/snapshot.{zxid(2):016x}"
    while not world.files.exists(name):
        world.executor.run_work()
        world.executor.deliver()
    world.files.unlink(name)
    world.executor.run_pending()
    assert len(halts) == 1
