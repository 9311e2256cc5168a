"""Real ensembles under load and under every fault that a machine can have, checked as a history.

    python -m tests.faults.zk_chaos --minutes 20
    python -m tests.faults.zk_chaos --server apache --minutes 2    # the harness itself
    python -m tests.faults.zk_chaos --plant amnesia --rounds 3     # a fault that must be found

In a round, three or five servers with new directories work for recorded clients while
`nemesis.Nemesis` does harm. Then all faults end, and progress is required: every client is served
again, through every server a write succeeds, and all servers come to the same zxid. All are killed,
a log is read, and `checkers.zk_history` compares everything that anybody was told with it: no
acknowledged write is lost, none happens twice, the orders are kept. Some rounds purge snapshots and
logs, so that servers fall behind the log; an observer that nothing happens to keeps all of it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.ensembles import Ensemble, Maker, Server, apache_maker, free_places, zkserver_maker
from bench.processes import StartError

from tests.oracle import apache
from tests.oracle.jute_client import Silence
from tests.oracle.logs import apache_log, has_gap, zkserver_log
from tests.oracle.recorder import Client, Numbers, history_of, prove, show
from tests.oracle.settings import LONG_TIMEOUT_MS, MAX_BUFFER, MAX_TIMEOUT_MS, MIN_TIMEOUT_MS
from tests.sim.checkers.zk_history import MASK, check_history
from tests.sim.checkers.zk_history import Violation as HistoryViolation
from tests.sim.checkers.zk_records import WRITES, History, Logged, to_lines

from .nemesis import Nemesis
from .proxies import Network
from .small_disks import SmallDisks, may_mount

CLIENTS: Final = 6
ROUND_S: Final = 40.0
HEAL_S: Final = 60.0
"""Time in which a healed ensemble must serve everybody again."""
SILENCE_S: Final = 2.0
SHORT_TIMEOUT_MS: Final = 1_500
"""Of sessions that a longer fault ends."""
RETRY_S: Final = 0.02
PATIENCE_S: Final = 4.0
"""A client that no server has taken for so long begins anew."""
TICK_MS: Final = 200
SNAP_COUNT: Final = 1_000
WITHOUT_A_LOG: Final = ("1", "4", "6")
"""The checks that need no log: the order of answered writes, sessions, syncs."""
KINDS: Final = ("zkserver", "apache")


class Violation(Exception):
    """A promise was broken."""


class ChaosClient(Client):
    """A client that goes from server to server with its session, until it is told to end."""

    silence_s = SILENCE_S
    tries_again = True

    def __init__(
        self, ports: Sequence[int], numbers: Numbers, seed: str, *, restricting: bool
    ) -> None:
        super().__init__(ports, numbers, seed, 1, restricting=restricting)
        self.is_over = threading.Event()
        """No more faults: write once more, read everything, and end."""
        self.is_short = self._rng.random() < 0.4
        """Its sessions are short, and expire in a longer fault."""
        self._last_port: int | None = None
        self._served_at = time.monotonic()
        self._pause = threading.Event()
        """Never set."""

    def finish_through(self, port: int) -> None:
        """All faults have ended: end with a write through this server."""
        self._last_port = port
        self.is_over.set()

    def _choose_port(self) -> int:
        if self.is_over.is_set() and self._last_port is not None:
            return self._last_port
        return super()._choose_port()

    def _open(self, timeout_ms: int) -> None:
        if self.is_short and timeout_ms == LONG_TIMEOUT_MS:
            timeout_ms = SHORT_TIMEOUT_MS
        now = time.monotonic()
        if now - self._served_at > PATIENCE_S:
            self._session, self._served_at = (0, bytes(16)), now
        super()._open(timeout_ms)

    def run(self) -> None:
        """Work until the faults are over, and then end well."""
        try:
            while not self.is_over.is_set():
                self._left = 1
                self._tolerantly(self._turn)
            self._drop()
            deadline = time.monotonic() + HEAL_S
            while not self._tolerantly(self._end_well):
                if time.monotonic() > deadline:
                    raise Violation(f"Progress: {self.name} is not served within {HEAL_S:g} s")
        except BaseException as error:
            self.failure = error
        finally:
            self._drop()

    def _end_well(self) -> bool:
        if self._connection is None:
            self._open(LONG_TIMEOUT_MS)
        if self._connection is None:
            return False
        answered = len(self.tape.calls)
        self._exchange([("create", (f"/end-{self.tape.connection}", b"", _OPEN_ACL, 0))])
        if self._connection is None or self.tape.calls[answered:][-1:] == []:
            return False
        self._read_all()
        return self._connection is not None

    def _tolerantly(self, action: Callable[[], Any]) -> bool:
        """Do it; false when a connection was lost, or could not be made."""
        try:
            found = action()
        except (Silence, OSError):
            found = False
        if self._connection is not None:
            self._served_at = time.monotonic()
        if found is False or self._connection is None:
            self._drop()
            self._pause.wait(RETRY_S)
        return bool(found)


_OPEN_ACL: Final = ((31, "world", "anyone"),)


class Plan(NamedTuple):
    """What a round is like; drawn from its seed."""

    seed: str
    voters: int
    purges: bool
    """Snapshots and logs are purged; an observer keeps the whole log."""
    small_disks: bool

    @property
    def witness(self) -> tuple[int, ...]:
        """The id of the observer that nothing happens to."""
        return (self.voters + 1,) if self.purges else ()


def plan_of(kind: str, seed: str, servers: int | None) -> Plan:
    """The plan of a round."""
    rng = random.Random(f"{seed} plan")
    voters = servers or rng.choice((3, 3, 5))
    if kind == "apache":  # it ends when its disk is full, with half a transaction in its log
        return Plan(seed, voters, purges=True, small_disks=False)
    return Plan(seed, voters, rng.random() < 0.4, rng.random() < 0.5 and may_mount())


def maker_of(kind: str, plan: Plan) -> Maker:
    """Makes the servers of a round."""
    if kind == "apache":
        classpath = apache.classpath()
        assert classpath is not None, "ask `apache.problem` first"
        return apache_maker(
            apache.java(),
            classpath,
            settings=(
                f"tickTime={TICK_MS}\ninitLimit=25\nsyncLimit=10\npreAllocSize=1024\n"
                f"minSessionTimeout={MIN_TIMEOUT_MS}\nmaxSessionTimeout={MAX_TIMEOUT_MS}"
            ),
            flags=(
                *("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
                f"-Djute.maxbuffer={MAX_BUFFER}",
                "-Dzookeeper.extendedTypesEnabled=true",
                # so that it hardly ever sends a snapshot, which leaves a hole in the log
                *("-Dzookeeper.snapshotSizeFactor=1000000", "-Dzookeeper.commitLogCount=100000"),
            ),
        )
    flags = [
        *("--tick-ms", str(TICK_MS), "--jute-max-frame-bytes", str(MAX_BUFFER)),
        *("--min-session-timeout-ms", str(MIN_TIMEOUT_MS)),
        *("--max-session-timeout-ms", str(MAX_TIMEOUT_MS)),
        *("--preallocate-bytes", "65536", "--log-file-bytes", "262144"),
        *("--snap-count", str(SNAP_COUNT)),
    ]
    purging, keeping = ("--snap-retain-count", "3"), ("--snap-retain-count", "1000000")

    def make(place: Any, seen: Any, directory: Path) -> Server:
        keeps = place.server_id in plan.witness or not plan.purges
        return zkserver_maker(*flags, *(keeping if keeps else purging))(place, seen, directory)

    return make


class Round:
    """One ensemble's life."""

    def __init__(self, kind: str, plan: Plan, directory: Path, forgetful: Sequence[int]) -> None:
        self.kind = kind
        self.plan = plan
        self.counts: Counter[str] = Counter()
        self.deaths: list[str] = []
        self.logs: dict[int, Log] = {}
        self._forgetful = forgetful
        self._directory = directory

    def run(self, seconds: float) -> History:
        """Live it; what was recorded, with the log. Raises Violation, StartError."""
        plan = self.plan
        places = free_places(plan.voters, len(plan.witness))
        with ExitStack() as stack:
            disks = None
            if plan.small_disks:
                ids = [each.server_id for each in places]
                disks = stack.enter_context(SmallDisks(self._directory, ids))
            network = stack.enter_context(Network(places))
            ensemble = Ensemble(maker_of(self.kind, plan), self._directory, places, network.seen_by)
            stack.enter_context(ensemble).start()
            numbers = Numbers()
            ports = [each.port for each in ensemble.servers]
            clients = [
                ChaosClient(
                    ports, numbers, f"{plan.seed}.{number}", restricting=self.kind != "apache"
                )
                for number in range(max(CLIENTS, len(ports)))
            ]
            nemesis = Nemesis(
                ensemble,
                network,
                disks,
                random.Random(f"{plan.seed} nemesis"),
                spared=plan.witness,
                forgetful=self._forgetful,
            )
            for client in clients:
                client.start()
            try:
                nemesis.run(seconds, lambda: all(each.failure is None for each in clients))
            finally:
                self.counts, self.deaths = nemesis.counts, nemesis.deaths
                for number, client in enumerate(clients):
                    client.finish_through(ports[number % len(ports)])
            self._await_end(clients)
            self._await_agreement(ensemble)
            ensemble.kill()
            return history_of(clients)._replace(log=self._log(ensemble))

    def _await_end(self, clients: list[ChaosClient]) -> None:
        for client in clients:
            client.join()
        for client in clients:
            if client.failure is not None:
                raise client.failure

    def _await_agreement(self, ensemble: Ensemble) -> None:
        try:
            ensemble.wait_until_serving(HEAL_S, equal=True)
        except StartError as error:
            raise Violation(f"Progress: {error}") from error

    def _log(self, ensemble: Ensemble) -> list[Logged] | None:
        """A whole log; every other one must be the same where both are.

        Apache ZooKeeper's servers keep log files that a snapshot has replaced, with what was never
        committed: only the observer's log can be trusted.
        """
        self.logs = {
            each.server_id: self._read(each)
            for each in ensemble.servers
            if self.kind != "apache" or each.server_id in self.plan.witness
        }
        logs = [each for each in self.logs.values() if each.entries]
        longest = max(logs, key=lambda each: len(each.entries))
        at = {each.zxid: each for each in longest.entries}
        for server_id, log in self.logs.items():
            for each in log.entries:
                if longest.covers(each.zxid) and at.get(each.zxid) != each:
                    text = f"server {server_id} has {each}, another {at.get(each.zxid)}"
                    raise Violation(f"SameLog: {text}")
        if longest.is_whole:
            return longest.entries
        self.counts["rounds without a whole log"] += 1
        return None

    def _read(self, server: Server) -> Log:
        if self.kind == "apache":
            entries = without_second_closes(apache_log(server.log_directory))
            return Log(entries, is_whole=not has_gap(entries))
        return Log(*zkserver_log(server.log_directory, server.server_id))


