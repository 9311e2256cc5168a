"""An event loop of virtual time: asyncio code runs unchanged, and nothing ever waits.

`SimLoop` is asyncio's own loop with another place to wait in: where a real one sleeps until a
socket or a timer is ready, this one moves the clock of a `Scheduler` to the next thing that
happens. A turn of the loop takes a microsecond, so that who only spins lets time pass, too.

What is called belongs to the process (`SimProcess`) in whose context it was asked for: callbacks of
a process that is over are not called any more, those of one that stands still are called later.
Connections go through the simulated network of that process. Threads and signals there are none.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Final

from .scheduler import Scheduler

if TYPE_CHECKING:
    from .process import SimProcess
    from .streams import SimListener

PROCESS: Final[contextvars.ContextVar[SimProcess | None]] = contextvars.ContextVar(
    "simulated process", default=None
)


class NothingHappensError(RuntimeError):
    """Everybody waits, and nothing is on its way to anybody."""


class NotSimulatedError(RuntimeError):
    """What was asked for is not there in a simulation."""


class Call:
    """What a process is to call."""

    __slots__ = ("args", "callback", "handle")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self.handle: asyncio.Handle | None = None
        """By which it may be cancelled."""


class _Waiting:
    """Stands where asyncio's loop has its selector."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def select(self, timeout_s: float | None) -> list[Any]:
        """Let time pass until something can be called, or for so long."""
        scheduler, loop = self._loop.scheduler, self._loop
        if timeout_s is None:
            while not loop.has_work:
                if not scheduler.run_next():
                    raise NothingHappensError("everybody waits, and nothing is on its way")
            return []
        until_us = scheduler.now_us + max(1, math.ceil(timeout_s * 1e6))
        while True:
            next_us = scheduler.next_moment_us
            if next_us is None or next_us > until_us:
                break
            scheduler.run_next()
            if loop.has_work and timeout_s > 0:
                return []
        scheduler.run_until(until_us)
        return []

    def close(self) -> None:
        """Called by asyncio."""


class SimLoop(asyncio.BaseEventLoop):
    """A loop whose time is a scheduler's. Not for use from several threads."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self.scheduler = scheduler
        self._selector = _Waiting(self)
        self.set_task_factory(_new_task)

    @property
    def has_work(self) -> bool:
        """A callback is due in the next turn."""
        return bool(self._ready)  # type: ignore[attr-defined]

    # ---- what asyncio's loop asks of its subclasses ---------------------------------------------

    def time(self) -> float:
        """Virtual seconds."""
        return self.scheduler.now_us / 1e6

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    # ---- callbacks belong to processes ----------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """As asyncio's."""
        process = _process_of(context)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        call = Call(callback, args)
        call.handle = super().call_soon(process.run, call, context=context)
        return call.handle

    def call_soon_threadsafe(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """As `call_soon`: there is one thread."""
        return self.call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        process = _process_of(context)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        call = Call(callback, args)
        handle = super().call_at(when, process.run, call, context=context)
        call.handle = handle
        return handle

    def run_in_executor(self, *_args: Any) -> Any:  # type: ignore[override]
        """There are no threads: raises NotSimulatedError."""
        raise NotSimulatedError("a simulated process has no threads: give it a SimExecutor")

    # ---- connections ----------------------------------------------------------------------------

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Any, host: Any, port: Any, *, ssl: Any = None, **_: Any
    ) -> Any:
        """As asyncio's, through the network of this process; without TLS. Raises OSError."""
        if ssl is not None:
            raise NotSimulatedError("connections of a simulation have no TLS")
        return await _current_process().connect(protocol_factory, host, port)

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Any, host: Any, port: Any, **options: Any
    ) -> Any:
        """As asyncio's, on this process's machine. Raises OSError."""
        listener: SimListener = _current_process().listen(protocol_factory, port)
        if options.get("start_serving", True):
            await listener.start_serving()
        return listener

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        """The machine of that name or address."""
        machine = _current_process().world.machine_at(host)
        return [(2, 1, 6, "", (machine.ip, int(port)))]


def _process_of(context: contextvars.Context | None) -> SimProcess | None:
    return PROCESS.get() if context is None else context.get(PROCESS)


def _current_process() -> SimProcess:
    process = PROCESS.get()
    assert process is not None, "this code does not run in a simulated process"
    return process


def _new_task(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    **options: Any,
) -> asyncio.Task[Any]:
    """A task that its process knows, to end it."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    process = _process_of(options.get("context"))
    if process is not None:
        process.owns(task)
    return task
