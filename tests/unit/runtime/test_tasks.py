"""A daemon's process: signals stop it in order, failures end it with a code and a reason."""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from duolog_protocol.errors import ConfigError, DataDirectoryError
from duolog_runtime.logs import DaemonLogs
from duolog_runtime.tasks import (
    announce,
    first_of,
    loop_factory,
    refuse_optimized_python,
    run_daemon,
)
from tests.support import until

ROOT = Path(__file__).resolve().parents[3]
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


def logged(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@LOOPS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_an_orderly_stop(loop: str, number: signal.Signals) -> None:
    stream = io.StringIO()
    steps: list[str] = []

    async def main(tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        os.kill(os.getpid(), number)
        await stop.wait()
        steps.append("flushed")

    before = signal.getsignal(number)
    assert run_daemon(main, logs=DaemonLogs(stream=stream), loop=loop) == 0
    assert steps == ["flushed"]
    assert logged(stream)[0]["event"] == "stop_requested"
    assert logged(stream)[0]["signal"] == number.name
    assert signal.getsignal(number) in {before, signal.SIG_DFL}
    signal.signal(number, before)


@LOOPS
def test_a_second_signal_does_not_wait(loop: str) -> None:
    stream = io.StringIO()
    cleaned: list[str] = []

    async def main(tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()  # a shutdown that hangs
        finally:
            cleaned.append("closed")

    assert run_daemon(main, logs=DaemonLogs(stream=stream), loop=loop) == 130
    assert cleaned == ["closed"]
    assert logged(stream)[-1]["event"] == "stop_forced"


@LOOPS
def test_the_first_signal_after_the_daemon_stopped_itself_is_no_second_one(loop: str) -> None:
    stream = io.StringIO()
    steps: list[str] = []

    async def main(tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        stop.set()
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: bool(stream.getvalue()))
        steps.append("flushed")

    logs = DaemonLogs(stream=stream)
    logs.open()
    assert run_daemon(main, logs=logs, loop=loop) == 0
    assert steps == ["flushed"]


@LOOPS
def test_no_task_outlives_main(loop: str) -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def main(tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        tasks.create_task(forever(), name="forever")
        await asyncio.sleep(0)

    assert run_daemon(main, logs=DaemonLogs(stream=io.StringIO()), loop=loop) == 0
    assert ended == ["cancelled"]


def test_a_task_that_fails_ends_the_daemon_with_a_traceback() -> None:
    stream = io.StringIO()

    async def broken() -> None:
        raise AssertionError("the invariant")

    async def main(tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        tasks.create_task(broken(), name="broken")
        await stop.wait()

    assert run_daemon(main, logs=DaemonLogs(stream=stream)) == 1
    assert logged(stream)[0]["event"] == "daemon_failed"
    assert "the invariant" in str(logged(stream)[0]["exception"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataDirectoryError("/data is of server 2"), 2),
        (ConfigError("port", 1, "is in use"), 2),
        (OSError(98, "Address already in use"), 1),
    ],
)
def test_an_expected_failure_is_one_sentence(error: Exception, code: int) -> None:
    stream = io.StringIO()

    async def main(tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        raise error

    assert run_daemon(main, logs=DaemonLogs(stream=stream)) == code
    (line,) = logged(stream)
    assert str(error) in str(line["reason"]) and "exception" not in line


@LOOPS
def test_an_assertion_in_a_callback_ends_the_daemon(loop: str) -> None:
    stream = io.StringIO()

    def callback() -> None:
        raise AssertionError("the invariant")

    async def main(tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        asyncio.get_running_loop().call_soon(callback)
        await stop.wait()

    assert run_daemon(main, logs=DaemonLogs(stream=stream), loop=loop) == 1
    assert logged(stream)[0]["event"] == "callback_failed"


@LOOPS
def test_another_error_in_a_callback_is_reported_and_the_daemon_lives(loop: str) -> None:
    stream = io.StringIO()

    def callback() -> None:
        raise OSError("the peer is gone")

    async def main(tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        asyncio.get_running_loop().call_soon(callback)
        for _ in range(5):
            await asyncio.sleep(0)

    assert run_daemon(main, logs=DaemonLogs(stream=stream), loop=loop) == 0
    assert logged(stream)[0]["event"] == "callback_failed"


def test_the_loop_is_chosen_by_name() -> None:
    for name, module in (("asyncio", "asyncio"), ("uvloop", "uvloop"), ("auto", "uvloop")):
        loop = loop_factory(name)()
        assert type(loop).__module__.startswith(module)
        loop.close()
    with pytest.raises(ConfigError, match="auto, uvloop, asyncio"):
        loop_factory("trio")


def test_uvloop_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = loop_factory("auto")()
    assert type(loop).__module__.startswith("asyncio")
    loop.close()
    with pytest.raises(ConfigError, match="not installed"):
        loop_factory("uvloop")


def test_the_first_line_is_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    announce(service="zkserver", host="127.0.0.1", port=2181)
    assert json.loads(capsys.readouterr().out) == {
        "service": "zkserver",
        "host": "127.0.0.1",
        "port": 2181,
    }


def test_python_without_assertions_is_refused() -> None:
    refuse_optimized_python()
    code = "from duolog_runtime.tasks import refuse_optimized_python as r; r(); print('runs')"
    path = f"{ROOT / 'protocol'}:{ROOT / 'runtime'}"
    result = subprocess.run(
        [sys.executable, "-O", "-c", code],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "without -O" in result.stderr and result.stdout == ""


def test_a_daemon_may_open_as_many_files_as_the_system_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _which, pair: limits.append(pair))

    async def main(tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        assert limits == [(4096, 4096)]

    assert run_daemon(main, logs=DaemonLogs(stream=io.StringIO())) == 0


def test_the_first_of_our_errors_stands_for_a_group() -> None:
    ours = ConfigError("port", 1, "is in use")
    group = BaseExceptionGroup("", [OSError(), BaseExceptionGroup("", [ours, KeyboardInterrupt()])])
    assert first_of(group) is ours
    assert isinstance(first_of(BaseExceptionGroup("", [OSError()])), OSError)