class Log(NamedTuple):
    """A server's log at the end."""

    entries: list[Logged]
    is_whole: bool
    """It begins with the first transaction of all."""

    def covers(self, zxid: int) -> bool:
        """Whether it would have a transaction of that zxid."""
        return self.entries[0].zxid <= zxid <= self.entries[-1].zxid


def check_acknowledged(history: History, log: Log) -> list[HistoryViolation]:
    """Every acknowledged write is where its zxid is in a log that has lost its beginning."""
    at = {each.zxid: each for each in log.entries}
    last = log.entries[-1].zxid
    found = []
    for call in history.calls:
        if call.received_ns is None or call.name not in WRITES:
            continue
        entry = at.get(call.zxid)
        if call.zxid > last or (log.covers(call.zxid) and entry is None):
            found.append(HistoryViolation("5 Unknown", f"acknowledged, but not in the log: {call}"))
        elif entry is not None and (entry.session, entry.xid & MASK) != (
            call.session,
            call.xid & MASK,
        ):
            found.append(HistoryViolation("5 Unknown", f"{entry} is not {call}"))
    return found


def without_second_closes(log: list[Logged]) -> list[Logged]:
    """Apache ZooKeeper may end a session that has ended; nothing happens then."""
    closed: set[int] = set()
    found = []
    for each in log:
        is_second = each.kind == "close" and each.session in closed
        found.append(each._replace(kind="other") if is_second else each)
        if each.kind == "close":
            closed.add(each.session)
    return found


