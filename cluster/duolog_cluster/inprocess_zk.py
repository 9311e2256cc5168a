"""A zkserver in this process, in the form that `Cluster` starts its members.

Owns nothing but the translation: the daemon's `Node` as an object with `port` and `serve`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from duolog_protocol.errors import LogOfflineError
from duolog_runtime.clocks import Clock
from duolog_runtime.disk import DiskExecutor
from duolog_runtime.files import Files
from duolog_runtime.logs import Logger
from zkserver.config import ServerConfig
from zkserver.core.config import CoreConfig
from zkserver.server.node import Node

CORE_SETTINGS = frozenset(CoreConfig.__dataclass_fields__)


class ZkMember:
    """One zkserver of a cluster."""

    def __init__(self, node: Node, halted: asyncio.Event) -> None:
        self.node = node
        self._halted = halted

    @property
    def port(self) -> int:
        """The real port, once it listens."""
        return self.node.port

    @property
    def role(self) -> str:
        """leader, follower, observer, standalone; empty while no client is served."""
        return self.node.mode if self.node.serving else ""

    @property
    def epoch(self) -> int:
        """Of its leader; 0: it stands alone."""
        return self.node.epoch

    async def serve(self, stop: asyncio.Event, on_listening: Callable[[], None]) -> None:
        """Serve until `stop`, or until the server halts. Raises LogOfflineError.

        Cancelling it ends the server as SIGKILL does: nobody hears of it but by a broken link.
        """
        try:
            await self.node.start()
            on_listening()
            waits = [asyncio.ensure_future(event.wait()) for event in (stop, self._halted)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()
        except asyncio.CancelledError:
            await self.node.abandon()
            raise
        finally:
            await self.node.stop()
        if self.node.failure:
            raise LogOfflineError(self.node.failure)


def new_zk_node(
    directory: str,
    port: int,
    settings: dict[str, Any],
    *,
    files: Files,
    disk: DiskExecutor,
    clock: Clock,
    rng: random.Random,
    log: Logger,
) -> ZkMember:
    """A zkserver on loopback; `settings` are fields of its two configs."""
    core = {name: value for name, value in settings.items() if name in CORE_SETTINGS}
    own = {name: value for name, value in settings.items() if name not in CORE_SETTINGS}
    halted = asyncio.Event()
    node = Node(
        ServerConfig(data_directory=directory, port=port, **own),
        CoreConfig(**core),
        files=files,
        disk=disk,
        clock=clock,
        rng=rng,
        log=log,
        on_halt=halted.set,
    )
    return ZkMember(node, halted)
