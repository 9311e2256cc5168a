"""Majority arithmetic, nothing else.

Source: ZooKeeper `QuorumMaj`, and `SyncedLearnerTracker` for the two configurations of a
reconfiguration (reference A.12, A.13).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final

_MAX_CONFIGURATIONS: Final = 2


class Quorums:
    """Which sets of servers may decide, for one configuration or for an old and a new one."""

    def __init__(self, *configurations: frozenset[int]) -> None:
        """Each configuration is its voters' ids; where there are two, both must agree."""
        assert 1 <= len(configurations) <= _MAX_CONFIGURATIONS, configurations
        assert all(configurations), f"a configuration without voters: {configurations}"
        self._configurations = configurations
        self.voters: frozenset[int] = frozenset().union(*configurations)
        """Of all configurations."""

    def has_quorum(self, server_ids: AbstractSet[int]) -> bool:
        """Whether they are more than half of each configuration; others than voters don't count."""
        return all(2 * len(voters & server_ids) > len(voters) for voters in self._configurations)

    def committed_zxid(self, durable: Mapping[int, int]) -> int:
        """The highest zxid that is durable on a quorum; a server that is missing holds 0.

        That of one leader's epoch only: a zxid of an epoch before is committed by what follows it
        (A.7), never by counting.
        """
        return min(_durable_on_majority(voters, durable) for voters in self._configurations)


def _durable_on_majority(voters: frozenset[int], durable: Mapping[int, int]) -> int:
    """At least this zxid is durable on more than half of the voters."""
    descending = sorted((durable.get(server_id, 0) for server_id in voters), reverse=True)
    return descending[len(voters) // 2]
