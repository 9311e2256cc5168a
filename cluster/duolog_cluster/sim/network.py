"""The simulated network: connections that break, and datagrams that get lost.

Owns what is on its way between addresses, and who learns what of a broken link, and when. A
process is an `Endpoint` attached under an address. Everything random comes from the generator it
is given, so one seed gives one history.

- A `Link` is one end of a connection; each direction is a FIFO. Messages are never reordered within
  it, only across links. What a real connection does to bytes (segments, retransmission) shows as
  latency or as a broken link.
- A message that is lost, and a direction that is cut, BREAK the link for good: nothing later
  arrives in that direction. Its two ends learn it at independent later moments, or never: then only
  the time-outs of its owner help (half-open). The other direction goes on until an end knows.
- `stall` delays what goes one way, `cut` loses it; `heal` ends both. None of them mends a link.
- A datagram travels alone: it may be lost, be late, be overtaken.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from .scheduler import Scheduler


class Endpoint(Protocol):
    """A process on the network. Nothing is called while it calls the network itself."""

    def link_opened(self, link: Link, dialled: bool) -> None:
        """A connection stands; `dialled`: by us."""

    def dial_failed(self, target: Any) -> None:
        """What `dial` began has come to nothing; its target, or the token that was given to it."""

    def message_received(self, link: Link, message: Any) -> None:
        """A message came over a link, behind all that came before it."""

    def link_lost(self, link: Link) -> None:
        """A link has ended, not by our own `close`; nothing more comes from it."""

    def datagram_received(self, source: int, message: Any) -> None:
        """A datagram came."""


@dataclass(slots=True)
class NetworkFaults:
    """What may go wrong by itself; may be changed at any time. Rates are 0 to 1."""

    base_latency_us: int = 200
    """Every message takes at least so long ..."""
    mean_jitter_us: int = 300
    """... and exponentially distributed more."""
    loss_rate: float = 0.0
    """Share of a link's messages that are lost, and break it."""
    datagram_loss_rate: float = 0.0
    """Share of datagrams that are lost."""
    late_datagram_rate: float = 0.0
    """Share of datagrams that take up to `late_ms`, so that newer ones overtake them."""
    late_ms: int = 1_000
    dial_failure_rate: float = 0.0
    """Share of dials that fail although the target could be reached."""
    slow_dial_rate: float = 0.0
    """Share of dials that take up to `dial_limit_ms`."""
    dial_limit_ms: int = 1_000
    """A dial that got no answer has failed after so long."""
    silent_rate: float = 0.0
    """Share of ends that never learn that their link is broken."""
    mean_notice_ms: int = 300
    """How long the others take to learn it, on average."""
    reset_rate: float = 0.3
    """Share of closes that overtake what was sent before, so that the end of it is lost."""


class Link:
    """One end of a connection; compared by identity."""

    __slots__ = (
        *("_network", "_other", "address", "endpoint"),
        *("incoming", "is_broken", "is_known", "is_open", "token"),
    )

    def __init__(self, network: Network, address: int, endpoint: Endpoint) -> None:
        self._network = network
        self._other: Link = self
        self.address = address
        """Where this end is."""
        self.endpoint = endpoint
        """Whose this end is."""
        self.is_open = True
        """Neither closed here nor known here to have ended."""
        self.is_broken = False
        """What is sent here arrives no more."""
        self.is_known = False
        """Its owner was told of it."""
        self.token: Any = None
        """What was given to the `dial` that has opened it."""
        self.incoming: deque[Any] = deque()
        """What is on its way to this end."""

    @property
    def peer_address(self) -> int:
        """Where the other end is."""
        return self._other.address

    @property
    def other(self) -> Link:
        """The other end."""
        return self._other

    def send(self, message: Any) -> None:
        """Send behind everything that was sent before; without effect once the link has ended."""
        if self.is_open:
            self._network.send(self, message)

    def close(self) -> None:
        """End the connection. What was sent may still arrive, then the other end learns it."""
        if self.is_open:
            self._network.close(self)

    def __repr__(self) -> str:
        return f"link {self.address}-{self.peer_address}"


class _Mark:
    """Travels among the messages of a direction."""


_OPENED, _ENDED = _Mark(), _Mark()


