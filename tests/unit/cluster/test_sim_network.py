"""The simulated network: order within a link, and what a broken one tells whom."""

from __future__ import annotations

import random
from typing import Any

import pytest

from duolog_cluster.sim.network import Link, Network, NetworkFaults
from duolog_cluster.sim.scheduler import Scheduler

SEEDS = range(30)


class Process:
    """An endpoint that writes down what it hears."""

    def __init__(self, address: int) -> None:
        self.address = address
        self.links: list[Link] = []
        self.heard: list[Any] = []
        self.lost: list[Link] = []
        self.datagrams: list[Any] = []
        self.failed_dials: list[int] = []

    def link_opened(self, link: Link, dialled: bool) -> None:
        self.links.append(link)

    def dial_failed(self, target: int) -> None:
        self.failed_dials.append(target)

    def message_received(self, link: Link, message: Any) -> None:
        assert link in self.links and link not in self.lost
        self.heard.append(message)

    def link_lost(self, link: Link) -> None:
        assert link in self.links and link not in self.lost
        self.lost.append(link)

    def datagram_received(self, source: int, message: Any) -> None:
        self.datagrams.append((source, message))


class World:
    """Two processes, connected."""

    def __init__(self, seed: int, **faults: Any) -> None:
        self.scheduler = Scheduler()
        self.network = Network(self.scheduler, random.Random(seed), NetworkFaults(**faults))
        self.one, self.two = Process(1), Process(2)
        for process in (self.one, self.two):
            self.network.attach(process.address, process)
        self.network.dial(1, 2)
        self.scheduler.run_for(100)

    def pump(self, count: int = 100) -> None:
        """Send in both directions, a message every 100 us."""
        for number in range(count):
            self.one.links[0].send(number)
            self.two.links[0].send(-number)
            self.scheduler.run_until(self.scheduler.now_us + 100)


def is_prefix(found: list[int], whole: list[int]) -> bool:
    return found == whole[: len(found)]


@pytest.mark.parametrize("seed", SEEDS)
def test_messages_arrive_in_order(seed: int) -> None:
    world = World(seed)
    world.pump()
    world.scheduler.run_for(1_000)
    assert world.two.heard == list(range(100))
    assert world.one.heard == [-number for number in range(100)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stall_delays_and_keeps_the_order(seed: int) -> None:
    world = World(seed)
    world.network.stall(1, 2, 50)
    world.pump()
    assert not world.two.heard and world.one.heard
    world.scheduler.run_for(1_000)
    assert world.two.heard == list(range(100))
    assert not world.two.lost


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lost_message_breaks_the_link_and_both_ends_learn_it(seed: int) -> None:
    world = World(seed, loss_rate=0.02)
    world.pump(300)
    world.scheduler.run_for(60_000)
    assert world.one.lost and world.two.lost
    assert is_prefix(world.two.heard, list(range(300)))
    assert len(world.two.heard) < 300 or len(world.one.heard) < 300


@pytest.mark.parametrize("seed", SEEDS)
def test_a_one_way_cut_leaves_the_other_direction(seed: int) -> None:
    world = World(seed, silent_rate=1.0)
    world.network.cut(1, 2)
    world.pump()
    world.scheduler.run_for(1_000)
    assert not world.two.heard
    assert len(world.one.heard) == 100
    assert not world.one.lost and not world.two.lost, "half-open: nobody learns it"
    world.network.heal_all()
    world.pump()
    world.scheduler.run_for(1_000)
    assert not world.two.heard, "a broken link is not mended"


def test_a_new_link_works_after_a_cut_was_healed() -> None:
    world = World(0)
    world.network.cut(2, 1)
    world.network.dial(1, 2)
    world.scheduler.run_for(10_000)
    assert world.one.failed_dials == [2] and world.one.lost and world.two.lost
    world.network.heal(2, 1)
    world.network.dial(1, 2)
    world.scheduler.run_for(100)
    world.one.links[1].send("again")
    world.scheduler.run_for(100)
    assert world.two.heard == ["again"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_close_is_learnt_behind_what_was_sent(seed: int) -> None:
    world = World(seed)
    for number in range(5):
        world.one.links[0].send(number)
    world.one.links[0].close()
    world.one.links[0].send("never")
    world.scheduler.run_for(100)
    assert is_prefix(world.two.heard, list(range(5)))
    assert len(world.two.lost) == 1 and not world.one.lost


def test_a_dead_process_is_learnt_by_its_peers_and_refuses_dials() -> None:
    world = World(0)
    world.network.detach(2)
    world.network.dial(1, 2)
    world.scheduler.run_for(50)
    assert len(world.one.lost) == 1 and world.one.failed_dials == [2]


def test_a_machine_without_power_says_nothing_until_it_is_back() -> None:
    world = World(0, silent_rate=1.0)
    world.network.detach(2, power_lost=True)
    world.pump(10)
    world.scheduler.run_for(1_000)
    assert not world.one.lost
    world.network.attach(2, Process(2))
    world.one.links[0].send("are you there?")
    world.scheduler.run_for(50)
    assert len(world.one.lost) == 1


def test_a_new_process_hears_nothing_of_its_predecessor() -> None:
    world = World(0)
    world.one.links[0].send("for the old one")
    world.network.dial(2, 1)
    world.network.detach(2)
    heir = Process(2)
    world.network.attach(2, heir)
    world.scheduler.run_for(1_000)
    assert not heir.heard and not heir.links and not heir.failed_dials


def test_datagrams_are_lost_and_overtaken() -> None:
    world = World(3, datagram_loss_rate=0.2, late_datagram_rate=0.3)
    for number in range(200):
        world.network.send_datagram(1, 2, number)
        world.scheduler.run_until(world.scheduler.now_us + 1_000)
    world.scheduler.run_for(2_000)
    numbers = [number for _, number in world.two.datagrams]
    assert 100 < len(numbers) < 190
    assert len(set(numbers)) == len(numbers) and numbers != sorted(numbers)


def test_dials_fail_and_take_long() -> None:
    world = World(1)
    world.network.faults.dial_failure_rate = 0.3
    world.network.faults.slow_dial_rate = 0.5
    before = len(world.one.links)
    for _ in range(100):
        world.network.dial(1, 2)
    world.scheduler.run_for(10)
    soon = len(world.one.links)
    world.scheduler.run_for(2_000)
    assert before < soon < len(world.one.links)
    assert len(world.one.links) - before + len(world.one.failed_dials) == 100


def test_one_seed_gives_one_history() -> None:
    def history(seed: int) -> list[Any]:
        world = World(seed, loss_rate=0.01, mean_jitter_us=900)
        world.pump(200)
        world.scheduler.run_for(5_000)
        return [*world.one.heard, *world.two.heard, world.scheduler.event_count]

    assert history(7) == history(7)
    assert history(7) != history(8)


def test_callbacks_run_at_their_moment_in_the_order_they_were_asked_for() -> None:
    scheduler = Scheduler()
    found: list[tuple[str, int]] = []
    for name, delay in (("b", 20), ("a", 10), ("c", 20)):
        scheduler.after(delay, lambda name=name: found.append((name, scheduler.now_us)))
    scheduler.after(10, lambda: scheduler.at(0, lambda: found.append(("now", scheduler.now_us))))
    start = scheduler.now_us
    scheduler.run_until(start + 19)
    assert found == [("a", start + 10), ("now", start + 10)]
    scheduler.run_for(1)
    assert [name for name, _ in found] == ["a", "now", "b", "c"]
    assert scheduler.now_us == start + 1_019 and not scheduler.run_next()
