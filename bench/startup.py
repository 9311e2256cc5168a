"""Claims about starting and being idle.

    python -m bench.startup --kafka-libs DIR --aiokafka-python PYTHON --zookeeper-classpath CP

- Each daemon answers its first ApiVersions within 150 ms more than a fresh interpreter needs to
  import asyncio, uvloop and msgpack.
- `duolog up` to the first acknowledged record takes ≤ 1/5 of what Apache Kafka takes. Both begin
  with an empty directory; Kafka's is formatted before the clock starts, and the client waits with
  everything imported.
- Idle, each daemon has < 50 MB resident and uses < 1 % of a core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from .machine import BARE_IMPORTS
from .native import NativeClient
from .originals import ApacheKafka, ApacheZooKeeper, missing
from .processes import Process, StartError, kbroker, zkserver
from .session import Figures, Session, Wanted, claim, parser

NAMES: Final = ["kafka_libs", "aiokafka_python", "zookeeper_classpath"]
DRIVER: Final = str(Path(__file__).with_name("driver.py"))
SETTLE_S: Final = 3


class Runs:
    """Numbered directories, so that every start has an empty one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0

    def next(self, name: str) -> Path:
        """A path that nothing has used."""
        self._count += 1
        return self._directory / f"{name}-{self._count}"


def bare_ms(runs: Runs) -> float:
    """A fresh interpreter with the imports that nobody can do without."""
    command = [sys.executable, "-c", f"{BARE_IMPORTS}; print()"]
    with Process(command, runs.next("bare"), speaks=True) as interpreter:
        interpreter.first_line()
        return (time.monotonic() - interpreter.started_at) * 1e3


def first_answers(runs: Runs) -> Figures:
    """Both daemons, from exec to the first answer, less the bare interpreter of the same moment."""
    found: Figures = {"bare_ms": bare_ms(runs)}
    data = runs.next("zkserver")
    for name in ("fresh", "restart"):
        with zkserver(data) as coordinator:
            found[f"zkserver_{name}_ms"] = answered_ms(coordinator, coordinator.port)
            if name == "fresh":
                continue
            logs = runs.next("kbroker")
            for again in ("fresh", "restart"):
                with kbroker(logs, coordinator.port) as broker:
                    found[f"kbroker_{again}_ms"] = answered_ms(broker, broker.port)
    for name in [name for name in found if name != "bare_ms"]:
        found[name] -= found["bare_ms"]
    return found


def answered_ms(process: Process, port: int) -> float:
    """Time from exec until ApiVersions is answered."""
    with NativeClient(port):
        return (time.monotonic() - process.started_at) * 1e3


