"""The disk executor: order, completions in the owner's loop, and an end that loses nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from duolog_runtime.disk import (
    DiskClosedError,
    DiskQueueFullError,
    DiskThread,
    InlineDisk,
    run_on_disk,
)
from tests.support import until


class Log:
    """Collects completions: (name, result, error's type)."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Any, type[BaseException] | None]] = []

    def __call__(self, name: str) -> Callable[[Any, BaseException | None], None]:
        def done(result: Any, error: BaseException | None) -> None:
            self.done.append((name, result, type(error) if error else None))

        return done

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.done]


def fail() -> None:
    raise OSError("broken")


async def test_work_runs_in_order_in_one_thread_and_completes_in_the_loop() -> None:
    disk = DiskThread(asyncio.get_running_loop(), "log-0")
    threads: list[str] = []
    homes: list[threading.Thread] = []
    log = Log()
    for number in range(50):

        def work(number: int = number) -> int:
            threads.append(threading.current_thread().name)
            return number

        disk.submit(work, log(str(number)))
    disk.submit(lambda: None, lambda result, error: homes.append(threading.current_thread()))
    await until(lambda: disk.pending == 0)
    assert log.done == [(str(number), number, None) for number in range(50)]
    assert set(threads) == {"log-0"}
    assert homes == [threading.current_thread()]
    disk.close()


async def test_a_failure_is_a_completion_like_any_other() -> None:
    disk = DiskThread(asyncio.get_running_loop(), "log-0")
    log = Log()
    disk.submit(fail, log("failed"))
    disk.submit(lambda: 1, log("next"))
    await until(lambda: disk.pending == 0)
    assert log.done == [("failed", None, OSError), ("next", 1, None)]
    disk.close()


async def test_completions_that_are_ready_together_wake_the_loop_once() -> None:
    loop = asyncio.get_running_loop()
    wakes = []

    class Counting:
        def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
            wakes.append(callback)
            loop.call_soon_threadsafe(callback)

        def is_closed(self) -> bool:
            return False

    disk = DiskThread(Counting(), "log-0")  # type: ignore[arg-type]
    log = Log()
    worked = threading.Event()
    for number in range(20):
        disk.submit(lambda: None, log(str(number)))
    disk.submit(worked.set, log("last"))
    worked.wait()  # the loop stands still meanwhile, as under load
    await until(lambda: disk.pending == 0)
    assert log.names[-1] == "last"
    assert len(wakes) <= 2
    disk.close()


async def test_closing_waits_for_the_sync_that_has_started_and_refuses_the_rest() -> None:
    disk = DiskThread(asyncio.get_running_loop(), "log-0")
    started, go_on = threading.Event(), threading.Event()
    log = Log()

    def slow_sync() -> str:
        started.set()
        go_on.wait()
        return "synced"

    disk.submit(slow_sync, log("sync"))
    disk.submit(lambda: "never", log("queued"))
    started.wait()
    asyncio.get_running_loop().call_soon(lambda: None)
    threading.Timer(0.01, go_on.set).start()
    disk.close()
    assert log.done == [("sync", "synced", None), ("queued", None, DiskClosedError)]
    with pytest.raises(DiskClosedError):
        disk.submit(lambda: None, log("late"))
    disk.close()


async def test_closing_does_not_wait_for_ever_for_work_that_hangs() -> None:
    disk = DiskThread(asyncio.get_running_loop(), "log-0")
    started, go_on = threading.Event(), threading.Event()
    log = Log()

    def hang() -> None:
        started.set()
        go_on.wait()

    disk.submit(hang, log("sync"))
    disk.submit(lambda: "never", log("queued"))
    started.wait()
    disk.close(0.01)
    assert log.done == []
    go_on.set()
    await until(lambda: disk.pending == 0)
    assert log.done == [("sync", None, None), ("queued", None, DiskClosedError)]


