"""An ensemble of simulated servers: elections, crashes, cuts, and what must hold all the while.

One seed is one history. First faults: servers crash at the worst moments, links break, processes
stand still, disks are full, while whoever leads proposes; every invariant of `checks.py` is checked
after every event. Then sometimes only a quorum is healed, then everything: within a bounded time
there must be one leader whom all follow, a new write everywhere, and no election without a reason.

Liveness has invariants of its own:

    Progress        a healed quorum has a leader, and commits
    Convergence     every healed server has applied everything that anybody has
    Stability       nothing happens to a leader to whom nothing happens
"""

from __future__ import annotations

import errno
import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from duolog_cluster.sim.disk import DiskFaults, PowerLoss
from duolog_cluster.sim.network import Network, NetworkFaults
from duolog_cluster.sim.scheduler import Scheduler
from duolog_protocol.errors import DiskFullError, StorageError
from duolog_protocol.txns import zxid_of
from zkserver.core.peer_config import PeerConfig

from .checks import Checks
from .ensemble_faults import FaultMix, Nemesis, draw_mix
from .ensemble_machine import Machine
from .ensemble_records import number_of
from .ensemble_server import Life
from .ensemble_trace import describe
from .invariants import Ensemble, NoAckedWriteLost
from .script import Script
from .violation import Violation

PROGRESS_LIMIT_MS: Final = 20_000
"""A healed quorum has a leader and a new write after so long."""
STABLE_MS: Final = 2_000
STEP_MS: Final = 50
RECENT: Final = 80
"""Events that a violation shows."""
MAX_PENDING = 64
"""Records that a leader has proposed and not applied: clients wait, as they do for a real one."""


