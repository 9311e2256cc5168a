"""SNAP on both disks: a leader's newest snapshot becomes a learner's, whole or not at all."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import pytest

from duolog_cluster.sim.disk import PowerLoss
from duolog_protocol.checksums import crc32c
from duolog_protocol.errors import StorageError
from duolog_protocol.quorum_messages import SnapshotBegin, SnapshotChunk, SnapshotEnd
from zkserver.core.peer_events import (
    ChunkWritten,
    DropSnapshot,
    HistorySent,
    InstallSnapshot,
    Logged,
    ReceiveSnapshot,
    SendSnapshot,
    SnapshotBegun,
    SnapshotInstalled,
    SnapshotRefused,
    StoreChunk,
)
from zkserver.server.peer_disk import PeerDisk
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.txnlog import LogOptions

from .storage_support import take_snapshot
from .test_peer_disk import LINK, OTHER, World, append, record, zxid

CHUNKS = [b"first chunk", b"second", b"the third one"]
CRC = crc32c(b"".join(CHUNKS))


class Ends(World):
    """A disk whose owner takes snapshots, and builds a state of those that come."""

    built: list[bytes] | None = None
    is_refused = False

    def start(self) -> None:
        self.messages: list[Any] = []
        self.disk = PeerDisk(self.data, self.executor, self, builder=self)

    def snapshot_read(self, link: Any, message: Any) -> None:
        self.messages.append(message)

    def on_truncated(self, zxid: int) -> None:
        raise AssertionError("nothing is truncated here")

    def on_received(self, zxid: int, chunks: Iterator[bytes]) -> None:
        self.built = list(chunks)
        if self.is_refused:
            raise StorageError("it makes no sense")

    def reopened(self) -> DataDirectory:
        """What a start finds after the power was lost."""
        self.files.crash()
        data = DataDirectory(
            self.files, "/zk", 1, random.Random(2), log_options=LogOptions(4_096, 64)
        )
        self.snapshot = list(data.snapshot_chunks())
        self.behind = list(data.records(may_be_half=True))
        return data

    def names(self) -> set[str]:
        found = self.files.list("/zk")
        return {each for each in found if each.startswith(("log.", "snapshot.", "received."))}


def leader() -> Ends:
    """It has records 0 to 9, a snapshot at 5, and no log before it."""
    world = Ends()
    world.start()
    world.do(append(0, 5))
    world.data.log.roll()
    take_snapshot(world.data, zxid(5), CHUNKS)
    world.do(append(6, 9))
    assert world.data.purge(1) and world.data.log.first_zxid_before == zxid(5)
    world.data.verified.add(zxid(5))
    return world


def learner() -> Ends:
    """It has records 0 to 2."""
    world = Ends()
    world.start()
    world.data.epochs.accept(1)
    world.do(append(0, 2))
    return world


def receive(count: int = 3, crc: int = CRC) -> list[Any]:
    work: list[Any] = [ReceiveSnapshot(zxid(5)), *map(StoreChunk, CHUNKS)]
    return [*work, InstallSnapshot(zxid(5), count, crc)]


# --- The leader's side ----------------------------------------------------------------------------


def test_chunks_are_sent_one_by_one_as_they_are_taken_and_then_the_history() -> None:
    world = leader()
    world.do(SendSnapshot(LINK))
    assert world.messages == [SnapshotBegin(zxid(5)), SnapshotChunk(CHUNKS[0])]
    for chunk in CHUNKS[1:]:
        world.disk.read_on(LINK, None)
        world.executor.run_pending()
        assert world.messages[-1] == SnapshotChunk(chunk) and world.parts == []
    world.disk.read_on(LINK, None)
    world.executor.run_pending()
    assert world.messages[-1] == SnapshotEnd(zxid(5), 3, CRC)
    assert world.parts == [(LINK, 6, 9)] and world.told[-1] == (HistorySent, LINK, zxid(9))
    assert world.open_files() == leader().open_files()


def test_the_open_snapshot_outlives_a_purge() -> None:
    world = leader()
    world.do(SendSnapshot(LINK))
    take_snapshot(world.data, zxid(9), [b"newer"])
    assert "snapshot." + f"{zxid(5):016x}" in world.data.purge(1)
    for _ in CHUNKS:
        world.disk.read_on(LINK, None)
        world.executor.run_pending()
    assert world.messages[-1] == SnapshotEnd(zxid(5), 3, CRC)


def test_a_chunk_that_is_asked_for_twice_is_sent_once() -> None:
    """A learner's word must not stop its leader."""
    world = leader()
    world.do(SendSnapshot(LINK))
    for _ in range(3):
        world.disk.read_on(LINK, None)
    world.executor.run_pending()
    assert world.messages[1:] == [SnapshotChunk(CHUNKS[0]), SnapshotChunk(CHUNKS[1])]


