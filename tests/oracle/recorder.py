"""Records concurrent clients of a server, and checks the history.

    python -m tests.oracle.recorder --server apache --operations 20000 --seed 1
    python -m tests.oracle.recorder --server zkserver --prove --save run.jsonl
    python -m tests.oracle.recorder --check run.jsonl

Each client is a thread with one session: batches of random operations, connections cut with
requests on their way, sessions taken up again, closed and left to expire. Then the server is ended
by SIGKILL and its log tells the order of everything. `--prove` plants every fault of
`checkers.zk_faults` in the recorded history; each must be found.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.sim.checkers.zk_faults import FAULTS, NoPlace
from tests.sim.checkers.zk_history import Report, check_history
from tests.sim.checkers.zk_records import History, from_lines, to_lines

from . import apache, jute
from .apache import Apache
from .jute_client import CLOSED, TIMEOUT_S, Closed, JuteConnection, Silence
from .logs import apache_log, zkserver_log
from .ours import Ours
from .settings import LONG_TIMEOUT_MS, MIN_TIMEOUT_MS
from .tape import Tape
from .workload import Workload

CLIENTS: Final = 6
MAX_SHOWN: Final = 10
EXPIRY_DEADLINE_S: Final = 60.0
XIDS_OF_A_CONNECTION: Final = 100_000
PLANTS: Final = 2


class Numbers:
    """Numbers for connections, in the order in which they are made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> int:
        """The next one."""
        with self._lock:
            self._last += 1
            return self._last


class Client(threading.Thread):
    """One client; its records are in `tape` when it has ended."""

    silence_s = TIMEOUT_S
    """A server that says nothing for so long is given up."""
    tries_again = False
    """A session that is refused without a word is kept: the next server may take it."""

    def __init__(
        self,
        ports: Sequence[int],
        numbers: Numbers,
        seed: str,
        operations: int,
        *,
        restricting: bool,
    ) -> None:
        """`ports`: of the servers; each connection goes to one of them."""
        super().__init__(name=f"client {seed}", daemon=True)
        self.tape = Tape()
        self.failure: BaseException | None = None
        self._ports = ports
        self._port = ports[0]
        self._numbers = numbers
        self._left = operations
        self._rng = random.Random(f"{seed} client")
        self._workload = Workload(seed, restricting=restricting)
        self._connection: JuteConnection | None = None
        self._session = (0, bytes(16))

    def run(self) -> None:
        """Do the operations, then read everything once."""
        try:
            while self._left > 0:
                self._turn()
            self._read_all()
        except BaseException as error:
            self.failure = error
        finally:
            self._drop()

    def _turn(self) -> None:
        rng = self._rng
        if self._connection is None:
            self._open(LONG_TIMEOUT_MS)
            return
        chance = rng.random()
        if chance < 0.01:
            self._exchange([("close", ())])
            self._session = (0, bytes(16))
            self._drop()
        elif chance < 0.013:
            self._expire()
        else:
            count = rng.choice((1, 1, 2, 4, 8, 16))
            self._left -= count
            batch = [self._workload.operation() for _ in range(count)]
            if chance < 0.08:
                self._exchange(batch, answers=rng.randrange(count))
                self._drop()
            else:
                self._exchange(batch)

    def _choose_port(self) -> int:
        """Where to connect to."""
        return self._rng.choice(self._ports)

    def _open(self, timeout_ms: int) -> None:
        """Connect, with the session that there is."""
        number = self._numbers.next()
        self._port = self._choose_port()
        connection = JuteConnection(self._port, self.silence_s)
        connection.nudge = self._nudge
        session_id, password = self._session
        seen = self.tape.last_zxid if session_id else 0
        sent_ns = time.monotonic_ns()
        try:
            answer = connection.connect(
                timeout_ms, session_id=session_id, password=password, last_zxid_seen=seen
            )
        except BaseException:
            connection.drop()
            raise
        now_ns = time.monotonic_ns()
        if isinstance(answer, Closed) or answer.timeout_ms <= 0:
            outcome = "refused" if isinstance(answer, Closed) else "expired"
            self.tape.opened(number, outcome, session_id, sent_ns, now_ns, seen)
            connection.drop()
            if outcome == "expired" or not self.tries_again:
                self._session = (0, bytes(16))
            return
        outcome = "attached" if session_id else "opened"
        self.tape.opened(number, outcome, connection.session_id, sent_ns, now_ns, seen)
        connection.start_xids(number * XIDS_OF_A_CONNECTION)
        self._connection = connection
        self._session = connection.session_id, connection.password
        if session_id and self._rng.random() < 0.7:
            self._exchange([self._workload.set_watches(self.tape.last_zxid)])

    def _exchange(
        self, batch: list[tuple[str, tuple[Any, ...]]], answers: int | None = None
    ) -> None:
        """Send a batch and hear the answers, or only so many of them."""
        connection = self._connection
        if connection is None:
            return
        now_ns = time.monotonic_ns()
        for name, arguments in batch:
            xid = connection.request(name, *arguments)
            self.tape.sent(name, arguments, xid, now_ns)
        connection.flush()
        left = len(batch) if answers is None else answers
        while left:
            frame = connection.receive()
            if self.tape.heard(frame, time.monotonic_ns()) is not None:
                left -= 1
            if frame is CLOSED:
                self._drop()
                return

    def _expire(self) -> None:
        """Take the shortest timeout, and wait until the server has ended the session."""
        self._drop()
        self._open(MIN_TIMEOUT_MS)
        connection = self._connection
        if connection is not None:
            deadline = time.monotonic() + EXPIRY_DEADLINE_S
            while (
                self.tape.heard(connection.receive(), time.monotonic_ns()) or not connection.closed
            ):
                assert time.monotonic() < deadline, "the session does not expire"
        self._drop()
        self._open(LONG_TIMEOUT_MS)

    def _read_all(self) -> None:
        if self._connection is None:
            self._open(LONG_TIMEOUT_MS)
        self._exchange([("sync", ("/",))])
        paths = ["/"]
        for path in paths:
            self._exchange([("get_data", (path, False)), ("get_children2", (path, False))])
            last = self.tape.calls[-1]
            if last.name == "get_children2" and not last.error:
                names = [name for name in last.values[0] if name != "zookeeper"]
                paths += [f"{path.rstrip('/')}/{name}" for name in names]

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.drop()
            self._connection = None
        self.tape.cut()

    def _nudge(self) -> None:
        """Apache 3.8.0 can forget a lone client until another one comes."""
        with JuteConnection(self._port) as other:
            other.connect(MIN_TIMEOUT_MS)
            other.call("close")