async def test_the_queue_is_bounded() -> None:
    disk = DiskThread(asyncio.get_running_loop(), "log-0", max_pending=2)
    go_on = threading.Event()
    log = Log()
    disk.submit(go_on.wait, log("a"))
    disk.submit(lambda: None, log("b"))
    with pytest.raises(DiskQueueFullError) as caught:
        disk.submit(lambda: None, log("c"))
    assert caught.value.retriable and caught.value.definite
    go_on.set()
    await until(lambda: disk.pending == 0)
    assert log.names == ["a", "b"]
    disk.close()


async def test_a_completion_that_raises_does_not_swallow_the_next_ones() -> None:
    loop = asyncio.get_running_loop()
    reported: list[Any] = []
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    disk = DiskThread(loop, "log-0")
    log = Log()
    worked = threading.Event()

    def bad(result: Any, error: BaseException | None) -> None:
        raise ValueError("a bug of the owner")

    disk.submit(lambda: None, bad)
    disk.submit(worked.set, log("next"))
    worked.wait()
    await until(lambda: disk.pending == 0)
    assert log.names == ["next"]
    assert [type(error) for error in reported] == [ValueError]
    disk.close()


def test_an_executor_whose_loop_has_ended_still_closes() -> None:
    loop = asyncio.new_event_loop()
    disk = DiskThread(loop, "log-0")
    loop.close()
    log = Log()
    disk.submit(lambda: 1, log("a"))
    disk.close()
    assert log.names == ["a"]


async def test_awaiting_work() -> None:
    disk = DiskThread(asyncio.get_running_loop(), "log-0")
    assert await run_on_disk(disk, lambda: 42) == 42
    with pytest.raises(OSError, match="broken"):
        await run_on_disk(disk, fail)
    disk.close()


async def test_cancelling_the_wait_does_not_stop_the_work() -> None:
    disk = DiskThread(asyncio.get_running_loop(), "log-0")
    started, go_on, finished = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go_on.wait()
        finished.set()

    waiting = asyncio.get_running_loop().create_task(run_on_disk(disk, work))
    await until(started.is_set)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    await until(lambda: disk.pending == 0)
    assert finished.is_set()
    disk.close()


def test_the_inline_executor_completes_inside_submit_in_order() -> None:
    disk = InlineDisk()
    log = Log()

    def submit_another(result: Any, error: BaseException | None) -> None:
        disk.submit(lambda: 2, log("second"))
        log("first")(result, error)

    disk.submit(lambda: 1, submit_another)
    assert log.done == [("first", 1, None), ("second", 2, None)]
    assert disk.pending == 0


def test_the_stepped_executor_separates_work_from_its_completion() -> None:
    disk = InlineDisk(immediate=False)
    log = Log()
    worked: list[int] = []
    disk.submit(lambda: worked.append(1), log("a"))
    disk.submit(fail, log("b"))
    assert not worked
    assert disk.run_work() and worked and not log.done
    assert disk.deliver() and log.names == ["a"]
    assert not disk.deliver()
    disk.run_pending()
    assert log.done[1] == ("b", None, OSError)
    assert not disk.run_work()


def test_a_process_that_died_hears_of_nothing() -> None:
    disk = InlineDisk(immediate=False)
    log = Log()
    disk.submit(lambda: None, log("a"))
    disk.submit(lambda: None, log("b"))
    disk.run_work()
    disk.abandon()
    disk.run_pending()
    disk.close()
    assert not log.done
    with pytest.raises(DiskClosedError):
        disk.submit(lambda: None, log("c"))


def test_closing_the_inline_executor_refuses_what_waits() -> None:
    disk = InlineDisk(immediate=False, max_pending=2)
    log = Log()
    disk.submit(lambda: 1, log("a"))
    disk.submit(lambda: 2, log("b"))
    with pytest.raises(DiskQueueFullError):
        disk.submit(lambda: 3, log("c"))
    disk.run_work()
    disk.close()
    assert log.done == [("a", 1, None), ("b", None, DiskClosedError)]


def test_a_power_loss_ends_whoever_runs_the_work() -> None:
    class PowerLoss(BaseException):
        pass

    def lose_power() -> None:
        raise PowerLoss

    disk = InlineDisk()
    log = Log()
    with pytest.raises(PowerLoss):
        disk.submit(lose_power, log("a"))
    assert not log.done