class Network:
    """Everything between the processes of a simulation."""

    def __init__(
        self, scheduler: Scheduler, rng: random.Random, faults: NetworkFaults | None = None
    ) -> None:
        """Make a network without processes.

        Args:
            scheduler: virtual time.
            rng: the only source of chance.
            faults: what goes wrong by itself; by default nothing does.
        """
        self._scheduler = scheduler
        self._rng = rng
        self.faults = NetworkFaults() if faults is None else faults
        self._endpoints: dict[int, Endpoint] = {}
        self._down: set[int] = set()
        """Addresses whose machine is off."""
        self._cuts: set[tuple[int, int]] = set()
        self._stalls: dict[tuple[int, int], int] = {}
        """Direction -> the moment (us) until which nothing arrives."""
        self._last_arrival: dict[Link, int] = {}
        """When the last thing sent to an end arrives; for both ends of each open connection."""

    # ---- processes ------------------------------------------------------------------------------

    def attach(self, address: int, endpoint: Endpoint) -> None:
        """A process listens at an address from now on."""
        assert address not in self._endpoints, f"two processes at {address}"
        self._endpoints[address] = endpoint
        self._down.discard(address)

    def detach(self, address: int, *, power_lost: bool = False) -> None:
        """The process is gone: nothing is called any more.

        Its kernel closes its links, so that the others learn it; a machine without power leaves
        them to find out.
        """
        endpoint = self._endpoints.pop(address)
        if power_lost:
            self._down.add(address)
        for link in [each for each in self._last_arrival if each.endpoint is endpoint]:
            if power_lost:
                self._break(link)
                link.is_open = False
                self._forget(link)
            else:
                self.close(link)

    # ---- what processes do ----------------------------------------------------------------------

    def dial(self, source: int, target: int, token: Any = None) -> None:
        """Open a connection; answered by `link_opened` at both ends, or by `dial_failed`. `token`
        tells this dial from others to the same target, whose answers may come sooner."""
        caller = self._endpoints[source]
        rng, faults = self._rng, self.faults
        delay = self._latency() + self._latency()
        if rng.random() < faults.slow_dial_rate:
            delay = max(delay, rng.randrange(faults.dial_limit_ms * 1_000))
        fails = rng.random() < faults.dial_failure_rate

        def answer() -> None:
            if self._endpoints.get(source) is not caller:
                return
            if self._is_cut(source, target) or target in self._down:
                self._scheduler.after(faults.dial_limit_ms * 1_000, fail)
            elif fails or target not in self._endpoints:
                fail()
            else:
                self._connect(source, caller, target, token)

        def fail() -> None:
            if self._endpoints.get(source) is caller:
                caller.dial_failed(target if token is None else token)

        stalled = max(self._stalls.get(way, 0) for way in ((source, target), (target, source)))
        self._scheduler.at(max(self._scheduler.now_us + delay, stalled), answer)

    def send_datagram(self, source: int, target: int, message: Any) -> None:
        """Send a message that may get lost."""
        rng, faults = self._rng, self.faults
        lost = rng.random() < faults.datagram_loss_rate
        delay = self._latency()
        if faults.late_datagram_rate and rng.random() < faults.late_datagram_rate:
            delay += rng.randrange(faults.late_ms * 1_000)
        if lost or (source, target) in self._cuts:
            return
        self._arrive_datagram(source, target, message, self._scheduler.now_us + delay)

    def send(self, link: Link, message: Any) -> None:
        """For `Link.send`."""
        if self._rng.random() < self.faults.loss_rate:
            self._break(link)
        address, peer_address = link.address, link.peer_address
        if link.other.is_open:
            if not link.is_broken:
                self._put(link.other, message)
        elif not self._is_cut(address, peer_address) and peer_address not in self._down:
            # A kernel that knows nothing of the connection says so when it is spoken to.
            self._notice_after(link, self._latency() + self._latency())

    def close(self, link: Link) -> None:
        """For `Link.close`: what is on its way here has nobody left to take it."""
        link.is_open = False
        other = link.other
        if other.is_open and not link.is_broken:
            if self._rng.random() < self.faults.reset_rate:
                self._drop_some(other)
            self._put(other, _ENDED)
        self._forget(link)

    # ---- what happens to the network ------------------------------------------------------------

    def cut(self, source: int, target: int) -> None:
        """Lose everything that goes from one address to another, what is on its way included."""
        self._cuts.add((source, target))
        for link in list(self._last_arrival):
            if (link.address, link.peer_address) == (source, target):
                self._break(link)

    def stall(self, source: int, target: int, duration_ms: int) -> None:
        """Let nothing arrive that goes from one address to another, for so long; then all of it."""
        until = self._scheduler.now_us + duration_ms * 1_000
        self._stalls[source, target] = max(until, self._stalls.get((source, target), 0))

    def heal(self, source: int, target: int) -> None:
        """Let everything pass again."""
        self._cuts.discard((source, target))
        self._stalls.pop((source, target), None)

    def heal_all(self) -> None:
        """Let everything pass everywhere. What goes wrong by itself is up to `faults`."""
        self._cuts.clear()
        self._stalls.clear()

    # ---- inside ---------------------------------------------------------------------------------

    def _is_cut(self, one: int, other: int) -> bool:
        """An answer needs both directions."""
        return (one, other) in self._cuts or (other, one) in self._cuts

    def _latency(self) -> int:
        faults = self.faults
        return faults.base_latency_us + int(self._rng.expovariate(1) * faults.mean_jitter_us)

    def _connect(self, source: int, caller: Endpoint, target: int, token: Any) -> None:
        listener = self._endpoints[target]
        ours, theirs = Link(self, source, caller), Link(self, target, listener)
        ours.token = token
        ours._other, theirs._other = theirs, ours
        self._last_arrival[ours] = self._last_arrival[theirs] = self._scheduler.now_us
        self._put(theirs, _OPENED)  # the caller knows first
        ours.is_known = True
        caller.link_opened(ours, True)

    def _put(self, link: Link, message: Any) -> None:
        """Let something arrive at an open end, behind what is on its way to it."""
        link.incoming.append(message)
        arrival = max(self._scheduler.now_us + self._latency(), self._last_arrival[link])
        self._last_arrival[link] = arrival

        def deliver() -> None:
            until = self._stalls.get((link.peer_address, link.address), 0)
            if until > self._scheduler.now_us:
                self._scheduler.at(until, deliver)
            elif link.incoming:  # else it was lost on its way
                self._deliver(link, link.incoming.popleft())

        self._scheduler.at(arrival, deliver)

    def _deliver(self, link: Link, message: Any) -> None:
        if message is _ENDED:
            self._lose(link)
        elif message is _OPENED:
            link.is_known = True
            link.endpoint.link_opened(link, False)
        else:
            link.endpoint.message_received(link, message)

    def _arrive_datagram(self, source: int, target: int, message: Any, moment_us: int) -> None:
        def deliver() -> None:
            until = self._stalls.get((source, target), 0)
            if until > self._scheduler.now_us:
                self._scheduler.at(until, deliver)
            elif target in self._endpoints and (source, target) not in self._cuts:
                self._endpoints[target].datagram_received(source, message)

        self._scheduler.at(moment_us, deliver)

    def _break(self, link: Link) -> None:
        """Nothing more that is sent at this end arrives; both ends will learn it, or not."""
        if link.is_broken:
            return
        link.is_broken = True
        self._drop_some(link.other)
        for end in (link, link.other):
            if self._rng.random() >= self.faults.silent_rate:
                mean_us = self.faults.mean_notice_ms * 1_000
                self._notice_after(end, int(self._rng.expovariate(1) * mean_us))

    def _drop_some(self, link: Link) -> None:
        """Of what is on its way to an end only a beginning arrives."""
        kept = self._rng.randrange(len(link.incoming) + 1)
        while len(link.incoming) > kept:
            link.incoming.pop()

    def _notice_after(self, link: Link, delay_us: int) -> None:
        def notice() -> None:
            if link.is_open:
                self._lose(link)

        self._scheduler.after(delay_us, notice)

    def _lose(self, link: Link) -> None:
        """An end learns that its link is gone."""
        self.close(link)
        if link.is_known:
            link.endpoint.link_lost(link)

    def _forget(self, link: Link) -> None:
        link.incoming.clear()
        self._last_arrival.pop(link, None)
