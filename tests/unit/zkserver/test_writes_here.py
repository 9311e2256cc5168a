"""On a quick disk: a group is written in the loop's thread, and told after its sync."""

from __future__ import annotations

from typing import Any

import pytest

from duolog_cluster.sim.disk import DiskFaults, SimDisk
from tests.unit.zkserver.engine_support import CONNECTION, Life, new_disk
from zkserver.core.events import Received
from zkserver.server.engine import GATHER_MS, MAX_BYTES_HERE, QUICK_MS
from zkserver.storage.groups import group_bytes
from zkserver.storage.recovery import FAILED_SYNC_FILE


def quick_life(files: SimDisk | None = None, reserved_bytes: int = 512) -> Life:
    """A life that has seen its disk to be quick."""
    life = Life(files or new_disk(), 1, reserved_bytes=reserved_bytes)
    write(life, 1, 2)
    life.settle()
    return life


def write(life: Life, *numbers: int) -> None:
    """Write one group."""
    life.write(*numbers)
    life.clock.advance(GATHER_MS)
    life.end_turn()


@pytest.mark.parametrize("numbers", [[3], [3, 4, 5]], ids=["alone", "a group"])
def test_on_a_quick_disk_a_group_is_written_here_and_told_after_its_sync(
    numbers: list[int],
) -> None:
    life = quick_life()
    log = life.data.log
    sync = log.sync
    seen: list[tuple[list[int], list[int], bool]] = []

    def watched() -> None:
        behind = log.durable_zxid < log.last_zxid
        seen.append((list(life.core.ids), list(life.acknowledged), behind))
        sync()

    log.sync = watched  # type: ignore[method-assign]
    write(life, *numbers)
    assert seen == [([1, 2, *numbers], [1, 2], True)], "worked out while it syncs, not told"
    assert life.acknowledged == [1, 2, *numbers] and life.engine.idle
    assert log.durable_zxid == log.last_zxid and log._marked_position < log._position
    life.disk.run_pending()
    assert log._marked_position == log._position, "it was quiet, and there is no timer"


def test_a_lone_write_waits_for_nobody_and_others_for_each_other() -> None:
    life = quick_life()
    life.write(3)
    life.end_turn()
    assert life.acknowledged == [1, 2, 3]
    life.settle()
    life.write(4)
    life.write(5)
    life.turns.pop()
    life.engine.end_turn()
    assert life.acknowledged == [1, 2, 3], "others were heard, and more may come"
    life.end_turn()
    assert life.acknowledged == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("reason", ["work before it", "a slow disk", "no space of its own"])
@pytest.mark.parametrize("numbers", [[3], [3, 4]], ids=["alone", "a group"])
def test_a_write_that_may_have_to_wait_is_not_written_here(numbers: list[int], reason: str) -> None:
    life = quick_life()
    match reason:
        case "work before it":
            life.disk.submit(lambda: None, lambda result, error: None)
        case "a slow disk":
            life.sync_ms = 2 * QUICK_MS + 1
            write(life, 8)
            life.sync_ms = 0
            assert life.acknowledged[-1] == 8
        case "no space of its own":
            life.data.log._is_reserved = False
    before = life.disk.pending
    write(life, *numbers)
    assert 3 not in life.acknowledged and life.disk.pending == before + 1
    life.settle()
    assert life.acknowledged[-len(numbers) :] == numbers
    if reason == "a slow disk":
        for number in range(10, 13):
            write(life, number)
            life.settle()
        write(life, 13)
        assert life.acknowledged[-1] == 13, "it has been quick for a while"


