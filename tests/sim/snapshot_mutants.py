"""Mutants of SNAP: how a leader's snapshot comes to a learner, and takes the place of its log.

As those of `core_mutants`, whose kind they are.
"""

from __future__ import annotations

from typing import Final

from zkserver.core import leader
from zkserver.core.epoch_ends import EpochEnds
from zkserver.core.follower import Follower
from zkserver.core.leader import Leader
from zkserver.server.learner_history import LearnerHistory
from zkserver.storage import recovery
from zkserver.storage.recovery import DataDirectory
from zkserver.storage.snapshot import SnapshotWriter

from .core_mutants import CoreMutant, Edit

SNAPSHOT_MUTANTS: Final = (
    CoreMutant(
        "snapshot_not_synced_before_its_name",
        "ZR3, A.6.2, Z-2872",
        (Edit(SnapshotWriter, "seal", "self._file.sync()", "pass"),),
    ),
    CoreMutant(
        "name_of_a_snapshot_not_synced_before_the_log_goes",
        "ZR14, A.14",
        (Edit(SnapshotWriter, "publish", "self._files.sync_dir(self._directory)", "pass"),),
    ),
    CoreMutant(
        "log_restarted_before_the_snapshot_is_there",
        "A.6.2, Z-4643",
        (
            Edit(
                DataDirectory,
                "begin_install",
                "writer.publish()",
                "self.log.restart_at(zxid)\n        writer.publish()",
            ),
        ),
    ),
    CoreMutant(
        "snapshot_installed_without_a_new_log",
        "A.6.2",
        (
            Edit(
                DataDirectory,
                "finish_install",
                "self.log.restart_at(zxid)",
                "self.log.last_zxid = self.log.durable_zxid = zxid",
            ),
        ),
    ),
    CoreMutant(
        "half_an_installation_not_gone_on_with",
        "A.6.2",
        (Edit(recovery, "received_files", "return numbered(", "return [] and numbered("),),
    ),
    CoreMutant(
        "epoch_adopted_before_the_snapshot",
        "ZR6, Z-4643",
        (
            Edit(
                Follower,
                "_on_snapshot_begin",
                "ledger.receive_snapshot(zxid)",
                "ledger.receive_snapshot(zxid)\n    ledger.adopt_epoch(self.epoch)",
            ),
            Edit(
                Follower,
                "on_epoch_adopted",
                "assert epoch == self.epoch and self._phase is Phase.ADOPTING, "
                "(epoch, self._phase)",
                "if self._phase is not Phase.ADOPTING: return",
            ),
        ),
    ),
    CoreMutant(
        "history_behind_a_snapshot_with_a_hole",
        "ZR11, Z-4925",
        (
            Edit(
                LearnerHistory,
                "_read_snapshot",
                "LogCursor(data.log, zxid)",
                "LogCursor(data.log, min(zxid + 1, data.log.durable_zxid))",
            ),
        ),
    ),
    CoreMutant(
        "in_flight_forgotten_behind_history",
        "ZR17, Z-962",
        (
            Edit(
                Leader,
                "on_history_sent",
                "self._tell_in_flight(learner, zxid)",
                "self._tell_in_flight(learner, self._broadcast.proposed_zxid)",
            ),
        ),
    ),
    CoreMutant(
        "purged_history_promised",
        "A.5",
        (
            Edit(
                leader,
                "plan_sync",
                "if common is None:",
                "if common is None: common = log.first_zxid_before\n    if common is None:",
            ),
        ),
    ),
    CoreMutant(
        "purge_not_heard_of",
        "A.5",
        (Edit(EpochEnds, "forget_before", "if zxid <= self.first_zxid_before:", "if True:"),),
    ),
)
