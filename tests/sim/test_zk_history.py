"""The history checker: it passes what zkserver's core does, and finds every planted fault."""

from __future__ import annotations

import random
from functools import cache

import pytest

from .checkers.zk_faults import FAULTS, Fault, NoPlace
from .checkers.zk_history import check_history
from .checkers.zk_records import Call, Heard, History, Logged, Opened, Stat, from_lines, to_lines
from .zk_history_world import HistoryWorld

SEEDS = range(12)
OPERATIONS = 800
PLANTS = 6
"""How often each fault is planted, each time elsewhere."""


@cache
def history(seed: int) -> History:
    return HistoryWorld(seed).run(OPERATIONS)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_core_makes_histories_without_a_violation(seed: int) -> None:
    report = check_history(history(seed))
    assert not report.violations, "\n".join(map(str, report.violations[:5]))
    assert report.counts["reads"] > 100
    assert report.counts["writes"] > 80
    assert report.counts["events"] > 10
    assert report.counts["unknown writes that happened"] > 0


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault: Fault) -> None:
    rng = random.Random(fault.name)
    planted = 0
    for seed in SEEDS:
        try:
            broken = fault.plant(history(seed), rng)
        except NoPlace:
            continue
        planted += 1
        violations = check_history(broken).violations
        found = [each for each in violations if each.check.startswith(fault.checks)]
        assert found, (seed, [str(each) for each in violations[:3]])
        if planted == PLANTS:
            break
    assert planted >= 2, "the histories have too few places for it"


def test_a_history_survives_its_file() -> None:
    assert from_lines(to_lines(history(0))) == history(0)


def test_the_same_seed_makes_the_same_history() -> None:
    assert list(to_lines(HistoryWorld(3).run(100))) == list(to_lines(HistoryWorld(3).run(100)))


# ---- by hand: what each message names ----------------------------------------------------------

OPEN = ((31, "world", "anyone"),)


def made(zxid: int, path: str = "/a", connection: int = 1, position: int = 0, at: int = 0) -> Call:
    arguments = (path, b"x", OPEN, 0)
    values = (path,)
    return Call(
        1, connection, 10 + zxid, "create", arguments, at, at + 1, position, 0, zxid, values
    )


def stat(zxid: int, version: int = 0) -> Stat:
    return Stat(zxid, zxid, 5, 5, version, 0, 0, 0, 1, 0, zxid)


def checked(calls: list[Call], events: list[Heard] | None = None) -> list[str]:
    connections = [Opened(1, 1, "opened", 0, 0, 0), Opened(2, 2, "opened", 0, 0, 0)]
    return list(map(str, check_history(History(calls, events or [], connections, None)).violations))


def test_a_good_history_by_hand() -> None:
    watch = Call(2, 2, 1, "exists", ("/a", True), 0, 1, 0, -101, 1, ())
    read = Call(2, 2, 2, "get_data", ("/a", False), 5, 6, 2, 0, 2, (b"x", stat(2)))
    assert checked([watch, made(2, at=2), read], [Heard(2, 1, -1, 1, "/a")]) == []


def test_an_event_must_come_before_the_reply_that_shows_it() -> None:
    watch = Call(2, 2, 1, "exists", ("/a", True), 0, 1, 0, -101, 1, ())
    read = Call(2, 2, 2, "get_data", ("/a", False), 5, 6, 1, 0, 2, (b"x", stat(2)))
    (found,) = checked([watch, made(2, at=2), read], [Heard(2, 2, -1, 1, "/a")])
    assert "event after the reply" in found
    assert "[connection 2 xid 2] get_data" in found


def test_an_event_may_be_cut_off_only_at_the_end() -> None:
    watch = Call(2, 2, 1, "exists", ("/a", True), 0, 1, 0, -101, 1, ())
    assert checked([watch, made(2, at=2)]) == []
    ping = Call(2, 2, -2, "ping", (), 5, 6, 1, 0, 2, ())
    (found,) = checked([watch, made(2, at=2), ping])
    assert "missing event" in found


def test_a_write_without_a_reply_is_recognised_by_its_data() -> None:
    unknown = made(0)._replace(received_ns=None, position=-1, values=())
    read = Call(2, 2, 2, "get_data", ("/a", False), 5, 6, 1, 0, 9, (b"x", stat(7)))
    assert checked([unknown, read]) == []
    again = read._replace(xid=3, position=2, zxid=12, values=(b"x", stat(11)))
    assert any("happened at" in each for each in checked([unknown, read, again]))


def test_a_counter_begins_again_with_a_parent_whose_creation_was_not_answered() -> None:
    child = made(3, "/a/b0000000000")._replace(name="create")
    child = child._replace(arguments=("/a/b", b"x", OPEN, 2))
    removed = Call(1, 1, 14, "delete", ("/a/b0000000000", -1), 0, 1, 2, 0, 4, ())
    gone = Call(1, 1, 15, "delete", ("/a", -1), 0, 1, 3, 0, 5, ())
    unknown = made(6)._replace(received_ns=None, position=-1, zxid=0, values=())
    again = child._replace(xid=17, position=4, zxid=7)
    calls = [made(2), child, removed, gone, unknown, again]
    xids = {2: 12, 3: 13, 4: 14, 5: 15, 6: 16, 7: 17}
    log = [Logged(zxid, 1, xid, "write") for zxid, xid in xids.items()]
    connections = [Opened(1, 1, "opened", 0, 0, 0)]
    assert check_history(History(calls, [], connections, log)).violations == []


def test_real_time_holds_between_sessions() -> None:
    early, late = made(9, "/a", at=0), made(3, "/b", connection=2, at=50)
    assert any("answered before the other was sent" in each for each in checked([early, late]))


def test_a_time_is_a_function_of_the_zxid() -> None:
    first = Call(2, 2, 1, "get_data", ("/a", False), 5, 6, 0, 0, 2, (b"x", stat(2)))
    other = first._replace(xid=2, position=1, values=(b"x", stat(2)._replace(mtime=6, ctime=6)))
    assert any("is stamped" in each for each in checked([made(2), first, other]))
