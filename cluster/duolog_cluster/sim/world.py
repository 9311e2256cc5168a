"""A simulated world: machines, a network and a clock, out of one seed.

    with SimWorld(seed=7) as world:
        world.run(story(world))

`story` is any coroutine. It runs in virtual time on a machine of its own, as does whatever it
starts on other machines: real servers, real clients. A day of it takes as long as its work does,
and the same seed gives the same history.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final, Self, TypeVar

from .loop import SimLoop
from .network import Network, NetworkFaults
from .process import SimMachine, SimProcess
from .scheduler import Scheduler

T = TypeVar("T")

LIMIT_S: Final = 3_600.0


class SimWorld:
    """Everything that one seed decides."""

    def __init__(self, seed: int = 0, faults: NetworkFaults | None = None) -> None:
        """`faults`: what goes wrong on the network by itself; by default nothing does."""
        self.seed = seed
        self.rng = random.Random(f"{seed} story")
        """For the story's own choices."""
        self.scheduler = Scheduler()
        self._began_ms = self.scheduler.now_ms
        self.network = Network(
            self.scheduler,
            random.Random(f"{seed} network"),
            NetworkFaults(reset_rate=0.0) if faults is None else faults,
        )
        self.loop = SimLoop(self.scheduler)
        self._machines: dict[str, SimMachine] = {}
        self._trace = hashlib.blake2b(digest_size=16)
        self.failures: list[dict[str, Any]] = []
        """What asyncio has found wrong: exceptions that nobody took."""
        self.loop.set_exception_handler(self._on_failure)
        self.home = self.machine("story")
        """Where the story itself runs."""
        self.home.boot()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes. Idempotent."""
        if not self.loop.is_closed():
            for machine in self._machines.values():
                machine.kill()
            self.loop.close()

    def machine(self, name: str, *, wall_offset_ms: int = 0, clock_rate: float = 1.0) -> SimMachine:
        """A new machine. Its time of day is wrong by so much, its monotonic clock runs at a rate
        of the true one."""
        assert name not in self._machines, f"there is a machine {name!r} already"
        address = len(self._machines) + 1
        made = SimMachine(self, name, address, wall_offset_ms=wall_offset_ms, clock_rate=clock_rate)
        self._machines[name] = made
        return made

    def machine_at(self, host: str) -> SimMachine:
        """The machine of a name or an address; "localhost": the caller's. Raises OSError."""
        found = self._machines.get(host)
        if found is None:
            found = next((each for each in self._machines.values() if each.ip == host), None)
        if found is None:
            raise OSError(-2, f"there is no machine {host!r}")
        return found

    def machine_with(self, address: int) -> SimMachine:
        """The machine of an address on the simulated network."""
        return next(each for each in self._machines.values() if each.address == address)

    def run(self, story: Coroutine[Any, Any, T], *, limit_s: float = LIMIT_S) -> T:
        """Run a coroutine to its end, in virtual time. Raises TimeoutError after `limit_s` of it,
        NothingHappensError when everybody waits, and what the coroutine raises; else what a
        callback or a task of a server has raised without anybody there to take it."""

        async def limited() -> T:
            async with asyncio.timeout(limit_s):
                return await story

        process = self.home.process
        assert process is not None, "the story's machine does not run"
        try:
            result = self.loop.run_until_complete(process.start(limited()))
        finally:
            story.close()
        for failure in self.failures:
            raise failure.get("exception") or RuntimeError(failure["message"])
        return result

    async def sleep(self, seconds: float) -> None:
        """Let so much virtual time pass; it costs none."""
        await asyncio.sleep(seconds)

    @property
    def elapsed_ms(self) -> int:
        """Virtual time since the beginning."""
        return self.scheduler.now_ms - self._began_ms

    # ---- what happens to the network ------------------------------------------------------------

    def cut(self, source: SimMachine, target: SimMachine) -> None:
        """Nothing that goes from one machine to the other arrives: its connections break."""
        self.network.cut(source.address, target.address)

    def isolate(self, machine: SimMachine) -> None:
        """Cut a machine off from all others, in both directions; not from the story's."""
        for other in self._machines.values():
            if other is not machine and other is not self.home:
                self.cut(machine, other)
                self.cut(other, machine)

    def heal(self) -> None:
        """Let everything pass again, everywhere."""
        self.network.heal_all()

    # ---- the same history -----------------------------------------------------------------------

    def trace(self, process: SimProcess, callback: Callable[..., object]) -> None:
        """For processes: something is called."""
        name = getattr(callback, "__qualname__", type(callback).__qualname__)
        text = f"{self.scheduler.now_us} {process.machine.address} {name}\n"
        self._trace.update(text.encode())

    def trace_hash(self) -> str:
        """Of all that was called so far; the same for the same history."""
        return self._trace.copy().hexdigest()

    def _on_failure(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.failures.append(context)
