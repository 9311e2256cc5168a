"""zkserver and kbroker as child processes on this machine.

Owns their life: start, the machine-readable first line, stop, kill, and that none outlives its
owner. Used by `duolog up`, the demo, chaos and the benchmarks; it knows nothing of what the
daemons do.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

from duolog_protocol.errors import Error

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0
_ERROR_BYTES: Final = 16 * 1024


class DaemonFailedError(Error):
    """A daemon ended, or said nothing, when it should have started."""


class Daemon:
    """One daemon process. `start` may be called again after it has ended."""

    def __init__(self, module: str, arguments: Sequence[str], *, quiet: bool = True) -> None:
        self.module = module
        self.arguments = list(arguments)
        self.host = ""
        self.port = 0
        """The real port, once started; a restart takes the same one again."""
        self.announced: dict[str, Any] = {}
        self._quiet = quiet
        self._process: asyncio.subprocess.Process | None = None
        self._errors = bytearray()
        self._reader: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running daemon."""
        assert self._process is not None, f"{self.module} is not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it and wait until its port is open. Raises DaemonFailedError."""
        assert not self.is_running, f"{self.module} runs already"
        arguments = list(self.arguments)
        if self.port:
            arguments += ["--port", str(self.port)]
        self._errors.clear()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self.module,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C on the terminal is the owner's to pass on
        )
        self._reader = asyncio.create_task(self._read_errors(), name=f"{self.module} stderr")
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            await self.kill()
            raise DaemonFailedError(f"{self.module} said nothing in {START_SECONDS} s") from None
        if not line:
            code = await self._process.wait()
            await self._reader
            raise DaemonFailedError(f"{self.module} ended with status {code}: {self.reason}")
        self.announced = json.loads(line)
        self.host, self.port = self.announced["host"], int(self.announced["port"])

    @property
    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        return self._errors.decode(errors="replace").strip() or "(nothing on stderr)"

    @property
    def reason(self) -> str:
        """Why it ended, as far as it has said so: the reason of its last error, in one line."""
        for line in reversed(self.last_words.splitlines()):
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if isinstance(told, dict) and told.get("level") == "error" and "reason" in told:
                return str(told["reason"])
        return self.last_words

    async def _read_errors(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        while data := await self._process.stderr.read(4096):
            if not self._quiet:
                sys.stderr.buffer.write(data)
                sys.stderr.buffer.flush()
            self._errors += data
            del self._errors[:-_ERROR_BYTES]

    async def wait(self) -> int:
        """Wait until it ends; its exit status. Cancelling is safe."""
        assert self._process is not None
        return await self._process.wait()

    def send_signal(self, number: int) -> None:
        """Signal the process; nothing happens when it has ended."""
        if self.is_running:
            os.kill(self.pid, number)

    async def stop(self) -> int:
        """Ask it to stop and wait; kill it where it does not. Its exit status. Idempotent."""
        if self._process is None:
            return 0
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                code = await self._process.wait()
        except TimeoutError:
            await self.kill()
            code = -signal.SIGKILL
        if self._reader is not None:
            await self._reader
        return code

    async def kill(self) -> None:
        """End it at once (SIGKILL) and wait until it is gone. Idempotent."""
        self.send_signal(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()
        if self._reader is not None:
            await self._reader


def zkserver(data: str, port: int, arguments: Sequence[str] = (), *, quiet: bool = True) -> Daemon:
    """A zkserver on loopback; port 0 takes any free one."""
    daemon = Daemon("zkserver", ["--data", data, *arguments], quiet=quiet)
    return _on_port(daemon, port)


def kbroker(
    data: str, port: int, zookeeper: str, arguments: Sequence[str] = (), *, quiet: bool = True
) -> Daemon:
    """A kbroker on loopback that registers with `zookeeper`."""
    daemon = Daemon("kbroker", ["--data", data, "--zookeeper", zookeeper, *arguments], quiet=quiet)
    return _on_port(daemon, port)


def _on_port(daemon: Daemon, port: int) -> Daemon:
    if port == 0:
        daemon.arguments += ["--port", "0"]
    daemon.port = port
    return daemon


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Pair:
    """A zkserver and a kbroker: an async context manager."""

    def __init__(
        self,
        data: str,
        *,
        port: int = 0,
        zk_port: int = 0,
        zkserver_arguments: Sequence[str] = (),
        kbroker_arguments: Sequence[str] = (),
        quiet: bool = True,
    ) -> None:
        zk_port = zk_port or free_port()
        self.zkserver = zkserver(f"{data}/zkserver", zk_port, zkserver_arguments, quiet=quiet)
        self.kbroker = kbroker(
            f"{data}/kbroker", port, f"127.0.0.1:{zk_port}", kbroker_arguments, quiet=quiet
        )

    @property
    def bootstrap_servers(self) -> str:
        """Address of the broker."""
        return self.kbroker.address

    @property
    def zookeeper(self) -> str:
        """Address of zkserver."""
        return self.zkserver.address

    async def __aenter__(self) -> Pair:
        """Start both at once; the broker waits for zkserver. On an error neither is left.

        Raises DaemonFailedError.
        """
        try:
            outcomes = await asyncio.gather(
                self.zkserver.start(), self.kbroker.start(), return_exceptions=True
            )
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop both, the broker first."""
        await self.stop()

    async def stop(self) -> None:
        """Stop both, the broker first. Idempotent."""
        await self.kbroker.stop()
        await self.zkserver.stop()
