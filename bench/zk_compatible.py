"""Claim: over ZooKeeper's own protocol zkserver is faster than Apache ZooKeeper.

    python -m bench.zk_compatible --zookeeper-classpath CLASSPATH --zkload PROGRAM

Pipelined, 8 connections × 64 outstanding, znodes of 100 bytes: get ≥ 5 ×, durable set ≥ 1.5 ×, and
80 % get with 20 % set ≥ 3 × a warm Apache ZooKeeper's rate. One at a time with server and generator
on one core (what is left is the work, not the waking of a core): get ≥ 2.5 ×, durable set ≥ 1.2 ×.
What lies close together (one at a time; native beside jute) is measured in more and shorter pairs.
Every reply is checked by `zkload`. The native protocol, by our own generator, is at least as fast.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from typing import Final

from . import generator
from .originals import ApacheZooKeeper
from .plan import Jute, Kind, Native
from .processes import Process, zkserver
from .session import Figures, Measure, Session, Wanted, claim, parser
from .zkload import zkload

NAMES: Final = ["zookeeper_classpath", "zkload"]
MIXES: Final = {"get": "get", "set": "set", "mixed": "get=80,set=20"}
PINNED: Final = {0}
ONE_BY_ONE_PARTS: Final = 4
NATIVE_PARTS: Final = 10
"""Where both sides lie close together there are so many times as many pairs, each as much shorter:
the machine drifts by more than they differ, but little from one moment to the next."""
NO_SNAPSHOTS: Final = ("--snap-count", "1000000000")
"""For both protocols of one server: each part lasts less than what lies between two snapshots, and
one of them would have the snapshot."""


class Side:
    """One of the two servers."""

    def __init__(self, program: str, server: Process, port: int, seconds: float) -> None:
        self._program = program
        self.server = server
        self.port = port
        self._seconds = seconds

    def pipelined(self) -> Figures:
        """The three mixes, 8 × 64."""
        return {name: self._rate(mix, 8, 64, self._seconds) for name, mix in MIXES.items()}

    def one_by_one(self) -> Figures:
        """One connection, one request at a time."""
        seconds = self._seconds / ONE_BY_ONE_PARTS
        return {name: self._rate(name, 1, 1, seconds) for name in ("get", "set")}

    def warm(self, seconds: float) -> None:
        """Load until a JIT has compiled what matters, once it serves: `imok` says too little."""
        zkload(self._program, self.port, "wait", "-d", "30", timeout_s=60)
        words = ("-c", "8", "-o", "64", "-m", MIXES["mixed"], "-w", "0", "-d", str(seconds))
        zkload(self._program, self.port, "bench", *words, timeout_s=seconds + 60)

    def _rate(self, mix: str, connections: int, outstanding: int, seconds: float) -> float:
        words = ("-c", str(connections), "-o", str(outstanding), "-m", mix, "-s", "100")
        found = zkload(
            self._program,
            self.port,
            "bench",
            *(*words, "-w", str(seconds / 3), "-d", str(seconds)),
            timeout_s=seconds + 60,
        )
        rate: float = found["ops_s"]
        return rate


def by_dialect(port: int, dialect: Native | Jute, seconds: float) -> Measure:
    """Get and set by our own generator in one of the two protocols."""

    def measure() -> Figures:
        return {
            kind.name: generator.run(
                port, dialect, {kind: 1}, seconds=seconds, warmup_s=seconds / 3
            )["ops_s"]
            for kind in (Kind.GET, Kind.SET)
        }

    return measure


def run(session: Session, arguments: argparse.Namespace) -> None:
    """Measure and fill the table."""
    seconds, one_by_one = arguments.seconds, ONE_BY_ONE_PARTS * arguments.pairs
    with ExitStack() as stack:
        daemon = stack.enter_context(
            zkserver(session.directory / "zkserver", "--max-connections-per-address", "0")
        )
        java = stack.enter_context(
            ApacheZooKeeper(
                arguments.java, arguments.zookeeper_classpath, session.directory / "zookeeper"
            )
        )
        ours = Side(arguments.zkload, daemon, daemon.port, seconds)
        theirs = Side(arguments.zkload, java, java.port, seconds)
        theirs.warm(arguments.jvm_warmup)
        ours.warm(2)
        rates = session.alternate("8 x 64", ours.pipelined, theirs.pipelined)
        session.add(
            rates.row("get, 8 × 64", "/s", "get", Wanted(5)),
            rates.row("durable set, 8 × 64", "/s", "set", Wanted(1.5)),
            rates.row("80 % get, 20 % set, 8 × 64", "/s", "mixed", Wanted(3)),
        )
        free = session.alternate("1 x 1", ours.one_by_one, theirs.one_by_one, one_by_one)
        for side in (ours, theirs):
            side.server.pin(PINNED)
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, PINNED)  # and so the generator, a child of this process
        try:
            pinned = session.alternate("pinned", ours.one_by_one, theirs.one_by_one, one_by_one)
        finally:
            os.sched_setaffinity(0, before)
            for side in (ours, theirs):
                side.server.pin(before)
        session.add(
            pinned.row("get, 1 × 1, all on one core", "/s", "get", Wanted(2.5)),
            pinned.row("durable set, 1 × 1, all on one core", "/s", "set", Wanted(1.2)),
            free.row("get, 1 × 1", "/s", "get"),
            free.row("durable set, 1 × 1", "/s", "set"),
        )
    with zkserver(
        session.directory / "both", "--max-connections-per-address", "0", *NO_SNAPSHOTS
    ) as daemon:
        native = session.alternate(
            "native and jute",
            by_dialect(daemon.port, Native(), seconds / NATIVE_PARTS),
            by_dialect(daemon.port, Jute(), seconds / NATIVE_PARTS),
            NATIVE_PARTS * arguments.pairs,
        )
    session.add(
        native.row("native get beside jute, both ours", "/s", "GET", Wanted(1)),
        native.row("native set beside jute, both ours", "/s", "SET", Wanted(1)),
    )


def main(arguments_given: list[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options = parser(__doc__)
    options.add_argument(
        "--seconds",
        type=float,
        default=1,
        help="per figure and pair; less where there are more pairs (%(default)s)",
    )
    options.add_argument("--jvm-warmup", type=float, default=20, help="seconds (%(default)s)")
    options.set_defaults(pairs=15)
    arguments = options.parse_args(arguments_given)
    return claim("zkserver and Apache ZooKeeper, jute", arguments, NAMES, run, needed=NAMES)


if __name__ == "__main__":
    sys.exit(main())
