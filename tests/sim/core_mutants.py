"""Mutants of the ZAB core: one line of it says something else.

Each is a known bug class of ZooKeeper (reliability §10.1) or breaks one invariant (§7.1, §7.2). A
mutant names the text that it replaces, so that it fails loudly once the code has changed.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple
from unittest import mock

from zkserver.core import leader
from zkserver.core.broadcast import Broadcast
from zkserver.core.follower import Follower
from zkserver.core.leader import Leader
from zkserver.core.ledger import Ledger
from zkserver.core.peer import Peer
from zkserver.storage import epoch_files
from zkserver.storage.txnlog import TxnLog


class Edit(NamedTuple):
    """A text in the source of a function, and what stands there instead."""

    owner: Any
    """The class or module that has the function."""
    function: str
    old: str
    new: str


class CoreMutant(NamedTuple):
    """One bug."""

    name: str
    origin: str
    """Its row of reliability §10.1, or the invariant that it breaks."""
    edits: tuple[Edit, ...]

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Patch, and restore."""
        with contextlib.ExitStack() as stack:
            for each in self.edits:
                changed = _edited(each)
                stack.enter_context(mock.patch.object(each.owner, each.function, changed))
            yield


def _edited(edit: Edit) -> Callable[..., Any]:
    function = getattr(edit.owner, edit.function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(edit.old) == 1, f"{edit.function} has no single {edit.old!r}"
    module = sys.modules[function.__module__]
    code = f"from __future__ import annotations\n{source.replace(edit.old, edit.new)}"
    made: dict[str, Any] = {}
    exec(compile(code, f"<mutant of {edit.function}>", "exec"), module.__dict__, made)
    changed: Callable[..., Any] = made[edit.function]
    return changed


_APPLICABLE: Final = "min(self.committed_zxid, self.durable_zxid)"
CORE_MUTANTS: Final = (
    CoreMutant(
        "ack_before_durable",
        "ZR5, Z-3911",
        (
            Edit(
                Follower,
                "_on_proposal",
                "self._ledger.append(message.records, message.first_zxid, message.last_zxid)",
                "self._ledger.append(message.records, message.first_zxid, message.last_zxid)\n"
                "    if self._phase in (Phase.ADOPTED, Phase.BROADCAST):\n"
                "        self._tell(Ack(message.last_zxid))",
            ),
            Edit(Follower, "on_logged", "self._tell(Ack(zxid))", "pass"),
        ),
    ),
    CoreMutant(
        "new_leader_ack_before_durable",
        "ZR5, Z-3911, Z-4646",
        (
            Edit(
                Follower,
                "_on_new_leader",
                "self._ledger.adopt_epoch(epoch)",
                "self._tell(NewLeaderAck(epoch)); self._ledger.adopt_epoch(epoch)",
            ),
            Edit(Follower, "on_epoch_adopted", "self._tell(NewLeaderAck(epoch))", "pass"),
        ),
    ),
    CoreMutant(
        "epoch_adopted_before_history",
        "ZR6, Z-4643",
        (
            Edit(
                Follower,
                "_ack_epoch",
                "self._phase = Phase.SYNCHRONIZATION",
                "self._phase = Phase.SYNCHRONIZATION\n    ledger.adopt_epoch(self.epoch)",
            ),
            Edit(
                Follower,
                "on_epoch_adopted",
                "assert epoch == self.epoch and self._phase is Phase.ADOPTING, "
                "(epoch, self._phase)",
                "if self._phase is not Phase.ADOPTING: return",
            ),
            Edit(Ledger, "truncate_to", 'assert self.is_settled, "truncated', 'assert True, "'),
        ),
    ),
    CoreMutant(
        "promise_before_durable",
        "A.14, Z20",
        (
            Edit(
                Follower,
                "_on_leader_info",
                "self._ledger.accept_epoch(epoch)",
                "self._ledger.accept_epoch(epoch)\n        self._ack_epoch(is_promise=True)",
            ),
            Edit(Follower, "_ack_epoch", "assert ledger.is_settled", "assert True"),
            Edit(
                Follower,
                "on_epoch_accepted",
                "assert epoch == self.epoch and self._phase is Phase.PROMISING, "
                "(epoch, self._phase)",
                "return",
            ),
        ),
    ),
    CoreMutant(
        "lower_epoch_accepted",
        "ZR19, Z-335",
        (
            Edit(Follower, "_on_leader_info", "epoch >= accepted", "True"),
            Edit(
                Leader,
                "_on_follower_info",
                "self.epoch and message.accepted_epoch > self.epoch",
                "False",
            ),
            Edit(
                Leader,
                "_introduce",
                "max(self._ledger.heard_epoch, *self._accepted.values()) + 1",
                "self._ledger.accepted_epoch + 1",
            ),
        ),
    ),
    CoreMutant(
        "old_promise_counts",
        "Z1, A.4.3",
        (Edit(Follower, "_on_leader_info", "is_promise=False", "is_promise=True"),),
    ),
    CoreMutant(
        "history_with_a_hole",
        "ZR11, Z-4925",
        (
            Edit(
                Leader,
                "_sync",
                "SendHistory(learner.link, plan.after_zxid)",
                "SendHistory(learner.link, min(plan.after_zxid + 1, self._ledger.durable_zxid))",
            ),
        ),
    ),
    CoreMutant(
        "in_flight_forgotten_for_a_joiner",
        "ZR17, Z-962",
        (Edit(Leader, "_tell_in_flight", "self._broadcast.in_flight_after(zxid)", "()"),),
    ),
    CoreMutant(
        "in_flight_told_twice",
        "ZR17, Z16",
        (
            Edit(
                Leader,
                "_tell_in_flight",
                "for proposal in self._broadcast.in_flight_after(zxid):",
                "for proposal in 2 * self._broadcast.in_flight_after(zxid):",
            ),
        ),
    ),
    CoreMutant(
        "proposals_kept_from_the_syncing",
        "ZR15, Z-3104",
        (Edit(Leader, "on_propose", "LearnerStage.SYNCING", "LearnerStage.SYNCED"),),
    ),
    CoreMutant(
        "proposals_told_ahead_of_history",
        "ZR11, Z16",
        (Edit(Leader, "on_propose", "LearnerStage.SYNCING", "LearnerStage.CATCHING_UP"),),
    ),
    CoreMutant(
        "no_truncation",
        "ZR1, Z-1154",
        (Edit(Leader, "_sync", "plan.truncate_to is not None", "False"),),
    ),
    CoreMutant(
        "truncated_too_far",
        "ZR2, Z-1156, Z14",
        (
            Edit(
                leader,
                "plan_sync",
                "common = log.last_common(learner_zxid)",
                "common = log.last_common(learner_zxid)\n"
                "    common = common and max(common - 3, common >> 32 << 32, 0)\n"
                "    common = common if common and log.holds(common) else 0",
            ),
        ),
    ),
    CoreMutant(
        "committed_without_a_quorum",
        "Z17, A.7",
        (
            Edit(
                Broadcast,
                "advance",
                "quorums.committed_zxid(self._durable)",
                "max(self._durable.values())",
            ),
        ),
    ),
    CoreMutant(
        "leader_acknowledges_before_its_sync",
        "A.7, Z-4646",
        (
            Edit(
                Leader,
                "on_propose",
                "self._broadcast.propose(proposal)",
                "self._broadcast.propose(proposal)\n"
                "    self._broadcast.acknowledge(self._config.server_id, last_zxid)",
            ),
        ),
    ),
    CoreMutant(
        "established_by_promises",
        "ZR28, Z13",
        (
            Edit(
                Leader,
                "_on_promise",
                "self._ledger.adopt_epoch(self.epoch)",
                "self._ledger.adopt_epoch(self.epoch); self._establish()",
            ),
            Edit(Leader, "_on_synced", "self._establish()", "pass"),
        ),
    ),
    CoreMutant(
        "more_recent_follower_ignored",
        "Z13, A.4.4",
        (
            Edit(Leader, "_on_ack_epoch", "history > self._history", "False"),
            Edit(
                Peer,
                "_look",
                "Vote(ledger.current_epoch, ledger.durable_zxid,",
                "Vote(1, 1,",
            ),
        ),
    ),
    CoreMutant(
        "epoch_told_before_durable",
        "A.14",
        (
            Edit(
                Leader,
                "_introduce",
                "self._ledger.accept_epoch(self.epoch)",
                "self._ledger.accept_epoch(self.epoch)\n"
                "        for learner in self._learners.values():\n"
                "            if learner.stage == LearnerStage.INTRODUCED: self._ask(learner)",
            ),
            Edit(
                Leader,
                "_on_follower_info",
                "self.epoch and self._ledger.accepted_epoch == self.epoch",
                "self.epoch and learner.stage == LearnerStage.INTRODUCED",
            ),
        ),
    ),
    CoreMutant(
        "history_counts_as_committed_at_once",
        "ZR16, Z-790",
        (
            Edit(
                Leader,
                "__init__",
                "self._introduce(config.server_id, ledger.accepted_epoch)",
                "ledger.commit(ledger.log.last_zxid)\n"
                "    self._introduce(config.server_id, ledger.accepted_epoch)",
            ),
        ),
    ),
    CoreMutant(
        "votes_while_the_log_is_written",
        "ZR10, Z-4712",
        (
            Edit(Peer, "_look_if_settled", "not self._ledger.is_settled", "False"),
            Edit(Leader, "__init__", "assert ledger.is_settled", "assert True"),
            Edit(Follower, "__init__", "assert ledger.is_settled", "assert True"),
        ),
    ),
    CoreMutant(
        "uncommitted_applied",
        "ZR4, Z-2845",
        (
            Edit(
                Ledger, "_apply", "min(self.committed_zxid, self.durable_zxid)", "self.durable_zxid"
            ),
        ),
    ),
    CoreMutant(
        "applied_before_our_own_sync",
        "ZR12, Z-4882",
        (
            Edit(
                Ledger,
                "_apply",
                "min(self.committed_zxid, self.durable_zxid)",
                "self.committed_zxid",
            ),
        ),
    ),
    CoreMutant(
        "up_to_date_names_what_is_proposed",
        "Z17, ZR16",
        (
            Edit(
                Leader,
                "_on_new_leader_ack",
                "UpToDate(self._broadcast.committed_zxid)",
                "UpToDate(self._broadcast.proposed_zxid)",
            ),
        ),
    ),
    CoreMutant(
        "serves_before_up_to_date",
        "ZR18, Z-1319",
        (
            Edit(
                Follower,
                "on_epoch_adopted",
                "self._tell(NewLeaderAck(epoch))",
                "self._tell(NewLeaderAck(epoch))\n"
                "    self._ledger.effects.append(Serve(self.epoch, self.leader_id))",
            ),
        ),
    ),
    CoreMutant(
        "serves_what_may_go_again",
        "ZR16, ServesCommitted",
        (
            Edit(
                Follower,
                "_serve_if_committed",
                "not self.is_established and self._ledger.may_serve",
                "not self.is_established",
            ),
        ),
    ),
    CoreMutant(
        "applied_and_truncated_not_applied_again",
        "ServesCommitted",
        (
            Edit(
                Ledger,
                "truncate_to",
                "self.applied_zxid = min(self.applied_zxid, zxid)",
                "pass",
            ),
        ),
    ),
    CoreMutant(
        "sync_without_a_round",
        "A.10, Z-1675, Z-2136, Z-3600",
        (
            Edit(
                Leader,
                "on_confirm",
                "self._asking.append(token)",
                "self._ledger.effects.append(LeadConfirmed(token))",
            ),
        ),
    ),
    CoreMutant(
        "sync_confirmed_by_old_pongs",
        "A.10, Z-1675, Z-2136, Z-3600",
        (Edit(Leader, "_count_round", " and each.round == self._round", ""),),
    ),
    CoreMutant(
        "leads_without_a_quorum",
        "A.8",
        (
            Edit(
                Leader,
                "on_link_lost",
                "not self._membership.quorums.has_quorum(needed)",
                "False",
            ),
        ),
    ),
    CoreMutant(
        "commit_told_before_up_to_date",
        "ZR8, Z-4394",
        (Edit(Leader, "_commit", "LearnerStage.SYNCED", "LearnerStage.SYNCING"),),
    ),
    CoreMutant(
        "ack_overtakes_new_leader_ack",
        "ZR7, Z-4685",
        (Edit(Follower, "on_logged", "self._phase in (Phase.ADOPTED, Phase.BROADCAST)", "True"),),
    ),
    CoreMutant(
        "full_disk_ignored_by_a_leader",
        "ZR12, Z-4882",
        (
            Edit(
                Leader,
                "on_log_refused",
                'raise GaveUp("there is no disk space for the log")',
                "pass",
            ),
        ),
    ),
    CoreMutant(
        "silent_leader_is_kept",
        "A.8",
        (Edit(Follower, "on_timer", "now_ms >= self.deadline_ms()", "False"),),
    ),
    CoreMutant(
        "vote_without_epoch",
        "ZR24, Z-1818",
        (Edit(Peer, "_look", "Vote(ledger.current_epoch,", "Vote(0,"),),
    ),
    CoreMutant(
        "epoch_file_renamed_before_its_sync",
        "ZR20, Z-2307",
        (Edit(epoch_files, "write_small_file", "file.sync()", "pass"),),
    ),
    CoreMutant(
        "name_of_an_epoch_file_not_synced",
        "ZR20, A.1",
        (Edit(epoch_files, "write_small_file", "files.sync_dir(directory)", "pass"),),
    ),
    CoreMutant(
        "name_of_a_log_file_not_synced",
        "ZR14, A.14",
        (Edit(TxnLog, "create", "files.sync_dir(directory)", "pass"),),
    ),
    CoreMutant(
        "truncation_not_durable",
        "ZR3, Z-2832",
        (
            Edit(
                TxnLog, "_cut_file", "file.truncate(end)\n        file.sync()", "file.truncate(end)"
            ),
        ),
    ),
)
