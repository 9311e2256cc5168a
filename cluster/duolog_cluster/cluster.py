"""A whole cluster inside this process: real daemons' code, real sockets on loopback, one loop.

Owns the life of its servers and their directories, nothing of their behaviour. For tests: up in
tens of milliseconds, and a server can be killed (its sockets and files dropped where they are) and
started again on the same port and directory.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, Final, Self

from duolog_protocol.errors import ConfigError, Error
from duolog_runtime.clocks import Clock, RealClock
from duolog_runtime.disk import DiskThread
from duolog_runtime.files import Files, RealFiles
from duolog_runtime.logs import Logger, RecordingLogger
from duolog_runtime.version import VERSION
from kbroker.config import BrokerConfig
from kbroker.server.broker import Broker

from .inprocess_zk import ZkMember, new_zk_node
from .zk_members import client_port, keep_members, members_in, new_members

SERVE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.002
"""Between two looks at what does not serve yet."""


class Member:
    """One server of the cluster."""

    def __init__(self, name: str, log: RecordingLogger) -> None:
        self.name = name
        self.log = log
        """What it logged; survives restarts."""
        self.port = 0
        self.stop = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.server: Any = None
        """The daemon's own object: a kbroker `Broker` or a zkserver `Node`."""

    @property
    def is_running(self) -> bool:
        """Whether its task lives."""
        return self.task is not None and not self.task.done()