class EnsembleWorld:
    """One history; `run` raises Violation."""

    def __init__(
        self, seed: int, mix: FaultMix | None = None, script: Script | None = None
    ) -> None:
        """`mix`: instead of the one that the seed draws. `script`: what of it happens."""
        self.seed = seed
        self._script = script or Script()
        self.mix = mix or draw_mix(seed)
        self.scheduler = Scheduler()
        network_faults = self.mix.network
        if network_faults != NetworkFaults() and not self.happens(
            "a network that loses and delays"
        ):
            network_faults = NetworkFaults()
        self.network = Network(self.scheduler, random.Random(f"{seed} network"), network_faults)
        self.marks: dict[str, int] = {}
        self._rng = random.Random(f"{seed} world")
        self._offers = 0
        """Times that leaders were asked to propose; each draws from a generator of its own, so that
        what a script leaves out changes no draw of another."""
        voters = frozenset(range(1, self.mix.voter_count + 1))
        last = self.mix.voter_count + self.mix.observer_count
        observers = frozenset(range(self.mix.voter_count + 1, last + 1))
        self.machines = [
            Machine(self, PeerConfig(server_id, voters, observers, **self.mix.limits))
            for server_id in range(1, last + 1)
        ]
        self.quorum = self.mix.voter_count // 2 + 1
        self.ensemble = Ensemble(self.machines, voters)
        self.checks = Checks(self.ensemble, self.mark)
        self._nemesis = Nemesis(self, random.Random(f"{seed} faults"))
        self._are_crash_points_on = self.mix.is_faulty
        self._left_out: list[Machine] = []
        """Machines that stay down although others are healed."""
        self._next_number = 0
        self._trace_hash = hashlib.blake2b(digest_size=16)
        self._recent: deque[tuple[int, int, Any]] = deque(maxlen=RECENT)

    # ---- the history ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Live through the seed's history. Raises Violation."""
        self.simulate()

    def simulate(self) -> None:
        """As `run`, without an event loop."""
        try:
            self._live()
        except Exception as error:
            violation = error
            if isinstance(error, AssertionError):
                violation = Violation(f"ShouldNotBeTriggered: {error!r}")
            violation.add_note(f"at {self.scheduler.now_us} us; what came before:")
            violation.add_note("\n".join(self._told()))
            raise violation from error

    def trace_hash(self) -> str:
        """The same for the same history."""
        found = self._trace_hash.copy()
        found.update(repr((self.marks, self.ensemble.committed)).encode())
        return found.hexdigest()

    def _told(self) -> Iterator[str]:
        for now_us, server_id, event in self._recent:
            yield f"{now_us} {server_id} {event if isinstance(event, str) else describe(event)}"

    def _live(self) -> None:
        for machine in self.machines:
            self.scheduler.after(self._rng.randrange(50_000), partial(self._start, machine))
        self._offer()
        self._nemesis.start()
        self.scheduler.run_for(self.mix.duration_ms)
        self._nemesis.stop()
        if (
            self.mix.is_faulty
            and self._rng.random() < 0.4
            and self.happens("only a quorum is healed at first")
        ):
            self._heal_a_quorum()
        self._heal(self.machines)
        self._require_progress(self.machines)
        self._require_stability()
        self._check_disks()

    # ---- healing, and what must follow ----------------------------------------------------------

    def _heal_a_quorum(self) -> None:
        """Only as many voters as are needed; the others stay down, or deaf, or mute."""
        self.mark("only a quorum was healed")
        voters = self._rng.sample(self.ensemble.voters, self.quorum)
        core = [machine for machine in self.machines if machine in voters]
        others = [machine for machine in self.machines if machine not in core]
        how = self._rng.choice(("down", "cut off", "deaf", "mute"))
        if how == "down":
            self._left_out = others
            for machine in others:
                if machine.life is not None:
                    self.crash(machine)
        self._heal(core if how == "down" else self.machines)
        for one in others:
            for other in core:
                if how in ("cut off", "deaf"):
                    self.network.cut(other.server_id, one.server_id)
                if how in ("cut off", "mute"):
                    self.network.cut(one.server_id, other.server_id)
        self._require_progress(core)
        self._left_out = []

    def _heal(self, machines: list[Machine]) -> None:
        self._are_crash_points_on = False
        self.network.faults = NetworkFaults()
        self.network.heal_all()
        self.mix.pace.heal()
        for machine in machines:
            machine.disk.faults = DiskFaults()
            if machine.life is None:
                self._start(machine)
            else:
                machine.life.resume()

    def _require_progress(self, machines: list[Machine]) -> None:
        since = self._next_number
        self._require("Progress", lambda: self._has_progressed(machines, since))

    def _require(self, name: str, holds: Callable[[], bool]) -> None:
        """Let time pass until something holds. Raises Violation after the limit."""
        deadline_us = self.scheduler.now_us + PROGRESS_LIMIT_MS * 1_000
        while not holds():
            if self.scheduler.now_us >= deadline_us:
                states = ", ".join(map(self._state_of, self.machines))
                raise Violation(f"{name}: not within {PROGRESS_LIMIT_MS} ms: {states}")
            self.scheduler.run_for(STEP_MS)

    def _has_progressed(self, machines: list[Machine], since: int) -> bool:
        """One leader, followed by all, and something that was proposed since applied by all."""
        lives = [machine.life for machine in machines if machine.life is not None]
        if len(lives) < len(machines) or sum(life.is_leading for life in lives) != 1:
            return False
        epoch = max(life.peer.epoch for life in lives)
        if not all(life.peer.is_established and life.peer.epoch == epoch for life in lives):
            return False
        least = min(life.applied_count for life in lives)
        return least > 0 and number_of(self.ensemble.committed[least - 1]) > since

    def _require_stability(self) -> None:
        """Without faults, and in the end without writes, nothing changes any more."""
        leading = [life for life in self.lives() if life.is_leading]
        epochs = [life.peer.epoch for life in leading]
        self.scheduler.run_for(STABLE_MS)
        self._next_number = -1  # no more writes
        self._require(
            "Convergence", lambda: all(self._has_everything(life) for life in self.lives())
        )
        if [life for life in self.lives() if life.is_leading] != leading or epochs != [
            life.peer.epoch for life in leading
        ]:
            raise Violation(f"Stability: server {leading[0].server_id} did not go on to lead")
        if not self.mix.is_faulty and self.marks.get("leader change"):
            raise Violation("Stability: without any fault the leader has changed")

    def _has_everything(self, life: Life) -> bool:
        return life.applied_count == len(life.records) == len(self.ensemble.committed)

    def _check_disks(self) -> None:
        """The disks hold what was applied, and nothing else; all that was acknowledged."""
        for life in self.lives():
            NoAckedWriteLost(self.ensemble).check(life)
            if life.log_on_disk() != self.ensemble.committed or life.state != life.records:
                raise Violation(f"Convergence: the disk of {life} holds something else")

    def _state_of(self, machine: Machine) -> str:
        life = machine.life
        if life is None:
            return f"{machine.server_id} down"
        peer = life.peer
        what = "established" if peer.is_established else "not established"
        state = f"{machine.server_id} {peer.role.name} epoch {peer.epoch} {what}"
        return f"{state}, applied {life.applied_count} of {len(life.records)}"

    # ---- what servers ask of the world ----------------------------------------------------------

    def lives(self) -> Iterator[Life]:
        """The processes that run."""
        return (each.life for each in self.machines if each.life and each.life.is_attached)

    def machine(self, server_id: int) -> Machine:
        """The machine of a server."""
        return self.machines[server_id - 1]

    def next_number(self) -> int:
        """The number of the next record."""
        self._next_number += 1
        return self._next_number

    def happens(self, what: str) -> bool:
        """Whether something that was drawn happens; see Script."""
        return self._script.happens(self.scheduler.now_us, what)

    def mark(self, name: str) -> None:
        """A situation was reached that is worth counting."""
        self.marks[name] = self.marks.get(name, 0) + 1

    def trace(self, server_id: int, what: str) -> None:
        """Remember what happens."""
        now_us = self.scheduler.now_us
        self._recent.append((now_us, server_id, what))
        self._trace_hash.update(b"%d %d %s\n" % (now_us, server_id, what.encode()))

    def trace_event(self, server_id: int, event: Any) -> None:
        """Remember an event or an effect; what is in it is put into words only when it is shown."""
        now_us = self.scheduler.now_us
        self._recent.append((now_us, server_id, event))
        self._trace_hash.update(b"%d %d %s\n" % (now_us, server_id, type(event).__name__.encode()))

    def applied(self, life: Life) -> None:
        """A server has applied more: a leader tells its clients."""
        if not life.serves_as_leader:
            return
        pending = life.pending
        done = zxid_of(life.records[life.applied_count - 1])
        while pending and zxid_of(pending[0]) <= done:
            record = pending.popleft()
            self.ensemble.acknowledged[zxid_of(record)] = record
            self.ensemble.last_acknowledged_zxid = max(
                self.ensemble.last_acknowledged_zxid, zxid_of(record)
            )

    # ---- crashes --------------------------------------------------------------------------------

    def crash_point(self, machine: Machine, place: str) -> None:
        """A moment at which a crash is worth trying. May raise PowerLoss."""
        match place:
            case "between work and notice":
                rate = self.mix.notice_crash_rate
            case "before Ack" | "after Ack":
                rate = self.mix.ack_crash_rate
            case _:
                rate = self.mix.message_crash_rate
        self._maybe_crash(machine, place, rate)

    def disk_crash_point(self, machine: Machine, place: str) -> None:
        """As `crash_point`, in the middle of a disk job."""
        if machine.taking_over is None:
            self._maybe_crash(machine, place, self.mix.disk_crash_rate)
        else:
            self._maybe_crash(machine, f"{place}, installing", self.mix.install_crash_rate)

    def _maybe_crash(self, machine: Machine, place: str, rate: float) -> None:
        if (
            self._are_crash_points_on
            and rate
            and machine.crash_rng.random() < rate
            and self.happens(f"server {machine.server_id} crashes {place}")
        ):
            self.mark(f"crash {place}")
            self.trace(machine.server_id, f"crash {place}")
            if machine.crash_rng.random() < self.mix.leader_too_rate and self.happens(
                "and so does whoever leads"
            ):
                self.scheduler.after(0, self._crash_leaders)
            raise PowerLoss

    def _crash_leaders(self) -> None:
        for life in list(self.lives()):
            if life.is_leading:
                self.crash(life.machine)

    def crash(self, machine: Machine, *, power_lost: bool | None = None) -> None:
        """End a process, perhaps with its machine; it is started again after a while."""
        life = machine.life
        assert life is not None, machine.server_id
        if power_lost is None:
            power_lost = machine.crash_rng.random() < self.mix.power_loss_rate
        self.trace(machine.server_id, f"down, power {'lost' if power_lost else 'kept'}")
        life.end(power_lost=power_lost)
        machine.life = None
        if power_lost:
            machine.disk.crash(lose_unsynced=machine.crash_rng.random() < 0.3)
        else:
            machine.disk.kill()
        delay_us = int(machine.crash_rng.expovariate(1) * self.mix.mean_down_ms * 1_000)
        self.scheduler.after(delay_us, lambda: self._start(machine))

    def _start(self, machine: Machine) -> None:
        if machine.life is not None or machine in self._left_out:
            return
        self.trace(machine.server_id, "starts")
        try:
            machine.boot()
        except PowerLoss:
            self.crash(machine)
        except (OSError, DiskFullError) as error:
            if isinstance(error, OSError) and error.errno != errno.ENOSPC:
                raise
            self.mark("no space to start")
            machine.disk.faults = DiskFaults()
            self.crash(machine, power_lost=False)
        except StorageError as error:
            raise Violation(f"StartRefused: server {machine.server_id}: {error}") from error

    # ---- clients --------------------------------------------------------------------------------

    def _offer(self) -> None:
        """Let everybody who serves as leader propose something, now and again and again."""
        self._offers += 1
        rng, mix = random.Random(f"{self.seed} offer {self._offers}"), self.mix
        if self._next_number < 0:
            return
        for life in list(self.lives()):
            if life.serves_as_leader and not life.is_paused and len(life.pending) < MAX_PENDING:
                count = rng.randint(1, mix.most_in_propose)
                if self._nemesis.is_stopped or self.happens(
                    f"server {life.server_id} proposes {count}"
                ):
                    life.propose(count)
            if life.serves_as_leader and not (life.is_over or life.is_paused):
                life.confirm_lead()
        self.scheduler.after(int(rng.expovariate(1) * mix.mean_propose_ms * 1_000), self._offer)
