"""The two epochs: what is promised and what is held never fall, whatever moment the power fails."""

from __future__ import annotations

import contextlib
import random

import pytest

from duolog_cluster.sim.disk import CrashPoint, DiskFaults, PowerLoss, SimDisk
from duolog_protocol.errors import DiskFullError, LogOfflineError
from duolog_protocol.types import ZXID_EPOCH_LAST
from zkserver.storage.epoch_files import EpochFiles, read_identity, write_identity
from zkserver.storage.file_header import Identity

IDENTITY = Identity(7, 1)


def make_disk(seed: int = 0) -> tuple[SimDisk, EpochFiles]:
    disk = SimDisk(random.Random(seed))
    disk.mkdir("/zk")
    disk.sync_dir("/")
    EpochFiles.create(disk, "/zk", IDENTITY)
    return disk, EpochFiles(disk, "/zk", IDENTITY)


def fails_sometimes(rng: random.Random, rate: float) -> CrashPoint:
    def fail(_when: str, _kind: str, _path: str) -> None:
        if rng.random() < rate:
            raise PowerLoss

    return fail


def epochs(files: EpochFiles) -> tuple[int, int]:
    return files.accepted_epoch, files.current_epoch


def read_again(disk: SimDisk) -> tuple[int, int]:
    disk.crash(lose_unsynced=True)
    return epochs(EpochFiles(disk, "/zk", IDENTITY))


def test_a_promise_is_durable_and_changes_nothing_else() -> None:
    disk, files = make_disk()
    files.accept(3)
    assert epochs(files) == (3, 0) == read_again(disk)


def test_who_has_promised_an_epoch_to_others_was_a_member_for_good() -> None:
    disk, files = make_disk()
    write_identity(disk, "/zk", IDENTITY)
    files.advance(1)
    assert not files.was_member
    files.promise(3)
    files.promise(4)
    assert files.was_member and epochs(files) == (4, 1) == read_again(disk)
    assert EpochFiles(disk, "/zk", IDENTITY).was_member
    assert read_identity(disk, "/zk") == IDENTITY


def test_no_promise_to_others_is_durable_without_that_note() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        disk, files = make_disk(seed)
        write_identity(disk, "/zk", IDENTITY)
        disk.crash_points = fails_sometimes(rng, 0.2)
        disk.faults = DiskFaults(full_after_bytes=disk.used_bytes + rng.choice((0, 50, 1_000)))
        with contextlib.suppress(PowerLoss, DiskFullError):
            files.promise(3)
            assert files.was_member
        disk.crash_points = None
        disk.crash()
        assert read_identity(disk, "/zk") == IDENTITY
        found = EpochFiles(disk, "/zk", IDENTITY)
        assert found.was_member or found.accepted_epoch == 0


def test_what_is_adopted_was_promised() -> None:
    disk, files = make_disk()
    files.accept(3)
    files.adopt(2)
    files.adopt(3)
    assert epochs(files) == (3, 3) == read_again(disk)


def test_adopting_the_same_epoch_again_writes_nothing() -> None:
    disk, files = make_disk()
    files.accept(3)
    files.adopt(3)
    before = disk.write_count
    files.adopt(3)
    assert disk.write_count == before and epochs(files) == (3, 3)


def test_advance_does_both() -> None:
    disk, files = make_disk()
    files.accept(5)
    files.advance(4)
    files.advance(6)
    assert epochs(files) == (6, 6) == read_again(disk)


@pytest.mark.parametrize("epoch", [2, 3, ZXID_EPOCH_LAST + 1])
def test_a_promise_never_falls_nor_repeats(epoch: int) -> None:
    _, files = make_disk()
    files.accept(3)
    with pytest.raises(AssertionError):
        files.accept(epoch)


@pytest.mark.parametrize("epoch", [1, 4])
def test_what_is_held_never_falls_and_is_never_above_the_promise(epoch: int) -> None:
    _, files = make_disk()
    files.accept(3)
    files.adopt(2)
    with pytest.raises(AssertionError):
        files.adopt(epoch)


def test_without_space_nothing_has_changed() -> None:
    disk, files = make_disk()
    files.accept(1)
    disk.faults = DiskFaults(full_after_bytes=0)
    with pytest.raises(DiskFullError):
        files.accept(2)
    with pytest.raises(DiskFullError):
        files.adopt(1)
    assert epochs(files) == (1, 0)


def test_a_failed_sync_is_told() -> None:
    disk, files = make_disk()
    disk.faults = DiskFaults(fail_at_sync=disk.sync_count + 1)
    with pytest.raises(LogOfflineError):
        files.accept(1)
    assert files.accepted_epoch == 0


def test_a_crash_at_any_moment_leaves_epochs_that_are_in_order_and_not_lower() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        disk, files = make_disk(seed)
        told = (0, 0)
        disk.crash_points = fails_sometimes(rng, 0.05)
        try:
            for epoch in range(1, 9):
                files.accept(epoch)
                told = epochs(files)
                if rng.random() < 0.5:
                    files.adopt(epoch)
                    told = epochs(files)
        except PowerLoss:
            disk.crash_points = None
            disk.crash()
            found = epochs(EpochFiles(disk, "/zk", IDENTITY))
            assert found[0] >= told[0] and found[1] >= told[1]
            assert found[0] >= found[1]
