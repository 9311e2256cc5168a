"""Lines of the daemons: JSON or pretty, loaded late without losing or re-dating an event."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from duolog_protocol.errors import ConfigError
from duolog_runtime.clocks import ManualClock
from duolog_runtime.logs import MAX_WAITING, DaemonLogs, Logger, RecordingLogger

ROOT = Path(__file__).resolve().parents[3]


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_early_events_wait_and_keep_their_own_time() -> None:
    stream, clock = io.StringIO(), ManualClock(wall_ms=0)
    logs = DaemonLogs(stream=stream, clock=clock)
    log = logs.logger(server_id=1)
    log.info("server_started", port=2181)
    clock.advance(1_500)
    assert stream.getvalue() == ""
    logs.open()
    log.bind(peer="x").info("peer_seen")
    assert lines(stream) == [
        {
            "event": "server_started",
            "level": "info",
            "port": 2181,
            "server_id": 1,
            "timestamp": "1970-01-01T00:00:00.000Z",
        },
        {
            "event": "peer_seen",
            "level": "info",
            "peer": "x",
            "server_id": 1,
            "timestamp": "1970-01-01T00:00:01.500Z",
        },
    ]


def test_a_warning_is_written_at_once_after_what_waited() -> None:
    stream = io.StringIO()
    log = DaemonLogs(stream=stream).logger()
    log.info("first_done")
    log.warning("second_failed")
    assert [line["event"] for line in lines(stream)] == ["first_done", "second_failed"]


def test_waiting_is_bounded() -> None:
    stream = io.StringIO()
    log = DaemonLogs(stream=stream).logger()
    for number in range(MAX_WAITING + 1):
        log.info("thing_happened", number=number)
    assert [line["number"] for line in lines(stream)] == list(range(MAX_WAITING + 1))


def test_the_end_of_the_process_writes_what_waits() -> None:
    stream = io.StringIO()
    logs = DaemonLogs(stream=stream)
    logs.logger().info("server_stopped")
    logs.close()
    assert [line["event"] for line in lines(stream)] == ["server_stopped"]


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["a", "b", "c", "d"]),
        ("info", ["b", "c", "d"]),
        ("warning", ["c", "d"]),
        ("error", ["d"]),
    ],
)
def test_levels_filter(level: str, events: list[str]) -> None:
    stream = io.StringIO()
    logs = DaemonLogs(level, stream=stream)
    log = logs.logger()
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    logs.open()
    assert [line["event"] for line in lines(stream)] == events


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="debug, info, warning, error"):
        DaemonLogs("loud")


def test_an_exception_becomes_a_traceback() -> None:
    for pretty in (False, True):
        stream = io.StringIO()
        log = DaemonLogs(stream=stream, pretty=pretty).logger()
        try:
            raise ValueError("a bug")
        except ValueError as error:
            log.error("task_failed", exc_info=error)
        assert "ValueError: a bug" in stream.getvalue()
        assert "Traceback" in stream.getvalue()


def test_a_person_reads_another_form() -> None:
    stream = io.StringIO()
    logs = DaemonLogs(stream=stream, pretty=True)
    logs.logger().warning("isr_shrunk", isr=[1, 2])
    assert "isr_shrunk" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_a_reader_that_went_away_does_not_stop_the_daemon() -> None:
    stream = io.StringIO()
    logs = DaemonLogs(stream=stream)
    log = logs.logger()
    log.warning("a")
    stream.close()
    log.warning("b")
    assert logs.lost_count == 1


def test_starting_does_not_load_the_log_library() -> None:
    """A fresh interpreter that only makes a logger and logs an info event has no structlog."""
    code = (
        "import sys; from duolog_runtime.logs import DaemonLogs;"
        "DaemonLogs().logger(a=1).info('server_started');"
        "assert 'structlog' not in sys.modules and 'rich' not in sys.modules"
    )
    path = f"{ROOT / 'protocol'}:{ROOT / 'runtime'}"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=True)


def test_tests_record_events_of_everything_bound() -> None:
    log = RecordingLogger()
    below: Logger = log.bind(topic="t").bind(partition=0)
    below.info("segment_rolled", base_offset=7)
    log.error("log_failed")
    below.debug("read_served")
    below.warning("queue_full")
    assert log.events == ["segment_rolled", "log_failed", "read_served", "queue_full"]
    assert log.records[0] == (
        "info",
        "segment_rolled",
        {"topic": "t", "partition": 0, "base_offset": 7},
    )
