"""A server's disk work for its ensemble: in order, grouped, refused as a whole, read in parts."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from duolog_cluster.sim.disk import DiskFaults, SimDisk
from duolog_cluster.sim.disk_nodes import FileNode
from duolog_protocol.errors import StorageError
from duolog_protocol.types import make_zxid
from duolog_runtime.disk import InlineDisk
from zkserver.core.peer_events import (
    AcceptEpoch,
    AdoptEpoch,
    AppendRecords,
    EpochAccepted,
    EpochAdopted,
    HistorySent,
    Logged,
    LogRefused,
    PeerEvent,
    SendHistory,
    Truncated,
    TruncateLog,
)
from zkserver.server import learner_history
from zkserver.server.peer_disk import RETRY_MS, PeerDisk
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.txnlog import LogOptions

LINK, OTHER = object(), object()


def zxid(counter: int) -> int:
    return make_zxid(1, counter)


def record(counter: int) -> bytes:
    return zxid(counter).to_bytes(8, "big") + b"." * 12


def append(first: int, last: int) -> AppendRecords:
    records = [record(counter) for counter in range(first, last + 1)]
    return AppendRecords(records, zxid(first), zxid(last))


def history(after: int, link: object = LINK) -> SendHistory:
    return SendHistory(link, zxid(after))


class World:
    """A disk worked by hand, and what its owner is told."""

    def __init__(self, **options: int) -> None:
        self.faults = DiskFaults()
        self.files = SimDisk(random.Random(1), self.faults)
        self.data = DataDirectory(
            self.files, "/zk", 1, random.Random(1), ensemble_id=7, log_options=LogOptions(4_096, 64)
        )
        assert list(self.data.records()) == []
        self.executor = InlineDisk(immediate=False)
        self.told: list[tuple[Any, ...]] = []
        self.parts: list[tuple[object, int, int]] = []
        """To whom, and the counters of the first record and of the last one."""
        self.gone: list[str] = []
        self.retries: list[int] = []
        self.failures: list[BaseException] = []
        self.disk = PeerDisk(self.data, self.executor, self, **options)
        self.asks: list[Any] = []
        """What the peer asks for when it hears the next event."""

    def step(self, event: PeerEvent) -> None:
        self.told.append((type(event), *(getattr(event, name) for name in event.__slots__)))
        asks, self.asks = self.asks, []
        self.put(*asks)

    def history_read(self, link: Any, records: list[bytes]) -> None:
        counters = [int.from_bytes(each[4:8], "big") for each in records]
        self.parts.append((link, counters[0], counters[-1]))

    def history_gone(self, link: Any, reason: str, snapshot_zxid: int) -> None:
        self.gone.append(reason)

    def retry_disk(self, delay_ms: int, reason: str) -> None:
        self.retries.append(delay_ms)

    def halt_for_disk(self, error: BaseException) -> None:
        self.failures.append(error)

    def put(self, *effects: Any) -> None:
        for effect in effects:
            self.disk.put(effect)

    def do(self, *effects: Any) -> list[tuple[Any, ...]]:
        """What is told when all of this is done."""
        self.told.clear()
        self.put(*effects)
        self.executor.run_pending()
        return list(self.told)

    def open_files(self) -> int:
        nodes = [self.files._find(path) for path in self.files.contents()]
        return sum(node.handles for node in nodes if isinstance(node, FileNode))

    def records(self) -> list[bytes]:
        return list(self.data.log.read_from(0))


def open_epoch(**options: int) -> World:
    """Epoch 1 is promised and adopted."""
    world = World(**options)
    assert world.do(AcceptEpoch(1), AdoptEpoch(1)) == [(EpochAccepted, 1), (EpochAdopted, 1)]
    return world


def test_work_is_done_in_its_order_and_each_piece_is_told() -> None:
    world = World()
    told = world.do(
        AcceptEpoch(1),
        append(0, 2),
        AdoptEpoch(1),
        append(3, 3),
        TruncateLog(zxid(1)),
        append(2, 2),
    )
    assert told == [
        (EpochAccepted, 1),
        (Logged, zxid(2)),
        (EpochAdopted, 1),
        (Logged, zxid(3)),
        (Truncated, zxid(1)),
        (Logged, zxid(2)),
    ]
    assert world.records() == [record(0), record(1), record(2)] and world.disk.idle


def test_appends_that_stand_behind_one_another_share_a_sync_as_far_as_a_group_goes() -> None:
    world = open_epoch(max_group_bytes=60)
    before = world.files.sync_count
    told = world.do(append(0, 0), append(1, 1), append(2, 3), append(4, 4), append(5, 9))
    assert told == [(Logged, zxid(0)), (Logged, zxid(3)), (Logged, zxid(4)), (Logged, zxid(9))], (
        "the first began at once; the last is a group of its own, and larger than one may be"
    )
    assert world.files.sync_count >= before + 4
    assert len(world.records()) == 10


def test_nothing_is_told_before_it_is_done() -> None:
    world = open_epoch()
    world.told.clear()
    world.put(append(0, 0), AcceptEpoch(2))
    assert world.executor.run_work() and world.told == []
    assert world.data.log.durable_zxid == zxid(0) and world.data.epochs.accepted_epoch == 1
    assert world.executor.deliver() and world.told == [(Logged, zxid(0))]
    assert world.executor.run_work() and world.data.epochs.accepted_epoch == 2


def test_a_full_disk_refuses_all_that_is_queued_behind_with_one_event() -> None:
    world = open_epoch()
    world.do(append(0, 1))
    world.faults.full_at_write, world.faults.full_for_writes = world.files.write_count + 1, 2
    world.asks = [append(2, 2)]  # the peer begins anew where the log ends
    told = world.do(append(2, 3), append(4, 4), AdoptEpoch(1), append(5, 5), history(0))
    assert told == [(LogRefused, zxid(2)), (HistorySent, LINK, zxid(1)), (Logged, zxid(2))]
    assert world.parts == [(LINK, 1, 1)], "reading needs no space"
    assert world.records() == [record(0), record(1), record(2)] and not world.failures


def test_an_epoch_is_written_again_until_there_is_space() -> None:
    world = open_epoch()
    world.told.clear()
    for attempt in range(3):
        world.faults.full_at_write = world.files.write_count + 1
        if attempt:
            world.disk.retry()
        else:
            world.put(AcceptEpoch(2), append(0, 0))
        world.executor.run_pending()
        assert world.told == [] and world.retries == [RETRY_MS] * (attempt + 1)
    world.disk.retry()
    world.disk.retry()
    world.executor.run_pending()
    assert world.told == [(EpochAccepted, 2), (Logged, zxid(0))]


@pytest.mark.parametrize(
    "effect", [append(2, 2), AcceptEpoch(2), TruncateLog(zxid(0))], ids=lambda each: str(type(each))
)
def test_any_other_failure_stops_the_server_untold(effect: Any) -> None:
    world = open_epoch()
    world.do(append(0, 1))
    world.faults.fail_at_sync = world.files.sync_count + 1
    assert world.do(effect, append(3, 3), history(0)) == []
    assert len(world.failures) == 1 and isinstance(world.failures[0], OSError | StorageError)
    assert world.do(AdoptEpoch(1)) == [] and world.parts == []
    world.disk.read_on(LINK, zxid(1))
    assert world.executor.pending == 0


def test_work_that_the_executor_refuses_is_not_left_out() -> None:
    world = open_epoch()
    world.executor._max_pending = 0
    world.put(append(0, 0))
    assert len(world.failures) == 1 and world.told[-1][0] is EpochAdopted


def test_a_stop_is_no_failure() -> None:
    world = open_epoch()
    world.told.clear()
    world.put(append(0, 0), append(1, 1))
    world.executor.close()
    assert world.told == [] and world.failures == []


def test_history_is_read_in_parts_and_others_come_between() -> None:
    world = open_epoch(part_bytes=40)
    world.do(append(0, 6))
    world.told.clear()
    world.put(history(0), history(4, OTHER), append(7, 7))
    world.executor.run_pending()
    assert world.parts == [(LINK, 1, 2), (OTHER, 5, 6), (LINK, 3, 4)]
    assert world.told == [(HistorySent, OTHER, zxid(6)), (Logged, zxid(7))]
    world.disk.read_on(LINK, zxid(2))
    world.executor.run_pending()
    world.disk.read_on(LINK, zxid(4))
    world.disk.read_on(OTHER, zxid(6))  # all was read
    world.executor.run_pending()
    assert world.parts[3:] == [(LINK, 5, 6), (LINK, 7, 7)], "all that is durable by now"
    assert world.told[-1] == (HistorySent, LINK, zxid(7))
    assert world.disk.idle and not world.disk.sends_history
    world.put(history(6))
    world.executor.run_pending()
    assert world.parts[-1] == (LINK, 7, 7), "the same link may ask again"


def test_no_more_than_two_parts_are_on_their_way_to_a_disk_that_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is written meanwhile is read from the log, and kept nowhere else."""
    monkeypatch.setattr(learner_history, "LONGEST_PART_BYTES", 100)
    world = open_epoch(part_bytes=40)
    world.do(append(0, 6))
    world.do(history(0))
    for counter in range(7, 60):
        world.do(append(counter, counter))
    assert world.parts == [(LINK, 1, 2), (LINK, 3, 4)]
    for stored in (0, 1, 1):  # not a whole part
        world.disk.read_on(LINK, zxid(stored))
        world.disk.read_on(LINK, None)
        world.executor.run_pending()
    assert len(world.parts) == 2
    world.disk.read_on(LINK, zxid(2))
    world.disk.read_on(LINK, zxid(2))
    world.executor.run_pending()
    assert world.parts[2:] == [(LINK, 5, 9)], "one part, if a long one, as so much was written"
    assert world.disk.sends_history, "nothing is purged"


