"""Who leads, and who holds replicas: pure choices, compared with the rules said plainly."""

from __future__ import annotations

from itertools import combinations

from kbroker.core.leader_election import Election, assign_replicas, first_leader, next_leader
from kbroker.core.metadata_image import NO_LEADER


def test_the_first_leader_is_the_first_live_replica_and_all_live_ones_are_in_sync() -> None:
    assert first_leader((2, 1, 3), {1, 3}) == Election(1, (1, 3))
    assert first_leader((2, 1), {3}) is None


def test_only_a_live_member_of_the_isr_leads_unless_unclean_is_allowed() -> None:
    replicas = (1, 2, 3)
    for live_count in range(4):
        for live in combinations(replicas, live_count):
            for isr_count in range(1, 4):
                for isr in combinations(replicas, isr_count):
                    found = next_leader(replicas, isr, live)
                    candidates = [each for each in replicas if each in live and each in isr]
                    if candidates:
                        assert found.leader_id == candidates[0]
                        assert set(found.isr) == set(live) & set(isr)
                    else:
                        assert found == Election(NO_LEADER, isr)
                    unclean = next_leader(replicas, isr, live, unclean=True)
                    if not candidates and live:
                        assert unclean == Election(live[0], (live[0],))


def test_replicas_are_spread_evenly_and_never_twice_on_a_broker() -> None:
    for count in range(1, 6):
        brokers = list(range(10, 10 + count))
        for factor in range(1, count + 1):
            for start in range(count):
                found = assign_replicas(brokers, 4 * count, factor, start, 1)
                assert all(len(set(replicas)) == factor for replicas in found.values())
                leaders = [replicas[0] for replicas in found.values()]
                assert {leaders.count(broker) for broker in brokers} == {4}


def test_kafkas_own_example_of_an_assignment() -> None:
    """Five brokers, ten partitions, three replicas: the table in Kafka's AdminUtils."""
    found = assign_replicas([0, 1, 2, 3, 4], 10, 3, 0, 0)
    assert found[0] == (0, 1, 2)
    assert found[4] == (4, 0, 1)
    assert found[5] == (0, 2, 3)
    assert found[9] == (4, 1, 2)
