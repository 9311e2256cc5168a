"""A command that may run only while a lock is held, with all that it starts.

Owns its process group: a session of its own, so that nothing it started outlives the doubt by not
being its child. What the terminal would have told the command (Ctrl-C, the end of the terminal)
is therefore passed on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

GRACE_S: Final = 2.0
"""From SIGTERM to SIGKILL; less than remains of a session when its connection is found silent."""
_LOOK_S: Final = 0.02
_PASSED_ON: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
"""Also the one of Ctrl-Z: were only this process stopped, nobody would keep the lock."""


async def run_held(
    command: Sequence[str], environment: dict[str, str], doubt: asyncio.Event
) -> int:
    """Run a command and return its return code, negative for a signal.

    When `doubt` is set, or this is cancelled, its whole group is stopped first: SIGTERM, and
    SIGKILL after GRACE_S. Raises OSError when it cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, start_new_session=True
    )
    group = process.pid
    ending = asyncio.ensure_future(process.wait())
    doubting = asyncio.ensure_future(doubt.wait())
    with _signals_passed_on_to(group):
        try:
            await asyncio.wait({ending, doubting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            doubting.cancel()
            if doubt.is_set() or not ending.done():
                await _stop(group)
        return await ending


async def _stop(group: int) -> None:
    try:
        _signal(group, signal.SIGTERM)
        async with asyncio.timeout(GRACE_S):
            while _signal(group, 0):  # noqa: ASYNC110 - nobody tells the end of a grandchild
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        return
    finally:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Whether there was anybody in the group to be told; 0 only asks."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter: only ended ones, on macOS
        return False
    return True


@contextmanager
def _signals_passed_on_to(group: int) -> Iterator[None]:
    """Only the main thread hears signals; elsewhere this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in _PASSED_ON:
        loop.add_signal_handler(number, _signal, group, number)
    try:
        yield
    finally:
        for number in _PASSED_ON:
            loop.remove_signal_handler(number)
