"""Claim: zkserver reads at ≥ 3 × and writes durably at ≥ 1.2 × Apache ZooKeeper's rate.

    python -m bench.zk_throughput --zookeeper-classpath CLASSPATH

8 connections × 64 requests outstanding, znodes of 100 bytes, every reply checked, one generator
for both (`zkload_native`, which speaks native frames and jute). Both servers sync every write
before its reply. The JVM is warmed up first; what both do in their first seconds is reported too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from . import generator
from .originals import ApacheZooKeeper
from .plan import Dialect, Jute, Kind, Native
from .processes import Process, lines_of, zkserver
from .session import Figures, Measure, Session, Wanted, claim, parser

NAMES: Final = ["zookeeper_classpath"]
READS: Final = {Kind.GET: 1}
WRITES: Final = {Kind.SET: 1}
MIXED: Final = {Kind.GET: 4, Kind.SET: 1}
COLD_S: Final = 2.0
PINNED: Final = {0}


class Side:
    """One of the two servers, under load."""

    def __init__(self, server: Process, port: int, dialect: Dialect, seconds: float) -> None:
        self.server, self.port, self.dialect, self.seconds = server, port, dialect, seconds

    def rates(self) -> Figures:
        """The claim's load: reads, then writes."""
        found: Figures = {}
        for name, mix in (("get", READS), ("set", WRITES)):
            before = self.server.cpu_s()
            result = generator.run(self.port, self.dialect, mix, seconds=self.seconds)
            found[name] = result["ops_s"]
            found[f"{name}_p50_us"] = result["p50_us"]
            found[f"{name}_p99_us"] = result["p99_us"]
            # The server's CPU covers warm-up and checking after the run, so it is an upper bound.
            found[f"{name}_cpu_us"] = (self.server.cpu_s() - before) / result["ops"] * 1e6
        return found

    def cold(self) -> Figures:
        """The first seconds of a server that has done nothing yet."""
        found: Figures = {}
        for name, mix in (("get", READS), ("set", WRITES)):
            result = generator.run(self.port, self.dialect, mix, seconds=COLD_S, warmup_s=0)
            found[name] = result["ops_s"]
        return found

    def one_by_one(self) -> Figures:
        """One connection, one request at a time: mostly the price of waking a core."""
        found: Figures = {}
        for name, mix in (("get", READS), ("set", WRITES)):
            result = generator.run(
                self.port, self.dialect, mix, connections=1, outstanding=1, keys=100, seconds=2
            )
            found[f"{name}_p50_us"] = result["p50_us"]
        return found

    def warm(self, seconds: float) -> None:
        """Load until a JIT has compiled what matters."""
        generator.run(self.port, self.dialect, MIXED, seconds=seconds, warmup_s=0)


def by_zkload(zkload: str, side: Side) -> Measure:
    """The same load from another generator, which speaks jute only."""

    def measure() -> Figures:
        found: Figures = {}
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "line.json"
            for name in ("get", "set"):
                command = [
                    *(zkload, "bench", "--hosts", f"127.0.0.1:{side.port}", "-c", "8", "-o", "64"),
                    *("-m", name, "-s", "100", "-w", "1", "-d", str(side.seconds)),
                    *("--json", str(out)),
                ]
                lines_of(command, timeout_s=side.seconds + 60, what="zkload")
                found[name] = json.loads(out.read_text().splitlines()[-1])["ops_s"]
        return found

    return measure


def run(session: Session, arguments: argparse.Namespace) -> None:
    """Measure and fill the table."""
    with ExitStack() as stack:
        daemon = stack.enter_context(zkserver(session.directory / "zkserver"))
        ours = Side(daemon, daemon.port, Native(), arguments.seconds)
        theirs: Side | None = None
        if not session.missing:
            java = stack.enter_context(
                ApacheZooKeeper(
                    arguments.java, arguments.zookeeper_classpath, session.directory / "zookeeper"
                )
            )
            theirs = Side(java, java.port, Jute(), arguments.seconds)
        cold = session.alternate("cold", ours.cold, theirs.cold if theirs else None, 1)
        for side in (ours, theirs):
            if side is not None:
                side.warm(arguments.jvm_warmup if side is theirs else 2)
        warm = session.alternate("8 x 64", ours.rates, theirs.rates if theirs else None)
        session.add(
            warm.row("get, 8 × 64", "/s", "get", Wanted(3)),
            warm.row("durable set, 8 × 64", "/s", "set", Wanted(1.2)),
        )
        if arguments.zkload and theirs is not None:
            cross = session.alternate("zkload", ours.rates, by_zkload(arguments.zkload, theirs))
            session.add(
                cross.row("get, theirs by zkload", "/s", "get", Wanted(3)),
                cross.row("durable set, theirs by zkload", "/s", "set", Wanted(1.2)),
            )
        for name in ("get", "set"):
            session.add(
                warm.row(f"{name} latency p50", "µs", f"{name}_p50_us"),
                warm.row(f"{name} latency p99", "µs", f"{name}_p99_us"),
                warm.row(f"{name} CPU of the server", "µs", f"{name}_cpu_us"),
            )
        session.add(cold.row("get, first 2 s", "/s", "get"), cold.row("set, next 2 s", "/s", "set"))
        if arguments.single:
            add_one_by_one(session, ours, theirs)


def add_one_by_one(session: Session, ours: Side, theirs: Side | None) -> None:
    """One request at a time, the servers and the generator free, then all on one core."""
    free = session.alternate("1 x 1", ours.one_by_one, theirs.one_by_one if theirs else None)
    for side in (ours, theirs):
        if side is not None:
            side.server.pin(PINNED)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, PINNED)  # and so the generator, a child of this process
    try:
        pinned = session.alternate("pinned", ours.one_by_one, theirs.one_by_one if theirs else None)
    finally:
        os.sched_setaffinity(0, before)
    for where, pairs in (("1 × 1", free), ("1 × 1, all on one core", pinned)):
        session.add(
            pairs.row(f"get p50, {where}", "µs", "get_p50_us"),
            pairs.row(f"set p50, {where}", "µs", "set_p50_us"),
        )


def main(arguments_given: list[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=4, help="per figure (%(default)s)")
    options.add_argument("--jvm-warmup", type=float, default=15, help="seconds (%(default)s)")
    options.add_argument("--single", action="store_true", help="also one request at a time")
    arguments = options.parse_args(arguments_given)
    if arguments.zkload and not Path(arguments.zkload).exists():
        options.error(f"--zkload: {arguments.zkload} does not exist")
    return claim("zkserver and Apache ZooKeeper, 8 × 64", arguments, NAMES, run)


if __name__ == "__main__":
    sys.exit(main())
