"""The engine between a core and a simulated disk: group commit, refusals, halts, power loss."""

from __future__ import annotations

import random

import pytest

from duolog_cluster.sim.disk import PowerLoss, SimDisk
from duolog_protocol.types import make_zxid
from tests.unit.zkserver.engine_support import CONNECTION, Life, new_disk
from zkserver.core.events import (
    Append,
    ConnectionLost,
    Send,
)
from zkserver.server.engine import QUICK_MS
from zkserver.storage.recovery import FAILED_SYNC_FILE
from zkserver.storage.snapshot import snapshot_files


def test_nothing_is_answered_before_it_is_on_disk() -> None:
    life = Life(new_disk(), 1)
    life.sync_ms = QUICK_MS + 1  # the group is a job
    life.settle()
    life.write(11, 12)
    life.clock.advance(1)
    life.end_turn()
    assert (life.core.ids, life.acknowledged) == ([], [])
    assert life.disk.run_work()
    assert (life.core.ids, life.acknowledged) == ([], []), "written, but nobody was told"
    life.settle()
    assert (life.core.ids, life.acknowledged) == ([11, 12], [11, 12])


def test_the_first_group_waited_since_the_start_and_not_since_the_clock_began() -> None:
    life = Life(new_disk(), 1)
    life.clock.advance(3)
    life.settle()
    stats = life.engine.stats
    stats.count_groups()
    assert life.clock.now_ms() > 3
    assert (stats.queue_time.count, stats.queue_time.max) == (1, 3)


def test_what_came_in_one_turn_and_what_queued_behind_a_sync_share_a_sync() -> None:
    files = new_disk()
    life = Life(files, 1)
    life.settle()
    before = files.sync_count
    life.write(1)
    life.write(2, 3)
    life.end_turn()
    life.disk.run_work()
    assert files.sync_count == before + 1
    for number in range(4, 104):
        life.write(number)
    life.settle()
    assert files.sync_count == before + 2
    assert life.acknowledged == list(range(1, 104))


def test_one_job_takes_no_more_than_its_bound() -> None:
    files = new_disk()
    life = Life(files, 1, file_bytes=1 << 30)
    life.settle()
    before = files.sync_count
    big = 5 * 1024 * 1024
    for number in (1, 2, 3):
        zxid = life.core.next_zxid
        life.core.next_zxid += 1
        life.core.outstanding[zxid] = number
        record = zxid.to_bytes(8, "big") + number.to_bytes(8, "big") + bytes(big)
        life.engine._perform([Append([record], zxid, zxid)])
    life.settle()
    assert files.sync_count == before + 3
    assert life.acknowledged == [1, 2, 3]


def test_each_start_opens_a_higher_epoch_even_when_the_last_one_logged_nothing() -> None:
    files = new_disk()
    epochs = []
    for seed in range(5):
        life = Life(files, seed)
        epochs.append(life.core.next_zxid >> 32)
        if seed % 2:
            life.settle()
        files.kill()
    assert epochs == sorted(epochs) and epochs[0] == 1
    assert life.data.epochs.accepted_epoch == epochs[-1] - 1, "not durable before its sync"


def test_an_epoch_that_rolls_while_running_is_on_disk_before_its_records() -> None:
    files = new_disk()
    life = Life(files, 1)
    life.settle()
    life.core.next_zxid = make_zxid(7, 1)
    life.write(5, 6)
    life.settle()
    assert life.data.epochs.current_epoch == 7
    files.kill()
    assert Life(files, 2).recovered == [5, 6]


def test_a_full_disk_refuses_what_waits_and_takes_writes_again_when_there_is_space() -> None:
    """ST6: at every write of the disk, for one or several of them."""
    for at in range(1, 14):
        for together in (1, 2, 5):
            files = new_disk()
            life = Life(files, 1, file_bytes=300)
            life.settle()
            files.faults.full_at_write = files.write_count + at
            files.faults.full_for_writes = together
            issued = 0
            for _ in range(12):
                issued += 2
                life.write(issued - 1)
                life.end_turn()
                life.disk.run_work()
                life.write(issued)  # queued behind the job that may be refused
                life.settle()
            assert life.halted == ""
            assert sorted(life.acknowledged + life.core.refused) == list(range(1, issued + 1))
            assert life.core.ids == life.acknowledged
            assert life.acknowledged[-1] == issued, "there is space again"
            files.kill()
            assert Life(files, 2).recovered == life.acknowledged, (at, together)


