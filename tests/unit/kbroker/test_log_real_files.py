"""The same log on the operating system's files: append, roll, flush, delete, close, open again."""

from __future__ import annotations

from pathlib import Path

import pytest

from duolog_runtime.files import RealFiles
from kbroker.core.producer_state import ProducerStates
from kbroker.storage.checkpoints import LogDirCheckpoints
from kbroker.storage.recovery import RecoveryReport, create_log, open_log
from kbroker.storage.retention import StartOffsetReason
from tests.unit.kbroker.storage_support import PARTITION, append, batch, content, small_config


@pytest.mark.parametrize("clean", [True, False])
def test_a_log_on_disk_lives_through_a_restart(tmp_path: Path, clean: bool) -> None:
    files = RealFiles()
    checkpoints = LogDirCheckpoints(files, str(tmp_path))
    directory = str(tmp_path / "t-0")
    log = create_log(
        files,
        directory,
        config=small_config(),
        checkpoints=checkpoints.partition(PARTITION),
        producers=ProducerStates(),
        wall_ms=0,
    )
    for offset in range(0, 40, 2):
        append(log, batch(offset, 2, epoch=offset // 15, producer=(7, 0, offset)))
    part = log.read(10, max_bytes=150, end_offset=40)
    assert part.read() == part.read_cached() == (batch(10, 2, producer=(7, 0, 10)),)
    assert log.flush() == 40
    log.advance_log_start_offset(13)
    log.unlink_deleted(log.delete_hidden_segments(StartOffsetReason.DELETE_RECORDS))
    expected = content(log)
    if clean:
        log.close()
    else:
        log.abandon()
    checkpoints.write()
    report = RecoveryReport()
    producers = ProducerStates()
    again = open_log(
        files,
        directory,
        config=small_config(),
        checkpoints=LogDirCheckpoints(files, str(tmp_path)).partition(PARTITION),
        producers=producers,
        clean=clean,
        wall_ms=0,
        report=report,
    )
    assert report.clean is clean
    assert content(again) == expected
    assert (again.log_start_offset, again.log_end_offset) == (13, 40)
    assert [row[2] for row in producers.snapshot()] == [31, 33, 35, 37, 39]
    again.abandon()
