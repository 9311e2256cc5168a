"""Claim: the Python producer at ≥ 1.5 ×, the consumer at ≥ 1.2 × aiokafka against Apache Kafka.

    python -m bench.producer --kafka-libs DIR --aiokafka-python PYTHON

Records of 100 bytes, acks=all, one partition, batches of 64 KiB, linger 5 ms; one record at a time
≥ 1.5 ×. Both clients run the same program (`driver.py`) on the same event loop, with the settings
of their own defaults otherwise: ours is idempotent, aiokafka is not. Kafka acknowledges from the
page cache, so the claims are on `durability=replicated`; `fsync` stands beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from .originals import ApacheKafka
from .processes import kbroker, lines_of, zkserver
from .session import Figures, Session, Wanted, claim, parser

NAMES: Final = ["kafka_libs", "aiokafka_python"]
DRIVER: Final = str(Path(__file__).with_name("driver.py"))
DRIVER_S: Final = 600
FSYNC: Final = "fsync_"


def drive(
    python: str, library: str, port: int, arguments: argparse.Namespace, *more: str
) -> Figures:
    """One run of the driver in a process of its own."""
    command = [python, DRIVER, library, "rates", "--bootstrap", f"127.0.0.1:{port}"]
    command += ["--loop", arguments.loop, "--count", str(arguments.count)]
    command += ["--singles", str(arguments.singles), "--size", str(arguments.size), *more]
    said = lines_of(command, timeout_s=DRIVER_S, what=f"the {library} driver")
    figures: Figures = json.loads(said.splitlines()[-1])
    return figures


def run(session: Session, arguments: argparse.Namespace) -> None:
    """Measure and fill the table."""
    with ExitStack() as stack:
        coordinator = stack.enter_context(zkserver(session.directory / "zkserver"))
        broker = stack.enter_context(kbroker(session.directory / "kbroker", coordinator.port))

        def ours() -> Figures:
            found: Figures = {}
            for durability, prefix in (("replicated", ""), ("fsync", FSYNC)):
                choice = ("--durability", durability)
                figures = drive(sys.executable, "duolog", broker.port, arguments, *choice)
                found |= {prefix + name: value for name, value in figures.items()}
            return found

        theirs: Callable[[], Figures] | None = None
        if not session.missing:
            kafka = stack.enter_context(
                ApacheKafka(arguments.java, arguments.kafka_libs, session.directory / "kafka")
            )
            kafka.wait_until_open()

            def theirs() -> Figures:
                return drive(arguments.aiokafka_python, "aiokafka", kafka.port, arguments)

        session.alternate("warm-up", ours, theirs, 1)
        pairs = session.alternate("100 B, acks=all", ours, theirs)
        session.add(
            pairs.row("produce, replicated", "/s", "produce", Wanted(1.5)),
            pairs.row("produce, fsync", "/s", FSYNC + "produce", theirs_name="produce"),
            pairs.row("consume by batches", "/s", "poll", Wanted(1.2)),
            pairs.row("consume by iteration", "/s", "iterate"),
            pairs.row("one at a time, replicated", "/s", "single", Wanted(1.5)),
            pairs.row("one at a time, fsync", "/s", FSYNC + "single", theirs_name="single"),
            pairs.row("one at a time p50, replicated", "ms", "single_p50_ms"),
            pairs.row("one at a time p99, replicated", "ms", "single_p99_ms"),
        )
        session.notes.append(
            f"{arguments.count:,} records of {arguments.size} bytes a run, event loop "
            f"{arguments.loop} on both sides; one warm-up pair is not counted"
        )


def main(arguments_given: list[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=200_000, help="records (%(default)s)")
    options.add_argument("--singles", type=int, default=2000, help="one at a time (%(default)s)")
    options.add_argument("--size", type=int, default=100, help="bytes of a record (%(default)s)")
    options.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    arguments = options.parse_args(arguments_given)
    return claim("Python clients: duolog and aiokafka", arguments, NAMES, run)


if __name__ == "__main__":
    sys.exit(main())
