"""Ensembles of real processes on loopback, zkserver's or Apache ZooKeeper's, behind one interface.

A server can be killed, made to stand still, and started again on its directory; where each one
serves, and who leads, is asked with the four-letter word `srvr`. What a server believes to be the
others' addresses may differ from server to server: a harness puts proxies between them.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from .originals import MAIN_CLASS, write_zoo_cfg
from .processes import START_S, Process, StartError, free_ports

SERVING: Final = ("leader", "follower", "observer")
ENSEMBLE_ID: Final = 1
_POLL_S: Final = 0.005
_WORD_S: Final = 2.0
"""A server that stands still takes connections and says nothing."""


class Place(NamedTuple):
    """One server's place in an ensemble; all ports are of loopback."""

    server_id: int
    client_port: int
    peer_port: int
    election_port: int
    """Apache ZooKeeper's; zkserver has one port for the other servers."""
    is_observer: bool = False

    @property
    def role(self) -> str:
        """participant or observer."""
        return "observer" if self.is_observer else "participant"


def free_places(count: int, observers: int = 0) -> list[Place]:
    """Places for servers 1, 2, ...: those that vote, then observers."""
    total = count + observers
    ports = iter(free_ports(3 * total))
    return [
        Place(at + 1, next(ports), next(ports), next(ports), at >= count) for at in range(total)
    ]


def zookeeper_members(places: Sequence[Place]) -> list[str]:
    """The members as lines of Apache ZooKeeper's configuration file."""
    return [
        f"server.{each.server_id}=127.0.0.1:{each.peer_port}:{each.election_port}:{each.role}"
        f";127.0.0.1:{each.client_port}"
        for each in places
    ]


def zkserver_members(places: Sequence[Place]) -> str:
    """The members as zkserver's setting `servers`."""
    return ",".join(
        f"{each.server_id}=127.0.0.1:{each.peer_port}:{each.role};127.0.0.1:{each.client_port}"
        for each in places
    )


def ask(port: int, word: str, timeout_s: float = _WORD_S) -> str:
    """The answer to a four-letter word; empty where nobody answers."""
    answer = bytearray()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
            connection.sendall(word.encode())
            while piece := connection.recv(65536):
                answer += piece
    except OSError:
        return ""
    return answer.decode(errors="replace")


class Glance(NamedTuple):
    """What `srvr` tells of a server that serves."""

    mode: str
    """leader, follower or observer; empty while it does not serve."""
    zxid: int
    """The last one that it has applied."""

    @property
    def epoch(self) -> int:
        """The epoch of that zxid."""
        return self.zxid >> 32


NOT_SERVING: Final = Glance("", 0)


class Server:
    """A member of an ensemble; its process may end and be started again on the same data."""

    name = ""
    """What a harness calls the kind: `zkserver` or `apache`."""

    def __init__(self, place: Place, seen: Sequence[Place], directory: Path) -> None:
        """`seen`: the members where this server shall believe them to be."""
        self.place = place
        self.seen = seen
        self.directory = directory
        self.process: Process | None = None
        self._is_suspended = False

    def command(self) -> list[str]:
        """The command line; it may write what it needs into `directory`."""
        raise AssertionError(f"{type(self).__name__} has no command")

    @property
    def log_directory(self) -> Path:
        """Where its transaction log is."""
        raise AssertionError(f"{type(self).__name__} has no log")

    @property
    def server_id(self) -> int:
        """Its number in the ensemble."""
        return self.place.server_id

    @property
    def port(self) -> int:
        """For clients."""
        return self.place.client_port

    @property
    def is_running(self) -> bool:
        """Whether there is a process; it may stand still."""
        return self.process is not None and self.process.popen.poll() is None

    @property
    def is_suspended(self) -> bool:
        """Whether the process was told to stand still."""
        return self._is_suspended

    def start(self) -> None:
        """Start the process; it serves when the ensemble does."""
        assert not self.is_running, f"server {self.server_id} runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._is_suspended = False
        self.process = Process(self.command(), self.directory / "server.log")

    def glance(self) -> Glance:
        """What it says of itself."""
        text = ask(self.port, "srvr") if self.is_running and not self._is_suspended else ""
        found = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        mode = found.get("Mode", "")
        return Glance(mode, int(found["Zxid"], 16)) if mode in SERVING else NOT_SERVING

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the process: SIGSTOP and SIGCONT are remembered."""
        assert self.process is not None, f"server {self.server_id} was never started"
        if self.is_running:
            self._is_suspended = number == signal.SIGSTOP
            self.process.popen.send_signal(number)

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self._is_suspended = False

    def stop(self) -> None:
        """Ask it to end, and make it end when it does not."""
        if self.process is not None:
            if self._is_suspended:
                self.send_signal(signal.SIGCONT)
            self.process.stop()

    def forget(self) -> None:
        """Remove its data: what no server of an ensemble survives without losing writes."""
        assert not self.is_running, f"server {self.server_id} runs"
        shutil.rmtree(self.directory / "data", ignore_errors=True)

    def problem(self, what: str) -> StartError:
        """An error with the end of the server's log."""
        assert self.process is not None
        return self.process.problem(what)


