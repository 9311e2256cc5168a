"""zkserver and kbroker as child processes on this machine.

Owns their life: start, the machine-readable first line, stop, kill, and that none outlives its
owner. Used by `duolog up`, the demo, chaos and the benchmarks; of what the daemons do it knows no
more than how to ask a zkserver for its role.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Collection, Sequence
from typing import Any, Final, Self

from duolog_protocol.errors import ConfigError, Error

from .zk_members import client_port, keep_members, members_in, new_members
from .zk_words import Reach, ServerState, state_of

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0
LOOK_SECONDS: Final = 0.02
"""Between two looks at a server that does not serve yet."""
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
        code = None if self._process is None else self._process.returncode
        if code is not None and code <= 0:
            return f"killed by {signal.Signals(-code).name}" if code else "it was told to stop"
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


class ZkEnsemble:
    """An ensemble of zkservers on loopback: an async context manager.

    Server ids are 1, 2, ...; observers have the last ones. A single server stands alone. The
    members of an ensemble are in its log, so they, with their ports, are kept beside the data.
    """

    def __init__(
        self,
        data: str,
        count: int = 3,
        *,
        observers: int = 0,
        port: int = 0,
        arguments: Sequence[str] = (),
        quiet: bool = True,
    ) -> None:
        """`data`: the directory of all their directories; what it holds is gone on with.
        `count`: servers that vote. `port`: for clients of server 1, the others have those after
        it; 0: those that they have had, or any free ones. `arguments`: more flags for each.

        Raises ConfigError for a directory that holds other servers.
        """
        assert count >= 1, count
        total = count + observers
        kept = zkservers_in(data)
        if kept not in (0, total):
            rule = f"{data} holds the data of {kept}, which would lose writes with another number"
            raise ConfigError("zk", total, rule)
        members = members_in(data) or new_members(count, observers, port)
        self.members: Final = members
        """The members, as zkserver's setting `servers` has them."""
        ports = [client_port(each) for each in members]
        if port not in (0, ports[0]):
            rule = f"{data} holds an ensemble whose first port is {ports[0]}"
            raise ConfigError("zk_port", port, rule)
        self._data = data
        names = [f"zkserver-{at + 1}" for at in range(total)] if total > 1 else ["zkserver"]
        self.directories: Final = [f"{data}/{name}" for name in names]
        place: list[str] = []
        if total > 1:
            place = ["--servers", ",".join(members)]
            place += ["--ensemble-id", str(_ensemble_id(self.directories))]
        self.servers: Final = [
            zkserver(
                directory,
                ports[at],
                [*place, "--server-id", str(at + 1), *arguments],
                quiet=quiet,
            )
            for at, directory in enumerate(self.directories)
        ]
        """By ascending id, from 1 on."""

    def server(self, server_id: int) -> Daemon:
        """The process of a server."""
        return self.servers[server_id - 1]

    @property
    def address(self) -> str:
        """The servers' addresses for clients, with commas."""
        return ",".join(f"127.0.0.1:{each.port}" for each in self.servers)

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop all."""
        await self.close()

    async def start(self) -> None:
        """Start all and wait until all serve; on an error none is left. Raises DaemonFailedError,
        OSError."""
        if len(self.servers) > 1:
            await asyncio.to_thread(keep_members, self._data, self.members)
        try:
            await _start_all(self.servers)
            if len(self.servers) > 1:  # one alone has said so by its first line
                await self.until_serving()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop all. Idempotent."""
        await asyncio.gather(*(each.stop() for each in self.servers))

    async def kill(self, server_id: int) -> None:
        """End a server at once (SIGKILL). Idempotent."""
        await self.server(server_id).kill()

    async def stop(self, server_id: int) -> int:
        """Stop a server in order; its exit status. Idempotent."""
        return await self.server(server_id).stop()

    async def restart(self, server_id: int) -> None:
        """Start a server that has ended, on its port and directory; the rest as `until_serving`."""
        await self.server(server_id).start()
        await self.until_serving([server_id])

    async def states(self) -> list[ServerState]:
        """How every server is, by ascending id."""
        return await asyncio.gather(*(state_of("127.0.0.1", each.port) for each in self.servers))

    async def leader_id(self) -> int | None:
        """Who leads (a server that stands alone leads itself); None: nobody says so."""
        leaders = [
            (state.epoch, server_id)
            for server_id, state in enumerate(await self.states(), 1)
            if state.role in ("leader", "standalone")
        ]
        return max(leaders)[1] if leaders else None

    async def until_leader(self, *, other_than: int = 0, seconds: float = START_SECONDS) -> int:
        """Wait until a server leads, and who it is. Raises DaemonFailedError."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    leader_id = await self.leader_id()
                    if leader_id not in (None, other_than):
                        return leader_id
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise DaemonFailedError(f"nobody leads after {seconds} s") from None

    async def until_serving(
        self, server_ids: Collection[int] | None = None, *, seconds: float = START_SECONDS
    ) -> None:
        """Wait until these servers serve; None: all. Raises DaemonFailedError."""
        waiting = set(range(1, len(self.servers) + 1) if server_ids is None else server_ids)
        try:
            async with asyncio.timeout(seconds):
                while waiting:
                    for each in sorted(waiting):
                        daemon = self.server(each)
                        if (await state_of("127.0.0.1", daemon.port)).reach is Reach.SERVING:
                            waiting.remove(each)
                        elif not daemon.is_running:
                            raise DaemonFailedError(f"zkserver {each} has ended: {daemon.reason}")
                    if waiting:
                        await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            told = f"zkserver {sorted(waiting)} do not serve after {seconds} s"
            raise DaemonFailedError(told) from None


def zkservers_in(data: str) -> int:
    """How many zkservers `ZkEnsemble` has kept in this directory; 0: none yet."""
    return len(members_in(data)) or int(os.path.isdir(f"{data}/zkserver"))


def _ensemble_id(directories: Sequence[str]) -> int:
    """The id that one of the directories has, else a new one."""
    from duolog_runtime.files import RealFiles
    from zkserver.storage.epoch_files import read_identity

    for directory in directories:
        identity = read_identity(RealFiles(), directory)
        if identity is not None:
            return identity.ensemble_id
    return random.SystemRandom().randrange(1, 1 << 63)


async def _start_all(daemons: Sequence[Daemon | ZkEnsemble]) -> None:
    """Start them at once. Raises DaemonFailedError of the first that failed, once all have ended
    or are up."""
    outcomes = await asyncio.gather(*(each.start() for each in daemons), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


class Pair:
    """A zkserver, or an ensemble of them, and a kbroker: an async context manager."""

    def __init__(
        self,
        data: str,
        *,
        port: int = 0,
        zk_port: int = 0,
        zk: int = 1,
        zkserver_arguments: Sequence[str] = (),
        kbroker_arguments: Sequence[str] = (),
        quiet: bool = True,
    ) -> None:
        """`zk`: how many zkservers. Raises ConfigError, as `ZkEnsemble`."""
        self.ensemble: Final = ZkEnsemble(
            data, zk, port=zk_port, arguments=zkserver_arguments, quiet=quiet
        )
        self.kbroker = kbroker(
            f"{data}/kbroker", port, self.ensemble.address, kbroker_arguments, quiet=quiet
        )

    @property
    def zkserver(self) -> Daemon:
        """The only zkserver, or the first."""
        return self.ensemble.servers[0]

    @property
    def bootstrap_servers(self) -> str:
        """Address of the broker."""
        return self.kbroker.address

    @property
    def zookeeper(self) -> str:
        """Addresses of the zkservers."""
        return self.ensemble.address

    async def __aenter__(self) -> Self:
        """Start all at once; the broker waits for zkserver. On an error none is left.

        Raises DaemonFailedError.
        """
        try:
            await _start_all([self.ensemble, self.kbroker])
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop all, the broker first."""
        await self.stop()

    async def stop(self) -> None:
        """Stop all, the broker first. Idempotent."""
        await self.kbroker.stop()
        await self.ensemble.close()
