"""A lone write on a quick disk: written in the loop's thread, told after its sync."""

from __future__ import annotations

from typing import Any

import pytest

from duolog_cluster.sim.disk import DiskFaults, SimDisk
from tests.unit.zkserver.engine_support import Life, new_disk
from zkserver.server.engine import QUICK_MS
from zkserver.storage.recovery import FAILED_SYNC_FILE


def quick_life(files: SimDisk | None = None) -> Life:
    """A life that has seen its disk to be quick."""
    life = Life(files or new_disk(), 1)
    life.write(1, 2)
    life.settle()
    return life


def write_alone(life: Life, number: int) -> None:
    life.write(number)
    life.end_turn()


def test_on_a_quick_disk_a_lone_write_is_written_here_and_told_after_its_sync() -> None:
    life = quick_life()
    log = life.data.log
    sync = log.sync
    seen: list[tuple[list[int], list[int], bool]] = []

    def watched() -> None:
        behind = log.durable_zxid < log.last_zxid
        seen.append((list(life.core.ids), list(life.acknowledged), behind))
        sync()

    log.sync = watched  # type: ignore[method-assign]
    write_alone(life, 3)
    assert seen == [([1, 2, 3], [1, 2], True)], "worked out while the disk works, not told"
    assert life.acknowledged == [1, 2, 3] and life.engine.idle
    assert log.durable_zxid == log.last_zxid and log._marked_position < log._position
    life.disk.run_pending()
    assert log._marked_position == log._position, "it was quiet, and there is no timer"


@pytest.mark.parametrize(
    "reason", ["work before it", "another read", "a slow disk", "no space of its own"]
)
def test_a_write_that_may_have_to_wait_is_not_written_here(reason: str) -> None:
    life = quick_life()
    log = life.data.log
    match reason:
        case "work before it":
            life.disk.submit(lambda: None, lambda result, error: None)
        case "another read":
            life.write(9)
        case "a slow disk":
            sync = log.sync

            def slow() -> None:
                life.clock.advance(2 * QUICK_MS + 1)
                sync()

            log.sync = slow  # type: ignore[method-assign]
            write_alone(life, 8)
            log.sync = sync  # type: ignore[method-assign]
            assert life.acknowledged[-1] == 8
        case "no space of its own":
            log._is_reserved = False
    before = life.disk.pending
    life.write(3)
    life.clock.advance(1)
    life.end_turn()
    assert 3 not in life.acknowledged and life.disk.pending == before + 1
    life.settle()
    assert life.acknowledged[-1] == 3
    if reason == "a slow disk":
        for number in range(10, 13):
            write_alone(life, number)
            life.settle()
        write_alone(life, 13)
        assert life.acknowledged[-1] == 13, "it has been quick for a while"


def test_what_a_lone_write_lets_go_on_is_written_next() -> None:
    life = quick_life()
    life.core.logs_when_durable = 4
    write_alone(life, 3)
    assert life.acknowledged == [1, 2, 3] and not life.engine.idle
    life.settle()
    assert life.acknowledged == [1, 2, 3, 4] and life.engine.idle


def test_the_time_of_a_sync_is_that_of_the_disk() -> None:
    life = quick_life()
    life.engine.stats.count_groups()
    life.write(3)
    life.clock.advance(1_500)  # the loop was busy
    life.end_turn()
    life.engine.stats.count_groups()
    assert life.acknowledged == [1, 2, 3]
    assert (life.engine.stats.fsync_time.max, life.engine.stats.queue_time.max) == (0, 1_500)


def test_a_bug_in_a_lone_write_stops_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    life = quick_life()

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(life.data.log, "append", fail)
    write_alone(life, 3)
    assert "MemoryError" in life.halted or "cannot be written" in life.halted
    assert life.acknowledged == [1, 2]


def test_space_is_reserved_by_a_job_not_by_a_lone_write() -> None:
    """For it the loop does not wait; and where there is none, nothing has to be taken back."""
    life = quick_life()
    life.core.deadline = 10_000  # the mark is the timer's
    log = life.data.log
    allocated = log._allocated
    number = 3
    while log._allocated == allocated:
        life.write(number)
        life.end_turn()
        if life.disk.pending:
            assert not log.has_space_for(16 + number % 50), "only where space has to be reserved"
            assert number not in life.acknowledged
        life.settle()
        assert life.acknowledged[-1] == number
        number += 1
    assert number > 5


def test_a_lone_write_whose_sync_fails_halts_the_server_untold() -> None:
    faults = DiskFaults()
    files = new_disk(1, faults)
    life = quick_life(files)
    faults.fail_at_sync = files.sync_count + 1
    write_alone(life, 3)
    assert "cannot sync" in life.halted and life.acknowledged == [1, 2]
    assert files.exists(f"/data/{FAILED_SYNC_FILE}")
    write_alone(life, 4)
    assert life.acknowledged == [1, 2]


def test_a_lone_write_for_which_there_is_no_space_is_refused() -> None:
    faults = DiskFaults()
    files = new_disk(1, faults)
    life = quick_life(files)
    faults.full_at_write = files.write_count + 1
    write_alone(life, 3)
    assert life.core.refused == [3] and not life.halted
    write_alone(life, 4)
    life.settle()
    assert life.acknowledged == [1, 2, 4]