def test_a_failed_sync_or_write_halts_and_nothing_of_it_was_acknowledged() -> None:
    """ST5."""
    for kind in ("fail_at_sync", "fail_at_write"):
        for at in range(1, 8):
            files = new_disk()
            life = Life(files, 1, file_bytes=200)
            life.settle()
            count = files.sync_count if kind == "fail_at_sync" else files.write_count
            setattr(files.faults, kind, count + at)
            for number in range(1, 30):
                life.write(number)
                life.settle()
            assert "cannot" in life.halted, (kind, at)
            assert files.used_after_failed_sync_count == 0
            acknowledged = list(life.acknowledged)
            assert files.exists(f"/data/{FAILED_SYNC_FILE}"), (kind, at)
            files.unlink(f"/data/{FAILED_SYNC_FILE}")  # a person has looked at the disk ...
            files.sync_dir("/data")
            files.crash()  # ... and rebooted
            recovered = Life(files, 2).recovered
            assert recovered[: len(acknowledged)] == acknowledged, (kind, at)
            assert len(recovered) <= len(acknowledged) + 1


def test_a_bug_in_the_core_halts_the_server() -> None:
    life = Life(new_disk(), 1)
    life.settle()
    life.engine.step(ConnectionLost(CONNECTION))
    assert "KeyError" in life.halted
    life.write(1)
    life.settle()
    assert life.acknowledged == []


def test_snapshots_are_taken_while_writes_go_on_and_old_files_go() -> None:
    files = new_disk()
    life = Life(files, 1, snap_count=20, file_bytes=1000)
    number = 0
    for _ in range(400):
        number += 1
        life.write(number)
        life.end_turn()
        while life.disk.run_work():  # one delivery per turn: slices and groups interleave
            life.disk.deliver()
            number += 1
            life.write(number)
            life.end_turn()
            if number % 7 == 0:
                break
    life.settle()
    assert life.halted == ""
    assert life.log.events.count("snapshot_taken") >= 5
    assert "files_purged" in life.log.events
    assert all(view.closed for view in life.core.views)
    assert len(snapshot_files(files, "/data")) <= 4
    assert life.acknowledged == list(range(1, number + 1))
    files.kill()
    after = Life(files, 2)
    assert after.data.snapshot_zxid > 0
    assert after.recovered == life.acknowledged


def test_a_full_disk_during_a_snapshot_abandons_it_and_nothing_else() -> None:
    for at in range(1, 60):
        files = new_disk()
        life = Life(files, 1, snap_count=10)
        life.settle()
        files.faults.full_at_write = files.write_count + at
        for number in range(1, 60):
            life.write(number)
            life.settle()
        assert life.halted == "", at
        assert sorted(life.acknowledged + life.core.refused) == list(range(1, 60))
        files.kill()
        assert Life(files, 2, snap_count=10).recovered == life.acknowledged, at


@pytest.mark.parametrize("block", range(4))
def test_power_loss_at_any_moment_keeps_every_acknowledged_write(block: int) -> None:
    """Random writes, snapshots and rolls; the power fails at any sync, rename or delivery."""
    for seed in range(block * 75, (block + 1) * 75):
        rng = random.Random(seed)
        files = SimDisk(rng)
        state: list[int] = []
        number = 0
        for _life in range(4):
            remaining = rng.randint(1, 60)

            def point(when: str, kind: str, path: str) -> None:
                nonlocal remaining
                remaining -= 1
                if remaining <= 0:
                    raise PowerLoss

            life: Life | None = None
            issued: list[int] = []
            try:
                life = Life(
                    files,
                    rng.randrange(1 << 30),
                    snap_count=rng.choice([4, 12, 1000]),
                    file_bytes=rng.choice([200, 700, 1 << 20]),
                )
                files.crash_points = point
                assert life.recovered[: len(state)] == state, seed
                state = life.recovered
                for _ in range(rng.randint(1, 80)):
                    choice = rng.randrange(4)
                    if choice == 0:
                        batch = list(range(number + 1, number + 1 + rng.randint(1, 5)))
                        number = batch[-1]
                        issued += batch
                        life.write(*batch)
                    elif choice == 1:
                        life.end_turn()
                    elif choice == 2:
                        life.disk.run_work()
                    else:
                        life.disk.deliver()
            except PowerLoss:
                pass
            files.crash_points = None
            if life is not None:
                assert life.halted == "", (seed, life.halted)
                everything = state + issued
                state = state + life.acknowledged
                assert state == everything[: len(state)], seed
                life.disk.abandon()
            if rng.random() < 0.3:
                files.kill()
            else:
                files.crash()
        last = Life(files, seed)
        assert last.recovered[: len(state)] == state, seed