@pytest.mark.parametrize("group", [3, 12])
def test_a_history_ends_although_the_leader_goes_on_writing(group: int) -> None:
    """As soon as one part holds all that is missing, which is more than was there at first; also
    where more is written between two parts than a part has else."""
    world = open_epoch(part_bytes=100)
    world.do(append(0, 59))
    world.do(history(0))
    counter, sent = 60, 0
    while not (told := [each for each in world.told if each[0] is HistorySent]):
        world.do(append(counter, counter + group - 1))  # a part is five
        counter += group
        sent = world.parts[-1][2]
        world.disk.read_on(LINK, zxid(sent))
        world.executor.run_pending()
        assert counter < 300
    assert told == [(HistorySent, LINK, zxid(counter - 1))]
    pieces = [(first, last) for _, first, last in world.parts]
    assert pieces[0][0] == 1 and pieces[-1][1] == counter - 1
    assert all(one[1] + 1 == other[0] for one, other in pairwise(pieces)), "each once, in order"


def test_the_log_is_not_kept_for_a_learner_that_only_falls_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would fill the leader's disk; the learner is sent a snapshot when it comes again."""
    monkeypatch.setattr(learner_history, "LOST_BYTES_LAST", 400)
    monkeypatch.setattr(learner_history, "LONGEST_PART_BYTES", 40)
    world = open_epoch(part_bytes=40)
    world.do(append(0, 9))
    world.do(history(0))
    for counter in range(10, 60):  # as much as it takes
        world.do(append(counter, counter))
        if counter % 2:
            world.disk.read_on(LINK, zxid(world.parts[-2][2]))
            world.executor.run_pending()
        assert world.disk.sends_history
    for counter in range(60, 90):  # more
        world.do(append(counter, counter))
    assert not world.disk.sends_history
    world.data.log.roll()
    assert world.data.log.purge(zxid(89))
    for _ in range(9):
        world.disk.read_on(LINK, zxid(89))
        world.executor.run_pending()
    assert len(world.gone) == 1 and world.failures == []


