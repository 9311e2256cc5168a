"""The proof of `make run`: it passes when nothing is lost and fails when anything is."""

from __future__ import annotations

import argparse
import subprocess
import sys
from array import array
from collections.abc import Callable

import pytest

from duolog_cluster import demo
from duolog_cluster.cluster import Cluster
from duolog_cluster.demo import Sequences
from tests.integration.test_processes import source_roots

__all__ = ["source_roots"]


def sequences() -> Sequences:
    return {b"a": array("I", [1, 2, 3]), b"b": array("I", [7, 7, 8])}


def lose(found: Sequences) -> None:
    del found[b"a"][1]


def lose_a_key(found: Sequences) -> None:
    del found[b"b"]


def double(found: Sequences) -> None:
    found[b"a"].append(3)


def invent(found: Sequences) -> None:
    found[b"c"] = array("I", [1])


def reorder(found: Sequences) -> None:
    found[b"b"].reverse()


FAULTS = [(lose, 1), (lose_a_key, 3), (double, 1), (invent, 1), (reorder, 2)]


def test_what_comes_back_whole_has_no_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo._compare(sequences(), sequences()) == 0
    assert "0 lost, 0 reordered, 0 duplicated" in capsys.readouterr().out


@pytest.mark.parametrize(("fault", "count"), FAULTS, ids=lambda each: getattr(each, "__name__", ""))
def test_every_kind_of_fault_is_counted(fault: Callable[[Sequences], None], count: int) -> None:
    found = sequences()
    fault(found)
    assert demo._compare(sequences(), found) == count


async def test_a_fault_on_the_way_makes_the_proof_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = demo._consume

    async def forgetful(pair: Cluster, topic: str, expected: int) -> Sequences:
        received = await honest(pair, topic, expected)  # type: ignore[arg-type]
        next(iter(received.values())).pop()
        return received

    async def untroubled(*_arguments: object) -> None:
        """The broker lives in this process: it is not killed."""

    monkeypatch.setattr(demo, "_kill_and_restart", untroubled)
    options = argparse.Namespace(limit=300, durability="replicated")
    async with Cluster() as cluster:
        assert await demo._proof(options, cluster) == 0  # type: ignore[arg-type]
    async with Cluster() as cluster:
        monkeypatch.setattr(demo, "_consume", forgetful)
        assert await demo._proof(options, cluster) == 1  # type: ignore[arg-type]


def test_the_demo_runs_with_real_processes_and_a_kill() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "duolog_cluster.demo", "--exit", "--limit", "3000"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("0 lost, 0 reordered, 0 duplicated") == 2
    assert "kill -9   the broker after" in ended.stdout
