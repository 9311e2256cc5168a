"""A whole cluster in a simulated world: the daemons' own code, on machines that one seed decides.

As `duolog_cluster.Cluster`, which runs on real sockets, but for the time, which is virtual, and
for what can be done to the servers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final, Self

from duolog import Admin, Consumer, Producer, ZkClient
from duolog_cluster.inprocess_zk import ZkMember, new_zk_node
from duolog_protocol.errors import Error
from duolog_runtime.logs import RecordingLogger
from duolog_runtime.version import VERSION
from kbroker.config import BrokerConfig
from kbroker.server.broker import Broker

from .disk import DiskFaults
from .process import SimMachine
from .process_parts import DiskPace, SimExecutor
from .world import SimWorld

ZK_PORT: Final = 2181
ZK_PEER_PORT: Final = 2888
BROKER_PORT: Final = 9092
SERVE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.005
_DATA: Final = "/data"


class SimMember:
    """One server: its machine, and what runs there now."""

    def __init__(self, machine: SimMachine, port: int) -> None:
        self.machine = machine
        self.name = machine.name
        self.port = port
        self.log = RecordingLogger()
        """What it logged; survives restarts."""
        self.server: Any = None
        """The daemon's own object, of the last start: a `ZkMember` or a kbroker `Broker`."""
        self.task: asyncio.Task[None] | None = None
        self.stopping = asyncio.Event()
        self.pace = DiskPace(mean_work_us=500, mean_notice_us=50)
        """How long its disk takes."""

    @property
    def is_running(self) -> bool:
        """Its process is there; it may stand still."""
        return self.machine.process is not None

    @property
    def address(self) -> str:
        """Where its clients connect."""
        return f"{self.machine.ip}:{self.port}"