def test_a_history_goes_on_through_files_that_are_rolled_meanwhile() -> None:
    world = open_epoch(part_bytes=40)
    world.do(append(0, 6))
    world.do(history(0))
    for counter in range(7, 12):
        if counter % 3 == 0:
            world.data.log.roll()
        world.do(append(counter, counter))
    for _ in range(4):
        world.disk.read_on(LINK, zxid(world.parts[-1][2]))
        world.executor.run_pending()
    assert world.told[-1] == (HistorySent, LINK, zxid(11))
    assert [each for _, first, last in world.parts for each in range(first, last + 1)] == [
        *range(1, 12)
    ]
    assert world.open_files() == 2, "the lock, and the log's last file"


def test_a_log_that_cannot_be_read_any_more_ends_the_link_and_nothing_else() -> None:
    """Deleted, or damaged: what is here is served on."""
    world = open_epoch(part_bytes=40)
    world.do(append(0, 3))
    world.data.log.roll()
    world.do(append(4, 9))
    assert world.data.log.purge(zxid(3))
    world.do(history(0))
    assert len(world.gone) == 1 and "begins after" in world.gone[0]
    path = next(each for each in world.files.contents() if "log." in each)
    file = world.files.open(path)
    file.pwrite(b"?", file.size() // 4)
    file.close()
    world.do(history(3))
    assert len(world.gone) == 2 and "damaged" in world.gone[1]
    assert not world.disk.sends_history and not world.failures
    assert world.do(append(10, 10)) == [(Logged, zxid(10))] and world.open_files() == 2


@pytest.mark.parametrize("moment", ["queued", "begun", "read", "told"])
def test_a_history_that_nobody_wants_any_more_holds_nothing_up(moment: str) -> None:
    world = open_epoch(part_bytes=40)
    world.do(append(0, 6))
    if moment == "queued":
        world.put(append(7, 7))
    world.put(history(0))
    if moment == "told":
        world.executor.run_pending()
    elif moment == "read":
        world.executor.run_work()
    world.disk.forget(LINK)
    world.disk.forget(LINK)
    world.put(TruncateLog(zxid(3)))
    world.executor.run_pending()
    world.disk.read_on(LINK, zxid(2))
    assert len(world.parts) == 2 * (moment == "told")
    assert world.told[-1] == (Truncated, zxid(3)) and world.disk.idle
    assert world.open_files() == 2, "the lock, and the log's last file"
