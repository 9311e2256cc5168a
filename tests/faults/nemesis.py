"""What happens to the servers of a real ensemble while clients work: random faults, and their end.

    kill       SIGKILL, then a start on the same data: one server, several, or all at once
    suspend    SIGSTOP, then SIGCONT
    partition  ways between servers let nothing through: one server is cut off, one direction only,
               or any ways at all
    fill       a server's disk is full, where each has a small one of its own

Every second fault is aimed at the leader. Faults overlap; now and then all of them end. What is
done is drawn from one seed; when exactly it happens is the machine's affair.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from bench.ensembles import Ensemble, Server

from .proxies import Network, Way
from .small_disks import SmallDisks

HOLD_S: Final = ((0.05, 1.0), (0.1, 3.0), (0.1, 3.0), (3.0, 6.0))
"""How long a fault lasts: one of these ranges."""
PAUSE_S: Final = (0.05, 1.5)
CALM_EVERY: Final = 8
"""Faults after which all end, and the servers have a moment."""
CALM_S: Final = 1.5
FORGET_AT: Final = 4
FORGET_S: Final = 20.0
FORGOTTEN_S: Final = 8.0
"""Time for clients to give up their sessions, and to write to those that know nothing of them."""
_STEP_S: Final = 0.02


class Nemesis:
    """Faults of one round."""

    def __init__(
        self,
        ensemble: Ensemble,
        network: Network,
        disks: SmallDisks | None,
        rng: random.Random,
        *,
        spared: Sequence[int] = (),
        forgetful: Sequence[int] = (),
    ) -> None:
        """`spared`: ids of servers to which nothing is done, nor to what they hear and say.
        `forgetful`: of a quorum that once loses its data, which no ensemble survives: it must be
        found."""
        self.counts: Counter[str] = Counter()
        """How often each fault happened."""
        self.deaths: list[str] = []
        """Servers that ended by themselves: what they said last."""
        self._killed: set[int] = set()
        self._pause = threading.Event()
        """Never set."""
        self._ensemble = ensemble
        self._network = network
        self._disks = disks
        self._rng = rng
        self._victims = [each for each in ensemble.servers if each.server_id not in spared]
        self._forgetful = frozenset(forgetful)
        self._spared = frozenset(spared)
        self._ends: list[tuple[float, Callable[[], None]]] = []
        """(moment, what ends a fault)."""

    def run(self, seconds: float, keep_going: Callable[[], bool]) -> None:
        """Do harm for so long, then end all of it."""
        deadline = time.monotonic() + seconds
        count = 0
        while time.monotonic() < deadline and keep_going():
            count += 1
            if self._forgetful and count == FORGET_AT:
                self._forget()
            if count % CALM_EVERY == 0:
                self.end_all()
                self._pass(CALM_S)
            self._harm()
            self._pass(self._rng.uniform(*PAUSE_S))
        self.end_all()

    def end_all(self) -> None:
        """No fault is left, and every server runs."""
        for _, end in sorted(self._ends, key=lambda each: each[0]):
            end()
        self._ends.clear()
        self._network.heal(self._network.ways())
        for each in self._victims:
            self._resume(each)
            self._restart(each)

    def _pass(self, seconds: float) -> None:
        """Let time pass; faults end when it is their time. What ended by itself is seen."""
        deadline = time.monotonic() + seconds
        while (now := time.monotonic()) < deadline:
            self._look_for_deaths()
            for each in [each for each in self._ends if each[0] <= now]:
                self._ends.remove(each)
                each[1]()
            self._pause.wait(_STEP_S)

    def _look_for_deaths(self) -> None:
        for each in self._victims:
            if not each.is_running and each.server_id not in self._killed:
                self.counts["ended by itself"] += 1
                self.deaths.append(str(each.problem("ended by itself")))
                self._killed.add(each.server_id)
                self._until_later(partial(self._restart, each))

    def _until_later(self, end: Callable[[], None]) -> None:
        hold_s = self._rng.uniform(*self._rng.choice(HOLD_S))
        self._ends.append((time.monotonic() + hold_s, end))

    def _harm(self) -> None:
        rng = self._rng
        kinds = ["kill", "kill", "suspend", "partition", "partition"]
        if self._disks is not None:
            kinds.append("fill")
        kind = rng.choice(kinds)
        self.counts[kind] += 1
        victims = self._choose()
        match kind:
            case "kill":
                if rng.random() < 0.15:
                    self.counts["kill of all"] += 1
                    victims = self._victims
                for each in victims:
                    self._kill(each)
                self._until_later(partial(_each, self._restart, victims))
            case "suspend":
                for each in victims:
                    each.send_signal(signal.SIGSTOP)
                self._until_later(partial(_each, self._resume, victims))
            case "partition":
                ways = self._some_ways(victims)
                self._network.cut(ways)
                self._until_later(partial(self._network.heal, ways))
            case "fill":
                assert self._disks is not None
                for each in victims:
                    keep_bytes = rng.choice((0, 0, 4_096, 100_000))
                    self._disks.fill(each.server_id, keep_bytes=keep_bytes)
                self._until_later(partial(_each, self._empty, victims))

    def _forget(self) -> None:
        """A quorum begins anew, and the rest comes later."""
        self.end_all()
        self._pass(CALM_S)
        self.counts["loss of a quorum's data"] += 1
        for each in self._victims:
            self._kill(each)
        for each in self._victims:
            if each.server_id in self._forgetful:
                each.forget()
                self._restart(each)
        deadline = time.monotonic() + FORGET_S
        while time.monotonic() < deadline:
            self._pass(CALM_S)
            if any(each.glance().mode == "leader" for each in self._victims):
                self.counts["and it serves"] += 1
                self._pass(FORGOTTEN_S)
                break
        for each in self._victims:
            self._restart(each)

    def _choose(self) -> list[Server]:
        """Mostly one server, every second time the leader; sometimes two."""
        rng = self._rng
        victims = rng.sample(self._victims, min(len(self._victims), rng.choice((1, 1, 1, 2))))
        aimed = rng.random() < 0.5
        if aimed:
            leaders = [each for each in self._victims if each.glance().mode == "leader"]
            if leaders and leaders[0] not in victims:
                victims[0] = leaders[0]
        return victims

    def _some_ways(self, victims: list[Server]) -> list[Way]:
        ids = {each.server_id for each in victims}
        ways = [each for each in self._network.ways() if not self._spared.intersection(each)]
        crossing = [way for way in ways if (way[0] in ids) != (way[1] in ids)]
        match self._rng.choice(("both", "both", "out", "in", "some")):
            case "both":
                return crossing
            case "out":
                return [way for way in crossing if way[0] in ids]
            case "in":
                return [way for way in crossing if way[1] in ids]
            case _:
                return self._rng.sample(ways, self._rng.randrange(1, len(ways)))

    def _kill(self, server: Server) -> None:
        self._killed.add(server.server_id)
        server.kill()

    def _restart(self, server: Server) -> None:
        if not server.is_running:
            server.start()
            self._killed.discard(server.server_id)

    def _resume(self, server: Server) -> None:
        if server.is_suspended:
            server.send_signal(signal.SIGCONT)

    def _empty(self, server: Server) -> None:
        assert self._disks is not None
        self._disks.free(server.server_id)


def _each(action: Callable[[Server], None], servers: list[Server]) -> None:
    for server in servers:
        action(server)
