"""Claim: three zkservers are without a leader for a shorter time than three Apache ZooKeepers.

    python -m bench.zk_outage --zookeeper-classpath CLASSPATH --zkload PROGRAM
    python -m bench.zk_outage --no-election 30 --zkload PROGRAM

With the defaults that ship, one session writes 100 bytes every millisecond through a follower, and
the leader is killed (SIGKILL), or made to stand still (SIGSTOP). What counts is the longest time
between two acknowledgements: ≤ 0.3 s after a kill, ≤ 3 s after a stop, medians. `zkload` checks
that every acknowledged write is there afterwards. With `--no-election MINUTES`, ours alone is
loaded through all its servers while other processes do nothing but use every core, and nobody else
may become leader.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import Final

from .ensembles import NOT_SERVING, Ensemble, apache_maker, cores, free_places, zkserver_maker
from .generator import GeneratorError
from .processes import Process
from .session import Figures, Measure, Session, Wanted, claim, parser
from .zkload import zkload

SERVERS: Final = 3
BEFORE_S: Final = 2
"""The writer writes for so long before the signal."""
AFTER_S: Final = {"kill": (4, 4), "stop": (8, 16)}
"""And for so long after it: ours, theirs."""
SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
MIX: Final = "get=80,set=20"
PART_S: Final = 20
"""The load without an election comes in parts: each ends with a check of all that was written."""
LOOK_S: Final = 0.5


def outage(program: str, ensemble: Ensemble, how: str, seconds_after: float) -> Measure:
    """The leader goes, and comes back when it has been measured."""

    def measure() -> Figures:
        leader = ensemble.leader()
        assert leader.process is not None
        ports = [each.port for each in ensemble.servers if each is not leader]
        seconds = BEFORE_S + seconds_after
        found = zkload(
            program,
            ports,
            *("outage", "-d", str(seconds), "--kill-pid", str(leader.process.pid)),
            *("--kill-after", str(BEFORE_S), "--kill-signal", str(int(SIGNALS[how]))),
            timeout_s=seconds + 60,
        )
        if how == "kill":
            leader.kill()  # it is dead; this waits for it
            leader.start()
        else:
            leader.send_signal(signal.SIGCONT)
        ensemble.wait_until_serving()
        return {
            "gap_s": found["gap_ms"] / 1e3,
            "unknown": found["unknown"],
            "session_back_s": found["session_back_ms"] / 1e3,
        }

    return measure


def run(session: Session, arguments: argparse.Namespace) -> None:
    """Measure and fill the table."""
    program = arguments.zkload
    with ExitStack() as stack:
        ours = Ensemble(zkserver_maker(), session.directory / "ours", free_places(SERVERS))
        stack.enter_context(ours).start()
        theirs = None
        if not session.missing:
            maker = apache_maker(arguments.java, arguments.zookeeper_classpath)
            theirs = Ensemble(maker, session.directory / "theirs", free_places(SERVERS))
            stack.enter_context(theirs).start()
        for how, title, bound in (
            ("kill", "leader killed: no write for", 0.3),
            ("stop", "leader stands still: no write for", 3.0),
        ):
            ours_s, theirs_s = AFTER_S[how]
            found = session.alternate(
                how,
                outage(program, ours, how, ours_s),
                None if theirs is None else outage(program, theirs, how, theirs_s),
            )
            session.add(
                found.row(title, "s", "gap_s", Wanted(bound, at_most=True, absolute=True)),
                found.row("  writes of unknown fate", "", "unknown"),
            )


class Watcher(threading.Thread):
    """Looks who leads, again and again."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__(name="watcher", daemon=True)
        self._ensemble = ensemble
        self.ended = threading.Event()
        self.seen: list[tuple[float, int, int]] = []
        """(seconds since the start, leader, epoch), whenever it was another one."""
        self.silent = 0
        """How often a server did not answer in time, or said that it does not serve."""
        self.looks = 0

    def run(self) -> None:
        """Look until `ended`."""
        began = time.monotonic()
        while not self.ended.wait(LOOK_S):
            for each in self._ensemble.servers:
                glance = each.glance()
                self.looks += 1
                self.silent += glance == NOT_SERVING
                if glance.mode == "leader":
                    now = each.server_id, glance.epoch
                    if not self.seen or self.seen[-1][1:] != now:
                        self.seen.append((time.monotonic() - began, *now))


def without_election(session: Session, arguments: argparse.Namespace) -> int:
    """Load everything for some minutes; the exit status is 1 when there was an election."""
    flags = ("--snap-count", "1000000000") if arguments.no_snapshots else ()
    with ExitStack() as stack:
        ensemble = Ensemble(
            zkserver_maker(*flags), session.directory / "ours", free_places(SERVERS)
        )
        stack.enter_context(ensemble).start()
        for number in range(arguments.spinning):
            command = [sys.executable, "-c", "while True: pass"]
            stack.enter_context(Process(command, session.directory / f"spinning-{number}"))
        watcher = Watcher(ensemble)
        watcher.start()
        deadline = time.monotonic() + 60 * arguments.no_election
        problem, operations, began = "", 0.0, time.monotonic()
        busy = _cpu_s(ensemble)
        while time.monotonic() < deadline and not problem:
            loads = [
                _Load(arguments.zkload, each.port, f"/load-{each.server_id}")
                for each in ensemble.servers
            ]
            for load in loads:
                load.join()
                operations += load.operations
                problem = problem or load.problem
        took = time.monotonic() - began
        watcher.ended.set()
        watcher.join()
        used = (_cpu_s(ensemble) - busy) / took
    elections = len(watcher.seen) - 1
    print(
        f"{took / 60:.1f} minutes, {operations:,.0f} operations, servers on {used:.2f} of "
        f"{cores()} cores: {elections} elections {watcher.seen}; {watcher.silent} of "
        f"{watcher.looks} looks without an answer"
    )
    if problem:
        print(f"the load ended: {problem}")
    return 1 if elections or problem else 0


class _Load(threading.Thread):
    """One part of the load, through one server."""

    def __init__(self, program: str, port: int, root: str) -> None:
        super().__init__(name=f"load {root}", daemon=True)
        self._words = ("bench", "-c", "8", "-o", "64", "-m", MIX, "-w", "0", "--root", root)
        self._program, self._port = program, port
        self.operations = 0.0
        self.problem = ""
        self.start()

    def run(self) -> None:
        try:
            found = zkload(
                self._program, self._port, *self._words, "-d", str(PART_S), timeout_s=PART_S + 120
            )
            self.operations = found["ops_s"] * PART_S
        except (GeneratorError, subprocess.SubprocessError) as error:
            self.problem = str(error)


def _cpu_s(ensemble: Ensemble) -> float:
    return sum(each.process.cpu_s() for each in ensemble.servers if each.process is not None)


def main(arguments_given: list[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options = parser(__doc__)
    options.add_argument(
        "--no-election", type=float, metavar="MINUTES", help="load all cores, ours alone"
    )
    options.add_argument("--no-snapshots", action="store_true", help="with --no-election")
    options.add_argument(
        "--spinning",
        type=int,
        default=cores(),
        help="processes that only use a core, with --no-election (%(default)s)",
    )
    options.set_defaults(pairs=10)
    arguments = options.parse_args(arguments_given)
    title = "An ensemble that loses its leader"
    if arguments.no_election:
        return claim(title, arguments, ["zkload"], without_election, needed=["zkload"])
    names = ["zookeeper_classpath", "zkload"]
    return claim(title, arguments, names, run, needed=["zkload"])


if __name__ == "__main__":
    sys.exit(main())
