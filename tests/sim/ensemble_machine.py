"""One machine of the ensemble's world: what outlives its process."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from duolog_cluster.sim.disk import SimDisk
from zkserver.core.peer_config import PeerConfig
from zkserver.storage.recovery import DataDirectory

from .ensemble_records import count_up_to, last_zxid_of
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

    # ---- what is on the disk --------------------------------------------------------------------

    def recovered(self, data: DataDirectory, records: list[bytes]) -> None:
        """A process has these of its disk, which are durable now; from now on all that it does
        there is noted, whatever happens next."""
        self.durable[:] = records
        if self.taking_over is not None:
            old, _ = self.taking_over
            self._have_taken_over(old, records)
        self.note_epochs(data)
        self._watch(data)

    def note_epochs(self, data: DataDirectory) -> None:
        """The epochs may have changed."""
        self.accepted_epoch = data.epochs.accepted_epoch
        self.current_epoch = data.epochs.current_epoch

    def begin_taking_over(self, new: list[bytes]) -> None:
        """A leader's snapshot, which holds these, is about to be installed."""
        old, new = list(self.durable), list(new)
        self.taking_over = (old, new)
        both = count_up_to(old, last_zxid_of([a for a, b in zip(old, new, strict=False) if a == b]))
        del self.durable[both:]  # from now on a crash may lose them
        self.gone.difference_update(new)

    def _have_taken_over(self, old: list[bytes], new: list[bytes]) -> None:
        self.gone.update(set(old).difference(new))
        self.durable[:] = new
        self.taking_over = None

    def _watch(self, data: DataDirectory) -> None:
        log, durable, gone = data.log, self.durable, self.gone
        append_durably, truncate_to = log.append_durably, log.truncate_to
        finish_install = data.finish_install
        cut: list[bytes] = []

        def append(records: list[bytes], last_zxid: int) -> None:
            append_durably(records, last_zxid)
            durable.extend(records)
            gone.difference_update(records)

        def truncate(zxid: int) -> None:
            kept = count_up_to(durable, zxid)
            cut.extend(durable[kept:])
            del durable[kept:]  # from now on a crash may lose them
            truncate_to(zxid)  # without space it is asked for again
            gone.update(cut)  # from now on none may bring them back
            cut.clear()

        def take_over(zxid: int) -> None:
            assert self.taking_over is not None, "no state was built of the snapshot"
            old, new = self.taking_over
            finish_install(zxid)
            self._have_taken_over(old, new)

        log.append_durably = append  # type: ignore[method-assign, assignment]
        log.truncate_to = truncate  # type: ignore[method-assign]
        data.finish_install = take_over  # type: ignore[method-assign]
