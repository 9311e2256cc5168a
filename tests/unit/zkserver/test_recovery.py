"""Opening a data directory: whose it is, what it holds, and when to refuse it."""

from __future__ import annotations

import errno
import random

import pytest

from duolog_protocol.errors import CorruptRecordError, DataDirectoryError, DiskFullError
from duolog_protocol.types import make_zxid
from duolog_runtime.files import DirectoryLockedError, RealFiles
from tests.unit.kbroker.storage_support import MemoryFiles
from tests.unit.zkserver.storage_support import (
    DIRECTORY,
    change,
    fill,
    open_directory,
    record,
    take_snapshot,
)
from zkserver.storage.epoch_files import ACCEPTED_EPOCH, CURRENT_EPOCH, IDENTITY, EpochFiles
from zkserver.storage.file_header import HEADER_BYTES
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.snapshot import (
    SnapshotWriter,
    received_name,
    snapshot_files,
    snapshot_name,
)
from zkserver.storage.txnlog import log_files, log_name


def snapshotted(*, at: tuple[int, ...] = (20, 40, 60)) -> tuple[MemoryFiles, list[bytes]]:
    """Sixty-five records with snapshots in between, each after a roll."""
    files = MemoryFiles()
    data, _ = open_directory(files)
    records = []
    for first in range(1, 66, 5):
        records += fill(data, [5], first=first)
        if first + 4 in at:
            data.log.roll()
            take_snapshot(data, make_zxid(1, first + 4), [b"state " + bytes([first])] * 3)
    return files, records


def test_the_state_is_the_newest_snapshot_and_the_records_after_it() -> None:
    files, records = snapshotted()
    data, found = open_directory(files.copy())
    assert data.snapshot_zxid == make_zxid(1, 60)
    assert list(data.snapshot_chunks()) == [b"state " + bytes([56])] * 3
    assert found == records[60:]


def test_a_damaged_newest_snapshot_falls_back_to_the_one_before() -> None:
    files, records = snapshotted()
    path = f"{DIRECTORY}/{snapshot_name(make_zxid(1, 60))}"
    for position in range(len(files.nodes[path].data)):
        damaged = change(files, path, lambda d, p=position: d.__setitem__(p, d[p] ^ 4))
        if 8 <= position < 10:  # the format version: a newer server wrote it
            with pytest.raises(DataDirectoryError, match="version"):
                open_directory(damaged)
            continue
        data, found = open_directory(damaged)
        assert data.snapshot_zxid == make_zxid(1, 40), position
        assert found == records[40:]
        assert len(data.damaged_snapshots) == 1
    for size in range(len(files.nodes[path].data)):
        cut = change(files, path, lambda d, s=size: d.__delitem__(slice(s, None)))
        assert open_directory(cut)[0].snapshot_zxid == make_zxid(1, 40), size
    longer = change(files, path, lambda d: d.append(0))
    assert open_directory(longer)[0].snapshot_zxid == make_zxid(1, 40)


def test_a_snapshot_under_the_name_of_another_zxid_is_not_used() -> None:
    """ST9."""
    files, records = snapshotted()
    old = f"{DIRECTORY}/{snapshot_name(make_zxid(1, 60))}"
    files.nodes[f"{DIRECTORY}/{snapshot_name(make_zxid(1, 62))}"] = files.nodes.pop(old)
    data, found = open_directory(files.copy())
    assert data.snapshot_zxid == make_zxid(1, 40)
    assert found == records[40:]


def test_when_the_log_does_not_reach_back_to_a_readable_snapshot_the_start_is_refused() -> None:
    """ZR22, ZR23: never start from less than what was acknowledged."""
    files, _ = snapshotted()
    data, _ = open_directory(files.copy())
    disk = data.files
    assert isinstance(disk, MemoryFiles)
    data.log.purge(make_zxid(1, 60))
    for zxid in snapshot_files(disk, DIRECTORY):
        disk.nodes[f"{DIRECTORY}/{snapshot_name(zxid)}"].data[60] ^= 1
    with pytest.raises(CorruptRecordError, match="snapshot"):
        open_directory(disk.copy())
    for zxid in snapshot_files(disk, DIRECTORY):
        del disk.nodes[f"{DIRECTORY}/{snapshot_name(zxid)}"]
    with pytest.raises(CorruptRecordError, match="no snapshot covers"):
        open_directory(disk.copy())


def test_missing_logs_are_refused() -> None:
    files, _ = snapshotted()
    for base in log_files(files, DIRECTORY):
        del files.nodes[f"{DIRECTORY}/{log_name(base)}"]
    with pytest.raises(CorruptRecordError, match="all log files are missing"):
        open_directory(files)


def test_a_log_that_ends_before_its_snapshot_is_refused() -> None:
    files, _ = snapshotted()
    for base in log_files(files, DIRECTORY)[1:]:
        del files.nodes[f"{DIRECTORY}/{log_name(base)}"]
    with pytest.raises(CorruptRecordError, match="was durable up to"):
        open_directory(files)