def test_a_step_that_logs_more_than_a_job_may_take_is_cut_between_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thousands of sessions can end in one step; a group of the log has a limit."""
    monkeypatch.setattr("zkserver.server.engine.MAX_GROUP_BYTES", 200)
    files = new_disk()
    life = Life(files, 1)
    life.settle()
    syncs = files.sync_count
    life.write(*range(1, 31))
    life.write(31)
    life.settle()
    assert life.acknowledged == list(range(1, 32)) and not life.halted
    assert files.sync_count - syncs >= 5
    files.crash(lose_unsynced=True)
    assert Life(files, 2).recovered == list(range(1, 32))


def test_the_disk_waits_for_more_while_clients_are_heard_but_a_millisecond_at_most() -> None:
    files = new_disk()
    life = Life(files, 1)
    life.settle()

    def one_turn() -> None:
        assert life.turns.pop() == 1
        life.engine.end_turn()

    life.write(1, 2)
    one_turn()
    assert life.disk.pending == 0, "more may be on its way"
    life.write(3)
    one_turn()
    assert life.disk.pending == 0
    one_turn()
    assert life.disk.pending == 1, "a turn in which nobody was heard"
    life.settle()

    life.write(4, 5)
    one_turn()
    life.clock.advance(1)
    life.write(6)
    one_turn()
    assert life.disk.pending == 1, "it has waited long enough"
    life.settle()

    life.write(7)
    one_turn()
    assert life.disk.pending == 1, "a lone write waits for nobody"
    life.settle()
    assert life.acknowledged == [1, 2, 3, 4, 5, 6, 7]


def test_the_log_is_marked_when_it_is_quiet() -> None:
    life = Life(new_disk(), 1)
    life.settle()
    log = life.data.log

    def is_marked() -> bool:
        return log._marked_position == log._position

    assert is_marked(), "without sessions there is no timer that could do it later"
    life.core.deadline = 10_000
    life.write(1)
    life.settle()
    assert not is_marked()
    life.sync_ms = QUICK_MS + 1
    life.write(2)
    life.settle()
    life.write(2, 2)
    life.end_turn()
    life.engine.fire_timer()
    life.settle()
    assert not is_marked(), "the disk was at work"
    life.engine.fire_timer()
    life.settle()
    assert is_marked() and life.halted == ""
    life.write(3)
    life.settle()
    log.offline = "gone"
    life.engine.fire_timer()
    life.disk.run_pending()
    assert "gone" in life.halted


def test_replies_may_wait_for_more_only_while_the_disk_is_quick() -> None:
    life = Life(new_disk(), 1)
    life.settle()
    held: list[bool] = []
    life.send = lambda *given: held.append(given[2])  # type: ignore[method-assign]

    def send(more: bool) -> None:
        life.engine._perform([Send(CONNECTION, [b"r"], more)])

    send(True)
    send(False)
    assert held == [True, False]
    life.sync_ms = QUICK_MS + 1
    life.write(1, 2)
    life.settle()
    held.clear()
    send(True)
    assert held == [False]


def test_one_mark_for_one_quiet_moment_and_a_full_queue_of_the_disk_stops_the_server() -> None:
    life = Life(new_disk(), 1)
    life.core.deadline = 10_000
    life.write(1)
    life.settle()
    for _ in range(100):  # the disk hangs in something else
        life.engine.fire_timer()
    assert life.disk.pending == 1
    life.disk._max_pending = 1
    life.write(2)
    life.end_turn()
    assert "the disk takes no work" in life.halted
    assert not (life.data.files.exists(f"/data/{FAILED_SYNC_FILE}")), "it did not fail"
