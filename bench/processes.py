"""Processes that are measured: start, wait until they serve, CPU and memory, stop.

Only processes started here are ever ended. Every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

_TICKS: Final = os.sysconf("SC_CLK_TCK")
START_S: Final = 60
STOP_S: Final = 20
PORTS: Final = range(10_000, 32_768)
"""Of servers that are started: below those of outgoing connections."""


class NoFigureError(Exception):
    """What was measured did not do what it should: there is no figure."""


class StartError(NoFigureError):
    """A process did not come up; what it said last is in the message."""


class Process:
    """A child process with a log file; ends with the `with` block."""

    def __init__(
        self,
        command: list[str],
        log: Path,
        *,
        speaks: bool = False,
    ) -> None:
        """Start it. What it says is added to `log`, except the stdout of one that `speaks`."""
        self.command = command
        self.log = log
        self.started_at = time.monotonic()
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if speaks else output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self.popen.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask it to end, and make it end after `STOP_S`."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.popen.kill()
        self.popen.wait()

    def first_line(self, timeout_s: float = START_S) -> str:
        """The first line on its stdout. Raises StartError."""
        assert self.popen.stdout is not None
        line = bytearray()
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.popen.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self.problem(f"said nothing for {timeout_s} s")
                byte = os.read(self.popen.stdout.fileno(), 1)
                if not byte:
                    raise self.problem("ended before it said where it listens")
                line += byte
        return line.decode()

    def wait_for(self, serves: Callable[[], bool], timeout_s: float = START_S) -> None:
        """Wait until `serves` is true. Raises StartError."""
        deadline = time.monotonic() + timeout_s
        while not serves():
            if self.popen.poll() is not None:
                raise self.problem(f"ended with status {self.popen.returncode}")
            if time.monotonic() > deadline:
                raise self.problem(f"did not serve within {timeout_s} s")
            time.sleep(0.005)

    def pin(self, cores: set[int]) -> None:
        """Keep all its threads, and those they start, on `cores`."""
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # a thread may end at any time
                os.sched_setaffinity(int(thread.name), cores)

    def problem(self, what: str) -> StartError:
        """An error with the end of the process's log."""
        tail = self.log.read_text(errors="replace")[-2000:]
        return StartError(f"{' '.join(self.command[:6])} {what}\n{tail}")

    def cpu_s(self) -> float:
        """CPU seconds it has used, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def rss_mb(self) -> float:
        """Resident memory in MB (10^6 bytes)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise StartError(f"process {self.pid} has no memory: it ended")


class Daemon(Process):
    """One of ours: it says on its first line where it listens."""

    def __init__(self, module: str, data: Path, *more: str) -> None:
        command = [sys.executable, "-m", module, "--port", "0", "--data", str(data), *more]
        super().__init__(command, data.with_suffix(".log"), speaks=True)
        try:
            line = self.first_line()
            self.address: dict[str, Any] = json.loads(line)
            self.port = int(self.address["port"])
        except (StartError, ValueError, KeyError, TypeError) as error:
            self.stop()
            if isinstance(error, StartError):
                raise
            raise self.problem(f"opens with {line!r}, not with JSON that has a port") from error


def zkserver(data: Path, *more: str) -> Daemon:
    """A zkserver on any port."""
    return Daemon("zkserver", data, *more)


def kbroker(data: Path, zookeeper_port: int) -> Daemon:
    """A kbroker on any port."""
    return Daemon("kbroker", data, "--zookeeper", f"127.0.0.1:{zookeeper_port}")


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listened on just now.

    None is one that the system gives to outgoing connections: while a server is away, a connection
    that looks for it could take its port, even by connecting to itself. Raises StartError.
    """
    found: list[int] = []
    rng = random.SystemRandom()
    with contextlib.ExitStack() as held:
        # All are held until the last is chosen: a port let go at once may be given again.
        for _ in range(100 * count + 1):
            if len(found) == count:
                return found
            port = rng.choice(PORTS)
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    raise StartError(f"there are no {count} free ports")


def accepts(port: int) -> bool:
    """Whether somebody listens on `port`."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
        return True
    return False


def lines_of(command: list[str], *, timeout_s: float, what: str) -> str:
    """Everything a command says, both streams. Raises StartError when it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StartError(f"{what} took more than {timeout_s} s") from error
    if done.returncode != 0:
        raise StartError(f"{what} ended with status {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout
