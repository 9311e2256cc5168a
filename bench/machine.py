"""What this machine is worth at this minute.

Virtual machines drift by half between two minutes, and waking another core costs 5 µs on one and
500 µs on the next: a figure without this line beside it says nothing.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

_ROUND_TRIPS: Final = 2000
_SYNCS: Final = 200
BARE_IMPORTS: Final = "import asyncio, uvloop, msgpack"
"""What any daemon of this kind imports before it does anything."""


class Worth(NamedTuple):
    """The figures of one minute."""

    across_us: float
    """A byte to a process on another core and back."""
    pinned_us: float
    """The same with both on one core."""
    loop_ms: float
    """A million additions in Python."""
    fdatasync_us: float
    """Append 200 bytes and sync them, in the directory that is measured."""
    imports_ms: float
    """A fresh interpreter with `BARE_IMPORTS`."""
    load: float
    """Runnable processes over the last minute."""

    def __str__(self) -> str:
        return (
            f"round trip {self.across_us:.0f} µs across cores, {self.pinned_us:.0f} µs on one; "
            f"10^6 additions {self.loop_ms:.0f} ms; fdatasync {self.fdatasync_us:.0f} µs; "
            f"bare imports {self.imports_ms:.0f} ms; load {self.load:.1f}"
        )


def worth(directory: Path) -> Worth:
    """Measure the machine; takes about a second."""
    cores = sorted(os.sched_getaffinity(0))
    return Worth(
        across_us=_round_trip_us(cores[0], cores[-1]),
        pinned_us=_round_trip_us(cores[0], cores[0]),
        loop_ms=_median_ms(_additions, 3),
        fdatasync_us=_fdatasync_us(directory),
        imports_ms=_median_ms(_imports, 5),
        load=os.getloadavg()[0],
    )


def _median_ms(action: Callable[[], None], times: int) -> float:
    took = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        took.append(time.perf_counter() - start)
    return statistics.median(took) * 1e3


def _additions() -> None:
    total = 0
    for each in range(1_000_000):
        total += each


def _imports() -> None:
    subprocess.run([sys.executable, "-c", BARE_IMPORTS], check=True)


def _round_trip_us(here: int, there: int) -> float:
    near, far = socket.socketpair()
    echo = os.fork()
    if echo == 0:
        # Nothing of the parent's may run in the child, whatever happens here.
        try:
            near.close()
            os.sched_setaffinity(0, {there})
            while byte := far.recv(1):
                far.send(byte)
        finally:
            os._exit(0)
    far.close()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {here})
    try:
        start = time.perf_counter()
        for _ in range(_ROUND_TRIPS):
            near.send(b"x")
            near.recv(1)
        took = time.perf_counter() - start
    finally:
        os.sched_setaffinity(0, before)
        near.close()
        os.waitpid(echo, 0)
    return took / _ROUND_TRIPS * 1e6


def _fdatasync_us(directory: Path) -> float:
    took = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(_SYNCS):
            file.write(bytes(200))
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - start)
    return statistics.median(took) * 1e6
