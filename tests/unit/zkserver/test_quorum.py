"""Majorities of one and of two configurations, against a naive second version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import chain, combinations, product

import pytest

from zkserver.core.quorum import Quorums

CONFIGURATIONS = [
    [{1}],
    [{1, 2}],
    [{1, 2, 3}],
    [{1, 2, 3, 4}],
    [{1, 2, 3, 4, 5}],
    [{1, 2, 3}, {3, 4, 5}],
    [{1, 2, 3}, {1, 2, 3, 4}],
    [{1, 2}, {4}],
]
STRANGER = 6


def subsets(ids: AbstractSet[int]) -> Iterator[set[int]]:
    sizes = range(len(ids) + 1)
    return map(set, chain.from_iterable(combinations(sorted(ids), size) for size in sizes))


def naive_has_quorum(configurations: list[set[int]], server_ids: AbstractSet[int]) -> bool:
    """More of each configuration are there than are missing."""
    for voters in configurations:
        present = sum(1 for each in voters if each in server_ids)
        missing = sum(1 for each in voters if each not in server_ids)
        if present <= missing:
            return False
    return True


def naive_committed(configurations: list[set[int]], durable: Mapping[int, int]) -> int:
    """Try every zxid from the highest down."""
    for zxid in sorted({0, *durable.values()}, reverse=True):
        holders = {each for each, last in durable.items() if last >= zxid}
        if zxid == 0 or naive_has_quorum(configurations, holders):
            return zxid
    raise AssertionError("0 is always committed")


@pytest.mark.parametrize("configurations", CONFIGURATIONS, ids=str)
def test_every_set_of_servers(configurations: list[set[int]]) -> None:
    quorums = Quorums(*map(frozenset, configurations))
    voters = set().union(*configurations)
    assert quorums.voters == voters
    for server_ids in subsets(voters | {STRANGER}):
        expected = naive_has_quorum(configurations, server_ids)
        assert quorums.has_quorum(server_ids) == expected, server_ids


@pytest.mark.parametrize("configurations", CONFIGURATIONS, ids=str)
def test_two_quorums_have_a_server_in_common(configurations: list[set[int]]) -> None:
    quorums = Quorums(*map(frozenset, configurations))
    deciding = [each for each in subsets(quorums.voters) if quorums.has_quorum(each)]
    assert deciding
    assert all(one & other for one in deciding for other in deciding)


@pytest.mark.parametrize("configurations", CONFIGURATIONS, ids=str)
def test_every_state_of_the_logs(configurations: list[set[int]]) -> None:
    quorums = Quorums(*map(frozenset, configurations))
    ids = sorted(quorums.voters)
    for zxids in product(range(4), repeat=len(ids)):
        # A missing server holds 0, and an observer's log does not count.
        durable = {each: zxid for each, zxid in zip(ids, zxids, strict=True) if zxid}
        durable[STRANGER] = 9
        expected = naive_committed(configurations, durable)
        assert quorums.committed_zxid(durable) == expected, durable


def test_a_configuration_has_voters() -> None:
    for configurations in ([], [frozenset[int]()], [frozenset({1})] * 3):
        with pytest.raises(AssertionError):
            Quorums(*configurations)
