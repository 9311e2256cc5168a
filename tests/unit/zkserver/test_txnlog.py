"""The transaction log: what is acknowledged comes back, a tear is cut, damage is refused."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

import pytest

from duolog_protocol.errors import (
    CorruptRecordError,
    DataDirectoryError,
    DiskFullError,
    LogOfflineError,
)
from duolog_protocol.types import make_zxid
from duolog_runtime.files import Buffer
from tests.unit.kbroker.storage_support import MemoryFiles
from tests.unit.zkserver.storage_support import (
    DIRECTORY,
    change,
    fill,
    open_directory,
    record,
    zxids,
)
from zkserver.storage.file_header import HEADER_BYTES
from zkserver.storage.groups import GROUP_HEADER_BYTES
from zkserver.storage.txnlog import LogOptions, log_files, log_name

FIRST = f"{DIRECTORY}/{log_name(0)}"
ONE_FILE = LogOptions(file_bytes=1 << 20, preallocate_bytes=256)


def written(groups: list[int], options: LogOptions = ONE_FILE) -> tuple[MemoryFiles, list[bytes]]:
    """A killed process that had acknowledged these groups."""
    files = MemoryFiles()
    data, _ = open_directory(files, options=options)
    records = fill(data, groups)
    data.log.mark()
    return files.copy(), records


def test_what_was_synced_comes_back_after_a_kill_and_after_an_orderly_stop() -> None:
    files = MemoryFiles()
    data, found = open_directory(files)
    assert found == []
    records = fill(data, [1, 3, 2, 40, 1])
    assert len(log_files(files, DIRECTORY)) > 1, "the log should have rolled"
    killed = files.copy()
    data.close()
    for disk in (files, killed):
        data, found = open_directory(disk)
        assert found == records
        assert data.log.last_zxid == make_zxid(1, 47)
        records_now = records + fill(data, [2], first=48)
        data.close()
        assert open_directory(disk)[1] == records_now


def test_a_log_cut_at_any_byte_gives_the_longest_whole_prefix_twice() -> None:
    """ST1. Without the mark behind them, groups that end are all that a power loss left."""
    files, records = written([1, 2, 3])
    whole = bytes(files.nodes[FIRST].data)
    ends = [HEADER_BYTES]
    for group in ([0], [1, 2], [3, 4, 5]):
        size = sum(len(records[i]) + 4 for i in group)
        ends.append(ends[-1] + GROUP_HEADER_BYTES + size)
    counts = [0, 1, 3, 6]
    for size in range(HEADER_BYTES, len(whole)):
        cut = change(files, FIRST, lambda data, size=size: data.__delitem__(slice(size, None)))
        expected = max(c for c, end in zip(counts, ends, strict=True) if end <= size)
        data, found = open_directory(cut, options=ONE_FILE)
        assert found == records[:expected], size
        again = cut.copy()
        data.close()
        assert open_directory(again, options=ONE_FILE)[1] == records[:expected], size


def test_a_log_without_its_whole_header_is_refused() -> None:
    files, _ = written([1])
    for size in range(HEADER_BYTES):
        cut = change(files, FIRST, lambda data, size=size: data.__delitem__(slice(size, None)))
        with pytest.raises((CorruptRecordError, DataDirectoryError)):
            open_directory(cut, options=ONE_FILE)


def test_any_flipped_byte_before_the_mark_is_refused() -> None:
    """ST2. The mark says up to where all was durable."""
    files, records = written([2, 1, 2])
    end = HEADER_BYTES + 3 * GROUP_HEADER_BYTES + sum(len(r) + 4 for r in records)
    for position in range(end):
        for bit in (0, 7):
            damaged = change(files, FIRST, lambda d, p=position, b=bit: _flip(d, p, b))
            with pytest.raises((CorruptRecordError, DataDirectoryError)) as caught:
                open_directory(damaged, options=ONE_FILE)
            assert FIRST in str(caught.value), position
    for position in range(end, len(files.nodes[FIRST].data)):
        damaged = change(files, FIRST, lambda d, p=position: _flip(d, p, 3))
        assert open_directory(damaged, options=ONE_FILE)[1] == records, position


def _flip(data: bytearray, position: int, bit: int) -> None:
    data[position] ^= 1 << bit


def test_without_the_mark_only_the_last_group_is_taken_for_a_tear() -> None:
    """A power loss right after a sync loses the mark: older groups are still told from a tear."""
    files, records = written([2, 1, 2])
    sizes = [GROUP_HEADER_BYTES + sum(len(records[i]) + 4 for i in g) for g in ([0, 1], [2], [3])]
    last_group = HEADER_BYTES + sizes[0] + sizes[1]
    end = HEADER_BYTES + 3 * GROUP_HEADER_BYTES + sum(len(r) + 4 for r in records)
    unmarked = change(files, FIRST, lambda d: d.__setitem__(slice(end, end + 44), bytes(44)))
    for position in range(HEADER_BYTES, end):
        damaged = change(unmarked, FIRST, lambda d, p=position: _flip(d, p, 0))
        if position < last_group:
            with pytest.raises(CorruptRecordError):
                open_directory(damaged, options=ONE_FILE)
        else:
            assert open_directory(damaged, options=ONE_FILE)[1] == records[:3], position


def test_a_tail_of_garbage_is_cut_and_does_not_come_back() -> None:
    """ST3."""
    files, records = written([2])
    for seed in range(20):
        rng = random.Random(seed)
        garbage = rng.randbytes(rng.randint(1, 300))
        torn = change(files, FIRST, lambda d, g=garbage: d.extend(g))
        data, found = open_directory(torn, options=ONE_FILE)
        assert found == records
        records_now = records + fill(data, [1], first=3)
        assert open_directory(torn.copy(), options=ONE_FILE)[1] == records_now


def test_data_that_looks_like_a_group_is_not_taken_for_one() -> None:
    """A client stores the bytes of a real group of another log as data, then the group tears."""
    other, _ = written([1, 1])
    files = MemoryFiles()
    data, _ = open_directory(files, seed=2, options=ONE_FILE)
    first = fill(data, [1])
    synced_end = files.nodes[FIRST].data.rfind(first[0]) + len(first[0])
    hostile = record(make_zxid(1, 2)) + bytes(other.nodes[FIRST].data)
    data.log.append([hostile], make_zxid(1, 2))
    torn = change(files, FIRST, lambda d: _flip(d, synced_end + 20, 0))
    assert open_directory(torn, seed=2, options=ONE_FILE)[1] == first


@pytest.mark.parametrize("lost", [0, 1])
def test_a_missing_file_in_the_middle_is_refused(lost: int) -> None:
    """ST4."""
    files = MemoryFiles()
    data, _ = open_directory(files)
    fill(data, [10] * 8)
    bases = log_files(files, DIRECTORY)
    assert len(bases) >= 4, bases
    other = files.copy()
    del other.nodes[f"{DIRECTORY}/{log_name(bases[lost])}"]
    with pytest.raises(CorruptRecordError, match=r"missing|no snapshot"):
        open_directory(other)


def test_damage_in_a_file_that_is_not_the_last_is_refused_even_at_its_end() -> None:
    files = MemoryFiles()
    data, _ = open_directory(files)
    records = fill(data, [10] * 4)
    size = len(files.nodes[FIRST].data)
    for position in range(HEADER_BYTES, size):
        with pytest.raises(CorruptRecordError):
            open_directory(change(files, FIRST, lambda d, p=position: _flip(d, p, 1)))
    with pytest.raises(CorruptRecordError):
        open_directory(change(files, FIRST, lambda d: d.__delitem__(slice(size - 1, None))))
    assert open_directory(files.copy())[1] == records


def test_a_renamed_file_is_refused() -> None:
    files, _ = written([1])
    files.nodes[f"{DIRECTORY}/{log_name(7)}"] = files.nodes.pop(FIRST)
    with pytest.raises(CorruptRecordError, match=r"begins after|its name says"):
        open_directory(files, options=ONE_FILE)


def test_a_full_disk_at_any_byte_takes_the_append_back() -> None:
    """ST6. What was acknowledged stays, what was refused is gone, the zxid can be used again."""
    size = GROUP_HEADER_BYTES + 2 * (4 + 20)
    for free in range(size + 1):
        files = MemoryFiles()
        data, _ = open_directory(files, options=ONE_FILE)
        records = fill(data, [2])
        files.free_bytes = free
        refused = [record(make_zxid(1, 3)), record(make_zxid(1, 4))]
        if free < size:
            with pytest.raises(DiskFullError):
                data.log.append(refused, make_zxid(1, 4))
        else:
            data.log.append(refused, make_zxid(1, 4))
            records += refused
        data.log.sync()
        assert data.log.last_zxid == make_zxid(1, len(records))
        assert open_directory(files.copy(), options=ONE_FILE)[1] == records
        files.free_bytes = None
        records_now = records + fill(data, [3], first=len(records) + 1)
        assert open_directory(files.copy(), options=ONE_FILE)[1] == records_now


def test_a_full_disk_while_rolling_keeps_the_old_file() -> None:
    for free in range(60):
        files = MemoryFiles()
        data, _ = open_directory(files)
        records = fill(data, [10])
        files.free_bytes = free
        more = [record(make_zxid(1, 11 + i), 20) for i in range(9)]
        with pytest.raises(DiskFullError):
            data.log.append(more, make_zxid(1, 19))
        files.free_bytes = None
        assert open_directory(files.copy())[1] == records
        data.log.append(more, make_zxid(1, 19))
        data.log.sync()
        assert open_directory(files.copy())[1] == records + more


def test_a_truncation_that_fails_after_a_full_disk_ends_the_log() -> None:
    files = MemoryFiles()
    data, _ = open_directory(files, options=ONE_FILE)
    records = fill(data, [1])
    files.free_bytes = 3
    files.nodes_locked = True
    data.log._allocated = 1 << 20  # no reservation on the way
    files.fail_truncate = True
    with pytest.raises(LogOfflineError, match="truncate"):
        data.log.append([record(make_zxid(1, 2))], make_zxid(1, 2))
    files.fail_truncate, files.free_bytes = False, None
    with pytest.raises(LogOfflineError):
        data.log.append([record(make_zxid(1, 2))], make_zxid(1, 2))
    assert open_directory(files.copy(), options=ONE_FILE)[1] == records


def test_a_failed_sync_or_write_ends_the_log_for_good() -> None:
    """ST5. No retry: the page cache can no longer be trusted."""
    files = MemoryFiles()
    data, _ = open_directory(files, options=ONE_FILE)
    data.log.append([record(make_zxid(1, 1))], make_zxid(1, 1))
    files.fail_sync = True
    with pytest.raises(LogOfflineError):
        data.log.sync()
    files.fail_sync = False
    with pytest.raises(LogOfflineError):
        data.log.sync()
    assert data.log.durable_zxid == 0

    files = MemoryFiles()
    data, _ = open_directory(files, options=ONE_FILE)
    files.write_error, files.free_bytes = errno.EIO, 10
    with pytest.raises(LogOfflineError):
        data.log.append([record(make_zxid(1, 1))], make_zxid(1, 1))


def test_records_are_found_by_zxid_across_files_and_epochs() -> None:
    files = MemoryFiles()
    data, _ = open_directory(files)
    records = fill(data, [3, 4, 10, 9]) + fill(data, [2, 20, 1], epoch=2)
    all_zxids = zxids(records)
    for zxid in [0, *all_zxids]:
        expected = [each for each in records if int.from_bytes(each[:8], "big") > zxid]
        assert list(data.log.read_from(zxid)) == expected
    data.log.append([record(make_zxid(2, 24))], make_zxid(2, 24))
    assert list(data.log.read_from(0)) == records, "what is not durable is not given away"


def test_truncation_to_any_zxid_takes_exactly_the_tail() -> None:
    """ZR2: in the middle of a group, at its border, in an older file."""
    files = MemoryFiles()
    data, _ = open_directory(files)
    records = fill(data, [3, 4, 10, 9]) + fill(data, [2, 20, 1], epoch=2)
    data.close()
    for zxid in [0, *zxids(records)]:
        disk = files.copy()
        data, _ = open_directory(disk)
        data.log.truncate_to(zxid)
        expected = [each for each in records if int.from_bytes(each[:8], "big") <= zxid]
        assert data.log.last_zxid == zxid
        assert list(data.log.read_from(0)) == expected
        assert open_directory(disk.copy())[1] == expected
        more = fill(data, [2], epoch=3)
        assert open_directory(disk.copy())[1] == expected + more


def test_purge_keeps_what_is_needed_after_a_zxid() -> None:
    files = MemoryFiles()
    data, _ = open_directory(files)
    records = fill(data, [10] * 6)
    bases = log_files(files, DIRECTORY)
    data.log.purge(bases[2] + 1)
    assert log_files(files, DIRECTORY) == bases[2:]
    assert data.log.first_zxid_before == bases[2]
    kept = [each for each in records if int.from_bytes(each[:8], "big") > bases[2]]
    assert list(data.log.read_from(bases[2])) == kept
    data.log.purge(1 << 62)
    assert log_files(files, DIRECTORY) == bases[-1:]


@pytest.mark.parametrize("options", [ONE_FILE, LogOptions(400, 128)])
def test_power_loss_keeps_every_synced_record_and_a_prefix_of_the_rest(options: LogOptions) -> None:
    """Un-synced groups of any number, each kept, dropped or torn; then the same once more."""
    for seed in range(300):
        rng = random.Random(seed)
        files = MemoryFiles()
        data, _ = open_directory(files, seed=seed, options=options)
        data.epochs.advance(1)
        acknowledged: list[bytes] = []
        counter = 0
        for _life in range(3):
            pending: list[bytes] = []
            for _ in range(rng.randint(1, 6)):
                records = [
                    record(make_zxid(1, counter + 1 + i), rng.randint(0, 60))
                    for i in range(rng.randint(1, 4))
                ]
                counter += len(records)
                data.log.append(records, make_zxid(1, counter))
                pending += records
                if data.log.durable_zxid:  # a roll syncs what was before it
                    synced = [
                        r for r in pending if int.from_bytes(r[:8], "big") <= data.log.durable_zxid
                    ]
                    acknowledged += synced
                    pending = pending[len(synced) :]
                if rng.random() < 0.6:
                    data.log.sync()
                    acknowledged, pending = acknowledged + pending, []
            files = files.after_power_loss(rng)
            data, found = open_directory(files, seed=rng.randrange(1 << 30), options=options)
            assert found[: len(acknowledged)] == acknowledged, seed
            assert found == (acknowledged + pending)[: len(found)], seed
            counter = len(found)
            acknowledged = found
            again = files.after_power_loss(random.Random(seed))
            assert open_directory(again, options=options)[1] == found, seed


def test_what_a_killed_process_left_unsynced_is_durable_once_it_was_recovered() -> None:
    """The page cache outlives a kill: its records are served again, so they must stay."""
    for seed in range(50):
        files = MemoryFiles()
        data, _ = open_directory(files, options=ONE_FILE)
        records = fill(data, [2])
        unsynced = [record(make_zxid(1, 3))]
        data.log.append(unsynced, make_zxid(1, 3))
        assert open_directory(files, options=ONE_FILE)[1] == records + unsynced
        survived = files.after_power_loss(random.Random(seed))
        assert open_directory(survived, options=ONE_FILE)[1] == records + unsynced


def test_a_group_that_is_written_durably_needs_no_mark_until_it_is_quiet() -> None:
    files = MemoryFiles()
    data, _ = open_directory(files, options=ONE_FILE)
    data.epochs.advance(1)
    records = [record(make_zxid(1, number)) for number in (1, 2, 3)]
    for number, each in enumerate(records, 1):
        before = files.sync_count
        data.log.append_durably([each], make_zxid(1, number))
        assert (files.sync_count, data.log.durable_zxid) == (before + 1, make_zxid(1, number))
    end = HEADER_BYTES + sum(GROUP_HEADER_BYTES + 4 + len(each) for each in records)

    def is_refused(position: int) -> bool:
        damaged = change(files, FIRST, lambda d: _flip(d, position, 0))
        try:
            open_directory(damaged, options=ONE_FILE)
        except CorruptRecordError:
            return True
        return False

    last_group = end - GROUP_HEADER_BYTES - 4 - len(records[-1])
    assert is_refused(last_group - 1), "the last group speaks for those before it"
    assert not is_refused(end - 1), "nothing speaks for the last one yet"
    before = files.sync_count
    data.log.mark()
    assert is_refused(end - 1) and files.sync_count == before
    written = bytes(files.nodes[FIRST].data)
    data.log.mark()
    assert bytes(files.nodes[FIRST].data) == written
    data.log.append_durably([record(make_zxid(1, 4))], make_zxid(1, 4))
    data.close()
    end = len(bytes(files.nodes[FIRST].data).rstrip(b"\0"))
    assert is_refused(end - GROUP_HEADER_BYTES - 1), "an orderly end leaves a mark"


def test_a_full_disk_takes_a_durable_group_back_whatever_failed() -> None:
    size = GROUP_HEADER_BYTES + 4 + len(record(make_zxid(1, 3)))
    for free in range(size + 1):
        files = MemoryFiles()
        data, _ = open_directory(files, options=ONE_FILE)
        records = fill(data, [2])
        files.free_bytes = free
        refused = record(make_zxid(1, 3))
        if free < size:
            with pytest.raises(DiskFullError):
                data.log.append_durably([refused], make_zxid(1, 3))
            assert data.log.durable_zxid == make_zxid(1, 2)
            files.free_bytes = None
            data.log.append_durably([refused], make_zxid(1, 3))
        else:
            data.log.append_durably([refused], make_zxid(1, 3))
        assert open_directory(files.copy(), options=ONE_FILE)[1] == [*records, refused]


def test_a_durable_group_whose_sync_fails_ends_the_log_for_good() -> None:
    files = MemoryFiles()
    data, _ = open_directory(files, options=ONE_FILE)
    files.fail_sync = True
    with pytest.raises(LogOfflineError):
        data.log.append_durably([record(make_zxid(1, 1))], make_zxid(1, 1))
    files.fail_sync = False
    with pytest.raises(LogOfflineError):
        data.log.append_durably([record(make_zxid(1, 1))], make_zxid(1, 1))
    with pytest.raises(LogOfflineError):
        data.log.mark()
    assert data.log.durable_zxid == 0
    data.close()


def test_a_group_that_was_refused_for_its_sync_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A quota, or a disk far away, may notice only then; the whole group is in the file."""
    files = MemoryFiles()
    data, _ = open_directory(files, options=ONE_FILE)
    records = fill(data, [2])
    file = data.log._file
    assert file is not None

    def write_only(buffers: Sequence[Buffer], position: int) -> None:
        file.pwritev(buffers, position)
        raise OSError(errno.EDQUOT, "injected")

    monkeypatch.setattr(file, "pwritev_durably", write_only)
    with pytest.raises(DiskFullError):
        data.log.append_durably([record(make_zxid(1, 3))], make_zxid(1, 3))
    assert not files.nodes[FIRST].unsynced, "nor after a power loss"
    assert open_directory(files.copy(), options=ONE_FILE)[1] == records


def test_a_mark_that_comes_behind_the_end_of_the_log_is_none() -> None:
    files = MemoryFiles()
    data, _ = open_directory(files, options=ONE_FILE)
    fill(data, [1])
    data.close()
    written = bytes(files.nodes[FIRST].data)
    data.log.mark()
    assert bytes(files.nodes[FIRST].data) == written