class Cluster:
    """`async with Cluster() as cluster:` `zk` zkservers and `brokers` brokers.

    More than one zkserver are an ensemble. `broker_settings` and `zk_settings` are fields of the
    daemons' configs.
    """

    def __init__(
        self,
        *,
        brokers: int = 1,
        zk: int = 1,
        data: str | None = None,
        seed: int = 0,
        files: Files | None = None,
        clock: Clock | None = None,
        broker_settings: dict[str, Any] | None = None,
        zk_settings: dict[str, Any] | None = None,
    ) -> None:
        self._directory = data
        self._own_directory = data is None
        self._files = files or RealFiles()
        self._clock = clock or RealClock()
        self._rng = random.Random(seed)
        self._broker_settings = broker_settings or {}
        self._zk_settings = zk_settings or {}
        self.zk_servers = [Member(f"zk-{n + 1}", RecordingLogger()) for n in range(zk)]
        """By server id, from 1 on."""
        self._zk_members: list[str] = []
        """Of an ensemble: as zkserver's setting `servers` has them."""
        self.brokers = [Member(f"broker-{n + 1}", RecordingLogger()) for n in range(brokers)]

    @property
    def zk(self) -> Member:
        """The only zkserver, or the first."""
        return self.zk_servers[0]

    @property
    def zk_leader(self) -> Member | None:
        """Who leads, the newest epoch's; None: nobody. A zkserver that stands alone leads."""
        leaders = [each for each in self.zk_servers if _role(each) in ("leader", "standalone")]
        return max(leaders, key=lambda each: each.server.epoch, default=None)

    @property
    def zookeeper(self) -> str:
        """Addresses of the zkservers."""
        return ",".join(f"127.0.0.1:{each.port}" for each in self.zk_servers)

    @property
    def bootstrap_servers(self) -> str:
        """Addresses of the brokers."""
        return ",".join(f"127.0.0.1:{broker.port}" for broker in self.brokers)

    async def __aenter__(self) -> Self:
        """Start everything; zkservers serve and brokers are registered when it returns."""
        if self._directory is None:
            self._directory = tempfile.mkdtemp(prefix="duolog-cluster-")
        try:
            if len(self.zk_servers) > 1:
                self._keep_zk_members(self._directory)
            for each in self.zk_servers:
                await self.start_zk(each)
            await self.until_zk_serves()
            for broker in self.brokers:
                await self.start_broker(broker)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop everything, the brokers first."""
        await self.close()

    async def close(self) -> None:
        """Stop everything; a directory that was made here is removed. Idempotent."""
        for member in self.brokers:
            await self.stop(member)
        await asyncio.gather(*map(self.stop, self.zk_servers))
        if self._own_directory and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    # ---- one member ----------------------------------------------------------------------------

    async def start_zk(self, server: Member | None = None) -> None:
        """Start (or start again) a zkserver, on its former port; None: the only one.

        One of an ensemble listens when it returns; `until_zk_serves` waits for more.
        """
        server = server or self.zk
        server_id = self.zk_servers.index(server) + 1
        place: dict[str, Any] = {}
        if self._zk_members:
            place = {"servers": tuple(self._zk_members), "server_id": server_id, "ensemble_id": 1}

        async def serve(member: Member, disk: DiskThread, listening: Callable[[], None]) -> None:
            node = new_zk_node(
                f"{self._directory}/{member.name}",
                member.port,
                {**place, **self._zk_settings},
                files=self._files,
                disk=disk,
                clock=self._clock,
                rng=random.Random(self._rng.getrandbits(64)),
                log=member.log,
            )
            member.server = node
            await node.serve(member.stop, listening)

        await self._start(server, serve)

    async def until_zk_serves(self, *servers: Member) -> None:
        """Wait until these zkservers serve; none: all. Raises Error."""
        waiting = list(servers or self.zk_servers)
        try:
            async with asyncio.timeout(SERVE_SECONDS):
                while waiting := [each for each in waiting if _role(each) in ("", "read-only")]:
                    for each in waiting:
                        if not each.is_running:
                            raise Error(f"{each.name} does not run")
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            names = ", ".join(each.name for each in waiting)
            raise Error(f"{names}: not serving after {SERVE_SECONDS} s") from None

    async def until_zk_leader(self, *, other_than: Member | None = None) -> Member:
        """Wait until a zkserver leads, and which. Raises Error."""
        try:
            async with asyncio.timeout(SERVE_SECONDS):
                while True:
                    leader = self.zk_leader
                    if leader is not None and leader is not other_than:
                        return leader
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise Error(f"nobody leads after {SERVE_SECONDS} s") from None

    def _keep_zk_members(self, directory: str) -> None:
        """Those of the directory's ensemble, or new ones. Raises ConfigError."""
        count = len(self.zk_servers)
        members = members_in(directory) or new_members(count)
        if len(members) != count:
            raise ConfigError("zk", count, f"{directory} holds the data of {len(members)}")
        keep_members(directory, members)
        self._zk_members = members
        for member, text in zip(self.zk_servers, members, strict=True):
            member.port = client_port(text)

    async def start_broker(self, broker: Member) -> None:
        """Start (or start again) a broker, on its former port; registered when it returns."""

        async def serve(member: Member, disk: DiskThread, listening: Callable[[], None]) -> None:
            settings = {
                "data": f"{self._directory}/{member.name}",
                "port": member.port,
                "zookeeper": self.zookeeper,
                "zookeeper_session_timeout_ms": 4_000,
                **self._broker_settings,
            }
            log: Logger = member.log
            member.server = Broker(
                BrokerConfig(**settings),
                self._files,
                disk,
                clock=self._clock,
                rng=random.Random(self._rng.getrandbits(64)),
                log=log,
                version=VERSION,
            )
            await member.server.serve(member.stop, listening)

        await self._start(broker, serve)
        registered = asyncio.ensure_future(broker.server.control.registered.wait())
        assert broker.task is not None
        await asyncio.wait({registered, broker.task}, return_when=asyncio.FIRST_COMPLETED)
        registered.cancel()
        if broker.task.done():
            broker.task.result()

    async def stop(self, member: Member) -> None:
        """Stop a member in order. Idempotent."""
        if member.task is not None:
            member.stop.set()
            await asyncio.wait({member.task})
            member.task = None

    async def kill(self, member: Member) -> None:
        """End a member as SIGKILL would: no goodbye, no flush, no clean mark."""
        if member.task is not None:
            member.task.cancel()
            await asyncio.wait({member.task})
            member.task = None

    async def _start(self, member: Member, serve: Callable[..., Any]) -> None:
        assert not member.is_running, member.name
        member.stop = asyncio.Event()
        listening = asyncio.Event()
        disk = DiskThread(asyncio.get_running_loop(), f"disk {member.name}")

        async def run() -> None:
            try:
                await serve(member, disk, listening.set)
            finally:
                disk.close()

        member.task = asyncio.create_task(run(), name=member.name)
        waiting = asyncio.ensure_future(listening.wait())
        await asyncio.wait({member.task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if member.task.done():
            member.task.result()
            raise Error(f"{member.name} ended before it served")
        member.port = member.server.port


def _role(member: Member) -> str:
    """The role of a zkserver; empty: it does not serve, or does not run at all."""
    server: ZkMember | None = member.server
    return server.role if member.is_running and server is not None else ""
