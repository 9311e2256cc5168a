"""An ensemble of whole servers and its clients, in one process: what clients see must be a history.

Jute clients, each at one server and then at another, speak to real replicas: forwarded writes,
sessions that move, syncs, watches. Servers crash, stand still, are cut off. At the end everything
is healed, one log is read, and `checkers.zk_history` compares all that anybody was told with it.

    Upgrade      servers of two versions work together; once all are new, the ensemble is
    Progress     a healed ensemble serves every client
    SameCommit   no two servers commit two records at one zxid
    SameLog      every server's log holds the same
    SameTree     every server's tree is the same
    OneOwner     a session's client whose connection is open is not told that it has moved
"""

from __future__ import annotations

import errno
import hashlib
import random
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from duolog_cluster.sim.disk import DiskFaults
from duolog_cluster.sim.network import Network
from duolog_cluster.sim.process_parts import DiskPace
from duolog_cluster.sim.scheduler import Scheduler
from duolog_protocol import zk_messages as zk
from duolog_protocol.error_codes import ZkErrorCode
from duolog_protocol.errors import DiskFullError
from duolog_protocol.jute_codec import JuteCodec
from duolog_protocol.jute_decoder import JuteDecoder
from duolog_protocol.quorum_messages import PEER_VERSION
from duolog_protocol.txns import LEVEL_LAST, TxnKind, decode_txn, is_of_the_ensemble, zxid_of
from duolog_protocol.types import ZXID_COUNTER_LAST
from tests.oracle.workload import Workload
from zkserver.core.connection import Connection
from zkserver.core.events import ConnectionLost, Received
from zkserver.core.members import Member, config_data
from zkserver.core.peer_config import PeerConfig
from zkserver.core.session_tracker import Session

from .checkers.zk_history import check_history
from .script import Script
from .served_server import Life, Machine
from .violation import Violation
from .zk_history_world import (
    CLIENTS,
    OPERATOR,
    Client,
    HistoryWorld,
    logged,
)

OPERATIONS: Final = 300
PROGRESS_LIMIT_MS: Final = 30_000
MOST_TURNS: Final = 50_000
"""A history in which clients get nowhere for so long is healed: then they must be served."""


class ServedClient(Client):
    """A client, and the process that it is connected to."""

    life: Life | None = None


class _Nobody:
    """Asks for other members, and does not listen."""

    connection = None


def _member(server_id: int, is_voter: bool) -> Member:
    return Member(server_id, "127.0.0.1", 7_000 + server_id, is_voter)