class Chaos:
    """Rounds, until the time is over."""

    def __init__(self, kind: str, directory: Path, *, plant: bool, servers: int | None) -> None:
        self.kind = kind
        self.totals: Counter[str] = Counter()
        self._directory = directory
        self._plant = plant
        self._servers = servers

    def round(self, seed: str, seconds: float) -> History:
        """One round, checked. Raises Violation; its files are kept then."""
        plan = plan_of(self.kind, seed, self._servers)
        if self._plant and self.kind == "zkserver":
            plan = plan._replace(purges=False)  # what was purged cannot be missed
        forgetful = tuple(range(1, plan.voters // 2 + 2)) if self._plant else ()
        directory = self._directory / seed
        one = Round(self.kind, plan, directory, forgetful)
        try:
            history = one.run(seconds)
            report = check_history(history)
            violations = report.violations
            if history.log is None:  # what became of unknown writes cannot be known
                violations = [v for v in violations if v.check.startswith(WITHOUT_A_LOG)]
                if self.kind != "apache":
                    for log in one.logs.values():
                        violations += check_acknowledged(history, log)
            if violations:
                with (self._directory / f"{seed}.jsonl").open("w") as file:
                    file.writelines(f"{line}\n" for line in to_lines(history))
                show(report._replace(violations=violations))
                raise Violation(f"{len(violations)}, first: {violations[0]}")
            if self.kind == "zkserver" and one.deaths and not plan.small_disks:
                raise Violation(f"ServerEnded: {one.deaths[0]}")
        finally:
            self.totals += one.counts
        self.totals.update(report.counts)
        print(f"round {seed}: {plan}, {dict(one.counts)}, {dict(report.counts)}", flush=True)
        for each in one.deaths:
            print(f"  {each}")
        shutil.rmtree(directory, ignore_errors=True)
        return history


def main() -> int:
    """Rounds; the exit status is 1 after a violation, or where a planted fault was not found."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--server", choices=KINDS, default="zkserver")
    options.add_argument("--servers", type=int, help="voters; 3 or 5, drawn, by default")
    options.add_argument("--minutes", type=float, default=20)
    options.add_argument("--rounds", type=int, help="so many, however long they take")
    options.add_argument("--round-seconds", type=float, default=ROUND_S)
    options.add_argument("--seed", type=int)
    options.add_argument("--from-round", type=int, default=0, help="of the seed: 3 for SEED.3")
    options.add_argument("--plant", choices=["amnesia"], help="a fault that must be found")
    options.add_argument("--prove", action="store_true", help="plant faults in a history, too")
    found = options.parse_args()
    if found.server == "apache" and (problem := apache.problem()) is not None:
        print(f"skipped: {problem}")
        return 0
    # So that a run that is ended takes its servers with it, and the disks that it has mounted.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    round_s = min(found.round_seconds, 60 * found.minutes)
    seed = random.SystemRandom().getrandbits(32) if found.seed is None else found.seed
    directory = Path(tempfile.mkdtemp(prefix="zk-chaos-"))
    chaos = Chaos(found.server, directory, plant=found.plant is not None, servers=found.servers)
    deadline, number, name = time.monotonic() + 60 * found.minutes, found.from_round, ""
    print(f"chaos of an ensemble: {found.server}, seed {seed}", flush=True)
    missed: list[str] = []
    whole: History | None = None
    try:
        while (
            number - found.from_round < found.rounds
            if found.rounds
            else time.monotonic() < deadline
        ):
            name = f"{seed}.{number}"
            history = chaos.round(name, round_s)
            if history.log is not None:
                whole = history
            number += 1
    except (Violation, StartError, AssertionError) as violation:
        print(f"round {name}: VIOLATION {violation}\nkept: {directory}")
        if found.plant:
            print("the planted fault was found")
            shutil.rmtree(directory, ignore_errors=True)
            return 0
        again = f"--seed {seed} --from-round {number} --round-seconds {round_s:g}"
        print(f"again: --server {found.server} {again}")
        return 1
    if found.prove and whole is not None:
        missed = prove(whole, seed)
        print(f"planted in the last history, not found: {missed or 'none'}")
    print(f"{number - found.from_round} rounds, 0 violations: {dict(chaos.totals)}")
    shutil.rmtree(directory, ignore_errors=True)
    if found.plant:
        print("the planted fault was NOT found")
    return 1 if found.plant or missed else 0


if __name__ == "__main__":
    sys.exit(main())
