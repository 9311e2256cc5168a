"""Stories of an ensemble that seeds hardly ever tell: each step by step, in the ensemble's world.

A story is for a bug that needs several things to happen in one order. All invariants are checked as
in any other history; what the story itself asks for is said in it. `SCENARIOS` has them all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from duolog_cluster.sim.disk import PowerLoss

from .ensemble_faults import FaultMix
from .ensemble_machine import Machine
from .ensemble_server import Life
from .ensemble_world import EnsembleWorld
from .violation import Violation

MOST_POINTS: Final = 100
LIMIT_MS: Final = 20_000
"""Whatever a story waits for happens within so long."""


class Stage(EnsembleWorld):
    """Three voters to whom nothing happens unless the story says so."""

    def __init__(self, seed: int = 1, *, snap_count: int = 1_000_000) -> None:
        super().__init__(seed, FaultMix(snap_count=snap_count, log_file_bytes=400))
        for machine in self.machines:
            self._start(machine)
        self.until("Progress", self._all_serve)

    def _all_serve(self) -> bool:
        return all(each.life and each.life.serving_epoch for each in self.machines)

    def until(self, name: str, holds: Callable[[], bool]) -> None:
        """Let time pass, ms by ms, until something holds. Raises a Violation of that name."""
        deadline_us = self.scheduler.now_us + LIMIT_MS * 1_000
        while not holds():
            if self.scheduler.now_us >= deadline_us:
                raise Violation(f"{name}: not within {LIMIT_MS} ms")
            self.scheduler.run_for(1)

    def leader(self) -> Life:
        """Whom all that are not cut off follow."""
        return max((each for each in self.lives() if each.is_leading), key=lambda x: x.peer.epoch)

    def life(self, machine: Machine) -> Life:
        """The process of a machine, which runs."""
        assert machine.life is not None, machine.server_id
        return machine.life

    def isolate(self, machine: Machine) -> None:
        """Nothing comes in or out, and nobody is told of it."""
        self.network.faults.silent_rate = 1.0
        for other in self.machines:
            if other is not machine:
                self.network.cut(machine.server_id, other.server_id)
                self.network.cut(other.server_id, machine.server_id)

    def rejoin(self) -> None:
        """All are connected, and up."""
        self.network.heal_all()
        for machine in self.machines:
            if machine.life is None:
                self._start(machine)
        self.until("Progress", self._all_serve)

    def crash_for_long(self, machine: Machine, *, power_lost: bool = False) -> None:
        """End a process; the story starts it again."""
        self.mix.mean_down_ms = 10_000_000
        self.crash(machine, power_lost=power_lost)

    def leave_alone(self, count: int) -> Machine:
        """The leader logs so many records that nobody else gets, and goes; the others elect."""
        old = self.leader()
        self.isolate(old.machine)
        old.propose(count)
        self.until("Progress", lambda: len(old.durable) == len(old.records))
        self.crash_for_long(old.machine)
        self.until("Progress", lambda: any(life.is_leading for life in self.lives()))
        return old.machine

    def leave_far_behind(self) -> Machine:
        """As `leave_alone`; then the others write and purge so much that it needs a snapshot."""
        far = self.leave_alone(2)
        for _ in range(6):
            self.leader().propose(5)
            self.scheduler.run_for(100)
        if self.marks.get("log purged", 0) < 2:
            raise Violation("NotReached: a log is whole")
        return far

    def until_event(self, what: str, holds: Callable[[], bool]) -> None:
        """Let things happen one by one until something holds."""
        deadline_us = self.scheduler.now_us + LIMIT_MS * 1_000
        while not holds() and self.scheduler.run_next():
            if self.scheduler.now_us >= deadline_us:
                raise Violation(f"NotReached: {what}")

    def until_mark(self, mark: str) -> None:
        """Let things happen one by one until there is this mark."""
        self.until_event(mark, lambda: bool(self.marks.get(mark)))


def a_deposed_leader_is_asked_for_a_sync() -> None:
    """Another leader is established before the old one has missed its followers (A.10)."""
    stage = Stage()
    stage.leader().propose(2)
    stage.scheduler.run_for(100)
    old = stage.leader()
    stage.isolate(old.machine)
    for _ in range(LIMIT_MS):
        if not old.serves_as_leader:
            break
        if stage.leader() is not old:
            stage.mark("asked")
            old.confirm_lead()
        stage.scheduler.run_for(1)
    else:
        raise Violation("LosesItsQuorum: the old leader goes on alone")
    if not stage.marks.get("asked"):
        raise Violation("NotReached: the old leader was gone before there was a new one")


def what_is_not_committed_is_applied_at_the_start() -> None:
    """A follower comes back with what only it and its leader have, and neither has heard of it."""
    stage = Stage()
    leader = stage.leader()
    back, other = (each for each in stage.machines if each is not leader.machine)
    stage.network.stall(leader.server_id, other.server_id, 1_000)
    stage.network.faults.silent_rate = 1.0
    stage.network.cut(back.server_id, leader.server_id)
    leader.propose(1)
    stage.until("Progress", lambda: len(back.durable) == 1)
    stage.crash_for_long(back)
    stage.network.heal(back.server_id, leader.server_id)
    stage._start(back)
    life = stage.life(back)
    if not life.state or leader.applied_count:
        raise Violation("NotReached: it is committed already")
    stage.until("Progress", lambda: bool(life.serving_epoch))
    if stage.leader() is not leader:
        raise Violation("NotReached: another leader")


def what_was_applied_at_the_start_is_truncated() -> None:
    """A server comes back with what nobody else has, and nothing is written from then on."""
    stage = Stage()
    back = stage.leave_alone(3)
    stage.rejoin()
    if stage.life(back).state:
        raise Violation("Truncation: it shows what was truncated")


def the_power_is_lost_behind_a_truncation() -> None:
    """A server was cut back, has adopted the epoch, and then forgets all that was not synced."""
    stage = Stage()
    back = stage.leave_alone(3)
    stage.rejoin()
    if back.durable or stage.life(back).peer.current_epoch != stage.leader().peer.epoch:
        raise Violation("NotReached: it was not cut")
    back.disk.faults.drop_rate = 1.0
    stage.crash_for_long(back, power_lost=True)
    stage.rejoin()


def _have_promised(machines: list[Machine], epoch: int) -> bool:
    return all(each.accepted_epoch == epoch for each in machines)


def who_leads_has_promised_less_than_its_followers() -> None:
    """Two servers have promised epochs that came to nothing, while the next leader was away."""
    stage = Stage()
    stage.leader().propose(1)
    stage.scheduler.run_for(100)
    *others, away = stage.machines
    stage.isolate(away)
    for epoch in (2, 3):
        for each in others:
            stage.crash_for_long(each)
        for each in others:
            stage._start(each)
        stage.until_event(f"epoch {epoch}", partial(_have_promised, others, epoch))
        if any(each.current_epoch > 1 for each in others):
            raise Violation("NotReached: the epoch was adopted")
    for each in stage.machines:
        stage.crash_for_long(each)
    if away.accepted_epoch > 1:
        raise Violation("NotReached: it has promised as much")
    stage.rejoin()
    if stage.leader().machine is not away:
        raise Violation("NotReached: another leader")


def a_learner_loses_its_power_anywhere_while_it_takes_a_snapshot() -> None:
    """Before and after every sync and rename of it, with nothing, some or all of the rest kept."""
    for seed, drop_rate in enumerate((1.0, 0.0, *[0.5] * 6)):
        for point in range(1, MOST_POINTS):
            if not _loses_its_power_at(point, drop_rate, seed):
                break
        else:
            raise Violation("NotReached: the installation has no end")
        if point < 10:
            raise Violation(f"NotReached: {point} points")


def _loses_its_power_at(point: int, drop_rate: float, seed: int) -> bool:
    """At this one of the points; whether there was one."""
    stage = Stage(seed, snap_count=8)
    far = stage.leave_far_behind()
    seen = 0

    def count(when: str, kind: str, path: str) -> None:
        nonlocal seen
        if any(part in path for part in ("received", "snapshot", "log.")) or far.taking_over:
            seen += 1
            if seen == point:
                raise PowerLoss

    far.disk.crash_points = count
    far.disk.faults.drop_rate = far.disk.faults.name_drop_rate = drop_rate
    stage.mix.mean_down_ms, stage.mix.power_loss_rate = 10, 1.0
    stage.rejoin()
    if not stage.marks.get("snapshot installed"):
        raise Violation("NotReached: no snapshot was sent")
    stage.leader().propose(1)
    stage.until("Convergence", lambda: len(far.durable) == len(stage.leader().durable))
    far.disk.crash_points = None
    stage.crash(far, power_lost=True)
    stage.rejoin()
    return seen >= point


def who_was_given_half_a_snapshot_elects_with_who_has_everything() -> None:
    """The leader of an epoch that no quorum has adopted dies while it sends its snapshot."""
    stage = Stage(snap_count=8)
    far = stage.leave_far_behind()
    leader, other = stage.leader(), next(each for each in stage.lives() if not each.is_leading)
    stage.scheduler.run_for(500)
    acknowledged = len(stage.ensemble.acknowledged)
    stage.crash_for_long(other.machine)
    stage.network.heal_all()
    stage.until("NotReached", lambda: not leader.is_leading)
    stage._start(far)
    stage.until_mark("snapshot sent")
    stage.scheduler.run_for(8)  # long enough for an epoch file, too short for the whole of it
    if far.taking_over or len(far.durable) > 2:
        raise Violation("NotReached: it has all of it already")
    stage.crash_for_long(leader.machine)
    stage._start(other.machine)
    stage.until("Progress", lambda: any(life.is_leading for life in stage.lives()))
    stage.rejoin()
    if not acknowledged or len(stage.leader().records) < acknowledged:
        raise Violation("NoAckedWriteLost: what was acknowledged is gone")


def a_leader_dies_while_its_snapshot_is_installed() -> None:
    """Its learner looks for another one, and says what it has, once the disk has done its work."""
    stage = Stage(snap_count=8)
    far = stage.leave_far_behind()
    stage.network.heal_all()
    stage._start(far)
    stage.until_mark("snapshot sent")
    stage.mix.pace.mean_work_us = 100_000
    stage.until_mark("snapshot installed")
    stage.crash_for_long(stage.leader().machine)
    stage.scheduler.run_for(1_000)
    stage.mix.pace.heal()
    stage.until("Progress", lambda: any(life.is_leading for life in stage.lives()))
    stage.rejoin()


SCENARIOS: Final[dict[str, Callable[[], None]]] = {
    each.__name__: each
    for each in (
        a_deposed_leader_is_asked_for_a_sync,
        what_is_not_committed_is_applied_at_the_start,
        what_was_applied_at_the_start_is_truncated,
        the_power_is_lost_behind_a_truncation,
        who_leads_has_promised_less_than_its_followers,
        a_learner_loses_its_power_anywhere_while_it_takes_a_snapshot,
        who_was_given_half_a_snapshot_elects_with_who_has_everything,
        a_leader_dies_while_its_snapshot_is_installed,
    )
}