def damage(world: Ends, counter: int, position: int) -> None:
    file = world.files.open(f"/zk/snapshot.{zxid(counter):016x}")
    byte = file.pread(1, position)
    file.pwrite(bytes([byte[0] ^ 1]), position)
    file.close()


def test_a_snapshot_that_is_damaged_ends_the_link_and_the_next_one_is_sent_the_one_before() -> None:
    """It is begun without having been read from end to end: that would be one job, in which the
    leader writes nothing."""
    world = leader()
    take_snapshot(world.data, zxid(9), CHUNKS)
    world.data.verified.add(zxid(9))
    end = world.files.open(f"/zk/snapshot.{zxid(9):016x}").size()
    damage(world, 9, end - 40)  # in the last chunk
    world.do(SendSnapshot(LINK))
    for _ in CHUNKS:
        world.disk.read_on(LINK, None)
        world.executor.run_pending()
    assert world.messages[0] == SnapshotBegin(zxid(9)) and len(world.messages) == 3
    assert len(world.gone) == 1 and "checksum" in world.gone[0]
    assert world.failures == [] and not world.disk.sends_history
    world.do(SendSnapshot(OTHER))
    assert world.messages[3:] == [SnapshotBegin(zxid(5)), SnapshotChunk(CHUNKS[0])]
    damage(world, 5, end - 40)
    for link in (OTHER, LINK):
        world.disk.forget(OTHER)
        world.do(SendSnapshot(link))
        for _ in CHUNKS:
            world.disk.read_on(link, None)
            world.executor.run_pending()
    assert len(world.gone) == 3 and world.gone[2] == "there is no snapshot that can be read"
    assert world.do(append(10, 10)) == [(Logged, zxid(10))] and world.failures == []


def test_a_snapshot_that_was_not_read_back_yet_is_not_sent() -> None:
    world = leader()
    take_snapshot(world.data, zxid(9), [b"newer"])
    world.do(SendSnapshot(LINK))
    assert world.messages[0] == SnapshotBegin(zxid(5))
    world.data.verified.add(zxid(9))
    world.do(SendSnapshot(OTHER))
    assert world.messages[2] == SnapshotBegin(zxid(9))


def test_a_link_that_ends_closes_the_file() -> None:
    world = leader()
    before = world.open_files()
    world.do(SendSnapshot(LINK))
    assert world.open_files() == before + 1
    world.disk.forget(LINK)
    assert world.open_files() == before
    world.disk.read_on(LINK, None)
    assert world.disk.idle


# --- The learner's side ---------------------------------------------------------------------------


def test_a_snapshot_takes_the_place_of_all_that_was_there() -> None:
    world = learner()
    told = world.do(*receive(), append(6, 7))
    assert told == [
        (SnapshotBegun,),
        *([(ChunkWritten,)] * 3),
        (SnapshotInstalled, 0, None, zxid(5)),
        (Logged, zxid(7)),
    ]
    assert world.built == CHUNKS
    assert world.names() == {f"snapshot.{zxid(5):016x}", f"log.{zxid(5):016x}"}
    data = world.reopened()
    assert data.snapshot_zxid == zxid(5) and world.snapshot == CHUNKS
    assert world.behind == [record(6), record(7)]