class SimCluster:
    """`async with SimCluster(world, zk=3, brokers=1) as cluster:`; inside a story.

    `zk` zkservers vote, `observers` do not. `zk_settings` and `broker_settings` are fields of the
    daemons' configs.
    """

    def __init__(
        self,
        world: SimWorld,
        *,
        zk: int = 3,
        observers: int = 0,
        brokers: int = 0,
        zk_settings: dict[str, Any] | None = None,
        broker_settings: dict[str, Any] | None = None,
    ) -> None:
        self.world = world
        self.zk_servers = [
            SimMember(world.machine(f"zk-{n + 1}"), ZK_PORT) for n in range(zk + observers)
        ]
        """By server id, from 1 on; observers are the last."""
        self._voter_count = zk
        self.brokers = [
            SimMember(world.machine(f"broker-{n + 1}"), BROKER_PORT) for n in range(brokers)
        ]
        self.zk_settings = dict(zk_settings or {})
        """Of the zkservers that are started from now on."""
        self.broker_settings = dict(broker_settings or {})
        """Of the brokers."""

    async def __aenter__(self) -> Self:
        """Start everything; zkservers serve and brokers are registered when it returns."""
        for each in self.zk_servers:
            self.start(each)
        await self.until_zk_serves()
        for each in self.brokers:
            self.start(each)
        await self.until_registered()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything as a kill does: a story that looks at an orderly end calls `stop`."""
        for each in (*self.brokers, *self.zk_servers):
            self.kill(each)

    # ---- addresses and clients ------------------------------------------------------------------

    @property
    def zookeeper(self) -> str:
        """Addresses of the zkservers."""
        return ",".join(each.address for each in self.zk_servers)

    @property
    def bootstrap_servers(self) -> str:
        """Addresses of the brokers."""
        return ",".join(each.address for each in self.brokers)

    def zk_client(self, **settings: Any) -> ZkClient:
        """A `ZkClient` with the world's time and chance."""
        return ZkClient(**{"hosts": self.zookeeper, **self._given_to_clients(), **settings})

    def admin(self, **settings: Any) -> Admin:
        """An `Admin` with the world's time and chance."""
        return Admin(**{**self._given_to_kafka_clients(), **settings})

    def producer(self, **settings: Any) -> Producer:
        """A `Producer` with the world's time and chance."""
        return Producer(**{**self._given_to_kafka_clients(), **settings})

    def consumer(self, **settings: Any) -> Consumer:
        """A `Consumer` with the world's time and chance."""
        return Consumer(**{**self._given_to_kafka_clients(), **settings})

    def _given_to_clients(self) -> dict[str, Any]:
        rng = random.Random(self.world.rng.getrandbits(64))
        return {"clock": self.world.home.clock, "rng": rng}

    def _given_to_kafka_clients(self) -> dict[str, Any]:
        return {"bootstrap_servers": self.bootstrap_servers, **self._given_to_clients()}

    # ---- one server -----------------------------------------------------------------------------

    def start(self, member: SimMember) -> None:
        """Start it, or start it again with what its disk has."""
        process = member.machine.boot()
        member.stopping = asyncio.Event()
        member.server = None
        if member in self.brokers:
            run = self._run_broker(member, dict(self.broker_settings))
        else:
            run = self._run_zk(member, dict(self.zk_settings))
        member.task = process.start(run)

    async def _run_zk(self, member: SimMember, settings: dict[str, Any]) -> None:
        server_id = self.zk_servers.index(member) + 1
        place: dict[str, Any] = {}
        if len(self.zk_servers) > 1:
            members = [
                f"{number}={each.machine.ip}:{ZK_PEER_PORT}:{self._part_of(number)};{each.address}"
                for number, each in enumerate(self.zk_servers, 1)
            ]
            place = {"servers": tuple(members), "server_id": server_id, "ensemble_id": 1}
        node = new_zk_node(
            _DATA,
            member.port,
            {"host": member.machine.ip, "insecure": True, **place, **settings},
            **_given(member),
        )
        await self._serve(member, node)

    def _part_of(self, server_id: int) -> str:
        return "participant" if server_id <= self._voter_count else "observer"

    async def _run_broker(self, member: SimMember, settings: dict[str, Any]) -> None:
        config = {
            "data": _DATA,
            "host": member.machine.ip,
            "insecure": True,
            "port": member.port,
            "zookeeper": self.zookeeper,
            "zookeeper_session_timeout_ms": 4_000,
            **settings,
        }
        given = _given(member)
        files, disk = given.pop("files"), given.pop("disk")
        broker = Broker(BrokerConfig(**config), files, disk, version=VERSION, **given)
        await self._serve(member, broker)

    async def _serve(self, member: SimMember, server: Any) -> None:
        member.server = server
        await server.serve(member.stopping, lambda: None)

    async def stop(self, member: SimMember) -> None:
        """Stop it in order, as SIGTERM does. Raises what it ends with."""
        task, member.task = member.task, None
        if task is not None:
            member.stopping.set()
            await task
            member.machine.kill()

    def kill(self, member: SimMember) -> None:
        """SIGKILL: no goodbye, no flush. Without effect on one that does not run."""
        member.task = None
        member.machine.kill()

    def lose_power(self, member: SimMember, *, lose_unsynced: bool = False) -> None:
        """Its machine is off: what was not synced is lost, all of it or, by the seed, some."""
        member.task = None
        member.machine.lose_power(lose_unsynced=lose_unsynced)

    def pause(self, member: SimMember) -> None:
        """SIGSTOP."""
        member.machine.pause()

    def resume(self, member: SimMember) -> None:
        """SIGCONT."""
        member.machine.resume()

    def isolate(self, member: SimMember) -> None:
        """Cut it off from all others but the story's machine, until `heal`."""
        self.world.isolate(member.machine)

    def heal(self) -> None:
        """Let everything pass again, everywhere."""
        self.world.heal()

    def fill_disk(self, member: SimMember) -> None:
        """No write that needs space succeeds any more, until `free_disk`."""
        disk = member.machine.disk
        disk.faults = DiskFaults(full_after_bytes=disk.used_bytes)

    def free_disk(self, member: SimMember) -> None:
        """There is space again."""
        member.machine.disk.faults = DiskFaults()

    # ---- what becomes of it ---------------------------------------------------------------------

    @property
    def zk_leader(self) -> SimMember | None:
        """Who leads the zkservers, of the newest epoch; None: nobody."""
        leaders = [each for each in self.zk_servers if self.role(each) in ("leader", "standalone")]
        return max(leaders, key=lambda each: each.server.epoch, default=None)

    def role(self, member: SimMember) -> str:
        """Of a zkserver; empty: it does not serve, or does not run at all."""
        server: ZkMember | None = member.server
        return server.role if member.is_running and server is not None else ""

    async def until_zk_serves(self, *servers: SimMember) -> None:
        """Wait until these zkservers serve; none: all. Raises Error."""
        await self.until(lambda: all(map(self.role, servers or self.zk_servers)))

    async def until_zk_leader(self, *, other_than: SimMember | None = None) -> SimMember:
        """Wait until a zkserver leads, and which. Raises Error."""
        await self.until(lambda: self.zk_leader not in (None, other_than))
        assert self.zk_leader is not None
        return self.zk_leader

    async def until_registered(self, *brokers: SimMember) -> None:
        """Wait until these brokers are registered; none: all. Raises Error."""
        await self.until(lambda: all(map(_is_registered, brokers or self.brokers)))

    async def until(
        self,
        holds: Callable[[], bool],
        limit_s: float = SERVE_SECONDS,
        *,
        look_s: float = _LOOK_SECONDS,
    ) -> None:
        """Wait until something holds, looking every `look_s` (virtual time, as is `limit_s`).

        Raises Error; and what a server has ended with.
        """
        deadline_ms = self.world.elapsed_ms + int(limit_s * 1_000)
        while not holds():
            for each in (*self.zk_servers, *self.brokers):
                if each.task is not None and each.task.done():
                    each.task.result()
                    raise Error(f"{each.name} has ended")
            if self.world.elapsed_ms >= deadline_ms:
                raise Error(f"not after {limit_s} s of virtual time")
            await asyncio.sleep(look_s)


def _is_registered(member: SimMember) -> bool:
    broker: Broker | None = member.server
    if broker is None or broker.control is None or not member.is_running:
        return False
    return broker.control.registered.is_set()


def _given(member: SimMember) -> dict[str, Any]:
    """What a daemon has from outside."""
    machine, process = member.machine, member.machine.process
    assert process is not None, member.name
    return {
        "files": machine.disk,
        "disk": SimExecutor(process.later, process.rng, member.pace),
        "clock": machine.clock,
        "rng": random.Random(process.rng.getrandbits(64)),
        "log": member.log,
    }