def test_purge_keeps_three_snapshots_and_their_logs() -> None:
    files, records = snapshotted(at=(10, 20, 30, 40, 50, 60))
    data, _ = open_directory(files)
    data.purge(3)
    assert snapshot_files(files, DIRECTORY) == [make_zxid(1, n) for n in (40, 50, 60)]
    assert log_files(files, DIRECTORY)[0] <= make_zxid(1, 40)
    assert data.log.first_zxid_before > make_zxid(1, 20)
    for zxid in (60, 50):
        files.nodes[f"{DIRECTORY}/{snapshot_name(make_zxid(1, zxid))}"].data[70] ^= 1
    data, found = open_directory(files.copy())
    assert data.snapshot_zxid == make_zxid(1, 40)
    assert found == records[40:]


def test_purge_deletes_no_log_while_there_are_too_few_snapshots() -> None:
    files, _ = snapshotted(at=(20, 40))
    data, _ = open_directory(files)
    assert data.purge(3) == []
    assert data.log.first_zxid_before == 0


def test_a_directory_of_another_server_or_ensemble_is_refused_by_name() -> None:
    files, _ = snapshotted()
    with pytest.raises(DataDirectoryError, match=r"belongs to server 1 .* this is server 2"):
        open_directory(files, server_id=2)
    with pytest.raises(DataDirectoryError, match=r"this is server 1 of ensemble 7$"):
        DataDirectory(files, DIRECTORY, 1, random.Random(1), ensemble_id=7)


@pytest.mark.parametrize("name", [IDENTITY, ACCEPTED_EPOCH, CURRENT_EPOCH])
def test_any_damage_to_the_small_files_is_refused(name: str) -> None:
    files, _ = snapshotted()
    path = f"{DIRECTORY}/{name}"
    for position in range(HEADER_BYTES):
        with pytest.raises((CorruptRecordError, DataDirectoryError)):
            open_directory(change(files, path, lambda d, p=position: d.__setitem__(p, d[p] ^ 16)))
        with pytest.raises(CorruptRecordError):
            cut = change(files, path, lambda d, p=position: d.__delitem__(slice(p, None)))
            open_directory(cut)
    other = files.copy()
    del other.nodes[path]
    with pytest.raises((CorruptRecordError, DataDirectoryError), match="missing"):
        open_directory(other)


def test_a_newer_format_is_named() -> None:
    """ST10."""
    files, _ = snapshotted()
    path = f"{DIRECTORY}/{IDENTITY}"
    with pytest.raises(DataDirectoryError, match="format version 2, this server reads version 1"):
        open_directory(change(files, path, lambda d: d.__setitem__(9, 2)))


def test_a_log_of_a_later_epoch_than_the_epoch_files_is_refused() -> None:
    files, _ = snapshotted()
    data, _ = open_directory(files)
    zxid = make_zxid(2, 1)
    data.log.append([record(zxid)], zxid)
    data.log.sync()
    with pytest.raises(DataDirectoryError, match="current_epoch is 1"):
        open_directory(files.copy())


def test_half_of_a_leaders_history_is_a_learners_only_and_of_an_epoch_it_has_promised() -> None:
    files, _ = snapshotted()
    data, _ = open_directory(files)
    zxid = make_zxid(2, 0)
    data.log.append([record(zxid)], zxid)
    data.log.sync()
    with pytest.raises(DataDirectoryError, match="accepted_epoch is 1"):
        open_directory(files.copy(), may_be_half=True)
    data.epochs.accept(3)
    assert open_directory(files.copy(), may_be_half=True)[1][-1] == record(zxid)
    with pytest.raises(DataDirectoryError, match="current_epoch is 1"):
        open_directory(files.copy())


def test_an_epoch_is_on_disk_before_it_counts() -> None:
    """ZR20: a crash at any moment leaves epochs that are not lower, and a server that starts."""
    for seed in range(100):
        rng = random.Random(seed)
        files, _ = snapshotted()
        data, _ = open_directory(files)
        files.free_bytes = rng.choice([0, 10, HEADER_BYTES, HEADER_BYTES + 5, 1000])
        try:
            data.epochs.advance(2)
        except DiskFullError:
            assert data.epochs.current_epoch == 1
        else:
            assert data.epochs.current_epoch == 2
        promised, adopted = data.epochs.accepted_epoch, data.epochs.current_epoch
        survived, _ = open_directory(files.after_power_loss(rng))
        assert survived.epochs.accepted_epoch >= promised
        assert survived.epochs.current_epoch >= adopted
        assert survived.epochs.next_epoch() > promised


def test_a_promise_below_what_was_adopted_is_refused() -> None:
    files, _ = snapshotted()
    EpochFiles(files, DIRECTORY, open_directory(files.copy())[0].identity).advance(5)
    old = files.copy()
    data, _ = open_directory(files.copy())
    data.epochs.advance(6)
    assert isinstance(data.files, MemoryFiles)
    old.nodes[f"{DIRECTORY}/{CURRENT_EPOCH}"] = data.files.nodes[f"{DIRECTORY}/{CURRENT_EPOCH}"]
    with pytest.raises(DataDirectoryError, match="below current_epoch"):
        open_directory(old)


