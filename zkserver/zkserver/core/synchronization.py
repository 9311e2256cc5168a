"""How a learner's log becomes its leader's: ZAB phase 2, the leader's choice.

    the learner's end is in our log       DIFF: what comes after it
    it is not, a common point is          TRUNC to the last zxid that both logs hold, then DIFF
    our log does not reach back so far    SNAP: our newest snapshot, then what comes after it

Equal zxids mean equal records and equal histories before them (`epoch_ends`), so that the choice
needs no record of either log. ZooKeeper decides by a window of the latest 500 proposals (A.5).
"""

from __future__ import annotations

from typing import NamedTuple

from .epoch_ends import EpochEnds


class SyncPlan(NamedTuple):
    """What a learner must do before it follows."""

    truncate_to: int | None
    """Forget what comes after this zxid; None: nothing."""
    after_zxid: int
    """Then take every record after this one."""


def plan_sync(learner_zxid: int, log: EpochEnds) -> SyncPlan | None:
    """The plan for a learner whose log ends at `learner_zxid`; None: it needs a snapshot."""
    common = log.last_common(learner_zxid)
    if common is None:
        return None
    return SyncPlan(common if common < learner_zxid else None, common)
