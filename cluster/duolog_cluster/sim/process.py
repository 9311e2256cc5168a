"""A simulated machine, and the process that runs on it.

A machine owns what outlives a process: an address, a disk, clocks. A process owns tasks, ports and
connections, and is one of three: running, standing still (SIGSTOP), over. It ends between two of
its callbacks, as SIGKILL ends it between two system calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from .disk import SimDisk
from .loop import PROCESS, Call, SimLoop
from .network import Link
from .process_parts import SimClock
from .streams import Accepted, Open, SimListener, SimTransport

if TYPE_CHECKING:
    from .world import SimWorld

T = TypeVar("T")

FIRST_PORT: Final = 40_000
"""Where ports begin that nobody asked for by number."""


class SimMachine:
    """A machine; made by `SimWorld.machine`."""

    def __init__(
        self, world: SimWorld, name: str, address: int, *, wall_offset_ms: int, clock_rate: float
    ) -> None:
        self.world = world
        self.name = name
        self.address = address
        """On the simulated network."""
        self.ip = f"10.0.{address // 256}.{address % 256}"
        self.clock = SimClock(world.scheduler, wall_offset_ms, clock_rate)
        self.disk = SimDisk(random.Random(f"{world.seed} disk {name}"))
        self.process: SimProcess | None = None
        """What runs now."""
        self.life_count = 0

    def boot(self) -> SimProcess:
        """Start a process; the last one is over."""
        assert self.process is None, f"{self.name} runs already"
        self.life_count += 1
        self.process = SimProcess(self)
        return self.process

    def kill(self) -> None:
        """SIGKILL. What was written stays in the page cache, and its connections are closed."""
        self._end(power_lost=False)

    def lose_power(self, *, lose_unsynced: bool = False) -> None:
        """The machine is off: of what was not synced some is lost, or all of it. Others learn late
        that their connections are gone, or never (`NetworkFaults.silent_rate`)."""
        self._end(power_lost=True, lose_unsynced=lose_unsynced)

    def pause(self) -> None:
        """SIGSTOP."""
        assert self.process is not None, f"{self.name} does not run"
        self.process.is_paused = True

    def resume(self) -> None:
        """SIGCONT; without effect on a machine on which nothing stands still."""
        if self.process is not None:
            self.process.resume()

    def _end(self, *, power_lost: bool, lose_unsynced: bool = False) -> None:
        process, self.process = self.process, None
        if process is not None:
            self.world.network.detach(self.address, power_lost=power_lost)
            if power_lost:
                self.disk.crash(lose_unsynced=lose_unsynced)
            else:
                self.disk.kill()
            process.end()


class _Dial(NamedTuple):
    """A connection that is being opened."""

    factory: Callable[[], asyncio.BaseProtocol]
    port: int
    opened: asyncio.Future[tuple[SimTransport, asyncio.BaseProtocol]]


class SimProcess:
    """A process, from its start to its end; an `Endpoint` of the network."""

    def __init__(self, machine: SimMachine) -> None:
        self.machine = machine
        self.world = machine.world
        self.loop: SimLoop = machine.world.loop
        self.is_over = False
        self.is_paused = False
        self.rng = random.Random(f"{self.world.seed} {machine.name} {machine.life_count}")
        self.listeners: dict[int, SimListener] = {}
        self.transports: dict[Link, SimTransport] = {}
        self._opening: dict[Link, _Dial] = {}
        """The other end has not answered yet."""
        self._next_port = FIRST_PORT
        self._held: deque[tuple[Call, contextvars.Context]] = deque()
        """What would have been called while it stood still."""
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._context = contextvars.Context()
        self._context.run(PROCESS.set, self)
        self.world.network.attach(machine.address, self)

    # ---- what runs ------------------------------------------------------------------------------

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it in this process. When the process ends, the task does not: it just stops."""
        return self.loop.create_task(coroutine, context=self._context.copy())

    def later(self, delay_us: int, callback: Callable[[], object]) -> None:
        """Call it in this process after so long."""
        self.loop.call_later(delay_us / 1e6, callback)

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Call it in this process, in the next turn of the loop."""
        self.loop.call_soon(callback, *args, context=self._context)

    def run(self, call: Call) -> None:
        """For the loop: call it now, once the process runs on, or never."""
        if self.is_over:
            return
        if self.is_paused or self._held:
            self._held.append((call, contextvars.copy_context()))
            return
        self.world.trace(self, call.callback)
        call.callback(*call.args)

    def resume(self) -> None:
        """Run on; what came meanwhile comes first, in its order."""
        if self.is_paused and not self.is_over:
            self.is_paused = False
            self.loop.call_soon(self._catch_up, context=contextvars.Context())

    def _catch_up(self) -> None:
        while self._held and not self.is_paused and not self.is_over:
            call, context = self._held.popleft()
            if call.handle is not None and call.handle.cancelled():
                continue
            try:
                context.run(call.callback, *call.args)
            except Exception as error:
                self.loop.call_exception_handler(
                    {"message": "a callback failed", "exception": error}
                )

    def owns(self, task: asyncio.Task[Any]) -> None:
        """For the loop: the task is of this process."""
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop, context=contextvars.Context())

    def end(self) -> None:
        """Nothing of it is called any more; for SimMachine."""
        self.is_over = True
        self._held.clear()
        self.listeners.clear()
        for transport in self.transports.values():
            transport.forget()
        self.transports.clear()
        tasks, self._tasks = list(self._tasks), {}
        # What a coroutine does when it is thrown away reaches nothing: neither links nor disk.
        with self.machine.disk.turned_off(), warnings.catch_warnings(action="ignore"):
            for task in tasks:
                with contextlib.suppress(BaseException):
                    self._context.copy().run(task.get_coro().close)

    # ---- connections ----------------------------------------------------------------------------

    def listen(self, factory: Callable[[], asyncio.BaseProtocol], port: int) -> SimListener:
        """Take a port; 0: any. Raises OSError."""
        port = port or self._new_port()
        if port in self.listeners:
            raise OSError(98, f"address already in use: {self.machine.ip}:{port}")
        listener = self.listeners[port] = SimListener(self, factory, port)
        return listener

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[SimTransport, asyncio.BaseProtocol]:
        """Open a connection. Raises OSError."""
        target = self.world.machine_at(host).address
        dial = _Dial(factory, port, self.loop.create_future())
        self.world.network.dial(self.machine.address, target, dial)
        return await dial.opened

    def _new_port(self) -> int:
        self._next_port += 1
        return self._next_port

    def _opened(self, link: Link) -> None:
        dial: _Dial = link.token
        if dial.opened.done():  # nobody waits any more
            link.close()
            return
        self._opening[link] = dial
        link.send(Open(dial.port, self._new_port()))

    def _received(self, link: Link, message: Any) -> None:
        transport = self.transports.get(link)
        if transport is not None:
            transport.receive(message)
        elif isinstance(message, Open):
            self._accept(link, message)
        elif isinstance(message, Accepted) and link in self._opening:
            dial = self._opening.pop(link)
            if dial.opened.done():
                link.close()
                return
            own = (self.machine.ip, FIRST_PORT)
            made = self._made(link, dial.factory(), own, dial.port)
            dial.opened.set_result(made)

    def _accept(self, link: Link, opening: Open) -> None:
        listener = self.listeners.get(opening.port)
        if listener is None or not listener.is_serving():
            link.close()
            return
        link.send(Accepted())
        own = (self.machine.ip, opening.port)
        self._made(link, listener.factory(), own, opening.source_port)

    def _made(
        self, link: Link, protocol: asyncio.BaseProtocol, own: tuple[str, int], peer_port: int
    ) -> tuple[SimTransport, asyncio.BaseProtocol]:
        peer = (self.world.machine_with(link.peer_address).ip, peer_port)
        transport = self.transports[link] = SimTransport(self, link, protocol, own, peer)
        transport.start()
        return transport, protocol

    def _lost(self, link: Link) -> None:
        transport = self.transports.get(link)
        if transport is not None:
            transport.end()
        elif link in self._opening:
            _refuse(self._opening.pop(link))

    # ---- the network's endpoint -----------------------------------------------------------------

    def link_opened(self, link: Link, dialled: bool) -> None:
        """See Endpoint."""
        if dialled:
            self.post(self._opened, link)

    def dial_failed(self, target: _Dial) -> None:
        """See Endpoint."""
        self.post(_refuse, target)

    def message_received(self, link: Link, message: Any) -> None:
        """See Endpoint."""
        self.post(self._received, link, message)

    def link_lost(self, link: Link) -> None:
        """See Endpoint."""
        self.post(self._lost, link)

    def datagram_received(self, source: int, message: Any) -> None:
        """See Endpoint: nobody sends any."""


def _refuse(dial: _Dial) -> None:
    if not dial.opened.done():
        dial.opened.set_exception(ConnectionRefusedError(111, "nobody answered"))
