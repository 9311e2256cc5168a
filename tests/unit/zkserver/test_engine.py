"""The engine between a core and a simulated disk: group commit, refusals, halts, power loss.

The core here is the smallest one that has a state: each request adds its id, and the reply tells
that it is durable. The simulation drives the real core the same way.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any, cast

import pytest

from duolog_cluster.sim.disk import DiskFaults, PowerLoss, SimDisk
from duolog_protocol.codec import Piece
from duolog_protocol.types import make_zxid
from duolog_runtime.clocks import ManualClock
from duolog_runtime.disk import InlineDisk
from duolog_runtime.logs import RecordingLogger
from zkserver.core.connection import Codec, Connection
from zkserver.core.events import (
    Append,
    AppendRefused,
    ConnectionLost,
    Durable,
    Effect,
    Event,
    Received,
    Send,
)
from zkserver.server.engine import QUICK_MS, Engine, EngineOptions
from zkserver.storage.recovery import FAILED_SYNC_FILE, DataDirectory
from zkserver.storage.snapshot import snapshot_files
from zkserver.storage.txnlog import LogOptions

CONNECTION = Connection(cast(Codec, None), "test")


class View:
    def __init__(self, zxid: int, ids: list[int]) -> None:
        self.zxid = zxid
        self._ids = list(ids)
        self.closed = False

    def chunks(self, max_bytes: int) -> Iterator[bytes]:
        yield self.zxid.to_bytes(8, "big")
        for each in self._ids:
            yield each.to_bytes(8, "big")

    def close(self) -> None:
        self.closed = True


class CountingCore:
    """State = the ids of all durable requests, in order."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.zxid = 0
        self.next_zxid = 0
        self.outstanding: dict[int, int] = {}
        self.refused: list[int] = []
        self.deadline: int | None = None
        self.views: list[View] = []
        self.logs_when_durable = 0
        """The number of a record that the next `Durable` makes the core log."""

    @property
    def last_applied_zxid(self) -> int:
        return self.zxid

    def load_snapshot(self, chunks: Iterable[bytes]) -> None:
        numbers = [int.from_bytes(chunk, "big") for chunk in chunks]
        self.zxid, self.ids = numbers[0], numbers[1:]

    def replay(self, record: bytes) -> int:
        zxid = int.from_bytes(record[:8], "big")
        assert zxid > self.zxid, (zxid, self.zxid)
        self.zxid = zxid
        if len(record) > 8:
            self.ids.append(int.from_bytes(record[8:16], "big"))
        return zxid

    def start(self, epoch: int, now_ms: int, wall_ms: int) -> list[Effect]:
        zxid = make_zxid(epoch, 1)
        assert zxid > self.zxid, (zxid, self.zxid)
        self.next_zxid = zxid + 1
        self.outstanding[zxid] = 0
        return [Append([zxid.to_bytes(8, "big")], zxid, zxid)]

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        match event:
            case Received():
                first = self.next_zxid
                records = []
                for _, number, _ in event.requests:
                    self.outstanding[self.next_zxid] = number
                    pad = bytes(number % 50)
                    records.append(
                        self.next_zxid.to_bytes(8, "big") + number.to_bytes(8, "big") + pad
                    )
                    self.next_zxid += 1
                return [Append(records, first, self.next_zxid - 1)]
            case Durable() if self.logs_when_durable:
                number, self.logs_when_durable = self.logs_when_durable, 0
                written = self.step(event, now_ms)
                return written + self.step(Received(CONNECTION, [(1, number, None)], 0), now_ms)
            case Durable():
                pieces: list[Piece] = []
                while self.outstanding and next(iter(self.outstanding)) <= event.zxid:
                    zxid = next(iter(self.outstanding))
                    number = self.outstanding.pop(zxid)
                    self.zxid = zxid
                    if number:
                        self.ids.append(number)
                        pieces.append(number.to_bytes(8, "big"))
                assert self.zxid == event.zxid, (self.zxid, event.zxid)
                return [Send(CONNECTION, pieces, more=False)] if pieces else []
            case AppendRefused():
                gone = [z for z in self.outstanding if z >= event.first_zxid]
                self.refused += [self.outstanding.pop(zxid) for zxid in gone]
                self.next_zxid = event.first_zxid
                return []
            case ConnectionLost():
                raise KeyError("a bug")
            case _:
                return []

    def deadline_ms(self) -> int | None:
        return self.deadline

    def begin_snapshot(self) -> View:
        self.views.append(View(self.zxid, self.ids))
        return self.views[-1]


class Life:
    """One life of a process on a disk; it is its engine's shell."""

    def __init__(
        self, files: SimDisk, seed: int, *, snap_count: int = 100_000, file_bytes: int = 1 << 20
    ) -> None:
        self.core = CountingCore()
        self.disk = InlineDisk(immediate=False)
        self.clock = ManualClock()
        self.log = RecordingLogger()
        self.acknowledged: list[int] = []
        self.halted = ""
        self.turns: list[int] = []
        self.data = DataDirectory(
            files,
            "/data",
            1,
            random.Random(seed),
            log_options=LogOptions(file_bytes, 512),
        )
        self.engine = Engine(
            cast(Any, self.core),
            self.data,
            disk=self.disk,
            clock=self.clock,
            rng=random.Random(seed),
            shell=self,
            log=self.log,
            options=EngineOptions(snap_count, 3),
        )
        self.engine.recover()
        self.recovered = list(self.core.ids)
        self.engine.start()

    def send(
        self, connection: Connection, pieces: list[Piece], more: bool, zxid: int, now_ms: int
    ) -> None:
        self.acknowledged += [int.from_bytes(piece, "big") for piece in pieces]

    def close(self, connection: Connection, reason: str) -> None: ...

    def pause_reading(self, connection: Connection) -> None: ...

    def resume_reading(self, connection: Connection) -> None: ...

    def await_drain(self, connection: Connection) -> None: ...

    def call_soon(self) -> None:
        self.turns.append(1)

    def arm(self, deadline_ms: int | None) -> None: ...

    def halt(self, reason: str) -> None:
        self.halted = reason

    def write(self, *numbers: int) -> None:
        requests = [(1, number, None) for number in numbers]
        self.engine.step(Received(CONNECTION, requests, self.clock.wall_ms()))

    def end_turn(self) -> None:
        while self.turns:
            self.turns.pop()
            self.engine.end_turn()

    def settle(self) -> None:
        self.end_turn()
        while self.disk.pending:
            self.disk.run_pending()
            self.end_turn()


def new_disk(seed: int = 1, faults: DiskFaults | None = None) -> SimDisk:
    return SimDisk(random.Random(seed), faults)


def test_nothing_is_answered_before_it_is_on_disk() -> None:
    life = Life(new_disk(), 1)
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
    "reason", ["work before it", "another client", "a slow disk", "no space of its own"]
)
def test_a_write_that_may_have_to_wait_is_not_written_here(reason: str) -> None:
    life = quick_life()
    log = life.data.log
    match reason:
        case "work before it":
            life.disk.submit(lambda: None, lambda result, error: None)
        case "another client":
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
    life.send = lambda connection, pieces, more, zxid, now_ms: held.append(more)  # type: ignore[method-assign]

    def send(more: bool) -> None:
        life.engine._perform([Send(CONNECTION, [b"r"], more)])

    send(True)
    send(False)
    assert held == [True, False]
    append_durably = life.data.log.append_durably

    def slow(records: list[bytes], last_zxid: int) -> None:
        life.clock.advance(QUICK_MS + 1)
        append_durably(records, last_zxid)

    life.data.log.append_durably = slow  # type: ignore[method-assign, assignment]
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
