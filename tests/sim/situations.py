"""Rare situations of an ensemble: counted, so that a run that never reaches one is known for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from duolog_cluster.sim.network import Link
from duolog_protocol.quorum_messages import (
    Commit,
    NewLeader,
    Proposal,
    SnapshotBegin,
    Truncate,
    UpToDate,
)
from duolog_protocol.txns import zxid_of
from duolog_protocol.types import epoch_of

from .ensemble_records import last_zxid_of
from .invariants import Ensemble, Invariant

if TYPE_CHECKING:
    from .ensemble_server import Life


class Situations(Invariant):
    """Told of everything as the invariants are; fails nothing."""

    def __init__(self, ensemble: Ensemble, mark: Callable[[str], None]) -> None:
        super().__init__(ensemble)
        self._mark = mark
        self._led = False

    def leads(self, life: Life) -> None:
        self._mark("leader established")
        if self._led:
            self._mark("leader change")
        self._led = True
        others = [each.life for each in self.ensemble.machines if each.life not in (None, life)]
        if any(other is not None and other.is_leading for other in others):
            self._mark("two leaders alive")
        if life.peer.epoch >= 10:
            self._mark("epoch 10")
        if life.records[-1:] and epoch_of(last_zxid_of(life.records)) < life.peer.epoch - 1:
            self._mark("epochs without a record")

    def installs(self, life: Life, records: list[bytes]) -> None:
        self._mark("snapshot installed")
        if life.records:
            self._mark("snapshot installed over a log")

    def booted(self, life: Life, accepted_epoch: int, current_epoch: int) -> None:
        was = life.machine.taking_over
        if was is not None:
            self._mark(
                "recovered what was there before the snapshot"
                if life.records == was[0]
                else "recovered the snapshot"
            )

    def confirmed(self, life: Life, epoch: int, zxid: int) -> None:
        self._mark("lead confirmed")

    def truncates(self, life: Life, zxid: int, kept: int) -> None:
        self._mark("log truncated")
        if kept < len(life.state):
            self._mark("what was applied at the start truncated")
        if kept and epoch_of(zxid_of(life.records[kept])) != epoch_of(zxid):
            self._mark("whole epochs truncated")

    def applies(self, life: Life, index: int, record: bytes) -> None:
        ensemble = self.ensemble
        if index == len(ensemble.committed) - 1 and epoch_of(zxid_of(record)) < life.last_epoch:
            self._mark("record committed by a later epoch")
        if life.peer.epoch == 0:
            self._mark("applied by a server without a leader")

    def tells(self, life: Life, link: Link, message: Any) -> None:
        match message:
            case UpToDate():
                if epoch_of(last_zxid_of(life.records)) == life.peer.epoch:
                    self._mark("late joiner")
                if link.peer_address not in {each.server_id for each in self.ensemble.voters}:
                    self._mark("observer caught up")
            case NewLeader():
                if len(life.records) > len(life.durable):
                    self._mark("synced while proposals were in flight")
            case SnapshotBegin():
                self._mark("snapshot sent")
            case Truncate(zxid):
                if zxid == 0:
                    self._mark("log truncated to nothing")
            case Proposal():
                if len({epoch_of(zxid_of(record)) for record in message.records}) > 1:
                    self.fail(life, "proposes records of two epochs", message)
            case Commit(zxid):
                if zxid > last_zxid_of(life.durable):
                    self._mark("committed before the leader's own sync")