class ServedWorld(HistoryWorld):
    """Three servers, sometimes with an observer; `run` raises Violation."""

    voters = frozenset((1, 2, 3))
    observer_rate = 0.3
    reconfigure_rates = (0.0, 0.0, 0.01, 0.03)
    """A seed draws one of them: how often somebody asks for other members."""
    trouble_rates = (0.0, 0.005, 0.02, 0.05)
    """A seed draws one: how often something happens to a server. More, and nobody is served."""
    spares = 2
    """Servers that are no members yet, where members change."""

    def __init__(self, seed: int, script: Script | None = None) -> None:
        """`script`: what of the seed's history happens."""
        self.seed = seed
        self._script = script or Script()
        self._left_out = 0
        """Requests that the script does not have."""
        self.rng = rng = random.Random(f"{seed} served")
        self.scheduler = Scheduler()
        self.network = Network(self.scheduler, random.Random(f"{seed} network"))
        self.clients: list[Any] = [
            ServedClient(Workload(f"{seed}.{number}")) for number in range(CLIENTS)
        ]
        self.now = 0
        self.log = []
        self.connection_count = 0
        self._committed: dict[int, bytes] = {}
        self.marks: dict[str, int] = {}
        mean_us = rng.choice((100, 500, 3_000))
        self.pace = DiskPace(mean_us, mean_us // 4)
        self.log_file_bytes = rng.choice((2_048, 65_536))
        self.snap_count = rng.choice((4, 20, 1_000_000))
        self.counter_last = rng.choice((30, ZXID_COUNTER_LAST, ZXID_COUNTER_LAST))
        self.tick_ms = rng.choice((50, 200, 2_000))
        self.trouble = rng.choice(self.trouble_rates)
        voters = self.voters
        observers = frozenset((len(voters) + 1,) if rng.random() < self.observer_rate else ())
        self.reconfigures = rng.choice(self.reconfigure_rates)
        level = rng.choice((0, LEVEL_LAST, LEVEL_LAST))
        """0: the servers are of an older version at first; each start may be of the newer one."""
        versions = (0,) if level < LEVEL_LAST else (0, PEER_VERSION, PEER_VERSION)
        spare = self.spares if self.reconfigures else 0
        members = [_member(number, number in voters) for number in sorted(voters | observers)]
        self.members_shown = config_data(members, 0)
        self.machines = [
            Machine(
                self, PeerConfig(server_id, voters, observers, level=level), rng.choice(versions)
            )
            for server_id in range(1, len(members) + spare + 1)
        ]

    async def run(self) -> None:  # type: ignore[override]
        """Live through the seed's history. Raises Violation."""
        self.live()

    def live(self, operations: int = OPERATIONS) -> None:
        """Live through the seed's history. Raises Violation."""
        for machine in self.machines:
            self.scheduler.after(self.rng.randrange(20_000), partial(self._start, machine))
        self.scheduler.run_for(200)
        actions = [self._request] * 10 + [self._pass] * 6 + [self._hear] * 8 + [self._cut]
        turns = 0
        while self._left_out + sum(len(each.tape.calls) for each in self.clients) < operations:
            turns += 1
            if turns > MOST_TURNS:
                self.mark("nobody was served for long")
                break
            # Of its own: what a script leaves out of one turn changes no draw of another.
            self.rng = random.Random(f"{self.seed} turn {turns}")
            self.rng.choice(actions)()
            if self.rng.random() < self.trouble:
                self._trouble()
            if self.rng.random() < self.reconfigures:
                self._reconfigure()
        self._heal()
        for client in self.clients:
            self._settle(client)
        self._read_everything()
        self._compare_servers()
        for name, count in self.reached().items():
            self.marks[name] = self.marks.get(name, 0) + count
        history = self.history()
        moved = [call for call in history.calls if call.error == ZkErrorCode.SESSION_MOVED]
        if moved:
            raise Violation(f"OneOwner: {moved[0]} and {len(moved) - 1} more")
        report = check_history(history)
        if report.violations:
            raise Violation("\n".join(map(str, report.violations[:5])))

    def happens(self, what: str) -> bool:
        """Whether something that was drawn happens; see Script."""
        return self._script.happens(self.scheduler.now_us, what)

    def _read_everything(self) -> None:
        reader = self.clients[0]
        assert reader.life is not None
        for path in sorted(reader.life.replica.core.state.tree.nodes):
            if not path.startswith("/zookeeper"):
                self._send(reader, "get_data", (path, False))
                self._send(reader, "get_children2", (path, False))
        self._settle(reader)

    def _compare_servers(self) -> None:
        """No client writes any more, and at some moment no session expires: let everybody come to
        the same."""
        at_last = LEVEL_LAST
        self._await(
            "Upgrade",
            lambda: {life.replica.core.state.level for life in self._lives()} == {at_last},
        )
        self._await("SameLog", self._is_at_rest)
        trees = []
        for life in self._lives():
            core = life.replica.core
            core.state.check_invariants()
            chunks = (
                b"".join(core.begin_snapshot().chunks(1 << 20)) if self._may_look(life) else b""
            )
            trees.append(chunks)
        if len({each for each in trees if each}) > 1:
            raise Violation("SameTree: the servers' trees differ")
        logs = [
            list(life.replica._data.log.read_from(life.replica._data.log.first_zxid_before))
            for life in self._lives()
        ]
        longest = max(logs, key=len)
        for each in logs:
            if each != longest[len(longest) - len(each) :]:
                raise Violation("SameLog: the servers' logs differ")
        self.committed(longest)
        self.log = [logged(self._committed[zxid]) for zxid in sorted(self._committed)]

    def committed(self, records: Iterable[bytes]) -> None:
        """A server has these as committed. Raises Violation if another has something else."""
        for record in records:
            zxid = zxid_of(record)
            if self._committed.setdefault(zxid, record) != record:
                raise Violation(f"SameCommit: two records are committed at {zxid:#x}")

    def _may_look(self, life: Life) -> bool:
        return life.replica.core.state.tree.snapshot is None

    def _is_at_rest(self) -> bool:
        """Whether all serve, and whatever one has logged is durable and applied everywhere."""
        ends: set[int] = set()
        for life in self._lives():
            peer = life.replica.peer
            ends |= {peer.last_logged_zxid, peer.last_durable_zxid}
            ends.add(life.replica.core.last_applied_zxid)
        return len(ends) == 1 and all(life.replica.peer.is_established for life in self._lives())

    def _lives(self) -> list[Life]:
        return [each.life for each in self.machines if each.life is not None]

    def reached(self) -> dict[str, int]:
        """Situations that the history has come to, each at least once."""
        found: Counter[str] = Counter()
        for record in self._committed.values():
            if is_of_the_ensemble(record):
                kind, *rest = decode_txn(record).body
                if kind == TxnKind.MEMBERS:
                    found["joint" if rest[0] else "final"] += 1
        for client in self.clients:
            found.update(opened.outcome for opened in client.tape.connections)
        for machine in self.machines:
            if machine.snapshots_received:
                found["snapshot came"] += machine.snapshots_received
        return dict(found)

    def trace_hash(self) -> str:
        """Of all that its clients were told, when, and of all that the disks have done: two
        histories of one seed, of whatever process, have the same."""
        found = hashlib.blake2b(digest_size=16)
        history = self.history()
        for each in (*history.calls, *history.events, *history.connections):
            found.update(repr(each).encode())
        for zxid in sorted(self._committed):
            found.update(self._committed[zxid])
        writes = [machine.disk.write_count for machine in self.machines]
        found.update(repr((self.scheduler.now_us, sorted(self.marks.items()), writes)).encode())
        return found.hexdigest()

    def mark(self, name: str) -> None:
        """A situation was reached that is worth counting."""
        self.marks[name] = self.marks.get(name, 0) + 1

    # ---- reconfigurations -----------------------------------------------------------------------

    def _reconfigure(self) -> None:
        """Somebody asks a leader for other members: to join, to leave, with a vote or without."""
        leaders = [each for each in self._lives() if each.replica.mode == "leader"]
        if not leaders or leaders[0].is_paused:
            return
        life, rng = self.rng.choice(leaders), self.rng
        machine = rng.choice(self.machines)
        joining = leaving = None
        if rng.random() < 0.6:
            joining = str(_member(machine.server_id, rng.random() < 0.7))
        else:
            leaving = str(machine.server_id)
        connection = Connection(
            JuteCodec(JuteDecoder(1 << 20, memoryview(bytearray(16)))),
            "127.0.0.1:1",
            _Nobody(),
            (("super", ""),),
        )
        connection.session = Session(OPERATOR, 1_000_000_000)
        asked = f"to leave: {leaving}" if joining is None else f"to join: {joining}"
        if not self.happens(f"server {life.server_id} is asked for others {asked}"):
            return
        request = zk.ReconfigRequest(joining, leaving, None, -1)
        asking = Received(connection, [(zk.RECONFIG.key, 1, request)], life.clock.wall_ms())
        self.mark("reconfiguration asked for")
        life.run(lambda: life.replica.step(asking))

    # ---- trouble --------------------------------------------------------------------------------

    def _trouble(self) -> None:
        rng = self.rng
        machine = rng.choice(self.machines)
        leaders = [life.machine for life in self._lives() if life.replica.mode == "leader"]
        if leaders and rng.random() < 0.5:
            machine = rng.choice(leaders)
        match rng.choice(("crash", "crash", "pause", "cut", "cut", "full disk")):
            case "full disk":
                faults, after = machine.disk.faults, rng.randint(1, 20)
                count = rng.choice((1, 3, 20))
                text = f"the disk of {machine.server_id} is full after {after} writes, for {count}"
                if self.happens(text):
                    self.mark("full disk")
                    faults.full_at_write = machine.disk.write_count + after
                    faults.full_for_writes = count
            case "crash":
                if machine.life is not None and self.happens(f"server {machine.server_id} crashes"):
                    self._crash(machine)
            case "pause":
                life, duration_us = machine.life, rng.randrange(4_000_000)
                if (
                    life is not None
                    and not life.is_paused
                    and self.happens(
                        f"server {life.server_id} stands still for {duration_us // 1_000} ms"
                    )
                ):
                    self.mark("pause")
                    life.is_paused = True
                    self.scheduler.after(duration_us, life.resume)
            case "cut":
                duration_us = rng.randrange(4_000_000)
                text = f"server {machine.server_id} is cut off for {duration_us // 1_000} ms"
                if not self.happens(text):
                    return
                self.mark("cut")
                others = [each.server_id for each in self.machines if each is not machine]
                ways = [(machine.server_id, each) for each in others]
                ways += [(target, source) for source, target in ways]
                for way in ways:
                    self.network.cut(*way)

                def heal() -> None:
                    for way in ways:
                        self.network.heal(*way)

                self.scheduler.after(duration_us, heal)

    def _crash(self, machine: Machine) -> None:
        life = machine.life
        if life is None:
            return
        self.mark("crash")
        power_lost = self.rng.random() < 0.5
        life.end(power_lost=power_lost)
        self.drop_clients(life)
        machine.life = None
        if power_lost:
            machine.disk.crash(lose_unsynced=self.rng.random() < 0.3)
        else:
            machine.disk.kill()
        self.scheduler.after(self.rng.randrange(2_000_000), partial(self._start, machine))

    def _start(self, machine: Machine) -> None:
        if machine.life is not None:
            return
        if self.rng.random() < 0.3:
            machine.upgrade()
        try:
            machine.boot()
        except (OSError, DiskFullError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENOSPC:
                raise
            self.mark("no space to start")
            assert machine.life is not None
            machine.life.is_over = True
            machine.life = None
            machine.disk.faults = DiskFaults()
            machine.disk.kill()
            self.scheduler.after(self.rng.randrange(2_000_000), partial(self._start, machine))

    def _heal(self) -> None:
        self.trouble = 0.0
        self.network.heal_all()
        for machine in self.machines:
            machine.disk.faults = DiskFaults()
            if machine.life is not None and machine.upgrade():
                self._crash(machine)
            if machine.life is None:
                machine.upgrade()
                machine.boot()
            else:
                machine.life.resume()
        self._await("Progress", lambda: all(each.replica.mode for each in self._lives()))

    def _await(self, name: str, holds: Any) -> None:
        deadline_us = self.scheduler.now_us + PROGRESS_LIMIT_MS * 1_000
        while not holds():
            if self.scheduler.now_us >= deadline_us:
                states = [(each.server_id, each.replica.member_status()) for each in self._lives()]
                raise Violation(f"{name}: not within {PROGRESS_LIMIT_MS} ms: {states}")
            self.scheduler.run_for(20)

    # ---- what servers say -----------------------------------------------------------------------

    def tell_client(self, connection: Connection, piece: bytes) -> None:
        """A server sends; nothing: it closes."""
        client = connection.link
        if client.connection is connection:
            client.unheard.append(piece)

    def drop_clients(self, life: Life) -> None:
        """A server's connections end."""
        for client in self.clients:
            if client.life is life and client.connection is not None:
                client.unheard.append(b"")

    # ---- clients --------------------------------------------------------------------------------

    def _request(self) -> None:
        if self.happens("a client asks for something"):
            super()._request()
        else:
            self._left_out += 1

    def _pass(self) -> None:
        """Let time pass: messages and disks move on."""
        self.scheduler.run_for(self.rng.choice((0, 0, 1, 1, 1, 3, 20, 100)))

    def _durable(self) -> None:
        self.scheduler.run_for(self.rng.choice((1, 5)))

    def _connect(self, client: Any) -> None:
        lives = [each for each in self._lives() if not each.is_paused]
        if not lives:
            self._pass()
            return
        client.life = self.rng.choice(lives)
        super()._connect(client)

    def _bytes(self, client: Any, data: bytes) -> None:
        assert client.decoder is not None and client.connection is not None
        buffer = client.decoder.get_buffer()
        buffer[: len(data)] = data
        requests = client.decoder.buffer_updated(len(data))
        life, connection = client.life, client.connection
        received = Received(connection, requests, life.clock.wall_ms())
        life.run(lambda: life.replica.step(received))

    def _lose(self, client: Any) -> None:
        connection, client.connection = client.connection, None
        life, client.life = client.life, None
        assert connection is not None
        client.tape.cut()
        client.connecting = None
        client.unheard.clear()
        client.received.clear()
        life.run(lambda: life.replica.step(ConnectionLost(connection)))


class FiveServedWorld(ServedWorld):
    """Five servers and an observer, whose members always change."""

    voters = frozenset((1, 2, 3, 4, 5))
    observer_rate = 1.0
    reconfigure_rates = (0.01, 0.03)
    trouble_rates = (0.0, 0.005, 0.01, 0.02)
    spares = 1
