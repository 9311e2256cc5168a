"""Reads that have to wait for the disk thread never keep out what must not be refused."""

from __future__ import annotations

from collections.abc import Sequence

from duolog_protocol.codec import Piece
from duolog_runtime.disk import InlineDisk
from kbroker.server.delayed import ColdReads

Pieces = list[Sequence[Piece]]


def test_only_so_many_cold_reads_wait_for_the_disk_and_the_rest_is_refused_at_once() -> None:
    disk = InlineDisk(immediate=False, max_pending=3)
    reads = ColdReads(disk, max_pending=2)
    outcomes: list[Pieces | None] = []
    for _ in range(3):
        reads.submit(lambda: [(b"x",)], outcomes.append)
    assert outcomes == [None]
    disk.submit(lambda: None, lambda _result, _error: None)  # a sync still finds room
    disk.run_pending()
    assert outcomes == [None, [(b"x",)], [(b"x",)]]
    assert reads.pending == 0


def test_a_disk_that_refuses_a_cold_read_costs_that_read_only() -> None:
    disk = InlineDisk(immediate=False, max_pending=0)
    reads = ColdReads(disk)
    outcomes: list[Pieces | None] = []
    reads.submit(list, outcomes.append)
    assert outcomes == [None]
    assert reads.pending == 0