def test_a_crash_while_the_directory_is_made_leaves_one_that_is_made_again() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        files = MemoryFiles()
        files.free_bytes = rng.randint(0, 5 * HEADER_BYTES)
        try:
            open_directory(files, seed=seed)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        survived = files.after_power_loss(rng)
        data, found = open_directory(survived, seed=seed + 1)
        assert found == []
        records = fill(data, [2])
        assert open_directory(survived.copy())[1] == records


def test_logs_without_an_identity_are_refused() -> None:
    files, _ = snapshotted(at=())
    del files.nodes[f"{DIRECTORY}/{IDENTITY}"]
    with pytest.raises(DataDirectoryError, match="identity is missing"):
        open_directory(files)


def test_a_snapshot_that_was_not_finished_is_nothing() -> None:
    """ZR14, ST7: at any moment of a power loss the old snapshot or the new one is there, whole."""
    for seed in range(200):
        rng = random.Random(seed)
        files, records = snapshotted(at=(20, 40))
        data, _ = open_directory(files)
        writer = SnapshotWriter(files, DIRECTORY, data.identity, make_zxid(1, 60))
        for _ in range(rng.randint(0, 3)):
            writer.write(b"new state")
        finished = rng.random() < 0.5
        if finished:
            writer.finish()
        data, found = open_directory(files.after_power_loss(rng))
        expected = 60 if finished else 40
        assert data.snapshot_zxid == make_zxid(1, expected)
        assert found == records[expected:]
        assert not [name for name in data.files.list(DIRECTORY) if name.endswith(".tmp")]


def test_a_snapshot_of_an_empty_state_is_one() -> None:
    files, _ = snapshotted(at=())
    data, _ = open_directory(files)
    take_snapshot(data, make_zxid(1, 65), [])
    data, found = open_directory(files.copy())
    assert (data.snapshot_zxid, found) == (make_zxid(1, 65), [])
    assert list(data.snapshot_chunks()) == []


def test_a_second_owner_is_refused_and_the_lock_ends_with_the_first(tmp_path: object) -> None:
    """ST11, on real files, in a directory whose parents do not exist."""
    directory = f"{tmp_path}/a/b"
    first = DataDirectory(RealFiles(), directory, 1, random.Random(1))
    with pytest.raises(DirectoryLockedError, match="another process"):
        DataDirectory(RealFiles(), directory, 1, random.Random(2))
    assert list(first.records()) == []
    records = fill(first, [3, 4])
    first.close()
    second = DataDirectory(RealFiles(), directory, 1, random.Random(3))
    assert list(second.records()) == records
    second.close()


# --- What an ensemble changes ---------------------------------------------------------------------


def test_a_truncation_takes_the_snapshots_behind_it_along() -> None:
    files, records = snapshotted()
    data, _ = open_directory(files)
    data.truncate_to(make_zxid(1, 33))
    data.close()
    assert snapshot_files(files, DIRECTORY) == [make_zxid(1, 20)]
    data, found = open_directory(files)
    assert data.snapshot_zxid == make_zxid(1, 20) and found == records[20:33]


def test_a_truncation_below_what_snapshot_and_log_reach_is_refused_and_changes_nothing() -> None:
    files, records = snapshotted()
    data, _ = open_directory(files)
    data.purge(2)
    with pytest.raises(DataDirectoryError, match="cannot be truncated"):
        data.truncate_to(make_zxid(1, 33))
    data.close()
    assert open_directory(files)[1] == records[60:]


def received(files: MemoryFiles, zxid: int) -> None:
    """Leave what a crash leaves right after the rename."""
    data, _ = open_directory(files)
    writer = data.receive_snapshot(zxid)
    writer.write(b"the leader's")
    writer.seal()
    writer.publish()
    data.close()


def test_a_start_goes_on_with_the_installation_of_a_snapshot() -> None:
    files, _ = snapshotted()
    zxid = make_zxid(1, 100)
    received(files, zxid)
    data, found = open_directory(files)
    assert data.snapshot_zxid == zxid and found == []
    assert list(data.snapshot_chunks()) == [b"the leader's"]
    assert data.log.last_zxid == data.log.first_zxid_before == zxid
    assert snapshot_files(files, DIRECTORY) == log_files(files, DIRECTORY) == [zxid]


def test_a_received_snapshot_that_has_decayed_is_refused_before_anything_is_deleted() -> None:
    files, _ = snapshotted()
    zxid = make_zxid(1, 100)
    received(files, zxid)
    before = log_files(files, DIRECTORY), snapshot_files(files, DIRECTORY)
    files.nodes[f"{DIRECTORY}/{received_name(zxid)}"].data[70] ^= 1
    with pytest.raises(CorruptRecordError, match="received"):
        open_directory(files)
    assert (log_files(files, DIRECTORY), snapshot_files(files, DIRECTORY)) == before