def record(port: int, seed: int, operations: int, *, restricting: bool) -> History:
    """Run the clients; the history has no log yet."""
    numbers = Numbers()
    each = operations // CLIENTS
    clients = [
        Client([port], numbers, f"{seed}.{number}", each, restricting=restricting)
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
        if client.failure is not None:
            raise client.failure
    return history_of(clients)


def history_of(clients: Iterable[Client]) -> History:
    """What all of them recorded, without a log."""
    tapes = [client.tape for client in clients]
    return History(
        [call for tape in tapes for call in tape.calls],
        [event for tape in tapes for event in tape.events],
        [opened for tape in tapes for opened in tape.connections],
        None,
    )


def record_server(name: str, seed: int, operations: int, directory: Path) -> History:
    """Start a server, record it, end it, and read its log."""
    start: Any = {"apache": Apache, "zkserver": Ours}[name]
    with start(directory / name) as server:
        history = record(server.port, seed, operations, restricting=name != "apache")
        server.popen.kill()
        server.popen.wait()
        if name == "apache":
            return history._replace(log=apache_log(server.log_directory))
        log, is_whole = zkserver_log(server.log_directory)
        assert is_whole, f"the log of {server.log_directory} was purged"
        return history._replace(log=log)


def prove(history: History, seed: int) -> list[str]:
    """Plant every fault; the names of those that were not found, or had no place."""
    rng = random.Random(seed)
    missed = []
    for fault in FAULTS:
        try:
            for _ in range(PLANTS):
                violations = check_history(fault.plant(history, rng)).violations
                if not any(each.check.startswith(fault.checks) for each in violations):
                    missed.append(fault.name)
        except NoPlace:
            missed.append(f"{fault.name} (no place for it)")
    return missed


def show(report: Report) -> None:
    """The report, for people."""
    counts = ", ".join(f"{name} {count}" for name, count in report.counts.items())
    print(f"{counts}: {len(report.violations)} violations")
    for violation in report.violations[:MAX_SHOWN]:
        print(f"  {violation}")


def main() -> int:
    """Record and check; the exit status is 1 after a violation or a fault that was missed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--server", choices=("apache", "zkserver"), default="zkserver")
    options.add_argument("--operations", type=int, default=20_000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--save", type=Path, help="write the history there")
    options.add_argument("--check", type=Path, help="only check a history that was saved")
    options.add_argument("--prove", action="store_true", help="plant faults in it, too")
    found = options.parse_args()
    if found.check:
        with found.check.open() as lines:
            history = from_lines(lines)
    else:
        problem = apache.problem() if found.server == "apache" else None
        if problem is not None:
            print(problem)
            return 2
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            try:
                history = record_server(found.server, found.seed, found.operations, Path(directory))
            except (Silence, jute.JuteError) as error:
                print(f"{found.server}: {error}")
                return 1
        print(f"{found.server}: recorded in {time.monotonic() - started:.0f} s")
    if found.save:
        found.save.write_text("\n".join(to_lines(history)) + "\n")
    report = check_history(history)
    show(report)
    missed = prove(history, found.seed) if found.prove else []
    if found.prove:
        print(f"{len(FAULTS)} kinds of faults planted, not found: {missed or 'none'}")
    return 1 if report.violations or missed else 0


if __name__ == "__main__":
    sys.exit(main())
