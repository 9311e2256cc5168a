"""Short forms of the differential test and of the recorder; the long ones are `make` targets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sim.checkers.zk_history import check_history

from . import apache
from .apache import Apache
from .differential import program_of
from .known import KNOWN_DIFFERENCES, NOT_GENERATED
from .normal import Normaliser
from .ours import Ours
from .pair import Pair, batches
from .programs import ALONE
from .recorder import record_server

ROOT = Path(__file__).resolve().parents[2]
ROOTS = ("protocol", "runtime", "client", "zkserver", "kbroker", "cluster")
PROGRAMS = 6
needs_apache = pytest.mark.skipif(
    apache.problem() is not None, reason=apache.problem() or "there is an oracle"
)


@pytest.fixture(autouse=True)
def source_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / each) for each in ROOTS))


@needs_apache
def test_programs_go_as_on_apache_zookeeper() -> None:
    with Pair(Apache, Ours) as pair:
        for number in range(PROGRAMS):
            difference = pair.run(program_of(1, number))
            assert difference is None, f"program {number}: {difference}"


@pytest.mark.parametrize("server", ["zkserver", pytest.param("apache", marks=needs_apache)])
def test_a_recorded_run_has_no_violation(server: str, tmp_path: Path) -> None:
    history = record_server(server, 1, 2_000, tmp_path)
    report = check_history(history)
    assert not report.violations, "\n".join(map(str, report.violations[:5]))
    assert report.counts["unknown writes that happened"] > 0
    assert report.counts["events"] > 20


def test_zkserver_agrees_with_itself() -> None:
    """The comparison has something to compare, and its own client understands our server."""
    with Pair(Ours, Ours) as pair:
        for number in range(2):
            difference = pair.run(program_of(3, number))
            assert difference is None, f"program {number}: {difference}"
        assert pair.operations > 500


def test_a_seed_makes_one_program() -> None:
    assert program_of(5, 2) == program_of(5, 2)
    assert program_of(5, 2) != program_of(5, 3)


def test_batches_keep_order_and_what_must_be_alone() -> None:
    program = program_of(5, 2)
    found = list(batches(program))
    assert [step for batch in found for step in batch] == program
    for batch in found:
        assert len({step.slot for step in batch}) == 1
        alone = [step for step in batch if step.kind != "call" or step.arguments[0] in ALONE]
        assert not alone or len(batch) == 1


def test_every_known_difference_has_a_reason() -> None:
    names = [known.name for known in KNOWN_DIFFERENCES]
    assert len(names) == len(set(names))
    assert all(len(known.reason) > 40 for known in KNOWN_DIFFERENCES)
    assert all(NOT_GENERATED.values())


def test_zxids_that_one_server_skips_do_not_count() -> None:
    normaliser = Normaliser(100)
    first = normaliser.zxid(100)
    assert normaliser.zxid(107) == first + 7
    normaliser.skip(first + 3)
    assert [normaliser.zxid(zxid) - first for zxid in (102, 104, 107)] == [2, 3, 6]
    normaliser.skip(first + 5)
    assert normaliser.zxid(107) == first + 5
    assert all(normaliser.raw(normaliser.zxid(zxid)) == zxid for zxid in (101, 102, 104, 107))
    assert (normaliser.zxid(0), normaliser.zxid(-1)) == (0, -1)
