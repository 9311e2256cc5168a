"""Claim: a million znodes, ten thousand sessions and ten thousand watchers fit in a small process.

    python -m bench.zk_scale --zookeeper-classpath CLASSPATH --zkload PROGRAM

1,000,000 znodes of 100 bytes: at most 700 MB resident after their creation and after a restart;
from the start of the process to the first answer at most 1.7 × Apache ZooKeeper's time. A snapshot
of them taken under load (reads and writes, 8 × 8 outstanding) delays no reply by more than 100 ms
and adds at most 20 % memory. 10,000 idle sessions cost at most 150 MB. A set that 10,000 sessions
watch has reached them in at most Apache ZooKeeper's time. `zkload` checks every reply.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Self

from .generator import GeneratorError
from .originals import ApacheZooKeeper
from .processes import Daemon, Process, zkserver
from .session import Figures, Pairs, Session, Wanted, claim, parser
from .zkload import zkload

NAMES: Final = ["zookeeper_classpath", "zkload"]
TIMEOUT_S: Final = 900
FLAGS: Final = (
    *("--max-connections-per-address", "0", "--max-connections", "0"),
    *("--max-unknown-connections", "1024", "--http-port", "0"),
    *("--admin-snapshot", "--admin-snapshot-interval-ms", "0"),
)
Start = Callable[[Path], Process]


class Scale:
    """One server under each of the loads, on a fresh directory."""

    def __init__(self, arguments: argparse.Namespace, directory: Path, start: Start) -> None:
        self._arguments = arguments
        self._directory = directory
        self._start = start

    def measure(self) -> Figures:
        """All figures that both servers have."""
        found = self._million()
        with self._start(self._directory / "sessions") as server:
            found |= self._sessions(server)
        return found

    def _load(self, server: Process, *words: str) -> dict[str, Any]:
        port: int = server.port  # type: ignore[attr-defined]
        return zkload(self._arguments.zkload, port, *words, timeout_s=TIMEOUT_S)

    def _million(self) -> Figures:
        count = str(self._arguments.znodes)
        data = self._directory / "million"
        found: Figures = {}
        with self._start(data) as server:
            self._load(server, "wait", "-d", "60")
            before_mb = server.rss_mb()
            filled = self._load(server, "fill", "--n", count, "-c", "8", "-o", "64")
            found["creates"] = filled["ops_s"]
            found["created_mb"] = server.rss_mb()
            found["empty_mb"] = before_mb
            if isinstance(server, Daemon):
                found |= self._snapshot_under_load(server)
            server.kill()
        begun = time.monotonic()
        with self._start(data) as server:
            waited = self._load(server, "wait", "--t0", str(int(begun * 1e9)), "-d", "120")
            found["restart_s"] = waited["ready"][0]["get_ms"] / 1000
            found["restarted_mb"] = server.rss_mb()
            checked = self._load(server, "check", "--n", count, "-c", "8", "-o", "64")
            found["reads"] = checked["ops_s"]
            found["read_mb"] = server.rss_mb()
        return found

    def _snapshot_under_load(self, server: Daemon) -> Figures:
        """Ask for a snapshot in the middle of a load and look at the slowest reply."""
        words = ("bench", "-c", "8", "-o", "8", "-m", "get=80,set=20", "-k", "1000", "-w", "1")
        quiet = self._load(server, *words, "-d", "4", "--root", "/quiet")
        before_mb = server.rss_mb()
        with Snapshot(server) as snapshot:
            loaded = self._load(server, *words, "-d", "10", "--root", "/loaded")
        return {
            "quiet_max_ms": quiet["all"]["max_us"] / 1000,
            "loaded_max_ms": loaded["all"]["max_us"] / 1000,
            "snapshot_memory": snapshot.peak_mb / before_mb,
        }

    def _sessions(self, server: Process) -> Figures:
        count = str(self._arguments.sessions)
        self._load(server, "wait", "-d", "60")
        before_mb = server.rss_mb()
        idle = self._load(server, "idle", "--n", count, "--hold", "5", "--pid", str(server.pid))
        watch = self._load(server, "watch", "--n", count, "--rounds", "10")
        reached = [each["last_after_request_ms"] for each in watch["rounds"]]
        return {
            "connect_s": idle["establish_s"],
            "sessions_mb": idle["hold"]["servers"][0]["rss_kb"] * 1024 / 1e6 - before_mb,
            "watch_ms": statistics.median(reached),
        }


class Snapshot:
    """Asks a server for a snapshot two seconds from now, and watches its memory meanwhile."""

    def __init__(self, server: Daemon) -> None:
        self._server = server
        self._done = threading.Event()
        self._failure: OSError | None = None
        self.peak_mb = 0.0
        """Most memory that the server had."""
        self._threads = [threading.Thread(target=each) for each in (self._ask, self._look)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise GeneratorError(f"no snapshot was taken: {self._failure}")

    def _ask(self) -> None:
        time.sleep(2)
        port = self._server.address["http_port"]
        url = f"http://127.0.0.1:{port}/commands/snapshot"
        request = urllib.request.Request(url, method="POST")
        self._failure = TimeoutError("another one was under way all the time")
        while not self._done.is_set():
            try:
                urllib.request.urlopen(request, timeout=60).close()
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.CONFLICT:
                    self._failure = error
                    return
                self._done.wait(0.1)  # the server takes one of its own
            except OSError as error:
                self._failure = error
                return
            else:
                self._failure = None
                return

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self.peak_mb = max(self.peak_mb, self._server.rss_mb())


def run(session: Session, arguments: argparse.Namespace) -> None:
    """Measure and fill the table."""

    def ours(data: Path) -> Process:
        return zkserver(data, *FLAGS)

    def theirs(data: Path) -> Process:
        settings = "tickTime=2000\nmaxSessionTimeout=60000"
        return ApacheZooKeeper(
            arguments.java, arguments.zookeeper_classpath, data, settings=settings
        )

    runs = 0

    def on(start: Start) -> Callable[[], Figures]:
        def measure() -> Figures:
            nonlocal runs
            runs += 1
            directory = session.directory / f"run-{runs}"
            directory.mkdir()
            return Scale(arguments, directory, start).measure()

        return measure

    pairs = session.alternate("scale", on(ours), None if session.missing else on(theirs))
    alone = Pairs(pairs.ours, [])
    session.add(
        pairs.row("resident, empty", "MB", "empty_mb"),
        pairs.row("creates", "/s", "creates"),
        pairs.row("resident, created", "MB", "created_mb"),
        alone.row("resident, created", "MB", "created_mb", Wanted(700, True, True)),
        alone.row("resident, restarted", "MB", "restarted_mb", Wanted(700, True, True)),
        pairs.row("kill -9 to the first answer", "s", "restart_s", Wanted(1.7, True)),
        pairs.row("resident, all of them read", "MB", "read_mb"),
        alone.row("slowest reply, no snapshot", "ms", "quiet_max_ms"),
        alone.row("slowest reply, snapshot", "ms", "loaded_max_ms", Wanted(100, True, True)),
        alone.row("memory of a snapshot", "×", "snapshot_memory", Wanted(1.2, True, True)),
        pairs.row("idle sessions, together", "MB", "sessions_mb"),
        alone.row("idle sessions, together", "MB", "sessions_mb", Wanted(150, True, True)),
        pairs.row("a set reaches its watchers", "ms", "watch_ms", Wanted(1, True)),
    )


def main(arguments_given: list[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options = parser(__doc__)
    options.add_argument("--znodes", type=int, default=1_000_000, help="(%(default)s)")
    options.add_argument("--sessions", type=int, default=10_000, help="(%(default)s)")
    options.set_defaults(pairs=1)
    arguments = options.parse_args(arguments_given)
    return claim("zkserver and Apache ZooKeeper, scale", arguments, NAMES, run, needed=["zkload"])


if __name__ == "__main__":
    sys.exit(main())
