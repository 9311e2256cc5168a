"""Claim: three zkservers on one machine beside three Apache ZooKeepers on the same machine.

    python -m bench.zk_ensemble --zookeeper-classpath CLASSPATH --zkload PROGRAM

8 connections × 64 outstanding, znodes of 100 bytes, all connections on one server: get through a
follower ≥ 4 ×, durable set through the leader ≥ 1 × and through a follower ≥ 1 × a warm Apache
ZooKeeper's rate. From exec of all three to the first read from each of them ≤ 0.6 × the time; idle
after the start, the largest of the three has ≤ 55 MB resident. Every reply is checked by `zkload`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Final

from .ensembles import Ensemble, Maker, apache_maker, free_places, zkserver_maker
from .generator import GeneratorError
from .session import Figures, Measure, Session, Wanted, claim, parser
from .zkload import zkload

NAMES: Final = ["zookeeper_classpath", "zkload"]
SERVERS: Final = 3
SETTLE_S: Final = 3
MIX: Final = "get=80,set=20"


class Side:
    """One of the two ensembles."""

    def __init__(self, program: str, ensemble: Ensemble, seconds: float) -> None:
        self._program = program
        self._seconds = seconds
        self.ensemble = ensemble

    def rates(self) -> Figures:
        """What comes through one server, per second."""
        leader, follower = self.ensemble.leader(), self.ensemble.followers()[0]
        found = {
            "get_follower": self._rate("get", follower.port, self._seconds),
            "set_leader": self._rate("set", leader.port, self._seconds),
            "set_follower": self._rate("set", follower.port, self._seconds),
            "get_leader": self._rate("get", leader.port, self._seconds),
        }
        found["loaded_mb"] = largest_mb(self.ensemble)
        if self.ensemble.leader() is not leader:
            raise GeneratorError("there was an election while the rates were measured")
        return found

    def warm(self, seconds: float) -> None:
        """Load through every server until a JIT has compiled what matters."""
        for each in self.ensemble.servers:
            self._rate(MIX, each.port, seconds / len(self.ensemble.servers))

    def _rate(self, mix: str, port: int, seconds: float) -> float:
        words = ("-c", "8", "-o", "64", "-m", mix, "-s", "100")
        duration = ("-w", str(seconds / 3), "-d", str(seconds))
        found = zkload(self._program, port, "bench", *words, *duration, timeout_s=seconds + 60)
        rate: float = found["ops_s"]
        return rate


def largest_mb(ensemble: Ensemble) -> float:
    """Resident memory of the server that has most."""
    return max(each.process.rss_mb() for each in ensemble.servers if each.process is not None)


def starts(program: str, maker: Maker, directories: Iterator[Path]) -> Measure:
    """All three at once, on empty directories."""

    def measure() -> Figures:
        with Ensemble(maker, next(directories), free_places(SERVERS)) as ensemble:
            began_ns = time.monotonic_ns()
            ensemble.launch()
            ports = [each.port for each in ensemble.servers]
            words = ("wait", "--t0", str(began_ns), "-d", "60")
            found = zkload(program, ports, *words, timeout_s=90)
            time.sleep(SETTLE_S)
            serving_ms = max(each["get_ms"] for each in found["ready"])
            return {"serving_s": serving_ms / 1e3, "idle_mb": largest_mb(ensemble)}

    return measure


def run(session: Session, arguments: argparse.Namespace) -> None:
    """Measure and fill the table."""
    ours = zkserver_maker()
    theirs = apache_maker(arguments.java, arguments.zookeeper_classpath)
    directories = (session.directory / f"ensemble-{number}" for number in count())
    started = session.alternate(
        "start",
        starts(arguments.zkload, ours, directories),
        starts(arguments.zkload, theirs, directories),
        arguments.starts,
    )
    with ExitStack() as stack:
        sides = []
        for maker in (ours, theirs):
            made = Ensemble(maker, next(directories), free_places(SERVERS))
            stack.enter_context(made).start()
            sides.append(Side(arguments.zkload, made, arguments.seconds))
        sides[1].warm(arguments.jvm_warmup)
        sides[0].warm(3)
        rates = session.alternate("8 x 64", sides[0].rates, sides[1].rates)
    memory = Wanted(55, at_most=True, absolute=True)
    session.add(
        rates.row("get through a follower, 8 × 64", "/s", "get_follower", Wanted(4)),
        rates.row("durable set through the leader", "/s", "set_leader", Wanted(1)),
        rates.row("durable set through a follower", "/s", "set_follower", Wanted(1)),
        rates.row("get through the leader", "/s", "get_leader"),
        started.row("all three serve", "s", "serving_s", Wanted(0.6, at_most=True)),
        started.row("resident, the largest, idle", "MB", "idle_mb", memory),
        rates.row("resident, the largest, after load", "MB", "loaded_mb"),
    )


def main(arguments_given: list[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=2, help="per figure (%(default)s)")
    options.add_argument("--starts", type=int, default=7, help="pairs of starts (%(default)s)")
    options.add_argument("--jvm-warmup", type=float, default=30, help="seconds (%(default)s)")
    options.set_defaults(pairs=7)
    arguments = options.parse_args(arguments_given)
    return claim("Three zkservers and three Apache ZooKeepers", arguments, NAMES, run, needed=NAMES)


if __name__ == "__main__":
    sys.exit(main())
