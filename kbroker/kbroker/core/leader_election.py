"""Pure choices: who leads a partition, and which brokers hold its replicas.

Source: Kafka `PartitionLeaderElectionAlgorithms` (all of them scan the assignment order) and
`AdminUtils.assignReplicasToBrokersRackUnaware`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from .metadata_image import NO_LEADER


class Election(NamedTuple):
    """Outcome of an election: the next leader and the next ISR."""

    leader_id: int
    isr: tuple[int, ...]


def first_leader(replicas: Sequence[int], live: Collection[int]) -> Election | None:
    """The first election of a new partition: the first live replica, all live ones in sync."""
    isr = tuple(replica for replica in replicas if replica in live)
    return Election(isr[0], isr) if isr else None


def next_leader(
    replicas: Sequence[int], isr: Collection[int], live: Collection[int], *, unclean: bool = False
) -> Election:
    """Choose again after the leader was lost.

    The first live replica that is in the ISR; with `unclean`, where there is none, the first live
    one, alone. Otherwise nobody leads and the ISR stays: its members hold what was acknowledged.
    """
    for replica in replicas:
        if replica in live and replica in isr:
            return Election(replica, tuple(each for each in isr if each in live))
    if unclean:
        for replica in replicas:
            if replica in live:
                return Election(replica, (replica,))
    return Election(NO_LEADER, tuple(isr))


def assign_replicas(
    brokers: Sequence[int],
    num_partitions: int,
    replication_factor: int,
    start_index: int,
    shift: int,
) -> dict[int, tuple[int, ...]]:
    """Spread replicas over brokers, ignoring racks.

    The first replica of partition p is `brokers[(p + start_index) % n]`; each further one skips
    `shift` more, and the shift grows by one whenever p has gone round all brokers.
    """
    count = len(brokers)
    assert 1 <= replication_factor <= count, (replication_factor, count)
    found: dict[int, tuple[int, ...]] = {}
    for partition in range(num_partitions):
        if partition and partition % count == 0:
            shift += 1
        first = (partition + start_index) % count
        chosen = [brokers[first]]
        for further in range(replication_factor - 1):
            distance = 1 + (shift + further) % (count - 1)
            chosen.append(brokers[(first + distance) % count])
        found[partition] = tuple(chosen)
    return found