def test_a_slow_write_counts_as_a_slow_sync_does_and_the_cores_work_does_not() -> None:
    life = quick_life()
    life.core.deadline = 10_000
    log = life.data.log
    append, step = log.append, life.core.step

    def slow_append(records: list[bytes], last_zxid: int) -> None:
        life.clock.advance(slow_ms)
        append(records, last_zxid)

    def slow_step(event: Any, now_ms: int) -> list[Any]:
        life.clock.advance(5)
        return step(event, now_ms)

    log.append = slow_append  # type: ignore[method-assign, assignment]
    life.core.step = slow_step  # type: ignore[method-assign]
    life.engine.stats.count_groups()
    slow_ms = 0
    write(life, 3)
    write(life, 4)
    slow_ms = 2 * QUICK_MS + 1
    write(life, 5)
    assert life.acknowledged == [1, 2, 3, 4, 5] and not life.disk.pending
    write(life, 6)
    assert life.acknowledged[-1] == 5 and life.disk.pending == 1
    life.engine.stats.count_groups()
    assert life.engine.stats.fsync_time.max == slow_ms


@pytest.mark.parametrize("excess", [0, 1], ids=["at the bound", "a record over it"])
def test_a_large_group_is_a_job(excess: int) -> None:
    life = quick_life(reserved_bytes=2 * MAX_BYTES_HERE)
    life.core.deadline = 10_000  # the mark is the timer's
    with_one = group_bytes([bytes(16)])
    count = 1 + (MAX_BYTES_HERE - with_one) // (group_bytes([bytes(16)] * 2) - with_one) + excess
    requests = [(1, 50, None)] * count  # the number says how long a record is
    life.engine.step(Received(CONNECTION, requests, 0))
    life.clock.advance(GATHER_MS)
    life.end_turn()
    assert life.disk.pending == excess and (50 in life.acknowledged) is not bool(excess)
    life.settle()
    assert len(life.acknowledged) == 2 + count


def test_the_first_record_of_an_epoch_is_a_job() -> None:
    """The epoch files come before it."""
    life = quick_life()
    life.core.next_zxid += 1 << 32
    write(life, 3)
    assert life.disk.pending == 1
    life.settle()
    assert life.acknowledged == [1, 2, 3] and life.data.epochs.current_epoch == 2


def test_what_a_write_lets_go_on_is_written_next() -> None:
    life = quick_life()
    life.core.logs_when_durable = 4
    life.write(3)
    life.turns.pop()
    life.engine.end_turn()
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


def test_a_bug_in_a_write_stops_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    life = quick_life()

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(life.data.log, "append", fail)
    write(life, 3)
    assert "MemoryError" in life.halted or "cannot be written" in life.halted
    assert life.acknowledged == [1, 2]


def test_space_is_reserved_by_a_job() -> None:
    """For it the loop does not wait; and where there is none, nothing has to be taken back."""
    life = quick_life()
    life.core.deadline = 10_000  # the mark is the timer's
    log = life.data.log
    allocated = log._allocated
    number = 3
    while log._allocated == allocated:
        write(life, number)
        if life.disk.pending:
            size = group_bytes([bytes(16 + number % 50)])
            assert not log.has_space_for(size), "only where space has to be reserved"
            assert number not in life.acknowledged
        life.settle()
        assert life.acknowledged[-1] == number
        number += 1
    assert number > 5


@pytest.mark.parametrize("numbers", [[3], [3, 4]], ids=["alone", "a group"])
def test_a_write_whose_sync_fails_halts_the_server_untold(numbers: list[int]) -> None:
    faults = DiskFaults()
    files = new_disk(1, faults)
    life = quick_life(files)
    faults.fail_at_sync = files.sync_count + 1
    write(life, *numbers)
    assert "cannot sync" in life.halted and life.acknowledged == [1, 2]
    assert files.exists(f"/data/{FAILED_SYNC_FILE}")
    write(life, 5)
    assert life.acknowledged == [1, 2]


@pytest.mark.parametrize("numbers", [[3], [3, 4]], ids=["alone", "a group"])
def test_a_write_for_which_there_is_no_space_is_refused(numbers: list[int]) -> None:
    faults = DiskFaults()
    files = new_disk(1, faults)
    life = quick_life(files)
    faults.full_at_write = files.write_count + 1
    write(life, *numbers)
    assert life.core.refused == numbers and not life.halted
    write(life, 5)
    life.settle()
    assert life.acknowledged == [1, 2, 5]