class Zkserver(Server):
    """Ours."""

    name = "zkserver"

    def __init__(
        self, place: Place, seen: Sequence[Place], directory: Path, flags: Sequence[str] = ()
    ) -> None:
        super().__init__(place, seen, directory)
        self._flags = list(flags)

    def command(self) -> list[str]:
        """The command line."""
        return [
            *(sys.executable, "-m", "zkserver", "--port", str(self.port)),
            *("--data", str(self.log_directory), "--server-id", str(self.server_id)),
            *("--ensemble-id", str(ENSEMBLE_ID), "--servers", zkserver_members(self.seen)),
            *("--max-connections-per-address", "0", *self._flags),
        ]

    @property
    def log_directory(self) -> Path:
        """Where its transaction log is."""
        return self.directory / "data"


class Apache(Server):
    """Apache ZooKeeper; every write is synced before its reply.

    Its defaults, unless a test asks for other `settings` (of its configuration file).
    """

    name = "apache"

    def __init__(
        self,
        place: Place,
        seen: Sequence[Place],
        directory: Path,
        *,
        java: str,
        classpath: str,
        settings: str = "",
        flags: Sequence[str] = (),
    ) -> None:
        super().__init__(place, seen, directory)
        self._command = [java, *flags, "-cp", classpath, MAIN_CLASS]
        self._settings = settings or "tickTime=2000\ninitLimit=10\nsyncLimit=5"

    def command(self) -> list[str]:
        """The command line; writes the configuration file and `myid`."""
        settings = [self._settings, *zookeeper_members(self.seen)]
        config = write_zoo_cfg(self.directory, self.port, "\n".join(settings))
        (self.directory / "data").mkdir(exist_ok=True)
        (self.directory / "data" / "myid").write_text(f"{self.server_id}\n")
        return [*self._command, str(config)]

    @property
    def log_directory(self) -> Path:
        """Where its transaction logs are."""
        return self.directory / "data" / "version-2"


Maker = Callable[[Place, Sequence[Place], Path], Server]
"""(the place, the members as this server shall see them, its directory) -> a server."""


class Ensemble:
    """All servers; ends with the `with` block."""

    def __init__(
        self,
        make: Maker,
        directory: Path,
        places: Sequence[Place],
        seen: Callable[[int], Sequence[Place]] | None = None,
    ) -> None:
        """`seen`: server id -> the members as that server shall see them; all as they are."""
        self.servers = [
            make(
                place,
                places if seen is None else seen(place.server_id),
                directory / f"server-{place.server_id}",
            )
            for place in places
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start all at once and wait until all serve. Raises StartError."""
        self.launch()
        self.wait_until_serving()

    def launch(self) -> None:
        """Start all that do not run."""
        for each in self.servers:
            if not each.is_running:
                each.start()

    def stop(self) -> None:
        """End all: no process is left, whatever happens to the others."""
        for each in self.servers:
            if each.is_suspended:
                each.send_signal(signal.SIGCONT)
            if each.is_running and each.process is not None:
                each.process.popen.terminate()
        for each in self.servers:
            each.stop()

    def kill(self) -> None:
        """End all with SIGKILL."""
        for each in self.servers:
            each.kill()

    def wait_until_serving(self, timeout_s: float = START_S, *, equal: bool = False) -> None:
        """Wait until every server serves, under one leader. Raises StartError.

        `equal`: and until all of them have applied the same; nobody may write then.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            glances = [each.glance() for each in self.servers]
            modes = [each.mode for each in glances]
            is_equal = not equal or len({each.zxid for each in glances}) == 1
            if all(modes) and modes.count("leader") == 1 and is_equal:
                return
            for each in self.servers:
                if not each.is_running:
                    raise each.problem("ended")
            if time.monotonic() > deadline:
                silent = [s for s, mode in zip(self.servers, modes, strict=True) if not mode]
                late = (silent or self.servers)[0]
                raise late.problem(f"is not there after {timeout_s:g} s: {glances}")
            time.sleep(_POLL_S)

    def leader(self) -> Server:
        """Who leads now. Raises StartError where nobody does within `START_S`."""
        deadline = time.monotonic() + START_S
        while True:
            for each in self.servers:
                if each.glance().mode == "leader":
                    return each
            if time.monotonic() > deadline:
                raise self.servers[0].problem("has no leader")
            time.sleep(_POLL_S)

    def followers(self) -> list[Server]:
        """Who follows now and has a vote, by server id."""
        return [each for each in self.servers if each.glance().mode == "follower"]


def zkserver_maker(*flags: str) -> Maker:
    """Makes servers of ours, with more flags."""
    return lambda place, seen, directory: Zkserver(place, seen, directory, flags)


def apache_maker(
    java: str, classpath: str, *, settings: str = "", flags: Sequence[str] = ()
) -> Maker:
    """Makes servers of Apache ZooKeeper."""
    return lambda place, seen, directory: Apache(
        place,
        seen,
        directory,
        java=java,
        classpath=classpath,
        settings=settings,
        flags=flags,
    )


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))
