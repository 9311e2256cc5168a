"""One machine of the ensemble's world: what outlives its process."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from duolog_cluster.sim.disk import SimDisk
from zkserver.core.peer_config import PeerConfig

from .ensemble_server import Life

if TYPE_CHECKING:
    from .ensemble_world import EnsembleWorld


class Machine:
    """A disk, what is known to be on it, and the process that runs now."""

    def __init__(self, world: EnsembleWorld, config: PeerConfig) -> None:
        self.world = world
        self.config = config
        self.server_id = config.server_id
        self.disk = SimDisk(
            random.Random(f"{world.seed} disk {self.server_id}"),
            crash_points=lambda when, kind, _: world.disk_crash_point(self, f"{when} {kind}"),
        )
        self.durable: list[bytes] = []
        """Records that no crash may lose; a truncation under way has already cut them."""
        self.gone: set[bytes] = set()
        """Records that were truncated, and that no crash may bring back."""
        self.taking_over: tuple[list[bytes], list[bytes]] | None = None
        """What was there and what comes instead, while a leader's snapshot is being installed."""
        self.accepted_epoch = 0
        self.current_epoch = 0
        """Epochs that no crash may lose."""
        self.crash_rng = random.Random(f"{world.seed} crashes of {self.server_id}")
        """Whether it crashes at a crash point, and how."""
        self.life_count = 0
        self.life: Life | None = None

    def boot(self) -> None:
        """Start the process. Raises PowerLoss at a crash point, OSError without space."""
        assert self.life is None
        self.life_count += 1
        life = Life(self)
        self.life = life  # also of a life that ends while it starts
        life.start()
