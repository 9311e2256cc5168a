"""What goes wrong in one history of an ensemble: drawn once for each seed, then made to happen.

Swarm testing: each seed draws which kinds of faults there are and how many of each, since faults of
every kind at once hide what one kind alone would show. A quarter of the seeds has none.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from duolog_cluster.sim.network import NetworkFaults
from duolog_cluster.sim.process_parts import DiskPace

if TYPE_CHECKING:
    from .ensemble_world import EnsembleWorld

ACTIONS = (
    *("crash one", "crash many", "crash leader", "cut pair", "cut one way", "isolate"),
    *("isolate leader", "stall", "pause", "pause leader", "full disk", "calm"),
)


@dataclass(slots=True)
class FaultMix:
    """The draw of one seed. Rates are 0 to 1, for each time that it could happen."""

    voter_count: int = 3
    observer_count: int = 0
    duration_ms: int = 8_000
    """How long faults happen."""
    network: NetworkFaults = field(default_factory=NetworkFaults)
    pace: DiskPace = field(default_factory=DiskPace)
    limits: dict[str, Any] = field(default_factory=dict)
    """Fields of PeerConfig."""
    log_file_bytes: int = 4_096
    snap_count: int = 1_000_000
    """A server takes a snapshot after so many records, or half of them."""
    snap_retain_count: int = 1
    """Snapshots that are kept, with the log behind the oldest of them."""
    most_in_history: int = 8
    """Records of a proposal of the history."""
    mean_propose_ms: int = 20
    most_in_propose: int = 4
    disk_crash_rate: float = 0.0
    """At every sync and rename, before it and after it."""
    install_crash_rate: float = 0.0
    """The same while a snapshot of the leader takes the place of what is there."""
    notice_crash_rate: float = 0.0
    """Between the end of a disk job and the event that tells it."""
    ack_crash_rate: float = 0.0
    """Before and after an acknowledgement of records."""
    message_crash_rate: float = 0.0
    """Before and after another message that something had to be durable for."""
    leader_too_rate: float = 0.5
    """The leader crashes with who crashes at one of these points."""
    power_loss_rate: float = 0.5
    """Share of crashes that take the page cache with them."""
    mean_down_ms: int = 800
    actions: tuple[str, ...] = ()
    """What the nemesis does, one of them every now and then."""
    mean_action_ms: int = 1_000
    mean_trouble_ms: int = 1_000
    """How long a cut, a stall or a pause lasts."""

    @property
    def is_faulty(self) -> bool:
        """Anything may go wrong at all."""
        return bool(self.actions)


def draw_mix(seed: int) -> FaultMix:
    """The faults of a seed."""
    rng = random.Random(f"{seed} mix")
    mix = FaultMix(
        voter_count=rng.choice((3, 3, 3, 5)),
        observer_count=rng.choice((0, 0, 1)),
        duration_ms=rng.choice((4_000, 7_000, 11_000)),
        log_file_bytes=rng.choice((400, 2_000, 20_000)),
        most_in_history=rng.choice((1, 3, 20)),
        mean_propose_ms=rng.choice((25, 60, 150)),
        most_in_propose=rng.choice((1, 3, 8)),
    )
    ping = rng.choice((80, 250))
    mix.limits = {
        "finalize_wait_ms": rng.choice((0, 5, 20, 100)),
        "ping_interval_ms": ping,
        "sync_limit_ms": ping * rng.choice((4, 6)),
        "init_limit_ms": rng.choice((2_500, 5_000)),
    }
    mix.pace = DiskPace(
        mean_work_us=rng.choice((300, 2_000, 8_000)),
        mean_notice_us=rng.choice((100, 1_000)),
    )
    mix.snap_count = rng.choice((8, 30, 120, 1_000_000))
    mix.limits["disk_limit_ms"] = rng.choice((250, 10_000))
    mix.snap_retain_count = rng.choice((1, 1, 3))
    if rng.random() < 0.25:
        return mix
    mix.limits["max_queued_bytes"] = random.Random(f"{seed} queue").choice((600, 1 << 27))
    mix.network = _draw_network(rng)
    mix.pace.stall_rate = rng.choice((0.0, 0.0, 0.01))
    if rng.random() < 0.6:
        mix.disk_crash_rate = rng.choice((0.0, 0.0005, 0.002))
        mix.install_crash_rate = rng.choice((0.0, 0.05, 0.2))
        mix.notice_crash_rate = rng.choice((0.0, 0.002, 0.01))
        mix.ack_crash_rate = rng.choice((0.0, 0.001, 0.01))
        mix.message_crash_rate = rng.choice((0.0, 0.02, 0.1))
    mix.power_loss_rate = rng.choice((0.2, 0.7, 1.0))
    mix.mean_down_ms = rng.choice((50, 400, 1_500))
    mix.mean_action_ms = rng.choice((300, 800, 2_000))
    mix.mean_trouble_ms = rng.choice((200, 800, 2_500))
    mix.actions = tuple(each for each in ACTIONS if rng.random() < 0.4) or ("calm",)
    return mix


def _draw_network(rng: random.Random) -> NetworkFaults:
    return NetworkFaults(
        base_latency_us=rng.choice((50, 200, 2_000)),
        mean_jitter_us=rng.choice((50, 300, 3_000)),
        loss_rate=rng.choice((0.0, 0.0, 0.0005, 0.003)),
        datagram_loss_rate=rng.choice((0.0, 0.05, 0.3)),
        late_datagram_rate=rng.choice((0.0, 0.05, 0.3)),
        late_ms=rng.choice((100, 1_000, 4_000)),
        dial_failure_rate=rng.choice((0.0, 0.1)),
        slow_dial_rate=rng.choice((0.0, 0.1)),
        dial_limit_ms=rng.choice((300, 1_000)),
        silent_rate=rng.choice((0.0, 0.3, 1.0)),
        mean_notice_ms=rng.choice((20, 300)),
    )


class Nemesis:
    """Does one of the seed's actions every now and then, until it is stopped."""

    def __init__(self, world: EnsembleWorld, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._actions = 0
        self.is_stopped = False
        """The world heals: what must follow is required."""

    def start(self) -> None:
        """Begin, unless the seed has no faults."""
        if self._world.mix.is_faulty:
            self._again()

    def stop(self) -> None:
        """No more of it, not even the end of what was done: the world heals all."""
        self.is_stopped = True

    def _again(self) -> None:
        mean_us = self._world.mix.mean_action_ms * 1_000
        self._world.scheduler.after(int(self._rng.expovariate(1) * mean_us), self._act)

    def _act(self) -> None:
        if self.is_stopped:
            return
        self._actions += 1
        # Of its own: what a script leaves out of one action changes no draw of another.
        self._rng = random.Random(f"{self._world.seed} action {self._actions}")
        action = self._rng.choice(self._world.mix.actions)
        self._world.trace(0, f"nemesis: {action}")
        self._do(action)
        self._again()

    def _do(self, action: str) -> None:
        world, rng = self._world, self._rng
        ids = [machine.server_id for machine in world.machines]
        one, other = rng.sample(ids, 2)
        leaders = [life.server_id for life in world.lives() if life.is_leading]
        leader = rng.choice(leaders) if leaders else one
        match action:
            case "crash one":
                self._crash([one])
            case "crash many":
                self._crash(rng.sample(ids, rng.randint(2, len(ids))))
            case "crash leader":
                self._crash([leader])
            case "cut pair":
                self._cut([(one, other), (other, one)])
            case "cut one way":
                self._cut([(one, other)])
            case "isolate":
                self._cut(self._around(rng.sample(ids, rng.randint(1, len(ids) // 2))))
            case "isolate leader":
                self._cut(self._around([leader]))
            case "stall":
                duration_ms = self._duration_ms()
                if world.happens(f"what goes from {one} to {other} stalls for {duration_ms} ms"):
                    world.network.stall(one, other, duration_ms)
            case "pause":
                self._pause(one)
            case "pause leader":
                self._pause(leader)
            case "full disk":
                disk = world.machine(one).disk
                after, count = rng.randint(1, 20), rng.choice((1, 3, 20))
                if world.happens(f"the disk of {one} is full after {after} writes, for {count}"):
                    disk.faults.full_at_write = disk.write_count + after
                    disk.faults.full_for_writes = count

    def _duration_ms(self) -> int:
        return int(self._rng.expovariate(1) * self._world.mix.mean_trouble_ms)

    def _crash(self, ids: list[int]) -> None:
        for server_id in ids:
            machine = self._world.machine(server_id)
            if machine.life is not None and self._world.happens(f"server {server_id} crashes"):
                self._world.crash(machine)

    def _around(self, ids: list[int]) -> list[tuple[int, int]]:
        """Every direction, or every one in or out, between these and the others."""
        others = [each.server_id for each in self._world.machines if each.server_id not in ids]
        ways = self._rng.choice(("both", "both", "in", "out"))
        found = []
        for inside in ids:
            for outside in others:
                found += [(inside, outside)] * (ways != "in") + [(outside, inside)] * (
                    ways != "out"
                )
        return found

    def _cut(self, ways: list[tuple[int, int]]) -> None:
        duration_ms = self._duration_ms()
        names = ", ".join(f"{source} to {target}" for source, target in ways)
        if not self._world.happens(f"cut for {duration_ms} ms: {names}"):
            return
        for source, target in ways:
            self._world.network.cut(source, target)

        def heal() -> None:
            if not self.is_stopped:
                for source, target in ways:
                    self._world.network.heal(source, target)

        self._world.scheduler.after(duration_ms * 1_000, heal)

    def _pause(self, server_id: int) -> None:
        life = self._world.machine(server_id).life
        duration_ms = self._duration_ms()
        if life is not None and self._world.happens(
            f"server {server_id} stands still for {duration_ms} ms"
        ):
            life.pause()
            self._world.scheduler.after(duration_ms * 1_000, life.resume)