@contextlib.contextmanager
def waiting_client(python: str, library: str) -> Iterator[Callable[[str], float]]:
    """A client that has imported everything; given an address, it says when a record was in."""
    client = subprocess.Popen(
        [python, DRIVER, library, "first-record"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdin is not None and client.stdout is not None
    to_client, from_client = client.stdin, client.stdout

    def ask(bootstrap: str) -> float:
        to_client.write(bootstrap + "\n")
        to_client.flush()
        line = from_client.readline()
        if not line:
            raise StartError(f"the {library} client got no record acknowledged")
        return float(json.loads(line)["acknowledged_at"])

    try:
        if from_client.readline() != "ready\n":
            raise StartError(f"the {library} client did not start")
        yield ask
    finally:
        client.kill()
        client.wait()
        to_client.close()
        from_client.close()


def up_to_first_record(runs: Runs) -> Figures:
    """`duolog up` on an empty directory until a record is acknowledged."""
    data = runs.next("up")
    command = [sys.executable, "-m", "duolog_cluster", "up", "--json", "--port", "0"]
    with (
        waiting_client(sys.executable, "duolog") as ask,
        Process([*command, "--data", str(data)], runs.next("log"), speaks=True) as pair,
    ):
        bootstrap = json.loads(pair.first_line())["bootstrap_servers"]
        ready = time.monotonic()
        acknowledged = ask(bootstrap)
        return {
            "first_record_s": acknowledged - pair.started_at,
            "ready_s": ready - pair.started_at,
        }


def kafka_to_first_record(runs: Runs, arguments: argparse.Namespace) -> Figures:
    """The same with Apache Kafka."""
    with (
        waiting_client(arguments.aiokafka_python, "aiokafka") as ask,
        ApacheKafka(arguments.java, arguments.kafka_libs, runs.next("kafka")) as kafka,
    ):
        acknowledged = ask(f"127.0.0.1:{kafka.port}")
        return {"first_record_s": acknowledged - kafka.started_at}


def idle(processes: dict[str, Process], seconds: float) -> Figures:
    """Memory and CPU of processes that nobody asks for anything."""
    time.sleep(SETTLE_S)
    before = {name: process.cpu_s() for name, process in processes.items()}
    time.sleep(seconds)
    found: Figures = {}
    for name, process in processes.items():
        found[f"{name}_cpu_percent"] = (process.cpu_s() - before[name]) / seconds * 100
        found[f"{name}_rss_mb"] = process.rss_mb()
    return found


def idle_pair(runs: Runs, seconds: float) -> Figures:
    """Both of our daemons, idle."""
    with ExitStack() as stack:
        coordinator = stack.enter_context(zkserver(runs.next("zkserver")))
        broker = stack.enter_context(kbroker(runs.next("kbroker"), coordinator.port))
        return idle({"zookeeper": coordinator, "kafka": broker}, seconds)


def idle_originals(runs: Runs, arguments: argparse.Namespace) -> Figures:
    """Apache ZooKeeper and Apache Kafka, idle."""
    with ExitStack() as stack:
        classpath = arguments.zookeeper_classpath
        zookeeper = ApacheZooKeeper(arguments.java, classpath, runs.next("zookeeper"))
        stack.enter_context(zookeeper)
        kafka = ApacheKafka(arguments.java, arguments.kafka_libs, runs.next("kafka"))
        stack.enter_context(kafka)
        kafka.wait_until_open()
        return idle({"zookeeper": zookeeper, "kafka": kafka}, arguments.idle_seconds)


def run(session: Session, arguments: argparse.Namespace) -> None:
    """Measure and fill the table."""
    runs = Runs(session.directory)
    answers = session.alternate("first answer", lambda: first_answers(runs), None, arguments.starts)
    soon = Wanted(150, at_most=True, absolute=True)
    session.add(answers.row("bare interpreter, imports", "ms", "bare_ms"))
    for daemon in ("zkserver", "kbroker"):
        for state in ("fresh", "restart"):
            name = f"{daemon}_{state}_ms"
            session.add(answers.row(f"{daemon} first answer, {state}, over bare", "ms", name, soon))

    kafka_there = not missing(arguments, ["kafka_libs", "aiokafka_python"])
    firsts = session.alternate(
        "first record",
        lambda: up_to_first_record(runs),
        (lambda: kafka_to_first_record(runs, arguments)) if kafka_there else None,
    )
    fifth = Wanted(0.2, at_most=True)
    session.add(firsts.row("to the first acknowledged record", "s", "first_record_s", fifth))
    session.add(firsts._replace(theirs=[]).row("duolog up says it is ready", "s", "ready_s"))

    originals_there = not missing(arguments, ["kafka_libs", "zookeeper_classpath"])
    rest = session.alternate(
        "idle",
        lambda: idle_pair(runs, arguments.idle_seconds),
        (lambda: idle_originals(runs, arguments)) if originals_there else None,
        1,
    )
    memory = Wanted(50, at_most=True, absolute=True)
    cpu = Wanted(1, at_most=True, absolute=True)
    for daemon, name in (("zkserver", "zookeeper"), ("kbroker", "kafka")):
        session.add(
            rest.row(f"{daemon} resident, idle", "MB", f"{name}_rss_mb", memory),
            rest.row(f"{daemon} CPU, idle", "% of a core", f"{name}_cpu_percent", cpu),
        )


def main(arguments_given: list[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options = parser(__doc__)
    options.add_argument("--starts", type=int, default=7, help="of each daemon (%(default)s)")
    options.add_argument("--idle-seconds", type=float, default=20, help="(%(default)s)")
    arguments = options.parse_args(arguments_given)
    return claim("Starting and being idle", arguments, NAMES, run)


if __name__ == "__main__":
    sys.exit(main())
