"""Every story of the ensemble holds, and the mutants that it was told for die in it."""

from __future__ import annotations

import pytest

from tests.sim.directed import SCENARIOS
from tests.sim.mutants import run_directed


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_story_holds(name: str) -> None:
    SCENARIOS[name]()


@pytest.mark.parametrize(
    ("mutant", "violation"),
    [
        ("sync_without_a_round", "LinearizableSync in `a_deposed_leader_is_asked_for_a_sync`"),
        (
            "sync_confirmed_by_old_pongs",
            "LinearizableSync in `a_deposed_leader_is_asked_for_a_sync`",
        ),
        (
            "serves_what_may_go_again",
            "ServesCommitted in `what_is_not_committed_is_applied_at_the_start`",
        ),
        (
            "applied_and_truncated_not_applied_again",
            "Progress in `what_was_applied_at_the_start_is_truncated`",
        ),
        (
            "lower_epoch_accepted",
            "DurableBeforeSent in `who_leads_has_promised_less_than_its_followers`",
        ),
        (
            "log_restarted_before_the_snapshot_is_there",
            "StartRefused in `a_learner_loses_its_power_anywhere_while_it_takes_a_snapshot`",
        ),
        ("truncation_not_durable", "DurableLog in `the_power_is_lost_behind_a_truncation`"),
    ],
)
def test_a_mutant_dies_in_its_story(mutant: str, violation: str) -> None:
    assert violation in run_directed(mutant)
