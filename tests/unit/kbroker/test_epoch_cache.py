"""Leader epochs of a log: KIP-101's questions, and what each truncation leaves."""

from __future__ import annotations

import pytest

from kbroker.storage.epoch_cache import EpochCache, read_entries
from tests.unit.kbroker.storage_support import MemoryFiles

PATH = "d/leader-epoch-checkpoint"


def cache(*entries: tuple[int, int]) -> EpochCache:
    made = EpochCache(MemoryFiles(), PATH)
    for epoch, start in entries:
        made.assign(epoch, start)
    return made


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (7, (7, 100)),  # the latest epoch ends at the log end
        (8, (-1, -1)),  # above the latest: undefined
        (-1, (-1, -1)),
        (5, (4, 30)),  # KIP-279: the largest known one below, and where it ended
        (4, (4, 30)),
        (2, (2, 10)),
        (1, (1, 3)),  # below the first: the first one's start
    ],
)
def test_where_an_epoch_ended(asked: int, answer: tuple[int, int]) -> None:
    assert cache((2, 3), (4, 10), (7, 30)).end_offset_for(asked, 100) == answer


def test_an_empty_cache_knows_nothing() -> None:
    empty = cache()
    assert empty.end_offset_for(0, 10) == (-1, -1)
    assert (empty.latest_epoch, empty.latest_start_offset) == (-1, -1)
    assert empty.epoch_for_offset(5) == -1


def test_assigning_removes_what_contradicts_the_new_entry() -> None:
    made = cache((2, 3), (4, 10), (7, 30))
    assert not made.assign(7, 50)
    assert made.assign(8, 20)
    assert made.entries == [(2, 3), (4, 10), (8, 20)]
    assert made.assign(3, 40)
    assert made.entries == [(2, 3), (3, 40)]


@pytest.mark.parametrize(
    ("offset", "kept"),
    [(31, 3), (30, 2), (11, 2), (10, 1), (3, 0), (0, 0)],
)
def test_truncation_from_the_end_forgets_later_epochs(offset: int, kept: int) -> None:
    made = cache((2, 3), (4, 10), (7, 30))
    made.truncate_from_end(offset)
    assert made.entries == [(2, 3), (4, 10), (7, 30)][:kept]


@pytest.mark.parametrize(
    ("offset", "entries"),
    [
        (0, [(2, 3), (4, 10), (7, 30)]),
        (3, [(2, 3), (4, 10), (7, 30)]),
        (5, [(2, 5), (4, 10), (7, 30)]),
        (10, [(4, 10), (7, 30)]),
        (99, [(7, 99)]),
    ],
)
def test_truncation_from_the_start_moves_the_first_epoch(
    offset: int, entries: list[tuple[int, int]]
) -> None:
    made = cache((2, 3), (4, 10), (7, 30))
    made.truncate_from_start(offset)
    assert made.entries == entries
    assert [made.epoch_for_offset(at) for at in (10, 29, 30)] == [
        cache((2, 3), (4, 10), (7, 30)).epoch_for_offset(at) if at >= offset else -1
        for at in (10, 29, 30)
    ]


def test_the_file_follows_and_a_full_disk_changes_neither() -> None:
    files = MemoryFiles()
    made = EpochCache(files, PATH)
    made.assign(1, 0)
    made.assign(5, 17)
    assert bytes(files.nodes[PATH].data) == b"0\n2\n1 0\n5 17\n"
    assert read_entries(files, PATH) == made.entries
    files.free_bytes = 3
    with pytest.raises(OSError, match="injected"):
        made.assign(6, 20)
    assert made.entries == [(1, 0), (5, 17)] == read_entries(files, PATH)


@pytest.mark.parametrize(
    "text",
    [b"", b"1\n0\n", b"0\n1\n5\n", b"0\n2\n5 1\n4 9\n", b"0\n1\na b\n", b"0\n2\n1 1\n", b"\xff"],
)
def test_an_unreadable_file_is_as_good_as_none(text: bytes) -> None:
    files = MemoryFiles()
    files.open(PATH, create=True).pwrite(text, 0)
    assert read_entries(files, PATH) is None
    assert read_entries(files, "d/other") is None
