"""How a daemon's process runs: loop, signals, root task group, first line, exit code.

Owns nothing of what the daemon does. `run_daemon` is the only place that makes a loop; everything
below is given the loop it runs on. Orderly stop is an event that `main` waits for; its shutdown is
then a readable list, and no task outlives it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

from duolog_protocol.errors import ConfigError, DataDirectoryError, Error

from .heap import set_survivors_aside
from .logs import DaemonLogs

LOOPS: Final = ("auto", "uvloop", "asyncio")
LOGS_OPEN_AFTER_S: Final = 0.5
"""Loading the log library holds the loop for tens of milliseconds; a start-up is over by then."""
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

Main = Callable[[asyncio.TaskGroup, asyncio.Event], Coroutine[Any, Any, None]]


def refuse_optimized_python() -> None:
    """Assertions guard the data and stay on: stop under `python -O`."""
    if not __debug__:
        raise SystemExit("run without -O and PYTHONOPTIMIZE: the assertions protect the data")


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows it: a shell gives it 1,024.

    Every connection and every segment that is written to is one.
    """
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return  # macOS has a lower limit that it does not tell; 1,024 must do there


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the loop called `name`: uvloop, asyncio, or auto (uvloop where it is installed).

    Raises ConfigError.
    """
    if name not in LOOPS:
        raise ConfigError("loop", name, f"must be one of {', '.join(LOOPS)}")
    if name != "asyncio":
        try:
            import uvloop
        except ImportError:
            if name == "uvloop":
                raise ConfigError("loop", name, "uvloop is not installed here") from None
        else:
            factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
            return factory
    return asyncio.new_event_loop


def announce(**values: Any) -> None:
    """Print the line that tells a parent process where this daemon listens: one JSON object.

    It is the first line on stdout, written once the port answers.
    """
    import json

    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def run_daemon(main: Main, *, logs: DaemonLogs, loop: str = "auto") -> int:
    """Run `main(tasks, stop)` until it returns; the result is the process's exit code.

    `tasks` is the root group: a task of it that fails ends the daemon, with 1; what is still
    running when `main` returns is cancelled. `stop` is set by SIGINT or SIGTERM, or by `main`; a
    second signal cancels everything, with 130. An assertion that fails in a callback of the loop
    ends it too. What the person who started it must change (a setting, the directory) ends it
    with 2.
    """
    log = logs.logger()
    set_survivors_aside()
    raise_file_limit()
    try:
        with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
            return runner.run(_run_root(main, logs))
    except BaseExceptionGroup as group:
        leaves = _leaves(group)
        for error in leaves:
            _report(logs, error)
        return max(map(_exit_code, leaves))
    except asyncio.CancelledError:
        log.error("stop_forced")
        return 130
    except (Error, OSError) as error:
        _report(logs, error)
        return _exit_code(error)
    finally:
        logs.close()


class _Finished(Exception):
    """`main` has returned: take the remaining tasks down."""


async def _run_root(main: Main, logs: DaemonLogs) -> int:
    loop = asyncio.get_running_loop()
    log = logs.logger()
    root = asyncio.current_task()
    assert root is not None
    stop = asyncio.Event()
    failed: list[BaseException] = []
    signals_count = 0

    def on_signal(number: signal.Signals) -> None:
        nonlocal signals_count
        signals_count += 1  # `stop` may have been set by the daemon itself
        if signals_count > 1:
            root.cancel()
        else:
            log.info("stop_requested", signal=number.name)
            stop.set()

    def on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        log.error("callback_failed", reason=context.get("message"), exc_info=error)
        if isinstance(error, AssertionError):  # the state can no longer be trusted
            failed.append(error)
            root.cancel()

    loop.set_exception_handler(on_loop_error)
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    opening = loop.call_later(LOGS_OPEN_AFTER_S, logs.open)
    try:
        try:
            async with asyncio.TaskGroup() as tasks:
                await main(tasks, stop)
                raise _Finished
        except* _Finished:
            pass
    except asyncio.CancelledError:
        if not failed:
            raise
    finally:
        opening.cancel()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
    return 1 if failed else 0


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error of a group: the first of ours, where there is one."""
    leaves = _leaves(group)
    return next((each for each in leaves if isinstance(each, Error)), leaves[0])


def _exit_code(error: BaseException) -> int:
    return 2 if isinstance(error, ConfigError | DataDirectoryError) else 1


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


def _report(logs: DaemonLogs, error: BaseException) -> None:
    """Log once what nobody could catch: a sentence where it is ours, else the traceback."""
    log = logs.logger()
    if isinstance(error, Error | OSError):
        log.error("daemon_failed", reason=f"{type(error).__name__}: {error}")
    else:
        log.error("daemon_failed", exc_info=error)