@pytest.mark.parametrize(
    ("work", "is_built"),
    [
        (receive(count=4), False),
        (receive(crc=CRC ^ 1), False),
        (receive(), True),
    ],
)
def test_a_snapshot_that_is_not_whole_or_makes_no_sense_leaves_all_as_it_was(
    work: list[Any], is_built: bool
) -> None:
    world = learner()
    world.is_refused = True
    told = world.do(*work, append(6, 7))
    assert told[4][0] is SnapshotRefused and len(told) == 5, "nor what stands behind it"
    assert (world.built == CHUNKS) is is_built
    assert world.names() == {f"log.{0:016x}"} and world.disk.idle
    assert not [name for name in world.files.list("/zk") if name.endswith(".tmp")]
    assert world.do(append(3, 3)) == [(Logged, zxid(3))]


def test_without_space_a_snapshot_is_refused_and_nothing_of_it_is_left() -> None:
    for write in range(1, 7):
        world = learner()
        world.faults.full_at_write = world.files.write_count + write
        world.faults.full_for_writes = 1
        told = world.do(*receive())
        assert told[-1][0] in (SnapshotRefused, SnapshotInstalled) or world.failures, write
        if told[-1][0] is SnapshotRefused:
            assert world.names() == {f"log.{0:016x}"}
            assert world.do(append(3, 3)) == [(Logged, zxid(3))]


def test_a_snapshot_that_is_not_completed_is_nothing() -> None:
    world = learner()
    told = world.do(*receive()[:3], DropSnapshot(), append(3, 3))
    assert told == [(SnapshotBegun,), *[(ChunkWritten,)] * 2, (Logged, zxid(3))]
    world.reopened()
    assert world.snapshot == [] and world.behind == [record(each) for each in range(4)]


def test_one_that_begins_anew_forgets_what_had_come() -> None:
    world = learner()
    assert world.do(*receive()[:3], *receive())[-1] == (SnapshotInstalled, 0, None, zxid(5))
    assert world.built == CHUNKS


def crash_at(world: Ends, point: int) -> int:
    """Lose the power at this sync or rename of an installation; how many there were till then."""
    seen = 0

    def count(when: str, kind: str, path: str) -> None:
        nonlocal seen
        seen += 1
        if seen == point:
            raise PowerLoss

    world.files.crash_points = count
    world.put(*receive())
    with contextlib.suppress(PowerLoss):
        world.executor.run_pending()
    world.files.crash_points = None
    return seen


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_a_start_finds_what_was_there_or_the_snapshot_wherever_the_power_was_lost(
    kept: float,
) -> None:
    found = []
    for point in range(1, 100):
        world = learner()
        world.faults.name_drop_rate = world.faults.drop_rate = 1.0 - kept
        if crash_at(world, point) < point:
            break
        data = world.reopened()
        found.append(data.snapshot_zxid)
        if data.snapshot_zxid:
            assert world.snapshot == CHUNKS and world.behind == []
            assert data.log.last_zxid == zxid(5)
        else:
            assert world.snapshot == [] and world.behind == [record(each) for each in range(3)]
    assert found == sorted(found) and len(found) > 8 and found[-1] == zxid(5)
    assert kept == 1.0 or found[0] == 0


def test_what_fails_behind_the_rename_stops_the_server_and_the_next_start_goes_on() -> None:
    """Neither the old state nor the new one is known to be there."""
    world = learner()

    def fail(zxid: int) -> None:
        raise OSError(28, "no space")

    world.data.log.restart_at = fail  # type: ignore[method-assign]
    told = world.do(*receive())
    assert told == [(SnapshotBegun,), *[(ChunkWritten,)] * 3] and len(world.failures) == 1
    assert world.reopened().snapshot_zxid == zxid(5) and world.snapshot == CHUNKS
